"""The schedule: which source position k of the training stream reads, and which of its sequences. A pure function.

position k ──root──> "how many of the first k went left?" ──...──> leaf: source s, its j-th sequence

The sources are the leaves of a Huffman tree over their ratios. At a node, its visits are split between its two
children by rounding: of the first m visits, the first child, whose share of the node is a/b, has got
floor(a m / b + 1/2) = (2 a m + b) // (2 b). So source, index and counts at any position follow by walking down, in
integers; nothing is stored, nothing drifts, and position 10^12 costs what position 0 costs.

Bound. Let c_v be the visits of node v among the first k positions, w_v its share of all positions, u its parent. The
rounding gives |c_v - (w_v / w_u) c_u| <= 1/2. Going down to leaf i, the error made at v arrives scaled by w_i / w_v:

    |c_i - k w_i| <= 1/2 * sum of w_i / w_v over the nodes v of the leaf's path, the leaf included, the root not.

For two sources that is 1/2. For any number: Huffman merges the two lightest nodes, so a node's uncle weighs at least
what the node does, hence w_grandparent >= w_parent + w_node, and the terms, from the leaf upwards, are at most
1, 1, 1/2, 1/3, 1/5, 1/8, ...: the reciprocals of the Fibonacci numbers, whose sum is 3.35988... (R. Andre-Jeannin
1989 on its irrationality). Half of it, 1.67994..., bounds every source, every prefix, any number of sources.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.mixture.ratios import Mixture, Ratio

MAX_POSITION = 2**63 - 2
"""Largest position: positions, and their successors, are int64."""


class Schedule:
    """Position -> (source, j-th sequence of that source), exact, with random access and without state.

    For every k, the number of sequences of source i among the first k differs from `ratio_i * k` by at most
    `bound`: 1/2 for two sources, below 1.68 for any number. Any stretch of positions is within twice that.
    The j-s of a source, in order of position, are 0, 1, 2, ... without a gap.

    Depends on names and ratios only, not on the order in which they are listed.
    """

    def __init__(self, mixture: Mixture | Mapping[str, Ratio]) -> None:
        self.mixture = mixture if isinstance(mixture, Mixture) else Mixture(mixture)
        self.num_sources = len(self.mixture.names)
        self._build_tree()

    def __repr__(self) -> str:
        return f"Schedule({self.mixture!r}, bound {float(self.bound):.3f} sequences)"

    # --- the tree ---

    def _build_tree(self) -> None:
        """Inner nodes are 0 (root), 1, ... with parents before children; leaf of source i is ~i."""
        ratios = list(self.mixture.ratios.values())
        common = math.lcm(*(ratio.denominator for ratio in ratios))
        by_name = sorted(range(self.num_sources), key=lambda i: self.mixture.names[i])
        # (weight, rank of the subtree's first name, node): ranks differ, so equal weights never fall back to the node.
        heap = [(int(ratios[i] * common), rank, ~i) for rank, i in enumerate(by_name) if ratios[i]]
        heapq.heapify(heap)
        merges: list[tuple[int, int, int, int]] = []
        while len(heap) > 1:
            one, other = heapq.heappop(heap), heapq.heappop(heap)
            # The child with the smaller name is rounded half up: with two sources, plan_sequences' rule for ties.
            first, second = sorted((one, other), key=lambda entry: entry[1])
            merges.append((first[2], second[2], first[0], first[0] + second[0]))
            heapq.heappush(heap, (first[0] + second[0], first[1], len(merges) - 1))
        last = len(merges) - 1
        merges = [(self._renumber(f, last), self._renumber(s, last), a, b) for f, s, a, b in reversed(merges)]

        self._root = self._renumber(heap[0][2], last)
        self._children = [(first, second) for first, second, _, _ in merges]
        self._shares = [(a // math.gcd(a, b), b // math.gcd(a, b)) for _, _, a, b in merges]
        self._parent = {child: node for node, pair in enumerate(self._children) for child in pair}
        # Where 2 a b + b fits an int64, every product of the split does, at any position; elsewhere Python's integers.
        self._is_big = np.array([2 * a * b + b > 2**63 - 1 for a, b in self._shares], dtype=bool)
        small = [(0, 1) if big else share for share, big in zip(self._shares, self._is_big, strict=True)]
        self._a = np.array([a for a, _ in small], dtype=np.int64)
        self._b = np.array([b for _, b in small], dtype=np.int64)
        self._first = np.array([first for first, _ in self._children], dtype=np.int64)
        self._second = np.array([second for _, second in self._children], dtype=np.int64)

    @staticmethod
    def _renumber(node: int, last: int) -> int:
        return node if node < 0 else last - node

    @cached_property
    def bound(self) -> Fraction:
        """Most that any source's count can differ from its share, on any prefix, in sequences: the module's formula."""
        ratios = list(self.mixture.ratios.values())
        weight: dict[int, Fraction] = {~i: ratio for i, ratio in enumerate(ratios) if ratio}
        for node in range(len(self._children) - 1, -1, -1):
            weight[node] = sum((weight[child] for child in self._children[node]), Fraction(0))
        inverses = {self._root: Fraction(0)}
        for node, pair in enumerate(self._children):
            for child in pair:
                inverses[child] = inverses[node] + 1 / weight[child]
        return max(weight[leaf] * inverses[leaf] / 2 for leaf in weight if leaf < 0)

    # --- positions -> sequences ---

    def locate(self, k: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(source index, j) for each position of the integer array `k`: position k reads sequence j of that source.

        Both int64, of the shape of `k`. ValueError for a negative position, one beyond MAX_POSITION, and floats.
        """
        positions = validate_positions(k)
        source = np.zeros(positions.size, dtype=np.int64)
        j = positions.ravel().copy()
        if self._root < 0:
            source[:] = ~self._root
            return source.reshape(positions.shape), j.reshape(positions.shape)
        active = np.arange(positions.size)
        node = np.full(positions.size, self._root)
        while active.size:
            visits = j[active]
            before, after = self._split(node, visits)
            goes_first = after != before
            j[active] = np.where(goes_first, before, visits - before)
            node = np.where(goes_first, self._first[node], self._second[node])
            is_leaf = node < 0
            source[active[is_leaf]] = ~node[is_leaf]
            active, node = active[~is_leaf], node[~is_leaf]
        return source.reshape(positions.shape), j.reshape(positions.shape)

    def _split(
        self, node: npt.NDArray[np.int64], visits: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What the first child has got after `visits` visits of `node`, and after one more."""
        a, b = self._a[node], self._b[node]
        # visits = q b + r, and of every b visits exactly a go to the first child: products stay below 2 a b + b.
        q, r = np.divmod(visits, b)
        before = a * q + (2 * a * r + b) // (2 * b)
        after = a * q + (2 * a * (r + 1) + b) // (2 * b)
        if self._is_big.any():
            for i in np.flatnonzero(self._is_big[node]):
                m = int(visits[i])
                before[i] = self._first_count(int(node[i]), m)
                after[i] = self._first_count(int(node[i]), m + 1)
        return before, after

    def _first_count(self, node: int, visits: int) -> int:
        a, b = self._shares[node]
        return (2 * a * visits + b) // (2 * b)

    def counts(self, k: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Sequences of each source among the first `k` positions: int64 `[num_sources]`, or `[..., num_sources]`.

        Sums to k. Reads nothing and costs O(num_sources) for each k. Errors as `locate`.
        """
        positions = validate_positions(k)
        counts = np.zeros((positions.size, self.num_sources), dtype=np.int64)
        for row, first_k in enumerate(positions.ravel().tolist()):
            visits = {self._root: first_k}
            for node, (first, second) in enumerate(self._children):
                visits[first] = self._first_count(node, visits[node])
                visits[second] = visits[node] - visits[first]
            for node, count in visits.items():
                if node < 0:
                    counts[row, ~node] = count
        return counts.reshape(*positions.shape, self.num_sources)

    def position(self, source: int, j: int) -> int | None:
        """The position that reads sequence `j` of source index `source`; None for a source of ratio 0.

        The inverse of `locate`, in exact integers of any size.
        """
        if not 0 <= source < self.num_sources or j < 0:
            raise ValueError(f"no sequence {j} of source index {source}; there are {self.num_sources} sources")
        if not list(self.mixture.ratios.values())[source]:
            return None
        node, visit = ~source, int(j)
        while node != self._root:
            parent = self._parent[node]
            a, b = self._shares[parent]
            if node == self._children[parent][0]:
                # The first m with (2 a m + b) // (2 b) > visit; the visit itself is the one before.
                visit = -((b - 2 * b * (visit + 1)) // (2 * a)) - 1
            else:
                # m - (2 a m + b) // (2 b) is the ceiling of (2 (b - a) m - b) / (2 b).
                visit = (2 * b * visit + b) // (2 * (b - a))
            node = parent
        return visit


def validate_positions(k: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """`k` as int64; ValueError for what is no array of positions in [0, MAX_POSITION]."""
    positions: npt.NDArray[Any] = np.asarray(k)
    if positions.size == 0:
        return positions.astype(np.int64)
    if positions.dtype == object:
        if not all(isinstance(x, int) for x in positions.flat):
            raise ValueError(f"positions are integers, got {k!r}")
    elif positions.dtype.kind not in "iu":
        raise ValueError(f"positions are integers, got {positions.dtype}")
    smallest, largest = int(positions.min()), int(positions.max())
    if smallest < 0 or largest > MAX_POSITION:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(f"no position {wrong:,}; positions are 0 to {MAX_POSITION:,}")
    return positions.astype(np.int64)
