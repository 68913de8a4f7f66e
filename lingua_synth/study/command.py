"""`lingua-synth study plan|launch|status|collect config=study.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lingua_synth.config import HELP_FLAGS, help_text, parse_args
from lingua_synth.study.collect import collect
from lingua_synth.study.plan import PlannedRun, StudyArgs, plan_study, study_status

ACTIONS = ("plan", "launch", "status", "collect")


def main(argv: Sequence[str]) -> int:
    """Plan, train, look at, or collect a study."""
    if not argv or argv[0] not in ACTIONS:
        if argv and argv[0] in HELP_FLAGS:
            print(help_text(StudyArgs, prog=f"lingua-synth study {'|'.join(ACTIONS)}"))
            return 0
        raise ValueError(f"`lingua-synth study` takes one of {', '.join(ACTIONS)}, then config=FILE")
    action, study = argv[0], parse_args(StudyArgs, argv[1:], prog=f"lingua-synth study {argv[0]}")
    runs = plan_study(study)
    if action == "plan":
        _print_plan(runs)
    elif action == "launch":
        from lingua_synth.study.launch import launch

        launch(runs, num_workers=study.num_workers, threads_per_worker=study.threads_per_worker)
        _collect(study, runs)
    elif action == "status":
        for state, names in study_status(runs).items():
            print(f"{state:9} {len(names):5} {' '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
    else:
        _collect(study, runs)
    return 0


def _print_plan(runs: list[PlannedRun]) -> None:
    for run in runs:
        print(f"{run.run_id:50} {run.args.synth.tokens or 0:>16,} tokens  {run.flops:.3g} FLOPs")
    print(
        f"{len(runs)} runs, {sum(run.args.synth.tokens or 0 for run in runs):,} tokens, "
        f"{sum(run.flops for run in runs):.3g} FLOPs"
    )


def _collect(study: StudyArgs, runs: list[PlannedRun]) -> None:
    from lingua_synth.scaling import write_runs

    rows, unfinished = collect(run.args.dump_dir for run in runs)
    if not rows:
        raise ValueError(
            f"no run of the study in {study.out} is finished yet; train them with `lingua-synth study launch`"
        )
    path = Path(study.out) / "runs.csv"
    write_runs(rows, path)
    print(f"{path}: {len(rows)} runs" + (f"; not finished: {', '.join(unfinished)}" if unfinished else ""))
