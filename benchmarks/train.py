"""The training loop beside others, in one run: `python benchmarks/train.py`; see README.md for every column.

    plain     this library's loop and a plain PyTorch loop over the same model and batches, on this machine's device
    presets   on a GPU: tokens/s, MFU and memory of the paper's sizes, beside Meta Lingua's own loop where LINGUA_DIR
              names a checkout

Needs the project with its extra `train`. Token ids are random: speed does not depend on what they mean.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from answering import Say, answer_all, failure, take_output
from measure import (
    ROOT,
    LeftOut,
    Page,
    Worker,
    at_least,
    describe_lingua,
    goal_line,
    origin,
    public_arguments,
    ratio,
    spread,
    versions,
)

from lingua_synth.config import build_args
from lingua_synth.files import write_json
from lingua_synth.model import preset
from lingua_synth.model.counts import FLOPS_FORMULA, flops_per_token
from lingua_synth.tokens.shards import FORMAT, MANIFEST, VERSION, shard_name, write_shard
from lingua_synth.train.args import TrainArgs
from lingua_synth.train.metrics import read_metrics

LLAMA3_WORDS = 128_256
# Causal MFU in percent of the dense bf16 peak that a run at 4096 tokens should reach, by size.
GOALS = {
    "A100": {"100M": 46, "200M": 50, "500M": 57, "1B": 62, "2B": 63, "3B": 64},
    "H200": {"100M": 38, "200M": 42, "500M": 46, "1B": 50, "2B": 52, "3B": 53},
}


def random_shards(folder: Path, num_words: int, num_tokens: int) -> str:
    """Token shards of random ids, one document; written once."""
    if not (folder / MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        dtype = np.uint16 if num_words <= 2**16 else np.uint32
        ids = np.random.default_rng(0).integers(0, num_words, num_tokens).astype(dtype)
        entry = write_shard(folder / shard_name(0), ids, np.array([0, num_tokens]), [num_tokens], ["random"])
        tokenizer = {"name": "random", "path": None, "sha256": f"random {num_words}", "n_words": num_words}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": tokenizer | {"bos_id": 0, "eos_id": 1},
            "add_bos": False,
            "add_eos": False,
            "dtype": np.dtype(dtype).name,
            "documents": 1,
            "tokens": num_tokens,
            "bytes": num_tokens,
            "files": [entry],
        }
        write_json(folder / MANIFEST, manifest)
    return str(folder)


@dataclass(frozen=True)
class Case:
    """One training to measure."""

    size: str
    dtype: str
    seq_len: int
    batch_size: int
    grad_acc_steps: int
    num_words: int
    compile: bool
    device: str

    @property
    def tokens_per_step(self) -> int:
        return self.seq_len * self.batch_size * self.grad_acc_steps

    def config(self, work: Path, dump_dir: Path, steps: int) -> TrainArgs:
        """Its run of `steps` steps in this library."""
        most = 1 << 24
        shards = random_shards(work / f"random-{self.num_words}", self.num_words, most)
        sources = {"random": {"path": shards, "ratio": "1", "max_epochs": 1e6}}
        values = {
            "name": self.size,
            "dump_dir": str(dump_dir),
            "steps": steps,
            "grad_acc_steps": self.grad_acc_steps,
            "data": {"seq_len": self.seq_len, "batch_size": self.batch_size},
            "optim": {"warmup": 1, "scheduler": "constant"},
            "distributed": {"model_dtype": self.dtype, "compile": self.compile},
            "checkpoint": {"dump": {"every": 0}},
            "logging": {"freq": 5},
            "synth": {"preset": self.size, "sources": sources, "device": self.device},
        }
        return build_args(TrainArgs, values)


# --- this library's loop and a plain one, step for step ---


def run_ours(case: Case, work: Path, steps: int) -> list[dict[str, Any]]:
    """Train `steps` steps with this library; its lines of metrics."""
    from lingua_synth.train import train

    with tempfile.TemporaryDirectory(dir=work) as folder:
        train(case.config(work, Path(folder) / "run", steps), progress=False)
        return read_metrics(Path(folder) / "run" / "metrics.jsonl")


def run_plain(case: Case, work: Path, steps: int) -> None:
    """The same model on batches that lie in memory: forward, backward, clip, update, and nothing else."""
    import torch

    from lingua_synth.model import build_model
    from lingua_synth.train.args import resolve_args

    args = resolve_args(case.config(work, work / "none", steps), dp_size=1, vocab_size=case.num_words)
    dtype = torch.bfloat16 if case.dtype == "bf16" else torch.float32
    model = build_model(args.model, seed=0, compute_dtype=dtype).to(case.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    shape = (16, case.batch_size, case.seq_len + 1)
    blocks = torch.from_numpy(np.random.default_rng(0).integers(0, case.num_words, shape)).to(case.device)
    for step in range(steps):
        for micro_step in range(case.grad_acc_steps):
            block = blocks[(step * case.grad_acc_steps + micro_step) % 16]
            (model(block[:, :-1], block[:, 1:]).mean() / case.grad_acc_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if case.device == "cuda":
        torch.cuda.synchronize()


def seconds_per_step(run: Callable[[Case, Path, int], Any], case: Case, work: Path, few: int, many: int) -> float:
    """CPU-seconds (on a GPU: seconds) of one step: a long run less a short one, so that starts and ends cancel out."""
    clock = time.perf_counter if case.device == "cuda" else time.process_time
    spent = []
    for steps in (few, many):
        start = clock()
        run(case, work, steps)
        spent.append(clock() - start)
    return (spent[1] - spent[0]) / (many - few)


def measure_plain(
    page: Page, goals: list[list[str]], cases: Sequence[Case], work: Path, rounds: int, steps: int
) -> None:
    """Both loops in turn."""
    rows = []
    unit = "Ktok/s" if cases[0].device == "cuda" else "Ktok/CPU-s"
    for case in cases:
        ours, plain = [], []
        told = [json.dumps(case.__dict__), str(work)]
        # A process each: what one asks of the allocator must not serve the other.
        with (
            Worker(Path(__file__), ["--worker", "plain", *told]) as plain_process,
            Worker(Path(__file__), ["--worker", "loop", *told]) as our_process,
        ):
            for _ in range(rounds):
                for process, rates in ((plain_process, plain), (our_process, ours)):
                    seconds = process.ask("seconds_per_step", few=5, many=steps)["seconds"]
                    rates.append(case.tokens_per_step / seconds / 1e3)
            waiting = our_process.ask("waiting", steps=steps)["share"]
        shown = f"x {ratio(ours, plain):.3f}"
        rows.append([f"{case.size}, {case.dtype}", spread(plain), spread(ours), shown, f"{waiting:.2%}"])
        name = f"{case.size}, {case.dtype}"
        goals.append(goal_line(f"{name}: against the plain loop", shown, ">= x 0.97", ratio(ours, plain) >= 0.97))
        goals.append(goal_line(f"{name}: waiting for data", f"{waiting:.2%}", "< 1 % of a step", waiting < 0.01))
    page.text("## This library's loop and a plain one")
    page.text(
        f"The same model ({cases[0].seq_len} tokens a sequence, {cases[0].batch_size} sequences a batch, on "
        f"{cases[0].device}); the plain loop reads batches that lie in memory and logs, guards, saves and measures "
        f"nothing. Each in a process of its own with one thread. {rounds} rounds in turn: median (smallest-largest). "
        f"{unit} = 10^3 tokens, of one step: a run of {steps} steps less one of 5. Waiting for data: of the loop's own "
        "log. On a CPU the loop has malloc keep what a step frees (`train/host_memory.py`), which the plain loop, as "
        "people write it, does not."
    )
    page.table(["", f"plain, {unit}", f"lingua_synth, {unit}", "ratio", "waiting for data"], rows)


# --- the paper's sizes on a GPU ---


def measure_presets(
    page: Page, goals: list[list[str]], cases: Sequence[Case], work: Path, lingua_dir: str | None
) -> None:
    """Each size in a process of its own, this library's loop and Meta Lingua's after each other."""
    page.text("## The paper's sizes on a GPU")
    import torch

    if not torch.cuda.is_available():
        page.text("Not measured: this machine has no GPU that PyTorch can use.")
        return
    device = torch.cuda.get_device_name()
    rows = []
    for case in cases:
        ours = _in_a_process("ours", case, work)
        theirs = _in_a_process("lingua", case, work) if lingua_dir else {}
        of = flops_per_token(preset(case.size), case.seq_len)
        rate = ours.get("rate")
        faster = f"x {rate / theirs['rate']:.2f}" if rate and theirs.get("rate") else "-"
        rows.append(
            [
                case.size,
                str(case.batch_size),
                f"{rate:,.0f}" if rate else ours["error"],
                f"{ours['mfu']:.1%}" if ours.get("mfu") else "-",
                f"{ours['gib']:.1f}" if rate else "-",
                f"{theirs['rate']:,.0f}" if theirs.get("rate") else theirs.get("error", "-"),
                f"{theirs['gib']:.1f}" if theirs.get("rate") else "-",
                faster,
                f"{of / 1e9:.2f}",
            ]
        )
        goal = next((found for name, found in GOALS.items() if name in device), {}).get(case.size)
        if goal and ours.get("mfu"):
            goals.append(
                goal_line(f"{case.size}: MFU", f"{ours['mfu']:.1%}", f">= {goal} %", 100 * ours["mfu"] >= goal)
            )
        if case.size == "1B" and rate and theirs.get("rate"):
            goals.append(goal_line("1B: against Lingua", faster, ">= x 1.15", rate / theirs["rate"] >= 1.15))
    page.text(
        f"{device}, one GPU, {cases[0].seq_len} tokens a sequence, bf16, compiled, {cases[0].grad_acc_steps} "
        f"micro-batches a step, vocabulary {LLAMA3_WORDS:,}; medians behind the first 20 steps. MFU = tokens/s x FLOPs "
        f"per token / dense bf16 peak, FLOPs per token = {FLOPS_FORMULA}. Lingua: its own loop and model on random "
        "batches that cost it nothing."
    )
    head = ["", "batch", "tok/s/GPU", "MFU", "GiB", "Lingua tok/s/GPU", "Lingua GiB", "against Lingua", "GFLOP/token"]
    page.table(head, rows)


def _in_a_process(what: str, case: Case, work: Path) -> dict[str, Any]:
    arguments = ["--worker", what, json.dumps(case.__dict__), str(work)]
    try:
        with Worker(Path(__file__), arguments) as worker:
            return worker.started
    except LeftOut as error:
        return {"error": str(error).splitlines()[0][:60]}


def _summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rate, MFU and memory of the lines behind the first 20 steps."""
    settled = [line for line in lines if line["global_step"] > 20]
    found: dict[str, Any] = {
        "rate": median(line["speed/wps"] for line in settled),
        "gib": max(line["memory/max_active_gib"] for line in lines),
    }
    if all("speed/mfu" in line for line in settled):
        found["mfu"] = median(line["speed/mfu"] for line in settled)
    return found


def train_in_lingua(case: Case, work: Path, steps: int) -> list[dict[str, Any]]:
    """Meta Lingua's own `train` with its loader replaced by random batches; its lines of metrics."""
    import contextlib

    sys.path.insert(0, os.environ["LINGUA_DIR"])
    import apps.main.train as upstream
    from omegaconf import OmegaConf

    shape = (case.batch_size, case.seq_len, 2)
    batches = np.random.default_rng(0).integers(0, case.num_words, (8, *shape))

    @contextlib.contextmanager
    def loader(args: Any, state: Any = None) -> Any:
        yield ((batches[i % 8], {}) for i in iter(range(10**9)))

    names = {"init_dataloader_state_from_args": lambda *args: {}, "build_dataloader_from_args": loader}
    for name, value in names.items():
        assert hasattr(upstream, name), f"this Lingua has no {name}"
        setattr(upstream, name, value)
    upstream.PackTokensState = dict
    upstream.build_tokenizer = lambda name, path: type("Random", (), {"n_words": case.num_words})()
    shape_of = preset(case.size)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        config = {
            "dump_dir": str(Path(folder) / "run"),
            "steps": steps,
            "grad_acc_steps": case.grad_acc_steps,
            "data": {"seq_len": case.seq_len, "batch_size": case.batch_size},
            "optim": {"warmup": 1, "scheduler": "constant"},
            "model": {"dim": shape_of.dim, "n_layers": shape_of.n_layers, "n_heads": shape_of.n_heads},
            "distributed": {"model_dtype": case.dtype, "compile": case.compile},
            "checkpoint": {"dump": {"every": 10**9}, "eval": {"every": 10**9}},
            "logging": {"freq": 5},
            "profiling": {"run": False},
        }
        merged = OmegaConf.merge(OmegaConf.structured(upstream.TrainArgs()), OmegaConf.create(config))
        upstream.train(OmegaConf.to_object(merged))
        return read_metrics(Path(folder) / "run" / "metrics.jsonl")


def worker_main(what: str, described: str, work: str) -> int:
    """One training in this process; answers with one line of JSON. For `plain` and `loop`, one line a question."""
    case = Case(**json.loads(described))
    say = take_output()
    try:
        if what in ("plain", "loop"):
            answer_questions(what, case, Path(work), say)
        else:
            say(_summary((run_ours if what == "ours" else train_in_lingua)(case, Path(work), 40)))
    except Exception as error:
        say(failure(error))
    return 0


def answer_questions(what: str, case: Case, work: Path, say: Say) -> None:
    """Measure one of the two loops as often as asked."""
    import torch

    if case.device == "cpu":
        torch.set_num_threads(1)
    run: Callable[[Case, Path, int], Any] = run_plain if what == "plain" else run_ours
    run(case, work, 5)  # what only the first run in a process pays
    say({})

    def answer(command: str, **asked: int) -> dict[str, float]:
        if command == "waiting":
            lines = run_ours(case, work, asked["steps"])[1:]
            return {"share": median(one["speed/data_load_time"] / one["speed/curr_iter_time"] for one in lines)}
        return {"seconds": seconds_per_step(run, case, work, asked["few"], asked["many"])}

    answer_all(say, answer)


# --- the command ---


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments; a mistake ends with a message and exit code 2."""
    parser = argparse.ArgumentParser(prog="benchmarks/train.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", default=str(ROOT / "build" / "benchmarks"), help="folder of the random shards; kept")
    parser.add_argument("--plain", default="nano-107k,nano-332k", help="sizes beside the plain loop")
    parser.add_argument("--sizes", default="100M,200M,500M,1B,2B,3B", help="sizes on a GPU")
    parser.add_argument("--batch", type=int, default=4, help="sequences a micro-batch on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=105, help="steps of the long runs beside the plain loop")
    parser.add_argument("--out", metavar="FILE.md", help="write the page there as well")
    args = parser.parse_args(argv)
    for name in [*args.plain.split(","), *args.sizes.split(",")]:
        try:
            preset(name)
        except ValueError as error:
            parser.error(str(error))
    at_least(parser, args, rounds=1, batch=1, steps=10)
    return args


def main(argv: Sequence[str]) -> int:
    """Measure and print; exit code 2 for bad input."""
    if argv[:1] == ["--worker"]:
        return worker_main(*argv[1:])
    args = parse(argv)
    lingua_dir = os.environ.get("LINGUA_DIR")
    if lingua_dir and not (Path(lingua_dir) / "apps" / "main" / "train.py").exists():
        print(f"benchmarks/train.py: LINGUA_DIR={lingua_dir} is no checkout of Meta Lingua", file=sys.stderr)
        return 2
    import torch

    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    page = Page("The training loop beside others")
    page.text(*origin(public_arguments(argv)), f"- {versions('torch', 'xformers', 'triton')}")
    start = time.perf_counter()
    goals: list[list[str]] = []
    plain = [
        Case(size, dtype, 256, 8, 1, 1024, False, device)
        for size in args.plain.split(",")
        for dtype in ("fp32", "bf16")
    ]
    measure_plain(page, goals, plain, work, args.rounds, args.steps)
    on_gpu = [Case(size, "bf16", 4096, args.batch, 8, LLAMA3_WORDS, True, "cuda") for size in args.sizes.split(",")]
    measure_presets(page, goals, on_gpu, work, lingua_dir)
    page.goals(goals)
    of_lingua = f"Beside {describe_lingua(lingua_dir)}. " if lingua_dir and device == "cuda" else ""
    page.end(start, args.out, of_lingua)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
