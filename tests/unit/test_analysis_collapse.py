"""Each test of collapse on data in which the answer is planted: found, excluded, and left open where it must be."""

import itertools
import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from collapse_doubles import BUDGETS, SIZES, corpus, evaluated, table, zipf_counts

from lingua_synth.analysis.collapse import Margins, collapse_tests
from lingua_synth.analysis.gaps import gap_tests, paired_gaps, scatter_of, small_ratio_test
from lingua_synth.analysis.tails import EvaluatedRun, expected_types, support_tests, tail_of, tail_tests
from lingua_synth.analysis.verdicts import Question
from lingua_synth.scaling.verdicts import Estimate, above

SMALL_RATIOS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)


def verdicts(tests):
    return {test.name: test.verdict for test in tests if test.name != "loss_gap_at_budget"}


# --- the rule ---


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.02, 0.03, 0.01, "supported"),
        (0.002, 0.009, 0.01, "rejected"),  # real, and smaller than what counts
        (-0.03, -0.02, 0.01, "rejected"),
        (-0.005, 0.005, 0.01, "rejected"),
        (0.005, 0.02, 0.01, "undecided"),
        (-0.5, 0.5, 0.01, "undecided"),  # no evidence is not evidence of nothing
        (math.nan, math.nan, 0.01, "undecided"),
        (0.01, 0.02, 0.01, "undecided"),
        (-math.inf, 0.005, 0.01, "rejected"),
    ],
)
def test_a_verdict_takes_the_whole_interval(low, high, margin, verdict):
    assert above(margin).verdict(low, high) == verdict
    test = Question("x", "c", "u", margin, ("worse", "better")).judge(
        "m", "b", 0.0, (low, high), where="here", num_pairs=1
    )
    assert test.verdict == verdict and f"{margin:.3g} u" in test.rule


def test_a_reason_overrules_numbers_and_an_estimate_needs_a_variance():
    question = Question("x", "c", "u", 0.01, ("worse", "better"))
    told = question.judge("m", "b", 1.0, (0.9, 1.1), where="", num_pairs=1, why_not="no repeats")
    assert told.verdict == "undecided" and told.why == "no repeats" and math.isnan(told.low)
    assert question.answer("m", "b", Estimate(1.0), where="", num_pairs=1).verdict == "undecided"
    assert Estimate(1.0, 0.25, 10).interval(0.95) == pytest.approx((1 - 0.5 * 2.228139, 1 + 0.5 * 2.228139))
    for margin in (-0.1, math.inf):
        with pytest.raises(ValueError, match="smallest effect that counts"):
            Question("x", "c", "u", margin, ("worse", "better"))
    with pytest.raises(ValueError, match="share between 0 and 1"):
        Question("x", "c", "u", 0.1, ("worse", "better"), level=1.0)


# --- gaps ---


def test_gaps_pair_by_size_budget_and_seed():
    runs = table({"mix": (0.5, lambda N, D: 0.03)}, noise=0.0, common=0.1, seeds=(0, 1))
    gaps = paired_gaps(runs, "mix", "natural")
    assert len(gaps) == 2 * len(SIZES) * len(BUDGETS)
    assert gaps.gap == pytest.approx(0.03)  # what runs of one seed share is gone, though it is 10 %
    assert (gaps.weight == 1).all()
    keep = np.where(runs["mixture"] == "mix", runs["seed"] == 1, runs["seed"] == 0)
    unpaired = paired_gaps(runs.take(keep), "mix", "natural")
    assert len(unpaired) == len(SIZES) * len(BUDGETS) and (unpaired.weight == 1).all()
    assert np.std(unpaired.gap) > 0.05  # now it stays
    two_to_one = paired_gaps(
        runs.take(keep | (runs["mixture"] == "natural")).with_columns(seed=np.arange(90.0)), "mix", "natural"
    )
    assert two_to_one.weight == pytest.approx(4 / 3)  # the variance of a gap is 1 + 1/2 of that of a run, not 2
    holes = runs.take(~((runs["mixture"] == "mix") & (runs["tokens"] == BUDGETS[0])))
    assert len(paired_gaps(holes, "mix", "natural")) == 2 * len(SIZES) * (len(BUDGETS) - 1)
    with pytest.raises(ValueError, match="no runs of mixture 'mixx'; the table has natural, mix"):
        paired_gaps(runs, "mixx", "natural")


def test_scatter_is_the_noise_of_a_pair_beside_effects_of_size_and_budget():
    def both(N, D):
        return 0.02 * math.log(D / 1e9) + 0.01 * math.log(N / 1e8)

    found = [
        scatter_of(paired_gaps(table({"mix": (0.5, both)}, noise=0.004, common=0.05, seed=s), "mix", "natural"))
        for s in range(40)
    ]
    assert {one.freedom for one in found} == {(len(SIZES) - 1) * (len(BUDGETS) - 1)}
    assert np.mean([one.variance for one in found]) == pytest.approx(2 * 0.004**2, rel=0.1)
    one_size = table({"mix": (0.5, both)}, noise=0.004, sizes={"1B": 8.6e8})
    line = scatter_of(paired_gaps(one_size, "mix", "natural"))
    assert line.freedom == len(BUDGETS) - 2 and "line" in line.how
    alone = scatter_of(paired_gaps(table({"mix": (0.5, both)}, sizes={"1B": 8.6e8}, budgets=(1e9,)), "mix", "natural"))
    assert not alone.known and "1 pair of runs without a repeat" in alone.how


def test_the_sign_may_change_with_the_budget():
    # Ahead of natural text above 8B tokens, behind below: the textbook case, told budget by budget.
    runs = table({"mix": (0.33, lambda N, D: -0.03 * math.log10(D / 8e9))}, noise=0.002)
    gaps = paired_gaps(runs, "mix", "natural")
    tests = gap_tests(gaps, margin=0.005, growth_margin=0.005)
    by_budget = {t.where.split()[1]: t for t in tests if t.name == "loss_gap_at_budget"}
    assert by_budget["1B"].verdict == "supported" and by_budget["2B"].verdict == "supported"
    assert by_budget["20B"].verdict == "rejected" and by_budget["50B"].why == "better than the base"
    assert by_budget["1B"].estimate == pytest.approx(0.03 * math.log10(8), abs=0.004)
    # The intervals hold for all budgets at once, so each is wider than one alone.
    assert by_budget["1B"].level == pytest.approx(1 - 0.05 / len(BUDGETS))
    growth = tests[-1]
    assert growth.name == "gap_growth" and growth.verdict == "rejected" and growth.low < -0.03 < growth.high
    assert "gains ground" in growth.why


def test_sizes_can_be_what_is_counted():
    def lucky(N, D):  # one learning rate per size: an error that all its budgets share
        return {"100M": 0.02, "200M": -0.02, "500M": 0.015, "1B": -0.015, "3B": 0.0}[
            min(SIZES, key=lambda s: abs(SIZES[s] - N))
        ]

    gaps = paired_gaps(table({"mix": (0.5, lucky)}, noise=0.001), "mix", "natural")
    by_run, by_size = (gap_tests(gaps, margin=0.005, growth_margin=0.005, unit=unit)[0] for unit in ("run", "size"))
    assert by_run.verdict == "rejected" and by_size.verdict == "undecided"
    spread = np.std([0.02, -0.02, 0.015, -0.015, 0], ddof=1) / 5**0.5
    assert by_size.high - by_size.low == pytest.approx(2 * 2.776445 * spread, rel=0.1)
    with pytest.raises(ValueError, match="run or size; got 'seed'"):
        gap_tests(gaps, margin=0.005, growth_margin=0.005, unit="seed")


# --- planted truth, whole study ---


def test_planted_collapse_is_found():
    # A floor 0.15 nats up and a slower fall with tokens, at the noise of good runs.
    changed = {"E": 2.25, "B": 1500.0 * math.exp(-0.06 * math.log(1e9)), "beta": 0.27}
    report = collapse_tests(table({"synthetic": (1.0, changed)}, noise=0.001, common=0.005))
    assert report.base == "natural"
    told = verdicts(report.select(mixture="synthetic"))
    assert told["loss_gap"] == told["gap_growth"] == told["data_exponent"] == "supported"
    floor = collapse_tests(table({"synthetic": (1.0, {"E": 2.25})}, noise=0.001, common=0.005))
    told = verdicts(floor.select(mixture="synthetic"))
    assert told["irreducible_loss"] == "supported" and told["data_exponent"] == "rejected"
    assert told["loss_gap"] == "supported"
    E = floor.select("irreducible_loss")[0]
    assert E.low < 0.30 / 1.95 < E.high


def test_planted_absence_is_rejected_not_left_open():
    report = collapse_tests(table({"synthetic": (1.0, {"E": 1.90})}, noise=0.001, common=0.005))
    told = verdicts(report.select(mixture="synthetic"))
    assert told["loss_gap"] == told["gap_growth"] == told["data_exponent"] == "rejected"
    assert {t.verdict for t in report.select("loss_gap_at_budget")} == {"rejected"}


def test_a_tie_in_a_small_noisy_study_is_undecided_everywhere():
    sizes, budgets = {"100M": 2.8e7, "1B": 8.6e8}, (1e9, 1e10)
    report = collapse_tests(table({"synthetic": (1.0, {})}, noise=0.006, sizes=sizes, budgets=budgets, seed=3))
    assert report.counts() == {"supported": 0, "rejected": 0, "undecided": len(report.tests)}
    E = report.select("irreducible_loss")[0]
    assert "4 cells" in E.where and "takes at least 6" in E.why and math.isnan(E.estimate)


def test_one_run_a_mixture_says_nothing_unless_its_noise_is_known():
    runs = table({"synthetic": (1.0, lambda N, D: 0.03)}, noise=0.003, sizes={"1B": 8.6e8}, budgets=(1e9,))
    (gap, *_others) = collapse_tests(runs).tests
    assert gap.name == "loss_gap" and gap.verdict == "undecided" and "noise=" in gap.why
    assert collapse_tests(runs, noise=0.003).tests[0].verdict == "supported"


def test_a_study_of_one_size_is_judged_by_its_data_law():
    natural = {"E": 2.4, "A": 0.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33}
    budgets = tuple(2.0**k * 1e8 for k in range(10))
    runs = table({"synthetic": (1.0, {"E": 2.7})}, noise=0.001, sizes={"1B": 8.6e8}, budgets=budgets, natural=natural)
    E = collapse_tests(runs).select("irreducible_loss")[0]
    assert E.where.startswith("data law at size 1B, E_at_N 2.") and E.verdict == "supported"


@pytest.mark.parametrize("noise", [0.003, 0.006])
def test_false_verdicts_on_gaps_are_as_rare_as_promised(noise):
    # At the margin either answer is wrong, each with 2.5 %; of 400 studies 5 % is past three standard errors.
    def at_margin(N, D):
        return 0.005 + 0.005 * math.log10(D / 7e9)  # BUDGETS average 7e9 in the logarithm

    centre = float(np.mean(np.log10(np.array(BUDGETS) / 7e9)))
    counts = defaultdict(Counter)
    for seed in range(400):
        gaps = paired_gaps(table({"s": (1.0, at_margin)}, noise=noise, common=0.003, seed=seed), "s", "natural")
        for test in gap_tests(gaps, margin=0.005 + 0.005 * centre, growth_margin=0.005):
            counts[test.name][test.verdict] += 1
    for name in ("loss_gap", "gap_growth"):
        assert counts[name]["supported"] <= 20 and counts[name]["rejected"] <= 20, (name, counts[name])


@pytest.mark.parametrize("noise", [0.003, 0.006])
def test_false_verdicts_on_laws_are_as_rare_as_promised(noise):
    changed = {"E": 1.95 * 1.005, "beta": 0.31, "B": 1500 * math.exp(-0.02 * math.log(7e9))}
    counts = defaultdict(Counter)
    for seed in range(80):
        report = collapse_tests(table({"s": (1.0, changed)}, noise=noise, common=0.003, seed=seed))
        for test in report.tests:
            counts[test.name][test.verdict] += 1
    for name in ("irreducible_loss", "data_exponent"):
        assert counts[name]["supported"] <= 6 and counts[name]["rejected"] <= 6, (name, counts[name])
        assert sum(counts[name].values()) == 80


def half_width(test):
    return (test.high - test.low) / 2


def test_intervals_of_a_known_noise_are_those_of_the_formula():
    noise, normal = 0.004, 1.959966
    gaps = paired_gaps(table({"s": (1.0, lambda N, D: 0.01)}, noise=0.01), "s", "natural")
    tests = gap_tests(gaps, margin=0.005, growth_margin=0.005, noise=noise)
    num, x = len(gaps), np.log10(gaps.D)
    assert half_width(tests[0]) == pytest.approx(normal * noise * math.sqrt(2 / num), rel=1e-4)
    assert half_width(tests[-1]) == pytest.approx(
        normal * noise * math.sqrt(2) / np.sqrt(((x - x.mean()) ** 2).sum()), rel=1e-4
    )
    one = {"sizes": {"1B": 8.6e8}, "budgets": (1e9,)}
    runs = table({"a": (0.1, {}), "b": (0.2, {})}, noise=0.01, **one)
    line = small_ratio_test(runs, "synthetic", "natural", margin=0.05, noise=noise)
    assert half_width(line) == pytest.approx(normal * noise / math.sqrt(0.1**2 + 0.1**2), rel=1e-4)
    for test in collapse_tests(table({"s": (1.0, {"E": 2.2, "beta": 0.29})}, noise=0.003)).tests:
        assert math.isnan(test.estimate) or test.low <= test.estimate <= test.high


# --- small shares ---


def small_shares(curve, noise, seed=0, sizes=None, ratios=SMALL_RATIOS, seeds=(0,)):
    effects = {f"mix {p}": (p, lambda N, D, p=p: curve(p, N, D)) for p in ratios}
    return table(effects, noise=noise, common=0.01, sizes=sizes or SIZES, budgets=(1e9, 1e10), seed=seed, seeds=seeds)


def test_slope_at_small_shares_is_that_of_the_curve_at_zero():
    exact = small_ratio_test(
        small_shares(lambda p, N, D: 0.3 * p - 0.9 * p * p, 0.0), "synthetic", "natural", margin=0.05
    )
    assert exact.estimate == pytest.approx(0.3, abs=1e-9) and exact.verdict == "supported"
    assert "10 cells, shares 0.5 to 20 %, parabolas" in exact.where
    per_cell = small_ratio_test(
        small_shares(lambda p, N, D: (0.1 if N > 1e8 else 0.4) * p, 0.0), "synthetic", "natural", margin=0.05
    )
    assert per_cell.estimate == pytest.approx(0.1 * 0.6 + 0.4 * 0.4, abs=1e-9)  # each cell its own


@pytest.mark.parametrize(("slope", "verdict"), [(0.3, "supported"), (-0.15, "rejected")])
def test_small_shares_that_hurt_and_that_help_are_told(slope, verdict):
    runs = small_shares(lambda p, N, D: slope * p + 0.2 * p * p, 0.002)
    test = small_ratio_test(runs, "synthetic", "natural", margin=0.05)
    assert test.verdict == verdict and test.low < slope < test.high
    two = runs.take(np.isin(runs["mixture"], ["natural", "mix 0.1", "mix 0.2"]))
    assert "straight lines" in small_ratio_test(two, "synthetic", "natural", margin=0.05).where


def test_slope_intervals_hold_the_truth_as_often_as_they_say():
    tests = [
        small_ratio_test(
            small_shares(lambda p, N, D: 0.05 * p, 0.006, seed=k, sizes={"1B": 8.6e8}),
            "synthetic", "natural", margin=0.05,
        )
        for k in range(300)
    ]  # fmt: skip
    counts = Counter(test.verdict for test in tests)
    assert counts["supported"] <= 0.055 * 300 and counts["rejected"] <= 0.055 * 300
    assert np.mean([t.low < 0.05 < t.high for t in tests]) == pytest.approx(0.95, abs=0.035)


def test_without_small_shares_there_is_no_slope():
    test = small_ratio_test(table({"mix": (0.33, {})}), "synthetic", "natural", margin=0.05)
    assert test.verdict == "undecided" and "at most 20 % of synthetic" in test.why
    one = table({"mix": (0.01, lambda N, D: 0.01)}, sizes={"1B": 8.6e8}, budgets=(1e9,))
    alone = small_ratio_test(one, "synthetic", "natural", margin=0.05)
    assert alone.verdict == "undecided" and alone.estimate == pytest.approx(1.0)
    assert small_ratio_test(one, "synthetic", "natural", margin=0.05, noise=0.001).verdict == "supported"


# --- rare tokens ---


def test_tail_is_the_rarest_types_that_hold_the_share():
    tail = tail_of([50, 0, 3, 900, 3], [10, 20, 30, 900, 40], share=0.06)
    assert tail.mask.tolist() == [False, True, True, False, False]
    assert tail.num_types == 2 and tail.share == 0.05
    assert tail_of([5, 1], [1, 99], share=0.05).mask.tolist() == [False, True]  # never empty
    with pytest.raises(ValueError, match="between 0 and 1"):
        tail_of([1, 2], [1, 2], share=1.0)
    with pytest.raises(ValueError, match="3 types, the evaluation of 2"):
        tail_of([1, 2, 3], [1, 2])


def test_planted_tail_loss_is_found_beside_an_unchanged_head():
    base = evaluated(num=4, noise=0.003, seed=0)
    worse = evaluated(tail_factor=1.1, num=4, noise=0.003, seed=1)
    both = tail_tests("synthetic", "natural", worse, base, margin=0.02)
    assert verdicts(both) == {"tail_loss": "supported", "tail_excess": "supported"}
    same = tail_tests("synthetic", "natural", evaluated(num=4, noise=0.003, seed=2), base, margin=0.02)
    assert verdicts(same) == {"tail_loss": "rejected", "tail_excess": "rejected"}
    # Worse everywhere is no loss of the tail.
    everywhere = evaluated(tail_factor=1.1, head_factor=1.1, num=4, noise=0.003, seed=3)
    assert verdicts(tail_tests("synthetic", "natural", everywhere, base, margin=0.02)) == {
        "tail_loss": "supported",
        "tail_excess": "rejected",
    }


def test_intervals_on_tails_hold_both_types_and_trainings():
    counts = np.array([50, 40, 3, 2, 5])
    base = EvaluatedRun(counts, counts * np.array([2.0, 2.0, 6.0, 7.0, 8.0]), "1B", 1e9, 0.0)
    nats = counts * np.array([2.1, 2.0, 6.6, 7.0, 9.0])
    rare = np.array([False, False, True, True, False])  # 5 % of the tokens
    a, b = nats[rare], base.nats[rare]
    moved = a / a.sum() - b / b.sum()
    types = (moved**2).sum() * 2 / 1

    def tested(factors, **more):
        theirs = [EvaluatedRun(counts, base.nats, "1B", 1e9, float(k)) for k in range(len(factors))]
        ours = [EvaluatedRun(counts, nats * f, "1B", 1e9, float(k)) for k, f in enumerate(factors)]
        return tail_tests("s", "n", ours, theirs, margin=0.02, **more)[0]

    one = tested([1.0], noise=0.004)
    assert one.estimate == pytest.approx(math.log(a.sum() / b.sum()))
    assert half_width(one) == pytest.approx(1.959966 * math.sqrt(2 * 0.004**2 + types), rel=1e-4)
    three = tested([1.0, math.exp(0.02), math.exp(-0.02)])
    assert half_width(three) == pytest.approx(4.302653 * math.sqrt(0.02**2 / 3 + types), rel=1e-4)


def test_two_checkpoints_need_a_known_noise():
    base, worse = evaluated(seed=0), evaluated(tail_factor=1.1, seed=1)
    open_ = tail_tests("synthetic", "natural", worse, base, margin=0.02)
    assert {t.verdict for t in open_} == {"undecided"} and "1 pair of checkpoints do not show" in open_[0].why
    told = tail_tests("synthetic", "natural", worse, base, margin=0.02, noise=0.004)
    assert told[0].verdict == "supported"
    # A runs table says how its runs scatter, and that is used.
    runs = table({"synthetic": (1.0, {"E": 2.1})}, noise=0.004)
    report = collapse_tests(runs, evaluations={"natural": base, "synthetic": worse})
    assert report.select("tail_loss")[0].verdict == "supported"
    assert report.scatter["synthetic"] == pytest.approx(0.004, rel=0.5)


def test_false_verdicts_on_tails_are_rare():
    counts = Counter()
    for k in range(200):
        base = evaluated(num=3, noise=0.004, seed=2 * k)
        other = evaluated(tail_factor=1.02, head_factor=1.02, num=3, noise=0.004, seed=2 * k + 1)
        counts[tail_tests("s", "n", other, base, margin=math.log(1.02))[0].verdict] += 1
    assert counts["supported"] <= 11 and counts["rejected"] <= 11


def test_checkpoints_must_be_evaluated_alike():
    base, other = evaluated(), evaluated(vocab=2_000)
    with pytest.raises(ValueError, match="not evaluated on the same tokens"):
        tail_tests("synthetic", "natural", other, base, margin=0.02)
    with pytest.raises(ValueError, match="same size, budget and seed"):
        tail_tests("synthetic", "natural", [*base, *base], base, margin=0.02)
    elsewhere = evaluated(budgets=[5e9])
    test = tail_tests("synthetic", "natural", elsewhere, base, margin=0.02, noise=0.003)[0]
    assert test.verdict == "undecided" and "of its size, budget and seed" in test.why
    for counts, nats, message in (
        ([1, -1], [1.0, 1.0], "negative"),
        ([1], [1.0, 2.0], "same types"),
        ([0], [0.0], "without scored"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluatedRun(np.array(counts), np.array(nats))


# --- corpora ---


def test_expected_types_are_those_of_every_draw():
    counts = np.array([3, 0, 1, 2, 1])
    tokens = np.repeat(np.arange(5), counts)
    for m in range(1, 8):
        draws = [len(set(tokens[list(rows)])) for rows in itertools.combinations(range(7), m)]
        assert expected_types(counts, m) == pytest.approx(np.mean(draws), rel=1e-12)
    with pytest.raises(ValueError, match="8 tokens cannot be drawn from a corpus of 7"):
        expected_types(counts, 8)


def test_a_cut_tail_is_found_and_an_uncut_one_excluded():
    natural = corpus(zipf_counts(seed=0))
    cut = corpus(zipf_counts(seed=1, top_p=0.97, tokens=3_000_000))
    found = support_tests("hq", "cc", cut, natural, margin=0.05, mass_margin=0.2)
    assert verdicts(found) == {"support": "supported", "tail_mass": "supported"}
    assert "in 2,000,000 tokens" in found[0].where  # matched, though the cut corpus is larger
    same = corpus(zipf_counts(seed=2, tokens=1_000_000))
    found = support_tests("hq", "cc", same, natural, margin=0.05, mass_margin=0.2)
    assert verdicts(found) == {"support": "rejected", "tail_mass": "rejected"}


def test_clumped_tokens_widen_the_interval():
    counts = zipf_counts(seed=0), zipf_counts(seed=1)
    single, clumped = (
        support_tests("hq", "cc", *(corpus(c, size) for c in counts), margin=0.05, mass_margin=0.2)[1]
        for size in (1, 400)
    )
    assert (clumped.high - clumped.low) / (single.high - single.low) == pytest.approx(20, rel=0.01)
    unknown = support_tests("hq", "cc", *(corpus(c, 10**9) for c in counts), margin=0.05, mass_margin=0.2)
    assert "documents unknown" in unknown[0].why


def test_equal_corpora_of_documents_rarely_differ():
    # Documents repeat their rare words: the case single draws get wrong. The truth is "no difference", margin 0.
    def of_documents(seed):
        rng = np.random.default_rng(seed)
        p = 1 / np.arange(1, 5_001)
        words = rng.choice(5_000, size=(600, 10), p=p / p.sum())
        return np.bincount(np.repeat(words, 10), minlength=5_000)

    counts, own_counts = defaultdict(Counter), Counter()
    for k in range(60):
        pair = [corpus(of_documents(2 * k + j), 100) for j in (0, 1)]
        for test in support_tests("a", "b", *pair, margin=0.0, mass_margin=0.0):
            counts[test.name][test.verdict] += 1
        # What the second corpus alone calls rare is richer in the first every time.
        rare = tail_of(pair[1].counts, pair[1].counts).mask | (pair[1].counts == 0)
        own_counts[bool(pair[0].counts[rare].sum() > pair[1].counts[rare].sum())] += 1
    for name in ("support", "tail_mass"):
        assert counts[name]["supported"] <= 5 and counts[name]["rejected"] <= 5
    assert own_counts[True] == 60


def test_corpora_of_two_vocabularies_are_refused():
    with pytest.raises(ValueError, match="two vocabularies"):
        support_tests("a", "b", corpus([1, 2, 3]), corpus([1, 2]), margin=0.05, mass_margin=0.2)
    with pytest.raises(ValueError, match="has 1 tokens"):
        support_tests("a", "b", corpus([1, 0]), corpus([1, 2]), margin=0.05, mass_margin=0.2)


# --- the report ---


def test_everything_together_reads_and_writes(tmp_path):
    runs = small_shares(lambda p, N, D: 0.2 * p, 0.002)
    report = collapse_tests(
        runs,
        evaluations={"natural": evaluated(num=3, vocab=20_000), "mix 0.2": evaluated(1.1, num=3, seed=4, vocab=20_000)},
        counts={"natural": corpus(zipf_counts()), "synthetic": corpus(zipf_counts(top_p=0.9, seed=3))},
    )
    assert {t.name for t in report.tests} == {
        "loss_gap", "loss_gap_at_budget", "gap_growth", "irreducible_loss", "data_exponent", "small_ratio_slope",
        "tail_loss", "tail_excess", "support", "tail_mass",
    }  # fmt: skip
    assert not report.notes
    assert sum(report.counts().values()) == len(report.tests) == len(report.rows())
    text = str(report)
    assert "mix 0.2" in text and "nan" not in text
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["margins"]["loss"] == 0.005 and len(plain["tests"]) == len(report.tests)
    shuffled = runs.take(np.random.default_rng(0).permutation(len(runs)))
    again = collapse_tests(shuffled, base="natural")
    for test in report.select("loss_gap"):
        other = again.select("loss_gap", test.mixture)[0]
        assert (other.estimate, other.verdict) == (pytest.approx(test.estimate), test.verdict)


def test_what_cannot_be_asked_is_refused_with_what_there_is():
    runs = table({"mix": (0.5, {})})
    for given, message in (
        ({}, "nothing to test"),
        ({"runs": runs, "base": "web"}, "base mixture 'web' is not in the runs table; it has natural, mix"),
        ({"runs": runs, "noise": 0.0}, "noise is a standard deviation"),
        ({"runs": runs, "objective": "l2"}, "mse, huber, lad; got 'l2'"),
        ({"runs": runs, "level": 95}, "share between 0 and 1"),
        ({"runs": runs, "target": "loss_pile"}, "no column 'loss_pile'"),
        ({"runs": runs, "max_ratio": 0.0}, "max_ratio is a share"),
        ({"runs": runs.take([])}, "empty"),
        ({"evaluations": {"mix": evaluated()}}, "compared with those of the base"),
        ({"counts": {"hq": corpus([1, 2])}}, "natural= names it among hq, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            collapse_tests(given.pop("runs", None), **given)
    with pytest.raises(ValueError, match=r"margins\.slope"):
        Margins(slope=-1.0)
    alone = collapse_tests(runs.select(mixture="natural"))
    assert not alone.tests and "one mixture" in alone.notes[0]
