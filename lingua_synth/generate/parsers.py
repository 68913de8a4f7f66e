"""What a step's text says, read back: items to go on from one by one, or fields to go on with.

    a model's text -> parser -> items (chapters, pairs, strategies) and fields (counts, values) -> gate -> later steps

A parser is a pure function of the text. It never fails: what is not there is not found, and a recipe's gate decides
whether the text is asked for again. Models keep to a form only loosely, so each parser knows the forms that they fall
into: markdown, bullets, numbers in digits, roman letters and words, headings glued to the line before.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lingua_synth.generate.engine import whole_characters

# Longer lines are paragraphs that begin like a heading; their beginning names the chapter well enough.
MAX_TITLE_CHARS = 200
# Each place where JSON might begin costs a try; a text full of braces has thousands of them.
MAX_JSON_PLACES = 64


@dataclass(frozen=True)
class Parsed:
    """Items in order, and named values."""

    items: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


def parse_text(text: str) -> Parsed:
    """The text as it is: no items, no fields."""
    return Parsed()


_BULLET = re.compile(r"^\s*(?:[-*\u2022\u2013]|\(?\d{1,3}[.):]|\(?[a-z][.)])\s+")


def parse_items(text: str) -> Parsed:
    """A list, one item a line, without its bullets and numbers; where some lines have them, only those lines count."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if _BULLET.match(line)]
    found = [_BULLET.sub("", line).strip(" *_") for line in (marked or lines)]
    return Parsed(tuple(item for item in found if item))


# --- outlines ---

_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_ROMANS = "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX"
_NUMBERS = {written.lower(): number for names in (_WORDS, _ROMANS) for number, written in enumerate(names.split(), 1)}
_NUMBER = r"(?P<number>\d{1,2}|(?i:[IVX]{1,5}|" + "|".join(_WORDS.split()) + r"))(?!\w)"

# Runs are bounded everywhere: unbounded ones side by side make a line of a million asterisks take hours.
_MARKS = r"[ \t>#*_+|\u2022\u2013-]{0,24}"
# "Chapter 3", "## Chapter Three", "**Chapter III**", "3. Chapter 3", at the start of a line.
_CHAPTER_LINE = re.compile(
    rf"^{_MARKS}(?:\d{{1,2}}[.)][ ]?)?[*_]{{0,4}}chapter[ \t]{{1,4}}{_NUMBER}", re.IGNORECASE | re.MULTILINE
)
# The same within a line: glued to what comes before ("activitiesChapter 1:"), or after a space and with a colon.
_CHAPTER_INSIDE = re.compile(
    rf"(?:(?<=[\w.!?:;)\u2026\"\u201d])[*_#]{{0,6}}C(?i:hapter)[ ]{_NUMBER}(?=[*_]{{0,4}}[ ]?[:.\u2013\u2014-])"
    rf"|(?<=\s)[*_#]{{0,6}}Chapter[ ]{_NUMBER.replace('number', 'other')}(?=[*_]{{0,4}}[ ]?:))"
)
# "Chapter 1-3:" and "Chapter 1 to 3" name several; "Chapter 1 - 10 ways to cook" names one.
_RANGE = re.compile(
    r"[*_]*\s*(?:[-\u2013\u2014,&]|to|through|and)\s*(?:chapter\s+)?\d{1,2}\s*(?:[:.)*,&\u2013\u2014-]|and\b|$)",
    re.IGNORECASE,
)
_NUMBERED_LINE = re.compile(
    r"^[#*_]{0,6}[ ]?[*_]{0,4}(?P<number>\d{1,2}|[IVX]{1,5})[.):][*_]{0,4}[ \t]+(?P<title>\S.*)$", re.MULTILINE
)
_EDGES = " \t\r\f\v*_#:.|\u2013\u2014-)"


def parse_outline(text: str) -> Parsed:
    """The chapters of a book's outline as "Chapter 3: Its title" ("Chapter 3" without one), by number, each once.

    Of several headings with one number, the first at the start of a line counts, else the first inside one. Without
    any, top-level lines numbered 1, 2, 3, ... are taken for the chapters. A heading for several chapters names none.
    """
    titles: dict[int, str] = {}
    for pattern in (_CHAPTER_LINE, _CHAPTER_INSIDE):
        for match in pattern.finditer(text):
            written = match.groupdict()
            number = _read_number(written["number"] or written.get("other") or "")
            rest = text[match.end() : match.end() + 4 * MAX_TITLE_CHARS].split("\n", 1)[0]
            if number is not None and number not in titles and not _RANGE.match(rest):
                inside = _CHAPTER_INSIDE.search(rest)
                titles[number] = _title(rest[: inside.start()] if inside else rest)
    if not titles:
        for match in _NUMBERED_LINE.finditer(text):
            number = _read_number(match["number"])
            if number == len(titles) + 1:
                titles[number] = _title(match["title"])
    return Parsed(
        tuple(f"Chapter {number}" + (f": {titles[number]}" if titles[number] else "") for number in sorted(titles))
    )


def _read_number(written: str) -> int | None:
    number = int(written) if written.isdecimal() else _NUMBERS.get(written.lower())
    return number or None


def _title(rest: str) -> str:
    title = " ".join(rest.strip(_EDGES).split())
    return title if len(title) <= MAX_TITLE_CHARS else title[:MAX_TITLE_CHARS].rsplit(" ", 1)[0].rstrip()


# --- tagged pairs ---


def _parts(text: str, pattern: re.Pattern[str]) -> list[tuple[re.Match[str], str]]:
    """Every match, with what stands behind it up to the next one."""
    found = list(pattern.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [(match, text[match.end() : end]) for match, end in zip(found, ends, strict=False)]


_LEAD = r"[ \t>#*_+\u2022\u2013-]{0,16}(?:\(?\d{1,3}[.):][ \t]{0,4})?[*_]{0,4}"
# At the start of a line in many forms ("**Q1.**", "### Question 3:", "2. Answer -"); inside one only as "Question:".
_TAGS = re.compile(
    rf"(?:^{_LEAD}(?P<tag>(?i:question|answer)|Q|A)[ \t]{{0,2}}#?\d{{0,3}}[*_]{{0,4}}[ \t]{{0,2}}"
    rf"(?:[:.)\u2013\u2014-]|(?=\n))[*_]{{0,4}}"
    rf"|(?<=[\s.?!])[*_]{{0,4}}(?P<inside>Question|Answer)(?:[ ]\d{{1,3}})?[*_]{{0,4}}:[*_]{{0,4}})",
    re.MULTILINE,
)
# Without tags: a line of its own that asks, emphasized or not, is a question, and what follows it the answer.
_ASKING_LINE = re.compile(rf"^{_LEAD}(?P<question>[^\s*_#][^\n]{{2,300}}\?)[*_ \t]{{0,8}}$", re.MULTILINE)


def parse_question_answer(text: str) -> Parsed:
    """Pairs of question and answer, each as "Question: ...\\nAnswer: ..."; fields `pairs` and `unanswered` count them.

    Tags are "Question:" and "Answer:" (also Q and A, numbered, emphasized, as headings, several on a line); without
    any, lines that end in a question mark are the questions. A question without an answer is counted, not an item; an
    answer without a question is left out.
    """
    pairs: list[tuple[str, str]] = []
    num_questions = 0
    question: str | None = None
    for tag, said in _questions_and_answers(text):
        if tag == "q":
            question = said
            num_questions += bool(said)
        elif question and said:
            pairs.append((question, said))
            question = None
    items = tuple(f"Question: {asked}\nAnswer: {answered}" for asked, answered in pairs)
    return Parsed(items, {"pairs": len(pairs), "unanswered": num_questions - len(pairs)} if num_questions else {})


def _questions_and_answers(text: str) -> list[tuple[str, str]]:
    """("q" or "a", what is said), in order."""
    tagged = [((match["tag"] or match["inside"])[0].lower(), _said(said)) for match, said in _parts(text, _TAGS)]
    if any(tag == "q" for tag, _ in tagged):
        return tagged
    asked = _parts(text, _ASKING_LINE)
    return [one for match, said in asked for one in (("q", _said(match["question"])), ("a", _said(said)))]


def _said(text: str) -> str:
    """Without the white space and the emphasis around it."""
    return text.strip().strip("*_").strip()


# --- genres and audiences ---

_GENRE_OR_AUDIENCE = re.compile(
    r"(?<!\w)(?P<tag>genre|audience)(?:[ _]?\d{1,2})?[\"'*_]{0,4}[ \t]?(?:[:=]|\u2013|\u2014|-(?=\s))[*_]{0,4}",
    re.IGNORECASE,
)


def parse_genre_audience(text: str) -> Parsed:
    """Pairs of a genre and an audience, each as "Genre: ...\\nAudience: ...", the same pair once.

    Lines tagged Genre and Audience, in this order or the other, on one line or two, or JSON with such keys.
    """
    pairs: dict[tuple[str, str], None] = {}
    held: dict[str, str] = {}
    said = _json_pairs(text) or [
        (match["tag"][0].lower(), _one_line(value)) for match, value in _parts(text, _GENRE_OR_AUDIENCE)
    ]
    for tag, value in said:
        if value:  # a second genre replaces one that no audience followed
            held[tag] = value
        if len(held) == 2:
            pairs[held["g"], held["a"]] = None
            held = {}
    return Parsed(tuple(f"Genre: {genre}\nAudience: {audience}" for genre, audience in pairs))


def _one_line(value: str) -> str:
    return value.strip().split("\n", 1)[0].strip(" \t\r|;,*_\"'{}[]()")


def _json_pairs(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    def look(value: Any) -> None:
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            name = str(key).lower()
            if isinstance(inside, str) and name.startswith(("genre", "audience")):
                found.append((name[0], " ".join(inside.split())))
            elif isinstance(inside, dict | list):
                look(inside)

    value = _find_json(text)
    if value is not None:
        look(value)
    return found


# --- sections ---

_HEADING = re.compile(r"^[ ]{0,3}(?P<level>#{1,6})[ \t]*(?P<head>[^\s#].*)$", re.MULTILINE)
_TOP_LEVEL = re.compile(r"^[*_]{0,3}(?:\d{1,2}[.):]|[-*\u2022])[ \t]+(?P<head>\S.*)$", re.MULTILINE)
_FROM_HERE = re.compile(r"^[#*_< ]{0,12}strategies[*_>: \t]{0,12}$", re.IGNORECASE | re.MULTILINE)


def parse_strategies(text: str) -> Parsed:
    """Sections under markdown headings, heading and text together; without headings, the entries of a list.

    What comes before the first of them is an introduction. Where a line says nothing but "Strategies", only what
    follows it counts. A heading without a text below is an item of its own, unless it is the title
    over all others: the first, and higher than they or the only one without a text.
    """
    behind = _parts(text, _FROM_HERE)[-1:]
    text = behind[0][1] if behind and behind[0][1].strip() else text
    for pattern in (_HEADING, _TOP_LEVEL):
        found = _parts(text, pattern)
        sections = [(match["head"].strip(" \t\r*_#:"), body.strip()) for match, body in found]
        if pattern is _HEADING and len(sections) > 1 and not sections[0][1]:
            levels = [match["level"].count("#") for match, _ in found]
            if levels[0] < min(levels[1:]) or all(body for _, body in sections[1:]):
                sections = sections[1:]
        items = [f"{head}\n{body}" if body else head for head, body in sections if head]
        if items:
            return Parsed(tuple(dict.fromkeys(items)))
    return Parsed()


# --- JSON ---


def parse_json(text: str) -> Parsed:
    """The first JSON object or list in the text, in prose or in a code fence.

    An object gives fields; a list gives items, those that are no strings as JSON. Numbers that JSON cannot write (nan,
    inf) and half characters make it no JSON, or are replaced.
    """
    value = _find_json(text)
    if isinstance(value, dict):
        return Parsed(fields=value)
    if isinstance(value, list):
        items = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in value]
        return Parsed(tuple(item.strip() for item in items if item.strip()))
    return Parsed()


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(written: str) -> float:
    number = float(written)
    return number if math.isfinite(number) else _refuse(written)


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def _find_json(text: str) -> dict[str, Any] | list[Any] | None:
    for place in _json_places(text):
        try:
            value, _ = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            continue
        if value:
            whole: dict[str, Any] | list[Any] = _whole(value)
            return whole
    return None


def _json_places(text: str) -> Iterable[int]:
    for number, match in enumerate(re.finditer(r"[{\[]", text)):
        if number == MAX_JSON_PLACES:
            return
        yield match.start()


def _whole(value: Any) -> Any:
    """Half characters, which JSON can escape and files cannot hold, replaced everywhere."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {whole_characters(key): _whole(one) for key, one in value.items()}
    return value


_THOUGHT = re.compile(r"<think(?:ing)?>(.*?)</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FINAL = re.compile(r"^[ \t>#*_]*(?:the )?final answer(?: is)?[ \t*_]*[:\uff1a][ \t*_]*", re.IGNORECASE | re.MULTILINE)
_ANSWER = re.compile(r"^[ \t>#*_]*(?:final )?answer[ \t*_]*[:\uff1a][ \t*_]*", re.IGNORECASE)
_VERDICT = re.compile(r"verdict[ \t*_\"']*[:\uff1a][ \t*_\"']*(same|different)\b", re.IGNORECASE)


def parse_trace(text: str) -> Parsed:
    """Reasoning and answer: what stands in <think> tags and behind them, or before and behind "Final answer:".

    Fields `reasoning` and `answer`, and the answer as the one item; nothing where either is missing.
    """
    thought = _THOUGHT.search(text)
    if thought is not None:
        reasoning, answer = thought[1], _FINAL.sub("", text[thought.end() :].strip(), count=1)
    else:
        *_, last = [None, *_FINAL.finditer(text)]
        if last is None:
            return Parsed()
        reasoning, answer = text[: last.start()], text[last.end() :]
    reasoning, answer = reasoning.strip(), answer.strip(" \t\r\n*_")
    if not reasoning or not answer:
        return Parsed()
    return Parsed((answer,), {"reasoning": reasoning, "answer": answer})


def parse_reference_answer(text: str) -> Parsed:
    """An answer without reasoning: field `reference_answer`, its tag and any thoughts taken off; also the one item."""
    answer = _ANSWER.sub("", _THOUGHT.sub("", text).strip()).strip()
    return Parsed((answer,), {"reference_answer": answer}) if answer else Parsed()


def parse_verdict(text: str) -> Parsed:
    """The last "Verdict: same" or "Verdict: different": field `agree`, and the word as the one item."""
    found = _VERDICT.findall(text)
    return Parsed((found[-1].lower(),), {"agree": found[-1].lower() == "same"}) if found else Parsed()


def parse_trace_notes(text: str) -> Parsed:
    """JSON with `domain`, `verbosity` (0 to 10) and `strategies` {name: uses}; nothing where one is no such value."""
    value = _find_json(text)
    if not isinstance(value, dict):
        return Parsed()
    domain, verbosity, strategies = (value.get(name) for name in ("domain", "verbosity", "strategies"))
    if not isinstance(domain, str) or not domain.strip() or not isinstance(strategies, dict):
        return Parsed()
    if not isinstance(verbosity, int | float) or isinstance(verbosity, bool) or not 0 <= verbosity <= 10:
        return Parsed()
    counts = {name.strip().lower(): uses for name, uses in strategies.items()}
    if any(type(uses) is not int or uses < 0 for uses in counts.values()):
        return Parsed()
    used = {name: uses for name, uses in counts.items() if uses}
    return Parsed(("notes",), {"domain": domain.strip(), "verbosity": verbosity, "strategies": used})


PARSERS: dict[str, Callable[[str], Parsed]] = {
    "text": parse_text,
    "items": parse_items,
    "outline": parse_outline,
    "question_answer": parse_question_answer,
    "genre_audience": parse_genre_audience,
    "strategies": parse_strategies,
    "json": parse_json,
    "trace": parse_trace,
    "reference_answer": parse_reference_answer,
    "verdict": parse_verdict,
    "trace_notes": parse_trace_notes,
}
"""Name -> function."""
