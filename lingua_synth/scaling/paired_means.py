"""Means of paired differences over cells, with Student's t from the scatter inside the cells.

A cell holds the differences of its pairs, one a seed. Cells may differ from each other in earnest, so only what pairs
of one cell differ by is taken as chance: it is pooled over the cells, and the interval is about these cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Degrees of freedom of the scatter: pairs less cells."""

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
