"""A fine-tuned model behind vLLM's own server: asked in the chat template of its training, it answers and stops."""

import json
import urllib.request

import pytest
from vllm_server import use_cpu_settings, vllm_server

from lingua_synth.config import build_args
from lingua_synth.generate.engines.vllm import find_device
from lingua_synth.model.huggingface import export_huggingface
from lingua_synth.tokens import build_chat, build_tokenizer, tokenize
from lingua_synth.train import train
from lingua_synth.train.args import TrainArgs

use_cpu_settings()

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_device() != "cpu", reason="needs vLLM for CPU: scripts/install_vllm_cpu.sh"),
]

ANSWERS = {"red": "stop", "green": "go", "blue": "what?"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model that has learned three answers, as a Hugging Face folder."""
    folder, tokenizer = tmp_path_factory.mktemp("tuned"), build_tokenizer("bytes")
    rows = [{"prompt": f"{colour}?", "completion": answer} for colour, answer in ANSWERS.items()] * 60
    rows = [row | {"id": str(i)} for i, row in enumerate(rows)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize(str(folder / "chats.jsonl"), folder / "chats", tokenizer, chat=build_chat(tokenizer), progress=False)
    config = {
        "dump_dir": str(folder / "run"),
        "data": {"seq_len": 128, "batch_size": 8},
        "optim": {"lr": 1e-2},
        "model": {"dim": 64, "n_layers": 2, "n_heads": 2, "multiple_of": 16},  # vLLM's attention has no smaller heads
        "distributed": {"model_dtype": "fp32"},
        "steps": 120,
        "synth": {
            "warmup_ratio": 0.1,
            "device": "cpu",
            "document_masking": True,
            "sources": {"chats": {"path": str(folder / "chats"), "max_epochs": 100.0}},
        },
    }
    row = train(build_args(TrainArgs, config), progress=False)
    assert row["scored_tokens"] < row["tokens"] / 4
    return export_huggingface(folder / "run", folder / "hf", dtype="fp32")


def test_it_is_asked_as_it_was_trained_and_stops_where_an_answer_ends(exported, tmp_path):
    tokenizer = build_tokenizer("bytes")
    chat = build_chat(tokenizer)
    chat, tokenizer = build_chat(build_tokenizer("bytes")), build_tokenizer("bytes")
    with vllm_server(exported, "tuned", 128, tmp_path / "log") as address:
        for colour, answer in ANSWERS.items():
            messages = [{"role": "user", "content": f"{colour}?"}]
            asked = {"model": "tuned", "messages": messages, "temperature": 0, "max_tokens": 32}
            request = urllib.request.Request(
                f"{address}/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as response:
                said = json.load(response)
            assert said["choices"][0]["message"]["content"] == answer
            assert said["choices"][0]["finish_reason"] == "stop"
            prompt = chat.template.render_prompt(messages).removeprefix("<bos>")
            assert said["usage"]["prompt_tokens"] == 1 + len(tokenizer.encode(prompt))
            assert said["usage"]["completion_tokens"] == len(tokenizer.encode(answer)) + 1
