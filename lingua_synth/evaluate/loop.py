"""Scoring documents with a model.

Each document stands alone: BOS is its first context and is not scored, nor is EOS. A document longer than `seq_len` is
cut into disjoint windows of `seq_len` scored tokens, each with the one token before it as context (the rolling
log-likelihood of lm-evaluation-harness). Windows are sorted by length and packed to equal work, so hardly anything is
padding; sums are kept in fp64 and added over ranks, so the figure does not depend on batching or on the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from lingua_synth.evaluate.sums import DomainSums


class DocumentSource(Protocol):
    """What evaluation needs of token shards (`lingua_synth.tokens.TokenSource`)."""

    num_documents: int
    manifest: dict[str, Any]
    document_num_bytes: np.ndarray

    def document(self, index: int) -> np.ndarray: ...


def evaluate_domains(
    model: torch.nn.Module,
    domains: Mapping[str, DocumentSource],
    *,
    seq_len: int,
    max_tokens_per_domain: int | None = None,
    batch_tokens: int = 8192,
) -> dict[str, DomainSums]:
    """Score `domains` with `model(tokens, labels) -> nats per token`; all ranks call it, all get the whole sums.

    Documents are taken in shard order (shuffled with a seed at tokenization) until `max_tokens_per_domain` tokens are
    reached; None scores all. Raises ValueError for a domain without a scorable token.
    """
    device = next(model.parameters()).device
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    was_training = model.training
    model.eval()
    results = {}
    for name, source in domains.items():
        windows, num_tokens, num_bytes, num_documents = _windows(source, seq_len, max_tokens_per_domain)
        if not windows:
            raise ValueError(f"domain {name!r} has no token to score in {source.num_documents} documents")
        nats = torch.zeros((), dtype=torch.float64)
        batches = list(_batches(windows, batch_tokens))
        with torch.no_grad():
            # Every rank calls the model equally often, the last ones once for nothing: a sharded one gathers its
            # weights in each call, from all of them.
            for start in range(0, len(batches), size):
                index = start + rank
                inputs, labels, scored = batches[min(index, len(batches) - 1)]
                losses = model(torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device))
                if index < len(batches):
                    nats += losses.double().cpu()[torch.from_numpy(scored)].sum()
        if size > 1:
            total = nats.to(device)
            dist.all_reduce(total)
            nats = total.cpu()
        results[name] = DomainSums(float(nats), num_tokens, num_bytes, num_documents)
    model.train(was_training)
    return results


def _windows(
    source: DocumentSource, seq_len: int, max_tokens: int | None
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int, int, int]:
    """(inputs, labels) of every window, and the tokens, bytes and documents they cover."""
    manifest = source.manifest
    bos = manifest["tokenizer"]["bos_id"]
    windows: list[tuple[np.ndarray, np.ndarray]] = []
    num_tokens = num_bytes = num_documents = 0
    for index in range(source.num_documents):
        if max_tokens is not None and num_tokens >= max_tokens:
            break
        text = np.asarray(source.document(index), dtype=np.int64)
        text = text[1:] if manifest["add_bos"] else text
        text = text[:-1] if manifest["add_eos"] else text
        if len(text) == 0:
            continue
        context = np.concatenate([[bos], text[:-1]])
        for start in range(0, len(text), seq_len):
            windows.append((context[start : start + seq_len], text[start : start + seq_len]))
        num_tokens += len(text)
        num_bytes += int(source.document_num_bytes[index])
        num_documents += 1
    return windows, num_tokens, num_bytes, num_documents


def _batches(
    windows: list[tuple[np.ndarray, np.ndarray]], batch_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Inputs, labels and the mask of scored places, [rows, longest]; right padding cannot reach a causal model's
    past."""
    order = sorted(range(len(windows)), key=lambda i: (-len(windows[i][0]), i))
    start = 0
    while start < len(order):
        longest = len(windows[order[start]][0])
        rows = order[start : start + max(1, batch_tokens // longest)]
        inputs = np.zeros((len(rows), longest), dtype=np.int64)
        labels = np.zeros((len(rows), longest), dtype=np.int64)
        scored = np.zeros((len(rows), longest), dtype=bool)
        for row, index in enumerate(rows):
            context, text = windows[index]
            inputs[row, : len(text)], labels[row, : len(text)], scored[row, : len(text)] = context, text, True
        yield inputs, labels, scored
        start += len(rows)
