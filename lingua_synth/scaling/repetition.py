"""Laws of repeated data: what a token is worth when it is seen again.

N: parameters of the model. D: training tokens, repeats counted. U: unique tokens. R = D/U - 1: repeats, 0 in the first
pass; U above D means no token was seen twice.

`RepetitionLaw` is the law of Muennighoff et al. 2023, "Scaling data-constrained language models": the repeated token
decays in worth, so that any number of passes over U is worth `U (1 + R_D)` new tokens at most; with `size_decay` also
the parameters in excess of what U feeds. `OverfitLaw` lets too much repetition *harm*: the same decay, and a penalty
that grows with repeats and with parameters per unique token; without it no law of decay follows a loss that rises.

R_D says how fast repeats decay (at R = R_D a further pass is worth 1/e of a new one). Runs of few passes hardly
determine it: `value_of_repeats` says so, and what passes are worth all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from lingua_synth.scaling.laws import EXPONENT_BOUNDS, Law

DECAY_BOUNDS = (0.05, 1e3)
"""Of R_D and R_N: at the low end a second pass is worth nothing, at the high end as much as the first."""
_POSITIVE = (0.0, np.inf)


def log_worth_of_repeats(log_passes: np.ndarray, decay: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`ln(D'/D)` for `D' = U (1 + R* (1 - exp(-R/R*)))`, R = D/U - 1, and its derivative by R*.

    `log_passes` is ln(D/U), `decay` R*; 0 and 0 where no token is seen twice. The worth is at most 1: `D' <= D`.
    """
    passes = np.exp(np.minimum(np.maximum(log_passes, 0.0), 50.0))
    repeats = passes - 1
    gone = np.exp(-repeats / decay)
    effective = 1 - decay * np.expm1(-repeats / decay)
    by_decay = (1 - gone - repeats / decay * gone) / effective
    return np.log(effective) - np.log(passes), by_decay


class _RepeatsLaw(Law):
    """A law in N, D and the unique tokens U with E, A, alpha, B and beta as in the joint law."""

    rescales = True

    def centres(self, points: Mapping[str, np.ndarray]) -> dict[str, float]:
        # U is compared with D, so they share a unit.
        centre = float(np.mean(points["D"]))
        return {"N": float(np.mean(points["N"])), "D": centre, "U": centre}

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = np.array(theta, dtype=np.float64)
        at = {name: k for k, name in enumerate(self.parameters)}
        with np.errstate(over="ignore"):
            params[..., at["E"]] *= np.exp(log_scale)
            params[..., at["A"]] *= np.exp(log_scale + params[..., at["alpha"]] * centres["N"])
            params[..., at["B"]] *= np.exp(log_scale + params[..., at["beta"]] * centres["D"])
        return params


class RepetitionLaw(_RepeatsLaw):
    """`L = E + A/N'^alpha + B/D'^beta` with `D' = U (1 + R_D (1 - exp(-R/R_D)))`, R = D/U - 1.

    `size_decay=True` is the whole law of Muennighoff et al.: N' = N_U (1 + R_N (1 - exp(-(N/N_U - 1)/R_N))) where N
    exceeds N_U, the size that U unique tokens feed at least compute (`alpha A/N_U^alpha = beta B/U^beta`); else
    N' = N. Invariant to the units of N, of D and U together, and of the loss.
    """

    name = "repetition"
    variables = ("N", "D", "U")
    constant = "E"

    def __init__(self, size_decay: bool = False) -> None:
        self.size_decay = bool(size_decay)
        names = ("E", "A", "alpha", "B", "beta", "R_D")
        self.parameters = (*names, "R_N") if self.size_decay else names  # type: ignore[misc]
        self.weak_beyond = {name: 3.0 for name in self.parameters if name in ("R_D", "R_N")}  # type: ignore[misc]
        # N_U depends on A and B, so with it the value is linear in E alone.
        self.linear = ("E",) if self.size_decay else ("E", "A", "B")  # type: ignore[misc]
        every = {
            "E": _POSITIVE, "A": _POSITIVE, "alpha": EXPONENT_BOUNDS, "B": _POSITIVE, "beta": EXPONENT_BOUNDS,
            "R_D": DECAY_BOUNDS, "R_N": DECAY_BOUNDS,
        }  # fmt: skip
        self.bounds = {name: every[name] for name in self.parameters}  # type: ignore[misc]
        size_term = "A/N'^alpha" if self.size_decay else "A/N^alpha"
        self.formula = (  # type: ignore[misc]
            f"L = E + {size_term} + B/D'^beta, D' = U (1 + R_D (1 - exp(-R/R_D))), R = D/U - 1"
        )

    def __repr__(self) -> str:
        return f"RepetitionLaw(size_decay={self.size_decay})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RepetitionLaw) and self.size_decay == other.size_decay

    def __hash__(self) -> int:
        return hash(("RepetitionLaw", self.size_decay))

    @property
    def log_moved(self) -> tuple[str, ...]:
        return tuple(name for name in self.parameters if name in ("A", "B", "R_D", "R_N"))

    def rivals(self) -> tuple[Law, ...]:
        """The law with a penalty for repeats."""
        return (OverfitLaw(),)

    def max_moves(self) -> np.ndarray:
        return np.array([0.5 if name in ("alpha", "beta") else np.inf for name in self.parameters])

    def grid(self) -> Mapping[str, np.ndarray]:
        exponent = np.geomspace(0.05, 1.2, 10 if not self.size_decay else 7)
        every = {
            "alpha": exponent, "beta": exponent, "R_D": np.geomspace(1.0, 50.0, 6), "R_N": np.geomspace(1.0, 50.0, 4),
            "A": np.geomspace(0.01, 0.5, 5), "B": np.geomspace(0.01, 0.5, 5),
        }  # fmt: skip
        return {name: every[name] for name in self.parameters if name not in self.linear}

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        E, A, alpha, B, beta, R_D = (self._spread(theta, name) for name in self.parameters[:6])
        N, D, U = points["N"], points["D"], points["U"]
        worth, worth_by_R = log_worth_of_repeats(D - U, R_D)
        tokens = D + worth
        data = np.exp(-beta * tokens)
        B_data = B * data
        columns = {"E": np.ones_like(B_data), "B": data, "beta": -tokens * B_data, "R_D": -beta * worth_by_R * B_data}
        if not self.size_decay:
            size = np.exp(-alpha * N)
            columns |= {"A": size, "alpha": -N * A * size}
            return E + A * size + B_data, np.stack([columns[name] for name in self.parameters], axis=-2)
        R_N = self._spread(theta, "R_N")
        with np.errstate(divide="ignore", invalid="ignore"):
            fed = (np.log(alpha) + np.log(A) - np.log(beta) - np.log(B) + beta * np.minimum(U, D)) / alpha
            lost, lost_by_R = log_worth_of_repeats(N - fed, R_N)
            excess = fed < N
            # ln N' falls below ln N by `lost`, a function of ln(N/N_U): its slope is that of ln N' less 1.
            ratio = np.exp(np.minimum(np.where(excess, N - fed, 0.0), 50.0))
            gone = np.exp(-(ratio - 1) / R_N)
            slope = np.where(excess, ratio * gone / (1 + R_N * (1 - gone)) - 1, 0.0)
            by = {
                "A": -slope / (alpha * A), "B": slope / (alpha * B),
                "alpha": -slope * (1 / alpha - fed) / alpha, "beta": -slope * (np.minimum(U, D) - 1 / beta) / alpha,
            }  # fmt: skip
        size_log = N + lost
        size = np.exp(-alpha * size_log)
        A_size = A * size
        columns["A"] = size - alpha * A_size * by["A"]
        columns["alpha"] = -A_size * (size_log + alpha * by["alpha"])
        columns["B"] = columns["B"] - alpha * A_size * by["B"]
        columns["beta"] = columns["beta"] - alpha * A_size * by["beta"]
        columns["R_N"] = -alpha * A_size * lost_by_R
        return E + A_size + B_data, np.stack([columns[name] for name in self.parameters], axis=-2)


class OverfitLaw(_RepeatsLaw):
    """`L = E + A/N^alpha + B/D'^beta + k R^s (N/U)^t`: `RepetitionLaw` with a penalty for repeating too much.

    s and t are positive: the penalty is 0 in the first pass and grows with repeats and with parameters per unique
    token, so the loss may rise with D. Invariant to the units of N, of D and U together, and of the loss.
    """

    name = "overfit"
    formula = "L = E + A/N^alpha + B/D'^beta + k R^s (N/U)^t, D' = U (1 + R_D (1 - exp(-R/R_D))), R = D/U - 1"
    parameters = ("E", "A", "alpha", "B", "beta", "R_D", "k", "s", "t")
    variables = ("N", "D", "U")
    constant = "E"
    linear = ("E", "A", "B", "k")
    may_be_zero = ("k",)
    weak_beyond: ClassVar = {"R_D": 3.0}
    bounds: ClassVar = {
        "E": _POSITIVE, "A": _POSITIVE, "alpha": EXPONENT_BOUNDS, "B": _POSITIVE, "beta": EXPONENT_BOUNDS,
        "R_D": DECAY_BOUNDS, "k": _POSITIVE, "s": (0.1, 4.0), "t": (0.01, 4.0),
    }  # fmt: skip

    @property
    def log_moved(self) -> tuple[str, ...]:
        return ("A", "B", "k", "R_D")

    def rivals(self) -> tuple[Law, ...]:
        """The law without a penalty."""
        return (RepetitionLaw(),)

    def max_moves(self) -> np.ndarray:
        return np.array([0.5 if name in ("alpha", "beta", "s", "t") else np.inf for name in self.parameters])

    def grid(self) -> Mapping[str, np.ndarray]:
        exponent = np.geomspace(0.08, 1.0, 5)
        return {
            "alpha": exponent, "beta": exponent, "R_D": np.geomspace(2.0, 50.0, 4), "s": np.array([0.5, 1.0, 2.0]),
            "t": np.array([0.25, 0.5, 1.0]),
        }  # fmt: skip

    def value_and_jacobian(self, theta: np.ndarray, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        E, A, alpha, B, beta, R_D, k, s, t = (self._spread(theta, name) for name in self.parameters)
        N, D, U = points["N"], points["D"], points["U"]
        worth, worth_by_R = log_worth_of_repeats(D - U, R_D)
        tokens = D + worth
        data, size = np.exp(-beta * tokens), np.exp(-alpha * N)
        # R below rounding of D/U is none.
        repeats = np.expm1(np.maximum(D - U, 0.0))
        repeated = repeats > 1e-9
        log_repeats = np.log(np.where(repeated, repeats, 1.0))
        harm = np.where(repeated, np.exp(s * log_repeats + t * (N - U)), 0.0)
        value = E + A * size + B * data + k * harm
        columns = {
            "E": np.ones_like(value), "A": size, "alpha": -N * A * size, "B": data, "beta": -tokens * B * data,
            "R_D": -beta * worth_by_R * B * data, "k": harm, "s": k * harm * log_repeats, "t": k * harm * (N - U),
        }  # fmt: skip
        return value, np.stack([columns[name] for name in self.parameters], axis=-2)

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = super().to_params(theta, centres, log_scale)
        k, t = self.parameters.index("k"), self.parameters.index("t")
        with np.errstate(over="ignore"):
            params[..., k] *= np.exp(log_scale - params[..., t] * (centres["N"] - centres["U"]))
        return params
