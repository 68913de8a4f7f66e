"""Comparing mixtures through their fitted laws: speed-up at equal loss, crossing points, the best ratio.

Every answer says where it ends: a loss the base can never reach is `beyond_reach`, a budget beyond the base's runs is
marked, a best ratio on the edge of the grid is called that.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import ArrayLike, _positive
from lingua_synth.scaling.records import record


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a factor beyond reach is null with its reason."""
        return record(
            {
                "D": self.D,
                "factor": self.factor,
                "beyond_reach": self.beyond_reach,
                "loss": self.loss,
                "extrapolation_factor": self.extrapolation_factor,
                "warnings": self.warnings,
            }
        )

    def __str__(self) -> str:
        rows = zip(
            *(np.ravel(column).tolist() for column in (self.D, self.loss, self.factor, self.extrapolation_factor)),
            strict=True,
        )
        lines = [f"{'D':>12} {'loss':>10} {'speed-up':>12}"]
        for D, loss, factor, beyond in rows:
            shown = "beyond reach" if np.isinf(factor) else f"{factor:.3g}"
            note = f"   ({beyond:.3g} times beyond the base's runs)" if 1 < beyond < np.inf else ""
            lines.append(f"{D:>12.4g} {loss:>10.5g} {shown:>12}{note}")
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def speedup(base: ScalingFit, other: ScalingFit, D: ArrayLike, N: ArrayLike | None = None) -> Speedup:
    """Tokens `base` needs to reach the loss `other` has after D tokens, divided by D.

    Both fits are laws in D; N is needed when either depends on it, and both must then count N alike. Arrays broadcast.
    ValueError for a law without a data term, a missing or unused N, and differing definitions of N.
    """
    _check_pair(base, other, N)
    D = _positive(D, "D")
    loss = np.asarray(_predict(other, N, D))
    D_base = np.asarray(base.law.solve_D(base.params, loss, **({"N": N} if "N" in base.law.variables else {})))
    beyond = np.isinf(D_base)
    D, factor, D_base = np.broadcast_arrays(D, D_base / D, D_base)
    assert base.D is not None, "a law with a data term is fitted to D"
    reach = np.maximum(np.maximum(D_base / base.D.max(), base.D.min() / D_base), 1.0)
    return Speedup(
        D=np.array(D),
        factor=np.array(factor),
        beyond_reach=np.array(beyond),
        loss=np.array(loss),
        extrapolation_factor=reach,
        warnings=_pair_warnings({"base": base, "other": other}),
    )


def crossing(
    a: ScalingFit,
    b: ScalingFit,
    N: float | None = None,
    between: tuple[float, float] | None = None,
) -> list[float]:
    """Every D at which the two predicted curves cross, ascending; empty when one stays below the other.

    `between` = (lowest D, highest D), by default what the runs of the two fits span together. In ln D the difference
    of the curves is a constant and two exponentials, which has one extremum at most; cutting there leaves monotone
    pieces, so no crossing is missed and none is found twice. A curve that only touches the other crosses nothing.
    ValueError as for `speedup`, and for two equal curves.
    """
    _check_pair(a, b, N)
    if N is not None and np.ndim(N) != 0:
        raise ValueError(f"crossing takes one N at a time, got shape {np.shape(N)}")
    assert a.D is not None and b.D is not None, "laws with a data term are fitted to D"
    low, high = between or (min(a.D.min(), b.D.min()), max(a.D.max(), b.D.max()))
    if not (np.isfinite(low) and np.isfinite(high) and 0 < low < high):
        raise ValueError(f"between must be two budgets (lowest, highest), 0 < lowest < highest; got {between}")
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


# --- the best ratio ---


@dataclass(frozen=True, eq=False)
class BestRatio:
    """Where a quadratic through loss against ratio is lowest, beside the lowest point of the grid."""

    ratio: float
    """Of the quadratic's minimum within the grid's range."""
    loss: float
    """The quadratic there."""
    grid_ratio: float
    """Of the lowest mean loss measured; the smaller of equals."""
    grid_loss: float
    at_edge: bool
    """The quadratic's minimum lies on or beyond the first or last ratio, so the true one may lie outside the grid."""
    grid_at_edge: bool
    """The lowest measured ratio is the first or the last."""
    coefficients: tuple[float, float, float]
    """loss = c0 + c1 ratio + c2 ratio^2."""
    num_ratios: int
    """Different ratios; with 3 the quadratic passes through their means and its residuals say nothing."""
    rms_residual: float
    """Root mean square of measured minus quadratic, in the unit of the loss."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(dict(self.__dict__))

    def __str__(self) -> str:
        edge = ", at the edge of the grid: the best ratio may lie beyond" if self.at_edge else ""
        grid_edge = " (at the edge)" if self.grid_at_edge else ""
        return (
            f"best ratio {self.ratio:.3g} (quadratic, loss {self.loss:.5g}{edge}); "
            f"lowest of {self.num_ratios} measured: {self.grid_ratio:.3g}{grid_edge}, loss {self.grid_loss:.5g}"
        )


def best_ratio(ratio: ArrayLike, loss: ArrayLike) -> BestRatio:
    """The ratio of lowest loss at one size and budget, by least squares of a quadratic in the ratio.

    One entry a run; seeds of one ratio may repeat. The loss is flat near its minimum, so the quadratic uses all runs
    where the lowest grid point follows the noise of one. Where the quadratic has no minimum inside the grid, `ratio`
    is the better end of it and `at_edge` is True. ValueError for fewer than 3 different ratios, ratios outside [0, 1],
    losses that are not positive.
    """
    loss = _positive(loss, "loss")
    try:
        ratio = np.asarray(ratio, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"ratio must be numbers, got {ratio!r}") from None
    if ratio.ndim != 1 or ratio.shape != loss.shape:
        raise ValueError(f"ratio and loss hold one value a run each; got shapes {ratio.shape} and {loss.shape}")
    if not ((ratio >= 0) & (ratio <= 1)).all():
        raise ValueError(f"a ratio is a share in [0, 1]; got {ratio[~((ratio >= 0) & (ratio <= 1))][0]}")
    grid = np.unique(ratio)
    if len(grid) < 3:
        raise ValueError(f"a best ratio takes at least 3 different ratios; got {grid.tolist()}")
    order = np.lexsort((loss, ratio))  # the same sums for any order of rows
    ratio, loss = ratio[order], loss[order]
    means = np.array([loss[ratio == value].mean() for value in grid])
    centre, width = (grid[0] + grid[-1]) / 2, (grid[-1] - grid[0]) / 2
    scaled = (ratio - centre) / width
    design = np.stack([np.ones_like(scaled), scaled, scaled**2], axis=-1)
    (c0, c1, c2), *_ = np.linalg.lstsq(design, loss, rcond=None)
    vertex = -c1 / (2 * c2) if c2 > 0 else np.inf
    at_edge = not -1 < vertex < 1
    ends = np.array([-1.0, 1.0])
    best = float(ends[np.argmin(c0 + c1 * ends + c2 * ends**2)]) if at_edge else float(vertex)
    lowest = int(np.argmin(means))
    return BestRatio(
        ratio=float(np.clip(centre + width * best, grid[0], grid[-1])),
        loss=float(c0 + c1 * best + c2 * best**2),
        grid_ratio=float(grid[lowest]),
        grid_loss=float(means[lowest]),
        at_edge=bool(at_edge),
        grid_at_edge=lowest in (0, len(grid) - 1),
        coefficients=(
            float(c0 - c1 * centre / width + c2 * centre**2 / width**2),
            float(c1 / width - 2 * c2 * centre / width**2),
            float(c2 / width**2),
        ),
        num_ratios=len(grid),
        rms_residual=float(np.sqrt(np.mean((design @ np.array([c0, c1, c2]) - loss) ** 2))),
    )
