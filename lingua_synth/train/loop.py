"""The training loop, in time order.

A run is a folder. `train(args)` opens the sources, resumes from the newest checkpoint if there is one, takes optimizer steps
until the budget is spent, evaluates, and writes `result.json`, one row of the runs table, last: its presence means the
run is complete, and a second call returns it at once. Killed at any moment and called again, a run goes on from its
newest checkpoint and ends with the same numbers (bit-equal on the CPU).

A step: `grad_acc_steps` micro-batches of `batch_size` sequences on each rank. The loss of a step is the mean over its tokens,
whatever the split into ranks and micro-batches, so 1 rank x 2 micro-batches and 2 ranks x 1 train alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lingua_synth.config import args_sha256, dump_args, to_dict
from lingua_synth.evaluate import DomainSums, evaluate_domains, summarize
from lingua_synth.files import folder_lock, read_json, write_json
from lingua_synth.mixture import Mixture, MixtureLoader, parse_ratio
from lingua_synth.model.checkpoint import list_checkpoints, restore_checkpoint, save_checkpoint
from lingua_synth.model.counts import FLOPS_FORMULA, count_parameters, flops_per_token
from lingua_synth.model.transformer import build_model
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize
from lingua_synth.train.args import TokenizerArgs, TrainArgs, resolve_args, tokens_per_step
from lingua_synth.train.distributed import Ranks, data_parallel
from lingua_synth.train.metrics import METRICS, VALIDATION_METRICS, MetricsFile, close_logger, run_logger
from lingua_synth.train.schedule import learning_rate_ratio

RESULT = "result.json"
CONFIG = "config.yaml"

# Dense bf16 peaks in FLOP/s from NVIDIA's data sheets, without sparsity: the denominator of speed/mfu.
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def train(args: TrainArgs, *, progress: bool = True) -> dict[str, Any]:
    """Train to the end of the budget and return the run's row of the runs table.

    Raises ValueError for a configuration that cannot run, a folder that holds another run, or a loss that is not finite
    (naming the step and the positions of its sequences); OSError when something cannot be written.
    """
    with data_parallel(args.synth.device) as ranks:
        if not args.dump_dir:
            raise ValueError("dump_dir is not set: give the folder for this run's results, e.g. dump_dir=runs/first")
        run_dir = Path(args.dump_dir)
        lock = folder_lock(run_dir, "training run") if ranks.is_main else contextlib.nullcontext()
        with lock:
            return _train(args, run_dir, ranks, progress)


def _train(args: TrainArgs, run_dir: Path, ranks: Ranks, progress: bool) -> dict[str, Any]:
    sources = open_sources(args, ranks)
    args = _with_shard_tokenizer(args, sources)
    vocab_size = int(next(iter(sources.values())).manifest["tokenizer"]["n_words"])
    args = resolve_args(args, dp_size=ranks.size, vocab_size=vocab_size)
    identity = run_identity(args, sources, ranks.size)
    if (run_dir / RESULT).is_file():
        return _finished_result(run_dir, identity)
    _claim_folder(run_dir, args, identity, ranks)
    domains = {name: _open_shards(f"domain {name!r}", path) for name, path in args.synth.evaluation.domains.items()}
    _refuse_other_vocabulary(sources, domains)

    mixture = Mixture(
        {name: source.ratio for name, source in args.synth.sources.items()},
        max_epochs={name: source.max_epochs for name, source in args.synth.sources.items()},
    )
    global_batch_size = tokens_per_step(args, ranks.size) // args.data.seq_len
    loader = MixtureLoader(
        sources,
        mixture,
        seq_len=args.data.seq_len,
        batch_size=args.data.batch_size,
        dp_rank=ranks.rank,
        dp_size=ranks.size,
        global_batch_size=global_batch_size,
        seed=args.data.seed,
        num_sequences=args.steps * global_batch_size,
    )
    compute_dtype = torch.bfloat16 if args.distributed.model_dtype == "bf16" else torch.float32
    model = build_model(args.model, seed=args.seed, compute_dtype=compute_dtype).to(ranks.device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=args.optim.lr,
        betas=(args.optim.beta1, args.optim.beta2),
        eps=args.optim.epsilon,
        weight_decay=args.optim.weight_decay,
        fused=True,
    )
    logger = run_logger(run_dir) if ranks.is_main else logging.getLogger("lingua_synth.silent")
    step, elapsed_before = 0, 0.0
    if found := list_checkpoints(run_dir):
        state = restore_checkpoint(found[-1], model, optimizer)
        step, elapsed_before = state["step"], state["elapsed_s"]
        loader.load_state_dict(state["data_loader_state"])
        logger.info("resumed from %s", found[-1].name)
    counts = count_parameters(args.model)
    logger.info(
        "%s: %s parameters (%s non-embedding), %d steps of %d tokens on %d rank(s), FLOPs per token = %s",
        args.name, f"{counts.total:,}", f"{counts.non_embedding:,}", args.steps, tokens_per_step(args, ranks.size),
        ranks.size, FLOPS_FORMULA,
    )  # fmt: skip
    stepper: torch.nn.Module = model
    if args.distributed.compile:
        stepper = torch.compile(stepper)  # type: ignore[assignment]
    if ranks.size > 1:
        stepper = DistributedDataParallel(stepper, device_ids=[ranks.device.index] if ranks.device.index is not None else None)

    started = time.perf_counter()
    metrics = MetricsFile(run_dir / METRICS, step) if ranks.is_main else None
    validation = MetricsFile(run_dir / VALIDATION_METRICS, step) if ranks.is_main and domains else None
    try:
        _take_steps(
            args, ranks, run_dir, loader, list(sources), model, stepper, optimizer, step, elapsed_before, started,
            domains, logger, metrics, validation, progress,
        )  # fmt: skip
        sums = _evaluate(args, model, domains)
        elapsed = elapsed_before + time.perf_counter() - started
        result = _result_row(args, ranks, loader, sources, counts, sums, elapsed, identity)
        if ranks.is_main:
            if validation is not None:
                _log_validation(validation, args.steps, sums)
            write_json(run_dir / RESULT, result)
        logger.info("finished in %.1f s of training", elapsed)
        ranks.barrier()
        return result
    finally:
        for file in (metrics, validation):
            if file is not None:
                file.close()
        close_logger(logger)


def _take_steps(
    args: TrainArgs,
    ranks: Ranks,
    run_dir: Path,
    loader: MixtureLoader,
    source_names: list[str],
    model: torch.nn.Module,
    stepper: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    elapsed_before: float,
    started: float,
    domains: Mapping[str, TokenSource],
    logger: logging.Logger,
    metrics: MetricsFile | None,
    validation: MetricsFile | None,
    progress: bool,
) -> None:
    step_tokens = tokens_per_step(args, ranks.size)
    token_flops = flops_per_token(args.model, args.data.seq_len)
    # Per source: summed nats and tokens since the last log line; then nats of the last micro-batch.
    window = torch.zeros(len(source_names), 2, dtype=torch.float64, device=ranks.device)
    window_start, window_steps, data_time = time.perf_counter(), 0, 0.0
    bar = tqdm(
        total=args.steps * step_tokens, initial=step * step_tokens, unit="tok", unit_scale=True, desc=args.name,
        disable=not (progress and ranks.is_main), dynamic_ncols=True,
    )  # fmt: skip
    model.train()
    while step < args.steps:
        ratio = learning_rate_ratio(step, args.optim, args.steps)
        for group in optimizer.param_groups:
            group["lr"] = args.optim.lr * ratio
        positions: list[np.ndarray] = []
        for micro_step in range(args.grad_acc_steps):
            data_start = time.perf_counter()
            batch = next(loader)
            tokens = torch.from_numpy(batch.tokens).to(ranks.device, torch.int64, non_blocking=True)
            labels = torch.from_numpy(batch.labels).to(ranks.device, torch.int64, non_blocking=True)
            positions.append(batch.position)
            data_time += time.perf_counter() - data_start
            is_last = micro_step == args.grad_acc_steps - 1
            wait = stepper.no_sync() if isinstance(stepper, DistributedDataParallel) and not is_last else contextlib.nullcontext()
            with wait:
                losses = stepper(tokens, labels)
                loss = losses.mean()
                (loss / args.grad_acc_steps).backward()
            with torch.no_grad():
                by_sequence = losses.detach().double().sum(1)
                source = torch.from_numpy(np.asarray(batch.source, dtype=np.int64)).to(ranks.device)
                window[:, 0].index_add_(0, source, by_sequence)
                window[:, 1].index_add_(0, source, torch.full_like(by_sequence, args.data.seq_len))
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        window_steps += 1
        bar.update(step_tokens)

        if step % args.logging.freq == 0 or step == args.steps:
            last_micro = ranks.sum(loss.detach().double().clone()) / ranks.size
            total = ranks.sum(window.clone()).cpu().numpy()
            nats, seen = total[:, 0], total[:, 1]
            mean_loss = float(nats.sum() / seen.sum())
            if not (math.isfinite(mean_loss) and math.isfinite(float(grad_norm))):
                where = np.concatenate(positions)
                raise ValueError(
                    f"{args.name}: loss {mean_loss} or gradient norm {float(grad_norm)} is not finite at step {step} "
                    f"(global sequences {int(where.min())}..{int(where.max())} on rank {ranks.rank}); lower optim.lr "
                    f"or optim.clip, then run again: it goes on from the newest checkpoint"
                )
            now = time.perf_counter()
            seconds = now - window_start
            if metrics is not None:
                rate = window_steps * step_tokens / seconds / ranks.size
                accounting = loader.accounting(step * step_tokens // args.data.seq_len)
                record = {
                    "global_step": step,
                    "acc_step": 0,
                    "speed/wps": rate,
                    "speed/FLOPS": rate * token_flops,
                    "speed/curr_iter_time": seconds / window_steps,
                    "speed/data_load_time": data_time / window_steps,
                    "optim/grad_norm": float(grad_norm),
                    "optim/lr": args.optim.lr * ratio,
                    "optim/total_tokens": step * step_tokens,
                    "loss/out": float(last_micro),
                    "loss/mean": mean_loss,
                    "created_at": datetime.now(timezone.utc).isoformat(),
                }
                if (peak := _peak_flops(ranks.device)) is not None:
                    record["speed/mfu"] = rate * token_flops / peak
                for i, name in enumerate(source_names):
                    if seen[i]:
                        record[f"loss/source/{name}"] = float(nats[i] / seen[i])
                    record[f"data/tokens/{name}"] = int(accounting[name].tokens)
                    record[f"data/epochs/{name}"] = float(accounting[name].epochs)
                metrics.write(record)
                logger.info(
                    "step %d  loss %.4f  grad %.2e  lr %.2e  %.0f tok/s/rank", step, mean_loss, float(grad_norm),
                    args.optim.lr * ratio, rate,
                )  # fmt: skip
                bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
            window.zero_()
            window_start, window_steps, data_time = now, 0, 0.0

        every = args.checkpoint.dump.every
        if step == args.steps or (every and step % every == 0):
            elapsed = elapsed_before + time.perf_counter() - started
            save_checkpoint(
                run_dir, step, model, optimizer, params=to_dict(args), keep=args.checkpoint.dump.keep,  # type: ignore[arg-type]
                train_state={"step": step, "acc_step": 0, "elapsed_s": elapsed, "data_loader_state": loader.state_dict()},
            )  # fmt: skip
        every = args.synth.evaluation.every
        if domains and every and step % every == 0 and step < args.steps:
            sums = _evaluate(args, model, domains)
            if validation is not None:
                _log_validation(validation, step, sums)
            window_start = time.perf_counter()
    bar.close()


def _evaluate(args: TrainArgs, model: torch.nn.Module, domains: Mapping[str, TokenSource]) -> dict[str, DomainSums]:
    if not domains:
        return {}
    return evaluate_domains(
        model, domains, seq_len=args.data.seq_len, max_tokens_per_domain=args.synth.evaluation.max_tokens_per_domain
    )


def _log_validation(validation: MetricsFile, step: int, sums: Mapping[str, DomainSums]) -> None:
    record: dict[str, Any] = {"global_step": step}
    for name, domain in sums.items():
        record[name] = dataclasses.asdict(domain) | {"nll_per_token": domain.loss, "bits_per_byte": domain.bits_per_byte}
    validation.write(record)


# --- opening what the run reads ---


def _open_shards(what: str, path: str) -> TokenSource:
    try:
        return TokenSource(path)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def open_sources(args: TrainArgs, ranks: Ranks) -> dict[str, TokenSource]:
    """Open the shards of every source; rank 0 first tokenizes those that name `documents` and have no shards yet."""
    if not args.synth.sources:
        raise ValueError(
            "synth.sources is empty: name at least one source, e.g. synth.sources.web.path=shards/web synth.sources.web.ratio=1"
        )
    for name, source in args.synth.sources.items():
        if not source.path:
            raise ValueError(f"synth.sources.{name}.path is not set: the folder of its token shards")
        if source.documents and ranks.is_main and not (Path(source.path) / "manifest.json").is_file():
            tokenizer = args.data.tokenizer
            if not tokenizer.name:
                raise ValueError(
                    f"synth.sources.{name}.documents is to be tokenized: name the tokenizer, e.g. data.tokenizer.name=bytes"
                )
            tokenize(source.documents, source.path, build_tokenizer(tokenizer.name, tokenizer.path))
    ranks.barrier()
    return {name: _open_shards(f"source {name!r}", source.path) for name, source in args.synth.sources.items()}


def _with_shard_tokenizer(args: TrainArgs, sources: Mapping[str, TokenSource]) -> TrainArgs:
    """The config with the shards' tokenizer written into it; ValueError if it names another vocabulary."""
    in_shards = next(iter(sources.values())).manifest["tokenizer"]
    asked = args.data.tokenizer
    if asked.name:
        tokenizer = build_tokenizer(asked.name, asked.path)
        if tokenizer.sha256 != in_shards["sha256"]:
            raise ValueError(
                f"data.tokenizer {asked.name} {asked.path or ''} is another vocabulary than the shards' "
                f"({in_shards['name']} {in_shards.get('path') or ''}); tokenize again or leave data.tokenizer.name empty"
            )
        return args
    found = TokenizerArgs(name=in_shards["name"], path=in_shards.get("path"))
    return dataclasses.replace(args, data=dataclasses.replace(args.data, tokenizer=found))


def _refuse_other_vocabulary(sources: Mapping[str, TokenSource], domains: Mapping[str, TokenSource]) -> None:
    trained = next(iter(sources.values())).manifest["tokenizer"]
    for name, domain in domains.items():
        found = domain.manifest["tokenizer"]
        if found["sha256"] != trained["sha256"]:
            raise ValueError(
                f"domain {name!r} was tokenized with {found['name']} ({found['n_words']} entries), the sources with "
                f"{trained['name']} ({trained['n_words']} entries); tokenize the domain with the sources' tokenizer"
            )


# --- the run folder ---

# What may differ between two calls for one run: it changes no number of the result.
_FREE_KEYS = ("dump_dir", "logging", "checkpoint")


def run_identity(args: TrainArgs, sources: Mapping[str, TokenSource], dp_size: int) -> dict[str, Any]:
    """Everything that decides the run's numbers: its config without paths and conveniences, and its data's hashes."""
    config = to_dict(args)
    for key in _FREE_KEYS:
        del config[key]
    # Any split of the batch over ranks and micro-batches is the same run.
    config["data"].pop("batch_size")
    config.pop("grad_acc_steps")
    config["tokens_per_step"] = tokens_per_step(args, dp_size)
    config["data"].pop("tokenizer")
    for key in ("preset", "tokens", "global_batch_tokens", "warmup_ratio", "device"):
        del config["synth"][key]
    for name, source in config["synth"]["sources"].items():
        source.pop("path"), source.pop("documents")
        source["shards"] = sources[name].fingerprint
    return config


def _differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted(set(ours) | set(theirs)):
            found += _differences(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if ours == theirs else [f"{prefix} {theirs!r} there, {ours!r} now"]


def _refuse_other_run(run_dir: Path, identity: dict[str, Any], theirs: dict[str, Any]) -> None:
    if different := _differences(identity, theirs):
        shown = "; ".join(different[:5]) + (f"; and {len(different) - 5} more" if len(different) > 5 else "")
        raise ValueError(f"{run_dir} holds another run ({shown}); use another dump_dir, or delete that folder")


def _finished_result(run_dir: Path, identity: dict[str, Any]) -> dict[str, Any]:
    _refuse_other_run(run_dir, identity, read_json(run_dir / "identity.json"))
    return read_json(run_dir / RESULT)


def _claim_folder(run_dir: Path, args: TrainArgs, identity: dict[str, Any], ranks: Ranks) -> None:
    """Write the config of a new run, or check that an unfinished one is the same."""
    path = run_dir / "identity.json"
    if path.is_file():
        _refuse_other_run(run_dir, identity, read_json(path))
    ranks.barrier()
    if ranks.is_main:
        dump_args(args, run_dir / CONFIG)
        write_json(path, identity)
    ranks.barrier()


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def _result_row(
    args: TrainArgs,
    ranks: Ranks,
    loader: MixtureLoader,
    sources: Mapping[str, TokenSource],
    counts: Any,
    sums: Mapping[str, DomainSums],
    elapsed: float,
    identity: dict[str, Any],
) -> dict[str, Any]:
    """One row of the runs table, as design.md lists its columns."""
    num_tokens = args.steps * tokens_per_step(args, ranks.size)
    accounting = loader.accounting(num_tokens // args.data.seq_len)
    ratios = {name: source.ratio for name, source in args.synth.sources.items()}
    row: dict[str, Any] = {
        "run_id": args.name,
        "mixture": args.synth.mixture or "+".join(f"{name}:{ratio}" for name, ratio in ratios.items()),
    }
    for name, ratio in ratios.items():
        row[f"ratio_{name}"] = float(parse_ratio(ratio))
    row |= {
        "size": args.synth.preset or f"{args.model.dim}x{args.model.n_layers}",
        "n_non_embedding": counts.non_embedding,
        "n_lingua": counts.lingua,
        "n_total": counts.total,
        "tokens": num_tokens,
    }
    for name, source in sources.items():
        row[f"tokens_{name}"] = int(accounting[name].tokens)
        row[f"unique_tokens_{name}"] = min(int(accounting[name].tokens), int(source.num_tokens))
        row[f"epochs_{name}"] = float(accounting[name].epochs)
    row["seed"] = args.seed
    if sums:
        row |= summarize(sums)
        row |= {f"loss_{name}": domain.loss for name, domain in sums.items()}
        row |= {f"bpb_{name}": domain.bits_per_byte for name, domain in sums.items()}
    row |= {
        "flops": num_tokens * flops_per_token(args.model, args.data.seq_len),
        "gpu_hours": ranks.size * elapsed / 3600 if ranks.device.type == "cuda" else 0.0,
        "wall_s": elapsed,
        "config_sha256": args_sha256(args),
    }
    return row
