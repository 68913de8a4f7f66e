"""A study on one screen before it is launched: runs, hours, memory, tokens, disk, and what its fits will tell.

`plan.csv` has one row a run, `plan.json` everything that the screen sums up.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lingua_synth.files import atomic_file, write_json
from lingua_synth.mixture.plan import table
from lingua_synth.mixture.pool import in_words
from lingua_synth.model.counts import GIB, count_parameters, flops_per_token, peak_flops
from lingua_synth.scaling.repetition import PUBLISHED_R_D
from lingua_synth.study.args import StudyArgs
from lingua_synth.study.conditioning import Conditioning, plan_conditioning
from lingua_synth.study.plan import PlannedRun, StudyPlanner
from lingua_synth.study.pricing import SPEED_RULE, Throughput, token_bytes
from lingua_synth.study.repetition import REPEATS
from lingua_synth.train.args import schedule_name

PLAN_CSV, PLAN_JSON = "plan.csv", "plan.json"
UNKNOWN_TIME = "hours not known (set calibrate, or measure: `lingua-synth study calibrate`)"
MOST_LISTED = 40
"""Runs that are listed one by one on the screen."""
MOST_UNEQUAL = 1.1
"""Steps or sequences of two tokenizers hold as much text, up to this factor; beyond it a note says how much."""


@dataclass(frozen=True)
class GridLine:
    """One grid of the study."""

    name: str
    num_runs: int
    num_shared: int
    """Of these, runs that an earlier grid has already."""
    num_mixtures: int
    tokens: int
    gpu_hours: float | None
    """Of the runs that no earlier grid has."""


@dataclass(frozen=True)
class SizeLine:
    """One size of the study."""

    size: str
    n_non_embedding: int
    num_runs: int
    num_gpus: int
    flops_per_token: int
    tokens_per_s: float | None
    """Per GPU."""
    mfu: float | None
    gpu_hours: float | None
    memory_bytes: int | None
    """Per GPU at the fullest moment."""
    fits: bool | None
    batch_size: int
    largest_batch_size: int | None


@dataclass(frozen=True)
class SourceLine:
    """One source of the study."""

    name: str
    available: int | None
    origin: str
    """shards, declared, or unknown."""
    most_tokens: int
    """Most that one run reads of it, repeats counted. Runs share shards: this is what has to be there."""
    most_by: str
    """That run."""
    epochs: float | None
    num_runs: int
    shard_bytes: int
    """Of as many tokens as there are, or are needed where that is not known."""
    tokenizer: str = ""
    """Under which of the study's tokenizers; empty where it declares none."""
    bytes_per_token: float | None = None
    """UTF-8 bytes of text."""


@dataclass(frozen=True)
class TokenizerLine:
    """One tokenizer of the study."""

    name: str
    num_runs: int
    vocab_size: int
    bytes_per_step: float | None
    """Text of an optimizer step, the mean over its runs; None where bytes per token are not known."""
    context_bytes: float | None
    """Text of a training sequence, which is also the context of the evaluation."""
    largest_deviation: float
    """Of what the study matches, from the first tokenizer's cells, relative, over its runs."""


@dataclass(frozen=True)
class ShareLine:
    """What one mixture reads of one source under one tokenizer, over all its runs."""

    mixture: str
    tokenizer: str
    source: str
    of_tokens: float
    """Share of the training tokens."""
    of_bytes: float | None
    """Share of the text; None where bytes per token are not known."""


@dataclass(frozen=True)
class LadderLine:
    """What branching off trunks saves."""

    num_runs: int
    num_trunks: int
    flops: int
    straight_flops: int
    """Of the same budgets as runs of their own."""
    gpu_hours: float | None

    @property
    def share(self) -> float:
        """FLOPs of the ladders over those of straight runs."""
        return self.flops / self.straight_flops


@dataclass(frozen=True)
class StudyPlan:
    """All that is known of a study before it runs; prints as a page."""

    runs: tuple[PlannedRun, ...]
    grids: tuple[GridLine, ...]
    sizes: tuple[SizeLine, ...]
    sources: tuple[SourceLine, ...]
    ladder: LadderLine | None
    conditioning: tuple[Conditioning, ...]
    checkpoint_bytes: int
    calibrate: str
    gpu: str
    gpu_hour_price: float
    warnings: tuple[str, ...]
    R_D: float = PUBLISHED_R_D
    """Assumed decay of repeated tokens, behind `effective_tokens`."""
    tokenizers: tuple[TokenizerLine, ...] = ()
    """Of a study that declares some, in its order."""
    shares: tuple[ShareLine, ...] = ()
    """Of its mixtures of several sources."""
    match: str = ""
    """What a cell has equal under every tokenizer; empty where the study declares none."""

    @property
    def gpu_hours(self) -> float | None:
        """Of all runs; None without a calibration."""
        return _total(run.gpu_hours for run in self.runs)

    @property
    def tokens(self) -> int:
        """Training tokens that are trained on; those of a trunk count once."""
        return sum(_own_tokens(run) for run in self.runs)

    @property
    def flops(self) -> int:
        """Of all runs."""
        return sum(run.flops for run in self.runs)

    @property
    def shard_bytes(self) -> int:
        """Of all sources' shards."""
        return sum(source.shard_bytes for source in self.sources)

    @property
    def hours_word(self) -> str:
        """Hours of GPUs, or of a study on CPUs."""
        return "GPU-hours" if any(run.num_gpus for run in self.runs) else "hours"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; runs as in plan.csv."""
        return {
            "version": 1,
            "num_runs": len(self.runs),
            "tokens": self.tokens,
            "flops": self.flops,
            "gpu_hours": self.gpu_hours,
            "calibrate": self.calibrate,
            "speed_rule": SPEED_RULE,
            "gpu": self.gpu,
            "price": self.gpu_hours * self.gpu_hour_price if self.gpu_hours and self.gpu_hour_price else None,
            "checkpoint_bytes": self.checkpoint_bytes,
            "shard_bytes": self.shard_bytes,
            "grids": [vars(line) for line in self.grids],
            "sizes": [vars(line) for line in self.sizes],
            "sources": [vars(line) for line in self.sources],
            "ladder": vars(self.ladder) | {"share": self.ladder.share} if self.ladder else None,
            "conditioning": [entry.to_dict() for entry in self.conditioning],
            "match": self.match or None,
            "tokenizers": [vars(line) for line in self.tokenizers],
            "shares": [vars(line) for line in self.shares],
            "warnings": list(self.warnings),
            "R_D": self.R_D,
            "runs": [run_row(run, self.R_D) for run in self.runs],
        }

    def __str__(self) -> str:
        hours = self.gpu_hours
        price = (
            f", {hours * self.gpu_hour_price:,.0f} at {self.gpu_hour_price:g} each"
            if hours and self.gpu_hour_price
            else ""
        )
        cost = f"{_hours(hours)} {self.hours_word}{price}" if hours is not None else UNKNOWN_TIME
        parts = [f"{len(self.runs):,} runs: {in_words(self.tokens)} tokens, {self.flops:.3g} FLOPs, {cost}"]
        if len(self.runs) <= MOST_LISTED:
            parts.append(self._run_table())
        parts += [self._grid_table(), self._size_table(), self._source_table()]
        if self.tokenizers:
            parts += [self._tokenizer_table(), *([self._share_table()] if self.shares else [])]
        parts.append(f"disk: checkpoints {_bytes(self.checkpoint_bytes)} at most, shards {_bytes(self.shard_bytes)}")
        if self.ladder is not None:
            one = self.ladder
            parts.append(
                f"ladders: {one.num_runs} runs from {one.num_trunks} trunks for {100 * one.share:.0f} % of the FLOPs "
                f"of straight runs ({one.flops:.3g} instead of {one.straight_flops:.3g})"
            )
        if self._repeating():
            parts.append(self._repeats_line())
        parts.append("what fits to these runs will tell:\n" + "\n".join(str(entry) for entry in self.conditioning))
        if self.calibrate:
            parts.append(f"speed: {self.calibrate} tokens/s per GPU; {SPEED_RULE}. Start-up and evaluation are extra.")
        parts += [f"note: {warning}" for warning in self.warnings]
        return "\n\n".join(parts)

    def _run_table(self) -> str:
        head = ["run", "tokens", "steps", "FLOPs", self.hours_word]
        rows = [
            [run.run_id, f"{run.tokens:,}", f"{run.steps:,}", f"{run.flops:.3g}", _hours(run.gpu_hours)]
            for run in self.runs
        ]
        if self._repeating():
            head += ["passes", "worth in new tokens"]
            for row, run in zip(rows, self.runs, strict=True):
                worth = run.effective_tokens(self.R_D)
                row += [_or("{:.3g}", run.passes), _or("{:,.0f}", worth)]
        if self.tokenizers:
            head += ["bytes of text", f"off in {self.match}"]
            for row, run in zip(rows, self.runs, strict=True):
                row += [_or("{:,}", run.training_bytes), f"{100 * (run.deviation or 0):+.3f} %"]
        return table(head, rows)

    def _repeating(self) -> list[PlannedRun]:
        """Runs that are known to read a token more than once."""
        return [run for run in self.runs if run.passes is not None and run.passes > REPEATS]

    def _repeats_line(self) -> str:
        shares = {run.run_id: (run.effective_tokens(self.R_D) or 0.0) / run.tokens for run in self._repeating()}
        least, most = min(shares, key=lambda r: shares[r]), max(shares, key=lambda r: shares[r])
        return (
            f"repeats: {len(shares):,} of {len(self.runs):,} runs read tokens again; with R_D {self.R_D:.4g} (assumed: "
            f"design.R_D) their tokens are worth {100 * shares[least]:.3g} % ({least}) to {100 * shares[most]:.3g} % "
            f"({most}) as many new ones"
        )

    def _grid_table(self) -> str:
        head = ("grid", "runs", "new", "mixtures", "tokens", self.hours_word)
        rows = [
            (
                line.name,
                f"{line.num_runs:,}",
                f"{line.num_runs - line.num_shared:,}",
                str(line.num_mixtures),
                in_words(line.tokens),
                _hours(line.gpu_hours),
            )
            for line in self.grids
        ]
        return table(head, rows)

    def _size_table(self) -> str:
        head = ("size", "N", "runs", "GPUs", "tokens/s", "MFU", self.hours_word, "GiB/GPU", "fits", "most sequences")
        rows = [
            (
                line.size,
                f"{line.n_non_embedding:,}",
                f"{line.num_runs:,}",
                str(line.num_gpus),
                _or("{:,.0f}", line.tokens_per_s),
                _or("{:.0%}", line.mfu),
                _hours(line.gpu_hours),
                _or("{:.1f}", line.memory_bytes and line.memory_bytes / GIB),
                "-" if line.fits is None else "yes" if line.fits else "no",
                _or("{}", line.largest_batch_size),
            )
            for line in self.sizes
        ]
        return table(head, rows)

    def _source_table(self) -> str:
        head = ("source", "holds", "", "bytes a token", "most by a run", "epochs", "runs", "run")
        rows = [
            (
                f"{line.name} ({line.tokenizer})" if line.tokenizer else line.name,
                "?" if line.available is None else in_words(line.available),
                line.origin,
                _or("{:.3f}", line.bytes_per_token),
                in_words(line.most_tokens),
                _or("{:.3f}", line.epochs),
                f"{line.num_runs:,}",
                line.most_by,
            )
            for line in self.sources
        ]
        return table(head, rows)

    def _tokenizer_table(self) -> str:
        head = ("tokenizer", "runs", "entries", "text a step", "text a sequence", f"most off in {self.match}")
        rows = [
            (
                line.name,
                f"{line.num_runs:,}",
                f"{line.vocab_size:,}",
                _or("{:,.0f} bytes", line.bytes_per_step),
                _or("{:,.0f} bytes", line.context_bytes),
                f"{100 * line.largest_deviation:+.3f} %",
            )
            for line in self.tokenizers
        ]
        return f"equal under every tokenizer: {self.match}\n" + table(head, rows)

    def _share_table(self) -> str:
        head = ("mixture", "tokenizer", "source", "of the tokens", "of the text")
        rows = [
            (
                line.mixture,
                line.tokenizer,
                line.source,
                f"{100 * line.of_tokens:.2f} %",
                _or("{:.2f} %", None if line.of_bytes is None else 100 * line.of_bytes),
            )
            for line in self.shares
        ]
        return table(head, rows)

    def write(self, folder: str | Path) -> tuple[Path, Path]:
        """Write plan.csv and plan.json into `folder`; returns their paths."""
        rows = [run_row(run, self.R_D) for run in self.runs]
        names = list(dict.fromkeys(name for row in rows for name in row))
        paths = Path(folder) / PLAN_CSV, Path(folder) / PLAN_JSON
        with atomic_file(paths[0]) as file:
            writer = csv.DictWriter(file, names, restval=0, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
        write_json(paths[1], self.to_dict())
        return paths


def _or(form: str, value: float | None) -> str:
    return "-" if value is None else form.format(value)


def _hours(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(count: int) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _total(hours: Iterable[float | None]) -> float | None:
    known = [hour for hour in hours if hour is not None]
    return math.fsum(known) if known else None


def _own_tokens(run: PlannedRun) -> int:
    assert run.resolved is not None, "planned runs are resolved"
    return run.flops // flops_per_token(run.resolved.model, run.resolved.data.seq_len)


def run_row(run: PlannedRun, R_D: float = PUBLISHED_R_D) -> dict[str, Any]:
    """One line of plan.csv; `effective_tokens` are the new tokens that its own are worth if repeats decay by `R_D`."""
    assert run.resolved is not None, "planned runs are resolved"
    row: dict[str, Any] = {
        "run_id": run.run_id,
        "grids": " ".join(run.grids),
        "mixture": run.args.synth.mixture,
        "size": run.args.synth.preset,
        "n_non_embedding": count_parameters(run.resolved.model).non_embedding,
        **({"tokenizer": run.tokenizer, "match_deviation": run.deviation} if run.tokenizer else {}),
        "tokens": run.tokens,
        "training_bytes": run.training_bytes,
        "steps": run.steps,
        "seed": run.args.seed,
        "schedule": schedule_name(run.resolved),
        "num_gpus": run.num_gpus,
        "flops": run.flops,
        "gpu_hours": run.gpu_hours,
        "memory_bytes": run.memory.estimate.total if run.memory else None,
        "fits_memory": run.memory.fits if run.memory else None,
        "checkpoint_bytes": run.disk_bytes,
        "after": " ".join(run.after),
    }
    for need in run.needs:
        row[f"ratio_{need.name}"] = need.ratio
    for need in run.needs:
        row[f"tokens_{need.name}"] = need.tokens
        row[f"unique_tokens_{need.name}"] = need.unique
        row[f"training_bytes_{need.name}"] = need.bytes
        row[f"epochs_{need.name}"] = need.epochs
    row["effective_tokens"] = run.effective_tokens(R_D)
    return row


def overview(study: StudyArgs, *, draft: bool = False) -> StudyPlan:
    """Plan the study and sum it up; `draft` and the errors are those of `plan_study`."""
    planner = StudyPlanner(study, draft)
    runs = planner.plan()
    seq_len = runs[0].resolved.data.seq_len if runs[0].resolved else 1
    throughput = planner.throughput(seq_len)
    sizes = _sizes(runs, throughput, study.gpu)
    return StudyPlan(
        runs=tuple(runs),
        grids=_grids(runs, list(study.grids) or ["study"]),
        sizes=sizes,
        sources=_sources(runs, planner, study),
        ladder=_ladder(runs),
        conditioning=_conditioning(runs, planner, throughput),
        checkpoint_bytes=sum(run.disk_bytes for run in runs),
        calibrate=planner.calibrate,
        gpu=study.gpu,
        gpu_hour_price=study.gpu_hour_price,
        warnings=tuple(_warnings(runs, sizes, planner, study)),
        R_D=study.design.R_D,
        tokenizers=_tokenizers(runs, planner),
        shares=_shares(runs),
        match=study.match if study.tokenizers else "",
    )


def _conditioning(
    runs: Sequence[PlannedRun], planner: StudyPlanner, throughput: Throughput | None
) -> tuple[Conditioning, ...]:
    """Of each tokenizer's runs by themselves: a law in tokens is of one tokenizer."""
    found: list[Conditioning] = []
    for tokenizer in planner.vocabularies:
        mine = [run for run in runs if run.tokenizer == tokenizer]
        for entry in plan_conditioning(mine, planner.study.design, throughput) if mine else []:
            named = tuple(f"{mixture} ({tokenizer})" if tokenizer else mixture for mixture in entry.mixtures)
            found.append(replace(entry, mixtures=named))
    return tuple(found)


def _tokenizers(runs: Sequence[PlannedRun], planner: StudyPlanner) -> tuple[TokenizerLine, ...]:
    lines = []
    for name in planner.study.tokenizers:
        mine = [run for run in runs if run.tokenizer == name]
        if not mine:
            continue
        read = [(run, run.training_bytes) for run in mine]
        is_known = all(count is not None for _, count in read)
        per_step = [(count or 0) / run.steps for run, count in read]
        per_sequence = [(count or 0) / run.tokens * run.args.data.seq_len for run, count in read]
        lines.append(
            TokenizerLine(
                name=name,
                num_runs=len(mine),
                vocab_size=planner.vocab_size(str(mine[0].args.synth.preset), name),
                bytes_per_step=math.fsum(per_step) / len(mine) if is_known else None,
                context_bytes=math.fsum(per_sequence) / len(mine) if is_known else None,
                largest_deviation=max((run.deviation or 0.0 for run in mine), key=abs),
            )
        )
    return tuple(lines)


def _shares(runs: Sequence[PlannedRun]) -> tuple[ShareLine, ...]:
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        if run.tokenizer and len(run.needs) > 1:
            groups.setdefault((run.args.synth.mixture, run.tokenizer), []).append(run)
    lines = []
    for (mixture, tokenizer), mine in groups.items():
        tokens, num_bytes = sum(run.tokens for run in mine), [run.training_bytes for run in mine]
        whole = sum(count or 0 for count in num_bytes)
        for source in dict.fromkeys(need.name for run in mine for need in run.needs):
            needs = [need for run in mine for need in run.needs if need.name == source]
            text = sum(need.bytes or 0 for need in needs) / whole if None not in num_bytes else None
            lines.append(ShareLine(mixture, tokenizer, source, sum(need.tokens for need in needs) / tokens, text))
    return tuple(lines)


def _grids(runs: Sequence[PlannedRun], names: Sequence[str]) -> tuple[GridLine, ...]:
    lines = []
    for name in names:
        mine = [run for run in runs if name in run.grids]
        new = [run for run in mine if run.grids[0] == name]
        if not mine:
            continue
        mixtures = {run.args.synth.mixture for run in mine}
        tokens, hours = sum(map(_own_tokens, new)), _total(run.gpu_hours for run in new)
        # A grid that brings nothing new costs nothing.
        hours = 0.0 if not new and mine[0].gpu_hours is not None else hours
        lines.append(GridLine(name, len(mine), len(mine) - len(new), len(mixtures), tokens, hours))
    return tuple(lines)


def _sizes(runs: Sequence[PlannedRun], throughput: Throughput | None, gpu: str) -> tuple[SizeLine, ...]:
    lines = []
    peak = peak_flops(gpu) if gpu else None
    keys = dict.fromkeys((str(run.args.synth.preset), run.num_gpus, run.tokenizer) for run in runs)
    for size, num_gpus, tokenizer in sorted(keys, key=lambda key: _count(runs, key[0])):
        mine = [
            run for run in runs if (run.args.synth.preset, run.num_gpus, run.tokenizer) == (size, num_gpus, tokenizer)
        ]
        # The run whose micro-batch is the largest stands for its size.
        widest = max(mine, key=lambda run: run.memory.estimate.total if run.memory else 0)
        assert widest.resolved is not None, "planned runs are resolved"
        per_token = flops_per_token(widest.resolved.model, widest.resolved.data.seq_len)
        speed = throughput.tokens_per_s(per_token) if throughput else None
        lines.append(
            SizeLine(
                size=f"{size} ({tokenizer})" if tokenizer else size,
                n_non_embedding=count_parameters(widest.resolved.model).non_embedding,
                num_runs=len(mine),
                num_gpus=num_gpus,
                flops_per_token=per_token,
                tokens_per_s=speed,
                mfu=speed * per_token / peak if speed and peak else None,
                gpu_hours=_total(run.gpu_hours for run in mine),
                memory_bytes=widest.memory.estimate.total if widest.memory else None,
                fits=widest.memory.fits if widest.memory else None,
                batch_size=widest.resolved.data.batch_size,
                largest_batch_size=widest.memory.largest_batch_size if widest.memory else None,
            )
        )
    return tuple(lines)


def _count(runs: Sequence[PlannedRun], size: str) -> int:
    run = next(run for run in runs if run.args.synth.preset == size)
    assert run.resolved is not None, "planned runs are resolved"
    return count_parameters(run.resolved.model).non_embedding


def _sources(runs: Sequence[PlannedRun], planner: StudyPlanner, study: StudyArgs) -> tuple[SourceLine, ...]:
    lines = []
    for tokenizer, vocabulary in planner.vocabularies.items():
        mine = [run for run in runs if run.tokenizer == tokenizer]
        for name in study.sources:
            needs = [(need, run.run_id) for run in mine for need in run.needs if need.name == name]
            if not needs:
                continue
            size = token_bytes(planner.vocab_size(str(mine[0].args.synth.preset), tokenizer))
            most, by = max(needs, key=lambda pair: pair[0].tokens)
            available, rate = vocabulary.available[name], vocabulary.rates[name]
            lines.append(
                SourceLine(
                    name=name,
                    available=available,
                    origin=vocabulary.origin(name),
                    most_tokens=most.tokens,
                    most_by=by,
                    epochs=most.epochs,
                    num_runs=len(needs),
                    shard_bytes=size * (most.tokens if available is None else available),
                    tokenizer=tokenizer,
                    bytes_per_token=None if rate is None else float(rate),
                )
            )
    return tuple(lines)


def _ladder(runs: Sequence[PlannedRun]) -> LadderLine | None:
    by_id = {run.run_id: run for run in runs}
    trunks = dict.fromkeys(name for run in runs for name in run.after)
    if not trunks:
        return None
    rungs = [run for run in runs if run.after or run.run_id in trunks]
    straight = 0
    for run in rungs:
        trunk = by_id[run.after[0]] if run.after else run
        # A branch has its trunk's FLOPs per token.
        straight += trunk.flops // trunk.tokens * run.tokens
    flops = sum(run.flops for run in rungs)
    return LadderLine(len(rungs), len(trunks), flops, straight, _total(run.gpu_hours for run in rungs))


def _warnings(
    runs: Sequence[PlannedRun], sizes: Sequence[SizeLine], planner: StudyPlanner, study: StudyArgs
) -> list[str]:
    found = []
    for line in sizes:
        if line.fits is False:
            advice = (
                f"data.batch_size={line.largest_batch_size} does"
                if line.largest_batch_size
                else "distributed.fsdp_type=full_shard divides the model"
            )
            found.append(
                f"{line.size} needs {(line.memory_bytes or 0) / GIB:.0f} GiB on each {study.gpu} with "
                f"{line.batch_size} sequences, which does not fit; {advice} (overrides.<name>.size=[{line.size}])"
            )
    vocabularies = list(planner.vocabularies.values())
    unknown = [name for name in planner.used(runs) if any(one.available[name] is None for one in vocabularies)]
    if unknown:
        found.append(
            f"how many tokens {', '.join(unknown)} hold{'s' * (len(unknown) == 1)} is not known: whether these runs "
            "are possible is not judged. Tokenize them, or declare sources.<name>.tokens"
        )
    if len(tokenizers := _tokenizers(runs, planner)) > 1:
        found += _tokenizer_warnings(tokenizers)
    schedules = dict.fromkeys(schedule_name(run.resolved) for run in runs if run.resolved)
    if len(schedules) > 1:
        found.append(
            f"runs of different schedules ({', '.join(schedules)}): their losses differ by more than their budgets; "
            f"fit them apart (`lingua-synth fit schedule={next(iter(schedules))}`)"
        )
    return found


def _tokenizer_warnings(lines: Sequence[TokenizerLine]) -> list[str]:
    """What differs between the tokenizers beside the vocabulary."""
    found = []
    for what, key, counts in (
        ("optimizer step", "synth.global_batch_tokens", [line.bytes_per_step for line in lines]),
        (
            "sequence, and so the context of training and evaluation,",
            "data.seq_len",
            [li.context_bytes for li in lines],
        ),
    ):
        known = [count for count in counts if count]
        if len(known) == len(lines) and max(known) > MOST_UNEQUAL * min(known):
            shown = ", ".join(f"{line.name}: {count:,.0f}" for line, count in zip(lines, known, strict=True))
            found.append(
                f"one {what} holds other amounts of text by tokenizer (bytes: {shown}), which is part of what is "
                f"compared; tokenizers.NAME.train.{key} evens it out"
            )
    return found
