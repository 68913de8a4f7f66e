"""Tokenizing a corpus: the same shards for any number of workers, units and interruptions, in bounded memory."""

import collections
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from tokens_doubles import Counting, DiesOnce, ExitsAtStart, Prepared, Slow, die_or_sleep

from lingua_synth.cli import main
from lingua_synth.config import run_command
from lingua_synth.documents import Document, Rejects, read_documents, write_documents
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenization, tokenize, verify_shards
from lingua_synth.tokens.gathering import even_cuts
from lingua_synth.tokens.units import Sizes, document_keys, plan_units
from lingua_synth.tokens.workers import Job, WorkerDied, Workers

BYTES = build_tokenizer("bytes")
SMALL = Sizes(
    in_process_bytes=1 << 20, min_unit_bytes=4_000, max_unit_bytes=4_000, chunk_bytes=3_000, chunk_documents=20,
    batch_lines=7, batch_bytes=500,
)  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tokenization, "SIZES", SMALL)


def texts_of(count, seed=0, first=0):
    rng = random.Random(seed)
    return [Document(f"d{first + i}", f"{first + i} " + "aé" * rng.randint(0, 60)) for i in range(count)]


@pytest.fixture
def corpus(tmp_path):
    """Files of every kind, one large enough to be cut, some lines of which are no documents."""
    folder = tmp_path / "in"
    write_documents(folder / "a.jsonl", texts_of(300))
    lines = (folder / "a.jsonl").read_bytes().splitlines(keepends=True)
    for number, line in ((13, b"{\n"), (150, b"\xff\n"), (299, b'{"text": " "}\n')):
        lines.insert(number, line)
    (folder / "a.jsonl").write_bytes(b"".join(lines))
    write_documents(folder / "b.jsonl.gz", texts_of(100, 1, 1_000))
    write_documents(folder / "c.jsonl.zst", texts_of(100, 2, 2_000))
    write_documents(folder / "d.parquet", texts_of(100, 3, 3_000))
    for i in range(5):
        write_documents(folder / "few" / f"{i}.jsonl", texts_of(1, i, 4_000 + i))
    (folder / "few" / "empty.jsonl").write_bytes(b"")
    (folder / "few" / "nothing.jsonl").write_bytes(b"\n\n")
    return folder


def content(folder):
    """Every byte of a finished folder of shards, and its rejects."""
    names = sorted(path.name for path in Path(folder).iterdir())
    assert not [name for name in names if name.endswith(".tmp") or name in (".tokenizing", ".unfinished")]
    return {name: (Path(folder) / name).read_bytes() for name in names if name != ".lock"}


def run(documents, out, tokenizer=BYTES, **settings):
    settings = {"progress": False, "shard_tokens": 5_000, "max_reject_rate": 0.05, **settings}
    return tokenize(str(documents), out, tokenizer, **settings)


# --- the same shards ---


@pytest.mark.parametrize("shuffle_seed", [0, None])
def test_the_shards_do_not_depend_on_workers_or_units(tmp_path, corpus, monkeypatch, shuffle_seed):
    manifest = run(corpus, tmp_path / "whole", shuffle_seed=shuffle_seed)
    whole = content(tmp_path / "whole")
    assert len(manifest["files"]) > 9
    monkeypatch.setattr(tokenization, "SIZES", SMALL)
    for num_workers in (1, 2, 3):
        out = tmp_path / f"w{num_workers}"
        assert run(corpus, out, shuffle_seed=shuffle_seed, num_workers=num_workers) == manifest
        assert content(out) == whole
    assert verify_shards(tmp_path / "w3") == []
    # What is in them, and the lines that are not, are what reading in one go finds.
    with Rejects(tmp_path / "rejects.jsonl", max_rate=0.05) as rejects:
        documents = {document.id: document.text for document in read_documents(str(corpus), rejects)}
    source = TokenSource(tmp_path / "w2")
    ids = [source.document_id(i) for i in range(len(source))]
    assert sorted(ids) == sorted(documents)
    assert (ids == list(documents)) == (shuffle_seed is None)
    for i, name in enumerate(ids):
        assert source.document(i).tolist() == BYTES.encode(documents[name], True, True)
    assert whole["rejects.jsonl"] == (tmp_path / "rejects.jsonl").read_bytes()
    assert manifest["skipped"] == rejects.counts and manifest["lines_read"] == rejects.num_read
    cases = [json.loads(line) for line in whole["rejects.jsonl"].splitlines()]
    assert [(Path(case["file"]).name, case["line"]) for case in cases[:3]] == [
        ("a.jsonl", 14), ("a.jsonl", 151), ("a.jsonl", 300)
    ]  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=60),
    unit=st.integers(100, 3_000),
    chunk=st.integers(1, 2_000),
    batch=st.integers(1, 20),
    shard_tokens=st.integers(100, 2_000),
    shuffle_seed=st.none() | st.integers(0, 2),
)
def test_no_size_shows_in_the_shards(tmp_path_factory, lengths, unit, chunk, batch, shard_tokens, shuffle_seed):
    folder = tmp_path_factory.mktemp("s")
    write_documents(folder / "in.jsonl", [Document(f"{i}", "x" * length + "y") for i, length in enumerate(lengths)])
    sizes = Sizes(
        min_unit_bytes=unit, max_unit_bytes=unit, chunk_bytes=chunk, chunk_documents=batch, batch_lines=batch,
        batch_bytes=chunk,
    )  # fmt: skip
    kept = tokenization.SIZES
    options = {"shard_tokens": shard_tokens, "shuffle_seed": shuffle_seed}
    try:
        whole = run(folder / "in.jsonl", folder / "whole", **options)
        tokenization.SIZES = sizes
        run(folder / "in.jsonl", folder / "cut", **options)
    finally:
        tokenization.SIZES = kept
    assert content(folder / "cut") == content(folder / "whole")
    for entry in whole["files"]:
        assert entry["tokens"] <= shard_tokens or entry["documents"] == 1
    assert [entry["name"] for entry in whole["files"]] == [f"shard-{i:05d}.arrow" for i in range(len(whole["files"]))]


def test_shards_of_a_shuffle_are_as_even_as_can_be(tmp_path):
    write_documents(tmp_path / "in.jsonl", texts_of(2_000))
    manifest = run(tmp_path / "in.jsonl", tmp_path / "out", shard_tokens=60_000)
    tokens = [entry["tokens"] for entry in manifest["files"]]
    assert len(tokens) == -(-sum(tokens) // 60_000) > 3
    assert max(tokens) - min(tokens) < 500


@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=9), limit=st.integers(1, 30))
def test_even_cuts_are_the_best_there_are(sizes, limit):
    def all_cuts(start):
        if start == len(sizes):
            yield []
        for stop in range(start + 1, len(sizes) + 1):
            if stop == start + 1 or sum(sizes[start:stop]) <= limit:
                yield from ([stop, *rest] for rest in all_cuts(stop))

    def largest(cuts):
        runs = [sizes[start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]
        return max((sum(run) for run in runs if sum(run) <= limit), default=0)

    cuts = even_cuts(np.array(sizes), limit)
    assert cuts[0] == 0 and cuts[-1] == len(sizes)
    found = cuts[1:]
    candidates = [other for other in all_cuts(0)]
    assert found in candidates
    assert len(found) == min(map(len, candidates))
    if max(sizes) <= limit:
        assert largest(found) == min(largest(other) for other in candidates if len(other) == len(found))


def test_units_follow_from_names_and_sizes(tmp_path):
    sizes = Sizes(min_unit_bytes=100, max_unit_bytes=1_000, num_units=4)
    files = ["a.jsonl", "b.jsonl.gz", "c.jsonl", "d.jsonl", "e.jsonl"]
    units = plan_units(files, [900, 5_000, 30, 30, 30], sizes)
    assert [[number for number, _ in unit.parts] for unit in units] == [[0], [1], [2, 3, 4]]
    units = plan_units(["a.jsonl"], [10_000], sizes)
    assert [unit.num_bytes for unit in units] == [1_000] * 10
    units = plan_units(["a.jsonl"], [10**13], Sizes())
    assert {unit.num_bytes >> 20 for unit in units} <= {127, 128}


# --- the shuffle ---


def test_the_shuffle_is_uniform():
    # Where each of 8 documents lands, over 4,000 seeds; and which stands after which.
    num_seeds, n = 4_000, 8
    landed, pairs = np.zeros((n, n)), np.zeros((n, n))
    for seed in range(num_seeds):
        order = np.argsort(document_keys(seed, [0] * 5 + [1] * 3, [0, 40, 95, 500, 10**9, 0, 40, 7]))
        landed[order, np.arange(n)] += 1
        pairs[order[:-1], order[1:]] += 1
    expected = num_seeds / n
    assert ((landed - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, (n - 1) ** 2)
    expected = num_seeds / n
    off_diagonal = pairs[~np.eye(n, dtype=bool)]
    assert ((off_diagonal - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, n * (n - 1) - 1)


def test_keys_of_a_large_file_are_uniform_and_their_own():
    places = np.cumsum(np.random.default_rng(0).integers(50, 5_000, 200_000)).tolist()
    keys = document_keys(0, [0] * len(places), places)
    assert len(np.unique(keys)) == len(keys)
    for shift in (56, 24, 0):
        counts = np.bincount(((keys >> np.uint64(shift)) & np.uint64(255)).astype(np.int64), minlength=256)
        expected = len(keys) / 256
        assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, 255)
    assert abs(np.corrcoef(np.argsort(keys), np.arange(len(keys)))[0, 1]) < 0.01


# --- killed ---


def start(documents, out, double, shuffle_seed=0, num_workers=2):
    """Tokenize in a process of its own, with small units."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import tokens_doubles
        from lingua_synth.tokens import tokenization, tokenize
        from lingua_synth.tokens.units import Sizes
        tokenization.SIZES = {SMALL!r}
        tokenize({str(documents)!r}, {str(out)!r}, {double}, shard_tokens=5_000, max_reject_rate=0.05, progress=False,
                 shuffle_seed={shuffle_seed}, num_workers={num_workers})
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True)


def descendants(pid):
    """The processes below one: the origin, whose copies workers are, and the workers."""
    try:
        found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return found + [below for child in found for below in descendants(child)]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's /proc")
@pytest.mark.parametrize("shuffle_seed", [0, None])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, corpus, small, shuffle_seed):
    run(corpus, tmp_path / "expected", shuffle_seed=shuffle_seed)
    out, work = tmp_path / "out", tmp_path / "out" / ".tokenizing"
    rng = random.Random(7)
    # After so many units of pass 1, shards of pass 2; and a little later, in the middle of a write perhaps.
    for pattern, count in (("unit-*.json", 3), ("shard-*.json", 1), ("shard-*.json", 5)):
        done = {path: path.stat().st_mtime_ns for path in work.glob("*.json")}
        process = start(corpus, out, "tokens_doubles.Slow()", shuffle_seed)
        wait_until(lambda k=(pattern, count, process): len(list(work.glob(k[0]))) >= k[1] or k[2].poll() is not None)
        time.sleep(rng.random() * 0.02)
        if process.poll() is not None:
            break
        workers = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_until(lambda pids=workers: not any(map(is_alive, pids)), 5)
        # What was done before is not done again.
        assert {path: path.stat().st_mtime_ns for path in done if path.exists()} == done
    else:
        assert not (out / "manifest.json").exists()
    with pytest.raises(ValueError, match="no token shards"):
        TokenSource(out)
    log = tmp_path / "log"
    run(corpus, out, Counting(log), shuffle_seed=shuffle_seed, num_workers=2)
    assert not log.exists()  # pass 1 was finished
    assert content(out) == content(tmp_path / "expected")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's /proc")
def test_workers_end_with_their_parent_whatever_they_do(tmp_path, corpus):
    process = start(corpus, tmp_path / "out", "tokens_doubles.Stuck()")
    work = tmp_path / "out" / ".tokenizing"
    wait_until(lambda: len(list(work.glob(".unit-*.tmp"))) == 2)  # both are at work
    workers = descendants(process.pid)
    process.kill()
    process.wait()  # their ends of its pipes are open while they live
    assert len(workers) == 3
    wait_until(lambda: not any(map(is_alive, workers)), 5)


@pytest.mark.parametrize("change", ["nothing", "settings", "input"])
def test_other_settings_or_input_begin_an_unfinished_folder_anew(tmp_path, corpus, small, monkeypatch, change):
    with monkeypatch.context() as patch:
        patch.setattr(tokenization, "plan_shards", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus, tmp_path / "out", add_eos=change != "settings")
    if change == "input":
        os.utime(corpus / "a.jsonl", ns=(1, 1))
    log = tmp_path / "log"
    if change == "nothing":
        run(corpus, tmp_path / "out", Counting(log))
        assert not log.exists()
    else:
        with pytest.warns(UserWarning, match="unfinished tokenization of other input or settings; it begins anew"):
            run(corpus, tmp_path / "out", Counting(log))
        assert sum(map(int, log.read_text().split())) == 605
    run(corpus, tmp_path / "expected")
    assert content(tmp_path / "out") == content(tmp_path / "expected")


def test_a_spill_of_the_wrong_size_is_made_again(tmp_path, corpus, small, monkeypatch):
    run(corpus, tmp_path / "expected")
    with monkeypatch.context() as patch:
        patch.setattr(tokenization, "plan_shards", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus, tmp_path / "out")
    spill = tmp_path / "out" / ".tokenizing" / "unit-000001.arrow"
    spill.write_bytes(spill.read_bytes()[:-1])
    log = tmp_path / "log"
    run(corpus, tmp_path / "out", Counting(log))
    assert 0 < sum(map(int, log.read_text().split())) < 100
    assert content(tmp_path / "out") == content(tmp_path / "expected")


def test_a_killed_worker_is_reported_and_the_next_call_goes_on(tmp_path, corpus, small):
    run(corpus, tmp_path / "expected")
    tokenizer = DiesOnce("1050 ", tmp_path / "flag")
    with pytest.raises(ChildProcessError, match=r"killed by signal 9.*at .*b\.jsonl\.gz.*the same call goes on"):
        run(corpus, tmp_path / "out", tokenizer, num_workers=2)
    assert list((tmp_path / "out" / ".tokenizing").glob("unit-*.json"))
    run(corpus, tmp_path / "out", tokenizer, num_workers=2)
    assert content(tmp_path / "out") == content(tmp_path / "expected")


def test_a_killed_worker_reads_right_at_the_command_line(tmp_path, corpus, small, capsys):
    def main(argv):
        run(corpus, tmp_path / "out", DiesOnce("1050 ", tmp_path / "flag"), num_workers=2)

    assert run_command(main, []) == 1
    shown = capsys.readouterr().err
    assert re.search(
        r"error: a worker process was killed by signal 9 \(out of memory\?\) at .+; fewer workers need less memory\. "
        "What is finished is kept, and the same call goes on from there; nothing half-written is kept$",
        shown.strip(),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forks on Linux alone")
@pytest.mark.parametrize("with_thread", [False, True])
def test_the_tokenizer_is_prepared_once_for_all_workers_where_a_fork_is_safe(
    tmp_path, corpus, small, monkeypatch, with_thread
):
    run(corpus, tmp_path / "expected")
    monkeypatch.setattr(tokenization, "SIZES", replace(SMALL, prepare_bytes=1))
    tokenizer = Prepared(tmp_path / "log", with_thread)
    run(corpus, tmp_path / "out", tokenizer, num_workers=3)
    assert content(tmp_path / "out") == content(tmp_path / "expected")
    said = (tmp_path / "log").read_text().split()
    # With a thread in it, a process is not forked: each of the three prepares itself.
    assert len(said) == len(set(said)) == (3 if with_thread else 1)
    assert str(os.getpid()) not in said


@pytest.mark.parametrize("with_thread", [False, True])
def test_workers_of_both_kinds_die_and_are_killed(with_thread, tmp_path):
    """What a worker's death or a callback's error does to it and the others."""

    def run_two(num_seconds, error=None):
        with Workers(2, Prepared(tmp_path / "log", with_thread)) as workers:
            jobs = [Job(die_or_sleep, (number, num_seconds), f"job {number}") for number in range(2)]

            def on_report(i, pid):
                pids.append(pid)
                if error is not None and len(pids) == 2:
                    raise error

            workers.run(jobs, on_report, lambda i, value: None)

    pids = []
    with pytest.raises(WorkerDied, match=r"was killed by signal 9 .out of memory.. at job 1; "):
        run_two(1_000)
    assert len(pids) == 2 and not any(map(is_alive, pids))
    pids.clear()
    with pytest.raises(KeyError):
        run_two(-1_000, KeyError("a callback's"))
    assert len(pids) == 2 and not any(map(is_alive, pids))


def test_a_worker_that_cannot_start_is_reported(tmp_path):
    with (
        pytest.raises(WorkerDied, match="a worker process ended with code 3 at its start"),
        Workers(2, ExitsAtStart()) as workers,
    ):
        workers.run([Job(die_or_sleep, (0, 0), "a job")] * 2, print, print)


# --- bad input, in a worker ---


@pytest.mark.parametrize("name", ["b.jsonl.gz", "c.jsonl.zst", "d.parquet"])
def test_a_damaged_file_ends_the_run_and_is_named(tmp_path, corpus, small, name):
    run(corpus, tmp_path / "expected")
    whole = (corpus / name).read_bytes()
    stat = (corpus / name).stat()
    (corpus / name).write_bytes(whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2))
    os.utime(corpus / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match=name):
        run(corpus, tmp_path / "out", Slow(), num_workers=2)
    (corpus / name).write_bytes(whole)
    os.utime(corpus / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    log = tmp_path / "log"
    run(corpus, tmp_path / "out", Counting(log))
    assert sum(map(int, log.read_text().split())) < 605  # finished units were kept
    assert content(tmp_path / "out") == content(tmp_path / "expected")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_hopeless_input_stops_early(tmp_path, small, num_workers):
    write_documents(tmp_path / "in.jsonl", texts_of(1_000))
    lines = (tmp_path / "in.jsonl").read_bytes().splitlines(keepends=True)
    for i in range(200, 1_000, 4):
        lines[i] = b"{\n"
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=r"lines read .* cannot be used.*in\.jsonl:201 not JSON; .*in\.jsonl:205 not"):
        run(tmp_path / "in.jsonl", tmp_path / "out", Slow(), num_workers=num_workers, max_reject_rate=0.02)
    work = tmp_path / "out" / ".tokenizing"
    done = len(list(work.glob("unit-*.json")))
    assert 0 < done < len(plan_units([str(tmp_path / "in.jsonl")], [(tmp_path / "in.jsonl").stat().st_size], SMALL)) / 2
    cases = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [case["line"] for case in cases] == list(range(201, 201 + 4 * len(cases), 4))
    # Allowed now, it goes on from there.
    manifest = run(tmp_path / "in.jsonl", tmp_path / "out", num_workers=num_workers, max_reject_rate=0.5)
    assert (manifest["documents"], manifest["skipped"]) == (800, {"not JSON": 200})


def test_rejects_are_judged_in_the_order_of_the_input(tmp_path, small, monkeypatch):
    # 10 of the first 200 lines are bad, and none of 800 others: too many while reading in order, few in all.
    write_documents(tmp_path / "in.jsonl", texts_of(1_000))
    lines = (tmp_path / "in.jsonl").read_bytes().splitlines(keepends=True)
    for i in range(100, 110):
        lines[i] = b"\n"
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    for num_workers in (1, 2):
        with pytest.raises(ValueError, match="blank line 10"):
            run(tmp_path / "in.jsonl", tmp_path / f"{num_workers}", num_workers=num_workers, max_reject_rate=0.02)
    # In one unit too, whose share of rejects is small at its end.
    monkeypatch.setattr(tokenization, "SIZES", replace(SMALL, min_unit_bytes=1 << 20, max_unit_bytes=1 << 20))
    with pytest.raises(ValueError, match=r"10 of 11\d lines read .* blank line 10"):
        run(tmp_path / "in.jsonl", tmp_path / "one", max_reject_rate=0.02)


def test_a_hopeless_file_that_cannot_be_cut_stops_early(tmp_path, small):
    lines = [line for document in texts_of(1_000) for line in (json.dumps({"text": document.text}).encode(), b"[]")]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    with pytest.raises(ValueError, match="not a JSON object"):
        run(tmp_path / "in.jsonl.gz", tmp_path / "out", Slow())
    assert len((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()) < 500


@pytest.mark.parametrize("num_workers", [1, 2])
def test_zero_tokens_and_empty_input(tmp_path, small, num_workers):
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="no tokens in the documents given: there is no document"):
        run(tmp_path / "empty.jsonl", tmp_path / "out", num_workers=num_workers)
    (tmp_path / "blank.jsonl").write_bytes(b"\n" * 90)
    with pytest.raises(ValueError, match="no tokens in the documents given: blank line 90"):
        run(tmp_path / "*.jsonl", tmp_path / "out2", num_workers=num_workers)
    write_documents(tmp_path / "one.jsonl", texts_of(1))
    manifest = run(tmp_path / "*.jsonl", tmp_path / "out3", num_workers=num_workers, max_reject_rate=1)
    assert (manifest["documents"], manifest["skipped"], manifest["lines_read"]) == (1, {"blank line": 90}, 91)


def test_an_enormous_document(tmp_path, small):
    documents = [*texts_of(20), Document("huge", "word é " * 30_000), *texts_of(20, 1, 100)]
    write_documents(tmp_path / "in.jsonl", documents)
    for seed in (0, None):
        manifest = run(tmp_path / "in.jsonl", tmp_path / f"{seed}", shuffle_seed=seed, num_workers=2)
        assert manifest["documents"] == 41
        assert sorted(entry["documents"] for entry in manifest["files"])[0] == 1
        source = TokenSource(tmp_path / f"{seed}", verify=True)
        (i,) = [i for i in range(41) if source.document_id(i) == "huge"]
        assert BYTES.decode(source.document(i).tolist()) == documents[20].text


def test_input_that_changes_meanwhile_is_refused(tmp_path, corpus, small, monkeypatch):
    plan = tokenization.plan_shards

    def touching(*args):
        with open(corpus / "a.jsonl", "a") as file:
            file.write("\n")
        return plan(*args)

    monkeypatch.setattr(tokenization, "plan_shards", touching)
    with pytest.raises(ValueError, match="changed while they were read"):
        run(corpus, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_two_runs_in_one_folder_and_impossible_numbers(tmp_path, corpus):
    process = start(corpus, tmp_path / "out", "tokens_doubles.Slow()")
    try:
        wait_until(lambda: (tmp_path / "out" / ".tokenizing" / "plan.json").exists())
        with pytest.raises(ValueError, match=rf"in use by tokenization, process {process.pid}"):
            run(corpus, tmp_path / "out")
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(ValueError, match="num_workers is a number of processes, at least 1"):
        run(corpus, tmp_path / "other", num_workers=0)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(tmp_path, corpus, small):
    run(corpus, tmp_path / "expected", num_workers=1)
    code = f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from lingua_synth.tokens import build_tokenizer, tokenization, tokenize
        from lingua_synth.tokens.units import Sizes
        tokenization.SIZES = {SMALL!r}
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_500, 9_500))  # most bytes of a file
        try:
            tokenize({str(corpus)!r}, {str(tmp_path / "out")!r}, build_tokenizer("bytes"), shard_tokens=5_000,
                     max_reject_rate=0.05, num_workers=2, progress=False)
        except OSError as error:
            print(error.strerror)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout == "File too large\n", done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    run(corpus, tmp_path / "out", num_workers=1)
    assert content(tmp_path / "out") == content(tmp_path / "expected")


# --- memory and files ---


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("small", 1_000), ("large", 12_000)):
        texts = rng.integers(97, 123, (count, 3_000), dtype=np.uint8)
        write_documents(
            tmp_path / f"{name}.jsonl", [Document(f"{i}", t.tobytes().decode()) for i, t in enumerate(texts)]
        )
    code = """
        import resource, sys
        from lingua_synth.tokens import build_tokenizer, tokenization, tokenize
        from lingua_synth.tokens.units import Sizes
        tokenization.SIZES = Sizes(min_unit_bytes=1 << 20, max_unit_bytes=1 << 20, chunk_bytes=1 << 20,
                                   batch_bytes=100_000)
        m = tokenize(sys.argv[1], sys.argv[2], build_tokenizer("bytes"), shard_tokens=1 << 20, progress=False,
                     num_workers=1)
        print(m["tokens"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    seen = {}
    for name in ("small", "large"):
        words = [str(tmp_path / f"{name}.jsonl"), str(tmp_path / name)]
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *words], capture_output=True, text=True)
        seen[name] = [int(number) for number in done.stdout.split()]
    tokens_bytes = 2 * (seen["large"][0] - seen["small"][0])
    assert tokens_bytes > 60_000_000
    assert seen["large"][1] - seen["small"][1] < 8_000  # kB


def test_many_units_need_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "SIZES", replace(SMALL, min_unit_bytes=1, max_unit_bytes=1))
    (tmp_path / "in").mkdir()
    for i in range(20):
        (tmp_path / "in" / f"{i}.jsonl").write_text(json.dumps({"text": f"text {i}"}))
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 12, before[1]))
    try:
        manifest = run(tmp_path / "in", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert manifest["documents"] == len(manifest["inputs"]["files"]) == 20


# --- the verb, the bar, and callers ---


def test_the_verb_takes_workers_and_verify_as_a_key(tmp_path, corpus, capsys):
    words = [f"documents={corpus}", f"out={tmp_path / 'out'}", "num_workers=2", "max_reject_rate=0.05"]
    assert main(["tokenize", *words]) == 0
    shown = capsys.readouterr()
    assert "605 documents" in shown.out and "Mtok/s, 605 documents, 5 rejects" in shown.err
    for verify in (["verify", f"out={tmp_path / 'out'}"], [f"verify={tmp_path / 'out'}"]):
        assert main(["tokenize", *verify]) == 0
        assert "every byte as written" in capsys.readouterr().out
    with open(tmp_path / "out" / "shard-00000.arrow", "r+b") as file:
        file.truncate(1_000)
    assert main(["tokenize", f"verify={tmp_path / 'out'}"]) == 1
    assert "is cut short" in capsys.readouterr().out


def test_a_script_without_a_main_guard_may_tokenize_on_all_cores(tmp_path, corpus):
    (tmp_path / "script.py").write_text(
        "from lingua_synth.tokens import build_tokenizer, tokenize\n"
        f"print(tokenize({str(corpus)!r}, {str(tmp_path / 'out')!r}, build_tokenizer('bytes'), num_workers=2,"
        " max_reject_rate=0.05, progress=False)['documents'])\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(tokenization.__file__).parents[2])},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("605\n", "")


def test_a_tokenizer_that_cannot_travel_works_in_this_process(tmp_path, corpus, small):
    class Local(type(BYTES)):
        pass

    run(corpus, tmp_path / "expected")
    run(corpus, tmp_path / "out", Local(), num_workers=3)
    assert content(tmp_path / "out") == content(tmp_path / "expected")


def test_the_files_of_a_url_are_tokenized(tmp_path, corpus, small):
    expected = run(corpus, tmp_path / "expected")
    manifest = tokenize(
        f"file://{corpus}",
        tmp_path / "out",
        BYTES,
        shard_tokens=5_000,
        max_reject_rate=0.05,
        num_workers=2,
        progress=False,
    )
    assert [entry["sha256"] for entry in manifest["files"]] == [entry["sha256"] for entry in expected["files"]]
    assert collections.Counter("ukey" in entry for entry in manifest["inputs"]["files"]) == {True: 11}


def test_the_hashes_in_the_manifest_are_the_files(tmp_path, corpus, small):
    from lingua_synth.files import sha256_file

    manifest = run(corpus, tmp_path / "out", num_workers=2)
    names = [entry["name"] for entry in manifest["inputs"]["files"]]
    assert len(names) == 11
    assert [entry["sha256"] for entry in manifest["inputs"]["files"]] == [sha256_file(corpus / name) for name in names]
    with gzip.open(corpus / "b.jsonl.gz", "rb") as file:
        text = file.read()
    (corpus / "b.jsonl.gz").write_bytes(gzip.compress(text, mtime=5))
    with pytest.raises(ValueError, match="the documents are others"):
        run(corpus, tmp_path / "out")
