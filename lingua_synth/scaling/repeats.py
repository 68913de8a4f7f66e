"""What a token is worth when it is seen again: from a fit of repeated data, with intervals.

R says how slowly repeats lose their worth, and runs hardly determine it: its interval is wide, or open, though the fit
is good. What a planner needs, the worth of four or sixteen passes in new tokens, is known far better. So
`value_of_repeats` gives both, and says when R alone should not be quoted.

N: parameters of the model. U: unique tokens. D: training tokens, passes times U.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import ArrayLike, _positive
from lingua_synth.scaling.mixture_law import MixtureLaw
from lingua_synth.scaling.ratio import fit_alike
from lingua_synth.scaling.records import record
from lingua_synth.scaling.repetition import OverfitLaw, RepetitionLaw, log_worth_of_repeats
from lingua_synth.scaling.uncertainty import Bootstrap, bootstrap

WEAK_FACTOR = 3.0
"""R is weakly identified when the ends of its interval differ by more than this factor, or one of them is a bound, or
a rival law puts R that far off in the same runs."""


@dataclass(frozen=True, eq=False)
class RepeatValue:
    """The decay of repeated tokens, and what passes are worth in new tokens."""

    name: str
    """The parameter: R_D, R_natural or R_synthetic."""
    R: float
    interval: tuple[float, float]
    """Of R, by resampled runs; an end on a bound of the law says that the runs do not close it."""
    level: float
    weakly_identified: bool
    why: str
    """Why R is weakly identified; empty when it is not."""
    under: dict[str, float]
    """R by law: this one and its rivals, fitted to the same runs."""
    passes: np.ndarray
    worth: np.ndarray
    """New tokens that teach as much, in units of U: 3.7 for 4 passes says that they are worth 3.7 U new tokens."""
    worth_low: np.ndarray
    worth_high: np.ndarray
    N: float | None
    """Where the worth depends on them (a penalty for repeats): at this size ..."""
    U: float | None
    """... and with so many unique tokens."""
    most_passes: float
    """Of any run; beyond it the worth is the form of the law."""
    num_resamples: int
    num_failed: int
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(dict(self.__dict__))

    def __str__(self) -> str:
        low, high = self.interval
        weak = f"   WEAKLY IDENTIFIED: {self.why}" if self.weakly_identified else ""
        at = "" if self.N is None else f" at N {self.N:.3g}, U {self.U:.3g}"
        lines = [f"{self.name} {self.R:.3g}, {100 * self.level:g} % interval [{low:.3g}, {high:.3g}]{weak}"]
        lines.append(f"  {'passes':>8} {'new tokens / U':>15}{at}")
        rows = zip(self.passes, self.worth, self.worth_low, self.worth_high, strict=True)
        for passes, worth, least, most in rows:
            beyond = "   (more passes than any run)" if passes > self.most_passes * (1 + 1e-9) else ""
            lines.append(f"  {passes:>8.4g} {worth:>15.3g}   [{least:.3g}, {most:.3g}]{beyond}")
        return "\n".join(lines + [f"  note: {warning}" for warning in self.warnings])


def value_of_repeats(
    fit: ScalingFit,
    passes: ArrayLike = (2.0, 4.0, 8.0, 16.0, 32.0),
    *,
    source: str | None = None,
    N: float | None = None,
    U: float | None = None,
    level: float = 0.95,
    n: int = 1000,
    seed: int = 0,
    unit: str | Sequence[Any] | np.ndarray | None = None,
    resamples: Bootstrap | None = None,
) -> RepeatValue:
    """R of a fit of repeated data with its interval, and the worth of `passes` over U tokens in new ones.

    The fit is of `RepetitionLaw`, `OverfitLaw` or `MixtureLaw(repetition=True)`, whose `source` ("natural" or
    "synthetic") must be named. Under `OverfitLaw` the penalty for repeats counts against their worth, which then
    depends on N and U (by default the geometric means of the runs) and may fall with passes. `unit`: what errs
    independently, as for `bootstrap`; `resamples`: a bootstrap of this fit made before.

    ValueError for another law, runs in which no token is seen twice, and passes below 1.
    """
    law = fit.law
    name = _decay_of(fit, source)
    count = _positive(passes, "passes").reshape(-1)
    if (count < 1).any():
        raise ValueError(f"passes are at least 1, the first; got {count[count < 1][0]:g}")
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95; got {level}")
    most = _most_passes(fit, source)
    if most <= 1 + 1e-9:
        raise ValueError("no run of this fit sees a token twice, so nothing in them shows what repeats are worth")
    if resamples is None:
        resamples = bootstrap(fit, n=n, seed=seed, unit=unit)
    elif resamples.law != law or resamples.point != fit.params:
        raise ValueError("resamples is a bootstrap of another fit; make it with bootstrap(fit)")
    place: tuple[float, float] | None = None
    if isinstance(law, OverfitLaw):
        own = [float(np.exp(np.mean(np.log(np.sort(fit.variables[variable]))))) for variable in ("N", "U")]
        given = [float(_positive(v, k)) if v is not None else o for v, k, o in ((N, "N", own[0]), (U, "U", own[1]))]
        place = (given[0], given[1])
    elif N is not None or U is not None:
        raise ValueError(f"under {type(law).__name__} the worth of passes does not depend on N and U; leave them out")
    tails = [(1 - level) / 2, (1 + level) / 2]
    solved = resamples._solved()
    decays = solved[:, law.parameters.index(name)]
    low, high = np.quantile(decays, tails).tolist()
    worth_low, worth_high = np.quantile(_worth(fit, name, solved, count, place), tails, axis=0)
    under = {law.name: fit.params[name]}
    for rival in law.rivals():
        if name in rival.parameters and fit.num_points > len(rival.parameters):
            under[rival.name] = fit_alike(fit, rival).params[name]
    why = _why(law.bounds[name], low, high, under)
    return RepeatValue(
        name=name,
        R=fit.params[name],
        interval=(low, high),
        level=level,
        weakly_identified=bool(why),
        why=why,
        under=under,
        passes=count,
        worth=_worth(fit, name, law.as_array(fit.params)[None], count, place)[0],
        worth_low=worth_low,
        worth_high=worth_high,
        N=None if place is None else place[0],
        U=None if place is None else place[1],
        most_passes=most,
        num_resamples=len(resamples.params),
        num_failed=resamples.num_failed,
        warnings=[] if fit.identifiable else [f"the fit is not identifiable: {'; '.join(fit.reasons)}"],
    )


def _decay_of(fit: ScalingFit, source: str | None) -> str:
    law = fit.law
    if isinstance(law, MixtureLaw) and law.repetition:
        if source not in ("natural", "synthetic"):
            raise ValueError(f"source is 'natural' or 'synthetic', whose repeats are asked for; got {source!r}")
        return f"R_{source}"
    if not isinstance(law, (RepetitionLaw, OverfitLaw)):
        raise ValueError(
            f"{type(law).__name__} ({law.formula}) knows nothing of repeats; fit RepetitionLaw, OverfitLaw or "
            "MixtureLaw(repetition=True)"
        )
    if source is not None:
        raise ValueError(f"{type(law).__name__} has no sources; leave source out")
    return "R_D"


def _most_passes(fit: ScalingFit, source: str | None) -> float:
    columns = fit.variables
    if isinstance(fit.law, RepetitionLaw) and fit.law.shares:
        return max(float(np.max(share * columns["D"] / columns[f"U_{s}"])) for s, share in fit.law.shares.items())
    if source is None:
        return float(np.max(columns["D"] / columns["U"]))
    share = columns["r"] if source == "synthetic" else 1 - columns["r"]
    return float(np.max(share * columns["D"] / columns[f"U_{source}"]))


def _worth(
    fit: ScalingFit, name: str, params: np.ndarray, passes: np.ndarray, place: tuple[float, float] | None
) -> np.ndarray:
    """New tokens that teach as much as `passes` over U, in units of U, `[n, k]`."""
    column = {parameter: params[:, k, None] for k, parameter in enumerate(fit.law.parameters)}
    tokens = passes * np.exp(log_worth_of_repeats(np.log(passes), column[name])[0])
    if place is None:
        return np.asarray(tokens)
    N, U = place
    harm = column["k"] * (passes - 1) ** column["s"] * (N / U) ** column["t"]
    # B/(U x)^beta = B/(U tokens)^beta + harm, for x.
    with np.errstate(divide="ignore"):
        share = tokens ** -column["beta"] + harm * U ** column["beta"] / column["B"]
        return np.asarray(share ** (-1 / column["beta"]))


def _why(bounds: tuple[float, float], low: float, high: float, under: dict[str, float]) -> str:
    for end, bound in ((low, bounds[0]), (high, bounds[1])):
        if abs(end - bound) <= 1e-9 * bound:
            return f"its interval reaches the bound {bound:g} of the law"
    if high > WEAK_FACTOR * low:
        return f"the ends of its interval differ by a factor of {high / low:.2g}"
    least, most = min(under.values()), max(under.values())
    if most > WEAK_FACTOR * least:
        return "it depends on the law: " + ", ".join(f"{law} {R:.3g}" for law, R in under.items())
    return ""
