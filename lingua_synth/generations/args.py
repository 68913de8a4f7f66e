"""What the YAML of a run over generations may say, and what is refused before anything is written."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from lingua_synth.config import build_args, needs_extra, to_dict
from lingua_synth.files import read_json, write_json
from lingua_synth.generations.plan import CONTROL, REGIMES, budget_of, ratios_of

BUILT_IN_DOCUMENTS = "python://"
SETTINGS = "generations.json"

LIBRARIES = ("torch", "sentencepiece", "matplotlib")

# A later call may change these: more rounds, regimes and seeds go on from what is there, the others do no work.
FREE = ("out", "num_workers", "rounds", "regimes", "control", "seeds", "level", "margins")


@dataclass
class RoundMargins:
    """The smallest changes from round 0 that count, as shares of its value: 0.005 is half a per cent."""

    loss: float = 0.005
    """Of the held-out loss: about what another seed moves it by."""
    tail_loss: float = 0.02
    """Of the held-out loss on rare tokens; wider, as few tokens are rare."""
    types: float = 0.05
    """Of the number of token types at equal tokens."""
    tail_mass: float = 0.2
    """Of the share of the text that rare types take up."""


@dataclass
class GenerationsArgs:
    """Rounds of training on text that the model of the round before wrote: run, or go on with, `out`."""

    out: str = ""
    """Folder for everything; the same command again goes on after an interruption."""
    documents: str = BUILT_IN_DOCUMENTS
    """Natural documents: a jsonl or parquet file, folder or glob; python:// is the English text of this Python."""
    max_bytes: int | None = None
    """Most bytes of natural text to use; null: all."""
    tokenizer: str = "sp"
    """sp: a SentencePiece model trained on the natural documents; bytes: no training, longer sequences."""
    vocab_size: int = 1024
    """Entries of the SentencePiece model."""
    regimes: list[str] = field(default_factory=lambda: list(REGIMES))
    """What becomes of older text: replace, accumulate, accumulate_fixed (`docs/generations.md`)."""
    control: bool = False
    """Beside accumulate, whose budget grows: natural text alone at the same budgets, so that the two can be compared.
    May be set later."""
    rounds: int = 3
    """Rounds after round 0, which is natural text alone; at least 1. May be raised later."""
    ratios: list[Any] = field(default_factory=lambda: ["1"])
    """Exact synthetic share of each round, in (0, 1], e.g. ["1/2", "9/10"]; the last is repeated. The text that a round
    adds is this share of `budget`."""
    size: str = "nano-56k"
    """Model preset of the student, whose loss is measured."""
    generator: str = ""
    """Model preset that writes the text, trained on the student's mixture in each round; empty: the student itself."""
    budget: int = 262_144
    """Training tokens of round 0, and of every round but those of accumulate; whole steps."""
    batch_tokens: int = 2048
    """Tokens of a training step."""
    seq_len: int = 128
    """Tokens of a training sequence; must divide `batch_tokens`."""
    lr: float = 4e-3
    """Peak learning rate."""
    train: dict[str, Any] = field(default_factory=dict)
    """Further keys of the training config, over ours."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds of initialization, data order and sampling; each is one line of models. Intervals need two or more."""
    recipe: str = "continue"
    """How a model writes: a recipe with a text prompt."""
    variant: str = ""
    """Names of the recipe's variants, separated by commas."""
    override: dict[str, Any] = field(default_factory=dict)
    """New values of the recipe's steps, filters too, e.g. override.continue.filters=[]."""
    temperature: float | None = None
    """Instead of the recipe's; 0 or more."""
    top_p: float | None = None
    """Instead of the recipe's nucleus mass; in (0, 1]."""
    max_tokens: int | None = None
    """Instead of the recipe's most output tokens per text."""
    samples: int = 8
    """Most texts from one document; a round ends as soon as there are enough tokens."""
    evaluation_tokens: int = 20_000
    """Held-out tokens scored per domain; every run scores the same."""
    device: str = "cpu"
    """cpu or cuda."""
    num_workers: int = 2
    """cpu: runs trained, and texts written, at the same time, one thread each."""
    level: float = 0.95
    """Of the intervals."""
    margins: RoundMargins = field(default_factory=RoundMargins)
    """The smallest changes that count."""


def arms_of(args: GenerationsArgs) -> list[str]:
    """What is trained in every round: the regimes, and the control where it was asked for."""
    return [*args.regimes, *([CONTROL] if args.control else [])]


def validate_generations(args: GenerationsArgs) -> None:
    """ValueError for settings that nothing can be run with; writes nothing."""
    from lingua_synth.documents import find_files
    from lingua_synth.model.presets import preset

    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(needs_extra(missing, "quickstart"))
    if not args.out:
        raise ValueError("out is not set: give the folder for the rounds, e.g. out=generations")
    unknown = [regime for regime in args.regimes if regime not in REGIMES]
    if unknown or not args.regimes:
        raise ValueError(f"regimes are some of {', '.join(REGIMES)}; got {', '.join(unknown) or 'none'}")
    if len(set(args.regimes)) < len(args.regimes) or len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"a regime or a seed is named twice: {', '.join(args.regimes)}; {args.seeds}")
    if args.control and "accumulate" not in args.regimes:
        raise ValueError(
            f"control is natural text alone at the budgets of accumulate, and regimes are {', '.join(args.regimes)}; "
            "add accumulate, or leave control out"
        )
    if not args.seeds or any(seed < 0 for seed in args.seeds):
        raise ValueError(f"seeds are whole numbers from 0, at least one; got {args.seeds}")
    if args.rounds < 1:
        raise ValueError(f"rounds come after round 0, which is natural text alone; at least 1, got {args.rounds}")
    for key in ("num_workers", "samples", "evaluation_tokens"):
        if getattr(args, key) < 1:
            raise ValueError(f"{key} is at least 1; got {getattr(args, key)}")
    if args.tokenizer not in ("sp", "bytes"):
        raise ValueError(f"tokenizer is sp or bytes; got {args.tokenizer!r}")
    if args.device not in ("cpu", "cuda"):
        raise ValueError(f"device is cpu or cuda; got {args.device!r}")
    if not 0 < args.level < 1:
        raise ValueError(f"level is a share between 0 and 1, e.g. 0.95; got {args.level}")
    for name, margin in to_dict(args.margins).items():
        if not (math.isfinite(margin) and margin >= 0):
            raise ValueError(f"margins.{name} is the smallest change that counts, 0 or more; got {margin}")
    for size in filter(None, (args.size, args.generator)):
        preset(size)
    _validate_budgets(args)
    recipe = recipe_of(args)
    if recipe.prompt_kinds != ("text",):
        raise ValueError(
            f"recipe {recipe.name} has {' and '.join(recipe.prompt_kinds)} prompts, and the models trained here take "
            "text prompts only; use continue, or a recipe of yours with prompt: text"
        )
    if args.documents != BUILT_IN_DOCUMENTS:
        find_files(args.documents)


def recipe_of(args: GenerationsArgs) -> Any:
    """The recipe with its variants, overrides and sampling; ValueError as `load_recipe` raises it."""
    from lingua_synth.generate import load_recipe

    recipe = load_recipe(args.recipe, args.variant, args.override)
    return recipe.with_sampling(temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_tokens)


def _validate_budgets(args: GenerationsArgs) -> None:
    step = args.batch_tokens
    if args.seq_len < 8 or step < args.seq_len or step % args.seq_len:
        raise ValueError(f"seq_len is at least 8 and divides batch_tokens, {step:,}; got {args.seq_len}")
    ratios = ratios_of(args.ratios, args.rounds)
    if args.budget < step or args.budget % step:
        nearest = max(1, round(args.budget / step)) * step
        raise ValueError(f"budget {args.budget:,} is not a whole number of {step:,}-token steps; nearest: {nearest:,}")
    # Each added text is a whole number of steps: then its share is exact to the token in every regime.
    denominator = math.lcm(*(ratio.denominator for ratio in ratios))
    if any((ratio * args.budget / step).denominator != 1 for ratio in ratios):
        unit = step * denominator
        nearest = max(1, round(Fraction(args.budget, unit))) * unit
        raise ValueError(
            f"budget {args.budget:,} times ratios {', '.join(map(str, ratios))} is not a whole number of "
            f"{step:,}-token steps each; nearest budget that is: {nearest:,}"
        )
    assert all(
        (Fraction(budget_of(regime, n, args.budget, ratios)) / step).denominator == 1
        for regime in args.regimes
        for n in range(args.rounds + 1)
    ), "sums of whole steps are whole steps"


# --- the folder's settings ---


def refuse_other_folder(args: GenerationsArgs) -> None:
    """ValueError for a folder of other settings, naming them, and for one that holds something else."""
    out, path = Path(args.out), Path(args.out) / SETTINGS
    if path.is_file():
        theirs = to_dict(read_settings(out))
        different = [
            f"{key}: {theirs[key]!r} there, {value!r} now"
            for key, value in to_dict(args).items()
            if key not in FREE and theirs[key] != value
        ]
        if different:
            raise ValueError(
                f"{out} holds generations with other settings ({'; '.join(different)}); use another out=, or delete it"
            )
    elif out.exists() and (not out.is_dir() or any(entry.name != ".lock" for entry in out.iterdir())):
        raise ValueError(
            f"{out} exists and holds no generations; use another out= so that nothing of yours is mixed in"
        )


def write_settings(args: GenerationsArgs) -> None:
    """Keep the settings in the folder, for later calls and reports."""
    write_json(Path(args.out) / SETTINGS, to_dict(args))


def read_settings(out: str | Path) -> GenerationsArgs:
    """The settings of a folder, with `out` as it is reached now; ValueError where there are none."""
    args = build_args(GenerationsArgs, (str(Path(out) / SETTINGS), read_json(Path(out) / SETTINGS)))
    return dataclasses.replace(args, out=str(out))
