"""How a model is spread over the ranks: whole on each (DDP), or sharded (FSDP2), plain or hybrid.

`shard_model` comes before the weights have memory, `wrap_model` after they are filled. Whatever the layout, the
weights, the batch and the loss are the same; gradients differ by the order of their sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lingua_synth.model.distributed import Ranks
from lingua_synth.model.transformer import Transformer
from lingua_synth.train.args import TrainArgs


def shard_model(model: Transformer, args: TrainArgs, ranks: Ranks) -> None:
    """With full_shard, divide the parameters of `model` among the ranks, in place; otherwise nothing.

    Every block is one unit of communication; embedding, last norm and output matrix are another. With dp_shard below
    the number of ranks the sharded model is replicated (hybrid): gradients are reduced inside the copy, then across.
    """
    distributed = args.distributed
    if distributed.fsdp_type != "full_shard" or not dist.is_initialized():
        return
    num_shards = distributed.dp_shard if distributed.dp_shard > 1 else ranks.size
    shape: tuple[int, ...] = (ranks.size // num_shards, num_shards)
    names: tuple[str, ...] = ("dp_replicate", "dp_shard")
    if shape[0] == 1:
        shape, names = shape[1:], names[1:]
    options: dict[str, Any] = {
        "mesh": init_device_mesh(ranks.device.type, shape, mesh_dim_names=names),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if distributed.model_dtype == "bf16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        ),
    }
    for layer in model.layers:
        fully_shard(layer, reshard_after_forward=args.synth.reshard_after_forward, **options)
    fully_shard(model, **options)


def wrap_model(model: Transformer, args: TrainArgs, ranks: Ranks) -> nn.Module:
    """The model as a step calls it: recomputing, compiled, exchanging gradients, as the config says.

    `model` keeps its parameters and their names; its blocks are changed in place.
    """
    if args.distributed.selective_activation_checkpointing:
        for layer in model.layers:
            _recompute(layer)
    if args.distributed.compile:
        torch._dynamo.config.recompile_limit = args.distributed.compile_cache_size_limit
        for layer in model.layers:
            layer.compile()
    if ranks.size == 1 or isinstance(model, FSDPModule):
        return model
    device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


@contextlib.contextmanager
def exchanging_gradients(stepper: nn.Module, exchange: bool) -> Iterator[None]:
    """The ranks exchange gradients in the backward pass inside, or keep them to themselves until the last one."""
    if isinstance(stepper, FSDPModule):
        stepper.set_requires_gradient_sync(exchange)
    if isinstance(stepper, DistributedDataParallel) and not exchange:
        with stepper.no_sync():
            yield
    else:
        yield


def clip_gradients(model: nn.Module, largest: float) -> torch.Tensor:
    """Scale the gradients down to the norm `largest`; returns the norm they had, the same on all ranks."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _recompute(block: nn.Module) -> None:
    """Let `block` keep matrix products and attention for its backward pass, and compute the rest again."""
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    aten = torch.ops.aten
    kept = {
        aten.mm.default,
        aten._scaled_mm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    }

    def policy(context: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if function in kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    forward = block.forward

    def recomputing(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        options: dict[str, Any] = {"use_reentrant": False, "context_fn": contexts, "preserve_rng_state": False}
        return checkpoint(forward, *inputs, **options, **named)

    block.forward = recomputing
