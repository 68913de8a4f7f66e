"""How far a loss would move with other documents of the same kind: percentile bootstrap over documents.

Documents of a domain are drawn with replacement, as many as there are, and its loss is computed of what was drawn:
sum of nats / sum of tokens. The macro average draws every domain by itself. A domain's numbers depend on its own
documents and the seed, not on which other domains were evaluated. (Tokens of a document are no independent draws, so
intervals over tokens would be too narrow.) With few documents the interval is itself uncertain; with one there is none.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]

NUM_RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 1 << 22  # documents drawn at once: 32 MB


def bootstrap_losses(
    nats: npt.NDArray[np.float64], tokens: npt.NDArray[np.int64], *, name: str, seed: int, num_resamples: int
) -> npt.NDArray[np.float64]:
    """Resampled losses of one domain, [num_resamples, columns]; nats: [documents] or [documents, columns]."""
    random = np.random.default_rng((seed, zlib.crc32(name.encode())))
    count = len(tokens)
    columns = np.column_stack([nats, tokens]).astype(np.float64)
    found = np.empty((num_resamples, columns.shape[1] - 1))
    at_once = max(1, _CHUNK // count)
    for start in range(0, num_resamples, at_once):
        rows = min(at_once, num_resamples - start)
        drawn = random.integers(0, count, (rows, count))
        sums = np.stack([column[drawn].sum(1) for column in columns.T], axis=1)
        found[start : start + rows] = sums[:, :-1] / sums[:, -1:]
    return found


def _percentiles(values: npt.NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def loss_intervals(
    documents: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Interval | None]:
    """Intervals of the loss of each domain, from (nats, tokens) of its documents, and of `loss_macro` and `loss_micro`.

    None for a domain of one document, and then for the averages.
    """
    found: dict[str, Interval | None] = {}
    losses, share = [], []
    for name, (nats, tokens) in documents.items():
        if len(tokens) < 2:
            found[name] = None
            continue
        drawn = bootstrap_losses(nats, tokens, name=name, seed=seed, num_resamples=num_resamples)[:, 0]
        found[name] = _percentiles(drawn, level)
        losses.append(drawn)
        share.append(float(tokens.sum()))
    is_whole = len(losses) == len(documents)
    # A domain's number of tokens is a choice (the budget), not an outcome: micro weights stay as they are.
    found["loss_macro"] = _percentiles(np.mean(losses, axis=0), level) if is_whole else None
    found["loss_micro"] = _percentiles(np.average(losses, axis=0, weights=share), level) if is_whole else None
    return found


def difference_intervals(
    pairs: Mapping[str, tuple[Any, Any, Any]],
    *,
    with_macro: bool,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Interval | None]:
    """Intervals of loss b - loss a from (nats a, nats b, tokens) of the same documents: both are drawn together, so
    that what makes a document hard for both cancels. `macro` among them where asked."""
    found: dict[str, Interval | None] = {}
    differences = []
    for name, (a, b, tokens) in pairs.items():
        if len(tokens) < 2:
            found[name] = None
            continue
        drawn = bootstrap_losses(np.column_stack([a, b]), tokens, name=name, seed=seed, num_resamples=num_resamples)
        differences.append(drawn[:, 1] - drawn[:, 0])
        found[name] = _percentiles(differences[-1], level)
    is_whole = with_macro and differences and len(differences) == len(pairs)
    found["macro"] = _percentiles(np.mean(differences, axis=0), level) if is_whole else None
    return found
