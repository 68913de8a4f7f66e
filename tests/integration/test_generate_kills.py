"""Twenty kills over thousands of books: nothing lost, nothing doubled, little written twice."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lingua_synth.documents import Document, write_documents
from lingua_synth.generate import verify
from lingua_synth.generate.journal import COMMIT_RECORDS

NUM_DOCUMENTS = 5000
NUM_KILLS = 20
WINDOW = 64
NUM_CHAPTERS = 10

WRITING = """
import os, sys
from lingua_synth.generate import Failure, Generation, generate
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.recipe import recipe_from

TEXT = " ".join(f"Sentence {i} has some words." for i in range(12))
BOOK = {
    "name": "book", "version": 1, "description": "Ten chapters.", "assign": {"audience": ["a", "b", "c", "d"]},
    "steps": [
        {"name": "outline", "user": "Outline {document} for {audience}.", "parse": "items",
         "gate": {"min_items": 8, "max_items": 10, "retries": 2}},
        {"name": "chapter", "for_each": "outline", "user": "{item_number} of {outline} for {audience}.",
         "filters": [{"name": "repetition"}]},
    ],
}

class Counting(MockEngine):
    '''Writes a byte for everything it generates, whatever becomes of it; some chapters fail.'''

    def _outcome(self, request, num_outcomes):
        os.write(counter, b".")
        prompt = request.prompt[0]["content"]
        if prompt.startswith("Outline"):
            text = "\\n".join(f"{k}. Part {k} of {request.seed}" for k in range(1, 11))
        elif request.seed % 97 == 0:
            return Failure(request.key, "injected")
        else:
            text = f"{request.key} {TEXT}"
        return Generation(request.key, text, 20, 60, "stop")

counter = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
summary = generate(sys.argv[1], sys.argv[2], recipe_from(BOOK), Counting(window=int(sys.argv[4])), shard_size=100,
                   max_failure_rate=0.5, progress=False, lease_s=30.0)
print(summary.is_complete)
"""


def start(corpus, out, counter):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", WRITING, str(corpus), str(out), str(counter), str(WINDOW)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_twenty_kills_over_five_thousand_books(tmp_path):
    corpus, out, counter = tmp_path / "corpus.jsonl", tmp_path / "out", tmp_path / "counter"
    write_documents(corpus, (Document(f"d{i}", f"Text {i} of a corpus.") for i in range(NUM_DOCUMENTS)))
    counter.touch()
    moments = random.Random(11)
    at_work = []
    for kill in range(NUM_KILLS):
        # Two at work for half of the kills, in turn the older and the newer one killed.
        while len(at_work) < 1 + (kill % 4 >= 2):
            at_work.append(start(corpus, out, counter))
        before = counter.stat().st_size
        while counter.stat().st_size < before + 300 and any(one.poll() is None for one in at_work):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.25))
        victim = at_work.pop(kill % len(at_work))
        victim.send_signal(signal.SIGKILL)
        assert victim.wait(10) == -signal.SIGKILL, f"finished before kill {kill}"
    said = [one.communicate(timeout=300)[0].strip() for one in at_work]
    if "True" not in said:
        last = start(corpus, out, counter)
        assert last.communicate(timeout=300)[0].strip() == "True" and last.returncode == 0

    assert verify(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"] == NUM_DOCUMENTS and manifest["failed"] > 100
    assert manifest["records"] + manifest["failed"] == NUM_DOCUMENTS * NUM_CHAPTERS
    assert manifest["steps"] == NUM_DOCUMENTS
    chapters = collections.Counter()
    for path in out.glob("documents-*.jsonl"):
        for line in path.read_text().splitlines():
            synth = json.loads(line)["meta"]["synth"]
            chapters[synth["source_id"], synth["item"]] += 1
    assert len(chapters) == manifest["records"] and set(chapters.values()) == {1}
    # Written twice: what had left the engine and was not on the disk when a kill came, and failures of open shards,
    # which are tried again.
    again = counter.stat().st_size - NUM_DOCUMENTS * (1 + NUM_CHAPTERS)
    per_kill = COMMIT_RECORDS + WINDOW + 2 * 100 * NUM_CHAPTERS // 97 + 20
    assert 0 < again <= NUM_KILLS * per_kill
