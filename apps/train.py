"""`torchrun apps/train.py config=...`: the same program as `torchrun -m lingua_synth.train config=...`."""

import sys

from lingua_synth.config import run_command
from lingua_synth.train.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
