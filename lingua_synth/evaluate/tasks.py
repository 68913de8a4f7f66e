"""Downstream tasks through lm-evaluation-harness, on the checkpoint as it would be published.

checkpoint -> Hugging Face folder (of its own, or one that is there) -> the harness's `hf` model -> its metrics, and
beside them, for every task whose answer is a text that is scored, the bits per byte of the correct answer:

    correct_bits_per_byte = mean over documents of -log2 p(correct answer | context) / UTF-8 bytes of the answer

with the answer as the harness scores it, its leading space included; of several correct answers the likeliest. Accuracy
of a small model sits at chance and moves in jumps; this does not, and orders models long before.

Everything is read from this machine if the tasks are: `task_files` names folders of task files whose data are local
files. The harness is the extra `eval`.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.config import needs_extra
from lingua_synth.evaluate.models import is_huggingface
from lingua_synth.files import atomic_file, folder_lock, what_is_there, write_json

FOLDER = Path(__file__).parent / "task_suites"
SUITES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
RESULT, DOCUMENTS = "tasks.json", "task_documents.parquet"
FORMAT, VERSION = "lingua_synth tasks", 1


@dataclass
class TasksArgs:
    """Downstream tasks on a trained model, through lm-evaluation-harness (extra eval)."""

    checkpoint: str = ""
    """Run folder (its newest checkpoint), checkpoint folder, Meta Lingua's `consolidated`, or a Hugging Face folder."""
    out: str = ""
    """Folder for tasks.json and task_documents.parquet."""
    overwrite: bool = False
    """Replace results that are in `out`."""
    suite: str = ""
    """Tasks by the name of a list: base, quick, or a .yaml file of your own; empty: `tasks` alone."""
    tasks: list[str] = field(default_factory=list)
    """Names of the harness's tasks, or of your own in `task_files`; added to the suite's."""
    task_files: list[str] = field(default_factory=list)
    """Folders of your own task files, in the harness's format; their data may be local files."""
    num_fewshot: int | None = None
    """Examples in front of each question; null: the suite's number, else each task's own."""
    limit: int | None = None
    """Documents of each task; null: the suite's number, else all."""
    add_bos: bool | None = None
    """Put BOS in front of each text; null: as the model's tokenizer does. Where BOS is put, the harness scores it in
    whole texts (its perplexity tasks): false gives what `evaluate` gives."""
    batch_size: int = 16
    """Requests scored together."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    dtype: str = "bf16"
    """Type of the exported weights and of the computation: bf16 or fp32."""
    seed: int = 0
    """Of few-shot examples."""


@dataclass(frozen=True)
class Suite:
    """A named list of tasks."""

    tasks: tuple[str, ...]
    num_fewshot: int | None = None
    limit: int | None = None


def load_suite(name: str) -> Suite:
    """A preset by name, or a suite of your own by the path of its YAML file. ValueError says what is wrong with it."""
    import yaml

    path = FOLDER / f"{name}.yaml" if name in SUITES else Path(name)
    if name not in SUITES and path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"no suite {name!r}; there are {', '.join(SUITES)} (or the path of your own .yaml file)")
    if not path.is_file():
        raise ValueError(f"no suite {path}; {what_is_there(path)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, str) for task in tasks):
        raise ValueError(f"{path} is no suite: it needs a list `tasks` of names")
    for key in content:
        if key not in ("about", "tasks", "num_fewshot", "limit"):
            raise ValueError(f"{path}: unknown key {key}; known are about, tasks, num_fewshot, limit")
    return Suite(tuple(tasks), content.get("num_fewshot"), content.get("limit"))


def run_tasks(args: TasksArgs) -> dict[str, Any]:
    """Run the tasks and write `out`; returns the record of tasks.json.

    Raises ValueError for a checkpoint that cannot be exported, a task that is not known, data that cannot be had here,
    and without the harness; OSError when something cannot be written. One process: for several GPUs export, and call
    the harness under `accelerate launch`.
    """
    suite = _validate(args)
    harness = _import_harness()
    names = list(dict.fromkeys([*suite.tasks, *args.tasks]))
    limit = args.limit if args.limit is not None else suite.limit
    num_fewshot = args.num_fewshot if args.num_fewshot is not None else suite.num_fewshot
    manager = _find_tasks(harness, names, args.task_files)
    out = Path(args.out)
    with folder_lock(out, "run of tasks"), _exported(args, out) as (folder, checkpoint):
        loaded = _load_tasks(manager, names)
        model = harness.HFLM(
            pretrained=str(folder),
            device=_device(args.device),
            dtype={"bf16": "bfloat16", "fp32": "float32"}[args.dtype],
            batch_size=args.batch_size,
            add_bos_token=args.add_bos,
        )
        found = harness.simple_evaluate(
            model=model,
            tasks=names,
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            log_samples=True,
            bootstrap_iters=1000,
            random_seed=args.seed,
            numpy_random_seed=args.seed,
            torch_random_seed=args.seed,
            fewshot_random_seed=args.seed,
        )
    documents = {
        name: _score_answers(loaded[name], samples) for name, samples in found["samples"].items() if name in loaded
    }
    record = {
        "format": FORMAT,
        "version": VERSION,
        "checkpoint": checkpoint,
        "dtype": args.dtype,
        "suite": args.suite or None,
        "tasks": names,
        "num_fewshot": num_fewshot,
        "limit": limit,
        "add_bos": args.add_bos,
        "seed": args.seed,
        "harness": {"lm_eval": harness.version, "task_versions": found.get("versions", {})},
        "results": {name: _figures(found["results"][name], documents.get(name)) for name in found["results"]},
    }
    (out / RESULT).unlink(missing_ok=True)
    _write_documents(out / DOCUMENTS, documents)
    write_json(out / RESULT, record)
    return record


def _validate(args: TasksArgs) -> Suite:
    for key in ("checkpoint", "out"):
        if not getattr(args, key):
            raise ValueError(f"{key} is not set; `lingua-synth evaluate tasks --help` lists the keys")
    if args.dtype not in ("bf16", "fp32"):
        raise ValueError(f"dtype is bf16 or fp32; got {args.dtype!r}")
    for key in ("batch_size", "limit"):
        if getattr(args, key) is not None and getattr(args, key) < 1:
            raise ValueError(f"{key} must be at least 1, got {getattr(args, key)}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "tasks run in one process; for several GPUs: lingua-synth export checkpoint=... out=hf, then "
            "accelerate launch -m lm_eval --model hf --model_args pretrained=hf --tasks ..."
        )
    suite = load_suite(args.suite) if args.suite else Suite(())
    if not suite.tasks and not args.tasks:
        raise ValueError(f"there is no task to run; set suite= ({', '.join(SUITES)}) or tasks=[...]")
    for folder in args.task_files:
        if not Path(folder).is_dir():
            raise ValueError(f"task_files: no folder {folder}; {what_is_there(folder)}")
    if (Path(args.out) / RESULT).is_file() and not args.overwrite:
        raise ValueError(f"{args.out} holds results of tasks; choose another folder, or set overwrite=true")
    return suite


@dataclass(frozen=True)
class _Harness:
    HFLM: Any
    TaskManager: Any
    simple_evaluate: Any
    version: str


def _import_harness() -> _Harness:
    from importlib.metadata import version

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ValueError(needs_extra([error.name or "lm_eval"], "eval")) from None
    return _Harness(HFLM, TaskManager, simple_evaluate, version("lm_eval"))


def _find_tasks(harness: _Harness, names: Sequence[str], task_files: Sequence[str]) -> Any:
    """The harness's index of tasks; the thousands of its own only where one of them is asked for."""
    manager = None
    if task_files:
        manager = harness.TaskManager(include_path=list(task_files), include_defaults=False)
    if manager is None or any(name not in manager.all_tasks for name in names):
        manager = harness.TaskManager(include_path=list(task_files) or None)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
            raise ValueError(f"lm-evaluation-harness {harness.version} has no task {name!r}; {hint}")
    return manager


def _load_tasks(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    """The tasks themselves by name, those of groups too; their data are read here."""
    try:
        loaded: dict[str, Any] = manager.load(list(names))["tasks"]
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the data of {', '.join(names)} cannot be read here ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200]}). Where there is no network: the harness's tasks need their data sets "
            "in the datasets library's cache, or take task files of your own with local data: task_files=[FOLDER]"
        ) from None
    return loaded


@contextlib.contextmanager
def _exported(args: TasksArgs, out: Path) -> Iterator[tuple[Path, str]]:
    """The checkpoint as a Hugging Face folder, which is removed again if it was made here; and what was evaluated."""
    import shutil

    from lingua_synth.model.checkpoint import _open_checkpoint
    from lingua_synth.model.huggingface import export_huggingface

    if is_huggingface(args.checkpoint):
        yield Path(args.checkpoint), args.checkpoint
        return
    folder = out / ".exported"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    try:
        export_huggingface(args.checkpoint, folder, dtype=args.dtype)
        yield folder, str(_open_checkpoint(args.checkpoint)[0])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _device(asked: str) -> str:
    import torch

    if asked not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is auto, cpu or cuda; got {asked!r}")
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch sees no GPU here; use device=auto or cpu")
    return "cuda" if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()) else "cpu"


# --- the correct answer ---


@dataclass(frozen=True)
class _Answers:
    """Of each document with a correct answer that was scored: its number, the answer's loss and bytes."""

    document: list[int] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)


def _score_answers(task: Any, samples: Sequence[dict[str, Any]]) -> _Answers | None:
    """The correct answers of a task's documents; None for a task that scores no answers (generation, whole texts)."""
    if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
        return None
    found = _Answers()
    seen = set()
    for sample in samples:
        if sample["doc_id"] in seen:  # once for each filter
            continue
        seen.add(sample["doc_id"])
        scored = []
        for index in _correct(task, sample["doc"]):
            likelihood = float(sample["resps"][index][0][0])
            scored.append((-likelihood, len(sample["arguments"][index][1].encode("utf-8"))))
        scored = [one for one in scored if one[1] > 0 and math.isfinite(one[0])]
        if scored:
            nats, num_bytes = min(scored)
            found.document.append(int(sample["doc_id"]))
            found.nats.append(nats)
            found.bytes.append(num_bytes)
    return found


def _correct(task: Any, document: Any) -> list[int]:
    """Which of a document's requests score a correct answer; none where the task's label is out of its choices."""
    if task.OUTPUT_TYPE == "loglikelihood":
        return [0]
    choices = task.doc_to_choice(document)
    # Where the contexts are the choices (WinoGrande), the harness keeps the label in the place of the text.
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    golds = gold if isinstance(gold, list) else [gold]
    indices = [choices.index(one) if isinstance(one, str) and one in choices else one for one in golds]
    return [one for one in indices if isinstance(one, int) and 0 <= one < len(choices)]


def _figures(metrics: dict[str, Any], answers: _Answers | None) -> dict[str, Any]:
    """The harness's metrics of one task, and the correct answer's bits per byte with its standard error."""
    found = {
        # "acc,none" -> "acc"; another filter keeps its name
        key.removesuffix(",none"): value if not isinstance(value, float) or math.isfinite(value) else None
        for key, value in metrics.items()
        if isinstance(value, int | float) or key == "alias"
    }
    if answers is not None and answers.nats:
        bits = np.array(answers.nats) / np.log(2) / np.array(answers.bytes)
        found["correct_bits_per_byte"] = float(bits.mean())
        found["correct_bits_per_byte_stderr"] = (
            float(bits.std(ddof=1) / math.sqrt(len(bits))) if len(bits) > 1 else None
        )
        found["documents"] = len(bits)
    return found


def _write_documents(path: Path, documents: dict[str, _Answers | None]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(name, answers) for name, answers in documents.items() if answers is not None]
    table = pa.table(
        {
            "task": pa.array([name for name, answers in rows for _ in answers.nats], pa.string()),
            "document": pa.array([d for _, answers in rows for d in answers.document], pa.int64()),
            "correct_nats": pa.array([x for _, answers in rows for x in answers.nats], pa.float64()),
            "correct_bytes": pa.array([x for _, answers in rows for x in answers.bytes], pa.int64()),
        }
    )
    with atomic_file(path, "wb") as file:
        pq.write_table(table, file, compression="zstd")
