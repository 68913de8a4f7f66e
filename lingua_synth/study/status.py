"""How far a study is: the state of every run, from what the file system says at this moment.

    done      its `result.json` is there
    running   a living process holds its claim
    failed    its last attempt failed and nobody tries again until the next launch
    stopped   it was begun and nobody trains it: killed, or told to leave
    waiting   nothing of it is there yet

Time left comes from speeds that were measured: of a running run from its own log, of the others from finished runs of
the same size (FLOPs over seconds on the clock), of any size where there is none, and from the plan's hours where no run
is finished yet. A look writes nothing.
"""

from __future__ import annotations

import heapq
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lingua_synth.leases import LEASE_S, living_claims
from lingua_synth.study.board import (
    CLAIMS,
    LAUNCH,
    QueuedRun,
    as_queued,
    newest_checkpoint,
    read_attempts,
    run_id_of,
)
from lingua_synth.study.plan import PlannedRun
from lingua_synth.study.teams import is_gathering
from lingua_synth.train.folder import IDENTITY, METRICS, RESULT

STATES = ("done", "running", "failed", "stopped", "waiting")
SAMPLE = 16
"""Finished runs of a size that its speed is taken from, the newest by name order: all of a thousand would be slow on a
network disk."""
SHOWN = 8
"""Runs that a table lists one by one, of each kind."""


@dataclass(frozen=True)
class RunStatus:
    """One run. `loss` is the last logged training loss in nats per token, `speed` tokens per second over all GPUs."""

    run_id: str
    size: str
    mixture: str
    state: str
    tokens: int
    done_tokens: int
    flops: int
    loss: float | None = None
    speed: float | None = None
    left_s: float | None = None
    """On its own, from now or from when it starts."""
    where: str = ""
    """Worker that trains it."""
    note: str = ""
    """Why it failed, what it waits for."""


@dataclass(frozen=True)
class StudyStatus:
    """All runs of a study; prints as a table."""

    folder: str
    runs: tuple[RunStatus, ...]
    left_s: float | None
    """Until all are done, with as many at a time as run now; None where no speed is known, or nothing runs."""

    def count(self, state: str) -> int:
        """Runs in `state`, one of STATES."""
        return sum(run.state == state for run in self.runs)

    def names(self, state: str) -> list[str]:
        """Ids of the runs in `state`."""
        return [run.run_id for run in self.runs if run.state == state]

    @property
    def is_over(self) -> bool:
        """Whether every run is done, or has failed."""
        return self.count("done") + self.count("failed") == len(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(_table(self))


def study_status(
    runs: Iterable[PlannedRun | QueuedRun], *, folder: str | Path | None = None, lease_s: float = LEASE_S
) -> StudyStatus:
    """The state of every run. `folder` is the study's, as in `launch`.

    Files that cannot be read (half-written, edited by hand) make a run's numbers unknown, never an error.
    """
    queued = [run if isinstance(run, QueuedRun) else as_queued(run) for run in runs]
    if not queued:
        raise ValueError("there is no run to look at")
    folder = Path(folder) if folder is not None else Path(queued[0].dump_dir).parent.parent
    held = {run_id_of(key): who for key, who in living_claims(folder / LAUNCH / CLAIMS, lease_s).items()}
    names = _names_with_attempts(folder)
    done = {run.run_id for run in queued if run.is_finished}
    rates = _measured_rates(queued, done)
    found = tuple(_look(folder, run, run.run_id in done, held, names, done, rates) for run in queued)
    return StudyStatus(str(folder), found, _time_left(found))


def _names_with_attempts(folder: Path) -> set[str]:
    try:
        return {name.removesuffix(".jsonl") for name in os.listdir(folder / LAUNCH / "attempts")}
    except FileNotFoundError:
        return set()


def _look(
    folder: Path,
    run: QueuedRun,
    is_done: bool,
    held: dict[str, dict[str, Any]],
    names: set[str],
    done: set[str],
    rates: dict[str, float],
) -> RunStatus:
    state, note, where, loss, speed, done_tokens = "waiting", "", "", None, None, 0
    if is_done:
        state, done_tokens = "done", run.tokens
    else:
        attempts = read_attempts(folder, run.run_id) if run.key in names else []
        if run.run_id in held and is_gathering(folder, run):
            note = "its team is not complete: it takes several free nodes at a time"
        elif run.run_id in held:
            state, where = "running", str(held[run.run_id].get("worker", ""))
        elif attempts and attempts[-1].is_failure:
            state = "failed"
            note = "\n".join([attempts[-1].reason, *(f"| {line}" for line in attempts[-1].log)])
        elif attempts or (Path(run.dump_dir) / IDENTITY).is_file():
            state = "stopped"
        elif missing := [name for name in run.after if name not in done]:
            note = f"after {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
        if state != "waiting":
            loss, speed, done_tokens = _progress(run)
            if state != "running":  # it will go on from its checkpoint
                done_tokens = _tokens_at_checkpoint(run)
    left_s = None
    if not is_done:
        rate = rates.get(run.size, rates.get(""))
        share = 1 - done_tokens / run.tokens if run.tokens else 1.0
        if state == "running" and speed:
            left_s = (run.tokens - done_tokens) / speed
        elif rate:
            left_s = share * run.flops / rate
        elif run.gpu_hours is not None:
            left_s = share * run.gpu_hours * 3600 / max(1, run.num_gpus)
    return RunStatus(
        run.run_id, run.size, run.mixture, state, run.tokens, done_tokens, run.flops, loss,
        speed if state == "running" else None, left_s, where, note,
    )  # fmt: skip


def _progress(run: QueuedRun) -> tuple[float | None, float | None, int]:
    """(last training loss, tokens per second over all GPUs, tokens trained) of a log; its half-written lines are passed
    over."""
    for record in last_records(Path(run.dump_dir) / METRICS):
        try:
            tokens = int(record["optim/total_tokens"])
            loss = record.get("loss/mean", record.get("loss/out"))
            speed = float(record["speed/wps"]) * max(1, run.num_gpus)
            return (None if loss is None else float(loss)), speed, tokens
        except (KeyError, TypeError, ValueError):
            continue
    return None, None, 0


def last_records(path: Path) -> list[dict[str, Any]]:
    """The last whole records of a log, newest first."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16_384))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    records = []
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _tokens_at_checkpoint(run: QueuedRun) -> int:
    step = newest_checkpoint(run.dump_dir)
    if not step:
        return 0
    for record in last_records(Path(run.dump_dir) / METRICS):
        tokens, logged = record.get("optim/total_tokens"), record.get("global_step")
        if isinstance(tokens, int) and isinstance(logged, int) and logged:
            return min(run.tokens, tokens * step // logged)
    return 0


# --- time ---


def _measured_rates(runs: Sequence[QueuedRun], done: set[str]) -> dict[str, float]:
    """FLOPs per second of a run by size, and "" for all: medians over finished runs. Those that went on from another's
    checkpoint are left out: their seconds may be those of both."""
    by_size: dict[str, list[float]] = {}
    for run in runs:
        seen = by_size.setdefault(run.size, [])
        if run.run_id in done and not run.after and len(seen) < SAMPLE:
            try:
                row = json.loads((Path(run.dump_dir) / RESULT).read_bytes())
                seen.append(float(row["flops"]) / float(row["wall_s"]))
            except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
                continue
    rates = {size: median(seen) for size, seen in by_size.items() if seen}
    return rates | ({"": median(rates.values())} if rates else {})


def _time_left(runs: Sequence[RunStatus]) -> float | None:
    """Seconds until all that may still run is done, the longest first, with as many at a time as run now."""
    ends = [run.left_s for run in runs if run.state == "running"]
    later = [run.left_s for run in runs if run.state in ("stopped", "waiting")]
    if not ends or None in ends or None in later:
        return None
    slots = [float(end) for end in ends if end is not None]
    heapq.heapify(slots)
    for seconds in sorted((s for s in later if s is not None), reverse=True):
        heapq.heapreplace(slots, slots[0] + seconds)
    return max(slots)


def duration(seconds: float | None) -> str:
    """Seconds in words: 40 s, 12 min, 3 h 20 min, 4 d 7 h; ? where not known."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


# --- the table ---


def _table(status: StudyStatus) -> list[str]:
    num = len(status.runs)
    flops = sum(run.flops for run in status.runs) or 1
    spent = sum(
        run.flops * (run.done_tokens / run.tokens if run.tokens else run.state == "done") for run in status.runs
    )
    counts = ", ".join(f"{status.count(state):,} {state}" for state in STATES if status.count(state))
    left = ""
    if status.count("running"):
        left = f"; about {duration(status.left_s)} left with {status.count('running')} at a time"
    lines = [f"{status.folder}: {num:,} runs, {spent / flops:.1%} of the FLOPs; {counts}{left}", ""]
    sizes = list(dict.fromkeys(run.size for run in status.runs))
    shown = [state for state in STATES if status.count(state) or state in ("done", "waiting")]
    width = max(6, *(len(size) for size in sizes))
    lines.append(f"  {'size':{width}}" + "".join(f"{state:>9}" for state in shown))
    for size in sizes:
        row = [sum(run.size == size and run.state == state for run in status.runs) for state in shown]
        lines.append(f"  {size:{width}}" + "".join(f"{value:>9,}" for value in row))
    for state in ("running", "failed", "stopped"):
        listed = [run for run in status.runs if run.state == state]
        if not listed:
            continue
        lines += ["", f"{state}:"]
        if state == "running":
            listed.sort(key=lambda run: run.left_s or 0)
        width = max(len(run.run_id) for run in listed[:SHOWN])
        for run in listed[:SHOWN]:
            lines += _run_lines(run, width)
        if len(listed) > SHOWN:
            lines.append(f"  ... and {len(listed) - SHOWN:,} more")
    return lines


def _run_lines(run: RunStatus, width: int) -> list[str]:
    first, *rest = run.note.split("\n")
    share = run.done_tokens / run.tokens if run.tokens else 0.0
    if run.state == "failed":
        return [f"  {run.run_id:{width}}  {first}", *(f"    {line}" for line in rest)]
    parts = [f"{share:4.0%}"]
    if run.loss is not None:
        parts.append(f"loss {run.loss:.3f}")
    if run.speed is not None:
        parts.append(f"{run.speed:,.0f} tok/s")
    if run.state == "running":
        parts += [f"{duration(run.left_s)} left", run.where.rsplit("-", 1)[0]]
    return [f"  {run.run_id:{width}}  {'  '.join(part for part in parts if part)}"]
