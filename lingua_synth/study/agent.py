"""Training the runs of a study on one machine, beside any number of other machines that do the same.

An agent claims a run that nobody finished, trains or has given up, the largest first, gives it room on its node, notes
how it ended, and looks for the next. Nobody tells agents what to do: they meet in the study's folder (`board.py`). Its
own end:

- nothing is left to do: it leaves. Here (`stay=True`) it stays until the others' runs are finished too, or takes them
  over when those others die; in a job it waits `idle_s` for runs that unlock further ones and then gives the node back.
- SIGTERM, SIGUSR2 or Ctrl-C: its runs write checkpoints and leave, the claims are given back, then the agent leaves.
- kill -9: its runs end with it, and whoever comes next takes them over.

A run of several nodes is trained by as many agents that meet (`teams.py`): each gives it its whole node.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lingua_synth.config import build_args
from lingua_synth.files import atomic_file
from lingua_synth.leases import LEASE_S, Leases
from lingua_synth.study.board import (
    CLAIMS,
    CONFIGS,
    LAUNCH,
    LOGS,
    Limits,
    QueuedRun,
    begin_attempt,
    end_attempt,
    end_killed_attempt,
    read_attempts,
    read_launch,
    read_plan,
    tail,
)
from lingua_synth.study.launch_args import LaunchArgs
from lingua_synth.study.node import (
    Ended,
    Meeting,
    Node,
    Place,
    Process,
    Worker,
    run_command_words,
    run_environment,
    visible_gpus,
)
from lingua_synth.study.teams import Seat, follow, has_free_seat, is_complete, lead
from lingua_synth.train.preemption import Preempted

POLL_S = 0.2
"""Between two looks at runs that are processes of their own; a worker's end is heard at once."""
LOOK_S = 1.0
"""Between two looks at what others do, while there is room here and nothing to put into it; each look that finds
nothing makes the next one wait longer, up to:"""
MOST_LOOK_S = 2.0
MOST_LOOK_S_OF_JOBS = 30.0
"""A hundred nodes that ask a shared disk about a thousand runs every second would be felt by everybody."""
BUSY_S = 5.0
"""Before a run whose folder somebody else holds is tried again."""


@dataclass
class _Running:
    """A run that this agent trains."""

    run: QueuedRun
    place: Place
    process: Worker | Process | Seat


class Agent:
    """See the module. `work` does everything; it calls `on_change` with the agent when a run ends, and now and then."""

    def __init__(
        self,
        folder: Path,
        runs: Sequence[QueuedRun],
        args: LaunchArgs,
        limits: Limits,
        *,
        stay: bool,
        lease_s: float = LEASE_S,
        on_change: Callable[[Agent], None] | None = None,
    ) -> None:
        self._folder = folder
        # The largest first, so that no machine idles at the end; what others wait for is larger than they are.
        self._runs = sorted(runs, key=lambda run: -run.flops)
        self._by_id = {run.run_id: run for run in runs}
        self._args = args
        self._limits = limits
        self._stay = stay
        self._lease_s = lease_s
        self._on_change = on_change or (lambda agent: None)
        gpus = visible_gpus() if any(run.num_gpus for run in runs) else []
        self._node = Node(
            gpus[: args.gpus_per_node],
            runs_per_gpu=args.runs_per_gpu,
            num_workers=args.num_workers,
            max_nodes=args.max_nodes,
        )
        self._running: dict[str, _Running] = {}
        self._idle_workers: list[Worker] = []
        self._busy_until: dict[str, float] = {}
        self._asked = 0
        # A handler writes into one end, whoever waits hears it at the other: a sleep would go on after a signal.
        self._bell = multiprocessing.Pipe(duplex=False)
        self.finished: set[str] = set()
        """Run ids, whoever trained them."""
        self.given_up: dict[str, str] = {}
        """Run id -> why nobody tries it again in this launch."""

    def work(self) -> None:
        """Train until nothing is left to do. Preempted (a SystemExit) after a signal, when all runs have left."""
        with self._listening(), Leases(self._folder / LAUNCH / CLAIMS, self._lease_s) as leases:
            try:
                self._loop(leases)
            except KeyboardInterrupt:
                self._leave(leases)
                raise
            finally:
                # After a fault of ours: nothing may train on without its claim.
                for running in self._running.values():
                    running.process.kill()
                for worker in self._idle_workers:
                    worker.kill()
        if self._asked:
            raise Preempted(
                self._asked, f"signal {self._asked}: the runs have written checkpoints; the same command goes on"
            )

    def _loop(self, leases: Leases) -> None:
        idle_since: float | None = None
        pause, next_look = LOOK_S, 0.0
        while not self._asked:
            has_ended = self._collect_ended(leases)
            if has_ended or time.monotonic() >= next_look:
                has_started = self._start_runs(leases)
                self._on_change(self)
                longest = MOST_LOOK_S if self._stay else MOST_LOOK_S_OF_JOBS
                pause = LOOK_S if has_ended or has_started else min(1.5 * pause, longest)
                next_look = time.monotonic() + pause
                if self._running:
                    idle_since = None
                elif self._is_over(leases, idle_since := idle_since or time.monotonic()):
                    return
            self._wait()
        self._leave(leases)

    def _is_over(self, leases: Leases, idle_since: float) -> bool:
        """Whether there is nothing to wait for, as nothing runs here."""
        open_runs = [run for run in self._runs if not self._is_closed(run)]
        if not open_runs:
            return True
        if not any(self._node.can_ever_take(run) for run in open_runs):
            run = max(open_runs, key=lambda run: run.num_gpus)
            raise ValueError(
                f"run {run.run_id} and {len(open_runs) - 1} others train on GPUs, {run.num_gpus} at most, and this "
                f"machine shows {self._node.num_gpus}: none of what is left can be trained here"
            )
        if self._stay:
            return not any(leases.is_held(run.key) or self._may_start(run) for run in open_runs)
        waits = any(
            self._node.can_ever_take(run) and (not self._may_start(run) or self._may_be_missed(leases, run))
            for run in open_runs
        )
        return not waits or time.monotonic() - idle_since > self._args.idle_s

    # --- what can be started ---

    def _is_closed(self, run: QueuedRun) -> bool:
        """Whether the run is finished, or given up."""
        if run.run_id in self.finished or run.run_id in self.given_up:
            return True
        if run.is_finished:
            self.finished.add(run.run_id)
            return True
        lost = [name for name in run.after if name in self.given_up]
        attempts = read_attempts(self._folder, run.run_id)
        if attempts and self._limits.is_given_up(run.run_id, attempts):
            self.given_up[run.run_id] = _describe(attempts[-1].reason, attempts[-1].log)
        elif lost:
            self.given_up[run.run_id] = f"it waits for {lost[0]}, which failed"
        return run.run_id in self.given_up

    def _may_start(self, run: QueuedRun) -> bool:
        """Whether the run could be started here if nobody held it and there were room: what it follows is finished."""
        return self._node.can_ever_take(run) and all(
            name in self.finished or self._by_id[name].is_finished for name in run.after
        )

    def _start_runs(self, leases: Leases) -> bool:
        """Whether a run was started; as many are as there is room for."""
        self._join_an_earlier_team(leases)
        num_running = len(self._running)
        is_kept_free = False
        for run in self._runs:
            name = run.run_id
            if name in self._running or name in self.finished or name in self.given_up:
                continue
            if is_kept_free and not self._node.is_cpu_run(run):
                continue
            # Room first: that costs nothing, while the file system is asked about each run.
            if time.monotonic() < self._busy_until.get(name, 0) or (place := self._node.take(run)) is None:
                is_kept_free = is_kept_free or self._is_missed(leases, run)
                continue
            if self._is_closed(run) or not self._may_start(run):
                self._node.give_back(place)
                continue
            if leases.claim(run.key) is None:
                seat = self._follow(leases, run, place) if self._node.num_nodes(run) > 1 else None
                if seat is not None:
                    self._running[name] = _Running(run, place, seat)
                else:
                    self._node.give_back(place)
                continue
            # Only now nobody else can end it, or find that its last holder died once too often.
            end_killed_attempt(self._folder, run, read_attempts(self._folder, run.run_id))
            if self._is_closed(run):
                leases.finish(run.key) if run.is_finished else leases.release(run.key)
                self._node.give_back(place)
                continue
            if self._node.num_nodes(run) > 1:
                self._running[name] = _Running(run, place, self._lead(leases, run, place))
                continue
            begin_attempt(self._folder, run, leases.worker)
            self._running[name] = _Running(run, place, self._start(run, place))
        return len(self._running) > num_running

    # --- runs of several nodes ---

    def _lead(self, leases: Leases, run: QueuedRun, place: Place) -> Seat:
        num_nodes = self._node.num_nodes(run)
        write_config(self._folder, run)
        return lead(self._folder, run, leases, num_nodes, self._args.gather_s, self._starter(run, place))

    def _follow(self, leases: Leases, run: QueuedRun, place: Place) -> Seat | None:
        return follow(self._folder, run, leases, self._args.gather_s, self._starter(run, place))

    def _starter(self, run: QueuedRun, place: Place) -> Callable[[Meeting, Path], Process]:
        def start(meeting: Meeting, log: Path) -> Process:
            # The leader wrote the config before it called.
            words = run_command_words(config_path(self._folder, run), len(place.gpus), meeting)
            return Process(run, words, self._environment(place), log)

        return start

    def _is_missed(self, leases: Leases, run: QueuedRun) -> bool:
        """Whether the run wants this whole node and has to wait until what is on it has ended; nothing else is started
        meanwhile, or a run of several nodes would never find them free at the same time."""
        if self._node.num_nodes(run) == 1 or not self._node.can_ever_take(run):
            return False
        if time.monotonic() < self._busy_until.get(run.run_id, 0) or self._gathering() is not None:
            return False
        if self._is_closed(run) or not self._may_start(run):
            return False
        return not leases.is_held(run.key) or has_free_seat(self._folder, run, leases)

    def _may_be_missed(self, leases: Leases, run: QueuedRun) -> bool:
        """Whether somebody leads a team for the run that is not complete: not yet, or no more."""
        return self._node.num_nodes(run) > 1 and leases.is_held(run.key) and not is_complete(self._folder, run, leases)

    def _gathering(self) -> _Running | None:
        """The run for which this node waits for others."""
        for running in self._running.values():
            if isinstance(running.process, Seat) and running.process.is_gathering:
                return running
        return None

    def _join_an_earlier_team(self, leases: Leases) -> None:
        """Leave a team that still gathers for one of an earlier run: two half teams would wait for each other."""
        if (mine := self._gathering()) is None:
            return
        for run in self._runs:
            if run is mine.run:
                return
            is_open = self._node.num_nodes(run) > 1 and run.run_id not in self._running and not self._is_closed(run)
            if is_open and self._may_start(run) and has_free_seat(self._folder, run, leases):
                self._fall_apart(leases, mine)
                return

    def _fall_apart(self, leases: Leases, mine: _Running) -> None:
        assert isinstance(mine.process, Seat), "only a team falls apart"
        del self._running[mine.run.run_id]
        self._node.give_back(mine.place)
        mine.process.close()
        if leases.holds(mine.run.key):
            leases.release(mine.run.key)

    @property
    def waits_for(self) -> str:
        """What a node that is kept free waits for, in words; empty where it does not."""
        mine = self._gathering()
        if mine is None or not isinstance(mine.process, Seat) or not (missing := mine.process.missing):
            return ""
        return f"{mine.run.run_id} waits for {missing} more node(s)"

    def _environment(self, place: Place) -> dict[str, str]:
        return run_environment(
            place,
            num_threads=self._args.threads_per_worker,
            cache_dir=self._args.cache_dir or self._folder / LAUNCH / "cache",
        )

    def _start(self, run: QueuedRun, place: Place) -> Worker | Process:
        environment = self._environment(place)
        if trains_in_worker(run, place):
            while self._idle_workers and not self._idle_workers[-1].is_alive:
                self._idle_workers.pop().kill()
            idle = self._idle_workers
            worker = idle.pop() if idle else Worker(environment, self._args.threads_per_worker)
            worker.begin(run)
            return worker
        config = write_config(self._folder, run)
        log = self._folder / LAUNCH / LOGS / f"{run.key}.log"
        return Process(run, run_command_words(config, len(place.gpus)), environment, log)

    # --- what has ended ---

    def _collect_ended(self, leases: Leases) -> bool:
        """Whether a run has ended; all that have are noted."""
        num_running = len(self._running)
        for name, running in list(self._running.items()):
            if (ended := running.process.poll()) is None:
                continue
            if isinstance(running.process, Seat) and ended.outcome in ("alone", "member"):
                # Nobody came, or the leader notes how the run ended.
                self._fall_apart(leases, running)
                if ended.outcome == "alone":
                    self._busy_until[name] = time.monotonic() + running.process.pause_s
                continue
            del self._running[name]
            self._node.give_back(running.place)
            if isinstance(running.process, Seat):
                running.process.close()
            if isinstance(running.process, Worker):
                if running.process.is_alive and ended.outcome != "left":
                    self._idle_workers.append(running.process)
                else:
                    running.process.kill()
            self._note(leases, running.run, ended)
        return len(self._running) < num_running

    def _note(self, leases: Leases, run: QueuedRun, ended: Ended) -> None:
        if not leases.holds(run.key):
            # This process slept longer than a lease, and another has the run: the attempt is not ours to end.
            return
        if ended.outcome == "failed" and self._asked:
            ended = Ended("left", f"signal {self._asked}")
        if ended.outcome == "failed" and not ended.log:
            ended.log = tail(Path(run.dump_dir) / "train.log")
        if ended.outcome == "busy":
            self._busy_until[run.run_id] = time.monotonic() + BUSY_S
        outcome = "left" if ended.outcome == "busy" else ended.outcome
        end_attempt(self._folder, run.run_id, outcome, ended.reason, is_final=ended.is_final, log=ended.log)
        if outcome == "finished":
            self.finished.add(run.run_id)
            leases.finish(run.key)
        else:
            leases.release(run.key)

    def _wait(self) -> None:
        """Until a worker is done or a signal comes, or for a moment."""
        workers = [r.process.connection for r in self._running.values() if isinstance(r.process, Worker)]
        moment = POLL_S if len(workers) < len(self._running) else LOOK_S
        multiprocessing.connection.wait([*workers, self._bell[0]], timeout=moment)

    # --- leaving ---

    def _leave(self, leases: Leases) -> None:
        """All runs write checkpoints and leave; those that did not within `slurm.signal_s` are killed."""
        self._asked = self._asked or signal.SIGINT
        for running in self._running.values():
            running.process.ask_to_leave()
        deadline = time.monotonic() + self._args.slurm.signal_s
        while self._running and time.monotonic() < deadline:
            self._collect_ended(leases)
            if self._running:
                time.sleep(0.05)
        for name, running in list(self._running.items()):
            running.process.kill()
            self._note(leases, running.run, Ended("left", "killed: it did not leave in time"))
            del self._running[name]

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and SIGUSR2 raise a flag; the handlers that were there come back at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._asked = number
            self._bell[1].send(None)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR2)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def trains_in_worker(run: QueuedRun, place: Place) -> bool:
    """Whether the run trains in a worker that others share: a CPU run in this library's own loop."""
    return not place.gpus and run.config["host"] == "native"


def config_path(folder: Path, run: QueuedRun) -> Path:
    """Of the config file that the run's own process reads; absolute, as the process may live elsewhere."""
    return (folder / LAUNCH / CONFIGS / f"{run.key}.yaml").absolute()


def write_config(folder: Path, run: QueuedRun) -> Path:
    """Write the config file of the run's own process; returns its path."""
    import yaml

    path = config_path(folder, run)
    config = dict(run.config)
    config["synth"] = config["synth"] | {"requeue": False}  # the agent's job goes back into the queue, not the run's
    with atomic_file(path) as file:
        yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
    return path


def _describe(reason: str, log: Sequence[str]) -> str:
    return reason + "".join(f"\n      | {line}" for line in log)


class AgentJob:
    """An agent as a job of submitit: callable, and able to go back into the queue."""

    def __init__(self, folder: str, launch_id: str) -> None:
        self.folder = folder
        self.launch_id = launch_id

    def __call__(self) -> dict[str, Any]:
        """Work; returns what was finished and given up in the study. At a signal, leave first and let submitit's own
        handler put the job back (SIGUSR2) or not (SIGTERM: whoever sends it decides)."""
        launch = read_launch(Path(self.folder), self.launch_id)
        where, runs = read_plan(Path(self.folder), launch["plan"])
        os.chdir(where)
        args = build_args(LaunchArgs, launch["args"])
        limits = Limits(args.max_attempts, launch["failures_before"])
        # A node of a cluster is given back when others are enough; this machine's launcher waits for all.
        agent = Agent(Path(self.folder), runs, args, limits, stay=args.engine == "local")
        handler = signal.getsignal(signal.SIGUSR2)
        try:
            agent.work()
        except Preempted as left:
            if left.code == 128 + signal.SIGUSR2 and callable(handler):
                handler(signal.SIGUSR2, None)
            raise
        return {"finished": sorted(agent.finished), "given_up": agent.given_up}

    def checkpoint(self) -> Any:
        """What submitit runs when the job starts again: the same."""
        import submitit

        return submitit.helpers.DelayedSubmission(AgentJob(self.folder, self.launch_id))
