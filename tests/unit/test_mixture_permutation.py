"""The keyed permutation is a bijection of any size, evenly spread, and its values never change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from lingua_synth.mixture.permutation import key_of, permute


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5_000), st.integers(0, 2**64 - 1), st.integers(0, 2**63))
def test_is_a_bijection(n, key, tweak):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key, tweak)), np.arange(n))


@pytest.mark.parametrize("n", [2**k + d for k in range(2, 14) for d in (-1, 0, 1)])
def test_is_a_bijection_around_powers_of_two(n):
    assert np.array_equal(np.sort(permute(np.arange(n), n, 1, 2)), np.arange(n))


def test_stays_inside_and_distinct_in_huge_domains():
    for n in (10**9 + 7, 2**53 + 1, 2**62 - 1):
        index = np.concatenate([np.arange(2_000), n - 1 - np.arange(2_000)])
        image = permute(index, n, key_of(0, "x"), 5)
        assert image.min() >= 0 and image.max() < n
        assert len(np.unique(image)) == len(index)


def test_broadcasts_and_agrees_with_single_calls():
    n = np.array([5, 1, 300, 7])
    index = np.array([4, 0, 299, 0])
    tweak = np.array([[0], [1], [10**9]])
    together = permute(index, n, 9, tweak)
    assert together.shape == (3, 4)
    for row, t in enumerate([0, 1, 10**9]):
        for column in range(4):
            assert together[row, column] == permute(int(index[column]), int(n[column]), 9, t)
    assert permute(3, 5, 1).shape == ()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8, 16, 31])
def test_ordered_pairs_are_evenly_spread_over_keys(n):
    """With too few rounds (8) the domains of 5 to 8 fail this by far; chance alone fails it once in 10^6."""
    num_keys = 20_000
    image = permute(np.arange(2)[None, :], n, key_of(1, "pairs"), np.arange(num_keys)[:, None])
    counts = np.bincount(image[:, 0] * n + image[:, 1], minlength=n * n).reshape(n, n)
    assert counts.diagonal().sum() == 0
    found = counts[~np.eye(n, dtype=bool)]
    expected = num_keys / (n * (n - 1))
    statistic = ((found - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, max(1, n * (n - 1) - 1)) > 1e-6


def test_neighbours_are_torn_apart():
    """Steps between the images of neighbours look like those of a random permutation: mean |step| is (n + 1) / 3."""
    n = 100_000
    steps = np.abs(np.diff(permute(np.arange(n), n, 3, 4)))
    assert abs(steps.mean() / ((n + 1) / 3) - 1) < 0.02  # 9 standard errors: sd of |step| is n / sqrt(18)


def test_keys_and_tweaks_name_unrelated_permutations():
    n = 1_000
    base = permute(np.arange(n), n, key_of(0, "windows", "web"), 0)
    for key, tweak in (
        (key_of(1, "windows", "web"), 0),
        (key_of(0, "windows", "hq"), 0),
        (key_of(0, "windows", "web"), 1),
    ):
        assert np.count_nonzero(permute(np.arange(n), n, key, tweak) == base) < 10  # one fixed point on average


def test_words_of_a_key_do_not_run_together():
    assert key_of("a", "bc") != key_of("ab", "c") != key_of("abc")
    assert key_of(-1, "x") != key_of(1, "x")


def test_values_are_part_of_the_contract():
    """Another value here would change the data order of every run there is."""
    assert key_of(7, "windows", "web") == 945590309986851032
    key = key_of(7, "windows", "web")
    assert permute(np.arange(10), 10, key, 0).tolist() == [5, 1, 4, 6, 8, 2, 9, 3, 7, 0]
    assert permute(np.arange(10), 10, key, 1).tolist() == [0, 8, 7, 9, 5, 3, 6, 2, 1, 4]
    assert permute([0, 1, 2], 10**9 + 7, 1, 2).tolist() == [929574989, 966888798, 158955251]


def test_indices_outside_are_refused():
    for index, n in ((5, 5), (-1, 5), (0, 0), (0, 2**62)):
        with pytest.raises(AssertionError):
            permute(index, n, 1)
