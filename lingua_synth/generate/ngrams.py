"""Words of a text and 64-bit hashes of their n-grams: what near-duplicates and contamination are found by."""

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


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
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
    count = len(words) - size + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    codes = _mixed(np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in words], dtype=np.uint64))
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(size):
        hashes = hashes * _GOLDEN + codes[place : place + count]
    return _mixed(hashes)
