"""Documents of many domains in shared files, as the Pile comes -> one file a domain.

One pass, one line in memory; each document goes to the file of what its metadata says (`meta.pile_set_name`). Every
line read ends in exactly one place: a domain's file, the count of a domain that is not of the set, or the rejects. The
folder is marked unfinished, and refused by every reader, until `manifest.json` is written, last; a call after a kill
begins anew.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from tqdm import tqdm

from lingua_synth.documents import Document, Rejects, read_documents
from lingua_synth.documents.locations import are_same_files, describe_files, find_all_files
from lingua_synth.documents.unfinished import MARKER, begin_folder, end_folder
from lingua_synth.evaluate.domain_sets import DomainSet
from lingua_synth.files import folder_lock, fsync_folder, read_json, sha256_file, write_json

MANIFEST = "manifest.json"
FORMAT = "lingua_synth domains"
VERSION = 1
FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst")
# Past this many values the key is no domain; and each is an open file.
MOST_DOMAINS = 200


def split_domains(
    documents: str | Sequence[str],
    out: str | Path,
    *,
    domain_set: DomainSet | None = None,
    key: str = "",
    file_format: str = "jsonl",
    max_reject_rate: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Split `documents` (paths as for `read_documents`) by `meta[key]` into `out`/<domain>.<format>; the manifest.

    With a set, its domains are written under its names and others are counted; without one (or with `custom`), every
    value is a domain, under its name in lower case with _ for what a file's name cannot hold. `key`: by default the
    set's own, else pile_set_name. A finished folder of the same input and settings is returned as it is.

    ValueError for a set that names no values, a folder with another split or somebody's files, two values with one
    name, more than 200 values, more than `max_reject_rate` of the lines without a value or no documents at all; OSError
    for a write that fails.
    """
    if file_format not in FORMATS:
        raise ValueError(f"format is {', '.join(FORMATS)}; got {file_format!r}")
    names = None
    if domain_set is not None and not domain_set.is_open:
        names = {d.value: name for name, d in domain_set.domains.items() if d.value is not None}
        if not names:
            raise ValueError(f"the domain set {domain_set.name} names no values of a key: its files come split already")
    key = key or (domain_set.key if domain_set is not None else None) or "pile_set_name"
    files = find_all_files(documents)
    out = Path(out)
    settings = {"key": key, "names": names, "file_format": file_format}
    with folder_lock(out, "split"):
        if (out / MANIFEST).exists():
            return _finished(out, settings, files)
        begin_folder(out, [f"*.{suffix}" for suffix in FORMATS])
        writer = _Writer(out, file_format, names)
        rejects = Rejects(out / "rejects.jsonl", max_reject_rate)
        with writer, rejects:
            bar = tqdm(read_documents(files, rejects), unit="doc", desc="split", disable=not progress)
            for document in bar:
                value = document.meta.get(key)
                if not isinstance(value, str) or not value:
                    rejects.add(f"document {document.id}", rejects.num_read, f"no {key}")
                    _check(rejects, document)
                    continue
                writer.write(value, document)
            rejects.check()
        if not writer.num_written:
            there = ", ".join(sorted(writer.others)) or "none at all"
            raise ValueError(
                f"no document of {', '.join(files[:3])} has a {key} of the set ({', '.join(names or ())}); "
                f"values there: {there}; lines without a {key} or unreadable: {rejects.num_rejected:,}"
            )
        domains = {
            name: {**counts, "file": writer.file_name(name), "sha256": sha256_file(out / writer.file_name(name))}
            for name, counts in sorted(writer.counts.items())
        }
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **settings,
            "inputs": describe_files(files),
            "lines_read": rejects.num_read,
            "domains": domains,
            "other_values": dict(writer.others.most_common()),
            "absent": sorted(set((names or {}).values()) - set(domains)),
            "skipped": rejects.counts,
            "document_files": [entry["file"] for entry in domains.values()],
        }
        total = writer.num_written + sum(writer.others.values()) + rejects.num_rejected
        assert total == rejects.num_read, "every line is in one place"
        fsync_folder(out)
        write_json(out / MANIFEST, manifest)
        end_folder(out)
        return manifest


def _check(rejects: Rejects, document: Document) -> None:
    try:
        rejects.check()
    except ValueError as error:
        known = ", ".join(sorted(document.meta)[:12]) or "nothing"
        raise ValueError(f"{error} (the metadata of document {document.id} has {known}; key= names another)") from None


def _finished(out: Path, settings: dict[str, Any], files: Sequence[str]) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(out / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{out} holds something else ({MANIFEST} of {manifest.get('format')!r}); choose another folder"
        )
    different = [name for name, value in settings.items() if manifest.get(name) != value]
    if not are_same_files(files, manifest["inputs"]):
        different.append("documents")
    if different:
        raise ValueError(f"{out} holds a split of other {', '.join(different)}; choose another folder, or delete it")
    (out / MARKER).unlink(missing_ok=True)
    return manifest


class _Writer:
    """An open file for each domain, under its final name in a folder that is marked unfinished."""

    def __init__(self, out: Path, file_format: str, names: dict[str, str] | None) -> None:
        self._out, self._format, self._names = out, file_format, names
        self._values: dict[str, str] = {}
        """Domain name to the value it came from, where the names are made of the values."""
        self._files: dict[str, IO[bytes]] = {}
        self._stack = contextlib.ExitStack()
        self.counts: dict[str, dict[str, int]] = {}
        self.others: Counter[str] = Counter()

    @property
    def num_written(self) -> int:
        return sum(entry["documents"] for entry in self.counts.values())

    def file_name(self, name: str) -> str:
        return f"{name}.{self._format}"

    def write(self, value: str, document: Document) -> None:
        name = self._name(value)
        if name is None:
            self.others[value] += 1
            return
        line = {"id": document.id, "text": document.text, "meta": document.meta}
        data = json.dumps(line, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
        if name not in self._files:
            self._files[name] = self._open(name)
            self.counts[name] = {"documents": 0, "bytes": 0}
        self._files[name].write(data)
        self.counts[name]["documents"] += 1
        self.counts[name]["bytes"] += len(document.text.encode("utf-8"))

    def _name(self, value: str) -> str | None:
        if self._names is not None:
            return self._names.get(value)
        name = re.sub(r"[^\w.+-]+", "_", value).strip("_.").lower() or "_"
        if self._values.setdefault(name, value) != value:
            raise ValueError(
                f"{self._values[name]!r} and {value!r} would both be the domain {name!r}; give them names in a domain "
                "set of your own: domain_set=FILE.yaml"
            )
        if len(self._values) > MOST_DOMAINS:
            raise ValueError(
                f"more than {MOST_DOMAINS} values ({', '.join(list(self._values)[:5])}, ...): this key does not name "
                "domains; set key=, or domain_set= to write only some"
            )
        return name

    def _open(self, name: str) -> IO[bytes]:
        raw = self._stack.enter_context(open(self._out / self.file_name(name), "wb"))  # noqa: SIM115
        self._stack.callback(_sync, raw)
        if self._format == "jsonl.gz":
            packed = self._stack.enter_context(gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0))
            return cast(IO[bytes], packed)
        if self._format == "jsonl.zst":
            import zstandard

            compressor = zstandard.ZstdCompressor(write_checksum=True)
            return self._stack.enter_context(compressor.stream_writer(raw, closefd=False))
        return raw

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def _sync(file: IO[bytes]) -> None:
    import os

    file.flush()
    os.fsync(file.fileno())
