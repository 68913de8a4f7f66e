"""A real study of nano models through the command line: killed, launched twice at once, told to leave, sent to SLURM.

Sizes, mixtures, budgets and seeds, two of each: 16 trainings, whose table must not depend on what happened to them.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lingua_synth.config import dump_args
from lingua_synth.leases import living_claims, workers_here
from lingua_synth.study import StudyArgs
from lingua_synth.study.board import read_attempts
from lingua_synth.study.runs_command import known_runs
from lingua_synth.train.metrics import read_metrics

# What depends on the clock, not on the run.
CLOCK = {"wall_s", "gpu_hours"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def yaml(shards, nano_study, tmp_path_factory):
    study = {
        "sizes": ["nano-27k", "nano-107k"],
        "budgets": [4096, 8192],
        "seeds": [1, 2],
        "mixtures": {
            "natural": {"ratios": {"natural": "1"}},
            "third": {"ratios": {"natural": "2/3", "synthetic": "1/3"}},
        },
        "train": {
            "checkpoint": {"dump": {"every": 8, "keep": 1}},
            "logging": {"freq": 4},
            "synth": {"warmup_ratio": 0.1, "evaluation": {"domains": {"far": shards["far"]}}},
        },
    }
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    dump_args(nano_study(study), path)
    return path


def command(action, yaml, out, *words):
    return [sys.executable, "-m", "lingua_synth", "study", action, f"config={yaml}", f"out={out}", *words]


def start(*arguments):
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def runs_of(out):
    return known_runs(StudyArgs(out=str(out)))


def finished(out):
    return len(list(out.glob("runs/*/result.json")))


def wait_until(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def processes_of(session):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(pid)) == session:
                found.append(int(pid))
        except ProcessLookupError:
            continue
    return found


def table(out):
    with open(out / "runs.csv", newline="") as file:
        return {row["run_id"]: {k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def uninterrupted(yaml, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "study"
    result = subprocess.run(command("launch", yaml, out), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = table(out)
    assert len(rows) == 16 and len({row["loss_macro"] for row in rows.values()}) == 16
    return rows


def test_killed_with_launcher_and_workers_it_ends_with_the_same_table(yaml, uninterrupted, tmp_path):
    pytest.importorskip("submitit")
    out = tmp_path / "study"
    claims = out / "launch" / "claims"
    words = ("launch.engine=local", "launch.max_attempts=9")

    # The launcher alone: its job goes on, and the next launcher finds it at work and starts none beside it.
    launcher = start("launch", yaml, out, *words)
    wait_until(lambda: living_claims(claims))
    launcher.kill()
    launcher.wait()
    agents = workers_here(claims)
    assert len(agents) == 1
    second = start("launch", yaml, out, *words)
    wait_until(lambda: finished(out) >= 3 and living_claims(claims))
    assert workers_here(claims) == agents

    # Everything, half way, with runs in the middle of their training.
    before = finished(out)
    assert before < 16
    for session in (second.pid, launcher.pid):
        for pid in processes_of(session):
            os.kill(pid, signal.SIGKILL)
    second.wait()
    wait_until(lambda: not processes_of(launcher.pid) and not processes_of(second.pid), 30)
    assert not living_claims(claims) and finished(out) < 16

    done = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    result = subprocess.run(command("launch", yaml, out, *words), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert table(out) == uninterrupted
    for run in runs_of(out):
        result_path = Path(run.dump_dir) / "result.json"
        outcomes = [attempt.outcome for attempt in read_attempts(out, run.run_id)]
        if run.run_id in done:  # before the kill: not touched again, even where the agent died before it noted the end
            assert result_path.stat().st_mtime_ns == done[run.run_id] and outcomes[-1] in ("finished", None)
        else:
            assert outcomes.count("finished") == 1 and outcomes[-1] == "finished"
        steps = [record["global_step"] for record in read_metrics(result_path.with_name("metrics.jsonl"))]
        assert steps == sorted(set(steps)) and steps[-1] * 128 == run.tokens


def test_two_launchers_at_once_train_every_run_once(yaml, uninterrupted, tmp_path):
    out = tmp_path / "study"
    launchers = [start("launch", yaml, out, "launch.num_workers=1") for _ in range(2)]
    for launcher in launchers:
        errors = launcher.communicate(timeout=300)[1]
        assert launcher.returncode == 0, errors[-3000:]
    assert table(out) == uninterrupted
    attempts = [read_attempts(out, run.run_id) for run in runs_of(out)]
    assert [len(of_run) for of_run in attempts] == [1] * 16
    assert len(Counter(of_run[0].worker for of_run in attempts)) == 2  # both had a part


def test_told_to_leave_it_writes_checkpoints_and_goes_on_from_them(yaml, uninterrupted, tmp_path):
    out = tmp_path / "study"
    # Without checkpoints on the way: those there are were written on leaving.
    words = ("train.checkpoint.dump.every=0", "sizes=[nano-107k]", "budgets=[8192]")
    launcher = start("launch", yaml, out, *words)
    wait_until(lambda: any(path.stat().st_size for path in out.glob("runs/*/metrics.jsonl")))
    launcher.terminate()
    errors = launcher.communicate(timeout=300)[1]
    assert launcher.returncode == 128 + signal.SIGTERM
    assert "the runs have written checkpoints; the same command goes on" in errors
    runs = runs_of(out)
    outcomes = Counter(a.outcome for run in runs for a in read_attempts(out, run.run_id))
    assert outcomes["left"] >= 1 and not outcomes["failed"] and finished(out) < len(runs)
    assert not living_claims(out / "launch" / "claims")
    unfinished = [run for run in runs if not run.is_finished and os.path.exists(f"{run.dump_dir}/metrics.jsonl")]
    assert any(os.listdir(f"{run.dump_dir}/checkpoints") for run in unfinished)
    result = subprocess.run(command("launch", yaml, out, *words), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert table(out) == {name: uninterrupted[name] for name in table(out)} and len(table(out)) == len(runs) == 4


def test_a_run_of_two_gpus_is_a_torchrun_that_leaves_with_a_checkpoint(yaml, tmp_path, monkeypatch):
    # Two GPUs by name; torch sees none, so that the ranks train on the CPU.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    out = tmp_path / "study"
    words = ("train.synth.device=auto", "num_gpus=2", "train.data.batch_size=2", "train.checkpoint.dump.every=0")
    words += ("sizes=[nano-27k]", "budgets=[24576]", "seeds=[1]", "exclude.third.mixture=[third]")
    words += ("train.synth.on_exhaustion=repeat",)
    launcher = start("launch", yaml, out, *words)
    wait_until(lambda: any(path.stat().st_size for path in out.glob("runs/*/metrics.jsonl")))
    launcher.terminate()
    errors = launcher.communicate(timeout=300)[1]
    assert launcher.returncode == 128 + signal.SIGTERM, errors[-2000:]
    (run,) = runs_of(out)
    (step,) = os.listdir(f"{run.dump_dir}/checkpoints")
    assert 0 < int(step) < 192
    log = (out / "launch" / "logs" / f"{run.key}.log").read_text()
    assert f"signal {signal.SIGUSR2.value} at step {int(step)} of 192" in log
    result = subprocess.run(command("launch", yaml, out, *words), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert [a.outcome for a in read_attempts(out, run.run_id)] == ["left", "finished"]
    params = json.loads(Path(f"{run.dump_dir}/checkpoints/{192:010d}/params.json").read_text())
    assert params["grad_acc_steps"] == 1  # two ranks of two sequences
    assert f"resumed from {step}" in Path(f"{run.dump_dir}/train.log").read_text()


# --- SLURM ---


def slurm_answers():
    return shutil.which("sbatch") and subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode == 0


@pytest.mark.slurm
@pytest.mark.skipif(not slurm_answers(), reason="no SLURM: scripts/local_slurm.sh start, and export its SLURM_CONF")
def test_an_array_of_slurm_jobs_trains_the_study_and_goes_back_into_the_queue(yaml, uninterrupted, tmp_path):
    pytest.importorskip("submitit")
    out = tmp_path / "study"
    # A checkpoint on leaving alone; in jobs of one run at a time.
    words = ["train.checkpoint.dump.every=0", "launch.engine=slurm", "launch.jobs=2", "launch.num_workers=1"]
    words += ["launch.slurm.time_min=9", "launch.slurm.signal_s=60"]
    shown = subprocess.run(command("launch", yaml, out, *words, "launch.dry_run=true"), capture_output=True, text=True)
    script = "#!/bin/bash" + shown.stdout.partition("#!/bin/bash")[2]
    asked = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True)
    assert asked.returncode == 0 and "to start at" in asked.stderr, asked.stderr
    assert not out.exists()

    result = subprocess.run(command("launch", yaml, out, *words), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "lingua-synth study status out=" in result.stdout
    job_ids = json.loads((out / "launch" / "jobs" / "submitted.json").read_text())
    assert len(job_ids) == 2
    try:
        submitted = next((out / "launch" / "jobs").glob("*_submission.sh")).read_text()
        assert submitted.strip() == script.strip()
        again = subprocess.run(command("launch", yaml, out, *words), capture_output=True, text=True, timeout=60)
        assert again.returncode == 0 and "2 jobs of this study are in SLURM's queue already" in again.stdout

        # Preempted as at the end of its time: a checkpoint, the claim given back, the job into the queue again.
        wait_until(lambda: any(path.stat().st_size for path in out.glob("runs/*/metrics.jsonl")))
        subprocess.run(["scancel", "--signal=USR2", job_ids[0]], check=True)
        wait_until(lambda: "Restarts=1" in job(job_ids[0]), 60)
        wait_until(lambda: finished(out) == 16)
    finally:
        subprocess.run(["scancel", *job_ids])
    result = subprocess.run(command("collect", yaml, out, *words[:1]), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert table(out) == uninterrupted
    outcomes = Counter(a.outcome for run in runs_of(out) for a in read_attempts(out, run.run_id))
    assert outcomes["finished"] == 16 and outcomes["left"] >= 1 and not outcomes["failed"]


def job(job_id):
    return subprocess.run(["scontrol", "show", "job", job_id], capture_output=True, text=True).stdout
