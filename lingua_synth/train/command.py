"""`lingua-synth train`, and the same program under torchrun: `torchrun ... -m lingua_synth.train config=FILE
key=value`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lingua_synth.config import parse_args
from lingua_synth.train.args import TrainArgs
from lingua_synth.train.folder import RESULT
from lingua_synth.train.hosts import train


def main(argv: Sequence[str]) -> int:
    """Train one run, or say that it is finished. A run that a signal stops leaves with 128 + the signal's number."""
    args = parse_args(TrainArgs, argv, prog="lingua-synth train")
    if args.synth.deterministic:
        # cuBLAS reads it when it is loaded.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    is_main = int(os.environ.get("RANK", 0)) == 0
    finished = os.path.isfile(os.path.join(args.dump_dir, RESULT))
    try:
        row = train(args)
    except SystemExit as left:
        if is_main:
            print(left, file=sys.stderr)
        raise
    if is_main:
        losses = {key: value for key, value in row.items() if key.startswith("loss_")}
        print(
            f"{row['run_id']}: {'already finished' if finished else 'finished'}, {row['tokens']:,} tokens, in "
            f"{args.dump_dir}"
        )
        for key, value in losses.items():
            print(f"  {key} {value:.4f} nats per token")
    return 0
