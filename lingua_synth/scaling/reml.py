"""Intervals when the runs of a group (one size, one training of several checkpoints) share an error.

ln(loss) = law + u_group + e, with u and e normal, of variances s_u^2 and s_e^2. Such an error passes for a feature of
the law: six sizes with an error each look like a slightly other exponent in N, and intervals that count runs are far
too narrow. Here the law is linearized (J: derivatives of ln(loss) by the parameters), V = I + lambda ZZ' with
lambda = s_u^2 / s_e^2 and Z saying who is in which group, and parameters follow by generalized least squares,

    theta(lambda) = argmin r'V^-1 r,     covariance = s_e^2 (J'V^-1 J)^-1,

repeated until it stands still. lambda comes from the restricted likelihood (Patterson and Thompson 1971), whose profile
over lambda is a function of one number:

    -2 l = sum_g ln(1 + lambda n_g) + ln|J'V^-1 J| + (n - p) ln(r'V^-1 r).

Two ways to an interval:

- "satterthwaite": at the best lambda, with the covariance corrected for lambda's own error (Kenward and Roger 1997) and
  Student's t with degrees of freedom 2 var^2 / var(var) (Satterthwaite).
- "averaged": the restricted likelihood weighs every lambda (arctan(sqrt(lambda) / SCALE) evenly spread before the runs
  are seen); given lambda the quantity is a t variable with n - p degrees of freedom, exactly, and the interval is cut
  from their mixture. It needs no expansion and does not break when the best lambda is 0, which with few groups is
  frequent although errors are shared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from lingua_synth.scaling import solver
from lingua_synth.scaling.refits import Quantity, Tables, inverse

KINDS = ("averaged", "satterthwaite")
ANGLES = 48
"""Nodes of arctan(sqrt(lambda) / SCALE)."""
SCALE = 1.5
"""Of sqrt(lambda), before the runs are seen: half of the belief lies beyond it. Few groups say little about lambda, and
a small scale would take their silence for independence (1.0 held E in 92-96 % of studies with 4 to 10 sizes)."""
MAX_STEPS = 12
RATIO_STEPS = 3
"""After so many steps of the parameters lambda stands still to four digits and is kept."""
MAX_LAMBDA = 1e4


@dataclass(frozen=True, eq=False)
class Groups:
    """Which runs, in canonical order, share an error."""

    numbers: np.ndarray
    """`[m]`, from 0."""

    @property
    def sizes(self) -> np.ndarray:
        """Runs in each group."""
        return np.bincount(self.numbers)

    def __len__(self) -> int:
        return len(self.sizes)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean of the group of every run; `values` `[T, m]` or `[T, m, p]`."""
        turned = np.moveaxis(values, 1, 0)
        order = np.argsort(self.numbers, kind="stable")
        begins = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        sums = np.add.reduceat(turned[order], begins, axis=0)
        means = sums / self.sizes.reshape(-1, *[1] * (turned.ndim - 1))
        return np.moveaxis(means[self.numbers], 0, 1)

    def whiten(self, values: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        """V^-1/2 times `values`, for lambda `[T]`."""
        factor = 1 - 1 / np.sqrt(1 + ratio[:, None] * self.sizes[self.numbers])
        return np.asarray(values - factor.reshape(*factor.shape, *[1] * (values.ndim - 2)) * self.mean(values))


@dataclass(frozen=True, eq=False)
class SharedError:
    """What the runs show of an error that groups share, `[T]`."""

    share: np.ndarray
    """s_u^2 / (s_u^2 + s_e^2) at the best lambda."""
    run_error: np.ndarray
    """s_e, in log loss."""
    group_error: np.ndarray
    """s_u."""


@dataclass(frozen=True, eq=False)
class Reml:
    """The generalized fit of each table."""

    tables: Tables
    """With the parameters of generalized least squares."""
    groups: Groups
    ratio: np.ndarray
    """lambda, `[T]`."""
    nodes: np.ndarray
    """Trial lambdas `[K]`."""
    weight: np.ndarray
    """Of every node, `[T, K]`, sum 1."""
    shift: np.ndarray
    """Step of the parameters from `tables.theta` to the best of each node, `[T, K, p]`."""
    spread: np.ndarray
    """Covariance of the parameters given each node, `[T, K, p, p]`."""

    @property
    def shared(self) -> SharedError:
        """The variances at the best lambda."""
        residual, _ = self.tables.linear
        white = self.groups.whiten(residual, self.ratio)
        variance = (white**2).sum(axis=-1) / self.tables.freedom
        return SharedError(self.ratio / (1 + self.ratio), np.sqrt(variance), np.sqrt(variance * self.ratio))


def reml(tables: Tables, groups: Groups) -> Reml:
    """Generalized least squares with the ratio of variances from the restricted likelihood; the start is the fit."""
    tables = dataclasses.replace(tables, objective="mse", points=dataclasses.replace(tables.points, weights=None))
    law = tables.law
    low, high = solver.bounds_of(law)
    limits = np.minimum(law.max_moves(), 1e6)
    nodes = (SCALE * np.tan((np.arange(ANGLES) + 0.5) / ANGLES * np.pi / 2)) ** 2
    ratio = np.zeros(len(tables))
    for k in range(MAX_STEPS):
        if k < RATIO_STEPS:
            ratio = _best_ratio(tables, groups, nodes)
        step, _, _ = _linear_fit(tables, groups, ratio)
        size = np.max(np.abs(step) / limits, axis=-1, initial=0.0)
        step = step / np.maximum(1.0, size)[:, None]
        here = _sum(tables, groups, ratio, tables.theta)
        # Halved until it goes down; where no step does, the fit stands.
        moved, share = tables.theta.copy(), np.ones(len(tables))
        for _ in range(8):
            trial = np.clip(tables.theta + share[:, None] * step, low, high)
            worse = ~(_sum(tables, groups, ratio, trial) <= here)
            moved = np.where(worse[:, None], moved, trial)
            if not worse.any():
                break
            share = np.where(worse, share / 2, share)
        change = np.abs(moved - tables.theta).max()
        tables = tables.at(moved)
        if change < 1e-8:
            break
    num, p = len(tables), len(law.parameters)
    likelihood = np.empty((num, len(nodes)))
    shift, spread = np.empty((num, len(nodes), p)), np.empty((num, len(nodes), p, p))
    for k, node in enumerate(nodes):
        step, gram_inverse, squares = _linear_fit(tables, groups, np.full(num, node))
        likelihood[:, k] = _likelihood(tables, groups, np.full(num, node))
        shift[:, k] = step
        spread[:, k] = gram_inverse * (squares / tables.freedom)[:, None, None]
    weight = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return Reml(tables, groups, ratio, nodes, weight, shift, spread)


def interval(found: Reml, quantity: Quantity, level: float, kind: str = "averaged") -> tuple[np.ndarray, np.ndarray]:
    """Ends `[T]`, `[T]` on the symmetric scale; NaN where the quantity rests on bounds alone."""
    from scipy.special import stdtr, stdtrit

    assert kind in KINDS, kind
    slope = np.where(found.tables.free, quantity.gradient(found.tables.theta), 0.0)
    value = quantity.value(found.tables.theta)
    value = np.where(np.isfinite(value), value, np.nan)
    freedom = found.tables.freedom
    if kind == "satterthwaite":
        variance, small = satterthwaite(found, slope)
        variance = np.where(variance > 0, variance, np.nan)
        half = stdtrit(small, (1 + level) / 2) * np.sqrt(variance)
        return value - half, value + half
    centre = value[:, None] + np.einsum("tkp,tp->tk", found.shift, slope)
    error = np.sqrt(np.maximum(np.einsum("tp,tkpq,tq->tk", slope, found.spread, slope), 0.0))
    # What rests on parameters at a bound alone has no interval here.
    none = ~(error > 0).any(axis=1) | np.isnan(value)
    centre = np.where(none[:, None], 0.0, centre)
    error = np.maximum(error, 1e-300)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        reach = stdtrit(freedom, tail) * error
        low, high = (centre + reach).min(axis=1), (centre + reach).max(axis=1)
        # The mixture's quantile lies between those of its parts.
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = (found.weight * stdtr(freedom, (middle[:, None] - centre) / error)).sum(axis=1) < tail
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        ends.append(np.where(none, np.nan, 0.5 * (low + high)))
    return ends[0], ends[1]


def satterthwaite(found: Reml, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance (corrected for the error of lambda) and degrees of freedom of slope'theta, `[T]` each."""
    tables, groups, ratio = found.tables, found.groups, found.ratio
    residual, jacobian = tables.linear
    num, m, _ = jacobian.shape
    sizes = groups.sizes.astype(np.float64)
    variance = (groups.whiten(residual, ratio) ** 2).sum(axis=-1) / tables.freedom

    def solve(values: np.ndarray) -> np.ndarray:  # V^-1 values
        return groups.whiten(groups.whiten(values, ratio), ratio)

    def shared(values: np.ndarray) -> np.ndarray:  # ZZ' values
        return groups.mean(values) * sizes[groups.numbers].reshape(1, m, *[1] * (values.ndim - 2))

    turned = jacobian.swapaxes(-1, -2)
    once = solve(jacobian)
    bread = inverse(turned @ once)
    twice = solve(once)
    # X' V^-1 V_i V^-1 X for V_e = I and V_u = ZZ', and X' V^-1 V_i V^-1 V_j V^-1 X.
    first = [once.swapaxes(-1, -2) @ once, once.swapaxes(-1, -2) @ shared(once)]
    inner = [once, shared(once)]
    second = [[a.swapaxes(-1, -2) @ solve(b) for b in inner] for a in inner]
    # Expected information of (s_e^2, s_u^2), with P = V^-1 - V^-1 X (X'V^-1X)^-1 X'V^-1.
    member = (groups.numbers[:, None] == np.arange(len(sizes))).astype(np.float64)
    projected = solve(np.broadcast_to(member, (num, *member.shape)))
    projected = projected - once @ (bread @ (turned @ projected))
    between = np.einsum("mg,tmh->tgh", member, projected)
    per_group = 1 / (1 + ratio[:, None] * sizes)
    trace_vv = (m - len(sizes)) + (per_group**2).sum(axis=-1)
    trace_pp = (
        trace_vv
        - 2 * np.einsum("tpq,tqp->t", bread, jacobian.swapaxes(-1, -2) @ solve(twice))
        + np.einsum("tpq,tqr,trs,tsp->t", bread, first[0], bread, first[0])
    )
    information = np.empty((num, 2, 2))
    information[:, 0, 0] = 0.5 * trace_pp
    information[:, 0, 1] = information[:, 1, 0] = 0.5 * (projected**2).sum(axis=(-1, -2))
    information[:, 1, 1] = 0.5 * (between**2).sum(axis=(-1, -2))
    of_variances = inverse(information)
    along = np.einsum("tpq,tq->tp", bread, slope)
    plain = (slope * along).sum(axis=-1)
    change = np.stack([np.einsum("tp,tpq,tq->t", along, matrix, along) for matrix in first], axis=-1)
    freedom = 2 * plain**2 / np.maximum(np.einsum("ti,tij,tj->t", change, of_variances, change), 1e-300)
    correction = np.zeros(num)
    for i in range(2):
        for j in range(2):
            middle = second[i][j] - first[i] @ bread @ first[j]
            correction += of_variances[:, i, j] * np.einsum("tp,tpq,tq->t", along, middle, along)
    corrected = plain + 2 * np.maximum(correction, 0.0)
    return corrected * variance, np.clip(freedom, 1.0, tables.freedom)


def shared_error_test(tables: Tables, groups: Groups) -> np.ndarray:
    """p values `[T]` of the hypothesis that groups share no error: the F test of adding a constant per group.

    Exact for normal errors and a law that is nearly linear over its own uncertainty. 1 where it cannot be asked: no
    group of two runs, or no group left that the law cannot absorb.
    """
    from scipy.special import fdtrc

    residual, jacobian = tables.linear
    m = residual.shape[1]
    full, absorbed, rank = between_freedom(tables, groups)
    outer, rest = absorbed - full, m - absorbed
    if outer < 1 or rest < 1:
        return np.ones(len(tables))
    without = _linear_fit(tables, groups, np.zeros(len(tables)))[2]
    inner = jacobian - groups.mean(jacobian)
    target = residual - groups.mean(residual)
    step = np.einsum("tpq,tqm,tm->tp", inverse_low(inner, rank), inner.swapaxes(-1, -2), target)
    within = ((target - np.einsum("tmp,tp->tm", inner, step)) ** 2).sum(axis=-1)
    ratio = (np.maximum(without - within, 0.0) / outer) / np.maximum(within / rest, 1e-300)
    return np.asarray(fdtrc(outer, rest, ratio))


def between_freedom(tables: Tables, groups: Groups) -> tuple[int, int, int]:
    """(rank of the law, rank of law and groups together, rank of the law within groups), at the first table."""
    _, jacobian = tables.linear
    one = jacobian[:1]
    lengths = np.sqrt((one**2).sum(axis=1, keepdims=True))
    one = one / np.where(lengths > 0, lengths, 1.0)
    within = one[0] - groups.mean(one)[0]
    rank = int(np.linalg.matrix_rank(within, tol=1e-9 * np.sqrt(len(within))))
    return int(np.linalg.matrix_rank(one[0], tol=1e-9)), len(groups) + rank, rank


def between_parameters(tables: Tables, groups: Groups) -> float:
    """How many parameters rest on differences between groups alone, at the first table: p less the trace of the share
    of the information that lies within groups. About 3 (E, A, alpha) for sizes with many budgets each."""
    jacobian = tables.linear[1][:1]
    within = jacobian - groups.mean(jacobian)
    share = inverse(jacobian.swapaxes(-1, -2) @ jacobian) @ (within.swapaxes(-1, -2) @ within)
    return float(tables.free[0].sum() - np.trace(share[0]))


def inverse_low(columns: np.ndarray, rank: int) -> np.ndarray:
    """Inverses of the Gram matrices of `columns` `[T, m, p]`, of which only `rank` directions are not rounding."""
    gram = columns.swapaxes(-1, -2) @ columns
    size = np.sqrt(np.maximum(np.einsum("tii->ti", gram), 0.0))
    scale = np.where(size > 1e-9 * size.max(axis=-1, keepdims=True), 1 / np.where(size > 0, size, 1.0), 0.0)
    scaled = gram * scale[:, :, None] * scale[:, None, :]
    eigenvalues, vectors = np.linalg.eigh(scaled)
    inverted = np.zeros_like(eigenvalues)
    if rank:
        inverted[:, -rank:] = 1 / np.maximum(eigenvalues[:, -rank:], 1e-300)
    core = (vectors * inverted[:, None, :]) @ vectors.swapaxes(-1, -2)
    return np.asarray(core * scale[:, :, None] * scale[:, None, :])


def _linear_fit(tables: Tables, groups: Groups, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(step of the parameters, (J'V^-1J)^-1, weighted sum of squares after the step), `[T, ...]`."""
    residual, jacobian = tables.linear
    white, target = groups.whiten(jacobian, ratio), -groups.whiten(residual, ratio)
    turned = white.swapaxes(-1, -2)
    bread = inverse(turned @ white)
    step = np.einsum("tpq,tqm,tm->tp", bread, turned, target)
    rest = target - np.einsum("tmp,tp->tm", white, step)
    return step, bread, (rest**2).sum(axis=-1)


def _likelihood(tables: Tables, groups: Groups, ratio: np.ndarray) -> np.ndarray:
    """Restricted log likelihood, the variance of a run profiled out, `[T]`."""
    _, jacobian = tables.linear
    white = groups.whiten(jacobian, ratio)
    gram = white.swapaxes(-1, -2) @ white
    size = np.sqrt(np.maximum(np.einsum("tii->ti", gram), 0.0))
    size = np.where(size > 0, size, 1.0)
    scaled = gram / size[:, :, None] / size[:, None, :]
    eigenvalues = np.linalg.eigvalsh(scaled)
    logs = np.log(np.maximum(eigenvalues, 1e-15)).sum(axis=-1) + 2 * np.log(size).sum(axis=-1)
    squares = np.maximum(_linear_fit(tables, groups, ratio)[2], 1e-300)
    blocks = np.log1p(ratio[:, None] * groups.sizes).sum(axis=-1)
    return np.asarray(-0.5 * (blocks + logs + tables.freedom * np.log(squares)))


def _best_ratio(tables: Tables, groups: Groups, nodes: np.ndarray) -> np.ndarray:
    """lambda of the greatest restricted likelihood: the best node, then golden section between its neighbours."""
    num = len(tables)
    trials = np.array([0.0, *nodes[nodes < MAX_LAMBDA], MAX_LAMBDA])
    heights = np.stack([_likelihood(tables, groups, np.full(num, trial)) for trial in trials], axis=-1)
    at = heights.argmax(axis=-1)
    low, high = trials[np.maximum(at - 1, 0)], trials[np.minimum(at + 1, len(trials) - 1)]
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(14):
        one, two = high - golden * (high - low), low + golden * (high - low)
        up = _likelihood(tables, groups, one) < _likelihood(tables, groups, two)
        low, high = np.where(up, one, low), np.where(up, high, two)
    best = 0.5 * (low + high)
    zero = heights[:, 0] >= _likelihood(tables, groups, best)
    return np.where(zero, 0.0, best)


def _sum(tables: Tables, groups: Groups, ratio: np.ndarray, theta: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        residual = np.log(tables.law.value(theta, tables.points.logs)) - tables.log_losses
        total = (groups.whiten(residual, ratio) ** 2).sum(axis=-1)
    return np.where(np.isfinite(total), total, np.inf)
