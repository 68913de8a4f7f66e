"""From files of documents to input shards: which stretch of which file is whose work, decided once for all workers.

    files, in reading order -> one pass -> plan.npz: where every shard begins, which documents repeat an id
                                        -> rejects.jsonl: lines that are no documents, with file and line
    plan + shard number -> its documents, read from where they lie

Shards hold `shard_size` documents in reading order (the last one fewer), across the borders of files. With several
samples, all documents' shards for the first sample come first, then all for the second. Documents that are no files
(a list, the built-in corpus) are written to `inputs.jsonl` first, so that any process can read them, also tomorrow.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lingua_synth.documents import Document, Rejects, read_documents, write_documents
from lingua_synth.documents.locations import PYTHON_CORPUS, are_same_files, describe_files, find_all_files
from lingua_synth.documents.parts import TextReader, document_place_part, whole_file
from lingua_synth.files import atomic_file, read_json, sha256_file, write_json
from lingua_synth.generate.engine import whole_characters

Documents: TypeAlias = Iterable[Document] | str | Path | Sequence[str]

PLAN = "plan.npz"
REJECTS = "rejects.jsonl"
SPOOL = "inputs.jsonl"
BATCH_LINES, BATCH_BYTES = 1024, 8 << 20


@dataclass(frozen=True)
class Source:
    """The input: files in reading order, or documents that become the file `inputs.jsonl` of the run."""

    files: list[str]
    objects: Iterable[Document] | None = None

    def __str__(self) -> str:
        if self.objects is not None:
            return "the list given"
        return ", ".join(self.files[:3]) + (f" and {len(self.files) - 3} more" if len(self.files) > 3 else "")

    def is_same(self, described: Any) -> bool:
        """Whether the files are those that run.json describes."""
        return isinstance(described, list) and are_same_files(self.files, described)

    def describe(self) -> list[dict[str, Any]]:
        """The identity that run.json keeps; every local file is read once for its hash."""
        described = describe_files(self.files)
        if self.objects is not None:  # when it was written says nothing
            for one in described:
                del one["modified_ns"]
        return described


def find_source(documents: Documents, out_dir: Path) -> Source:
    """What `documents` stands for; ValueError for a path that matches nothing."""
    spool = [str(out_dir / SPOOL)]
    if isinstance(documents, str | Path):
        if str(documents) == PYTHON_CORPUS:
            return Source(spool, read_documents(PYTHON_CORPUS))
        return Source(find_all_files(str(documents)))
    if isinstance(documents, list | tuple) and documents and all(isinstance(path, str) for path in documents):
        return Source(find_all_files(documents))
    return Source(spool, documents)  # type: ignore[arg-type]


def spool(source: Source) -> bool:
    """Write documents that are no files to `inputs.jsonl`; False when other documents stand there already."""
    if source.objects is None:
        return True
    path = Path(source.files[0])
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new.jsonl")
    whole = (Document(whole_characters(d.id), whole_characters(d.text)) for d in source.objects)
    try:
        write_documents(fresh, whole)
        if path.exists():
            return sha256_file(fresh) == sha256_file(path)
        os.replace(fresh, path)
        return True
    finally:
        fresh.unlink(missing_ok=True)


@dataclass(frozen=True)
class Input:
    """One document of a shard."""

    row: int
    """In the shard, from 0."""
    document: Document
    is_duplicate: bool
    """Whether an earlier document of the input has its id."""


@dataclass(frozen=True, eq=False)
class InputPlan:
    """Where the shards of an input lie; the same for every process that reads it."""

    files: list[str]
    shard_size: int
    samples: int
    num_documents: int
    first_file: npt.NDArray[np.int32]
    """Per shard of one sample: the file of its first document."""
    first_place: npt.NDArray[np.int64]
    """And its place in it: byte of the uncompressed text, or row of a parquet file."""
    duplicates: npt.NDArray[np.int64]
    """Numbers, in reading order, of documents whose id occurred before; ascending."""

    @property
    def shards_per_sample(self) -> int:
        """Shards of one pass over the documents."""
        return len(self.first_file)

    @property
    def num_shards(self) -> int:
        """Shards of all samples."""
        return self.shards_per_sample * self.samples

    @property
    def num_inputs(self) -> int:
        """Documents times samples."""
        return self.num_documents * self.samples

    def sample(self, shard: int) -> int:
        """Which sample a shard is for."""
        return shard // self.shards_per_sample

    def size(self, shard: int) -> int:
        """Inputs of a shard."""
        first = shard % self.shards_per_sample * self.shard_size
        return min(self.shard_size, self.num_documents - first)

    def read(self, shard: int) -> Iterator[Input]:
        """The inputs of a shard; ValueError where the files have become shorter since they were planned."""
        position = shard % self.shards_per_sample
        first = position * self.shard_size
        duplicates = self.duplicates[slice(*np.searchsorted(self.duplicates, [first, first + self.shard_size]))]
        repeated = set((duplicates - first).tolist())
        size = self.size(shard)
        found = self._documents(int(self.first_file[position]), int(self.first_place[position]))
        with contextlib.closing(found):
            row = -1
            for row, (identity, text) in enumerate(itertools.islice(found, size)):
                yield Input(row, Document(identity, text), row in repeated)
        if row + 1 < size:
            raise ValueError(
                f"shard {shard} should have {size:,} documents, and the files give {row + 1:,}; they have changed"
            )

    def _documents(self, file: int, place: int) -> Generator[tuple[str, str], None, None]:
        for number in range(file, len(self.files)):
            name = self.files[number]
            part = document_place_part(name, place) if number == file and place else whole_file(name)
            # Small batches: a shard ends soon.
            for batch in TextReader(part).batches(64, BATCH_BYTES):
                for identity, text, at in zip(batch.ids, batch.texts, batch.places, strict=True):
                    if number > file or at >= place:
                        yield identity, text.decode("utf-8")


def plan_inputs(out_dir: Path, source: Source, shard_size: int, samples: int, max_reject_rate: float) -> InputPlan:
    """The plan in `out_dir`, made in one pass over the documents if it is not there yet.

    Memory: 8 bytes a document. Raises ValueError when there are no documents or too many lines are none, naming them.
    """
    path = out_dir / PLAN
    if not path.exists():
        _make(out_dir, source, shard_size, max_reject_rate)
    with np.load(path) as arrays:
        return InputPlan(
            files=source.files,
            shard_size=shard_size,
            samples=samples,
            num_documents=int(arrays["num_documents"]),
            first_file=arrays["first_file"],
            first_place=arrays["first_place"],
            duplicates=arrays["duplicates"],
        )


def rejected_lines(out_dir: Path) -> dict[str, int]:
    """Lines of the input that were no documents, by reason."""
    return read_json(out_dir / "rejects.json")


def _make(out_dir: Path, source: Source, shard_size: int, max_reject_rate: float) -> None:
    first_file: list[int] = []
    first_place: list[int] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    num_documents = 0
    with Rejects(out_dir / REJECTS, max_reject_rate) as rejects:
        for number, file in enumerate(source.files):
            reader = TextReader(whole_file(file))
            for batch in reader.batches(BATCH_LINES, BATCH_BYTES):
                rejects.num_read += len(batch.ids) + len(batch.bad)
                for line, reason in batch.bad:
                    rejects.add(file, line, reason)
                rejects.check()
                # Every shard_size-th document begins a shard.
                for i in range(-num_documents % shard_size, len(batch.ids), shard_size):
                    first_file.append(number)
                    first_place.append(batch.places[i])
                hashes.append(np.fromiter(map(_hash, batch.ids), np.uint64, len(batch.ids)))
                num_documents += len(batch.ids)
        rejects.check()
        if not num_documents:
            reasons = f" ({rejects.summary()})" if rejects.num_rejected else ""
            raise ValueError(f"no documents in {source}{reasons}")
        write_json(out_dir / "rejects.json", rejects.counts)
    with atomic_file(out_dir / PLAN, "wb") as stream:
        np.savez(
            stream,
            num_documents=np.int64(num_documents),
            first_file=np.array(first_file, np.int32),
            first_place=np.array(first_place, np.int64),
            duplicates=_repeated(np.concatenate(hashes)),
        )


def _hash(identity: str) -> int:
    encoded = identity.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def _repeated(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Positions of values that occurred at an earlier position, ascending."""
    order = np.argsort(hashes, kind="stable")  # equal values stand in order of their positions
    ordered = hashes[order]
    return np.sort(order[1:][ordered[1:] == ordered[:-1]]).astype(np.int64)
