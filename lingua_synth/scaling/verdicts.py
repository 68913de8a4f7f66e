"""The words every claim is answered in, and what an answer needs: an interval on one side of a margin.

"No significant difference" is not evidence that there is none: a study of three runs finds none anywhere. So a claim
comes with the *region* its number lies in when the claim is true, whose ends are the smallest effects that count, and
both answers have to be earned by the interval:

    supported   the whole interval lies inside the region,
    rejected    the whole interval lies outside (an equivalence test, or test of non-inferiority),
    undecided   anything else, or no interval.

With an honest interval of level 1 - a, a claim whose true effect is at or under its margin comes out supported with a
chance of at most a/2, and one whose true effect is at or over it comes out rejected with a chance of at most a/2. Both
cannot happen at once. Here are the words and the rule; what is asked and how the answer reads is with those who ask
(`analysis/verdicts.py`, `report/claims.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lingua_synth.scaling.regions import t_quantile

SUPPORTED, REJECTED, UNDECIDED = "supported", "rejected", "undecided"
VERDICTS = (SUPPORTED, REJECTED, UNDECIDED)
LEVEL = 0.95
MANY = 1_000_000
"""Degrees of freedom of a scatter that is known."""


@dataclass(frozen=True)
class Region:
    """Where the number lies when the claim is true; ends may be infinite."""

    low: float
    high: float

    def verdict(self, low: float, high: float) -> str:
        """Of the interval [low, high]; NaN ends leave it undecided."""
        if math.isnan(low) or math.isnan(high):
            return UNDECIDED
        # An open end of the interval ("beyond reach") lies inside a region that is open there.
        if (low > self.low or self.low == -math.inf) and (high < self.high or self.high == math.inf):
            return SUPPORTED
        return REJECTED if high < self.low or low > self.high else UNDECIDED


def above(margin: float) -> Region:
    """The claim "greater than `margin`"."""
    return Region(margin, math.inf)


def below(margin: float) -> Region:
    """The claim "less than `margin`"."""
    return Region(-math.inf, margin)


@dataclass(frozen=True)
class Estimate:
    """A number with the variance of its error, near normal."""

    value: float = math.nan
    variance: float = math.nan
    freedom: int = 0
    """Degrees of freedom of the variance."""
    why_not: str = ""
    """Why there is no variance, and so no interval."""
    how: str = ""
    """By what it was found, in words."""

    def interval(self, level: float) -> tuple[float, float]:
        """By Student's t; NaN without a variance."""
        if self.why_not or self.freedom < 1 or not math.isfinite(self.variance):
            return math.nan, math.nan
        half = t_quantile(self.freedom, level) * math.sqrt(self.variance)
        return self.value - half, self.value + half


def check_margin(margin: float, what: str = "margin") -> None:
    """ValueError unless `margin` is a finite number, 0 or more."""
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"{what} is the smallest effect that counts, 0 or more; got {margin}")
