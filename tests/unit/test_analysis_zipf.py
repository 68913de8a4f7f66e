"""Planted exponents come back within their interval, at the rate the interval promises; bad input is refused."""

import numpy as np
import pytest
from analysis_doubles import zipf_probabilities

from lingua_synth.analysis.zipf import fit_zipf, rank_frequency


def planted(seed, n_words, num_tokens, exponent, shift=0.0):
    """Counts of a sample of the law, the types in random order."""
    rng = np.random.default_rng((seed, n_words))
    return rng.permutation(rng.multinomial(num_tokens, zipf_probabilities(n_words, exponent, shift)))


def test_ranks_are_by_falling_count_and_leave_out_what_does_not_occur():
    ranked = rank_frequency([3, 0, 9, 3, 1])
    assert ranked.token_ids.tolist() == [2, 0, 3, 4]
    assert ranked.counts.tolist() == [9, 3, 3, 1] and ranked.ranks.tolist() == [1, 2, 3, 4]


def test_intervals_hold_planted_exponents_as_often_as_they_say():
    """95 % intervals over 100 corpora; the plain estimate from sorted counts is off by more than what is left here."""
    fits = [fit_zipf(planted(seed, 400, 8_000, 1.1), num_simulations=40, seed=seed) for seed in range(100)]
    inside = sum(low <= 1.1 <= high for low, high in (f.exponent_interval for f in fits))
    assert 88 <= inside <= 99
    error = np.std([f.exponent for f in fits])
    assert abs(np.mean([f.exponent for f in fits]) - 1.1) < 0.4 * error
    assert abs(np.mean([f.exponent_ml for f in fits]) - 1.1) > 0.5 * error
    assert 0.5 < np.mean([f.p_value for f in fits]) / 0.5 < 1.5
    assert np.mean([f.p_value < 0.1 for f in fits]) < 0.25


def test_intervals_of_zipf_and_mandelbrot_hold_both_parameters():
    fits = [
        fit_zipf(planted(seed, 300, 30_000, 1.2, 6.0), "zipf-mandelbrot", num_simulations=24, seed=seed)
        for seed in range(24)
    ]
    assert sum(f.exponent_interval[0] <= 1.2 <= f.exponent_interval[1] for f in fits) >= 19
    assert sum(f.shift_interval[0] <= 6 <= f.shift_interval[1] for f in fits) >= 19


@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.8])
def test_exponents_of_large_corpora_are_sharp(exponent):
    found = fit_zipf(planted(0, 3_000, 3_000_000, exponent), num_simulations=30, level=0.999)
    low, high = found.exponent_interval
    assert low <= exponent <= high and high - low < 0.01
    assert found.first_rank == 1 and found.num_tokens <= 3_000_000 and found.share_of_tokens > 0.99


def test_another_law_is_said_to_be_another_law():
    counts = planted(0, 2_000, 500_000, 1.3, 20.0)
    plain, shifted = fit_zipf(counts), fit_zipf(counts, "zipf-mandelbrot")
    assert plain.p_value < 0.02 and plain.divergence > 10 * plain.divergence_expected
    assert shifted.p_value > 0.02 and shifted.divergence < plain.divergence / 10
    assert shifted.shift == pytest.approx(20, abs=3) and shifted.exponent == pytest.approx(1.3, abs=0.03)
    assert "zipf-mandelbrot: exponent 1." in str(shifted) and "ranks 1 to" in str(shifted)


def test_a_stated_range_is_what_is_fitted():
    """Two laws, one behind the other: each range has its own exponent."""
    ranks = np.arange(1, 2_001.0)
    weights = np.where(ranks <= 100, ranks**-0.7, 100**0.8 * ranks**-1.5)
    counts = np.random.default_rng(0).multinomial(2_000_000, weights / weights.sum())
    head = fit_zipf(counts, last_rank=100, level=0.999)
    tail = fit_zipf(counts, first_rank=101, last_rank=1_500, level=0.999)
    assert head.exponent_interval[0] <= 0.7 <= head.exponent_interval[1]
    assert tail.exponent_interval[0] <= 1.5 <= tail.exponent_interval[1]
    assert (tail.first_rank, tail.last_rank) == (101, 1_500)


def test_fits_do_not_depend_on_the_order_of_tokens_and_are_repeatable():
    counts = planted(0, 300, 20_000, 1.0)
    one, other = fit_zipf(counts, num_simulations=20), fit_zipf(counts[::-1], num_simulations=20)
    assert one == other
    assert set(one.to_dict()) >= {"exponent", "exponent_interval", "first_rank", "last_rank", "p_value"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_zipf([5] * 100, "pareto"), "no law 'pareto'; there are: zipf, zipf-mandelbrot"),
        (lambda: fit_zipf([5] * 100), "has 100 types, 0 of which occur 10 times or more"),
        (lambda: fit_zipf([1000, 0, 0]), "at least 20 ranks"),
        (lambda: fit_zipf([50] * 100, last_rank=101), "ranks; asked are 1 to 101, the corpus has 100 types"),
        (lambda: fit_zipf([50] * 100, level=95), r"in \(0, 1\), got 95"),
        (lambda: fit_zipf([50] * 100, num_simulations=5), "at least 20, got 5"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
