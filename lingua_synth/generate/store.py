"""The folder of a generation run: what is in it, in which order it is written, how it is read back.

run.json                 what the run is (recipe, engine, seed, documents), written first; another run is refused
documents-00000.jsonl    kept records, in the order of the input
filtered-00000.jsonl     what a filter dropped, with the reason
failed-00000.jsonl       requests without a text, with the error
shard-00000.json         counts and hashes of the three; written last, so a shard that has it is whole
manifest.json            totals and all shards; written when the run is finished
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.documents import Document, write_documents
from lingua_synth.files import TEMPORARY_SUFFIX, atomic_file, read_json, sha256_file, sha256_json, write_json
from lingua_synth.generate.recipe import Recipe

RUN = "run.json"
MANIFEST = "manifest.json"
KINDS = ("documents", "filtered", "failed")
FORMAT = "lingua_synth generation"
VERSION = 1

_OURS = re.compile(r"(?:(documents|filtered|failed)-(\d{5,})\.jsonl|shard-(\d{5,})\.json)")


def file_name(kind: str, shard: int) -> str:
    """Name of the `documents`, `filtered` or `failed` file of a shard."""
    return f"{kind}-{shard:05d}.jsonl"


def shard_name(shard: int) -> str:
    """Name of the file that makes a shard whole."""
    return f"shard-{shard:05d}.json"


def record_id(source_id: str, recipe: Recipe, sample: int) -> str:
    """Id of a text made of document `source_id`: SHA-256 of (source id, recipe, step, sample), 32 hex digits."""
    return sha256_json(["id", source_id, recipe.name, recipe.version, recipe.step.name, sample])[:32]


def request_seed(seed: int, source_id: str, recipe: Recipe, sample: int) -> int:
    """Seed of that text: 31 bits of SHA-256 of (run's seed, source id, recipe, step, sample)."""
    return int(sha256_json(["seed", seed, source_id, recipe.name, recipe.step.name, sample])[:8], 16) >> 1


@dataclass
class ShardOutcome:
    """What became of a shard's inputs. Every input is in exactly one of the three lists."""

    documents: list[Document] = field(default_factory=list)
    filtered: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)


def write_shard(folder: Path, shard: int, outcome: ShardOutcome, info: Mapping[str, Any]) -> dict[str, Any]:
    """Write a shard's three files and then its `shard-NNNNN.json`, whose content is returned.

    `info` is added to the counts taken from `outcome`. An OSError leaves the shard without its last file: not whole.
    """
    # Remnants of an earlier attempt must not be believed while the new files replace them one by one.
    (folder / shard_name(shard)).unlink(missing_ok=True)
    write_documents(folder / file_name("documents", shard), outcome.documents)
    _write_lines(folder / file_name("filtered", shard), outcome.filtered)
    _write_lines(folder / file_name("failed", shard), outcome.failed)
    files = {}
    for kind in KINDS:
        path = folder / file_name(kind, shard)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    flags = [name for document in outcome.documents for name in document.meta["synth"]["flags"]]
    content = {
        "version": VERSION,
        "shard": shard,
        **info,
        "records": len(outcome.documents),
        "filtered": count_by(row["filter"] for row in outcome.filtered),
        "failed": len(outcome.failed),
        "flagged": count_by(flags),
        "output_tokens": sum(document.meta["synth"]["output_tokens"] for document in outcome.documents),
        "files": files,
    }
    write_json(folder / shard_name(shard), content)
    return content


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


def read_shards(folder: Path) -> dict[int, dict[str, Any]]:
    """The whole shards of a folder, by index, in ascending order.

    Raises ValueError where a file of such a shard is missing or has another size than was written.
    """
    shards = {}
    for path in sorted(folder.glob("shard-*.json")):
        match = _OURS.fullmatch(path.name)
        if match is None:
            continue
        content = read_json(path)
        if content.get("version") != VERSION:
            raise ValueError(f"{path} has format version {content.get('version')}, this library reads {VERSION}")
        for name, described in content["files"].items():
            file = folder / name
            size = file.stat().st_size if file.is_file() else None
            if size != described["bytes"]:
                state = "is missing" if size is None else f"has {size:,} bytes, not the {described['bytes']:,} written"
                raise ValueError(f"{file} {state}; delete {path} to have this shard generated again")
        shards[content["shard"]] = content
    return dict(sorted(shards.items()))


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of a process that was killed. Only for the holder of the folder's lock."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink()


def remove_shards_after(folder: Path, last: int) -> None:
    """Delete all files of shards behind `last`, whole or not, each shard's last-written file first."""
    found = [(path, match) for path in folder.iterdir() if (match := _OURS.fullmatch(path.name))]
    behind = [path for path, match in found if int(match[2] or match[3]) > last]
    for path in sorted(behind, key=lambda path: not path.name.startswith("shard-")):
        path.unlink()


def holds_other_files(folder: Path) -> list[str]:
    """Names in `folder` that a run would write itself, though it has no run.json to explain them."""
    if (folder / RUN).exists() or not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name == MANIFEST or _OURS.fullmatch(path.name))


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_file(path, "wb") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
