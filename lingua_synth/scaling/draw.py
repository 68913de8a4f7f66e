"""Pictures of fits, for a notebook and for `lingua-synth fit`: what a reader checks before believing a number.

Every function takes fits and an `ax` (a new one where there is none) and returns the axes; matplotlib is imported here
alone, and nothing is computed that the fits do not hold. The report has its own figures, of a whole study.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.files import atomic_file
from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.study import MixtureFit, StudyFits
from lingua_synth.scaling.uncertainty import Bootstrap

MAX_CURVES = 8
"""Sizes that get a curve of their own; of more, so many evenly chosen."""
_SURFACE, _INK, _MUTED, _HUE = "#ffffff", "#222222", "#777777", "#2b6cb0"


def fit_curves(fit: ScalingFit, bootstrap: Bootstrap | None = None, ax: Any = None) -> Any:
    """The runs of a fit and its curves: loss against D, one curve per N, light to dark; or against the one variable of
    its law. With a bootstrap, 95 % bands of the curves. Curves end with the runs."""
    ax = _axes(ax)
    along = "D" if "D" in fit.law.variables else "N"
    x = fit._variable(along)
    other = fit._variable("N") if set(fit.law.variables) == {"N", "D"} else np.ones(len(x))
    sizes = np.unique(other)
    chosen = sizes[np.unique(np.linspace(0, len(sizes) - 1, MAX_CURVES).round().astype(int))]
    for size in sizes:
        mine = other == size
        shade = _shade(size, sizes)
        ax.plot(x[mine], fit.loss[mine], "o", ms=4, color=shade, mec=_SURFACE, mew=0.5, zorder=3)
        if size not in chosen:
            continue
        line = np.geomspace(x[mine].min(), x[mine].max(), 60)
        at = {along: line} | ({"N": np.full(60, size)} if len(fit.law.variables) == 2 else {})
        label = _count(size) if len(sizes) > 1 else None
        ax.plot(line, fit.predict(**at), "-", lw=1.6, color=shade, label=label, zorder=2)
        if bootstrap is not None:
            low, high = bootstrap.predict_interval(**at)
            ax.fill_between(line, low, high, color=shade, alpha=0.18, lw=0, zorder=1)
    ax.set_xscale("log")
    ax.set_xlabel("training tokens D" if along == "D" else f"parameters N ({fit.n_definition})")
    ax.set_ylabel("loss")
    if len(sizes) > 1:
        ax.legend(title="N", frameon=False, fontsize=8, title_fontsize=8, loc="upper right")
    note = "" if fit.identifiable else " (not identifiable)"
    ax.set_title(f"{fit.law.formula}{note}, rms {100 * fit.rms_residual:.2g} %", fontsize=10, color=_INK)
    return _plain(ax)


def constants(entries: Mapping[str, MixtureFit], name: str = "E", ax: Any = None) -> Any:
    """The parameter `name` of every mixture with its 95 % interval; what is not identifiable is said in its row."""
    ax = _axes(ax)
    for row, entry in enumerate(entries.values()):
        if not entry.identifiable or entry.fit is None:
            ax.text(
                0.02, row, "not identifiable", va="center", color=_MUTED, fontsize=8, transform=ax.get_yaxis_transform()
            )
            continue
        value = entry.fit.params[name]
        low, high = entry.interval(name)
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([low, high], [row, row], "-", lw=2, color=_HUE, alpha=0.5, solid_capstyle="round")
        ax.plot([value], [row], "o", ms=6, color=_HUE, mec=_SURFACE)
    ax.set_yticks(range(len(entries)), list(entries))
    ax.set_ylim(len(entries) - 0.4, -0.6)
    ax.set_xlabel(f"{name}, 95 % interval")
    return _plain(ax)


def residuals(fit: ScalingFit, ax: Any = None) -> Any:
    """Observed against predicted, in percent, over compute 6 N D (or over the one variable): no pattern should show."""
    ax = _axes(ax)
    both = set(fit.law.variables) == {"N", "D"}
    x = 6 * fit._variable("N") * fit._variable("D") if both else fit._variable(fit.law.variables[0])
    sizes = fit._variable("N") if both else np.ones(len(x))
    for size in np.unique(sizes):
        mine = sizes == size
        ax.plot(
            x[mine], -100 * fit.residuals[mine], "o", ms=4, color=_shade(size, np.unique(sizes)), mec=_SURFACE, mew=0.5
        )
    ax.axhline(0, color=_MUTED, lw=1)
    ax.set_xscale("log")
    ax.set_xlabel("6 N D, FLOPs" if both else fit.law.variables[0])
    ax.set_ylabel("ln(observed) - ln(predicted), %")
    return _plain(ax)


def write_figures(fits: StudyFits, folder: str | Path) -> list[Path]:
    """PNG files of a study's joint fits: curves and residuals per mixture, and E of all. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []

    def save(figure: Figure, name: str) -> None:
        FigureCanvasAgg(figure)
        path = Path(folder) / f"{name}.png"
        with atomic_file(path, "wb") as file:
            figure.savefig(file, format="png", dpi=140)
        written.append(path)

    drawn = {mixture: entry for mixture, entry in fits.joint.items() if entry.fit is not None}
    names: dict[str, str] = {}
    for mixture, entry in drawn.items():
        assert entry.fit is not None, "chosen above"
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        fit_curves(entry.fit, entry.bootstrap, left)
        residuals(entry.fit, right)
        figure.suptitle(mixture, fontsize=11)
        save(figure, _file_name(f"{fits.joint_law.name}-{mixture}", names))
    if len(drawn) > 1:
        figure = Figure(figsize=(6, 0.6 + 0.4 * len(drawn)), layout="constrained")
        constants(drawn, fits.joint_law.constant, figure.subplots())
        save(figure, _file_name(f"{fits.joint_law.name}-{fits.joint_law.constant}-by-mixture", names))
    return written


def _file_name(name: str, taken: dict[str, str]) -> str:
    """Letters, digits, `.`, `-`, `_`; two mixtures never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "fit"
    while taken.setdefault(plain.lower(), name) != name:
        plain += "_"
    return plain


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6, 4), layout="constrained")[1]


def _shade(value: float, all_values: np.ndarray) -> Any:
    """One hue, darker with the logarithm of the value."""
    low, high = np.log(all_values[0]), np.log(all_values[-1])
    share = 0.7 if high <= low else float((np.log(value) - low) / (high - low))
    light, dark = np.array([0.55, 0.75, 0.93]), np.array([0.03, 0.19, 0.42])
    return tuple((light + (dark - light) * share).tolist())


def _count(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def _plain(ax: Any) -> Any:
    ax.grid(True, color="#e6e6e6", lw=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(labelsize=8)
    return ax
