"""Hours and tokens of a run, by process, so that they survive restarts.

Each process that works in a folder writes `workers/<its name>.json`, anew every few seconds. Engine time is the time
in which we wait for the engine's next outcome; all other time between the first and the last is ours, and a GPU of an
embedded engine is idle in it. Start-up is the time before the first request is taken: loading the model.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.files import read_json, write_json
from lingua_synth.generate.engine import Failure, Outcome

WORKERS = "workers"
WRITE_EVERY_S = 10.0


@dataclass
class Usage:
    """What one process, or several together, spent and got."""

    startup_s: float = 0.0
    busy_s: float = 0.0
    """The engine at work."""
    idle_s: float = 0.0
    """The engine waiting for us: prompts, filters, files."""
    gpu_startup_h: float = 0.0
    gpu_busy_h: float = 0.0
    gpu_idle_h: float = 0.0
    requests: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompts' tokens, those that the engine had read before."""
    generated_tokens: int = 0

    @property
    def gpu_h(self) -> float:
        """GPU-hours in all."""
        return self.gpu_startup_h + self.gpu_busy_h + self.gpu_idle_h

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)


class Meter:
    """Measures one process and writes its file. `num_gpus`: those that the engine holds, 0 for a server elsewhere."""

    def __init__(self, folder: Path, worker: str, engine: str, num_gpus: int) -> None:
        self._path = folder / WORKERS / f"{worker}.json"
        self._about = {"worker": worker, "engine": engine, "num_gpus": num_gpus}
        self._num_gpus = num_gpus
        self.usage = Usage()
        self._last = time.perf_counter()
        self._last_written = self._last
        self._started = False

    def waiting(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """Pass the engine's outcomes on, and count."""
        iterator = iter(outcomes)
        while True:
            self._spend("idle" if self._started else "startup")
            outcome = next(iterator, None)
            self._spend("busy")
            if outcome is None:
                return
            self._count(outcome)
            yield outcome

    def first_request(self) -> None:
        """The engine takes its first request: what came before was its start."""
        if not self._started:
            self._spend("startup")
            self._started = True

    def write(self) -> None:
        """Write the file, if there is anything to say."""
        if self.usage.requests:
            write_json(self._path, {**self._about, **self.usage.to_dict()})
        self._last_written = time.perf_counter()

    def _spend(self, what: str) -> None:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        setattr(self.usage, f"{what}_s", getattr(self.usage, f"{what}_s") + seconds)
        hours = getattr(self.usage, f"gpu_{what}_h") + seconds * self._num_gpus / 3600
        setattr(self.usage, f"gpu_{what}_h", hours)

    def _count(self, outcome: Outcome) -> None:
        self.usage.requests += 1
        if isinstance(outcome, Failure):
            self.usage.failures += 1
        else:
            self.usage.prompt_tokens += outcome.prompt_tokens
            self.usage.cached_tokens += outcome.cached_tokens
            self.usage.generated_tokens += outcome.output_tokens
        if time.perf_counter() - self._last_written >= WRITE_EVERY_S:
            self.write()


def read_usage(folder: Path) -> Usage:
    """The sum over all processes that ever worked in `folder`."""
    total = Usage()
    for path in sorted((folder / WORKERS).glob("*.json")):
        _add(total, read_json(path))
    return total


def _add(total: Usage, one: Mapping[str, Any]) -> None:
    for field in dataclasses.fields(Usage):
        setattr(total, field.name, getattr(total, field.name) + one.get(field.name, 0))
