"""The real loop under torchrun: ranks are only another way to cut the same batch."""

import subprocess
import sys

import pytest

from lingua_synth.config import dump_args
from lingua_synth.files import read_json
from lingua_synth.train import train
from lingua_synth.train.metrics import read_metrics


def torchrun(config, num_ranks, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command += ["-m", "lingua_synth.train", f"config={config}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def column(run_dir, key):
    return [record[key] for record in read_metrics(run_dir / "metrics.jsonl")]


@pytest.mark.slow
def test_two_ranks_equal_one_with_two_accumulation_steps(train_args, tmp_path):
    one = train_args(dump_dir=tmp_path / "one")
    row = train(one, progress=False)
    assert read_json(tmp_path / "one" / "checkpoints" / f"{12:010d}" / "params.json")["grad_acc_steps"] == 2
    dump_args(train_args(dump_dir=tmp_path / "two"), tmp_path / "two.yaml")
    result = torchrun(tmp_path / "two.yaml", 2)
    assert result.returncode == 0, result.stderr[-3000:]
    assert read_json(tmp_path / "two" / "checkpoints" / f"{12:010d}" / "params.json")["grad_acc_steps"] == 1

    first, second = column(tmp_path / "one", "loss/mean"), column(tmp_path / "two", "loss/mean")
    assert len(first) == len(second) == 12
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) < 1e-6
    for key in ("data/tokens/natural", "data/tokens/synthetic", "optim/lr", "optim/total_tokens"):
        assert column(tmp_path / "one", key) == column(tmp_path / "two", key)
    other = read_json(tmp_path / "two" / "result.json")
    assert abs(row["loss_macro"] - other["loss_macro"]) < 1e-6
    assert (row["tokens_natural"], row["tokens"]) == (other["tokens_natural"], other["tokens"])


@pytest.mark.slow
def test_a_run_begun_on_one_rank_goes_on_with_two(train_args, tmp_path):
    whole = train_args(dump_dir=tmp_path / "whole")
    train(whole, progress=False)
    parts = train_args(dump_dir=tmp_path / "parts")
    train(parts, progress=False)
    # As if killed after the checkpoint of step 10.
    (tmp_path / "parts" / "result.json").unlink()
    import shutil

    shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"{12:010d}")
    dump_args(parts, tmp_path / "parts.yaml")
    result = torchrun(tmp_path / "parts.yaml", 2)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = column(tmp_path / "whole", "loss/mean"), column(tmp_path / "parts", "loss/mean")
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) < 1e-6


@pytest.mark.slow
def test_bad_input_under_torchrun_is_a_message_too(train_args, tmp_path):
    dump_args(train_args(), tmp_path / "bad.yaml")
    result = torchrun(tmp_path / "bad.yaml", 2, "synth.global_batch_tokens=300")
    assert result.returncode != 0
    assert "error: synth.global_batch_tokens 300 is not a whole number of micro-batches" in result.stderr
