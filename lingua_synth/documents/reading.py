"""Files of documents -> `Document` after `Document`, in constant memory; and back to a file.

A line (or parquet row) is one document: `text`, or `content` where there is no `text`; `id`, or the hash of the
text; `meta`, to which every other key of the line is added, so that nothing of the input is lost on the way to
an output. What cannot be a document is reported to `Rejects` with file and line and skipped; what makes a whole
file unreadable (a cut .gz, a parquet without text) is a ValueError that names it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from lingua_synth.documents.document import Document, document_id, utf8_document_id
from lingua_synth.documents.locations import PYTHON_CORPUS, SUFFIXES, find_all_files, is_url, open_file
from lingua_synth.documents.rejects import Rejects
from lingua_synth.files import atomic_file

TEXT_KEYS = ("text", "content")
PARQUET_BATCH_ROWS = 256
PARQUET_GROUP_ROWS = 4096


class BadLine(Exception):
    """A line that is no document; the message is the reason it is counted under."""


def read_documents(path: str | Sequence[str], rejects: Rejects | None = None) -> Iterator[Document]:
    """Yield the documents of a file, folder, glob, URL, or of several, in sorted order of their files.

    `python://` yields the built-in corpus (`python_documents`). Constant memory: one line or 256 rows at a time.
    A line that is blank, not UTF-8, not JSON, no object, or without a non-empty text is counted in `rejects` by
    reason, file and line, never raised; too many of them stop the reading (`Rejects.check`). Without `rejects`,
    one with the default limits is used, and a warning at the end gives the counts.
    Raises ValueError for a path that matches nothing and for a file that cannot be read as what its name says.
    """
    if path == PYTHON_CORPUS:
        from lingua_synth.documents.python_corpus import python_documents

        return python_documents()
    files = find_all_files(path)
    return _read_files(files, Rejects() if rejects is None else rejects, warn=rejects is None)


def _read_files(files: Sequence[str], rejects: Rejects, *, warn: bool) -> Iterator[Document]:
    for file in files:
        with readable(file):
            yield from _read_file(file, rejects)
    rejects.check()
    if warn and rejects.num_rejected:
        warnings.warn(
            f"skipped {rejects.num_rejected:,} of {rejects.num_read:,} lines of {', '.join(files[:3])}"
            f"{', ...' if len(files) > 3 else ''}: {rejects.summary()}",
            stacklevel=2,
        )


def _read_file(file: str, rejects: Rejects) -> Iterator[Document]:
    rows: Iterator[tuple[int, Any]] = _json_lines(file)
    parse: Callable[[Any], Document] = _parse_line
    if file.endswith(".parquet"):
        rows, parse = _parquet_rows(file), _parse_row
    for line, row in rows:
        rejects.num_read += 1
        try:
            document = parse(row)
        except BadLine as bad:
            rejects.add(file, line, str(bad))
            rejects.check()
            continue
        yield document


@contextlib.contextmanager
def readable(file: str) -> Iterator[None]:
    """Turn what the libraries below raise for a damaged file into one ValueError with its name."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} is damaged or cut short ({error}); make or copy it again") from None


# --- JSON lines ---


def _json_lines(file: str) -> Iterator[tuple[int, bytes]]:
    with open_file(file) as raw, decompressed(raw, file) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line


def decompressed(raw: IO[bytes], file: str) -> IO[bytes]:
    """The bytes of `file`, opened as `raw`, without its compression."""
    if file.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb"))
    if file.endswith(".zst"):
        return io.BufferedReader(_ZstdReader(raw, file), 1 << 20)
    return raw


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of one or several zstd frames; a frame cut short is an error, as in gzip.

    zstandard's own `stream_reader` ends silently where a cut file ends.
    """

    def __init__(self, raw: IO[bytes], file: str) -> None:
        self._zstandard = _zstandard(file)
        self._raw = raw
        self._decoder: Any = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            if not self._compressed:
                self._compressed = self._raw.read(1 << 18)
            if not self._compressed:
                if self._decoder is not None:
                    raise EOFError("the last zstd frame has no end")
                return 0
            if self._decoder is None:
                self._decoder = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._decoder.decompress(self._compressed))
            except self._zstandard.ZstdError as error:
                raise EOFError(f"not zstd: {error}") from None
            self._compressed = b""
            if self._decoder.eof:
                self._compressed, self._decoder = self._decoder.unused_data, None
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _zstandard(file: str | Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise ValueError(f"{file} needs zstandard: pip install zstandard") from None
    return zstandard


def _parse_line(line: bytes) -> Document:
    return _document(decode_line(line))


def parse_id_and_utf8(line: bytes) -> tuple[str, bytes]:
    """The id and the text, as UTF-8, of one line of JSON by the rules of `read_documents`; BadLine: why there are none.

    What nearly every line is, an object with a text, takes a way of its own, half as long.
    """
    try:
        row = _load_json(line)
        text = row["text"] if "text" in row else row["content"]
        identity = row.get("id")
        data: bytes = text.encode()
        is_plain = (identity is None or identity.__class__ is str) and not text.isspace()
    except (BadLine, TypeError, KeyError, AttributeError, UnicodeEncodeError):
        is_plain = False
    if not (is_plain and data):
        identity, text = _take_id_and_text(decode_line(line))
        return identity, text.encode("utf-8")
    return identity or utf8_document_id(data), data


def decode_line(line: bytes) -> dict[str, Any]:
    """The object in one line of JSON; BadLine: why there is none."""
    if not line or line.isspace():
        raise BadLine("blank line")
    value = _load_json(line)
    if not isinstance(value, dict):
        raise BadLine("not a JSON object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _load_json_strictly(line: bytes) -> Any:
    """The rule for what a line means; orjson, where it is installed, is only a faster way to the same result."""
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise BadLine("not UTF-8") from None
    except RecursionError:
        raise BadLine("nested too deeply") from None
    except ValueError:
        raise BadLine("not JSON") from None
    if b"\\u" in line:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            # Half of a surrogate pair is no character: no tokenizer and no UTF-8 file can take it.
            raise BadLine("lone surrogate") from None
    return value


def _json_loader() -> Callable[[bytes], Any]:
    try:
        import orjson
    except ImportError:
        return _load_json_strictly

    def load(line: bytes) -> Any:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            return _load_json_strictly(line)
        # Whole numbers past 64 bits become floats in orjson; as an id they would change.
        if isinstance(value, dict) and isinstance(value.get("id"), float):
            return _load_json_strictly(line)
        return value

    return load


_load_json = _json_loader()


def _take_id_and_text(row: dict[str, Any]) -> tuple[str, str]:
    """The id and the text in a decoded line, taken out of it. BadLine says why it is no document."""
    key = next((key for key in TEXT_KEYS if key in row), None)
    if key is None:
        raise BadLine("no text")
    text = row.pop(key)
    if text is None:
        raise BadLine("text is null")
    if not isinstance(text, str):
        raise BadLine("text is not a string")
    if not text or text.isspace():
        raise BadLine("empty text")
    identity = row.pop("id", None)
    return document_id(text) if identity is None or identity == "" else str(identity), text


def _document(row: dict[str, Any]) -> Document:
    """The document in a decoded line; `row` is used up. BadLine says why there is none."""
    identity, text = _take_id_and_text(row)
    meta = row.pop("meta", None)
    if isinstance(meta, str) and meta.startswith("{"):  # how parquet files, ours too, carry it
        with contextlib.suppress(ValueError):
            meta = json.loads(meta)
    if meta is not None:
        row.update(meta if isinstance(meta, dict) else {"meta": meta})
    return Document(identity, text, row)


# --- parquet ---


def _parquet_rows(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_parquet(file) as table:
        number = 0
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            for row in batch_rows(batch):
                number += 1
                yield number, row


@contextlib.contextmanager
def open_parquet(file: str, keys: Sequence[str] = TEXT_KEYS) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` with one of the columns `keys`, by default a column of texts; damage found while
    it is read is a ValueError too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(file) as raw:
        try:
            table = pq.ParquetFile(raw)
            names = table.schema_arrow.names
            key = next((key for key in keys if key in names), None)
            if key is None:
                asked = " or ".join(keys) if len(keys) < 4 else f"{', '.join(keys[:3])} ..."
                raise ValueError(f"{file} has no column {asked}; its columns are {', '.join(names)}")
            if keys == TEXT_KEYS:
                _refuse_other_type(file, key, table.schema_arrow.field(key).type)
            yield table
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the disk, not the file's content
            raise ValueError(f"{file} cannot be read as parquet ({error}); make or copy it again") from None


def batch_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a record batch as dicts of Python values."""
    columns = {name: _column_values(batch.column(name)) for name in batch.schema.names}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _refuse_other_type(file: str, key: str, kind: Any) -> None:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise ValueError(f"{file}: the column {key} must hold strings, not {kind}")


def _column_values(column: Any) -> list[Any]:
    """The cells of one column as Python values; a cell that is not UTF-8 as the UnicodeDecodeError itself."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell_or_error(cell) for cell in column]


def _cell_or_error(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return error


def row_id_and_utf8(row: dict[str, Any]) -> tuple[str, bytes]:
    """`parse_id_and_utf8` for one row of parquet."""
    refuse_undecoded(row)
    identity, text = _take_id_and_text(row)
    return identity, text.encode("utf-8")


def refuse_undecoded(row: dict[str, Any]) -> None:
    """BadLine for a row of parquet with a cell that is not UTF-8."""
    if any(isinstance(value, UnicodeDecodeError) for value in row.values()):
        raise BadLine("not UTF-8")


def _parse_row(row: dict[str, Any]) -> Document:
    refuse_undecoded(row)
    text_keys = (*TEXT_KEYS, "id")
    return _document(
        {k: v if k in text_keys else _as_json(v) for k, v in row.items() if k in text_keys or v is not None}
    )


def _as_json(value: Any) -> Any:
    """A cell of parquet as JSON data: times, decimals and bytes as text, NaN as null."""
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


# --- writing ---


def write_documents(path: str | Path, documents: Iterable[Document]) -> int:
    """Write documents to a .jsonl, .jsonl.gz, .jsonl.zst or .parquet file of this machine; returns how many.

    The file appears when it is whole (`files.atomic_file`). The same documents give the same bytes.
    `read_documents` gives back equal documents. Constant memory. Raises ValueError for another
    suffix and, naming the document, for a text or meta that UTF-8 JSON cannot hold.
    """
    name = str(path)
    if is_url(name):
        raise ValueError(f"cannot write to {name}: documents are written to this machine's file system only")
    if not name.endswith(SUFFIXES):
        raise ValueError(f"cannot tell the format of {name}: its name must end in {', '.join(SUFFIXES)}")
    with atomic_file(path, "wb") as file:
        if name.endswith(".parquet"):
            return _write_parquet(file, documents)
        with _compressed(file, name) as lines:
            count = 0
            for document in documents:
                value = {"id": document.id, "text": document.text, "meta": document.meta}
                lines.write(_dump_json(value, document).encode("utf-8") + b"\n")
                count += 1
            return count


def _dump_json(value: Any, document: Document) -> str:
    try:
        dumped = json.dumps(value, ensure_ascii=False, allow_nan=False)
        dumped.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise ValueError(f"document {document.id!a} cannot be written as UTF-8 JSON: {error}") from None
    return dumped


@contextlib.contextmanager
def _compressed(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    if name.endswith(".gz"):
        # No time and no name in the header: equal documents, equal bytes.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
            yield cast(IO[bytes], stream)
    elif name.endswith(".zst"):
        with _zstandard(name).ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False) as stream:
            yield stream
    else:
        yield file


def _write_parquet(file: IO[bytes], documents: Iterable[Document]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # meta as JSON text: its keys may differ from document to document, columns may not.
    schema = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("meta", pa.string())])
    count = 0
    rows: list[tuple[str, str, str]] = []

    def write_group() -> None:
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        rows.clear()

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for document in documents:
            _dump_json([document.id, document.text], document)
            rows.append((document.id, document.text, _dump_json(document.meta, document)))
            count += 1
            if len(rows) == PARQUET_GROUP_ROWS:
                write_group()
        if rows or count == 0:
            write_group()
    return count
