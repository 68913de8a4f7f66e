"""Every law a study can carry: per mixture, over budgets at each size, over sizes at each budget, and over both.

A runs table goes in, `StudyFits` comes out. A cell of the study with too few runs does not stop the others: its entry
says in words why there is no fit. All fits share one seed, so mixtures trained on the same cells are resampled alike.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit, fit
from lingua_synth.scaling.intervals import Intervals, intervals
from lingua_synth.scaling.laws import DataLaw, JointLaw, Law, ModelLaw
from lingua_synth.scaling.pooled import MixtureFits, fit_mixtures
from lingua_synth.scaling.ranking import Ranking
from lingua_synth.scaling.records import record
from lingua_synth.scaling.runs import Runs, refuse_several_tokenizers
from lingua_synth.scaling.uncertainty import Bootstrap, PairedBootstrap, bootstrap

LEVEL = 0.95
SHARES = ("partial", "exponents", "none", "")
INTERVALS = ("auto", "profile", "wald", "reml", "bootstrap")
MAX_NAMED = 8
"""Mixtures that are named in a sentence."""
MAX_REFUSALS = 3
"""Sizes or budgets of a mixture with too few runs that are printed one by one; a table whose budgets all differ has
hundreds."""


@dataclass(frozen=True, eq=False)
class MixtureFit:
    """One law for one mixture: a fit, or the reason why there is none."""

    fit: ScalingFit | None = None
    bootstrap: Bootstrap | None = None
    """None where the fit is not identifiable (its intervals would be numbers about nothing) or none was asked for."""
    refusal: str | None = None
    """Why the fit could not even start."""
    intervals: Intervals | None = None
    """None as for `bootstrap`, and where the intervals are percentiles of the bootstrap."""

    @property
    def identifiable(self) -> bool:
        """Whether there is a fit and the runs determine it."""
        return self.fit is not None and self.fit.identifiable

    @property
    def reasons(self) -> list[str]:
        """Why not, in sentences; empty when identifiable."""
        return [self.refusal] if self.refusal is not None else list(self.fit.reasons) if self.fit is not None else []

    def interval(self, name: str) -> tuple[float, float]:
        """The 95 % interval of the parameter `name` that is to be shown; NaN where there is none. An end that the runs
        do not show is infinite, or 0 for a coefficient."""
        if self.intervals is not None:
            return self.intervals.interval(name)
        return self.bootstrap.interval(name, LEVEL) if self.bootstrap is not None else (math.nan, math.nan)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "identifiable": self.identifiable,
            "reasons": self.reasons,
            "refusal": self.refusal,
            "fit": self.fit.to_dict() if self.fit is not None else None,
            "bootstrap": self.bootstrap.to_dict() if self.bootstrap is not None else None,
            "intervals": self.intervals.to_dict() if self.intervals is not None else None,
        }


@dataclass(frozen=True, eq=False)
class StudyFits:
    """The fits of a study."""

    target: str
    """Column that was fitted."""
    n_definition: str
    data: dict[str, dict[str, MixtureFit]]
    """`[mixture][size]`: `DataLaw` over the budgets at that size, smallest size first."""
    model: dict[str, dict[float, MixtureFit]]
    """`[mixture][tokens]`: `ModelLaw` over the sizes at that budget, smallest budget first."""
    joint: dict[str, MixtureFit]
    """`[mixture]`: `joint_law` over all its runs."""
    num_bootstraps: int
    seed: int
    joint_law: Law = field(default_factory=JointLaw)
    """The law in both N and D."""
    objective: str = "huber"
    unit: str | None = None
    """Column whose groups share an error in the joint law; None: runs err independently, unless they show otherwise."""
    interval: str = "auto"
    """Method of the intervals: one of `INTERVALS`."""
    pooled: MixtureFits | None = None
    """The joint laws of all mixtures fitted together, without those that are not identifiable each by itself; None if
    that was not asked for, or fewer than two are left."""
    ranking: Ranking | None = None
    """Mixtures by the constant of `pooled`, with ties; None where the runs do not determine every law."""
    not_pooled: str | None = None
    """Which mixtures `pooled` is without, and why; or why there is none."""
    drawn: PairedBootstrap | None = None
    """Resamples of `pooled`, the same cells for all mixtures: behind `ranking`, speed-ups and crossings."""

    def entries(self) -> Iterator[tuple[Law, str, str | None, float | None, MixtureFit]]:
        """(law, mixture, size or None, tokens or None, entry) of every fit: joint, then data, then model laws."""
        for mixture, entry in self.joint.items():
            yield self.joint_law, mixture, None, None, entry
        for mixture, by_size in self.data.items():
            for size, entry in by_size.items():
                yield DataLaw(), mixture, size, None, entry
        for mixture, by_tokens in self.model.items():
            for tokens, entry in by_tokens.items():
                yield ModelLaw(), mixture, None, tokens, entry

    def _blocks(self) -> Iterator[tuple[Law, str, list[tuple[str, MixtureFit]]]]:
        """(law, mixture, its entries with where they are in words), in the order of `entries`."""
        for (law, mixture), found in itertools.groupby(self.entries(), key=lambda one: one[:2]):
            block = []
            for _, _, size, tokens, entry in found:
                where = f" at size {size}" if size is not None else f" at {tokens:.4g} tokens" if tokens else ""
                block.append((where, entry))
            yield law, mixture, block

    def rows(self) -> list[dict[str, Any]]:
        """One row per parameter of every fit, one row (without value) per refusal; full precision, None for what is
        not."""
        rows: list[dict[str, Any]] = []
        for law, mixture, size, tokens, entry in self.entries():
            head = {"law": law.name, "mixture": mixture, "size": size, "tokens": tokens}
            tail = {
                "identifiable": entry.identifiable,
                "num_points": entry.fit.num_points if entry.fit is not None else None,
                "rms_residual": entry.fit.rms_residual if entry.fit is not None else None,
                "reasons": "; ".join(entry.reasons),
            }
            if entry.fit is None:
                rows.append(head | {"parameter": None, "value": None, "low": None, "high": None} | tail)
                continue
            for name, value in entry.fit.params.items():
                low, high = (None if math.isnan(end) else end for end in entry.interval(name))
                rows.append(head | {"parameter": name, "value": value, "low": low, "high": high} | tail)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, full precision."""
        return record(
            {
                "version": 1,
                "target": self.target,
                "n_definition": self.n_definition,
                "num_bootstraps": self.num_bootstraps,
                "seed": self.seed,
                "level": LEVEL,
                "joint_law": self.joint_law.name,
                "objective": self.objective,
                "unit": self.unit,
                "interval": self.interval,
                "pooled": self.pooled.to_dict() if self.pooled is not None else None,
                "ranking": self.ranking.to_dict() if self.ranking is not None else None,
                "not_pooled": self.not_pooled,
                "joint": {mixture: entry.to_dict() for mixture, entry in self.joint.items()},
                "data": {
                    mixture: {size: entry.to_dict() for size, entry in by_size.items()}
                    for mixture, by_size in self.data.items()
                },
                "model": {
                    mixture: {f"{tokens:.0f}": entry.to_dict() for tokens, entry in by_tokens.items()}
                    for mixture, by_tokens in self.model.items()
                },
            }
        )

    def __str__(self) -> str:
        shared = f"; the runs of one {self.unit} share an error" if self.unit else ""
        lines = [f"target {self.target}, N: {self.n_definition}, {round(100 * LEVEL)} % intervals in brackets{shared}"]
        before: str | None = None
        for law, mixture, entries in self._blocks():
            if law.name != before:
                lines += ["", law.formula]
                before = law.name
            refused = [where for where, entry in entries if entry.fit is None]
            for where, entry in entries:
                if entry.fit is not None or len(refused) <= MAX_REFUSALS:
                    lines.append(f"  {mixture}{where}: {_summary(entry)}")
            if len(refused) > MAX_REFUSALS:
                lines.append(
                    f"  {mixture}: no fit{refused[0]}, ...,{refused[-1]} ({len(refused)} of {len(entries)}): "
                    f"fewer runs than the {len(law.parameters)} parameters"
                )
        if self.pooled is not None:
            lines += ["", "all mixtures together:", str(self.pooled)]
        if self.ranking is not None:
            lines += ["", str(self.ranking)]
        if self.not_pooled is not None:
            lines += ["", f"not fitted together: {self.not_pooled}"]
        return "\n".join(lines)


def fit_study(
    runs: Runs,
    *,
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    num_bootstraps: int = 1000,
    seed: int = 0,
    joint_law: Law | None = None,
    objective: str = "huber",
    unit: str | None = None,
    interval: str = "auto",
    share: str = "partial",
) -> StudyFits:
    """Fit every mixture of a runs table: data laws per size, model laws per budget, the joint law over all runs.

    `joint_law` is any law in N and D (default: `JointLaw`), `objective` as in `fit`. Identifiable fits get 95 %
    intervals by the method `interval`, as `intervals` names them; "auto" takes what the runs call for, and standard
    errors for the laws in one variable; "bootstrap" takes percentiles. They also get `num_bootstraps` resamples, for
    bands of curves; 0: neither these nor intervals. `unit`, the name of a column such as "size": its groups share an
    error in the joint law. A fit with fewer runs than parameters becomes a `MixtureFit` with a `refusal`; nothing else
    is left out. Two or more mixtures with identifiable joint laws are also fitted together and ranked, as
    `fit_mixtures` does with this `share`
    ("none": each by itself, ranked all the same; "": not at all, nor with 0 resamples).
    ValueError for an empty table, one of several tokenizers, a missing column, a run without the target (by name),
    fewer than 0 or exactly 1 resamples, a law that is not in N and D, a method that is none or that takes no unit.
    """
    refuse_several_tokenizers(runs, "Laws are fitted")
    law_of_both = joint_law if joint_law is not None else JointLaw()
    if set(law_of_both.variables) != {"N", "D"}:
        raise ValueError(f"joint_law must be a law in N and D; {law_of_both.name} is in {law_of_both.variables}")
    if not len(runs):
        raise ValueError("the runs table is empty; there is nothing to fit")
    if num_bootstraps < 0 or num_bootstraps == 1:
        raise ValueError(f"num_bootstraps is a number of resamples, 0 or at least 2; got {num_bootstraps}")
    if interval not in INTERVALS:
        raise ValueError(f"interval is one of {', '.join(INTERVALS)}; got {interval!r}")
    if share not in SHARES:
        raise ValueError(f"share is one of {', '.join(filter(None, SHARES))}, or empty; got {share!r}")
    if unit is not None and interval in ("profile", "wald"):
        raise ValueError(f"interval {interval!r} takes every run as independent; with unit={unit!r} use auto or reml")
    N, D, loss = runs.N(n_definition), runs["tokens"], runs[target]
    _check_values(runs, {"tokens": D, f"N ({n_definition})": N, target: loss})
    mixtures, sizes = runs["mixture"], runs["size"]
    smallest = {size: float(N[sizes == size].min()) for size in np.unique(sizes)}
    in_order = sorted(smallest, key=lambda size: (smallest[size], size))

    groups = runs[unit] if unit is not None else None

    def entry(law: Law, rows: np.ndarray) -> MixtureFit:
        num, p = int(rows.sum()), len(law.parameters)
        if num < p:
            counted = f"{num} run{'s' if num != 1 else ''}"
            return MixtureFit(refusal=f"{counted}; {law.formula} has {p} parameters and takes at least {p + 1}")
        values = {name: array[rows] for name, array in (("N", N), ("D", D)) if name in law.variables}
        fitted = fit(
            law, N=values.get("N"), D=values.get("D"), loss=loss[rows], objective=objective, n_definition=n_definition
        )
        if not (num_bootstraps and fitted.identifiable):
            return MixtureFit(fit=fitted)
        shared = groups[rows] if groups is not None and law is law_of_both else None
        try:
            resampled = bootstrap(fitted, n=num_bootstraps, seed=seed, unit=shared)
            found = _intervals(fitted, interval, shared, law is law_of_both)
        except ValueError as error:  # too few different runs in most resamples, or no more runs than parameters
            fitted.warnings.append(f"no interval: {error}")
            return MixtureFit(fit=fitted)
        done = MixtureFit(fit=fitted, bootstrap=resampled, intervals=found)
        if law.constant and done.interval(law.constant)[0] <= 0:
            fitted.warnings.append(
                f"the interval of {law.constant} reaches 0: the runs need not show a level they tend to"
            )
        outside = [name for name, value in fitted.params.items() if not _holds(done.interval(name), value)]
        if outside:
            fitted.warnings.append(
                f"the interval of {', '.join(outside)} does not hold the fit: it is of generalized least squares, for "
                "errors that runs share, and a few runs move that far from the fit"
            )
        return done

    data: dict[str, dict[str, MixtureFit]] = {}
    model: dict[str, dict[float, MixtureFit]] = {}
    joint: dict[str, MixtureFit] = {}
    for mixture in runs.mixtures:
        mine = mixtures == mixture
        present = set(sizes[mine].tolist())
        data[mixture] = {str(s): entry(DataLaw(), mine & (sizes == s)) for s in in_order if s in present}
        model[mixture] = {float(d): entry(ModelLaw(), mine & (d == D)) for d in np.unique(D[mine])}
        joint[mixture] = entry(law_of_both, mine)
    fits = StudyFits(
        target, n_definition, data, model, joint, num_bootstraps, seed, law_of_both, objective, unit, interval
    )
    if not (share and num_bootstraps and len(joint) > 1):
        return fits
    left_out = [mixture for mixture, one in joint.items() if not one.identifiable]
    why = _not_identifiable(left_out)
    if len(joint) - len(left_out) < 2:
        return dataclasses.replace(fits, not_pooled=why)
    # Mixtures that were trained in a cell or two (a sweep of ratios, generators) do not stop the others.
    rows = ~np.isin(mixtures, left_out)
    try:
        together = fit_mixtures(
            law_of_both,
            N=N[rows],
            D=D[rows],
            loss=loss[rows],
            mixture=mixtures[rows],
            share=share,
            paired=_share_cells(mixtures[rows], N[rows], D[rows]),
            seed=runs["seed"][rows] if "seed" in runs.columns else None,
            objective=objective,
            n_definition=n_definition,
        )
        drawn = together.bootstrap(num_bootstraps, seed) if together.identifiable else None
    except ValueError as error:
        return dataclasses.replace(fits, not_pooled=str(error))
    ranked = together.rank(drawn) if drawn is not None and law_of_both.constant else None
    return dataclasses.replace(fits, pooled=together, ranking=ranked, drawn=drawn, not_pooled=why)


def _not_identifiable(mixtures: Sequence[str]) -> str | None:
    """Why these take no part; None when there are none."""
    if not mixtures:
        return None
    more = f" and {len(mixtures) - MAX_NAMED} more" if len(mixtures) > MAX_NAMED else ""
    verb = "is" if len(mixtures) == 1 else "are"
    return f"the joint law of {', '.join(mixtures[:MAX_NAMED])}{more} {verb} not identifiable"


def _share_cells(mixtures: np.ndarray, N: np.ndarray, D: np.ndarray) -> bool:
    """Whether most cells were trained for every mixture, so that what a cell has in common can cancel."""
    cells = [set(zip(N[mixtures == name], D[mixtures == name], strict=True)) for name in np.unique(mixtures)]
    return 2 * len(set.intersection(*cells)) > len(set.union(*cells))


def _intervals(fitted: ScalingFit, method: str, shared: np.ndarray | None, both: bool) -> Intervals | None:
    """By `method`; for a law in one variable, whose runs have no groups, by standard errors if it leaves the choice."""
    if method == "bootstrap":
        return None
    # A trial step of a search may leave the range of floats; it is not taken.
    with np.errstate(all="ignore"):
        if both or method not in ("auto", "reml"):
            return intervals(fitted, method, LEVEL, shared)
        found = intervals(fitted, "wald", LEVEL)
        if np.isnan([found.interval(name) for name in found.parameters]).any():
            return dataclasses.replace(intervals(fitted, "profile", LEVEL), why="the fit sits on a bound")
        return dataclasses.replace(
            found, why="a law in one variable: in simulations of 6 runs they hold as they should"
        )


def _holds(interval: tuple[float, float], value: float) -> bool:
    """False where there is an interval and the value lies outside."""
    return not (value < interval[0] or value > interval[1])


def _check_values(runs: Runs, columns: dict[str, np.ndarray]) -> None:
    for name, values in columns.items():
        if values.dtype.kind != "f":
            raise ValueError(f"column {name} holds text ({values[0]!r}, ...); a fit takes numbers")
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(wrong):
            named = ", ".join(f"{runs['run_id'][k]} ({values[k]:g})" for k in wrong[:3])
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ValueError(f"{name} must be a positive number in every run; it is not in {named}{more}")


def _summary(entry: MixtureFit) -> str:
    if entry.fit is None:
        return f"no fit: {entry.refusal}"
    if not entry.identifiable:
        return f"not identifiable ({entry.fit.num_points} runs): {'; '.join(entry.reasons)}"
    parts = []
    for name, value in entry.fit.params.items():
        shown = f"{name} {value:.4g}"
        low, high = entry.interval(name)
        if not math.isnan(low + high):
            shown += f" [{low:.4g}, {high:.4g}]"
        parts.append(shown)
    by = (
        f"; by groups: {entry.intervals.why}"
        if entry.intervals is not None and entry.intervals.method == "reml"
        else ""
    )
    return f"{'  '.join(parts)}  ({entry.fit.num_points} runs, rms {100 * entry.fit.rms_residual:.2g} %{by})"
