"""From positions to batches: finds each position's window and copies its tokens into one block.

The reader knows nothing of where a loader stands. Its batches are a pure function of their index, so a thread may run
ahead with it, and any batch can be asked for at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.mixture.batch import Batch
from lingua_synth.mixture.order import GlobalOrder

# Sequences located in one sweep: numpy's overhead per call is spread over them; a sweep takes about 2 ms.
SEQUENCES_AHEAD = 1024


@dataclass(frozen=True)
class Reader:
    """This rank's batches of the global order, by index or one after the other."""

    order: GlobalOrder
    windows: Sequence[Callable[[int, int], npt.NDArray[Any]]]
    """`window(start, length)` of each source, by index."""
    documents: Sequence[Callable[[int, int], npt.NDArray[Any]]] | None
    """`document_starts(start, length)` of each source, by index; None: batches carry no document boundaries."""
    scored: Sequence[Callable[[int, int], npt.NDArray[np.bool_]] | None] | None
    """`scored(start, length)` of each source by index, None for one whose tokens all count; None: no source has one."""
    seq_len: int
    n_views: int
    """Tokens of a row: seq_len + n_views - 1."""
    batch_size: int
    global_batch_size: int
    first_slot: int
    """This rank's slots of every global batch: the first of them, and how many."""
    num_slots: int
    slot_permutation: bool
    pin_memory: bool
    end: int
    """Position that no global batch may exceed."""

    @property
    def micro_batches(self) -> int:
        """Batches of this rank in one global batch."""
        return self.num_slots // self.batch_size

    def batches(self, position: int) -> Iterator[Batch]:
        """This rank's batches from the global batch at `position` on."""
        while (num_left := (self.end - position) // self.global_batch_size) > 0:
            num_batches = min(max(1, SEQUENCES_AHEAD // self.num_slots), num_left)
            positions = self._positions(position, num_batches)
            source, _, window = self.order.locate(positions)
            for first in range(0, len(positions), self.batch_size):
                rows = slice(first, first + self.batch_size)
                yield self._read(positions[rows].copy(), source[rows].copy(), window[rows])
            position += num_batches * self.global_batch_size

    def batch_at(self, position: int, micro_batch: int) -> Batch:
        """This rank's batch number `micro_batch` of the global batch at `position`."""
        rows = slice(micro_batch * self.batch_size, (micro_batch + 1) * self.batch_size)
        positions = self._positions(position, 1)[rows]
        source, _, window = self.order.locate(positions)
        return self._read(positions.copy(), source, window)

    def _positions(self, position: int, num_batches: int) -> npt.NDArray[np.int64]:
        size, first = self.global_batch_size, self.first_slot
        return self.order.slots(position, num_batches, size, first, self.num_slots, self.slot_permutation).ravel()

    def _read(
        self, positions: npt.NDArray[np.int64], source: npt.NDArray[np.int64], window: npt.NDArray[np.int64]
    ) -> Batch:
        block, tensor = self._allocate((len(positions), self.seq_len + self.n_views - 1))
        document = None
        if self.documents is not None:
            document = np.zeros((len(positions), self.seq_len), dtype=np.int32)
        scored = None if self.scored is None else np.ones((len(positions), self.seq_len), dtype=bool)
        for row, (i, start) in enumerate(zip(source.tolist(), (window * self.seq_len).tolist(), strict=True)):
            block[row] = self.windows[i](start, self.seq_len + self.n_views - 1)
            if document is not None and self.documents is not None:
                document[row, self.documents[i](start + 1, self.seq_len - 1) + 1] = 1
            if scored is not None and self.scored is not None and (scored_of := self.scored[i]) is not None:
                scored[row] = scored_of(start + 1, self.seq_len)  # of the labels
        if document is not None:
            np.cumsum(document, axis=1, out=document)
        return Batch(block, source, positions, self.seq_len, document, scored, tensor)

    def _allocate(self, shape: tuple[int, int]) -> tuple[npt.NDArray[np.int32], Any]:
        if not self.pin_memory:
            return np.empty(shape, dtype=np.int32), None
        import torch

        # torch keeps page-locked memory for reuse, and knows when a copy from it to a device is done.
        tensor = torch.empty(shape, dtype=torch.int32, pin_memory=True)
        return tensor.numpy(), tensor
