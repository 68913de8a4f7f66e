"""Token shards -> windows of token ids: memory-mapped, without a copy.

A source is the concatenation of its documents in the order of its files. A window is any stretch of it; where
it lies in one file it is a view into the mapped file, so a thousand runs on one machine share the same pages.
What is read is what was written: size, counts and vocabulary of a file are compared with the manifest before its first
token is read, and of all files when a source is opened. The ranks of a run divide that among them (`check_files`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.files import sha256_file, sha256_json
from lingua_synth.tokens.mapped import MappedFiles, MappedShard, open_shard, refuse_other_size
from lingua_synth.tokens.shards import read_manifest


class TokenSource:
    """Read-only access to a folder of token shards. Safe to share between threads.

    Files are mapped when they are read, the newest `mapped.MOST_OPEN` of a process stay so: any number of them can be
    read. Raises ValueError when the folder is not finished, a file is missing, or a file's size, layout, counts or
    vocabulary differ from the manifest. `check=False` reads the manifest alone and leaves that to `check_files`, or to
    the moment when a file is first read; `verify=True` also hashes every file (reads all of it).
    """

    def __init__(self, path: str | Path, verify: bool = False, *, check: bool = True) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(path)
        self.dtype = np.dtype(self.manifest["dtype"])
        if verify:
            for entry in self.manifest["files"]:
                _refuse_other_hash(self.path, entry)
        self._shards = MappedFiles(self.path, self.manifest)
        self._first_tokens = _cumulative(entry["tokens"] for entry in self.manifest["files"])
        self._first_documents = _cumulative(entry["documents"] for entry in self.manifest["files"])
        if check:
            self.check_files()
        self.num_tokens: int = self._first_tokens[-1]
        """Tokens of all documents, BOS and EOS included."""
        self.num_documents: int = self._first_documents[-1]
        """Documents with at least one token."""
        self.num_bytes: int = sum(entry["bytes"] for entry in self.manifest["files"])
        """UTF-8 bytes of the documents' text."""
        totals = {"tokens": self.num_tokens, "documents": self.num_documents, "bytes": self.num_bytes}
        for key, total in totals.items():
            if self.manifest[key] != total:
                raise ValueError(
                    f"{self.path / 'manifest.json'} was edited: it names {self.manifest[key]:,} {key}, "
                    f"its files hold {total:,}"
                )
        self.is_masked: bool = is_masked(self.manifest)
        """Whether only some tokens are scored in training: the answers of conversations."""
        self.fingerprint: str = fingerprint(self.manifest)
        """Identity of the token stream: tokenizer, type and the hash of every file, in order."""

    def check_files(self, first: int = 0, step: int = 1) -> None:
        """Compare files number `first`, `first + step`, ... with the manifest: size, layout, counts and vocabulary.

        The n readers of a folder that call it with (r, n) have together checked every file, each once. ValueError names
        a file that is missing or differs.
        """
        self._shards.check(range(first, len(self._shards), step))

    def __len__(self) -> int:
        return self.num_documents

    @property
    def shards(self) -> MappedFiles:
        """The files in order, a sequence: for passes over all tokens that keep nothing per document in memory."""
        return self._shards

    def __repr__(self) -> str:
        return f"TokenSource({str(self.path)!r}: {self.num_documents:,} documents, {self.num_tokens:,} tokens)"

    def window(self, start: int, length: int) -> npt.NDArray[Any]:
        """Token ids `[start, start + length)` of the source, of the shards' `dtype`, read-only.

        A view when the window lies in one file, else a copy. ValueError for a window outside [0, num_tokens).
        """
        end = start + length
        if start < 0 or length < 0 or end > self.num_tokens:
            raise ValueError(f"no window [{start:,}, {end:,}) in {self.path}: it has {self.num_tokens:,} tokens")
        index = bisect_right(self._first_tokens, start) - 1
        first = self._first_tokens[index]
        if end <= self._first_tokens[min(index + 1, len(self._shards))]:
            index = min(index, len(self._shards) - 1)
            shard = self._shards.mapped[index] or self._shards[index]  # the call costs half of a window
            return shard.tokens[start - first : end - first]
        parts = []
        while start < end:
            first, after = self._first_tokens[index], self._first_tokens[index + 1]
            parts.append(self._shards[index].tokens[start - first : min(end, after) - first])
            start, index = min(end, after), index + 1
        window = np.concatenate(parts)
        window.flags.writeable = False
        return window

    def document(self, i: int) -> npt.NDArray[Any]:
        """Token ids of document `i`, BOS and EOS included: a read-only view. ValueError outside [0, num_documents)."""
        shard, row = self._locate(i)
        return shard.tokens[shard.offsets[row] : shard.offsets[row + 1]]

    def document_id(self, i: int) -> str:
        """The id that document `i` had before tokenization."""
        shard, row = self._locate(i)
        return shard.ids[row].as_py()

    def document_starts(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Where documents begin in the window `[start, start + length)`, counted from its start: int64, increasing.

        ValueError for a window outside [0, num_tokens).
        """
        end = start + length
        if start < 0 or length < 0 or end > self.num_tokens:
            raise ValueError(f"no window [{start:,}, {end:,}) in {self.path}: it has {self.num_tokens:,} tokens")
        found = []
        index = bisect_right(self._first_tokens, start) - 1
        while index < len(self._shards) and (first := self._first_tokens[index]) < end:
            offsets = self._shards[index].offsets[:-1]
            low, high = np.searchsorted(offsets, (start - first, end - first))
            found.append(offsets[low:high] + (first - start))
            index += 1
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def scored(self, start: int, length: int) -> npt.NDArray[np.bool_]:
        """Which tokens of the window `[start, start + length)` are scored when they are predicted: bool `[length]`.

        All of them, unless `is_masked`. ValueError for a window outside [0, num_tokens).
        """
        end = start + length
        if start < 0 or length < 0 or end > self.num_tokens:
            raise ValueError(f"no window [{start:,}, {end:,}) in {self.path}: it has {self.num_tokens:,} tokens")
        if not self.is_masked:
            return np.ones(length, dtype=bool)
        changes = np.zeros(length + 1, dtype=np.int64)
        index = bisect_right(self._first_tokens, start) - 1
        while index < len(self._shards) and (first := self._first_tokens[index]) < end:
            shard = self._shards[index]
            low = int(np.searchsorted(shard.offsets, start - first, side="right")) - 1
            high = int(np.searchsorted(shard.offsets, end - first, side="left"))
            low, high = max(low, 0), min(high, shard.num_documents)
            borders = shard.scored[shard.scored_offsets[low] : shard.scored_offsets[high]].astype(np.int64)
            of_document = np.diff(shard.scored_offsets[low : high + 1])
            borders += np.repeat(shard.offsets[low:high] + (first - start), of_document)
            borders.clip(0, length, out=borders)
            np.add.at(changes, borders[::2], 1)
            np.add.at(changes, borders[1::2], -1)
            index += 1
        return np.cumsum(changes[:-1]) > 0

    def document_scored(self, i: int) -> npt.NDArray[np.bool_]:
        """Which tokens of document `i` are scored, bool, one a token. ValueError outside [0, num_documents)."""
        shard, row = self._locate(i)
        index = bisect_right(self._first_documents, i) - 1
        start, end = shard.offsets[row], shard.offsets[row + 1]
        return self.scored(self._first_tokens[index] + int(start), int(end - start))

    @cached_property
    def document_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, int64 `[num_documents]`; the sum is `num_tokens`."""
        return np.concatenate([np.diff(shard.offsets) for shard in self._shards])

    @cached_property
    def document_num_scored(self) -> npt.NDArray[np.int64]:
        """Scored tokens of each document, int64 `[num_documents]`; all of them, unless `is_masked`."""
        if not self.is_masked:
            return self.document_lengths
        found = []
        for shard in self._shards:
            borders = shard.scored.astype(np.int64)
            before = np.concatenate([[0], np.cumsum(borders[1::2] - borders[::2])])
            found.append(np.diff(before[shard.scored_offsets // 2]))
        return np.concatenate(found)

    @cached_property
    def document_num_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each document's text, int64 `[num_documents]`; the sum is `num_bytes`."""
        return np.concatenate([shard.num_bytes.astype(np.int64) for shard in self._shards])

    def _locate(self, i: int) -> tuple[MappedShard, int]:
        if not 0 <= i < self.num_documents:
            raise ValueError(f"no document {i} in {self.path}: it has documents 0 to {self.num_documents - 1}")
        index = bisect_right(self._first_documents, i) - 1
        return self._shards[index], i - self._first_documents[index]


def is_masked(manifest: dict[str, Any]) -> bool:
    """Whether the shards of a manifest say which of their tokens are scored."""
    return manifest.get("chat") is not None


def fingerprint(manifest: dict[str, Any]) -> str:
    """Identity of a token stream: SHA-256 over the tokenizer's hash, the dtype and the hash of every file, in order."""
    return sha256_json(
        {
            "tokenizer": manifest["tokenizer"]["sha256"],
            "dtype": manifest["dtype"],
            "files": [entry["sha256"] for entry in manifest["files"]],
        }
    )


def verify_shards(path: str | Path) -> list[str]:
    """Problems of a folder of token shards, one sentence each; an empty list means every byte is as written.

    Finds a missing, truncated, longer or changed file (size and SHA-256), a file that the manifest does not name,
    counts that do not add up, a file of another vocabulary, ids outside the vocabulary, and stretches of scored tokens
    that do not lie in their document. Reads every file, in constant memory.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        return [str(error)]
    problems: list[str] = []
    for entry in manifest["files"]:
        try:
            _refuse_other_hash(path, entry)  # before anything in the file is believed
            _refuse_unknown_ids(path, entry, manifest)
            _refuse_wrong_scored(path, entry, manifest)
        except ValueError as error:
            problems.append(str(error))
    named = {entry["name"] for entry in manifest["files"]}
    extra = sorted(file.name for file in path.glob("*.arrow") if file.name not in named)
    problems += [f"{path / name} is not named by the manifest" for name in extra]
    if not problems:
        try:
            TokenSource(path)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _refuse_other_hash(folder: Path, entry: dict[str, Any]) -> None:
    path = refuse_other_size(folder, entry)
    found = sha256_file(path)
    if found != entry["sha256"]:
        raise ValueError(
            f"{path} was changed: SHA-256 {found[:12]}..., in the manifest {entry['sha256'][:12]}...; "
            "copy the folder again, or delete it and tokenize again"
        )


def _refuse_unknown_ids(folder: Path, entry: dict[str, Any], manifest: dict[str, Any]) -> None:
    n_words = manifest["tokenizer"]["n_words"]
    tokens = open_shard(folder, entry, manifest).tokens
    largest = int(tokens.max()) if len(tokens) else 0
    if largest >= n_words:
        raise ValueError(f"{folder / entry['name']} holds the id {largest}, the vocabulary has {n_words} words")


def _refuse_wrong_scored(folder: Path, entry: dict[str, Any], manifest: dict[str, Any]) -> None:
    if not is_masked(manifest):
        return
    shard = open_shard(folder, entry, manifest)
    borders, offsets = shard.scored.astype(np.int64), shard.scored_offsets
    in_pairs = len(borders) % 2 == 0 and not (offsets % 2).any() and int(offsets[-1]) == len(borders)
    if in_pairs:
        lengths = np.repeat(np.diff(shard.offsets), np.diff(offsets))
        rises = np.diff(borders) > 0
        rises[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(borders))] - 1] = True  # of the next document
        in_pairs = bool((borders <= lengths).all() and rises.all())
    if not in_pairs or int(borders[1::2].sum() - borders[::2].sum()) != entry["scored_tokens"]:
        raise ValueError(f"{folder / entry['name']} does not say in order which tokens of its documents are scored")


def _cumulative(counts: Iterable[int]) -> array[int]:
    # 8 bytes a file, and bisect takes it as it takes a list.
    total, sums = 0, array("q", [0])
    for count in counts:
        total += count
        sums.append(total)
    return sums
