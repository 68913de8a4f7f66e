"""Jobs on all cores: worker processes that start clean, report while they work, and end with their parent.

A job is a function with its arguments; it is called as `function(state, *arguments, report)`, where `state` was sent
to the workers once. With one worker, jobs run in this process by the very same call.

    this process ──state──> origin, a plain interpreter ──fork──> worker, worker, ...
         └────────────────── jobs, reports, results ──────────────────┘

Workers are copies of one process, the origin: what takes long to make ready (a vocabulary: 2 CPU-seconds, 200 MB) is
made once for all of them. Forking is safe in a process of one thread, so the origin looks at itself: where it has
more, or the system is not Linux, each worker is an origin of its own. No origin is a fork of this process, nor does it
import the caller's `__main__`, so a script needs no `if __name__ == "__main__"`.

Each worker holds the reading end of a pipe that nobody writes to: when this process dies, by `kill -9` too, the pipe
ends, and the worker with it.
"""

from __future__ import annotations

import contextlib
import gc
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
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

Report = Callable[[Any], None]

# Arrays of some ten MB come and go all the time, and glibc hands each back to the system, which then has to clear its
# pages again: 0.73 s of system time per 87 MB of text tokenized, against 0.23 s with these.
MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
SHARES_START = sys.platform == "linux"
"""Whether workers are forks of one process, if that has one thread."""
# Workers calculate nothing with these; their threads would be in the way of a fork. The last one is a thread that
# pyarrow's copy of jemalloc starts when it is imported, for memory that it is not even the default source of.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


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

    `state` travels by pickle, before the first job. What a worker warns of is warned of here.
    """

    def __init__(self, num_workers: int, state: Any) -> None:
        self._num_workers = num_workers
        self._state = state
        self._origins: list[_Origin] = []
        self._workers: dict[Connection, tuple[_Origin, int]] = {}
        self._lifeline: int | None = None

    def run(
        self,
        jobs: Iterable[Job],
        on_report: Callable[[int, Any], None],
        on_result: Callable[[int, Any], None],
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        """Run all jobs, started in order; for job i `on_report(i, value)` and `on_result(i, value)` are called here.

        `prepare(state)` is called before the first worker starts, in the process that workers are copies of; not
        where jobs run in this process, and not where there are workers from an earlier call.

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
        self._start(min(self._num_workers, len(jobs)), prepare)
        idle = deque(self._workers)
        busy: dict[Connection, int] = {}
        while waiting or busy:
            while waiting and idle:
                connection = idle.popleft()
                busy[connection], job = waiting.popleft()
                try:
                    connection.send((job.function, job.arguments))
                except (BrokenPipeError, ConnectionResetError):
                    raise self._died(connection, job.name) from None
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection), "what was given to wait"
                connection = ready
                i = busy[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise self._died(connection, jobs[i].name) from None
                if kind == "report":
                    on_report(i, value)
                elif kind == "warning":
                    _warn(value)
                elif kind == "result":
                    del busy[connection]
                    idle.append(connection)
                    on_result(i, value)
                else:
                    raise value

    def _start(self, num_workers: int, prepare: Callable[[Any], Any] | None) -> None:
        if self._lifeline is None:
            self._lifeline_end, self._lifeline = os.pipe()
        while len(self._workers) < num_workers:
            if not (self._origins and self._origins[0].can_fork):
                # The first one shows whether it is enough; if it is not, the others get ready side by side.
                count = num_workers - len(self._workers) if self._origins else 1
                begun = [_Origin(self._lifeline_end, self._state, prepare) for _ in range(count)]
                self._origins += begun
                for origin in begun:
                    origin.await_ready()
            origins = [self._origins[0]] if self._origins[0].can_fork else self._origins[len(self._workers) :]
            for origin in origins:
                connection, pid = origin.start_worker()
                self._workers[connection] = origin, pid

    def _died(self, connection: Connection, name: str) -> WorkerDied:
        origin, pid = self._workers[connection]
        return WorkerDied(origin.await_end(pid), name)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for origin in self._origins:
            if error is not None:
                origin.kill()
        for connection in self._workers:
            connection.close()
        for origin in self._origins:
            origin.end()
        self._workers.clear()
        self._origins.clear()
        if self._lifeline is not None:
            os.close(self._lifeline)
            os.close(self._lifeline_end)
            self._lifeline = None


class WorkerDied(ChildProcessError):
    """A worker process ended on its own, with `code` (below 0: by that signal), at the work called `name`."""

    def __init__(self, code: int | None, name: str) -> None:
        how = "ended" if code is None else f"ended with code {code}"
        if code is not None and code < 0:
            how = f"was killed by signal {-code} (out of memory?)"
        super().__init__(
            f"a worker process {how} at {name}; fewer workers need less memory. What is finished is kept, and the same "
            "call goes on from there"
        )


class _Origin:
    """The process that workers are copies of, seen from here."""

    def __init__(self, lifeline: int, state: Any, prepare: Callable[[Any], Any] | None) -> None:
        self.can_fork = False
        ours, theirs = socket.socketpair()
        search_path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", "import sys; from lingua_synth.tokens.workers import serve_origin; "
                 "serve_origin(int(sys.argv[1]), int(sys.argv[2]))", str(theirs.fileno()), str(lifeline)],
                pass_fds=(theirs.fileno(), lifeline), stdin=subprocess.DEVNULL,
                env={**MALLOC_SETTINGS, **os.environ, **ONE_THREAD, "PYTHONPATH": search_path},
            )  # fmt: skip
        self._control = Connection(ours.detach())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: await_ready says so
            self._control.send((state, prepare))

    def await_ready(self) -> None:
        """Wait until it has the state and is prepared."""
        self.can_fork = self._answer()

    def start_worker(self) -> tuple[Connection, int]:
        """(connection to, process id of) a new worker: a fork, or itself."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._control.send("worker")
            send_handle(self._control, theirs.fileno(), self._process.pid)
        pid = self._answer()
        return Connection(ours.detach()), pid

    def await_end(self, pid: int) -> int | None:
        """How a worker ended that has closed its connection: its exit code, below 0 for a signal; None if unknown."""
        if pid == self._process.pid:
            return self._process.wait()
        try:
            self._control.send(("wait", pid))
            return self._control.recv()[1]
        except (EOFError, OSError):
            return None  # the origin was killed too

    def kill(self) -> None:
        """End it and its workers, whatever they are doing."""
        if self.can_fork:
            with contextlib.suppress(OSError):
                self._control.send("kill")
        else:
            self._process.kill()

    def end(self) -> None:
        """Wait until it and its workers, to which nobody is connected any more, have ended."""
        self._control.close()
        self._process.wait()

    def _answer(self) -> Any:
        while True:
            try:
                kind, value = self._control.recv()
            except (EOFError, ConnectionResetError):
                raise WorkerDied(self._process.wait(), "its start") from None
            if kind == "warning":
                _warn(value)
            elif kind == "error":
                raise value
            else:
                return value


def _warn(value: tuple[str, type[Warning]]) -> None:
    warnings.warn(*value, stacklevel=4)


# --- in the origin ---


def serve_origin(control_number: int, lifeline: int) -> None:
    """Get ready, and start workers as the parent asks for them; what an origin runs until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    control = Connection(control_number)
    workers: set[int] = set()
    _send_warnings(control)
    try:
        state, prepare = control.recv()
        try:
            if prepare is not None:
                prepare(state)
        except BaseException as error:
            control.send(("error", _portable(error)))
            return
        can_fork = _has_one_thread()
        gc.freeze()  # a collection in a worker would write to, and so copy, what it shares with the others
        control.send(("ready", can_fork))
        while True:
            asked = control.recv()
            if asked == "worker":
                connection_number = recv_handle(control)
                if can_fork and (pid := os.fork()):
                    os.close(connection_number)
                    workers.add(pid)
                    control.send(("pid", pid))
                elif can_fork:
                    control.close()
                    _serve_and_exit(connection_number, lifeline, state)
                else:
                    control.send(("pid", os.getpid()))
                    _serve_and_exit(connection_number, lifeline, state)
            elif asked == "kill":
                for pid in workers:
                    os.kill(pid, signal.SIGKILL)
            else:
                _, pid = asked
                workers.remove(pid)
                control.send(("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    except (EOFError, ConnectionResetError, BrokenPipeError):
        pass  # the parent has hung up
    for pid in workers:  # they end as well, each when its work or its connection does
        os.waitpid(pid, 0)


def _has_one_thread() -> bool:
    try:
        return SHARES_START and len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


# --- in the worker ---


def _serve_and_exit(connection_number: int, lifeline: int, state: Any) -> NoReturn:
    code = 1
    try:
        _serve(Connection(connection_number), lifeline, state)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)  # nothing of the origin is ours to clean up


def _serve(connection: Connection, lifeline: int, state: Any) -> None:
    """Answer the parent's jobs until it hangs up."""
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    _send_warnings(connection)
    try:
        while True:
            function, arguments = connection.recv()
            answer: tuple[str, Any]
            try:
                answer = "result", function(state, *arguments, lambda value: connection.send(("report", value)))
            except BaseException as error:
                answer = "error", _portable(error)
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has hung up


def _send_warnings(connection: Connection) -> None:
    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        connection.send(("warning", (str(message), category)))

    warnings.showwarning = show_warning


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
