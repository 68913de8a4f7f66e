"""`host=lingua` on a CPU: the same run in Meta Lingua's loop as in ours, in any order, killed or not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import lingua_cpu

from lingua_synth.files import read_json
from lingua_synth.hosts import lingua as host
from lingua_synth.train import train as train_somewhere
from lingua_synth.train.metrics import read_metrics

pytestmark = [
    pytest.mark.skipif(not lingua_cpu.LINGUA_DIR, reason="LINGUA_DIR names no checkout of Meta Lingua"),
    pytest.mark.slow,
]


@pytest.fixture
def lingua(monkeypatch):
    modules = lingua_cpu.imported(monkeypatch)
    lingua_cpu.on_cpu(monkeypatch, modules)
    monkeypatch.setattr(host, "gpu", lambda local_rank: torch.device("cpu"))
    return modules


def train(args):
    return train_somewhere(args, progress=False)


def torchrun(num_ranks, *words, host_name="lingua"):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command += [lingua_cpu.__file__, "ours"] if host_name == "lingua" else ["-m", "lingua_synth.train"]
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=200)


def column(run_dir, key):
    return np.array([record[key] for record in read_metrics(Path(run_dir) / "metrics.jsonl")])


def forget_from(run_dir, step):
    """As if killed before the checkpoint of `step`: it, later ones and the row are gone."""
    (Path(run_dir) / "result.json").unlink(missing_ok=True)
    for folder in (Path(run_dir) / "checkpoints").iterdir():
        if int(folder.name) >= step:
            shutil.rmtree(folder)


LINGUA = {"host": "lingua", "data": {"batch_size": 8}}
NATIVE = {"host": "native", "data": {"batch_size": 8}}


def test_one_config_trains_alike_in_both_loops(lingua, train_args, tmp_path):
    evaluated = {"synth": {"evaluation": {"every": 5}}}
    ours = train(train_args(NATIVE, evaluated, dump_dir=tmp_path / "native"))
    theirs = train(train_args(LINGUA, evaluated, dump_dir=tmp_path / "lingua"))
    assert set(ours) == set(theirs)
    for key, value in ours.items():
        if key.startswith(("loss_", "bpb_")):
            assert abs(theirs[key] - value) < 1e-6, key
        elif key not in ("wall_s", "config_sha256"):
            assert theirs[key] == value, key
    assert theirs["config_sha256"] == ours["config_sha256"]
    assert read_json(tmp_path / "lingua" / "result.json") == theirs
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("native", "lingua"))
    assert [record["global_step"] for record in other] == list(range(1, 13))
    assert all(set(a) == set(b) for a, b in zip(one, other, strict=True))
    for key in ("loss/out", "loss/mean", "loss/source/natural", "optim/grad_norm"):
        assert np.abs(column(tmp_path / "native", key) - column(tmp_path / "lingua", key)).max() < 1e-6, key
    for key in ("data/tokens/natural", "data/epochs/synthetic", "optim/total_tokens"):
        assert (column(tmp_path / "native", key) == column(tmp_path / "lingua", key)).all(), key
    one, other = (read_metrics(tmp_path / name / "metrics.validation.jsonl") for name in ("native", "lingua"))
    assert [record["global_step"] for record in other] == [5, 10, 12]
    for a, b in zip(one, other, strict=True):
        assert abs(a["near"]["nll_per_token"] - b["near"]["nll_per_token"]) < 1e-6
        assert a["near"]["tokens"] == b["near"]["tokens"]
    assert (tmp_path / "lingua" / "train.log").read_text().count("corrected: ") == 10
    assert "ENV: " not in (tmp_path / "lingua" / "train.log").read_text()
    # Starting it again changes nothing.
    before = os.stat(tmp_path / "lingua" / "metrics.jsonl").st_mtime_ns
    assert train(train_args(LINGUA, evaluated, dump_dir=tmp_path / "lingua")) == theirs
    assert os.stat(tmp_path / "lingua" / "metrics.jsonl").st_mtime_ns == before


@pytest.mark.parametrize(("first", "second"), [(NATIVE, LINGUA), (LINGUA, NATIVE), (LINGUA, LINGUA)])
@pytest.mark.parametrize("change", [{}, {"model": {"weight_tying": True}}], ids=["untied", "tied"])
def test_each_loop_goes_on_from_the_checkpoint_of_the_other(lingua, train_args, tmp_path, first, second, change):
    whole = train(train_args(first, change, dump_dir=tmp_path / "whole"))
    parts = tmp_path / "parts"
    train(train_args(first, change, dump_dir=parts))
    forget_from(parts, 11)
    row = train(train_args(second, change, dump_dir=parts))
    for key in ("loss/out", "loss/mean", "optim/grad_norm", "optim/lr"):
        found, expected = column(parts, key), column(tmp_path / "whole", key)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-6, key
    assert abs(row["loss_macro"] - whole["loss_macro"]) < 1e-6
