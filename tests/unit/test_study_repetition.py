"""Repetition as an axis of a study: parts of sources, their passes and worth, and what a plan says of the laws."""

import json
import math

import numpy as np
import pytest

from lingua_synth.config import build_args, to_dict
from lingua_synth.scaling import RepetitionLaw, expected_errors, fit
from lingua_synth.study import StudyArgs, plan_study
from lingua_synth.study.ledger import fingerprint
from lingua_synth.study.overview import overview, run_row
from lingua_synth.train import train
from lingua_synth.train.free_keys import drop_unused_new_keys

WINDOWS = (10_000_000 - 1) // 128


def study(**over):
    """Sources of 10M tokens: 78,124 windows, and parts of them that repeat."""
    values = {
        "out": "s",
        "sizes": ["nano-27k"],
        "budgets": [2**18, 2**20, 2**22],
        "parts": ["1/64", "1/8", 1],
        "mixtures": over.pop("mixtures", {"natural": {"ratios": {"natural": "1"}}}),
        "sources": {name: {"tokens": "10M", "max_epochs": 100} for name in ("natural", "synthetic")},
        "vocab_size": 1024,
        "train": {
            "data": {"seq_len": 128, "batch_size": 16},
            "optim": {"warmup": 2},
            "synth": {"global_batch_tokens": 2048, "device": "cpu"},
        },
    }
    return build_args(StudyArgs, values, over)


def test_parts_are_cells_with_exact_passes_and_worth():
    rows = {row["run_id"]: row for row in map(run_row, plan_study(study(), draft=True))}
    assert len(rows) == 9
    for budget in (2**18, 2**20, 2**22):
        for part, word in ((64, "-p1of64"), (8, "-p1of8"), (1, "")):
            row = rows[f"natural-nano-27k-d{budget}-s42{word}"]
            held, read = -(-WINDOWS // part), budget // 128
            assert row["epochs_natural"] == read / held
            unique = min(budget, held * 128 if part > 1 else 10_000_000)
            assert row["unique_tokens_natural"] == unique
            repeats = budget / unique - 1
            worth = unique * (1 + 15.39 * (1 - math.exp(-repeats / 15.39)))
            assert row["effective_tokens"] == pytest.approx(worth, rel=1e-12)
    # The whole is the run that a study without the axis has.
    whole = [run for run in plan_study(study(), draft=True) if run.args.synth.sources["natural"].part == "1"]
    assert whole == plan_study(study(parts=[]), draft=True)
    assert run_row(whole[0], 3.0)["effective_tokens"] == 2**18


def test_a_study_that_was_launched_before_there_were_parts_has_not_changed():
    """Whole sources have no key of their own in what a launch keeps of its runs; parts do."""
    configs = {}
    for run in plan_study(study(budgets=[2**20]), draft=True):
        drop_unused_new_keys(config := to_dict(run.args))
        configs[run.run_id] = config["synth"]["sources"]["natural"]
    assert "part" not in configs["natural-nano-27k-d1048576-s42"]
    assert configs["natural-nano-27k-d1048576-s42-p1of8"]["part"] == "1/8"
    assert len({fingerprint(run) for run in plan_study(study(), draft=True)}) == 9


def test_parts_of_one_source():
    mixtures = {"half": {"ratios": {"natural": "1/2", "synthetic": "1/2"}}, "plain": {"ratios": {"synthetic": "1"}}}
    runs = plan_study(
        study(mixtures={**mixtures, "natural": {"ratios": {"natural": 1}}}, part_of=["natural"]), draft=True
    )
    half = [run for run in runs if run.args.synth.mixture == "half"]
    assert {run.args.synth.sources["natural"].part for run in half} == {"1", "1/8", "1/64"}
    assert {run.args.synth.sources["synthetic"].part for run in runs if "synthetic" in run.args.synth.sources} == {"1"}
    # What has no natural text has no such axis.
    assert len([run for run in runs if run.args.synth.mixture == "plain"]) == 3
    row = run_row(next(run for run in half if run.run_id == "half-nano-27k-d4194304-s42-p1of64"))
    held = -(-WINDOWS // 64)
    assert row["epochs_natural"] == 2**21 / 128 / held > 10 and row["epochs_synthetic"] == 2**21 / 128 / WINDOWS < 1
    repeats = 2**21 / (held * 128) - 1
    worth = held * 128 * (1 + 15.39 * (1 - math.exp(-repeats / 15.39))) + 2**21
    assert row["effective_tokens"] == pytest.approx(worth, rel=1e-12)


def test_rules_and_grids_name_parts():
    over = {"overrides": {"rare": {"part": ["1/64"], "train": {"optim": {"lr": 1e-3}}}}}
    runs = plan_study(study(**over, exclude={"long": {"part": [1, 0.125], "budget": [2**22]}}), draft=True)
    assert len(runs) == 7
    assert {run.args.optim.lr for run in runs if run.run_id.endswith("-p1of64")} == {1e-3}
    grids = {"a": {"parts": [0.5]}, "b": {"parts": ["1/2", "1/4"], "budgets": [2**18]}}
    runs = plan_study(study(grids=grids), draft=True)
    assert [run.grids for run in runs if run.run_id == "natural-nano-27k-d262144-s42-p1of2"] == [("a", "b")]
    # A ladder's budgets share a part, as they share their data.
    laddered = plan_study(study(grids={"l": {"ladder": True, "parts": ["1/64", 1]}}), draft=True)
    assert len(laddered) == 6 and sum(bool(run.after) for run in laddered) == 4
    assert {run.after[0] for run in laddered if run.after and "-p1of64" in run.run_id} == {
        "natural-nano-27k-d4194304-s42-p1of64-wsd"
    }


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"parts": [0]}, 'parts are shares of a source, above 0 and at most 1 ("1/8", 0.25); got 0'),
        ({"parts": [], "part_of": ["natural"]}, "part_of names natural, and parts is empty"),
        ({"part_of": ["web"]}, "part_of names web; the study's sources are natural, synthetic"),
        ({"sources": {"natural": {"part": "1/2"}}}, "sources.natural.part is 1/2, and parts gives it others"),
        ({"sources": {"natural": {"max_epochs": 1.0}}}, "the study's 9 runs ask too much"),
        ({"parts": ["1/8", 0.125]}, "names the run natural-nano-27k-d262144-s42-p1of8 twice"),
        ({"design": {"R_D": 0.0}}, "design.R_D says how slowly repeats lose their worth"),
    ],
)
def test_parts_that_are_refused(over, message):
    with pytest.raises(ValueError) as caught:
        overview(study(**over), draft=True)
    assert message in str(caught.value)


def planned(**over):
    (entry,) = overview(study(**over), draft=True).conditioning
    return entry


def test_a_plan_tells_the_errors_of_the_laws_of_repeats():
    entry = planned(sizes=["nano-27k", "nano-56k", "nano-107k"])
    assert entry.design is not None and entry.repeats is not None and entry.num_parts == 3
    runs = plan_study(study(sizes=["nano-27k", "nano-56k", "nano-107k"]), draft=True)
    rows = [run_row(run) for run in runs]
    params = {"E": 1.8172, "A": 477.8, "alpha": 0.3473, "B": 2143.0, "beta": 0.3672, "R_D": 15.39}
    by_hand = expected_errors(
        RepetitionLaw(), params, noise=0.002, N=[row["n_non_embedding"] for row in rows],
        D=[row["tokens"] for row in rows], U=[row["unique_tokens_natural"] for row in rows],
    )  # fmt: skip
    assert entry.design.standard_errors == pytest.approx(by_hand.standard_errors, rel=1e-9)
    # The error of what passes are worth is that of R_D, carried over.
    error = by_hand.standard_errors["R_D"]
    for passes, worth, own in entry.repeats.worth:
        above, below = (R * (1 - math.exp(-(passes - 1) / R)) for R in (15.39 + 1e-4, 15.39 - 1e-4))
        assert worth == pytest.approx(1 + 15.39 * (1 - math.exp(-(passes - 1) / 15.39)))
        assert own == pytest.approx((above - below) / 2e-4 * error, rel=1e-6)
    # The next run lowers it to what a fit with that run would have.
    first = entry.repeats.to_dict()["next_runs"][0]
    assert first["error"] < error
    place = entry.repeats.next_runs.steps[0]
    held = -(-WINDOWS // int(first["part"].split("/")[1]))
    grown = expected_errors(
        RepetitionLaw(), params, noise=0.002, N=[*by_hand.columns["N"], place.N], D=[*by_hand.columns["D"], place.D],
        U=[*by_hand.columns["U"], min(place.D, held * 128)],
    )  # fmt: skip
    assert first["error"] == pytest.approx(grown.standard_errors["R_D"], rel=1e-3)
    text = str(entry)
    assert "R_D 15.39 +- " in text and "next for R_D, per mixture: " in text and "3 parts" in text
    json.dumps(entry.to_dict())


def test_what_a_plan_cannot_tell_of_repeats():
    assert planned(parts=[]).repeats is None and planned(parts=[]).num_parts == 1
    # One budget: no law at all. Its passes are told all the same.
    one = planned(budgets=[2**22])
    assert one.design is None and one.repeats.design is None and one.repeats.num_repeating == 2
    assert "do not determine L = E_at_N + B/D'^beta" in one.repeats.reason and "repeats: 2 of the runs" in str(one)
    zero = planned(sizes=["nano-27k", "nano-56k", "nano-107k"], design={"A": 0.0})
    assert "design.A, are above 0; they are 2143 and 0" in zero.repeats.reason
    assert planned(design={"A": 0.0}).repeats.design is not None
    # Passes of under two: R_D is not seen, what they are worth is.
    weak = planned(parts=["1/4", "1/3", "1/2", 1])
    assert weak.repeats.factor > 3 and "R_D will be weakly identified" in str(weak)
    passes, worth, error = weak.repeats.worth[-1]
    assert passes == pytest.approx(2**22 / 128 / -(-WINDOWS // 4)) and error < 0.1 * worth
    # A source of unknown length: nothing is known of its passes.
    unknown = study(parts=[1], sources={"natural": {"tokens": None}})
    (entry,) = overview(unknown, draft=True).conditioning
    assert entry.repeats is None


def test_unequal_passes_take_a_unique_count_for_every_source():
    half = {"half": {"ratios": {"natural": "1/2", "synthetic": "1/2"}}}
    entry = planned(mixtures=half, part_of=["natural"])
    assert entry.design.law == RepetitionLaw(size=False, shares={"natural": 0.5, "synthetic": 0.5})
    assert entry.design.standard_errors["R_D"] > planned().design.standard_errors["R_D"]
    even = planned(mixtures=half)
    assert even.design.law == RepetitionLaw(size=False)
    # Half of the tokens from each, of twice the windows.
    longest = even.design.columns["U"][even.design.columns["D"] == 2**22]
    assert sorted(longest) == [2 * -(-WINDOWS // 64) * 128, 2 * -(-WINDOWS // 8) * 128, 2**22]


def test_the_plan_s_page_and_files(tmp_path):
    plan = overview(study(), draft=True)
    assert "passes  worth in new tokens" in str(plan)
    assert "repeats: 4 of 9 runs read tokens again; with R_D 15.39 (assumed: design.R_D)" in str(plan)
    plan.write(tmp_path)
    head = (tmp_path / "plan.csv").read_text().splitlines()[0].split(",")
    assert {"unique_tokens_natural", "epochs_natural", "effective_tokens"} <= set(head)
    assert json.loads((tmp_path / "plan.json").read_text())["conditioning"][0]["repeats"]["num_repeating"] == 4
    assert "worth in new tokens" not in str(overview(study(parts=[]), draft=True))


def test_trained_runs_have_the_planned_columns(shards, tmp_path):
    values = study(
        out=str(tmp_path / "study"), budgets=[1024], parts=["1/64", 1], part_of=["natural"],
        mixtures={"half": {"ratios": {"natural": "1/2", "synthetic": "1/2"}}},
        sources={name: {"path": shards[name], "tokens": None} for name in ("natural", "synthetic")},
        train={"data": {"seq_len": 32, "batch_size": 4}, "synth": {"global_batch_tokens": 128}}, vocab_size=None,
    )  # fmt: skip
    runs = plan_study(values)
    assert [run.run_id[4:] for run in runs] == ["-nano-27k-d1024-s42-p1of64", "-nano-27k-d1024-s42"]
    for run in runs:
        row, expected = train(run.args, progress=False), run_row(run)
        for name in ("natural", "synthetic"):
            for column in (f"tokens_{name}", f"unique_tokens_{name}", f"epochs_{name}"):
                assert row[column] == expected[column], column


def test_fits_scatter_as_the_plan_said():
    """Forty simulated studies of this plan: R_D scatters by the planned standard error."""
    entry = planned()
    law, design = entry.design.law, entry.design
    truth, rng = law.predict(design.params, **design.columns), np.random.default_rng(0)
    found = [
        fit(law, **design.columns, loss=truth * np.exp(0.002 * rng.standard_normal(len(truth)))).params["R_D"]
        for _ in range(40)
    ]
    # A standard deviation of 40 values is known to 11 %; the plan's is first order.
    assert np.std(found, ddof=1) == pytest.approx(design.standard_errors["R_D"], rel=0.35)
    assert np.mean(found) == pytest.approx(15.39, abs=3 * design.standard_errors["R_D"] / math.sqrt(40))
