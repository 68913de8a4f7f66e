"""Which mixtures of the paper a pool of tokens can serve, and up to which budget.

The design of Kang et al. 2025 (section 3 and its validation at 200B tokens): natural text alone, and every kind of
synthetic text alone and at 33 % and 67 % beside natural text, at budgets from 1B to 200B tokens. A 67 % mixture of 200B
tokens needs 134B synthetic ones: with 100B the paper could not train it, nor can anybody without repeating tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lingua_synth.mixture.mixture import Mixture
from lingua_synth.mixture.plan import MixturePlan, SourcePlan, plan_report, table
from lingua_synth.mixture.ratios import parse_ratio, validate_count

SYNTHETIC_SHARES = (Fraction(33, 100), Fraction(67, 100), Fraction(1))
BUDGETS = tuple(b * 10**9 for b in (1, 5, 10, 20, 50, 100, 200))
"""Training tokens; the paper names the ends, 1B and 200B, and 50B and 100B."""


@dataclass(frozen=True)
class PoolRow:
    """One mixture against the pool."""

    mixture: str
    plans: tuple[MixturePlan, ...]
    """By budget."""
    max_tokens: int
    """Most training tokens it can serve within max_epochs."""
    limited_by: str
    """The source that ends it."""

    def fits(self) -> tuple[bool, ...]:
        """Whether it can be trained, by budget; a pool is a round number, so one sequence more is let pass."""
        return tuple(all(_has_enough(line) for line in plan.sources) for plan in self.plans)


@dataclass(frozen=True)
class PoolReport:
    """Every mixture of the design against the pool, by budget; prints as a table."""

    budgets: tuple[int, ...]
    rows: tuple[PoolRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: by mixture, the most tokens, what limits it, and whether each budget fits."""
        return {
            row.mixture: {
                "max_tokens": row.max_tokens,
                "limited_by": row.limited_by,
                "fits": dict(zip(map(str, self.budgets), row.fits(), strict=True)),
            }
            for row in self.rows
        }

    def __str__(self) -> str:
        head = ("mixture", *map(in_words, self.budgets), "lasts", "limited by")
        rows = [
            (
                row.mixture,
                *("yes" if fits else _short(plan) for fits, plan in zip(row.fits(), row.plans, strict=True)),
                in_words(row.max_tokens),
                row.limited_by,
            )
            for row in self.rows
        ]
        return table(head, rows)


def paper_mixtures(natural: str, synthetic: Sequence[str]) -> dict[str, dict[str, Fraction]]:
    """The paper's mixtures over these sources: ratios by name, natural alone first."""
    mixtures = {natural: {natural: Fraction(1)}}
    for name in synthetic:
        for share in SYNTHETIC_SHARES:
            if share == 1:
                mixtures[name] = {name: share}
            else:
                percent = share * 100
                mixtures[f"{percent}% {name} + {100 - percent}% {natural}"] = {natural: 1 - share, name: share}
    return mixtures


def fit_pool(
    pool: Mapping[str, int],
    natural: str,
    *,
    budgets: Sequence[int] = BUDGETS,
    seq_len: int = 4096,
    max_epochs: float = 1.0,
) -> PoolReport:
    """Which mixtures of the paper the pool can serve at which budgets, exact to the sequence.

    `pool`: tokens by source; every source but `natural` is taken for a kind of synthetic text. Budgets are training
    tokens, rounded down to whole sequences; figures are exact to one sequence. Raises ValueError for a
    pool without `natural`, and for counts and budgets that are none.
    """
    if natural not in pool:
        raise ValueError(f"no source {natural!r} in the pool; it has {', '.join(map(repr, pool)) or 'none'}")
    tokens = {name: validate_count(f"tokens of {name!r}", count) for name, count in pool.items()}
    sequences = [validate_count("a budget", budget, at_least=1) // seq_len for budget in budgets]
    rows = []
    for name, ratios in paper_mixtures(natural, [source for source in tokens if source != natural]).items():
        mixture = Mixture(ratios, max_epochs)
        used = {source: tokens[source] for source in ratios}
        plans = tuple(plan_report(used, mixture, count, seq_len, validate=False) for count in sequences)
        ends = {line.name: line.runs_out_at for line in plans[0].sources if line.runs_out_at is not None}
        limited_by = min(ends, key=lambda source: (ends[source], source))
        rows.append(PoolRow(name, plans, ends[limited_by] * seq_len, limited_by))
    return PoolReport(tuple(budgets), tuple(rows))


def _has_enough(line: SourcePlan) -> bool:
    return line.planned_sequences <= line.limit_sequences + 1


def _short(plan: MixturePlan) -> str:
    line = max((line for line in plan.sources if not _has_enough(line)), key=lambda line: line.epochs / line.max_epochs)
    return f"no: {in_words(line.planned_tokens)} {line.name}"


def in_words(tokens: int) -> str:
    """A count of tokens with three digits: 134B, 1.05M."""
    for factor, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        # 999,950,000 is 1B, not 1e+03M.
        if tokens >= 0.9995 * factor:
            return f"{tokens / factor:.3g}{unit}"
    return str(tokens)


def parse_tokens(text: str) -> int:
    """A count of tokens as it is written: 134_000_000_000, 134B, 0.5T. ValueError for anything else."""
    word = "".join(str(text).split()).replace("_", "").replace(",", "")
    factor = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}.get(word[-1:].upper(), 1)
    try:
        count = parse_ratio(word[:-1] if factor > 1 else word) * factor
    except ValueError:
        count = Fraction(1, 2)
    if count.denominator != 1:
        raise ValueError(f"no count of tokens: {text!r}; write 100_000_000_000 or 100B")
    return int(count)
