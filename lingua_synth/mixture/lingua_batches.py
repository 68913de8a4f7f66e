"""Batches as Meta Lingua's training loop takes them: `(array, state)`, one after the other.

Its loop calls `next(data_loader)` for a pair, keeps the state in its TrainState, and saves that as JSON beside its
checkpoints, at the end of a step or, when preempted, between two accumulation steps. So every state must be good after
the batch it came with, and it must be small: here it is a position and what identifies the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.mixture.cursor import resume, state_at
from lingua_synth.mixture.loader import MixtureLoader

LinguaBatch = tuple[npt.NDArray[np.int64], dict[str, Any]]


@contextmanager
def lingua_batches(loader: MixtureLoader, state: Mapping[str, Any] | None = None) -> Iterator[Iterator[LinguaBatch]]:
    """Context manager around an iterator of `(array, state)`, as Lingua's `build_dataloader_from_args` returns one.

    array: int64 `[batch_size, seq_len, n_views]`, contiguous; `array[:, :, v]` is the token v places after the input,
    so view 0 is the input and view 1 the labels. state: plain data for JSON, under 1 kB up to about ten sources. Going
    on from the state that came with a batch yields the batch after it: after any batch, also inside a global batch
    (where `dp_size` and `global_batch_size` must stay; between two they may change, see `cursor.resume`).

    The first state of a run is `loader.state_dict()`, or None: then the iterator goes on where `loader` stands.
    `loader` is moved along, and reads ahead if it was made with `prefetch`. The iterator ends where the loader does:
    give it `num_sequences` for the steps that Lingua will make (steps x grad_acc_steps x batch_size x dp_size), or
    none at all. `global_batch_size` is best that of Lingua's step, batch_size x dp_size x grad_acc_steps.

    Raises ValueError on entering for a state of another stream, as `MixtureLoader.load_state_dict` does, and for
    sources of conversations: Lingua's loss is the mean over all labels of a micro-batch.
    """
    if loader.is_masked:
        raise ValueError(
            "a source says which of its tokens are scored (the answers of conversations), and Meta Lingua's loop "
            "scores every token; train on it with host=native"
        )
    given = 0 if state is None else resume(loader, state)
    batches = _pairs(loader, given)
    try:
        yield batches
    finally:
        batches.close()


def _pairs(loader: MixtureLoader, given: int) -> Any:
    for _ in range(given):
        next(loader)
    for batch in loader:
        views = np.lib.stride_tricks.sliding_window_view(batch.block, loader.n_views, axis=1)
        yield np.array(views, dtype=np.int64, order="C"), state_at(loader, loader.position, loader.micro_batch)
