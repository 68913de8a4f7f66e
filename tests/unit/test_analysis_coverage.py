"""Rarefaction is exact, samples are what they claim, and a corpus with a cut tail shows it at equal size."""

import math
from fractions import Fraction

import numpy as np
import pytest
from analysis_doubles import zipf_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.analysis.coverage import (
    expected_coverage,
    expected_singletons,
    expected_types,
    grid_of_sizes,
    log_probability_absent,
    match_size,
    subsample,
    tail_mass,
    tail_types,
)


def absent(total, count, drawn):
    """The probability in fractions, as a product of the shorter kind."""
    if count > total - drawn:
        return Fraction(0)
    count, drawn = min(count, drawn), max(count, drawn)
    product = Fraction(1)
    for j in range(count):
        product *= Fraction(total - drawn - j, total - j)
    return product


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any), st.floats(0, 1))
def test_rarefaction_equals_fractions(counts, share):
    total = sum(counts)
    drawn = round(share * total)
    exact = [absent(total, c, drawn) for c in counts]
    log_q = log_probability_absent(counts, drawn)
    for q, log in zip(exact, log_q, strict=True):
        assert (log == -math.inf) if q == 0 else math.isclose(math.exp(log), q, rel_tol=1e-11)
    assert expected_types(counts, drawn) == pytest.approx(float(sum(1 - q for q in exact)), rel=1e-9, abs=1e-12)
    once = sum(Fraction(c * math.comb(total - c, drawn - 1), math.comb(total, drawn)) for c in counts if drawn >= 1)
    assert expected_singletons(counts, drawn) == pytest.approx(float(once), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("total", "count", "drawn"),
    [
        (10**12, 1, 10**6),
        (10**12, 10**6, 10**6),
        (10**13, 2_000, 10**9),
        (10**10, 3, 10**10 - 5),
        (10**9, 2 * 10**9 // 3, 7),
        (10**12, 40, 10**4),
    ],
)
def test_rarefaction_keeps_its_precision_at_any_size(total, count, drawn):
    """Differences of log-gamma functions would be off by 0.01 here."""
    small = min(count, drawn)
    log_exact = 0.0
    if small <= 10_000:
        log_exact = math.fsum(math.log1p(-max(count, drawn) / (total - j)) for j in range(small))
    else:
        j = np.arange(small)
        log_exact = math.fsum(np.log1p(-max(count, drawn) / (total - j)))
    found = log_probability_absent([count, total - count], drawn)[0]
    assert found == pytest.approx(log_exact, rel=1e-9, abs=3e-14)


def test_all_tokens_show_all_types_and_none_shows_none():
    counts = [5, 0, 1, 70]
    assert expected_types(counts, 76) == 3
    assert expected_types(counts, 0) == 0
    assert expected_types(counts, 1) == pytest.approx(1, abs=1e-12)
    assert expected_singletons(counts, 76) == pytest.approx(1, abs=1e-12)
    assert expected_coverage(counts, [1, 1, 0, 2], 76) == (0.75, pytest.approx(2 / 3))


def test_samples_have_the_size_asked_and_the_expected_types():
    p = zipf_probabilities(3_000, 1.1)
    counts = np.random.default_rng(0).multinomial(40_000, p)
    rng = np.random.default_rng(1)
    for drawn in (0, 1, 400, 20_000, 39_999, 40_000):
        samples = [subsample(counts, drawn, rng) for _ in range(30)]
        assert all(s.sum() == drawn and (s <= counts).all() and (s >= 0).all() for s in samples)
        types = [np.count_nonzero(s) for s in samples]
        far = 4 * (np.std(types) + 1e-9) / np.sqrt(30)
        assert abs(np.mean(types) - expected_types(counts, drawn)) <= max(far, 0.05)


def test_samples_are_uniform():
    """Mean and variance of each count are those of the hypergeometric distribution, within 5 standard errors."""
    counts, drawn, rng = np.array([50, 30, 15, 5]), 20, np.random.default_rng(2)
    samples = np.array([subsample(counts, drawn, rng) for _ in range(4_000)])
    share = counts / 100
    variance = drawn * share * (1 - share) * (100 - drawn) / 99
    assert (abs(samples.mean(axis=0) - drawn * share) < 5 * np.sqrt(variance / 4_000)).all()
    assert (abs(samples.var(axis=0) / variance - 1) < 5 * np.sqrt(2.5 / 4_000)).all()


def test_corpora_beyond_what_numpy_draws_from_are_sampled():
    counts = np.array([3 * 10**12, 10**12, 5, 0])
    sample = subsample(counts, 10**11, np.random.default_rng(0))
    assert sample.sum() == 10**11 and sample[3] == 0
    assert abs(sample[0] / 10**11 - 0.75) < 1e-5


def test_a_cut_tail_shows_fewer_types_less_tail_and_less_coverage_at_equal_tokens():
    """Nucleus sampling (top-p 0.9) of a Zipf corpus, ten times as large."""
    rng = np.random.default_rng(3)
    p = zipf_probabilities(20_000, 1.0)
    kept = np.cumsum(p) <= 0.9
    natural, test = rng.multinomial(50_000, p), rng.multinomial(100_000, p)
    cut = rng.multinomial(500_000, np.where(kept, p, 0) / p[kept].sum())
    size = match_size([natural.sum(), cut.sum()])
    assert size == 50_000
    assert expected_types(cut, size) < 0.8 * expected_types(natural, size)
    is_tail = tail_types(test, 0.95)
    assert tail_mass(cut, is_tail) < 0.3 * tail_mass(natural, is_tail)
    assert expected_coverage(cut, test, size)[0] < expected_coverage(natural, test, size)[0] - 0.02
    assert expected_singletons(cut, size) / size < expected_singletons(natural, size) / size


def test_tail_is_what_the_head_leaves():
    assert tail_types([50, 40, 9, 1, 0], 0.9).tolist() == [False, False, True, True, True]
    assert tail_types([50, 40, 9, 1, 0], 0.91).tolist() == [False, False, False, True, True]
    assert tail_mass([0, 1, 1, 1, 1], tail_types([50, 40, 9, 1, 0], 0.9)) == 0.75


def test_sizes_of_a_curve():
    assert grid_of_sizes(1_000_000, per_decade=1) == [1_000, 10_000, 100_000, 1_000_000]
    assert grid_of_sizes(500) == [500] and grid_of_sizes(0) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_types([3, 4], 8), "8 tokens cannot be drawn from a corpus of 7; match at 7 or fewer"),
        (lambda: expected_types([3, -4], 1), "counts are 0 or more"),
        (lambda: expected_types([0.5, 0.5], 1), "counts are whole numbers, one a type; got float64"),
        (lambda: expected_coverage([1, 2], [1, 2, 3], 1), "vocabularies of 2 and 3 words"),
        (lambda: expected_coverage([1, 2], [0, 0], 1), "to be covered has no tokens"),
        (lambda: tail_types([0, 0]), "the reference has no tokens"),
        (lambda: tail_types([1, 2], 1.0), r"in \(0, 1\), got 1.0"),
        (lambda: match_size([10, 20], 11), "asked are 11 tokens of each corpus, one has 10"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
