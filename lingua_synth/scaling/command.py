"""`lingua-synth fit runs=FILE out=DIR`: the scaling laws of a runs table, with intervals, as JSON, CSV and a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lingua_synth.config import parse_args
from lingua_synth.files import atomic_file, write_json
from lingua_synth.scaling.runs import load_runs
from lingua_synth.scaling.study import StudyFits, fit_study

FITS_JSON = "fits.json"
FITS_CSV = "fits.csv"


@dataclass
class FitArgs:
    """Fit scaling laws to a runs table: per mixture over budgets, over sizes, and over both."""

    runs: str = ""
    """CSV file with the runs table, one row a training."""
    out: str = ""
    """Folder for fits.json (full precision) and fits.csv (one row a parameter); made when absent."""
    target: str = "loss_macro"
    """Column that is fitted: loss_macro, loss_micro or loss_<domain>."""
    n_definition: str = "non_embedding"
    """Which count of parameters is N: non_embedding, lingua or total."""
    bootstraps: int = 1000
    """Resamples behind the 95 % intervals of each identifiable fit; 0 draws none."""
    seed: int = 0
    """Seed of the resamples."""
    columns: dict[str, str] = field(default_factory=dict)
    """For a table with other column names: ours to the file's, e.g. columns.n_total=params columns.loss_macro=loss."""


def main(argv: Sequence[str]) -> int | None:
    """Read, fit, write, print."""
    args = parse_args(FitArgs, argv, prog="lingua-synth fit")
    if not args.runs or not args.out:
        missing = "runs=FILE.csv" if not args.runs else "out=FOLDER"
        raise ValueError(f"fit needs {missing}; `lingua-synth fit --help` lists the keys")
    if Path(args.out).is_file():
        raise ValueError(f"out={args.out} is a file; name a folder")
    runs = load_runs(args.runs, args.columns or None)
    fits = fit_study(
        runs, target=args.target, n_definition=args.n_definition, num_bootstraps=args.bootstraps, seed=args.seed
    )
    write_json(Path(args.out) / FITS_JSON, fits.to_dict())
    write_fits_csv(fits, Path(args.out) / FITS_CSV)
    print(fits)
    print(
        f"\n{Path(args.out) / FITS_JSON}, {Path(args.out) / FITS_CSV}: {len(runs)} runs, {len(runs.mixtures)} mixtures"
    )
    return 0


def write_fits_csv(fits: StudyFits, path: str | Path) -> None:
    """Write `fits.rows()` as CSV, atomically: floats with all their digits, empty cells for what there is not."""
    rows = fits.rows()
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            cells = [
                "" if value is None else repr(value) if isinstance(value, float) else value for value in row.values()
            ]
            writer.writerow(cells)
