"""Which mixture of a runs table is natural text alone, and how much synthetic text the others hold.

A study compares mixtures with one that has no synthetic text, its *base*. A table need not name it: it is found from
the ratios, by one rule for every room that asks.
"""

from __future__ import annotations

import numpy as np

from lingua_synth.scaling.runs import Runs

PURE = 0.9999
"""A mixture whose largest ratio reaches this is one source alone."""


def ratios(runs: Runs) -> dict[str, dict[str, float]]:
    """Per mixture, the mean ratio of every source over its runs (an empty cell counts as 0)."""
    names = runs["mixture"] if len(runs) else np.empty(0, dtype=str)
    return {
        mixture: {
            source: float(np.mean(np.nan_to_num(np.asarray(runs[f"ratio_{source}"], dtype=float)[names == mixture])))
            for source in runs.sources
        }
        for mixture in runs.mixtures
    }


def base_mixture(runs: Runs, base: str | None = None) -> str | None:
    """The mixture every other is compared with: `base` when given, else the natural text alone.

    Natural text alone is the mixture that is one source only; among several such, the one whose source is called
    natural, then the one whose source takes part in most mixtures, then the first in the table. Without ratios in
    the table: a mixture called natural, else the first. None when the table is empty.
    Raises ValueError when `base` is not in the table.
    """
    mixtures = runs.mixtures
    if base is not None:
        if base not in mixtures:
            raise ValueError(
                f"base mixture {base!r} is not in the runs table; it has {', '.join(mixtures) or 'no runs'}"
            )
        return base
    if not mixtures:
        return None
    shares = ratios(runs)
    pure = {name: source for name in mixtures for source, ratio in shares[name].items() if ratio >= PURE}
    if not pure:
        return next((name for name in mixtures if "natural" in name.lower()), mixtures[0])

    def rank(name: str) -> tuple[bool, int]:
        source = pure[name]
        return "natural" in source.lower(), sum(shares[other][source] > 0 for other in mixtures)

    return max(pure, key=rank)  # max keeps the first of equals


def natural_source(runs: Runs, base: str | None) -> str | None:
    """The source that `base` consists of, the reference against which a ratio is synthetic; None if there is none."""
    if base is None:
        return None
    return next((source for source, ratio in ratios(runs)[base].items() if ratio >= PURE), None)


def synthetic_ratios(runs: Runs, base: str | None) -> dict[str, tuple[tuple[str, ...], float]]:
    """Per mixture, (its sources other than the natural one, their joint share); empty when no source is natural."""
    natural = natural_source(runs, base)
    if natural is None:
        return {}
    result = {}
    for mixture, shares in ratios(runs).items():
        others = tuple(source for source, ratio in shares.items() if source != natural and ratio > 0)
        result[mixture] = (others, sum(shares[source] for source in others))
    return result
