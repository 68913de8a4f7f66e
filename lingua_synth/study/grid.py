"""From the axes of a study to its cells: which size, budget, mixture, tokenizer and seed each run has.

    grids (sizes x budgets x mixtures x tokenizers x seeds) - exclude -> cells, each with its overrides' training keys

Cells keep the order of the YAML. A rule that no cell answers to is refused: it was meant for one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from lingua_synth.mixture.args import FeedbackArgs, StageArgs
from lingua_synth.mixture.pool import parse_tokens
from lingua_synth.mixture.ratios import parse_ratio
from lingua_synth.study.args import GridArgs, MixtureArgs, RuleArgs, StudyArgs

LADDER_SUFFIX = "-wsd"
_BOUND = re.compile(r"(<=|>=|<|>)\s*(.+)")


@dataclass(frozen=True)
class Budget:
    """Training tokens as they were asked for."""

    tokens: int
    label: str
    """In the names of runs: 50B, or the digits of an exact number."""
    is_exact: bool
    """Given as an integer: a whole number of steps or refused. Else rounded to whole steps."""


@dataclass(frozen=True)
class Cell:
    """One training, before it is resolved."""

    grid: str
    size: str
    budget: Budget
    mixture: str
    ratios: Mapping[str, str]
    """Exact share of each source; empty where `stages` give them."""
    stages: Mapping[str, StageArgs]
    """Stages by name; empty for ratios that do not change."""
    feedback: FeedbackArgs
    """Shares that follow the losses; off without an interval."""
    seed: int
    is_ladder: bool
    suffix: str
    overrides: tuple[str, ...]
    """Names of the overrides that hold for it, in order."""
    part: Fraction = Fraction(1)
    """Share of the windows of `part_of` that it reads; 1: they are as the study's `sources` say."""
    part_of: tuple[str, ...] = ()
    """Sources of its mixture that `part` cuts."""
    tokenizer: str = ""
    """Empty in a study that declares none."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources it draws from, in the order in which the mixture names them."""
        return _sources(self.ratios, self.stages)

    @property
    def run_id(self) -> str:
        """Name of the run, unique within its study."""
        part = f"-p{_fraction(self.part)}" if self.part != 1 else ""
        return (
            run_id(self.mixture, self.size, self.budget.label, self.seed)
            + part
            + (f"-{self.tokenizer}" if self.tokenizer else "")
            + self.suffix
        )


def run_id(mixture: str, size: str, budget: str | int, seed: int) -> str:
    """Name of a cell, e.g. natural-nano-107k-d262144-s42 or hq33-1B-d50B-s42."""
    return f"{mixture}-{size}-d{budget}-s{seed}"


def parse_budget(value: Any) -> Budget:
    """A budget as the YAML gives it; ValueError for what is no positive count of tokens."""
    if isinstance(value, int) and not isinstance(value, bool):
        tokens, label, is_exact = value, str(value), True
    elif isinstance(value, str):
        tokens = parse_tokens(value)
        label, is_exact = _in_billions(tokens), value.replace("_", "").isdigit()
        label = str(tokens) if is_exact else label
    else:
        raise ValueError(f"budgets are counts of tokens, 50B or 262_144; got {value!r}")
    if tokens < 1:
        raise ValueError(f"budgets are counts of tokens, at least 1; got {value!r}")
    return Budget(tokens, label, is_exact)


def _in_billions(tokens: int) -> str:
    """Exact and short: 50B, 0.5B is 500M, 12.5B."""
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if tokens >= factor:
            return f"{tokens / factor:.15g}{unit}"
    return str(tokens)


def plan_cells(study: StudyArgs) -> list[Cell]:
    """Every cell of every grid that no rule excludes, in the order of the YAML.

    ValueError for an empty axis, a cell that stands twice in a grid, a mixture or a source that is not there, a run
    whose name is no folder's, and a rule that holds for no cell.
    """
    names = list(study.grids) or ["study"]
    used: set[str] = set()
    cells: list[Cell] = []
    for name in names:
        grid = study.grids.get(name, GridArgs())
        seen: set[str] = set()
        for cell in _grid_cells(study, name, grid):
            if cell.run_id in seen:
                raise ValueError(f"the study names the run {cell.run_id} twice: a size, budget or seed is repeated")
            if cell.run_id.startswith(".") or any(mark in cell.run_id for mark in "/\\\0"):
                raise ValueError(
                    f"the run {cell.run_id!r} cannot have a folder of its name: mixtures, sources, sizes and suffixes "
                    "are named without / and \\, and begin with no dot"
                )
            seen.add(cell.run_id)
            excluded = [rule for rule, args in study.exclude.items() if _holds(args, cell)]
            used.update(f"exclude.{rule}" for rule in excluded)
            if not excluded:
                used.update(f"overrides.{rule}" for rule in cell.overrides)
                cells.append(cell)
    rules = [f"exclude.{rule}" for rule in study.exclude] + [f"overrides.{rule}" for rule in study.overrides]
    if idle := [rule for rule in rules if rule not in used]:
        raise ValueError(f"{', '.join(idle)} holds for no cell of the study; correct its lists, or leave it out")
    if not cells:
        raise ValueError(f"exclude ({', '.join(study.exclude)}) leaves no cell of the study")
    return cells


def _grid_cells(study: StudyArgs, name: str, grid: GridArgs) -> Iterator[Cell]:
    where = f"grids.{name}." if study.grids else ""
    mixtures = _mixtures(study, name, grid)
    sizes, seeds = grid.sizes or study.sizes, grid.seeds or study.seeds
    budgets = [parse_budget(value) for value in grid.budgets or study.budgets]
    axes: dict[str, Sequence[Any]] = {
        "sizes": sizes, "budgets": budgets, "mixtures": list(mixtures), "sources": list(study.sources), "seeds": seeds,
    }  # fmt: skip
    for axis, values in axes.items():
        if not values:
            raise ValueError(f"the study's {axis} are empty{f' in {where[:-1]}' if where else ''}: name at least one")
    suffix = grid.suffix or LADDER_SUFFIX * grid.ladder
    tokenizers = grid.tokenizers or list(study.tokenizers) or [""]
    if unknown := [tokenizer for tokenizer in grid.tokenizers if tokenizer not in study.tokenizers]:
        known = ", ".join(study.tokenizers) or "none"
        raise ValueError(f"{where}tokenizers names {unknown[0]!r}; the study has: {known}")
    for mixture, asked in mixtures.items():
        if asked.ratios and asked.stages:
            raise ValueError(f"mixture {mixture!r} has ratios and stages, which give the ratios: leave one of them out")
        for source in _sources(asked.ratios, asked.stages):
            if source not in study.sources:
                raise ValueError(
                    f"mixture {mixture!r} draws from {source!r}, which is no source of the study; "
                    f"there are: {', '.join(study.sources)}"
                )
        cut, parts = _parts(study, grid, where, _sources(asked.ratios, asked.stages))
        for size, budget, part, seed, tokenizer in itertools.product(sizes, budgets, parts, seeds, tokenizers):
            cell = Cell(
                name,
                size,
                budget,
                mixture,
                asked.ratios,
                asked.stages,
                asked.feedback,
                seed,
                grid.ladder,
                suffix,
                (),
                part,
                cut,
                tokenizer,
            )
            held = overrides_of(study, cell)
            yield replace(cell, overrides=held) if held else cell


def _parts(
    study: StudyArgs, grid: GridArgs, where: str, sources: Sequence[str]
) -> tuple[tuple[str, ...], list[Fraction]]:
    """(sources of a mixture that the grid cuts, their parts); a mixture without such sources is read whole."""
    given, of = grid.parts or study.parts, grid.part_of or study.part_of
    if of and not given:
        raise ValueError(f"{where}part_of names {', '.join(of)}, and {where}parts is empty; give some")
    if unknown := [name for name in of if name not in study.sources]:
        raise ValueError(
            f"{where}part_of names {', '.join(unknown)}; the study's sources are {', '.join(study.sources)}"
        )
    parts = [parse_ratio(value) for value in given]
    for part, value in zip(parts, given, strict=True):
        if not 0 < part <= 1:
            raise ValueError(f'{where}parts are shares of a source, above 0 and at most 1 ("1/8", 0.25); got {value!r}')
    cut = tuple(name for name in sources if not of or name in of) if parts else ()
    for name in cut:
        if parse_ratio(study.sources[name].part) != 1:
            raise ValueError(
                f"sources.{name}.part is {study.sources[name].part}, and {where}parts gives it others: leave one out"
            )
    return cut, parts if cut else [Fraction(1)]


def _sources(ratios: Mapping[str, str], stages: Mapping[str, StageArgs]) -> tuple[str, ...]:
    staged = (name for stage in stages.values() for name in (*stage.ratios, *stage.ramp_to))
    return tuple(dict.fromkeys((*ratios, *staged)))


def overrides_of(study: StudyArgs, cell: Cell) -> tuple[str, ...]:
    """Names of the overrides that hold for a cell, in order."""
    return tuple(rule for rule, args in study.overrides.items() if _holds(args, cell))


def _holds(rule: RuleArgs, cell: Cell) -> bool:
    named = (
        (rule.grid, cell.grid),
        (rule.size, cell.size),
        (rule.mixture, cell.mixture),
        (rule.tokenizer, cell.tokenizer),
    )
    return (
        all(not patterns or any(fnmatchcase(value, str(p)) for p in patterns) for patterns, value in named)
        and (not rule.part or cell.part in [parse_ratio(part) for part in rule.part])
        and (not rule.seed or cell.seed in rule.seed)
        and (not rule.budget or any(_is_budget(asked, cell.budget) for asked in rule.budget))
    )


def _is_budget(asked: Any, budget: Budget) -> bool:
    bound = _BOUND.fullmatch(str(asked).strip())
    if bound is None:
        return parse_tokens(str(asked)) == budget.tokens
    tokens = parse_tokens(bound[2])
    return {
        "<": budget.tokens < tokens,
        "<=": budget.tokens <= tokens,
        ">": budget.tokens > tokens,
        ">=": budget.tokens >= tokens,
    }[bound[1]]


# --- mixtures ---


def _mixtures(study: StudyArgs, name: str, grid: GridArgs) -> dict[str, MixtureArgs]:
    """Mixtures by name: those of the study that the grid names, then those its ratios make."""
    found: dict[str, MixtureArgs] = {}
    for pattern in grid.mixtures or ([] if grid.ratios else ["*"]):
        matching = [mixture for mixture in study.mixtures if fnmatchcase(mixture, pattern)]
        if not matching and grid.mixtures:
            known = ", ".join(study.mixtures) or "none"
            raise ValueError(f"grids.{name} names the mixture {pattern!r}; the study has: {known}")
        found.update({mixture: study.mixtures[mixture] for mixture in matching})
    if not grid.ratios:
        for key, value in (("natural", grid.natural), ("synthetic", grid.synthetic), ("generators", grid.generators)):
            if value:
                raise ValueError(f"grids.{name}.{key} belongs to ratios, and grids.{name}.ratios is empty; give some")
        return found
    if not grid.natural or not grid.synthetic:
        missing = "natural" if not grid.natural else "synthetic"
        raise ValueError(f"grids.{name}.ratios mix synthetic sources into a natural one: name grids.{name}.{missing}")
    for synthetic in grid.synthetic:
        for generator in grid.generators or [""]:
            source = f"{synthetic}-{generator}" if generator else synthetic
            for value in grid.ratios:
                mixture, ratios = ratio_mixture(grid.natural, source, value, is_generated=bool(generator))
                made = MixtureArgs(ratios)
                if (there := found.setdefault(mixture, made)) != made:
                    other = dict(there.ratios) or f"in stages ({', '.join(there.stages)})"
                    raise ValueError(
                        f"grids.{name} makes a mixture {mixture!r} of {ratios}, and another of that name is "
                        f"{other}; rename one of the study's mixtures"
                    )
    return found


def ratio_mixture(
    natural: str, synthetic: str, ratio: Any, *, is_generated: bool = False
) -> tuple[str, dict[str, str]]:
    """(name, exact ratios) of a share of `synthetic` in `natural`: ("hq33", {"cc": "67/100", "hq": "33/100"}).

    A share of 0 is the natural source alone and has its name. ValueError for what is no share.
    """
    share = parse_ratio(ratio)
    if share > 1:
        raise ValueError(f'ratios are shares, from 0 to 1 ("1/3", 0.005); got {ratio!r}')
    if not share:
        return natural, {natural: "1"}
    name = f"{synthetic}{'-' * is_generated}{_percent(share)}"
    return name, {synthetic: "1"} if share == 1 else {natural: str(1 - share), synthetic: str(share)}


def _percent(share: Fraction) -> str:
    """33, 0.5; what is no decimal as its fraction, 1of3."""
    percent = share * 100
    scaled = percent * 10**6
    if scaled.denominator == 1:
        return f"{float(percent):.10g}"
    return _fraction(share)


def _fraction(share: Fraction) -> str:
    return f"{share.numerator}of{share.denominator}"
