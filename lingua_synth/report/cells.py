"""The runs table, read the way a reader asks about it: cell by cell.

A *cell* is one model size at one training budget. Inside a cell the mixtures differ and nothing else, so a cell is
where mixtures are compared; repeated seeds of one mixture in one cell are averaged, and their number is kept.
Every figure and every sentence of the report starts from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lingua_synth.scaling import Runs

PURE = 0.9999
"""A mixture whose largest ratio reaches this is one source alone."""


@dataclass(frozen=True)
class Cell:
    """One model size at one budget, with the losses of every mixture that was trained there."""

    size: str
    num_parameters: float
    """N under the definition asked for; NaN when the table has no such column."""
    tokens: float
    """D: training tokens, repeats counted."""
    losses: dict[str, np.ndarray]
    """Per mixture, the target of every run (one per seed), mixtures in table order."""

    def mean(self, mixture: str) -> float:
        """Mean target over the seeds of `mixture`; NaN when it was not trained in this cell."""
        return float(np.mean(self.losses[mixture])) if mixture in self.losses else math.nan

    def best(self) -> str:
        """The mixture of lowest mean target; the first in table order on an exact tie."""
        return min(self.losses, key=self.mean)

    @property
    def words(self) -> str:
        """'size nano-2, 1M tokens'."""
        from lingua_synth.report.words import short_count

        return f"size {self.size}, {short_count(self.tokens)} tokens"


def parameters(runs: Runs, n_definition: str) -> np.ndarray:
    """N of every run under `n_definition`; all NaN when the table lacks that count."""
    try:
        return runs.N(n_definition)
    except ValueError:
        return np.full(len(runs), math.nan)


def cells(runs: Runs, target: str, n_definition: str = "non_embedding") -> list[Cell]:
    """Every cell of the table, smallest model first and smallest budget first within a model.

    Runs without a value for `target` are left out. ValueError, naming the columns, when there is no such column.
    """
    if not len(runs):
        return []
    sizes, tokens, mixtures, values = runs["size"], runs["tokens"], runs["mixture"], runs[target]
    N = parameters(runs, n_definition)
    found: dict[tuple[str, float], dict[str, list[int]]] = {}
    for i in range(len(runs)):
        if not math.isfinite(values[i]):  # a domain that some runs were not evaluated on
            continue
        by_mixture = found.setdefault((str(sizes[i]), float(tokens[i])), {})
        by_mixture.setdefault(str(mixtures[i]), []).append(i)
    order = {name: k for k, name in enumerate(runs.mixtures)}
    result = []
    for (size, budget), by_mixture in found.items():
        rows = [i for members in by_mixture.values() for i in members]
        losses = {
            name: np.asarray([values[i] for i in by_mixture[name]], dtype=float)
            for name in sorted(by_mixture, key=order.__getitem__)
        }
        result.append(Cell(size, float(np.mean(N[rows])), budget, losses))
    first_seen = {size: k for k, size in reversed(list(enumerate(str(s) for s in sizes)))}
    return sorted(result, key=lambda c: (_nan_last(c.num_parameters), first_seen[c.size], c.tokens))


def largest_cell(all_cells: Sequence[Cell]) -> Cell | None:
    """The cell to speak about first: among those with most mixtures, the largest model, then the largest budget."""
    if not all_cells:
        return None
    rank = {size: k for k, size in enumerate(dict.fromkeys(cell.size for cell in all_cells))}
    return max(all_cells, key=lambda c: (min(len(c.losses), 2), rank[c.size], c.tokens))


def main_size(all_cells: Sequence[Cell]) -> str | None:
    """The size whose losses are best drawn against D: the one with most budgets, the largest of those."""
    sizes = list(dict.fromkeys(cell.size for cell in all_cells))
    if not sizes:
        return None
    return max(sizes, key=lambda s: (sum(cell.size == s for cell in all_cells), sizes.index(s)))


def main_tokens(all_cells: Sequence[Cell]) -> float | None:
    """The budget whose losses are best drawn against N: the one with most sizes, the largest of those."""
    budgets = sorted({cell.tokens for cell in all_cells})
    if not budgets:
        return None
    return max(budgets, key=lambda d: (len({cell.size for cell in all_cells if cell.tokens == d}), d))


# --- which mixture is the one without synthetic text ---


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


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
