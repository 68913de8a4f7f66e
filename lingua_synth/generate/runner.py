"""Documents through a recipe and an engine into a folder, so that every input ends in exactly one place.

    documents -> inputs (document x sample) -> shards of `shard_size` inputs -> requests -> engine -> outcomes
        -> filters -> record | filtered | failed -> files of the shard, when its last outcome is there -> manifest.json

A shard appears whole or not at all, so a killed run loses only the shards that were open, and the same call goes on
with the rest: finished shards are read over, not generated again. The engine is fed from the next shard while the
last outcomes of one are under way. Where an engine gives the same text for the same request, the files are byte for
byte those of a run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.documents import Document, Rejects
from lingua_synth.documents.unfinished import MARKER, end_folder
from lingua_synth.files import folder_lock, read_json, sha256_json, write_json
from lingua_synth.generate import store
from lingua_synth.generate.engine import Engine, Failure, Generation, Outcome, Request, whole_characters
from lingua_synth.generate.filters import judge
from lingua_synth.generate.inputs import Documents, SeenIds, Source, find_source, inputs_sha256
from lingua_synth.generate.recipe import Recipe, load_recipe

REJECTS = "rejects.jsonl"
DUPLICATE_ID = "duplicate_id"
REQUESTS_BEFORE_JUDGING_FAILURES = 100
NUM_ERRORS_SHOWN = 3


@dataclass(frozen=True)
class GenerationSummary:
    """What a finished run made; the counts are those of its manifest."""

    out_dir: Path
    recipe: str
    engine: str
    inputs: int
    """Texts asked for: documents times samples, as far as the run went. The sum of records, filtered and failed."""
    source_documents: int
    """Documents of the input that were used."""
    records: int
    filtered: dict[str, int]
    """Dropped outputs by filter, and documents whose id had been used before under `duplicate_id`."""
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
    seconds: float
    """Of this call alone."""
    resumed_inputs: int
    """Inputs that an earlier call had finished."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**dataclasses.asdict(self), "out_dir": str(self.out_dir)}

    def __str__(self) -> str:
        filtered = ", ".join(f"{name} {count:,}" for name, count in self.filtered.items()) or "none"
        flagged = ", ".join(f"{name} {count:,}" for name, count in self.flagged.items()) or "none"
        now = self.inputs - self.resumed_inputs
        rows = {
            "recipe, engine": f"{self.recipe}, {self.engine}",
            "inputs": f"{self.inputs:,} from {self.source_documents:,} documents",
            "records": f"{self.records:,} with {self.output_tokens:,} tokens",
            "filtered": f"{sum(self.filtered.values()):,} ({filtered})",
            "failed": f"{self.failed:,}",
            "marked records": flagged,
            "tokens": f"{self.prompt_tokens:,} read, {self.generated_tokens:,} written",
            "this call": f"{now:,} inputs in {self.seconds:,.1f} s",
        }
        if self.max_output_tokens is not None:
            state = "reached" if self.reached_max_output_tokens else "NOT reached, the input ended first"
            rows["token budget"] = f"{self.max_output_tokens:,}, {state}"
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
    max_failure_rate: float = 0.05,
    max_reject_rate: float = 0.01,
    progress: bool = True,
) -> GenerationSummary:
    """Generate a text for every document (objects, or a path for `read_documents`) into the folder `out_dir`.

    With `samples` above 1 the documents are gone through that many times, all of them for the first sample, then all
    for the second; each text has a seed of its own. `max_output_tokens` ends the run with the first shard at which
    the kept records hold so many tokens, the same shard whatever finished first. A document whose id occurred before
    in the input is filtered as `duplicate_id` (ids are compared by 64-bit hash). Memory: a few shards and 8 bytes a
    document.

    Calling it again with the same arguments goes on where an interrupted run stopped, and returns the summary of a
    finished one. `max_output_tokens` may be raised later. The files depend on documents, recipe, engine, seed and
    `shard_size` alone, plus `created`, the time the run began (SOURCE_DATE_EPOCH sets it).

    Raises ValueError for a folder that holds another run (naming what differs) or is in use, for a recipe the engine
    cannot take, when more than `max_failure_rate` of 100 or more requests fail or none succeeds, when more than
    `max_reject_rate` of the input's lines are no documents. OSError when the disk is full; whole shards stay valid.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    _validate(recipe, engine, samples, max_output_tokens, shard_size, max_failure_rate)
    out_dir = Path(out_dir)
    start = time.perf_counter()
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"out is a folder, and {out_dir} is a file")
    # Before the folder exists: documents or a model that are not there leave nothing behind.
    source = find_source(documents)
    if samples > 1 and source.is_once_only:
        raise ValueError(
            f"samples={samples} goes through the documents as often; give a list or a path, not an iterator"
        )
    identity = _identity(recipe, engine, seed, samples, shard_size)
    with folder_lock(out_dir, "generation"):
        run, shards = _claim(out_dir, identity, source, max_output_tokens)
        settings = _Settings(recipe, engine, seed, samples, max_output_tokens, shard_size, max_failure_rate)
        resumed = sum(info["inputs"] for info in shards.values())
        manifest_path = out_dir / store.MANIFEST
        if manifest_path.exists():
            manifest = read_json(manifest_path)
        else:
            # Until the manifest says which files are kept records, a reader of the folder is told to wait.
            (out_dir / MARKER).touch()
            with Rejects(out_dir / REJECTS, max_reject_rate) as rejects:
                work = _Run(out_dir, source, settings, run["created"], shards, rejects, progress)
                manifest = {**_manifest(run, work.execute(), max_output_tokens), "lines_rejected": rejects.counts}
            write_json(manifest_path, manifest)
        end_folder(out_dir)
    return _summary(out_dir, manifest, time.perf_counter() - start, min(resumed, manifest["inputs"]))


def _validate(
    recipe: Recipe,
    engine: Engine,
    samples: int,
    max_output_tokens: int | None,
    shard_size: int,
    max_failure_rate: float,
) -> None:
    for key, value in (("samples", samples), ("shard_size", shard_size), ("max_output_tokens", max_output_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    if not 0 <= max_failure_rate <= 1:
        raise ValueError(f"max_failure_rate is a share of the requests, between 0 and 1; got {max_failure_rate}")
    if recipe.step.prompt not in engine.prompt_kinds:
        raise ValueError(
            f"recipe {recipe.name} has a {recipe.step.prompt} prompt, and engine {engine.name} takes "
            f"{' and '.join(engine.prompt_kinds)} prompts only; for a base model, use a recipe with prompt: text, "
            "such as continue"
        )


# --- what a run is, and whether a folder holds it ---


def _identity(recipe: Recipe, engine: Engine, seed: int, samples: int, shard_size: int) -> dict[str, Any]:
    """Everything but the documents' content that decides the files of a run."""
    content = recipe.to_dict()
    return {
        "recipe": {key: content[key] for key in ("name", "version", "steps")},
        "engine": {"name": engine.name, "revision": engine.revision},
        "seed": seed,
        "samples": samples,
        "shard_size": shard_size,
    }


def _claim(
    out_dir: Path,
    identity: Mapping[str, Any],
    source: Source,
    max_output_tokens: int | None,
) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """run.json of this run and the shards it has finished, after refusing a folder that holds anything else."""
    path = out_dir / store.RUN
    foreign = store.holds_other_files(out_dir)
    if foreign:
        raise ValueError(
            f"{out_dir} has {', '.join(foreign[:3])} but no {store.RUN}, so nobody knows what they are; choose another "
            "out"
        )
    store.remove_leftovers(out_dir)
    if not path.exists():
        run = {
            "format": store.FORMAT,
            "version": store.VERSION,
            "fingerprint": sha256_json(identity),
            "created": _now(),
            "max_output_tokens": max_output_tokens,
            **identity,
            "documents": source.describe(),
        }
        write_json(path, run)
        return run, {}
    run = read_json(path)
    if run.get("format") != store.FORMAT or run.get("version") != store.VERSION:
        raise ValueError(f"{path} is not a run of format version {store.VERSION}; choose another out")
    different = _differences({key: run[key] for key in identity}, dict(identity))
    if not source.is_same(run["documents"]):
        different.append("documents: other files, or files that have changed")
    if different:
        shown = "; ".join(different[:4]) + (f"; and {len(different) - 4} more" if len(different) > 4 else "")
        raise ValueError(
            f"{out_dir} holds another run ({shown}). Choose another out, or repeat that run's settings to go on with it"
        )
    shards = store.read_shards(out_dir)
    if run["max_output_tokens"] != max_output_tokens:
        last = _last_shard(shards, max_output_tokens)
        if last is not None and max(shards) > last:
            has = sum(info["output_tokens"] for info in shards.values())
            raise ValueError(
                f"{out_dir} has {has:,} tokens, and max_output_tokens={max_output_tokens:,} would need fewer shards "
                f"than it has; ask for at least {has:,}, or choose another out"
            )
        (out_dir / store.MANIFEST).unlink(missing_ok=True)
        run["max_output_tokens"] = max_output_tokens
        write_json(path, run)
    return run, shards


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


def _manifest(
    run: Mapping[str, Any], shards: Mapping[int, dict[str, Any]], max_output_tokens: int | None
) -> dict[str, Any]:
    rows = list(shards.values())
    sums = ("inputs", "source_documents", "records", "failed", "prompt_tokens", "generated_tokens", "output_tokens")
    return {
        **run,
        "document_files": ["documents-*.jsonl"],
        "reached_max_output_tokens": _last_shard(shards, max_output_tokens) is not None,
        **{key: sum(row[key] for row in rows) for key in sums},
        "filtered": store.add_counts(row["filtered"] for row in rows),
        "flagged": store.add_counts(row["flagged"] for row in rows),
        "shards": rows,
    }


def _summary(out_dir: Path, manifest: Mapping[str, Any], seconds: float, resumed_inputs: int) -> GenerationSummary:
    own = ("out_dir", "recipe", "engine", "seconds", "resumed_inputs")
    counts = {f.name: manifest[f.name] for f in dataclasses.fields(GenerationSummary) if f.name not in own}
    return GenerationSummary(
        out_dir=out_dir,
        recipe=manifest["recipe"]["name"],
        engine=manifest["engine"]["name"],
        seconds=seconds,
        resumed_inputs=resumed_inputs,
        **counts,
    )


# --- the work ---


@dataclass(frozen=True)
class _Settings:
    recipe: Recipe
    engine: Engine
    seed: int
    samples: int
    max_output_tokens: int | None
    shard_size: int
    max_failure_rate: float


@dataclass
class _OpenShard:
    """A shard some of whose requests are under way. `rows` has an entry per input, None until its outcome is there."""

    index: int
    inputs_sha256: str
    source_documents: int
    rows: list[Document | tuple[str, dict[str, Any]] | None]
    num_missing: int
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True)
class _Waiting:
    """An input whose request is under way."""

    shard: _OpenShard
    row: int
    document: Document
    sample: int
    seed: int


@dataclass
class _Run:
    """One call of `generate` at work in its folder."""

    out_dir: Path
    source: Source
    settings: _Settings
    created: str
    shards: dict[int, dict[str, Any]]
    rejects: Rejects
    progress: bool
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    num_shards: int = 0
    num_outcomes: int = 0
    num_failures: int = 0
    first_errors: list[str] = field(default_factory=list)
    """Different ones."""
    num_whole: int = 0
    """Shards without a gap from 0."""
    whole_tokens: int = 0
    """Kept by these."""
    generated_tokens: int = 0
    """Written to files by this call."""
    start: float = field(default_factory=time.perf_counter)
    bar: Any = field(init=False)
    """The progress bar, while `execute` is at work."""

    def execute(self) -> dict[int, dict[str, Any]]:
        """Generate what is missing; returns all shards, in order."""
        self._count_whole()
        with self._bar() as self.bar:
            requests = self._requests()
            first = next(requests, None)
            if first is not None:
                self._feed(itertools.chain([first], requests))
        last = self.num_whole - 1
        if not self._is_enough:
            last = self.num_shards - 1
            if last < 0:
                raise ValueError(f"no documents in {self.source}")
            if max(self.shards) > last:
                raise ValueError(
                    f"{self.out_dir} has shards of more documents than are given now; give the same documents"
                )
        # Shards may finish out of order; what lies behind the budget's end is not part of the result.
        store.remove_shards_after(self.out_dir, last)
        return {index: self.shards[index] for index in range(last + 1)}

    @property
    def _is_enough(self) -> bool:
        """Whether shard `num_whole - 1` is the first with which the kept tokens reach the budget."""
        budget = self.settings.max_output_tokens
        return budget is not None and self.whole_tokens >= budget

    def _count_whole(self) -> None:
        while self.num_whole in self.shards and not self._is_enough:
            self.whole_tokens += self.shards[self.num_whole]["output_tokens"]
            self.num_whole += 1

    def _feed(self, requests: Iterator[Request]) -> None:
        with contextlib.closing(self.settings.engine.run(requests)) as outcomes:
            for outcome in outcomes:
                self._take(outcome)
                if self._is_enough:
                    return
        for key in list(self.waiting):
            self._take(Failure(key, f"engine {self.settings.engine.name} returned nothing for this request"))

    # --- from documents to requests ---

    def _inputs(self) -> Iterator[tuple[int, Document, bool]]:
        """(sample, document, whether its id occurred before), all documents for one sample after the other."""
        for sample in range(self.settings.samples):
            seen = SeenIds()
            # Lines that are no documents are counted once, not in every pass.
            rejects = self.rejects if sample == 0 else Rejects(max_rate=1.0)
            for document in self.source.read(rejects):
                yield sample, document, not seen.add(document.id)

    def _requests(self) -> Iterator[Request]:
        """Requests of all shards that are not finished, in order, until the token budget is reached."""
        inputs = self._inputs()
        while batch := list(itertools.islice(inputs, self.settings.shard_size)):
            index = self.num_shards
            self.num_shards += 1
            if index in self.shards:
                self._skip(index, batch)
            else:
                yield from self._open(index, batch)
            if self._is_enough:
                return

    def _skip(self, index: int, batch: Sequence[tuple[int, Document, bool]]) -> None:
        if self.shards[index]["inputs_sha256"] != inputs_sha256((sample, document) for sample, document, _ in batch):
            raise ValueError(
                f"the documents of shard {index} in {self.out_dir} are not those given now; give the same documents in "
                "the same order, or choose another out"
            )
        self.bar.update(len(batch))

    def _open(self, index: int, batch: list[tuple[int, Document, bool]]) -> Iterator[Request]:
        recipe = self.settings.recipe
        num_first = sum(sample == 0 for sample, _, _ in batch)
        shard = _OpenShard(
            index,
            inputs_sha256((sample, document) for sample, document, _ in batch),
            num_first,
            [None] * len(batch),
            len(batch),
        )
        batch.reverse()  # popped from the end, so that no document is held longer than its request
        for row in range(len(batch)):
            sample, document, is_duplicate = batch.pop()
            if is_duplicate:
                reason = "a document earlier in the input has this id"
                dropped = {"source_id": document.id, "sample": sample, "filter": DUPLICATE_ID, "reason": reason}
                self._settle(shard, row, ("filtered", dropped))
                continue
            key = store.record_id(document.id, recipe, sample)
            seed = store.request_seed(self.settings.seed, document.id, recipe, sample)
            self.waiting[key] = _Waiting(shard, row, document, sample, seed)
            prompt = recipe.render(document, self.settings.engine.count_tokens)
            yield Request(key, prompt, recipe.step.sampling, seed, group=index)

    # --- from outcomes to files ---

    def _take(self, outcome: Outcome) -> None:
        assert outcome.key in self.waiting, f"the engine returned {outcome.key}, which is not under way"
        waiting = self.waiting.pop(outcome.key)
        self.num_outcomes += 1
        if isinstance(outcome, Failure):
            self._count_failure(outcome)
            about = {"source_id": waiting.document.id, "sample": waiting.sample, "seed": waiting.seed}
            failed = {"id": outcome.key, **about, "error": whole_characters(outcome.error)}
            self._settle(waiting.shard, waiting.row, ("failed", failed))
            return
        waiting.shard.prompt_tokens += outcome.prompt_tokens
        waiting.shard.generated_tokens += outcome.output_tokens
        self._settle(waiting.shard, waiting.row, self._judge(waiting, outcome))

    def _judge(self, waiting: _Waiting, outcome: Generation) -> Document | tuple[str, dict[str, Any]]:
        """The record, or the row of the filtered file."""
        text = whole_characters(outcome.text).strip()
        verdict = judge(text, waiting.document, outcome, self.settings.recipe.step.filters)
        synth = self._provenance(waiting, outcome)
        if verdict.dropped_by is None:
            return Document(outcome.key, text, {"synth": {**synth, "flags": verdict.reasons}})
        name = verdict.dropped_by
        flags = {other: reason for other, reason in verdict.reasons.items() if other != name}
        meta = {"synth": {**synth, "flags": flags}}
        row = {"id": outcome.key, "text": text, "meta": meta, "filter": name, "reason": verdict.reasons[name]}
        return "filtered", row

    def _provenance(self, waiting: _Waiting, outcome: Generation) -> dict[str, Any]:
        recipe, engine = self.settings.recipe, self.settings.engine
        estimates = {"tokens_are_estimates": True} if outcome.tokens_are_estimates else {}
        return {
            "recipe": recipe.name,
            "recipe_version": recipe.version,
            "prompt_sha256": recipe.prompt_sha256,
            "step": recipe.step.name,
            "sample": waiting.sample,
            "source_id": waiting.document.id,
            "audience": None,
            "generator": engine.name,
            "generator_revision": engine.revision,
            "sampling": {**dataclasses.asdict(recipe.step.sampling), "seed": waiting.seed},
            "prompt_tokens": outcome.prompt_tokens,
            "output_tokens": outcome.output_tokens,
            **estimates,
            "finish_reason": outcome.finish_reason,
            "created": self.created,
        }

    def _count_failure(self, failure: Failure) -> None:
        self.num_failures += 1
        if len(self.first_errors) < NUM_ERRORS_SHOWN and failure.error not in self.first_errors:
            self.first_errors.append(failure.error)
        rate = self.settings.max_failure_rate
        if self.num_outcomes >= REQUESTS_BEFORE_JUDGING_FAILURES and self.num_failures > rate * self.num_outcomes:
            raise ValueError(
                f"{self.num_failures:,} of {self.num_outcomes:,} requests failed, more than max_failure_rate={rate:g}. "
                f"{self._errors()}"
            )

    def _errors(self) -> str:
        return f"First errors: {' | '.join(self.first_errors)}. Shards that are finished are kept; run again to go on"

    def _settle(self, shard: _OpenShard, row: int, result: Document | tuple[str, dict[str, Any]]) -> None:
        """Put down what became of an input, and write the shard when it was the last."""
        assert shard.rows[row] is None, "every input has one outcome"
        shard.rows[row] = result
        shard.num_missing -= 1
        self.bar.update(1)
        if shard.num_missing == 0:
            self._write(shard)

    def _write(self, shard: _OpenShard) -> None:
        outcome = store.ShardOutcome()
        for row in shard.rows:
            assert row is not None, "a shard is written when nothing of it is missing"
            if isinstance(row, Document):
                outcome.documents.append(row)
            else:
                (outcome.filtered if row[0] == "filtered" else outcome.failed).append(row[1])
        nothing_succeeded = self.num_failures == self.num_outcomes and not any(
            info["generated_tokens"] for info in self.shards.values()
        )
        if outcome.failed and nothing_succeeded and self.settings.max_failure_rate < 1:
            raise ValueError(f"all of {self.num_failures:,} requests failed. {self._errors()}")
        info = {
            "inputs": len(shard.rows),
            "source_documents": shard.source_documents,
            "inputs_sha256": shard.inputs_sha256,
            "prompt_tokens": shard.prompt_tokens,
            "generated_tokens": shard.generated_tokens,
        }
        self.shards[shard.index] = store.write_shard(self.out_dir, shard.index, outcome, info)
        self._count_whole()
        self.generated_tokens += shard.generated_tokens
        rate = self.generated_tokens / (time.perf_counter() - self.start)
        self.bar.set_postfix_str(f"{rate:,.0f} tokens/s, {self.whole_tokens:,} tokens kept", refresh=False)

    def _bar(self) -> Any:
        from tqdm import tqdm

        num_documents = self.source.num_documents
        total = None if num_documents is None else num_documents * self.settings.samples
        return tqdm(total=total, unit=" texts", desc="generating", disable=not self.progress, mininterval=0.5)
