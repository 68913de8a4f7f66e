"""Agents on one machine: room, claims, failures and their limits, runs that wait for others, what would be started."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from lingua_synth.config import build_args
from lingua_synth.files import folder_lock, write_json
from lingua_synth.leases import Leases
from lingua_synth.study import LaunchArgs, describe_launch, launch, plan_study, study_status
from lingua_synth.study import agent as agents
from lingua_synth.study.agent import Agent
from lingua_synth.study.board import (
    Limits,
    as_queued,
    begin_attempt,
    end_attempt,
    end_killed_attempt,
    file_key,
    num_failures,
    queue,
    read_attempts,
    read_latest,
    read_plan,
    run_id_of,
    tail,
    write_plan,
)
from lingua_synth.study.node import Ended, Node, Place, run_command_words, visible_gpus


@pytest.fixture
def study(study_args):
    mixtures = {"natural": {"ratios": {"natural": "1"}}}
    own = {"budgets": [512, 1024], "mixtures": mixtures, "train": {"synth": {"warmup_ratio": 0.0}}}
    return lambda *overrides: study_args(own, *overrides)


ONE = {"train": {"data": {"batch_size": 1}}}
TWO = {"train": {"data": {"batch_size": 2}}}


class FakeWorker:
    """Trains in no time: what `fails` holds for a run, in order, else it finishes."""

    fails: ClassVar[dict] = {}
    began: ClassVar[list] = []

    def __init__(self, environment, num_threads):
        self.connection, self._other = multiprocessing.Pipe()
        self.is_alive = True

    def begin(self, run):
        self.began.append(run.run_id)
        reasons = self.fails.get(run.run_id, [])
        if reasons:
            self._other.send(reasons.pop(0))
            return
        write_json(Path(run.dump_dir) / "result.json", {"run_id": run.run_id})
        self._other.send(Ended("finished"))

    def poll(self):
        return self.connection.recv() if self.connection.poll() else None

    def ask_to_leave(self):
        pass

    def kill(self):
        self.is_alive = False


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(agents, "Worker", FakeWorker)
    monkeypatch.setattr(agents, "LOOK_S", 0.05)
    monkeypatch.setattr(agents, "MOST_LOOK_S", 0.1)
    monkeypatch.setattr(agents, "MOST_LOOK_S_OF_JOBS", 0.1)
    monkeypatch.setattr(FakeWorker, "fails", {})
    monkeypatch.setattr(FakeWorker, "began", [])
    return FakeWorker


def on_gpus(run, num_gpus, device="auto"):
    config = dict(run.config, synth=run.config["synth"] | {"device": device})
    return dataclasses.replace(run, num_gpus=num_gpus, config=config)


# --- room ---


def test_runs_are_packed_on_gpus_and_whole_ones_stay_whole(study):
    run = as_queued(plan_study(study())[0])
    node = Node(["0", "1", "2"], runs_per_gpu=2, num_workers=1)
    one, two, cpu = on_gpus(run, 1), on_gpus(run, 2), run
    assert [node.take(one) for _ in range(3)] == [Place(("0",), 1), Place(("0",), 1), Place(("1",), 1)]
    assert node.take(two) is None  # only GPU 2 is whole
    assert node.take(cpu) == Place((), 0) and node.take(cpu) is None
    node.give_back(Place(("1",), 1))
    assert node.take(two) == Place(("1", "2"), 2)
    assert node.take(one) is None
    node.give_back(Place(("0",), 1))
    assert node.take(one) == Place(("0",), 1)
    assert not node.can_ever_take(on_gpus(run, 4)) and node.can_ever_take(on_gpus(run, 3))


def test_a_run_that_may_trains_on_the_cpu_where_there_is_no_gpu(study):
    run = as_queued(plan_study(study())[0])
    nothing = Node([], num_workers=1)
    assert nothing.take(on_gpus(run, 1)) == Place((), 0)
    assert not nothing.can_ever_take(on_gpus(run, 1, device="cuda"))


@pytest.mark.parametrize(("named", "gpus"), [("0,1", ["0", "1"]), ("", []), ("-1", []), ("GPU-ab, 3", ["GPU-ab", "3"])])
def test_only_gpus_that_are_visible_are_used(monkeypatch, named, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus


def test_without_a_list_nvidia_smi_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: H200'\necho 'GPU 1: H200'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_gpus() == ["0", "1"]


def test_several_gpus_are_torchrun_s(tmp_path):
    config = tmp_path / "a.yaml"
    assert run_command_words(config, 1) == [sys.executable, "-m", "lingua_synth.train", f"config={config}"]
    words = run_command_words(config, 4)
    assert words[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    assert words[6:] == ["-m", "lingua_synth.train", f"config={config}"]


# --- the board ---


@pytest.mark.parametrize("name", ["plain-1B-d50s42", "third: 1/3", ".hidden", "100%", "a b+c"])
def test_any_name_is_a_file_name(name):
    key = file_key(name)
    assert "/" not in key and not key.startswith(".") and run_id_of(key) == name


def test_a_plan_is_read_back_from_anywhere(study, tmp_path, monkeypatch):
    runs = plan_study(study({"out": "relative"}))
    monkeypatch.chdir(tmp_path)
    name = write_plan(tmp_path / "relative", queue(runs))
    assert read_plan(tmp_path / "relative", name) == (str(tmp_path), queue(runs))
    monkeypatch.chdir("/")
    where, there = read_plan(tmp_path / "relative", name)
    assert where == str(tmp_path)
    assert [run.dump_dir for run in there] == [str(tmp_path / run.args.dump_dir) for run in runs]
    assert read_latest(tmp_path / "relative") == {"version": 1, "plan": name, "study_sha256": None}
    path = tmp_path / "relative" / "launch" / "latest.json"
    write_json(path, {"version": 0})
    with pytest.raises(ValueError, match=r"latest\.json was written by another version"):
        read_latest(tmp_path / "relative")


def test_a_death_is_a_failure_only_if_it_took_the_run_no_further(study, tmp_path):
    run = as_queued(plan_study(study())[0])
    for _ in range(2):
        begin_attempt(tmp_path, run, "w")
        assert end_killed_attempt(tmp_path, run, read_attempts(tmp_path, run.run_id))
    begin_attempt(tmp_path, run, "w")
    (tmp_path / "study" / "runs" / run.run_id / "checkpoints" / f"{10:010d}").mkdir(parents=True)
    assert end_killed_attempt(tmp_path, run, read_attempts(tmp_path, run.run_id))
    assert not end_killed_attempt(tmp_path, run, read_attempts(tmp_path, run.run_id))
    attempts = read_attempts(tmp_path, run.run_id)
    assert [attempt.outcome for attempt in attempts] == ["failed", "failed", "died"]
    assert "after the checkpoint of step 10" in attempts[-1].reason
    assert num_failures(attempts) == 2


def test_a_torn_line_swallows_nothing(study, tmp_path):
    run = as_queued(plan_study(study())[0])
    begin_attempt(tmp_path, run, "first")
    path = tmp_path / "launch" / "attempts" / f"{run.key}.jsonl"
    path.write_bytes(path.read_bytes() + b'{"event": "en')
    end_attempt(tmp_path, run.run_id, "failed", "why", log=["last line"])
    begin_attempt(tmp_path, run, "second")
    first, second = read_attempts(tmp_path, run.run_id)
    assert (first.outcome, first.reason, first.log) == ("failed", "why", ("last line",))
    assert (second.worker, second.outcome) == ("second", None)


def test_a_launch_gives_up_after_its_own_failures():
    from lingua_synth.study.board import Attempt

    failed, wrong, left = Attempt("w", 0, "failed"), Attempt("w", 0, "failed", is_final=True), Attempt("w", 0, "left")
    limits = Limits(2, {"a": 3})
    assert not limits.is_given_up("a", [failed] * 4)
    assert limits.is_given_up("a", [failed] * 5)
    assert limits.is_given_up("a", [*[failed] * 3, wrong])
    assert not limits.is_given_up("a", [*[failed] * 2, wrong])  # wrong before this launch
    assert not limits.is_given_up("b", [failed, left])


def test_the_end_of_a_log_is_what_a_person_would_see(tmp_path):
    (tmp_path / "log").write_bytes(b"first\n 1%\r 2%\r 3%\nlast \n\n")
    assert tail(tmp_path / "log", 2) == [" 3%", "last"]
    assert tail(tmp_path / "log", since=6) == [" 3%", "last"]
    assert tail(tmp_path / "gone") == []


# --- agents ---


def outcomes(folder, run):
    return [attempt.outcome for attempt in read_attempts(folder, run.run_id)]


def test_what_fails_by_chance_is_tried_again_up_to_the_limit(study, tmp_path, fake):
    runs = plan_study(study())
    folder = tmp_path / "study"
    fake.fails[runs[0].run_id] = [Ended("failed", "its machine burnt")] * 3
    with pytest.raises(ValueError, match=rf"1 of 2 runs failed.*\n  {runs[0].run_id}: its machine burnt") as refused:
        launch(runs, LaunchArgs(max_attempts=3), progress=False)
    assert "train.log is in" in str(refused.value)
    assert outcomes(folder, runs[0]) == ["failed"] * 3 and outcomes(folder, runs[1]) == ["finished"]
    assert launch(runs, LaunchArgs(max_attempts=1), progress=False).note == ""
    assert outcomes(folder, runs[0]) == ["failed"] * 3 + ["finished"]
    assert launch(runs, progress=False).note == "all 2 runs are finished"
    assert not [path for path in (folder / "launch" / "claims").iterdir() if path.is_dir()]


def test_a_wrong_input_is_not_tried_twice_and_its_log_is_shown(study, tmp_path, fake):
    run = plan_study(study())[0]
    fake.fails[run.run_id] = [Ended("failed", "lr is a word", is_final=True)]
    (tmp_path / "study" / "runs" / run.run_id).mkdir(parents=True)
    (tmp_path / "study" / "runs" / run.run_id / "train.log").write_text("what it said last\n")
    with pytest.raises(ValueError, match=r"lr is a word\n      \| what it said last\n"):
        launch([run], progress=False)
    assert outcomes(tmp_path / "study", run) == ["failed"]


def test_the_largest_goes_first(study, fake):
    small, large = plan_study(study())
    launch([small, large], LaunchArgs(num_workers=1), progress=False)
    assert fake.began == [large.run_id, small.run_id]


def test_runs_wait_for_those_they_follow(study, fake):
    small, large = plan_study(study())
    launch([small, dataclasses.replace(large, after=(small.run_id,))], progress=False)
    assert fake.began == [small.run_id, large.run_id]


def test_what_follows_a_failed_run_is_given_up_with_it(study, tmp_path, fake):
    first, second = plan_study(study())
    second = dataclasses.replace(second, after=(first.run_id,))
    fake.fails[first.run_id] = [Ended("failed", "burnt")] * 2
    with pytest.raises(
        ValueError, match=rf"(?s)2 of 2 runs failed.*: burnt\n  {second.run_id}: waits for {first.run_id}"
    ):
        launch([first, second], LaunchArgs(max_attempts=2), progress=False)
    assert fake.began == [first.run_id] * 2 and outcomes(tmp_path / "study", second) == []


def test_runs_that_wait_for_nothing_that_comes_are_refused(study):
    first, second = plan_study(study())
    with pytest.raises(ValueError, match=rf"run {second.run_id} waits for 'gone', which is no run of the study"):
        queue([first, dataclasses.replace(second, after=("gone",))])
    with pytest.raises(ValueError, match="runs wait for each other: "):
        queue([dataclasses.replace(a, after=(b.run_id,)) for a, b in ((first, second), (second, first))])
    with pytest.raises(ValueError, match="two runs are called"):
        queue([first, first])


def test_a_dead_launcher_s_runs_are_taken_over_and_a_living_one_s_are_left_alone(study, tmp_path, fake):
    runs = plan_study(study())
    folder = tmp_path / "study"
    claims = folder / "launch" / "claims"
    words = "import os, sys; from pathlib import Path; from lingua_synth.leases import Leases\n"
    words += "leases = Leases(Path(sys.argv[1])); leases.claim(sys.argv[2]); os.kill(os.getpid(), 9)"
    begin_attempt(folder, as_queued(runs[0]), "dead")
    subprocess.run([sys.executable, "-c", words, str(claims), runs[0].run_id], timeout=60)
    with Leases(claims) as other:
        assert other.claim(runs[1].run_id) == 1
        agent = Agent(folder, queue(runs), LaunchArgs(idle_s=0), Limits(3, {}), stay=False)
        agent.work()
        assert agent.finished == {runs[0].run_id} and agent.given_up == {}
        assert study_status(runs).names("running") == [runs[1].run_id]
    assert outcomes(folder, runs[0]) == ["failed", "finished"] and fake.began == [runs[0].run_id]
    assert study_status(runs).names("waiting") == [runs[1].run_id]


def test_here_an_agent_stays_until_the_others_are_done_or_dead(study, tmp_path, fake):
    runs = plan_study(study())
    other = Leases(tmp_path / "study" / "launch" / "claims")
    other.claim(runs[1].run_id)
    agent = Agent(tmp_path / "study", queue(runs), LaunchArgs(), Limits(3, {}), stay=True)
    thread = threading.Thread(target=agent.work)
    thread.start()
    deadline = time.monotonic() + 30
    while runs[0].run_id not in agent.finished and time.monotonic() < deadline:
        time.sleep(0.01)
    thread.join(0.3)
    assert thread.is_alive() and fake.began == [runs[0].run_id]
    other.close()
    thread.join(30)
    assert not thread.is_alive() and fake.began == [run.run_id for run in runs]


def test_a_job_waits_a_while_for_what_unlocks_its_runs(study, tmp_path, fake):
    first, second = plan_study(study())
    runs = queue([first, dataclasses.replace(second, after=(first.run_id,))])
    with Leases(tmp_path / "study" / "launch" / "claims") as other:
        other.claim(first.run_id)
        for idle_s in (0.0, 0.4):
            began = time.monotonic()
            Agent(tmp_path / "study", runs, LaunchArgs(idle_s=idle_s), Limits(3, {}), stay=False).work()
            assert idle_s <= time.monotonic() - began < idle_s + 5
    assert fake.began == []


def test_a_job_on_a_node_without_the_gpus_says_so(study, tmp_path, fake, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    run = on_gpus(as_queued(plan_study(study())[0]), 2, device="cuda")
    with pytest.raises(ValueError, match="train on GPUs, 2 at most, and this machine shows 1: none of what is left"):
        Agent(tmp_path / "study", [run], LaunchArgs(), Limits(3, {}), stay=False).work()


def test_a_run_folder_that_somebody_is_in_is_tried_again_and_is_no_failure(study, tmp_path, fake, monkeypatch):
    monkeypatch.setattr(agents, "BUSY_S", 0.1)
    run = plan_study(study())[0]
    fake.fails[run.run_id] = [Ended("busy", "in use by a training run")] * 2
    launch([run], LaunchArgs(max_attempts=1), progress=False)
    assert outcomes(tmp_path / "study", run) == ["left", "left", "finished"]


def test_a_worker_says_how_its_run_ended(study, tmp_path, monkeypatch):
    """In this process, which has torch loaded."""
    from lingua_synth.study.node import _train

    run = as_queued(plan_study(study())[0])
    with folder_lock(run.dump_dir, "training run"):
        assert _train(dict(run.config)).outcome == "busy"
    (tmp_path / "study" / "runs" / "file").write_text("")
    wrong = [dict(run.config, dump_dir=""), dict(run.config, dump_dir=str(tmp_path / "study" / "runs" / "file"))]
    ended = [_train(config) for config in wrong]
    assert [(e.outcome, e.is_final) for e in ended] == [("failed", True), ("failed", False)]
    assert "dump_dir is not set" in ended[0].reason and ended[1].reason.startswith("FileExistsError")
    assert _train(dict(run.config)) == Ended("finished")


# --- what would be started ---


def test_a_dry_run_shows_commands_and_leaves_nothing(study, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/scratch/triton")
    first, second = plan_study(study())
    second = dataclasses.replace(second, after=(first.run_id,))
    shown = launch([first, second], LaunchArgs(threads_per_worker=3, dry_run=True)).note
    lines = shown.splitlines()
    assert lines[:5] == [
        "export OMP_NUM_THREADS=3",
        "export MKL_NUM_THREADS=3",
        f"export TORCHINDUCTOR_CACHE_DIR={tmp_path}/study/launch/cache/inductor",
        "export TRITON_CACHE_DIR=/scratch/triton",
        "",
    ]
    assert lines[5].startswith("# 2 of 2 runs, in this order")
    assert lines[6] == f"# after {first.run_id}; in a process that trains several runs, the same as"
    config = tmp_path / "study" / "launch" / "configs" / f"{second.run_id}.yaml"
    assert lines[7] == f"CUDA_VISIBLE_DEVICES= {sys.executable} -m lingua_synth.train config={config}"
    (gpu,) = plan_study(study({"train": {"synth": {"device": "auto"}}, "budgets": [512]}))
    line = describe_launch([gpu]).splitlines()[-1]
    assert line.startswith(f"CUDA_VISIBLE_DEVICES=0 {sys.executable} -m lingua_synth.train config=")
    assert not (tmp_path / "study").exists()


def test_the_script_for_slurm_asks_for_what_was_set(study, tmp_path):
    pytest.importorskip("submitit")
    runs = plan_study(
        study({"train": {"synth": {"device": "cuda"}}, "num_gpus": 4}, {"train": {"data": {"batch_size": 1}}})
    )
    slurm = {"partition": "gpu", "account": "lab", "time_min": 120, "signal_s": 240, "mem_gb": 64, "cpus_per_task": 16}
    assert "--cpus-per-task=32\n" in describe_launch(runs, LaunchArgs(engine="slurm", gpus_per_node=8))
    slurm |= {"setup": ["module load cuda"], "additional": {"reservation": "mine"}}
    args = build_args(LaunchArgs, {"engine": "slurm", "jobs": 3, "gpus_per_node": 8, "slurm": slurm})
    script = describe_launch(runs, args).partition("#!/bin/bash")[2]
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    jobs = tmp_path / "study" / "launch" / "jobs"
    assert options == {
        "--array=0-2%3", "--partition=gpu", "--account=lab", "--time=120", "--signal=USR2@240", "--mem=65536M",
        "--cpus-per-task=16", "--gpus-per-node=8", "--nodes=1", "--ntasks-per-node=1", "--requeue",
        "--reservation=mine", "--open-mode=append", "--job-name=lingua-synth-study", "--wckey=submitit",
        f"--output={jobs}/%A_%a_0_log.out",
    }  # fmt: skip
    body = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert body[0] == "module load cuda" and body[1] == "export SUBMITIT_EXECUTOR=slurm"
    assert body[2].startswith("srun ") and body[2].endswith(f"{sys.executable} -u -m submitit.core._submit {jobs}")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "cloud"}, "launch.engine is here, local, slurm; got 'cloud'"),
        ({"jobs": 0}, "launch.jobs must be at least 1, got 0"),
        ({"jobs": 2}, "launch.jobs=2 is for launch.engine local or slurm"),
        ({"num_workers": 0}, "launch.num_workers must be at least 1"),
        ({"slurm": {"time_min": 5}}, "launch.slurm.signal_s 300 is the whole of a job's time"),
        ({"gpus_per_node": 9, "engine": "local"}, "launch.gpus_per_node is 9, this machine has 0"),
    ],
)
def test_values_that_no_launch_can_have_are_refused(study, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        launch(plan_study(study()), build_args(LaunchArgs, change), progress=False)
    assert not (tmp_path / "study").exists()


def test_runs_that_no_node_can_take_are_refused_before_any_starts(study, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    runs = plan_study(study({"train": {"synth": {"device": "cuda"}}, "num_gpus": 2}, TWO))
    with pytest.raises(ValueError, match=r"trains on 2 GPU\(s\) and a node has 1 \(this machine has 1\); 2 of 2 runs"):
        launch(runs, progress=False)
    with pytest.raises(ValueError, match=r"a node has 1 \(launch.gpus_per_node is 1\)"):
        describe_launch(runs, LaunchArgs(engine="slurm", gpus_per_node=1))
    assert not (tmp_path / "study").exists()


def test_local_jobs_take_gpus_by_number(study, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-ab,1")
    runs = plan_study(study({"train": {"synth": {"device": "cuda"}}}))
    with pytest.raises(
        ValueError, match=r"hands out GPUs by number, and CUDA_VISIBLE_DEVICES names them \(GPU-ab, 1\)"
    ):
        launch(runs, LaunchArgs(engine="local"), progress=False)


def test_a_missing_slurm_and_a_missing_submitit_are_one_message_each(study, tmp_path, monkeypatch):
    runs = plan_study(study())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"has no SLURM \(no sbatch and no srun in PATH\): launch on a login node"):
        pytest.importorskip("submitit")
        launch(runs, LaunchArgs(engine="slurm"), progress=False)
    monkeypatch.setitem(sys.modules, "submitit", None)
    for engine in ("slurm", "local"):
        with pytest.raises(ValueError, match=r"launch.engine: this needs submitit.*lingua-synth\[slurm\]"):
            launch(runs, LaunchArgs(engine=engine), progress=False)
    assert not (tmp_path / "study").exists() and os.listdir(tmp_path) == []
