"""The configuration of a tokenizer; `tokenize` and the training config share it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TokenizerArgs:
    """A vocabulary, by Meta Lingua's names."""

    name: str = "bytes"
    """bytes, sp (a SentencePiece model file) or tiktoken (a rank file, as Llama 3's tokenizer.model)."""
    path: str | None = None
    """File of the vocabulary; none for bytes."""
