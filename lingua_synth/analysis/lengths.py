"""How long the documents of a corpus are, in tokens and in bytes: exact quantiles, in bounded memory.

Lengths are counted, not kept: a corpus has few different ones (some 10^5 among 10^9 documents).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.tokens.source import TokenSource

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
CHUNK_DOCUMENTS = 1 << 20


@dataclass(frozen=True)
class LengthDistribution:
    """The different lengths of a corpus' documents, rising, and how many documents have each."""

    lengths: npt.NDArray[np.int64]
    num_documents_of: npt.NDArray[np.int64]

    @property
    def num_documents(self) -> int:
        """All documents."""
        return int(self.num_documents_of.sum())

    @property
    def total(self) -> int:
        """Sum of all lengths."""
        return int(self.lengths @ self.num_documents_of)

    @property
    def mean(self) -> float:
        """Mean length; nan without documents."""
        return self.total / self.num_documents if self.num_documents else float("nan")

    @property
    def standard_deviation(self) -> float:
        """Of the documents' lengths; nan without documents."""
        if not self.num_documents:
            return float("nan")
        squares = (self.lengths - self.mean) ** 2 @ self.num_documents_of
        return float(np.sqrt(squares / self.num_documents))

    def quantile(self, share: float) -> int:
        """The smallest length that at least `share` of the documents do not exceed. ValueError without documents."""
        if not self.num_documents:
            raise ValueError("there are no documents, hence no quantile of their lengths")
        reached = np.cumsum(self.num_documents_of) >= share * self.num_documents
        return int(self.lengths[int(np.argmax(reached))])

    def share_longer(self, length: int) -> tuple[float, float]:
        """(share of the documents, share of the total) in documents longer than `length`."""
        longer = self.lengths > length
        documents = self.num_documents_of[longer].sum() / max(1, self.num_documents)
        return float(documents), float(self.lengths[longer] @ self.num_documents_of[longer] / max(1, self.total))

    def histogram(self, per_octave: int = 2) -> list[dict[str, Any]]:
        """Rows `from`, `to` (exclusive), `documents`, `total`: bins whose ends are powers of 2^(1 / per_octave)."""
        if not self.num_documents:
            return []
        last = int(np.ceil(np.log2(max(2, int(self.lengths[-1]) + 1)) * per_octave))
        edges = np.unique(np.rint(2 ** (np.arange(last + 1) / per_octave)).astype(np.int64))
        edges = np.concatenate([[0], edges]) if self.lengths[0] < edges[0] else edges
        place = np.searchsorted(edges, self.lengths, side="right") - 1
        documents = np.bincount(place, weights=self.num_documents_of, minlength=len(edges))
        total = np.bincount(place, weights=self.num_documents_of * self.lengths, minlength=len(edges))
        return [
            {"from": int(edges[i]), "to": int(edges[i + 1]), "documents": int(documents[i]), "total": int(total[i])}
            for i in range(len(edges) - 1)
        ]

    def summary(self, longer_than: Sequence[int] = ()) -> dict[str, Any]:
        """Number, total, mean, standard deviation, smallest, quantiles, largest, and shares beyond `longer_than`."""
        row: dict[str, Any] = {
            "documents": self.num_documents,
            "total": self.total,
            "mean": self.mean,
            "sd": self.standard_deviation,
        }
        if self.num_documents:
            row["min"] = int(self.lengths[0])
            row |= {f"q{round(100 * share):02d}": self.quantile(share) for share in QUANTILES}
            row["max"] = int(self.lengths[-1])
        for length in longer_than:
            row[f"documents_longer_than_{length}"], row[f"share_in_longer_than_{length}"] = self.share_longer(length)
        return row


def document_lengths(source: TokenSource) -> tuple[LengthDistribution, LengthDistribution]:
    """(lengths in tokens, BOS and EOS included, as training reads them; lengths in UTF-8 bytes of the text)."""
    tokens, num_bytes = _Tally(), _Tally()
    for shard in source.shards:
        for start in range(0, shard.num_documents, CHUNK_DOCUMENTS):
            stop = min(start + CHUNK_DOCUMENTS, shard.num_documents)
            tokens.add(np.diff(shard.offsets[start : stop + 1]))
            num_bytes.add(shard.num_bytes[start:stop].astype(np.int64))
    return tokens.result(), num_bytes.result()


class _Tally:
    def __init__(self) -> None:
        self._values: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._counts: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def add(self, values: npt.NDArray[np.int64]) -> None:
        found, counts = np.unique(values, return_counts=True)
        merged, where = np.unique(np.concatenate([self._values, found]), return_inverse=True)
        sums = np.zeros(len(merged), dtype=np.int64)
        np.add.at(sums, where, np.concatenate([self._counts, counts]))
        self._values, self._counts = merged, sums

    def result(self) -> LengthDistribution:
        return LengthDistribution(self._values, self._counts)
