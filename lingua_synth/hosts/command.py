"""`lingua-synth resolve config=FILE [out=FILE] [num_ranks=N]`: the run as a plain YAML for stock Meta Lingua."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lingua_synth.config import parse_args
from lingua_synth.files import atomic_file
from lingua_synth.train.args import TrainArgs


@dataclass
class ResolveArgs(TrainArgs):
    """Print a training config as a plain YAML that stock Meta Lingua takes. The keys are those of `train`, and two."""

    num_ranks: int = 1
    """GPUs the run will have; decides grad_acc_steps where synth.global_batch_tokens is set."""
    out: str = ""
    """File to write; empty: print."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; ValueError for what Lingua cannot do."""
    args = parse_args(ResolveArgs, argv, prog="lingua-synth resolve")
    from lingua_synth.hosts.resolve import resolve, without_resolve_keys

    resolved = resolve(without_resolve_keys(args), num_ranks=args.num_ranks)
    if not args.out:
        print(resolved.to_yaml(), end="")
        return 0
    with atomic_file(args.out) as file:
        file.write(resolved.to_yaml())
    print(f"{args.out}: {resolved.summary}")
    for note in resolved.notes:
        print(f"  {note}")
    return 0
