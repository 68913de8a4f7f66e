"""From a table as it was found to the runs a law may be fitted to, with every row that is left out named.

A runs table (`load_runs(..., strict=False)`) goes in; `Cleaned` comes out: the runs that stay, in their order, and for
each other one its name, the kind of reason and the reason in words. Rows in = rows kept + rows dropped, always.

Dropped by themselves are rows that are no measurement of the target after a whole training: numbers that are none or
not positive, trainings that had not ended (`schedule_done`), earlier checkpoints of a training (the `training` column),
rows that stand twice. Everything that is a choice (which of several runs of one cell, outliers, units) is made only
when asked for; where it looks necessary a warning says so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.scaling.laws import DataLaw, JointLaw, Law, ModelLaw
from lingua_synth.scaling.records import record
from lingua_synth.scaling.runs import AVERAGES, Runs, n_column

KINDS = {
    "no number": "a number is missing or not positive",
    "unfinished": "the training had not ended",
    "checkpoint": "an earlier checkpoint of a training that has a later row",
    "repeated row": "the same run again",
    "same cell": "another run of the same cell is kept",
    "outlier": "far off its mixture's law",
}
"""Kind of reason -> what it means, in the order in which rows are looked at."""
CELLS = ("all", "best", "mean")
LOSS_UNITS = {"nats": 1.0, "bits": math.log(2.0)}
DONE = 0.999
"""Share of its steps after which a training has ended; logs may lack the last step."""
FEWEST_TOKENS = 1e5
"""No table in tokens has its largest budget below; one in millions or billions of tokens has."""
FEWEST_PARAMETERS = 1e3
EVEN_SPACING = 0.02
EVEN_BUDGETS = 5
"""So many budgets of one training at equal distances (within 2 % of the distance) are checkpoints."""

# What text models of these sizes and budgets usually reach, nats per token: the law of Hoffmann et al. 2022 as refitted
# by Besiroglu et al. 2024. Tables differ by half from it, so it only tells units apart, and only in a warning.
_USUAL = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}
_BITS_PER_TOKEN = (1.35, 1.7)
_BITS_PER_BYTE = 0.45


@dataclass(frozen=True)
class Dropped:
    """A row that is left out."""

    run_id: str
    kind: str
    """A key of `KINDS`."""
    reason: str


@dataclass(frozen=True, eq=False)
class Cleaned:
    """The runs that stay and what became of the others."""

    runs: Runs
    dropped: tuple[Dropped, ...]
    """In the order of `KINDS`, each kind in the order of the table."""
    warnings: tuple[str, ...]
    """What a reader should decide on."""
    changes: tuple[str, ...]
    """What was computed anew, e.g. losses from bits."""
    num_before: int
    target: str

    @property
    def counts(self) -> dict[str, int]:
        """Rows dropped by kind; only kinds that occur."""
        return {
            kind: sum(d.kind == kind for d in self.dropped)
            for kind in KINDS
            if any(d.kind == kind for d in self.dropped)
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; every dropped row by name."""
        return record(
            {
                "target": self.target,
                "num_before": self.num_before,
                "num_kept": len(self.runs),
                "counts": self.counts,
                "dropped": [{"run_id": d.run_id, "kind": d.kind, "reason": d.reason} for d in self.dropped],
                "changes": list(self.changes),
                "warnings": list(self.warnings),
            }
        )

    def __str__(self) -> str:
        lines = [f"{self.num_before} rows, {len(self.runs)} kept, {len(self.dropped)} dropped (target {self.target})"]
        for kind, count in self.counts.items():
            lines.append(f"  {count} dropped: {KINDS[kind]}")
            mine = [d for d in self.dropped if d.kind == kind]
            lines += [f"    {d.run_id}: {d.reason}" for d in mine[:5]]
            lines += [f"    and {len(mine) - 5} more"] if len(mine) > 5 else []
        lines += [f"  {change}" for change in self.changes]
        return "\n".join(lines + [f"  note: {warning}" for warning in self.warnings])


def clean(
    runs: Runs,
    *,
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    training: str | None = None,
    cells: str = "all",
    outliers: float | None = None,
    loss_unit: str = "nats",
    tokens_unit: float = 1.0,
    n_unit: float = 1.0,
) -> Cleaned:
    """The rows of `runs` that measure `target` at the end of a training, once each; the others by name.

    `training` names the column that says which rows are checkpoints of one training (default: a column of that name,
    where there is one); only the row with the most tokens stays. `cells`: what becomes of several runs of one cell
    (mixture, N, tokens, schedule, ratios, unique tokens): "all" stay; the "best" by the target stays of those with one
    seed, as after a sweep of learning rates; or their losses are averaged ("mean", over seeds too). `outliers`, a
    number such as 8: rows further off their mixture's law (Huber fit) than so many robust standard deviations are
    dropped. Units: `loss_unit="bits"` turns every `loss_` column into nats, `tokens_unit=1e9` and `n_unit=1e6`
    multiply.

    The same rows stay for any order of the table. ValueError for an unknown column or choice, and when no row stays.
    """
    if cells not in CELLS:
        raise ValueError(f"cells is one of {', '.join(CELLS)}; got {cells!r}")
    if loss_unit not in LOSS_UNITS:
        raise ValueError(f"loss_unit is one of {', '.join(LOSS_UNITS)}; got {loss_unit!r}")
    if outliers is not None and not outliers >= 3:
        raise ValueError(f"outliers is a number of robust standard deviations, 3 or more; got {outliers}")
    for name, unit in (("tokens_unit", tokens_unit), ("n_unit", n_unit)):
        if not (np.isfinite(unit) and unit > 0):
            raise ValueError(f"{name} is a factor, positive; got {unit}")
    if not len(runs):
        raise ValueError("the runs table is empty; there is nothing to clean")
    n_name = n_column(n_definition)
    for name in (n_name, "tokens", target):
        if runs[name].dtype.kind != "f":
            raise ValueError(f"column {name} holds text ({runs[name][0]!r}, ...); a fit takes numbers")
    table, changes = _convert(runs, loss_unit, tokens_unit, n_unit)
    if "run_id" not in table.columns:
        table = table.with_columns(run_id=[f"row-{k}" for k in range(1, len(table) + 1)])
    dropped: list[Dropped] = []

    def drop(kind: str, found: Iterator[tuple[int, str]]) -> None:
        nonlocal table
        reasons = dict(found)
        dropped.extend(Dropped(str(table["run_id"][k]), kind, reasons[k]) for k in sorted(reasons))
        table = table.take([k not in reasons for k in range(len(table))])

    drop("no number", _no_number(table, (target, "tokens", n_name)))
    drop("unfinished", _unfinished(table))
    column = training or ("training" if "training" in table.columns else None)
    if column is not None:
        drop("checkpoint", _earlier(table, column, n_name))
    drop("repeated row", _repeated(table, n_name, target))
    warnings = list(_checkpoint_warnings(table, n_name, column))
    several = _several(table, n_name)
    if cells == "best":
        drop("same cell", _worse(table, n_name, target))
    elif cells == "mean":
        table, averaged = _averaged(table, n_name)
        if averaged:
            changes.append(f"the losses of {_cells(len(averaged))} are means over their runs")
        drop("same cell", ((k, f"averaged into {kept}") for kept, rows in averaged.items() for k in rows))
    elif several:
        warnings.append(
            f"{_cells(several)} (mixture, N, tokens) with several runs of one seed and different losses; if they are "
            "a sweep of learning rates, cells='best' keeps the lowest, and cells='mean' averages"
        )
    if outliers is not None:
        found, notes = _outliers(table, n_name, target, outliers)
        warnings += notes
        drop("outlier", iter(found.items()))
    if not len(table):
        kinds = ", ".join(f"{d.kind}: {d.run_id} ({d.reason})" for d in dropped[:3])
        raise ValueError(f"none of the {len(runs)} rows is a finished run with {target}; {kinds}, ...")
    warnings += _unit_warnings(table, n_name, target)
    assert len(runs) == len(table) + len(dropped), "every row is kept or dropped"
    return Cleaned(table, tuple(dropped), tuple(warnings), tuple(changes), len(runs), target)


def _convert(runs: Runs, loss_unit: str, tokens_unit: float, n_unit: float) -> tuple[Runs, list[str]]:
    new: dict[str, np.ndarray] = {}
    changes = []
    factors: list[tuple[float, str, Callable[[str], bool]]] = [
        (LOSS_UNITS[loss_unit], "losses are multiplied by ln 2, from bits to nats", lambda n: n.startswith("loss_")),
        (
            tokens_unit,
            f"tokens are multiplied by {tokens_unit:g}",
            lambda n: n in ("tokens", "unique_tokens") or n.startswith(("tokens_", "unique_tokens_")),
        ),
        (n_unit, f"parameters are multiplied by {n_unit:g}", lambda n: n.startswith("n_")),
    ]
    for factor, said, concerns in factors:
        if factor == 1.0:
            continue
        new |= {n: v * factor for n, v in runs.columns.items() if concerns(n) and v.dtype.kind == "f"}
        changes.append(said)
    return (runs.with_columns(**new) if new else runs), changes


# --- what is dropped ---


def _no_number(table: Runs, needed: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    for k in range(len(table)):
        bad = [
            f"{name} is {table[name][k]:g}"
            for name in needed
            if not (math.isfinite(table[name][k]) and table[name][k] > 0)
        ]
        if bad:
            yield k, ", ".join(bad).replace("is nan", "is missing")


def _unfinished(table: Runs) -> Iterator[tuple[int, str]]:
    if "schedule_done" in table.columns:
        for k, share in enumerate(table["schedule_done"].tolist()):
            if share < DONE:
                yield (
                    k,
                    f"evaluated after {100 * share:.3g} % of its steps; its learning rate was still on the way down",
                )


def _earlier(table: Runs, column: str, n_name: str) -> Iterator[tuple[int, str]]:
    """All but the longest row of each training."""
    names = table[column]
    groups: dict[str, list[int]] = defaultdict(list)
    for k, name in enumerate(names.tolist()):
        if str(name) not in ("", "nan"):
            groups[str(name)].append(k)
    for name, rows in groups.items():
        sizes = {float(table[n_name][k]) for k in rows}
        if len(sizes) > 1:
            raise ValueError(
                f"rows of the training {name!r} (column {column!r}) differ in {n_name}: {sorted(sizes)[:3]}; "
                "a training has one size, so that column does not name trainings"
            )
        last = max(float(table["tokens"][k]) for k in rows)
        for k in rows:
            if table["tokens"][k] < last:
                yield k, f"training {name} goes on from {table['tokens'][k]:.4g} to {last:.4g} tokens"


def _cell_columns(table: Runs, n_name: str, *, seed: bool) -> list[str]:
    """What tells cells apart, in one order."""
    exact = ["mixture", n_name, "tokens", "unique_tokens", "schedule", *(["seed"] if seed else [])]
    families = ("ratio_", "weight_", "unique_tokens_", "epochs_")
    return [n for n in exact if n in table.columns] + sorted(n for n in table.columns if n.startswith(families))


def _groups(table: Runs, names: list[str]) -> list[list[int]]:
    """Rows with equal values, NaN equal to NaN; each group by run_id."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    columns = [[repr(v) for v in table[name].tolist()] for name in names]
    for k, key in enumerate(zip(*columns, strict=True)):
        groups[key].append(k)
    ids = table["run_id"]
    return [sorted(rows, key=lambda k: str(ids[k])) for rows in groups.values()]


def _losses(table: Runs) -> list[str]:
    return sorted(n for n, v in table.columns.items() if n.startswith(("loss_", "bpb_")) and v.dtype.kind == "f")


def _repeated(table: Runs, n_name: str, target: str) -> Iterator[tuple[int, str]]:
    same = [*_cell_columns(table, n_name, seed=True), *_losses(table)]
    for first, *others in _groups(table, same):
        for k in others:
            yield k, f"equal to {table['run_id'][first]} in cell and losses ({target} {table[target][k]:.6g})"


def _cells(number: int) -> str:
    return f"{number} cell{'s' if number != 1 else ''}"


def _several(table: Runs, n_name: str) -> int:
    return sum(len(rows) > 1 for rows in _groups(table, _cell_columns(table, n_name, seed=True)))


def _worse(table: Runs, n_name: str, target: str) -> Iterator[tuple[int, str]]:
    for rows in _groups(table, _cell_columns(table, n_name, seed=True)):
        best = min(rows, key=lambda k: (float(table[target][k]), str(table["run_id"][k])))
        for k in rows:
            if k != best:
                yield k, f"{target} {table[target][k]:.6g}; {table['run_id'][best]} has {table[target][best]:.6g}"


def _averaged(table: Runs, n_name: str) -> tuple[Runs, dict[str, list[int]]]:
    """The table with means in the first row of every cell of several runs, and {kept run_id: its other rows}."""
    new = {name: np.array(table[name]) for name in _losses(table)}
    averaged: dict[str, list[int]] = {}
    for first, *others in _groups(table, _cell_columns(table, n_name, seed=False)):
        if others:
            averaged[str(table["run_id"][first])] = others
            for name, values in new.items():
                values[first] = math.fsum(table[name][[first, *others]].tolist()) / (1 + len(others))
    return table.with_columns(**new), averaged


def _outliers(table: Runs, n_name: str, target: str, limit: float) -> tuple[dict[int, str], list[str]]:
    from lingua_synth.scaling.fit import fit

    found: dict[int, str] = {}
    notes = []
    mixtures = table["mixture"] if "mixture" in table.columns else np.full(len(table), "all")
    for mixture in dict.fromkeys(mixtures.tolist()):
        rows = np.flatnonzero(mixtures == mixture)
        N, D, loss = (table[name][rows] for name in (n_name, "tokens", target))
        varied = {name: values for name, values in (("N", N), ("D", D)) if len(np.unique(values)) >= 3}
        law: Law = JointLaw() if len(varied) == 2 else DataLaw() if "D" in varied else ModelLaw()
        if not varied or len(rows) < len(law.parameters) + 4:
            notes.append(f"{mixture}: too few runs ({len(rows)}) to tell outliers from; none was looked for")
            continue
        fitted = fit(law, N=varied.get("N"), D=varied.get("D"), loss=loss)
        scale = 1.4826 * float(np.median(np.abs(fitted.residuals)))
        for k in np.flatnonzero(np.abs(fitted.residuals) > max(limit * scale, 1e-9)).tolist():
            off = 100 * math.expm1(-fitted.residuals[k])  # observed against predicted
            found[int(rows[k])] = (
                f"{off:+.3g} % off {law.formula} of {mixture}, whose runs scatter by {100 * scale:.2g} %"
            )
    return found, notes


# --- what is said ---


def _checkpoint_warnings(table: Runs, n_name: str, training: str | None) -> Iterator[str]:
    """Trainings whose budgets lie at equal distances: a grid of budgets is spaced by factors, a log by steps."""
    if training is not None:
        return
    names = [n for n in ("mixture", n_name, "seed", "schedule") if n in table.columns]
    series = 0
    for rows in _groups(table, names):
        if "schedule" in table.columns:
            # Budgets that branch off one trunk have each their own decay; they may lie as they like.
            rows = [k for k in rows if not str(table["schedule"][k]).startswith("wsd")]
        tokens = np.unique(table["tokens"][rows])
        steps = np.diff(tokens)
        if len(tokens) >= EVEN_BUDGETS and np.ptp(steps) <= EVEN_SPACING * np.mean(steps):
            series += 1
    if series:
        yield (
            f"{series} times {EVEN_BUDGETS} or more rows of one mixture and size have evenly spaced tokens, as "
            "checkpoints of one training have: losses before the learning rate has decayed are too high, and beta with "
            "them. Name the column of the training (training=...) to keep the last of each"
        )


def _unit_warnings(table: Runs, n_name: str, target: str) -> list[str]:
    N, D, loss = table[n_name], table["tokens"], table[target]
    warnings = []
    if D.max() < FEWEST_TOKENS:
        warnings.append(f"the largest budget is {D.max():g} tokens; if that is billions, clean with tokens_unit=1e9")
    if N.max() < FEWEST_PARAMETERS:
        warnings.append(f"the largest model has {N.max():g} parameters; if that is millions, clean with n_unit=1e6")
    usual = (N >= 1e7) & (D >= 1e8)
    if usual.sum() >= 3:
        ratio = float(np.median(loss[usual] / JointLaw().predict(_USUAL, N=N[usual], D=D[usual])))
        if ratio < _BITS_PER_BYTE:
            warnings.append(
                f"{target} is {ratio:.2g} times what such models usually reach in nats per token: it may be in bits "
                "per byte or character, which compares across tokenizers but is another unit than nats per token"
            )
        elif _BITS_PER_TOKEN[0] < ratio < _BITS_PER_TOKEN[1]:
            warnings.append(
                f"{target} is {ratio:.3g} times what such models usually reach in nats per token: the text is hard for "
                "them, or the losses are in bits (1.44 times nats); if so, clean with loss_unit='bits'"
            )
    domains = [n for n in _losses(table) if n.startswith("loss_") and n.removeprefix("loss_") not in AVERAGES]
    if target not in domains and any(np.isnan(table[n]).any() for n in domains):
        partly = [n for n in domains if np.isnan(table[n]).any()]
        warnings.append(f"some runs lack {', '.join(partly[:4])}, so {target} may be an average of different domains")
    return warnings
