"""What the planned runs will tell of the scaling laws, before any of them is trained.

Per mixture the runs of one schedule make a design in N (parameters without vocabulary matrices) and D (tokens): the law
in both where there are at least three sizes and three budgets, else the law in the one that varies.
`scaling.expected_errors` gives the standard errors a fit to them will have if the assumed law is true and runs scatter
by the assumed noise; `scaling.next_runs` the runs that would lower that of E most per GPU-hour. Of runs that repeat
their sources the law is that of repeats (repetition.py). Mixtures with the same runs are told once. E of two mixtures
fitted apart differ by chance by 1.96 sqrt(2) standard errors at most, in 95 %.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lingua_synth.model.counts import count_parameters, flops_per_token, in_words
from lingua_synth.model.presets import PRESETS, preset
from lingua_synth.scaling import DataLaw, JointLaw, Law, ModelLaw, expected_errors, next_runs
from lingua_synth.scaling.design import Design, NextRuns
from lingua_synth.study.args import DesignArgs
from lingua_synth.study.plan import PlannedRun
from lingua_synth.study.pricing import Throughput
from lingua_synth.study.repetition import REPEATS, RepeatsConditioning, plan_repeats
from lingua_synth.train.args import schedule_name

FEWEST_VALUES = 3
"""Sizes, or budgets, from which a law in them can be told from a line."""
_MOST_RUNS = 12


@dataclass(frozen=True)
class Conditioning:
    """What one set of runs tells, for all mixtures that have it."""

    mixtures: tuple[str, ...]
    schedule: str
    num_runs: int
    """Of one mixture."""
    num_sizes: int
    num_budgets: int
    design: Design | None
    """Standard errors of the law's parameters; None where the runs determine no law."""
    reason: str
    """Why not; empty where there is a design."""
    next_runs: NextRuns | None
    candidates: tuple[tuple[str, str], ...]
    """(size, budget) of the candidates of `next_runs`, by row."""
    many: tuple[float, float] | None
    """(cost, standard error of the constant) after a dozen such runs."""
    shares_trunks: bool
    """Whether runs branch off others: their errors are then alike, which the standard errors leave out."""
    unit: str
    """Of costs: GPU-hours, or hours of a study on CPUs."""
    detectable: float
    """Difference of log loss between two mixtures in one cell that is seen in 95 % of cases, at the cell's seeds."""
    repeats: RepeatsConditioning | None = None
    """Of runs that repeat tokens, what they tell of that; `design` is then under the law of repeats where the runs
    determine it, and elsewhere takes repeated tokens for new ones."""
    num_parts: int = 1
    """Different parts of their sources that the runs read."""

    @property
    def resolvable(self) -> float | None:
        """Difference between E of two mixtures, nats, beyond which chance explains it in less than 5 % of cases."""
        if self.design is None:
            return None
        return 1.96 * math.sqrt(2) * self.design.standard_errors[self.design.law.constant or ""]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "mixtures": list(self.mixtures),
            "schedule": self.schedule,
            "num_runs": self.num_runs,
            "num_sizes": self.num_sizes,
            "num_budgets": self.num_budgets,
            "design": self.design.to_dict() if self.design else None,
            "reason": self.reason,
            "shares_trunks": self.shares_trunks,
            "resolvable_difference_of_E": self.resolvable,
            "detectable_difference_of_log_loss": self.detectable,
            "next_runs": self._next_rows(),
            "a_dozen_more": {"cost": self.many[0], "error": self.many[1]} if self.many else None,
            "repeats": self.repeats.to_dict() if self.repeats else None,
            "num_parts": self.num_parts,
        }

    def _next_rows(self) -> list[dict[str, Any]]:
        if self.next_runs is None:
            return []
        return [
            {
                "size": self.candidates[step.candidate][0],
                "budget": self.candidates[step.candidate][1],
                "cost": step.cost,
                "error": step.error,
            }
            for step in self.next_runs.steps
        ]

    def __str__(self) -> str:
        shown = ", ".join(self.mixtures[:4]) + (f" and {len(self.mixtures) - 4} more" if len(self.mixtures) > 4 else "")
        counts = [_counted(self.num_sizes, "size"), _counted(self.num_budgets, "budget"), self.schedule]
        if self.num_parts > 1:
            counts.insert(2, _counted(self.num_parts, "part"))
        repeated = self.repeats.lines(self.unit) if self.repeats else []
        if repeated and self.repeats and self.repeats.design is None:
            repeated.append("  note: the law above takes repeated tokens for new ones")
        lines = [f"{shown}: {_counted(self.num_runs, 'run')} each ({', '.join(counts)})"]
        design = self.design
        if design is None:
            lines += repeated[:1]
            lines.append(f"  {self.reason}")
            lines.append(
                f"  mixtures are compared cell by cell: differences are seen from {100 * self.detectable:.2g} % of the "
                "loss"
            )
            return "\n".join(lines)
        errors = "  ".join(
            f"{name} {design.params[name]:.4g} +- {error:.2g}" for name, error in design.standard_errors.items()
        )
        lines.append(f"  {design.law.formula}: {errors}  (condition {design.condition_number:.3g})")
        lines.append(
            f"  between mixtures fitted apart, differences of {design.law.constant} are seen from "
            f"{self.resolvable:.2g} nats"
        )
        lines += [f"  note: {warning}" for warning in design.warnings]
        lines += repeated
        if self.shares_trunks:
            lines.append("  note: budgets of one trunk share its luck; these errors take every run for itself")
        if self.next_runs is not None:
            gains = ", ".join(
                f"{row['size']} at {row['budget']} ({row['cost']:,.3g} {self.unit}: +- {row['error']:.2g})"
                for row in self._next_rows()
            )
            lines.append(f"  next for {self.next_runs.of}, per mixture: {gains}")
        if self.many is not None:
            lines.append(f"  the best {_MOST_RUNS} together: {self.many[0]:,.3g} {self.unit}, +- {self.many[1]:.2g}")
        return "\n".join(lines)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def plan_conditioning(
    runs: Sequence[PlannedRun], args: DesignArgs, throughput: Throughput | None = None
) -> list[Conditioning]:
    """One entry for all mixtures of the same runs, in the order of the plan; schedules apart.

    `throughput` prices the next runs in GPU-hours; without it they cost those of an H100 at 40 % of its peak.
    ValueError for a noise that is not positive.
    """
    if not args.noise > 0:
        raise ValueError(f"design.noise is the scatter of a run's log loss, above 0, e.g. 0.002; got {args.noise}")
    grouped: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        assert run.resolved is not None, "planned runs are resolved"
        grouped.setdefault((schedule_name(run.resolved), run.args.synth.mixture), []).append(run)
    alike: dict[tuple[str, tuple[Any, ...]], list[str]] = {}
    members: dict[tuple[str, tuple[Any, ...]], list[PlannedRun]] = {}
    for (schedule, mixture), mine in grouped.items():
        key = schedule, tuple(sorted((str(run.args.synth.preset), run.tokens, _repeated(run)) for run in mine))
        alike.setdefault(key, []).append(mixture)
        members.setdefault(key, mine)
    everywhere = list(dict.fromkeys((str(run.args.synth.preset), run.tokens) for run in runs))
    return [
        _condition(tuple(mixtures), key[0], members[key], args, throughput, everywhere)
        for key, mixtures in alike.items()
    ]


def _condition(
    mixtures: tuple[str, ...],
    schedule: str,
    runs: Sequence[PlannedRun],
    args: DesignArgs,
    throughput: Throughput | None,
    everywhere: Sequence[tuple[str, int]],
) -> Conditioning:
    N, D = [_count(run) for run in runs], [run.tokens for run in runs]
    cells = Counter(zip(N, D, map(_repeated, runs), strict=True))
    fewest_seeds = min(cells.values())
    law, params, where = _law(args, N, D)
    num_sizes, num_budgets = len(set(N)), len(set(D))
    detectable = 1.96 * math.sqrt(2 / fewest_seeds) * args.noise
    design, suggested, reason = None, None, ""
    candidates: list[tuple[str, int]] = []
    many: tuple[float, float] | None = None
    repeats = plan_repeats(
        runs, args, lambda asked: _hours(asked, runs, throughput), lambda s: _named_count(s, runs[0])
    )
    if repeats is not None and repeats.design is not None:
        design = repeats.design
    elif law is None:
        reason = f"no law can be fitted: that takes {FEWEST_VALUES} sizes or {FEWEST_VALUES} budgets"
    else:
        columns: dict[str, Any] = {"N": N, "D": D}
        chosen = [i for i, (n, d) in enumerate(zip(N, D, strict=True)) if where is None or where in (n, d)]
        given: dict[str, Any] = {name: [columns[name][i] for i in chosen] for name in law.variables}
        try:
            design = expected_errors(law, params, noise=args.noise, **given)
        except ValueError as error:
            reason = str(error)
    if design is not None and args.next_runs > 0 and (repeats is None or repeats.design is None):
        candidates = _candidates(everywhere, law, where, runs)
        suggested = _next(design, candidates, runs, args.next_runs, throughput)
        best = _next(design, candidates, runs, _MOST_RUNS, throughput)
        many = (best.total_cost, best.steps[-1].error) if best and len(best.steps) == _MOST_RUNS else None
    return Conditioning(
        mixtures,
        schedule,
        len(runs),
        num_sizes,
        num_budgets,
        design,
        reason,
        suggested,
        tuple((size, in_words(tokens)) for size, tokens in candidates),
        many,
        any(run.after for run in runs),
        "hours" if throughput is not None and not any(run.num_gpus for run in runs) else "GPU-hours",
        detectable,
        repeats,
        len({tuple(source.part for source in run.args.synth.sources.values()) for run in runs}),
    )


def _repeated(run: PlannedRun) -> tuple[tuple[int, int], ...]:
    """(tokens, unique ones) of every source, where one of them is repeated."""
    if run.passes is None or run.passes <= REPEATS:
        return ()
    return tuple(sorted((need.tokens, need.unique or 0) for need in run.needs))


def _count(run: PlannedRun) -> int:
    assert run.resolved is not None, "planned runs are resolved"
    return count_parameters(run.resolved.model).non_embedding


def _law(args: DesignArgs, N: Sequence[int], D: Sequence[int]) -> tuple[Law | None, dict[str, float], int | None]:
    """(law, its assumed parameters, the one N or D it holds at); the law in both where both vary."""
    sizes, budgets = Counter(N), Counter(D)
    joint = {"E": args.E, "A": args.A, "B": args.B, "alpha": args.alpha, "beta": args.beta}
    if len(sizes) >= FEWEST_VALUES and len(budgets) >= FEWEST_VALUES:
        return JointLaw(), joint, None
    # The size with the most budgets, or the budget with the most sizes.
    by_size = {n: {d for m, d in zip(N, D, strict=True) if m == n} for n in sizes}
    by_budget = {d: {n for n, e in zip(N, D, strict=True) if e == d} for d in budgets}
    n = max(by_size, key=lambda size: (len(by_size[size]), size))
    d = max(by_budget, key=lambda budget: (len(by_budget[budget]), budget))
    if len(by_size[n]) >= FEWEST_VALUES and len(by_size[n]) >= len(by_budget[d]):
        return DataLaw(), {"E_at_N": args.E + args.A / n**args.alpha, "B": args.B, "beta": args.beta}, n
    if len(by_budget[d]) >= FEWEST_VALUES:
        return ModelLaw(), {"E_at_D": args.E + args.B / d**args.beta, "A": args.A, "alpha": args.alpha}, d
    return None, {}, None


def _candidates(
    everywhere: Sequence[tuple[str, int]], law: Law | None, where: int | None, runs: Sequence[PlannedRun]
) -> list[tuple[str, int]]:
    """(size, tokens) of the study's sizes and budgets, and of the next ones beyond both ends; of a law in one variable,
    along that one."""
    sizes = list(dict.fromkeys(size for size, _ in everywhere))
    budgets = sorted({tokens for _, tokens in everywhere})
    ordered = sorted((*sizes, *_beyond(sizes)), key=lambda size: _named_count(size, runs[0]))
    tokens = [*({budgets[0] // 2} - {0}), *budgets, 2 * budgets[-1]]
    if where is None:
        return list(itertools.product(ordered, tokens))
    if isinstance(law, ModelLaw):
        return [(size, where) for size in ordered]
    own = next(str(run.args.synth.preset) for run in runs if _count(run) == where)
    return [(own, d) for d in tokens]


def _beyond(sizes: Sequence[str]) -> list[str]:
    """The next smaller and the next larger preset of the sizes' family."""
    is_nano = sizes[0].startswith("nano")
    family = [name for name in PRESETS if (name.startswith("nano") if is_nano else name[0].isdigit())]
    places = [family.index(size) for size in sizes if size in family]
    if not places:
        return []
    return [family[i] for i in (min(places) - 1, max(places) + 1) if 0 <= i < len(family)]


def _named_count(size: str, like: PlannedRun) -> int:
    return count_parameters(_model(size, like)).non_embedding


def _model(size: str, like: PlannedRun) -> Any:
    assert like.resolved is not None, "planned runs are resolved"
    model = preset(size)
    vocab = model.vocab_size if model.vocab_size > 0 else like.resolved.model.vocab_size
    return dataclasses.replace(model, vocab_size=vocab)


def _hours(
    candidates: Sequence[tuple[str, int]], runs: Sequence[PlannedRun], throughput: Throughput | None
) -> list[float] | None:
    """GPU-hours of (size, tokens); None without a throughput."""
    if throughput is None:
        return None
    assert runs[0].resolved is not None, "planned runs are resolved"
    seq_len = runs[0].resolved.data.seq_len
    per_token = {size: flops_per_token(_model(size, runs[0]), seq_len) for size in {size for size, _ in candidates}}
    return [throughput.gpu_hours(tokens, per_token[size]) for size, tokens in candidates]


def _next(
    design: Design,
    candidates: Sequence[tuple[str, int]],
    runs: Sequence[PlannedRun],
    count: int,
    throughput: Throughput | None,
) -> NextRuns | None:
    N = [_named_count(size, runs[0]) for size, _ in candidates]
    D = [tokens for _, tokens in candidates]
    cost = _hours(candidates, runs, throughput)
    try:
        found = next_runs(design, N=N, D=D, cost=cost, k=count, minimize="E")
    except ValueError:
        return None  # nothing lowers it
    return dataclasses.replace(found, cost_unit="GPU-hours")
