"""Means of paired differences over cells, with Student's t from the scatter inside the cells.

A cell holds the differences of its pairs, one a seed. Cells may differ from each other in earnest, so only what pairs
of one cell differ by is taken as chance: it is pooled over the cells, and the interval is about these cells.

Runs of one seed share their initialization, and the longer ones read what the shorter ones read; then the luck of a
seed is in all its cells, and pooling takes one draw for many. With three cells of three seeds whose luck is shared by
half, pooled intervals of 95 % held 85 %. So `paired_mean_by_seed` asks first whether seeds differ by more than their
cells do (F of a two-way layout), and if there is any sign of it (p < 0.5) counts seeds, not pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lingua_synth.scaling.regions import t_quantile


@dataclass(frozen=True)
class PairedMean:
    """The mean over cells of the cells' mean differences."""

    value: float
    interval: tuple[float, float] | None
    """None where no cell has two pairs."""
    num_pairs: int
    freedom: int
    """Degrees of freedom of the scatter: pairs less cells, or seeds less one."""
    counts: str = "pairs"
    """What errs independently: pairs, or seeds."""

    @property
    def is_told(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def paired_mean(cells: Sequence[Sequence[float]], level: float) -> PairedMean:
    """Over the cells' differences, each cell counting alike; ValueError for a level outside (0, 1)."""
    assert cells and all(len(cell) for cell in cells), "a cell holds a pair"
    means = [float(np.mean(cell)) for cell in cells]
    value = float(np.mean(means))
    freedom = sum(len(cell) - 1 for cell in cells)
    num_pairs = sum(map(len, cells))
    if not freedom:
        return PairedMean(value, None, num_pairs, 0)
    squares = sum(float(((np.asarray(cell) - mean) ** 2).sum()) for cell, mean in zip(cells, means, strict=True))
    weight = sum(1 / len(cell) for cell in cells) / len(cells) ** 2
    half = t_quantile(freedom, level) * math.sqrt(squares / freedom * weight)
    return PairedMean(value, (value - half, value + half), num_pairs, freedom)


SHARED_P = 0.5
"""Below this p value seeds are counted. In simulations of 3 or 6 cells of 2 to 5 seeds, with no, some or much luck that
a seed's cells share, intervals of 95 % then held 93 to 98 %."""


def paired_mean_by_seed(cells: Sequence[Mapping[int, float]], level: float) -> PairedMean:
    """As `paired_mean`, of differences by seed; where the cells of a seed share its luck, seeds are what is counted.

    Seeds that some cell lacks take no part in the question, nor in the scatter of seeds; fewer than two others, or one
    cell, and pairs are counted.
    """
    pooled = paired_mean([list(cell.values()) for cell in cells], level)
    seeds = sorted(set.intersection(*(set(cell) for cell in cells)))
    if len(seeds) < 2 or len(cells) < 2:
        return pooled
    values = np.array([[cell[seed] for seed in seeds] for cell in cells])
    num_cells, num_seeds = values.shape
    inside = values - values.mean(axis=1, keepdims=True)
    luck = inside.mean(axis=0)
    between = num_cells * float((luck**2).sum()) / (num_seeds - 1)
    left = (num_seeds - 1) * (num_cells - 1)
    within = float(((inside - luck) ** 2).sum()) / left
    if not _differ(between, within, num_seeds - 1, left):
        return pooled
    half = t_quantile(num_seeds - 1, level) * math.sqrt(between / num_cells / num_seeds)
    ends = (pooled.value - half, pooled.value + half)
    return PairedMean(pooled.value, ends, pooled.num_pairs, num_seeds - 1, "seeds")


def _differ(between: float, within: float, freedom: int, left: int) -> bool:
    from scipy.special import fdtrc

    if not between > 0:
        return False
    return not within > 0 or float(fdtrc(freedom, left, between / within)) < SHARED_P
