"""A study under two tokenizers: shards of the same documents, equal text by source, one table, one comparison."""

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
from texts import make_documents

from lingua_synth.config import build_args, dump_args
from lingua_synth.documents import write_documents
from lingua_synth.files import read_json, write_json
from lingua_synth.model.counts import flops_per_token
from lingua_synth.scaling import load_runs
from lingua_synth.study import StudyArgs, plan_study
from lingua_synth.study.args import parse_study
from lingua_synth.study.calibrate import CalibrateArgs, calibrate
from lingua_synth.study.command import main
from lingua_synth.study.matching import in_decimals, match_budget, share_of_bytes, share_of_tokens
from lingua_synth.study.overview import overview, run_row
from lingua_synth.study.tokenizing import tokenize_study
from lingua_synth.train import train

SOURCES = {"natural": (0, 300, "abcdefgh"), "synthetic": (1, 300, "ijklmnop")}
MIXTURES = ("natural", "third")
DOMAINS = {"near": (2, 12, "abcdefgh"), "far": (3, 12, "ijklmnop")}


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """Documents, and a study whose shards were made of them: pieces are of the natural source, so synthetic text takes
    more of them."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, (seed, count, alphabet) in (SOURCES | DOMAINS).items():
        write_documents(folder / f"{name}.jsonl", make_documents(seed, count, alphabet))
    study = {
        "out": str(folder / "study"),
        "sizes": ["nano-27k"],
        "budgets": [1024, 2048],
        "tokenizers": {
            "bytes": {"name": "bytes"},
            "sp": {"name": "sp", "path": str(folder / "sp.model"), "vocab_size": 320},
        },
        "mixtures": {
            "natural": {"ratios": {"natural": "1"}},
            "third": {"ratios": {"natural": "2/3", "synthetic": "1/3"}},
        },
        "sources": {
            name: {"path": str(folder / "shards" / "{tokenizer}" / name), "documents": str(folder / f"{name}.jsonl")}
            for name in SOURCES
        },
        "domain_documents": {name: str(folder / f"{name}.jsonl") for name in DOMAINS},
        "train": {
            "data": {"seq_len": 32, "batch_size": 2},
            "optim": {"warmup": 1},
            "checkpoint": {"dump": {"every": 0}},
            "synth": {
                "global_batch_tokens": 64,
                "device": "cpu",
                "evaluation": {
                    "max_bytes_per_domain": 600,
                    "domains": {name: str(folder / "shards" / "{tokenizer}" / name) for name in DOMAINS},
                },
            },
        },
    }
    made = list(tokenize_study(build_args(StudyArgs, ("the test", study)), progress=False))
    return study, made


@pytest.fixture
def study(tokenized, tmp_path):
    def build(*overrides):
        return build_args(StudyArgs, tokenized[0], {"out": str(tmp_path / "study")}, *overrides)

    return build


def manifest(study, tokenizer, name):
    return read_json(study.sources[name].path.replace("{tokenizer}", tokenizer) + "/manifest.json")


def rate(study, tokenizer, name):
    found = manifest(study, tokenizer, name)
    return Fraction(found["bytes"], found["tokens"])


# --- arithmetic ---


def test_shares_of_the_text_are_kept_to_a_billionth():
    theirs = {"a": Fraction(4), "b": Fraction(36, 10)}
    ours = {"a": Fraction(3), "b": Fraction(3)}
    shares = share_of_tokens({"a": Fraction(2, 3), "b": Fraction(1, 3)}, theirs, ours)
    assert sum(shares.values()) == 1
    exact = Fraction(2, 3) * 4 / (Fraction(2, 3) * 4 + Fraction(1, 3) * Fraction(36, 10))
    assert share_of_bytes({"a": Fraction(2, 3), "b": Fraction(1, 3)}, theirs)["a"] == exact
    assert abs(shares["a"] - exact) <= Fraction(1, 2 * 10**9) and Fraction(in_decimals(shares["a"])) == shares["a"]
    assert share_of_tokens({"a": Fraction(1)}, theirs, ours) == {"a": 1} and in_decimals(Fraction(1)) == "1"
    # What is read is read, however little of it.
    tiny = share_of_tokens({"a": 1 - Fraction(1, 10**12), "b": Fraction(1, 10**12)}, theirs, ours)
    assert tiny == {"a": 1 - Fraction(1, 10**9), "b": Fraction(1, 10**9)}
    assert share_of_tokens({"a": Fraction(1), "b": Fraction(0)}, theirs, ours) == {"a": 1, "b": 0}


@pytest.mark.parametrize("asked", [1, 99, 150, 151, 10**13 + 7])
def test_a_budget_is_met_to_half_a_step(asked):
    found = match_budget(Fraction(asked), lambda tokens: Fraction(tokens) * 3, 33)
    assert found.tokens % 33 == 0 and found.tokens >= 33
    assert abs(found.tokens * 3 - asked) <= Fraction(33 * 3, 2) or found.tokens == 33
    assert found.deviation == pytest.approx(found.tokens * 3 / asked - 1)


# --- the plan ---


def test_the_same_text_under_both(study):
    runs = {run.run_id: run for run in plan_study(study())}
    names = [f"{m}-nano-27k-d{d}-s42-{t}" for m in MIXTURES for d in (1024, 2048) for t in ("bytes", "sp")]
    assert sorted(runs) == sorted(names)
    for mixture in ("natural", "third"):
        for budget in (1024, 2048):
            first, other = (runs[f"{mixture}-nano-27k-d{budget}-s42-{name}"] for name in ("bytes", "sp"))
            assert first.tokens == budget and first.deviation == 0 and other.tokens < budget
            # Within half a step of the other's tokens, and each source within a sequence beside.
            step = 64 * max(rate(study(), "sp", name) for name in SOURCES)
            assert abs(other.training_bytes - first.training_bytes) <= step / 2 + 32 * step / 64
            assert other.deviation == pytest.approx(other.training_bytes / first.training_bytes - 1, abs=0.04)
            read = {run.tokenizer: {need.name: need.bytes for need in run.needs} for run in (first, other)}
            for name, count in read["bytes"].items():
                assert count == round({n.name: n.tokens for n in first.needs}[name] * rate(study(), "bytes", name))
                # Two roundings to whole sequences of 32 tokens.
                assert (
                    abs(read["sp"][name] / other.training_bytes - count / first.training_bytes)
                    < 2 * step / 64 * 32 / budget
                )
    third = runs["third-nano-27k-d2048-s42-sp"].args.synth
    assert (third.tokenizer, third.sources["natural"].path[-10:]) == ("sp", "sp/natural")
    assert third.evaluation.domains["near"].endswith("/sp/near")
    # Synthetic text takes more pieces, so its share of the tokens is larger than of the text.
    exact = share_of_tokens(
        {"natural": Fraction(2, 3), "synthetic": Fraction(1, 3)},
        *({name: rate(study(), tokenizer, name) for name in SOURCES} for tokenizer in ("bytes", "sp")),
    )
    assert Fraction(third.sources["synthetic"].ratio) == exact["synthetic"] > Fraction(1, 3)
    vocab = {run.tokenizer: run.resolved.model.vocab_size for run in runs.values()}
    assert vocab == {"bytes": 258, "sp": 320}
    for run in runs.values():
        assert run.flops == run.tokens * flops_per_token(run.resolved.model, 32)


def test_matched_in_tokens_and_in_flops(study):
    runs = {run.run_id: run for run in plan_study(study({"match": "tokens", "match_shares": "tokens"}))}
    assert {run.tokens for run in runs.values()} == {1024, 2048}
    assert runs["third-nano-27k-d1024-s42-sp"].args.synth.sources["synthetic"].ratio == "1/3"
    runs = {run.run_id: run for run in plan_study(study({"match": "flops"}))}
    first, other = (runs[f"third-nano-27k-d2048-s42-{name}"] for name in ("bytes", "sp"))
    per_step = other.flops // other.steps
    assert abs(first.flops - other.flops) <= per_step / 2
    assert other.deviation == pytest.approx(other.flops / first.flops - 1)


def test_axes_rules_and_settings_by_tokenizer(study):
    changed = study(
        {
            "grids": {"both": {}, "bytes only": {"tokenizers": ["bytes"], "budgets": [4096]}},
            "exclude": {"few": {"tokenizer": ["sp"], "budget": [1024]}},
            "overrides": {"long": {"tokenizer": ["sp"], "train": {"optim": {"lr": 0.5}}}},
        },
        {"tokenizers": {"sp": {"train": {"data": {"seq_len": 16}, "synth": {"global_batch_tokens": 32}}}}},
    )
    runs = {run.run_id: run for run in plan_study(changed)}
    assert sorted(runs) == sorted(
        [f"{m}-nano-27k-d{d}-s42-bytes" for m in ("natural", "third") for d in (1024, 2048, 4096)]
        + [f"{m}-nano-27k-d2048-s42-sp" for m in ("natural", "third")]
    )
    sp, plain = runs["third-nano-27k-d2048-s42-sp"], runs["third-nano-27k-d2048-s42-bytes"]
    assert (sp.args.data.seq_len, sp.args.optim.lr) == (16, 0.5) and plain.args.data.seq_len == 32
    assert abs(sp.training_bytes / plain.training_bytes - 1) < 0.02


def test_the_plan_shows_both_shares(study, tmp_path):
    plan = overview(study())
    shares = {(line.mixture, line.tokenizer, line.source): line for line in plan.shares}
    assert shares["third", "sp", "synthetic"].of_tokens > shares["third", "bytes", "synthetic"].of_tokens
    assert shares["third", "sp", "synthetic"].of_bytes == pytest.approx(
        shares["third", "bytes", "synthetic"].of_bytes, abs=0.03
    )
    said = str(plan)
    assert "equal under every tokenizer: bytes" in said and "of the tokens  of the text" in said
    assert "one optimizer step holds other amounts of text by tokenizer" in said
    assert {line.tokenizer for line in plan.sources} == {"bytes", "sp"}
    assert any("(sp)" in name for entry in plan.conditioning for name in entry.mixtures)
    row = run_row(plan.runs[0])
    assert row["tokenizer"] in ("bytes", "sp") and row["training_bytes"] == plan.runs[0].training_bytes
    plan.write(tmp_path)
    assert read_json(tmp_path / "plan.json")["tokenizers"][1]["vocab_size"] == 320


def test_a_draft_is_planned_with_declared_rates(study, tmp_path):
    draft = {
        "sources": {name: {"path": str(tmp_path / "{tokenizer}" / name), "tokens": "1M"} for name in SOURCES},
        "tokenizers": {
            "bytes": {"vocab_size": 258, "bytes_per_token": {"natural": 1, "synthetic": 1}},
            "sp": {"bytes_per_token": {"natural": 2.5, "synthetic": 2}},
        },
    }
    runs = {run.run_id: run for run in plan_study(study(draft), draft=True)}
    other = runs["third-nano-27k-d2048-s42-sp"]
    assert Fraction(other.args.synth.sources["synthetic"].ratio) == pytest.approx(
        Fraction(1, 6) / (Fraction(1, 6) + Fraction(2, 3) / Fraction(5, 2))
    )
    assert other.training_bytes == pytest.approx(2048, abs=64 * 2.5)
    natural = next(need for need in other.needs if need.name == "natural")
    assert natural.epochs == pytest.approx(natural.tokens / 400_000, rel=0.01)
    del draft["tokenizers"]["sp"]["bytes_per_token"]["synthetic"]
    with pytest.raises(ValueError, match=r"how much text a token of source 'synthetic' is under the tokenizer 'sp'"):
        plan_study(study(draft), draft=True)


def test_speeds_are_measured_under_the_first_tokenizer_and_priced_under_all(study):
    priced = {run.run_id: run for run in plan_study(study({"calibrate": "nano-27k:1000"}))}
    first, other = (priced[f"natural-nano-27k-d2048-s42-{name}"] for name in ("bytes", "sp"))
    assert first.gpu_hours == pytest.approx(2048 / 1000 / 3600)
    # The same FLOP/s under the other, whose tokens cost more.
    assert other.gpu_hours / first.gpu_hours == pytest.approx(other.flops / first.flops)
    with pytest.raises(ValueError, match="measured under the study's first tokenizer, bytes, and no run has it"):
        calibrate(study({"grids": {"one": {"tokenizers": ["sp"]}}}), CalibrateArgs())


def test_a_ladder_has_a_trunk_for_each_tokenizer(study):
    wsd = {"scheduler": "wsd", "decay_fraction": 0.25, "lr_min_ratio": 0.0}
    ladder = {"grids": {"wsd": {"ladder": True}}, "train": {"optim": wsd, "synth": {"decay": "linear"}}}
    runs = {run.run_id: run for run in plan_study(study(ladder))}
    assert len(runs) == 8
    branch = runs["third-nano-27k-d1024-s42-sp-wsd"]
    assert branch.after == ("third-nano-27k-d2048-s42-sp-wsd",)


LATE = {"stages": {"a": {"ratios": {"natural": "1"}, "until": "1/2"}, "b": {"ratios": {"synthetic": "1"}}}}


def test_shares_that_change_are_matched_in_bytes_of_the_whole_run(study):
    runs = {run.run_id: run for run in plan_study(study({"mixtures": {"late": LATE}, "match_shares": "tokens"}))}
    first, other = (runs[f"late-nano-27k-d2048-s42-{name}"] for name in ("bytes", "sp"))
    assert (
        abs(other.training_bytes - first.training_bytes) <= 64 * 3
        and other.args.synth.stages == first.args.synth.stages
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"match": "steps"}, "match is bytes, tokens or flops"),
        ({"mixtures": {"late": LATE}}, "shares that change over training are not matched as shares of the text"),
        ({"grids": {"x": {"tokenizers": ["tiktoken"]}}}, "grids.x.tokenizers names 'tiktoken'; the study has: bytes"),
        ({"tokenizers": {"sp": {"name": "tiktoken"}}}, r"tokenizers\.sp\.name is tiktoken, and the shards in"),
        ({"tokenizers": {"sp": {"sources": {"web": "x"}}}}, r"tokenizers\.sp\.sources names 'web'; there is natural"),
        ({"tokenizers": {"a/b": {"name": "bytes"}}}, "a tokenizer is named without"),
        (
            {"train": {"synth": {"evaluation": {"max_tokens_per_domain": 9}}}},
            "max_tokens_per_domain scores other documents under each tokenizer",
        ),
        ({"train": {"synth": {"match_repetition": 4096}}}, "synth.match_repetition counts tokens of one tokenizer"),
        ({"exclude": {"x": {"tokenizer": ["web"]}}}, r"exclude\.x holds for no cell"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_says_why(study, change, message):
    with pytest.raises(ValueError, match=message):
        plan_study(study(change))


def test_shards_of_other_documents_or_of_one_vocabulary_are_refused(study, tokenized, tmp_path):
    paths = {name: study().sources[name].path.replace("{tokenizer}", "bytes") for name in SOURCES}
    with pytest.raises(ValueError, match="tokenizers 'bytes' and 'sp' are one vocabulary"):
        plan_study(study({"tokenizers": {"sp": {"name": "", "sources": paths}}}))
    found = manifest(study(), "sp", "natural")
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / "manifest.json", found | {"bytes": found["bytes"] - 1})
    with pytest.raises(
        ValueError, match=r"source 'natural' holds other documents under 'bytes' than under 'sp' \(bytes"
    ):
        plan_study(study({"tokenizers": {"sp": {"sources": {"natural": str(tmp_path / "other")}}}}))
    domain = {"tokenizers": {"sp": {"domains": {"near": str(tmp_path / "other")}}}}
    with pytest.raises(ValueError, match="domain 'near' holds other documents under 'bytes' than under 'sp'"):
        plan_study(study(domain))
    gone = {"sources": {"natural": {"path": str(tmp_path / "gone" / "{tokenizer}")}}}
    with pytest.raises(
        ValueError, match=r"source 'natural': no file .*make its shards with `lingua-synth study tokenize`"
    ):
        plan_study(study(gone))
    with pytest.raises(ValueError, match="in it, and the study names no tokenizers"):
        plan_study(build_args(StudyArgs, {key: value for key, value in tokenized[0].items() if key != "tokenizers"}))


def test_shards_are_made_once_from_the_same_documents(tokenized):
    study, made = tokenized
    assert len(made) == 8 and all(one.is_new for one in made)
    by_what = {}
    for one in made:
        by_what.setdefault(one.what, set()).add((one.documents, one.bytes))
    assert all(len(found) == 1 for found in by_what.values())
    again = list(tokenize_study(build_args(StudyArgs, study), progress=False))
    assert [(one.folder, one.tokens) for one in again] == [(one.folder, one.tokens) for one in made]
    assert not any(one.is_new for one in again) and "there already" in str(again[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizers": {"new": {"name": ""}}}, r"tokenizers\.new\.name is not set"),
        ({"tokenizers": {"new": {"name": "sp", "path": "gone.model"}}}, r"set tokenizers\.new\.vocab_size"),
        (
            {"tokenizers": {"new": {"name": "sp", "path": "gone.model", "vocab_size": 300, "learn_from": "web"}}},
            "learned from the documents of 'web', and they are not named",
        ),
        ({"domain_documents": {"web": "x"}}, "domain_documents names 'web', which is no domain"),
        (
            {"tokenizers": {"new": {"name": "bytes"}}, "sources": {"natural": {"documents": ""}}},
            r"there are no shards of 'natural' in .*new/natural, and no documents",
        ),
    ],
)
def test_what_cannot_be_tokenized_says_why(study, change, message):
    with pytest.raises(ValueError, match=message):
        list(tokenize_study(study(change), progress=False))


# --- all of it ---


def test_planned_trained_collected_and_compared(study, tmp_path, capsys):
    asked = study({"seeds": [1, 2], "budgets": [512]})
    dump_args(asked, tmp_path / "study.yaml")
    words = [f"config={tmp_path / 'study.yaml'}"]
    assert main(["tokenize", *words]) == 0
    for run in plan_study(asked):
        train(run.args, progress=False)
    assert main(["collect", *words]) == 0
    runs = load_runs(tmp_path / "study" / "runs.csv")
    assert sorted(runs["tokenizer"].tolist()) == ["bytes"] * 4 + ["sp"] * 4
    assert any("runs of different tokenizers" in note for note in runs.notes)
    planned = {run.run_id: run for run in plan_study(asked)}
    for row in range(len(runs)):
        run = planned[runs["run_id"][row]]
        assert runs["training_bytes"][row] == run.training_bytes and runs["tokens"][row] == run.tokens
    assert len(set(runs["eval_bytes_near"].tolist())) == 1
    for name in ("macro", "near", "far"):
        assert (runs[f"bpb_{name}"] > 0).all()
    domains = (runs["bpb_near"] + runs["bpb_far"]) / 2
    assert runs["bpb_macro"].tolist() == pytest.approx(domains.tolist())
    capsys.readouterr()
    save = tmp_path / "compared.json"
    assert main(["compare-tokenizers", *words, f"save={save}", "tolerance=0.2"]) == 0
    said = capsys.readouterr().out
    assert "does the effect depend on the tokenizer by more than 0.01?" in said
    found = json.loads(save.read_text())
    (interaction,) = found["interactions"]
    bits = {(t, m): runs.select(tokenizer=t, mixture=m)["bpb_macro"] for t in ("bytes", "sp") for m in MIXTURES}
    effects = {t: bits[t, "third"] - bits[t, "natural"] for t in ("bytes", "sp")}
    assert interaction["overall"]["value"] == pytest.approx(float((effects["sp"] - effects["bytes"]).mean()))
    assert math.isfinite(interaction["overall"]["interval"][0])
    # A row that says another tokenizer than the plan is left out.
    result = tmp_path / "study" / "runs" / "third-nano-27k-d512-s1-sp" / "result.json"
    write_json(result, read_json(result) | {"tokenizer": "bytes"})
    assert main(["collect", *words]) == 0
    assert "tokenizer is 'bytes', planned 'sp'" in capsys.readouterr().out


def test_the_example_is_matched(tmp_path):
    config = Path(__file__).parents[2] / "examples" / "configs" / "study_tokenizers.yaml"
    runs = plan_study(parse_study([f"config={config}", f"out={tmp_path}"]), draft=True)
    assert {run.tokenizer for run in runs} == {"sp1k", "sp4k"}
    assert all(abs(run.deviation) < 0.01 for run in runs)
