"""Every budget of a size from one run: a WSD trunk, and branches that leave it where their decay begins.

    warm-up ─ flat ───────┬───────────┬──────────────┐
                          └ decay D1  └ decay D2     └ decay D3: the trunk itself

The trunk is the straight run of the largest budget and keeps a checkpoint at every smaller budget's branch point. A
branch goes on from there with weights, optimizer and place in the data, and is to the bit (on a CPU) the straight WSD
run of its budget; it trains `decay_fraction` of its tokens itself. All budgets share one warm-up, in steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lingua_synth.train.args import TrainArgs
from lingua_synth.train.schedule import first_decayed_step


def lay_ladder(runs: Sequence[TrainArgs], steps: Sequence[int]) -> list[TrainArgs]:
    """The runs of one size, smallest budget first, as straight WSD runs with one warm-up; the last keeps the others'
    branch points.

    A config that has another schedule gets wsd, with a decay to 0 by the square root of the progress; one that says wsd
    keeps its decay. `synth.warmup_ratio` is taken of the smallest budget. ValueError for a warm-up that does not end
    before the first decay.
    """
    first = runs[0]
    optim = first.optim
    decay = first.synth.decay
    if optim.scheduler != "wsd":
        optim, decay = dataclasses.replace(optim, scheduler="wsd", lr_min_ratio=0.0), "sqrt"
    if optim.cycle_length != 1.0:
        raise ValueError(f"run {first.name}: a ladder's trunk is one cycle; set optim.cycle_length=1")
    if first.synth.warmup_ratio is not None:
        optim = dataclasses.replace(optim, warmup=round(steps[0] * first.synth.warmup_ratio))
    branch_points = [first_decayed_step(count, optim.decay_fraction) for count in steps]
    if optim.warmup > branch_points[0]:
        raise ValueError(
            f"run {first.name}: a warm-up of {optim.warmup:,} steps does not end before its decay begins, at step "
            f"{branch_points[0]:,} of {steps[0]:,}; lower optim.warmup or optim.decay_fraction, or drop that budget"
        )
    laid = []
    for args in runs:
        synth = dataclasses.replace(args.synth, decay=decay, warmup_ratio=None)
        laid.append(dataclasses.replace(args, optim=dataclasses.replace(optim), synth=synth))
    kept = sorted(set(branch_points[:-1]))
    laid[-1] = dataclasses.replace(laid[-1], synth=dataclasses.replace(laid[-1].synth, keep_steps=kept))
    return laid


def branch_off(args: TrainArgs, trunk: TrainArgs, num_steps: int) -> tuple[TrainArgs, int]:
    """(the run of `num_steps` as a branch of `trunk`, the step at which it begins)."""
    step = first_decayed_step(num_steps, args.optim.decay_fraction)
    checkpoint = Path(trunk.dump_dir) / "checkpoints" / f"{step:010d}"
    return dataclasses.replace(args, synth=dataclasses.replace(args.synth, branch_from=str(checkpoint))), step
