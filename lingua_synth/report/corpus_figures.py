"""Figures about corpora and tokens: how frequent types are, how far corpora lie apart, on which types the loss lies.

Each is a function of plain counts or of a result of `analysis` and returns labelled Axes, as in `figures.py`. A corpus
of text has a hundred thousand types; what is drawn is thinned evenly (along the axis that is shown), and the rows that
`drawn(ax)` keeps are what was drawn. Dots go into the SVG as one picture, so a page stays light.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lingua_synth.report import style, words
from lingua_synth.report.canvas import Canvas, canvas_on, categories

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lingua_synth.analysis import Distance, LossDistance, RollingLoss, ZipfFit

MOST_POINTS = 400
"""Points of one series; more cannot be told apart at the width of a figure."""
MOST_NAMED = 3
"""Tokens named per corpus and side, where the corpora differ most."""
MIN_NAMED = 20
"""Occurrences in the test text of a token that is named."""


def unigram_frequencies(
    corpora: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    tests: Sequence[str] = (),
    fits: Mapping[str, ZipfFit] | None = None,
    base: str | None = None,
) -> Axes:
    """Share of the tokens against the rank of the type, both on log scales; a Zipf law is a straight line.

    `corpora`: token counts per corpus. Those named in `tests` are thin grey lines; `fits` are dotted over the ranks
    they were fitted on. `base`: the corpus drawn in black. A corpus without tokens has no line, and a note says so.
    """
    training = [name for name in corpora if name not in tests]
    with canvas_on(ax, "rank", "frequency") as canvas:
        canvas.labels("rank of the token type", "share of the corpus's tokens")
        canvas.ax.set(xscale="log", yscale="log")
        looks = style.looks(training, base if base in training else None)
        num_drawn = 0
        for name in [*tests, *training]:
            counts = np.sort(np.asarray(corpora[name]))[::-1].astype(float)
            counts = counts[counts > 0]
            if not len(counts):
                canvas.record("note", name, note="no tokens")
                continue
            ranks = _thinned_log(len(counts))
            shares = counts[ranks - 1] / counts.sum()
            num_drawn += 1
            for rank, share in zip(ranks.tolist(), shares.tolist(), strict=True):
                canvas.record("measured", name, x=rank, y=share)
            if name in tests:
                canvas.ax.plot(ranks, shares, color=style.FAINT, linewidth=0.9, alpha=0.8)
                label = "test corpus" if len(tests) == 1 else f"test corpora ({len(tests)})"
                canvas.key(label, color=style.FAINT, linewidth=0.9)
            else:
                look = looks[name]
                canvas.ax.plot(ranks, shares, color=look.colour, linestyle=look.line)
                canvas.key(name, color=look.colour, linestyle=look.line)
        for name, law in (fits or {}).items():
            if name not in corpora or not num_drawn:
                continue
            colour = looks[name].colour if name in looks else style.FAINT
            ranks = np.geomspace(law.first_rank, law.last_rank, 60)
            shares = _zipf_shares(law, ranks)
            canvas.ax.plot(ranks, shares, color=colour, linestyle=":", linewidth=1.1)
            for rank, share in zip(ranks.tolist(), shares.tolist(), strict=True):
                canvas.record("fit", name, x=rank, y=share)
            canvas.key("fitted law", color=style.INK, linestyle=":", linewidth=1.1)
        if not num_drawn:
            canvas.words("No corpus holds a token.")
    return canvas.ax


def unigram_distances(distances: Sequence[Distance], ax: Axes | None = None, *, base: str | None = None) -> Axes:
    """KL(test || train) of token frequencies: a row per test corpus, a mark per training corpus, nearest on the left.

    Every `Distance` goes from a test corpus (`first`) to a training corpus (`second`). Bars are two standard deviations
    of the samples drawn to compare at equal tokens. Infinite distances stand as words, not as marks.
    """
    tests = list(dict.fromkeys(one.first for one in distances))
    trains = list(dict.fromkeys(one.second for one in distances))
    with canvas_on(ax, "kl", "test", height=1.7 + 0.34 * max(2, len(tests))) as canvas:
        canvas.labels("KL(test || training), nats per token", "")
        if not distances:
            canvas.words("No pair of a test and a training corpus.")
            return canvas.ax
        looks = style.looks(trains, base if base in trains else None)
        ordered = sorted(tests, key=lambda t: min(one.kl for one in distances if one.first == t))
        # Marks of one row a little apart: equal distances would hide each other.
        offsets = dict(zip(trains, np.linspace(-0.22, 0.22, len(trains)) if len(trains) > 1 else [0.0], strict=True))
        endless: dict[str, list[str]] = {}
        for one in distances:
            look, row = looks[one.second], ordered.index(one.first) + offsets[one.second]
            if not math.isfinite(one.kl):
                endless.setdefault(one.first, []).append(one.second)
                canvas.record("note", one.second, y=one.first, note="infinite: the test has a token training lacks")
                continue
            spread = 2 * one.kl_sd if math.isfinite(one.kl_sd) else 0.0
            canvas.ax.plot([one.kl - spread, one.kl + spread], [row, row], color=look.colour, linewidth=1.4)
            canvas.ax.plot([one.kl], [row], linestyle="none", marker=look.marker, color=look.colour)
            canvas.key(one.second, color=look.colour, marker=look.marker, linestyle="none")
            canvas.record("measured", one.second, x=one.kl, y=one.first, low=one.kl - spread, high=one.kl + spread)
        categories(canvas.ax, ordered)
        for test, missing in endless.items():
            canvas.ax.text(
                0.99, ordered.index(test), f"∞: {', '.join(missing)}", transform=canvas.ax.get_yaxis_transform(),
                ha="right", va="center", fontsize=8, color=style.INK, parse_math=False,
            )  # fmt: skip
        if len(endless) == len(tests) and not canvas.keys:
            canvas.ax.set_xticks([])
    return canvas.ax


def token_frequencies(
    test: ArrayLike,
    training: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    decode: Callable[[int], str] | None = None,
    base: str | None = None,
) -> Axes:
    """Share of every token type in each training corpus, sorted by share of the test text (the grey line).

    Dots above the line are types that training holds more of, below it less; types a corpus lacks stand on the lower
    edge. Lines are running medians. With `decode` the types that differ most are named: of those the test holds at
    least 20 times, the largest ratios of smoothed shares either way.
    """
    wanted = np.asarray(test)
    order = np.argsort(-wanted, kind="stable")
    order = order[wanted[order] > 0]
    with canvas_on(ax, "rank", "frequency", height=4.0) as canvas:
        canvas.labels("token types, sorted by their share of the test text", "share of the corpus's tokens")
        if not len(order):
            canvas.words("The test text holds no token.")
            return canvas.ax
        canvas.ax.set(xscale="log", yscale="log")
        shares = {name: np.asarray(counts) / max(float(np.sum(counts)), 1.0) for name, counts in training.items()}
        of_test = wanted / wanted.sum()
        shown = [one[order] for one in [of_test, *shares.values()]]
        present = [float(one[one > 0].min()) for one in shown if (one > 0).any()]
        floor = min(present) / 2
        ranks = _thinned_log(len(order))
        looks = style.looks(list(training), base if base in training else None)
        for name, share in shares.items():
            look = looks[name]
            found = share[order]
            dots = np.maximum(found[ranks - 1], floor)
            canvas.ax.plot(
                ranks,
                dots,
                linestyle="none",
                marker=".",
                markersize=2.2,
                color=look.colour,
                alpha=0.35,
                rasterized=True,
            )
            middle = _running_median(found, ranks)
            canvas.ax.plot(ranks, np.maximum(middle, floor), color=look.colour, linestyle=look.line, linewidth=1.4)
            canvas.key(name, color=look.colour, linestyle=look.line)
            for rank, token, value, median in zip(ranks, order[ranks - 1], found[ranks - 1], middle, strict=True):
                canvas.record("measured", name, x=int(rank), y=float(value), token_id=int(token), median=float(median))
        canvas.ax.plot(ranks, of_test[order][ranks - 1], color=style.FAINT, linewidth=3.5, alpha=0.7, zorder=1.5)
        canvas.key("test text", color=style.FAINT, linewidth=3.5, alpha=0.7)
        for rank in ranks.tolist():
            canvas.record("guide", "test", x=rank, y=float(of_test[order[rank - 1]]), token_id=int(order[rank - 1]))
        if decode is not None:
            _name_extremes(canvas, wanted, training, order, floor, looks, decode)
        canvas.ax.set_ylim(floor / 2, float(max(of_test.max(), *(one.max() for one in shares.values()))) * 3)
    return canvas.ax


def token_losses(
    losses: Mapping[str, RollingLoss], ax: Axes | None = None, *, base: str | None = None, unit: str = "nats per token"
) -> Axes:
    """Running mean of the loss of a token type, types sorted from frequent to rare in a corpus; a line a model.

    Bands are 95 % intervals of the mean. The dots are the types of the base model (or of the first), thinned evenly. A
    vertical line stands where types begin that the corpus lacks, when all models are sorted by one corpus.
    """
    with canvas_on(ax, "rank", "loss", height=3.8) as canvas:
        by = list(dict.fromkeys(one.sorted_by for one in losses.values()))
        canvas.labels(f"token types, from frequent to rare in {words.joined(by) or 'a corpus'}", f"loss ({unit})")
        if not losses:
            canvas.words("No evaluation with losses per token type.")
            return canvas.ax
        looks = style.looks(list(losses), base if base in losses else None)
        shown = base if base is not None and base in losses else next(iter(losses))
        cloud = losses[shown]
        dots = _thinned_even(len(cloud.loss), 1_500)
        canvas.ax.plot(
            dots + 1, cloud.loss[dots], linestyle="none", marker=".", markersize=2, color=looks[shown].colour,
            alpha=0.22, rasterized=True,
        )  # fmt: skip
        for name, one in losses.items():
            look, at = looks[name], _thinned_even(len(one.mean), MOST_POINTS)
            low, high = np.where(np.isfinite([one.low[at], one.high[at]]), [one.low[at], one.high[at]], one.mean[at])
            canvas.ax.fill_between(at + 1, low, high, color=look.colour, alpha=0.16, linewidth=0)
            canvas.ax.plot(at + 1, one.mean[at], color=look.colour, linestyle=look.line)
            canvas.key(name, color=look.colour, linestyle=look.line)
            for k in at.tolist():
                canvas.record(
                    "mean", name, x=k + 1, y=float(one.mean[k]), low=float(one.low[k]), high=float(one.high[k]),
                    token_id=int(one.token_id[k]), frequency=float(one.frequency[k]), value=float(one.loss[k]),
                )  # fmt: skip
        absent = {int((one.frequency > 0).sum()) for one in losses.values()}
        if len(by) == 1 and len(absent) == 1 and 0 < min(absent) < len(cloud.loss):
            canvas.ax.axvline(min(absent) + 0.5, color=style.INK, linewidth=0.9, linestyle=(0, (2, 2)))
            canvas.record("guide", "absent from here", x=min(absent) + 1)
            canvas.key("absent from here on", color=style.INK, linewidth=0.9, linestyle=(0, (2, 2)))
        # A few single types reach far above the means; they must not press the lines together.
        bottom, top = np.quantile(cloud.loss, [0.005, 0.995]).tolist()
        means = np.concatenate([one.mean for one in losses.values()])
        bottom, top = min(bottom, float(means.min())), max(top, float(means.max()))
        canvas.ax.set_ylim(max(bottom - 0.05 * (top - bottom), 0), top + 0.1 * (top - bottom))
        canvas.ax.set_xlim(1, max(len(one.loss) for one in losses.values()))
        canvas.corner(f"dots: {words.shortened(shown)}; running mean over {words.count(cloud.window)} types")
    return canvas.ax


def loss_distance(found: LossDistance, ax: Axes | None = None, *, base: str | None = None) -> Axes:
    """Loss beside the mean of all mixtures, in per cent, against the distance of the training from the test text.

    Bars are intervals of the mean over cells; without a measure of how runs scatter there are none.
    """
    from lingua_synth.scaling.regions import t_quantile

    with canvas_on(ax, "distance", "loss") as canvas:
        canvas.labels("KL(test || training text), nats per token", "loss beside the mean\nof all mixtures (%)")
        canvas.ax.axhline(0, color=style.FAINT, linewidth=0.9)
        looks = style.looks(list(found.mixtures), base if base in found.mixtures else None)
        factor = t_quantile(found.freedom, found.level) if found.freedom else math.nan
        for row in found.rows():
            name, x, y = row["mixture"], row["distance"], 100 * row["loss"]
            half = 100 * factor * row["loss_error"]
            look = looks[name]
            if math.isfinite(half):
                canvas.ax.plot([x, x], [y - half, y + half], color=look.colour, linewidth=1.4)
            canvas.ax.plot([x], [y], linestyle="none", marker=look.marker, color=look.colour)
            canvas.key(name, color=look.colour, marker=look.marker, linestyle="none")
            canvas.record("mean", name, x=x, y=y, low=y - half, high=y + half)
    return canvas.ax


# --- helpers ---


def _thinned_log(num: int) -> np.ndarray:
    """At most `MOST_POINTS` ranks from 1 to `num`, evenly spaced in their logarithm, the ends among them."""
    return np.unique(np.round(np.geomspace(1, num, min(MOST_POINTS, num))).astype(int))


def _thinned_even(num: int, most: int) -> np.ndarray:
    return np.unique(np.round(np.linspace(0, num - 1, min(most, num))).astype(int))


def _running_median(values: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Median over the ranks within a tenth of a decade either way."""
    around = ((math.ceil(rank / 1.26), math.floor(rank * 1.26)) for rank in ranks.tolist())
    return np.array([float(np.median(values[first - 1 : last])) for first, last in around])


def _zipf_shares(law: ZipfFit, ranks: np.ndarray) -> np.ndarray:
    """The fitted law as shares of all tokens: it is a law of the types of its ranks, which hold a part of them."""
    whole = np.arange(law.first_rank, law.last_rank + 1, dtype=float)
    total = float(((whole + law.shift) ** -law.exponent).sum())
    return law.share_of_tokens * (ranks + law.shift) ** -law.exponent / total


def _name_extremes(
    canvas: Canvas,
    test: np.ndarray,
    training: Mapping[str, ArrayLike],
    order: np.ndarray,
    floor: float,
    looks: Mapping[str, style.Look],
    decode: Callable[[int], str],
) -> None:
    """Names beside the types that differ most, each corpus in its colour, no name twice in one place."""
    place = {int(token): k + 1 for k, token in enumerate(order.tolist())}
    taken: list[tuple[float, float]] = []
    for name, given in training.items():
        counts = np.asarray(given)
        ratio = np.log((counts + 0.5) / (counts.sum() + 0.5 * len(counts)))
        ratio -= np.log((test + 0.5) / (test.sum() + 0.5 * len(test)))
        eligible = order[test[order] >= MIN_NAMED]
        ranked = eligible[np.argsort(ratio[eligible], kind="stable")]
        for token in [*ranked[:MOST_NAMED], *ranked[::-1][:MOST_NAMED]]:
            if abs(ratio[token]) < math.log(2):
                continue
            x, y = place[int(token)], max(float(counts[token]) / max(float(counts.sum()), 1.0), floor)
            canvas.record(
                "best", name, x=x, y=y, token_id=int(token), note=decode(int(token)), value=float(ratio[token])
            )
            near = (math.log10(x), math.log10(y))
            if any(abs(near[0] - a) < 0.35 and abs(near[1] - b) < 0.28 for a, b in taken):
                continue
            taken.append(near)
            canvas.ax.annotate(
                words.shortened(_visible(decode(int(token))), 12), (x, y), xytext=(3, 3), textcoords="offset points",
                fontsize=7.5, color=looks[name].colour, parse_math=False,
            )  # fmt: skip


def _visible(text: str) -> str:
    """A token with its white space shown."""
    return f'"{text}"'.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
