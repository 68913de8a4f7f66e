"""`lingua-synth sizes`: what models of given sizes count, cost and need, before anything is trained.

lingua-synth sizes
lingua-synth sizes sizes=[100M,350M,1.5B] batch_size=8 dp_shard=8
lingua-synth sizes sizes=[nano-27k,nano-150k] vocab_size=1024 seq_len=256 compile=false dtype=fp32
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lingua_synth.config import parse_args
from lingua_synth.model.args import ModelArgs, ffn_hidden_dim
from lingua_synth.model.counts import (
    FLOPS_FORMULA,
    GIB,
    GPU_MEMORY_BYTES,
    count_parameters,
    flops_per_token,
    in_words,
)
from lingua_synth.model.memory import HEADROOM, MemoryEstimate, estimate_memory, largest_batch_size
from lingua_synth.model.presets import PRESETS, preset

PROG = "lingua-synth sizes"


@dataclass
class SizesArgs:
    """Print models by size: shape, parameters by three counts, FLOPs per token, memory per GPU. Trains nothing."""

    sizes: list[str] = field(default_factory=lambda: [name for name in PRESETS if not name.startswith("nano")])
    """Presets, or sizes between: 350M, 1.5B, nano-150k."""
    seq_len: int = 4096
    """Tokens per sequence, at least 1."""
    batch_size: int = 4
    """Sequences per GPU in a micro-batch, at least 1."""
    dp_shard: int = 1
    """GPUs that FSDP divides a model among; 1: every GPU holds all of it."""
    vocab_size: int | None = None
    """Entries of the embedding; null: the preset's (Llama 3's). Nano presets have none and need it."""
    dtype: str = "bf16"
    """Compute type: bf16 or fp32."""
    loss: str = "chunked"
    """chunked, or plain with all logits at once."""
    compile: bool = True
    """Blocks are compiled."""
    activation_checkpointing: bool = False
    """Blocks keep products and attention alone and compute the rest again."""


def main(argv: Sequence[str]) -> int | None:
    """Print the table."""
    args = parse_args(SizesArgs, argv, prog=PROG)
    if not args.sizes:
        raise ValueError("sizes is empty; name some, as sizes=[100M,350M]")
    models = {name: _model_args(name, args.vocab_size) for name in args.sizes}
    rows = [_HEADER, *(_row(name, model, args) for name, model in models.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *numbers, row[-1]]))
    print()
    print("one matrix: parameters with one vocabulary matrix, the count of the paper's labels; all: with both.")
    print(f"GFLOP/token: {FLOPS_FORMULA}, at seq_len {args.seq_len:,}.")
    print(
        f"GiB/GPU: fp32 weights, gradients and AdamW, {args.dtype} activations of {args.batch_size} x {args.seq_len:,} "
        f"tokens, on {args.dp_shard} GPU{'s' if args.dp_shard > 1 else ''}; an estimate."
    )
    print(f"most sequences: what each GPU holds in a micro-batch, {HEADROOM:.0%} of its memory left free.")
    return None


_HEADER = (
    *("size", "dim", "layers", "heads", "kv", "ffn"),
    *("non-embedding", "one matrix", "all", "GFLOP/token", "GiB/GPU", "most sequences"),
)


def _model_args(name: str, vocab_size: int | None) -> ModelArgs:
    model = preset(name)
    if vocab_size is not None:
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
        model = dataclasses.replace(model, vocab_size=vocab_size)
    if model.vocab_size < 1:
        raise ValueError(f"{name} takes its vocabulary from the tokenizer: give vocab_size")
    return model


def _row(name: str, model: ModelArgs, args: SizesArgs) -> tuple[str, ...]:
    counts = count_parameters(model)
    with_one = counts.non_embedding + counts.embedding
    return (
        name,
        f"{model.dim:,}",
        str(model.n_layers),
        str(model.n_heads),
        str(model.n_kv_heads or model.n_heads),
        f"{ffn_hidden_dim(model):,}",
        in_words(counts.non_embedding),
        in_words(with_one),
        in_words(counts.total),
        _digits(flops_per_token(model, args.seq_len) / 1e9),
        _digits(_estimate(model, args).total / GIB),
        _gpus(model, args),
    )


def _digits(value: float) -> str:
    """Three digits, never an exponent for a large number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _estimate(model: ModelArgs, args: SizesArgs) -> MemoryEstimate:
    return estimate_memory(model, batch_size=args.batch_size, **_options(args))


def _options(args: SizesArgs) -> dict[str, Any]:
    return {
        "seq_len": args.seq_len,
        "dp_shard": args.dp_shard,
        "fsdp": args.dp_shard > 1,
        "dtype": args.dtype,
        "loss": args.loss,
        "compiled": args.compile,
        "activation_checkpointing": args.activation_checkpointing,
    }


def _gpus(model: ModelArgs, args: SizesArgs) -> str:
    """The GPUs that hold at least one sequence, from the smallest: name and most sequences."""
    found = {gpu: largest_batch_size(model, size, **_options(args)) for gpu, size in GPU_MEMORY_BYTES.items()}
    return ", ".join(f"{gpu}: {best:,}" for gpu, best in found.items() if best) or "none"
