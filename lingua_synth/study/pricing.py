"""What a training will cost, from one measured speed: hours, memory per GPU, disk.

    hours = tokens / (tokens per second and GPU),    tokens per second and GPU = FLOP/s / (FLOPs per token)

FLOPs per token are those of `model.counts.flops_per_token`. The rule for sizes that were not measured: a GPU keeps the
FLOP/s it reaches at the measured size, so its MFU, too; between two measured sizes FLOP/s are interpolated in the
logarithm of the FLOPs per token, outside they are the nearest one's. With 1B at 21.7k tokens/s this gives the paper's
"nearly linear in the model size". Start-up, evaluation and checkpoints are not in it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.files import read_json
from lingua_synth.mixture.pool import parse_tokens
from lingua_synth.model.args import ModelArgs
from lingua_synth.model.counts import GPU_MEMORY_BYTES, count_parameters
from lingua_synth.model.memory import MemoryEstimate, estimate_memory, largest_batch_size
from lingua_synth.train.args import TrainArgs

SPEED_RULE = "a size that was not measured keeps the FLOP/s of the nearest ones, interpolated in log FLOPs per token"
CALIBRATION = "calibration.json"
"""In the study's folder: what `lingua-synth study calibrate` measured."""
BYTES_PER_PARAMETER = 12
"""Of a checkpoint: fp32 weights and AdamW's two moments."""


@dataclass(frozen=True)
class Throughput:
    """Measured training speeds."""

    points: tuple[tuple[float, float], ...]
    """(FLOPs per token, tokens per second and GPU) by size, the smallest first."""

    def flops_per_s(self, per_token: float) -> float:
        """FLOP/s per GPU at a size of so many FLOPs per token."""
        reached = [(math.log(flops), flops * speed) for flops, speed in self.points]
        at = math.log(per_token)
        if at <= reached[0][0]:
            return reached[0][1]
        for (x0, y0), (x1, y1) in itertools.pairwise(reached):
            if at <= x1:
                return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
        return reached[-1][1]

    def tokens_per_s(self, per_token: float) -> float:
        """Tokens per second and GPU at a size of so many FLOPs per token."""
        return self.flops_per_s(per_token) / per_token

    def gpu_hours(self, tokens: int, per_token: float) -> float:
        """Hours, summed over its GPUs, of a training of `tokens`."""
        return tokens / self.tokens_per_s(per_token) / 3600


def parse_calibration(text: str) -> dict[str, float]:
    """Tokens per second and GPU by size, of "1B:21.7k" or "200M:110k,1B:21.7k"; ValueError for other forms."""
    speeds: dict[str, float] = {}
    for part in text.split(","):
        size, colon, speed = part.strip().partition(":")
        try:
            value = float(parse_tokens(speed)) if speed[-1:].isalpha() else float(speed)
        except ValueError:
            value = 0.0
        if not (size and colon and value > 0 and math.isfinite(value)):
            raise ValueError(
                f"calibrate is a size and its tokens per second and GPU, 1B:21.7k, or several with commas; got {text!r}"
            )
        if size in speeds:
            raise ValueError(f"calibrate gives {size} twice: {text!r}")
        speeds[size] = value
    return speeds


def calibration_words(speeds: Mapping[str, float]) -> str:
    """Speeds by size as `parse_calibration` reads them: "200M:110000,1B:21700"."""
    return ",".join(f"{size}:{speed:.6g}" if speed < 1e5 else f"{size}:{speed:.0f}" for size, speed in speeds.items())


def read_calibration(folder: str) -> str:
    """What `study calibrate` measured, as `calibrate` has it; empty where it was not called for this folder."""
    path = Path(folder) / CALIBRATION
    if not folder or not path.is_file():
        return ""
    words = read_json(path).get("calibrate")
    if not isinstance(words, str):
        raise ValueError(f"{path} holds no calibration; delete it, and `lingua-synth study calibrate` makes it anew")
    return words


def build_throughput(speeds: Mapping[str, float], per_token: Mapping[str, float]) -> Throughput:
    """Speeds by size, with the FLOPs per token of those sizes."""
    return Throughput(tuple(sorted((float(per_token[size]), float(speed)) for size, speed in speeds.items())))


# --- memory ---


@dataclass(frozen=True)
class MemoryFit:
    """Whether a run's micro-batch fits into a GPU."""

    estimate: MemoryEstimate
    gpu: str
    fits: bool
    largest_batch_size: int
    """The most sequences that do fit; 0: not one."""


def gpu_memory(gpu: str) -> int:
    """Bytes of a GPU by name; ValueError lists the names."""
    if gpu not in GPU_MEMORY_BYTES:
        raise ValueError(f"gpu is one of {', '.join(GPU_MEMORY_BYTES)}; got {gpu!r}")
    return GPU_MEMORY_BYTES[gpu]


def memory_fit(args: TrainArgs, gpu: str, dp_size: int) -> MemoryFit | None:
    """The memory of the resolved `args` on `gpu`; None for a loss whose memory is not known."""
    backend = {"auto": "chunked"}.get(args.synth.loss.backend, args.synth.loss.backend)
    if backend not in ("chunked", "plain"):
        return None
    distributed = args.distributed
    is_sharded = distributed.fsdp_type == "full_shard"
    shards = (distributed.dp_shard if distributed.dp_shard > 1 else dp_size) if is_sharded else 1
    return _memory_fit(
        _Key(args.model),
        gpu,
        args.data.seq_len,
        args.data.batch_size,
        shards,
        is_sharded,
        distributed.model_dtype,
        backend,
        args.synth.loss.chunk_tokens_on("cuda"),
        distributed.compile,
        args.grad_acc_steps > 1,
        distributed.selective_activation_checkpointing,
    )


class _Key:
    """A model as a key of the cache; models of one shape are equal."""

    def __init__(self, model: ModelArgs) -> None:
        self.model = model
        self._key = repr(model)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key


@functools.lru_cache(maxsize=512)
def _memory_fit(
    key: _Key,
    gpu: str,
    seq_len: int,
    batch_size: int,
    shards: int,
    fsdp: bool,
    dtype: str,
    loss: str,
    chunk: int,
    compiled: bool,
    accumulates: bool,
    recomputes: bool,
) -> MemoryFit:
    options: dict[str, Any] = {
        "seq_len": seq_len, "dp_shard": shards, "fsdp": fsdp, "dtype": dtype, "loss": loss, "loss_chunk_tokens": chunk,
        "compiled": compiled, "grad_accumulation": accumulates, "activation_checkpointing": recomputes,
    }  # fmt: skip
    estimate = estimate_memory(key.model, batch_size=batch_size, **options)
    room = gpu_memory(gpu)
    return MemoryFit(estimate, gpu, estimate.fits(room), largest_batch_size(key.model, room, **options))


# --- disk ---


def checkpoint_bytes(model: ModelArgs) -> int:
    """One training checkpoint: fp32 weights and two moments of every parameter."""
    return BYTES_PER_PARAMETER * count_parameters(model).total


def num_checkpoints(args: TrainArgs) -> int:
    """Checkpoints of the resolved `args` that lie on disk at once at most, the one being written included."""
    dump, kept = args.checkpoint.dump, set(args.synth.keep_steps)
    written = {args.steps} | (set(range(dump.every, args.steps, dump.every)) if dump.every else set())
    others = len(written - kept)
    # A new one is whole before an old one is deleted.
    return len(kept) + (others if not dump.keep else min(dump.keep + 1, others))


def token_bytes(vocab_size: int) -> int:
    """Bytes of a token in a shard."""
    return 2 if vocab_size <= 1 << 16 else 4
