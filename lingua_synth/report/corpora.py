"""The sections of a page about corpora and tokens, from the folder of an analysis and evaluated models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lingua_synth.report import corpus_figures, words
from lingua_synth.report.blocks import Block, Bullets, Picture, Section, Table

if TYPE_CHECKING:
    from lingua_synth.analysis import LossDistance
    from lingua_synth.analysis.models import Trained
    from lingua_synth.analysis.results import Analysis

MOST_TOKENS = 12
"""Tokens of one list on the page; the tables of the analysis hold more."""
MOST_TESTS = 20
"""Test corpora in one figure."""


def corpus_sections(
    analysis: Analysis | None, trained: Trained, *, target: str = "loss_macro", noise: float | None = None
) -> list[Section]:
    """What training and test text look like by their tokens, and on which tokens the loss lies; none without either."""
    sections = []
    if analysis is not None:
        sections.append(Section("Tokens and corpora", _corpus_blocks(analysis, trained)))
        found = _loss_distance(trained, target, noise)
        if found is not None:
            sections.append(Section("Is nearer better?", _distance_blocks(found, trained.base_name())))
    if trained.checkpoints:
        sections.append(Section("Loss by token", _token_blocks(analysis, trained)))
    return sections


def trained_sections(
    analysis: Analysis | None,
    trained: Trained,
    *,
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    noise: float | None = None,
) -> list[Section]:
    """`corpus_sections`, and the signs of collapse where there are two mixtures, evaluations or corpora to compare."""
    from lingua_synth.report.collapse import collapse_section

    trained = trained_of(analysis, trained)
    sections = corpus_sections(analysis, trained, target=target, noise=noise)
    found = trained.collapse(target=target, n_definition=n_definition, noise=noise)
    return sections if found is None else [*sections, collapse_section(found)]


def _corpus_blocks(analysis: Analysis, trained: Trained) -> list[Block]:
    trains = [name for name in analysis.corpora if name.startswith("train.")]
    tests = [name for name in analysis.corpora if name.startswith("test.")]
    labels = _labels(analysis)
    counts = {labels[name]: analysis.counts(name).counts for name in [*trains, *tests]}
    base = trained.natural_name()
    body: list[Block] = [
        f"{words.plural(len(trains), 'training corpus', 'training corpora')} and "
        f"{words.plural(len(tests), 'test corpus', 'test corpora')} by how often each token type occurs in them; "
        f"compared at {words.short_count(float(analysis.record['matched_tokens']))} tokens each.",
        Picture(
            "unigram_frequencies",
            corpus_figures.unigram_frequencies(
                counts, tests=[labels[name] for name in tests], fits=_laws(analysis), base=base
            ),
            "How frequent token types are, most frequent first. A line that ends early is text of few types; one that "
            "bends down late has lost its rare ones.",
        ),
    ]
    pairs = _distances(analysis)
    if pairs:
        body.append(
            Picture(
                "unigram_distances",
                corpus_figures.unigram_distances(pairs, base=base),
                "Distance of the token frequencies of each test corpus from each training corpus, at equal tokens; "
                "nearest on the left.",
            )
        )
    if trained.test is not None and trains:
        text = _texts(analysis)
        body.append(
            Picture(
                "token_frequencies",
                corpus_figures.token_frequencies(
                    trained.test,
                    {labels[name]: counts[labels[name]] for name in trains},
                    decode=text.__getitem__,
                    base=base,
                ),
                "Every token type by its share of the test text (grey), and its share of each training corpus: dots, "
                "and their running median. Tokens that differ most are named; those on the lower edge are absent.",
            )
        )
    tokens = analysis.table("tokens") if "tokens" in analysis.tables else []
    rows = _extremes(tokens)
    if rows:
        caption = "Tokens that training text holds too few or too many of, by what they add to the distance."
        body.append(Table(["training", "test", "too few of", "too many of"], rows, caption=caption))
    if analysis.skipped:
        body.append(Bullets([_sentence(one) for one in analysis.skipped], lead="What the analysis left out"))
    return body


def _distance_blocks(found: LossDistance, base: str | None) -> list[Block]:
    body: list[Block] = [
        Picture(
            "loss_distance",
            corpus_figures.loss_distance(found, base=base),
            "Loss of each mixture beside the mean of all, against the distance of its training text from the test "
            f"text; bars are {100 * found.level:.3g} % intervals. {found.num_cells} cells.",
        ),
        Bullets(
            [
                _correlation(found.pearson, "The correlation of loss and distance"),
                _correlation(found.spearman, "The rank correlation"),
                f"That the nearest mixture is the best one is {found.verdict}: {found.why}.",
            ],
            lead="What that says",
        ),
        "A correlation over a few mixtures describes those mixtures: three ratios of one source are not three finds.",
    ]
    return body


def _correlation(one: Any, name: str) -> str:
    if not math.isfinite(one.value):
        return f"{name} is not defined."
    ends = f"{words.signed(one.low, 2)} to {words.signed(one.high, 2)}"
    return f"{name} over {words.plural(one.num, 'mixture')} is {words.signed(one.value, 2)} ({ends}; p = {one.p:.2g})."


def _token_blocks(analysis: Analysis | None, trained: Trained) -> list[Block]:
    rolled = trained.rolling()
    base = trained.base_name()
    body: list[Block] = [
        Picture(
            "token_losses",
            corpus_figures.token_losses(rolled, base=base),
            "Loss of token types from frequent to rare; lines are running means with 95 % bands, one model a mixture, "
            "of one size and budget where such were evaluated.",
        )
    ]
    tables = analysis.tables if analysis is not None else []
    if analysis is not None and "token_losses" in tables:
        rows: list[list[Any]] = []
        shown: dict[str, int] = {}
        for row in analysis.table("token_losses"):
            shown[row["mixture"]] = shown.get(row["mixture"], 0) + 1
            if shown[row["mixture"]] <= MOST_TOKENS:
                rows.append([row["mixture"], row["text"], row["loss"], row["ratio"], round(row["excess_nats"])])
        header = ["mixture", "token", "loss (nats)", "share of test / of training", "nats beyond the mean"]
        body.append(Table(header, rows, caption="Tokens that cost a model most.", digits=2))
    if analysis is not None and "token_loss_differences" in tables:
        found = [row for row in analysis.table("token_loss_differences") if row["q"] <= 0.05]
        apart: list[list[Any]] = [
            [row["mixture"], row["text"], words.with_interval(row["difference"], row["low"], row["high"])]
            for mixture in dict.fromkeys(row["mixture"] for row in found)
            for row in [one for one in found if one["mixture"] == mixture][:MOST_TOKENS]
        ]
        if apart:
            caption = (
                f"Tokens that a model predicts worse (above 0) or better than that of {words.quoted(base or '')}, nats "
                "per token: those told apart at a rate of false finds of 5 %."
            )
            body.append(Table(["mixture", "token", "difference"], apart, caption=caption))
    return body


def _loss_distance(trained: Trained, target: str, noise: float | None) -> LossDistance | None:
    from lingua_synth.analysis.correlation import loss_distance, mixture_distances

    if trained.runs is None or trained.test is None or not trained.sources:
        return None
    sources = {name: one.counts for name, one in trained.sources.items()}
    try:
        distance = mixture_distances(trained.shares(), sources, trained.test)
        mine = {name: d for name, d in distance.items() if name in trained.runs.mixtures}
        return loss_distance(trained.runs, mine, target=target, noise=noise)
    except ValueError:
        return None  # mixtures whose sources were not counted, or too few of them: the analysis says so


def _laws(analysis: Analysis) -> dict[str, Any]:
    """The law with the better fit of each corpus, Zipf-Mandelbrot where it was fitted."""
    if "zipf" not in analysis.tables:
        return {}
    found: dict[str, Any] = {}
    for row in analysis.table("zipf"):
        shift = 0.0 if math.isnan(row["shift"]) else float(row["shift"])
        one = SimpleNamespace(**{**row, "shift": shift})
        name = _short(str(row["corpus"]))
        if name not in found or row["divergence"] < found[name].divergence:
            found[name] = one
    return {name: one for name, one in found.items() if f"train.{name}" in analysis.corpora}


def _distances(analysis: Analysis) -> list[Any]:
    """Pairs of a test and a training corpus, seen from the test."""
    from lingua_synth.analysis import Distance

    if "distances" not in analysis.tables:
        return []
    found, labels = [], _labels(analysis)
    names = [one.name for one in dataclasses.fields(Distance)]
    for row in analysis.table("distances"):
        one = Distance(**{name: row[name] for name in names})
        if one.first.startswith("train.") and one.second.startswith("test."):
            one = dataclasses.replace(
                one, first=one.second, second=one.first, kl=one.kl_reverse, kl_sd=one.kl_reverse_sd
            )
        elif not (one.first.startswith("test.") and one.second.startswith("train.")):
            continue
        found.append(dataclasses.replace(one, first=labels[one.first], second=labels[one.second]))
    tests = list(dict.fromkeys(one.first for one in found))[:MOST_TESTS]
    return [one for one in found if one.first in tests]


def _texts(analysis: Analysis) -> list[str]:
    """What stands between the quotes in the tables, by token id."""
    texts = [str(row["text"]) for row in analysis.table("unigrams")]
    return [text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text for text in texts]


def _extremes(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        if row["by"] == "divergence":
            lists = found.setdefault((row["train"], row["evaluation"]), {"too few": [], "too many": []})
            if row["list"] in lists and len(lists[row["list"]]) < MOST_TOKENS:
                lists[row["list"]].append(str(row["text"]))
    return [
        [_short(train), _short(test), "  ".join(lists["too few"]), "  ".join(lists["too many"])]
        for (train, test), lists in found.items()
    ]


def _labels(analysis: Analysis) -> dict[str, str]:
    """train.cc -> cc, test.wiki -> wiki; a test corpus called like a training corpus keeps its whole name."""
    trains = {_short(name) for name in analysis.corpora if name.startswith("train.")}
    return {
        name: name if name.startswith("test.") and _short(name) in trains else _short(name) for name in analysis.corpora
    }


def _short(name: str) -> str:
    return name.removeprefix("train.").removeprefix("test.")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def trained_of(analysis: Analysis | None, trained: Trained) -> Trained:
    """`trained` with the counts of the analysis: training corpora by source, evaluation corpora together."""
    if analysis is None:
        return trained
    sources = {_short(name): analysis.counts(name) for name in analysis.corpora if name.startswith("train.")}
    tests = [analysis.counts(name).counts for name in analysis.corpora if name.startswith("test.")]
    return dataclasses.replace(
        trained,
        sources={name: one for name, one in sources.items() if one.num_tokens},
        test=np.sum(tests, axis=0) if tests else None,
    )
