"""How much of a corpus it says more than once: repeated n-grams of tokens, and documents that are exact copies.

Repetition grows with the corpus, so corpora are compared at equal numbers of tokens (`max_tokens`: their first
documents, which tokenization has shuffled). Memory is bounded by looking at a random part of the *different* n-grams,
those whose hash ends in zeros, but at every occurrence of these: how often each occurs is then exact, and the share
of repeated ones is an unbiased estimate with the standard error given. Up to `MAX_KEPT` n-grams nothing is left out.

Equal means equal 64-bit hashes: among 10^7 different n-grams or documents one false pair is expected in 400,000
corpora.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.analysis.token_ngrams import Block, Ngrams, map_blocks, token_codes
from lingua_synth.documents.ngrams import mixed
from lingua_synth.tokens.source import TokenSource

# 24 bytes each, and as much again while they are sorted.
MAX_KEPT = 1 << 23


@dataclass(frozen=True)
class RepeatedNgram:
    """One of the n-grams that occur most."""

    token_ids: tuple[int, ...]
    count: int
    num_documents: int
    document: int
    """The first document that holds it."""


@dataclass(frozen=True)
class Repetition:
    """Repeated n-grams of one size."""

    size: int
    num_tokens: int
    """Tokens looked at, BOS and EOS included."""
    num_ngrams: int
    """N-grams in them, each occurrence counted."""
    share_repeated: float
    """Share of the n-grams that occurred before in the corpus; nan without n-grams."""
    standard_error: float
    """Of that share, from looking at a part of the different n-grams; 0 when all were."""
    share_repeated_within: float
    """Share of the n-grams that occurred before in the same document."""
    share_of_different_kept: float
    """Part of the different n-grams that was looked at: 1, 1/2, 1/4, ..."""
    most_repeated: tuple[RepeatedNgram, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Copies:
    """Documents that are equal to an earlier one, token by token."""

    num_documents: int
    """Documents looked at."""
    share_of_documents: float
    """Share of them that are copies of an earlier one; nan without documents."""
    share_of_tokens: float
    """Share of the tokens that lie in copies."""
    standard_error: float
    """Of the share of documents, from looking at a part of the different documents; 0 when all were."""
    share_of_different_kept: float
    largest: tuple[tuple[int, int], ...]
    """(first document, number of documents equal to it, itself included) of the largest groups."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return asdict(self)


def repeated_ngrams(
    source: TokenSource,
    size: int,
    *,
    max_tokens: int | None = None,
    num_listed: int = 10,
    num_threads: int | None = None,
    progress: bool = False,
) -> Repetition:
    """Repeated n-grams of `size` tokens in the first documents of at most `max_tokens` tokens (None: in all).

    The result does not depend on `num_threads`. ValueError for a size or a number of tokens below 1.
    """
    if size < 1 or (max_tokens is not None and max_tokens < 1):
        raise ValueError(f"n-grams have at least 1 token, and lie in at least 1; got {size} and {max_tokens}")
    codes = token_codes(int(source.manifest["tokenizer"]["n_words"]))
    num_tokens = source.num_tokens if max_tokens is None else min(max_tokens, source.num_tokens)
    bits = _bits_for(num_tokens)

    def kept(block: Block) -> tuple[int, int, Ngrams]:
        found = block.ngrams(size, codes)
        keep = _is_kept(found.hashes, bits)
        part = Ngrams(found.hashes[keep], found.positions[keep], found.documents[keep])
        return block.stop - block.start, len(found.hashes), part

    seen = num_ngrams = 0
    parts: list[Ngrams] = []
    words = f"{size}-grams of {source.path.name}" if progress else None
    for block_tokens, block_ngrams, part in map_blocks(
        kept, source, max_tokens=max_tokens, num_threads=num_threads, progress=words
    ):
        seen, num_ngrams = seen + block_tokens, num_ngrams + block_ngrams
        parts.append(part)
    hashes = np.concatenate([np.empty(0, np.uint64), *(p.hashes for p in parts)])
    positions = np.concatenate([np.empty(0, np.int64), *(p.positions for p in parts)])
    documents = np.concatenate([np.empty(0, np.int64), *(p.documents for p in parts)])
    del parts
    order = np.argsort(hashes, kind="stable")  # equal ones stay in the order of the corpus
    starts, counts = _runs(hashes[order])
    documents = documents[order]
    new_document = np.ones(len(order), dtype=bool)
    new_document[1:] = documents[1:] != documents[:-1]
    new_document[starts] = True
    num_documents = np.add.reduceat(new_document, starts, dtype=np.int64) if len(starts) else counts
    share, error = _share_repeated(counts, counts, bits)
    firsts = positions[order[starts]] if len(starts) else starts
    listed = np.lexsort((firsts, -counts))[:num_listed]
    return Repetition(
        size=size,
        num_tokens=seen,
        num_ngrams=num_ngrams,
        share_repeated=share,
        standard_error=error,
        share_repeated_within=1 - float(new_document.mean()) if len(order) else float("nan"),
        share_of_different_kept=2.0**-bits,
        most_repeated=tuple(
            RepeatedNgram(
                token_ids=tuple(int(i) for i in source.window(int(firsts[i]), size)),
                count=int(counts[i]),
                num_documents=int(num_documents[i]),
                document=int(documents[starts[i]]),
            )
            for i in listed
            if counts[i] > 1
        ),
    )


def document_copies(
    source: TokenSource,
    *,
    max_tokens: int | None = None,
    num_listed: int = 10,
    num_threads: int | None = None,
    progress: bool = False,
) -> Copies:
    """Exact copies among the first documents of at most `max_tokens` tokens (None: among all).

    The result does not depend on `num_threads`. ValueError for a number of tokens below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"documents lie in at least 1 token; got {max_tokens}")
    codes = token_codes(int(source.manifest["tokenizer"]["n_words"]))

    def summed(block: Block) -> tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """(first document, per document the sum over its tokens here of bits that depend on token and place, tokens)"""
        edges = block.shard.offsets[block.first_row : block.last_row + 2].astype(np.int64)
        inside = np.minimum(edges[1:], block.stop) - np.maximum(edges[:-1], block.start)
        place = np.arange(block.start, block.stop) - np.repeat(edges[:-1], inside)
        bits_of = mixed(codes[block.shard.tokens[block.start : block.stop]] ^ mixed(place.astype(np.uint64)))
        sums = np.add.reduceat(bits_of, np.cumsum(inside) - inside)
        return block.first_document + block.first_row, sums, inside

    bits = _bits_for(source.num_documents)
    hashes: list[npt.NDArray[np.uint64]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    numbers: list[npt.NDArray[np.int64]] = []
    num_documents = 0

    def finish(first: int, sums: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64]) -> None:
        found = mixed(sums ^ mixed(sizes.astype(np.uint64)))
        keep = _is_kept(found, bits)
        hashes.append(found[keep])
        lengths.append(sizes[keep])
        numbers.append(np.arange(first, first + len(sums))[keep])

    words = f"copies in {source.path.name}" if progress else None
    # The last document of a block may go on in the next one.
    open_at, open_sum, open_size = -1, np.zeros(1, np.uint64), np.zeros(1, np.int64)
    for first, sums, sizes in map_blocks(
        summed, source, max_tokens=max_tokens, num_threads=num_threads, progress=words
    ):
        if first == open_at:
            sums[:1] += open_sum
            sizes[:1] += open_size
        elif open_at >= 0:
            finish(open_at, open_sum, open_size)
        finish(first, sums[:-1], sizes[:-1])
        open_at, open_sum, open_size = first + len(sums) - 1, sums[-1:].copy(), sizes[-1:].copy()
        num_documents = open_at + 1
    if open_at >= 0:
        finish(open_at, open_sum, open_size)
    every = np.concatenate([np.empty(0, np.uint64), *hashes])
    size = np.concatenate([np.empty(0, np.int64), *lengths])
    number = np.concatenate([np.empty(0, np.int64), *numbers])
    order = np.argsort(every, kind="stable")
    starts, counts = _runs(every[order])
    tokens_of = size[order][starts] if len(starts) else size
    share, error = _share_repeated(counts, counts, bits)
    firsts = number[order[starts]] if len(starts) else starts
    listed = np.lexsort((firsts, -counts))[:num_listed]
    return Copies(
        num_documents=num_documents,
        share_of_documents=share,
        share_of_tokens=_share_repeated(counts, counts * tokens_of, bits)[0],
        standard_error=error,
        share_of_different_kept=2.0**-bits,
        largest=tuple((int(firsts[i]), int(counts[i])) for i in listed if counts[i] > 1),
    )


def _bits_for(number: int) -> int:
    """How many zeros a hash must end in so that about `MAX_KEPT` of `number` are kept."""
    return max(0, int(np.ceil(np.log2(max(1, number) / MAX_KEPT))))


def _is_kept(hashes: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.bool_]:
    return (hashes & np.uint64((1 << bits) - 1)) == 0


def _runs(values: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(start, length) of the runs of equal ones among sorted values."""
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(values)), dtype=bool), values[1:] != values[:-1]]))
    return starts, np.diff(np.append(starts, len(values)))


def _share_repeated(counts: npt.NDArray[np.int64], weights: npt.NDArray[np.int64], bits: int) -> tuple[float, float]:
    """(share of the weight that is not of first occurrences, its standard error); `weights`: of all occurrences."""
    if not len(counts):
        return float("nan"), float("nan")
    repeated = weights * (1 - 1 / counts)
    total = weights.sum()
    share = float(repeated.sum() / total)
    # A ratio of two sums over different n-grams, each kept or not.
    spread = float(np.sqrt(np.sum((repeated - share * weights).astype(np.float64) ** 2)) / total)
    return share, spread * float(np.sqrt(1 - 2.0**-bits))
