"""The Llama-3 transformer, its size presets and every way of counting it.

`ModelArgs` (Lingua's field names) -> `build_model` -> `Transformer`, with Meta Lingua's parameter names and order of
initialization, so weights and runs can be exchanged with it. Sizes, counts, FLOPs and memory estimates need no torch.
"""

from typing import TYPE_CHECKING, Any

from lingua_synth.model.args import ModelArgs, ffn_hidden_dim, validate_model_args
from lingua_synth.model.counts import (
    FLOPS_CONVENTIONS,
    FLOPS_FORMULA,
    FlopsBreakdown,
    ParameterCounts,
    count_parameters,
    flops_breakdown,
    flops_per_token,
    peak_flops,
)
from lingua_synth.model.memory import MemoryEstimate, estimate_memory, largest_batch_size
from lingua_synth.model.presets import PRESETS, ladder, preset

if TYPE_CHECKING:
    from lingua_synth.model.checkpoint import load_checkpoint
    from lingua_synth.model.transformer import KVCache, Transformer, build_model

__all__ = [
    "FLOPS_CONVENTIONS",
    "FLOPS_FORMULA",
    "PRESETS",
    "FlopsBreakdown",
    "KVCache",
    "MemoryEstimate",
    "ModelArgs",
    "ParameterCounts",
    "Transformer",
    "build_model",
    "count_parameters",
    "estimate_memory",
    "ffn_hidden_dim",
    "flops_breakdown",
    "flops_per_token",
    "ladder",
    "largest_batch_size",
    "load_checkpoint",
    "peak_flops",
    "preset",
    "validate_model_args",
]


def __getattr__(name: str) -> Any:
    # torch is imported only by what needs it, so that planning and counting work without.
    if name in ("KVCache", "Transformer", "build_model"):
        from lingua_synth.model import transformer

        return getattr(transformer, name)
    if name == "load_checkpoint":
        from lingua_synth.model import checkpoint

        return checkpoint.load_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
