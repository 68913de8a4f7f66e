"""Recipes of several steps, several processes in one folder, kills in the middle of a book."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lingua_synth.documents import Document, read_documents, write_documents
from lingua_synth.generate import Failure, Generation, generate, verify
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.journal import Journal
from lingua_synth.generate.plan import find_source, plan_inputs
from lingua_synth.generate.recipe import recipe_from

DOCUMENTS = [Document(f"doc-{i}", f"Text number {i}. " * 4) for i in range(30)]

BOOK = {
    "name": "book",
    "version": 1,
    "description": "An outline, then a chapter for each line of it.",
    "assign": {"audience": ["children", "students", "experts"]},
    "steps": [
        {
            "name": "outline",
            "user": "Outline {document} for {audience}.",
            "parse": "items",
            "gate": {"min_items": 3, "max_items": 4, "retries": 2},
        },
        {
            "name": "chapter",
            "for_each": "outline",
            "user": "Chapter {item_number}, {item}, of {outline} for {audience}.",
            "filters": [{"name": "refusal", "action": "drop"}],
        },
    ],
}
BOTH_WAYS = {
    "name": "both_ways",
    "version": 1,
    "description": "Two answers and a comparison of them.",
    "steps": [
        {"name": "teacher", "user": "Answer {document}"},
        {"name": "reference", "after": [], "user": "Answer shortly {document}"},
        {"name": "judge", "after": ["teacher", "reference"], "user": "Compare {teacher} with {reference}"},
    ],
}


class Author(MockEngine):
    """Writes outlines of three, four or six lines; of some documents never, of some only at the second attempt."""

    def _outcome(self, request, num_outcomes):
        outcome = super()._outcome(request, num_outcomes)
        if not isinstance(outcome, Generation):
            return outcome
        (message,) = request.prompt
        asked = message["content"]
        if asked.startswith("Outline"):
            number = int(re.search(r"number (\d+)", asked)[1])
            lines = 3 + number % 4 if number % 4 < 2 else 6
            if number % 10 == 7 or (number % 10 == 3 and "-" not in request.key):
                lines = 1
            text = "\n".join(f"{k}. Part {k} of {number} {request.seed}" for k in range(1, lines + 1))
            return Generation(outcome.key, text, 5, lines * 4, "stop")
        if "Part 2 of 5 " in asked.split(", of ")[0]:
            return Generation(outcome.key, "I cannot write this.", 5, 5, "stop")
        if "Part 1 of 9 " in asked.split(", of ")[0]:
            return Failure(outcome.key, "broken")
        return outcome


def run(out, engine=None, recipe=BOOK, documents=DOCUMENTS, **options):
    options = {"shard_size": 7, "progress": False, "max_failure_rate": 1.0, **options}
    return generate(documents, out, recipe_from(recipe), engine or Author(), **options)


def rows(folder, kind):
    paths = sorted(Path(folder).glob(f"{kind}-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def outputs(folder):
    """What a run gave, whatever the order and whoever did it."""
    found = {}
    for kind in ("documents", "filtered", "failed", "steps"):
        for row in rows(folder, kind):
            assert row["id"] not in found
            found[row["id"]] = (kind, row.get("text"), row.get("filter"), row.get("error"))
    return found


# --- the steps ---


def test_a_book_has_a_chapter_for_each_line_of_its_outline(tmp_path):
    summary = run(tmp_path)
    lines_of = {i: min(4, 3 + i % 4 if i % 4 < 2 else 6) for i in range(30) if i % 10 != 7}
    assert (summary.inputs, summary.source_documents) == (30, 30)
    assert summary.filtered == {"gate": 3, "refusal": 1} and summary.failed == 1
    assert summary.records == sum(lines_of.values()) - 2
    assert verify(tmp_path) == []

    chapters = [row["meta"]["synth"] for row in rows(tmp_path, "documents")]
    order = [(int(synth["source_id"][4:]), synth["item"]) for synth in chapters]
    assert order == sorted(order)
    outlines = {row["id"]: row for row in rows(tmp_path, "steps")}
    for synth in chapters:
        parent = outlines[synth["parents"]["outline"]]
        assert parent["meta"]["synth"]["source_id"] == synth["source_id"]
        assert parent["items"] == lines_of[int(synth["source_id"][4:])]
    # At the second attempt, with another seed.
    again = {row["meta"]["synth"]["source_id"] for row in outlines.values() if row["meta"]["synth"].get("attempt")}
    assert again == {"doc-3", "doc-13", "doc-23"}
    assert all("in 3 attempts" in row["reason"] for row in rows(tmp_path, "filtered") if row["filter"] == "gate")


def test_chapters_are_asked_for_with_their_line_their_outline_and_their_audience(tmp_path):
    asked = []

    class Listening(Author):
        def _outcome(self, request, num_outcomes):
            asked.append(request.prompt[0]["content"])
            return super()._outcome(request, num_outcomes)

    run(tmp_path, Listening())
    chapters = [text for text in asked if text.startswith("Chapter")]
    wanted = re.compile(r"Chapter (\d), Part (\d) of (\d+) \d+, of 1\. Part 1 of (\d+) .* for (\w+)\.", re.DOTALL)
    for text in chapters:
        number, part, document, outline, _ = wanted.fullmatch(text).groups()
        assert number == part and document == outline
    synths = [row["meta"]["synth"] for row in rows(tmp_path, "documents")]
    assert {synth["variables"]["audience"] for synth in synths} == {"children", "students", "experts"}
    by_audience = [row["meta"]["synth"]["audience"] for row in rows(tmp_path, "steps")]
    assert len(by_audience) == 27


def test_variables_are_dealt_evenly():
    recipe = recipe_from(BOOK)
    for seed in (0, 1):
        dealt = [recipe.assigned(seed, i)["audience"] for i in range(300)]
        for i in range(0, 300, 3):
            assert sorted(dealt[i : i + 3]) == ["children", "experts", "students"]
    assert len({tuple(recipe.assigned(s, i)["audience"] for i in range(12)) for s in range(20)}) > 15
    assert {recipe.assigned(0, 5, sample)["audience"] for sample in range(3)} == {"children", "students", "experts"}


def test_a_step_waits_for_all_it_comes_after(tmp_path):
    asked = []

    class Listening(MockEngine):
        def _outcome(self, request, num_outcomes):
            outcome = super()._outcome(request, num_outcomes)
            asked.append((request.prompt[0]["content"], outcome.text))
            return outcome

    summary = run(tmp_path, Listening(), BOTH_WAYS)
    assert (summary.records, summary.inputs) == (30, 30)
    wrote = {prompt: text for prompt, text in asked}
    texts = [row["meta"]["synth"] for row in rows(tmp_path, "documents")]
    assert {synth["step"] for synth in texts} == {"judge"}
    for i, document in enumerate(DOCUMENTS):
        text = document.text.strip()
        judged = f"Compare {wrote[f'Answer {text}']} with {wrote[f'Answer shortly {text}']}"
        assert judged in wrote
        assert rows(tmp_path, "documents")[i]["text"] == wrote[judged]
    assert len(rows(tmp_path, "steps")) == 60
    assert verify(tmp_path) == []


def test_a_branch_that_fails_ends_what_comes_after_it_and_nothing_else(tmp_path):
    class Failing(MockEngine):
        def _outcome(self, request, num_outcomes):
            outcome = super()._outcome(request, num_outcomes)
            broken = request.prompt[0]["content"].startswith("Answer shortly Text number 4.")
            return Failure(outcome.key, "broken") if broken else outcome

    summary = run(tmp_path, Failing(), BOTH_WAYS)
    assert (summary.records, summary.failed) == (29, 1)
    assert rows(tmp_path, "failed")[0]["step"] == "reference"
    assert len(rows(tmp_path, "steps")) == 59
    assert verify(tmp_path) == []


def test_a_long_document_is_read_piece_by_piece(tmp_path):
    sentences = [f"Sentence {i} stands here." for i in range(100)]
    pieces = {
        "name": "pieces",
        "version": 1,
        "description": "Every piece.",
        "steps": [
            {"name": "say", "for_each": "document", "user": "Say {document}|{item_number}", "max_input_tokens": 40}
        ],
    }
    asked = {}

    class Listening(MockEngine):
        def _outcome(self, request, num_outcomes):
            outcome = super()._outcome(request, num_outcomes)
            text, number = request.prompt[0]["content"].removeprefix("Say ").split("|")
            asked[int(number)] = text
            return outcome

    summary = run(tmp_path, Listening(), pieces, [Document("d", " ".join(sentences))])
    assert summary.inputs == 1 and summary.records == len(asked) == 10
    assert " ".join(asked[k] for k in range(1, 11)) == " ".join(sentences)
    assert [row["meta"]["synth"]["item"] for row in rows(tmp_path, "documents")] == list(range(1, 11))
    assert verify(tmp_path) == []


def test_records_may_be_parquet(tmp_path):
    summary = run(tmp_path, document_format="parquet")
    assert not list(tmp_path.glob("documents-*.jsonl"))
    assert len(list(read_documents(str(tmp_path)))) == summary.records > 50
    assert verify(tmp_path) == []


def test_verify_misses_a_chapter(tmp_path):
    run(tmp_path)
    for name in ("documents-00001.jsonl",):
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:4] + lines[5:]))
    gone = json.loads(lines[4])["meta"]["synth"]
    wanted = f"of input {gone['source_id']} in shard 1, items [{gone['item']}] have no outcome"
    assert any(problem == wanted for problem in verify(tmp_path))


# --- kills ---

WORKING = """
import sys
sys.path.insert(0, sys.argv[3])
from test_generate_steps import BOOK, Author
from lingua_synth.generate import generate
from lingua_synth.generate.recipe import recipe_from
summary = generate(sys.argv[1], sys.argv[2], recipe_from(BOOK), Author(window=16, delay_s=0.0015, num_words=20),
                   shard_size=20, max_failure_rate=1.0, progress=False, lease_s=20.0)
print(summary.is_complete)
"""


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    write_documents(path, [Document(f"doc-{i}", f"Text number {i}. " * 4) for i in range(240)])
    return path


def start(corpus, out):
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parents[1]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", WORKING, str(corpus), str(out), str(tests)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def num_journaled(out):
    """Answers on the disk: of open shards, and (an estimate of at least 4 each) of whole inputs."""

    def lines(path):
        try:
            return path.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    return sum(map(lines, out.glob("journal/*.jsonl"))) + 80 * len(list(out.glob("shard-*.json")))


def test_kills_in_the_middle_of_books_cost_what_was_in_the_engine(tmp_path, corpus):
    process = start(corpus, tmp_path / "whole")
    assert process.communicate(timeout=120)[0].strip() == "True"
    expected = outputs(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    out, moments, num_kills = tmp_path / "killed", random.Random(3), 0
    while num_kills < 6:
        before = num_journaled(out)
        process = start(corpus, out)
        while process.poll() is None and num_journaled(out) <= before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL, "finished before all kills"
        num_kills += 1
    process = start(corpus, out)
    assert process.communicate(timeout=120)[0].strip() == "True"
    assert outputs(out) == expected
    assert verify(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["generated_tokens"] == whole["generated_tokens"]
    assert not list(out.glob("journal")) and not list(out.glob("leases"))


def test_several_processes_share_a_run_and_a_dead_one_s_work_is_taken_over(tmp_path, corpus):
    process = start(corpus, tmp_path / "whole")
    assert process.wait(120) == 0
    out = tmp_path / "shared"
    first = start(corpus, out)
    while not list(out.glob("journal/*.jsonl")):
        time.sleep(0.005)
    others = [start(corpus, out) for _ in range(2)]
    time.sleep(0.3)
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    said = [process.communicate(timeout=120)[0].strip() for process in others]
    assert all(process.returncode == 0 for process in others)
    if "True" not in said:  # both had ended before the first was found dead
        assert start(corpus, out).wait(120) == 0
    assert outputs(out) == outputs(tmp_path / "whole")
    assert verify(out) == []
    assert len(list((out / "workers").glob("*.json"))) >= 2


def test_told_to_stop_it_puts_down_what_is_under_way(tmp_path, corpus):
    out = tmp_path / "out"
    process = start(corpus, out)
    while num_journaled(out) < 20:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    usage = [json.loads(path.read_text()) for path in (out / "workers").glob("*.json")]
    process = start(corpus, out)
    assert process.communicate(timeout=120)[0].strip() == "True"
    usage_after = [json.loads(path.read_text()) for path in (out / "workers").glob("*.json")]
    manifest = json.loads((out / "manifest.json").read_text())
    # Nothing was written twice.
    assert sum(one["generated_tokens"] for one in usage_after) == manifest["generated_tokens"]
    assert len(usage) == 1 and len(usage_after) == 2 and verify(out) == []


# --- the journal ---


def test_a_torn_line_ends_a_journal_and_loses_nothing_before_it(tmp_path):
    journal = Journal(tmp_path)
    journal.open(3, 1)
    for i in range(5):
        journal.append(3, {"call": str(i), "text": "\u2028 a line\n"})
    journal.leave(3)
    path = tmp_path / "00003.1.jsonl"
    path.write_bytes(path.read_bytes() + b'{"call": "5", "te')
    assert [entry["call"] for entry in journal.entries(3, [1, 2])] == list("01234")
    journal.finish(3)
    assert not list(tmp_path.glob("*.jsonl"))


# --- the plan ---


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_shards_hold_every_document_once_in_order_across_files(suffix, tmp_path):
    documents = [Document(f"d{i}", f"text {i} \u00e4") for i in range(97)]
    for k, (first, last) in enumerate([(0, 40), (40, 41), (41, 97)]):
        write_documents(tmp_path / f"f{k}{suffix}", documents[first:last])
    (tmp_path / "out").mkdir()
    source = find_source(str(tmp_path / f"f*{suffix}"), tmp_path / "out")
    plan = plan_inputs(tmp_path / "out", source, 9, 2, 0.0)
    assert (plan.num_documents, plan.shards_per_sample, plan.num_shards) == (97, 11, 22)
    for sample in range(2):
        shards = range(11 * sample, 11 * sample + 11)
        read = [one for shard in shards for one in plan.read(shard)]
        assert [(one.document.id, one.document.text) for one in read] == [(d.id, d.text) for d in documents]
        assert [plan.size(shard) for shard in shards] == [9] * 10 + [7]


def test_repeated_ids_are_found_wherever_they_stand(tmp_path):
    ids = [random.Random(i).randrange(60) for i in range(200)]
    (tmp_path / "out").mkdir()
    source = find_source([Document(f"d{i}", "x") for i in ids], tmp_path / "out")
    from lingua_synth.generate.plan import spool

    assert spool(source)
    plan = plan_inputs(tmp_path / "out", source, 7, 1, 0.0)
    seen = set()
    for one in (one for shard in range(plan.num_shards) for one in plan.read(shard)):
        assert one.is_duplicate == (one.document.id in seen)
        seen.add(one.document.id)
