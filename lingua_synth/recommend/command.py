"""`lingua-synth recommend runs=TABLE n=1B tokens=50B generator=FOLDER`: what to train on, by cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.config import parse_args
from lingua_synth.files import atomic_file, what_is_there, write_json
from lingua_synth.mixture.pool import parse_tokens
from lingua_synth.recommend.advise import advise
from lingua_synth.recommend.generators import read_generators
from lingua_synth.recommend.training import size_in_words, training_cost
from lingua_synth.scaling.command import TableArgs, cleaning_lines, read_runs
from lingua_synth.scaling.kinds import kinds_of
from lingua_synth.scaling.natural import base_mixture


@dataclass
class RecommendArgs(TableArgs):
    """Natural text only, more of it, or a share of synthetic text: the cheapest way to one loss, from a runs table and
    what generation, training and text cost. Keys that say NAME take one value for all kinds of text
    (keep_rate=0.9), or one each (keep_rate.hq=0.9), by source or kind."""

    n: str = ""
    """Model size: a size of the table, a preset (1B), or parameters as n_definition counts them (858M)."""
    tokens: str = ""
    """Tokens that natural text alone would be trained on, e.g. 50B; the loss it has there is what every option must
    reach."""
    generator: Any = ""
    """NAME: folder of a generation run, whose measured cost, waste and keep rate are used."""
    shards: Any = ""
    """NAME: token shards made of that run's kept texts; they measure the generator's tokens per training token."""
    gpu_hours_per_billion: Any = None
    """NAME: GPU-hours per billion written tokens, where there is no folder (43: an 8B model on an H100)."""
    price_per_billion: Any = None
    """NAME: money per billion written tokens, of a service; needs gpu_hour_price."""
    keep_rate: Any = None
    """NAME: share of the written tokens that filters keep, where there is no folder; 1 when not said."""
    tokens_ratio: Any = None
    """NAME: the generator's tokens per training token, where there are no shards; 1 when not said."""
    rate_error: float | None = None
    """Relative standard error of what generation costs; null: measured over a run's processes and shards where it has
    three of each, else 0.1."""
    num_runs: int = 1
    """Trainings of this kind that share the texts."""
    epochs: float = 1.0
    """Most passes over synthetic text within a run; fewer are taken where they are better."""
    natural_tokens: str = ""
    """Unique natural tokens in hand, beyond which runs repeat them, e.g. 20B; empty: more than any run reads."""
    natural_gpu_hours_per_billion: float | None = None
    """What a billion more natural tokens cost in GPU-hours (crawl, cleaning); null: there are none to buy."""
    natural_price_per_billion: float | None = None
    """The same in money; needs gpu_hour_price."""
    gpu: str = "H100"
    """The training's GPU."""
    mfu: float = 0.4
    """The training's model FLOPs utilization."""
    calibrate: str = ""
    """Measured speed in place of gpu and mfu: size and tokens per second and GPU, 1B:21.7k, or several with commas;
    runs: those of the table (column gpu_hours)."""
    seq_len: int = 4096
    """The training's sequence length, where the table has no FLOPs."""
    gpu_hour_price: float | None = None
    """Price of a GPU-hour; with it all costs are money, else GPU-hours."""
    generation_gpu_hour_price: float | None = None
    """Price of a GPU-hour of generation, where it is another GPU; null: gpu_hour_price."""
    min_saving: float = 0.01
    """Smallest saving that counts, as a share of what natural text alone costs: 0.01 is 1 %."""
    level: float = 0.95
    """Level of the intervals."""
    base: str | None = None
    """Mixture that is natural text alone; null: the one that is."""
    kinds: dict[str, str] = field(default_factory=dict)
    """What a synthetic source is, where its name does not say it: kinds.SOURCE=hq, qa, textbook or other."""
    generators: dict[str, str] = field(default_factory=dict)
    """Who wrote a source that is not named KIND-GENERATOR: generators.SOURCE=llama3-8b."""
    changes: bool = True
    """Look for what would change the answer (seconds)."""
    out: str = ""
    """File for the answer with all digits (.json); empty: printed only."""
    figure: str = ""
    """File for a picture of what every kind saves over its share (.png, .svg or .pdf; extra report); empty: none."""


def main(argv: Sequence[str]) -> int:
    """Read, decide, print: the answer, or why these runs have none."""
    args = parse_args(RecommendArgs, argv, prog="lingua-synth recommend")
    for key, example in (("runs", "FILE.csv"), ("n", "1B"), ("tokens", "50B")):
        if not getattr(args, key):
            raise ValueError(f"recommend needs {key}={example}; `lingua-synth recommend --help` lists the keys")
    if not Path(args.runs).exists():
        raise ValueError(f"no runs table {args.runs}; {what_is_there(args.runs)}")
    if args.figure and Path(args.figure).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"figure= is a file that ends in .png, .svg or .pdf; got {args.figure}")
    if args.natural_price_per_billion is not None and args.gpu_hour_price is None:
        raise ValueError("natural_price_per_billion= is money; it needs gpu_hour_price= beside it")
    if args.natural_price_per_billion is not None and args.natural_gpu_hours_per_billion is not None:
        raise ValueError("give natural_price_per_billion= or natural_gpu_hours_per_billion=, not both")
    runs, cleaned = read_runs(args)
    base = base_mixture(runs, args.base)
    kinds = kinds_of(runs, base, args.kinds, args.generators) if len(runs) else {}
    known = read_generators(
        kinds,
        folders=args.generator,
        shards=args.shards,
        gpu_hours_per_billion=args.gpu_hours_per_billion,
        price_per_billion=args.price_per_billion,
        keep_rate=args.keep_rate,
        tokens_ratio=args.tokens_ratio,
        gpu_hour_price=args.gpu_hour_price,
        generation_gpu_hour_price=args.generation_gpu_hour_price,
        rate_error_by_hand=args.rate_error,
    )
    size, how = size_in_words(args.n, runs, args.n_definition)
    cost = training_cost(
        runs, n_definition=args.n_definition, gpu=args.gpu, mfu=args.mfu, calibrate=args.calibrate,
        seq_len=args.seq_len,
    )  # fmt: skip
    hour = args.gpu_hour_price or 1.0
    price = args.natural_price_per_billion
    if price is None and args.natural_gpu_hours_per_billion is not None:
        price = args.natural_gpu_hours_per_billion * hour
    found = advise(
        runs,
        size,
        float(parse_tokens(args.tokens)),
        known,
        lambda N: cost.gpu_hours_per_billion(N) * hour,
        training_words=f"{cost.words}; n={args.n} is {how}",
        unit="GPU-hours" if args.gpu_hour_price is None else "money",
        num_runs=args.num_runs,
        epochs=args.epochs,
        natural_tokens=float(parse_tokens(args.natural_tokens)) if args.natural_tokens else None,
        natural_price=price,
        min_saving=args.min_saving,
        target=args.target,
        n_definition=args.n_definition,
        base=base,
        roles=args.kinds,
        names=args.generators,
        num_bootstraps=args.bootstraps,
        seed=args.seed,
        level=args.level,
        changes=args.changes,
        progress=True,
    )
    if args.out:
        write_json(args.out, found.to_dict())
    if args.figure and found.decision is not None:
        with atomic_file(args.figure, "wb") as file:
            found.plot().figure.savefig(file, format=Path(args.figure).suffix[1:], dpi=200)
    for line in cleaning_lines(runs, cleaned):
        print(line)
    print(found)
    return 0
