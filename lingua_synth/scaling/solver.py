"""Minimizing a law's objective: one deterministic global start, then many damped Newton descents at once.

The steps, for one table of points:

1. `Points` puts the table into working units: rows in one canonical order, ln N and ln D centred, losses divided by
   their geometric mean. So the result depends neither on the order of the rows nor on the unit of N, D or loss. (A law
   that does not say how its parameters follow a change of units is fitted in the caller's; the order still plays no
   part.)
2. `global_starts` is variable projection: for every node of a grid over the exponents, the constant and the
   coefficients that fit best are a small non-negative least-squares problem, solved exactly. The best nodes are the
   starts. A law without linear parameters starts from its grid alone.
3. `descend` takes any number of starts (or of resamples, each with its own integer weights) and moves them all together
   by a Newton step with exact second derivatives (where the law has them; else Gauss-Newton), damped as in
   Levenberg-Marquardt and kept inside the bounds.
4. `descend_absolute` finishes least absolute deviations, whose minimum is a kink: a sequence of linear programs.

Objectives are *sums* over points of a function of r = ln(predicted) - ln(observed): a mean with a fixed tolerance stops
early and returns a pretty wrong law. Every test for convergence is a ratio, so that a factor on the objective, or the
number of points, changes nothing.

Working parameters `theta`: `[n, p]` in the order of `law.parameters`; of a law that rescales, constant in units of
the typical loss, coefficients as the size of their term at the centre of the table, exponents as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np

from lingua_synth.scaling.laws import Law

OBJECTIVES = ("huber", "lad", "mse")

LAD_DELTA = 1e-7
"""Where a Huber objective stands in for absolute deviations: its minimum is within `num_points * delta / 2` of
theirs."""
CURVATURE_FLOOR = 1e-3
"""Share of the majorizing curvature `delta / |r|` that a point outside the Huber core keeps, so that no Hessian is
empty."""
GRADIENT_TOLERANCE = 1e-6
"""A descent has converged when no parameter's gradient is a greater cosine than this (see `Descent.grad_norm`)."""
CHUNK_NUMBERS = 60_000
"""Points times descents that are moved together: an array of 0.5 MB stays in the processor's cache."""
ABSENT = 1e-15
"""A coefficient below this share of the typical loss is 0."""
ROUNDING = 1e-13
"""Log residuals below this are rounding, not misfit."""
MAX_NODES = 20_000
"""Nodes of a start; the product of a law's grid is thinned out evenly to that many."""
MAX_SUPPORTS = 7
"""Linear parameters for which all supports are tried; with more, negative ones are dropped a few at a time."""


@dataclass(frozen=True)
class Points:
    """A table of runs in working units and canonical order, and how its runs count."""

    logs: dict[str, np.ndarray]
    """Of every variable, `[m]`: centred logarithms, plain values of those that are not logged (`Law.logged`)."""
    log_loss: np.ndarray
    """Centred ln loss, `[m]`."""
    centres: dict[str, float]
    log_scale: float
    """Mean of ln loss; 0 for a law that does not rescale."""
    order: np.ndarray
    """Canonical position -> row of the caller's table."""
    weights: np.ndarray | None = None
    """What a run counts in every objective, `[m]`; None: 1 each."""
    asymmetry: float = 1.0
    """How many times more a prediction above the run counts than one below it."""

    def __len__(self) -> int:
        return len(self.log_loss)

    @classmethod
    def of(
        cls,
        law: Law,
        logs: dict[str, np.ndarray],
        log_loss: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        asymmetry: float = 1.0,
    ) -> Points:
        """Sort and centre. `logs` holds the points of the law's variables, ln of the logged ones (`Law.log_points`)."""
        keys = (log_loss, *reversed([logs[name] for name in law.variables]))
        order = np.lexsort(keys if weights is None else (weights, *keys))
        ordered = {name: logs[name][order] for name in law.variables}
        centres = law.centres(ordered)
        log_scale = float(np.mean(log_loss[order])) if law.rescales else 0.0
        centred = {name: values - centres[name] if name in centres else values for name, values in ordered.items()}
        kept = None if weights is None else np.asarray(weights, dtype=np.float64)[order]
        return cls(centred, log_loss[order] - log_scale, centres, log_scale, order, kept, float(asymmetry))

    def to_params(self, law: Law, theta: np.ndarray) -> np.ndarray:
        """Working parameters in the caller's units."""
        return law.to_params(theta, self.centres, self.log_scale)

    def to_theta(self, law: Law, params: np.ndarray) -> np.ndarray:
        """The caller's parameters in working units."""
        return law.to_theta(params, self.centres, self.log_scale)


@dataclass(frozen=True)
class Descent:
    """Where `n` descents ended."""

    theta: np.ndarray
    """Working parameters `[n, p]`."""
    objective: np.ndarray
    """Sums `[n]`."""
    grad_norm: np.ndarray
    """`[n]`: greatest cosine between the vector of (weighted, clipped) residuals and the derivative of the predictions
    by a parameter that is free to move. 0 at a minimum, at most 1, without unit."""
    num_iterations: int

    @property
    def converged(self) -> np.ndarray:
        return self.grad_norm <= GRADIENT_TOLERANCE


def log_residuals(law: Law, points: Points, theta: np.ndarray) -> np.ndarray:
    """`ln(predicted) - ln(observed)`, `[n, m]` in canonical order; not finite where a law predicts no loss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(law.value(theta, points.logs)) - points.log_loss


def rho(residual: np.ndarray, objective: str, delta: float, asymmetry: float = 1.0) -> np.ndarray:
    """The function of one log residual that is summed.

    huber: r^2/2 within delta, delta (|r| - delta/2) beyond. lad: |r|. mse: r^2. Times `asymmetry` where r > 0, that is
    where the prediction lies above the run.
    """
    size = np.abs(residual)
    if objective == "mse":
        each = size * size
    elif objective == "lad":
        each = size
    else:
        core = np.minimum(size, delta)
        each = core * (size - 0.5 * core)
    return each if asymmetry == 1.0 else np.where(residual > 0, asymmetry * each, each)


def bounds_of(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest working parameters: the law's own, as no bound of a parameter that is rescaled has a unit (0,
    inf)."""
    low, high = np.array([law.bounds[name] for name in law.parameters]).T
    return low, high


# --- the start ---


def global_starts(law: Law, points: Points, objective: str, delta: float, *, num_starts: int = 12) -> np.ndarray:
    """The best nodes of a grid over the exponents, `[<= 2 * num_starts, p]`; the same for any order of rows and any
    unit.

    At each node the constant and the coefficients are the non-negative least-squares fit of relative residuals.
    Chosen are local minima of the objective over the grid, then the best nodes by objective and by sum of squares.
    """
    grid = law.grid()
    searched = [name for name in law.parameters if name not in law.linear]
    assert set(grid) == set(searched), f"{law!r} must give a grid for {searched}, gives {sorted(grid)}"
    axes = [np.asarray(grid[name], dtype=np.float64) for name in searched]
    shape = [len(axis) for axis in axes if len(axis) > 1]
    nodes, whole = _nodes(axes)
    theta = np.zeros((len(nodes), len(law.parameters)))
    theta[:, [law.parameters.index(name) for name in searched]] = nodes
    value, squares = np.empty(len(nodes)), np.empty(len(nodes))
    step = max(1, 2_000_000 // (len(points) * (1 + len(law.linear))))
    for begin in range(0, len(nodes), step):
        part = slice(begin, begin + step)
        squares[part] = _project(law, points, theta[part])
        residual = log_residuals(law, points, theta[part])
        each = rho(residual, objective, delta, points.asymmetry)
        value[part] = each.sum(axis=-1) if points.weights is None else each @ points.weights
    value[~np.isfinite(value)] = np.inf
    if np.isinf(value).all():
        raise ValueError(
            f"{law.formula} gives no positive loss at any of the {len(nodes)} nodes of its start; "
            "check its bounds and its grid"
        )
    by_value, by_squares = np.argsort(value, kind="stable"), np.argsort(squares, kind="stable")
    lowest = _local_minima(value.reshape(shape)).ravel() if whole else np.zeros(len(nodes), dtype=bool)
    chosen = list(by_value[lowest[by_value]][:num_starts])
    chosen += list(by_value[: num_starts // 2]) + list(by_squares[: num_starts // 2])
    return theta[[k for k in dict.fromkeys(chosen) if np.isfinite(value[k])]]


def _nodes(axes: list[np.ndarray]) -> tuple[np.ndarray, bool]:
    """All combinations `[k, number of axes]`, or `MAX_NODES` spread evenly over them; and whether it is all."""
    shape = [len(axis) for axis in axes]
    if not axes:
        return np.zeros((1, 0)), False
    if np.prod(shape, dtype=np.float64) <= MAX_NODES:
        return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=-1), True
    # The additive recurrence whose base is the root of x^(k+1) = x + 1 covers k dimensions evenly, without chance.
    base = 2.0
    for _ in range(60):
        base = (1 + base) ** (1 / (len(axes) + 1))
    steps = np.arange(1, MAX_NODES + 1)[:, None] * base ** -np.arange(1.0, len(axes) + 1)
    at = np.floor((0.5 + steps) % 1.0 * shape).astype(int)
    return np.stack([axis[column] for axis, column in zip(axes, at.T, strict=True)], axis=-1), False


def _project(law: Law, points: Points, theta: np.ndarray) -> np.ndarray:
    """Fill in the linear parameters of `theta` by least squares of relative residuals; returns the sums of squares.

    Parameters whose lower bound is 0 stay non-negative: that minimum is the plain least-squares fit on its own support,
    so the best of the feasible fits over all supports is the exact answer; with at most three columns there are seven.
    """
    inverse_loss = np.exp(-points.log_loss)
    if not law.linear:
        with np.errstate(over="ignore", invalid="ignore"):
            relative = law.value(theta, points.logs) * inverse_loss - 1
            squares = relative * relative
            total = squares.sum(axis=-1) if points.weights is None else squares @ points.weights
        return np.where(np.isfinite(total), total, np.inf)
    at = [law.parameters.index(name) for name in law.linear]
    theta[:, at] = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        rest, jacobian = law.value_and_jacobian(theta, points.logs)
    design = np.stack([jacobian[:, k] for k in at], axis=1) * inverse_loss  # [n, q, m]
    target = np.broadcast_to(1 - rest * inverse_loss, (len(theta), len(points)))
    sound = np.isfinite(design).all(axis=(-1, -2)) & np.isfinite(target).all(axis=-1)
    design, target = np.where(sound[:, None, None], design, 0.0), np.where(sound[:, None], target, 1.0)
    weighted = design if points.weights is None else design * points.weights
    moments = (weighted * target[:, None, :]).sum(axis=-1)
    gram = weighted @ design.swapaxes(-1, -2)
    size = (target * target).sum(axis=-1) if points.weights is None else (target * target) @ points.weights
    signed = [law.bounds[name][0] >= 0 for name in law.linear]
    solution, best = _non_negative(gram, moments, size, np.array(signed))
    theta[:, at] = solution
    return np.where(sound, best, np.inf)


def _non_negative(
    gram: np.ndarray, moments: np.ndarray, size: np.ndarray, signed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares from normal equations, `[n, q]` and sums of squares `[n]`; the `signed` unknowns are >= 0."""
    num = gram.shape[1]
    best = np.full(len(gram), np.inf)
    solution = np.zeros((len(gram), num))

    def solve(support: tuple[int, ...]) -> np.ndarray:
        inner = gram[:, support][:, :, support]
        # Columns that coincide (a table with one size) make this singular; a start needs no more than a ridge.
        trace = np.maximum(np.trace(inner, axis1=-2, axis2=-1), 1e-300)
        ridge = 1e-12 * trace[:, None, None] * np.eye(len(support))
        return np.linalg.solve(inner + ridge, moments[:, support, None])[..., 0]

    if int(signed.sum()) <= MAX_SUPPORTS:
        free = tuple(np.flatnonzero(~signed).tolist())
        bounded = np.flatnonzero(signed).tolist()
        for length in range(0 if free else 1, len(bounded) + 1):
            for chosen in itertools.combinations(bounded, length):
                support = tuple(sorted((*free, *chosen)))
                part = solve(support)
                squares = size - (part * moments[:, support]).sum(axis=-1)
                positive = (part > 0) | ~signed[list(support)]
                better = positive.all(axis=-1) & (squares < best)
                best = np.where(better, squares, best)
                filled = np.zeros_like(solution)
                filled[:, support] = part
                solution = np.where(better[:, None], filled, solution)
        return solution, best
    # Many unknowns: drop what turns negative and solve again; near the exact answer, which is all a start needs.
    held = np.zeros((len(gram), num), dtype=bool)
    diagonal = np.arange(num)
    for _ in range(num):
        masked = np.where(held[:, :, None] | held[:, None, :], 0.0, gram)
        trace = np.maximum(np.trace(gram, axis1=-2, axis2=-1), 1e-300)
        masked[:, diagonal, diagonal] += np.where(held, 1.0, 1e-12 * trace[:, None])
        solution = np.linalg.solve(masked, np.where(held, 0.0, moments)[..., None])[..., 0]
        negative = signed & (solution < 0)
        if not negative.any():
            break
        held |= negative
    solution = np.where(signed, np.maximum(solution, 0.0), solution)
    inside = (solution[:, None, :] @ gram @ solution[..., None])[:, 0, 0]
    return solution, size - 2 * (solution * moments).sum(axis=-1) + inside


def _local_minima(value: np.ndarray) -> np.ndarray:
    """True where no direct neighbour on the grid is lower."""
    lowest = np.ones(value.shape, dtype=bool)
    padded = np.pad(value, 1, constant_values=np.inf)
    inner = tuple(slice(1, -1) for _ in value.shape)
    for axis in range(value.ndim):
        for shift in (-1, 1):
            lowest &= value <= np.roll(padded, shift, axis=axis)[inner]
    return lowest


# --- the descent ---


def descend(
    law: Law,
    points: Points,
    start: np.ndarray,
    *,
    objective: str,
    delta: float,
    weights: np.ndarray | None = None,
    tolerance: float = 1e-12,
    max_iterations: int = 1000,
) -> Descent:
    """Minimize `sum(weights * rho(r))` from every row of `start`, each on its own.

    `weights` is `[n, m]` in canonical order (how often a resample holds each point) or None for one each. A descent
    ends when the undamped Newton step promises to lower its objective by less than `tolerance` of it, or when no step
    lowers it. The result says for each whether the gradient vanished; it never raises for a hard table. objective:
    huber or mse.
    """
    assert objective in ("huber", "mse"), "absolute deviations are finished by descend_absolute"
    start = np.asarray(start, dtype=np.float64)
    parts = []
    size = max(1, CHUNK_NUMBERS // len(points))
    for begin in range(0, len(start), size):
        part = slice(begin, begin + size)
        rows = _counts(points, None if weights is None else weights[part].astype(np.float64), len(start[part]))
        parts.append(_descend_chunk(law, points, start[part], rows, objective, delta, tolerance, max_iterations))
    return Descent(
        np.concatenate([part.theta for part in parts]),
        np.concatenate([part.objective for part in parts]),
        np.concatenate([part.grad_norm for part in parts]),
        max(part.num_iterations for part in parts),
    )


def _descend_chunk(
    law: Law,
    points: Points,
    start: np.ndarray,
    weights: np.ndarray | None,
    objective: str,
    delta: float,
    tolerance: float,
    max_iterations: int,
) -> Descent:
    low, high = bounds_of(law)
    theta = np.clip(start, low, high)
    total = _Sums(law, points, theta, weights, objective, delta)
    damping = np.full(len(theta), 1e-3)
    growth = np.full(len(theta), 2.0)
    active = np.arange(len(theta))
    limits = law.max_moves()
    # A term this small is beyond the last digit of every prediction, where parameters are in units of the loss.
    absent = ABSENT if law.rescales else 0.0
    log_moved = np.array([name in law.log_moved for name in law.parameters])
    iteration = 0
    while len(active) and iteration < max_iterations:
        iteration += 1
        here = total.take(active)
        # Two kinds of valley occur: constant against coefficient, straight as they are, and coefficient against
        # exponent, straight in the coefficient's logarithm. Taking turns, no descent creeps along either.
        by_log = log_moved & (theta[active] > 0) & (iteration % 2 == 0)
        step, promised, newton_promise = _step_within(theta[active], here, damping[active], low, high, by_log)
        proposal, shrink = _move(theta[active], step, low, high, by_log, limits, absent)
        there = _Sums(law, points, proposal, None if weights is None else weights[active], objective, delta)
        gained = here.value - there.value
        better = gained > 0
        # An exact fit (a resample of few different runs has one) is finished when what is left is rounding.
        finished = (newton_promise <= tolerance * here.value) | (here.value <= here.rounding_value)
        # Rounding of a sum of m terms: a smaller promise than this cannot be seen in the objective.
        stuck = ~better & ((promised <= 1e-15 * here.value) | (damping[active] > 1e14))
        quality = gained / np.maximum(promised * shrink, 1e-300)
        theta[active[better]] = proposal[better]
        total.put(active[better], there, better)
        damping[active] = np.where(
            better,
            damping[active] * np.clip(1 - (2 * np.clip(quality, -1, 1.5) - 1) ** 3, 1 / 9, 2.0),
            damping[active] * growth[active],
        )
        damping[active] = np.maximum(damping[active], 1e-12)
        growth[active] = np.where(better, 2.0, np.minimum(growth[active] * 2, 1e3))
        active = active[~(finished | stuck)]
    free = _free(theta, total.gradient, low, high)
    return Descent(theta, total.value, total.grad_norm(free), iteration)


def _counts(points: Points, weights: np.ndarray | None, num: int) -> np.ndarray | None:
    """What each run counts in each of `num` descents, `[num, m]`: its own weight times how often it was drawn."""
    if points.weights is None:
        return weights
    return np.broadcast_to(points.weights, (num, len(points))) if weights is None else weights * points.weights


class _Sums:
    """Objective, gradient and Hessian of a chunk of descents."""

    def __init__(
        self,
        law: Law,
        points: Points,
        theta: np.ndarray,
        weights: np.ndarray | None,
        objective: str,
        delta: float,
    ) -> None:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            predicted, jacobian = law.value_and_jacobian(theta, points.logs)
            residual = np.log(predicted) - points.log_loss
            inverse = 1 / predicted
        # A law that predicts 0 somewhere has an infinite objective; no step is ever taken there.
        alive = np.isfinite(residual).all(axis=-1)
        if not law.terms:
            alive &= np.isfinite(jacobian).all(axis=(-1, -2))
        residual = np.where(alive[:, None], residual, 0.0)
        inverse = np.where(alive[:, None], inverse, 0.0)
        if not alive.all():
            jacobian = np.where(alive[:, None, None], jacobian, 0.0)
        size = np.abs(residual)
        if objective == "mse":
            each, slope = residual * residual, 2 * residual
            major: np.ndarray | float = 2.0
            curvature: np.ndarray | float = 2.0
        else:
            core = np.minimum(size, delta)
            each, slope = core * (size - 0.5 * core), np.clip(residual, -delta, delta)
            major = delta / np.maximum(size, delta)
            curvature = np.where(size <= delta, 1.0, CURVATURE_FLOOR * major)
        if points.asymmetry != 1.0:
            factor = np.where(residual > 0, points.asymmetry, 1.0)
            each, slope = factor * each, factor * slope
            curvature, major = factor * curvature, factor * major
        if weights is not None:
            each, slope = weights * each, weights * slope
            curvature, major = weights * curvature, weights * major
            norm = np.sqrt((slope * slope / np.where(weights > 0, weights, 1.0)).sum(axis=-1))
        else:
            curvature, major = np.broadcast_to(curvature, each.shape), np.broadcast_to(major, each.shape)
            norm = np.sqrt((slope * slope).sum(axis=-1))
        self.value = np.where(alive, each.sum(axis=-1), np.inf)

        extra = law.curvature(theta, points.logs, jacobian, slope * inverse)
        # From here on rows of J: d ln(predicted) / d parameter.
        jacobian = jacobian * inverse[:, None, :]
        self.gradient = (jacobian @ slope[..., None])[..., 0]
        turned = jacobian.swapaxes(-1, -2)
        if extra is None:
            # Gauss-Newton: second derivatives of the law, and of its logarithm, are left out.
            self.hessian = (jacobian * curvature[:, None, :]) @ turned
        else:
            self.hessian = (jacobian * (curvature - slope)[:, None, :]) @ turned + extra
        square = jacobian * jacobian
        self.metric = (square @ major[..., None])[..., 0]
        """Diagonal of the majorizing Hessian: the scale in which parameters are comparable."""
        counts = np.ones_like(slope) if weights is None else weights
        self._column_norms = np.sqrt((square @ counts[..., None])[..., 0])
        self._slope_norm = norm
        self._rounding = ROUNDING * np.sqrt(counts.sum(axis=-1))
        self.rounding_value = 0.5 * self._rounding**2

    def take(self, rows: np.ndarray) -> _Sums:
        part = object.__new__(_Sums)
        for name, array in self.__dict__.items():
            setattr(part, name, array[rows])
        return part

    def put(self, rows: np.ndarray, other: _Sums, chosen: np.ndarray) -> None:
        for name, array in self.__dict__.items():
            array[rows] = getattr(other, name)[chosen]

    def grad_norm(self, free: np.ndarray) -> np.ndarray:
        """Greatest cosine over the free parameters; residuals that are rounding count as none."""
        scale = self._column_norms * np.maximum(self._slope_norm, self._rounding)[:, None]
        cosine = np.where(free & (scale > 0), np.abs(self.gradient) / np.where(scale > 0, scale, 1.0), 0.0)
        cosine = np.where((self._slope_norm <= self._rounding)[:, None], 0.0, cosine)
        return np.where(np.isfinite(self.value), cosine.max(axis=-1), np.inf)


def _free(theta: np.ndarray, gradient: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """False where a parameter sits on a bound and would leave through it."""
    return ~(((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)))


def _step_within(
    theta: np.ndarray,
    sums: _Sums,
    damping: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    by_log: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_damped_newton_step` that pushes no parameter through a bound it sits on, though another one's move may ask it
    to.

    Where `by_log`, the parameter moves by its logarithm.
    """
    free = _free(theta, sums.gradient, low, high)
    # What the change of variable adds to the second derivative, in units of the coefficient.
    bend = np.where(by_log, sums.gradient / np.where(by_log, theta, 1.0), 0.0)
    while True:
        answer = _damped_newton_step(sums, free, damping, bend)
        outward = free & ~by_log & (((theta <= low) & (answer[0] < 0)) | ((theta >= high) & (answer[0] > 0)))
        if not outward.any():
            return answer
        free &= ~outward


def _move(
    theta: np.ndarray,
    step: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    by_log: np.ndarray,
    limits: np.ndarray,
    absent: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(`theta` moved along `step`, the share of the step that was made): it ends on the first bound in its way.

    A step cut off in one parameter only would no longer go down. No exponent moves by more than 0.5 (a parameter by its
    limit) and no coefficient by more than a factor e^2 at once: beyond that the quadratic says nothing. Coefficients
    below `absent` become 0.
    """
    relative = np.where(by_log, step / np.where(by_log, theta, 1.0), 0.0)
    straight = np.where(by_log, 0.0, np.abs(step)) / limits
    reach = np.maximum(straight.max(axis=-1), 0.5 * np.abs(relative).max(axis=-1))
    bounded = np.where(by_log, 0.0, step)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        room = np.where(bounded < 0, (low - theta) / bounded, (high - theta) / bounded)
    room = np.where(bounded == 0, np.inf, room)
    share = np.minimum(np.minimum(1.0, 1 / np.maximum(reach, 1e-300)), room.min(axis=-1))[:, None]
    moved = np.where(by_log, theta * np.exp(share * relative), theta + share * bounded)
    moved = np.where(room <= share, np.where(bounded < 0, low, high), np.clip(moved, low, high))
    moved = np.where(by_log & (moved < absent), 0.0, moved)
    return moved, share[:, 0]


def _damped_newton_step(
    sums: _Sums, free: np.ndarray, damping: np.ndarray, bend: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(step, what it promises to gain, what the undamped step would) in the space of the free parameters.

    In units where the metric is the identity the Hessian is decomposed and its eigenvalues taken by absolute value, so
    that every step goes down also where the objective curves the wrong way. `bend` is added to the Hessian's diagonal.
    """
    scale = np.where(free & (sums.metric > 0), 1 / np.sqrt(np.maximum(sums.metric, 1e-300)), 0.0)
    scaled = sums.hessian * scale[:, :, None] * scale[:, None, :]
    diagonal = np.arange(scaled.shape[-1])
    scaled[:, diagonal, diagonal] += bend * scale**2
    eigenvalues, vectors = np.linalg.eigh(scaled)
    size = np.maximum(np.abs(eigenvalues), 1e-10)
    slope = (vectors.swapaxes(-1, -2) @ (sums.gradient * scale)[..., None])[..., 0]
    move = -slope / (size + damping[:, None])
    promised = -(slope * move + 0.5 * size * move * move).sum(axis=-1)
    newton_promise = (0.5 * slope * slope / size).sum(axis=-1)
    return (vectors @ move[..., None])[..., 0] * scale, promised, newton_promise


# --- the minimum of a point fit ---


def minimize(law: Law, points: Points, *, objective: str, delta: float) -> Descent:
    """The global minimum for one table: every start descends, the lowest end is polished until rounding stops it."""
    smooth = objective if objective != "lad" else "huber"
    starts = global_starts(law, points, smooth, delta)
    if smooth == "huber":
        # Least squares has few local minima, so its own best end is one more start.
        squares = descend(law, points, starts, objective="mse", delta=delta, tolerance=1e-8)
        starts = np.concatenate([starts, squares.theta[np.argsort(squares.objective, kind="stable")[:2]]])
    # A few starts may creep along a curved valley; what ranks them is known long before they arrive.
    rough = descend(law, points, starts, objective=smooth, delta=delta, tolerance=1e-10, max_iterations=40)
    best = np.argsort(rough.objective, kind="stable")[:4]
    if objective == "lad":
        return descend_absolute(law, points, rough.theta[best], delta)
    fine = descend(law, points, rough.theta[best], objective=smooth, delta=delta, tolerance=0.0)
    lowest = int(np.argmin(fine.objective))
    end = _polish(law, points, fine.theta[lowest : lowest + 1], smooth, delta)
    return dataclasses.replace(end, num_iterations=rough.num_iterations + fine.num_iterations + end.num_iterations)


def _polish(law: Law, points: Points, theta: np.ndarray, objective: str, delta: float) -> Descent:
    """Undamped Newton steps for as long as they shrink the gradient; one row.

    Near its minimum an objective of 16 digits fixes the parameters to 8; its gradient fixes them to the others.
    """
    low, high = bounds_of(law)
    counts = _counts(points, None, 1)
    here = _Sums(law, points, theta, counts, objective, delta)
    norm = here.grad_norm(_free(theta, here.gradient, low, high))
    iteration = 0
    while iteration < 10:
        iteration += 1
        step, _, _ = _damped_newton_step(here, _free(theta, here.gradient, low, high), np.zeros(1))
        proposal = np.clip(theta + step, low, high)
        there = _Sums(law, points, proposal, counts, objective, delta)
        there_norm = there.grad_norm(_free(proposal, there.gradient, low, high))
        if not (there_norm[0] < norm[0] and there.value[0] <= here.value[0] * (1 + 1e-12)):
            break
        theta, here, norm = proposal, there, there_norm
    return Descent(theta, here.value, norm, iteration)


# --- least absolute deviations ---


def descend_smoothed(
    law: Law,
    points: Points,
    start: np.ndarray,
    *,
    delta: float,
    weights: np.ndarray | None = None,
) -> Descent:
    """Huber minima for `delta` falling to `LAD_DELTA`: the sums of absolute deviations are minimal to within
    `num_points * LAD_DELTA / 2`. Reported are objective and gradient of that last Huber function, divided by its
    delta."""
    now = Descent(np.asarray(start, dtype=np.float64), np.zeros(len(start)), np.zeros(len(start)), 0)
    while True:
        now = descend(law, points, now.theta, objective="huber", delta=delta, weights=weights, tolerance=1e-10)
        if delta <= LAD_DELTA:
            return Descent(now.theta, now.objective / delta, now.grad_norm, now.num_iterations)
        delta = max(delta / 10, LAD_DELTA)


def descend_absolute(
    law: Law, points: Points, starts: np.ndarray, delta: float, *, max_iterations: int = 100
) -> Descent:
    """The exact minimum of the sum of absolute log residuals, the lowest over `starts`; one row.

    Residuals are linearized at the current point, the sum of their absolute values is minimized inside a box around it
    by a linear program, and the box grows or shrinks by how well that was borne out. At such a minimum as many
    residuals are exactly 0 as there are free parameters, which is why the linear programs end on it. `grad_norm` is
    the distance of 0 from the subdifferential, by the same scale as a cosine.
    """
    smoothed = descend_smoothed(law, points, starts, delta=min(delta, 1e-3))
    ends = [_absolute_descent(law, points, theta, max_iterations) for theta in smoothed.theta]
    value, theta, iterations = min(ends, key=lambda end: end[0])
    return Descent(
        theta[None],
        np.array([value]),
        np.array([_distance_to_subdifferential(law, points, theta)]),
        smoothed.num_iterations + iterations,
    )


def residuals_and_jacobian(law: Law, points: Points, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log residuals `[m]` and their derivatives `[m, p]` by the working parameters."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        predicted, jacobian = law.value_and_jacobian(theta[None], points.logs)
        return np.log(predicted[0]) - points.log_loss, np.ascontiguousarray((jacobian[0] / predicted[0]).T)


def _absolute_costs(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """What a unit of residual above, and below, each run costs, `[m]` each."""
    weights = np.ones(len(points)) if points.weights is None else points.weights
    return points.asymmetry * weights, weights


def _absolute_sum(points: Points, residual: np.ndarray) -> float:
    each = rho(residual, "lad", 0.0, points.asymmetry)
    total = float(each.sum() if points.weights is None else each @ points.weights)
    return total if np.isfinite(total) else np.inf


def _absolute_descent(
    law: Law, points: Points, theta: np.ndarray, max_iterations: int
) -> tuple[float, np.ndarray, int]:
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix, eye, hstack

    low, high = bounds_of(law)
    num, p = len(points), len(theta)
    residual, jacobian = residuals_and_jacobian(law, points, theta)
    value = _absolute_sum(points, residual)
    radius, iterations = 0.1, 0
    slack = eye(num, format="csr")
    above, below = _absolute_costs(points)
    # residual + J step = positive part - negative part: the first lies above the run.
    cost = np.concatenate([np.zeros(p), above, below])
    while iterations < max_iterations and radius > 1e-14:
        iterations += 1
        scale = 1 / np.maximum(np.sqrt((jacobian**2).sum(axis=0)), 1e-300)
        scale = np.minimum(scale * np.sqrt(num), 1e6)
        # Unknown: the scaled step, and the positive and negative part of every linearized residual.
        equations = hstack([csr_matrix(-jacobian * scale), slack, -slack], format="csr")
        box_low = np.maximum(-radius, (low - theta) / scale)
        box_high = np.minimum(radius, (high - theta) / scale)
        box = [*zip(box_low, box_high, strict=True), *[(0, None)] * (2 * num)]
        # Residuals are scaled to about 1, as the solver's tolerances are absolute.
        unit = max(float(np.median(np.abs(residual))), 1e-12)
        answer = linprog(
            cost,
            A_eq=equations,
            b_eq=residual / unit,
            bounds=[(a / unit, None if b is None else b / unit) for a, b in box],
        )
        if answer.status != 0:
            radius /= 4
            continue
        step = answer.x[:p] * unit * scale
        promised = value - _absolute_sum(points, residual + jacobian @ step)
        proposal = np.clip(theta + step, low, high)
        new_residual, new_jacobian = residuals_and_jacobian(law, points, proposal)
        new_value = _absolute_sum(points, new_residual)
        if new_value < value:
            quality = (value - new_value) / max(promised, 1e-300)
            theta, value, residual, jacobian = proposal, new_value, new_residual, new_jacobian
            radius = radius * 2 if quality > 0.75 else radius if quality > 0.25 else radius / 2
        else:
            if promised <= 1e-14 * value:
                break
            radius = min(radius / 4, float(np.abs(step / scale).max()) / 2)
    return value, theta, iterations


def _distance_to_subdifferential(law: Law, points: Points, theta: np.ndarray) -> float:
    """How far 0 is from the set of subgradients at `theta`, each parameter scaled as in `Descent.grad_norm`."""
    from scipy.optimize import lsq_linear

    low, high = bounds_of(law)
    residual, jacobian = residuals_and_jacobian(law, points, theta)
    above, below = _absolute_costs(points)
    norms = np.sqrt(below @ jacobian**2)
    scaled = jacobian / np.where(norms > 0, norms * np.sqrt(below.sum()), 1.0)
    zero = np.abs(residual) <= 1e-10
    fixed = np.where(residual > 0, above, -below)[~zero] @ scaled[~zero]
    # A parameter on a bound may be pushed through it at no cost.
    outward = [-np.eye(len(theta))[k] for k in range(len(theta)) if theta[k] <= low[k]]
    outward += [np.eye(len(theta))[k] for k in range(len(theta)) if theta[k] >= high[k]]
    columns = np.array([*scaled[zero], *outward]).reshape(-1, len(theta)).T
    if columns.size == 0:
        return float(np.abs(fixed).max())
    limits = (
        np.array([*-below[zero], *[0.0] * len(outward)]),
        np.array([*above[zero], *[np.inf] * len(outward)]),
    )
    answer = lsq_linear(columns, -fixed, bounds=limits, tol=1e-14)
    return float(np.abs(columns @ answer.x + fixed).max())
