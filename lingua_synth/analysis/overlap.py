"""N-grams of tokens that evaluation corpora share with a training corpus: the report to decontaminate by.

    evaluation shards -> n-grams, hashed and sorted -> the training corpus streamed past them -> compared token by token

A loss on text that was trained on measures memory. The training corpus may have any size: only the evaluation corpora
are held (some 40 bytes a token), and what of the training documents is listed. An overlap that is reported is one,
token by token; one is missed only where two n-grams of the evaluation corpora share a 64-bit hash. Token n-grams look
at what the model sees; `lingua-synth generate filter` compares words instead, whatever the tokenizer, and removes the
documents (`lingua_synth/generate/decontamination.py`, on the same index).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.analysis.counts import validate_one_tokenizer
from lingua_synth.analysis.token_ngrams import Block, Ngrams, map_blocks, token_codes
from lingua_synth.documents.ngrams import NgramIndex
from lingua_synth.tokens.source import TokenSource

# What GPT-3's authors looked for, in words (Brown et al. 2020, appendix C); of Llama-3 tokens 13 are some ten words.
NGRAM_TOKENS = 13
VERIFIED_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class SharedDocument:
    """A document and how much of it the other side has."""

    document: int
    """Its number in its shards."""
    num_ngrams: int
    """Its n-grams that the other side has, each occurrence counted."""
    share: float
    """Of all its n-grams."""
    position: int
    """First token of the first shared n-gram, counted from the start of its corpus."""


@dataclass(frozen=True)
class Overlap:
    """What one training corpus and one evaluation corpus share."""

    train: str
    evaluation: str
    ngram_tokens: int
    num_train_tokens: int
    """Tokens of the training corpus that were looked at, BOS and EOS included."""
    num_documents: int
    """Evaluation documents."""
    num_too_short: int
    """Those without a single n-gram: nothing can be found in them."""
    num_shared_documents: int
    """Evaluation documents with at least one shared n-gram."""
    num_mostly_shared_documents: int
    """Those with at least half of their n-grams shared."""
    share_of_ngrams: float
    """Share of the evaluation corpus' n-grams, each occurrence counted, that the training corpus has."""
    share_of_tokens: float
    """Share of its tokens that lie in such an n-gram."""
    num_train_ngrams: int
    """N-grams of the training corpus, each occurrence counted, that stand in this evaluation corpus."""
    documents: tuple[SharedDocument, ...]
    """The evaluation documents that share most of themselves, at most `num_listed`."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class TrainOverlap:
    """One training corpus against all evaluation corpora."""

    overlaps: tuple[Overlap, ...]
    num_train_documents: int
    """Training documents that share an n-gram with any evaluation corpus."""
    train_documents: tuple[SharedDocument, ...]
    """Those that share most n-grams, at most `num_listed`; `share` is of their own n-grams, and `position` in them."""
    evaluation_of: tuple[tuple[str, int], ...]
    """For each of these, the evaluation corpus and document that hold its first shared n-gram."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return asdict(self)


class EvaluationTokens:
    """The n-grams of evaluation corpora (name -> shards of one tokenizer), to stream training corpora past.

    Raises ValueError without a corpus, for several tokenizers, for `ngram_tokens` below 1, and where no document has
    so many tokens.
    """

    def __init__(
        self, corpora: Mapping[str, TokenSource], ngram_tokens: int = NGRAM_TOKENS, *, num_threads: int | None = None
    ) -> None:
        if not corpora:
            raise ValueError("there is no evaluation corpus to look for")
        if ngram_tokens < 1:
            raise ValueError(f"ngram_tokens is at least 1, got {ngram_tokens}")
        tokenizers = {name: source.manifest["tokenizer"] for name, source in corpora.items()}
        validate_one_tokenizer(tokenizers)
        self.ngram_tokens = ngram_tokens
        self.sources = dict(corpora)
        self._tokenizers = tokenizers
        self._codes = token_codes(int(next(iter(tokenizers.values()))["n_words"]))
        self._num_threads = num_threads
        found: dict[str, Ngrams] = {}
        for name, source in corpora.items():
            parts = list(map_blocks(self._ngrams, source, num_threads=num_threads))
            found[name] = Ngrams(
                np.concatenate([np.empty(0, np.uint64), *(p.hashes for p in parts)]),
                np.concatenate([np.empty(0, np.int64), *(p.positions for p in parts)]),
                np.concatenate([np.empty(0, np.int64), *(p.documents for p in parts)]),
            )
        hashes = np.concatenate([ngrams.hashes for ngrams in found.values()])
        if not len(hashes):
            raise ValueError(
                f"no document of {', '.join(corpora)} has {ngram_tokens} tokens; nothing could be found in them. "
                "Lower the size of n-grams"
            )
        self._index = NgramIndex(hashes)
        # Of each corpus: first tokens of its n-grams, their documents, their entries in the index.
        self._ngrams_of = {
            name: (ngrams.positions, ngrams.documents, self._index.find(ngrams.hashes)[1])
            for name, ngrams in found.items()
        }
        sizes = [len(ngrams.hashes) for ngrams in found.values()]
        owner = np.repeat(np.arange(len(sizes)), sizes)[self._index.first]
        place = np.concatenate([ngrams.positions for ngrams in found.values()])[self._index.first]
        self._owner_document = np.concatenate([ngrams.documents for ngrams in found.values()])[self._index.first]
        self._owner: npt.NDArray[np.int64] = owner
        # All evaluation tokens in one array, so that windows of it can be compared at once.
        self._tokens = np.concatenate([source.window(0, source.num_tokens) for source in corpora.values()])
        starts = np.cumsum([0, *(source.num_tokens for source in corpora.values())])[:-1]
        self._place = place + starts[owner]

    @property
    def num_ngrams(self) -> int:
        """Different n-grams of all evaluation corpora."""
        return len(self._index)

    def overlap(
        self,
        name: str,
        train: TokenSource,
        *,
        max_tokens: int | None = None,
        num_listed: int = 1_000,
        progress: bool = False,
    ) -> TrainOverlap:
        """Stream the training corpus `train`, called `name`, past the index: of it the first documents of `max_tokens`
        tokens.

        The result does not depend on the number of threads. ValueError for a corpus of another tokenizer.
        """
        validate_one_tokenizer({**self._tokenizers, f"{name} (training)": train.manifest["tokenizer"]})
        times = np.zeros(len(self._index), dtype=np.int64)
        documents: list[npt.NDArray[np.int64]] = []
        words = f"overlap of {name}" if progress else None
        num_tokens = 0
        for block_tokens, entries, rows in map_blocks(
            self._shared, train, max_tokens=max_tokens, num_threads=self._num_threads, progress=words
        ):
            num_tokens += block_tokens
            np.add.at(times, entries, 1)
            documents.append(rows)
        overlaps = tuple(self._of_corpus(name, corpus, times, num_tokens, num_listed) for corpus in self.sources)
        rows = np.concatenate([np.empty((0, 5), np.int64), *documents])
        number, first, where = np.unique(rows[:, 0], return_index=True, return_inverse=True)
        shared = np.zeros(len(number), dtype=np.int64)  # a document may lie in several blocks
        np.add.at(shared, where, rows[:, 1])
        share = shared / np.maximum(rows[first, 2], 1)
        order = np.lexsort((number, -share, -shared))[:num_listed]
        names = list(self.sources)
        return TrainOverlap(
            overlaps=overlaps,
            num_train_documents=len(number),
            train_documents=tuple(
                SharedDocument(int(number[i]), int(shared[i]), float(share[i]), int(rows[first[i], 3])) for i in order
            ),
            evaluation_of=tuple(
                (names[self._owner[entry]], int(self._owner_document[entry])) for entry in rows[first[order], 4]
            ),
        )

    def _ngrams(self, block: Block) -> Ngrams:
        return block.ngrams(self.ngram_tokens, self._codes)

    def _shared(self, block: Block) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(tokens of the block, entries found, rows of training documents: number, shared n-grams in the block, all of
        its n-grams, position and entry of the first shared one)."""
        ngrams = self._ngrams(block)
        hits, entries = self._index.find(ngrams.hashes)
        is_equal = np.zeros(len(hits), dtype=bool)
        within = np.arange(self.ngram_tokens)
        for start in range(0, len(hits), VERIFIED_AT_A_TIME):
            part = slice(start, start + VERIFIED_AT_A_TIME)
            mine = block.shard.tokens[(ngrams.positions[hits[part]] - block.first_token)[:, None] + within]
            theirs = self._tokens[self._place[entries[part]][:, None] + within]
            is_equal[part] = (mine == theirs).all(axis=1)
        hits, entries = hits[is_equal], entries[is_equal]
        document, first, count = np.unique(ngrams.documents[hits], return_index=True, return_counts=True)
        _, texts, text_ends = block.bounds()
        row = document - block.first_document - block.first_row
        total = text_ends[row] - texts[row] - self.ngram_tokens + 1
        rows = np.stack([document, count, total, ngrams.positions[hits[first]], entries[first]], axis=1)
        return block.stop - block.start, entries, rows

    def _of_corpus(self, train: str, corpus: str, times: Any, num_tokens: int, num_listed: int) -> Overlap:
        positions, documents, entries = self._ngrams_of[corpus]
        source = self.sources[corpus]
        is_shared = times[entries] > 0
        is_of_corpus = np.zeros(len(times), dtype=bool)
        is_of_corpus[entries] = True
        all_of = np.bincount(documents, minlength=source.num_documents)
        shared_of = np.bincount(documents[is_shared], minlength=source.num_documents)
        share = shared_of / np.maximum(all_of, 1)
        # +1 where a shared n-gram begins, -1 behind its end: tokens where the running sum is above 0 are covered.
        steps = np.zeros(source.num_tokens + 1, dtype=np.int64)
        np.add.at(steps, positions[is_shared], 1)
        np.add.at(steps, positions[is_shared] + self.ngram_tokens, -1)
        covered = int(np.count_nonzero(np.cumsum(steps) > 0))
        order = np.lexsort((np.arange(len(share)), -shared_of, -share))[: min(num_listed, int((shared_of > 0).sum()))]
        firsts = np.full(source.num_documents, -1, dtype=np.int64)
        firsts[documents[is_shared][::-1]] = positions[is_shared][::-1]
        return Overlap(
            train=train,
            evaluation=corpus,
            ngram_tokens=self.ngram_tokens,
            num_train_tokens=num_tokens,
            num_documents=source.num_documents,
            num_too_short=int(np.count_nonzero(all_of == 0)),
            num_shared_documents=int(np.count_nonzero(shared_of)),
            num_mostly_shared_documents=int(np.count_nonzero(share >= 0.5)),
            share_of_ngrams=float(is_shared.mean()) if len(is_shared) else float("nan"),
            share_of_tokens=covered / source.num_tokens if source.num_tokens else float("nan"),
            num_train_ngrams=int(times[is_of_corpus].sum()),
            documents=tuple(SharedDocument(int(i), int(shared_of[i]), float(share[i]), int(firsts[i])) for i in order),
        )
