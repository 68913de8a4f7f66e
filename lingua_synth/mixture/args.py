"""Configuration of a mixture: its sources, stages and policies, as `mix`, training and studies take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lingua_synth.mixture.mixture import Mixture, Stage


@dataclass
class SourceArgs:
    """One corpus of a mixture."""

    path: str = ""
    """Folder of the source's token shards and their manifest.json."""
    ratio: str = "1"
    """Exact share of the training tokens, '2/3' or 0.67, in [0, 1]. The ratios of a mixture sum to exactly 1."""
    max_epochs: float = 1.0
    """Most passes over the source, above 0; 1.0 repeats no token."""
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
