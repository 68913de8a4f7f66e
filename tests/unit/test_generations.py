"""Regimes in exact fractions, the tests of collapse on planted lines of models, the statistics, and refusals."""

import json
from fractions import Fraction

import numpy as np
import pytest

from lingua_synth.cli import main
from lingua_synth.generations import GenerationsArgs, budget_of, mixture_of, plan_round, validate_generations
from lingua_synth.generations import report as generations_report
from lingua_synth.generations.args import read_settings, refuse_other_folder, write_settings
from lingua_synth.generations.collapse import STATISTICS, statistic_tests
from lingua_synth.generations.figures import over_rounds
from lingua_synth.generations.measure import Reference, text_statistics
from lingua_synth.generations.plan import CONTROL, REGIMES, ratios_of
from lingua_synth.mixture.ratios import plan_sequences
from lingua_synth.report.canvas import drawn

LOSS, TAIL_LOSS, TYPES, TAIL_MASS = STATISTICS
HALF = ratios_of(["1/2", "9/10"], 4)


# --- regimes ---


def test_shares_are_those_of_the_definitions():
    assert ratios_of(["1/2", "9/10"], 4) == [Fraction(1, 2), Fraction(9, 10), Fraction(9, 10), Fraction(9, 10)]
    assert mixture_of("replace", 2, HALF) == {"natural": Fraction(1, 10), "synthetic-2": Fraction(9, 10)}
    assert mixture_of("replace", 1, [Fraction(1)]) == {"synthetic-1": 1}  # Shumailov et al.: nothing natural is left
    whole = 1 + Fraction(1, 2) + Fraction(9, 10)
    union = {"natural": 1 / whole, "synthetic-1": Fraction(1, 2) / whole, "synthetic-2": Fraction(9, 10) / whole}
    assert mixture_of("accumulate", 2, HALF) == mixture_of("accumulate_fixed", 2, HALF) == union
    # Gerstgrasser et al.: with whole rounds, n of n + 1 equal parts are synthetic.
    assert set(mixture_of("accumulate", 3, [Fraction(1)] * 3).values()) == {Fraction(1, 4)}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("ratios", [["1"], ["1/2", "9/10"], ["0.3"], ["1/3", "2/3", "1"]])
def test_shares_sum_to_one_and_tokens_are_whole(regime, ratios):
    exact = ratios_of(ratios, 5)
    budget = 30 * 128
    for n in range(6):
        mixture = mixture_of(regime, n, exact)
        tokens = budget_of(regime, n, budget, exact)
        assert sum(mixture.values()) == 1 and all(share > 0 for share in mixture.values())
        sequences = plan_sequences(tokens // 128, mixture)
        assert sum(sequences.values()) * 128 == tokens
        if regime == "accumulate":
            # Every text is there with just the tokens of the round that added it, and all the natural ones.
            expected = {"natural": budget} | {f"synthetic-{k}": exact[k - 1] * budget for k in range(1, n + 1)}
            assert {name: count * 128 for name, count in sequences.items()} == expected
        else:
            assert tokens == budget
        if regime == "replace" and n:
            assert sequences[f"synthetic-{n}"] * 128 == exact[n - 1] * budget


def test_a_round_names_every_training_and_its_texts():
    ratios = ratios_of(["1/2"], 3)
    assert [(one.regime, one.seed) for one in plan_round(0, REGIMES, [1, 2], 4096, ratios)] == [
        ("shared", 1),
        ("shared", 2),
    ]
    third = plan_round(3, ["replace", "accumulate"], [7], 4096, ratios)
    assert [one.mixture for one in third] == ["replace-3", "accumulate-3"]
    assert third[0].texts == {"synthetic-3": "replace-3-s7"}
    assert third[1].texts == {
        "synthetic-1": "shared-1-s7",
        "synthetic-2": "accumulate-2-s7",
        "synthetic-3": "accumulate-3-s7",
    }
    assert third[1].tokens == 4096 * 5 // 2
    assert str(third[1].run_folder("x", "nano-27k")) == "x/runs/accumulate-3-nano-27k-d10240-s7"


# --- tests of collapse ---


def lines(rng, num_seeds, rounds, gap, slope, noise, start=4.0):
    """Losses of lines of models: a jump at round 1, then a slope, each round with noise of its own."""
    of_seeds = {}
    for seed in range(num_seeds):
        first = start * np.exp(rng.normal(0, 0.05))  # what seeds share cancels
        changes = [0.0] + [gap + slope * (n - 1) + rng.normal(0, noise) for n in range(1, rounds + 1)]
        of_seeds[seed] = {n: float(first * np.exp(change)) for n, change in enumerate(changes)}
    return of_seeds


def by_name(tests):
    return {test.name: test for test in tests}


def test_planted_collapse_is_supported_and_its_absence_rejected():
    rng = np.random.default_rng(0)
    tests = by_name(statistic_tests(LOSS, "replace", lines(rng, 5, 4, 0.05, 0.02, 0.001), margin=0.005))
    assert (tests["loss_gap"].verdict, tests["loss_slope"].verdict) == ("supported", "supported")
    assert tests["loss_gap"].estimate == pytest.approx(0.11, abs=0.003)
    assert tests["loss_slope"].estimate == pytest.approx(0.02, abs=0.002)
    # A jump that no further round adds to, as the literature expects of text that accumulates.
    tests = by_name(statistic_tests(LOSS, "accumulate", lines(rng, 5, 4, 0.05, 0.0, 0.001), margin=0.005))
    assert (tests["loss_gap"].verdict, tests["loss_slope"].verdict) == ("supported", "rejected")
    tests = by_name(statistic_tests(LOSS, "none", lines(rng, 5, 4, 0.0, 0.0, 0.001), margin=0.005))
    assert (tests["loss_gap"].verdict, tests["loss_slope"].verdict) == ("rejected", "rejected")


def test_intervals_hold_the_truth_and_false_verdicts_are_rare():
    """At a true effect that is the margin itself either verdict is false; each may come with a chance of 2.5 %."""
    rng = np.random.default_rng(1)
    num, held = 400, {"loss_gap": 0, "loss_slope": 0}
    verdicts = {name: {"supported": 0, "rejected": 0, "undecided": 0} for name in held}
    simultaneous = 0
    gap, slope = 0.005 - 3 * 0.005 / 3, 0.005 / 3
    truth = {"loss_gap": gap + 3 * slope, "loss_slope": slope}
    for _ in range(num):
        tests = statistic_tests(LOSS, "x", lines(rng, 3, 4, gap, slope, 0.002), margin=0.005)
        for name, value in truth.items():
            test = by_name(tests)[name]
            held[name] += test.low <= value <= test.high
            verdicts[name][test.verdict] += 1
        each = [test for test in tests if test.name == "loss_gap_at_round"]
        assert len(each) == 4
        simultaneous += all(t.low <= gap + slope * k <= t.high for k, t in enumerate(each))
    for name in truth:
        # 95 % of 400 is 380, with a standard deviation of 4.4; 2.5 % is 10, with one of 3.1.
        assert 364 <= held[name] <= 396, (name, held)
        assert verdicts[name]["supported"] <= 22 and verdicts[name]["rejected"] <= 22, verdicts
    assert simultaneous >= 364  # Bonferroni: at least 95 %


def test_what_falls_is_turned_round():
    types = {1: {0: 1000.0, 1: 900.0, 2: 800.0}, 2: {0: 1000.0, 1: 901.0, 2: 801.0}}
    tests = by_name(statistic_tests(TYPES, "replace", types, margin=0.05))
    assert tests["types_gap"].estimate == pytest.approx(0.1995)
    assert tests["types_slope"].estimate == pytest.approx(0.1)
    assert tests["types_gap"].verdict == "supported"
    gone = {1: {0: 0.05, 1: 0.0}, 2: {0: 0.05, 1: 0.001}}
    assert by_name(statistic_tests(TAIL_MASS, "replace", gone, margin=0.2))["tail_mass_gap"].estimate == 0.99


def test_a_growing_budget_is_held_to_natural_text_at_the_same_budget():
    """Against round 0 the loss falls, against the control it rises: the gain was the budget's."""
    rng = np.random.default_rng(3)
    control = lines(rng, 5, 4, -0.05, -0.03, 0.001)
    gaps = {1: 0.02, 2: 0.03, 3: 0.04, 4: 0.05}
    ours = {
        seed: {n: value * np.exp(gaps.get(n, 0.0) + rng.normal(0, 0.0005)) for n, value in one.items()}
        for seed, one in control.items()
    }
    alone = by_name(statistic_tests(LOSS, "accumulate", ours, margin=0.005))
    assert (alone["loss_gap"].verdict, alone["loss_slope"].verdict) == ("rejected", "rejected")
    tests = statistic_tests(LOSS, "accumulate", ours, margin=0.005, control=control)
    beside = by_name(tests)
    assert beside["loss_gap_to_control"].verdict == beside["loss_slope_to_control"].verdict == "supported"
    assert beside["loss_gap_to_control"].estimate == pytest.approx(0.05, abs=0.002)
    assert beside["loss_slope_to_control"].estimate == pytest.approx(0.01, abs=0.001)
    assert {test.base for test in tests} == {"natural text alone at the same budget"}
    assert beside["loss_gap_to_control"].claim == (
        "the held-out loss is higher than with natural text alone at the same budget"
    )
    # Seeds and rounds that one of the two has not finished are left out.
    some = statistic_tests(LOSS, "a", ours, margin=0.005, control={0: control[0], 1: {0: 4.0, 1: control[1][1]}})
    assert [(t.where, t.num_pairs) for t in some if t.name == "loss_gap_at_round_to_control"] == [
        ("round 1, 2 seeds", 2), ("round 2, 1 seed", 1), ("round 3, 1 seed", 1), ("round 4, 1 seed", 1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no change from the control"):
        statistic_tests(LOSS, "a", ours, margin=0.005, control={0: {1: float("nan")}})


def test_the_control_has_accumulate_s_budgets_and_natural_text_alone():
    for n in range(4):
        assert mixture_of(CONTROL, n, HALF) == {"natural": 1}
        assert budget_of(CONTROL, n, 5120, HALF) == budget_of("accumulate", n, 5120, HALF)
    (one,) = plan_round(2, [CONTROL], [7], 5120, HALF)
    assert (one.mixture, one.texts, one.run_folder("o", "nano-27k").name) == (
        "natural",
        {},
        "natural-nano-27k-d12288-s7",
    )
    assert plan_round(0, ["accumulate", CONTROL], [7], 4096, HALF)[0].regime == "shared"


def test_without_repeats_nothing_is_decided_and_half_finished_rounds_do_not_mix():
    one = by_name(statistic_tests(LOSS, "replace", {5: {0: 3.0, 1: 3.3, 2: 3.6}}, margin=0.005))
    assert {test.verdict for test in one.values()} == {"undecided"}
    assert "more seeds" in one["loss_gap"].why and one["loss_gap"].estimate == pytest.approx(np.log(1.2))
    # Seed 2 has not reached round 2, seed 3 has no round 0.
    values = {1: {0: 3.0, 1: 3.1, 2: 3.2}, 2: {0: 3.0, 1: 3.1}, 3: {1: 9.0}}
    tests = statistic_tests(LOSS, "replace", values, margin=0.005)
    assert [(t.name, t.num_pairs) for t in tests] == [
        ("loss_gap", 1),
        ("loss_gap_at_round", 2),
        ("loss_gap_at_round", 1),
        ("loss_slope", 1),
    ]
    assert statistic_tests(LOSS, "replace", {1: {0: 3.0}}, margin=0.005) == []
    with pytest.raises(ValueError, match="loss of seed 1 at round 1 is nan"):
        statistic_tests(LOSS, "replace", {1: {0: 3.0, 1: float("nan")}}, margin=0.005)


def test_what_has_no_number_is_named_and_does_not_stop_the_report():
    rows = [
        {
            "regime": "replace",
            "round": n,
            "seed": seed,
            "loss_macro": 3.0 + n,
            "tail_loss": 5.0 + n,
            "text_types": 90 - n,
        }
        | {"text_tail_mass": 0.0}  # of natural text as well: nothing can be said of its loss
        for n in range(2)
        for seed in (1, 2)
    ]
    tests, notes = generations_report.tests_of(GenerationsArgs(regimes=["replace"]), rows)
    assert {test.name for test in tests if test.name.endswith("_gap")} == {"loss_gap", "tail_loss_gap", "types_gap"}
    assert notes == ["replace: tail_mass of seed 1 at round 0 is 0.0, which has no change from 0"]


# --- statistics of text ---


def test_text_that_lost_its_tail_shows_it_and_a_sample_of_natural_text_does_not():
    rng = np.random.default_rng(3)
    p = 1 / np.arange(1, 501)
    p /= p.sum()
    defining, natural, held_out = (rng.multinomial(size, p) for size in (60_000, 60_000, 20_000))
    reference = Reference(defining, natural, held_out)
    cut = np.where(np.arange(500) < 250, p, 0)
    texts = {"sample": rng.multinomial(40_000, p), "cut": rng.multinomial(40_000, cut / cut.sum())}
    found = {name: text_statistics(counts, reference, 30_000) for name, counts in texts.items()}
    own = text_statistics(natural, reference, 30_000)
    assert own["types"] == pytest.approx(found["sample"]["types"], rel=0.01) and found["cut"]["types"] <= 250
    # In the half that chose the rare types they hold less than they should: those came up short in it. Elsewhere not.
    rare = reference.is_rare
    assert defining[rare].sum() / defining.sum() <= 0.05 < p[rare].sum()
    assert own["tail_mass"] == pytest.approx(p[rare].sum(), abs=0.003)
    assert found["sample"]["tail_mass"] == pytest.approx(p[rare].sum(), abs=0.004) and found["cut"]["tail_mass"] < 0.002
    assert found["cut"]["coverage"] < 0.92 < 0.999 < found["sample"]["coverage"]
    assert found["sample"]["kl"] < 0.02 < 0.2 < found["cut"]["kl"]
    assert found["sample"]["zipf"] == pytest.approx(1, abs=0.03)


def test_the_figure_draws_the_numbers_it_writes():
    rows = [
        {"regime": regime, "round": n, "seed": seed, "loss_macro": 3 + n * (regime == "replace") + seed / 10}
        for regime in ("replace", "accumulate")
        for n in range(3)
        for seed in (1, 2)
    ]
    points = drawn(over_rounds(rows, "loss_macro", "loss"))
    means = {(p["series"], p["round"]): p["loss_macro"] for p in points if p["kind"] == "mean"}
    assert means["replace", 2] == pytest.approx(5.15) and means["accumulate", 2] == pytest.approx(3.15)
    assert sum(p["kind"] == "run" for p in points) == len(rows)
    assert drawn(over_rounds(rows[:1], "loss_macro", "loss"))[-1]["low"] == pytest.approx(3.1)


# --- refusals ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "out is not set"),
        (["regimes=[replace,forget]"], "regimes are some of replace, accumulate, accumulate_fixed; got forget"),
        (["regimes=[]"], "got none"),
        (["regimes=[replace]", "control=true"], "add accumulate, or leave control out"),
        (["regimes=[replace,replace]"], "named twice"),
        (["seeds=[]"], "seeds are whole numbers"),
        (["seeds=[1,1]"], "named twice"),
        (["rounds=0"], "at least 1, got 0"),
        (["ratios=[]"], "ratios are the synthetic shares"),
        (["ratios=['1.5']"], "above 0 and at most 1; got 3/2"),
        (["ratios=['0']"], "above 0 and at most 1; got 0"),
        (["ratios=['1','1'] ", "rounds=1"], "2 ratios for 1 rounds"),
        (["ratios=['-1']"], "cannot be negative"),
        (["ratios=['1/3']"], "nearest budget that is: 264,192"),
        (["budget=1000"], "nearest: 2,048"),
        (["seq_len=100"], "divides batch_tokens"),
        (["size=huge"], "no preset 'huge'"),
        (["generator=huge"], "no preset 'huge'"),
        (["recipe=hq"], "chat prompts, and the models trained here take text prompts only"),
        (["recipe=kontinue"], "kontinue"),
        (["num_workers=0"], "num_workers is at least 1"),
        (["samples=0"], "samples is at least 1"),
        (["level=1.5"], "level is a share"),
        (["margins.loss=-1"], "margins.loss"),
        (["temperature=-1"], "temperature"),
        (["tokenizer=word"], "tokenizer is sp or bytes"),
        (["device=tpu"], "device is cpu or cuda"),
        (["documents=gone.jsonl"], "gone.jsonl"),
        (["round=3"], "did you mean rounds"),
    ],
)
def test_settings_that_cannot_run_are_refused_before_anything_is_written(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.strip() for word in words] + (["out=rounds"] if words else [])
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        main(["generations", *words])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_keeps_its_settings_and_may_grow(tmp_path):
    args = GenerationsArgs(out=str(tmp_path / "g"), rounds=2, ratios=["1/2"])
    validate_generations(args)
    refuse_other_folder(args)
    write_settings(args)
    assert read_settings(tmp_path / "g") == args
    refuse_other_folder(GenerationsArgs(out=args.out, rounds=4, ratios=["1/2"], seeds=[1, 2, 3, 4], num_workers=1))
    # A folder from before there was a control is read, and may get one.
    settings = json.loads((tmp_path / "g" / "generations.json").read_text())
    del settings["control"]
    (tmp_path / "g" / "generations.json").write_text(json.dumps(settings))
    refuse_other_folder(GenerationsArgs(out=args.out, rounds=2, ratios=["1/2"], control=True))
    with pytest.raises(ValueError, match=r"other settings .*ratios: .'1/2'.* there, .'1'.* now"):
        refuse_other_folder(GenerationsArgs(out=args.out, rounds=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="holds no generations"):
        refuse_other_folder(GenerationsArgs(out=str(tmp_path / "mine")))


def test_a_report_without_rounds_says_so(tmp_path):
    with pytest.raises(ValueError, match="report needs out="):
        main(["generations", "report"])
    with pytest.raises(ValueError, match="no file"):
        main(["generations", "report", f"out={tmp_path / 'gone'}"])
    write_settings(args := GenerationsArgs(out=str(tmp_path / "g")))
    with pytest.raises(ValueError, match=r"no round of .* is finished yet"):
        main(["generations", "report", f"out={args.out}"])
    with pytest.raises(ValueError, match="it has run and report"):
        main(["generations", "paint"])
