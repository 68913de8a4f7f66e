"""Meta Lingua's transformer with per-token losses: the loss is computed inside its `output` module.

Inside, because FSDP gathers `output.weight` for the length of that module's forward pass; there the loss is computed in
chunks and no tensor of all logits exists. Names of parameters, their initial values and the plan of sharding are
Lingua's own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lingua_synth.model.loss import token_nll


def build_model_class(
    transformer: ModuleType,
    *,
    attention: str,
    backend: str,
    chunk_tokens: int,
    built: Callable[[nn.Module], None],
    saw: Callable[[torch.Tensor], None],
) -> type[nn.Module]:
    """A subclass of Lingua's `LMTransformer` (`transformer` is its module).

    Called in training with tokens and labels `[batch, seq_len]` it returns their mean loss, as Lingua's does, and hands
    the losses `[batch, seq_len]` in nats to `saw`; in evaluation it returns them. `built` gets every new model.
    """

    def losses(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # A tensor of its own: FSDP hangs a hook on it and warns of views.
        return token_nll(hidden, weight, labels, backend=backend, chunk_tokens=chunk_tokens).clone()

    class LossHead(nn.Linear):
        """Logits of hidden states, or with labels their losses."""

        def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return F.linear(hidden, self.weight) if labels is None else losses(hidden, self.weight, labels)

    class TiedLossHead(transformer.TiedLinear):  # type: ignore[name-defined]
        """The same with the embedding's weight. Like Lingua's it is called around the hooks of `nn.Module`."""

        def __call__(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            weight = self.tied_module.weight
            return F.linear(hidden, weight) if labels is None else losses(hidden, weight, labels)

    class LossTransformer(transformer.LMTransformer):  # type: ignore[name-defined]
        """Lingua's language model whose `output` computes the loss."""

        def __init__(self, args: Any):
            super().__init__(args)
            self.output: nn.Module = (
                TiedLossHead(self.tok_embeddings)
                if args.weight_tying
                else LossHead(args.dim, args.vocab_size, bias=False)
            )
            built(self)

        def __call__(self, tokens: torch.Tensor, labels: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
            # Outside of `forward`, which may be compiled, and outside of FSDP's hooks around it.
            found = super().__call__(tokens, labels, **options)
            if labels is None or not self.training:
                return found
            saw(found.detach())
            return found.mean()

        def forward(
            self,
            tokens: torch.Tensor,
            labels: torch.Tensor | None = None,
            tok_idx: torch.Tensor | None = None,
            mask: Any = None,
            attn_impl: str = attention,
        ) -> torch.Tensor:
            if mask is None:
                mask = transformer.create_causal_mask(tokens.shape[1], attn_impl, self.sliding_window)
            hidden = self.tok_embeddings(tokens)
            hidden = super(transformer.LMTransformer, self).forward(
                hidden, tok_idx=tok_idx, mask=mask, attn_impl=attn_impl
            )
            return self.output(self.norm(hidden), labels)

    return LossTransformer
