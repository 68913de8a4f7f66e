"""Shares that follow the losses: the rule, the loader's change of ratios, and whole runs, killed and cut into ranks."""

import dataclasses
import math
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from killing import train_and_kill
from mixture_doubles import BASE, ArraySource

from lingua_synth.config import build_args, dump_args
from lingua_synth.hosts.plain import refuse_impossible
from lingua_synth.mixture import Mixture, MixtureLoader
from lingua_synth.mixture.feedback import Feedback, FeedbackRule, rounded_loss
from lingua_synth.study import StudyArgs, plan_study
from lingua_synth.tokens import TokenSource
from lingua_synth.train import train
from lingua_synth.train.metrics import read_metrics

F = Fraction


def rule(interval=1000, step_size="1", min_ratio="1/100", **reference):
    return FeedbackRule(interval, {name: F(str(loss)) for name, loss in reference.items()}, F(step_size), F(min_ratio))


# --- the rule ---


def test_the_rule_is_that_of_the_paper():
    """Against its formula in floats: exponents of excess losses, then the floor; and shares by largest remainder."""
    feedback = Feedback(
        rule(a=2, b=1, c=3, step_size="1/2", min_ratio="0.02"), {"a": F(1, 2), "b": F(1, 3), "c": F(1, 6)}, None
    )
    assert feedback.sequences == {"a": 500, "b": 333, "c": 167}
    share = np.array([1 / 2, 1 / 3, 1 / 6])
    for losses in ([2.5, 3.0, 2.0], [2.25, 1.5, 3.125], [1.0, 1.0, 1.0]):
        feedback.observe({n: (loss * 64, 64) for n, loss in zip("abc", losses, strict=True)})
        decided = feedback.decide(None)
        share = share * np.exp(np.maximum(np.array(losses) - [2, 1, 3], 0) / 2)
        share = 0.94 * share / share.sum() + 0.02
        assert [float(t) for t in feedback.targets.values()] == pytest.approx(share.tolist(), rel=1e-14)
        assert sum(feedback.sequences.values()) == 1000 and sum(decided.values()) == 1
        assert all(abs(feedback.sequences[n] - 1000 * s) < 1 for n, s in zip("abc", share, strict=True))
        assert decided == {n: F(count, 1000) for n, count in feedback.sequences.items()}


def test_any_step_size_gives_shares():
    for step_size in ("1000000000", "1/1000000000"):
        feedback = Feedback(rule(a=0, b=0, step_size=step_size), {"a": F(1, 2), "b": F(1, 2)}, None)
        for _ in range(3):
            feedback.observe({"a": (900.0, 100), "b": (100.0, 100)})
            feedback.decide(None)
        assert feedback.sequences == ({"a": 990, "b": 10} if step_size == "1000000000" else {"a": 500, "b": 500})


def test_losses_are_rounded_before_anything_is_decided():
    assert rounded_loss(3 * 2.0, 3) == 2 and rounded_loss(1.0, 3) == F(341, 1024) and rounded_loss(0, 0) is None
    decisions = []
    for noise in (0.0, 1e-9, -1e-9):
        feedback = Feedback(rule(a=0, b=0), {"a": F(1, 2), "b": F(1, 2)}, None)
        feedback.observe({"a": ((2 + noise) * 100, 100), "b": ((1 - noise) * 100, 100)})
        decisions.append((feedback.decide(None), feedback.targets))
    assert decisions[0] == decisions[1] == decisions[2]


def test_the_order_of_the_sources_plays_no_part():
    names = list("abcdefg")
    results = []
    for order in (names, names[::-1]):
        feedback = Feedback(rule(**dict.fromkeys(order, 0)), {n: F(1, 7) for n in order}, None)
        feedback.observe({n: (1 + ord(n) / 7, 1) for n in order})
        feedback.decide(None)
        results.append((feedback.targets, feedback.sequences))
    assert results[0] == results[1]


def test_a_source_gives_what_it_has_left_and_the_others_share_the_rest():
    one = rule(interval=100, a=0, b=0, c=0)
    targets = {"a": 0, "b": 0, "c": 0} | Feedback(one, {"a": F(1, 2), "b": F(1, 4), "c": F(1, 4)}, None).targets
    assert one.sequences(targets, {"a": 100, "b": 100, "c": 100}) == {"a": 50, "b": 25, "c": 25}
    assert one.sequences(targets, {"a": 10, "b": 100, "c": 100}) == {"a": 10, "b": 45, "c": 45}
    # The second falls short only of what the first left over.
    assert one.sequences(targets, {"a": 10, "b": 30, "c": 100}) == {"a": 10, "b": 30, "c": 60}
    assert one.sequences(targets, {"a": 0, "b": 3, "c": 4}) == {"a": 0, "b": 3, "c": 4}


def test_its_state_is_exact():
    feedback = Feedback(rule(a=1, b=0), {"a": F(1, 3), "b": F(2, 3)}, None)
    feedback.observe({"a": (3.3, 2), "b": (1.1, 1)})
    feedback.decide(None)
    feedback.observe({"a": (0.1, 1), "b": (0.7, 3)})
    other = Feedback(rule(a=1, b=0), {"a": F(1, 3), "b": F(2, 3)}, None)
    other.load_state_dict(feedback.state_dict())
    assert other.state_dict() == feedback.state_dict()
    assert other.decide(None) == feedback.decide(None) and other.targets == feedback.targets
    for wrong in ({}, {"targets": {"x": "1"}}, feedback.state_dict() | {"sums": {"a": 1}}):
        with pytest.raises(ValueError, match="no state of a run with feedback"):
            other.load_state_dict(wrong)


# --- the loader ---


@pytest.mark.parametrize("schedule", ["tree", "strict"])
def test_every_interval_reads_exactly_what_was_decided(schedule):
    rng = np.random.default_rng(0)
    sources = {name: ArraySource(i, 16 * 301) for i, name in enumerate("abcd")}

    def build(mixture, state=None):
        return MixtureLoader(
            sources, mixture, seq_len=16, batch_size=5, num_sequences=1000, schedule=schedule, prefetch=2, state=state
        )

    loader = build(Mixture({"a": F(1, 4), "b": F(1, 4), "c": F(1, 4), "d": F(1, 4)}, 9, on_exhaustion="repeat"))
    before, blocks, states = np.zeros(4, dtype=int), [], []
    for _ in range(20):
        counts = np.array([read.sequences for read in loader.accounting().values()])
        decided = rng.multinomial(49, [0.1, 0.2, 0.3, 0.4])
        decided[0] += 1
        loader.change_ratios({n: F(int(count), 50) for n, count in zip("abcd", decided, strict=True)})
        assert (counts == before).all()
        before = before + decided
        for step in range(10):
            if step == 4:
                states.append((len(blocks), loader.state_dict(), loader.mixture))
            blocks.append(next(loader).block.copy())
    assert [read.sequences for read in loader.accounting().values()] == before.tolist()
    # A loader that begins in the middle of an interval reads the rest of it alike.
    for index, state, mixture in states[::5]:
        resumed = build(mixture, state)
        assert all((next(resumed).block == blocks[index + k]).all() for k in range(6))
    # In every pass over a source each of its 300 windows came once.
    first = np.concatenate(blocks)[:, 0]
    for i in range(4):
        own = first[first // BASE == i]
        assert all(len(set(own[k : k + 300].tolist())) == len(own[k : k + 300]) for k in range(0, len(own), 300))


def test_a_change_that_cannot_be_leaves_the_loader_where_it_was():
    sources = {name: ArraySource(i, 16 * 100) for i, name in enumerate("ab")}
    loader = MixtureLoader(sources, {"a": "1/2", "b": "1/2"}, seq_len=16, batch_size=4, num_sequences=160)
    first = next(loader)
    with pytest.raises(ValueError, match="source 'a' can give"):
        loader.change_ratios({"a": 1})
    with pytest.raises(ValueError, match="the sources are a, b"):
        loader.change_ratios({"x": 1})
    other = MixtureLoader(sources, {"a": "1/2", "b": "1/2"}, seq_len=16, batch_size=4, num_sequences=160)
    assert (next(other).block == first.block).all() and (next(other).block == next(loader).block).all()
    assert loader.position == other.position == 8


# --- whole runs ---

ON = {"every_tokens": 3 * 256, "reference": {"natural": 2.0, "synthetic": 4.0}, "step_size": 0.5, "min_ratio": "1/10"}


def with_feedback(*changes, **more):
    return [{"synth": {"on_exhaustion": "renormalize", "feedback": ON | more}}, *changes]


def record_of(run_dir):
    keys = ("feedback/", "loss/mean", "loss/source", "data/")
    return [
        {k: v for k, v in r.items() if k.startswith((*keys, "global_step"))}
        for r in read_metrics(Path(run_dir) / "metrics.jsonl")
    ]


def test_a_run_reads_what_it_decided_and_says_why(train_args, tmp_path):
    row = train(train_args(*with_feedback({"logging": {"freq": 3}})), progress=False)
    records = record_of(tmp_path / "run")
    decisions = [r for r in records if any(k.startswith("feedback/") for k in r)]
    assert [r["global_step"] for r in decisions] == [3, 6, 9]
    # The rule in floats, from the losses in the log: 24 sequences an interval; checkpoints at 5 and 10 are logged too.
    share, nats = np.array([2 / 3, 1 / 3]), np.zeros(2)
    read, tokens = np.zeros(2), np.zeros(2)
    expected = np.array([16, 8])
    for r in records:
        now = np.array([r["data/tokens/natural"], r["data/tokens/synthetic"]]) / 32
        own = now - read
        nats += own * [r.get("loss/source/natural", 0), r.get("loss/source/synthetic", 0)]
        tokens, read = tokens + own, now
        if r in decisions or r["global_step"] == 12:
            assert tokens.tolist() == expected.tolist()
        if r in decisions:
            loss = np.round(nats / tokens * 1024) / 1024
            assert [r["feedback/loss/natural"], r["feedback/loss/synthetic"]] == loss.tolist()
            share = share * np.exp(np.maximum(loss - [2.0, 4.0], 0) / 2)
            share = 0.8 * share / share.sum() + 0.1
            expected = np.array([r["feedback/next_sequences/natural"], r["feedback/next_sequences/synthetic"]])
            assert expected.sum() == 24 and abs(expected[0] - 24 * share[0]) <= 0.5
            nats, tokens = np.zeros(2), np.zeros(2)
    assert expected[0] != 16
    assert row["ratio_natural"] * 12 * 8 * 32 == row["tokens_natural"] == read[0] * 32
    assert row["mixture_schedule"] == "feedback every 768 tokens from natural: 2/3, synthetic: 1/3"


def test_killed_inside_an_interval_and_resumed_it_ends_with_the_same_bits(train_args, tmp_path):
    expected = train(train_args(*with_feedback(), dump_dir=tmp_path / "whole"), progress=False)
    killed = train_args(*with_feedback(), dump_dir=tmp_path / "killed")
    train_and_kill(killed)
    row = train(killed, progress=False)
    assert record_of(tmp_path / "killed") == record_of(tmp_path / "whole")
    same = [key for key in row if key.startswith(("loss_", "bpb_", "tokens", "epochs", "ratio"))]
    assert {key: row[key] for key in same} == {key: expected[key] for key in same}


def test_a_checkpoint_at_the_end_of_an_interval_holds_its_decision(train_args, tmp_path):
    saved = {"checkpoint": {"dump": {"every": 6, "keep": 9}}}
    train(train_args(*with_feedback(saved), dump_dir=tmp_path / "whole"), progress=False)
    args = train_args(*with_feedback(saved))
    train(args, progress=False)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{12:010d}")
    train(args, progress=False)
    assert record_of(tmp_path / "run") == record_of(tmp_path / "whole")


def test_two_ranks_decide_as_one(train_args, tmp_path):
    one = train_args(*with_feedback(), dump_dir=tmp_path / "one")
    train(one, progress=False)
    two = dataclasses.replace(one, dump_dir=str(tmp_path / "two"))
    dump_args(two, tmp_path / "two.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lingua_synth.train", f"config={tmp_path / 'two.yaml'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = ("feedback/", "data/")
    decided = [
        [{k: v for k, v in r.items() if k.startswith(kept)} for r in record_of(tmp_path / run)]
        for run in ("one", "two")
    ]
    assert decided[0] == decided[1] and sum("feedback/loss/natural" in r for r in decided[0]) == 3


def test_max_epochs_holds_whatever_the_losses_say(train_args, tmp_path):
    """The synthetic source may give 40 sequences; its excess is made large."""
    args = train_args(*with_feedback(reference={"natural": 9.0, "synthetic": 0.0}))
    windows = (TokenSource(args.synth.sources["synthetic"].path).num_tokens - 1) // 32
    args.synth.sources["synthetic"].max_epochs = 40 / windows
    row = train(args, progress=False)
    assert row["tokens_synthetic"] == math.floor(F(str(40 / windows)) * windows) * 32
    assert row["tokens"] == 12 * 256 == row["tokens_natural"] + row["tokens_synthetic"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every_tokens": 700}, "every_tokens 700 is not a whole number of optimizer steps of 256 tokens; .* is 768"),
        ({"every_tokens": None}, "feedback has no interval"),
        ({"reference": {"web": 1.0}}, "it takes a loss for each of natural, synthetic"),
        ({"min_ratio": "2/3"}, "min_ratio above 0 and at most 1/2"),
        ({"step_size": 0.0}, "step_size is above 0"),
    ],
)
def test_feedback_that_cannot_be_is_refused_before_the_run(train_args, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train(train_args(*with_feedback({"synth": {"feedback": change}})), progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on_exhaustion": "refuse"}, "nobody knows before the run .* on_exhaustion=refuse cannot be promised"),
        ({"on_exhaustion": "stop"}, "on_exhaustion=stop cannot be promised"),
        ({"mixture_change": "append"}, r"so does synth\.mixture_change"),
    ],
)
def test_what_feedback_excludes(train_args, change, message):
    with pytest.raises(ValueError, match=message):
        train(train_args(*with_feedback({"synth": change})), progress=False)


def test_meta_lingua_s_loop_refuses_it(train_args):
    with pytest.raises(ValueError, match=r"synth\.feedback cannot be had in Meta Lingua's loop"):
        refuse_impossible(train_args(*with_feedback()))


def test_a_source_without_a_first_sequence_is_refused(train_args):
    sources = {"natural": {"ratio": "99/100"}, "synthetic": {"ratio": "1/100"}}
    with pytest.raises(ValueError, match="an interval of 24 sequences holds none of 'synthetic'"):
        train(train_args(*with_feedback({"synth": {"sources": sources}})), progress=False)


def test_feedback_is_a_mixture_of_a_study(shards):
    study = {
        "out": "s", "sizes": ["nano-27k"], "budgets": [2048],
        "mixtures": {
            "static": {"ratios": {"natural": "3/4", "synthetic": "1/4"}},
            "feedback": {"ratios": {"natural": "3/4", "synthetic": "1/4"}, "feedback": ON | {"every_tokens": 512}},
        },
        "sources": {name: {"path": shards[name]} for name in ("natural", "synthetic")},
        "train": {
            "data": {"seq_len": 32, "batch_size": 4}, "optim": {"warmup": 2},
            "synth": {"global_batch_tokens": 128, "device": "cpu", "on_exhaustion": "repeat"},
        },
    }  # fmt: skip
    static, changing = plan_study(build_args(StudyArgs, study))
    assert static.args.synth.feedback.every_tokens is None and changing.args.synth.feedback.every_tokens == 512
    for wrong, message in (
        ({"every_tokens": 500}, r"run feedback-.*every_tokens 500 is not a whole number"),
        ({"reference": {"x": 1.0}}, "run feedback-.*it takes a loss for each of natural, synthetic"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_study(build_args(StudyArgs, study, {"mixtures": {"feedback": {"feedback": wrong}}}))
