"""Generation on a bad day, through the command line: odd documents, servers that fail in every way, models that do not
do as they are told, a disk that fills up, and two runs that want one folder."""

import contextlib
import http.server
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

pytest.importorskip("aiohttp")

from lingua_synth.documents import Document, read_documents, write_documents
from lingua_synth.files import read_json

KEY = "sk-secret-0123456789"
RECIPE = """
name: bad_day
version: 1
description: What a bad day leaves.
citation: Made for this test.
steps:
  - name: rewrite
    prompt: chat
    system: Write with care and answer in full.
    user: |-
      Rewrite what follows in your own words and at full length, and leave nothing of what it says out of your answer:
      {document}
    max_input_tokens: 2000
    sampling: {temperature: 0.7, top_p: 0.95, max_tokens: 600}
    filters:
      - {name: refusal, action: drop}
      - {name: prompt_echo, action: drop}
      - {name: repetition, action: drop}
      - {name: copy, action: drop}
"""
GOOD = " ".join(f"The {i}th sentence of an answer has its own words, as {i * i} of them." for i in range(12))
WORDS = " ".join(f"word{i}" for i in range(80))
ODD = {
    "braces": "{document} {} }{ {{outline}} {0} %s $x ${y}",
    "controls": "a\x00b\x07c\x1b[31md\u202e\ufeff\u2028e\r\n\tf",
    "long": "x" * 1_000_000,
    "sentences": "A sentence of seven words ends here. " * 27_000,
    "chinese": "\u4f60\u597d\uff0c\u4e16\u754c\u3002" * 900,
    "arabic": "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645. " * 300,
    "emoji": "\U0001f600\U0001f1e9\U0001f1ea" * 300,
}
# By the words of a document: what the model makes of it, and what becomes of that.
TEXTS = {
    "refuse": ("I'm sorry, but I can't help with that request. " + GOOD, "refusal"),
    "echo": (
        "Rewrite what follows in your own words and at full length, and leave nothing out. " + GOOD,
        "prompt_echo",
    ),
    "repeat": ("and again the same words " * 60, "repetition"),
    "copy": (None, "copy"),
    "nothing": ("", "empty"),
    "controls out": ("\x00\x07\x1b[31m \ud800 " + GOOD, None),
    "well": (GOOD, None),
}
# What a server does with the first attempt of such a document.
FIRST_ATTEMPTS = ("429", "500", "garbage", "half", "reset", "never")


class Model(http.server.BaseHTTPRequestHandler):
    """A chat server that knows what to do by the words that a document begins with."""

    protocol_version = "HTTP/1.1"
    attempts: Counter
    prompts: list
    dies_after: int | None = None

    def do_GET(self):
        self.answer(200, b'{"data": []}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][-1]["content"].split(":\n", 1)[1]
        self.prompts.append((self.headers["Authorization"], said))
        first = said.split(" ", 1)[0]
        self.attempts[said] += 1
        if self.dies_after is not None and len(self.prompts) > self.dies_after:
            self.abort()
        elif first == "refused":
            self.answer(400, f"no, {self.headers['Authorization']}".encode())
        elif first in FIRST_ATTEMPTS and self.attempts[said] == 1:
            self.fail(first)
        else:
            text, _ = next((value for kind, value in TEXTS.items() if said.startswith(f"{kind}:")), TEXTS["well"])
            message = {"role": "assistant", "content": said if text is None else text}
            choice = {"message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 99, "completion_tokens": 200}
            self.answer(200, json.dumps({"choices": [choice], "usage": usage}).encode())

    def fail(self, how):
        if how in ("429", "500"):
            self.answer(int(how), b"busy")
        elif how == "garbage":
            self.answer(200, b"<html>\xff\xfe not JSON")
        elif how == "half":
            self.send_response(200)
            self.send_header("Content-Length", "999")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.wfile.flush()
            self.abort()
        elif how == "reset":
            self.abort()
        else:
            time.sleep(4)  # longer than the client waits
            self.close_connection = True

    def abort(self):
        # With this option a close is a reset: no farewell, as from a process that was killed.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def answer(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def model_server(dies_after=None):
    """A server's handler class, with what it saw, and its address."""

    class Quiet(http.server.ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, request, client_address):
            pass

    handler = type("Handler", (Model,), {"attempts": Counter(), "prompts": [], "dies_after": dies_after})
    server = Quiet(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def command(*words):
    return [sys.executable, "-m", "lingua_synth", "generate", *map(str, words), "progress=false"]


def run(*words, **options):
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=180, **options)


def lines(folder, kind):
    return [json.loads(line) for path in sorted(folder.glob(f"{kind}-*.jsonl")) for line in open(path, "rb")]


def verified(folder):
    done = subprocess.run(
        [sys.executable, "-m", "lingua_synth", "generate", "verify", f"out={folder}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode == 0, done.stdout


def test_every_document_ends_in_one_place_whatever_it_is_and_whoever_answers(tmp_path):
    documents = [Document(name, text) for name, text in ODD.items()]
    documents += [Document(f"{kind} {i}", f"{kind}: number {i}. {WORDS}") for kind in TEXTS for i in range(4)]
    documents += [Document(f"{how} {i}", f"{how} number {i}") for how in FIRST_ATTEMPTS for i in range(3)]
    documents += [Document(f"refused {i}", f"refused number {i}") for i in range(2)]
    source, recipe, out = tmp_path / "in.jsonl", tmp_path / "bad_day.yaml", tmp_path / "out"
    write_documents(source, documents)
    # Lines that are no documents: half a pair of surrogates, none at all, half a line.
    source.write_bytes(source.read_bytes() + b'{"id": "half", "text": "\\ud800 half a pair"}\n\n{"text": 5}\n{"te\n')
    recipe.write_text(RECIPE)
    with model_server() as (well, address), model_server(dies_after=10) as (dying, second):
        gone = socket.socket()
        gone.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        servers = f"{address},{second},http://127.0.0.1:{gone.getsockname()[1]}/v1"
        words = [f"recipe={recipe}", f"documents={source}", f"out={out}", "engine=openai", "model=m"]
        words += [f"base_url={servers}", "timeout_s=2", "max_in_flight=16", "max_retries=8"]
        words += ["max_reject_rate=0.2", "max_failure_rate=0.2"]
        done = run(*words, env={**os.environ, "OPENAI_API_KEY": KEY})
        gone.close()
    assert done.returncode == 0, done.stderr[-3000:]

    ok, said = verified(out)
    assert ok, said
    kept = {row["meta"]["synth"]["source_id"]: row["text"] for row in lines(out, "documents")}
    filtered = {row.get("source_id") or row["meta"]["synth"]["source_id"]: row for row in lines(out, "filtered")}
    failed = {row["source_id"]: row["error"] for row in lines(out, "failed")}
    expected = {f"{kind} {i}": name for kind, (_, name) in TEXTS.items() if name for i in range(4)}
    assert {name: row["filter"] for name, row in filtered.items()} == expected
    assert set(failed) == {"refused 0", "refused 1"} and all(": 400 no, Bearer ***" in one for one in failed.values())
    assert sorted([*kept, *filtered, *failed]) == sorted(document.id for document in documents)
    rejected = {"lone surrogate": 1, "blank line": 1, "text is not a string": 1, "not JSON": 1}
    assert read_json(out / "rejects.json") == rejected
    assert all("\ud800" not in text for text in kept.values()) and "\x1b[31m" in kept["controls out 0"]

    prompts = [*well.prompts, *dying.prompts]
    assert {key for key, _ in prompts} == {f"Bearer {KEY}"}
    assert len(dying.prompts) > 10, "it was asked again after its death"
    texts = {text for _, text in prompts}
    assert ODD["braces"] in texts and ODD["controls"] in texts, "letter for letter"
    assert max(map(len, texts)) <= 8000 and any(text.startswith("xxx") for text in texts)  # 2,000 tokens of 4 letters
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in done.stdout + done.stderr and KEY.encode() not in written


def plain_documents(path, count=200):
    write_documents(path, (Document(f"d{i}", f"Document {i}. " + "Words of it. " * 30) for i in range(count)))
    return path


def test_a_disk_that_is_full_ends_the_run_in_words_and_the_next_one_goes_on(tmp_path):
    source, out = plain_documents(tmp_path / "in.jsonl"), tmp_path / "out"
    words = ["recipe=hq", f"documents={source}", f"out={out}", "engine=mock", "shard_size=50"]

    def small_files():
        # Python ignores the signal, so that a write past the limit is an error, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run(*words, preexec_fn=small_files)
    assert done.returncode == 1 and "File too large" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (out / "manifest.json").exists() and not list(out.glob("documents-*"))
    done = run(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    ok, said = verified(out)
    assert ok, said
    assert len({document.meta["synth"]["source_id"] for document in read_documents(str(out))}) == 200


def both(first, second):
    """Two commands started together: their exit codes and what they said."""
    started = [
        subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for words in (first, second)
    ]
    return [(*one.communicate(timeout=180), one.returncode) for one in started]


def test_two_equal_runs_started_together_share_the_work(tmp_path):
    source, out = plain_documents(tmp_path / "in.jsonl", 600), tmp_path / "out"
    words = ["recipe=hq", f"documents={source}", f"out={out}", "engine=mock", "shard_size=20"]
    ended = both(words, words)
    assert [code for *_, code in ended] == [0, 0], ended
    ok, said = verified(out)
    assert ok, said
    manifest = read_json(out / "manifest.json")
    assert manifest["records"] + sum(manifest["filtered"].values()) + manifest["failed"] == 600


def test_of_two_different_runs_started_together_one_is_refused(tmp_path):
    source, out = plain_documents(tmp_path / "in.jsonl", 300), tmp_path / "out"
    words = ["recipe=hq", f"documents={source}", f"out={out}", "engine=mock", "shard_size=20"]
    ended = both([*words, "seed=1"], [*words, "seed=2"])
    assert sorted(code for *_, code in ended) == [0, 2], ended
    (refused,) = [error for _, error, code in ended if code == 2]
    assert "seed" in refused and "Traceback" not in refused
    ok, said = verified(out)
    assert ok, said
