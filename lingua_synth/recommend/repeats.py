"""What a token is worth when it is read again, for natural and for synthetic text.

Muennighoff et al. 2023: U unique tokens read D/U times teach as much as `U (1 + R (1 - exp(-(D/U - 1)/R)))` new ones.
R comes from the table where its runs repeat text and determine it; else it is the published one, with the range of
refits of the published runs as its uncertainty, and the answer says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lingua_synth.scaling.fit import fit
from lingua_synth.scaling.natural import PURE, natural_source, ratios
from lingua_synth.scaling.ratio import DOUBTED_R
from lingua_synth.scaling.repeats import value_of_repeats
from lingua_synth.scaling.repetition import PUBLISHED_R_D, RepetitionLaw
from lingua_synth.scaling.runs import Runs
from lingua_synth.scaling.uncertainty import bootstrap

MAX_PASSES = 1.02
"""Runs that read no source more often than this are taken as runs of fresh text: the last window may wrap around."""
NUM_DRAWS = 300
"""Resamples behind an R from the table."""


@dataclass(frozen=True, eq=False)
class Repeats:
    """How slowly repeats of one source lose their worth."""

    R: float
    origin: str
    """Where R is from, in words."""
    values: np.ndarray | None = None
    """R by resamples of the runs; None: any value of the range of published refits, its logarithm evenly spread."""

    def draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """`num` values that R may have."""
        if self.values is None:
            return np.exp(rng.uniform(math.log(DOUBTED_R[0]), math.log(DOUBTED_R[1]), num))
        return rng.choice(self.values, num)


def passes_of(runs: Runs, source: str) -> np.ndarray:
    """How often each run read the tokens of `source`, at least 1; 1 where the table does not say."""
    unique = runs.columns.get(f"unique_tokens_{source}")
    if unique is None:
        epochs = runs.columns.get(f"epochs_{source}")
        return np.ones(len(runs)) if epochs is None else np.fmax(epochs, 1.0)
    read = np.nan_to_num(runs[f"ratio_{source}"]) * runs["tokens"]
    known = np.isfinite(unique) & (unique > 0)
    return np.where(known, np.maximum(read / np.where(known, unique, 1.0), 1.0), 1.0)


def fresh_runs(runs: Runs) -> Runs:
    """The runs that read no source twice."""
    most = np.max([passes_of(runs, source) for source in runs.sources] or [np.ones(len(runs))], axis=0)
    return runs.take(most <= MAX_PASSES)


def repeats_of(
    runs: Runs, base: str, source: str, *, target: str, n_definition: str, num: int = NUM_DRAWS, seed: int = 0
) -> Repeats:
    """R of `source`, from the runs of it alone where they repeat it and determine R; else the published one."""
    alone = [mixture for mixture, shares in ratios(runs).items() if shares.get(source, 0.0) >= PURE]
    mine = runs.take(np.isin(runs["mixture"], alone))
    whose = "natural" if source == natural_source(runs, base) else source
    passes = passes_of(mine, source) if len(mine) else np.ones(0)
    why = f"no run of {source} alone reads a token twice"
    if (passes > MAX_PASSES).any():
        try:
            N, D = mine.N(n_definition), mine["tokens"]
            several = len(np.unique(N)) > 1
            law = RepetitionLaw(size=several)
            found = fit(law, N=N if several else None, D=D, U=D / passes, loss=mine[target])
            why = "; ".join(found.reasons)
            if found.identifiable:
                drawn = bootstrap(found, n=num, seed=seed)
                value = value_of_repeats(found, resamples=drawn)
                weak = " (weakly identified)" if value.weakly_identified else ""
                words = f"R of {whose} text {value.R:.3g} [{value.interval[0]:.3g}, {value.interval[1]:.3g}]{weak}"
                column = drawn.params[:, found.law.parameters.index("R_D")]
                return Repeats(value.R, f"{words}, by {len(mine)} runs of it alone", column[np.isfinite(column)])
        except ValueError as error:
            why = str(error)
    low, high = DOUBTED_R
    words = (
        f"R of {whose} text {PUBLISHED_R_D} [{low:g}, {high:g}], of natural text in Muennighoff et al. 2023 and refits"
    )
    return Repeats(PUBLISHED_R_D, f"{words}: here {why}")
