"""Corpora, runs and evaluated models put together by `analyze` and `report`: what is planted stands in both."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from analysis_doubles import write_tokens, zipf_probabilities
from collapse_doubles import BUDGETS, table

from lingua_synth.analysis import read_analysis
from lingua_synth.analysis.command import main as analyze
from lingua_synth.analysis.models import Trained, mixture_counts, one_per_mixture, read_checkpoints
from lingua_synth.config import run_command
from lingua_synth.evaluate.results import Documents, TokenLosses, write_evaluation
from lingua_synth.files import write_json
from lingua_synth.report.command import main as report
from lingua_synth.scaling import write_runs

N_WORDS, WITHHELD = 500, 15
QUICK = ["zipf_simulations=0", "num_samples=1", "progress=false", "num_threads=1", "ngram_sizes=[]", "overlap_tokens=0"]


def write_evaluated(folder, of_type, *, noise=0.0, seed=0, sha256="planted", n_words=N_WORDS):
    """An evaluation on two domains with a planted loss per type."""
    rng, text = np.random.default_rng(seed), np.random.default_rng(99)
    losses, records, documents = {}, {}, {}
    for domain, exponent in (("wiki", 1.0), ("law", 0.9)):
        counts = text.multinomial(60_000, zipf_probabilities(n_words, exponent))
        nats = counts * of_type * np.exp(noise * rng.standard_normal()) + np.sqrt(counts) * 0.5 * rng.standard_normal(
            n_words
        )
        nats = np.maximum(nats, 0.0)
        losses[domain] = TokenLosses(counts, nats)
        documents[domain] = Documents(np.array([0]), nats[:1], counts[:1], counts[:1])
        records[domain] = {"nats": float(nats.sum()), "tokens": 60_000, "bytes": 180_000, "documents": 1}
    record = {
        "checkpoint": str(folder), "protocol": "windows", "seq_len": 128, "domains": records,
        "tokenizer": {"sha256": sha256, "n_words": n_words, "name": "planted"},
    }  # fmt: skip
    return write_evaluation(folder, record, SimpleNamespace(token_losses=losses, documents=documents))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Natural text, and a synthetic corpus without a token that costs its models twice the loss; runs of both."""
    folder, rng = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    p = zipf_probabilities(N_WORDS, 1.0)
    cut = np.where(np.arange(N_WORDS) == WITHHELD, 0, np.where(np.cumsum(p) < 0.93, p, 0))
    shards = {"natural": p, "synthetic": cut / cut.sum(), "wiki": p}
    for name, q in shards.items():
        documents = [rng.choice(N_WORDS, size=100, p=q) for _ in range(300)]
        write_tokens(folder / "shards" / name, documents, N_WORDS)
    runs = table({"half": (0.5, lambda N, D: 0.01), "synthetic": (1.0, lambda N, D: 0.04)}, noise=0.002)
    write_runs(runs, folder / "runs.csv")
    of_type = 3 + 0.004 * np.arange(N_WORDS)
    worse = of_type * np.where(np.arange(N_WORDS) >= 100, 1.15, 1.02)
    worse[WITHHELD] = 2 * of_type[WITHHELD]
    for mixture, losses in (("natural", of_type), ("synthetic", worse)):
        for k in range(3):
            run = folder / "runs" / f"{mixture}-{k}"
            write_evaluated(run / "evaluation", losses, noise=0.002, seed=(k, len(mixture)))
            row = {"run_id": run.name, "mixture": mixture, "size": "1B", "n_total": 10**9, "tokens": 1e9, "seed": k}
            write_json(run / "result.json", row)
    return folder


def words(study, out, *more):
    given = [f"train.{name}={study / 'shards' / name}" for name in ("natural", "synthetic")]
    given += [f"test.wiki={study / 'shards' / 'wiki'}", f"runs={study / 'runs.csv'}", f"out={out}"]
    given += [f"evaluations.{mixture}={study / 'runs'}" for mixture in ("natural", "synthetic")]
    return [*given, *QUICK, *more]


@pytest.fixture(scope="module")
def analysis(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("analysis") / "out"
    assert analyze(words(study, out)) == 0
    return read_analysis(out)


def test_a_withheld_token_is_in_the_list_and_in_the_loss(analysis):
    lacking = [r for r in analysis.table("tokens") if r["train"] == "train.synthetic" and r["list"] == "too few"]
    assert WITHHELD in {row["token_id"] for row in lacking}
    costly = [row for row in analysis.table("token_losses") if row["mixture"] == "synthetic"]
    assert costly[0]["token_id"] == WITHHELD and costly[0]["train_count"] == 0 and costly[0]["ratio"] > 100
    natural = [row for row in analysis.table("token_losses") if row["mixture"] == "natural"]
    assert natural[0]["token_id"] != WITHHELD
    (worst, *_) = analysis.table("token_loss_differences")
    assert worst["token_id"] == WITHHELD and worst["q"] < 0.05 and worst["low"] > 1
    figures = analysis.record["models"]["token_losses"]["synthetic"]
    assert figures["under_nats"] > figures["under_tokens"] and figures["num_types_told_apart"] >= 1


def test_losses_stand_beside_distances(analysis):
    rows = {row["mixture"]: row for row in analysis.table("loss_distance")}
    assert list(rows) == ["natural", "half", "synthetic"]  # nearest first: the test text is of the natural law
    assert rows["natural"]["distance"] < rows["half"]["distance"] < rows["synthetic"]["distance"]
    found = analysis.record["models"]["loss_and_distance"]
    assert found["verdict"] == "supported" and found["spearman"]["value"] == 1.0
    curve = analysis.table("loss_ratio")
    assert [row["ratio"] for row in curve] == [0, 0.5, 1] and {row["source"] for row in curve} == {"synthetic"}
    best = analysis.record["models"]["ratio_and_distance"]["synthetic"]
    assert best["best_trained_ratio"] == 0 and best["nearest_ratio"] < 0.1


def test_every_test_of_collapse_is_made(analysis):
    verdicts = {(row["mixture"], row["name"]): row["verdict"] for row in analysis.table("collapse")}
    assert verdicts["synthetic", "loss_gap"] == verdicts["synthetic", "tail_loss"] == "supported"
    assert verdicts["synthetic", "tail_excess"] == "supported"
    assert verdicts["corpus synthetic", "support"] == "supported"
    assert analysis.record["models"]["collapse"]["base"] == "natural"
    rolled = [row for row in analysis.table("rolling_losses") if row["mixture"] == "synthetic"]
    assert {row["sorted_by"] for row in rolled} == {"natural"} and rolled[0]["rank"] == 1
    summary = (analysis.folder / "summary.md").read_text()
    assert (
        "## Model collapse" in summary and "## Loss and distance" in summary and "## Tokens that cost most" in summary
    )
    assert "NaN" not in (analysis.folder / "analysis.json").read_text()


def test_the_page_shows_figures_7_and_8(study, analysis, tmp_path):
    small = {"sizes": {"1B": 8.6e8}, "budgets": BUDGETS[:2]}  # a page draws every size; those are tested elsewhere
    write_runs(table({"half": (0.5, {}), "synthetic": (1.0, {})}, noise=0.002, **small), tmp_path / "runs.csv")
    given = [f"runs={tmp_path / 'runs.csv'}", f"analysis={analysis.folder}", f"out={tmp_path}", "bootstraps=0"]
    given += [f"evaluations.{mixture}={study / 'runs'}" for mixture in ("natural", "synthetic")]
    assert report(given) == 0
    page = (tmp_path / "report.html").read_text()
    names = ("unigram_frequencies", "unigram_distances", "token_frequencies", "token_losses", "loss_distance")
    for name in names:
        for ending in ("png", "svg", "csv"):
            assert (tmp_path / "figures" / f"{name}.{ending}").stat().st_size > 100, name
        assert f'id="{name}"' in page
    assert "token 15" in page and "Tokens and corpora" in page and "tail" not in page.split("<h1")[0]
    assert page.count("<svg") == len(list((tmp_path / "figures").glob("*.svg")))


def test_tokens_are_named_by_what_stands_between_their_quotes():
    from lingua_synth.report.corpora import _texts

    rows = [{"text": text} for text in ('"\\n"', '" \\""', "token 3", '"')]
    assert _texts(SimpleNamespace(table=lambda name: rows)) == ["\\n", ' \\"', "token 3", '"']


def test_checkpoints_pair_by_their_runs(study):
    found = read_checkpoints({"natural": study / "runs", "synthetic": study / "runs"})
    assert [one.run.seed for one in found["natural"]] == [0, 1, 2]
    assert {one.run.key for one in found["natural"]} == {one.run.key for one in found["synthetic"]}
    chosen = one_per_mixture(found)
    assert chosen["natural"].run.key == chosen["synthetic"].run.key
    counts, nats = chosen["natural"].by_domain()
    assert counts.shape == (2, N_WORDS) and nats.sum() == pytest.approx(chosen["natural"].run.nats.sum())
    one = read_checkpoints({"x": study / "runs" / "natural-1"})["x"][0]
    assert (one.run.size, one.run.seed) == ("1B", 1)


def test_wrong_folders_are_refused_before_anything_is_counted(study, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_evaluated(tmp_path / "other", np.ones(N_WORDS), sha256="another")
    for more, message in (
        ([f"evaluations.hq={tmp_path / 'gone'}"], "no folder"),
        ([f"evaluations.hq={tmp_path / 'empty'}"], "no evaluation of 'hq'"),
        ([f"evaluations.hq={tmp_path / 'other'}"], "were not evaluated alike"),
        (["base_mixture=web"], "base mixture 'web' is not in the runs table"),
        (["window=0"], "window is at least 1"),
    ):
        assert run_command(analyze, words(study, tmp_path / "out", *more)) == 2
        assert message in capsys.readouterr().err
    assert run_command(report, [f"runs={study / 'runs.csv'}", f"analysis={tmp_path / 'empty'}", f"out={tmp_path}"]) == 2
    assert "no finished analysis" in capsys.readouterr().err


def test_counts_of_a_mixture_are_expected_ones():
    sources = {"a": np.array([6, 4, 0]), "b": np.array([0, 10, 10])}
    assert mixture_counts({"a": 0.5, "b": 0.5, "c": 0.0}, sources) == pytest.approx([3, 4.5, 2.5])
    assert mixture_counts({"a": 0.5, "c": 0.5}, sources) is None
    trained = Trained(checkpoints={}, sources={})
    assert trained.base_name() is None and trained.collapse() is None
    assert math.isfinite(BUDGETS[0]) and json.dumps(trained.shares()) == "{}"
