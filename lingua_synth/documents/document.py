"""One text and what is known about it: the unit that every step before tokenization hands on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """A text with an identity. `meta` is plain JSON data; nobody changes it after the document exists."""

    id: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)


def document_id(text: str) -> str:
    """The id of a document that came without one: the first 16 hexadecimal digits of SHA-256 of its UTF-8 text."""
    return utf8_document_id(text.encode("utf-8"))


def utf8_document_id(text: bytes) -> str:
    """`document_id` of a text that is UTF-8 already."""
    return hashlib.sha256(text).hexdigest()[:16]
