"""`lingua-synth study launch|status|collect|compare|compare-tokenizers`: the study's runs, once they are planned."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lingua_synth.config import HELP_FLAGS, help_text, parse_args, to_dict
from lingua_synth.files import sha256_json
from lingua_synth.study.args import StudyArgs, parse_study
from lingua_synth.study.board import QueuedRun, queue, read_latest, read_plan
from lingua_synth.study.ledger import register_study
from lingua_synth.study.plan import plan_study

T = TypeVar("T")

MOST_NAMED = 20
"""Runs whose reason is printed; the rest is named without."""


@dataclass
class StatusArgs:
    """How far a study is. Beside these keys those of the study; `out=FOLDER` alone is enough once it was launched."""

    watch: bool = False
    """Show the table again and again until every run is done."""
    every_s: float = 2.0
    """Of watch: seconds between two looks."""


@dataclass
class CollectArgs:
    """One table of all finished runs. Beside these keys those of the study, or none of them."""

    runs: list[str] = field(default_factory=list)
    """Further runs: run folders, folders that hold some, dump dirs of Meta Lingua, CSV or parquet tables."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our names of columns -> those of the tables in `runs`."""
    table: str = ""
    """File to write, .csv or .parquet; empty: runs.csv in the study's folder."""


@dataclass
class CompareArgs:
    """Mixtures whose shares change against static ones, by pairs of runs. Beside these keys those of the study."""

    table: str = ""
    """Runs table, .csv or .parquet; empty: runs.csv in the study's folder."""
    tokenizer: str = ""
    """Only the runs of one tokenizer; a table of several is refused without it."""
    static: dict[str, str] = field(default_factory=dict)
    """Mixture that changes -> the static one it is held to; not named: the one of the same overall shares."""
    target: str = "loss_macro"
    """Column of losses to compare."""
    level: float = 0.95
    """Level of the intervals, between 0 and 1."""
    save: str = ""
    """JSON file for the comparison at full precision; empty: none."""


@dataclass
class CompareTokenizersArgs:
    """The tokenizers of a study in bits per byte, by pairs of runs. Beside these keys those of the study."""

    table: str = ""
    """Runs table, .csv or .parquet; empty: runs.csv in the study's folder."""
    tokenizer: str = ""
    """The tokenizer that the others are compared with; empty: the study's first, without a study the table's."""
    base: str = ""
    """Mixture that effects are measured from; empty: natural text alone."""
    target: str = "bpb_macro"
    """Column of bits per byte: bpb_macro or bpb_<domain>."""
    by: str = ""
    """What a cell has equal under every tokenizer: bytes, tokens or flops; empty: what the study matched, or bytes."""
    tolerance: float = 0.02
    """Most that it may differ by, relative, above 0."""
    margin: float = 0.01
    """Smallest difference between two tokenizers' effects that counts, bits per byte, at least 0."""
    level: float = 0.95
    """Level of the intervals, between 0 and 1."""
    n_definition: str = "non_embedding"
    """Which count of parameters is N in the laws: non_embedding, lingua or total."""
    save: str = ""
    """JSON file for the comparison at full precision; empty: none."""


def launch_main(argv: Sequence[str]) -> int:
    """Train what is not finished, then collect."""
    from lingua_synth.study.launch import launch

    study = _study(argv, "launch")
    if not study.out:
        raise ValueError("out is not set: give the folder for the study, e.g. out=runs/study")
    # A dry run is for looking at what one has; the shards may come later.
    runs = plan_study(study, draft=study.launch.dry_run)
    if study.launch.dry_run:
        print(launch(runs, study.launch, folder=study.out).note)
        return 0
    register_study(study, runs)
    try:
        done = launch(runs, study.launch, folder=study.out, study_sha256=study_sha256(study))
    except SystemExit as left:
        print(left, file=sys.stderr)
        raise
    if done.note:
        print(done.note)
    if study.launch.engine == "slurm":
        print(f"lingua-synth study status out={study.out} watch=true")
        return 0
    return collect_main(argv)


def status_main(argv: Sequence[str]) -> int:
    """Print the table, once or until all is done."""
    from lingua_synth.study.status import study_status

    status, study = _split(argv, StatusArgs, "status")
    if status.every_s <= 0:
        raise ValueError(f"every_s must be above 0, got {status.every_s}")
    runs = known_runs(study)
    while True:
        now = study_status(runs, folder=study.out)
        if status.watch and sys.stdout.isatty():
            print("\033[H\033[J", end="")
        print(now, flush=True)
        if not status.watch or now.is_over:
            return 0
        time.sleep(status.every_s)


def collect_main(argv: Sequence[str]) -> int:
    """Write the table, and name what is not in it."""
    from lingua_synth.scaling import write_runs
    from lingua_synth.study.collect import TABLES, collect

    args, study = _split(argv, CollectArgs, "collect")
    has_study = study != StudyArgs()
    if not has_study and not args.runs:
        raise ValueError("nothing to collect: give a study (config=FILE or out=FOLDER), or runs=[FOLDER,TABLE,...]")
    table = Path(args.table or (Path(study.out) / "runs.csv" if has_study else ""))
    if table.suffix not in TABLES:
        raise ValueError(f"table is the file to write, {' or '.join(TABLES)}; got {str(args.table)!r}")
    found = collect(args.runs, columns=args.columns, planned=known_runs(study) if has_study else ())
    left_out = "".join(f"\n  {name}: {why}" for name, why in found.left_out.items())
    if not found.rows:
        where = f"of the study in {study.out}" if has_study else f"in {', '.join(args.runs)}"
        advice = "train them with `lingua-synth study launch`" if not left_out else f"left out:{left_out}"
        raise ValueError(f"no run {where} is finished yet; {advice}")
    write_runs(found.rows, table)
    print(f"{table}: {len(found.rows):,} runs")
    for name, listed in (("not finished", found.unfinished), ("left out", found.left_out)):
        if listed:
            print(f"{name}: {len(listed):,}")
            for run_id, why in list(listed.items())[:MOST_NAMED]:
                print(f"  {run_id}: {why}")
            if len(listed) > MOST_NAMED:
                print(f"  and {', '.join(list(listed)[MOST_NAMED:])}")
    for note in found.notes:
        print(f"note: {note}")
    return 0


def compare_main(argv: Sequence[str]) -> int:
    """Print the differences of every mixture whose shares change to its static one."""
    from lingua_synth.files import write_json
    from lingua_synth.scaling import compare_schedules, load_runs
    from lingua_synth.scaling.command import of_tokenizer

    args, study = _split(argv, CompareArgs, "compare")
    found = compare_schedules(
        of_tokenizer(load_runs(_table(args.table, study)), args.tokenizer),
        static=args.static,
        target=args.target,
        level=args.level,
    )
    print("\n\n".join(map(str, found)))
    if args.save:
        write_json(Path(args.save), [one.to_dict() for one in found])
        print(args.save)
    return 0


def compare_tokenizers_main(argv: Sequence[str]) -> int:
    """Print what the tokenizers change, and whether they change what the mixtures do."""
    from lingua_synth.files import write_json
    from lingua_synth.scaling import compare_tokenizers, load_runs

    args, study = _split(argv, CompareTokenizersArgs, "compare-tokenizers")
    found = compare_tokenizers(
        load_runs(_table(args.table, study)),
        tokenizer=args.tokenizer or next(iter(study.tokenizers), None),
        base=args.base or None,
        target=args.target,
        match=args.by or study.match,
        tolerance=args.tolerance,
        margin=args.margin,
        level=args.level,
        n_definition=args.n_definition,
    )
    print(found)
    if args.save:
        write_json(Path(args.save), found.to_dict())
        print(args.save)
    return 0


def _table(table: str, study: StudyArgs) -> Path:
    """The runs table that was named, or the study's. ValueError where there is none."""
    if not table and not study.out:
        raise ValueError(
            "nothing to compare: give a study (config=FILE or out=FOLDER) that was collected, or table=FILE"
        )
    path = Path(table) if table else Path(study.out) / "runs.csv"
    if not path.is_file():
        raise ValueError(f"no runs table {path}; `lingua-synth study collect` writes it")
    return path


def known_runs(study: StudyArgs) -> list[QueuedRun]:
    """The runs of a study: those of its last launch, read in milliseconds, if its YAML still says the same or `out` is
    all that was given; planned anew otherwise."""
    if not study.out:
        raise ValueError("out is not set: give the study's YAML, config=FILE, or its folder, out=runs/study")
    latest = read_latest(Path(study.out))
    is_only_folder = dataclasses.replace(study, out="") == StudyArgs()
    if latest is not None and (is_only_folder or latest["study_sha256"] == study_sha256(study)):
        return read_plan(Path(study.out), latest["plan"])[1]
    if is_only_folder:
        raise ValueError(f"{study.out} holds no study that was launched; give its YAML, config=FILE")
    return queue(plan_study(study))


def study_sha256(study: StudyArgs) -> str:
    """What the study's YAML says of its runs; how they are launched is no part of it."""
    return sha256_json({key: value for key, value in to_dict(study).items() if key != "launch"})


def _study(argv: Sequence[str], action: str) -> StudyArgs:
    return parse_study(argv, prog=f"lingua-synth study {action}")


def _split(argv: Sequence[str], cls: type[T], action: str) -> tuple[T, StudyArgs]:
    """The action's own keys, and the study's from the other words."""
    prog = f"lingua-synth study {action}"
    if any(word in HELP_FLAGS for word in argv):
        print(help_text(cls, prog=prog))
        raise SystemExit(0)
    own = {name.name for name in dataclasses.fields(cls)}  # type: ignore[arg-type]
    mine = [word for word in argv if word.partition("=")[0].partition(".")[0] in own]
    return parse_args(cls, mine, prog=prog), _study([word for word in argv if word not in mine], action)
