"""How figures look, and how they become files.

One mixture has one colour, one marker and one line style in every figure of a report, given by its place in the runs
table, so a reader learns the key once. Colours are the eight of Okabe and Ito (Color Universal Design, 2008), which
stay apart for the common forms of colour blindness; marker and line style carry the same information in print.

matplotlib is imported where it is used, always through `Figure` objects: no global state, no window system.
"""

from __future__ import annotations

import contextlib
import io
import re
import typing
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lingua_synth.scaling.natural import base_mixture, synthetic_ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lingua_synth.scaling import Runs

BASE_COLOUR = "#000000"
# Okabe-Ito without black (kept for the base mixture); yellow last: it is faint on white.
COLOURS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
FAMILIES = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00")
"""A colour per synthetic source where mixtures are many: those of the eight that stay apart in light and dark."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
LINES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1.2, 1.2)), (0, (3, 1, 1, 1, 1, 1)))
INK = "#222222"
FAINT = "#8a8a8a"

FIGURE_WIDTH = 5.4
"""Inches. Narrow on purpose: text of 9.5 pt stays readable when the figure is shrunk to a phone's width."""

HOUSE_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
    "lines.markersize": 5.5,
    "lines.linewidth": 1.6,
    # Text stays text: it can be searched and read aloud, and the browser has glyphs that DejaVu lacks.
    "svg.fonttype": "none",
    "svg.hashsalt": "lingua_synth",
}


@dataclass(frozen=True)
class Look:
    """What marks one mixture in every figure."""

    colour: str
    marker: str
    line: Any


def looks(mixtures: Sequence[str], base: str | None = None) -> dict[str, Look]:
    """A look per mixture, in the order given; `base` is black, round and solid.

    Colours repeat after seven mixtures besides the base, markers after ten and lines after five, so that two
    mixtures share all three only seventy places apart.
    """
    result = {}
    others = [name for name in mixtures if name != base]
    for k, name in enumerate(others):
        result[name] = Look(COLOURS[k % 7], MARKERS[(k + 1) % 10], LINES[(k + 1) % 5])
    if base in mixtures:
        assert base is not None, "None is no mixture's name"
        result[base] = Look(BASE_COLOUR, MARKERS[0], LINES[0])
    return {name: result[name] for name in mixtures}


def looks_of(runs: Runs, base: str | None = None) -> dict[str, Look]:
    """A look per mixture of a runs table: `looks`, unless there are more mixtures than colours.

    Then every synthetic source has a colour, light for its smallest share and dark for its largest, and the marker and
    the line tell the share; so a reader sees the kind of text first. This takes mixtures of one synthetic source each.
    """
    mixtures, base = runs.mixtures, base_mixture(runs, base)
    shares = synthetic_ratios(runs, base)
    others = [name for name in mixtures if name != base]
    sources = list(dict.fromkeys(shares[name][0] for name in others)) if shares else []
    if len(others) <= len(COLOURS) or not 1 < len(sources) <= len(FAMILIES) or any(len(one) != 1 for one in sources):
        return looks(mixtures, base)
    result = {base: Look(BASE_COLOUR, MARKERS[0], LINES[0])} if base is not None else {}
    steps = sorted({round(shares[name][1], 6) for name in others})
    for colour, source in zip(FAMILIES, sources, strict=False):
        members = sorted((name for name in others if shares[name][0] == source), key=lambda name: shares[name][1])
        for k, name in enumerate(members):
            tone = k / (len(members) - 1) if len(members) > 1 else 0.5
            step = steps.index(round(shares[name][1], 6))
            result[name] = Look(_tone(colour, tone), MARKERS[(step + 1) % 10], LINES[step % 5])
    return {name: result[name] for name in mixtures}


def _tone(colour: str, tone: float) -> str:
    """`colour` lightened (tone 0) to darkened (tone 1)."""
    rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    towards, part = (255, 0.45 * (1 - 2 * tone)) if tone < 0.5 else (0, 0.45 * (2 * tone - 1))
    return "#" + "".join(f"{round(c + (towards - c) * part):02x}" for c in rgb)


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """matplotlib's settings for our own figures; the caller's are back when the block ends."""
    import matplotlib

    with matplotlib.rc_context(typing.cast(Any, HOUSE_STYLE)):
        yield


def new_axes(height: float) -> Axes:
    """Empty axes in a figure of their own, `height` inches high, ready to be saved without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(FIGURE_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def figure_png(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as PNG bytes."""
    return _saved(figure, "png", dpi=dpi, metadata={"Software": None})


def figure_svg(figure: Figure, name: str) -> str:
    """The figure as one `<svg>` element whose ids all begin with `name`, so that many fit in one page.

    The XML declaration, the document type and the metadata block, which name outside addresses, are left away.
    The same figure gives the same text.
    """
    svg = _saved(figure, "svg", metadata={"Date": None, "Creator": None}).decode("utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<!--.*?-->", "", svg, flags=re.DOTALL)

    # Markup alone is rewritten: matplotlib escapes < and > in text, so a name like "url(#x" is left as it is.
    def with_own_ids(tag: re.Match[str]) -> str:
        named = re.sub(r"(\sid=\")", rf"\1{name}-", tag[0])
        return re.sub(r"(href=\"#|url\(#)", rf"\1{name}-", named)

    svg = re.sub(r"<[^<>]*>", with_own_ids, svg)
    return svg.rstrip() + "\n"


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with house_style(), warnings.catch_warnings():
        # A name in a script DejaVu lacks shows as boxes in the PNG; SVG and page still have it as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
