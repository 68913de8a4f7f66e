"""Is it worth changing the shares over training? Runs of schedules against static runs, pair by pair.

A run whose shares change (stages, ramps, an annealing, feedback) is paired with the run of constant shares that had the
same size, the same training tokens and the same seed. The static mixture it is held to is the one of the same overall
shares: then the pair differs in the order of the data alone, not in how much of each source was read. Pairs share
initialization and seed, so their difference scatters less than either loss. Runs on a part of their sources pair with
runs on the same part.

    d = loss of the schedule - loss of the static run, in nats per token; below 0 the schedule is better
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.scaling.paired_means import paired_mean, paired_mean_by_seed
from lingua_synth.scaling.records import record
from lingua_synth.scaling.runs import Runs, refuse_several_tokenizers

CONSTANT = "constant"
SHARE_TOLERANCE = 0.005
"""Most that a source's overall share may differ from the static mixture's: half a percent of the training tokens."""


@dataclass(frozen=True)
class ScheduleCell:
    """The pairs of one size and budget."""

    size: str
    tokens: int
    seeds: tuple[int, ...]
    static_loss: float
    """Mean over the pairs."""
    difference: float
    """Mean of the pairs' differences, nats per token."""
    interval: tuple[float, float] | None
    """Student's t over the seeds; None with one of them."""
    unique: tuple[int, ...] = ()
    """Tokens of one pass over each source, in the order of the table: what tells parts of the sources apart."""


@dataclass(frozen=True)
class ScheduleComparison:
    """One mixture whose shares change, against a static one; prints as a table."""

    mixture: str
    schedule: str
    """Its stages, as the runs table names them."""
    static: str
    target: str
    level: float
    share_gap: float
    """Most that the overall share of a source differs between the two."""
    cells: tuple[ScheduleCell, ...]
    difference: float
    """Mean over the cells, nats per token."""
    interval: tuple[float, float] | None
    """Of that mean over these cells: Student's t. None where no cell has two seeds."""
    counts: str
    """What errs independently in it: pairs, or seeds, where the cells of a seed share its luck."""
    num_unpaired: int
    """Runs of the schedule without a static run of the same size, tokens and seed."""

    @property
    def verdict(self) -> str:
        """better, worse, or undecided: what the interval says."""
        if self.interval is None:
            return "undecided: one seed a cell has no interval"
        return "better" if self.interval[1] < 0 else "worse" if self.interval[0] > 0 else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        cells = [dict(cell.__dict__) for cell in self.cells]
        return record(dict(self.__dict__) | {"cells": cells, "verdict": self.verdict})

    def __str__(self) -> str:
        level = f"{100 * self.level:g} % interval"
        lines = [
            f"{self.mixture} ({self.schedule}) - {self.static}: {self.verdict}",
            f"  {'size':<10} {'tokens':>15} {'seeds':>5} {'static':>8} {'difference':>11}   {level}",
        ]
        has_parts = len({cell.unique for cell in self.cells}) > 1
        lines += [
            f"  {cell.size:<10} {cell.tokens:>15,} {len(cell.seeds):>5} {cell.static_loss:>8.4f} "
            f"{cell.difference:>+11.5f}   {_in_words(cell.interval)}"
            + (f"   one pass: {', '.join(f'{count:,}' for count in cell.unique)} tokens" if has_parts else "")
            for cell in self.cells
        ]
        lines.append(f"  {'all cells':<41} {self.difference:>+11.5f}   {_in_words(self.interval)}")
        if self.counts == "seeds":
            lines.append("  note: the cells of a seed share its luck, so seeds were counted, not pairs")
        if self.share_gap > SHARE_TOLERANCE:
            lines.append(f"  note: overall shares differ by up to {100 * self.share_gap:.3g} % of the tokens")
        if self.num_unpaired:
            lines.append(f"  note: {self.num_unpaired} runs have no static run of the same size, tokens and seed")
        return "\n".join(lines)


def _in_words(interval: tuple[float, float] | None) -> str:
    return "none with one seed" if interval is None else f"[{interval[0]:+.5f}, {interval[1]:+.5f}]"


def compare_schedules(
    runs: Runs,
    *,
    static: Mapping[str, str] | None = None,
    target: str = "loss_macro",
    level: float = 0.95,
) -> list[ScheduleComparison]:
    """Every mixture whose shares change against the static mixture of the same overall shares, by pairs of runs.

    `static` names the static mixture by the changing one, where it is not the one of equal shares. `target`: column of
    losses. Runs of different learning-rate schedules do not pair.

    The interval of a cell is Student's t over its seeds; that of all cells takes the scatter of the pairs within
    cells, pooled, or that of the seeds where the cells of a seed share its luck (`paired_means.py`): it is about these
    sizes and budgets, not about others.

    ValueError for a table that does not say which mixtures change, without any that does, or with two runs of one
    mixture, size, budget and seed, and for a mixture without a static one (with the nearest), or without a pair.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95; got {level}")
    refuse_several_tokenizers(runs, "Schedules are compared")
    if "mixture_schedule" not in runs.columns:
        raise ValueError(
            "the runs table has no column mixture_schedule, so it does not say which mixtures changed; collect the "
            "run folders again"
        )
    schedule_of: dict[str, str] = {}
    for name, found in zip(runs["mixture"].tolist(), runs["mixture_schedule"].tolist(), strict=True):
        if schedule_of.setdefault(name, found) != found:
            raise ValueError(
                f"mixture {name!r} stands for two schedules ({schedule_of[name]}; {found}); give each a name of its own"
            )
    changing = [name for name, found in schedule_of.items() if found not in (CONSTANT, "")]
    fixed = [name for name, found in schedule_of.items() if found == CONSTANT]
    if not changing:
        raise ValueError(f"no mixture of the table changes its shares; there are: {', '.join(schedule_of)}")
    named = dict(static or {})
    for one, other in named.items():
        if one not in changing or other not in fixed:
            raise ValueError(
                f"static.{one}={other}: a mixture that changes ({', '.join(changing)}) is held to a constant one "
                f"({', '.join(fixed) or 'there is none'})"
            )
    shares = {name: _shares(runs, name) for name in schedule_of}
    found = []
    for name in changing:
        base = named.get(name) or _of_equal_shares(name, fixed, shares)
        found.append(_compared(runs, name, base, schedule_of[name], target, level, _gap(shares[name], shares[base])))
    return found


def _shares(runs: Runs, mixture: str) -> dict[str, float]:
    """Overall share of each source: the mean over the mixture's runs, which differ by rounding alone."""
    rows = runs.select(mixture=mixture)
    return {source: float(np.mean(rows[f"ratio_{source}"])) for source in runs.sources}


def _gap(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    return max((abs(one[source] - other[source]) for source in one), default=0.0)


def _of_equal_shares(name: str, fixed: list[str], shares: Mapping[str, Mapping[str, float]]) -> str:
    nearest = min(fixed, key=lambda other: (_gap(shares[name], shares[other]), other), default=None)
    if nearest is None or _gap(shares[name], shares[nearest]) > SHARE_TOLERANCE:
        asked = ", ".join(f"{source} {share:.4g}" for source, share in shares[name].items() if share)
        there = "" if nearest is None else f" (nearest: {nearest}, off by {_gap(shares[name], shares[nearest]):.3g})"
        raise ValueError(
            f"mixture {name!r} has the overall shares {asked}, and no static mixture of the table has them{there}; "
            f"train one with these ratios, or name the one to compare with: static.{name}=MIXTURE"
        )
    return nearest


Key = tuple[str, int, int, str, tuple[int, ...]]


def _told_apart_by(runs: Runs, mixtures: tuple[str, ...]) -> list[str]:
    """Sources whose parts tell runs of one size, budget and seed apart: those that every run of the mixtures reads, of
    which the table says how often. None where nothing is to be told apart."""
    mine = np.isin(runs["mixture"], mixtures)
    rates = runs["schedule"] if "schedule" in runs.columns else np.full(len(runs), "")
    cells = [runs[name][mine].tolist() for name in ("mixture", "size", "tokens", "seed")] + [rates[mine].tolist()]
    if len(set(zip(*cells, strict=True))) == int(mine.sum()):
        return []
    found = []
    for source in runs.sources:
        columns = [runs.columns.get(f"{kind}_{source}") for kind in ("tokens", "epochs")]
        if all(column is not None and column.dtype.kind == "f" and (column[mine] > 0).all() for column in columns):
            found.append(source)
    return found


def _losses(runs: Runs, mixture: str, target: str, sources: list[str]) -> dict[Key, float]:
    """Loss by size, tokens, seed, learning-rate schedule, and tokens of one pass over each of `sources`."""
    rows = runs.select(mixture=mixture)
    rates = rows["schedule"].tolist() if "schedule" in rows.columns else [""] * len(rows)
    losses: dict[Key, float] = {}
    # Tokens over passes: whatever the shares, runs of one part of a source have the same.
    passes = [np.rint(rows[f"tokens_{source}"] / rows[f"epochs_{source}"]).astype(int).tolist() for source in sources]
    unique = list(zip(*passes, strict=True)) if passes else [()] * len(rows)
    columns = (rows["size"].tolist(), rows["tokens"].tolist(), rows["seed"].tolist(), rates, rows[target].tolist())
    for size, tokens, seed, rate, loss, held in zip(*columns, unique, strict=True):
        key = (size, int(tokens), int(seed), rate, held)
        if key in losses:
            raise ValueError(
                f"mixture {mixture!r} has two runs of size {size}, {int(tokens):,} tokens and seed {int(seed)}, and "
                "which of them pairs is not told; take one out of the table"
            )
        if not math.isfinite(loss):
            raise ValueError(f"a run of mixture {mixture!r} ({size}, {int(tokens):,} tokens) has no {target}")
        losses[key] = loss
    return losses


def _compared(
    runs: Runs, name: str, base: str, schedule: str, target: str, level: float, gap: float
) -> ScheduleComparison:
    sources = _told_apart_by(runs, (name, base))
    ours, theirs = (_losses(runs, mixture, target, sources) for mixture in (name, base))
    pairs: dict[tuple[str, int, str, tuple[int, ...]], list[Key]] = {}
    for key in sorted(set(ours) & set(theirs)):
        pairs.setdefault((key[0], key[1], key[3], key[4]), []).append(key)
    if not pairs:
        raise ValueError(
            f"mixtures {name!r} and {base!r} have no two runs of the same size, tokens and seed; a pair takes them"
        )
    cells, groups = [], []
    for (size, tokens, _, unique), keys in pairs.items():
        groups.append({key[2]: ours[key] - theirs[key] for key in keys})
        found = paired_mean([list(groups[-1].values())], level)
        static_loss = float(np.mean([theirs[key] for key in keys]))
        seeds = tuple(key[2] for key in keys)
        cells.append(ScheduleCell(size, tokens, seeds, static_loss, found.value, found.interval, unique))
    overall = paired_mean_by_seed(groups, level)
    return ScheduleComparison(
        mixture=name,
        schedule=schedule,
        static=base,
        target=target,
        level=level,
        share_gap=gap,
        cells=tuple(cells),
        difference=overall.value,
        interval=overall.interval,
        counts=overall.counts,
        num_unpaired=len(set(ours) - set(theirs)),
    )
