"""The laws of repeated data over a runs table: per mixture, what its passes are worth, or why the runs do not say.

U of a run is its column `unique_tokens`, or the sum of `unique_tokens_<source>` where all sources were passed over
alike; where they were not, the law of repeats counts a U for every source, with the mixture's shares. With three sizes
or more N is in the law; with fewer each size is fitted on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.scaling.fit import ScalingFit, fit
from lingua_synth.scaling.laws import Law
from lingua_synth.scaling.natural import ratios
from lingua_synth.scaling.records import record
from lingua_synth.scaling.repeats import RepeatValue, value_of_repeats
from lingua_synth.scaling.repetition import OverfitLaw, RepetitionLaw
from lingua_synth.scaling.runs import Runs
from lingua_synth.scaling.uncertainty import Bootstrap, bootstrap

LAWS = ("repetition", "overfit")
LEVEL = 0.95
EVEN = 1.02
"""Sources whose passes differ by less than this factor, rounding to whole windows, are passed over alike."""
FEWEST_SIZES = 3
PASSES = (2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True, eq=False)
class RepetitionFit:
    """One mixture, all its sizes together or one of them."""

    mixture: str
    size: str | None
    """None: all sizes, with N in the law."""
    law: Law
    fit: ScalingFit | None
    """None where there is a `refusal`."""
    resamples: Bootstrap | None
    value: RepeatValue | None
    """What passes are worth; None where no token is seen twice, or no resample was asked for."""
    refusal: str

    def interval(self, name: str) -> tuple[float, float] | None:
        """Of a parameter, at 95 %, by resampled runs; None of a fit that the runs do not determine."""
        if self.fit is None or self.resamples is None or not self.fit.identifiable:
            return None
        return self.resamples.interval(name, LEVEL)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = self.fit.law.parameters if self.fit is not None else ()
        return record(
            {
                "mixture": self.mixture,
                "size": self.size,
                "law": self.law.name,
                "formula": self.law.formula,
                "fit": self.fit.to_dict() if self.fit is not None else None,
                "intervals": {name: self.interval(name) for name in names},
                "value": self.value.to_dict() if self.value is not None else None,
                "refusal": self.refusal,
            }
        )

    def __str__(self) -> str:
        where = f"{self.mixture}" + (f" at size {self.size}" if self.size is not None else "")
        if self.fit is None:
            return f"{where}: no fit: {self.refusal}"
        lines = [f"{where}: {self.law.formula}  ({self.fit.num_points} runs, rms {100 * self.fit.rms_residual:.2g} %)"]
        shown = []
        for name, value in self.fit.params.items():
            ends = self.interval(name)
            shown.append(f"{name} {value:.4g}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else ""))
        lines.append("  " + "  ".join(shown))
        lines += [f"  not identifiable: {reason}" for reason in self.fit.reasons]
        lines += [f"  note: {warning}" for warning in self.fit.warnings]
        if self.value is not None:
            lines += [f"  {line}" for line in str(self.value).splitlines()]
        elif self.refusal:
            lines.append(f"  {self.refusal}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class RepetitionFits:
    """The law of repeats over a table; prints one block a mixture."""

    law: str
    target: str
    n_definition: str
    num_bootstraps: int
    seed: int
    entries: tuple[RepetitionFit, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row a parameter of every fit, then one for the worth of each number of passes; full precision."""
        found = []
        for entry in self.entries:
            head = {"law": self.law, "mixture": entry.mixture, "size": entry.size}
            if entry.fit is None:
                found.append(head | _cells(None, None, None, entry))
                continue
            for name, value in entry.fit.params.items():
                found.append(head | _cells(name, value, entry.interval(name), entry))
            if entry.value is not None:
                columns = (entry.value.passes, entry.value.worth, entry.value.worth_low, entry.value.worth_high)
                for passes, worth, low, high in zip(*(column.tolist() for column in columns), strict=True):
                    found.append(head | _cells(f"worth of {passes:g} passes", worth, (low, high), entry))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, full precision."""
        return {
            "version": 1,
            "law": self.law,
            "target": self.target,
            "n_definition": self.n_definition,
            "num_bootstraps": self.num_bootstraps,
            "seed": self.seed,
            "level": LEVEL,
            "fits": [entry.to_dict() for entry in self.entries],
        }

    def __str__(self) -> str:
        head = f"target {self.target}, N: {self.n_definition}, {round(100 * LEVEL)} % intervals in brackets"
        return "\n\n".join([head, *map(str, self.entries)])


def _cells(
    name: str | None, value: float | None, ends: tuple[float, float] | None, entry: RepetitionFit
) -> dict[str, Any]:
    fitted = entry.fit
    return {
        "parameter": name,
        "value": value,
        "low": ends[0] if ends else None,
        "high": ends[1] if ends else None,
        "identifiable": fitted is not None and fitted.identifiable,
        "num_points": fitted.num_points if fitted is not None else None,
        "rms_residual": fitted.rms_residual if fitted is not None else None,
        "reasons": "; ".join(fitted.reasons) if fitted is not None else entry.refusal,
    }


def fit_repetition(
    runs: Runs,
    *,
    law: str = "repetition",
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    num_bootstraps: int = 1000,
    seed: int = 0,
    objective: str = "huber",
    unit: str | None = None,
) -> RepetitionFits:
    """Fit `law`, "repetition" or "overfit" (a penalty for too many repeats), to every mixture of a runs table.

    Intervals are percentiles of `num_bootstraps` resampled runs, or groups of the column `unit`; 0: none, and no worth
    of passes. A mixture that cannot be fitted has a refusal instead. ValueError for an empty table, another law, and
    a table that does not say how many tokens are unique (`unique_tokens`, or `unique_tokens_<source>`).
    """
    if law not in LAWS:
        raise ValueError(f"law is one of {', '.join(LAWS)}; got {law!r}")
    if num_bootstraps < 0 or num_bootstraps == 1:
        raise ValueError(f"num_bootstraps is a number of resamples, 0 or at least 2; got {num_bootstraps}")
    if not len(runs):
        raise ValueError("the runs table is empty; there is nothing to fit")
    if not any(name == "unique_tokens" or name.startswith("unique_tokens_") for name in runs.columns):
        raise ValueError(
            "the table has no column unique_tokens, or unique_tokens_<source>, so it does not say what was repeated; "
            "name one, e.g. columns.unique_tokens=U"
        )
    entries = []
    for mixture in runs.mixtures:
        mine = runs.select(mixture=mixture)
        sizes = list(dict.fromkeys(mine["size"].tolist()))
        together = len(np.unique(mine.N(n_definition))) >= FEWEST_SIZES
        for size in [None] if together else sizes:
            rows = mine if size is None else mine.select(size=size)
            entries.append(
                _entry(rows, mixture, size, law, target, n_definition, num_bootstraps, seed, objective, unit)
            )
    return RepetitionFits(law, target, n_definition, num_bootstraps, seed, tuple(entries))


def _entry(
    rows: Runs,
    mixture: str,
    size: str | None,
    name: str,
    target: str,
    n_definition: str,
    num_bootstraps: int,
    seed: int,
    objective: str,
    unit: str | None,
) -> RepetitionFit:
    law: Law = OverfitLaw() if name == "overfit" else RepetitionLaw(size=size is None)
    columns: dict[str, Any] = {"D": rows["tokens"]}
    if size is None:
        columns["N"] = rows.N(n_definition)
    try:
        unique, shares = _unique(rows, mixture)
        if name == "overfit" and (shares or size is not None):
            takes = "one U: the sources of this mixture are passed over unequally" if shares else "three sizes or more"
            raise ValueError(f"{law.formula} takes {takes}; law=repetition does without")
        if shares:
            law = RepetitionLaw(size=size is None, shares=shares)
        columns |= unique
        least = len(law.parameters) + 1
        if len(rows) < least:
            counted = f"{len(rows)} run{'s' * (len(rows) != 1)}"
            raise ValueError(f"{counted}; {law.formula} has {least - 1} parameters and takes at least {least}")
        fitted = fit(law, loss=rows[target], objective=objective, n_definition=n_definition, **columns)
    except ValueError as error:
        return RepetitionFit(mixture, size, law, None, None, None, str(error))
    if not num_bootstraps:
        return RepetitionFit(mixture, size, law, fitted, None, None, "")
    try:
        resamples = bootstrap(fitted, n=num_bootstraps, seed=seed, unit=rows[unit] if unit is not None else None)
        value = value_of_repeats(fitted, _passes(columns, law), resamples=resamples)
    except ValueError as error:
        return RepetitionFit(mixture, size, law, fitted, None, None, str(error))
    return RepetitionFit(mixture, size, law, fitted, resamples, value, "")


def _passes(columns: dict[str, Any], law: Law) -> Sequence[float]:
    """2, 4, 8 ... as far as the runs go, and two at least."""
    shares = law.shares if isinstance(law, RepetitionLaw) else {}
    of_source = [share * columns["D"] / columns[f"U_{source}"] for source, share in shares.items()]
    most = max(float(np.max(passes)) for passes in of_source or [columns["D"] / columns["U"]])
    return [passes for passes in PASSES if passes <= most] or PASSES[:1]


def _unique(rows: Runs, mixture: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(columns of U, shares of the sources where there is one for each). ValueError for counts that are none."""
    D = rows["tokens"]
    if "unique_tokens" in rows.columns:
        return {"U": _counts(rows, "unique_tokens")}, {}
    shares = {source: share for source, share in ratios(rows)[mixture].items() if share > 0}
    missing = [source for source in shares if f"unique_tokens_{source}" not in rows.columns]
    if missing or not shares:
        raise ValueError(
            f"the table has no column unique_tokens_{missing[0]}" if missing else "the table has no ratio_<source>"
        )
    unique = {source: _counts(rows, f"unique_tokens_{source}") for source in shares}
    whole = sum(shares.values())
    shares = {source: share / whole for source, share in shares.items()}
    passes = [np.maximum(share * D / unique[source], 1.0) for source, share in shares.items()]
    if float(np.max(np.max(passes, axis=0) / np.min(passes, axis=0))) <= EVEN:
        return {"U": np.sum(list(unique.values()), axis=0)}, {}
    return {f"U_{source}": column for source, column in unique.items()}, shares


def _counts(rows: Runs, name: str) -> np.ndarray:
    column = np.asarray(rows[name], dtype=np.float64)
    bad = ~(np.isfinite(column) & (column > 0))
    if bad.any():
        raise ValueError(f"{name} of run {rows['run_id'][bad][0]} is {column[bad][0]:g}, no count of tokens")
    return column
