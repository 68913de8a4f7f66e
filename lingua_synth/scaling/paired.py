"""Differences between two mixtures trained at the same (N, D), to first order.

Runs of one cell share much: the seed, the order of the data, the evaluation. What they share moves both fits alike and
cancels in the difference. With J the derivatives of ln(loss), C = (J'J)^-1 and tau^2 as in `wald.py`,

    var(g'a - h'b) = tau_a^2 g'C_a g + tau_b^2 h'C_b h - 2 rho tau_a tau_b g'C_a (J_a'J_b) C_b h,

the last product over the cells that both have; rho is the correlation of their clipped residuals, psi(r_a) with
psi(r_b), there. For least squares that is the covariance of seemingly unrelated regressions (Zellner 1962). An
objective with a narrow core keeps less of what is shared (rho is that of signs) than least squares does: where runs are
free of outliers and pairs are what matters, fit with objective="mse".

`paired_bootstrap` asks nothing of the errors but is slower, and with a narrow Huber core a little wide.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling import solver
from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import ArrayLike
from lingua_synth.scaling.records import record
from lingua_synth.scaling.refits import (
    Quantity,
    Tables,
    inverse,
    parameter_quantity,
    prediction_quantities,
    validate_own_minimum,
)
from lingua_synth.scaling.uncertainty import _tails
from lingua_synth.scaling.wald import Estimates, scatter

MIN_SHARED = 4
"""Fewer cells show no correlation."""


@dataclass(frozen=True, eq=False)
class PairedDifferences:
    """Intervals of differences between fits at the same cells."""

    fits: dict[str, ScalingFit]
    level: float
    correlation: dict[tuple[str, str], float]
    """Of the clipped residuals of two fits over the cells that both have."""
    num_shared: dict[tuple[str, str], int]
    _tables: dict[str, Tables] = field(repr=False)
    _rows: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = field(repr=False)

    def difference(self, name: str, first: str, second: str) -> tuple[float, float]:
        """Interval of the parameter `name` of `first` minus that of `second`; of a coefficient: of their ratio."""
        one, two = self._pair(first, second)
        quantities = [parameter_quantity(tables.law, tables.points, name) for tables in (one, two)]
        low, high = self._interval(first, second, quantities[0], quantities[1])
        shown = quantities[0].shown
        return float(shown(low)), float(shown(high))

    def predict_difference(
        self,
        first: str,
        second: str,
        N: ArrayLike | None = None,
        D: ArrayLike | None = None,
        **variables: ArrayLike | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Interval of ln(loss of `first` / loss of `second`) at each point, by the laws: 0.01 is 1 %."""
        one, two = self._pair(first, second)
        places = {"N": N, "D": D, **variables}
        firsts, shape = prediction_quantities(one.law, one.points, places)
        seconds, _ = prediction_quantities(two.law, two.points, places)
        pairs = [self._interval(first, second, a, b) for a, b in zip(firsts, seconds, strict=True)]
        low, high = np.array(pairs).reshape(-1, 2).T
        return low.reshape(shape)[()], high.reshape(shape)[()]

    def to_dict(self) -> dict[str, Any]:
        """Differences of the constants of all pairs, plain for JSON."""
        return record(
            {
                "level": self.level,
                "pairs": [
                    {
                        "first": a,
                        "second": b,
                        "num_shared": self.num_shared[a, b],
                        "correlation": self.correlation[a, b],
                        "parameter": name,
                        "difference": self.fits[a].params[name] - self.fits[b].params[name],
                        "interval": list(self.difference(name, a, b)),
                    }
                    for a, b, name in self._constants()
                ],
            }
        )

    def __str__(self) -> str:
        lines = [f"differences at the same cells, {100 * self.level:g} % intervals to first order"]
        for a, b, name in self._constants():
            low, high = self.difference(name, a, b)
            point = self.fits[a].params[name] - self.fits[b].params[name]
            lines.append(
                f"  {name} of {a} - {b}: {point:+.4g}  [{low:+.4g}, {high:+.4g}]; {self.num_shared[a, b]} cells, "
                f"errors correlated {self.correlation[a, b]:.2f}"
            )
        return "\n".join(lines)

    def _constants(self) -> list[tuple[str, str, str]]:
        return [
            (a, b, self.fits[a].law.constant)
            for a, b in itertools.combinations(self.fits, 2)
            if self.fits[a].law.constant and self.fits[a].law.constant == self.fits[b].law.constant
        ]

    def _pair(self, first: str, second: str) -> tuple[Tables, Tables]:
        for label in (first, second):
            if label not in self._tables:
                raise ValueError(f"there are fits of {', '.join(self._tables)}; got {label!r}")
        if first == second:
            raise ValueError(f"a difference takes two fits; got {first!r} twice")
        return self._tables[first], self._tables[second]

    def _interval(self, first: str, second: str, one: Quantity, two: Quantity) -> tuple[float, float]:
        found = difference(self._tables[first], self._tables[second], *self._rows[first, second], one, two)
        low, high = found.interval(self.level)
        return float(low[0]), float(high[0])


def paired_differences(fits: Mapping[str, ScalingFit], level: float = 0.95) -> PairedDifferences:
    """First-order intervals of differences between fits to runs at the same cells; `fits` is {label: fit}.

    A cell is one setting of all variables, and holds one run of each mixture. Cells that one fit lacks count for the
    other alone. The order of runs and of fits plays no part. ValueError for fewer than two fits, several runs of one
    cell in a fit (use `paired_bootstrap`), asymmetric objectives, a fit with no run more than parameters, and fewer
    than 4 cells in common.
    """
    _tails(level)
    if len(fits) < 2:
        raise ValueError(f"a pair takes two fits; got {list(fits)}")
    cells: dict[str, dict[tuple[float, ...], int]] = {}
    tables = {}
    for label, one in fits.items():
        if one.asymmetry != 1.0:
            raise ValueError(f"an asymmetric objective has no formula for its errors ({label!r}); use paired_bootstrap")
        if one.num_points <= len(one.law.parameters):
            raise ValueError(f"{label!r} has no run more than parameters, so nothing shows how its runs scatter")
        validate_own_minimum(one)
        tables[label] = Tables.of(one)
        names = sorted(one.law.variables)
        columns = [one.variables[name][tables[label].points.order].tolist() for name in names]
        numbers = {cell: k for k, cell in enumerate(zip(*columns, strict=True))}
        if len(numbers) < one.num_points:
            raise ValueError(
                f"{label!r} has several runs of one cell, and which of them pair is not told; use paired_bootstrap"
            )
        cells[label] = numbers
    rows, correlation, shared = {}, {}, {}
    for a, b in itertools.permutations(fits, 2):
        common = sorted(set(cells[a]) & set(cells[b]))
        if len(common) < MIN_SHARED:
            raise ValueError(f"{a!r} and {b!r} have {len(common)} cells in common; a pair takes {MIN_SHARED}")
        rows[a, b] = (np.array([cells[a][cell] for cell in common]), np.array([cells[b][cell] for cell in common]))
        correlation[a, b] = float(correlation_of(tables[a], tables[b], *rows[a, b])[0])
        shared[a, b] = len(common)
    return PairedDifferences(dict(fits), level, correlation, shared, tables, rows)


def difference(
    one: Tables, two: Tables, rows_one: np.ndarray, rows_two: np.ndarray, a: Quantity, b: Quantity
) -> Estimates:
    """`a` of the first tables less `b` of the second, `[T]`; the rows `[cells]` of both stand for the same cells."""
    spreads = [scatter(tables).variance for tables in (one, two)]
    parts = []
    for tables, quantity in ((one, a), (two, b)):
        slope = np.where(tables.free, quantity.gradient(tables.theta), 0.0)
        jacobian = tables.linear[1]
        weights = np.ones(len(tables.points)) if tables.points.weights is None else tables.points.weights
        bread = inverse((jacobian.swapaxes(-1, -2) * weights) @ jacobian)
        # What each run's error moves the quantity by, [T, m].
        parts.append(np.einsum("tmp,tpq,tq->tm", jacobian, bread, slope) * weights)
    variance = spreads[0] * (parts[0] ** 2).sum(axis=-1) + spreads[1] * (parts[1] ** 2).sum(axis=-1)
    cross = (parts[0][:, rows_one] * parts[1][:, rows_two]).sum(axis=-1) * np.sqrt(spreads[0] * spreads[1])
    variance = variance - 2 * correlation_of(one, two, rows_one, rows_two) * cross
    value = a.value(one.theta) - b.value(two.theta)
    return Estimates(value, np.sqrt(np.maximum(variance, 0.0)), float(min(one.freedom, two.freedom)))


def correlation_of(one: Tables, two: Tables, rows_one: np.ndarray, rows_two: np.ndarray) -> np.ndarray:
    """Of the clipped residuals over the common cells, `[T]`."""
    clipped = []
    for tables, rows in ((one, rows_one), (two, rows_two)):
        residual = tables.linear[0][:, rows]
        core = np.inf if tables.objective == "mse" else solver.LAD_DELTA if tables.objective == "lad" else tables.delta
        clipped.append(np.clip(residual, -core, core))
    sizes = np.sqrt((clipped[0] ** 2).sum(axis=-1) * (clipped[1] ** 2).sum(axis=-1))
    return np.asarray((clipped[0] * clipped[1]).sum(axis=-1) / np.where(sizes > 0, sizes, 1.0))
