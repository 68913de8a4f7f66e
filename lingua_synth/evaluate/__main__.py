"""`python -m lingua_synth.evaluate` and `torchrun -m lingua_synth.evaluate`."""

import sys

from lingua_synth.config import run_command
from lingua_synth.evaluate.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
