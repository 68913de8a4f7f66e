"""Many fits of one law at once: many tables of losses on the same runs, parameters held, quantities pinned.

`solver.descend` moves many descents together over *one* table. Simulated studies need another loss per table; a profile
needs one parameter held while the others move; the profile of a prediction needs that prediction pinned. All three are
one change of the law that the solver sees, so it stays as it is:

- a loss per table: predictions of table k are multiplied by observed(reference) / observed(k), so that the residuals
  against the reference are those of table k;
- a parameter held: its derivatives are zero, so no step moves it;
- a quantity pinned: one more point whose log residual is (quantity - target) with so great a weight that it holds.

The first two are carried in two more columns of `theta` (number of the table, number of the parameter held or -1) that
have no derivatives either.

`Tables` is what every interval starts from: the fitted parameters of one table (a fit of a user) or of thousands (a
simulation of coverage). Both go through the same code, so that what is measured is what is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lingua_synth.scaling import solver
from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import ArrayLike, Law

PIN_WEIGHT = 1e7
"""Weight of a pinned quantity, times that of all the runs together."""


@dataclass(frozen=True)
class Quantity:
    """A number that follows from the parameters of a fit, on the scale on which its interval is symmetric.

    A parameter, a coefficient by its logarithm, a prediction by its logarithm, or any function of the parameters.
    """

    name: str
    by_log: bool
    function: Callable[[np.ndarray], np.ndarray]
    """theta `[n, p]` (working parameters) -> `[n]` on that scale."""
    held: int = -1
    """The working parameter that holds this quantity when it is held; -1 when there is none and it must be pinned."""
    unit: float = 1.0
    """quantity = unit * working parameter, where one is `held`."""
    low: float = -np.inf
    high: float = np.inf
    """Bounds, on the scale of the interval."""

    def value(self, theta: np.ndarray) -> np.ndarray:
        """On the symmetric scale, `[n]`."""
        return np.asarray(self.function(theta), dtype=np.float64)

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """`[n, p]` by central differences (working parameters are of order one)."""
        theta = np.asarray(theta, dtype=np.float64)
        columns = []
        for k in range(theta.shape[1]):
            step = 1e-5 * np.maximum(np.abs(theta[:, k]), 1e-3)
            above, below = theta.copy(), theta.copy()
            above[:, k] += step
            below[:, k] -= step
            with np.errstate(invalid="ignore"):
                columns.append((self.value(above) - self.value(below)) / (above[:, k] - below[:, k]))
        # The logarithm of a term that is absent has no slope.
        slope = np.stack(columns, axis=-1)
        return np.where(np.isfinite(slope), slope, 0.0)

    def shown(self, value: np.ndarray | float) -> np.ndarray:
        """Back on the scale of the caller."""
        with np.errstate(over="ignore"):
            return np.exp(value) if self.by_log else np.asarray(value)


def parameter_quantity(law: Law, points: solver.Points, name: str) -> Quantity:
    """A parameter in the units of the runs; coefficients by their logarithm. ValueError lists the names."""
    if name not in law.parameters:
        raise ValueError(f"{type(law).__name__} has parameters {', '.join(law.parameters)}; got {name!r}")
    at = law.parameters.index(name)
    by_log = name in law.log_moved

    def function(theta: np.ndarray) -> np.ndarray:
        values = points.to_params(law, theta)[:, at]
        return _log(values) if by_log else values

    if by_log:
        return Quantity(name, True, function)
    low, high = law.bounds[name]
    if name == law.constant or not law.rescales or name in ("alpha", "beta", *law.exponents):
        probe = np.ones((1, len(law.parameters)))
        unit = float(function(probe)[0])
        moved = probe.copy()
        moved[0, at] = 2.0
        # Held directly only where the parameter in the caller's unit is the working one times a number.
        others = 1.5 * probe
        others[0, at] = 1.0
        straight = np.isclose(function(moved)[0], 2 * unit) and np.isclose(function(others)[0], unit)
        if straight:
            return Quantity(name, False, function, at, unit, low * unit if low else low, high * unit)
    return Quantity(name, False, function, low=low, high=high)


def prediction_quantities(
    law: Law, points: solver.Points, variables: Mapping[str, ArrayLike | None]
) -> tuple[list[Quantity], tuple[int, ...]]:
    """ln of the loss by the law at each point, and the shape of the points."""
    logs, shape = law.log_points(**variables)
    # In working units: subtract the centres, as the table did.
    centred = {
        name: values - points.centres[name] if name in points.centres else values for name, values in logs.items()
    }

    def at(k: int) -> Quantity:
        place = {name: values[k : k + 1] for name, values in centred.items()}
        described = ", ".join(
            f"{name} {np.exp(values[k]) if name in law.logged else values[k]:.4g}" for name, values in logs.items()
        )

        def function(theta: np.ndarray) -> np.ndarray:
            return np.asarray(_log(law.value(theta, place)[:, 0]) + points.log_scale)

        return Quantity(f"loss at {described}", True, function)

    return [at(k) for k in range(int(np.prod(shape)))], shape


def function_quantity(
    law: Law, points: solver.Points, function: Callable[[dict[str, np.ndarray]], np.ndarray], name: str = "function"
) -> Quantity:
    """Any function of the parameters in the caller's units, which it gets as an array each by name."""

    def value(theta: np.ndarray) -> np.ndarray:
        params = points.to_params(law, theta)
        values = np.asarray(function(dict(zip(law.parameters, params.T, strict=True))), dtype=np.float64)
        if values.shape != (len(theta),):
            raise ValueError(
                f"the function must give one number for each set of parameters, [{len(theta)}]; got {values.shape}"
            )
        return values

    return Quantity(name, False, value)


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values)


class _Many(Law):
    """What the solver sees of `law`: two columns more, and maybe one point more."""

    name = "many"
    formula = "many tables of one law"

    def __init__(
        self,
        law: Law,
        factors: np.ndarray,
        pin: Quantity | None = None,
        targets: np.ndarray | None = None,
        scale: float = 1.0,
    ):
        self.law, self.factors, self.pin, self.targets, self.scale = law, factors, pin, targets, scale
        self.parameters = (*law.parameters, "(table)", "(held)")  # type: ignore[misc]
        self.bounds = {**law.bounds, "(table)": (-np.inf, np.inf), "(held)": (-np.inf, np.inf)}  # type: ignore[misc]
        self.variables = law.variables  # type: ignore[misc]
        self.rescales = law.rescales  # type: ignore[misc]

    @property
    def log_moved(self) -> tuple[str, ...]:
        return self.law.log_moved

    def max_moves(self) -> np.ndarray:
        return np.append(self.law.max_moves(), [np.inf, np.inf])

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        p = len(self.law.parameters)
        table, held = theta[:, p].astype(int), theta[:, p + 1].astype(int)
        value, inner = self.law.value_and_jacobian(theta[:, :p], points)
        factors = self.factors[table]
        num, m = value.shape
        extra = self.pin is not None
        values = np.empty((num, m + extra))
        jacobian = np.zeros((num, p + 2, m + extra))
        values[:, :m] = value * factors
        jacobian[:, :p, :m] = inner * factors[:, None, :]
        if self.pin is not None:
            values[:, m] = self._gap(theta[:, :p], table)
            jacobian[:, :p, m] = self.scale * values[:, m, None] * self.pin.gradient(theta[:, :p])
        rows = np.flatnonzero(held >= 0)
        jacobian[rows, held[rows]] = 0.0
        return values, jacobian

    def curvature(
        self, theta: np.ndarray, points: Mapping[str, np.ndarray], jacobian: np.ndarray, pull: np.ndarray
    ) -> np.ndarray | None:
        p = len(self.law.parameters)
        factors = self.factors[theta[:, p].astype(int)]
        m = factors.shape[1]
        inner = self.law.curvature(
            theta[:, :p], points, jacobian[:, :p, :m] / factors[:, None, :], pull[:, :m] * factors
        )
        if inner is None:
            return None
        extra = np.zeros((len(theta), p + 2, p + 2))
        extra[:, :p, :p] = inner
        held = theta[:, p + 1].astype(int)
        rows = np.flatnonzero(held >= 0)
        extra[rows, held[rows], :] = 0.0
        extra[rows, :, held[rows]] = 0.0
        if self.pin is not None:
            # exp(gap) curves as its square slope; what the quantity itself curves is left out.
            slope = jacobian[:, :, m]
            value = self._gap(theta[:, :p], theta[:, p].astype(int))
            extra += (pull[:, m] / value)[:, None, None] * slope[:, :, None] * slope[:, None, :]
        return extra

    def _gap(self, theta: np.ndarray, table: np.ndarray) -> np.ndarray:
        """exp(scale (quantity - target)) `[n]`, kept where it neither overflows nor vanishes."""
        assert self.pin is not None and self.targets is not None, "asked for only where there is a pin"
        return np.exp(np.clip(self.scale * (self.pin.value(theta) - self.targets[table]), -50, 50))


def refit_tables(
    law: Law,
    points: solver.Points,
    log_losses: np.ndarray,
    starts: np.ndarray,
    *,
    objective: str,
    delta: float,
    table: np.ndarray | None = None,
    held: np.ndarray | None = None,
    pin: Quantity | None = None,
    targets: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 300,
) -> solver.Descent:
    """Fit table `table[k]` of `log_losses` `[tables, m]` (canonical order, as `points.log_loss`) from `starts[k]`.

    `held`: the parameter that keeps its value in each descent, -1 for none. `pin`, `targets`: the quantity that has the
    value `targets[table]`. `weights` `[n, m]`: how often each run counts. Objective "lad" stands for a Huber core of
    `solver.LAD_DELTA`, as in the bootstrap.
    """
    num = len(starts)
    table = np.arange(num) if table is None else table
    held = np.full(num, -1) if held is None else held
    factors = np.exp(points.log_loss - log_losses)
    # Of a Huber objective the pin must stay inside the core: its gap is shrunk to that width.
    scale = 1.0 if objective == "mse" else min(1.0, delta)
    many = _Many(law, factors, pin, targets, scale)
    if pin is not None:
        base = np.ones(len(points)) if points.weights is None else points.weights
        heavy = PIN_WEIGHT * float(base.sum()) / scale
        points = dataclasses.replace(points, log_loss=np.append(points.log_loss, 0.0), weights=np.append(base, heavy))
        if weights is not None:
            weights = np.column_stack([weights, np.ones(num)])
    theta = np.column_stack([starts, table, held])
    if objective == "lad":
        ends = solver.descend_smoothed(many, points, theta, delta=delta, weights=weights)
    else:
        ends = solver.descend(
            many,
            points,
            theta,
            objective=objective,
            delta=delta,
            weights=weights,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
    return dataclasses.replace(ends, theta=ends.theta[:, : len(law.parameters)])


@dataclass(frozen=True, eq=False)
class Tables:
    """One law fitted to T tables of losses on the same runs (T = 1: a fit), in working units and canonical order."""

    law: Law
    points: solver.Points
    log_losses: np.ndarray
    """Centred ln loss `[T, m]`."""
    theta: np.ndarray
    """Working parameters `[T, p]`, at the minimum of the objective."""
    objective: str
    delta: float

    @classmethod
    def of(cls, fit: ScalingFit) -> Tables:
        """The table of a fit."""
        points = fit._points()
        theta = points.to_theta(fit.law, fit.law.as_array(fit.params))
        return cls(fit.law, points, points.log_loss[None], theta[None], fit.objective_name, fit.delta)

    def __len__(self) -> int:
        return len(self.theta)

    def rows(self, chosen: np.ndarray) -> Tables:
        """Some of the tables."""
        return dataclasses.replace(self, log_losses=self.log_losses[chosen], theta=self.theta[chosen])

    def at(self, theta: np.ndarray) -> Tables:
        """The same tables, parameters elsewhere."""
        return dataclasses.replace(self, theta=theta)

    @property
    def freedom(self) -> int:
        """Runs less parameters, at least 1."""
        return max(len(self.points) - len(self.law.parameters), 1)

    @cached_property
    def free(self) -> np.ndarray:
        """`[T, p]`: whether a parameter is inside its bounds."""
        return free_parameters(self.law, self.theta)

    @cached_property
    def linear(self) -> tuple[np.ndarray, np.ndarray]:
        """Log residuals (predicted less observed) `[T, m]` and their derivatives `[T, m, p]`, 0 for what is not
        free."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value, jacobian = self.law.value_and_jacobian(self.theta, self.points.logs)
            residual = np.log(value) - self.log_losses
            slopes = np.ascontiguousarray((jacobian / value[:, None, :]).swapaxes(-1, -2))
        return residual, slopes * self.free[:, None, :]


def validate_own_minimum(fit: ScalingFit) -> None:
    """Raise ValueError for a fit whose parameters are not where its own runs have their minimum: one mixture's part of
    a joint fit. What its runs alone say of its errors is not true of it."""
    if fit.objective_name == "lad" or not fit.converged:
        return
    tables = Tables.of(fit)
    ends = refit_tables(
        tables.law, tables.points, tables.log_losses, tables.theta, objective=tables.objective, delta=tables.delta
    )
    each = solver.rho(tables.linear[0], tables.objective, tables.delta, tables.points.asymmetry)[0]
    here = float(each.sum() if tables.points.weights is None else each @ tables.points.weights)
    # Relative, and above what residuals of rounding leave.
    if here - ends.objective[0] > 1e-6 * here + 1e-20:
        raise ValueError(
            "the parameters are not the minimum for these runs alone; of one mixture of a joint fit take the intervals "
            "from the joint fit's bootstrap"
        )


def free_parameters(law: Law, theta: np.ndarray) -> np.ndarray:
    """`[n, p]`: whether a parameter is inside its bounds."""
    low, high = solver.bounds_of(law)
    width = np.where(np.isfinite(high - low), high - low, 1.0)
    return np.asarray((theta > low + 1e-9 * width) & (theta < high - 1e-9 * width))


def inverse(gram: np.ndarray) -> np.ndarray:
    """Inverses of `[T, p, p]` symmetric matrices after scaling their diagonals to 1; rows of zeros stay zero."""
    size = np.sqrt(np.maximum(np.einsum("tii->ti", gram), 0.0))
    scale = np.where(size > 0, 1 / np.where(size > 0, size, 1.0), 0.0)
    scaled = gram * scale[:, :, None] * scale[:, None, :]
    return np.asarray(np.linalg.pinv(scaled, rcond=1e-14, hermitian=True) * scale[:, :, None] * scale[:, None, :])
