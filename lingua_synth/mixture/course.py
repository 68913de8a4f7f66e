"""The course of a mixture: which ratios hold at which position of the stream, exact.

spans (constant, or a ramp) ──cut──> pieces of constant ratios ──> the target of every source at every position

A course is what a schedule follows and what a saved state remembers: its part before a position is history, and
history is kept (`followed_by`) whatever comes after. A ramp is a staircase of at most RAMP_PIECES even steps, each at
the ramp's value in its middle, so that at the end of every step the sum of what was asked is the straight line's to
within a sequence. The target of a source is the integral of the staircase.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from lingua_synth.files import sha256_json
from lingua_synth.mixture.ratios import parse_ratios

RAMP_PIECES = 256


@dataclass(frozen=True)
class Span:
    """Ratios from position `start` to where the next span begins."""

    start: int
    ratios: Mapping[str, Fraction]
    """Sum to 1; a name that is missing has ratio 0."""
    ramp: tuple[int, int, Mapping[str, Fraction]] | None = None
    """(first position, position of arrival, ratios there): `ratios` hold at the first. May have begun before `start`,
    when an earlier course was left for this one in the middle of a ramp."""
    without: tuple[str, ...] = ()
    """Sources that are used up: the others share the stream in their proportions."""
    read: Mapping[str, int] | None = None
    """Where a source was used up: sequences read of each before `start`, from which the targets go on."""

    @property
    def names(self) -> tuple[str, ...]:
        """Sources named, of ratio 0 or not."""
        return tuple(dict.fromkeys((*self.ratios, *(self.ramp[2] if self.ramp else ()))))

    def goes_on_as(self, other: Span) -> bool:
        """Whether `other`, which begins later, asks for nothing else than this span does there."""
        one, two = (
            replace(span, start=0, ratios=span.ramp[2], ramp=None, read=None)
            if span.ramp is not None and span.ramp[1] <= other.start
            else replace(span, start=0, read=None)
            for span in (self, other)
        )
        return one.to_dict() == two.to_dict()

    def in_words(self) -> str:
        """The ratios, readable."""
        text = ", ".join(f"{name} {ratio}" for name, ratio in _strings(self.ratios).items())
        if self.ramp is not None:
            there = ", ".join(f"{name} {ratio}" for name, ratio in _strings(self.ramp[2]).items())
            text += f" at {self.ramp[0]:,} changing to {there} at {self.ramp[1]:,}"
        return text + (f" (without {', '.join(self.without)})" if self.without else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, exact: ratios as strings."""
        described: dict[str, Any] = {"start": self.start, "ratios": _strings(self.ratios)}
        if self.ramp is not None:
            described["ramp"] = [self.ramp[0], self.ramp[1], _strings(self.ramp[2])]
        if self.without:
            described["without"] = sorted(self.without)
        if self.read is not None:
            described["read"] = {name: count for name, count in sorted(self.read.items()) if count}
        return described

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Span:
        """The inverse of `to_dict`; ValueError for anything else."""
        try:
            ramp = described.get("ramp")
            return cls(
                int(described["start"]),
                parse_ratios(described["ratios"]),
                None if ramp is None else (int(ramp[0]), int(ramp[1]), parse_ratios(ramp[2])),
                tuple(str(name) for name in described.get("without", ())),
                None if "read" not in described else {str(n): int(c) for n, c in described["read"].items()},
            )
        except (KeyError, TypeError, IndexError, AttributeError) as error:  # of a state that somebody edited
            raise ValueError(f"no stage of a mixture: {described!r} ({error})") from None


def _strings(ratios: Mapping[str, Fraction]) -> dict[str, str]:
    return {name: str(ratio) for name, ratio in sorted(ratios.items()) if ratio}


@dataclass(frozen=True)
class Piece:
    """Constant ratios from position `start` on, by source index; they sum to 1."""

    start: int
    ratios: tuple[Fraction, ...]
    read: tuple[int, ...] | None = None
    """Sequences of each source before `start`, where the targets begin anew from what was read."""


class Course:
    """Ratios over positions. `names`: sources by index; `spans`: from position 0 on, each beginning after the last."""

    def __init__(self, names: Sequence[str], spans: Iterable[Span]) -> None:
        self.names = tuple(names)
        self.spans = tuple(spans)
        starts = [span.start for span in self.spans]
        assert starts and starts[0] == 0 and starts == sorted(set(starts)), "spans begin at 0 and follow each other"

    @classmethod
    def constant(cls, ratios: Mapping[str, Fraction]) -> Course:
        """The same ratios for ever."""
        return cls(tuple(ratios), [Span(0, ratios)])

    def __repr__(self) -> str:
        return f"Course({', '.join(str(span.to_dict()) for span in self.spans)})"

    # --- pieces and targets ---

    @cached_property
    def _cut(self) -> tuple[tuple[Piece, ...], int | None]:
        return self._cut_from([], 0)

    def _cut_from(self, pieces: list[Piece], first_span: int) -> tuple[tuple[Piece, ...], int | None]:
        """`pieces` of the spans before `first_span`, and those of the others; where nothing is left."""
        for number in range(first_span, len(self.spans)):
            span = self.spans[number]
            following = self.spans[number + 1].start if number + 1 < len(self.spans) else None
            read = span.read
            for start, stop, ratios in _steps(span):
                start = max(start, span.start)
                if (stop is not None and stop <= start) or (following is not None and start >= following):
                    continue
                left = {name: ratio for name, ratio in ratios.items() if ratio and name not in span.without}
                total = sum(left.values(), Fraction(0))
                if not total:
                    return tuple(pieces), start
                exact = tuple(left.get(name, Fraction(0)) / total for name in self.names)
                if read is not None:
                    pieces.append(Piece(start, exact, tuple(read.get(name, 0) for name in self.names)))
                elif not pieces or pieces[-1].ratios != exact:
                    pieces.append(Piece(start, exact))
                read = None
        return tuple(pieces), None

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Stretches of constant ratios, from position 0 on; the last one has no end, or ends at `end`."""
        return self._cut[0]

    @property
    def end(self) -> int | None:
        """Position at which no source is left; None: never."""
        return self._cut[1]

    @cached_property
    def _starts(self) -> list[int]:
        return [piece.start for piece in self.pieces]

    @cached_property
    def _targets(self) -> list[tuple[Fraction, ...]]:
        """Targets at the start of each piece."""
        return self._targets_from([])

    def _targets_from(self, targets: list[tuple[Fraction, ...]]) -> list[tuple[Fraction, ...]]:
        """`targets` of the first pieces, and those of the others."""
        for p in range(len(targets), len(self.pieces)):
            read = self.pieces[p].read if p else (0,) * len(self.names)
            if read is not None:
                targets.append(tuple(Fraction(count) for count in read))
                continue
            length = self.pieces[p].start - self.pieces[p - 1].start
            targets.append(tuple(t + length * r for t, r in zip(targets[-1], self.pieces[p - 1].ratios, strict=True)))
        return targets

    def target(self, k: int) -> tuple[Fraction, ...]:
        """Sequences of each source that exact ratios would give among the first `k`: the integral of the ratios."""
        index = bisect_right(self._starts, k) - 1
        length = k - self._starts[index]
        return tuple(t + length * r for t, r in zip(self._targets[index], self.pieces[index].ratios, strict=True))

    @cached_property
    def read(self) -> tuple[str, ...]:
        """Sources with a ratio above 0 somewhere."""
        return tuple(name for i, name in enumerate(self.names) if any(piece.ratios[i] for piece in self.pieces))

    # --- history ---

    def until(self, k: int) -> tuple[Span, ...]:
        """The spans that the first `k` positions follow, in one form: equal history, equal spans."""
        kept: list[Span] = []
        for span in self.spans:
            if span.start >= k and kept:
                break
            if not (kept and span.read is None and kept[-1].goes_on_as(span)):
                kept.append(span)
        return tuple(kept)

    def history(self, k: int) -> list[dict[str, Any]]:
        """`until` as plain data, exact."""
        return [span.to_dict() for span in self.until(k)]

    def history_sha256(self, k: int) -> str:
        """Identity of `history`, 16 hexadecimal digits."""
        return sha256_json(self.history(k))[:16]

    def from_position(self, k: int) -> tuple[Span, ...]:
        """The spans that hold from position `k` on, the first of them beginning there."""
        index = bisect_right([span.start for span in self.spans], k) - 1
        first = self.spans[index]
        if first.start < k:
            first = replace(first, start=k, read=None)
        return (first, *self.spans[index + 1 :])

    def followed_by(self, k: int, other: Course) -> Course:
        """This course before position `k`, and `other`'s from there on."""
        names = dict.fromkeys((*self.names, *other.names))
        if k == 0:
            return Course(tuple(names), other.spans)
        return Course(tuple(names), (*self.until(k), *other.from_position(k)))

    def without_source(self, name: str, k: int, counts: Sequence[int]) -> Course:
        """From position `k` on the others share the stream, in the proportions they have there and later.

        `counts`: sequences read of each source before `k`; the targets go on from these.
        """
        first, *rest = (replace(span, without=(*span.without, name)) for span in self.from_position(k))
        first = replace(first, read=dict(zip(self.names, counts, strict=True)))
        earlier = [span for span in self.spans if span.start < k]
        course = Course(self.names, (*earlier, first, *rest))
        kept = [piece for piece in self.pieces if piece.start < k]
        # What lies before k is taken over: with hundreds of sources used up in turn, it would be most of the work.
        course.__dict__["_cut"] = course._cut_from(list(kept), len(earlier))
        course.__dict__["_targets"] = course._targets_from(self._targets[: len(kept)])
        return course

    def reordered(self, names: Sequence[str]) -> Course:
        """The same course with the sources in the order `names`, which holds all of them."""
        assert set(self.names) <= set(names), "no source is lost"
        return Course(names, self.spans)


def _steps(span: Span) -> Iterable[tuple[int, int | None, Mapping[str, Fraction]]]:
    """(start, stop, ratios) of the steps of a span, as though it had begun where its ramp does."""
    if span.ramp is None:
        yield span.start, None, span.ratios
        return
    first, arrival, ratios_there = span.ramp
    names = dict.fromkeys((*span.ratios, *ratios_there))
    num_pieces = min(RAMP_PIECES, arrival - first)
    for p in range(num_pieces):
        start = first + (arrival - first) * p // num_pieces
        stop = first + (arrival - first) * (p + 1) // num_pieces
        way = Fraction(2 * p + 1, 2 * num_pieces)
        here = {name: span.ratios.get(name, Fraction(0)) for name in names}
        there = {name: ratios_there.get(name, Fraction(0)) for name in names}
        yield start, stop, {name: here[name] + way * (there[name] - here[name]) for name in names}
    yield arrival, None, ratios_there


def validate_history(described: Any) -> tuple[Span, ...]:
    """The spans of a saved history; ValueError for anything that is none."""
    if not isinstance(described, list) or not described:
        raise ValueError(f"no history of a mixture: {described!r}")
    spans = tuple(Span.from_dict(span) for span in described)
    starts = [span.start for span in spans]
    if starts[0] != 0 or starts != sorted(set(starts)):
        raise ValueError(f"no history of a mixture: its stages begin at {starts}")
    return spans
