"""`python -m lingua_synth.train` and `torchrun -m lingua_synth.train`."""

import sys

from lingua_synth.config import run_command
from lingua_synth.train.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
