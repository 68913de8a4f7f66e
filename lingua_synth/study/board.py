"""The state of a study, all of it on the file system, for any number of launchers at a time.

    <study>/runs/<run_id>/            the run folders; `result.json` in one means that the run is finished
    <study>/launch/latest.json        which plan and launch are the newest
    <study>/launch/plans/<sha>.json   the runs of a plan with their whole configurations
    <study>/launch/launches/<id>.json one call of launch: its plan, its limits, the failures there were before it
    <study>/launch/claims/<run_id>/   who trains a run (`lingua_synth.leases`)
    <study>/launch/attempts/<run_id>.jsonl  every attempt's beginning and end, written by the holder of the claim
    <study>/launch/logs/, configs/    of runs that are processes of their own: what they said, the config they read

An attempt without an end was killed. It counts as a failure only if it took the run no further: a run whose machine
is taken away every hour goes on for ever, one that kills its machine does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from lingua_synth.config import to_dict
from lingua_synth.files import atomic_file, read_json, sha256_json, write_json
from lingua_synth.study.plan import PlannedRun
from lingua_synth.train.folder import RESULT

LAUNCH = "launch"
CLAIMS, ATTEMPTS, LOGS, CONFIGS, PLANS, LAUNCHES = "claims", "attempts", "logs", "configs", "plans", "launches"
LATEST = "latest.json"
VERSION = 1
TAIL_LINES = 8
"""Lines of a failed run's log that are kept with its failure."""


@dataclass(frozen=True)
class QueuedRun:
    """A planned run as the file system holds it: plain values, so that a thousand are read in milliseconds."""

    run_id: str
    dump_dir: str
    size: str
    mixture: str
    tokens: int
    flops: int
    num_gpus: int
    after: tuple[str, ...]
    config: Mapping[str, Any]
    """Of `TrainArgs`."""
    gpu_hours: float | None = None
    """Expected, on all its GPUs together; None where no throughput was calibrated."""

    @property
    def is_finished(self) -> bool:
        return (Path(self.dump_dir) / RESULT).is_file()

    @property
    def key(self) -> str:
        """The run's name in the folders of the board."""
        return file_key(self.run_id)


def file_key(run_id: str) -> str:
    """A run id as a file name."""
    key = quote(run_id, safe=" +=,@:")
    return f"%2E{key[1:]}" if key.startswith(".") else key  # a leading dot hides what is no claim


def run_id_of(key: str) -> str:
    """The inverse of `file_key`."""
    return unquote(key)


def queue(runs: Iterable[PlannedRun]) -> list[QueuedRun]:
    """Planned runs as plain values. ValueError for two of one id, and for a run that waits for one that is not there or
    for itself."""
    queued: dict[str, QueuedRun] = {}
    for run in runs:
        if run.run_id in queued:
            raise ValueError(f"two runs are called {run.run_id!r}; every run has a name of its own")
        queued[run.run_id] = as_queued(run)
    _refuse_circles(queued)
    return list(queued.values())


def as_queued(run: PlannedRun) -> QueuedRun:
    """A planned run as plain values."""
    synth = run.args.synth
    return QueuedRun(
        run_id=run.run_id,
        dump_dir=run.args.dump_dir,
        size=synth.preset or "",
        mixture=synth.mixture,
        tokens=synth.tokens or 0,
        flops=run.flops,
        num_gpus=run.num_gpus,
        after=run.after,
        config=to_dict(run.args),
        gpu_hours=run.gpu_hours,
    )


def _refuse_circles(runs: Mapping[str, QueuedRun]) -> None:
    for run in runs.values():
        for name in run.after:
            if name not in runs:
                raise ValueError(f"run {run.run_id} waits for {name!r}, which is no run of the study")
    done: set[str] = set()
    while len(done) < len(runs):
        ready = {name for name, run in runs.items() if name not in done and set(run.after) <= done}
        if not ready:
            raise ValueError(f"runs wait for each other: {', '.join(sorted(set(runs) - done)[:4])}")
        done |= ready


# --- plans and launches ---


def write_plan(folder: Path, runs: Sequence[QueuedRun], *, study_sha256: str | None = None) -> str:
    """Keep the runs under <study>/launch/plans and as the latest; returns the plan's name, made of what is in it."""
    content = {"version": VERSION, "folder": os.getcwd(), "runs": [vars(run) for run in runs]}
    name = sha256_json(content)[:16]
    path = folder / LAUNCH / PLANS / f"{name}.json"
    if not path.is_file():
        with atomic_file(path) as file:
            file.write(json.dumps(content))  # at once: json.dump writes piece by piece, in ten times the time
    write_json(folder / LAUNCH / LATEST, {"version": VERSION, "plan": name, "study_sha256": study_sha256})
    return name


def read_plan(folder: Path, name: str) -> tuple[str, list[QueuedRun]]:
    """(working folder of the launch, the runs). ValueError for another version.

    Relative paths in configurations are meant from that folder; the runs' own folders are found from any.
    """
    path = folder / LAUNCH / PLANS / f"{name}.json"
    content = _of_this_version(read_json(path), path)
    where = content["folder"]
    prefix = "" if where == os.getcwd() else where
    runs = content["runs"]
    changes = ({"after": tuple(run["after"]), "dump_dir": os.path.join(prefix, run["dump_dir"])} for run in runs)
    return where, [QueuedRun(**(run | change)) for run, change in zip(runs, changes, strict=True)]


def read_latest(folder: Path) -> dict[str, Any] | None:
    """`plan` and `study_sha256` of the last launch; None where none was."""
    path = folder / LAUNCH / LATEST
    return _of_this_version(read_json(path), path) if path.is_file() else None


def _of_this_version(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"{path} was written by another version of lingua_synth; delete the folder {LAUNCH} beside it")
    return content


def begin_launch(folder: Path, plan: str, runs: Sequence[QueuedRun], args: Mapping[str, Any]) -> str:
    """Record a call of launch: failures from before it do not count against its limit. Returns its id."""
    launch_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    before = {run.run_id: n for run in runs if (n := num_failures(read_attempts(folder, run.run_id)))}
    record = {"version": VERSION, "plan": plan, "args": dict(args), "failures_before": before}
    write_json(folder / LAUNCH / LAUNCHES / f"{launch_id}.json", record | {"host": socket.gethostname()})
    return launch_id


def read_launch(folder: Path, launch_id: str) -> dict[str, Any]:
    """What `begin_launch` wrote."""
    path = folder / LAUNCH / LAUNCHES / f"{launch_id}.json"
    return _of_this_version(read_json(path), path)


# --- attempts ---


@dataclass
class Attempt:
    """One try at a run. `outcome`: None while it goes on (or if it was killed and nobody looked since), finished,
    failed, left (it was told to, with a checkpoint) or died."""

    worker: str
    step: int
    """Of the newest checkpoint at its beginning."""
    outcome: str | None = None
    reason: str = ""
    is_final: bool = False
    """The same input fails the same way: not tried again in this launch."""
    log: tuple[str, ...] = ()
    """Last lines of the log, of a failure."""

    @property
    def is_failure(self) -> bool:
        return self.outcome == "failed"


def _attempts_path(folder: Path, run_id: str) -> Path:
    return folder / LAUNCH / ATTEMPTS / f"{file_key(run_id)}.jsonl"


def read_attempts(folder: Path, run_id: str) -> list[Attempt]:
    """Every attempt at the run, oldest first; lines torn by a kill are left out."""
    try:
        content = _attempts_path(folder, run_id).read_bytes()
    except FileNotFoundError:
        return []
    attempts: list[Attempt] = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            record = json.loads(line)
            if record["event"] == "start":
                attempts.append(Attempt(record["worker"], int(record["step"])))
            elif attempts:
                last = attempts[-1]
                last.outcome, last.reason = record["outcome"], record["reason"]
                last.is_final, last.log = bool(record["final"]), tuple(record["log"])
    return attempts


def num_failures(attempts: Sequence[Attempt]) -> int:
    """How many of them failed."""
    return sum(attempt.is_failure for attempt in attempts)


def end_killed_attempt(folder: Path, run: QueuedRun, attempts: Sequence[Attempt]) -> bool:
    """Note how an attempt ended that was killed before it could; the caller holds the claim. False: none was."""
    if not attempts or attempts[-1].outcome is not None:
        return False
    last, step = attempts[-1], newest_checkpoint(run.dump_dir)
    if step > last.step:
        _append(folder, run.run_id, _end("died", f"{last.worker} was killed, after the checkpoint of step {step}"))
    else:
        reason = f"{last.worker} was killed before the run's next checkpoint"
        _append(folder, run.run_id, _end("failed", reason, log=tail(Path(run.dump_dir) / "train.log")))
    return True


def begin_attempt(folder: Path, run: QueuedRun, worker: str) -> None:
    """Note that `worker`, which holds the claim, starts the run."""
    step = newest_checkpoint(run.dump_dir)
    _append(folder, run.run_id, {"event": "start", "worker": worker, "step": step, "at": _now()})


def end_attempt(
    folder: Path, run_id: str, outcome: str, reason: str = "", *, is_final: bool = False, log: Sequence[str] = ()
) -> None:
    """Note how the attempt that was begun last ended."""
    _append(folder, run_id, _end(outcome, reason, is_final=is_final, log=log))


def _end(outcome: str, reason: str, *, is_final: bool = False, log: Sequence[str] = ()) -> dict[str, Any]:
    return {"event": "end", "outcome": outcome, "reason": reason, "final": is_final, "log": list(log), "at": _now()}


def _append(folder: Path, run_id: str, record: Mapping[str, Any]) -> None:
    path = _attempts_path(folder, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        # A line that a kill tore must not swallow this one.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def newest_checkpoint(dump_dir: str | Path) -> int:
    """Step of the newest whole checkpoint of a run folder; 0 where there is none."""
    try:
        names = os.listdir(Path(dump_dir) / "checkpoints")
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(name) for name in names if name.isdigit()), default=0)


def tail(path: Path, num_lines: int = TAIL_LINES, *, since: int = 0) -> list[str]:
    """The last lines of a text file from byte `since` on; nothing where there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - 16_384))
            text = file.read().decode("utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Carriage returns redraw a progress bar: what counts is its last state.
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return [line[:400] for line in lines if line][-num_lines:]


@dataclass(frozen=True)
class Limits:
    """Which runs a launch may still try."""

    max_attempts: int
    failures_before: Mapping[str, int]

    def is_given_up(self, run_id: str, attempts: Sequence[Attempt]) -> bool:
        """Whether the run has failed in this launch as often as it may."""
        failures = num_failures(attempts) - self.failures_before.get(run_id, 0)
        return failures >= self.max_attempts or (failures > 0 and attempts[-1].is_failure and attempts[-1].is_final)
