"""Documents -> a corpus to train on and held-out documents to measure on, with nothing in common.

    documents ──normalize, drop what was seen before──> train.jsonl
                                                        heldout/<domain>.jsonl, one file for each meta.domain
                                                        manifest.json, written last

The repetitions go first, over all documents together; the split comes after. So no line and no paragraph of 80
characters or more can stand on both sides, whichever document is held out.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lingua_synth.documents.cleaning import UNIT_CHARS, Deduplicator, normalize_text
from lingua_synth.documents.document import Document
from lingua_synth.documents.locations import PYTHON_CORPUS, are_same_files, describe_files, find_all_files
from lingua_synth.documents.python_corpus import python_documents
from lingua_synth.documents.reading import read_documents, write_documents
from lingua_synth.documents.rejects import Rejects
from lingua_synth.documents.unfinished import begin_folder, end_folder
from lingua_synth.files import folder_lock, read_json, sha256_file, write_json

FORMAT = "lingua_synth corpus"
VERSION = 1
MANIFEST = "manifest.json"
TRAIN = "train.jsonl"
DEFAULT_DOMAIN = "heldout"
SPOOL = ".cleaned.jsonl"


def prepare_corpus(
    documents: str,
    out_dir: str | Path,
    *,
    held_out_fraction: float = 0.05,
    held_out_domains: Sequence[str] | None = None,
    min_held_out_bytes: int = 30_000,
    max_held_out_bytes: int = 400_000,
    seed: int = 0,
    max_bytes: int | None = None,
    max_reject_rate: float = 0.01,
) -> dict[str, Any]:
    """Clean and split `documents` (`python://` or a path for `read_documents`) into `out_dir`; returns the manifest.

    Cleaning changes no word: control characters go, line ends are unified, and lines and paragraphs of 80
    characters or more that were seen before are dropped, as are documents of which nothing is left. (The built-in
    corpus is cleaned of markup as well: `python_documents`.) `max_bytes`: stop before the clean text exceeds it.

    Held out, in every domain of `held_out_domains` (None: all): the documents with the smallest hash of (seed, id),
    until `held_out_fraction` of the domain's bytes is reached, or `min_held_out_bytes` where that is more (but no
    more than a quarter of the domain for its sake), and never over `max_held_out_bytes` or half of the domain: a
    document that would exceed this is trained on instead. The domain is `meta.domain`; documents without one form
    the domain `heldout`.

    The manifest: documents and bytes (UTF-8, text only) of both sides and per domain, what was dropped by reason,
    identity of the input, versions of Python and, for the built-in corpus, of the packages read, hash of every file.
    A finished folder of the same input and settings is returned at once; the built-in corpus counts as the same input
    whatever was installed since. Memory: about 100 bytes per line and paragraph, 200 per document, plus what is
    held out.

    Raises ValueError for other input or settings than a finished folder's, a domain that does not exist, too many
    rejects, a corpus from which nothing can be held out or on which nothing is left to train.
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction is a share of the bytes, above 0 and below 1; got {held_out_fraction}")
    settings = {
        "documents": documents,
        "held_out_fraction": held_out_fraction,
        "held_out_domains": None if held_out_domains is None else sorted(held_out_domains),
        "min_held_out_bytes": min_held_out_bytes,
        "max_held_out_bytes": max_held_out_bytes,
        "seed": seed,
        "max_bytes": max_bytes,
    }
    out_dir = Path(out_dir)
    files = None if documents == PYTHON_CORPUS else find_all_files(documents)
    if files is not None and any(Path(out_dir).resolve() in Path(file).resolve().parents for file in files):
        raise ValueError(f"out_dir {out_dir} holds some of the documents to read; choose a folder beside them")
    with folder_lock(out_dir, "corpus"):
        if (out_dir / MANIFEST).exists():
            return _finished(out_dir, settings, files)
        begin_folder(out_dir, (TRAIN, "heldout/*.jsonl", SPOOL))
        cleaner = _Cleaner(documents, out_dir, max_bytes, max_reject_rate, seed)
        inputs = None if files is None else describe_files(files)
        write_documents(out_dir / SPOOL, cleaner.documents())
        held_out = _choose_held_out(cleaner.entries, settings)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "settings": settings,
            "inputs": inputs,
            # For find_files: whoever reads this folder as documents reads what is for training.
            "document_files": [TRAIN],
            **_write_split(out_dir, cleaner.entries, held_out),
            "dropped": dict(sorted(cleaner.dropped.items())),
            "repeated_chars": cleaner.num_repeated_chars,
            "lines_read": cleaner.rejects.num_read,
            "python": ".".join(map(str, sys.version_info[:3])),
            "packages": dict(sorted(cleaner.packages.items())),
        }
        (out_dir / SPOOL).unlink()
        write_json(out_dir / MANIFEST, manifest)
        end_folder(out_dir)
        return manifest


class _Entry:
    """What the split needs to know of a cleaned document."""

    __slots__ = ("domain", "key", "num_bytes")

    def __init__(self, domain: str, key: bytes, num_bytes: int) -> None:
        self.domain, self.key, self.num_bytes = domain, key, num_bytes


class _Cleaner:
    """Cleaned documents, one after the other, and the counts of what went."""

    def __init__(self, documents: str, out_dir: Path, max_bytes: int | None, max_reject_rate: float, seed: int) -> None:
        self.rejects = Rejects(out_dir / "rejects.jsonl", max_reject_rate)
        self.dropped: dict[str, int] = {}
        self.entries: list[_Entry] = []
        self.packages: dict[str, str] = {}
        self.num_repeated_chars = 0
        self._documents = documents
        self._max_bytes = max_bytes
        self._seed = seed

    def documents(self) -> Iterator[Document]:
        with self.rejects:
            is_built_in = self._documents == PYTHON_CORPUS
            for document in self._built_in() if is_built_in else self._user_documents():
                domain = _domain(document)
                key = hashlib.sha256(f"{self._seed} {document.id}".encode()).digest()[:16]
                self.entries.append(_Entry(domain, key, len(document.text.encode("utf-8"))))
                yield document
        for reason, count in self.rejects.counts.items():
            self._drop(reason, count)

    def _drop(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def _built_in(self) -> Iterator[Document]:
        for document in python_documents(self._max_bytes, self.dropped):
            if document.meta["package"] != "python":
                self.packages[document.meta["package"]] = document.meta["version"]
            yield document

    def _user_documents(self) -> Iterator[Document]:
        seen = Deduplicator()
        num_bytes = 0
        for document in read_documents(self._documents, self.rejects):
            text = seen.keep_new(normalize_text(document.text))
            if not text.strip():
                self._drop("seen before")
                continue
            num_bytes += len(text.encode("utf-8"))
            if self._max_bytes is not None and num_bytes > self._max_bytes:
                break
            yield Document(document.id, text, document.meta)
        self.num_repeated_chars = seen.num_repeated_chars


def _domain(document: Document) -> str:
    """The document's domain as a file name: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^\w.-]+", "-", str(document.meta.get("domain") or "")).strip("-.") or DEFAULT_DOMAIN


# --- the split ---


def _choose_held_out(entries: Sequence[_Entry], settings: dict[str, Any]) -> set[int]:
    """Positions of the documents to hold out."""
    by_domain: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        by_domain.setdefault(entry.domain, []).append(position)
    asked = settings["held_out_domains"]
    unknown = sorted(set(asked or ()) - set(by_domain))
    if unknown:
        raise ValueError(f"no documents of domain {', '.join(unknown)}; there are {', '.join(sorted(by_domain))}")
    held_out: set[int] = set()
    for domain in by_domain if asked is None else asked:
        held_out |= _smallest_keys(entries, by_domain[domain], settings)
    if not held_out:
        sizes = f"{len(entries):,} documents of {sum(entry.num_bytes for entry in entries):,} bytes are left"
        raise ValueError(
            f"nothing can be held out: {sizes} after cleaning; give more documents or raise max_held_out_bytes"
        )
    if len(held_out) == len(entries):
        raise ValueError(f"nothing is left to train on: all {len(entries):,} documents would be held out; give more")
    return held_out


def _smallest_keys(entries: Sequence[_Entry], positions: Sequence[int], settings: dict[str, Any]) -> set[int]:
    total = sum(entries[position].num_bytes for position in positions)
    target = max(settings["held_out_fraction"] * total, min(settings["min_held_out_bytes"], total / 4))
    chosen: set[int] = set()
    num_bytes = 0
    for position in sorted(positions, key=lambda position: (entries[position].key, position)):
        if num_bytes >= target:
            break
        # Half: one of two large documents must not leave the training side without the domain.
        limit = min(settings["max_held_out_bytes"], total / 2)
        if num_bytes + entries[position].num_bytes <= limit:
            chosen.add(position)
            num_bytes += entries[position].num_bytes
    return chosen


def _write_split(out_dir: Path, entries: Sequence[_Entry], held_out: set[int]) -> dict[str, Any]:
    """Write train.jsonl and heldout/*.jsonl from the spooled documents; returns their part of the manifest."""
    kept_back: dict[str, list[Document]] = {}

    def training_documents() -> Iterator[Document]:
        spooled = read_documents(str(out_dir / SPOOL), Rejects(max_rate=0.0, min_count=0))
        for position, (document, entry) in enumerate(zip(spooled, entries, strict=True)):
            if position in held_out:
                kept_back.setdefault(entry.domain, []).append(document)
            else:
                yield document

    write_documents(out_dir / TRAIN, training_documents())
    files = [TRAIN]
    for domain, documents in sorted(kept_back.items()):
        files.append(f"heldout/{domain}.jsonl")
        write_documents(out_dir / files[-1], documents)
    domains: dict[str, dict[str, int]] = {}
    for position, entry in enumerate(entries):
        side = "held_out" if position in held_out else "train"
        counts = domains.setdefault(
            entry.domain, dict.fromkeys(("train_documents", "train_bytes", "held_out_documents", "held_out_bytes"), 0)
        )
        counts[f"{side}_documents"] += 1
        counts[f"{side}_bytes"] += entry.num_bytes
    return {
        "documents": len(entries),
        "bytes": sum(entry.num_bytes for entry in entries),
        **{key: sum(counts[key] for counts in domains.values()) for key in next(iter(domains.values()))},
        "domains": dict(sorted(domains.items())),
        "unit_chars": UNIT_CHARS,
        "files": [
            {"name": name, "file_bytes": (out_dir / name).stat().st_size, "sha256": sha256_file(out_dir / name)}
            for name in files
        ],
    }


def _finished(out_dir: Path, settings: dict[str, Any], files: list[str] | None) -> dict[str, Any]:
    manifest = read_json(out_dir / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise ValueError(
            f"{out_dir / MANIFEST} is not the manifest of a corpus of version {VERSION}; choose another folder"
        )
    there = manifest["settings"]
    differing = [
        f"{key} is {there.get(key)!r} there and {asked!r} now"
        for key, asked in settings.items()
        if there.get(key) != asked
    ]
    if not differing and files is not None and not are_same_files(files, manifest["inputs"] or []):
        differing = ["the documents are others"]
    if differing:
        raise ValueError(
            f"{out_dir} holds a finished corpus of other settings: {'; '.join(differing)}. "
            "Choose another folder, or delete this one."
        )
    for entry in manifest["files"]:
        path = out_dir / entry["name"]
        if not path.is_file() or path.stat().st_size != entry["file_bytes"]:
            raise ValueError(f"{path} is missing or was edited; delete the folder to have it made again")
    return manifest
