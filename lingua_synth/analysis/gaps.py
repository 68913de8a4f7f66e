"""How much worse than its base a mixture is, from paired runs: by budget, as budgets grow, and per small share.

A gap is ln(loss of the mixture / loss of the base) of two runs of one size, one budget and one seed: 0.01 is 1 % more
loss. What such runs share (data order, initialization, evaluation) cancels in it. A gap is a plain average away from an
answer that takes no scaling law to believe.

What a gap scatters by is read off the gaps themselves: whatever is left beside one effect per size and one per budget
(or, with too few runs for that, beside a straight line in ln D and ln N). A gap that really depends on N and D in other
ways is left in it too, so intervals are rather wide than narrow. They take runs of different cells as independent; runs
that share an error because they share a size (one learning rate for all of a size) are counted by size with
`unit="size"`.

N: parameters. D: training tokens, repeats counted. p: share of synthetic tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lingua_synth.analysis.verdicts import CollapseTest, Question
from lingua_synth.scaling.natural import synthetic_ratios
from lingua_synth.scaling.runs import Runs
from lingua_synth.scaling.verdicts import LEVEL, MANY, Estimate

SHARE = "of the loss"
UNITS = ("run", "size")
MAX_RATIO = 0.2
"""Shares up to here are small; the paper's grid has seven of them."""
MIN_OWN_SLOPES = 4
"""With so many degrees of freedom left every cell has a slope of its own; with fewer all cells share one."""


@dataclass(frozen=True, eq=False)
class PairedGaps:
    """ln(loss of a mixture / loss of its base) wherever both were trained, one entry a pair of runs."""

    mixture: str
    base: str
    size: np.ndarray
    D: np.ndarray
    gap: np.ndarray
    weight: np.ndarray
    """1 for a pair of runs; for means over unpaired seeds, how many pairs they are worth."""

    def __len__(self) -> int:
        return len(self.gap)


@dataclass(frozen=True)
class Scatter:
    """What a gap of weight 1 scatters by, beside its mean."""

    variance: float
    freedom: int
    how: str
    """Where it was read off; for none, why."""

    @property
    def known(self) -> bool:
        return self.freedom > 0 and math.isfinite(self.variance)


def paired_gaps(runs: Runs, mixture: str, base: str, target: str = "loss_macro") -> PairedGaps:
    """Pair the runs of two mixtures by size, budget and seed.

    Seeds pair where both have them; a cell without a common seed gives one gap of means. Runs whose target is not a
    positive number are left out. ValueError for a mixture or target that is not in the table.
    """
    losses = {name: _losses(runs, name, target) for name in (mixture, base)}
    sizes, tokens, gaps, weights = [], [], [], []
    for cell, mine in losses[mixture].items():
        theirs = losses[base].get(cell)
        if theirs is None:
            continue
        common = sorted(set(mine) & set(theirs))
        if common:
            pairs = [(_mean(mine[seed]) - _mean(theirs[seed]), 1.0) for seed in common]
        else:
            a, b = ([x for values in side.values() for x in values] for side in (mine, theirs))
            pairs = [(_mean(a) - _mean(b), 2 / (1 / len(a) + 1 / len(b)))]
        for gap, weight in pairs:
            sizes.append(cell[0])
            tokens.append(cell[1])
            gaps.append(gap)
            weights.append(weight)
    order = np.lexsort((np.array(sizes, dtype=np.str_), np.array(tokens, dtype=float))) if gaps else np.array([], int)
    columns = (np.array(sizes, dtype=np.str_), np.array(tokens, dtype=float), np.array(gaps), np.array(weights))
    return PairedGaps(mixture, base, *(column[order] for column in columns))


def scatter_of(gaps: PairedGaps, noise: float | None = None) -> Scatter:
    """The scatter of single gaps: from `noise`, the standard deviation of ln loss of one run, or from the gaps."""
    if noise is not None:
        return Scatter(2 * noise**2, MANY, f"given: one run scatters by {100 * noise:.3g} %")
    if not len(gaps):
        return Scatter(math.nan, 0, "no run of the mixture has a run of the base at its size and budget")
    of_size = _dummies(gaps.size)
    for design, how in (
        (np.column_stack([of_size, _dummies(gaps.D)]), "beside an effect per size and per budget"),
        (np.column_stack([of_size, np.log(gaps.D)]), "beside an effect per size and a line in ln D"),
    ):
        found = _residual_variance(design, gaps.gap, gaps.weight)
        if found is not None:
            return Scatter(*found, how)
    pairs = _counted(len(gaps), "pair")
    why = f"{pairs} of runs without a repeat show nothing of how runs scatter; train other seeds, or give noise="
    return Scatter(math.nan, 0, why)


def gap_tests(
    gaps: PairedGaps,
    *,
    margin: float,
    growth_margin: float,
    noise: float | None = None,
    unit: str = "run",
    level: float = LEVEL,
) -> list[CollapseTest]:
    """Is the mixture worse, on average and at each budget, and does it fall behind as budgets grow?

    `loss_gap`: the mean gap over all cells trained. `loss_gap_at_budget`: at each budget, the mean over its sizes;
    these intervals hold for all budgets of the mixture at once (Bonferroni). `gap_growth`: the slope of the gap in
    log10 D with an effect per size, per factor of ten in tokens. `margin` is a share of the loss, `growth_margin` one
    per factor of ten. `unit="size"` counts sizes, not runs, as independent. ValueError for another unit.
    """
    if unit not in UNITS:
        raise ValueError(f"unit is what errs independently, {' or '.join(UNITS)}; got {unit!r}")
    scatter = scatter_of(gaps, noise)
    claim = "training on the mixture gives a higher loss than training on natural text alone"
    words = ("worse than the base", "better than the base")
    everywhere = Question("loss_gap", claim, SHARE, margin, words, level)
    tests = [_mean_gap(everywhere, gaps, None, unit, scatter)]
    budgets = np.unique(gaps.D)
    if len(budgets) > 1:
        each = Question("loss_gap_at_budget", claim, SHARE, margin, words, 1 - (1 - level) / len(budgets))
        tests += [_mean_gap(each, gaps, float(budget), unit, scatter) for budget in budgets]
    growth = Question(
        "gap_growth",
        "the mixture falls behind the base as budgets grow",
        f"{SHARE} per factor of ten in tokens",
        growth_margin,
        ("it loses ground as budgets grow", "it gains ground as budgets grow"),
        level,
    )
    where = f"over {_counted(len(budgets), 'budget')}"
    found = _growth(gaps, noise, unit)
    return [*tests, growth.answer(gaps.mixture, gaps.base, found, where=where, num_pairs=len(gaps))]


def small_ratio_test(
    runs: Runs,
    source: str,
    base: str,
    *,
    target: str = "loss_macro",
    margin: float,
    max_ratio: float = MAX_RATIO,
    noise: float | None = None,
    level: float = LEVEL,
) -> CollapseTest:
    """Does the loss rise with the first few per cent of `source`? The slope of ln loss in the share p at p = 0.

    Within each cell (and seed, where every seed has a run of the base) ln loss is a parabola in p over the shares up to
    `max_ratio`, or a line where fewer than three of them were trained; the estimate is the mean slope over the cells,
    all with one scatter. Where cells have too few runs for slopes of their own they share one. `margin` and the answer:
    share of the loss per unit of p, so that 0.05 is 0.5 % of loss for 10 % of synthetic tokens.
    """
    if not 0 < max_ratio <= 1:
        raise ValueError(f"max_ratio is a share in (0, 1]; got {max_ratio}")
    shares = {m: share for m, (others, share) in synthetic_ratios(runs, base).items() if set(others) <= {source}}
    small = {m: share for m, share in shares.items() if 0 < share <= max_ratio}
    groups = _ratio_groups(runs, base, small, target)
    found, form = _mean_slope(groups, noise)
    span = f", shares {100 * min(small.values()):.3g} to {100 * max(small.values()):.3g} %" if small else ""
    if not small:
        found = Estimate(why_not=f"no mixture holds more than 0 and at most {100 * max_ratio:.3g} % of {source}")
    question = Question(
        "small_ratio_slope",
        "the first small share of synthetic text already raises the loss",
        f"{SHARE} per unit of the share",
        margin,
        ("small shares raise the loss", "small shares lower the loss"),
        level,
    )
    where = f"over {_counted(len(groups), 'cell')}{span}{form}"
    num_pairs = sum(int((p > 0).sum()) for p, _ in groups)
    return question.answer(f"small shares of {source}", base, found, where=where, num_pairs=num_pairs)


# --- estimates ---


def _mean_gap(question: Question, gaps: PairedGaps, budget: float | None, unit: str, scatter: Scatter) -> CollapseTest:
    """Over the sizes at one `budget`, or over all cells."""
    rows = np.ones(len(gaps), dtype=bool) if budget is None else budget == gaps.D
    gap, weight, size = gaps.gap[rows], gaps.weight[rows], gaps.size[rows]
    sizes = np.unique(size)
    if not len(gap):
        found = Estimate(why_not=scatter.how)
    elif unit == "size":
        means = np.array([np.average(gap[size == one], weights=weight[size == one]) for one in sizes])
        found = Estimate(float(means.mean()), why_not="one size shows nothing of what sizes share; leave unit=size out")
        if len(means) > 1:
            found = Estimate(found.value, float(means.var(ddof=1)) / len(means), len(means) - 1)
    else:
        why_not = "" if scatter.known else scatter.how
        variance = scatter.variance / float(weight.sum())
        found = Estimate(float(np.average(gap, weights=weight)), variance, scatter.freedom, why_not)
    where = f"{_counted(len(gap), 'pair')} of runs, {_counted(len(sizes), 'size')}"
    if budget is None:
        return question.answer(gaps.mixture, gaps.base, found, where=where, num_pairs=len(gap))
    where = f"at {short_count(budget)} tokens, {where}"
    return question.answer(gaps.mixture, gaps.base, found, where=where, num_pairs=len(gap), budget=budget)


def _growth(gaps: PairedGaps, noise: float | None, unit: str) -> Estimate:
    if len(np.unique(gaps.D)) < 2:
        return Estimate(why_not="runs at one budget show no growth; train a second budget")
    x = np.log10(gaps.D)
    if unit == "size":
        slopes = []
        for one in np.unique(gaps.size):
            mine = gaps.size == one
            weight = gaps.weight[mine]
            centred = x[mine] - np.average(x[mine], weights=weight)
            if np.ptp(centred) > 0:
                slopes.append(float((weight * centred) @ gaps.gap[mine] / ((weight * centred) @ centred)))
        if len(slopes) < 2:
            return Estimate(why_not="fewer than two sizes have two budgets; leave unit=size out")
        return Estimate(float(np.mean(slopes)), float(np.var(slopes, ddof=1)) / len(slopes), len(slopes) - 1)
    design = np.column_stack([x - x.mean(), _dummies(gaps.size)])
    found = _weighted_fit(design, gaps.gap, gaps.weight)
    if found is None:
        return Estimate(why_not="no size has two budgets, so growth and size cannot be told apart")
    value = float(found.coefficients[0])
    if noise is not None:
        return Estimate(value, 2 * noise**2 * float(found.factors[0]), MANY)
    if found.freedom < 1:
        return Estimate(value, why_not="as many effects as pairs: nothing shows how runs scatter; give noise=")
    return Estimate(value, found.residual / found.freedom * float(found.factors[0]), found.freedom)


def _ratio_groups(runs: Runs, base: str, small: dict[str, float], target: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(shares, ln loss) of every cell, or cell and seed, with a run of the base and one of a small share."""
    losses = {name: _losses(runs, name, target) for name in (base, *small)}
    shares = {base: 0.0, **small}
    groups = []
    for cell, of_base in losses[base].items():
        seeds = {seed for name in small for seed in losses[name].get(cell, {})}
        split: list[set[float] | None] = (
            [{seed} for seed in sorted(seeds)] if seeds and seeds <= set(of_base) else [None]
        )
        for keep in split:
            points = [
                (shares[name], value)
                for name in losses
                for seed, values in losses[name].get(cell, {}).items()
                if keep is None or seed in keep
                for value in values
            ]
            if len({share for share, _ in points}) > 1 and any(share == 0 for share, _ in points):
                share, value = np.array(points).T
                groups.append((share, value))
    return groups


def _mean_slope(groups: Sequence[tuple[np.ndarray, np.ndarray]], noise: float | None) -> tuple[Estimate, str]:
    """(mean slope at p = 0 over the groups, the form of the curves in words)."""
    if not groups:
        return Estimate(why_not="no cell holds both a run of the base and one of a small share"), ""
    curved = all(len(np.unique(p)) >= 4 for p, _ in groups)
    form = ", parabolas" if curved else ", straight lines"
    residual, freedom, slopes, factors = 0.0, 0, [], []
    for p, y in groups:
        design = np.column_stack([p, *([p**2] if curved else []), np.ones(len(p))])
        found = _weighted_fit(design, y, np.ones(len(p)))
        assert found is not None, "a group holds as many shares as its curve has coefficients"
        slopes.append(float(found.coefficients[0]))
        factors.append(float(found.factors[0]))
        residual, freedom = residual + found.residual, freedom + found.freedom
    value, factor = float(np.mean(slopes)), float(np.sum(factors)) / len(groups) ** 2
    if noise is not None:
        return Estimate(value, noise**2 * factor, MANY), form
    if freedom >= MIN_OWN_SLOPES:
        return Estimate(value, residual / freedom * factor, freedom), form
    # One slope for all cells, an intercept each: what slopes differ by is left in the scatter.
    form = ", one straight line for all"
    p = np.concatenate([p - p.mean() for p, _ in groups])
    y = np.concatenate([y - y.mean() for _, y in groups])
    value, freedom = float(p @ y / (p @ p)), len(p) - len(groups) - 1
    if freedom < 1:
        return Estimate(value, why_not="one small share in one cell does not show how runs scatter; give noise="), form
    return Estimate(value, float(((y - value * p) ** 2).sum()) / freedom / float(p @ p), freedom), form


@dataclass(frozen=True, eq=False)
class _LeastSquares:
    coefficients: np.ndarray
    factors: np.ndarray
    """Variance of each coefficient over that of one observation of weight 1."""
    residual: float
    """Weighted sum of squares."""
    freedom: int


def _weighted_fit(design: np.ndarray, y: np.ndarray, weight: np.ndarray) -> _LeastSquares | None:
    """None where the first coefficient is not determined; the others may be redundant."""
    root = np.sqrt(weight)[:, None]
    scaled = design * root
    rank = int(np.linalg.matrix_rank(scaled))
    if int(np.linalg.matrix_rank(scaled[:, 1:])) == rank:
        return None
    inverse = np.linalg.pinv(scaled)
    coefficients = inverse @ (y * root[:, 0])
    residual = float(((y - design @ coefficients) ** 2 * weight).sum())
    return _LeastSquares(coefficients, (inverse**2).sum(axis=1), residual, len(y) - rank)


def _residual_variance(design: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, int] | None:
    root = np.sqrt(weight)
    scaled = design * root[:, None]
    freedom = len(y) - int(np.linalg.matrix_rank(scaled))
    if freedom < 1:
        return None
    residual = y * root - scaled @ (np.linalg.pinv(scaled) @ (y * root))
    return float(residual @ residual) / freedom, freedom


def _dummies(labels: np.ndarray) -> np.ndarray:
    """One column per value, `[n, values]`; that they are redundant beside others is the solver's to deal with."""
    return (labels[:, None] == np.unique(labels)[None, :]).astype(float)


def _losses(runs: Runs, mixture: str, target: str) -> dict[tuple[str, float], dict[float, list[float]]]:
    """(size, tokens) -> seed -> ln losses."""
    if mixture not in runs.mixtures:
        raise ValueError(f"no runs of mixture {mixture!r}; the table has {', '.join(runs.mixtures) or 'no runs'}")
    values, size, tokens = runs[target].astype(float), runs["size"], runs["tokens"]
    seeds = runs["seed"] if "seed" in runs.columns else np.zeros(len(runs))
    found: dict[tuple[str, float], dict[float, list[float]]] = {}
    for i in np.flatnonzero(runs["mixture"] == mixture):
        if not (math.isfinite(values[i]) and values[i] > 0):
            continue
        seed = 0.0 if math.isnan(seeds[i]) else float(seeds[i])
        found.setdefault((str(size[i]), float(tokens[i])), {}).setdefault(seed, []).append(math.log(values[i]))
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _counted(num: int, one: str) -> str:
    return f"{num} {one}{'s' if num != 1 else ''}"


def short_count(value: float) -> str:
    """A count for sentences, to three digits: 50B, 1.5M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
