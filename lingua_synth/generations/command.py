"""`lingua-synth generations [run|report] config=FILE key=value ...`: rounds of training on the models' own text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingua_synth.config import HELP_FLAGS, parse_args
from lingua_synth.generations.args import GenerationsArgs, read_settings
from lingua_synth.generations.report import REPORT, ROUNDS, TESTS, write_generations_report
from lingua_synth.generations.run import run_generations

PROG = "lingua-synth generations"


@dataclass
class ReportArgs:
    """Write tables, figures and the page of the rounds that are finished; trains nothing, also while `run` is at
    work."""

    out: str = ""
    """The folder of a run."""


def main(argv: Sequence[str]) -> int:
    """Dispatch to run (the default) or report."""
    if not argv or "=" in argv[0] or argv[0] in HELP_FLAGS:
        return _run(argv)
    if argv[0] == "run":
        return _run(argv[1:])
    if argv[0] == "report":
        return _report(argv[1:])
    raise ValueError(f"generations has no {argv[0]!r}; it has run and report")


def _run(argv: Sequence[str]) -> int:
    run_generations(args := parse_args(GenerationsArgs, argv, prog=PROG))
    _print_files(args.out)
    return 0


def _report(argv: Sequence[str]) -> int:
    args = parse_args(ReportArgs, argv, prog=f"{PROG} report")
    if not args.out:
        raise ValueError("report needs out=, the folder of a run over generations")
    write_generations_report(read_settings(args.out))
    _print_files(args.out)
    return 0


def _print_files(out: str) -> None:
    for what, name in (("report", REPORT), ("rounds", ROUNDS), ("tests", TESTS)):
        print(f"{what + ':':8} {Path(out) / name}")
