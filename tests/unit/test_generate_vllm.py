"""The vllm engine against a twin of vLLM's step loop: what it is fed, in which order, and what becomes of the rest.

The twin has the names and the behaviour of vLLM 0.32 that the engine uses, among them that an over-long prompt breaks
the whole call and that an id may be under way once only.
"""

import hashlib
import json
import random
import sys
import types

import pytest

from lingua_synth.documents import Document
from lingua_synth.generate import ENGINES, Failure, Generation, Request, Sampling, build_engine, generate, verify
from lingua_synth.generate.engines.vllm import VLLMEngine

CONTEXT = 64


class Tokenizer:
    """A character is a token; BOS is 1."""

    def __init__(self, system_role="taken"):
        self.chat_template = None if system_role is None else "a template"
        self.system_role = system_role

    def encode(self, text, add_special_tokens=True):
        return [1] * add_special_tokens + [ord(character) for character in text]

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        roles = [message["role"] for message in messages]
        if "system" in roles and self.system_role == "refused":
            raise RuntimeError("Conversation roles must alternate")
        kept = [m for m in messages if m["role"] != "system" or self.system_role == "taken"]
        return "\x01" + "".join(f"<{m['role']}>{m['content']}" for m in kept) + "<assistant>"


class LLMEngineTwin:
    def __init__(self, max_num_seqs):
        self.max_num_seqs = max_num_seqs
        self.vllm_config = types.SimpleNamespace(
            model_config=types.SimpleNamespace(
                max_model_len=CONTEXT,
                dtype="torch.bfloat16",
                hf_config=types.SimpleNamespace(_commit_hash="c0ffee"),
            ),
            parallel_config=types.SimpleNamespace(world_size_across_dp=2),
        )
        self.inside = {}
        self.most_inside = 0
        self.prompts = {}
        self.params = {}
        self.sizes_at_step = []
        self._random = random.Random(0)

    def add_request(self, request_id, prompt, params):
        if request_id == "refused":
            raise ValueError("no such thing")
        ids = prompt["prompt_token_ids"]
        assert request_id not in self.inside and 0 < len(ids) < CONTEXT, "vLLM would end the whole call"
        assert len(ids) + params.max_tokens <= CONTEXT
        self.inside[request_id] = self._random.randrange(1, 6)
        self.prompts[request_id], self.params[request_id] = ids, params
        self.most_inside = max(self.most_inside, len(self.inside))

    def step(self):
        self.sizes_at_step.append(len(self.inside))
        outputs = []
        for request_id in list(self.inside)[: self.max_num_seqs]:
            self.inside[request_id] -= 1
            if self.inside[request_id] == 0:
                del self.inside[request_id]
                outputs.append(output_of(request_id, self.prompts[request_id]))
        return outputs

    def abort_request(self, request_ids):
        for request_id in request_ids:
            del self.inside[request_id]


def output_of(request_id, ids, finish_reason="stop"):
    completion = types.SimpleNamespace(text=f"text {request_id}", token_ids=[2] * 60, finish_reason=finish_reason)
    about = {"request_id": request_id, "finished": True, "prompt_token_ids": ids, "num_cached_tokens": 16}
    return types.SimpleNamespace(**about, outputs=[completion])


class LLMTwin:
    made = ()

    def __init__(self, **args):
        LLMTwin.made = (*LLMTwin.made, args)
        self.args = args
        self.llm_engine = LLMEngineTwin(args["max_num_seqs"])
        self.tokenizer = Tokenizer()

    def get_tokenizer(self):
        return self.tokenizer


@pytest.fixture
def vllm(monkeypatch):
    """A module `vllm` on a machine with a GPU."""
    module = types.ModuleType("vllm")
    module.__version__ = "0.32.0"
    module.LLM, module.SamplingParams = LLMTwin, lambda **values: types.SimpleNamespace(**values)
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(device_type="cuda")
    sampling = types.ModuleType("vllm.sampling_params")
    sampling.RequestOutputKind = types.SimpleNamespace(FINAL_ONLY="final only")
    for name, one in {"vllm": module, "vllm.platforms": platforms, "vllm.sampling_params": sampling}.items():
        monkeypatch.setitem(sys.modules, name, one)
    memory = types.SimpleNamespace(available=12 << 30, total=16 << 30)
    psutil = types.SimpleNamespace(virtual_memory=lambda: memory)
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    monkeypatch.setattr(LLMTwin, "made", ())
    return module


def requests(n, prompt=None):
    return [Request(f"k{i}", prompt or f"number {i}", Sampling(0.7, 0.9, 40), seed=i) for i in range(n)]


def test_twice_as_many_requests_as_run_are_kept_inside(vllm):
    engine = VLLMEngine("m", max_num_seqs=8)
    outcomes = {one.key: one for one in engine.run(iter(requests(200)))}
    twin = engine._llm.llm_engine
    assert len(outcomes) == 200 and twin.most_inside == 16
    # Never a pause until the input ends: at every step there is more waiting than runs.
    assert all(size == 16 for size in twin.sizes_at_step[: len(twin.sizes_at_step) // 2])
    assert outcomes["k3"] == Generation("k3", "text k3", 9, 60, "stop", cached_tokens=16)


def test_the_sampling_and_the_seed_of_every_request_are_passed_on(vllm):
    engine = VLLMEngine("m")
    list(engine.run(iter(requests(3))))
    params = engine._llm.llm_engine.params["k2"]
    assert vars(params) == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 40,
        "seed": 2,
        "output_kind": "final only",
    }
    assert engine._llm.llm_engine.prompts["k2"] == [1, *map(ord, "number 2")]


def test_the_output_is_cut_to_the_context_and_an_over_long_prompt_never_reaches_vllm(vllm):
    engine = VLLMEngine("m")
    batch = [
        Request("fits", "x" * 50, Sampling(1, 1, 40), seed=0),
        Request("long", "x" * 64, Sampling(1, 1, 40), seed=0),
        Request("refused", "x", Sampling(1, 1, 40), seed=0),
    ]
    outcomes = {one.key: one for one in engine.run(iter(batch))}
    assert engine._llm.llm_engine.params["fits"].max_tokens == 64 - 51
    assert outcomes["long"] == Failure("long", "a prompt of 65 tokens; the context has 64")
    assert outcomes["refused"] == Failure("refused", "vLLM refuses the request: no such thing")
    assert isinstance(outcomes["fits"], Generation)


CHAT = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]


@pytest.mark.parametrize(
    ("system_role", "rendered"),
    [
        ("taken", "\x01<system>S<user>U<assistant>"),
        ("refused", "\x01<user>S\n\nU<assistant>"),
        ("left out", "\x01<user>S\n\nU<assistant>"),
    ],
)
def test_a_template_without_a_system_role_gets_it_in_the_user_turn(vllm, system_role, rendered):
    engine = VLLMEngine("m")
    engine._llm.tokenizer = Tokenizer(system_role)
    list(engine.run(iter(requests(1, CHAT))))
    assert "".join(map(chr, engine._llm.llm_engine.prompts["k0"])) == rendered


def test_a_base_model_takes_no_chat(vllm):
    engine = VLLMEngine("m")
    engine._llm.tokenizer = Tokenizer(None)
    with pytest.raises(ValueError, match=r"m has no chat template, so it takes no chat: .* such as continue"):
        list(engine.run(iter(requests(1, CHAT))))
    assert len(list(engine.run(iter(requests(2))))) == 2


def test_a_request_that_vllm_aborts_is_a_failure(vllm, monkeypatch):
    engine = VLLMEngine("m")
    twin = engine._llm.llm_engine
    monkeypatch.setattr(twin, "step", lambda: [output_of(key, [1], "abort") for key in list(twin.inside)])
    assert [*engine.run(iter(requests(1)))] == [Failure("k0", "vLLM ended the request with 'abort'")]


def test_closing_aborts_what_is_inside(vllm):
    engine = VLLMEngine("m", max_num_seqs=4)
    outcomes = engine.run(iter(requests(50)))
    next(outcomes)
    assert engine._llm.llm_engine.inside
    outcomes.close()
    assert not engine._llm.llm_engine.inside


def test_the_model_is_loaded_once_and_not_before_it_is_needed(vllm):
    engine = VLLMEngine("org/m", revision="main", max_num_seqs=3, engine_args={"tensor_parallel_size": 2})
    assert (engine.name, LLMTwin.made) == ("vllm:org/m", ())
    assert engine.count_tokens("four") == 4
    assert engine.revision == "c0ffee"
    assert LLMTwin.made == (
        {
            "model": "org/m",
            "revision": "main",
            "tokenizer_revision": "main",
            "dtype": "auto",
            "max_num_seqs": 3,
            "tensor_parallel_size": 2,
        },
    )


def test_a_folder_without_a_commit_is_known_by_its_files(vllm, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a" * 3_000_000)
    (tmp_path / "config.json").write_text("{}")

    def revision():
        engine = VLLMEngine(str(tmp_path))
        engine._llm.llm_engine.vllm_config.model_config.hf_config._commit_hash = None
        return engine.revision

    before = revision()
    assert before.startswith("files:") and revision() == before
    (tmp_path / "model.safetensors").write_bytes(b"a" * 2_999_999 + b"b")
    assert revision() != before
    (tmp_path / "model.safetensors").write_bytes(b"a" * 3_000_000)
    assert revision() == before
    (tmp_path / "config.json").write_text("{ }")
    assert revision() != before


def test_what_the_texts_are_made_with_is_in_the_run_and_decides_whose_it_is(vllm, tmp_path):
    documents = [Document(f"d{i}", "a word") for i in range(3)]
    generate(documents, tmp_path, "continue", VLLMEngine("m"), progress=False)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["engine_description"] == {
        "vllm": "0.32.0",
        "device": "cuda",
        "num_gpus": 2,
        "dtype": "bfloat16",
        "context_tokens": CONTEXT,
        "template_sha256": hashlib.sha256(b'"a template"').hexdigest(),
        "system_role": "taken",
    }
    template = run["engine_description"]["template_sha256"]
    about = {"name": "vllm:m", "revision": "c0ffee", "dtype": "bfloat16"}
    assert run["engine"] == {**about, "template_sha256": template, "system_role": "taken"}
    other = VLLMEngine("m")
    other._llm.tokenizer.chat_template = "another"
    with pytest.raises(ValueError, match=r"holds another run \(engine.template_sha256: .* there, .* now\)"):
        generate(documents, tmp_path, "continue", other, progress=False)
    other = VLLMEngine("m")
    other._llm.llm_engine.vllm_config.model_config.dtype = "torch.float32"
    with pytest.raises(ValueError, match=r"engine.dtype: 'bfloat16' there, 'float32' now"):
        generate(documents, tmp_path, "continue", other, progress=False)


def test_auto_is_vllm_where_it_has_a_device_and_hf_elsewhere(vllm, monkeypatch):
    made = []
    monkeypatch.setitem(ENGINES, "hf", lambda model, batch_size=16: made.append((model, batch_size)))
    with pytest.warns(UserWarning, match="engine auto is vllm here, which has no option batch_size: left out"):
        engine = build_engine("auto", model="m", max_num_seqs=7, batch_size=3)
    assert engine.name == "vllm:m" and engine._max_num_seqs == 7 and not made
    sys.modules["vllm.platforms"].current_platform.device_type = ""
    with pytest.warns(UserWarning, match="engine auto is hf here, which has no option max_num_seqs: left out"):
        build_engine("auto", model="m", max_num_seqs=7, batch_size=3)
    assert made == [("m", 3)]
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    build_engine("auto", model="n")
    assert made == [("m", 3), ("n", 16)]
    with pytest.raises(ValueError, match="engine hf has no option base_url"):
        build_engine("auto", model="m", base_url="http://h")


def test_on_a_cpu_chunked_prefill_is_off_because_seeds_would_kill_the_engine(vllm):
    sys.modules["vllm.platforms"].current_platform.device_type = "cpu"
    VLLMEngine("m").count_tokens("x")
    assert LLMTwin.made[0]["enable_chunked_prefill"] is False
    assert LLMTwin.made[0]["gpu_memory_utilization"] == 0.375  # half of the 12 GiB of 16 that are free
    VLLMEngine("m", engine_args={"gpu_memory_utilization": 0.1}).count_tokens("x")
    assert LLMTwin.made[1]["gpu_memory_utilization"] == 0.1


def test_on_a_gpu_memory_is_left_to_vllm(vllm):
    VLLMEngine("m").count_tokens("x")
    assert not {"gpu_memory_utilization", "enable_chunked_prefill", "enforce_eager"} & set(LLMTwin.made[0])


@pytest.mark.parametrize("error", [RuntimeError, ValueError, OSError])
def test_a_vllm_that_does_not_start_is_the_user_s_to_mend_and_said_in_words(error, vllm, monkeypatch):
    def fail(**args):
        raise error("no room for the cache")

    monkeypatch.setattr(vllm, "LLM", fail)
    with pytest.raises(ValueError, match=r"does not start with m: no room .*lower engine_args.gpu_memory_utilization"):
        VLLMEngine("m").count_tokens("x")


def test_a_folder_without_a_commit_has_the_revision_that_was_given_or_none(vllm):
    for asked, expected in (("v2", "v2"), (None, "unknown")):
        engine = VLLMEngine("m", revision=asked)
        engine._llm.llm_engine.vllm_config.model_config.hf_config._commit_hash = None
        assert engine.revision == expected


def test_a_whole_run_in_which_one_prompt_is_too_long(vllm, tmp_path):
    engine = build_engine("vllm", model="m", max_num_seqs=4)
    documents = [Document(f"d{i}", "a word") for i in range(40)]
    documents[9] = Document("d9", "a very long word " * 9)
    summary = generate(documents, tmp_path, "continue", engine, shard_size=7, progress=False)
    assert (summary.inputs, summary.records, summary.failed) == (40, 39, 1)
    assert verify(tmp_path) == []


def test_without_vllm_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    engine = build_engine("vllm", model="m")
    with pytest.raises(ValueError, match=r"needs vLLM .*pip install 'lingua-synth\[vllm\]'"):
        engine.count_tokens("x")


def test_without_a_device_importing_is_not_enough(vllm):
    sys.modules["vllm.platforms"].current_platform.device_type = ""
    with pytest.raises(ValueError, match="finds no device"):
        VLLMEngine("m").count_tokens("x")
    assert LLMTwin.made == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs model="),
        ({"model": "m", "max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"model": "m", "base_url": "http://h"}, "engine vllm has no option base_url"),
    ],
)
def test_options_that_make_no_engine_are_refused_in_words(options, words):
    with pytest.raises(ValueError) as refused:
        build_engine("vllm", **options)
    assert words in str(refused.value)
