"""Fitting a scaling law beside its peers, in one run: `python benchmarks/scaling.py`; see README.md for every column.

The joint law in N and D is fitted to one table, and refitted to resampled tables, by this library, by SciPy's BFGS from
many starts, by the published procedure (re-implemented from its description) and by the package `chinchilla`. All are
asked for the minimum of one objective; how far above the lowest value found each ends is measured here, not by them.

Needs the project alone; what is not installed is left out with a line that says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from fitters import FITTERS, objective
from measure import ROOT, LeftOut, Page, Worker, goal_line, origin, public_arguments, ratio

OURS = "lingua_synth"
NUM_BOOTSTRAPS = 4000
UNSOLVED = 1e-6
"""A resample whose objective lies above the lowest found by more than this share was not solved."""


def read_table(path: str, drop_highest: int) -> dict[str, np.ndarray]:
    """Columns params, tokens, loss of a CSV file as N, D, loss, without the runs of the highest losses."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        table = {
            name: np.array([float(row[column]) for row in rows])
            for name, column in (("N", "params"), ("D", "tokens"), ("loss", "loss"))
        }
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"--data needs a CSV file with columns params, tokens, loss: {error}") from None
    keep = np.argsort(table["loss"], kind="stable")[: len(rows) - drop_highest]
    return {name: values[np.sort(keep)] for name, values in table.items()}


def simulated_table(num_runs: int) -> dict[str, np.ndarray]:
    """Runs of a planted law over three decades of N and D, with errors of heavy tails as real tables have them."""
    rng = np.random.default_rng(0)
    N, D = (10 ** rng.uniform(low, high, num_runs) for low, high in ((7.7, 10.2), (8.7, 11.7)))
    loss = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(0.004 * rng.standard_t(3, num_runs))
    return {"N": N, "D": D, "loss": loss}


def start(name: str, table: dict[str, np.ndarray], pythons: dict[str, str]) -> Worker:
    """The process of a fitter. Raises LeftOut."""
    data = json.dumps({key: values.tolist() for key, values in table.items()})
    return Worker(
        Path(__file__).with_name("fitters.py"),
        [name, data],
        pythons.get(name, sys.executable),
        {"PYTHONPATH": str(ROOT)},
    )


def measure(args: argparse.Namespace, table: dict[str, np.ndarray], page: Page) -> dict[str, dict[str, Any]]:
    """What every fitter that can run here did: seconds by round, parameters, resamples."""
    pythons = dict(entry.split("=", 1) for entry in args.python)
    results: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    try:
        for name in FITTERS:
            try:
                workers[name] = start(name, table, pythons)
            except LeftOut as reason:
                page.text(f"{name} is left out: {reason}")
                continue
            told = workers[name].started
            results[name] = {
                "version": told["version"],
                "note": told["note"],
                "fit": [],
                "bootstrap": [],
                "params": None,
            }
        for _ in range(args.rounds):
            for name in list(workers):
                try:
                    one_round(args, workers[name], name == OURS, results[name])
                except LeftOut as reason:
                    page.text(f"{name} is left out: {reason}")
                    workers.pop(name).close()
                    del results[name]
    finally:
        for worker in workers.values():
            worker.close()
    return results


def one_round(args: argparse.Namespace, worker: Worker, ours: bool, result: dict[str, Any]) -> None:
    """One fit and one bootstrap; of a peer's, so many starts and resamples as asked, scaled up."""
    answer = worker.ask("fit", starts=None if ours or not args.starts else args.starts)
    result["fit"].append(answer["seconds"])
    result["params"] = answer["params"]
    count = args.bootstraps if ours else min(args.resamples, args.bootstraps)
    if "no bootstrap" in result["note"]:
        return
    answer = worker.ask("bootstrap", count=count, seed=42, keep=args.resamples)
    result["bootstrap"].append(answer["seconds"] * args.bootstraps / count)
    result["resamples"] = answer["params"]


def objectives(table: dict[str, np.ndarray], params: list[dict[str, float]], seed: int) -> np.ndarray:
    """The objective of every resample at the parameters found for it."""
    num = len(table["N"])
    rows = np.random.default_rng(seed).integers(0, num, (len(params), num))
    return np.array(
        [objective(p, *(table[k][r] for k in ("N", "D", "loss"))) for p, r in zip(params, rows, strict=True)]
    )


def report(
    args: argparse.Namespace, table: dict[str, np.ndarray], results: dict[str, dict[str, Any]], page: Page
) -> None:
    """The tables and the goals."""
    minima = {name: objective(r["params"], table["N"], table["D"], table["loss"]) for name, r in results.items()}
    lowest = min(minima.values())
    ours = results[OURS]
    page.text("## One fit", f"Lowest objective found: {lowest:.12g}. Seconds are medians of {args.rounds} rounds.")
    rows = []
    for name, r in results.items():
        p = r["params"]
        rows.append(
            [
                f"**{name}**" if name == OURS else name,
                f"{median(r['fit']):.3g}",
                f"x {ratio(r['fit'], ours['fit']):,.0f}" if name != OURS else "x 1",
                f"{minima[name] / lowest - 1:.1e}",
                *(f"{p[key]:.6g}" for key in ("E", "A", "B", "alpha", "beta")),
            ]
        )
    page.table(["", "s", "time to ours", "above the minimum", "E", "A", "B", "alpha", "beta"], rows)
    notes = [f"{name} ({r['version']}){': ' if r['note'] else ''}{r['note']}" for name, r in results.items()]
    page.text(*(f"- {note}" for note in notes))

    page.text(f"## {args.bootstraps} resamples", f"Of a peer's, {args.resamples} are timed and scaled up.")
    with_resamples = {name: r for name, r in results.items() if r["bootstrap"]}
    values = {name: objectives(table, r["resamples"], 42) for name, r in with_resamples.items()}
    # The draws of `count` resamples begin with those of any smaller count: rows are drawn one after the other.
    fewest = min(len(v) for v in values.values())
    floor = np.min([v[:fewest] for v in values.values()], axis=0)
    unsolved = {name: float(np.mean(v[:fewest] > floor * (1 + UNSOLVED))) for name, v in values.items()}
    page.table(
        ["", "s", "time to ours", "not at the minimum, %"],
        [
            [
                f"**{name}**" if name == OURS else name,
                f"{median(r['bootstrap']):.3g}",
                f"x {ratio(r['bootstrap'], ours['bootstrap']):,.0f}" if name != OURS else "x 1",
                f"{100 * unsolved[name]:.3g}",
            ]
            for name, r in with_resamples.items()
        ],
    )
    goals(args, results, minima[OURS] / lowest - 1, page)


def goals(args: argparse.Namespace, results: dict[str, dict[str, Any]], above: float, page: Page) -> None:
    """The goals of the library, as measured in this run."""
    ours = results[OURS]
    both = median(ours["fit"]) + median(ours["bootstrap"])
    rows = [
        goal_line("one fit", f"{median(ours['fit']):.3g} s", "<= 0.1 s", median(ours["fit"]) <= 0.1),
        goal_line("fit and resamples", f"{both:.3g} s", "<= 3 s", both <= 3),
        goal_line("above the lowest objective found", f"{above:.1e}", "<= 1e-9", above <= 1e-9),
    ]
    if "published procedure" in results:
        times = ratio(results["published procedure"]["bootstrap"], ours["bootstrap"])
        rows.append(goal_line("resamples, published procedure to ours", f"x {times:.0f}", ">= 100", times >= 100))
    page.goals(rows)


def main(argv: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CSV with columns params, tokens, loss; default: 240 simulated runs")
    parser.add_argument("--drop-highest", type=int, default=0, help="leave out so many runs of the highest losses")
    parser.add_argument("--runs", type=int, default=240, help="of the simulated table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=60, help="of a peer's grid that are timed; 0: all")
    parser.add_argument("--resamples", type=int, default=40, help="of a peer's that are timed")
    parser.add_argument("--bootstraps", type=int, default=NUM_BOOTSTRAPS)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's interpreter")
    parser.add_argument("--out", help="write the page here")
    args = parser.parse_args(argv)
    page = Page("Fitting a scaling law")
    page.text(*origin(public_arguments(argv)))
    table = read_table(args.data, args.drop_highest) if args.data else simulated_table(args.runs)
    page.text(
        f"{'A given table' if args.data else 'A simulated table'} of {len(table['N'])} runs; one thread a process."
    )
    results = measure(args, table, page)
    if OURS not in results:
        raise SystemExit("this library itself could not run; the reason stands above")
    report(args, table, results, page)
    if args.out:
        page.write(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
