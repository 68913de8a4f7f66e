"""What a step's text says, read back: items to go on from one by one, or fields to go on with.

A parser is a pure function of the text. It never fails: what is not there is not found, and a recipe's gate decides
whether the text is asked for again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


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


PARSERS: dict[str, Callable[[str], Parsed]] = {
    "text": parse_text,
    "items": parse_items,
}
"""Name -> function."""
