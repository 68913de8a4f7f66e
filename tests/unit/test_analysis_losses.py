"""Per-type losses against frequency, and losses of mixtures against distances, where the answer is known."""

import itertools
import math

import numpy as np
import pytest
from collapse_doubles import table
from scipy.stats import pearsonr, spearmanr

from lingua_synth.analysis.correlation import (
    compare_losses,
    loss_distance,
    mixture_distances,
    pearson,
    rank_interval,
    spearman,
)
from lingua_synth.analysis.losses import loss_differences, loss_table, rolling_loss

# --- rolling losses ---


def test_rolling_mean_is_that_of_the_types_around():
    counts = np.array([4, 0, 1, 2, 5, 3])
    nats = counts * np.array([1.0, 9.0, 6.0, 3.0, 2.0, 4.0])
    rolled = rolling_loss(counts, nats, reference=[7, 100, 0, 3, 50, 7], window=3, sorted_by="cc")
    assert rolled.token_id.tolist() == [4, 0, 5, 3, 2]  # type 1 was not scored; 0 and 5 tie, by id
    assert rolled.loss.tolist() == [2.0, 1.0, 4.0, 3.0, 6.0]
    assert rolled.mean == pytest.approx([1.5, 7 / 3, 8 / 3, 13 / 3, 4.5])
    assert rolled.pooled == pytest.approx([14 / 9, 26 / 12, 22 / 9, 24 / 6, 12 / 3])
    assert rolled.frequency == pytest.approx(np.array([50, 7, 7, 3, 0]) / 167)
    half = 1.959964 * np.std([2, 1, 4], ddof=1) / math.sqrt(3)
    assert (rolled.low[1], rolled.high[1]) == (pytest.approx(7 / 3 - half), pytest.approx(7 / 3 + half))
    assert [row["rank"] for row in rolled.rows()] == [1, 2, 3, 4, 5] and rolled.rows()[0]["token_id"] == 4


def test_rolling_mean_against_a_plain_loop():
    rng = np.random.default_rng(0)
    counts, reference = rng.integers(0, 9, 400), rng.integers(0, 50, 400)
    nats = counts * rng.exponential(3.0, 400)
    for window in (1, 2, 7, 50, 1_000):
        rolled = rolling_loss(counts, nats, reference, window=window)
        order = sorted((i for i in range(400) if counts[i]), key=lambda i: (-reference[i], i))
        for k in range(0, len(order), 37):
            near = order[max(0, k - window // 2) : k - window // 2 + window]
            assert rolled.mean[k] == pytest.approx(np.mean([nats[i] / counts[i] for i in near]), rel=1e-12)
            assert rolled.pooled[k] == pytest.approx(nats[near].sum() / counts[near].sum(), rel=1e-12)


# --- representation and loss ---


def test_a_withheld_token_heads_the_table():
    rng = np.random.default_rng(1)
    p = 1 / np.arange(1, 501)
    test, train = (rng.multinomial(100_000, p / p.sum()) for _ in range(2))
    withheld = 20
    train[withheld] = 0
    nats = test * 4.0
    nats[withheld] *= 3
    for by in ("excess_nats", "ratio", "loss"):
        found = loss_table(test, nats, train, by=by)
        assert found.token_id[0] == withheld, by
    row = found.rows(lambda i: f"<{i}>", most=1)[0]
    assert row["text"] == "<20>" and row["train_count"] == 0 and row["loss"] == 12.0
    expected = (test[20] + 0.5) / (100_000 + 250) / (0.5 / (train.sum() + 250))
    assert row["ratio"] == pytest.approx(expected)
    mean = nats.sum() / 100_000
    assert found.mean_loss == pytest.approx(mean)
    assert row["excess_nats"] == pytest.approx(test[20] * (12 - mean))
    assert found.under_tokens == pytest.approx(test[20] / 100_000, abs=0.003)
    assert found.under_nats == pytest.approx(3 * found.under_tokens / (1 + 2 * found.under_tokens), rel=0.05)
    assert sum(loss_table(test, nats, train, min_count=1).excess_nats) == pytest.approx(0.0, abs=1e-6)
    assert loss_table(test, nats, train, min_count=10**6).spearman != found.spearman  # NaN: no type is left
    assert found.to_dict()["num_types"] == len(found) == int((test >= 20).sum())


def test_arrays_of_two_vocabularies_are_refused():
    with pytest.raises(ValueError, match="counts 2, nats 2, train 3"):
        loss_table([1, 2], [1.0, 2.0], [1, 2, 3])
    with pytest.raises(ValueError, match="by is one of"):
        loss_table([1], [1.0], [1], by="worst")
    with pytest.raises(ValueError, match="above 0"):
        loss_table([1], [1.0], [1], smoothing=0)
    with pytest.raises(ValueError, match="window is a number of types"):
        rolling_loss([1], [1.0], [1], window=0)
    for bad in ([0, 0], [-1, 2]):
        with pytest.raises(ValueError, match=r"no token was scored|negative"):
            rolling_loss(bad, [0.0, 1.0], [1, 1])


# --- two models ---


def two_models(shift, *, domains=6, vocab=400, seed=0, own=0.0):
    """Losses of two models per domain and type; `shift` nats on the last tenth of the types, the rest alike."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.exponential(60, vocab)[None, :] * np.ones((domains, 1)))
    base = counts * 3.0
    moved = np.zeros(vocab)
    moved[-vocab // 10 :] = shift
    of_domain = own * rng.standard_normal((domains, vocab))
    noise = rng.standard_normal((domains, vocab)) * np.sqrt(counts) * 0.8
    return (counts, base + counts * (moved + of_domain) + noise), (counts, base)


def test_types_that_differ_are_found_and_others_are_not():
    first, second = two_models(0.5)
    found = loss_differences(first, second)
    moved = found.token_id >= 360
    apart = np.isin(np.arange(len(moved)), found.told_apart)
    assert apart[moved].mean() > 0.9
    assert apart[~moved].mean() < 0.03
    assert found.difference[moved].mean() == pytest.approx(0.5, abs=0.05)
    assert found.rows(str)[0]["q"] < 1e-6 and found.rows(most=3)[2]["token_id"] >= 360
    assert found.count.min() >= 20


@pytest.mark.parametrize("own", [0.0, 0.1])
def test_intervals_of_types_hold_the_truth(own):
    # `own`: a domain moves a type by itself; differences then scatter more than single tokens would.
    held, false = [], []
    for seed in range(12):
        found = loss_differences(*two_models(0.0, seed=seed, own=own))
        held.append(np.mean((found.low < 0) & (found.high > 0)))
        false.append(len(found.told_apart) > 0)
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)
    assert sum(false) <= 3


def test_one_domain_has_differences_and_no_intervals():
    (counts, a), (_, b) = two_models(0.5, domains=1)
    found = loss_differences((counts[0], a[0]), (counts[0], b[0]))
    assert np.isnan(found.low).all() and "one domain" in found.why_not and not len(found.told_apart)
    with pytest.raises(ValueError, match="not evaluated on the same tokens"):
        loss_differences((counts, a), (counts + 1, b))
    with pytest.raises(ValueError, match="shapes"):
        loss_differences((counts, a[:, 1:]), (counts, b))


# --- over mixtures ---


def test_correlations_are_those_of_scipy_and_all_permutations():
    rng = np.random.default_rng(3)
    for num in (4, 6, 10, 15):
        x, y = rng.standard_normal((2, num))
        assert pearson(x, y).value == pytest.approx(pearsonr(x, y).statistic)
        assert spearman(x, y).value == pytest.approx(spearmanr(x, y).statistic)
        if num > 3:
            ends = pearsonr(x, y).confidence_interval(0.95)
            assert (pearson(x, y).low, pearson(x, y).high) == pytest.approx((ends.low, ends.high), rel=1e-4)
    x, y = [1.0, 2.0, 4.0, 8.0, 9.0], [0.3, 0.1, 0.5, 0.9, 0.7]
    value = abs(np.corrcoef(x, y)[0, 1])
    all_p = np.mean([abs(np.corrcoef(x, p)[0, 1]) >= value - 1e-12 for p in itertools.permutations(y)])
    assert pearson(x, y).p == pytest.approx(all_p)
    assert math.isnan(pearson([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).value)
    assert (pearson([1.0, 2.0, 4.0], [1.0, 3.0, 2.0]).low, pearson([1.0, 2.0, 4.0], [1.0, 3.0, 2.0]).high) == (-1, 1)


@pytest.mark.parametrize("num", [3, 4, 6, 10, 20])
def test_rank_intervals_hold_the_truth_at_few_mixtures(num):
    for rho in (0.0, 0.6, 0.95):
        truth = 6 / math.pi * math.asin(rho / 2)
        rng = np.random.default_rng((num, int(100 * rho)))
        held, told = 0, 0
        for _ in range(500):
            x, e = rng.standard_normal((2, num))
            value = spearmanr(x, rho * x + math.sqrt(1 - rho**2) * e).statistic
            low, high = rank_interval(value, num, 0.95)
            held += low <= truth <= high
            told += low > 0
        assert held >= 0.92 * 500, (num, rho, held / 500)
        if num == 3:
            assert told == 0  # three mixtures in order are one of six orders


def test_order_without_doubt_is_still_no_certainty():
    four = spearman([1, 2, 3, 4], [1, 2, 3, 4])
    assert four.value == 1 and four.low < 0.1 and four.high == 1 and four.p == pytest.approx(2 / 24)


def test_nearest_and_best_are_told_by_verdicts():
    effects = {"hq": (0.33, lambda N, D: -0.03), "qa": (0.33, lambda N, D: 0.02), "txbk": (0.33, lambda N, D: 0.05)}
    runs = table(effects, noise=0.003)
    near_is_worse = {"natural": 0.1, "hq": 0.4, "qa": 0.6, "txbk": 0.9}
    found = loss_distance(runs, near_is_worse)
    assert found.nearest == "natural" and found.best == "hq" and found.tied_with_best == ("hq",)
    assert found.verdict == "rejected" and "hq has a lower loss" in found.why
    assert found.regret == pytest.approx(0.03, abs=0.002)
    assert found.num_cells == 30 and found.freedom == 3 * 29
    assert found.loss_error == pytest.approx(0.003 * math.sqrt(0.75 / 30), rel=0.2)
    ordered = loss_distance(runs, {"hq": 0.1, "natural": 0.2, "qa": 0.3, "txbk": 0.4})
    assert ordered.verdict == "supported" and ordered.spearman.value == 1
    assert "natural" in str(ordered) or "hq" in str(ordered)
    assert [row["mixture"] for row in ordered.rows()] == ["hq", "natural", "qa", "txbk"]
    ties = table({"hq": (0.33, {})}, noise=0.006, sizes={"1B": 8.6e8}, budgets=(1e9, 1e10))
    assert loss_distance(ties, {"natural": 0.1, "hq": 0.2}).verdict == "undecided"
    one = table({"hq": (0.33, lambda N, D: -0.03)}, sizes={"1B": 8.6e8}, budgets=(1e9,))
    assert "noise=" in loss_distance(one, {"natural": 0.1, "hq": 0.2}).why
    assert loss_distance(one, {"natural": 0.1, "hq": 0.2}, noise=0.002).verdict == "rejected"


def test_false_verdicts_about_the_nearest_are_rare():
    # All mixtures alike: "nearest is best" is neither, and must not be called either often.
    rng = np.random.default_rng(5)
    verdicts = [
        compare_losses(["a", "b", "c", "d"], 0.005 * rng.standard_normal((4, 6)), [1, 2, 3, 4]).verdict
        for _ in range(600)
    ]
    assert verdicts.count("rejected") <= 0.045 * 600
    assert verdicts.count("supported") <= 0.025 * 600


def test_distances_of_mixtures_are_those_of_their_frequencies():
    test, cc, hq = [60, 30, 10], [500, 400, 100], [700, 300, 0]
    shares = {"cc": {"cc": 1.0, "hq": 0.0}, "half": {"cc": 0.5, "hq": 0.5}, "qa": {"qa": 1.0}}
    found = mixture_distances(shares, {"cc": cc, "hq": hq}, test, smoothing=0.5)
    assert list(found) == ["cc", "half"]  # nobody counted qa
    p = (np.array(test) + 0.5) / 101.5
    q = (np.array([600, 350, 50]) + 0.5) / 1001.5
    assert found["half"] == pytest.approx(float(p @ np.log(p / q)))
    without = mixture_distances({"hq": {"hq": 1.0}}, {"hq": hq}, test, smoothing=0.0)
    assert math.isinf(without["hq"])
    with pytest.raises(ValueError, match="no mixture is made of hq alone"):
        mixture_distances({"qa": {"qa": 1.0}}, {"hq": hq}, test)


def test_distances_must_fit_the_table():
    runs = table({"hq": (0.33, {})})
    for distances, message in (
        ({"natural": 0.1}, "two mixtures or more"),
        ({"natural": 0.1, "cc": 0.2}, "no runs of mixture 'cc'"),
        ({"natural": 0.1, "hq": math.inf}, "distance of 'hq' is inf; smooth"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_distance(runs, distances)
    with pytest.raises(ValueError, match="one row and one distance"):
        compare_losses(["a", "b"], np.zeros((3, 2)), [1.0, 2.0])
    apart = runs.take((runs["mixture"] == "hq") == (runs["tokens"] > 5e9))
    with pytest.raises(ValueError, match="no size and budget"):
        loss_distance(apart, {"natural": 0.1, "hq": 0.2})
