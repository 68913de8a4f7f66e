"""The figures of the paper that ask more than the runs themselves: foretold runs, laws read far beyond them, the best
ratio cell by cell, generators beside each other.

Each is a function of an `Evidence` (the runs, their fits, and what was made of them) that returns matplotlib Axes, in
the style of `figures`; what is drawn is kept as rows of numbers, `figures.drawn(ax)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lingua_synth.report import style, words
from lingua_synth.report.canvas import Canvas, canvas_on, count_axis, spread
from lingua_synth.report.evidence import Evidence
from lingua_synth.report.laws import LEVEL
from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.laws import DataLaw, Law, ModelLaw
from lingua_synth.scaling.regions import t_quantile
from lingua_synth.scaling.ties import RatioTies, ratio_ties
from lingua_synth.scaling.validation import Holdout, holdout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lingua_synth.scaling import MixtureFit

TOKENS_BEYOND, SIZES_BEYOND = 40.0, 400 / 3
"""How far laws are drawn beyond the largest run where nobody says: the paper went from 200B to 8T tokens and from 3B
to 400B parameters."""
BAND_POINTS = 60
MOST_LETTERS = 9
"""Of a tie set in a square; a longer one is counted there and listed in the CSV."""


# --- foretold runs ---


def validations(evidence: Evidence, variable: str) -> dict[str, Holdout | str]:
    """Per mixture, the law in one variable ("D" at the main size, "N" at the main budget) fitted without the largest
    value of the table there, and its error on the runs that were held out; or why there is none.

    A mixture that lacks the largest value, or has too few others, is refused in words.
    """
    law: Law = DataLaw() if variable == "D" else ModelLaw()
    runs = evidence.runs
    here = runs["size"] == evidence.main_size if variable == "D" else runs["tokens"] == evidence.main_tokens
    values = np.asarray(runs[evidence.target], dtype=float)
    here = here & np.isfinite(values) & (values > 0)
    at = runs["tokens"] if variable == "D" else _sizes(evidence)
    found: dict[str, Holdout | str] = {}
    if not here.any() or not np.isfinite(at[here]).all():
        return {mixture: "no such runs" for mixture in runs.mixtures}
    last = float(at[here].max())
    what = "budgets" if variable == "D" else "sizes"
    for mixture in runs.mixtures:
        mine = here & (runs["mixture"] == mixture)
        test = at[mine] == last
        known = len(np.unique(at[mine][~test]))
        if not test.any():
            found[mixture] = f"not trained at the largest of the {what}"
        elif known <= len(law.parameters):
            found[mixture] = f"{known} smaller {what}; a law of {len(law.parameters)} parameters takes one more"
        else:
            given: dict[str, Any] = {variable: at[mine]}
            found[mixture] = holdout(
                law, loss=values[mine], test=test, n_definition=evidence.n_definition,
                noise=evidence.noise.sd if evidence.noise is not None and evidence.noise.from_seeds else None, **given,
            )  # fmt: skip
    return found


def validation(evidence: Evidence, variable: str, ax: Axes | None = None) -> Axes:
    """Runs that a law foretold: dots are runs it was fitted to, diamonds runs held out; dashed where it foretells.

    `variable` is "D" (models of the main size, largest budget held out) or "N" (main budget, largest size held out).
    """
    checked = {m: one for m, one in validations(evidence, variable).items() if isinstance(one, Holdout)}
    looks = style.looks_of(evidence.runs, evidence.base)
    with canvas_on(ax, _axis(evidence, variable), evidence.target) as canvas:
        _labels(canvas, evidence, variable)
        if not checked:
            canvas.words("No mixture has runs enough to fit a law without its largest ones.")
            return canvas.ax
        every = np.concatenate([_along(one, variable)[0] for one in checked.values()])
        held = max(_along(one, variable)[1] for one in checked.values())
        count_axis(canvas.ax, sorted({*every.tolist(), held}))
        errors = []
        for mixture, one in checked.items():
            look, (x, last) = looks[mixture], _along(one, variable)
            assert isinstance(one.fit, ScalingFit), "one law was fitted"
            canvas.ax.plot(x, one.fit.loss, linestyle="none", marker=look.marker, color=look.colour, markersize=4)
            for one_x, loss in zip(x, one.fit.loss, strict=True):
                canvas.record("run", mixture, x=float(one_x), y=float(loss))
            fine = one.fit.identifiable
            if fine:
                for low, high, line in ((x.min(), x.max(), look.line), (x.max(), last, (0, (2, 1.5)))):
                    grid = np.geomspace(low, high, BAND_POINTS)
                    grid[[0, -1]] = low, high
                    curve = one.fit.predict(**{variable: grid})
                    canvas.ax.plot(grid, curve, color=look.colour, linestyle=line, linewidth=1.2)
                    for one_x, loss in zip(grid, curve, strict=True):
                        canvas.record("fit", mixture, x=float(one_x), y=float(loss))
                errors.append(one.error)
            canvas.ax.plot(
                np.full(one.num_test, last), one.observed, linestyle="none", marker="D", markersize=6.5,
                markerfacecolor="white", markeredgecolor=look.colour, markeredgewidth=1.6, zorder=4,
            )  # fmt: skip
            for seen, law in zip(one.observed, one.predicted, strict=True):
                note = f"law: {float(law)!r}" if fine else "law not identifiable"
                canvas.record("held out", mixture, x=last, y=float(seen), note=note)
            canvas.key(mixture, color=look.colour, marker=look.marker, linestyle=look.line if fine else "none")
        canvas.key(
            "held out", color=style.INK, marker="D", markersize=6.5, markerfacecolor="white", linestyle="none",
            markeredgewidth=1.6,
        )  # fmt: skip
        if errors:
            canvas.ax.text(
                0.98, 0.98, f"mean error on runs held out: {100 * float(np.mean(errors)):.2g}{words.THIN}%",
                transform=canvas.ax.transAxes, ha="right", va="top", color="#444444",
            )  # fmt: skip
    return canvas.ax


def _along(one: Holdout, variable: str) -> tuple[np.ndarray, float]:
    """(values of the runs fitted, the value held out)."""
    assert isinstance(one.fit, ScalingFit), "one law was fitted"
    x = np.asarray(one.fit.variables[variable], dtype=float)
    return x, float(x.max() * one.extrapolation_factor)


# --- laws beyond their runs ---


def beyond(evidence: Evidence, variable: str, to: float | None = None) -> float:
    """Where the axis of an extrapolation ends: `to`, else as many times beyond the largest run as the paper went,
    rounded up to one digit (200B -> 8T tokens). NaN without runs."""
    values = [cell.tokens if variable == "D" else cell.num_parameters for cell in evidence.cells]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return math.nan
    if to is not None:
        return to
    end = max(values) * (TOKENS_BEYOND if variable == "D" else SIZES_BEYOND)
    unit = 10.0 ** math.floor(math.log10(end))
    return math.ceil(round(end / unit, 9)) * unit


def extrapolation(evidence: Evidence, variable: str, to: float | None = None, ax: Axes | None = None) -> Axes:
    """The laws of all mixtures in one variable, drawn beyond the runs: solid over the runs, dashed beyond, with 95 %
    bands of the law given its form. Mixtures whose law is not identifiable have their runs only.

    ValueError when `to` is not beyond the runs.
    """
    fits = evidence.fits
    place: Any = evidence.main_size if variable == "D" else evidence.main_tokens
    every: Mapping[str, Mapping[Any, MixtureFit]] = {}
    if fits is not None:
        every = fits.data if variable == "D" else fits.model
    end = beyond(evidence, variable, to)
    looks = style.looks_of(evidence.runs, evidence.base)
    chosen = [c for c in evidence.cells if (c.size if variable == "D" else c.tokens) == place]
    with canvas_on(ax, _axis(evidence, variable), evidence.target, height=3.7) as canvas:
        _labels(canvas, evidence, variable)
        x_of = {id(c): c.tokens if variable == "D" else c.num_parameters for c in chosen}
        if not chosen or not all(math.isfinite(x) for x in x_of.values()):
            canvas.words("No runs to draw a law from.")
            return canvas.ax
        first, last = min(x_of.values()), max(x_of.values())
        if not (math.isfinite(end) and end > last):
            name = "tokens" if variable == "D" else "parameters"
            raise ValueError(
                f"an extrapolation goes beyond the runs, past {words.short_count(last)} {name}; got {end:g}"
            )
        decades = [10.0**k for k in range(math.ceil(math.log10(first)), math.floor(math.log10(end)) + 1)]
        count_axis(canvas.ax, sorted({first, last, end, *decades}))
        drawn = 0
        shown = [m for m in evidence.runs.mixtures if any(m in c.losses for c in chosen)]
        alpha = 0.15 if len(shown) <= 4 else 0.07
        for mixture in shown:
            look = looks[mixture]
            for cell in chosen:
                for loss in cell.losses.get(mixture, ()):
                    canvas.ax.plot(
                        x_of[id(cell)], float(loss), linestyle="none", marker=look.marker, color=look.colour,
                        markersize=3.5, zorder=3,
                    )  # fmt: skip
                    canvas.record("run", mixture, x=x_of[id(cell)], y=float(loss))
            entry = every.get(mixture, {}).get(place)
            good = entry is not None and entry.identifiable
            if good and entry is not None:
                _beyond_curve(canvas, mixture, look, entry, variable, (first, last, end), alpha)
                drawn += 1
            canvas.key(mixture, color=look.colour, marker=look.marker, linestyle=look.line if good else "none")
        canvas.ax.axvline(last, color=style.FAINT, linewidth=0.8, linestyle="--")
        canvas.ax.annotate(
            "runs end here", (last, 0.985), xycoords=("data", "axes fraction"), xytext=(4, 0),
            textcoords="offset points", va="top", fontsize=8, color="#555555",
        )  # fmt: skip
        if not drawn:
            canvas.corner("no law here is identifiable:\nruns only")
    return canvas.ax


def _beyond_curve(
    canvas: Canvas,
    mixture: str,
    look: style.Look,
    entry: MixtureFit,
    variable: str,
    ends: tuple[float, float, float],
    alpha: float,
) -> None:
    assert entry.fit is not None, "an identifiable entry has a fit"
    for low, high, line, kind in ((ends[0], ends[1], look.line, "fit"), (ends[1], ends[2], (0, (2, 1.5)), "beyond")):
        grid = np.geomspace(low, high, BAND_POINTS)
        grid[[0, -1]] = low, high
        at: dict[str, Any] = {variable: grid}
        curve = np.asarray(entry.fit.predict(**at), dtype=float)
        canvas.ax.plot(grid, curve, color=look.colour, linestyle=line, linewidth=1.3)
        lower = upper = np.full(len(grid), math.nan)
        if entry.bootstrap is not None:
            lower, upper = (np.asarray(b, dtype=float) for b in entry.bootstrap.predict_interval(**at, level=LEVEL))
            canvas.ax.fill_between(grid, lower, upper, color=look.colour, alpha=alpha, linewidth=0)
        for x, y, lo, hi in zip(grid, curve, lower, upper, strict=True):
            canvas.record(kind, mixture, x=float(x), y=float(y), low=float(lo), high=float(hi))


# --- the best ratio, cell by cell ---


def ties_of(evidence: Evidence, source: str) -> list[RatioTies]:
    """The cells of one source with their tie sets."""
    return ratio_ties(
        evidence.runs, evidence.base, source, evidence.noise, evidence.target, evidence.n_definition, LEVEL
    )


def best_ratios(evidence: Evidence, source: str, ax: Axes | None = None) -> Axes:
    """One square a cell (size and budget), in per cent: the best measured share of `source`, below it the shares that
    the runs do not tell from it, and the best share by the law in the ratio. Colour is the best measured share."""
    cells = ties_of(evidence, source)
    budgets = sorted({one.tokens for one in cells})
    sizes = list(dict.fromkeys(one.size for one in cells))
    with canvas_on(ax, "tokens", "size", height=1.35 + 0.66 * max(2, len(sizes)), legend=False) as canvas:
        canvas.labels("training tokens D", "model size")
        if not cells:
            canvas.words(f"No size and budget has three shares of {source}.")
            return canvas.ax
        import matplotlib
        from matplotlib.patches import Rectangle

        ramp = matplotlib.colormaps["cividis"]
        law = evidence.ratio_fits.get(source)
        usable = law is not None and law.usable
        small = 8.0 if len(budgets) <= 6 else 6.6 if len(budgets) <= 8 else 5.4
        for one in cells:
            x, y = budgets.index(one.tokens), sizes.index(one.size)
            colour = ramp(min(one.best, 1.0))
            canvas.ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
            dark = sum(w * c for w, c in zip((0.299, 0.587, 0.114), colour[:3], strict=True)) < 0.52
            ink = "white" if dark else style.INK
            lines = [_shares(one)] if one.known else ["no noise"]
            value = math.nan
            if usable and law is not None and math.isfinite(one.N):
                value = law.point(one.N, one.tokens)
                lines.append(f"law {100 * value:.0f}")
            text = canvas.ax.text
            text(x, y + 0.2, _percent(one.best), ha="center", va="center", color=ink, fontsize=small + 4)
            text(x, y - 0.22, "\n".join(lines), ha="center", va="center", color=ink, fontsize=small, linespacing=1.15)
            canvas.record(
                "best", source, x=one.tokens, y=one.size, value=one.best, low=one.ties[0], high=one.ties[-1],
                law=value, note="ties: " + " ".join(f"{r:g}" for r in one.ties) if one.known else "noise unknown",
            )  # fmt: skip
        canvas.ax.set(xlim=(-0.5, len(budgets) - 0.5), ylim=(-0.5, len(sizes) - 0.5))
        canvas.ax.set_xticks(range(len(budgets)), [words.short_count(d) for d in budgets])
        canvas.ax.set_yticks(range(len(sizes)))
        canvas.ax.set_yticklabels([words.shortened(s, 12) for s in sizes], parse_math=False)
        canvas.ax.grid(visible=False)
        canvas.ax.tick_params(length=0)
        canvas.ax.spines[:].set_visible(False)
        canvas.ax.set_title(f"best share of {words.shortened(source)} (%)", parse_math=False)
    return canvas.ax


def _shares(one: RatioTies) -> str:
    """The tie set in words: 15-50 when it is all the ratios between, else one by one, or how many of the ratios."""
    between = [r for r in one.ratios if one.ties[0] <= r <= one.ties[-1]]
    if len(one.ties) == 1:
        return "no tie"
    if len(between) == len(one.ties):
        return f"{_percent(one.ties[0])}\N{EN DASH}{_percent(one.ties[-1])}"
    listed = ",".join(_percent(r) for r in one.ties)
    return listed if len(listed) <= MOST_LETTERS else f"{len(one.ties)} of {len(one.ratios)}"


def _percent(ratio: float) -> str:
    value = 100 * ratio
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"


# --- generators ---


def generator_kinds(evidence: Evidence) -> list[str]:
    """Kinds of text that two generators or more wrote."""
    by_kind: dict[str, set[str]] = {}
    for one in evidence.kinds.values():
        if one.generator is not None:
            by_kind.setdefault(one.kind, set()).add(one.generator)
    return [kind for kind, names in by_kind.items() if len(names) > 1]


def generators(
    evidence: Evidence, kind: str, ax: Axes | None = None, *, hours: Mapping[str, float] | None = None
) -> Axes:
    """Loss against the share of text of one kind, one line a generator, smallest generator first, in the cell with
    most runs of it; natural text alone as a level line. Bars are 95 % intervals of a mean, from the noise of a run.

    With `hours` (source -> GPU-hours to write a billion tokens) the loss stands against the GPU-hours that writing the
    text of one training took, for the sources that have them. ValueError for a kind with fewer than two generators.
    """
    if kind not in generator_kinds(evidence):
        known = ", ".join(generator_kinds(evidence)) or "none"
        raise ValueError(f"no kind {kind!r} by two generators or more; there is {known}")
    mine = sorted(
        (one for one in evidence.kinds.values() if one.kind == kind and one.generator is not None),
        key=lambda one: (one.generator_size or math.inf, one.generator or ""),
    )
    by_source = {
        one.source: {m: share for m, (names, share) in evidence.shares.items() if names == (one.source,)}
        for one in mine
    }
    every = {m for shares in by_source.values() for m in shares}
    cell = max(evidence.cells, key=lambda c: (sum(m in c.losses for m in every), c.num_parameters, c.tokens))
    what = "generation_gpu_hours" if hours is not None else "synthetic_ratio"
    with canvas_on(ax, what, evidence.target, height=3.6) as canvas:
        at = f"{kind}, size {cell.size}, {words.short_count(cell.tokens)} tokens"
        unit = words.target_words(evidence.target)
        x_label = "GPU-hours to write the text of one training" if hours is not None else "share of synthetic tokens"
        canvas.labels(f"{x_label}{'' if hours is not None else ' (%)'}: {at}", f"{unit[0]}\n({unit[1]})")
        noise = evidence.noise
        reach = noise.sd * t_quantile(noise.freedom, LEVEL) if noise is not None else math.nan
        if evidence.base in cell.losses:
            level = cell.mean(str(evidence.base))
            canvas.ax.axhline(level, color=style.BASE_COLOUR, linewidth=1.0)
            canvas.key(str(evidence.base), color=style.BASE_COLOUR, linestyle="-", linewidth=1.0)
            canvas.record("mean", str(evidence.base), x=0.0, y=level)
        ticks: set[float] = set()
        for k, one in enumerate(mine):
            per_billion = (hours or {}).get(one.source)
            if hours is not None and per_billion is None:
                continue
            points = sorted((share, m) for m, share in by_source[one.source].items() if m in cell.losses)
            if not points:
                continue
            colour, marker = style.COLOURS[k % 7], style.MARKERS[(k + 1) % 10]
            x = [share * (cell.tokens / 1e9 * per_billion if per_billion is not None else 100) for share, _ in points]
            y = [cell.mean(m) for _, m in points]
            counts = [len(cell.losses[m]) for _, m in points]
            bars = [value * math.expm1(reach / math.sqrt(n)) for value, n in zip(y, counts, strict=True)]
            canvas.ax.errorbar(
                x, y, yerr=bars if math.isfinite(reach) else None, color=colour, marker=marker, linewidth=1.3,
                markersize=5, capsize=2, elinewidth=0.9,
            )  # fmt: skip
            canvas.key(str(one.generator), color=colour, marker=marker, linestyle="-", linewidth=1.3)
            ticks.update(x)
            for one_x, one_y, bar in zip(x, y, bars, strict=True):
                canvas.record("mean", str(one.generator), x=one_x, y=one_y, low=one_y - bar, high=one_y + bar)
        if not ticks:
            canvas.words("No generator of this kind has its GPU-hours given.")
            return canvas.ax
        if min(ticks) > 0:
            count_axis(canvas.ax, sorted(ticks))
            if hours is None:
                marks = spread(sorted(ticks), 7, 0.05)
                canvas.ax.set_xticks(marks, [f"{t:g}" for t in marks])
    return canvas.ax


# --- shared ---


def _sizes(evidence: Evidence) -> np.ndarray:
    try:
        return evidence.runs.N(evidence.n_definition)
    except ValueError:
        return np.full(len(evidence.runs), math.nan)


def _axis(evidence: Evidence, variable: str) -> str:
    return "tokens" if variable == "D" else f"n_{evidence.n_definition}"


def _labels(canvas: Canvas, evidence: Evidence, variable: str) -> None:
    what, unit = words.target_words(evidence.target)
    if variable == "D":
        canvas.labels(f"training tokens D, size {evidence.main_size}", f"{what}\n({unit})")
        return
    counted = words.N_WORDS.get(evidence.n_definition, evidence.n_definition)
    at = words.short_count(evidence.main_tokens) if evidence.main_tokens is not None else words.NOTHING
    canvas.labels(f"N, {counted}, at {at} training tokens", f"{what}\n({unit})")


def validation_rows(checked: Mapping[str, Holdout | str]) -> tuple[Sequence[str], list[list[Any]]]:
    """(header, rows) of a table: the law's error on the runs held out, a naive guess's, and that of the noise."""
    header = ["mixture", "runs held out", "error of the law (%)", "of the last run (%)", "of noise alone (%)", "remark"]
    rows: list[list[Any]] = []
    for mixture, one in checked.items():
        if isinstance(one, str):
            rows.append([mixture, None, None, None, None, one])
            continue
        floor = None if one.noise_floor is None else 100 * one.noise_floor
        fine = one.fit.identifiable
        remark = (
            f"{one.extrapolation_factor:.3g} times beyond"
            if fine
            else "not identifiable: " + "; ".join(one.fit.reasons)
        )
        rows.append([mixture, one.num_test, 100 * one.error if fine else None, 100 * one.naive_error, floor, remark])
    return header, rows
