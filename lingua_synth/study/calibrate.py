"""`lingua-synth study calibrate`: how fast each size of a study trains on this machine, by a short training of each.

Random text is trained on in a temporary folder, in the study's own configuration: its sizes, vocabulary, sequence
length, micro-batch, precision, loss and parallelism, on as many GPUs as a run has. The speed is the median of what the
run logs per step once the first steps are over, which compile and fill caches; then it is stopped, before it writes a
checkpoint. A step has at most a few micro-batches, so the optimizer weighs a little more than in steps of many.

    planned runs -> one short training a size -> <out>/calibration.json, which `plan` reads where `calibrate` is empty
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lingua_synth.config import dump_args
from lingua_synth.files import write_json
from lingua_synth.mixture.args import SourceArgs
from lingua_synth.study.args import StudyArgs
from lingua_synth.study.node import Place, run_command_words, run_environment, visible_gpus
from lingua_synth.study.plan import PlannedRun, StudyPlanner
from lingua_synth.study.pricing import CALIBRATION, calibration_words
from lingua_synth.train.args import CheckpointArgs, EvaluationArgs, LoggingArgs, SaveEvery, TrainArgs
from lingua_synth.train.folder import METRICS

DROPPED = 3
"""First steps that are not counted: kernels are compiled, memory is claimed, caches fill."""
MAX_EPOCHS = 1e9
_POLL_S = 0.05


@dataclass
class CalibrateArgs:
    """Measure tokens per second and GPU by short trainings. Beside these keys those of the study."""

    at: list[str] = field(default_factory=list)
    """Sizes to measure; empty: all of the study."""
    steps: int = 12
    """Steps that are counted, after the first three."""
    micro_batches: int = 4
    """Most micro-batches of a step."""
    limit_s: float = 900.0
    """Seconds after which a size is given up."""


def calibrate(study: StudyArgs, args: CalibrateArgs) -> dict[str, float]:
    """Tokens per second and GPU (on a CPU, and process) by size; with `study.out` written to calibration.json.

    ValueError for a size the study does not have, and, with the end of its log, for one that does not train here.
    """
    for key, value in (("steps", args.steps), ("micro_batches", args.micro_batches), ("limit_s", args.limit_s)):
        if not value >= 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    planner = StudyPlanner(study, draft=True)
    largest: dict[str, PlannedRun] = {}
    for run in planner.plan():
        size = str(run.args.synth.preset)
        if run.tokenizer not in ("", planner.reference):
            continue  # reaches the same FLOP/s, by which the plan knows its speed
        if size not in largest or run.steps > largest[size].steps:
            largest[size] = run
    if not largest:
        raise ValueError(
            f"sizes are measured under the study's first tokenizer, {planner.reference}, and no run has it; put "
            "another one first"
        )
    if unknown := [size for size in args.at if size not in largest]:
        raise ValueError(f"at names {', '.join(unknown)}; the study's sizes are {', '.join(largest)}")
    chosen = args.at or list(largest)
    gpus = visible_gpus()
    speeds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="lingua-synth-calibrate-") as temporary:
        shards = _random_shards(Path(temporary) / "shards", max(largest[s].args.data.seq_len for s in chosen))
        for size in tqdm(chosen, desc="calibrate", unit="size"):
            folder = Path(temporary) / size
            speeds[size] = _measure(largest[size], folder, shards, gpus, study, args)
    if study.out:
        measured = {"version": 1, "tokens_per_s": speeds, "calibrate": calibration_words(speeds), "steps": args.steps}
        write_json(Path(study.out) / CALIBRATION, measured)
    return speeds


def _random_shards(folder: Path, seq_len: int) -> Path:
    """Shards of random letters; every run passes over them as often as it needs."""
    from lingua_synth.documents import Document
    from lingua_synth.tokens import build_tokenizer, tokenize

    rng = random.Random(0)
    texts = ("".join(rng.choices("abcdefghij ", k=1024)) for _ in range(256 + 16 * seq_len // 1024))
    documents = [Document(str(k), text, {}) for k, text in enumerate(texts)]
    tokenize(documents, folder, build_tokenizer("bytes"), progress=False)
    return folder


def short_run(run: PlannedRun, folder: Path, shards: Path, micro_batches: int, num_gpus: int) -> TrainArgs:
    """The planned run as a training on `shards` that logs every step, evaluates and saves nothing, and does not end by
    itself."""
    assert run.resolved is not None, "planned runs are resolved"
    args, resolved = run.args, run.resolved
    return dataclasses.replace(
        args,
        name=f"calibrate {args.synth.preset}",
        dump_dir=str(folder / "run"),
        steps=10**6,
        grad_acc_steps=max(1, min(micro_batches, resolved.grad_acc_steps * max(1, run.num_gpus) // max(1, num_gpus))),
        data=dataclasses.replace(args.data, tokenizer=type(args.data.tokenizer)(name="bytes")),
        # The vocabulary costs what it costs, whichever of its entries occur.
        model=dataclasses.replace(args.model, vocab_size=resolved.model.vocab_size),
        optim=dataclasses.replace(resolved.optim, warmup=10),
        checkpoint=CheckpointArgs(dump=SaveEvery(every=0, keep=1)),
        logging=LoggingArgs(freq=1),
        synth=dataclasses.replace(
            args.synth,
            tokens=None,
            global_batch_tokens=None,
            warmup_ratio=None,
            sources={"random": SourceArgs(str(shards), "1", MAX_EPOCHS)},
            stages={},
            evaluation=EvaluationArgs(),
            branch_from=None,
            keep_steps=[],
            async_checkpoint=False,
        ),
    )


def _measure(
    run: PlannedRun, folder: Path, shards: Path, gpus: Sequence[str], study: StudyArgs, args: CalibrateArgs
) -> float:
    size = str(run.args.synth.preset)
    if run.num_gpus and not gpus and run.args.synth.device == "cuda":
        raise ValueError(f"{size} trains on {run.num_gpus} GPUs, and there is none here; calibrate where there are")
    # Without a GPU `auto` trains on the CPU, as the run itself would.
    num_gpus = min(run.num_gpus, len(gpus))
    folder.mkdir()
    dump_args(short_run(run, folder, shards, args.micro_batches, num_gpus), folder / "config.yaml")
    cache = study.launch.cache_dir or (Path(study.out) / "launch" / "cache" if study.out else folder / "cache")
    place = Place(tuple(gpus[:num_gpus]), 1)
    environment = os.environ | run_environment(place, num_threads=study.launch.threads_per_worker, cache_dir=cache)
    with open(folder / "said", "wb") as said:
        process = subprocess.Popen(
            run_command_words(folder / "config.yaml", num_gpus),
            stdout=said, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        with _ended(process):
            deadline = time.monotonic() + args.limit_s
            while len(logged := _speeds(folder / "run" / METRICS)) < DROPPED + args.steps:
                time.sleep(_POLL_S)
                if process.poll() is not None or time.monotonic() > deadline:
                    break
    if len(logged) < DROPPED + args.steps:
        why = "ended" if process.returncode is not None and time.monotonic() <= deadline else "was too slow"
        lines = (folder / "said").read_text(errors="replace").splitlines()[-8:]
        shown = "".join(f"\n  | {line}" for line in lines)
        raise ValueError(f"{size} {why} after {len(logged)} of {DROPPED + args.steps} steps:{shown}")
    return statistics.median(logged[DROPPED : DROPPED + args.steps])


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """The process and all it started are gone afterwards, whatever happens."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _speeds(path: Path) -> list[float]:
    """speed/wps of every whole line."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, KeyError):
            found.append(float(json.loads(line)["speed/wps"]))
    return found
