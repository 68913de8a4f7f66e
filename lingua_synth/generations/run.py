"""The rounds themselves: natural text once, then per round texts, trainings and the report of what is finished.

Every stage leaves a folder with a file written last and is skipped when that file is there, so the same call goes on
wherever a kill came. On a CPU as many runs train, and as many texts are written, at a time as there are workers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingua_synth.files import folder_lock, read_json, sha256_json, write_json
from lingua_synth.generations.args import (
    GenerationsArgs,
    arms_of,
    recipe_of,
    refuse_other_folder,
    validate_generations,
    write_settings,
)
from lingua_synth.generations.plan import CONTROL, NATURAL, Training, budget_of, plan_round, ratios_of, text_name

if TYPE_CHECKING:
    from lingua_synth.generate import Recipe
    from lingua_synth.study.plan import PlannedRun

STAGES = "stages.json"
# Sampled pieces are cut into slightly other pieces when the text is tokenized again.
MARGIN = 1.05


def run_generations(args: GenerationsArgs) -> Path:
    """Run every round that is not finished, and write the report after each; returns the page.

    ValueError for settings that cannot run, a folder that holds something else, natural text that is too small for the
    budget, and documents that give too little synthetic text. What was finished before stays.
    """
    from lingua_synth.generations.report import write_generations_report

    validate_generations(args)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out is a folder, and {out} is a file")
    refuse_other_folder(args)
    with folder_lock(out, "generations"):
        write_settings(args)
        seconds = _Seconds(out / STAGES)
        with seconds.timed("natural text"):
            domains = _natural(args)
        ratios = ratios_of(args.ratios, args.rounds)
        page = out
        for round_ in range(args.rounds + 1):
            trainings = plan_round(round_, arms_of(args), args.seeds, args.budget, ratios)
            if round_:
                with seconds.timed(f"round {round_}: write"):
                    writing = [training for training in trainings if training.regime != CONTROL]
                    _write_texts(args, round_, writing, int(ratios[round_ - 1] * args.budget))
            with seconds.timed(f"round {round_}: train"):
                _train(args, trainings, domains, is_last=round_ == args.rounds)
            with seconds.timed(f"round {round_}: report"):
                page = write_generations_report(args)
    return page


class _Seconds:
    """Keeps the seconds of each stage, as the call that did its work took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = read_json(path) if path.is_file() else {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = max(self._seconds.get(name, 0.0), time.perf_counter() - start)
        write_json(self._path, self._seconds)


# --- natural text ---


def tokenizer_of(args: GenerationsArgs) -> Any:
    """The tokenizer of the folder, once its natural text is there."""
    from lingua_synth.tokens import build_tokenizer

    path = str(Path(args.out) / "tokenizer" / "sp.model") if args.tokenizer == "sp" else None
    return build_tokenizer(args.tokenizer, path)


def _natural(args: GenerationsArgs) -> dict[str, str]:
    """Prepare, split and tokenize the documents; returns the shards of every held-out domain."""
    from lingua_synth.documents import prepare_corpus, read_documents
    from lingua_synth.tokens import tokenize, train_sentencepiece

    out = Path(args.out)
    prepare_corpus(args.documents, out / "documents", max_bytes=args.max_bytes)
    train = out / "documents" / "train.jsonl"
    model = out / "tokenizer" / "sp.model"
    if args.tokenizer == "sp" and not model.is_file():
        texts = (document.text for document in read_documents(str(train)))
        train_sentencepiece(texts, model, args.vocab_size, seed=0)
    tokenizer = tokenizer_of(args)
    natural = tokenize(str(train), out / "tokens" / NATURAL, tokenizer, num_workers=args.num_workers)
    available = _trainable_tokens(natural, args.seq_len)
    if args.budget > available:
        largest = available // args.batch_tokens * args.batch_tokens
        raise ValueError(
            f"the budget is {args.budget:,} tokens, and the natural text makes {available:,} once: it is too small. "
            f"Give more documents, or budget={largest}, in another out= folder"
        )
    if args.control:
        needed = budget_of(CONTROL, args.rounds, args.budget, ratios_of(args.ratios, args.rounds))
        if needed > available:
            raise ValueError(
                f"control reads {needed:,} natural tokens in round {args.rounds}, as many as accumulate in all, and "
                f"natural text makes {available:,} once. Set control=false, fewer rounds, or, in another out= folder, "
                "a lower budget or more documents"
            )
    domains = {}
    for file in sorted((out / "documents" / "heldout").glob("*.jsonl")):
        domains[file.stem] = str(out / "tokens" / "heldout" / file.stem)
        tokenize(str(file), domains[file.stem], tokenizer, num_workers=1, progress=False)
    return domains


def _trainable_tokens(manifest: Mapping[str, Any], seq_len: int) -> int:
    from lingua_synth.mixture.plan import count_windows

    return count_windows(manifest["tokens"], seq_len) * seq_len


# --- synthetic text ---


@dataclass(frozen=True)
class TextTask:
    """One text that one model writes: all that another process needs to know."""

    name: str
    out: str
    """Folder of the generations."""
    model: str
    """Run folder of the generator."""
    args: GenerationsArgs
    seed: int
    """Of the sampling."""
    needed: int
    """Training tokens that the text must hold."""


def _write_texts(args: GenerationsArgs, round_: int, trainings: Sequence[Training], needed: int) -> None:
    """The text of every training of the round, by the generators of the round before, and its shards."""
    tasks: dict[str, TextTask] = {}
    ratios = ratios_of(args.ratios, args.rounds)
    writers = {
        (training.regime, training.seed): training
        for training in plan_round(round_ - 1, args.regimes, args.seeds, args.budget, ratios)
    }
    for training in trainings:
        name = text_name(training.regime, round_, training.seed)
        writer = writers["shared" if round_ == 1 else training.regime, training.seed]
        folder = writer.run_folder(args.out, args.generator or args.size)
        # The regimes of a seed sample with the same random numbers: what differs is the model.
        seed = int(sha256_json(["generations", training.seed, round_])[:7], 16)
        tasks[name] = TextTask(name, args.out, str(folder), args, seed, needed)
    open_tasks = [task for task in tasks.values() if not (_shards(task) / "manifest.json").is_file()]
    num_workers = min(args.num_workers, len(open_tasks)) if args.device == "cpu" else 1
    if num_workers < 2:
        for task in open_tasks:
            write_text(task)
        return
    # Spawned: torch's threads do not survive a fork.
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), _begin_worker
    ) as pool:
        for future in concurrent.futures.as_completed([pool.submit(write_text, task) for task in open_tasks]):
            future.result()


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by the process that ran the generations"

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    # Killed, a parent tells its workers nothing, and they would wait for work for ever.
    threading.Thread(target=end_with_parent, daemon=True).start()


def _shards(task: TextTask) -> Path:
    return Path(task.out) / "tokens" / task.name


def write_text(task: TextTask) -> None:
    """Generate, filter and tokenize one text; goes on where a killed process stood.

    ValueError when the documents give fewer tokens than the round needs.
    """
    from lingua_synth.generate import build_engine, generate
    from lingua_synth.tokens import tokenize

    args, out = task.args, Path(task.out)
    recipe: Recipe = recipe_of(args)
    engine = build_engine("checkpoint", model=task.model, device=args.device)
    folder = out / "texts" / task.name
    while True:
        summary = generate(
            str(out / "documents" / "train.jsonl"),
            folder,
            recipe,
            engine,
            seed=task.seed,
            samples=args.samples,
            max_output_tokens=math.ceil(task.needed * MARGIN) + args.seq_len,
            shard_size=_shard_size(task.needed, recipe),
            progress=False,
        )
        if summary.is_complete:
            break
        time.sleep(0.5)  # a process of a killed call still writes its shard
    manifest = tokenize(
        str(folder / "documents-*.jsonl"), _shards(task), tokenizer_of(args), num_workers=1, progress=False
    )
    available = _trainable_tokens(manifest, args.seq_len)
    if available < task.needed:
        raise ValueError(
            f"the natural documents, {args.samples} times each, gave {available:,} tokens of text {task.name}, and the "
            f"round needs {task.needed:,}; give more documents, more samples, or a lower budget, in another out= folder"
        )


def _shard_size(needed: int, recipe: Recipe) -> int:
    """Documents of a shard: a round ends with a whole shard, so one is at most about an eighth of what is needed."""
    return max(32, min(512, needed // (8 * max(1, recipe.expected_output_tokens or 500))))


# --- training ---


def _train(args: GenerationsArgs, trainings: Sequence[Training], domains: Mapping[str, str], *, is_last: bool) -> None:
    from lingua_synth.study import LaunchArgs, launch

    runs = [run for training in trainings for run in _planned(args, training, domains, is_last)]
    launch(runs, LaunchArgs(num_workers=args.num_workers), folder=args.out, desc=f"round {trainings[0].round}")


def _planned(args: GenerationsArgs, training: Training, domains: Mapping[str, str], is_last: bool) -> list[PlannedRun]:
    """The student, and the generator where it is another model whose text is still to be used."""
    from lingua_synth.study import MixtureArgs, StudyArgs, StudySourceArgs, plan_study

    tokens = Path(args.out) / "tokens"
    sizes = [args.size]
    if args.generator and args.generator != args.size and not is_last and training.regime != CONTROL:
        sizes.append(args.generator)
    study = StudyArgs(
        out=args.out,
        sizes=sizes,
        budgets=[training.tokens],
        mixtures={training.mixture: MixtureArgs({name: str(share) for name, share in training.ratios.items()})},
        sources={
            name: StudySourceArgs(path=str(tokens / training.texts.get(name, NATURAL))) for name in training.ratios
        },
        seeds=[training.seed],
        train=_train_keys(args, domains),
    )
    runs = plan_study(study)
    assert {Path(run.args.dump_dir) for run in runs} == {training.run_folder(args.out, size) for size in sizes}
    return runs


def _train_keys(args: GenerationsArgs, domains: Mapping[str, str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    ours = {
        "data": {"seq_len": args.seq_len, "batch_size": args.batch_tokens // args.seq_len},
        "optim": {"lr": args.lr, "lr_min_ratio": 0.1},
        "checkpoint": {"dump": {"every": 0, "keep": 1}},
        "logging": {"freq": 16},
        "synth": {
            "warmup_ratio": 0.1,
            "global_batch_tokens": args.batch_tokens,
            "device": args.device,
            "evaluation": {"domains": dict(domains), "max_tokens_per_domain": args.evaluation_tokens},
        },
    }
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(ours), OmegaConf.create(dict(args.train))))
    assert isinstance(merged, dict), "two mappings merge to one"
    return {str(key): value for key, value in merged.items()}
