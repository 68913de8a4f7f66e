"""`lingua-synth train`, and the same program under torchrun: `torchrun ... -m lingua_synth.train config=FILE
key=value`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lingua_synth.config import parse_args
from lingua_synth.train.args import TrainArgs
from lingua_synth.train.folder import RESULT


def main(argv: Sequence[str]) -> int:
    """Train one run, or say that it is finished."""
    args = parse_args(TrainArgs, argv, prog="lingua-synth train")
    from lingua_synth.train.loop import train

    finished = os.path.isfile(os.path.join(args.dump_dir, RESULT))
    row = train(args)
    if int(os.environ.get("RANK", 0)) == 0:
        losses = {key: value for key, value in row.items() if key.startswith("loss_")}
        print(
            f"{row['run_id']}: {'already finished' if finished else 'finished'}, {row['tokens']:,} tokens, in "
            f"{args.dump_dir}"
        )
        for key, value in losses.items():
            print(f"  {key} {value:.4f} nats per token")
    return 0
