"""Scaling laws: loss as a function of model size N, training tokens D and whatever else a run varies.

A law is a small object that knows its formula, its parameters, how to predict, and its derivatives; it holds no data
and no fitted numbers. `Law` is the interface the solver needs: names, bounds, `value_and_jacobian`. `PowerLaw` is a
*constant plus power-law terms*; a new one is a few lines: name the constant, and for each term its coefficient and the
exponent of each variable. Laws of another shape write their own `value_and_jacobian`, or are a `FunctionLaw` around any
function (`function_law.py`).

N: parameters of the model (which count: the fit says). D: training tokens, repeats counted. U: unique tokens. E:
irreducible loss in nats per token. Three different E's are three names: `E` (joint), `E_at_N` (at fixed N), `E_at_D`
(at fixed D).

Sources: the joint form is that of Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", approach 3;
the interaction form, where the exponent of N on the data term lets larger models learn more from a token, is the
six-parameter law that predicted held-out budgets best on the public run tables; Kaplan et al. 2020, "Scaling Laws for
Neural Language Models", equation 1.5; Gadre et al. 2024, "Language models scale reliably with over-training and on
downstream tasks", whose law in compute and tokens per parameter is `TiedLaw` in other letters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
POSITIVE_VARIABLES = ("N", "D", "U")
"""Variables that are counts; they enter a law by their logarithm."""


@dataclass(frozen=True)
class Term:
    """`coefficient / product(variable ** exponent)`."""

    coefficient: str
    exponents: tuple[tuple[str, str], ...]
    """Pairs (variable, name of its exponent)."""


class Law(ABC):
    """What the solver asks of a law; subclasses declare the names and write `value_and_jacobian`.

    **Points.** A dict `{variable: [m]}`: the natural logarithm of the variables in `logged`, the plain value of the
    others (a ratio r may be 0). Before a fit the solver subtracts `centres` from the logarithms and divides losses by
    their geometric mean, if the law says by `to_theta` / `to_params` how its parameters follow; so `value_and_jacobian`
    must be right in any unit of the variables that have a centre other than 0.

    **Shapes.** `theta` is `[n, p]` (n sets of parameters at once, in the order of `parameters`), values are `[n, m]`,
    Jacobians `[n, p, m]`.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    variables: ClassVar[tuple[str, ...]]
    """Named columns of a run that the law depends on: N, D, U, r, ratio_<source>."""
    bounds: ClassVar[dict[str, tuple[float, float]]]
    """Lowest and highest value of every parameter. Of a parameter that `to_theta` rescales, 0 or infinite."""
    constant: ClassVar[str] = ""
    """The parameter that is the irreducible loss; empty for a law without one."""
    linear: ClassVar[tuple[str, ...]] = ()
    """Parameters in which the value is linear, all else fixed (so that their columns of the Jacobian are their basis).
    At the start they are solved for instead of searched: non-negative where their lower bound is 0, else free."""
    terms: ClassVar[tuple[Term, ...]] = ()
    """The terms, where the law is a constant plus power-law terms (`PowerLaw`)."""
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    """Parameters for which their bound 0 is an answer like any other (a shift that is not there)."""
    weak_beyond: ClassVar[Mapping[str, float]] = {}
    """The widest first-order 95 % interval with which a parameter still counts as known; beyond it a fit warns. Of the
    parameters in `log_moved` the quotient of the ends, of others their distance."""
    derivatives: str = "exact"
    """How the Jacobian is computed; a fit says so when it is not exact."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    # --- for a law to write ---

    @abstractmethod
    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Losses `[n, m]` and their derivatives by the parameters `[n, p, m]`. A loss that is not positive or finite
        tells the solver to keep out."""

    def value(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> np.ndarray:
        """Losses `[n, m]` alone; a law may have a faster way."""
        return self.value_and_jacobian(theta, points)[0]

    def curvature(
        self, theta: np.ndarray, points: Mapping[str, np.ndarray], jacobian: np.ndarray, pull: np.ndarray
    ) -> np.ndarray | None:
        """`sum over points of pull * (second derivatives of the value)`, `[n, p, p]`; `pull` is `[n, m]`.

        `jacobian` is that of the value at `theta`. None (the default): the descent is of Gauss-Newton's kind, slower
        at a minimum with large residuals and to the same minimum.
        """
        return None

    def grid(self) -> Mapping[str, np.ndarray]:
        """Nodes of each parameter that is not linear, in working units, for the start of a fit.

        Default: 18 nodes from 0.02 to 2 for exponents that are positive, else 7 over the bounds (from -0.5 to 0.5 when
        those are wider); a law whose parameters are of another size says its own. More than `solver.MAX_NODES` nodes
        in the product are thinned out evenly.
        """
        return {name: _default_nodes(*self.bounds[name]) for name in self.parameters if name not in self.linear}

    @property
    def logged(self) -> tuple[str, ...]:
        """Variables that must be positive and enter by their logarithm."""
        return tuple(name for name in self.variables if name in POSITIVE_VARIABLES)

    def centres(self, points: Mapping[str, np.ndarray]) -> dict[str, float]:
        """What is subtracted from the logarithm of each logged variable before a fit: 0 unless the law knows how its
        parameters follow."""
        return dict.fromkeys(self.logged, 0.0)

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        """Working parameters in the caller's units: those of `exp(log_scale) * value` at points that are not
        centred. `log_scale` is 0 unless `rescales`."""
        return np.array(theta, dtype=np.float64)

    def to_theta(self, params: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        """The inverse of `to_params`: by default the same step backwards, which serves where the parameters that say
        how far another is moved are not moved themselves."""
        return self.to_params(params, {name: -centre for name, centre in centres.items()}, -log_scale)

    rescales: ClassVar[bool] = False
    """Whether `to_params` and `to_theta` follow a factor on the loss; then the fit is invariant to its unit."""

    @property
    def log_moved(self) -> tuple[str, ...]:
        """Parameters that stay positive and may be moved by their logarithm: the coefficients whose bound is 0."""
        return tuple(name for name in self.coefficients if self.bounds[name][0] == 0)

    def max_moves(self) -> np.ndarray:
        """The farthest one step may move each parameter, `[p]`: 0.5 for what has no wider bounds, else a quarter of
        the range; no limit for linear parameters."""
        low, high = np.array([self.bounds[name] for name in self.parameters]).T
        limit = np.maximum(0.5, 0.25 * (high - low))
        return np.where([name in self.linear for name in self.parameters], np.inf, limit)

    def validate_points(self, points: Mapping[str, np.ndarray]) -> None:  # noqa: B027 - most laws take any value
        """Raise ValueError for values the law has no meaning for (e.g. ratios that exceed 1)."""

    def rivals(self) -> tuple[Law, ...]:
        """Laws of another form for the same runs, under which a fit shows its irreducible loss too."""
        return ()

    # --- for everyone ---

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the parameters that are neither the constant nor a coefficient, in parameter order."""
        return tuple(name for name in self.parameters if name not in self.coefficients and name != self.constant)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of the linear parameters but the constant."""
        return tuple(name for name in self.linear if name != self.constant)

    def predict(
        self, params: Params, N: ArrayLike | None = None, D: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> np.ndarray:
        """Loss at (N, D, ...), in the unit of the fit.

        Variables broadcast against each other. With `params` as an array `[..., p]` (one row a resample) the result is
        `[..., *shape of the points]`. ValueError for a variable the law needs and does not get, or gets and does not
        know, and for values that are not positive where they must be.
        """
        theta = self.as_array(params)
        logs, shape = self.log_points(N, D, **variables)
        value = self.value(theta.reshape(-1, theta.shape[-1]), logs)
        return value.reshape(theta.shape[:-1] + shape)[()]

    def gradient(
        self, params: Params, N: ArrayLike | None = None, D: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> np.ndarray:
        """Derivatives of `predict` by every parameter, on a last axis of length p; see `derivatives` for how."""
        theta = self.as_array(params)
        logs, shape = self.log_points(N, D, **variables)
        jacobian = self.value_and_jacobian(theta.reshape(-1, theta.shape[-1]), logs)[1]
        return jacobian.swapaxes(-1, -2).reshape(theta.shape[:-1] + shape + (len(self.parameters),))

    def solve_D(
        self, params: Params, loss: ArrayLike, N: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> np.ndarray:
        """Training tokens D at which the law reaches `loss`, by bisection between 1 and 1e40 tokens.

        The least of them where a law turns up again; `inf` where no D up to 1e40 does: out of reach. One set of
        parameters; `loss` and the variables broadcast. ValueError when the law has no D.
        """
        theta = self.as_array(params)
        assert theta.ndim == 1, "one set of parameters at a time"
        if "D" not in self.variables:
            raise ValueError(f"{type(self).__name__} has no data term, so no budget D follows from a loss")
        loss = np.asarray(loss, dtype=np.float64)
        fixed = {name: value for name, value in {"N": N, **variables}.items() if value is not None}
        shape = np.broadcast_shapes(loss.shape, *(np.shape(value) for value in fixed.values()))
        high = np.full(shape, 40 * np.log(10.0))

        def at(log_D: np.ndarray) -> np.ndarray:
            return self.predict(theta, **{**fixed, "D": np.exp(log_D)})

        # A law may turn up again far out: look for the first of 400 budgets that reaches the loss.
        reached = np.zeros(shape, dtype=bool)
        for log_D in np.linspace(0.0, 40 * np.log(10.0), 401):
            first = ~reached & (at(np.full(shape, log_D)) <= loss)
            high = np.where(first, log_D, high)
            reached |= first
        low = np.maximum(high - 0.1 * np.log(10.0), 0.0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = at(middle) > loss
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.where(reached, np.exp(0.5 * (low + high)), np.inf)[()]

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
        self, N: ArrayLike | None = None, D: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
        """The points of every variable, flat and broadcast (ln of the logged ones), and the shape of the points."""
        given = {"N": N, "D": D, **variables}
        for name, value in given.items():
            if value is not None and name not in self.variables:
                raise ValueError(
                    f"{type(self).__name__} ({self.formula}) has no {name}; pass {' and '.join(self.variables)} only"
                )
        arrays = np.broadcast_arrays(*(self.check_variable(given.get(name), name) for name in self.variables))
        columns = {
            name: (np.log(array) if name in self.logged else np.array(array)).reshape(-1)
            for name, array in zip(self.variables, arrays, strict=True)
        }
        self.validate_points(columns)
        return columns, arrays[0].shape

    def check_variable(self, value: ArrayLike | None, name: str) -> np.ndarray:
        """`value` as floats: positive and finite for a logged variable, else finite; ValueError says what is wrong."""
        return _positive(value, name) if name in self.logged else _finite(value, name)

    def _spread(self, theta: np.ndarray, name: str) -> np.ndarray:
        return theta[..., self.parameters.index(name), None]


class PowerLaw(Law):
    """A constant plus power-law terms, with exact first and second derivatives; subclasses only declare the names.

    A fit is invariant to the unit of every variable and of the loss: it is done on centred logarithms.
    """

    rescales = True

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of the coefficients, in term order."""
        return tuple(term.coefficient for term in self.terms)

    @property
    def linear(self) -> tuple[str, ...]:  # type: ignore[override]
        """The constant and the coefficients."""
        return (self.constant, *self.coefficients)

    def max_moves(self) -> np.ndarray:
        return np.where([name in self.exponents for name in self.parameters], 0.5, np.inf)

    def value(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._spread(theta, self.constant) + sum(self._term(theta, term, points) for term in self.terms)

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        shares = [self._power(theta, term, points) for term in self.terms]
        values = [self._spread(theta, term.coefficient) * share for term, share in zip(self.terms, shares, strict=True)]
        jacobian = np.empty((len(theta), len(self.parameters), values[0].shape[-1]))
        jacobian[:, self.parameters.index(self.constant)] = 1.0
        seen: set[int] = set()
        for term, share, value in zip(self.terms, shares, values, strict=True):
            jacobian[:, self.parameters.index(term.coefficient)] = share
            for variable, name in term.exponents:
                k = self.parameters.index(name)
                row = -points[variable] * value
                jacobian[:, k] = jacobian[:, k] + row if k in seen else row
                seen.add(k)
        return self._spread(theta, self.constant) + sum(values), jacobian

    def curvature(
        self, theta: np.ndarray, points: Mapping[str, np.ndarray], jacobian: np.ndarray, pull: np.ndarray
    ) -> np.ndarray:
        """Exact. Second derivatives only touch a term's own parameters."""
        p = len(self.parameters)
        extra = np.zeros((len(theta), p, p))
        for term in self.terms:
            at = self.parameters.index(term.coefficient)
            share = jacobian[:, at]
            value = self._spread(theta, term.coefficient) * share
            moved = pull * value
            for variable, name in term.exponents:
                k = self.parameters.index(name)
                cross = -(pull * share) @ points[variable]
                extra[:, at, k] += cross
                extra[:, k, at] += cross
                for other_variable, other_name in term.exponents:
                    j = self.parameters.index(other_name)
                    extra[:, k, j] += moved @ (points[variable] * points[other_variable])
        return extra

    def centres(self, points: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: float(np.mean(points[name])) for name in self.logged}

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = np.array(theta, dtype=np.float64)
        scale = np.exp(log_scale)
        params[..., self.parameters.index(self.constant)] *= scale
        for term, shift in self._shifts(params, centres):
            # A term that is absent stays absent: 0 times an overflow would be NaN.
            coefficient = params[..., term]
            with np.errstate(over="ignore"):
                params[..., term] = np.where(coefficient > 0, coefficient * scale * np.exp(shift), 0.0)
        return params

    def to_theta(self, params: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        theta = np.array(params, dtype=np.float64)
        scale = np.exp(log_scale)
        theta[..., self.parameters.index(self.constant)] /= scale
        for term, shift in self._shifts(theta, centres):
            theta[..., term] = theta[..., term] / scale * np.exp(-shift)
        return theta

    def solve_D(
        self, params: Params, loss: ArrayLike, N: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> np.ndarray:
        """Training tokens D at which the law reaches `loss`: `(B / (N^c (loss - rest)))^(1 / beta)`.

        `inf` where `loss` lies at or below what remains of the law without its data term: out of reach for any budget.
        One set of parameters; `loss` and N broadcast. ValueError when the law has no data term, or its coefficient is
        0.
        """
        data = [term for term in self.terms if any(variable == "D" for variable, _ in term.exponents)]
        theta = self.as_array(params)
        assert theta.ndim == 1, "one set of parameters at a time"
        if len(data) > 1:
            return super().solve_D(params, loss, N, **variables)
        if not data:
            raise ValueError(f"{type(self).__name__} has no data term, so no budget D follows from a loss")
        term = data[0]
        by_name = dict(zip(self.parameters, theta.tolist(), strict=True))
        if by_name[term.coefficient] <= 0:
            raise ValueError(
                f"{term.coefficient} of the fit is 0: its loss does not depend on D, so no budget follows from a loss"
            )
        loss = np.asarray(loss, dtype=np.float64)
        given = {"N": N, **variables}
        logs = {name: np.log(self.check_variable(given.get(name), name)) for name in self.variables if name != "D"}

        def power(other: Term) -> np.ndarray:
            return np.asarray(sum(by_name[exponent] * logs[name] for name, exponent in other.exponents if name != "D"))

        rest = np.asarray(by_name[self.constant]) + sum(
            by_name[other.coefficient] * np.exp(-power(other)) for other in self.terms if other is not term
        )
        gap = loss - rest
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_D = np.log(by_name[term.coefficient]) - np.log(np.where(gap > 0, gap, np.nan)) - power(term)
            D = np.exp(log_D / by_name[dict(term.exponents)["D"]])
        return np.where(gap > 0, D, np.inf)[()]

    def _shifts(self, params: np.ndarray, centres: Mapping[str, float]) -> list[tuple[int, np.ndarray]]:
        """(index of the coefficient, ln of coefficient over centred coefficient) of every term."""
        shifts = []
        for term in self.terms:
            shift = np.zeros(params.shape[:-1])
            for variable, exponent in term.exponents:
                shift = shift + params[..., self.parameters.index(exponent)] * centres[variable]
            shifts.append((self.parameters.index(term.coefficient), shift))
        return shifts

    def _power(self, theta: np.ndarray, term: Term, logs: Mapping[str, np.ndarray]) -> np.ndarray:
        """`1 / product(variable ** exponent)` at points given by their logs."""
        exponent = sum(self._spread(theta, name) * logs[variable] for variable, name in term.exponents)
        return np.exp(-np.asarray(exponent))

    def _term(self, theta: np.ndarray, term: Term, logs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._spread(theta, term.coefficient) * self._power(theta, term, logs)


class DataLaw(PowerLaw):
    """Loss against training tokens at one model size: `L = E_at_N + B/D^beta`."""

    name = "data"
    formula = "L = E_at_N + B/D^beta"
    parameters = ("E_at_N", "B", "beta")
    variables = ("D",)
    constant = "E_at_N"
    terms = (Term("B", (("D", "beta"),)),)
    bounds: ClassVar = {"E_at_N": (0.0, np.inf), "B": (0.0, np.inf), "beta": EXPONENT_BOUNDS}

    def rivals(self) -> tuple[Law, ...]:
        return (RectifiedLaw(),)


class ModelLaw(PowerLaw):
    """Loss against model size at one training budget: `L = E_at_D + A/N^alpha`."""

    name = "model"
    formula = "L = E_at_D + A/N^alpha"
    parameters = ("E_at_D", "A", "alpha")
    variables = ("N",)
    constant = "E_at_D"
    terms = (Term("A", (("N", "alpha"),)),)
    bounds: ClassVar = {"E_at_D": (0.0, np.inf), "A": (0.0, np.inf), "alpha": EXPONENT_BOUNDS}

    def rivals(self) -> tuple[Law, ...]:
        return (RectifiedModelLaw(),)


class JointLaw(PowerLaw):
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

    def rivals(self) -> tuple[Law, ...]:
        return (InteractionLaw(), TiedLaw())


class InteractionLaw(PowerLaw):
    """The joint law with a data term that depends on N too: `L = E + A/N^alpha + B/(D^beta N^c)`."""

    name = "interaction"
    formula = "L = E + A/N^alpha + B/(D^beta N^c)"
    parameters = ("E", "A", "B", "alpha", "beta", "c")
    variables = ("N", "D")
    constant = "E"
    terms = (Term("A", (("N", "alpha"),)), Term("B", (("D", "beta"), ("N", "c"))))
    bounds: ClassVar = {**JointLaw.bounds, "c": INTERACTION_BOUNDS}

    def rivals(self) -> tuple[Law, ...]:
        return (JointLaw(), TiedLaw())


class CrossedLaw(PowerLaw):
    """Both terms depend on both: `L = E + A/(N^alpha D^d) + B/(D^beta N^c)`.

    Seven parameters: it bends as the runs ask and is not to be trusted far beyond them on its own; a voice among
    others in an `Ensemble`.
    """

    name = "crossed"
    formula = "L = E + A/(N^alpha D^d) + B/(D^beta N^c)"
    parameters = ("E", "A", "B", "alpha", "beta", "c", "d")
    variables = ("N", "D")
    constant = "E"
    terms = (Term("A", (("N", "alpha"), ("D", "d"))), Term("B", (("D", "beta"), ("N", "c"))))
    bounds: ClassVar = {**JointLaw.bounds, "c": INTERACTION_BOUNDS, "d": INTERACTION_BOUNDS}

    def grid(self) -> Mapping[str, np.ndarray]:
        exponent, cross = np.geomspace(0.03, 1.5, 10), np.linspace(-0.4, 0.4, 5)
        return {"alpha": exponent, "beta": exponent, "c": cross, "d": cross}

    def rivals(self) -> tuple[Law, ...]:
        return (InteractionLaw(), JointLaw())


class TiedLaw(PowerLaw):
    """The joint law with one exponent for both: `L = E + A/N^alpha + B/D^alpha`.

    Gadre et al. 2024 write it `E + (a M^eta + b M^-eta) C^-eta` with M = D/N and C = 6 N D: alpha = 2 eta,
    A = a 6^-eta, B = b 6^-eta.
    """

    name = "tied"
    formula = "L = E + A/N^alpha + B/D^alpha"
    parameters = ("E", "A", "B", "alpha")
    variables = ("N", "D")
    constant = "E"
    terms = (Term("A", (("N", "alpha"),)), Term("B", (("D", "alpha"),)))
    bounds: ClassVar = {"E": (0.0, np.inf), "A": (0.0, np.inf), "B": (0.0, np.inf), "alpha": EXPONENT_BOUNDS}

    def rivals(self) -> tuple[Law, ...]:
        return (JointLaw(), InteractionLaw())


class KaplanLaw(Law):
    """No irreducible loss: `L = ((A/N^alpha)^(1/beta) + (B/D^beta)^(1/beta))^beta` (Kaplan et al. 2020, equation 1.5).

    A/N^alpha is the loss with data without end, B/D^beta that of a model without end. In the letters of the source
    alpha_N = alpha, alpha_D = beta, N_c = A^(1/alpha), D_c = B^(1/beta). Invariant to units, as `PowerLaw`.
    """

    name = "kaplan"
    formula = "L = ((A/N^alpha)^(1/beta) + (B/D^beta)^(1/beta))^beta"
    parameters: ClassVar[tuple[str, ...]] = ("A", "B", "alpha", "beta")
    variables = ("N", "D")
    bounds: ClassVar = {
        "A": (0.0, np.inf), "B": (0.0, np.inf), "alpha": EXPONENT_BOUNDS, "beta": EXPONENT_BOUNDS,
    }  # fmt: skip
    rescales = True

    @property
    def log_moved(self) -> tuple[str, ...]:
        return ("A", "B")

    def max_moves(self) -> np.ndarray:
        return np.array([np.inf, np.inf, 0.5, 0.5])

    def grid(self) -> Mapping[str, np.ndarray]:
        level = np.geomspace(0.3, 1.0, 6)  # at the centre the greater of both terms is about the loss
        exponent = np.geomspace(0.02, 1.0, 10)
        return {"A": level, "B": level, "alpha": exponent, "beta": exponent}

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self._without_offset(theta, points)

    def _without_offset(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        A, B, alpha, beta = (theta[:, k, None] for k in range(4))
        # A term that is absent has logarithms and derivatives all the same.
        A, B = np.maximum(A, 1e-200), np.maximum(B, 1e-200)
        with np.errstate(over="ignore", under="ignore"):
            model = (np.log(A) - alpha * points["N"]) / beta
            data = np.log(B) / beta - points["D"]
            total = np.logaddexp(model, data)
            share = np.exp(model - total)  # of the model term
            value = np.exp(beta * total)
            by_beta = value * (total - share * model - (1 - share) * np.log(B) / beta)
            jacobian = np.stack(
                [value * share / A, value * (1 - share) / B, -value * share * points["N"], by_beta], axis=-2
            )
        return value, jacobian

    def centres(self, points: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: float(np.mean(points[name])) for name in self.logged}

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = np.array(theta, dtype=np.float64)
        with np.errstate(over="ignore"):
            params[..., 0] *= np.exp(log_scale + params[..., 2] * centres["N"])
            params[..., 1] *= np.exp(log_scale + params[..., 3] * centres["D"])
        return params

    def rivals(self) -> tuple[Law, ...]:
        return (JointLaw(), InteractionLaw())


class OffsetKaplanLaw(KaplanLaw):
    """`KaplanLaw` above an irreducible loss: `L = E + ((A/N^alpha)^(1/beta) + (B/D^beta)^(1/beta))^beta`."""

    name = "offset_kaplan"
    formula = "L = E + ((A/N^alpha)^(1/beta) + (B/D^beta)^(1/beta))^beta"
    parameters = ("A", "B", "alpha", "beta", "E")
    constant = "E"
    linear = ("E",)
    bounds: ClassVar = {**KaplanLaw.bounds, "E": (0.0, np.inf)}

    def max_moves(self) -> np.ndarray:
        return np.array([*super().max_moves(), np.inf])

    def grid(self) -> Mapping[str, np.ndarray]:
        level = np.geomspace(0.02, 1.0, 7)
        exponent = np.geomspace(0.04, 1.0, 8)
        return {"A": level, "B": level, "alpha": exponent, "beta": exponent}

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        value, jacobian = self._without_offset(theta, points)
        return value + theta[:, 4, None], np.concatenate([jacobian, np.ones_like(jacobian[:, :1])], axis=1)

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = super().to_params(theta, centres, log_scale)
        params[..., 4] *= np.exp(log_scale)
        return params


class _ShiftedPowerLaw(Law):
    """A constant plus `coefficient / (shift + variable)^exponent`; parameters in that order."""

    rescales = True

    def max_moves(self) -> np.ndarray:
        return np.array([np.inf, np.inf, np.inf, 0.5])

    def grid(self) -> Mapping[str, np.ndarray]:
        shift = np.array([0.0, *np.geomspace(1e-3, 1e2, 16)])  # in units of the variable's geometric mean
        return {self.parameters[2]: shift, self.parameters[3]: np.geomspace(0.02, 2.0, 18)}

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        constant, coefficient, shift, exponent = (theta[:, k, None] for k in range(4))
        reach = shift + np.exp(points[self.variables[0]])
        share = np.exp(-exponent * np.log(reach))
        jacobian = np.stack(
            [
                np.ones_like(share),
                share,
                -coefficient * exponent * share / reach,
                -coefficient * share * np.log(reach),
            ],
            axis=-2,
        )
        return constant + coefficient * share, jacobian

    def curvature(
        self, theta: np.ndarray, points: Mapping[str, np.ndarray], jacobian: np.ndarray, pull: np.ndarray
    ) -> np.ndarray:
        _, coefficient, shift, exponent = (theta[:, k, None] for k in range(4))
        reach = shift + np.exp(points[self.variables[0]])
        share, log_reach = jacobian[:, 1], np.log(reach)
        extra = np.zeros((len(theta), 4, 4))

        def put(i: int, j: int, second: np.ndarray) -> None:
            extra[:, i, j] = extra[:, j, i] = (pull * second).sum(axis=-1)

        put(1, 2, -exponent * share / reach)
        put(1, 3, -share * log_reach)
        put(2, 2, coefficient * exponent * (exponent + 1) * share / reach**2)
        put(2, 3, coefficient * share * (exponent * log_reach - 1) / reach)
        put(3, 3, coefficient * share * log_reach**2)
        return extra

    def centres(self, points: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: float(np.mean(points[name])) for name in self.logged}

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = np.array(theta, dtype=np.float64)
        centre = centres[self.variables[0]]
        with np.errstate(over="ignore"):
            params[..., 0] *= np.exp(log_scale)
            params[..., 1] *= np.exp(log_scale + params[..., 3] * centre)
            params[..., 2] *= np.exp(centre)
        return params


class RectifiedLaw(_ShiftedPowerLaw):
    """The data law with a shift inside the power: `L = E_at_N + B/(D0 + D)^beta`.

    D0 is what the model knew before, in tokens (a pre-trained model that is fine-tuned, a warm start); with D0 = 0 it
    is `DataLaw`. Rectified scaling laws (Lin et al. 2024) shift beside the power, `B/(D_l + D^beta)`; both bend the
    curve flat below the shift. Invariant to units, as `PowerLaw`.
    """

    name = "rectified"
    formula = "L = E_at_N + B/(D0 + D)^beta"
    parameters = ("E_at_N", "B", "D0", "beta")
    variables = ("D",)
    constant = "E_at_N"
    linear = ("E_at_N", "B")
    may_be_zero = ("D0",)
    bounds: ClassVar = {
        "E_at_N": (0.0, np.inf), "B": (0.0, np.inf), "D0": (0.0, np.inf), "beta": EXPONENT_BOUNDS,
    }  # fmt: skip

    def rivals(self) -> tuple[Law, ...]:
        return (DataLaw(),)


class RectifiedModelLaw(_ShiftedPowerLaw):
    """The model law with a shift inside the power: `L = E_at_D + A/(N0 + N)^alpha`; a rival to `ModelLaw`."""

    name = "rectified_model"
    formula = "L = E_at_D + A/(N0 + N)^alpha"
    parameters = ("E_at_D", "A", "N0", "alpha")
    variables = ("N",)
    constant = "E_at_D"
    linear = ("E_at_D", "A")
    may_be_zero = ("N0",)
    bounds: ClassVar = {
        "E_at_D": (0.0, np.inf), "A": (0.0, np.inf), "N0": (0.0, np.inf), "alpha": EXPONENT_BOUNDS,
    }  # fmt: skip

    def rivals(self) -> tuple[Law, ...]:
        return (ModelLaw(),)


def _default_nodes(low: float, high: float) -> np.ndarray:
    if low < 0:
        return np.linspace(max(low, -0.5), min(high, 0.5), 7)
    return np.geomspace(max(low, 0.02), min(high, 2.0), 18)


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


def _finite(value: ArrayLike | None, name: str) -> np.ndarray:
    """`value` as a float array of finite numbers; ValueError says what is wrong."""
    if value is None:
        raise ValueError(f"{name} is needed and was not given")
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, got {value!r}") from None
    wrong = ~np.isfinite(array)
    if wrong.any():
        raise ValueError(f"{name} must be finite; got {array[wrong].flat[0]}")
    return array
