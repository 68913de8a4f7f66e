"""Noise of a run, and which candidates may be the best."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_t

from lingua_synth.scaling import Runs, fit_study, simulate_study
from lingua_synth.scaling.ranking import _largest_sets
from lingua_synth.scaling.ties import RunNoise, best_factor, ratio_ties, run_noise, tie_set


def test_noise_is_that_of_the_seeds_without_what_they_share():
    runs, _ = simulate_study("nano", noise=0.004, common_noise=0.02, num_seeds=3, seed=3)
    found = run_noise(runs)
    assert found.from_seeds and "35 cells" in found.source
    assert found.freedom == 35 * (4 * 3 - 4 - 3 + 1)
    assert found.sd == pytest.approx(0.004, rel=0.15)
    # Without seed numbers the runs of a mixture are repeats, and what they shared is noise.
    blind = Runs({name: values for name, values in runs.columns.items() if name != "seed"})
    assert run_noise(blind).sd == pytest.approx(math.hypot(0.004, 0.02), rel=0.2)


def test_without_seeds_the_laws_show_the_noise_or_nobody_does():
    runs, _ = simulate_study("nano", noise=0.004, seed=3)
    assert run_noise(runs) is None
    found = run_noise(runs, fits=fit_study(runs, num_bootstraps=0))
    assert not found.from_seeds and found.sd == pytest.approx(0.004, rel=0.15)


def test_the_factor_is_dunnetts():
    # p differences with a control in common are multivariate t, any two correlated by a half.
    for p, freedom in ((1, 10), (2, 10), (5, 10), (9, 20), (2, 5)):
        law = multivariate_t(shape=0.5 * (np.eye(p) + np.ones((p, p))), df=freedom, seed=0)
        assert law.cdf(np.full(p, best_factor(p + 1, freedom))) == pytest.approx(0.95, abs=1e-3)
    assert best_factor(2, 10) == pytest.approx(1.812, abs=1e-3)  # Student's
    assert best_factor(3, 10) == pytest.approx(2.15, abs=6e-3)  # Dunnett (1955), table 1a
    assert best_factor(1, 10) == 0


def test_the_best_is_in_its_tie_set_as_often_as_promised():
    rng = np.random.default_rng(0)
    truth, sd, freedom, trials = np.array([0.0, 0.0005, 0.002, 0.01, 0.03]), 0.002, 12, 3000
    kept = np.zeros(len(truth))
    for _ in range(trials):
        means = truth + sd / math.sqrt(2) * rng.standard_normal(len(truth))
        noise = RunNoise(sd * math.sqrt(rng.chisquare(freedom) / freedom), freedom, "", True)
        kept[list(tie_set(means, [2] * 5, noise))] += 1
    assert kept[0] / trials > 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials)
    assert kept[1] / trials > 0.9 and kept[4] == 0


def test_equal_candidates_are_tied_and_the_guarantee_is_tight_for_them():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        tied = tie_set(0.003 * rng.standard_normal(6), [1] * 6, RunNoise(0.003, 10_000, "", True))
        hits += 0 in tied
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_ratio_ties_cell_by_cell():
    runs, _ = simulate_study("nano", noise=0.0005, num_seeds=3, seed=1)
    found = ratio_ties(runs, "natural", "synthetic", run_noise(runs))
    assert len(found) == 35 and [one.N for one in found] == sorted(one.N for one in found)
    for one in found:
        assert one.ratios == (0.0, 0.33, 0.67, 1.0) and one.best in one.ties and one.known
    # Planted: at the smallest budget 33 % beats natural text clearly, at 16M tokens of the largest model it does not.
    small = next(one for one in found if one.size == "nano-27k" and one.tokens == 2**18)
    assert small.best == 0.33 and 0.0 not in small.ties and 1.0 not in small.ties
    blind = ratio_ties(runs, "natural", "synthetic", None)
    assert all(one.ties == one.ratios and not one.known for one in blind)


def test_groups_of_many_tied_mixtures_are_the_largest_sets_and_take_no_time():
    rng = np.random.default_rng(0)
    for _ in range(100):
        tied = np.triu(rng.random((8, 8)) < rng.random(), 1)
        tied = tied | tied.T | np.eye(8, dtype=bool)
        subsets = [[k for k in range(8) if number >> k & 1] for number in range(1, 256)]
        whole = [set(subset) for subset in subsets if tied[np.ix_(subset, subset)].all()]
        expected = sorted(sorted(one) for one in whole if not any(one < other for other in whole))
        assert _largest_sets(tied) == expected
    # Begun with each of its members anew, a set of sixty would be found 2^60 times.
    assert _largest_sets(np.ones((60, 60), dtype=bool)) == [list(range(60))]
