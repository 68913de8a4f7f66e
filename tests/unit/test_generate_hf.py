"""The hf engine with a real, tiny Mistral (where transformers is installed), and how it draws (anywhere)."""

import json
import sys

import pytest
from tiny_mistral import CONTEXT, make_mistral

from lingua_synth.documents import Document
from lingua_synth.generate import Failure, Request, Sampling, build_engine, generate, load_recipe, verify
from lingua_synth.generate.engine import Generation
from lingua_synth.generate.engines.hf import Draw

torch = pytest.importorskip("torch")

GREEDY = Sampling(0.0, 1.0, 24)
WARM = Sampling(0.8, 0.9, 24)


def draw(probabilities, sampling, seeds, steps):
    """Tokens [B, steps] that `Draw` takes where every step has the same `probabilities`."""
    drawing = Draw(sampling, seeds, steps)
    scores = torch.log(torch.tensor([probabilities] * len(seeds)))
    taken = []
    for _ in range(steps):
        drawn = drawing(None, scores)
        assert (torch.isfinite(drawn).sum(-1) == 1).all()
        taken.append(drawn.argmax(-1))
    return torch.stack(taken, 1)


def test_tokens_are_drawn_in_proportion_and_from_the_nucleus_alone():
    # Of 0.1, 0.4, 0.2, 0.3 the nucleus of 0.75 holds 0.4, 0.3 and 0.2; of 0.7 exactly 0.4 and 0.3.
    seeds = list(range(200))
    for top_p, kept in ((1.0, [0.1, 0.4, 0.2, 0.3]), (0.75, [0, 0.4, 0.2, 0.3]), (0.65, [0, 0.4, 0, 0.3])):
        taken = draw([0.1, 0.4, 0.2, 0.3], Sampling(1.0, top_p, 100), seeds, 100)
        shares = torch.bincount(taken.flatten(), minlength=4) / taken.numel()
        expected = torch.tensor(kept) / sum(kept)
        assert (shares[expected == 0] == 0).all()
        # 20,000 draws: four standard errors are at most 0.0142.
        assert torch.allclose(shares, expected, atol=0.0142)


def test_temperature_sharpens_before_the_nucleus_is_taken():
    # At temperature 0.5 the weights 0.1, 0.4, 0.2, 0.3 become their squares: 1, 16, 4, 9 of 30.
    taken = draw([0.1, 0.4, 0.2, 0.3], Sampling(0.5, 1.0, 100), list(range(200)), 100)
    shares = torch.bincount(taken.flatten(), minlength=4) / taken.numel()
    assert torch.allclose(shares, torch.tensor([1.0, 16.0, 4.0, 9.0]) / 30, atol=0.0142)


def test_a_row_draws_the_same_whoever_stands_beside_it():
    alone = draw([0.1, 0.4, 0.2, 0.3], Sampling(1.0, 0.95, 50), [7], 50)
    among = draw([0.1, 0.4, 0.2, 0.3], Sampling(1.0, 0.95, 50), [3, 7, 5], 50)
    assert torch.equal(alone[0], among[1]) and not torch.equal(among[0], among[1])


def test_the_likeliest_token_is_in_every_nucleus():
    assert set(draw([0.1, 0.4, 0.2, 0.3], Sampling(1.0, 1e-9, 50), [1, 2], 50).flatten().tolist()) == {1}


def test_without_transformers_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers and PyTorch .*pip install 'lingua-synth\[hf\]'"):
        build_engine("hf", model="m")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs model="),
        ({"model": "m", "dtype": "int4"}, "dtype is auto or one of fp32"),
        ({"model": "m", "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"model": "m", "max_num_seqs": 3}, "engine hf has no option max_num_seqs"),
    ],
)
def test_options_that_make_no_engine_are_refused_in_words(options, words):
    with pytest.raises(ValueError) as refused:
        build_engine("hf", **options)
    assert words in str(refused.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("transformers")
    return make_mistral(tmp_path_factory.mktemp("mistral"))


def chat(content, system="Be brief."):
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def requests(n, sampling):
    return [Request(f"k{i}", chat(f"number {i} " * (1 + i % 7)), sampling, seed=i) for i in range(n)]


def outcomes(engine, asked):
    found = {one.key: one for one in engine.run(iter(asked))}
    assert len(found) == len(asked)
    return found


def test_greedy_text_is_what_the_plain_model_says_one_by_one(model):
    """Against a loop of full forward passes without a cache, padding or a batch."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    engine = build_engine("hf", model=model, batch_size=8)
    asked = requests(12, GREEDY)
    found = outcomes(engine, asked)
    for request in asked:
        system, user = request.prompt
        prompt = f"<s>[INST] {system['content']}\n\n{user['content']} [/INST]"
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        assert ids[0] == 0 and found[request.key].prompt_tokens == len(ids)
        written = []
        with torch.inference_mode():
            while len(written) < GREEDY.max_tokens and 1 not in written:
                written.append(int(plain(torch.tensor([ids + written])).logits[0, -1].argmax()))
        assert found[request.key].text == tokenizer.decode(written, skip_special_tokens=True).rstrip("\ufffd")
        assert found[request.key].output_tokens == len(written)
        assert found[request.key].finish_reason == ("stop" if written[-1] == 1 else "length")
    assert len({one.text for one in found.values()}) > 3


def test_seeds_decide_and_neighbours_do_not(model):
    asked = requests(20, WARM)
    whole = outcomes(build_engine("hf", model=model, batch_size=32), asked)
    again = outcomes(build_engine("hf", model=model, batch_size=32), asked)
    small = outcomes(build_engine("hf", model=model, batch_size=3), asked[::-1])
    assert whole == again == small
    other = outcomes(build_engine("hf", model=model), [Request("k3", asked[3].prompt, WARM, seed=99)])
    assert other["k3"].text != whole["k3"].text


def test_the_models_own_sampling_settings_are_not_followed(model, tmp_path):
    import shutil

    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m" / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "do_sample": True, "top_k": 1, "repetition_penalty": 9.0}))
    asked = requests(6, WARM)
    changed = outcomes(build_engine("hf", model=str(tmp_path / "m")), asked)
    assert changed == outcomes(build_engine("hf", model=model), asked)


def test_every_end_token_ends_a_text(model, tmp_path):
    import shutil

    asked = requests(6, GREEDY)
    engine = build_engine("hf", model=model)
    ((first, *_),) = engine._generate([(asked[0], engine._tokenizer.encode(asked[0].prompt))], 2)
    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [1, first]}))
    after = outcomes(build_engine("hf", model=str(tmp_path / "m")), asked)
    assert (after["k0"].text, after["k0"].output_tokens, after["k0"].finish_reason) == ("", 1, "stop")


def test_a_prompt_that_fills_the_context_is_a_failure_and_a_long_one_ends_with_it(model):
    engine = build_engine("hf", model=model)
    few = Sampling(0.0, 1.0, 40)
    asked = [
        Request("over", "word " * 2000, few, seed=0),
        Request("short", "word", few, seed=0),
        Request("empty", "", few, seed=0),
    ]
    found = outcomes(engine, asked)
    assert isinstance(found["over"], Failure) and f"the context has {CONTEXT:,}" in found["over"].error
    assert isinstance(found["short"], Generation)
    unit = engine.count_tokens("word ")
    nearly = "word " * ((CONTEXT - 20) // unit)
    (one,) = engine.run(iter([Request("nearly", nearly, few, seed=0)]))
    assert isinstance(one, Generation) and one.prompt_tokens + one.output_tokens <= CONTEXT
    assert one.finish_reason == "length" or one.prompt_tokens + one.output_tokens < CONTEXT


def test_a_template_with_a_system_role_keeps_it(tmp_path):
    pytest.importorskip("transformers")
    plain = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    engine = build_engine("hf", model=make_mistral(tmp_path, plain))
    assert engine.description()["system_role"] == "taken"
    assert engine._raw_tokenizer.decode(engine._tokenizer.encode(chat("U", "S"))) == "<s><system>S<user>U<assistant>"


def test_a_base_model_takes_texts_and_no_chat(tmp_path):
    pytest.importorskip("transformers")
    engine = build_engine("hf", model=make_mistral(tmp_path, None))
    assert engine.description()["template_sha256"] is None
    assert len(outcomes(engine, [Request("k", "A text", GREEDY, seed=0)])) == 1
    with pytest.raises(ValueError, match=r"has no chat template, so it takes no chat"):
        outcomes(engine, requests(1, GREEDY))


def test_a_whole_run_is_verified_and_goes_on_as_if_never_interrupted(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    recipe = load_recipe("hq").with_sampling(max_tokens=16)
    documents = [Document(f"d{i}", f"A text about {i} things. " * (1 + i % 9)) for i in range(50)]

    def engine():
        return build_engine("hf", model=model, batch_size=8)

    summary = generate(documents, tmp_path / "whole", recipe, engine(), shard_size=12, progress=False)
    assert summary.inputs == 50 and summary.failed == 0 and verify(tmp_path / "whole") == []
    run = json.loads((tmp_path / "whole" / "run.json").read_text())
    about = run["engine_description"]
    assert (about["device"], about["dtype"], about["system_role"]) == ("cpu", "float32", "folded")
    assert run["engine"]["revision"].startswith("files:") and len(run["engine"]["template_sha256"]) == 64

    stopped = engine()
    answered = stopped._answer
    batches = iter(range(4))
    stopped._answer = lambda batch: answered(batch) if next(batches, None) is not None else 1 / 0
    with pytest.raises(ZeroDivisionError):
        generate(documents, tmp_path / "parts", recipe, stopped, shard_size=12, progress=False)
    generate(documents, tmp_path / "parts", recipe, engine(), shard_size=12, progress=False)
    for path in sorted((tmp_path / "whole").glob("documents-*")):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_another_number_format_is_another_run(model, tmp_path):
    documents = [Document("d", "A text.")]
    recipe = load_recipe("hq").with_sampling(max_tokens=4)
    generate(documents, tmp_path, recipe, build_engine("hf", model=model), progress=False)
    with pytest.raises(ValueError, match=r"engine.dtype: 'float32' there, 'bfloat16' now"):
        generate(documents, tmp_path, recipe, build_engine("hf", model=model, dtype="bf16"), progress=False)


def test_a_model_that_is_not_there_is_said_in_words(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"transformers cannot load .*Give the folder of a model"):
        build_engine("hf", model=str(tmp_path / "empty")).count_tokens("x")
