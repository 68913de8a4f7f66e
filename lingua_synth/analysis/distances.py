"""How far the token frequencies of two corpora lie apart, and of which mixture they lie nearest to a test corpus.

    KL(p || q) = sum p log(p / q)          nats per token: what coding p with the lengths of q costs
    JS(p, q)   = KL(p || m) / 2 + KL(q || m) / 2, m = (p + q) / 2: symmetric, between 0 and log 2, always finite

A token of p that q has never shown makes KL(p || q) infinite. That is said, as `math.inf`, unless smoothing is asked
for: `smoothing` occurrences are added to every word of the vocabulary in both corpora, and every result says how
many. Distances depend on the number of tokens they are estimated from (of two samples of *one* corpus too), so
corpora are compared at equal numbers: drawn without replacement, several times, the spread of which is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.analysis.coverage import match_size, subsample

# Krichevsky and Trofimov 1981: half an occurrence is the estimator of least worst-case regret, Jeffreys' prior.
SMOOTHING = 0.5


@dataclass(frozen=True)
class Distance:
    """Two corpora at one number of tokens: means over the samples drawn, in nats per token."""

    first: str
    second: str
    num_tokens: int
    """Tokens drawn from each."""
    smoothing: float
    """Occurrences added to every word of the vocabulary, for both KL; JS has none."""
    kl: float
    """KL(first || second); inf where the first has a token that the second has not, without smoothing."""
    kl_sd: float
    """Standard deviation over the samples; nan for one sample."""
    kl_reverse: float
    """KL(second || first)."""
    kl_reverse_sd: float
    js: float
    js_sd: float
    absent: float
    """Share of the first's tokens whose type the second does not show."""
    absent_reverse: float
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """All fields; infinite and undefined values as math.inf and math.nan."""
        return asdict(self)


@dataclass(frozen=True)
class MixtureCurve:
    """KL(test || mixture) over the share of one of two sources, from counts alone."""

    test: str
    base: str
    added: str
    ratios: tuple[float, ...]
    """Shares of `added`; the rest is `base`."""
    kl: tuple[float, ...]
    best_ratio: float
    """Where the curve is lowest, in [0, 1]."""
    best_kl: float
    num_tokens: int
    smoothing: float


def smoothed(counts: npt.ArrayLike, smoothing: float) -> npt.NDArray[np.float64]:
    """Frequencies with `smoothing` occurrences added to every word: float64, summing to 1.

    ValueError for a negative smoothing, and for no tokens without smoothing.
    """
    if not smoothing >= 0:
        raise ValueError(f"smoothing is a number of occurrences, 0 or more; got {smoothing}")
    values = np.asarray(counts, dtype=np.float64) + smoothing
    total = values.sum()
    if not total > 0:
        raise ValueError("a corpus without tokens has no frequencies; ask for smoothing, or leave it out")
    return values / total


def kl_divergence(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """KL(p || q) of two frequency vectors, nats; math.inf where p has what q has not. ValueError for other lengths."""
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if p.shape != q.shape:
        raise ValueError(f"the frequencies are of vocabularies of {p.size:,} and {q.size:,} words; use one tokenizer")
    has = p > 0
    if not (q[has] > 0).all():
        return float("inf")
    return max(0.0, float(np.sum(p[has] * np.log(p[has] / q[has]))))


def js_divergence(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """Jensen-Shannon divergence of two frequency vectors, nats, in [0, log 2]. ValueError for other lengths."""
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if p.shape != q.shape:
        raise ValueError(f"the frequencies are of vocabularies of {p.size:,} and {q.size:,} words; use one tokenizer")
    middle = (p + q) / 2
    return (kl_divergence(p, middle) + kl_divergence(q, middle)) / 2


def distances(
    corpora: Mapping[str, npt.ArrayLike],
    *,
    num_tokens: int | None = None,
    smoothing: float = SMOOTHING,
    num_samples: int = 5,
    seed: int = 0,
) -> list[Distance]:
    """Every pair of `corpora` (name -> counts) at equal numbers of tokens, and each corpus with itself.

    `num_tokens`: drawn from each, None for as many as the smallest has. `num_samples`: draws, of which means and
    standard deviations are given. A pair of a corpus with itself is two halves of it, drawn apart, `num_tokens`
    each: what a distance is when there is none. It stands only for corpora of at least twice as many tokens.

    Raises ValueError for vocabularies of different sizes and for a corpus with fewer tokens than asked.
    """
    counts = validate_one_vocabulary(corpora)
    if num_samples < 1:
        raise ValueError(f"num_samples is at least 1, got {num_samples}")
    size = match_size([int(c.sum()) for c in counts.values()], num_tokens)
    values: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for sample in range(num_samples):
        drawn: dict[str, npt.NDArray[np.int64]] = {}
        for index, (name, c) in enumerate(counts.items()):
            rng = np.random.default_rng((seed, sample, index))
            drawn[name] = subsample(c, size, rng)
            if c.sum() >= 2 * size:
                other = subsample(c - drawn[name], size, rng)
                values.setdefault((name, name), []).append(_compare(drawn[name], other, smoothing))
        for first, second in combinations(drawn, 2):
            values.setdefault((first, second), []).append(_compare(drawn[first], drawn[second], smoothing))
    found = []
    for first, second in sorted(values, key=lambda pair: [list(counts).index(name) for name in pair]):
        rows = np.array(values[first, second])
        with np.errstate(invalid="ignore"):
            mean = rows.mean(axis=0)
            spread = rows.std(axis=0, ddof=1) if num_samples > 1 else np.full(rows.shape[1], np.nan)
        found.append(
            Distance(
                first=first,
                second=second,
                num_tokens=size,
                smoothing=smoothing,
                kl=float(mean[0]),
                kl_sd=float(spread[0]),
                kl_reverse=float(mean[1]),
                kl_reverse_sd=float(spread[1]),
                js=float(mean[2]),
                js_sd=float(spread[2]),
                absent=float(mean[3]),
                absent_reverse=float(mean[4]),
                num_samples=num_samples,
            )
        )
    return found


def mixture_curve(
    test: npt.ArrayLike,
    base: npt.ArrayLike,
    added: npt.ArrayLike,
    *,
    num_tokens: int | None = None,
    smoothing: float = SMOOTHING,
    ratios: Sequence[float] | None = None,
    names: tuple[str, str, str] = ("test", "base", "added"),
) -> MixtureCurve:
    """KL(test || (1 - p) base + p added) at each share p of `ratios` (None: 0, 0.05, ..., 1), and where it is lowest.

    The mixture is of `num_tokens` tokens (None: of as many as the smaller source has) when `smoothing` occurrences are
    added to each word of it. The curve is convex in p, so its lowest point is found to 1e-9, also between two ratios.
    A minimum of inf (no smoothing, and a token of the test that neither source has) is at the nan ratio.
    """
    t, b, a = validate_one_vocabulary(dict(zip(names, (test, base, added), strict=True))).values()
    size = num_tokens if num_tokens is not None else match_size([int(b.sum()), int(a.sum())])
    grid = [i / 20 for i in range(21)] if ratios is None else [float(p) for p in ratios]
    for p in grid:
        if not 0 <= p <= 1:
            raise ValueError(f"ratios are shares in [0, 1], got {p}")
    goal, base_share, added_share = smoothed(t, smoothing), smoothed(b, 0.0), smoothed(a, 0.0)

    def divergence(p: float) -> float:
        return kl_divergence(goal, smoothed(size * ((1 - p) * base_share + p * added_share), smoothing))

    best = _lowest(divergence)
    return MixtureCurve(
        test=names[0],
        base=names[1],
        added=names[2],
        ratios=tuple(grid),
        kl=tuple(divergence(p) for p in grid),
        best_ratio=best,
        best_kl=divergence(best) if np.isfinite(best) else float("inf"),
        num_tokens=size,
        smoothing=smoothing,
    )


def nearest_mixture(
    test: npt.ArrayLike,
    sources: Mapping[str, npt.ArrayLike],
    *,
    num_tokens: int | None = None,
    smoothing: float = SMOOTHING,
    tolerance: float = 1e-6,
) -> tuple[dict[str, float], float]:
    """(shares of the sources, KL): the mixture of them that is nearest to `test` in KL(test || mixture).

    The problem is convex, and convexity gives a bound that the result is held to: no other mixture is nearer by more
    than `tolerance` nats. Smoothing and `num_tokens` as in `mixture_curve`. ValueError without a source, and where KL
    is infinite for every mixture.
    """
    if not sources:
        raise ValueError("there is no source to mix")
    counts = validate_one_vocabulary({**sources, "the test corpus": test})
    goal = smoothed(counts.pop("the test corpus"), smoothing)
    size = num_tokens if num_tokens is not None else match_size([int(c.sum()) for c in counts.values()])
    # Smoothing a mixture is mixing the smoothed sources.
    shares = np.stack([smoothed(size * smoothed(c, 0.0), smoothing) for c in counts.values()])
    has = goal > 0
    goal, shares = goal[has], shares[:, has]
    if not (shares.max(axis=0) > 0).all():
        raise ValueError("some tokens of the test corpus are in no source: every mixture is infinitely far; smooth")
    ratios = _nearest(goal, shares)
    for _ in range(10_000):
        # Expectation maximization multiplies each share by this gradient; at the nearest mixture none is above 1.
        gradient = shares @ (goal / (ratios @ shares))
        if gradient.max() - 1 <= tolerance:
            break
        ratios = ratios * gradient / (ratios @ gradient)
    else:
        raise ValueError(f"no mixture within {tolerance} nats of the nearest one was found; raise the tolerance")
    return dict(zip(counts, map(float, ratios), strict=True)), kl_divergence(goal, ratios @ shares)


def validate_one_vocabulary(corpora: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[np.int64]]:
    """The counts as int64 arrays; ValueError where lengths differ, or a corpus has no tokens."""
    counts = {name: np.asarray(c).astype(np.int64) for name, c in corpora.items()}
    if not counts:
        raise ValueError("there is no corpus to compare")
    sizes = {name: len(c) for name, c in counts.items()}
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{name}: {size:,}" for name, size in sizes.items())
        raise ValueError(f"the counts are of vocabularies of different sizes ({each}); use one tokenizer")
    for name, c in counts.items():
        if not c.sum():
            raise ValueError(f"{name} has no tokens; leave it out")
    return counts


def _compare(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], smoothing: float) -> tuple[float, ...]:
    p, q = smoothed(a, smoothing), smoothed(b, smoothing)
    raw_p, raw_q = smoothed(a, 0.0), smoothed(b, 0.0)
    return (
        kl_divergence(p, q),
        kl_divergence(q, p),
        js_divergence(raw_p, raw_q),
        float(raw_p[b == 0].sum()),
        float(raw_q[a == 0].sum()),
    )


def _nearest(goal: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ratios near the minimum, all above 0, for the steps that can prove it."""
    from scipy.optimize import minimize

    uniform = np.full(len(shares), 1 / len(shares))
    if len(shares) == 1:
        return uniform
    found = minimize(
        lambda r: -float(goal @ np.log(r @ shares)),
        uniform,
        jac=lambda r: -(shares @ (goal / (r @ shares))),
        method="SLSQP",
        bounds=[(1e-12, 1.0)] * len(shares),
        constraints={"type": "eq", "fun": lambda r: r.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 1_000},
    ).x
    found = np.clip(found, 1e-12, None) if np.isfinite(found).all() else uniform
    return found / found.sum()


def _lowest(function: Any) -> float:
    """Where a convex function on [0, 1] is lowest, to 1e-9; nan where it is inf everywhere."""
    from scipy.optimize import minimize_scalar

    inside = minimize_scalar(function, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-10})
    best = min((0.0, 1.0, float(inside.x)), key=function)
    return best if np.isfinite(function(best)) else float("nan")
