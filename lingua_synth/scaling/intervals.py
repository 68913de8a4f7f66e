"""Intervals of whatever follows from a fit: one entry, and the method that the runs call for.

A fit goes in; intervals of its parameters, of predictions and of any function of the parameters come out, with the
method and the reason for it in words. Five methods:

- "profile" (`profile.py`): refits with the quantity held. What `auto` takes when runs err independently: exact where
  the law bends, ends at bounds, open ends said.
- "wald" (`wald.py`): standard error times t, the fastest.
- "bootstrap", "cluster" (`uncertainty.py`): refits to resampled runs, or to resampled groups of runs.
- "reml" (`reml.py`): when the runs of a group share an error; counts groups where groups are what was repeated.

`auto` asks the runs first whether they scatter alike (small models and short runs often scatter more); where they do
not, only resampling is right. Then it asks for an error that those of one size share (an F test), and takes "reml" when
there is a sign of one. With few sizes such a test often sees nothing: whoever knows that the runs of a size share
something (one learning rate, one initialization, checkpoints of one training) should say so: `unit="N"`, or labels of
their own.

Intervals describe the law, given its form. For where a *new run* will land see `prediction_interval`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling import reml as _reml
from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import ArrayLike
from lingua_synth.scaling.profile import profile as _profile
from lingua_synth.scaling.records import record
from lingua_synth.scaling.refits import (
    Quantity,
    Tables,
    function_quantity,
    parameter_quantity,
    prediction_quantities,
    validate_own_minimum,
)
from lingua_synth.scaling.uncertainty import _canonical_groups, _tails, bootstrap, interval_of, unit_labels
from lingua_synth.scaling.wald import uneven_scatter_test
from lingua_synth.scaling.wald import wald as _wald

METHODS = ("auto", "wald", "profile", "bootstrap", "cluster", "reml")
SHARED_P = 0.25
"""Below this p value of the test for a shared error `auto` counts groups. Missing a shared error costs more than
looking for one in vain: at 0.25 intervals of 95 % still held E in 95-97 % of studies whose runs err independently."""
UNEVEN_P = 0.01
"""Below this p value of the test for even scatter `auto` resamples: formulas take every run as equally certain."""
MANY_GROUPS = 20
"""With so many groups their bootstrap is trusted."""

Ends = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Intervals:
    """Intervals of one fit by one method; more of them on demand."""

    fit: ScalingFit
    method: str
    why: str
    """Why this method, in words."""
    level: float
    unit: str
    """What was taken to err independently."""
    params: dict[str, float]
    """The estimates that the intervals are of: the fit, or with "reml" generalized least squares."""
    parameters: dict[str, tuple[float, float]]
    """Interval of every parameter of the law, in the units of the fit."""
    facts: dict[str, Any]
    """What the method found on its way: p value of the test for a shared error, variances, resamples."""
    warnings: list[str] = field(default_factory=list)
    _ends: Callable[[list[Quantity]], Ends] = field(default=lambda quantities: [], repr=False)

    def interval(self, name: str) -> tuple[float, float]:
        """Of the parameter `name`; ValueError lists the names."""
        if name not in self.parameters:
            raise ValueError(f"{type(self.fit.law).__name__} has parameters {', '.join(self.parameters)}; got {name!r}")
        return self.parameters[name]

    def predict_interval(
        self, N: ArrayLike | None = None, D: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the law's curve at each point, (low, high) of the points' shape, in the unit of the losses."""
        quantities, shape = prediction_quantities(self.fit.law, self.fit._points(), {"N": N, "D": D, **variables})
        pairs = [_shown(q, ends) for q, ends in zip(quantities, self._ends(quantities), strict=True)]
        low, high = np.array(pairs).reshape(-1, 2).T
        return low.reshape(shape)[()], high.reshape(shape)[()]

    def function_interval(self, function: Callable[[dict[str, np.ndarray]], np.ndarray]) -> tuple[float, float]:
        """Of any function of the parameters, which gets an array each by name (one value a trial) and gives one."""
        quantity = function_quantity(self.fit.law, self.fit._points(), function)
        return _shown(quantity, self._ends([quantity])[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, full precision."""
        return record(
            {
                "method": self.method,
                "why": self.why,
                "level": self.level,
                "unit": self.unit,
                "params": self.params,
                "intervals": {name: list(ends) for name, ends in self.parameters.items()},
                "facts": self.facts,
                "warnings": self.warnings,
            }
        )

    def __str__(self) -> str:
        lines = [f"{self.fit.law.formula}: {100 * self.level:g} % intervals by {self.method}; {self.why}"]
        for name, (low, high) in self.parameters.items():
            lines.append(f"  {name:<10}{self.params[name]:>14.6g}  [{low:.6g}, {high:.6g}]")
        return "\n".join(lines + [f"  note: {warning}" for warning in self.warnings])


def intervals(
    fit: ScalingFit,
    method: str = "auto",
    level: float = 0.95,
    unit: str | Sequence[Any] | np.ndarray | None = None,
    *,
    n: int = 4000,
    seed: int = 0,
    kind: str | None = None,
) -> Intervals:
    """Intervals of the parameters of `fit`, its predictions and functions of its parameters.

    method: auto, wald, profile, bootstrap, cluster or reml; what each is stands at the top of the module.
    unit: what errs independently, as labels of the runs or the name of a variable ("N": runs of one size share an
    error); None takes runs, with "auto" unless they show otherwise or `fit.unit` says "size". "cluster" and "reml" need
    one and take the sizes when there is none. n, seed: resamples of the bootstraps. kind: "percentile" or "t" (default)
    for these, "averaged" (default) or "satterthwaite" for reml.

    Ends never lie outside the bounds of a parameter. An end the runs do not show is infinite (0 for a coefficient), and
    an interval the method cannot give is NaN; the warnings say so. The order of the runs plays no part. ValueError for
    a fit with no run more than parameters or that is one part of a joint fit, an unknown method or kind, and units
    that cannot be used.
    """
    _tails(level)
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")
    if fit.num_points <= len(fit.law.parameters):
        raise ValueError(
            f"{fit.num_points} runs for {len(fit.law.parameters)} parameters of {type(fit.law).__name__}: nothing is "
            "left over that shows how runs scatter; an interval takes at least one run more"
        )
    validate_own_minimum(fit)
    tables = Tables.of(fit)
    facts: dict[str, Any] = {}
    labels, described = _unit(fit, unit, method)
    why = "asked for"
    if method == "auto":
        method, why, labels, described = _choose(fit, tables, labels, described, facts)
    elif labels is not None and method in ("wald", "profile", "bootstrap"):
        raise ValueError(f"method {method!r} takes every run as independent; with a unit use reml, cluster or auto")
    if method in ("cluster", "reml") and labels is None:
        raise ValueError(f"method {method!r} needs unit=, a label per run or the name of a variable of the law")
    if fit.asymmetry != 1.0 and method in ("wald", "profile", "reml"):
        raise ValueError(
            f"method {method!r} has no formula for an asymmetric objective (asymmetry {fit.asymmetry:g}); use bootstrap"
        )
    params = dict(fit.params)
    warnings = _warnings(fit, method)
    ignored = facts.get("uneven_scatter", {}).get("ignored")
    if ignored:
        warnings.append(f"the runs do not scatter alike, which this method takes for granted; {ignored}")
    ends: Callable[[list[Quantity]], Ends]
    if method in ("bootstrap", "cluster"):
        ends = _by_resamples(fit, tables, level, labels, n, seed, _kind(kind, ("t", "percentile")), facts, warnings)
    elif method == "reml":
        assert labels is not None, "checked above"
        chosen = _kind(kind, _reml.KINDS)
        groups = _reml.Groups(_canonical_groups(fit, tables.points, labels))
        found = _fit_groups(fit, tables, groups, facts, warnings)
        theta = tables.points.to_params(fit.law, found.tables.theta)[0]
        params = dict(zip(fit.law.parameters, theta.tolist(), strict=True))

        def by_groups(quantities: list[Quantity]) -> Ends:
            return [_reml.interval(found, quantity, level, chosen) for quantity in quantities]

        ends = by_groups
    else:
        _kind(kind, ())
        ends = (
            (lambda quantities: wald_ends(tables, quantities, level))
            if method == "wald"
            else (lambda quantities: [_profile(tables, quantity, level) for quantity in quantities])
        )
    quantities = [parameter_quantity(fit.law, tables.points, name) for name in fit.law.parameters]
    pairs = [_shown(quantity, pair) for quantity, pair in zip(quantities, ends(quantities), strict=True)]
    found_pairs = dict(zip(fit.law.parameters, pairs, strict=True))
    lost = [name for name, pair in found_pairs.items() if np.isnan(pair).any()]
    if lost:
        cause = "its term is absent from the fit" if method == "profile" else "the fit sits on a bound there"
        warnings.append(
            f"no interval of {', '.join(lost)} by {method}: {cause}"
            + ("" if method == "profile" else "; method='profile' may give one")
        )
    outside = [
        name for name, (low, high) in found_pairs.items() if name not in lost and not low <= fit.params[name] <= high
    ]
    if method == "reml" and outside:
        warnings.append(
            f"the fit's own {', '.join(outside)} lies outside: what the sizes share may be the law's own misfit; look "
            "at its residuals by size, and at other laws"
        )
    opened = [
        name for name, (low, high) in found_pairs.items() if np.isinf(high) or (low == 0 and name in fit.law.log_moved)
    ]
    if opened:
        warnings.append(f"the runs do not close the interval of {', '.join(opened)}")
    return Intervals(fit, method, why, level, described, params, found_pairs, facts, warnings, ends)


def wald_ends(tables: Tables, quantities: list[Quantity], level: float) -> Ends:
    """First-order ends, NaN where the quantity rests on bounds alone."""
    pairs = []
    for estimate in _wald(tables, quantities):
        low, high = estimate.interval(level)
        none = estimate.error <= 0
        pairs.append((np.where(none, np.nan, low), np.where(none, np.nan, high)))
    return pairs


def wald_intervals(fit: ScalingFit, level: float = 0.95) -> Intervals:
    """`intervals` by standard errors times t."""
    return intervals(fit, "wald", level)


def profile_intervals(fit: ScalingFit, level: float = 0.95) -> Intervals:
    """`intervals` by refits with each quantity held."""
    return intervals(fit, "profile", level)


def reml_intervals(
    fit: ScalingFit,
    unit: str | Sequence[Any] | np.ndarray | None = None,
    level: float = 0.95,
    kind: str = "averaged",
) -> Intervals:
    """`intervals` for errors that the runs of a unit share, by default those of one size."""
    return intervals(fit, "reml", level, unit, kind=kind)


def bootstrap_intervals(
    fit: ScalingFit,
    level: float = 0.95,
    unit: str | Sequence[Any] | np.ndarray | None = None,
    n: int = 4000,
    seed: int = 0,
    kind: str = "t",
) -> Intervals:
    """`intervals` by resampled runs, or resampled units."""
    return intervals(fit, "bootstrap" if unit is None else "cluster", level, unit, n=n, seed=seed, kind=kind)


# --- which method ---


def size_variable(fit_variables: Mapping[str, np.ndarray]) -> str | None:
    """The variable whose runs are asked for a shared error: N, else the first, if its values repeat and differ."""
    for name in ("N", *fit_variables):
        if name in fit_variables:
            distinct = len(np.unique(fit_variables[name]))
            return name if 1 < distinct < len(fit_variables[name]) else None
    return None


def _unit(fit: ScalingFit, unit: Any, method: str) -> tuple[list[str] | None, str]:
    """Labels per run and their name; None when runs are the unit."""
    if unit is None:
        if method in ("cluster", "reml") or (method == "auto" and fit.unit == "size"):
            name = size_variable(fit.variables)
            if name is None:
                if method == "auto":
                    return None, "run"
                raise ValueError(
                    f"method {method!r} needs groups of runs, and no value of {' or '.join(fit.law.variables)} repeats "
                    "over them; give unit= a label per run"
                )
            return unit_labels(fit, name), f"the runs of one {name}"
        return None, "run"
    labels = unit_labels(fit, unit)
    if len(set(labels)) < 2:
        raise ValueError("unit puts all runs into one group; nothing in them errs independently of the rest")
    if len(set(labels)) == fit.num_points:
        return None, "run"
    return labels, f"the runs of one {unit}" if isinstance(unit, str) else "the runs of one label"


def _choose(
    fit: ScalingFit, tables: Tables, labels: list[str] | None, described: str, facts: dict[str, Any]
) -> tuple[str, str, list[str] | None, str]:
    """(method, why, labels, name of the unit)."""
    asked = labels is not None
    if fit.asymmetry != 1.0:
        method = "cluster" if asked else "bootstrap"
        return method, "an asymmetric objective has no formula for its errors", labels, described
    if asked and labels is not None:
        return "reml", f"{described} share an error, as was said", labels, described
    name = size_variable(fit.variables)
    uneven = float(uneven_scatter_test(tables)[0])
    facts["uneven_scatter"] = {"p_value": uneven}
    why_uneven = f"the runs do not scatter alike (p = {uneven:.2g}), so they are resampled"
    if name is None and fit.identifiable and uneven < UNEVEN_P:
        return "bootstrap", why_uneven, None, "run"
    if name is None or not fit.identifiable:
        why = (
            "the runs do not determine the law, and ends at bounds or without end are part of the answer"
            if not fit.identifiable
            else "no value of a variable repeats that could share an error, so every run counts as independent"
        )
        return "profile", why, None, "run"
    own = unit_labels(fit, name)
    groups = _reml.Groups(_canonical_groups(fit, tables.points, own))
    p_value = float(_reml.shared_error_test(tables, groups)[0])
    facts["shared_error"] = {"unit": name, "num_groups": len(groups), "p_value": p_value}
    method = rule(p_value, uneven, len(groups))
    if method == "cluster":
        why = f"{why_uneven}, and runs of one {name} seem to share an error (p = {p_value:.2g}, {len(groups)} of them)"
        return method, why, own, f"the runs of one {name}"
    if method == "bootstrap":
        return method, why_uneven, None, "run"
    if method == "reml" and uneven < UNEVEN_P:
        facts["uneven_scatter"]["ignored"] = f"{len(groups)} groups are too few to resample"
    if p_value < SHARED_P:
        why = f"the runs of one {name} seem to share an error (p = {p_value:.2g} of an F test over {len(groups)})"
        return "reml", why, own, f"the runs of one {name}"
    why = (
        f"no sign that the runs of one {name} share an error (p = {p_value:.2g} of an F test over {len(groups)}); if "
        f"you know they do, say unit={name!r}"
    )
    return "profile", why, None, "run"


def rule(shared_p: float, uneven_p: float, num_groups: int) -> str:
    """The method for a law that the runs determine, by the p values of both tests."""
    if shared_p < SHARED_P:
        return "cluster" if uneven_p < UNEVEN_P and num_groups >= MANY_GROUPS else "reml"
    return "bootstrap" if uneven_p < UNEVEN_P else "profile"


def _kind(kind: str | None, known: tuple[str, ...]) -> str:
    if kind is None:
        return known[0] if known else ""
    if kind not in known:
        raise ValueError(
            f"kind is {' or '.join(known)} here; got {kind!r}" if known else f"this method has no kind; got {kind!r}"
        )
    return kind


def _warnings(fit: ScalingFit, method: str) -> list[str]:
    warnings = []
    if not fit.identifiable:
        warnings.append("the fit is not identifiable: " + "; ".join(fit.reasons))
    if fit.rms_residual < 1e-9:
        warnings.append("the law passes through its runs up to rounding: they show no scatter to judge by")
    spare = fit.num_points - len(fit.law.parameters)
    if spare < 5:
        warnings.append(f"the scatter rests on {spare} runs more than parameters")
    return warnings


# --- methods that need more than one line ---


def _by_resamples(
    fit: ScalingFit,
    tables: Tables,
    level: float,
    labels: list[str] | None,
    n: int,
    seed: int,
    kind: str,
    facts: dict[str, Any],
    warnings: list[str],
) -> Callable[[list[Quantity]], Ends]:
    result = bootstrap(fit, n=n, seed=seed, unit=labels)
    facts["resamples"] = {
        "num": n, "num_failed": result.num_failed, "num_units": result.num_units, "freedom": result.freedom,
        "seed": seed, "kind": kind,
    }  # fmt: skip
    if labels is not None and result.num_units < 10:
        warnings.append(f"only {result.num_units} groups to resample: their bootstrap runs short; prefer reml")
    theta = tables.points.to_theta(fit.law, result._solved())

    def ends(quantities: list[Quantity]) -> Ends:
        pairs = []
        for quantity in quantities:
            values, point = quantity.value(theta), float(quantity.value(tables.theta)[0])
            # The logarithm of a term that vanished has no spread to speak of.
            values = values[np.isfinite(values)] if kind == "t" else values
            low, high = interval_of(values, point, level, kind, result.freedom, False)
            pairs.append((np.array([low]), np.array([high])))
        return pairs

    return ends


def _fit_groups(
    fit: ScalingFit, tables: Tables, groups: _reml.Groups, facts: dict[str, Any], warnings: list[str]
) -> _reml.Reml:
    found = _reml.reml(tables, groups)
    shared = found.shared
    facts.setdefault("shared_error", {})
    facts["shared_error"] |= {
        "num_groups": len(groups),
        "share_of_variance": float(shared.share[0]),
        "run_error": float(shared.run_error[0]),
        "group_error": float(shared.group_error[0]),
    }
    full, together, _ = _reml.between_freedom(tables, groups)
    if together - full < 1:
        warnings.append(
            f"{len(groups)} groups are no more than the law can absorb: an error they share cannot be told from the "
            "law, and nothing limits how wide an honest interval would be"
        )
    if fit.weights is not None:
        warnings.append("weights of runs play no part in errors that groups share: every run counts by its own scatter")
    if fit.objective_name != "mse":
        warnings.append(
            "errors of groups are judged by generalized least squares: the estimates differ from the "
            f"{fit.objective_name} fit, and a single bad run counts in full"
        )
    return found


def _shown(quantity: Quantity, ends: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """In the caller's scale, inside the bounds."""
    low = np.maximum(ends[0][0], quantity.low) if np.isfinite(quantity.low) else ends[0][0]
    high = np.minimum(ends[1][0], quantity.high) if np.isfinite(quantity.high) else ends[1][0]
    return float(quantity.shown(low)), float(quantity.shown(high))
