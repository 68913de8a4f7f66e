"""Do mixtures that lie nearer to the test text train better models? Correlation, and whether the nearest one is best.

A distance per mixture (KL of token frequencies, say) and its losses come in. Losses of one size and budget are compared
with each other only: each mixture's loss is its mean over cells of ln(loss) less the mean of all mixtures there.

A study has three to ten mixtures. With so few a correlation is hardly known, so intervals must be wide and right:

- Pearson: Fisher's z, exact to third order for two normal variables from 4 mixtures on; at 3 it says nothing.
- Spearman: up to 12 mixtures the interval holds every correlation under which so high, and so low, a rank correlation
  is not rare, by simulation of normal pairs (a rank correlation does not depend on the scales, so "normal" is about how
  the two go together alone); beyond, Bonett and Wright (2000).
- p values by permutation: all of them up to 8 mixtures, 20,000 random ones beyond.

Mixtures of one kind at three ratios are not three independent finds; no interval here knows that. A correlation over
mixtures is a description of those mixtures.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lingua_synth.analysis.coverage import match_size
from lingua_synth.analysis.distances import SMOOTHING, kl_divergence, smoothed, validate_one_vocabulary
from lingua_synth.scaling.records import record
from lingua_synth.scaling.regions import t_quantile
from lingua_synth.scaling.runs import Runs
from lingua_synth.scaling.verdicts import LEVEL, MANY, REJECTED, SUPPORTED, UNDECIDED

MANY_MIXTURES = 12
"""Up to here the interval of a rank correlation is found by simulation."""
NUM_SIMULATED = 4_000
ALL_PERMUTATIONS = 8
NUM_PERMUTATIONS = 20_000


@dataclass(frozen=True)
class Correlation:
    """One correlation over mixtures."""

    kind: str
    """pearson or spearman."""
    value: float
    """NaN where one of the two does not vary, or there are fewer than 3 mixtures."""
    low: float
    high: float
    p: float
    """Chance of so strong a correlation, of either sign, if losses were dealt to mixtures at random."""
    num: int
    level: float

    def __str__(self) -> str:
        ends = f"[{self.low:+.2f}, {self.high:+.2f}]" if math.isfinite(self.low) else "no interval"
        return f"{self.kind} {self.value:+.2f} {ends} over {self.num} mixtures, p = {self.p:.3g}"


@dataclass(frozen=True, eq=False)
class LossDistance:
    """Loss beside distance over mixtures, sorted by distance."""

    mixtures: tuple[str, ...]
    distance: np.ndarray
    loss: np.ndarray
    """Mean over the cells of ln(loss) less the mean of all mixtures in the cell."""
    loss_error: np.ndarray
    """Standard error of `loss`; NaN where nothing shows how runs scatter."""
    pearson: Correlation
    spearman: Correlation
    num_cells: int
    freedom: int
    """Degrees of freedom of `loss_error`."""
    nearest: str
    best: str
    """Of lowest loss as measured; see `tied_with_best`."""
    tied_with_best: tuple[str, ...]
    """Mixtures whose loss is not told to be higher than that of another."""
    regret: float
    """ln(loss of the nearest / loss of the best): what going by distance costs."""
    verdict: str
    """On the claim that the nearest mixture is the best one: supported, rejected or undecided."""
    why: str
    level: float

    def rows(self) -> list[dict[str, Any]]:
        """One row a mixture, nearest first, for a CSV file."""
        columns = (self.mixtures, self.distance.tolist(), self.loss.tolist(), self.loss_error.tolist())
        return [{"mixture": m, "distance": d, "loss": x, "loss_error": e} for m, d, x, e in zip(*columns, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {name: value for name, value in self.__dict__.items() if name not in ("pearson", "spearman")}
        return record(values | {"pearson": asdict(self.pearson), "spearman": asdict(self.spearman)})

    def __str__(self) -> str:
        return "\n".join(
            [
                f"loss and distance over {len(self.mixtures)} mixtures in {self.num_cells} cells",
                f"  {self.pearson}",
                f"  {self.spearman}",
                f"  nearest is best: {self.verdict}; {self.why}",
            ]
        )


def loss_distance(
    runs: Runs,
    distances: Mapping[str, float],
    *,
    target: str = "loss_macro",
    noise: float | None = None,
    level: float = LEVEL,
) -> LossDistance:
    """Losses of the mixtures in `distances`, over the cells (size, budget) in which all of them were trained.

    Seeds of a mixture are averaged in each cell. Losses scatter by what is left beside one effect per mixture and
    one per cell, or by `noise`, the standard deviation of ln loss of one run. ValueError for fewer than two mixtures,
    one that the table lacks, a distance that is no finite number, and no cell that holds all of them.
    """
    if len(distances) < 2:
        raise ValueError(f"a correlation takes two mixtures or more; got distances of {list(distances)}")
    for name, distance in distances.items():
        if name not in runs.mixtures:
            raise ValueError(f"no runs of mixture {name!r}; the table has {', '.join(runs.mixtures) or 'no runs'}")
        if not math.isfinite(distance):
            raise ValueError(f"the distance of {name!r} is {distance}; smooth the counts, or leave it out")
    cells: dict[tuple[str, float], dict[str, list[float]]] = {}
    values = runs[target].astype(float)
    for i in range(len(runs)):
        name = str(runs["mixture"][i])
        if name in distances and math.isfinite(values[i]) and values[i] > 0:
            cell = (str(runs["size"][i]), float(runs["tokens"][i]))
            cells.setdefault(cell, {}).setdefault(name, []).append(math.log(values[i]))
    whole = [found for _, found in sorted(cells.items()) if len(found) == len(distances)]
    if not whole:
        raise ValueError(f"no size and budget at which all of {', '.join(distances)} were trained")
    table = np.array([[math.fsum(found[name]) / len(found[name]) for found in whole] for name in distances])
    return compare_losses(list(distances), table, list(distances.values()), noise=noise, level=level)


def mixture_distances(
    shares: Mapping[str, Mapping[str, float]],
    sources: Mapping[str, ArrayLike],
    test: ArrayLike,
    *,
    num_tokens: int | None = None,
    smoothing: float = SMOOTHING,
) -> dict[str, float]:
    """KL(test || mixture) of token frequencies for mixtures of sources, in nats per token; inf where one is.

    `shares`: mixture -> source -> share of its tokens; `sources` and `test`: token counts over one vocabulary. Every
    mixture is of `num_tokens` tokens (default: as many as the smallest source has) when `smoothing` occurrences are
    added to each type. A mixture that holds a source without counts is left out. ValueError when none is left, and for
    two vocabularies.
    """
    counts = validate_one_vocabulary({**sources, "the test corpus": test})
    goal = smoothed(counts.pop("the test corpus"), smoothing)
    size = num_tokens if num_tokens is not None else match_size([int(one.sum()) for one in counts.values()])
    frequencies = {name: smoothed(one, 0.0) for name, one in counts.items()}
    found = {}
    for mixture, parts in shares.items():
        held = {source: share for source, share in parts.items() if share > 0}
        if held and set(held) <= set(frequencies):
            mixed = sum((share * frequencies[source] for source, share in held.items()), np.zeros(len(goal)))
            found[mixture] = kl_divergence(goal, smoothed(size * mixed / sum(held.values()), smoothing))
    if not found:
        raise ValueError(f"no mixture is made of {', '.join(sources)} alone; count the other sources too")
    return found


def compare_losses(
    mixtures: Sequence[str],
    log_loss: ArrayLike,
    distance: ArrayLike,
    *,
    noise: float | None = None,
    level: float = LEVEL,
) -> LossDistance:
    """As `loss_distance`, from a table `[mixtures, cells]` of ln losses and a distance per mixture.

    The claim "the nearest mixture is the best" is supported if the loss of every other is told to be higher (each by
    its own interval), rejected if that of at least one is told to be lower (Bonferroni over the others), else
    undecided. ValueError for tables of another shape.
    """
    table, distance = np.atleast_2d(np.asarray(log_loss, dtype=float)), np.asarray(distance, dtype=float)
    if table.shape[0] != len(mixtures) or distance.shape != (len(mixtures),):
        raise ValueError(
            f"{len(mixtures)} mixtures, losses of shape {table.shape} and distances of shape {distance.shape}: "
            "one row and one distance a mixture"
        )
    order = np.lexsort((np.array(mixtures), distance))
    names = [mixtures[k] for k in order]
    table, distance = table[order], distance[order]
    num, cells = table.shape
    loss = (table - table.mean(axis=0)).mean(axis=1)
    residual = table - table.mean(axis=0) - loss[:, None]
    freedom = (num - 1) * (cells - 1)
    variance = float((residual**2).sum()) / freedom if freedom else math.nan
    if noise is not None:
        variance, freedom = noise**2, MANY
    best = int(np.argmin(loss))
    gap = loss - loss[0]
    error = math.sqrt(2 * variance / cells)
    verdict, why = _nearest_is_best(names, gap, error, freedom, level)
    each = t_quantile(max(freedom, 1), 1 - (1 - level) / max(num - 1, 1))
    tied = [k for k in range(num) if not (loss[k] - loss).max() > each * error]
    return LossDistance(
        mixtures=tuple(names),
        distance=distance,
        loss=loss,
        loss_error=np.full(num, math.sqrt(variance * (1 - 1 / num) / cells)),
        pearson=pearson(loss, distance, level),
        spearman=spearman(loss, distance, level),
        num_cells=cells,
        freedom=freedom,
        nearest=names[0],
        best=names[best],
        tied_with_best=tuple(names[k] for k in tied),
        regret=float(loss[0] - loss[best]),
        verdict=verdict,
        why=why,
        level=level,
    )


def _nearest_is_best(
    names: Sequence[str], gap: np.ndarray, error: float, freedom: int, level: float
) -> tuple[str, str]:
    if not freedom:
        return UNDECIDED, "one run a mixture does not show how runs scatter; give noise="
    alone = t_quantile(freedom, level) * error
    together = t_quantile(freedom, 1 - (1 - level) / (len(names) - 1)) * error
    better = [name for name, d in zip(names[1:], gap[1:], strict=True) if d + together < 0]
    if better:
        return REJECTED, f"{names[0]} is the nearest, and {', '.join(better)} has a lower loss"
    if (gap[1:] - alone > 0).all():
        return SUPPORTED, f"{names[0]} is the nearest, and every other mixture has a higher loss"
    return UNDECIDED, f"{names[0]} is the nearest; the runs do not tell whether another is better"


# --- correlations ---


def pearson(x: ArrayLike, y: ArrayLike, level: float = LEVEL) -> Correlation:
    """Linear correlation, with Fisher's interval; [-1, 1] for 3 values. ValueError for arrays of unequal length."""
    a, b = _pair(x, y)
    value = _linear(a, b)
    low, high = math.nan, math.nan
    if math.isfinite(value):
        low, high = -1.0, 1.0
        if len(a) > 3 and abs(value) < 1:
            half = t_quantile(MANY, level) / math.sqrt(len(a) - 3)
            low, high = math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)
        elif len(a) > 3:
            low, high = (value, value)  # on one line to the last digit
    return Correlation("pearson", value, low, high, _permutation_p(a, b, value), len(a), level)


def spearman(x: ArrayLike, y: ArrayLike, level: float = LEVEL) -> Correlation:
    """Rank correlation of two arrays (ties get mean ranks), with an interval. ValueError for unequal lengths."""
    from scipy.stats import rankdata

    a, b = _pair(x, y)
    ranks = (rankdata(a), rankdata(b))
    value = _linear(*ranks)
    low, high = math.nan, math.nan
    if math.isfinite(value):
        low, high = rank_interval(value, len(a), level)
    return Correlation("spearman", value, low, high, _permutation_p(*ranks, value), len(a), level)


def rank_interval(value: float, num: int, level: float) -> tuple[float, float]:
    """Interval of a rank correlation of `num` pairs, as the module says."""
    if num > MANY_MIXTURES:
        inside = max(-0.999999, min(0.999999, value))
        half = t_quantile(MANY, level) * math.sqrt((1 + value**2 / 2) / (num - 3))
        return math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half)
    truth, sorted_values = _simulated_ranks(num)
    outside = (1 - level) / 2
    slack = 1e-9
    # Share of studies with a rank correlation at least, and at most, as large, per true correlation.
    at_least = 1 - np.array([np.searchsorted(row, value - slack) for row in sorted_values]) / NUM_SIMULATED
    at_most = np.array([np.searchsorted(row, value + slack) for row in sorted_values]) / NUM_SIMULATED
    kept = truth[(at_least >= outside) & (at_most >= outside)]
    low, high = float(kept.min()), float(kept.max())
    # The ends of the grid stand for -1 and 1.
    return (-1.0 if low == truth[0] else low), (1.0 if high == truth[-1] else high)


@functools.cache
def _simulated_ranks(num: int) -> tuple[np.ndarray, np.ndarray]:
    """(rank correlation of the population, sorted rank correlations of studies of `num` pairs) on a grid."""
    rng = np.random.default_rng((20_000, num))
    x, e = rng.standard_normal((2, NUM_SIMULATED, num))
    ranks_x = x.argsort(axis=1).argsort(axis=1)
    rho = np.sin(np.linspace(-1, 1, 121) * math.pi / 2) * 0.9999
    rows = []
    for r in rho:
        ranks_y = (r * x + math.sqrt(1 - r**2) * e).argsort(axis=1).argsort(axis=1)
        off = ((ranks_x - ranks_y) ** 2).sum(axis=1)
        rows.append(np.sort(1 - 6 * off / (num * (num**2 - 1))))
    return 6 / math.pi * np.arcsin(rho / 2), np.array(rows)


def _permutation_p(a: np.ndarray, b: np.ndarray, value: float) -> float:
    if not math.isfinite(value):
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    if len(a) <= ALL_PERMUTATIONS:
        dealt = np.array(list(itertools.permutations(range(len(a)))))
        found = np.abs(b[dealt] @ a) / scale
        return float(np.mean(found >= abs(value) - 1e-12))
    rng = np.random.default_rng((7, len(a)))
    dealt = rng.permuted(np.tile(np.arange(len(a)), (NUM_PERMUTATIONS, 1)), axis=1)
    found = np.abs(b[dealt] @ a) / scale
    return float((1 + np.sum(found >= abs(value) - 1e-12)) / (1 + NUM_PERMUTATIONS))


def _linear(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return max(-1.0, min(1.0, float(np.corrcoef(a, b)[0, 1])))


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a correlation is of two arrays of one length; got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a correlation takes finite numbers")
    return a, b
