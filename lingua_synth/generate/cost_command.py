"""`lingua-synth generate cost`: what synthetic text costs beside the trainings that read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lingua_synth.config import parse_args
from lingua_synth.generate.cost import GenerationRate, generation_cost, measured_rate


@dataclass
class CostArgs:
    """GPU-hours of generation beside GPU-hours of training."""

    run: str = ""
    """Folder of a generation run, whose own rate is used; else gpu_hours_per_billion is needed."""
    gpu_hours_per_billion: float | None = None
    """GPU-hours per billion tokens that the generator writes, e.g. 43 (8B, H100), 85 (7B, A100)."""
    keep_rate: float = 1.0
    """Share of the written tokens that filters keep."""
    sizes: list[str] = field(default_factory=lambda: ["1B"])
    """Models to train, by preset."""
    tokens: float = 0.0
    """Training tokens of a run."""
    ratio: float = 0.33
    """Synthetic share of these tokens."""
    runs: int = 1
    """Trainings that read the same synthetic text."""
    epochs: float = 1.0
    """How often one run reads it."""
    tokens_ratio: float = 1.0
    """The generator's tokens per token of the training's vocabulary."""
    gpu: str = "H100"
    """The training's GPU."""
    mfu: float = 0.4
    """The training's model FLOPs utilization."""
    seq_len: int = 4096
    """The training's sequence length."""


def main(argv: Sequence[str]) -> int:
    """Print the costs."""
    args = parse_args(CostArgs, argv, prog="lingua-synth generate cost")
    if not args.tokens:
        raise ValueError("tokens= is not set: the training tokens of one run, e.g. tokens=200e9")
    if args.run and args.gpu_hours_per_billion is not None:
        raise ValueError("give run=, for a measured rate, or gpu_hours_per_billion=, not both")
    if args.run:
        rate = measured_rate(args.run)
    elif args.gpu_hours_per_billion is not None:
        rate = GenerationRate(args.gpu_hours_per_billion, args.keep_rate, "given")
    else:
        raise ValueError(
            "the generator's rate is not known: run=, the folder of a generation run, or gpu_hours_per_billion="
        )
    for number, size in enumerate(args.sizes):
        cost = generation_cost(
            rate,
            size=size,
            tokens=args.tokens,
            ratio=args.ratio,
            runs=args.runs,
            epochs=args.epochs,
            tokens_ratio=args.tokens_ratio,
            gpu=args.gpu,
            mfu=args.mfu,
            seq_len=args.seq_len,
        )
        print(("\n" if number else "") + str(cost))
    return 0
