"""Jobs on all cores: worker processes that start clean, report while they work, and end with their parent.

A job is a function with its arguments; it is called as `function(state, *arguments, report)`, where `state` was sent
to each worker once. With one worker, jobs run in this process by the very same call.

The processes are plain interpreters and no forks, nor do they import the caller's `__main__`, so a script needs no
`if __name__ == "__main__"`. Each holds the reading end of a pipe that nobody writes to: when the parent dies, by
`kill -9` too, the pipe ends, and the worker with it.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

Report = Callable[[Any], None]

# Arrays of some ten MB come and go all the time, and glibc hands each back to the system, which then has to clear its
# pages again: 0.73 s of system time per 87 MB of text tokenized, against 0.23 s with these.
MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


@dataclass(frozen=True)
class Job:
    """`function(state, *arguments, report)`; both travel to the worker by pickle."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    name: str
    """What it works on, for the message when its process dies."""


def count_cores() -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its container where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or no quota ("max")
        return cores


class Workers:
    """`num_workers` processes, or this one for 1; a context manager that leaves none behind.

    `state` travels to each worker by pickle, before its first job. What a worker warns of is warned of here.
    """

    def __init__(self, num_workers: int, state: Any) -> None:
        self._num_workers = num_workers
        self._state = state
        self._processes: dict[Connection, subprocess.Popen[bytes]] = {}
        self._lifeline: int | None = None

    def run(
        self, jobs: Iterable[Job], on_report: Callable[[int, Any], None], on_result: Callable[[int, Any], None]
    ) -> None:
        """Run all jobs, started in order; for job i `on_report(i, value)` and `on_result(i, value)` are called here.

        What a job raises is raised here, as is what the callbacks raise: the caller leaves the `with` block, and
        the other workers are ended. ChildProcessError when a worker dies.
        """
        jobs = list(jobs)
        if self._num_workers == 1:
            for i, job in enumerate(jobs):
                result = job.function(self._state, *job.arguments, lambda value, i=i: on_report(i, value))
                on_result(i, result)
            return
        waiting = deque(enumerate(jobs))
        while len(self._processes) < min(self._num_workers, len(jobs)):
            self._start()
        idle = deque(self._processes)
        busy: dict[Connection, int] = {}
        while waiting or busy:
            while waiting and idle:
                connection = idle.popleft()
                busy[connection], job = waiting.popleft()
                self._send(connection, (job.function, job.arguments), job.name)
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection), "what was given to wait"
                connection = ready
                i = busy[connection]
                kind, value = self._receive(connection, jobs[i].name)
                if kind == "report":
                    on_report(i, value)
                elif kind == "warning":
                    message, category = value
                    warnings.warn(message, category, stacklevel=2)
                elif kind == "result":
                    del busy[connection]
                    idle.append(connection)
                    on_result(i, value)
                else:
                    raise value

    def _start(self) -> None:
        if self._lifeline is None:
            self._lifeline_end, self._lifeline = os.pipe()
        ours, theirs = socket.socketpair()
        search_path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", "import sys; from lingua_synth.tokens.workers import serve; "
                 "serve(int(sys.argv[1]), int(sys.argv[2]))", str(theirs.fileno()), str(self._lifeline_end)],
                pass_fds=(theirs.fileno(), self._lifeline_end), stdin=subprocess.DEVNULL,
                env={**MALLOC_SETTINGS, **os.environ, "PYTHONPATH": search_path},
            )  # fmt: skip
        connection = Connection(ours.detach())
        self._processes[connection] = process
        self._send(connection, self._state, "its start")

    def _send(self, connection: Connection, value: Any, name: str) -> None:
        try:
            connection.send(value)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died(connection, name) from None

    def _receive(self, connection: Connection, name: str) -> Any:
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died(connection, name) from None

    def _died(self, connection: Connection, name: str) -> ChildProcessError:
        code = self._processes[connection].wait()
        how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with code {code}"
        return ChildProcessError(
            f"a worker process {how} at {name}. What was finished is kept: the same call goes on from there; fewer "
            "workers need less memory"
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection, process in self._processes.items():
            if error is not None:
                process.kill()
            connection.close()
            process.wait()
        self._processes.clear()
        if self._lifeline is not None:
            os.close(self._lifeline)
            os.close(self._lifeline_end)
            self._lifeline = None


# --- in the worker ---


def serve(connection_number: int, lifeline: int) -> None:
    """Answer the parent's jobs until it hangs up; what a worker process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    connection = Connection(connection_number)

    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        connection.send(("warning", (str(message), category)))

    warnings.showwarning = show_warning
    try:
        state = connection.recv()
        while True:
            function, arguments = connection.recv()
            answer: tuple[str, Any]
            try:
                answer = "result", function(state, *arguments, lambda value: connection.send(("report", value)))
            except BaseException as error:
                answer = "error", _portable(error)
            connection.send(answer)
    except EOFError:
        return  # the parent has hung up


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def _portable(error: BaseException) -> BaseException:
    if not isinstance(error, ValueError | OSError):
        error.add_note("In the worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}\n" + "".join(traceback.format_exception(error)))


def is_portable(state: Any) -> bool:
    """Whether `state` can be sent to a worker."""
    try:
        pickle.dumps(state)
        return True
    except Exception:
        return False
