"""The folder of a generation run: what is in it, in which order it is written, how it is read back.

run.json                 what the run is (recipe, engine, seed, documents), written first; another run is refused
plan.npz, rejects.*      the input, cut into shards (`plan`); inputs.jsonl where the documents were no files
leases/, journal/        who works on what, and what is known of shards that are not whole (`leases`, `journal`)
documents-00000.jsonl    kept records, in the order of the input; or .parquet
filtered-00000.jsonl     what a filter or a gate dropped, with the reason
failed-00000.jsonl       requests without a text, with the error
steps-00000.jsonl        texts of steps that are no records themselves; only where a recipe has such steps
shard-00000.json         counts and hashes of these; a shard that has it is whole
workers/                 hours and tokens of every process that worked here (`accounting`)
card.md                  the dataset card, for readers
manifest.json            totals and all shards; written when the run is finished

Two processes may believe for a moment that one shard is theirs, when one was stopped for longer than a lease. Each
writes under a name of its own claim, and one alone can link `shard-00000.json`: that one names whose files count, and
whoever comes by gives them their names.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.documents import Document, write_documents
from lingua_synth.files import (
    TEMPORARY_SUFFIX,
    atomic_file,
    fsync_folder,
    read_json,
    refuse_path,
    sha256_file,
    sha256_json,
)
from lingua_synth.generate.recipe import Recipe, Step

RUN = "run.json"
MANIFEST = "manifest.json"
KINDS = ("documents", "filtered", "failed", "steps")
DOCUMENT_FORMATS = ("jsonl", "parquet")
SUMS = (
    "inputs",
    "source_documents",
    "records",
    "failed",
    "steps",
    "prompt_tokens",
    "generated_tokens",
    "output_tokens",
)
"""What a manifest adds up over its shards."""
FORMAT = "lingua_synth generation"
VERSION = 2

_OURS = re.compile(r"(?:(documents|filtered|failed|steps)-(\d{5,})\.(?:jsonl|parquet)|shard-(\d{5,})\.json)")


def file_name(kind: str, shard: int, document_format: str = "jsonl") -> str:
    """Name of the `documents`, `filtered`, `failed` or `steps` file of a shard."""
    return f"{kind}-{shard:05d}.{document_format if kind == 'documents' else 'jsonl'}"


def shard_name(shard: int) -> str:
    """Name of the file that makes a shard whole."""
    return f"shard-{shard:05d}.json"


def record_id(source_id: str, recipe: Recipe, step: Step, sample: int, item: int | None = None) -> str:
    """Id of a text made of document `source_id`: SHA-256 of (source, recipe, step, sample, item), 32 hex digits."""
    own = [] if item is None else [item]
    return sha256_json(["id", source_id, recipe.name, recipe.version, step.name, sample, *own])[:32]


def request_seed(
    seed: int, source_id: str, recipe: Recipe, step: Step, sample: int, item: int | None = None, attempt: int = 0
) -> int:
    """Seed of one call: 31 bits of SHA-256 of (run's seed, source, recipe, step, sample, item, attempt)."""
    own = [] if item is None and not attempt else [item, attempt]
    return int(sha256_json(["seed", seed, source_id, recipe.name, step.name, sample, *own])[:8], 16) >> 1


@dataclass
class ShardOutcome:
    """What became of a shard's inputs. Every text asked for is in exactly one of the first three lists."""

    documents: list[Document] = field(default_factory=list)
    filtered: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Texts that are no records: what later steps went on from."""


def write_shard(
    folder: Path, shard: int, claim: int, outcome: ShardOutcome, info: Mapping[str, Any], document_format: str
) -> dict[str, Any] | None:
    """Write a shard and make it whole; returns the content of its `shard-NNNNN.json`.

    None when another process has made it whole before: its files stand, ours are gone. `info` is added to the counts
    taken from `outcome`. An OSError leaves the shard not whole.
    """
    kinds = [kind for kind in KINDS if kind != "steps" or outcome.steps]
    names = {kind: file_name(kind, shard, document_format) for kind in kinds}
    staged = {name: _staged(folder, name, claim) for name in names.values()}
    own = _staged(folder, shard_name(shard), claim)
    try:
        for kind, name in names.items():
            if kind == "documents":
                write_documents(staged[name], outcome.documents)
            else:
                _write_lines(staged[name], getattr(outcome, kind))
        files = {name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for name, path in staged.items()}
        content = {
            "version": VERSION,
            "shard": shard,
            "claim": claim,
            **info,
            "records": len(outcome.documents),
            "filtered": count_by(row["filter"] for row in outcome.filtered),
            "failed": len(outcome.failed),
            "steps": len(outcome.steps),
            "flagged": count_by(name for document in outcome.documents for name in document.meta["synth"]["flags"]),
            "output_tokens": sum(document.meta["synth"]["output_tokens"] for document in outcome.documents),
            "files": files,
        }
        with atomic_file(own) as file:
            json.dump(content, file, indent=2, allow_nan=False)
            file.write("\n")
        if _link(own, folder / shard_name(shard)):
            staged = {}  # the shard's own from here on, whatever happens
    finally:
        for path in (own, *staged.values()):
            path.unlink(missing_ok=True)
    if staged:
        return None
    finish_shard(folder, content)
    return content


def finish_shard(folder: Path, content: Mapping[str, Any]) -> None:
    """Give a whole shard's files their names, where its process was killed before it could."""
    renamed = False
    for name in content["files"]:
        with contextlib.suppress(FileNotFoundError):  # named already
            os.replace(_staged(folder, name, content["claim"]), folder / name)
            renamed = True
    if renamed:
        fsync_folder(folder)


def _staged(folder: Path, name: str, claim: int) -> Path:
    stem, _, suffix = name.rpartition(".")
    return folder / f".{stem}.claim-{claim}.{suffix}"


def _link(source: Path, target: Path) -> bool:
    """Give `source` a second name that must not exist; False if it does."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links: the name is made by one process alone, and filled at once.
        try:
            descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())
    fsync_folder(target.parent)
    return True


def count_by(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, in alphabetical order."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several counts, in alphabetical order."""
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def whole_shards(folder: Path) -> set[int]:
    """Numbers of the shards that are whole; one listing of the folder."""
    # A run of a million shards has four million files: most are told apart by their first letters.
    found = (_OURS.fullmatch(name) for name in os.listdir(folder) if name.startswith("shard-"))
    return {int(match[3]) for match in found if match and match[3]}


def read_shard(folder: Path, shard: int) -> dict[str, Any]:
    """The content of a whole shard's `shard-NNNNN.json`, its files named and of the size that was written.

    Raises ValueError where a file is missing or has another size.
    """
    content = read_counts(folder, shard)
    finish_shard(folder, content)
    check_sizes(folder, content)
    return content


def read_counts(folder: Path, shard: int) -> dict[str, Any]:
    """The content of a whole shard's `shard-NNNNN.json` alone: one file is opened, and none is looked at."""
    path = folder / shard_name(shard)
    content: dict[str, Any] = read_json(path)
    if content.get("version") != VERSION:
        raise ValueError(f"{path} has format version {content.get('version')}, this library reads {VERSION}")
    for name in content["files"]:
        refuse_path(name, path)
    return content


def check_sizes(folder: Path, content: Mapping[str, Any]) -> None:
    """ValueError where a file of a whole shard is missing or has another size than was written."""
    for name, described in content["files"].items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != described["bytes"]:
            state = "is missing" if size is None else f"has {size:,} bytes, not the {described['bytes']:,} written"
            own = folder / shard_name(content["shard"])
            raise ValueError(f"{file} {state}; delete {own} to have this shard generated again")


def remove_leftovers(folder: Path) -> None:
    """Delete files of processes that were killed while they wrote. Only when nobody else works in the folder."""
    for pattern in (f".*{TEMPORARY_SUFFIX}", ".*.claim-*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def remove_shards_after(folder: Path, last: int) -> None:
    """Delete all files of shards behind `last`, whole or not, each shard's last-written file first."""
    found = [(path, match) for path in folder.iterdir() if (match := _OURS.fullmatch(path.name))]
    behind = [path for path, match in found if int(match[2] or match[3]) > last]
    for path in sorted(behind, key=lambda path: not path.name.startswith("shard-")):
        path.unlink(missing_ok=True)


def holds_other_files(folder: Path) -> list[str]:
    """Names in `folder` that a run would write itself, though it has no run.json to explain them."""
    if (folder / RUN).exists() or not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name == MANIFEST or _OURS.fullmatch(path.name))


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_file(path, "wb") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
