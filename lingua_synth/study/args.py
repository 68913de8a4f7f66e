"""What a study's YAML may say, and how it is read.

A study is one grid, or several with names: sizes x budgets x mixtures x seeds, x tokenizers where it has several.
Mixtures are written out one by one, as ratios or in stages that change them over training, or made from ratios (a share
of each synthetic source beside one natural source), for each generator if there are several.
Rules by name take cells out of the grids, or change the training of some of them.

    extends (presets, YAML files) -> the study's own YAML -> the command line

Mappings merge, lists and numbers are replaced, as everywhere in this library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.config import build_args, parse_args
from lingua_synth.mixture.args import FeedbackArgs, SourceArgs, StageArgs
from lingua_synth.scaling.repetition import PUBLISHED_R_D
from lingua_synth.study.launch_args import LaunchArgs

PRESETS = Path(__file__).parent / "presets"


@dataclass
class MixtureArgs:
    """One mixture of the study."""

    ratios: dict[str, str] = field(default_factory=dict)
    """Source name to its exact share of the training tokens, e.g. "2/3"; they sum to 1."""
    stages: dict[str, StageArgs] = field(default_factory=dict)
    """Instead of `ratios`: stages by name, in order, as in a training config (`until` is a share of each run's own
    budget), so one schedule serves every budget of the study."""
    feedback: FeedbackArgs = field(default_factory=FeedbackArgs)
    """Shares that follow the sources' losses, from `ratios` on; off by default."""


@dataclass
class StudySourceArgs(SourceArgs):
    """A source of the study. Its shares are those of the mixtures: `ratio` is not read here."""

    tokens: Any = None
    """Tokens it will hold (100B, 100_000_000_000), to plan with before there are shards; those that exist are counted
    instead. Null: not known."""


@dataclass
class StudyTokenizerArgs:
    """One vocabulary of a study of several: the same documents in shards of their own. In the paths of sources and
    domains `{tokenizer}` stands for its name."""

    name: str = ""
    """bytes, sp or tiktoken; empty: as its shards say."""
    path: str | None = None
    """File of the vocabulary; none for bytes. An sp that is not there is learned by `study tokenize`."""
    vocab_size: int | None = None
    """Entries: to plan with before there are shards, and of an sp that is learned."""
    learn_from: str = ""
    """Source whose documents an sp of `vocab_size` pieces is learned from; empty: the first source with documents."""
    sources: dict[str, str] = field(default_factory=dict)
    """Source to the folder of its shards, where its path has no {tokenizer}."""
    domains: dict[str, str] = field(default_factory=dict)
    """Domain to the folder of its shards, where its path has no {tokenizer}."""
    bytes_per_token: dict[str, float] = field(default_factory=dict)
    """UTF-8 bytes of text per token by source, to plan with before there are shards, which count it exactly."""
    train: dict[str, Any] = field(default_factory=dict)
    """Keys of the training config for its runs (data.seq_len, synth.global_batch_tokens), over the study's."""


@dataclass
class GridArgs:
    """Every size with every budget, mixture and seed. An axis that is left empty is the study's own."""

    sizes: list[str] = field(default_factory=list)
    """Presets or sizes between them, by name."""
    budgets: list[Any] = field(default_factory=list)
    """Training budgets D: 50B (rounded to whole steps), or an integer, which must be a whole number of steps."""
    mixtures: list[str] = field(default_factory=list)
    """Names of the study's mixtures, * for any; empty: all of them, or none where `ratios` makes some."""
    tokenizers: list[str] = field(default_factory=list)
    """Names of the study's tokenizers; empty: all of them."""
    seeds: list[int] = field(default_factory=list)
    """Seeds of initialization and data order."""
    parts: list[Any] = field(default_factory=list)
    """Repetition as an axis: exact shares of the sources' windows that runs read at all ("1/8", 0.25, 1), so fewer
    unique tokens and more passes (`max_epochs` must allow them). Empty: the sources' own `part`."""
    part_of: list[str] = field(default_factory=list)
    """Sources that `parts` cut; empty: all of a mixture's."""
    natural: str = ""
    """Source that `ratios` mix the synthetic ones into."""
    synthetic: list[str] = field(default_factory=list)
    """Synthetic sources; each is mixed at each ratio."""
    ratios: list[Any] = field(default_factory=list)
    """Exact shares of a synthetic source ("1/3", 0.005); the natural source has the rest. 0: natural text alone."""
    generators: list[str] = field(default_factory=list)
    """Generators that wrote the synthetic text: then each source is named <synthetic>-<generator>."""
    ladder: bool = False
    """All budgets of a size from one run: a WSD trunk of the largest, from which the others branch off and decay."""
    suffix: str = ""
    """Ends the names of the grid's runs; tells cells apart that two grids train differently. A ladder's is -wsd."""
    train: dict[str, Any] = field(default_factory=dict)
    """Keys of the training config, over the study's."""


@dataclass
class RuleArgs:
    """Cells of the grids, by their coordinates; an empty list holds any value. * stands for any letters."""

    grid: list[str] = field(default_factory=list)
    """Names of grids."""
    size: list[str] = field(default_factory=list)
    """Sizes by name."""
    mixture: list[str] = field(default_factory=list)
    """Mixtures by name."""
    tokenizer: list[str] = field(default_factory=list)
    """Tokenizers by name."""
    budget: list[Any] = field(default_factory=list)
    """Budgets, 50B, or bounds: ">20B", "<=5B"."""
    seed: list[int] = field(default_factory=list)
    """Seeds."""
    part: list[Any] = field(default_factory=list)
    """Parts of the sources, of grids with `parts`; 1 are whole sources."""


@dataclass
class OverrideArgs(RuleArgs):
    """Training keys of some cells."""

    train: dict[str, Any] = field(default_factory=dict)
    """Keys of the training config for these cells, over the study's and the grid's."""
    num_gpus: int | None = None
    """GPUs of each of these runs; null: the study's number."""


@dataclass
class DesignArgs:
    """The law and the noise by which the plan judges what its runs will tell."""

    noise: float = 0.002
    """Scatter of a run's log loss around the law, above 0: 0.002 is 0.2 %."""
    E: float = 1.8172
    """Assumed irreducible loss, nats per token. The five: Chinchilla's points as refitted (docs/fits.md)."""
    A: float = 477.8
    """Assumed coefficient of the term in N, which counts parameters without vocabulary matrices."""
    B: float = 2143.0
    """Assumed coefficient of the term in D."""
    alpha: float = 0.3473
    """Assumed exponent of N."""
    beta: float = 0.3672
    """Assumed exponent of D."""
    R_D: float = PUBLISHED_R_D
    """Assumed decay of repeated tokens (Muennighoff et al. 2023): any number of passes over U tokens is worth
    U (1 + R_D) new ones at most. Refits to public runs give 4 to 23."""
    next_runs: int = 3
    """Runs to name that would lower the error of E most per GPU-hour; 0: none."""


@dataclass
class StudyArgs:
    """A grid of trainings, or several: every size with every budget, mixture and seed."""

    extends: list[str] = field(default_factory=list)
    """Studies read before this one: presets (paper/base) or YAML files, relative to this one."""
    out: str = ""
    """Folder of the study: runs/<run_id>/, runs.csv, plan.csv."""
    sizes: list[str] = field(default_factory=list)
    """Presets, by name."""
    budgets: list[Any] = field(default_factory=list)
    """Training budgets D: 50B (rounded to whole steps), or an integer, which must be a whole number of steps."""
    mixtures: dict[str, MixtureArgs] = field(default_factory=dict)
    """Mixtures by name."""
    sources: dict[str, StudySourceArgs] = field(default_factory=dict)
    """Sources the mixtures draw from."""
    seeds: list[int] = field(default_factory=lambda: [42])
    """Seeds of initialization and data order."""
    parts: list[Any] = field(default_factory=list)
    """Repetition as an axis: exact shares of the sources' windows that runs read at all ("1/8", 0.25, 1), so fewer
    unique tokens and more passes (`max_epochs` must allow them). Empty: the sources' own `part`."""
    part_of: list[str] = field(default_factory=list)
    """Sources that `parts` cut; empty: all of a mixture's."""
    tokenizers: dict[str, StudyTokenizerArgs] = field(default_factory=dict)
    """Vocabularies by name, an axis of the study: every cell is trained under each. Budgets and ratios are written in
    tokens of the first, the reference. None: the one of the shards."""
    match: str = "bytes"
    """What a cell has equal under every tokenizer: bytes (of text read), tokens, or flops (of training); met to the
    nearest optimizer step."""
    match_shares: str = "bytes"
    """What a mixture has equal under every tokenizer: the shares of the text that its ratios are under the first
    (bytes), or its ratios themselves (tokens), whose shares of the text then differ."""
    domain_documents: dict[str, str] = field(default_factory=dict)
    """Documents of the evaluation's domains by name, for `study tokenize`."""
    grids: dict[str, GridArgs] = field(default_factory=dict)
    """Several grids by name; a cell that two of them hold is trained once. None: the study's axes are the one grid."""
    exclude: dict[str, RuleArgs] = field(default_factory=dict)
    """Cells that are not trained, as rules by name."""
    overrides: dict[str, OverrideArgs] = field(default_factory=dict)
    """What some cells train with, as rules by name; later ones win."""
    train: dict[str, Any] = field(default_factory=dict)
    """What all runs share: keys of the training config."""
    vocab_size: int | None = None
    """Entries of the tokenizer, to plan with before there are shards; null: the shards', else the size's own."""
    num_gpus: int = 1
    """GPUs a run trains on; with train.synth.device cpu a run is one process and takes none."""
    gpu: str = ""
    """GPU by name, e.g. "A100 80GB": the plan then says what fits into its memory, and the MFU."""
    calibrate: str = ""
    """Training speed in tokens per second and GPU: 1B:21.7k, or several sizes, 200M:110k,1B:21.7k. Empty: what
    `lingua-synth study calibrate` measured for this folder. Other sizes reach the FLOP/s of the nearest ones."""
    gpu_hour_price: float = 0.0
    """Price of a GPU-hour, in any currency; 0: the plan names none."""
    design: DesignArgs = field(default_factory=DesignArgs)
    """What the plan assumes of the losses."""
    on_change: str = "refuse"
    """A study that was launched and whose YAML makes other runs now: refuse, or add the runs that are new."""
    launch: LaunchArgs = field(default_factory=LaunchArgs)
    """Where the runs are trained, and how many at a time."""


def preset_names() -> list[str]:
    """The studies that come with the library, e.g. paper/full."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))


def parse_study(argv: Sequence[str], *, prog: str = "lingua-synth study") -> StudyArgs:
    """Build the study of a command line; `config=` is a YAML file or a preset, and `extends` is followed.

    Prints the keys and exits with 0 on `--help`. ValueError as `config.parse_args` raises it, and for studies that
    extend each other in a circle.
    """
    # What the words alone make has their syntax checked; the file's own layers lie below them.
    words = [word for word in argv if not word.startswith("config=")]
    files = [word.removeprefix("config=") for word in argv if word.startswith("config=")]
    alone = parse_args(StudyArgs, [*words, *[f"config={_locate(file)}" for file in files]], prog=prog)
    layers = list(_layers(files[0], None, ())) if files else []
    if not alone.extends and len(layers) < 2:
        return alone
    extended = [layer for name in _dotlist_extends(words) for layer in _layers(name, None, ())]
    return build_args(StudyArgs, *extended, *layers, ("the command line", _dotlist(words)))


def read_study(name: str | Path) -> StudyArgs:
    """The study of a YAML file, or a preset by name."""
    return build_args(StudyArgs, *_layers(str(name), None, ()))


def _layers(name: str, beside: Path | None, above: tuple[Path, ...]) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """The mappings of a study and of all it extends, the lowest first."""
    path = _locate(name, beside)
    if path in above:
        raise ValueError(f"studies extend each other in a circle: {' -> '.join(str(p) for p in (*above, path))}")
    values = _read(path)
    below = values.get("extends") or []
    if not isinstance(below, list):
        raise ValueError(f"extends in {path} is a list of studies; got {below!r}")
    layers = [layer for base in below for layer in _layers(str(base), path.parent, (*above, path))]
    return [*layers, (str(path), values)]


def _locate(name: str, beside: Path | None = None) -> Path:
    """The file of a study: as named, beside the study that names it, or a preset."""
    for path in (Path(name), *([beside / name] if beside else [])):
        if path.is_file():
            return path
    packaged = PRESETS / f"{name.removesuffix('.yaml')}.yaml"
    if packaged.is_file():
        return packaged
    raise ValueError(f"no config file {name}; presets: {', '.join(preset_names())}")


def _read(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True) or {}
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of keys to values, not {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _dotlist(words: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    # `key=` is the empty text, not YAML's null, as in `parse_args`, which has read these words before.
    return dict(OmegaConf.to_container(OmegaConf.from_dotlist([w + '""' * w.endswith("=") for w in words])))  # type: ignore[arg-type]


def _dotlist_extends(words: Sequence[str]) -> list[str]:
    return [str(name) for name in _dotlist(words).get("extends") or []]
