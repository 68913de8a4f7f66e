"""Studies planned and priced before there is a shard: grids, rules, ladders, cost, memory, conditioning, changes."""

import csv
import json
import os
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from lingua_synth.config import build_args
from lingua_synth.files import read_json, write_json
from lingua_synth.model import count_parameters, flops_per_token, preset
from lingua_synth.study import PlannedRun, StudyArgs, plan_study, read_study
from lingua_synth.study.args import PRESETS, parse_study, preset_names
from lingua_synth.study.command import main
from lingua_synth.study.conditioning import plan_conditioning
from lingua_synth.study.ledger import changes_since_launch, fingerprint, register_study
from lingua_synth.study.overview import overview
from lingua_synth.study.pricing import Throughput, num_checkpoints, parse_calibration
from lingua_synth.train.args import TrainArgs

GRAIN = {  # what a draft needs and no test is about
    "out": "s",
    "sizes": ["1B"],
    "budgets": ["1B"],
    "sources": {"cc": {"path": "shards/cc"}, "hq": {"path": "shards/hq", "tokens": "100B"}},
    "mixtures": {"cc": {"ratios": {"cc": "1"}}, "third": {"ratios": {"cc": "2/3", "hq": "1/3"}}},
    "train": {
        "data": {"seq_len": 4096, "batch_size": 4},
        "synth": {"global_batch_tokens": 2**20, "warmup_ratio": 0.1},
    },
    "num_gpus": 8,
}


def draft(*overrides):
    return plan_study(build_args(StudyArgs, GRAIN, *overrides), draft=True)


def ids(runs):
    return [run.run_id for run in runs]


# --- the paper ---


def test_the_paper_s_grids_cost_what_the_paper_says():
    """Kang et al. 2025: over 70,000 A100-hours on the main part, 100,000 in all; by part as their grids make them."""
    main_part = read_study_of("paper/data-scaling", "paper/model-scaling")
    hours = {}
    for name, study in (
        ("main", main_part),
        ("ratios", read_study("paper/ratio-grid")),
        ("generators", read_study("paper/generator-ablation")),
    ):
        runs = plan_study(study, draft=True)
        hours[name] = len(runs), sum(run.gpu_hours for run in runs)
    assert {name: count for name, (count, _) in hours.items()} == {"main": 126, "ratios": 420, "generators": 215}
    for name, expected in (("main", 73_000), ("ratios", 51_000), ("generators", 13_000)):
        assert hours[name][1] == pytest.approx(expected, rel=0.1), name
    # To the hour: 15B tokens a day on 8 GPUs are 21,700 a second and GPU, and FLOPs scale the sizes.
    assert [round(value) for _, value in hours.values()] == [72_971, 50_543, 13_760]


def read_study_of(*names):
    return parse_study([f"extends=[{','.join(names)}]"])


def test_one_run_s_hours_are_tokens_over_the_measured_speed():
    run = next(run for run in plan_study(read_study("paper/data-scaling"), draft=True) if run.budget == "100B")
    assert run.tokens == 95_367 * 2**20 and run.steps == 95_367 and run.resolved.optim.warmup == 9_537
    assert run.gpu_hours == run.tokens / 21_700 / 3600
    assert run.flops == run.tokens * flops_per_token(preset("1B"), 4096)
    assert (run.num_gpus, run.after, run.resolved.grad_acc_steps) == (8, (), 8)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_planned_and_its_runs_are_named_once(name):
    if name == "paper/base":
        with pytest.raises(ValueError, match="the study's sizes are empty"):
            plan_study(read_study(name), draft=True)
        return
    runs = plan_study(read_study(name), draft=True)
    assert len(set(ids(runs))) == len(runs) and all(run.memory.fits for run in runs)
    if len(runs) < 500:
        assert ids(plan_study(read_study(name), draft=True)) == ids(runs)


def test_the_mixtures_of_the_paper():
    runs = plan_study(read_study("paper/data-scaling"), draft=True)
    assert {run.args.synth.mixture for run in runs if run.budget == "200B"} == {
        "cc", "hq33", "qa33", "textbook33", "textbook67", "textbook100",
    }  # fmt: skip
    ratios = {run.args.synth.mixture: run.args.synth.sources for run in runs}
    assert {n: s.ratio for n, s in ratios["hq33"].items()} == {"cc": "67/100", "hq": "33/100"}
    grid = {run.args.synth.mixture for run in plan_study(read_study("paper/ratio-grid"), draft=True)}
    plus = {run.args.synth.mixture for run in plan_study(read_study("paper/ratio-grid+"), draft=True)}
    assert len(grid) == 28 and plus - grid == {f"{s}{p}" for s in ("hq", "qa", "textbook") for p in (30, 33, 40, 67)}
    ablation = plan_study(read_study("paper/generator-ablation"), draft=True)
    assert len({run.args.synth.mixture for run in ablation}) == 43
    run = next(run for run in ablation if run.run_id == "hq-llama3-8b-0.5-1B-d5B-s42")
    assert {n: s.ratio for n, s in run.args.synth.sources.items()} == {"cc": "199/200", "hq-llama3-8b": "1/200"}


def test_a_thousand_runs_are_planned_in_seconds_without_torch_and_without_shards(tmp_path):
    code = (
        "import sys, time\n"
        "from lingua_synth.cli import main\n"
        "assert main(['study', 'plan', 'config=paper/full', 'out=' + sys.argv[1]]) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "print('seconds', time.process_time())"
    )
    environment = os.environ | {"PYTHONPATH": str(PRESETS.parents[2])}
    words = [sys.executable, "-c", code, str(tmp_path / "plan")]
    out = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    # Processor time: other work on the machine does not count. Measured 1.5 s.
    assert float(out.rsplit(" ", 1)[1]) < 5
    assert re.match(r"1,150 runs: 16\.3T tokens, .* 140,706 GPU-hours", out)
    rows = list(csv.DictReader((tmp_path / "plan" / "plan.csv").open()))
    plan = read_json(tmp_path / "plan" / "plan.json")
    assert len(rows) == plan["num_runs"] == len(plan["runs"]) == 1150
    assert sum(float(row["gpu_hours"]) for row in rows) == pytest.approx(plan["gpu_hours"], rel=1e-12)
    # Every share of every run sums to exactly one.
    for row in rows:
        assert sum(Fraction(row[key]) for key in row if key.startswith("ratio_")) == 1


def test_the_page_on_studies_has_the_numbers_of_the_presets():
    page = (PRESETS.parents[2] / "docs" / "study.md").read_text()
    rows = re.findall(r"^\| `(paper/[\w-]+)` \| ([\d,]+) \| ([\d,]+) \|", page, flags=re.M)
    assert len(rows) == 6
    for name, count, hours in rows:
        runs = plan_study(read_study(name), draft=True)
        assert (f"{len(runs):,}", f"{sum(run.gpu_hours for run in runs):,.0f}") == (count, hours), name
    shown = str(overview(read_study("paper/ratio-grid"), draft=True))
    for line in re.search(r"```\n(cc, hq0\.5.*?)```", page, flags=re.S)[1].splitlines():
        assert line in shown


def test_the_yaml_of_the_page_on_studies_is_planned(tmp_path):
    page = (PRESETS.parents[2] / "docs" / "study.md").read_text()
    text = re.search(r"```yaml\n(.*?)```", page, flags=re.S)[1].replace("train: {...}", "")
    (tmp_path / "study.yaml").write_text(text)
    runs = {run.run_id: run for run in plan_study(parse_study([f"config={tmp_path / 'study.yaml'}"]), draft=True)}
    assert len(runs) == (4 * 3 * 3 - 3) * 2 and "hq50-1B-d20B-s42" in runs and "hq100-1B-d20B-s42" not in runs
    assert {run.args.synth.mixture for run in runs.values()} == {"web", "hq1of3", "hq50", "hq100"}
    assert runs["web-200M-d1B-s43"].num_gpus == 2 and runs["web-500M-d1B-s43"].num_gpus == 8


# --- grids ---


def test_grids_share_cells_and_rules_take_some_out():
    grids = {
        "a": {"budgets": ["1B", "5B"], "natural": "cc", "synthetic": ["hq"], "ratios": [0, "1/3", 0.005]},
        "b": {"budgets": ["5B", "10B"], "mixtures": ["c*"]},
    }
    runs = draft({"grids": grids})
    assert ids(runs) == [
        "cc-1B-d1B-s42", "cc-1B-d5B-s42", "hq1of3-1B-d1B-s42", "hq1of3-1B-d5B-s42",
        "hq0.5-1B-d1B-s42", "hq0.5-1B-d5B-s42", "cc-1B-d10B-s42",
    ]  # fmt: skip
    assert [run.grids for run in runs[:2]] == [("a",), ("a", "b")]
    fewer = draft({"grids": grids, "exclude": {"small": {"grid": ["a"], "mixture": ["hq*"], "budget": ["<5B"]}}})
    assert set(ids(runs)) - set(ids(fewer)) == {"hq1of3-1B-d1B-s42", "hq0.5-1B-d1B-s42"}
    assert set(ids(draft({"exclude": {"x": {"budget": [">1B", "1B"], "mixture": ["cc"]}}}))) == {"third-1B-d1B-s42"}


def test_overrides_change_the_training_of_some_cells_alone():
    change = {
        "sizes": ["1B", "3B"],
        "overrides": {
            "big": {"size": ["3B"], "num_gpus": 16, "train": {"optim": {"lr": 1e-4}}},
            "third": {"mixture": ["third"], "train": {"optim": {"lr": 2e-4}}},
        },
    }
    told = {run.run_id: (run.args.optim.lr, run.num_gpus) for run in draft(change)}
    assert told == {
        "cc-1B-d1B-s42": (3e-4, 8), "cc-3B-d1B-s42": (1e-4, 16),
        "third-1B-d1B-s42": (2e-4, 8), "third-3B-d1B-s42": (2e-4, 16),
    }  # fmt: skip


def test_grids_are_judged_each_by_its_own_settings():
    """One mixture at one budget in two grids, of which one may repeat tokens and the other may not."""
    mixture = {"mixtures": {"hq": {"ratios": {"hq": "1"}}}, "budgets": ["200B"]}
    own = {"suffix": "-again", "train": {"synth": {"on_exhaustion": "repeat"}}}
    assert draft(mixture, {"grids": {"again": own | {"mixtures": ["hq"]}}})[0].needs[0].epochs == pytest.approx(
        2, abs=1e-3
    )
    for order in (("again", "once"), ("once", "again")):
        grids = {name: (own if name == "again" else {}) | {"mixtures": ["hq"]} for name in order}
        with pytest.raises(ValueError, match="run hq-1B-d200B-s42: source 'hq' can give") as caught:
            draft(mixture, {"grids": grids})
        assert "ask too much as well" not in str(caught.value)
    with pytest.raises(ValueError, match="grids a and b both make a run"):
        draft({"grids": {"a": {}, "b": {}}, "overrides": {"x": {"grid": ["b"], "num_gpus": 4}}})


def test_budgets_in_words_are_whole_steps_and_integers_are_exact():
    assert [(run.tokens, run.run_id) for run in draft({"budgets": ["1B", "0.5B"], "mixtures": {}})][:2] == [
        (477 * 2**20, "cc-1B-d500M-s42"),
        (954 * 2**20, "cc-1B-d1B-s42"),
    ]
    assert draft({"budgets": [2**30]})[0].run_id == "cc-1B-d1073741824-s42"
    with pytest.raises(ValueError, match=r"cc-1B-d1000000000-s42: synth\.tokens 1,000,000,000 is not a whole number"):
        draft({"budgets": [10**9]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exclude": {"typo": {"mixture": ["qh33"]}}}, r"exclude\.typo holds for no cell"),
        ({"overrides": {"typo": {"size": ["7B"]}}}, r"overrides\.typo holds for no cell"),
        ({"exclude": {"all": {}}}, r"exclude \(all\) leaves no cell"),
        ({"grids": {"g": {"mixtures": ["none*"]}}}, r"grids\.g names the mixture 'none\*'; the study has: cc, third"),
        ({"grids": {"g": {"ratios": [0.5]}}}, r"name grids\.g\.natural"),
        ({"grids": {"g": {"natural": "cc"}}}, r"grids\.g\.natural belongs to ratios"),
        ({"grids": {"g": {"ratios": [30], "natural": "cc", "synthetic": ["hq"]}}}, r"from 0 to 1 .*; got 30"),
        ({"grids": {"g": {"ratios": [0.5], "natural": "cc", "synthetic": ["qa"]}}}, "'qa', which is no source"),
        ({"grids": {"a": {}, "b": {"train": {"optim": {"lr": 1e-3}}}}}, r"grids a and b both make .*suffix"),
        (
            {"grids": {"a": {"train": {"optim": {"lrr": 1}}}}},
            r"unknown key optim\.lrr in grids\.a\.train; did you mean",
        ),
        ({"budgets": [0]}, "counts of tokens, at least 1; got 0"),
        ({"budgets": ["ten"]}, "no count of tokens: 'ten'"),
        ({"gpu": "A1000"}, "gpu is one of L4, .*; got 'A1000'"),
        ({"calibrate": "1B"}, r"calibrate is a size and its tokens per second and GPU, 1B:21\.7k.*; got '1B'"),
        ({"calibrate": "1B:0"}, "calibrate is a size"),
        ({"calibrate": "1B:2k,1B:3k"}, "calibrate gives 1B twice"),
        ({"sizes": ["nano-27k"]}, "takes its vocabulary from the shards, and there are none yet: set vocab_size"),
        ({"design": {"noise": 0}}, r"design\.noise is the scatter"),
        ({"sources": {"cc": {"ratio": "1/2"}}}, r"sources\.cc\.ratio 1/2: shares are given by mixtures"),
        ({"overrides": {"x": {"num_gpus": 0}}}, "set num_gpus 0; it is at least 1"),
    ],
)
def test_studies_that_cannot_be_are_refused_in_words(change, message):
    with pytest.raises(ValueError, match=message):
        overview(build_args(StudyArgs, GRAIN, change), draft=True)


def test_too_few_tokens_are_refused_with_the_source_the_numbers_and_the_ways_out():
    change = {"budgets": ["100B", "200B", "400B"], "mixtures": {"half": {"ratios": {"cc": "1/2", "hq": "1/2"}}}}
    with pytest.raises(ValueError) as caught:
        draft(change)
    message = str(caught.value)
    assert message.startswith("run half-1B-d400B-s42: source 'hq' can give 24,414,062 sequences")
    # 1/3 of 400B is too much too; half of 200B is a hair beyond 100B.
    assert "2 of the study's 9 runs ask too much as well: third-1B-d400B-s42, half-1B-d200B-s42" in message
    assert "raise max_epochs to 2.01" in message and "exclude.<name>.mixture" in message
    runs = draft(change, {"exclude": {"pool": {"mixture": ["half", "third"], "budget": [">100B"]}}})
    half = next(run for run in runs if run.run_id == "half-1B-d100B-s42")
    epochs = {need.name: need.epochs for need in half.needs}
    assert epochs["cc"] is None and epochs["hq"] == pytest.approx(0.5, abs=1e-5)
    assert sum(need.tokens for need in half.needs) == half.tokens


def test_shards_that_exist_are_counted_and_a_launch_needs_them_all(shards, tmp_path):
    change = {
        "sources": {"cc": {"path": shards["natural"]}, "hq": {"path": "gone", "tokens": "1B"}},
        "sizes": ["nano-27k"], "budgets": [1024], "num_gpus": 1, "out": str(tmp_path),
        "train": {"data": {"seq_len": 32}, "synth": {"global_batch_tokens": 128, "device": "cpu"}},
    }  # fmt: skip
    planned = overview(build_args(StudyArgs, GRAIN, change), draft=True)
    lines = {line.name: line for line in planned.sources}
    assert (lines["cc"].origin, lines["hq"].origin, lines["hq"].available) == ("shards", "declared", 10**9)
    assert lines["cc"].available == read_json(f"{shards['natural']}/manifest.json")["tokens"]
    assert lines["cc"].shard_bytes == 2 * lines["cc"].available  # 258 entries fit into uint16
    with pytest.raises(ValueError, match=r"source 'hq': no file gone/manifest\.json"):
        plan_study(build_args(StudyArgs, GRAIN, change))


def test_studies_extend_each_other_the_command_line_last(tmp_path):
    (tmp_path / "base.yaml").write_text("sizes: [1B]\nbudgets: [1B]\nseeds: [1]\nnum_gpus: 2\n")
    (tmp_path / "study.yaml").write_text("extends: [base.yaml]\nseeds: [2, 3]\n")
    study = parse_study([f"config={tmp_path / 'study.yaml'}", "budgets=[5B]"])
    assert (study.sizes, study.seeds, study.num_gpus, study.budgets) == (["1B"], [2, 3], 2, ["5B"])
    assert parse_study(["config=paper/data-scaling"]).grids["data-scaling"].sizes == ["1B"]
    (tmp_path / "base.yaml").write_text("extends: [study.yaml]\n")
    with pytest.raises(ValueError, match=r"in a circle: .*study\.yaml -> .*base\.yaml -> .*study\.yaml"):
        parse_study([f"config={tmp_path / 'study.yaml'}"])
    with pytest.raises(ValueError, match=r"no config file paper/nothing; presets: paper/base, .*paper/full\+"):
        parse_study(["config=paper/nothing"])
    with pytest.raises(ValueError, match="unknown key sizez in the command line; did you mean sizes"):
        parse_study(["config=paper/full", "sizez=[1B]"])
    assert len(list(PRESETS.rglob("*.yaml"))) == len(preset_names()) >= 9


# --- price ---


def test_a_measured_size_has_its_speed_and_the_others_their_neighbours_flops():
    assert parse_calibration("200M:110k, 1B:21.7k") == {"200M": 110_000, "1B": 21_700}
    assert parse_calibration("nano-27k:54321.5") == {"nano-27k": 54321.5}
    speed = Throughput(((1e9, 1000.0), (4e9, 500.0)))
    assert speed.tokens_per_s(1e9) == 1000 and speed.tokens_per_s(4e9) == 500
    assert speed.flops_per_s(2e9) == pytest.approx(1.5e12)  # half way in the logarithm
    assert speed.tokens_per_s(5e8) == 2000 and speed.tokens_per_s(8e9) == 250
    planned = overview(
        build_args(StudyArgs, GRAIN, {"sizes": ["200M", "1B"], "calibrate": "200M:110k,1B:21.7k"}), draft=True
    )
    assert [line.tokens_per_s for line in planned.sizes] == pytest.approx([110_000, 21_700])
    assert planned.to_dict()["gpu_hours"] == pytest.approx(2 * 954 * 2**20 * (1 / 110_000 + 1 / 21_700) / 3600)


def test_the_page_says_memory_mfu_disk_and_price():
    change = {"sizes": ["1B", "3B"], "gpu": "A100 80GB", "calibrate": "1B:21.7k", "gpu_hour_price": 2.0}
    planned = overview(build_args(StudyArgs, GRAIN, change), draft=True)
    small, large = planned.sizes
    assert small.mfu == pytest.approx(0.521, abs=5e-4) and small.mfu == pytest.approx(large.mfu)
    assert small.fits and small.largest_batch_size >= 4
    total = count_parameters(preset("3B")).total
    row = next(row for row in planned.to_dict()["runs"] if row["run_id"] == "cc-3B-d1B-s42")
    assert row["checkpoint_bytes"] == 12 * total  # one, after the last of 954 steps
    text = str(planned)
    assert "4 runs: 4B tokens" in text and "at 2 each" in text and "cc-3B-d1B-s42" in text
    whole = overview(build_args(StudyArgs, GRAIN, change, {"train": {"data": {"batch_size": 16}}}), draft=True)
    assert not whole.sizes[1].fits and "3B needs" in str(whole) and "which does not fit" in str(whole)


@pytest.mark.parametrize(
    ("every", "keep", "kept", "at_once"),
    [(0, 1, [], 1), (10, 0, [], 10), (10, 2, [], 3), (60, 3, [], 2), (10, 1, [15, 30], 4), (0, 1, [100], 1)],
)
def test_checkpoints_on_disk_at_once(every, keep, kept, at_once):
    args = build_args(
        TrainArgs, {"steps": 100, "checkpoint": {"dump": {"every": every, "keep": keep}}, "synth": {"keep_steps": kept}}
    )
    assert num_checkpoints(args) == at_once


# --- conditioning ---


def test_the_law_that_the_runs_can_show_and_errors_that_more_runs_lower():
    wide = {"sizes": ["200M", "500M", "1B"], "budgets": ["1B", "5B", "20B", "50B"], "calibrate": "1B:21.7k"}
    study = build_args(StudyArgs, GRAIN, wide)
    (both,) = overview(study, draft=True).conditioning
    assert both.mixtures == ("cc", "third") and both.design.law.name == "joint" and both.num_runs == 12
    assert both.resolvable == pytest.approx(1.96 * 2**0.5 * both.design.standard_errors["E"])
    first = both.next_runs.steps[0]
    # The promise of the next run is kept when it is planned.
    size, budget = both.candidates[first.candidate]
    more = build_args(
        StudyArgs, GRAIN, wide, {"grids": {"a": {}, "b": {"sizes": [size], "budgets": [budget], "seeds": [7]}}}
    )
    (after,) = overview(more, draft=True).conditioning
    assert after.design.standard_errors["E"] == pytest.approx(first.error, rel=1e-3)
    assert first.error < both.design.standard_errors["E"]
    # Twice the noise, about twice the error; the Huber objective is not exactly linear in it.
    (noisy,) = plan_conditioning(plan_study(study, draft=True), type(study.design)(noise=0.004))
    assert 1.9 < noisy.design.standard_errors["E"] / both.design.standard_errors["E"] < 2.2


def test_one_size_has_a_law_in_budgets_one_budget_one_in_sizes_one_cell_none():
    (data,) = overview(build_args(StudyArgs, GRAIN, {"budgets": ["1B", "5B", "20B", "50B"]}), draft=True).conditioning
    assert data.design.law.constant == "E_at_N" and {size for size, _ in data.candidates} == {"1B"}
    N = count_parameters(preset("1B")).non_embedding
    assert data.design.params["E_at_N"] == pytest.approx(1.8172 + 477.8 / N**0.3473)
    sizes = {"sizes": ["100M", "200M", "500M", "1B"], "budgets": ["50B"]}
    (model,) = overview(build_args(StudyArgs, GRAIN, sizes), draft=True).conditioning
    assert model.design.law.constant == "E_at_D" and {budget for _, budget in model.candidates} == {"50B"}
    (cell,) = overview(build_args(StudyArgs, GRAIN, {"seeds": [1, 2, 3, 4]}), draft=True).conditioning
    assert cell.design is None and "no law can be fitted" in str(cell)
    assert cell.detectable == pytest.approx(1.96 * (2 / 4) ** 0.5 * 0.002)


# --- ladders ---

LADDER = {
    "grids": {"ladder": {"budgets": ["1B", "2B", "10B"], "ladder": True}},
    "mixtures": {"cc": {"ratios": {"cc": "1"}}},
}


def test_a_ladder_is_one_trunk_and_branches_that_wait_for_it():
    runs = {run.run_id: run for run in draft(LADDER) if run.args.synth.mixture == "cc"}
    small, middle, trunk = (runs[f"cc-1B-d{d}-s42-wsd"] for d in ("1B", "2B", "10B"))
    steps = [954, 1907, 9537]
    points = [count - int(count * 0.1) for count in steps]
    assert trunk.after == () and small.after == middle.after == (trunk.run_id,)
    assert trunk.args.synth.keep_steps == points[:2] and trunk.args.synth.branch_from is None
    assert small.args.synth.branch_from == f"s/runs/{trunk.run_id}/checkpoints/{points[0]:010d}"
    per_step = 2**20 * flops_per_token(preset("1B"), 4096)
    assert [run.flops for run in (small, middle, trunk)] == [95 * per_step, 190 * per_step, 9537 * per_step]
    assert small.tokens == 954 * 2**20  # D counts the trunk's part
    # One warm-up, a tenth of the smallest budget; wsd to zero.
    assert {run.resolved.optim.warmup for run in runs.values()} == {95}
    assert {(run.args.optim.scheduler, run.args.optim.lr_min_ratio, run.args.synth.decay) for run in runs.values()} == {
        ("wsd", 0.0, "sqrt")
    }


def test_rungs_may_have_other_machines_but_one_trunk():
    change = {
        "overrides": {"wide": {"budget": ["10B"], "num_gpus": 16, "train": {"checkpoint": {"dump": {"keep": 3}}}}}
    }
    runs = [run for run in draft(LADDER, change) if run.args.synth.mixture == "cc"]
    assert [(run.num_gpus, bool(run.after)) for run in runs] == [(8, True), (8, True), (16, False)]
    assert len({run.args.synth.branch_from for run in runs if run.after}) == 2


def test_a_ladder_of_the_paper_s_budgets_costs_a_third_and_says_what_it_is():
    planned = overview(read_study("paper/wsd-ladder"), draft=True)
    assert planned.ladder.num_trunks == 10 and planned.ladder.num_runs == 130
    budgets = [1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 100]
    assert planned.ladder.share == pytest.approx((100 + 0.1 * sum(budgets[:-1])) / sum(budgets), rel=1e-3)
    assert 0.25 < planned.ladder.share < 1 / 3
    assert planned.ladder.flops == planned.flops
    assert "for 29 % of the FLOPs of straight runs" in str(planned) and "budgets of one trunk share its luck" in str(
        planned
    )
    mixed = overview(read_study_of("paper/wsd-ladder", "paper/data-scaling"), draft=True)
    assert any("runs of different schedules (wsd-sqrt, cosine)" in note for note in mixed.warnings)
    assert {entry.schedule for entry in mixed.conditioning} == {"wsd-sqrt", "cosine"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"optim": {"warmup": 900}, "synth": {"warmup_ratio": None}}}, "a warm-up of 900 steps does not end"),
        ({"train": {"optim": {"cycle_length": 0.5}}}, "a ladder's trunk is one cycle"),
        (
            {"overrides": {"late": {"budget": ["10B"], "train": {"optim": {"lr": 1e-4}}}}},
            r"cc-1B-d10B-s42-wsd: the budgets of a ladder share one training, and overrides \(late\)",
        ),
    ],
)
def test_ladders_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        draft(LADDER, change)


# --- a YAML that changed after the launch ---


def test_a_changed_study_is_refused_or_trains_what_is_new(tmp_path):
    def study(**change):
        args = build_args(StudyArgs, GRAIN, {"out": str(tmp_path / "s")}, change)
        return args, plan_study(args, draft=True)

    register_study(*study())
    register_study(*study())  # the same again
    ledger = (tmp_path / "s" / "study.json").read_text()
    # Where and how it runs is no change of the runs.
    register_study(
        *study(launch={"num_workers": 7}, train={"logging": {"freq": 3}, "checkpoint": {"dump": {"every": 5}}})
    )
    assert changes_since_launch(*study(calibrate="1B:20k")) is None
    assert (tmp_path / "s" / "study.json").read_text() == ledger

    with pytest.raises(
        ValueError, match=r"2 new \(cc-1B-d5B-s42, third-1B-d5B-s42\).*differs in: budgets .*on_change=add"
    ):
        register_study(*study(budgets=["1B", "5B"]))
    register_study(*study(budgets=["1B", "5B"], on_change="add"))
    assert changes_since_launch(*study(budgets=["1B", "5B"])) is None
    gone = changes_since_launch(*study())
    assert gone.gone == ("cc-1B-d5B-s42", "third-1B-d5B-s42") and not gone.new

    other = {"budgets": ["1B", "5B"], "train": {"optim": {"lr": 1e-3}}}
    with pytest.raises(ValueError, match=r"4 changed .*train\.optim.* there, .* now"):
        register_study(*study(**other))
    begun = tmp_path / "s" / "runs" / "cc-1B-d1B-s42"
    write_json(begun / "identity.json", {})
    with pytest.raises(
        ValueError, match=r"3 changed .*1 changed after they had begun \(cc-1B-d1B-s42\).*keeps its settings"
    ):
        register_study(*study(**other, on_change="add"))
    (begun / "identity.json").unlink()
    register_study(*study(**other, on_change="add"))
    assert changes_since_launch(*study(**other)) is None
    with pytest.raises(ValueError, match="on_change is refuse or add; got 'ask'"):
        register_study(*study(on_change="ask"))
    (tmp_path / "s" / "study.json").write_text(json.dumps({"version": 9}))
    with pytest.raises(ValueError, match=r"study\.json is no ledger of version 1"):
        register_study(*study())


def test_a_fingerprint_holds_what_decides_the_numbers():
    def one(**change):
        runs = draft({"mixtures": {"third": {"ratios": {"cc": "2/3", "hq": "1/3"}}}}, change)
        return fingerprint(next(run for run in runs if run.args.synth.mixture == "third"))

    base = one()
    same = [
        {"out": "elsewhere"}, {"sources": {"cc": {"path": "moved"}}}, {"num_gpus": 4},
        {"train": {"data": {"batch_size": 2}}},
    ]  # fmt: skip
    assert {one(**change) for change in same} == {base}
    others = [
        {"seeds": [1]}, {"budgets": ["2B"]}, {"sizes": ["2B"]}, {"train": {"optim": {"lr": 1e-3}}},
        {"train": {"synth": {"global_batch_tokens": 2**19}}}, {"sources": {"hq": {"max_epochs": 2.0}}},
        {"train": {"synth": {"evaluation": {"domains": {"a": "b"}}}}},
        {"mixtures": {"third": {"ratios": {"cc": "1/2", "hq": "1/2"}}}},
    ]  # fmt: skip
    found = [one(**change) for change in others]
    assert base not in found and len(set(found)) == len(found)


def test_the_verb_writes_the_plan_and_tells_of_changes(tmp_path, capsys):
    words = ["config=paper/data-scaling", f"out={tmp_path / 'study'}"]
    assert main(["plan", *words]) == 0
    shown = capsys.readouterr().out
    assert "76 runs" in shown and "plan.csv and" in shown and "E_at_N" in shown
    study = parse_study(words)
    register_study(study, plan_study(study, draft=True))
    assert main(["plan", *words, "seeds=[42,43]"]) == 0
    assert "since its launch the study has changed: 76 new" in capsys.readouterr().out


def test_a_run_of_two_fields_is_enough_for_a_launcher():
    run = PlannedRun(TrainArgs(name="x", dump_dir="nowhere"), 5)
    assert (run.run_id, run.steps, run.disk_bytes, run.is_finished) == ("x", 0, 0, False)
