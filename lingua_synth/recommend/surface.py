"""The law of one kind of text as a surface that plans are read off: loss of a plan, tokens that a loss takes.

A plan says the share r of synthetic tokens, how often its synthetic text is read, and how many unique natural tokens
there are. Everything is computed for the fit (row 0) and for all of its resamples at once, so that an answer and its
interval come from the same numbers.

N: parameters of the model. D: training tokens, repeats counted. U: unique natural tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lingua_synth.recommend.repeats import Repeats
from lingua_synth.scaling.hull import section
from lingua_synth.scaling.kinds import Kind
from lingua_synth.scaling.mixture_law import LogQuadraticLaw, MixtureLaw
from lingua_synth.scaling.ratio import LIKELIER, NO_CAP, likelier_by, rivals_of
from lingua_synth.scaling.ratio_fits import RatioFit

MOST_MORE = 1e4
"""How many times the tokens that fresh text takes are looked at; a loss that takes more counts as out of reach."""


@dataclass(frozen=True, eq=False)
class Surface:
    """Loss over (N, D, r) of natural text with one kind of synthetic text, for the fit and its resamples."""

    kind: Kind
    found: RatioFit
    places: np.ndarray
    """(ln N, ln D) of the runs."""
    law: MixtureLaw | LogQuadraticLaw
    rows: np.ndarray
    """`[1 + K, p]`: the fit, then its resamples."""
    repeats: bool
    """Whether the law knows what repeats are worth."""
    max_ratio: float

    @classmethod
    def of(
        cls, kind: Kind, found: RatioFit, places: np.ndarray, repeats: tuple[Repeats, Repeats], seed: int
    ) -> Surface:
        """The surface of a usable fit; `repeats` of (natural, synthetic) text."""
        assert found.fit is not None and found.bootstrap is not None, "only a usable fit has a surface"
        law = found.fit.law
        assert isinstance(law, MixtureLaw) and not law.repetition, "fit_ratios fits the law of fresh text"
        solved = found.bootstrap.params[~np.isnan(found.bootstrap.params).any(axis=-1)]
        rows = np.concatenate([law.as_array(found.fit.params)[None], solved])
        top = float(found.fit.variables["r"].max())
        rng = np.random.default_rng((seed, 1))
        columns = dict(zip(law.parameters, rows.T, strict=True))
        for name, one in zip(("R_natural", "R_synthetic"), repeats, strict=True):
            columns[name] = np.concatenate([[one.R], one.draws(len(solved), rng)])
        known = MixtureLaw(law.size, law.interaction, repetition=True)
        return cls(
            kind, found, places, known, np.stack([columns[name] for name in known.parameters], axis=-1), True, top
        )

    def rivals(self) -> list[tuple[Surface, bool]]:
        """(surface of one row, whether the runs leave it standing) of laws of another form fitted to the same runs.

        They know nothing of repeats.
        """
        own = self.found.fit
        assert own is not None, "only a usable fit has a surface"
        found = []
        for law, one in rivals_of(own).items():
            if isinstance(law, LogQuadraticLaw):
                exact = own.objective <= 1e-18 < one.objective
                row = law.as_array(one.params)[None]
                surface = Surface(self.kind, self.found, self.places, law, row, False, self.max_ratio)
                found.append((surface, not exact and likelier_by(own, one) <= LIKELIER))
        return found

    def tokens_span(self, N: float) -> tuple[float, float] | None:
        """(least, most) training tokens inside the runs at N, in ln; None where N lies outside."""
        return section(self.places, 0, float(np.log(N)))

    def loss(
        self, rows: slice, N: float, D: np.ndarray, ratio: np.ndarray, passes: np.ndarray, U: np.ndarray
    ) -> np.ndarray:
        """Loss `[n, m]` of the plans; D is `[m]` or `[n, m]`, U infinite where natural text never repeats."""
        fixed, data = self._parts(rows, N, D, ratio, passes, U)
        return fixed + data

    def tokens_for(
        self, rows: slice, loss: np.ndarray, N: float, ratio: np.ndarray, passes: np.ndarray, U: np.ndarray
    ) -> np.ndarray:
        """Training tokens `[n, m]` with which the plans reach `loss` `[n, 1]`; inf where they never do."""
        start = 1e9
        fresh, forever = np.ones_like(passes), np.full_like(U, np.inf)
        fixed, data = self._parts(rows, N, np.array([start]), ratio, fresh, forever)
        need = loss - fixed
        beta = self.rows[rows, self.law.parameters.index("beta"), None]
        possible = need > 0
        with np.errstate(over="ignore", divide="ignore"):
            # Where nothing repeats the data term is a power of D.
            x = np.log(start) + (np.log(data) - np.log(np.where(possible, need, 1.0))) / beta
        possible &= x < 200
        if self.repeats and ((passes > 1).any() or np.isfinite(U).any()):
            x, reached = self._with_repeats(rows, np.where(possible, x, 0.0), need, N, ratio, passes, U)
            possible &= reached
        with np.errstate(over="ignore"):
            return np.where(possible, np.exp(x), np.inf)

    def _with_repeats(
        self,
        rows: slice,
        low: np.ndarray,
        need: np.ndarray,
        N: float,
        ratio: np.ndarray,
        passes: np.ndarray,
        U: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ln D, whether it is reached): Newton's method from what fresh text takes, kept between bounds."""

        def excess(x: np.ndarray) -> np.ndarray:
            return np.log(self._parts(rows, N, np.exp(x), ratio, passes, U)[1]) - target

        target = np.log(np.where(need > 0, need, 1.0))
        high = low + np.log(MOST_MORE)
        reached = excess(high) <= 0
        x, step = low.copy(), 1e-5
        for _ in range(60):
            off = excess(x)
            low, high = np.where(off > 0, x, low), np.where(off > 0, high, x)
            if not (np.abs(off) > 1e-12)[reached].any():
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                newton = x - off * step / (excess(x + step) - off)
            inside = (newton >= low) & (newton <= high)
            x = np.where(np.abs(off) <= 1e-12, x, np.where(inside, newton, 0.5 * (low + high)))
        return x, reached

    def _parts(
        self, rows: slice, N: float, D: np.ndarray, ratio: np.ndarray, passes: np.ndarray, U: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        place: dict[str, np.ndarray | float] = {"N": N} if "N" in self.law.variables else {}
        if self.repeats:
            place["U_natural"] = np.clip(U, 1.0, NO_CAP)
            place["U_synthetic"] = np.maximum(ratio * D / passes, 1.0)
        return self.law.parts(self.rows[rows], **place, D=D, r=ratio)
