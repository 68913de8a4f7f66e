"""Comparing mixtures through their fitted laws: speed-up at equal loss, crossing points.

Every answer says where it ends: a loss the base can never reach is `beyond_reach`, a budget beyond the base's runs is
marked. The best ratio is in `ratio.py`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import ArrayLike, _positive
from lingua_synth.scaling.records import record
from lingua_synth.scaling.regions import falling_region, region_around, resampled_error, t_quantile
from lingua_synth.scaling.uncertainty import Bootstrap

FARTHEST = 1e30
"""Times D beyond which no budget is looked for: further than that is out of reach."""
FAR = 1e3
"""How many times beyond the runs a crossing of the laws is still told."""


@dataclass(frozen=True, eq=False)
class Speedup:
    """How many times the tokens the base needs for the loss that the other mixture has at D."""

    D: np.ndarray
    """Budgets of the other mixture."""
    factor: np.ndarray
    """D_base(L) / D at equal loss L; above 1 the base needs more. inf where beyond reach."""
    beyond_reach: np.ndarray
    """True where the other's loss lies at or below all the base's law ever reaches (or a budget beyond any number)."""
    loss: np.ndarray
    """Loss of the other mixture at D."""
    extrapolation_factor: np.ndarray
    """How many times D_base(L) lies beyond the base's own runs; 1 inside them, inf beyond reach."""
    warnings: list[str] = field(default_factory=list)
    low: np.ndarray | None = None
    """Interval of `factor`, None without resamples. `low` may be 0: the runs do not exclude any smaller factor."""
    high: np.ndarray | None = None
    """inf where the runs do not exclude that the loss is beyond the base's reach."""
    reach_probability: np.ndarray | None = None
    """Share of the resamples in which the base reaches the loss at some budget."""
    level: float | None = None

    @property
    def state(self) -> np.ndarray:
        """Per budget: "inside" the base's runs, "beyond range" of them (an extrapolation), or "beyond reach"."""
        inside = np.where(self.extrapolation_factor > 1, "beyond range", "inside")
        return np.where(self.beyond_reach, "beyond reach", inside)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a factor beyond reach is null with its reason."""
        plain = {
            "D": self.D,
            "factor": self.factor,
            "beyond_reach": self.beyond_reach,
            "state": self.state,
            "loss": self.loss,
            "extrapolation_factor": self.extrapolation_factor,
            "warnings": self.warnings,
        }
        if self.level is not None:
            plain |= {
                "low": self.low,
                "high": self.high,
                "reach_probability": self.reach_probability,
                "level": self.level,
            }
        return record(plain)

    def __str__(self) -> str:
        header = f"{'D':>12} {'loss':>10} {'speed-up':>12}"
        if self.level is not None:
            header += f" {f'{100 * self.level:g} % interval':>20} {'within reach':>13}"
        lines = [header]
        for k, beyond in enumerate(np.ravel(self.extrapolation_factor).tolist()):
            factor = float(np.ravel(self.factor)[k])
            shown = "beyond reach" if np.isinf(factor) else f"{factor:.3g}"
            line = f"{np.ravel(self.D)[k]:>12.4g} {np.ravel(self.loss)[k]:>10.5g} {shown:>12}"
            if self.low is not None and self.high is not None and self.reach_probability is not None:
                high = float(np.ravel(self.high)[k])
                interval = f"[{np.ravel(self.low)[k]:.3g}, {'beyond reach' if np.isinf(high) else f'{high:.3g}'}]"
                line += f" {interval:>20} {100 * np.ravel(self.reach_probability)[k]:>11.3g} %"
            note = f"   ({beyond:.3g} times beyond the base's runs)" if 1 < beyond < np.inf else ""
            lines.append(line + note)
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def speedup(
    base: ScalingFit,
    other: ScalingFit,
    D: ArrayLike,
    N: ArrayLike | None = None,
    *,
    resamples: tuple[Bootstrap, Bootstrap] | None = None,
    level: float = 0.95,
) -> Speedup:
    """Tokens `base` needs to reach the loss `other` has after D tokens, divided by D.

    Both fits are laws in D; N is needed when either depends on it, and both must then count N alike. Arrays broadcast.
    `resamples`: the bootstraps of base and other, row by row the same draws (`paired_bootstrap`, or `bootstrap` of a
    joint fit of mixtures), give intervals: every budget of the base whose loss, by the laws, cannot be told from the
    other's (see `regions.py`). An upper end of inf says that the runs do not exclude that the base never gets there.
    ValueError for a law without a data term, a missing or unused N, differing definitions of N, and resamples that are
    of unequal number or not of these fits.
    """
    _check_pair(base, other, N)
    D = _positive(D, "D")
    loss = np.asarray(_predict(other, N, D))
    D_base = np.asarray(base.law.solve_D(base.params, loss, **({"N": N} if "N" in base.law.variables else {})))
    beyond = np.isinf(D_base)
    D, factor, D_base = np.broadcast_arrays(D, D_base / D, D_base)
    assert base.D is not None, "a law with a data term is fitted to D"
    reach = np.maximum(np.maximum(D_base / base.D.max(), base.D.min() / D_base), 1.0)
    bounds: dict[str, Any] = {}
    if resamples is not None:
        low, high, reached = _speedup_intervals(base, other, D, N, resamples, level)
        bounds = {"low": low, "high": high, "reach_probability": reached, "level": float(level)}
    return Speedup(
        D=np.array(D),
        factor=np.array(factor),
        beyond_reach=np.array(beyond),
        loss=np.array(loss),
        extrapolation_factor=reach,
        warnings=_pair_warnings({"base": base, "other": other}),
        **bounds,
    )


def _speedup_intervals(
    base: ScalingFit,
    other: ScalingFit,
    D: np.ndarray,
    N: ArrayLike | None,
    resamples: tuple[Bootstrap, Bootstrap],
    level: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low, high, share of resamples within reach), each of the shape of D."""
    rows = _solved_together(base, other, resamples)
    base_rows, other_rows = (one.params[rows] for one in resamples)
    t = t_quantile(min(one.freedom for one in resamples), level)
    near = np.linspace(-np.log(1e4), np.log(1e6), 481)
    x = np.concatenate([near, np.linspace(near[-1], np.log(FARTHEST), 101)[1:]])
    sizes = np.broadcast_to(np.nan if N is None else np.asarray(N, dtype=np.float64), D.shape)
    low, high, reached = np.empty(D.shape), np.empty(D.shape), np.empty(D.shape)
    for at in np.ndindex(D.shape):
        size = None if N is None else float(sizes[at])
        wanted = _at(other, other_rows, size, np.array([D[at]]))
        curves = _at(base, base_rows, size, D[at] * np.exp(x))
        point = _at(base, base.law.as_array(base.params)[None], size, D[at] * np.exp(x))[0]
        point = point - float(_at(other, other.law.as_array(other.params)[None], size, np.array([D[at]]))[0, 0])
        gap = curves - wanted
        low[at], high[at] = np.exp(falling_region(x, point, resampled_error(gap), t))
        reached[at] = np.mean(gap[:, -1] < 0)
    return low, high, reached


@dataclass(frozen=True)
class Crossing:
    """One budget at which the lower of two curves changes."""

    D: float
    low: float
    high: float
    """Every budget around D at which, by the resamples, the curves cannot be told apart."""
    low_censored: bool
    high_censored: bool
    """The interval goes on beyond the range looked at; `low` or `high` is then its end."""
    ahead_after: str
    """The mixture whose loss is the lower one beyond D."""


@dataclass(frozen=True, eq=False)
class Crossings:
    """Where the curves of two mixtures cross, and how sure that is."""

    names: tuple[str, str]
    N: float | None
    between: tuple[float, float]
    found: tuple[Crossing, ...]
    """Crossings of the two laws in `between`, ascending."""
    beyond: tuple[float, ...]
    """Where the laws cross outside of `between`, up to 1000 times beyond: an extrapolation."""
    probability: float
    """Share of the resamples that cross in `between`."""
    ahead_throughout: tuple[float, float]
    """Share of the resamples in which each of the two is the lower one all through `between`."""
    level: float
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(dict(self.__dict__) | {"found": [dict(one.__dict__) for one in self.found]})

    def __str__(self) -> str:
        low, high = self.between
        where = f" at N {self.N:.4g}" if self.N is not None else ""
        lines = []
        for one in self.found:
            behind = self.names[1 - self.names.index(one.ahead_after)]
            left = f"(below) {one.low:.3g}" if one.low_censored else f"{one.low:.3g}"
            right = f"{one.high:.3g} (and beyond)" if one.high_censored else f"{one.high:.3g}"
            lines.append(
                f"{one.ahead_after} passes {behind}{where} after D = {one.D:.3g}, "
                f"{100 * self.level:g} % interval [{left}, {right}]"
            )
        if not self.found:
            lines.append(f"no crossing of {self.names[0]} and {self.names[1]}{where} between {low:.3g} and {high:.3g}")
        for D in self.beyond:
            times = max(D / high, low / D)
            lines.append(f"  by the laws they cross at D = {D:.3g}, {times:.3g} times beyond this range")
        ahead = ", ".join(
            f"{name} is ahead throughout in {100 * share:.3g} %"
            for name, share in zip(self.names, self.ahead_throughout, strict=True)
        )
        lines.append(f"  in {100 * self.probability:.3g} % of the resamples they cross here; {ahead}")
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def crossing_intervals(
    a: ScalingFit,
    b: ScalingFit,
    resamples: tuple[Bootstrap, Bootstrap],
    N: float | None = None,
    between: tuple[float, float] | None = None,
    *,
    names: tuple[str, str] = ("a", "b"),
    level: float = 0.95,
) -> Crossings:
    """`crossing` with the share of resamples that cross, and an interval around each crossing.

    `resamples` as for `speedup`; `between` as for `crossing`. An interval that leaves the range is cut there and called
    censored. ValueError as for both.
    """
    rows = _solved_together(a, b, resamples)
    t = t_quantile(min(one.freedom for one in resamples), level)
    low, high = _range_of(a, b, between)
    x = np.linspace(np.log(low), np.log(high), 601)
    gaps = _at(a, resamples[0].params[rows], N, np.exp(x)) - _at(b, resamples[1].params[rows], N, np.exp(x))
    point = _at(a, a.law.as_array(a.params)[None], N, np.exp(x)) - _at(b, b.law.as_array(b.params)[None], N, np.exp(x))
    error = resampled_error(gaps)
    # What `crossing` says of equal curves and of laws that do not compare, it says here too.
    crossings = crossing(a, b, N, (low, high))
    far = crossing(a, b, N, (low / FAR, high * FAR))
    found = []
    for D in crossings:
        lower, upper = region_around(x, point[0], error, t, float(np.log(D)))
        after = float(np.interp(np.log(D) + 1e-3, x, point[0]))
        found.append(
            Crossing(
                D=D,
                low=float(np.exp(lower)) if np.isfinite(lower) else low,
                high=float(np.exp(upper)) if np.isfinite(upper) else high,
                low_censored=not np.isfinite(lower),
                high_censored=not np.isfinite(upper),
                ahead_after=names[0] if after < 0 else names[1],
            )
        )
    return Crossings(
        names=names,
        N=None if N is None else float(N),
        between=(float(low), float(high)),
        found=tuple(found),
        beyond=tuple(D for D in far if not low <= D <= high),
        probability=float(np.mean((gaps > 0).any(axis=-1) & (gaps < 0).any(axis=-1))),
        ahead_throughout=(float(np.mean((gaps < 0).all(axis=-1))), float(np.mean((gaps > 0).all(axis=-1)))),
        level=float(level),
        warnings=_pair_warnings(dict(zip(names, (a, b), strict=True))),
    )


def _solved_together(a: ScalingFit, b: ScalingFit, resamples: tuple[Bootstrap, Bootstrap]) -> np.ndarray:
    """Which resamples have an answer for both; ValueError when they do not belong to the fits or to each other."""
    for fit, one in zip((a, b), resamples, strict=True):
        if one.law != fit.law or one.point != fit.params:
            raise ValueError("resamples must be those of the two fits, in their order")
    first, second = (one.params for one in resamples)
    if len(first) != len(second):
        raise ValueError(f"resamples are paired row by row; got {len(first)} and {len(second)}")
    return ~(np.isnan(first).any(axis=-1) | np.isnan(second).any(axis=-1))


def _at(fit: ScalingFit, params: np.ndarray, N: float | None, D: np.ndarray) -> np.ndarray:
    """Losses `[n, len(D)]` of parameters `[n, p]`."""
    return np.asarray(fit.law.predict(params, D=D, **({"N": N} if "N" in fit.law.variables else {})))


def crossing(
    a: ScalingFit,
    b: ScalingFit,
    N: float | None = None,
    between: tuple[float, float] | None = None,
) -> list[float]:
    """Every D at which the two predicted curves cross, ascending; empty when one stays below the other.

    `between` = (lowest D, highest D), by default what the runs of the two fits span together. In ln D the difference
    of two power laws is a constant and two exponentials, which has one extremum at most; cutting there leaves monotone
    pieces, so no crossing is missed and none is found twice. Laws of other shapes are compared at 2001 budgets. A curve
    that only touches the other crosses nothing.
    ValueError as for `speedup`, and for two equal curves.
    """
    _check_pair(a, b, N)
    if N is not None and np.ndim(N) != 0:
        raise ValueError(f"crossing takes one N at a time, got shape {np.shape(N)}")
    low, high = _range_of(a, b, between)
    if not (a.law.terms and b.law.terms):
        return _crossings_by_grid(a, b, N, low, high)
    (E_a, B_a, beta_a), (E_b, B_b, beta_b) = _at_fixed_N(a, N), _at_fixed_N(b, N)
    if (E_a, B_a, beta_a) == (E_b, B_b, beta_b) or (B_a == B_b == 0 and E_a == E_b):
        raise ValueError("the two curves are equal everywhere, so they cross nowhere in particular")

    def difference(x: float) -> float:
        return (E_a - E_b) + B_a * np.exp(-beta_a * x) - B_b * np.exp(-beta_b * x)

    cuts = [float(np.log(low)), float(np.log(high))]
    if beta_a != beta_b and B_a > 0 and B_b > 0:
        extremum = (np.log(beta_a * B_a) - np.log(beta_b * B_b)) / (beta_a - beta_b)
        if cuts[0] < extremum < cuts[1]:
            cuts.insert(1, float(extremum))
    return [float(np.exp(x)) for x in _sign_changes(difference, cuts)]


def _range_of(a: ScalingFit, b: ScalingFit, between: tuple[float, float] | None) -> tuple[float, float]:
    assert a.D is not None and b.D is not None, "laws with a data term are fitted to D"
    low, high = between or (min(a.D.min(), b.D.min()), max(a.D.max(), b.D.max()))
    if not (np.isfinite(low) and np.isfinite(high) and 0 < low < high):
        raise ValueError(f"between must be two budgets (lowest, highest), 0 < lowest < highest; got {between}")
    return float(low), float(high)


def _crossings_by_grid(a: ScalingFit, b: ScalingFit, N: float | None, low: float, high: float) -> list[float]:
    """For laws of any shape: sign changes between 2001 budgets; two crossings closer than that are not seen."""
    x = np.linspace(np.log(low), np.log(high), 2001)

    def difference(at: float | np.ndarray) -> Any:
        return _predict(a, N, np.exp(at)) - _predict(b, N, np.exp(at))

    values = difference(x)
    if not values.any():
        raise ValueError("the two curves are equal everywhere, so they cross nowhere in particular")
    turns = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
    inner = [one for k in turns for one in _sign_changes(difference, [float(x[k]), float(x[k + 1])])]
    return [float(np.exp(one)) for one in sorted([*inner, *x[values == 0].tolist()])]


def _sign_changes(function: Any, cuts: list[float]) -> list[float]:
    """Where `function` changes sign, given that it is monotone between cuts."""
    from scipy.optimize import brentq

    found: list[float] = []
    for left, right in itertools.pairwise(cuts):
        if function(left) * function(right) < 0:
            found.append(float(brentq(function, left, right, xtol=1e-14, rtol=1e-15, maxiter=500)))
    # An end of the range that lies on the crossing belongs to it.
    found += [end for end in (cuts[0], cuts[-1]) if function(end) == 0]
    return sorted(found)


def _at_fixed_N(fit: ScalingFit, N: float | None) -> tuple[float, float, float]:
    """(constant, coefficient, exponent) of the curve in D that a fit is at one N."""
    constant, coefficient, exponent = fit.params[fit.law.constant], 0.0, 1.0
    for term in fit.law.terms:
        exponents = {variable: fit.params[name] for variable, name in term.exponents}
        value = fit.params[term.coefficient]
        if "N" in exponents:
            assert N is not None, "checked before"
            value *= float(N) ** -exponents["N"]
        if "D" in exponents:
            coefficient, exponent = value, exponents["D"]
        else:
            constant += value
    return constant, coefficient, exponent


def _predict(fit: ScalingFit, N: ArrayLike | None, D: ArrayLike) -> np.ndarray:
    return fit.predict(N=N, D=D) if "N" in fit.law.variables else fit.predict(D=D)


def _check_pair(a: ScalingFit, b: ScalingFit, N: ArrayLike | None) -> None:
    for fit in (a, b):
        if "D" not in fit.law.variables:
            raise ValueError(f"{type(fit.law).__name__} ({fit.law.formula}) has no D; compare laws in D")
    with_N = [fit for fit in (a, b) if "N" in fit.law.variables]
    if with_N and N is None:
        raise ValueError(f"{type(with_N[0].law).__name__} depends on N; say at which N to compare, N=...")
    if not with_N and N is not None:
        raise ValueError("both laws are at a fixed size already; leave N out")
    if with_N:
        _positive(N, "N")
    if len(with_N) == 2 and a.n_definition != b.n_definition:
        raise ValueError(f"the fits count N differently ({a.n_definition} and {b.n_definition}); refit one of them")


def _pair_warnings(fits: dict[str, ScalingFit]) -> list[str]:
    return [
        f"the {name} fit is not identifiable: {'; '.join(fit.reasons)}"
        for name, fit in fits.items()
        if not fit.identifiable
    ]
