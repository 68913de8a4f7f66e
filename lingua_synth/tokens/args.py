"""The configuration of a tokenizer; `tokenize` and the training config share it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TokenizerArgs:
    """A vocabulary, by Meta Lingua's names."""

    name: str = "bytes"
    """bytes, sp (a SentencePiece model file) or tiktoken (a rank file, as Llama 3's tokenizer.model)."""
    path: str | None = None
    """File of the vocabulary; none for bytes. tiktoken without one takes Llama 3's from Meta's llama-models package."""
    fast: bool = True
    """tiktoken: let gigatoken encode where it is installed and its ids are tiktoken's; false is tiktoken alone."""
