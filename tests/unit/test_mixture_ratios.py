"""Ratios are exact, and a plan sums to its budget."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.mixture import Mixture, parse_ratio, plan_sequences

weights = st.lists(st.integers(0, 10**6), min_size=1, max_size=40).filter(any)


def mixture_of(weights):
    return {f"s{i:04d}": Fraction(w, sum(weights)) for i, w in enumerate(weights)}


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        ("2/3", Fraction(2, 3)),
        (" 2 / 3 ", Fraction(2, 3)),
        ("0.33", Fraction(33, 100)),
        (0.33, Fraction(33, 100)),
        (0.1, Fraction(1, 10)),
        (1e-05, Fraction(1, 100_000)),
        (np.float64(0.7), Fraction(7, 10)),
        (np.float32(0.7), Fraction(7, 10)),
        (np.int64(1), Fraction(1)),
        (".5", Fraction(1, 2)),
        ("1", Fraction(1)),
        (0, Fraction(0)),
        (Fraction(5, 7), Fraction(5, 7)),
        ("1/0003", Fraction(1, 3)),
    ],
)
def test_a_ratio_is_read_at_its_decimal_value(given, exact):
    assert parse_ratio(given) == exact


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "a third",
        "1/0",
        "1/00",
        "33%",
        "nan",
        "inf",
        "1e999999999",
        "1/2/3",
        float("nan"),
        float("inf"),
        True,
        None,
        [1],
    ],
)
def test_what_is_no_ratio_is_refused(bad):
    with pytest.raises(ValueError, match="no ratio"):
        parse_ratio(bad)


@pytest.mark.parametrize("bad", [-0.1, "-1/3", Fraction(-1, 3), -1, "-0.5"])
def test_negative_ratios_are_refused(bad):
    with pytest.raises(ValueError, match="cannot be negative"):
        parse_ratio(bad)


def test_ratios_that_do_not_sum_to_one_name_the_sum_and_the_way_out():
    with pytest.raises(ValueError) as caught:
        Mixture({"web": 0.33, "hq": "0.66"})
    message = str(caught.value)
    assert "got 99/100 = 0.99" in message
    assert "raise them by 1/100 = 0.01 in all" in message
    assert "web 1/3, hq 2/3" in message
    with pytest.raises(
        ValueError, match=r"got 3: .* lower them by 2 in all, or keep the proportions with a 1/3, b 2/3"
    ):
        Mixture({"a": 1, "b": 2})
    # Three decimals for a third are not a third: no tolerance.
    with pytest.raises(ValueError, match="got 999/1000"):
        Mixture({"a": "0.333", "b": "0.333", "c": "0.333"})
    with pytest.raises(ValueError, match="give at least one source a ratio"):
        Mixture({"a": 0})


@pytest.mark.parametrize(
    ("ratios", "max_epochs", "message"),
    [
        ({}, 1.0, "at least one source"),
        ([("web", "1/2"), ("web", "1/2")], 1.0, "'web' is named twice"),
        ({"web": "nan", "hq": 1}, 1.0, "source 'web': no ratio"),
        ({"web": -1, "hq": 2}, 1.0, "source 'web': a ratio cannot be negative"),
        ({"": 1}, 1.0, "a source needs a name"),
        ({" ": 1}, 1.0, "a source needs a name"),
        ({3: 1}, 1.0, "a source needs a name"),
        ({"web": 1}, 0.0, "max_epochs of source 'web' must be a positive"),
        ({"web": 1}, -1.0, "max_epochs of source 'web' must be a positive"),
        ({"web": 1}, float("nan"), "max_epochs of source 'web' must be a positive"),
        ({"web": 1}, float("inf"), "finite"),
        ({"web": 1}, {"web": "often"}, "max_epochs of source 'web'"),
        ({"web": 1}, {"wbe": 2.0}, "max_epochs names 'wbe', which is no source; there are: web"),
    ],
)
def test_bad_mixtures_are_refused(ratios, max_epochs, message):
    with pytest.raises(ValueError, match=message):
        Mixture(ratios, max_epochs)


def test_a_mixture_keeps_exact_values_and_order():
    mixture = Mixture({"b": "1/3", "a": 2 / 3 - 2 / 3, "c": "2/3"}, max_epochs={"c": 2.5})
    assert mixture.names == ("b", "a", "c")
    assert mixture.ratios == {"b": Fraction(1, 3), "a": 0, "c": Fraction(2, 3)}
    assert mixture.max_epochs == {"b": 1, "a": 1, "c": Fraction(5, 2)}
    assert mixture == Mixture({"b": "1/3", "a": 0, "c": "2/3"}, max_epochs={"c": 2.5})
    assert hash(mixture) == hash(Mixture({"b": "1/3", "a": 0, "c": "2/3"}, max_epochs={"c": 2.5}))
    assert mixture != Mixture({"b": "1/3", "a": 0, "c": "2/3"})


def test_plan_is_exact_for_every_budget():
    for n in range(2_000):
        plan = plan_sequences(n, {"web": 0.15, "rephrased": "0.85"})
        assert sum(plan.values()) == n
        assert abs(plan["web"] - Fraction("0.15") * n) < 1


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(0, 10**15))
def test_plan_is_the_largest_remainder_apportionment(weights, n):
    ratios = mixture_of(weights)
    plan = plan_sequences(n, ratios)
    assert list(plan) == list(ratios)
    assert sum(plan.values()) == n
    fractional = {name: (ratio * n) % 1 for name, ratio in ratios.items()}
    rounded_up = {name for name in ratios if plan[name] == (ratios[name] * n) // 1 + 1}
    assert all(plan[name] == (ratios[name] * n) // 1 for name in ratios if name not in rounded_up)
    # Nobody who was passed over comes before somebody who was not, in the order (largest fraction, then name).
    passed_over = [(-fractional[name], name) for name in ratios if name not in rounded_up]
    if rounded_up and passed_over:
        assert max((-fractional[name], name) for name in rounded_up) < min(passed_over)


def test_plan_breaks_ties_by_name_and_not_by_order():
    assert plan_sequences(1, {"b": "1/2", "a": "1/2"}) == {"b": 0, "a": 1}
    assert plan_sequences(2, {"c": "1/3", "b": "1/3", "a": "1/3"}) == {"c": 0, "b": 1, "a": 1}


@pytest.mark.parametrize("bad", [-1, 1.5, 2e6, "10", True, None])
def test_a_budget_is_a_whole_number(bad):
    with pytest.raises(ValueError, match="num_sequences must be a whole number"):
        plan_sequences(bad, {"a": 1})


def test_plan_takes_a_thousand_sources():
    ratios = {f"s{i}": Fraction(1, 1000) for i in range(1000)}
    assert set(plan_sequences(10**12, ratios).values()) == {10**9}
