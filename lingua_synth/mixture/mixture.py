"""A mixture: sources with exact shares of the training tokens, constant or in stages, and what if one is used up.

Ratios, stages and ramps are what a user writes; `course` turns them into positions of one run, from which everything
else (schedule, plan, batches) follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from lingua_synth.mixture.course import Course, Span
from lingua_synth.mixture.ratios import Ratio, parse_max_epochs, parse_ratio, parse_ratios, validate_count

EXHAUSTION = ("refuse", "stop", "repeat", "renormalize")


@dataclass(frozen=True)
class Stage:
    """A stretch of training with ratios of its own: constant, or with `ramp_to` changing evenly from start to end.

    `until`: its end as a share of the run's training tokens ("9/10", 0.9), or `until_tokens`: as a number of training
    tokens, rounded down to whole sequences. The last stage has neither and lasts to the end, unless it is a ramp that
    ends before the run does. A source that a stage does not name has ratio 0 in it.
    """

    ratios: Mapping[str, Ratio]
    until: Ratio | None = None
    until_tokens: int | None = None
    ramp_to: Mapping[str, Ratio] | None = None


class Mixture:
    """Sources with their exact shares of the training tokens, and how often each may be read.

    `ratios` maps a source's name to its ratio (a mapping, or pairs); they must sum to exactly 1. A source of ratio 0
    is listed but never read. Or `stages`, one after the other, each with ratios (`Stage`): a curriculum, an annealing,
    a warm-in of synthetic data.

    `max_epochs`, one number for all or one by name (others: 1.0), is the most passes over a source; 1.0 repeats no
    token. `on_exhaustion` says what a run does that would need more:
    "refuse" (the default): it does not start; the error has the numbers and the ways out.
    "stop": it ends before the first source exceeds its passes.
    "repeat": the source goes on, in a new order every pass.
    "renormalize": from that position on the others share the stream, in the proportions they have.
    All are computed before training; the plan names every position at which something happens.

    The order of the names is kept: it is the order of source indices. It has no influence on which sequence is read
    where. Raises ValueError for ratios that do not sum to 1 (with their sum), a name given twice, and bad values.
    """

    def __init__(
        self,
        ratios: Mapping[str, Ratio] | Iterable[tuple[str, Ratio]] | None = None,
        max_epochs: Mapping[str, Ratio] | Ratio = 1.0,
        *,
        stages: Sequence[Stage] | None = None,
        on_exhaustion: str = "refuse",
    ) -> None:
        if (ratios is None) == (stages is None):
            raise ValueError("a mixture has ratios, as {'web': '2/3', 'hq': '1/3'}, or stages=[Stage(...), ...]")
        if on_exhaustion not in EXHAUSTION:
            raise ValueError(f"no policy on_exhaustion={on_exhaustion!r}; there are: {', '.join(EXHAUSTION)}")
        if stages is None:
            assert ratios is not None, "one of the two is given"
            self.stages: tuple[_ParsedStage, ...] = (_ParsedStage(parse_ratios(ratios)),)
            """What the ratios are, stage by stage, exact."""
        else:
            self.stages = _parse_stages(stages)
        self.names: tuple[str, ...] = tuple(dict.fromkeys(name for stage in self.stages for name in stage.names))
        """Names of the sources, in the order of their indices."""
        self.max_epochs: dict[str, Fraction] = parse_max_epochs(max_epochs, self.names)
        """Most passes over each source, exact."""
        self.on_exhaustion = on_exhaustion

    @property
    def is_constant(self) -> bool:
        """Whether the ratios are the same from the first sequence to the last."""
        return len(self.stages) == 1 and self.stages[0].ramp_to is None

    @property
    def ratios(self) -> dict[str, Fraction]:
        """Exact share of each source; sums to 1. ValueError for a mixture in stages, which has no one ratio."""
        if not self.is_constant:
            raise ValueError(f"{self!r} has no constant ratios; ask its course at a position, or its stages")
        return self.stages[0].ratios

    def in_words(self) -> str:
        """How the shares go over training: "constant", or the stages, as "web: 1 until 9/10; hq: 1/2, math: 1/2"."""
        return "constant" if self.is_constant else "; ".join(stage.in_words() for stage in self.stages)

    def course(self, num_sequences: int | None = None, seq_len: int | None = None) -> Course:
        """The ratios over the positions of a run of `num_sequences` sequences of `seq_len` training tokens.

        `num_sequences` is needed where a stage ends at a share of the run, `seq_len` where one ends at a number of
        tokens. Raises ValueError when they are missing, and for a stage that would end before it begins.
        """
        spans, start = [], 0
        for number, stage in enumerate(self.stages, 1):
            end = _end(stage, number, num_sequences, seq_len)
            last = number == len(self.stages)
            if end is None and stage.ramp_to is not None:
                if num_sequences is None:
                    raise ValueError(f"stage {number} is a ramp to the end of the run: give num_sequences")
                end = validate_count("num_sequences", num_sequences)
            if end is not None and end <= start:
                raise ValueError(
                    f"stage {number} would end at sequence {end:,}, and it begins at {start:,}: give it more of the "
                    "run, or leave it out"
                )
            if stage.ramp_to is None:
                spans.append(Span(start, stage.ratios))
            else:
                assert end is not None, "a ramp has an end"
                spans.append(Span(start, stage.ratios, ramp=(start, end, stage.ramp_to)))
            assert last or end is not None, "only the last stage is without an end"
            start = start if end is None else end
        return Course(self.names, spans)

    def __repr__(self) -> str:
        return "Mixture(" + "; ".join(map(str, self.stages)) + ")"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mixture):
            return NotImplemented
        return self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @cached_property
    def _identity(self) -> tuple[object, ...]:
        return (str(self), self.names, tuple(self.max_epochs.items()), self.on_exhaustion)


@dataclass(frozen=True)
class _ParsedStage:
    """A stage, exact."""

    ratios: dict[str, Fraction]
    until: Fraction | None = None
    until_tokens: int | None = None
    ramp_to: dict[str, Fraction] | None = None

    @property
    def names(self) -> list[str]:
        return [*self.ratios, *(self.ramp_to or {})]

    def in_words(self) -> str:
        """The stage without the sources that have no part in it."""
        ramp_to = None if self.ramp_to is None else _without_zeros(self.ramp_to)
        return str(replace(self, ratios=_without_zeros(self.ratios), ramp_to=ramp_to))

    def __str__(self) -> str:
        text = _listed(self.ratios)
        if self.ramp_to is not None:
            text += f" -> {_listed(self.ramp_to)}"
        if self.until is not None:
            return f"{text} until {self.until}"
        return text if self.until_tokens is None else f"{text} until {self.until_tokens:,} tokens"


def _listed(ratios: Mapping[str, Fraction]) -> str:
    return ", ".join(f"{name}: {ratio}" for name, ratio in ratios.items())


def _without_zeros(ratios: Mapping[str, Fraction]) -> dict[str, Fraction]:
    return {name: ratio for name, ratio in ratios.items() if ratio}


def _parse_stages(stages: Sequence[Stage]) -> tuple[_ParsedStage, ...]:
    if not stages:
        raise ValueError("stages is empty; give at least one, e.g. Stage({'web': 1})")
    parsed = []
    for number, stage in enumerate(stages, 1):
        try:
            parsed.append(_parse_stage(stage, is_last=number == len(stages)))
        except ValueError as error:
            raise ValueError(f"stage {number}: {error}") from None
    return tuple(parsed)


def _parse_stage(stage: Stage, is_last: bool) -> _ParsedStage:
    if stage.until is not None and stage.until_tokens is not None:
        raise ValueError("give its end once: until (a share of the run) or until_tokens")
    has_end = stage.until is not None or stage.until_tokens is not None
    if not has_end and not is_last:
        raise ValueError("only the last stage lasts to the end of the run; give this one until or until_tokens")
    if has_end and is_last and stage.ramp_to is None:
        raise ValueError("the last stage lasts to the end of the run; leave until out, or add the stage that follows")
    until = None if stage.until is None else parse_ratio(stage.until)
    if until is not None and not 0 < until <= 1:
        raise ValueError(f"until is a share of the run, above 0 and at most 1, got {stage.until}; or give until_tokens")
    tokens = None if stage.until_tokens is None else validate_count("until_tokens", stage.until_tokens, at_least=1)
    ramp_to = None if stage.ramp_to is None else parse_ratios(stage.ramp_to)
    return _ParsedStage(parse_ratios(stage.ratios), until, tokens, ramp_to)


def _end(stage: _ParsedStage, number: int, num_sequences: int | None, seq_len: int | None) -> int | None:
    if stage.until is not None:
        if num_sequences is None:
            raise ValueError(f"stage {number} lasts until {stage.until} of the run: give num_sequences or until_tokens")
        return int(stage.until * num_sequences)
    if stage.until_tokens is not None:
        if seq_len is None:
            raise ValueError(f"stage {number} lasts until {stage.until_tokens:,} tokens: give seq_len")
        return stage.until_tokens // seq_len
    return None
