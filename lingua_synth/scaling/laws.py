"""Scaling laws: loss as a constant plus terms that fall with model size N and training tokens D.

A law is a small object that knows its formula, its parameters, how to predict, and its exact derivatives; it holds no
data and no fitted numbers. Every law here is a *constant plus power-law terms*, so one class computes them all and a
new one is a few lines: name the constant, and for each term its coefficient and the exponent of each variable.

N: parameters of the model (which count: the fit says). D: training tokens, repeats counted. E: irreducible loss in nats
per token. Three different E's are three names: `E` (joint), `E_at_N` (at fixed N), `E_at_D` (at fixed D).

Sources: the joint form is that of Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", approach 3;
the interaction form, where the exponent of N on the data term lets larger models learn more from a token, is the
six-parameter law that predicted held-out budgets best on the public run tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

ArrayLike: TypeAlias = float | Sequence[float] | np.ndarray
Params: TypeAlias = Mapping[str, float] | np.ndarray
"""Parameters by name, or an array whose last axis follows `law.parameters`."""

EXPONENT_BOUNDS = (0.001, 3.0)
"""Range of alpha and beta. Published exponents lie in 0.05-1; at the ends a term is a constant or a step."""
INTERACTION_BOUNDS = (-2.0, 2.0)
"""Range of c, which may have either sign."""


@dataclass(frozen=True)
class Term:
    """`coefficient / product(variable ** exponent)`."""

    coefficient: str
    exponents: tuple[tuple[str, str], ...]
    """Pairs (variable, name of its exponent)."""


class Law:
    """A constant plus power-law terms; subclasses only declare the names."""

    name: ClassVar[str]
    formula: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    variables: ClassVar[tuple[str, ...]]
    """Which of N and D the law depends on."""
    constant: ClassVar[str]
    """The parameter that is the irreducible loss."""
    terms: ClassVar[tuple[Term, ...]]
    bounds: ClassVar[dict[str, tuple[float, float]]]
    """Lowest and highest value of every parameter: no negative loss, no term that grows."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents, in parameter order."""
        return tuple(name for name in self.parameters if name not in self.coefficients and name != self.constant)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of the coefficients, in term order."""
        return tuple(term.coefficient for term in self.terms)

    def predict(self, params: Params, N: ArrayLike | None = None, D: ArrayLike | None = None) -> np.ndarray:
        """Loss at (N, D), in the unit of the constant.

        N and D broadcast against each other. With `params` as an array `[..., p]` (one row a resample) the result is
        `[..., *shape of the points]`. ValueError for a variable the law needs and does not get, or gets and does not
        know, and for values that are not positive.
        """
        theta = self.as_array(params)
        logs, shape = self.log_points(N, D)
        value = self._spread(theta, self.constant) + sum(self._term(theta, term, logs) for term in self.terms)
        return value.reshape(theta.shape[:-1] + shape)[()]

    def gradient(self, params: Params, N: ArrayLike | None = None, D: ArrayLike | None = None) -> np.ndarray:
        """Derivatives of `predict` by every parameter, on a last axis of length p; exact, not by differences."""
        theta = self.as_array(params)
        logs, shape = self.log_points(N, D)
        points = int(np.prod(shape))
        result = np.zeros((*theta.shape[:-1], points, len(self.parameters)))
        result[..., self.parameters.index(self.constant)] = 1.0
        for term in self.terms:
            share = self._power(theta, term, logs)
            result[..., self.parameters.index(term.coefficient)] = share
            value = self._spread(theta, term.coefficient) * share
            for variable, exponent in term.exponents:
                result[..., self.parameters.index(exponent)] -= logs[variable] * value
        return result.reshape(theta.shape[:-1] + shape + (len(self.parameters),))

    def solve_D(self, params: Params, loss: ArrayLike, N: ArrayLike | None = None) -> np.ndarray:
        """Training tokens D at which the law reaches `loss`: `(B / (N^c (loss - rest)))^(1 / beta)`.

        `inf` where `loss` lies at or below what remains of the law without its data term: out of reach for any budget.
        One set of parameters; `loss` and N broadcast. ValueError when the law has no data term, or its coefficient is
        0.
        """
        data = [term for term in self.terms if any(variable == "D" for variable, _ in term.exponents)]
        theta = self.as_array(params)
        assert theta.ndim == 1, "one set of parameters at a time"
        if len(data) != 1:
            raise ValueError(f"{type(self).__name__} has no data term, so no budget D follows from a loss")
        term = data[0]
        by_name = dict(zip(self.parameters, theta.tolist(), strict=True))
        if by_name[term.coefficient] <= 0:
            raise ValueError(
                f"{term.coefficient} of the fit is 0: its loss does not depend on D, so no budget follows from a loss"
            )
        loss = np.asarray(loss, dtype=np.float64)
        log_N = np.log(_positive(N, "N")) if "N" in self.variables else np.zeros(())
        rest = np.asarray(by_name[self.constant]) + sum(
            by_name[other.coefficient] * np.exp(-by_name[exponent] * log_N)
            for other in self.terms
            if other is not term
            for _, exponent in other.exponents
        )
        gap = loss - rest
        exponents = dict(term.exponents)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_D = np.log(by_name[term.coefficient]) - np.log(np.where(gap > 0, gap, np.nan))
            if "N" in exponents:
                log_D = log_D - by_name[exponents["N"]] * log_N
            D = np.exp(log_D / by_name[exponents["D"]])
        return np.where(gap > 0, D, np.inf)[()]

    # --- shared by the solver ---

    def as_array(self, params: Params) -> np.ndarray:
        """`params` as a float64 array whose last axis is in parameter order; ValueError names what is missing."""
        if isinstance(params, Mapping):
            if set(params) != set(self.parameters):
                raise ValueError(
                    f"{type(self).__name__} has parameters {', '.join(self.parameters)}; got {list(params)}"
                )
            return np.array([float(params[name]) for name in self.parameters])
        theta = np.asarray(params, dtype=np.float64)
        if theta.ndim < 1 or theta.shape[-1] != len(self.parameters):
            raise ValueError(
                f"{type(self).__name__} has {len(self.parameters)} parameters on the last axis; got shape {theta.shape}"
            )
        return theta

    def log_points(
        self, N: ArrayLike | None = None, D: ArrayLike | None = None
    ) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
        """ln of every variable, flat and broadcast, and the shape of the points."""
        given = {"N": N, "D": D}
        for name, value in given.items():
            if value is not None and name not in self.variables:
                raise ValueError(
                    f"{type(self).__name__} ({self.formula}) has no {name}; pass {' and '.join(self.variables)} only"
                )
        arrays = np.broadcast_arrays(*(_positive(given[name], name) for name in self.variables))
        return {name: np.log(array).reshape(-1) for name, array in zip(self.variables, arrays, strict=True)}, arrays[
            0
        ].shape

    def _spread(self, theta: np.ndarray, name: str) -> np.ndarray:
        return theta[..., self.parameters.index(name), None]

    def _power(self, theta: np.ndarray, term: Term, logs: Mapping[str, np.ndarray]) -> np.ndarray:
        """`1 / product(variable ** exponent)` at points given by their logs."""
        exponent = sum(self._spread(theta, name) * logs[variable] for variable, name in term.exponents)
        return np.exp(-np.asarray(exponent))

    def _term(self, theta: np.ndarray, term: Term, logs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._spread(theta, term.coefficient) * self._power(theta, term, logs)


class DataLaw(Law):
    """Loss against training tokens at one model size: `L = E_at_N + B/D^beta`."""

    name = "data"
    formula = "L = E_at_N + B/D^beta"
    parameters = ("E_at_N", "B", "beta")
    variables = ("D",)
    constant = "E_at_N"
    terms = (Term("B", (("D", "beta"),)),)
    bounds: ClassVar = {"E_at_N": (0.0, np.inf), "B": (0.0, np.inf), "beta": EXPONENT_BOUNDS}


class ModelLaw(Law):
    """Loss against model size at one training budget: `L = E_at_D + A/N^alpha`."""

    name = "model"
    formula = "L = E_at_D + A/N^alpha"
    parameters = ("E_at_D", "A", "alpha")
    variables = ("N",)
    constant = "E_at_D"
    terms = (Term("A", (("N", "alpha"),)),)
    bounds: ClassVar = {"E_at_D": (0.0, np.inf), "A": (0.0, np.inf), "alpha": EXPONENT_BOUNDS}


class JointLaw(Law):
    """Loss against both: `L = E + A/N^alpha + B/D^beta` (Hoffmann et al. 2022)."""

    name = "joint"
    formula = "L = E + A/N^alpha + B/D^beta"
    parameters = ("E", "A", "B", "alpha", "beta")
    variables = ("N", "D")
    constant = "E"
    terms = (Term("A", (("N", "alpha"),)), Term("B", (("D", "beta"),)))
    bounds: ClassVar = {
        "E": (0.0, np.inf), "A": (0.0, np.inf), "B": (0.0, np.inf), "alpha": EXPONENT_BOUNDS, "beta": EXPONENT_BOUNDS,
    }  # fmt: skip


class InteractionLaw(Law):
    """The joint law with a data term that depends on N too: `L = E + A/N^alpha + B/(D^beta N^c)`."""

    name = "interaction"
    formula = "L = E + A/N^alpha + B/(D^beta N^c)"
    parameters = ("E", "A", "B", "alpha", "beta", "c")
    variables = ("N", "D")
    constant = "E"
    terms = (Term("A", (("N", "alpha"),)), Term("B", (("D", "beta"), ("N", "c"))))
    bounds: ClassVar = {**JointLaw.bounds, "c": INTERACTION_BOUNDS}


def _positive(value: ArrayLike | None, name: str) -> np.ndarray:
    """`value` as a float array of finite positive numbers; ValueError says what is wrong."""
    if value is None:
        raise ValueError(f"{name} is needed and was not given")
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, got {value!r}") from None
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        raise ValueError(f"{name} must be positive and finite; got {array[wrong].flat[0]}")
    return array
