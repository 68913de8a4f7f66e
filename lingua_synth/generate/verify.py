"""Whether a folder of generated documents is what its manifest says: hashes, counts, ids; inputs in = outcomes out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lingua_synth.documents import read_documents
from lingua_synth.files import read_json, refuse_path, sha256_file
from lingua_synth.generate import store

MAX_PROBLEMS = 100


def verify(out_dir: str | Path) -> list[str]:
    """The problems of a finished run, in words; an empty list when there is none.

    Checks that every file has the hash the manifest gives, that counts and token sums are those of the lines, that
    every input, and every item that its steps found, ended in a record, a filtered row or a failure, and that no id
    occurs twice. Reads everything once; keeps one id per text in memory. At most 100 problems are listed.
    Raises ValueError for a folder without a manifest: the run is not finished.
    """
    folder = Path(out_dir)
    if not (folder / store.MANIFEST).is_file():
        state = (
            "a run that is not finished; run the same command to go on" if (folder / store.RUN).is_file() else "no run"
        )
        raise ValueError(f"{folder} has no {store.MANIFEST}: {state}")
    manifest = read_json(folder / store.MANIFEST)
    if manifest.get("format") != store.FORMAT:
        raise ValueError(f"{folder / store.MANIFEST} is not the manifest of generated documents")
    if manifest.get("version") != store.VERSION:
        found = manifest.get("version")
        raise ValueError(f"{folder / store.MANIFEST} has format version {found}, this library reads {store.VERSION}")
    problems: list[str] = []
    for problem in _problems(folder, manifest):
        problems.append(problem)
        if len(problems) >= MAX_PROBLEMS:
            problems.append("and perhaps more; the first are listed")
            break
    return problems


def _problems(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    shards = manifest["shards"]
    if [shard["shard"] for shard in shards] != list(range(len(shards))):
        yield "the manifest's shards are not numbered without a gap from 0"
    for shard in shards:
        for name in shard["files"]:
            refuse_path(name, folder / store.MANIFEST)
    listed = {name for shard in shards for name in shard["files"]}
    for kind in store.KINDS:
        for path in sorted(folder.glob(f"{kind}-*")):
            if path.name not in listed:
                yield f"{path.name} is in the folder and not in the manifest"
    with_items = {step["for_each"] for step in manifest["recipe"]["steps"] if step["for_each"]}
    ids: set[str] = set()
    for shard in shards:
        yield from _shard_problems(folder, shard, ids, with_items)
    for key in store.SUMS:
        total = sum(shard[key] for shard in shards)
        if manifest[key] != total:
            yield f"the manifest counts {manifest[key]:,} {key}, its shards {total:,}"
    for key in ("filtered", "flagged"):
        total_by = store.add_counts(shard[key] for shard in shards)
        if manifest[key] != total_by:
            yield f"the manifest counts {key} {manifest[key]}, its shards {total_by}"


def _shard_problems(folder: Path, shard: dict[str, Any], ids: set[str], with_items: set[str]) -> Iterator[str]:
    index = shard["shard"]
    own = folder / store.shard_name(index)
    if not own.is_file() or read_json(own) != shard:
        yield f"{own.name} is not what the manifest says of shard {index}"
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in store.KINDS}
    for name, described in shard["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
            return
        if sha256_file(path) != described["sha256"]:
            yield f"{name} has changed since it was written"
        try:
            rows[name.partition("-")[0]] = _read_rows(path)
        except ValueError as error:
            yield f"{name} cannot be read: {error}"
            return
    yield from _count_problems(index, shard, rows)
    yield from _input_problems(index, shard, rows, with_items)
    for kind, lines in rows.items():
        for row in lines:
            if row.get("id") is None:  # an input without a request: its id is that of an earlier document
                continue
            if row["id"] in ids:
                yield f"id {row['id']} occurs again among the {kind} of shard {index}"
            ids.add(row["id"])


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return [dataclasses.asdict(document) for document in read_documents(str(path))]
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _count_problems(index: int, shard: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    kept = [_synth(row) for row in rows["documents"]]
    counted = {
        "records": len(kept),
        "failed": len(rows["failed"]),
        "steps": len(rows["steps"]),
        "filtered": store.count_by(row.get("filter", "?") for row in rows["filtered"]),
        "flagged": store.count_by(name for synth in kept for name in synth.get("flags", {})),
        "output_tokens": sum(synth.get("output_tokens", 0) for synth in kept),
    }
    for key, value in counted.items():
        if shard[key] != value:
            yield f"shard {index} counts {key} {shard[key]}, its files {value}"
    if any(not row.get("text", "").strip() for row in rows["documents"]):
        yield f"shard {index} has a record without text"


def _input_problems(
    index: int, shard: dict[str, Any], rows: dict[str, list[dict[str, Any]]], with_items: set[str]
) -> Iterator[str]:
    """Every input has an outcome, and so has every item of those that were taken apart."""
    ended = [row for kind in ("documents", "filtered", "failed") for row in rows[kind]]
    num_duplicates = sum(row.get("id") is None for row in ended)
    inputs = {_input(row) for row in ended if row.get("id") is not None}
    if len(inputs) + num_duplicates != shard["inputs"]:
        yield f"shard {index} had {shard['inputs']:,} inputs and has outcomes of {len(inputs) + num_duplicates:,}"
    if not with_items:
        return
    seen = {(_input(row), _about(row).get("item")) for row in [*ended, *rows["steps"]]}
    for row in rows["steps"]:
        if _about(row).get("step") in with_items:
            missing = [item for item in range(1, row["items"] + 1) if (_input(row), item) not in seen]
            if missing:
                source = _about(row).get("source_id")
                yield f"of input {source} in shard {index}, items {missing[:5]} have no outcome"


def _synth(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = row.get("meta", {}).get("synth", {})
    return found


def _about(row: dict[str, Any]) -> dict[str, Any]:
    """Where step, item and source of a row stand: failures have no text and so no `meta`."""
    return _synth(row) or row


def _input(row: dict[str, Any]) -> tuple[Any, Any]:
    about = _about(row)
    return about.get("source_id"), about.get("sample")
