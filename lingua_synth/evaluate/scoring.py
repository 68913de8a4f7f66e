"""Scoring texts with a model: one pass, from which the sums of every domain, document and token id are taken.

Each loss is counted in whole units of 2^-30 nats (1e-9; an fp32 loss above 0.008 nats is such a number exactly). Sums
of integers do not depend on their order: the same window losses give the same figures to the bit, by document, by
domain, by token id, on any number of ranks, on a GPU too. What is left to batching is how a model rounds in batches of
other shapes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from lingua_synth.evaluate.protocol import Protocol
from lingua_synth.evaluate.results import Documents, TokenLosses
from lingua_synth.evaluate.sums import DomainSums
from lingua_synth.evaluate.texts import DocumentSource, DomainTexts, Packing, read_texts

UNITS_PER_NAT = 2**30
BATCH_TOKENS = {"cpu": 8192, "cuda": 65_536}


@dataclass(frozen=True)
class Scores:
    """What one pass over the texts gives."""

    sums: dict[str, DomainSums]
    documents: dict[str, Documents]
    token_losses: dict[str, TokenLosses]


class Evaluator:
    """Domains ready to be scored: documents chosen, windows cut and packed once, scored as often as asked.

    `domains`: token shards by name. `max_tokens_per_domain` or `max_bytes_per_domain`: whole documents up to so many
    tokens, or bytes of text, in a fixed order (`texts.py`); None: all. `batch_tokens`: places of a batch; 0: 8,192 on a
    CPU, 65,536 on a GPU. Memory: the chosen tokens. ValueError for a domain without a token to score, and for domains
    of different vocabularies.
    """

    def __init__(
        self,
        domains: Mapping[str, DocumentSource],
        protocol: Protocol,
        *,
        max_tokens_per_domain: int | None = None,
        max_bytes_per_domain: int | None = None,
        batch_tokens: int = 0,
    ) -> None:
        if not domains:
            raise ValueError("there is no domain to evaluate; name at least one")
        self.protocol = protocol
        self.texts = read_texts(domains, max_tokens_per_domain, max_bytes_per_domain)
        self._batch_tokens = batch_tokens
        self._packing: Packing | None = None

    @property
    def domains(self) -> dict[str, DomainTexts]:
        """The chosen documents of each domain."""
        return self.texts.domains

    def packing(self, device_type: str) -> Packing:
        """The batches, for "cpu" or "cuda"; made once."""
        if self._packing is None:
            batch_tokens = self._batch_tokens or BATCH_TOKENS.get(device_type, BATCH_TOKENS["cuda"])
            self._packing = Packing(self.texts, self.protocol, batch_tokens)
        return self._packing

    def score(self, model: torch.nn.Module, *, progress: bool = False) -> Scores:
        """Score all texts with `model(tokens, labels) -> nats per token`; all ranks call it, all get the whole sums.

        ValueError, on all ranks, if a loss is not finite.
        """
        texts, device = self.texts, next(model.parameters()).device
        packing = self.packing(device.type)
        window_units, token_units = self._pass(model, packing, device, progress)
        document_units = np.zeros(len(texts.num_tokens), dtype=np.int64)
        np.add.at(document_units, packing.windows.document, window_units)
        sums, documents, losses = {}, {}, {}
        for number, (name, rows) in enumerate(texts.by_domain()):
            domain, units, scored = texts.domains[name], document_units[rows], packing.num_scored[rows]
            documents[name] = Documents(domain.documents, _nats(units), scored, domain.num_bytes)
            sums[name] = DomainSums(
                float(_nats(units.sum())), int(scored.sum()), int(domain.num_bytes.sum()), len(domain.documents)
            )
            losses[name] = TokenLosses(packing.token_counts[number], _nats(token_units[number]))
        return Scores(sums, documents, losses)

    def _pass(
        self, model: torch.nn.Module, packing: Packing, device: torch.device, progress: bool
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Units of each window, int64 [windows], and by domain and token id, int64 [domains, vocabulary]."""
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        num_words = self.texts.num_words
        domain_of = self.texts.domain_of[packing.windows.document]
        by_window = torch.zeros(len(domain_of), dtype=torch.int64, device=device)
        by_token = torch.zeros(len(self.domains) * num_words, dtype=torch.int64, device=device)
        not_finite = torch.zeros((), dtype=torch.int64, device=device)
        was_training = model.training
        model.eval()
        try:
            # Every rank calls the model equally often, the last ones once for nothing: a sharded one gathers its
            # weights in each call, from all of them.
            steps = range(0, len(packing), size)
            with torch.no_grad(), _eager(device):
                for start in tqdm(steps, desc="evaluate", unit="batch", disable=not progress, dynamic_ncols=True):
                    batch = packing[min(start + rank, len(packing) - 1)]
                    labels = torch.from_numpy(batch.labels).to(device)
                    losses = self._losses(model, torch.from_numpy(batch.tokens).to(device), labels)
                    if start + rank >= len(packing):
                        continue
                    not_finite += (~torch.isfinite(losses)).sum()
                    units = losses.double().mul_(UNITS_PER_NAT).round_().long()
                    by_window[torch.from_numpy(batch.rows).to(device)] = units.sum(1)
                    offset = torch.from_numpy(domain_of[batch.rows] * num_words).to(device)
                    by_token.index_add_(0, (labels.clamp_min_(0) + offset[:, None]).flatten(), units.flatten())
        finally:
            model.train(was_training)
        if size > 1:
            for part in (by_window, by_token, not_finite):
                dist.all_reduce(part)
        if int(not_finite):
            raise ValueError(
                f"the model gives losses that are not finite, for {int(not_finite):,} tokens of "
                f"{', '.join(self.domains)}: its weights, or its compute type, are not fit to be evaluated"
            )
        return by_window.cpu().numpy(), by_token.view(len(self.domains), num_words).cpu().numpy()

    def _losses(self, model: torch.nn.Module, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.protocol.kind != "lingua-compat":
            losses: torch.Tensor = model(tokens, labels)
            return losses
        # As Lingua: reduced in the type of the logits, which is not fp32 in a bf16 model.
        logits = model(tokens)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).float()


def _nats(units: Any) -> Any:
    return units / UNITS_PER_NAT


@contextlib.contextmanager
def _eager(device: torch.device) -> Any:
    """Without compiled code, which is for the one shape of a training batch and would be made anew for each here."""
    if device.type != "cuda" and "torch._dynamo" not in sys.modules:
        yield  # nothing is compiled, and the switch alone would import the compiler
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def evaluate_domains(
    model: torch.nn.Module,
    domains: Mapping[str, DocumentSource],
    *,
    seq_len: int,
    max_tokens_per_domain: int | None = None,
    batch_tokens: int = 0,
) -> dict[str, DomainSums]:
    """Sums per domain under the disjoint protocol, in one call; `Evaluator` scores the same texts repeatedly."""
    protocol = Protocol("disjoint", seq_len)
    evaluator = Evaluator(domains, protocol, max_tokens_per_domain=max_tokens_per_domain, batch_tokens=batch_tokens)
    return evaluator.score(model).sums
