"""The global order: position -> (source, epoch, window), the same on every machine and for any number of readers.

position ──Schedule──> source, j ──> epoch = j // num_windows ──keyed permutation──> window of the source

A global batch is a run of positions. Its slots are shuffled by a key of its first position, so that the period of the
schedule falls on no rank or micro-batch again and again; which sequences it holds is not changed by that. Each
rank takes one contiguous slice of the slots.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lingua_synth.mixture.permutation import key_of, permute
from lingua_synth.mixture.schedule import Schedule
from lingua_synth.mixture.strict import StrictSchedule

Integers = npt.NDArray[np.int64]


class GlobalOrder:
    """Which window of which source each global position reads, given a schedule, window counts and a seed.

    `num_windows` maps each source of the schedule to its sequences per pass; a source with a ratio above 0
    needs at least one. In every epoch each window of a source comes exactly once, in a new order.
    """

    def __init__(
        self,
        schedule: Schedule | StrictSchedule,
        num_windows: Mapping[str, int],
        seed: int,
        all_windows: Mapping[str, int] | None = None,
    ) -> None:
        """`all_windows`: the windows of sources of which `num_windows` are read and the others never: a part drawn by
        the seed, in which a smaller one lies wholly inside a larger one. Sources that are not named are read whole."""
        names = schedule.names
        self.schedule = schedule
        self.seed = seed
        self._num_windows = np.array([num_windows[name] for name in names], dtype=np.int64)
        self._source_keys = np.array([key_of(seed, "windows", name) for name in names], dtype=np.uint64)
        self._slot_key = key_of(seed, "slots")
        whole = all_windows or {}
        self._is_part = np.array([name in whole for name in names])
        self._all_windows = np.array([whole.get(name, num_windows[name]) for name in names], dtype=np.int64)
        self._part_keys = np.array([key_of(seed, "part", name) for name in names], dtype=np.uint64)

    def locate(self, position: npt.ArrayLike) -> tuple[Integers, Integers, Integers]:
        """(source index, epoch, window) at each position, int64 of its shape; window w starts at token w * seq_len."""
        source, j = self.schedule.locate(position)
        num_windows = self._num_windows[source]
        assert bool((num_windows > 0).all()), "a source that is read has a window"
        epoch, index = np.divmod(j, num_windows)
        window = permute(index, num_windows, self._source_keys[source], epoch)
        if self._is_part.any() and (cut := self._is_part[source]).any():
            window = np.asarray(window)
            drawn = permute(window[cut], self._all_windows[source[cut]], self._part_keys[source[cut]])
            window[cut] = drawn
        return source, epoch, window

    def slots(
        self, start: int, num_batches: int, global_batch_size: int, first: int, count: int, shuffled: bool = True
    ) -> Integers:
        """Positions in the slots [first, first + count) of consecutive global batches: int64 `[num_batches, count]`.

        The batches begin at position `start` and follow each other. All slots of a batch together are its positions.
        """
        starts = start + global_batch_size * np.arange(num_batches, dtype=np.int64)[:, None]
        slots = np.arange(first, first + count, dtype=np.int64)[None, :]
        if shuffled:
            return starts + permute(slots, global_batch_size, self._slot_key, starts)
        return starts + slots
