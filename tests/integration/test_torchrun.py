"""The real loop under torchrun: ranks, whole models or sharded ones, are only other ways to cut the same batch."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import many_trainings
import pytest

from lingua_synth.config import dump_args
from lingua_synth.documents import Document
from lingua_synth.files import read_json
from lingua_synth.train import train
from lingua_synth.train.metrics import read_metrics


def torchrun(config, num_ranks, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command += ["-m", "lingua_synth.train", f"config={config}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def column(run_dir, key):
    return [record[key] for record in read_metrics(run_dir / "metrics.jsonl")]


FULL_SHARD = "distributed.fsdp_type=full_shard"
LAYOUTS = {
    "two": (2, []),
    "two, sharded": (2, [FULL_SHARD]),
    "two, sharded again after forward": (
        2,
        [FULL_SHARD, "distributed.compile=false", "synth.reshard_after_forward=true", "data.batch_size=2"],
    ),
    "two, activations again": (
        2,
        ["distributed.selective_activation_checkpointing=true", "synth.async_checkpoint=true"],
    ),
    "four": (4, []),
    "four, sharded by two": (
        4,
        [FULL_SHARD, "distributed.dp_shard=2", "data.batch_size=1", "synth.async_checkpoint=true"],
    ),
}
"""Name -> ranks, and what the same run is told beside."""
ANSWERS = {"answers": [], "answers, sharded": [FULL_SHARD]}


@pytest.fixture(scope="module")
def one(nano_args, tmp_path_factory):
    """The run of one process that all layouts are held against."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(nano_args(folder), progress=False)
    return folder


@pytest.fixture(scope="module")
def answers_args(nano_args, tmp_path_factory):
    """A run whose micro-batches hold different numbers of scored tokens, as a function of its folder."""
    from lingua_synth.tokens import build_chat, build_tokenizer, tokenize

    folder = tmp_path_factory.mktemp("chats") / "chats"
    tokenizer = build_tokenizer("bytes")
    rows = [Document(str(i), "-", {"prompt": "q" * (i % 50), "completion": "a" * (1 + i % 7)}) for i in range(300)]
    tokenize(rows, folder, tokenizer, chat=build_chat(tokenizer), progress=False)
    mixed = {
        "synth": {
            "sources": {"natural": {"ratio": "1/3"}, "synthetic": {"path": str(folder), "ratio": "2/3"}},
            "document_masking": True,
        }
    }
    return lambda dump_dir: nano_args(dump_dir, mixed)


@pytest.fixture(scope="module")
def by_ranks(one, nano_args, answers_args, tmp_path_factory):
    """All trainings of so many ranks, by one torchrun: a folder of runs.

    A layout has its own run, and "NAME, gone on": `one`, killed after the checkpoint of step 10.
    """
    done = {}

    def folder_of(num_ranks):
        if num_ranks in done:
            return done[num_ranks]
        folder = done[num_ranks] = tmp_path_factory.mktemp(f"ranks{num_ranks}")
        trainings = []
        for name, (ranks, words) in LAYOUTS.items():
            if ranks == num_ranks:
                batch = {"data": {"batch_size": 8 // num_ranks}}
                dump_args(nano_args(folder / name, batch), folder / f"{name}.yaml")
                shutil.copytree(one, folder / f"{name}, gone on")
                cut_back(folder / f"{name}, gone on")
                again = f"dump_dir={folder / name}, gone on"
                trainings += [[f"config={folder / name}.yaml", *words, *more] for more in ([], [again])]
        if num_ranks == 2:
            for name, words in ANSWERS.items():
                dump_args(answers_args(folder / name), folder / f"{name}.yaml")
                trainings.append([f"config={folder / name}.yaml", *words])
        (folder / "trainings.json").write_text(json.dumps(trainings))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        command += [many_trainings.__file__, str(folder / "trainings.json")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert result.returncode == 0, result.stderr[-3000:]
        return folder

    return folder_of


def cut_back(run_dir, step=10, last=12):
    """As if killed after the checkpoint of `step`."""
    (run_dir / "result.json").unlink()
    shutil.rmtree(run_dir / "checkpoints" / f"{last:010d}")


def largest_difference(one, other):
    first, second = column(one, "loss/mean"), column(other, "loss/mean")
    assert len(first) == len(second) == 12
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


@pytest.mark.slow
def test_two_ranks_equal_one_with_two_accumulation_steps(one, by_ranks):
    two = by_ranks(2) / "two"
    for run_dir, steps in ((one, 2), (two, 1)):
        assert read_json(run_dir / "checkpoints" / f"{12:010d}" / "params.json")["grad_acc_steps"] == steps
    assert largest_difference(one, two) < 1e-6
    for key in ("data/tokens/natural", "data/tokens/synthetic", "optim/lr", "optim/total_tokens"):
        assert column(one, key) == column(two, key)
    row, other = (read_json(run_dir / "result.json") for run_dir in (one, two))
    assert abs(row["loss_macro"] - other["loss_macro"]) < 1e-6
    assert (row["tokens_natural"], row["tokens"]) == (other["tokens_natural"], other["tokens"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_learned_alike_on_one_rank_and_on_two(answers_args, by_ranks, tmp_path, name):
    """Micro-batches hold different numbers of scored tokens; every one of these counts the same."""
    row, two = train(answers_args(tmp_path / "one"), progress=False), by_ranks(2) / name
    assert largest_difference(tmp_path / "one", two) < 1e-5
    for key in ("data/scored_tokens/natural", "data/scored_tokens/synthetic"):
        assert column(tmp_path / "one", key) == column(two, key)
    norms = [column(run, "optim/grad_norm") for run in (tmp_path / "one", two)]
    assert max(abs(a - b) for a, b in zip(*norms, strict=True)) < 1e-4
    other = read_json(two / "result.json")
    assert row["scored_tokens"] == other["scored_tokens"] < row["tokens"]
    assert abs(row["loss_macro"] - other["loss_macro"]) < 1e-5


@pytest.mark.slow
def test_bad_input_under_torchrun_is_a_message_too(train_args, tmp_path):
    dump_args(train_args(), tmp_path / "bad.yaml")
    result = torchrun(tmp_path / "bad.yaml", 2, "synth.global_batch_tokens=300")
    assert result.returncode != 0
    assert "error: synth.global_batch_tokens 300 is not a whole number of micro-batches" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout_has_the_losses_of_one_process(one, by_ranks, train_args, tmp_path, name):
    folder = by_ranks(LAYOUTS[name][0])
    many, gone_on = folder / name, folder / f"{name}, gone on"
    assert largest_difference(one, many) < 1e-5
    norms = [column(run, "optim/grad_norm") for run in (one, many)]
    assert max(abs(a - b) for a, b in zip(*norms, strict=True)) < 1e-4
    row, other = (read_json(run_dir / "result.json") for run_dir in (one, many))
    assert abs(row["loss_macro"] - other["loss_macro"]) < 1e-5

    # A run begun in one process goes on in this layout, and the checkpoint of this one, sharded or not, in one process.
    assert largest_difference(one, gone_on) < (1e-6 if name == "two" else 1e-5)
    assert "resumed from" in (gone_on / "train.log").read_text()
    shutil.copytree(many, tmp_path / "run")
    cut_back(tmp_path / "run")
    train(train_args(), progress=False)
    assert largest_difference(one, tmp_path / "run") < 1e-5


@pytest.mark.slow
def test_all_ranks_leave_together_when_torchrun_is_told_to(train_args, tmp_path):
    forever = {"synth": {"tokens": 100_000 * 256, "on_exhaustion": "repeat"}, "checkpoint": {"dump": {"every": 0}}}
    dump_args(train_args(forever, {"optim": {"scheduler": "constant"}}), tmp_path / "run.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lingua_synth.train", f"config={tmp_path / 'run.yaml'}", FULL_SHARD]
    # torchrun gives ranks 30 seconds, too few for a checkpoint on a machine with much other work.
    env = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
    deadline = time.monotonic() + 200
    while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "no step was logged"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[1]
    assert process.returncode != 0
    last = column(tmp_path / "run", "global_step")[-1]
    assert os.listdir(tmp_path / "run" / "checkpoints") == [f"{last:010d}"], said[-5000:]
    assert "the same command goes on from it" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.slow
def test_killed_with_kill_9_at_some_step_it_goes_on_at_any_world_size(train_args, tmp_path):
    # Long behind the last moment of the kill: a machine with other work may send it many steps later.
    longer = {"synth": {"tokens": 60 * 256, "on_exhaustion": "repeat"}, "checkpoint": {"dump": {"every": 4, "keep": 2}}}
    train(train_args(longer, dump_dir=tmp_path / "whole"), progress=False)
    dump_args(train_args(longer, dump_dir=tmp_path / "killed"), tmp_path / "killed.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lingua_synth.train", f"config={tmp_path / 'killed.yaml'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    at = random.randint(5, 25)
    deadline = time.monotonic() + 200
    while len(read_metrics(tmp_path / "killed" / "metrics.jsonl")) < at:
        assert process.poll() is None and time.monotonic() < deadline, f"step {at} was not reached"
        time.sleep(0.002)
    for pid in [*children(process.pid), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    train(train_args(longer, dump_dir=tmp_path / "alone"), progress=False)
    assert torchrun(tmp_path / "killed.yaml", 2).returncode == 0
    expected = column(tmp_path / "whole", "loss/mean")
    for run in ("alone", "killed"):
        found = column(tmp_path / run, "loss/mean")
        assert len(found) == 60
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-5, f"{run}, killed at {at}"


def children(pid):
    """Processes below `pid`, by ps."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    return [child for child, parent in parents.items() if parent == pid]
