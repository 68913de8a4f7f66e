"""The loop closes with real parts, all through the command line: what we train writes what we train on.

    quickstart -> export -> vLLM's server -> generate engine=openai -> verify -> tokenize -> train

and once more with vLLM inside the quickstart itself. The environment comes from `scripts/install_vllm_cpu.sh`;
elsewhere these tests are skipped.
"""

import csv
import json
import subprocess
import sys

import pytest
from texts import make_documents
from tiny_mistral import make_mistral
from vllm_server import use_cpu_settings, vllm_server

from lingua_synth.documents import read_documents, write_documents
from lingua_synth.files import read_json
from lingua_synth.generate.engines.vllm import find_device

use_cpu_settings()

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_device() != "cpu", reason="needs vLLM for CPU: scripts/install_vllm_cpu.sh"),
]

CONTEXT = 256
STEP_TOKENS = 2048
NUM_STEPS = 12  # 96 sequences, of which a third is synthetic


RECIPE = """
name: short
version: 1
description: A short answer to a document.
citation: Made for this test.
steps:
  - name: answer
    prompt: chat
    system: Do what is asked.
    user: "Rewrite: {document}"
    max_input_tokens: 200
    sampling: {temperature: 0.7, top_p: 0.95, max_tokens: 48}
"""


def lingua_synth(*words):
    """What the command printed; it must end well."""
    command = [sys.executable, "-m", "lingua_synth", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def count_lines(folder, pattern):
    return sum(len(path.read_text().splitlines()) for path in folder.glob(pattern))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "web.jsonl"
    write_documents(path, make_documents(7, 900, words=(40, 120)))
    return path


def test_a_model_of_ours_behind_a_real_server_writes_what_the_next_one_is_trained_on(documents, tmp_path):
    study = tmp_path / "study"
    settings = ["sizes=[nano-107k]", "budgets=[16384]", "vocab_size=300", f"seq_len={CONTEXT}", "bootstraps=20"]
    lingua_synth("quickstart", f"out={study}", f"documents={documents}", *settings)
    (generator,) = (study / "runs").glob("natural-*")

    exported = tmp_path / "hf"
    lingua_synth("export", f"checkpoint={generator}", f"out={exported}", "dtype=fp32")
    asked, texts = tmp_path / "asked.jsonl", tmp_path / "synthetic"
    write_documents(asked, make_documents(8, 150, words=(20, 40)))
    with vllm_server(exported, "ours", CONTEXT, tmp_path / "server.log") as address:
        words = ["recipe=continue", f"documents={asked}", f"out={texts}", "engine=openai", "model=ours"]
        # Sixteen words are up to 48 tokens: prompt and text fit into the context that the model was trained with.
        words += [f"base_url={address}", "max_tokens=128", "revision=step-8", "shard_size=40"]
        lingua_synth("generate", *words)
        # The likeliest words are the same from the server as from the run itself.
        few = ["recipe=continue", f"documents={asked}", "max_tokens=32", "temperature=0", "max_output_tokens=500"]
        few += ["shard_size=20"]
        lingua_synth("generate", *few, f"out={tmp_path / 'a'}", "engine=openai", "model=ours", f"base_url={address}")
        # Alone, because rows of a batch would read prompts of one length.
        own_engine = ["engine=checkpoint", f"model={generator}", "batch_size=1"]
        lingua_synth("generate", *few, f"out={tmp_path / 'b'}", *own_engine)
    served, own = ([one.text for one in read_documents(str(tmp_path / out))] for out in ("a", "b"))
    assert served == own and len(set(served)) > 10

    assert "ok" in lingua_synth("generate", "verify", f"out={texts}")
    manifest = read_json(texts / "manifest.json")
    kept, filtered, failed = (count_lines(texts, f"{kind}-*.jsonl") for kind in ("documents", "filtered", "failed"))
    assert kept + filtered + failed == 150 and (manifest["records"], manifest["failed"]) == (kept, failed)
    assert failed == 0 and kept > 100
    of_their_own = {line["text"] for line in map(json.loads, asked.read_text().splitlines())}
    for document in read_documents(str(texts)):
        assert document.text not in of_their_own and document.meta["synth"]["generator"] == "openai:ours"

    shards = tmp_path / "shards"
    vocabulary = ["tokenizer.name=sp", f"tokenizer.path={study / 'tokenizer' / 'sp.model'}"]
    lingua_synth("tokenize", f"documents={texts}", f"out={shards}", *vocabulary)
    assert read_json(shards / "manifest.json")["documents"] == kept
    run = tmp_path / "run"
    heldout = next((study / "tokens" / "heldout").iterdir())
    lingua_synth(
        "train",
        f"dump_dir={run}",
        f"data.seq_len={CONTEXT}",
        f"data.batch_size={STEP_TOKENS // CONTEXT}",
        "optim.lr=4e-3",
        "distributed.model_dtype=fp32",
        "synth.preset=nano-27k",
        f"synth.tokens={NUM_STEPS * STEP_TOKENS}",
        f"synth.global_batch_tokens={STEP_TOKENS}",
        "synth.warmup_ratio=0.1",
        "synth.device=cpu",
        f"synth.sources.natural.path={study / 'tokens' / 'natural'}",
        "synth.sources.natural.ratio=2/3",
        f"synth.sources.synthetic.path={shards}",
        "synth.sources.synthetic.ratio=1/3",
        f"synth.evaluation.domains.held_out={heldout}",
    )
    row = read_json(run / "result.json")
    assert (row["ratio_natural"], row["ratio_synthetic"]) == (2 / 3, 1 / 3)
    assert (row["tokens_natural"], row["tokens_synthetic"]) == (64 * CONTEXT, 32 * CONTEXT)
    assert row["unique_tokens_synthetic"] == 32 * CONTEXT, "nothing is read twice"
    assert 0 < row["loss_macro"] < 6


def test_quickstart_with_vllm_in_its_own_process(documents, tmp_path):
    recipe, study = tmp_path / "short.yaml", tmp_path / "study"
    recipe.write_text(RECIPE)
    model = make_mistral(tmp_path / "mistral")
    words = ["engine=vllm", f"model={model}", "engine_args.max_model_len=512", f"recipe={recipe}"]
    words += ["sizes=[nano-27k]", "budgets=[8192]", "vocab_size=300", "bootstraps=20"]
    lingua_synth("quickstart", f"out={study}", f"documents={documents}", *words)

    with open(study / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["mixture"] for row in rows) == ["natural", "synthetic-100", "synthetic-33", "synthetic-67"]
    # A uniform guess is 5.7; four steps on nonsense alone may end a little above it.
    assert all(0 < float(row["loss_macro"]) < 8 for row in rows)
    assert "ok" in lingua_synth("generate", "verify", f"out={study / 'synthetic'}")
    about = read_json(study / "synthetic" / "run.json")["engine_description"]
    assert (about["device"], about["context_tokens"], about["system_role"]) == ("cpu", 512, "folded")
    page = (study / "report.html").read_text()
    assert f"The generator is {model}, through engine vllm" in page and "weak generator" not in page
