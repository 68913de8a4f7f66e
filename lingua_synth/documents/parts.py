"""Files of documents in parts that can be read apart, each with nothing but ids and texts: what tokenization reads.

A part is a whole file, a stretch of bytes of an uncompressed .jsonl (the lines that begin in it), or a stretch of row
groups of a .parquet. The parts of a file hold each of its lines once, in order. What a line means is the rule of
`read_documents`; only `meta` is left where it is, and of parquet the other columns are not even
read. Files of conversations are read in the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO

from lingua_synth.documents.conversations import CONVERSATION_KEYS, parse_conversation_line, parse_conversation_row
from lingua_synth.documents.locations import is_url, open_file
from lingua_synth.documents.reading import (
    PARQUET_BATCH_ROWS,
    TEXT_KEYS,
    BadLine,
    batch_rows,
    decompressed,
    open_parquet,
    parse_id_and_utf8,
    readable,
    row_id_and_utf8,
)

BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class FilePart:
    """A stretch of one file of documents."""

    file: str
    """Path or URL."""
    num_bytes: int
    """Bytes of the file that this part stands for."""
    start: int = 0
    """First byte (.jsonl) or first row group (.parquet)."""
    stop: int | None = None
    """Byte or row group after the last one; None: to the end of the file."""

    @property
    def is_whole(self) -> bool:
        """Whether the part is its file."""
        return self.start == 0 and self.stop is None


def cut_file(file: str, size: int, max_bytes: int, *, conversations: bool = False) -> list[FilePart]:
    """The parts of a file of `size` bytes: nearly equal stretches of at most about `max_bytes`, where it can be cut.

    Compressed files, files behind a URL and single row groups cannot; they are one part whatever their size. Only a
    parquet file larger than `max_bytes` is opened (its footer is read); ValueError when that is damaged.
    """
    count = -(-size // max_bytes)
    if count <= 1 or is_url(file) or not file.endswith((".jsonl", ".parquet")):
        return [FilePart(file, size)]
    if file.endswith(".parquet"):
        with open_parquet(file, CONVERSATION_KEYS if conversations else TEXT_KEYS) as table:
            group_bytes = [table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)]
        return _parquet_parts(file, size, group_bytes, count)
    cuts = [size * i // count for i in range(count + 1)]
    return [FilePart(file, stop - start, start, stop) for start, stop in pairwise(cuts)]


def whole_file(file: str) -> FilePart:
    """A file as one part, for reading alone: its size is not looked up."""
    return FilePart(file, 0)


def document_place_part(file: str, place: int) -> FilePart:
    """A part of `file` that holds the document at `place` (`TextBatch.places`) and all behind it.

    It begins there in an uncompressed local file, with the row group in a parquet file, and with the file else, where
    whoever reads skips what has a lower place.
    """
    if file.endswith(".parquet"):
        with open_parquet(file) as table:
            end = 0
            for group in range(table.num_row_groups):
                end += table.metadata.row_group(group).num_rows
                if place < end:
                    return FilePart(file, 0, group)
        return FilePart(file, 0)
    if is_url(file) or not file.endswith(".jsonl"):
        return FilePart(file, 0)
    return FilePart(file, 0, place)


def _parquet_parts(file: str, size: int, group_bytes: Sequence[int], count: int) -> list[FilePart]:
    parts: list[FilePart] = []
    total, begun, start = sum(group_bytes), 0, 0
    done = 0
    for group, num_bytes in enumerate(group_bytes, 1):
        done += num_bytes
        if group == len(group_bytes) or done * count >= total * (len(parts) + 1):
            parts.append(FilePart(file, size * done // total - size * begun // total, start, group))
            begun, start = done, group
    return parts if len(parts) > 1 else [FilePart(file, size)]


@dataclass
class TextBatch:
    """Some lines in the order of the file: of each document its id, text and place, and the lines that are none."""

    ids: list[str] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    """UTF-8."""
    places: list[int] = field(default_factory=list)
    """What names a document in its file however the file is cut or compressed: the offset of the first byte of its line
    in the uncompressed text, or the number of its row from 0."""
    bad: list[tuple[int, str]] = field(default_factory=list)
    """(line, reason) of what is no document; lines count from 1 within the part (rows in parquet)."""


class TextReader:
    """One part, in batches. Raises ValueError, naming the file, when it is damaged.

    With `conversations` the text of a line is its messages, as `conversation_utf8` gives them.
    """

    def __init__(self, part: FilePart, *, conversations: bool = False) -> None:
        self.part = part
        self._conversations = conversations
        self.num_lines = 0
        """Lines read so far, bad ones included."""
        self._raw: IO[bytes] | None = None
        self._share = 0.0

    @property
    def num_bytes(self) -> int:
        """Bytes of the part read so far, of `part.num_bytes`."""
        if self._raw is not None:
            return min(self._raw.tell(), self.part.num_bytes)
        return int(self._share * self.part.num_bytes)

    def batches(self, max_lines: int, max_bytes: int) -> Iterator[TextBatch]:
        """The part, in batches that end behind `max_lines` lines or the text that makes `max_bytes` full."""
        with readable(self.part.file):
            read = self._rows if self.part.file.endswith(".parquet") else self._lines
            yield from read(max_lines, max_bytes)

    def _lines(self, max_lines: int, max_bytes: int) -> Iterator[TextBatch]:
        start, stop = self.part.start, self.part.stop
        parse = parse_conversation_line if self._conversations else parse_id_and_utf8
        with _open_buffered(self.part.file) as raw:
            place = 0
            if start:
                raw.seek(start - 1)  # a line that begins at `start` is ours, one that began before is not
                place = start - 1 + len(raw.readline())
            if start == 0 and stop is None:
                self._raw = raw
            end = stop if stop is not None else sys.maxsize
            batch = TextBatch()
            num_lines = num_bytes = 0
            with decompressed(raw, self.part.file) as lines:
                for line in lines:
                    if place >= end:
                        break
                    num_lines += 1
                    length = len(line)
                    if place == 0:
                        line = line.removeprefix(b"\xef\xbb\xbf")
                    try:
                        identity, text = parse(line)
                    except BadLine as bad:
                        batch.bad.append((self.num_lines + num_lines, str(bad)))
                    else:
                        batch.ids.append(identity)
                        batch.texts.append(text)
                        batch.places.append(place)
                        num_bytes += len(text)
                    place += length
                    if num_lines >= max_lines or num_bytes >= max_bytes:
                        self.num_lines += num_lines
                        if stop is not None:
                            self._share = min((place - start) / (stop - start), 1.0)
                        yield batch
                        batch = TextBatch()
                        num_lines = num_bytes = 0
            self._raw, self._share = None, 1.0
            self.num_lines += num_lines
            if num_lines:
                yield batch

    def _rows(self, max_lines: int, max_bytes: int) -> Iterator[TextBatch]:
        keys, parse = TEXT_KEYS, row_id_and_utf8
        if self._conversations:
            keys, parse = CONVERSATION_KEYS, parse_conversation_row
        with open_parquet(self.part.file, keys) as table:
            metadata = table.metadata
            groups = range(self.part.start, metadata.num_row_groups if self.part.stop is None else self.part.stop)
            first = sum(metadata.row_group(i).num_rows for i in range(self.part.start))
            num_rows = sum(metadata.row_group(i).num_rows for i in groups)
            names = table.schema_arrow.names
            columns = [key for key in keys if key in names]
            columns = (columns if self._conversations else columns[:1]) + ["id"] * ("id" in names)
            if not num_rows:
                return
            batch = TextBatch()
            num_lines = num_bytes = 0
            for rows in table.iter_batches(PARQUET_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
                for row in batch_rows(rows):
                    self.num_lines += 1
                    num_lines += 1
                    try:
                        identity, text = parse(row)
                    except BadLine as bad:
                        batch.bad.append((self.num_lines, str(bad)))
                    else:
                        batch.ids.append(identity)
                        batch.texts.append(text)
                        batch.places.append(first + self.num_lines - 1)
                        num_bytes += len(text)
                    if num_lines >= max_lines or num_bytes >= max_bytes:
                        self._share = self.num_lines / num_rows
                        yield batch
                        batch = TextBatch()
                        num_lines = num_bytes = 0
            self._share = 1.0
            if num_lines:
                yield batch


def _open_buffered(file: str) -> IO[bytes]:
    return open_file(file) if is_url(file) else open(file, "rb", buffering=BUFFER_BYTES)
