"""Which runs carry a fit: what it would be without each of them, and without its worst few.

Every refit is solved to its minimum (the refits descend together from the full fit, as in a bootstrap), so the numbers
are what `fit` would give for the shorter table, not a linear guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lingua_synth.scaling import solver
from lingua_synth.scaling.laws import Law
from lingua_synth.scaling.records import record

if TYPE_CHECKING:
    from lingua_synth.scaling.fit import ScalingFit


@dataclass(frozen=True, eq=False)
class Influence:
    """Refits without runs."""

    law: Law
    params: dict[str, float]
    """Of the full fit."""
    without: np.ndarray
    """`[num_points, p]`: parameters without each run, in the order given; NaN where that refit has no answer."""
    moves: np.ndarray
    """`[num_points]`: root mean square change of ln(predicted) over the runs when that run is left out."""
    worst: tuple[int, ...]
    """Rows with the greatest residuals, greatest first."""
    without_worst: np.ndarray
    """`[len(worst), p]`: parameters without the first, the first two, ... of `worst`."""
    rows: tuple[int, ...]
    """Rows that move the fit most, most first."""

    def of(self, name: str) -> np.ndarray:
        """Change of the parameter `name` when each run is left out, `[num_points]`; ValueError lists the names."""
        if name not in self.params:
            raise ValueError(f"{type(self.law).__name__} has parameters {', '.join(self.params)}; got {name!r}")
        return self.without[:, self.law.parameters.index(name)] - self.params[name]

    def to_dict(self) -> dict[str, Any]:
        """The most influential runs and the fit without the worst ones, plain for JSON."""
        names = self.law.parameters
        return record(
            {
                "most_influential": [
                    {
                        "row": row,
                        "rms_change_of_log_prediction": float(self.moves[row]),
                        "params_without": dict(zip(names, self.without[row].tolist(), strict=True)),
                    }
                    for row in self.rows
                ],
                "without_worst_residuals": [
                    {"rows": list(self.worst[: k + 1]), "params": dict(zip(names, theta.tolist(), strict=True))}
                    for k, theta in enumerate(self.without_worst)
                ],
            }
        )

    def __str__(self) -> str:
        shown = self.law.constant or self.law.parameters[0]
        at = self.law.parameters.index(shown)
        full = self.params[shown]
        lines = [f"{shown} = {full:.5g} with all runs; without"]
        lines += [
            f"  row {row:<6}{self.without[row, at]:>12.5g}   predictions move by {100 * self.moves[row]:.2g} %"
            for row in self.rows
        ]
        lines += [f"  the {k + 1} farthest off the law{theta[at]:>12.5g}" for k, theta in enumerate(self.without_worst)]
        return "\n".join(lines)


def influence(fit: ScalingFit, top: int = 5) -> Influence:
    """Leave out each run in turn, and the `top` runs with the greatest residuals one more at a time.

    ValueError for top < 1, and for a table with no run to spare (as many as the law has parameters).
    """
    law, num, p = fit.law, fit.num_points, len(fit.law.parameters)
    if top < 1:
        raise ValueError(f"top is how many runs to name, at least 1; got {top}")
    if num <= p:
        raise ValueError(f"{num} runs for {p} parameters of {type(law).__name__}: none can be left out")
    points = fit._points()
    position = np.empty(num, dtype=int)
    position[points.order] = np.arange(num)
    keys = [np.log(fit.loss), *(fit.variables[name] for name in reversed(law.variables))]
    by_residual = np.lexsort((*keys, -np.abs(fit.residuals)))
    worst = tuple(int(row) for row in by_residual[: min(top, num - p)])
    counts = np.ones((num + len(worst), num))
    counts[np.arange(num), position] = 0
    for k in range(len(worst)):
        counts[num + k, position[list(worst[: k + 1])]] = 0
    start = points.to_theta(law, law.as_array(fit.params))
    starts = np.repeat(start[None], len(counts), axis=0)
    if fit.objective_name == "lad":
        ends = solver.descend_smoothed(law, points, starts, delta=min(fit.delta, 1e-3), weights=counts)
    else:
        ends = solver.descend(law, points, starts, objective=fit.objective_name, delta=fit.delta, weights=counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log(law.value(ends.theta, points.logs)) - np.log(law.value(start[None], points.logs))
    params = np.where(ends.converged[:, None], points.to_params(law, ends.theta), np.nan)
    moves = np.sqrt(np.mean(change[:num] ** 2, axis=-1))
    moves = np.where(ends.converged[:num], moves, 0.0)
    rows = np.lexsort((*keys, -moves))[:top]
    return Influence(law, dict(fit.params), params[:num], moves, worst, params[num:], tuple(int(row) for row in rows))
