"""Filters: what each lets pass and what not, and how several judge together."""

import pytest

from lingua_synth.documents import Document
from lingua_synth.generate.engine import Generation
from lingua_synth.generate.filters import FILTERS, build_filter, judge

SOURCE = Document("d", "source")
DISTINCT = " ".join(f"word{i}" for i in range(100))


def fires(name, text, *, tokens=100, finish_reason="stop", **parameters):
    args = build_filter({"name": name, "parameters": parameters}, "the test")
    function, parameter_type = FILTERS[name]
    return function(text, SOURCE, Generation("k", text, 10, tokens, finish_reason), parameter_type(**args.parameters))


@pytest.mark.parametrize(("text", "reason"), [("", "no text"), (" \n\t", "no text"), ("a", None)])
def test_empty(text, reason):
    assert fires("empty", text) == reason


def test_lengths_are_counted_in_the_generator_s_tokens_and_the_bounds_belong_to_the_kept():
    for tokens, reason in ((49, "49 tokens, fewer than 50"), (50, None)):
        args = build_filter({"name": "min_tokens", "parameters": {"tokens": 50}}, "the test")
        assert (
            FILTERS["min_tokens"][0]("x", SOURCE, Generation("k", "x", 1, tokens, "stop"), _parameters(args)) == reason
        )
    for tokens, reason in ((1651, "1,651 tokens, more than 1,650"), (1650, None)):
        args = build_filter({"name": "max_tokens", "parameters": {"tokens": 1650}}, "the test")
        assert (
            FILTERS["max_tokens"][0]("x", SOURCE, Generation("k", "x", 1, tokens, "stop"), _parameters(args)) == reason
        )


def _parameters(args):
    return FILTERS[args.name][1](**args.parameters)


def test_finish_reason():
    assert fires("finish_reason", "x", finish_reason="length") == "finish reason length"
    assert fires("finish_reason", "x", finish_reason="stop") is None
    assert fires("finish_reason", "x", finish_reason="content_filter", reasons=["content_filter"]) is not None


@pytest.mark.parametrize(
    ("text", "is_refusal"),
    [
        ("I'm sorry, but I cannot rewrite this.", True),
        ("I\u2019m sorry, but no.", True),
        ('"**I cannot** do that"', True),
        ("**I cannot do that.**", True),
        ("As an AI language model, I have no text.", True),
        ("Please provide the text to be rewritten.", True),
        ("The phrase \u201cI'm sorry, but\u201d is common.", False),
        ("Sorrel is a herb. I cannot think of another.", False),
        ("Question: Why? Answer: As an AI.", False),
        ("", False),
    ],
)
def test_refusal(text, is_refusal):
    assert (fires("refusal", text) is not None) == is_refusal


def test_refusal_takes_phrases_of_the_recipe():
    assert fires("refusal", "Lo siento, pero no", phrases=["lo siento"]) == "begins with 'lo siento'"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DISTINCT, None),
        ("round and round " * 40, "97% of word 4-grams are repeated, more than 50%"),
        ("round and round " * 4, None),  # too short to be judged
        # 100 different words, then half of them again: 47 of 147 four-grams occurred before.
        (f"{DISTINCT} {' '.join(DISTINCT.split()[:50])}", None),
        (
            "\n".join([*(f"line {i} says this {i}" for i in range(20)), *["the end"] * 20]),
            "48% of lines are repeated, more than 30%",
        ),
    ],
)
def test_repetition(text, reason):
    assert fires("repetition", text) == reason


def test_repetition_s_bounds_are_the_recipe_s():
    text = f"{DISTINCT} {' '.join(DISTINCT.split()[:50])}"
    assert fires("repetition", text, max_ngram_share=0.31) == "32% of word 4-grams are repeated, more than 31%"
    assert fires("repetition", text, max_ngram_share=0.33) is None


def build(*filters):
    return [
        build_filter({"name": name, "action": action, "parameters": parameters}, "t")
        for name, action, parameters in filters
    ]


def test_the_first_that_drops_is_named_and_all_reasons_are_kept():
    filters = build(
        ("finish_reason", "annotate", {}), ("max_tokens", "drop", {"tokens": 5}), ("min_tokens", "drop", {"tokens": 50})
    )
    verdict = judge("text", SOURCE, Generation("k", "text", 1, 9, "length"), filters)
    assert verdict.dropped_by == "max_tokens"
    assert list(verdict.reasons) == ["finish_reason", "max_tokens", "min_tokens"]


def test_annotating_keeps_the_record():
    verdict = judge("text", SOURCE, Generation("k", "text", 1, 9, "length"), build(("finish_reason", "annotate", {})))
    assert (verdict.dropped_by, verdict.reasons) == (None, {"finish_reason": "finish reason length"})


def test_an_empty_text_is_dropped_whatever_the_recipe_says():
    verdict = judge(" \n", SOURCE, Generation("k", " \n", 1, 2, "stop"), build(("min_tokens", "drop", {"tokens": 50})))
    assert (verdict.dropped_by, verdict.reasons) == ("empty", {"empty": "no text"})
