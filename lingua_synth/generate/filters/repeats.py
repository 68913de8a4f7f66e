"""Filters on texts that go round in circles, or say what no text says: repeated words and lines, compression."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lingua_synth.generate.filters.context import FilterContext, split_lines, split_words


@dataclass
class RepetitionParameters:
    """Settings of `repetition`."""

    max_ngram_share: float = 0.5
    """Largest share of word 4-grams that occurred before in the same output."""
    max_line_share: float = 0.3
    """Largest share of lines that occurred before in the same output."""
    min_words: int = 40
    """Shorter outputs are not judged: a few repeated words would decide."""


@dataclass
class CompressionParameters:
    """Settings of `compression`."""

    # The 125 longest pages of Python's documentation, cut to 2,600 characters, lie between 0.21 and 0.56, reference
    # tables included; a 15-word sentence over and over at 0.03, base64 at 0.77.
    min_ratio: float = 0.15
    """Outputs whose compressed size is a smaller share of their size repeat themselves."""
    max_ratio: float = 0.7
    """Outputs whose share is larger are hardly language."""
    min_bytes: int = 500
    """Shorter outputs are not judged: what compresses lies far apart in language."""
    max_bytes: int = 10_000
    """Of longer outputs this beginning is judged, as the ratio falls with the length of any text."""


def repetition(text: str, context: FilterContext, parameters: RepetitionParameters) -> str | None:
    """Goes round in circles: too large a share of repeated word 4-grams, or of repeated lines."""
    words = split_words(text)
    if len(words) < parameters.min_words:
        return None
    num_ngrams = max(0, len(words) - 3)
    # Every word or pair that differs from all others begins a 4-gram that does, but for the last three or two: where
    # there are enough of these, the 4-grams need not be looked at.
    most_alike = parameters.max_ngram_share * num_ngrams
    if (
        num_ngrams - (len(set(words)) - 3) > most_alike
        and num_ngrams - (len(set(itertools.pairwise(words))) - 2) > most_alike
    ):
        share = _share_repeated(set(zip(words, words[1:], words[2:], words[3:], strict=False)), num_ngrams)
        if share > parameters.max_ngram_share:
            return f"{share:.0%} of word 4-grams are repeated, more than {parameters.max_ngram_share:.0%}"
    lines = split_lines(text)
    share = _share_repeated(set(lines), len(lines))
    if share > parameters.max_line_share:
        return f"{share:.0%} of lines are repeated, more than {parameters.max_line_share:.0%}"
    return None


def _share_repeated(different: Collection[Any], total: int) -> float:
    return 1 - len(different) / total if total else 0.0


def compression(text: str, context: FilterContext, parameters: CompressionParameters) -> str | None:
    """Compresses too well (says the same again and again) or hardly at all (noise, encoded data).

    zlib at its fastest level, in bytes of UTF-8. Builds of zlib differ by a percent or so.
    """
    data = text.encode("utf-8", "replace")[: parameters.max_bytes]
    if len(data) < parameters.min_bytes:
        return None
    ratio = len(zlib.compress(data, 1)) / len(data)
    if ratio < parameters.min_ratio:
        return f"compresses to {ratio:.0%} of its size, less than {parameters.min_ratio:.0%}"
    if ratio > parameters.max_ratio:
        return f"compresses to {ratio:.0%} of its size, more than {parameters.max_ratio:.0%}"
    return None
