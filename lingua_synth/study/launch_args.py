"""How the runs of a study are spread over machines: the section `launch` of a study's YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ENGINES = ("here", "local", "slurm")


@dataclass
class SlurmArgs:
    """What is asked of SLURM for every job (one node each)."""

    partition: str | None = None
    """Partition; null: the cluster's default."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    time_min: int = 1440
    """Minutes until SLURM ends a job. Its runs write checkpoints before and the job goes back into the queue."""
    signal_s: int = 300
    """Seconds before that end at which runs are told to write their checkpoints: a step and a checkpoint must fit."""
    max_timeouts: int = 100
    """Times a job goes back into the queue at the end of its time."""
    cpus_per_task: int | None = None
    """CPU cores of a job; null: 4 for each of its GPUs, or launch.num_workers x launch.threads_per_worker without."""
    mem_gb: float | None = None
    """Memory of a job; null: the cluster's default."""
    constraint: str | None = None
    """Features the nodes must have."""
    setup: list[str] = field(default_factory=list)
    """Shell lines of the job before it starts (module load ...)."""
    additional: dict[str, Any] = field(default_factory=dict)
    """Any other option of sbatch by its long name, e.g. {reservation: mine}."""


@dataclass
class LaunchArgs:
    """Where and how many at a time."""

    engine: str = "here"
    """here: this process trains until all is done. local: background jobs on this machine (submitit). slurm: an array
    of jobs (submitit)."""
    jobs: int = 1
    """Of local and slurm: jobs at work at the same time, each on one node; all draw from the study's runs."""
    num_workers: int = 2
    """CPU runs trained at the same time on a node."""
    threads_per_worker: int = 1
    """CPU threads of each run; on a CPU, two runs of one thread outpace one run of two by 1.3 to 1.5."""
    gpus_per_node: int | None = None
    """GPUs of a node that may be used; null: those that are visible, under slurm those of the largest run."""
    max_nodes: int = 1
    """Most nodes of one run: a run of more GPUs than a node has takes as many whole nodes at a time, of whatever jobs
    are free; `here`, of the machines on which the launch was started."""
    gather_s: float = 1800.0
    """Seconds that a node stays free for a run of several while others are missing; then it takes smaller runs for as
    long."""
    runs_per_gpu: int = 1
    """Runs of one GPU that share it; above 1 for models too small to fill it."""
    max_attempts: int = 3
    """Tries a failing run has in one launch. What a wrong input caused is not tried again before the next launch."""
    idle_s: float = 600.0
    """Of slurm: seconds that a job with nothing to do waits for runs that others must finish first."""
    cache_dir: str = ""
    """Folder of compiled kernels, shared by all runs; empty: launch/cache in the study. Variables that are set
    (TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR) win."""
    dry_run: bool = False
    """Print what would be run, start nothing, write nothing."""
    slurm: SlurmArgs = field(default_factory=SlurmArgs)
    """Of slurm: what is asked for."""


def validate_launch(args: LaunchArgs) -> None:
    """ValueError for values that no launch can have."""
    if args.engine not in ENGINES:
        raise ValueError(f"launch.engine is {', '.join(ENGINES)}; got {args.engine!r}")
    for key, value, least in (
        ("jobs", args.jobs, 1),
        ("num_workers", args.num_workers, 1),
        ("threads_per_worker", args.threads_per_worker, 1),
        ("runs_per_gpu", args.runs_per_gpu, 1),
        ("max_attempts", args.max_attempts, 1),
        ("max_nodes", args.max_nodes, 1),
        ("gather_s", args.gather_s, 0),
        ("idle_s", args.idle_s, 0),
        ("gpus_per_node", args.gpus_per_node or 0, 0),
        ("slurm.time_min", args.slurm.time_min, 1),
        ("slurm.signal_s", args.slurm.signal_s, 1),
        ("slurm.max_timeouts", args.slurm.max_timeouts, 0),
    ):
        if value < least:
            raise ValueError(f"launch.{key} must be at least {least}, got {value}")
    if args.engine == "here" and args.jobs > 1:
        raise ValueError(
            f"launch.jobs={args.jobs} is for launch.engine local or slurm; here, launch.num_workers and "
            "launch.runs_per_gpu say how many runs go at a time"
        )
    if args.slurm.signal_s >= 60 * args.slurm.time_min:
        raise ValueError(
            f"launch.slurm.signal_s {args.slurm.signal_s} is the whole of a job's time "
            f"({args.slurm.time_min} minutes); lower it"
        )
