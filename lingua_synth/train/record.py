"""What a run writes of itself: a line of metrics per interval, a line per evaluation, and its row of the runs table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import torch

from lingua_synth.evaluate import DomainSums, summarize
from lingua_synth.mixture import Course, Mixture, MixtureLoader
from lingua_synth.mixture.feedback import Feedback
from lingua_synth.mixture.plan import part_of
from lingua_synth.model.counts import FLOPS_FORMULA, count_parameters, flops_per_token, peak_flops
from lingua_synth.tokens import TokenSource
from lingua_synth.train.args import TrainArgs, schedule_name

MFU_FORMULA = f"speed/mfu = speed/wps x FLOPs per token / dense bf16 peak; FLOPs per token = {FLOPS_FORMULA}"
GIB = 2**30


@dataclasses.dataclass
class Interval:
    """What happened since the last line, summed over all ranks."""

    steps: int
    seconds: float
    data_s: float
    """Seconds this rank waited for batches."""
    nats: Any
    """fp64 [sources]: summed losses of the steps that were kept."""
    tokens: Any
    """fp64 [sources]: those that were scored, of conversations their answers', else all."""
    lr: float
    """Of the last step, as the next two."""
    grad_norm: float
    last_micro_loss: float


def metrics_line(
    args: TrainArgs, sources: Mapping[str, TokenSource], loader: MixtureLoader, step: int, size: int, seen: Interval
) -> dict[str, Any]:
    """One line of metrics.jsonl after `step` steps on `size` ranks: Lingua's keys, and ours beside them."""
    tokens_per_step = args.data.seq_len * args.data.batch_size * args.grad_acc_steps * size
    rate = seen.steps * tokens_per_step / seen.seconds / size
    flops = rate * flops_per_token(args.model, args.data.seq_len)
    record: dict[str, Any] = {
        "global_step": step,
        "acc_step": 0,
        "speed/wps": rate,
        "speed/FLOPS": flops,
        "speed/curr_iter_time": seen.seconds / seen.steps,
        "speed/data_load_time": seen.data_s / seen.steps,
        "optim/grad_norm": seen.grad_norm,
        "optim/lr": seen.lr,
        "optim/total_tokens": step * tokens_per_step,
        **_memory(),
        "loss/out": seen.last_micro_loss,
        "created_at": datetime.now(UTC).isoformat(),
    }
    if seen.tokens.sum():
        record["loss/mean"] = float(seen.nats.sum() / seen.tokens.sum())
    if (peak := _peak_flops()) is not None:
        record["speed/mfu"] = flops / peak
    accounting = loader.accounting(step * tokens_per_step // args.data.seq_len)
    for i, name in enumerate(sources):
        if seen.tokens[i]:
            record[f"loss/source/{name}"] = float(seen.nats[i] / seen.tokens[i])
        record[f"data/tokens/{name}"] = int(accounting[name].tokens)
        record[f"data/epochs/{name}"] = float(accounting[name].epochs)
    return record


def decision_record(feedback: Feedback) -> dict[str, float]:
    """What was decided at this step: the losses gone by (nats per token, rounded as the rule does; of a source not
    read in the interval, the last there was), and the exact number of sequences of each source in the next interval."""
    losses = {f"feedback/loss/{name}": float(loss) for name, loss in feedback.losses.items() if loss is not None}
    return losses | {f"feedback/next_sequences/{name}": count for name, count in feedback.sequences.items()}


def _memory() -> dict[str, float]:
    """Peaks of this rank's GPU since the last line, under Lingua's names; zeros where there is no GPU."""
    names = ("max_active_gib", "max_active_pct", "max_reserved_gib", "max_reserved_pct", "num_alloc_retries")
    values = dict.fromkeys((*names, "num_ooms", "power_draw"), 0.0)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        stats, whole = torch.cuda.memory_stats(), torch.cuda.get_device_properties().total_memory
        for kind in ("active", "reserved"):
            peak = stats[f"{kind}_bytes.all.peak"]
            values[f"max_{kind}_gib"], values[f"max_{kind}_pct"] = peak / GIB, 100 * peak / whole
        values["num_alloc_retries"], values["num_ooms"] = stats["num_alloc_retries"], stats["num_ooms"]
        try:
            values["power_draw"] = torch.cuda.power_draw()  # milliwatts
        except Exception:  # pynvml is not installed, or the driver does not say
            values["power_draw"] = 0.0
        torch.cuda.reset_peak_memory_stats()
    return {f"memory/{name}": value for name, value in values.items()}


def _peak_flops() -> float | None:
    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def validation_line(step: int, sums: Mapping[str, DomainSums]) -> dict[str, Any]:
    """One line of metrics.validation.jsonl: every domain's sums, loss and bits per byte."""
    record: dict[str, Any] = {"global_step": step}
    for name, domain in sums.items():
        averages = {"nll_per_token": domain.loss, "bits_per_byte": domain.bits_per_byte}
        record[name] = dataclasses.asdict(domain) | averages
    return record


def _feedback_in_words(args: TrainArgs) -> str:
    every = args.synth.feedback.every_tokens
    if every is None:
        return ""
    first = ", ".join(f"{name}: {source.ratio}" for name, source in args.synth.sources.items())
    return f"feedback every {every:,} tokens from {first}"


def mixture_schedule(mixture: Mixture, course: Course, num_sequences: int, seq_len: int) -> str:
    """How the shares went over a run, for the runs table: "constant", its stages, or, of a run that was resumed with
    another mixture or used a source up, what it followed and from which token on."""
    spans = course.until(num_sequences)
    if not mixture.is_constant or len(spans) == 1:
        return mixture.in_words()
    return "; ".join(f"from token {span.start * seq_len:,}: {span.in_words()}" for span in spans)


def tokenizer_name(args: TrainArgs, tokenizer: Mapping[str, Any]) -> str:
    """The vocabulary in the runs table: as the config names it, else its kind and entries, sp-4096."""
    return args.synth.tokenizer or f"{tokenizer['name']}-{tokenizer['n_words']}"


def text_bytes(source: TokenSource, num_tokens: int) -> int:
    """UTF-8 bytes of text behind so many of the source's tokens, at the bytes per token of all its shards: exact over
    whole passes; which windows a part of one holds moves it by chance."""
    return round(Fraction(num_tokens * int(source.manifest["bytes"]), int(source.manifest["tokens"]) or 1))


def result_row(
    args: TrainArgs,
    sources: Mapping[str, TokenSource],
    loader: MixtureLoader,
    sums: Mapping[str, DomainSums],
    *,
    num_tokens: int,
    num_gpus: int,
    elapsed_s: float,
    num_skipped: int,
    scored_tokens: Mapping[str, int] | None = None,
    identity_sha256: str,
) -> dict[str, Any]:
    """The run's row of the runs table; averages over domains are in it beside each domain's own. `scored_tokens`: of a
    run whose sources say which are, those that it learned from, by source."""
    counts = count_parameters(args.model)
    num_sequences = num_tokens // args.data.seq_len
    accounting = loader.accounting(num_sequences)
    mixture = loader.mixture
    listed = "+".join(f"{name}:{source.ratio}" for name, source in args.synth.sources.items())
    row: dict[str, Any] = {
        "run_id": args.name,
        "mixture": args.synth.mixture or (listed if mixture.is_constant else str(mixture)),
        "mixture_schedule": _feedback_in_words(args)
        or mixture_schedule(mixture, loader.schedule.course, num_sequences, args.data.seq_len),
    }
    # What was asked for over the whole run: the ratio itself where it is constant.
    asked = loader.schedule.course.target(num_sequences)
    row |= {f"ratio_{name}": float(share / num_sequences) for name, share in zip(mixture.names, asked, strict=True)}
    row |= {
        "size": args.synth.preset or f"{args.model.dim}x{args.model.n_layers}",
        "n_non_embedding": counts.non_embedding,
        "n_lingua": counts.lingua,
        "n_total": counts.total,
        "tokens": num_tokens,
    }
    vocabulary = next(iter(sources.values())).manifest["tokenizer"]
    row |= {"tokenizer": tokenizer_name(args, vocabulary), "tokenizer_sha256": vocabulary["sha256"]}
    read = {name: text_bytes(source, int(accounting[name].tokens)) for name, source in sources.items()}
    row |= {"training_bytes": sum(read.values())} | {f"training_bytes_{name}": count for name, count in read.items()}
    for name, source in sources.items():
        tokens = int(accounting[name].tokens)
        row[f"tokens_{name}"] = tokens
        is_whole = part_of(loader.part, name) is None
        held = source.num_tokens if is_whole else loader.num_windows[name] * args.data.seq_len
        row[f"unique_tokens_{name}"] = min(tokens, held)
        row[f"epochs_{name}"] = float(accounting[name].epochs)
    if scored_tokens:
        row["scored_tokens"] = sum(scored_tokens.values())
        row |= {f"scored_tokens_{name}": count for name, count in scored_tokens.items()}
    row |= {"seed": args.seed, "schedule": schedule_name(args)}
    if sums:
        row |= summarize(sums)
        row |= {f"loss_{name}": domain.loss for name, domain in sums.items()}
        row |= {f"bpb_{name}": domain.bits_per_byte for name, domain in sums.items()}
        row |= {f"eval_bytes_{name}": domain.bytes for name, domain in sums.items()}
    return row | {
        "flops": num_tokens * flops_per_token(args.model, args.data.seq_len),
        "gpu_hours": num_gpus * elapsed_s / 3600,
        "wall_s": elapsed_s,
        "skipped_steps": num_skipped,
        "config_sha256": identity_sha256,
    }
