"""The training configuration: Meta Lingua's keys with Lingua's meanings, and one section of ours, `synth`.

`resolve_args` turns what is convenient to write (a preset, a budget in tokens, a batch in tokens, a warm-up fraction)
into the plain keys the loop reads; the run folder's `config.yaml` holds those.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from lingua_synth.mixture.args import SourceArgs, StageArgs
from lingua_synth.model.args import ModelArgs, validate_model_args
from lingua_synth.model.presets import preset
from lingua_synth.tokens.args import TokenizerArgs


@dataclass
class DataArgs:
    """Batches."""

    seq_len: int = 2048
    """Tokens per sequence."""
    batch_size: int = 2
    """Sequences per rank and micro-batch."""
    seed: int = 42
    """Seed of the data order."""
    tokenizer: TokenizerArgs = field(default_factory=lambda: TokenizerArgs(name=""))
    """The one vocabulary of all shards. An empty name takes the one their manifest names."""


@dataclass
class OptimArgs:
    """AdamW and its learning-rate schedule; schedules have Lingua's values at every step."""

    lr: float = 3e-4
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on all parameters, as Lingua."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    clip: float = 1.0
    """Largest gradient norm; larger gradients are scaled down to it."""
    scheduler: str = "cosine"
    """cosine, linear or constant."""
    warmup: int = 2000
    """Steps of linear warm-up from 0 (synth.warmup_ratio sets it as a fraction)."""
    lr_min_ratio: float = 0.1
    """Final learning rate over peak."""


@dataclass
class DistributedArgs:
    """How a step is spread and in which precision it computes."""

    fsdp_type: str = "no_shard"
    """no_shard: every rank holds the whole model (DDP)."""
    model_dtype: str = "bf16"
    """Compute type of activations and matrix products: bf16 or fp32. Parameters and optimizer state stay fp32."""
    compile: bool = False
    """torch.compile the model; pays above about 2 million tokens per model shape on a CPU."""


@dataclass
class SaveEvery:
    """When to save, and how many to keep."""

    every: int = 1000
    """Steps between checkpoints; 0: only after the last step."""
    keep: int = 1
    """Newest checkpoints kept; 0 keeps all."""


@dataclass
class CheckpointArgs:
    """Checkpoints of weights, optimizer and data position."""

    dump: SaveEvery = field(default_factory=SaveEvery)
    """Training checkpoints."""


@dataclass
class LoggingArgs:
    """metrics.jsonl and train.log."""

    freq: int = 10
    """Optimizer steps between two lines."""


@dataclass
class EvaluationArgs:
    """Held-out loss per domain, after the last step and, if asked, on the way."""

    domains: dict[str, str] = field(default_factory=dict)
    """Domain name to the folder of its token shards; none: no evaluation."""
    every: int = 0
    """Steps between evaluations on the way; 0: only after the last step."""
    max_tokens_per_domain: int | None = None
    """Most tokens scored per domain; null scores all."""


@dataclass
class SynthArgs:
    """What lingua_synth adds to Lingua's configuration."""

    preset: str | None = None
    """Model size by name (see lingua_synth.model.PRESETS) instead of the keys dim, n_layers, n_heads."""
    tokens: int | None = None
    """Training budget D in tokens; sets `steps`. Must be a whole number of batches."""
    global_batch_tokens: int | None = None
    """Tokens per optimizer step over all ranks; sets `grad_acc_steps`, so any number of ranks trains alike."""
    warmup_ratio: float | None = None
    """Warm-up as a fraction of the steps; sets `optim.warmup`."""
    mixture: str = ""
    """Name of the mixture in the runs table; empty: its sources and ratios."""
    sources: dict[str, SourceArgs] = field(default_factory=dict)
    """Sources of the mixture with their exact shares of the training tokens."""
    stages: dict[str, StageArgs] = field(default_factory=dict)
    """Stages by name, in order, instead of one ratio per source: curricula, ramps, annealing."""
    on_exhaustion: str = "refuse"
    """When a source would exceed its max_epochs: refuse, stop, repeat (reshuffled), renormalize (the others go on)."""
    mixture_change: str = "refuse"
    """A resumed run whose mixture is not the one it began with: refuse it, or append the new one as a further stage."""
    schedule: str = "tree"
    """Order of the sources: tree (random access) or strict (the tightest bound there is)."""
    prefetch: int = 2
    """Batches read ahead by a thread, at least 0; on a GPU they wait in page-locked memory."""
    evaluation: EvaluationArgs = field(default_factory=EvaluationArgs)
    """Held-out domains."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""


@dataclass
class TrainArgs:
    """One training run. Keys outside `synth` are Meta Lingua's."""

    name: str = "lingua_synth"
    """Name of the run; `run_id` in the runs table."""
    dump_dir: str = ""
    """Run folder: config.yaml, train.log, metrics.jsonl, checkpoints/, and result.json when the run is complete."""
    seed: int = 42
    """Seed of the initial weights."""
    grad_acc_steps: int = 1
    """Micro-batches per optimizer step."""
    steps: int = 1000
    """Optimizer steps (synth.tokens sets it from a token budget)."""
    data: DataArgs = field(default_factory=DataArgs)
    """Batches."""
    optim: OptimArgs = field(default_factory=OptimArgs)
    """Optimizer and schedule."""
    model: ModelArgs = field(default_factory=ModelArgs)
    """Model; or name a size with synth.preset."""
    distributed: DistributedArgs = field(default_factory=DistributedArgs)
    """Parallelism and precision."""
    checkpoint: CheckpointArgs = field(default_factory=CheckpointArgs)
    """Checkpoints."""
    logging: LoggingArgs = field(default_factory=LoggingArgs)
    """Logging."""
    synth: SynthArgs = field(default_factory=SynthArgs)
    """lingua_synth's own section."""


SCHEDULERS = ("cosine", "linear", "constant")


def tokens_per_step(args: TrainArgs, dp_size: int) -> int:
    """Training tokens of one optimizer step over all ranks."""
    return args.data.seq_len * args.data.batch_size * args.grad_acc_steps * dp_size


def resolve_args(args: TrainArgs, *, dp_size: int, vocab_size: int) -> TrainArgs:
    """Write presets, budgets and fractions out as plain keys; the input is left as it was.

    Raises ValueError for keys that exclude each other, a batch that does not divide, a budget below one step,
    and every value no run can have.
    """
    args = dataclasses.replace(
        args,
        data=dataclasses.replace(args.data),
        optim=dataclasses.replace(args.optim),
        model=_model_args(args, vocab_size),
    )
    validate_model_args(args.model)
    if args.model.vocab_size < vocab_size:
        raise ValueError(
            f"model.vocab_size {args.model.vocab_size} is smaller than the tokenizer's {vocab_size} entries; "
            "leave it -1 to take the tokenizer's"
        )
    for key, value in (("data.seq_len", args.data.seq_len), ("data.batch_size", args.data.batch_size)):
        if value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    if args.synth.global_batch_tokens is not None:
        micro_batch = args.data.seq_len * args.data.batch_size * dp_size
        if args.synth.global_batch_tokens % micro_batch or args.synth.global_batch_tokens < 1:
            raise ValueError(
                f"synth.global_batch_tokens {args.synth.global_batch_tokens:,} is not a whole number of "
                "micro-batches of "
                f"{micro_batch:,} tokens (data.seq_len {args.data.seq_len} x data.batch_size {args.data.batch_size} x "
                f"{dp_size} ranks); change one of them"
            )
        args.grad_acc_steps = args.synth.global_batch_tokens // micro_batch
    if args.grad_acc_steps < 1:
        raise ValueError(f"grad_acc_steps must be at least 1, got {args.grad_acc_steps}")
    if args.synth.tokens is not None:
        step_tokens = tokens_per_step(args, dp_size)
        if args.synth.tokens < step_tokens or args.synth.tokens % step_tokens:
            nearest = max(1, round(args.synth.tokens / step_tokens)) * step_tokens
            raise ValueError(
                f"synth.tokens {args.synth.tokens:,} is not a whole number of optimizer steps of {step_tokens:,} "
                "tokens; "
                f"the nearest budget is {nearest:,}"
            )
        args.steps = args.synth.tokens // step_tokens
    if args.steps < 1:
        raise ValueError(f"steps must be at least 1, got {args.steps}")
    if args.synth.warmup_ratio is not None:
        if not 0 <= args.synth.warmup_ratio < 1:
            raise ValueError(f"synth.warmup_ratio must be in [0, 1), got {args.synth.warmup_ratio}")
        args.optim.warmup = round(args.steps * args.synth.warmup_ratio)
    if not 0 <= args.optim.warmup < max(args.steps, 1) + (args.optim.scheduler == "constant"):
        raise ValueError(
            f"optim.warmup {args.optim.warmup} must be shorter than the run's {args.steps} steps; "
            "set it, or synth.warmup_ratio=0.1"
        )
    if args.optim.scheduler not in SCHEDULERS:
        raise ValueError(f"optim.scheduler is one of {', '.join(SCHEDULERS)}; got {args.optim.scheduler!r}")
    if args.synth.mixture_change not in ("refuse", "append"):
        raise ValueError(f"synth.mixture_change is refuse or append; got {args.synth.mixture_change!r}")
    if args.distributed.fsdp_type != "no_shard":
        raise ValueError(
            f"distributed.fsdp_type {args.distributed.fsdp_type!r} is not built yet; this version trains with "
            "no_shard (DDP)"
        )
    if args.distributed.model_dtype not in ("bf16", "fp32"):
        raise ValueError(f"distributed.model_dtype is bf16 or fp32; got {args.distributed.model_dtype!r}")
    if args.logging.freq < 1:
        raise ValueError(f"logging.freq must be at least 1, got {args.logging.freq}")
    return args


def _model_args(args: TrainArgs, vocab_size: int) -> ModelArgs:
    model = args.model
    if args.synth.preset is not None:
        base, defaults = preset(args.synth.preset), ModelArgs()
        shape = ("dim", "n_layers", "n_heads", "multiple_of")
        for key in shape:
            if getattr(model, key) not in (getattr(defaults, key), getattr(base, key)):
                raise ValueError(
                    f"synth.preset {args.synth.preset} and model.{key} {getattr(model, key)} exclude each other; "
                    "keep one"
                )
        model = dataclasses.replace(model, **{key: getattr(base, key) for key in shape})
    return dataclasses.replace(
        model,
        vocab_size=vocab_size if model.vocab_size == -1 else model.vocab_size,
        max_seqlen=args.data.seq_len if model.max_seqlen == -1 else model.max_seqlen,
    )
