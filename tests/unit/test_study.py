"""Grids planned, launched with failures, collected."""

import pytest

from lingua_synth.files import read_json, write_json
from lingua_synth.scaling import load_runs, write_runs
from lingua_synth.study import collect, launch, plan_study, study_status
from lingua_synth.study.board import queue
from lingua_synth.study.command import main


@pytest.fixture
def study(study_args):
    mixtures = {"natural": {"ratios": {"natural": "1"}}, "third": {"ratios": {"natural": "2/3", "synthetic": "1/3"}}}
    own = {"budgets": [512, 1024], "mixtures": mixtures, "train": {"synth": {"warmup_ratio": 0.0}}}
    return lambda *overrides: study_args(own, *overrides)


def test_the_same_yaml_gives_the_same_runs_cheapest_first(study):
    runs = plan_study(study({"seeds": [1, 2]}))
    assert [run.run_id for run in runs] == [
        "natural-nano-27k-d512-s1",
        "natural-nano-27k-d512-s2",
        "natural-nano-27k-d1024-s1",
        "natural-nano-27k-d1024-s2",
        "third-nano-27k-d512-s1",
        "third-nano-27k-d512-s2",
        "third-nano-27k-d1024-s1",
        "third-nano-27k-d1024-s2",
    ]
    assert [run.run_id for run in plan_study(study({"seeds": [1, 2]}))] == [run.run_id for run in runs]
    third = runs[-1].args.synth.sources
    assert {name: source.ratio for name, source in third.items()} == {"natural": "2/3", "synthetic": "1/3"}


def test_runs_say_what_they_take_and_wait_for(study):
    run = plan_study(study())[0]
    assert (run.num_gpus, run.gpu_hours, run.after) == (0, None, ())
    on_gpus = study({"num_gpus": 2, "train": {"synth": {"device": "auto"}, "data": {"batch_size": 2}}})
    assert {run.num_gpus for run in plan_study(on_gpus)} == {2}
    with pytest.raises(ValueError, match="num_gpus is what a run trains on, at least 1; got 0"):
        plan_study(study({"num_gpus": 0}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": []}, "the study's sizes are empty"),
        ({"out": ""}, "out is not set"),
        ({"sizes": ["nano-1k"]}, "no preset 'nano-1k'"),
        ({"budgets": [1000]}, r"synth\.tokens 1,000 is not a whole number of optimizer steps of 128 tokens"),
        ({"budgets": [512, 512]}, "names the run natural-nano-27k-d512-s42 twice"),
        ({"mixtures": {"third": {"ratios": {"synthetic": "1/2"}}}}, "must sum to|sum to"),
        ({"mixtures": {"x": {"ratios": {"web": "1"}}}}, "draws from 'web', which is no source of the study"),
        ({"sources": {"natural": {"path": "gone"}}}, r"source 'natural': no file gone/manifest\.json"),
        ({"budgets": [128 * 10_000]}, r"run natural-nano-27k-d1280000-s42: source 'natural' can give .* max_epochs"),
        ({"train": {"optim": {"lrr": 1}}}, r"unknown key optim\.lrr in the study's train section; did you mean"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_runs(study, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        plan_study(study(change))
    assert not (tmp_path / "study").exists()


def test_a_failing_run_does_not_stop_the_others_and_is_tried_again(study, tmp_path):
    runs = plan_study(study())
    # The folder of one run holds another run, as if edited by hand.
    broken = runs[1]
    write_json(tmp_path / "study" / "runs" / broken.run_id / "identity.json", {"name": "something else"})
    (tmp_path / "study" / "runs" / broken.run_id / "metrics.jsonl").write_text('{"global_step": 1}\n')
    with pytest.raises(ValueError, match=rf"1 of 4 runs failed.*\n  {broken.run_id}: .*holds another run"):
        launch(runs, progress=False)
    status = study_status(runs)
    assert status.count("done") == 3 and status.names("failed") == [broken.run_id]
    found = collect([], planned=queue(runs))
    assert len(found.rows) == 3 and list(found.unfinished) == [broken.run_id]

    (tmp_path / "study" / "runs" / broken.run_id / "identity.json").unlink()
    before = {run.run_id: read_json(f"{run.args.dump_dir}/result.json") for run in runs if run.is_finished}
    launch(runs, progress=False)
    assert all(run.is_finished for run in runs)
    assert before == {name: read_json(tmp_path / "study" / "runs" / name / "result.json") for name in before}

    found = collect(run.args.dump_dir for run in runs)
    assert not found.unfinished and not found.left_out
    write_runs(found.rows, tmp_path / "runs.csv")
    table = load_runs(tmp_path / "runs.csv")
    assert len(table) == 4 and table.mixtures == ["natural", "third"]
    assert list(table["ratio_synthetic"]) == [0, 0, 1 / 3, 1 / 3]
    assert list(table["tokens_synthetic"]) == [0, 0, 5 * 32, 11 * 32]  # of 16 and 32 sequences


def test_the_verb_says_what_is_there(study, tmp_path, capsys):
    from lingua_synth.config import dump_args

    dump_args(study(), tmp_path / "study.yaml")
    assert main(["plan", f"config={tmp_path / 'study.yaml'}"]) == 0
    assert "4 runs: 3.07k tokens" in capsys.readouterr().out
    assert main(["status", f"config={tmp_path / 'study.yaml'}"]) == 0
    assert "4 runs, 0.0% of the FLOPs; 4 waiting" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no run of the study in .* is finished yet"):
        main(["collect", f"config={tmp_path / 'study.yaml'}"])
