"""Two rounds of every regime with real parts, small: exact shares, kills at any stage, and a report at any time."""

import csv
import math
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from texts import make_documents

from lingua_synth.documents import write_documents
from lingua_synth.files import read_json

SIZES = ["size=nano-27k", "budget=12288", "vocab_size=300", "evaluation_tokens=1000", "max_tokens=48", "seq_len=64"]
WORDS = [*SIZES, "ratios=['1/2']", "seeds=[1]"]


def command(out, documents, *words):
    return [sys.executable, "-m", "lingua_synth", "generations", f"out={out}", f"documents={documents}", *words]


def run(*words):
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=500)


def rows(out):
    with open(out / "rounds.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "mine.jsonl"
    write_documents(path, make_documents(7, 500, words=(40, 120)))
    return path


@pytest.fixture(scope="module")
def finished(documents, tmp_path_factory):
    out = tmp_path_factory.mktemp("generations") / "whole"
    words = [*WORDS, "rounds=2", "regimes=[replace,accumulate]", "generator=nano-56k"]
    # The control is asked for later, and nothing else is done again.
    for more, num_runs in (("control=false", 8), ("control=true", 10)):
        result = run(out, documents, *words, more)
        assert result.returncode == 0, result.stderr[-3000:]
        assert len(list((out / "runs").iterdir())) == num_runs
    return out


@pytest.mark.slow
def test_every_round_has_its_exact_shares_and_real_numbers(finished):
    table = [row for row in rows(finished) if row["regime"] != "control"]
    assert len(table) == 2 * 3 and {row["size"] for row in table} == {"nano-27k"}
    for row in table:
        shares = {name: Fraction(row[f"ratio_{name}"]) for name in ("natural", "synthetic-1", "synthetic-2")}
        tokens = int(row["tokens"])
        assert sum(shares.values()) == 1
        assert all(int(row[f"tokens_{name}"]) == share * tokens for name, share in shares.items())
        assert 0 < float(row["loss_macro"]) < 6 and float(row["text_types"]) > 1
    last = {row["regime"]: row for row in table if row["round"] == "2"}
    assert (last["replace"]["tokens_natural"], last["replace"]["tokens_synthetic-2"]) == ("6144", "6144")
    kept = [int(last["accumulate"][f"tokens_{name}"]) for name in ("natural", "synthetic-1", "synthetic-2")]
    assert kept == [12_288, 6_144, 6_144] and int(last["accumulate"]["tokens"]) == sum(kept)
    # The control reads as many tokens, all of them natural, and adds no text.
    control = {row["round"]: row for row in rows(finished) if row["regime"] == "control"}
    assert [int(control[n]["tokens_natural"]) for n in ("0", "1", "2")] == [12_288, 18_432, 24_576]
    assert control["2"]["text_types"] == "" and float(control["2"]["loss_macro"]) != float(control["1"]["loss_macro"])
    assert control["0"]["loss_macro"] == table[0]["loss_macro"]
    # Round 0 is one training for both regimes, and so is the text that its model writes.
    starts = [{k: v for k, v in row.items() if k != "regime"} for row in table if row["round"] == "0"]
    assert starts[0] == starts[1]
    assert {path.name for path in (finished / "texts").iterdir()} == {"shared-1-s1", "replace-2-s1", "accumulate-2-s1"}
    # The generator is another model, of the same mixture; in the last round nobody needs it.
    runs = {path.name for path in (finished / "runs").iterdir()}
    assert "replace-1-nano-56k-d12288-s1" in runs and not any("-2-nano-56k" in name for name in runs)
    engine = read_json(finished / "texts" / "replace-2-s1" / "run.json")["engine"]["name"]
    assert engine.startswith("checkpoint:replace-1-nano-56k-d12288-s1")


@pytest.mark.slow
def test_the_report_says_what_was_found_and_can_be_written_again(finished):
    page = (finished / "report.html").read_text()
    assert "<script" not in page and "Figure 5" in page and "Gerstgrasser" in page
    found = read_json(finished / "collapse.json")
    assert found["rounds_finished"] == {"replace": 2, "accumulate": 2}
    assert {test["name"] for test in found["tests"]} >= {"loss_gap", "tail_loss_slope", "types_gap", "tail_mass_slope"}
    beside = {test["name"]: test for test in found["tests"] if test["name"].endswith("_to_control")}
    assert set(beside) == {
        f"{s}_{kind}_to_control" for s in ("loss", "tail_loss") for kind in ("gap", "gap_at_round", "slope")
    }
    table = {(row["regime"], row["round"]): float(row["loss_macro"]) for row in rows(finished)}
    expected = math.log(table["accumulate", "2"] / table["control", "2"])
    assert beside["loss_gap_to_control"]["estimate"] == pytest.approx(expected, rel=1e-12)
    assert "beside natural text alone at the same budget" in page
    for name in ("rounds_loss", "rounds_tail_loss", "rounds_types"):
        for kind in ("png", "svg", "csv"):
            assert (finished / "figures" / f"{name}.{kind}").stat().st_size > 100
    files = ("rounds.csv", "collapse.csv", "report.html")
    before = {name: (finished / name).read_bytes() for name in files}
    for name in files:
        (finished / name).unlink()
    result = subprocess.run(
        [sys.executable, "-m", "lingua_synth", "generations", "report", f"out={finished}"], capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert {name: (finished / name).read_bytes() for name in files} == before


@pytest.mark.slow
def test_killed_at_any_stage_it_ends_with_the_same_rounds(finished, documents, tmp_path):
    out = tmp_path / "killed"
    words = [*WORDS, "rounds=1", "regimes=[replace]", "generator=nano-56k"]
    # While the first models train, while one writes, when its text is there, while the next one trains.
    signs = ("runs/natural-*/checkpoints/*", "texts/shared-1-s1/run.json", "tokens/shared-1-s1/*", "runs/replace-1-*")
    for sign in signs:
        process = subprocess.Popen(
            command(out, documents, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        while not list(out.glob(sign)) and process.poll() is None:
            assert time.monotonic() < deadline, f"{sign} did not appear"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "runs" / "replace-1-nano-27k-d12288-s1" / "result.json").exists()
    result = run(out, documents, *words)
    assert result.returncode == 0, result.stderr[-3000:]
    # Texts are compared at the tokens of the smallest, and there are fewer of them here.
    kept = [name for name in rows(out)[0] if not name.startswith("text_")]
    there = [row for row in rows(finished) if row["regime"] == "replace" and row["round"] != "2"]
    assert [[row[name] for name in kept] for row in rows(out)] == [[row[name] for name in kept] for row in there]


@pytest.mark.slow
def test_too_little_natural_text_is_said_before_anything_is_trained(documents, tmp_path):
    result = run(tmp_path / "g", documents, *SIZES, "budget=2097152")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert re.search(r"the natural text makes [\d,]+ once: it is too small", result.stderr)
    assert not (tmp_path / "g" / "runs").exists()
