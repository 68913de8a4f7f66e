"""Shares that change over training beside fixed ones: `python benchmarks/dynamic_mixing.py --shards quickstart`.

    losses   static shares, a linear ramp, a late annealing, an early one, and feedback from the losses, at equal tokens
             and with paired seeds; the feedback also beside static shares of what it came to
    cost     CPU time of reading and of an optimizer step under each, beside static, measured in turn
    shares   what was read against what was asked for

Needs the token shards of a finished `lingua-synth quickstart`, whose synthetic text its own small models wrote.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import mean, median
from typing import Any

from measure import ONE_THREAD, Page, goal_line, origin, public_arguments, ratio, spread, versions

os.environ.update(ONE_THREAD)  # before torch is imported

from lingua_synth.config import build_args
from lingua_synth.mixture import MixtureLoader
from lingua_synth.mixture.args import build_feedback, build_mixture
from lingua_synth.mixture.feedback import Feedback
from lingua_synth.scaling import compare_schedules, load_runs, write_runs
from lingua_synth.scaling.schedules import ScheduleComparison
from lingua_synth.study import LaunchArgs, StudyArgs, launch, plan_study
from lingua_synth.study.board import queue
from lingua_synth.study.collect import collect
from lingua_synth.study.plan import PlannedRun
from lingua_synth.tokens import TokenSource
from lingua_synth.train import train
from lingua_synth.train.folder import METRICS
from lingua_synth.train.inputs import sequences_left
from lingua_synth.train.metrics import read_metrics

STEP_TOKENS = 2048
GOAL_SHARE = 1
"""Per cent of a step that changing its shares may cost."""
REFERENCE_SEED = 1000
"""Of the run that sets the references of the feedback; no seed of the comparison."""

# All but the feedback read a quarter of synthetic text over the run: only when they do differs.
STATIC: dict[str, Any] = {"static": {"ratios": {"natural": "3/4", "synthetic": "1/4"}}}
SCHEDULES: dict[str, Any] = {
    "ramp": {"stages": {"rising": {"ratios": {"natural": "1"}, "ramp_to": {"natural": "1/2", "synthetic": "1/2"}}}},
    "late annealing": {
        "stages": {
            "plain": {"ratios": {"natural": "5/6", "synthetic": "1/6"}, "until": "3/4"},
            "late": {"ratios": {"natural": "1/2", "synthetic": "1/2"}},
        }
    },
    "early": {
        "stages": {
            "first": {"ratios": {"natural": "1/2", "synthetic": "1/2"}, "until": "1/4"},
            "plain": {"ratios": {"natural": "5/6", "synthetic": "1/6"}},
        }
    },
}


def feedback_mixture(reference: Mapping[str, float], interval: int) -> dict[str, Any]:
    """Shares that begin as the static ones and follow the losses, every `interval` tokens."""
    return {"feedback": STATIC["static"] | {"feedback": {"every_tokens": interval, "reference": dict(reference)}}}


def study(args: argparse.Namespace, out: Path, mixtures: Mapping[str, Any], **over: Any) -> list[PlannedRun]:
    """The runs of these mixtures over the sizes, budgets and seeds that were asked for."""
    tokens = Path(args.shards) / "tokens"
    domains = {folder.name: str(folder) for folder in sorted((tokens / "heldout").iterdir()) if folder.is_dir()}
    values = {
        "out": str(out),
        "sizes": args.sizes.split(","),
        "budgets": [args.budget],
        "seeds": list(range(1, args.seeds + 1)),
        "mixtures": dict(mixtures),
        "sources": {name: {"path": str(tokens / name)} for name in ("natural", "synthetic")},
        "train": {
            "data": {"seq_len": 128, "batch_size": STEP_TOKENS // 128},
            "optim": {"lr": 4.0e-3, "lr_min_ratio": 0.1},
            "checkpoint": {"dump": {"every": 0, "keep": 1}},
            "logging": {"freq": 8},
            "synth": {
                "warmup_ratio": 0.1,
                "global_batch_tokens": STEP_TOKENS,
                "device": "cpu",
                "on_exhaustion": "renormalize",
                "evaluation": {"max_tokens_per_domain": args.evaluation_tokens, "domains": domains},
            },
        },
    }
    return plan_study(build_args(StudyArgs, values, over))


def references(args: argparse.Namespace, out: Path) -> dict[str, float]:
    """What each source should come to: its loss over the last quarter of a static run of the smallest size."""
    (run,) = study(args, out, STATIC, sizes=args.sizes.split(",")[:1], seeds=[REFERENCE_SEED])
    launch([run], LaunchArgs(num_workers=1), folder=out, progress=False)
    rows = read_metrics(Path(run.args.dump_dir) / METRICS)
    late = rows[-max(1, len(rows) // 4) :]
    return {
        name: round(mean(row[key] for row in late if key in row), 3)
        for name in ("natural", "synthetic")
        if (key := f"loss/source/{name}")
    }


def losses(args: argparse.Namespace, out: Path, page: Page) -> tuple[list[PlannedRun], dict[str, dict[str, Any]]]:
    """Train all, compare by pairs, and say what came out; returns the runs and their rows."""
    reference = references(args, out)
    interval = args.budget // STEP_TOKENS // args.intervals * STEP_TOKENS
    mixtures = STATIC | SCHEDULES | feedback_mixture(reference, interval)
    runs = study(args, out, mixtures)
    launch(runs, LaunchArgs(num_workers=args.workers), folder=out, progress=False)
    rows = collect([], planned=queue(runs)).rows
    # Feedback also changes how much is read of a source; static shares like its own tell whether it gains by when.
    read = [row for row in rows if row["mixture"] == "feedback"]
    share = Fraction(round(100 * mean(row["tokens_synthetic"] / row["tokens"] for row in read)), 100)
    alike = f"static, {100 * share} % synthetic"
    ratios = {"natural": str(1 - share), "synthetic": str(share)}
    beside = study(args, out, {alike: {"ratios": {name: one for name, one in ratios.items() if one != "0"}}})
    launch(beside, LaunchArgs(num_workers=args.workers), folder=out, progress=False)
    runs += beside
    write_runs(collect([], planned=queue(runs)).rows, out / "runs.csv")
    table = load_runs(out / "runs.csv")
    found = compare_schedules(table, static={"feedback": "static"})
    found += [one for one in compare_schedules(table, static={"feedback": alike}) if one.mixture == "feedback"]
    words = {id(one): one.mixture + f", beside {alike}" * (one.static == alike) for one in found}
    page.text("## Losses")
    page.text(
        f"Held-out loss, mean over domains; differences to the static run of the same size and seed, {args.budget:,} "
        f"tokens each, {args.seeds} seeds. The feedback decides every {interval:,} tokens, with references "
        + ", ".join(f"{name} {loss:.3f}" for name, loss in reference.items())
        + " (a static run of the smallest size, another seed). Intervals at 95 %: Student's t over seeds."
    )
    page.table(
        ["shares", "size", "static loss", "difference, nats", "interval", "synthetic, %"],
        [
            [words[id(one)], cell.size, f"{cell.static_loss:.4f}", f"{cell.difference:+.4f}",
             interval_words(cell.interval), f"{100 * synthetic_share(table, one.mixture, cell.size):.2f}"]
            for one in found
            for cell in one.cells
        ],
    )  # fmt: skip
    page.table(
        ["shares", "over all sizes, nats", "interval", "than static"],
        [[words[id(one)], f"{one.difference:+.4f}", interval_words(one.interval), verdict(one)] for one in found],
    )
    return runs, {row: dict(values) for row, values in rows_of(table).items()}


def rows_of(table: Any) -> dict[str, dict[str, Any]]:
    """Rows of the runs table by run id."""
    return {
        run_id: {name: column[k] for name, column in table.columns.items()}
        for k, run_id in enumerate(table["run_id"].tolist())
    }


def synthetic_share(table: Any, mixture: str, size: str) -> float:
    """Mean share of the tokens that was synthetic."""
    rows = table.select(mixture=mixture, size=size)
    return float((rows["tokens_synthetic"] / rows["tokens"]).mean())


def interval_words(interval: tuple[float, float] | None) -> str:
    """[low, high], or that there is none."""
    return "none, one seed" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def verdict(one: ScheduleComparison) -> str:
    """better, worse or undecided."""
    return one.verdict.split(":")[0]


# --- cost ---


def cost(args: argparse.Namespace, page: Page) -> None:
    """What changing shares costs: reading alone, and whole optimizer steps; all kinds in turn."""
    short, long = (int(count) for count in args.steps.split(","))
    every = max(1, args.budget // STEP_TOKENS // args.intervals)
    # Intervals of the timed runs are shorter, so that they have some.
    timed = STATIC | SCHEDULES | feedback_mixture({"natural": 1.0, "synthetic": 1.0}, max(1, short // 2) * STEP_TOKENS)
    size = args.sizes.split(",")[0]
    reading: dict[str, list[float]] = {name: [] for name in timed}
    steps: dict[str, list[float]] = {name: [] for name in timed}
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[tuple[str, int], PlannedRun] = {}
        for count in (short, long):
            few = {"synth": {"evaluation": {"max_tokens_per_domain": 200}}}
            planned = study(
                args, Path(folder), timed, budgets=[count * STEP_TOKENS], seeds=[1], sizes=[size], train=few
            )
            runs |= {(run.args.synth.mixture, count): run for run in planned}
        for lap in range(args.reading_rounds + 1):
            for name in timed:
                seconds = _reading_seconds(runs[name, short], args.read, every)
                if lap:  # the first warms up
                    reading[name].append(1e6 * seconds / args.read)
        for lap in range(args.rounds + 1):
            for name in timed:
                used = [_seconds(runs[name, count], Path(folder) / f"{lap}") for count in (short, long)]
                if lap:
                    steps[name].append(1000 * (used[1] - used[0]) / (long - short))
    step_ms = median(steps["static"])
    page.text("## Cost")
    page.text(
        f"*Reading*: CPU-microseconds a sequence of 128 tokens, the loader alone, {args.read:,} sequences in steps of "
        f"16, median of {args.reading_rounds} rounds; the feedback decides every {every} steps, as above. *Of a step*: "
        f"what that is more than static, of the {step_ms:.1f} CPU-milliseconds that a step of {STEP_TOKENS:,} tokens "
        f"takes with {size}. *Steps*: whole steps beside static in the same round, runs of {long} steps less runs of "
        f"{short}, median (smallest-largest) of {args.rounds}, the feedback deciding every {max(1, short // 2)} steps."
    )
    extra = {
        name: 100 * 16 * (median(values) - median(reading["static"])) / 1000 / step_ms
        for name, values in reading.items()
    }
    page.table(
        ["shares", "reading, us", "beside static", "of a step, %", "steps beside static"],
        [
            [name, f"{median(values):.2f}", f"x {ratio(values, reading['static']):.2f}", f"{extra[name]:+.2f}",
             spread([one / other for one, other in zip(steps[name], steps["static"], strict=True)], 3)]
            for name, values in reading.items()
        ],
    )  # fmt: skip
    dearest = max(share for name, share in extra.items() if name not in ("static", "feedback"))
    page.table(
        ["", "goal", "measured", ""],
        [
            goal_line(f"{name}, of a step", f"{share:.2f} %", f"<= {GOAL_SHARE} %", share <= GOAL_SHARE)
            for name, share in (("schedules", dearest), ("feedback", extra["feedback"]))
        ],
    )


def _reading_seconds(run: PlannedRun, num_sequences: int, every: int) -> float:
    """CPU-seconds of reading so many sequences by the run's mixture, with its decisions where it has feedback."""
    synth = run.args.synth
    sources = {name: TokenSource(source.path) for name, source in synth.sources.items()}
    mixture = build_mixture(synth.sources, synth.stages, synth.on_exhaustion)
    loader = MixtureLoader(sources, mixture, seq_len=128, batch_size=16, num_sequences=num_sequences)
    feedback = None
    if synth.feedback.every_tokens is not None:
        rule = build_feedback(synth.feedback, mixture.ratios, 128, synth.on_exhaustion)
        assert rule is not None, "an interval is set"
        feedback = Feedback(rule, mixture.ratios, sequences_left(mixture, loader.num_windows, {}))
    before = time.process_time()
    for step in range(1, num_sequences // 16 + 1):
        next(loader)
        if feedback is not None:
            feedback.observe({"natural": (5.0 * 1536, 1536), "synthetic": (5.0 * 512, 512)})
            if step % every == 0 and step * 16 < num_sequences:
                read = {name: account.sequences for name, account in loader.accounting().items()}
                loader.change_ratios(feedback.decide(sequences_left(loader.mixture, loader.num_windows, read)))
    return time.process_time() - before


def _seconds(run: PlannedRun, folder: Path) -> float:
    """CPU-seconds of one training, all its threads."""
    import dataclasses

    args = dataclasses.replace(run.args, dump_dir=str(folder / run.run_id))
    before = time.process_time()
    train(args, progress=False)
    return time.process_time() - before


# --- shares ---


def shares(runs: Sequence[PlannedRun], rows: Mapping[str, Mapping[str, Any]], page: Page) -> None:
    """Read against asked: of schedules the plan, of feedback every interval."""
    page.text("## Shares")
    worst: dict[str, tuple[int, int, int]] = {}
    for run in runs:
        name, row = run.args.synth.mixture, rows[run.run_id]
        if name == "feedback":
            off, intervals = _feedback_gap(run)
        else:
            off, intervals = max(abs(int(row[f"tokens_{n.name}"]) - n.tokens) for n in run.needs), 1
        before = worst.get(name, (0, 0, 0))
        worst[name] = max(before[0], off), before[1] + 1, before[2] + intervals
    page.text(
        "Tokens of the source that is furthest off: of a schedule over the run, against the plan that `study plan` "
        "shows; of feedback in every interval, against its own decision."
    )
    page.table(
        ["shares", "runs", "spans", "off by, tokens"],
        [[name, str(num), str(spans), f"{off:,}"] for name, (off, num, spans) in worst.items()],
    )
    page.table(
        ["", "goal", "measured", ""],
        [goal_line("tokens off", f"{(off := max(one[0] for one in worst.values())):,}", "0", off == 0)],
    )


def _feedback_gap(run: PlannedRun) -> tuple[int, int]:
    """(tokens by which an interval missed its decision at most, intervals)."""
    every, seq_len = run.args.synth.feedback.every_tokens, run.args.data.seq_len
    assert every is not None and run.resolved is not None, "a planned run with feedback"
    names, off, spans = list(run.args.synth.sources), 0, 0
    counts = dict.fromkeys(names, 0)
    due: dict[str, int] | None = None
    for row in read_metrics(Path(run.args.dump_dir) / METRICS):
        if row["global_step"] * STEP_TOKENS % every:
            continue
        read = {name: int(row[f"data/tokens/{name}"]) for name in names}
        if due is None:  # the first interval has the static shares
            share = {name: Fraction(run.args.synth.sources[name].ratio) for name in names}
            due = {name: round(share[name] * every / seq_len) for name in names}
        off = max(off, *(abs(read[name] - counts[name] - due[name] * seq_len) for name in names))
        counts, spans = read, spans + 1
        if f"feedback/next_sequences/{names[0]}" in row:
            due = {name: int(row[f"feedback/next_sequences/{name}"]) for name in names}
    return off, spans


def main(argv: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="quickstart", help="folder of a finished quickstart")
    parser.add_argument("--sizes", default="nano-27k,nano-56k", help="model presets, smallest first")
    parser.add_argument("--budget", type=int, default=524_288, help="training tokens of every run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--intervals", type=int, default=8, help="intervals of the feedback")
    parser.add_argument(
        "--read", type=int, default=8192, help="sequences of 128 tokens that are read, in tens of steps"
    )
    parser.add_argument("--reading-rounds", type=int, default=9)
    parser.add_argument("--steps", default="16,112", help="steps of the short and the long run that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="runs trained at a time")
    parser.add_argument("--evaluation-tokens", type=int, default=20_000, help="per domain")
    parser.add_argument("--work", help="folder of the runs, kept; a temporary one by default")
    parser.add_argument("--out", help="write the page here")
    args = parser.parse_args(argv)
    if not (Path(args.shards) / "tokens" / "heldout").is_dir():
        parser.error(f"{args.shards} holds no token shards; make them: lingua-synth quickstart out={args.shards}")
    if args.budget % (STEP_TOKENS * args.intervals):
        parser.error(f"--budget {args.budget} is no whole number of {args.intervals} intervals of whole steps")
    page = Page("Shares that change over training")
    page.text(*origin(public_arguments(argv)), f"- {versions('torch')}")
    with tempfile.TemporaryDirectory() as folder:
        runs, rows = losses(args, Path(args.work or folder), page)
        shares(runs, rows, page)
    cost(args, page)
    if args.out:
        page.write(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
