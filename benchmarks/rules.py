"""How others decide which source the next sequence is of: the published rules, in numpy, and how far each runs off.

    random      a draw per sequence (Hugging Face datasets, litdata, MosaicML within an epoch, torchtitan before grain)
    greedy      the source that is furthest behind its share (Megatron core, `build_blending_indices`)
    integers    shares scaled so that the smallest becomes 100 and cut to integers, then counts by nested floors
                (grain 0.2, `MapDataset.mix`)

Each returns the source index of every position, int64 `[num_positions]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def random_order(shares: Sequence[Fraction], num_positions: int, seed: int = 0) -> Integers:
    """One independent draw a position."""
    weights = np.array([float(share) for share in shares])
    return np.random.default_rng(seed).choice(len(shares), num_positions, p=weights / weights.sum()).astype(np.int64)


def greedy_order(shares: Sequence[Fraction], num_positions: int) -> Integers:
    """The largest share * max(k, 1) - count is next, the first of equals."""
    weights = np.array([float(share) for share in shares])
    counts = np.zeros(len(shares))
    order = np.empty(num_positions, dtype=np.int64)
    for k in range(num_positions):
        i = int((weights * max(k, 1) - counts).argmax())
        order[k] = i
        counts[i] += 1
    return order


def integer_weights(shares: Sequence[Fraction]) -> list[int]:
    """The shares as the integers that the rule goes by."""
    scale = 100 / min(float(share) for share in shares)
    return [int(float(share) * scale) for share in shares]


def integer_order(shares: Sequence[Fraction], num_positions: int) -> Integers:
    """Of the first k, floor(k (rest - p) / rest) are left for the sources behind the first, and so on down the list."""
    weights = integer_weights(shares)
    rest = sum(weights)
    order = np.full(num_positions, len(weights) - 1, dtype=np.int64)
    position = np.arange(num_positions)  # of those that no source has taken yet
    visits = np.arange(num_positions, dtype=np.int64)  # how many came before, among those
    for i, weight in enumerate(weights[:-1]):
        later, later_next = visits * (rest - weight) // rest, (visits + 1) * (rest - weight) // rest
        taken = later == later_next
        order[position[taken]] = i
        position, visits = position[~taken], later[~taken]
        rest -= weight
    return order


def worst_deviation(order: Integers, shares: Sequence[Fraction]) -> Fraction:
    """Largest |count of a source among the first k - share * k| over all sources and all k, exact, in sequences."""
    worst = Fraction(0)
    for i, share in enumerate(shares):
        a, b = share.numerator, share.denominator
        at = np.flatnonzero(order == i)
        count = np.arange(len(at))
        # Extremes lie just before and just behind the places where the count grows, and at the end.
        before, behind = count * b - at * a, (count + 1) * b - (at + 1) * a
        last = len(at) * b - len(order) * a
        extreme = max(int(np.abs(before).max(initial=0)), int(np.abs(behind).max(initial=0)), abs(last))
        worst = max(worst, Fraction(extreme, b))
    return worst
