"""Figures over rounds: one line a regime, its mean over seeds, and a small mark for every seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lingua_synth.generations.measure import series
from lingua_synth.report import style
from lingua_synth.report.canvas import canvas_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def over_rounds(rows: Sequence[Mapping[str, Any]], column: str, label: str, ax: Axes | None = None) -> Axes:
    """A column of rounds.csv over rounds: lines are means over seeds, small marks the seeds themselves.

    Regimes are set apart sideways so that their marks do not cover each other; the CSV has the whole rounds.
    """
    from matplotlib.ticker import MaxNLocator

    regimes = list(dict.fromkeys(str(row["regime"]) for row in rows))
    looks = style.looks(regimes)
    with canvas_on(ax, "round", column) as canvas:
        canvas.labels("round (0: natural text alone)", label)
        drawn = False
        for k, regime in enumerate(regimes):
            look, shift = looks[regime], 0.06 * (k - (len(regimes) - 1) / 2)
            of_seeds = series(rows, regime, column)
            points = {n: [] for n in sorted({n for one in of_seeds.values() for n in one})}  # type: dict[int, list[float]]
            for seed, one in of_seeds.items():
                for n, value in sorted(one.items()):
                    if math.isfinite(value):
                        points[n].append(value)
                        canvas.record("run", regime, x=n, y=value, note=f"seed {seed}")
                        canvas.ax.plot(
                            [n + shift], [value], marker=look.marker, color=look.colour, alpha=0.45, markersize=3.5,
                            markeredgewidth=0, linestyle="none",
                        )  # fmt: skip
            means = {n: math.fsum(values) / len(values) for n, values in points.items() if values}
            for n, value in means.items():
                canvas.record("mean", regime, x=n, y=value, low=min(points[n]), high=max(points[n]))
            if means:
                drawn = True
                canvas.ax.plot(
                    [n + shift for n in means], list(means.values()), marker=look.marker, color=look.colour,
                    linestyle=look.line,
                )  # fmt: skip
                canvas.key(regime.replace("_", " "), marker=look.marker, color=look.colour, linestyle=look.line)
        if not drawn:
            canvas.words("No finished round has this number.")
            return canvas.ax
        canvas.ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return canvas.ax
