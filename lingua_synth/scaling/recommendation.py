"""What to train on: kind of synthetic text, its share and its generator, for one model size and budget.

The runs of a study go in; a `Recommendation` comes out, or the reason why this study cannot say. It refuses outside
what was trained: (N, D) must lie between the table's sizes and budgets (inside their convex hull in ln N and ln D), for
every kind of text by itself, because the best share moves with both and a law is only a law where runs hold it.

Kinds are compared at their best shares by the law in the ratio, each with the interval of its gain over natural text
alone. What the runs do not tell from the best is tied with it, and natural text alone wins every tie: synthetic text
costs GPU-hours to make.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling.hull import outside, trained_places
from lingua_synth.scaling.kinds import Kind, kinds_of
from lingua_synth.scaling.natural import base_mixture
from lingua_synth.scaling.ratio import BestRatio
from lingua_synth.scaling.ratio_fits import RatioFit, fit_ratios
from lingua_synth.scaling.records import record
from lingua_synth.scaling.regions import t_quantile
from lingua_synth.scaling.runs import Runs


@dataclass(frozen=True, eq=False)
class Option:
    """One source of synthetic text at its best share."""

    kind: Kind
    best: BestRatio
    interval: tuple[float, float]
    """Of the best share, holding what the rival law says."""
    gain: float
    """ln(loss of natural text alone / loss at the best share): 0.01 is 1 % less loss."""
    low: float
    high: float
    error: float

    @property
    def ratio(self) -> float:
        """The best share of training tokens."""
        return self.best.ratio


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The answer for one size and budget."""

    N: float
    D: float
    n_definition: str
    target: str
    level: float
    base: str
    choice: Option | None
    """None: natural text alone, or no answer (see `refusal`)."""
    tied: tuple[Option, ...]
    """Others that the runs do not tell from the choice, best first."""
    options: tuple[Option, ...]
    """Everything that was compared, best first."""
    refusal: str | None
    """Why there is no answer."""
    notes: tuple[str, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(
            {
                "N": self.N, "D": self.D, "n_definition": self.n_definition, "target": self.target, "level": self.level,
                "base": self.base, "refusal": self.refusal, "notes": list(self.notes),
                "choice": _plain(self.choice) if self.choice is not None else None,
                "tied": [_plain(one) for one in self.tied],
                "options": [_plain(one) for one in self.options],
            }
        )  # fmt: skip

    def __str__(self) -> str:
        place = f"N {self.N:.4g} ({self.n_definition}), D {self.D:.4g}"
        if self.refusal is not None:
            return "\n".join([f"{place}: no recommendation. {self.refusal}", *(f"note: {n}" for n in self.notes)])
        if self.choice is None:
            lines = [f"{place}: natural text alone ({self.base}); no synthetic text is shown to lower {self.target}"]
        else:
            lines = [f"{place}: {_words(self.choice)}"]
            lines += [f"  as good, by these runs: {_words(one)}" for one in self.tied]
        rest = [one for one in self.options if one is not self.choice and one not in self.tied]
        lines += [f"  compared: {_words(one)}" for one in rest]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def recommend(
    runs: Runs,
    N: float,
    D: float,
    *,
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    base: str | None = None,
    roles: Mapping[str, str] | None = None,
    generators: Mapping[str, str] | None = None,
    ratio_fits: Mapping[str, RatioFit] | None = None,
    num_bootstraps: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Recommendation:
    """The kind, share and generator of lowest `target` for a model of N parameters trained on D tokens.

    `ratio_fits`: of `fit_ratios`, made before. ValueError for N or D that is not positive, an empty table, a base,
    column or source that is not there; a place that the runs do not hold is no error but a `refusal`.
    """
    if not (math.isfinite(N) and N > 0 and math.isfinite(D) and D > 0):
        raise ValueError(f"a recommendation is for N parameters and D tokens, both positive; got {N} and {D}")
    if not len(runs):
        raise ValueError("the runs table is empty; there is nothing to recommend from")
    base = base_mixture(runs, base)
    assert base is not None, "a table with runs has a first mixture"
    kinds = kinds_of(runs, base, roles, generators)
    found = ratio_fits
    if found is None:
        found = fit_ratios(
            runs, base, target=target, n_definition=n_definition, num_bootstraps=num_bootstraps, seed=seed
        )
    place = (float(N), float(D))
    notes: list[str] = []
    usable: dict[str, RatioFit] = {}
    beyond: dict[str, str] = {}
    for source, one in found.items():
        if not one.usable:
            notes.append(f"{source} takes no part: {one.why_not}")
            continue
        why = outside(trained_places(runs, base, source, n_definition), source, *place)
        if why:
            beyond[source] = why
        else:
            usable[source] = one
    if not usable:
        why = next(iter(beyond.values()), "") or (
            "No kind of synthetic text was trained at enough ratios for a law in the ratio"
            + (f" ({'; '.join(notes)})" if notes else "")
            + "; train at least three ratios of one source beside natural text, at several budgets."
        )
        return Recommendation(*place, n_definition, target, level, base, None, (), (), why, tuple(notes))
    notes += [f"{source} takes no part: {why}" for source, why in beyond.items()]
    options = sorted(
        (_option(kinds[source], one, *place, level) for source, one in usable.items()), key=lambda o: -o.gain
    )
    notes += [f"{one.kind.source}: {warning}" for one in options for warning in one.best.warnings]
    best = options[0]
    if best.low <= 0:
        return Recommendation(*place, n_definition, target, level, base, None, (), tuple(options), None, tuple(notes))
    t = t_quantile(min(one.bootstrap.freedom for one in usable.values() if one.bootstrap is not None), level)
    tied = [one for one in options[1:] if best.gain - one.gain <= t * math.hypot(best.error, one.error)]
    choice = _smallest_generator(best, tied, notes)
    others = tuple(one for one in (best, *tied) if one is not choice)
    return Recommendation(*place, n_definition, target, level, base, choice, others, tuple(options), None, tuple(notes))


def _option(kind: Kind, one: RatioFit, N: float, D: float, level: float) -> Option:
    found = one.at(N, D, level)
    assert one.bootstrap is not None, "only usable fits are compared"
    value, again = one.log_gain(N, D, found.ratio)
    error = float(np.std(again, ddof=1))
    reach = t_quantile(one.bootstrap.freedom, level) * error
    return Option(kind, found, one.interval(found), -value, -value - reach, -value + reach, error)


def _smallest_generator(best: Option, tied: Sequence[Option], notes: list[str]) -> Option:
    """Of equals of one kind the text of the smallest generator: it is the cheapest to write."""
    alike = [one for one in (best, *tied) if one.kind.kind == best.kind.kind and one.kind.generator_size is not None]
    if best.kind.generator_size is None or len(alike) < 2:
        return best
    smallest = min(alike, key=lambda one: float(one.kind.generator_size or math.inf))
    if smallest is not best:
        notes.append(
            f"{best.kind.generator} has the lower loss by the laws, but the runs do not tell it from the smaller "
            f"{smallest.kind.generator}, which writes for less"
        )
    return smallest


def _words(one: Option) -> str:
    by = f" by {one.kind.generator}" if one.kind.generator else ""
    return (
        f"{100 * one.ratio:.0f} % {one.kind.kind}{by} (best share in [{one.interval[0]:.2f}, {one.interval[1]:.2f}]; "
        f"{one.best.flat[0]:.2f} to {one.best.flat[1]:.2f} within one run's scatter), "
        f"{100 * one.gain:.2g} % less loss [{100 * one.low:.2g}, {100 * one.high:.2g}] than natural text alone"
    )


def _plain(one: Option) -> dict[str, Any]:
    return {
        "source": one.kind.source, "kind": one.kind.kind, "generator": one.kind.generator, "ratio": one.ratio,
        "interval": list(one.interval), "within_scatter": list(one.best.flat), "gain": one.gain,
        "gain_interval": [one.low, one.high],
    }  # fmt: skip
