"""On which tokens the loss lies, and what that has to do with how often they were trained on.

Sums of loss by token type come in (an evaluation keeps them at no extra cost), with counts of the training and of the
test corpus; three things come out:

- `rolling_loss`: types sorted by how frequent they are in a corpus, their losses, and a running mean along that order;
- `loss_table`: type by type, how much more frequent it is in the test than in training, its loss, and what it costs;
- `loss_differences`: which types a model predicts better or worse than another, with intervals that say which
  differences are more than the choice of text.

All of them take plain arrays over one vocabulary, `counts[type]` and `nats[type]`: losses in nats per token are their
quotient. Sums are never averaged before they are added up. What is rare, and how much loss lies on it, is `tails.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lingua_synth.analysis.tails import checked_counts
from lingua_synth.scaling.regions import t_quantile
from lingua_synth.scaling.verdicts import LEVEL

WINDOW = 1_000
"""Types in the running mean: the paper shows one and does not say how wide."""
SMOOTHING = 0.5
"""Occurrences added to every type of both corpora before their shares are divided (Krichevsky and Trofimov 1981)."""
MIN_COUNT = 20
"""Scored tokens under which a type's own loss is mostly chance; such types count in sums and means, not one by one."""
DOUBLE = 2.0
"""A type that is so many times as frequent in the test as in training is under-represented."""
ORDERS = ("excess_nats", "ratio", "loss")
NUM_BINS = 10

Decode = Callable[[int], str]


@dataclass(frozen=True, eq=False)
class RollingLoss:
    """Evaluated types from the most to the least frequent in a reference corpus; all arrays `[types]`."""

    sorted_by: str
    token_id: np.ndarray
    frequency: np.ndarray
    """Share of the reference's tokens; 0 for a type it lacks."""
    count: np.ndarray
    """Scored tokens."""
    loss: np.ndarray
    """Mean loss of the type, nats per token."""
    mean: np.ndarray
    """Mean of `loss` over the `window` types around, each type alike."""
    low: np.ndarray
    high: np.ndarray
    """95 % interval of `mean`, with the types of the window as what was drawn."""
    pooled: np.ndarray
    """Loss over all tokens of the same types: frequent types weigh more."""
    window: int

    def rows(self) -> list[dict[str, Any]]:
        """One row a type, most frequent first, for a CSV file."""
        names = ("token_id", "frequency", "count", "loss", "mean", "low", "high", "pooled")
        columns = [getattr(self, name).tolist() for name in names]
        return [
            {"rank": k, **dict(zip(names, row, strict=True))} for k, row in enumerate(zip(*columns, strict=True), 1)
        ]


def rolling_loss(
    counts: ArrayLike, nats: ArrayLike, reference: ArrayLike, *, window: int = WINDOW, sorted_by: str = "training"
) -> RollingLoss:
    """Losses of the scored types sorted by their counts in `reference`, with a running mean over `window` of them.

    Ties (all types the reference lacks, for one) are sorted by token id. At either end the window holds what there is,
    at least half of it. `sorted_by` names the reference. ValueError for arrays of unequal length, nothing scored, and a
    window under 1.
    """
    counts, nats, reference = _aligned(counts=counts, nats=nats, reference=reference)
    if window < 1:
        raise ValueError(f"window is a number of types, at least 1; got {window}")
    order = np.argsort(-reference.astype(np.float64), kind="stable")
    order = order[counts[order] > 0]
    if not len(order):
        raise ValueError("no token was scored, so there is no loss to sort")
    count, total = counts[order], nats[order]
    loss = total / count
    position = np.arange(len(order))
    first = np.maximum(position - window // 2, 0)
    last = np.minimum(position - window // 2 + window, len(order))
    num = last - first

    def sums(values: np.ndarray) -> np.ndarray:
        running = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        return running[last] - running[first]

    # Centred first: a running sum of squares would cancel where losses are alike.
    centre = float(loss.mean())
    off = sums(loss - centre) / num
    spread = np.maximum(sums((loss - centre) ** 2) / num - off**2, 0.0) * num / np.maximum(num - 1, 1)
    half = np.where(num > 1, 1.959964 * np.sqrt(spread / num), np.inf)
    return RollingLoss(
        sorted_by=sorted_by,
        token_id=order,
        frequency=reference[order] / max(float(reference.sum()), 1.0),
        count=count,
        loss=loss,
        mean=centre + off,
        low=centre + off - half,
        high=centre + off + half,
        pooled=sums(total) / sums(count),
        window=window,
    )


@dataclass(frozen=True, eq=False)
class LossTable:
    """Type by type: how it is represented in training, and its loss. Arrays are `[types]`, in the order asked for."""

    token_id: np.ndarray
    count: np.ndarray
    """Scored tokens."""
    test_count: np.ndarray
    train_count: np.ndarray
    ratio: np.ndarray
    """Share of the test's tokens over share of training's, both smoothed: above 1 is under-represented in training."""
    loss: np.ndarray
    """Nats per token."""
    excess_nats: np.ndarray
    """What its tokens cost beyond as many average tokens: sum of loss - count x mean loss."""
    smoothing: float
    mean_loss: float
    """Over all scored tokens, those of rare types too."""
    under_tokens: float
    """Share of the scored tokens whose type is at least twice as frequent in the test as in training ..."""
    under_nats: float
    """... and the share of the whole loss that lies on them."""
    spearman: float
    """Rank correlation of `ratio` and `loss` over the types of the table; NaN for fewer than 3."""

    def __len__(self) -> int:
        return len(self.token_id)

    def rows(self, decode: Decode | None = None, most: int | None = None) -> list[dict[str, Any]]:
        """The first `most` types as rows, with their text where `decode` gives it."""
        names = ("token_id", "count", "test_count", "train_count", "ratio", "loss", "excess_nats")
        columns = [getattr(self, name)[:most].tolist() for name in names]
        found = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return [{**row, "text": decode(row["token_id"])} for row in found] if decode else found

    def to_dict(self) -> dict[str, Any]:
        """The figures of the whole table, plain for JSON."""
        names = ("smoothing", "mean_loss", "under_tokens", "under_nats", "spearman")
        return {"num_types": len(self)} | {name: getattr(self, name) for name in names}


def loss_table(
    counts: ArrayLike,
    nats: ArrayLike,
    train: ArrayLike,
    test: ArrayLike | None = None,
    *,
    smoothing: float = SMOOTHING,
    min_count: int = MIN_COUNT,
    by: str = "excess_nats",
) -> LossTable:
    """Loss and representation of every type that was scored `min_count` times or more, the worst first.

    `train` and `test`: counts of the training and of the test corpus (default: the scored tokens). `by`: what is
    sorted by, excess_nats (what costs most in all), ratio (what training lacks most) or loss. ValueError for arrays of
    unequal length, nothing scored, negative smoothing, another order.
    """
    if by not in ORDERS:
        raise ValueError(f"by is one of {', '.join(ORDERS)}; got {by!r}")
    if not smoothing > 0:
        raise ValueError(
            f"smoothing is a number of occurrences above 0, or a type that training lacks has no ratio; got {smoothing}"
        )
    counts, nats, train, tested = _aligned(counts=counts, nats=nats, train=train, test=counts if test is None else test)
    if not counts.any():
        raise ValueError("no token was scored, so there is no loss")
    shares = [(one + smoothing) / (float(one.sum()) + smoothing * len(one)) for one in (tested, train)]
    ratio = shares[0] / shares[1]
    mean = float(nats.sum()) / float(counts.sum())
    excess = nats - counts * mean
    under = ratio >= DOUBLE
    chosen = np.flatnonzero(counts >= max(min_count, 1))
    with np.errstate(invalid="ignore"):
        loss = nats / counts
    values = {"excess_nats": excess, "ratio": ratio, "loss": loss}[by][chosen]
    chosen = chosen[np.argsort(-values, kind="stable")]
    return LossTable(
        token_id=chosen,
        count=counts[chosen],
        test_count=tested[chosen],
        train_count=train[chosen],
        ratio=ratio[chosen],
        loss=loss[chosen],
        excess_nats=excess[chosen],
        smoothing=smoothing,
        mean_loss=mean,
        under_tokens=float(counts[under].sum()) / float(counts.sum()),
        under_nats=float(nats[under].sum()) / float(nats.sum()) if nats.any() else 0.0,
        spearman=_spearman(ratio[chosen], loss[chosen]),
    )


@dataclass(frozen=True, eq=False)
class TypeDifferences:
    """Losses of two models on the same text, type by type; arrays are `[types]`, in order of token id."""

    token_id: np.ndarray
    count: np.ndarray
    first_loss: np.ndarray
    second_loss: np.ndarray
    difference: np.ndarray
    """First less second, nats per token."""
    low: np.ndarray
    high: np.ndarray
    """Interval of each difference by itself; NaN with a reason in `why_not`."""
    q: np.ndarray
    """Share of false finds among all types with a q this low or lower (Benjamini and Hochberg 1995)."""
    level: float
    why_not: str = ""

    @property
    def told_apart(self) -> np.ndarray:
        """Types that differ by more than chance, with at most a share 1 - `level` of false finds among them."""
        return np.flatnonzero(self.q <= 1 - self.level)

    def rows(self, decode: Decode | None = None, most: int | None = None) -> list[dict[str, Any]]:
        """The `most` types of largest difference that was found, those told apart first."""
        apart = np.isin(np.arange(len(self.q)), self.told_apart)
        order = np.lexsort((-np.abs(self.difference * self.count), ~apart))[:most]
        names = ("token_id", "count", "first_loss", "second_loss", "difference", "low", "high", "q")
        columns = [getattr(self, name)[order].tolist() for name in names]
        found = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return [{**row, "text": decode(row["token_id"])} for row in found] if decode else found


def loss_differences(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    *,
    min_count: int = MIN_COUNT,
    level: float = LEVEL,
) -> TypeDifferences:
    """Which types the first model predicts worse or better than the second, on the same text.

    Each model is (counts, nats), arrays `[domains, vocab]` (or `[vocab]` for one domain). A type's difference d_j in
    domain j scatters around its mean over domains; with Var(d_j) = s^2 / count_j, the sum of count_j (d_j - d)^2 has
    mean (domains - 1) s^2. s^2 is pooled over types of similar count, ten groups, so that a type of few domains has an
    interval too. What a domain does to a type by itself is part of it. How much the models would differ had they been
    trained with other seeds is not. Types scored fewer than `min_count` times are left out.

    With one domain there is nothing to tell scatter by, and intervals are NaN. ValueError for arrays of unequal shape
    and models that were not evaluated on the same tokens.
    """
    (counts, a), (other_counts, b) = (_by_domain(*one) for one in (first, second))
    if counts.shape != other_counts.shape or not np.array_equal(counts, other_counts):
        raise ValueError("the two models were not evaluated on the same tokens; evaluate both alike")
    t_quantile(1, level)
    total = counts.sum(axis=0)
    chosen = np.flatnonzero(total >= max(min_count, 1))
    counts, a, b, total = counts[:, chosen], a[:, chosen], b[:, chosen], total[chosen]
    difference = (a - b).sum(axis=0) / total
    present = counts > 0
    with np.errstate(invalid="ignore"):
        of_domain = np.where(present, (a - b) / np.maximum(counts, 1), 0.0)
    off = np.where(present, counts * (of_domain - difference) ** 2, 0.0).sum(axis=0)
    freedom = present.sum(axis=0) - 1
    variance, free = _pooled_by_count(total, off, freedom)
    why_not = "" if free.any() else "one domain shows nothing of how differences scatter; evaluate on several"
    low, high, p = np.full((3, len(chosen)), np.nan)
    if not why_not:
        from scipy.special import stdtr, stdtrit

        error = np.sqrt(variance / total)
        half = stdtrit(free, (1 + level) / 2) * error
        low, high = difference - half, difference + half
        with np.errstate(divide="ignore", invalid="ignore"):
            p = 2 * stdtr(free, -np.abs(difference) / error)
        p = np.where(difference == 0, 1.0, p)
    return TypeDifferences(
        token_id=chosen,
        count=total,
        first_loss=a.sum(axis=0) / total,
        second_loss=b.sum(axis=0) / total,
        difference=difference,
        low=low,
        high=high,
        q=_false_discovery(p),
        level=level,
        why_not=why_not,
    )


def _pooled_by_count(total: np.ndarray, off: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(variance of one token's difference, its degrees of freedom) per type, pooled over types of similar count."""
    variance, free = np.full(len(total), np.nan), np.zeros(len(total))
    order = np.argsort(total, kind="stable")
    groups = np.array_split(order, min(NUM_BINS, max(1, int(freedom.sum()) // 20)))
    for group in groups:
        num = int(freedom[group].sum())
        free[group] = num
        variance[group] = off[group].sum() / num if num else np.nan
    # A group in which every type is in one domain only takes the scatter of all.
    if free.any() and (free == 0).any():
        none = free == 0
        variance[none], free[none] = off.sum() / freedom.sum(), freedom.sum()
    return variance, free


def _false_discovery(p: np.ndarray) -> np.ndarray:
    """q values of p values; NaN stays."""
    q = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    if len(known):
        order = known[np.argsort(p[known], kind="stable")]
        scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
        q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import rankdata

    if len(x) < 3:
        return float("nan")
    ranks = [rankdata(values) for values in (x, y)]
    if min(float(np.ptp(rank)) for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _by_domain(counts: ArrayLike, nats: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    rows = [np.atleast_2d(np.asarray(one)) for one in (counts, nats)]
    if rows[0].shape != rows[1].shape:
        raise ValueError(f"counts and nats stand for the same types; got shapes {rows[0].shape} and {rows[1].shape}")
    for row in rows:
        for domain in row:
            checked_counts(domain, "counts and nats")
    return rows[0], rows[1]


def _aligned(**arrays: ArrayLike) -> Sequence[np.ndarray]:
    found = {name: checked_counts(values, name) for name, values in arrays.items()}
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"one number a token type of one vocabulary; got lengths {listed}")
    return list(found.values())
