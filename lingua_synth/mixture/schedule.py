"""The schedule: which source position k of the training stream reads, and which of its sequences. A pure function.

position k ──piece──> tree ──root──> "how many of the first k went left?" ──...──> leaf: source s, its j-th sequence

Where the ratios are constant, the sources are the leaves of a Huffman tree over them. At a node, its visits are split
between its two children by rounding: of the first m visits, the first child, whose share of the node is a/b, has got
floor(a m / b + 1/2). So source, index and counts at any position follow by walking down, in integers; nothing is
stored, nothing drifts, and position 10^12 costs what position 0 costs.

Bound. Let c_v be the visits of node v among the first k positions, w_v its share of all positions, u its parent. The
rounding gives |c_v - (w_v / w_u) c_u| <= 1/2. Going down to leaf i, the error made at v arrives scaled by w_i / w_v:

    |c_i - k w_i| <= 1/2 * sum of w_i / w_v over the nodes v of the leaf's path, the leaf included, the root not.

For two sources that is 1/2. For any number: Huffman merges the two lightest nodes, so a node's uncle weighs at least
what the node does, hence w_grandparent >= w_parent + w_node, and the terms, from the leaf upwards, are at most
1, 1, 1/2, 1/3, 1/5, 1/8, ...: the reciprocals of the Fibonacci numbers, whose sum is 3.35988... (R. Andre-Jeannin
1989 on its irrationality). Half of it, 1.67994..., bounds every source, every prefix, any number of sources.

Where the ratios change, at a piece's start, every piece has a tree of its own, and the rounding of each node takes up
the error it inherits: with x = (c_v - W_v) - (w_v / w_u)(c_u - W_u) at the start, where W are the exact targets (the
integral of the ratios so far), the first child of a node gets

    floor(a m / b + 1/2 - x), cut to [0, m], of the first m visits after it.

So its relative error starts at x, moves towards 0 as fast as visits allow, and from then on is at most 1/2, as above.
While every |x| <= 1/2 the constant bound holds at once; `bound` is computed with max(1/2, |x|) in the place of 1/2,
from the x of this very course, so it is proven for it. With two sources |x| never exceeds 1/2: they stay within half a
sequence of their shares through any stages and ramps. A stage that changes nothing changes no position.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.mixture.course import Course
from lingua_synth.mixture.mixture import Mixture
from lingua_synth.mixture.ratios import Ratio

MAX_POSITION = 2**63 - 2
"""Largest position: positions, and their successors, are int64."""

Integers = npt.NDArray[np.int64]


class Schedule:
    """Position -> (source, j-th sequence of that source), exact, with random access and without state.

    Takes a course, a mixture, or constant ratios by name. For every k, the number of sequences of source i among the
    first k differs from its target (`ratio_i * k`, where ratios are constant) by at most `bound`: 1/2 for two
    sources, below 1.68 for any number of constant ratios. The j-s of a source, in order of position, are 0, 1, 2, ...
    without a gap. Positions from `course.end` on do not exist.

    Depends on names and ratios only, not on the order in which they are listed. `like`: a schedule of a course that
    has the same beginning, whose work is taken over.
    """

    def __init__(self, course: Course | Mixture | Mapping[str, Ratio], like: Schedule | None = None) -> None:
        self.course = as_course(course)
        self.names = self.course.names
        self.num_sources = len(self.names)
        pieces = self.course.pieces
        self._starts = [piece.start for piece in pieces]
        self._trees: list[_Tree] = []
        self._before: list[list[int]] = []  # counts of every source at the start of each piece
        ranks = ranks_by_name(self.names)
        counts = [0] * self.num_sources
        shared = 0 if like is None or like.names != self.names else _common(pieces, like.course.pieces)
        if like is not None and shared:
            self._trees, self._before = like._trees[:shared], like._before[:shared]
        for p in range(shared, len(pieces)):
            if p:
                local = self._trees[-1].counts(pieces[p].start - self._starts[p - 1])
                counts = [before + c for before, c in zip(self._before[-1], local, strict=True)]
            self._before.append(counts)
            targets = self.course.target(pieces[p].start)
            errors = [count - target for count, target in zip(counts, targets, strict=True)]
            self._trees.append(_Tree(pieces[p].ratios, errors, ranks))

    def __repr__(self) -> str:
        return f"Schedule({self.course!r}, bound {float(self.bound):.3f} sequences)"

    @cached_property
    def bound(self) -> Fraction:
        """Most that any source's count can differ from its target, on any prefix, in sequences; see the module."""
        return max(tree.bound for tree in self._trees)

    # --- positions -> sequences ---

    def locate(self, k: npt.ArrayLike) -> tuple[Integers, Integers]:
        """(source index, j) for each position of the integer array `k`: position k reads sequence j of that source.

        Both int64, of the shape of `k`. ValueError for a negative position, one beyond MAX_POSITION or the course's
        end, and floats.
        """
        positions = validate_positions(k, self.course.end)
        if len(self._trees) == 1:
            source, j = self._trees[0].locate(positions.ravel())
            return source.reshape(positions.shape), j.reshape(positions.shape)
        flat = positions.ravel()
        source, j = np.empty_like(flat), np.empty_like(flat)
        piece = np.searchsorted(self._starts, flat, side="right") - 1
        for p in np.unique(piece):
            here = piece == p
            source[here], local = self._trees[p].locate(flat[here] - self._starts[p])
            j[here] = local + np.array(self._before[p], dtype=np.int64)[source[here]]
        return source.reshape(positions.shape), j.reshape(positions.shape)

    def counts(self, k: npt.ArrayLike) -> Integers:
        """Sequences of each source among the first `k` positions: int64 `[num_sources]`, or `[..., num_sources]`.

        Sums to k. Reads nothing and costs O(num_sources) for each k. Errors as `locate`.
        """
        positions = validate_positions(k, None if self.course.end is None else self.course.end + 1)
        counts = np.empty((positions.size, self.num_sources), dtype=np.int64)
        for row, first_k in enumerate(positions.ravel().tolist()):
            p = bisect_right(self._starts, first_k) - 1
            local = self._trees[p].counts(first_k - self._starts[p])
            counts[row] = [before + c for before, c in zip(self._before[p], local, strict=True)]
        return counts.reshape(*positions.shape, self.num_sources)

    def position(self, source: int, j: int) -> int | None:
        """The position that reads sequence `j` of source index `source`; None where there is none.

        The inverse of `locate`, in exact integers of any size.
        """
        if not 0 <= source < self.num_sources or j < 0:
            raise ValueError(f"no sequence {j} of source index {source}; there are {self.num_sources} sources")
        p = bisect_right(self._before, j, key=lambda before: before[source]) - 1
        local = self._trees[p].position(source, int(j) - self._before[p][source])
        if local is None:
            return None
        found = self._starts[p] + local
        return None if self.course.end is not None and found >= self.course.end else found


class _Tree:
    """Constant ratios from some position on: a Huffman tree of rounded splits; positions and indices from there."""

    def __init__(self, ratios: Sequence[Fraction], errors: Sequence[Fraction], ranks: Sequence[int]) -> None:
        """`errors`: count minus target of each source at the start. `ranks`: order of the sources by name."""
        self._num_sources = len(ratios)
        self._errors = errors
        self._ratios = ratios
        self._build(ranks)
        self._round(errors)

    def _build(self, ranks: Sequence[int]) -> None:
        """Inner nodes are 0 (root), 1, ... with parents before children; leaf of source i is ~i."""
        common = math.lcm(*(ratio.denominator for ratio in self._ratios))
        # (weight, rank of the subtree's first name, node): ranks differ, so equal weights never fall back to the node.
        heap = [(int(ratio * common), ranks[i], ~i) for i, ratio in enumerate(self._ratios) if ratio]
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
        self._shares = [Fraction(a, b) for _, _, a, b in merges]
        self._parent = {child: node for node, pair in enumerate(self._children) for child in pair}
        self._first = np.array([first for first, _ in self._children], dtype=np.int64)
        self._second = np.array([second for _, second in self._children], dtype=np.int64)

    @staticmethod
    def _renumber(node: int, last: int) -> int:
        return node if node < 0 else last - node

    def _round(self, errors: Sequence[Fraction]) -> None:
        """The rounding of each node: of m visits the first child gets (A m + C) // B, cut to [0, m]."""
        error = {~i: e for i, e in enumerate(errors)}
        for node in range(len(self._children) - 1, -1, -1):
            first, second = self._children[node]
            error[node] = error[first] + error[second]
        self._inherited = {}  # x of the module's formula, by first child; its sibling's is the negative
        self._splits: list[tuple[int, int, int]] = []
        for node, (first, _) in enumerate(self._children):
            x = error[first] - self._shares[node] * error[node]
            self._inherited[node] = x
            half = Fraction(1, 2) - x
            common = math.lcm(self._shares[node].denominator, half.denominator)
            self._splits.append((int(self._shares[node] * common), common, int(half * common)))
        self._root_error = error[self._root]
        # Where these fit an int64, every number of the split does, at any position; elsewhere Python's integers.
        is_big = [a * b + abs(c) > 2**63 - 1 for a, b, c in self._splits]
        small = [(0, 1, 0) if big else split for split, big in zip(self._splits, is_big, strict=True)]
        self._is_big = np.array(is_big, dtype=bool)
        self._a, self._b, self._c = (np.array([s[i] for s in small], dtype=np.int64) for i in range(3))
        self._is_cut = any(not 0 <= c < b for _, b, c in self._splits)

    @cached_property
    def bound(self) -> Fraction:
        """Most that a source's count can differ from its target in this piece."""
        weight: dict[int, Fraction] = {~i: ratio for i, ratio in enumerate(self._ratios) if ratio}
        for node in range(len(self._children) - 1, -1, -1):
            weight[node] = sum((weight[child] for child in self._children[node]), Fraction(0))
        per_weight = {self._root: abs(self._root_error) / weight[self._root]}
        for node, pair in enumerate(self._children):
            for child in pair:
                per_weight[child] = per_weight[node] + max(Fraction(1, 2), abs(self._inherited[node])) / weight[child]
        unread = [abs(error) for error, ratio in zip(self._errors, self._ratios, strict=True) if not ratio]
        return max([weight[leaf] * per_weight[leaf] for leaf in weight if leaf < 0] + unread)

    def locate(self, positions: Integers) -> tuple[Integers, Integers]:
        source = np.zeros(positions.size, dtype=np.int64)
        j = positions.copy()
        if self._root < 0:
            source[:] = ~self._root
            return source, j
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
        return source, j

    def _split(self, node: Integers, visits: Integers) -> tuple[Integers, Integers]:
        """What the first child has got after `visits` visits of `node`, and after one more."""
        a, b, c = self._a[node], self._b[node], self._c[node]
        # visits = q b + r, and of every b visits exactly a go to the first child: products stay below a b + c.
        q, r = np.divmod(visits, b)
        before = a * q + (a * r + c) // b
        after = a * q + (a * (r + 1) + c) // b
        if self._is_cut:
            before, after = np.clip(before, 0, visits), np.clip(after, 0, visits + 1)
        if self._is_big.any():
            for i in np.flatnonzero(self._is_big[node]):
                m = int(visits[i])
                before[i] = self._first_count(int(node[i]), m)
                after[i] = self._first_count(int(node[i]), m + 1)
        return before, after

    def _first_count(self, node: int, visits: int) -> int:
        a, b, c = self._splits[node]
        return min(max((a * visits + c) // b, 0), visits)

    def counts(self, first_k: int) -> list[int]:
        """Of the first `first_k` positions, by source."""
        counts = [0] * self._num_sources
        visits = {self._root: first_k}
        for node, (first, second) in enumerate(self._children):
            visits[first] = self._first_count(node, visits[node])
            visits[second] = visits[node] - visits[first]
        for node, count in visits.items():
            if node < 0:
                counts[~node] = count
        return counts

    def position(self, source: int, j: int) -> int | None:
        """The inverse of `locate`; None for a source of ratio 0."""
        if not self._ratios[source]:
            return None
        node, visit = ~source, j
        while node != self._root:
            parent = self._parent[node]
            a, b, c = self._splits[parent]
            # The smallest number of visits that gives the child visit + 1 of them; the visit itself is the one before.
            if node == self._children[parent][0]:
                num_visits = -((c - b * (visit + 1)) // a)
            else:
                num_visits = (b * visit + c) // (b - a) + 1
            visit = max(num_visits, visit + 1) - 1
            node = parent
        return visit


def as_course(course: Course | Mixture | Mapping[str, Ratio]) -> Course:
    """The course of what a schedule is asked to follow."""
    if isinstance(course, Course):
        return course
    return (course if isinstance(course, Mixture) else Mixture(course)).course()


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def ranks_by_name(names: Sequence[str]) -> list[int]:
    """Rank of each source by name: decides between equals, so that the listing's order has no influence."""
    ranks = [0] * len(names)
    for rank, i in enumerate(sorted(range(len(names)), key=lambda i: names[i])):
        ranks[i] = rank
    return ranks


def validate_positions(k: npt.ArrayLike, end: int | None = None) -> Integers:
    """`k` as int64; ValueError for what is no array of positions in [0, MAX_POSITION], or [0, end)."""
    positions: npt.NDArray[Any] = np.asarray(k)
    if positions.size == 0:
        return positions.astype(np.int64)
    if positions.dtype == object:
        if not all(isinstance(x, int) for x in positions.flat):
            raise ValueError(f"positions are integers, got {k!r}")
    elif positions.dtype.kind not in "iu":
        raise ValueError(f"positions are integers, got {positions.dtype}")
    smallest, largest = int(positions.min()), int(positions.max())
    last = MAX_POSITION if end is None else min(MAX_POSITION, end - 1)
    if smallest < 0 or largest > last:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(f"no position {wrong:,}; positions are 0 to {last:,}")
    return positions.astype(np.int64)
