"""Filters: what each lets pass and what not, and how several judge together."""

import base64
import dataclasses
import json
import pydoc_data.topics
import random
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.documents import Document
from lingua_synth.generate import generate, verify
from lingua_synth.generate.engine import Generation
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.filters import FILTERS, FilterContext, build_filter, judge, require_filters
from lingua_synth.generate.filters import sources as source_filters
from lingua_synth.generate.filters.phrases import split_boilerplate
from lingua_synth.generate.recipe import load_recipe, recipe_from

SOURCE = Document("d", "source")
DISTINCT = " ".join(f"word{i}" for i in range(100))


def context(text="", *, source=SOURCE, tokens=100, finish_reason="stop", template="", prompt=""):
    return FilterContext(source, Generation("k", text, 10, tokens, finish_reason), template, lambda: prompt)


def fires(name, text, *, action="annotate", parameters=None, **about):
    args = build_filter({"name": name, "action": action, "parameters": parameters or {}}, "the test")
    return FILTERS[name].check(text, context(text, **about), args.settings)


@pytest.mark.parametrize(("text", "reason"), [("", "no text"), (" \n\t", "no text"), ("a", None)])
def test_empty(text, reason):
    assert fires("empty", text) == reason


def test_lengths_are_counted_in_the_generator_s_tokens_and_the_bounds_belong_to_the_kept():
    for tokens, reason in ((49, "49 tokens, fewer than 50"), (50, None)):
        assert fires("min_tokens", "x", tokens=tokens, parameters={"tokens": 50}) == reason
    for tokens, reason in ((1651, "1,651 tokens, more than 1,650"), (1650, None)):
        assert fires("max_tokens", "x", tokens=tokens, parameters={"tokens": 1650}) == reason


def test_finish_reason():
    assert fires("finish_reason", "x", finish_reason="length") == "finish reason length"
    assert fires("finish_reason", "x", finish_reason="stop") is None
    assert (
        fires("finish_reason", "x", finish_reason="content_filter", parameters={"reasons": ["content_filter"]})
        is not None
    )


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
    assert fires("refusal", "Lo siento, pero no", parameters={"phrases": ["lo siento"]}) == "begins with 'lo siento'"


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
    assert (
        fires("repetition", text, parameters={"max_ngram_share": 0.31})
        == "32% of word 4-grams are repeated, more than 31%"
    )
    assert fires("repetition", text, parameters={"max_ngram_share": 0.33}) is None


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from("abcdefg"), min_size=4, max_size=40), st.sampled_from([0.0, 0.2, 0.5, 0.8]))
def test_repetition_counts_the_4_grams_that_occurred_before(words, max_share):
    ngrams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    repeated = sum(ngram in ngrams[:place] for place, ngram in enumerate(ngrams)) / len(ngrams)
    parameters = {"max_ngram_share": max_share, "min_words": 4}
    said = fires("repetition", " ".join(words), parameters=parameters)
    if abs(repeated - max_share) > 1e-9:
        assert (said is not None) == (repeated > max_share)


def build(*filters):
    return [
        build_filter({"name": name, "action": action, "parameters": parameters}, "t")
        for name, action, parameters in filters
    ]


def test_the_first_that_drops_is_named_and_all_reasons_are_kept():
    filters = build(
        ("finish_reason", "annotate", {}), ("max_tokens", "drop", {"tokens": 5}), ("min_tokens", "drop", {"tokens": 50})
    )
    verdict = judge("text", context(tokens=9, finish_reason="length"), filters)
    assert verdict.dropped_by == "max_tokens"
    assert list(verdict.reasons) == ["finish_reason", "max_tokens", "min_tokens"]


def test_annotating_keeps_the_record():
    verdict = judge("text", context(tokens=9, finish_reason="length"), build(("finish_reason", "annotate", {})))
    assert (verdict.dropped_by, verdict.reasons) == (None, {"finish_reason": "finish reason length"})
    assert (verdict.text, verdict.stripped) == ("text", {})


def test_an_empty_text_is_dropped_whatever_the_recipe_says():
    verdict = judge(" \n", context(tokens=2), build(("min_tokens", "drop", {"tokens": 50})))
    assert (verdict.dropped_by, verdict.reasons) == ("empty", {"empty": "no text"})


# --- compression ---


def test_compression_tells_language_from_loops_and_from_noise():
    random_bytes = random.Random(0).randbytes(2000)
    assert fires("compression", "The bridge was closed again on the third day of the flood. " * 40) is not None
    assert "more than 70%" in fires("compression", base64.b64encode(random_bytes).decode())
    assert fires("compression", "a" * 499) is None
    assert fires("compression", "a" * 500) == "compresses to 3% of its size, less than 15%"
    pages = [page for page in pydoc_data.topics.topics.values() if len(page) > 2600]
    assert len(pages) > 20
    assert [fires("compression", page[:2600]) for page in pages] == [None] * len(pages)


# --- what is held against the prompt ---

TEMPLATE = (
    "Rewrite the text below as a clear article of about the same length, keep every fact, and write nothing "
    "else.\n{document}\nThe article follows here:"
)
WORDS = TEMPLATE.lower().split()


def naive_longest_run(words, other):
    best = 0
    for i in range(len(words)):
        for j in range(len(other)):
            length = 0
            while i + length < len(words) and j + length < len(other) and words[i + length] == other[j + length]:
                length += 1
            best = max(best, length)
    return best


@settings(max_examples=300, deadline=None)
@given(
    before=st.lists(st.sampled_from("abc"), max_size=9),
    first=st.integers(0, 15),
    length=st.integers(0, 16),
    after=st.lists(st.sampled_from("abc"), max_size=9),
    min_words=st.integers(4, 14),
)
def test_prompt_echo_finds_the_longest_run_wherever_it_stands(before, first, length, after, min_words):
    words = before + WORDS[first : first + length] + after
    longest = naive_longest_run(words, WORDS)
    said = fires("prompt_echo", " ".join(words), template=TEMPLATE, parameters={"min_words": min_words})
    assert (said is not None) == (longest >= min_words)
    if said:
        assert said.startswith(f"repeats {longest} words of the instructions")


def test_prompt_echo_needs_a_template_that_long():
    assert fires("prompt_echo", "{document} " * 40, template="{document}") is None
    assert fires("prompt_echo", TEMPLATE, template=TEMPLATE) is not None


def naive_copy_share(text, prompt, size):
    def ngrams(words):
        return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]

    mine, theirs = ngrams(text.lower().split()), set(ngrams(prompt.lower().split()))
    return sum(ngram in theirs for ngram in mine) / len(mine)


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    max_share=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    size=st.integers(1, 4),
)
def test_copy_is_the_share_of_ngrams_that_stand_in_the_prompt(data, max_share, size):
    word = st.sampled_from(["a", "b", "ab", "ba", "c"])
    text = " ".join(data.draw(st.lists(word, min_size=size, max_size=30)))
    prompt = "\n".join(data.draw(st.lists(word, max_size=30)))
    parameters = {"max_share": max_share, "ngram_words": size, "min_words": 0}
    said = fires("copy", text, prompt=prompt, parameters=parameters)
    share = naive_copy_share(text, prompt, size)
    assert (said is not None) == (share > max_share)
    if said:
        assert said.startswith(f"{share:.0%} of word {size}-grams are copied")


def test_copy_reads_all_messages_and_leaves_short_texts_alone():
    messages = [{"role": "system", "content": "Rewrite."}, {"role": "user", "content": f"Text: {DISTINCT} ."}]
    assert fires("copy", DISTINCT, prompt=messages) == "100% of word 8-grams are copied, more than 90%"
    assert fires("copy", " ".join(DISTINCT.split()[:39]), prompt=messages) is None
    assert fires("copy", DISTINCT, prompt=[]) is None


def test_the_prompt_is_rendered_only_for_filters_that_read_it():
    def render():
        raise AssertionError("nobody reads the prompt")

    filters = build(*((name, "annotate", {}) for name in FILTERS if name not in ("copy", "language")))
    judge(DISTINCT, FilterContext(SOURCE, Generation("k", "", 1, 100, "stop"), TEMPLATE, render), filters)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Question: Why?\nAnswer: So.\n\nQuestion: How?\nAnswer: Thus.", None),
        ("**Question 1:** Why? **Answer 1:** So.", None),
        ("1. QUESTION: Why?\n   the answer is short\n   Answer: So.", None),
        ("Question: Why?\nAnswer: So.\nQuestion: How?", "questions: 2, answers: 1, unequal"),
        ("Question: Why?\nQuestion: How?\nAnswer: So.\nAnswer: Thus.", "questions: 2, answers: 2, not in turn"),
        ("Answer: So.\nQuestion: Why?", "questions: 1, answers: 1, not in turn"),
        ("The river is green.", "question-answer pairs: 0, fewer than 1"),
    ],
)
def test_qa_pairs(text, reason):
    assert fires("qa_pairs", text) == reason


def test_qa_pairs_takes_other_tags():
    parameters = {"question": "Q.", "answer": "A.", "min_pairs": 2}
    assert fires("qa_pairs", "Q.: Why?\nA.: So.", parameters=parameters) == "question-answer pairs: 1, fewer than 2"
    assert fires("qa_pairs", "Q.: Why?\nA.: So.\nQ.: x\nA.: y", parameters=parameters) is None


# --- language ---

ENGLISH = "The river rises in the hills and flows through the old town before it reaches the sea. " * 3
GERMAN = "Der Fluss entspringt in den Bergen und fließt durch die alte Stadt, bevor er das Meer erreicht. " * 3
JAPANESE = "川は丘から流れ出し、古い町を通って海に注ぐ。" * 3


def test_language_compares_the_output_with_its_document():
    pytest.importorskip("py3langid")
    assert fires("language", ENGLISH, source=Document("d", GERMAN)) == "written in en, the source in de"
    assert fires("language", JAPANESE, source=Document("d", ENGLISH)) == "written in ja, the source in en"
    assert fires("language", GERMAN, source=Document("d", GERMAN)) is None
    # Digits are no language: nothing is said of either.
    assert fires("language", ENGLISH, source=Document("d", "12 34 56")) is None
    assert fires("language", "12 34 56", source=Document("d", ENGLISH)) is None


def test_a_run_says_what_to_install_before_anything_is_generated(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    source_filters._identifier.cache_clear()
    with pytest.raises(ValueError, match=r"filter language: this needs py3langid.*lingua-synth\[filters\]"):
        require_filters(build(("language", "drop", {})))
    source_filters._identifier.cache_clear()


# --- boilerplate ---

BODY = "The river rises in the hills.\n\nIt flows to the sea."


@pytest.mark.parametrize(
    "head",
    [
        "Sure!\n\n",
        "Sure, here is the rewritten text:\n\n",
        "Certainly! Here's a rephrased version of the passage:\n",
        "Of course. Below is the article you asked for:\n---\n\n",
        "Here is the rewritten text: ",
        "**Here is the paraphrased article:**\n\n",
        "Here are the question-answer pairs:\n\n",
        "Below is a conversion of the text into questions and answers.\n\n",
        "I have rewritten the text in a clear style:\n\n",
        "Sure thing!\nHere\u2019s the rewritten version:\n\n",
        "## Rewritten Text\n\n",
        "Rephrased version:\n",
    ],
)
def test_heads_are_found_and_nothing_else_is_cut(head):
    assert split_boilerplate(head + BODY) == (head, BODY, "")


@pytest.mark.parametrize(
    "tail",
    [
        "\n\nI hope this helps! Let me know if you need anything else.",
        "\n\nLet me know if you would like more detail.",
        "\n\nNote: This rewritten version keeps all facts of the original text.",
        "\n\n(Note that the text above has been shortened.)",
        "\n\n---\n\nFeel free to ask for changes.",
        "\n\nThis version maintains the meaning of the original.\n\nLet me know what you think!",
        "\n\n*If you have any further questions, I'd be happy to help.*",
        "\n[End of document]",
        "\n\nThese question-answer pairs cover all of the information in the text.",
    ],
)
def test_tails_are_found_and_nothing_else_is_cut(tail):
    assert split_boilerplate(BODY + tail) == ("", BODY, tail)


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        "Here is the river that gave the town its name.\nIt is green.",
        "Here are the steps to bake bread:\n1. Knead.\n2. Wait.",
        "Of course, the river floods each spring.\nThe town is used to it.",
        "Sure enough, the bridge fell.\nNobody was hurt.",
        "Certainly the oldest bridge is the one in the west: it has five arches.\nIt is closed.",
        "Note: the valve is left-handed.",
        "The gate is shut at night.\nNote: the valve is left-handed.",
        "He wrote to her from the coast.\nI hope you are well.",
        "Turn the wheel.\nIf you have any trouble, turn it back.",
        "The following is known: rivers flow.\nThey do.",
        "Question: Why?\nAnswer: So.",
        "This text has one line and keeps what it says.",
    ],
)
def test_ordinary_sentences_are_no_boilerplate(text):
    head, rest, tail = split_boilerplate(text)
    assert (head, tail) == ("", "") or text.startswith("This text")
    assert head + rest + tail == text


LINES = st.sampled_from(
    ["Sure!", "Here is the rewritten text:", "---", "", "  ", "The river is green.", "Let me know if it is.",
     "\u0130 Sure!", "**Rewritten text:**", "I hope this helps.", "x" * 600, "Here is the text: " + "y" * 300]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(LINES, max_size=8).map("\n".join))
def test_nothing_is_lost_between_head_text_and_tail(text):
    head, rest, tail = split_boilerplate(text)
    assert head + rest + tail == text
    verdict = judge(text, context(text), build(("boilerplate", "strip", {})))
    cut = verdict.stripped.get("boilerplate", {})
    assert cut.get("head", "") + verdict.text + cut.get("tail", "") == text
    assert verdict.text.strip() or verdict.dropped_by is not None


def test_boilerplate_takes_phrases_of_the_recipe_and_may_be_told_where_to_look():
    text = f"Voici le texte.\n\n{BODY}\n\nLet me know!"
    args = build_filter(
        {"name": "boilerplate", "parameters": {"head_phrases": ["voici"], "tails": False}}, "t"
    ).settings
    assert split_boilerplate(text, args) == ("Voici le texte.\n\n", f"{BODY}\n\nLet me know!", "")


def test_what_is_stripped_is_recorded_and_the_next_filters_see_the_rest():
    text = f"Sure, here is the rewritten text:\n\n{BODY}\n\nI hope this helps!"
    filters = build(("boilerplate", "strip", {}), ("boilerplate", "drop", {}))
    verdict = judge(text, context(text), filters)
    assert verdict.text == BODY
    assert verdict.stripped == {
        "boilerplate": {"head": "Sure, here is the rewritten text:\n\n", "tail": "\n\nI hope this helps!"}
    }
    assert verdict.dropped_by is None
    assert verdict.reasons == {
        "boilerplate": "begins with 'Sure, here is the rewritten text:' and ends with 'I hope this helps!'"
    }


def test_a_text_that_is_nothing_but_boilerplate_is_dropped_whole():
    verdict = judge("Sure!\n\nLet me know!", context(), build(("boilerplate", "strip", {})))
    assert (verdict.dropped_by, verdict.text, verdict.stripped) == ("boilerplate", "Sure!\n\nLet me know!", {})


# --- recipes and runs ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "repetition", "action": "strip"}, "repetition has nothing to strip \\(boilerplate has\\)"),
        ({"name": "empty", "action": "mark"}, "action is annotate, drop or strip, got 'mark'"),
        ({"name": "copie"}, "no filter 'copie'; known are empty, min_tokens"),
        ({"name": "copy", "parameters": {"max_share": 1.5}}, "max_share is a share in \\[0, 1\\], got 1.5"),
        ({"name": "prompt_echo", "parameters": {"min_words": 1}}, "min_words must be at least 4, got 1"),
        ({"name": "copy", "parameters": {"share": 0.5}}, "share"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build_filter(values, "filter 1")


class Chatty(MockEngine):
    """Says what chat models say around their answer, to every second document, and nothing else to every tenth."""

    def _outcome(self, request, num_outcomes):
        outcome = super()._outcome(request, num_outcomes)
        number = int(str(request.prompt).split("Text number ")[1].split()[0])
        if isinstance(outcome, Generation) and number % 2 == 0:
            text = "Sure!" if number % 10 == 0 else f"Here is the rewritten text:\n\n{outcome.text}\n\nLet me know!"
            return Generation(**{f: getattr(outcome, f) for f in outcome.__slots__} | {"text": text})
        return outcome


def test_a_run_strips_and_records_and_goes_on_from_the_rest(tmp_path):
    values = load_recipe("hq").to_dict()
    values["steps"][0]["filters"] = [{"name": "boilerplate", "action": "strip"}, {"name": "copy"}]
    documents = [Document(f"doc-{i}", f"Text number {i} is long. " * 5) for i in range(20)]
    summary = generate(documents, tmp_path, recipe_from(values), Chatty(), shard_size=20, progress=False)
    assert (summary.records, summary.filtered, summary.flagged) == (18, {"boilerplate": 2}, {"boilerplate": 8})
    assert verify(tmp_path) == []
    for line in (tmp_path / "documents-00000.jsonl").read_text().splitlines():
        record = json.loads(line)
        synth = record["meta"]["synth"]
        assert "Here is" not in record["text"] and "Let me" not in record["text"]
        expected = {"boilerplate": {"head": "Here is the rewritten text:\n\n", "tail": "\n\nLet me know!"}}
        assert synth.get("stripped", expected) == expected
        assert ("stripped" in synth) == ("boilerplate" in synth["flags"])


def test_the_page_of_filters_names_every_filter_and_its_settings():
    page = (Path(__file__).parents[2] / "docs" / "filters.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    said = {name: re.findall(r"`(\w+)`", row[2]) for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    known = {name: [f.name for f in dataclasses.fields(one.parameters)] for name, one in FILTERS.items()}
    del known["empty"]
    assert said == known
