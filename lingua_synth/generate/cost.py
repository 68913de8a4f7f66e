"""What synthetic tokens cost beside the trainings that read them.

    GPU-hours of generation = distinct synthetic tokens, in the training's tokens / (kept tokens a GPU-hour)
    GPU-hours of training   = runs x tokens x FLOPs per token / (peak FLOP/s x MFU x 3600)

Generated tokens are paid whether a filter keeps them or not, distinct tokens are paid once and read by every run and
in every epoch. So the share of generation in the bill falls with the size of the model, the number of runs that share
the text and the epochs; for one small run it is most of the bill.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.files import read_json
from lingua_synth.generate import store
from lingua_synth.generate.accounting import WORKERS, read_usage
from lingua_synth.model.counts import PEAK_FLOPS, count_parameters, flops_per_token, in_words, peak_flops
from lingua_synth.model.presets import preset

MIN_PARTS = 3
"""Processes, and shards, that a standard error takes."""


@dataclass(frozen=True)
class GenerationRate:
    """What a generator makes, and where the figure comes from."""

    gpu_hours_per_billion: float
    """GPU-hours per billion tokens written, kept or not, start and idle time included."""
    keep_rate: float
    """Share of the written tokens that stand in kept records."""
    source: str

    @property
    def per_billion_kept(self) -> float:
        """GPU-hours per billion kept tokens."""
        return self.gpu_hours_per_billion / self.keep_rate


@dataclass(frozen=True)
class Cost:
    """Generation beside training, in GPU-hours."""

    rate: GenerationRate
    size: str
    parameters: int
    """Non-embedding."""
    tokens: float
    """Training tokens of one run."""
    ratio: float
    runs: int
    epochs: float
    distinct_tokens: float
    """Synthetic tokens that must be generated and kept, in the generator's tokens."""
    generation_gpu_h: float
    one_run_gpu_h: float
    training_gpu_h: float
    gpu: str
    mfu: float
    break_even_speedup: float
    """How many times fewer tokens the mixture must need for the loss of natural text, to pay for its generation."""

    @property
    def generation_share(self) -> float:
        """Generation as a multiple of the training that it serves."""
        return self.generation_gpu_h / self.training_gpu_h

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**dataclasses.asdict(self), "generation_share": self.generation_share}

    def __str__(self) -> str:
        rate, per_billion = self.rate, "GPU-h per billion tokens"
        kept = f"{rate.keep_rate:.0%} kept: {rate.per_billion_kept:,.1f} per billion kept ({rate.source})"
        model = f"{self.size} ({in_words(self.parameters)} non-embedding)"
        hours = f"{self.training_gpu_h:,.4g} GPU-h ({self.one_run_gpu_h:,.4g} a run)"
        gpu = f"on {self.gpu} at MFU {self.mfu:.0%}"
        distinct = f"{self.distinct_tokens:,.4g} to generate, {self.generation_gpu_h:,.4g} GPU-h"
        rows = {
            "generator": f"{rate.gpu_hours_per_billion:,.1f} {per_billion} written, {kept}",
            "training": f"{self.runs:,} x {model}, {self.tokens:,.4g} tokens each, {gpu}: {hours}",
            "synthetic": f"{self.ratio:.2%} of the tokens in {self.epochs:g} epochs: {distinct}",
            "generation / training": f"{self.generation_share:.3g}",
            "pays for itself": f"if natural text needs {self.break_even_speedup:.3g} times the tokens for that loss",
        }
        return "\n".join(f"{name:22} {value}" for name, value in rows.items())


def measured_rate(out_dir: str | Path) -> GenerationRate:
    """The rate of a generation run's folder, over all processes that worked on it, waste included.

    Raises ValueError for a folder without a manifest, and for a run whose engine held no GPU of its own.
    """
    folder = Path(out_dir)
    if not (folder / store.MANIFEST).is_file():
        raise ValueError(f"{folder} has no {store.MANIFEST}: no finished generation run")
    manifest = read_json(folder / store.MANIFEST)
    usage = read_usage(folder)
    if not usage.gpu_h:
        raise ValueError(
            f"{folder} was made by {manifest['engine']['name']}, which held no GPU in our processes (a CPU, or a "
            "server); give gpu_hours_per_billion= of the server's GPUs, and keep_rate="
        )
    if not manifest["output_tokens"]:
        raise ValueError(f"{folder} has no kept tokens, so there is no rate")
    keep_rate = manifest["output_tokens"] / usage.generated_tokens
    source = f"measured in {folder.name}, {usage.gpu_h:,.2f} GPU-h"
    return GenerationRate(usage.gpu_h / usage.generated_tokens * 1e9, keep_rate, source)


def rate_error(out_dir: str | Path) -> float | None:
    """Relative standard error of a run's GPU-hours per kept token, by the jackknife.

    Over its processes for the hours per token, over its shards for the keep rate. None where there are fewer than
    `MIN_PARTS` of either: one process says nothing of how the next would do.
    """
    folder = Path(out_dir)
    workers = [read_json(path) for path in sorted((folder / WORKERS).glob("*.json"))]
    hours = [(_gpu_hours(one), float(one["generated_tokens"])) for one in workers]
    shards = read_json(folder / store.MANIFEST)["shards"]
    kept = [(float(one["output_tokens"]), float(one["generated_tokens"])) for one in shards]
    errors = [_jackknife([pair for pair in pairs if pair[1] > 0]) for pairs in (hours, kept)]
    return None if None in errors else math.hypot(*(error or 0.0 for error in errors))


def _gpu_hours(worker: Mapping[str, Any]) -> float:
    return sum(float(worker.get(name, 0.0)) for name in ("gpu_startup_h", "gpu_busy_h", "gpu_idle_h"))


def _jackknife(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Standard error of ln(sum of the first / sum of the second), leaving out one pair at a time."""
    num = len(pairs)
    tops, bottoms = sum(top for top, _ in pairs), sum(bottom for _, bottom in pairs)
    if num < MIN_PARTS or min(tops - top for top, _ in pairs) <= 0:
        return None
    logs = [math.log((tops - top) / (bottoms - bottom)) for top, bottom in pairs]
    mean = sum(logs) / num
    return math.sqrt((num - 1) / num * sum((one - mean) ** 2 for one in logs))


def generation_cost(
    rate: GenerationRate,
    *,
    size: str,
    tokens: float,
    ratio: float,
    runs: int = 1,
    epochs: float = 1.0,
    tokens_ratio: float = 1.0,
    gpu: str = "H100",
    mfu: float = 0.4,
    seq_len: int = 4096,
) -> Cost:
    """Generation beside `runs` trainings of the preset `size` on `tokens` tokens each, `ratio` of them synthetic.

    `epochs`: how often a run reads its synthetic text. `tokens_ratio`: the generator's tokens per token of training
    (other vocabularies, other lengths). `gpu`, `mfu`, `seq_len`: the training's; FLOPs per token as in `sizes`.
    Raises ValueError for a size or GPU that is unknown and for numbers that cannot be.
    """
    for name, value in (("tokens", tokens), ("runs", runs), ("epochs", epochs), ("tokens_ratio", tokens_ratio)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is the synthetic share of the tokens, above 0 and at most 1; got {ratio}")
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is a share of the GPU's peak, above 0 and at most 1; got {mfu}")
    if not rate.gpu_hours_per_billion >= 0 or not 0 < rate.keep_rate <= 1:
        raise ValueError(
            f"a generator has gpu_hours_per_billion of at least 0 and a keep_rate above 0 and at most 1; got {rate}"
        )
    peak = peak_flops(gpu)
    if peak is None:
        raise ValueError(f"no GPU {gpu!r}; known are {', '.join(PEAK_FLOPS)}")
    args = preset(size)
    distinct = tokens * ratio / epochs * tokens_ratio
    generation = distinct / 1e9 * rate.per_billion_kept
    one_run = tokens * flops_per_token(args, seq_len) / (peak * mfu * 3600)
    return Cost(
        rate=rate,
        size=size,
        parameters=count_parameters(args).non_embedding,
        tokens=tokens,
        ratio=ratio,
        runs=runs,
        epochs=epochs,
        distinct_tokens=distinct,
        generation_gpu_h=generation,
        one_run_gpu_h=one_run,
        training_gpu_h=runs * one_run,
        gpu=gpu,
        mfu=mfu,
        break_even_speedup=1 + generation / (runs * one_run),
    )
