"""How far a study is, from folders made by hand: states, time left, files that are half-written or edited."""

import dataclasses
import json
import time

import pytest

from lingua_synth.config import build_args, dump_args
from lingua_synth.files import write_json
from lingua_synth.leases import Leases
from lingua_synth.study import StudyArgs, study_status
from lingua_synth.study.board import QueuedRun, as_queued, begin_attempt, end_attempt, write_plan
from lingua_synth.study.command import main
from lingua_synth.study.status import duration


def make_run(folder, name, *, size="1B", tokens=1000, flops=1000, num_gpus=0, after=()):
    config = {"seed": 1, "synth": {"device": "cpu"}}
    return QueuedRun(name, str(folder / "runs" / name), size, "web", tokens, flops, num_gpus, after, config)


def finish(run, wall_s=10.0, **more):
    row = {"run_id": run.run_id, "flops": run.flops, "wall_s": wall_s}
    write_json(f"{run.dump_dir}/result.json", row | more)


def log(run, *records, torn=""):
    write_json(f"{run.dump_dir}/identity.json", {})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    with open(f"{run.dump_dir}/metrics.jsonl", "w") as file:
        file.write(lines + torn)


def at(step, tokens, wps=50.0, loss=3.0):
    return {"global_step": step, "optim/total_tokens": tokens, "speed/wps": wps, "loss/mean": loss}


def test_every_run_is_in_one_state_and_the_time_left_is_that_of_the_slots(tmp_path):
    names = ("done", "training", "failed", "killed", "left", "next", "blocked")
    runs = [make_run(tmp_path, name) for name in names]
    done, training, failed, killed, left = runs[:5]
    runs[-1] = dataclasses.replace(runs[-1], after=("done", "killed"))
    finish(done, wall_s=20.0)  # 50 FLOPs a second
    log(training, at(4, 400, wps=100.0, loss=2.5), torn='{"global_step": 8, "optim/to')
    begin_attempt(tmp_path, failed, "w")
    end_attempt(tmp_path, failed.run_id, "failed", "out of memory", log=["line one", "line two"])
    log(killed, at(5, 500), at(6, 600))
    (tmp_path / "runs" / "killed" / "checkpoints" / f"{5:010d}").mkdir(parents=True)
    log(left)
    begin_attempt(tmp_path, left, "w")
    end_attempt(tmp_path, left.run_id, "left", "signal 15")
    with Leases(tmp_path / "launch" / "claims") as leases:
        leases.claim(training.key)
        status = study_status(runs)
        assert status.names("running") == ["training"] and status.runs[1].where == leases.worker
    states = {run.run_id: run.state for run in status.runs}
    assert states == {
        "done": "done", "training": "running", "failed": "failed", "killed": "stopped", "left": "stopped",
        "next": "waiting", "blocked": "waiting",
    }  # fmt: skip
    seen = {run.run_id: run for run in status.runs}
    assert (seen["training"].loss, seen["training"].speed, seen["training"].left_s) == (2.5, 100.0, 6.0)
    assert (seen["killed"].done_tokens, seen["killed"].left_s) == (500, 10.0)  # from its checkpoint on
    assert (seen["left"].left_s, seen["next"].left_s) == (20.0, 20.0)
    assert seen["blocked"].note == "after killed"
    # One slot: what runs, then all that may still run. The failed one is nobody's.
    assert status.left_s == 6.0 + 10.0 + 3 * 20.0
    assert not status.is_over
    shown = str(status)
    assert "7 runs, 27.1% of the FLOPs; 1 done, 1 running, 1 failed, 2 stopped, 2 waiting; about 76 s left" in shown
    assert "  failed  out of memory\n    | line one\n    | line two" in shown
    assert "training   40%  loss 2.500  100 tok/s  6 s left" in shown


def test_speeds_are_those_of_the_size_and_of_all_ranks(tmp_path):
    small, large, _, _, trains = runs = [
        make_run(tmp_path, "small", size="100M"),
        make_run(tmp_path, "large", size="1B"),
        make_run(tmp_path, "waits", size="1B"),
        make_run(tmp_path, "other", size="3B"),
        make_run(tmp_path, "trains", num_gpus=8),
    ]
    finish(small, wall_s=1.0)
    finish(large, wall_s=10.0)
    log(trains, at(1, 200, wps=10.0))
    with Leases(tmp_path / "launch" / "claims") as leases:
        leases.claim("trains")
        by_name = {run.run_id: run.left_s for run in study_status(runs).runs}
    assert by_name["waits"] == 10.0 and by_name["trains"] == 800 / 80
    assert by_name["other"] == 1000 / 550  # the median over sizes
    assert study_status(runs).left_s is None  # nothing runs


def test_before_anything_is_finished_the_plan_s_hours_hold(tmp_path):
    runs = [dataclasses.replace(make_run(tmp_path, "a", num_gpus=8), gpu_hours=16.0), make_run(tmp_path, "b")]
    assert [run.left_s for run in study_status(runs).runs] == [2 * 3600.0, None]
    finish(runs[1], wall_s=1.0)
    assert study_status(runs).runs[0].left_s == 1.0  # measured


def test_files_that_cannot_be_read_make_numbers_unknown(tmp_path):
    broken, edited, finished = runs = [make_run(tmp_path, name) for name in ("broken", "edited", "finished")]
    log(broken, torn="\0\0\0\0{]")
    (tmp_path / "runs" / "edited").mkdir(parents=True)
    (tmp_path / "runs" / "edited" / "result.json").write_text("not json")
    finish(finished, wall_s=0)
    status = study_status(runs)
    assert [run.state for run in status.runs] == ["stopped", "done", "done"]
    assert status.runs[0].loss is None and status.runs[0].left_s is None
    assert edited.is_finished


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5340, "89 min"),
        (5460, "1 h 31 min"),
        (200_000, "2 d 7 h"),
        (None, "?"),
    ],
)
def test_durations_are_read_at_a_glance(seconds, words):
    assert duration(seconds) == words


def many_runs(folder, number):
    runs = [make_run(folder, f"web-1B-d{k}-s1", size=f"{k % 6}B") for k in range(number)]
    for run in runs[: number * 3 // 4]:
        finish(run)
    for run in runs[number * 3 // 4 :]:
        log(run, *(at(step, 10 * step) for step in range(1, 40)))
        begin_attempt(folder, run, "w")
    return runs


def test_a_thousand_runs_are_looked_at_within_a_second(tmp_path):
    write_plan(tmp_path, many_runs(tmp_path, 1000))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        assert main(["status", f"out={tmp_path}"]) == 0
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.0


def test_the_verb_knows_a_study_by_its_folder_and_notices_another_yaml(shards, tmp_path, capsys):
    base = {"out": str(tmp_path / "study"), "sizes": ["nano-27k"], "budgets": [512]}
    base |= {"mixtures": {"m": {"ratios": {"natural": "1"}}}, "sources": {"natural": {"path": shards["natural"]}}}
    base |= {"train": {"data": {"seq_len": 32, "batch_size": 4}, "synth": {"device": "cpu", "warmup_ratio": 0.0}}}
    study = build_args(StudyArgs, base)
    dump_args(study, tmp_path / "study.yaml")
    with pytest.raises(ValueError, match=r"holds no study that was launched; give its YAML, config=FILE"):
        main(["status", f"out={tmp_path / 'study'}"])
    with pytest.raises(ValueError, match="out is not set"):
        main(["status"])
    from lingua_synth.study import plan_study
    from lingua_synth.study.runs_command import study_sha256

    runs = [as_queued(run) for run in plan_study(study)]
    write_plan(tmp_path / "study", [*runs, dataclasses.replace(runs[0], run_id="of the last launch")])
    main(["status", f"out={tmp_path / 'study'}"])
    assert "2 runs" in capsys.readouterr().out
    main(["status", f"config={tmp_path / 'study.yaml'}"])  # the last launch was another study's
    assert "1 runs" in capsys.readouterr().out
    write_plan(tmp_path / "study", [*runs, runs[0]], study_sha256=study_sha256(study))
    main(["status", f"config={tmp_path / 'study.yaml'}", "launch.jobs=3"])
    assert "2 runs" in capsys.readouterr().out


def test_watching_ends_when_all_is_done(tmp_path, capsys):
    run = make_run(tmp_path, "a")
    write_plan(tmp_path, [run])
    finish(run)
    assert main(["status", f"out={tmp_path}", "watch=true", "every_s=0.01"]) == 0
    assert "1 runs, 100.0% of the FLOPs; 1 done" in capsys.readouterr().out
    with pytest.raises(ValueError, match="every_s must be above 0"):
        main(["status", f"out={tmp_path}", "watch=true", "every_s=0"])
