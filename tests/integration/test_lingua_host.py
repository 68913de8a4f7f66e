"""`host=lingua` on a CPU: the same run in Meta Lingua's loop as in ours, in any order, killed or not."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

sys.path.insert(0, str(Path(__file__).parents[1]))
import lingua_cpu

from lingua_synth.config import dump_args
from lingua_synth.files import read_json
from lingua_synth.train import train as train_somewhere
from lingua_synth.train.metrics import read_metrics

pytestmark = [
    pytest.mark.skipif(not lingua_cpu.LINGUA_DIR, reason="LINGUA_DIR names no checkout of Meta Lingua"),
    pytest.mark.slow,
]


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


@pytest.mark.parametrize("batch_size", [4, 2], ids=["2x1", "2x2"])
def test_two_ranks_in_lingua_s_loop_are_one_in_ours(lingua, train_args, tmp_path, batch_size):
    train(train_args(NATIVE, dump_dir=tmp_path / "native"))
    dump_args(
        train_args(LINGUA, {"data": {"batch_size": batch_size}}, dump_dir=tmp_path / "two"), tmp_path / "two.yaml"
    )
    done = torchrun(2, f"config={tmp_path / 'two.yaml'}")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    for key in ("loss/mean", "optim/grad_norm", "loss/source/synthetic"):
        assert np.abs(column(tmp_path / "native", key) - column(tmp_path / "two", key)).max() < 1e-6, key
    assert (column(tmp_path / "native", "data/tokens/natural") == column(tmp_path / "two", "data/tokens/natural")).all()
    one, two = read_json(tmp_path / "native" / "result.json"), read_json(tmp_path / "two" / "result.json")
    assert abs(one["loss_macro"] - two["loss_macro"]) < 1e-6

    if batch_size == 4:  # and it goes on with another number of ranks
        forget_from(tmp_path / "two", 6)
        train(train_args(LINGUA, dump_dir=tmp_path / "two"))
        assert np.abs(column(tmp_path / "native", "loss/mean") - column(tmp_path / "two", "loss/mean")).max() < 1e-6
        forget_from(tmp_path / "two", 6)
        (tmp_path / "two" / "checkpoints" / f"{5:010d}" / "train_state_00001.json").unlink()
        done = torchrun(2, f"config={tmp_path / 'two.yaml'}")
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        assert np.abs(column(tmp_path / "native", "loss/mean") - column(tmp_path / "two", "loss/mean")).max() < 1e-6


def leave_at(process, run_dir, step, number):
    """Send a signal once the checkpoint of `step` is there; returns what the process said."""
    deadline = time.monotonic() + 300
    while not (run_dir / "checkpoints" / f"{step:010d}").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.002)
    process.send_signal(number)
    return process.communicate(timeout=300)[1]


def test_killed_at_some_moment_it_ends_with_the_same_bits(lingua, train_args, tmp_path):
    slow = {"synth": {"tokens": 40 * 256}, "data": {"batch_size": 2}}
    train(train_args(LINGUA, slow, dump_dir=tmp_path / "whole"))
    args = train_args(LINGUA, slow, dump_dir=tmp_path / "parts")
    dump_args(args, tmp_path / "parts.yaml")
    command = [sys.executable, lingua_cpu.__file__, "ours", f"config={tmp_path / 'parts.yaml'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    leave_at(process, tmp_path / "parts", 10, signal.SIGKILL)
    assert not (tmp_path / "parts" / "result.json").exists()
    train(args)
    for key in ("loss/out", "loss/mean", "optim/lr"):
        assert (column(tmp_path / "parts", key) == column(tmp_path / "whole", key)).all(), key


def test_told_to_leave_under_torchrun_all_ranks_save_the_same_step(lingua, train_args, tmp_path):
    slow = {"synth": {"tokens": 40 * 256}, "data": {"batch_size": 2}}
    train(train_args(NATIVE, slow, dump_dir=tmp_path / "whole"))
    args = train_args(LINGUA, slow, dump_dir=tmp_path / "parts")
    dump_args(args, tmp_path / "parts.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [lingua_cpu.__file__, "ours", f"config={tmp_path / 'parts.yaml'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = leave_at(process, tmp_path / "parts", 10, signal.SIGTERM)
    assert process.returncode not in (0, None)
    newest = max(int(path.name) for path in (tmp_path / "parts" / "checkpoints").iterdir())
    assert 10 <= newest < 40 and f"signal 15 at step {newest} of 40; the checkpoint is written" in said
    states = [tmp_path / "parts" / "checkpoints" / f"{newest:010d}" / f"train_state_0000{rank}.json" for rank in (0, 1)]
    assert [(state["step"], state["acc_step"]) for state in map(read_json, states)] == [(newest, 0)] * 2
    train(args)
    assert np.abs(column(tmp_path / "parts", "loss/mean") - column(tmp_path / "whole", "loss/mean")).max() < 1e-6


def test_a_run_killed_after_its_last_checkpoint_is_finished_without_a_step(lingua, train_args, tmp_path):
    row = train(train_args(LINGUA))
    (tmp_path / "run" / "result.json").unlink()
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = train(train_args(LINGUA))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert {k: v for k, v in again.items() if k != "wall_s"} == {k: v for k, v in row.items() if k != "wall_s"}


@pytest.mark.parametrize("begins", [False, True], ids=["resumed", "initial weights"])
def test_a_checkpoint_that_would_run_code_is_not_handed_to_lingua(lingua, train_args, tmp_path, begins):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    train(train_args(LINGUA))
    forget_from(tmp_path / "run", 11)
    (newest,) = (tmp_path / "run" / "checkpoints").glob("*10")
    (newest / ".metadata").write_bytes(pickle.dumps(Runs()))
    change = {"checkpoint": {"init_ckpt_path": str(newest)}} if begins else {}
    with pytest.raises(ValueError, match="not the description of a checkpoint alone"):
        train(train_args(LINGUA, change, dump_dir=tmp_path / ("other" if begins else "run")))
    assert not (tmp_path / "ran").exists()


def test_strict_upstream_keeps_the_first_step_at_rate_zero(lingua, train_args, tmp_path):
    strict = {"synth": {"strict_upstream": True}, "checkpoint": {"dump": {"every": 5, "keep": 0}}}
    train(train_args(LINGUA, strict, dump_dir=tmp_path / "whole"))
    train(train_args(LINGUA, strict))
    forget_from(tmp_path / "run", 11)
    train(train_args(LINGUA, strict))
    # Lingua logs the steps after the checkpoint once more, and takes the first of them at rate 0.
    steps, rates = column(tmp_path / "run", "global_step"), column(tmp_path / "run", "optim/lr")
    assert steps.tolist() == [*range(1, 13), 11, 12]
    assert rates[12] == 0 and rates[10] > 0
    assert "corrected: " not in (tmp_path / "run" / "train.log").read_text()
    assert "left as in Meta Lingua: learning rate on resume" in (tmp_path / "run" / "train.log").read_text()


def test_everything_is_put_back_also_after_an_error(lingua, train_args, tmp_path, monkeypatch):
    import gc
    import logging
    import multiprocessing

    before = dict(vars(lingua.train))
    state = dict(os.environ), list(logging.getLogger().handlers), gc.isenabled(), multiprocessing.get_start_method(True)
    handler = signal.getsignal(signal.SIGTERM)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lingua.checkpoint.json, "dump", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(train_args(LINGUA))
    assert {k: v for k, v in vars(lingua.train).items() if before.get(k) is not v} == {}
    after = dict(os.environ), list(logging.getLogger().handlers), gc.isenabled(), multiprocessing.get_start_method(True)
    assert after == state
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not torch.distributed.is_initialized()


def test_a_full_disk_leaves_the_earlier_checkpoint(lingua, train_args, tmp_path, monkeypatch):
    expected = train(train_args(LINGUA, dump_dir=tmp_path / "whole"))
    real, calls = lingua.checkpoint.dcp.save, []

    def full_disk(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise CheckpointException("write", {0: (OSError(28, "No space left on device"), None)})
        return real(*args, **kwargs)

    monkeypatch.setattr(lingua.checkpoint.dcp, "save", full_disk)
    with pytest.raises(OSError, match=r"step 10 could not be written .*No space left.*earlier checkpoints are whole"):
        train(train_args(LINGUA))
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [f"{5:010d}"]
    assert train(train_args(LINGUA))["loss_macro"] == expected["loss_macro"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{step:010d}" for step in (5, 10, 12)]


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(lingua, train_args, tmp_path):
    with pytest.raises(ValueError, match=r"test: the loss is (nan|inf) at step \d+ \(since the last log line: global"):
        train(train_args(LINGUA, {"optim": {"lr": 1e30, "clip": 1e30, "warmup": 0}, "synth": {"warmup_ratio": None}}))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(np.isfinite(record["loss/mean"]) for record in records)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        assert int(path.name) <= records[-1]["global_step"]


@pytest.mark.parametrize(
    "change",
    [
        {"distributed": {"model_dtype": "bf16"}},
        {"distributed": {"selective_activation_checkpointing": True}},
        {"synth": {"loss": {"backend": "chunked", "chunk_tokens": 100}}},
        {"model": {"n_kv_heads": 1, "head_dim": 24, "init_std_factor": "global_depth"}},
        {"logging": {"freq": 4, "acc_freq": None}, "data": {"batch_size": 4}},
    ],
    ids=["bf16", "recomputed", "chunked", "heads", "intervals"],
)
def test_every_way_to_run_gives_the_native_losses(lingua, train_args, tmp_path, change):
    train(train_args(NATIVE, change, dump_dir=tmp_path / "native"))
    train(train_args(LINGUA, change, dump_dir=tmp_path / "lingua"))
    assert (column(tmp_path / "native", "global_step") == column(tmp_path / "lingua", "global_step")).all()
    tolerance = 3e-2 if "model_dtype" in change.get("distributed", {}) else 1e-6
    for key in ("loss/mean", "loss/source/natural"):
        assert np.abs(column(tmp_path / "native", key) - column(tmp_path / "lingua", key)).max() < tolerance, key


def test_sharded_it_goes_on_from_a_whole_model_s_checkpoint(train_args, tmp_path):
    """The loss inside `output` finds its weight gathered. (From scratch, Lingua draws other weights on CPU shards.)"""
    changes = {"synth": {"evaluation": {"every": 11}}}
    whole = train(train_args(NATIVE, changes, dump_dir=tmp_path / "native"))
    train(train_args(NATIVE, changes, dump_dir=tmp_path / "parts"))
    forget_from(tmp_path / "parts", 11)
    sharded = {"distributed": {"fsdp_type": "full_shard"}, "data": {"batch_size": 2}}
    dump_args(train_args(LINGUA, changes, sharded, dump_dir=tmp_path / "parts"), tmp_path / "parts.yaml")
    done = torchrun(2, f"config={tmp_path / 'parts.yaml'}")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    for key in ("loss/mean", "loss/source/natural", "optim/grad_norm", "optim/lr"):
        assert np.abs(column(tmp_path / "native", key) - column(tmp_path / "parts", key)).max() < 1e-6, key
    assert abs(read_json(tmp_path / "parts" / "result.json")["loss_macro"] - whole["loss_macro"]) < 1e-6


def test_lines_between_micro_batches_hold_those_micro_batches(lingua, train_args, tmp_path):
    train(train_args(NATIVE, {"data": {"batch_size": 4}}, dump_dir=tmp_path / "native"))
    args = train_args(LINGUA, {"data": {"batch_size": 4}, "logging": {"acc_freq": 1}}, dump_dir=tmp_path / "lingua")
    train(args)
    lines = column(tmp_path / "lingua", "loss/mean")
    assert np.abs(lines - column(tmp_path / "lingua", "loss/out")).max() < 1e-6
    assert np.abs(lines.reshape(12, 2).mean(axis=1) - column(tmp_path / "native", "loss/mean")).max() < 1e-6
