"""`lingua-synth report`: a runs table in, one self-contained page with figures and fits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingua_synth.config import parse_args
from lingua_synth.files import what_is_there
from lingua_synth.report.page import write_report
from lingua_synth.scaling.command import TableArgs, cleaning_lines, read_runs
from lingua_synth.scaling.natural import base_mixture


@dataclass
class ReportArgs(TableArgs):
    """Draw every figure a runs table allows and write one self-contained HTML page."""

    out: str = ""
    """Folder for report.html and figures/ (PNG, SVG and the numbers drawn as CSV); made when absent."""
    base: str | None = None
    """Mixture the others are compared with; null takes natural text alone."""
    title: str = "Synthetic text in pre-training"
    """Heading of the page."""
    noise: float | None = None
    """Standard deviation of ln loss of one run (0.003 is 0.3 %), where it is known; null: as the runs show it."""


def main(argv: Sequence[str]) -> int | None:
    """Read the table, fit the laws, write the page; prints where it is and what could not be fitted."""
    from lingua_synth.analysis.collapse import collapse_tests
    from lingua_synth.report.collapse import collapse_section
    from lingua_synth.scaling import fit_study

    args = parse_args(ReportArgs, argv, prog="lingua-synth report")
    if not args.runs or not args.out:
        missing = "runs=FILE.csv" if not args.runs else "out=FOLDER"
        raise ValueError(f"report needs {missing}; `lingua-synth report --help` lists the keys")
    if not Path(args.runs).exists():
        raise ValueError(f"no runs table {args.runs}; {what_is_there(args.runs)}")
    if args.bootstraps < 0:
        raise ValueError(f"bootstraps is a number of resamples, 0 or more; got {args.bootstraps}")
    runs, cleaned = read_runs(args)
    base_mixture(runs, args.base)  # a wrong name is refused before anything is fitted
    fits = None
    if len(runs):
        fits = fit_study(
            runs,
            target=args.target,
            n_definition=args.n_definition,
            num_bootstraps=args.bootstraps,
            seed=args.seed,
        )
    sections = []
    if len(runs.mixtures) > 1:
        report = collapse_tests(
            runs, base=args.base, target=args.target, n_definition=args.n_definition, noise=args.noise
        )
        sections.append(collapse_section(report))
    path = write_report(
        args.out, runs, fits, title=args.title, target=args.target, base=args.base, sections_after=sections
    )
    for line in cleaning_lines(runs, cleaned):
        print(line)
    print(f"{path}: {len(runs)} runs, {len(runs.mixtures)} mixtures")
    if fits is not None:
        unclear = [mixture for mixture, entry in fits.joint.items() if not entry.identifiable]
        if unclear:
            print(f"joint law not identifiable for {', '.join(unclear)}; the page says why")
    return 0
