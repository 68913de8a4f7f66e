"""The checkpoint engine against a plain loop without a cache, and its sampler against the exact nucleus."""

import dataclasses
import threading
import time

import pytest
import torch

from lingua_synth.documents import Document
from lingua_synth.generate import Failure, Generation, Request, Sampling, build_engine, generate, load_recipe, verify
from lingua_synth.generate.engines import checkpoint as engine_file
from lingua_synth.generate.engines.checkpoint import CheckpointEngine, sample_token
from lingua_synth.model import ModelArgs, build_model
from lingua_synth.model.checkpoint import save_checkpoint

CONTEXT = 32
ARGS = ModelArgs(dim=32, n_layers=2, n_heads=2, vocab_size=264, multiple_of=16, max_seqlen=CONTEXT)
BOS, EOS = 256, 257


def save(folder, args=ARGS, seed=0, eos_pull=0.0, tokenizer=("bytes", None)):
    """A random model; `eos_pull` makes it end its texts, greedily too and not all of them at the same length."""
    model = build_model(args, seed=seed)
    with torch.no_grad():
        model.output.weight[EOS] = torch.randn(args.dim, generator=torch.Generator().manual_seed(1)) * eos_pull
    params = {
        "model": dataclasses.asdict(args),
        "data": {"tokenizer": dict(zip(("name", "path"), tokenizer, strict=True))},
    }
    save_checkpoint(folder, 7, model, torch.optim.AdamW(model.parameters()), params=params, train_state={})
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run") / "small", eos_pull=0.45)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run") / "other", seed=1)


def requests(n, sampling, length=None, group=None, first_seed=0):
    for i in range(n):
        text = f"{i:04d} some words to go on from"[: length or 8 + i % 5]
        yield Request(f"k{i}", text, sampling, seed=first_seed + i, group=0 if group is None else group(i))


def outcomes_of(folder, batch, **options):
    outcomes = list(CheckpointEngine(str(folder), **options).run(iter(batch)))
    assert sorted(one.key for one in outcomes) == sorted(one.key for one in batch)
    return {one.key: one for one in outcomes}


def greedy_reference(folder, prompt, max_tokens):
    """One text, token by token, the model called anew on everything it may see."""
    from lingua_synth.model import load_checkpoint

    model, _, _ = load_checkpoint(folder)
    window, written = list(prompt), []
    while len(written) < max_tokens:
        if len(window) == CONTEXT + 1:  # full, and one more to read
            window = window[-(CONTEXT // 4) :]
        with torch.no_grad():
            logits = model(torch.tensor([window]))[0, -1, :258].clone()
        logits[BOS] = float("-inf")
        token = int(logits.argmax())
        written.append(token)
        window.append(token)
        if token == EOS:
            break
    return written


@pytest.mark.parametrize("max_tokens", [1, 5, 23, 24, 25, 90])
def test_greedy_text_is_that_of_a_plain_loop_also_past_the_context(run_folder, max_tokens):
    batch = list(requests(9, Sampling(0.0, 1.0, max_tokens), length=7))
    outcomes = outcomes_of(run_folder, batch)
    lengths = set()
    for request in batch:
        ids = greedy_reference(run_folder, [BOS, *request.prompt.encode()], max_tokens)
        text = bytes(i for i in ids if i < 256).decode("utf-8", errors="backslashreplace")
        reason = "stop" if ids[-1] == EOS else "length"
        assert outcomes[request.key] == Generation(request.key, text, 8, len(ids), reason)
        lengths.add((len(ids), reason))
    if max_tokens == 90:
        # Rows were taken out of the batch at several lengths, and some went past the context.
        assert len(lengths) >= 3
        assert any(reason == "stop" for _, reason in lengths) and max(length for length, _ in lengths) > CONTEXT


def test_prompts_of_a_batch_are_cut_to_the_shortest_and_to_half_of_the_context(other_folder):
    sampling = Sampling(0.0, 1.0, 4)
    short = outcomes_of(other_folder, list(requests(10, sampling)), batch_size=4)
    # With BOS 9, 9, 10, 10 | 11, 11, 12, 12 | 13, 13 tokens.
    assert sorted(one.prompt_tokens for one in short.values()) == [9] * 4 + [11] * 4 + [13] * 2
    (long,) = outcomes_of(other_folder, [Request("k", "x" * 500, sampling, seed=1)]).values()
    assert long.prompt_tokens == CONTEXT // 2


def test_the_same_requests_give_the_same_text_on_any_number_of_threads(run_folder, monkeypatch):
    batch = list(requests(40, Sampling(1.0, 0.95, 50)))
    before = torch.get_num_threads()
    try:
        results, threads_at_work = [], set()
        sample = engine_file.sample_token
        monkeypatch.setattr(
            engine_file, "sample_token", lambda *args: threads_at_work.add(torch.get_num_threads()) or sample(*args)
        )
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(outcomes_of(run_folder, batch, batch_size=8))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]
    assert threads_at_work == {1}
    other_seeds = outcomes_of(run_folder, list(requests(40, Sampling(1.0, 0.95, 50), first_seed=1)), batch_size=8)
    assert sum(other_seeds[key].text != results[0][key].text for key in results[0]) > 30


def test_the_text_of_a_group_does_not_depend_on_other_groups(run_folder):
    batch = list(requests(30, Sampling(1.0, 0.95, 20), group=lambda i: i // 10))
    together = outcomes_of(run_folder, batch)
    alone = outcomes_of(run_folder, batch[10:20])
    assert all(alone[key] == together[key] for key in alone)


def test_samplings_are_not_mixed_in_a_batch(run_folder):
    greedy = list(requests(4, Sampling(0.0, 1.0, 9), length=8))
    mixed = [*greedy, dataclasses.replace(greedy[0], key="warm", sampling=Sampling(1.0, 1.0, 3))]
    outcomes = outcomes_of(run_folder, mixed)
    assert outcomes["warm"].output_tokens <= 3
    assert {key: outcomes[key] for key in ("k0", "k1", "k2", "k3")} == outcomes_of(run_folder, greedy)


def test_counts_and_reasons_of_sampled_texts(run_folder):
    outcomes = outcomes_of(run_folder, list(requests(64, Sampling(1.0, 1.0, 60))), batch_size=16)
    reasons = {one.finish_reason for one in outcomes.values()}
    assert reasons == {"stop", "length"}
    for one in outcomes.values():
        # A byte is a token, and EOS is one that leaves no text; bytes that are no UTF-8 are written as \\xNN.
        assert 1 <= one.output_tokens <= 60
        assert one.output_tokens == 60 or one.finish_reason == "stop"


def test_bos_and_the_padding_of_the_vocabulary_are_never_written(tmp_path):
    model = save(tmp_path / "padded", seed=3)
    engine = CheckpointEngine(str(model))
    with torch.no_grad():
        for row in (BOS, 260, 263):
            engine._model.output.weight[row] = 1e3
    seen = []
    original = engine_file.sample_token
    try:
        engine_file.sample_token = lambda *args: seen.append(original(*args)) or seen[-1]
        list(engine.run(requests(8, Sampling(1.0, 1.0, 40))))
    finally:
        engine_file.sample_token = original
    ids = torch.cat(seen)
    assert len(ids) > 200 and int(ids.max()) < 258 and BOS not in ids.tolist()


def test_closing_stops_the_batches_at_work(other_folder):
    batch = [
        *requests(1, Sampling(1.0, 1.0, 1)),
        *(dataclasses.replace(one, key=f"long{one.key}") for one in requests(4, Sampling(1.0, 1.0, 200_000))),
    ]
    before = threading.active_count()
    engine = CheckpointEngine(str(other_folder))
    engine._tokenizer.eos_id = -1  # without an end, the texts go on to 200,000 tokens
    outcomes = engine.run(iter(batch))
    assert next(outcomes).key == "k0"
    time.sleep(0.2)  # let the long batch begin
    start = time.monotonic()
    outcomes.close()
    assert time.monotonic() - start < 20  # and that takes minutes
    assert threading.active_count() == before


# --- the sampler ---


def nucleus(probabilities, top_p):
    """By sorting: the likeliest tokens until they hold top_p."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    kept, mass = [], 0.0
    for i in order:
        if mass >= top_p:
            break
        kept.append(i)
        mass += probabilities[i]
    return {i: probabilities[i] / sum(probabilities[j] for j in kept) for i in kept}


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.7, 0.3, 0.01])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_have_the_distribution_of_the_nucleus(top_p, temperature):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2
    exact = nucleus(torch.softmax(logits.double() / temperature, -1).tolist(), top_p)
    n = 40_000
    generator = torch.Generator().manual_seed(0)
    drawn = sample_token(logits.expand(n, -1).clone(), Sampling(temperature, top_p, 1), generator)
    counts = torch.bincount(drawn, minlength=12).tolist()
    assert {i for i, count in enumerate(counts) if count} <= set(exact), "nothing outside of the nucleus is ever drawn"
    if len(exact) > 1:
        # Pearson's statistic has mean k - 1 and standard deviation sqrt(2 (k - 1)); five of these are one in a million.
        statistic = sum((counts[i] - n * p) ** 2 / (n * p) for i, p in exact.items())
        assert statistic < len(exact) - 1 + 5 * (2 * (len(exact) - 1)) ** 0.5


def test_every_row_is_drawn_from_its_own_nucleus():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3000, 50, generator=generator) * 3
    probabilities = torch.softmax(logits, -1)
    drawn = sample_token(logits, Sampling(1.0, 0.8, 1), generator)
    likelihood = probabilities.gather(1, drawn[:, None])
    likelier = (probabilities * (probabilities > likelihood)).sum(-1)
    assert float(likelier.max()) < 0.8
    assert float(likelier.float().mean()) > 0.1


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert sample_token(logits, Sampling(0.0, 0.5, 1), torch.Generator()).tolist() == [1, 0]


def test_a_token_without_probability_is_never_drawn():
    logits = torch.full((5000, 6), float("-inf"))
    logits[:, [1, 4]] = 0.0
    drawn = sample_token(logits, Sampling(1.0, 1.0, 1), torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 4}


# --- in a run ---


def test_continue_with_a_checkpoint_makes_a_folder_that_goes_on_where_it_stopped(run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    documents = [Document(f"d{i}", f"{i} begins here. " * 20) for i in range(60)]
    recipe = load_recipe("continue").with_sampling(max_tokens=24)
    engine = build_engine("checkpoint", model=str(run_folder), batch_size=8)
    options = {"shard_size": 20, "progress": False}
    summary = generate(documents, tmp_path / "whole", recipe, engine, **options)
    assert summary.records + sum(summary.filtered.values()) == 60 and summary.records > 20
    generate(documents, tmp_path / "stopped", recipe, engine, max_output_tokens=10, **options)
    generate(documents, tmp_path / "stopped", recipe, engine, **options)
    for name in (f"documents-0000{i}.jsonl" for i in range(3)):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert verify(tmp_path / "stopped") == []
    texts = [line for path in (tmp_path / "whole").glob("documents-*") for line in path.read_text().splitlines()]
    assert not any("begins here" in text for text in texts), "the prompt is no part of the output"


def test_a_chat_recipe_is_refused_with_the_way_out(run_folder, tmp_path):
    engine = build_engine("checkpoint", model=str(run_folder))
    with pytest.raises(
        ValueError, match=r"takes text prompts only; for a base model, use a recipe .* such as continue"
    ):
        generate([Document("d", "x")], tmp_path / "out", "hq", engine, progress=False)
    assert not (tmp_path / "out").exists()


def test_the_revision_is_that_of_the_weights_wherever_they_lie(run_folder, other_folder, tmp_path):
    engine = CheckpointEngine(str(run_folder))
    one = CheckpointEngine(str(run_folder / "checkpoints" / "0000000007"))
    assert engine.revision == one.revision == CheckpointEngine(str(save(tmp_path / "b", eos_pull=0.45))).revision
    assert engine.revision != CheckpointEngine(str(other_folder)).revision
    assert (engine.name, one.name) == ("checkpoint:small", "checkpoint:small@0000000007")
    assert engine.count_tokens("four") == 4


def test_an_empty_prompt_begins_with_bos(run_folder):
    (outcome,) = outcomes_of(run_folder, [Request("k", "", Sampling(0.0, 1.0, 3), seed=1)]).values()
    assert isinstance(outcome, Generation) and outcome.prompt_tokens == 1


def test_an_empty_prompt_without_bos_is_a_failure(run_folder):
    engine = CheckpointEngine(str(run_folder))
    engine._tokenizer.bos_id = -1
    try:
        batch = [Request("k", "", Sampling(0.0, 1.0, 3), seed=1), Request("l", "text", Sampling(0.0, 1.0, 3), seed=1)]
        outcomes = {one.key: one for one in engine.run(iter(batch))}
    finally:
        engine._tokenizer.bos_id = BOS
    assert outcomes["k"] == Failure("k", "the prompt is empty and the vocabulary has no BOS to begin with")
    assert outcomes["l"].prompt_tokens == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs model="),
        ({"model": "gone"}, "no checkpoint in gone"),
        ({"model": "RUN", "device": "tpu9"}, "device is cpu or cuda; got 'tpu9'"),
        ({"model": "RUN", "dtype": "fp8"}, "dtype is fp32 or bf16; got 'fp8'"),
        ({"model": "RUN", "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"model": "RUN", "base_url": "http://h/v1"}, "engine checkpoint has no option base_url"),
    ],
)
def test_options_that_make_no_engine_are_refused_in_words(options, words, run_folder):
    options = {key: str(run_folder) if value == "RUN" else value for key, value in options.items()}
    with pytest.raises(ValueError) as refused:
        build_engine("checkpoint", **options)
    assert words in str(refused.value)


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    args = dataclasses.replace(ARGS, vocab_size=258)
    folder = save(tmp_path / "run", args)
    from lingua_synth.tokens import tokenizer

    words = tokenizer.ByteTokenizer.n_words
    try:
        tokenizer.ByteTokenizer.n_words = 300
        with pytest.raises(ValueError, match=r"has 258 words and its tokenizer bytes .*has 300"):
            CheckpointEngine(str(folder))
    finally:
        tokenizer.ByteTokenizer.n_words = words


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_greedy_text_on_a_gpu_is_that_of_the_cpu(run_folder):
    batch = list(requests(16, Sampling(0.0, 1.0, 60), length=7))
    cpu = outcomes_of(run_folder, batch)
    gpu = outcomes_of(run_folder, batch, device="cuda", dtype="fp32")
    assert sum(cpu[key] == gpu[key] for key in cpu) >= 15  # sums of another order may tip one near tie
