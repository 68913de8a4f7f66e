"""Token shards -> hashes of their n-grams, block after block: what repetition and overlap are counted from.

An n-gram is `size` tokens of one document; none reaches into the next one, and BOS and EOS belong to none. A block is
a stretch of one mapped file, so that memory does not depend on the corpus, nor on its longest document. Blocks are
worked on by threads (numpy's arithmetic holds no lock) and come back in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lingua_synth.documents.ngrams import hash_windows, mixed
from lingua_synth.tokens.mapped import MappedShard
from lingua_synth.tokens.source import TokenSource
from lingua_synth.tokens.workers import count_cores

# An array of 8 bytes a token is then 256 kB: twice that, and arrays no longer stay in a core's cache nor in the
# allocator's hands, and hashing takes three times as long.
BLOCK_TOKENS = 1 << 15

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """Tokens `[start, stop)` of a file whose n-grams begin there, and what of them lies in which document."""

    source: TokenSource
    shard: MappedShard
    first_token: int
    """Tokens of the corpus before the file."""
    first_document: int
    start: int
    stop: int
    first_row: int
    """Document of the file that holds token `start`."""
    last_row: int
    """Document of the file that holds token `stop` - 1."""

    def bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(the block's tokens in each of its documents; first token of each document's text; the one behind it)."""
        edges = self.shard.offsets[self.first_row : self.last_row + 2]
        starts, ends = edges[:-1].astype(np.int64), edges[1:].astype(np.int64)
        inside = np.minimum(ends, self.stop) - np.maximum(starts, self.start)
        tokenizer = self.source.manifest["tokenizer"]
        texts, text_ends = starts, ends
        if tokenizer["bos_id"] >= 0:
            texts = starts + (self.shard.tokens[starts] == tokenizer["bos_id"])
        if tokenizer["eos_id"] >= 0:
            text_ends = ends - ((self.shard.tokens[ends - 1] == tokenizer["eos_id"]) & (ends > texts))
        return inside, texts, text_ends

    def ngrams(self, size: int, codes: npt.NDArray[np.uint64]) -> Ngrams:
        """The n-grams of `size` tokens that begin in the block; `codes` from `token_codes`."""
        inside, texts, text_ends = self.bounds()
        after = min(self.stop + size - 1, len(self.shard.tokens))
        hashes = hash_windows(codes[self.shard.tokens[self.start : after]], size)[: self.stop - self.start]
        begin = np.arange(self.start, self.start + len(hashes))
        valid = begin + size <= np.repeat(text_ends, inside)[: len(hashes)]
        valid &= begin >= np.repeat(texts, inside)[: len(hashes)]
        rows = np.repeat(np.arange(self.first_row, self.last_row + 1), inside)[: len(hashes)]
        return Ngrams(hashes[valid], begin[valid] + self.first_token, rows[valid] + self.first_document)


@dataclass(frozen=True)
class Ngrams:
    """N-grams in the order of the corpus; arrays of one length."""

    hashes: npt.NDArray[np.uint64]
    positions: npt.NDArray[np.int64]
    """First token of each, counted from the start of the corpus."""
    documents: npt.NDArray[np.int64]
    """Document that holds it, counted from the start of the corpus."""


def token_codes(vocab_size: int) -> npt.NDArray[np.uint64]:
    """64 random-looking bits for each token, uint64 `[vocab_size]`."""
    return mixed(np.arange(vocab_size, dtype=np.uint64))


def cut_blocks(source: TokenSource, max_tokens: int | None = None) -> Iterator[Block]:
    """The blocks of the first documents that together have at most `max_tokens` tokens, in order; None: of all."""
    first_token = first_document = 0
    left = source.num_tokens if max_tokens is None else max_tokens
    for shard in source.shards:
        num_tokens = len(shard.tokens)
        if num_tokens > left:
            num_tokens = int(shard.offsets[int(np.searchsorted(shard.offsets, left, side="right")) - 1])
        for start in range(0, num_tokens, BLOCK_TOKENS):
            stop = min(start + BLOCK_TOKENS, num_tokens)
            first_row, last_row = (
                int(np.searchsorted(shard.offsets, token, side="right")) - 1 for token in (start, stop - 1)
            )
            yield Block(source, shard, first_token, first_document, start, stop, first_row, last_row)
        if num_tokens < len(shard.tokens):
            return
        first_token, first_document = first_token + num_tokens, first_document + shard.num_documents
        left -= num_tokens


def map_blocks(
    function: Callable[[Block], T],
    source: TokenSource,
    *,
    max_tokens: int | None = None,
    num_threads: int | None = None,
    progress: str | None = None,
) -> Iterator[T]:
    """`function` of each block, in order, on threads (None: one a core); at most twice as many blocks are under way.

    `progress`: the words of a bar on stderr; None for none.
    """
    from tqdm import tqdm

    threads = num_threads or count_cores()
    waiting: deque[tuple[Future[Any], int]] = deque()
    total = source.num_tokens if max_tokens is None else min(max_tokens, source.num_tokens)
    bar = tqdm(total=total, unit="tok", unit_scale=True, disable=progress is None, desc=progress)
    with bar, ThreadPoolExecutor(threads) as pool:
        try:
            for block in cut_blocks(source, max_tokens):
                waiting.append((pool.submit(function, block), block.stop - block.start))
                if len(waiting) > 2 * threads:
                    future, num_tokens = waiting.popleft()
                    yield future.result()
                    bar.update(num_tokens)
            while waiting:
                future, num_tokens = waiting.popleft()
                yield future.result()
                bar.update(num_tokens)
        finally:
            for future, _ in waiting:
                future.cancel()
