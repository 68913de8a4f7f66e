"""Named sizes. The paper's are its Table 1 (dim/layers/heads, head dimension 64); the nano ladder is ours, for CPUs
(head dimension 32, at 56k 24). From 27k to 222k it keeps one depth and doubles N at each step.
"""

from __future__ import annotations

import dataclasses

from lingua_synth.model.args import ModelArgs

LLAMA3_VOCAB_SIZE = 128_256


def _paper(dim: int, n_layers: int, n_heads: int) -> ModelArgs:
    return ModelArgs(dim=dim, n_layers=n_layers, n_heads=n_heads, vocab_size=LLAMA3_VOCAB_SIZE)


def _nano(dim: int, n_layers: int, n_heads: int) -> ModelArgs:
    # multiple_of 32 keeps the feed-forward width near 8/3 dim at these widths; Lingua's 256 would make it 8 dim.
    return ModelArgs(dim=dim, n_layers=n_layers, n_heads=n_heads, multiple_of=32)


PRESETS: dict[str, ModelArgs] = {
    "nano-27k": _nano(32, 2, 1),
    "nano-56k": _nano(48, 2, 2),
    "nano-107k": _nano(64, 2, 2),
    "nano-222k": _nano(96, 2, 3),
    "nano-332k": _nano(96, 3, 3),
    "nano-804k": _nano(128, 4, 4),
    "100M": _paper(576, 7, 9),
    "200M": _paper(832, 10, 13),
    "500M": _paper(1280, 16, 20),
    "1B": _paper(1792, 22, 28),
    "2B": _paper(2240, 28, 35),
    "3B": _paper(2624, 32, 41),
}
"""Sizes by name. Paper sizes carry the Llama-3 vocabulary; nano sizes are named after their non-embedding count and
take the tokenizer's."""


def preset(name: str) -> ModelArgs:
    """A copy of the preset `name`, to be changed freely; ValueError lists the names."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name])
