"""The filters by name, how a recipe asks for them, and what they say together of one output."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lingua_synth.config import build_args
from lingua_synth.generate.filters import lengths, phrases, repeats, sources
from lingua_synth.generate.filters.context import FilterContext

ACTIONS = ("annotate", "drop", "strip")


class Filter(NamedTuple):
    """What there is under a filter's name."""

    check: Callable[[str, FilterContext, Any], str | None]
    """The reason why a text fails, or None: a pure function of its arguments."""
    parameters: type
    """Dataclass of its settings."""
    strip: Callable[[str, Any], tuple[str, dict[str, str]]] | None = None
    """The text without what fails, and what was cut, by where it stood; None: such texts cannot be mended."""
    require: Callable[[], None] | None = None
    """Raises ValueError where a library that it needs is missing; None: it needs none."""


FILTERS: dict[str, Filter] = {
    "empty": Filter(lengths.empty, lengths.NoParameters),
    "min_tokens": Filter(lengths.min_tokens, lengths.MinTokensParameters),
    "max_tokens": Filter(lengths.max_tokens, lengths.MaxTokensParameters),
    "finish_reason": Filter(lengths.finish_reason, lengths.FinishReasonParameters),
    "refusal": Filter(phrases.refusal, phrases.RefusalParameters),
    "boilerplate": Filter(phrases.boilerplate, phrases.BoilerplateParameters, phrases.strip_boilerplate),
    "repetition": Filter(repeats.repetition, repeats.RepetitionParameters),
    "compression": Filter(repeats.compression, repeats.CompressionParameters),
    "prompt_echo": Filter(sources.prompt_echo, sources.PromptEchoParameters),
    "copy": Filter(sources.copy, sources.CopyParameters),
    "language": Filter(sources.language, sources.LanguageParameters, require=sources.language_is_available),
    "qa_pairs": Filter(sources.qa_pairs, sources.QaPairsParameters),
}


@dataclass
class FilterArgs:
    """A filter as a recipe names it."""

    name: str = ""
    """One of the known filters."""
    action: str = "annotate"
    """annotate: mark the record; drop: leave it out, with the reason on file; strip: cut out what was found."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """The filter's own settings."""

    @functools.cached_property
    def settings(self) -> Any:
        """`parameters` as the filter takes them."""
        return FILTERS[self.name].parameters(**self.parameters)


def build_filter(values: Any, where: str) -> FilterArgs:
    """A filter from a recipe, parameters completed with defaults; ValueError for unknown names, actions, parameters."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping with keys name, action, parameters; got {values!r}")
    args = build_args(FilterArgs, (where, values))
    if args.name not in FILTERS:
        raise ValueError(f"{where}: no filter {args.name!r}; known are {', '.join(FILTERS)}")
    if args.action not in ACTIONS:
        raise ValueError(f"{where}: action is {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}, got {args.action!r}")
    if args.action == "strip" and FILTERS[args.name].strip is None:
        able = ", ".join(name for name, one in FILTERS.items() if one.strip is not None)
        raise ValueError(f"{where}: {args.name} has nothing to strip ({able} has); it can annotate or drop")
    parameters: Any = build_args(
        FILTERS[args.name].parameters, (f"parameters of {where} ({args.name})", args.parameters)
    )
    _validate_parameters(args.name, parameters, where)
    return FilterArgs(args.name, args.action, dataclasses.asdict(parameters))


_LEAST = {("prompt_echo", "min_words"): 4, ("copy", "ngram_words"): 1, ("language", "max_chars"): 1}
_SHARES = ("max_share", "max_ngram_share", "max_line_share", "min_ratio", "min_probability")


def _validate_parameters(name: str, parameters: Any, where: str) -> None:
    for key, value in dataclasses.asdict(parameters).items():
        least = _LEAST.get((name, key))
        if least is not None and value < least:
            raise ValueError(f"{where} ({name}): {key} must be at least {least}, got {value}")
        if key in _SHARES and not 0 <= value <= 1:
            raise ValueError(f"{where} ({name}): {key} is a share in [0, 1], got {value}")


def require_filters(filters: Sequence[FilterArgs]) -> None:
    """ValueError, saying what to install, where a library that one of `filters` needs is missing."""
    for item in filters:
        require = FILTERS[item.name].require
        if require is not None:
            require()


@dataclass(frozen=True)
class Verdict:
    """What the filters say of one output."""

    dropped_by: str | None
    """The first that drops it."""
    reasons: dict[str, str]
    """Every one that fired, by name; of those that strip, what they saw."""
    text: str
    """The output, without what was stripped."""
    stripped: dict[str, dict[str, str]] = field(default_factory=dict)
    """What was cut, by filter, then by where it stood."""


def judge(text: str, context: FilterContext, filters: Sequence[FilterArgs]) -> Verdict:
    """Apply `filters` in order, after `empty`; one that strips hands the shorter text to those after it.

    All are asked, so that the flags of one do not depend on another. A text of which stripping would leave nothing is
    dropped as it is by the filter that strips. Token counts stay those of the whole output.
    """
    reason = lengths.empty(text, context, lengths.NoParameters())
    if reason is not None:
        return Verdict("empty", {"empty": reason}, text)
    dropped_by: str | None = None
    reasons: dict[str, str] = {}
    stripped: dict[str, dict[str, str]] = {}
    for item in filters:
        kind = FILTERS[item.name]
        reason = kind.check(text, context, item.settings)
        if reason is None:
            continue
        reasons[item.name] = reason
        if item.action == "strip":
            assert kind.strip is not None, "build_filter refuses strip for the others"
            rest, cut = kind.strip(text, item.settings)
            if rest.strip():
                text, stripped[item.name] = rest, cut
                continue
        if item.action != "annotate":
            dropped_by = dropped_by or item.name
    return Verdict(dropped_by, reasons, text, stripped)
