"""The time of a whole report: `python benchmarks/report.py`; a simulated study in, `report.html` out, nothing cached.

1,000 runs of ten mixtures (six sizes, eight budgets, seeds), 1,000 resamples of every fit, all figures, the paper's
claims and the recommendation. Wall time is that of this machine as it is; CPU time is what the work takes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measure import Page, goal_line, origin, public_arguments

GOAL_S = 60


def main(argv: Sequence[str]) -> int:
    """Measure and write the page."""
    from lingua_synth.report.command import main as report
    from lingua_synth.scaling import simulate_study, write_runs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--bootstraps", type=int, default=1000)
    parser.add_argument("--out", help="write the page here")
    args = parser.parse_args(argv)
    page = Page("A report")
    page.text(*origin(public_arguments(argv)))
    runs, _ = simulate_study("mixtures", noise=0.002, num_seeds=-(-args.runs // 380), seed=1)
    runs = runs.take(np.sort(np.random.default_rng(0).permutation(len(runs))[: args.runs]))
    with tempfile.TemporaryDirectory() as folder:
        write_runs(runs, Path(folder) / "runs.csv")
        wall, cpu = time.perf_counter(), time.process_time()
        report([f"runs={folder}/runs.csv", f"out={folder}/out", f"bootstraps={args.bootstraps}"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        pictures = len(list((Path(folder) / "out" / "figures").glob("*.png")))
    page.text(
        f"{len(runs)} runs, {len(runs.mixtures)} mixtures, {args.bootstraps} resamples a fit, {pictures} figures as "
        "PNG, SVG and CSV, one process."
    )
    page.table(
        ["", "goal", "measured", ""],
        [
            goal_line("CPU time", f"{cpu:.3g} s", f"<= {GOAL_S} s", cpu <= GOAL_S),
            goal_line("wall time", f"{wall:.3g} s", f"<= {GOAL_S} s", wall <= GOAL_S),
        ],
    )
    if args.out:
        page.write(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
