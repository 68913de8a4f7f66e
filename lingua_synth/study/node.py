"""What one machine can train at a time, and the processes that do it.

A node has GPUs, each cut into `runs_per_gpu` shares, and places for CPU runs. A run of one GPU takes one share, a run
of several takes as many whole GPUs, a CPU run takes one place, and of a run of several nodes (`teams.py`) each takes
all GPUs. `Node.take` finds room for a run, `give_back` frees it.

CPU runs go to worker processes that import torch once and train one run after the other (`Worker`): a nano model trains
for seconds, and importing torch takes as long. Every other run is a process of its own (`Process`), under torchrun when
it has several GPUs. Both end with the process that started them, also when that one is killed with -9.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lingua_synth.study.board import QueuedRun, tail

GPUS = "CUDA_VISIBLE_DEVICES"
PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal a process gets when the one that started it ends."""
ERROR = "error: "
"""How `config.run_command` begins the line of a wrong input, which ends with exit code 2."""
BAD_INPUT = 2


@dataclass
class Ended:
    """How a run's process left the run: finished, failed, left (told to), or busy (somebody else is in its folder)."""

    outcome: str
    reason: str = ""
    is_final: bool = False
    log: list[str] = field(default_factory=list)


# --- room ---


@dataclass(frozen=True)
class Place:
    """Room for one run: the GPUs it sees, none for a CPU run."""

    gpus: tuple[str, ...]
    shares: int
    """Of each of the GPUs."""


class Node:
    """Free room of this machine."""

    def __init__(self, gpus: Sequence[str], *, runs_per_gpu: int = 1, num_workers: int = 1, max_nodes: int = 1) -> None:
        self.num_gpus = len(gpus)
        self._max_nodes = max_nodes
        self._runs_per_gpu = runs_per_gpu
        self._free_shares = dict.fromkeys(gpus, runs_per_gpu)
        self._free_places = num_workers

    def is_cpu_run(self, run: QueuedRun) -> bool:
        """Whether the run trains on the CPU here: it was planned so, or may (synth.device auto) and must."""
        device = run.config["synth"]["device"]
        return run.num_gpus == 0 or device == "cpu" or (device == "auto" and self.num_gpus == 0)

    def num_nodes(self, run: QueuedRun) -> int:
        """How many nodes like this one the run takes at a time."""
        fits = self.is_cpu_run(run) or run.num_gpus <= self.num_gpus
        return 1 if fits or not self.num_gpus else -(-run.num_gpus // self.num_gpus)

    def can_ever_take(self, run: QueuedRun) -> bool:
        """Whether the run, or this node's part of it, fits on this machine when nothing else is on it."""
        if self.is_cpu_run(run) or run.num_gpus <= self.num_gpus:
            return True
        # Of several nodes each gives all of its GPUs.
        return self.num_gpus > 0 and run.num_gpus % self.num_gpus == 0 and self.num_nodes(run) <= self._max_nodes

    def take(self, run: QueuedRun) -> Place | None:
        """Room for the run, or for this node's part of it; None while there is too little."""
        if self.is_cpu_run(run):
            if self._free_places < 1:
                return None
            self._free_places -= 1
            return Place((), 0)
        if not self.can_ever_take(run):
            return None
        num_gpus = min(run.num_gpus, self.num_gpus)
        shares = 1 if run.num_gpus == 1 else self._runs_per_gpu
        # The fullest GPU that has room: whole ones stay whole for runs that need them.
        fitting = sorted((free, gpu) for gpu, free in self._free_shares.items() if free >= shares)
        if len(fitting) < num_gpus:
            return None
        chosen = tuple(sorted((gpu for _, gpu in fitting[:num_gpus]), key=list(self._free_shares).index))
        for gpu in chosen:
            self._free_shares[gpu] -= shares
        return Place(chosen, shares)

    def give_back(self, place: Place) -> None:
        """The run in `place` has ended."""
        if not place.gpus:
            self._free_places += 1
        for gpu in place.gpus:
            self._free_shares[gpu] += place.shares


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or every GPU of this machine by number; without loading torch."""
    named = os.environ.get(GPUS)
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1", "NoDevFiles")]
    try:
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    lines = shown.stdout.splitlines() if shown.returncode == 0 else []
    return [str(k) for k in range(sum(line.startswith("GPU ") for line in lines))]


# --- commands ---


def run_environment(place: Place, *, num_threads: int, cache_dir: str | Path) -> dict[str, str]:
    """Variables that a run's process needs beside those of its parent: threads, GPUs, caches of compiled kernels.

    The caches give way to variables that are set.
    """
    caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    folders = {name: os.environ.get(name, str(Path(cache_dir).absolute() / sub)) for name, sub in caches.items()}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(num_threads))
    return threads | folders | {GPUS: ",".join(place.gpus)}


@dataclass(frozen=True)
class Meeting:
    """Where the nodes of a run meet, and as which of them this one joins."""

    member: int
    num_nodes: int
    address: str
    port: int


def run_command_words(config: Path, num_gpus: int, meeting: Meeting | None = None) -> list[str]:
    """The command that trains the run of a config file on so many GPUs (0: on the CPU), of each node where it has
    several."""
    words = ["-m", "lingua_synth.train", f"config={config}"]
    if meeting is not None:
        where = ["--nnodes", str(meeting.num_nodes), "--node-rank", str(meeting.member)]
        where += ["--master-addr", meeting.address, "--master-port", str(meeting.port)]
        words = ["-m", "torch.distributed.run", *where, "--nproc-per-node", str(num_gpus), *words]
    elif num_gpus > 1:
        # The module behind `torchrun`, with this Python: the script need not be in PATH.
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_gpus), *words]
    return [sys.executable, *words]


# --- processes ---


class Worker:
    """A process that has torch loaded and trains CPU runs, one after the other."""

    def __init__(self, environment: Mapping[str, str], num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, num_threads)
        self._process = context.Process(target=_work, args=arguments, name="lingua_synth worker", daemon=True)
        # OpenMP reads its thread count when torch is loaded: it must be in the environment before the spawn.
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            self._process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        theirs.close()

    def begin(self, run: QueuedRun) -> None:
        """Train `run`; `poll` says when it is over."""
        self.connection.send(dict(run.config))

    def poll(self) -> Ended | None:
        """How the run ended, or None while it goes on."""
        try:
            return self.connection.recv() if self.connection.poll() else None
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            return Ended("failed", f"its worker process died ({how}: out of memory, or killed)")

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def ask_to_leave(self) -> None:
        """Tell the run to write a checkpoint and leave; a worker between two runs ends."""
        self._process.terminate()

    def kill(self) -> None:
        """End at once. Between two runs a worker holds nothing, and leaving by itself would take it seconds."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _work(connection: multiprocessing.connection.Connection, num_threads: int) -> None:
    """The life of a worker."""
    # Ctrl-C reaches every process of the terminal; the one that started us decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a launcher"

    def end_with_parent() -> None:
        # While a run trains nobody looks at the connection; this ends it within the second its launcher is gone.
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    import torch
    from tqdm import tqdm

    # tqdm's own lock is a semaphore between processes, which a worker that is killed would leave behind.
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(num_threads)
    while True:
        try:
            config = connection.recv()
        except EOFError:
            return
        connection.send(_train(config))


def _train(config: dict[str, Any]) -> Ended:
    from lingua_synth.config import build_args
    from lingua_synth.files import FolderInUse
    from lingua_synth.train.args import TrainArgs
    from lingua_synth.train.hosts import train
    from lingua_synth.train.preemption import Preempted

    try:
        args = build_args(TrainArgs, config)
        # Whoever runs us goes back into SLURM's queue, not the single run.
        args.synth.requeue = False
        train(args, progress=False)
        return Ended("finished")
    except Preempted as left:
        return Ended("left", str(left))
    except FolderInUse as error:
        return Ended("busy", str(error))
    except ValueError as error:
        return Ended("failed", str(error), is_final=True)
    except Exception as error:
        return Ended("failed", f"{type(error).__name__}: {error}")


class Process:
    """A run that is a process of its own."""

    def __init__(self, run: QueuedRun, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._run = run
        self._is_torchrun = "torch.distributed.run" in command
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(log, "ab")  # noqa: SIM115 (held open for the length of the run)
        self._begin = self._file.tell()
        self._was_asked = False
        self._process = subprocess.Popen(
            list(command),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            # Signals to the launcher's group (Ctrl-C, SLURM's --signal) are the launcher's to pass on: torchrun knows
            # nothing of SIGUSR2 and would die of it with its ranks still training.
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )

    def poll(self) -> Ended | None:
        """How the run ended, or None while it goes on."""
        code = self._process.poll()
        if code is None:
            return None
        self._file.close()
        if self._run.is_finished:
            return Ended("finished")
        log = tail(self._log, since=self._begin)
        if self._was_asked:
            return Ended("left", log[-1] if log else "")
        said = said_error(self._log, since=self._begin)
        if "is in use by" in said:
            return Ended("busy", said)
        if said:
            return Ended("failed", said, is_final=True, log=log)
        return Ended("failed", f"signal {-code}" if code < 0 else f"exit code {code}", code == BAD_INPUT, log)

    def ask_to_leave(self) -> None:
        """Tell the run to write a checkpoint and leave."""
        self._was_asked = True
        ranks = _children(self._process.pid) if self._is_torchrun else []
        with contextlib.suppress(ProcessLookupError):
            # Each rank by itself: torchrun would give them 30 seconds.
            for pid in ranks:
                os.kill(pid, signal.SIGUSR2)
            if not ranks:
                self._process.terminate()

    def kill(self) -> None:
        """End at once, with all that it started."""
        ranks = _children(self._process.pid)
        for kill, pid in [(os.killpg, self._process.pid), *((os.kill, rank) for rank in ranks)]:
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        self._process.wait()
        self._file.close()


def said_error(log: Path, *, since: int = 0) -> str:
    """The first message about a wrong input in a log from byte `since` on; empty where there is none."""
    said = [line.partition(ERROR)[2] for line in tail(log, 200, since=since) if ERROR in line]
    return said[0] if said else ""


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In the child, before it becomes the run: SIGTERM (a checkpoint, then the end) when its launcher dies."""
    assert _LIBC is not None, "called on Linux alone"
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
