"""Domain sums against a plain loop, over any batching, protocol and budget; what an evaluation leaves on disk."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from lingua_synth.evaluate import DomainSums, Evaluator, evaluate_domains, read_evaluation, summarize
from lingua_synth.evaluate.command import main
from lingua_synth.evaluate.intervals import difference_intervals, loss_intervals
from lingua_synth.evaluate.protocol import build_protocol
from lingua_synth.files import read_json, write_json
from lingua_synth.model import ModelArgs, build_model

ARGS = ModelArgs(dim=32, n_layers=1, n_heads=2, vocab_size=50, max_seqlen=16, multiple_of=16)
BOS, EOS = 48, 49


class Shards:
    """Documents in memory with the members evaluation reads."""

    def __init__(self, texts, add_bos=True, add_eos=True, ids=None, tokenizer=None):
        self.texts = texts
        self.num_documents = len(texts)
        self.ids = ids or [f"document {i}" for i in range(len(texts))]
        tokenizer = {"name": "test", "bos_id": BOS, "eos_id": EOS, "n_words": 50, "sha256": "a"} | (tokenizer or {})
        self.manifest = {"add_bos": add_bos, "add_eos": add_eos, "dtype": "uint16", "tokenizer": tokenizer}
        self.document_num_bytes = np.array([3 * len(text) for text in texts])
        self.document_lengths = np.array([len(text) + add_bos + add_eos for text in texts])

    def document(self, i):
        ids = [BOS] * self.manifest["add_bos"] + list(self.texts[i]) + [EOS] * self.manifest["add_eos"]
        return np.array(ids, dtype=np.uint16)

    def document_id(self, i):
        return self.ids[i]


def losses_of(model, inputs, targets):
    with torch.no_grad():
        log_p = model(torch.tensor([[int(i) for i in inputs]])).double().log_softmax(-1)[0]
    return [-float(log_p[i, int(target)]) for i, target in enumerate(targets)]


def plain_losses(model, text, seq_len, context=BOS):
    """The loss of each token of a text, window after window, by a plain loop."""
    ids, found = [context, *text], []
    for start in range(0, len(text), seq_len):
        window = ids[start : start + seq_len + 1]
        found += losses_of(model, window[:-1], window[1:])
    return found


def plain_nats(model, texts, seq_len):
    return sum(sum(plain_losses(model, text, seq_len)) for text in texts)


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


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_sliding_windows_equal_a_plain_loop(stride):
    model = build_model(ARGS, seed=0)
    documents = texts(3, [1, 15, 16, 17, 50])
    scores = Evaluator({"a": Shards(documents)}, build_protocol("sliding", seq_len=16, stride=stride)).score(model)
    for nats, text in zip(scores.documents["a"].nats, documents, strict=True):
        ids, expected, done = [BOS, *text], 0.0, 0
        while done < len(text):
            end = min(16 if done == 0 else done + stride, len(text))
            start = max(end - 16, 0)
            expected += sum(losses_of(model, ids[start:end], ids[start + 1 : end + 1])[done - start :])
            done = end
        assert math.isclose(nats, expected, rel_tol=1e-6)
    assert scores.sums["a"].tokens == sum(map(len, documents))


def test_token_losses_are_the_loop_s_by_token_id_and_sum_to_the_domain_s():
    model = build_model(ARGS, seed=1)
    documents = texts(4, [30, 7, 16, 2])
    domains = {"a": Shards(documents), "b": Shards(documents[1:])}
    scores = Evaluator(domains, build_protocol("disjoint", seq_len=16)).score(model)
    for name, scored in (("a", documents), ("b", documents[1:])):
        expected = np.zeros((2, 50))
        for text in scored:
            for token, nats in zip(text, plain_losses(model, text, 16), strict=True):
                expected[:, token] += 1, nats
        losses = scores.token_losses[name]
        assert np.array_equal(losses.counts, expected[0])
        np.testing.assert_allclose(losses.nats, expected[1], rtol=1e-6)
        # Sums of whole units: equal, not close.
        assert losses.nats.sum() == scores.sums[name].nats == scores.documents[name].nats.sum()
        assert losses.counts.sum() == scores.sums[name].tokens


def test_a_batch_of_any_size_gives_the_same_counts_and_nearly_no_padding():
    documents = texts(5, [int(n) for n in np.random.default_rng(0).integers(1, 60, 300)])
    protocol = build_protocol("disjoint", seq_len=16)
    model, found = build_model(ARGS, seed=0), []
    for batch_tokens in (64, 1000, 4096):
        evaluator = Evaluator({"a": Shards(documents)}, protocol, batch_tokens=batch_tokens)
        scores = evaluator.score(model)
        packing = evaluator.packing("cpu")
        rows = np.concatenate([packing[i].rows for i in range(len(packing))])
        assert np.array_equal(np.sort(rows), np.arange(len(packing.windows.document)))  # each window once
        assert max(packing[i].tokens.size for i in range(len(packing))) <= batch_tokens
        assert packing.num_places <= 1.06 * scores.sums["a"].tokens
        found.append(scores)
    for other in found[1:]:
        assert other.sums["a"].tokens == found[0].sums["a"].tokens
        assert np.array_equal(other.token_losses["a"].counts, found[0].token_losses["a"].counts)
        assert math.isclose(other.sums["a"].nats, found[0].sums["a"].nats, rel_tol=1e-6)


def test_a_token_budget_takes_the_same_whole_documents_whatever_their_order():
    model = build_model(ARGS, seed=0)
    documents = texts(1, [10] * 40)
    ids = [f"document {i}" for i in range(40)]
    protocol = build_protocol("disjoint", seq_len=16)
    one = Evaluator({"a": Shards(documents)}, protocol, max_tokens_per_domain=95)
    shuffled = np.random.default_rng(0).permutation(40)
    other = Evaluator(
        {"a": Shards([documents[i] for i in shuffled], ids=[ids[i] for i in shuffled])},
        protocol,
        max_tokens_per_domain=95,
    )
    chosen = one.domains["a"].documents
    assert len(chosen) == 10 and set(chosen) == set(shuffled[other.domains["a"].documents])
    assert set(chosen) != set(range(10)), "the order of a hash, not of the shards"
    assert one.score(model).sums["a"].tokens == 100
    # A larger budget takes the same ones and more: figures with two budgets are of one sample.
    more = Evaluator({"a": Shards(documents)}, protocol, max_tokens_per_domain=200)
    assert set(chosen) < set(more.domains["a"].documents)
    all_there_is = Evaluator({"a": Shards(documents)}, protocol, max_tokens_per_domain=10_000)
    assert len(all_there_is.domains["a"].documents) == 40 and all_there_is.domains["a"].tokens_available == 400


def test_a_budget_in_bytes_takes_the_same_documents_under_every_vocabulary():
    documents = texts(1, range(3, 43))
    halves = [text[::2] for text in documents]  # as if two of its tokens were one of another vocabulary
    protocol = build_protocol("disjoint", seq_len=16)
    num_bytes = np.array([3 * len(text) for text in documents])
    chosen = []
    for given in (documents, halves):
        shards = Shards(given)
        shards.document_num_bytes = num_bytes
        found = Evaluator({"a": shards}, protocol, max_bytes_per_domain=500).domains["a"]
        assert 500 <= found.num_bytes.sum() < 500 + num_bytes.max()
        chosen.append(found.documents.tolist())
    assert chosen[0] == chosen[1] and len(chosen[0]) < 20
    every = Evaluator({"a": shards}, protocol, max_bytes_per_domain=int(num_bytes.sum()))
    assert len(every.domains["a"].documents) == 40
    with pytest.raises(ValueError, match="two budgets of one text"):
        Evaluator({"a": shards}, protocol, max_tokens_per_domain=5, max_bytes_per_domain=5)
    with pytest.raises(ValueError, match="max_bytes_per_domain must be at least 1"):
        Evaluator({"a": shards}, protocol, max_bytes_per_domain=0)


def test_a_vocabulary_without_bos_puts_eos_in_front():
    model = build_model(ARGS, seed=0)
    documents = texts(2, [5, 20])
    sums = evaluate_domains(model, {"a": Shards(documents, False, tokenizer={"bos_id": -1})}, seq_len=16)["a"]
    assert math.isclose(sums.nats, sum(sum(plain_losses(model, t, 16, context=EOS)) for t in documents), rel_tol=1e-6)
    nothing = Shards(documents, False, False, tokenizer={"bos_id": -1, "eos_id": -1})
    with pytest.raises(ValueError, match="neither BOS nor EOS"):
        evaluate_domains(model, {"a": nothing}, seq_len=16)


def test_what_cannot_be_scored_is_refused():
    model = build_model(ARGS, seed=0)
    with pytest.raises(ValueError, match="domain 'empty' has no token to score in 2 documents"):
        evaluate_domains(model, {"empty": Shards(texts(0, [0, 0]))}, seq_len=16)
    other = Shards(texts(0, [3]), tokenizer={"sha256": "b", "name": "other"})
    with pytest.raises(ValueError, match=r"domain 'b' was tokenized with other .* domain 'a' with test"):
        evaluate_domains(model, {"a": Shards(texts(0, [3])), "b": other}, seq_len=16)
    with pytest.raises(ValueError, match="max_tokens_per_domain must be at least 1"):
        evaluate_domains(model, {"a": Shards(texts(0, [3]))}, seq_len=16, max_tokens_per_domain=0)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    model.train()
    with pytest.raises(ValueError, match="losses that are not finite, for 3 tokens of a"):
        evaluate_domains(model, {"a": Shards(texts(0, [3]))}, seq_len=16)
    assert model.training, "the model is left as it was"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kind": "rolling", "seq_len": 8}, "protocol is disjoint, sliding, lingua-compat"),
        ({"kind": "disjoint", "seq_len": 0}, "seq_len must be at least 1"),
        ({"kind": "disjoint", "seq_len": 64, "context": 32}, "seq_len 64 is longer than the model's context of 32"),
        ({"kind": "disjoint", "seq_len": 8, "stride": 4}, "stride=4 is for protocol=sliding"),
        ({"kind": "sliding", "seq_len": 8}, "needs stride=, between 1 and seq_len"),
        ({"kind": "sliding", "seq_len": 8, "stride": 9}, "needs stride=, between 1 and seq_len"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        build_protocol(words.pop("kind"), **words)


def test_averages_are_computed_from_sums():
    sums = {"a": DomainSums(nats=100.0, tokens=50, bytes=200, documents=3), "b": DomainSums(30.0, 10, 40, 1)}
    summary = summarize(sums)
    assert summary["loss_macro"] == (2.0 + 3.0) / 2
    assert summary["loss_micro"] == 130 / 60
    assert summary["bpb_macro"] == (100 / (math.log(2) * 200) + 30 / (math.log(2) * 40)) / 2
    assert sums["a"].perplexity == math.exp(2)
    assert DomainSums(1e9, 1, 1, 1).perplexity == math.inf


# --- intervals ---


def test_intervals_cover_the_loss_as_often_as_they_say():
    """Documents with losses of their own: 95 % intervals over documents hold the true loss in 95 % of 200 samples."""
    random, hits = np.random.default_rng(0), 0
    for trial in range(200):
        tokens = random.integers(20, 200, 60)
        nats = tokens * (3.0 + 0.5 * random.standard_normal(60))
        low, high = loss_intervals({"a": (nats, tokens)}, seed=trial, num_resamples=300)["a"]
        hits += low <= 3.0 <= high
    assert 180 <= hits <= 198


def test_intervals_are_seeded_and_do_not_depend_on_other_domains():
    random = np.random.default_rng(1)
    a = (random.random(20) * 50, random.integers(5, 30, 20))
    b = (random.random(9) * 50, random.integers(5, 30, 9))
    both, alone = loss_intervals({"a": a, "b": b}), loss_intervals({"b": b})
    assert both["b"] == alone["b"] == alone["loss_macro"]
    assert loss_intervals({"a": a}, seed=1)["a"] != both["a"]
    width = {key: high - low for key, (low, high) in both.items()}
    assert width["loss_macro"] < max(width["a"], width["b"])
    single = loss_intervals({"a": a, "one": (np.array([3.0]), np.array([2]))})
    assert single["one"] is None and single["loss_macro"] is None and single["a"] == both["a"]


def test_a_paired_interval_forgets_what_makes_a_document_hard_for_both():
    random = np.random.default_rng(2)
    tokens = random.integers(50, 60, 100)
    hard = tokens * (3 + random.standard_normal(100))
    better = hard - tokens * 0.02 + random.standard_normal(100) * 0.01
    low, high = difference_intervals({"a": (hard, better, tokens)}, with_macro=True)["a"]
    assert -0.021 < low < high < -0.019
    alone = loss_intervals({"a": (hard, tokens)})["a"]
    assert alone[1] - alone[0] > 0.2


# --- the verb and its folder ---


@pytest.fixture(scope="module")
def run_dir(shards, tmp_path_factory):
    """A trained nano model."""
    from lingua_synth.config import build_args
    from lingua_synth.train import train
    from lingua_synth.train.args import TrainArgs

    folder = tmp_path_factory.mktemp("trained") / "run"
    base = {
        "name": "test", "dump_dir": str(folder), "data": {"seq_len": 32, "batch_size": 4}, "optim": {"lr": 3e-3},
        "model": {"dim": 32, "n_layers": 2, "n_heads": 2, "multiple_of": 16}, "distributed": {"model_dtype": "fp32"},
        "synth": {
            "tokens": 8 * 256, "global_batch_tokens": 256, "warmup_ratio": 0.1, "device": "cpu",
            "sources": {"natural": {"path": shards["natural"], "ratio": "1"}},
            "evaluation": {"domains": {"near": shards["near"], "far": shards["far"]}},
        },
    }  # fmt: skip
    train(build_args(TrainArgs, base), progress=False)
    return folder


def evaluate(run_dir, *words):
    return main([f"checkpoint={run_dir}", "device=cpu", "dtype=fp32", *map(str, words)])


def domains_of(shards):
    return [f"domains.{name}={shards[name]}" for name in ("near", "far")]


def test_the_folder_of_an_evaluation_reads_back(run_dir, shards, tmp_path, capsys):
    assert evaluate(run_dir, *domains_of(shards), f"out={tmp_path / 'out'}", "max_tokens_per_domain=1000") == 0
    printed = capsys.readouterr().out
    found = read_evaluation(tmp_path / "out")
    record = found.record
    assert record["coverage"] == {"of": 2, "present": ["near", "far"], "absent": []}
    assert (record["protocol"], record["seq_len"], record["domain_set"]) == ("disjoint", 32, "custom")
    assert record["domains"]["near"]["tokens_asked"] == 1000 <= found.domains["near"].tokens
    assert record["tokenizer"]["name"] == "bytes" and record["context_token"] == 256
    assert f"loss_macro {found.averages['loss_macro']:.4f}" in printed
    low, high = record["domains"]["near"]["loss_interval"]
    assert low < found.domains["near"].loss < high
    low, high = record["intervals"]["loss_macro"]
    assert low < found.averages["loss_macro"] < high and record["intervals"]["resamples"] == 1000
    assert record["averages"]["perplexity_macro"] == math.exp(found.averages["loss_macro"])
    total = found.token_losses()
    parts = [found.token_losses(name) for name in found.domains]
    assert len(total.counts) == 258 and np.array_equal(total.counts, parts[0].counts + parts[1].counts)
    for name, sums in found.domains.items():
        documents = found.documents(name)
        assert found.token_losses(name).nats.sum() == sums.nats == documents.nats.sum()
        assert (documents.tokens.sum(), documents.bytes.sum()) == (sums.tokens, sums.bytes)
        assert len(documents.document) == sums.documents
    with pytest.raises(ValueError, match="has no domain 'else'; it has near, far"):
        found.token_losses("else")


def test_a_run_leaves_what_the_verb_finds(run_dir, shards, tmp_path):
    assert evaluate(run_dir, *domains_of(shards), f"out={tmp_path / 'out'}") == 0
    ours, verb = read_evaluation(run_dir), read_evaluation(tmp_path / "out")
    assert ours.domains == verb.domains
    assert ours.record["averages"]["loss_macro"] == read_json(run_dir / "result.json")["loss_macro"]
    assert np.array_equal(ours.token_losses().nats, verb.token_losses().nats)
    assert ours.record == verb.record | {"checkpoint": ours.checkpoint}


def test_all_kinds_of_checkpoints_have_the_same_figures(run_dir, shards, tmp_path):
    """The run, a Hugging Face export, and one file of weights as Meta Lingua's consolidate_checkpoints writes it."""
    from lingua_synth.model.checkpoint import list_checkpoints, load_model
    from lingua_synth.model.huggingface import export_huggingface

    export_huggingface(run_dir, tmp_path / "hf", dtype="fp32")
    checkpoint, model, params = load_model(run_dir)
    (tmp_path / "consolidated").mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "consolidated" / "consolidated.pth")
    write_json(tmp_path / "consolidated" / "params.json", params)
    assert checkpoint == list_checkpoints(run_dir)[-1]
    found = []
    for number, where in enumerate((run_dir, checkpoint, tmp_path / "hf", tmp_path / "consolidated")):
        assert evaluate(where, *domains_of(shards), f"out={tmp_path / str(number)}") == 0
        found.append(read_evaluation(tmp_path / str(number)).domains)
    assert found[0] == found[1] == found[2] == found[3]


def test_domains_given_as_documents_are_tokenized_once(run_dir, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    lines = [json.dumps({"text": f"abc def {i} " * (i % 7 + 1)}) for i in range(200)]
    bad = b'{"text": "caf\xe9"}\n'  # one line of Latin-1, not UTF-8
    (data / "news.jsonl").write_bytes("\n".join(lines).encode() + b"\n" + bad)
    (data / "long.jsonl").write_text(json.dumps({"text": "one long text " * 400}) + "\n")
    out = tmp_path / "out"
    assert evaluate(run_dir, f"data={data}", f"out={out}", "bootstrap.resamples=50") == 0
    found = read_evaluation(out)
    assert list(found.domains) == ["long", "news"]
    assert found.record["domains"]["news"]["skipped"] == {"not UTF-8": 1}
    assert found.domains["long"].documents == 1 and found.domains["long"].tokens == 14 * 400
    assert found.record["domains"]["long"]["loss_interval"] is None
    assert "loss_macro" not in found.record["intervals"]
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.arrow")}
    assert len(stamps) == 2
    with pytest.raises(ValueError, match=r"holds an evaluation; choose another folder, or set overwrite=true"):
        evaluate(run_dir, f"data={data}", f"out={out}")
    assert evaluate(run_dir, f"data={data}", f"out={out}", "overwrite=true", "max_tokens_per_domain=9000") == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.arrow")} == stamps
    printed = capsys.readouterr().out
    assert "long: has 5,600 tokens, fewer than the 9,000 asked; all were used" in printed


def test_sets_carry_their_coverage(run_dir, shards, tmp_path, capsys):
    words = [f"domains.arxiv={shards['near']}", "domain_set=pile10-open", f"out={tmp_path / 'out'}"]
    with pytest.warns(UserWarning, match="9 of the 10 domains of pile10-open are absent"):
        assert evaluate(run_dir, *words) == 0
    coverage = read_evaluation(tmp_path / "out").record["coverage"]
    assert (coverage["of"], coverage["present"], len(coverage["absent"])) == (10, ["arxiv"], 9)
    assert "domain set pile10-open: 1 of 10 domains, absent: nih_exporter, " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"'arxive' is not of the domain set pile10-open .*did you mean arxiv\?"):
        evaluate(run_dir, f"domains.arxive={shards['near']}", "domain_set=pile10-open")


def test_bad_input_is_a_message(run_dir, shards, tmp_path):
    near = f"domains.near={shards['near']}"
    with pytest.raises(ValueError, match="checkpoint is not set"):
        main([])
    with pytest.raises(ValueError, match="domains is empty"):
        evaluate(run_dir)
    with pytest.raises(ValueError, match="did you mean split"):
        main(["splitt"])
    with pytest.raises(ValueError, match=r"domain 'near': .*nowhere"):
        evaluate(run_dir, f"domains.near={tmp_path / 'nowhere'}", f"out={tmp_path / 'o'}")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"domain 'none': "):
        evaluate(run_dir, f"domains.none={tmp_path / 'empty.jsonl'}", f"out={tmp_path / 'o'}")
    with pytest.raises(ValueError, match="is documents, which are tokenized first: set out="):
        evaluate(run_dir, f"domains.none={tmp_path / 'empty.jsonl'}")
    with pytest.raises(ValueError, match="seq_len 64 is longer than the model's context of 32"):
        evaluate(run_dir, near, "seq_len=64")
    with pytest.raises(ValueError, match=r"bootstrap.level is in \(0, 1\)"):
        evaluate(run_dir, near, "bootstrap.level=1")
    with pytest.raises(ValueError, match="dtype is auto, bf16, fp32"):
        evaluate(run_dir, near, "dtype=fp16")
    with pytest.raises(ValueError, match=r"device is auto, cpu or cuda; got 'tpu'"):
        evaluate(run_dir, near, "device=tpu")
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"holds something else \(thesis.tex\)"):
        evaluate(run_dir, near, f"out={tmp_path / 'busy'}")
    with pytest.raises(ValueError, match=r"no domain set 'pile'; (did you mean|there are)"):
        evaluate(run_dir, near, "domain_set=pile")


def test_a_domain_of_another_vocabulary_is_refused(run_dir, tmp_path, make_sentencepiece):
    from texts import make_documents

    from lingua_synth.tokens import build_tokenizer, tokenize

    tokenize(make_documents(5, 5), tmp_path / "sp", build_tokenizer("sp", make_sentencepiece), progress=False)
    with pytest.raises(ValueError, match=r"domain 'a' was tokenized with sp \(.*another vocabulary than the model's"):
        evaluate(run_dir, f"domains.a={tmp_path / 'sp'}")
    with pytest.raises(ValueError, match=r"the vocabulary .* has .* entries, the model of .* only 258"):
        evaluate(run_dir, f"domains.a={tmp_path / 'sp'}", "tokenizer.name=sp", f"tokenizer.path={make_sentencepiece}")


@pytest.fixture(scope="module")
def make_sentencepiece(tmp_path_factory):
    """A SentencePiece model of 300 entries."""
    from texts import make_documents

    from lingua_synth.tokens import train_sentencepiece

    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    train_sentencepiece([one.text for one in make_documents(0, 300)], path, vocab_size=300)
    return str(path)


def test_a_checkpoint_without_a_tokenizer_asks_for_one(run_dir, shards, tmp_path):
    import shutil

    from lingua_synth.model.checkpoint import list_checkpoints

    shutil.copytree(list_checkpoints(run_dir)[-1], tmp_path / "bare")
    params = read_json(tmp_path / "bare" / "params.json")
    for nothing in (None, {}, {"name": None}):
        write_json(tmp_path / "bare" / "params.json", params | {"data": params["data"] | {"tokenizer": nothing}})
        with pytest.raises(ValueError, match=r"does not name the tokenizer of its model .*tokenizer.name="):
            evaluate(tmp_path / "bare", *domains_of(shards))
    out = f"out={tmp_path / 'out'}"
    assert evaluate(tmp_path / "bare", *domains_of(shards), "tokenizer.name=bytes", out) == 0
    assert read_evaluation(tmp_path / "out").domains == read_evaluation(run_dir).domains


# --- side by side ---


@pytest.fixture(scope="module")
def evaluated(run_dir, shards, tmp_path_factory):
    """Folders of evaluations: two models on the same domains, one on one domain, one with another protocol."""
    from lingua_synth.model.checkpoint import load_model

    folder = tmp_path_factory.mktemp("evaluated")
    _, model, params = load_model(run_dir)
    with torch.no_grad():
        model.output.weight *= 4
    (folder / "changed").mkdir()
    torch.save({"model": model.state_dict()}, folder / "changed" / "consolidated.pth")
    write_json(folder / "changed" / "params.json", params)
    assert evaluate(run_dir, *domains_of(shards), f"out={folder / 'a'}") == 0
    assert evaluate(folder / "changed", *domains_of(shards), f"out={folder / 'b'}") == 0
    assert evaluate(run_dir, domains_of(shards)[0], f"out={folder / 'near'}") == 0
    assert evaluate(run_dir, *domains_of(shards), f"out={folder / 's'}", "protocol=sliding", "stride=8") == 0
    assert evaluate(run_dir, *domains_of(shards), f"out={folder / 'few'}", "max_tokens_per_domain=300") == 0
    return folder


def test_evaluations_side_by_side(evaluated, capsys):
    assert main(["compare", f"evaluations=[{evaluated / 'a'},{evaluated / 'b'}]"]) == 0
    printed = capsys.readouterr().out
    a, b = read_evaluation(evaluated / "a"), read_evaluation(evaluated / "b")
    near = next(line for line in printed.splitlines() if line.startswith("near"))
    assert f"{a.domains['near'].loss:9.4f} {b.domains['near'].loss:9.4f}" in near
    macro = next(line for line in printed.splitlines() if line.startswith("macro")).split()
    difference = b.averages["loss_macro"] - a.averages["loss_macro"]
    assert difference > 0 and float(macro[3]) < difference < float(macro[5])


def test_what_does_not_compare_is_refused(evaluated):
    def compare(*names, **words):
        folders = ",".join(str(evaluated / name) for name in names)
        return main(["compare", f"evaluations=[{folders}]", *(f"{k}={v}" for k, v in words.items())])

    with pytest.raises(ValueError, match=r"are on different domains .*common=true"):
        compare("a", "near")
    assert compare("a", "near", common="true") == 0
    with pytest.raises(ValueError, match="do not compare: protocol is disjoint there and sliding-8 here"):
        compare("a", "s")
    with pytest.raises(ValueError, match="scored other documents of 'near'"):
        compare("a", "few")
    with pytest.raises(ValueError, match="takes two evaluations or more, got 1"):
        compare("a")
    with pytest.raises(ValueError, match=r"no file .*evaluation.json"):
        compare("a", "nothing")


def test_other_vocabularies_are_compared_in_bits_per_byte(evaluated, tmp_path):
    import shutil

    from lingua_synth.evaluate import compare_evaluations

    shutil.copytree(evaluated / "b", tmp_path / "b")
    record = read_json(tmp_path / "b" / "evaluation.json")
    record["tokenizer"]["sha256"] = "other"
    for found in record["domains"].values():
        found["tokens"] //= 2
    write_json(tmp_path / "b" / "evaluation.json", record)
    found = compare_evaluations([evaluated / "a", tmp_path / "b"])
    assert found.unit == "bits_per_byte" and found.notes == ("different vocabularies: bits per byte",)
    name, one, other, difference = found.table()[0]
    expected = [dataclasses.replace(e.domains[name]).bits_per_byte for e in found.evaluations]
    assert [one, other] == expected and difference is None
    write_json(tmp_path / "b" / "evaluation.json", record | {"version": 2})
    with pytest.raises(ValueError, match="has version 2, this library reads 1"):
        read_evaluation(tmp_path / "b")


def test_sliding_is_filed_under_its_own_name_and_sees_more(evaluated):
    disjoint, sliding = read_evaluation(evaluated / "a"), read_evaluation(evaluated / "s")
    assert sliding.record["protocol"] == "sliding-8"
    assert sliding.domains["near"].tokens == disjoint.domains["near"].tokens
    assert sliding.domains["near"].nats != disjoint.domains["near"].nats
