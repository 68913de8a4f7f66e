"""How far a fit would move had other runs been drawn: the case bootstrap, of one fit or of several at once.

A fit goes in; thousands of refits to resampled runs come out, every one of them solved to its minimum. A resample is a
row of integers, how often it holds each run, so all of them share one table and descend together from the full fit.

Intervals are percentiles of the refits. At a nominal 95 % they held the law's constant in 96-98 % of 250 simulated
studies with the Huber objective and in 94-98 % with mse (7 to 42 runs; Gaussian and, for the joint law, heavy-tailed
noise). They describe *independent* error per run: when all runs of one size share an error, resample sizes instead
(`unit=`), and expect wider intervals. `interval(..., kind="t")` is the standard deviation of the refits times
Student's t instead.

`paired_bootstrap` draws the same cells for the fits of several mixtures, so that what the mixtures share (sizes,
budgets, seeds, the order of the data) cancels in their differences.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.scaling import solver
from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import ArrayLike, Law
from lingua_synth.scaling.records import record


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refits of one law to resampled runs."""

    law: Law
    params: np.ndarray
    """`[n, p]` in the order of `law.parameters`, in the units of the fit; a row of NaN where a resample failed."""
    point: dict[str, float]
    """Parameters of the full fit."""
    seed: int | None
    """None when the resamples were given."""
    num_units: int
    """How many units were resampled: runs, or the clusters of `unit`."""
    freedom: int = 0
    """Degrees of freedom of kind "t", at least 1: runs less parameters, or groups less the parameters that only
    differences between groups determine (six sizes less E, A and alpha: 3)."""

    @property
    def num_failed(self) -> int:
        """Resamples without an answer: fewer different runs than parameters, or no convergence. Left out of
        intervals."""
        return int(np.isnan(self.params).any(axis=-1).sum())

    def interval(self, name: str, level: float = 0.95, kind: str = "percentile") -> tuple[float, float]:
        """Interval of the parameter `name`: "percentile", or "t" (the fit +- standard error times t; of coefficients
        on the scale of their logarithm). ValueError lists the names."""
        self._check(name)
        return interval_of(self._column(name), self.point[name], level, kind, self.freedom, self._by_log(name))

    def standard_error(self, name: str) -> float:
        """Standard deviation (ddof 1) of the parameter `name` over the resamples that were solved."""
        self._check(name)
        return float(np.std(self._column(name), ddof=1))

    def function_interval(
        self, function: Callable[[dict[str, np.ndarray]], np.ndarray], level: float = 0.95, kind: str = "percentile"
    ) -> tuple[float, float]:
        """Interval of any function of the parameters, which get an array each (one value a resample) by name."""
        values = np.asarray(function({name: self._column(name) for name in self.law.parameters}), dtype=np.float64)
        point = function({name: np.array([value]) for name, value in self.point.items()})
        return interval_of(values, float(np.asarray(point).reshape(-1)[0]), level, kind, self.freedom, False)

    def predict_interval(
        self,
        N: ArrayLike | None = None,
        D: ArrayLike | None = None,
        level: float = 0.95,
        kind: str = "percentile",
        **variables: ArrayLike | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Interval of the law's curve at each point, (low, high) of the points' shape; `kind` as for `interval`.

        Where the *law* may lie, given its form. A new run scatters around that by its own noise, and far from the runs
        the form itself errs; neither is in here (`prediction_interval` has both).
        """
        predicted = self.law.predict(self._solved(), N=N, D=D, **variables)
        if kind == "percentile":
            low, high = np.quantile(predicted, _tails(level), axis=0)
            return low, high
        point = self.law.predict(self.point, N=N, D=D, **variables)
        flat = predicted.reshape(len(predicted), -1)
        pairs = [
            interval_of(flat[:, k], float(one), level, kind, self.freedom, True)
            for k, one in enumerate(np.ravel(point))
        ]
        low, high = np.array(pairs).T
        return low.reshape(np.shape(point)), high.reshape(np.shape(point))

    def to_dict(self) -> dict[str, Any]:
        """Intervals, standard errors and counts, plain for JSON; the resamples themselves stay out."""
        return record(
            {
                "num_resamples": len(self.params),
                "num_failed": self.num_failed,
                "num_units": self.num_units,
                "seed": self.seed,
                "method": "case resampling, percentile intervals",
                "level": 0.95,
                "intervals": {name: list(self.interval(name)) for name in self.law.parameters},
                "standard_errors": {name: self.standard_error(name) for name in self.law.parameters},
            }
        )

    def __str__(self) -> str:
        lines = [f"{len(self.params)} resamples of {self.num_units}, {self.num_failed} failed; 95 % intervals"]
        for name in self.law.parameters:
            low, high = self.interval(name)
            lines.append(f"  {name:<10}{self.point[name]:>14.6g}  [{low:.6g}, {high:.6g}]")
        return "\n".join(lines)

    def _check(self, name: str) -> None:
        if name not in self.law.parameters:
            raise ValueError(f"{type(self.law).__name__} has parameters {', '.join(self.law.parameters)}; got {name!r}")

    def _by_log(self, name: str) -> bool:
        return name in self.law.log_moved

    def _column(self, name: str) -> np.ndarray:
        return self._solved()[:, self.law.parameters.index(name)]

    def _solved(self) -> np.ndarray:
        return self.params[~np.isnan(self.params).any(axis=-1)]


@dataclass(frozen=True, eq=False)
class PairedBootstrap:
    """Refits of several laws to the same resampled cells; row k of every member is the same draw."""

    members: dict[str, Bootstrap]
    """Per fit; parameters `[n, p]` as in `Bootstrap`, `point` its full fit."""
    num_cells: int
    """Different cells over all fits."""
    num_shared: int
    """Cells that every fit has; differences are paired on these."""

    @property
    def solved(self) -> np.ndarray:
        """`[n]`: whether every fit has an answer in this resample; the others take no part in differences."""
        return ~np.any([np.isnan(member.params).any(axis=-1) for member in self.members.values()], axis=0)

    def values(self, function: Callable[[Law, np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        """`function(law, params [k, p])` of every fit on the solved resamples: what is paired by row."""
        rows = self.solved
        return {label: function(member.law, member.params[rows]) for label, member in self.members.items()}

    def difference(
        self, name: str, first: str, second: str, level: float = 0.95, kind: str = "t"
    ) -> tuple[float, float]:
        """Interval of parameter `name` of `first` minus that of `second`."""
        one, two = self._member(first), self._member(second)
        one._check(name)
        two._check(name)
        rows = self.solved
        columns = [member.params[rows, member.law.parameters.index(name)] for member in (one, two)]
        point = one.point[name] - two.point[name]
        return interval_of(columns[0] - columns[1], point, level, kind, min(one.freedom, two.freedom), False)

    def predict_difference(
        self,
        first: str,
        second: str,
        N: ArrayLike | None = None,
        D: ArrayLike | None = None,
        level: float = 0.95,
        kind: str = "t",
        **variables: ArrayLike | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Interval of the loss of `first` minus that of `second` at each point, by the laws (no noise of a new run)."""
        one, two = self._member(first), self._member(second)
        rows = self.solved

        def both(params_one: Any, params_two: Any) -> np.ndarray:
            return np.asarray(
                one.law.predict(params_one, N=N, D=D, **variables) - two.law.predict(params_two, N=N, D=D, **variables)
            )

        values, point = both(one.params[rows], two.params[rows]), both(one.point, two.point)
        flat = values.reshape(len(values), -1)
        freedom = min(one.freedom, two.freedom)
        pairs = [interval_of(flat[:, k], float(v), level, kind, freedom, False) for k, v in enumerate(np.ravel(point))]
        low, high = np.array(pairs).T
        return low.reshape(np.shape(point)), high.reshape(np.shape(point))

    def to_dict(self) -> dict[str, Any]:
        """Every member, and the differences of the constants of all pairs, plain for JSON."""
        return record(
            {
                "members": {label: member.to_dict() for label, member in self.members.items()},
                "num_cells": self.num_cells,
                "num_shared": self.num_shared,
                "num_solved": int(self.solved.sum()),
                "differences": [
                    {"first": a, "second": b, "parameter": name, "difference": point, "interval_95": list(interval)}
                    for a, b, name, point, interval in self._constants()
                ],
            }
        )

    def __str__(self) -> str:
        lines = [
            f"{len(self.solved)} paired resamples of {self.num_cells} cells ({self.num_shared} in every fit), "
            f"{int((~self.solved).sum())} failed; differences with 95 % intervals"
        ]
        for a, b, name, point, (low, high) in self._constants():
            lines.append(f"  {name} of {a} - {b}: {point:+.4g}  [{low:+.4g}, {high:+.4g}]")
        return "\n".join(lines)

    def _constants(self) -> list[tuple[str, str, str, float, tuple[float, float]]]:
        rows = []
        for a, b in itertools.combinations(self.members, 2):
            name = self.members[a].law.constant
            if name and name == self.members[b].law.constant:
                point = self.members[a].point[name] - self.members[b].point[name]
                rows.append((a, b, name, point, self.difference(name, a, b)))
        return rows

    def _member(self, label: str) -> Bootstrap:
        if label not in self.members:
            raise ValueError(f"there are fits of {', '.join(self.members)}; got {label!r}")
        return self.members[label]


def interval_of(
    values: np.ndarray, point: float, level: float, kind: str, freedom: int, by_log: bool
) -> tuple[float, float]:
    """Interval from resampled `values`: percentiles, or `point` +- standard error times t (`by_log`: of logarithms)."""
    from scipy.special import stdtrit

    tails = _tails(level)
    if kind == "percentile":
        low, high = np.quantile(values, tails)
        return float(low), float(high)
    if kind != "t":
        raise ValueError(f"kind is percentile or t; got {kind!r}")
    if by_log and point > 0:
        with np.errstate(divide="ignore"):
            logs = np.log(values)
        # Where a term vanished in a resample its logarithm has no spread to speak of.
        half = stdtrit(max(freedom, 1), tails[1]) * float(np.std(logs[np.isfinite(logs)], ddof=1))
        return float(point * np.exp(-half)), float(point * np.exp(half))
    half = stdtrit(max(freedom, 1), tails[1]) * float(np.std(values, ddof=1))
    return point - half, point + half


def bootstrap(
    fit: ScalingFit,
    n: int = 4000,
    seed: int = 0,
    unit: str | Sequence[Any] | np.ndarray | None = None,
    *,
    resamples: np.ndarray | None = None,
) -> Bootstrap:
    """Refit `fit`'s law, with its objective, to `n` resamples of its runs drawn with replacement.

    `unit` labels the runs, or names a variable of the law ("N": runs of one size): then whole groups of one label are
    drawn, for errors that a group shares. `resamples` gives the draws instead, row indices `[n, k]` into the runs in
    the order of the fit; the same draws for several fits make their differences paired (`paired_bootstrap` makes such
    draws). The seed and the runs determine the result, not the order of the runs.

    Every resample ends in the minimum it reaches from the full fit; a resample with a second, lower one is rare (1 of
    4,000 for the digitised points of Hoffmann et al.). A fit with objective "lad" is resampled with a Huber core of
    1e-7, whose minimum is that close to it. Raises ValueError for n < 2, labels of another number than runs, fewer
    than 2 groups, indices outside the runs, and when fewer than half of the resamples have an answer: then the runs do
    not carry an interval.
    """
    num = fit.num_points
    points = fit._points()
    num_units = num
    if resamples is not None:
        if unit is not None:
            raise ValueError("give unit= or resamples=, not both: resamples say already what was drawn")
        weights = _counts_of(np.asarray(resamples), num)[:, points.order]
    else:
        if n < 2:
            raise ValueError(f"n is a number of resamples, at least 2; got {n}")
        groups = np.arange(num)
        if unit is not None:
            groups = _canonical_groups(fit, points, unit_labels(fit, unit))
        num_units = int(groups.max()) + 1
        if num_units < 2:
            raise ValueError("unit puts all runs into one group; there is nothing to resample")
        draws = np.random.default_rng(seed).multinomial(num_units, np.full(num_units, 1 / num_units), size=n)
        weights = draws[:, groups]
    params = _refit(fit, points, weights)
    failed = int(np.isnan(params).any(axis=-1).sum())
    if 2 * failed > len(params):
        raise ValueError(
            f"{failed} of {len(params)} resamples of {num_units} hold too few different runs for "
            f"{type(fit.law).__name__} ({len(fit.law.parameters)} parameters); {num} runs do not carry an interval"
        )
    params.flags.writeable = False
    freedom = max(num_units - len(fit.law.parameters), 1) if unit is None else _group_freedom(fit, groups)
    return Bootstrap(fit.law, params, dict(fit.params), seed if resamples is None else None, num_units, freedom)


def _group_freedom(fit: ScalingFit, groups: np.ndarray) -> int:
    from lingua_synth.scaling import reml
    from lingua_synth.scaling.refits import Tables

    by_group = reml.Groups(groups)
    return int(np.clip(round(len(by_group) - reml.between_parameters(Tables.of(fit), by_group)), 1, len(by_group) - 1))


def unit_labels(fit: ScalingFit, unit: str | Sequence[Any] | np.ndarray) -> list[str]:
    """A label per run, in the order of the fit: those given, or the values of the variable that is named."""
    if isinstance(unit, str):
        if unit not in fit.law.variables:
            raise ValueError(f"unit names a variable of the law ({', '.join(fit.law.variables)}); got {unit!r}")
        return [repr(value) for value in fit._variable(unit).tolist()]
    labels = [str(label) for label in np.asarray(unit).tolist()]
    if len(labels) != fit.num_points:
        raise ValueError(f"unit must label every run: {fit.num_points} runs, {len(labels)} labels")
    return labels


def paired_bootstrap(
    fits: Mapping[str, ScalingFit],
    n: int = 4000,
    seed: int = 0,
    unit: str | Mapping[str, Sequence[Any]] | None = None,
) -> PairedBootstrap:
    """Refit several laws to the same `n` draws of cells; `fits` is {label: fit}, e.g. one per mixture.

    A cell is one setting of all variables, (N, D); the runs of a cell in all fits are drawn together, as often, so an
    error they share (one seed, one order of the data, one evaluation set) cancels in differences. Cells that a fit
    lacks are drawn all the same and say nothing there. `unit` draws larger groups: the name of a variable ("N": all
    cells of a size), or labels per fit and run, {label: [..]} (e.g. N, D and seed: a run is then paired with its twin
    of the same seed only).

    The seed and the runs decide, not their order nor that of the fits. Raises ValueError for fewer than two fits,
    fits without a common cell, and when fewer than half of the resamples have an answer in every fit.
    """
    if len(fits) < 2:
        raise ValueError(f"a pair takes two fits; got {list(fits)}")
    if n < 2:
        raise ValueError(f"n is a number of resamples, at least 2; got {n}")
    keys: dict[str, list[Any]] = {}
    for label, one in fits.items():
        if unit is None:
            names = sorted(one.law.variables)
            keys[label] = list(zip(*(one._variable(name).tolist() for name in names), strict=True))
        elif isinstance(unit, str):
            if unit not in one.law.variables:
                raise ValueError(f"unit names a variable of the laws ({', '.join(one.law.variables)}); got {unit!r}")
            keys[label] = one._variable(unit).tolist()
        else:
            if label not in unit:
                raise ValueError(f"unit must label the runs of every fit; {label!r} is missing")
            keys[label] = list(unit_labels(one, unit[label]))
    shared = set.intersection(*(set(column) for column in keys.values()))
    if not shared:
        raise ValueError("the fits have no cell in common (no equal N and D), so nothing pairs them")
    numbers = {key: k for k, key in enumerate(sorted(set().union(*keys.values())))}
    if len(numbers) < 2:
        raise ValueError("unit puts all runs into one group; there is nothing to resample")
    draws = np.random.default_rng(seed).multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=n)
    members = {}
    for label, one in fits.items():
        points = one._points()
        by_row = [f"{numbers[key]:09d}" for key in keys[label]]
        own = np.unique([numbers[key] for key in keys[label]])
        params = _refit(one, points, draws[:, own[_canonical_groups(one, points, by_row)]])
        params.flags.writeable = False
        freedom = max(len(own) - len(one.law.parameters), 1)
        members[label] = Bootstrap(one.law, params, dict(one.params), seed, len(own), freedom)
    result = PairedBootstrap(members, len(numbers), len(shared))
    if 2 * int(result.solved.sum()) < n:
        raise ValueError(
            f"only {int(result.solved.sum())} of {n} paired resamples of {len(numbers)} cells have an answer in every "
            "fit; these runs do not carry an interval"
        )
    return result


def _refit(fit: ScalingFit, points: solver.Points, weights: np.ndarray) -> np.ndarray:
    """Parameters per resample `[n, p]`, NaN rows where there is no answer. `weights` is in canonical order."""
    law = fit.law
    start = points.to_theta(law, law.as_array(fit.params))
    # Rows with equal N, D and loss count once: they say one thing.
    columns = np.stack([*(points.logs[name] for name in law.variables), points.log_loss], axis=-1)
    same = np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)
    present = np.zeros((len(weights), int(same.max()) + 1), dtype=bool)
    for k in range(len(points)):
        present[:, same[k]] |= weights[:, k] > 0
    enough = present.sum(axis=-1) >= len(law.parameters)
    params = np.full((len(weights), len(law.parameters)), np.nan)
    if not enough.any():
        return params
    starts = np.repeat(start[None], int(enough.sum()), axis=0)
    kept = weights[enough]
    if fit.objective_name == "lad":
        ends = solver.descend_smoothed(law, points, starts, delta=fit.delta, weights=kept)
    else:
        ends = solver.descend(law, points, starts, objective=fit.objective_name, delta=fit.delta, weights=kept)
    params[enough] = np.where(ends.converged[:, None], points.to_params(law, ends.theta), np.nan)
    return params


def _canonical_groups(fit: ScalingFit, points: solver.Points, labels: Sequence[str]) -> np.ndarray:
    """Group number of every run in canonical order; groups are numbered by label, so row order plays no part.

    Runs that are equal in N, D and loss but not in label keep their labels: either row stands for the other.
    """
    numbers = {label: k for k, label in enumerate(sorted(set(labels)))}
    logged = fit.law.logged
    keys = [np.log(fit._variable(name)) if name in logged else fit._variable(name) for name in fit.law.variables]
    by_label = np.array([numbers[label] for label in labels])
    order = np.lexsort((by_label, np.log(fit.loss), *reversed(keys)))
    assert np.array_equal(np.log(fit.loss)[order], np.log(fit.loss)[points.order]), "both orders sort by N, D and loss"
    return by_label[order]


def _counts_of(resamples: np.ndarray, num: int) -> np.ndarray:
    """How often each row stands in each resample, `[n, num]`."""
    if resamples.ndim != 2 or resamples.dtype.kind not in "iu" or len(resamples) < 2:
        raise ValueError(
            f"resamples must be whole row numbers [n, k], n at least 2; got {resamples.dtype} {resamples.shape}"
        )
    if resamples.size and (resamples.min() < 0 or resamples.max() >= num):
        raise ValueError(f"resamples must lie in 0..{num - 1}; got {resamples.min()}..{resamples.max()}")
    flat = resamples + num * np.arange(len(resamples))[:, None]
    return np.bincount(flat.reshape(-1), minlength=num * len(resamples)).reshape(len(resamples), num)


def _tails(level: float) -> list[float]:
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, e.g. 0.95; got {level}")
    return [(1 - level) / 2, (1 + level) / 2]
