"""The strict schedule: as close to the ratios as any schedule can be, on every prefix.

R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980): n states send a chairman in turn, in
proportion to their weights; there is an order in which no state is ever off its share by more than 1 - 1/(2n - 2),
and no smaller number will do for all weights. His rule: of the states that may have the next turn without running
ahead of that bound, take the one that would be the first to fall behind it.

Weights are p_i / Q in integers. Turns count from 1; a source that has had c sequences is due from the first turn t
with p_i t / Q - c >= 1/(2n-2), and late after the first with p_i t / Q - c > 1 - 1/(2n-2). Some source is always due:
the p_i t / Q - c sum to 1 before turn t, and n/(2n-2) <= 1. That earliest deadline first is never late is the theorem.

The order is decided one position after the other. After Q positions all counts are p_i and it repeats; counters
are kept every so often, so a position is found again in at most SNAPSHOT_EVERY steps. The first way to a position k
takes k steps, at most Q, of about 2 us.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lingua_synth.mixture.ratios import Mixture, Ratio
from lingua_synth.mixture.schedule import Schedule, validate_positions

SNAPSHOT_EVERY = 1 << 16

SCHEDULES = ("tree", "strict")


class StrictSchedule:
    """Position -> (source, j-th sequence of that source) by Tijdeman's rule; the interface of `Schedule`.

    For every k, the number of sequences of source i among the first k differs from `ratio_i * k` by at most `bound` =
    1 - 1/(2n - 2) for n sources with a ratio above 0. Choose it where the last half sequence matters; it is slower to
    reach a far position for the first time than `Schedule`: see the module.
    """

    def __init__(self, mixture: Mixture | Mapping[str, Ratio]) -> None:
        self.mixture = mixture if isinstance(mixture, Mixture) else Mixture(mixture)
        ratios = list(self.mixture.ratios.values())
        self.num_sources = len(ratios)
        self.period = math.lcm(*(ratio.denominator for ratio in ratios))
        """Positions after which the sequence of sources repeats."""
        self._weights = [int(ratio * self.period) for ratio in ratios]
        # Rank by name decides between equal deadlines, so that the listing's order has no influence.
        by_name = sorted(range(self.num_sources), key=lambda i: self.mixture.names[i])
        self._ranks = [by_name.index(i) for i in range(self.num_sources)]
        num_read = sum(1 for weight in self._weights if weight)
        self._m = 2 * num_read - 2 if num_read > 1 else 0
        self.bound = Fraction(self._m - 1, self._m) if self._m else Fraction(0)
        """Most that any source's count can differ from its share, on any prefix, in sequences."""
        self._snapshots = [[0] * self.num_sources]  # counts at 0, SNAPSHOT_EVERY, 2 SNAPSHOT_EVERY, ... of one period
        self._run = _Run(self, 0, [0] * self.num_sources)
        self._lock = threading.Lock()  # a prefetching thread locates while the trainer counts

    def __repr__(self) -> str:
        return f"StrictSchedule({self.mixture!r}, bound {float(self.bound):.3f} sequences)"

    def locate(self, k: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(source index, j) for each position of the integer array `k`, as `Schedule.locate`.

        Walks from the smallest position to the largest: ask for stretches, not for far-apart positions.
        """
        positions = validate_positions(k)
        if positions.size == 0:
            return positions, positions.copy()
        start, stop = int(positions.min()), int(positions.max()) + 1
        with self._lock:
            before = self._counts(start)
            source = np.array(self._advance(stop - start), dtype=np.int64)
        j = np.empty_like(source)
        for i in np.unique(source):
            served = source == i
            j[served] = before[i] + np.arange(np.count_nonzero(served))
        return source[positions - start], j[positions - start]

    def counts(self, k: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Sequences of each source among the first `k` positions, as `Schedule.counts`."""
        positions = validate_positions(k)
        with self._lock:
            rows = {position: self._counts(position) for position in sorted(set(positions.ravel().tolist()))}
        counts = np.array([rows[position] for position in positions.ravel().tolist()], dtype=np.int64)
        return counts.reshape(*positions.shape, self.num_sources)

    def position(self, source: int, j: int) -> int | None:
        """The position that reads sequence `j` of source index `source`; None for a source of ratio 0."""
        if not 0 <= source < self.num_sources or j < 0:
            raise ValueError(f"no sequence {j} of source index {source}; there are {self.num_sources} sources")
        weight = self._weights[source]
        if not weight:
            return None
        if not self._m:
            return int(j)
        periods, left = divmod(int(j), weight)
        # A sequence is read between its due position and its deadline: that is Tijdeman's theorem.
        first, last = self._due(source, left) - 1, self._deadline(source, left) - 1
        with self._lock:
            before = self._counts(first)[source]
            served = [i for i, which in enumerate(self._advance(last + 1 - first)) if which == source]
        return periods * self.period + first + served[left - before]

    def _due(self, i: int, count: int) -> int:
        return -(-self.period * (1 + self._m * count) // (self._m * self._weights[i]))

    def _deadline(self, i: int, count: int) -> int:
        return self.period * (self._m * count + self._m - 1) // (self._m * self._weights[i]) + 1

    def _counts(self, position: int) -> list[int]:
        """Counts among the first `position`; leaves the run standing there."""
        periods, rest = divmod(position, self.period)
        nearest = min(rest // SNAPSHOT_EVERY, len(self._snapshots) - 1)
        steps = rest - nearest * SNAPSHOT_EVERY
        if not 0 <= position - self._run.position <= steps:
            counts = [count + periods * p for count, p in zip(self._snapshots[nearest], self._weights, strict=True)]
            self._run = _Run(self, position - steps, counts)
        while self._run.position < position:
            self._advance(min(SNAPSHOT_EVERY, position - self._run.position))
        return list(self._run.counts)

    def _advance(self, num_positions: int) -> list[int]:
        """Source indices of the run's next positions; keeps the counts where a snapshot is due."""
        taken: list[int] = []
        while len(taken) < num_positions:
            rest = self._run.position % self.period
            to_boundary = min(SNAPSHOT_EVERY - rest % SNAPSHOT_EVERY, self.period - rest)
            taken += self._run.take(min(num_positions - len(taken), to_boundary))
            periods, rest = divmod(self._run.position, self.period)
            if rest == len(self._snapshots) * SNAPSHOT_EVERY:
                counts = [count - periods * p for count, p in zip(self._run.counts, self._weights, strict=True)]
                self._snapshots.append(counts)
        return taken


class _Run:
    """Tijdeman's rule from a position and its counts onwards."""

    def __init__(self, schedule: StrictSchedule, position: int, counts: list[int]) -> None:
        self.position = position
        self.counts = list(counts)
        self._schedule = schedule
        read = [i for i, weight in enumerate(schedule._weights) if weight]
        self._only = read[0] if len(read) == 1 else None
        self._ready: list[tuple[int, int, int]] = []
        self._waiting = [] if len(read) == 1 else [(schedule._due(i, counts[i]), i) for i in read]
        heapq.heapify(self._waiting)

    def take(self, num_positions: int) -> list[int]:
        """Source indices of the next positions."""
        if self._only is not None:
            self.position += num_positions
            self.counts[self._only] += num_positions
            return [self._only] * num_positions
        taken = []
        schedule, waiting, ready, counts = self._schedule, self._waiting, self._ready, self.counts
        for turn in range(self.position + 1, self.position + num_positions + 1):
            while waiting and waiting[0][0] <= turn:
                i = heapq.heappop(waiting)[1]
                heapq.heappush(ready, (schedule._deadline(i, counts[i]), schedule._ranks[i], i))
            assert ready and ready[0][0] >= turn, "Tijdeman: some source is due, and none is late"
            i = heapq.heappop(ready)[2]
            counts[i] += 1
            heapq.heappush(waiting, (schedule._due(i, counts[i]), i))
            taken.append(i)
        self.position += num_positions
        return taken


def build_schedule(mixture: Mixture | Mapping[str, Ratio], kind: str = "tree") -> Schedule | StrictSchedule:
    """The schedule by name: "tree" (`Schedule`, the default) or "strict". ValueError for another name."""
    if kind == "tree":
        return Schedule(mixture)
    if kind == "strict":
        return StrictSchedule(mixture)
    raise ValueError(f"no schedule {kind!r}; there are: {', '.join(SCHEDULES)}")
