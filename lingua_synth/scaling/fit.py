"""Fitting a law to runs, and saying whether the runs determine it.

Runs go in as arrays; a `ScalingFit` comes out that carries its evidence: parameters at full precision, the objective
and its gradient, residuals, the condition of the problem, and in plain sentences why its numbers may not be trusted. A
fit whose parameters the runs do not determine is still returned, so that it can be looked at, with `identifiable`
False.

N: parameters of the model under `n_definition`. D: training tokens, repeats counted. Losses in nats per token (or any
unit: the constant is in the same). Residuals are ln(predicted) - ln(observed), so 0.01 is 1 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lingua_synth.scaling import solver
from lingua_synth.scaling.influence import Influence, influence
from lingua_synth.scaling.laws import ArrayLike, Law, _positive
from lingua_synth.scaling.records import record

MAX_CONDITION = 1e4
"""Beyond this the last parameter combination rests on less than 1/10,000 of the signal, below the noise of any run."""
MIN_RANGE = 2.0
"""A variable that spans less than this factor shows no curve: nothing separates its exponent from the constant."""
SHORT_RANGE = 10.0
LINE_CORRELATION = 0.9999
"""|correlation| of ln N and ln D above which the runs lie on one line and the two terms cannot be told apart."""
USUAL_EXPONENTS = (0.05, 1.0)
OUTLIER_FACTOR = 10.0
RISING_REACH = 10.0
"""How many times beyond the largest run a law must go on falling, or a fit says that it does not."""
GUESSING_NATS = float(np.log(1e6))
"""No tokenizer has a million tokens, so no model need lose more than this per token."""


@dataclass(frozen=True, eq=False)
class ScalingFit:
    """A law fitted to runs, with the evidence."""

    law: Law
    params: dict[str, float]
    """In the units of the input, full precision."""
    objective: float
    """Value of the objective: a sum over points of a function of the log residual."""
    objective_name: str
    delta: float
    """Width of the Huber core in log loss."""
    converged: bool
    grad_norm: float
    """Greatest cosine between the (clipped) residuals and a derivative of the predictions; 0 at a minimum, at most
    1."""
    condition_number: float
    """Of the Jacobian of the log predictions at the fit, columns of length one, parameters free to move."""
    num_points: int
    residuals: np.ndarray
    """ln(predicted) - ln(observed) per run, in the order given."""
    n_definition: str
    N: np.ndarray | None
    D: np.ndarray | None
    loss: np.ndarray
    variables: dict[str, np.ndarray] = field(default_factory=dict)
    """Every variable of the law per run, in the order given; N and D are among them."""
    asymmetry: float = 1.0
    """How many times more a prediction above its run counts than one below."""
    weights: np.ndarray | None = None
    """What a run counts, in the order given; None: 1 each."""
    dropped: tuple[str, ...] = ()
    """Runs of the table that were left out before the fit, each in words; named by the caller."""
    unit: str = "run"
    """What errs independently of the others: a run, or a group of runs (e.g. "size") named by the caller."""
    reasons: list[str] = field(default_factory=list)
    """Why the runs do not determine the law, one sentence each; empty when they do."""
    warnings: list[str] = field(default_factory=list)
    """What a reader should know beside the numbers."""

    @property
    def identifiable(self) -> bool:
        """Whether the runs determine the parameters: no reason against it was found."""
        return not self.reasons

    @property
    def rms_residual(self) -> float:
        """Root mean square of the log residuals (0.01 is 1 %)."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def max_residual(self) -> float:
        """Greatest log residual in absolute value."""
        return float(np.max(np.abs(self.residuals)))

    def predict(
        self, N: ArrayLike | None = None, D: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> np.ndarray:
        """Loss of the fitted law; the variables broadcast. See `extrapolation_factor` for how far that is from the
        runs."""
        return self.law.predict(self.params, N=N, D=D, **variables)

    def extrapolation_factor(
        self, N: ArrayLike | None = None, D: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> np.ndarray:
        """How many times beyond the runs a point lies, per point: 1 inside their range, 10 at ten times their largest
        D.

        The greatest of the factors of N, D (and U), above the largest or below the smallest run.
        """
        logs, shape = self.law.log_points(N, D, **variables)
        worst = np.zeros(int(np.prod(shape)))
        for name in self.law.logged:
            values, seen = logs[name], np.log(self._variable(name))
            worst = np.maximum(worst, np.maximum(values - seen.max(), seen.min() - values))
        # Below one part in 10^12 a point is the run itself, up to rounding of its logarithm.
        return np.exp(np.where(worst > 1e-12, worst, 0.0)).reshape(shape)[()]

    @cached_property
    def E_under(self) -> dict[str, float]:
        """The irreducible loss under this law and under its rivals for the same runs and objective, by law.

        On real runs the law moves it more often than their noise does, so an E is no property of the runs alone. Empty
        for a law without a constant; only its own for a law without rivals, or too few runs for theirs.
        """
        found = {self.law.name: self.params[self.law.constant]} if self.law.constant else {}
        for rival in self.law.rivals():
            if self.num_points > len(rival.parameters):
                points = _points_of(rival, self.variables, self.loss, self.weights, self.asymmetry)
                end = solver.minimize(rival, points, objective=self.objective_name, delta=self.delta)
                params = points.to_params(rival, end.theta[0])
                found[rival.name] = float(params[rival.parameters.index(rival.constant)])
        return found

    @cached_property
    def influence(self) -> Influence | None:
        """What the fit would be without each run and without its worst few; None when no run can be spared."""
        return influence(self) if self.num_points > len(self.law.parameters) else None

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and greatest value of every variable in the runs: beyond them a prediction is an extrapolation."""
        return {name: (float(values.min()), float(values.max())) for name, values in self.variables.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON at full precision; infinities become null with a reason in `null_because`."""
        return record(
            {
                "law": self.law.name,
                "formula": self.law.formula,
                "params": self.params,
                "identifiable": self.identifiable,
                "reasons": self.reasons,
                "warnings": self.warnings,
                "objective_name": self.objective_name,
                "objective": self.objective,
                "delta": self.delta,
                "converged": self.converged,
                "grad_norm": self.grad_norm,
                "condition_number": self.condition_number,
                "num_points": self.num_points,
                "rms_residual": self.rms_residual,
                "max_residual": self.max_residual,
                "n_definition": self.n_definition,
                "unit": self.unit,
                "dropped": list(self.dropped),
                "ranges": {name: list(ends) for name, ends in self.ranges.items()},
                "E_under": self.E_under,
                "influence": None if self.influence is None else self.influence.to_dict(),
                "derivatives": self.law.derivatives,
                "asymmetry": self.asymmetry,
                "weights": self.weights,
                "N": self.N,
                "D": self.D,
                **{name: values for name, values in self.variables.items() if name not in ("N", "D")},
                "loss": self.loss,
                "residuals": self.residuals,
            }
        )

    def __str__(self) -> str:
        lines = [f"{self.law.formula}" + (f"   (N: {self.n_definition})" if "N" in self.law.variables else "")]
        lines += [f"  {name:<10}{value:>14.6g}" for name, value in self.params.items()]
        lines += [
            f"  {self.num_points} runs, residuals rms {100 * self.rms_residual:.3g} %, "
            f"largest {100 * self.max_residual:.3g} %",
            f"  {self.objective_name} {self.objective:.6g}, {'converged' if self.converged else 'NOT CONVERGED'} "
            f"(gradient {self.grad_norm:.1e}), condition {self.condition_number:.3g}",
        ]
        spans = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in self.ranges.items())
        lines.append(f"  runs span {spans}; what errs independently: the {self.unit}")
        if len(self.E_under) > 1:
            lines.append("  irreducible loss by law: " + ", ".join(f"{n} {E:.4g}" for n, E in self.E_under.items()))
        if self.influence is not None and self.law.constant:
            row = self.influence.rows[0]
            lines.append(
                f"  most influential: row {row}, without it {self.law.constant} = "
                f"{self.influence.without[row, self.law.parameters.index(self.law.constant)]:.4g}"
            )
        if self.dropped:
            lines.append(
                f"  {len(self.dropped)} runs dropped before the fit: {'; '.join(self.dropped[:5])}"
                + (" ..." if len(self.dropped) > 5 else "")
            )
        lines.append("  identifiable" if self.identifiable else "  NOT IDENTIFIABLE:")
        lines += [f"    - {reason}" for reason in self.reasons]
        lines += [f"  note: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _variable(self, name: str) -> np.ndarray:
        return self.variables[name]

    def _points(self) -> solver.Points:
        return _points_of(self.law, self.variables, self.loss, self.weights, self.asymmetry)


def fit(
    law: Law,
    *,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    loss: ArrayLike,
    objective: str = "huber",
    delta: float = 1e-3,
    asymmetry: float = 1.0,
    weights: ArrayLike | None = None,
    n_definition: str = "non_embedding",
    dropped: Sequence[object] = (),
    unit: str = "run",
    **variables: ArrayLike | None,
) -> ScalingFit:
    """Fit `law` to runs: the global minimum of a sum over runs of rho(ln(predicted) - ln(observed)).

    objective: "huber" (rho = r^2/2 within `delta`, delta (|r| - delta/2) beyond), "lad" (|r|) or "mse" (r^2).
    asymmetry: how many times more a prediction above its run counts than one below; over 1 the law hugs the lower
    envelope of the runs. weights: what each run counts, positive, e.g. `weights=(N * D) ** 0.25`; only their ratios
    move the parameters.
    N, D and `**variables` (U=, r=, ratio_<source>=) are those variables the law has, one value a run; `n_definition`
    says which count N is, and is kept.
    dropped: the runs that were left out of the table before, in words; `unit`: what errs independently ("run", or
    "size" when the runs of one size share an error). Both are kept beside the numbers and move none of them.

    Deterministic: no random start; the order of the rows changes nothing. Units change nothing but the units of the
    parameters, for every law that `rescales` (all but a `FunctionLaw`, which is fitted in the units given).

    Raises ValueError for values that are not positive and finite, arrays of unequal length, a variable too many or too
    few, an unknown objective, and fewer runs than the law has parameters. Runs that do not determine the law (one
    size, one line of D against N, the constant at 0, ...) give a fit with `identifiable` False and the `reasons`.
    """
    if not isinstance(law, Law):
        raise ValueError(f"law must be a law object such as JointLaw(), got {law!r}")
    if objective not in solver.OBJECTIVES:
        raise ValueError(f"objective is one of {', '.join(solver.OBJECTIVES)}; got {objective!r}")
    if not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta is a width in log loss, positive (1e-3 is 0.1 %); got {delta}")
    if not (np.isfinite(asymmetry) and asymmetry > 0):
        raise ValueError(
            f"asymmetry is a positive factor, 1 for none (3 to lean on the lower envelope); got {asymmetry}"
        )
    columns = _columns(law, {"N": N, "D": D, **variables}, loss)
    losses = columns.pop("loss")
    num, p = len(losses), len(law.parameters)
    counts = _weights(weights, num)
    if num < p:
        raise ValueError(
            f"{type(law).__name__} has {p} parameters ({', '.join(law.parameters)}) and there are {num} runs; "
            f"it takes at least {p}, and {p + 1} to say anything about its error"
        )
    points = _points_of(law, columns, losses, counts, asymmetry)
    found = solver.minimize(law, points, objective=objective, delta=delta)
    theta = found.theta[0]
    params = dict(zip(law.parameters, points.to_params(law, theta).tolist(), strict=True))
    canonical, jacobian = solver.residuals_and_jacobian(law, points, theta)
    residuals = np.empty(num)
    residuals[points.order] = canonical
    condition = _condition_number(law, theta, jacobian)
    converged = bool(found.converged[0])
    reasons = _data_reasons(law, columns, num) + _solution_reasons(
        law, theta, canonical, jacobian, condition, converged
    )
    for array in (losses, residuals, *columns.values(), *([] if counts is None else [counts])):
        array.flags.writeable = False
    return ScalingFit(
        law=law,
        params=params,
        objective=float(found.objective[0]),
        objective_name=objective,
        delta=float(delta),
        converged=converged,
        grad_norm=float(found.grad_norm[0]),
        condition_number=condition,
        num_points=num,
        residuals=residuals,
        n_definition=n_definition,
        N=columns.get("N"),
        D=columns.get("D"),
        loss=losses,
        variables=columns,
        asymmetry=float(asymmetry),
        weights=counts,
        dropped=tuple(str(run) for run in dropped),
        unit=unit,
        reasons=reasons,
        warnings=_warnings(law, columns, losses, residuals, params) + _weak(law, theta, canonical, jacobian, condition),
    )


def _columns(law: Law, variables: Mapping[str, ArrayLike | None], loss: ArrayLike) -> dict[str, np.ndarray]:
    """The law's variables and the loss as float arrays `[num_points]` of their own."""
    for name, values in variables.items():
        if values is not None and name not in law.variables:
            raise ValueError(
                f"{type(law).__name__} ({law.formula}) has no {name}; pass {' and '.join(law.variables)} only, "
                f"for runs of one {name}, or fit a law that has it"
            )
    columns = {name: np.array(law.check_variable(variables.get(name), name)) for name in law.variables}
    columns["loss"] = np.array(_positive(loss, "loss"))
    for name, array in columns.items():
        if array.ndim != 1:
            raise ValueError(f"{name} must hold one value a run (one dimension), got shape {array.shape}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"one value a run is needed in each of {lengths}; the lengths differ")
    return columns


def _weights(weights: ArrayLike | None, num: int) -> np.ndarray | None:
    if weights is None:
        return None
    array = np.array(_positive(weights, "weights"))
    if array.shape != (num,):
        raise ValueError(f"weights must hold one value for each of the {num} runs, got shape {array.shape}")
    return array


def _points_of(
    law: Law, columns: Mapping[str, np.ndarray], loss: np.ndarray, weights: np.ndarray | None, asymmetry: float
) -> solver.Points:
    logs = {name: np.log(columns[name]) if name in law.logged else columns[name] for name in law.variables}
    law.validate_points(logs)
    if weights is not None:
        # Of mean 1, so that thresholds on sums read as ever.
        weights = weights / np.mean(np.sort(weights))
    return solver.Points.of(law, logs, np.log(loss), weights=weights, asymmetry=asymmetry)


# --- what the runs cannot tell ---


def _data_reasons(law: Law, columns: dict[str, np.ndarray], num: int) -> list[str]:
    """Reasons visible before fitting."""
    p, reasons = len(law.parameters), []
    if num < p + 1:
        reasons.append(
            f"fewer points than parameters + 1: {num} runs for {p} parameters, so the law passes through the runs "
            "whatever they are"
        )
    for name, values in columns.items():
        distinct = len(np.unique(values))
        if name not in ("N", "D"):
            if distinct == 1:
                reasons.append(f"all runs have one {name}, so nothing in them shows what it does")
        elif distinct < 3:
            one = f"all runs have one {name}" if distinct == 1 else f"the runs have only 2 different values of {name}"
            reasons.append(f"{one}; a constant, a coefficient and an exponent take 3")
        elif values.max() < MIN_RANGE * values.min():
            spread = values.max() / values.min()
            reasons.append(f"too small a range of {name}: it spans a factor of {spread:.3g}, under {MIN_RANGE:g}")
    both = [columns[name] for name in ("N", "D") if name in columns]
    if len(both) == 2 and all(len(np.unique(values)) > 2 for values in both):
        correlation = float(np.corrcoef(*(np.log(values) for values in both))[0, 1])
        if abs(correlation) > LINE_CORRELATION:
            reasons.append(
                "all runs lie on one line of D against N (in logarithms), so the two terms cannot be told apart; "
                "add runs with other D at the same N"
            )
    return reasons


def _solution_reasons(
    law: Law, theta: np.ndarray, residuals: np.ndarray, jacobian: np.ndarray, condition: float, converged: bool
) -> list[str]:
    """Reasons visible at the solution."""
    reasons = []
    if not converged:
        reasons.append("the solver did not converge: the gradient at its best point is not zero")
    at_bound = _at_bound(law, theta)
    for k, name in enumerate(law.parameters):
        if not at_bound[k] or name in law.may_be_zero:
            continue
        if name == law.constant:
            reasons.append(f"{name} sits on its bound 0: the runs do not show where the loss levels off")
        elif name in law.coefficients:
            variables = " and ".join(v for term in law.terms if term.coefficient == name for v, _ in term.exponents)
            what = f"the loss does not fall with {variables}" if variables else "its term is absent"
            reasons.append(f"{name} sits on its bound 0: {what} in these runs")
        elif law.terms:
            reasons.append(f"exponent {name} sits at its bound {theta[k]:g}")
        else:
            reasons.append(f"{name} sits at its bound {theta[k]:g}: the runs would have it beyond")
    if condition > MAX_CONDITION:
        shown = f"{condition:.2g}" if np.isfinite(condition) else "infinite"
        reasons.append(
            f"condition number {shown}, above {MAX_CONDITION:.0e}: some parameters can trade against each other "
            "without changing the predictions"
        )
    elif not at_bound.any():
        reasons += _unresolved(law, theta, residuals, jacobian)
    return reasons


def _unresolved(law: Law, theta: np.ndarray, residuals: np.ndarray, jacobian: np.ndarray) -> list[str]:
    """Parameters whose first-order 95 % interval reaches 0: their value is scatter of the runs.

    Standard errors from s^2 (J'J)^-1, s^2 the sum of squared log residuals over num_points - p, and Student's t.
    """
    half = _half_widths(residuals, jacobian)
    wide = [
        name
        for k, name in enumerate(law.parameters)
        # Coefficients are left out (their exponents say it); c of the interaction law may well be 0.
        if (name == law.constant or name in _exponents(law)) and law.bounds[name][0] >= 0 and half[k] >= theta[k]
    ]
    return [
        f"{name} cannot be told from 0: the scatter of the runs gives it a first-order 95 % interval that reaches 0"
        for name in wide
    ]


def _half_widths(residuals: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """Of first-order 95 % intervals `[p]`; 0 without runs to spare, which say nothing of their scatter."""
    from scipy.special import stdtrit

    freedom = jacobian.shape[0] - jacobian.shape[1]
    if freedom < 1:
        return np.zeros(jacobian.shape[1])
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * float(residuals @ residuals) / freedom
    return np.asarray(stdtrit(freedom, 0.975) * np.sqrt(np.maximum(np.diag(covariance), 0.0)))


def _weak(law: Law, theta: np.ndarray, residuals: np.ndarray, jacobian: np.ndarray, condition: float) -> list[str]:
    """Parameters of `law.weak_beyond` that the runs leave open; none where the reasons already say so."""
    if not law.weak_beyond or condition > MAX_CONDITION:
        return []
    # One of them that ended on a bound may have done so by chance: it is asked for as if it were free.
    free = ~_at_bound(law, theta) | np.array([name in law.weak_beyond for name in law.parameters])
    half = np.zeros(len(theta))
    half[free] = _half_widths(residuals, jacobian[:, free])
    found = []
    low, high = solver.bounds_of(law)
    for name, limit in law.weak_beyond.items():
        k = law.parameters.index(name)
        by_log = name in law.log_moved
        both = np.array([-half[k], half[k]])
        ends = theta[k] * np.exp(np.clip(both / theta[k], -300, 300)) if by_log else theta[k] + both
        least, most = np.clip(ends, low[k], high[k])
        if (most / least if by_log else most - least) > limit:
            found.append(
                f"{name} = {theta[k]:.3g} is weakly identified: its first-order 95 % interval is "
                f"[{least:.3g}, {most:.3g}]"
            )
    return found


def _exponents(law: Law) -> tuple[str, ...]:
    """Parameters that are exponents of a count, in whatever law: alpha and beta by their names."""
    return law.exponents if law.terms else tuple(name for name in law.parameters if name in ("alpha", "beta"))


def _at_bound(law: Law, theta: np.ndarray) -> np.ndarray:
    low, high = solver.bounds_of(law)
    if law.rescales:
        # Constant and coefficients are in units of the typical loss here, exponents have none.
        return (theta <= low + 1e-9) | (theta >= high - 1e-9)
    width = np.where(np.isfinite(high - low), high - low, 0.0)
    return (theta <= low + 1e-9 * width) | (theta >= high - 1e-9 * width)


def _condition_number(law: Law, theta: np.ndarray, jacobian: np.ndarray) -> float:
    free = jacobian[:, ~_at_bound(law, theta)]
    if free.shape[1] == 0:
        return 1.0
    lengths = np.sqrt((free**2).sum(axis=0))
    if not np.all(lengths > 0) or free.shape[0] < free.shape[1]:
        return float("inf")
    singular = np.linalg.svd(free / lengths, compute_uv=False)
    # Singular values below rounding of the largest are zeros.
    return float(singular[0] / singular[-1]) if singular[-1] > 1e-15 * singular[0] else float("inf")


def _warnings(
    law: Law, columns: dict[str, np.ndarray], loss: np.ndarray, residuals: np.ndarray, params: dict[str, float]
) -> list[str]:
    warnings = []
    for name, values in columns.items():
        if name not in law.logged:
            continue
        spread = values.max() / values.min()
        if MIN_RANGE <= spread < SHORT_RANGE:
            warnings.append(f"{name} spans only a factor of {spread:.3g}; its exponent and the constant rest on little")
    num, p = len(residuals), len(law.parameters)
    if p < num < p + 3:
        warnings.append(f"only {num - p} more runs than parameters; intervals are rough")
    for name in _exponents(law):
        if law.bounds[name][0] >= 0 and not USUAL_EXPONENTS[0] <= params[name] <= USUAL_EXPONENTS[1]:
            warnings.append(f"{name} = {params[name]:.3g} is outside {USUAL_EXPONENTS}, where published exponents lie")
    if law.derivatives not in ("exact", "given"):
        warnings.append(f"derivatives of {law.name} by {law.derivatives}")
    warnings += _rising_warnings(law, columns, params)
    warnings += _outlier_warnings(columns, residuals)
    warnings += _unit_warnings(columns, loss)
    if "D" in columns and columns["D"].max() < 1e5:
        warnings.append(
            f"the largest D is {columns['D'].max():g} tokens; if tokens are in millions or billions, multiply"
        )
    if "N" in columns and columns["N"].max() < 1e3:
        warnings.append(
            f"the largest N is {columns['N'].max():g} parameters; if N is in millions or billions, multiply"
        )
    return warnings


def _rising_warnings(law: Law, columns: dict[str, np.ndarray], params: dict[str, float]) -> list[str]:
    """Where a law in N and D whose terms cross would have a larger model, or more tokens, do worse.

    Laws with other variables may mean it (a penalty for repeats)."""
    warnings: list[str] = []
    if set(columns) - {"N", "D"}:
        return warnings
    for name, what in (("N", "parameters"), ("D", "tokens")):
        if name not in columns:
            continue
        # The largest runs, and ten times beyond, with the other variables as in the middle of the table or at the top.
        for share in (0.5, 1.0):
            others = {other: float(np.quantile(values, share)) for other, values in columns.items() if other != name}
            top = float(columns[name].max()) * np.array([1.0, RISING_REACH, 1.01, 1.01 * RISING_REACH])
            point: dict[str, Any] = {**others, name: top}
            at, beyond, more_at, more_beyond = law.predict(params, **point)
            if more_at > at * (1 + 1e-9) or more_beyond > beyond * (1 + 1e-9):
                where = "at the largest" if more_at > at * (1 + 1e-9) else f"before {RISING_REACH:g} times the largest"
                warnings.append(
                    f"the law turns up with {name}: {where} {name} of the runs more {what} would make the loss greater "
                    f"({', '.join(f'{other} {value:.3g}' for other, value in others.items())}); it is no forecast there"
                )
                break
    return warnings


def _unit_warnings(columns: dict[str, np.ndarray], loss: np.ndarray) -> list[str]:
    """What magnitudes alone make certain. Bits per token look like nats per token and cannot be told."""
    warnings = []
    if loss.max() > GUESSING_NATS:
        warnings.append(
            f"the largest loss is {loss.max():.4g}, more nats per token than guessing among a million tokens costs "
            f"({GUESSING_NATS:.3g}); are these perplexities, sums over tokens, or percent?"
        )
    elif loss.max() < 0.7:
        warnings.append(
            f"no loss is above {loss.max():.3g}, low for nats per token; if they are per byte or per character, or in "
            "bits, so is every number here"
        )
    if "N" in columns and "D" in columns and columns["D"].max() >= 1e5 and columns["N"].max() >= 1e3:
        ratio = columns["D"] / columns["N"]
        if ratio.max() < 0.01:
            warnings.append(
                f"no run has more than {ratio.max():.2g} tokens per parameter; are tokens in millions or billions?"
            )
        elif ratio.min() > 1e5:
            warnings.append(
                f"every run has more than {ratio.min():.2g} tokens per parameter; is N in thousands or millions?"
            )
    table = np.stack([*columns.values(), loss], axis=-1)
    copies = len(table) - len(np.unique(table, axis=0))
    if copies:
        warnings.append(
            f"{copies} rows are exact copies of another (same {', '.join(columns)} and loss); each counts as a run of "
            "its own, so errors will look smaller than they are"
        )
    return warnings


def _outlier_warnings(columns: dict[str, np.ndarray], residuals: np.ndarray) -> list[str]:
    size = np.abs(residuals)
    limit = max(OUTLIER_FACTOR * float(np.median(size)), 0.02)
    rows: Sequence[int] = [int(k) for k in np.argsort(-size, kind="stable") if size[k] > limit]
    described = [
        f"row {k} ({', '.join(f'{name} {values[k]:.4g}' for name, values in columns.items())}) by "
        f"{100 * np.expm1(-residuals[k]):+.2g} %"
        for k in rows[:3]
    ]
    if not rows:
        return []
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return [f"runs far off the law: {'; '.join(described)}{more} (rows from 0, observed against predicted)"]
