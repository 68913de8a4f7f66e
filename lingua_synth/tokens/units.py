"""Pass 1 of tokenization: the input in units, and each unit's documents as tokens in a spill file.

A unit is about 128 MB of input: small files together, or a stretch of a large one. Units follow from the names and
sizes of the files alone; what is done with a document does not depend on the unit it is in, so neither the number of
workers nor the size of the units shows in the result.

A spill is an Arrow IPC file of record batches ("chunks") of bounded size, with the columns of a shard and `key`, the
place of the document in the order to come: for a shuffle 64 bits hashed from the seed and where the document stands
in its file, by which each chunk is sorted; else its number in the unit. A spill counts once its record, `unit-N.json`,
is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lingua_synth.documents import Document
from lingua_synth.documents.conversations import conversation_utf8
from lingua_synth.documents.locations import is_url
from lingua_synth.documents.parts import FilePart, TextBatch, TextReader, cut_file
from lingua_synth.documents.reading import BadLine
from lingua_synth.files import atomic_file, sha256_file, write_json
from lingua_synth.tokens.chat import ChatEncoder
from lingua_synth.tokens.shards import shard_schema
from lingua_synth.tokens.tokenizer import Tokenizer
from lingua_synth.tokens.workers import Report

REPORT_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Sizes:
    """How much is held and done at a time. None of it shows in the shards."""

    in_process_bytes: int = 16 << 20
    """Input smaller than this is tokenized in the calling process: starting others would take longer."""
    min_unit_bytes: int = 8 << 20
    max_unit_bytes: int = 128 << 20
    """Most bytes of input in a unit, unless one file that cannot be cut is larger."""
    num_units: int = 64
    """Units that an input of moderate size is cut into, so that many cores have work."""
    chunk_bytes: int = 64 << 20
    """Token bytes after which a chunk is spilled; a worker of pass 1 holds about twice as much."""
    chunk_documents: int = 1 << 18
    """Documents after which a chunk is spilled, however short."""
    prepare_bytes: int = 24 << 20
    """Input for each start of a tokenizer's fast path from which it is worth it (1.5 s for gigatoken, in which
    tiktoken does 20 MB)."""
    batch_lines: int = 1024
    batch_bytes: int = 4_000_000
    """Text given to the tokenizer at a time, unless one document is longer."""


class Scratch:
    """Memory that is used again and again by the jobs of one process.

    Fresh arrays of some ten MB each would go back to the system one by one, which then has to clear their pages
    again: a seventh of all CPU seconds where this was measured.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def take(self, length: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """`length` values that hold anything; they are the caller's until the next call."""
        num_bytes = length * dtype.itemsize
        if len(self._memory) < num_bytes:
            self._memory = np.empty(0, dtype=np.uint8)  # let go of the old one first
            self._memory = np.empty(num_bytes + num_bytes // 8, dtype=np.uint8)
        return self._memory[:num_bytes].view(dtype)

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        return Scratch, ()


@dataclass(frozen=True)
class Task:
    """What every worker knows: the settings, and where to write."""

    out_dir: Path
    work_dir: Path
    tokenizer: Tokenizer
    add_bos: bool
    add_eos: bool
    shuffle_seed: int | None
    shard_tokens: int
    max_reject_rate: float
    min_reject_count: int
    sizes: Sizes
    chat: ChatEncoder | None = None
    """How conversations become tokens; None: the documents are texts."""
    prepares: bool = False
    """Whether workers prepare their tokenizer before they use it."""
    scratch: Scratch = field(default_factory=Scratch, compare=False)
    """Of each process its own."""

    def spill(self, unit: int) -> Path:
        return self.work_dir / f"unit-{unit:06d}.arrow"

    def unit_record(self, unit: int) -> Path:
        return self.work_dir / f"unit-{unit:06d}.json"

    def unit_rejects(self, unit: int) -> Path:
        return self.work_dir / f"unit-{unit:06d}.rejects.jsonl"


@dataclass(frozen=True)
class Unit:
    """A share of the input: parts of files, each with the number of its file among the input's files."""

    index: int
    parts: tuple[tuple[int, FilePart], ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the input files that the unit stands for."""
        return sum(part.num_bytes for _, part in self.parts)

    def __str__(self) -> str:
        first, last = self.parts[0][1], self.parts[-1][1]
        if first.file != last.file:
            return f"{first.file} to {last.file}"
        return first.file if first.is_whole else f"{first.file} ({first.start:,} to {last.stop:,})"


def plan_units(
    files: Sequence[str], file_bytes: Sequence[int], sizes: Sizes, *, conversations: bool = False
) -> list[Unit]:
    """Cut files of the given sizes into units: a function of these alone. ValueError for a damaged large parquet."""
    unit_bytes = min(max(sum(file_bytes) // sizes.num_units, sizes.min_unit_bytes), sizes.max_unit_bytes)
    units: list[Unit] = []
    parts: list[tuple[int, FilePart]] = []
    total = 0
    for number, (file, size) in enumerate(zip(files, file_bytes, strict=True)):
        for part in cut_file(file, size, unit_bytes, conversations=conversations):
            if parts and total + part.num_bytes > unit_bytes:
                units.append(Unit(len(units), tuple(parts)))
                parts, total = [], 0
            parts.append((number, part))
            total += part.num_bytes
    if parts:
        units.append(Unit(len(units), tuple(parts)))
    return units


class Progress(NamedTuple):
    """What a unit has done so far."""

    num_bytes: int = 0
    lines: int = 0
    documents: int = 0
    tokens: int = 0
    rejected: int = 0
    worst: tuple[int, int] = (0, 0)
    """The lines and rejects read, at the end of that batch where the share of rejects was most above the limit."""


class Reader(Protocol):
    """Texts from anywhere: `TextReader`, or `ObjectReader`."""

    num_lines: int

    @property
    def num_bytes(self) -> int: ...

    def batches(self, max_lines: int, max_bytes: int) -> Iterator[TextBatch]: ...


class ObjectReader:
    """Documents that come as objects; `sha256` of all of them stands for the files that there are not.

    With `conversations` the text of one is its messages, read from its `meta` as from a line.
    """

    def __init__(self, documents: Iterable[Document], *, conversations: bool = False) -> None:
        self._documents = documents
        self._conversations = conversations
        self.sha256 = hashlib.sha256()
        self.num_lines = 0
        self.num_bytes = 0

    def batches(self, max_lines: int, max_bytes: int) -> Iterator[TextBatch]:
        """The documents, in batches that end behind `max_lines` of them or the text that makes `max_bytes` full."""
        batch = TextBatch()
        num_documents = num_bytes = 0
        for place, document in enumerate(self._documents):
            text, bad = self._text(document)
            for value in (document.id.encode("utf-8", errors="surrogatepass"), text):
                self.sha256.update(len(value).to_bytes(8, "little") + value)
            if bad:
                batch.bad.append((place + 1, bad))
            else:
                batch.ids.append(document.id)
                batch.texts.append(text)
                batch.places.append(place)
            num_documents += 1
            num_bytes += len(text)
            if num_documents >= max_lines or num_bytes >= max_bytes:
                self.num_bytes += num_bytes
                yield batch
                batch = TextBatch()
                num_documents = num_bytes = 0
        self.num_bytes += num_bytes
        if num_documents:
            yield batch

    def _text(self, document: Document) -> tuple[bytes, str]:
        """UTF-8 of what is tokenized, and why it is no document; empty: it is one."""
        if self._conversations:
            try:
                return conversation_utf8({**document.meta, "id": document.id})[1], ""
            except BadLine as bad:
                return b"", str(bad)
        bad_text = "empty text" if not document.text or document.text.isspace() else ""
        try:
            return document.text.encode("utf-8"), bad_text
        except UnicodeEncodeError:
            return document.text.encode("utf-8", errors="surrogatepass"), "lone surrogate"


def document_keys(shuffle_seed: int, file_numbers: Sequence[int], places: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Keys, uint64, whose order is the shuffled order of the documents.

    The key of the document at `place` of a file is the output at that position of SplitMix64 (Steele, Lea, Flood:
    Fast Splittable Pseudorandom Number Generators, 2014), seeded with 64 bits of SHA-256 of the seed and the file's
    number. No two documents of one file share a key, and sorting by it is a uniform random permutation as far as
    that generator is random. Equal keys of two files (below one pair in a billion documents) stay in input order.
    """
    seeds = {
        number: int.from_bytes(hashlib.sha256(f"{shuffle_seed} {number}".encode()).digest()[:8], "little")
        for number in set(file_numbers)
    }
    state = np.array([seeds[number] for number in file_numbers], dtype=np.uint64)
    state += (np.array(places, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def spill_schema(dtype: np.dtype[Any], masked: bool = False) -> Any:
    """Arrow schema of a spill: a shard's, and the key."""
    import pyarrow as pa

    return shard_schema(dtype, masked).append(pa.field("key", pa.uint64(), nullable=False))


def stretches(borders: Sequence[npt.NDArray[np.uint32]]) -> Any:
    """The column `scored` of documents with these borders."""
    import pyarrow as pa

    offsets = np.zeros(len(borders) + 1, dtype=np.int64)
    np.cumsum([len(one) for one in borders], out=offsets[1:])
    values = np.concatenate(borders) if borders else np.empty(0, dtype=np.uint32)
    kind = shard_schema(np.dtype(np.uint16), masked=True).field("scored").type
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values, pa.uint32()), type=kind)


def scatter(
    target: npt.NDArray[Any], starts: npt.NDArray[Any], values: npt.NDArray[Any], ends: npt.NDArray[Any]
) -> None:
    """Copy the stretches of `values` that end at `ends`, the first from 0 on, to where each starts in `target`."""
    begin = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        target[start : start + end - begin] = values[begin:end]
        begin = end


# --- one unit ---


def prepare_tokenizer(task: Task) -> None:
    """What a process does before its first unit; what is done already is not done again."""
    if task.prepares:
        task.tokenizer.prepare()


def run_unit(task: Task, unit: Unit, report: Report) -> dict[str, Any]:
    """Tokenize a unit into its spill; returns its record, which stands in the work folder as well."""
    readers = [(number, TextReader(part, conversations=task.chat is not None)) for number, part in unit.parts]
    return run_readers(task, unit.index, readers, report)


def run_readers(
    task: Task, index: int, readers: Sequence[tuple[int, TextReader | ObjectReader]], report: Report
) -> dict[str, Any]:
    """`run_unit` over any readers, each with the number of its file."""
    import pyarrow as pa

    hashes: dict[str, str] = {}
    prepare_tokenizer(task)
    task.unit_rejects(index).unlink(missing_ok=True)
    with (
        contextlib.ExitStack() as stack,
        atomic_file(task.spill(index), "wb") as file,
        pa.ipc.new_file(file, spill_schema(task.tokenizer.dtype, task.chat is not None)) as writer,
    ):
        run = _UnitRun(task, index, writer, stack, report)
        for part, (number, reader) in enumerate(readers):
            run.read(part, number, reader)
            if isinstance(reader, TextReader) and reader.part.is_whole and not is_url(reader.part.file):
                hashes[str(number)] = sha256_file(reader.part.file)  # now, while the file is in the page cache
        run.end_chunk()
        run.flush_rejects()
    record = run.record() | {"spill_bytes": task.spill(index).stat().st_size, "sha256": hashes}
    write_json(task.unit_record(index), record)
    return record


class _UnitRun:
    """Lines in, chunks out, and counts of both."""

    def __init__(self, task: Task, index: int, writer: Any, stack: contextlib.ExitStack, report: Report) -> None:
        self._task, self._index, self._writer, self._stack, self._report = task, index, writer, stack, report
        self._rejects_file: IO[str] | None = None
        # Of conversations the encoder knows which of the two the template has written.
        self._before = [task.tokenizer.bos_id] * (task.add_bos and task.chat is None)
        self._after = [task.tokenizer.eos_id] * (task.add_eos and task.chat is None)
        self._last_report = time.monotonic()
        self._lines_per_part: list[int] = []
        self._reasons: dict[str, int] = {}
        self._skipped: dict[str, int] = {}
        self._conversations: dict[str, int] = {}
        self.rejected = 0
        self._worst = (0, 0)
        self._num_bytes = self._lines = self._documents = self._tokens = self._text_bytes = 0
        # A chunk, documents that wait to be spilled: their ids, and of each batch of them the tokens, the number of
        # tokens of each document, the bytes of its text, and its key.
        self._ids: list[str] = []
        self._batches: list[tuple[npt.NDArray[Any], ...]] = []
        self._scored: list[npt.NDArray[np.uint32]] = []
        self._chunk_tokens = 0

    def read(self, part: int, file_number: int, reader: TextReader | ObjectReader) -> None:
        bytes_before, lines_before = self._num_bytes, self._lines
        counts_lines = isinstance(reader, TextReader)  # of objects, what is no document is skipped, not rejected
        for batch in reader.batches(self._task.sizes.batch_lines, self._task.sizes.batch_bytes):
            for line, reason in batch.bad:
                if counts_lines:
                    self._reject(part, line, reason)
                else:
                    self._skip(reason)
            self._num_bytes = bytes_before + reader.num_bytes
            self._lines = lines_before + reader.num_lines
            self._end_batch(file_number, batch)
        if isinstance(reader, TextReader):
            self._num_bytes = bytes_before + reader.part.num_bytes
        self._lines_per_part.append(reader.num_lines)

    def _reject(self, part: int, line: int, reason: str) -> None:
        if self._rejects_file is None:
            path = self._task.unit_rejects(self._index)
            self._rejects_file = self._stack.enter_context(open(path, "w", encoding="utf-8"))  # noqa: SIM115
        self._rejects_file.write(json.dumps([part, line, reason], ensure_ascii=False) + "\n")
        self._reasons[reason] = self._reasons.get(reason, 0) + 1
        self.rejected += 1

    def _skip(self, reason: str, count: int = 1) -> None:
        self._skipped[reason] = self._skipped.get(reason, 0) + count

    def _end_batch(self, file_number: int, batch: TextBatch) -> None:
        if batch.texts:
            self._encode_batch(file_number, batch)
        if self._lines >= self._task.min_reject_count:
            self._worst = max(self._worst, (self._lines, self.rejected), key=self._excess)
        sizes = self._task.sizes
        if (
            self._chunk_tokens * self._task.tokenizer.dtype.itemsize >= sizes.chunk_bytes
            or len(self._ids) >= sizes.chunk_documents
        ):
            self.end_chunk()
        if time.monotonic() - self._last_report >= REPORT_INTERVAL_S:
            if self._rejects_file is not None:
                self._rejects_file.flush()  # who hears of them may read them
            self._report(self.progress())
            self._last_report = time.monotonic()

    def _excess(self, counts: tuple[int, int]) -> float:
        return counts[1] - self._task.max_reject_rate * counts[0]

    def _encode_conversations(self, batch: TextBatch) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Ids, number of them, and bytes of scored text of the conversations in `batch`, which keeps those alone."""
        task = self._task
        assert task.chat is not None, "the documents are conversations"
        found = task.chat.encode(task.tokenizer, batch.texts, add_bos=task.add_bos, add_eos=task.add_eos)
        for reason, count in found.skipped.items():
            self._skip(reason, count)
        for what, count in found.counts.items():
            self._conversations[what] = self._conversations.get(what, 0) + count
        batch.ids = [batch.ids[i] for i in found.kept]
        batch.places = [batch.places[i] for i in found.kept]
        self._scored += found.runs
        flat = np.concatenate(found.ids) if found.ids else np.empty(0, dtype=task.tokenizer.dtype)
        lengths = np.fromiter(map(len, found.ids), np.int64, len(found.ids))
        return flat, lengths, np.array(found.num_bytes, dtype=np.uint64)

    def _encode_batch(self, file_number: int, batch: TextBatch) -> None:
        if self._task.chat is None:
            flat, lengths = self._task.tokenizer.encode_utf8(batch.texts)
            text_lengths = np.fromiter(map(len, batch.texts), np.uint64, len(batch.texts))
        else:
            flat, lengths, text_lengths = self._encode_conversations(batch)
        ids, places = batch.ids, batch.places
        if not lengths.all():
            kept = np.flatnonzero(lengths)
            for _ in range(len(ids) - len(kept)):
                self._skip("zero tokens")
            lengths, text_lengths = lengths[kept], text_lengths[kept]
            ids, places = [ids[i] for i in kept.tolist()], [places[i] for i in kept.tolist()]
        if self._task.shuffle_seed is None:
            keys = np.arange(self._documents, self._documents + len(ids), dtype=np.uint64)
        else:
            keys = document_keys(self._task.shuffle_seed, [file_number] * len(ids), places)
        self._ids += ids
        self._batches.append((flat, lengths, text_lengths, keys))
        num_tokens = len(flat) + len(ids) * (len(self._before) + len(self._after))
        self._chunk_tokens += num_tokens
        self._tokens += num_tokens
        self._documents += len(ids)
        self._text_bytes += int(text_lengths.sum())

    def end_chunk(self) -> None:
        """Spill the documents that wait, in the order of their keys."""
        import pyarrow as pa

        if not self._ids:
            return
        lengths, text_lengths, keys = (
            np.concatenate([batch[i] for batch in self._batches]) for i in range(1, len(self._batches[0]))
        )
        order = np.arange(len(keys)) if self._task.shuffle_seed is None else np.argsort(keys, kind="stable")
        num_before, num_after = len(self._before), len(self._after)
        offsets = np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(lengths[order] + (num_before + num_after), out=offsets[1:])
        starts = np.empty(len(order), dtype=np.int64)
        starts[order] = offsets[:-1] + num_before
        tokens = self._task.scratch.take(int(offsets[-1]), self._task.tokenizer.dtype)
        if num_before:
            tokens[offsets[:-1]] = self._before
        if num_after:
            tokens[offsets[1:] - 1] = self._after
        first = 0
        for flat, of_batch, *_ in self._batches:
            scatter(tokens, starts[first : first + len(of_batch)], flat, np.cumsum(of_batch))
            first += len(of_batch)
        schema = spill_schema(tokens.dtype, self._task.chat is not None)
        columns = [
            pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens), type=schema.field("tokens").type),
            pa.array(text_lengths[order]),
            pa.array(self._ids, pa.large_string()).take(pa.array(order)),
            *([] if self._task.chat is None else [stretches([self._scored[i] for i in order.tolist()])]),
            pa.array(keys[order]),
        ]
        self._scored = []
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        self._ids, self._batches, self._chunk_tokens = [], [], 0

    def flush_rejects(self) -> None:
        """Make the lines rejected durable."""
        if self._rejects_file is not None:
            self._rejects_file.flush()
            os.fsync(self._rejects_file.fileno())

    def progress(self) -> Progress:
        return Progress(self._num_bytes, self._lines, self._documents, self._tokens, self.rejected, self._worst)

    def record(self) -> dict[str, Any]:
        conversations = {} if self._task.chat is None else {"conversations": self._conversations}
        return conversations | {
            "documents": self._documents,
            "tokens": self._tokens,
            "bytes": self._text_bytes,
            "input_bytes": self._num_bytes,
            "lines": self._lines_per_part,
            "rejected": self.rejected,
            "reasons": self._reasons,
            "skipped": self._skipped,
            "worst": self._worst,
            "max_reject_rate": self._task.max_reject_rate,
        }
