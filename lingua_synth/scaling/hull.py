"""Where the runs are: the sizes and budgets that the runs of natural text and of one source span together.

Answers about a size and a budget are given inside the convex hull of the trained ones, in ln N and ln D: a study whose
large models saw small budgets only, and the other way round, knows nothing of large models on large budgets.
"""

from __future__ import annotations

import math

import numpy as np

from lingua_synth.scaling.natural import synthetic_ratios
from lingua_synth.scaling.runs import Runs

TOLERANCE = 0.02
"""How far (in ln N or ln D) beyond the runs a place still counts as inside: 1B asked of a size of 0.99B."""


def trained_places(runs: Runs, base: str | None, source: str, n_definition: str = "non_embedding") -> np.ndarray:
    """(ln N, ln D) `[n, 2]`, each once, of the runs of natural text alone and of those that mix in `source` alone."""
    shares = synthetic_ratios(runs, base)
    on_axis = [mixture for mixture, (names, _) in shares.items() if names in ((), (source,))]
    mine = np.isin(runs["mixture"], on_axis)
    return np.unique(np.stack([np.log(runs.N(n_definition)[mine]), np.log(runs["tokens"][mine])], axis=-1), axis=0)


def outside(places: np.ndarray, source: str, N: float, D: float) -> str:
    """Why (N, D) lies outside `places`; empty when it does not."""
    asked = np.log([N, D])
    low, high = places.min(axis=0), places.max(axis=0)
    for k, (name, of) in enumerate((("N", "parameters"), ("D", "tokens"))):
        if not low[k] - TOLERANCE <= asked[k] <= high[k] + TOLERANCE:
            return (
                f"{name} = {math.exp(asked[k]):.4g} {of} lies outside the runs of {source}, which span "
                f"{math.exp(low[k]):.4g} to {math.exp(high[k]):.4g}: the best share moves with {name}, and nothing "
                "here says how beyond them. Ask within, or train there."
            )
    if not in_hull(places, asked):
        nearest = places[np.argmin(((places - asked) ** 2).sum(axis=1))]
        return (
            f"N = {N:.4g} with D = {D:.4g} lies outside what the runs of {source} span together (sizes and budgets "
            f"were each trained, this corner was not); the nearest trained place is N = {math.exp(nearest[0]):.4g}, "
            f"D = {math.exp(nearest[1]):.4g}."
        )
    return ""


def in_hull(places: np.ndarray, asked: np.ndarray) -> bool:
    """Whether `asked` is a mean of `places` `[n, 2]` with weights, within the tolerance in each coordinate."""
    from scipy.optimize import linprog

    num = len(places)
    bounds = [(0.0, 1.0)] * num
    found = linprog(
        np.zeros(num),
        A_ub=np.concatenate([places.T, -places.T]),
        b_ub=np.concatenate([asked + TOLERANCE, TOLERANCE - asked]),
        A_eq=np.ones((1, num)),
        b_eq=[1.0],
        bounds=bounds,
        method="highs",
    )
    return bool(found.success)


def section(places: np.ndarray, axis: int, value: float) -> tuple[float, float] | None:
    """(least, greatest) of the other coordinate inside the hull where coordinate `axis` (0: ln N, 1: ln D) is `value`.

    With the tolerance in both, as `in_hull` has it; None where `value` lies outside.
    """
    x, y = places[:, axis], places[:, 1 - axis]
    if not x.min() - TOLERANCE <= value <= x.max() + TOLERANCE:
        return None
    near = np.clip([value - TOLERANCE, value + TOLERANCE], x.min(), x.max())
    # The ends lie on edges of the hull or at its corners, and every edge joins two of the places.
    met = [y[(x >= near[0]) & (x <= near[1])]]
    for at in near:
        left, right = np.nonzero((x[:, None] <= at) & (x[None, :] >= at))
        span = x[right] - x[left]
        part = np.divide(at - x[left], span, out=np.zeros_like(span), where=span > 0)
        met.append(y[left] + part * (y[right] - y[left]))
    crossed = np.concatenate(met)
    return float(crossed.min()) - TOLERANCE, float(crossed.max()) + TOLERANCE
