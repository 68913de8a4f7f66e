"""A training in a process of its own that ends as a machine that loses power would end it."""

import os
import subprocess
import sys
import time

from lingua_synth.config import dump_args


def train_and_kill(args, step=5):
    """Train the run of `args` in a process and `kill -9` it when its checkpoint of `step` is there."""
    config = f"{args.dump_dir}.yaml"
    dump_args(args, config)
    command = [sys.executable, "-m", "lingua_synth.train", f"config={config}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    checkpoint = f"{args.dump_dir}/checkpoints/{step:010d}"
    deadline = time.monotonic() + 300
    while not os.path.isdir(checkpoint):
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline, f"no {checkpoint} appeared"
        time.sleep(0.002)
    process.kill()
    process.communicate()
