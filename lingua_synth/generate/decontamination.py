"""Texts that share a long run of words with an evaluation set: what such a text teaches, the evaluation cannot measure.

    evaluation texts -> word 13-grams, hashed and sorted -> each text's 13-grams looked up -> compared word by word

13 words are what GPT-3's authors looked for (Brown et al. 2020, appendix C); Cosmopedia took 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lingua_synth.documents import Document
from lingua_synth.documents.ngrams import NgramIndex, hash_ngrams, split_tokens


@dataclass(frozen=True)
class Overlap:
    """A text and what it shares with an evaluation set."""

    id: str
    evaluation_id: str
    """The evaluation text that holds the first shared n-gram."""
    num_ngrams: int
    """N-grams of the text, repeats counted, that stand in an evaluation text."""
    share: float
    """Of all its n-grams."""
    text: str
    """The first of them: its words, in lower case, without punctuation."""


class EvaluationIndex:
    """N-grams of evaluation texts, to hold other texts against.

    Every overlap that it reports is one, word by word (without case and punctuation); an overlap is missed only if
    two n-grams of the evaluation texts share a 64-bit hash. Evaluation texts of fewer than `ngram_words` words cannot
    be found and are counted in `num_too_short`. Memory: the evaluation texts as words, 28 bytes an n-gram, and up to
    128 MiB.

    Raises ValueError for `ngram_words` below 1 and where no text has so many words.
    """

    def __init__(self, documents: Iterable[Document], ngram_words: int = 13) -> None:
        if ngram_words < 1:
            raise ValueError(f"ngram_words must be at least 1, got {ngram_words}")
        self.ngram_words = ngram_words
        self.num_documents = 0
        self.num_too_short = 0
        self._ids: list[str] = []
        self._words: list[list[str]] = []
        hashes, owners, places = [], [], []
        for document in documents:
            self.num_documents += 1
            words = split_tokens(document.text)
            if len(words) < ngram_words:
                self.num_too_short += 1
                continue
            found = hash_ngrams(words, ngram_words)
            hashes.append(found)
            owners.append(np.full(len(found), len(self._ids), dtype=np.int32))
            places.append(np.arange(len(found), dtype=np.int64))
            self._ids.append(document.id)
            self._words.append(words)
        if not hashes:
            raise ValueError(
                f"none of the {self.num_documents:,} evaluation texts has {ngram_words} words; nothing could be found "
                "in them. Lower ngram_words"
            )
        self._index = NgramIndex(np.concatenate(hashes))
        self._owners = np.concatenate(owners)[self._index.first]
        self._places = np.concatenate(places)[self._index.first]

    @property
    def num_ngrams(self) -> int:
        """Different n-grams of all texts."""
        return len(self._index)

    def overlap(self, document: Document) -> Overlap | None:
        """What `document` shares with the evaluation texts; None: nothing."""
        size = self.ngram_words
        words = split_tokens(document.text)
        hashes = hash_ngrams(words, size)
        if not len(hashes):
            return None
        shared = []
        for first, entry in zip(*self._index.find(hashes), strict=True):
            owner, place = self._owners[entry], self._places[entry]
            if self._words[owner][place : place + size] == words[first : first + size]:
                shared.append((first, owner))
        if not shared:
            return None
        first, owner = shared[0]
        shown = " ".join(words[first : first + size])
        return Overlap(document.id, self._ids[owner], len(shared), len(shared) / len(hashes), shown)


def find_overlaps(documents: Iterable[Document], index: EvaluationIndex) -> Iterator[Overlap]:
    """Those of `documents` that share an n-gram with the evaluation texts of `index`, in order."""
    for document in documents:
        found = index.overlap(document)
        if found is not None:
            yield found
