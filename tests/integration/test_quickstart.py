"""The whole flow, small: every stage real, killed half way, resumed, and equal to an uninterrupted one."""

import csv
import http.server
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from texts import make_documents

from lingua_synth.documents import write_documents
from lingua_synth.files import read_json, write_json

WORDS = ["sizes=[nano-27k]", "budgets=[8192,16384]", "vocab_size=300", "bootstraps=20"]
# What depends on the clock or the folder, not on the run.
CLOCK = {"wall_s", "gpu_hours"}


def command(out, documents, *words):
    return [sys.executable, "-m", "lingua_synth", "quickstart", f"out={out}", f"documents={documents}", *WORDS, *words]


def run(out, documents, *words):
    return subprocess.run(command(out, documents, *words), capture_output=True, text=True, timeout=300)


def rows(out):
    with open(out / "runs.csv", newline="") as file:
        return {row["run_id"]: {k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "mine.jsonl"
    write_documents(path, make_documents(7, 900, words=(40, 120)))
    return path


@pytest.fixture(scope="module")
def finished(documents, tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "whole"
    result = run(out, documents)
    assert result.returncode == 0, result.stderr[-3000:]
    return out


@pytest.mark.slow
def test_every_stage_leaves_its_result(finished):
    table = rows(finished)
    assert len(table) == 8  # one size, two budgets, four mixtures
    for row in table.values():
        assert all(value != "" for value in row.values()), row
        # A uniform guess is 5.7; text of so weak a generator alone ends a little above it after four steps.
        assert 0 < float(row["loss_macro"]) < (5.7 if row["mixture"] == "natural" else 7)
    third = table["synthetic-33-nano-27k-d16384-s42"]
    assert (int(third["tokens_natural"]), int(third["tokens_synthetic"])) == (85 * 128, 43 * 128)  # 128 sequences
    summary = read_json(finished / "synthetic" / "manifest.json")
    assert summary["generator" if "generator" in summary else "engine"]
    page = (finished / "report.html").read_text()
    assert "<script" not in page and "Figure 1" in page
    assert re.search(r"natural-nano-27k-d16384-s42", page), "the page names the generator"
    assert "poor" in page, "the page says how weak the generator is"
    for name in ("fits.json", "finished.json", "stages.json"):
        assert read_json(finished / name)
    assert list((finished / "figures").glob("*.csv"))


@pytest.mark.slow
def test_a_second_call_returns_at_once_and_other_settings_are_refused(finished, documents):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    result = run(finished, documents)
    # At once: no stage is even announced.
    assert result.returncode == 0 and result.stdout.startswith("finished already") and "[1/7]" not in result.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    result = run(finished, documents, "lr=0.1")
    assert result.returncode == 2
    assert "holds a quickstart with other settings (lr: 0.004 there, 0.1 now)" in result.stderr
    # A folder of 0.4.0 knows nothing of keys that came later.
    settings = read_json(finished / "quickstart.json")
    del settings["engine_args"], settings["fold_system"]
    write_json(finished / "quickstart.json", settings)
    assert run(finished, documents).returncode == 0


@pytest.mark.slow
def test_killed_at_any_stage_it_ends_with_the_same_table(finished, documents, tmp_path):
    out = tmp_path / "killed"
    # One kill in each of: the natural runs, generation or what follows it, the mixed runs.
    for sign in ("runs/*/checkpoints/*", "synthetic/run.json", "runs/synthetic-*/checkpoints/*"):
        process = subprocess.Popen(
            command(out, documents), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 200
        while not list(out.glob(sign)) and process.poll() is None:
            assert time.monotonic() < deadline, f"{sign} did not appear"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "finished.json").exists()
        wait_for_workers_to_end(process.pid)
    result = run(out, documents)
    assert result.returncode == 0, result.stderr[-3000:]
    assert rows(out) == rows(finished)


def wait_for_workers_to_end(session):
    """Workers notice within a second that their launcher is gone."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        alive = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.getsid(int(pid)) == session:
                    alive.append(pid)
            except ProcessLookupError:
                continue
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes {alive} outlived their launcher")


@pytest.mark.slow
def test_too_little_text_is_said_before_anything_is_trained(documents, tmp_path):
    result = run(tmp_path / "q", documents, "budgets=[8192,2097152]")
    assert result.returncode == 2
    assert re.search(
        r"the largest budget is 2,097,152 tokens, but the natural documents make [\d,]+ once", result.stderr
    )
    assert "use budgets=[8192]" in result.stderr
    assert not (tmp_path / "q" / "runs").exists()
    result = run(tmp_path / "r", tmp_path / "gone.jsonl")
    assert result.returncode == 2 and "gone.jsonl" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "r").exists()


class Rephraser(http.server.BaseHTTPRequestHandler):
    """A chat server whose answer is the words of the prompt's last line in another order."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"data": [{"id": "tiny"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = body["messages"][-1]["content"].split()[-80:]
        random.Random(body["seed"]).shuffle(words)
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": " ".join(words)}}
        self.answer({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": len(words)}})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.mark.slow
def test_a_real_server_rephrases_instead(tmp_path):
    documents = tmp_path / "few.jsonl"
    write_documents(documents, make_documents(7, 200, words=(40, 120)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rephraser)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        words = ["engine=openai", f"base_url=http://127.0.0.1:{server.server_port}/v1", "model=tiny", "budgets=[8192]"]
        result = run(tmp_path / "q", documents, *words)
    finally:
        server.shutdown()
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(rows(tmp_path / "q")) == 4
    page = (tmp_path / "q" / "report.html").read_text()
    assert "The generator is tiny, through engine openai" in page
    assert "weak generator" not in page
    # The same without a server is known before anything is trained.
    result = run(tmp_path / "dead", documents, *words)
    assert result.returncode == 2 and "127.0.0.1" in result.stderr, result.stderr[-2000:]
    assert not (tmp_path / "dead" / "runs").exists()
