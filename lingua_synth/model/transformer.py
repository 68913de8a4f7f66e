"""The Llama transformer in plain PyTorch.

Tokens -> embedding -> n x (norm, causal attention, add; norm, SwiGLU, add) -> norm -> output matrix. Parameter names
and the order in which they draw their initial values are Meta Lingua's, so that equal seeds give equal models.

Shapes: B batch, T sequence, D dim, H heads, K key/value heads, C head dimension, V vocabulary.
Mixed precision: parameters stay fp32; activations have the type of `compute_dtype`, and each weight is cast where it is
used (the gradient comes back in fp32). In bf16 the norms and the loss still reduce in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lingua_synth.model.args import ModelArgs, ffn_hidden_dim, head_dim, validate_model_args
from lingua_synth.model.attention import KVCache, attend, attend_sdpa, build_mask, validate_attention
from lingua_synth.model.loss import CHUNK_TOKENS, token_nll, validate_loss
from lingua_synth.model.rotary import rotary_table, rotate

__all__ = ["Attention", "Block", "FeedForward", "KVCache", "Transformer", "build_model"]


class Linear(nn.Linear):
    """A bias-free linear layer that computes in the type of its input."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: `Transformer.init_weights` draws every weight, in its own order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Embedding(nn.Embedding):
    """A table of token vectors."""

    def reset_parameters(self) -> None:
        """Nothing: `Transformer.init_weights` draws every weight, in its own order."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in fp32, returned in the type of x."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight.float()).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; K < H shares each key/value head among H/K query heads."""

    def __init__(self, args: ModelArgs, layer: int, backend: str):
        super().__init__()
        self.layer = layer
        self.backend = backend
        self.n_heads = args.n_heads
        self.n_kv_heads = args.n_kv_heads or args.n_heads
        self.head_dim = head_dim(args)
        self.wq = Linear(args.dim, self.n_heads * self.head_dim)
        self.wk = Linear(args.dim, self.n_kv_heads * self.head_dim)
        self.wv = Linear(args.dim, self.n_kv_heads * self.head_dim)
        self.wo = Linear(self.n_heads * self.head_dim, args.dim)

    def forward(
        self, x: torch.Tensor, table: torch.Tensor, mask: Any = None, cache: KVCache | None = None, start: int = 0
    ) -> torch.Tensor:
        queries = rotate(self.wq(x).unflatten(-1, (self.n_heads, self.head_dim)), table).transpose(1, 2)
        keys = rotate(self.wk(x).unflatten(-1, (self.n_kv_heads, self.head_dim)), table).transpose(1, 2)
        values = self.wv(x).unflatten(-1, (self.n_kv_heads, self.head_dim)).transpose(1, 2)
        if cache is None:
            attended = attend(queries, keys, values, mask, self.backend)
        else:
            assert start == 0 or x.shape[1] == 1, "a cache is filled from 0 with a prompt, then token by token"
            keys, values = cache.update(self.layer, start, keys, values)
            attended = attend_sdpa(queries, keys, values, causal=start == 0)
        return self.wo(attended.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        hidden = ffn_hidden_dim(args)
        self.w1 = Linear(args.dim, hidden)
        self.w3 = Linear(args.dim, hidden)
        self.w2 = Linear(hidden, args.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One pre-norm transformer block; a unit of compilation (`block.compile()`) and of sharding."""

    def __init__(self, args: ModelArgs, layer: int, attention: str = "sdpa"):
        super().__init__()
        self.attention = Attention(args, layer, attention)
        self.feed_forward = FeedForward(args)
        self.attention_norm = RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, args.norm_eps)

    def forward(
        self, x: torch.Tensor, table: torch.Tensor, mask: Any = None, cache: KVCache | None = None, start: int = 0
    ) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), table, mask, cache, start)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    """The language model. `forward` gives per-token losses with labels, logits without.

    Constructed with its memory as it comes, also on the meta device: `init_weights` fills everything, or
    `init_buffers` and a checkpoint do (`build_model` does the first). In between it may be sharded (FSDP2, every block
    and then the whole) and given memory by `to_empty`.

    `attention`: one of ATTENTION_BACKENDS; `loss`: one of LOSS_BACKENDS, or "auto". They change speed and memory, not
    the model.
    """

    table: torch.Tensor

    def __init__(
        self,
        args: ModelArgs,
        compute_dtype: torch.dtype = torch.float32,
        *,
        attention: str = "sdpa",
        loss: str = "auto",
        loss_chunk_tokens: int = CHUNK_TOKENS,
    ):
        super().__init__()
        validate_model_args(args)
        validate_attention(attention)
        validate_loss(loss, loss_chunk_tokens)
        self.args = args
        self.compute_dtype = compute_dtype
        self.attention = attention
        self.loss, self.loss_chunk_tokens = loss, loss_chunk_tokens
        self.tok_embeddings = Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(Block(args, layer, attention) for layer in range(args.n_layers))
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.output = Linear(args.dim, args.vocab_size)
        if args.weight_tying:
            self.output.weight = self.tok_embeddings.weight
        self.register_buffer("table", torch.empty(args.max_seqlen, head_dim(args) // 2, 2), persistent=False)
        self.init_buffers()

    def _apply(self, fn: Any, recurse: bool = True) -> Transformer:
        # Leaving the meta device makes new parameters, module by module: a tied matrix would become two.
        super()._apply(fn, recurse)
        if self.args.weight_tying:
            self.output.weight = self.tok_embeddings.weight
        return self

    def hidden(
        self,
        tokens: torch.Tensor,
        cache: KVCache | None = None,
        start: int = 0,
        document: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states [B, T, D] of tokens [B, T] that stand at positions start..start+T."""
        rows, length = tokens.shape
        end = start + length
        assert end <= self.args.max_seqlen, f"position {end} is past max_seqlen {self.args.max_seqlen}"
        assert cache is None or document is None, "a cache holds one document per row"
        mask = None if cache is not None else build_mask(self.attention, document, rows, length, tokens.device)
        x = self.tok_embeddings(tokens).to(self.compute_dtype)
        for layer in self.layers:
            x = layer(x, self.table[start:end], mask, cache, start)
        return self.norm(x)

    def forward(
        self,
        tokens: torch.Tensor,
        labels: torch.Tensor | None = None,
        cache: KVCache | None = None,
        start: int = 0,
        document: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Losses in nats, fp32 [B, T], of `labels` (-100: 0, and no gradient); or logits [B, T, V] in the compute type
        when there are none.

        `document` [B, T]: the document of each token inside its sequence, never decreasing. Attention then stays
        inside documents; positions still run over the whole sequence, which rotary attention cannot see: it knows
        distances alone. Without it every token sees all before it, across documents, as Meta Lingua's training does.
        """
        hidden = self.hidden(tokens, cache, start, document)
        if labels is None:
            return self.output(hidden)
        return token_nll(hidden, self.output.weight, labels, backend=self.loss, chunk_tokens=self.loss_chunk_tokens)

    @torch.no_grad()
    def init_buffers(self) -> None:
        """Compute the rotary table, on whatever device the model is: after `to_empty`, before a checkpoint is read."""
        if not self.table.is_meta:
            self.table.copy_(rotary_table(self.args))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every parameter and buffer; weights are drawn from `seed` in Lingua's order: embedding, output, then
        block by block.

        Normal, cut at three standard deviations; 1/sqrt(dim), and 1/sqrt(hidden) for the second feed-forward matrix,
        unless `init_base_std` is set; norms are 1. The numbers are drawn on the CPU, matrix by matrix, whatever holds
        the parameters: one device or shards on many (all ranks call it) get the same ones. No global random state is
        read or changed.
        """
        args = self.args
        self.init_buffers()
        for module in self.modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        generator = torch.Generator().manual_seed(seed)
        in_std = args.init_base_std or args.dim**-0.5
        out_std = args.init_base_std or ffn_hidden_dim(args) ** -0.5
        _draw(self.tok_embeddings.weight, generator, in_std)
        if not args.weight_tying:
            _draw(self.output.weight, generator, in_std)
        for depth, block in enumerate(self.layers):
            assert isinstance(block, Block), "layers hold blocks"
            factor = {
                "disabled": 1.0,
                "global_depth": (2 * (args.n_layers + 1)) ** 0.5,
                "current_depth": (2 * (depth + 1)) ** 0.5,
                "dim_ratio": args.dim / 4096,
            }[args.init_std_factor]
            attention, feed_forward = block.attention, block.feed_forward
            for weight in (attention.wq, attention.wk, attention.wv):
                _draw(weight.weight, generator, in_std)
            # Lingua cuts this one at three of the undivided standard deviation.
            _draw(attention.wo.weight, generator, in_std / factor, cut=3 * in_std)
            _draw(feed_forward.w1.weight, generator, in_std)
            _draw(feed_forward.w3.weight, generator, in_std)
            _draw(feed_forward.w2.weight, generator, out_std / factor)


def _draw(weight: torch.Tensor, generator: torch.Generator, std: float, cut: float | None = None) -> None:
    """Fill `weight` with normal numbers of the CPU's generator, cut at `cut` (three standard deviations)."""
    cut = 3 * std if cut is None else cut
    sharded = isinstance(weight, DTensor)
    whole = torch.empty(weight.shape, dtype=weight.dtype, device="cpu") if sharded or not weight.is_cpu else weight
    nn.init.trunc_normal_(whole, mean=0.0, std=std, a=-cut, b=cut, generator=generator)
    if isinstance(weight, DTensor):
        # Every rank drew the whole matrix (random numbers of a sharded one differ by layout, and on the CPU repeat on
        # every rank); each keeps its own part of it, without a message.
        part = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.to_local().copy_(part.to_local())
    elif whole is not weight:
        weight.copy_(whole)


def build_model(
    args: ModelArgs, *, seed: int, compute_dtype: torch.dtype = torch.float32, **options: Any
) -> Transformer:
    """Build and initialize the model of `args` on the CPU; `options` as `Transformer` takes them.

    ValueError if the fields do not make a model.
    """
    model = Transformer(args, compute_dtype, **options)
    model.init_weights(seed)
    return model
