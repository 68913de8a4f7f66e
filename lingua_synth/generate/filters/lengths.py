"""Filters on what the engine counted: nothing written, too little, too much, cut off."""

from __future__ import annotations

from dataclasses import dataclass, field

from lingua_synth.generate.filters.context import FilterContext


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


def empty(text: str, context: FilterContext, parameters: NoParameters) -> str | None:
    """No text at all. Always applied, as the first filter: an empty text is no document."""
    return None if text.strip() else "no text"


def min_tokens(text: str, context: FilterContext, parameters: MinTokensParameters) -> str | None:
    """Too short to be worth keeping, in the generator's tokens."""
    count = context.generation.output_tokens
    return f"{count:,} tokens, fewer than {parameters.tokens:,}" if count < parameters.tokens else None


def max_tokens(text: str, context: FilterContext, parameters: MaxTokensParameters) -> str | None:
    """Far longer than the recipe aims for, in the generator's tokens."""
    count = context.generation.output_tokens
    return f"{count:,} tokens, more than {parameters.tokens:,}" if count > parameters.tokens else None


def finish_reason(text: str, context: FilterContext, parameters: FinishReasonParameters) -> str | None:
    """Ended for a reason that leaves the text incomplete, by default because it ran into the limit of tokens."""
    reason = context.generation.finish_reason
    return f"finish reason {reason}" if reason in parameters.reasons else None
