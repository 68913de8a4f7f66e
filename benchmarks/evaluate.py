"""Evaluation beside a plain forward pass, in one run: `python benchmarks/evaluate.py`; see README.md for every column.

    even      documents of exactly one window: nothing to pad, so all that differs from a forward pass is bookkeeping
    mixed     documents of all lengths, beside the loop that people write first, and lm-evaluation-harness if installed

Needs the project with its extra `train`. Texts are random letters: speed does not depend on what they mean.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from answering import answer_all, failure, take_output
from measure import ROOT, LeftOut, Page, Worker, at_least, goal_line, origin, public_arguments, ratio, spread, versions

from lingua_synth.documents import Document
from lingua_synth.evaluate.protocol import build_protocol
from lingua_synth.evaluate.scoring import Evaluator
from lingua_synth.model import preset
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize

SEQ_LEN = 256
LEAST = 0.9
TITLES = {"even": "Documents of one window", "mixed": "Documents of all lengths"}


@dataclass(frozen=True)
class Case:
    """One model on one kind of documents."""

    size: str
    dtype: str
    texts: str
    """even or mixed."""
    num_tokens: int
    batch_tokens: int
    device: str


def make_shards(case: Case, work: Path) -> TokenSource:
    """Shards of random letters; written once."""
    random = np.random.default_rng(0)
    lengths = []
    while sum(lengths) < case.num_tokens:
        lengths.append(SEQ_LEN if case.texts == "even" else int(np.clip(random.lognormal(5.0, 1.0), 2, 4000)))
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     ", dtype=np.uint8)
    documents = [
        Document(str(i), "a" + letters[random.integers(0, len(letters), n - 1)].tobytes().decode())
        for i, n in enumerate(lengths)
    ]
    folder = work / f"letters-{case.texts}-{case.num_tokens}"
    tokenize(documents, folder, build_tokenizer("bytes"), progress=False)
    return TokenSource(folder)


def make_model(case: Case) -> Any:
    """The model, drawn from a seed."""
    import dataclasses

    import torch

    from lingua_synth.model import build_model

    args = dataclasses.replace(preset(case.size), vocab_size=258, max_seqlen=SEQ_LEN)
    dtype = torch.bfloat16 if case.dtype == "bf16" else torch.float32
    return build_model(args, seed=0, compute_dtype=dtype).to(case.device).eval()


# --- what is measured: each makes ready once, and gives a function that scores all texts and returns the nats ---


def ours(case: Case, work: Path) -> Callable[[], float]:
    """This library's evaluation, its windows packed before (as in a training run, from the second time on)."""
    model, source = make_model(case), make_shards(case, work)
    protocol = build_protocol("disjoint", seq_len=SEQ_LEN)
    evaluator = Evaluator({"letters": source}, protocol, batch_tokens=case.batch_tokens)
    return lambda: evaluator.score(model).sums["letters"].nats


def ours_from_shards(case: Case, work: Path) -> Callable[[], float]:
    """The same with everything that the first time needs: documents read, cut, sorted and packed."""
    model, source = make_model(case), make_shards(case, work)
    protocol = build_protocol("disjoint", seq_len=SEQ_LEN)

    def score() -> float:
        evaluator = Evaluator({"letters": source}, protocol, batch_tokens=case.batch_tokens)
        return evaluator.score(model).sums["letters"].nats

    return score


def plain(case: Case, work: Path) -> Callable[[], float]:
    """Windows in the order of the documents, `batch_tokens` / 256 rows a batch, padded to the longest of them; the
    batches lie in memory."""
    import torch
    import torch.nn.functional as F

    model, source = make_model(case), make_shards(case, work)
    windows = []
    for i in range(source.num_documents):
        ids = source.document(i)[:-1].astype(np.int64)  # BOS, then the text
        windows += [ids[start : start + SEQ_LEN + 1] for start in range(0, len(ids) - 1, SEQ_LEN)]
    batches = []
    rows = max(1, case.batch_tokens // SEQ_LEN)
    for start in range(0, len(windows), rows):
        chosen = windows[start : start + rows]
        block = np.full((len(chosen), max(map(len, chosen))), -100)
        for row, window in zip(block, chosen, strict=True):
            row[: len(window)] = window
        batches.append(torch.from_numpy(block).to(case.device))

    @torch.no_grad()
    def score() -> float:
        nats = 0.0
        for block in batches:
            logits = model(block[:, :-1].clamp(min=0)).float()
            nats += float(F.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten(), reduction="sum"))
        return nats

    return score


def harness(case: Case, work: Path) -> Callable[[], float]:
    """lm-evaluation-harness's rolling log-likelihood on the exported model."""
    import shutil

    import torch

    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise LeftOut(f"{error.name} is not installed") from None
    from lingua_synth.files import write_json
    from lingua_synth.model.huggingface import export_huggingface

    model, source = make_model(case), make_shards(case, work)
    folder = work / f"export-{os.getpid()}"
    (folder / "model").mkdir(parents=True)
    try:
        torch.save({"model": model.state_dict()}, folder / "model" / "consolidated.pth")
        params = {"model": model.args.__dict__, "data": {"tokenizer": {"name": "bytes"}}}
        write_json(folder / "model" / "params.json", params)
        export_huggingface(folder / "model", folder / "hf", dtype="fp32")
        dtype = "bfloat16" if case.dtype == "bf16" else "float32"
        rows = max(1, case.batch_tokens // SEQ_LEN)
        theirs = HFLM(
            pretrained=str(folder / "hf"), device=case.device, dtype=dtype, batch_size=rows, add_bos_token=False
        )
    finally:
        shutil.rmtree(folder)
    tokenizer = build_tokenizer("bytes")
    texts = [tokenizer.decode(source.document(i).tolist()) for i in range(source.num_documents)]
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=i) for i, text in enumerate(texts)
    ]
    return lambda: -sum(theirs.loglikelihood_rolling(requests, disable_tqdm=True))


WHAT = {"ours": ours, "from shards": ours_from_shards, "plain": plain, "harness": harness}


def worker_main(what: str, described: str, work: str) -> int:
    """One of them in this process, as often as asked."""
    case = Case(**json.loads(described))
    say = take_output()
    try:
        import torch

        from lingua_synth.train.host_memory import keep_freed_memory

        if case.device == "cpu":
            torch.set_num_threads(1)
            keep_freed_memory()  # for all of them alike
        score = WHAT[what](case, Path(work))
        nats = score()  # what only the first time pays
        say({"nats": nats})
        clock = time.perf_counter if case.device == "cuda" else time.process_time

        def seconds(_: str) -> dict[str, float]:
            start = clock()
            score()
            return {"seconds": clock() - start}

        answer_all(say, seconds)
    except LeftOut as error:
        say({"error": str(error)})
    except Exception as error:
        say(failure(error))
    return 0


def measure(
    page: Page, goals: list[list[str]], cases: Sequence[Case], work: Path, rounds: int, with_harness: bool
) -> None:
    """All of them in turn, a table for each kind of documents."""
    for kind, title in TITLES.items():
        if not any(one.texts == kind for one in cases):
            continue
        page.text(f"## {title}")
        rows = []
        for case in [one for one in cases if one.texts == kind]:
            names = ["plain", "ours", "from shards"] + ["harness"] * (kind == "mixed" and with_harness)
            rates, nats = _in_turn(page, case, names, work, rounds)
            for name in ("from shards", "plain"):
                assert abs(nats[name] / nats["ours"] - 1) < 1e-3, f"{name} scores the same tokens: {nats}"
            shown = f"x {ratio(rates['ours'], rates['plain']):.3f}"
            first = f"x {ratio(rates['from shards'], rates['plain']):.3f}"
            cells = [spread(rates["plain"]), spread(rates["ours"]), shown, first]
            if kind == "mixed":
                cells.append(f"x {ratio(rates['ours'], rates['harness']):.2f}" if "harness" in rates else "-")
            label = f"{case.size}, {case.dtype}"
            rows.append([label, *cells])
            is_met = ratio(rates["ours"], rates["plain"]) >= LEAST
            goals.append(goal_line(f"{label}, {title.lower()}", shown, f">= x {LEAST}", is_met))
        unit = "Ktok/s" if cases[0].device == "cuda" else "Ktok/CPU-s"
        head = ["", f"plain, {unit}", f"lingua_synth, {unit}", "ratio", "ratio, first time"]
        page.table(head + ["against lm-eval"] * (kind == "mixed"), rows)


def _in_turn(
    page: Page, case: Case, names: Sequence[str], work: Path, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Rates in thousands of scored tokens a second by name, and the nats that each found. A process each: what one
    asks of the allocator must not serve the other."""
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            try:
                workers[name] = Worker(Path(__file__), ["--worker", name, json.dumps(case.__dict__), str(work)])
            except LeftOut as reason:
                page.text(f"{name} is left out: {str(reason).splitlines()[0][:100]}")
        num_tokens = _num_scored(case, work)
        rates: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                rates[name].append(num_tokens / worker.ask("score")["seconds"] / 1e3)
        return rates, {name: worker.started["nats"] for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


def _num_scored(case: Case, work: Path) -> int:
    source = make_shards(case, work)
    return source.num_tokens - 2 * source.num_documents


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments; a mistake ends with a message and exit code 2."""
    parser = argparse.ArgumentParser(prog="benchmarks/evaluate.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", default=str(ROOT / "build" / "benchmarks"), help="folder of the random shards; kept")
    parser.add_argument("--sizes", default="nano-107k,nano-332k")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--texts", default="even,mixed", help="kinds of documents")
    parser.add_argument("--without-harness", action="store_true", help="leave lm-evaluation-harness out")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens of each kind of documents")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="places of a batch, of all that are compared")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", metavar="FILE.md", help="write the page there as well")
    args = parser.parse_args(argv)
    for name in args.sizes.split(","):
        try:
            preset(name)
        except ValueError as error:
            parser.error(str(error))
    for option, known in (("dtypes", ("fp32", "bf16")), ("texts", tuple(TITLES))):
        for name in getattr(args, option).split(","):
            if name not in known:
                parser.error(f"--{option} is of {' and '.join(known)}, got {name!r}")
    at_least(parser, args, rounds=1, tokens=1000, batch_tokens=SEQ_LEN)
    return args


def main(argv: Sequence[str]) -> int:
    """Measure and print; exit code 2 for bad input."""
    if argv[:1] == ["--worker"]:
        return worker_main(*argv[1:])
    args = parse(argv)
    import torch

    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    page = Page("Evaluation beside a plain forward pass")
    page.text(*origin(public_arguments(argv)), f"- {versions('torch', 'lm_eval', 'transformers')}")
    page.text(
        f"Loss per token of random texts, bytes as vocabulary, windows of {SEQ_LEN}, batches of {args.batch_tokens:,} "
        f"places, on {device}. Plain: batches that lie in memory, the same model, `F.cross_entropy`, one sum over "
        "everything. lingua_synth: sums by domain, document and token id. First time: with the documents read from "
        f"shards, cut, sorted and packed. Each in a process of its own with one thread, {args.rounds} rounds in turn: "
        "median (smallest-largest) of 10^3 scored tokens; a ratio is the median of the rounds' ratios."
    )
    start = time.perf_counter()
    goals: list[list[str]] = []
    cases = [
        Case(size, dtype, texts, args.tokens, args.batch_tokens, device)
        for texts in args.texts.split(",")
        for size in args.sizes.split(",")
        for dtype in args.dtypes.split(",")
    ]
    measure(page, goals, cases, work, args.rounds, not args.without_harness)
    page.goals(goals)
    page.end(start, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
