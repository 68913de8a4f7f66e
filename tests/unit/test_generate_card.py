"""The dataset card: its numbers against the files, what it says of a run that kept nothing, that it never varies."""

import json
import re

import pytest
import yaml

from lingua_synth.cli import main
from lingua_synth.documents import Document, read_documents
from lingua_synth.files import write_json
from lingua_synth.generate import card, generate, load_recipe
from lingua_synth.generate.card import write_card
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.recipe import recipe_from

DOCUMENTS = [Document(f"d{i}", f"Text number {i} is here. " * 4) for i in range(60)]


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def run(folder, filters=(), **options):
    values = load_recipe("hq").to_dict()
    values["steps"][0]["filters"] = list(filters)
    options = {"shard_size": 7, "progress": False, **options}
    generate(DOCUMENTS, folder, recipe_from(values), options.pop("engine", MockEngine()), **options)
    return (folder / "card.md").read_text()


def cells(text):
    """First cell -> the others, of every line of a table."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_a_run_ends_with_a_card_whose_numbers_are_those_of_its_files(tmp_path):
    text = run(
        tmp_path,
        [{"name": "finish_reason", "parameters": {"reasons": ["stop"]}}, {"name": "repetition", "action": "drop"}],
        engine=MockEngine(num_words=30),
        max_failure_rate=1,
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    records = list(read_documents(str(tmp_path)))
    said = cells(text)
    assert said["kept"] == ["60", "100.0%"]
    assert said["failed"] == ["0", "0.0%"]
    assert said["finish_reason"] == ["60", "100.0%"]
    assert said["records"] == [str(len(records))] == ["60"]
    assert said["tokens of the records, as the generator counts"] == [f"{manifest['output_tokens']:,}"] == ["1,800"]
    assert said["tokens"] == ["30"] * 5 + ["30.0"]
    assert said["rewrite"][0] == "records" and said["rewrite"][-1] == "finish_reason (annotate), repetition (drop)"
    assert "GPU-hours" not in text
    assert "made these texts up" in text
    assert load_recipe("hq").citation.split(",")[0] in text


def test_lengths_and_diversity_are_those_of_the_records(tmp_path):
    text = run(tmp_path)
    records = list(read_documents(str(tmp_path)))
    assert "sample of 60 records" in text
    pairs = [pair for r in records for pair in zip(r.text.lower().split(), r.text.lower().split()[1:], strict=False)]
    words = [word for r in records for word in r.text.lower().split()]
    found = re.search(r"first ([\d,]+) words of the sample, ([\d.]+)% of single words, ([\d.]+)% of word pairs", text)
    assert int(found[1].replace(",", "")) == len(words)
    assert float(found[2]) == round(100 * len(set(words)) / len(words), 1)
    assert float(found[3]) == round(100 * len(set(pairs)) / len(pairs), 1)
    assert "0 of its 60 texts occur before" in text


def test_the_sample_is_spread_over_the_run_and_bounded(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(card, "SAMPLE_SHARDS", 4)
    monkeypatch.setattr(card, "SAMPLE_RECORDS", 3)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    sources = [document.meta["synth"]["source_id"] for document in card._sample(tmp_path, manifest)]
    # Nine shards of seven: shards 0, 2, 4 and 6.
    assert sources == [f"d{first + i}" for first in (0, 14, 28, 42) for i in range(3)]


def test_a_run_that_kept_nothing_has_a_card(tmp_path):
    text = run(tmp_path, [{"name": "min_tokens", "action": "drop", "parameters": {"tokens": 5000}}])
    said = cells(text)
    assert (said["kept"], said["left out by min_tokens"]) == (["0", "0.0%"], ["60", "100.0%"])
    assert "Lengths" not in text and "Diversity" not in text


def test_the_same_run_gives_the_same_card_and_hours_of_gpus_are_told(tmp_path):
    text = run(tmp_path / "a")
    assert run(tmp_path / "b", engine=MockEngine(window=3)) == text
    assert write_card(tmp_path / "a") == text
    assert run(tmp_path / "parquet", document_format="parquet") != text
    (worker,) = (tmp_path / "a" / "workers").glob("*.json")
    write_json(worker, {**json.loads(worker.read_text()), "gpu_busy_h": 2.0, "gpu_idle_h": 0.5})
    said = cells(write_card(tmp_path / "a"))
    assert said["GPU-hours"] == ["2.50"]
    assert said["GPU-hours per billion kept tokens"] == [f"{2.5 / 7200 * 1e9:,.1f}"]


def test_the_head_is_what_the_hub_reads(tmp_path):
    text = run(tmp_path)
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "unknown"
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"] == [{"config_name": "default", "data_files": "documents-*.jsonl"}]
    text = write_card(tmp_path, name='Our: "texts"', license_id="cc-by-4.0")
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["pretty_name"], head["license"]) == ('Our: "texts"', "cc-by-4.0")
    assert "to be filled in" not in text


@pytest.mark.parametrize(
    ("num_records", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (2_500_000, "1M<n<10M"), (10**12, "n>1T")],
)
def test_size_categories(num_records, category):
    assert card._size_category(num_records) == category


def test_the_verb(tmp_path, capsys):
    run(tmp_path / "run")
    assert main(["generate", "card", f"out={tmp_path / 'run'}", "license=mit"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "card.md")
    assert "License: mit." in (tmp_path / "run" / "card.md").read_text()
    for words, message in ((["out=nothing"], "a run that is finished"), ([], "card needs out=")):
        with pytest.raises(ValueError, match=message):
            main(["generate", "card", *words])
