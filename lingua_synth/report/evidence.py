"""What the runs and their laws say of a difference between mixtures, with an interval: what every claim is judged by.

A difference is asked for at places that were trained (a size and a budget), never beyond them. It is answered by the
best thing there is, and says by which:

1. the joint laws of all mixtures, fitted together (`fit_mixtures`), with resamples that draw the same cells for all;
2. where runs have one size, the data laws of that size fitted together; where they have one budget, the model laws;
3. the runs at the place, with the noise that repeated seeds show.

Laws err too. Where seeds show the noise of a run, the part of the scatter of the runs' own differences around the laws'
that noise does not explain is added to the error.

Differences of losses are of ln(loss): 0.01 is 1 %.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lingua_synth.report.cells import Cell, cells, main_mixtures, main_size, main_tokens
from lingua_synth.scaling.kinds import Kind, kinds_of
from lingua_synth.scaling.laws import DataLaw, Law, ModelLaw
from lingua_synth.scaling.natural import PURE, base_mixture, synthetic_ratios
from lingua_synth.scaling.pooled import MixtureFits, fit_mixtures
from lingua_synth.scaling.ratio_fits import RatioFit, fit_ratios
from lingua_synth.scaling.regions import resampled_error
from lingua_synth.scaling.ties import RunNoise, run_noise
from lingua_synth.scaling.uncertainty import PairedBootstrap
from lingua_synth.scaling.verdicts import Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lingua_synth.scaling import Runs, StudyFits

KNOWN = 10_000
"""Degrees of freedom of a noise that was given."""
Term = tuple[float, str, str, float]
"""(coefficient, mixture, size, tokens): a contrast is a sum of coefficient times ln(loss)."""


@dataclass(frozen=True)
class Together:
    """Laws of all mixtures with paired resamples."""

    fits: MixtureFits
    drawn: PairedBootstrap
    what: str


@dataclass(eq=False)
class Evidence:
    """A runs table with everything that is read off it; parts are made when they are asked for."""

    runs: Runs
    fits: StudyFits | None
    base: str | None
    target: str
    n_definition: str
    num_bootstraps: int = 1000
    seed: int = 0
    roles: Mapping[str, str] = field(default_factory=dict)
    generators: Mapping[str, str] = field(default_factory=dict)
    given_noise: float | None = None
    """Standard deviation of ln loss of one run, where it is known; None: as the runs show it."""

    @classmethod
    def of(
        cls,
        runs: Runs,
        fits: StudyFits | None,
        base: str | None = None,
        target: str | None = None,
        n_definition: str | None = None,
        roles: Mapping[str, str] | None = None,
        generators: Mapping[str, str] | None = None,
        noise: float | None = None,
    ) -> Evidence:
        """With the target, N and resamples of the fits, and natural text alone as base, where nothing else is said."""
        return cls(
            runs,
            fits,
            base_mixture(runs, base),
            target or (fits.target if fits is not None else "loss_macro"),
            n_definition or (fits.n_definition if fits is not None else "non_embedding"),
            getattr(fits, "num_bootstraps", 1000) if fits is not None else 1000,
            getattr(fits, "seed", 0) if fits is not None else 0,
            dict(roles or {}),
            dict(generators or {}),
            noise,
        )

    @cached_property
    def cells(self) -> list[Cell]:
        """Every size and budget of the table."""
        return cells(self.runs, self.target, self.n_definition)

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Synthetic sources."""
        return kinds_of(self.runs, self.base, self.roles, self.generators)

    @cached_property
    def shares(self) -> dict[str, tuple[tuple[str, ...], float]]:
        """Mixture -> (its synthetic sources, their share)."""
        return synthetic_ratios(self.runs, self.base)

    @cached_property
    def noise(self) -> RunNoise | None:
        """Scatter of one run."""
        if self.given_noise is not None:
            return RunNoise(self.given_noise, KNOWN, "the noise given", True)
        return run_noise(self.runs, self.target, self.fits)

    @cached_property
    def ratio_fits(self) -> dict[str, RatioFit]:
        """One law in the ratio per synthetic source."""
        return fit_ratios(
            self.runs, self.base, target=self.target, n_definition=self.n_definition,
            num_bootstraps=self.num_bootstraps, seed=self.seed,
        )  # fmt: skip

    @cached_property
    def main_size(self) -> str | None:
        """The size with most budgets, the largest of those."""
        return main_size(self.cells)

    @cached_property
    def main_tokens(self) -> float | None:
        """The budget with most sizes, the largest of those."""
        return main_tokens(self.cells)

    @cached_property
    def size_N(self) -> dict[str, float]:
        """Size -> N."""
        return {cell.size: cell.num_parameters for cell in self.cells}

    @cached_property
    def main_mixtures(self) -> list[str]:
        """Those that figures of all mixtures show."""
        return main_mixtures(self.runs, self.base)

    @cached_property
    def main(self) -> Evidence:
        """The same of the main mixtures alone."""
        if len(self.main_mixtures) == len(self.runs.mixtures):
            return self
        mine = self.runs.take(np.isin(self.runs["mixture"], self.main_mixtures))
        return dataclasses.replace(self, runs=mine, roles={}, generators={})

    # --- which mixture, where ---

    def sources(self, *roles: str) -> list[str]:
        """Synthetic sources of these roles that no generator tells apart."""
        found = [one.source for one in self.kinds.values() if one.role in roles and one.generator is None]
        return [source for source in found if any(names == (source,) for names, _ in self.shares.values())]

    def mixture(self, source: str, low: float, high: float, near: float) -> str | None:
        """The mixture of natural text with a share of `source` alone in [low, high], nearest to `near`."""
        found = {m: share for m, (names, share) in self.shares.items() if names == (source,) and low <= share <= high}
        return min(found, key=lambda m: abs(found[m] - near)) if found else None

    def pure(self, source: str) -> str | None:
        """The mixture that is `source` alone."""
        return self.mixture(source, PURE, 1.0, 1.0)

    def budgets(self, size: str | None, *mixtures: str) -> list[float]:
        """Budgets at which all of these were trained at `size`, ascending."""
        return sorted(c.tokens for c in self.cells if c.size == size and all(m in c.losses for m in mixtures))

    def sizes(self, tokens: float | None, *mixtures: str) -> list[str]:
        """Sizes at which all of these were trained on `tokens`, smallest first."""
        found = [c for c in self.cells if c.tokens == tokens and all(m in c.losses for m in mixtures)]
        return [c.size for c in sorted(found, key=lambda c: c.num_parameters)]

    def corner(self, *mixtures: str, last: bool) -> tuple[str, float] | None:
        """(size, tokens) of the largest model, then the largest budget, that all of these share; or the smallest."""
        found = [c for c in self.cells if all(m in c.losses for m in mixtures)]
        if not found:
            return None
        pick = max if last else min
        cell = pick(found, key=lambda c: (c.num_parameters, c.tokens))
        return cell.size, cell.tokens

    # --- laws ---

    @cached_property
    def joint(self) -> Together | None:
        """The joint laws of all mixtures."""
        fits = self.fits
        pooled, drawn = getattr(fits, "pooled", None), getattr(fits, "drawn", None)
        if pooled is None or drawn is None or not pooled.identifiable:
            return None
        return Together(pooled, drawn, "joint laws of all mixtures")

    @cached_property
    def data(self) -> Together | None:
        """The data laws at the main size, where there is no joint law."""
        rows = self.runs["size"] == self.main_size
        return (
            None if self.joint is not None else self._together(DataLaw(), rows, f"data laws at size {self.main_size}")
        )

    @cached_property
    def model(self) -> Together | None:
        """The model laws at the main budget, where there is no joint law."""
        rows = self.runs["tokens"] == self.main_tokens
        return None if self.joint is not None else self._together(ModelLaw(), rows, "model laws at one budget")

    def _together(self, law: Law, rows: np.ndarray, what: str) -> Together | None:
        values = np.asarray(self.runs[self.target], dtype=float)
        mine = self.runs.take(rows & np.isfinite(values) & (values > 0))
        variable = law.variables[0]
        if not self.num_bootstraps or (variable == "N" and not all(map(math.isfinite, self.size_N.values()))):
            return None
        at = mine.N(self.n_definition) if variable == "N" else mine["tokens"]
        enough = [m for m in mine.mixtures if len(np.unique(at[mine["mixture"] == m])) > len(law.parameters)]
        if len(enough) < 2 or self.base not in enough:
            return None
        keep = np.isin(mine["mixture"], enough)
        mine, at = mine.take(keep), at[keep]
        try:
            found = fit_mixtures(
                law, loss=mine[self.target], mixture=mine["mixture"], n_definition=self.n_definition,
                seed=mine["seed"] if "seed" in mine.columns else None,
                N=at if variable == "N" else None, D=at if variable == "D" else None,
            )  # fmt: skip
            if not found.identifiable:
                return None
            return Together(found, found.bootstrap(max(self.num_bootstraps, 2), self.seed), what)
        except ValueError:  # no cell in common, or resamples without an answer: then the runs speak for themselves
            return None

    # --- differences ---

    def gap(self, first: str, second: str, size: str | None, tokens: float | None) -> Estimate | None:
        """ln(loss of `first` / loss of `second`) at one place; None when nothing says it."""
        if size is None or tokens is None:
            return None
        return self.contrast([(1.0, first, size, tokens), (-1.0, second, size, tokens)])

    def contrast(self, terms: Sequence[Term]) -> Estimate | None:
        """A sum of coefficient times ln(loss) over trained places."""
        together = self._laws_for(terms)
        return self._by_law(together, terms) if together is not None else self._by_runs(terms)

    def _laws_for(self, terms: Sequence[Term]) -> Together | None:
        mixtures = {mixture for _, mixture, _, _ in terms}
        for together, fits_here in (
            (self.joint, True),
            (self.data, all(size == self.main_size for _, _, size, _ in terms)),
            (self.model, all(tokens == self.main_tokens for _, _, _, tokens in terms)),
        ):
            if together is not None and fits_here and mixtures <= set(together.fits.fits):
                return together
        return None

    def place(self, together: Together, size: str, tokens: float) -> dict[str, float]:
        """The variables of the laws there."""
        every = {"N": self.size_N.get(size, math.nan), "D": tokens}
        return {name: every[name] for name in together.fits.law.variables}

    def _by_law(self, together: Together, terms: Sequence[Term]) -> Estimate:
        rows = together.drawn.solved
        values, point, squares = np.zeros(int(rows.sum())), 0.0, 0.0
        for coefficient, mixture, size, tokens in terms:
            law, at = together.fits.law, self.place(together, size, tokens)
            params = together.drawn.members[mixture].params[rows]
            values = values + coefficient * np.log(np.asarray(law.predict(params, **at)))
            point += coefficient * math.log(float(together.fits.fits[mixture].predict(**at)))
            squares += coefficient**2
        freedom = min(member.freedom for member in together.drawn.members.values())
        error = float(resampled_error(values[:, None])[0])
        missed = self._misfit(together)
        return Estimate(point, error**2 + missed**2 * squares / 2, freedom, how=together.what)

    def _misfit(self, together: Together) -> float:
        """Standard deviation of what the laws' gap to the base misses and noise does not explain; 0 without seeds."""
        if together.what in self._misfits:
            return self._misfits[together.what]
        total, num = 0.0, 0
        if self.noise is not None and self.noise.from_seeds and self.base is not None:
            for cell in self.cells:
                if self.base not in cell.losses or self._laws_for([(1.0, self.base, cell.size, cell.tokens)]) is None:
                    continue
                for mixture in cell.losses:
                    if mixture == self.base or mixture not in together.fits.fits:
                        continue
                    at = self.place(together, cell.size, cell.tokens)
                    law = math.log(
                        float(together.fits.fits[mixture].predict(**at))
                        / float(together.fits.fits[self.base].predict(**at))
                    )
                    own, of_base = cell.losses[mixture], cell.losses[self.base]
                    seen = float(np.mean(np.log(own)) - np.mean(np.log(of_base)))
                    total += (seen - law) ** 2 - self.noise.sd**2 * (1 / len(own) + 1 / len(of_base))
                    num += 1
        self._misfits[together.what] = math.sqrt(max(total / num, 0.0)) if num else 0.0
        return self._misfits[together.what]

    @cached_property
    def _misfits(self) -> dict[str, float]:
        return {}

    def _by_runs(self, terms: Sequence[Term]) -> Estimate | None:
        if self.noise is None:
            return None
        at = {(cell.size, cell.tokens): cell for cell in self.cells}
        value, variance = 0.0, 0.0
        for coefficient, mixture, size, tokens in terms:
            losses = at[size, tokens].losses.get(mixture) if (size, tokens) in at else None
            if losses is None:
                return None
            value += coefficient * float(np.mean(np.log(losses)))
            variance += coefficient**2 * self.noise.sd**2 / len(losses)
        return Estimate(value, variance, self.noise.freedom, how=f"runs there, noise of {self.noise.source}")

    def paired(self, pairs: Sequence[tuple[str, str]]) -> Estimate | None:
        """Mean of ln(loss of first / loss of second) over all places that a pair shares, places as units.

        None with fewer than three of them, unless seeds show the noise of a run.
        """
        values, variances = [], []
        for first, second in pairs:
            for cell in self.cells:
                if first in cell.losses and second in cell.losses:
                    own, other = cell.losses[first], cell.losses[second]
                    values.append(float(np.mean(np.log(own)) - np.mean(np.log(other))))
                    variances.append(1 / len(own) + 1 / len(other))
        if not values:
            return None
        num, mean = len(values), float(np.mean(values))
        if num >= 3:
            error = float(np.std(values, ddof=1)) / math.sqrt(num)
            return Estimate(mean, error**2, num - 1, how=f"{num} pairs of cells trained alike")
        if self.noise is None or not self.noise.from_seeds:
            return None
        error = self.noise.sd * math.sqrt(sum(variances)) / num
        return Estimate(mean, error**2, self.noise.freedom, how=f"{num} pairs, noise of {self.noise.source}")
