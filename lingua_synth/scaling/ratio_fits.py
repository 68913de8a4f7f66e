"""One law in the ratio per kind of synthetic text, from all runs of a study that mix it into natural text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lingua_synth.scaling.fit import ScalingFit, fit
from lingua_synth.scaling.mixture_law import MixtureLaw
from lingua_synth.scaling.natural import synthetic_ratios
from lingua_synth.scaling.ratio import NODES, BestRatio, best_ratio, lowest_ratio
from lingua_synth.scaling.runs import Runs
from lingua_synth.scaling.uncertainty import Bootstrap, bootstrap

MANY_RUNS = 40
"""From here on the law may have an exponent of N on the data term, when there are three sizes."""


@dataclass(frozen=True, eq=False)
class RatioFit:
    """The law in N, D and the share of one source, or why there is none."""

    source: str
    fit: ScalingFit | None = None
    bootstrap: Bootstrap | None = None
    refusal: str | None = None

    @property
    def usable(self) -> bool:
        """Whether best ratios may be read off it."""
        return self.fit is not None and self.fit.identifiable and self.bootstrap is not None

    @property
    def why_not(self) -> str:
        """Why it is not usable; empty when it is."""
        if self.refusal is not None:
            return self.refusal
        if self.fit is not None and not self.fit.identifiable:
            return "; ".join(self.fit.reasons)
        return "" if self.bootstrap is not None else "no resamples were asked for"

    def at(self, N: float, D: float, level: float = 0.95, *, rivals: bool = True) -> BestRatio:
        """The best ratio at one place; the fit must be usable."""
        assert self.fit is not None and self.bootstrap is not None, "only a usable fit is asked"
        size = N if "N" in self.fit.law.variables else None
        return best_ratio(self.fit, size, D, resamples=self.bootstrap, level=level, rivals=rivals)

    def point(self, N: float, D: float) -> float:
        """The best ratio at one place by the fit alone, without an interval; the fit must be usable."""
        assert self.fit is not None, "only a usable fit is asked"
        return best_ratio(self.fit, N if "N" in self.fit.law.variables else None, D, n=0, rivals=False).ratio

    def interval(self, found: BestRatio) -> tuple[float, float]:
        """The interval of `found`, widened to hold what the rival law says: the form of the law is a guess too."""
        assert found.interval is not None, "a usable fit has resamples"
        return min(found.interval[0], *found.under.values()), max(found.interval[1], *found.under.values())

    def resampled(self, N: float, D: float) -> np.ndarray:
        """The best ratio at one place by every resample, in their order."""
        assert self.fit is not None and self.bootstrap is not None, "only a usable fit is asked"
        nodes = np.linspace(*self._span(), NODES)
        place = {"N": N} if "N" in self.fit.law.variables else {}
        return lowest_ratio(nodes, np.asarray(self.fit.law.predict(self._solved(), **place, D=D, r=nodes)))

    def log_gain(self, N: float, D: float, r: float) -> tuple[float, np.ndarray]:
        """ln(loss at r / loss of natural text alone) at one place: (by the fit, by every resample)."""
        assert self.fit is not None, "only a usable fit is asked"
        place = {"N": N} if "N" in self.fit.law.variables else {}
        ends = np.array([r, 0.0])
        again = np.log(np.asarray(self.fit.law.predict(self._solved(), **place, D=D, r=ends)))
        own = np.log(np.asarray(self.fit.predict(**place, D=D, r=ends)))
        return float(own[0] - own[1]), again[:, 0] - again[:, 1]

    def _span(self) -> tuple[float, float]:
        assert self.fit is not None, "only a usable fit is asked"
        ratios = self.fit.variables["r"]
        return float(ratios.min()), float(ratios.max())

    def _solved(self) -> np.ndarray:
        assert self.bootstrap is not None, "only a usable fit is asked"
        return self.bootstrap.params[~np.isnan(self.bootstrap.params).any(axis=-1)]


def fit_ratios(
    runs: Runs,
    base: str | None,
    *,
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    num_bootstraps: int = 1000,
    seed: int = 0,
) -> dict[str, RatioFit]:
    """`MixtureLaw` for every source that is mixed alone into natural text, by source.

    With one size the law without N. What cannot be fitted has a refusal, and stops nothing.
    """
    shares = synthetic_ratios(runs, base)
    partners = list(dict.fromkeys(others[0] for others, _ in shares.values() if len(others) == 1))
    return {source: _fit_one(runs, source, shares, target, n_definition, num_bootstraps, seed) for source in partners}


def _fit_one(
    runs: Runs,
    source: str,
    shares: dict[str, tuple[tuple[str, ...], float]],
    target: str,
    n_definition: str,
    num_bootstraps: int,
    seed: int,
) -> RatioFit:
    ratio = {m: share for m, (others, share) in shares.items() if others in ((), (source,))}
    values = np.asarray(runs[target], dtype=float)
    rows = np.isin(runs["mixture"], list(ratio)) & np.isfinite(values) & (values > 0)
    mine = runs.take(rows)
    r = np.array([ratio[str(m)] for m in mine["mixture"]])
    distinct = len(np.unique(r.round(6)))
    if distinct < 3:
        return RatioFit(source, refusal=f"{distinct} different ratios of {source}; a law in the ratio takes 3 or more")
    sizes = len(set(mine["size"].tolist()))
    law = MixtureLaw(size=sizes > 1, interaction=sizes > 2 and len(mine) >= MANY_RUNS)
    try:
        N = mine.N(n_definition) if sizes > 1 else None
        found = fit(law, N=N, D=mine["tokens"], r=r, loss=mine[target], n_definition=n_definition)
        drawn = bootstrap(found, n=num_bootstraps, seed=seed) if num_bootstraps and found.identifiable else None
    except ValueError as error:
        return RatioFit(source, refusal=str(error))
    return RatioFit(source, found, drawn)
