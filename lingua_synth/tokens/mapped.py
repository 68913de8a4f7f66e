"""The files of a source, mapped when they are first read, and never more of them than a process may have.

A kernel gives a process so many mappings (`vm.max_map_count`, 65,530 where nobody raised it), and 10T tokens in files
of `shard_tokens=67_108_864` are 149,012 of them. So a file is mapped when a window of it is asked for; of all sources
of the process together the `MOST_OPEN` mapped last stay so, and windows that were given out stay readable. Whenever a
file is mapped, its size, layout, counts and vocabulary are compared with the manifest.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.tokens.shards import MANIFEST, TOKENIZER_KEY, shard_schema

MOST_OPEN = 16_384
"""Files that a process keeps mapped: a quarter of the kernel's limit, about 4 KB of memory each."""
# From so many on they are opened by threads: on a network file system each one waits for several answers.
MANY_FILES, NUM_THREADS = 256, 16

_opened: deque[tuple[weakref.ref[MappedFiles], int]] = deque()
"""What is mapped in this process, the oldest first; appending and taking are atomic, so no lock is needed."""


class MappedShard:
    """One mapped file, read-only: `tokens` of all documents one after the other; document i has those of
    `[offsets[i], offsets[i + 1])`, `num_bytes[i]` bytes of text and the id `ids[i]` (an Arrow scalar). Where it says
    which tokens are scored, the borders of document i's stretches are those of `scored` that `scored_offsets` name."""

    __slots__ = ("ids", "num_bytes", "num_documents", "offsets", "scored", "scored_offsets", "tokens")

    def __init__(self, batch: Any, masked: bool) -> None:
        column = batch.column("tokens")
        self.tokens: npt.NDArray[Any] = _view(column.values)
        self.offsets: npt.NDArray[np.int64] = _view(column.offsets)
        self.num_bytes: npt.NDArray[np.uint64] = _view(batch.column("num_bytes"))
        self.ids = batch.column("id")
        self.num_documents: int = batch.num_rows
        self.scored: npt.NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        self.scored_offsets: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        if masked:
            column = batch.column("scored")
            self.scored = _view(column.values)
            self.scored_offsets = _view(column.offsets)


def _view(column: Any) -> npt.NDArray[Any]:
    """The numbers of an Arrow array where they lie.

    `to_numpy` imports pandas where it is installed, and every rank of a training would start with that.
    """
    import pyarrow as pa

    if column.null_count:
        raise pa.ArrowInvalid(f"{column.null_count} numbers are missing")
    dtype = np.dtype(column.type.to_pandas_dtype())
    data = column.buffers()[1]
    if not len(column):
        return np.empty(0, dtype)
    return np.frombuffer(data, dtype, len(column), column.offset * dtype.itemsize)


class MappedFiles:
    """The files of a manifest in order, as a sequence of `MappedShard`: each is mapped when it is asked for."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self._folder = folder
        self._manifest = manifest
        self.mapped: list[MappedShard | None] = [None] * len(manifest["files"])
        """By number, those that are mapped now."""

    def __len__(self) -> int:
        return len(self.mapped)

    def __getitem__(self, index: int) -> MappedShard:
        """File number `index`; ValueError where it is missing or differs from the manifest."""
        shard = self.mapped[index]
        return self._map(index) if shard is None else shard

    def __iter__(self) -> Iterator[MappedShard]:
        return (self[index] for index in range(len(self)))

    def check(self, numbers: Sequence[int]) -> None:
        """Map each of these files once; ValueError for the first that is missing or differs from the manifest."""
        if len(numbers) < MANY_FILES:
            for index in numbers:
                self[index]
            return
        with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="shards") as pool:
            try:
                for _ in pool.map(self.__getitem__, numbers):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _map(self, index: int) -> MappedShard:
        shard = self.mapped[index] = open_shard(self._folder, self._manifest["files"][index], self._manifest)
        _opened.append((weakref.ref(self), index))
        while len(_opened) > MOST_OPEN:
            try:
                owner, oldest = _opened.popleft()
            except IndexError:  # another thread was faster
                break
            if (files := owner()) is not None:
                files.mapped[oldest] = None
        return shard


def open_shard(folder: Path, entry: dict[str, Any], manifest: dict[str, Any]) -> MappedShard:
    """Map one file of a folder of shards; ValueError where it differs from its entry in the manifest."""
    import pyarrow as pa

    path = refuse_other_size(folder, entry)
    dtype, masked = np.dtype(manifest["dtype"]), manifest.get("chat") is not None
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        num_batches, schema = reader.num_record_batches, reader.schema
        is_ours = num_batches == 1 and schema == shard_schema(dtype, masked)
        shard = MappedShard(reader.get_batch(0), masked) if is_ours else None
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk, not the file's content
        raise ValueError(
            f"{path} is damaged ({error}); copy the folder again, or delete it and tokenize again"
        ) from None
    if shard is None:
        raise ValueError(f"{path} is no shard of this library: {num_batches} record batches, columns {schema.names}")
    vocabulary = (schema.metadata or {}).get(TOKENIZER_KEY)
    if vocabulary is not None and vocabulary.decode("ascii", "replace") != manifest["tokenizer"]["sha256"]:
        raise ValueError(
            f"{path} holds ids of the vocabulary {vocabulary[:12].decode('ascii', 'replace')}..., {folder / MANIFEST} "
            f"names {manifest['tokenizer']['sha256'][:12]}...: the file is of another folder, or the manifest was "
            "edited; copy the folder again, or delete it and tokenize again"
        )
    found = {"documents": shard.num_documents, "tokens": len(shard.tokens)}
    for key, count in found.items():
        if count != entry[key]:
            raise ValueError(f"{path} holds {count:,} {key}, the manifest says {entry[key]:,}; one of them was edited")
    if shard.offsets[0] != 0 or shard.offsets[-1] != len(shard.tokens):
        raise ValueError(f"{path} is damaged: its documents do not cover its tokens")
    return shard


def refuse_other_size(folder: Path, entry: dict[str, Any]) -> Path:
    """The path of a file; ValueError where it is missing or of another size than its entry in the manifest says."""
    path = folder / entry["name"]
    try:
        size = os.path.getsize(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; tokenize again, or copy the folder again") from None
    if size != entry["file_bytes"]:
        raise ValueError(
            f"{path} is cut short or was edited: {size:,} bytes on disk, {entry['file_bytes']:,} in the manifest; "
            "copy the folder again, or delete it and tokenize again"
        )
    return path
