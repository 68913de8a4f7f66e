"""Would the law have foretold the largest runs? Fit on the small ones, predict the held-out ones, beside a naive
guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit, _columns, fit
from lingua_synth.scaling.laws import ArrayLike, Law
from lingua_synth.scaling.records import record


@dataclass(frozen=True, eq=False)
class Holdout:
    """A fit to some runs and its error on the others."""

    fit: ScalingFit
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

    @property
    def num_test(self) -> int:
        return len(self.observed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(
            {
                "error": self.error,
                "naive_error": self.naive_error,
                "num_test": self.num_test,
                "predicted": self.predicted,
                "observed": self.observed,
                "naive_loss": self.naive_loss,
                "extrapolation_factor": self.extrapolation_factor,
                "fit": self.fit.to_dict(),
            }
        )

    def __str__(self) -> str:
        note = "" if self.fit.identifiable else "; the fit is not identifiable: " + "; ".join(self.fit.reasons)
        return (
            f"{self.fit.law.formula}: fitted to {self.fit.num_points} runs, error {100 * self.error:.3g} % on "
            f"{self.num_test} held out (up to {self.extrapolation_factor:.3g} times beyond); "
            f"same as the largest run: {100 * self.naive_error:.3g} %{note}"
        )


def holdout(
    law: Law,
    *,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    loss: ArrayLike,
    test: ArrayLike,
    objective: str = "huber",
    delta: float = 1e-3,
    n_definition: str = "non_embedding",
) -> Holdout:
    """Fit `law` where `test` is False, predict where it is True: e.g. `test=D > 100e9` or `test=N > 2.5e9`.

    Other arguments as in `fit`. ValueError for a mask of another length or type, and for one that holds out no run or
    leaves fewer than the law has parameters.
    """
    columns = _columns(law, {"N": N, "D": D}, loss)
    losses = columns.pop("loss")
    mask = np.asarray(test)
    if mask.dtype != np.bool_ or mask.shape != losses.shape:
        raise ValueError(
            f"test must be True or False for each of the {len(losses)} runs; got {mask.dtype} of shape {mask.shape}"
        )
    if not mask.any():
        raise ValueError(f"test holds out none of the {len(losses)} runs")
    kept = {name: values[~mask] for name, values in columns.items()}
    held = {name: values[mask] for name, values in columns.items()}
    fitted = fit(law, **kept, loss=losses[~mask], objective=objective, delta=delta, n_definition=n_definition)
    observed = losses[mask]
    predicted = fitted.predict(**held)
    compute = np.sum([np.log(values) for values in kept.values()], axis=0)
    # Seeds of the largest run are averaged.
    naive = float(np.mean(losses[~mask][compute >= compute.max() - 1e-9]))
    return Holdout(
        fit=fitted,
        error=float(np.mean(np.abs(predicted - observed) / observed)),
        naive_error=float(np.mean(np.abs(naive - observed) / observed)),
        predicted=predicted,
        observed=observed,
        naive_loss=naive,
        extrapolation_factor=float(np.max(fitted.extrapolation_factor(**held))),
    )
