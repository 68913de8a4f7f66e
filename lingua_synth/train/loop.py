"""The training loop, in time order.

A run is a folder. `train(args)` opens the sources, resumes from the newest checkpoint if there is one, takes optimizer
steps until the budget is spent, evaluates, and writes `result.json`, one row of the runs table, last: its presence
means the run is complete, and a second call returns it at once. Killed at any moment and called again, a run goes on
from its newest checkpoint and ends with the same numbers (bit-equal on the CPU).

A step: `grad_acc_steps` micro-batches of `batch_size` sequences on each rank, one exchange of gradients, the guard's
judgement, one update. The loss of a step is the mean over its tokens, whatever the split into ranks and micro-batches,
so 1 rank x 2 micro-batches and 2 ranks x 1 train alike, on whole models (DDP) and on sharded ones (FSDP2). Where
sources hold conversations, it is the mean over the step's scored tokens: the answers.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lingua_synth.config import to_dict
from lingua_synth.evaluate import DomainSums
from lingua_synth.evaluate.scoring import Scores
from lingua_synth.files import folder_lock, read_json, sha256_json, write_json
from lingua_synth.mixture import Batch, MixtureLoader
from lingua_synth.mixture.batch import IGNORED_LABEL
from lingua_synth.mixture.feedback import Feedback
from lingua_synth.mixture.plan import part_of
from lingua_synth.model.checkpoint import CheckpointWriter, list_checkpoints, load_weights, restore_checkpoint
from lingua_synth.model.counts import count_parameters
from lingua_synth.model.distributed import Ranks, data_parallel
from lingua_synth.model.transformer import Transformer
from lingua_synth.tokens import TokenSource
from lingua_synth.train.args import TrainArgs, resolve_args, tokens_per_step
from lingua_synth.train.branch import validate_branch
from lingua_synth.train.evaluation import HeldOut, sums_of
from lingua_synth.train.folder import METRICS, RESULT, VALIDATION_METRICS
from lingua_synth.train.guard import Guard
from lingua_synth.train.host_memory import keep_freed_memory
from lingua_synth.train.identity import claim_folder, run_identity
from lingua_synth.train.inputs import (
    chat_of,
    fit_to_sources,
    mixture_of,
    open_feedback,
    open_loader,
    open_shards,
    open_sources,
    refuse_other_vocabulary,
    sequences_left,
    with_shard_tokenizer,
)
from lingua_synth.train.metrics import MetricsFile, Trackers, close_logger, run_logger
from lingua_synth.train.parallel import clip_gradients, exchanging_gradients, shard_model, wrap_model
from lingua_synth.train.preemption import LEFT, Preempted, Preemption, requeue_slurm_job
from lingua_synth.train.record import MFU_FORMULA, Interval, decision_record, metrics_line, result_row, validation_line
from lingua_synth.train.schedule import learning_rate_ratio


@dataclass
class _Run:
    """What the steps of one run share; `step` is the number of optimizer steps taken."""

    args: TrainArgs
    identity_sha256: str
    ranks: Ranks
    loader: MixtureLoader
    feedback: Feedback | None
    """What sets the loader's ratios at the end of every interval; None where they are known before."""
    model: Transformer
    stepper: torch.nn.Module
    """The model as it is called: compiled, wrapped for data parallelism."""
    optimizer: torch.optim.Optimizer
    guard: Guard
    writer: CheckpointWriter
    preemption: Preemption
    sources: Mapping[str, TokenSource]
    held_out: HeldOut
    logger: logging.Logger
    metrics: MetricsFile | None
    """Open on the main rank alone, as the next two."""
    validation: MetricsFile | None
    trackers: Trackers | None
    step: int
    scored_tokens: dict[str, int]
    """By source, the scored tokens that were learned from up to the last log line; empty where all tokens are."""
    elapsed_before_s: float
    """Seconds of training before the checkpoint this process resumed from."""
    started: float

    @property
    def dir(self) -> Path:
        return Path(self.args.dump_dir)

    @property
    def tokens_per_step(self) -> int:
        return tokens_per_step(self.args, self.ranks.size)

    @property
    def elapsed_s(self) -> float:
        return self.elapsed_before_s + time.perf_counter() - self.started

    def close(self) -> None:
        """Release the files. A checkpoint that is still being written is not waited for."""
        for file in (self.metrics, self.validation, self.trackers):
            if file is not None:
                file.close()
        close_logger(self.logger)


def train(args: TrainArgs, *, progress: bool = True) -> dict[str, Any]:
    """Train to the end of the budget and return the run's row of the runs table.

    Raises ValueError for a configuration that cannot run, a folder that holds another run, a loss that is not finite
    (naming the step and the positions of its sequences) or memory that does not suffice; OSError when something cannot
    be written; Preempted (a SystemExit) after SIGTERM or SIGUSR2, with a checkpoint of the last step.
    """
    with data_parallel(args.synth.device, args.env, key="synth.device") as ranks:
        if ranks.device.type == "cpu":
            keep_freed_memory()
        sources = open_sources(args, ranks)
        args = with_shard_tokenizer(args, sources)
        vocab_size = int(next(iter(sources.values())).manifest["tokenizer"]["n_words"])
        args = resolve_args(args, dp_size=ranks.size, vocab_size=vocab_size)
        args = fit_to_sources(args, sources, dp_size=ranks.size)
        domains = open_shards("domain", args.synth.evaluation.domains, ranks)
        refuse_other_vocabulary(sources, domains)
        chat_of(sources, args.data.seq_len)
        held_out = HeldOut(args, domains)
        with folder_lock(args.dump_dir, "training run") if ranks.is_main else contextlib.nullcontext():
            identity = run_identity(args, sources, domains, ranks.size)
            validate_branch(args, identity)
            identity = claim_folder(Path(args.dump_dir), args, identity, ranks)
            if (Path(args.dump_dir) / RESULT).is_file():
                return read_json(Path(args.dump_dir) / RESULT)
            with Preemption() as preemption, _numerics(args):
                try:
                    run = _prepare(args, sources, held_out, ranks, preemption, sha256_json(identity))
                    with contextlib.closing(run), _progress_bar(run, progress) as bar:
                        _take_steps(run, bar)
                        return _finish(run)
                except torch.OutOfMemoryError as error:
                    raise ValueError(_out_of_memory(args, error)) from None


@contextlib.contextmanager
def _numerics(args: TrainArgs) -> Iterator[None]:
    """PyTorch's global switches as the config wants them, and as they were afterwards."""
    cuda = torch.backends.cuda.matmul
    before = cuda.allow_tf32, torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(), gc.isenabled()
    cuda.allow_tf32 = args.distributed.matmul_allow_tf32
    torch.use_deterministic_algorithms(args.synth.deterministic)
    torch.autograd.set_detect_anomaly(args.distributed.detect_anomaly)
    gc.disable()  # collected by hand, at the same step on all ranks, so that none waits for another's collection
    try:
        yield
    finally:
        cuda.allow_tf32 = before[0]
        torch.use_deterministic_algorithms(before[1])
        torch.autograd.set_detect_anomaly(before[2])
        if before[3]:
            gc.enable()


def _out_of_memory(args: TrainArgs, error: Exception) -> str:
    advice = [f"data.batch_size below {args.data.batch_size} (synth.global_batch_tokens keeps the step's batch)"]
    if args.distributed.fsdp_type == "no_shard":
        advice.append("distributed.fsdp_type=full_shard")
    if not args.distributed.selective_activation_checkpointing:
        advice.append("distributed.selective_activation_checkpointing=true")
    first = str(error).splitlines()[0]
    return f"{args.name}: the GPU's memory does not suffice; try {', or '.join(advice)} ({first})"


def _prepare(
    args: TrainArgs,
    sources: Mapping[str, TokenSource],
    held_out: HeldOut,
    ranks: Ranks,
    preemption: Preemption,
    identity_sha256: str,
) -> _Run:
    """Build everything, and bring it to where the newest checkpoint stood."""
    run_dir = Path(args.dump_dir)
    logger = run_logger(run_dir, ranks.is_main)
    found = list_checkpoints(run_dir)
    branch = Path(args.synth.branch_from) if args.synth.branch_from and not found else None
    model = _build_model(args, ranks, has_checkpoint=bool(found or branch), logger=logger)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=args.optim.lr,
        betas=(args.optim.beta1, args.optim.beta2),
        eps=args.optim.epsilon,
        weight_decay=args.optim.weight_decay,
        fused=True,
    )
    guard = Guard(args.synth.guard)
    step, elapsed_before_s, data_state = 0, 0.0, None
    state: dict[str, Any] = {}
    if found:
        state = restore_checkpoint(found[-1], model, optimizer)
        step, data_state = state["step"], state["data_loader_state"]
        elapsed_before_s = state.get("elapsed_s", 0.0)  # not in a checkpoint of Lingua's loop, as the guard's
        if "guard" in state:
            guard.load_state_dict(state["guard"])
        logger.info("resumed from %s", found[-1].name)
    elif branch is not None:
        # The seconds and GPU-hours before are the other run's.
        state = restore_checkpoint(branch, model, optimizer)
        step, data_state = state["step"], state["data_loader_state"]
        if "guard" in state:
            guard.load_state_dict(state["guard"])
        logger.info("branched off at step %d of %s", step, branch.parent.parent.name)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", args.optim.lr)  # Lingua's scheduler looks for it in our checkpoints
    feedback = open_feedback(args, sources, ranks.size)
    loader = _open_loader(args, sources, ranks, feedback, data_state)
    scored_before = state.get("scored_tokens", {})
    scored_tokens = {name: scored_before.get(name, 0) for name in sources} if loader.is_masked else {}
    # With feedback the plan is of the present interval's shares, which will not stay.
    for notice in loader.plan.notices() if loader.plan and feedback is None else []:
        logger.info("mixture: %s", notice)
    if loader.part is not None:
        parts = {name: part_of(loader.part, name) for name in loader.num_windows}
        held = ", ".join(
            f"{name} {count:,} ({'all' if parts[name] is None else parts[name]})"
            for name, count in loader.num_windows.items()
        )
        logger.info(f"a part of the sources is read, in sequences: {held}")
    if loader.is_masked and not args.synth.document_masking:
        logger.warning("conversations see their neighbours in a sequence; synth.document_masking=true keeps them apart")
    counts = count_parameters(args.model)
    logger.info(
        f"{args.name}: {counts.total:,} parameters ({counts.non_embedding:,} non-embedding), {args.steps:,} steps of "
        f"{tokens_per_step(args, ranks.size):,} tokens on {ranks.size} rank(s); {MFU_FORMULA}"
    )
    is_main = ranks.is_main
    return _Run(
        args=args,
        identity_sha256=identity_sha256,
        ranks=ranks,
        loader=loader,
        feedback=feedback,
        model=model,
        stepper=wrap_model(model, args, ranks),
        optimizer=optimizer,
        guard=guard,
        writer=CheckpointWriter(
            run_dir,
            keep=args.checkpoint.dump.keep,
            keep_steps=args.synth.keep_steps,
            background=args.synth.async_checkpoint and step < args.steps,
        ),
        preemption=preemption,
        sources=sources,
        held_out=held_out,
        logger=logger,
        metrics=MetricsFile(run_dir / METRICS, step) if is_main else None,
        validation=MetricsFile(run_dir / VALIDATION_METRICS, step) if is_main and held_out else None,
        trackers=Trackers(args, identity_sha256, step) if is_main else None,
        step=step,
        scored_tokens=scored_tokens,
        elapsed_before_s=elapsed_before_s,
        started=time.perf_counter(),
    )


def _open_loader(
    args: TrainArgs,
    sources: Mapping[str, TokenSource],
    ranks: Ranks,
    feedback: Feedback | None,
    data_state: Mapping[str, Any] | None,
) -> MixtureLoader:
    """The run's batches from where `data_state` stands, which `feedback` is brought to as well."""
    if feedback is None:
        return open_loader(args, sources, ranks, data_state)
    if data_state is not None:
        feedback.load_state_dict(data_state.get("feedback", {}))
        data_state = {key: value for key, value in data_state.items() if key != "feedback"}
    with warnings.catch_warnings():
        # Of a plan that supposes the present shares to stay, and of a decision that the state stands right behind.
        warnings.filterwarnings("ignore", message="mixture: |the mixture has changed: ")
        return open_loader(args, sources, ranks, data_state, mixture=mixture_of(args, feedback))


def _build_model(args: TrainArgs, ranks: Ranks, *, has_checkpoint: bool, logger: logging.Logger) -> Transformer:
    """The model on its device, each rank holding its part: drawn from the seed, or ready to be filled."""
    with torch.device("meta"):
        model = Transformer(
            args.model,
            torch.bfloat16 if args.distributed.model_dtype == "bf16" else torch.float32,
            attention=args.synth.attention,
            loss=args.synth.loss.backend,
            loss_chunk_tokens=args.synth.loss.chunk_tokens_on(ranks.device.type),
        )
    shard_model(model, args, ranks)
    model.to_empty(device=ranks.device)
    if has_checkpoint:
        model.init_buffers()
    elif args.checkpoint.init_ckpt_path:
        model.init_buffers()
        logger.info("weights of %s", load_weights(args.checkpoint.init_ckpt_path, model))
    else:
        assert args.model.seed is not None, "resolve_args sets the model's seed"
        model.init_weights(args.model.seed)
    return model


def _progress_bar(run: _Run, progress: bool) -> tqdm:
    return tqdm(
        total=run.args.steps * run.tokens_per_step,
        initial=run.step * run.tokens_per_step,
        unit="tok",
        unit_scale=True,
        desc=run.args.name,
        disable=not (progress and run.ranks.is_main),
        dynamic_ncols=True,
    )


@dataclass
class _Window:
    """What has been seen since the last log line."""

    by_source: torch.Tensor
    """fp64 [sources, 2]: summed nats and scored tokens of the steps that were kept, on this rank."""
    started: float
    steps: int = 0
    data_s: float = 0.0

    @classmethod
    def empty(cls, run: _Run) -> _Window:
        return cls(torch.zeros(len(run.sources), 2, dtype=torch.float64, device=run.ranks.device), time.perf_counter())


def _take_steps(run: _Run, bar: tqdm) -> None:
    """From where the run stands to the last step of its budget."""
    args = run.args
    window = _Window.empty(run)
    run.model.train()
    while run.step < args.steps:
        lr = args.optim.lr * learning_rate_ratio(run.step, args.optim, args.steps, args.synth.decay)
        for group in run.optimizer.param_groups:
            group["lr"] = lr

        by_source, micro_loss = _forward_and_backward(run, window)
        grad_norm = clip_gradients(run.model, args.optim.clip)
        step_loss, num_scored, last_micro, norm, signal, sums = _agree(run, by_source, micro_loss, grad_norm)

        reason = _judge(run, step_loss, norm, num_scored)
        if reason is None:
            run.optimizer.step()
            window.by_source += by_source
            if run.feedback is not None:
                run.feedback.observe(sums)
        run.optimizer.zero_grad()
        run.step += 1
        window.steps += 1
        bar.update(run.tokens_per_step)
        run.writer.poll()
        if run.step % args.gc_collect_freq == 0:
            gc.collect()

        # A checkpoint is logged too, so that a resumed run logs the same windows.
        saves = run.step == args.steps or _is_due(run.step, args.checkpoint.dump.every) or signal > 0
        saves = saves or run.step in args.synth.keep_steps
        # So is an interval of feedback, whose losses and decision belong together.
        decides = run.feedback is not None and run.step < args.steps and _ends_interval(run)
        if decides:
            _decide(run)
        if saves or decides or _is_due(run.step, args.logging.freq):
            _log(run, window, lr, norm, last_micro, bar, decides)
            window = _Window.empty(run)
        if saves:
            _save(run)
        if signal and run.step < args.steps:
            _leave(run, signal)
        if run.held_out and run.step < args.steps and _is_due(run.step, args.synth.evaluation.every):
            _log_validation(run, sums_of(_evaluate(run)))
            window.started = time.perf_counter()
    run.writer.close()


def _ends_interval(run: _Run) -> bool:
    every = run.args.synth.feedback.every_tokens
    assert every is not None, "a run with feedback has an interval"
    return run.step * run.tokens_per_step % every == 0


def _decide(run: _Run) -> None:
    """Set the shares of the next interval from the losses of the last. All ranks have the same sums, so they agree."""
    assert run.feedback is not None, "called with feedback"
    loader = run.loader
    read = {name: account.sequences for name, account in loader.accounting().items()}
    loader.change_ratios(run.feedback.decide(sequences_left(loader.mixture, loader.num_windows, read)))


def _forward_and_backward(run: _Run, window: _Window) -> tuple[torch.Tensor, torch.Tensor]:
    """The micro-batches of one step: fp64 [sources, 2] summed nats and scored tokens, and the last micro-batch's mean
    loss."""
    args, device = run.args, run.ranks.device
    by_source = torch.zeros_like(window.by_source)
    masked = _MaskedStep.read(run, window) if run.loader.is_masked else None
    for micro_step in range(args.grad_acc_steps):
        data_started = time.perf_counter()
        batch = next(run.loader) if masked is None else masked.batches[micro_step]
        block = batch.to_torch(device).long()
        tokens, labels = block[:, :-1], block[:, 1:]
        scored = None
        if batch.scored is not None:
            scored = torch.from_numpy(batch.scored).to(device, non_blocking=True)
            labels = labels.masked_fill(~scored, IGNORED_LABEL)
        source = torch.from_numpy(batch.source.astype(np.int64)).to(device, non_blocking=True)
        document = None
        if batch.document is not None:
            document = torch.from_numpy(batch.document).to(device, non_blocking=True)
        window.data_s += time.perf_counter() - data_started

        # Ranks exchange gradients once a step, with its last micro-batch.
        with exchanging_gradients(run.stepper, micro_step == args.grad_acc_steps - 1):
            losses = run.stepper(tokens, labels, document=document)
            # Not losses.mean(): the loss tells from this form's gradient, without waiting for the device, that all
            # tokens count alike.
            if masked is None:
                micro_loss = losses.sum() / losses.numel()
                (micro_loss / args.grad_acc_steps).backward()
            else:
                summed = losses.sum()
                (summed * masked.weight).backward()
                micro_loss = summed * masked.weight_of_last
        nats = losses.detach().double().sum(1)
        by_source[:, 0].index_add_(0, source, nats)
        num_scored = torch.full_like(nats, args.data.seq_len) if scored is None else scored.double().sum(1)
        by_source[:, 1].index_add_(0, source, num_scored)
    return by_source, micro_loss.detach()


@dataclass(frozen=True)
class _MaskedStep:
    """The micro-batches of a step of which only some tokens are scored: read before the first one is trained on, since
    every loss is divided by the scored tokens of them all, on all ranks."""

    batches: list[Batch]
    weight: torch.Tensor
    """What a scored token's loss is multiplied by. Ranks average their gradients, so it is their number over the scored
    tokens of the step; 0 where there are none."""
    weight_of_last: torch.Tensor
    """The same over the last micro-batches alone."""

    @classmethod
    def read(cls, run: _Run, window: _Window) -> _MaskedStep:
        """This rank's batches of the next step. All ranks call it."""
        started = time.perf_counter()
        batches = [next(run.loader) for _ in range(run.args.grad_acc_steps)]
        window.data_s += time.perf_counter() - started
        counts = [int(batch.scored.sum()) for batch in batches if batch.scored is not None]
        mine = torch.tensor([sum(counts), counts[-1]], dtype=torch.float64, device=run.ranks.device)
        both = run.ranks.sum(mine)
        weights = torch.where(both > 0, run.ranks.size / both.clamp(min=1), 0).float()
        return cls(batches, weights[0], weights[1])


def _agree(
    run: _Run, by_source: torch.Tensor, micro_loss: torch.Tensor, grad_norm: torch.Tensor
) -> tuple[float, int, float, float, int, dict[str, list[float]]]:
    """Over all ranks: loss of the step, its scored tokens, loss of its last micro-batches; gradient norm, a signal
    that any rank got; for feedback, summed nats and scored tokens by source.

    The one place of a step where the host waits for the device.
    """
    signal = torch.tensor(float(run.preemption.signal), dtype=torch.float64, device=by_source.device)
    mine = torch.stack([by_source[:, 0].sum(), by_source[:, 1].sum(), micro_loss.double(), signal])
    if run.feedback is not None:
        mine = torch.cat([mine, by_source.flatten()])
    shared = run.ranks.sum(mine)
    norm, nats, tokens, micro, signals, *flat = torch.cat([grad_norm.double().reshape(1), shared]).tolist()
    sums = {name: flat[2 * i : 2 * i + 2] for i, name in enumerate(run.sources)} if flat else {}
    # Ranks that a launcher tells to leave all get the same signal: the sum only has to say whether any did.
    number = run.preemption.signal or int(signals > 0) * 15
    return nats / max(tokens, 1), int(tokens), micro / run.ranks.size, norm, number, sums


def _judge(run: _Run, loss: float, grad_norm: float, num_scored: int) -> str | None:
    """The reason to skip this step: the guard's, or that nothing in it is to be learned. The batch is named in the log,
    or in the ValueError that stops the run."""
    per_step = run.tokens_per_step // run.args.data.seq_len
    first = run.step * per_step
    where = f"at step {run.step + 1} (global sequences {first}..{first + per_step - 1})"
    try:
        reason = run.guard.judge(loss, grad_norm) if num_scored else run.guard.leave_out("no token of it is scored")
    except ValueError as error:
        run.writer.close()
        run.logger.error(f"stopped {where}: {error}")
        raise ValueError(
            f"{run.args.name}: {error} {where}; the newest checkpoint is from before. Lower optim.lr or optim.clip "
            "in a new dump_dir, or let synth.guard skip such steps"
        ) from None
    if reason is not None:
        run.logger.warning(f"skipped {where}: {reason}")
    return reason


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _log(run: _Run, window: _Window, lr: float, grad_norm: float, last_micro: float, bar: tqdm, decided: bool) -> None:
    """Write one line of metrics, with the decision that was taken at this step. All ranks call it."""
    by_source = run.ranks.sum(window.by_source).cpu().numpy()
    for name, num_scored in zip(run.sources, by_source[:, 1].tolist(), strict=True):
        if run.scored_tokens:
            run.scored_tokens[name] += int(num_scored)
    if run.metrics is None or run.trackers is None:
        return
    seconds = time.perf_counter() - window.started
    seen = Interval(window.steps, seconds, window.data_s, by_source[:, 0], by_source[:, 1], lr, grad_norm, last_micro)
    record = metrics_line(run.args, run.sources, run.loader, run.step, run.ranks.size, seen)
    record |= {f"data/scored_tokens/{name}": count for name, count in run.scored_tokens.items()}
    if decided and run.feedback is not None:
        record |= decision_record(run.feedback)
    if run.guard.num_skipped:
        record["guard/skipped_steps"] = run.guard.num_skipped
    run.metrics.write(record)
    run.trackers.write(record, run.step)
    loss, mfu = record.get("loss/mean", float("nan")), record.get("speed/mfu")
    run.logger.info(
        f"step {run.step}  loss {loss:.4f}  grad {grad_norm:.2e}  lr {lr:.2e}  {record['speed/wps']:.0f} tok/s/rank"
        + (f"  mfu {mfu:.1%}  mem {record['memory/max_active_gib']:.1f} GiB" if mfu is not None else "")
    )
    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)


def _save(run: _Run) -> None:
    state: dict[str, Any] = {
        "step": run.step,
        "acc_step": 0,
        "elapsed_s": run.elapsed_s,
        "data_loader_state": run.loader.state_dict(),
        "scheduler": _scheduler_state(run),
        "guard": run.guard.state_dict(),
    }
    if run.feedback is not None:
        # In the data's state, so that a loop without feedback refuses it and does not go on with fixed shares.
        state["data_loader_state"]["feedback"] = run.feedback.state_dict()
    params = to_dict(run.args)
    if run.loader.is_masked:
        state["scored_tokens"] = dict(run.scored_tokens)
        params["chat"] = chat_of(run.sources, run.args.data.seq_len)
    run.writer.save(run.step, run.model, run.optimizer, params=params, train_state=state)


def _scheduler_state(run: _Run) -> dict[str, Any]:
    """What PyTorch's LambdaLR, the scheduler of Lingua's loop, would hold at this step; ours needs none."""
    optim, steps = run.args.optim, run.args.steps
    return {
        "base_lrs": [optim.lr],
        "last_epoch": run.step,
        "_step_count": run.step + 1,
        "_is_initial": False,
        "_get_lr_called_within_step": False,
        "_last_lr": [optim.lr * learning_rate_ratio(min(run.step, steps - 1), optim, steps, run.args.synth.decay)],
        "lr_lambdas": [None],
    }


def _leave(run: _Run, signal: int) -> None:
    """Stop with a checkpoint because a signal asks for it."""
    run.writer.close()
    message = f"{run.args.name}: signal {signal} at step {run.step} of {run.args.steps}; {LEFT}"
    if run.args.synth.requeue and run.ranks.is_main:
        message += f"; {requeue_slurm_job()}"
    run.logger.warning(message)
    raise Preempted(signal, message)


def _evaluate(run: _Run) -> Scores | None:
    return run.held_out.score(run.model)


def _log_validation(run: _Run, sums: Mapping[str, DomainSums]) -> None:
    if run.validation is None or run.trackers is None:
        return
    record = validation_line(run.step, sums)
    run.validation.write(record)
    run.trackers.write({f"validation/{n}": d.loss for n, d in sums.items()}, run.step)


def _finish(run: _Run) -> dict[str, Any]:
    """Evaluate the last weights and write the run's row."""
    scores = _evaluate(run)
    sums = sums_of(scores)
    row = result_row(
        run.args,
        run.sources,
        run.loader,
        sums,
        num_tokens=run.args.steps * run.tokens_per_step,
        num_gpus=run.ranks.size if run.ranks.device.type == "cuda" else 0,
        elapsed_s=run.elapsed_s,
        num_skipped=run.guard.num_skipped,
        scored_tokens=run.scored_tokens,
        identity_sha256=run.identity_sha256,
    )
    if run.ranks.is_main:
        if scores is not None:
            _log_validation(run, sums)
            run.held_out.write(scores, run.step)
        write_json(run.dir / RESULT, row)
    run.logger.info(f"finished after {run.elapsed_s:.1f} s of training")
    run.ranks.barrier()
    return row
