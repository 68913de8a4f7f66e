"""Would the law have foretold the largest runs? Fit on the small ones, predict the held-out ones, beside a naive guess
and beside the noise of the runs, which no law can beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.scaling.choice import naive_loss
from lingua_synth.scaling.ensemble import Ensemble, Member, fit_ensemble
from lingua_synth.scaling.fit import ScalingFit, _columns, fit
from lingua_synth.scaling.laws import ArrayLike, Law
from lingua_synth.scaling.records import record

MEAN_ABSOLUTE = float(np.sqrt(2 / np.pi))
"""Mean absolute value of normal noise, in standard deviations."""


@dataclass(frozen=True, eq=False)
class Holdout:
    """A fit to some runs and its error on the others."""

    fit: ScalingFit | Ensemble
    """Fitted to the runs that were not held out."""
    error: float
    """Relative mean absolute error of the law on the held-out runs: mean of |predicted - loss| / loss."""
    naive_error: float
    """The same for the guess that a held-out run has the loss of the largest run fitted."""
    predicted: np.ndarray
    """Of the held-out runs, in the order given."""
    observed: np.ndarray
    naive_loss: float
    """Loss of the largest run fitted (greatest N D, or N or D where the law has only one)."""
    extrapolation_factor: float
    """Greatest over the held-out runs: how many times beyond the fitted range they lie."""
    noise: float | None = None
    """Relative standard deviation of a run that is repeated with another seed; None when nothing shows it."""
    noise_source: str = ""
    """Where `noise` is from, in words."""

    @property
    def num_test(self) -> int:
        return len(self.observed)

    @property
    def noise_floor(self) -> float | None:
        """The error that the true law would have, from the noise of the held-out runs alone; None without a noise."""
        return None if self.noise is None else MEAN_ABSOLUTE * self.noise

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(
            {
                "error": self.error,
                "naive_error": self.naive_error,
                "noise_floor": self.noise_floor,
                "noise": self.noise,
                "noise_source": self.noise_source,
                "num_test": self.num_test,
                "predicted": self.predicted,
                "observed": self.observed,
                "naive_loss": self.naive_loss,
                "extrapolation_factor": self.extrapolation_factor,
                "fit": self.fit.to_dict(),
            }
        )

    def __str__(self) -> str:
        formula = self.fit.formula if isinstance(self.fit, Ensemble) else self.fit.law.formula
        lines = [
            f"{formula}: fitted to {self.fit.num_points} runs, error {100 * self.error:.3g} % on "
            f"{self.num_test} held out (up to {self.extrapolation_factor:.3g} times beyond)",
            f"  {'law':<26}{100 * self.error:>8.3g} %",
            f"  {'same as the largest run':<26}{100 * self.naive_error:>8.3g} %",
        ]
        if self.noise_floor is not None:
            lines.append(f"  {'noise of the runs':<26}{100 * self.noise_floor:>8.3g} %   ({self.noise_source})")
        if not self.fit.identifiable:
            lines.append("  the fit is not identifiable: " + "; ".join(self.fit.reasons))
        return "\n".join(lines)


def holdout(
    law: Law | Sequence[Law | Member] | None,
    *,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    loss: ArrayLike,
    test: ArrayLike,
    objective: str = "huber",
    delta: float = 1e-3,
    asymmetry: float = 1.0,
    n_definition: str = "non_embedding",
    noise: float | None = None,
    **variables: ArrayLike | None,
) -> Holdout:
    """Fit `law` where `test` is False, predict where it is True: e.g. `test=D > 100e9` or `test=N > 2.5e9`.

    law: one law, or several (or None: `default_members`) whose median is the prediction, as `fit_ensemble` makes it;
    then `objective` and `asymmetry` are those of the members. noise: relative standard deviation between seeds (0.001
    is 0.1 %), for the floor; without it, that of runs which agree in every variable, if there are such.
    Other arguments as in `fit`. ValueError for a mask of another length or type, and for one that holds out no run or
    leaves fewer than the law has parameters.
    """
    given = {name: values for name, values in {"N": N, "D": D, **variables}.items() if values is not None}
    if noise is not None and not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is a relative standard deviation, 0.001 for 0.1 %; got {noise}")
    if isinstance(law, Law):
        columns = _columns(law, given, loss)
    else:
        if objective != "huber" or asymmetry != 1.0:
            raise ValueError("objective and asymmetry belong to the members of an ensemble; name them there")
        columns = {**{name: np.atleast_1d(np.asarray(values)) for name, values in given.items()}}
        columns["loss"] = np.atleast_1d(np.asarray(loss, dtype=np.float64))
    losses = columns.pop("loss")
    mask = np.asarray(test)
    if mask.dtype != np.bool_ or mask.shape != losses.shape:
        raise ValueError(
            f"test must be True or False for each of the {len(losses)} runs; got {mask.dtype} of shape {mask.shape}"
        )
    if not mask.any():
        raise ValueError(f"test holds out none of the {len(losses)} runs")
    short = [name for name, values in columns.items() if values.shape != losses.shape]
    if short:
        raise ValueError(f"one value a run is needed; {', '.join(short)} and loss differ in length")
    kept: dict[str, Any] = {name: values[~mask] for name, values in columns.items()}
    held: dict[str, Any] = {name: values[mask] for name, values in columns.items()}
    fitted: ScalingFit | Ensemble
    if isinstance(law, Law):
        fitted = fit(
            law,
            **kept,
            loss=losses[~mask],
            objective=objective,
            delta=delta,
            asymmetry=asymmetry,
            n_definition=n_definition,
        )
    else:
        fitted = fit_ensemble(law, **kept, loss=losses[~mask], delta=delta, n_definition=n_definition)
    observed = losses[mask]
    predicted = fitted.predict(**held)
    naive = naive_loss(kept, losses[~mask])
    source = "given"
    if noise is None:
        noise, source = repeat_noise(columns, losses)
    return Holdout(
        fit=fitted,
        error=float(np.mean(np.abs(predicted - observed) / observed)),
        naive_error=float(np.mean(np.abs(naive - observed) / observed)),
        predicted=predicted,
        observed=observed,
        naive_loss=naive,
        extrapolation_factor=float(np.max(fitted.extrapolation_factor(**held))),
        noise=noise,
        noise_source=source,
    )


def repeat_noise(columns: dict[str, np.ndarray], loss: np.ndarray) -> tuple[float | None, str]:
    """(standard deviation of ln loss among runs that agree in every variable, where it is from); (None, "") when no
    two do.

    Exact copies of a row are one run. Pooled over the cells, each with its own mean.
    """
    table = np.unique(np.stack([*columns.values(), loss], axis=-1), axis=0)
    _, cell = np.unique(table[:, :-1], axis=0, return_inverse=True)
    cell = cell.ravel()
    count = np.bincount(cell)
    freedom = int((count - 1).sum())
    if freedom == 0:
        return None, ""
    logs = np.log(table[:, -1])
    mean = np.bincount(cell, weights=logs) / count
    noise = float(np.sqrt(((logs - mean[cell]) ** 2).sum() / freedom))
    return noise, f"{int((count > 1).sum())} cells of {int(count[count > 1].sum())} repeated runs"
