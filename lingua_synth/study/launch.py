"""Starting the training of a study: here, as background jobs of this machine, or as an array of SLURM jobs.

All three run the same agent (`agent.py`), which draws runs from the study's folder until none is left. `here` is an
agent in the calling process; `local` and `slurm` are submitit's executors, one job per node. Any number of launches of
one study may be at work at the same time, on any number of machines that share its disk.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from lingua_synth.config import needs_extra, to_dict
from lingua_synth.files import read_json, write_json
from lingua_synth.leases import workers_here
from lingua_synth.study.agent import Agent, AgentJob, config_path, trains_in_worker
from lingua_synth.study.board import (
    CLAIMS,
    LAUNCH,
    Limits,
    QueuedRun,
    begin_launch,
    queue,
    read_attempts,
    read_launch,
    tail,
    write_plan,
)
from lingua_synth.study.launch_args import LaunchArgs, validate_launch
from lingua_synth.study.node import GPUS, Meeting, Node, Place, run_command_words, run_environment, visible_gpus
from lingua_synth.study.plan import PlannedRun

JOBS = "jobs"
"""Folder of submitit's files below <study>/launch: scripts, pickles, what jobs said."""
SUBMITTED = "submitted.json"
SHOWN_FAILURES = 5
LOCAL_MINUTES = 60 * 24 * 365
"""submitit ends local jobs after a time; these end when there is nothing left to do."""
CPUS_PER_GPU = 4
"""A rank computes on one, reads batches on another, and writes checkpoints on a third."""
NO_SLURM = (
    "this machine has no SLURM (no {missing} in PATH): launch on a login node of the cluster, or take "
    "launch.engine=here or local. launch.dry_run=true prints the script without SLURM"
)


@dataclasses.dataclass(frozen=True)
class Launched:
    """What a launch did."""

    folder: Path
    """Of the study."""
    job_ids: tuple[str, ...] = ()
    """Of the jobs that it submitted."""
    note: str = ""
    """What a person should know."""


def launch(
    runs: Sequence[PlannedRun],
    args: LaunchArgs | None = None,
    *,
    folder: str | Path | None = None,
    study_sha256: str | None = None,
    progress: bool = True,
    desc: str = "study",
) -> Launched:
    """Train every unfinished run of `runs`; with engine slurm, submit the jobs that will.

    `folder` is the study's (default: two levels above the first run's folder, study/runs/<run_id>). Engines here and
    local return when every run is finished, those that other launchers train included. A run that fails does not stop
    the others; at the end a ValueError names the failed ones with their reasons and the last lines of their logs, and
    the next launch tries them again. Preempted (a SystemExit) after SIGTERM, with all runs at a checkpoint.

    ValueError, before anything starts: a run that no node can take, submitit or SLURM missing. With `args.dry_run`
    nothing is started or written, and `note` is `describe_launch`'s text.
    """
    args = args or LaunchArgs()
    validate_launch(args)
    if not runs:
        raise ValueError("there is no run to launch")
    folder = Path(folder) if folder is not None else Path(runs[0].args.dump_dir).parent.parent
    if args.dry_run:
        return Launched(folder, note=describe_launch(runs, args, folder=folder))
    queued = queue(runs)
    if all(run.is_finished for run in queued):
        return Launched(folder, note=f"all {len(runs)} runs are finished")
    args = _with_gpus(args, queued)
    if args.engine != "here":
        _require_submitit()
    if args.engine == "slurm":
        _require_slurm()
    plan = write_plan(folder, queued, study_sha256=study_sha256)
    launch_id = begin_launch(folder, plan, queued, to_dict(args))
    if args.engine == "slurm":
        return _submit_to_slurm(folder, args, launch_id)
    job_ids: tuple[str, ...] = ()
    with _Progress(queued, desc, progress) as bar:
        if args.engine == "local":
            job_ids = _run_local_jobs(folder, queued, args, launch_id, bar)
        else:
            limits = Limits(args.max_attempts, read_launch(folder, launch_id)["failures_before"])
            Agent(folder, queued, args, limits, stay=True, on_change=bar.follow).work()
    _refuse_unfinished(folder, queued)
    return Launched(folder, job_ids)


class _Progress:
    """A bar in FLOPs, which are what a run costs, over all launchers."""

    def __init__(self, runs: Sequence[QueuedRun], desc: str, progress: bool) -> None:
        self._flops = {run.run_id: run.flops for run in runs}
        self._seen = {run.run_id for run in runs if run.is_finished}
        self._bar = tqdm(
            total=sum(self._flops.values()), initial=sum(self._flops[name] for name in self._seen), unit="FLOP",
            unit_scale=True, desc=f"{desc} ({len(runs)} runs)", disable=not progress, dynamic_ncols=True,
        )  # fmt: skip

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def follow(self, agent: Agent) -> None:
        self.update(agent.finished, agent.waits_for)

    def update(self, finished: Collection[str], note: str = "") -> None:
        new = set(finished) - self._seen
        self._seen |= new
        self._bar.set_postfix_str(f"{len(self._seen)}/{len(self._flops)} done" + f"; {note}" * bool(note), bool(note))
        if new:
            self._bar.update(sum(self._flops[name] for name in new))


def _refuse_unfinished(folder: Path, runs: Sequence[QueuedRun]) -> None:
    failed = {run.run_id: read_attempts(folder, run.run_id) for run in runs if not run.is_finished}
    if not failed:
        return
    shown: list[str] = []
    for run in runs:
        if run.run_id not in failed or len(shown) == SHOWN_FAILURES:
            continue
        attempts = failed[run.run_id]
        if attempts:
            log = "".join(f"\n      | {line}" for line in attempts[-1].log)
            shown.append(f"\n  {run.run_id}: {attempts[-1].reason}{log}")
        else:
            waits = [name for name in run.after if name in failed]
            shown.append(f"\n  {run.run_id}: " + (f"waits for {waits[0]}" if waits else "nobody could start it"))
    more = f"\n  and {len(failed) - len(shown)} more" if len(failed) > len(shown) else ""
    raise ValueError(
        f"{len(failed)} of {len(runs)} runs failed; the others are kept, and the next call tries these "
        f"again:{''.join(shown)}{more}\n"
        f"Each run's train.log is in {Path(runs[0].dump_dir).parent}/<run>/"
    )


# --- what nodes must have ---


def _with_gpus(args: LaunchArgs, runs: Sequence[QueuedRun]) -> LaunchArgs:
    """The arguments with `gpus_per_node` filled in; ValueError for a run that no node can take."""
    largest = max(runs, key=lambda run: run.num_gpus)
    if args.engine == "slurm":
        if args.max_nodes > 1 and args.gpus_per_node is None:
            raise ValueError(
                f"launch.max_nodes is {args.max_nodes}, so runs may span nodes: say with launch.gpus_per_node how many "
                "GPUs a node has"
            )
        there, where = args.gpus_per_node or largest.num_gpus, "launch.gpus_per_node is"
    else:
        visible = len(visible_gpus()) if largest.num_gpus else 0
        there, where = visible // args.jobs, f"this machine has {visible}" + f" for {args.jobs} jobs" * (args.jobs > 1)
        if args.gpus_per_node is not None and args.gpus_per_node > there:
            raise ValueError(f"launch.gpus_per_node is {args.gpus_per_node}, {where}")
        there = there if args.gpus_per_node is None else args.gpus_per_node
    node = Node([str(k) for k in range(there)], max_nodes=args.max_nodes)
    left = [run for run in runs if not run.is_finished]
    refused = [run for run in left if not node.can_ever_take(run)]
    if refused:
        run = max(refused, key=lambda run: run.num_gpus)
        raise ValueError(
            f"run {run.run_id} trains on {run.num_gpus} GPU(s) and a node has {there} ({where}"
            f"{f' {there}' if args.engine == 'slurm' else ''}); {len(refused)} of {len(runs)} runs are too large. "
            "Launch where there are as many, lower num_gpus of the study, or let runs take several whole nodes "
            f"(launch.max_nodes, now {args.max_nodes}; num_gpus is then a multiple of a node's)"
        )
    most = max((node.num_nodes(run) for run in left), default=1)
    if args.engine != "here" and most > args.jobs:
        raise ValueError(
            f"a run takes {most} nodes at a time, and launch.jobs is {args.jobs}; raise it to {most} or more"
        )
    return dataclasses.replace(args, gpus_per_node=there)


def _require_submitit() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise ValueError(f"launch.engine: {needs_extra(['submitit'], 'slurm')}") from None


def _require_slurm() -> None:
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if missing:
        raise ValueError(f"launch.engine=slurm: {NO_SLURM.format(missing=' and no '.join(missing))}")


# --- jobs on this machine ---


def _run_local_jobs(
    folder: Path, runs: Sequence[QueuedRun], args: LaunchArgs, launch_id: str, bar: _Progress
) -> tuple[str, ...]:
    """Start as many jobs as are missing and wait until nothing is left to do; they outlive this process.

    Jobs of an earlier launch that still work count: launching again after the launcher was killed doubles nothing.
    """
    import submitit

    claims = folder / LAUNCH / CLAIMS
    executor = submitit.LocalExecutor(folder=folder.absolute() / LAUNCH / JOBS)
    jobs: list[Any] = []
    gpus = [int(gpu) for gpu in _numbered_gpus()] if args.gpus_per_node else []
    for k in range(len(workers_here(claims)), args.jobs):
        per_job = args.gpus_per_node or 0
        executor.update_parameters(
            timeout_min=LOCAL_MINUTES,
            gpus_per_node=per_job,
            visible_gpus=gpus[k * per_job : (k + 1) * per_job],
            signal_delay_s=args.slurm.signal_s,
            stderr_to_stdout=True,
        )
        jobs.append(executor.submit(AgentJob(str(folder.absolute()), launch_id)))
    open_runs = list(runs)
    while open_runs:
        is_over = all(job.done() for job in jobs) and not workers_here(claims)
        open_runs = [run for run in open_runs if not run.is_finished]
        bar.update({run.run_id for run in runs} - {run.run_id for run in open_runs})
        if is_over:
            break
        time.sleep(0.3)
    broken = [job for job in jobs if open_runs and not job.paths.result_pickle.exists()]
    if broken:
        said = "".join(f"\n  | {line}" for line in tail(broken[0].paths.stdout))
        raise ValueError(f"{len(broken)} of {len(jobs)} jobs ended before the study; {broken[0].paths.stdout}:{said}")
    return tuple(job.job_id for job in jobs)


def _numbered_gpus() -> list[str]:
    gpus = visible_gpus()
    if not all(gpu.isdigit() for gpu in gpus):
        raise ValueError(
            f"launch.engine=local hands out GPUs by number, and CUDA_VISIBLE_DEVICES names them ({', '.join(gpus)}); "
            "take launch.engine=here, or number them"
        )
    return gpus


# --- SLURM ---


def slurm_parameters(folder: Path, args: LaunchArgs) -> dict[str, Any]:
    """The parameters of submitit's SLURM executor; what is not asked for is left out."""
    asked = args.slurm
    cpus = asked.cpus_per_task
    if cpus is None:
        # SLURM's default is one core for all: eight ranks on it would starve their GPUs.
        gpus = args.gpus_per_node or 0
        cpus = CPUS_PER_GPU * gpus if gpus else args.num_workers * args.threads_per_worker
    parameters = {
        "job_name": f"lingua-synth-{folder.absolute().name}",
        "nodes": 1,
        "ntasks_per_node": 1,
        "time": asked.time_min,
        "signal_delay_s": asked.signal_s,
        "cpus_per_task": cpus,
        "gpus_per_node": args.gpus_per_node or None,
        "mem": None if asked.mem_gb is None else f"{round(asked.mem_gb * 1024)}M",
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "array_parallelism": args.jobs,
        "stderr_to_stdout": True,
        "setup": list(asked.setup) or None,
        # A job whose node fails, or that is preempted, starts again and takes up what it held.
        "additional_parameters": {"requeue": True} | asked.additional,
    }
    return {key: value for key, value in parameters.items() if value is not None}


def slurm_script(folder: Path, args: LaunchArgs) -> str:
    """The script that engine slurm hands to sbatch, letter for letter; needs submitit, not SLURM."""
    _require_submitit()
    from submitit.slurm import slurm

    make_script: Any = slurm._make_sbatch_string
    where = folder.absolute() / LAUNCH / JOBS
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(where))}"
    count = {"map_count": args.jobs} if args.jobs > 1 else {}
    return make_script(command=command, folder=where, **slurm_parameters(folder, args), **count)


def _submit_to_slurm(folder: Path, args: LaunchArgs, launch_id: str) -> Launched:
    import submitit

    record = folder / LAUNCH / JOBS / SUBMITTED
    earlier = read_json(record) if record.is_file() else []
    queued = _queued_jobs(earlier)
    missing = args.jobs - len(queued)
    if missing < 1:
        note = (
            f"{len(queued)} jobs of this study are in SLURM's queue already ({', '.join(queued)}); launch.jobs above "
        )
        return Launched(folder, (), note + "that adds more")
    executor = submitit.SlurmExecutor(folder=folder.absolute() / LAUNCH / JOBS, max_num_timeout=args.slurm.max_timeouts)
    executor.update_parameters(**slurm_parameters(folder, dataclasses.replace(args, jobs=missing)))
    job = AgentJob(str(folder.absolute()), launch_id)
    try:
        if missing == 1:
            jobs = [executor.submit(job)]
        else:
            with executor.batch():
                jobs = [executor.submit(job) for _ in range(missing)]
        ids = tuple(submitted.job_id for submitted in jobs)
    except submitit.core.utils.FailedJobError as error:
        raise ValueError(f"sbatch refused the jobs: {str(error).strip()}") from None
    write_json(record, [*queued, *ids])
    return Launched(folder, ids, f"SLURM has {len(ids)} job(s): {', '.join(ids)}; what they say is in {record.parent}")


def _queued_jobs(job_ids: Sequence[str]) -> list[str]:
    """Those of the jobs that SLURM still has, waiting or running. ValueError when it does not answer."""
    if not job_ids:
        return []
    shown = subprocess.run(["squeue", "--noheader", "--array", "--format=%i"], capture_output=True, text=True)
    if shown.returncode:
        raise ValueError(f"SLURM does not answer (squeue: {shown.stderr.strip()}); is its controller up?")
    there = set(shown.stdout.split())
    return [job_id for job_id in job_ids if job_id in there]


# --- what would be done ---


def describe_launch(
    runs: Sequence[PlannedRun], args: LaunchArgs | None = None, *, folder: str | Path | None = None
) -> str:
    """What `launch` with the same arguments would start, as commands of a shell and, for SLURM, the script for sbatch.

    Starts and writes nothing, and needs no SLURM. The errors of `launch`.
    """
    args = args or LaunchArgs()
    validate_launch(args)
    if not runs:
        raise ValueError("there is no run to launch")
    folder = Path(folder) if folder is not None else Path(runs[0].args.dump_dir).parent.parent
    queued = queue(runs)
    args = _with_gpus(args, queued)
    open_runs = sorted((run for run in queued if not run.is_finished), key=lambda run: -run.flops)
    shared = run_environment(
        Place((), 0), num_threads=args.threads_per_worker, cache_dir=args.cache_dir or folder / LAUNCH / "cache"
    )
    lines = [f"export {name}={shlex.quote(value)}" for name, value in shared.items() if name != GPUS]
    lines += ["", f"# {len(open_runs)} of {len(queued)} runs, in this order; configs/ is written when a run starts"]
    for run in open_runs:
        node = Node(
            [str(k) for k in range(args.gpus_per_node or 0)], runs_per_gpu=args.runs_per_gpu, max_nodes=args.max_nodes
        )
        place = node.take(run)
        assert place is not None, "_with_gpus refuses what does not fit"
        num_nodes = node.num_nodes(run)
        notes = [f"after {', '.join(run.after)}"] if run.after else []
        if trains_in_worker(run, place):
            notes.append("in a process that trains several runs, the same as")
        elif num_nodes > 1:
            notes.append(f"on {num_nodes} nodes at a time, K = 0 to {num_nodes - 1}")
        elif place.gpus:
            notes.append(f"on any {len(place.gpus)} of a node's GPUs")
        if notes:
            lines.append(f"# {'; '.join(notes)}")
        config = config_path(folder, run)
        meeting = Meeting(0, num_nodes, "FIRST_NODE", 29500) if num_nodes > 1 else None
        words = shlex.join(run_command_words(config, len(place.gpus), meeting)).replace(
            "--node-rank 0", "--node-rank K"
        )
        lines.append(f"{GPUS}={','.join(place.gpus)} {words}")
    if args.engine == "slurm":
        lines += ["", f"# sbatch, {args.jobs} job(s) at a time, each drawing from these runs until none is left:"]
        lines.append(slurm_script(folder, args))
    return "\n".join(lines)
