"""Which mixtures of one cell are as good as the best: the noise of a run, and sets of ties.

The lowest of ten noisy losses is the luckiest, not the best. `run_noise` says how far a run moves by chance; with it,
`tie_set` keeps every candidate that the runs do not show to be worse than another (multiple comparisons with the best,
Hsu 1984): the truly best one is in the set with the chance `level`, and whatever equals it mostly is as well.

Everything is in ln(loss): 0.002 is 0.2 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lingua_synth.scaling.natural import synthetic_ratios

if TYPE_CHECKING:
    from lingua_synth.scaling.runs import Runs
    from lingua_synth.scaling.study import StudyFits

MIN_FREEDOM = 3
"""Fewer differences between seeds say nothing about their size."""


@dataclass(frozen=True)
class RunNoise:
    """How far a run's log loss moves by chance."""

    sd: float
    freedom: int
    """Degrees of freedom of `sd`."""
    source: str
    """Where it is from, in words."""
    from_seeds: bool


def run_noise(runs: Runs, target: str = "loss_macro", fits: StudyFits | None = None) -> RunNoise | None:
    """Scatter of one run: of repeated seeds where there are enough, else of the runs around their laws.

    Seeds that all mixtures of a cell share (the same initialization and order of data) move these runs together; what
    they share cancels in a comparison inside the cell, so a cell is taken as mixture + seed + error. From laws the
    noise holds what the law misses too, and is never too small for it. None when nothing shows it.
    """
    total, freedom, groups = 0.0, 0, 0
    for y, labels in _cells_of(runs, target):
        columns = [_dummies(label) for label in labels]
        design = np.concatenate(columns, axis=1)
        residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        left = len(y) - int(np.linalg.matrix_rank(design))
        if left > 0:
            total, freedom, groups = total + float(residual @ residual), freedom + left, groups + 1
    if freedom >= MIN_FREEDOM:
        where = f"{groups} cells with repeated seeds"
        return RunNoise(math.sqrt(total / freedom), freedom, where, True)
    if fits is None:
        return None
    entries = [entry.fit for entry in fits.joint.values() if entry.fit is not None and entry.identifiable]
    if not entries:
        entries = [
            entry.fit
            for by_size in fits.data.values()
            for entry in by_size.values()
            if entry.fit is not None and entry.identifiable
        ]
    left = sum(one.num_points - len(one.law.parameters) for one in entries)
    if left < MIN_FREEDOM:
        return None
    squares = sum(float(np.sum(one.residuals**2)) for one in entries)
    return RunNoise(math.sqrt(squares / left), left, "the runs around their laws (no repeated seeds)", False)


def _cells_of(runs: Runs, target: str) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """(ln loss, labels: mixture and, where there are seeds, seed) of every cell with more than one run."""
    values = np.asarray(runs[target], dtype=float)
    seeds = runs["seed"] if "seed" in runs.columns else np.full(len(runs), math.nan)
    found: dict[tuple[str, float], list[int]] = {}
    for i in np.flatnonzero(np.isfinite(values) & (values > 0)):
        found.setdefault((str(runs["size"][i]), float(runs["tokens"][i])), []).append(int(i))
    cells = []
    for rows in found.values():
        if len(rows) < 2:
            continue
        labels = [runs["mixture"][rows]]
        if np.isfinite(seeds[rows]).all() and len(np.unique(seeds[rows])) > 1:
            labels.append(seeds[rows])
        cells.append((np.log(values[rows]), labels))
    return cells


def _dummies(labels: np.ndarray) -> np.ndarray:
    return (labels[:, None] == np.unique(labels)[None, :]).astype(float)


@lru_cache(maxsize=256)
def best_factor(num: int, freedom: int, level: float = 0.95) -> float:
    """One-sided critical value of Dunnett (1955) for one candidate against `num - 1` others with equal numbers of
    runs: the chance that no t of a difference exceeds it is `level`. By quadrature over the shared run and the
    variance, to some 1e-4."""
    from scipy.optimize import brentq
    from scipy.special import ndtr
    from scipy.stats import chi2

    if num < 2:
        return 0.0
    z, weight = np.polynomial.hermite_e.hermegauss(61)
    weight = weight / weight.sum()
    scales = np.sqrt(chi2.ppf((np.arange(200) + 0.5) / 200, max(freedom, 1)) / max(freedom, 1))

    def short(d: float) -> float:
        inside = ndtr(z[:, None] + math.sqrt(2) * d * scales[None, :]) ** (num - 1)
        return float((weight @ inside).mean()) - level

    return float(brentq(short, 0.0, 200.0, xtol=1e-6))


def tie_set(means: Sequence[float], counts: Sequence[int], noise: RunNoise, level: float = 0.95) -> tuple[int, ...]:
    """Indices of the candidates that may be best: `means` of ln loss over `counts` runs each.

    A candidate drops out when another is lower by more than the critical value times the standard error of their
    difference. The lowest is always in it.
    """
    if not len(means):
        return ()
    values, num = np.asarray(means, dtype=float), np.asarray(counts, dtype=float)
    d = best_factor(len(values), noise.freedom, level)
    reach = d * noise.sd * np.sqrt(1 / num[:, None] + 1 / num[None, :])
    worse = (values[:, None] - values[None, :] > reach).any(axis=1)
    return tuple(int(k) for k in np.flatnonzero(~worse))


@dataclass(frozen=True)
class RatioTies:
    """One cell: the ratios of one synthetic source, and which of them may be the best."""

    size: str
    tokens: float
    N: float
    source: str
    ratios: tuple[float, ...]
    """Ascending."""
    losses: tuple[float, ...]
    """Geometric mean over the runs of each."""
    best: float
    """Ratio of the lowest loss."""
    ties: tuple[float, ...]
    """Ratios that the runs do not tell from the best; all of them when no noise is known."""
    known: bool
    """Whether a noise was known."""

    @property
    def at_edge(self) -> bool:
        """The tie set reaches the first or the last ratio that was trained."""
        return self.ties[0] == self.ratios[0] or self.ties[-1] == self.ratios[-1]


def ratio_ties(
    runs: Runs,
    base: str | None,
    source: str,
    noise: RunNoise | None,
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    level: float = 0.95,
) -> list[RatioTies]:
    """Every cell that has at least three ratios of `source` in natural text, smallest model and budget first."""
    shares = synthetic_ratios(runs, base)
    on_axis = {m: share for m, (others, share) in shares.items() if others in ((), (source,))}
    values = np.asarray(runs[target], dtype=float)
    try:
        N = runs.N(n_definition)
    except ValueError:
        N = np.full(len(runs), math.nan)
    found: dict[tuple[str, float], dict[float, list[int]]] = {}
    for i in np.flatnonzero(np.isfinite(values) & (values > 0)):
        mixture = str(runs["mixture"][i])
        if mixture in on_axis:
            cell = found.setdefault((str(runs["size"][i]), float(runs["tokens"][i])), {})
            cell.setdefault(round(on_axis[mixture], 6), []).append(int(i))
    result = []
    for (size, tokens), by_ratio in found.items():
        if len(by_ratio) < 3:
            continue
        result.append(_ties_of_cell(size, tokens, source, by_ratio, np.log(values), N, noise, level))
    return sorted(result, key=lambda one: (one.N if math.isfinite(one.N) else math.inf, one.size, one.tokens))


def _ties_of_cell(
    size: str,
    tokens: float,
    source: str,
    by_ratio: Mapping[float, list[int]],
    logs: np.ndarray,
    N: np.ndarray,
    noise: RunNoise | None,
    level: float,
) -> RatioTies:
    ratios = tuple(sorted(by_ratio))
    means = [float(np.mean(logs[by_ratio[r]])) for r in ratios]
    counts = [len(by_ratio[r]) for r in ratios]
    tied = tie_set(means, counts, noise, level) if noise is not None else tuple(range(len(ratios)))
    rows = [i for members in by_ratio.values() for i in members]
    return RatioTies(
        size=size,
        tokens=tokens,
        N=float(np.mean(N[rows])),
        source=source,
        ratios=ratios,
        losses=tuple(math.exp(value) for value in means),
        best=ratios[int(np.argmin(means))],
        ties=tuple(ratios[k] for k in tied),
        known=noise is not None,
    )
