"""Where a *new* run will land: intervals calibrated on how the law has erred before, on these runs.

Far from the runs the form of the law errs more than their noise, and no standard error knows that. So the fit is asked
to foretell its own dearest runs: refitted to the cheapest 40, 50, ... 90 % of the runs (by N times D), it predicts the
rest. The error of a prediction is measured in units of how far it reached,

    score = ln(observed / predicted) / (0.2 + reach),

reach being the logarithm of the greatest factor by which N, D or N times D lie beyond the runs fitted. The scores of
one refit share the error of its law and count as one observation: with K refits,

    half-width of ln(loss) = t(K - 1) * rms over refits(rms of the scores) * (0.2 + reach),

and never less than what the scatter of single runs asks for. On eleven public tables of runs, largest budgets held
out, 95 % intervals held 99 % of the held-out losses (92 % in the worst table) at a median half-width of 5 %; intervals
from standard errors hold about two thirds.

It works for anything that predicts and can be refitted (`Predictor`): one law, an `Ensemble`, the choice of a law.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from lingua_synth.scaling.choice import LawChoice
from lingua_synth.scaling.ensemble import Ensemble, fit_ensemble
from lingua_synth.scaling.fit import ScalingFit, fit
from lingua_synth.scaling.laws import ArrayLike
from lingua_synth.scaling.records import record
from lingua_synth.scaling.refits import validate_own_minimum
from lingua_synth.scaling.uncertainty import _tails

SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NEAR = 0.2
"""Reach at which a prediction inside the range of the runs stands: there too the law errs a little."""
SIZES = ("N", "D")
"""Variables whose product is the cost of a run."""


class Predictor(Protocol):
    """What can be calibrated: runs, predictions, and the same again for some of the runs."""

    variables: Any
    """{name: values per run}"""
    loss: Any

    def predict(self, **variables: Any) -> np.ndarray:
        """Losses."""
        ...

    def refit(self, rows: np.ndarray) -> Predictor:
        """As made from these rows alone; ValueError when they are too few."""
        ...


@dataclass(frozen=True)
class Origin:
    """One refit to the cheapest runs."""

    num_fitted: int
    num_foretold: int
    rms_error: float
    """Of ln(observed / predicted) over the runs foretold."""
    rms_score: float
    max_reach: float
    """Greatest factor beyond the runs fitted."""


@dataclass(frozen=True, eq=False)
class PredictionInterval:
    """Where new runs will land."""

    places: dict[str, np.ndarray]
    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray
    half_width: np.ndarray
    """Of ln(loss): 0.02 is 2 %."""
    reach: np.ndarray
    """Greatest factor by which N, D or their product lie beyond the runs; 1 inside."""
    level: float
    origins: tuple[Origin, ...]
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(
            {
                "level": self.level,
                **self.places,
                "predicted": self.predicted,
                "low": self.low,
                "high": self.high,
                "half_width": self.half_width,
                "reach": self.reach,
                "origins": [vars(origin) for origin in self.origins],
                "warnings": self.warnings,
            }
        )

    def __str__(self) -> str:
        lines = [
            f"{100 * self.level:g} % intervals of new runs, from {len(self.origins)} refits that foretold the rest"
        ]
        flat = [np.ravel(values) for values in (self.predicted, self.low, self.high, self.half_width, self.reach)]
        for k, (loss, low, high, half, reach) in enumerate(zip(*(v.tolist() for v in flat), strict=True)):
            where = ", ".join(f"{name} {np.ravel(values)[k]:.4g}" for name, values in self.places.items())
            lines.append(
                f"  {where}: {loss:.4g}  [{low:.4g}, {high:.4g}]  +- {100 * half:.2g} %, "
                f"{reach:.3g} times beyond the runs"
            )
        for origin in self.origins:
            lines.append(
                f"    fitted to {origin.num_fitted}, foretold {origin.num_foretold} up to {origin.max_reach:.3g} times "
                f"beyond: error {100 * origin.rms_error:.2g} %"
            )
        return "\n".join(lines + [f"  note: {warning}" for warning in self.warnings])


@dataclass(frozen=True, eq=False)
class RollingErrors:
    """How a fit has foretold its own dearest runs; gives intervals anywhere without refitting again."""

    fit: ScalingFit | Predictor
    origins: tuple[Origin, ...]
    score: float
    """Root mean square over the origins."""
    noise: float
    """Standard deviation of a run around the full fit, in log loss."""
    logged: tuple[str, ...]
    """Variables whose range counts as reach."""

    def interval(self, level: float = 0.95, **variables: ArrayLike | None) -> PredictionInterval:
        """Intervals at each point; the variables (N, D, ...) broadcast. Refuses what `fit.predict` refuses."""
        from scipy.special import stdtrit

        tail = _tails(level)[1]
        given = {name: np.asarray(value, np.float64) for name, value in variables.items() if value is not None}
        predicted = np.asarray(self.fit.predict(**given))
        places = dict(zip(given, np.broadcast_arrays(*given.values()), strict=True))
        reach = reach_of(self.fit.variables, places, self.logged)
        half = stdtrit(len(self.origins) - 1, tail) * self.score * (NEAR + reach)
        num, count = len(self.fit.loss), _num_parameters(self.fit)
        floor = stdtrit(max(num - count, 1), tail) * self.noise
        half = np.maximum(half, floor)
        warnings = []
        if len(self.origins) < 4:
            warnings.append(f"only {len(self.origins)} refits were possible; their own scatter makes the interval wide")
        farthest = max(origin.max_reach for origin in self.origins)
        if np.max(reach, initial=0.0) > 2 * np.log(farthest):
            warnings.append(
                f"{np.exp(np.max(reach)):.3g} times beyond the runs, where the refits were tested up to {farthest:.3g} "
                "times: the width there is an extrapolation itself"
            )
        return PredictionInterval(
            places=places,
            predicted=predicted,
            low=predicted * np.exp(-half),
            high=predicted * np.exp(half),
            half_width=half,
            reach=np.exp(reach),
            level=level,
            origins=self.origins,
            warnings=warnings,
        )


def prediction_interval(
    fit: ScalingFit | Ensemble | LawChoice | Predictor,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    level: float = 0.95,
    **variables: ArrayLike | None,
) -> PredictionInterval:
    """Interval for the loss of a new run at each (N, D, ...), calibrated by rolling origins; see the module.

    For many questions to one fit keep `rolling_errors(fit)` and ask that. ValueError when fewer than two refits are
    possible: the runs are too few, or of one cost.
    """
    return rolling_errors(fit).interval(level, N=N, D=D, **variables)


def rolling_errors(fit: ScalingFit | Ensemble | LawChoice | Predictor) -> RollingErrors:
    """Refit to the cheapest 40 ... 90 % of the runs and foretell the rest; runs of one cost stay together.

    Every refit is a fit of its own from a global start, so the order of the runs plays no part. ValueError as for
    `prediction_interval`.
    """
    if isinstance(fit, LawChoice):
        fit = fit.ensemble  # that is what its `predict` asks
    if isinstance(fit, Ensemble):
        fit = _Voices(fit)
    if isinstance(fit, ScalingFit):
        validate_own_minimum(fit)
    columns = {name: np.asarray(values, np.float64) for name, values in fit.variables.items()}
    loss = np.asarray(fit.loss, np.float64)
    logged = tuple(name for name in SIZES if name in columns)
    if not logged:
        raise ValueError(f"the cost of a run follows from N and D; this fit has only {', '.join(columns)}")
    cost = np.sum([np.log(columns[name]) for name in logged], axis=0)
    origins: list[Origin] = []
    last = 0
    least = _num_parameters(fit) + 1
    for share in SHARES:
        enough = max(int(np.ceil(share * len(loss))), least)
        if enough >= len(loss):
            continue
        # Equal costs differ in their last digits.
        fitted = cost <= np.sort(cost)[enough - 1] + 1e-9
        if fitted.all() or fitted.sum() == last:
            continue
        last = int(fitted.sum())
        try:
            earlier = _refit(fit, np.flatnonzero(fitted))
        except ValueError:
            continue
        rest = {name: values[~fitted] for name, values in columns.items()}
        error = np.log(loss[~fitted] / np.asarray(earlier.predict(**rest)))
        reach = reach_of({name: values[fitted] for name, values in columns.items()}, rest, logged)
        score = error / (NEAR + reach)
        origins.append(
            Origin(
                num_fitted=last,
                num_foretold=len(error),
                rms_error=_rms(error),
                rms_score=_rms(score),
                max_reach=float(np.exp(reach.max())),
            )
        )
    if len(origins) < 2:
        raise ValueError(
            f"only {len(origins)} refits of the cheapest runs are possible ({len(loss)} runs at {len(np.unique(cost))} "
            f"costs, a refit takes {least}); how this law foretells cannot be seen from them"
        )
    residual = np.log(loss / np.asarray(fit.predict(**columns)))
    noise = float(np.sqrt(np.sum(residual**2) / max(len(loss) - least + 1, 1)))
    return RollingErrors(fit, tuple(origins), _rms(np.array([o.rms_score for o in origins])), noise, logged)


def reach_of(runs: Mapping[str, np.ndarray], places: Mapping[str, np.ndarray], logged: tuple[str, ...]) -> np.ndarray:
    """ln of the greatest factor by which a place lies beyond the runs: above or below in each variable, above in
    their product; 0 inside."""
    logs = {name: np.log(np.asarray(runs[name], np.float64)) for name in logged}
    at = {name: np.log(np.asarray(places[name], np.float64)) for name in logged}
    cost = sum(at.values()) - np.max(np.sum(list(logs.values()), axis=0))
    reach = np.maximum(cost, 0.0)
    for name in logged:
        reach = np.maximum(reach, np.maximum(at[name] - logs[name].max(), logs[name].min() - at[name]))
    return np.where(reach > 1e-9, reach, 0.0)


class _Voices:
    """An ensemble as a `Predictor`: the same members, fitted again."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.variables, self.loss = ensemble.fits[0].variables, ensemble.fits[0].loss
        self.num_parameters = max(len(member.law.parameters) for member in ensemble.members)

    def predict(self, **variables: Any) -> np.ndarray:
        return self.ensemble.predict(**variables)

    def refit(self, rows: np.ndarray) -> _Voices:
        columns = cast(dict[str, Any], {name: values[rows] for name, values in self.variables.items()})
        first = self.ensemble.fits[0]
        return _Voices(
            fit_ensemble(
                self.ensemble.members,
                **columns,
                loss=self.loss[rows],
                delta=first.delta,
                n_definition=first.n_definition,
            )
        )


def _refit(predictor: ScalingFit | Predictor, rows: np.ndarray) -> ScalingFit | Predictor:
    if not isinstance(predictor, ScalingFit):
        return predictor.refit(rows)
    columns = cast(dict[str, Any], {name: values[rows] for name, values in predictor.variables.items()})
    return fit(
        predictor.law,
        **columns,
        loss=predictor.loss[rows],
        objective=predictor.objective_name,
        delta=predictor.delta,
        asymmetry=predictor.asymmetry,
        weights=None if predictor.weights is None else predictor.weights[rows],
        n_definition=predictor.n_definition,
    )


def _num_parameters(predictor: ScalingFit | Predictor) -> int:
    if isinstance(predictor, ScalingFit):
        return len(predictor.law.parameters)
    return predictor.num_parameters if isinstance(predictor, _Voices) else 1


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
