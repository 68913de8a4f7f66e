"""Texts that say nearly the same: MinHash of word n-grams, candidates by locality-sensitive hashing (datasketch).

    text -> set of word 5-grams -> 128 minima -> candidates among the texts kept so far -> share of equal minima

The share of equal minima estimates the Jaccard similarity |A and B| / |A or B| of the two sets, with a standard
error of sqrt(s (1 - s) / permutations): 0.035 at s = 0.8 and 128 permutations (Broder 1997).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingua_synth.config import needs_extra
from lingua_synth.documents import Document
from lingua_synth.documents.ngrams import hash_ngrams, split_tokens


@dataclass(frozen=True)
class NearDuplicate:
    """A text that an earlier one makes superfluous."""

    id: str
    duplicate_of: str
    """Id of the most similar earlier text that is no near-duplicate itself."""
    similarity: float
    """Estimated Jaccard similarity of their word n-grams."""


class NearDuplicates:
    """Takes texts one by one and tells which are near-duplicates of an earlier one.

    `threshold`: similarity in (0, 1] from which a text counts as one. Only texts that are none are remembered, so every
    near-duplicate has a kept text at least that similar to it by estimate. At the default of 0.8 a pair of similarity
    0.8 is looked at with probability 0.87, one of 0.85 with 0.97, equal texts always. Memory: 6 KB a remembered text.
    The same texts in the same order give the same answers on every machine.

    Raises ValueError for a threshold outside (0, 1], and where datasketch is not installed.
    """

    def __init__(self, threshold: float = 0.8, *, ngram_words: int = 5, num_permutations: int = 128) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"the similarity of near-duplicates is in (0, 1], got {threshold}")
        if ngram_words < 1 or num_permutations < 16:
            raise ValueError(
                f"near-duplicates need n-grams of at least 1 word and 16 permutations, got {ngram_words} and "
                f"{num_permutations}"
            )
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise ValueError(f"near-duplicates: {needs_extra(['datasketch'], 'filters')}") from None
        self._threshold = threshold
        self._ngram_words = ngram_words
        self._blank = MinHash(num_perm=num_permutations, seed=1, hashfunc=int)
        # The weights prefer looking at pairs in vain, which costs little, to missing some. Above 0.95 so few bands are
        # chosen that much would be missed; the estimate decides anyway.
        self._index: Any = MinHashLSH(threshold=min(threshold, 0.95), num_perm=num_permutations, weights=(0.1, 0.9))
        self._ids: list[str] = []
        self._minima: list[NDArray[Any]] = []

    def add(self, document: Document) -> NearDuplicate | None:
        """The near-duplicate that `document` is; None where it is none, and is remembered."""
        minhash = self._blank.copy()
        minhash.update_batch(self._shingles(document.text).tolist())
        minima = minhash.hashvalues.astype(np.uint32)
        best, best_similarity = -1, 0.0
        for number in sorted(self._index.query(minhash)):
            similarity = float(np.mean(self._minima[number] == minima))
            if similarity > best_similarity:
                best, best_similarity = number, similarity
        if best >= 0 and best_similarity >= self._threshold:
            return NearDuplicate(document.id, self._ids[best], best_similarity)
        self._index.insert(len(self._ids), minhash, check_duplication=False)
        self._ids.append(document.id)
        self._minima.append(minima)
        return None

    def _shingles(self, text: str) -> NDArray[np.uint64]:
        """The n-grams by 32-bit hash, as MinHash wants them; a text of fewer words is one of its own."""
        words = split_tokens(text)
        hashes = hash_ngrams(words, min(self._ngram_words, max(1, len(words))))
        return np.unique(hashes & np.uint64(0xFFFFFFFF))


def find_near_duplicates(
    documents: Iterable[Document], threshold: float = 0.8, *, ngram_words: int = 5, num_permutations: int = 128
) -> Iterator[NearDuplicate]:
    """The near-duplicates among `documents`, in order; see `NearDuplicates` for what is promised."""
    seen = NearDuplicates(threshold, ngram_words=ngram_words, num_permutations=num_permutations)
    for document in documents:
        found = seen.add(document)
        if found is not None:
            yield found
