"""Selectors: pure functions (table, parameters, seed) -> which rows are kept, and how probable that was.

Selectors of two kinds. Some look at one row at a time (`disagree`, `strategies`, `long`): a row's fate does not depend
on the others. Some take a number of rows out of those there are (`random`, `clusters`, `domains`, `quota`, `s1`). Draws
come from the seed and the row's id, so the order of the records does not matter, and more rows of one `random` are a
superset of fewer.

The inclusion probability p of a row makes means over a selection comparable with the pool: weight 1/p (Horvitz and
Thompson 1952). It is 0 or 1 where nothing is drawn, and nan where nobody knows it (`s1`).

What others measured with these is in the docstrings: GPQA-Diamond of Llama-3.1-8B after fine-tuning on so many traces,
NaturalThoughts (arXiv 2507.01921), where random 1k / 10k / 100k / 500k gave 37.1 / 37.6 / 42.5 / 48.3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingua_synth.generate.selection.traces import TraceTable

KMEANS_ROWS = 20_000
"""Rows that k-means is fitted on, drawn; all others go to the nearest centre."""
KMEANS_ROUNDS = 20
ASSIGN_ROWS = 8192

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """Which rows of a table are kept, and with which probability each row was to be kept."""

    kept: Mask
    inclusion: Floats
    """Per row of the table, in [0, 1]; nan where it is not known; 0 where an earlier step of a chain left
    the row out."""

    def __len__(self) -> int:
        return int(self.kept.sum())

    @property
    def indices(self) -> NDArray[np.int64]:
        """Kept rows, ascending."""
        return np.flatnonzero(self.kept)

    @property
    def weights(self) -> Floats:
        """1 / inclusion of the kept rows, in the order of `indices`."""
        weights: Floats = 1.0 / self.inclusion[self.kept]
        return weights


def random(table: TraceTable, n: int, *, seed: int = 0) -> Selection:
    """`n` rows, all alike: the control of every selection, and hard to beat above 300k rows."""
    _check_size(n, len(table), "rows")
    kept = _smallest(table.draws(seed, "random"), n)
    return Selection(kept, np.full(len(table), n / len(table) if len(table) else 0.0))


def long(table: TraceTable, C: float = 5000.0, tau: float = 2.5, *, seed: int = 0) -> Selection:
    """Each row with p = min(1, (num_tokens / C)^tau): long traces always, short ones rarely."""
    if C <= 0 or tau < 0:
        raise ValueError(f"long needs C above 0 and tau of 0 or more, got C={C:g}, tau={tau:g}")
    return _bernoulli(table, np.minimum(1.0, (table.column("num_tokens") / C) ** tau), seed, "long")


def disagree(table: TraceTable, *, seed: int = 0) -> Selection:
    """Rows where the judge found teacher and reference to differ: hard questions. 10k: 39.7, 100k: 45.2, 500k: 45.2."""
    return _certain(table.column("agree") == 0)


def strategies(table: TraceTable, min: float = 4, max: float = 8, density: float = 0.0, *, seed: int = 0) -> Selection:
    """Rows with `min` to `max` different strategies; of sparse ones fewer. 100k: 44.1, 500k: 48.6.

    A row's density is its uses of strategies per 1,000 tokens. Below `density` it is kept with p = its density /
    `density`; 0 keeps all. (NaturalThoughts down-samples sparse traces without saying by how much: this is our rule.)
    """
    if density < 0:
        raise ValueError(f"strategies needs a density of 0 or more uses per 1,000 tokens, got {density:g}")
    within = _band(table.column("num_strategies"), min, max, "strategies")
    if density == 0:
        return _certain(within)
    num_tokens = np.maximum(table.column("num_tokens"), 1.0)
    own = table.column("num_uses") * 1000.0 / num_tokens
    return _bernoulli(table, np.where(within, np.minimum(1.0, own / density), 0.0), seed, "strategies")


def tokens(table: TraceTable, min: float = 0, max: float = np.inf, *, seed: int = 0) -> Selection:
    """Rows of `min` to `max` tokens. NaturalThoughts takes up to 16,384."""
    return _certain(_band(table.column("num_tokens"), min, max, "tokens"))


def verbosity(table: TraceTable, min: float = 0, max: float = 10, *, seed: int = 0) -> Selection:
    """Rows with a verbosity of `min` to `max`; a weak signal where it was measured."""
    return _certain(_band(table.column("verbosity"), min, max, "verbosity"))


def complete(table: TraceTable, *, seed: int = 0) -> Selection:
    """Rows with reasoning and answer that did not end at the generator's greatest length."""
    return _certain(table.complete == 1)


def clusters(table: TraceTable, k: int, n: int, *, seed: int = 0) -> Selection:
    """`n` rows, as many from each of `k` clusters of the embeddings; a small cluster gives what it has.

    k-means on vectors of length 1, i.e. by cosine.
    """
    _check_size(n, len(table), "rows")
    if not 1 <= k <= len(table):
        raise ValueError(f"clusters needs k from 1 to the {len(table):,} rows there are, got {k}")
    vectors = np.asarray(table.column("embedding"), dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        first = table.ids[int(np.argmin(np.isfinite(norms) & (norms > 0)))]
        raise ValueError(f"the embedding of {first!a} is zero or not finite, it has no direction to cluster by")
    order = np.argsort(table.draws(seed, "k-means"), kind="stable")
    centres = _kmeans(vectors[order[:KMEANS_ROWS]] / norms[order[:KMEANS_ROWS]], k, seed)
    groups = _nearest(vectors, norms, centres)
    return _even(table, groups, n, seed, "clusters")


def domains(table: TraceTable, n: int, *, seed: int = 0) -> Selection:
    """`n` rows, as many from each domain; a small domain gives what it has.

    Uniform over topics hurt in NaturalThoughts: 32.7 against 37.6 of random at 10k.
    """
    _check_size(n, len(table), "rows")
    _, groups = np.unique(table.column("domain").astype(str), return_inverse=True)
    return _even(table, groups, n, seed, "domains")


def quota(table: TraceTable, *, seed: int = 0, **rows: int) -> Selection:
    """So many rows of each named domain, e.g. quota(math=1000, "Life Sciences"=500); none of the others."""
    if not rows:
        raise ValueError("quota needs domains and their numbers of rows, e.g. quota(math=1000, physics=500)")
    domain = table.column("domain")
    kept, inclusion = np.zeros(len(table), dtype=bool), np.zeros(len(table))
    draws = table.draws(seed, "quota")
    for name, n in rows.items():
        members = np.flatnonzero(domain == name)
        if not len(members):
            there = ", ".join(sorted(set(domain))[:12])
            raise ValueError(f"quota asks for the domain {name!r}; there are {there or 'none'}")
        _check_size(n, len(members), f"rows of {name}")
        kept[members[_smallest(draws[members], n)]] = True
        inclusion[members] = n / len(members)
    return Selection(kept, inclusion)


def s1(table: TraceTable, n: int, *, seed: int = 0) -> Selection:
    """`n` rows the way of s1K: of complete traces the hard ones, spread over domains, longer ones first.

    Quality: `complete`. Difficulty: `disagree`. Diversity: again and again a domain, all that have rows left alike, and
    of it one row with a weight of 2^-r, where r = 0, 1, ... ranks the rows left from the longest. The probabilities of
    such a walk are not known. At 1k rows: 36.9.
    """
    eligible = np.flatnonzero((table.complete == 1) & (table.column("agree") == 0))
    _check_size(n, len(eligible), "complete rows where teacher and reference disagree")
    domain = table.column("domain").astype(str)
    # Ties of length by key, so that the walk is one of rows, not of places.
    ranked = eligible[np.lexsort((table.keys[eligible], -table.column("num_tokens")[eligible]))]
    left = {name: ranked[domain[ranked] == name].tolist() for name in np.unique(domain[ranked])}
    names = list(left)
    walk = np.random.default_rng(_number(seed, "s1"))
    kept = np.zeros(len(table), dtype=bool)
    for _ in range(n):
        at = int(walk.integers(len(names)))
        rows = left[names[at]]
        # Inverse of the truncated geometric distribution: P(r) = 2^-(r+1) / (1 - 2^-m).
        rank = int(-np.log2(1.0 - walk.random() * (1.0 - 0.5 ** len(rows))))
        kept[rows.pop(min(rank, len(rows) - 1))] = True
        if not rows:
            del left[names.pop(at)]
    inclusion = np.zeros(len(table))
    inclusion[eligible] = np.nan
    return Selection(kept, inclusion)


SELECTORS: Mapping[str, Callable[..., Selection]] = {
    function.__name__: function
    for function in (
        random, long, disagree, strategies, clusters, domains, quota, s1, tokens, verbosity, complete,
    )
}  # fmt: skip
"""Name in an expression -> function."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "long": ("num_tokens",),
    "disagree": ("agree",),
    "strategies": ("num_strategies", "num_uses", "num_tokens"),
    "tokens": ("num_tokens",),
    "verbosity": ("verbosity",),
    "clusters": ("embedding",),
    "domains": ("domain",),
    "quota": ("domain",),
    "s1": ("agree", "domain", "num_tokens"),
}
"""Name -> columns that it reads."""


def _certain(kept: NDArray[Any]) -> Selection:
    mask = np.asarray(kept, dtype=bool)
    return Selection(mask, mask.astype(np.float64))


def _bernoulli(table: TraceTable, probability: Floats, seed: int, salt: str) -> Selection:
    return Selection(table.draws(seed, salt) < probability, probability)


def _band(values: Floats, low: float, high: float, name: str) -> Mask:
    if low > high:
        raise ValueError(f"{name}: min={low:g} is above max={high:g}")
    return (values >= low) & (values <= high)


def _check_size(n: int, available: int, what: str) -> None:
    if n < 1:
        raise ValueError(f"asked for {n} {what}; ask for at least one")
    if n > available:
        raise ValueError(f"asked for {n:,} {what}, there are {available:,}; ask for fewer")


def _smallest(draws: Floats, n: int) -> Mask:
    """Where the `n` smallest are. Of two alike, not expected with 53 random bits, the first."""
    kept = np.zeros(len(draws), dtype=bool)
    kept[np.argsort(draws, kind="stable")[:n]] = True
    return kept


def _even(table: TraceTable, groups: NDArray[np.integer[Any]], n: int, seed: int, salt: str) -> Selection:
    """`n` rows, as evenly over the groups as their sizes allow; who gets one more is drawn."""
    sizes = np.bincount(groups)
    shares = _shares(sizes, n, np.random.default_rng(_number(seed, salt)).permutation(len(sizes)))
    kept, draws = np.zeros(len(table), dtype=bool), table.draws(seed, salt)
    for group, share in enumerate(shares):
        members = np.flatnonzero(groups == group)
        kept[members[_smallest(draws[members], int(share))]] = True
    return Selection(kept, (shares / np.maximum(sizes, 1))[groups])


def _shares(sizes: NDArray[np.integer[Any]], n: int, order: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Integers that sum to `n`, each at most its size, the largest as small as possible; odd ones go by `order`."""
    shares = np.zeros(len(sizes), dtype=np.int64)
    while n > 0:
        room = order[shares[order] < sizes[order]]
        each = n // len(room)
        if each == 0:
            shares[room[:n]] += 1
            break
        added = np.minimum(each, sizes[room] - shares[room])
        shares[room] += added
        n -= int(added.sum())
    return shares


def _number(seed: int, salt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{salt}".encode()).digest()[:8])


def _kmeans(vectors: NDArray[np.float32], k: int, seed: int) -> NDArray[np.float32]:
    """Centres after k-means++ (Arthur and Vassilvitskii 2007) and `KMEANS_ROUNDS` rounds; empty clusters stay empty."""
    import warnings

    from scipy.cluster.vq import kmeans2

    k = min(k, len(vectors))
    random = np.random.default_rng(_number(seed, "k-means++"))
    centres = [vectors[int(random.integers(len(vectors)))]]
    distances = ((vectors - centres[0]) ** 2).sum(axis=1, dtype=np.float64)
    while len(centres) < k:
        total = distances.sum()
        at = random.random() * total
        # All vectors are centres already where the total is 0: the rest would be copies.
        if total <= 0:
            break
        centres.append(vectors[min(int(np.searchsorted(distances.cumsum(), at, side="right")), len(vectors) - 1)])
        distances = np.minimum(distances, ((vectors - centres[-1]) ** 2).sum(axis=1, dtype=np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster: it gives no rows, the others give more
        found, _ = kmeans2(vectors, np.stack(centres), iter=KMEANS_ROUNDS, minit="matrix")
    centres_found: NDArray[np.float32] = np.asarray(found, dtype=np.float32)
    return centres_found


def _nearest(
    vectors: NDArray[np.float32], norms: NDArray[np.float32], centres: NDArray[np.float32]
) -> NDArray[np.int64]:
    half_norms = (centres**2).sum(axis=1) / 2
    parts = [
        np.argmax(vectors[at : at + ASSIGN_ROWS] / norms[at : at + ASSIGN_ROWS] @ centres.T - half_norms, axis=1)
        for at in range(0, len(vectors), ASSIGN_ROWS)
    ]
    return np.concatenate(parts)
