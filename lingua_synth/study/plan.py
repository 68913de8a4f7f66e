"""From a study to its list of runs, each with what it needs and costs.

    StudyArgs -> cells (grid.py) -> one `TrainArgs` a cell, resolved -> tokens per source, FLOPs, hours, memory, disk

A run's name is made of its coordinates, so the same YAML always gives the same runs in the same folders. Planning reads
manifests, never tokens, and refuses a study of which one run needs more unique tokens than its sources hold. A draft
may be planned before there are shards: sources then hold what the YAML declares, or what is not known.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from lingua_synth.config import build_args, to_dict
from lingua_synth.mixture import plan_report
from lingua_synth.mixture.args import FeedbackArgs, SourceArgs, build_feedback, build_mixture, build_part
from lingua_synth.mixture.plan import MixturePlan, SourcePlan
from lingua_synth.mixture.ratios import parse_ratio
from lingua_synth.model.counts import flops_per_token
from lingua_synth.model.presets import preset
from lingua_synth.scaling.repetition import effective_tokens
from lingua_synth.study.args import GridArgs, StudyArgs
from lingua_synth.study.grid import Budget, Cell, overrides_of, plan_cells
from lingua_synth.study.ladder import branch_off, lay_ladder
from lingua_synth.study.matching import MATCHES, SHARES, in_decimals, match_budget, share_of_tokens
from lingua_synth.study.pricing import (
    MemoryFit,
    Throughput,
    build_throughput,
    checkpoint_bytes,
    gpu_memory,
    memory_fit,
    num_checkpoints,
    parse_calibration,
    read_calibration,
)
from lingua_synth.study.vocabularies import (
    Vocabulary,
    domain_paths,
    read_vocabularies,
    refuse_other_domains,
    refuse_shared_settings,
    refuse_tokenizer_names,
)
from lingua_synth.train.args import TrainArgs, resolve_args, tokens_per_step
from lingua_synth.train.folder import RESULT
from lingua_synth.train.free_keys import without_free_keys


@dataclass(frozen=True)
class SourceNeed:
    """What a run reads of a source."""

    name: str
    tokens: int
    """Training tokens from it, repeats counted."""
    epochs: float | None
    """Passes over it; None where its length is not known."""
    ratio: str = ""
    """Exact share of the run's tokens; where shares change over training, their mean."""
    unique: int | None = None
    """Of the tokens, those that are different ones, as the runs table will have them; None where it is not known."""
    bytes: int | None = None
    """UTF-8 bytes of text behind these tokens; None where the source's bytes per token are not known."""


@dataclass(frozen=True)
class PlannedRun:
    """One cell of the grid."""

    args: TrainArgs
    flops: int
    """Training FLOPs that this run does itself, by `model.counts.flops_per_token`; a branch's are those of its
    decay."""
    gpu_hours: float | None = None
    """Expected hours summed over its GPUs (on a CPU, of its one process); None where no throughput was calibrated."""
    num_gpus: int = 0
    """GPUs (ranks) it trains on; 0 is one process on the CPU."""
    after: tuple[str, ...] = ()
    """Run ids of this study that must be finished before it starts."""
    grids: tuple[str, ...] = ()
    """Names of the grids that hold it."""
    budget: str = ""
    """The budget as it stands in its name, 50B."""
    needs: tuple[SourceNeed, ...] = ()
    """What it reads, by source."""
    resolved: TrainArgs | None = field(default=None, repr=False, compare=False)
    """`args` with presets, budget and warm-up written out."""
    memory: MemoryFit | None = field(default=None, repr=False)
    """Its memory on the study's GPU; None where no GPU is named, or the loss is one whose memory is not known."""
    tokenizer: str = ""
    """Its tokenizer in the study; empty where the study declares none."""
    deviation: float | None = None
    """How far what the study matches (bytes of text, tokens, FLOPs) is from that of its cell under the first tokenizer,
    relative; None where the study declares none."""

    @property
    def run_id(self) -> str:
        """Its name, unique within the study."""
        return self.args.name

    @property
    def passes(self) -> float | None:
        """Most passes over one of its sources; None where the length of one is not known."""
        epochs = [need.epochs for need in self.needs]
        return None if None in epochs else max((one for one in epochs if one is not None), default=0.0)

    def effective_tokens(self, R_D: float) -> float | None:
        """New tokens that teach as much as its tokens, if repeats decay by R_D: the sum over its sources. None where
        the length of one is not known."""
        worth = 0.0
        for need in self.needs:
            if need.unique is None:
                return None
            # Tokens at the ends of a source are in no window: up to one pass is read once.
            repeats = need.epochs is not None and need.epochs > 1
            worth += float(effective_tokens(need.tokens, need.unique, R_D)) if repeats else need.tokens
        return worth

    @property
    def is_finished(self) -> bool:
        """Whether its folder holds a result."""
        return (Path(self.args.dump_dir) / RESULT).is_file()

    @property
    def tokens(self) -> int:
        """D: the training tokens behind its last step, a trunk's included."""
        return self.args.synth.tokens or 0

    @property
    def steps(self) -> int:
        """Optimizer steps behind its last step, a trunk's included."""
        return self.resolved.steps if self.resolved else 0

    @property
    def training_bytes(self) -> int | None:
        """UTF-8 bytes of text behind its training tokens; None where they are not known."""
        counts = [need.bytes for need in self.needs]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def disk_bytes(self) -> int:
        """Most that its checkpoints take at once."""
        return num_checkpoints(self.resolved) * checkpoint_bytes(self.resolved.model) if self.resolved else 0


def plan_study(study: StudyArgs, *, draft: bool = False) -> list[PlannedRun]:
    """Every run of the study, cheapest first within its mixture, grids and mixtures in the order of the YAML.

    A cell of two grids is one run. With `draft` the shards and `out` may be missing: sources hold the tokens that the
    YAML declares, or are not judged where it does not.

    Raises ValueError for an empty axis, an unknown size or source, ratios that do not sum to 1, an integer budget that
    is no whole number of steps, a rule that holds for no cell, one name for two different runs, and sources too small
    for a run (with the numbers, and how many runs ask too much).
    """
    return StudyPlanner(study, draft).plan()


class StudyPlanner:
    """Plans one study; what its runs share is computed once."""

    def __init__(self, study: StudyArgs, draft: bool = False) -> None:
        """Read the manifests. ValueError as `plan_study` raises it."""
        if study.num_gpus < 1:
            raise ValueError(
                f"num_gpus is what a run trains on, at least 1; got {study.num_gpus}. CPU: synth.device cpu"
            )
        if study.gpu:
            gpu_memory(study.gpu)
        for name, source in study.sources.items():
            if source.ratio != SourceArgs.ratio:
                raise ValueError(f"sources.{name}.ratio {source.ratio}: shares are given by mixtures; leave it out")
        if study.match not in MATCHES or study.match_shares not in SHARES:
            raise ValueError(
                f"match is {', '.join(MATCHES[:-1])} or {MATCHES[-1]}, and match_shares {' or '.join(SHARES)}; got "
                f"{study.match!r} and {study.match_shares!r}"
            )
        refuse_tokenizer_names(study)
        self.cells = plan_cells(study)
        if not study.out and not draft:
            raise ValueError("out is not set: give the folder for the study, e.g. out=runs/study")
        self.study = study
        self.vocabularies = read_vocabularies(study, draft)
        self.reference = next(iter(self.vocabularies))
        self._bases: dict[tuple[str, tuple[str, ...], str], tuple[TrainArgs, int]] = {}
        self._deviations: dict[str, float] = {}
        self.calibrate = study.calibrate or read_calibration(study.out)
        self._speeds = parse_calibration(self.calibrate) if self.calibrate else {}
        self._infeasible: dict[str, tuple[float, str]] = {}
        self._plan_report = functools.lru_cache(maxsize=None)(self._uncached_plan_report)
        self._resolve = functools.lru_cache(maxsize=None)(self._uncached_resolve)

    def plan(self) -> list[PlannedRun]:
        """See `plan_study`."""
        runs: dict[str, PlannedRun] = {}
        for run in self._runs(self.cells):
            there = runs.get(run.run_id)
            if there is None:
                runs[run.run_id] = run
            elif (there.args, there.num_gpus) == (run.args, run.num_gpus):
                runs[run.run_id] = dataclasses.replace(there, grids=there.grids + run.grids)
            else:
                raise ValueError(
                    f"grids {', '.join(there.grids)} and {run.grids[0]} both make a run {run.run_id}, with different "
                    f"settings; give one of them a suffix, e.g. grids.{run.grids[0]}.suffix=-other"
                )
        self._refuse_infeasible(len(runs))
        return list(runs.values())

    def used(self, runs: Iterable[PlannedRun]) -> list[str]:
        """Sources that some run draws from, in the study's order."""
        names = {need.name for run in runs for need in run.needs}
        return [name for name in self.study.sources if name in names]

    def _vocabulary_of(self, args: TrainArgs) -> Vocabulary:
        return self.vocabularies[args.synth.tokenizer if self.study.tokenizers else ""]

    def _runs(self, cells: list[Cell]) -> list[PlannedRun]:
        """The runs of all cells; those of one grid and mixture cheapest first."""
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells:
            groups.setdefault((cell.grid, cell.mixture), []).append(cell)
        found: list[PlannedRun] = []
        for members in groups.values():
            straight = [self._plan_cell(cell) for cell in members if not cell.is_ladder]
            rungs: dict[tuple[Any, ...], list[Cell]] = {}
            for cell in members:
                if cell.is_ladder:
                    rungs.setdefault((cell.size, cell.seed, cell.part, cell.tokenizer), []).append(cell)
            laddered = [run for ladder in rungs.values() for run in self._plan_ladder(ladder)]
            found += sorted([*straight, *laddered], key=lambda run: run.flops)
        return found

    # --- one run ---

    def _plan_cell(self, cell: Cell) -> PlannedRun:
        return self._planned(cell, self._cell_args(cell))

    def _plan_ladder(self, cells: list[Cell]) -> list[PlannedRun]:
        """The trunk, which is the largest budget, and a branch for each other one."""
        cells = sorted(cells, key=lambda cell: cell.budget.tokens)
        given = [self._cell_args(cell) for cell in cells]
        per_step = [_step_tokens(args, max(1, self._num_gpus(cell))) for cell, args in zip(cells, given, strict=True)]
        bases = [without_free_keys(to_dict(self._base(cell)[0])) for cell in cells]
        if any(base != bases[0] for base in bases) or len(set(per_step)) > 1:
            rules = ", ".join(dict.fromkeys(rule for cell in cells for rule in cell.overrides))
            raise ValueError(
                f"run {cells[-1].run_id}: the budgets of a ladder share one training, and overrides ({rules}) make "
                "them differ; drop their budget lists, or leave those budgets out of the ladder"
            )
        steps = [(args.synth.tokens or 0) // size for args, size in zip(given, per_step, strict=True)]
        ladder = lay_ladder(given, steps)
        runs = [self._planned(cells[-1], ladder[-1])]
        for cell, args in zip(cells[:-1], ladder[:-1], strict=True):
            branched, first = branch_off(args, ladder[-1], steps[cells.index(cell)])
            _refuse_other_history(branched, ladder[-1], first * per_step[0])
            runs.append(self._planned(cell, branched, after=ladder[-1].name, first_step=first))
        return runs

    def _cell_args(self, cell: Cell) -> TrainArgs:
        base, num_gpus = self._base(cell)
        if cell.stages and base.synth.stages:
            raise ValueError(
                f"mixture {cell.mixture!r} has stages, and so has the training config (train.synth.stages); keep one"
            )
        if cell.tokenizer != self.reference:
            return self._matched(cell, base)
        tokens = _whole_steps(cell.budget, _step_tokens(base, max(1, num_gpus)))
        args = self._with_text(cell, base, tokens, cell.ratios)
        if cell.tokenizer:
            self._deviations[args.name] = 0.0
        return args

    def _with_text(self, cell: Cell, base: TrainArgs, tokens: int, ratios: Mapping[str, str]) -> TrainArgs:
        """The cell's training config, reading so many tokens in these ratios."""
        vocabulary = self.vocabularies[cell.tokenizer]
        sources = {}
        for source in cell.sources:
            shared, ratio = self.study.sources[source], str(ratios.get(source, SourceArgs.ratio))
            part = str(cell.part) if source in cell.part_of else shared.part
            path = vocabulary.paths[source]
            sources[source] = SourceArgs(path, ratio, shared.max_epochs, part, shared.documents)
        name = cell.run_id
        return dataclasses.replace(
            base,
            name=name,
            dump_dir=str(Path(self.study.out) / "runs" / name),
            seed=cell.seed,
            data=dataclasses.replace(base.data, seed=cell.seed),
            synth=dataclasses.replace(
                base.synth,
                preset=cell.size,
                tokens=tokens,
                mixture=cell.mixture,
                tokenizer=cell.tokenizer or base.synth.tokenizer,
                sources=sources,
                stages=dict(cell.stages) or base.synth.stages,
                feedback=base.synth.feedback if cell.feedback == FeedbackArgs() else cell.feedback,
            ),
        )

    def _matched(self, cell: Cell, base: TrainArgs) -> TrainArgs:
        """The cell under another tokenizer than the first, with what the study matches equal (`matching.py`)."""
        first = dataclasses.replace(cell, tokenizer=self.reference)
        first = dataclasses.replace(first, overrides=overrides_of(self.study, first))
        reference = self._cell_args(first)
        _refuse_unmatched_changes(self.study, reference)
        ratios: Mapping[str, str] = cell.ratios
        if self.study.match_shares == "bytes":
            asked = {source: parse_ratio(ratio) for source, ratio in cell.ratios.items()}
            rates = [
                {source: self.vocabularies[tokenizer].rate(source) for source in asked}
                for tokenizer in (self.reference, cell.tokenizer)
            ]
            shares = share_of_tokens(asked, *rates)
            ratios = {source: in_decimals(share) for source, share in shares.items()}
        step = _step_tokens(base, max(1, self._num_gpus(cell)))
        args = self._with_text(cell, base, step, ratios)
        asked_amount = self._amount(reference)(reference.synth.tokens or 0)
        budget = match_budget(asked_amount, self._amount(args), step)
        self._deviations[args.name] = budget.deviation
        return dataclasses.replace(args, synth=dataclasses.replace(args.synth, tokens=budget.tokens))

    def _amount(self, args: TrainArgs) -> Callable[[int], Fraction]:
        """What the study matches, by training tokens of this config: bytes of text, tokens or FLOPs."""
        synth, seq_len = args.synth, args.data.seq_len
        if self.study.match == "tokens":
            return Fraction
        if self.study.match == "flops":
            # Of so long a run that no warm-up is too long for it: the model is what is asked for.
            endless = dataclasses.replace(
                args, steps=10**12, synth=dataclasses.replace(synth, tokens=None, match_repetition=None, keep_steps=[])
            )
            vocab_size = self.vocab_size(synth.preset or "", synth.tokenizer)
            model = resolve_args(endless, dp_size=1, vocab_size=vocab_size).model
            per_token = flops_per_token(model, seq_len)
            return lambda tokens: Fraction(tokens * per_token)
        vocabulary = self._vocabulary_of(args)
        rates = {source: vocabulary.rate(source) for source in synth.sources}
        mixture = build_mixture(synth.sources, synth.stages, synth.on_exhaustion)
        if mixture.is_constant:
            per_token_bytes = sum((mixture.ratios[source] * rates[source] for source in rates), Fraction(0))
            return lambda tokens: tokens * per_token_bytes

        def read(tokens: int) -> Fraction:
            asked = mixture.course(tokens // seq_len, seq_len).target(tokens // seq_len)
            shares = zip(mixture.names, asked, strict=True)
            return sum((seq_len * count * rates[source] for source, count in shares), Fraction(0))

        return read

    def _base(self, cell: Cell) -> tuple[TrainArgs, int]:
        """(training config, GPUs) that the cell shares with others: the study's, the grid's, its overrides'."""
        key = (cell.grid, cell.overrides, cell.tokenizer)
        if key not in self._bases:
            grid = self.study.grids.get(cell.grid, GridArgs())
            layers: list[tuple[str, Mapping[str, Any]]] = [("the study's train section", self.study.train)]
            own = self.study.tokenizers[cell.tokenizer].train if cell.tokenizer else {}
            layers += [(f"tokenizers.{cell.tokenizer}.train", own), (f"grids.{cell.grid}.train", grid.train)]
            num_gpus = self.study.num_gpus
            for rule in cell.overrides:
                override = self.study.overrides[rule]
                layers.append((f"overrides.{rule}.train", override.train))
                num_gpus = num_gpus if override.num_gpus is None else override.num_gpus
            if num_gpus < 1:
                raise ValueError(f"overrides {', '.join(cell.overrides)} set num_gpus {num_gpus}; it is at least 1")
            args = build_args(TrainArgs, *layers)
            if cell.tokenizer:
                args = self._of_tokenizer(args, cell.tokenizer)
            self._bases[key] = args, 0 if args.synth.device == "cpu" else num_gpus
        return self._bases[key]

    def _of_tokenizer(self, args: TrainArgs, name: str) -> TrainArgs:
        """The config with the tokenizer's shards of the domains. ValueError where its numbers would mean another text
        under each tokenizer."""
        evaluation = args.synth.evaluation
        if len(self.vocabularies) > 1:
            refuse_shared_settings(args, name, self.study.tokenizers[name].train)
            refuse_other_domains(self.study, evaluation.domains)
        placed = dataclasses.replace(evaluation, domains=domain_paths(self.study, name, evaluation.domains))
        return dataclasses.replace(args, synth=dataclasses.replace(args.synth, evaluation=placed))

    def _num_gpus(self, cell: Cell) -> int:
        return self._base(cell)[1]

    def _planned(self, cell: Cell, args: TrainArgs, *, after: str = "", first_step: int = 0) -> PlannedRun:
        num_gpus = self._num_gpus(cell)
        dp_size = max(1, num_gpus)
        if args.synth.match_repetition is not None and cell.is_ladder:
            raise ValueError(
                f"run {args.name}: with synth.match_repetition every budget reads another part of the sources, and the "
                "budgets of a ladder share their data; plan them without a ladder"
            )
        rates = (args.optim.warmup, tuple(args.synth.keep_steps), bool(after))
        alike = (
            cell.grid, cell.overrides, cell.size, cell.tokenizer, args.synth.tokens, repr(args.synth.feedback), *rates
        )  # fmt: skip
        resolved = self._resolve(_Hashed(alike, args), dp_size)
        num_sequences = resolved.steps * tokens_per_step(resolved, dp_size) // resolved.data.seq_len
        plan = self._feasible_plan(args, num_sequences, resolved.data.seq_len)
        per_token = flops_per_token(resolved.model, resolved.data.seq_len)
        own_tokens = (resolved.steps - first_step) * tokens_per_step(resolved, dp_size)
        speed = self.throughput(resolved.data.seq_len)
        vocabulary = self._vocabulary_of(args)
        return PlannedRun(
            args,
            own_tokens * per_token,
            gpu_hours=speed.gpu_hours(own_tokens, per_token) if speed else None,
            num_gpus=num_gpus,
            after=(after,) if after else (),
            grids=(cell.grid,),
            budget=cell.budget.label,
            needs=tuple(
                SourceNeed(
                    line.name,
                    line.planned_tokens,
                    None if vocabulary.available[line.name] is None else float(line.epochs),
                    str(line.ratio) if args.synth.stages else args.synth.sources[line.name].ratio,
                    self._unique(line, args),
                    vocabulary.num_bytes(line.name, line.planned_tokens),
                )
                for line in plan.sources
            ),
            resolved=resolved,
            memory=memory_fit(resolved, self.study.gpu, dp_size) if self.study.gpu and num_gpus else None,
            tokenizer=cell.tokenizer,
            deviation=self._deviations.get(args.name),
        )

    def _uncached_resolve(self, key: _Hashed, dp_size: int) -> TrainArgs:
        try:
            vocab_size = self.vocab_size(key.value.synth.preset or "", key.value.synth.tokenizer)
            return resolve_args(key.value, dp_size=dp_size, vocab_size=vocab_size)
        except ValueError as error:
            raise ValueError(f"run {key.value.name}: {error}") from None

    # --- sources ---

    def _unique(self, line: SourcePlan, args: TrainArgs) -> int | None:
        held = self._vocabulary_of(args).available[line.name]
        if held is None:
            return None
        is_part = args.synth.match_repetition is not None or parse_ratio(args.synth.sources[line.name].part) != 1
        return min(line.planned_tokens, line.available_tokens if is_part else held)

    def _feasible_plan(self, args: TrainArgs, num_sequences: int, seq_len: int) -> MixturePlan:
        synth = args.synth
        asked = tuple((name, source.ratio, source.max_epochs, source.part) for name, source in synth.sources.items())
        try:
            rules = (
                repr(synth.stages),
                repr(synth.feedback),
                synth.on_exhaustion,
                synth.schedule,
                synth.match_repetition,
                synth.tokenizer,
            )
            plan, problem = self._plan_report(_Hashed((*asked, *rules), synth), num_sequences, seq_len)
        except ValueError as error:
            raise ValueError(f"run {args.name}: {error}") from None
        if problem:
            over = max(line.planned_sequences / (line.limit_sequences or 1) for line in plan.sources)
            self._infeasible[args.name] = over, problem
        return plan

    def _uncached_plan_report(self, key: _Hashed, num_sequences: int, seq_len: int) -> tuple[MixturePlan, str]:
        synth = key.value
        mixture = build_mixture(synth.sources, synth.stages, synth.on_exhaustion)
        if synth.feedback != FeedbackArgs():
            build_feedback(synth.feedback, mixture.ratios, seq_len, synth.on_exhaustion)
        # A source of unknown length is taken to be as long as the whole run and one window more, which suffices.
        # Of a run that reads a part of its sources, as long as the run it stands for.
        full = synth.match_repetition or 0
        endless = max((num_sequences + 1) * seq_len, full + seq_len) + 1
        part = build_part(synth.sources, Fraction(num_sequences * seq_len, full) if full else None)
        endless = math.ceil(endless / min(parse_ratio(source.part) for source in synth.sources.values()))
        available = self.vocabularies[synth.tokenizer if self.study.tokenizers else ""].available
        counted = {name: count if (count := available[name]) is not None else endless for name in synth.sources}
        plan = plan_report(counted, mixture, num_sequences, seq_len, schedule=synth.schedule, validate=False, part=part)
        try:
            plan.validate()
        except ValueError as error:
            return plan, str(error)
        return plan, ""

    def _refuse_infeasible(self, num_runs: int) -> None:
        """ValueError if sources are too small for a run: the run that asks most, and how many others do."""
        if not self._infeasible:
            return
        worst = max(self._infeasible, key=lambda name: self._infeasible[name][0])
        message = f"run {worst}: {self._infeasible[worst][1]}"
        if more := len(self._infeasible) - 1:
            names = [name for name in self._infeasible if name != worst]
            shown = ", ".join(names[:5]) + (f", and {more - 5} more" if more > 5 else "")
            message += f"\n{more} of the study's {num_runs} runs ask too much as well: {shown}"
        raise ValueError(
            message + "\nOr leave such cells out: exclude.<name>.mixture=[...] exclude.<name>.budget=[...]"
        )

    # --- sizes and speeds ---

    def vocab_size(self, size: str, tokenizer: str = "") -> int:
        """Entries of the shards' tokenizer (of the study's first, unless one is named); before there are any, the
        study's, or the size's own."""
        vocabulary = self.vocabularies.get(tokenizer, self.vocabularies[self.reference])
        found = vocabulary.num_entries or preset(size).vocab_size
        if found < 1:
            where = f"tokenizers.{vocabulary.name}.vocab_size" if vocabulary.name else "vocab_size"
            raise ValueError(f"size {size} takes its vocabulary from the shards, and there are none yet: set {where}")
        return found

    @functools.lru_cache(maxsize=8)  # noqa: B019 - lives as long as one planning
    def throughput(self, seq_len: int) -> Throughput | None:
        """The calibrated speeds at `seq_len`; None without any."""
        if not self._speeds:
            return None
        per_token = {}
        for size in self._speeds:
            model = preset(size)
            vocab = model.vocab_size if model.vocab_size > 0 else self.vocab_size(size)
            per_token[size] = flops_per_token(dataclasses.replace(model, vocab_size=vocab), seq_len)
        return build_throughput(self._speeds, per_token)


class _Hashed:
    """A value that a cache finds again by another one, which stands for it."""

    def __init__(self, key: tuple[Any, ...], value: Any) -> None:
        self.key, self.value = key, value

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.key == other.key


def _refuse_other_history(branch: TrainArgs, trunk: TrainArgs, num_tokens: int) -> None:
    """ValueError unless both read the same ratios over their first `num_tokens` tokens."""
    seq_len = branch.data.seq_len
    histories = [
        build_mixture(args.synth.sources, args.synth.stages, args.synth.on_exhaustion)
        .course((args.synth.tokens or 0) // seq_len, seq_len)
        .history(num_tokens // seq_len)
        for args in (branch, trunk)
    ]
    if histories[0] != histories[1]:
        raise ValueError(
            f"run {branch.name}: stages that end at a share of the run differ by budget, and up to the {num_tokens:,} "
            f"tokens at which it leaves {trunk.name} the two would read other shares; use until_tokens for stages "
            "that end before the decay, or train this mixture without a ladder"
        )


def _step_tokens(args: TrainArgs, dp_size: int) -> int:
    return args.synth.global_batch_tokens or tokens_per_step(args, dp_size)


def _whole_steps(budget: Budget, step_tokens: int) -> int:
    """The budget in tokens: as it is where it was given exactly, else of the nearest whole number of steps."""
    if budget.is_exact or step_tokens < 1:
        return budget.tokens
    return max(1, round(Fraction(budget.tokens, step_tokens))) * step_tokens


def _refuse_unmatched_changes(study: StudyArgs, args: TrainArgs) -> None:
    """ValueError for shares that change over training in a way that cannot be matched between tokenizers."""
    synth = args.synth
    is_steered = synth.feedback.every_tokens is not None
    if (synth.stages or is_steered) and study.match_shares == "bytes":
        raise ValueError(
            f"run {args.name}: shares that change over training are not matched as shares of the text; set "
            "match_shares=tokens, and they are the same shares of the tokens under every tokenizer"
        )
    if is_steered and study.match == "bytes":
        raise ValueError(
            f"run {args.name}: with feedback nobody knows before the run how much text it reads; set match=tokens or "
            "flops"
        )
    if study.match != "tokens" and any(stage.until_tokens is not None for stage in synth.stages.values()):
        raise ValueError(
            f"run {args.name}: until_tokens counts tokens of one tokenizer; end the stage at a share of the run, "
            "until=9/10"
        )
