"""Laws in which the mixture is a variable: loss as a function of N, D and the ratios of the sources.

One law for all mixtures, instead of a law per mixture, is what makes a best ratio at a size and budget that nobody
trained: the floor, the size term and the data term fall at different rates, so the ratio of lowest loss moves with N
and D.

`MixtureLaw` and `SourcesLaw` count *effective tokens*: a constant elasticity of substitution between sources (CES,
Arrow et al. 1961), `D_eff = D (sum_j tau_j h_j^gamma)^(1/gamma)`. tau is what a token of a source is worth beside one
of the reference; gamma says how alike sources are: at 1 tokens of one replace those of another, below it the first
tokens of each are worth most, so that a mixture beats its parts. `LogQuadraticLaw` is the rival that knows nothing of
tokens: the logarithm of the data term is a quadratic in the ratio. `MixingLaw` is the classic one (Ye et al. 2024,
"Data mixing laws"): an exponential of a linear function of the ratios, at one size and budget.

N: parameters of the model. D: training tokens, repeats counted. r: share of synthetic tokens in D, in [0, 1].
ratio_<source>: share of that source; the shares of a run sum to 1. U_natural, U_synthetic: unique tokens of each.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lingua_synth.scaling.laws import EXPONENT_BOUNDS, INTERACTION_BOUNDS, ArrayLike, Law
from lingua_synth.scaling.repetition import log_worth_of_repeats

GAMMA_BOUNDS = (0.05, 1.0)
"""Above 1 a mixture would be worth less than its better part, whatever the parts: not a law of diminishing returns."""
TAU_BOUNDS = (1e-3, 1e3)
REPEAT_BOUNDS = (0.05, 1e3)
"""Of R: at the low end a second pass teaches nothing, at the high end repeats are as good as new tokens."""
MAX_RATIO_ERROR = 0.021
"""How far the shares of a run may be from summing to 1: published tables round each to two digits."""
NOTHING = -1e6
"""Stands for ln 0: a source that is not there. Any power of it is 0, and 0 times it is 0, not NaN."""

_FREE = (-np.inf, np.inf)
_POSITIVE = (0.0, np.inf)


class _BlendLaw(Law):
    """A floor that is linear in its parameters, a term in N and a term in D, all of which may depend on the ratios.

    `L = floor + A exp(lean) / N^alpha + B exp(pull - beta ln D) / N^c`. Subclasses name the parameters and write
    `_floor`, `_lean` and `_pull`. Invariant to the units of N, D and the loss.
    """

    constant = "E"
    rescales = True
    size: bool
    data: bool
    interaction: bool

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """What the law was built with and is told apart by."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._options().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BlendLaw) and type(self) is type(other) and self._options() == other._options()

    def __hash__(self) -> int:
        return hash((type(self), repr(self._options())))

    # --- for a subclass to write ---

    @abstractmethod
    def _floor(self, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameter of the floor -> its column `[m]`."""

    def _lean(self, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameter in the exponent of the size term -> its column `[m]`."""
        return {}

    @abstractmethod
    def _pull(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(exponent of the data term `[n, m]` but for N^c, its derivative by each parameter)."""

    # --- the law ---

    def parts(
        self, params: np.ndarray, N: ArrayLike | None = None, D: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(what no number of tokens lowers, the data term), each `[n, m]`; their sum is the loss.

        `params` is `[n, p]`; a variable is one number, `[m]` (the same points for every row) or `[n, m]` (each row has
        points of its own, as when every resample needs another budget for one loss). ValueError as for `predict`.
        """
        theta = self.as_array(params)
        assert theta.ndim == 2, "one row a set of parameters"
        given = {"N": N, "D": D, **variables}
        points = {}
        for name in self.variables:
            value = np.atleast_1d(self.check_variable(given.pop(name, None), name))
            points[name] = np.log(value) if name in self.logged else value
        if any(value is not None for value in given.values()):
            raise ValueError(f"{type(self).__name__} ({self.formula}) has no {', '.join(given)}")
        self.validate_points(points)
        fixed, data = self._parts(theta, points)
        shape = np.broadcast_shapes(fixed.shape, data.shape)
        return np.broadcast_to(fixed, shape), np.broadcast_to(data, shape)

    def _parts(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        fixed = np.zeros((len(theta), 1))
        for name, column in self._floor(points).items():
            fixed = fixed + self._spread(theta, name) * column
        if self.size:
            exponent = -self._spread(theta, "alpha") * points["N"]
            for name, column in self._lean(points).items():
                exponent = exponent + self._spread(theta, name) * column
            fixed = fixed + self._spread(theta, "A") * np.exp(exponent)
        exponent, _ = self._pull(theta, points)
        if self.interaction:
            exponent = exponent - self._spread(theta, "c") * points["N"]
        data = np.exp(exponent)
        return fixed, self._spread(theta, "B") * data if "B" in self.parameters else data

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        at = {name: k for k, name in enumerate(self.parameters)}
        num = len(next(iter(points.values())))
        jacobian = np.zeros((len(theta), len(self.parameters), num))
        value = np.zeros((len(theta), num))
        for name, column in self._floor(points).items():
            jacobian[:, at[name]] = column
            value = value + self._spread(theta, name) * column
        if self.size:
            lean = self._lean(points)
            exponent = -self._spread(theta, "alpha") * points["N"]
            for name, column in lean.items():
                exponent = exponent + self._spread(theta, name) * column
            share = np.exp(exponent)
            term = self._spread(theta, "A") * share
            jacobian[:, at["A"]] = share
            jacobian[:, at["alpha"]] = -points["N"] * term
            for name, column in lean.items():
                jacobian[:, at[name]] = column * term
            value = value + term
        exponent, slopes = self._pull(theta, points)
        if self.interaction:
            exponent = exponent - self._spread(theta, "c") * points["N"]
            slopes = {**slopes, "c": np.broadcast_to(-points["N"], exponent.shape)}
        share = np.exp(exponent)
        term = share
        if "B" in at:
            term = self._spread(theta, "B") * share
            jacobian[:, at["B"]] = share
        for name, slope in slopes.items():
            jacobian[:, at[name]] = slope * term
        return value + term, jacobian

    # --- units ---

    def centres(self, points: Mapping[str, np.ndarray]) -> dict[str, float]:
        centres = {name: float(np.mean(points[name])) for name in self.logged}
        # Unique tokens are compared with tokens, so they share a unit.
        return {name: centres["D"] if name.startswith("U_") else centre for name, centre in centres.items()}

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = np.array(theta, dtype=np.float64)
        at = {name: k for k, name in enumerate(self.parameters)}
        for name in self._floor_names:
            params[..., at[name]] *= np.exp(log_scale)
        with np.errstate(over="ignore"):
            if self.size:
                params[..., at["A"]] *= np.exp(log_scale + params[..., at["alpha"]] * centres["N"])
            self._move_data(params, at, self._data_shift(params, at, centres, log_scale))
        return params

    def _data_shift(
        self, params: np.ndarray, at: Mapping[str, int], centres: Mapping[str, float], log_scale: float
    ) -> np.ndarray:
        shift = np.full(params.shape[:-1], log_scale)
        if self.data:
            shift = shift + params[..., at["beta"]] * centres["D"]
        if self.interaction:
            shift = shift + params[..., at["c"]] * centres["N"]
        return shift

    def _move_data(self, params: np.ndarray, at: Mapping[str, int], shift: np.ndarray) -> None:
        params[..., at["B"]] *= np.exp(shift)

    @property
    @abstractmethod
    def _floor_names(self) -> tuple[str, ...]:
        """Parameters of the floor."""

    def max_moves(self) -> np.ndarray:
        moves = {"gamma": 0.2, "tau": 0.5}
        return np.array([np.inf if name in self.linear else moves.get(name, 0.5) for name in self.parameters])


class _RatioLaw(_BlendLaw):
    """What the laws of two sources share: the quadratic floor and the size term that leans with r."""

    def __init__(self, size: bool = True, interaction: bool | None = None) -> None:
        self.size, self.data = bool(size), True
        self.interaction = self.size if interaction is None else bool(interaction)
        if self.interaction and not self.size:
            raise ValueError("interaction=True is an exponent of N on the data term; it takes size=True")
        self.variables = (("N",) if self.size else ()) + ("D", "r")  # type: ignore[misc]
        names = ["E", "e1", "e2", *(("A", "a", "alpha") if self.size else ()), "B", "beta", *self._own_parameters()]
        self.parameters = tuple(names + (["c"] if self.interaction else []))  # type: ignore[misc]
        self.linear = tuple(name for name in self.parameters if name in ("E", "e1", "e2", "A", "B"))  # type: ignore[misc]
        every = {
            "E": _POSITIVE, "e1": _FREE, "e2": _FREE, "A": _POSITIVE, "a": (-10.0, 10.0), "alpha": EXPONENT_BOUNDS,
            "B": _POSITIVE, "beta": EXPONENT_BOUNDS, "c": INTERACTION_BOUNDS, **self._own_bounds(),
        }  # fmt: skip
        self.bounds = {name: every[name] for name in self.parameters}  # type: ignore[misc]
        size_term = " + A exp(a r)/N^alpha" if self.size else ""
        self.formula = (  # type: ignore[misc]
            f"L = E + e1 r + e2 r^2{size_term} + {self._data_formula()}"
        )

    def _options(self) -> dict[str, Any]:
        return {"size": self.size, "interaction": self.interaction}

    @abstractmethod
    def _own_parameters(self) -> tuple[str, ...]:
        """Parameters that this law alone has."""

    @abstractmethod
    def _own_bounds(self) -> dict[str, tuple[float, float]]:
        """Bounds of its own parameters."""

    @abstractmethod
    def _data_formula(self) -> str:
        """The data term as it stands in `formula`."""

    def validate_points(self, points: Mapping[str, np.ndarray]) -> None:
        """A ratio is a share in [0, 1]."""
        wrong = (points["r"] < 0) | (points["r"] > 1)
        if wrong.any():
            raise ValueError(f"r is a share in [0, 1] (0.33, not 33); got {points['r'][wrong][0]:g}")

    @property
    def _floor_names(self) -> tuple[str, ...]:
        return ("E", "e1", "e2")

    def _floor(self, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        r = points["r"]
        return {"E": np.ones_like(r), "e1": r, "e2": r * r}

    def _lean(self, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"a": points["r"]}

    def grid(self) -> Mapping[str, np.ndarray]:
        exponents = np.array([0.1, 0.2, 0.33, 0.5, 0.8])
        every = {
            "a": np.array([-0.3, 0.0, 0.3]), "alpha": exponents, "beta": exponents, "c": np.array([-0.1, 0.0, 0.1]),
            **self._own_grid(),
        }  # fmt: skip
        return {name: every[name] for name in self.parameters if name not in self.linear}

    @abstractmethod
    def _own_grid(self) -> dict[str, np.ndarray]:
        """Values of its own parameters to start from."""


class MixtureLaw(_RatioLaw):
    """Natural and synthetic tokens as effective tokens.

    `L = E + e1 r + e2 r^2 + A exp(a r)/N^alpha + B/(D_eff^beta N^c)` with
    `D_eff = D ((1-r)^gamma + tau r^gamma)^(1/gamma)`. e1, e2: how the floor moves with the share of synthetic tokens.
    `size=False` is the law at one N (without A, a, alpha and c), `interaction=False` the one with c = 0.

    `repetition=True` counts tokens of a source that were seen before for less: with D_j = share_j D tokens of a source
    that has U_j unique ones, `D_j' = U_j (1 + R_j (1 - exp(-(D_j/U_j - 1)/R_j)))` where D_j > U_j (Muennighoff et al.
    2023, "Scaling data-constrained language models", equation 5), and
    `D_eff = (D_natural'^gamma + tau D_synthetic'^gamma)^(1/gamma)`. The variables U_natural and U_synthetic are unique
    tokens *available* (more than the run took: no repeats).
    """

    name = "mixture"
    # gamma = 1 (a token of one source replaces one of the other) is an answer like any other.
    may_be_zero = ("gamma",)

    def __init__(self, size: bool = True, interaction: bool | None = None, repetition: bool = False) -> None:
        self.repetition = bool(repetition)
        super().__init__(size, interaction)
        if self.repetition:
            self.variables = (*self.variables, "U_natural", "U_synthetic")  # type: ignore[misc]
        weak = {"gamma": 0.8, "tau": 3.0, "R_natural": 3.0, "R_synthetic": 3.0}
        self.weak_beyond = {name: weak[name] for name in self._own_parameters()}  # type: ignore[misc]

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "repetition": self.repetition}

    @property
    def logged(self) -> tuple[str, ...]:
        return tuple(name for name in self.variables if name != "r")

    @property
    def log_moved(self) -> tuple[str, ...]:
        return tuple(name for name in self.parameters if name in ("A", "B", "tau", "R_natural", "R_synthetic"))

    def _own_parameters(self) -> tuple[str, ...]:
        return ("tau", "gamma", *(("R_natural", "R_synthetic") if self.repetition else ()))

    def _own_bounds(self) -> dict[str, tuple[float, float]]:
        return {
            "tau": TAU_BOUNDS, "gamma": GAMMA_BOUNDS, "R_natural": REPEAT_BOUNDS, "R_synthetic": REPEAT_BOUNDS,
        }  # fmt: skip

    def _data_formula(self) -> str:
        over = "(D_eff^beta N^c)" if self.interaction else "D_eff^beta"
        tokens = "(1-r)^gamma + tau r^gamma"
        repeats = ", tokens of a source repeated" if self.repetition else ""
        return f"B/{over}, D_eff = D ({tokens})^(1/gamma){repeats}"

    def _own_grid(self) -> dict[str, np.ndarray]:
        repeats = np.array([1.5, 15.0])
        return {
            "tau": np.array([0.3, 0.7, 1.2, 2.5]), "gamma": np.array([0.35, 0.6, 0.9]), "R_natural": repeats,
            "R_synthetic": repeats,
        }  # fmt: skip

    def rivals(self) -> tuple[Law, ...]:
        """The log-quadratic law of the same runs; none where tokens repeat, of which it knows nothing."""
        return () if self.repetition else (LogQuadraticLaw(self.size, self.interaction),)

    def _pull(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        tau, gamma, beta = (self._spread(theta, name) for name in ("tau", "gamma", "beta"))
        logs = [_log_share(1 - points["r"]) + points["D"], _log_share(points["r"]) + points["D"]]
        slopes_R = []
        if self.repetition:
            for k, source in enumerate(("natural", "synthetic")):
                worth, slope = log_worth_of_repeats(logs[k] - points[f"U_{source}"], self._spread(theta, f"R_{source}"))
                logs[k] = logs[k] + worth
                slopes_R.append(slope)
        tokens, by_tau, by_gamma, shares = _log_ces(logs, [np.ones_like(tau), tau], gamma)
        slopes = {"beta": -tokens, "tau": -beta * by_tau[1], "gamma": -beta * by_gamma}
        for k, slope in enumerate(slopes_R):
            slopes[("R_natural", "R_synthetic")[k]] = -beta * shares[k] * slope
        return -beta * tokens, slopes


class LogQuadraticLaw(_RatioLaw):
    """The rival of `MixtureLaw`: the data term's logarithm is a quadratic in the share of synthetic tokens.

    `L = E + e1 r + e2 r^2 + A exp(a r)/N^alpha + B exp(b1 r + b2 r^2)/(D^beta N^c)`. `size=False` is the law at one N,
    `interaction=False` the one with c = 0.
    """

    name = "log_quadratic"

    def _own_parameters(self) -> tuple[str, ...]:
        return ("b1", "b2")

    def _own_bounds(self) -> dict[str, tuple[float, float]]:
        return {"b1": (-20.0, 20.0), "b2": (-20.0, 20.0)}

    def _data_formula(self) -> str:
        return f"B exp(b1 r + b2 r^2)/{'(D^beta N^c)' if self.interaction else 'D^beta'}"

    def _own_grid(self) -> dict[str, np.ndarray]:
        return {"b1": np.array([-1.0, -0.3, 0.3]), "b2": np.array([-0.3, 0.3, 1.0])}

    def rivals(self) -> tuple[Law, ...]:
        """The effective tokens of the same runs."""
        return (MixtureLaw(self.size, self.interaction),)

    def _pull(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        beta, b1, b2 = (self._spread(theta, name) for name in ("beta", "b1", "b2"))
        r = points["r"]
        exponent = b1 * r + b2 * r * r - beta * points["D"]
        columns = {"beta": -points["D"], "b1": r, "b2": r * r}
        return exponent, {name: np.broadcast_to(column, exponent.shape) for name, column in columns.items()}


class SourcesLaw(_BlendLaw):
    """Effective tokens of any number of sources, without a reference among them.

    `L = E + A/N^alpha + (sum_j w_j ratio_j^gamma)^(-beta/gamma) / (D^beta N^c)`. `w_<source>` >= 0 is what a source is
    worth; alone, it has the data term `w^(-beta/gamma) / D^beta`, so that the tau of `MixtureLaw` is a quotient of two
    w. A source of w = 0 teaches nothing about what the loss is measured on. `floor="linear"` adds `e_<source> ratio` to
    the floor for every source but the first.

    `size` and `data` say whether runs differ in N and in D (a sweep of mixtures with one small model: neither).
    """

    name = "sources"

    def __init__(
        self,
        sources: Sequence[str],
        size: bool = True,
        data: bool = True,
        interaction: bool = False,
        floor: str = "constant",
    ) -> None:
        self.sources = _source_names(sources)
        self.size, self.data, self.interaction = bool(size), bool(data), bool(interaction)
        if self.interaction and not (self.size and self.data):
            raise ValueError("interaction=True is an exponent of N on the data term; it takes size=True and data=True")
        if floor not in ("constant", "linear"):
            raise ValueError(f"floor is 'constant' or 'linear'; got {floor!r}")
        self.floor = floor
        self.variables = (  # type: ignore[misc]
            *(("N",) if self.size else ()),
            *(("D",) if self.data else ()),
            *(f"ratio_{source}" for source in self.sources),
        )
        self._worths = tuple(f"w_{source}" for source in self.sources)
        self._tilts = tuple(f"e_{source}" for source in self.sources[1:]) if floor == "linear" else ()
        self.may_be_zero = (*self._worths, "gamma")  # type: ignore[misc]
        size_names = ("A", "alpha") if self.size else ()
        names = ("E", *self._tilts, *size_names, "beta", "gamma", *self._worths)
        self.weak_beyond = {"gamma": 0.8}  # type: ignore[misc]
        self.parameters = (*names, "c") if self.interaction else names  # type: ignore[misc]
        self.linear = tuple(name for name in names if name in ("E", "A", *self._tilts))  # type: ignore[misc]
        every = {
            "E": _POSITIVE, "A": _POSITIVE, "alpha": EXPONENT_BOUNDS, "beta": EXPONENT_BOUNDS, "gamma": GAMMA_BOUNDS,
            "c": INTERACTION_BOUNDS, **dict.fromkeys(self._worths, _POSITIVE), **dict.fromkeys(self._tilts, _FREE),
        }  # fmt: skip
        self.bounds = {name: every[name] for name in self.parameters}  # type: ignore[misc]
        tilt = " + sum_j e_j ratio_j" if self._tilts else ""
        size_term = " + A/N^alpha" if self.size else ""
        over = "" if not self.data else " / (D^beta N^c)" if self.interaction else " / D^beta"
        self.formula = (  # type: ignore[misc]
            f"L = E{tilt}{size_term} + (sum_j w_j ratio_j^gamma)^(-beta/gamma){over}, {len(self.sources)} sources"
        )

    def _options(self) -> dict[str, Any]:
        return {
            "sources": self.sources, "size": self.size, "data": self.data, "interaction": self.interaction,
            "floor": self.floor,
        }  # fmt: skip

    @property
    def log_moved(self) -> tuple[str, ...]:
        return tuple(name for name in self.parameters if name == "A" or name in self._worths)

    def validate_points(self, points: Mapping[str, np.ndarray]) -> None:
        """Shares are not negative and sum to 1."""
        _validate_shares(points, self.sources)

    @property
    def _floor_names(self) -> tuple[str, ...]:
        return ("E", *self._tilts)

    def _floor(self, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = [points[f"ratio_{source}"] for source in self.sources]
        return {"E": np.ones_like(columns[0]), **dict(zip(self._tilts, columns[1:], strict=False))}

    def _pull(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        beta, gamma = self._spread(theta, "beta"), self._spread(theta, "gamma")
        logs = [_log_share(points[f"ratio_{source}"]) for source in self.sources]
        tokens, by_worth, by_gamma, _ = _log_ces(logs, [self._spread(theta, name) for name in self._worths], gamma)
        if self.data:
            tokens = tokens + points["D"]
        slopes = {name: -beta * slope for name, slope in zip(self._worths, by_worth, strict=True)}
        return -beta * tokens, {**slopes, "beta": -tokens, "gamma": -beta * by_gamma}

    def _move_data(self, params: np.ndarray, at: Mapping[str, int], shift: np.ndarray) -> None:
        factor = np.exp(-shift * params[..., at["gamma"]] / params[..., at["beta"]])
        for name in self._worths:
            params[..., at[name]] *= factor

    def max_moves(self) -> np.ndarray:
        return np.where([name in self._worths for name in self.parameters], np.inf, super().max_moves())

    def grid(self) -> Mapping[str, np.ndarray]:
        # In working units the data term is a share of the typical loss, and sum_j ratio_j^gamma is 1 to a few.
        exponents = np.array([0.1, 0.2, 0.33, 0.5, 0.8])
        every = {
            "alpha": exponents, "beta": np.array([0.1, 0.2, 0.4, 0.8]), "gamma": np.array([0.35, 0.6, 0.9]),
            "c": np.array([-0.1, 0.0, 0.1]), **dict.fromkeys(self._worths, np.array([1.0])),
        }  # fmt: skip
        return {name: every[name] for name in self.parameters if name not in self.linear}


class MixingLaw(Law):
    """The classic law of mixtures at one size and budget: `L = E + K exp(sum_j t_j ratio_j)` (Ye et al. 2024).

    Shares sum to 1, so one t would only repeat K: that of the first source is 0, and K is the data term of that source
    alone. It has no interior optimum for one domain's loss with two sources, as an exponential has none.
    """

    name = "mixing"
    constant = "E"
    rescales = True

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = _source_names(sources)
        self._slopes = tuple(f"t_{source}" for source in self.sources[1:])
        self.variables = tuple(f"ratio_{source}" for source in self.sources)  # type: ignore[misc]
        self.parameters = ("E", "K", *self._slopes)  # type: ignore[misc]
        self.linear = ("E", "K")  # type: ignore[misc]
        self.bounds = {  # type: ignore[misc]
            "E": _POSITIVE, "K": _POSITIVE, **dict.fromkeys(self._slopes, (-50.0, 50.0)),
        }  # fmt: skip
        self.formula = f"L = E + K exp(sum_j t_j ratio_j), {len(self.sources)} sources"  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"MixingLaw(sources={self.sources!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MixingLaw) and self.sources == other.sources

    def __hash__(self) -> int:
        return hash(("MixingLaw", self.sources))

    def validate_points(self, points: Mapping[str, np.ndarray]) -> None:
        """Shares are not negative and sum to 1."""
        _validate_shares(points, self.sources)

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        columns = [points[f"ratio_{source}"] for source in self.sources[1:]]
        exponent = np.zeros((len(theta), len(points[self.variables[0]])))
        for name, column in zip(self._slopes, columns, strict=True):
            exponent = exponent + self._spread(theta, name) * column
        share = np.exp(exponent)
        term = self._spread(theta, "K") * share
        jacobian = np.stack([np.ones_like(share), share, *(column * term for column in columns)], axis=-2)
        return self._spread(theta, "E") + term, jacobian

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = np.array(theta, dtype=np.float64)
        params[..., :2] *= np.exp(log_scale)
        return params

    def max_moves(self) -> np.ndarray:
        return np.array([np.inf, np.inf, *(1.0 for _ in self._slopes)])

    def grid(self) -> Mapping[str, np.ndarray]:
        nodes = np.array([-3.0, -1.0, -0.2, 0.2, 1.0, 3.0])
        few = nodes if len(self._slopes) <= 4 else np.array([-1.0, -0.3, 0.3])
        return dict.fromkeys(self._slopes, few)


def _log_share(share: np.ndarray) -> np.ndarray:
    present = share > 0
    return np.where(present, np.log(np.where(present, share, 1.0)), NOTHING)


def _log_ces(
    logs: Sequence[np.ndarray], worths: Sequence[np.ndarray], gamma: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """`ln (sum_j worth_j exp(gamma log_j))^(1/gamma)`, its derivatives by each worth and by gamma, and by each log.

    All `[n, m]`; the last are the shares of the sources in the sum. Where no source is worth anything the value is
    minus infinity.
    """
    reference = np.max(np.stack([np.broadcast_to(log, np.broadcast_shapes(log.shape, gamma.shape)) for log in logs]), 0)
    powers = [np.exp(gamma * (log - reference)) for log in logs]
    parts = [worth * power for worth, power in zip(worths, powers, strict=True)]
    total = np.sum(parts, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [part / total for part in parts]
        log_total = np.log(total) / gamma
        by_worth = [power / (gamma * total) for power in powers]
    mean = sum(share * (log - reference) for share, log in zip(shares, logs, strict=True))
    return reference + log_total, by_worth, (mean - log_total) / gamma, shares


def _source_names(sources: Sequence[str]) -> tuple[str, ...]:
    if isinstance(sources, str) or len(sources) < 2:
        raise ValueError(f"a mixture takes the names of at least 2 sources; got {sources!r}")
    names = tuple(str(source) for source in sources)
    for a, b in itertools.combinations(names, 2):
        if a == b:
            raise ValueError(f"every source has a name of its own; {a!r} stands twice")
    return names


def _validate_shares(points: Mapping[str, np.ndarray], sources: Sequence[str]) -> None:
    shares = np.stack([points[f"ratio_{source}"] for source in sources])
    if (shares < 0).any():
        k, row = np.argwhere(shares < 0)[0]
        raise ValueError(f"a ratio is a share in [0, 1]; ratio_{sources[k]} is {shares[k, row]:g} in row {row}")
    wrong = np.abs(shares.sum(axis=0) - 1) > MAX_RATIO_ERROR
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"the ratios of a run sum to 1; in row {row} those of {', '.join(sources)} sum to {shares[:, row].sum():g}"
        )
