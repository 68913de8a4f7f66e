"""What an evaluation leaves: four sums per domain, from which every average is computed afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DomainSums:
    """Sums over the scored documents of one domain."""

    nats: float
    """Summed negative log-likelihood of the scored tokens."""
    tokens: int
    """Scored tokens: every token of the text, BOS and EOS not; of conversations the answers', and what ends them."""
    bytes: int
    """UTF-8 bytes of the scored documents' text; of conversations, of their answers."""
    documents: int
    """Documents scored."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text: the figure that compares across tokenizers."""
        return self.nats / (math.log(2) * self.bytes)

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return exp(self.loss)


def exp(loss: float) -> float:
    """The perplexity of a loss in nats per token; infinite where it overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def summarize(domains: Mapping[str, DomainSums]) -> dict[str, float]:
    """Averages over domains: `loss_macro`, `loss_micro` (nats per token), `bpb_macro` (bits per byte).

    macro: the mean of the domains' own averages, each domain counting alike. micro: all nats over all tokens.
    """
    assert domains, "at least one domain"
    sums = list(domains.values())
    return {
        "loss_macro": sum(s.loss for s in sums) / len(sums),
        "loss_micro": sum(s.nats for s in sums) / sum(s.tokens for s in sums),
        "bpb_macro": sum(s.bits_per_byte for s in sums) / len(sums),
    }
