"""The mixture loader beside its peers, in one run: `python benchmarks/loader.py`; see README.md for every column.

    rates       pre-tokenized batches: the floors, the loader, grain, Megatron core, litdata, MosaicML Streaming
    resume      the first batch after opening and after a resume, near and far; the state's size
    start       opening for a run of 100B tokens; private memory of a rank
    schedules   positions per second, and how far each rule runs off its shares
    shares      asked 2/3 : 1/3 of long and short documents, delivered by the loader and by Meta Lingua's own

Needs the project alone; a peer that is not installed, here or with the interpreter that `--python` names for it, is
left out with a line that says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import mmap
import os
import sys
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from corpus import SOURCES, Corpus, build_corpus
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
from rules import greedy_order, integer_order, random_order, worst_deviation

from lingua_synth.files import atomic_folder
from lingua_synth.mixture import MixtureLoader, Schedule, StrictSchedule

RATIOS = {"long": "2/3", "short": "1/3"}
SEQ_LEN, BATCH = 4096, 4
SECTIONS = ("rates", "resume", "start", "schedules", "shares")
FLOORS = ("contiguous", "exact-mix")
OURS = ("ours", "ours-prefetch")
PEERS = ("grain", "grain-threads", "megatron", "litdata", "mosaicml")
# The reader whose files another one reads too.
SAME_INSTALLATION = {"grain-threads": "grain", "lingua-1024": "lingua"}
NAMES = {
    "contiguous": "floor: contiguous read",
    "exact-mix": "floor: exact mix, random windows",
    "ours": "**lingua_synth**",
    "ours-prefetch": "**lingua_synth**, prefetch 8",
    "grain": "grain, no threads",
    "grain-threads": "grain, default threads",
    "megatron": "Megatron core",
    "litdata": "litdata",
    "mosaicml": "MosaicML Streaming",
    "lingua": "Meta Lingua, buffer 64",
    "lingua-1024": "Meta Lingua, buffer 1024",
}
# 100B tokens in sequences of 4096, a multiple of the batch.
LONG_RUN = 24_414_064
POSITIONS = (0, 10**6, 10**9)
READ_SECONDS = 0.3
MARKS = (10**6, 10**7, 3 * 10**7)


@dataclasses.dataclass
class Bench:
    """What every section needs."""

    args: argparse.Namespace
    corpus: Corpus
    page: Page
    pythons: Mapping[str, str]
    lingua_dir: str | None
    goals: list[list[str]] = dataclasses.field(default_factory=list)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def worker(self, name: str, **changes: Any) -> Worker:
        """A new process with that reader, its data converted. Raises LeftOut."""
        home = SAME_INSTALLATION.get(name, name)
        described = {
            "folder": str(self.corpus.folder),
            "converted": str(self._converted(home)),
            "sources": list(SOURCES),
            "ratios": list(RATIOS.values()),
            "seq_len": self.args.seq_len,
            "batch": BATCH,
            "lingua_dir": self.lingua_dir,
            "text": str(self.corpus.text),
            "tokenizer": {
                "name": self.corpus.tokenizer.name,
                "path": self.corpus.tokenizer.path,
                "add_bos_eos": True,
            },
        } | changes
        worker = self._start(home, name, described)
        if home in ("megatron", "litdata", "mosaicml") and not self._converted(home).exists():
            try:
                with atomic_folder(self._converted(home)) as new:
                    worker.ask("convert", target=str(new))
            except LeftOut:
                worker.close()
                raise
        self.versions[home] = worker.started["version"]
        return worker

    def _start(self, home: str, name: str, described: dict[str, Any]) -> Worker:
        script = Path(__file__).with_name("readers.py")
        return Worker(script, [name, json.dumps(described)], self.pythons.get(home, sys.executable))

    def _converted(self, home: str) -> Path:
        return self.corpus.folder / f"{home}-{self.args.seq_len}"

    def workers(self, names: Sequence[str], **changes: Any) -> dict[str, Worker]:
        """A process for each reader that can be started; the others are noted."""
        started = {}
        for name in names:
            try:
                started[name] = self.worker(name, **changes)
            except LeftOut as reason:
                self.leave_out(name, reason)
        return started

    def leave_out(self, name: str, reason: LeftOut) -> None:
        """Say once that a reader is not measured, and why."""
        if name not in self.left_out:
            self.left_out[name] = str(reason)
            self.page.text(f"{NAMES[name]} is left out: {reason}")

    def wanted(self, names: Sequence[str]) -> list[str]:
        """Those that can be measured, as far as is known."""
        return [name for name in names if name not in self.left_out]


# --- rates ---


def measure_rates(bench: Bench) -> None:
    """Pre-tokenized batches, all cases in turn."""
    workers = bench.workers([*FLOORS, *OURS, *bench.wanted(PEERS)])
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for number in range(bench.args.rounds + 1):
        for name, worker in list(workers.items()):
            try:
                read = worker.ask("read", seconds=bench.args.seconds)
            except LeftOut as reason:
                bench.leave_out(name, reason)
                workers.pop(name).close()
                rounds.pop(name)
                continue
            if number:  # the first round warms the page cache
                rounds[name].append(read)
    for worker in workers.values():
        worker.close()

    per_cpu = {name: [r["tokens"] / r["cpu"] / 1e6 for r in reads] for name, reads in rounds.items()}
    per_wall = {name: [r["tokens"] / r["wall"] / 1e6 for r in reads] for name, reads in rounds.items()}
    bench.page.text("## Pre-tokenized batches")
    bench.page.text(
        f"{bench.args.seq_len} tokens a sequence, {BATCH} sequences a batch, two sources at 2/3 : 1/3, one process "
        "each, without worker processes, page cache warm; "
        f"{bench.args.rounds} rounds of {bench.args.seconds} s in turn: median (smallest-largest). Mtok = 10^6 tokens. "
        "The last column is the median of the rounds' ratios, per CPU-second."
    )
    bench.page.table(
        ["", "Mtok/CPU-s", "Mtok/s", "lingua_synth is"],
        [
            [
                NAMES[name],
                spread(per_cpu[name]),
                spread(per_wall[name]),
                f"x {ratio(per_cpu['ours'], per_cpu[name]):.2f}",
            ]
            for name in rounds
        ],
    )
    rate = median(per_cpu["ours"])
    bench.goals.append(goal_line("pre-tokenized batches", f"{rate:,.0f} Mtok/CPU-s", ">= 100", rate >= 100))
    prefetched = median(per_cpu["ours-prefetch"])
    bench.goals.append(
        goal_line("the same with prefetch", f"{prefetched:,.0f} Mtok/CPU-s", ">= 100", prefetched >= 100)
    )
    for name, least in (("grain", 1), ("grain-threads", 1), ("mosaicml", 8)):
        if name in per_cpu:
            times = ratio(per_cpu["ours"], per_cpu[name])
            bench.goals.append(goal_line(f"against {NAMES[name]}", f"x {times:.1f}", f">= x {least}", times >= least))


# --- opening and resuming ---


def measure_resume(bench: Bench) -> None:
    """The first batch after opening, at positions near and far, and after a resume."""
    names = bench.wanted(("ours", "ours-prefetch", "grain"))
    times: dict[str, dict[int, list[float]]] = {name: {} for name in names}
    states: dict[tuple[str, int], Any] = {}
    try:
        for name in list(names):
            with bench.worker(name) as worker:
                for position in POSITIONS:
                    found = worker.ask("state_at", position=position // BATCH * BATCH)
                    states[name, position] = found["state"]
        for _ in range(bench.args.rounds):
            for name, position in states:
                with bench.worker(name) as worker:
                    answer = worker.ask("open", state=states[name, position])
                times[name].setdefault(position, []).append(1e3 * answer["wall"])
    except LeftOut as reason:
        bench.leave_out(name, reason)
        times.pop(name)
    bench.page.text("## First batch at a position")
    bench.page.text(
        "Milliseconds from nothing open to the first batch, standing at that sequence of the stream (10^9 sequences "
        "of 4096 are 4.1 T tokens; the sources may be read 10^7 times), each time in a new process with its imports "
        f"done. Median (smallest-largest) of {bench.args.rounds}."
    )
    bench.page.table(
        ["", *(f"at {position:,}" for position in POSITIONS)],
        [[NAMES[name], *(spread(of[position]) for position in POSITIONS)] for name, of in times.items() if of],
    )
    ours = [values for name in OURS for values in times.get(name, {}).values()]
    if ours:
        worst = max(map(median, ours))
        said = f"{worst:,.0f} ms at the slowest position, once {max(map(max, ours)):,.0f} ms"
        bench.goals.append(goal_line("first batch at any position", said, "<= 50 ms", worst <= 50))

    _measure_saved_states(bench)


def _measure_saved_states(bench: Bench) -> None:
    cases: list[tuple[str, int, int]] = [(name, 200, 3) for name in (*OURS, "grain", "litdata", "megatron", "mosaicml")]
    if bench.lingua_dir:
        cases.append(("lingua", 32, 1))
        if bench.args.slow:
            cases.append(("lingua-1024", 512, 1))
    rows = []
    for name, batches, rounds in cases:
        if name in bench.left_out:
            continue
        try:
            with bench.worker(name) as worker:
                opened = worker.ask("open")
                answer = worker.ask("resume", batches=batches, rounds=rounds)
        except LeftOut as reason:
            bench.leave_out(name, reason)
            continue
        seconds = [t["wall"] for t in answer["times"]]
        cpu = [t["cpu"] for t in answer["times"]]
        size = answer["json_bytes"]
        rows.append(
            [
                NAMES[name],
                f"{opened['wall'] * 1e3:,.0f}",
                f"{batches}",
                f"{median(seconds) * 1e3:,.0f}",
                f"{median(cpu) * 1e3:,.0f}",
                "yes" if answer["same"] else "NO",
                f"{answer['bytes']:,}" if size is None else f"{size:,}",
            ]
        )
        if name == "ours":
            bench.goals.append(goal_line("state", f"{size:,} B", "<= 1000 B", size <= 1000))
    bench.page.text("## Start, state and resume")
    bench.page.text(
        "Milliseconds to the first batch of a new process (imports done); then, after so many batches, from a saved "
        "state to the next batch in the same process, whether the next 4 batches are those that would have come, and "
        "the state's bytes as JSON (as pickle where it is no plain data). Lingua reads and tokenizes text, and fills "
        "its buffer again."
    )
    bench.page.table(["", "first batch ms", "after batches", "resume ms", "CPU ms", "same batches", "state B"], rows)


# --- a long run, and memory ---


def measure_start(bench: Bench) -> None:
    """Opening for 100B tokens, and the private memory of a rank."""
    rows = []
    for name in bench.wanted(("ours", "ours-prefetch", "grain", "mosaicml")):
        try:
            with bench.worker(name, num_sequences=LONG_RUN) as worker:
                before = worker.ask("memory")
                opened = worker.ask("open")
                after = worker.ask("memory")
                state = worker.ask("state_at", position=LONG_RUN // 2)["state"]
            with bench.worker(name, num_sequences=LONG_RUN) as worker:
                resumed = worker.ask("open", state=state)
        except LeftOut as reason:
            bench.leave_out(name, reason)
            continue
        grown = after["private"] - before["private"]
        cells = [opened["wall"], opened["cpu"], resumed["wall"]]
        rows.append([NAMES[name], *(f"{cell:.3f}" for cell in cells), f"{grown:,.1f}", "-"])
        if name == "ours":
            is_met = opened["wall"] <= 1 and grown <= 50
            said = f"{opened['wall'] * 1e3:,.0f} ms, {grown:,.1f} MB"
            bench.goals.append(goal_line("start for 100B tokens", said, "<= 1 s, <= 50 MB", is_met))
    if "megatron" not in bench.left_out:
        try:
            with bench.worker("megatron") as worker:
                blended = worker.ask("blend", num_sequences=LONG_RUN)
            rows.append(
                [
                    f"{NAMES['megatron']}, its table of sources",
                    f"{blended['wall']:.3f}",
                    f"{blended['cpu']:.3f}",
                    "-",
                    "-",
                    f"{blended['megabytes']:,.0f}",
                ]
            )
        except LeftOut as reason:
            bench.leave_out("megatron", reason)
    bench.page.text("## Start of a run of 100B tokens")
    bench.page.text(
        f"{LONG_RUN:,} sequences of 4096: seconds to the first batch of a new process at the start, and at the "
        "middle; the growth of its private memory at the start; tables kept beside the data. Of Megatron core only "
        "the compiled step that decides the sources."
    )
    bench.page.table(["", "start s", "CPU-s", "middle s", "private MB", "table MB"], rows)
    _measure_memory(bench)


def _measure_memory(bench: Bench) -> None:
    names = bench.wanted(("ours-prefetch", "grain", "grain-threads", "litdata", "megatron", "mosaicml"))
    rows = []
    maps = _map_corpus(bench.corpus)
    for name in names:
        try:
            with bench.worker(name) as worker:
                before = worker.ask("memory")
                worker.ask("open")
                worker.ask("read_batches", batches=300)
                after = worker.ask("memory")
        except LeftOut as reason:
            bench.leave_out(name, reason)
            continue
        added = after["private"] - before["private"]
        rows.append([NAMES[name], f"{added:,.0f}", f"{after['private']:,.0f}", f"{after['resident']:,.0f}"])
        if name == "ours-prefetch":
            said = f"{added:,.0f} MB, {after['private']:,.0f} MB with Python and imports"
            bench.goals.append(
                goal_line("private memory of a rank, prefetch 8", said, "<= 150 MB", after["private"] <= 150)
            )
    for mapped in maps:
        mapped.close()
    bench.page.text("## Memory of a rank")
    bench.page.text(
        "MB after 300 batches, from /proc/self/smaps_rollup. Pages of the shards and flat files are mapped by another "
        "process too, so they count as shared, as they are among the ranks of a machine; of the formats that only one "
        "peer reads, they count as its own. Added: since the imports."
    )
    bench.page.table(["", "private, added", "private", "resident"], rows)


def _map_corpus(corpus: Corpus) -> list[mmap.mmap]:
    """The corpus's files mapped whole into this process, so that their pages are shared with whoever reads them."""
    files = [*(corpus.folder / "flat").glob("*.int32"), *(corpus.folder / "shards").rglob("*.arrow")]
    maps = []
    for path in files:
        with open(path, "rb") as file:
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            maps.append(mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ))
    return maps


# --- schedules ---


def families(seed: int = 0) -> dict[str, list[Fraction]]:
    """Shares to try: simple ones, and many random ones."""
    rng = np.random.default_rng(seed)
    found = {"2/3, 1/3": [Fraction(2, 3), Fraction(1, 3)], "0.67, 0.33": [Fraction(67, 100), Fraction(33, 100)]}
    for count in (50, 200, 1000):
        weights = rng.integers(1, 10_000, count).tolist()
        found[f"{count} random"] = [Fraction(weight, sum(weights)) for weight in weights]
    return found


def measure_schedules(bench: Bench) -> None:
    """Positions per second, and the worst deviation over all prefixes of a run."""
    num = bench.args.positions
    speeds, deviations = [], []
    for name, shares in families().items():
        ratios = {f"source{i:04d}": str(share) for i, share in enumerate(shares)}
        tree, strict = Schedule(ratios), StrictSchedule(ratios)
        tree_order, near = _locate(tree, 0, num)
        _, far = _locate(tree, 10**9, min(num, 200_000))
        strict_order, strict_near = _locate(strict, 0, num)
        speeds.append([name, f"{near:.2f}", f"{far:.2f}", f"{strict_near:.3f}"])
        off, strict_off = worst_deviation(tree_order, shares), worst_deviation(strict_order, shares)
        assert off <= tree.bound and strict_off <= strict.bound, "the bounds are proven"
        cells = [f"{float(off):.3f} ({float(tree.bound):.2f})", f"{float(strict_off):.3f} ({float(strict.bound):.3f})"]
        for rule in (greedy_order, integer_order, random_order):
            if len(shares) > 200:  # by the published rules, minutes
                cells.append("-")
            else:
                cells.append(f"{float(worst_deviation(rule(shares, num), shares)):,.2f}")
        deviations.append([name, *cells])
    bench.page.text("## Schedules")
    bench.page.text("Million positions located per CPU-second, in one thread.")
    bench.page.table(["shares", "tree, from 0", "tree, from 10^9", "strict, from 0"], speeds)
    bench.page.text(
        f"Worst |count - share x position| over every source and every prefix of {num:,} positions, in sequences, "
        "exact; in brackets the proven bound, for any length. The others by their published rules: the greedy one of "
        "Megatron core, integer weights of grain, a random draw."
    )
    bench.page.table(["shares", "tree", "strict", "greedy", "integers", "random"], deviations)


def _locate(schedule: Schedule | StrictSchedule, start: int, num: int) -> tuple[np.ndarray, float]:
    """Source indices of `num` positions from `start` on, and millions of them located per CPU-second."""
    schedule.locate(np.arange(start, start + 1))
    cpu = time.process_time()
    parts = [
        schedule.locate(np.arange(first, min(first + (1 << 16), start + num)))[0]
        for first in range(start, start + num, 1 << 16)
    ]
    return np.concatenate(parts), num / 1e6 / (time.process_time() - cpu)


# --- shares ---


def measure_shares(bench: Bench) -> None:
    """Tokens of each source that are really delivered."""
    limit = int(bench.args.share_mtok * 1e6)
    marks = [mark for mark in MARKS if mark <= limit] or [limit]
    seq_len = bench.args.seq_len
    rows, worst = [], Fraction(0)
    loader = MixtureLoader(bench.corpus.sources(), _endless(RATIOS), seq_len, BATCH)
    counts, read = np.zeros(len(SOURCES), np.int64), 0
    for mark in marks:
        while read < mark:
            batch = next(loader)
            counts += np.bincount(batch.source, minlength=len(counts))
            read += batch.tokens.size
        off = abs(counts[0] - Fraction(RATIOS["long"]) * int(counts.sum()))
        worst = max(worst, off)
        rows.append(["**lingua_synth**", f"{read:,}", f"{counts[0] / counts.sum():.5f}", f"{float(off):.2f}"])
    if bench.lingua_dir:
        try:
            tokenizer = {"name": "bytes", "path": None, "add_bos_eos": False}
            with bench.worker("lingua", text=str(bench.corpus.folder / "letters"), tokenizer=tokenizer) as worker:
                for read, first, *others in worker.ask("shares", marks=marks)["marks"]:
                    total = first + sum(others)
                    off = abs(first - Fraction(RATIOS["long"]) * total) / seq_len
                    rows.append([NAMES["lingua"], f"{read:,}", f"{first / total:.5f}", f"{float(off):,.2f}"])
        except LeftOut as reason:
            bench.leave_out("lingua", reason)
    bench.page.text("## Shares of the tokens: asked 2/3 from long documents, 1/3 from short ones")
    bench.page.text(
        "Share of the tokens delivered that are of the source of long documents, and how far that is off, in "
        "sequences. Lingua draws documents by weight, so the longer ones give more tokens; it reads the same documents "
        "as letters, one a token, so that every token names its source."
    )
    bench.page.table(["", "tokens", "share of long", "sequences off"], rows)
    bench.goals.append(goal_line("shares of tokens", f"{float(worst):.2f} sequences off", "<= 1 sequence", worst <= 1))


def _endless(ratios: Mapping[str, str]) -> Any:
    from lingua_synth.mixture import Mixture

    return Mixture(ratios, max_epochs=10**7)


# --- the command ---


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments; a mistake ends with a message and exit code 2."""
    parser = argparse.ArgumentParser(prog="benchmarks/loader.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", default=str(ROOT / "build" / "benchmarks"), help="folder of the corpus; kept")
    parser.add_argument("--corpus", help="folder with long/*.jsonl and short/*.jsonl instead of the built-in text")
    parser.add_argument("--mtok", type=float, default=64.0, help="size of the built-in corpus, million tokens")
    parser.add_argument("--tokenizer", help="Llama 3's rank file; default: of the package llama-models, else bytes")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=READ_SECONDS, help="of reading, per case and round")
    parser.add_argument("--seq-len", type=int, default=SEQ_LEN)
    parser.add_argument("--positions", type=int, default=10**6, help="for the deviations of the schedules")
    parser.add_argument("--share-mtok", type=float, default=30.0, help="read for the shares, at most, million tokens")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, by name, with commas")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="interpreter of a peer")
    parser.add_argument("--slow", action="store_true", help="Lingua's resume with a buffer of 1024 batches too")
    parser.add_argument("--out", metavar="FILE.md", help="write the page there as well")
    args = parser.parse_args(argv)
    args.sections = args.sections.split(",")
    if unknown := sorted(set(args.sections) - set(SECTIONS)):
        parser.error(f"no section {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
    args.pythons = {}
    for pair in args.python:
        name, equals, path = pair.partition("=")
        if not equals or name not in (*PEERS, "lingua"):
            parser.error(f"--python {pair}: write PEER=PATH with a peer of: {', '.join(PEERS)}, lingua")
        if not os.access(path, os.X_OK):
            parser.error(f"--python {pair}: {path} is no program")
        args.pythons[name] = path
    at_least(parser, args, rounds=1, seq_len=8, positions=1000, mtok=0.01, share_mtok=0.01)
    return args


def main(argv: Sequence[str]) -> int:
    """Measure and print; exit code 2 for bad input."""
    args = parse(argv)
    lingua_dir = os.environ.get("LINGUA_DIR")
    try:
        if lingua_dir and not (Path(lingua_dir) / "lingua" / "data.py").exists():
            raise ValueError(f"LINGUA_DIR={lingua_dir} is no checkout of Meta Lingua: it has no lingua/data.py")
        corpus = build_corpus(Path(args.work), args.mtok, args.tokenizer, args.corpus)
    except ValueError as error:
        print(f"benchmarks/loader.py: {error}", file=sys.stderr)
        return 2
    page = Page("The mixture loader beside its peers")
    page.text(*origin(public_arguments(argv)))
    page.text(f"Corpus: {corpus.summary}.")
    bench = Bench(args, corpus, page, args.pythons, lingua_dir)
    if not lingua_dir:
        page.text("Meta Lingua is left out: LINGUA_DIR names no checkout.")
    measures = {
        "rates": measure_rates,
        "resume": measure_resume,
        "start": measure_start,
        "schedules": measure_schedules,
        "shares": measure_shares,
    }
    start = time.perf_counter()
    for section in args.sections:
        measures[section](bench)
    page.goals(bench.goals)
    measured = [bench.versions[name] for name in bench.versions if name not in ("contiguous", "exact-mix")]
    if lingua_dir:
        measured.append(describe_lingua(lingua_dir))
    page.end(start, args.out, f"Measured: {', '.join(dict.fromkeys(measured))}. ")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
