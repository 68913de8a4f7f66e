"""Filters on what instruction-tuned models say about their answer instead of, before or after giving it.

    Sure! Here is the rewritten text:      <- head
                                              the text
    I hope this helps. Let me know ...     <- tail

A head or tail counts only where it speaks of the task (a rewrite, a version, "let me know"): "Here is the river that
..." and "Note: the valve is left-handed" are ordinary sentences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lingua_synth.generate.filters.context import FilterContext


@dataclass
class RefusalParameters:
    """Settings of `refusal`."""

    phrases: list[str] = field(default_factory=list)
    """More openings that count as a refusal, in lower case."""


@dataclass
class BoilerplateParameters:
    """Settings of `boilerplate`."""

    heads: bool = True
    """Look at the beginning."""
    tails: bool = True
    """Look at the end."""
    head_phrases: list[str] = field(default_factory=list)
    """More openings, in lower case: a first line that begins so is boilerplate."""
    tail_phrases: list[str] = field(default_factory=list)
    """More openings of a last line, in lower case."""


# Openings by which instruction-tuned models decline. A text that quotes one later on is not a refusal.
REFUSAL_OPENINGS = (
    "i'm sorry, but",
    "i am sorry, but",
    "i'm sorry, i can",
    "i apologize, but",
    "sorry, but i",
    "i cannot",
    "i can't",
    "i can not",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "i won't",
    "as an ai",
    "as a language model",
    "as a large language model",
    "unfortunately, i cannot",
    "unfortunately, i can't",
    "unfortunately, i am unable",
    "there is no text",
    "no text was provided",
    "please provide the text",
    "please provide the document",
)


def refusal(text: str, context: FilterContext, parameters: RefusalParameters) -> str | None:
    """Begins as models begin when they decline or ask for the input."""
    opening = _plain(text[:400]).lstrip(" \t\r\n\"'\u201c*#>_-")
    for phrase in (*REFUSAL_OPENINGS, *parameters.phrases):
        if opening.startswith(phrase):
            return f"begins with {phrase!r}"
    return None


def _plain(text: str) -> str:
    return text.lower().replace("\u2019", "'")


MAX_HEAD_CHARS = 250
MAX_TAIL_CHARS = 500
MAX_TAIL_LINES = 3

# What a rewrite or conversion calls itself. Lists, tables and steps are left out: a text may announce its own.
_TASK = (
    r"(?:(?:re|para)[- ]?(?:writ\w+|phras\w+|word\w+)|paraphras\w+|version|conver(?:ted|sion)|translat\w+|"
    r"summar\w+|(?:provided |given |original |above )?(?:text|passage|document|article)|outline|response|output|"
    r"question(?:s|[- ](?:and[- ])?answer)|q\s?&\s?a|chapter|textbook)"
)
_AGREES = r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|no problem|great|gladly|happy to help)"
_ANNOUNCES = (
    r"(?:here(?: is|'s| are)|below(?: is| are| you will find)|the following (?:is|are|text)|"
    r"i (?:have|will|can|would)|i'(?:ve|ll|d)|let me|let's|this is|based on|as requested|per your)"
)
_HEADS = [
    # "Sure!", alone or before an announcement, and "Sure, here's ...": up to the colon or the end of the line.
    re.compile(rf"{_AGREES}\s*[!.,:-]+\s*$"),
    re.compile(rf"{_AGREES}\s*[!.,:-]+\s*{_ANNOUNCES}\b[^:\n]*(?::|[.!]\s*$)"),
    re.compile(rf"{_ANNOUNCES}\b[^:.!?\n]*\b{_TASK}\b[^:.!?\n]*:"),
    re.compile(rf"{_ANNOUNCES}\b[^:.!?\n]*\b{_TASK}\b[^:.!?\n]*[.!]\s*$"),
    # A title that names the task and nothing else.
    re.compile(
        r"(?:the )?(?:re-?written|re-?phrased|re-?worded|paraphrased|revised|converted|improved|translated) "
        r"(?:text|version|passage|document|article)\s*:?\s*[*_]*\s*$"
    ),
]
_TAILS = [
    re.compile(r"(?:please )?(?:let me know|feel free to (?:ask|reach|let|contact)|don't hesitate to (?:ask|reach))\b"),
    re.compile(rf"i hope (?:this|that|these|it|the|you find)\b.*\b(?:help\w*|useful|meets|what you|{_TASK})\b"),
    re.compile(r"(?:is there anything else|would you like me to|do you (?:want|need) me to)\b"),
    re.compile(
        r"if you (?:have any|need any|need|would like|want) (?:further|other|more|additional|me to|any|questions|help)"
        r"\b.*\b(?:let me know|feel free|ask|i can|i'd be|i'll|i am|i'm)\b"
    ),
    re.compile(rf"\(?(?:please )?note(?: that)?\s*:?\s*(?:this|the|these|i|all|that)\b.*\b{_TASK}\b"),
    re.compile(
        rf"(?:this|the|these|the above) (?:re\w*|paraphrased|revised|above|converted)?\s*{_TASK}\b.*\b(?:maintain\w*|"
        r"preserv\w+|retain\w*|captur\w+|keeps?|aims? to|reflects?|cover|is written|has been|have been)\b"
    ),
    re.compile(r"\(?(?:end of|the end of) (?:the |this )?(?:text|document|article|response|passage|chapter|outline)\b"),
]
# What marks a line without being part of what it says.
_MARKS = " \t\"'\u201c\u201d*#>_-=\u2013\u2014[("
_RULE = re.compile(r"\s*(?:[-*_=]{3,}[ \t]*(?:\n|$)\s*)+")


def split_boilerplate(text: str, parameters: BoilerplateParameters | None = None) -> tuple[str, str, str]:
    """Head, text, tail: `head + rest + tail == text`. A rule (---) between them goes with the head or the tail.

    Where nothing would be left between head and tail, the text in the middle is empty.
    """
    parameters = parameters or BoilerplateParameters()
    first = _head_length(text, parameters.head_phrases) if parameters.heads else 0
    last = _tail_start(text, first, parameters.tail_phrases) if parameters.tails else len(text)
    return text[:first], text[first:last], text[last:]


def boilerplate(text: str, context: FilterContext, parameters: BoilerplateParameters) -> str | None:
    """A model's words about its answer at the beginning or the end: "Here is the ...:", "Let me know ..."."""
    head, _, tail = split_boilerplate(text, parameters)
    parts = [f"{kind} {_short(part)!r}" for kind, part in (("begins with", head), ("ends with", tail)) if part]
    return " and ".join(parts) or None


def strip_boilerplate(text: str, parameters: BoilerplateParameters) -> tuple[str, dict[str, str]]:
    """The text without it, and what was cut: `head` and `tail`, those that there are."""
    head, rest, tail = split_boilerplate(text, parameters)
    return rest, {name: part for name, part in (("head", head), ("tail", tail)) if part}


def _short(part: str) -> str:
    words = " ".join(part.split())
    return words if len(words) <= 60 else words[:57] + "..."


def _head_length(text: str, phrases: list[str]) -> int:
    """Characters of the head, with what separates it from the text; 0: there is none."""
    length = 0
    for _ in range(2):  # "Sure!" and the announcement may stand on two lines
        start = length + len(text[length:]) - len(text[length:].lstrip())
        line = text[start : start + MAX_HEAD_CHARS + 1].split("\n", 1)[0]
        end = _end_of_head(line, phrases) if len(line) <= MAX_HEAD_CHARS else _end_of_head(line, phrases, within=True)
        if not end:
            break
        length = start + end
        length += len(text[length:]) - len(text[length:].lstrip())
        rule = _RULE.match(text, length)
        length = rule.end() if rule else length
    return length


def _end_of_head(line: str, phrases: list[str], within: bool = False) -> int:
    """Where in its first line a head ends; 0: it holds none. `within`: the line is long, so only a colon ends it."""
    marks = len(line) - len(line.lstrip(_MARKS))
    # Character for character, so that places found here are places there.
    said = "".join(c.lower() if len(c.lower()) == 1 else c for c in line[marks:]).replace("\u2019", "'")
    if not within and any(said.startswith(phrase) for phrase in phrases):
        return len(line)
    bare = said.rstrip(" \t\r*_")
    for pattern in _HEADS:
        found = pattern.match(bare)
        if not found:
            continue
        if found.end() == len(bare):
            return len(line)
        if not within or found.end() <= MAX_HEAD_CHARS:
            # The text goes on behind the colon; marks that close what the head opened belong to the head.
            rest = line[marks + found.end() :]
            return marks + found.end() + len(rest) - len(rest.lstrip(" \t*_"))
    return 0


def _tail_start(text: str, first: int, phrases: list[str]) -> int:
    """Where the tail begins, with what separates it from the text; the text's length: there is none."""
    start = len(text)
    for _ in range(MAX_TAIL_LINES):
        rest = text[first:start].rstrip()
        line_start = rest.rfind("\n") + 1
        line = rest[line_start:]
        # A text of one line is its own tail only where that is all it says.
        if not line or len(line) > MAX_TAIL_CHARS:
            break
        said = _plain(line.lstrip(_MARKS))
        is_tail = any(said.startswith(phrase) for phrase in phrases)
        if not is_tail and not any(pattern.match(said) for pattern in _TAILS):
            break
        rest = rest[:line_start].rstrip()
        while rest.endswith(("---", "***", "___", "===")) and not rest.rpartition("\n")[2].strip("-*_= \t"):
            rest = rest[: rest.rfind("\n") + 1].rstrip()
        start = first + len(rest)
    return start
