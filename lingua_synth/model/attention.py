"""Causal attention, over the whole sequence or inside each of its documents, by three backends with one result.

`sdpa` is PyTorch's fused kernel; `flex_attention` compiles the mask into a kernel that skips what is masked, the one
to take for documents on a GPU; `fmha` is xformers'. The mask depends on the batch alone: `build_mask` makes it once,
outside the blocks, and every layer's `attend` uses it.

Shapes: B batch, T queries, S keys, H heads, K key/value heads (K divides H), C head dimension.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lingua_synth.model.args import ModelArgs, head_dim

ATTENTION_BACKENDS = ("sdpa", "flex_attention", "fmha")

EXPLICIT_ATTENTION_UP_TO = 256


def validate_attention(backend: str) -> None:
    """Raise ValueError if there is no such backend, or its package is not installed."""
    if backend not in ATTENTION_BACKENDS:
        raise ValueError(f"attention is one of {', '.join(ATTENTION_BACKENDS)}; got {backend!r}")
    if backend == "fmha" and importlib.util.find_spec("xformers") is None:
        raise ValueError(
            "attention fmha needs xformers, which is not installed: install lingua-synth[gpu], or take "
            "flex_attention or sdpa, which give the same numbers"
        )


def build_mask(backend: str, document: torch.Tensor | None, batch_size: int, length: int, device: torch.device) -> Any:
    """What `attend` takes as `mask`: None for a plain causal `sdpa`, else an object of the backend.

    `document` [B, T]: the document each token belongs to, never decreasing along a row; a token then attends to
    itself and to the earlier tokens of its document. Without it, to all earlier tokens.

    On a CPU torch's flex_attention has no backward pass: there its mask is made dense and goes to `sdpa`.
    """
    if document is not None and document.shape != (batch_size, length):
        raise ValueError(f"document has shape {list(document.shape)}, the tokens [{batch_size}, {length}]")
    if backend == "fmha":
        return _fmha_mask(document)
    if backend == "flex_attention" and device.type != "cpu":
        return _causal_block_mask(length, device) if document is None else flex_mask(document)
    return None if document is None else dense_mask(document)


def dense_mask(document: torch.Tensor) -> torch.Tensor:
    """Who may see whom, boolean [B, 1, T, T]: same document, and not later."""
    same = document[:, :, None] == document[:, None, :]
    return same.tril()[:, None]


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: Any, backend: str) -> torch.Tensor:
    """Softmax attention of queries [B, H, T, C] over keys and values [B, K, T, C] with the mask of `build_mask`."""
    if backend == "fmha":
        return attend_fmha(queries, keys, values, mask)
    if mask is None or isinstance(mask, torch.Tensor):
        return attend_sdpa(queries, keys, values, causal=mask is None, mask=mask)
    return attend_flex(queries, keys, values, mask)


def attend_sdpa(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    causal: bool,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention of queries [B, H, T, C] over keys and values [B, K, S, C].

    `causal` needs T = S and no mask. PyTorch's fused kernel, but plain products on the CPU where those are faster: for
    short training sequences (bf16, T 128, C 32, forward and backward: 2.3 ms against 7.8 ms), and for the one query of
    a sampling step (256 rows of a nano model: 6.9 ms a step against 8.4 ms).
    """
    length, on_cpu = queries.shape[2], queries.device.type == "cpu"
    trains_short = keys.shape[2] == length <= EXPLICIT_ATTENTION_UP_TO and queries.requires_grad
    if not on_cpu or not (trains_short or length == 1):
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=keys.shape[1] != queries.shape[1]
        )
    keys, values = _repeated(keys, queries.shape[1]), _repeated(values, queries.shape[1])
    scores = ((queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif causal and length > 1:
        # An added mask, not masked_fill: the gradient of a sum is free.
        scores = scores + torch.full((length, length), float("-inf")).triu(1)
    return scores.softmax(-1).to(values.dtype) @ values


def _repeated(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values [B, K, S, C] as [B, heads, S, C]."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


# ---- flex_attention ----


def flex_mask(document: torch.Tensor) -> Any:
    """The BlockMask of causal attention inside documents [B, T]."""
    rows, length = document.shape

    def sees(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & (document[b, q] == document[b, k])

    return _block_mask(sees, rows, length, document.device)


@functools.lru_cache(maxsize=8)
def _causal_block_mask(length: int, device: torch.device) -> Any:
    return _block_mask(lambda b, h, q, k: q >= k, None, length, device)


def _block_mask(sees: Callable[..., torch.Tensor], rows: int | None, length: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    # Compiled, it finds the blocks without making all T x T entries of every row first.
    make: Any = create_block_mask
    if device.type == "cuda":
        make = torch.compile(create_block_mask)
    return make(sees, rows, None, length, length, device=str(device))


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def attend_flex(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_mask: Any) -> torch.Tensor:
    """Attention by torch's flex_attention: its fused kernel on a GPU, its plain products elsewhere (no gradient)."""
    from torch.nn.attention.flex_attention import flex_attention

    function: Callable[..., Any] = flex_attention
    if queries.device.type == "cuda" and not torch.compiler.is_compiling():
        function = _compiled_flex_attention()
    grouped = keys.shape[1] != queries.shape[1]
    return function(queries, keys, values, block_mask=block_mask, enable_gqa=grouped)


# ---- xformers ----


def document_lengths(document: torch.Tensor) -> list[int]:
    """Lengths of the documents of all rows laid end to end; a row ends its last document. Waits for the device."""
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    starts = [*begins.flatten().nonzero().flatten().tolist(), document.numel()]
    return [end - start for start, end in itertools.pairwise(starts)]


def _fmha_mask(document: torch.Tensor | None) -> Any:
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask, LowerTriangularMask

    if document is None:
        return LowerTriangularMask()
    return BlockDiagonalCausalMask.from_seqlens(document_lengths(document))


def attend_fmha(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: Any) -> torch.Tensor:
    """Attention by xformers' memory_efficient_attention; documents as one row of many pieces."""
    from xformers.ops import fmha

    heads, rows = queries.shape[1], queries.shape[0]
    laid_out = [x.transpose(1, 2) for x in (queries, _repeated(keys, heads), _repeated(values, heads))]
    if not isinstance(bias, fmha.attn_bias.LowerTriangularMask):
        laid_out = [x.flatten(0, 1)[None] for x in laid_out]
    attended = fmha.memory_efficient_attention(*laid_out, attn_bias=bias)
    return attended.view(rows, -1, *attended.shape[2:]).transpose(1, 2)


# ---- sampling ----


class KVCache:
    """Keys and values of the tokens already read, for sampling: per layer [B, K, max_len, C]."""

    def __init__(self, args: ModelArgs, batch_size: int, max_len: int, device: str | torch.device, dtype: torch.dtype):
        shape = (batch_size, args.n_kv_heads or args.n_heads, max_len, head_dim(args))
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
