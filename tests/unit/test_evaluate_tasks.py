"""Downstream tasks through lm-evaluation-harness, on a small model, with task files and data of this machine."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lingua_synth.evaluate import read_evaluation
from lingua_synth.evaluate.command import main
from lingua_synth.evaluate.tasks import SUITES, load_suite
from lingua_synth.files import read_json, write_json
from lingua_synth.model import ModelArgs, build_model
from lingua_synth.model.huggingface import export_huggingface

ARGS = ModelArgs(dim=32, n_layers=2, n_heads=2, vocab_size=258, max_seqlen=24, multiple_of=16)
QUESTIONS = [
    {"question": "The sky is", "choices": ["blue", "green leaf", "é"], "answer": 0},
    {"question": "Two and two", "choices": ["five", "four"], "answer": 1},
    {"question": "Cats", "choices": ["bark", "purr"], "answer": 1},
]
# Shorter than the context of 24, just as long, one more, and three windows with a rest.
PAGES = [
    "short",
    "x" * 24,
    "abcdefghijklmnopqrstuvwxy",
    "one page of text that is cut into three windows and a rest of it.",
]

CHOICES = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
TEXTS = """
task: tiny_pages
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/pages.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with wide differences between its answers, as a consolidated checkpoint and exported; tasks; data."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    model = build_model(ARGS, seed=0)
    with torch.no_grad():
        model.output.weight *= 3
    (folder / "model").mkdir()
    torch.save({"model": model.state_dict()}, folder / "model" / "consolidated.pth")
    params = {"model": ARGS.__dict__, "data": {"tokenizer": {"name": "bytes"}}}
    write_json(folder / "model" / "params.json", params)
    export_huggingface(folder / "model", folder / "hf", dtype="fp32")
    (folder / "tasks").mkdir()
    for name, task in (("choices", CHOICES), ("pages", TEXTS)):
        (folder / "tasks" / f"{name}.yaml").write_text(task.replace("FOLDER", str(folder)))
    for name, rows in (("questions", QUESTIONS), ("pages", [{"text": text} for text in PAGES])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def answer_nats(question, choice):
    """The loss of an answer behind its question, by a plain loop."""
    model = build_model(ARGS, seed=0)
    with torch.no_grad():
        model.output.weight *= 3
        ids = [256, *f"{question} {choice}".encode()]
        log_p = model(torch.tensor([ids[:-1]])).double().log_softmax(-1)[0]
    first = 1 + len(question.encode())
    return -sum(float(log_p[i - 1, ids[i]]) for i in range(first, len(ids)))


def test_tasks_run_on_a_checkpoint_without_a_network(folder, offline, tmp_path, capsys):
    words = [f"checkpoint={folder / 'model'}", f"task_files=[{folder / 'tasks'}]", "device=cpu", "dtype=fp32"]
    assert main(["tasks", *words, "tasks=[tiny_choices]", f"out={tmp_path / 'out'}"]) == 0
    assert "tiny_choices" in capsys.readouterr().out
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".lock", "tasks.json", "task_documents.parquet"}, "the export is gone"
    record = read_json(tmp_path / "out" / "tasks.json")
    assert (record["tasks"], record["limit"], record["dtype"]) == (["tiny_choices"], None, "fp32")

    losses = [[answer_nats(q["question"], choice) for choice in q["choices"]] for q in QUESTIONS]
    right = [np.argmin(found) == q["answer"] for found, q in zip(losses, QUESTIONS, strict=True)]
    gold = [found[q["answer"]] for found, q in zip(losses, QUESTIONS, strict=True)]
    num_bytes = [1 + len(q["choices"][q["answer"]].encode()) for q in QUESTIONS]
    bits = [nats / math.log(2) / count for nats, count in zip(gold, num_bytes, strict=True)]
    choices = record["results"]["tiny_choices"]
    assert choices["acc"] == np.mean(right)
    assert math.isclose(choices["correct_bits_per_byte"], np.mean(bits), rel_tol=1e-5)
    assert math.isclose(choices["correct_bits_per_byte_stderr"], np.std(bits, ddof=1) / math.sqrt(3), rel_tol=1e-4)
    table = pq.read_table(tmp_path / "out" / "task_documents.parquet").to_pydict()
    assert table["task"] == ["tiny_choices"] * 3 and table["correct_bytes"] == num_bytes
    assert np.allclose(table["correct_nats"], gold, rtol=1e-5)

    with pytest.raises(ValueError, match="holds results of tasks; choose another folder, or set overwrite=true"):
        main(["tasks", *words, "tasks=[tiny_choices]", f"out={tmp_path / 'out'}"])
    again = [*words, "tasks=[tiny_choices]", f"out={tmp_path / 'out'}", "overwrite=true", "limit=2"]
    again[0] = f"checkpoint={folder / 'hf'}"
    assert main(["tasks", *again]) == 0
    assert read_json(tmp_path / "out" / "tasks.json")["results"]["tiny_choices"]["documents"] == 2
    assert (folder / "hf" / "config.json").exists(), "a folder that was given stays"


def test_the_harness_s_figure_for_whole_texts_is_ours_under_its_protocol(folder, offline, tmp_path):
    words = [f"checkpoint={folder / 'hf'}", f"task_files=[{folder / 'tasks'}]", "device=cpu", "dtype=fp32"]
    assert main(["tasks", *words, "tasks=[tiny_pages]", "add_bos=false", f"out={tmp_path / 'out'}"]) == 0
    record = read_json(tmp_path / "out" / "tasks.json")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "pages.jsonl").write_text((folder / "pages.jsonl").read_text())
    ours = [f"checkpoint={folder / 'hf'}", "device=cpu", "dtype=fp32", f"data={tmp_path / 'pages'}"]
    assert main([*ours, "protocol=sliding", "stride=24", f"out={tmp_path / 'ours'}"]) == 0
    assert main([*ours, f"out={tmp_path / 'disjoint'}"]) == 0
    pages, found = record["results"]["tiny_pages"], read_evaluation(tmp_path / "ours").domains["pages"]
    assert math.isclose(pages["bits_per_byte"], found.bits_per_byte, rel_tol=1e-6)
    assert math.isclose(pages["byte_perplexity"], math.exp(found.nats / found.bytes), rel_tol=1e-6)
    # Disjoint windows differ in the last one of a text that is longer than the context, and there alone.
    theirs, disjoint = (read_evaluation(tmp_path / name).documents("pages") for name in ("ours", "disjoint"))
    is_long = theirs.tokens > 24
    assert np.allclose(theirs.nats[~is_long], disjoint.nats[~is_long], rtol=1e-6) and is_long.sum() == 2
    assert not np.isclose(theirs.nats[is_long], disjoint.nats[is_long], rtol=1e-4).any()


def test_bad_input_is_a_message(folder, offline, tmp_path, monkeypatch):
    words = [f"checkpoint={folder / 'hf'}", f"out={tmp_path / 'out'}", "device=cpu"]
    own = f"task_files=[{folder / 'tasks'}]"

    def tasks(*more):
        return main(["tasks", *more])

    with pytest.raises(ValueError, match="checkpoint is not set"):
        tasks()
    with pytest.raises(ValueError, match=r"there is no task to run; set suite= \(base, quick\)"):
        tasks(*words)
    with pytest.raises(ValueError, match="no suite 'basic'; there are base, quick"):
        tasks(*words, "suite=basic")
    with pytest.raises(ValueError, match=r"task_files: no folder .*nowhere"):
        tasks(*words, "tasks=[a]", f"task_files=[{tmp_path / 'nowhere'}]")
    with pytest.raises(ValueError, match="dtype is bf16 or fp32"):
        tasks(*words, "tasks=[a]", "dtype=fp16")
    with pytest.raises(ValueError, match="limit must be at least 1"):
        tasks(*words, "tasks=[a]", "limit=0")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "gone.yaml").write_text(CHOICES.replace("FOLDER", "gone").replace("tiny", "gone"))
    with pytest.raises(ValueError, match=r"the data of gone_choices cannot be read here .*task_files="):
        tasks(*words, "tasks=[gone_choices]", f"task_files=[{tmp_path / 'gone'}]")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"tasks run in one process; .*accelerate launch"):
        tasks(*words, "tasks=[tiny_choices]", own)
    assert not (tmp_path / "out" / "tasks.json").exists()


def test_suites_are_lists_of_tasks_that_the_harness_has(tmp_path):
    """By the names in its task files: building its index takes half a minute."""
    harness = pytest.importorskip("lm_eval")
    from pathlib import Path

    known = set()
    for path in (Path(harness.__file__).parent / "tasks").rglob("*.yaml"):
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key in ("task", "group"):
                known.add(value.strip().strip("'\""))
    assert SUITES == ("base", "quick")
    for name in SUITES:
        assert set(load_suite(name).tasks) <= known
    assert load_suite("quick").limit == 500
    (tmp_path / "mine.yaml").write_text("tasks: [a]\nnum_fewshots: 3\n")
    with pytest.raises(ValueError, match="unknown key num_fewshots; known are about, tasks, num_fewshot, limit"):
        load_suite(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("tasks: a\n")
    with pytest.raises(ValueError, match="is no suite: it needs a list `tasks`"):
        load_suite(str(tmp_path / "mine.yaml"))
