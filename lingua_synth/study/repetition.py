"""What the planned runs will tell of repeated data, where some of them read their sources more than once.

Per mixture: the law of repeats (`scaling.RepetitionLaw`) over its runs, in N too where there are at least three sizes,
with the U of every source where sources are passed over unequally. R_D itself is hardly ever determined; what passes
are worth in new tokens is, so both are told, with the standard errors a fit will have, and the runs that would lower
that of R_D most per GPU-hour: the study's sizes, budgets and parts, and parts and budgets of half and double.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lingua_synth.mixture.ratios import parse_ratio
from lingua_synth.model.counts import count_parameters, in_words
from lingua_synth.scaling import RepetitionLaw, expected_errors, next_runs
from lingua_synth.scaling.design import Design, NextRuns
from lingua_synth.scaling.repeats import WEAK_FACTOR
from lingua_synth.scaling.repetition import log_worth_of_repeats
from lingua_synth.scaling.repetition_fits import EVEN, FEWEST_SIZES, PASSES
from lingua_synth.study.args import DesignArgs
from lingua_synth.study.plan import PlannedRun

REPEATS = 1.01
"""From so many passes on a run counts as one that repeats tokens."""


@dataclass(frozen=True)
class RepeatsConditioning:
    """What one set of runs tells of repeats."""

    num_repeating: int
    """Of the runs of one mixture."""
    most_passes: float
    """Of any run over any source."""
    assumed_R_D: float
    design: Design | None
    """Standard errors under the law of repeats; None where the runs do not determine it."""
    reason: str
    """Why not; empty where there is a design."""
    next_runs: NextRuns | None
    candidates: tuple[tuple[str, str, str], ...]
    """(size, budget, part of every source) of the candidates of `next_runs`, by row."""

    @property
    def factor(self) -> float | None:
        """Quotient of the ends of the 95 % interval of R_D, first order."""
        if self.design is None:
            return None
        relative = self.design.standard_errors["R_D"] / self.assumed_R_D
        return math.exp(min(2 * 1.96 * relative, 700.0))

    @property
    def worth(self) -> list[tuple[float, float, float]]:
        """(passes, new tokens that they are worth in units of U, standard error), up to the passes that are planned."""
        if self.design is None:
            return []
        R, error = self.assumed_R_D, self.design.standard_errors["R_D"]
        found = []
        for passes in [*(p for p in PASSES if p < 0.95 * self.most_passes), self.most_passes]:
            log_worth, by_R = log_worth_of_repeats(np.log(np.asarray(passes)), np.asarray(R))
            value = passes * math.exp(float(log_worth))
            found.append((passes, value, value * float(by_R) * error))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "num_repeating": self.num_repeating,
            "most_passes": self.most_passes,
            "assumed_R_D": self.assumed_R_D,
            "design": self.design.to_dict() if self.design else None,
            "reason": self.reason,
            "factor_of_R_D": self.factor,
            "worth": [{"passes": p, "new_tokens": value, "error": error} for p, value, error in self.worth],
            "next_runs": self._next_rows(),
        }

    def _next_rows(self) -> list[dict[str, Any]]:
        if self.next_runs is None:
            return []
        return [
            dict(zip(("size", "budget", "part"), self.candidates[step.candidate], strict=True))
            | {"cost": step.cost, "error": step.error}
            for step in self.next_runs.steps
        ]

    def lines(self, unit: str) -> list[str]:
        """For the plan's page; costs are in `unit`."""
        head = f"  repeats: {self.num_repeating} of the runs read tokens again, up to {self.most_passes:.3g} passes"
        if self.design is None:
            return [f"{head}; {self.reason}"]
        told = ", ".join(f"{passes:.3g} for {value:.3g} +- {error:.2g}" for passes, value, error in self.worth)
        lines = [f"{head}. In new tokens / U they will be known to be worth: {told}"]
        factor = self.factor or 0.0
        if factor > WEAK_FACTOR:
            shown = f"a factor of {factor:.2g}" if factor < 1e4 else "any number"
            lines.append(
                f"  note: R_D will be weakly identified (its interval spans {shown}); quote what passes are worth"
            )
        if self.next_runs is not None:
            gains = ", ".join(
                f"{row['size']} at {row['budget']}, part {row['part']} "
                f"({row['cost']:,.3g} {unit}: +- {row['error']:.2g})"
                for row in self._next_rows()
            )
            lines.append(f"  next for R_D, per mixture: {gains}")
        return lines


def plan_repeats(
    runs: Sequence[PlannedRun],
    args: DesignArgs,
    cost: Callable[[Sequence[tuple[str, int]]], list[float] | None],
    count_of: Callable[[str], int],
) -> RepeatsConditioning | None:
    """What the runs of one mixture tell of repeats; None where none of them, or none that is known, repeats a token.

    `cost` prices (size, tokens), None: by their FLOPs; `count_of` gives N of a size by name. ValueError for an R_D that
    is not positive.
    """
    if not args.R_D > 0:
        raise ValueError(f"design.R_D says how slowly repeats lose their worth, above 0, e.g. 15.4; got {args.R_D}")
    passes = [run.passes for run in runs]
    known = [one for one in passes if one is not None]
    if len(known) < len(runs) or max(known, default=0.0) <= REPEATS:
        return None
    found = RepeatsConditioning(sum(one > REPEATS for one in known), max(known), args.R_D, None, "", None, ())
    sizes = {_count(run) for run in runs}
    is_joint = len(sizes) >= FEWEST_SIZES
    if not is_joint:
        # The size with the most different budgets and parts.
        cells = {n: len({(r.tokens, _unique(r)) for r in runs if _count(r) == n}) for n in sizes}
        best = max(cells, key=lambda n: (cells[n], n))
        runs = [run for run in runs if _count(run) == best]
    law = RepetitionLaw(size=is_joint, shares=None if _is_even(runs) else _shares(runs[0]))
    params = {"B": args.B, "beta": args.beta, "R_D": args.R_D}
    if is_joint:
        params |= {"E": args.E, "A": args.A, "alpha": args.alpha}
    else:
        params["E_at_N"] = args.E + args.A / _count(runs[0]) ** args.alpha
    try:
        design = expected_errors(law, params, noise=args.noise, **_columns(law, runs))
    except ValueError:
        where = "" if is_joint else f" at one size ({runs[0].args.synth.preset})"
        reason = (
            f"{len(runs)} runs{where} do not determine {law.formula}: plan at least 3 budgets, and two or more "
            "parts of the sources (grids.<name>.parts)"
        )
        if min(args.B, args.A if is_joint else args.B) <= 0:
            reason = f"design.B, and with several sizes design.A, are above 0; they are {args.B:g} and {args.A:g}"
        return dataclasses.replace(found, reason=reason)
    found = dataclasses.replace(found, design=design)
    # With match_repetition the part follows from the budget: there is no part to choose.
    if args.next_runs < 1 or any(run.args.synth.match_repetition is not None for run in runs):
        return found
    cut = _cut(runs)
    candidates = _candidates(runs, cut)
    columns = _candidate_columns(law, runs[0], candidates, cut, count_of)
    costs = cost([(size, tokens) for size, tokens, _ in candidates])
    try:
        suggested = next_runs(design, **columns, cost=costs, k=args.next_runs, minimize="R_D")
    except ValueError:
        return found  # nothing lowers it
    names = tuple((size, in_words(tokens), str(part)) for size, tokens, part in candidates)
    return dataclasses.replace(found, next_runs=suggested, candidates=names)


def _count(run: PlannedRun) -> int:
    assert run.resolved is not None, "planned runs are resolved"
    return count_parameters(run.resolved.model).non_embedding


def _unique(run: PlannedRun) -> tuple[int, ...]:
    return tuple(need.unique or 0 for need in run.needs)


def _read(run: PlannedRun) -> dict[str, tuple[float, int, int]]:
    """(share of the tokens, tokens, unique ones) of every source that it reads."""
    return {need.name: (need.tokens / run.tokens, need.tokens, need.unique or 0) for need in run.needs if need.tokens}


def _shares(run: PlannedRun) -> dict[str, float]:
    tokens = {name: one[1] for name, one in _read(run).items()}
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


def _is_even(runs: Sequence[PlannedRun]) -> bool:
    """Whether in every run all sources are passed over alike, so that one U stands for all."""
    for run in runs:
        passes = [max(1.0, tokens / unique) for _, tokens, unique in _read(run).values()]
        if max(passes) > EVEN * min(passes):
            return False
    return True


def _columns(law: RepetitionLaw, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    columns: dict[str, Any] = {"D": [run.tokens for run in runs]}
    if law.size:
        columns["N"] = [_count(run) for run in runs]
    if law.shares:
        return columns | {f"U_{name}": [_read(run)[name][2] for run in runs] for name in law.shares}
    return columns | {"U": [sum(_unique(run)) for run in runs]}


def _cut(runs: Sequence[PlannedRun]) -> list[str]:
    """Sources of which the runs read different parts; where they read the same of all, every source."""
    parts: dict[str, set[Fraction]] = {}
    for run in runs:
        for name, source in run.args.synth.sources.items():
            parts.setdefault(name, set()).add(parse_ratio(source.part))
    return [name for name, found in parts.items() if len(found) > 1] or list(parts)


def _part(run: PlannedRun, cut: Sequence[str]) -> Fraction:
    return min(parse_ratio(run.args.synth.sources[name].part) for name in cut)


def _candidates(runs: Sequence[PlannedRun], cut: Sequence[str]) -> list[tuple[str, int, Fraction]]:
    """(size, tokens, part): those of the runs, double the largest budget, and half the smallest part."""
    sizes = list(dict.fromkeys(str(run.args.synth.preset) for run in runs))
    budgets = sorted({run.tokens for run in runs})
    parts = sorted({_part(run, cut) for run in runs})
    return list(itertools.product(sizes, [*budgets, 2 * budgets[-1]], [parts[0] / 2, *parts]))


def _candidate_columns(
    law: RepetitionLaw,
    like: PlannedRun,
    candidates: Sequence[tuple[str, int, Fraction]],
    cut: Sequence[str],
    count_of: Callable[[str], int],
) -> dict[str, Any]:
    """Variables of the law for runs like `like` with these sizes, budgets and parts; N always, for their cost."""
    columns: dict[str, Any] = {
        "N": [count_of(size) for size, _, _ in candidates],
        "D": [tokens for _, tokens, _ in candidates],
    }
    unique: dict[str, list[float]] = {}
    for name, (share, _, _) in _read(like).items():
        need = next(need for need in like.needs if need.name == name)
        assert need.epochs, "a run whose lengths are known, and a source that it reads"
        own = parse_ratio(like.args.synth.sources[name].part)
        whole = need.tokens / need.epochs / own
        unique[name] = [
            min(share * tokens, whole * float(part if name in cut else own)) for _, tokens, part in candidates
        ]
    if law.shares:
        return columns | {f"U_{name}": unique[name] for name in law.shares}
    return columns | {"U": np.sum(list(unique.values()), axis=0).tolist()}
