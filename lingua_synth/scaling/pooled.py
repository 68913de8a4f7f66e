"""One law for several mixtures: fits that share their exponents, or lean on each other's as far as the runs ask for it.

The runs of all mixtures go in, one label a run; `MixtureFits` comes out: a fit per mixture, what they share, and, by
`bootstrap`, intervals in which errors that the mixtures have in common cancel. `rank` puts the mixtures in order and
says which of them the runs cannot tell apart.

Three ways to share, for laws that are a constant plus power-law terms:

- "none": every mixture by itself.
- "exponents": one set of exponents for all, each its own constant and coefficients. One objective, minimized at once.
  Right when the mixtures are alike (one corpus and its rephrasings); wrong, and confidently so, when they are not.
- "partial": the exponents of mixture m are draws from a normal distribution, theta_m ~ N(mean, spread^2), and its fit
  minimizes

      sum of rho(residuals) / kappa  +  sum over exponents of (theta_m - mean)^2 / (2 spread^2),

  where kappa makes the first sum a log likelihood: v for least squares (halved: rho has no 1/2 there), v E[psi'] for
  Huber's rho, v the variance of a residual times that of Huber's estimate over that of least squares. Mean and spread
  are estimated (empirical Bayes): the law is linearized in every mixture, constant and coefficients are projected out,
  and what is left is the normal-normal model x_m ~ N(mean, V_m + spread^2), whose restricted likelihood (Patterson
  and Thompson 1971) times the spreads themselves, a weak prior that keeps them off 0 (Chung et al. 2013), is
  maximized; repeated until it stands still (Lindstrom and Bates 1990). A spread near 0 is "exponents", a wide one
  "none".

N: parameters. D: training tokens. E: the law's constant. Residuals are ln(predicted) - ln(observed).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from lingua_synth.scaling import solver
from lingua_synth.scaling.compare import Crossings, Speedup, crossing_intervals, speedup
from lingua_synth.scaling.fit import MAX_CONDITION, ScalingFit, fit
from lingua_synth.scaling.laws import ArrayLike, Law
from lingua_synth.scaling.pooled_laws import ExponentPrior, SharedExponents
from lingua_synth.scaling.ranking import Ranking, rank_values
from lingua_synth.scaling.records import record
from lingua_synth.scaling.uncertainty import Bootstrap, PairedBootstrap, _canonical_groups, _refit

SHARES = ("none", "exponents", "partial")
SPREADS = (1e-3, 1.0)
"""Least and greatest spread of an exponent: under the first the mixtures share it, over the second they do not."""
MAX_ROUNDS = 60
FEW_MIXTURES = 4
"""Fewer say next to nothing about a spread."""


@dataclass(frozen=True, eq=False)
class PooledFit(ScalingFit):
    """One mixture's part of a joint fit. It predicts and compares like any fit; its intervals come from the whole."""

    @cached_property
    def E_under(self) -> dict[str, float]:
        """Its own constant; the rivals would be fits to other runs."""
        return {self.law.name: self.params[self.law.constant]}

    @cached_property
    def influence(self) -> None:
        """Not offered: what one run moves, it moves in all mixtures."""
        return None

    def _points(self) -> solver.Points:
        raise ValueError("this fit is part of a joint fit of several mixtures; use the bootstrap of that (MixtureFits)")


@dataclass(frozen=True, eq=False)
class MixtureFits:
    """Fits of one law to several mixtures, and what they share."""

    law: Law
    share: str
    """"none", "exponents" or "partial"."""
    paired: bool
    """Whether a resample draws a cell for all mixtures together."""
    fits: dict[str, ScalingFit]
    """Per mixture, in the order of their labels."""
    mean: dict[str, float]
    """Mean of each exponent over the mixtures; under "exponents" the one they share; empty under "none"."""
    spread: dict[str, float]
    """Standard deviation of each exponent among mixtures, as estimated; empty unless "partial"."""
    num_cells: int
    """Different cells over all mixtures."""
    num_shared: int
    """Cells that every mixture has."""
    warnings: list[str]
    _pool: _Pool | None = field(repr=False)
    """None when read from a file: then its resamples are read beside it, and no new ones can be drawn."""

    @property
    def params(self) -> dict[str, dict[str, float]]:
        """Parameters of every mixture, in the units of the runs."""
        return {label: dict(one.params) for label, one in self.fits.items()}

    @property
    def identifiable(self) -> bool:
        """Whether the runs determine every mixture's law."""
        return all(one.identifiable for one in self.fits.values())

    @property
    def reasons(self) -> list[str]:
        """Why not, a sentence each with its mixture."""
        return [f"{label}: {reason}" for label, one in self.fits.items() for reason in one.reasons]

    def bootstrap(self, n: int = 1000, seed: int = 0, unit: str | None = None) -> PairedBootstrap:
        """`n` refits of all mixtures to resampled cells, by the same way of sharing.

        `paired`: a draw holds the same cells in every mixture, as often, so what the mixtures have in common cancels in
        differences; else every mixture has draws of its own. `unit` draws larger groups, "N": all cells of a size.
        Under "partial" every draw also moves each mixture's centre by a draw from the spread: a fit that leans on the
        mean scatters less than it errs, and this is what is missing (exactly so in the linear case). The spread itself
        stays as estimated.

        Seed and runs decide, not their order. ValueError when fewer than half of the draws have an answer.
        """
        if n < 2:
            raise ValueError(f"n is a number of resamples, at least 2; got {n}")
        if self._pool is None:
            raise ValueError("these fits were read from a file and cannot be resampled; fit the runs again")
        counts = self._pool.draw(n, seed, unit, self.paired)
        params = self._pool.refit(counts, self, seed)
        members = {}
        for label, one in self.fits.items():
            params[label].flags.writeable = False
            num_units = len(np.unique(self._pool.groups(label, unit)))
            freedom = max(num_units - self._num_own(), 1)
            members[label] = Bootstrap(self.law, params[label], dict(one.params), seed, num_units, freedom)
        result = PairedBootstrap(members, self.num_cells, self.num_shared)
        if 2 * int(result.solved.sum()) < n:
            raise ValueError(
                f"only {int(result.solved.sum())} of {n} resamples of {self.num_cells} cells have an answer in every "
                "mixture; these runs do not carry an interval"
            )
        return result

    def rank(
        self,
        resamples: PairedBootstrap | None = None,
        N: float | None = None,
        D: float | None = None,
        level: float = 0.95,
    ) -> Ranking:
        """The mixtures in order of the law's constant, or of the loss at (N, D), lowest first, with ties.

        Intervals hold for all mixtures (and all pairs) at once: `level` is the chance that none of them errs. The
        constant of a fit that is not identifiable is tied with every other. Without `resamples` (of `bootstrap`) 1000
        are drawn. ValueError for a law without constant when no point is given.
        """
        resamples = resamples or self.bootstrap()
        rows = resamples.solved
        if N is None and D is None:
            if not self.law.constant:
                raise ValueError(f"{self.law.formula} has no constant; say where to compare, N=... or D=...")
            of = self.law.constant
            at = self.law.parameters.index(of)
            values = {label: member.params[rows, at] for label, member in resamples.members.items()}
            points = {label: one.params[of] for label, one in self.fits.items()}
        else:
            given = {name: float(value) for name, value in (("N", N), ("D", D)) if value is not None}
            of = "loss at " + ", ".join(f"{name} {value:.4g}" for name, value in given.items())
            values = {
                label: np.asarray(self.law.predict(member.params[rows], **given))
                for label, member in resamples.members.items()
            }
            points = {label: float(one.predict(**given)) for label, one in self.fits.items()}
        freedom = min(member.freedom for member in resamples.members.values())
        unknown: list[str] = []
        notes = []
        if of == self.law.constant:
            unknown = [label for label, one in self.fits.items() if not one.identifiable]
            notes = [f"not determined: {reason}" for reason in self.reasons]
        return rank_values(of, points, values, freedom, level, notes, unknown)

    def speedup(
        self,
        base: str,
        other: str,
        D: ArrayLike,
        N: ArrayLike | None = None,
        resamples: PairedBootstrap | None = None,
        level: float = 0.95,
    ) -> Speedup:
        """`compare.speedup` of two of the mixtures by their labels; intervals when `resamples` are given."""
        a, b = self._member(base), self._member(other)
        return speedup(a, b, D, N, resamples=_pair_of(resamples, base, other), level=level)

    def crossing(
        self,
        first: str,
        second: str,
        N: float | None = None,
        between: tuple[float, float] | None = None,
        resamples: PairedBootstrap | None = None,
        level: float = 0.95,
    ) -> Crossings:
        """`compare.crossing_intervals` of two of the mixtures. Without `resamples` (of `bootstrap`) 1000 are drawn."""
        a, b = self._member(first), self._member(second)
        drawn = _pair_of(resamples or self.bootstrap(), first, second)
        assert drawn is not None, "there are resamples"
        return crossing_intervals(a, b, drawn, N, between, names=(first, second), level=level)

    def _member(self, label: str) -> ScalingFit:
        if label not in self.fits:
            raise ValueError(f"there are mixtures {', '.join(self.fits)}; got {label!r}")
        return self.fits[label]

    def _num_own(self) -> int:
        return len(self.law.parameters) if self.share == "none" else len(self.law.linear)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, full precision."""
        return record(
            {
                "law": self.law.name,
                "formula": self.law.formula,
                "share": self.share,
                "paired": self.paired,
                "num_cells": self.num_cells,
                "num_shared": self.num_shared,
                "mean": self.mean,
                "spread": self.spread,
                "identifiable": self.identifiable,
                "warnings": self.warnings,
                "mixtures": {
                    label: {
                        "params": one.params,
                        "num_points": one.num_points,
                        "rms_residual": one.rms_residual,
                        "converged": one.converged,
                        "grad_norm": one.grad_norm,
                        "condition_number": one.condition_number,
                        "objective_name": one.objective_name,
                        "objective": one.objective,
                        "n_definition": one.n_definition,
                        "reasons": one.reasons,
                    }
                    for label, one in self.fits.items()
                },
            }
        )

    def __str__(self) -> str:
        how = {
            "none": "each mixture by itself",
            "exponents": "exponents shared by all",
            "partial": "exponents pooled as far as the runs ask",
        }[self.share]
        width = max(len(label) for label in [*self.fits, "mixture"])
        lines = [
            f"{self.law.formula}: {len(self.fits)} mixtures, {how}; {self.num_cells} cells, {self.num_shared} in all",
            f"  {'mixture':<{width}} {'runs':>5} "
            + " ".join(f"{name:>11}" for name in self.law.parameters)
            + f" {'residual':>9}",
        ]
        for label, one in self.fits.items():
            values = " ".join(f"{one.params[name]:>11.5g}" for name in self.law.parameters)
            mark = "" if one.identifiable else "   NOT IDENTIFIABLE"
            lines.append(f"  {label:<{width}} {one.num_points:>5} {values} {100 * one.rms_residual:>7.3g} %{mark}")
        for name, value in self.mean.items():
            spread = f" +- {self.spread[name]:.3g} among mixtures" if name in self.spread else " (shared)"
            lines.append(f"  {name}: {value:.4g}{spread}")
        return "\n".join(
            [*lines, *(f"  - {reason}" for reason in self.reasons), *(f"  note: {w}" for w in self.warnings)]
        )


def fit_mixtures(
    law: Law,
    *,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    loss: ArrayLike,
    mixture: Sequence[Any] | np.ndarray,
    share: str = "partial",
    paired: bool = True,
    seed: Sequence[Any] | np.ndarray | None = None,
    objective: str = "huber",
    delta: float = 1e-3,
    n_definition: str = "non_embedding",
    **variables: ArrayLike | None,
) -> MixtureFits:
    """Fit `law` to the runs of several mixtures; `mixture` labels the runs, `share` says what they have in common.

    `paired`: mixtures were run on the same cells, so resample those; a cell is one setting of all variables and, where
    given, `seed` (a label per run: twins are then the runs of one seed). objective, delta, n_definition as in `fit`.

    Deterministic; the order of the rows and the names of the mixtures change nothing. ValueError as `fit` raises it (a
    mixture with fewer runs than the law has parameters, naming it), for one mixture, a law that is no constant plus
    power-law terms when something is to be shared, and for no cell in common when `paired`.
    """
    if share not in SHARES:
        raise ValueError(f"share is one of {', '.join(SHARES)}; got {share!r}")
    if not isinstance(law, Law):
        raise ValueError(f"law must be a law object such as JointLaw(), got {law!r}")
    if share != "none" and not law.terms:
        raise ValueError(f"{law.formula} is no constant plus power-law terms; its exponents cannot be shared")
    if share == "partial" and objective not in ("huber", "mse"):
        raise ValueError(f'objective under share="partial" is huber or mse; got {objective!r}')
    labels = np.array([str(label) for label in np.asarray(mixture).tolist()])
    names = sorted(set(labels.tolist()))
    if len(names) < 2:
        raise ValueError(f"several mixtures are needed, each run labelled with its own; got {names}")
    columns = {name: value for name, value in {"N": N, "D": D, **variables}.items() if value is not None}
    arrays = {name: np.asarray(value) for name, value in {**columns, "loss": loss}.items()}
    for name, array in arrays.items():
        if array.shape != labels.shape:
            raise ValueError(f"one value a run is needed: {len(labels)} labels of mixtures, {name} has {array.shape}")
    if seed is not None and len(seed) != len(labels):
        raise ValueError(f"seed must label every run: {len(labels)} runs, {len(seed)} seeds")
    seeds = None if seed is None else np.array([str(label) for label in np.asarray(seed).tolist()])
    fits: dict[str, ScalingFit] = {}
    cells: dict[str, list[str]] = {}
    for label in names:
        rows = labels == label
        own = {name: array[rows] for name, array in arrays.items()}
        try:
            fits[label] = fit(law, objective=objective, delta=delta, n_definition=n_definition, **own)
        except ValueError as error:
            raise ValueError(f"mixture {label}: {error}") from None
        keys = zip(*(fits[label]._variable(name).tolist() for name in sorted(law.variables)), strict=True)
        tails = [""] * int(rows.sum()) if seeds is None else seeds[rows].tolist()
        cells[label] = [repr((key, tail)) for key, tail in zip(keys, tails, strict=True)]
    shared = set.intersection(*(set(keys) for keys in cells.values()))
    if paired and not shared:
        raise ValueError(
            "the mixtures have no cell in common (no equal N and D), so nothing pairs them; paired=False takes them as "
            "they are"
        )
    pool = _Pool(law, fits, cells, objective, delta)
    num_cells = len(set().union(*cells.values()))
    if share == "none":
        return MixtureFits(law, share, paired, dict(fits), {}, {}, num_cells, len(shared), [], pool)
    ends = pool.shared_point()
    mean = dict(zip(pool.exponents, ends[names[0]].theta[0, pool.at].tolist(), strict=True))
    spread: dict[str, float] = {}
    warnings: list[str] = []
    if share == "partial":
        ends, centre, spreads, settled = pool.partial_point({label: end.theta[0] for label, end in ends.items()})
        mean = dict(zip(pool.exponents, centre.tolist(), strict=True))
        spread = dict(zip(pool.exponents, spreads.tolist(), strict=True))
        if not settled:
            warnings.append(f"mean and spread of the exponents had not settled after {MAX_ROUNDS} rounds")
        if len(names) < FEW_MIXTURES:
            warnings.append(f"{len(names)} mixtures say little about the spread of their exponents")
    pooled = pool.pooled_fits(ends, spread)
    return MixtureFits(law, share, paired, pooled, mean, spread, num_cells, len(shared), warnings, pool)


@dataclass(frozen=True, eq=False)
class _Pool:
    """The runs of the mixtures in working units, and the joint problems they pose."""

    law: Law
    fits: dict[str, ScalingFit]
    """Every mixture by itself."""
    cells: dict[str, list[str]]
    """The cell of every run, in the order of the fit."""
    objective: str
    delta: float

    @cached_property
    def points(self) -> dict[str, solver.Points]:
        return {label: one._points() for label, one in self.fits.items()}

    @property
    def exponents(self) -> list[str]:
        return [name for name in self.law.parameters if name not in self.law.linear]

    @property
    def at(self) -> list[int]:
        return [self.law.parameters.index(name) for name in self.exponents]

    # --- resamples ---

    def groups(self, label: str, unit: str | None) -> list[str]:
        """What is drawn together, a label per run."""
        if unit is None:
            return self.cells[label]
        if unit not in self.law.variables:
            raise ValueError(f"unit names a variable of the law ({', '.join(self.law.variables)}); got {unit!r}")
        return [repr(value) for value in self.fits[label]._variable(unit).tolist()]

    def draw(self, n: int, seed: int, unit: str | None, paired: bool) -> dict[str, np.ndarray]:
        """How often each resample holds each run, `[n, m]` in canonical order, per mixture."""
        keys = {label: self.groups(label, unit) for label in self.fits}
        counts = {}
        everything = sorted(set().union(*keys.values()))
        for k, label in enumerate(self.fits):
            units = everything if paired else sorted(set(keys[label]))
            if len(units) < 2:
                raise ValueError("unit puts all runs into one group; there is nothing to resample")
            rng = np.random.default_rng(seed if paired else (seed, k))
            drawn = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=n)
            number = {key: j for j, key in enumerate(units)}
            own = np.array(sorted(number[key] for key in set(keys[label])))
            rows = [f"{number[key]:09d}" for key in keys[label]]
            counts[label] = drawn[:, own[_canonical_groups(self.fits[label], self.points[label], rows)]]
        return counts

    def refit(self, counts: dict[str, np.ndarray], whole: MixtureFits, seed: int) -> dict[str, np.ndarray]:
        """Parameters of every mixture and resample `[n, p]`, NaN where there is no answer."""
        if whole.share == "none":
            return {label: _refit(one, self.points[label], counts[label]) for label, one in self.fits.items()}
        enough = self._enough(counts, len(self.law.linear))
        kept = {label: weights[enough] for label, weights in counts.items()}
        start = {
            label: self.points[label].to_theta(self.law, self.law.as_array(one.params))
            for label, one in whole.fits.items()
        }
        if whole.share == "exponents":
            solved, good = self._shared_refit(start, kept)
        else:
            solved, good = self._partial_refit(start, kept, whole, seed)
        params = {}
        for label, theta in solved.items():
            params[label] = np.full((len(enough), len(self.law.parameters)), np.nan)
            found = self.points[label].to_params(self.law, theta)
            params[label][enough] = np.where(good[:, None], found, np.nan)
        return params

    def _enough(self, counts: dict[str, np.ndarray], least: int) -> np.ndarray:
        """`[n]`: every mixture is drawn in at least `least` + 1 different runs, all together in more than they have
        parameters."""
        different = {label: (weights > 0).sum(axis=-1) for label, weights in counts.items()}
        total = np.sum(list(different.values()), axis=0)
        enough = total > len(counts) * least + len(self.exponents)
        return np.asarray(enough & np.all([number > least for number in different.values()], axis=0))

    # --- exponents that are shared ---

    @cached_property
    def _together(self) -> tuple[SharedExponents, solver.Points, np.ndarray]:
        """The law and the points of all mixtures at once, and the row each point has in the mixtures one after the
        other."""
        law = SharedExponents(self.law, len(self.fits))
        logs: dict[str, list[np.ndarray]] = {name: [] for name in law.variables}
        losses = []
        for k, points in enumerate(self.points.values()):
            for name in self.law.variables:
                logs[name].append(points.logs[name] + points.centres.get(name, 0.0))
            logs["mixture"].append(np.full(len(points), float(k)))
            losses.append(points.log_loss + points.log_scale)
        columns = {name: np.concatenate(parts) for name, parts in logs.items()}
        points = solver.Points.of(law, columns, np.concatenate(losses))
        return law, points, points.order

    def shared_point(self) -> dict[str, solver.Descent]:
        """Where every mixture ends under shared exponents."""
        law, points, _ = self._together
        end = solver.minimize(law, points, objective=self.objective, delta=self.delta)
        return {label: replace(end, theta=theta) for label, theta in self._apart(end.theta).items()}

    def _apart(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Joint working parameters `[n, P]` as those of each mixture, in its own working units."""
        law, points, _ = self._together
        params = points.to_params(law, theta)
        return {
            label: self.points[label].to_theta(self.law, params[:, law.columns_of(k)])
            for k, label in enumerate(self.fits)
        }

    def _shared_refit(
        self, start: dict[str, np.ndarray], counts: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        law, points, order = self._together
        params = np.empty(len(law.parameters))
        for k, label in enumerate(self.fits):
            params[law.columns_of(k)] = self.points[label].to_params(self.law, start[label])
        weights = np.concatenate(list(counts.values()), axis=1)[:, order]
        starts = np.repeat(points.to_theta(law, params)[None], len(weights), axis=0)
        if self.objective == "lad":
            ends = solver.descend_smoothed(law, points, starts, delta=self.delta, weights=weights)
        else:
            ends = solver.descend(law, points, starts, objective=self.objective, delta=self.delta, weights=weights)
        return self._apart(ends.theta), ends.converged

    # --- exponents that are pooled ---

    def partial_point(
        self, theta: dict[str, np.ndarray]
    ) -> tuple[dict[str, solver.Descent], np.ndarray, np.ndarray, bool]:
        """(the end of every mixture, mean, spread, whether they settled), beginning at `theta` of shared exponents."""
        p = len(self.law.parameters)
        alone = {
            label: self.points[label].to_theta(self.law, self.law.as_array(one.params))
            for label, one in self.fits.items()
        }
        ends: dict[str, solver.Descent] = {}
        centre, spread = theta[next(iter(theta))][self.at], np.full(len(self.at), 0.1)
        settled = False
        for turn in range(MAX_ROUNDS):
            before, rows = (centre, spread), {label: one[None] for label, one in theta.items()}
            variance, kappa = self.noise(theta)
            information, moments = self._linearized(rows, None, variance, kappa)
            centre, spread = _mean_and_spread(information[:, 0], moments[:, 0])
            if turn >= 5:
                # Linearizing at each other's end, two rounds may take turns for ever; between them lies the answer.
                centre, spread = 0.5 * (centre + before[0]), np.sqrt(spread * before[1])
            for label in self.fits:
                starts = np.stack([theta[label], alone[label]])
                both = self._under_prior(label, starts, np.stack([centre, centre]), spread, kappa, None)
                best = int(np.argmin(both.objective))
                ends[label] = solver.Descent(
                    both.theta[best : best + 1, :p],
                    both.objective[best : best + 1],
                    both.grad_norm[best : best + 1],
                    both.num_iterations,
                )
            theta = {label: end.theta[0] for label, end in ends.items()}
            if (np.abs(centre - before[0]) < 1e-3 * spread).all() and (np.abs(spread / before[1] - 1) < 1e-3).all():
                settled = True
                break
        return ends, centre, spread, settled

    def noise(self, theta: dict[str, np.ndarray]) -> tuple[float, float]:
        """(variance a parameter's covariance is proportional to, kappa), of all mixtures together.

        The residuals that a fit brings to 0 (as many as it has parameters) say nothing and are left out.
        """
        from lingua_synth.scaling.design import huber_factor

        p, sizes, squares, freedom = len(self.law.parameters), [], 0.0, 0
        for label, points in self.points.items():
            size = np.sort(np.abs(solver.log_residuals(self.law, points, theta[label][None])[0]))
            least = len(size) - max(len(size) - p, 1)
            sizes.append(size[least:])
            squares, freedom = squares + float(size @ size), freedom + len(size) - least
        if self.objective == "mse":
            variance = max(squares / freedom, solver.ROUNDING**2)
            return variance, 2 * variance
        sigma = max(float(np.median(np.concatenate(sizes))) / 0.6744897501960817, solver.ROUNDING)
        variance = sigma**2 * huber_factor(sigma, self.delta)
        return variance, variance * math.erf(self.delta / (sigma * math.sqrt(2)))

    def _under_prior(
        self,
        label: str,
        start: np.ndarray,
        centres: np.ndarray,
        spread: np.ndarray,
        kappa: float,
        counts: np.ndarray | None,
    ) -> solver.Descent:
        """Descents of one mixture with its exponents drawn to `centres` `[n, k]`."""
        points = self.points[label]
        # Deviations of up to 3 lie in the quadratic core of Huber's function.
        law = ExponentPrior(self.law, 0.3 * self.delta if self.objective == "huber" else 1e-3)
        k = len(self.at)
        logs = {name: np.append(points.logs[name], np.zeros(k)) for name in self.law.variables}
        logs["prior"] = np.append(np.zeros(len(points)), np.arange(1.0, k + 1))
        # rho is r^2 / 2 in Huber's core and r^2 in least squares; kappa is twice the variance there.
        half = 1.0 if self.objective == "huber" else 0.5
        weights = np.append(np.ones(len(points)), half * kappa / (law.step * spread) ** 2)
        together = solver.Points(
            logs, np.append(points.log_loss, np.zeros(k)), points.centres, points.log_scale, points.order, weights
        )
        drawn = None if counts is None else np.concatenate([counts, np.ones((len(counts), k))], axis=1)
        starts = np.concatenate([start, centres], axis=1)
        return solver.descend(law, together, starts, objective=self.objective, delta=self.delta, weights=drawn)

    def _linearized(
        self,
        theta: dict[str, np.ndarray],
        counts: dict[str, np.ndarray] | None,
        variance: float,
        kappa: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each mixture's runs say about its exponents at `theta` `[n, p]`: information P `[M, n, k, k]` and P x,
        `[M, n, k]`, where x is what they would be by the runs alone, to first order."""
        rest = [k for k in range(len(self.law.parameters)) if k not in self.at]
        all_information, all_moments = [], []
        for label, points in self.points.items():
            value, jacobian = self.law.value_and_jacobian(theta[label], points.logs)
            jacobian = jacobian / value[:, None, :]
            residual = np.log(value) - points.log_loss
            weight = np.ones_like(residual) if counts is None else counts[label].astype(np.float64)
            slope = 2 * residual if self.objective == "mse" else np.clip(residual, -self.delta, self.delta)
            gradient = (jacobian[:, self.at] @ (weight * slope)[..., None])[..., 0] / kappa
            gram = (jacobian * weight[:, None, :]) @ jacobian.swapaxes(-1, -2) / variance
            # A constant or coefficient on its bound 0 does not move with the exponents.
            free = theta[label][:, rest] > 0
            inner = np.where(free[:, :, None] & free[:, None, :], gram[:, rest][:, :, rest], 0.0)
            size = np.maximum(np.einsum("nkk->nk", inner), 1e-300)
            inner = inner + np.where(free, 1e-12 * size, 1.0)[:, :, None] * np.eye(len(rest))
            cross = np.where(free[:, :, None], gram[:, rest][:, :, self.at], 0.0)
            information = gram[:, self.at][:, :, self.at] - cross.swapaxes(-1, -2) @ np.linalg.solve(inner, cross)
            information = 0.5 * (information + information.swapaxes(-1, -2))
            ridge = 1e-9 * np.maximum(np.einsum("nkk->n", information), 1e-9)
            information = information + ridge[:, None, None] * np.eye(len(self.at))
            own = theta[label][:, self.at]
            all_information.append(information)
            all_moments.append((information @ own[..., None])[..., 0] - gradient)
        return np.array(all_information), np.array(all_moments)

    def _partial_refit(
        self, start: dict[str, np.ndarray], counts: dict[str, np.ndarray], whole: MixtureFits, seed: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        n, p = len(next(iter(counts.values()))), len(self.law.parameters)
        spread = np.array([whole.spread[name] for name in self.exponents])
        centre = np.repeat(np.array([whole.mean[name] for name in self.exponents])[None], n, axis=0)
        variance, kappa = self.noise(start)
        rng = np.random.default_rng((seed, 1))
        moves = {label: spread * rng.standard_normal((n, len(spread))) for label in start}
        theta = {label: np.repeat(one[None], n, axis=0) for label, one in start.items()}
        good = np.ones(n, dtype=bool)
        for last in (False, True):
            for label in theta:
                ends = self._under_prior(label, theta[label], centre + moves[label], spread, kappa, counts[label])
                theta[label] = ends.theta[:, :p]
                if last:
                    good &= ends.converged
            if not last:
                information, moments = self._linearized(theta, counts, variance, kappa)
                centre = _mean_of(information, moments, spread)
        return theta, good

    # --- the fit of one mixture ---

    def pooled_fits(self, ends: dict[str, solver.Descent], spread: dict[str, float]) -> dict[str, ScalingFit]:
        """The parts of the mixtures as fits; an objective is the sum over a mixture's own runs, without the prior."""
        thetas = {label: end.theta[0] for label, end in ends.items()}
        condition = self._conditions(thetas, spread)
        fits: dict[str, ScalingFit] = {}
        for label, end in ends.items():
            points, theta = self.points[label], thetas[label]
            canonical, _ = solver.residuals_and_jacobian(self.law, points, theta)
            residuals = np.empty(len(points))
            residuals[points.order] = canonical
            residuals.flags.writeable = False
            converged = bool(end.converged[0])
            known = {name: getattr(self.fits[label], name) for name in self.fits[label].__dataclass_fields__}
            changed = {
                "params": dict(zip(self.law.parameters, points.to_params(self.law, theta).tolist(), strict=True)),
                "objective": float(solver.rho(canonical, self.objective, self.delta).sum()),
                "converged": converged,
                "grad_norm": float(end.grad_norm[0]),
                "condition_number": condition[label],
                "residuals": residuals,
                "reasons": self._reasons(theta, converged, condition[label]),
            }
            fits[label] = PooledFit(**known | changed)
        return fits

    def _reasons(self, theta: np.ndarray, converged: bool, condition: float) -> list[str]:
        reasons = [] if converged else ["the solver did not converge: the gradient at its best point is not zero"]
        low, high = solver.bounds_of(self.law)
        for k, name in enumerate(self.law.parameters):
            # Constant and coefficients are in units of the typical loss here, exponents have none.
            if low[k] + 1e-9 < theta[k] < high[k] - 1e-9:
                continue
            if name == self.law.constant:
                reasons.append(f"{name} sits on its bound 0: the runs do not show where the loss levels off")
            elif k in self.at:
                reasons.append(f"exponent {name} sits at its bound {theta[k]:g}")
            else:
                reasons.append(f"{name} sits on its bound 0: its term is absent in these runs")
        if condition > MAX_CONDITION:
            shown = f"{condition:.2g}" if np.isfinite(condition) else "infinite"
            reasons.append(
                f"condition number {shown}, above {MAX_CONDITION:.0e}: some parameters can trade against each "
                "other without changing the predictions"
            )
        return reasons

    def _conditions(self, thetas: dict[str, np.ndarray], spread: dict[str, float]) -> dict[str, float]:
        """Condition number of each mixture's Jacobian, columns of length one, with what the others say of its
        exponents: all they know where exponents are shared, the prior where they are pooled."""
        jacobians = {
            label: solver.residuals_and_jacobian(self.law, self.points[label], theta)[1]
            for label, theta in thetas.items()
        }
        if spread:
            variance, _ = self.noise(thetas)
            prior = np.zeros((len(self.at), len(self.law.parameters)))
            widths = np.array([spread[name] for name in self.exponents])
            prior[np.arange(len(self.at)), self.at] = math.sqrt(variance) / widths
            return {label: _condition(np.concatenate([one, prior])) for label, one in jacobians.items()}
        # What the others say of the exponents, as rows J with J'J = their information.
        information, _ = self._linearized({label: theta[None] for label, theta in thetas.items()}, None, 1.0, 1.0)
        others = information[:, 0].sum(axis=0) - information[:, 0]
        conditions = {}
        for (label, jacobian), matrix in zip(jacobians.items(), others, strict=True):
            size, vectors = np.linalg.eigh(matrix)
            rows = np.zeros((len(self.at), len(self.law.parameters)))
            rows[:, self.at] = np.sqrt(np.maximum(size, 0.0))[:, None] * vectors.T
            conditions[label] = _condition(np.concatenate([jacobian, rows]))
        return conditions


def _pair_of(resamples: PairedBootstrap | None, a: str, b: str) -> tuple[Bootstrap, Bootstrap] | None:
    return None if resamples is None else (resamples.members[a], resamples.members[b])


def _condition(jacobian: np.ndarray) -> float:
    norms = np.sqrt((jacobian**2).sum(axis=0))
    moving = norms > 0
    singular = np.linalg.svd(jacobian[:, moving] / norms[moving], compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 1e-15 * singular[0] else float("inf")


def _mean_of(information: np.ndarray, moments: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Generalized least-squares mean of the exponents given their spread, `[..., k]` from `[M, ..., k, k]`."""
    eye = np.eye(len(spread))
    # (V + T)^-1 = (I + P T)^-1 P, and the same times x is (I + P T)^-1 P x.
    shrink = np.linalg.inv(eye + information * spread**2)
    weight = (shrink @ information).sum(axis=0)
    return np.linalg.solve(weight, (shrink @ moments[..., None])[..., 0].sum(axis=0)[..., None])[..., 0]


def _mean_and_spread(information: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of the exponents that maximize the restricted likelihood times the spreads, `[k]` each."""
    from scipy.optimize import minimize

    k = moments.shape[-1]
    eye = np.eye(k)
    alone = np.linalg.solve(information, moments[..., None])[..., 0]
    low, high = np.log(SPREADS)

    def lost(log_spread: np.ndarray) -> float:
        spread = np.exp(np.clip(log_spread, low, high))
        weights = np.linalg.inv(eye + information * spread**2) @ information
        centre = _mean_of(information, moments, spread)
        gap = alone - centre
        with np.errstate(divide="ignore"):
            determinants = np.linalg.slogdet(weights)[1].sum() - np.linalg.slogdet(weights.sum(axis=0))[1]
        beyond = np.maximum(low - log_spread, 0.0).sum() + np.maximum(log_spread - high, 0.0).sum()
        quadratic = float(np.einsum("mi,mij,mj->", gap, weights, gap))
        return quadratic - float(determinants) - 2 * float(np.log(spread).sum()) + 1e3 * float(beyond)

    nodes = np.linspace(low, high, 7 if k <= 3 else 4)
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*[nodes] * k, indexing="ij")], axis=-1)
    best = grid[int(np.argmin([lost(node) for node in grid]))]
    end = minimize(lost, best, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 2000})
    spread = np.exp(np.clip(end.x, low, high))
    return _mean_of(information, moments, spread), spread
