"""Documents -> token shards, on all cores, in constant memory, and on from where it was when killed.

    files ──plan_units──> units ──pass 1: run_unit──> spills ──plan_shards──> pass 2: write_planned_shard ──> shards

Pass 1 reads, tokenizes and spills each unit of the input (`units.py`); pass 2 gathers each shard from the spills
(`gathering.py`). Both are jobs for worker processes (`workers.py`); everything that decides what is in the shards
depends on the input and the settings alone. What is done is recorded per unit and per shard in a hidden work folder
beside the shards: the same call after a kill does the rest. At the end the manifest is written and the work folder
removed.

Disk: the spills are as large as the shards (and 8 bytes a document), so twice the tokens while it runs. Memory of each
worker: twice `Sizes.chunk_bytes` in pass 1, one shard in pass 2, and one document, however large, in both.
"""

from __future__ import annotations

import json
import operator
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lingua_synth.documents import Document, Rejects, python_documents
from lingua_synth.documents.locations import PYTHON_CORPUS, are_same_files, describe_files, find_all_files, is_url
from lingua_synth.documents.unfinished import MARKER, begin_folder, end_folder
from lingua_synth.files import TEMPORARY_SUFFIX, folder_lock, read_json, sha256_file, write_json
from lingua_synth.tokens.chat import ChatEncoder
from lingua_synth.tokens.gathering import ShardPlan, plan_shards, shard_record, write_planned_shard
from lingua_synth.tokens.shards import FORMAT, MANIFEST, VERSION, read_manifest
from lingua_synth.tokens.tokenizer import Tokenizer
from lingua_synth.tokens.units import (
    ObjectReader,
    Progress,
    Sizes,
    Task,
    Unit,
    plan_units,
    prepare_tokenizer,
    run_readers,
    run_unit,
)
from lingua_synth.tokens.workers import SHARES_START, Job, Report, Workers, count_cores, is_portable

WORK_FOLDER = ".tokenizing"
WORK_VERSION = 2
SHARD_FILES = "shard-*.arrow"
SIZES = Sizes()


def tokenize(
    documents: Iterable[Document] | str | Sequence[str],
    out_dir: str | Path,
    tokenizer: Tokenizer,
    *,
    add_bos: bool = True,
    add_eos: bool = True,
    shuffle_seed: int | None = 0,
    shard_tokens: int = 1 << 26,
    max_reject_rate: float = 0.01,
    rejects: Rejects | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    chat: ChatEncoder | None = None,
) -> dict[str, Any]:
    """Tokenize `documents` (objects, or paths as for `read_documents`) into the folder `out_dir`; returns its manifest.

    Every document becomes BOS, its ids, EOS as asked, whole in one file; files hold at most `shard_tokens` tokens
    unless one document is longer. Order: a uniform random permutation of all documents, by keys hashed from
    `shuffle_seed` and each document's place in the input; `None` keeps the input's order. The same files, tokenizer
    and settings give the same shards, byte for byte, whatever the number of workers, and whether or not the run was
    interrupted.

    `chat`: the documents are conversations (`documents/conversations.py` has the forms; objects carry theirs in
    `meta`), written by its template; only their answers are scored in training, and the shards say which tokens those
    are. The manifest then has `chat` (the template, and what decides which tokens are scored), `scored_tokens`, and
    `conversations` (answers, and what they end with; those cut), and its `bytes` are those of the scored text. BOS
    and EOS are put where the template has not: see `ChatEncoder.encode`. With `chat.window_tokens` the order within a
    file is that of packing, files are that many tokens or a multiple (the padding makes them longer than
    `shard_tokens`), and the last has one more.

    `num_workers` processes, by default one for each core that this process may use, and none beside this one for
    input under 16 MB or given as objects. Memory and disk: see the module. Killed at any moment, the same call goes on
    behind the last finished unit of input or shard; other input or settings begin anew, with a warning. (Objects begin
    anew always.)

    Lines that are no document are counted in `rejects` (default: `rejects.jsonl` in the folder, at most
    `max_reject_rate`) with file and line, in the order of the input, once all are read; too many of them, judged over
    the input so far, stop the run. Documents without text or tokens are counted under `skipped` in the manifest.

    A finished folder of the same input and settings is returned as it is. Input files are the same when name and
    size agree and either the modification time or the SHA-256 does; objects are read through and compared by hash.
    Raises ValueError for a finished folder of other input or settings (naming what differs), a folder in use by
    another process, too many rejects, a damaged or changing input file, a BOS or EOS the tokenizer lacks, and for
    input without a single token; OSError for a write that fails, and when a worker process dies (ChildProcessError).
    """
    tokenizer.validate_specials(add_bos, add_eos)
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens is the most tokens of one file and must be positive; got {shard_tokens}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers is a number of processes, at least 1, or None for all cores; got {num_workers}")
    settings = {
        "tokenizer": tokenizer.describe(),
        "add_bos": add_bos,
        "add_eos": add_eos,
        "shuffle_seed": shuffle_seed,
        "shard_tokens": shard_tokens,
    }
    if chat is not None:
        settings["chat"] = chat.describe()
    files = _input_files(documents)
    out_dir = Path(out_dir)
    with folder_lock(out_dir, "tokenization"):
        work_dir = out_dir / WORK_FOLDER
        if (out_dir / MANIFEST).exists():
            manifest = _finished(out_dir, settings, documents, files, conversations=chat is not None)
            _end(out_dir, work_dir)
            return manifest
        described = None if files is None else describe_files(files, with_hash=False)
        _begin(out_dir, work_dir, None if described is None else _work_plan(settings, described))
        rejects = rejects or Rejects(out_dir / "rejects.jsonl", max_reject_rate)
        task = Task(
            out_dir, work_dir, tokenizer, add_bos, add_eos, shuffle_seed, shard_tokens, rejects.max_rate,
            rejects.min_count, SIZES, chat,
        )  # fmt: skip
        num_bytes = sum(entry["size"] or 0 for entry in described or ())
        num_workers = _count_workers(task, files, num_bytes, num_workers)
        num_starts = 1 if SHARES_START else num_workers
        task = replace(task, prepares=num_bytes // num_starts >= task.sizes.prepare_bytes)
        run = _Run(task, files, described, rejects, progress)
        with rejects, Workers(num_workers, task) as workers:
            inputs = run.read_objects(documents) if files is None else run.read_files(workers)
            shards = run.write_shards(workers)
            if described is not None:
                inputs = {"files": run.hashed_files()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **settings,
            "dtype": tokenizer.dtype.name,
            "inputs": inputs,
            "documents": sum(shard["documents"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
            "bytes": sum(shard["bytes"] for shard in shards),
            "lines_read": rejects.num_read,
            "skipped": _added(rejects.counts, run.skipped),
            "files": shards,
        }
        if chat is not None:
            manifest["scored_tokens"] = sum(shard["scored_tokens"] for shard in shards)
            padding = {"padding": sum(shard["padding"] for shard in shards)} if chat.window_tokens else {}
            manifest["conversations"] = dict(sorted((run.conversations | padding).items()))
        assert manifest["documents"] == run.num_documents, "every document tokenized is in one shard"
        write_json(out_dir / MANIFEST, manifest)
        _end(out_dir, work_dir)
        return manifest


def _input_files(documents: Iterable[Document] | str | Sequence[str]) -> list[str] | None:
    """The files to read, or None where documents come as objects."""
    if isinstance(documents, str):
        return None if documents == PYTHON_CORPUS else find_all_files(documents)
    if isinstance(documents, list | tuple) and documents and all(isinstance(path, str) for path in documents):
        return find_all_files(documents)
    return None


def _objects(documents: Any) -> Iterable[Document]:
    return python_documents() if isinstance(documents, str) else documents


# --- the work folder ---


def _work_plan(settings: dict[str, Any], described: list[dict[str, Any]]) -> dict[str, Any]:
    """What finished work in the work folder is good for: it is used again where all of this is equal."""
    sizes = [SIZES.num_units, SIZES.min_unit_bytes, SIZES.max_unit_bytes]
    identity = {key: _identity(value) for key, value in settings.items()}
    return {"version": WORK_VERSION, "settings": identity, "unit_sizes": sizes, "inputs": described}


def _begin(out_dir: Path, work_dir: Path, plan: dict[str, Any] | None) -> None:
    """Make the folders ready: with the finished work of an interrupted run of the same plan, else empty."""
    plan_file = work_dir / "plan.json"
    for file in (*out_dir.glob(f".shard-*{TEMPORARY_SUFFIX}"), *work_dir.glob(f".*{TEMPORARY_SUFFIX}")):
        file.unlink()  # of writers that were killed
    if (out_dir / MARKER).exists() and plan_file.exists():
        if plan is not None and read_json(plan_file) == plan:
            return
        if plan is not None:
            warnings.warn(
                f"{out_dir} holds an unfinished tokenization of other input or settings; it begins anew", stacklevel=3
            )
    begin_folder(out_dir, (SHARD_FILES,))
    if work_dir.exists():
        plan_file.unlink(missing_ok=True)
        shutil.rmtree(work_dir)
    work_dir.mkdir()
    if plan is not None:
        write_json(plan_file, plan)


def _end(out_dir: Path, work_dir: Path) -> None:
    if work_dir.exists():
        shutil.rmtree(work_dir)
    end_folder(out_dir)


# --- workers ---


def _count_workers(task: Task, files: list[str] | None, num_bytes: int, asked: int | None) -> int:
    """How many processes to use; 1 is this one."""
    if files is None or (asked is None and num_bytes < task.sizes.in_process_bytes):
        return 1
    # fsspec's memory:// is memory of this process.
    if any(file.startswith("memory://") for file in files) or not is_portable(task):
        return 1
    return asked or count_cores()


def _hash_file(task: Task, number: int, file: str, report: Report) -> str:
    digest = sha256_file(file)
    write_json(task.work_dir / f"input-{number:06d}.json", digest)
    return digest


# --- the two passes ---


class _Run:
    """One tokenization: what is done, and what is left to do."""

    def __init__(
        self,
        task: Task,
        files: list[str] | None,
        described: list[dict[str, Any]] | None,
        rejects: Rejects,
        progress: bool,
    ) -> None:
        self._task, self._files, self._described = task, files, described
        self._rejects, self._progress = rejects, progress
        self._units: list[Unit] = []
        self._records: dict[int, dict[str, Any]] = {}
        self._hashes: dict[int, str] = {}
        self.skipped: dict[str, int] = {}
        self.conversations: dict[str, int] = {}
        self.num_documents = 0

    def read_objects(self, documents: Any) -> dict[str, Any]:
        """Pass 1 over objects, here; returns their identity for the manifest."""
        reader = ObjectReader(_objects(documents), conversations=self._task.chat is not None)
        with _Bar("tokenize", "B", None, self._progress) as bar:
            self._records[0] = run_readers(self._task, 0, [(0, reader)], lambda value: bar.seen(0, value))
            bar.done(0, self._records[0])
        self._settle()
        return {"documents_sha256": reader.sha256.hexdigest()}

    def read_files(self, workers: Workers) -> dict[str, Any]:
        """Pass 1 over files, or what is left of it."""
        assert self._files is not None and self._described is not None, "there are files"
        sizes = [entry["size"] or 0 for entry in self._described]
        self._units = plan_units(self._files, sizes, self._task.sizes, conversations=self._task.chat is not None)
        for unit in self._units:
            if (record := self._finished_unit(unit)) is not None:
                self._records[unit.index] = record
        judge = _Judge(self._rejects)
        with _Bar("tokenize", "B", sum(sizes), self._progress, list(self._records.values())) as bar:

            def unit_done(unit: int, record: dict[str, Any]) -> None:
                self._records[unit] = record
                bar.done(unit, record)
                judged(unit, None)

            def judged(unit: int, seen: Progress | None) -> None:
                if seen is not None:
                    bar.seen(unit, seen)
                if (point := judge.find_excess(self._records, unit, seen)) is not None:
                    self._stop(*point)

            judged(0, None)
            left = [unit for unit in self._units if unit.index not in self._records]
            workers.run(
                [Job(run_unit, (unit,), str(unit)) for unit in left],
                on_report=lambda i, value: judged(left[i].index, value),
                on_result=lambda i, value: unit_done(left[i].index, value),
                prepare=prepare_tokenizer,
            )
        self._settle()
        return {}

    def _finished_unit(self, unit: Unit) -> dict[str, Any] | None:
        path = self._task.unit_record(unit.index)
        if not path.exists():
            return None
        record: dict[str, Any] = read_json(path)
        spill = self._task.spill(unit.index)
        return record if spill.exists() and spill.stat().st_size == record["spill_bytes"] else None

    def _settle(self) -> None:
        """All units are done: their rejects, in the order of the input, and their counts."""
        for index in range(len(self._records)):
            record = self._records[index]
            self._rejects.num_read += sum(record["lines"])
            for file, line, reason in self._rejects_of(index):
                self._rejects.add(file, line, reason)
            self.skipped = _added(self.skipped, record["skipped"])
            self.conversations = _added(self.conversations, record.get("conversations", {}))
            self._hashes.update({int(number): digest for number, digest in record["sha256"].items()})
        self._rejects.check()
        self.num_documents = sum(record["documents"] for record in self._records.values())
        if not self.num_documents:
            counts = _added(self._rejects.counts, self.skipped)
            words = ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "there is no document"
            raise ValueError(f"no tokens in the documents given: {words}")

    def _stop(self, unit: int, lines: int, rejected: int) -> None:
        """Too many rejects in `unit`, which has read `lines` so far: raise what reading in one process would."""
        self._rejects.num_read += sum(sum(self._records[i]["lines"]) for i in range(unit)) + lines
        for i in range(unit + 1):
            for number, case in enumerate(self._rejects_of(i)):
                if i < unit or number < rejected:
                    self._rejects.add(*case)
        self._rejects.check()
        raise AssertionError("the limit was passed at this line")

    def _rejects_of(self, unit: int) -> Iterator[tuple[str, int, str]]:
        """(file, line, reason) of the lines rejected in a unit, which may still be read; all before it are done."""
        path = self._task.unit_rejects(unit)
        if not path.exists():
            return
        parts = self._units[unit].parts
        lines_before = [self._lines_before(unit, i) for i in range(len(parts))]
        with open(path, encoding="utf-8") as file:
            for row in file:
                if not row.endswith("\n"):
                    return  # being written
                part, line, reason = json.loads(row)
                yield parts[part][1].file, lines_before[part] + line, reason

    def _lines_before(self, unit: int, part: int) -> int:
        """Lines of the same file before a part. Only the first part of a unit can be a file's second."""
        number, piece = self._units[unit].parts[part]
        lines = 0
        while piece.start > 0 and unit > 0:
            unit -= 1
            before, piece = self._units[unit].parts[-1]
            assert before == number, "the parts of a file are in order"
            lines += self._records[unit]["lines"][-1]
        return lines

    def write_shards(self, workers: Workers) -> list[dict[str, Any]]:
        """Pass 2, or what is left of it; with it, the hashes of files that were read in several parts."""
        num_tokens = sum(record["tokens"] for record in self._records.values())
        plans = plan_shards(self._task, len(self._records), num_tokens)
        entries: dict[int, dict[str, Any]] = {}
        for plan in plans:
            if (entry := self._finished_shard(plan)) is not None:
                entries[plan.index] = entry
        with _Bar("write shards", "tok", num_tokens, self._progress, list(entries.values())) as bar:
            hashing = self._files_to_hash()
            writing = [plan for plan in plans if plan.index not in entries]

            def done(i: int, value: Any) -> None:
                if i < len(hashing):
                    self._hashes[hashing[i]] = value
                else:
                    entries[writing[i - len(hashing)].index] = value
                    bar.done(i, value)

            files = self._files or []
            workers.run(
                [Job(_hash_file, (number, files[number]), f"the SHA-256 of {files[number]}") for number in hashing]
                + [Job(write_planned_shard, (plan, len(self._records)), f"shard {plan.index}") for plan in writing],
                on_report=bar.seen,
                on_result=done,
            )
        return [entries[plan.index] for plan in plans]

    def _finished_shard(self, plan: ShardPlan) -> dict[str, Any] | None:
        path = shard_record(self._task, plan.index)
        if not path.exists():
            return None
        entry: dict[str, Any] = read_json(path)
        shard = self._task.out_dir / entry["name"]
        return entry if shard.exists() and shard.stat().st_size == entry["file_bytes"] else None

    def _files_to_hash(self) -> list[int]:
        left = []
        for number, file in enumerate(self._files or []):
            if number in self._hashes or is_url(file):
                continue
            path = self._task.work_dir / f"input-{number:06d}.json"
            if path.exists():
                self._hashes[number] = read_json(path)
            else:
                left.append(number)
        return left

    def hashed_files(self) -> list[dict[str, Any]]:
        """The identity of the input files; ValueError if one is no longer what it was at the beginning."""
        assert self._files is not None and self._described is not None, "there are files"
        if describe_files(self._files, with_hash=False) != self._described:
            raise ValueError("the documents were changed while they were read; run again when they are complete")
        return [
            {**entry, "sha256": self._hashes[number]} if number in self._hashes else entry
            for number, entry in enumerate(self._described)
        ]


class _Judge:
    """Whether too many lines were rejected, judged in the order of the input whatever order it is read in.

    Looked at are the ends of units and, inside the first unit that is not finished, the ends of batches: points that
    do not depend on the number of workers.
    """

    def __init__(self, rejects: Rejects) -> None:
        self._rejects = rejects
        self._first_open = 0
        self._lines, self._rejected = rejects.num_read, rejects.num_rejected

    def find_excess(
        self, records: dict[int, dict[str, Any]], unit: int, seen: Progress | None
    ) -> tuple[int, int, int] | None:
        """(unit, lines, rejects) read in that unit where the limit was passed first, or None."""
        while (record := records.get(self._first_open)) is not None:
            points = [(sum(record["lines"]), record["rejected"])]
            if record["max_reject_rate"] == self._rejects.max_rate:
                points.insert(0, tuple(record["worst"]))
            for lines, rejected in points:
                if self._is_excess(lines, rejected):
                    return self._first_open, lines, rejected
            self._lines += points[-1][0]
            self._rejected += points[-1][1]
            self._first_open += 1
        if seen is not None and unit == self._first_open and self._is_excess(*seen.worst):
            return unit, *seen.worst
        return None

    def _is_excess(self, lines: int, rejected: int) -> bool:
        lines, rejected = self._lines + lines, self._rejected + rejected
        return lines >= self._rejects.min_count and rejected > self._rejects.max_rate * lines


class _Bar:
    """A progress bar over jobs that each report how far they are; with tokens per second, documents and rejects."""

    def __init__(
        self, desc: str, unit: str, total: int | None, progress: bool, resumed: Sequence[dict[str, Any]] = ()
    ) -> None:
        from tqdm import tqdm

        self._open: dict[int, Progress] = {}
        self._done = Progress(*(sum(values) for values in zip(*map(_counts, resumed), strict=True)))
        self._resumed = self._done
        self._reads = unit == "B"
        self._bar = tqdm(
            total=total, initial=self._position(self._done), unit=unit, unit_scale=True, desc=desc,
            disable=not progress, dynamic_ncols=True,
        )  # fmt: skip
        self._begun = time.monotonic()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def seen(self, job: int, progress: Progress) -> None:
        """A job has come so far."""
        self._open[job] = progress
        self._show()

    def done(self, job: int, record: dict[str, Any]) -> None:
        """A job is finished, with this record."""
        self._open.pop(job, None)
        self._done = Progress(*map(operator.add, self._done[:5], _counts(record)))
        self._show()

    def _show(self) -> None:
        if self._bar.disable:
            return
        now = [self._done, *self._open.values()]
        rate = (sum(each.tokens for each in now) - self._resumed.tokens) / max(time.monotonic() - self._begun, 1e-3)
        counts = f"{sum(each.documents for each in now):,} documents"
        if self._reads:
            counts = f"{rate / 1e6:.2f} Mtok/s, {counts}, {sum(each.rejected for each in now):,} rejects"
        self._bar.set_postfix_str(counts, refresh=False)
        self._bar.update(sum(map(self._position, now)) - self._bar.n)

    def _position(self, seen: Progress) -> int:
        return seen.num_bytes if self._reads else seen.tokens


def _counts(record: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """The counts of a `Progress` in the record of a unit, or in the entry of a shard."""
    lines = sum(record.get("lines", ()))
    return record.get("input_bytes", 0), lines, record["documents"], record["tokens"], record.get("rejected", 0)


# --- a folder that is finished ---


def _finished(
    out_dir: Path,
    settings: dict[str, Any],
    documents: Iterable[Document] | str | Sequence[str],
    files: list[str] | None,
    conversations: bool,
) -> dict[str, Any]:
    manifest = read_manifest(out_dir)
    differing = [
        f"{key} is {_shown(manifest.get(key))} there and {_shown(asked)} now"
        for key, asked in ({"chat": None} | settings).items()
        if _identity(manifest.get(key)) != _identity(asked)
    ]
    if not differing and not _is_same_input(manifest["inputs"], documents, files, conversations):
        differing = ["the documents are others"]
    if differing:
        raise ValueError(
            f"{out_dir} holds finished token shards of other settings: {'; '.join(differing)}. "
            "Choose another folder, or delete this one."
        )
    return manifest


def _is_same_input(
    inputs: dict[str, Any],
    documents: Iterable[Document] | str | Sequence[str],
    files: list[str] | None,
    conversations: bool,
) -> bool:
    if files is not None:
        return are_same_files(files, inputs.get("files") or [])
    reader = ObjectReader(_objects(documents), conversations=conversations)
    for _ in reader.batches(SIZES.batch_lines, SIZES.batch_bytes):
        pass
    return inputs.get("documents_sha256") == reader.sha256.hexdigest()


def _identity(value: Any) -> Any:
    # A vocabulary is its hash; the same file may lie elsewhere on another machine.
    return value.get("sha256") if isinstance(value, dict) else value


def _shown(value: Any) -> str:
    return f"{value['name']} ({value['sha256'][:12]})" if isinstance(value, dict) else repr(value)


def _added(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    added = dict(counts)
    for reason, count in more.items():
        added[reason] = added.get(reason, 0) + count
    return added
