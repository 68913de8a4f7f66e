"""What an engine has answered for shards that are not whole yet, so that a killed process costs next to nothing.

    journal/00012.3.jsonl    the outcomes that claim 3 on shard 12 has seen, one JSON line each, in order of arrival

Lines are gathered and brought to the disk together, after `COMMIT_RECORDS` of them or `COMMIT_S` seconds: one fsync
each would take longer than most engines do. What a kill can cost is what was gathered, and what was inside the engine.
A journal is deleted when its shard stands.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

COMMIT_RECORDS = 256
COMMIT_S = 0.1


class Journal:
    """Appends to the journals of several shards; they are committed together.

    Raises OSError when the disk is full: nothing is taken from the engine after that.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[int, BinaryIO] = {}
        self._claims: dict[int, int] = {}
        self._gathered: dict[int, list[bytes]] = {}
        self._num_gathered = 0
        self._last_commit = 0.0

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
        """Bring everything that was gathered to the disk."""
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
            os.fsync(file.fileno())

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
        """Close the journal of `shard` and keep it for the next claim."""
        self.commit()
        self._drop(shard)

    def close(self) -> None:
        """Commit and close everything."""
        self.commit()
        for shard in list(self._files):
            self._drop(shard)

    def _drop(self, shard: int) -> None:
        self._num_gathered -= len(self._gathered.pop(shard, []))
        self._claims.pop(shard, None)
        file = self._files.pop(shard, None)
        if file is not None:
            file.close()


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
