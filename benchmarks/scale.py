"""What 1,000 nodes and 10T tokens ask of this library, simulated with its real code: `python benchmarks/scale.py`.

    index       sources of 10T tokens: a start of a rank, its first batch far into the run, memory, file system calls
    ranks       the batches of all 8,192 ranks of one step, held to the plan
    plan        a thousand sources; the order of an epoch as MosaicML Streaming makes it
    leases      64 processes that claim units of one folder; a generation among many others' shards
    checkpoint  our writer beside the same bytes in one file, and what checkpoints cost a thousand nodes
    study       ten thousand runs

`scale_cases.py` has the cases. Needs 3 GB of disk for a while (`--work`), a file system with sparse files and hard
links, and 4 minutes; strace, where there is one, counts what the imports of a training ask for.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measure import ROOT, LeftOut, Page, Worker, at_least, goal_line, origin, public_arguments, ratio, spread

from lingua_synth.model import count_parameters, preset
from lingua_synth.model.checkpoint_interval import checkpoint_interval

SECTIONS = ("index", "ranks", "plan", "leases", "checkpoint", "study")
SEQ_LEN = 4096
NODES, RANKS = 1_000, 8_192
TOKENS = 10**13
NODE_MTBF_H = 54 * 24 / 419 * 2048
"""Hours between failures of one node, by the pre-training of Llama 3 405B: 419 unexpected interruptions in 54 days on
16,384 GPUs, 8 a node (Llama Team, "The Llama 3 Herd of Models", 2024, section 3.3.4)."""


@dataclasses.dataclass
class Bench:
    """What every section needs."""

    args: argparse.Namespace
    page: Page
    work: Path
    goals: list[list[str]] = dataclasses.field(default_factory=list)

    def ask(self, command: str, python: str = sys.executable, **arguments: Any) -> dict[str, Any]:
        """The answer of a new process. Raises LeftOut."""
        with Worker(Path(__file__).with_name("scale_cases.py"), [], python) as worker:
            return worker.ask(command, **arguments)

    def folder(self, name: str) -> Path:
        """An empty place for a case."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        return self.work / name

    def goal(self, name: str, goal: str, measured: str, is_met: bool) -> None:
        """A line of the last table."""
        self.goals.append(goal_line(name, measured, goal, is_met))


def sources(bench: Bench) -> list[tuple[str, Path, int, dict[str, Any]]]:
    """(name, folder, files, what was built) of the sources of 10T tokens, made once for a call of the script."""
    made = []
    for bits in bench.args.file_bits:
        num_files = -(-bench.args.tokens // (1 << bits))
        folder = bench.work / f"files-{bits}"
        built: dict[str, Any] = {}
        if not folder.exists():
            built = bench.ask(
                "build_source",
                folder=str(folder),
                num_files=num_files,
                tokens_per_file=1 << bits,
                documents_per_file=max(1, (1 << bits) // 1000),
            )
        size = (folder / "manifest.json").stat().st_size / 1e6
        made.append((f"2^{bits} tokens a file", folder, num_files, built | {"manifest_mb": size}))
    return made


def measure_index(bench: Bench) -> None:
    """What a rank of 8,192 does and holds."""
    rows, alone = [], []
    for name, folder, num_files, built in sources(bench):
        found = [
            bench.ask(
                "rank", folder=str(folder), dp_rank=one, dp_size=RANKS, position=bench.args.tokens // SEQ_LEN // 65_536,
                batches=bench.args.batches,
            )
            for one in (0, RANKS // 2, RANKS - 1)
        ]  # fmt: skip
        worst = {key: max(one[key] for one in found) for key in found[0]}
        rows.append(
            [
                name,
                f"{num_files:,}",
                f"{built['manifest_mb']:.1f}",
                f"{worst['open_s']:.2f}",
                f"{worst['check_s']:.2f}",
                f"{1e3 * worst['first_batch_s']:.0f}",
                f"{worst['mb']:.0f}",
                f"{worst['start_calls']:,}",
                f"{worst['calls_per_batch']:.1f}",
            ]
        )
        checked = bench.ask("check_alone", folder=str(folder))
        alone.append(
            [name, f"{checked['s']:.1f}", f"{checked['calls']:,}", f"{checked['maps']:,}", f"{checked['mb']:.0f}"]
        )
        start = worst["open_s"] + worst["check_s"] + worst["first_batch_s"]
        said = f"{start:.2f} s, {worst['mb']:.0f} MB, {worst['start_calls']:,} calls"
        is_met = start <= 10 and worst["mb"] <= 250 and worst["start_calls"] <= 3 * num_files / RANKS + 20
        bench.goal(f"start of a rank, {num_files:,} files", "<= 10 s, 250 MB, 3 calls a file / ranks", said, is_met)
        bench.goal(f"mapped at once, {num_files:,} files", "< 65,530", f"{checked['maps']:,}", checked["maps"] < 65_530)
    bench.page.text("## A rank of 8,192, and an index of 10T tokens")
    bench.page.text(
        f"{bench.args.tokens:,} tokens in Arrow files of real layout (sparse, one under many names). Seconds to read "
        "the manifest, and for the rank's share of the check of all files; milliseconds to the first batch of 4 x 4096 "
        "tokens at the middle of the run; private megabytes that all this adds; calls to the file system at the start, "
        "and for each further batch. The worst of ranks 0, 4,096 and 8,191."
    )
    head = ["", "files", "manifest MB", "open s", "check s", "first batch ms", "MB"]
    bench.page.table([*head, "start calls", "calls a batch"], rows)
    bench.page.text("One process that compares all files itself, as tools do that stand alone:")
    bench.page.table(["", "s", "calls", "mapped at once", "private MB"], alone)
    _count_imports(bench)


def _count_imports(bench: Bench) -> None:
    if shutil.which("strace") is None:
        bench.page.text("The calls of the imports are left out: there is no strace.")
        return
    command = [
        "strace",
        "-f",
        "-c",
        "-e",
        "trace=%file,getdents64",
        sys.executable,
        "-c",
        "import lingua_synth.train.loop",
    ]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stderr
    calls = {match[2]: int(match[1]) for match in re.finditer(r"\s(\d+)(?:\s+\d+)?\s+(\w+)\n", said)}
    total = calls.pop("total", sum(calls.values()))
    largest = sorted(calls.items(), key=lambda item: -item[1])[:4]
    bench.page.text(
        f"Imports of the training program, before any of this: {total:,} calls a rank "
        f"({', '.join(f'{name} {count:,}' for name, count in largest)}), {total * RANKS / 1e6:,.0f} million for "
        f"{RANKS:,} ranks."
    )


def measure_ranks(bench: Bench) -> None:
    """All ranks of a step."""
    _, folder, num_files, _ = sources(bench)[-1]
    rows = []
    for dp_size in bench.args.ranks:
        found = bench.ask(
            "all_ranks", folder=str(folder), dp_size=dp_size, per_rank=2, position=bench.args.tokens // SEQ_LEN
        )
        exact = found["each_once"] and found["counts_exact"]
        said = "yes" if exact else "NO"
        rows.append(
            [
                f"{dp_size:,}",
                f"{found['sequences']:,}",
                said,
                f"{found['off']:.2f}",
                f"{found['ms']:.1f}",
                f"{found['slowest_ms']:.0f}",
                f"{found['kb_per_rank']:.0f}",
            ]
        )
        bench.goal(f"batches of {dp_size:,} ranks", "the plan, exactly", said, exact)
    bench.page.text("## All ranks of a step")
    bench.page.text(
        f"One loader for every rank in turn, over two sources of {num_files:,} files at 67 : 33, at the end of the "
        "run; their batches together. Exact: every position once, and of each source as many as the schedule has. Off: "
        "the largest |count - share x position| of a source, in sequences, over the whole run up to there."
    )
    bench.page.table(["ranks", "sequences", "exact", "off", "ms a rank", "slowest ms", "kB a rank"], rows)


def measure_plan(bench: Bench) -> None:
    """The plan and the order, beside an order that is made as a table."""
    found = bench.ask("plan", num_sources=1_000, tokens=bench.args.tokens)
    bench.page.text("## Plan and order")
    bench.page.text(
        f"A plan of {bench.args.tokens / 1e12:g}T tokens over 1,000 sources, exact: {found['plan_s']:.2f} s; "
        f"{found['locate_ms']:.1f} ms to locate 1,024 positions from 2 x 10^9 on. {found['peak_mb']:.0f} MB, Python "
        "and numpy included."
    )
    bench.goal("plan of 1,000 sources", "<= 2 s", f"{found['plan_s']:.2f} s", found["plan_s"] <= 2)
    rows = []
    python = dict(pair.split("=", 1) for pair in bench.args.python).get("mosaicml", sys.executable)
    ours = [1e-3 * found["locate_ms"]]
    for num_samples in bench.args.samples:
        try:
            peer = bench.ask("mosaicml", python, num_samples=num_samples, num_nodes=NODES, position=num_samples // 2)
        except LeftOut as reason:
            bench.page.text(f"MosaicML Streaming is left out: {reason}")
            return
        rows.append(
            [
                f"MosaicML Streaming {peer['version']}, {num_samples:,}",
                f"{peer['s']:.2f}",
                f"{peer['mb']:,.0f}",
                f"x {ratio([peer['s']], ours):,.0f}",
            ]
        )
    bench.page.text(
        "MosaicML Streaming makes the order of an epoch as a table, on every node, at the start and at a resume (here "
        "at its middle; partitions for 1,000 nodes of 8 ranks, then py1e). The last column: in times of the 1,024 "
        "positions above, which is all that this library ever makes at once."
    )
    bench.page.table(["sequences of an epoch", "s", "MB", "times ours"], rows)


def measure_leases(bench: Bench) -> None:
    """Claims under contention, and a generation's worker among many shards."""
    rows = []
    for num_processes in bench.args.processes:
        folder = bench.folder("claims")
        (folder / "done").mkdir(parents=True)
        workers = [Worker(Path(__file__).with_name("scale_cases.py"), []) for _ in range(num_processes)]
        for seed, worker in enumerate(workers):
            worker.send(
                "claimant", folder=str(folder), num_units=bench.args.units, seconds=bench.args.seconds, seed=seed
            )
        while len(list(folder.glob("ready-*"))) < num_processes:
            time.sleep(0.05)
        (folder / "start").touch()
        answers = [worker.receive() for worker in workers]
        for worker in workers:
            worker.close()
        won, lost = sum(a["won"] for a in answers), sum(a["lost"] for a in answers)
        once = won == len(list((folder / "done").iterdir()))
        calls = sum(a["calls"] for a in answers)
        rate = won / bench.args.seconds
        rows.append(
            [
                f"{num_processes}",
                f"{rate:,.0f}",
                f"{lost / max(1, won):.3f}",
                f"{calls / max(1, won):.1f}",
                "yes" if once else "NO",
            ]
        )
        bench.goal(f"units of {num_processes} processes", "each once", "each once" if once else "NOT", once)
    bench.page.text("## Leases")
    bench.page.text(
        f"Processes that claim units of one folder of {bench.args.units:,}, mark them as done and finish them, nothing "
        f"else, for {bench.args.seconds} s: units a second, claims that another was faster to for each that was won, "
        "calls to the file system a unit, and whether every unit was done once."
    )
    bench.page.table(["processes", "units/s", "lost a unit", "calls a unit", "each once"], rows)
    rows = []
    left = 20
    for num_whole, num_others in bench.args.whole:
        found = bench.ask(
            "generation", folder=str(bench.folder("shards")), num_whole=num_whole, num_others=num_others, num_left=left
        )
        shutil.rmtree(bench.work / "shards", ignore_errors=True)
        by_name = found["by_name"]
        rows.append(
            [
                f"{num_whole:,}",
                f"{num_others:,}",
                f"{found['s']:.2f}",
                f"{1e3 * found['cpu_s'] / left:.0f}",
                f"{found['calls'] / left:.0f}",
                f"{by_name.get('open', 0) / left:.0f}",
                f"{by_name.get('listdir', 0) / left:.1f}",
            ]
        )
    bench.page.text(
        f"A worker of a generation, by the mock engine, in a run's folder with so many whole shards (four files each) "
        f"and so many held by processes elsewhere, for its last {left} shards: seconds for all of them, and for each "
        "of them milliseconds of CPU, calls to the file system, files opened and folders listed. What a shard itself "
        "needs, its files written and synced, is in it."
    )
    bench.page.table(["whole shards", "held elsewhere", "s", "CPU ms", "calls", "opened", "listed"], rows)
    few, many = (min(bench.args.whole), max(bench.args.whole))
    alike = [row for pair, row in zip(bench.args.whole, rows, strict=True) if pair[1] == many[1]]
    calls = [float(row[4].replace(",", "")) for row in alike]
    name = f"calls a shard among {many[0]:,} whole ones, not {few[0]:,}"
    bench.goal(name, "<= x 1.1", f"x {calls[-1] / calls[0]:.2f}", calls[-1] <= 1.1 * calls[0])


def measure_checkpoint(bench: Bench) -> None:
    """Our writer, and what checkpoints cost a cluster."""
    folder = bench.folder("checkpoint")
    folder.mkdir(parents=True)
    found = bench.ask("checkpoint", folder=str(folder), dim=bench.args.dim, n_layers=12, rounds=bench.args.rounds)
    shutil.rmtree(folder)
    gb = found["bytes"] / 1e9
    rows = [
        [name, spread(found[key], 2), f"{gb / median(found[key]):.2f}", f"x {ratio(found[key], found['raw']):.2f}"]
        for name, key in (
            ("one file of the same bytes, synced", "raw"),
            ("our checkpoint", "whole"),
            ("in the background: until training goes on", "stall"),
            ("in the background: until it is on the disk", "background"),
            ("restored", "restore"),
        )
    ]
    bench.page.text("## Checkpoints")
    bench.page.text(
        f"{gb:.2f} GB of fp32 weights and AdamW's two moments, one process, this disk; {bench.args.rounds} rounds in "
        "turn: median (smallest-largest)."
    )
    bench.page.table(["", "s", "GB/s", "beside the one file"], rows)
    times = ratio(found["whole"], found["raw"])
    bench.goal("a checkpoint beside one file of its bytes", "<= x 1.5", f"x {times:.2f}", times <= 1.5)
    bench.page.text(
        f"A train state takes {1e3 * found['state_s']:.1f} ms to be written and synced: {RANKS:,} of them by one rank, "
        f"as before 0.5.0, {RANKS * found['state_s']:,.0f} s in which all others wait; each rank now writes its own."
    )
    bench.page.text(
        f"A cluster of {NODES:,} nodes of 8, of which one fails every {NODE_MTBF_H / NODES:.1f} h (the rate of Llama 3 "
        "405B's pre-training, 419 unexpected interruptions in 54 days on 2,048 nodes), 5 minutes from a failure to the "
        "next step: the best interval between checkpoints and the share of the time that is lost, by the bandwidth of "
        "the file system; in brackets in the background, where training stands still for the copy alone, 5 s."
    )
    mtbf_s = 3600 * NODE_MTBF_H / NODES
    rows = []
    for size in ("8B", "70B", "405B"):
        num_bytes = 12 * count_parameters(preset(size)).total
        cells = []
        for gb_per_s in (1, 10, 100):
            write_s = num_bytes / 1e9 / gb_per_s
            here = checkpoint_interval(write_s, mtbf_s, restart_s=300)
            behind = checkpoint_interval(min(5, write_s), mtbf_s, write_s=write_s, restart_s=300)
            cells.append(
                f"{here.interval_s / 60:.0f} min, {here.lost_share:.1%} ({behind.lost_share:.1%})"
                if write_s < mtbf_s
                else "longer than it lasts"
            )
        rows.append([size, f"{num_bytes / 1e9:,.0f} GB", *cells])
    bench.page.table(["size", "checkpoint", "1 GB/s", "10 GB/s", "100 GB/s"], rows)


def measure_study(bench: Bench) -> None:
    """A study of many runs."""
    folder = bench.folder("study")
    found = bench.ask("study", folder=str(folder), num_seeds=bench.args.seeds)
    shutil.rmtree(folder, ignore_errors=True)
    bench.page.text("## A study of many runs")
    names = {
        "plan_s": "planned",
        "queue_s": "their configurations written out",
        "write_s": "kept",
        "read_s": "read back",
        "status_s": "status",
        "collect_s": "collected (none is finished)",
    }
    bench.page.text(
        f"{found['runs']:,} runs: 10 sizes, 10 budgets, 10 mixtures, {bench.args.seeds} seeds; the plan is a file of "
        f"{found['mb']:.0f} MB, and all of it took {found['peak_mb']:,.0f} MB at most."
    )
    rows = [[name, f"{found[key]:.2f}", f"{1e3 * found[key] / found['runs']:.2f}"] for key, name in names.items()]
    bench.page.table(["", "s", "ms a run"], rows)
    status = found["status_s"]
    most = 2.0 * found["runs"] / 10_000
    bench.goal(f"status of {found['runs']:,} runs", f"<= {most:g} s", f"{status:.2f} s", status <= most)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; the defaults are those of the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", default=str(ROOT / "build" / "benchmarks"), help="folder for files, empty at the end")
    parser.add_argument("--out", help="file for the page")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="a part of them, by commas")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="interpreter of mosaicml")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a source")
    parser.add_argument("--file-bits", type=int, nargs="+", default=[26, 30], help="log2 of the tokens of a file")
    parser.add_argument("--batches", type=int, default=200, help="batches of a rank that are timed")
    parser.add_argument("--ranks", type=int, nargs="+", default=[128, RANKS], help="whose batches are held to the plan")
    parser.add_argument("--samples", type=int, nargs="+", default=[2_441_406, 24_414_064], help="sequences of the peer")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64], help="that claim units")
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=4.0, help="of claiming")
    parser.add_argument(
        "--whole", type=lambda pair: tuple(map(int, pair.split(","))), nargs="+",
        default=[(100, 0), (100, 200), (50_000, 0), (50_000, 200)], metavar="WHOLE,HELD", help="shards of a generation",
    )  # fmt: skip
    parser.add_argument("--dim", type=int, default=768, help="width of the model whose checkpoint is written")
    parser.add_argument("--rounds", type=int, default=3, help="checkpoints")
    parser.add_argument("--seeds", type=int, default=10, help="of the study, 1,000 runs each")
    args = parser.parse_args(argv)
    at_least(parser, args, tokens=1, batches=1, units=1, seconds=0.1, dim=64, rounds=1, seeds=1)
    args.sections = args.sections.split(",")
    unknown = sorted(set(args.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    return args


def main(argv: Sequence[str]) -> int:
    """Measure, print and write."""
    args = parse(argv)
    started = time.perf_counter()
    page = Page("1,000 nodes and 10T tokens, simulated")
    page.text(*origin(public_arguments(argv)))
    work = Path(args.work) / "scale"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    bench = Bench(args, page, work)
    measures = {
        "index": measure_index,
        "ranks": measure_ranks,
        "plan": measure_plan,
        "leases": measure_leases,
        "checkpoint": measure_checkpoint,
        "study": measure_study,
    }
    try:
        for section in args.sections:
            measures[section](bench)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    page.goals(bench.goals)
    page.end(started, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
