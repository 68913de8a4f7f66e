"""Counting a model: parameters and training FLOPs under every convention in use, and what hardware can do.

The paper's size labels are called non-embedding counts in its text, but match another count: all parameters with ONE
of the two vocabulary matrices (1B: 858M without, 1088M with one, 1318M with both). A scaling law in N must say
which count it uses: from one to the other, N changes 3.6-fold at 100M and 1.1-fold at 3B, and so do its exponents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lingua_synth.model.args import ModelArgs, ffn_hidden_dim, head_dim


def in_words(count: int) -> str:
    """A count of parameters in three digits, e.g. '1.09B'."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        # 999,600 is 1M, not 1e+03k.
        if count >= 0.9995 * size:
            digits = 2 if count < 9.995 * size else 1 if count < 99.95 * size else 0
            number = f"{count / size:.{digits}f}"
            return (number.rstrip("0").rstrip(".") if digits else number) + unit
    return str(count)


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
        return in_words(self.lingua)


def count_parameters(args: ModelArgs) -> ParameterCounts:
    """Count the parameters of `args` without building it; equal to summing `numel()` over the built model."""
    if args.vocab_size < 1:
        raise ValueError("model.vocab_size is not set: the parameters cannot be counted; give the tokenizer's size")
    query_dim = head_dim(args) * args.n_heads
    kv_dim = head_dim(args) * (args.n_kv_heads or args.n_heads)
    attention = 2 * args.dim * query_dim + 2 * args.dim * kv_dim
    feed_forward = 3 * args.dim * ffn_hidden_dim(args)
    norms = (2 * args.n_layers + 1) * args.dim
    vocabulary_matrix = args.vocab_size * args.dim
    return ParameterCounts(
        non_embedding=args.n_layers * (attention + feed_forward) + norms,
        embedding=vocabulary_matrix,
        output=0 if args.weight_tying else vocabulary_matrix,
    )


FLOPS_FORMULA = "6 * N_non_embedding + 6 * vocab_size * dim + 6 * n_layers * seq_len * n_heads * head_dim"


@dataclass(frozen=True)
class FlopsBreakdown:
    """Training FLOPs per token, forward and backward, by where they are spent; they sum to `flops_per_token`."""

    blocks: int
    """Matrices of the blocks (and, negligibly, norms): 6 * N_non_embedding."""
    head: int
    """Output matrix: 6 * vocab_size * dim, tied or not; the embedding look-up costs nothing."""
    attention: int
    """Scores and their use, causal: 6 * n_layers * seq_len * n_heads * head_dim."""

    @property
    def total(self) -> int:
        """FLOPs per token."""
        return self.blocks + self.head + self.attention


def flops_breakdown(args: ModelArgs, seq_len: int) -> FlopsBreakdown:
    """Where the FLOPs of a training token go at `seq_len`.

    Two FLOPs per multiply-add and three matrix products per weight (forward, input gradient, weight gradient) give the
    6. Causal attention is counted once: a token attends to half of the sequence on average, 12 * seq_len/2 * width per
    layer.
    """
    return FlopsBreakdown(
        blocks=6 * count_parameters(args).non_embedding,
        head=6 * args.vocab_size * args.dim,
        attention=6 * args.n_layers * seq_len * args.n_heads * head_dim(args),
    )


FLOPS_CONVENTIONS: dict[str, str] = {
    "causal": FLOPS_FORMULA,
    "palm": "6 * N_non_embedding + 6 * vocab_size * dim + 12 * n_layers * seq_len * n_heads * head_dim",
    "lingua": "6 * (N_total - vocab_size * dim) + 7 * n_layers * seq_len * dim",
    "6N": "6 * (N_non_embedding + vocab_size * dim)",
    "6N_non_embedding": "6 * N_non_embedding",
}
"""Formulas in use, by name. `causal` is ours. `palm` (nanoGPT, llm-foundry) counts masked attention as if it were
done; `lingua`, as Meta Lingua logs it, counts attention's second forward pass inside its kernel, and loses the output
matrix when it is tied; the last two leave attention out."""


def flops_per_token(args: ModelArgs, seq_len: int, convention: str = "causal") -> int:
    """Training FLOPs per token, forward and backward, by a formula of `FLOPS_CONVENTIONS`; ValueError names them.

    An MFU under one convention times the ratio of two of these is the MFU under the other.
    """
    counts, parts = count_parameters(args), flops_breakdown(args, seq_len)
    if convention == "causal":
        return parts.total
    if convention == "palm":
        return parts.total + parts.attention
    if convention == "lingua":
        return 6 * counts.lingua + 7 * args.n_layers * seq_len * args.dim
    if convention == "6N":
        return parts.blocks + parts.head
    if convention == "6N_non_embedding":
        return parts.blocks
    raise ValueError(f"no FLOPs convention {convention!r}; there are: {', '.join(FLOPS_CONVENTIONS)}")


# ---- hardware ----

PEAK_FLOPS: dict[str, float] = {
    # NVIDIA's data sheets and architecture papers; where those state the rate with sparsity, half of it.
    "A100": 312e12,
    "A800": 312e12,
    "A30": 165e12,
    "A10": 125e12,
    "A10G": 70e12,  # Amazon's variant of the A10
    "A40": 149.7e12,
    "RTX A6000": 154.8e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H800": 989e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
    # Consumer cards do bf16 at this rate only with fp32 sums, which is what training uses.
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
    "RTX 5090": 209.5e12,
}
"""Dense bf16 peaks in FLOP/s with fp32 accumulation, without sparsity: the denominator of an MFU."""

GIB = 2**30

GPU_MEMORY_BYTES: dict[str, int] = {
    "L4": 22 * GIB,
    "RTX 4090": 23 * GIB,
    "A100 40GB": 39 * GIB,
    "A100 80GB": 79 * GIB,
    "H100": 79 * GIB,
    "H200": 139 * GIB,
    "B200": 178 * GIB,
}
"""Memory that CUDA reports on common GPUs, in whole GiB, rounded down."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of a GPU by the name that CUDA reports, e.g. "NVIDIA H100 80GB HBM3"; None if unknown.

    The longest entry of `PEAK_FLOPS` whose words stand in the name decides: "NVIDIA H100 PCIe" is not an H100 SXM.
    """
    words = " ".join(re.split(r"[\s\-_]+", device_name.casefold()))
    found = [key for key in PEAK_FLOPS if re.search(rf"\b{re.escape(key.casefold())}\b", words)]
    return PEAK_FLOPS[max(found, key=len)] if found else None
