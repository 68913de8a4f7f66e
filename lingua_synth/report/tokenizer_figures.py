"""Figures of a study under several tokenizers: bits per byte against text read, and what mixtures do under each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from lingua_synth.report import style, words
from lingua_synth.report.canvas import canvas_on, categories, count_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lingua_synth.scaling import TokenizerComparison


def bits_per_byte(comparison: TokenizerComparison, size: str | None = None, ax: Axes | None = None) -> Axes:
    """Bits per byte against bytes of text read at one size: a colour a tokenizer, filled marks and a line for the base
    mixture, hollow marks for the others; means over seeds. `size`: the one with most cells by default.

    ValueError for a size that no cell has.
    """
    sizes = [cell.size for cell in comparison.cells]
    size = size or max(sizes, key=sizes.count)
    if size not in sizes:
        raise ValueError(f"no cell has the size {size!r}; there are {', '.join(dict.fromkeys(sizes))}")
    looks = style.looks(comparison.tokenizers, comparison.tokenizers[0])
    with canvas_on(ax, "bytes", comparison.target) as canvas:
        canvas.labels(f"training text in bytes, size {size}", f"bits per byte ({comparison.target})")
        read: set[float] = set()
        for tokenizer in comparison.tokenizers:
            look, line = looks[tokenizer], []
            for level in comparison.levels:
                cell = comparison.cells[level.cell]
                if level.tokenizer != tokenizer or cell.size != size:
                    continue
                x, y, is_base = cell.bytes, float(np.mean(level.values)), level.mixture == comparison.base
                read.add(x)
                face = look.colour if is_base else "none"
                canvas.ax.plot([x], [y], linestyle="none", marker=look.marker, color=look.colour, markerfacecolor=face)
                canvas.record("mean", tokenizer, x=x, y=y, value=level.mixture)
                if is_base:
                    line.append((x, y))
            canvas.ax.plot(*np.array(sorted(line) or [(np.nan, np.nan)]).T, color=look.colour, linestyle=look.line)
            canvas.key(tokenizer, color=look.colour, marker=look.marker, linestyle=look.line)
        count_axis(canvas.ax, sorted(read))
    return canvas.ax


def mixture_effects(comparison: TokenizerComparison, ax: Axes | None = None) -> Axes:
    """Bits per byte of each mixture less those of the base, under each tokenizer, mean over cells with intervals; left
    of 0 the mixture is better. The grey band is the margin of the claim on interactions."""
    mixtures = list(dict.fromkeys(effect.mixture for effect in comparison.effects))
    looks = style.looks(comparison.tokenizers, comparison.tokenizers[0])
    num = len(comparison.tokenizers)
    height = 1.5 + max(2, len(mixtures)) * (0.22 + 0.17 * num)
    with canvas_on(ax, "effect", "mixture", height=height) as canvas:
        canvas.labels(f"bits per byte less those of {words.quoted(comparison.base)}", "")
        canvas.ax.axvspan(-comparison.margin, comparison.margin, color="#eeeeee", linewidth=0, zorder=0)
        canvas.ax.axvline(0.0, color=style.INK, linewidth=0.9)
        for (row, mixture), (k, tokenizer) in itertools.product(enumerate(mixtures), enumerate(comparison.tokenizers)):
            for effect in comparison.effects:
                if (effect.mixture, effect.tokenizer) != (mixture, tokenizer):
                    continue
                look, y = looks[tokenizer], row + (k - (num - 1) / 2) * 0.6 / num
                low, high = effect.overall.interval or (np.nan, np.nan)
                canvas.ax.plot([low, high], [y, y], color=look.colour, linewidth=2.2, solid_capstyle="butt")
                canvas.ax.plot([effect.overall.value], [y], linestyle="none", marker=look.marker, color=look.colour)
                canvas.record("fit", tokenizer, x=effect.overall.value, y=mixture, low=low, high=high)
                canvas.key(tokenizer, color=look.colour, marker=look.marker, linestyle="-")
        categories(canvas.ax, mixtures)
        if not mixtures:
            canvas.words("One mixture: there is no effect to compare.")
    return canvas.ax
