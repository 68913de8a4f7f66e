"""How much GPU memory a training takes, per GPU, before it is started.

What depends on the model alone (weights, gradients, AdamW's two moments, the bf16 copies that the products use) is
counted; what depends on the batch is counted tensor by tensor as PyTorch keeps it for the backward pass. Per token and
block, with e bytes per number in the compute type, d the width, a and k the widths of all query and all key heads, f
the feed-forward width and H heads:

    compiled:      e (4d + 2a + 2k + 3f) + 4H + 8
    eager, bf16:   20d + 4a + 4k + 8f + 4H + 8        (norms keep fp32 tensors)
    eager, fp32:   24d + 8a + 8k + 16f + 4H + 8
    recomputing:   e (3d + 2a + 2k + 2f) + 4H         (products and attention kept, the rest computed again)

For the paper's sizes (a = k = d, bf16) compiled is 16d + 6f. The loss holds the logits of one chunk, or with `plain` of
the whole batch; it is over before a block's backward pass needs room of its own, so the larger of the two counts.
Tests compare all of it with the tensors that a step on a CPU keeps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lingua_synth.model.args import ModelArgs, ffn_hidden_dim, head_dim
from lingua_synth.model.counts import GIB, count_parameters

CHUNK_TOKENS = 1024

# What an allocator's gaps, the CUDA context and communication buffers take beside the tensors; an assumption, not a
# measurement.
HEADROOM = 0.08


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per GPU at the fullest moment of a training step; see `estimate_memory`."""

    parameters: int
    """fp32 weights of this GPU's share, and the copies in the compute type."""
    gradients: int
    """fp32 gradients."""
    optimizer: int
    """Two fp32 moments of AdamW."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    loss: int
    """Logits and gradients that exist only while the loss is computed."""
    block: int
    """Tensors that exist only during one block's backward pass; never beside those of the loss."""

    @property
    def total(self) -> int:
        """All that exists at once."""
        lasting = self.parameters + self.gradients + self.optimizer + self.activations
        return lasting + max(self.loss, self.block)

    def fits(self, gpu_bytes: float, headroom: float = HEADROOM) -> bool:
        """Whether it fits in a GPU's memory with a share of `headroom` left free."""
        return self.total <= gpu_bytes * (1 - headroom)

    def __str__(self) -> str:
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in (parts | {"total": self.total}).items())


def estimate_memory(
    args: ModelArgs,
    *,
    seq_len: int,
    batch_size: int,
    dp_shard: int = 1,
    fsdp: bool = False,
    dtype: str = "bf16",
    loss: str = "chunked",
    loss_chunk_tokens: int = CHUNK_TOKENS,
    compiled: bool = True,
    grad_accumulation: bool = True,
    activation_checkpointing: bool = False,
) -> MemoryEstimate:
    """Memory per GPU of a training with `batch_size` sequences of `seq_len` tokens in a micro-batch.

    `fsdp`: weights, gradients and moments are divided among `dp_shard` GPUs; with `grad_accumulation` the gradients
    stay whole, since they are exchanged only after the last micro-batch. `dtype`: compute type, bf16 or fp32 (weights
    are fp32 in both). `loss`: chunked or plain. `activation_checkpointing`: blocks keep products and attention alone.

    ValueError for what is out of range.
    """
    if dtype not in ("bf16", "fp32"):
        raise ValueError(f"dtype is bf16 or fp32, got {dtype!r}")
    if loss not in ("chunked", "plain"):
        raise ValueError(f"the memory of loss {loss!r} is not known; estimates are for chunked and plain")
    for name, value in (("seq_len", seq_len), ("batch_size", batch_size), ("dp_shard", dp_shard)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if dp_shard > 1 and not fsdp:
        raise ValueError(f"dp_shard {dp_shard} divides the model among GPUs, which fsdp does; set fsdp, or dp_shard 1")

    size = 2 if dtype == "bf16" else 4
    counts = count_parameters(args)
    shards = dp_shard if fsdp else 1
    # Copies: a cast of every matrix is kept for the backward pass; under FSDP it is what was gathered. fp32 alone
    # computes with the weights themselves.
    copies = size * counts.total if dtype == "bf16" or shards > 1 else 0
    gradient_shards = 1 if grad_accumulation else shards
    tokens = seq_len * batch_size
    per_token, working = _activation_bytes(args, size, compiled, activation_checkpointing)
    return MemoryEstimate(
        parameters=-(-4 * counts.total // shards) + copies,
        gradients=-(-4 * counts.total // gradient_shards),
        optimizer=-(-8 * counts.total // shards),
        activations=tokens * per_token,
        loss=_loss_bytes(args, size, tokens, loss, loss_chunk_tokens),
        block=tokens * working,
    )


def _activation_bytes(args: ModelArgs, size: int, compiled: bool, checkpointed: bool) -> tuple[int, int]:
    """Bytes per token of all blocks, the last norm and the tokens themselves; and of a block going backward."""
    width, ffn = args.dim, ffn_hidden_dim(args)
    queries, keys = args.n_heads * head_dim(args), (args.n_kv_heads or args.n_heads) * head_dim(args)
    statistics = 4 * args.n_heads + 8  # log-sum-exp of attention, root mean square of two norms, fp32
    eager_norm = (10 if size == 2 else 12) * width
    eager_block = 2 * eager_norm + size * (2 * queries + 2 * keys + 4 * ffn) + statistics
    if checkpointed:
        block = size * (3 * width + 2 * queries + 2 * keys + 2 * ffn) + 4 * args.n_heads
    elif compiled:
        block = size * (4 * width + 2 * queries + 2 * keys + 3 * ffn) + statistics
    else:
        block = eager_block
    # Gradients of the three widest tensors and, recomputing, what was computed again.
    working = size * 3 * ffn + (max(eager_block - block, 0) if checkpointed else 0)
    tokens_and_labels = 16
    return args.n_layers * block + eager_norm + 4 + tokens_and_labels, working


def _loss_bytes(args: ModelArgs, size: int, tokens: int, loss: str, chunk: int) -> int:
    vocab = args.vocab_size
    if loss == "plain":
        # Log-probabilities, their gradient and that of the logits, in fp32.
        return tokens * vocab * 12
    # A chunk's logits (bf16: beside them their softmax in fp32, and its copy), the matrix' gradient, one row per token.
    logits = min(chunk, tokens) * vocab * (8 if size == 2 else 4)
    return logits + 4 * vocab * args.dim + size * tokens * args.dim


def largest_batch_size(args: ModelArgs, gpu_bytes: float, *, headroom: float = HEADROOM, **options: Any) -> int:
    """The most sequences in a micro-batch that fit in `gpu_bytes`; 0 if not even one does.

    `options` as `estimate_memory` takes them, without batch_size.
    """

    def fits(batch_size: int) -> bool:
        return estimate_memory(args, batch_size=batch_size, **options).fits(gpu_bytes, headroom)

    if not fits(1):
        return 0
    good, bad = 1, 2
    while fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
