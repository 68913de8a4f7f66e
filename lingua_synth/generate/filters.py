"""Checks on what a model wrote: pure functions that return a reason or None.

A recipe lists filters by name. One that fires either marks the record (`annotate`: the reason goes to
`meta.synth.flags`) or sends it to the filtered file with the reason (`drop`). Nothing is changed in the text, so that
a record can always be judged again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lingua_synth.config import build_args
from lingua_synth.documents import Document
from lingua_synth.generate.engine import Generation

ACTIONS = ("annotate", "drop")


@dataclass
class FilterArgs:
    """A filter as a recipe names it."""

    name: str = ""
    """One of the known filters."""
    action: str = "annotate"
    """annotate: mark the record; drop: leave it out, with the reason on file."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """The filter's own settings."""


@dataclass
class NoParameters:
    """A filter without settings."""


@dataclass
class MinTokensParameters:
    """Settings of `min_tokens`."""

    tokens: int = 50
    """Outputs of fewer of the generator's tokens fail."""


@dataclass
class MaxTokensParameters:
    """Settings of `max_tokens`."""

    tokens: int = 2048
    """Outputs of more of the generator's tokens fail."""


@dataclass
class FinishReasonParameters:
    """Settings of `finish_reason`."""

    reasons: list[str] = field(default_factory=lambda: ["length"])
    """Outputs that ended for one of these reasons fail."""


@dataclass
class RefusalParameters:
    """Settings of `refusal`."""

    phrases: list[str] = field(default_factory=list)
    """More openings that count as a refusal, in lower case."""


@dataclass
class RepetitionParameters:
    """Settings of `repetition`."""

    max_ngram_share: float = 0.5
    """Largest share of word 4-grams that occurred before in the same output."""
    max_line_share: float = 0.3
    """Largest share of lines that occurred before in the same output."""
    min_words: int = 40
    """Shorter outputs are not judged: a few repeated words would decide."""


def empty(text: str, source: Document, generation: Generation, parameters: NoParameters) -> str | None:
    """No text at all. Always applied, as the first filter: an empty text is no document."""
    return None if text.strip() else "no text"


def min_tokens(text: str, source: Document, generation: Generation, parameters: MinTokensParameters) -> str | None:
    """Too short to be worth keeping, in the generator's tokens."""
    count = generation.output_tokens
    return f"{count:,} tokens, fewer than {parameters.tokens:,}" if count < parameters.tokens else None


def max_tokens(text: str, source: Document, generation: Generation, parameters: MaxTokensParameters) -> str | None:
    """Far longer than the recipe aims for, in the generator's tokens."""
    count = generation.output_tokens
    return f"{count:,} tokens, more than {parameters.tokens:,}" if count > parameters.tokens else None


def finish_reason(
    text: str, source: Document, generation: Generation, parameters: FinishReasonParameters
) -> str | None:
    """Ended for a reason that leaves the text incomplete, by default because it ran into the limit of tokens."""
    reason = generation.finish_reason
    return f"finish reason {reason}" if reason in parameters.reasons else None


# Openings by which instruction-tuned models decline. A text that quotes one later on is not a refusal.
REFUSAL_OPENINGS = (
    "i'm sorry, but",
    "i am sorry, but",
    "i'm sorry, i can",
    "i apologize, but",
    "sorry, but i",
    "i cannot",
    "i can't",
    "i can not",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "i won't",
    "as an ai",
    "as a language model",
    "as a large language model",
    "unfortunately, i cannot",
    "unfortunately, i can't",
    "unfortunately, i am unable",
    "there is no text",
    "no text was provided",
    "please provide the text",
    "please provide the document",
)


def refusal(text: str, source: Document, generation: Generation, parameters: RefusalParameters) -> str | None:
    """Begins as models begin when they decline or ask for the input."""
    opening = text[:400].lower().replace("\u2019", "'").lstrip(" \t\r\n\"'\u201c*#>_-")
    for phrase in (*REFUSAL_OPENINGS, *parameters.phrases):
        if opening.startswith(phrase):
            return f"begins with {phrase!r}"
    return None


def repetition(text: str, source: Document, generation: Generation, parameters: RepetitionParameters) -> str | None:
    """Goes round in circles: too large a share of repeated word 4-grams, or of repeated lines."""
    words = text.lower().split()
    if len(words) < parameters.min_words:
        return None
    share = _share_repeated([tuple(words[i : i + 4]) for i in range(len(words) - 3)])
    if share > parameters.max_ngram_share:
        return f"{share:.0%} of word 4-grams are repeated, more than {parameters.max_ngram_share:.0%}"
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    share = _share_repeated(lines)
    if share > parameters.max_line_share:
        return f"{share:.0%} of lines are repeated, more than {parameters.max_line_share:.0%}"
    return None


def _share_repeated(items: Sequence[Hashable]) -> float:
    return 1 - len(set(items)) / len(items) if items else 0.0


FilterFunction = Callable[[str, Document, Generation, Any], str | None]

FILTERS: dict[str, tuple[FilterFunction, type]] = {
    "empty": (empty, NoParameters),
    "min_tokens": (min_tokens, MinTokensParameters),
    "max_tokens": (max_tokens, MaxTokensParameters),
    "finish_reason": (finish_reason, FinishReasonParameters),
    "refusal": (refusal, RefusalParameters),
    "repetition": (repetition, RepetitionParameters),
}
"""Name -> (function, dataclass of its parameters)."""


def build_filter(values: Any, where: str) -> FilterArgs:
    """A filter from a recipe, parameters completed with defaults; ValueError for unknown names, actions, parameters."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping with keys name, action, parameters; got {values!r}")
    args = build_args(FilterArgs, (where, values))
    if args.name not in FILTERS:
        raise ValueError(f"{where}: no filter {args.name!r}; known are {', '.join(FILTERS)}")
    if args.action not in ACTIONS:
        raise ValueError(f"{where}: action is {' or '.join(ACTIONS)}, got {args.action!r}")
    parameters: Any = build_args(FILTERS[args.name][1], (f"parameters of {where} ({args.name})", args.parameters))
    return FilterArgs(args.name, args.action, dataclasses.asdict(parameters))


@dataclass(frozen=True)
class Verdict:
    """What the filters say of one output: the first that drops it, and every other that fired, by name."""

    dropped_by: str | None
    reasons: dict[str, str]


def judge(text: str, source: Document, generation: Generation, filters: Sequence[FilterArgs]) -> Verdict:
    """Apply `filters` in order, after `empty`. All are asked, so that the flags of one do not depend on another."""
    reason = empty(text, source, generation, NoParameters())
    if reason is not None:
        return Verdict("empty", {"empty": reason})
    dropped_by: str | None = None
    reasons: dict[str, str] = {}
    for item in filters:
        function, parameters = FILTERS[item.name]
        reason = function(text, source, generation, parameters(**item.parameters))
        if reason is not None:
            reasons[item.name] = reason
            if item.action == "drop":
                dropped_by = dropped_by or item.name
    return Verdict(dropped_by, reasons)
