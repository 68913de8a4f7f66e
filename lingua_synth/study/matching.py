"""The same cell under another tokenizer: so many tokens of it, and such shares of them, that what is matched is equal.

Budgets and ratios of a study are written in tokens of its first tokenizer, the reference. With f_s and g_s the bytes of
text per token of source s under the reference and under another tokenizer, and r_s a ratio of the reference,

    bytes      b_s = r_s f_s / sum(r f)                what the source's share is of the text
    shares     q_s = (b_s / g_s) / sum(b / g)          of the other's tokens, so that it has the same share of the text
    budget     tokens' = tokens sum(r f) / sum(q g)    as much text; or as many tokens; or as many FLOPs

`q` is rounded to a billionth and the budget to whole optimizer steps, so what is matched is met within half a step.
The text is the same in amount and kind: the windows of it that a run reads are drawn in each vocabulary by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from lingua_synth.mixture.ratios import plan_sequences

MATCHES = ("bytes", "tokens", "flops")
SHARES = ("bytes", "tokens")
DENOMINATOR = 10**9
"""Ratios of another tokenizer than the first are whole billionths: below a sequence of any run of so many."""


@dataclass(frozen=True)
class MatchedBudget:
    """A budget under one tokenizer."""

    tokens: int
    """A whole number of optimizer steps."""
    deviation: float
    """Of what is matched, from the reference's, relative: 0.001 is 0.1 % more."""


def share_of_tokens(
    ratios: Mapping[str, Fraction], theirs: Mapping[str, Fraction], ours: Mapping[str, Fraction]
) -> dict[str, Fraction]:
    """Shares of our tokens that are the same shares of text as `ratios` of theirs; `theirs` and `ours` are bytes per
    token by source. Whole billionths that sum to exactly 1; a source that is read keeps at least one of them."""
    needed = {source: ratio * theirs[source] / ours[source] for source, ratio in ratios.items()}
    total = sum(needed.values())
    exact = {source: share / total for source, share in needed.items()}
    whole = plan_sequences(DENOMINATOR, exact)
    for source in [source for source, share in exact.items() if share and not whole[source]]:
        whole[max(whole, key=lambda name: whole[name])] -= 1
        whole[source] = 1
    return {source: Fraction(count, DENOMINATOR) for source, count in whole.items()}


def share_of_bytes(ratios: Mapping[str, Fraction], rates: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Shares of the text, from shares of tokens and bytes per token, by source."""
    read = {source: ratio * rates[source] for source, ratio in ratios.items()}
    total = sum(read.values())
    return {source: share / total for source, share in read.items()}


def in_decimals(share: Fraction) -> str:
    """A share of whole billionths as a ratio that a YAML shows well: 0.333412345, 1."""
    assert (share * DENOMINATOR).denominator == 1, "shares are whole billionths"
    digits = f"{share.numerator * (DENOMINATOR // share.denominator):010d}"
    return f"{digits[:-9]}.{digits[-9:]}".rstrip("0").rstrip(".")


def match_budget(asked: Fraction, amount: Callable[[int], Fraction], step_tokens: int) -> MatchedBudget:
    """The whole number of steps whose `amount(tokens)` (bytes, tokens or FLOPs; increasing) is nearest to `asked`; at
    least one. Ties go to the smaller."""
    low, high = 1, 1
    while amount(high * step_tokens) < asked:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if amount(middle * step_tokens) < asked else (low, middle)
    best = min((low, high), key=lambda steps: (abs(amount(steps * step_tokens) - asked), steps))
    return MatchedBudget(best * step_tokens, float(amount(best * step_tokens) / asked - 1))
