"""How well a grid of trainings will determine a law, before any of them is run; and which training to add next.

A law with parameters that are believed (those of an earlier fit, of small runs, of the literature), the planned (N, D),
and the scatter of a run go in; out come the standard errors that a fit to those runs would have, of every parameter
and of predictions elsewhere. First-order theory: with J the derivatives of ln(loss) by the parameters at the planned
runs and V the covariance of their errors, least squares on log loss has

    covariance = f (J'J)^-1 J' V J (J'J)^-1,      V = noise^2 I + size_noise^2 Z Z'

where Z tells which runs share an error (those of one size, when each size has one learning rate). f is 1 for mse and
the price of robustness for the Huber objective under Gaussian errors, E[psi^2] / E[psi']^2 (Huber 1964); it multiplies
the independent part. The error of the law's form is not in here, and far from the runs it is the larger one.

N: parameters. D: training tokens. Errors of losses and coefficients are relative where said; E in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import ArrayLike, Law, Params, _positive
from lingua_synth.scaling.records import record

OBJECTIVES = ("huber", "mse")
MAX_CONDITION = 1e4
"""As in `fit`: beyond it some combination of parameters is not determined by any noise a run has."""
GPU_FLOPS = 0.4 * 989e12
"""FLOP/s behind the default cost: an H100 at 40 % of its dense bf16 peak."""
WIDE = 0.5
"""An exponent known to half of its value is not known."""


@dataclass(frozen=True, eq=False)
class Design:
    """What a planned set of runs will tell of a law."""

    law: Law
    params: dict[str, float]
    """The parameters that were assumed."""
    columns: dict[str, np.ndarray]
    """The planned runs: every variable of the law, one value a run."""
    groups: np.ndarray
    """Number of the group of each run, whose runs share an error."""
    noise: float
    size_noise: float
    objective: str
    delta: float
    covariance: np.ndarray
    """`[p, p]` in parameter order, in the units of the parameters."""
    condition_number: float
    """Of the Jacobian of the log predictions, columns of length one."""
    targets: dict[str, np.ndarray]
    """N and/or D of the predictions that were asked for."""
    predicted: np.ndarray
    """Loss at the targets, by the assumed law."""
    prediction_errors: np.ndarray
    """Relative standard errors of the fitted law at the targets: 0.01 is 1 % of the loss."""
    warnings: list[str] = field(default_factory=list)

    @property
    def num_runs(self) -> int:
        """Planned runs."""
        return len(self.groups)

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of every parameter, in its unit."""
        return dict(zip(self.law.parameters, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))

    def half_width(self, name: str, level: float = 0.95) -> float:
        """Half the width of the interval that a fit to such runs will give the parameter `name`: Student's t with as
        many degrees of freedom as runs exceed parameters, or, with errors shared by groups, groups less the parameters
        that only they tell apart (never under 1)."""
        from scipy.special import stdtrit

        if name not in self.law.parameters:
            raise ValueError(f"{type(self.law).__name__} has parameters {', '.join(self.law.parameters)}; got {name!r}")
        if not 0 < level < 1:
            raise ValueError(f"level is a share between 0 and 1, e.g. 0.95; got {level}")
        freedom = self.num_runs - len(self.law.parameters)
        if self.size_noise:
            freedom = min(freedom, int(self.groups.max()) + 1 - 3)
        return float(stdtrit(max(freedom, 1), (1 + level) / 2)) * self.standard_errors[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(
            {
                "law": self.law.name,
                "params": self.params,
                "runs": self.columns,
                "noise": self.noise,
                "size_noise": self.size_noise,
                "objective": self.objective,
                "standard_errors": self.standard_errors,
                "half_widths_95": {name: self.half_width(name) for name in self.law.parameters},
                "covariance": self.covariance,
                "condition_number": self.condition_number,
                "targets": self.targets,
                "predicted": self.predicted,
                "prediction_errors": self.prediction_errors,
                "warnings": self.warnings,
            }
        )

    def __str__(self) -> str:
        shared = f" and {100 * self.size_noise:.3g} % shared by groups" if self.size_noise else ""
        lines = [
            f"{self.law.formula}: {self.num_runs} planned runs, each with {100 * self.noise:.3g} % noise{shared}",
            f"  {'':<10}{'assumed':>12} {'std. error':>12}   95 % interval",
        ]
        for name, value in self.params.items():
            half = self.half_width(name)
            lines.append(f"  {name:<10}{value:>12.5g} {self.standard_errors[name]:>12.3g}   +- {half:.3g}")
        for k, loss in enumerate(self.predicted.tolist()):
            where = ", ".join(f"{name} {values[k]:.4g}" for name, values in self.targets.items())
            lines.append(f"  loss at {where}: {loss:.4g}, std. error {100 * self.prediction_errors[k]:.2g} %")
        return "\n".join(lines + [f"  note: {warning}" for warning in self.warnings])


def expected_errors(
    law: Law,
    params: Params,
    *,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    noise: float,
    size_noise: float = 0.0,
    groups: Sequence[Any] | np.ndarray | None = None,
    targets: Mapping[str, ArrayLike] | None = None,
    objective: str = "huber",
    delta: float = 1e-3,
    **variables: ArrayLike,
) -> Design:
    """Standard errors of a fit of `law` to runs at (N, D) whose log losses scatter by `noise`, if `params` is true.

    One value of N and D (and of what other variables the law has) per planned run; a cell that is trained with three
    seeds stands three times. `noise` 0.002 is 0.2 %. `size_noise`: an error that the runs of one group share, by
    default those of one N. `targets`: where the loss is to be predicted, e.g. `{"N": [7e9], "D": [2e12]}`.

    ValueError for parameters that are not the law's or a coefficient of 0, noise that is not positive, and runs that do
    not determine the law (fewer than parameters, one size, one line of D against N).
    """
    theta = law.as_array(params)
    if theta.ndim != 1:
        raise ValueError(f"one set of parameters at a time; got shape {theta.shape}")
    values = dict(zip(law.parameters, theta.tolist(), strict=True))
    for name in law.log_moved:
        if not values[name] > 0:
            raise ValueError(f"{name} is {values[name]:g}: a law without that term has no error to plan for; drop it")
    if not (np.isfinite(noise) and noise > 0 and np.isfinite(size_noise) and size_noise >= 0):
        raise ValueError(
            f"noise is a standard deviation of log loss, positive, size_noise 0 or more; got {noise} and {size_noise}"
        )
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is one of {', '.join(OBJECTIVES)}; got {objective!r}")
    columns = _columns(law, {"N": N, "D": D, **variables})
    numbers = _group_numbers(columns, groups)
    jacobian = _jacobian(law, theta, columns)
    condition = _condition(jacobian)
    if len(jacobian) < len(theta) or condition > 1e10:
        raise ValueError(
            f"{len(jacobian)} runs at these N and D do not determine {law.formula} ({len(theta)} parameters): plan at "
            "least 3 different values of each variable, not all on one line of D against N"
        )
    factor = huber_factor(noise, delta) if objective == "huber" else 1.0
    scaled = _covariance(jacobian, numbers, noise**2 * factor, size_noise**2)
    places: dict[str, np.ndarray] = {}
    predicted, errors = np.zeros(0), np.zeros(0)
    if targets:
        places = _columns(law, {name: np.atleast_1d(value) for name, value in targets.items()})
        rows = _jacobian(law, theta, places)
        errors = np.sqrt(np.einsum("kp,pq,kq->k", rows, scaled, rows))
        predicted = law.predict(theta, **places)
    scale = _scale(law, theta)
    design = Design(
        law=law,
        params=values,
        columns=columns,
        groups=numbers,
        noise=float(noise),
        size_noise=float(size_noise),
        objective=objective,
        delta=float(delta),
        covariance=scaled * np.outer(scale, scale),
        condition_number=condition,
        targets=places,
        predicted=predicted,
        prediction_errors=errors,
    )
    design.warnings.extend(_warnings(design))
    return design


def huber_factor(noise: float, delta: float) -> float:
    """Variance of the Huber estimate over that of least squares, Gaussian errors of standard deviation `noise`.

    E[psi^2] / (noise E[psi'])^2 with psi(r) = r clipped to +-delta: 1 for delta >> noise, pi/2 for delta << noise.
    """
    k = delta / noise
    inside = math.erf(k / math.sqrt(2))
    density = math.exp(-k * k / 2) / math.sqrt(2 * math.pi)
    # For a core that holds next to no runs the two expressions below cancel; the limit is that of the median.
    if inside < 1e-4:
        return math.pi / 2
    return (inside - 2 * k * density + k * k * (1 - inside)) / inside**2


# --- what to run next ---


@dataclass(frozen=True)
class Step:
    """One run that is added."""

    N: float | None
    D: float | None
    cost: float
    """In the unit of the costs given; GPU-hours by default."""
    error: float
    """Standard error of what is to be known, after this run: see `NextRuns.of`."""
    candidate: int
    """Row of the candidate."""


@dataclass(frozen=True, eq=False)
class NextRuns:
    """Runs to add, best first, each the one that gains most per cost given those before it."""

    of: str
    """What the errors are of: a parameter, "loss at N ..., D ..." (relative), or "all parameters" (D-optimality: the
    2p-th root of the determinant of their covariance, coefficients relative)."""
    before: float
    """The standard error with the runs there are."""
    steps: tuple[Step, ...]
    cost_unit: str

    @property
    def total_cost(self) -> float:
        """Of all the steps."""
        return math.fsum(step.cost for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [{"N": s.N, "D": s.D, "cost": s.cost, "error": s.error, "candidate": s.candidate} for s in self.steps]
        return record({"of": self.of, "before": self.before, "cost_unit": self.cost_unit, "steps": rows})

    def __str__(self) -> str:
        lines = [
            f"next runs for {self.of}: std. error {self.before:.3g} now",
            f"  {'':>3} {'N':>11} {'D':>11} {self.cost_unit:>12} {'together':>12} {'std. error':>11}",
        ]
        spent = 0.0
        for k, step in enumerate(self.steps, start=1):
            spent += step.cost
            shown = ["-" if v is None else f"{v:.4g}" for v in (step.N, step.D)]
            lines.append(
                f"  {k:>3} {shown[0]:>11} {shown[1]:>11} {step.cost:>12.4g} {spent:>12.4g} {step.error:>11.3g}"
            )
        return "\n".join(lines)


def next_runs(
    base: Design | ScalingFit,
    *,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    cost: ArrayLike | None = None,
    k: int = 5,
    minimize: str | Mapping[str, float] = "E",
    budget: float | None = None,
    max_repeats: int = 1,
    noise: float | None = None,
    **variables: ArrayLike,
) -> NextRuns:
    """The `k` runs among the candidates (N, D) that, one after the other, lower an error most per cost.

    `base`: a planned `Design`, or a `ScalingFit` whose runs are there (their scatter is the noise unless `noise` says
    otherwise). `minimize`: a parameter ("E" also names the E_at_N and E_at_D of laws in one variable), a place
    `{"N": ..., "D": ...}` where the loss is to be predicted, or "all" (D-optimality). `cost` per candidate, by default
    GPU-hours of an H100 at 40 % of its peak for 6 N D FLOPs (with law's N as it counts it; needs N and D). `budget`: no
    more than so much cost in all. `max_repeats`: how often one candidate may be taken.

    Greedy: each step takes the largest fall of the log of the error over the cost, so cheap runs come first where they
    still help. The order of the candidates plays no part but for exact ties (the first). ValueError for candidates that
    lack a variable of the law, costs that are not positive, and when not one candidate fits the budget.
    """
    design = base if isinstance(base, Design) else _of_fit(base, noise)
    law, theta = design.law, design.law.as_array(design.params)
    if k < 1 or max_repeats < 1:
        raise ValueError(f"k and max_repeats are numbers of runs, at least 1; got {k} and {max_repeats}")
    asked = {"N": N, "D": D, **variables}
    # N and D of a run may be given for its cost where the law has only one of them.
    given = {
        name: law.check_variable(value, name) if name in law.variables else _positive(value, name)
        for name, value in asked.items()
        if value is not None
    }
    missing = [name for name in law.variables if name not in given]
    if missing:
        raise ValueError(f"candidates for {law.formula} need {' and '.join(missing)}")
    arrays = [np.ravel(array) for array in np.broadcast_arrays(*given.values())]
    places = dict(zip(given, arrays, strict=True))
    costs, unit = _costs(places, cost)
    weights, of, shown = _criterion(law, theta, minimize)
    factor = huber_factor(design.noise, design.delta) if design.objective == "huber" else 1.0
    variances = (design.noise**2 * factor, design.size_noise**2)
    rows = _jacobian(law, theta, {name: places[name] for name in law.variables})
    jacobian = _jacobian(law, theta, design.columns)
    groups = design.groups
    candidate_groups = _candidate_groups(design, places)
    before = _log_error(_covariance(jacobian, groups, *variances), weights)
    now, left, spent, steps = before, np.full(len(costs), max_repeats), 0.0, list[Step]()
    while len(steps) < k:
        allowed = (left > 0) & (spent + costs <= (math.inf if budget is None else budget * (1 + 1e-12)))
        if not allowed.any():
            break
        after = np.full(len(costs), np.inf)
        for i in np.flatnonzero(allowed).tolist():
            grown = np.vstack([jacobian, rows[i]])
            after[i] = _log_error(_covariance(grown, np.append(groups, candidate_groups[i]), *variances), weights)
        gain = np.where(allowed, (now - after) / costs, -np.inf)
        best = int(np.argmax(gain))
        if gain[best] <= 0:
            break
        jacobian, groups = np.vstack([jacobian, rows[best]]), np.append(groups, candidate_groups[best])
        now, spent = float(after[best]), spent + float(costs[best])
        left[best] -= 1
        at = {name: float(values[best]) for name, values in places.items()}
        steps.append(Step(at.get("N"), at.get("D"), float(costs[best]), math.exp(now) * shown, best))
    if not steps:
        cheapest = float(costs.min())
        raise ValueError(
            f"no candidate lowers the error of {of} within the budget ({budget}); "
            f"the cheapest costs {cheapest:.4g} {unit}"
        )
    return NextRuns(of=of, before=math.exp(before) * shown, steps=tuple(steps), cost_unit=unit)


def _of_fit(fit: ScalingFit, noise: float | None) -> Design:
    """The runs of a fit as a design, their scatter as the noise."""
    freedom = max(fit.num_points - len(fit.law.parameters), 1)
    spread = math.sqrt(float(fit.residuals @ fit.residuals) / freedom)
    objective = fit.objective_name if fit.objective_name in OBJECTIVES else "huber"
    # A fit that passes through its runs has residuals of rounding; errors are then relative to a noise of 0.1 %.
    chosen = noise if noise is not None else spread if spread > 1e-9 else 1e-3
    columns: dict[str, Any] = {name: fit._variable(name) for name in fit.law.variables}
    return expected_errors(fit.law, fit.params, noise=chosen, objective=objective, delta=fit.delta, **columns)


def _costs(places: Mapping[str, np.ndarray], cost: ArrayLike | None) -> tuple[np.ndarray, str]:
    shape = next(iter(places.values())).shape
    if cost is not None:
        return np.ravel(np.broadcast_to(_positive(cost, "cost"), shape)), "cost"
    if not {"N", "D"} <= set(places):
        raise ValueError("the cost of a run follows from N and D; give both, or cost= per candidate")
    return 6 * places["N"] * places["D"] / GPU_FLOPS / 3600, "GPU-hours"


def _criterion(
    law: Law, theta: np.ndarray, minimize: str | Mapping[str, float]
) -> tuple[np.ndarray | None, str, float]:
    """(direction in scaled parameters or None for all, words, factor from the scaled error to the one shown)."""
    if isinstance(minimize, Mapping):
        row = _jacobian(law, theta, _columns(law, {n: np.atleast_1d(v) for n, v in minimize.items()}))
        if len(row) != 1:
            raise ValueError(f"one place to predict at; got {dict(minimize)}")
        return row[0], "loss at " + ", ".join(f"{n} {v:.4g}" for n, v in minimize.items()) + " (relative)", 1.0
    if minimize == "all":
        return None, "all parameters", 1.0
    name = law.constant if minimize == "E" else minimize
    if name not in law.parameters:
        raise ValueError(
            f"minimize is one of {', '.join(law.parameters)}, all, or a place {{'N': ..., 'D': ...}}; got {minimize!r}"
        )
    place = law.parameters.index(name)
    return np.eye(len(theta))[place], name, float(_scale(law, theta)[place])


def _log_error(covariance: np.ndarray, weights: np.ndarray | None) -> float:
    if weights is None:
        return float(np.linalg.slogdet(covariance)[1]) / (2 * len(covariance))
    return 0.5 * math.log(float(weights @ covariance @ weights))


# --- shared ---


def _columns(law: Law, given: Mapping[str, ArrayLike | None]) -> dict[str, np.ndarray]:
    """Every variable of the law, one value a run."""
    for name, value in given.items():
        if value is not None and name not in law.variables:
            raise ValueError(
                f"{type(law).__name__} ({law.formula}) has no {name}; pass {' and '.join(law.variables)} only"
            )
    arrays = np.broadcast_arrays(*(law.check_variable(given.get(name), name) for name in law.variables))
    if arrays[0].ndim != 1:
        raise ValueError(f"one value a run is needed (one dimension); got shape {arrays[0].shape}")
    return {name: np.array(array) for name, array in zip(law.variables, arrays, strict=True)}


def _scale(law: Law, theta: np.ndarray) -> np.ndarray:
    """Units in which parameters are compared: positive coefficients by their logarithm, the others as they are."""
    by_log = {law.parameters.index(name) for name in law.log_moved}
    return np.array([value if k in by_log else 1.0 for k, value in enumerate(theta.tolist())])


def _jacobian(law: Law, theta: np.ndarray, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Derivatives of ln(loss) by the scaled parameters, `[runs, p]`."""
    gradient = law.gradient(theta, **columns)
    return gradient / law.predict(theta, **columns)[..., None] * _scale(law, theta)


def _covariance(jacobian: np.ndarray, groups: np.ndarray, variance: float, shared: float) -> np.ndarray:
    """Of least squares under errors of `variance` a run and `shared` a group, in scaled parameters."""
    # Columns of length one, and no normal equations: the condition is that of the design, not of its square or its
    # units.
    lengths = np.sqrt((jacobian**2).sum(axis=0))
    orthonormal, triangle = np.linalg.qr(jacobian / lengths)
    inverse = np.linalg.inv(triangle)
    middle = variance * np.eye(len(lengths))
    if shared:
        sums = np.zeros((int(groups.max()) + 1, len(lengths)))
        np.add.at(sums, groups, orthonormal)
        middle = middle + shared * (sums.T @ sums)
    result = inverse @ middle @ inverse.T / np.outer(lengths, lengths)
    return (result + result.T) / 2


def _condition(jacobian: np.ndarray) -> float:
    lengths = np.sqrt((jacobian**2).sum(axis=0))
    if len(jacobian) < jacobian.shape[1] or not (lengths > 0).all():
        return math.inf
    singular = np.linalg.svd(jacobian / lengths, compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 1e-15 * singular[0] else math.inf


def _group_numbers(columns: Mapping[str, np.ndarray], groups: Sequence[Any] | np.ndarray | None) -> np.ndarray:
    num = len(next(iter(columns.values())))
    if groups is None:
        labels = columns["N"] if "N" in columns else np.arange(num)
    else:
        labels = np.array([str(label) for label in np.asarray(groups).tolist()])
        if len(labels) != num:
            raise ValueError(f"groups must label every run: {num} runs, {len(labels)} labels")
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def _candidate_groups(design: Design, places: Mapping[str, np.ndarray]) -> np.ndarray:
    """A candidate belongs to the group of the planned runs of its N, else to a new one of that N."""
    first_new = int(design.groups.max()) + 1
    num = len(next(iter(places.values())))
    if "N" not in design.columns or "N" not in places:
        return first_new + np.arange(num)
    known: dict[float, int] = {}
    for size, group in zip(design.columns["N"].tolist(), design.groups.tolist(), strict=True):
        known.setdefault(size, group)
    result = []
    for size in places["N"].tolist():
        known.setdefault(size, first_new + len(known))
        result.append(known[size])
    return np.array(result)


def _warnings(design: Design) -> list[str]:
    warnings = []
    if design.condition_number > MAX_CONDITION:
        warnings.append(
            f"condition number {design.condition_number:.2g}: some parameters can trade against each other; "
            "first-order errors are too small there"
        )
    for name in filter(None, (design.law.constant, *design.law.exponents)):
        value, half = design.params[name], design.half_width(name)
        if design.law.bounds[name][0] >= 0 and half >= value:
            warnings.append(f"the interval of {name} will reach 0: these runs will not show it")
        elif name != design.law.constant and design.law.bounds[name][0] >= 0 and half > WIDE * value:
            warnings.append(f"{name} will be known to +- {half:.2g} only")
    logged = [name for name in design.law.logged if name in design.targets]
    far = max((float(design.targets[n].max() / design.columns[n].max()) for n in logged), default=1.0)
    if far > 10:
        warnings.append(
            f"a target lies {far:.3g} times beyond the runs: the error of the law's form, which is not in these "
            "numbers, is then the larger part"
        )
    return warnings
