"""The fields that define a model, under Meta Lingua's names and defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ModelArgs:
    """A Llama transformer: RMSNorm, SwiGLU, rotary positions, optional grouped-query attention."""

    dim: int = 512
    """Width of the residual stream."""
    n_layers: int = 8
    """Number of blocks."""
    n_heads: int = 8
    """Query heads."""
    head_dim: int | None = None
    """Width of a head, even; null: dim / n_heads."""
    n_kv_heads: int | None = None
    """Key and value heads; null: as many as n_heads (no grouping). Must divide n_heads."""
    vocab_size: int = -1
    """Entries of the embedding; -1: as many as the tokenizer has."""
    ffn_dim_multiplier: float | None = None
    """Widens the feed-forward layer before rounding; null: Lingua's rule alone, 8/3 of dim."""
    multiple_of: int = 256
    """The feed-forward width is rounded up to a multiple of this."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies (Lingua's default; Llama 3 uses 500000)."""
    rope_scaling_factor: float = 1.0
    """Llama 3.1's stretching of long wavelengths, by this factor; 1: none. Not a key of Lingua, as the next three."""
    rope_low_freq_factor: float = 1.0
    """Wavelengths above rope_original_seqlen over this are stretched in full."""
    rope_high_freq_factor: float = 4.0
    """Wavelengths below rope_original_seqlen over this stay as they are; between the two, in proportion."""
    rope_original_seqlen: int = 8192
    """Sequence length the unstretched wavelengths were trained at."""
    max_seqlen: int = -1
    """Longest sequence the rotary table covers; -1: data.seq_len."""
    init_base_std: float | None = None
    """Standard deviation of the initial weights; null: 1/sqrt(fan-in)."""
    init_std_factor: str = "disabled"
    """What divides the standard deviation of the two output projections: disabled, global_depth, current_depth,
    dim_ratio."""
    weight_tying: bool = False
    """Use the embedding matrix as output matrix too."""
    seed: int | None = None
    """Seed of the initial weights; null: the run's seed."""
    sliding_window: int | None = None
    """Attention over so many tokens only; in Meta Lingua's loop alone."""


INIT_STD_FACTORS = ("disabled", "global_depth", "current_depth", "dim_ratio")


def ffn_hidden_dim(args: ModelArgs) -> int:
    """Width of the feed-forward layer by Lingua's rule: 8/3 dim, times the multiplier, rounded up to `multiple_of`."""
    hidden = int(2 * (4 * args.dim) / 3)
    if args.ffn_dim_multiplier is not None:
        hidden = int(args.ffn_dim_multiplier * hidden)
    return args.multiple_of * ((hidden + args.multiple_of - 1) // args.multiple_of)


def head_dim(args: ModelArgs) -> int:
    """Width of one attention head."""
    return args.dim // args.n_heads if args.head_dim is None else args.head_dim


def validate_model_args(args: ModelArgs) -> None:
    """Raise ValueError if no model can be built from `args`; `vocab_size` and `max_seqlen` must be resolved."""
    for name in ("dim", "n_layers", "n_heads", "vocab_size", "max_seqlen", "multiple_of"):
        if getattr(args, name) < 1:
            raise ValueError(f"model.{name} must be at least 1, got {getattr(args, name)}")
    if args.head_dim is not None:
        if args.head_dim < 2 or args.head_dim % 2:
            raise ValueError(f"model.head_dim must be even and at least 2, got {args.head_dim}")
    elif args.dim % args.n_heads or (args.dim // args.n_heads) % 2:
        raise ValueError(
            f"model.dim {args.dim} over model.n_heads {args.n_heads} heads is not an even whole head dimension; "
            f"change one of them (head dimension 64: n_heads {max(1, args.dim // 64)})"
        )
    kv_heads = args.n_heads if args.n_kv_heads is None else args.n_kv_heads
    if kv_heads < 1 or args.n_heads % kv_heads:
        divisors = [str(d) for d in range(1, args.n_heads + 1) if args.n_heads % d == 0]
        raise ValueError(
            f"model.n_kv_heads {kv_heads} does not divide model.n_heads {args.n_heads}; choose from "
            f"{', '.join(divisors)}"
        )
    if args.rope_scaling_factor < 1 or not 0 < args.rope_low_freq_factor < args.rope_high_freq_factor:
        raise ValueError(
            f"model.rope_scaling_factor {args.rope_scaling_factor} must be at least 1 and model.rope_low_freq_factor "
            f"{args.rope_low_freq_factor} between 0 and model.rope_high_freq_factor {args.rope_high_freq_factor}"
        )
    if args.sliding_window is not None:
        raise ValueError("model.sliding_window is read by Meta Lingua's loop alone; leave it null")
    if args.init_std_factor not in INIT_STD_FACTORS:
        raise ValueError(f"model.init_std_factor is one of {', '.join(INIT_STD_FACTORS)}; got {args.init_std_factor!r}")
