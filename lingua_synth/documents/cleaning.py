"""Text as a language model should see it, and no stretch of it twice.

`normalize_text` is for any text. `clean_markup` is for documentation (reStructuredText, Markdown, docstrings): it keeps
running prose and drops code, tables, badges and signatures. `Deduplicator` drops every line and
paragraph of 80 characters or more that was seen before, anywhere in the corpus: licence headers, copied
parameter descriptions, mirrored pages, and whatever a held-out document would share with a training document.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator

UNIT_CHARS = 80
"""Shortest line or paragraph, in characters, that may not occur twice in a corpus."""
MAX_NON_LETTERS = 0.30
"""Largest share of characters (spaces not counted) of a paragraph that are no letters."""
MIN_STOP_WORDS = 0.15
"""Smallest share of English function words among the words of a paragraph; running prose has 0.35 to 0.5."""

_STOP_WORD_LIST = (
    "a about after all also an and any are as at be because been before but by can do does each either for from has "
    "have he her his how if in into is it its may more most must no not of on one only or other our should so some "
    "such than that the their them then there these they this those to was we were what when where which while who "
    "will with within without would you your"
)
STOP_WORDS = frozenset(_STOP_WORD_LIST.split())

# C0 and C1 controls but tab and newline, soft hyphen, zero-width and direction marks, byte order mark, U+FFFD.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufffd]")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_TRAILING_SPACE = re.compile(r"[ \t]+(?=\n|\Z)")


def normalize_text(text: str) -> str:
    """`text` without control characters, with `\\n` line ends, no trailing spaces, at most one blank line in a row.

    Idempotent. Nothing is judged and no letter is changed, so it suits a corpus of any language, code included.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    text = _CONTROLS.sub("", text)
    text = _TRAILING_SPACE.sub("", text)
    return _BLANK_LINES.sub("\n\n", text).strip("\n")


def unit_key(text: str) -> bytes:
    """Identity of a line or paragraph for deduplication: its words, without case, spacing and line breaks."""
    return hashlib.blake2b(" ".join(text.lower().split()).encode("utf-8"), digest_size=8).digest()


class Deduplicator:
    """Drops what was seen before: lines and paragraphs of at least `UNIT_CHARS` characters.

    Two texts that went through the same object share no such line and no such paragraph (compared without case and
    spacing). A paragraph that loses more than half of its characters with repeated lines goes as a whole.
    Memory: about 100 bytes for each line and paragraph seen. Keys are 64-bit hashes: among 10^8 of them,
    an accidental match, which would drop one line too many, is expected 0.0003 times.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.num_repeated_chars = 0

    def keep_new(self, text: str) -> str:
        """`text` without what was seen before, possibly empty; what is left counts as seen from now on."""
        kept = [paragraph for paragraph in map(self._keep_new_lines, text.split("\n\n")) if paragraph]
        new = "\n\n".join(kept)
        self.num_repeated_chars += len(text) - len(new)
        return new

    def _keep_new_lines(self, paragraph: str) -> str:
        if len(paragraph) < UNIT_CHARS:
            return paragraph
        if unit_key(paragraph) in self._seen:
            return ""
        units: set[bytes] = set()
        lines = []
        for line in paragraph.split("\n"):
            if len(line) >= UNIT_CHARS:
                key = unit_key(line)
                if key in self._seen or key in units:
                    continue
                units.add(key)
            lines.append(line)
        kept = "\n".join(lines)
        if len(kept) < len(paragraph) and (2 * len(kept) <= len(paragraph) or unit_key(kept) in self._seen):
            return ""  # its lines were not kept, so they do not count as seen
        if len(kept) >= UNIT_CHARS:
            units.add(unit_key(kept))
        self._seen |= units
        return kept


# --- documentation ---

_DOCTEST = re.compile(r"^\s*(>>>|In \[\d*\]:|\$ |% )")
_DIRECTIVE = re.compile(r"^(\s*)\.\. *([\w:-]+?):: ?(.*)$")
_KEPT_DIRECTIVES = frozenset(
    ["note", "warning", "important", "tip", "hint", "caution", "seealso", "attention", "danger", "topic", "admonition"]
)
_COMMENT = re.compile(r"^(\s*)\.\. ")
_RULE = re.compile(r"^\s*([-=~^*#\"'`+_.:])\1{2,}[\s\-=~^*#+|]*$|.*[-=~^*#_]{8}")
_TABLE = re.compile(r"^\s*(\+[-=+]+\+|=+( +=+)+|-+( +-+)+)\s*$")
_FENCE = re.compile(r"^\s*(```|~~~)")
_HTML = re.compile(r"</?[A-Za-z][^<>]{0,300}>|<!--.*?-->")
_BADGE = re.compile(r"!?\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)|!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]\[]+)\](?:\([^)\s]*(?: \"[^\"]*\")?\)|\[[^\]]*\])")
_RST_LINK = re.compile(r"`([^`<>]+?)\s*<[^<>`]+>`__?")
_FOOTNOTE = re.compile(r"\s?\[(?:\d+|#\w*)\]_")
_ROLE = re.compile(r":(?:[a-z]+:){0,2}[a-z-]+:`[~!.]?([^`<>]+?)(?:\s*<[^`]*>)?`")
_QUOTED = re.compile(r"``(.+?)``|`([^`\n]+?)`_?")
_STRONG = re.compile(r"\*\*(?=\S)([^*\n]+?)(?<=\S)\*\*|(?<![\w*])\*(?=\w)([^*\n]+?)(?<=\w)\*(?![\w*])")
_MARKDOWN_HEADING = re.compile(r"^#{1,6} +(.*?)#*$")
_URL = re.compile(r"<?\b(?:https?|ftp)://[^\s>)\]]+>?")
_BULLET = re.compile(r"^(?:[-*+•]|\d+[.)]|\(?[a-z]\)) +|^:\w")
_FIELD = re.compile(r"^[\w*, .]{1,40} : \S|^\w+: \S|^:\w[\w ]*:|^\w+ \([^)]*\): ")
_WORDS = re.compile(r"[^\W\d_]+(?:'[a-z]+)?")
_LICENCE = re.compile(
    r"permission is hereby granted|redistribution and use in source|warrant(y|ies) of (any kind|merchantability)"
    r"|provided \"?as is|licensed under the|copyright (\(c\)|©|\d{4})|all rights reserved|spdx-license"
    r"|license agreement",
    re.IGNORECASE,
)
# Sections of a docstring that are lists of names or of literature.
_DROPPED_SECTIONS = frozenset(["see also", "references", "bibliography"])


def clean_markup(text: str, dropped: dict[str, int]) -> str:
    """The running prose of a piece of documentation: paragraphs separated by blank lines, markup removed.

    Code (doctests, literal blocks, fences), tables, rules, badges, URLs and lists of names go; lines that were only
    wrapped are joined. Then each paragraph is judged, and `dropped` counts those that go, by reason: `licence`,
    `not text` (more than `MAX_NON_LETTERS` non-letters), `not English` (fewer stop words than `MIN_STOP_WORDS`),
    `too short` (a heading or fragment with nothing under it).
    """
    lines = inspect.cleandoc(normalize_text(text).expandtabs(4)).split("\n")
    kept: list[str] = []
    heading: list[str] = []  # at most one: it stands if a paragraph follows it
    for paragraph in _paragraphs(_prose_lines(lines)):
        reason = _why_not(paragraph)
        if not reason:
            kept += [*heading, paragraph]
            heading = []
        elif reason == "too short" and not heading and len(paragraph) < 40 and "\n" not in paragraph:
            heading = [paragraph]
        else:
            _count(dropped, reason)
            _count(dropped, "too short", len(heading))
            heading = []
    _count(dropped, "too short", len(heading))
    return "\n\n".join(kept)


def _count(counts: dict[str, int], reason: str, number: int = 1) -> None:
    if number:
        counts[reason] = counts.get(reason, 0) + number


def _why_not(paragraph: str) -> str:
    words = _WORDS.findall(paragraph.lower())
    letters = sum(map(len, words))
    if letters < (1 - MAX_NON_LETTERS) * len("".join(paragraph.split())):
        return "not text"
    if len(words) < 6:
        return "too short"
    if _LICENCE.search(paragraph):
        return "licence"
    if sum(map(STOP_WORDS.__contains__, words)) < MIN_STOP_WORDS * len(words):
        return "not English"
    return ""


def _prose_lines(lines: list[str]) -> Iterator[str]:
    """The lines of documentation without code, tables and directives, inline markup removed."""
    i, num_lines = 0, len(lines)
    while i < num_lines:
        line = lines[i]
        directive = _DIRECTIVE.match(line) if ".." in line else None
        if directive and directive[2] in _KEPT_DIRECTIVES:
            line = directive[1] + directive[3]
        elif directive or _COMMENT.match(line):
            i = _after_block(lines, i)
            yield ""
            continue
        if _DOCTEST.match(line):
            while i < num_lines and lines[i].strip():
                i += 1
            continue
        if _FENCE.match(line):
            i += 1
            while i < num_lines and not _FENCE.match(lines[i]):
                i += 1
            i += 1
            yield ""
            continue
        if line.strip().lower() in _DROPPED_SECTIONS and i + 1 < num_lines and _RULE.match(lines[i + 1]):
            i = _after_section(lines, i)
            yield ""
            continue
        literal = line.rstrip().endswith("::")
        if line.count("|") > 1 or _RULE.match(line) or _TABLE.match(line):
            yield ""
        else:
            yield _without_inline_markup(line.rstrip()[:-1] if literal else line)
        if literal:
            yield ""
        i = _after_block(lines, i) if literal else i + 1


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _after_block(lines: list[str], i: int) -> int:
    """The line after the one at `i` and the deeper indented block under it."""
    indent = _indent(lines[i])
    i += 1
    while i < len(lines) and (not lines[i].strip() or _indent(lines[i]) > indent):
        i += 1
    return i


def _after_section(lines: list[str], i: int) -> int:
    """The heading of the next section after the one whose heading is at `i`."""
    for j in range(i + 2, len(lines) - 1):
        if lines[j].strip() and lines[j + 1].strip() and _RULE.match(lines[j + 1]):
            return j
    return len(lines)


def _without_inline_markup(line: str) -> str:
    if "<" in line:
        line = _RST_LINK.sub(r"\1", line)
    if "`" in line:
        line = _ROLE.sub(r"\1", line)
        line = _QUOTED.sub(lambda match: match[1] or match[2], line)
    if "[" in line:
        line = _LINK.sub(r"\1", _BADGE.sub("", line))
        line = _FOOTNOTE.sub("", line)
    if "<" in line:
        line = _HTML.sub("", line)
    if "://" in line:
        line = _URL.sub("", line)
    if "*" in line:
        line = _STRONG.sub(lambda match: match[1] or match[2], line)
    if line.startswith("#"):
        line = _MARKDOWN_HEADING.sub(r"\1", line)
    return line.rstrip()


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """Blocks between blank lines, each with its wrapped lines joined."""
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield _unwrap(block)
            block = []
    if block:
        yield _unwrap(block)


def _unwrap(block: list[str]) -> str:
    out: list[str] = []
    last_indent = -1
    for line in block:
        indent, words = _indent(line), " ".join(line.split())
        if not out or indent < last_indent or _BULLET.match(words) or _FIELD.match(words):
            out.append(words)
        elif indent > last_indent and not _BULLET.match(out[-1]) and (len(out[-1]) < 60 or _FIELD.match(out[-1])):
            out.append(words)  # what hangs under a short line or a `name : type` explains it
        else:
            out[-1] += f" {words}"
        last_indent = indent
    return "\n".join(out)
