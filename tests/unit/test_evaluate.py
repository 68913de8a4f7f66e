"""Domain sums against a plain loop, over any batching."""

import math

import numpy as np
import pytest
import torch

from lingua_synth.evaluate import DomainSums, evaluate_domains, summarize
from lingua_synth.model import ModelArgs, build_model

ARGS = ModelArgs(dim=32, n_layers=1, n_heads=2, vocab_size=50, max_seqlen=16, multiple_of=16)
BOS, EOS = 48, 49


class Shards:
    """Documents in memory with the members evaluation reads."""

    def __init__(self, texts, add_bos=True, add_eos=True):
        self.texts = texts
        self.num_documents = len(texts)
        self.manifest = {"add_bos": add_bos, "add_eos": add_eos, "tokenizer": {"bos_id": BOS, "eos_id": EOS}}
        self.document_num_bytes = np.array([3 * len(text) for text in texts])

    def document(self, i):
        ids = [BOS] * self.manifest["add_bos"] + list(self.texts[i]) + [EOS] * self.manifest["add_eos"]
        return np.array(ids, dtype=np.uint16)


def plain_nats(model, texts, seq_len):
    total = 0.0
    for text in texts:
        ids = [BOS, *text]
        for start in range(0, len(text), seq_len):
            window = ids[start : start + seq_len + 1]
            with torch.no_grad():
                log_p = model(torch.tensor([window[:-1]])).double().log_softmax(-1)[0]
            total -= sum(float(log_p[i, target]) for i, target in enumerate(window[1:]))
    return total


def texts(seed, lengths):
    return [np.random.default_rng((seed, i)).integers(0, 48, n) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("batch_tokens", [1, 16, 50, 10_000])
@pytest.mark.parametrize("marks", [(True, True), (False, False), (True, False)])
def test_sums_equal_a_plain_loop_whatever_the_batch(batch_tokens, marks):
    model = build_model(ARGS, seed=0)
    documents = texts(0, [1, 5, 16, 17, 40, 3, 0, 16])
    domains = {"a": Shards(documents, *marks), "b": Shards(documents[:3], *marks)}
    sums = evaluate_domains(model, domains, seq_len=16, batch_tokens=batch_tokens)
    assert sums["a"].tokens == sum(map(len, documents))
    assert sums["a"].bytes == 3 * sums["a"].tokens
    assert (sums["a"].documents, sums["b"].documents) == (7, 3)  # the empty document is not scored
    for name, scored in (("a", documents), ("b", documents[:3])):
        assert math.isclose(sums[name].nats, plain_nats(model, scored, 16), rel_tol=1e-6)


def test_a_token_budget_takes_whole_documents_in_order():
    model = build_model(ARGS, seed=0)
    documents = texts(1, [10, 10, 10, 10])
    sums = evaluate_domains(model, {"a": Shards(documents)}, seq_len=16, max_tokens_per_domain=15)["a"]
    assert (sums.documents, sums.tokens) == (2, 20)
    assert math.isclose(sums.nats, plain_nats(model, documents[:2], 16), rel_tol=1e-6)


def test_a_domain_with_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="domain 'empty' has no token to score in 2 documents"):
        evaluate_domains(build_model(ARGS, seed=0), {"empty": Shards(texts(0, [0, 0]))}, seq_len=16)


def test_averages_are_computed_from_sums():
    sums = {"a": DomainSums(nats=100.0, tokens=50, bytes=200, documents=3), "b": DomainSums(30.0, 10, 40, 1)}
    summary = summarize(sums)
    assert summary["loss_macro"] == (2.0 + 3.0) / 2
    assert summary["loss_micro"] == 130 / 60
    assert summary["bpb_macro"] == (100 / (math.log(2) * 200) + 30 / (math.log(2) * 40)) / 2
