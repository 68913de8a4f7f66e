"""Mixtures that change over training as mixtures of a study: planned, trained, collected, compared in pairs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lingua_synth.config import dump_args
from lingua_synth.scaling import Runs, compare_schedules, load_runs, write_runs
from lingua_synth.study import collect, plan_study
from lingua_synth.study.args import parse_study
from lingua_synth.study.command import main
from lingua_synth.study.overview import run_row
from lingua_synth.train import train

STAGES = {
    "plain": {"ratios": {"natural": "5/6", "synthetic": "1/6"}, "until": "3/4"},
    "late": {"ratios": {"natural": "1/2", "synthetic": "1/2"}},
}


@pytest.fixture
def study(study_args):
    mixtures = {
        "static": {"ratios": {"natural": "3/4", "synthetic": "1/4"}},
        "anneal": {"stages": STAGES},
        "ramp": {"stages": {"up": {"ratios": {"natural": "1"}, "ramp_to": STAGES["late"]["ratios"]}}},
    }
    own = {"budgets": [1024, 2048], "mixtures": mixtures, "train": {"optim": {"warmup": 2}}}
    return lambda *overrides: study_args(own, *overrides)


def test_stages_are_planned_at_every_budget_exactly(study):
    runs = {run.run_id: run for run in plan_study(study())}
    for budget in (1024, 2048):
        for mixture in ("static", "anneal", "ramp"):
            run = runs[f"{mixture}-nano-27k-d{budget}-s42"]
            # A quarter of the tokens of each, whatever the way there; epochs with them.
            assert {need.name: need.tokens for need in run.needs} == {
                "natural": budget * 3 // 4, "synthetic": budget // 4,
            }, run.run_id  # fmt: skip
            row = run_row(run)
            assert (row["ratio_natural"], row["ratio_synthetic"]) == ("3/4", "1/4")
            assert all(need.epochs > 0 for need in run.needs)
    assert list(runs["anneal-nano-27k-d1024-s42"].args.synth.stages) == ["plain", "late"]
    assert not runs["static-nano-27k-d1024-s42"].args.synth.stages


def test_the_example_holds_equal_shares_against_each_other():
    config = Path(__file__).parents[2] / "examples" / "configs" / "study_schedules.yaml"
    runs = plan_study(parse_study([f"config={config}", "vocab_size=1024"]), draft=True)
    assert {run.args.synth.mixture for run in runs} == {"static", "anneal", "ramp", "early"}
    for row in map(run_row, runs):
        assert (row["ratio_natural"], row["ratio_synthetic"]) == ("3/4", "1/4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixtures": {"anneal": {"ratios": {"natural": "1"}}}}, "mixture 'anneal' has ratios and stages"),
        (
            {"mixtures": {"anneal": {"stages": {"late": {"ratios": {"web": "0"}}}}}},
            "mixture 'anneal' draws from 'web', which is no source of the study",
        ),
        (
            {"train": {"synth": {"stages": STAGES}}, "grids": {"late": {"mixtures": ["anneal"]}}},
            "mixture 'anneal' has stages, and so has the training config",
        ),
        (
            {"mixtures": {"anneal": {"stages": {"late": {"ratios": {"natural": "1"}}}}}},
            "run anneal-nano-27k-d1024-s42: the ratios must sum to exactly 1|stage 2: the ratios must sum to exactly 1",
        ),
        ({"sources": {"synthetic": {"max_epochs": 0.001}}}, "anneal-nano-27k-d2048-s42.*source 'synthetic'|ask too"),
        (
            {"grids": {"wsd": {"ladder": True, "mixtures": ["ramp"]}}, "train": {"optim": {"decay_fraction": 0.25}}},
            "stages that end at a share of the run differ by budget",
        ),
    ],
)
def test_what_cannot_be_planned_says_why(study, change, message):
    with pytest.raises(ValueError, match=message):
        plan_study(study(change))


def test_an_annealing_inside_the_decay_goes_on_a_ladder(study):
    """Before its branches leave, the trunk reads what they would have read; a quarter of each budget decays."""
    wsd = {"scheduler": "wsd", "decay_fraction": 0.25, "lr_min_ratio": 0.0}
    grids = {"wsd": {"ladder": True, "mixtures": ["anneal"]}, "straight": {"mixtures": ["anneal"]}}
    change = {"grids": grids, "train": {"optim": wsd, "synth": {"decay": "linear"}}}
    runs = {run.run_id: run for run in plan_study(study(change))}
    name = "anneal-nano-27k-d1024-s42"
    for run in ("anneal-nano-27k-d2048-s42-wsd", f"{name}-wsd", name):
        train(runs[run].args, progress=False)
    rows = {row["run_id"]: row for row in collect([study().out + "/runs"]).rows}
    assert rows[f"{name}-wsd"]["loss_macro"] == rows[name]["loss_macro"]
    assert rows[f"{name}-wsd"]["tokens_synthetic"] == rows[name]["tokens_synthetic"] == 256


def test_trained_collected_and_compared(study, tmp_path, capsys):
    seeds = {"budgets": [1024], "seeds": [1, 2], "mixtures": {"ramp": {"stages": {"up": {"until": "1/2"}}}}}
    seeds["exclude"] = {"ramp": {"mixture": ["ramp"]}}
    dump_args(study(seeds), tmp_path / "study.yaml")
    for run in plan_study(study(seeds)):
        train(run.args, progress=False)
    assert main(["collect", f"config={tmp_path / 'study.yaml'}"]) == 0
    runs = load_runs(tmp_path / "study" / "runs.csv")
    assert runs["mixture_schedule"].tolist() == [
        *["constant"] * 2, *["natural: 5/6, synthetic: 1/6 until 3/4; natural: 1/2, synthetic: 1/2"] * 2,
    ]  # fmt: skip
    assert runs["ratio_synthetic"].tolist() == [0.25] * 4
    assert runs["tokens_synthetic"].tolist() == [256] * 4
    assert any("shares change over training (anneal)" in note for note in runs.notes)
    capsys.readouterr()
    save = tmp_path / "compared.json"
    assert main(["compare", f"config={tmp_path / 'study.yaml'}", f"save={save}"]) == 0
    assert "anneal (natural: 5/6" in capsys.readouterr().out
    (found,) = json.loads(save.read_text())
    losses = runs["loss_macro"]
    assert found["difference"] == float(np.mean([losses[2] - losses[0], losses[3] - losses[1]]))
    assert found["cells"][0]["seeds"] == [1, 2] and found["share_gap"] == 0 and found["num_unpaired"] == 0


def table(differences, *, share=0.25, **columns):
    """Two mixtures, cells by budget, a seed a difference; static losses are 3 + seed / 7."""
    rows = []
    for tokens, values in differences.items():
        for seed, value in enumerate(values):
            for mixture, loss in (("static", 3 + seed / 7), ("late", 3 + seed / 7 + value)):
                rows.append({
                    "run_id": f"{mixture}-{tokens}-{seed}", "mixture": mixture, "size": "1B", "tokens": tokens,
                    "mixture_schedule": "constant" if mixture == "static" else "web: 1 until 1/2; hq: 1",
                    "ratio_web": 0.75 if mixture == "static" else 1 - share,
                    "ratio_hq": 0.25 if mixture == "static" else share, "seed": seed, "n_total": 10,
                    "loss_macro": loss,
                } | columns)  # fmt: skip
    return Runs({name: [row[name] for row in rows] for name in rows[0]})


def test_the_interval_is_student_s_over_pairs():
    (found,) = compare_schedules(table({100: [-0.25, -0.5, -0.75], 200: [-0.375, -0.125]}))
    first, second = found.cells
    assert (first.difference, second.difference) == (pytest.approx(-0.5, abs=1e-12), pytest.approx(-0.25, abs=1e-12))
    # t of 97.5 % with 2, 1 and 3 degrees of freedom, from a printed table.
    t = {1: 12.7062, 2: 4.30265, 3: 3.18245}
    error = math.sqrt(0.0625 / 3)
    assert first.interval == pytest.approx((-0.5 - t[2] * error, -0.5 + t[2] * error), rel=1e-5)
    assert second.interval == pytest.approx((-0.25 - t[1] * 0.125, -0.25 + t[1] * 0.125), rel=1e-5)
    # All cells: 0.125 + 0.03125 over 3 degrees; the mean of two cells of 3 and 2 pairs.
    error = math.sqrt(0.15625 / 3 * (1 / 3 + 1 / 2) / 4)
    assert found.interval == pytest.approx((-0.375 - t[3] * error, -0.375 + t[3] * error), rel=1e-5)
    assert (found.static, found.verdict, found.counts) == ("static", "better", "pairs")
    # Where a seed's cells go the same way, seeds count: two of them, whose means differ by 0.25.
    (found,) = compare_schedules(table({100: [-0.25, -0.5], 200: [-0.125, -0.375]}))
    assert found.interval == pytest.approx((-0.3125 - t[1] * 0.125, -0.3125 + t[1] * 0.125), rel=1e-5)
    assert found.counts == "seeds" and "seeds were counted, not pairs" in str(found)


def test_runs_on_parts_of_their_sources_pair_with_the_same_part():
    """Every cell twice, on the whole and on an eighth of both sources: pairs, and cells, by part."""
    whole, eighth = table({10**6: [-0.011, -0.012, -0.013]}), table({10**6: [-0.031, -0.032, -0.033]})
    columns = {}
    for name in whole.columns:
        columns[name] = np.concatenate([whole[name], eighth[name]])
    columns["run_id"] = np.array([f"run-{k}" for k in range(len(columns["run_id"]))])
    held = np.repeat([8e6, 1e6], len(whole))
    for source in ("web", "hq"):
        columns[f"tokens_{source}"] = columns[f"ratio_{source}"] * columns["tokens"]
        columns[f"epochs_{source}"] = columns[f"tokens_{source}"] / held
    (found,) = compare_schedules(Runs(columns))
    assert [(cell.unique, cell.seeds) for cell in found.cells] == [
        ((1_000_000, 1_000_000), (0, 1, 2)),
        ((8_000_000, 8_000_000), (0, 1, 2)),
    ]
    assert [cell.difference for cell in found.cells] == pytest.approx([-0.032, -0.012])
    assert "one pass: 1,000,000, 1,000,000 tokens" in str(found) and found.num_unpaired == 0
    # Without counts of passes nobody can tell.
    for source in ("web", "hq"):
        del columns[f"epochs_{source}"]
    with pytest.raises(ValueError, match="has two runs of size"):
        compare_schedules(Runs(columns))


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9], ids="shares {:.0%} of its luck".format)
def test_its_interval_covers_as_often_as_it_says(shared):
    rng = np.random.default_rng(0)
    inside, by_seed = 0, 0
    for _ in range(400):
        luck = math.sqrt(shared) * rng.standard_normal(3)
        values = {
            tokens: (0.01 + 0.02 * (luck + math.sqrt(1 - shared) * rng.standard_normal(3))).tolist()
            for tokens in (100, 200, 400)
        }
        (found,) = compare_schedules(table(values))
        inside += found.interval[0] <= 0.01 <= found.interval[1]
        by_seed += found.counts == "seeds"
    assert 0.92 <= inside / 400 <= 0.985
    assert (by_seed > 350) if shared == 0.9 else by_seed > 100


def test_one_seed_has_no_interval_and_no_verdict():
    (found,) = compare_schedules(table({100: [-0.5]}))
    assert found.interval is None and found.cells[0].interval is None and found.verdict.startswith("undecided")
    assert "none with one seed" in str(found)


@pytest.mark.parametrize(
    ("runs", "keys", "message"),
    [
        (table({100: [0.1]}, share=0.5), {}, r"web 0.5, hq 0.5, and no static mixture.*nearest: static, off by 0.25"),
        (table({100: [0.1]}, mixture_schedule="constant"), {}, "no mixture of the table changes its shares"),
        (table({100: [0.1]}, mixture="one"), {}, "mixture 'one' stands for two schedules"),
        (table({100: [0.1]}, seed=3).take([0, 0, 1]), {}, "two runs of size 1B, 100 tokens and seed 3"),
        (table({100: [0.1, 0.2]}).take([0, 3]), {}, "no two runs of the same size, tokens and seed"),
        (table({100: [0.1]}), {"static": {"late": "web"}}, "static.late=web: a mixture that changes"),
        (table({100: [0.1]}), {"level": 1}, "level is a share between 0 and 1"),
        (table({100: [math.nan]}), {}, "a run of mixture 'late' .* has no loss_macro"),
    ],
)
def test_what_cannot_be_compared_says_why(runs, keys, message):
    with pytest.raises(ValueError, match=message):
        compare_schedules(runs, **keys)


def test_a_named_static_mixture_may_have_other_shares(tmp_path):
    (found,) = compare_schedules(table({100: [0.1, 0.2]}, share=0.5), static={"late": "static"})
    assert found.share_gap == 0.25 and "overall shares differ by up to 25 %" in str(found)
    write_runs(table({100: [0.1, 0.2]}), tmp_path / "runs.csv")
    assert load_runs(tmp_path / "runs.csv")["mixture_schedule"].tolist()[1] == "web: 1 until 1/2; hq: 1"
