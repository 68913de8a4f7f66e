"""`torchrun -m lingua_synth.evaluate`: ranks share the batches and nothing else."""

import subprocess
import sys

import numpy as np
import pytest

from lingua_synth.evaluate import read_evaluation
from lingua_synth.evaluate.command import main
from lingua_synth.train import train


def torchrun(num_ranks, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command += ["-m", "lingua_synth.evaluate", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_any_number_of_ranks_gives_the_same_figures_to_the_bit(train_args, shards, tmp_path):
    train(train_args(), progress=False)
    words = [f"checkpoint={tmp_path / 'run'}", f"domains.near={shards['near']}", f"domains.far={shards['far']}"]
    words += ["device=cpu", "dtype=fp32", "bootstrap.resamples=100"]
    # 7 batches or so: not a multiple of the ranks.
    words += ["batch_tokens=500", "max_tokens_per_domain=1500"]
    assert main([*words, f"out={tmp_path / '1'}"]) == 0
    for num_ranks in (2, 4):
        done = torchrun(num_ranks, *words, f"out={tmp_path / str(num_ranks)}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("loss_macro") == 1, "one rank prints"
    first = read_evaluation(tmp_path / "1")
    for name in ("2", "4"):
        other = read_evaluation(tmp_path / name)
        assert other.record == first.record
        for domain in (None, "near", "far"):
            one, two = first.token_losses(domain), other.token_losses(domain)
            assert np.array_equal(one.counts, two.counts) and np.array_equal(one.nats, two.nats)
