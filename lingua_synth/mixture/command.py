"""`lingua-synth mix`: what a mixture asks of its sources over a budget, before anything is trained.

lingua-synth mix sources.web.path=shards/web sources.web.ratio=2/3 sources.hq.path=shards/hq sources.hq.ratio=1/3 \\
    num_tokens=2_000_000_000
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lingua_synth.config import parse_args
from lingua_synth.mixture.args import SourceArgs
from lingua_synth.mixture.mixture import Mixture
from lingua_synth.mixture.plan import plan_report
from lingua_synth.mixture.ratios import validate_count

PROG = "lingua-synth mix"


@dataclass
class MixArgs:
    """Print asked, available and planned tokens per source, and where each source runs out. Trains nothing."""

    sources: dict[str, SourceArgs] = field(default_factory=dict)
    """Sources of the mixture; their ratios sum to exactly 1."""
    seq_len: int = 4096
    """Training tokens per sequence, at least 1."""
    num_tokens: int | None = None
    """Budget in training tokens, repeats counted; rounded up to whole sequences."""
    num_sequences: int | None = None
    """Budget in sequences, instead of num_tokens."""


def main(argv: Sequence[str]) -> int | None:
    """Run the verb; returns 0. ValueError for bad input and, after the table, for a plan the sources cannot serve."""
    args = parse_args(MixArgs, argv, prog=PROG)
    if not args.sources:
        raise ValueError("sources is empty: name at least one, e.g. sources.web.path=shards/web sources.web.ratio=1")
    seq_len = validate_count("seq_len", args.seq_len, at_least=1)
    num_sequences = _budget(args, seq_len)
    mixture = Mixture(
        {name: source.ratio for name, source in args.sources.items()},
        max_epochs={name: source.max_epochs for name, source in args.sources.items()},
    )
    lengths = {name: _count_tokens(name, source) for name, source in args.sources.items()}
    plan = plan_report(lengths, mixture, num_sequences, seq_len, validate=False)
    print(f"{plan.num_sequences:,} sequences of {seq_len:,} = {plan.num_tokens:,} training tokens")
    print(plan)
    plan.validate()
    print(f"feasible; this mixture of these sources lasts {plan.max_num_sequences:,} sequences")
    return 0


def _budget(args: MixArgs, seq_len: int) -> int:
    if (args.num_tokens is None) == (args.num_sequences is None):
        raise ValueError("give the budget once: num_tokens=... or num_sequences=...")
    if args.num_sequences is not None:
        return validate_count("num_sequences", args.num_sequences, at_least=1)
    assert args.num_tokens is not None, "one of the two is given"
    return -(-validate_count("num_tokens", args.num_tokens, at_least=1) // seq_len)


def _count_tokens(name: str, source: SourceArgs) -> int:
    from lingua_synth.tokens import TokenSource

    if not source.path:
        raise ValueError(f"sources.{name}.path is not set: the folder of its token shards")
    try:
        return TokenSource(source.path).num_tokens
    except ValueError as error:
        raise ValueError(f"source {name!r}: {error}") from None
