"""Parsers: the forms that models fall into, what is no answer, and any text at all."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.generate.parsers import (
    PARSERS,
    Parsed,
    parse_genre_audience,
    parse_items,
    parse_json,
    parse_outline,
    parse_question_answer,
    parse_strategies,
)

# --- outlines ---

TITLES = ["Fields", "Injuries: An Update", "Pitchers", "Rosters", "Fans", "Money", "Travel", "Rules", "Media", "Future"]
WORDS = ["One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten"]
ROMANS = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X"]
BOOK = tuple(f"Chapter {k}: {title}" for k, title in enumerate(TITLES, 1))


def outline(form, between="\n * a point about chapter 3 of the last book\n * another. See (Chapter 9) too\n"):
    head = "Title: Spring Training\nIntroduction:\n * Why, in Chapter order" + ("" if "glued" in form else "\n")
    chapters = [
        form.replace("glued", "").format(number=k, word=WORDS[k - 1], roman=ROMANS[k - 1], title=title)
        for k, title in enumerate(TITLES, 1)
    ]
    return head + (between.rstrip("\n") if "glued" in form else between).join(chapters) + "\nConclusion:\nAppendices:\n"


@pytest.mark.parametrize(
    "form",
    [
        "Chapter {number}: {title}",
        "Chapter {number}. {title}",
        "Chapter {number} - {title}",
        "Chapter {number} \u2013 {title}",
        "CHAPTER {number}: {title}",
        "  Chapter {number}: {title}",
        "## Chapter {number}: {title}",
        "**Chapter {number}: {title}**",
        "**Chapter {number}:** {title}",
        "### **Chapter {number}**: {title}",
        "- Chapter {number}: {title}",
        "{number}. Chapter {number}: {title}",
        "{number}. **Chapter {number}: {title}**",
        "Chapter {roman}: {title}",
        "Chapter {word}: {title}",
        "chapter {word} - {title}",
        "gluedChapter {number}: {title}",
        "glued**Chapter {number}:** {title}",
        "gluedChapter {word}: {title}",
    ],
)
def test_ten_chapters_are_found_in_every_form(form):
    assert parse_outline(outline(form)).items == BOOK


@pytest.mark.parametrize(
    "form", ["{number}. {title}", "{number}) {title}", "**{number}. {title}**", "## {roman}. {title}"]
)
def test_without_the_word_chapter_top_level_numbers_count(form):
    assert parse_outline(outline(form, "\n   1. a point\n   2. another\n")).items == BOOK


def test_headings_after_a_space_count_with_a_colon_only():
    text = " ".join(f"Chapter {k}: {title}" for k, title in enumerate(TITLES, 1))
    assert parse_outline(text).items == BOOK
    assert parse_outline("It is said in Chapter 3. And Chapter 4, or so, says (Chapter 5) more.").items == ()


def test_headings_glued_to_the_line_before_and_headings_of_their_own():
    # The form of the sample outline in appendix B.2.3 of Kang et al. (2025).
    text = (
        "Title: Bees of the North\nIntroduction:\n - * Why bees\n - * What this textbook is for: to show their year in "
        "the hiveChapter 1: The Hive\n - * Its size\n - * Its need for roomChapter 2: Winter Losses and Care\n"
        " - * Who survives the winter...\nChapter 10: Bees to Come\n - * Long-term careConclusion:\n"
    )
    assert parse_outline(text).items == (
        "Chapter 1: The Hive",
        "Chapter 2: Winter Losses and Care",
        "Chapter 10: Bees to Come",
    )


def test_a_table_of_contents_before_the_outline_gives_every_chapter_once():
    contents = "\n".join(f"Chapter {k}: Short {k}" for k in range(1, 11))
    found = parse_outline(contents + "\n\n" + outline("Chapter {number}: {title}")).items
    assert found == tuple(f"Chapter {k}: Short {k}" for k in range(1, 11))


def test_a_heading_counts_before_a_mention():
    text = "We go on from Chapter 2: it was short.\nChapter 1: Roads\nChapter 2: Rails"
    assert parse_outline(text).items == ("Chapter 1: Roads", "Chapter 2: Rails")


def test_chapters_come_by_number_and_without_a_title_too():
    assert parse_outline("Chapter 2\n Text\nChapter 1:\n**Chapter 12** \n").items == (
        "Chapter 1",
        "Chapter 2",
        "Chapter 12",
    )
    twelve = "\n".join(f"Chapter {k}: T{k}" for k in range(1, 13))
    assert len(parse_outline(twelve).items) == 12


def test_a_paragraph_is_cut_to_a_title():
    (found,) = parse_outline("Chapter 1: " + "word " * 500).items
    assert found == "Chapter 1: " + " ".join(["word"] * 40)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("I'm sorry, but I cannot write an outline of this text.", 0),
        ("", 0),
        ("Chapters 1-3: Basics\nChapters 4 to 10: More", 0),
        ("Chapter 1-3: Basics\nChapter 4 to 6: More\nChapter 7, 8 and 9: Most\nChapter 10: The end", 1),
        ("**Chapter 1\u20133:** Basics", 0),
        ("Chapter 1 - 10 Ways to Cook\nChapter 2: Salt", 2),
        ("Title: X\nIntroduction:\nChapter 1: A\n * a\nChapter 2: B\n * b", 2),
        ("The textbook has ten chapters, a title and appendices. Chapter by chapter it goes on.", 0),
        ("2. Begin in the middle\n3. Go on", 0),
        ("Chapter 0: Before", 0),
    ],
)
def test_refusals_truncations_and_ranges_give_few_chapters(text, number):
    assert len(parse_outline(text).items) == number


# --- questions and answers ---

PAIRS = ("Question: What is it?\nAnswer: A cooler.", "Question: How big?\nAnswer: 100% more.\nAnd deeper.")


@pytest.mark.parametrize(
    "text",
    [
        "Question: What is it?\nAnswer: A cooler.\nQuestion: How big?\nAnswer: 100% more.\nAnd deeper.",
        "Here:\n\nQuestion: What is it?\n\nAnswer: A cooler.\n\nQuestion: How big?\nAnswer: 100% more.\nAnd deeper.",
        "- Question: What is it? Answer: A cooler.\n- Question: How big? Answer: 100% more.\nAnd deeper.",
        "Question: What is it? Answer: A cooler. Question: How big? Answer: 100% more.\nAnd deeper.",
        "**Question:** What is it?\n**Answer:** A cooler.\n**Question:** How big?\n**Answer:** 100% more.\nAnd deeper.",
        "**Question 1: What is it?**\nAnswer: A cooler.\n\n**Question 2: How big?**\nAnswer: 100% more.\nAnd deeper.",
        "1. Question: What is it?\n   Answer: A cooler.\n2. Question: How big?\n   Answer: 100% more.\nAnd deeper.",
        "## Question 1\nWhat is it?\n## Answer\nA cooler.\n## Question 2\nHow big?\n## Answer\n100% more.\nAnd deeper.",
        "Q: What is it?\nA: A cooler.\nQ: How big?\nA: 100% more.\nAnd deeper.",
        "Q1. What is it?\nA1. A cooler.\nQ2. How big?\nA2. 100% more.\nAnd deeper.",
        "1. **What is it?**\nA cooler.\n\n2. **How big?**\n100% more.\nAnd deeper.",
        "## What is it?\n\nA cooler.\n\n## How big?\n\n100% more.\nAnd deeper.",
        "What is it?\nA cooler.\nHow big?\n100% more.\nAnd deeper.",
    ],
)
def test_pairs_are_found_in_every_form(text):
    assert parse_question_answer(text) == Parsed(PAIRS, {"pairs": 2, "unanswered": 0})


@pytest.mark.parametrize(
    ("text", "pairs", "unanswered"),
    [
        ("Question: A?\nQuestion: B?\nAnswer: b", 1, 1),
        ("Question: A?\nAnswer: a\nQuestion: B?", 1, 1),
        ("Question: A?\nAnswer:\nQuestion: B?\nAnswer: b", 1, 1),
        ("Answer: a\nQuestion: B?\nAnswer: b\nAnswer: c", 1, 0),
        ("What is it?\nWhy?\nBecause.", 1, 1),
        ("Question:\nAnswer: a", 0, None),
        ("A text about questions and answers.", 0, None),
        ("", 0, None),
    ],
)
def test_what_is_missing_is_counted(text, pairs, unanswered):
    found = parse_question_answer(text)
    assert len(found.items) == pairs
    assert found.fields == ({} if unanswered is None else {"pairs": pairs, "unanswered": unanswered})


# --- genres and audiences ---

GA = ("Genre: A diary\nAudience: Sailors, 20-40", "Genre: A quiz\nAudience: Children")


@pytest.mark.parametrize(
    "text",
    [
        "Genre: A diary\nAudience: Sailors, 20-40\n\nGenre: A quiz\nAudience: Children",
        "1. Genre: A diary | Audience: Sailors, 20-40\n2. Genre: A quiz | Audience: Children\n\nAll varied.",
        "**Genre 1:** A diary\n**Audience 1:** Sailors, 20-40\n**Genre 2:** A quiz\n**Audience 2:** Children",
        "1. Genre: A diary\n   Audience: Sailors, 20-40\n2. Genre: A quiz\n   Audience: Children",
        "Audience: Sailors, 20-40\nGenre: A diary\nAudience: Children\nGenre: A quiz",
        "Genre: A diary\nAudience: Sailors, 20-40\n" * 2 + "Genre: A quiz\nAudience: Children",
        "Genre: lost\nGenre: A diary\nAudience: Sailors, 20-40\nGenre: A quiz\nAudience: Children\nAudience: lost",
        'Sure:\n```json\n[{"genre": "A diary", "audience": "Sailors, 20-40"},'
        ' {"Audience": "Children", "Genre": "A quiz"}]\n```',
        '{"genre_1": "A diary", "audience_1": "Sailors, 20-40", "genre_2": "A quiz", "audience_2": "Children"}',
    ],
)
def test_genres_and_audiences_are_found_in_every_form(text):
    assert parse_genre_audience(text).items == GA


@pytest.mark.parametrize("text", ["", "I cannot.", "Genre: alone", "The genre of this is unclear, as is the audience."])
def test_half_a_pair_is_none(text):
    assert parse_genre_audience(text).items == ()


# --- strategies ---


@pytest.mark.parametrize(
    "text",
    [
        "Here are some:\n\n## Timeline\nOrder the dates.\n- 1978\n\n## Analogies\nCompare.",
        "# Strategies for this text\n\n## Timeline\nOrder the dates.\n- 1978\n\n## Analogies\nCompare.",
        "## Strategies\n\n## Timeline\nOrder the dates.\n- 1978\n\n## Analogies\nCompare.",
        "## What year?\n## Who?\nSTRATEGIES\n## **Timeline**\nOrder the dates.\n- 1978\n## Analogies:\nCompare.",
        "Here are some:\n1. **Timeline**\n   Order the dates.\n   - 1978\n2. **Analogies**\n   Compare.",
        "**1. Timeline**\nOrder the dates.\n  - 1978\n**2. Analogies**\nCompare.",
    ],
)
def test_strategies_are_sections(text):
    found = [" ".join(item.split()) for item in parse_strategies(text).items]
    assert found == ["Timeline Order the dates. - 1978", "Analogies Compare."]


def test_headings_alone_are_strategies_and_prose_is_none():
    assert parse_strategies("## Draw a map\n## Count the ships").items == ("Draw a map", "Count the ships")
    assert parse_strategies("# Strategies at sea\n## Draw a map\n## Count").items == ("Draw a map", "Count")
    assert parse_strategies("One should draw a map.").items == ()
    assert parse_strategies("- Draw a map\n- Count").items == ("Draw a map", "Count")


# --- JSON ---


@pytest.mark.parametrize(
    ("text", "items", "fields"),
    [
        ('Here: {"a": 1, "b": [2, {"c": null}]} as asked.', (), {"a": 1, "b": [2, {"c": None}]}),
        ('```json\n{"a": "x"}\n```', (), {"a": "x"}),
        ('{not json} but {"a": 1}', (), {"a": 1}),
        ('["x", " y ", "", {"k": "\u00e9"}, 3]', ("x", "y", '{"k": "\u00e9"}', "3"), {}),
        ('{} [] {"a": 1}', (), {"a": 1}),
        ('{"a": NaN} {"b": 1e999} {"c": 2.5}', (), {"c": 2.5}),
        ('{"a\\ud800": "\\udc00x"}', (), {"a\ufffd": "\ufffdx"}),
        ('{"a": 1', (), {}),
        ("none", (), {}),
    ],
)
def test_json_is_found_in_prose(text, items, fields):
    assert parse_json(text) == Parsed(items, fields)


# --- any text ---

PIECES = st.sampled_from(
    [
        *("Chapter 1: ", "chapter ", "Chapter IV", "1. ", "\n", " ", "Question:", "Answer:", "Q:", "A1.", "Genre: "),
        *("Audience:", "## ", "**", "- ", "{", "}", "[", "]", '"', ":", "?", "-", "10", "word", "\ud800", "\u2028"),
    ]
)


@pytest.mark.parametrize("name", PARSERS)
@given(text=st.one_of(st.text(max_size=300), st.lists(PIECES, max_size=60).map("".join)))
@settings(max_examples=150, deadline=None)
def test_no_text_breaks_a_parser_and_what_it_finds_can_be_written(name, text):
    found = PARSERS[name](text)
    assert found == PARSERS[name](text)
    assert all(isinstance(item, str) and item.strip() for item in found.items)
    if "\ud800" not in text:
        assert json.loads(json.dumps(found.fields, allow_nan=False)) == found.fields
        "".join(found.items).encode("utf-8")


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    "piece", ["Chapter 1: ", "[", '{"a":', "\n", " ", "- ", "*", "Question: ", "1. \n", "## \n", "a?\n", "x", "Genre: "]
)
def test_long_texts_of_one_kind_are_read_in_no_time(name, piece):
    text = piece * (60_000 // len(piece))
    begin = time.process_time()
    PARSERS[name](text)
    assert time.process_time() - begin < 2.0


def test_items_are_lines_without_bullets():
    assert parse_items("Intro\n- a\n2. *b*\n").items == ("a", "b")
    assert parse_items("a\n\nb").items == ("a", "b")


# --- traces ---


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("a b\nFinal answer: 4", {"reasoning": "a b", "answer": "4"}),
        (
            "a\n**Final answer:** 4\nb\n**The final answer is: 5**",
            {"reasoning": "a\n**Final answer:** 4\nb", "answer": "5"},
        ),
        ("<think>\na\n</think>\n\nFinal Answer: four\nlines", {"reasoning": "a", "answer": "four\nlines"}),
        ("<think>a</think> 4", {"reasoning": "a", "answer": "4"}),
        ("only thoughts", {}),
        ("Final answer: 4", {}),
        ("<think>a</think>  ", {}),
        ("a\nFinal answer:", {}),
    ],
)
def test_reasoning_is_told_from_the_answer(text, fields):
    found = PARSERS["trace"](text)
    assert found.fields == fields and found.items == ((fields["answer"],) if fields else ())


@pytest.mark.parametrize(
    ("parser", "text", "fields"),
    [
        ("reference_answer", " **Answer:** 4 ", {"reference_answer": "4"}),
        ("reference_answer", "<think></think>4", {"reference_answer": "4"}),
        ("reference_answer", "Answer:", {}),
        ("verdict", "Verdict: different? No. **Verdict: Same**", {"agree": True}),
        ("verdict", 'Verdict: "different"', {"agree": False}),
        ("verdict", "They are the same.", {}),
        ("verdict", "Verdict: samely", {}),
        (
            "trace_notes",
            '```json\n{"domain": " law ", "verbosity": 2.5, "strategies": {"Checking ": 3, "planning": 0}}\n```',
            {"domain": "law", "verbosity": 2.5, "strategies": {"checking": 3}},
        ),
        ("trace_notes", '{"domain": "law", "verbosity": 11, "strategies": {}}', {}),
        ("trace_notes", '{"domain": "law", "verbosity": true, "strategies": {}}', {}),
        ("trace_notes", '{"domain": "law", "verbosity": 1, "strategies": {"checking": "often"}}', {}),
        ("trace_notes", '{"domain": "", "verbosity": 1, "strategies": {}}', {}),
        ("trace_notes", "[1]", {}),
    ],
)
def test_what_is_noted_of_a_trace_is_read_or_missing(parser, text, fields):
    found = PARSERS[parser](text)
    assert found.fields == fields and bool(found.items) == bool(fields)
