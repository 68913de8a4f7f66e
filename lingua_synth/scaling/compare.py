"""Comparing mixtures through their fitted laws: speed-up at equal loss, crossing points.

Every answer says where it ends: a loss the base can never reach is `beyond_reach`, a budget beyond the base's runs is
marked. The best ratio is in `ratio.py`.
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
