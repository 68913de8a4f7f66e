"""Collapse over rounds: each sign of it, tested against round 0 of the same line of models, with seeds as the units.

For a statistic y, seed s and round n let g = change of y from round 0 of seed s, oriented so that more is worse:

    loss, tail_loss     ln(y_n / y_0)       held-out loss, on all tokens and on those of rare types
    types, tail_mass    1 - y_n / y_0       what the text has lost of its types and of its rare types

Three questions are asked of the g of a regime, all by Student's t over seeds (seeds are the only independent repeats;
rounds of one seed follow from each other):

    gap            mean g at the last finished round
    gap_at_round   mean g at every round; these intervals hold for all rounds at once (Bonferroni)
    slope          mean over seeds of the least-squares slope of g over rounds 1, 2, ..., last: does every further round
                   add to it? Round 0 is left out, as the first step away from natural text is the gap's matter. Its
                   margin is that of the gap divided by the rounds between: the growth that would add up to a gap.

Where natural text alone was trained on the same budgets (`control`), the losses of accumulate are also held to that,
round by round: g = ln(y_n / control_n). Tests of it end in `_to_control`.

Verdicts by the rule of `scaling/verdicts.py`: supported when the whole interval lies above the margin, rejected when
it lies wholly below, else undecided; so "no collapse" has to be earned as "collapse" has. In Shumailov et al. 2023 and
Dohmatob et al. 2024 ("A tale of tails", arXiv 2402.07043) the tail goes first; Gerstgrasser et al. 2024 expect a
bounded gap where text accumulates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lingua_synth.analysis.verdicts import CollapseTest, Question
from lingua_synth.scaling.verdicts import LEVEL, Estimate

TO_CONTROL = "_to_control"
Series = Mapping[int, Mapping[int, float]]
"""Seed -> round -> value; round 0 is what the others are compared with."""


@dataclass(frozen=True)
class Statistic:
    """One sign of collapse."""

    name: str
    """Also the name of its margin."""
    column: str
    """Of rounds.csv."""
    falls: bool
    """Whether collapse makes it smaller."""
    title: str
    claim: str
    unit: str
    words: tuple[str, str]

    def change(self, value: float, start: float) -> float:
        """From round 0; more is worse."""
        return 1 - value / start if self.falls else math.log(value / start)


STATISTICS = (
    Statistic("loss", "loss_macro", False, "held-out loss", "the held-out loss is higher than at round 0",
              "of the loss", ("higher loss", "lower loss")),
    Statistic("tail_loss", "tail_loss", False, "loss on rare tokens",
              "the held-out loss on tokens of rare types is higher than at round 0",
              "of the loss on rare tokens", ("rare tokens are predicted worse", "rare tokens are predicted better")),
    Statistic("types", "text_types", True, "token types of the text",
              "the text that the round adds holds fewer token types than natural text, at equal tokens",
              "of the types", ("fewer types", "more types")),
    Statistic("tail_mass", "text_tail_mass", True, "share of rare types in the text",
              "rare types take up less of the text that the round adds than of natural text",
              "of the share of rare types", ("rare types take up less", "rare types take up more")),
)  # fmt: skip


def statistic_tests(
    statistic: Statistic,
    regime: str,
    values: Series,
    *,
    margin: float,
    level: float = LEVEL,
    control: Series | None = None,
) -> list[CollapseTest]:
    """The tests of one statistic in one regime: gap, a gap_at_round for each round, and slope from two rounds on.

    Seeds without round 0 are left out, in a round those that have not reached it. With `control` the change of a round
    is the one from that round of the control, for seeds and rounds that both have. ValueError for values that are not
    positive numbers at round 0, or not finite.
    """
    changes = _changes(statistic, values) if control is None else _changes_to(statistic, values, control)
    base, ending, claim = "round 0", "", statistic.claim
    if control is not None:
        base, ending = "natural text alone at the same budget", TO_CONTROL
        claim = claim.replace("at round 0", f"with {base}")
    rounds = sorted({n for of_seed in changes.values() for n in of_seed})
    if not rounds:
        return []
    tests = []
    for name, at, share in (
        ("gap", rounds[-1:], level),
        ("gap_at_round", rounds, 1 - (1 - level) / len(rounds)),
    ):
        question = Question(f"{statistic.name}_{name}{ending}", claim, statistic.unit, margin, statistic.words, share)
        for n in at:
            found = np.array([of_seed[n] for of_seed in changes.values() if n in of_seed])
            where = f"round {n}, {_seeds(len(found))}"
            tests.append(question.answer(regime, base, _mean(found), where=where, num_pairs=len(found)))
    if rounds[-1] > 1:
        tests.append(_slope(statistic, regime, changes, rounds[-1], margin, level, base, ending))
    return tests


def _slope(
    statistic: Statistic,
    regime: str,
    changes: Series,
    last: int,
    margin: float,
    level: float,
    base: str,
    ending: str,
) -> CollapseTest:
    x = np.arange(1, last + 1) - (last + 1) / 2
    whole = [of_seed for of_seed in changes.values() if all(n in of_seed for n in range(1, last + 1))]
    slopes = np.array([x @ np.array([of_seed[n] for n in range(1, last + 1)]) / (x @ x) for of_seed in whole])
    worse, better = statistic.words
    question = Question(
        f"{statistic.name}_slope{ending}",
        f"{statistic.title}: every further round adds to the change from {base}",
        f"{statistic.unit} per round",
        margin / (last - 1),
        (f"{worse} with every round", f"{better} with every round"),
        level,
    )
    where = f"rounds 1 to {last}, {_seeds(len(slopes))}"
    return question.answer(regime, base, _mean(slopes), where=where, num_pairs=len(slopes))


def round_tests(
    values: Mapping[str, Mapping[str, Series]], margins: Mapping[str, float], level: float = LEVEL
) -> list[CollapseTest]:
    """Every test of every regime: `values` is regime -> name of a statistic -> seed -> round -> value."""
    return [
        test
        for regime, of_regime in values.items()
        for statistic in STATISTICS
        if statistic.name in of_regime
        for test in statistic_tests(
            statistic, regime, of_regime[statistic.name], margin=margins[statistic.name], level=level
        )
    ]


def _changes(statistic: Statistic, values: Series) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = {}
    for seed, of_seed in values.items():
        if 0 not in of_seed:
            continue
        for n, value in of_seed.items():
            is_good = math.isfinite(value) and (value > 0 or (statistic.falls and n > 0 and value == 0))
            if not is_good:
                raise ValueError(f"{statistic.name} of seed {seed} at round {n} is {value}, which has no change from 0")
        found[seed] = {n: statistic.change(value, of_seed[0]) for n, value in of_seed.items() if n}
    return found


def _changes_to(statistic: Statistic, values: Series, control: Series) -> dict[int, dict[int, float]]:
    """As `_changes`, from the same round of the control."""
    found: dict[int, dict[int, float]] = {}
    for seed, of_seed in values.items():
        beside = control.get(seed, {})
        both = sorted({n for n in of_seed if n} & set(beside))
        for value in (*(of_seed[n] for n in both), *(beside[n] for n in both)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{statistic.name} of seed {seed} is {value}, which has no change from the control")
        if both:
            found[seed] = {n: statistic.change(of_seed[n], beside[n]) for n in both}
    return found


def _mean(values: np.ndarray) -> Estimate:
    if not len(values):
        return Estimate(why_not="no seed has finished these rounds")
    if len(values) < 2:
        return Estimate(float(values[0]), why_not="one seed does not show how lines of models scatter; run more seeds")
    return Estimate(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1)


def _seeds(num: int) -> str:
    return f"{num} seed{'s' if num != 1 else ''}"
