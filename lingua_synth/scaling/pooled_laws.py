"""Two laws around a law, which let the solver fit several mixtures together. For `pooled.py` alone.

`SharedExponents` is one law for the runs of all mixtures: exponents are shared, the constant and the coefficients are
each mixture's own. `ExponentPrior` is the law of one mixture with a penalty on the distance of its exponents from the
mean of all mixtures, written as one more point per exponent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from lingua_synth.scaling.laws import Law


class _DerivedLaw(Law):
    """A law made of another one: what a class states of a law, an instance states here."""

    variables: tuple[str, ...]  # type: ignore[misc]
    parameters: tuple[str, ...]  # type: ignore[misc]
    linear: tuple[str, ...]  # type: ignore[misc]
    bounds: dict[str, tuple[float, float]]  # type: ignore[misc]
    rescales: bool  # type: ignore[misc]
    formula: str  # type: ignore[misc]


class SharedExponents(_DerivedLaw):
    """The runs of `num` mixtures under one law; the variable `mixture` (0, 1, ...) says whose run it is.

    Parameters: the linear ones of mixture 0, of mixture 1, ..., then what all share.
    """

    name: ClassVar[str] = "shared exponents"

    def __init__(self, base: Law, num: int) -> None:
        self.base, self.num = base, num
        self.own = [base.parameters.index(name) for name in base.linear]
        self.common = [k for k in range(len(base.parameters)) if k not in self.own]
        linear = [f"{base.parameters[k]} of {m}" for m in range(num) for k in self.own]
        self.variables = (*base.variables, "mixture")
        self.parameters = (*linear, *(base.parameters[k] for k in self.common))
        self.linear = tuple(linear)
        self.bounds = {name: base.bounds[base.parameters[self.column(k)]] for k, name in enumerate(self.parameters)}
        self.rescales = base.rescales
        self.formula = f"{base.formula}, exponents shared by {num} mixtures"

    def column(self, k: int) -> int:
        """The parameter of the base law that parameter k is."""
        split = self.num * len(self.own)
        return self.own[k % len(self.own)] if k < split else self.common[k - split]

    def columns_of(self, mixture: int) -> list[int]:
        """Where the parameters of one mixture stand, in the order of the base law."""
        at = {own: mixture * len(self.own) + j for j, own in enumerate(self.own)}
        at |= {common: self.num * len(self.own) + j for j, common in enumerate(self.common)}
        return [at[k] for k in range(len(self.base.parameters))]

    @property
    def log_moved(self) -> tuple[str, ...]:
        moved = {self.base.parameters.index(name) for name in self.base.log_moved}
        return tuple(name for k, name in enumerate(self.parameters) if self.column(k) in moved)

    def max_moves(self) -> np.ndarray:
        limits = self.base.max_moves()
        return np.array([limits[self.column(k)] for k in range(len(self.parameters))])

    def grid(self) -> Mapping[str, np.ndarray]:
        return self.base.grid()

    def centres(self, points: Mapping[str, np.ndarray]) -> dict[str, float]:
        return self.base.centres(points)

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = np.array(theta, dtype=np.float64)
        for mixture in range(self.num):
            at = self.columns_of(mixture)
            params[..., at] = self.base.to_params(np.asarray(theta)[..., at], centres, log_scale)
        return params

    def to_theta(self, params: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        theta = np.array(params, dtype=np.float64)
        for mixture in range(self.num):
            at = self.columns_of(mixture)
            theta[..., at] = self.base.to_theta(np.asarray(params)[..., at], centres, log_scale)
        return theta

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        num_points = len(points["mixture"])
        value = np.empty((len(theta), num_points))
        jacobian = np.zeros((len(theta), len(self.parameters), num_points))
        for mixture, rows, own in self._parts(points):
            at = self.columns_of(mixture)
            part, slopes = self.base.value_and_jacobian(theta[:, at], own)
            value[:, rows] = part
            jacobian[:, np.array(at)[:, None], rows] = slopes
        return value, jacobian

    def value(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> np.ndarray:
        value = np.empty((len(theta), len(points["mixture"])))
        for mixture, rows, own in self._parts(points):
            value[:, rows] = self.base.value(theta[:, self.columns_of(mixture)], own)
        return value

    def curvature(
        self, theta: np.ndarray, points: Mapping[str, np.ndarray], jacobian: np.ndarray, pull: np.ndarray
    ) -> np.ndarray | None:
        extra = np.zeros((len(theta), len(self.parameters), len(self.parameters)))
        for mixture, rows, own in self._parts(points):
            at = np.array(self.columns_of(mixture))
            part = self.base.curvature(theta[:, at], own, jacobian[:, at[:, None], rows], pull[:, rows])
            if part is None:
                return None
            extra[:, at[:, None], at] += part
        return extra

    def _parts(self, points: Mapping[str, np.ndarray]) -> list[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
        parts = []
        for mixture in range(self.num):
            rows = np.flatnonzero(points["mixture"] == mixture)
            parts.append((mixture, rows, {name: points[name][rows] for name in self.base.variables}))
        return parts


class ExponentPrior(_DerivedLaw):
    """The law of one mixture, and a point per exponent whose log residual is `step * (exponent - centre)`.

    With weight w and a quadratic core that point adds `w step^2 (exponent - centre)^2 / 2` to the objective: the
    logarithm of a normal density. The centres follow the base law's parameters; they have no derivatives, so no
    descent moves them, and every descent may have its own. The variable `prior` is 0 for a run, j for exponent j.
    """

    name: ClassVar[str] = "exponents under a prior"

    def __init__(self, base: Law, step: float) -> None:
        self.base, self.step = base, step
        self.num_own = len(base.parameters)
        self.pooled = [k for k, name in enumerate(base.parameters) if name not in base.linear]
        self.variables = (*base.variables, "prior")
        self.parameters = (*base.parameters, *(f"centre of {base.parameters[k]}" for k in self.pooled))
        self.linear = base.linear
        self.bounds = dict(base.bounds) | dict.fromkeys(self.parameters[self.num_own :], (-np.inf, np.inf))
        self.rescales = base.rescales
        self.formula = base.formula

    @property
    def log_moved(self) -> tuple[str, ...]:
        return self.base.log_moved

    def max_moves(self) -> np.ndarray:
        return np.append(self.base.max_moves(), np.full(len(self.pooled), np.inf))

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        runs, own = self._runs(points)
        value = np.empty((len(theta), len(points["prior"])))
        jacobian = np.zeros((len(theta), theta.shape[1], len(points["prior"])))
        value[:, runs], jacobian[:, : self.num_own, runs] = self.base.value_and_jacobian(theta[:, : self.num_own], own)
        for j, k in enumerate(self.pooled):
            rows = points["prior"] == j + 1
            pseudo = np.exp(self.step * (theta[:, k] - theta[:, self.num_own + j]))[:, None]
            value[:, rows] = pseudo
            jacobian[:, k, rows] = self.step * pseudo
        return value, jacobian

    def curvature(
        self, theta: np.ndarray, points: Mapping[str, np.ndarray], jacobian: np.ndarray, pull: np.ndarray
    ) -> np.ndarray | None:
        runs, own = self._runs(points)
        inner = self.base.curvature(theta[:, : self.num_own], own, jacobian[:, : self.num_own, runs], pull[:, runs])
        if inner is None:
            return None
        extra = np.zeros((len(theta), theta.shape[1], theta.shape[1]))
        extra[:, : self.num_own, : self.num_own] = inner
        for j, k in enumerate(self.pooled):
            rows = points["prior"] == j + 1
            extra[:, k, k] += self.step * (pull[:, rows] * jacobian[:, k, rows]).sum(axis=-1)
        return extra

    def _runs(self, points: Mapping[str, np.ndarray]) -> tuple[slice, dict[str, np.ndarray]]:
        # Runs stand before the points of the prior.
        num = int((points["prior"] == 0).sum())
        return slice(0, num), {name: points[name][:num] for name in self.base.variables}
