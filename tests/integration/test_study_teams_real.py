"""A run of two nodes, by two agents with torchrun and gloo: one is killed on the way, another takes its place."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lingua_synth.config import build_args, to_dict
from lingua_synth.study import LaunchArgs, StudyArgs, plan_study
from lingua_synth.study.board import begin_launch, newest_checkpoint, queue, read_attempts, write_plan
from lingua_synth.train import TrainArgs
from lingua_synth.train.hosts import train

AGENT = "import sys; from lingua_synth.study.agent import AgentJob; AgentJob(sys.argv[1], sys.argv[2])()"


@pytest.fixture
def runs(shards, tmp_path):
    base = {
        "out": str(tmp_path / "study"),
        "sizes": ["nano-27k"],
        "budgets": [12800],
        "mixtures": {"half": {"ratios": {"natural": "1/2", "synthetic": "1/2"}}},
        "sources": {name: {"path": shards[name], "max_epochs": 1000} for name in ("natural", "synthetic")},
        "num_gpus": 2,
        "train": {
            "data": {"seq_len": 32, "batch_size": 2},
            "checkpoint": {"dump": {"every": 10, "keep": 2}},
            "synth": {
                "global_batch_tokens": 128,
                "warmup_ratio": 0.1,
                "device": "auto",
                "evaluation": {"domains": {"near": shards["near"]}},
            },
        },
    }
    return queue(plan_study(build_args(StudyArgs, base)))


def agent(folder, launch_id, log):
    # A GPU that is not there: agents count it, torch does not find it, and ranks train on the CPU.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "7", "LINGUA_SYNTH_ADDRESS": "127.0.0.1"}
    with open(log, "wb") as out:
        return subprocess.Popen([sys.executable, "-c", AGENT, str(folder), launch_id], env=environment, stderr=out)


def test_a_run_of_two_nodes_survives_one_of_them(runs, tmp_path):
    (run,) = runs
    folder = tmp_path / "study"
    args = LaunchArgs(gpus_per_node=1, max_nodes=2, idle_s=60)
    launch_id = begin_launch(folder, write_plan(folder, runs), runs, to_dict(args))
    working = [agent(folder, launch_id, tmp_path / f"agent-{k}.log") for k in range(2)]
    try:
        deadline = time.monotonic() + 120
        while newest_checkpoint(run.dump_dir) < 10:
            assert time.monotonic() < deadline, (tmp_path / "agent-0.log").read_text()
            time.sleep(0.02)
        working[0].send_signal(signal.SIGKILL)  # it leads or follows, as it came
        working.append(agent(folder, launch_id, tmp_path / "agent-2.log"))
        for process in working[1:]:
            assert process.wait(120) == 0
    finally:
        for process in working:
            process.kill()
    attempts = read_attempts(folder, run.run_id)
    assert attempts[-1].outcome == "finished" and len(attempts) > 1
    assert all(attempt.outcome in ("left", "died") for attempt in attempts[:-1])

    alone = build_args(TrainArgs, dict(run.config, dump_dir=str(tmp_path / "alone"), name="alone"))
    single = train(dataclasses.replace(alone, synth=dataclasses.replace(alone.synth, device="cpu")), progress=False)
    team = json.loads((Path(run.dump_dir) / "result.json").read_text())
    assert team["loss_macro"] == pytest.approx(single["loss_macro"], abs=1e-5)
    assert team["tokens_natural"] == single["tokens_natural"] == 6400
