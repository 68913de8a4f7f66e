"""A law of your own: any function of parameters and variables becomes something `fit` can solve.

    law = FunctionLaw(
        "saturating", "L = E + B / (1 + (D/K)^beta)",
        parameters={"E": (0, np.inf), "B": (0, np.inf), "K": (1e7, 1e12), "beta": (0.05, 2)},
        variables=("D",),
        value=lambda p, v: p["E"] + p["B"] / (1 + (v["D"] / p["K"]) ** p["beta"]),
        linear=("E", "B"),
    )
    fit(law, D=tokens, loss=loss)

The function gets arrays that broadcast and should be written with numpy; one that takes plain numbers only is called
once a run. It is fitted in the units given: unlike the laws of `laws.py`, whose fits do not depend on units, a function
is searched inside the bounds and the grid that its author states, so state them in those units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lingua_synth.scaling.laws import ArrayLike, Law

Values = Mapping[str, Any]
COMPLEX_STEP = 1e-100
"""Imaginary step: no digits cancel, so it may be far below rounding."""
DIFFERENCE_STEP = 3e-4
"""Relative step of the fourth-order central differences: their error and rounding both stay near 1e-12."""


class FunctionLaw(Law):
    """`value(params, variables)` as a law.

    parameters: name -> (lowest, highest). variables: names of the columns; N, D and U must be positive. value: called
    with two dicts of arrays (parameters `[n, 1]`, variables `[m]`), gives losses `[n, m]`. gradient: the same call,
    gives a dict parameter -> derivative; without it derivatives are taken by a complex step where the function is
    analytic in numpy, else by central differences, and the fit says which. linear: parameters in which the value is
    linear. grid: nodes at which the others are tried at the start; default 7 to 18 over their bounds, spaced
    geometrically where the bounds are positive. constant: the parameter that is the irreducible loss, if any.

    ValueError for bounds that are empty, a parameter without a finite range and without a grid, and names that are
    not there.
    """

    def __init__(
        self,
        name: str,
        formula: str,
        parameters: Mapping[str, tuple[float, float]],
        variables: Sequence[str],
        value: Callable[[Values, Values], Any],
        gradient: Callable[[Values, Values], Mapping[str, Any]] | None = None,
        linear: Sequence[str] = (),
        grid: Mapping[str, ArrayLike] | None = None,
        constant: str = "",
    ) -> None:
        grid = dict(grid or {})
        unknown = [key for key in (*linear, *grid, *([constant] if constant else [])) if key not in parameters]
        if unknown:
            raise ValueError(f"{name} has parameters {', '.join(parameters)}; got {', '.join(unknown)} beside them")
        if not parameters or not variables:
            raise ValueError(f"{name} needs at least one parameter and one variable")
        for key, (low, high) in parameters.items():
            if not low < high:
                raise ValueError(f"bounds of {key} must be (lowest, highest), got ({low}, {high})")
            if key not in linear and key not in grid and not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(
                    f"{key} is not linear and its bounds are ({low}, {high}); give it finite bounds, or nodes to start "
                    f"from: grid={{{key!r}: [...]}}"
                )
        self.name, self.formula = name, formula  # type: ignore[misc]
        self.parameters, self.variables = tuple(parameters), tuple(variables)  # type: ignore[misc]
        self.bounds = {key: (float(low), float(high)) for key, (low, high) in parameters.items()}  # type: ignore[misc]
        self.linear = tuple(linear)  # type: ignore[misc]
        self.constant = constant  # type: ignore[misc]
        self._value, self._gradient = value, gradient
        self._grid = {key: np.atleast_1d(np.asarray(nodes, dtype=np.float64)) for key, nodes in grid.items()}
        for key, nodes in self._grid.items():
            low, high = self.bounds[key]
            if nodes.ndim != 1 or not np.all((nodes >= low) & (nodes <= high)):
                raise ValueError(f"the grid of {key} must lie within its bounds ({low:g}, {high:g})")
        self.derivatives = "given" if gradient is not None else ""
        self._by_points: bool | None = None

    def __repr__(self) -> str:
        return f"FunctionLaw({self.name!r}, {self.formula!r})"

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, FunctionLaw)
            and (self.name, self.formula, self.parameters, self.variables, self.bounds, self.linear)
            == (other.name, other.formula, other.parameters, other.variables, other.bounds, other.linear)
            and self._value is other._value
        )

    def __hash__(self) -> int:
        return hash((self.name, self.formula, self.parameters, self.variables))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def grid(self) -> Mapping[str, np.ndarray]:
        return {name: self._grid.get(name, _nodes(*self.bounds[name])) for name in self.parameters
                if name not in self.linear}  # fmt: skip

    def max_moves(self) -> np.ndarray:
        low, high = np.array([self.bounds[name] for name in self.parameters]).T
        return np.where([name in self.linear for name in self.parameters], np.inf, 0.25 * (high - low))

    def value(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> np.ndarray:
        variables = self._variables(points)
        return np.real(self._call(np.asarray(theta, dtype=np.float64), variables))

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        theta = np.asarray(theta, dtype=np.float64)
        variables = self._variables(points)
        value = np.real(self._call(theta, variables))
        if self._gradient is not None:
            given = self._gradient(self._named(theta), variables)
            if set(given) != set(self.parameters):
                raise ValueError(
                    f"the gradient of {self.name} must have {', '.join(self.parameters)}; got {set(given)}"
                )
            columns = [np.broadcast_to(np.asarray(given[name], dtype=np.float64), value.shape)
                       for name in self.parameters]  # fmt: skip
            return value, np.stack(columns, axis=-2)
        if not self.derivatives:
            self.derivatives = "complex step" if self._is_analytic(theta, variables, value) else "central differences"
        if self.derivatives == "complex step":
            return value, self._complex_step(theta, variables)
        return value, self._differences(theta, variables)

    # --- inside ---

    def _named(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        return {name: theta[:, k, None] for k, name in enumerate(self.parameters)}

    def _variables(self, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.exp(points[name]) if name in self.logged else points[name] for name in self.variables}

    def _call(self, theta: np.ndarray, variables: Mapping[str, np.ndarray]) -> np.ndarray:
        """The function at every row of `theta` and every point, `[n, m]`; NaN where it is not defined."""
        shape = (len(theta), len(next(iter(variables.values()))))
        with np.errstate(all="ignore"):
            if self._by_points is not True:
                try:
                    answer = np.asarray(self._value(self._named(theta), variables))
                    whole = np.array(np.broadcast_to(answer, shape))
                    if whole.dtype.kind in "fciu":
                        self._by_points = False
                        return whole if whole.dtype.kind == "c" else whole.astype(np.float64)
                except (TypeError, ValueError):
                    if self._by_points is False:
                        raise
            result = np.empty(shape, dtype=theta.dtype)
            for i in range(shape[0]):
                params = dict(zip(self.parameters, theta[i].tolist(), strict=True))
                for j in range(shape[1]):
                    try:
                        result[i, j] = self._value(params, {name: float(array[j]) for name, array in variables.items()})
                    except ArithmeticError:
                        result[i, j] = np.nan
            self._by_points = True
            return result

    def _complex_step(self, theta: np.ndarray, variables: Mapping[str, np.ndarray]) -> np.ndarray:
        columns = []
        for k in range(theta.shape[1]):
            moved = theta.astype(np.complex128)
            moved[:, k] += 1j * COMPLEX_STEP
            columns.append(np.imag(self._call(moved, variables)) / COMPLEX_STEP)
        return np.stack(columns, axis=-2)

    def _differences(self, theta: np.ndarray, variables: Mapping[str, np.ndarray]) -> np.ndarray:
        """Fourth-order central differences, one-sided near a bound, where the function may not be defined beyond."""
        columns = []
        for k, name in enumerate(self.parameters):
            low, high = self.bounds[name]
            size = np.abs(theta[:, k])
            width = high - low if math.isfinite(high - low) else 1.0
            step = DIFFERENCE_STEP * np.where(size > 0, size, min(1.0, width))
            # At a bound the stencil is moved inside by two steps, and read off at the bound by the same polynomial.
            centre = np.clip(theta[:, k], low + 2 * step, np.maximum(high - 2 * step, low + 2 * step))
            offsets = np.arange(-2.0, 3.0)
            at = (theta[:, k] - centre) / step
            total = np.zeros((len(theta), len(next(iter(variables.values())))))
            for i, offset in enumerate(offsets):
                moved = theta.copy()
                moved[:, k] = centre + offset * step
                total += _slope_weight(at, i, offsets)[:, None] * np.real(self._call(moved, variables))
            columns.append(total / step[:, None])
        return np.stack(columns, axis=-2)

    def _is_analytic(self, theta: np.ndarray, variables: Mapping[str, np.ndarray], value: np.ndarray) -> bool:
        """Whether the complex step works for this function and agrees with differences, at one row of `theta`."""
        sound = np.flatnonzero(np.isfinite(value).all(axis=-1))
        if self._by_points or len(sound) == 0:
            return False
        # Away from 0, where a function such as |x| would hide that it is not analytic.
        row = theta[sound[len(sound) // 2]][None]
        try:
            with np.errstate(all="ignore"):
                exact = self._complex_step(row, variables)
        except (TypeError, ValueError):
            self._by_points = False
            return False
        differences = self._differences(row, variables)
        scale = np.abs(differences).max(axis=-1, keepdims=True)
        return bool(np.isfinite(exact).all() and np.all(np.abs(exact - differences) <= 1e-5 * scale + 1e-12))


def _slope_weight(at: np.ndarray, i: int, offsets: np.ndarray) -> np.ndarray:
    """Derivative at `at` of the Lagrange polynomial that is 1 at `offsets[i]` and 0 at the others."""
    others = [x for j, x in enumerate(offsets) if j != i]
    slope = np.zeros_like(at)
    for left in range(len(others)):
        slope += np.prod([at - x for j, x in enumerate(others) if j != left], axis=0)
    return slope / np.prod([offsets[i] - x for x in others])


def _nodes(low: float, high: float) -> np.ndarray:
    if not (math.isfinite(low) and math.isfinite(high)):
        return np.empty(0)
    if low > 0:
        return np.geomspace(low, high, 18)
    return np.linspace(low, high, 9)
