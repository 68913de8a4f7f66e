"""Counting a model: parameters under every convention in use, and FLOPs per token.

The paper's size labels are called non-embedding counts in its text, but match another count: all parameters with ONE
of the two vocabulary matrices (1B: 858M without, 1088M with one, 1318M with both). A scaling law in N must say
which count it uses: from one to the other, N changes 3.6-fold at 100M and 1.1-fold at 3B, and so do its exponents.
"""

from __future__ import annotations

from dataclasses import dataclass

from lingua_synth.model.args import ModelArgs, ffn_hidden_dim


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model, counted every way; see `count_parameters`."""

    non_embedding: int
    """Blocks and norms alone: neither vocabulary matrix."""
    embedding: int
    """The input embedding, vocab_size x dim."""
    output: int
    """The output matrix, vocab_size x dim; 0 when tied to the embedding."""

    @property
    def total(self) -> int:
        """Every trainable parameter."""
        return self.non_embedding + self.embedding + self.output

    @property
    def lingua(self) -> int:
        """Total minus one vocabulary matrix: what Lingua calls non-embedding, and (untied) the paper's labels."""
        return self.total - self.embedding

    @property
    def label(self) -> str:
        """The `lingua` count in words, e.g. '1.09B'."""
        for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
            if self.lingua >= size:
                return f"{self.lingua / size:.3g}{unit}"
        return str(self.lingua)


def count_parameters(args: ModelArgs) -> ParameterCounts:
    """Count the parameters of `args` without building it; equal to summing `numel()` over the built model."""
    if args.vocab_size < 1:
        raise ValueError("model.vocab_size is not set: the parameters cannot be counted; give the tokenizer's size")
    head_dim = args.dim // args.n_heads
    kv_dim = head_dim * (args.n_kv_heads or args.n_heads)
    attention = 2 * args.dim * args.dim + 2 * args.dim * kv_dim
    feed_forward = 3 * args.dim * ffn_hidden_dim(args)
    norms = (2 * args.n_layers + 1) * args.dim
    vocabulary_matrix = args.vocab_size * args.dim
    return ParameterCounts(
        non_embedding=args.n_layers * (attention + feed_forward) + norms,
        embedding=vocabulary_matrix,
        output=0 if args.weight_tying else vocabulary_matrix,
    )


FLOPS_FORMULA = "6 * N_non_embedding + 6 * vocab_size * dim + 6 * n_layers * seq_len * dim"


def flops_per_token(args: ModelArgs, seq_len: int) -> int:
    """Training FLOPs per token, forward and backward: `FLOPS_FORMULA`.

    Two FLOPs per multiply-add and three matrix products per weight (forward, input gradient, weight gradient)
    give the 6. The output matrix counts whether tied or not; the embedding look-up does not. Causal attention
    is counted once: a token attends to half of the sequence on average, 12 * seq_len/2 * dim per layer.
    """
    counts = count_parameters(args)
    return 6 * counts.non_embedding + 6 * args.vocab_size * args.dim + 6 * args.n_layers * seq_len * args.dim
