"""What a page is made of, and how each block becomes HTML.

A page is a list of `Section`s; a section is a title and a list of blocks. A plain string is a paragraph. Everything
that comes from data is escaped here and only here, so no caller has to think of it; there is no raw-HTML block.
"""

from __future__ import annotations

import html
import numbers
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lingua_synth.report import words
from lingua_synth.scaling.verdicts import VERDICTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Table:
    """Rows under a header; it scrolls sideways inside its box when the screen is narrow.

    A cell is text, or a number: whole numbers get thousands separators, others `digits` decimals, None and NaN an
    en dash. Columns in which every cell is a number, or reads like one, are set right. `strong` lists the
    (row, column) places to emphasise.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    digits: int = 4
    strong: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        for k, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(f"row {k} of a table has {len(row)} cells under a header of {len(self.header)}")


@dataclass(frozen=True)
class Sample:
    """A piece of text from the data, shown letter for letter with its line breaks; `most` characters at most."""

    text: str
    label: str = ""
    most: int = 2000


@dataclass(frozen=True)
class Bullets:
    """Short statements under each other, below a line that says what they are."""

    items: Sequence[str]
    lead: str = ""


@dataclass(frozen=True)
class Terms:
    """Words and what they mean."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A figure with its caption. `name` becomes file names and ids: small letters, digits, - and _ only."""

    name: str
    ax: Axes
    caption: str

    def __post_init__(self) -> None:
        if not self.name or not all(c.isascii() and (c.islower() or c.isdigit() or c in "-_") for c in self.name):
            raise ValueError(f"a picture's name is made of small letters, digits, - and _; got {self.name!r}")


@dataclass(frozen=True)
class Judgement:
    """A statement with the verdict on it, set off by a word and a colour, and lines that say why."""

    verdict: str
    """supported, rejected or undecided."""
    says: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Judgements:
    """Statements with their verdicts, one under the other."""

    items: Sequence[Judgement]


Block = str | Table | Sample | Bullets | Terms | Picture | Judgements


@dataclass
class Section:
    """A heading and what stands under it; blocks are shown in order, a plain string as a paragraph."""

    title: str
    body: list[Block] = field(default_factory=list)


def pictures_of(sections: Sequence[Section]) -> list[Picture]:
    """Every picture, in order. ValueError when two share a name: they would share files and ids."""
    found = [block for section in sections for block in section.body if isinstance(block, Picture)]
    names = [picture.name for picture in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two pictures of one page are both called {', '.join(twice)}; give each its own name")
    return found


def block_html(block: Block, svgs: dict[str, str], number: int | None = None) -> str:
    """One block as HTML. `svgs` holds the `<svg>` of every picture by name; `number` is the figure's number."""
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>"
    if isinstance(block, Table):
        return _table_html(block)
    if isinstance(block, Sample):
        return _sample_html(block)
    if isinstance(block, Bullets):
        lead = f'<p class="lead">{html.escape(block.lead)}</p>' if block.lead else ""
        return f"{lead}<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Terms):
        pairs = "".join(f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in block.pairs)
        return f"<dl>{pairs}</dl>"
    if isinstance(block, Judgements):
        return "\n".join(_judgement_html(one) for one in block.items)
    assert isinstance(block, Picture), "no other kind of block exists"
    return (
        f'<figure id="{block.name}"><div class="drawing" role="img" aria-label="{html.escape(block.caption)}">'
        f"{svgs[block.name]}</div>"
        f"<figcaption><b>Figure {number}.</b> {html.escape(block.caption)}</figcaption></figure>"
    )


def _judgement_html(one: Judgement) -> str:
    assert one.verdict in VERDICTS, "the style sheet knows three"
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in one.lines)
    return (
        f'<div class="judgement {one.verdict}"><p><b class="verdict">{one.verdict}</b> {html.escape(one.says)}</p>'
        f"{f'<ul>{lines}</ul>' if lines else ''}</div>"
    )


def cell_text(value: Any, digits: int) -> str:
    """One table cell as text, by the rules of `Table`."""
    if value is None:
        return words.NOTHING
    if not _is_number(value):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}".replace("-", words.MINUS)
    return words.number(float(value), digits)


def _reads_like_numbers(column: Sequence[str]) -> bool:
    shown = [text for text in column if text != words.NOTHING]
    return bool(shown) and all(re.fullmatch(r"[−±+]?[\d,]+(\.\d+)?(e[+-]\d+)?(\s?%)?|∞|−∞", text) for text in shown)


def _is_number(value: Any) -> bool:
    # numbers.Real holds numpy's scalars too; a bool is a word here.
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _table_html(table: Table) -> str:
    columns = range(len(table.header))
    right = [_reads_like_numbers([cell_text(row[k], table.digits) for row in table.rows]) for k in columns]

    def cell(tag: str, k: int, text: str, strong: bool = False) -> str:
        inner = html.escape(text)
        attributes = ' class="n"' if right[k] else ""
        return f"<{tag}{attributes}>{f'<b>{inner}</b>' if strong else inner}</{tag}>"

    head = "".join(cell("th", k, table.header[k]) for k in columns)
    body = "".join(
        "<tr>"
        + "".join(cell("td", k, cell_text(row[k], table.digits), (i, k) in table.strong) for k in columns)
        + "</tr>\n"
        for i, row in enumerate(table.rows)
    )
    caption = f'<p class="caption">{html.escape(table.caption)}</p>' if table.caption else ""
    # tabindex: a box that scrolls must be reachable by keyboard.
    label = html.escape(table.caption or "table")
    return (
        f'{caption}<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def _sample_html(sample: Sample) -> str:
    text = sample.text
    if len(text) > sample.most:
        text = f"{text[: sample.most]}\n[... {len(text) - sample.most:,} more characters]"
    # Other control characters and lone surrogates cannot stand in a page: a replacement mark shows where they were.
    text = "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\N{REPLACEMENT CHARACTER}"
        for c in text.replace("\r\n", "\n")
    )
    label = f'<p class="caption">{html.escape(sample.label)}</p>' if sample.label else ""
    return f'{label}<pre tabindex="0">{html.escape(text)}</pre>'
