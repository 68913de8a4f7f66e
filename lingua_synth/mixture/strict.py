"""The strict schedule: as close to the ratios as any schedule can be, on every prefix, also while the ratios change.

R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980): n states send a chairman in turn, in
proportion to weights that may change with every turn; there is an order in which no state is ever off its share by more
than 1 - 1/(2n - 2), and no smaller number will do for all weights. His rule: of the states that may have the next turn
without running ahead of that bound, take the one that would be the first to fall behind it.

Turns count from 1; W_i(t) is the exact target of source i after t turns (the integral of its ratio). A source that
has had c sequences is due from the first turn t with W_i(t) - c >= 1/(2n-2), and late after the first with
W_i(t) - c > 1 - 1/(2n-2). Some source is always due: the W_i(t) - c_i sum to 1 before turn t, and n/(2n-2) <= 1. That
earliest deadline first is never late is the theorem.

The order is decided one position after the other, about 2 us each; the n counters are its state. While the ratios
stay, it repeats after Q positions, their common denominator, once a period has brought all errors back to what they
were; whole periods are then passed at once. Counters are kept every SNAPSHOT_EVERY steps, and a saved state carries
its own, so that a position is found again without the way there.
"""

from __future__ import annotations

import heapq
import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lingua_synth.mixture.course import Course
from lingua_synth.mixture.mixture import Mixture
from lingua_synth.mixture.ratios import Ratio
from lingua_synth.mixture.schedule import Schedule, as_course, ranks_by_name, validate_positions

SNAPSHOT_EVERY = 1 << 16

SCHEDULES = ("tree", "strict")


class StrictSchedule:
    """Position -> (source, j-th sequence of that source) by Tijdeman's rule; the interface of `Schedule`.

    For every k, the number of sequences of source i among the first k differs from its target by at most `bound` =
    1 - 1/(2n - 2) for n sources that are read at some time, however the ratios change. Choose it where the last half
    sequence matters; it is slower to reach a far position for the first time than `Schedule`: see the module.
    """

    def __init__(self, course: Course | Mixture | Mapping[str, Ratio]) -> None:
        self.course = as_course(course)
        self.names = self.course.names
        self.num_sources = len(self.names)
        pieces = self.course.pieces
        self._starts = [piece.start for piece in pieces]
        self._common = math.lcm(*(ratio.denominator for piece in pieces for ratio in piece.ratios))
        self._weights = [[int(piece.ratios[i] * self._common) for piece in pieces] for i in range(self.num_sources)]
        self.period = self._common if len(pieces) == 1 else None
        """Positions after which the sequence of sources repeats; None where the ratios change."""
        self._periods = [math.lcm(*(ratio.denominator for ratio in piece.ratios)) for piece in pieces]
        # By piece: the position from which it repeats, and what each source gains in a period; found while walking.
        self._cycles: dict[int, tuple[int, list[int]]] = {}
        if self.period:
            self._cycles[0] = (0, [weights[0] for weights in self._weights])
        self._ranks = ranks_by_name(self.names)
        num_read = len(self.course.read)
        self._m = 2 * num_read - 2 if num_read > 1 else 0
        self.bound = Fraction(self._m - 1, self._m) if self._m else Fraction(0)
        """Most that any source's count can differ from its target, on any prefix, in sequences."""
        # Targets at the start of each piece, in units that make every threshold of the rule a whole number.
        unit = self._m * self._common
        targets = [self.course.target(piece.start) for piece in pieces]
        self._bases = [[int(target[i] * unit) for target in targets] for i in range(self.num_sources)]
        self._snapshots: list[tuple[int, list[int]]] = [(0, [0] * self.num_sources)]  # by position
        self._run = _Run(self, 0, [0] * self.num_sources)
        self._lock = threading.Lock()  # a prefetching thread locates while the trainer counts

    def __repr__(self) -> str:
        return f"StrictSchedule({self.course!r}, bound {float(self.bound):.3f} sequences)"

    def locate(self, k: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(source index, j) for each position of the integer array `k`, as `Schedule.locate`.

        Walks from the smallest position to the largest: ask for stretches, not for far-apart positions.
        """
        positions = validate_positions(k, self.course.end)
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
        positions = validate_positions(k, None if self.course.end is None else self.course.end + 1)
        with self._lock:
            rows = {position: self._counts(position) for position in sorted(set(positions.ravel().tolist()))}
        counts = np.array([rows[position] for position in positions.ravel().tolist()], dtype=np.int64)
        return counts.reshape(*positions.shape, self.num_sources)

    def position(self, source: int, j: int) -> int | None:
        """The position that reads sequence `j` of source index `source`; None where there is none."""
        if not 0 <= source < self.num_sources or j < 0:
            raise ValueError(f"no sequence {j} of source index {source}; there are {self.num_sources} sources")
        j = int(j)
        if not self._m:
            is_read = any(self._weights[source]) and (self.course.end is None or j < self.course.end)
            return j if is_read else None
        periods, left = 0, j
        if self.period and self._weights[source][0]:
            periods, left = divmod(j, self._weights[source][0])
        # A sequence is read between its due position and its deadline: that is Tijdeman's theorem.
        due, deadline = self._due(source, left), self._deadline(source, left)
        if due is None:
            return None
        # A source whose ratio falls to 0 just there has no deadline: it takes a turn soon that no other needs, or none.
        last = (deadline or due + SNAPSHOT_EVERY) - 1
        if self.course.end is not None:
            last = min(last, self.course.end - 1)
        if last < due - 1:
            return None
        with self._lock:
            before = self._counts(due - 1)[source]
            served = [i for i, which in enumerate(self._advance(last + 2 - due)) if which == source]
        if left - before >= len(served):
            return None
        return periods * (self.period or 0) + due - 1 + served[left - before]

    def remember(self, position: int, counts: Sequence[int]) -> None:
        """Take `counts` of a saved state for the counts at `position`, so that nothing before it is walked again.

        Raises ValueError for counts that this schedule cannot have there.
        """
        targets = self.course.target(position)
        fits = len(counts) == self.num_sources and sum(counts) == position
        if not fits or any(abs(c - target) > self.bound for c, target in zip(counts, targets, strict=True)):
            raise ValueError(
                f"the state's counters {list(counts)} are not those of this mixture at position {position:,}: "
                "the state was edited, or is of another mixture"
            )
        with self._lock:
            first, times, gained = self._fold(position)
            self._keep(first, [int(c) - times * more for c, more in zip(counts, gained, strict=True)])

    def _due(self, i: int, count: int) -> int | None:
        """First turn t with W_i(t) - count >= 1 / m; None: never."""
        target = self._common * (self._m * count + 1)
        p = bisect_left(self._bases[i], target) - 1
        weight = self._m * self._weights[i][p]
        return self._starts[p] - (self._bases[i][p] - target) // weight if weight else None

    def _deadline(self, i: int, count: int) -> int | None:
        """First turn t with W_i(t) - count > 1 - 1 / m; None: never."""
        target = self._common * (self._m * count + self._m - 1)
        p = bisect_right(self._bases[i], target) - 1
        weight = self._m * self._weights[i][p]
        return self._starts[p] + (target - self._bases[i][p]) // weight + 1 if weight else None

    # --- walking ---

    def _counts(self, position: int) -> list[int]:
        """Counts among the first `position`; leaves the run standing there."""
        start, counts = self._nearest(position)
        if not start <= self._run.position <= position:
            self._run = _Run(self, start, counts)
        while (here := self._run.position) < position:
            p = bisect_right(self._starts, here) - 1
            piece_end = self._starts[p + 1] if p + 1 < len(self._starts) else None
            cycle, period = self._cycles.get(p), self._periods[p]
            # Deadlines of the last periods of a piece may lie in the next one, where targets rise otherwise.
            far = position if piece_end is None else min(position, piece_end - 2 * period)
            if cycle is not None and far - here >= period and here >= cycle[0]:
                times = (far - here) // period
                shifted = [count + times * more for count, more in zip(self._run.counts, cycle[1], strict=True)]
                self._run = _Run(self, here + times * period, shifted)
            elif cycle is None and far - here >= 2 * period:
                before = list(self._run.counts)
                self._advance(period)
                gained = [count - less for count, less in zip(self._run.counts, before, strict=True)]
                if gained == [weights[p] * period // self._common for weights in self._weights]:
                    self._cycles[p] = (here, gained)  # all errors are what they were: it repeats
            else:
                self._advance(min(SNAPSHOT_EVERY, position - here, (piece_end or position) - here))
        return list(self._run.counts)

    def _nearest(self, position: int) -> tuple[int, list[int]]:
        """The nearest position before `position` whose counts are known, and those."""
        first, times, gained = self._fold(position)
        index = bisect_right(self._snapshots, first, key=lambda snapshot: snapshot[0]) - 1
        known, counts = self._snapshots[index]
        p = bisect_right(self._starts, position) - 1
        if times and known < self._cycles[p][0]:  # nothing is kept inside the period
            return known, counts
        shift = times * self._periods[p]
        return known + shift, [count + times * more for count, more in zip(counts, gained, strict=True)]

    def _fold(self, position: int) -> tuple[int, int, list[int]]:
        """The place of `position` in its piece's first period, how many periods later it is, what a period gives."""
        p = bisect_right(self._starts, position) - 1
        cycle, period = self._cycles.get(p), self._periods[p]
        is_last = p + 1 == len(self._starts)
        if cycle is None or position < cycle[0] or not (is_last or position <= self._starts[p + 1] - 2 * period):
            return position, 0, [0] * self.num_sources
        times, rest = divmod(position - cycle[0], period)
        return cycle[0] + rest, times, cycle[1]

    def _advance(self, num_positions: int) -> list[int]:
        """Source indices of the run's next positions; keeps the counts every SNAPSHOT_EVERY."""
        taken: list[int] = []
        while len(taken) < num_positions:
            to_boundary = SNAPSHOT_EVERY - self._run.position % SNAPSHOT_EVERY
            taken += self._run.take(min(num_positions - len(taken), to_boundary))
            if self._run.position % SNAPSHOT_EVERY == 0:
                first, times, gained = self._fold(self._run.position)
                self._keep(first, [c - times * more for c, more in zip(self._run.counts, gained, strict=True)])
        return taken

    def _keep(self, position: int, counts: list[int]) -> None:
        index = bisect_left(self._snapshots, position, key=lambda snapshot: snapshot[0])
        if index == len(self._snapshots) or self._snapshots[index][0] != position:
            self._snapshots.insert(index, (position, counts))


class _Run:
    """Tijdeman's rule from a position and its counts onwards."""

    def __init__(self, schedule: StrictSchedule, position: int, counts: list[int]) -> None:
        self.position = position
        self.counts = list(counts)
        self._schedule = schedule
        read = [i for i, weights in enumerate(schedule._weights) if any(weights)]
        self._only = read[0] if len(read) == 1 else None
        self._ready: list[tuple[float, int, int]] = []
        self._waiting: list[tuple[int, int]] = []
        if self._only is None:
            for i in read:
                self._wait(i)

    def _wait(self, i: int) -> None:
        """Source i waits for the turn its next sequence is due; one that is never due again is let go."""
        due = self._schedule._due(i, self.counts[i])
        if due is not None:
            heapq.heappush(self._waiting, (due, i))

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
                deadline = schedule._deadline(i, counts[i])
                # A target that comes to rest has no deadline any more: such a source takes a turn that nobody needs.
                heapq.heappush(ready, (math.inf if deadline is None else deadline, schedule._ranks[i], i))
            assert ready and ready[0][0] >= turn, "Tijdeman: some source is due, and none is late"
            i = heapq.heappop(ready)[2]
            counts[i] += 1
            self._wait(i)
            taken.append(i)
        self.position += num_positions
        return taken


def build_schedule(
    course: Course | Mixture | Mapping[str, Ratio], kind: str = "tree", like: Schedule | StrictSchedule | None = None
) -> Schedule | StrictSchedule:
    """The schedule by name: "tree" (`Schedule`, the default) or "strict" (`StrictSchedule`, a tighter bound).

    `like`: a schedule of a course with the same beginning, whose work is taken over where it can be. ValueError for
    another name.
    """
    if kind == "tree":
        return Schedule(course, like if isinstance(like, Schedule) else None)
    if kind == "strict":
        return StrictSchedule(course)
    raise ValueError(f"no schedule {kind!r}; there are: {', '.join(SCHEDULES)}")
