"""Documents -> token shards: tokenized once, read by every run at any ratio.

A folder of shards holds Arrow IPC files (one record batch each: `tokens` as a list of uint16 or uint32 per
document, `num_bytes` of its UTF-8 text, its `id`) and `manifest.json`, written last: without it there are no shards.
A shard stores one document after the other, so all of its tokens are one contiguous array that is mapped,
never loaded; `source.py` reads it.

The manifest holds the tokenizer's identity, the settings, the identity of the input, and per file documents, tokens,
bytes of text, size and SHA-256. Asking again with the same input and settings returns it; with others it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lingua_synth.documents import Document, Rejects, read_documents
from lingua_synth.documents.locations import PYTHON_CORPUS, are_same_files, describe_files, find_all_files
from lingua_synth.documents.unfinished import begin_folder, end_folder
from lingua_synth.files import atomic_file, folder_lock, read_json, write_json
from lingua_synth.tokens.tokenizer import Tokenizer

FORMAT = "lingua_synth token shards"
VERSION = 1
MANIFEST = "manifest.json"
BATCH_DOCUMENTS = 512
BATCH_BYTES = 4_000_000


def tokenize(
    documents: Iterable[Document] | str | Sequence[str],
    out_dir: str | Path,
    tokenizer: Tokenizer,
    *,
    add_bos: bool = True,
    add_eos: bool = True,
    shuffle_seed: int | None = 0,
    shard_tokens: int = 1 << 26,
    max_reject_rate: float = 0.01,
    rejects: Rejects | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Tokenize `documents` (objects, or paths for `read_documents`) into the folder `out_dir`; returns its manifest.

    Every document becomes BOS, its ids, EOS as asked, whole in one file; files hold at most `shard_tokens` tokens
    unless one document is longer. Order: a permutation of all documents seeded by `shuffle_seed`, which keeps the
    tokens (2 or 4 bytes each) of the whole corpus in memory until it is written; `None` keeps the input's order
    and needs memory for one shard only. The same documents, tokenizer and settings give the same shards, byte for byte.

    Lines that are no document are counted in `rejects` (default: `rejects.jsonl` in the folder, at most
    `max_reject_rate`), documents without text or tokens under `skipped` in the manifest; both are left out.

    A finished folder of the same input and settings is returned as it is. Input files are the same when name and
    size agree and either the modification time or the SHA-256 does; objects are read through and compared by hash.
    Raises ValueError for a finished folder of other input or settings (naming what differs), a folder in use by
    another process, too many rejects, a BOS or EOS the tokenizer lacks, and for input without a single token.
    """
    tokenizer.validate_specials(add_bos, add_eos)
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens is the most tokens of one file and must be positive; got {shard_tokens}")
    settings = {
        "tokenizer": tokenizer.describe(),
        "add_bos": add_bos,
        "add_eos": add_eos,
        "shuffle_seed": shuffle_seed,
        "shard_tokens": shard_tokens,
    }
    files = _input_files(documents)
    out_dir = Path(out_dir)
    with folder_lock(out_dir, "tokenization"):
        if (out_dir / MANIFEST).exists():
            return _finished(out_dir, settings, documents, files)
        begin_folder(out_dir, ("shard-*.arrow",))
        rejects = rejects or Rejects(out_dir / "rejects.jsonl", max_reject_rate)
        counter = _Counter()
        texts = _iterate(documents, rejects)
        described = describe_files(files) if files is not None else None
        with rejects:
            pieces = _encode_documents(_with_progress(texts, progress), tokenizer, add_bos, add_eos, counter)
            shards = _write_shards(out_dir, _in_order(pieces, shuffle_seed), tokenizer.dtype, shard_tokens)
        inputs = {"files": described} if described is not None else {"documents_sha256": counter.sha256.hexdigest()}
        if not shards:
            raise ValueError(f"no tokens in the documents given: {_skipped_in_words(counter, rejects)}")
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **settings,
            "dtype": tokenizer.dtype.name,
            "inputs": inputs,
            "documents": sum(shard["documents"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
            "bytes": sum(shard["bytes"] for shard in shards),
            "lines_read": rejects.num_read,
            "skipped": {**rejects.counts, **counter.skipped},
            "files": shards,
        }
        write_json(out_dir / MANIFEST, manifest)
        end_folder(out_dir)
        return manifest


@dataclass(slots=True)
class _Encoded:
    """One document, ready to be stored."""

    id: str
    num_bytes: int
    tokens: npt.NDArray[Any]


@dataclass
class _Counter:
    """What passed through the encoder: documents skipped by reason, and the hash of every id and text."""

    skipped: dict[str, int] = field(default_factory=dict)
    sha256: Any = field(default_factory=hashlib.sha256)

    def skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def hash(self, document_id: str, text: bytes) -> None:
        for part in (document_id.encode("utf-8", errors="surrogatepass"), text):
            self.sha256.update(len(part).to_bytes(8, "little") + part)


def _input_files(documents: Iterable[Document] | str | Sequence[str]) -> list[str] | None:
    """The files to read, or None where documents come as objects."""
    if isinstance(documents, str):
        return None if documents == PYTHON_CORPUS else find_all_files(documents)
    if isinstance(documents, list | tuple) and documents and all(isinstance(path, str) for path in documents):
        return find_all_files(documents)
    return None


def _iterate(documents: Any, rejects: Rejects) -> Iterable[Document]:
    is_path = isinstance(documents, str) or _input_files(documents) is not None
    return read_documents(documents, rejects) if is_path else documents


def _encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, add_bos: bool, add_eos: bool, counter: _Counter
) -> Iterator[_Encoded]:
    before = [tokenizer.bos_id] * add_bos
    after = [tokenizer.eos_id] * add_eos
    for batch in _batches(documents, counter):
        encoded = tokenizer.encode_batch([document.text for document, _ in batch])
        for (document, num_bytes), ids in zip(batch, encoded, strict=True):
            if not len(ids):
                counter.skip("zero tokens")
                continue
            tokens = np.concatenate([np.array(before, tokenizer.dtype), ids, np.array(after, tokenizer.dtype)])
            yield _Encoded(document.id, num_bytes, tokens)


def _batches(documents: Iterable[Document], counter: _Counter) -> Iterator[list[tuple[Document, int]]]:
    """Documents that can be encoded, with the UTF-8 bytes of their text."""
    batch: list[tuple[Document, int]] = []
    total = 0
    for document in documents:
        text = document.text.encode("utf-8", errors="surrogatepass")
        counter.hash(document.id, text)
        if not document.text.strip():
            counter.skip("empty text")
        elif b"\xed" in text and _has_surrogate(document.text):
            counter.skip("lone surrogate")
        else:
            batch.append((document, len(text)))
            total += len(text)
        if len(batch) == BATCH_DOCUMENTS or total >= BATCH_BYTES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def _in_order(pieces: Iterable[_Encoded], shuffle_seed: int | None) -> Iterable[_Encoded]:
    if shuffle_seed is None:
        return pieces
    kept = list(pieces)
    return (kept[i] for i in np.random.default_rng(shuffle_seed).permutation(len(kept)))


def _with_progress(documents: Iterable[Document], progress: bool) -> Iterator[Document]:
    from tqdm import tqdm

    # Characters, because documents differ a thousandfold in length.
    with tqdm(unit="char", unit_scale=True, desc="tokenize", disable=not progress, mininterval=0.5) as bar:
        for document in documents:
            yield document
            bar.update(len(document.text))


# --- files ---


def shard_name(index: int) -> str:
    """File name of the shard at `index`, counted from 0."""
    return f"shard-{index:05d}.arrow"


def _write_shards(
    out_dir: Path, pieces: Iterable[_Encoded], dtype: np.dtype[Any], shard_tokens: int
) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    shard: list[_Encoded] = []
    num_tokens = 0
    for piece in pieces:
        if shard and num_tokens + len(piece.tokens) > shard_tokens:
            entries.append(_write_shard(out_dir / shard_name(len(entries)), shard, dtype))
            shard, num_tokens = [], 0
        shard.append(piece)
        num_tokens += len(piece.tokens)
    if shard:
        entries.append(_write_shard(out_dir / shard_name(len(entries)), shard, dtype))
    return entries


def shard_schema(dtype: np.dtype[Any]) -> Any:
    """Arrow schema of a shard whose token ids are of `dtype`."""
    import pyarrow as pa

    tokens = pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))
    columns = [("tokens", tokens), ("num_bytes", pa.uint64()), ("id", pa.large_string())]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


def _write_shard(path: Path, pieces: Sequence[_Encoded], dtype: np.dtype[Any]) -> dict[str, Any]:
    offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(piece.tokens) for piece in pieces], out=offsets[1:])
    tokens = np.concatenate([piece.tokens for piece in pieces], dtype=dtype)
    return write_shard(path, tokens, offsets, [piece.num_bytes for piece in pieces], [piece.id for piece in pieces])


def write_shard(
    path: str | Path, tokens: npt.NDArray[Any], offsets: npt.NDArray[np.int64], num_bytes: Any, ids: Any
) -> dict[str, Any]:
    """Write one shard atomically; returns its entry of the manifest.

    Document i has the tokens `tokens[offsets[i]:offsets[i + 1]]` (offsets int64, from 0 to len(tokens)), `num_bytes[i]`
    bytes of UTF-8 text and the id `ids[i]`; both may be any sequence or Arrow array. The SHA-256 is taken while writing.
    """
    import pyarrow as pa

    assert offsets[0] == 0 and offsets[-1] == len(tokens), "the documents of a shard cover its tokens"
    path = Path(path)
    schema = shard_schema(tokens.dtype)
    columns = [
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens), type=schema.field("tokens").type),
        num_bytes if isinstance(num_bytes, pa.Array) else pa.array(num_bytes, pa.uint64()),
        ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string()),
    ]
    # One record batch: only inside one batch are the tokens of all documents one contiguous array.
    with atomic_file(path, "wb") as file:
        hashed = HashedFile(file)
        with pa.ipc.new_file(hashed, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return {
        "name": path.name,
        "documents": len(offsets) - 1,
        "tokens": len(tokens),
        "bytes": int(np.sum(np.asarray(columns[1]), dtype=np.uint64)),
        "file_bytes": hashed.num_bytes,
        "sha256": hashed.sha256.hexdigest(),
    }


class HashedFile:
    """A file being written, with the SHA-256 and the number of the bytes that went in: it need not be read again."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        """Append `data` (bytes or a buffer)."""
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        self._file.write(view)
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()


# --- a folder that is finished ---


def _finished(
    out_dir: Path,
    settings: dict[str, Any],
    documents: Iterable[Document] | str | Sequence[str],
    files: list[str] | None,
) -> dict[str, Any]:
    manifest = read_manifest(out_dir)
    differing = [
        f"{key} is {_shown(manifest.get(key))} there and {_shown(asked)} now"
        for key, asked in settings.items()
        if _identity(manifest.get(key)) != _identity(asked)
    ]
    if not differing and not _is_same_input(manifest["inputs"], documents, files):
        differing = ["the documents are others"]
    if differing:
        raise ValueError(
            f"{out_dir} holds finished token shards of other settings: {'; '.join(differing)}. "
            "Choose another folder, or delete this one."
        )
    return manifest


def _is_same_input(
    inputs: dict[str, Any], documents: Iterable[Document] | str | Sequence[str], files: list[str] | None
) -> bool:
    if files is not None:
        return are_same_files(files, inputs.get("files") or [])
    counter = _Counter()
    for document in _iterate(documents, Rejects()):
        counter.hash(document.id, document.text.encode("utf-8", errors="surrogatepass"))
    return inputs.get("documents_sha256") == counter.sha256.hexdigest()


def _identity(value: Any) -> Any:
    # A vocabulary is its hash; the same file may lie elsewhere on another machine.
    return value.get("sha256") if isinstance(value, dict) else value


def _shown(value: Any) -> str:
    return f"{value['name']} ({value['sha256'][:12]})" if isinstance(value, dict) else repr(value)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a folder of token shards; ValueError when there is none or it is of another kind or version."""
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise ValueError(f"no token shards in {path} (no {MANIFEST}); make them with lingua-synth tokenize out={path}")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path / MANIFEST} is not a manifest of token shards; choose another folder")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{path} holds token shards of version {manifest.get('version')}, this library reads version {VERSION}; "
            "tokenize the documents again into another folder"
        )
    return manifest


def _skipped_in_words(counter: _Counter, rejects: Rejects) -> str:
    counts = {**rejects.counts, **counter.skipped}
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "there is no document"
