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

from lingua_synth.scaling.laws import EXPONENT_BOUNDS, ArrayLike, Law, _positive

PUBLISHED_R_D = 15.39
"""R_D of Muennighoff et al. 2023 (arXiv 2305.16264). Refits to their runs give 4 to 23 by which of them are used: an
assumption to plan with, no constant of nature."""
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
        return {name: float(np.mean(points["N" if name == "N" else "D"])) for name in self.variables}

    def to_params(self, theta: np.ndarray, centres: Mapping[str, float], log_scale: float) -> np.ndarray:
        params = np.array(theta, dtype=np.float64)
        at = {name: k for k, name in enumerate(self.parameters)}
        with np.errstate(over="ignore"):
            params[..., at[self.constant]] *= np.exp(log_scale)
            if "A" in at:
                params[..., at["A"]] *= np.exp(log_scale + params[..., at["alpha"]] * centres["N"])
            params[..., at["B"]] *= np.exp(log_scale + params[..., at["beta"]] * centres["D"])
        return params


class RepetitionLaw(_RepeatsLaw):
    """`L = E + A/N'^alpha + B/D'^beta` with `D' = U (1 + R_D (1 - exp(-R/R_D)))`, R = D/U - 1.

    `size_decay=True` is the whole law of Muennighoff et al.: N' = N_U (1 + R_N (1 - exp(-(N/N_U - 1)/R_N))) where N
    exceeds N_U, the size that U unique tokens feed at least compute (`alpha A/N_U^alpha = beta B/U^beta`); else
    N' = N. Invariant to the units of N, of D and U together, and of the loss.

    `size=False`: of runs of one size, with E_at_N in place of E + A/N^alpha. `shares`: of runs of one mixture whose
    sources are passed over unequally, the exact share of each; then a run has a U_<source> for every one of them in
    place of U, and D' is the sum over sources, one R_D for all. ValueError for shares that are not positive with the
    sum 1, and for `size_decay` with either: N_U is one of all the unique tokens.
    """

    name = "repetition"

    def __init__(
        self, size_decay: bool = False, *, size: bool = True, shares: Mapping[str, float] | None = None
    ) -> None:
        self.size_decay, self.size = bool(size_decay), bool(size)
        self.shares = {source: float(share) for source, share in (shares or {}).items()}
        if self.size_decay and (self.shares or not self.size):
            raise ValueError("size_decay takes runs of several sizes and one U: leave shares and size=False out")
        if self.shares and (min(self.shares.values()) <= 0 or abs(sum(self.shares.values()) - 1) > 1e-6):
            raise ValueError(f"shares of sources are positive and sum to 1; got {self.shares}")
        self.constant = "E" if self.size else "E_at_N"  # type: ignore[misc]
        unique = tuple(f"U_{source}" for source in self.shares) or ("U",)
        self.variables = (*(("N",) if self.size else ()), "D", *unique)  # type: ignore[misc]
        names = (self.constant, *(("A", "alpha") if self.size else ()), "B", "beta", "R_D")
        self.parameters = (*names, "R_N") if self.size_decay else names  # type: ignore[misc]
        self.weak_beyond = {name: 3.0 for name in self.parameters if name in ("R_D", "R_N")}  # type: ignore[misc]
        # N_U depends on A and B, so with it the value is linear in E alone.
        linear = ("E",) if self.size_decay else (self.constant, "A", "B")
        self.linear = tuple(name for name in linear if name in self.parameters)  # type: ignore[misc]
        every = {
            "E": _POSITIVE, "E_at_N": _POSITIVE, "A": _POSITIVE, "alpha": EXPONENT_BOUNDS, "B": _POSITIVE,
            "beta": EXPONENT_BOUNDS, "R_D": DECAY_BOUNDS, "R_N": DECAY_BOUNDS,
        }  # fmt: skip
        self.bounds = {name: every[name] for name in self.parameters}  # type: ignore[misc]
        size_term = " + A/N'^alpha" if self.size_decay else " + A/N^alpha" if self.size else ""
        summed = "sum over sources of " if self.shares else ""
        self.formula = (  # type: ignore[misc]
            f"L = {self.constant}{size_term} + B/D'^beta, D' = {summed}U (1 + R_D (1 - exp(-R/R_D))), R = D/U - 1"
        )

    def __repr__(self) -> str:
        extra = (", size=False" * (not self.size)) + (f", shares={self.shares}" if self.shares else "")
        return f"RepetitionLaw(size_decay={self.size_decay}{extra})"

    def _key(self) -> tuple[object, ...]:
        return self.size_decay, self.size, tuple(self.shares.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RepetitionLaw) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(("RepetitionLaw", *self._key()))

    @property
    def logged(self) -> tuple[str, ...]:
        return self.variables

    @property
    def log_moved(self) -> tuple[str, ...]:
        return tuple(name for name in self.parameters if name in ("A", "B", "R_D", "R_N"))

    def rivals(self) -> tuple[Law, ...]:
        """The law with a penalty for repeats; none of one size, or of a U for each source."""
        return (OverfitLaw(),) if self.size and not self.shares else ()

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
        E, B, beta, R_D = (self._spread(theta, name) for name in (self.constant, "B", "beta", "R_D"))
        D = points["D"]
        tokens, worth_by_R = self._effective(points, R_D)
        data = np.exp(-beta * tokens)
        B_data = B * data
        columns = {
            self.constant: np.ones_like(B_data), "B": data, "beta": -tokens * B_data,
            "R_D": -beta * worth_by_R * B_data,
        }  # fmt: skip
        if not self.size:
            return E + B_data, np.stack([columns[name] for name in self.parameters], axis=-2)
        A, alpha, N = self._spread(theta, "A"), self._spread(theta, "alpha"), points["N"]
        if not self.size_decay:
            size = np.exp(-alpha * N)
            columns |= {"A": size, "alpha": -N * A * size}
            return E + A * size + B_data, np.stack([columns[name] for name in self.parameters], axis=-2)
        R_N, U = self._spread(theta, "R_N"), points["U"]
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

    def _effective(self, points: Mapping[str, np.ndarray], R_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ln D' and its derivative by R_D."""
        D = points["D"]
        if not self.shares:
            worth, by_R = log_worth_of_repeats(D - points["U"], R_D)
            return D + worth, by_R
        logs, slopes = [], []
        for source, share in self.shares.items():
            own = D + np.log(share)
            worth, slope = log_worth_of_repeats(own - points[f"U_{source}"], R_D)
            logs.append(own + worth)
            slopes.append(slope)
        tokens = np.logaddexp.reduce(np.broadcast_arrays(*logs), axis=0)
        by_R = sum(np.exp(one - tokens) * slope for one, slope in zip(logs, slopes, strict=True))
        return tokens, np.asarray(by_R)


def effective_tokens(tokens: ArrayLike, unique: ArrayLike, R_D: float) -> np.ndarray:
    """New tokens that teach as much as `tokens` of which `unique` are different ones:
    `U (1 + R_D (1 - exp(-R/R_D)))`, R = D/U - 1. Of several sources the sum of theirs. ValueError for what is not
    positive."""
    D, U, decay = _positive(tokens, "tokens"), _positive(unique, "unique"), _positive(R_D, "R_D")
    return np.asarray(D * np.exp(log_worth_of_repeats(np.log(D / U), decay)[0]))


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
