"""Figures of the collapse tests: the gap to natural text at each budget, and every statistic beside its margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lingua_synth.report import style, words
from lingua_synth.report.canvas import canvas_on, categories, count_axis
from lingua_synth.scaling.verdicts import REJECTED, SUPPORTED, UNDECIDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lingua_synth.analysis import CollapseReport, CollapseTest

STATISTICS = {
    "loss_gap": "loss gap",
    "gap_growth": "gap growing with tokens",
    "small_ratio_slope": "slope at small shares",
    "irreducible_loss": "irreducible loss",
    "data_exponent": "data exponent",
    "tail_loss": "loss on rare tokens",
    "tail_excess": "loss beyond common tokens",
    "support": "types at equal tokens",
    "tail_mass": "share of rare types",
}
"""Names of the statistics as a reader sees them."""
VERDICT_LOOKS = {SUPPORTED: ("#D55E00", "D"), REJECTED: ("#0072B2", "o"), UNDECIDED: (style.FAINT, "s")}
FARTHEST = 8.0
"""Margins shown to either side of 0; what lies further stands at the edge as an arrow."""


def loss_gaps(report: CollapseReport, ax: Axes | None = None, *, mixtures: Sequence[str] | None = None) -> Axes:
    """How much more loss than the base each mixture has at each budget, in per cent, with intervals.

    Intervals hold for all budgets of a mixture at once. The grey band is the margin: harm above it counts.
    """
    tests = [t for t in report.tests if t.name == "loss_gap_at_budget" and math.isfinite(t.estimate)]
    chosen = list(dict.fromkeys(t.mixture for t in tests)) if mixtures is None else list(mixtures)
    with canvas_on(ax, "tokens", "gap") as canvas:
        canvas.labels("training tokens D", f"loss beyond that of\n{words.shortened(report.base, 24)} (%)")
        if not tests:
            canvas.words("No mixture was trained at two budgets at which the base was trained too.")
            return canvas.ax
        looks = style.looks([report.base, *dict.fromkeys(t.mixture for t in report.tests)], report.base)
        budgets = sorted({t.budget for t in tests})
        count_axis(canvas.ax, budgets)
        canvas.ax.axhspan(-100 * report.margins.loss, 100 * report.margins.loss, color="#eeeeee", zorder=0)
        canvas.ax.axhline(0, color=style.INK, linewidth=0.9)
        for k, mixture in enumerate(chosen):
            look = looks[mixture]
            mine = sorted((t for t in tests if t.mixture == mixture), key=lambda t: t.budget)
            shift = 1.035 ** (k - (len(chosen) - 1) / 2)
            for t in mine:
                if math.isfinite(t.low):
                    ends = [100 * t.low, 100 * t.high]
                    canvas.ax.plot([t.budget * shift] * 2, ends, color=look.colour, linewidth=1.3)
                canvas.record("measured", mixture, x=t.budget, y=100 * t.estimate, low=100 * t.low, high=100 * t.high,
                              note=t.verdict)  # fmt: skip
            canvas.ax.plot(
                [t.budget * shift for t in mine], [100 * t.estimate for t in mine], marker=look.marker,
                color=look.colour, linestyle=look.line, linewidth=0.9,
            )  # fmt: skip
            canvas.key(mixture, color=look.colour, marker=look.marker, linestyle=look.line, linewidth=0.9)
    return canvas.ax


def collapse_verdicts(report: CollapseReport, ax: Axes | None = None, *, mixtures: Sequence[str] | None = None) -> Axes:
    """Every statistic (of `mixtures`, default all) in units of its own margin: right of 1 is harm that counts.

    An interval wholly right of 1 is "supported", wholly left of it "rejected", else "undecided". What lies further than
    eight margins from 0 is drawn at the edge with an arrow; the numbers stand in the CSV file and in the table.
    """
    tests = [
        t
        for t in report.tests
        if t.name in STATISTICS
        and not math.isnan(t.low)
        and t.margin > 0
        and (mixtures is None or t.mixture in mixtures)
    ]
    with canvas_on(ax, "margins", "test", height=1.9 + 0.27 * max(2, len(tests))) as canvas:
        canvas.labels("effect in units of its margin; right is worse", "")
        if not tests:
            canvas.words("No statistic of collapse has an interval on this table.")
            return canvas.ax
        canvas.ax.axvspan(-FARTHEST, 1, color="#f4f4f4", zorder=0)
        canvas.ax.axvline(0, color=style.FAINT, linewidth=0.8)
        canvas.ax.axvline(1, color=style.INK, linewidth=1.0, linestyle=(0, (3, 2)))
        for row, test in enumerate(tests):
            _interval(canvas.ax, row, test)
            if row and tests[row - 1].mixture != test.mixture:
                canvas.ax.axhline(row - 0.5, color="#c8c8c8", linewidth=0.7)
            scaled = [x / test.margin for x in (test.estimate, test.low, test.high)]
            canvas.record("fit", test.mixture, x=scaled[0], y=test.name, low=scaled[1], high=scaled[2],
                          value=test.estimate, note=test.verdict)  # fmt: skip
        for verdict, (colour, marker) in VERDICT_LOOKS.items():
            if any(t.verdict == verdict for t in tests):
                canvas.key(verdict, color=colour, marker=marker, linestyle="-")
        canvas.ax.set_xlim(-FARTHEST, FARTHEST)
        names = [_row_name(tests, k) for k in range(len(tests))]
        categories(canvas.ax, names)
        canvas.ax.set_yticklabels(names, parse_math=False, fontsize=8)
    return canvas.ax


def _interval(ax: Axes, row: int, test: CollapseTest) -> None:
    colour, marker = VERDICT_LOOKS[test.verdict]
    low, value, high = (x / test.margin for x in (test.low, test.estimate, test.high))
    inside = [max(-FARTHEST, min(FARTHEST, x)) for x in (low, high)]
    ax.plot(inside, [row, row], color=colour, linewidth=1.8, solid_capstyle="butt")
    edge = FARTHEST * 0.985
    for beyond, place, sign in ((low < -FARTHEST, -edge, "<"), (high > FARTHEST, edge, ">")):
        if beyond:
            ax.plot([place], [row], marker=sign, color=colour, markersize=5, linestyle="none")
    if abs(value) <= FARTHEST:
        ax.plot([value], [row], marker=marker, color=colour, markersize=5, linestyle="none")


def _row_name(tests: Sequence[CollapseTest], row: int) -> str:
    """The mixture at its first row, and the statistic."""
    name = STATISTICS[tests[row].name]
    is_first = row == 0 or tests[row - 1].mixture != tests[row].mixture
    return f"{words.shortened(tests[row].mixture, 20)}: {name}" if is_first else name
