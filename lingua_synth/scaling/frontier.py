"""What a fitted law says of plans: the best split of a compute budget, equal losses, and losses far beyond the runs.

Three questions to one fit, each with bands over resamples and with how far beyond the runs its answer lies:

- `compute_optimal`: given C FLOPs, the N and D of lowest loss. With C = k N D every term of a constant plus two power
  laws is a power of N along the line of one C, so that the minimum follows in closed form (Hoffmann et al. 2022,
  equation 4, for the joint law); for other laws and other counts of FLOPs it is found on a grid and by a parabola.
- `iso_loss`: for models of several sizes, the tokens that reach one loss, and what that costs.
- `extrapolate`: losses at larger sizes and budgets.

FLOPs are counted by a `FlopsRule`, which is named in every answer: 6 N D by default, or what a model of the presets'
proportions needs at a sequence length (`preset_flops`), attention and output matrix included.

N: parameters, as the fit counts them. D: training tokens. C: training FLOPs. Bands are t intervals on logarithms from
the middle of the resamples (`regions.resampled_error`), of the law given its form; far away the form errs more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import ArrayLike, _positive
from lingua_synth.scaling.records import record
from lingua_synth.scaling.regions import falling_region, resampled_error, t_quantile
from lingua_synth.scaling.uncertainty import Bootstrap

FAR = 100.0
"""An answer further beyond the runs than this is said to rest on the law's form."""


@dataclass(frozen=True, eq=False)
class FlopsRule:
    """Training FLOPs of a model per token."""

    name: str
    """In words, for every answer."""
    n_definition: str = ""
    """The count of N it is for; empty: whatever the fit counts."""
    factor: float = 6.0
    """FLOPs per token and parameter, where they are proportional to N."""
    curve: np.ndarray | None = None
    """Where they are not: Chebyshev coefficients of ln(FLOPs per token) in ln N over `span`, straight lines beyond."""
    span: tuple[float, float] = (0.0, 1.0)
    """Least and greatest ln N of the models it was drawn through."""

    @classmethod
    def through(cls, name: str, N: ArrayLike, flops_per_token: ArrayLike, n_definition: str = "") -> FlopsRule:
        """A smooth rule through the FLOPs per token of known models, by least squares of a quartic in logarithms.

        Smooth, because the best size would stick to the kinks of straight lines between models. The name says how far
        any of the models is from it. ValueError for fewer than 3 different sizes, or sizes and FLOPs that differ in
        number.
        """
        sizes, flops = np.atleast_1d(_positive(N, "N")), np.atleast_1d(_positive(flops_per_token, "flops_per_token"))
        if sizes.shape != flops.shape or sizes.ndim != 1:
            raise ValueError(f"one count of FLOPs a size is needed; got shapes {sizes.shape} and {flops.shape}")
        distinct = len(np.unique(sizes))
        if distinct < 3:
            raise ValueError(f"a curve takes at least 3 different sizes; got {distinct}")
        span = (float(np.log(sizes.min())), float(np.log(sizes.max())))
        x = _scaled(np.log(sizes), span)
        curve = np.polynomial.chebyshev.chebfit(x, np.log(flops), min(4, distinct - 1))
        off = float(np.abs(np.expm1(np.polynomial.chebyshev.chebval(x, curve) - np.log(flops))).max())
        return cls(f"{name} (each within {100 * off:.2g} %)", n_definition, curve=curve, span=span)

    def per_token(self, N: ArrayLike) -> np.ndarray:
        """FLOPs per token of models with N parameters."""
        sizes = np.asarray(N, dtype=np.float64)
        if self.curve is None:
            return self.factor * sizes
        x = _scaled(np.log(sizes), self.span)
        inside = np.clip(x, -1, 1)
        slope = np.polynomial.chebyshev.chebval(inside, np.polynomial.chebyshev.chebder(self.curve))
        return np.exp(np.polynomial.chebyshev.chebval(inside, self.curve) + (x - inside) * slope)


SIX_ND = FlopsRule("6 N D")


def preset_flops(seq_len: int = 4096, n_definition: str = "non_embedding", convention: str = "causal") -> FlopsRule:
    """The FLOPs of models in the presets' proportions (48M to 480B), by a convention of `lingua_synth.model`.

    ValueError for a count of N or a convention that does not exist, or seq_len under 1.
    """
    from lingua_synth.model import count_parameters, flops_per_token, preset
    from lingua_synth.scaling.runs import n_column

    n_column(n_definition)
    if seq_len < 1:
        raise ValueError(f"seq_len is a number of tokens, at least 1; got {seq_len}")
    models = [preset(f"{size}M") for size in np.unique(np.geomspace(48, 480_000, 60).astype(int))]
    return FlopsRule.through(
        f"{convention} FLOPs of the presets' proportions at {seq_len} tokens a sequence",
        [float(getattr(count_parameters(one), n_definition)) for one in models],
        [float(flops_per_token(one, seq_len, convention)) for one in models],
        n_definition,
    )


def _scaled(log_N: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    return (2 * log_N - span[0] - span[1]) / (span[1] - span[0])


# --- the best split of a budget ---


@dataclass(frozen=True, eq=False)
class Frontier:
    """The size and the tokens of lowest loss for each compute budget."""

    C: np.ndarray
    N: np.ndarray
    D: np.ndarray
    """NaN where the law has no best size: its loss falls towards one end of all sizes."""
    loss: np.ndarray
    extrapolation_factor: np.ndarray
    """How many times beyond the fit's runs (N, D) lies; 1 inside them."""
    flops: str
    """How FLOPs were counted."""
    n_definition: str
    exponent: float | None = None
    """a of N ~ C^a, where the law and the count of FLOPs make it one power."""
    bands: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """(low, high) of "N", "D", "loss" and, where there is one, "exponent"; empty without resamples."""
    level: float | None = None
    interior_probability: np.ndarray | None = None
    """Share of the resamples whose law has a best size."""
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record({**self.__dict__, "bands": {name: list(ends) for name, ends in self.bands.items()}})

    def __str__(self) -> str:
        title = f"compute-optimal models; C = {self.flops}, N: {self.n_definition}"
        if self.exponent is not None:
            title += f"; N ~ C^{self.exponent:.3g}"
            if "exponent" in self.bands:
                title += f" [{float(self.bands['exponent'][0]):.3g}, {float(self.bands['exponent'][1]):.3g}]"
        lines = [title, f"  {'C':>9} {'N':>30} {'D':>30} {'D/N':>7} {'loss':>24}"]
        for k in range(len(self.C)):
            if np.isnan(self.N[k]):
                lines.append(f"  {self.C[k]:>9.3g} {'no best size':>30}")
                continue
            cells = [
                _with_band(float(values[k]), self.bands.get(name), k, digits)
                for name, values, digits in (("N", self.N, 3), ("D", self.D, 3), ("loss", self.loss, 4))
            ]
            line = f"  {self.C[k]:>9.3g} {cells[0]:>30} {cells[1]:>30} {self.D[k] / self.N[k]:>7.3g} {cells[2]:>24}"
            beyond = self.extrapolation_factor[k]
            lines.append(line + (f"   ({beyond:.3g} times beyond the runs)" if beyond > 1 else ""))
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def compute_optimal(
    fit: ScalingFit,
    C: ArrayLike,
    *,
    flops: FlopsRule = SIX_ND,
    resamples: Bootstrap | None = None,
    level: float = 0.95,
    **variables: float,
) -> Frontier:
    """The N and D of lowest loss whose training costs C FLOPs, with bands when `resamples` of the fit are given.

    `variables`: what else the law depends on (r, U), one value each. ValueError for a law without N or D, a rule for
    another count of N, resamples of another fit, C that is not positive.
    """
    _check(fit, flops, resamples, need=("N", "D"))
    budgets = np.atleast_1d(_positive(C, "C"))
    point = fit.law.as_array(fit.params)[None]
    closed = len(fit.law.terms) == 2 and flops.curve is None
    N, exponent = (
        _closed_form(fit, point, budgets, flops) if closed else _on_grid(fit, point, budgets, flops, variables)
    )
    N = N[0]
    known = np.isfinite(N)
    D = budgets / flops.per_token(np.where(known, N, np.nan))
    loss, beyond = np.full(N.shape, np.nan), np.full(N.shape, np.nan)
    if known.any():
        loss[known] = fit.predict(N=N[known], D=D[known], **variables)
        beyond[known] = fit.extrapolation_factor(N=N[known], D=D[known], **variables)
    warnings = _warnings(fit, beyond)
    if not known.all():
        warnings.append("the law has no best size at some budgets: with these parameters more of one thing always pays")
    found: dict[str, Any] = {}
    if resamples is not None:
        rows = _solved(resamples)
        t = t_quantile(resamples.freedom, level)
        again, slopes = (
            _closed_form(fit, rows, budgets, flops) if closed else _on_grid(fit, rows, budgets, flops, variables)
        )
        interior = np.isfinite(again)
        # The loss each resample's law has at its own best split.
        best = np.full(again.shape, np.nan)
        for k, row in enumerate(rows):
            fine = interior[k]
            if fine.any():
                best[k, fine] = fit.law.predict(
                    row, N=again[k, fine], D=(budgets / flops.per_token(again[k]))[fine], **variables
                )
        bands = {
            name: _log_band(values, centre, t)
            for name, values, centre in (
                ("N", again, N), ("D", budgets / flops.per_token(again), D), ("loss", best, loss),
            )
        }  # fmt: skip
        if exponent is not None and slopes is not None:
            half = t * float(resampled_error(slopes[np.isfinite(slopes)][:, None])[0])
            bands["exponent"] = (np.array(exponent[0] - half), np.array(exponent[0] + half))
        found = {"bands": bands, "level": float(level), "interior_probability": interior.mean(axis=0)}
    return Frontier(
        C=budgets,
        N=N,
        D=D,
        loss=loss,
        extrapolation_factor=beyond,
        flops=flops.name,
        n_definition=fit.n_definition,
        exponent=None if exponent is None else float(exponent[0]),
        warnings=warnings,
        **found,
    )


def _closed_form(
    fit: ScalingFit, params: np.ndarray, C: np.ndarray, flops: FlopsRule
) -> tuple[np.ndarray, np.ndarray | None]:
    """(best N `[n, len(C)]`, exponent of C in it `[n]`) of a constant plus two power laws, with C = factor N D.

    A term c / (N^a D^b) is c (C / factor)^-b N^(b - a) on that line; of a falling and a rising power of N the sum is
    least where N^(p2 - p1) = -p1 c1 / (p2 c2).
    """
    law = fit.law
    coefficients, powers, by_D = [], [], []
    for term in law.terms:
        exponent = {variable: params[:, law.parameters.index(name)] for variable, name in term.exponents}
        by_D.append(np.asarray(exponent.get("D", np.zeros(len(params)))))
        powers.append(by_D[-1] - exponent.get("N", np.zeros(len(params))))
        coefficients.append(params[:, law.parameters.index(term.coefficient)])
    log_line = np.log(C / flops.factor)[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = -powers[0] * coefficients[0] / (powers[1] * coefficients[1])
        gap = powers[1] - powers[0]
        log_N = (np.log(ratio)[:, None] + (by_D[1] - by_D[0])[:, None] * log_line) / gap[:, None]
        slope = (by_D[1] - by_D[0]) / gap
        # A minimum, not a maximum, and between terms that are there.
        rises = (np.maximum(powers[0], powers[1]) > 0) & (np.minimum(powers[0], powers[1]) < 0) & (ratio > 0)
    N = np.where(rises[:, None] & np.isfinite(log_N), np.exp(log_N), np.nan)
    return N, np.where(rises, slope, np.nan)


def _on_grid(
    fit: ScalingFit, params: np.ndarray, C: np.ndarray, flops: FlopsRule, variables: Mapping[str, float]
) -> tuple[np.ndarray, None]:
    """Best N `[n, len(C)]` of any law: the lowest of 1601 sizes from 1e3 to 1e15, and the parabola through its
    neighbours. NaN where the lowest is the first or the last (with at least one token)."""
    x = np.linspace(np.log(1e3), np.log(1e15), 1601)
    N = np.full((len(params), len(C)), np.nan)
    for j, budget in enumerate(C):
        D = budget / flops.per_token(np.exp(x))
        use = D >= 1
        if use.sum() < 3:
            continue
        near = x[use]
        step = max(1, 2_000_000 // len(near))
        for begin in range(0, len(params), step):
            part = slice(begin, begin + step)
            value = np.log(fit.law.predict(params[part], N=np.exp(near), D=D[use], **variables))
            value = np.where(np.isfinite(value), value, np.inf)
            k = np.argmin(value, axis=-1)
            inner = (k > 0) & (k < len(near) - 1)
            at = np.clip(k, 1, len(near) - 2)
            row = np.arange(len(value))
            left, middle, right = value[row, at - 1], value[row, at], value[row, at + 1]
            with np.errstate(divide="ignore", invalid="ignore"):
                shift = 0.5 * (left - right) / (left - 2 * middle + right)
            shift = np.clip(np.where(np.isfinite(shift), shift, 0.0), -1, 1)
            N[part, j] = np.where(inner, np.exp(near[at] + shift * (near[1] - near[0])), np.nan)
    return N, None


# --- equal losses ---


@dataclass(frozen=True, eq=False)
class IsoLoss:
    """Tokens with which models of several sizes reach one loss."""

    loss: float
    N: np.ndarray
    D: np.ndarray
    """inf where a model of that size never gets there."""
    C: np.ndarray
    """Training FLOPs of (N, D)."""
    extrapolation_factor: np.ndarray
    flops: str
    n_definition: str
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    """Every D at which the law's loss cannot be told from `loss`; inf where the runs do not exclude "never"."""
    level: float | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def cheapest(self) -> int:
        """Index of the size that needs the fewest FLOPs; ValueError when none reaches the loss."""
        if not np.isfinite(self.C).any():
            raise ValueError(f"no size of these reaches a loss of {self.loss:g} by this law")
        return int(np.argmin(self.C))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(dict(self.__dict__))

    def __str__(self) -> str:
        lines = [
            f"loss {self.loss:.5g}; C = {self.flops}, N: {self.n_definition}",
            f"  {'N':>9} {'D':>32} {'C':>9}",
        ]
        for k in range(len(self.N)):
            if np.isinf(self.D[k]):
                shown, cost = "beyond reach", ""
                if self.low is not None and np.isfinite(self.low[k]):
                    shown += f", at least {self.low[k]:.3g}"
            else:
                band = None if self.low is None or self.high is None else (self.low, self.high)
                shown, cost = _with_band(float(self.D[k]), band, k, 3), f"{self.C[k]:.3g}"
            beyond = self.extrapolation_factor[k]
            note = f"   ({beyond:.3g} times beyond the runs)" if 1 < beyond < np.inf else ""
            lines.append(f"  {self.N[k]:>9.3g} {shown:>32} {cost:>9}{note}")
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def iso_loss(
    fit: ScalingFit,
    loss: float,
    N: ArrayLike,
    *,
    flops: FlopsRule = SIX_ND,
    resamples: Bootstrap | None = None,
    level: float = 0.95,
    **variables: float,
) -> IsoLoss:
    """The tokens with which models of N parameters reach `loss`, with bands when `resamples` are given.

    ValueError as for `compute_optimal`.
    """
    _check(fit, flops, resamples, need=("N", "D"))
    if np.ndim(loss) != 0:
        raise ValueError(f"iso_loss takes one loss, got shape {np.shape(loss)}")
    target = float(_positive(loss, "loss"))
    sizes = np.atleast_1d(_positive(N, "N"))
    D = np.atleast_1d(fit.law.solve_D(fit.params, np.full(sizes.shape, target), N=sizes, **variables))
    reached = np.isfinite(D)
    beyond = np.full(sizes.shape, np.inf)
    if reached.any():
        beyond[reached] = fit.extrapolation_factor(N=sizes[reached], D=D[reached], **variables)
    found: dict[str, Any] = {}
    if resamples is not None:
        rows, t = _solved(resamples), t_quantile(resamples.freedom, level)
        x = np.linspace(0.0, np.log(1e30), 1501)
        low, high = np.empty(sizes.shape), np.empty(sizes.shape)
        for k, size in enumerate(sizes):
            curves = fit.law.predict(rows, N=float(size), D=np.exp(x), **variables)
            point = fit.predict(N=float(size), D=np.exp(x), **variables) - target
            low[k], high[k] = np.exp(falling_region(x, point, resampled_error(curves), t))
        found = {"low": low, "high": high, "level": float(level)}
    return IsoLoss(
        loss=target,
        N=sizes,
        D=D,
        C=flops.per_token(sizes) * D,
        extrapolation_factor=beyond,
        flops=flops.name,
        n_definition=fit.n_definition,
        warnings=_warnings(fit, np.where(np.isfinite(beyond), beyond, np.nan)),
        **found,
    )


# --- far beyond the runs ---


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """Losses of a law at points beyond its runs."""

    points: dict[str, np.ndarray]
    loss: np.ndarray
    extrapolation_factor: np.ndarray
    remaining: np.ndarray
    """Part of the loss above the law's constant; NaN for a law without one."""
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    """Where the law may lie, given its form."""
    run_low: np.ndarray | None = None
    run_high: np.ndarray | None = None
    """Where a run may lie, by how far the law erred when it was fitted to the cheaper of the runs (`prediction`)."""
    level: float | None = None
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(dict(self.__dict__))

    def __str__(self) -> str:
        lines = []
        for k in range(len(self.loss)):
            where = ", ".join(f"{name} {values[k]:.4g}" for name, values in self.points.items())
            line = f"loss at {where}: {self.loss[k]:.5g}"
            if self.low is not None and self.high is not None:
                line += f", the law lies in [{self.low[k]:.5g}, {self.high[k]:.5g}]"
            if self.run_low is not None and self.run_high is not None:
                line += f", a run in [{self.run_low[k]:.5g}, {self.run_high[k]:.5g}]"
            if self.level is not None:
                line += f" at {100 * self.level:g} %"
            lines.append(f"{line}; {self.extrapolation_factor[k]:.3g} times beyond the runs")
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def extrapolate(
    fit: ScalingFit,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    *,
    resamples: Bootstrap | None = None,
    calibrated: bool = True,
    level: float = 0.95,
    **variables: ArrayLike,
) -> Extrapolation:
    """The law's loss at each point, how far beyond the runs that is, and bands: of the law from `resamples`, of a new
    run by rolling origins (`calibrated`; a few refits; left out, with the reason, where the runs do not allow it).

    ValueError as for `predict`, and for resamples of another fit.
    """
    _check(fit, SIX_ND, resamples, need=())
    given = {name: value for name, value in {"N": N, "D": D, **variables}.items() if value is not None}
    loss = np.atleast_1d(fit.predict(**given))
    points = {
        name: np.array(array)
        for name, array in zip(
            given, np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, float)) for v in given.values())), strict=True
        )
    }
    beyond = np.atleast_1d(fit.extrapolation_factor(**given))
    warnings = _warnings(fit, beyond)
    found: dict[str, Any] = {}
    if resamples is not None:
        t = t_quantile(resamples.freedom, level)
        values = fit.law.predict(_solved(resamples), **points)
        found["low"], found["high"] = _log_band(values, loss, t)
    if calibrated:
        from lingua_synth.scaling.prediction import prediction_interval

        try:
            run = prediction_interval(fit, level=level, **points)
        except ValueError as error:
            warnings.append(f"no band for a run: {error}")
        else:
            found["run_low"], found["run_high"] = np.atleast_1d(run.low), np.atleast_1d(run.high)
    constant = fit.params[fit.law.constant] if fit.law.constant else np.nan
    return Extrapolation(
        points=points,
        loss=loss,
        extrapolation_factor=beyond,
        remaining=loss - constant,
        level=float(level) if found else None,
        warnings=warnings,
        **found,
    )


# --- shared ---


def _check(fit: ScalingFit, flops: FlopsRule, resamples: Bootstrap | None, need: tuple[str, ...]) -> None:
    missing = [name for name in need if name not in fit.law.variables]
    if missing:
        raise ValueError(f"{type(fit.law).__name__} ({fit.law.formula}) has no {' and no '.join(missing)}")
    if flops.n_definition and flops.n_definition != fit.n_definition:
        raise ValueError(f"the FLOPs are counted for {flops.n_definition} N, the fit's N is {fit.n_definition}")
    if resamples is not None and (resamples.law != fit.law or resamples.point != fit.params):
        raise ValueError("resamples must be those of this fit")


def _solved(resamples: Bootstrap) -> np.ndarray:
    return resamples.params[~np.isnan(resamples.params).any(axis=-1)]


def _log_band(values: np.ndarray, centre: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """t interval on logarithms around `centre` `[k]`; `values` `[n, k]`, NaN where a resample has none."""
    low, high = np.full(centre.shape, np.nan), np.full(centre.shape, np.nan)
    for k in range(len(centre)):
        column = values[:, k][np.isfinite(values[:, k])]
        # With fewer than nine in ten resamples that have an answer, those that do are no sample of the error.
        if len(column) >= 0.9 * len(values):
            half = t * float(resampled_error(np.log(column)[:, None])[0])
            low[k], high[k] = centre[k] * np.exp(-half), centre[k] * np.exp(half)
    return low, high


def _warnings(fit: ScalingFit, beyond: np.ndarray) -> list[str]:
    warnings = []
    if not fit.identifiable:
        warnings.append(f"the fit is not identifiable: {'; '.join(fit.reasons)}")
    if np.isfinite(beyond).any() and np.nanmax(beyond) > FAR:
        warnings.append(
            f"up to {np.nanmax(beyond):.3g} times beyond the runs: there the law's form decides more than its "
            "parameters, and bands do not hold its error"
        )
    return warnings


def _with_band(value: float, band: tuple[np.ndarray, np.ndarray] | None, k: int, digits: int) -> str:
    if band is None:
        return f"{value:.{digits}g}"
    low, high = float(band[0][k]), float(band[1][k])
    if np.isnan(low):
        return f"{value:.{digits}g} [not known]"
    above = "beyond reach" if np.isinf(high) else f"{high:.{digits}g}"
    return f"{value:.{digits}g} [{low:.{digits}g}, {above}]"
