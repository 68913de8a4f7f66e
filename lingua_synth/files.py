"""Writing files that a later run may trust.

Everything the library leaves on disk goes through here: a file is written under a temporary name,
fsynced and renamed, so a name that exists holds a whole file. A folder is trusted by the one file that
is written last (`manifest.json`, `result.json`, ...). A write that fails removes what it had begun and raises.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".tmp"


def fsync_folder(folder: str | Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing; it appears under its name, whole and fsynced, when the block ends.

    If the block raises (a full disk, a kill by Ctrl-C) the temporary file is removed and what stood
    under `path` before is untouched. Two writers of one path: the last to finish wins, both whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    is_text = "b" not in mode
    try:
        with open(temporary, mode, encoding="utf-8" if is_text else None, newline="" if is_text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends, or vanishes if it raises.

    Replaces a folder that stood there before. Files written inside must be fsynced by their writer.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        fsync_folder(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(path.parent)


def _temporary(path: Path) -> Path:
    # Process numbers alone would meet: threads of one process, and containers that share a disk, have the same.
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Floats keep full precision; NaN is refused."""
    with atomic_file(path) as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; ValueError names the file when it is missing or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no file {path}; {what_is_there(path)}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it to have it made again") from None


def what_is_there(path: str | Path) -> str:
    """A phrase for error messages: what the nearest existing parent of `path` holds."""
    parent = Path(path).parent
    while not parent.exists():
        parent = parent.parent
    names = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    listed = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
    return f"{parent} holds: {listed or 'nothing'}"


def refuse_path(name: object, where: str | Path) -> None:
    """ValueError unless `name`, as the file `where` gives it, is the name of a file beside it: no path, not hidden by
    a NUL, not `..`."""
    if not isinstance(name, str) or not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise ValueError(f"{where} names the file {name!r}; only files of its own folder are read and written")


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data`, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of `value` as canonical JSON (sorted keys, no spaces): the identity of a configuration."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


class FolderInUse(ValueError):
    """Another living process holds the folder."""


@contextlib.contextmanager
def folder_lock(folder: str | Path, purpose: str) -> Iterator[None]:
    """Hold `folder` for this process; FolderInUse (a ValueError) if another living process holds it.

    An advisory lock of the operating system: it ends with the process, so `kill -9` leaves none behind.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FolderInUse(
                f"{folder} is in use by {holder}; wait for it, stop it, or choose another folder for this {purpose}"
            ) from None
        file.truncate(0)
        file.write(f"{purpose}, process {os.getpid()}")
        file.flush()
        yield
