"""Memory estimates against the tensors that a forward and backward pass on the CPU really keeps."""

import dataclasses
import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lingua_synth.model import ModelArgs, build_model, preset
from lingua_synth.model.counts import GIB
from lingua_synth.model.memory import estimate_memory, largest_batch_size

# Longer than the sequences whose attention is written out on a CPU, where it would keep T x T tensors.
SMALL = ModelArgs(dim=96, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=512, max_seqlen=320, multiple_of=32)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def kept_by_a_block(args, dtype, compiled):
    """Bytes per token that a block saves for its backward pass, weights and their copies aside."""
    model = build_model(args, seed=0, compute_dtype=dtype)
    block = model.layers[0]
    if compiled:
        torch._dynamo.reset()
        block.compile(backend="aot_eager_decomp_partition")  # chooses what to keep as inductor does
    x = torch.randn(2, 320, args.dim, dtype=dtype, requires_grad=True)
    weights = {shape for p in block.parameters() for shape in (tuple(p.shape), tuple(p.shape)[::-1])}
    kept = {}

    def pack(tensor):
        if tuple(tensor.shape) not in weights and tensor.untyped_storage().data_ptr() != model.table.data_ptr():
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x, model.table[:320])
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (2 * 320)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_keeps_what_the_formula_says(dtype, compiled, kv_heads):
    args = dataclasses.replace(SMALL, n_kv_heads=kv_heads)

    def per_token(n_layers):
        deep = dataclasses.replace(args, n_layers=n_layers)
        return estimate_memory(deep, seq_len=1, batch_size=1, dtype=dtype, compiled=compiled).activations

    assert kept_by_a_block(args, DTYPES[dtype], compiled) == per_token(2) - per_token(1)


class Alive(TorchDispatchMode):
    """Bytes of all tensors made inside that are alive, now and at most."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    def gone(self, key):
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, storage._cdata)
        return out


def recompute(block):
    """Keep matrix products and attention of `block` alone."""
    kept = {torch.ops.aten.mm.default, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default}

    def policy(context, function, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if function in kept else CheckpointPolicy.PREFER_RECOMPUTE

    forward = block.forward
    block.forward = lambda *inputs: checkpoint(
        forward, *inputs, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy)
    )


@pytest.mark.parametrize(
    ("dtype", "loss", "vocab_size", "checkpointed"),
    [
        ("bf16", "chunked", 512, False),
        ("bf16", "chunked", 8192, False),
        ("bf16", "plain", 8192, False),
        ("fp32", "chunked", 512, False),
        ("fp32", "chunked", 8192, False),
        ("fp32", "plain", 8192, False),
        ("bf16", "chunked", 512, True),
        ("fp32", "chunked", 512, True),
    ],
)
def test_a_step_has_as_much_alive_as_estimated(dtype, loss, vocab_size, checkpointed):
    args = dataclasses.replace(SMALL, vocab_size=vocab_size)
    model = build_model(args, seed=0, compute_dtype=DTYPES[dtype], loss=loss, loss_chunk_tokens=256)
    if checkpointed:
        for block in model.layers:
            recompute(block)
    tokens = torch.randint(0, vocab_size, (4, 320), generator=torch.Generator().manual_seed(0))
    with Alive() as alive:
        losses = model(tokens, tokens)
        (losses.sum() / losses.numel()).backward()
    estimate = estimate_memory(
        args,
        seq_len=320,
        batch_size=4,
        dtype=dtype,
        loss=loss,
        loss_chunk_tokens=256,
        compiled=False,
        activation_checkpointing=checkpointed,
    )
    weights = 4 * sum(p.numel() for p in model.parameters())
    # Weights were there before; gradients come as activations go.
    expected = estimate.total - weights - estimate.gradients - estimate.optimizer
    assert math.isclose(alive.peak, expected, rel_tol=0.15)


def test_states_of_the_1b_preset():
    # 18 bytes per parameter on one GPU; 12 of them divided among eight, gradients whole while they accumulate.
    args = preset("1B")
    alone = estimate_memory(args, seq_len=4096, batch_size=4)
    divided = estimate_memory(args, seq_len=4096, batch_size=4, fsdp=True, dp_shard=8)
    exchanged = estimate_memory(args, seq_len=4096, batch_size=4, fsdp=True, dp_shard=8, grad_accumulation=False)
    total = 1_317_616_384

    def states(estimate):
        return estimate.parameters + estimate.gradients + estimate.optimizer

    assert states(alone) == 18 * total
    assert states(divided) == (12 // 4) * total // 2 + 6 * total
    assert states(exchanged) == 2 * total + 2 * total
    # 16 d + 6 ffn per layer and token, as research on Lingua measured, and a little beside the blocks.
    assert math.isclose(alone.activations, 4 * 4096 * 22 * (16 * 1792 + 6 * 4864), rel_tol=0.03)
    assert 40 * GIB < alone.total < 46 * GIB


def test_the_loss_of_the_paper_s_batch_needs_chunks():
    # 16,384 tokens x 128,256 entries: 26 GB and more of logits, or one chunk of them.
    plain, chunked = (estimate_memory(preset("100M"), seq_len=4096, batch_size=4, loss=n) for n in ("plain", "chunked"))
    assert plain.loss > 25e9 and chunked.loss < 1.5e9


def test_the_largest_batch_is_the_largest():
    args, options = preset("1B"), {"seq_len": 4096}
    for gib in (24, 40, 80, 139):
        best = largest_batch_size(args, gib * GIB, **options)
        assert not estimate_memory(args, batch_size=best + 1, **options).fits(gib * GIB)
        assert best == 0 or estimate_memory(args, batch_size=best, **options).fits(gib * GIB)
    assert largest_batch_size(args, 24 * GIB, **options) == 0
    assert largest_batch_size(args, 80 * GIB, **options) >= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp16"}, "dtype is bf16 or fp32, got 'fp16'"),
        ({"loss": "liger"}, "memory of loss 'liger' is not known"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"dp_shard": 8}, "set fsdp, or dp_shard 1"),
    ],
)
def test_impossible_estimates_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        estimate_memory(SMALL, **{"seq_len": 8, "batch_size": 1, **options})
