"""Reading a fit for the eye: an estimate with its interval where the fit is identifiable, the reasons where not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingua_synth.scaling import MixtureFit, ScalingFit, StudyFits

LEVEL = 0.95
"""Level of every band and interval of a report."""


def identified(entry: MixtureFit | None) -> ScalingFit | None:
    """The fit when its numbers may be shown, else None."""
    return entry.fit if entry is not None and entry.identifiable else None


def reasons(entry: MixtureFit | None) -> str:
    """Why no number of this fit may be shown, as one clause; it may begin with the name of a parameter."""
    return "; ".join(reason.strip().rstrip(".") for reason in entry.reasons) if entry is not None else "no fit was made"


def estimate(entry: MixtureFit, name: str) -> tuple[float, float, float]:
    """(value, low, high) of a parameter of an identifiable fit; the limits are NaN without an interval."""
    fit = identified(entry)
    assert fit is not None, "only identifiable fits have numbers to show"
    low, high = entry.interval(name)
    if not (math.isfinite(low) and math.isfinite(high)):
        # An end that the runs do not show is no number to draw or print.
        low = high = math.nan
    return float(fit.params[name]), float(low), float(high)


def target_of(fits: StudyFits | None, target: str | None = None) -> str:
    """The column that is drawn: `target` when given, else the fitted one, else loss_macro."""
    return target or (fits.target if fits is not None else "loss_macro")


def n_definition_of(fits: StudyFits | None) -> str:
    """Which count N is: the one the fits used, else non_embedding."""
    return fits.n_definition if fits is not None else "non_embedding"
