"""What both benchmarks share: cases in processes of their own, medians, and a page that says where it is from.

Every case of a comparison runs in its own process, `Worker`, with the interpreter that has its library. The processes
stay alive and are asked in turn, round after round, so that what else the machine does falls on all of them; a figure
is the median over the rounds, a ratio the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The project is used from this checkout, installed or not.
sys.path.insert(0, str(ROOT))

from lingua_synth.files import atomic_file, sha256_file  # noqa: E402

# One thread in every library: a figure is what one core does.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}

# Load average of the last minute up to which the machine counts as quiet: one process of the one before.
QUIET_LOAD = 1.2


class LeftOut(Exception):
    """A case that cannot run here, with the reason in words."""


class Worker:
    """A process running `script` with `arguments`, which answers each line of JSON on its input with one on its output.

    `python`: the interpreter. Raises LeftOut when the process cannot start its case, or fails in a command.
    """

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str],
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
    ) -> None:
        try:
            self._process = subprocess.Popen(
                [python, str(script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **ONE_THREAD, **(env or {})},
            )
        except OSError as error:
            # Its name alone: the reason stands on pages.
            raise LeftOut(f"cannot start {Path(python).name}: {error.strerror}") from None
        try:
            self.started: dict[str, Any] = self._answer()
        except LeftOut:
            self.close()
            raise
        """What the process said of itself: `version`, of the library that it measures."""

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command."""
        self.send(command, **arguments)
        return self.receive()

    def send(self, command: str, **arguments: Any) -> None:
        """Begin one command, for several processes that are to work at the same time."""
        assert self._process.stdin is not None, "it was opened as a pipe"
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise LeftOut("its process has ended") from None

    def receive(self) -> dict[str, Any]:
        """The answer to what was sent."""
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "it was opened as a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise LeftOut(f"its process ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LeftOut(answer["error"])
        return answer

    def close(self) -> None:
        """End the process; nothing is asked of it any more."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Median over rounds of value / other."""
    return statistics.median(v / o for v, o in zip(values, others, strict=True))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median of the rounds and, in brackets, the smallest and the largest."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def met(is_met: bool) -> str:
    """A goal's verdict."""
    return "met" if is_met else "NOT met"


class Page:
    """A page of Markdown, printed as it grows and written to a file at the end."""

    def __init__(self, title: str) -> None:
        self._parts: list[str] = []
        self.text(f"# {title}")

    def text(self, *lines: str) -> None:
        """A paragraph, or with several lines one each."""
        print("\n".join(lines), end="\n\n", flush=True)
        self._parts.append("\n".join(lines))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table; the first column is words, the others are numbers."""
        self.text(*markdown_table(head, list(rows)))

    def goals(self, rows: Iterable[Sequence[str]]) -> None:
        """What was asked for, what was measured, and whether it was met: rows of `goal_line`."""
        self.text("## Goals")
        self.table(["", "goal", "measured", ""], rows)

    def end(self, start: float, out: str | None, said: str = "") -> None:
        """The last line, with the time since `start` (of `time.perf_counter`); written to `out`, where it is given."""
        self.text(f"{said}The run took {time.perf_counter() - start:,.0f} s.")
        if out:
            self.write(out)

    def write(self, path: str | Path) -> None:
        """Write the page."""
        with atomic_file(path) as file:
            file.write("\n\n".join(self._parts) + "\n")
        print(f"written: {path}")


def at_least(parser: argparse.ArgumentParser, args: argparse.Namespace, **limits: float) -> None:
    """Exit code 2 with a message for the first of these arguments that is below its limit."""
    for name, limit in limits.items():
        if getattr(args, name) < limit:
            parser.error(f"--{name.replace('_', '-')} must be at least {limit}, got {getattr(args, name)}")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table whose columns also line up as text."""
    assert all(len(row) == len(head) for row in rows), "every row has the columns of the head"
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return [line(head), rule, *map(line, rows)]


# --- where it was measured ---


def describe_machine() -> str:
    """Class of the machine: processor, cores, memory, Python; nothing that names it."""
    model = "unknown processor"
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}"
    )


def describe_commit() -> str:
    """Commit of the checkout, and whether files under version control differ from it."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        if commit is None:
            return "commit unknown (no git checkout)"
        changed = git("status", "--porcelain", "--untracked-files=no")
        return f"commit {commit}" + (" with uncommitted changes" if changed else "")
    except FileNotFoundError:
        return "commit unknown (no git)"


def describe_lingua(folder: str) -> str:
    """Which Meta Lingua it is: its commit where the checkout is one of git, else the hash of its data.py."""
    done = subprocess.run(["git", "-C", folder, "log", "-1", "--format=%h"], capture_output=True, text=True)
    if done.returncode == 0 and (Path(folder) / ".git").exists():
        return f"Meta Lingua {done.stdout.strip()}"
    return f"Meta Lingua (lingua/data.py of SHA-256 {sha256_file(Path(folder) / 'lingua' / 'data.py')[:12]})"


def versions(*packages: str) -> str:
    """Names and versions of those that are installed beside this interpreter."""
    found = []
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)


def origin(arguments: Iterable[str]) -> list[str]:
    """Lines under a page's title: date, commit, machine, versions, arguments; and whether the machine was quiet."""
    load = os.getloadavg()[0]
    lines = [
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {describe_commit()}",
        f"- {describe_machine()}; load average at the start {load:.1f}",
        f"- {versions('numpy', 'pyarrow', 'orjson', 'tiktoken', 'gigatoken')}",
        f"- arguments: {' '.join(arguments) or '(none)'}",
    ]
    if load > QUIET_LOAD:
        lines.append("- the machine had other work: ratios are usable, absolute figures are too low")
    return lines


def public_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments without paths of this machine: `--work /a/b` becomes `--work ...`."""
    public = []
    for argument in argv:
        name, equals, value = argument.rpartition("=")
        public.append(f"{name}{equals}..." if os.sep in value else argument)
    return public


def goal_line(name: str, measured: str, goal: str, is_met: bool) -> list[str]:
    """A row of the table of goals."""
    return [name, goal, measured, met(is_met)]


def short_hash(value: Any) -> str:
    """8 hexadecimal digits of a value's JSON: names of folders that hold what the value describes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
