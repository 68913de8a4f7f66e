"""Words of a text, 64-bit hashes of n-grams of words or tokens, and an index to look them up in.

What near-duplicates, repetition and contamination are found by.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Languages written without spaces have no words to see: their characters stand for them.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")


def split_tokens(text: str) -> list[str]:
    """Words without case, punctuation and typographic variants (NFKC); Chinese and Japanese characters one by one."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.lower())


_U64 = np.uint64
_GOLDEN = _U64(0x9E3779B97F4A7C15)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of the input, one to one (splitmix64, Steele et al. 2014)."""
    values = values + _GOLDEN
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return values ^ (values >> _U64(31))


def hash_ngrams(words: Sequence[str], size: int) -> NDArray[np.uint64]:
    """Hashes of the n-grams of `size` words, in order: `max(0, len(words) - size + 1)` of them.

    The same words give the same hash on every machine. Hashes are by the 32-bit CRC of each word, so different n-grams
    may share one: at random with probability 2^-64, and where two words have one CRC.
    """
    if len(words) < size:
        return np.zeros(0, dtype=np.uint64)
    return hash_windows(
        mixed(np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in words], dtype=np.uint64)), size
    )


def hash_windows(codes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Hashes of the windows of `size` codes, in order: `max(0, len(codes) - size + 1)` of them.

    `codes`: 64 random-looking bits for each word or token (`mixed` of its number). ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"an n-gram has at least 1 word, got {size}")
    count = len(codes) - size + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    # A window is a polynomial in a constant, its first code the highest coefficient. Windows of 13 are put together of
    # those of 8, 4 and 1: the passes over the codes are as many as the size has binary digits, and ones among them.
    whole: NDArray[np.uint64] | None = None
    width, power, block = 0, 1, codes
    while power <= size:
        if size & power:
            # The parts go from the right to the left: those already joined are lower coefficients.
            start = size - width - power
            part = block[start : start + count]
            whole = part.copy() if whole is None else part * _power(width) + whole
            width += power
        if 2 * power <= size:
            block = block[: len(block) - power] * _power(power) + block[power:]
        power *= 2
    assert whole is not None and width == size, "every size is a sum of powers of two"
    return mixed(whole)


def _power(exponent: int) -> np.uint64:
    return _U64(pow(int(_GOLDEN), exponent, 1 << 64))


class NgramIndex:
    """A set of hashes that many others are looked up in; of equal ones the first stands for all.

    Entry i is the i-th smallest hash. Memory: 16 bytes a hash given, and up to 128 MiB for a table that answers most
    look-ups of what is not there.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self._hashes, self.first = np.unique(hashes, return_index=True)
        """`first[i]`: place of entry i among the hashes given."""
        bits = int(np.clip(np.ceil(np.log2(16 * max(1, len(self._hashes)))), 10, 27))
        self._shift = _U64(64 - bits)
        self._may_hold = np.zeros(1 << bits, dtype=bool)
        self._may_hold[self._hashes >> self._shift] = True

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(places in `hashes` that are in the index, rising; the entry of each)."""
        (maybe,) = np.nonzero(self._may_hold[hashes >> self._shift])
        entries = np.searchsorted(self._hashes, hashes[maybe])
        entries[entries == len(self._hashes)] = 0
        is_it = self._hashes[entries] == hashes[maybe] if len(self._hashes) else np.zeros(len(maybe), dtype=bool)
        return maybe[is_it], entries[is_it]
