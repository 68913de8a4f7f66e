"""Configuration of a mixture: its sources, stages and policies, as `mix`, training and studies take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from lingua_synth.mixture.feedback import FeedbackRule
from lingua_synth.mixture.mixture import Mixture, Stage
from lingua_synth.mixture.plan import Part
from lingua_synth.mixture.ratios import parse_ratio


@dataclass
class SourceArgs:
    """One corpus of a mixture."""

    path: str = ""
    """Folder of the source's token shards and their manifest.json."""
    ratio: str = "1"
    """Exact share of the training tokens, '2/3' or 0.67, in [0, 1]. The ratios of a mixture sum to exactly 1."""
    max_epochs: float = 1.0
    """Most passes over the source, above 0; 1.0 repeats no token."""
    part: str = "1"
    """Exact share of the source's windows that is read at all, '1/8' or 0.25, in (0, 1]: fewer unique tokens, so more
    passes. Drawn by the seed, a smaller part inside a larger one; `max_epochs` counts passes over the part."""
    documents: str = ""
    """Documents to tokenize into `path` on first use; empty: the shards are already there."""


@dataclass
class StageArgs:
    """A stretch of training with ratios of its own, instead of the sources' `ratio`."""

    ratios: dict[str, str] = field(default_factory=dict)
    """Share of the stage's tokens by source, summing to exactly 1; a source that is not named has none."""
    until: str | None = None
    """End of the stage as a share of the run's training tokens, '9/10' or 0.9. The last stage has no end."""
    until_tokens: int | None = None
    """End of the stage in training tokens from the start of the run, instead of `until`."""
    ramp_to: dict[str, str] = field(default_factory=dict)
    """Ratios at the end of the stage, reached evenly from `ratios`; empty: they stay."""


@dataclass
class FeedbackArgs:
    """Shares that follow the losses: after every interval the next one's are set from the losses by source, by the rule
    of dynamic batch loading (Xia et al. 2023). The sources' `ratio` are those of the first interval."""

    every_tokens: int | None = None
    """Training tokens of an interval, a whole number of optimizer steps; null: no feedback."""
    reference: dict[str, float] = field(default_factory=dict)
    """Reference loss of every source that is read, nats per token, at least 0: what it should come to. Excess over it
    raises the source's share."""
    step_size: float = 1.0
    """Factor on the excess in the exponent, above 0."""
    min_ratio: str = "1/1000"
    """Least share of a source, above 0; a source that is used up has less. Every interval draws the shares towards
    equal ones by this times the number of sources: keep it small."""


def build_feedback(
    args: FeedbackArgs, ratios: Mapping[str, Fraction], seq_len: int, on_exhaustion: str
) -> FeedbackRule | None:
    """The rule of a config; None for none. ValueError for what makes none, and for a policy it cannot keep."""
    if args.every_tokens is None:
        if args != FeedbackArgs():
            raise ValueError("feedback has no interval: set feedback.every_tokens, or leave the section out")
        return None
    read = [name for name, ratio in ratios.items() if ratio]
    if args.every_tokens < seq_len or args.every_tokens % seq_len:
        raise ValueError(
            f"feedback.every_tokens {args.every_tokens:,} is no whole number of sequences of {seq_len:,} tokens"
        )
    if on_exhaustion not in ("repeat", "renormalize"):
        raise ValueError(
            f"with feedback nobody knows before the run what it will ask of a source, so on_exhaustion={on_exhaustion} "
            "cannot be promised: set on_exhaustion=renormalize (a source that is used up is read no more) or repeat"
        )
    if set(args.reference) != set(read):
        raise ValueError(
            f"feedback.reference names {', '.join(args.reference) or 'no source'}; it takes a loss for each of "
            f"{', '.join(read)}"
        )
    reference = {name: parse_ratio(loss) for name, loss in args.reference.items()}
    step_size, min_ratio = parse_ratio(args.step_size), parse_ratio(args.min_ratio)
    if not step_size or not 0 < min_ratio * len(read) <= 1:
        raise ValueError(
            f"feedback.step_size is above 0 and feedback.min_ratio above 0 and at most 1/{len(read)}, for as many "
            f"sources; got {args.step_size} and {args.min_ratio}"
        )
    return FeedbackRule(args.every_tokens // seq_len, reference, step_size, min_ratio)


def build_part(sources: Mapping[str, SourceArgs], common: Fraction | None = None) -> Part:
    """What is read of each source: its own `part` times `common`, a part of all; None where all are read whole.
    ValueError, naming the source, for what is no share."""
    parts = {}
    for name, source in sources.items():
        parts[name] = parse_ratio(source.part)
        if not 0 < parts[name] <= 1:
            raise ValueError(f"sources.{name}.part is a share of its windows, above 0 and at most 1; got {source.part}")
    if all(part == 1 for part in parts.values()):
        return common
    if common is None:
        return {name: part for name, part in parts.items() if part < 1}
    return {name: part * common for name, part in parts.items()}


def build_mixture(
    sources: Mapping[str, SourceArgs], stages: Mapping[str, StageArgs] | None = None, on_exhaustion: str = "refuse"
) -> Mixture:
    """The mixture of a config. ValueError, naming the stage, for what makes none, and for ratios given twice."""
    if not sources:
        raise ValueError("sources is empty: name at least one, e.g. sources.web.path=shards/web sources.web.ratio=1")
    max_epochs = {name: source.max_epochs for name, source in sources.items()}
    if not stages:
        ratios = {name: source.ratio for name, source in sources.items()}
        return Mixture(ratios, max_epochs, on_exhaustion=on_exhaustion)
    for name, source in sources.items():
        if source.ratio != SourceArgs.ratio:
            raise ValueError(
                f"source {name!r} has ratio {source.ratio}, and the mixture has stages ({', '.join(stages)}), which "
                "give the ratios: leave one of the two out"
            )
    built = []
    for name, stage in stages.items():
        unknown = [source for source in (*stage.ratios, *stage.ramp_to) if source not in sources]
        if unknown:
            raise ValueError(
                f"stage {name!r} names {', '.join(map(repr, unknown))}, which is not among the sources: "
                f"{', '.join(map(repr, sources))}"
            )
        ratios = {source: stage.ratios.get(source, "0") for source in sources}
        ramp_to = {source: stage.ramp_to.get(source, "0") for source in sources} if stage.ramp_to else None
        built.append(Stage(ratios, stage.until, stage.until_tokens, ramp_to))
    try:
        return Mixture(stages=built, max_epochs=max_epochs, on_exhaustion=on_exhaustion)
    except ValueError as error:
        names = ", ".join(f"{number} is {name!r}" for number, name in enumerate(stages, 1))
        raise ValueError(f"{error} (stage {names})") from None
