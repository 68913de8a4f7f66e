"""The documents a run is made of: where they come from, whether they are the same as before, and their ids so far."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lingua_synth.documents import Document, Rejects, read_documents
from lingua_synth.documents.locations import PYTHON_CORPUS, are_same_files, describe_files, find_all_files

Documents: TypeAlias = Iterable[Document] | str | Path | Sequence[str]


@dataclass(frozen=True)
class Source:
    """Documents as files (in reading order), as the built-in corpus, or as objects: exactly one of the three."""

    files: list[str] | None = None
    corpus: str | None = None
    objects: Iterable[Document] | None = None

    @property
    def is_once_only(self) -> bool:
        """Whether the documents are gone when they have been gone through."""
        return isinstance(self.objects, Iterator)

    @property
    def num_documents(self) -> int | None:
        """How many there are, where that is known without reading."""
        return len(self.objects) if isinstance(self.objects, Sequence) else None

    def read(self, rejects: Rejects) -> Iterable[Document]:
        """The documents in their fixed order; lines that are none are counted in `rejects`."""
        if self.objects is not None:
            return self.objects
        return read_documents(self.corpus or self.files or "", rejects)

    def describe(self) -> dict[str, Any]:
        """The identity that run.json keeps. Reads local files once for their hash."""
        if self.files is not None:
            return {"files": describe_files(self.files)}
        return {"corpus": self.corpus} if self.corpus else {"objects": True}

    def is_same(self, described: Mapping[str, Any]) -> bool:
        """Whether this may be what was described; the content of objects and of the corpus is not looked at."""
        if self.files is not None:
            return "files" in described and are_same_files(self.files, described["files"])
        return described == self.describe()

    def __str__(self) -> str:
        if self.files is not None:
            return ", ".join(self.files[:3]) + (f" and {len(self.files) - 3} more" if len(self.files) > 3 else "")
        return self.corpus or "the list given"


def find_source(documents: Documents) -> Source:
    """What `documents` stands for; ValueError for a path that matches nothing."""
    if isinstance(documents, str | Path):
        if str(documents) == PYTHON_CORPUS:
            return Source(corpus=PYTHON_CORPUS)
        return Source(files=find_all_files(str(documents)))
    if isinstance(documents, list | tuple) and documents and all(isinstance(path, str) for path in documents):
        return Source(files=find_all_files(documents))
    return Source(objects=documents)  # type: ignore[arg-type]


def inputs_sha256(inputs: Iterable[tuple[int, Document]]) -> str:
    """Identity of (sample, document) pairs: SHA-256 over sample, id and text of each, in order."""
    digest = hashlib.sha256()
    for sample, document in inputs:
        for part in (str(sample), document.id, document.text):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


class SeenIds:
    """Which ids have occurred, by 64-bit hash, in about 8 bytes an id: sorted arrays that are merged as they grow."""

    BUFFER = 1 << 16

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: list[npt.NDArray[np.uint64]] = []

    def add(self, document_id: str) -> bool:
        """Note an id; False if it had been noted before."""
        encoded = document_id.encode("utf-8", "surrogatepass")
        value = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
        if value in self._recent or any(_holds(array, value) for array in self._sorted):
            return False
        self._recent.add(value)
        if len(self._recent) >= self.BUFFER:
            self._merge()
        return True

    def _merge(self) -> None:
        merged = np.sort(np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent)))
        # Arrays of at least doubling size: few to search, and every id is sorted again only log(n) times.
        while self._sorted and len(self._sorted[-1]) <= len(merged):
            merged = np.sort(np.concatenate([self._sorted.pop(), merged]), kind="stable")
        self._sorted.append(merged)
        self._recent.clear()


def _holds(array: npt.NDArray[np.uint64], value: int) -> bool:
    wanted = np.uint64(value)
    place = int(np.searchsorted(array, wanted))
    return place < len(array) and bool(array[place] == wanted)
