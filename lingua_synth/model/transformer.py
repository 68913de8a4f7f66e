"""The Llama transformer in plain PyTorch.

Tokens -> embedding -> n x (norm, causal attention, add; norm, SwiGLU, add) -> norm -> output matrix. Parameter names
and the order in which they draw their initial values are Meta Lingua's, so that equal seeds give equal models.

Shapes: B batch, T sequence, D dim, H heads, K key/value heads, C head dimension, V vocabulary.
Mixed precision: parameters stay fp32; activations have the type of `compute_dtype`, and each weight is cast where it is
used (the gradient comes back in fp32). In bf16 the norms and the loss still reduce in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lingua_synth.model.args import ModelArgs, ffn_hidden_dim, validate_model_args
from lingua_synth.model.loss import token_nll

EXPLICIT_ATTENTION_UP_TO = 256


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


def rotary_table(head_dim: int, length: int, theta: float) -> torch.Tensor:
    """Unit complex numbers exp(i t theta^(-2k/head_dim)) for position t and pair k: complex64 [length, head_dim /
    2]."""
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2)[: head_dim // 2].float() / head_dim))
    angles = torch.outer(torch.arange(length), frequencies).float()
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs (x[2k], x[2k+1]) of x [B, T, H, C] by `table` [T, C/2]; computed in fp32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None, :]).flatten(-2).to(x.dtype)


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: bool) -> torch.Tensor:
    """Softmax attention of queries [B, H, T, C] over keys and values [B, K, S, C]; K divides H.

    `causal` needs T = S. PyTorch's fused kernel, but plain products on the CPU where those are faster: for short
    training sequences (bf16, T 128, C 32, forward and backward: 2.3 ms against 7.8 ms), and for the one query of a
    sampling step (256 rows of a nano model: 6.9 ms a step against 8.4 ms).
    """
    length, on_cpu = queries.shape[2], queries.device.type == "cpu"
    trains_short = causal and length <= EXPLICIT_ATTENTION_UP_TO and queries.requires_grad
    if not on_cpu or not (trains_short or length == 1):
        return F.scaled_dot_product_attention(
            queries, keys, values, is_causal=causal, enable_gqa=keys.shape[1] != queries.shape[1]
        )
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    scores = ((queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)).float()
    if length > 1:
        # An added mask, not masked_fill: the gradient of a sum is free.
        scores = scores + torch.full((length, length), float("-inf")).triu(1)
    return scores.softmax(-1).to(values.dtype) @ values


class KVCache:
    """Keys and values of the tokens already read, for sampling: per layer [B, K, max_len, C]."""

    def __init__(self, args: ModelArgs, batch_size: int, max_len: int, device: str | torch.device, dtype: torch.dtype):
        shape = (batch_size, args.n_kv_heads or args.n_heads, max_len, args.dim // args.n_heads)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(args.n_layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(args.n_layers)]

    def update(
        self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [B, K, T, C] at positions start..start+T; return all positions up to there."""
        end = start + keys.shape[2]
        self.keys[layer][:, :, start:end] = keys
        self.values[layer][:, :, start:end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def compact(self, keep_rows: torch.Tensor) -> None:
        """Keep only the rows whose indices are given, in that order."""
        self.keys = [keys[keep_rows] for keys in self.keys]
        self.values = [values[keep_rows] for values in self.values]


class Attention(nn.Module):
    """Causal self-attention with rotary positions; K < H shares each key/value head among H/K query heads."""

    def __init__(self, args: ModelArgs, layer: int):
        super().__init__()
        self.layer = layer
        self.n_heads = args.n_heads
        self.n_kv_heads = args.n_kv_heads or args.n_heads
        self.head_dim = args.dim // args.n_heads
        self.wq = Linear(args.dim, self.n_heads * self.head_dim)
        self.wk = Linear(args.dim, self.n_kv_heads * self.head_dim)
        self.wv = Linear(args.dim, self.n_kv_heads * self.head_dim)
        self.wo = Linear(self.n_heads * self.head_dim, args.dim)

    def forward(self, x: torch.Tensor, table: torch.Tensor, cache: KVCache | None, start: int) -> torch.Tensor:
        queries = rotate(self.wq(x).unflatten(-1, (self.n_heads, self.head_dim)), table).transpose(1, 2)
        keys = rotate(self.wk(x).unflatten(-1, (self.n_kv_heads, self.head_dim)), table).transpose(1, 2)
        values = self.wv(x).unflatten(-1, (self.n_kv_heads, self.head_dim)).transpose(1, 2)
        causal = True
        if cache is not None:
            assert start == 0 or x.shape[1] == 1, "a cache is filled from 0 with a prompt, then token by token"
            keys, values = cache.update(self.layer, start, keys, values)
            causal = start == 0
        attended = attend(queries, keys, values, causal)
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
    """One pre-norm transformer block."""

    def __init__(self, args: ModelArgs, layer: int):
        super().__init__()
        self.attention = Attention(args, layer)
        self.feed_forward = FeedForward(args)
        self.attention_norm = RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, args.norm_eps)

    def forward(self, x: torch.Tensor, table: torch.Tensor, cache: KVCache | None, start: int) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), table, cache, start)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    """The language model. `forward` gives per-token losses with labels, logits without.

    Constructed with its memory as it comes: `init_weights` or a checkpoint fills it (`build_model` does both steps).
    """

    table: torch.Tensor

    def __init__(
        self,
        args: ModelArgs,
        compute_dtype: torch.dtype = torch.float32,
        *,
        attention="sdpa",
        loss="auto",
        loss_chunk_tokens=1024,
    ):
        super().__init__()
        validate_model_args(args)
        self.args = args
        self.compute_dtype = compute_dtype
        self.tok_embeddings = Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(Block(args, layer) for layer in range(args.n_layers))
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.output = Linear(args.dim, args.vocab_size)
        if args.weight_tying:
            self.output.weight = self.tok_embeddings.weight
        table = rotary_table(args.dim // args.n_heads, args.max_seqlen, args.rope_theta)
        self.register_buffer("table", table, persistent=False)

    def hidden(self, tokens: torch.Tensor, cache: KVCache | None = None, start: int = 0) -> torch.Tensor:
        """Final hidden states [B, T, D] of tokens [B, T] that stand at positions start..start+T."""
        end = start + tokens.shape[1]
        assert end <= self.args.max_seqlen, f"position {end} is past max_seqlen {self.args.max_seqlen}"
        x = self.tok_embeddings(tokens).to(self.compute_dtype)
        for layer in self.layers:
            x = layer(x, self.table[start:end], cache, start)
        return self.norm(x)

    def forward(
        self,
        tokens: torch.Tensor,
        labels: torch.Tensor | None = None,
        cache: KVCache | None = None,
        start: int = 0,
        document=None,
    ) -> torch.Tensor:
        """Losses in nats, fp32 [B, T], of `labels` (int64); or logits [B, T, V] in the compute type when there are
        none."""
        hidden = self.hidden(tokens, cache, start)
        if labels is None:
            return self.output(hidden)
        return token_nll(hidden, self.output.weight, labels)

    def init_buffers(self):
        a = self.args
        self.table.copy_(rotary_table(a.dim // a.n_heads, a.max_seqlen, a.rope_theta))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw all weights from `seed` in Lingua's order: embedding, output, then block by block.

        Normal, cut at three standard deviations; 1/sqrt(dim), and 1/sqrt(hidden) for the second feed-forward matrix,
        unless `init_base_std` is set. Leaves the global random state as it was.
        """
        args = self.args
        self.init_buffers()
        for m in self.modules():
            if isinstance(m, RMSNorm):
                m.weight.fill_(1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _draw(self.tok_embeddings.weight, args.init_base_std or args.dim**-0.5)
            if not args.weight_tying:
                _draw(self.output.weight, args.init_base_std or args.dim**-0.5)
            for depth, block in enumerate(self.layers):
                assert isinstance(block, Block), "layers hold blocks"
                factor = {
                    "disabled": 1.0,
                    "global_depth": (2 * (args.n_layers + 1)) ** 0.5,
                    "current_depth": (2 * (depth + 1)) ** 0.5,
                    "dim_ratio": args.dim / 4096,
                }[args.init_std_factor]
                in_std = args.init_base_std or args.dim**-0.5
                out_std = args.init_base_std or ffn_hidden_dim(args) ** -0.5
                for weight in (block.attention.wq, block.attention.wk, block.attention.wv):
                    _draw(weight.weight, in_std)
                # Lingua cuts this one at three of the undivided standard deviation.
                _draw(block.attention.wo.weight, in_std / factor, cut=3 * in_std)
                _draw(block.feed_forward.w1.weight, in_std)
                _draw(block.feed_forward.w3.weight, in_std)
                _draw(block.feed_forward.w2.weight, out_std / factor)


def _draw(weight: torch.Tensor, std: float, cut: float | None = None) -> None:
    cut = 3 * std if cut is None else cut
    full = torch.empty(weight.shape)
    nn.init.trunc_normal_(full, mean=0.0, std=std, a=-cut, b=cut)
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(weight, DTensor):
        full = distribute_tensor(full.to(weight.device), weight.device_mesh, weight.placements)
    weight.copy_(full)


def build_model(args: ModelArgs, *, seed: int, compute_dtype: torch.dtype = torch.float32) -> Transformer:
    """Build and initialize the model of `args` on the CPU. ValueError if the fields do not make a model."""
    model = Transformer(args, compute_dtype)
    model.init_weights(seed)
    return model
