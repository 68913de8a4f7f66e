"""Numbers as text: digits, signs, units."""

import math

import pytest

pytest.importorskip("numpy")

from lingua_synth.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (512, "512"),
        (999.6, "1k"),
        (1_500, "1.5k"),
        (262_144, "262k"),
        (999_999, "1M"),
        (858_000_000, "858M"),
        (1.2e12, "1.2T"),
        (0.5, "0.5"),
        (math.inf, "–"),
    ],
)
def test_short_count(value, text):
    assert words.short_count(value) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.1254, 3, "+0.125"), (-0.0004, 3, "±0.000"), (-0.25, 2, "−0.25"), (0.0, 1, "±0.0"), (math.nan, 3, "–")],
)
def test_signed(value, digits, text):
    assert words.signed(value, digits) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (2.0512, 1.9811, 2.1149, "2.051 (1.981 to 2.115)"),
        (2.06, 1.06, 3.06, "2.1 (1.1 to 3.1)"),
        (477.8, 240.1, 730.9, "478 (240 to 731)"),
        (1_234_567.0, 1_200_000.0, 1_300_000.0, f"1.235 (1.200 to 1.300) ×{words.THIN}10⁶"),
        (2.05, math.nan, math.nan, "2.05 (no interval)"),
        (-0.5, -0.7, -0.3, "−0.50 (−0.70 to −0.30)"),
    ],
)
def test_with_interval_shows_two_digits_of_the_half_width(value, low, high, text):
    assert words.with_interval(value, low, high) == text


def test_joined_and_plural():
    assert [words.joined(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert [words.plural(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert words.percent(1 / 3) == f"33.3{words.THIN}%" and words.percent(0.005) == f"0.5{words.THIN}%"


def test_target_words_name_the_unit():
    assert words.target_words("loss_macro") == ("held-out loss, mean over domains", "nats per token")
    assert words.target_words("loss_python-docs") == ("held-out loss, python-docs", "nats per token")
    assert words.target_words("bpb_macro")[1] == "bits per byte"
    assert words.target_words("accuracy") == ("accuracy", "as in the runs table")
