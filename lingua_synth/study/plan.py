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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from lingua_synth.config import build_args, to_dict
from lingua_synth.files import read_json
from lingua_synth.mixture import plan_report
from lingua_synth.mixture.args import FeedbackArgs, SourceArgs, build_feedback, build_mixture, build_part
from lingua_synth.mixture.plan import MixturePlan, SourcePlan
from lingua_synth.mixture.pool import parse_tokens
from lingua_synth.mixture.ratios import parse_ratio
from lingua_synth.model.counts import flops_per_token
from lingua_synth.model.presets import preset
from lingua_synth.scaling.repetition import effective_tokens
from lingua_synth.study.args import GridArgs, StudyArgs
from lingua_synth.study.grid import Budget, Cell, plan_cells
from lingua_synth.study.ladder import branch_off, lay_ladder
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
from lingua_synth.tokens.shards import MANIFEST
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
        self.cells = plan_cells(study)
        if not study.out and not draft:
            raise ValueError("out is not set: give the folder for the study, e.g. out=runs/study")
        self.study = study
        self._manifests = {name: _manifest(name, source, draft) for name, source in study.sources.items()}
        self.available = {name: self._num_tokens(name) for name in study.sources}
        self._bases: dict[tuple[str, tuple[str, ...]], tuple[TrainArgs, int]] = {}
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

    def origin(self, name: str) -> str:
        """How the length of a source is known: from its shards, declared, or unknown."""
        if self._manifests[name] is not None:
            return "shards"
        return "unknown" if self.available[name] is None else "declared"

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
                    rungs.setdefault((cell.size, cell.seed, cell.part), []).append(cell)
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
        tokens = _whole_steps(cell.budget, _step_tokens(base, max(1, num_gpus)))
        sources = {}
        for source in cell.sources:
            shared, ratio = self.study.sources[source], str(cell.ratios.get(source, SourceArgs.ratio))
            part = str(cell.part) if source in cell.part_of else shared.part
            sources[source] = SourceArgs(shared.path, ratio, shared.max_epochs, part, shared.documents)
        if cell.stages and base.synth.stages:
            raise ValueError(
                f"mixture {cell.mixture!r} has stages, and so has the training config (train.synth.stages); keep one"
            )
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
                sources=sources,
                stages=dict(cell.stages) or base.synth.stages,
                feedback=base.synth.feedback if cell.feedback == FeedbackArgs() else cell.feedback,
            ),
        )

    def _base(self, cell: Cell) -> tuple[TrainArgs, int]:
        """(training config, GPUs) that the cell shares with others: the study's, the grid's, its overrides'."""
        key = (cell.grid, cell.overrides)
        if key not in self._bases:
            grid = self.study.grids.get(cell.grid, GridArgs())
            layers: list[tuple[str, Mapping[str, Any]]] = [("the study's train section", self.study.train)]
            layers.append((f"grids.{cell.grid}.train", grid.train))
            num_gpus = self.study.num_gpus
            for rule in cell.overrides:
                override = self.study.overrides[rule]
                layers.append((f"overrides.{rule}.train", override.train))
                num_gpus = num_gpus if override.num_gpus is None else override.num_gpus
            if num_gpus < 1:
                raise ValueError(f"overrides {', '.join(cell.overrides)} set num_gpus {num_gpus}; it is at least 1")
            args = build_args(TrainArgs, *layers)
            self._bases[key] = args, 0 if args.synth.device == "cpu" else num_gpus
        return self._bases[key]

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
        alike = (cell.grid, cell.overrides, cell.size, args.synth.tokens, repr(args.synth.feedback), *rates)
        resolved = self._resolve(_Hashed(alike, args), dp_size)
        num_sequences = resolved.steps * tokens_per_step(resolved, dp_size) // resolved.data.seq_len
        plan = self._feasible_plan(args, num_sequences, resolved.data.seq_len)
        per_token = flops_per_token(resolved.model, resolved.data.seq_len)
        own_tokens = (resolved.steps - first_step) * tokens_per_step(resolved, dp_size)
        speed = self.throughput(resolved.data.seq_len)
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
                    self._epochs(line.name, line.epochs),
                    str(line.ratio) if args.synth.stages else args.synth.sources[line.name].ratio,
                    self._unique(line, args),
                )
                for line in plan.sources
            ),
            resolved=resolved,
            memory=memory_fit(resolved, self.study.gpu, dp_size) if self.study.gpu and num_gpus else None,
        )

    def _uncached_resolve(self, key: _Hashed, dp_size: int) -> TrainArgs:
        try:
            return resolve_args(key.value, dp_size=dp_size, vocab_size=self.vocab_size(key.value.synth.preset or ""))
        except ValueError as error:
            raise ValueError(f"run {key.value.name}: {error}") from None

    # --- sources ---

    def _num_tokens(self, name: str) -> int | None:
        """What the source holds: its shards', else declared; None where it is not known."""
        manifest = self._manifests[name]
        if manifest is not None:
            return int(manifest["tokens"])
        declared = getattr(self.study.sources[name], "tokens", None)
        return None if declared is None else parse_tokens(str(declared))

    def _epochs(self, name: str, epochs: Fraction) -> float | None:
        return None if self.available[name] is None else float(epochs)

    def _unique(self, line: SourcePlan, args: TrainArgs) -> int | None:
        held = self.available[line.name]
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
        counted = {name: count if (count := self.available[name]) is not None else endless for name in synth.sources}
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

    def vocab_size(self, size: str) -> int:
        """Entries of the shards' tokenizer; before there are any, the study's, or the size's own."""
        for manifest in self._manifests.values():
            if manifest is not None:
                return int(manifest["tokenizer"]["n_words"])
        found = self.study.vocab_size or preset(size).vocab_size
        if found < 1:
            raise ValueError(
                f"size {size} takes its vocabulary from the shards, and there are none yet: set vocab_size"
            )
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


def _manifest(name: str, source: SourceArgs, draft: bool) -> dict[str, Any] | None:
    """The manifest of the source's shards; a draft does without those that are not there."""
    path = Path(source.path) / MANIFEST
    if draft and (not source.path or not path.is_file()):
        return None
    if not source.path:
        raise ValueError(f"source {name!r}: sources.{name}.path is not set: the folder of its token shards")
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"source {name!r}: {error}; make its shards with `lingua-synth tokenize`") from None
