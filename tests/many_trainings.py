"""Several trainings by the ranks of one torchrun: what takes long at this size is importing torch, once a rank here.

Run as `torchrun ... tests/many_trainings.py LISTS`, LISTS a JSON file of command lines for `lingua_synth.train`.
Each training is a fork of a rank that has imported everything and computed nothing, so it starts as a process of its
own would: no threads, no settings of the one before.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch.distributed as dist

from lingua_synth.config import run_command
from lingua_synth.train import loop  # noqa: F401 - what a training imports
from lingua_synth.train.command import main


def train(number, words):
    """The exit code of one training, whose ranks meet apart from those of the trainings before."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", store=dist.PrefixStore(f"training {number}", store), rank=rank, world_size=size)
    return run_command(main, words)


if __name__ == "__main__":
    for number, words in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        child = os.fork()
        if not child:
            code = 1
            try:
                code = train(number, words)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"training {number} of {sys.argv[1]} ended with {code}: {' '.join(words)}")
