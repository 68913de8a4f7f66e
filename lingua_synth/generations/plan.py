"""Regimes: which text a round trains on, and on how many tokens, as exact fractions.

Let p_k be the synthetic share of round k and B the budget of round 0. Text k holds at least p_k B tokens.

    replace            round n: text n, share p_n, and natural text, share 1 - p_n; budget B. Earlier text is gone.
                       Shumailov et al. 2023 (arXiv 2305.17493): p = 1, and their variant that keeps a tenth of the
                       original data is p = 9/10.
    accumulate         round n: all B natural tokens, and of every text k <= n its p_k B tokens. The budget grows to
                       B (1 + p_1 + ... + p_n). With p = 1 the setting of Gerstgrasser et al. 2024 (arXiv 2404.01413).
    accumulate_fixed   the same union in the same proportions at budget B: natural text has 1 / (1 + p_1 + ... + p_n),
                       text k has p_k of that. Kazdan et al. 2024 (arXiv 2410.16713) call it accumulate-subsample.
    control            round n: natural text alone on the budget of accumulate's round n: what that many tokens do by
                       themselves. No regime: it writes no text.

A run reads a source in an order that its name and the seed decide, so the natural tokens of a later round are the first
ones of round 0, and a text's tokens in a later round those of the round that added it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from lingua_synth.mixture.ratios import parse_ratio

REGIMES = ("replace", "accumulate", "accumulate_fixed")
CONTROL = "control"
"""In the place of a regime: natural text alone at accumulate's budgets."""
NATURAL = "natural"
SHARED = "shared"
"""In the place of a regime: what all regimes of a seed have in common, round 0 and the text its model writes."""


def ratios_of(ratios: Sequence[Any], rounds: int) -> list[Fraction]:
    """The exact synthetic shares of rounds 1 to `rounds`; the last is repeated. ValueError outside (0, 1], for none,
    and for more shares than rounds."""
    if not ratios:
        raise ValueError('ratios are the synthetic shares of the rounds, at least one, e.g. ["1"]')
    if len(ratios) > rounds:
        raise ValueError(f"there are {len(ratios)} ratios for {rounds} rounds; leave some out, or raise rounds")
    exact = [parse_ratio(ratio) for ratio in ratios]
    for ratio in exact:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratios are shares of a round's tokens, above 0 and at most 1; got {ratio}")
    return exact + [exact[-1]] * (rounds - len(exact))


def source_name(round_: int) -> str:
    """The source that the text of round `round_` is in a mixture."""
    return f"synthetic-{round_}"


def mixture_of(regime: str, round_: int, ratios: Sequence[Fraction]) -> dict[str, Fraction]:
    """Exact share of each source in round `round_`, summing to 1; sources without a share are left out.

    `ratios[k - 1]` is the synthetic share of round k. ValueError for an unknown regime.
    """
    _known(regime)
    if round_ == 0 or regime == CONTROL:
        return {NATURAL: Fraction(1)}
    if regime == "replace":
        share = ratios[round_ - 1]
        return {name: x for name, x in ((NATURAL, 1 - share), (source_name(round_), share)) if x}
    whole = 1 + sum(ratios[:round_], Fraction(0))
    return {NATURAL: 1 / whole} | {source_name(k): ratios[k - 1] / whole for k in range(1, round_ + 1)}


def budget_of(regime: str, round_: int, budget: int, ratios: Sequence[Fraction]) -> int:
    """Training tokens of round `round_`; the ratios make whole tokens of `budget` (`validate_generations`)."""
    _known(regime)
    if regime not in ("accumulate", CONTROL):
        return budget
    tokens = budget * (1 + sum(ratios[:round_], Fraction(0)))
    assert tokens.denominator == 1, "validate_generations refuses ratios that cut a step"
    return int(tokens)


def _known(regime: str) -> None:
    if regime not in (*REGIMES, CONTROL):
        raise ValueError(f"no regime {regime!r}; there are: {', '.join(REGIMES)}")


def text_name(regime: str, round_: int, seed: int) -> str:
    """Folder name of the text that round `round_` adds; text 1 is shared by the regimes."""
    return f"{SHARED if round_ == 1 else regime}-{round_}-s{seed}"


@dataclass(frozen=True)
class Training:
    """One training of one round; of round 0, for all regimes of its seed."""

    regime: str
    """`shared` for round 0."""
    round: int
    seed: int
    tokens: int
    """Training budget."""
    ratios: dict[str, Fraction]
    """Exact share of each source."""
    texts: dict[str, str]
    """Synthetic source -> folder name of its text."""

    @property
    def mixture(self) -> str:
        """Name in the runs table."""
        return NATURAL if set(self.ratios) == {NATURAL} else f"{self.regime}-{self.round}"

    def run_folder(self, out: str | Path, size: str) -> Path:
        """Where a model of `size` is trained."""
        from lingua_synth.study.grid import run_id

        return Path(out) / "runs" / run_id(self.mixture, size, self.tokens, self.seed)


def plan_round(
    round_: int, regimes: Sequence[str], seeds: Sequence[int], budget: int, ratios: Sequence[Fraction]
) -> list[Training]:
    """The trainings of a round, seeds within regimes."""
    found = []
    for regime in regimes if round_ else regimes[:1]:
        mixture = mixture_of(regime, round_, ratios)
        for seed in seeds:
            texts = {
                source_name(k): text_name(regime, k, seed) for k in range(1, round_ + 1) if source_name(k) in mixture
            }
            tokens = budget_of(regime, round_, budget, ratios)
            found.append(Training(regime if round_ else SHARED, round_, seed, tokens, mixture, texts))
    return found
