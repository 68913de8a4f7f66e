"""Where two curves may meet, by the resamples of both: the step behind intervals of speed-ups and of crossings.

A crossing is a ratio of two uncertain things (a gap of losses and its slope), and a ratio whose denominator may be 0
has no standard error: resampled speed-ups run to infinity whenever the base's floor comes near the loss. So the
interval is taken where errors are small and near normal, in the loss: the gap between the curves at a budget, d(D) =
L_a(D) - L_b(D), has a standard error s(D) over the resamples, and

    { D : |d(D)| <= t s(D) }

holds the true crossing with the probability t stands for, whatever the slope there (Fieller 1954). It is unbounded,
rightly, where the runs do not exclude that the curves never meet.
"""

from __future__ import annotations

import numpy as np


def t_quantile(freedom: int, level: float) -> float:
    """Student's t that leaves `1 - level` outside on both sides; ValueError for a level outside (0, 1)."""
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, e.g. 0.95; got {level}")
    return float(stdtrit(max(freedom, 1), (1 + level) / 2))


def falling_region(x: np.ndarray, gap: np.ndarray, error: np.ndarray, t: float) -> tuple[float, float]:
    """(first, last) x at which a `gap` that falls with x may be 0; -inf or inf where that is an end of `x`.

    First: gap - t error reaches 0. Last: gap + t error was still above it.
    """
    return _first_zero(x, gap - t * error), -_first_zero(-x[::-1], -(gap + t * error)[::-1])


def _first_zero(x: np.ndarray, value: np.ndarray) -> float:
    """The first x, by linear interpolation, at which `value` is no longer positive; -inf at the start, inf nowhere."""
    reached = np.flatnonzero(value <= 0)
    if len(reached) == 0:
        return float("inf")
    k = int(reached[0])
    if k == 0:
        return float("-inf")
    return float(x[k - 1] + (x[k] - x[k - 1]) * value[k - 1] / (value[k - 1] - value[k]))


def region_around(x: np.ndarray, gap: np.ndarray, error: np.ndarray, t: float, at: float) -> tuple[float, float]:
    """The piece of { x : |gap| <= t error } that holds `at`, where the gap is 0; -inf, inf at the ends of `x`."""
    excess = np.abs(gap) - t * error
    right = x > at
    upper = _first_zero(np.append(at, x[right]), np.append(1e-300, -excess[right]))
    left = (x < at)[::-1]
    lower = -_first_zero(np.append(-at, -x[::-1][left]), np.append(1e-300, -excess[::-1][left]))
    return lower, upper


def resampled_error(values: np.ndarray) -> np.ndarray:
    """Standard error `[k]` of resampled `values` `[n, k]`: half of what their middle 68.27 % span.

    Resamples of few runs have long tails (a draw of three different budgets fixes nothing), which a standard deviation
    is made of; the middle is what t is about.
    """
    low, high = np.quantile(values, [0.15865525393145707, 0.8413447460685429], axis=0)
    return 0.5 * (high - low)
