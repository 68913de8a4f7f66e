"""Learning rate over peak, as a pure function of the step (0-based), with Meta Lingua's values."""

from __future__ import annotations

import math

from lingua_synth.train.args import OptimArgs


def learning_rate_ratio(step: int, optim: OptimArgs, num_steps: int, decay: str = "reciprocal") -> float:
    """What multiplies `optim.lr` at `step` in 0..num_steps-1.

    Linear warm-up `step / warmup`, so the very first step of a warmed-up run has rate 0, as in Lingua. Then, with
    s the progress since the warm-up (0 to 1 at step `num_steps`) and m = `lr_min_ratio`:

    - `constant`: 1
    - `linear`: 1 - s (1 - m)
    - `cosine`: m + (1 - m) (1 + cos(pi s^theta / cycle_length)) / 2; the cosine's sign turns with every cycle
    - `wsd`: 1, and over the last `decay_fraction` of each cycle 1 / (p/m + 1 - p) for p from 0 to 1 (the decay of Wen
      et al. 2024, arXiv:2410.05192: the reciprocal of the rate grows linearly). Ours beside it (`decay`): linear,
      1 - p (1 - m), and sqrt, 1 - sqrt(p) (1 - m) (Haegele et al. 2024, arXiv:2405.18392)
    - `inv_sqrt`: (warmup / step)^exp_factor, at least m
    """
    warmup, floor = optim.warmup, optim.lr_min_ratio
    if step < warmup:
        return step / warmup
    if optim.scheduler == "constant":
        return 1.0
    if optim.scheduler == "inv_sqrt":
        return max((warmup / step) ** optim.exp_factor, floor) if step else 1.0
    if optim.scheduler == "wsd":
        return _stable_then_decay(step, optim, num_steps, decay)
    progress = min(1.0, (step - warmup) / (num_steps - warmup))
    if optim.scheduler == "linear":
        return 1.0 - progress * (1.0 - floor)
    assert optim.scheduler == "cosine", "resolve_args knows the schedulers"
    sign = -1 if (step // (num_steps * optim.cycle_length)) % 2 else 1
    angle = math.pi * progress**optim.cosine_theta / optim.cycle_length
    return floor + 0.5 * (1.0 - floor) * (sign * math.cos(angle) + 1.0)


def _stable_then_decay(step: int, optim: OptimArgs, num_steps: int, decay: str) -> float:
    cycle = int(num_steps * optim.cycle_length)
    end = cycle * (step // cycle + 1)
    num_decaying = int(end * optim.decay_fraction)
    if step <= end - num_decaying:
        return 1.0
    progress = (step - (end - num_decaying)) / num_decaying
    if decay == "linear":
        return 1.0 - progress * (1.0 - optim.lr_min_ratio)
    if decay == "sqrt":
        return 1.0 - math.sqrt(progress) * (1.0 - optim.lr_min_ratio)
    assert decay == "reciprocal", "resolve_args knows the decays"
    return 1.0 / (progress / optim.lr_min_ratio + 1.0 - progress)


def first_decayed_step(num_steps: int, decay_fraction: float) -> int:
    """Steps of a wsd run of one cycle before the first whose rate is below the peak: up to there all budgets train
    alike, once their warm-up is the same."""
    return num_steps - int(num_steps * decay_fraction)
