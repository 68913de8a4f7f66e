"""A batch as the loader hands it on: one block of token ids, and where each row came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED_LABEL = -100
"""The label that torch's cross entropy, and every loss of this library, leaves out."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of this rank: sequences in rows."""

    block: npt.NDArray[np.int32]
    """Token ids, `[batch, seq_len + 1]`: move this one to the device and slice it there."""
    source: npt.NDArray[np.int64]
    """Index of each row's source, in the order of the mixture, `[batch]`."""
    position: npt.NDArray[np.int64]
    """Global sequence position of each row, `[batch]`."""
    seq_len: int
    """Tokens predicted per row."""
    document: npt.NDArray[np.int32] | None = None
    """With `document_boundaries`: which document of its row each input token belongs to, `[batch, seq_len]`, from 0."""
    scored: npt.NDArray[np.bool_] | None = None
    """Which labels count in the loss, `[batch, seq_len]`, where a source of the mixture says so (`is_masked`); None:
    all do."""
    tensor: Any = None
    """With `pin_memory`: the torch tensor in page-locked memory whose view `block` is."""

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Inputs `[batch, seq_len]`: a view of `block`."""
        return self.block[:, : self.seq_len]

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The token after each input, `[batch, seq_len]`: a view of `block`, one column on. Those that are not `scored`
        too: `scored_labels` leaves them out."""
        return self.view(1)

    @property
    def scored_labels(self) -> npt.NDArray[np.int32]:
        """`labels`, with IGNORED_LABEL where they do not count in the loss; the view itself where all do."""
        return self.labels if self.scored is None else np.where(self.scored, self.labels, np.int32(IGNORED_LABEL))

    def view(self, offset: int) -> npt.NDArray[np.int32]:
        """The token `offset` places after each input, `[batch, seq_len]`, for 0 <= offset < n_views: a view."""
        if not 0 <= offset <= self.block.shape[1] - self.seq_len:
            raise ValueError(
                f"no view {offset} of a block of {self.block.shape[1]} columns and {self.seq_len} inputs; "
                "n_views of the loader is the number of views"
            )
        return self.block[:, offset : offset + self.seq_len]

    def cu_seqlens(self) -> npt.NDArray[np.int32]:
        """Where documents begin in the inputs laid end to end, and their total length: int32, from 0.

        What variable-length attention takes; a row's first document may have begun before it. Needs the loader's
        `document_boundaries`.
        """
        if self.document is None:
            raise ValueError("the batch knows no documents; give the loader document_boundaries=True")
        begins = np.ones(self.document.shape, dtype=bool)
        begins[:, 1:] = self.document[:, 1:] != self.document[:, :-1]
        return np.append(np.flatnonzero(begins), self.document.size).astype(np.int32)

    def to_torch(self, device: Any = "cpu") -> Any:
        """`block` as an int32 torch tensor on `device`: one copy of everything; slice tokens and labels there.

        From pinned memory the copy runs beside the computation (`non_blocking`). On the CPU it shares memory.
        """
        import torch

        block = torch.from_numpy(self.block) if self.tensor is None else self.tensor
        return block.to(device, non_blocking=True)
