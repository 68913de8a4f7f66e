"""Configuration of a mixture: its sources, as `mix`, training and studies take them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SourceArgs:
    """One corpus of a mixture."""

    path: str = ""
    """Folder of the source's token shards and their manifest.json."""
    ratio: str = "1"
    """Exact share of the training tokens, '2/3' or 0.67, in [0, 1]. The ratios of a mixture sum to exactly 1."""
    max_epochs: float = 1.0
    """Most passes over the source, above 0; 1.0 repeats no token."""
    documents: str = ""
    """Documents to tokenize into `path` on first use; empty: the shards are already there."""
