"""A ladder really trained equals the straight runs; sizes really measured."""

import re

import pytest

from lingua_synth.config import build_args, dump_args, to_dict
from lingua_synth.files import read_json
from lingua_synth.study import StudyArgs, collect, launch, plan_study
from lingua_synth.study.calibrate import CalibrateArgs, calibrate, short_run
from lingua_synth.study.command import main
from lingua_synth.study.overview import overview

WSD = {"scheduler": "wsd", "warmup": 2, "decay_fraction": 0.25, "lr_min_ratio": 0.0}


@pytest.fixture
def study(study_args):
    mixtures = {"third": {"ratios": {"natural": "2/3", "synthetic": "1/3"}}}
    train = {"optim": WSD, "synth": {"decay": "linear"}}
    own = {"budgets": [1024, 2048, 4096], "mixtures": mixtures, "train": train}
    return lambda *overrides: study_args(own, *overrides)


def test_a_launched_ladder_has_the_losses_of_straight_runs(study):
    grids = {"grids": {"straight": {}, "ladder": {"ladder": True}}}
    runs = plan_study(study(grids))
    assert [run.after for run in runs] == [
        (), (), (), *[("third-nano-27k-d4096-s42-wsd",)] * 2, (),
    ]  # fmt: skip
    # All at once: branches wait for their trunk by themselves.
    launch(runs, progress=False)
    rows = {row["run_id"]: row for row in collect(run.args.dump_dir for run in runs).rows}
    assert len(rows) == 6
    own = ("run_id", "wall_s", "gpu_hours", "config_sha256")
    for budget in (1024, 2048, 4096):
        straight, rung = rows[f"third-nano-27k-d{budget}-s42"], rows[f"third-nano-27k-d{budget}-s42-wsd"]
        assert rung["loss_macro"] == straight["loss_macro"] and rung["schedule"] == "wsd-linear"
        assert {k: v for k, v in rung.items() if k not in own} == {k: v for k, v in straight.items() if k not in own}
    # The trunk kept what its branches begin with, and each branch trained its decay alone: a quarter.
    assert [int(run.args.synth.branch_from[-10:]) for run in runs if run.after] == [6, 12]
    planned = overview(study(grids))
    assert planned.ladder.share == (32 + 4 + 2) / (32 + 16 + 8)


def test_sizes_are_measured_in_the_study_s_configuration_and_the_plan_reads_it(study, tmp_path, capsys):
    small = study({"train": {"optim": {"lr": 1e-2}, "synth": {"loss": {"backend": "plain"}}}})
    run = plan_study(small)[-1]
    short = short_run(run, tmp_path, tmp_path / "shards", 4, 0)
    assert (short.optim.lr, short.synth.loss.backend, short.data.seq_len) == (1e-2, "plain", 32)
    assert short.model.vocab_size == run.resolved.model.vocab_size and short.grad_acc_steps == 1
    assert not short.synth.evaluation.domains and short.synth.tokens is None

    dump_args(small, tmp_path / "study.yaml")
    assert main(["calibrate", f"config={tmp_path / 'study.yaml'}", "steps=3"]) == 0
    shown = capsys.readouterr().out
    measured = read_json(tmp_path / "study" / "calibration.json")
    speed = measured["tokens_per_s"]["nano-27k"]
    # Between a millionth and all of what a CPU core can do, and what the plan then counts with.
    assert 1e6 < speed * run.flops / run.tokens < 1e12
    assert re.search(r"nano-27k +[\d,]+ tokens/s\ncalibrate=nano-27k:", shown)
    assert main(["plan", f"config={tmp_path / 'study.yaml'}"]) == 0
    assert f"speed: {measured['calibrate']} tokens/s" in capsys.readouterr().out
    first = plan_study(small)[0]
    assert first.gpu_hours == pytest.approx(first.tokens / speed / 3600, rel=1e-4)
    # What is written in the YAML wins.
    told = plan_study(build_args(StudyArgs, {**to_dict(small), "calibrate": "nano-27k:1000"}))[0]
    assert told.gpu_hours == first.tokens / 1000 / 3600


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        ({}, {"at": ["1B"]}, "at names 1B; the study's sizes are nano-27k"),
        ({}, {"steps": 0}, "steps must be at least 1, got 0"),
        ({"train": {"synth": {"attention": "nonsense"}}}, {}, r"nano-27k ended after 0 of 15 steps:(.|\n)*nonsense"),
        ({}, {"limit_s": 1.0, "steps": 10**6}, "nano-27k was too slow after .* of 1000003 steps"),
    ],
)
def test_what_cannot_be_measured_says_why(study, change, keys, message):
    with pytest.raises(ValueError, match=message):
        calibrate(study(change), CalibrateArgs(**keys))
