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

from lingua_synth.scaling.kinds import kinds_of
from lingua_synth.scaling.natural import synthetic_ratios

if TYPE_CHECKING:
    from lingua_synth.scaling import Runs


MOST_MIXTURES = 12
"""Mixtures in one figure."""


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


def main_mixtures(runs: Runs, base: str | None) -> list[str]:
    """The mixtures that one figure can show: all of them up to a dozen; of more, natural text and every source by a
    third, by two thirds and alone, as the paper's ten, else those of most runs. In table order."""
    mixtures = runs.mixtures
    if len(mixtures) <= MOST_MIXTURES:
        return mixtures
    shares = synthetic_ratios(runs, base)
    kinds = kinds_of(runs, base)
    chosen = {base} if base is not None else set()
    for mixture, (sources, share) in shares.items():
        thirds = round(3 * share)
        plain = len(sources) == 1 and kinds[sources[0]].generator is None
        if plain and thirds and abs(share - thirds / 3) < 0.011:
            chosen.add(mixture)
    if not 2 < len(chosen) <= MOST_MIXTURES:
        names = runs["mixture"]
        by_runs = sorted(mixtures, key=lambda m: -int((names == m).sum()))
        chosen = {*by_runs[:MOST_MIXTURES], *([base] if base is not None else [])}
    return [mixture for mixture in mixtures if mixture in chosen]


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
