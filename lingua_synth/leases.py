"""Who works on what, on a shared file system, without a coordinator.

    leases/00012/1    the first claim on work 00012, an empty-or-JSON file made with O_EXCL: one process alone makes it
    leases/00012/2    the second claim, made after the first was given back or its process was found dead

The claim with the highest number owns. A claim is alive while its file's modification time is fresh (a thread of its
process touches it) and, where it can be asked, while its process lives: on the same machine a `kill -9` is seen at
once. Times are those of the file system on both sides of the comparison, so clocks of machines need not agree. A
process that was stopped for longer than a lease and wakes finds a higher claim and has lost: numbers only grow, and
what it would publish is to be refused (`Leases.holds` says so).

Generation divides shards so (`generate/worker.py`), a study its runs (`study/agent.py`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

LEASE_S = 60.0
"""Seconds without a sign of life after which a claim of another machine may be taken over."""


class Leases:
    """The claims of one process in the folder `folder`; a context manager that gives all of them back.

    Raises OSError where the file system refuses a write.
    """

    def __init__(self, folder: Path, lease_s: float = LEASE_S) -> None:
        assert lease_s > 0, "a lease lasts a while"
        self._folder = folder
        self._lease_s = lease_s
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        """Name of this process in the folder, unlike any other's."""
        self._me = {"worker": self.worker, **_this_process()}
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self._clock = 0.0, -math.inf
        """The file system's time, and when it was that, on the clock of time.monotonic."""
        self._stop = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._clear_dead()
        self._beat = folder / f".{self.worker}"
        self._beat.write_text(json.dumps(self._me), encoding="utf-8")
        self._thread = threading.Thread(target=self._keep_alive, name="leases", daemon=True)
        self._thread.start()

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back and stop."""
        self._stop.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)
        self._beat.unlink(missing_ok=True)

    def claim(self, name: str) -> int | None:
        """Number of our new claim on `name`, or None while a living process holds it."""
        place = self._folder / name
        # Not exist_ok: that looks again, and raises where the work was finished and its folder removed in between.
        with contextlib.suppress(FileExistsError):
            place.mkdir()
        numbers = _claims(place)
        if numbers and self._is_alive(place / str(numbers[-1])):
            return None
        number = numbers[-1] + 1 if numbers else 1
        try:
            descriptor = os.open(place / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:  # somebody was faster
            return None
        except FileNotFoundError:  # the work was finished in the meantime, and its claims are gone
            return None
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(self._me, file)
        with self._lock:
            self._held[name] = number
        return number

    def earlier_claims(self, name: str) -> list[int]:
        """Numbers of the claims on `name` before ours, oldest first."""
        return [number for number in _claims(self._folder / name) if number < self._held[name]]

    def holds(self, name: str) -> bool:
        """Whether our claim on `name` is still the last one."""
        numbers = _claims(self._folder / name)
        return name in self._held and bool(numbers) and numbers[-1] == self._held[name]

    def is_held(self, name: str) -> bool:
        """Whether a living process, ours or another, has a claim on `name`."""
        numbers = _claims(self._folder / name)
        return bool(numbers) and self._is_alive(self._folder / name / str(numbers[-1]))

    def num_workers(self) -> int:
        """Processes at work in the folder, about: those that were killed count until they are cleared away."""
        return self.claimed()[0]

    def claimed(self) -> tuple[int, set[str]]:
        """(processes at work, as `num_workers`; what has a claim, of a living process or not): one listing."""
        names = os.listdir(self._folder)
        claimed = {name for name in names if not name.startswith(".")}
        return max(1, len(names) - len(claimed)), claimed

    def release(self, name: str) -> None:
        """Give `name` back unfinished: the next claim may follow at once, under the next number."""
        with self._lock:
            number = self._held.pop(name, None)
        if number is not None:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._folder / name / str(number), (0, 0))

    def finish(self, name: str) -> None:
        """Remove all claims on `name`, whose work is done and marked as done elsewhere."""
        with self._lock:
            self._held.pop(name, None)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._lease_s / 4):
            with self._lock:
                for name, number in self._held.items():
                    with contextlib.suppress(FileNotFoundError):
                        os.utime(self._folder / name / str(number))

    def _clear_dead(self) -> None:
        """Remove the signs of life of processes of this machine that live no more."""
        for path in self._folder.glob(".*"):
            holder = _read_sign(path)
            if holder.get("host") == self._me["host"] and not _process_lives(holder):
                path.unlink(missing_ok=True)

    def _is_alive(self, claim: Path) -> bool:
        touched, holder = _read_claim(claim)
        if touched == 0:
            return False
        if holder.get("worker") == self.worker:
            return True
        if holder and holder.get("host") == self._me["host"]:
            return _process_lives(holder)
        return self._now() - touched < self._lease_s

    def _now(self) -> float:
        """The file system's time, asked for now and then: a look at many claims asks once."""
        elapsed = time.monotonic() - self._clock[1]
        if elapsed > min(1.0, self._lease_s / 8):
            os.utime(self._beat)
            self._clock = self._beat.stat().st_mtime, time.monotonic()
            return self._clock[0]
        return self._clock[0] + elapsed


def living_claims(folder: Path, lease_s: float = LEASE_S) -> dict[str, dict[str, Any]]:
    """Name -> what its holder says of itself (`worker`, `host`, `pid`), for all that living processes hold.

    Writes nothing, so that anybody may look: claims of other machines are judged by this machine's clock.
    """
    here, now, held = _host(), time.time(), {}
    try:
        places = [entry for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return {}
    for place in places:
        if not (numbers := _claims(Path(place.path))):
            continue
        touched, holder = _read_claim(Path(place.path) / str(numbers[-1]))
        is_here = bool(holder) and holder.get("host") == here
        if touched and (_process_lives(holder) if is_here else now - touched < lease_s):
            held[place.name] = holder
    return held


def workers_here(folder: Path) -> list[str]:
    """Names of the living processes of this machine that have opened the leases of `folder`."""
    here = _host()
    holders = map(_read_sign, sorted(folder.glob(".*")))
    return [h["worker"] for h in holders if h.get("host") == here and _process_lives(h)]


def _read_sign(path: Path) -> dict[str, Any]:
    """What a process says of itself; {} for one that leaves just now, and for what is no sign of life."""
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        return {}


def _read_claim(claim: Path) -> tuple[float, dict[str, Any]]:
    """(time of the last sign of life, 0 for one given back or gone; what the holder says of itself)."""
    try:
        return claim.stat().st_mtime, _parse(claim.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0.0, {}


def _claims(place: Path) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(place) if name.isdigit())
    except FileNotFoundError:
        return []


def _parse(content: str) -> dict[str, Any]:
    """What a claim says of its process; {} for one that is just being made."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _this_process() -> dict[str, Any]:
    return {"host": _host(), "pid": os.getpid(), "started": _start_of(os.getpid())}


def _host() -> str:
    """This boot of this machine and, in containers, this space of process numbers: where a pid means something."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: a number is given to another process after a while."""
    fields = _fields_of(pid)
    return fields[19] if len(fields) > 19 else None


def _fields_of(pid: int) -> list[str]:
    """What the kernel says of a process, behind its name; nothing where it does not."""
    with contextlib.suppress(OSError):
        # The name, in parentheses, may hold anything; the fields are counted behind it.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return []


def _process_lives(holder: dict[str, Any]) -> bool:
    pid = int(holder["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    if _is_zombie(pid):  # killed, and its parent has not asked yet
        return False
    started = _start_of(pid)
    return started is None or holder.get("started") in (None, started)


def _is_zombie(pid: int) -> bool:
    return _fields_of(pid)[:1] in (["Z"], ["X"])
