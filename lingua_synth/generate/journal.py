"""What an engine has answered for shards that are not whole yet, so that a killed process costs next to nothing.

    journal/00012.3.jsonl    the outcomes that claim 3 on shard 12 has seen, one JSON line each, in order of arrival

Lines are gathered and written together, after `COMMIT_RECORDS` of them or `COMMIT_S` seconds: one write each would take
longer than most engines do. What a kill can cost is what was gathered, and what was inside the engine. A thread brings
what was written to the disk, so that the engine does not wait for it; a machine that loses its power loses what the
thread had not done, too. A journal is deleted when its shard stands.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

COMMIT_RECORDS = 256
COMMIT_S = 0.1


class Journal:
    """Appends to the journals of several shards; they are committed together.

    Raises OSError when the disk is full, from `append`, `commit`, `leave` or `close`: nothing is taken from the engine
    after that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[int, BinaryIO] = {}
        self._claims: dict[int, int] = {}
        self._gathered: dict[int, list[bytes]] = {}
        self._num_gathered = 0
        self._last_commit = 0.0
        self._written: set[int] = set()  # shards whose files the thread was not yet told to bring to the disk
        self._syncing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def open(self, shard: int, claim: int) -> None:
        """Expect outcomes of `shard` under `claim`. The file appears with the first commit."""
        self._claims[shard] = claim

    def append(self, shard: int, entry: Mapping[str, Any]) -> None:
        """Gather one entry, and commit where it is time."""
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"
        self._gathered.setdefault(shard, []).append(line)
        self._num_gathered += 1
        if self._num_gathered >= COMMIT_RECORDS or time.monotonic() - self._last_commit >= COMMIT_S:
            self.commit()

    def commit(self) -> None:
        """Write everything that was gathered, and have it brought to the disk where that is not under way."""
        gathered, self._gathered, self._num_gathered = self._gathered, {}, 0
        self._last_commit = time.monotonic()
        for shard, lines in gathered.items():
            file = self._files.get(shard)
            if file is None:
                path = self._folder / f"{shard:05d}.{self._claims[shard]}.jsonl"
                file = self._files[shard] = open(path, "ab", buffering=0)  # noqa: SIM115
            data = b"".join(lines)
            while data:
                data = data[file.write(data) :]
            self._written.add(shard)
        if self._written and (self._syncing is None or self._syncing.done()):
            self._sync()

    def _sync(self) -> None:
        """Wait until the thread is done, and give it what was written since."""
        before, self._syncing = self._syncing, None
        if before is not None:
            before.result()
        # Of its own: the journal's may be closed before the thread comes to it.
        descriptors = [os.dup(self._files[shard].fileno()) for shard in self._written]
        self._written.clear()
        self._syncing = self._thread.submit(_bring_to_disk, descriptors)

    def entries(self, shard: int, earlier_claims: list[int]) -> Iterator[dict[str, Any]]:
        """What earlier claims on `shard` have seen, oldest first; a line that a kill cut short ends its file."""
        for claim in earlier_claims:
            with contextlib.suppress(FileNotFoundError):
                yield from _read(self._folder / f"{shard:05d}.{claim}.jsonl")

    def finish(self, shard: int) -> None:
        """Delete all journals of `shard`, which is whole and needs them no more."""
        self._drop(shard)
        for path in self._folder.glob(f"{shard:05d}.*.jsonl"):
            path.unlink(missing_ok=True)

    def leave(self, shard: int) -> None:
        """Close the journal of `shard`, on the disk, and keep it for the next claim."""
        self.commit()
        self._settle()
        self._drop(shard)

    def close(self) -> None:
        """Bring everything to the disk and close it."""
        try:
            self.commit()
            self._settle()
        finally:
            self._thread.shutdown()
            for shard in list(self._files):
                self._drop(shard)

    def _settle(self) -> None:
        """Wait until everything that was written is on the disk."""
        self._sync()
        assert self._syncing is not None, "it was just begun"
        self._syncing.result()

    def _drop(self, shard: int) -> None:
        self._num_gathered -= len(self._gathered.pop(shard, []))
        self._claims.pop(shard, None)
        self._written.discard(shard)
        file = self._files.pop(shard, None)
        if file is not None:
            file.close()


def _bring_to_disk(descriptors: Sequence[int]) -> None:
    with contextlib.ExitStack() as closing:
        for descriptor in descriptors:
            closing.callback(os.close, descriptor)
        for descriptor in descriptors:
            os.fsync(descriptor)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                # A crash of the machine may leave a block of zeros where a line was not brought to the disk.
                return
