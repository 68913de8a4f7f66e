"""The plan: what a run asks of its sources, against what they hold. Arithmetic only; no token is read.

A source of T tokens holds (T - 1) // seq_len sequences: windows of seq_len + 1 tokens that start seq_len apart, so
that neighbours share one token and each token is predicted once per pass. The first token of a source, and the up to
seq_len - 1 behind its last full window, are never predicted.

The planned sequences are those the schedule serves, so the figures hold for the run to the sequence: also the
position at which a source runs out, which is the number of sequences that can be trained on before it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy.typing as npt

from lingua_synth.mixture.ratios import Mixture, validate_count
from lingua_synth.mixture.schedule import Schedule
from lingua_synth.mixture.strict import StrictSchedule


class TokenSourceLike(Protocol):
    """What a mixture needs of a source; `lingua_synth.tokens.TokenSource` has it."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def manifest(self) -> Mapping[str, Any]: ...
    def window(self, start: int, length: int) -> npt.NDArray[Any]: ...


class CountedSource(Protocol):
    """A source of which only the length matters."""

    @property
    def num_tokens(self) -> int: ...


@dataclass(frozen=True)
class SourcePlan:
    """One line of the plan. Sequences and tokens are exact; tokens count predictions, `seq_len` a sequence."""

    name: str
    ratio: Fraction
    max_epochs: Fraction
    num_tokens: int
    """Tokens the source holds."""
    available_sequences: int
    """Sequences of one pass."""
    available_tokens: int
    planned_sequences: int
    planned_tokens: int
    runs_out_at: int | None
    """Position whose sequence would exceed max_epochs: the most sequences a run of this mixture can have before this
    source is used up. None: ratio 0, never read."""

    @property
    def limit_sequences(self) -> int:
        """Most sequences the source may give: its passes times `max_epochs`, rounded down."""
        return math.floor(self.available_sequences * self.max_epochs)

    @property
    def epochs(self) -> Fraction:
        """Planned passes over the source, exact; 0 for a source that is not read."""
        return Fraction(self.planned_sequences, self.available_sequences or 1)

    @property
    def is_feasible(self) -> bool:
        return self.planned_sequences <= self.limit_sequences


@dataclass(frozen=True)
class MixturePlan:
    """What a mixture asks of its sources over `num_sequences`; prints as a table."""

    num_sequences: int
    seq_len: int
    sources: tuple[SourcePlan, ...]

    @property
    def num_tokens(self) -> int:
        """Training tokens of the plan, repeats counted."""
        return self.num_sequences * self.seq_len

    @property
    def max_num_sequences(self) -> int:
        """Most sequences this mixture can serve from these sources within their max_epochs."""
        return min(source.runs_out_at for source in self.sources if source.runs_out_at is not None)

    @property
    def is_feasible(self) -> bool:
        return all(source.is_feasible for source in self.sources)

    def validate(self) -> None:
        """Raise ValueError if a source is asked for more than it may give, with the numbers and the ways out."""
        problems = [self._problem(source) for source in self.sources if not source.is_feasible]
        if problems:
            raise ValueError("\n".join(problems))

    def _problem(self, source: SourcePlan) -> str:
        if not source.available_sequences:
            return (
                f"source {source.name!r} holds {source.num_tokens:,} tokens, less than one sequence of "
                f"{self.seq_len:,} + 1. "
                + (f"Lower seq_len to at most {source.num_tokens - 1:,}" if source.num_tokens > 1 else "Add text")
                + ", or set its ratio to 0."
            )
        enough = Fraction(math.ceil(100 * source.epochs), 100)
        shorter = f"Lower num_sequences to {self.max_num_sequences:,} or raise" if self.max_num_sequences else "Raise"
        return (
            f"source {source.name!r} can give {source.limit_sequences:,} sequences "
            f"({source.available_sequences:,} x max_epochs {float(source.max_epochs):g}) but the plan needs "
            f"{source.planned_sequences:,} ({float(source.ratio):.1%} of {self.num_sequences:,}). "
            f"{shorter} max_epochs to {float(enough):.2f}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for a record; ratios stay exact as strings."""
        return {
            "num_sequences": self.num_sequences,
            "seq_len": self.seq_len,
            "num_tokens": self.num_tokens,
            "max_num_sequences": self.max_num_sequences,
            "sources": {
                source.name: {
                    "ratio": str(source.ratio),
                    "max_epochs": float(source.max_epochs),
                    "available_sequences": source.available_sequences,
                    "available_tokens": source.available_tokens,
                    "planned_sequences": source.planned_sequences,
                    "planned_tokens": source.planned_tokens,
                    "epochs": float(source.epochs),
                    "runs_out_at": source.runs_out_at,
                }
                for source in self.sources
            },
        }

    def __str__(self) -> str:
        head = ("source", "ratio", "available", "planned", "epochs", "of at most", "runs out at position")
        rows = [
            (
                source.name,
                _ratio_in_words(source.ratio),
                f"{source.available_sequences:,} seq = {source.available_tokens:,} tok",
                f"{source.planned_sequences:,} seq = {source.planned_tokens:,} tok",
                f"{float(source.epochs):.4f}",
                f"{float(source.max_epochs):g}",
                "never"
                if source.runs_out_at is None
                else f"{source.runs_out_at:,}" + " (too early)" * (not source.is_feasible),
            )
            for source in self.sources
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = []
        for row in (head, *rows):
            cells = [
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def count_windows(num_tokens: int, seq_len: int, n_views: int = 2) -> int:
    """Sequences of one pass over a source: full windows of `seq_len + n_views - 1` tokens at a stride of `seq_len`."""
    return max(0, (num_tokens - (n_views - 1)) // seq_len)


def plan_report(
    sources: Mapping[str, CountedSource | int],
    mixture: Mixture,
    num_sequences: int,
    seq_len: int,
    *,
    schedule: Schedule | StrictSchedule | None = None,
    n_views: int = 2,
    validate: bool = True,
) -> MixturePlan:
    """Asked, available and planned per source, the passes, and the position at which each source runs out.

    `sources` gives each source of the mixture, or just its number of tokens; nothing is read. The figures are those
    of `schedule` (default: the closed-form one of the mixture), exact. Raises ValueError when a source is asked for
    more than max_epochs passes, unless `validate` is off, and for sources that are not those of the mixture.
    """
    num_sequences = validate_count("num_sequences", num_sequences)
    seq_len = validate_count("seq_len", seq_len, at_least=1)
    validate_names(sources, mixture)
    schedule = schedule or Schedule(mixture)
    planned = schedule.counts(num_sequences).tolist()
    lines = []
    for i, name in enumerate(mixture.names):
        source = sources[name]
        num_tokens = source if isinstance(source, int) else source.num_tokens
        num_windows = count_windows(num_tokens, seq_len, n_views)
        limit = math.floor(num_windows * mixture.max_epochs[name])
        lines.append(
            SourcePlan(
                name=name,
                ratio=mixture.ratios[name],
                max_epochs=mixture.max_epochs[name],
                num_tokens=num_tokens,
                available_sequences=num_windows,
                available_tokens=num_windows * seq_len,
                planned_sequences=planned[i],
                planned_tokens=planned[i] * seq_len,
                runs_out_at=schedule.position(i, limit),
            )
        )
    plan = MixturePlan(num_sequences, seq_len, tuple(lines))
    if validate:
        plan.validate()
    return plan


def validate_names(sources: Mapping[str, Any], mixture: Mixture) -> None:
    """Raise ValueError unless `sources` are the sources of the mixture, by name."""
    missing = [name for name in mixture.names if name not in sources]
    if missing:
        raise ValueError(
            f"the mixture names {', '.join(map(repr, missing))}, which is not among the sources given: "
            f"{', '.join(map(repr, sources)) or 'none'}"
        )
    extra = [name for name in sources if name not in mixture.ratios]
    if extra:
        raise ValueError(
            f"no ratio for {', '.join(map(repr, extra))}; the mixture has {', '.join(map(repr, mixture.names))}. "
            "Name a ratio (0 leaves a source unread) or leave the source out"
        )


def _ratio_in_words(ratio: Fraction) -> str:
    exact = str(ratio)
    return exact if len(exact) <= 12 else f"{float(ratio):.8f}"
