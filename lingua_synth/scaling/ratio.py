"""The best ratio of synthetic to natural tokens, at a size and budget that need not have been trained.

`best_ratio` asks a law in the ratio (`MixtureLaw`, `LogQuadraticLaw`) fitted to all runs of a study. The lowest point
of one cell's grid follows the noise of one run, and a quadratic through one cell the noise of that cell; a law uses
every run and moves the answer with N and D. `best_ratio_in_cell` is the quadratic and the lowest point, of a loss or of
a score, for whoever has one cell only.

The loss is flat near its minimum. So an answer is never one number: `interval` says where the runs put the optimum,
`flat` which ratios nobody could tell from it by training one more run, `under` what a rival law says.

N: parameters of the model. D: training tokens, repeats counted. U: unique tokens a source has. r: share of synthetic
tokens in D. R: how slowly repeats lose their worth, in passes (`RepetitionLaw`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit, fit
from lingua_synth.scaling.laws import ArrayLike, Law, _positive
from lingua_synth.scaling.mixture_law import MixtureLaw
from lingua_synth.scaling.records import record
from lingua_synth.scaling.repetition import PUBLISHED_R_D
from lingua_synth.scaling.uncertainty import Bootstrap, bootstrap

DOUBTED_R = (4.0, 23.0)
"""Least and greatest R_D from refits of their runs, by which of them are used."""
NODES = 501
"""Ratios at which the law of a resample is looked at; a parabola through the lowest three does the rest. The fit itself
is looked at on 20 times as many."""
MISFIT_P = 0.05
"""Below this p value of the test for another form the quadratic of a cell is called wrong."""
LIKELIER = 2.0
"""Nats by which a rival law must be likelier to be called better."""
EDGE = 1e-3
"""A minimum this close to an end of the range (as a share of it) is one at the edge."""
NO_CAP = 1e100
"""Unique tokens of a source that never repeats."""


@dataclass(frozen=True, eq=False)
class BestRatio:
    """Where a fitted law has its lowest loss over the ratio at one (N, D), and how well that is known."""

    ratio: float
    loss: float
    """The law there."""
    interval: tuple[float, float] | None
    """Of `ratio`, by resampled runs, given the form of the law; None when no resamples were asked for."""
    level: float
    flat: tuple[float, float]
    """Around `ratio`: the law's loss is within one `noise` of the lowest, so one more run would not tell them apart."""
    noise: float
    """Scatter of one run in log loss (0.002 is 0.2 %): given, or that of the runs around the law."""
    at_edge: bool
    """The minimum lies on an end of `within`, so the true one may lie beyond."""
    within: tuple[float, float]
    """Range that was searched."""
    N: float | None
    D: float
    U: dict[str, float]
    """Unique tokens of the sources that have a cap."""
    R: dict[str, float]
    """Worth of repeats by source; empty when nothing can repeat."""
    under: dict[str, float]
    """The best ratio by law: this one and its rivals, fitted to the same runs."""
    regrets: dict[float, float]
    """Ratio of the runs -> how much more loss it has than the best, by the law (0.001 is 0.1 %)."""
    cell: CellRatio | None
    """The same from the runs at (N, D) alone; None where fewer than 3 ratios were trained."""
    cell_regret: float | None
    """What taking the lowest measured ratio of `cell` costs in loss, by the law (0.001 is 0.1 %)."""
    extrapolation_factor: float
    """How many times beyond the runs (N, D) lies; 1 inside them."""
    num_resamples: int
    num_failed: int
    curve: tuple[np.ndarray, np.ndarray]
    """(ratios, losses of the law), for a figure."""
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the curve stays out."""
        values = {name: value for name, value in self.__dict__.items() if name != "curve"}
        return record({**values, "cell": None if self.cell is None else self.cell.to_dict()})

    def __str__(self) -> str:
        place = (f"N {self.N:.4g}, " if self.N is not None else "") + f"D {self.D:.4g}"
        place += "".join(f", {cap:.4g} unique {source} tokens" for source, cap in self.U.items())
        edge = ", at the edge: the best may lie beyond" if self.at_edge else ""
        lines = [f"best ratio at {place}: {self.ratio:.3f} (loss {self.loss:.5g}{edge})"]
        if self.interval is not None:
            lines.append(
                f"  {100 * self.level:g} % interval [{self.interval[0]:.3f}, {self.interval[1]:.3f}], "
                f"{self.num_resamples - self.num_failed} resamples"
            )
        lines.append(
            f"  within one run's scatter ({100 * self.noise:.2g} %) of it: {self.flat[0]:.3f} to {self.flat[1]:.3f}"
        )
        if len(self.under) > 1:
            lines.append("  by law: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in self.under.items()))
        lines.append("  more loss by ratio: " + ", ".join(f"{r:.3g} {100 * x:.2g} %" for r, x in self.regrets.items()))
        if self.cell is not None and self.cell_regret is not None:
            lines.append(
                f"  lowest measured here: {self.cell.grid_ratio:.3g}, {100 * self.cell_regret:.2g} % more loss by the "
                f"law; quadratic of this cell: {self.cell.ratio:.3f}"
            )
        return "\n".join(lines + [f"  note: {warning}" for warning in self.warnings])


@dataclass(frozen=True, eq=False)
class CellRatio:
    """Where a quadratic through one cell's values against the ratio is best, beside the best point of the grid."""

    ratio: float
    """Of the quadratic's optimum within the grid's range."""
    loss: float
    """The quadratic there (a score, if that is what went in)."""
    interval: tuple[float, float] | None
    """Of the quadratic's optimum, by Fieller's method, cut at the ends of the grid; None without runs to spare."""
    level: float
    grid_ratio: float
    """Of the best mean measured; the smaller of equals."""
    grid_loss: float
    at_edge: bool
    """The quadratic's optimum lies on or beyond the first or last ratio, so the true one may lie outside the grid."""
    grid_at_edge: bool
    """The best measured ratio is the first or the last."""
    coefficients: tuple[float, float, float]
    """value = c0 + c1 ratio + c2 ratio^2."""
    num_ratios: int
    """Different ratios; with 3 the quadratic passes through their means and its residuals say nothing."""
    rms_residual: float
    """Root mean square of measured minus quadratic, in the unit of the values."""
    maximize: bool = False
    """Whether greater is better."""
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(dict(self.__dict__))

    def __str__(self) -> str:
        what, end = ("score", "highest") if self.maximize else ("loss", "lowest")
        edge = ", at the edge of the grid: the best ratio may lie beyond" if self.at_edge else ""
        grid_edge = " (at the edge)" if self.grid_at_edge else ""
        interval = "" if self.interval is None else f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"
        line = (
            f"best ratio {self.ratio:.3g}{interval} (quadratic, {what} {self.loss:.5g}{edge}); "
            f"{end} of {self.num_ratios} measured: {self.grid_ratio:.3g}{grid_edge}, {what} {self.grid_loss:.5g}"
        )
        return "\n".join([line, *(f"  note: {warning}" for warning in self.warnings)])


# --- by a law ---


def best_ratio(
    fit: ScalingFit,
    N: float | None = None,
    D: float | None = None,
    *,
    U: Mapping[str, float] | None = None,
    R: Mapping[str, float] | None = None,
    within: tuple[float, float] | None = None,
    level: float = 0.95,
    n: int = 1000,
    seed: int = 0,
    unit: str | Sequence[Any] | np.ndarray | None = None,
    resamples: Bootstrap | None = None,
    noise: float | None = None,
    rivals: bool = True,
) -> BestRatio:
    """The share of synthetic tokens with the lowest loss at (N, D), by a law in r fitted to the runs of all ratios.

    `U`: unique tokens that {"natural": ..., "synthetic": ...} have; a source that is not named never repeats. A
    `MixtureLaw(repetition=True)` knows from its runs what repeats are worth. For one that was fitted to runs without
    repeats `R` says it, by source (`PUBLISHED_R_D` where it does not, which the warnings say, with what other values
    give).
    `within`: ratios to search, by default those of the runs; a law says little outside them.
    `level`, `n`, `seed`, `unit`: the interval, from `bootstrap`; `n=0` leaves it out. `resamples`: a bootstrap of this
    fit made before, for many (N, D) at the cost of one.
    `noise`: scatter of one run in log loss, when known from seeds; else that of the runs around the law.

    Everything rests on the form of the law; `under` shows the best ratio under its rivals, fitted to the same runs
    (once a fit; `rivals=False` spares it).
    ValueError for a law without r, a missing or unknown variable, and `U` for a law that does not count tokens.
    """
    law = getattr(fit, "law", None)
    if law is None or not isinstance(fit, ScalingFit):
        raise ValueError("best_ratio takes a fit of a law in r; for the runs of one cell use best_ratio_in_cell")
    if "r" not in law.variables:
        raise ValueError(
            f"{type(law).__name__} ({law.formula}) has no ratio r; fit MixtureLaw or LogQuadraticLaw to the runs of "
            "all mixtures, or use best_ratio_in_cell"
        )
    place = _place(law, N, D)
    seen = (float(fit.variables["r"].min()), float(fit.variables["r"].max()))
    low, high = seen if within is None else within
    if not (0 <= low < high <= 1):
        raise ValueError(f"within is a range of shares, 0 <= low < high <= 1; got {(low, high)}")
    caps, worth = _caps(law, U, R, place["D"])
    warnings = _warnings(fit, low, high, seen)

    def losses(of: Law, params: np.ndarray, ratios: np.ndarray, R: Mapping[str, float] = worth) -> np.ndarray:
        own, theta, more = _with_caps(of, params, caps, R)
        given = {name: value for name, value in place.items() if name in own.variables}
        return np.asarray(own.predict(theta, **given, **more, r=ratios))

    nodes = np.linspace(low, high, 20 * (NODES - 1) + 1)
    point = law.as_array(fit.params)
    curve = losses(law, point, nodes)
    ratio = float(lowest_ratio(nodes, curve[None])[0])
    best = float(losses(law, point, np.array([ratio]))[0])
    interval, made, failed = _interval(fit, losses, low, high, level, n, seed, unit, resamples)
    scatter = _scatter(fit)
    noise = scatter if noise is None else float(noise)
    if not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is the scatter of one run in log loss (0.002 is 0.2 %), 0 or more; got {noise}")
    under = {law.name: ratio}
    if rivals and not caps:
        for rival, found in rivals_of(fit).items():
            params = rival.as_array(found.params)
            under[rival.name] = float(lowest_ratio(nodes, losses(rival, params, nodes)[None])[0])
            if likelier_by(found, fit) > LIKELIER:
                warnings.append(
                    f"{type(rival).__name__} follows these runs better (scatter {100 * _scatter(found):.3g} % against "
                    f"{100 * scatter:.3g} %) and puts the best ratio at {under[rival.name]:.3f}; fit that one"
                )
    guessed = [source for source in worth if source not in (R or {})]
    if guessed:
        others = ", ".join(
            f"{value:g} gives "
            f"{lowest_ratio(nodes, losses(law, point, nodes, {**worth, **dict.fromkeys(guessed, value)})[None])[0]:.3f}"
            for value in DOUBTED_R
        )
        warnings.append(
            f"no run of this fit repeats tokens; the worth of repeats ({', '.join(guessed)}) is taken from published "
            f"runs, R = {PUBLISHED_R_D:g}. R is not well known: as the best ratio {others}"
        )
    cell = None if caps else _cell(fit, place)
    values = np.unique(fit.variables["r"])
    inside = values[(values >= low) & (values <= high)]
    return BestRatio(
        ratio=ratio,
        loss=best,
        interval=interval,
        level=level,
        flat=_flat(nodes, curve, best, ratio, noise),
        noise=noise,
        at_edge=bool(min(ratio - low, high - ratio) <= EDGE * (high - low)),
        within=(float(low), float(high)),
        N=place.get("N"),
        D=place["D"],
        U=caps,
        R=worth,
        under=under,
        regrets={float(r): float(x / best - 1) for r, x in zip(inside, losses(law, point, inside), strict=True)},
        cell=cell,
        cell_regret=None if cell is None else float(losses(law, point, np.array([cell.grid_ratio]))[0] / best - 1),
        extrapolation_factor=_beyond(fit, place),
        num_resamples=made,
        num_failed=failed,
        curve=(nodes[::50], curve[::50]),
        warnings=warnings,
    )


def _place(law: Law, N: float | None, D: float | None) -> dict[str, float]:
    """{variable: value} of N and D, one each."""
    place = {}
    for name, value in (("N", N), ("D", D)):
        if name in law.variables:
            array = law.check_variable(value, name)
            if array.ndim:
                raise ValueError(f"best_ratio takes one {name} at a time, got shape {array.shape}")
            place[name] = float(array)
        elif value is not None:
            raise ValueError(f"{type(law).__name__} ({law.formula}) has no {name}; leave it out")
    return place


def _caps(
    law: Law, U: Mapping[str, float] | None, R: Mapping[str, float] | None, D: float
) -> tuple[dict[str, float], dict[str, float]]:
    """(unique tokens of the sources that have a cap, worth of repeats by source)."""
    sources = ("natural", "synthetic")
    for name, given in (("U", U), ("R", R)):
        if given is not None and not (isinstance(given, Mapping) and set(given) <= set(sources)):
            raise ValueError(f"{name} is given by source, {{'natural': ..., 'synthetic': ...}}; got {given!r}")
    if R is not None and (U is None or getattr(law, "repetition", False)):
        why = "its runs say it" if getattr(law, "repetition", False) else "without U nothing repeats"
        raise ValueError(f"R is what repeats are worth where no run shows it; here {why}, so leave it out")
    if U is None:
        return {}, {}
    if not isinstance(law, MixtureLaw):
        raise ValueError(f"{type(law).__name__} does not count tokens, so U means nothing to it; fit MixtureLaw")
    caps = {source: float(_positive(U[source], f"U of {source}")) for source in sources if source in U}
    if law.repetition:
        return caps, {}
    given = R or {}
    return caps, {source: float(_positive(given.get(source, PUBLISHED_R_D), f"R of {source}")) for source in caps}


def _with_caps(
    law: Law, params: np.ndarray, caps: Mapping[str, float], R: Mapping[str, float]
) -> tuple[Law, np.ndarray, dict[str, float]]:
    """The law that knows caps, its parameters, and the variables beside N, D and r."""
    if not isinstance(law, MixtureLaw) or not (caps or law.repetition):
        return law, params, {}
    more = {f"U_{source}": caps.get(source, NO_CAP) for source in ("natural", "synthetic")}
    if law.repetition:
        return law, params, more
    capped = MixtureLaw(law.size, law.interaction, repetition=True)
    columns = {name: params[..., k] for k, name in enumerate(law.parameters)}
    columns |= {
        f"R_{source}": np.full(params.shape[:-1], R.get(source, PUBLISHED_R_D)) for source in ("natural", "synthetic")
    }
    return capped, np.stack([columns[name] for name in capped.parameters], axis=-1), more


def lowest_ratio(ratios: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Ratio of the lowest loss of every row `[n, k]`: a parabola through the lowest node and its neighbours."""
    at = np.argmin(losses, axis=-1)
    middle = np.clip(at, 1, len(ratios) - 2)
    rows = np.arange(len(losses))
    left, centre, right = (losses[rows, middle + shift] for shift in (-1, 0, 1))
    bend = left - 2 * centre + right
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(bend > 0, 0.5 * (left - right) / bend, 0.0)
    inner = ratios[middle] + np.clip(shift, -1, 1) * (ratios[1] - ratios[0])
    return np.where(at == middle, inner, ratios[at])


def _flat(ratios: np.ndarray, losses: np.ndarray, best: float, ratio: float, noise: float) -> tuple[float, float]:
    """The ratios around `ratio` whose loss is below `best exp(noise)`, as one piece."""
    near = np.concatenate([ratios, [ratio]])
    order = np.argsort(near, kind="stable")
    good = (np.concatenate([losses, [best]]) <= best * np.exp(noise))[order]
    good[np.flatnonzero(order == len(ratios))] = True
    at = int(np.flatnonzero(order == len(ratios))[0])
    bad_left, bad_right = np.flatnonzero(~good[:at]), np.flatnonzero(~good[at:])
    first = bad_left[-1] + 1 if len(bad_left) else 0
    last = at + bad_right[0] - 1 if len(bad_right) else len(near) - 1
    return float(near[order][first]), float(near[order][last])


def _interval(
    fit: ScalingFit,
    losses: Callable[[Law, np.ndarray, np.ndarray], np.ndarray],
    low: float,
    high: float,
    level: float,
    n: int,
    seed: int,
    unit: str | Sequence[Any] | np.ndarray | None,
    resamples: Bootstrap | None,
) -> tuple[tuple[float, float] | None, int, int]:
    """(percentiles of the best ratio over resampled runs, resamples, those without an answer)."""
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95; got {level}")
    if resamples is None:
        if n == 0:
            return None, 0, 0
        resamples = bootstrap(fit, n=n, seed=seed, unit=unit)
    elif resamples.law != fit.law or resamples.point != fit.params:
        raise ValueError("resamples is a bootstrap of another fit; make it with bootstrap(fit)")
    solved = resamples._solved()
    nodes = np.linspace(low, high, NODES)
    step = max(1, 500_000 // NODES)
    best = np.concatenate(
        [lowest_ratio(nodes, losses(fit.law, solved[k : k + step], nodes)) for k in range(0, len(solved), step)]
    )
    tails = np.quantile(best, [(1 - level) / 2, (1 + level) / 2])
    return (float(tails[0]), float(tails[1])), len(resamples.params), resamples.num_failed


def _scatter(fit: ScalingFit) -> float:
    """Standard deviation of the log residuals, for the parameters that were fitted."""
    freedom = max(fit.num_points - len(fit.law.parameters), 1)
    return float(np.sqrt(np.sum(np.sort(fit.residuals**2)) / freedom))


def fit_alike(found: ScalingFit, law: Law) -> ScalingFit:
    """`law` fitted to the runs of a fit, by its objective and weights."""
    columns: dict[str, Any] = {name: found.variables[name] for name in law.variables}
    return fit(
        law,
        loss=found.loss,
        objective=found.objective_name,
        delta=found.delta,
        asymmetry=found.asymmetry,
        weights=found.weights,
        n_definition=found.n_definition,
        **columns,
    )


_RIVALS: weakref.WeakKeyDictionary[ScalingFit, dict[Law, ScalingFit]] = weakref.WeakKeyDictionary()
"""Rivals of a fit, so that a table of many (N, D) fits them once."""


def rivals_of(found: ScalingFit) -> dict[Law, ScalingFit]:
    """Rival laws with a ratio -> their fits to the same runs, made once a fit."""
    if found in _RIVALS:
        return _RIVALS[found]
    rivals: dict[Law, ScalingFit] = {}
    for rival in found.law.rivals():
        if "r" in rival.variables and found.num_points > len(rival.parameters):
            rivals[rival] = fit_alike(found, rival)
    _RIVALS[found] = rivals
    return rivals


def likelier_by(one: ScalingFit, other: ScalingFit) -> float:
    """By how much (in nats) the runs are likelier under `one`, at the scale of error that suits each, per parameter."""
    if min(one.objective, other.objective) <= 1e-18:
        return 0.0  # without noise both may be right
    each = one.num_points * (0.5 if one.objective_name == "mse" else 1.0)
    gain = each * float(np.log(other.objective / one.objective))
    return gain - (len(one.law.parameters) - len(other.law.parameters))


def _cell(fit: ScalingFit, place: Mapping[str, float]) -> CellRatio | None:
    """The runs at this very (N, D), on their own."""
    here = np.ones(fit.num_points, dtype=bool)
    for name, value in place.items():
        here &= np.isclose(fit.variables[name], value, rtol=1e-9, atol=0.0)
    for name in fit.law.variables:
        # Runs that differ in their unique tokens are not one cell.
        if name.startswith("U_") and len(np.unique(fit.variables[name][here])) > 1:
            return None
    ratios = fit.variables["r"][here]
    return best_ratio_in_cell(ratios, fit.loss[here]) if len(np.unique(ratios)) >= 3 else None


def _beyond(fit: ScalingFit, place: Mapping[str, float]) -> float:
    worst = 1.0
    for name, value in place.items():
        seen = fit.variables[name]
        worst = max(worst, value / float(seen.max()), float(seen.min()) / value)
    return worst if worst > 1 + 1e-12 else 1.0


def _warnings(fit: ScalingFit, low: float, high: float, seen: tuple[float, float]) -> list[str]:
    warnings = []
    if not fit.identifiable:
        warnings.append(f"the fit is not identifiable: {'; '.join(fit.reasons)}")
    if low < seen[0] - 1e-12 or high > seen[1] + 1e-12:
        warnings.append(f"the runs have ratios from {seen[0]:g} to {seen[1]:g}; beyond them the law is only its form")
    num = len(np.unique(fit.variables["r"]))
    if num < 4:
        warnings.append(f"the runs have only {num} different ratios; the form of the law says most of this")
    return warnings


# --- by one cell ---


def best_ratio_in_cell(ratio: ArrayLike, loss: ArrayLike, *, maximize: bool = False, level: float = 0.95) -> CellRatio:
    """The best ratio at one size and budget, by least squares of a quadratic in the ratio.

    One entry a run; seeds of one ratio may repeat. `maximize=True` for a score where greater is better (any finite
    number), else lower is better and values are positive. The quadratic uses all runs where the best grid point follows
    the noise of one. Where it has no optimum inside the grid, `ratio` is the better end and `at_edge` is True.
    `interval` holds the ratios at which the slope of the quadratic is not told from 0 at this level (Fieller 1954:
    exact when the truth is a quadratic and runs err alike); the warnings say when it visibly is not.

    ValueError for fewer than 3 different ratios, ratios outside [0, 1] and values that are not numbers.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95; got {level}")
    try:
        ratio = np.asarray(ratio, dtype=np.float64)
        values = np.asarray(loss, dtype=np.float64) if maximize else _positive(loss, "loss")
    except TypeError:
        raise ValueError(f"ratio and loss must be numbers, got {ratio!r}") from None
    if not np.isfinite(values).all():
        raise ValueError(f"a score must be finite; got {values[~np.isfinite(values)][0]}")
    if ratio.ndim != 1 or ratio.shape != values.shape:
        raise ValueError(f"ratio and loss hold one value a run each; got shapes {ratio.shape} and {values.shape}")
    if not ((ratio >= 0) & (ratio <= 1)).all():
        raise ValueError(f"a ratio is a share in [0, 1]; got {ratio[~((ratio >= 0) & (ratio <= 1))][0]}")
    grid = np.unique(ratio)
    if len(grid) < 3:
        raise ValueError(f"a best ratio takes at least 3 different ratios; got {grid.tolist()}")
    sign = -1.0 if maximize else 1.0
    order = np.lexsort((values, ratio))  # the same sums for any order of rows
    ratio, cost = ratio[order], sign * values[order]
    means = np.array([cost[ratio == value].mean() for value in grid])
    centre, width = (grid[0] + grid[-1]) / 2, (grid[-1] - grid[0]) / 2
    scaled = (ratio - centre) / width
    design = np.stack([np.ones_like(scaled), scaled, scaled**2], axis=-1)
    found, *_ = np.linalg.lstsq(design, cost, rcond=None)
    c0, c1, c2 = (float(value) for value in found)
    residual = design @ found - cost
    vertex = -c1 / (2 * c2) if c2 > 0 else np.inf
    at_edge = not -1 < vertex < 1
    ends = np.array([-1.0, 1.0])
    best = float(ends[np.argmin(c0 + c1 * ends + c2 * ends**2)]) if at_edge else float(vertex)
    lowest = int(np.argmin(means))
    interval = None
    if len(cost) > 3:
        variance = float(residual @ residual) / (len(cost) - 3)
        covariance = variance * np.linalg.inv(design.T @ design)
        interval = tuple(float(centre + width * v) for v in _fieller(found, covariance, len(cost) - 3, level, best))
    return CellRatio(
        ratio=float(np.clip(centre + width * best, grid[0], grid[-1])),
        loss=float(sign * (c0 + c1 * best + c2 * best**2)),
        interval=interval,  # type: ignore[arg-type]
        level=level,
        grid_ratio=float(grid[lowest]),
        grid_loss=float(sign * means[lowest]),
        at_edge=bool(at_edge),
        grid_at_edge=lowest in (0, len(grid) - 1),
        coefficients=(
            float(sign * (c0 - c1 * centre / width + c2 * centre**2 / width**2)),
            float(sign * (c1 / width - 2 * c2 * centre / width**2)),
            float(sign * c2 / width**2),
        ),
        num_ratios=len(grid),
        rms_residual=float(np.sqrt(np.mean(residual**2))),
        maximize=bool(maximize),
        warnings=_misfit(ratio, scaled, cost, residual) if len(grid) > 3 else [],
    )


def _misfit(ratio: np.ndarray, scaled: np.ndarray, cost: np.ndarray, residual: np.ndarray) -> list[str]:
    """Whether the first few tokens of a source do more than a quadratic lets them: F tests of a root of its share."""
    from scipy.special import fdtrc

    freedom = len(cost) - 4
    if freedom < 1 or float(residual @ residual) <= 1e-24 * float(cost @ cost):
        return []
    chances = []
    for share in (ratio, 1 - ratio):
        design = np.stack([np.ones_like(scaled), scaled, scaled**2, np.sqrt(share)], axis=-1)
        found, *_ = np.linalg.lstsq(design, cost, rcond=None)
        least = float(np.sum((design @ found - cost) ** 2))
        gain = max(float(residual @ residual) - least, 0.0)
        chances.append(float(fdtrc(1, freedom, gain * freedom / max(least, 1e-300))))
    if 2 * min(chances) >= MISFIT_P:
        return []
    return [
        "a quadratic does not follow these runs: the value bends too fast near a ratio of "
        f"{int(chances[1] < chances[0])}, so its optimum and interval are off; leave that end out, or fit a law in r"
    ]


def _fieller(found: np.ndarray, covariance: np.ndarray, freedom: int, level: float, best: float) -> tuple[float, float]:
    """Ends in [-1, 1] of the places where the slope `c1 + 2 c2 v` is not told from 0, and `best`.

    `best` alone where the quadratic rises or falls over the whole range beyond doubt; the whole range where it is not
    and bends the wrong way.
    """
    from scipy.special import stdtrit

    places = np.linspace(-1, 1, 4001)
    slope = found[1] + 2 * found[2] * places
    spread = covariance[1, 1] + 4 * places * covariance[1, 2] + 4 * places**2 * covariance[2, 2]
    level_here = np.abs(slope) <= stdtrit(freedom, (1 + level) / 2) * np.sqrt(np.maximum(spread, 0.0))
    if not level_here.any():
        return best, best
    if found[2] <= 0:
        return -1.0, 1.0
    first, last = places[level_here][[0, -1]]
    return float(min(best, first)), float(max(best, last))
