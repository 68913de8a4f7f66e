"""Ratios: exact shares of the training tokens, and the integer plan they make of a budget.

"2/3", "0.33", 0.33 ──parse_ratio──> Fraction ──parse_ratios (they sum to 1)──> plan_sequences ──> sequences per source

Every sequence is `seq_len` tokens of one source, so a share of the sequences is a share of the tokens. Floats are
taken at the decimal value they are written with (0.1 is one tenth), and nothing is normalized: configurations merge,
and a mixture whose merged ratios no longer sum to 1 must be seen.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Protocol

import numpy as np

Ratio = str | float | int | Fraction


class HasRatios(Protocol):
    """What splits a budget: a mixture of constant ratios."""

    @property
    def ratios(self) -> dict[str, Fraction]: ...


# Decimals with a short exponent, or a fraction: Fraction() itself would spend minutes on "1e999999999".
_RATIO = re.compile(r"(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?|\d+/0*[1-9]\d*", re.IGNORECASE)
_FORMS = "write it as a fraction ('2/3') or a decimal ('0.33')"


def parse_ratio(x: Ratio) -> Fraction:
    """The exact value of a ratio: "2/3", "0.33", 0.33 (one reads 33/100, not the nearest float), 1, a Fraction.

    Raises ValueError for what is no number, and for negative, infinite and not-a-number values.
    """
    if isinstance(x, Fraction):
        exact = x
    elif isinstance(x, bool) or not isinstance(x, str | float | int | Decimal | np.floating | np.integer):
        raise ValueError(f"no ratio: {x!r}; {_FORMS}")
    else:
        text = "".join(str(x).split())
        if text.startswith("-"):
            raise ValueError(f"a ratio cannot be negative, got {x}; use 0 to leave a source out")
        if not _RATIO.fullmatch(text):
            raise ValueError(f"no ratio: {x!r}; {_FORMS}")
        exact = Fraction(text)
    if exact < 0:
        raise ValueError(f"a ratio cannot be negative, got {x}; use 0 to leave a source out")
    return exact


def plan_sequences(num_sequences: int, ratios: Mapping[str, Ratio] | HasRatios) -> dict[str, int]:
    """Split a budget of sequences over sources; the result always sums to `num_sequences`.

    Largest remainder: each source gets the floor of its share, and the sequences left over go to the largest
    fractional parts, ties by name. Every source ends within one sequence of `ratio * num_sequences`.

    This is the apportionment closest to the ratios for one budget. A schedule has to be close at every budget on the
    way; with two sources its counts are these, with more they can differ by a sequence or two.
    Raises ValueError as `Mixture` does, and for a negative or fractional budget.
    """
    exact = parse_ratios(ratios) if isinstance(ratios, Mapping) else ratios.ratios
    num_sequences = validate_count("num_sequences", num_sequences)
    plan = {name: math.floor(ratio * num_sequences) for name, ratio in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (plan[name] - exact[name] * num_sequences, name))
    for name in by_remainder[: num_sequences - sum(plan.values())]:
        plan[name] += 1
    return plan


def validate_count(what: str, value: int, at_least: int = 0) -> int:
    """`value` as an int; ValueError if it is not a whole number of at least `at_least`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{what} must be a whole number, got {value!r} (write 2_000_000, not 2e6)") from None
    if isinstance(value, bool) or count < at_least:
        raise ValueError(f"{what} must be a whole number of at least {at_least}, got {value!r}")
    return count


def parse_ratios(ratios: Mapping[str, Ratio] | Iterable[tuple[str, Ratio]]) -> dict[str, Fraction]:
    """Exact ratios by source, from a mapping or pairs; ValueError unless they sum to exactly 1, each name once."""
    pairs = ratios.items() if isinstance(ratios, Mapping) else ratios
    exact: dict[str, Fraction] = {}
    for name, ratio in pairs:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"a source needs a name, got {name!r}")
        if name in exact:
            raise ValueError(f"source {name!r} is named twice in the mixture; give each source one ratio")
        try:
            exact[name] = parse_ratio(ratio)
        except ValueError as error:
            raise ValueError(f"source {name!r}: {error}") from None
    if not exact:
        raise ValueError("a mixture needs at least one source, e.g. {'web': '1'}")
    total = sum(exact.values(), Fraction(0))
    if total != 1:
        raise ValueError(f"the ratios must sum to exactly 1, got {_exactly(total)}: {_way_to_one(exact, total)}")
    return exact


def _exactly(x: Fraction) -> str:
    return str(x) if x.denominator == 1 else f"{x} = {float(x):.6g}"


def _way_to_one(exact: Mapping[str, Fraction], total: Fraction) -> str:
    shown = dict(list(exact.items())[:8])
    more = f", ... ({len(exact)} in all)" if len(exact) > len(shown) else ""
    given = ", ".join(f"{name} {_exactly(ratio)}" for name, ratio in shown.items()) + more
    if total == 0:
        return f"{given}; give at least one source a ratio"
    verb, gap = ("raise", 1 - total) if total < 1 else ("lower", total - 1)
    same_proportions = ", ".join(f"{name} {ratio / total}" for name, ratio in shown.items()) + more
    return f"{given}; {verb} them by {_exactly(gap)} in all, or keep the proportions with {same_proportions}"


def parse_max_epochs(max_epochs: Mapping[str, Ratio] | Ratio, names: Iterable[str]) -> dict[str, Fraction]:
    """Exact passes by source: one number for all, or one by name (others: 1). ValueError for what is not above 0."""
    names = list(names)
    if not isinstance(max_epochs, Mapping):
        given: Mapping[str, Ratio] = dict.fromkeys(names, max_epochs)
    else:
        given = max_epochs
        for name in given:
            if name not in names:
                raise ValueError(f"max_epochs names {name!r}, which is no source; there are: {', '.join(names)}")
    parsed = {}
    for name in names:
        value = given.get(name, 1.0)
        try:
            parsed[name] = parse_ratio(value)
        except ValueError:
            parsed[name] = Fraction(0)
        if parsed[name] == 0:
            raise ValueError(
                f"max_epochs of source {name!r} must be a positive, finite number of passes, got {value!r}; "
                "1.0 repeats no token"
            )
    return parsed
