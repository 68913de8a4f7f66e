"""Profile intervals: how far a quantity can be pushed until the best fit that has it is too much worse.

For every trial value the law is refitted with the quantity held there; the interval ends where the objective has risen
above its minimum by

    force / 2 * F(1, n - p),     force = E[psi^2] / E[psi'] (2 s^2 for mse)

which for mse is the exact-F region of nonlinear regression (Bates and Watts 1988, section 6.1) and for a robust
objective the likelihood-ratio type test of Schrader and Hettmansperger (1980). The ends need not lie evenly around the
fit, and do not depend on how the law is written; near a bound they are honest where a standard error is not: an end
that is never reached is the bound (0 for a constant) or, for a coefficient or a prediction, 0 or infinity.

The objective is assumed to rise on both sides of its minimum up to the end, and the first crossing that a search by
secants finds is taken.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lingua_synth.scaling import solver
from lingua_synth.scaling.refits import Quantity, Tables, refit_tables
from lingua_synth.scaling.wald import covariance, scatter

LAD_CORE = 1e-5
"""Absolute deviations are profiled with a Huber core of this width: their own kinks have no profile between runs."""
MAX_STEPS = 40
TOLERANCE = 1e-3
"""Of the end, in units of the distance to the fit."""
OPEN = 1e3
"""A quantity that can go this many standard errors from the fit has no end."""


def profile(tables: Tables, quantity: Quantity, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends `[T]`, `[T]` on the symmetric scale of the quantity; infinite where there is none."""
    from scipy.special import stdtrit

    noise = scatter(tables)
    if tables.objective == "lad":
        ends = _refit(dataclasses.replace(tables, objective="huber", delta=LAD_CORE), tables.theta)
        tables = dataclasses.replace(tables, objective="huber", delta=LAD_CORE, theta=ends.theta)
        noise = scatter(tables)
    least = _refit(tables, tables.theta)
    allowed = 0.5 * noise.force * stdtrit(tables.freedom, (1 + level) / 2) ** 2
    spread = covariance(tables, noise)
    slope = quantity.gradient(tables.theta)
    free_slope = np.where(tables.free, slope, 0.0)
    error = np.sqrt(np.maximum(np.einsum("tp,tpq,tq->t", free_slope, spread, free_slope), 0.0))
    # A quantity on its bound has no error of first order; the step of all others of its size starts the search.
    full = covariance(_all_free(tables), noise)
    full_error = np.sqrt(np.maximum(np.einsum("tp,tpq,tq->t", slope, full, slope), 0.0))
    error = np.where(error > 0, error, full_error)
    reach = stdtrit(tables.freedom, (1 + level) / 2) * error
    sides = [
        _end(tables, quantity, sign * np.maximum(reach, 1e-12), least.objective, allowed, full) for sign in (-1, 1)
    ]
    return sides[0], sides[1]


def _end(
    tables: Tables,
    quantity: Quantity,
    first: np.ndarray,
    least: np.ndarray,
    allowed: np.ndarray,
    spread: np.ndarray,
) -> np.ndarray:
    """One side's end; `first` is the signed distance at which it is looked for first. NaN for the logarithm of a term
    that is absent from the fit."""
    value = quantity.value(tables.theta)
    bound = np.where(first < 0, quantity.low, quantity.high)
    inner, outer = np.zeros(len(value)), np.full(len(value), np.nan)
    inner_root, outer_root = np.zeros(len(value)), np.full(len(value), np.nan)
    trial, theta = first.copy(), tables.theta.copy()
    result = np.full(len(value), np.nan)
    absent = ~np.isfinite(value)
    value = np.where(absent, 0.0, value)
    at_bound = np.isfinite(bound) & (np.abs(bound - value) <= 1e-12 * np.maximum(np.abs(value), 1.0))
    result[at_bound] = bound[at_bound]
    limit = OPEN * np.abs(first)
    room = np.abs(bound - value)
    for _ in range(MAX_STEPS):
        todo = np.flatnonzero(np.isnan(result) & ~absent)
        if len(todo) == 0:
            break
        trial[todo] = np.sign(first[todo]) * np.minimum(np.abs(trial[todo]), room[todo])
        part = tables.rows(todo)
        moved, rise = _held(part, quantity, value[todo] + trial[todo], theta[todo], least[todo], spread[todo])
        root = np.sqrt(np.maximum(rise, 0.0) / allowed[todo])
        beyond = root >= 1
        theta[todo[~beyond]] = moved[~beyond]
        for k, is_out, height in zip(todo, beyond, root, strict=True):
            if is_out:
                outer[k], outer_root[k] = trial[k], height
            else:
                inner[k], inner_root[k] = trial[k], height
            if not is_out and abs(trial[k]) >= room[k]:
                result[k] = bound[k]
            elif not is_out and abs(trial[k]) >= limit[k]:
                result[k] = np.sign(first[k]) * np.inf
            elif abs(height - 1) < TOLERANCE or abs(outer[k] - inner[k]) <= TOLERANCE * abs(inner[k]):
                result[k] = value[k] + trial[k]
            elif np.isnan(outer[k]):
                growth = 1.05 / max(height, 1e-3)
                trial[k] *= min(max(growth, 1.2), 4.0)
            else:
                # The root of the rise is nearly a straight line in the quantity.
                rise_between = outer_root[k] - inner_root[k]
                share = (1 - inner_root[k]) / rise_between if 0 < rise_between < np.inf else 0.5
                trial[k] = inner[k] + min(max(share, 0.05), 0.95) * (outer[k] - inner[k])
    unfinished = np.isnan(result) & ~absent
    result[unfinished] = (value + np.where(np.isnan(outer), np.sign(first) * np.inf, outer))[unfinished]
    return result


def _held(
    tables: Tables,
    quantity: Quantity,
    target: np.ndarray,
    start: np.ndarray,
    least: np.ndarray,
    spread: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters of the best fits with the quantity at `target`, and how much higher their objective is."""
    low, high = solver.bounds_of(tables.law)
    theta = start.copy()
    # Along the valley of the objective to where the quantity is as asked.
    for _ in range(6):
        slope = quantity.gradient(theta)
        direction = np.einsum("tpq,tq->tp", spread, slope)
        rate = (slope * direction).sum(axis=-1)
        gap = target - quantity.value(theta)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where((rate > 0)[:, None], direction * (gap / rate)[:, None], 0.0)
        step = np.where(np.isfinite(step), step, 0.0)
        theta = np.clip(theta + step, low, high)
    if quantity.held >= 0:
        theta[:, quantity.held] = np.clip(target / quantity.unit, low[quantity.held], high[quantity.held])
        ends = _refit(tables, theta, held=quantity.held)
        return ends.theta, ends.objective - least
    ends = _refit(tables, theta, pin=quantity, targets=target)
    own = solver.rho(tables.at(ends.theta).linear[0], tables.objective, tables.delta, tables.points.asymmetry)
    weights = tables.points.weights
    objective = own.sum(axis=-1) if weights is None else own @ weights
    missed = np.abs(quantity.value(ends.theta) - target) > 1e-4 * np.maximum(
        np.abs(target - quantity.value(start)), 1e-9
    )
    # No parameters give that value: it is beyond every end.
    return ends.theta, np.where(missed & (objective - least < np.inf), np.inf, objective - least)


def _refit(
    tables: Tables,
    starts: np.ndarray,
    *,
    held: int = -1,
    pin: Quantity | None = None,
    targets: np.ndarray | None = None,
) -> solver.Descent:
    return refit_tables(
        tables.law,
        tables.points,
        tables.log_losses,
        starts,
        objective=tables.objective,
        delta=tables.delta,
        held=np.full(len(starts), held),
        pin=pin,
        targets=targets,
    )


def _all_free(tables: Tables) -> Tables:
    """The same tables with no parameter on its bound, for a first-order step away from it."""
    low, high = solver.bounds_of(tables.law)
    width = np.where(np.isfinite(high - low), high - low, 1.0)
    return tables.at(np.clip(tables.theta, low + 1e-6 * width, high - 1e-6 * width))
