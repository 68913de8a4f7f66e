"""Leaving a run early: signals, SLURM's queue, checkpoints in the background, disks that are full."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from lingua_synth.config import dump_args
from lingua_synth.model.distributed import leave_process_group
from lingua_synth.train import loop, train
from lingua_synth.train.metrics import read_metrics
from lingua_synth.train.preemption import Preempted, Preemption, requeue_slurm_job

LONG = {"synth": {"tokens": 40 * 256}, "checkpoint": {"dump": {"every": 0}}}


def losses(run_dir):
    return [record["loss/mean"] for record in read_metrics(Path(run_dir) / "metrics.jsonl")]


def after_steps(monkeypatch, steps, number):
    """Send this process a signal once so many steps were taken."""
    real, calls = loop.clip_gradients, []

    def clip(model, largest):
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), number)
        return real(model, largest)

    monkeypatch.setattr(loop, "clip_gradients", clip)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_ends_in_a_checkpoint_and_the_run_goes_on_from_it(train_args, tmp_path, monkeypatch, number):
    train(train_args(dump_dir=tmp_path / "whole"), progress=False)
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        after_steps(patch, 7, number)
        with pytest.raises(Preempted, match=r"at step 7 of 12; the checkpoint is written") as left:
            train(train_args(), progress=False)
    assert left.value.code == 128 + number and signal.getsignal(number) == handler
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints"))[-1] == f"{7:010d}"
    assert not (tmp_path / "run" / "result.json").exists()
    train(train_args(), progress=False)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_process_that_is_told_to_leave_does_so_with_its_exit_code(train_args, tmp_path):
    dump_args(train_args(LONG, {"synth": {"tokens": 4000 * 256, "on_exhaustion": "repeat"}}), tmp_path / "run.yaml")
    command = [sys.executable, "-m", "lingua_synth.train", f"config={tmp_path / 'run.yaml'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(losses(tmp_path / "run")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "no step was logged"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert "the same command goes on from it" in process.stderr.read()
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["global_step"]
    assert os.listdir(tmp_path / "run" / "checkpoints") == [f"{last:010d}"]


def test_a_thread_that_cannot_hear_signals_trains_all_the_same():
    import threading

    heard = []

    def inside():
        with Preemption() as preemption:
            heard.append(preemption.signal)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert heard == [0]


def test_a_job_is_put_back_into_the_queue(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "not under SLURM" in requeue_slurm_job()
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no scontrol" in requeue_slurm_job()
    fake = tmp_path / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    fake.chmod(0o755)
    assert requeue_slurm_job() == "SLURM job 4711 is back in the queue"
    assert (tmp_path / "called").read_text() == "requeue 4711\n"
    fake.write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    assert "failed: no such job" in requeue_slurm_job()


BACKGROUND = {"synth": {"async_checkpoint": True}}


def test_checkpoints_in_the_background_are_the_same(train_args, tmp_path):
    row = train(train_args(dump_dir=tmp_path / "a"), progress=False)
    other = train(train_args(BACKGROUND, dump_dir=tmp_path / "b"), progress=False)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert row["loss_macro"] == other["loss_macro"]
    names = [sorted(os.listdir(tmp_path / run / "checkpoints")) for run in "ab"]
    assert names[0] == names[1] == [f"{10:010d}", f"{12:010d}"]
    from lingua_synth.model import load_checkpoint

    weights = [load_checkpoint(tmp_path / run / "checkpoints" / f"{10:010d}")[0].state_dict() for run in "ab"]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_the_weights_of_a_background_checkpoint_are_of_its_step(train_args, tmp_path, monkeypatch):
    """The state is copied before the next step changes it: a writer that is late writes the old weights."""
    real = dcp.FileSystemWriter.write_data

    def slow(self, plan, planner):
        time.sleep(0.4)
        return real(self, plan, planner)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", slow)
    train(train_args(BACKGROUND, dump_dir=tmp_path / "late"), progress=False)
    monkeypatch.undo()
    train(train_args(dump_dir=tmp_path / "plain"), progress=False)
    from lingua_synth.model import load_checkpoint

    late, plain = (
        load_checkpoint(tmp_path / run / "checkpoints" / f"{10:010d}")[0].state_dict() for run in ("late", "plain")
    )
    assert all((late[name] == plain[name]).all() for name in late)


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(train_args, tmp_path, monkeypatch, background):
    real, calls = dcp.FileSystemWriter.write_data, []

    def full(self, plan, planner):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(self, plan, planner)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", full)
    args = train_args({"synth": {"async_checkpoint": background}})
    with pytest.raises(OSError, match=r"could not be written .*No space left.*earlier checkpoints are whole"):
        train(args, progress=False)
    assert os.listdir(tmp_path / "run" / "checkpoints") == [f"{5:010d}"]
    monkeypatch.undo()
    row = train(args, progress=False)
    assert row["loss_macro"] == train(train_args(dump_dir=tmp_path / "other"), progress=False)["loss_macro"]


def test_the_scheduler_state_is_what_torch_expects(train_args, tmp_path):
    """Lingua's loop gives it to a LambdaLR; the learning rate it then has is ours."""
    import torch

    from lingua_synth.train.schedule import learning_rate_ratio

    args = train_args()
    train(args, progress=False)
    state = json.loads((tmp_path / "run" / "checkpoints" / f"{10:010d}" / "train_state_00000.json").read_text())
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=args.optim.lr)
    resolved = loop.resolve_args(args, dp_size=1, vocab_size=258)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: learning_rate_ratio(s, resolved.optim, 12))
    assert set(state["scheduler"]) == set(scheduler.state_dict())
    scheduler.load_state_dict(state["scheduler"])
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-3 * learning_rate_ratio(11, resolved.optim, 12))


def test_tensorboard_gets_the_numbers(train_args, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(train_args({"logging": {"tensorboard": True}}), progress=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [event.value for event in events.Scalars("loss/mean")]
    assert found == pytest.approx(losses(tmp_path / "run"))
    assert [event.step for event in events.Scalars("validation/near")] == [12]


def test_a_tracker_that_is_not_installed_is_named(train_args, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"logging\.wandb needs wandb"):
        train(train_args({"logging": {"wandb": {"project": "p"}}}), progress=False)


def test_wandb_gets_the_run_and_its_numbers(train_args, monkeypatch, tmp_path):
    import types

    seen = types.SimpleNamespace(init=None, lines=[], finished=False)

    class Run:
        def log(self, numbers, step):
            seen.lines.append((step, numbers.get("loss/mean")))

        def finish(self):
            seen.finished = True

    def init(**settings):
        seen.init = settings
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    train(train_args({"logging": {"wandb": {"project": "p", "mode": "offline"}}}), progress=False)
    assert (seen.init["project"], seen.init["name"], seen.init["config"]["optim"]["lr"]) == ("p", "test", 3e-3)
    assert [loss for _, loss in seen.lines if loss is not None] == losses(tmp_path / "run") and seen.finished


def join_and_leave(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 4)
    for time_number in range(40):
        dist.init_process_group("gloo", store=dist.PrefixStore(str(time_number), store), rank=rank, world_size=4)
        model = DistributedDataParallel(torch.nn.Linear(64, 64))
        model(torch.zeros(4, 64)).sum().backward()
        dist.barrier()
        leave_process_group()
        del model  # with dist.destroy_process_group alone, some rank of the first few times waits here for ever


@pytest.mark.slow
def test_a_model_that_outlives_its_process_group_does_not_hang(tmp_path):
    ranks = mp.spawn(join_and_leave, args=(str(tmp_path),), nprocs=4, join=False)
    try:
        ended, deadline = False, time.monotonic() + 240
        while not ended:
            assert time.monotonic() < deadline, "a rank hangs"
            ended = ranks.join(timeout=5)
    finally:
        for process in ranks.processes:
            process.kill()
