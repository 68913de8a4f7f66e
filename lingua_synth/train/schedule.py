"""Learning rate over peak, as a pure function of the step (0-based), with Meta Lingua's values."""

from __future__ import annotations

import math

from lingua_synth.train.args import OptimArgs


def learning_rate_ratio(step: int, optim: OptimArgs, num_steps: int) -> float:
    """What multiplies `optim.lr` at `step` in 0..num_steps-1.

    Linear warm-up `step / warmup`, so the very first step of a warmed-up run has rate 0, as in Lingua; then constant,
    or down to `lr_min_ratio` along half a cosine or a line that would arrive at step `num_steps`.
    """
    if step < optim.warmup:
        return step / optim.warmup
    if optim.scheduler == "constant":
        return 1.0
    progress = min(1.0, (step - optim.warmup) / (num_steps - optim.warmup))
    if optim.scheduler == "linear":
        return 1.0 - progress * (1.0 - optim.lr_min_ratio)
    return optim.lr_min_ratio + 0.5 * (1.0 - optim.lr_min_ratio) * (math.cos(math.pi * progress) + 1.0)
