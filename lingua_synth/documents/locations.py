"""From what a user names (a file, a folder, a glob, a URL) to the sorted list of files that hold documents.

Nothing is silently left out or read twice: what matches is sorted by name, a name that matches nothing is
refused with what is there instead, and a file reached through two of the given paths is refused.
A folder of ours that also holds texts which are not meant for reading (held-out documents, filtered
generations) says in its `manifest.json`, under `document_files`, which names or patterns are.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import IO, Any

from lingua_synth.documents.unfinished import MARKER
from lingua_synth.files import sha256_file, what_is_there

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PYTHON_CORPUS = "python://"
REJECTS_NAME = "rejects.jsonl"


def is_url(path: str) -> bool:
    """Whether `path` is for fsspec (`s3://...`, `memory://...`) rather than a path of this machine."""
    return "://" in path


def find_files(path: str) -> list[str]:
    """The document files at `path`, sorted: a file, a folder (recursive), a glob (`**` too), or an fsspec URL of these.

    Files of documents end in .jsonl, .jsonl.gz, .jsonl.zst or .parquet; Lingua's `*.chunk.NN.jsonl` are such files.
    In a folder, hidden files and our own `rejects.jsonl` are passed over, and a `manifest.json` with a list
    `document_files` (names or patterns relative to the folder) limits the reading to these. A folder of ours that
    is not finished yet is refused.
    Raises ValueError when nothing matches, saying what is there.
    """
    if path == PYTHON_CORPUS:
        raise ValueError(f"{PYTHON_CORPUS} is the built-in corpus and has no files; read it with read_documents")
    if not path:
        raise ValueError("no documents given; name a file, a folder, a glob or a URL")
    return _find_remote(path) if is_url(path) else _find_local(path)


def find_all_files(path: str | Sequence[str]) -> list[str]:
    """`find_files` over one path or several, in the order given; ValueError when two paths reach the same file."""
    files = [file for one in ([path] if isinstance(path, str) else path) for file in find_files(one)]
    seen: set[str] = set()
    for file in files:
        identity = file if is_url(file) else os.path.realpath(file)
        if identity in seen:
            raise ValueError(f"{file} is reached twice by the given paths and would be read twice; name it once")
        seen.add(identity)
    return files


def _find_local(path: str) -> list[str]:
    if os.path.isfile(path):
        return [_refuse_other_suffix(path)]
    if os.path.isdir(path):
        return _find_in_folder(path)
    files = sorted(file for file in glob.glob(path, recursive=True) if file.endswith(SUFFIXES) and os.path.isfile(file))
    if not files:
        # Up to the part with wildcards, which cannot exist under that name.
        fixed = path[: next((i for i, c in enumerate(path) if c in "*?["), len(path))]
        raise ValueError(
            f"no documents at {path} (files ending in {', '.join(SUFFIXES)} are read); {what_is_there(fixed + '_')}"
        )
    return files


def _find_in_folder(folder: str) -> list[str]:
    files: list[str] = []
    seen_folders: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen_folders:  # a link back up: walking on would never end
            folders.clear()
            continue
        seen_folders.add(real)
        if MARKER in names:
            raise ValueError(
                f"{parent} is not finished: what writes it is at work or was interrupted. Run that command again, "
                "or name the files to read"
            )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [os.path.join(parent, name) for name in names if _is_document_name(name)]
    listed = _listed_by_manifest(os.path.join(folder, "manifest.json"))
    if listed is not None:
        files = [file for file in files if _matches(os.path.relpath(file, folder), listed)]
    if not files:
        limit = f" named by its manifest.json ({', '.join(listed)})" if listed is not None else ""
        raise ValueError(
            f"no documents{limit} in the folder {folder} (files ending in {', '.join(SUFFIXES)} are read); "
            f"{what_is_there(os.path.join(folder, 'any'))}"
        )
    return sorted(files)


def _is_document_name(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".") and name != REJECTS_NAME


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.replace(os.sep, "/"), pattern) for pattern in patterns)


def _listed_by_manifest(manifest: str) -> list[str] | None:
    try:
        with open_file(manifest) as file:
            content = json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError):
        return None  # somebody else's manifest.json, or none
    listed = content.get("document_files") if isinstance(content, dict) else None
    return listed if isinstance(listed, list) and all(isinstance(name, str) for name in listed) else None


def _refuse_other_suffix(path: str) -> str:
    if not path.endswith(SUFFIXES):
        raise ValueError(f"{path} is not a file of documents: its name must end in {', '.join(SUFFIXES)}")
    return path


# --- URLs ---


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise ValueError(f"reading {url} needs fsspec: pip install fsspec") from None
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"reading {url} needs another package: {error}") from None
    except ValueError as error:
        raise ValueError(f"cannot read {url}: {error}") from None


def _find_remote(url: str) -> list[str]:
    system, path = _file_system(url)
    if system.isfile(path):
        return [_refuse_other_suffix(url)]
    if system.isdir(path):
        found = [
            name
            for name in system.find(path)
            if not any(part.startswith(".") for part in _below(name, path).split("/"))
        ]
        listed = _listed_by_manifest(f"{url.rstrip('/')}/manifest.json")
        if listed is not None:
            found = [name for name in found if _matches(_below(name, path), listed)]
    else:
        found = system.glob(path)
    files = sorted(name for name in found if _is_document_name(PurePosixPath(name).name) and system.isfile(name))
    if not files:
        there = ", ".join(sorted(PurePosixPath(name).name for name in found)[:8]) or "nothing"
        raise ValueError(f"no documents at {url} (files ending in {', '.join(SUFFIXES)} are read); found: {there}")
    return [system.unstrip_protocol(name) for name in files]


def _below(name: str, folder: str) -> str:
    return name.removeprefix(folder.rstrip("/")).lstrip("/")


def open_file(file: str) -> IO[bytes]:
    """Open one of `find_files`' results for reading bytes, wherever it lies."""
    if not is_url(file):
        return open(file, "rb")
    system, path = _file_system(file)
    return system.open(path, "rb")


# --- identity of input files ---


def describe_files(files: Sequence[str], *, with_hash: bool = True) -> list[dict[str, Any]]:
    """Identity of input files: name (relative to their common folder), size, modification time and SHA-256 of each.

    Reads every local file once; without the hashes, none. Files behind a URL are identified by fsspec's `ukey` (a
    checksum or time of the store) in place of the hash, and are not read.
    """
    names = _relative_names(files)
    return [_describe(file, name, with_hash=with_hash) for file, name in zip(files, names, strict=True)]


def are_same_files(files: Sequence[str], described: Sequence[dict[str, Any]]) -> bool:
    """Whether `files` are what `describe_files` saw. A file is read only where its time changed but not its size."""
    if len(files) != len(described):
        return False
    for file, name, old in zip(files, _relative_names(files), described, strict=True):
        new = _describe(file, name, with_hash=False)
        if any(new[key] != old.get(key) for key in ("name", "size")):
            return False
        if "ukey" in new:
            if new["ukey"] != old.get("ukey"):
                return False
        elif new["modified_ns"] != old.get("modified_ns") and sha256_file(file) != old.get("sha256"):
            return False
    return True


def _relative_names(files: Sequence[str]) -> list[str]:
    folders = {os.path.dirname(file) for file in files}
    try:
        root = os.path.commonpath(folders)
    except ValueError:  # URLs beside paths, or absolute beside relative paths
        return list(files)
    return [os.path.relpath(file, root) if root else file for file in files]


def _describe(file: str, name: str, *, with_hash: bool) -> dict[str, Any]:
    if is_url(file):
        system, path = _file_system(file)
        key = hashlib.sha256(str(system.ukey(path)).encode()).hexdigest()[:16]
        return {"name": name, "size": system.size(path), "ukey": key}
    stat = os.stat(file)
    described = {"name": name, "size": stat.st_size, "modified_ns": stat.st_mtime_ns}
    if with_hash:
        described["sha256"] = sha256_file(file)
    return described
