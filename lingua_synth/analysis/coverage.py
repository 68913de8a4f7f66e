"""How much of the vocabulary a corpus uses, at equal size: types, coverage of another corpus, mass of the tail.

A larger corpus shows more types, whatever it is made of. So corpora are compared at a *matched* number of tokens n:
what n of its tokens, drawn without replacement, would show. The expectation needs no drawing (rarefaction, Hurlbert
1971): a token that occurs c times among N is absent from n of them with probability

    q = C(N - c, n) / C(N, n)

and everything here is a sum over such q, exact for corpora of any size. `subsample` draws such a sample, for
statistics that are not sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Coefficients of 1/x, 1/x^3, ... in log(x!) - (x log x - x + log(2 pi x) / 2), to full precision from 16 on
# (Stirling's series, Abramowitz and Stegun 6.1.41).
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
_STIRLING_FROM = 16
# So few factors are multiplied one by one: a difference of factorials has an absolute error of some 10^-15.
DIRECT_UP_TO = 32


def log_probability_absent(counts: npt.ArrayLike, num_tokens: int) -> npt.NDArray[np.float64]:
    """log of the probability that each type is absent from `num_tokens` tokens drawn without replacement.

    `counts`: occurrences of each type; their sum is the corpus. -inf where it cannot be absent. The logarithm is exact
    to some 10^-14 for corpora of any size, where logarithms of factorials, subtracted, would be off by 0.01: their
    large terms are cancelled by hand. Raises ValueError for a negative count and where the corpus has fewer tokens.
    """
    c = _validated(counts, num_tokens)
    return _log_absent(c, int(c.sum()), num_tokens)


def expected_types(counts: npt.ArrayLike, num_tokens: int) -> float:
    """Expected number of different types among `num_tokens` tokens drawn without replacement; errors as above."""
    c = _validated(counts, num_tokens)
    return float(-np.expm1(_log_absent(c, int(c.sum()), num_tokens)).sum())


def expected_singletons(counts: npt.ArrayLike, num_tokens: int) -> float:
    """Expected number of types that occur exactly once among `num_tokens` tokens drawn without replacement.

    Divided by `num_tokens` it is the Good-Turing estimate of the mass of the types that were not seen.
    """
    c = _validated(counts, num_tokens)
    total = int(c.sum())
    if not num_tokens:
        return 0.0
    seen = c[c > 0]
    # Of the c occurrences one is drawn, and the other c - 1 are absent from the other n - 1 draws.
    log_others = _log_absent_of(seen - 1, total - 1, num_tokens - 1)
    return float(np.sum(np.exp(np.log(seen) + np.log(num_tokens / total) + log_others)))


def expected_coverage(train: npt.ArrayLike, test: npt.ArrayLike, num_tokens: int) -> tuple[float, float]:
    """(share of the tokens of `test`, share of its types) that `num_tokens` tokens of `train` are expected to contain.

    Both are counts over one vocabulary. ValueError for other lengths, for a `test` without tokens, and as above.
    """
    c, t = _validated(train, num_tokens), _validated(test, 0)
    if len(c) != len(t):
        raise ValueError(f"the counts are of vocabularies of {len(c):,} and {len(t):,} words; use one tokenizer")
    if not t.sum():
        raise ValueError("the corpus to be covered has no tokens")
    present = -np.expm1(_log_absent(c, int(c.sum()), num_tokens))
    return float(present @ t / t.sum()), float(present[t > 0].mean())


def tail_types(reference: npt.ArrayLike, share: float = 0.99) -> npt.NDArray[np.bool_]:
    """Which types are the tail of `reference`: all but the most frequent ones that make up `share` of its tokens.

    Boolean `[vocabulary]`; types that do not occur in it belong to its tail. ValueError for a share outside (0, 1) and
    a reference without tokens.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of the head is in (0, 1), got {share}")
    counts = _validated(reference, 0)
    if not counts.sum():
        raise ValueError("the reference has no tokens: it has no head and no tail")
    order = np.argsort(-counts, kind="stable")
    reached = np.cumsum(counts[order]) >= share * counts.sum()
    is_tail = np.ones(len(counts), dtype=bool)
    is_tail[order[: int(np.argmax(reached)) + 1]] = False
    return is_tail


def tail_mass(counts: npt.ArrayLike, is_tail: npt.NDArray[np.bool_]) -> float:
    """Share of the tokens of `counts` that are of types in the tail."""
    c = _validated(counts, 0)
    return float(c[is_tail].sum() / c.sum())


def subsample(counts: npt.ArrayLike, num_tokens: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Counts of `num_tokens` tokens drawn without replacement, int64; exact for corpora of any size.

    (numpy's multivariate hypergeometric ends at 10^9 tokens.) Each type is thinned by a binomial, which gives a
    uniform sample of about the right size; tokens drawn uniformly from it, or from the rest, make it exact.
    """
    c = _validated(counts, num_tokens)
    total = int(c.sum())
    if num_tokens == total:
        return c.copy()
    drawn = rng.binomial(c, num_tokens / total).astype(np.int64)
    excess = int(drawn.sum()) - num_tokens
    if excess > 0:
        drawn -= _draw_tokens(drawn, excess, rng)
    elif excess < 0:
        drawn += _draw_tokens(c - drawn, -excess, rng)
    return drawn


def grid_of_sizes(largest: int, per_decade: int = 4, smallest: int = 1_000) -> list[int]:
    """Numbers of tokens, evenly spaced in the logarithm, from `smallest` up to and with `largest`."""
    if largest <= smallest:
        return [largest] if largest else []
    steps = int(np.ceil(np.log10(largest / smallest) * per_decade))
    return sorted({round(size) for size in np.geomspace(smallest, largest, steps + 1)} - {0})


# --- inside ---


def _validated(counts: npt.ArrayLike, num_tokens: int) -> npt.NDArray[np.int64]:
    c = np.asarray(counts)
    if c.ndim != 1 or not np.issubdtype(c.dtype, np.integer):
        raise ValueError(f"counts are whole numbers, one a type; got {c.dtype} of shape {c.shape}")
    c = c.astype(np.int64)
    if (c < 0).any():
        raise ValueError("counts are 0 or more")
    if not 0 <= num_tokens <= c.sum():
        raise ValueError(
            f"{num_tokens:,} tokens cannot be drawn from a corpus of {int(c.sum()):,}; "
            f"match at {int(c.sum()):,} or fewer"
        )
    return c


def _log_absent(c: npt.NDArray[np.int64], total: int, num_tokens: int) -> npt.NDArray[np.float64]:
    # Few counts are different: each is computed once.
    different, where = np.unique(c, return_inverse=True)
    return _log_absent_of(different, total, num_tokens)[where]


def _log_absent_of(c: npt.NDArray[np.int64], total: int, n: int) -> npt.NDArray[np.float64]:
    """log C(total - c, n) - log C(total, n)."""
    result = np.full(len(c), -np.inf)
    possible = c <= total - n
    # The probability is symmetric in c and n: all terms are of the size of the smaller one.
    few = np.minimum(c[possible], n).astype(np.float64)
    left = total - np.maximum(c[possible], n).astype(np.float64)
    share = -(total - left) / total if total else np.zeros(len(few))
    with np.errstate(divide="ignore"):  # where nothing is left, nothing is to be drawn either
        # log x! = x log x - x + log(2 pi x) / 2 + rest(x): of the four factorials the large terms cancel by hand.
        logs = (
            _times_log1p(total - few, -few / max(total, 1))
            - _times_log1p(left - few, -few / np.maximum(left, 1))
            + _times_log1p(few, share)
            + (_half_log_and_rest(total - few) - _half_log_and_rest(np.array([float(total)])))
            - (_half_log_and_rest(left - few) - _half_log_and_rest(left))
        )
    for number in np.unique(few[few <= DIRECT_UP_TO]):
        is_it = few == number
        logs[is_it] = sum((np.log1p(-(total - left[is_it]) / (total - j)) for j in range(int(number))), 0.0)
    result[possible] = logs
    return result


def _times_log1p(factor: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """factor * log(1 + x), and 0 where the factor is 0."""
    return np.where(factor > 0, factor * np.log1p(np.where(factor > 0, x, 0.0)), 0.0)


def _half_log_and_rest(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log x! - (x log x - x), for whole x >= 0."""
    from scipy.special import gammaln

    big = np.maximum(x, _STIRLING_FROM)
    inverse = 1 / big
    series = np.zeros_like(big)
    for coefficient in reversed(_STIRLING):
        series = coefficient + series * inverse * inverse
    large = 0.5 * np.log(2 * np.pi * big) + series * inverse
    small = np.minimum(x, _STIRLING_FROM)
    exact = gammaln(small + 1) - (np.where(small > 0, small * np.log(np.maximum(small, 1)), 0.0) - small)
    return np.where(x >= _STIRLING_FROM, large, exact)


def _draw_tokens(counts: npt.NDArray[np.int64], num_tokens: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """`num_tokens` different tokens of those that `counts` has, uniformly, as counts of their types."""
    ends = np.cumsum(counts)
    total = int(ends[-1])
    if num_tokens > total // 2:
        return counts - _draw_tokens(counts, total - num_tokens, rng)
    places: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
    while len(places) < num_tokens:  # tokens drawn twice are drawn again: each new one is uniform among the others
        more = rng.integers(0, total, size=num_tokens - len(places))
        places = np.unique(np.concatenate([places, more]))
    return np.bincount(np.searchsorted(ends, places, side="right"), minlength=len(counts)).astype(np.int64)


def match_size(num_tokens: Sequence[int], asked: int | None = None) -> int:
    """Tokens at which corpora of these sizes are compared: `asked`, or the smallest; ValueError where one has fewer."""
    smallest = min(num_tokens)
    if asked is not None and asked > smallest:
        raise ValueError(
            f"asked are {asked:,} tokens of each corpus, one has {smallest:,}; lower the number, or leave it out"
        )
    return asked if asked is not None else smallest
