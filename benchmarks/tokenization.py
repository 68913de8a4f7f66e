"""jsonl to token shards beside Meta Lingua's loader and bare loops, in one run: `python benchmarks/tokenization.py`.

First the ids are compared. Then, in turn, round after round, each in a new process: the library's `tokenize` with the
tokenizers bytes, tiktoken, and tiktoken with its fast path (gigatoken), by one process and by all cores; the least
that a loop over the same files costs; Lingua's loader, which tokenizes while it reads; and the encoders alone.

Needs the project alone; what is not installed is left out with a line that says so. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from corpus import BYTES_PER_TOKEN, SOURCES, build_text, find_tokenizer, validate_text
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
)

from lingua_synth.tokens import Tokenizer
from lingua_synth.tokens.workers import count_cores

ENCODERS = ("tiktoken", "gigatoken", "tokenizers", "lingua_synth fast")
FLOOR_NAMES = {
    "tiktoken": "floor: orjson + tiktoken + numpy packing",
    "gigatoken": "floor: orjson + gigatoken + numpy packing",
}
LINGUA_NAME = "Meta Lingua's loader, one process"
FAST_NAME = "**lingua_synth**, tiktoken with gigatoken, 1 process"
FAST_ALL_CORES_NAME = "**lingua_synth**, tiktoken with gigatoken, all cores"


class Cases:
    """What is measured in each round; a case gives tokens, seconds (wall, cpu, and cpu of the start), and peak_mb."""

    def __init__(
        self,
        files: Sequence[str],
        small: Sequence[str],
        tokenizer: Tokenizer,
        work: Path,
        lingua: dict[str, Any] | None,
    ) -> None:
        self._files, self._small, self._work, self._lingua = files, small, work, lingua
        self._path = tokenizer.path
        self._has_llama3 = tokenizer.name == "tiktoken"

    def names(self) -> list[str]:
        """The cases that this machine can run, in order."""
        names = [f"**lingua_synth**, bytes, {how}" for how in ("1 process", "all cores")]
        if self._has_llama3:
            names += [f"**lingua_synth**, tiktoken, {how}" for how in ("1 process", "all cores")]
            names += [FLOOR_NAMES["tiktoken"]]
            if has("gigatoken"):
                names += [FAST_NAME, FAST_ALL_CORES_NAME, FLOOR_NAMES["gigatoken"]]
        return names if self._lingua is None else [*names, LINGUA_NAME]

    def run(self, name: str) -> dict[str, Any]:
        """One round of one case, in a new process. Raises LeftOut."""
        if name == LINGUA_NAME:
            with Worker(Path(__file__).with_name("readers.py"), ["lingua", json.dumps(self._lingua)]) as worker:
                worker.ask("open")
                read = worker.ask("read", seconds=3.0)
                return {**read, "start_cpu": 0.0, "peak_mb": worker.ask("memory")["resident"]}
        files = self._files if "gigatoken" in name or "bytes" in name else self._small
        with start_worker() as worker:
            for encoder, floor in FLOOR_NAMES.items():
                if name == floor:
                    return worker.ask("floor", files=files, encoder=encoder, path=self._path)
            uses_bytes = ", bytes," in name
            return worker.ask(
                "tokenize",
                files=files,
                out=tempfile.mkdtemp(dir=self._work, prefix="shards-"),
                name="bytes" if uses_bytes else "tiktoken",
                path=None if uses_bytes else self._path,
                fast="gigatoken" in name,
                num_workers=1 if name.endswith("1 process") else None,
            )


def start_worker() -> Worker:
    """A new process of encoders.py."""
    return Worker(Path(__file__).with_name("encoders.py"), [])


def has(package: str) -> bool:
    """Whether it is installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


# --- sections ---


def measure_identity(
    page: Page, goals: list[list[str]], files: Sequence[str], path: str, lingua_dir: str | None, every: int
) -> None:
    """Whose ids are the reference's."""
    with start_worker() as worker:
        found = worker.ask("identity", files=files, every=every, path=path, lingua_dir=lingua_dir)
    names = {
        "lingua_synth": "**lingua_synth**, tiktoken",
        "lingua_synth fast": "**lingua_synth**, tiktoken with gigatoken" if has("gigatoken") else "",
        "gigatoken": "gigatoken itself",
        "tokenizers": "Hugging Face tokenizers",
    }
    page.text("## Ids")
    page.text(
        f"Texts with the ids of {found['reference']}, of {found['texts']:,}: every {every}th document, and the "
        "library's set of hard texts."
    )
    page.table(
        ["", "equal", "differ"],
        [
            [names[name], f"{equal:,}", f"{found['texts'] - equal:,}"]
            for name, equal in found["equal"].items()
            if isinstance(equal, int) and names[name]
        ],
    )
    for name, equal in found["equal"].items():
        if not isinstance(equal, int):
            page.text(f"{name} is {equal}")
    ours = min(found["equal"][name] for name in ("lingua_synth", "lingua_synth fast"))
    goals.append(goal_line("ids", f"{ours:,} of {found['texts']:,}", "all equal", ours == found["texts"]))


def measure_cases(page: Page, goals: list[list[str]], cases: Cases, rounds: int) -> None:
    """From text to shards, or batches."""
    reads: dict[str, list[dict[str, Any]]] = {name: [] for name in cases.names()}
    for _ in range(rounds):
        for name in list(reads):
            try:
                reads[name].append(cases.run(name))
            except LeftOut as reason:
                page.text(f"{name} is left out: {reason}")
                del reads[name]
    per_cpu = {name: [r["tokens"] / r["cpu"] / 1e6 for r in found] for name, found in reads.items()}
    per_wall = {name: [r["tokens"] / r["wall"] / 1e6 for r in found] for name, found in reads.items()}
    behind_start = {
        name: [r["tokens"] / (r["cpu"] - r["start_cpu"]) / 1e6 for r in found]
        for name, found in reads.items()
        if all(r["start_cpu"] is not None for r in found)
    }
    lingua = behind_start.get(LINGUA_NAME)

    def against_lingua(name: str) -> str:
        if lingua is None or name not in behind_start or ", bytes," in name:
            return "-"
        return f"{ratio(behind_start[name], lingua):.1f}"

    page.text("## From jsonl to tokens")
    page.text(
        f"Whole runs in new processes, from loading the vocabulary to the last file, {rounds} rounds in turn: median "
        "(smallest-largest). CPU-seconds are of all processes of a run together. Start: until the tokenizer is ready, "
        "checks included (for all cores together once, on Linux); the columns behind it count without it. "
        "The library also shuffles, checks, "
        "hashes and writes shards to disk; the floors and Lingua's loader write nothing, and of Lingua only reading is "
        f"counted, not its start. All cores: {count_cores()}. What takes long runs on part of the files (Mtok)."
    )
    page.table(
        ["", "Mtok", "Mtok/CPU-s", "Mtok/s", "start CPU-s", "Mtok/CPU-s without", "x Lingua", "peak MB"],
        [
            [
                name,
                f"{found[0]['tokens'] / 1e6:,.1f}",
                spread(per_cpu[name]),
                spread(per_wall[name]),
                "-" if name not in behind_start else f"{median(r['start_cpu'] for r in found):.2f}",
                "-" if name not in behind_start else spread(behind_start[name]),
                against_lingua(name),
                f"{max(r['peak_mb'] for r in found):,.0f}",
            ]
            for name, found in reads.items()
        ],
    )
    if FAST_NAME in behind_start and FAST_ALL_CORES_NAME in per_cpu:
        rate = median(per_cpu[FAST_NAME])
        goals.append(goal_line("jsonl to shards, the whole run", f"{rate:.1f} Mtok/CPU-s", ">= 10", rate >= 10))
        rate = median(per_cpu[FAST_ALL_CORES_NAME])
        goals.append(goal_line("the same on all cores", f"{rate:.1f} Mtok/CPU-s", ">= 10", rate >= 10))
        if lingua is not None:
            times = ratio(behind_start[FAST_NAME], lingua)
            goals.append(goal_line("against Meta Lingua's loader", f"x {times:.1f}", ">= x 8", times >= 8))


def measure_encoders(page: Page, files: Sequence[str], path: str, rounds: int) -> None:
    """The encoders alone."""
    rows, million = [], 0.0
    for name in ENCODERS:
        try:
            with start_worker() as worker:
                found = worker.ask("encode", files=files, encoder=name, path=path, rounds=rounds)
        except LeftOut as reason:
            page.text(f"{name} alone is left out: {reason}")
            continue
        million = found["tokens"] / 1e6
        rows.append(
            [
                "**lingua_synth**'s encode_flat, fast path" if name.startswith("lingua_synth") else name,
                f"{found['built']:.2f}",
                f"{million / found['first']:,.1f}",
                spread([million / seconds for seconds in found["later"]]),
            ]
        )
    page.text("## Encoders alone")
    page.text(
        f"Texts in memory, {million:.1f} Mtok, 64 documents a call, one thread. Built: CPU-seconds until ready, with "
        "its checks. gigatoken remembers words: its first pass is what a corpus without repetition gets at the start."
    )
    page.table(["", "built, CPU-s", "first pass, Mtok/CPU-s", "later passes, Mtok/CPU-s"], rows)


# --- the command ---


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments; a mistake ends with a message and exit code 2."""
    parser = argparse.ArgumentParser(prog="benchmarks/tokenization.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", default=str(ROOT / "build" / "benchmarks"), help="folder of the corpus; kept")
    parser.add_argument("--corpus", help="folder with long/*.jsonl and short/*.jsonl instead of the built-in text")
    parser.add_argument("--mtok", type=float, default=128.0, help="size of the built-in corpus, million Llama-3 tokens")
    parser.add_argument("--tokenizer", help="Llama 3's rank file; default: of the package llama-models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=20, help="compare the ids of every so many-th document")
    parser.add_argument("--out", metavar="FILE.md", help="write the page there as well")
    args = parser.parse_args(argv)
    at_least(parser, args, rounds=1, every=1, mtok=0.01)
    return args


def main(argv: Sequence[str]) -> int:
    """Measure and print; exit code 2 for bad input, 1 for ids that differ."""
    args = parse(argv)
    lingua_dir = os.environ.get("LINGUA_DIR")
    work = Path(args.work)
    try:
        if lingua_dir and not (Path(lingua_dir) / "lingua" / "data.py").exists():
            raise ValueError(f"LINGUA_DIR={lingua_dir} is no checkout of Meta Lingua: it has no lingua/data.py")
        tokenizer, said = find_tokenizer(args.tokenizer)
        if args.corpus is None:
            text, of_text = build_text(work, int(args.mtok * 1e6 * BYTES_PER_TOKEN["tiktoken"]))
        else:
            text, of_text = Path(args.corpus), validate_text(Path(args.corpus))
    except ValueError as error:
        print(f"benchmarks/tokenization.py: {error}", file=sys.stderr)
        return 2
    page = Page("From jsonl to token shards, beside Meta Lingua's loader")
    page.text(*origin(public_arguments(argv)))
    page.text(f"Corpus: {of_text}; tokenizer {said}.")
    by_source = [sorted(map(str, (text / name).glob("*.jsonl"))) for name in SOURCES]
    files = [file for found in by_source for file in found]
    small = [found[0] for found in by_source]
    path = tokenizer.path
    lingua = None
    if lingua_dir and path:
        lingua = {
            "folder": str(work),
            "sources": list(SOURCES),
            "ratios": ["2/3", "1/3"],
            "seq_len": 4096,
            "batch": 4,
            "lingua_dir": lingua_dir,
            "text": str(text),
            "tokenizer": {"name": "tiktoken", "path": path, "add_bos_eos": True},
        }
    elif not lingua_dir:
        page.text("Meta Lingua is left out: LINGUA_DIR names no checkout.")
    if path and not has("gigatoken"):
        page.text("The fast path is left out: gigatoken is not installed.")
    start = time.perf_counter()
    goals: list[list[str]] = []
    work.mkdir(parents=True, exist_ok=True)
    if path:
        measure_identity(page, goals, files, path, lingua_dir, args.every)
    measure_cases(page, goals, Cases(files, small, tokenizer, work, lingua), args.rounds)
    if path:
        measure_encoders(page, small, path, args.rounds)
    if goals:
        page.goals(goals)
    of_lingua = f"Beside {describe_lingua(lingua_dir)}. " if lingua_dir else ""
    page.end(start, args.out, of_lingua)
    return 1 if any(goal[0] == "ids" and goal[-1] != "met" for goal in goals) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
