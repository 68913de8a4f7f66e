"""The format of token shards: tokenized once, read by every run at any ratio.

A folder of shards holds Arrow IPC files (one record batch each: `tokens` as a list of uint16 or uint32 per
document, `num_bytes` of its UTF-8 text, its `id`) and `manifest.json`, written last: without it there are no shards.
Its schema names the vocabulary, so that a file is not read as ids of another one, whatever folder it came into.
Shards of conversations have a fourth column, `scored`: where the answers are, as the first token of a stretch and the
one after its last, and so on, counted in the document. All others' tokens are scored in training.
A shard stores one document after the other, so all of its tokens are one contiguous array that is mapped,
never loaded. `tokenization.py` makes them of documents, `source.py` reads them.

The manifest holds the tokenizer's identity, the settings, the identity of the input, and per file documents, tokens,
bytes of text, size and SHA-256.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lingua_synth.files import atomic_file, read_json, refuse_path

FORMAT = "lingua_synth token shards"
VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER_KEY = b"lingua_synth.tokenizer_sha256"
"""Of the schema's metadata: the SHA-256 of the vocabulary, hexadecimal. Shards of 0.1 have none."""


def shard_name(index: int) -> str:
    """File name of the shard at `index`, counted from 0."""
    return f"shard-{index:05d}.arrow"


def shard_schema(dtype: np.dtype[Any], masked: bool = False) -> Any:
    """Arrow schema of a shard whose token ids are of `dtype`; `masked`: it says which of its tokens are scored."""
    import pyarrow as pa

    tokens = pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))
    columns = [("tokens", tokens), ("num_bytes", pa.uint64()), ("id", pa.large_string())]
    if masked:
        columns.append(("scored", pa.large_list(pa.field("item", pa.uint32(), nullable=False))))
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


def write_shard(
    path: str | Path,
    tokens: npt.NDArray[Any],
    offsets: npt.NDArray[np.int64],
    num_bytes: Any,
    ids: Any,
    tokenizer_sha256: str | None = None,
    scored: Any = None,
) -> dict[str, Any]:
    """Write one shard atomically; returns its entry of the manifest.

    Document i has the tokens `tokens[offsets[i]:offsets[i + 1]]` (offsets int64, from 0 to len(tokens)), `num_bytes[i]`
    bytes of UTF-8 text and the id `ids[i]`; both may be any sequence or Arrow array. The SHA-256 is taken on the way.
    `tokenizer_sha256` is the vocabulary that the ids are of; None for ids of none. `scored`: an Arrow array of the
    stretches of scored tokens of each document; then the entry counts them. None: there is no such column.
    """
    import pyarrow as pa

    assert offsets[0] == 0 and offsets[-1] == len(tokens), "the documents of a shard cover its tokens"
    path = Path(path)
    schema = shard_schema(tokens.dtype, masked=scored is not None)
    columns = [
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens), type=schema.field("tokens").type),
        num_bytes if isinstance(num_bytes, pa.Array) else pa.array(num_bytes, pa.uint64()),
        ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string()),
    ]
    if scored is not None:
        columns.append(scored)
    if tokenizer_sha256 is not None:
        schema = schema.with_metadata({TOKENIZER_KEY: tokenizer_sha256})
    # One record batch: only inside one batch are the tokens of all documents one contiguous array.
    with atomic_file(path, "wb") as file:
        hashed = HashedFile(file)
        with pa.ipc.new_file(hashed, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    entry = {
        "name": path.name,
        "documents": len(offsets) - 1,
        "tokens": len(tokens),
        "bytes": int(np.sum(np.asarray(columns[1]), dtype=np.uint64)),
        "file_bytes": hashed.num_bytes,
        "sha256": hashed.sha256.hexdigest(),
    }
    return entry if scored is None else entry | {"scored_tokens": count_scored(scored)}


def count_scored(scored: Any) -> int:
    """Scored tokens of an Arrow array of stretches."""
    borders = scored.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return int(borders[1::2].sum() - borders[::2].sum())


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
    for file in manifest["files"]:
        refuse_path(file["name"], path / MANIFEST)
    return manifest
