"""The figures of Meta Lingua's own validation, for comparison with runs that were reported so.

`apps/main/eval.py` (checkout 437d680, read and run) scores of each document the tail that fits its generator, and
writes means over documents of

    nll             the log-likelihood of the document: the sign is not turned, so it is below 0
    nll_per_token   the same by scored token, each document counting alike whatever its length
    nll_per_char    the same by character of the whole document, cut off or not
    avg_seqlen      scored tokens

each document in the type of the logits, bf16 in a bf16 model. On several GPUs it takes the mean of each GPU's means;
`lingua_figures` gives what one GPU gives.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from lingua_synth.evaluate.scoring import Evaluator, Scores
from lingua_synth.evaluate.sums import DomainSums
from lingua_synth.tokens import Tokenizer


def lingua_figures(
    evaluator: Evaluator, scores: Scores, tokenizer: Tokenizer, dtype: str
) -> dict[str, dict[str, float]]:
    """Lingua's figures per domain, under Lingua's names and with its signs. `dtype`: bf16 or fp32, of the logits."""
    texts, found = evaluator.texts, {}
    for name, rows in texts.by_domain():
        documents = scores.documents[name]
        likelihood = [-_rounded(nats, dtype) for nats in documents.nats.tolist()]
        characters = [
            len(tokenizer.decode(texts.tokens[texts.starts[d] + 1 : texts.starts[d + 1]].tolist()))
            for d in range(rows.start, rows.stop)
        ]
        found[name] = {
            "nll": _mean(likelihood),
            "nll_per_token": _mean([x / n for x, n in zip(likelihood, documents.tokens.tolist(), strict=True)]),
            "nll_per_char": _mean([x / n for x, n in zip(likelihood, characters, strict=True)]),
            "avg_seqlen": _mean(documents.tokens.tolist()),
        }
    return found


def with_scored_bytes(evaluator: Evaluator, scores: Scores, tokenizer: Tokenizer) -> Scores:
    """The scores with the bytes of the tails that were scored, in place of those of the whole documents."""
    texts = evaluator.texts
    sums: dict[str, DomainSums] = {}
    documents: dict[str, Any] = {}
    for name, rows in texts.by_domain():
        found = scores.documents[name]
        ends = texts.starts[rows.start + 1 : rows.stop + 1]
        tails = [texts.tokens[end - count : end] for end, count in zip(ends, found.tokens, strict=True)]
        offsets = np.concatenate([[0], np.cumsum(found.tokens)])
        num_bytes = np.asarray(tokenizer.count_text_bytes(np.concatenate(tails), offsets), dtype=np.int64)
        # A whole text keeps the bytes that its shards counted.
        num_bytes = np.where(found.tokens == texts.domains[name].num_tokens, found.bytes, num_bytes)
        documents[name] = dataclasses.replace(found, bytes=num_bytes)
        sums[name] = dataclasses.replace(scores.sums[name], bytes=int(num_bytes.sum()))
    return Scores(sums, documents, scores.token_losses)


def _rounded(nats: float, dtype: str) -> float:
    """A document's sum as it leaves a tensor of `dtype`."""
    import torch

    return torch.tensor(nats, dtype=torch.float64).to(torch.bfloat16 if dtype == "bf16" else torch.float32).item()


def _mean(values: list[Any]) -> float:
    return math.fsum(values) / len(values)
