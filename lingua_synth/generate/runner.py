"""Documents through a recipe and an engine into a folder, so that every text asked for ends in exactly one place.

    documents -> plan (shards of the input) -> workers, any number of processes on any number of machines
        -> a shard's files, when its last outcome is there -> manifest.json, by whoever finishes last

The folder is all that processes share: `run.json` says what the run is, and who comes with another recipe, engine or
input is refused; `leases/` says who works on which shard; `journal/` holds what a kill must not cost. So the same call
again goes on where a killed one stood, and the same call on another node helps. Where an engine gives the same text
for the same request, a recipe of one step gives files that are byte for byte those of a run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.documents.unfinished import MARKER, end_folder
from lingua_synth.files import atomic_file, folder_lock, read_json, sha256_json, write_json
from lingua_synth.generate import store
from lingua_synth.generate.accounting import Usage, read_usage
from lingua_synth.generate.card import NAME as CARD
from lingua_synth.generate.card import build_card
from lingua_synth.generate.engine import IDENTITY_KEYS, Engine
from lingua_synth.generate.filters import require_filters
from lingua_synth.generate.plan import Documents, InputPlan, Source, find_source, plan_inputs, rejected_lines, spool
from lingua_synth.generate.recipe import Recipe, load_recipe
from lingua_synth.generate.worker import JOURNALS, LEASES, Settings, Worker
from lingua_synth.leases import LEASE_S, Leases

PLANNING = "plan"


@dataclass(frozen=True)
class GenerationSummary:
    """What a run has made; of a finished one, the counts of its manifest."""

    out_dir: Path
    recipe: str
    engine: str
    inputs: int
    """Documents times samples, as far as the run went."""
    source_documents: int
    """Documents of the input that were used."""
    records: int
    filtered: dict[str, int]
    """Dropped outputs by filter or gate, and documents whose id had been used before under `duplicate_id`."""
    failed: int
    flagged: dict[str, int]
    """Kept records that a filter marked, by filter."""
    prompt_tokens: int
    """Read by the generator for all outputs."""
    generated_tokens: int
    """Written by the generator, kept or not."""
    output_tokens: int
    """Of the kept records, in the generator's tokens."""
    max_output_tokens: int | None
    reached_max_output_tokens: bool
    is_complete: bool
    """False while other processes still work on shards of the run: the last of them finishes it."""
    usage: Usage
    """Hours and tokens of all processes that ever worked on the run."""
    wasted_tokens: int
    """Written by the generator and lost: to kills, to leases that ran out, behind the end of a budget."""
    seconds: float
    """Of this call alone."""
    resumed_inputs: int
    """Inputs that had been finished before this call."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**dataclasses.asdict(self), "out_dir": str(self.out_dir)}

    def __str__(self) -> str:
        filtered = ", ".join(f"{name} {count:,}" for name, count in self.filtered.items()) or "none"
        flagged = ", ".join(f"{name} {count:,}" for name, count in self.flagged.items()) or "none"
        now = self.inputs - self.resumed_inputs
        usage = self.usage
        cached = f" ({usage.cached_tokens:,} of them cached)" if usage.cached_tokens else ""
        rows = {
            "recipe, engine": f"{self.recipe}, {self.engine}",
            "inputs": f"{self.inputs:,} from {self.source_documents:,} documents",
            "records": f"{self.records:,} with {self.output_tokens:,} tokens",
            "filtered": f"{sum(self.filtered.values()):,} ({filtered})",
            "failed": f"{self.failed:,}",
            "marked records": flagged,
            "tokens": f"{self.prompt_tokens:,} read{cached}, {self.generated_tokens:,} written",
            "this call": f"{now:,} inputs in {self.seconds:,.1f} s",
            "engine": f"start {usage.startup_s:,.1f} s, busy {usage.busy_s:,.1f} s, idle {usage.idle_s:,.1f} s",
        }
        if usage.gpu_h:
            hours = f"busy {usage.gpu_busy_h:,.2f}, idle {usage.gpu_idle_h:,.2f}, start {usage.gpu_startup_h:,.2f}"
            if self.output_tokens:
                hours += f"; {usage.gpu_h / self.output_tokens * 1e9:,.1f} per billion kept tokens"
            rows["GPU-hours"] = hours
        if self.wasted_tokens:
            rows["wasted"] = f"{self.wasted_tokens:,} tokens"
        if self.max_output_tokens is not None:
            state = "reached" if self.reached_max_output_tokens else "NOT reached, the input ended first"
            rows["token budget"] = f"{self.max_output_tokens:,}, {state if self.is_complete else 'not reached yet'}"
        if not self.is_complete:
            rows["not finished"] = "other processes are at work on the rest; run again should one of them have died"
        return "\n".join(f"{name:15} {value}" for name, value in rows.items())


def generate(
    documents: Documents,
    out_dir: str | Path,
    recipe: Recipe | str,
    engine: Engine,
    *,
    seed: int = 0,
    samples: int = 1,
    max_output_tokens: int | None = None,
    shard_size: int = 1000,
    document_format: str = "jsonl",
    max_failure_rate: float = 0.05,
    max_reject_rate: float = 0.01,
    lease_s: float = LEASE_S,
    progress: bool = True,
) -> GenerationSummary:
    """Generate texts for every document (objects, or a path for `read_documents`) into the folder `out_dir`.

    With `samples` above 1 the documents are gone through that many times, all of them for the first sample, then all
    for the second; each call of the generator has a seed of its own. `max_output_tokens` ends the run with the first
    shard at which the kept records hold so many tokens, the same shard whatever finished first. A document whose id
    occurred before in the input is filtered as `duplicate_id` (ids are compared by 64-bit hash).
    `document_format`: jsonl or parquet, of the kept records. Memory: a few shards, and 8 bytes a document while the
    input is cut into shards.

    Several processes may call it with the same arguments at the same time, on any machines that share the folder: each
    takes shards that nobody works on, also those of a process that gave no sign of life for `lease_s` seconds. A call
    that finds nothing left to do returns, and the last to finish writes the manifest (`is_complete`).

    Calling it again with the same arguments goes on where an interrupted run stopped, and returns the summary of a
    finished one. `max_output_tokens` may be raised later. The files depend on documents, recipe, engine, seed and
    `shard_size` alone, plus `created`, the time the run began (SOURCE_DATE_EPOCH sets it).

    Raises ValueError for a folder that holds another run (naming what differs), for a recipe the engine cannot take,
    when more than `max_failure_rate` of 100 or more requests fail or none succeeds, when more than `max_reject_rate` of
    the input's lines are no documents. OSError when the disk is full; what was finished stays valid. `Stopped` (a
    SystemExit) after SIGINT or SIGTERM, when what was under way has been put down.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    _validate(recipe, engine, samples, max_output_tokens, shard_size, document_format, max_failure_rate, lease_s)
    out_dir = Path(out_dir)
    start = time.perf_counter()
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"out is a folder, and {out_dir} is a file")
    # Before the folder exists: documents or a model that are not there leave nothing behind.
    source = find_source(documents, out_dir)
    identity = _identity(recipe, engine, seed, samples, shard_size, document_format)
    run, plan = _claim(out_dir, identity, engine, source, max_output_tokens, max_reject_rate, lease_s)
    before = store.whole_shards(out_dir)
    resumed = sum(plan.size(shard) for shard in before if shard < plan.num_shards)
    was_finished = (out_dir / store.MANIFEST).exists()
    if not was_finished:
        settings = Settings(recipe, engine, seed, max_output_tokens, max_failure_rate, document_format)
        worker = Worker(out_dir, plan, settings, run["created"], progress, lease_s)
        worker.execute()
        if worker.last_shard is not None:
            while not _finish(out_dir, run, recipe, worker.last_shard, worker.shards, worker.is_enough):
                time.sleep(0.1)
        elif not (out_dir / store.MANIFEST).exists():
            shards = {shard: store.read_counts(out_dir, shard) for shard in store.whole_shards(out_dir)}
            return _summary(out_dir, {**run, **_totals(shards)}, time.perf_counter() - start, resumed, False)
    manifest = read_json(out_dir / store.MANIFEST)
    if was_finished:  # else whoever finished it has looked at every file, and the others need not do it at once
        for info in manifest["shards"]:
            store.check_sizes(out_dir, info)
    return _summary(out_dir, manifest, time.perf_counter() - start, min(resumed, manifest["inputs"]), True)


def _validate(
    recipe: Recipe,
    engine: Engine,
    samples: int,
    max_output_tokens: int | None,
    shard_size: int,
    document_format: str,
    max_failure_rate: float,
    lease_s: float,
) -> None:
    for key, value in (("samples", samples), ("shard_size", shard_size), ("max_output_tokens", max_output_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    if not 0 <= max_failure_rate <= 1:
        raise ValueError(f"max_failure_rate is a share of the requests, between 0 and 1; got {max_failure_rate}")
    if document_format not in store.DOCUMENT_FORMATS:
        raise ValueError(f"document_format is {' or '.join(store.DOCUMENT_FORMATS)}, got {document_format!r}")
    if not lease_s > 0:
        raise ValueError(f"lease_s must be above 0 seconds, got {lease_s}")
    for step in recipe.steps:
        require_filters(step.filters)
    for kind in recipe.prompt_kinds:
        if kind not in engine.prompt_kinds:
            raise ValueError(
                f"recipe {recipe.name} has a {kind} prompt, and engine {engine.name} takes "
                f"{' and '.join(engine.prompt_kinds)} prompts only; for a base model, use a recipe with prompt: text, "
                "such as continue"
            )


# --- what a run is, and whether a folder holds it ---


def _identity(
    recipe: Recipe, engine: Engine, seed: int, samples: int, shard_size: int, document_format: str
) -> dict[str, Any]:
    """Everything but the documents' content that decides the files of a run."""
    return {
        "recipe": recipe.identity(),
        "engine": {"name": engine.name, "revision": engine.revision, **_of_description(engine.description())},
        "seed": seed,
        "samples": samples,
        "shard_size": shard_size,
        "document_format": document_format,
    }


def _of_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an engine's texts beside its name and its weights."""
    return {key: description[key] for key in IDENTITY_KEYS if key in description}


def _claim(
    out_dir: Path,
    identity: Mapping[str, Any],
    engine: Engine,
    source: Source,
    max_output_tokens: int | None,
    max_reject_rate: float,
    lease_s: float,
) -> tuple[dict[str, Any], InputPlan]:
    """run.json of this run and its plan, made by the first to come; a folder that holds anything else is refused."""
    foreign = store.holds_other_files(out_dir)
    if foreign:
        raise ValueError(
            f"{out_dir} has {', '.join(foreign[:3])} but no {store.RUN}, so nobody knows what they are; choose another "
            "out"
        )
    path = out_dir / store.RUN
    if path.exists():
        _refuse_another(out_dir, read_json(path), identity)
    with Leases(out_dir / LEASES, lease_s) as leases:
        while not leases.claim(PLANNING):  # another process is about to do what follows
            time.sleep(min(0.2, lease_s / 10))
        same_spool = spool(source)
        if not path.exists():
            run = {
                "format": store.FORMAT,
                "version": store.VERSION,
                "fingerprint": sha256_json(identity),
                "created": _now(),
                "max_output_tokens": max_output_tokens,
                **identity,
                # Of the process that began the run; others may have another device or another version.
                "engine_description": engine.description(),
                "documents": source.describe(),
            }
            write_json(path, run)
        run = read_json(path)
        _refuse_another(out_dir, run, identity, same_documents=same_spool and source.is_same(run["documents"]))
        if not (out_dir / store.MANIFEST).exists():
            # Until the manifest says which files are kept records, a reader of the folder is told to wait.
            (out_dir / MARKER).touch()
        plan = plan_inputs(out_dir, source, identity["shard_size"], identity["samples"], max_reject_rate)
        if run["max_output_tokens"] != max_output_tokens:
            _change_budget(out_dir, run, max_output_tokens)
        leases.release(PLANNING)
    return run, plan


def _refuse_another(
    out_dir: Path, run: Mapping[str, Any], identity: Mapping[str, Any], same_documents: bool = True
) -> None:
    if run.get("format") != store.FORMAT or run.get("version") != store.VERSION:
        raise ValueError(f"{out_dir / store.RUN} is not a run of format version {store.VERSION}; choose another out")
    different = _differences({key: run[key] for key in identity}, dict(identity))
    if not same_documents:
        different.append("documents: other ones, or files that have changed")
    if different:
        shown = "; ".join(different[:4]) + (f"; and {len(different) - 4} more" if len(different) > 4 else "")
        raise ValueError(
            f"{out_dir} holds another run ({shown}). Choose another out, or repeat that run's settings to go on with it"
        )


def _change_budget(out_dir: Path, run: dict[str, Any], max_output_tokens: int | None) -> None:
    shards = {shard: store.read_shard(out_dir, shard) for shard in store.whole_shards(out_dir)}
    last = _last_shard(shards, max_output_tokens)
    if last is not None and max(shards) > last:
        has = sum(info["output_tokens"] for info in shards.values())
        raise ValueError(
            f"{out_dir} has {has:,} tokens, and max_output_tokens={max_output_tokens:,} would need fewer shards "
            f"than it has; ask for at least {has:,}, or choose another out"
        )
    (out_dir / MARKER).touch()
    (out_dir / store.MANIFEST).unlink(missing_ok=True)
    run["max_output_tokens"] = max_output_tokens
    write_json(out_dir / store.RUN, run)


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two plain values differ, as `seed: 1 there, 2 now`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [line for key in keys for line in _differences(before.get(key), now.get(key), f"{path}.{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = zip(before, now, strict=True)
        return [line for i, (old, new) in enumerate(pairs) for line in _differences(old, new, f"{path}[{i}]")]
    return [] if before == now else [f"{path[1:]}: {_short(before)} there, {_short(now)} now"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _now() -> str:
    """UTC, ISO 8601. SOURCE_DATE_EPOCH, in seconds, sets it (reproducible-builds.org)."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.datetime.fromtimestamp(int(seconds) if seconds else time.time(), datetime.UTC)
    return moment.isoformat(timespec="seconds")


def _last_shard(shards: Mapping[int, Mapping[str, Any]], max_output_tokens: int | None) -> int | None:
    """The first shard, counted without a gap from 0, with which the kept tokens reach the budget; None: not yet."""
    tokens = 0
    for index in range(len(shards)):
        tokens += shards[index]["output_tokens"] if index in shards else 0
        if index not in shards or max_output_tokens is None:
            return None
        if tokens >= max_output_tokens:
            return index
    return None


def _finish(
    out_dir: Path, run: Mapping[str, Any], recipe: Recipe, last: int, shards: dict[int, dict[str, Any]], reached: bool
) -> bool:
    """Write card and manifest and clear away what only an unfinished run needs; False while another process does it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(out_dir, "generation"))
        except ValueError:
            return False
        if (out_dir / store.MANIFEST).exists():
            return True
        rows = {i: shards[i] if i in shards else store.read_shard(out_dir, i) for i in range(last + 1)}
        # Shards may finish out of order; what lies behind the budget's end is not part of the result.
        store.remove_shards_after(out_dir, last)
        manifest = {
            **run,
            "document_files": [f"documents-*.{run['document_format']}"],
            "reached_max_output_tokens": reached,
            **_totals(rows),
            "lines_rejected": rejected_lines(out_dir),
            "about": {"description": recipe.description, "citation": recipe.citation},
            "shards": list(rows.values()),
        }
        with atomic_file(out_dir / CARD) as file:
            file.write(build_card(out_dir, manifest))
        write_json(out_dir / store.MANIFEST, manifest)
        store.remove_leftovers(out_dir)
        for name in (JOURNALS, LEASES):
            shutil.rmtree(out_dir / name, ignore_errors=True)
        end_folder(out_dir)
        return True


def _totals(shards: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    rows = list(shards.values())
    return {
        **{key: sum(row[key] for row in rows) for key in store.SUMS},
        "filtered": store.add_counts(row["filtered"] for row in rows),
        "flagged": store.add_counts(row["flagged"] for row in rows),
    }


def _summary(
    out_dir: Path, manifest: Mapping[str, Any], seconds: float, resumed_inputs: int, is_complete: bool
) -> GenerationSummary:
    counted = [f.name for f in dataclasses.fields(GenerationSummary) if f.name in {*store.SUMS, "filtered", "flagged"}]
    usage = read_usage(out_dir)
    return GenerationSummary(
        out_dir=out_dir,
        recipe=manifest["recipe"]["name"],
        engine=manifest["engine"]["name"],
        max_output_tokens=manifest["max_output_tokens"],
        reached_max_output_tokens=manifest.get("reached_max_output_tokens", False),
        is_complete=is_complete,
        usage=usage,
        wasted_tokens=max(0, usage.generated_tokens - manifest["generated_tokens"]) if is_complete else 0,
        seconds=seconds,
        resumed_inputs=resumed_inputs,
        **{name: manifest[name] for name in counted},
    )
