"""How a document becomes windows: which tokens are scored with which context. The name goes with every figure.

disjoint (the default): windows of `seq_len` scored tokens, each with the one token before it as context.

    context   B a b c | d e f g | h          seq_len 4; B is BOS
    scored      a b c d | e f g h | i

sliding-<stride>: windows move on by `stride`; after the first, each scores its last `stride` tokens, with all of
`seq_len - stride` before them as context. Losses are lower than those of disjoint windows, and cost seq_len / stride
as much. `sliding-<seq_len>` is lm-evaluation-harness's rolling log-likelihood: disjoint, but for a document's last
window, which reaches back for as much context as fits.

lingua-compat: Meta Lingua's own validation (apps/main/eval.py): of each document, BOS in front, the last M - 1 tokens
alone, M the smaller of the model's context and the generator's `max_tokens`; the first of them is context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PROTOCOLS = ("disjoint", "sliding", "lingua-compat")


@dataclass(frozen=True)
class Protocol:
    """One of PROTOCOLS with its numbers; see the module."""

    kind: str
    seq_len: int
    """Most tokens that the model sees at once."""
    stride: int = 0
    """sliding: scored tokens a window, in [1, seq_len]."""

    @property
    def name(self) -> str:
        """What a figure is filed under: figures of two names, or two seq_lens, do not compare."""
        return f"sliding-{self.stride}" if self.kind == "sliding" else self.kind

    def windows(self, num_tokens: npt.NDArray[np.int64]) -> Windows:
        """The windows of documents with `num_tokens` tokens of text each (at least 1)."""
        if self.kind == "lingua-compat":
            return self._tails(num_tokens)
        stride = self.stride if self.kind == "sliding" else self.seq_len
        counts = 1 + np.maximum(num_tokens - self.seq_len + stride - 1, 0) // stride
        document = np.repeat(np.arange(len(num_tokens)), counts)
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        end = np.minimum(self.seq_len + nth * stride, num_tokens[document])
        scored_from = np.where(nth == 0, 0, self.seq_len + (nth - 1) * stride)
        start = np.maximum(end - self.seq_len, 0) if self.kind == "sliding" else scored_from
        return Windows(document, start, end - start, scored_from - start)

    def _tails(self, num_tokens: npt.NDArray[np.int64]) -> Windows:
        length = np.minimum(num_tokens, self.seq_len - 2)
        nothing = np.zeros_like(num_tokens)
        return Windows(np.arange(len(num_tokens)), num_tokens - length, length, nothing)


@dataclass(frozen=True)
class Windows:
    """Windows over documents; int64 arrays of one length, in document order."""

    document: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    """The first label's place in the text; the token before it (BOS before the first) is the first input."""
    length: npt.NDArray[np.int64]
    """Tokens the model sees."""
    num_context: npt.NDArray[np.int64]
    """Labels at the front that another window scores."""


def build_protocol(kind: str, *, seq_len: int, stride: int = 0, context: int | None = None) -> Protocol:
    """The protocol by its name; ValueError for what cannot be. `context`: most tokens the model can see."""
    if kind not in PROTOCOLS:
        raise ValueError(f"protocol is {', '.join(PROTOCOLS)}; got {kind!r}")
    least = 3 if kind == "lingua-compat" else 1
    if seq_len < least:
        raise ValueError(f"seq_len must be at least {least} with protocol={kind}, got {seq_len}")
    if context is not None and seq_len > context:
        raise ValueError(f"seq_len {seq_len} is longer than the model's context of {context} tokens")
    if kind == "sliding" and not 1 <= stride <= seq_len:
        raise ValueError(f"protocol=sliding needs stride=, between 1 and seq_len ({seq_len}); got {stride}")
    if kind != "sliding" and stride:
        raise ValueError(f"stride={stride} is for protocol=sliding; this is protocol={kind}")
    return Protocol(kind, seq_len, stride)
