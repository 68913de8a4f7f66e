"""The figures of a study, each a function of the runs table and its fits that returns matplotlib Axes.

What goes in: `Runs` (one row a training) and, where a law is drawn, `StudyFits`. What comes out: labelled axes, on an
`ax` of the caller's or in a figure of their own. What is promised: a curve of a law, and a number that comes from
one, is drawn only where that fit is identifiable; elsewhere thin dashed lines join the runs, or words say why there
is nothing. Everything drawn is also kept as rows of numbers, `drawn(ax)`: a report writes them beside it as CSV.

Words used here: N parameters (which count is named on the axis), D training tokens counting repeats, E the
irreducible loss of the joint law, all losses in nats per token unless the target says otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lingua_synth.report import style, words
from lingua_synth.report.canvas import (
    GRID_POINTS,
    Canvas,
    apart,
    canvas_on,
    categories,
    count_axis,
    drawn,
    factor_axis,
    padded_grid,
    spread,
)
from lingua_synth.report.cells import (
    Cell,
    cells,
    largest_cell,
    main_size,
    main_tokens,
    parameters,
)
from lingua_synth.report.laws import LEVEL, estimate, n_definition_of, reasons, target_of
from lingua_synth.scaling import compute_optimal
from lingua_synth.scaling import speedup as law_speedup
from lingua_synth.scaling.natural import base_mixture, synthetic_ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lingua_synth.scaling import MixtureFit, Ranking, Runs, Speedup, StudyFits

__all__ = [
    "data_scaling",
    "domains",
    "drawn",
    "equal_loss_budget",
    "irreducible_loss",
    "joint_fit",
    "model_scaling",
    "ratio",
    "speedup",
]

SPEEDUP_POINTS = 7
"""So many budgets make a smooth enough curve of speed-ups; each takes some 10 ms for its interval."""
FRONTIER_POINTS = 41
FRONTIER_COLOUR = "#D55E00"

# --- the figures ---


def data_scaling(
    runs: Runs,
    fits: StudyFits | None,
    size: str | None = None,
    ax: Axes | None = None,
    *,
    target: str | None = None,
    base: str | None = None,
) -> Axes:
    """Loss against training tokens D at one model size: dots are runs, one colour a mixture.

    Where the data law of a mixture at this size is identifiable, its curve and 95 % band (bootstrap) over the
    measured range; otherwise a thin dashed line through the mean losses. `size` defaults to the one with most budgets.
    ValueError when the table has no such size.
    """
    target = target_of(fits, target)
    every_cell = cells(runs, target, n_definition_of(fits))
    _check_size(every_cell, size)
    size = size or main_size(every_cell)
    chosen = [cell for cell in every_cell if cell.size == size]
    by_mixture = fits.data if fits is not None else {}
    with canvas_on(ax, "tokens", target) as canvas:
        canvas.labels(f"training tokens D, size {size}" if chosen else "training tokens D", _loss_label(target))
        laws = {m: by_mixture.get(m, {}).get(size) for m in runs.mixtures} if size is not None else {}
        _scaling(canvas, runs, chosen, base, laws, "D")
    return canvas.ax


def model_scaling(
    runs: Runs,
    fits: StudyFits | None,
    tokens: float | None = None,
    ax: Axes | None = None,
    *,
    target: str | None = None,
    base: str | None = None,
) -> Axes:
    """Loss against model size N at one training budget; drawn as `data_scaling`, with the model law.

    The axis names which count N is: the one the fits used. `tokens` defaults to the budget with most sizes.
    ValueError when the table has no such budget.
    """
    target = target_of(fits, target)
    n_definition = n_definition_of(fits)
    every_cell = cells(runs, target, n_definition)
    known = sorted({cell.tokens for cell in every_cell})
    if tokens is not None and tokens not in known:
        listed = ", ".join(words.count(d) for d in known) or "none"
        raise ValueError(f"no runs at {words.count(tokens)} tokens in the table; its budgets are {listed}")
    tokens = main_tokens(every_cell) if tokens is None else tokens
    chosen = [cell for cell in every_cell if cell.tokens == tokens]
    by_mixture = fits.model if fits is not None else {}
    with canvas_on(ax, f"n_{n_definition}", target) as canvas:
        at = f", at {words.short_count(tokens)} training tokens" if tokens is not None else ""
        canvas.labels(f"N, {words.N_WORDS.get(n_definition, n_definition)}{at}", _loss_label(target))
        if any(math.isfinite(cell.num_parameters) for cell in chosen) or not chosen:
            laws = {m: by_mixture.get(m, {}).get(tokens) for m in runs.mixtures} if tokens is not None else {}
            _scaling(canvas, runs, chosen, base, laws, "N")
        else:
            canvas.words(f"The table has no column n_{n_definition}, so there is no N to draw against.")
    return canvas.ax


def irreducible_loss(runs: Runs, fits: StudyFits | None, ax: Axes | None = None, *, base: str | None = None) -> Axes:
    """E of the joint law per mixture, the loss that no size and no budget would undercut, with 95 % intervals.

    Where the mixtures were fitted together these are the ranking's: lowest first, intervals that hold for all mixtures
    at once, and letters at the right; mixtures with a letter in common are not told apart. Else each mixture by itself.
    A mixture whose fit is not identifiable gets a hatched row with these words and no number.
    """
    ranking = getattr(fits, "ranking", None)
    if ranking is not None and ranking.of == "E":
        return _ranked_constants(runs, ranking, target_of(fits), ax, base)
    mixtures = runs.mixtures
    with canvas_on(ax, "E", "mixture", height=1.3 + 0.36 * max(2, len(mixtures)), legend=False) as canvas:
        looks = style.looks_of(runs, base)
        canvas.labels(f"irreducible loss E ({words.target_words(target_of(fits))[1]})", "")
        numbered = 0
        for row, mixture in enumerate(mixtures):
            entry = fits.joint.get(mixture) if fits is not None else None
            if entry is None or not entry.identifiable:
                _hatched(canvas, row)
                canvas.record("note", mixture, y=mixture, note="not identifiable: " + reasons(entry))
                continue
            value, low, high = estimate(entry, "E")
            look = looks[mixture]
            if math.isfinite(low):
                canvas.ax.plot([low, high], [row, row], color=look.colour, linewidth=2.2, solid_capstyle="butt")
            canvas.ax.plot([value], [row], linestyle="none", marker=look.marker, color=look.colour, markersize=7)
            canvas.record("fit", mixture, x=value, y=mixture, low=low, high=high)
            numbered += 1
        categories(canvas.ax, mixtures)
        if not numbered:
            canvas.ax.set_xticks([])
        if not mixtures:
            canvas.words("No runs in this table.")
    return canvas.ax


def _ranked_constants(runs: Runs, ranking: Ranking, target: str, ax: Axes | None, base: str | None) -> Axes:
    rows = [k for k, label in enumerate(ranking.labels) if label in runs.mixtures]
    labels = [ranking.labels[k] for k in rows]
    with canvas_on(ax, "E", "mixture", height=1.3 + 0.36 * max(2, len(labels)), legend=False) as canvas:
        looks = style.looks_of(runs, base)
        canvas.labels(f"irreducible loss E ({words.target_words(target)[1]})", "")
        for row, (k, mixture) in enumerate(zip(rows, labels, strict=True)):
            value, low, high = (float(x[k]) for x in (ranking.values, ranking.low, ranking.high))
            look = looks[mixture]
            letters = "".join(chr(97 + j % 26) for j, group in enumerate(ranking.groups) if mixture in group)
            if not math.isfinite(low):
                _hatched(canvas, row)
                canvas.record("note", mixture, y=mixture, note="not identifiable")
                continue
            canvas.ax.plot([low, high], [row, row], color=look.colour, linewidth=2.2, solid_capstyle="butt")
            canvas.ax.plot([value], [row], linestyle="none", marker=look.marker, color=look.colour, markersize=7)
            canvas.ax.annotate(
                letters, (1.015, row), xycoords=canvas.ax.get_yaxis_transform(), va="center", annotation_clip=False
            )
            canvas.record("fit", mixture, x=value, y=mixture, low=low, high=high, note=f"ties: {letters}")
        categories(canvas.ax, labels)
    return canvas.ax


def _hatched(canvas: Canvas, row: int) -> None:
    canvas.ax.axhspan(row - 0.32, row + 0.32, facecolor="#f6f6f6", edgecolor="#d8d8d8", hatch="////", lw=0)
    text = canvas.ax.text(
        0.5, row, "not identifiable", transform=canvas.ax.get_yaxis_transform(), ha="center", va="center"
    )
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})


def joint_fit(
    runs: Runs,
    fits: StudyFits | None,
    mixture: str,
    ax: Axes | None = None,
    *,
    target: str | None = None,
    base: str | None = None,
) -> Axes:
    """The joint law of one mixture: lines of equal loss over D and N, the runs on top, and the sizes and budgets of
    lowest loss for their compute (6 N D) with a 95 % band.

    When the fit is not identifiable its surface means nothing away from the runs, so predicted against observed loss
    is drawn instead; when there is no fit at all, the words why. ValueError for a mixture that is not in the table.
    """
    target = target_of(fits, target)
    n_definition = n_definition_of(fits)
    if mixture not in runs.mixtures:
        raise ValueError(f"no runs of mixture {mixture!r}; the table has {', '.join(runs.mixtures) or 'no runs'}")
    look = style.looks_of(runs, base)[mixture]
    entry = fits.joint.get(mixture) if fits is not None else None
    if entry is None or entry.fit is None:
        with canvas_on(ax, "tokens", f"n_{n_definition}", legend=False) as canvas:
            canvas.words("No joint fit: " + reasons(entry))
        return canvas.ax
    mine = runs["mixture"] == mixture
    D, loss = runs["tokens"][mine].astype(float), runs[target][mine].astype(float)
    N = parameters(runs, n_definition)[mine]
    predicted = np.asarray(entry.fit.predict(N=N, D=D), dtype=float)
    if entry.identifiable:
        with canvas_on(ax, "tokens", f"n_{n_definition}", height=3.9) as canvas:
            _contours(canvas, entry, mixture, look, N, D, loss, predicted, n_definition, target)
    else:
        with canvas_on(ax, "observed", "predicted", height=3.8, legend=False) as canvas:
            unit = words.target_words(target)[1]
            canvas.labels(f"observed loss ({unit})", f"loss predicted in sample ({unit})")
            for observed, value in zip(loss, predicted, strict=True):
                canvas.record("run", mixture, x=observed, y=value)
            both = np.concatenate([loss, predicted])
            pad = 0.05 * (np.ptp(both) or 1.0)
            ends = [float(both.min() - pad), float(both.max() + pad)]
            canvas.ax.plot(ends, ends, color=style.FAINT, linewidth=0.9, linestyle="--")
            canvas.ax.plot(loss, predicted, linestyle="none", marker=look.marker, color=look.colour, alpha=0.85)
            canvas.ax.set(xlim=ends, ylim=ends)
            canvas.corner("law not identifiable:\ncheck of the runs only")
    return canvas.ax


def ratio(
    runs: Runs,
    fits: StudyFits | None = None,
    synthetic: str | None = None,
    ax: Axes | None = None,
    *,
    size: str | None = None,
    target: str | None = None,
    base: str | None = None,
) -> Axes:
    """Loss against the share of synthetic tokens, one line a cell (size and budget), the best ratio of each ringed.

    Mixtures of the natural source with one other source take part; `synthetic` names that source when the table has
    several. Colour is the model size, or the budget when one `size` is asked for; the budget stands at the end of its
    line. ValueError for a source or a size that is not there, and for several sources and no name.
    """
    target = target_of(fits, target)
    shares = synthetic_ratios(runs, base_mixture(runs, base))
    partners = list(dict.fromkeys(others[0] for others, _ in shares.values() if len(others) == 1))
    if synthetic is None and len(partners) > 1:
        raise ValueError(f"several synthetic sources, {', '.join(partners)}: name one with synthetic=")
    if synthetic is not None and synthetic not in partners:
        raise ValueError(f"no mixture of natural text and {synthetic!r}; there is {', '.join(partners) or 'none'}")
    synthetic = synthetic or next(iter(partners), None)
    on_axis = {m: share for m, (others, share) in shares.items() if others in ((), (synthetic,))}
    every_cell = cells(runs, target, n_definition_of(fits))
    _check_size(every_cell, size)
    lines = [cell for cell in every_cell if size in (None, cell.size) and len(_by_ratio(cell, on_axis)) > 1]
    with canvas_on(ax, "synthetic_ratio", target, height=3.6 + 0.11 * max(0, len(lines) - 9)) as canvas:
        at = f", size {size}" if size is not None else ""
        canvas.labels(f"share of synthetic tokens (%){at}", _loss_label(target))
        if not lines:
            canvas.words(
                "No cell of the table holds two different ratios of natural and synthetic text, "
                "so there is no ratio to compare."
            )
        _ratio_lines(canvas, lines, on_axis, by_size=size is None)
    return canvas.ax


def domains(
    runs: Runs,
    fits: StudyFits | None = None,
    ax: Axes | None = None,
    *,
    cell: Cell | None = None,
    base: str | None = None,
) -> Axes:
    """Loss on every held-out domain, one mark a mixture, in the largest cell (or the `cell` given).

    Domains are ordered by the loss of the base mixture, easiest on top; seeds are averaged.
    """
    base = base_mixture(runs, base)
    chosen = cell or largest_cell(cells(runs, target_of(fits), n_definition_of(fits)))
    looks = style.looks_of(runs, base)
    with canvas_on(ax, "loss", "domain", height=1.6 + 0.34 * max(2, len(runs.domains))) as canvas:
        canvas.labels("held-out loss (nats per token)", "")
        if chosen is None or not runs.domains:
            canvas.words("No runs in this table." if chosen is None else "The table has no loss per domain.")
            return canvas.ax
        inside = (runs["size"] == chosen.size) & (runs["tokens"] == chosen.tokens)
        means: dict[str, dict[str, float]] = {}
        for mixture in chosen.losses:
            mine = inside & (runs["mixture"] == mixture)
            means[mixture] = {d: float(np.mean(runs[f"loss_{d}"][mine].astype(float))) for d in runs.domains}
        reference = means.get(base or "", next(iter(means.values())))
        ordered = sorted(runs.domains, key=lambda d: reference[d])
        for mixture, by_domain in means.items():
            look = looks[mixture]
            values = [by_domain[d] for d in ordered]
            canvas.ax.plot(
                values, range(len(ordered)), linestyle="none", marker=look.marker, color=look.colour, alpha=0.9
            )
            canvas.key(mixture, color=look.colour, marker=look.marker, linestyle="none")
            for domain, value in zip(ordered, values, strict=True):
                canvas.record("mean", mixture, x=value, y=domain)
        categories(canvas.ax, ordered)
    return canvas.ax


def speedup(
    runs: Runs,
    fits: StudyFits | None,
    base: str | None = None,
    ax: Axes | None = None,
    *,
    size: str | None = None,
    target: str | None = None,
) -> Axes:
    """How many times more tokens `base` needs for the loss a mixture has at D: D_base(L)/D at equal loss.

    Marks are read off the runs: the base's mean losses interpolated in ln D, no law involved. Where the mixture is
    beyond what the base reached at its largest budget, an upward triangle stands at the least factor that is certain
    (below its smallest budget, a downward one at the greatest). Curves are of the joint laws of all mixtures together,
    with 95 % bands, where there are such; else of the data laws of both, where identifiable. They are thin where the
    base's law is read beyond the base's runs; budgets at which it can never reach the mixture's loss are stated as
    beyond reach. Above 1 the mixture saves tokens, below 1 it costs tokens.
    """
    target = target_of(fits, target)
    base = base_mixture(runs, base)
    every_cell = cells(runs, target, n_definition_of(fits))
    _check_size(every_cell, size)
    size = size or main_size(every_cell)
    chosen = sorted((cell for cell in every_cell if cell.size == size), key=lambda cell: cell.tokens)
    with canvas_on(ax, "tokens", "speedup") as canvas:
        canvas.labels(
            f"training tokens D of the mixture, size {size}" if chosen else "training tokens D",
            f"tokens {words.shortened(base or 'the base', 18)} needs\nfor the same loss, relative to D",
        )
        known = [(cell.tokens, cell.mean(base)) for cell in chosen if base in cell.losses] if base else []
        others = [m for m in runs.mixtures if m != base and any(m in cell.losses for cell in chosen)]
        if not others:
            canvas.words("Only one mixture at this size: nothing to compare.")
            return canvas.ax
        looks = style.looks_of(runs, base)
        beyond = []
        for m in others:
            pooled = _pooled_speedup(fits, base, m, chosen)
            pair = None if pooled is not None else _law_pair(fits, base, m, size)
            beyond.append(_speedup_of(canvas, m, looks[m], chosen, known, pair, pooled, len(others)))
        factor_axis(canvas, [cell.tokens for cell in chosen])
        if not any(row["kind"] != "note" for row in canvas.rows):
            canvas.words("The runs of the base mixture do not fall with D, and there is no law: no speed-up to state.")
        stated = [words.shortened(m, 18) for m, out in zip(others, beyond, strict=True) if out]
        if stated:
            canvas.corner(f"beyond reach of {words.shortened(base or '', 18)}:\n{', '.join(stated)}")
    return canvas.ax


# --- pieces of figures ---


def _scaling(
    canvas: Canvas,
    runs: Runs,
    chosen: Sequence[Cell],
    base: str | None,
    laws: dict[str, MixtureFit | None],
    variable: str,
) -> None:
    """Dots, and curve with band or dashed guide, per mixture, against D or N."""
    ax = canvas.ax
    if not chosen:
        canvas.words("No runs in this table.")
        return
    looks = style.looks_of(runs, base)
    abscissa = {id(cell): cell.tokens if variable == "D" else cell.num_parameters for cell in chosen}
    count_axis(ax, sorted(set(abscissa.values())))
    for mixture in [m for m in runs.mixtures if any(m in cell.losses for cell in chosen)]:
        look, mine = looks[mixture], sorted((c for c in chosen if mixture in c.losses), key=lambda c: abscissa[id(c)])
        x = [abscissa[id(cell)] for cell in mine for _ in cell.losses[mixture]]
        y = [float(value) for cell in mine for value in cell.losses[mixture]]
        ax.plot(x, y, linestyle="none", marker=look.marker, color=look.colour, alpha=0.9, zorder=3)
        for one_x, one_y in zip(x, y, strict=True):
            canvas.record("run", mixture, x=one_x, y=one_y)
        entry = laws.get(mixture)
        key_line: Any = look.line
        if entry is not None and entry.identifiable and len(mine) > 1:
            _curve(canvas, mixture, look, entry, variable, min(x), max(x))
        elif len(mine) > 1:
            means = [cell.mean(mixture) for cell in mine]
            at = [abscissa[id(cell)] for cell in mine]
            ax.plot(at, means, color=look.colour, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.8)
            for one_x, one_y in zip(at, means, strict=True):
                canvas.record("guide", mixture, x=one_x, y=one_y)
            key_line = (0, (4, 3))
        else:
            key_line = "none"
        width = 0.8 if key_line == (0, (4, 3)) else 1.6
        canvas.key(mixture, color=look.colour, marker=look.marker, linestyle=key_line, linewidth=width)


def _curve(
    canvas: Canvas, mixture: str, look: style.Look, entry: MixtureFit, variable: str, low: float, high: float
) -> None:
    assert entry.fit is not None, "an identifiable entry has a fit"
    grid = np.geomspace(low, high, GRID_POINTS)
    grid[[0, -1]] = low, high  # geomspace may miss its ends by a rounding error, and a law refuses nothing for it
    at: dict[str, Any] = {variable: grid}
    values = np.asarray(entry.fit.predict(**at), dtype=float)
    canvas.ax.plot(grid, values, color=look.colour, linestyle=look.line)
    lower = upper = np.full(GRID_POINTS, math.nan)
    if entry.bootstrap is not None:
        lower, upper = (np.asarray(b, dtype=float) for b in entry.bootstrap.predict_interval(**at, level=LEVEL))
        canvas.ax.fill_between(grid, lower, upper, color=look.colour, alpha=0.15, linewidth=0)
    for x, y, lo, hi in zip(grid, values, lower, upper, strict=True):
        canvas.record("fit", mixture, x=float(x), y=float(y), low=float(lo), high=float(hi))


def _contours(
    canvas: Canvas,
    entry: MixtureFit,
    mixture: str,
    look: style.Look,
    N: np.ndarray,
    D: np.ndarray,
    loss: np.ndarray,
    predicted: np.ndarray,
    n_definition: str,
    target: str,
) -> None:
    from matplotlib.ticker import MaxNLocator

    assert entry.fit is not None, "an identifiable entry has a fit"
    ax = canvas.ax
    grid_D, grid_N = padded_grid(D), padded_grid(N)
    mesh_D, mesh_N = np.meshgrid(grid_D, grid_N)
    surface = np.asarray(entry.fit.predict(N=mesh_N.ravel(), D=mesh_D.ravel()), dtype=float).reshape(mesh_D.shape)
    levels = MaxNLocator(nbins=9).tick_values(float(surface.min()), float(surface.max()))
    count_axis(ax, sorted(set(D.tolist())))
    count_axis(ax, sorted(set(N.tolist())), vertical=True)
    lines = ax.contour(mesh_D, mesh_N, surface, levels=levels, cmap="cividis", linewidths=1.3)
    ax.clabel(lines, fmt=lambda level: f"{level:g}", fontsize=8)
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        for x, y in np.asarray(path.vertices, dtype=float).tolist():
            canvas.record("contour", mixture, x=x, y=y, value=float(level))
    _frontier(canvas, entry, mixture, grid_N, grid_D)
    ax.plot(D, N, linestyle="none", marker=look.marker, color=look.colour, zorder=3)
    canvas.key("runs", color=look.colour, marker=look.marker, linestyle="none")
    for d, n, seen, law in zip(D, N, loss, predicted, strict=True):
        canvas.record("run", mixture, x=float(d), y=float(n), value=float(seen), note=f"law: {law!r}")
    canvas.labels("training tokens D", f"N, {words.N_WORDS.get(n_definition, n_definition)}")
    ax.set_title(
        f"lines of equal {words.target_words(target)[0].split(',')[0]}, mixture {words.shortened(mixture)}",
        parse_math=False,
    )
    ax.grid(visible=False)


def _frontier(canvas: Canvas, entry: MixtureFit, mixture: str, grid_N: np.ndarray, grid_D: np.ndarray) -> None:
    """Where each compute budget is spent best, as far as that lies among the runs' sizes and budgets."""
    if not hasattr(entry.fit, "law"):
        return
    assert entry.fit is not None, "an identifiable entry has a fit"
    limits = canvas.ax.get_xlim(), canvas.ax.get_ylim()
    C = np.geomspace(6 * grid_N[0] * grid_D[0], 6 * grid_N[-1] * grid_D[-1], FRONTIER_POINTS)
    try:
        found = compute_optimal(entry.fit, C, resamples=entry.bootstrap)
    except ValueError:  # a law without N or D has no such line
        return
    known = np.isfinite(found.N) & (grid_N[0] <= found.N) & (grid_N[-1] >= found.N)
    known &= (grid_D[0] <= found.D) & (grid_D[-1] >= found.D)
    if known.sum() < 2:
        return
    low, high = found.bands.get("N", (np.full(len(C), np.nan),) * 2)
    banded = known & np.isfinite(low)
    if banded.sum() > 1:
        # Along one C more parameters are fewer tokens: the ends of the interval lie on that line.
        edge_D = np.concatenate([(C / (6 * low))[banded], (C / (6 * high))[banded][::-1]])
        edge_N = np.concatenate([low[banded], high[banded][::-1]])
        canvas.ax.fill(edge_D, edge_N, color=FRONTIER_COLOUR, alpha=0.18, linewidth=0, zorder=1)
    canvas.ax.plot(found.D[known], found.N[known], color=FRONTIER_COLOUR, linewidth=1.8, zorder=2)
    canvas.key("lowest loss for 6ND FLOPs", color=FRONTIER_COLOUR, linewidth=1.8)
    for c, n, d, lo, hi in zip(C[known], found.N[known], found.D[known], low[known], high[known], strict=True):
        canvas.record("frontier", mixture, x=float(d), y=float(n), low=float(lo), high=float(hi), note=f"C = {c:.4g}")
    canvas.ax.set(xlim=limits[0], ylim=limits[1])


def _ratio_lines(canvas: Canvas, lines: Sequence[Cell], on_axis: dict[str, float], *, by_size: bool) -> None:
    if not lines:
        return
    import matplotlib

    groups = list(dict.fromkeys(cell.size if by_size else cell.tokens for cell in lines))
    ramp = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.66, len(groups)))
    ends: list[tuple[float, str, Any]] = []
    for cell in lines:
        k = groups.index(cell.size if by_size else cell.tokens)
        points = _by_ratio(cell, on_axis)
        share, loss = [100 * r for r, _ in points], [value for _, value in points]
        marker = style.MARKERS[k % 10]
        canvas.ax.plot(share, loss, color=ramp[k], linewidth=1.2, marker=marker, markersize=4)
        best = int(np.argmin(loss))
        canvas.ax.plot(
            share[best],
            loss[best],
            marker="o",
            markersize=11,
            markerfacecolor="none",
            color=ramp[k],
            markeredgewidth=1.4,
        )
        for (r, value), k_point in zip(points, range(len(points)), strict=True):
            canvas.record("mean", cell.words, x=r, y=value)
            if k_point == best:
                edge = best in (0, len(points) - 1)
                canvas.record("best", cell.words, x=r, y=value, note="at the edge of the grid" if edge else "")
        if by_size:
            canvas.key(f"size {cell.size}", color=ramp[k], marker=marker, markersize=4, linewidth=1.2)
        ends.append((loss[-1], words.short_count(cell.tokens), ramp[k]))
    canvas.key("best ratio", color=style.INK, marker="o", markersize=9, markerfacecolor="none", linestyle="none")
    low, high = canvas.ax.get_ylim()
    texts = sorted(ends, key=lambda end: end[0])
    heights = apart([y for y, _, _ in texts], 0.047 * (high - low))
    for (_, text, colour), height in zip(texts, heights, strict=True):
        canvas.ax.annotate(
            text,
            (1.01, height),
            xycoords=canvas.ax.get_yaxis_transform(),
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
        )
    canvas.ax.set_ylim(min(low, heights[0]), max(high, heights[-1]))
    ticks = sorted({round(100 * r, 1) for cell in lines for r, _ in _by_ratio(cell, on_axis)})
    canvas.ax.set_xticks(spread(ticks, 8, math.inf), [f"{t:g}" for t in spread(ticks, 8, math.inf)])


def _by_ratio(cell: Cell, on_axis: dict[str, float]) -> list[tuple[float, float]]:
    """(ratio, mean loss) of the mixtures of `cell` that lie on the ratio axis, by ratio."""
    return sorted((on_axis[mixture], cell.mean(mixture)) for mixture in cell.losses if mixture in on_axis)


def _speedup_of(
    canvas: Canvas,
    mixture: str,
    look: style.Look,
    chosen: Sequence[Cell],
    known: Sequence[tuple[float, float]],
    laws: tuple[MixtureFit, MixtureFit] | None,
    pooled: Speedup | None,
    num_mixtures: int,
) -> bool:
    """Draw one mixture's speed-up; True when its law says beyond reach somewhere."""
    has_curve = laws is not None or pooled is not None
    canvas.key(mixture, color=look.colour, marker=look.marker, linestyle=look.line if has_curve else "none")
    for cell in chosen:
        if mixture not in cell.losses:
            continue
        measured = equal_loss_budget(known, cell.mean(mixture))
        if measured is None:
            continue
        budget, bound = measured
        marker = {"": look.marker, "at least": "^", "at most": "v"}[bound]
        face = look.colour if not bound else "none"
        canvas.ax.plot(
            cell.tokens, budget / cell.tokens, marker=marker, color=look.colour, markerfacecolor=face, linestyle="none"
        )
        canvas.record("measured", mixture, x=cell.tokens, y=budget / cell.tokens, note=bound)
    if pooled is not None:
        result, grid = pooled, pooled.D
        if result.low is not None and result.high is not None:
            canvas.ax.fill_between(
                grid,
                np.maximum(result.low, 1e-6),
                np.minimum(result.high, 1e9),
                color=look.colour,
                alpha=0.15 if num_mixtures <= 4 else 0.07,
                linewidth=0,
            )
    elif laws is not None:
        grid = np.geomspace(chosen[0].tokens, chosen[-1].tokens, GRID_POINTS)
        base_law, law = laws
        assert base_law.fit is not None and law.fit is not None, "identifiable entries have fits"
        result = law_speedup(base_law.fit, law.fit, grid)
    else:
        return False
    factor = np.asarray(result.factor, dtype=float)
    beyond = np.asarray(result.beyond_reach, dtype=bool)
    inside = ~beyond & (np.asarray(result.extrapolation_factor, dtype=float) <= 1)
    canvas.ax.plot(grid[~beyond], factor[~beyond], color=look.colour, linestyle=look.line, linewidth=0.7)
    canvas.ax.plot(grid[inside], factor[inside], color=look.colour, linestyle=look.line)
    ends = [getattr(result, name, None) for name in ("low", "high")]
    for k, (x, y, out, known_there) in enumerate(zip(grid, factor, beyond, inside, strict=True)):
        note = "beyond reach" if out else "" if known_there else "beyond the base's runs"
        limits = {
            name: float(values[k]) for name, values in zip(("low", "high"), ends, strict=True) if values is not None
        }
        canvas.record("fit", mixture, x=float(x), y=None if out else float(y), note=note, **limits)
    return bool(beyond.any())


def _pooled_speedup(fits: StudyFits | None, base: str | None, mixture: str, chosen: Sequence[Cell]) -> Speedup | None:
    """By the joint laws of all mixtures, at the size of these cells, with intervals; None where there are none."""
    pooled, drawn = getattr(fits, "pooled", None), getattr(fits, "drawn", None)
    budgets = sorted({cell.tokens for cell in chosen if mixture in cell.losses})
    if pooled is None or drawn is None or not budgets or not {base, mixture} <= set(pooled.fits):
        return None
    if not (pooled.fits[str(base)].identifiable and pooled.fits[mixture].identifiable):
        return None
    N = chosen[0].num_parameters
    grid = np.array(budgets)
    if 1 < len(grid) < SPEEDUP_POINTS:  # the budgets themselves, and places between them
        grid = np.unique(np.concatenate([grid, np.geomspace(grid[0], grid[-1], SPEEDUP_POINTS)]))
    return pooled.speedup(str(base), mixture, grid, N, resamples=drawn, level=LEVEL)


def equal_loss_budget(known: Sequence[tuple[float, float]], loss: float) -> tuple[float, str] | None:
    """The budget at which a measured curve reaches `loss`: (tokens, "") by interpolation in ln D.

    `known` holds (tokens, mean loss) by rising tokens. Outside the measured losses (tokens, "at least") with the
    largest budget or (tokens, "at most") with the smallest. None when the losses do not fall with every budget, or
    when there are fewer than two: then equal loss has no single answer.
    """
    tokens, losses = [d for d, _ in known], [value for _, value in known]
    if len(known) < 2 or any(b >= a for a, b in itertools.pairwise(losses)):
        return None
    if loss < losses[-1]:
        return tokens[-1], "at least"
    if loss > losses[0]:
        return tokens[0], "at most"
    return float(np.exp(np.interp(-loss, [-value for value in losses], np.log(tokens)))), ""


def _law_pair(
    fits: StudyFits | None, base: str | None, mixture: str, size: str | None
) -> tuple[MixtureFit, MixtureFit] | None:
    if fits is None or base is None or size is None:
        return None
    base_law, law = fits.data.get(base, {}).get(size), fits.data.get(mixture, {}).get(size)
    if base_law is None or law is None or not (base_law.identifiable and law.identifiable):
        return None
    return base_law, law


def _check_size(every_cell: Sequence[Cell], size: str | None) -> None:
    known = list(dict.fromkeys(cell.size for cell in every_cell))
    if size is not None and size not in known:
        raise ValueError(f"no runs of size {size!r} in the table; its sizes are {', '.join(known) or 'none'}")


def _loss_label(target: str) -> str:
    what, unit = words.target_words(target)
    return f"{what}\n({unit})"
