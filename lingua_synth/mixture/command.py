"""`lingua-synth mix`: what a mixture asks of its sources over a budget, before anything is trained.

lingua-synth mix sources.web.path=shards/web sources.web.ratio=2/3 sources.hq.path=shards/hq sources.hq.ratio=1/3 \\
    num_tokens=2_000_000_000
lingua-synth mix paper tokens.cc=2T tokens.hq=100B tokens.qa=100B tokens.textbook=200B
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from lingua_synth.config import parse_args
from lingua_synth.mixture.args import SourceArgs, StageArgs, build_mixture, build_part
from lingua_synth.mixture.plan import count_windows, part_of, plan_report
from lingua_synth.mixture.pool import BUDGETS, fit_pool, in_words, parse_tokens
from lingua_synth.mixture.ratios import parse_ratio, validate_count

PROG = "lingua-synth mix"


@dataclass
class MixArgs:
    """Print asked, available and planned tokens per source, and where each source runs out. Trains nothing.

    `mix paper` prints instead which mixtures of the paper fit the sources.
    """

    sources: dict[str, SourceArgs] = field(default_factory=dict)
    """Sources of the mixture; their ratios sum to exactly 1."""
    stages: dict[str, StageArgs] = field(default_factory=dict)
    """Stages by name, in order, instead of one ratio per source."""
    on_exhaustion: str = "refuse"
    """When a source would exceed its max_epochs: refuse, stop, repeat (reshuffled), renormalize (the others go on)."""
    schedule: str = "tree"
    """tree (random access) or strict (the tightest bound there is)."""
    seq_len: int = 4096
    """Training tokens per sequence, at least 1."""
    part: str = "1"
    """Exact share of every source's windows that is read at all, times the source's own `part`; 1/100 for a run that
    stands for one of a hundred times its tokens (synth.match_repetition)."""
    num_tokens: int | None = None
    """Budget in training tokens, repeats counted; rounded up to whole sequences."""
    num_sequences: int | None = None
    """Budget in sequences, instead of num_tokens."""


@dataclass
class PaperArgs:
    """Print which mixtures of the paper (each synthetic source alone, at 33 % and at 67 %) fit a pool of tokens."""

    tokens: dict[str, str] = field(default_factory=dict)
    """Tokens by source, 100B or 100_000_000_000."""
    sources: dict[str, SourceArgs] = field(default_factory=dict)
    """Sources by the folder of their token shards, beside or instead of `tokens`."""
    natural: str = ""
    """Name of the natural source; every other is synthetic. Empty: the first that is named."""
    budgets: list[str] = field(default_factory=lambda: [in_words(budget) for budget in BUDGETS])
    """Training budgets in tokens."""
    seq_len: int = 4096
    """Training tokens per sequence, at least 1."""
    max_epochs: float = 1.0
    """Most passes over each source, above 0."""


def main(argv: Sequence[str]) -> int | None:
    """Run the verb; returns 0. ValueError for bad input and, after the table, for a plan the sources cannot serve."""
    if argv and argv[0] == "paper":
        return _paper(argv[1:])
    args = parse_args(MixArgs, argv, prog=f"{PROG} [paper]")
    mixture = build_mixture(args.sources, args.stages, args.on_exhaustion)
    seq_len = validate_count("seq_len", args.seq_len, at_least=1)
    num_sequences = _budget(args, seq_len)
    part = build_part(args.sources, _common_part(args.part))
    lengths = _count_tokens(args.sources)
    plan = plan_report(lengths, mixture, num_sequences, seq_len, schedule=args.schedule, validate=False, part=part)
    print(f"{plan.num_sequences:,} sequences of {seq_len:,} = {plan.num_tokens:,} training tokens")
    if not mixture.is_constant:
        for name, span in zip(args.stages or ["all"], mixture.course(num_sequences, seq_len).spans, strict=True):
            print(f"stage {name} from {span.start:,}: {span.in_words()}")
    print(plan)
    for line in plan.sources:
        if (own := part_of(part, line.name)) is not None:
            whole = count_windows(line.num_tokens, seq_len)
            print(f"source {line.name!r}: part {own}, {line.available_sequences:,} of its {whole:,} sequences")
    plan.validate()
    if not plan.exhaustions:
        lasts = f"; this mixture of these sources lasts {plan.max_num_sequences:,} sequences" * mixture.is_constant
        print(f"feasible{lasts}")
    return 0


def _paper(argv: Sequence[str]) -> int:
    args = parse_args(PaperArgs, argv, prog=f"{PROG} paper")
    if build_part(args.sources) is not None:
        raise ValueError("the pool is told by whole sources: leave sources.<name>.part out, or give tokens.<name>")
    pool = {name: parse_tokens(count) for name, count in args.tokens.items()} | _count_tokens(args.sources)
    if not pool:
        raise ValueError("no pool: name tokens.cc=2T tokens.hq=100B ..., or sources.cc.path=shards/cc ...")
    budgets = [parse_tokens(budget) for budget in args.budgets]
    natural = args.natural or next(iter(pool))
    print(fit_pool(pool, natural, budgets=budgets, seq_len=args.seq_len, max_epochs=args.max_epochs))
    return 0


def _common_part(part: str) -> Fraction | None:
    share = parse_ratio(part)
    if not 0 < share <= 1:
        raise ValueError(f"part is the share of every source's windows that is read, above 0 and at most 1; got {part}")
    return None if share == 1 else share


def _budget(args: MixArgs, seq_len: int) -> int:
    if (args.num_tokens is None) == (args.num_sequences is None):
        raise ValueError("give the budget once: num_tokens=... or num_sequences=...")
    if args.num_sequences is not None:
        return validate_count("num_sequences", args.num_sequences, at_least=1)
    assert args.num_tokens is not None, "one of the two is given"
    return -(-validate_count("num_tokens", args.num_tokens, at_least=1) // seq_len)


def _count_tokens(sources: Mapping[str, SourceArgs]) -> dict[str, int]:
    from lingua_synth.tokens import TokenSource

    counted = {}
    for name, source in sources.items():
        if not source.path:
            raise ValueError(f"sources.{name}.path is not set: the folder of its token shards")
        try:
            counted[name] = TokenSource(source.path).num_tokens
        except ValueError as error:
            raise ValueError(f"source {name!r}: {error}") from None
    return counted
