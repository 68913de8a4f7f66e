"""The training configuration: Meta Lingua's keys with Lingua's meanings, and one section of ours, `synth`.

`resolve_args` turns what is convenient to write (a preset, a budget in tokens, a batch in tokens, a warm-up fraction)
into the plain keys the loop reads; the run folder's `config.yaml` holds those.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from lingua_synth.mixture.args import FeedbackArgs, SourceArgs, StageArgs, build_part
from lingua_synth.mixture.plan import Part
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
    root_dir: str | None = None
    """Of Lingua's own loader: folder of its text files. Not read here: name token shards in synth.sources."""
    sources: dict[str, float] = field(default_factory=dict)
    """Of Lingua's own loader: weights by document. Not read here: exact shares of the tokens are in synth.sources."""
    add_bos: bool = True
    """Of Lingua's own loader; here decided when shards are made (lingua-synth tokenize)."""
    add_eos: bool = True
    """Of Lingua's own loader; here decided when shards are made (lingua-synth tokenize)."""
    n_views: int = 2
    """Of Lingua's own loader."""
    load_async: bool = True
    """Of Lingua's own loader; here synth.prefetch."""
    prefetch_size: int = 64
    """Of Lingua's own loader; here synth.prefetch."""


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
    """cosine, linear, wsd (warm-up, stable, decay), inv_sqrt or constant."""
    warmup: int = 2000
    """Steps of linear warm-up from 0 (synth.warmup_ratio sets it as a fraction)."""
    lr_min_ratio: float = 0.1
    """Final learning rate over peak."""
    cycle_length: float = 1.0
    """Of cosine and wsd: length of one cycle as a fraction of the run."""
    cosine_theta: float = 1.0
    """Of cosine: power of the progress, above 1 it decays later."""
    decay_fraction: float = 0.1
    """Of wsd: share of a cycle, at its end, that decays."""
    exp_factor: float = 0.5
    """Of inv_sqrt: the rate falls as (warmup / step) to this power."""
    annealing_step: int = 1000
    """A key of Lingua that nothing reads."""


@dataclass
class DistributedArgs:
    """How a step is spread over ranks and in which precision it computes."""

    fsdp_type: str = "no_shard"
    """no_shard: every rank holds the whole model (DDP). full_shard: FSDP2, sharded over dp_shard ranks."""
    dp_shard: int = 1
    """Ranks among which full_shard divides the model, usually those of one machine; 1: all ranks."""
    dp_replicate: int = 1
    """Copies of the sharded model; always the ranks over dp_shard (1 is corrected, anything else must be right)."""
    model_dtype: str = "bf16"
    """Compute type of activations and matrix products: bf16 or fp32. Parameters and optimizer state stay fp32."""
    compile: bool = False
    """torch.compile every block; pays above about 2 million tokens per model shape on a CPU."""
    compile_cache_size_limit: int = 8
    """Most versions of a compiled block that PyTorch keeps."""
    selective_activation_checkpointing: bool = False
    """Keep only products and attention for the backward pass and compute the rest again: less memory, more time."""
    matmul_allow_tf32: bool = False
    """Let fp32 products run in TF32 on a GPU."""
    detect_anomaly: bool = False
    """PyTorch's search for the operation that made a NaN; slow."""
    tp_size: int = 1
    """Tensor parallelism; in Meta Lingua's loop alone."""
    float8_recipe: str | None = None
    """fp8 products; in Meta Lingua's loop alone."""
    float8_filter: str = r"layers\.[0-9]+\."
    """Names of the layers that compute in fp8; in Meta Lingua's loop alone."""
    spawn_method: str = "forkserver"
    """How Lingua's own loader starts its processes."""


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
    init_ckpt_path: str | None = None
    """Begin with the weights of this checkpoint or run folder (`lingua-synth import` makes one of a Hugging Face
    model); optimizer, schedule and data start anew."""
    path: str | None = None
    """Where checkpoints go; always the folder `checkpoints` of the run."""
    eval: SaveEvery = field(default_factory=SaveEvery)
    """When Lingua's loop evaluates; here synth.evaluation.every."""
    continue_training_from_init: bool = False
    """A key of Lingua that nothing reads."""


@dataclass
class LoggingArgs:
    """metrics.jsonl, train.log, and what else is asked for."""

    freq: int = 10
    """Optimizer steps between two lines."""
    tensorboard: bool = False
    """Write the same numbers to the run's folder `tensorboard`."""
    wandb: dict[str, Any] | None = None
    """Arguments of wandb.init (project, entity, mode ...), name and config are added; null: not used."""
    acc_freq: int | None = None
    """Micro-batches between two lines; in Meta Lingua's loop alone."""


@dataclass
class EvaluationArgs:
    """Held-out loss per domain, after the last step and, if asked, on the way."""

    domains: dict[str, str] = field(default_factory=dict)
    """Domain name to the folder of its token shards; none: no evaluation."""
    every: int = 0
    """Steps between evaluations on the way; 0: only after the last step."""
    max_tokens_per_domain: int | None = None
    """Budget of each domain: whole documents, in a fixed order, until so many tokens are reached; null scores all."""
    max_bytes_per_domain: int | None = None
    """The same in UTF-8 bytes of text, instead: it takes the same documents under every tokenizer, as a comparison in
    bits per byte needs."""
    domain_set: str = "custom"
    """The domain set that `domains` are of, a preset or a .yaml file: results say which of it were there."""


@dataclass
class LossArgs:
    """How the loss is computed from hidden states; every backend gives one fp32 number per token."""

    backend: str = "auto"
    """auto, plain (all logits at once), chunked, torch (its fused form), liger or cce (cut cross-entropy)."""
    chunk_tokens: int | None = None
    """Tokens whose logits are in memory at once; null: 1024 on a GPU, 256 on a CPU."""

    def chunk_tokens_on(self, device_type: str) -> int:
        """The chunk for "cpu" or "cuda"."""
        return self.chunk_tokens or (256 if device_type == "cpu" else 1024)


@dataclass
class GuardArgs:
    """What happens to a step that would spoil the model. A skipped step reads its batch and changes no weight."""

    nonfinite: str = "stop"
    """A loss or gradient that is not finite: stop, naming the batch, or skip the step."""
    spike: str = "off"
    """A loss or gradient norm far above the last ones: off, skip the step, or stop."""
    spike_sigma: float = 6.0
    """Far: more than this many standard deviations above the mean of the window."""
    window: int = 128
    """Steps the mean is taken over; nothing is a spike before so many steps were taken."""
    max_skipped: int = 10
    """Most steps skipped one after the other; one more stops the run."""


@dataclass
class SynthArgs:
    """What lingua_synth adds to Lingua's configuration."""

    preset: str | None = None
    """Model size by name (`lingua-synth sizes` lists them; 350M and the like work too) instead of `model`'s keys."""
    tokens: int | None = None
    """Training budget D in tokens; sets `steps`. Must be a whole number of batches."""
    global_batch_tokens: int | None = None
    """Tokens per optimizer step over all ranks; sets `grad_acc_steps`, so any number of ranks trains alike."""
    warmup_ratio: float | None = None
    """Warm-up as a fraction of the steps; sets `optim.warmup`."""
    mixture: str = ""
    """Name of the mixture in the runs table; empty: its sources and ratios."""
    tokenizer: str = ""
    """Name of the shards' tokenizer in the runs table; empty: its kind and entries, sp-4096."""
    sources: dict[str, SourceArgs] = field(default_factory=dict)
    """Sources of the mixture with their exact shares of the training tokens."""
    stages: dict[str, StageArgs] = field(default_factory=dict)
    """Stages by name, in order, instead of one ratio per source: curricula, ramps, annealing."""
    feedback: FeedbackArgs = field(default_factory=FeedbackArgs)
    """Shares that follow the sources' losses, interval by interval; off by default."""
    on_exhaustion: str = "refuse"
    """When a source would exceed its max_epochs: refuse, stop, repeat (reshuffled), renormalize (the others go on)."""
    match_repetition: int | None = None
    """Training tokens of a longer run that this one stands for: it reads only so large a part of every source as its
    tokens are of those, so each source is passed over as often as there. Null: the whole sources."""
    mixture_change: str = "refuse"
    """A resumed run whose mixture is not the one it began with: refuse it, or append the new one as a further stage."""
    branch_from: str | None = None
    """Go on from a checkpoint of another run (its folder, checkpoints/<step>): weights, optimizer and place in the
    data. Up to there that run must have trained as this one would have."""
    keep_steps: list[int] = field(default_factory=list)
    """Steps after which a checkpoint is written and never deleted, beside those of checkpoint.dump."""
    decay: str = "reciprocal"
    """Shape of the decay of optim.scheduler wsd: reciprocal (Lingua's), linear, or sqrt (the rate falls with the root
    of the progress: Haegele et al. 2024). The latter two reach 0 with optim.lr_min_ratio 0."""
    schedule: str = "tree"
    """Order of the sources: tree (random access) or strict (the tightest bound there is)."""
    prefetch: int = 2
    """Batches read ahead by a thread, at least 0; on a GPU they wait in page-locked memory."""
    attention: str = "sdpa"
    """sdpa (PyTorch's fused kernels), flex_attention, or fmha (xformers)."""
    document_masking: bool = False
    """Attention stays inside each document of a packed sequence (Lingua and the paper attend across)."""
    loss: LossArgs = field(default_factory=LossArgs)
    """The loss over the vocabulary."""
    guard: GuardArgs = field(default_factory=GuardArgs)
    """Not-finite losses, and spikes."""
    reshard_after_forward: bool = False
    """full_shard: give the memory of gathered weights back between forward and backward pass (less memory, one more
    exchange)."""
    async_checkpoint: bool = False
    """Write checkpoints while training goes on; costs a copy of the model and optimizer in main memory."""
    deterministic: bool = False
    """Only algorithms whose results repeat to the bit, on a GPU too (slower there)."""
    requeue: bool = False
    """Under SLURM, put a preempted job (SIGTERM, SIGUSR2) back into the queue after its checkpoint."""
    evaluation: EvaluationArgs = field(default_factory=EvaluationArgs)
    """Held-out domains."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    strict_upstream: bool = False
    """host=lingua: keep the defects of Lingua's loop that are corrected otherwise."""
    lingua_allow_unknown: bool = False
    """host=lingua: run with a Meta Lingua whose code is not one that was tested."""


@dataclass
class TrainArgs:
    """One training run. Keys outside `synth` and `host` are Meta Lingua's."""

    name: str = "lingua_synth"
    """Name of the run; `run_id` in the runs table."""
    dump_dir: str = ""
    """Run folder: config.yaml, train.log, metrics.jsonl, checkpoints/, and result.json when the run is complete."""
    host: str = "native"
    """native: the loop of this library. lingua: Meta Lingua's own (a checkout, importable or in LINGUA_DIR)."""
    seed: int = 42
    """Seed of the run; of the initial weights too, unless model.seed is set."""
    grad_acc_steps: int = 1
    """Micro-batches per optimizer step."""
    gc_collect_freq: int = 1000
    """Optimizer steps between two garbage collections, at the same step on all ranks."""
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
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables to set before the ranks meet (NCCL's, for example)."""
    checkpoint: CheckpointArgs = field(default_factory=CheckpointArgs)
    """Checkpoints."""
    profiling: dict[str, Any] = field(default_factory=dict)
    """Lingua's profiler; in Meta Lingua's loop alone."""
    logging: LoggingArgs = field(default_factory=LoggingArgs)
    """Logging."""
    probe_freq: int | None = None
    """Lingua's probe of activations; in Meta Lingua's loop alone."""
    async_eval_gpus: int | None = None
    """GPUs of Lingua's evaluation jobs; in Meta Lingua's loop alone."""
    eval: dict[str, Any] | None = None
    """Lingua's evaluation; in Meta Lingua's loop alone. Here synth.evaluation."""
    synth: SynthArgs = field(default_factory=SynthArgs)
    """lingua_synth's own section."""


DECAYS = ("reciprocal", "linear", "sqrt")
SCHEDULERS = ("cosine", "linear", "wsd", "inv_sqrt", "constant")

# Keys of Lingua that its own loop alone obeys: a run of this library's loop that sets one is refused.
LINGUA_LOOP_KEYS = (
    "distributed.tp_size",
    "distributed.float8_recipe",
    "probe_freq",
    "async_eval_gpus",
    "eval",
    "logging.acc_freq",
)


def schedule_name(args: TrainArgs) -> str:
    """The learning-rate schedule in the runs table: losses after different ones do not compare."""
    decay = "" if args.synth.decay == "reciprocal" else f"-{args.synth.decay}"
    return args.optim.scheduler + decay


_SECRET = re.compile(r"key|token(?!iz)|secret|passw|credential", re.IGNORECASE)


def refuse_secrets(args: TrainArgs) -> None:
    """ValueError where `env` or `logging.wandb` holds what its name says is a secret: both are written into files."""
    for section, values in (("env", args.env), ("logging.wandb", args.logging.wandb or {})):
        for name in values:
            if _SECRET.search(str(name)):
                raise ValueError(
                    f"{section}.{name} would be written into the run's folder (config.yaml, checkpoints); take it out "
                    "of the config and export it in the shell that starts the run: it is inherited"
                )


def tokens_per_step(args: TrainArgs, dp_size: int) -> int:
    """Training tokens of one optimizer step over all ranks."""
    return args.data.seq_len * args.data.batch_size * args.grad_acc_steps * dp_size


def read_part(args: TrainArgs, num_tokens: int) -> Part:
    """What a run of `num_tokens` reads of its sources, exact: their own `part`, and that of `synth.match_repetition`;
    None: all. ValueError for what is no share, and where the run it stands for is shorter."""
    full = args.synth.match_repetition
    if full is None:
        return build_part(args.synth.sources)
    if full < num_tokens:
        raise ValueError(
            f"synth.match_repetition {full:,} is the number of training tokens of the run that this one stands for, at "
            f"least this one's own {num_tokens:,}"
        )
    return build_part(args.synth.sources, Fraction(num_tokens, full))


def resolve_args(args: TrainArgs, *, dp_size: int, vocab_size: int) -> TrainArgs:
    """Write presets, budgets and fractions out as plain keys; the input is left as it was.

    Raises ValueError for keys that exclude each other, a batch that does not divide, a budget below one step,
    ranks that the mesh cannot hold, secrets in what is written into files, and every value no run can have.
    """
    refuse_secrets(args)
    args = dataclasses.replace(
        args,
        data=dataclasses.replace(args.data),
        optim=dataclasses.replace(args.optim),
        model=_model_args(args, vocab_size),
        distributed=dataclasses.replace(args.distributed),
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
        args.grad_acc_steps = _micro_batches(args, dp_size)
    if args.grad_acc_steps < 1:
        raise ValueError(f"grad_acc_steps must be at least 1, got {args.grad_acc_steps}")
    if args.synth.tokens is not None:
        step_tokens = tokens_per_step(args, dp_size)
        if args.synth.tokens < step_tokens or args.synth.tokens % step_tokens:
            nearest = max(1, round(args.synth.tokens / step_tokens)) * step_tokens
            raise ValueError(
                f"synth.tokens {args.synth.tokens:,} is not a whole number of optimizer steps of {step_tokens:,} "
                f"tokens; the nearest budget is {nearest:,}"
            )
        args.steps = args.synth.tokens // step_tokens
    if args.steps < 1:
        raise ValueError(f"steps must be at least 1, got {args.steps}")
    if args.synth.warmup_ratio is not None:
        if not 0 <= args.synth.warmup_ratio < 1:
            raise ValueError(f"synth.warmup_ratio must be in [0, 1), got {args.synth.warmup_ratio}")
        args.optim.warmup = round(args.steps * args.synth.warmup_ratio)
    _validate_optim(args)
    args.distributed.dp_replicate = _validate_mesh(args.distributed, dp_size)
    _validate_choices(args)
    _validate_feedback(args, tokens_per_step(args, dp_size))
    read_part(args, args.steps * tokens_per_step(args, dp_size))
    return args


def _micro_batches(args: TrainArgs, dp_size: int) -> int:
    """Micro-batches per step that make up `synth.global_batch_tokens` on `dp_size` ranks."""
    asked, sequence = args.synth.global_batch_tokens, args.data.seq_len
    assert asked is not None, "called with a batch in tokens"
    micro_batch = sequence * args.data.batch_size * dp_size
    if asked >= 1 and asked % micro_batch == 0:
        return asked // micro_batch
    message = (
        f"synth.global_batch_tokens {asked:,} is not a whole number of micro-batches of {micro_batch:,} tokens "
        f"(data.seq_len {sequence} x data.batch_size {args.data.batch_size} x {dp_size} ranks); "
    )
    per_rank, rest = divmod(max(asked, 0), sequence * dp_size)
    if rest or not per_rank:
        raise ValueError(message + f"a multiple of {sequence * dp_size:,} tokens divides, or change the ranks")
    nearest = min(
        (size for size in range(1, per_rank + 1) if per_rank % size == 0),
        key=lambda size: (abs(size - args.data.batch_size), size),
    )
    raise ValueError(message + f"data.batch_size={nearest} divides")


def _validate_optim(args: TrainArgs) -> None:
    optim = args.optim
    if optim.scheduler not in SCHEDULERS:
        raise ValueError(f"optim.scheduler is one of {', '.join(SCHEDULERS)}; got {optim.scheduler!r}")
    has_end = optim.scheduler not in ("constant", "inv_sqrt")
    if not 0 <= optim.warmup < args.steps + (not has_end):
        raise ValueError(
            f"optim.warmup {optim.warmup} must be shorter than the run's {args.steps} steps; "
            "set it, or synth.warmup_ratio=0.1"
        )
    for name in ("lr", "clip", "epsilon"):
        if not getattr(optim, name) > 0:
            raise ValueError(f"optim.{name} must be above 0, got {getattr(optim, name)}")
    for name in ("beta1", "beta2", "lr_min_ratio"):
        if not 0 <= getattr(optim, name) <= 1 or (name != "lr_min_ratio" and getattr(optim, name) == 1):
            raise ValueError(f"optim.{name} must be at least 0 and below 1, got {getattr(optim, name)}")
    if not optim.cycle_length > 0:
        raise ValueError(f"optim.cycle_length must be above 0, got {optim.cycle_length}")
    if optim.scheduler == "wsd":
        if optim.lr_min_ratio == 0 and args.synth.decay == "reciprocal":
            raise ValueError(
                "optim.lr_min_ratio must be above 0 with wsd: its decay ends at this share of the peak; synth.decay="
                "linear and sqrt take 0"
            )
        if not 0 < optim.decay_fraction < optim.cycle_length:
            raise ValueError(
                f"optim.decay_fraction {optim.decay_fraction} must be above 0 and below optim.cycle_length "
                f"{optim.cycle_length}"
            )
        if int(args.steps * optim.cycle_length) < 1:
            raise ValueError(f"optim.cycle_length {optim.cycle_length} of {args.steps} steps is not one step")


def _validate_feedback(args: TrainArgs, step_tokens: int) -> None:
    feedback, synth = args.synth.feedback, args.synth
    if feedback.every_tokens is None:
        return
    if feedback.every_tokens < 1 or feedback.every_tokens % step_tokens:
        nearest = max(1, round(feedback.every_tokens / step_tokens)) * step_tokens
        raise ValueError(
            f"synth.feedback.every_tokens {feedback.every_tokens:,} is not a whole number of optimizer steps of "
            f"{step_tokens:,} tokens; the nearest is {nearest:,}"
        )
    if synth.stages or synth.mixture_change != "refuse":
        other = "synth.stages" if synth.stages else "synth.mixture_change"
        raise ValueError(f"synth.feedback sets the shares of every interval, and so does {other}: keep one of the two")


def _validate_mesh(distributed: DistributedArgs, dp_size: int) -> int:
    """`dp_replicate` for so many ranks; ValueError if they cannot be laid out as asked."""
    shard, replicate = distributed.dp_shard, distributed.dp_replicate
    if distributed.fsdp_type not in ("no_shard", "full_shard"):
        raise ValueError(f"distributed.fsdp_type is no_shard or full_shard; got {distributed.fsdp_type!r}")
    if distributed.fsdp_type == "no_shard" and shard != 1:
        raise ValueError(
            f"distributed.dp_shard {shard} divides the model, which distributed.fsdp_type no_shard keeps whole; set "
            "fsdp_type=full_shard, or leave dp_shard at 1"
        )
    if shard < 1 or dp_size % shard:
        raise ValueError(
            f"{dp_size} ranks are no multiple of distributed.dp_shard {shard}: every copy of the model needs so many; "
            "change one of them"
        )
    if replicate not in (1, dp_size // shard):
        raise ValueError(
            f"distributed.dp_replicate {replicate} x dp_shard {shard} is {replicate * shard} ranks, there are "
            f"{dp_size}; leave dp_replicate at 1 and it is what is left"
        )
    return dp_size // shard


def _validate_choices(args: TrainArgs) -> None:
    synth = args.synth
    choices = {
        "host": (args.host, ("native", "lingua")),
        "distributed.model_dtype": (args.distributed.model_dtype, ("bf16", "fp32")),
        "synth.decay": (synth.decay, DECAYS),
        "synth.mixture_change": (synth.mixture_change, ("refuse", "append")),
        "synth.guard.nonfinite": (synth.guard.nonfinite, ("stop", "skip")),
        "synth.guard.spike": (synth.guard.spike, ("off", "skip", "stop")),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{key} is {' or '.join(known)}; got {value!r}")
    if args.checkpoint.path not in (None, str(Path(args.dump_dir) / "checkpoints")):
        raise ValueError(
            f"checkpoint.path {args.checkpoint.path}: a run keeps its checkpoints in its own folder; leave it out"
        )
    for key, number, least in (
        ("logging.freq", args.logging.freq, 1),
        ("gc_collect_freq", args.gc_collect_freq, 1),
        ("synth.guard.window", synth.guard.window, 2),
        ("synth.guard.max_skipped", synth.guard.max_skipped, 0),
        ("synth.loss.chunk_tokens", synth.loss.chunk_tokens or 1, 1),
        ("checkpoint.dump.every", args.checkpoint.dump.every, 0),
        ("checkpoint.dump.keep", args.checkpoint.dump.keep, 0),
    ):
        if number < least:
            raise ValueError(f"{key} must be at least {least}, got {number}")
    if synth.decay != "reciprocal" and args.optim.scheduler != "wsd":
        raise ValueError(
            f"synth.decay {synth.decay} is of optim.scheduler wsd, and it is {args.optim.scheduler}; leave it out"
        )
    if wrong := [step for step in synth.keep_steps if not 0 < step <= args.steps]:
        raise ValueError(f"synth.keep_steps are steps of the run, 1 to {args.steps:,}; got {wrong}")
    if args.host == "native":
        refuse_lingua_keys(args)


def refuse_lingua_keys(args: TrainArgs) -> None:
    """ValueError if `args` sets something that Meta Lingua's own loop alone does."""
    default = TrainArgs()
    for key in LINGUA_LOOP_KEYS:
        ours, theirs = args, default
        for part in key.split("."):
            ours, theirs = getattr(ours, part), getattr(theirs, part)
        if ours != theirs:
            raise ValueError(f"{key} {ours!r} is read by Meta Lingua's loop alone; leave it out, or set host=lingua")


# What a preset decides; the rest of it (rope_theta, weight_tying ...) gives way to a value that was set.
_SHAPE_KEYS = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim_multiplier", "multiple_of")


def _model_args(args: TrainArgs, vocab_size: int) -> ModelArgs:
    model = args.model
    if args.synth.preset is not None:
        base, defaults = preset(args.synth.preset), ModelArgs()
        chosen = {}
        for key in (field.name for field in dataclasses.fields(ModelArgs)):
            ours, theirs, default = getattr(model, key), getattr(base, key), getattr(defaults, key)
            if key in _SHAPE_KEYS and ours not in (default, theirs):
                raise ValueError(
                    f"synth.preset {args.synth.preset} and model.{key} {ours} exclude each other; keep one"
                )
            if key != "vocab_size" and ours == default:
                chosen[key] = theirs
        model = dataclasses.replace(model, **chosen)
    return dataclasses.replace(
        model,
        seed=args.seed if model.seed is None else model.seed,
        vocab_size=vocab_size if model.vocab_size == -1 else model.vocab_size,
        max_seqlen=args.data.seq_len if model.max_seqlen == -1 else model.max_seqlen,
    )
