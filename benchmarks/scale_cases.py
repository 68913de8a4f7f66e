"""The cases of scale.py, each in a process of its own: JSON lines in, JSON lines out (`measure.Worker`).

    python benchmarks/scale_cases.py CASE

Files that would be petabytes are sparse: their layout, counts and manifests are real, their tokens are zeros that no
disk holds, and one of them stands under many names.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CASES: dict[str, Callable[..., dict[str, Any]]] = {}
SEQ_LEN = 4096
TOKENIZER = "0" * 64
# ext4 gives a file at most 65,000 names.
NAMES_PER_FILE = 60_000
CALLS = ("stat", "lstat", "listdir", "scandir", "link", "replace", "rename", "unlink", "mkdir", "rmdir", "utime")


def case(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A command of its own name."""
    CASES[function.__name__] = function
    return function


# --- what a process asks of a file system, and holds of memory ---

_opened = 0


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    global _opened
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened += 1


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Calls that a metadata server answers, by name, of this process from here to the end of the block."""
    import pyarrow as pa

    found: dict[str, int] = {}
    before, real = _opened, {name: getattr(os, name) for name in CALLS}
    real_map = pa.memory_map

    def counting(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            found[name] = found.get(name, 0) + 1
            return real[name](*arguments, **named)

        return call

    def memory_map(*arguments: Any, **named: Any) -> Any:  # opened below Python, where nobody is told
        found["open"] = found.get("open", 0) + 1
        return real_map(*arguments, **named)

    for name in CALLS:
        setattr(os, name, counting(name))
    pa.memory_map = memory_map
    try:
        yield found
    finally:
        for name in CALLS:
            setattr(os, name, real[name])
        pa.memory_map = real_map
        found["open"] = found.get("open", 0) + _opened - before


def private_mb() -> float:
    """Megabytes of this process that no other shares."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private")) / 1024


def peak_mb() -> float:
    """The most memory that this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- sources of 10T tokens ---


class _Sparse:
    """A file in which long stretches are left out."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file, self.num_bytes = file, 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) > 1 << 26:
            self._file.seek(len(view), os.SEEK_CUR)
        else:
            self._file.write(view)
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        self._file.flush()


@case
def build_source(folder: str, num_files: int, tokens_per_file: int, documents_per_file: int) -> dict[str, Any]:
    """A folder of shards of so many tokens, and its manifest."""
    import numpy as np
    import pyarrow as pa

    from lingua_synth.files import write_json
    from lingua_synth.tokens.shards import FORMAT, MANIFEST, TOKENIZER_KEY, VERSION, shard_name, shard_schema

    where = Path(folder)
    where.mkdir(parents=True)
    dtype = np.dtype(np.uint32)
    schema = shard_schema(dtype).with_metadata({TOKENIZER_KEY: TOKENIZER})
    offsets = np.linspace(0, tokens_per_file, documents_per_file + 1).astype(np.int64)
    tokens = pa.array(np.zeros(tokens_per_file, dtype))
    batch = pa.RecordBatch.from_arrays(
        [
            pa.LargeListArray.from_arrays(pa.array(offsets), tokens, type=schema.field("tokens").type),
            pa.array(np.full(documents_per_file, 4000, np.uint64)),
            pa.array([f"{i:08d}" for i in range(documents_per_file)], pa.large_string()),
        ],
        schema=schema,
    )
    entry = {"documents": documents_per_file, "tokens": tokens_per_file, "bytes": 4000 * documents_per_file}
    files = []
    for i in range(num_files):
        path = where / shard_name(i)
        if i % NAMES_PER_FILE == 0:
            first = path
            with open(path, "wb") as file:
                sparse = _Sparse(file)
                with pa.ipc.new_file(sparse, schema) as writer:
                    writer.write_batch(batch)
                file.truncate(sparse.num_bytes)
        else:
            os.link(first, path)
        files.append({"name": path.name, **entry, "file_bytes": sparse.num_bytes, "sha256": f"{i:064x}"})
    totals = {key: count * num_files for key, count in entry.items()}
    described = {"name": "none", "path": None, "sha256": TOKENIZER, "n_words": 128_256}
    content = {"format": FORMAT, "version": VERSION, "dtype": "uint32", "tokenizer": described, "files": files}
    write_json(where / MANIFEST, content | totals)
    return {"tokens": totals["tokens"], "manifest_mb": (where / MANIFEST).stat().st_size / 1e6}


def _state_at(loader: Any, position: int) -> dict[str, Any]:
    """The state of a run that has come to `position`."""
    loader._go_to(position)
    state: dict[str, Any] = loader.state_dict()
    return state


@case
def rank(folder: str, dp_rank: int, dp_size: int, position: int, batches: int) -> dict[str, Any]:
    """One rank of a run over one source: opening, its share of the check, the first batch at a far position."""
    import pyarrow as pa  # noqa: F401 - what Python imports is not what is measured

    from lingua_synth.mixture import MixtureLoader
    from lingua_synth.tokens import TokenSource

    found: dict[str, Any] = {}
    before, started = private_mb(), time.perf_counter()
    with counted() as calls:
        source = TokenSource(folder, check=False)
        found["open_s"] = time.perf_counter() - started
        source.check_files(dp_rank, dp_size)
    found["check_s"] = time.perf_counter() - started - found["open_s"]
    found["start_calls"] = sum(calls.values())
    state = _state_at(MixtureLoader({"a": source}, {"a": 1}, SEQ_LEN, 4, dp_size=dp_size), position * 4 * dp_size)
    started = time.perf_counter()
    loader = MixtureLoader({"a": source}, {"a": 1}, SEQ_LEN, 4, dp_rank, dp_size, state=state)
    first = next(loader)
    found["first_batch_s"] = time.perf_counter() - started
    assert first.tokens.shape == (4, SEQ_LEN) and loader.position // (4 * dp_size) == position + 1
    found["mb"] = private_mb() - before
    with counted() as calls:
        for _ in range(batches):
            next(loader)
    found["calls_per_batch"] = sum(calls.values()) / batches
    found["mb_after"] = private_mb() - before
    source.window(source.num_tokens - SEQ_LEN, SEQ_LEN)
    return found


@case
def check_alone(folder: str) -> dict[str, Any]:
    """What one process does that compares all files itself."""
    from lingua_synth.tokens import TokenSource

    started = time.perf_counter()
    with counted() as calls:
        source = TokenSource(folder)
    seconds = time.perf_counter() - started
    with open("/proc/self/maps") as file:
        num_maps = sum(".arrow" in line for line in file)
    assert len(source.shards) >= num_maps
    return {"s": seconds, "calls": sum(calls.values()), "maps": num_maps, "mb": private_mb()}


@case
def all_ranks(folder: str, dp_size: int, per_rank: int, position: int) -> dict[str, Any]:
    """The batches of all ranks of one step, held to the plan: every position once, exact counts by source."""
    import numpy as np

    from lingua_synth.mixture import MixtureLoader
    from lingua_synth.tokens import TokenSource

    sources = {name: TokenSource(folder, check=False) for name in ("natural", "synthetic")}
    mixture = {"natural": "67/100", "synthetic": "33/100"}
    size = dp_size * per_rank
    start = position // size * size
    whole = MixtureLoader(sources, mixture, SEQ_LEN, per_rank, dp_size=dp_size)
    state = _state_at(whole, start)
    before = private_mb()
    positions, by_source, loaders, seconds = [], np.zeros(2, dtype=np.int64), [], []
    for dp_rank in range(dp_size):
        began = time.perf_counter()
        loader = MixtureLoader(sources, mixture, SEQ_LEN, per_rank, dp_rank, dp_size, state=state)
        batch = next(loader)
        seconds.append(time.perf_counter() - began)
        positions.append(batch.position)
        by_source += np.bincount(batch.source, minlength=2)
        loaders.append(loader)
    found = np.sort(np.concatenate(positions))
    expected = whole.schedule.counts(start + size) - whole.schedule.counts(start)
    return {
        "each_once": bool((found == np.arange(start, start + size)).all()),
        "counts_exact": bool((by_source == expected).all()),
        "off": float(max(abs(np.array(whole.schedule.counts(start + size)) - np.array([0.67, 0.33]) * (start + size)))),
        "kb_per_rank": 1024 * (private_mb() - before) / dp_size,
        "ms": 1e3 * float(np.median(seconds)),
        "slowest_ms": 1e3 * max(seconds),
        "sequences": size,
    }


@case
def plan(num_sources: int, tokens: int) -> dict[str, Any]:
    """The plan of a run over many sources, and 1,024 positions far into it."""
    import numpy as np

    from lingua_synth.mixture import Mixture, plan_report
    from lingua_synth.mixture.order import GlobalOrder

    rng = random.Random(0)
    weights = [rng.randint(1, 10_000) for _ in range(num_sources)]
    mixture = Mixture({f"s{i:04d}": f"{weight}/{sum(weights)}" for i, weight in enumerate(weights)})
    held = {f"s{i:04d}": 2 * tokens * weight // sum(weights) + SEQ_LEN for i, weight in enumerate(weights)}
    started = time.perf_counter()
    planned = plan_report(held, mixture, tokens // SEQ_LEN, SEQ_LEN)
    plan_s = time.perf_counter() - started
    assert sum(line.planned_sequences for line in planned.sources) == tokens // SEQ_LEN
    order = GlobalOrder(planned.schedule, {n: t // SEQ_LEN for n, t in held.items()}, 0)
    started = time.perf_counter()
    order.locate(np.arange(2_000_000_000, 2_000_001_024))
    return {"plan_s": plan_s, "locate_ms": 1e3 * (time.perf_counter() - started), "peak_mb": peak_mb()}


@case
def mosaicml(num_samples: int, num_nodes: int, position: int) -> dict[str, Any]:
    """The order of one epoch as MosaicML Streaming makes it, on every node anew: partitions, then its py1e shuffle."""
    import numpy as np
    import streaming
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    per_shard = 4096
    shards = np.full(-(-num_samples // per_shard), per_shard, dtype=np.int64)
    before, started = peak_mb(), time.perf_counter()
    parts = get_partitions("relaxed", num_samples, num_nodes, num_nodes, 8, 1, 4, position)
    order = get_shuffle("py1e", shards, num_nodes, 1, 0, 1 << 18)
    order[parts.clip(0)]
    return {"s": time.perf_counter() - started, "mb": peak_mb() - before, "version": streaming.__version__}


# --- leases ---


@case
def claimant(folder: str, num_units: int, seconds: float, seed: int) -> dict[str, Any]:
    """Claims units and finishes them, as workers of a generation do, for so many seconds from the file `start` on."""
    from lingua_synth.leases import Leases

    where = Path(folder)
    rng = random.Random(seed)
    won = lost = first = 0
    done: set[int] = set()
    with Leases(where / "leases") as leases:
        (where / f"ready-{seed}").touch()
        while not (where / "start").exists():
            time.sleep(0.01)
        with counted() as calls:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                num_workers, claimed = leases.claimed()
                while first in done:
                    first += 1
                left = (unit for unit in range(first, num_units) if unit not in done)
                free = list(itertools.islice(left, 2 * num_workers + 1))
                rng.shuffle(free)
                for unit in free:
                    name = f"{unit:07d}"
                    if name in claimed:
                        continue
                    if (where / "done" / name).exists():
                        done.add(unit)
                        continue
                    if leases.claim(name) is None:
                        lost += 1
                        continue
                    if not (where / "done" / name).exists():
                        os.close(os.open(where / "done" / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                        won += 1
                    leases.finish(name)
                    done.add(unit)
                    break
    return {"won": won, "lost": lost, "calls": sum(calls.values())}


@case
def generation(folder: str, num_whole: int, num_others: int, num_left: int) -> dict[str, Any]:
    """A worker in the folder of a run of which `num_whole` shards are whole and `num_others` are held elsewhere."""
    from lingua_synth.documents import Document
    from lingua_synth.generate import generate, load_recipe, store
    from lingua_synth.generate.engines.mock import MockEngine
    from lingua_synth.generate.plan import Source, plan_inputs
    from lingua_synth.generate.worker import Settings, Worker

    where, recipe = Path(folder), load_recipe("hq")
    total = num_whole + num_others + num_left
    documents = [Document(f"{i}", "A text of a few words.") for i in range(total)]
    generate(documents[:1], where / "one", recipe, MockEngine(), shard_size=1, progress=False)
    out = where / "run"
    out.mkdir()
    with open(out / "inputs.jsonl", "w") as file:
        file.writelines(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in documents)
    planned = plan_inputs(out, Source([str(out / "inputs.jsonl")]), 1, 1, 0.01)
    one = store.read_shard(where / "one", 0)
    for i in range(num_whole):
        files = {}
        for name, described in one["files"].items():
            new = name.replace("00000", f"{i:05d}")
            os.link(where / "one" / name, out / new) if i % NAMES_PER_FILE or i == 0 else shutil.copy(
                where / "one" / name, out / new
            )
            files[new] = described
        with open(out / store.shard_name(i), "w") as file:
            json.dump(one | {"shard": i, "files": files}, file)
    for i in range(num_whole, num_whole + num_others):
        place = out / "leases" / f"{i:05d}"
        place.mkdir(parents=True)
        holder = json.dumps({"worker": f"w{i}", "host": "elsewhere", "pid": 1})
        (place / "1").write_text(holder)
        (out / "leases" / f".w{i}").write_text(holder)
    worker = Worker(out, planned, Settings(recipe, MockEngine(), 0, None, 0.05, "jsonl"), "now", False, 3600.0)
    started, used = time.perf_counter(), time.process_time()
    with counted() as calls:
        worker.execute()
    found = {"s": time.perf_counter() - started, "cpu_s": time.process_time() - used, "calls": sum(calls.values())}
    assert len(store.whole_shards(out)) == num_whole + num_left
    shutil.rmtree(out)
    return found | {"by_name": calls}


# --- checkpoints ---


@case
def checkpoint(folder: str, dim: int, n_layers: int, rounds: int) -> dict[str, Any]:
    """Our writer beside the same bytes in one file; in the background the stall, and until it is on the disk."""
    import torch

    from lingua_synth.files import write_json
    from lingua_synth.model import ModelArgs
    from lingua_synth.model.checkpoint import CheckpointWriter, restore_checkpoint
    from lingua_synth.model.transformer import Transformer

    torch.set_num_threads(1)
    where = Path(folder)
    model = Transformer(ModelArgs(dim=dim, n_layers=n_layers, n_heads=8, vocab_size=32_000, max_seqlen=16))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    num_bytes = 12 * sum(parameter.numel() for parameter in model.parameters())
    content = torch.ones(num_bytes // 4)
    found: dict[str, list[float]] = {key: [] for key in ("raw", "whole", "stall", "background", "restore")}
    settings: dict[str, Any] = {"params": {}, "train_state": {"step": 0}}
    for number in range(rounds):
        started = time.perf_counter()
        with open(where / "raw", "wb", buffering=0) as file:
            view = memoryview(content.numpy()).cast("B")
            for at in range(0, num_bytes, 1 << 26):
                file.write(view[at : at + (1 << 26)])
            os.fsync(file.fileno())
        found["raw"].append(time.perf_counter() - started)
        (where / "raw").unlink()
        started = time.perf_counter()
        CheckpointWriter(where / f"a{number}").save(1, model, optimizer, **settings)
        found["whole"].append(time.perf_counter() - started)
        started = time.perf_counter()
        restore_checkpoint(where / f"a{number}" / "checkpoints" / f"{1:010d}", model, optimizer)
        found["restore"].append(time.perf_counter() - started)
        shutil.rmtree(where / f"a{number}")
        writer = CheckpointWriter(where / f"b{number}", background=True)
        started = time.perf_counter()
        writer.save(1, model, optimizer, **settings)
        found["stall"].append(time.perf_counter() - started)
        writer.close()
        found["background"].append(time.perf_counter() - started)
        shutil.rmtree(where / f"b{number}")
    started = time.perf_counter()
    for i in range(64):
        write_json(where / "states" / f"{i}.json", {"step": 0, "data_loader_state": {"position": i}})
    state_s = (time.perf_counter() - started) / 64
    return {"bytes": num_bytes, "state_s": state_s, **found}


# --- studies ---


@case
def study(folder: str, num_seeds: int) -> dict[str, Any]:
    """A study of 1,000 runs times `num_seeds`: planned, kept, read back, looked at, collected."""
    from lingua_synth.config import build_args
    from lingua_synth.study.args import StudyArgs
    from lingua_synth.study.board import queue, read_plan, write_plan
    from lingua_synth.study.collect import collect
    from lingua_synth.study.plan import plan_study
    from lingua_synth.study.status import study_status

    mixtures = {f"m{i:02d}": {"ratios": {"a": f"{i}/101", "b": f"{101 - i}/101"}} for i in range(1, 11)}
    args = build_args(
        StudyArgs,
        {
            "out": folder,
            "sources": {"a": {"tokens": "1T"}, "b": {"tokens": "1T"}},
            "mixtures": mixtures,
            "sizes": ["100M", "200M", "350M", "400M", "600M", "800M", "1B", "1.5B", "2B", "3B"],
            "budgets": [f"{b}B" for b in range(1, 11)],
            "seeds": list(range(num_seeds)),
            "vocab_size": 128_256,
        },
    )
    found: dict[str, Any] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = function()
        found[name] = time.perf_counter() - started
        return value

    planned = timed("plan_s", lambda: plan_study(args, draft=True))
    queued = timed("queue_s", lambda: queue(planned))
    name = timed("write_s", lambda: write_plan(Path(folder), queued))
    timed("read_s", lambda: read_plan(Path(folder), name))
    timed("status_s", lambda: str(study_status(queued, folder=folder)))
    collected = timed("collect_s", lambda: collect([], planned=queued))
    assert len(collected.unfinished) == len(planned) == 1000 * num_seeds
    size = (Path(folder) / "launch" / "plans" / f"{name}.json").stat().st_size
    return found | {"runs": len(planned), "mb": size / 1e6, "peak_mb": peak_mb()}


def main() -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    sys.addaudithook(_hear)
    print(json.dumps({"version": "lingua_synth"}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = CASES[asked.pop("command")](**asked)
        except (OSError, ValueError, ImportError, AssertionError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
