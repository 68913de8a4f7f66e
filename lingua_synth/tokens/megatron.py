"""Megatron's indexed datasets (`PREFIX.bin` and `PREFIX.idx`) <-> token shards.

The format, as megatron-core 0.16.1 reads and writes it, little-endian:

    .bin   the token ids of all sequences, one after the other
    .idx   9 bytes  b"MMIDIDX" and two zeros
           8 bytes  version, 1
           1 byte   type of the ids: one of `DTYPES`
           8 bytes  S, number of sequences
           8 bytes  D + 1, with D the number of documents
           int32    [S]      ids of each sequence
           int64    [S]      where each sequence begins in .bin, in bytes
           int64    [D + 1]  index of the first sequence of each document, and S

Token ids go through unchanged, BOS and EOS included. What the format has no place for, the vocabulary and the settings,
is written beside it as `PREFIX.json`; ids of documents are not kept.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.documents.unfinished import begin_folder, end_folder
from lingua_synth.files import atomic_file, folder_lock, read_json, sha256_file, what_is_there, write_json
from lingua_synth.tokens.shards import FORMAT as SHARD_FORMAT
from lingua_synth.tokens.shards import MANIFEST, HashedFile, read_manifest, shard_name, write_shard
from lingua_synth.tokens.shards import VERSION as SHARD_VERSION
from lingua_synth.tokens.source import TokenSource
from lingua_synth.tokens.tokenizer import Tokenizer

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}
# Megatron's own limit for uint16; there is no uint32 in the format.
UINT16_WORDS = 65_500
EXPORT_FORMAT = "lingua_synth export for Megatron"
EXPORT_VERSION = 1
BLOCK_TOKENS = 1 << 22


def export_megatron(source_dir: str | Path, out_prefix: str | Path, *, progress: bool = True) -> dict[str, Any]:
    """Write the token shards in `source_dir` as `out_prefix`.bin and .idx; returns what `out_prefix`.json records.

    One sequence a document, in the order of the shards; ids are uint16 below 65,500 words, else int32. Memory: 28 bytes
    a document. The json is written last and holds the tokenizer, the counts and the SHA-256 of .bin.

    Files of the same shards are left as they are. Raises ValueError for damaged shards, files of another origin under
    the prefix, and a document of 2^31 tokens or more.
    """
    source = TokenSource(source_dir)
    if source.is_masked:
        raise ValueError(
            f"{source_dir} says which of its tokens are scored, which Megatron's format cannot: a training on the "
            "export would learn the prompts too. Tokenize the documents without chat_template for that"
        )
    prefix = _prefix(out_prefix)
    bin_path, idx_path, json_path = _paths(prefix)
    if any(path.exists() for path in (bin_path, idx_path, json_path)):
        return _finished_export(source, prefix)
    tokenizer = source.manifest["tokenizer"]
    dtype = np.dtype(np.uint16 if tokenizer["n_words"] < UINT16_WORDS else np.int32)
    lengths = source.document_lengths
    if lengths.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"{source_dir} holds a document of {lengths.max():,} tokens; Megatron's format counts to 2^31")
    with atomic_file(bin_path, "wb") as file, atomic_file(idx_path, "wb") as index:
        hashed = HashedFile(file)
        for tokens in _blocks(source, progress):
            hashed.write(np.ascontiguousarray(tokens, dtype=dtype.newbyteorder("<")))
        index.write(HEADER.pack(MAGIC, VERSION, _code(dtype), len(lengths), len(lengths) + 1))
        index.write(lengths.astype("<i4"))
        index.write(((np.cumsum(lengths) - lengths) * dtype.itemsize).astype("<i8"))
        index.write(np.arange(len(lengths) + 1, dtype="<i8"))
    record = {
        "format": EXPORT_FORMAT,
        "version": EXPORT_VERSION,
        "tokenizer": tokenizer,
        "add_bos": source.manifest["add_bos"],
        "add_eos": source.manifest["add_eos"],
        "dtype": dtype.name,
        "documents": source.num_documents,
        "tokens": source.num_tokens,
        "bytes": source.num_bytes,
        "bin_bytes": hashed.num_bytes,
        "bin_sha256": hashed.sha256.hexdigest(),
        "source_fingerprint": source.fingerprint,
    }
    write_json(json_path, record)
    return record


def import_megatron(
    prefix: str | Path,
    out_dir: str | Path,
    tokenizer: Tokenizer,
    *,
    shard_tokens: int = 1 << 26,
    progress: bool = True,
) -> dict[str, Any]:
    """Turn `prefix`.bin and .idx into token shards in `out_dir`; returns their manifest.

    Documents keep their order, ids and special tokens; the sequences of a document are joined; document i is called
    `name:i` after the prefix. Documents without a token are left out and counted. `add_bos` and `add_eos` in the
    manifest say what every document was found to have. The bytes of text, which bits per byte are counted in, are not
    in Megatron's files: they are those of the decoded tokens. Files hold at most `shard_tokens` tokens unless
    one document is longer; memory is that of one file and of the index.

    A finished import of the same files and settings is returned as it is. Raises ValueError when one of the two files
    is missing, is no indexed dataset, is cut short or does not fit the other; for ids that are no integers or not in
    the vocabulary; when `prefix`.json names another vocabulary; for a folder of other content or in use.
    """
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens is the most tokens of one file and must be positive; got {shard_tokens}")
    prefix = _prefix(prefix)
    dataset = _open_dataset(prefix)
    _refuse_other_vocabulary(prefix, tokenizer)
    out_dir = Path(out_dir)
    settings = {"tokenizer": tokenizer.describe(), "shuffle_seed": None, "shard_tokens": shard_tokens}
    with folder_lock(out_dir, "import"):
        inputs = {"megatron": {path.suffix[1:]: sha256_file(path) for path in _paths(prefix)[:2]}}
        if (out_dir / MANIFEST).exists():
            return _finished_import(out_dir, settings, inputs)
        begin_folder(out_dir, ("shard-*.arrow",))
        converter = _Converter(prefix, dataset, tokenizer)
        files: list[dict[str, Any]] = []
        with _bar("import", dataset.num_tokens, progress) as bar:
            for start, end in _shard_ranges(dataset.first_tokens, shard_tokens):
                if columns := converter.columns(start, end):
                    files.append(
                        write_shard(out_dir / shard_name(len(files)), *columns, tokenizer_sha256=tokenizer.sha256)
                    )
                bar.update(int(dataset.first_tokens[end] - dataset.first_tokens[start]))
        if not files:
            raise ValueError(f"{prefix}.bin holds no tokens ({dataset.num_documents:,} documents)")
        manifest = {
            "format": SHARD_FORMAT,
            "version": SHARD_VERSION,
            **settings,
            "add_bos": converter.all_have_bos,
            "add_eos": converter.all_have_eos,
            "dtype": tokenizer.dtype.name,
            "inputs": inputs,
            "documents": sum(entry["documents"] for entry in files),
            "tokens": sum(entry["tokens"] for entry in files),
            "bytes": sum(entry["bytes"] for entry in files),
            "lines_read": dataset.num_documents,
            "skipped": {"zero tokens": converter.num_empty} if converter.num_empty else {},
            "files": files,
        }
        write_json(out_dir / MANIFEST, manifest)
        end_folder(out_dir)
        return manifest


def read_export(prefix: str | Path) -> dict[str, Any] | None:
    """What `export_megatron` recorded beside the files of `prefix`, or None where there is no such record."""
    path = _paths(_prefix(prefix))[2]
    if not path.is_file():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != EXPORT_FORMAT:
        return None
    if record.get("version") != EXPORT_VERSION:
        raise ValueError(
            f"{path} is of version {record.get('version')}, this library reads {EXPORT_VERSION}; remove it"
        )
    return record


# --- reading ---


@dataclass(frozen=True)
class _Dataset:
    """A pair of files, mapped: document i has `tokens` from `first_tokens[i]` to `first_tokens[i + 1]`."""

    tokens: npt.NDArray[Any]
    first_tokens: npt.NDArray[np.int64]

    @property
    def num_documents(self) -> int:
        return len(self.first_tokens) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.first_tokens[-1])


def _open_dataset(prefix: Path) -> _Dataset:
    bin_path, idx_path, _ = _paths(prefix)
    missing = [path for path in (bin_path, idx_path) if not path.is_file()]
    if missing:
        words = " and ".join(path.name for path in missing)
        raise ValueError(f"an indexed dataset is {prefix}.bin and .idx; no {words}: {what_is_there(bin_path)}")
    dtype, lengths, pointers, document_indices = _read_index(idx_path)
    if not np.issubdtype(dtype, np.integer):
        raise ValueError(f"{idx_path} is of {dtype.name}; token ids are integers")
    first = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if len(lengths) and (lengths.min() < 0 or not np.array_equal(pointers, first[:-1] * dtype.itemsize)):
        raise ValueError(f"{idx_path} is damaged: its sequences do not follow each other in {bin_path.name}")
    if (
        not len(document_indices)
        or document_indices[0] != 0
        or document_indices[-1] != len(lengths)
        or (np.diff(document_indices) < 0).any()
    ):
        raise ValueError(f"{idx_path} is damaged: its documents do not cover its {len(lengths):,} sequences")
    size, expected = os.path.getsize(bin_path), int(first[-1]) * dtype.itemsize
    if size != expected:
        what = "is cut short" if size < expected else "is longer than its index"
        raise ValueError(
            f"{bin_path} {what}: {size:,} bytes, {idx_path.name} names {expected:,}; copy both files again"
        )
    tokens = np.memmap(bin_path, dtype=dtype, mode="r") if expected else np.empty(0, dtype)
    return _Dataset(tokens, first[document_indices])


def _read_index(path: Path) -> tuple[np.dtype[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """(type of the ids, lengths, pointers, document indices), the arrays mapped."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{path} is not the index of an indexed dataset of Megatron: it does not begin with {MAGIC!r}")
    _, version, code, num_sequences, num_indices = HEADER.unpack(header)
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}; known is version {VERSION}")
    if code not in DTYPES:
        known = ", ".join(f"{known} {name}" for known, name in DTYPES.items())
        raise ValueError(f"{path} is of the unknown type {code}; known are {known}")
    expected = HEADER.size + 12 * num_sequences + 8 * num_indices
    if size == expected + num_sequences and num_sequences:
        raise ValueError(f"{path} is of a multimodal dataset (it has a mode for each sequence); only text is imported")
    if size != expected:
        raise ValueError(
            f"{path} is cut short or damaged: {size:,} bytes, {num_sequences:,} sequences and {num_indices:,} document "
            f"indices take {expected:,}; copy the file again"
        )
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    ends = HEADER.size + 4 * num_sequences, HEADER.size + 12 * num_sequences
    return (
        np.dtype(DTYPES[code]).newbyteorder("<"),
        mapped[HEADER.size : ends[0]].view("<i4"),
        mapped[ends[0] : ends[1]].view("<i8"),
        mapped[ends[1] :].view("<i8"),
    )


def _shard_ranges(first_tokens: npt.NDArray[np.int64], shard_tokens: int) -> list[tuple[int, int]]:
    """[start, end) of the documents of each shard: as many as fit, at least one."""
    ranges, start, num_documents = [], 0, len(first_tokens) - 1
    while start < num_documents:
        end = max(start + 1, bisect_right(first_tokens, first_tokens[start] + shard_tokens) - 1)
        ranges.append((start, end))
        start = end
    return ranges


class _Converter:
    """Documents of a dataset -> the columns of shards, checked against the vocabulary."""

    def __init__(self, prefix: Path, dataset: _Dataset, tokenizer: Tokenizer) -> None:
        self._prefix, self._dataset, self._tokenizer = prefix, dataset, tokenizer
        self.all_have_bos = self.all_have_eos = True
        self.num_empty = 0

    def columns(self, start: int, end: int) -> tuple[Any, Any, Any, list[str]] | None:
        """(tokens, offsets, num_bytes, ids) of the documents [start, end), None when they are all empty."""
        first = self._dataset.first_tokens
        found = self._dataset.tokens[first[start] : first[end]]
        self._refuse_unknown_ids(found, int(first[start]))
        tokens = np.asarray(found).astype(self._tokenizer.dtype)
        lengths = np.diff(first[start : end + 1])
        numbers = start + np.flatnonzero(lengths)
        self.num_empty += end - start - len(numbers)
        if not len(numbers):
            return None
        offsets = np.concatenate([[0], np.cumsum(lengths[lengths > 0])])
        self.all_have_bos &= bool((tokens[offsets[:-1]] == self._tokenizer.bos_id).all())
        self.all_have_eos &= bool((tokens[offsets[1:] - 1] == self._tokenizer.eos_id).all())
        num_bytes = self._tokenizer.count_text_bytes(tokens, offsets)
        return tokens, offsets, num_bytes, [f"{self._prefix.name}:{number}" for number in numbers]

    def _refuse_unknown_ids(self, tokens: npt.NDArray[Any], first_token: int) -> None:
        if not len(tokens) or (tokens.min() >= 0 and tokens.max() < self._tokenizer.n_words):
            return
        at = int(np.flatnonzero((tokens < 0) | (tokens >= self._tokenizer.n_words))[0])
        document = bisect_right(self._dataset.first_tokens, first_token + at) - 1
        raise ValueError(
            f"{self._prefix}.bin holds the id {tokens[at]} in document {document}, the vocabulary "
            f"{_named(self._tokenizer)} has ids 0 to {self._tokenizer.n_words - 1}; name the tokenizer it was made with"
        )


def _refuse_other_vocabulary(prefix: Path, tokenizer: Tokenizer) -> None:
    record = read_export(prefix)
    if record is not None and record["tokenizer"]["sha256"] != tokenizer.sha256:
        made = record["tokenizer"]
        raise ValueError(
            f"{prefix}.json says that the ids are of {made['name']} ({made['sha256'][:12]}, from {made['path']}), the "
            f"tokenizer given is {_named(tokenizer)}"
        )


# --- what is there already ---


def _finished_export(source: TokenSource, prefix: Path) -> dict[str, Any]:
    record = read_export(prefix)
    bin_path, idx_path, _ = _paths(prefix)
    if record is None or not (bin_path.is_file() and idx_path.is_file()):
        if record is not None or not (bin_path.is_file() and idx_path.is_file()):
            words = f"an export to {prefix} was interrupted or one of its files removed"
        else:
            words = f"{bin_path} and {idx_path.name} are there and not of this library"
        raise ValueError(f"{words}; delete what is there, or choose another prefix")
    if record["source_fingerprint"] != source.fingerprint:
        raise ValueError(f"{prefix}.bin was exported from other shards than {source.path}; choose another prefix")
    if os.path.getsize(bin_path) != record["bin_bytes"]:
        raise ValueError(f"{bin_path} was changed since it was exported; delete it with its .idx and .json")
    return record


def _finished_import(out_dir: Path, settings: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    manifest = read_manifest(out_dir)
    same = manifest["inputs"] == inputs and manifest["tokenizer"]["sha256"] == settings["tokenizer"]["sha256"]
    if not same or manifest["shard_tokens"] != settings["shard_tokens"]:
        raise ValueError(f"{out_dir} holds finished token shards of other files or settings; choose another folder")
    return manifest


# --- small things ---


def _prefix(prefix: str | Path) -> Path:
    path = Path(prefix)
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def _paths(prefix: Path) -> tuple[Path, Path, Path]:
    bin_path, idx_path, json_path = (prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx", ".json"))
    return bin_path, idx_path, json_path


def _named(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.name} ({tokenizer.sha256[:12]}, from {tokenizer.path})"


def _code(dtype: np.dtype[Any]) -> int:
    return next(code for code, name in DTYPES.items() if name == dtype.name)


def _blocks(source: TokenSource, progress: bool) -> Any:
    with _bar("export", source.num_tokens, progress) as bar:
        for start in range(0, source.num_tokens, BLOCK_TOKENS):
            tokens = source.window(start, min(BLOCK_TOKENS, source.num_tokens - start))
            yield tokens
            bar.update(len(tokens))


def _bar(desc: str, num_tokens: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=num_tokens, unit="tok", unit_scale=True, desc=desc, disable=not progress, mininterval=0.5)
