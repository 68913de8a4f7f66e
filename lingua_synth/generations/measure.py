"""What a round has become: the student's losses and the text it was given, one row a regime, round and seed.

Text is compared at one number of tokens, that of the smallest text there is, by what so many tokens of each would show.
What is rare is told by one half of the natural text; the other half is the natural text that the synthetic one is
compared with, so natural text is held to its own standard by tokens that did not set it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lingua_synth.analysis import count_unigrams, expected_coverage, expected_types, tail_types
from lingua_synth.analysis.coverage import subsample
from lingua_synth.analysis.distances import SMOOTHING, kl_divergence, smoothed
from lingua_synth.analysis.repetition import repeated_ngrams
from lingua_synth.analysis.tails import tail_of
from lingua_synth.analysis.zipf import fit_zipf
from lingua_synth.evaluate.results import read_evaluation
from lingua_synth.files import read_json
from lingua_synth.generations.args import GenerationsArgs, arms_of
from lingua_synth.generations.plan import CONTROL, NATURAL, Training, plan_round, ratios_of, text_name
from lingua_synth.tokens import TokenSource

if TYPE_CHECKING:
    from lingua_synth.analysis import UnigramCounts

TAIL_SHARE = 0.05
"""Rare types hold so much of the natural text."""
NGRAMS = (2, 4)
KL_SAMPLES = 3
ZIPF_SIMULATIONS = 20

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reference:
    """What texts are compared with."""

    defining: Counts
    """Half of the natural text: it says what is rare, and distances are from it."""
    natural: Counts
    """The other half, natural text as a text among the others."""
    held_out: Counts
    """The held-out text of all domains."""

    @property
    def is_rare(self) -> npt.NDArray[np.bool_]:
        """Which types are rare, `[vocab]`."""
        return tail_types(self.defining, 1 - TAIL_SHARE)


def read_reference(args: GenerationsArgs) -> Reference:
    """Count the natural text; counts are kept beside the shards."""
    tokens = Path(args.out) / "tokens"
    whole = _counted(tokens / NATURAL)
    half = count_unigrams(tokens / NATURAL, max_tokens=max(1, whole.num_tokens_available // 2), num_threads=1)
    held_out = [_counted(folder).counts for folder in sorted((tokens / "heldout").iterdir()) if folder.is_dir()]
    return Reference(half.counts, whole.counts - half.counts, np.sum(held_out, axis=0))


def _counted(folder: Path) -> UnigramCounts:
    return count_unigrams(folder, num_threads=1, cache=folder.parents[0] / f".{folder.name}.counts.npz")


def text_statistics(
    counts: Counts, reference: Reference, num_tokens: int, source: TokenSource | None = None
) -> dict[str, float]:
    """Support and tail of a text by `num_tokens` of its tokens.

    types: expected different types; coverage: share of the held-out tokens whose type is among them; tail_mass: share
    of the text's tokens that are of rare types (all of the text, as a share needs no matching); zipf: exponent of
    Zipf's law; kl: nats per token from the natural half that defines, both sides cut to `num_tokens`, smoothed by half
    an occurrence, mean of a few draws; distinct_<n>: of the n-grams in the first `num_tokens` tokens of `source`, the
    share that is different ones.
    """
    found = {
        "types": expected_types(counts, num_tokens),
        "coverage": expected_coverage(counts, reference.held_out, num_tokens)[0],
        "tail_mass": float(counts[reference.is_rare].sum() / counts.sum()),
    }
    drawn, distances = counts, []
    for sample in range(KL_SAMPLES):
        drawn = subsample(counts, num_tokens, np.random.default_rng((sample, 1)))
        size = min(num_tokens, int(reference.defining.sum()))
        of_natural = subsample(reference.defining, size, np.random.default_rng((sample, 2)))
        distances.append(kl_divergence(smoothed(of_natural, SMOOTHING), smoothed(drawn, SMOOTHING)))
    found["kl"] = float(np.mean(distances))
    try:
        found["zipf"] = fit_zipf(drawn, num_simulations=ZIPF_SIMULATIONS).exponent
    except ValueError:  # fewer than 20 types occur ten times: no exponent
        found["zipf"] = float("nan")
    if source is not None:
        for size in NGRAMS:
            share = repeated_ngrams(source, size, max_tokens=num_tokens, num_listed=0, num_threads=1).share_repeated
            found[f"distinct_{size}"] = 1 - share
    return found


def loss_statistics(folder: Path, reference: Reference) -> dict[str, float]:
    """Held-out loss of a finished run: averages, every domain, and the tokens of rare types apart from the others."""
    evaluation = read_evaluation(folder)
    losses = evaluation.token_losses()
    rare = tail_of(reference.defining, losses.counts, TAIL_SHARE).mask
    found: dict[str, float] = dict(evaluation.averages)
    found["tail_loss"] = float(losses.nats[rare].sum() / losses.counts[rare].sum())
    found["common_loss"] = float(losses.nats[~rare].sum() / losses.counts[~rare].sum())
    return found | {f"loss_{name}": sums.loss for name, sums in evaluation.domains.items()}


def round_rows(args: GenerationsArgs) -> list[dict[str, Any]]:
    """One row for each finished training of the student, regimes, then rounds, then seeds; round 0 stands in every
    regime. Columns `text_...` are of the text that the round added, of round 0 of natural text; the control adds none.

    `text_matched_tokens`: the tokens that all texts are compared at. Empty before the first training is finished.
    """
    ratios = ratios_of(args.ratios, args.rounds)
    finished: list[tuple[str, Training]] = []
    for regime in arms_of(args):
        for round_ in range(args.rounds + 1):
            for training in plan_round(round_, [regime], args.seeds, args.budget, ratios):
                if (training.run_folder(args.out, args.size) / "result.json").is_file():
                    finished.append((regime, training))
    if not finished:
        return []
    reference = read_reference(args)
    tokens = Path(args.out) / "tokens"
    names = {text_name(regime, one.round, one.seed) for regime, one in finished if one.round and regime != CONTROL}
    counts: dict[str, Counts] = {name: _counted(tokens / name).counts for name in sorted(names)}
    counts[NATURAL] = reference.natural
    matched = min(int(c.sum()) for c in counts.values())
    texts = {name: text_statistics(c, reference, matched, TokenSource(tokens / name)) for name, c in counts.items()}
    losses: dict[Path, dict[str, float]] = {}
    rows = []
    for regime, one in finished:
        folder = one.run_folder(args.out, args.size)
        if folder not in losses:
            losses[folder] = loss_statistics(folder, reference)
        text = texts[text_name(regime, one.round, one.seed) if one.round and regime != CONTROL else NATURAL]
        if one.round and regime == CONTROL:
            text = dict.fromkeys(text, float("nan"))
        rows.append(_row(args, regime, one, read_json(folder / "result.json"), losses[folder], text, matched))
    return rows


def _row(
    args: GenerationsArgs,
    regime: str,
    training: Training,
    result: Mapping[str, Any],
    losses: Mapping[str, float],
    text: Mapping[str, float],
    matched: int,
) -> dict[str, Any]:
    sources = [NATURAL, *(f"synthetic-{k}" for k in range(1, args.rounds + 1))]
    return {
        "regime": regime,
        "round": training.round,
        "seed": training.seed,
        "run_id": result["run_id"],
        "size": result["size"],
        "n_non_embedding": result["n_non_embedding"],
        "tokens": result["tokens"],
        **{f"ratio_{name}": str(training.ratios.get(name, 0)) for name in sources},
        **{f"tokens_{name}": result.get(f"tokens_{name}", 0) for name in sources},
        **losses,
        **{f"text_{name}": value for name, value in text.items()},
        "text_matched_tokens": matched,
    }


def series(rows: Sequence[Mapping[str, Any]], regime: str, column: str) -> dict[int, dict[int, float]]:
    """Seed -> round -> value of a column, of one regime."""
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["regime"] == regime:
            found.setdefault(int(row["seed"]), {})[int(row["round"])] = float(row[column])
    return found
