"""The mock engine's faults: the asked share, the same requests whatever the order, and said in every record."""

import collections
import json

import pytest

from lingua_synth.documents import Document
from lingua_synth.generate import Failure, Request, Sampling, build_engine, generate, load_recipe, verify
from lingua_synth.generate.command import main

FAULTS = {"fail": 0.1, "empty": 0.1, "refuse": 0.1, "repeat": 0.1, "echo": 0.1}


def kind(outcome):
    if isinstance(outcome, Failure):
        assert outcome.error == "the mock engine was told to fail at this rate"
        return "fail"
    words = outcome.text.rstrip(".").split(". ")
    if outcome.text == "":
        return "empty"
    if outcome.text.startswith("I'm sorry"):
        return "refuse"
    if outcome.text.startswith("Rewrite number"):
        return "echo"
    if len(words) == 20 and len(set(words)) == 1:
        assert (outcome.output_tokens, outcome.finish_reason) == (200, "length")
        return "repeat"
    assert (outcome.output_tokens, outcome.finish_reason) == (120, "stop") and len(set(words)) == 12
    return "well"


def asked(count):
    for i in range(count):
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": f"Rewrite number {i}"}]
        yield Request(f"k{i}", messages, Sampling(0.7, 0.95, 200), seed=i)


def test_every_kind_comes_at_its_rate_and_by_the_seed_alone():
    outcomes = {one.key: one for one in build_engine("mock", faults=FAULTS).run(asked(4000))}
    counts = collections.Counter(map(kind, outcomes.values()))
    # Of 4,000 at 0.1: four standard deviations are 76.
    assert all(abs(counts[one] - 400) < 76 for one in FAULTS) and sum(counts.values()) == 4000
    again = build_engine("mock", faults=FAULTS, window=1).run(iter([*asked(4000)][::-1]))
    assert {one.key: one for one in again} == outcomes


def test_a_rate_of_one_is_all_and_a_second_attempt_has_another_seed():
    assert {kind(one) for one in build_engine("mock", faults={"refuse": 1.0}).run(asked(50))} == {"refuse"}
    engine = build_engine("mock", faults={"empty": 0.5})
    request = next(asked(1))
    texts = [
        next(engine.run(iter([Request("k", request.prompt, request.sampling, seed=seed)]))).text for seed in range(20)
    ]
    assert 0 < texts.count("") < 20


def test_the_faults_are_in_every_record_and_the_run(tmp_path):
    engine = build_engine("mock", faults={"fail": 0.02, "repeat": 0.3})
    documents = [Document(f"d{i}", f"Text {i}.") for i in range(200)]
    summary = generate(documents, tmp_path, load_recipe("hq"), engine, max_failure_rate=0.5, progress=False)
    assert 0 < summary.failed < 20 and summary.records + summary.failed + sum(summary.filtered.values()) == 200
    rows = [json.loads(line) for path in tmp_path.glob("documents-*.jsonl") for line in path.read_text().splitlines()]
    assert {row["meta"]["synth"]["generator"] for row in rows} == {"mock:fail=0.02:repeat=0.3"}
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["engine_description"] == {"mock": True, "faults": {"fail": 0.02, "repeat": 0.3}}
    assert verify(tmp_path) == []
    with pytest.raises(ValueError, match=r"engine.name: 'mock:fail=0.02:repeat=0.3' there, 'mock' now"):
        generate(documents, tmp_path, load_recipe("hq"), build_engine("mock"), progress=False)


def test_faults_are_asked_for_on_the_command_line(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": f"Text {i}."}) + "\n" for i in range(20)))
    words = ["recipe=hq", f"documents={tmp_path}/in.jsonl", f"out={tmp_path}/out", "engine=mock", "progress=false"]
    assert main([*words, "faults.refuse=1"]) == 0
    assert "mock:refuse=1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"explode": 0.1}, "has no fault 'explode'; it has fail, empty, refuse, repeat, echo"),
        ({"fail": 1.5}, "faults.fail is a share of the requests, between 0 and 1; got 1.5"),
        ({"fail": 0.7, "echo": 0.7}, "the shares of all faults together are at most 1; got 1.4"),
    ],
)
def test_faults_that_cannot_be_are_refused(faults, words):
    with pytest.raises(ValueError) as refused:
        build_engine("mock", faults=faults)
    assert words in str(refused.value)
