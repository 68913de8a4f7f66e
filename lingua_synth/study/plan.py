"""From a study's YAML to its list of runs.

A study is a grid: sizes x budgets x mixtures x seeds. Each cell is one `TrainArgs` with a name made of its
coordinates, so the
same YAML always gives the same runs in the same folders. Planning reads manifests, never tokens, and refuses a study
of which one run needs more unique tokens than its sources hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.config import build_args, to_dict
from lingua_synth.files import read_json
from lingua_synth.mixture import plan_report
from lingua_synth.mixture.args import SourceArgs, build_mixture
from lingua_synth.model.counts import flops_per_token
from lingua_synth.study.launch_args import LaunchArgs
from lingua_synth.tokens.shards import MANIFEST
from lingua_synth.train.args import TrainArgs, resolve_args, tokens_per_step
from lingua_synth.train.folder import RESULT


@dataclass
class MixtureArgs:
    """One mixture of the study."""

    ratios: dict[str, str] = field(default_factory=dict)
    """Source name to its exact share of the training tokens, e.g. "2/3"; they sum to 1."""


@dataclass
class StudyArgs:
    """A grid of trainings: every size with every budget, mixture and seed."""

    out: str = ""
    """Folder of the study: runs/<run_id>/ and runs.csv."""
    sizes: list[str] = field(default_factory=list)
    """Presets, by name."""
    budgets: list[int] = field(default_factory=list)
    """Training budgets D in tokens."""
    mixtures: dict[str, MixtureArgs] = field(default_factory=dict)
    """Mixtures by name."""
    sources: dict[str, SourceArgs] = field(default_factory=dict)
    """Sources the mixtures draw from; `ratio` is left to the mixtures."""
    seeds: list[int] = field(default_factory=lambda: [42])
    """Seeds of initialization and data order."""
    train: dict[str, Any] = field(default_factory=dict)
    """What all runs share: keys of the training config."""
    num_gpus: int = 1
    """GPUs a run trains on; with train.synth.device cpu a run is one process and takes none."""
    launch: LaunchArgs = field(default_factory=LaunchArgs)
    """Where the runs are trained, and how many at a time."""


@dataclass(frozen=True)
class PlannedRun:
    """One cell of the grid."""

    args: TrainArgs
    flops: int
    """Training FLOPs of this run alone, by `model.counts.flops_per_token`."""
    gpu_hours: float | None = None
    """Expected time on all its GPUs together; None where no throughput was calibrated."""
    num_gpus: int = 0
    """GPUs (ranks) it trains on; 0 is one process on the CPU."""
    after: tuple[str, ...] = ()
    """Run ids of this study that must be finished before it starts."""

    @property
    def run_id(self) -> str:
        return self.args.name

    @property
    def is_finished(self) -> bool:
        return (Path(self.args.dump_dir) / RESULT).is_file()


def run_id(mixture: str, size: str, tokens: int, seed: int) -> str:
    """Name of a cell, unique within its study, e.g. natural-nano-107k-d262144-s42."""
    return f"{mixture}-{size}-d{tokens}-s{seed}"


def plan_study(study: StudyArgs) -> list[PlannedRun]:
    """Every run of the grid, cheapest first within its mixture, mixtures in the order of the YAML.

    Raises ValueError for an empty axis, an unknown size or source, ratios that do not sum to 1, a budget that is no
    whole number of steps, and a source too small for a run (with the numbers).
    """
    if study.num_gpus < 1:
        raise ValueError(f"num_gpus is what a run trains on, at least 1; got {study.num_gpus}. CPU: synth.device cpu")
    for axis in ("sizes", "budgets", "mixtures", "sources", "seeds"):
        if not getattr(study, axis):
            raise ValueError(f"the study's {axis} are empty: name at least one")
    if not study.out:
        raise ValueError("out is not set: give the folder for the study, e.g. out=runs/study")
    manifests = {name: _manifest(name, source) for name, source in study.sources.items()}
    runs: dict[str, PlannedRun] = {}
    for mixture_name, mixture in study.mixtures.items():
        for name in mixture.ratios:
            if name not in study.sources:
                raise ValueError(
                    f"mixture {mixture_name!r} draws from {name!r}, which is no source of the study; "
                    f"there are: {', '.join(study.sources)}"
                )
        cells = []
        for size in study.sizes:
            for tokens in study.budgets:
                for seed in study.seeds:
                    cells.append(_plan_run(study, mixture_name, mixture, size, tokens, seed, manifests))
        for cell in sorted(cells, key=lambda cell: cell.flops):
            if cell.run_id in runs:
                raise ValueError(f"the study names the run {cell.run_id} twice: a size, budget or seed is repeated")
            runs[cell.run_id] = cell
    return list(runs.values())


def _plan_run(
    study: StudyArgs,
    mixture_name: str,
    mixture: MixtureArgs,
    size: str,
    tokens: int,
    seed: int,
    manifests: Mapping[str, dict[str, Any]],
) -> PlannedRun:
    name = run_id(mixture_name, size, tokens, seed)
    cell = {
        "name": name,
        "dump_dir": str(Path(study.out) / "runs" / name),
        "seed": seed,
        "data": {"seed": seed},
        "synth": {
            "preset": size,
            "tokens": tokens,
            "mixture": mixture_name,
            "sources": {
                source: to_dict(dataclasses.replace(study.sources[source], ratio=str(ratio)))
                for source, ratio in mixture.ratios.items()
            },
        },
    }
    args = build_args(TrainArgs, ("the study's train section", study.train), (f"run {name}", cell))
    num_gpus = 0 if args.synth.device == "cpu" else study.num_gpus
    dp_size = max(1, num_gpus)
    tokenizer = next(iter(manifests.values()))["tokenizer"]
    resolved = resolve_args(args, dp_size=dp_size, vocab_size=tokenizer["n_words"])
    num_sequences = resolved.steps * tokens_per_step(resolved, dp_size) // resolved.data.seq_len
    counted = {source: int(manifests[source]["tokens"]) for source in mixture.ratios}
    try:
        planned = build_mixture(args.synth.sources, args.synth.stages, args.synth.on_exhaustion)
        plan_report(counted, planned, num_sequences, resolved.data.seq_len, schedule=args.synth.schedule)
    except ValueError as error:
        raise ValueError(f"run {name}: {error}") from None
    flops = tokens * flops_per_token(resolved.model, resolved.data.seq_len)
    return PlannedRun(args, flops, num_gpus=num_gpus)


def _manifest(name: str, source: SourceArgs) -> dict[str, Any]:
    try:
        return read_json(Path(source.path) / MANIFEST)
    except ValueError as error:
        raise ValueError(f"source {name!r}: {error}; make its shards with `lingua-synth tokenize`") from None
