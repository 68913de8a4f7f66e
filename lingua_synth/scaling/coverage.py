"""Do the intervals hold what they say, for *these* runs? Simulated studies with a known truth.

A law with parameters that are believed, the (N, D) of runs, and how runs scatter go in; thousands of studies are drawn,
fitted and given intervals by every method, all at once, by the very code that `intervals` uses on a real fit. Out comes
how often each interval held the truth and how wide it was. Coverage depends on the design, on the objective, on the
tails of the noise and above all on whether runs of one size share an error: no table of a paper replaces this one.

    print(simulate_coverage(f.law, f.params, N=f.N, D=f.D, noise=0.003, size_noise=0.002))

Descents start at the truth: a study whose global minimum lies elsewhere (a few in ten thousand) is counted at the
minimum next to the truth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling import reml as _reml
from lingua_synth.scaling import solver
from lingua_synth.scaling.design import _columns, _group_numbers
from lingua_synth.scaling.fit import _condition_number, _solution_reasons
from lingua_synth.scaling.intervals import Ends, rule, wald_ends
from lingua_synth.scaling.laws import ArrayLike, Law, Params
from lingua_synth.scaling.paired import difference as first_order_difference
from lingua_synth.scaling.profile import profile
from lingua_synth.scaling.records import record
from lingua_synth.scaling.refits import Quantity, Tables, parameter_quantity, prediction_quantities, refit_tables
from lingua_synth.scaling.uncertainty import _tails
from lingua_synth.scaling.wald import uneven_scatter_test

METHODS = ("wald", "profile", "bootstrap", "percentile", "cluster", "reml", "satterthwaite", "auto")
"""Of `simulate_coverage`: "percentile" is the bootstrap's other kind, "satterthwaite" that of REML."""
PAIRED_METHODS = ("first order", "paired", "percentile", "separate")
CHUNK = 4_000_000
"""Numbers of resample weights held at once."""


@dataclass(frozen=True)
class CoverageRow:
    """One method and one quantity."""

    method: str
    quantity: str
    truth: float
    coverage: float
    """Share of the studies whose interval held the truth; one without an interval held nothing."""
    width: float
    """Median width; of coefficients and losses relative (0.1: the ends are 10 % apart)."""
    open: float
    """Share of the intervals without two ends."""


@dataclass(frozen=True, eq=False)
class CoverageReport:
    """Coverage of every method, for one design and one kind of noise."""

    law: Law
    rows: tuple[CoverageRow, ...]
    level: float
    num_sim: int
    num_failed: int
    """Studies whose fit did not converge; they are left out."""
    noise: str
    """In words."""
    objective: str
    chosen: dict[str, float] = field(default_factory=dict)
    """With "auto": the share of studies that got each method."""

    @property
    def error(self) -> float:
        """Standard error of a coverage at the nominal level."""
        return math.sqrt(self.level * (1 - self.level) / max(self.num_sim - self.num_failed, 1))

    def of(self, method: str, quantity: str) -> CoverageRow:
        """One row; ValueError lists what there is."""
        for row in self.rows:
            if (row.method, row.quantity) == (method, quantity):
                return row
        known = sorted({(row.method, row.quantity) for row in self.rows})
        raise ValueError(f"there are {known}; got {(method, quantity)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(
            {
                "law": self.law.name,
                "level": self.level,
                "num_sim": self.num_sim,
                "num_failed": self.num_failed,
                "noise": self.noise,
                "objective": self.objective,
                "standard_error": self.error,
                "chosen_by_auto": self.chosen,
                "rows": [dataclasses.asdict(row) for row in self.rows],
            }
        )

    def __str__(self) -> str:
        quantities = list(dict.fromkeys(row.quantity for row in self.rows))
        methods = list(dict.fromkeys(row.method for row in self.rows))
        wide = max(18, *(len(name) + 2 for name in quantities))
        lines = [
            f"{self.law.formula}: {self.num_sim} simulated studies, {self.noise}, {self.objective}; coverage (width) "
            f"of {100 * self.level:g} % intervals, +- {self.error:.3f}",
            f"  {'':<14}" + "".join(f"{name:>{wide}}" for name in quantities),
        ]
        for method in methods:
            cells = [self.of(method, name) for name in quantities]
            lines.append(f"  {method:<14}" + "".join(f"{f'{c.coverage:.3f} ({c.width:.3g})':>{wide}}" for c in cells))
        if self.chosen:
            lines.append("  auto took " + ", ".join(f"{k} in {100 * v:.0f} %" for k, v in self.chosen.items()))
        if self.num_failed:
            lines.append(f"  {self.num_failed} studies without a converged fit are left out")
        return "\n".join(lines)


def simulate_coverage(
    law: Law,
    truth: Params,
    *,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    noise: float,
    tails: float = math.inf,
    size_noise: float = 0.0,
    groups: Sequence[Any] | np.ndarray | None = None,
    methods: Sequence[str] = ("wald", "profile", "bootstrap", "reml", "auto"),
    names: Sequence[str] | None = None,
    targets: Mapping[str, ArrayLike] | None = None,
    objective: str = "huber",
    delta: float = 1e-3,
    level: float = 0.95,
    n_sim: int = 1000,
    num_resamples: int = 400,
    seed: int = 0,
    **variables: ArrayLike | None,
) -> CoverageReport:
    """Coverage and width of `methods` over `n_sim` studies of runs at (N, D), drawn from the law with `truth`.

    noise: standard deviation of a run's log loss. tails: degrees of freedom of its Student's t, above 2 (3: heavy
    tails; infinite: normal). size_noise: standard deviation of an error that the runs of a group share, by default
    those of one N (`groups`: a label per run). "reml", "satterthwaite" and "cluster" take these groups; "auto" finds
    out for itself and looks at runs of one N only. names: the parameters, all by default. targets: where predictions
    are judged, e.g. {"N": [4e11], "D": [8e12]}.

    Deterministic by `seed`; 1,000 studies of 42 runs take seconds, each bootstrap about 100 times as many refits.
    ValueError for an unknown method, parameters that are not the law's, and noise that is not positive.
    """
    _check(methods, noise, tails, size_noise, n_sim, num_resamples, objective)
    _tails(level)
    base, group_numbers = _design(law, truth, {"N": N, "D": D, **variables}, groups, objective, delta)
    rng = np.random.default_rng(seed)
    errors = draw_errors(rng, n_sim, group_numbers, noise, tails, size_noise)
    fitted = _fit_all(base, errors)
    failed = n_sim - len(fitted)
    quantities = _quantities(law, base, names, targets)
    by_group = _reml.Groups(group_numbers[base.points.order])
    chosen: dict[str, float] = {}
    rows: list[CoverageRow] = []
    for method in methods:
        ends = _ends(fitted, quantities, method, level, by_group, rng, num_resamples, chosen)
        for quantity, (low, high) in zip(quantities, ends, strict=True):
            rows.append(_row(method, quantity, quantity.value(base.theta)[0], low, high))
    return CoverageReport(
        law, tuple(rows), level, n_sim, failed, _in_words(noise, tails, size_noise), objective, chosen
    )


def simulate_paired_coverage(
    law: Law,
    truth: Params,
    other: Params,
    *,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    noise: float,
    common_noise: float,
    tails: float = math.inf,
    size_noise: float = 0.0,
    groups: Sequence[Any] | np.ndarray | None = None,
    methods: Sequence[str] = PAIRED_METHODS,
    names: Sequence[str] | None = None,
    targets: Mapping[str, ArrayLike] | None = None,
    objective: str = "huber",
    delta: float = 1e-3,
    level: float = 0.95,
    n_sim: int = 1000,
    num_resamples: int = 400,
    seed: int = 0,
    **variables: ArrayLike | None,
) -> CoverageReport:
    """Coverage of intervals of *differences* between two mixtures trained at the same (N, D): `paired_bootstrap`.

    As `simulate_coverage`; every cell has an error of `common_noise` that both mixtures share (seed, order of the data,
    evaluation) and each its own of `noise`. Judged are differences of parameters (of the logarithms of coefficients)
    and of the logarithms of losses at `targets`, by "first order" (`paired_differences`), "paired" (`paired_bootstrap`:
    the same draws, standard deviation times t), "percentile" (of the same draws), and "separate" (draws of their own,
    as if nothing were shared).
    """
    _check(methods, noise, tails, size_noise, n_sim, num_resamples, objective, PAIRED_METHODS)
    _tails(level)
    if not (np.isfinite(common_noise) and common_noise >= 0):
        raise ValueError(f"common_noise is a standard deviation of log loss, 0 or more; got {common_noise}")
    columns = {"N": N, "D": D, **variables}
    bases = [_design(law, params, columns, groups, objective, delta) for params in (truth, other)]
    numbers = bases[0][1]
    rng = np.random.default_rng(seed)
    common = draw_errors(rng, n_sim, np.arange(len(numbers)), common_noise, math.inf, 0.0)
    fits = []
    for base, _ in bases:
        errors = common + draw_errors(rng, n_sim, numbers, noise, tails, size_noise)
        fits.append(_fit_all(base, errors, keep=True))
    # Runs stand in an order of their own in each table, as (N, D) and so the order of the cells are the same.
    assert np.array_equal(bases[0][0].points.order, bases[1][0].points.order), "cells are distinct or of equal loss"
    sound = np.isfinite(fits[0].theta).all(axis=-1) & np.isfinite(fits[1].theta).all(axis=-1)
    one, two = fits[0].rows(sound), fits[1].rows(sound)
    pairs = [_quantities(law, base, names, targets) for base, _ in bases]
    rows = []
    cells = np.arange(len(numbers))
    first = same = np.zeros(0)
    if set(methods) - {"first order"}:
        draws = _weights(rng, len(one), num_resamples, len(numbers))
        first, same = _resampled(one, draws), _resampled(two, draws)
    for method in methods:
        second = same
        if method == "separate":
            second = _resampled(two, _weights(rng, len(one), num_resamples, len(numbers)))
        for a, b in zip(*pairs, strict=True):
            target = float(a.value(bases[0][0].theta)[0] - b.value(bases[1][0].theta)[0])
            if method == "first order":
                low, high = first_order_difference(one, two, cells, cells, a, b).interval(level)
            else:
                values = _by_resample(a, first) - _by_resample(b, second)
                if method == "percentile":
                    low, high = np.nanquantile(values, _tails(level), axis=1)
                else:
                    low, high = _t_ends(values, a.value(one.theta) - b.value(two.theta), level, one.freedom)
            rows.append(_row(method, Quantity(a.name, False, a.function), target, low, high))
    words = f"{_in_words(noise, tails, size_noise)}, {100 * common_noise:.3g} % of a cell common to both"
    return CoverageReport(law, tuple(rows), level, n_sim, int((~sound).sum()), words, objective)


# --- the studies ---


def draw_errors(
    rng: np.random.Generator, n: int, groups: np.ndarray, noise: float, tails: float, size_noise: float
) -> np.ndarray:
    """Errors of log loss `[n, runs]`, of standard deviations as given, in the caller's order of runs."""
    num = len(groups)
    if math.isinf(tails):
        own = rng.standard_normal((n, num))
    else:
        own = rng.standard_t(tails, (n, num)) * math.sqrt((tails - 2) / tails)
    errors = noise * own
    if size_noise:
        errors = errors + size_noise * rng.standard_normal((n, int(groups.max()) + 1))[:, groups]
    return np.asarray(errors)


def _design(
    law: Law,
    truth: Params,
    columns: Mapping[str, ArrayLike | None],
    groups: Sequence[Any] | np.ndarray | None,
    objective: str,
    delta: float,
) -> tuple[Tables, np.ndarray]:
    """The study without errors, at the truth; and the number of the group of each run, in the caller's order."""
    params = law.as_array(truth)
    if params.ndim != 1:
        raise ValueError(f"one set of parameters at a time; got shape {params.shape}")
    values = _columns(law, columns)
    num, p = len(next(iter(values.values()))), len(params)
    if num <= p:
        raise ValueError(f"{num} runs for {p} parameters of {type(law).__name__}: no interval; plan {p + 1} or more")
    log_loss = np.log(law.predict(params, **values))
    if not np.isfinite(log_loss).all():
        raise ValueError("the law predicts a loss that is not positive at some of the runs")
    logs, _ = law.log_points(**values)
    points = solver.Points.of(law, logs, log_loss)
    theta = points.to_theta(law, params)[None]
    return Tables(law, points, points.log_loss[None], theta, objective, delta), _group_numbers(values, groups)


def _fit_all(base: Tables, errors: np.ndarray, keep: bool = False) -> Tables:
    """Every study fitted; those without convergence are dropped, or NaN with `keep`."""
    log_losses = base.points.log_loss + errors[:, base.points.order]
    starts = np.repeat(base.theta, len(errors), axis=0)
    ends = refit_tables(base.law, base.points, log_losses, starts, objective=base.objective, delta=base.delta)
    theta = np.where(ends.converged[:, None], ends.theta, np.nan)
    found = dataclasses.replace(base, log_losses=log_losses, theta=theta)
    return found if keep else found.rows(ends.converged)


def _quantities(
    law: Law, base: Tables, names: Sequence[str] | None, targets: Mapping[str, ArrayLike] | None
) -> list[Quantity]:
    found = [parameter_quantity(law, base.points, name) for name in (law.parameters if names is None else names)]
    if targets:
        found += prediction_quantities(law, base.points, targets)[0]
    return found


def _row(method: str, quantity: Quantity, truth: float, low: np.ndarray, high: np.ndarray) -> CoverageRow:
    low, high = np.maximum(low, quantity.low), np.minimum(high, quantity.high)
    with np.errstate(invalid="ignore"):
        inside = (low <= truth) & (truth <= high)
        width = high - low
    known = np.isfinite(width)
    median = float(np.median(np.expm1(width[known]) if quantity.by_log else width[known])) if known.any() else math.nan
    shown = float(quantity.shown(truth))
    return CoverageRow(method, quantity.name, shown, float(inside.mean()), median, float(1 - known.mean()))


# --- the methods, many tables at once ---


def _ends(
    tables: Tables,
    quantities: list[Quantity],
    method: str,
    level: float,
    groups: _reml.Groups | None,
    rng: np.random.Generator,
    num_resamples: int,
    chosen: dict[str, float],
) -> Ends:
    if method == "wald":
        return wald_ends(tables, quantities, level)
    if method == "profile":
        return [profile(tables, quantity, level) for quantity in quantities]
    if method in ("reml", "satterthwaite"):
        assert groups is not None, "asked for only where there are groups"
        found = _reml.reml(tables, groups)
        kind = "averaged" if method == "reml" else method
        return [_reml.interval(found, quantity, level, kind) for quantity in quantities]
    if method == "auto":
        return _auto(tables, quantities, level, chosen, rng, num_resamples)
    units = np.arange(len(tables.points))
    freedom = float(tables.freedom)
    if method == "cluster":
        assert groups is not None, "asked for only where there are groups"
        units = groups.numbers
        freedom = float(np.clip(round(len(groups) - _reml.between_parameters(tables, groups)), 1, len(groups) - 1))
    theta = _resampled(tables, _weights(rng, len(tables), num_resamples, int(units.max()) + 1)[:, :, units])
    found_ends: Ends = []
    for quantity in quantities:
        values = _by_resample(quantity, theta)
        if method == "percentile":
            low, high = np.nanquantile(values, _tails(level), axis=1)
            found_ends.append((low, high))
        else:
            found_ends.append(_t_ends(values, quantity.value(tables.theta), level, freedom))
    return found_ends


def _auto(
    tables: Tables,
    quantities: list[Quantity],
    level: float,
    chosen: dict[str, float],
    rng: np.random.Generator,
    num_resamples: int,
) -> Ends:
    """What `intervals(method="auto")` does with each table, by the same rules."""
    residual, jacobian = tables.linear
    groups = _size_groups(tables)
    uneven = uneven_scatter_test(tables)
    shared = np.ones(len(tables)) if groups is None else _reml.shared_error_test(tables, groups)
    num_groups = 0 if groups is None else len(groups)
    methods = np.array([rule(s, u, num_groups) for s, u in zip(shared, uneven, strict=True)])
    for k in np.flatnonzero(methods != "profile").tolist():
        if _reasons(tables, k, residual[k], jacobian[k]):
            methods[k] = "profile"
    ends = [(np.full(len(tables), np.nan), np.full(len(tables), np.nan)) for _ in quantities]
    for method in dict.fromkeys(methods.tolist()):
        rows = methods == method
        chosen[method] = float(rows.mean())
        found = _ends(tables.rows(rows), quantities, method, level, groups, rng, num_resamples, {})
        for (low, high), (inner_low, inner_high) in zip(ends, found, strict=True):
            low[rows], high[rows] = inner_low, inner_high
    return ends


def _size_groups(tables: Tables) -> _reml.Groups | None:
    """Runs of one N (or of the law's first variable), if they repeat."""
    variables = tables.law.variables
    values = tables.points.logs["N" if "N" in variables else variables[0]]
    numbers = np.unique(values, return_inverse=True)[1].reshape(-1)
    return _reml.Groups(numbers) if 0 < numbers.max() < len(numbers) - 1 else None


def _reasons(tables: Tables, k: int, residual: np.ndarray, jacobian: np.ndarray) -> list[str]:
    """Why `fit` would call this study not identifiable."""
    law, theta = tables.law, tables.theta[k]
    condition = _condition_number(law, theta, jacobian)
    return _solution_reasons(law, theta, residual, jacobian, condition, True)


def _weights(rng: np.random.Generator, num: int, num_resamples: int, units: int) -> np.ndarray:
    """How often each unit is drawn, `[num, num_resamples, units]`."""
    return rng.multinomial(units, np.full(units, 1 / units), size=(num, num_resamples)).astype(np.int16)


def _resampled(tables: Tables, weights: np.ndarray) -> np.ndarray:
    """Working parameters `[T, resamples, p]`, NaN where a resample has no answer."""
    num, draws, m = weights.shape
    p = len(tables.law.parameters)
    found = np.full((num, draws, p), np.nan)
    step = max(1, CHUNK // (draws * m))
    for begin in range(0, num, step):
        part = slice(begin, min(begin + step, num))
        size = part.stop - part.start
        flat = weights[part].reshape(size * draws, m)
        enough = (flat > 0).sum(axis=-1) >= p
        table = np.repeat(np.arange(size), draws)[enough]
        ends = refit_tables(
            tables.law,
            tables.points,
            tables.log_losses[part],
            tables.theta[part][table],
            objective=tables.objective,
            delta=tables.delta,
            table=table,
            weights=flat[enough],
        )
        inner = np.full((size * draws, p), np.nan)
        inner[enough] = np.where(ends.converged[:, None], ends.theta, np.nan)
        found[part] = inner.reshape(size, draws, p)
    return found


def _by_resample(quantity: Quantity, theta: np.ndarray) -> np.ndarray:
    values = quantity.value(theta.reshape(-1, theta.shape[-1])).reshape(theta.shape[:-1])
    return np.where(np.isfinite(values), values, np.nan)


def _t_ends(values: np.ndarray, point: np.ndarray, level: float, freedom: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.special import stdtrit

    half = stdtrit(max(freedom, 1.0), (1 + level) / 2) * np.nanstd(values, axis=1, ddof=1)
    return point - half, point + half


def _check(
    methods: Sequence[str],
    noise: float,
    tails: float,
    size_noise: float,
    n_sim: int,
    num_resamples: int,
    objective: str,
    known: Sequence[str] = METHODS,
) -> None:
    unknown = [method for method in methods if method not in known]
    if unknown:
        raise ValueError(f"methods are {', '.join(known)}; got {', '.join(map(repr, unknown))}")
    if not (np.isfinite(noise) and noise > 0 and np.isfinite(size_noise) and size_noise >= 0):
        raise ValueError(
            f"noise is a standard deviation of log loss, positive, size_noise 0 or more; got {noise} and {size_noise}"
        )
    if not tails > 2:
        raise ValueError(f"tails are degrees of freedom above 2 (below, no standard deviation exists); got {tails}")
    if n_sim < 2 or num_resamples < 2:
        raise ValueError(f"n_sim and num_resamples are at least 2; got {n_sim} and {num_resamples}")
    if objective not in solver.OBJECTIVES:
        raise ValueError(f"objective is one of {', '.join(solver.OBJECTIVES)}; got {objective!r}")


def _in_words(noise: float, tails: float, size_noise: float) -> str:
    kind = "normal" if math.isinf(tails) else f"Student's t ({tails:g})"
    shared = f" and {100 * size_noise:.3g} % shared by a group" if size_noise else ""
    return f"{kind} noise of {100 * noise:.3g} %{shared}"
