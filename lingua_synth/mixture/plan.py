"""The plan: what a run asks of its sources, against what they hold. Arithmetic only; no token is read.

A source of T tokens holds (T - 1) // seq_len sequences: windows of seq_len + 1 tokens that start seq_len apart, so
that neighbours share one token and each token is predicted once per pass. The first token of a source, and the up to
seq_len - 1 behind its last full window, are never predicted.

The planned sequences are those the schedule serves, so the figures hold for the run to the sequence: also the
position at which a source runs out, which is the number of sequences that can be trained on before it does, and what
the mixture's `on_exhaustion` makes of it there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from lingua_synth.mixture.course import Course
from lingua_synth.mixture.mixture import Mixture
from lingua_synth.mixture.ratios import validate_count
from lingua_synth.mixture.schedule import MAX_POSITION, Schedule
from lingua_synth.mixture.strict import StrictSchedule, build_schedule


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
    """Share of the plan's sequences that the mixture asks for; of a mixture in stages, the mean over the plan."""
    max_epochs: Fraction
    num_tokens: int
    """Tokens the source holds."""
    available_sequences: int
    """Sequences of one pass."""
    available_tokens: int
    planned_sequences: int
    """What the run reads, after `on_exhaustion`."""
    planned_tokens: int
    runs_out_at: int | None
    """Position whose sequence would exceed max_epochs: the most sequences a run can have before this source is used
    up. None: never, as for a source of ratio 0."""

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
        """Whether the plan keeps to max_epochs."""
        return self.planned_sequences <= self.limit_sequences


@dataclass(frozen=True)
class Exhaustion:
    """A source is used up, and the mixture says what then."""

    position: int
    source: str
    policy: str

    def in_words(self, seq_len: int) -> str:
        """One sentence, with the position in sequences and in tokens."""
        where = f"at position {self.position:,} ({self.position * seq_len:,} tokens)"
        then = {
            "refuse": "the run may not go on",
            "stop": "the run ends",
            "repeat": "it begins another pass, reshuffled",
            "renormalize": "the others share the stream in their proportions",
        }
        return f"{where} source {self.source!r} has given its max_epochs: {then[self.policy]}"


@dataclass(frozen=True)
class MixturePlan:
    """What a mixture asks of its sources over `num_sequences`; prints as a table."""

    num_sequences: int
    """Sequences asked for."""
    seq_len: int
    sources: tuple[SourcePlan, ...]
    schedule: Schedule | StrictSchedule
    """What the run follows, with every change that `on_exhaustion` makes before `end`."""
    end: int
    """Sequences that the run can have: `num_sequences`, or fewer where the sources end before."""
    exhaustions: tuple[Exhaustion, ...]
    """Where sources are used up before `num_sequences`, in order."""
    on_exhaustion: str
    is_constant: bool
    """Whether the ratios are the same for the whole run."""

    @property
    def num_tokens(self) -> int:
        """Training tokens asked for, repeats counted."""
        return self.num_sequences * self.seq_len

    @property
    def max_num_sequences(self) -> int:
        """Most sequences this mixture can serve from these sources within their max_epochs."""
        found = [source.runs_out_at for source in self.sources if source.runs_out_at is not None]
        return min(found, default=MAX_POSITION)

    @property
    def is_feasible(self) -> bool:
        """Whether every source keeps to its max_epochs, or the mixture says what happens where one does not."""
        missing = any(source.ratio and not source.available_sequences for source in self.sources)
        return not missing and (self.on_exhaustion != "refuse" or all(source.is_feasible for source in self.sources))

    def validate(self) -> None:
        """Raise ValueError if a source is asked for more than it may give, with the numbers and the ways out."""
        if self.is_feasible:
            return
        judged = [source for source in self.sources if source.ratio and not source.available_sequences]
        if self.on_exhaustion == "refuse":
            judged = [source for source in self.sources if not source.is_feasible or source in judged]
        raise ValueError("\n".join(self._problem(source) for source in judged))

    def _problem(self, source: SourcePlan) -> str:
        if not source.available_sequences:
            return (
                f"source {source.name!r} holds {source.num_tokens:,} tokens, less than one sequence of "
                f"{self.seq_len:,} + 1. "
                + (f"Lower seq_len to at most {source.num_tokens - 1:,}" if source.num_tokens > 1 else "Add text")
                + ", or set its ratio to 0."
            )
        enough = Fraction(math.ceil(100 * source.epochs), 100)
        shorter = "Raise"
        if self.max_num_sequences and self.is_constant:
            shorter = f"Lower num_sequences to {self.max_num_sequences:,} or raise"
        elif self.max_num_sequences:
            shorter = f"Lower its share (it lasts to position {self.max_num_sequences:,}) or raise"
        return (
            f"source {source.name!r} can give {source.limit_sequences:,} sequences "
            f"({source.available_sequences:,} x max_epochs {float(source.max_epochs):g}) but the plan needs "
            f"{source.planned_sequences:,} ({float(source.ratio):.1%} of {self.num_sequences:,}). "
            f"{shorter} max_epochs to {float(enough):.2f}, or set on_exhaustion to stop, repeat or renormalize."
        )

    def notices(self) -> list[str]:
        """What happens on the way because a source is used up, a sentence each; empty: nothing."""
        if self.on_exhaustion == "refuse":
            return []
        said = [exhaustion.in_words(self.seq_len) for exhaustion in self.exhaustions]
        if self.end < self.num_sequences:
            said.append(
                f"the run ends after {self.end:,} of {self.num_sequences:,} sequences "
                f"({self.end * self.seq_len:,} of {self.num_tokens:,} tokens)"
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for a record; ratios stay exact as strings."""
        return {
            "num_sequences": self.num_sequences,
            "seq_len": self.seq_len,
            "num_tokens": self.num_tokens,
            "max_num_sequences": self.max_num_sequences,
            "end": self.end,
            "on_exhaustion": self.on_exhaustion,
            "exhaustions": [{"position": event.position, "source": event.source} for event in self.exhaustions],
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
        head = ("source", "ratio", "asked", "available", "planned", "epochs", "of at most", "runs out at position")
        rows = [
            (
                source.name,
                _ratio_in_words(source.ratio),
                f"{round(source.ratio * self.num_sequences):,} seq",
                f"{source.available_sequences:,} seq = {source.available_tokens:,} tok",
                f"{source.planned_sequences:,} seq = {source.planned_tokens:,} tok",
                f"{float(source.epochs):.4f}",
                f"{float(source.max_epochs):g}",
                "never"
                if source.runs_out_at is None
                else f"{source.runs_out_at:,}" + " (too early)" * (source.runs_out_at < self.num_sequences),
            )
            for source in self.sources
        ]
        return "\n".join([table(head, rows), *self.notices()])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
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


def count_part(num_windows: int, part: Fraction | None) -> int:
    """Windows of a source that are read where only `part` of them are: rounded up, so that what fits into a number of
    passes over the whole fits into it over the part. None: all."""
    return num_windows if part is None else math.ceil(num_windows * part)


Part: TypeAlias = Fraction | Mapping[str, Fraction] | None
"""Share of every source's windows that is read at all, or of those named, the others whole. None: all of them."""


def validate_part(part: Part, names: Collection[str]) -> Part:
    """`part`; ValueError unless it is None, a share above 0 and at most 1, or such shares of some of `names`."""
    shares = part if isinstance(part, Mapping) else {} if part is None else {"": part}
    for share in shares.values():
        if not 0 < share <= 1:
            raise ValueError(
                f"part is the share of a source's windows that is read, above 0 and at most 1; got {share}"
            )
    if unknown := [name for name in shares if name and name not in names]:
        raise ValueError(f"part names {', '.join(unknown)}; the sources are {', '.join(names)}")
    return part


def part_of(part: Part, name: str) -> Fraction | None:
    """The share of one source's windows that is read; None: all."""
    return part.get(name) if isinstance(part, Mapping) else part


def plan_report(
    sources: Mapping[str, CountedSource | int],
    mixture: Mixture,
    num_sequences: int,
    seq_len: int,
    *,
    schedule: str = "tree",
    n_views: int = 2,
    validate: bool = True,
    after: tuple[Course, int] | None = None,
    part: Part = None,
) -> MixturePlan:
    """Asked, available and planned per source, the passes, and the position at which each source runs out.

    `sources` gives each source of the mixture, or just its number of tokens; nothing is read. The figures are those
    of the schedule of that name, exact. `after`: (course, position) of a run that has come to that position on another
    course; the mixture holds from there on. `part`: share of every source's windows that is read at all
    (`count_part`), or shares by name. Raises ValueError when a source is asked for more than max_epochs passes
    and the mixture says "refuse", unless `validate` is off, and for sources that are not those of the mixture.
    """
    num_sequences = validate_count("num_sequences", num_sequences)
    seq_len = validate_count("seq_len", seq_len, at_least=1)
    validate_names(sources, mixture)
    tokens = {name: _num_tokens(sources[name]) for name in mixture.names}
    validate_part(part, mixture.names)
    windows = {
        name: count_part(count_windows(tokens[name], seq_len, n_views), part_of(part, name)) for name in mixture.names
    }
    followed = follow(mixture, windows, num_sequences, seq_len, schedule=schedule, after=after)
    assert followed.end is not None, "a plan has an end"
    planned = followed.schedule.counts(followed.end).tolist()
    target = followed.asked.target(num_sequences)
    plan = MixturePlan(
        num_sequences=num_sequences,
        seq_len=seq_len,
        sources=tuple(
            SourcePlan(
                name=name,
                ratio=target[i] / num_sequences if num_sequences else followed.asked.pieces[0].ratios[i],
                max_epochs=mixture.max_epochs[name],
                num_tokens=tokens[name],
                available_sequences=windows[name],
                available_tokens=windows[name] * seq_len,
                planned_sequences=planned[i],
                planned_tokens=planned[i] * seq_len,
                runs_out_at=followed.runs_out[i],
            )
            for i, name in enumerate(mixture.names)
        ),
        schedule=followed.schedule,
        end=followed.end,
        exhaustions=followed.exhaustions,
        on_exhaustion=mixture.on_exhaustion,
        is_constant=mixture.is_constant,
    )
    if validate:
        plan.validate()
    return plan


@dataclass(frozen=True)
class Followed:
    """What a run follows once `on_exhaustion` has had its say."""

    asked: Course
    """What the mixture asks for."""
    schedule: Schedule | StrictSchedule
    end: int | None
    """Sequences the stream can have; None: no end."""
    exhaustions: tuple[Exhaustion, ...]
    runs_out: tuple[int | None, ...]
    """Position at which each source exceeds its max_epochs, by index. None: never, or, for a strict schedule of
    changing ratios, which would have to be walked there, not within the run."""


def follow(
    mixture: Mixture,
    num_windows: Mapping[str, int],
    num_sequences: int | None,
    seq_len: int,
    *,
    schedule: str = "tree",
    after: tuple[Course, int] | None = None,
) -> Followed:
    """The schedule of a run of `num_sequences` (None: as long as the sources last) over `num_windows` sequences a pass.

    `after`: (course, position) that the run has behind it; what was read before that position is not judged.
    """
    names, policy = mixture.names, mixture.on_exhaustion
    limits = [math.floor(num_windows[name] * mixture.max_epochs[name]) for name in names]
    course, position = mixture.course(num_sequences, seq_len), 0
    if after is not None:
        position = after[1]
        course = after[0].followed_by(position, course).reordered(names)
    asked = course
    followed = build_schedule(course, schedule)
    last = MAX_POSITION if num_sequences is None else num_sequences
    runs_out = [_runs_out(followed, i, limit, last) for i, limit in enumerate(limits)]
    if policy != "renormalize":
        found = sorted((at, name) for at, name in zip(runs_out, names, strict=True) if at is not None and at < last)
        ends = bool(found) and (policy == "stop" or (policy == "refuse" and num_sequences is None))
        events = tuple(Exhaustion(at, name, policy) for at, name in (found[:1] if policy == "stop" else found))
        return Followed(asked, followed, found[0][0] if ends else num_sequences, events, tuple(runs_out))
    happened: list[Exhaustion] = []
    left = set(range(len(names)))
    while left:
        at, i = min(((at, i) for i in left if (at := runs_out[i]) is not None), default=(last, -1))
        at = max(at, position)
        if at >= last:
            break
        happened.append(Exhaustion(at, names[i], policy))
        left.discard(i)
        course = course.without_source(names[i], at, followed.counts(at).tolist())
        if course.end is not None and course.end <= at:
            return Followed(asked, followed, at, tuple(happened), tuple(runs_out))
        followed = build_schedule(course, schedule, like=followed)
        for other in left:
            runs_out[other] = _runs_out(followed, other, limits[other], last)
    ends_at = [end for end in (num_sequences, course.end) if end is not None]
    return Followed(asked, followed, min(ends_at, default=None), tuple(happened), tuple(runs_out))


def _runs_out(schedule: Schedule | StrictSchedule, i: int, limit: int, last: int) -> int | None:
    if isinstance(schedule, StrictSchedule) and schedule.period is None:
        most = schedule.course.target(min(last, schedule.course.end or last))[i] + schedule.bound
        if most <= limit:
            return None
    return schedule.position(i, limit)


def _num_tokens(source: CountedSource | int) -> int:
    return source if isinstance(source, int) else source.num_tokens


def validate_names(sources: Mapping[str, Any], mixture: Mixture) -> None:
    """Raise ValueError unless `sources` are the sources of the mixture, by name."""
    missing = [name for name in mixture.names if name not in sources]
    if missing:
        raise ValueError(
            f"the mixture names {', '.join(map(repr, missing))}, which is not among the sources given: "
            f"{', '.join(map(repr, sources)) or 'none'}"
        )
    extra = [name for name in sources if name not in mixture.names]
    if extra:
        raise ValueError(
            f"no ratio for {', '.join(map(repr, extra))}; the mixture has {', '.join(map(repr, mixture.names))}. "
            "Name a ratio (0 leaves a source unread) or leave the source out"
        )


def _ratio_in_words(ratio: Fraction) -> str:
    exact = str(ratio)
    return exact if len(exact) <= 12 else f"{float(ratio):.8f}"
