"""A test of collapse: one statistic, what it would have to show, and the verdict with its reason.

A question carries a *margin*, the smallest effect that would count, and is answered by the rule of
`scaling/verdicts.py`: supported when the whole interval lies above the margin, rejected when it lies below, undecided
when it holds the margin or there is no interval. A real but smaller effect than the margin is rejected, and the words
beside it say that it is real; with a margin of 0 the rule is a plain test of the sign.

Every statistic is oriented so that the claim is "greater than": larger is worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lingua_synth.scaling.records import record
from lingua_synth.scaling.verdicts import LEVEL, REJECTED, SUPPORTED, Estimate, above, check_margin


@dataclass(frozen=True)
class CollapseTest:
    """One statistic of one mixture against its base, with interval, rule and verdict."""

    name: str
    """Which statistic: loss_gap, loss_gap_at_budget, gap_growth, small_ratio_slope, irreducible_loss, data_exponent,
    tail_loss, tail_excess, support, tail_mass."""
    mixture: str
    base: str
    where: str
    """On which runs, e.g. "at 50B tokens, 6 sizes"."""
    claim: str
    """What collapse would mean here, in a sentence."""
    unit: str
    estimate: float
    """Positive is worse than the base; NaN where the data give none."""
    low: float
    high: float
    level: float
    """Of the interval [low, high]; ends may be infinite."""
    margin: float
    """The smallest estimate that counts, in `unit`."""
    verdict: str
    rule: str
    why: str
    """What the interval, or its absence, says."""
    num_pairs: int
    """Runs, checkpoints or corpora that were compared with one of the base."""
    budget: float = math.nan
    """Training tokens, where the test is of one budget."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(self.__dict__)

    def __str__(self) -> str:
        shown = "no number"
        if math.isfinite(self.estimate):
            shown = f"{self.estimate:+.4g} [{self.low:+.4g}, {self.high:+.4g}] {self.unit}, margin {self.margin:.3g}"
        return f"{self.verdict:<9} {self.name} of {self.mixture} {self.where}: {shown}; {self.why}"


@dataclass(frozen=True)
class Question:
    """What is asked of the data, apart from the mixture it is asked of."""

    name: str
    claim: str
    unit: str
    margin: float
    words: tuple[str, str]
    """What a number above 0 means, and one below."""
    level: float = LEVEL

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level is a share between 0 and 1, e.g. 0.95; got {self.level}")
        check_margin(self.margin)

    @property
    def rule(self) -> str:
        """How the verdict follows from the interval, in words."""
        return (
            f"supported if the whole {100 * self.level:.4g} % interval is above {self.margin:.3g} {self.unit}, "
            "rejected if it is wholly below, else undecided"
        )

    def answer(
        self,
        mixture: str,
        base: str,
        found: Estimate,
        *,
        where: str,
        num_pairs: int,
        remark: str = "",
        budget: float = math.nan,
    ) -> CollapseTest:
        """`judge` on an estimate with a standard error."""
        ends = found.interval(self.level)
        return self.judge(
            mixture,
            base,
            found.value,
            ends,
            where=where,
            num_pairs=num_pairs,
            why_not=found.why_not,
            remark=remark,
            budget=budget,
        )

    def judge(
        self,
        mixture: str,
        base: str,
        estimate: float,
        interval: tuple[float, float],
        *,
        where: str,
        num_pairs: int,
        why_not: str = "",
        remark: str = "",
        budget: float = math.nan,
    ) -> CollapseTest:
        """The test with its verdict. `why_not`: the reason there is no interval; the verdict is then undecided."""
        low, high = (math.nan, math.nan) if why_not else interval
        verdict = above(self.margin).verdict(low, high)
        why = why_not or _why(verdict, low, high, self.words)
        return CollapseTest(
            name=self.name,
            mixture=mixture,
            base=base,
            where=where,
            claim=self.claim,
            unit=self.unit,
            estimate=float(estimate),
            low=float(low),
            high=float(high),
            level=self.level,
            margin=self.margin,
            verdict=verdict,
            rule=self.rule,
            why=f"{why}; {remark}" if remark else why,
            num_pairs=num_pairs,
            budget=budget,
        )


def _why(verdict: str, low: float, high: float, words: tuple[str, str]) -> str:
    worse, better = words
    if verdict == SUPPORTED:
        return f"{worse}, by more than the margin"
    if verdict == REJECTED:
        if low > 0:
            return f"{worse}, but by less than the margin"
        return better if high < 0 else "no harm that reaches the margin"
    if math.isnan(low) or math.isnan(high):
        return "no interval"
    if low > 0:
        return f"{worse}; whether by more than the margin is not shown"
    if math.isinf(low) or math.isinf(high):
        return "the runs do not bound it"
    return "the interval holds both a harm that counts and none"
