"""The training loop, in time order.

A run is a folder. `train(args)` opens the sources, resumes from the newest checkpoint if there is one, takes optimizer
steps until the budget is spent, evaluates, and writes `result.json`, one row of the runs table, last: its presence
means
the run is complete, and a second call returns it at once. Killed at any moment and called again, a run goes on from its
newest checkpoint and ends with the same numbers (bit-equal on the CPU).

A step: `grad_acc_steps` micro-batches of `batch_size` sequences on each rank. The loss of a step is the mean over its
tokens, whatever the split into ranks and micro-batches, so 1 rank x 2 micro-batches and 2 ranks x 1 train alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lingua_synth.config import to_dict
from lingua_synth.evaluate import DomainSums, evaluate_domains, summarize
from lingua_synth.files import folder_lock, read_json, sha256_json, write_json
from lingua_synth.mixture import MixtureLoader
from lingua_synth.mixture.args import build_mixture
from lingua_synth.model.checkpoint import list_checkpoints, restore_checkpoint, save_checkpoint
from lingua_synth.model.counts import FLOPS_FORMULA, count_parameters, flops_per_token
from lingua_synth.model.transformer import Transformer, build_model
from lingua_synth.tokens import TokenSource
from lingua_synth.train.args import TrainArgs, resolve_args, tokens_per_step
from lingua_synth.train.distributed import Ranks, data_parallel
from lingua_synth.train.folder import METRICS, RESULT, VALIDATION_METRICS
from lingua_synth.train.identity import claim_folder, run_identity
from lingua_synth.train.inputs import (
    fit_to_sources,
    open_shards,
    open_sources,
    refuse_other_vocabulary,
    with_shard_tokenizer,
)
from lingua_synth.train.metrics import MetricsFile, close_logger, run_logger
from lingua_synth.train.schedule import learning_rate_ratio

# Dense bf16 peaks in FLOP/s from NVIDIA's data sheets, without sparsity: the denominator of speed/mfu.
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


@dataclass
class _Run:
    """What the steps of one run share; `step` is the number of optimizer steps taken."""

    args: TrainArgs
    identity_sha256: str
    ranks: Ranks
    loader: MixtureLoader
    model: Transformer
    stepper: torch.nn.Module
    """The model as it is called: compiled, wrapped for data parallelism."""
    optimizer: torch.optim.Optimizer
    sources: Mapping[str, TokenSource]
    domains: Mapping[str, TokenSource]
    logger: logging.Logger
    metrics: MetricsFile | None
    """Open on the main rank alone."""
    validation: MetricsFile | None
    step: int
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


def train(args: TrainArgs, *, progress: bool = True) -> dict[str, Any]:
    """Train to the end of the budget and return the run's row of the runs table.

    Raises ValueError for a configuration that cannot run, a folder that holds another run, or a loss that is not finite
    (naming the step and the positions of its sequences); OSError when something cannot be written.
    """
    with data_parallel(args.synth.device) as ranks:
        sources = open_sources(args, ranks)
        args = with_shard_tokenizer(args, sources)
        vocab_size = int(next(iter(sources.values())).manifest["tokenizer"]["n_words"])
        args = resolve_args(args, dp_size=ranks.size, vocab_size=vocab_size)
        args = fit_to_sources(args, sources, dp_size=ranks.size)
        domains = {n: open_shards(f"domain {n!r}", path) for n, path in args.synth.evaluation.domains.items()}
        refuse_other_vocabulary(sources, domains)
        with folder_lock(args.dump_dir, "training run") if ranks.is_main else contextlib.nullcontext():
            identity = run_identity(args, sources, domains, ranks.size)
            identity = claim_folder(Path(args.dump_dir), args, identity, ranks)
            if (Path(args.dump_dir) / RESULT).is_file():
                return read_json(Path(args.dump_dir) / RESULT)
            run = _prepare(args, sources, domains, ranks, sha256_json(identity))
            try:
                with _progress_bar(run, progress) as bar:
                    _take_steps(run, bar)
                return _finish(run)
            finally:
                for file in (run.metrics, run.validation):
                    if file is not None:
                        file.close()
                close_logger(run.logger)


def _prepare(
    args: TrainArgs,
    sources: Mapping[str, TokenSource],
    domains: Mapping[str, TokenSource],
    ranks: Ranks,
    identity_sha256: str,
) -> _Run:
    """Build everything, and bring it to where the newest checkpoint stood."""
    global_batch_size = tokens_per_step(args, ranks.size) // args.data.seq_len
    compute_dtype = torch.bfloat16 if args.distributed.model_dtype == "bf16" else torch.float32
    model = build_model(args.model, seed=_seed(args), compute_dtype=compute_dtype).to(ranks.device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=args.optim.lr,
        betas=(args.optim.beta1, args.optim.beta2),
        eps=args.optim.epsilon,
        weight_decay=args.optim.weight_decay,
        fused=True,
    )
    run_dir = Path(args.dump_dir)
    logger = run_logger(run_dir, ranks.is_main)
    step, elapsed_before_s, data_state = 0, 0.0, None
    if found := list_checkpoints(run_dir):
        state = restore_checkpoint(found[-1], model, optimizer)
        step, elapsed_before_s, data_state = state["step"], state["elapsed_s"], state["data_loader_state"]
        logger.info("resumed from %s", found[-1].name)
    loader = MixtureLoader(
        sources,
        build_mixture(args.synth.sources, args.synth.stages, args.synth.on_exhaustion),
        seq_len=args.data.seq_len,
        batch_size=args.data.batch_size,
        dp_rank=ranks.rank,
        dp_size=ranks.size,
        global_batch_size=global_batch_size,
        seed=args.data.seed,
        num_sequences=args.steps * global_batch_size,
        schedule=args.synth.schedule,
        prefetch=args.synth.prefetch,
        pin_memory=ranks.device.type == "cuda",
        state=data_state,
    )
    if loader.num_sequences != args.steps * global_batch_size:
        raise ValueError(
            f"with what the run has read before, its mixture ends after {loader.num_sequences:,} of "
            f"{args.steps * global_batch_size:,} sequences; raise max_epochs, or set synth.on_exhaustion to repeat or "
            "renormalize"
        )
    for notice in loader.plan.notices() if loader.plan else []:
        logger.info("mixture: %s", notice)
    stepper: torch.nn.Module = model
    if args.distributed.compile:
        stepper = torch.compile(stepper)  # type: ignore[assignment]
    if ranks.size > 1:
        device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        stepper = DistributedDataParallel(stepper, device_ids=device_ids)
    counts = count_parameters(args.model)
    logger.info(
        f"{args.name}: {counts.total:,} parameters ({counts.non_embedding:,} non-embedding), {args.steps:,} steps of "
        f"{tokens_per_step(args, ranks.size):,} tokens on {ranks.size} rank(s), FLOPs per token = {FLOPS_FORMULA}"
    )
    return _Run(
        args=args,
        identity_sha256=identity_sha256,
        ranks=ranks,
        loader=loader,
        model=model,
        stepper=stepper,
        optimizer=optimizer,
        sources=sources,
        domains=domains,
        logger=logger,
        metrics=MetricsFile(run_dir / METRICS, step) if ranks.is_main else None,
        validation=MetricsFile(run_dir / VALIDATION_METRICS, step) if ranks.is_main and domains else None,
        step=step,
        elapsed_before_s=elapsed_before_s,
        started=time.perf_counter(),
    )


def _seed(args: TrainArgs) -> int:
    assert args.model.seed is not None, "resolve_args sets the model's seed"
    return args.model.seed


@dataclass
class _Window:
    """What has been seen since the last log line."""

    by_source: torch.Tensor
    """fp64 [sources, 2]: summed nats and tokens, on this rank."""
    started: float
    steps: int = 0
    data_s: float = 0.0

    @classmethod
    def empty(cls, run: _Run) -> _Window:
        return cls(torch.zeros(len(run.sources), 2, dtype=torch.float64, device=run.ranks.device), time.perf_counter())


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


def _take_steps(run: _Run, bar: tqdm) -> None:
    """From where the run stands to the last step of its budget."""
    args, device = run.args, run.ranks.device
    window = _Window.empty(run)
    run.model.train()
    while run.step < args.steps:
        lr = args.optim.lr * learning_rate_ratio(run.step, args.optim, args.steps)
        for group in run.optimizer.param_groups:
            group["lr"] = lr

        for micro_step in range(args.grad_acc_steps):
            data_started = time.perf_counter()
            batch = next(run.loader)
            block = batch.to_torch(device).long()
            tokens, labels = block[:, :-1], block[:, 1:]
            source = torch.from_numpy(batch.source.astype(np.int64)).to(device, non_blocking=True)
            window.data_s += time.perf_counter() - data_started

            # Ranks exchange gradients once a step, after its last micro-batch.
            is_last = micro_step == args.grad_acc_steps - 1
            with _no_sync(run.stepper) if not is_last else contextlib.nullcontext():
                losses = run.stepper(tokens, labels)
                micro_loss = losses.mean()
                (micro_loss / args.grad_acc_steps).backward()
            nats = losses.detach().double().sum(1)
            window.by_source[:, 0].index_add_(0, source, nats)
            window.by_source[:, 1].index_add_(0, source, torch.full_like(nats, args.data.seq_len))

        grad_norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), args.optim.clip)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.step += 1
        window.steps += 1
        bar.update(run.tokens_per_step)

        # A checkpoint is logged too: its loss is known to be finite, and a resumed run logs the same windows.
        saves = run.step == args.steps or _is_due(run.step, args.checkpoint.dump.every)
        if saves or _is_due(run.step, args.logging.freq):
            loss = _log(run, window, lr, float(grad_norm), micro_loss.detach())
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            window = _Window.empty(run)
        if saves:
            _save(run)
        if run.domains and run.step < args.steps and _is_due(run.step, args.synth.evaluation.every):
            _log_validation(run, _evaluate(run))
            window.started = time.perf_counter()


def _no_sync(stepper: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
    return stepper.no_sync() if isinstance(stepper, DistributedDataParallel) else contextlib.nullcontext()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _log(run: _Run, window: _Window, lr: float, grad_norm: float, micro_loss: torch.Tensor) -> float:
    """Write one line of metrics; return the mean loss of the window. All ranks call it.

    Raises ValueError when the loss or the gradient is not finite; the newest checkpoint is from before.
    """
    args, ranks = run.args, run.ranks
    last_micro = float(ranks.sum(micro_loss.double().clone())) / ranks.size
    by_source = ranks.sum(window.by_source).cpu().numpy()
    nats, seen = by_source[:, 0], by_source[:, 1]
    mean = float(nats.sum() / seen.sum())
    if not (math.isfinite(mean) and math.isfinite(grad_norm)):
        sequences_per_step = run.tokens_per_step // args.data.seq_len
        first, last = (run.step - window.steps) * sequences_per_step, run.step * sequences_per_step - 1
        raise ValueError(
            f"{args.name}: loss {mean} with gradient norm {grad_norm} is not finite at step {run.step} (since the last "
            f"log line: global sequences {first}..{last}); lower optim.lr or optim.clip in a new dump_dir"
        )
    if run.metrics is None:
        return mean
    seconds = time.perf_counter() - window.started
    rate = window.steps * run.tokens_per_step / seconds / ranks.size
    flops = rate * flops_per_token(args.model, args.data.seq_len)
    accounting = run.loader.accounting(run.step * run.tokens_per_step // args.data.seq_len)
    record = {
        "global_step": run.step,
        "acc_step": 0,
        "speed/wps": rate,
        "speed/FLOPS": flops,
        "speed/curr_iter_time": seconds / window.steps,
        "speed/data_load_time": window.data_s / window.steps,
        "optim/grad_norm": grad_norm,
        "optim/lr": lr,
        "optim/total_tokens": run.step * run.tokens_per_step,
        "loss/out": last_micro,
        "loss/mean": mean,
        "created_at": datetime.now(UTC).isoformat(),
    }
    if (peak := _peak_flops(ranks.device)) is not None:
        record["speed/mfu"] = flops / peak
    for i, name in enumerate(run.sources):
        if seen[i]:
            record[f"loss/source/{name}"] = float(nats[i] / seen[i])
        record[f"data/tokens/{name}"] = int(accounting[name].tokens)
        record[f"data/epochs/{name}"] = float(accounting[name].epochs)
    run.metrics.write(record)
    run.logger.info(f"step {run.step}  loss {mean:.4f}  grad {grad_norm:.2e}  lr {lr:.2e}  {rate:.0f} tok/s/rank")
    return mean


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def _save(run: _Run) -> None:
    state = {
        "step": run.step,
        "acc_step": 0,
        "elapsed_s": run.elapsed_s,
        "data_loader_state": run.loader.state_dict(),
    }
    keep = run.args.checkpoint.dump.keep
    save_checkpoint(run.dir, run.step, run.model, run.optimizer, params=to_dict(run.args), train_state=state, keep=keep)


def _evaluate(run: _Run) -> dict[str, DomainSums]:
    if not run.domains:
        return {}
    most = run.args.synth.evaluation.max_tokens_per_domain
    return evaluate_domains(run.model, run.domains, seq_len=run.args.data.seq_len, max_tokens_per_domain=most)


def _log_validation(run: _Run, sums: Mapping[str, DomainSums]) -> None:
    if run.validation is None:
        return
    record: dict[str, Any] = {"global_step": run.step}
    for name, domain in sums.items():
        averages = {"nll_per_token": domain.loss, "bits_per_byte": domain.bits_per_byte}
        record[name] = dataclasses.asdict(domain) | averages
    run.validation.write(record)


def _finish(run: _Run) -> dict[str, Any]:
    """Evaluate the last weights and write the run's row."""
    sums = _evaluate(run)
    row = _result_row(run, sums)
    if run.ranks.is_main:
        if sums:
            _log_validation(run, sums)
        write_json(run.dir / RESULT, row)
    run.logger.info(f"finished after {run.elapsed_s:.1f} s of training")
    run.ranks.barrier()
    return row


def _result_row(run: _Run, sums: Mapping[str, DomainSums]) -> dict[str, Any]:
    """One row of the runs table; averages over domains are in it beside each domain's own."""
    args, counts = run.args, count_parameters(run.args.model)
    num_tokens = args.steps * run.tokens_per_step
    accounting = run.loader.accounting(num_tokens // args.data.seq_len)
    mixture = run.loader.mixture
    listed = "+".join(f"{name}:{source.ratio}" for name, source in args.synth.sources.items())
    row: dict[str, Any] = {
        "run_id": args.name,
        "mixture": args.synth.mixture or (listed if mixture.is_constant else str(mixture)),
    }
    # What was asked for over the whole run: the ratio itself where it is constant.
    num_sequences = num_tokens // args.data.seq_len
    asked = run.loader.schedule.course.target(num_sequences)
    row |= {f"ratio_{name}": float(share / num_sequences) for name, share in zip(mixture.names, asked, strict=True)}
    row |= {
        "size": args.synth.preset or f"{args.model.dim}x{args.model.n_layers}",
        "n_non_embedding": counts.non_embedding,
        "n_lingua": counts.lingua,
        "n_total": counts.total,
        "tokens": num_tokens,
    }
    for name, source in run.sources.items():
        tokens = int(accounting[name].tokens)
        row[f"tokens_{name}"] = tokens
        row[f"unique_tokens_{name}"] = min(tokens, source.num_tokens)
        row[f"epochs_{name}"] = float(accounting[name].epochs)
    row["seed"] = args.seed
    if sums:
        row |= summarize(sums)
        row |= {f"loss_{name}": domain.loss for name, domain in sums.items()}
        row |= {f"bpb_{name}": domain.bits_per_byte for name, domain in sums.items()}
    return row | {
        "flops": num_tokens * flops_per_token(args.model, args.data.seq_len),
        "gpu_hours": run.ranks.size * run.elapsed_s / 3600 if run.ranks.device.type == "cuda" else 0.0,
        "wall_s": run.elapsed_s,
        "config_sha256": run.identity_sha256,
    }
