"""What training a model of N parameters costs per billion tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lingua_synth.model.counts import PEAK_FLOPS, count_parameters, flops_per_token, peak_flops
from lingua_synth.model.presets import preset
from lingua_synth.scaling.frontier import FlopsRule, preset_flops
from lingua_synth.scaling.runs import Runs
from lingua_synth.study.pricing import Throughput, build_throughput, parse_calibration

OF_THE_TABLE = "runs"
"""Speeds of the runs table itself, from its column gpu_hours."""


@dataclass(frozen=True)
class TrainingCost:
    """GPU-hours of a billion training tokens by model size."""

    flops: FlopsRule
    flops_per_s: Throughput | float
    """What a GPU reaches: measured at some sizes, or one number for all."""
    words: str

    def gpu_hours_per_billion(self, N: float) -> float:
        """GPU-hours to train a model of N parameters on a billion tokens."""
        per_token = float(self.flops.per_token(N))
        speed = self.flops_per_s
        reached = speed.flops_per_s(per_token) if isinstance(speed, Throughput) else speed
        return 1e9 * per_token / reached / 3600


def training_cost(
    runs: Runs,
    *,
    n_definition: str = "non_embedding",
    gpu: str = "H100",
    mfu: float = 0.4,
    calibrate: str = "",
    seq_len: int = 4096,
) -> TrainingCost:
    """The cost of training by size.

    FLOPs per token are those of the table where it has `flops` at three sizes or more, else of the presets' proportions
    at `seq_len`. Speed: `gpu` at `mfu`; or `calibrate`, tokens per second and GPU by size as in a study ("1B:21.7k"),
    or "runs" for the speeds of the table. Sizes between and beyond keep the FLOP/s of the nearest ones.

    ValueError for a GPU that is not known, an MFU that is no share, speeds that are none.
    """
    rule = _flops_of(runs, n_definition) or preset_flops(seq_len, n_definition)
    if not calibrate:
        peak = peak_flops(gpu)
        if peak is None:
            raise ValueError(f"no GPU {gpu!r}; known are {', '.join(PEAK_FLOPS)}")
        if not 0 < mfu <= 1:
            raise ValueError(f"mfu is a share of the GPU's peak, above 0 and at most 1; got {mfu}")
        return TrainingCost(rule, peak * mfu, f"training: {rule.name}, on {gpu} at MFU {100 * mfu:g} %")
    speeds = _speeds_of(runs, n_definition) if calibrate == OF_THE_TABLE else parse_calibration(calibrate)
    per_token = {}
    for size in speeds:
        mine = runs["size"] == size
        if mine.any():
            per_token[size] = float(rule.per_token(float(runs.N(n_definition)[mine].mean())))
        else:
            per_token[size] = float(flops_per_token(preset(size), seq_len))
    named = ", ".join(f"{size} {speed:,.4g}" for size, speed in speeds.items())
    words = f"training: {rule.name}, at measured tokens per second and GPU ({named})"
    return TrainingCost(rule, build_throughput(speeds, per_token), words)


def size_in_words(n: str, runs: Runs, n_definition: str) -> tuple[float, str]:
    """(N, how it was read) of `n`: a size of the table, a preset, or parameters as `n_definition` counts them (858M).

    ValueError for what is none of these.
    """
    from lingua_synth.mixture.pool import parse_tokens
    from lingua_synth.model.presets import PRESETS

    if len(runs) and (runs["size"] == n).any():
        return float(runs.N(n_definition)[runs["size"] == n].mean()), f"size {n} of the table"
    if n in PRESETS:
        return float(getattr(count_parameters(preset(n)), n_definition)), f"preset {n}"
    try:
        return float(parse_tokens(n)), "a count"
    except ValueError:
        there = ", ".join(dict.fromkeys(runs["size"].tolist())) if len(runs) else "no size"
        raise ValueError(
            f"n={n!r} is no size of the table ({there}), no preset and no number of parameters (858M)"
        ) from None


def _flops_of(runs: Runs, n_definition: str) -> FlopsRule | None:
    if "flops" not in runs.columns:
        return None
    N, per_token = runs.N(n_definition), runs["flops"] / runs["tokens"]
    known = np.isfinite(N) & np.isfinite(per_token) & (per_token > 0)
    sizes = np.unique(N[known])
    if len(sizes) < 3:
        return None
    means = [float(np.exp(np.mean(np.log(per_token[known & np.isclose(N, size, rtol=1e-12)])))) for size in sizes]
    return FlopsRule.through("FLOPs per token of the runs", sizes, means, n_definition)


def _speeds_of(runs: Runs, n_definition: str) -> dict[str, float]:
    """Tokens per second and GPU by size, over all runs of the table that say their hours."""
    hours = runs.columns.get("gpu_hours")
    known = np.zeros(len(runs), dtype=bool) if hours is None else np.isfinite(hours) & (hours > 0)
    if hours is None or not known.any():
        raise ValueError(
            "calibrate=runs takes the speeds of the table, which has no gpu_hours; give calibrate=1B:21.7k (tokens per "
            "second and GPU), or gpu= and mfu="
        )
    found = {}
    for size in dict.fromkeys(runs["size"][known].tolist()):
        mine = known & (runs["size"] == size)
        speed = float(runs["tokens"][mine].sum() / hours[mine].sum() / 3600)
        assert math.isfinite(speed), "tokens and hours are positive"
        found[str(size)] = speed
    return found
