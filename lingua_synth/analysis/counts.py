"""Token shards -> how often each token of the vocabulary occurs: the numbers that all corpus statistics are made of.

One pass over the mapped files, on every core, in memory that does not grow with the corpus:

    files -> stretches of half a million tokens -> a count a thread -> one sum -> counts.npz beside its fingerprint

A count is a product of a sparse matrix with one column and the number one: scipy adds an entry to the row of
each token, in compiled code, without the interpreter's lock and on 32-bit ids as they lie in the file. numpy's bincount
first copies ids to 64 bits and holds the lock; it takes twice the time (`benchmarks/analysis.py`).

BOS and EOS are put there by tokenization, once a document: they are counted apart.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.files import atomic_file, sha256_json, what_is_there
from lingua_synth.tokens.source import TokenSource
from lingua_synth.tokens.workers import count_cores

FORMAT = "lingua_synth unigram counts"
VERSION = 1

# Tokens of one call: the 32-bit sums of a call, 513 kB at Llama 3's vocabulary, are made anew each time, and are small
# beside this many ids. From 2^17 to 2^20 the time falls by a quarter; beyond, ids no longer lie in the cache.
STRETCH_TOKENS = 1 << 19
# Tokens between two looks at the clock: at 1 Gtok/s what a kill loses is a few seconds beyond `SAVE_EVERY_S`.
GROUP_TOKENS = 1 << 30
SAVE_EVERY_S = 30.0


@dataclass(frozen=True)
class UnigramCounts:
    """How often each token occurs in a corpus; `num_tokens` is the sum of `counts`."""

    counts: npt.NDArray[np.int64]
    """int64 `[vocab_size]`; 0 at BOS and EOS, which are counted apart."""
    num_documents: int
    num_bytes: int
    """UTF-8 bytes of the documents' text."""
    num_bos: int
    num_eos: int
    tokenizer: Mapping[str, Any]
    """What the shards say of the vocabulary: name, path, sha256, n_words, bos_id, eos_id."""
    name: str
    """Name of the corpus, for tables: its folder's, if not said otherwise."""
    fingerprint: str
    """Identity of the token stream that was counted (of the shards, and `max_tokens` where it cut them)."""
    num_tokens_available: int
    """Tokens of the whole corpus, BOS and EOS included: more than were counted where `max_tokens` cut it."""

    @property
    def num_tokens(self) -> int:
        """Tokens counted, BOS and EOS apart."""
        return int(self.counts.sum())

    @property
    def vocab_size(self) -> int:
        """Words of the vocabulary, special tokens included."""
        return len(self.counts)

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """Shares of the tokens, float64 `[vocab_size]`, summing to 1. ValueError for a corpus without tokens."""
        if not self.num_tokens:
            raise ValueError(f"{self.name} has no tokens but BOS and EOS: nothing can be said of their frequencies")
        return self.counts / self.num_tokens

    def save(self, path: str | Path) -> None:
        """Write the counts as one .npz file, atomically; `load` reads them back to an equal object."""
        _write(Path(path), self.counts, {"counts": self._record()})

    @classmethod
    def load(cls, path: str | Path) -> UnigramCounts:
        """Read what `save` wrote; ValueError for a file that is missing, unfinished, damaged, or of another version."""
        counts, record = _read(Path(path))
        if "counts" not in record:
            raise ValueError(f"{path} is a count that was interrupted; count again, and it goes on from there")
        return cls(counts=counts, **record["counts"])

    def _record(self) -> dict[str, Any]:
        return {
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
            "num_bos": self.num_bos,
            "num_eos": self.num_eos,
            "tokenizer": dict(self.tokenizer),
            "name": self.name,
            "fingerprint": self.fingerprint,
            "num_tokens_available": self.num_tokens_available,
        }


def count_unigrams(
    shards_folder: str | Path,
    *,
    num_threads: int | None = None,
    max_tokens: int | None = None,
    name: str | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> UnigramCounts:
    """Count the tokens of a folder of token shards in one pass; the result does not depend on `num_threads`.

    `num_threads`: None for one a core. `max_tokens`: the first documents that together have at most so many tokens (BOS
    and EOS included); documents were shuffled when they were tokenized, so these are a random sample. `name`: None for
    the folder's. `cache`: a file (.npz) that keeps the counts: the same shards are not counted again, and a pass that
    was killed goes on, at most about half a minute back; counts of other shards are replaced. `progress`: a bar on
    stderr.

    Raises ValueError where there are no finished shards, for an id outside the vocabulary, and where the first
    document alone has more than `max_tokens` tokens.
    """
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads is at least 1, got {num_threads}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is at least 1, got {max_tokens}")
    source = TokenSource(shards_folder)
    name = name or Path(os.path.abspath(shards_folder)).name
    identity = source.fingerprint
    if max_tokens is not None and max_tokens < source.num_tokens:
        identity = sha256_json({"source": source.fingerprint, "max_tokens": max_tokens})
    counter = _Counter(source, max_tokens, identity)
    path = Path(cache) if cache is not None else None
    found = _cached(path, identity)
    if found is not None and "counts" in found[1]:
        return UnigramCounts(counts=found[0], **{**found[1]["counts"], "name": name})
    if found is not None:
        counter.resume(*found)
    counter.run(num_threads or count_cores(), path, progress)
    counts = counter.result(name)
    if path is not None:
        counts.save(path)
    return counts


def validate_same_vocabulary(corpora: Mapping[str, UnigramCounts]) -> None:
    """ValueError unless the ids of all corpora are of one vocabulary: counts of two cannot be compared."""
    validate_one_tokenizer({name: corpus.tokenizer for name, corpus in corpora.items()})


def validate_one_tokenizer(tokenizers: Mapping[str, Mapping[str, Any]]) -> None:
    """The same by what the corpora's shards say of their tokenizers (`manifest["tokenizer"]`), before any count."""
    kinds: dict[str, list[str]] = {}
    for name, tokenizer in tokenizers.items():
        kinds.setdefault(tokenizer["sha256"], []).append(name)
    if len(kinds) > 1:
        each = "; ".join(
            f"{', '.join(names)}: {tokenizers[names[0]]['name']}, {tokenizers[names[0]]['n_words']:,} words, "
            f"sha256 {sha256[:12]}..."
            for sha256, names in kinds.items()
        )
        raise ValueError(
            f"the corpora are of {len(kinds)} vocabularies, whose ids mean different words ({each}); tokenize all of "
            "them with one tokenizer"
        )


class _Counter:
    """The pass itself: stretches on threads, group after group, and a save between groups."""

    def __init__(self, source: TokenSource, max_tokens: int | None, identity: str) -> None:
        self._source = source
        self._shards = source.shards
        self._identity = identity
        self._vocab_size = int(source.manifest["tokenizer"]["n_words"])
        self.counts = np.zeros(self._vocab_size, dtype=np.int64)
        self._num_documents = self._num_bytes = 0
        self._lengths: list[int] = []  # of each shard, its tokens to count
        left = source.num_tokens if max_tokens is None else max_tokens
        for shard in self._shards:
            num_documents, num_tokens = shard.num_documents, len(shard.tokens)
            is_cut = num_tokens > left
            if is_cut:
                num_documents = int(np.searchsorted(shard.offsets, left, side="right")) - 1
                num_tokens = int(shard.offsets[num_documents])
            self._num_documents += num_documents
            self._num_bytes += int(shard.num_bytes[:num_documents].sum(dtype=np.uint64))
            self._lengths.append(num_tokens)
            left -= num_tokens
            if is_cut:
                break
        if max_tokens is not None and source.num_tokens and not sum(self._lengths):
            first = int(self._shards[0].offsets[1])
            raise ValueError(
                f"the first document of {source.path} alone has {first:,} tokens, max_tokens is {max_tokens:,}; "
                "raise it"
            )
        self._done = 0  # stretches

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """(shard, first token in it, token after the last), in order."""
        for index, num_tokens in enumerate(self._lengths):
            for start in range(0, num_tokens, STRETCH_TOKENS):
                yield index, start, min(start + STRETCH_TOKENS, num_tokens)

    def resume(self, counts: npt.NDArray[np.int64], record: Mapping[str, Any]) -> None:
        """Go on behind the stretches that `record` says were counted."""
        if record["stretch_tokens"] == STRETCH_TOKENS and len(counts) == self._vocab_size:
            self.counts, self._done = counts, record["stretches_done"]

    def run(self, num_threads: int, cache: Path | None, progress: bool) -> None:
        """Count what is left; ValueError for an id that the vocabulary does not have."""
        from tqdm import tqdm

        saved = time.monotonic()
        per_group = max(1, GROUP_TOKENS // STRETCH_TOKENS)
        scratch = threading.local()
        sums: list[npt.NDArray[np.int64]] = []

        def count(stretch: tuple[int, int, int]) -> int:
            if not hasattr(scratch, "counts"):
                scratch.counts = np.zeros(self._vocab_size, dtype=np.int64)
                scratch.block = _Block(self._vocab_size)
                sums.append(scratch.counts)
            index, start, end = stretch
            try:
                scratch.block.add(self._shards[index].tokens[start:end], scratch.counts)
            except ValueError as error:
                raise ValueError(
                    f"{self._source.path}: {error}; `lingua-synth tokenize verify={self._source.path}` says which "
                    "files are not as written"
                ) from None
            return end - start

        bar = tqdm(
            total=sum(self._lengths),
            unit="tok",
            unit_scale=True,
            disable=not progress,
            desc=f"count {self._source.path.name}",
        )
        with bar, ThreadPoolExecutor(num_threads) as pool:
            stretches = self._stretches()
            bar.update(sum(end - start for _, start, end in islice(stretches, self._done)))
            while group := list(islice(stretches, per_group)):
                for num_tokens in pool.map(count, group):
                    bar.update(num_tokens)
                for partial in sums:
                    self.counts += partial
                    partial[:] = 0
                self._done += len(group)
                if cache is not None and time.monotonic() - saved > SAVE_EVERY_S:
                    record = {
                        "fingerprint": self._identity,
                        "stretch_tokens": STRETCH_TOKENS,
                        "stretches_done": self._done,
                    }
                    _write(cache, self.counts, record)
                    saved = time.monotonic()

    def result(self, name: str) -> UnigramCounts:
        """What was counted, BOS and EOS taken out."""
        tokenizer = self._source.manifest["tokenizer"]
        counts = self.counts.copy()
        # A vocabulary may have one word for both: then all are EOS, and there is no BOS.
        num_special = []
        for token_id in (tokenizer["eos_id"], tokenizer["bos_id"]):
            num_special.append(int(counts[token_id]) if token_id >= 0 else 0)
            if token_id >= 0:
                counts[token_id] = 0
        return UnigramCounts(
            counts=counts,
            num_documents=self._num_documents,
            num_bytes=self._num_bytes,
            num_bos=num_special[1],
            num_eos=num_special[0],
            tokenizer=tokenizer,
            name=name,
            fingerprint=self._identity,
            num_tokens_available=self._source.num_tokens,
        )


class _Block:
    """What one thread needs to count up to `STRETCH_TOKENS` tokens at a time."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._ones = np.ones(STRETCH_TOKENS, dtype=np.int32)
        self._one = np.ones(1, dtype=np.int32)
        self._ids = np.zeros(STRETCH_TOKENS, dtype=np.int32)
        self._whole: dict[int, Any] = {}

    def add(self, tokens: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> None:
        """Add the occurrences of `tokens` (at most `STRETCH_TOKENS`) to `counts`; ValueError for an unknown id."""
        # The compiled loop believes its indices: an id beyond the rows would be written beyond the sums. 16 bits cannot
        # be beyond 2^16 rows; of 32 the largest is looked for first.
        if tokens.dtype == np.uint16:
            ids = self._ids[: len(tokens)]
            np.copyto(ids, tokens)
            num_rows = 1 << 16
        else:
            largest = int(tokens.max())
            if largest >= self._vocab_size:
                raise ValueError(f"there is the id {largest:,}, the vocabulary has {self._vocab_size:,} words")
            ids = tokens.view(np.int32)
            num_rows = self._vocab_size
        found = self._matrix(ids, num_rows) @ self._one
        if found[self._vocab_size :].any():
            largest = int(np.flatnonzero(found)[-1])
            raise ValueError(f"there is the id {largest:,}, the vocabulary has {self._vocab_size:,} words")
        counts += found[: self._vocab_size]

    def _matrix(self, ids: npt.NDArray[np.int32], num_rows: int) -> Any:
        """One column, with a 1 in the row of each id; rows that are named twice hold the sum."""
        from scipy.sparse import csc_array

        if len(ids) < STRETCH_TOKENS:
            ends = np.array([0, len(ids)], dtype=np.int32)
            return csc_array((self._ones[: len(ids)], ids, ends), shape=(num_rows, 1))
        # Making a matrix takes a tenth of the time of counting with it: the one of whole stretches gets other ids.
        if num_rows not in self._whole:
            ends = np.array([0, STRETCH_TOKENS], dtype=np.int32)
            self._whole[num_rows] = csc_array((self._ones, self._ids, ends), shape=(num_rows, 1))
        self._whole[num_rows].indices = ids
        return self._whole[num_rows]


# --- the file ---


def _write(path: Path, counts: npt.NDArray[np.int64], record: Mapping[str, Any]) -> None:
    text = json.dumps({"format": FORMAT, "version": VERSION, **record}, sort_keys=True)
    with atomic_file(path, "wb") as file:
        np.savez(file, counts=counts, record=np.frombuffer(text.encode(), dtype=np.uint8))


def _read(path: Path) -> tuple[npt.NDArray[np.int64], dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"no counts in {path}; {what_is_there(path)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            counts, record = file["counts"], json.loads(file["record"].tobytes())
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise ValueError(
            f"{path} is not a file of unigram counts, or it is damaged; delete it and count again"
        ) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise ValueError(f"{path} is not a file of unigram counts of version {VERSION}; delete it and count again")
    del record["format"], record["version"]
    return counts, record


def _cached(path: Path | None, identity: str) -> tuple[npt.NDArray[np.int64], dict[str, Any]] | None:
    """What the cache holds of this very token stream; None: nothing, or of another one, or unreadable."""
    if path is None or not path.exists():
        return None
    try:
        counts, record = _read(path)
    except ValueError:
        return None
    return (counts, record) if record.get("counts", record).get("fingerprint") == identity else None
