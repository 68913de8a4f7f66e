"""The mixture as a torch dataset, for `DataLoader`, torchdata's `StatefulDataLoader` and trainers built on them.

One dataset is one rank's stream, and each item is a whole batch: use it with `batch_size=None`. Worker w of W reads
batches w, w + W, w + 2 W ... and the DataLoader takes them in turn, so the stream is the same for any number of
workers. Without workers is fastest: a batch is read in less time than it takes to pass one between processes.
This module needs torch; the package does not import it for you.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from lingua_synth.mixture.batch import Batch
from lingua_synth.mixture.cursor import micro_batches, num_batches_from, read_batches, resume, slices, state_at
from lingua_synth.mixture.loader import MixtureLoader
from lingua_synth.mixture.mixture import Mixture
from lingua_synth.mixture.plan import TokenSourceLike
from lingua_synth.mixture.ratios import Ratio, validate_count
from lingua_synth.mixture.schedule import MAX_POSITION
from lingua_synth.mixture.sequences import portable_sources, reopen_sources

KEYS = ("tokens", "labels", "block", "source", "position", "document", "scored")
# What other loops do themselves: reading ahead in threads of a forked process, pinning in a worker.
NOT_HERE = {"prefetch": "num_workers and prefetch_factor", "pin_memory": "pin_memory"}


class MixtureDataset(IterableDataset[dict[str, torch.Tensor]]):
    """This rank's batches of the mixture, as dicts of tensors: `tokens` and `labels`, int32 `[batch_size, seq_len]`,
    `source` and `position`, int64 `[batch_size]`; with `document_boundaries`, `document`.

    Takes what `MixtureLoader` takes (`part` too) and promises the same stream. `keys` chooses other entries, e.g.
    `("block", "source")`: `block`, int32 `[batch_size, seq_len + n_views - 1]`, is the one storage that `tokens` and
    `labels` are views of. Labels are the tokens that follow (models of Hugging Face shift labels themselves: give them
    `tokens`). Where a source holds conversations, labels that do not count are -100, in a tensor of their own,
    and `scored`, bool `[batch_size, seq_len]`, tells which do.

    `dp_rank` and `dp_size` are arguments, as for `MixtureLoader`; no process group and no environment is asked. Give
    each data-parallel rank a dataset of its own, and let no sampler or trainer split it again.

    Each `iter` begins at the first batch, or once, the next time, at a state that was loaded. Worker processes get
    the dataset by fork or by pickle; token shards are opened there again.

    Raises ValueError as `MixtureLoader` does, and for prefetch and pin_memory, which are the DataLoader's business.
    """

    def __init__(
        self,
        sources: Mapping[str, TokenSourceLike],
        mixture: Mixture | Mapping[str, Ratio],
        *,
        keys: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        for name, instead in NOT_HERE.items():
            if settings.pop(name, 0):
                raise ValueError(f"a torch dataset does not take {name}; give the DataLoader {instead}")
        with_document = bool(settings.get("document_boundaries"))
        if keys is None:
            keys = ["tokens", "labels", "source", "position", *(["document"] if with_document else [])]
        unknown = [key for key in keys if key not in KEYS]
        if unknown or ("document" in keys and not with_document):
            raise ValueError(f"no keys {unknown or ['document']}; there are {KEYS}, document with document_boundaries")
        self._keys = tuple(keys)
        self._sources = dict(sources)
        self._mixture = mixture if isinstance(mixture, Mixture) else Mixture(mixture)
        self._settings = settings
        self._begin: dict[str, Any] | None = None
        self._is_loaded = False
        self._walk: _Walk | None = None
        # Seen by this process and its workers: whether workers are reading.
        self._read_by_workers = torch.zeros(1, dtype=torch.bool).share_memory_()
        loader = MixtureLoader(self._sources, self._mixture, **settings)
        if "scored" in self._keys and not loader.is_masked:
            raise ValueError("no key 'scored': every label of these sources counts")
        self.num_batches = loader.num_batches
        """Batches of this rank from position 0 to `num_sequences`; None without that."""

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError("the stream has no length: num_sequences was not given")
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if not self._is_loaded:
            self._begin = None
        self._is_loaded = False
        info = get_worker_info()
        self._read_by_workers.fill_(info is not None)
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        self._walk = walk = self._walk_from(self._begin, worker, num_workers)
        return (self._to_torch(batch) for batch in walk)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Plain data: where the latest iteration in this process stands, or the next one begins.

        In a worker process it is that worker's alone, and `StatefulDataLoader` collects them; `portable_state` makes
        one state of them. Otherwise it is a state for `load_state_dict` here, and, between global batches, of
        `MixtureLoader`. Raises ValueError where it cannot know, because workers read and this process does not.
        """
        if get_worker_info() is None and self._read_by_workers.item():
            raise ValueError(
                "worker processes are reading this dataset, so it cannot tell here where they are; take the state of a "
                "torchdata StatefulDataLoader, or state_after(num_batches) with the number of batches received"
            )
        return self.state_after(0) if self._walk is None else self._walk.state_dict()

    def state_after(self, num_batches: int) -> dict[str, Any]:
        """The state after `num_batches` batches of this rank, counted from where its iteration begins (a loaded state
        or the first batch): for loops that count for themselves. Costs the same for any number.

        Raises ValueError for more batches than there are.
        """
        walk = self._walk_from(self._begin, 0, 1)
        walk.next_batch += validate_count("num_batches", num_batches)
        if walk.next_batch > walk.end:
            raise ValueError(f"the stream has no {num_batches:,} batches from where the iteration begins")
        return walk.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `iter` begins at the state, by the rules of `MixtureLoader.load_state_dict`.

        Another number of workers goes on in the same order: `load_state_dict(portable_state(saved))`, then a new
        DataLoader. So does another dp_size, batch_size or global_batch_size, except inside a global batch, where all
        but the batch_size must stay; so does another mixture. Raises ValueError for a state of another stream, and
        for the state of one worker when it is not loaded by that worker, or any of these has changed.
        """
        info = get_worker_info()
        with _silenced(info is not None and info.id > 0):
            _Walk(self._loader(), state, *((0, 1) if info is None else (info.id, info.num_workers)))
        self._begin, self._is_loaded, self._walk = dict(state), True, None
        if info is None:
            self._read_by_workers.fill_(False)

    def _loader(self) -> MixtureLoader:
        return MixtureLoader(self._sources, self._mixture, **self._settings)

    def _walk_from(self, state: Mapping[str, Any] | None, worker: int, num_workers: int) -> _Walk:
        with _silenced(True):  # said when the dataset was made, and when the state was loaded
            return _Walk(self._loader(), state, worker, num_workers)

    def _to_torch(self, batch: Batch) -> dict[str, torch.Tensor]:
        block = torch.from_numpy(batch.block)
        made = {
            "tokens": block[:, : batch.seq_len],
            "labels": block[:, 1 : batch.seq_len + 1],
            "block": block,
            "source": torch.from_numpy(batch.source),
            "position": torch.from_numpy(batch.position),
        }
        if batch.scored is not None:
            made["scored"] = torch.from_numpy(batch.scored)
            made["labels"] = torch.from_numpy(batch.scored_labels)
        if batch.document is not None:
            made["document"] = torch.from_numpy(batch.document)
        return {key: made[key] for key in self._keys}

    def __getstate__(self) -> dict[str, Any]:
        # Of a running iteration nothing goes along: a copy begins anew.
        return {**vars(self), "_sources": portable_sources(self._sources), "_walk": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._sources = reopen_sources(state["_sources"])


class _Walk:
    """The batches of one worker among `num_workers`, from a state on.

    A state that names no worker is where the first of them begins; one that does is where that worker stands.
    """

    def __init__(self, loader: MixtureLoader, state: Mapping[str, Any] | None, worker: int, num_workers: int) -> None:
        self.loader = loader
        self._step = num_workers
        state = dict(state) if isinstance(state, Mapping) else state
        saved = state.pop("worker", None) if isinstance(state, dict) else None
        given = 0 if state is None else resume(loader, state)
        # Workers stand at different places of one cut of the stream: none of them can go on alone in another cut.
        self._worker = {"id": worker, "num_workers": num_workers, "batch_size": loader.batch_size}
        self._worker |= slices(loader, MAX_POSITION)
        ahead = worker if saved is None else _validate_worker(saved, self._worker)
        self._start = loader.position
        self.next_batch = given + ahead
        """Of this rank, counted from the beginning of the global batch at `_start`."""
        self.end = num_batches_from(loader, self._start)
        """Batches from there to the end of the stream."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in read_batches(self.loader, self._start, self.next_batch, self._step):
            self.next_batch += self._step
            yield batch

    def _where(self, batch: int) -> tuple[int, int]:
        """(position of the global batch, micro-batch in it)."""
        global_batch, micro_batch = divmod(batch, micro_batches(self.loader))
        return self._start + global_batch * self.loader.global_batch_size, micro_batch

    def state_dict(self) -> dict[str, Any]:
        # A worker's next batch may lie behind the end; how far, it must know should the run be made longer.
        within = min(self.next_batch, self.end)
        state = state_at(self.loader, *self._where(within))
        if self._step > 1:
            state["worker"] = self._worker | {"ahead": self.next_batch - within}
        return state


def _validate_worker(saved: Any, present: Mapping[str, Any]) -> int:
    """How far behind the end of the stream the worker of a saved state stands; ValueError if it is not `present`."""
    ahead = saved.get("ahead") if isinstance(saved, Mapping) else None
    if type(ahead) is not int or ahead < 0 or set(saved) != {"ahead", *present}:
        raise ValueError(f"no state of a worker: 'worker' should tell ahead, {', '.join(present)}; it is {saved!r}")
    different = [f"{key} was {saved[key]}, is {now}" for key, now in present.items() if saved[key] != now]
    if different:
        raise ValueError(
            f"the state is that of one worker among {saved['num_workers']}, and no such worker is here: "
            f"{', '.join(different)}. To go on so: dataset.load_state_dict(portable_state(saved)), and a new DataLoader"
        )
    return ahead


def portable_state(saved: Mapping[str, Any]) -> dict[str, Any]:
    """One state of the mixture out of a `StatefulDataLoader`'s, which is for its own number of workers alone.

    Good for `MixtureDataset.load_state_dict` with any number of workers, and between global batches for
    `MixtureLoader` and Lingua's loop too. It is where the worker stands whose turn is next, for workers take turns.
    Raises ValueError for other states, and for one that is older than the last batch: `StatefulDataLoader` keeps
    states every `snapshot_every_n_steps` batches only.
    """
    snapshot = saved.get("_snapshot")
    if snapshot is None:
        states = [saved.get("dataset_state")]
    else:
        behind = saved.get("_steps_since_snapshot", 0)
        if behind:
            raise ValueError(
                f"the state is {behind} batches older than the last one delivered; give the StatefulDataLoader "
                "snapshot_every_n_steps=1, or save at multiples of it"
            )
        states = [worker.get("dataset_state") for worker in snapshot.get("_worker_snapshots", {}).values()]
    found = [state for state in states if isinstance(state, Mapping) and "position" in state]
    if not found or len(found) < len(states):
        raise ValueError(
            f"no state of a StatefulDataLoader over a MixtureDataset: it has {', '.join(map(str, saved)) or 'nothing'}"
        )
    first = min(found, key=_order)
    return {key: value for key, value in first.items() if key != "worker"}


def _order(state: Mapping[str, Any]) -> tuple[int, int]:
    return state["position"], (state.get("given") or {}).get("sequences_per_rank", 0)


@contextmanager
def _silenced(is_silent: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        if is_silent:
            warnings.simplefilter("ignore")
        yield
