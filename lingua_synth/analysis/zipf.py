"""Counts -> rank and frequency, and the exponents of the laws of Zipf and of Zipf and Mandelbrot.

    Zipf              p(r) = r^-s / Z            r: rank of a token by frequency, 1 for the most frequent
    Zipf-Mandelbrot   p(r) = (r + q)^-s / Z      Z: the sum over the ranks [first, last] that the law is fitted to

Fitted by maximum likelihood of the tokens at these ranks (a multinomial; Fisher scoring). The ranks are the sample's
own, and this matters: of two tokens with nearly the same probability the one that happened to occur more often gets
the lower rank, and types whose rank is behind the last one fitted come in where chance favored them. The maximum of
the likelihood is off by up to more than a standard error for that (Piantadosi 2014 shows what it does to plots). By
how much is found by drawing samples from the fitted law, ranking and fitting them alike: their mean is what the
exponent is corrected by, their spread is its interval. Over 60 to 80 planted corpora each of eight kinds, 95 %
intervals held the exponent in 92 to 98 % of them.

The interval is that of independent tokens and of a true law. Real text obeys neither: `p_value` says how often
samples of the law lie as far from it as the corpus does. Where it is near 0, the exponent is a summary and not a
parameter of anything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Law = Literal["zipf", "zipf-mandelbrot"]
LAWS: tuple[Law, ...] = ("zipf", "zipf-mandelbrot")

# Ranks of tokens that hardly occur are chance: they are not fitted.
MIN_COUNT = 10
MIN_RANKS = 20
# Samples are drawn at the estimate, then at what that corrected it to, which is nearer to what made the corpus.
NUM_ROUNDS = 2
# Nats per token: a step that promises less is the last one. Float64 tells likelihoods apart to some 1e-15; steps are
# nearly Newton's there, so that what is left after it is far below a standard error of 10^12 tokens.
LAST_GAIN = 1e-13


@dataclass(frozen=True)
class RankFrequency:
    """The tokens that occur, the most frequent first; equal counts by token id."""

    token_ids: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """1, 2, ..., number of types."""
        return np.arange(1, len(self.counts) + 1)


@dataclass(frozen=True)
class ZipfFit:
    """One law, fitted to the ranks `first_rank` to `last_rank` of a corpus."""

    law: Law
    exponent: float
    """s, corrected for what ranking by the sample's own counts adds."""
    exponent_interval: tuple[float, float]
    shift: float
    """q; 0 for Zipf."""
    shift_interval: tuple[float, float] | None
    """None for Zipf."""
    exponent_ml: float
    """s of maximum likelihood, before the correction."""
    shift_ml: float
    first_rank: int
    last_rank: int
    num_tokens: int
    """Tokens of the corpus at the ranks fitted."""
    share_of_tokens: float
    """Of all its tokens."""
    divergence: float
    """Kullback-Leibler divergence of the corpus from the law at the ranks fitted, nats per token."""
    divergence_expected: float
    """The mean of samples of the law, as large as the corpus."""
    p_value: float
    """Share of samples of the law that lie as far from it; (1 + number) / (1 + num_simulations)."""
    level: float
    num_simulations: int

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.exponent_interval
        words = f"{self.law}: exponent {self.exponent:.4f} [{low:.4f}, {high:.4f}]"
        if self.shift_interval is not None:
            words += f", shift {self.shift:.2f} [{self.shift_interval[0]:.2f}, {self.shift_interval[1]:.2f}]"
        return (
            f"{words}, ranks {self.first_rank:,} to {self.last_rank:,} ({self.share_of_tokens:.1%} of the tokens), "
            f"{self.divergence:.4f} nats from the law where its samples lie {self.divergence_expected:.4f} "
            f"(p {self.p_value:.3f})"
        )


def rank_frequency(counts: npt.ArrayLike) -> RankFrequency:
    """Tokens that occur, by falling count."""
    counts = np.asarray(counts, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    order = order[: np.count_nonzero(counts)]
    return RankFrequency(order.astype(np.int64), counts[order])


def fit_zipf(
    counts: npt.ArrayLike,
    law: Law = "zipf",
    *,
    first_rank: int = 1,
    last_rank: int | None = None,
    num_simulations: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> ZipfFit:
    """Fit `law` to the ranks `first_rank` to `last_rank` of `counts` (one count a token, in any order).

    `last_rank`: None for the last rank with at least ten occurrences. `num_simulations`: samples that the correction
    and the interval at `level` come from, at least 20; two rounds of them are drawn, from the law as it goes
    on to the last word of the vocabulary (the length of `counts`).

    Raises ValueError for an unknown law, a level outside (0, 1), and where fewer than 20 ranks are left to fit.
    """
    if law not in LAWS:
        raise ValueError(f"no law {law!r}; there are: {', '.join(LAWS)}")
    if not 0 < level < 1:
        raise ValueError(f"level is a probability in (0, 1), got {level}")
    if num_simulations < 20:
        raise ValueError(f"num_simulations is at least 20, got {num_simulations}")
    num_words = np.asarray(counts).size
    ranked = rank_frequency(counts).counts
    if last_rank is None:
        last_rank = int(np.count_nonzero(ranked >= MIN_COUNT))
    if first_rank < 1 or last_rank > len(ranked) or last_rank - first_rank + 1 < MIN_RANKS:
        raise ValueError(
            f"a law is fitted to at least {MIN_RANKS} ranks; asked are {first_rank:,} to {last_rank:,}, the corpus has "
            f"{len(ranked):,} types, {np.count_nonzero(ranked >= MIN_COUNT):,} of which occur {MIN_COUNT} times or more"
        )
    ranks = np.arange(first_rank, last_rank + 1, dtype=np.float64)
    fitted = ranked[first_rank - 1 : last_rank]
    estimate = _maximum_likelihood(law, ranks, fitted / fitted.sum(), np.array([1.0, 0.0]))
    rng = np.random.default_rng(seed)
    # The law goes on to the end of the vocabulary; ranks before the first one keep their counts.
    head = ranked[: first_rank - 1].astype(np.float64)
    corrected = estimate
    for _ in range(NUM_ROUNDS):
        means = np.concatenate([head, _expected(ranks, corrected, int(fitted.sum()), num_words)])
        drawn = _simulate(law, means, first_rank, last_rank, corrected, num_simulations, rng)
        corrected = _admissible(corrected + estimate - drawn[:, :2].mean(axis=0))
    from scipy.stats import t as student

    far = student.ppf((1 + level) / 2, num_simulations - 1) * drawn[:, :2].std(axis=0, ddof=1)
    # The mean of the simulations is itself known to one part in their number.
    far = far * np.sqrt(1 + 1 / num_simulations)
    divergence = _divergence(law, ranks, fitted / fitted.sum(), estimate)
    first = float(ranks[0])
    low, high = (_shift(corrected[1] + sign * far[1], first) for sign in (-1, 1))
    return ZipfFit(
        law=law,
        exponent=float(corrected[0]),
        exponent_interval=(float(corrected[0] - far[0]), float(corrected[0] + far[0])),
        shift=_shift(corrected[1], first) if law != "zipf" else 0.0,
        shift_interval=(low, high) if law != "zipf" else None,
        exponent_ml=float(estimate[0]),
        shift_ml=_shift(estimate[1], first) if law != "zipf" else 0.0,
        first_rank=first_rank,
        last_rank=last_rank,
        num_tokens=int(fitted.sum()),
        share_of_tokens=float(fitted.sum() / ranked.sum()),
        divergence=divergence,
        divergence_expected=float(drawn[:, 2].mean()),
        p_value=float((1 + np.count_nonzero(drawn[:, 2] >= divergence)) / (1 + num_simulations)),
        level=level,
        num_simulations=num_simulations,
    )


# Inside, a law is (s, u) with r + q = r - first + e^u * first: q + first stays positive, and u = 0 is Zipf.


def _shift(u: float, first: float) -> float:
    return float(first * np.expm1(u))


def _admissible(parameters: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Within what can be evaluated: corrections of hardly determined shifts may run far."""
    return np.array([np.clip(parameters[0], -20, 20), np.clip(parameters[1], -20, 20)])


def _log_p(ranks: npt.NDArray[np.float64], parameters: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], Any]:
    """(log probabilities of the ranks, the shifted ranks)."""
    shifted = ranks + _shift(parameters[1], float(ranks[0]))
    log_p = -parameters[0] * np.log(shifted)
    log_p -= log_p.max()
    return log_p - np.log(np.exp(log_p).sum()), shifted


def _divergence(law: Law, ranks: Any, shares: npt.NDArray[np.float64], parameters: npt.NDArray[np.float64]) -> float:
    log_p, _ = _log_p(ranks, parameters)
    seen = shares > 0
    return max(0.0, float(np.sum(shares[seen] * (np.log(shares[seen]) - log_p[seen]))))


def _maximum_likelihood(
    law: Law, ranks: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], start: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(s, u) of largest likelihood, by Fisher scoring; the step is halved until the likelihood does not fall."""
    parameters, first = start.astype(np.float64), float(ranks[0])
    log_p, shifted = _log_p(ranks, parameters)
    value = float(shares @ log_p)
    for _ in range(200):
        p = np.exp(log_p)
        # d log p / ds = -log(r + q) + mean, d log p / du = -s e^u first / (r + q) + mean
        slopes = np.stack([-np.log(shifted), -parameters[0] * np.exp(parameters[1]) * first / shifted])
        if law == "zipf":
            slopes = slopes[:1]
        centered = slopes - (slopes @ p)[:, None]
        gradient = centered @ shares
        information = (centered * p) @ centered.T
        # A ridge of one part in 10^12 keeps a direction solvable that the ranks say nothing about.
        step = np.linalg.solve(
            information + np.diag(np.diag(information)) * 1e-12 + np.eye(len(slopes)) * 1e-300, gradient
        )
        gain, scale = float(gradient @ step), 1.0
        if gain < LAST_GAIN:
            parameters[: len(step)] += step
            return _admissible(parameters)
        while scale > 1e-10:
            moved = parameters.copy()
            moved[: len(step)] += scale * step
            moved = _admissible(moved)
            log_p_moved, shifted_moved = _log_p(ranks, moved)
            value_moved = float(shares @ log_p_moved)
            if value_moved >= value:
                break
            scale /= 2
        if scale <= 1e-10:
            break  # no step gains anything that float64 can tell
        parameters, log_p, shifted, value = moved, log_p_moved, shifted_moved, value_moved
    return parameters


def _expected(
    ranks: npt.NDArray[np.float64], parameters: npt.NDArray[np.float64], num_tokens: int, num_words: int
) -> npt.NDArray[np.float64]:
    """Expected counts of the ranks from the first to `num_words`, `num_tokens` of them at `ranks`."""
    log_p, shifted = _log_p(ranks, parameters)
    behind = np.arange(len(ranks), num_words - ranks[0] + 1) + shifted[0]
    log_behind = log_p[0] - parameters[0] * (np.log(behind) - np.log(shifted[0]))
    return np.exp(np.concatenate([log_p, log_behind])) * num_tokens


def _simulate(
    law: Law,
    means: npt.NDArray[np.float64],
    first_rank: int,
    last_rank: int,
    start: npt.NDArray[np.float64],
    num_simulations: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Rows (s, u, divergence) of fits to samples of types whose expected counts are `means`."""
    ranks = np.arange(first_rank, last_rank + 1, dtype=np.float64)
    found = np.empty((num_simulations, 3))
    for i in range(num_simulations):
        drawn = np.sort(rng.poisson(means))[::-1][first_rank - 1 : last_rank]
        shares = drawn / drawn.sum()
        fitted = _maximum_likelihood(law, ranks, shares, start)
        found[i] = [*fitted, _divergence(law, ranks, shares, fitted)]
    return found
