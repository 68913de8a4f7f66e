"""Does the tokenizer change what is concluded about synthetic text? One study under several tokenizers, cell by cell.

Losses per token, and budgets in tokens, are in units of the vocabulary. Across vocabularies this module takes bits per
byte of the same held-out text, and bytes of the text that was read. A *cell* is one size and one budget; under two
tokenizers a mixture's bytes (or tokens, or FLOPs: what the study matched) agree there to `tolerance`. With y = bits per
byte of a run,

    difference     y(t, m) - y(first, m)            what the tokenizer does to a mixture's loss
    effect         y(t, m) - y(t, base)             what the mixture does under one tokenizer; below 0 it helps
    interaction    effect(t, m) - effect(first, m)  whether that depends on the tokenizer

each paired by size, budget and seed, with Student's t from the scatter inside cells, or of seeds where the cells of a
seed share its luck (`paired_means.py`). Intervals of
interactions hold for all of them at once (Bonferroni): a table with many mixtures would otherwise find one that differs
by chance. The claim is that an effect depends on the tokenizer by more than a margin:

    supported    its interval lies outside [-margin, margin],
    rejected     its interval lies inside,
    undecided    neither, or there is one seed a cell and no interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit, fit
from lingua_synth.scaling.intervals import intervals
from lingua_synth.scaling.laws import DataLaw, JointLaw, Law
from lingua_synth.scaling.natural import base_mixture
from lingua_synth.scaling.paired_means import PairedMean, paired_mean_by_seed
from lingua_synth.scaling.records import record
from lingua_synth.scaling.regions import t_quantile
from lingua_synth.scaling.runs import Runs, tokenizer_names, tokenizers
from lingua_synth.scaling.ties import run_noise, tie_set
from lingua_synth.scaling.verdicts import REJECTED, SUPPORTED, UNDECIDED

MATCHED_BY = {"bytes": "training_bytes", "tokens": "tokens", "flops": "flops"}
MARGIN = 0.01
"""Bits per byte: half a per cent of the loss of a model at 2 bits per byte, one per cent at 1."""
TOLERANCE = 0.02
"""A study matches to half an optimizer step, which is under this share of any budget of 25 steps."""
APART = (1.15, 1.08, 1.04, 1.02, 1.005)
"""Budgets are further apart than the first of these that leaves one run of a mixture and seed in each."""
FEWEST = 3
"""Sizes, or budgets, from which a law in them is tried."""

Seeds = dict[int, float]


@dataclass(frozen=True)
class TokenizerCell:
    """One size and budget."""

    size: str
    bytes: float
    """Mean bytes of text that its runs read."""
    spread: float
    """Most that what was matched differs by between the tokenizers, in one mixture, relative."""
    between_mixtures: float
    """The same between the mixtures, under the first tokenizer: of one budget in tokens they read as much text as their
    tokens hold."""


@dataclass(frozen=True)
class CellLevel:
    """Bits per byte of a mixture under a tokenizer in a cell."""

    tokenizer: str
    mixture: str
    cell: int
    """Index into the cells."""
    values: tuple[float, ...]
    """One a seed, in their order."""


@dataclass(frozen=True)
class PairedBits:
    """A difference in bits per byte, by pairs of runs, of one mixture under one tokenizer."""

    tokenizer: str
    mixture: str
    by_cell: tuple[PairedMean | None, ...]
    """In the order of the cells, at the level of one comparison; None where there is no pair."""
    overall: PairedMean


@dataclass(frozen=True)
class TokenizerDifference(PairedBits):
    """Bits per byte of a mixture under a tokenizer, less those under the first."""


@dataclass(frozen=True)
class MixtureEffect(PairedBits):
    """Bits per byte of a mixture less those of the base, under one tokenizer; below 0 the mixture is better."""

    @property
    def verdict(self) -> str:
        """better or worse than the base, or undecided: what the interval says."""
        if not self.overall.is_told:
            return UNDECIDED
        return "better" if self.overall.value < 0 else "worse"


@dataclass(frozen=True)
class Interaction(PairedBits):
    """The effect of a mixture under a tokenizer, less its effect under the first; `overall` is at the level of all
    interactions together."""

    margin: float

    @property
    def verdict(self) -> str:
        """On "the effect depends on the tokenizer by more than the margin"."""
        if self.overall.interval is None:
            return UNDECIDED
        low, high = self.overall.interval
        if low > self.margin or high < -self.margin:
            return SUPPORTED
        return REJECTED if -self.margin < low and high < self.margin else UNDECIDED

    @property
    def why(self) -> str:
        """What the interval says, in words."""
        if self.overall.interval is None:
            return "one seed a cell has no interval"
        if self.verdict == SUPPORTED:
            return "the mixture's effect depends on the tokenizer"
        if self.verdict == REJECTED:
            small = " (a smaller difference is there)" if self.overall.is_told else ""
            return f"no difference beyond the margin{small}"
        return "there is a difference, and it may lie within the margin" if self.overall.is_told else "too few runs"


@dataclass(frozen=True)
class BestMixtures:
    """The mixtures that may be best in a cell under one tokenizer."""

    tokenizer: str
    cell: int
    best: str
    """Of the lowest mean."""
    ties: tuple[str, ...]
    """Those that the runs do not show to be worse; all of them where no noise is known."""


@dataclass(frozen=True)
class Agreement:
    """How far a tokenizer orders the mixtures as the first does, over all cells."""

    tokenizer: str
    num_pairs: int
    """Pairs of mixtures."""
    num_alike: int
    """Ordered alike by their means."""
    num_told: int
    """Told apart under both tokenizers, each by its own interval."""
    reversed: tuple[tuple[str, str], ...]
    """Of those, the pairs that the two order the other way round."""


@dataclass(frozen=True)
class ByteLaw:
    """A law in bytes of text: nats per byte against D in bytes, of one mixture under one tokenizer."""

    tokenizer: str
    mixture: str
    size: str
    """Of a law at one size; empty for one in size and budget."""
    fit: ScalingFit | None
    intervals: Mapping[str, tuple[float, float]]
    """Of its parameters, where the runs determine them."""
    reason: str
    """Why there is no fit, or why its numbers mean nothing; empty otherwise."""
    slope: float
    """Of ln loss in ln D over the trained range, sizes each with a level of their own: an exponent without a floor,
    which any three budgets determine. It describes these runs, and says nothing of longer ones."""
    slope_interval: tuple[float, float] | None
    """Student's t, of the scatter around the lines; None where there are no more runs than levels and slope."""


@dataclass(frozen=True)
class TextShare:
    """What a mixture reads of a source under a tokenizer."""

    tokenizer: str
    mixture: str
    source: str
    of_tokens: float
    of_bytes: float


@dataclass(frozen=True)
class TokenizerComparison:
    """A study under several tokenizers; prints as a page."""

    tokenizers: tuple[str, ...]
    """The first is the one that the others are compared with."""
    base: str
    target: str
    match: str
    level: float
    margin: float
    cells: tuple[TokenizerCell, ...]
    levels: tuple[CellLevel, ...]
    differences: tuple[TokenizerDifference, ...]
    effects: tuple[MixtureEffect, ...]
    interactions: tuple[Interaction, ...]
    best: tuple[BestMixtures, ...]
    agreement: tuple[Agreement, ...]
    laws: tuple[ByteLaw, ...]
    bytes_per_token: Mapping[str, Mapping[str, float]]
    """Tokenizer -> source -> UTF-8 bytes of text per training token."""
    shares: tuple[TextShare, ...]
    """Of mixtures of several sources."""
    num_unpaired: int
    """Runs of other tokenizers than the first without a run of the first in their cell, with their mixture and seed."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, full precision."""
        plain = dict(self.__dict__)
        for key in ("cells", "levels", "best", "agreement", "shares"):
            plain[key] = [dict(entry.__dict__) for entry in plain[key]]
        for key in ("differences", "effects", "interactions"):
            plain[key] = [_plain_effect(entry) for entry in plain[key]]
        plain["laws"] = [
            {
                "tokenizer": law.tokenizer,
                "mixture": law.mixture,
                "size": law.size,
                "law": law.fit.law.formula if law.fit is not None else None,
                "params": dict(law.fit.params) if law.fit is not None else None,
                "intervals": dict(law.intervals),
                "reason": law.reason,
                "slope": law.slope,
                "slope_interval": law.slope_interval,
            }
            for law in self.laws
        ]
        return record(plain)

    def __str__(self) -> str:
        parts = [
            f"{self.target} of {', '.join(self.tokenizers)}; cells of equal {self.match}; "
            f"{100 * self.level:g} % intervals",
            self._cell_lines(),
            self._difference_lines(),
            self._effect_lines(),
        ]
        if self.interactions:
            parts.append(self._interaction_lines())
        parts += [self._best_lines(), self._agreement_lines()] if self.best else []
        parts += [self._fertility_lines()] if self.bytes_per_token else []
        parts += [self._law_lines()] if self.laws else []
        parts += [f"note: {note}" for note in self.notes]
        if self.num_unpaired:
            parts.append(
                f"note: {self.num_unpaired} runs have none under {self.tokenizers[0]} of their size, mixture, seed and "
                f"{self.match}"
            )
        return "\n\n".join(parts)

    def _cell_lines(self) -> str:
        lines = [f"  {'size':<14}{'bytes of text':>18}   {self.match} off between tokenizers, between mixtures"]
        lines += [
            f"  {cell.size:<14}{cell.bytes:>18,.0f}   {100 * cell.spread:22.2f} % {100 * cell.between_mixtures:16.2f} %"
            for cell in self.cells
        ]
        return "\n".join(lines)

    def _difference_lines(self) -> str:
        first = self.tokenizers[0]
        lines = [f"bits per byte less those under {first} (below 0: fewer)"]
        lines += [f"  {one.tokenizer:<12} {one.mixture:<20} {_shown(one.overall)}" for one in self.differences]
        return "\n".join(lines)

    def _effect_lines(self) -> str:
        lines = [f"effect of the mixture: bits per byte less those of {self.base} (below 0: better)"]
        lines += [
            f"  {one.tokenizer:<12} {one.mixture:<20} {_shown(one.overall)}   {one.verdict:<9}{_by_cell(one.by_cell)}"
            for one in self.effects
        ]
        return "\n".join(lines)

    def _interaction_lines(self) -> str:
        first, num = self.tokenizers[0], len(self.interactions)
        together = f"; the {num} intervals hold together" if num > 1 else ""
        lines = [
            f"does the effect depend on the tokenizer by more than {self.margin:g}? (effect less that under "
            f"{first}{together})"
        ]
        for one in self.interactions:
            lines.append(
                f"  {one.tokenizer:<12} {one.mixture:<20} {_shown(one.overall)}   {one.verdict}: {one.why}"
                + _by_cell(one.by_cell)
            )
        return "\n".join(lines)

    def _best_lines(self) -> str:
        lines = ["best mixture (and those that the runs do not show to be worse)"]
        for one in self.best:
            cell = self.cells[one.cell]
            others = [name for name in one.ties if name != one.best]
            tied = f" (or {', '.join(others)})" if others else ""
            lines.append(f"  {one.tokenizer:<12} {cell.size:<14}{cell.bytes:>16,.0f} bytes   {one.best}{tied}")
        return "\n".join(lines)

    def _agreement_lines(self) -> str:
        lines = []
        for one in self.agreement:
            turned = "; ".join(f"{a} and {b}" for a, b in one.reversed)
            lines.append(
                f"order of the mixtures under {one.tokenizer} and {self.tokenizers[0]}: {one.num_alike} of "
                f"{one.num_pairs} pairs alike, {one.num_told} told apart under both, "
                + (f"of which the other way round: {turned}" if turned else "none of them the other way round")
            )
        return "\n".join(lines)

    def _fertility_lines(self) -> str:
        sources = list(dict.fromkeys(source for rates in self.bytes_per_token.values() for source in rates))
        lines = ["bytes of text per token: " + ", ".join(sources)]
        for tokenizer, rates in self.bytes_per_token.items():
            shown = "  ".join(f"{rates[source]:.4f}" for source in sources if source in rates)
            lines.append(f"  {tokenizer:<12} {shown}")
        for one in self.shares:
            lines.append(
                f"  {one.tokenizer:<12} {one.mixture:<20} {one.source:<14} {100 * one.of_tokens:6.2f} % of the tokens "
                f"{100 * one.of_bytes:6.2f} % of the text"
            )
        return "\n".join(lines)

    def _law_lines(self) -> str:
        lines = [
            "in bytes of text: slope of ln loss in ln D over the trained range, and the law of nats per byte against D"
        ]
        for law in self.laws:
            where = f" at {law.size}" if law.size else ""
            ends = "" if law.slope_interval is None else " [{:+.4f}, {:+.4f}]".format(*law.slope_interval)
            head = f"  {law.tokenizer:<12} {law.mixture:<20} {law.slope:+.4f}{ends}{where}: "
            if law.reason or law.fit is None:
                lines.append(f"{head}{law.reason}")
                continue
            params = []
            for name, value in law.fit.params.items():
                low, high = law.intervals.get(name, (math.nan, math.nan))
                params.append(f"{name} {value:.4g}" + ("" if math.isnan(low) else f" [{low:.4g}, {high:.4g}]"))
            lines.append(head + "  ".join(params))
        return "\n".join(lines)


def _plain_effect(entry: PairedBits) -> dict[str, Any]:
    plain = dict(entry.__dict__) | {
        "overall": dict(entry.overall.__dict__),
        "by_cell": [None if one is None else dict(one.__dict__) for one in entry.by_cell],
    }
    return plain | {key: getattr(entry, key) for key in ("verdict", "why") if hasattr(entry, key)}


def _shown(mean: PairedMean) -> str:
    ends = "no interval" if mean.interval is None else f"[{mean.interval[0]:+.4f}, {mean.interval[1]:+.4f}]"
    counted = f"{mean.num_pairs} pairs" if mean.counts == "pairs" else f"{mean.freedom + 1} seeds"
    return f"{mean.value:+.4f}  {ends:<20} {counted:>9}"


def _by_cell(means: Sequence[PairedMean | None]) -> str:
    shown = ", ".join("-" if mean is None else f"{mean.value:+.4f}" for mean in means)
    return f"   by cell: {shown}" if len(means) > 1 else ""


# --- a table in bytes ---


def in_bytes(runs: Runs) -> Runs:
    """The table in units of text: `tokens`, `tokens_<source>` and `unique_tokens_<source>` are bytes, `ratio_<source>`
    shares of the text, `loss_<name>` nats per byte, and where there are several tokenizers the mixtures are called
    `mixture (tokenizer)`. So laws, rankings and figures of it compare across
    tokenizers; what they call tokens is bytes. `loss_micro`, which has no counterpart, is left out.

    ValueError for a table without `training_bytes` or without bits per byte.
    """
    _refuse_missing(runs, ("training_bytes",))
    columns = {name: values for name, values in runs.columns.items() if not name.startswith("loss_")}
    bits = [name for name in runs.columns if name.startswith("bpb_")]
    if not bits:
        raise ValueError("the runs table has no bits per byte (bpb_macro); evaluate the runs, and collect them again")
    for name in ("tokenizer", "tokenizer_sha256"):
        columns.pop(name, None)
    columns["tokens"] = runs["training_bytes"]
    for source in runs.sources:
        if f"training_bytes_{source}" not in columns or f"tokens_{source}" not in columns:
            continue
        read, tokens = columns[f"training_bytes_{source}"], columns[f"tokens_{source}"]
        columns[f"tokens_{source}"] = read
        columns[f"ratio_{source}"] = read / runs["training_bytes"]
        if (unique := f"unique_tokens_{source}") in columns:
            columns[unique] = columns[unique] * np.divide(read, tokens, out=np.zeros(len(runs)), where=tokens > 0)
    columns |= {f"loss_{name.removeprefix('bpb_')}": runs[name] * math.log(2) for name in bits}
    if len(tokenizers(runs)) > 1:
        pairs = zip(runs["mixture"].tolist(), tokenizer_names(runs), strict=True)
        columns["mixture"] = np.array([f"{mixture} ({tokenizer})" for mixture, tokenizer in pairs])
    return Runs(columns)


def _refuse_missing(runs: Runs, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in runs.columns]
    if missing:
        raise ValueError(
            f"the runs table has no column {', '.join(missing)}, and tokenizers are compared by {', '.join(names)}; "
            "collect the run folders again (training_bytes, the text that a run read, is of runs since 0.5: for others "
            "add it by hand)"
        )


# --- the comparison ---


@dataclass(frozen=True)
class _Table:
    """Bits per byte by tokenizer, mixture, cell and seed."""

    cells: tuple[TokenizerCell, ...]
    values: Mapping[tuple[str, str, int], Seeds]

    def of(self, tokenizer: str, mixture: str, cell: int) -> Seeds:
        return self.values.get((tokenizer, mixture, cell), {})

    def differences(self, terms: Sequence[tuple[float, str, str]]) -> list[Seeds]:
        """Per cell and seed the sums of sign x value over `terms` (sign, tokenizer, mixture), for seeds that all of
        them have."""
        found = []
        for cell in range(len(self.cells)):
            parts = [(sign, self.of(tokenizer, mixture, cell)) for sign, tokenizer, mixture in terms]
            seeds = sorted(set.intersection(*(set(values) for _, values in parts)))
            found.append({seed: math.fsum(sign * values[seed] for sign, values in parts) for seed in seeds})
        return found


def compare_tokenizers(
    runs: Runs,
    *,
    tokenizer: str | None = None,
    base: str | None = None,
    target: str = "bpb_macro",
    match: str = "bytes",
    tolerance: float = TOLERANCE,
    margin: float = MARGIN,
    level: float = 0.95,
    n_definition: str = "non_embedding",
) -> TokenizerComparison:
    """Compare the tokenizers of a runs table, in bits per byte, run by run at the same size, budget, mixture and seed.

    `tokenizer`: the one that the others are compared with (default: the first of the table). `base`: the mixture that
    effects are measured from (default: natural text alone). `target`: a column of bits per byte. `match`: what a
    mixture has equal under two tokenizers: bytes, tokens or flops, to `tolerance`, relative. `margin`: the smallest
    interaction that counts, bits per byte.

    ValueError for a target per token, a table of one tokenizer, one that does not say how much text was read, runs that
    scored other text, two runs of one cell, mixture and seed, unknown names, and runs that do not pair at all.
    """
    _refuse_target(target)
    if match not in MATCHED_BY:
        raise ValueError(f"match is one of {', '.join(MATCHED_BY)}; got {match!r}")
    if not (margin >= 0 and math.isfinite(margin)):
        raise ValueError(f"margin is a difference in bits per byte, at least 0, e.g. 0.01; got {margin}")
    if not 0 < tolerance < 0.5:
        raise ValueError(f"tolerance is a share of a budget, above 0 and below 0.5, e.g. 0.02; got {tolerance}")
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95; got {level}")
    names = np.array(tokenizer_names(runs))
    known = list(tokenizers(runs))
    if len(known) < 2:
        raise ValueError(
            f"the table has {'runs of ' + known[0] + ' alone' if known else 'no column tokenizer'}; a comparison takes "
            "two tokenizers: collect both studies into one table (`lingua-synth study collect runs=[A,B] table=...`)"
        )
    if tokenizer is not None and tokenizer not in known:
        raise ValueError(f"no run has the tokenizer {tokenizer!r}; there are: {', '.join(known)}")
    _refuse_missing(runs, ("training_bytes", MATCHED_BY[match], "seed"))
    order = [tokenizer, *(name for name in known if name != tokenizer)] if tokenizer else known
    runs, names, notes = _usable(runs, names, target)
    notes += _evaluation_notes(runs, names, order)
    base = base_mixture(runs, base)
    assert base is not None, "the table has runs"
    table, unmatched = _tabulate(runs, names, order, target, match, tolerance)
    notes += unmatched
    mixtures = runs.mixtures
    others = [name for name in mixtures if name != base]
    first = order[0]

    differences, effects, interactions = [], [], []
    for name, mixture in itertools.product(order[1:], mixtures):
        if found := _means(table, ((1, name, mixture), (-1, first, mixture)), level):
            differences.append(TokenizerDifference(name, mixture, *found))
    if not differences:
        raise ValueError(
            f"no two runs of {first} and {', '.join(order[1:])} have the same size, mixture, seed and {match} (to "
            f"{100 * tolerance:g} %); plan such a study with `tokenizers` and match={match} (docs/tokenizers.md), or "
            "compare by what this one has equal, bytes, tokens or flops (match=; of `study compare-tokenizers` by=)"
        )
    for name, mixture in itertools.product(order, others):
        if found := _means(table, ((1, name, mixture), (-1, name, base)), level):
            effects.append(MixtureEffect(name, mixture, *found))
    asked = [
        (name, mixture, terms)
        for name, mixture in itertools.product(order[1:], others)
        if any(
            table.differences(terms := ((1, name, mixture), (-1, name, base), (-1, first, mixture), (1, first, base)))
        )
    ]
    for name, mixture, terms in asked:
        together = 1 - (1 - level) / len(asked)
        found = _means(table, terms, level, together)
        assert found is not None, "there is a pair"
        interactions.append(Interaction(name, mixture, *found, margin=margin))
    return TokenizerComparison(
        tokenizers=tuple(order),
        base=base,
        target=target,
        match=match,
        level=level,
        margin=margin,
        cells=table.cells,
        levels=tuple(
            CellLevel(name, mixture, cell, tuple(seeds[seed] for seed in sorted(seeds)))
            for cell in range(len(table.cells))
            for name, mixture in itertools.product(order, mixtures)
            if (seeds := table.of(name, mixture, cell))
        ),
        differences=tuple(differences),
        effects=tuple(effects),
        interactions=tuple(interactions),
        best=tuple(_best(table, order, mixtures, level)),
        agreement=tuple(_agreement(table, order, mixtures, level)),
        laws=tuple(_laws(runs, names, order, target, n_definition, level)),
        bytes_per_token=_bytes_per_token(runs, names, order),
        shares=tuple(_shares(runs, names, order)),
        num_unpaired=_num_unpaired(table, order),
        notes=tuple(notes),
    )


def compare_tokenizers_as_matched(runs: Runs, **keys: Any) -> TokenizerComparison:
    """`compare_tokenizers` by what most runs of the table pair by: bytes, tokens or FLOPs. ValueError as there."""
    found: list[TokenizerComparison] = []
    problems: list[ValueError] = []
    for match in MATCHED_BY:
        try:
            found.append(compare_tokenizers(runs, match=match, **keys))
        except ValueError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    return max(found, key=lambda one: sum(difference.overall.num_pairs for difference in one.differences))


def _refuse_target(target: str) -> None:
    if target.startswith("loss_"):
        raise ValueError(
            f"{target} is in nats per token, and tokens of two vocabularies are other pieces of text; compare bits per "
            f"byte: target=bpb_{target.removeprefix('loss_').replace('micro', 'macro')}"
        )
    if not target.startswith("bpb_"):
        raise ValueError(f"target is a column of bits per byte, bpb_macro or bpb_<domain>; got {target!r}")


def _usable(runs: Runs, names: np.ndarray, target: str) -> tuple[Runs, np.ndarray, list[str]]:
    """The runs with a tokenizer, the target and a seed, and notes on the others."""
    values = runs[target]
    good = (names != "") & np.isfinite(values) & np.isfinite(runs["seed"]) & np.isfinite(runs["training_bytes"])
    notes = []
    if not good.all():
        left_out = runs["run_id"][~good].tolist()
        shown = ", ".join(left_out[:4]) + (f" and {len(left_out) - 4} more" if len(left_out) > 4 else "")
        notes.append(f"left out, without a tokenizer, {target}, seed or bytes of text: {shown}")
    if not good.any():
        raise ValueError(f"no run of the table has a tokenizer, {target}, a seed and its bytes of text")
    return runs.take(good), names[good], notes


def _evaluation_notes(runs: Runs, names: np.ndarray, order: Sequence[str]) -> list[str]:
    """ValueError where tokenizers were scored on other text; a note where the table does not say."""
    columns = [name for name in runs.columns if name.startswith("eval_bytes_")]
    if not columns:
        return ["the table does not say how much text was scored (eval_bytes_<domain>): taken to be the same"]
    for column in columns:
        counts = {name: set(runs[column][names == name].tolist()) for name in order}
        every = {count for found in counts.values() for count in found if not math.isnan(count)}
        if len(every) > 1:
            shown = "; ".join(f"{name}: {min(found):,.0f} bytes" for name, found in counts.items() if found)
            raise ValueError(
                f"runs were scored on other text of {column.removeprefix('eval_bytes_')} ({shown}), and their bits per "
                "byte do not compare; evaluate them on the same documents (synth.evaluation.max_bytes_per_domain, not "
                "max_tokens_per_domain)"
            )
    return []


def _tabulate(
    runs: Runs, names: np.ndarray, order: Sequence[str], target: str, match: str, tolerance: float
) -> tuple[_Table, list[str]]:
    """The runs in cells, and notes on those that are matched by no run of the first tokenizer."""
    rates = runs["schedule"].tolist() if "schedule" in runs.columns else [""] * len(runs)
    mixtures, sizes, seeds = runs["mixture"].tolist(), runs["size"].tolist(), runs["seed"].tolist()
    amounts, read = runs[MATCHED_BY[match]], runs["training_bytes"]
    who = list(zip(names.tolist(), mixtures, map(int, seeds), strict=True))
    groups: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(sizes, rates, strict=True)):
        groups.setdefault(key, []).append(row)
    smallest = _smallest(runs)
    cells: list[TokenizerCell] = []
    values: dict[tuple[str, str, int], Seeds] = {}
    unmatched: list[str] = []
    for size, rate in sorted(groups, key=lambda key: (smallest[key[0]], key)):
        for rows in _budgets(groups[size, rate], amounts, who, runs["run_id"].tolist()):
            by_mixture: dict[str, dict[str, list[int]]] = {}
            for row in rows:
                by_mixture.setdefault(mixtures[row], {}).setdefault(str(names[row]), []).append(row)
            spread, means = 0.0, []
            for mixture, by_tokenizer in by_mixture.items():
                mean = {name: float(amounts[mine].mean()) for name, mine in by_tokenizer.items()}
                reference = mean.get(order[0], next(iter(mean.values())))
                means.append(reference)
                for name, mine in by_tokenizer.items():
                    gap = abs(mean[name] / reference - 1)
                    if gap > tolerance:
                        unmatched += [f"{runs['run_id'][row]} ({100 * gap:.1f} %)" for row in mine]
                        continue
                    spread = max(spread, gap)
                    values[name, mixture, len(cells)] = {int(seeds[row]): float(runs[target][row]) for row in mine}
            cells.append(
                TokenizerCell(
                    size=f"{size} {rate}" if len({key[1] for key in groups}) > 1 else size,
                    bytes=float(np.mean(read[rows])),
                    spread=spread,
                    between_mixtures=max(means) / min(means) - 1,
                )
            )
    notes = []
    if unmatched:
        shown = ", ".join(unmatched[:4]) + (f" and {len(unmatched) - 4} more" if len(unmatched) > 4 else "")
        notes.append(
            f"left out, as their {match} are off from those under {order[0]} by more than {100 * tolerance:g} %: "
            f"{shown}"
        )
    return _Table(tuple(cells), values), notes


def _smallest(runs: Runs) -> dict[str, float]:
    """Size -> its parameters, to put sizes in order."""
    name = next((name for name in ("n_non_embedding", "n_lingua", "n_total") if name in runs.columns), "tokens")
    return {size: float(np.nanmin(runs[name][runs["size"] == size])) for size in set(runs["size"].tolist())}


def _budgets(
    rows: Sequence[int], amounts: np.ndarray, who: Sequence[tuple[str, str, int]], run_ids: Sequence[str]
) -> list[list[int]]:
    """Rows by budget: neighbours in the sorted amounts belong to one, unless they are far apart. Mixtures of one budget
    differ by what their tokens hold of text; where budgets are as close as that, a smaller step tells them apart."""
    ordered = sorted(rows, key=lambda row: amounts[row])
    for step in APART:
        clusters = [ordered[:1]]
        for before, row in itertools.pairwise(ordered):
            if amounts[row] > amounts[before] * step:
                clusters.append([])
            clusters[-1].append(row)
        twice = [one for one in clusters if len({who[row] for row in one}) < len(one)]
        if not twice:
            return clusters
    counted = [who[row] for row in twice[0]]
    pair = [row for row in twice[0] if counted.count(who[row]) > 1]
    raise ValueError(
        f"runs {run_ids[pair[0]]} and {run_ids[pair[1]]} are of one tokenizer, mixture, size, budget and seed, and "
        "which of them pairs is not told; take one of them out of the table"
    )


def _means(
    table: _Table, terms: Sequence[tuple[float, str, str]], level: float, together: float | None = None
) -> tuple[tuple[PairedMean | None, ...], PairedMean] | None:
    """(per cell, overall); None without a pair. `together`: level of the overall interval, where it is another."""
    found = table.differences(terms)
    if not any(found):
        return None
    by_cell = tuple(paired_mean_by_seed([cell], level) if cell else None for cell in found)
    return by_cell, paired_mean_by_seed([cell for cell in found if cell], together or level)


def _best(table: _Table, order: Sequence[str], mixtures: Sequence[str], level: float) -> list[BestMixtures]:
    found = []
    for tokenizer in order:
        rows = [
            {"mixture": mixture, "size": str(cell), "tokens": 1.0, "seed": float(seed), "bpb": value}
            for (name, mixture, cell), seeds in table.values.items()
            if name == tokenizer
            for seed, value in seeds.items()
        ]
        noise = run_noise(Runs({key: [row[key] for row in rows] for key in rows[0]}), "bpb") if rows else None
        for cell in range(len(table.cells)):
            there = [mixture for mixture in mixtures if table.of(tokenizer, mixture, cell)]
            if len(there) < 2:
                continue
            logs = [np.log(list(table.of(tokenizer, mixture, cell).values())) for mixture in there]
            means, counts = [float(np.mean(one)) for one in logs], [len(one) for one in logs]
            tied = tie_set(means, counts, noise, level) if noise is not None else range(len(there))
            found.append(BestMixtures(tokenizer, cell, there[int(np.argmin(means))], tuple(there[k] for k in tied)))
    return found


def _agreement(table: _Table, order: Sequence[str], mixtures: Sequence[str], level: float) -> list[Agreement]:
    first, found = order[0], []
    for tokenizer in order[1:]:
        num, alike, told, turned = 0, 0, 0, []
        for a, b in itertools.combinations(mixtures, 2):
            ours, theirs = (_means(table, ((1, name, a), (-1, name, b)), level) for name in (tokenizer, first))
            if ours is None or theirs is None:
                continue
            num += 1
            is_alike = ours[1].value * theirs[1].value > 0
            alike += is_alike
            if ours[1].is_told and theirs[1].is_told:
                told += 1
                turned += [] if is_alike else [(a, b)]
        if num:
            found.append(Agreement(tokenizer, num, alike, told, tuple(turned)))
    return found


def _laws(
    runs: Runs, names: np.ndarray, order: Sequence[str], target: str, n_definition: str, level: float
) -> list[ByteLaw]:
    """Per tokenizer and mixture the law in N and D where there are enough of both, else the one in D at the size with
    the most budgets; none where no size has enough budgets."""
    found = []
    try:
        N = runs.N(n_definition)
    except ValueError:
        N = np.full(len(runs), math.nan)
    D, loss = runs["training_bytes"], runs[target] * math.log(2)
    for tokenizer, mixture in itertools.product(order, runs.mixtures):
        mine = (names == tokenizer) & (runs["mixture"] == mixture)
        budgets = {
            size: set(D[mine & (runs["size"] == size)].tolist()) for size in dict.fromkeys(runs["size"].tolist())
        }
        size = max(budgets, key=lambda one: len(budgets[one]))
        if len(budgets[size]) < FEWEST:
            continue
        law: Law = DataLaw()
        if sum(len(found_there) >= FEWEST for found_there in budgets.values()) >= FEWEST and np.isfinite(N[mine]).all():
            law, size = JointLaw(), ""
        rows = mine if not size else mine & (runs["size"] == size)
        fitted, ends, reason = _fitted(law, N[rows], D[rows], loss[rows], n_definition, level)
        slope, slope_interval = _slope(runs["size"][rows], D[rows], loss[rows], level)
        found.append(ByteLaw(tokenizer, mixture, size, fitted, ends, reason, slope, slope_interval))
    return found


def _fitted(
    law: Law, N: np.ndarray, D: np.ndarray, loss: np.ndarray, n_definition: str, level: float
) -> tuple[ScalingFit | None, Mapping[str, tuple[float, float]], str]:
    """(fit, intervals, why there are none)."""
    try:
        values: dict[str, Any] = {"N": N, "D": D}
        given = {name: values[name] for name in law.variables}
        fitted = fit(law, loss=loss, n_definition=n_definition, **given)
    except ValueError as error:
        return None, {}, f"no fit: {error}"
    if not fitted.identifiable:
        return fitted, {}, f"no law ({fitted.num_points} runs): {'; '.join(fitted.reasons)}"
    try:
        with np.errstate(all="ignore"):
            return fitted, intervals(fitted, "auto" if "N" in law.variables else "wald", level).parameters, ""
    except ValueError:  # no run more than parameters
        return fitted, {}, ""


def _slope(
    sizes: np.ndarray, D: np.ndarray, loss: np.ndarray, level: float
) -> tuple[float, tuple[float, float] | None]:
    """Of ln loss in ln D by least squares, with a level for each size."""
    x, y = np.log(D), np.log(loss)
    for size in np.unique(sizes):
        mine = sizes == size
        x[mine] -= x[mine].mean()
        y[mine] -= y[mine].mean()
    square = float(x @ x)
    slope = float(x @ y) / square
    freedom = len(x) - len(np.unique(sizes)) - 1
    if freedom < 1:
        return slope, None
    error = math.sqrt(float(((y - slope * x) ** 2).sum()) / freedom / square)
    half = t_quantile(freedom, level) * error
    return slope, (slope - half, slope + half)


def _bytes_per_token(runs: Runs, names: np.ndarray, order: Sequence[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for tokenizer, source in itertools.product(order, runs.sources):
        columns = (f"tokens_{source}", f"training_bytes_{source}")
        if any(name not in runs.columns for name in columns):
            continue
        tokens, read = (float(np.nansum(runs[name][names == tokenizer])) for name in columns)
        if tokens:
            found.setdefault(tokenizer, {})[source] = read / tokens
    return found


def _shares(runs: Runs, names: np.ndarray, order: Sequence[str]) -> list[TextShare]:
    found = []
    for mixture, tokenizer in itertools.product(runs.mixtures, order):
        mine = (names == tokenizer) & (runs["mixture"] == mixture)
        counted = {}
        for source in runs.sources:
            columns = (f"tokens_{source}", f"training_bytes_{source}")
            if all(name in runs.columns for name in columns):
                counted[source] = tuple(float(np.nansum(runs[name][mine])) for name in columns)
        read = {source: pair for source, pair in counted.items() if pair[0]}
        if len(read) < 2:
            continue
        tokens, text = (sum(pair[k] for pair in read.values()) for k in (0, 1))
        found += [TextShare(tokenizer, mixture, s, pair[0] / tokens, pair[1] / text) for s, pair in read.items()]
    return found


def _num_unpaired(table: _Table, order: Sequence[str]) -> int:
    return sum(
        len(set(seeds) - set(table.of(order[0], mixture, cell)))
        for (name, mixture, cell), seeds in table.values.items()
        if name != order[0]
    )
