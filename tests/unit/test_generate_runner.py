"""The runner: every input ends in exactly one place, whatever dies, fails or fills up on the way."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lingua_synth import files
from lingua_synth.documents import Document, read_documents, write_documents
from lingua_synth.generate import Failure, Generation, generate, load_recipe, store, verify, worker
from lingua_synth.generate.engines.mock import MockDied, MockEngine
from lingua_synth.generate.recipe import recipe_from
from lingua_synth.generate.store import record_id, request_seed
from lingua_synth.leases import Leases

RECIPE = load_recipe("hq")
DOCUMENTS = [Document(f"doc-{i}", f"Text number {i} with {{braces}}. " * 5, {"url": f"u{i}"}) for i in range(50)]


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def run(out, engine=None, documents=DOCUMENTS, recipe=RECIPE, **options):
    options = {"shard_size": 10, "progress": False, **options}
    return generate(documents, out, recipe, engine or MockEngine(), **options)


def content(folder):
    """Every file of a run by name, but for the lock, for who worked how long, and how often a shard was begun."""
    found = {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file() and p.name != ".lock"}
    return {name: re.sub(rb'"claim": \d+', b"", value) for name, value in found.items()}


def rows(folder, kind):
    paths = sorted(Path(folder).glob(f"{kind}-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def key(i, sample=0, recipe=RECIPE):
    return record_id(f"doc-{i}", recipe, recipe.steps[0], sample)


def manifest(folder):
    return json.loads((Path(folder) / "manifest.json").read_text())


def strict_recipe(**parameters):
    """hq, with filters that drop some of what the mock engine writes."""
    values = RECIPE.to_dict()
    values["steps"][0]["filters"] = [
        {"name": name, "action": "drop", "parameters": value} for name, value in parameters.items()
    ]
    return recipe_from(values)


# --- what a run leaves ---


def test_every_input_ends_in_exactly_one_place(tmp_path):
    class Uneven(MockEngine):
        """Every seventh text is short, every eleventh empty."""

        def run(self, requests):
            for number, outcome in enumerate(super().run(requests)):
                if isinstance(outcome, Generation) and number % 7 == 0:
                    outcome = dataclasses.replace(outcome, output_tokens=3)
                elif isinstance(outcome, Generation) and number % 11 == 0:
                    outcome = dataclasses.replace(outcome, text=" \n")
                yield outcome

    failing = [key(i) for i in (3, 17, 33)]
    summary = run(tmp_path, Uneven(fail_at=failing), max_failure_rate=1)

    kept, filtered, failed = (rows(tmp_path, kind) for kind in ("documents", "filtered", "failed"))
    assert [row["source_id"] for row in failed] == ["doc-3", "doc-17", "doc-33"]
    assert {row["error"] for row in failed} == {"the mock engine was told to fail here"}
    assert {row["filter"] for row in filtered} == {"min_tokens", "empty"}
    assert all(row["reason"] for row in filtered)
    sources = [row["meta"]["synth"]["source_id"] for row in [*kept, *filtered]] + [row["source_id"] for row in failed]
    assert sorted(sources) == sorted(document.id for document in DOCUMENTS)
    assert (summary.records, sum(summary.filtered.values()), summary.failed) == (len(kept), len(filtered), 3)
    assert summary.inputs == summary.source_documents == 50
    assert summary.output_tokens == sum(row["meta"]["synth"]["output_tokens"] for row in kept)
    assert verify(tmp_path) == []


def test_a_record_says_where_it_comes_from(tmp_path):
    run(tmp_path, seed=5)
    first = next(read_documents(str(tmp_path / "documents-00000.jsonl")))
    synth = first.meta["synth"]
    assert first.id == key(0)
    assert synth == {
        "recipe": "hq",
        "recipe_version": 1,
        "prompt_sha256": RECIPE.steps[0].prompt_sha256,
        "step": "rewrite",
        "sample": 0,
        "source_id": "doc-0",
        "audience": None,
        "generator": "mock",
        "generator_revision": "mock",
        "sampling": {
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 2048,
            "seed": request_seed(5, "doc-0", RECIPE, RECIPE.steps[0], 0),
        },
        "prompt_tokens": synth["prompt_tokens"],
        "output_tokens": 120,
        "finish_reason": "stop",
        "created": "2023-11-14T22:13:20+00:00",
        "flags": {},
    }


def test_seeds_differ_by_document_sample_and_run_and_fit_31_bits():
    seeds = {
        request_seed(s, f"d{i}", RECIPE, RECIPE.steps[0], k) for s in range(5) for i in range(20) for k in range(5)
    }
    assert len(seeds) == 500
    assert all(0 <= seed < 2**31 for seed in seeds)
    # Known values: a change here changes every run.
    assert request_seed(0, "d", RECIPE, RECIPE.steps[0], 0) == 2055825038
    assert record_id("d", RECIPE, RECIPE.steps[0], 0) == "e6d33c0da70b5f5e6d0b7e3a97028f8b"


def test_the_folder_is_read_as_its_kept_records_alone(tmp_path):
    run(tmp_path, MockEngine(fail_at=[key(4)]), recipe=RECIPE)
    documents = list(read_documents(str(tmp_path)))
    assert [document.meta["synth"]["source_id"] for document in documents] == [f"doc-{i}" for i in range(50) if i != 4]


def test_records_stand_in_input_order_whatever_order_the_engine_answers_in(tmp_path):
    run(tmp_path / "a", MockEngine(window=1))
    run(tmp_path / "b", MockEngine(window=37))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert [row["meta"]["synth"]["source_id"] for row in rows(tmp_path / "a", "documents")] == [d.id for d in DOCUMENTS]


def test_filters_annotate_or_drop_as_the_recipe_says(tmp_path):
    short = RECIPE.with_sampling(max_tokens=60)
    summary = run(tmp_path / "a", recipe=short)
    assert summary.flagged == {"finish_reason": 50}
    assert rows(tmp_path / "a", "documents")[0]["meta"]["synth"]["flags"] == {"finish_reason": "finish reason length"}
    summary = run(tmp_path / "b", recipe=strict_recipe(max_tokens={"tokens": 119}))
    assert (summary.records, summary.filtered) == (0, {"max_tokens": 50})
    assert rows(tmp_path / "b", "filtered")[0]["reason"] == "120 tokens, more than 119"


def test_text_that_no_file_can_hold_is_repaired(tmp_path):
    class Broken(MockEngine):
        def run(self, requests):
            for request in requests:
                text = "\ud800 half of a pair, \x00 a null, \u2028 a line. " * 20
                yield (
                    Generation(request.key, text, 5, 200, "stop")
                    if request.seed % 2
                    else Failure(request.key, "\udfff")
                )

    summary = run(tmp_path, Broken(), max_failure_rate=1)
    assert summary.records + summary.failed == 50 and summary.records > 5
    assert verify(tmp_path) == []
    assert next(read_documents(str(tmp_path))).text.startswith("\ufffd half of a pair, \x00 a null, \u2028 a line.")


def test_samples_go_through_the_documents_again_with_other_seeds(tmp_path):
    summary = run(tmp_path, samples=3, shard_size=40)
    synths = [row["meta"]["synth"] for row in rows(tmp_path, "documents")]
    assert [(s["sample"], s["source_id"]) for s in synths] == [(k, d.id) for k in range(3) for d in DOCUMENTS]
    assert len({s["sampling"]["seed"] for s in synths}) == 150
    assert (summary.inputs, summary.source_documents) == (150, 50)
    assert verify(tmp_path) == []


def test_a_second_document_of_one_id_is_filtered_without_a_request(tmp_path):
    documents = [*DOCUMENTS[:15], Document("doc-3", "other text"), *DOCUMENTS[15:20]]
    engine = MockEngine()
    summary = run(tmp_path, engine, documents)
    assert (engine.num_requests, summary.inputs, summary.records) == (20, 21, 20)
    assert summary.filtered == {"duplicate_id": 1}
    assert rows(tmp_path, "filtered")[0]["source_id"] == "doc-3"
    assert verify(tmp_path) == []


def test_a_shard_of_duplicates_alone_is_written_too(tmp_path):
    summary = run(tmp_path, documents=DOCUMENTS[:10] * 3)
    assert (summary.inputs, summary.records, summary.filtered) == (30, 10, {"duplicate_id": 20})
    assert verify(tmp_path) == []


# --- interruptions ---


class Crash(BaseException):
    """A process that ends between two operations."""


def test_a_crash_between_any_two_files_is_mended_by_the_same_call(tmp_path, monkeypatch):
    run(tmp_path / "whole", documents=DOCUMENTS[:25])
    expected = content(tmp_path / "whole")
    replace = os.replace
    for crash_at in range(1, 100):
        count = 0

        def replace_until(source, target, crash_at=crash_at):
            nonlocal count
            count += 1
            if count == crash_at:
                raise Crash
            replace(source, target)

        out = tmp_path / f"crash-{crash_at}"
        monkeypatch.setattr(files.os, "replace", replace_until)
        try:
            run(out, documents=DOCUMENTS[:25])
        except Crash:
            monkeypatch.setattr(files.os, "replace", replace)
            assert not (out / "manifest.json").exists()
            run(out, documents=DOCUMENTS[:25])
            assert content(out) == expected, f"after a crash at file {crash_at}"
        else:
            break
    # the input twice (new, then in place), run.json, the plan's two; three shards of four files, of which three get
    # their names last; who worked how long, card.md, manifest.json
    assert crash_at == 5 + 3 * (4 + 3) + 3 + 1


KILLED = """
import sys
from lingua_synth.documents import Document
from lingua_synth.generate import generate
from lingua_synth.generate.engines.mock import MockEngine
documents = [Document(f"doc-{i}", f"Text number {i}. " * 5) for i in range(240)]
failing = sys.argv[2].split(",")
generate(documents, sys.argv[1], "hq", MockEngine(window=16, delay_s=0.002, fail_at=failing), shard_size=12,
progress=False)
"""


def test_kill_9_at_random_moments_loses_nothing_and_doubles_nothing(tmp_path):
    failing = ",".join(key(i) for i in (5, 100, 239))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

    def start(out):
        return subprocess.Popen([sys.executable, "-c", KILLED, str(out), failing], env=environment)

    assert start(tmp_path / "whole").wait(60) == 0
    expected = content(tmp_path / "whole")
    moments = random.Random(7)
    num_killed = 0
    out = tmp_path / "killed"
    for _ in range(6):
        process = start(out)
        shards = len(list(out.glob("shard-*.json"))) if out.exists() else 0
        # From the moment that it works, not from the start of Python: else all kills would hit the imports.
        while process.poll() is None and len(list(out.glob("shard-*.json"))) <= shards:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        num_killed += process.wait(10) == -signal.SIGKILL
        assert not (out / "manifest.json").exists()
    assert num_killed == 6
    assert 6 <= len(list(out.glob("shard-*.json"))) < 20
    assert start(out).wait(60) == 0
    assert content(out) == expected
    assert verify(out) == []
    ids = [row["id"] for kind in ("documents", "filtered", "failed") for row in rows(out, kind)]
    assert len(ids) == len(set(ids)) == 240


def test_temporary_files_of_a_killed_process_are_cleared_away(tmp_path):
    with pytest.raises(MockDied):
        run(tmp_path, MockEngine(die_after=33))
    (tmp_path / ".documents-00009.jsonl.1234.tmp").write_text("half a reco")
    run(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_engine_that_dies_ends_the_run_and_the_next_one_goes_on(tmp_path):
    run(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(MockDied):
        run(out, MockEngine(die_after=33))
    finished = len(list(out.glob("shard-*.json")))
    assert 1 <= finished <= 3
    engine = MockEngine()
    summary = run(out, engine)
    assert engine.num_requests == 50 - 33
    assert summary.resumed_inputs == 10 * finished
    assert content(out) == content(tmp_path / "whole")


def test_a_finished_run_is_returned_without_the_engine(tmp_path):
    first = run(tmp_path)
    before = content(tmp_path)
    engine = MockEngine()
    second = run(tmp_path, engine)
    assert engine.num_requests == 0
    assert content(tmp_path) == before
    assert (second.records, second.output_tokens, second.resumed_inputs) == (first.records, first.output_tokens, 50)


def test_only_the_manifest_is_made_again_when_it_alone_is_missing(tmp_path):
    class Locked(MockEngine):
        def run(self, requests):
            raise AssertionError("no request is left, so the engine is not to be started")

    run(tmp_path)
    before = content(tmp_path)
    (tmp_path / "manifest.json").unlink()
    run(tmp_path, Locked())
    assert content(tmp_path) == before


@pytest.mark.parametrize("fail_at", [1, 2, 3, 6, 9, 14])
def test_a_full_disk_ends_the_run_and_leaves_nothing_half_trusted(fail_at, tmp_path, monkeypatch):
    run(tmp_path / "whole", documents=DOCUMENTS[:25])
    fsync, count = os.fsync, 0

    def fsync_until(descriptor):
        nonlocal count
        count += not os.path.isdir(f"/proc/self/fd/{descriptor}")
        if count >= fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    out = tmp_path / "out"
    monkeypatch.setattr(files.os, "fsync", fsync_until)
    with pytest.raises(OSError, match="No space left"):
        run(out, documents=DOCUMENTS[:25])
    monkeypatch.setattr(files.os, "fsync", fsync)
    assert not list(out.glob(".*.tmp"))
    assert not (out / "manifest.json").exists()
    with pytest.raises(ValueError, match=r"has no manifest.json"):
        verify(out)
    for path in out.glob("shard-*.json"):
        for name, described in json.loads(path.read_text())["files"].items():
            assert files.sha256_file(out / name) == described["sha256"]
    run(out, documents=DOCUMENTS[:25])
    assert content(out) == content(tmp_path / "whole")


# --- another run in the same folder ---


class Renamed(MockEngine):
    def __init__(self, name="mock", revision="mock"):
        super().__init__()
        self.name, self.revision = name, revision


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": load_recipe("qa")}, "recipe.name: 'hq' there, 'qa' now"),
        ({"recipe": RECIPE.with_sampling(temperature=1.0)}, "recipe.steps[0].sampling.temperature: 0.7 there, 1.0 now"),
        ({"engine": Renamed(name="mock2")}, "engine.name: 'mock' there, 'mock2' now"),
        ({"engine": Renamed(revision="r2")}, "engine.revision: 'mock' there, 'r2' now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"samples": 2}, "samples: 1 there, 2 now"),
        ({"shard_size": 20}, "shard_size: 10 there, 20 now"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_refused_by_what_differs(changes, words, finished, tmp_path):
    run(tmp_path)
    if not finished:
        (tmp_path / "manifest.json").unlink()
    before = content(tmp_path)
    with pytest.raises(ValueError) as refused:
        run(tmp_path, **changes)
    assert "holds another run" in str(refused.value) and words in str(refused.value)
    assert content(tmp_path) == before


def test_other_documents_are_refused(tmp_path):
    run(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    changed = [*DOCUMENTS[:12], Document("doc-12", "changed"), *DOCUMENTS[13:]]
    for other in (changed, DOCUMENTS[:40]):
        with pytest.raises(ValueError, match="documents: other ones, or files that have changed"):
            run(tmp_path / "out", documents=other)
    write_documents(tmp_path / "in.jsonl", DOCUMENTS)
    with pytest.raises(ValueError, match="documents: other ones"):
        run(tmp_path / "out", documents=str(tmp_path / "in.jsonl"))


def test_files_are_known_by_content(tmp_path):
    path = tmp_path / "in.jsonl"
    write_documents(path, DOCUMENTS)
    run(tmp_path / "out", documents=path)
    os.utime(path, (1, 1))
    assert run(tmp_path / "out", documents=str(path)).resumed_inputs == 50
    write_documents(path, [*DOCUMENTS[:-1], Document("doc-49", "Text numbes 49 with {braces}. " * 5, {"url": "u49"})])
    with pytest.raises(ValueError, match="documents: other ones, or files that have changed"):
        run(tmp_path / "out", documents=str(path))


def test_objects_and_files_give_the_same_records(tmp_path):
    write_documents(tmp_path / "in.jsonl", DOCUMENTS)
    run(tmp_path / "a", documents=str(tmp_path / "in.jsonl"))
    run(tmp_path / "b")
    run(tmp_path / "c", documents=iter(DOCUMENTS))
    for name in (f"documents-0000{i}.jsonl" for i in range(5)):
        assert content(tmp_path / "a")[name] == content(tmp_path / "b")[name] == content(tmp_path / "c")[name]


def test_lines_that_are_no_documents_are_counted(tmp_path):
    write_documents(tmp_path / "in.jsonl", DOCUMENTS)
    with open(tmp_path / "in.jsonl", "a") as file:
        file.write('{"id": "x"}\nnot json\n')
    run(tmp_path / "out", documents=str(tmp_path / "in.jsonl"), samples=2)
    assert manifest(tmp_path / "out")["lines_rejected"] == {"no text": 1, "not JSON": 1}
    assert verify(tmp_path / "out") == []


def test_a_folder_with_files_of_unknown_origin_is_refused(tmp_path):
    (tmp_path / "documents-00000.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"has documents-00000.jsonl but no run.json"):
        run(tmp_path)


def test_a_shard_file_that_was_changed_is_named(tmp_path):
    run(tmp_path)
    (tmp_path / "documents-00002.jsonl").write_text("short")
    with pytest.raises(
        ValueError, match=r"documents-00002.jsonl has 5 bytes, not the .* written; delete .*shard-00002.json"
    ):
        run(tmp_path)
    (tmp_path / "shard-00002.json").unlink()
    (tmp_path / "manifest.json").unlink()
    run(tmp_path)
    assert verify(tmp_path) == []


# --- the token budget ---


@pytest.mark.parametrize(("budget", "shards"), [(1, 1), (1200, 1), (1201, 2), (3600, 3), (5999, 5), (6000, 5)])
def test_a_budget_ends_at_the_first_shard_that_reaches_it(budget, shards, tmp_path):
    summary = run(tmp_path, max_output_tokens=budget)  # 10 records of 120 tokens a shard
    assert summary.output_tokens == shards * 1200
    assert summary.source_documents == shards * 10
    assert summary.reached_max_output_tokens
    assert len(list(tmp_path.glob("documents-*.jsonl"))) == shards
    assert verify(tmp_path) == []


def test_a_budget_that_is_not_reached_is_said(tmp_path):
    summary = run(tmp_path, max_output_tokens=6001)
    assert not summary.reached_max_output_tokens
    assert "NOT reached" in str(summary)


class Backwards(MockEngine):
    """Answers everything it was ever given, last first: shards finish in reverse order."""

    def run(self, requests):
        yield from reversed(list(super().run(requests)))


def test_a_budget_gives_the_same_files_whatever_finishes_first(tmp_path):
    run(tmp_path / "a", MockEngine(window=1), max_output_tokens=2500)
    run(tmp_path / "b", MockEngine(window=49), max_output_tokens=2500)
    run(tmp_path / "c", Backwards(), max_output_tokens=2500)
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(tmp_path / "c")


def test_the_engine_is_closed_as_soon_as_the_budget_is_reached(tmp_path):
    class Noticing(MockEngine):
        num_outcomes, is_closed = 0, False

        def run(self, requests):
            try:
                for outcome in super().run(requests):
                    self.num_outcomes += 1
                    yield outcome
            except GeneratorExit:
                self.is_closed = True
                raise

    engine = Noticing(window=25)
    run(tmp_path, engine, max_output_tokens=1)
    assert engine.is_closed
    assert engine.num_outcomes < engine.num_requests


def test_a_budget_may_be_raised_and_not_lowered(tmp_path):
    run(tmp_path / "out", max_output_tokens=1000)
    engine = MockEngine()
    run(tmp_path / "out", engine, max_output_tokens=3000)
    assert 20 <= engine.num_requests <= 40
    run(tmp_path / "direct", max_output_tokens=3000)
    assert content(tmp_path / "out") == content(tmp_path / "direct")
    with pytest.raises(ValueError, match=r"has 3,600 tokens, and max_output_tokens=100 .*ask for at least 3,600"):
        run(tmp_path / "out", max_output_tokens=100)
    run(tmp_path / "out", max_output_tokens=None)
    run(tmp_path / "all")
    assert content(tmp_path / "out") == content(tmp_path / "all")


def test_a_budget_is_met_with_samples_when_the_documents_are_few(tmp_path):
    summary = run(tmp_path, samples=4, max_output_tokens=8000)
    assert summary.reached_max_output_tokens
    assert (summary.inputs, summary.source_documents, summary.output_tokens) == (70, 50, 8400)


# --- engines that fail ---


def test_too_many_failures_stop_the_run_with_the_first_errors(tmp_path):
    documents = [Document(f"doc-{i}", "A text.") for i in range(400)]
    failing = [key(i) for i in range(400) if i % 10 == 0]
    with pytest.raises(
        ValueError, match=r"requests failed, more than max_failure_rate=0.05. First errors: the mock engine"
    ):
        run(tmp_path / "a", MockEngine(fail_at=failing), documents)
    summary = run(tmp_path / "b", MockEngine(fail_at=failing), documents, max_failure_rate=0.2)
    assert (summary.failed, summary.records) == (40, 360)


def test_a_run_in_which_nothing_succeeds_is_no_result(tmp_path):
    failing = [key(i) for i in range(50)]
    with pytest.raises(ValueError, match=r"all of \d+ requests failed. First errors: the mock engine was told to fail"):
        run(tmp_path, MockEngine(fail_at=failing))
    assert not list(tmp_path.glob("shard-*"))
    assert run(tmp_path, MockEngine()).records == 50


def test_a_request_that_an_engine_forgets_is_a_failure(tmp_path):
    class Forgetful(MockEngine):
        def run(self, requests):
            return (outcome for outcome in super().run(requests) if outcome.key != key(7))

    summary = run(tmp_path, Forgetful())
    assert (summary.failed, summary.records) == (1, 49)
    assert rows(tmp_path, "failed")[0]["error"] == "engine mock returned nothing for this request"
    assert verify(tmp_path) == []


def test_an_engine_that_asks_at_every_step_does_not_make_it_list_the_folder(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(store, "whole_shards", lambda folder, look=store.whole_shards: looks.append(1) or look(folder))

    class Stepping(MockEngine):
        """As vLLM's loop: between two results it asks 300 times whether there is more."""

        def run(self, requests):
            taken = [one for one in iter(lambda: next(requests, None), None)]
            while taken:
                assert all(next(requests) is None for _ in range(300))
                yield from super().run(iter([taken.pop()]))

    assert run(tmp_path, Stepping(), shard_size=25, documents=DOCUMENTS[:25]).records == 25
    assert verify(tmp_path) == [] and len(looks) < 10


def test_an_engine_that_takes_no_chat_is_not_sent_one(tmp_path):
    engine = MockEngine()
    engine.prompt_kinds = ("text",)
    with pytest.raises(ValueError, match=r"recipe hq has a chat prompt, and engine mock takes text prompts only"):
        run(tmp_path, engine)
    assert run(tmp_path, engine, recipe="continue").records == 50


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"documents": []}, "no documents in the list given"),
        ({"shard_size": 0}, "shard_size must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"max_output_tokens": 0}, "max_output_tokens must be at least 1, got 0"),
        ({"max_failure_rate": 2}, "between 0 and 1; got 2"),
        ({"documents": "gone.jsonl"}, "no documents at gone.jsonl"),
        ({"recipe": "hr"}, "no recipe 'hr'"),
    ],
)
def test_bad_input_is_refused_in_words(options, words, tmp_path):
    with pytest.raises(ValueError) as refused:
        run(tmp_path / "out", **options)
    assert words in str(refused.value)


# --- verify ---


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda out: edit(out / "documents-00001.jsonl", "stone", "store"), "documents-00001.jsonl has changed"),
        (
            lambda out: edit(out / "manifest.json", '"inputs": 50', '"inputs": 51'),
            "the manifest counts 51 inputs, its shards 50",
        ),
        (lambda out: edit(out / "shard-00003.json", '"records": 10', '"records": 9'), "shard-00003.json is not what"),
        (lambda out: (out / "failed-00000.jsonl").unlink(), "failed-00000.jsonl is missing"),
        (
            lambda out: (out / "documents-00009.jsonl").write_text("{}\n"),
            "documents-00009.jsonl is in the folder and not",
        ),
        (lambda out: edit(out / "documents-00002.jsonl", "{", ""), "documents-00002.jsonl cannot be read"),
    ],
)
def test_verify_finds_what_was_changed(spoil, problem, tmp_path):
    run(tmp_path)
    assert verify(tmp_path) == []
    spoil(tmp_path)
    assert any(problem in found for found in verify(tmp_path)), verify(tmp_path)


def test_verify_counts_the_lines_even_where_all_hashes_agree(tmp_path):
    run(tmp_path)
    path = tmp_path / "documents-00001.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], lines[0]]))  # one record lost, another doubled
    for name in ("shard-00001.json", "manifest.json"):
        text = (tmp_path / name).read_text()
        old = json.loads((tmp_path / "manifest.json").read_text())["shards"][1]["files"][path.name]["sha256"]
        (tmp_path / name).write_text(text.replace(old, files.sha256_file(path)))
    assert any("occurs again among the documents of shard 1" in problem for problem in verify(tmp_path))


def test_verify_refuses_what_is_no_finished_run(tmp_path):
    with pytest.raises(ValueError, match=r"has no manifest.json: no run"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the manifest of generated documents"):
        verify(tmp_path)


def test_an_interrupted_folder_is_not_read_as_documents(tmp_path):
    from lingua_synth.documents import read_documents

    class Killed(Exception):
        pass

    class Dying(MockEngine):
        def run(self, requests):
            for number, outcome in enumerate(super().run(requests)):
                if number == 25:
                    raise Killed
                yield outcome

    documents = [Document(f"d{i}", f"text number {i} " * 20, {}) for i in range(40)]
    with pytest.raises(Killed):
        generate(documents, tmp_path / "g", "continue", Dying(), shard_size=10, progress=False)
    assert list((tmp_path / "g").glob("documents-*.jsonl"))
    with pytest.raises(ValueError, match=r"g is not finished: .* Run that command again"):
        list(read_documents(str(tmp_path / "g")))
    generate(documents, tmp_path / "g", "continue", MockEngine(), shard_size=10, progress=False)
    assert len(list(read_documents(str(tmp_path / "g")))) == 40


# --- a thousand processes, a million shards ---


def test_a_folder_that_takes_long_to_list_is_not_listed_for_every_shard(tmp_path, monkeypatch):
    looks = []

    def slow(folder, look=store.whole_shards):
        looks.append(1)
        time.sleep(0.02)
        return look(folder)

    monkeypatch.setattr(store, "whole_shards", slow)
    monkeypatch.setattr(worker, "LOOK_EVERY_S", 0.0)
    assert run(tmp_path, MockEngine(), shard_size=1, documents=DOCUMENTS[:20]).records == 20
    assert verify(tmp_path) == [] and len(looks) <= 6


def test_only_some_of_many_claims_are_asked_about(tmp_path, monkeypatch):
    """40 living processes of other machines hold a shard each; what they hold is left to them."""
    asked = []
    monkeypatch.setattr(worker, "CLAIMS_LOOKED_AT", 4)
    real = Leases.is_held
    monkeypatch.setattr(Leases, "is_held", lambda self, name: (asked.append(name), real(self, name))[1])
    documents = [Document(str(i), f"text {i}") for i in range(45)]
    for i in range(40):
        place = tmp_path / "leases" / f"{i:05d}"
        place.mkdir(parents=True)
        (place / "1").write_text(json.dumps({"worker": f"w{i}", "host": "elsewhere", "pid": 1}))
    summary = run(tmp_path, MockEngine(), shard_size=1, documents=documents)
    assert not summary.is_complete and summary.records == 5
    assert store.whole_shards(tmp_path) == set(range(40, 45))
    assert 0 < len(asked) <= 4 * 7
    # Claims that nobody keeps alive are found all the same.
    for i in range(40):
        os.utime(tmp_path / "leases" / f"{i:05d}" / "1", (0, 0))
    assert run(tmp_path, MockEngine(), shard_size=1, documents=documents).is_complete
    assert verify(tmp_path) == []


def test_how_far_a_budget_is_used_is_counted_once_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "COUNTED_EVERY", 2)
    expected = run(tmp_path / "whole", MockEngine(), shard_size=1, max_output_tokens=1_000)
    assert expected.reached_max_output_tokens and expected.inputs < 50

    class Dying(MockEngine):
        def run(self, requests):
            for number, outcome in enumerate(super().run(requests)):
                if number == expected.inputs // 2:
                    raise OSError("gone")
                yield outcome

    with pytest.raises(OSError, match="gone"):
        run(tmp_path / "parts", Dying(window=1), shard_size=1, max_output_tokens=1_000)
    num_whole, tokens = json.loads((tmp_path / "parts" / "journal" / "counted.json").read_text())
    contents = [store.read_shard(tmp_path / "parts", i) for i in range(num_whole)]
    assert num_whole > 2 and tokens == sum(content["output_tokens"] for content in contents)
    read = []
    real = store.read_counts
    monkeypatch.setattr(store, "read_counts", lambda folder, shard: (read.append(shard), real(folder, shard))[1])
    shutil.copytree(tmp_path / "parts", tmp_path / "damaged")
    started = worker.Worker._look

    def look(self):
        started(self)
        assert not [shard for shard in read if shard < num_whole], "what others have counted is not counted again"

    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "_look", look)
        found = run(tmp_path / "parts", MockEngine(), shard_size=1, max_output_tokens=1_000)
    assert (found.inputs, found.output_tokens) == (expected.inputs, expected.output_tokens)
    # A shard that was taken out is made again, though it was counted.
    (tmp_path / "damaged" / "shard-00001.json").unlink()
    found = run(tmp_path / "damaged", MockEngine(), shard_size=1, max_output_tokens=1_000)
    assert (found.inputs, found.output_tokens) == (expected.inputs, expected.output_tokens)
    assert verify(tmp_path / "damaged") == verify(tmp_path / "parts") == []
