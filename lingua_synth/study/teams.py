"""Runs of several nodes: agents that meet in the study's folder, as they do for everything else.

    <study>/launch/claims/<run_id>        whoever holds it leads the team, as member 0
    <study>/launch/claims/<run_id>#k      member k of n
    <study>/launch/teams/<run_id>.json    the leader's call: how many nodes, and once all are there, where they meet
    <study>/launch/teams/<run_id>#k.json  member k's answer to that call

A run of more GPUs than a node has takes n whole nodes at the same moment, of whatever jobs are free: the agent that
claims it calls, others that are idle answer, and when the last has come each starts a `torchrun --nnodes n` that meets
the others at the leader's address. Nobody is told to come. An agent follows before it calls, and leaves a team that
still gathers for one that stands earlier in the order of runs, which is the same for all: two half teams never wait for
each other. Who waited `launch.gather_s` in vain takes smaller runs for as long.

All ranks leave together (`train/preemption.py`), so a signal to one node ends the run on all, with a checkpoint. When a
node is lost, the others' claims outlive it, and they end their part after `GRACE_S`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lingua_synth.files import read_json, write_json
from lingua_synth.leases import Leases
from lingua_synth.study.board import LAUNCH, LOGS, QueuedRun, begin_attempt, newest_checkpoint, tail
from lingua_synth.study.node import Ended, Meeting, Process, said_error
from lingua_synth.train.preemption import LEFT

TEAMS = "teams"
ADDRESS = "LINGUA_SYNTH_ADDRESS"
"""Environment variable: the name or IP by which the other nodes reach this one, where its host name is not it."""
LOOK_S = 1.0
"""Between two looks at who has come."""
WATCH_S = 5.0
"""Between two looks at who is still there."""
GRACE_S = 60.0
"""That a team's processes get to end by themselves when one of them is gone; a collective would wait far longer."""


@dataclass(frozen=True)
class Call:
    """What the leader of a team says."""

    call_id: str
    num_nodes: int
    address: str = ""
    port: int = 0
    """0 while the team gathers."""

    @property
    def is_open(self) -> bool:
        return self.port == 0


def read_call(folder: Path, run: QueuedRun) -> Call | None:
    """The newest call for the run; None where there is none."""
    found = _read(_call_path(folder, run))
    with contextlib.suppress(TypeError):
        return Call(**found) if found else None
    return None


def is_gathering(folder: Path, run: QueuedRun) -> bool:
    """Whether the run's team, if somebody leads one, is not complete yet."""
    call = read_call(folder, run)
    return call is not None and call.is_open


def lead(
    folder: Path,
    run: QueuedRun,
    leases: Leases,
    num_nodes: int,
    patience_s: float,
    start: Callable[[Meeting, Path], Process],
) -> Seat:
    """Call for the other nodes; the caller holds the run's claim. `start` starts this node's part with its log."""
    call = Call(uuid.uuid4().hex, num_nodes)
    write_json(_call_path(folder, run), asdict(call))
    return Seat(folder, run, leases, 0, call, patience_s, start)


def follow(
    folder: Path, run: QueuedRun, leases: Leases, patience_s: float, start: Callable[[Meeting, Path], Process]
) -> Seat | None:
    """Take a free seat of the run's team; None where nobody calls, or all seats are taken."""
    call = read_call(folder, run)
    if call is None or not call.is_open or not leases.is_held(run.key):
        return None
    for member in range(1, call.num_nodes):
        if leases.claim(_member_key(run, member)) is not None:
            seat = Seat(folder, run, leases, member, call, patience_s, start)
            seat.answer()
            return seat
    return None


def has_free_seat(folder: Path, run: QueuedRun, leases: Leases) -> bool:
    """Whether somebody calls for the run and not all have come."""
    call = read_call(folder, run)
    is_called = call is not None and call.is_open and leases.is_held(run.key)
    return is_called and not is_complete(folder, run, leases)


def is_complete(folder: Path, run: QueuedRun, leases: Leases) -> bool:
    """Whether all seats of the newest call for the run are taken by living agents."""
    call = read_call(folder, run)
    return call is not None and all(leases.is_held(_member_key(run, k)) for k in range(1, call.num_nodes))


class Seat:
    """This node's part of a team; an agent polls it as it polls a process. Ended("alone") means that no team came
    together, Ended("member") that this node followed and the leader notes how the run ended."""

    def __init__(
        self,
        folder: Path,
        run: QueuedRun,
        leases: Leases,
        member: int,
        call: Call,
        patience_s: float,
        start: Callable[[Meeting, Path], Process],
    ) -> None:
        self._folder, self._run, self._leases, self._call = folder, run, leases, call
        self.member = member
        self._start = start
        self._process: Process | None = None
        self._patience_s = patience_s
        self._since = time.monotonic()
        self._next_look = 0.0
        self._lost_since: float | None = None
        self._lost = ""
        self._was_asked = False
        self._first_step = 0
        self._log_begin = 0

    @property
    def is_gathering(self) -> bool:
        return self._process is None

    @property
    def pause_s(self) -> float:
        """How long this node is for smaller runs after a team that did not come together: not at all where it followed
        and hardly waited, for the leader may have gone to another team."""
        waited_s = time.monotonic() - self._since
        return 0.0 if self.member and waited_s < self._patience_s / 2 else self._patience_s

    @property
    def missing(self) -> int:
        """Nodes that a leader still waits for."""
        if self.member or not self.is_gathering:
            return 0
        return sum(not self._has_come(member) for member in range(1, self._call.num_nodes))

    def poll(self) -> Ended | None:
        """How it ended, or None while the team gathers or trains."""
        if self._process is not None and (ended := self._process.poll()) is not None:
            return self._judge(ended)
        if self._was_asked and self._process is None:
            return Ended("alone", "told to leave")
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + (LOOK_S if self._process is None else WATCH_S)
        if self._process is not None:
            return self._watch()
        return self._follow_call() if self.member else self._gather()

    def answer(self, **more: Any) -> None:
        """Say that this node is there for this very call, and what it has to add."""
        record = {"call_id": self._call.call_id, "worker": self._leases.worker, "log_begin": self._log_begin, **more}
        write_json(_answer_path(self._folder, self._run, self.member), record)

    def ask_to_leave(self) -> None:
        """Tell the run to write a checkpoint and leave, on all nodes; a team that gathers falls apart."""
        self._was_asked = True
        if self._process is not None:
            self._process.ask_to_leave()

    def kill(self) -> None:
        """End this node's part at once."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Give the seat back, after the end. The leader's claim on the run is its agent's to give back."""
        if self.member:
            self._leases.finish(_member_key(self._run, self.member))
        elif read_call(self._folder, self._run) in (self._call, None):
            _call_path(self._folder, self._run).unlink(missing_ok=True)

    # --- gathering ---

    def _gather(self) -> Ended | None:
        missing = self.missing
        if not missing:
            port = _free_port()
            self._call = Call(self._call.call_id, self._call.num_nodes, _address(), port)
            begin_attempt(self._folder, self._run, self._leases.worker)
            write_json(_call_path(self._folder, self._run), asdict(self._call))
            self._begin()
        elif time.monotonic() - self._since > self._patience_s:
            return Ended("alone", f"{missing} of {self._call.num_nodes} nodes did not come")
        return None

    def _follow_call(self) -> Ended | None:
        call = self._standing_call()
        if call is None:
            return Ended("alone", "the leader has left")
        if not call.is_open:
            self._call = call
            self._begin()
        return None

    def _standing_call(self) -> Call | None:
        """The call that this node follows, as its leader says it now; None where the leader is gone or calls anew."""
        call = read_call(self._folder, self._run)
        stands = call is not None and call.call_id == self._call.call_id and self._leases.is_held(self._run.key)
        return call if stands else None

    def _begin(self) -> None:
        log = _log_path(self._folder, self._run, self.member)
        self._first_step = newest_checkpoint(self._run.dump_dir)
        self._log_begin = log.stat().st_size if log.is_file() else 0
        if self.member:
            self.answer()
        call = self._call
        self._process = self._start(Meeting(self.member, call.num_nodes, call.address, call.port), log)

    def _has_come(self, member: int) -> bool:
        answer = _read(_answer_path(self._folder, self._run, member))
        return answer.get("call_id") == self._call.call_id and self._leases.is_held(_member_key(self._run, member))

    # --- training ---

    def _watch(self) -> Ended | None:
        lost = self._who_is_lost()
        if not lost:
            self._lost_since = None
            return None
        self._lost = lost
        self._lost_since = self._lost_since or time.monotonic()
        if time.monotonic() - self._lost_since < GRACE_S:
            return None
        assert self._process is not None, "only a team that trains is watched"
        self._process.kill()
        return self._judge(Ended("failed", lost))

    def _who_is_lost(self) -> str:
        if self.member:
            gone = self._standing_call() is None and not self._run.is_finished
            return "the leader of its team is gone" if gone else ""
        for member in range(1, self._call.num_nodes):
            answer = _read(_answer_path(self._folder, self._run, member))
            if answer.get("has_ended"):
                continue
            if not self._has_come(member):
                return f"node {member} of {self._call.num_nodes} was lost ({answer.get('worker', 'unknown')})"
        return ""

    def _judge(self, ended: Ended) -> Ended:
        """The end as the run's: a leader knows what the others said."""
        if self.member:
            self.answer(has_ended=True)
            return Ended("member", ended.reason)
        if ended.outcome != "failed" or ended.is_final:
            return ended
        own = _log_path(self._folder, self._run, 0)
        if left := [line for line in tail(own, 200, since=self._log_begin) if LEFT in line]:
            return Ended("left", left[0])  # a signal to another node: all ranks left together
        answers = [
            (member, _read(_answer_path(self._folder, self._run, member))) for member in range(1, self._call.num_nodes)
        ]
        answers = [(member, said) for member, said in answers if said.get("call_id") == self._call.call_id]
        lost = self._lost or self._who_is_lost()
        if lost and newest_checkpoint(self._run.dump_dir) > self._first_step:
            return Ended("left", lost)  # its machine's fault, and it went on: no failure of the run
        for member, said in answers:
            log = _log_path(self._folder, self._run, member)
            if error := said_error(log, since=int(said.get("log_begin", 0))):
                return Ended("failed", f"node {member}: {error}", True, tail(log))
        return Ended("failed", f"{lost}; {ended.reason}" if lost else ended.reason, log=ended.log)


# --- files and places ---


def _member_key(run: QueuedRun, member: int) -> str:
    return f"{run.key}#{member}"  # `file_key` leaves no # in a run's own


def _call_path(folder: Path, run: QueuedRun) -> Path:
    return folder / LAUNCH / TEAMS / f"{run.key}.json"


def _answer_path(folder: Path, run: QueuedRun, member: int) -> Path:
    return folder / LAUNCH / TEAMS / f"{_member_key(run, member)}.json"


def _log_path(folder: Path, run: QueuedRun, member: int) -> Path:
    return folder / LAUNCH / LOGS / f"{_member_key(run, member) if member else run.key}.log"


def _read(path: Path) -> dict[str, Any]:
    """What a file of a team says; {} where it is not there, or is being replaced."""
    with contextlib.suppress(OSError, ValueError):
        found = read_json(path)
        return found if isinstance(found, dict) else {}
    return {}


def _address() -> str:
    return os.environ.get(ADDRESS) or os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
