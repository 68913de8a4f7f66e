"""`lingua-synth fit runs=FILE out=DIR`: the scaling laws of a runs table, with intervals, as JSON, CSV and figures."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.config import parse_args
from lingua_synth.files import atomic_file, write_json
from lingua_synth.scaling.choice import LawChoice, choose_law
from lingua_synth.scaling.cleaning import Cleaned, clean
from lingua_synth.scaling.laws import Law
from lingua_synth.scaling.repetition_fits import LAWS as REPEAT_LAWS
from lingua_synth.scaling.repetition_fits import fit_repetition
from lingua_synth.scaling.runs import (
    Runs,
    load_runs,
    refuse_several_tokenizers,
    schedules,
    tokenizer_names,
    tokenizers,
    with_table_notes,
)
from lingua_synth.scaling.stored import FITS_JSON, write_fits
from lingua_synth.scaling.study import StudyFits, fit_study
from lingua_synth.scaling.tokenizer_effect import in_bytes

FITS_CSV = "fits.csv"
FIGURES = "figures"
REPETITION_JSON, REPETITION_CSV = "repetition.json", "repetition.csv"
NOTED_PASSES = 1.1
"""Most passes over a source of which a law in N and D need not speak."""


@dataclass
class TableArgs:
    """A runs table, how it is cleaned, and what is fitted to it."""

    runs: str = ""
    """The runs table, one row a training: a CSV or parquet file, or a folder with run folders (ours, Meta Lingua's)."""
    target: str = "loss_macro"
    """Column that is fitted: loss_macro, loss_micro or loss_<domain>."""
    n_definition: str = "non_embedding"
    """Which count of parameters is N: non_embedding, lingua or total."""
    bootstraps: int = 1000
    """Resamples of each identifiable fit, behind bands; 0: none, and no intervals."""
    seed: int = 0
    """Seed of the resamples."""
    columns: dict[str, str] = field(default_factory=dict)
    """For a table with other column names: ours to the file's, e.g. columns.n_total=params columns.loss_macro=loss."""
    schedule: str = ""
    """Only the runs of one learning-rate schedule (column schedule: cosine, wsd, ...); empty: all, with a note where
    they differ."""
    tokenizer: str = ""
    """Only the runs of one tokenizer (column tokenizer); a table of several is refused without it."""
    clean: bool = True
    """Leave out, by name, rows that are no finished run with the target; false refuses the table instead."""
    training: str = ""
    """Column that says which rows are checkpoints of one training; the last of each is kept."""
    cells: str = "all"
    """Of several runs of one mixture, N and tokens: all stay, the best stays (a sweep of rates), or their mean."""
    outliers: float | None = None
    """Leave out runs further off their mixture's law than so many robust standard deviations, e.g. 8; null: none."""
    loss_unit: str = "nats"
    """Unit of the losses per token: nats or bits."""
    tokens_unit: float = 1.0
    """What the tokens column counts, e.g. 1e9 for billions."""
    n_unit: float = 1.0
    """What the parameter columns count, e.g. 1e6 for millions."""


@dataclass
class FitArgs(TableArgs):
    """Fit scaling laws to a runs table: per mixture over budgets, over sizes, and over both."""

    out: str = ""
    """Folder for fits.json (full precision), resamples.npz, fits.csv (one row a parameter) and figures/; made when
    absent."""
    law: str = "joint"
    """Law in both N and D: joint, interaction, or another law's name; or a law of repeated data, over N, D and the
    unique tokens: repetition (repeats lose their worth), overfit (too many do harm)."""
    by: str = "mixture"
    """Column whose values are fitted apart; all: every run together."""
    objective: str = "huber"
    """What is minimized over log residuals: huber, lad or mse."""
    unit: str = ""
    """Column whose groups share an error in the law in both, e.g. size: intervals count groups where they must."""
    interval: str = "auto"
    """Method of the 95 % intervals: auto, profile, wald, reml, or bootstrap (percentiles)."""
    share: str = "partial"
    """Two or more mixtures are fitted together and ranked too, their exponents pooled as far as the runs ask (partial),
    the same (exponents) or each its own (none); empty: not at all."""
    choose: bool = False
    """Per mixture, print and write how well every law foretells larger runs from smaller ones (seconds a mixture)."""
    figures: bool = True
    """Draw the law in both per mixture, where matplotlib is installed."""
    per_byte: bool = False
    """Fit nats per byte of text against bytes of text read, so that laws of several tokenizers compare: then each is
    fitted apart, and D counts bytes."""


def main(argv: Sequence[str]) -> int | None:
    """Read, clean, fit, write, print."""
    args = parse_args(FitArgs, argv, prog="lingua-synth fit")
    if not args.runs or not args.out:
        missing = "runs=FILE.csv" if not args.runs else "out=FOLDER"
        raise ValueError(f"fit needs {missing}; `lingua-synth fit --help` lists the keys")
    if Path(args.out).is_file():
        raise ValueError(f"out={args.out} is a file; name a folder")
    if args.law in REPEAT_LAWS:
        return _fit_repeats(args)
    law = law_named(args.law)
    runs, cleaned = read_runs(args, per_byte=args.per_byte)
    runs = _grouped(runs, args.by)
    fits = fit_study(
        runs,
        target=args.target,
        n_definition=args.n_definition,
        num_bootstraps=args.bootstraps,
        seed=args.seed,
        joint_law=law,
        objective=args.objective,
        unit=args.unit or None,
        interval=args.interval,
        share=args.share,
    )
    out = Path(args.out)
    chosen = law_choices(runs, args) if args.choose else {}
    written_choices = {
        mixture: {"refusal": one} if isinstance(one, str) else one.to_dict() for mixture, one in chosen.items()
    }
    write_fits(
        fits,
        out,
        {"cleaning": cleaned.to_dict() if cleaned is not None else None, "law_choice": written_choices or None},
    )
    write_fits_csv(fits, out / FITS_CSV)
    for line in cleaning_lines(runs, cleaned):
        print(line)
    if args.per_byte:
        print("D counts bytes of text, and losses are nats per byte\n")
    if most := most_passes(runs):
        print(
            f"note: sources were read up to {most[1]:.3g} times ({most[0]}), and these laws take a repeated token for "
            "a new one; law=repetition does not\n"
        )
    print(fits)
    for mixture, one in chosen.items():
        print(f"\n{mixture}: {one}")
    written = f"{out / FITS_JSON}, {out / FITS_CSV}"
    if args.figures and importlib.util.find_spec("matplotlib") is not None:
        from lingua_synth.scaling.draw import write_figures

        written += f", {len(write_figures(fits, out / FIGURES))} figures in {out / FIGURES}"
    groups = len(runs.mixtures)
    kind = "mixture" if args.by == "mixture" else "group"
    by = "" if args.by in ("mixture", "all") else f" by {args.by}"
    print(f"\n{written}: {len(runs)} runs, {groups} {kind}{'s' if groups != 1 else ''}{by}")
    return 0


def _fit_repeats(args: FitArgs) -> int:
    """The laws of repeated data: repetition.json, repetition.csv, and what passes are worth."""
    if args.per_byte:
        raise ValueError(f"per_byte=true fits laws in N and D; law={args.law} is in tokens of one tokenizer")
    runs, cleaned = read_runs(args)
    runs = _grouped(runs, args.by)
    fits = fit_repetition(
        runs,
        law=args.law,
        target=args.target,
        n_definition=args.n_definition,
        num_bootstraps=args.bootstraps,
        seed=args.seed,
        objective=args.objective,
        unit=args.unit or None,
    )
    out = Path(args.out)
    write_json(out / REPETITION_JSON, fits.to_dict() | {"cleaning": cleaned.to_dict() if cleaned is not None else None})
    _write_rows(fits.rows(), out / REPETITION_CSV)
    for line in cleaning_lines(runs, cleaned):
        print(line)
    print(f"{fits}\n\n{out / REPETITION_JSON}, {out / REPETITION_CSV}: {len(runs)} runs")
    return 0


def most_passes(runs: Runs) -> tuple[str, float] | None:
    """(column, most passes) where a source was read over again by more than a tenth; None elsewhere."""
    found = {
        name: float(np.nanmax(values))
        for name, values in runs.columns.items()
        if name.startswith("epochs_") and values.dtype.kind == "f" and not np.isnan(values).all()
    }
    most = max(found, key=lambda name: found[name], default=None)
    return (most, found[most]) if most is not None and found[most] > NOTED_PASSES else None


def read_table(args: TableArgs) -> Runs:
    """The table that `args` names, of its schedule, under all tokenizers, as it was found."""
    return _of_schedule(load_runs(args.runs, args.columns or None, strict=not args.clean), args.schedule)


def read_runs(args: TableArgs, *, per_byte: bool = False) -> tuple[Runs, Cleaned | None]:
    """The table that `args` names, cleaned as it says, in units of text (`in_bytes`) where asked for; ValueError for
    what is wrong with either."""
    runs = read_table(args)
    if per_byte:
        runs = in_bytes(of_tokenizer(runs, args.tokenizer) if args.tokenizer else runs)
    else:
        runs = of_tokenizer(runs, args.tokenizer)
    if not args.clean:
        return runs, None
    if not len(runs):
        return runs, None
    cleaned = clean(
        runs,
        target=args.target,
        n_definition=args.n_definition,
        training=args.training or None,
        cells=args.cells,
        outliers=args.outliers,
        loss_unit=args.loss_unit,
        tokens_unit=args.tokens_unit,
        n_unit=args.n_unit,
    )
    return cleaned.runs, cleaned


def _of_schedule(runs: Runs, schedule: str) -> Runs:
    if not schedule:
        return runs
    counts = schedules(runs)
    if schedule not in counts:
        there = ", ".join(counts) or "none (the table has no column schedule)"
        raise ValueError(f"no run has the schedule {schedule!r}; there are: {there}")
    return with_table_notes(runs.select(schedule=schedule))


def of_tokenizer(runs: Runs, name: str) -> Runs:
    """The runs of one tokenizer; empty: the table as it is, where it has no more than one. ValueError otherwise."""
    if not name:
        refuse_several_tokenizers(runs, "Laws are fitted, and mixtures compared,")
        return runs
    counts = tokenizers(runs)
    if name not in counts:
        there = ", ".join(counts) or "none (the table has no column tokenizer)"
        raise ValueError(f"no run has the tokenizer {name!r}; there are: {there}")
    return with_table_notes(runs.take([one == name for one in tokenizer_names(runs)]))


def cleaning_lines(runs: Runs, cleaned: Cleaned | None) -> list[str]:
    """What a reader should be told of the table before its fits; nothing for one that needed nothing."""
    lines = [f"note: {note}" for note in runs.notes]
    if cleaned is not None and (cleaned.dropped or cleaned.changes or cleaned.warnings):
        lines += [str(cleaned)]
    return [*lines, ""] if lines else []


def law_choices(runs: Runs, args: TableArgs) -> dict[str, LawChoice | str]:
    """Per mixture, the scoreboard of the laws, or why there is none."""
    N, D, loss = runs.N(args.n_definition), runs["tokens"], runs[args.target]
    found: dict[str, LawChoice | str] = {}
    for mixture in runs.mixtures:
        mine = runs["mixture"] == mixture
        try:
            found[mixture] = choose_law(N=N[mine], D=D[mine], loss=loss[mine], n_definition=args.n_definition)
        except ValueError as error:
            found[mixture] = f"no law is chosen: {error}"
    return found


def law_named(name: str) -> Law:
    """The law in N and D of that name; ValueError lists them."""
    laws = {law.name: law for law in _laws(Law.__subclasses__())}
    if name not in laws:
        raise ValueError(f"law is one of {', '.join(sorted(laws))}; got {name!r}")
    return laws[name]


def _laws(kinds: Sequence[type[Law]]) -> list[Law]:
    """Every law in N and D that is complete without arguments, of `kinds` and below them."""
    found = []
    for kind in kinds:
        if set(getattr(kind, "variables", ())) == {"N", "D"} and isinstance(getattr(kind, "name", None), str):
            found.append(kind())
        found += _laws(kind.__subclasses__())
    return found


def _grouped(runs: Runs, by: str) -> Runs:
    """The table with the values of a column as its mixtures."""
    if by == "mixture":
        return runs
    if by == "all":
        return runs.with_columns(mixture=["all"] * len(runs))
    values = runs[by]
    names = values.tolist() if values.dtype.kind == "U" else [f"{by}={value:g}" for value in values.tolist()]
    return runs.with_columns(mixture=names)


def write_fits_csv(fits: StudyFits, path: str | Path) -> None:
    """Write `fits.rows()` as CSV, atomically: floats with all their digits, empty cells for what there is not."""
    _write_rows(fits.rows(), path)


def _write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            cells = [
                "" if value is None else repr(value) if isinstance(value, float) else value for value in row.values()
            ]
            writer.writerow(cells)
