"""Divergences equal scipy's, infinite stays infinite, matching tells size from content, minima are found."""

import math

import numpy as np
import pytest
from analysis_doubles import zipf_probabilities
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from lingua_synth.analysis.distances import (
    distances,
    js_divergence,
    kl_divergence,
    mixture_curve,
    nearest_mixture,
    smoothed,
)


def test_divergences_equal_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(50)), rng.dirichlet(np.ones(50))
        p[:5] = 0
        p /= p.sum()
        assert kl_divergence(p, q) == pytest.approx(entropy(p, q), rel=1e-12)
        assert js_divergence(p, q) == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-12)
        assert js_divergence(p, q) == pytest.approx(js_divergence(q, p), rel=1e-12)
    assert kl_divergence([0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_a_token_that_is_missing_is_infinitely_far_unless_smoothed():
    p, q = np.array([3, 1, 0]), np.array([4, 0, 0])
    assert kl_divergence(smoothed(p, 0), smoothed(q, 0)) == math.inf
    assert kl_divergence(smoothed(q, 0), smoothed(p, 0)) == pytest.approx(math.log(4 / 3))
    assert js_divergence(smoothed(p, 0), smoothed(q, 0)) < math.log(2)
    assert js_divergence([1.0, 0.0], [0.0, 1.0]) == pytest.approx(math.log(2))
    assert smoothed(p, 0.5).tolist() == pytest.approx([3.5 / 5.5, 1.5 / 5.5, 0.5 / 5.5])
    assert math.isfinite(kl_divergence(smoothed(p, 0.5), smoothed(q, 0.5)))
    (pair,) = distances({"a": p, "b": q}, smoothing=0.0, num_samples=3)
    assert pair.kl == math.inf and math.isnan(pair.kl_sd) and math.isfinite(pair.kl_reverse)


def test_equal_corpora_of_other_sizes_are_as_near_as_two_halves_of_one():
    """Two samples of one law are, matched, no farther apart than two halves of one of them."""
    p = zipf_probabilities(5_000, 1.0)
    rng = np.random.default_rng(1)
    corpora = {"small": rng.multinomial(50_000, p), "large": rng.multinomial(2_000_000, p)}
    far = zipf_probabilities(5_000, 1.15)
    corpora["far"] = rng.multinomial(120_000, far)
    found = {(d.first, d.second): d for d in distances(corpora, num_samples=6)}
    assert set(found) == {("small", "large"), ("small", "far"), ("large", "large"), ("large", "far"), ("far", "far")}
    assert all(d.num_tokens == 50_000 and d.num_samples == 6 for d in found.values())
    itself = found["large", "large"]
    assert found["small", "large"].kl == pytest.approx(itself.kl, rel=0.1)
    assert found["small", "large"].js == pytest.approx(itself.js, rel=0.1)
    assert found["small", "far"].kl > 1.2 * itself.kl and found["small", "far"].js > 1.2 * itself.js
    again = distances(corpora, num_samples=6)
    assert [d.to_dict() for d in again] == [d.to_dict() for d in found.values()]


def test_a_cut_tail_is_farther_from_the_test_corpus_at_equal_tokens():
    rng = np.random.default_rng(2)
    p = zipf_probabilities(20_000, 1.0)
    kept = np.cumsum(p) <= 0.9
    corpora = {
        "test": rng.multinomial(2_000_000, p),
        "natural": rng.multinomial(1_000_000, p),
        "cut": rng.multinomial(6_000_000, np.where(kept, p, 0) / p[kept].sum()),
    }
    found = {(d.first, d.second): d for d in distances(corpora)}
    natural, cut = found["test", "natural"], found["test", "cut"]
    assert cut.kl > natural.kl + 4 * (natural.kl_sd + cut.kl_sd)
    assert cut.absent > natural.absent and cut.js > natural.js
    assert found["natural", "cut"].kl > found["natural", "cut"].kl_reverse  # the cut one has nothing that natural lacks


def test_the_lowest_point_of_a_mixture_is_the_planted_one():
    """The test corpus is 30 % of one source and 70 % of the other, so there the distance is 0."""
    rng = np.random.default_rng(3)
    base, added = (rng.dirichlet(np.full(200, 0.3)) * 1e7 + 1 for _ in range(2))
    base, added = base.astype(np.int64), added.astype(np.int64)
    test = np.rint(1e9 * (0.7 * base / base.sum() + 0.3 * added / added.sum())).astype(np.int64)
    curve = mixture_curve(test, base, added, smoothing=0.0, names=("wiki", "cc", "hq"))
    assert curve.best_ratio == pytest.approx(0.3, abs=1e-4) and curve.best_kl < 1e-9
    assert curve.ratios[6] == 0.3 and min(curve.kl) == curve.kl[6] and (curve.test, curve.added) == ("wiki", "hq")
    assert curve.kl[0] == pytest.approx(kl_divergence(smoothed(test, 0), smoothed(base, 0)), rel=1e-12)
    assert curve.kl[-1] == pytest.approx(kl_divergence(smoothed(test, 0), smoothed(added, 0)), rel=1e-12)
    ratios, kl = nearest_mixture(test, {"cc": base, "hq": added}, smoothing=0.0)
    assert ratios["hq"] == pytest.approx(0.3, abs=1e-4) and kl < 1e-6


def test_a_source_that_only_hurts_is_left_out():
    rng = np.random.default_rng(4)
    near, far = rng.multinomial(50_000, zipf_probabilities(300, 1.0)), rng.multinomial(50_000, np.full(300, 1 / 300))
    reversed_law = rng.multinomial(50_000, zipf_probabilities(300, 1.0)[::-1])
    test = rng.multinomial(50_000, zipf_probabilities(300, 1.1))
    assert mixture_curve(test, near, reversed_law).best_ratio == pytest.approx(0, abs=1e-6)
    ratios, kl = nearest_mixture(test, {"near": near, "far": far, "reversed": reversed_law})
    assert ratios["reversed"] < 1e-4 and ratios["near"] > 0.95 and sum(ratios.values()) == pytest.approx(1)
    for other in ({"near": 0.9, "far": 0.1}, {"near": 1.0}, {"near": 0.98, "reversed": 0.02}):
        counts = {"near": near, "far": far, "reversed": reversed_law}
        mixed = sum(share * counts[name] for name, share in other.items())
        assert kl_divergence(smoothed(test, 0.5), smoothed(mixed, 0.5)) >= kl - 1e-6


def test_a_corpus_of_one_token_is_compared_like_any_other():
    one, two = np.array([0, 9, 0]), np.array([3, 3, 3])
    (pair,) = distances({"one": one, "two": two}, num_samples=1)
    assert math.isfinite(pair.kl) and math.isnan(pair.kl_sd) and pair.num_tokens == 9
    assert pair.absent == 0 and pair.absent_reverse == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distances({"a": [1, 2], "b": [1, 2, 3]}), r"vocabularies of different sizes \(a: 2, b: 3\)"),
        (lambda: distances({"a": [1, 2], "b": [0, 0]}), "b has no tokens; leave it out"),
        (lambda: distances({"a": [1, 2], "b": [2, 2]}, num_tokens=4), "asked are 4 tokens of each corpus, one has 3"),
        (lambda: distances({}), "there is no corpus"),
        (lambda: distances({"a": [1], "b": [1]}, num_samples=0), "num_samples is at least 1, got 0"),
        (lambda: smoothed([0, 0], 0.0), "has no frequencies"),
        (lambda: smoothed([1, 0], -1.0), "0 or more; got -1"),
        (lambda: kl_divergence([1.0], [0.5, 0.5]), "vocabularies of 1 and 2 words"),
        (lambda: mixture_curve([1, 1], [1, 1], [1, 1], ratios=[1.5]), r"shares in \[0, 1\], got 1.5"),
        (lambda: nearest_mixture([1, 1], {"a": [1, 0], "b": [2, 0]}, smoothing=0.0), "in no source"),
        (lambda: nearest_mixture([1, 1], {}), "no source to mix"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_smoothing_a_hopeless_mixture_has_no_lowest_point():
    curve = mixture_curve([1, 1, 1], [1, 1, 0], [1, 0, 0], smoothing=0.0)
    assert math.isnan(curve.best_ratio) and curve.best_kl == math.inf and set(curve.kl) == {math.inf}
