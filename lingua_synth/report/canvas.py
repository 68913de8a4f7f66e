"""A sheet of axes that remembers what is put on it.

Every figure draws through a `Canvas`, so that the points on the axes and the rows of its CSV are written by the same
line of code and cannot part. The helpers below it make axes a reader can use: counts as ticks, names as rows.
"""

from __future__ import annotations

import contextlib
import math
import textwrap
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lingua_synth.report import style, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRID_POINTS = 120
"""Points of a drawn curve, and of each side of a contour's grid."""

_DRAWN: weakref.WeakKeyDictionary[Any, list[dict[str, Any]]] = weakref.WeakKeyDictionary()


def drawn(ax: Axes) -> list[dict[str, Any]]:
    """The numbers drawn on `ax` by a figure of this module, one dict a point, at full precision.

    Keys: `kind` (run, mean, fit, guide, measured, contour, best, note), `series` (mostly the mixture), the names of the
    two axes, and where they mean something `low` and `high` (95 % limits), `value` and `note`. Axes that were drawn
    elsewhere give the points of their lines: `kind` line, `series` the label, `x` and `y`.
    """
    if ax in _DRAWN:
        return _DRAWN[ax]
    return [
        {"kind": "line", "series": str(line.get_label()), "x": x, "y": y}
        for line in ax.get_lines()
        for x, y in np.asarray(line.get_xydata(), dtype=float).tolist()
    ]


@dataclass
class Canvas:
    ax: Axes
    x: str
    y: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)

    def record(self, kind: str, series: str, *, x: Any = None, y: Any = None, **more: Any) -> None:
        self.rows.append({"kind": kind, "series": series, self.x: x, self.y: y, **more})

    def key(self, label: str, **marks: Any) -> None:
        from matplotlib.lines import Line2D

        self.keys.setdefault(label, Line2D([], [], **marks))

    def labels(self, x: str, y: str) -> None:
        # Sizes and mixtures are the user's words: a $ in them is a $, not the start of a formula.
        self.ax.set_xlabel(x, parse_math=False)
        self.ax.set_ylabel(y, parse_math=False)

    def words(self, text: str) -> None:
        """Say why there is nothing to see."""
        self.record("note", "", note=text)
        self.ax.text(
            0.5,
            0.5,
            textwrap.fill(text, 46),
            transform=self.ax.transAxes,
            ha="center",
            va="center",
            color=style.INK,
            parse_math=False,
        )
        if len(self.rows) == 1:
            self.ax.set(xticks=[], yticks=[])
            self.ax.minorticks_off()

    def corner(self, text: str) -> None:
        """A remark inside the axes, upper left."""
        self.ax.text(
            0.02, 0.98, text, transform=self.ax.transAxes, ha="left", va="top", color="#444444", parse_math=False
        ).set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2})


@contextlib.contextmanager
def canvas_on(ax: Axes | None, x: str, y: str, *, height: float = 3.5, legend: bool = True) -> Iterator[Canvas]:
    """Axes to draw on: the caller's as they are, or new ones in our style with the legend under the plot."""
    if ax is None:
        with style.house_style():
            canvas = Canvas(style.new_axes(height), x, y)
            yield canvas
            if legend:
                _legend(canvas, outside=True)
    else:
        canvas = Canvas(ax, x, y)
        yield canvas
        if legend:
            _legend(canvas, outside=False)
    _DRAWN[canvas.ax] = canvas.rows


def _legend(canvas: Canvas, *, outside: bool) -> None:
    if not canvas.keys:
        return
    names = [words.shortened(name) for name in canvas.keys]
    handles = list(canvas.keys.values())
    # Labels are set afterwards: matplotlib hides a label that begins with an underscore.
    blanks = [" " * len(name) for name in names]
    if outside:
        per_row = _per_row(names)
        figure = canvas.ax.get_figure()
        assert figure is not None, "axes of ours live in a figure of ours"
        rows = math.ceil(len(names) / per_row)
        # The plot keeps its height, whatever stands below it.
        figure.set_figheight(figure.get_figheight() + 0.19 * max(0, rows - 2))  # type: ignore[union-attr]
        legend = figure.legend(handles, blanks, loc="outside lower center", ncols=per_row, handlelength=2.6)
    else:
        legend = canvas.ax.legend(handles, blanks, handlelength=2.6)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _per_row(names: Sequence[str]) -> int:
    """Columns of a legend that fits under a figure of ours, evened out over its rows."""
    room = 72 * style.FIGURE_WIDTH - 16
    for rows in range(1, len(names)):
        columns = math.ceil(len(names) / rows)
        # matplotlib fills column by column, the first ones longer; about 48 pt of marks and gaps and 5.6 pt a letter.
        members = np.array_split(np.array([len(name) for name in names]), columns)
        if sum(48 + 5.6 * int(lengths.max()) for lengths in members) <= room:
            return columns
    return 1


# --- axes ---


def count_axis(ax: Axes, values: Sequence[float], *, vertical: bool = False) -> None:
    """A log axis whose ticks are the counts that occur, thinned to what fits."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    finite = [v for v in values if math.isfinite(v) and v > 0]
    axis = ax.yaxis if vertical else ax.xaxis
    (ax.set_yscale if vertical else ax.set_xscale)("log")
    if not finite:
        return
    room = (finite[-1] / finite[0]) ** 0.06 if finite[-1] > finite[0] else 2.0
    (ax.set_ylim if vertical else ax.set_xlim)(finite[0] / room, finite[-1] * room)
    ticks = spread(finite, 7, 0.05)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([words.short_count(v) for v in ticks]))
    axis.set_minor_locator(NullLocator())


def factor_axis(canvas: Canvas, tokens: Sequence[float]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    ax = canvas.ax
    count_axis(ax, sorted(set(tokens)))
    ax.set_yscale("log")
    values = [row["speedup"] for row in canvas.rows if row["kind"] in ("measured", "fit") and row["speedup"]]
    values = [v for v in values if math.isfinite(v) and v > 0] + [1.0]
    low, high = min(values) / 1.15, max(values) * 1.25
    nice = [m * 10.0**e for e in range(-6, 8) for m in (1, 1.5, 2, 3, 5)] + [0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3]
    ticks = spread(sorted(v for v in nice if low <= v <= high), 7, 0.08, keep=1.0)
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{words.short_count(v)}×" for v in ticks]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.axhline(1.0, color=style.INK, linewidth=0.9)


def spread(values: Sequence[float], most: int, least_gap: float, keep: float | None = None) -> list[float]:
    """At most about `most` of the sorted `values`, no two closer on a log scale than a share of the whole.

    `least_gap` is that share; math.inf means a linear scale and a gap of 1/`most`. `keep` is always taken.
    """
    if len(values) < 2:
        return list(values)
    linear = math.isinf(least_gap)
    place = {v: v if linear else math.log(v) for v in values}
    gap = (place[values[-1]] - place[values[0]]) * max(0.0 if linear else least_gap, 1 / most if linear else 0.09)
    taken = [keep] if keep in place and keep is not None else []
    for v in (values[0], values[-1], *values):
        if all(abs(place[v] - place[other]) >= gap for other in taken):
            taken.append(v)
    return sorted(taken)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted `heights` moved as little as needed so that neighbours are `gap` apart."""
    moved = list(heights)
    for _ in range(200):
        clashes = False
        for k in range(len(moved) - 1):
            short = gap - (moved[k + 1] - moved[k])
            if short > 1e-9 * gap:
                clashes = True
                moved[k] -= short / 2
                moved[k + 1] += short / 2
        if not clashes:
            break
    return moved


def categories(ax: Axes, names: Sequence[str]) -> None:
    """Names down the left side, first on top."""
    from matplotlib.ticker import FixedLocator

    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.yaxis.set_major_locator(FixedLocator(list(range(len(names)))))
    ax.set_yticklabels([words.shortened(name) for name in names], parse_math=False)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)


def padded_grid(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    room = (high / low) ** 0.06 if high > low else 2.0
    return np.geomspace(low / room, high * room, GRID_POINTS)
