"""The guard: which steps are skipped, which stop a run, and that a resumed run judges alike."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lingua_synth.train import loop, train
from lingua_synth.train.args import GuardArgs
from lingua_synth.train.guard import Guard
from lingua_synth.train.metrics import read_metrics


def test_a_step_that_is_not_finite_is_skipped_or_stops():
    guard = Guard(GuardArgs(nonfinite="skip", max_skipped=2))
    assert guard.judge(3.0, 1.0) is None
    assert "loss nan" in guard.judge(math.nan, 1.0)
    assert "gradient norm inf" in guard.judge(3.0, math.inf)
    assert guard.num_skipped == 2
    with pytest.raises(ValueError, match=r"after 2 steps skipped in a row"):
        guard.judge(math.nan, 1.0)
    with pytest.raises(ValueError, match="not finite"):
        Guard(GuardArgs()).judge(math.nan, 1.0)
    # A good step in between ends the row.
    guard = Guard(GuardArgs(nonfinite="skip", max_skipped=1))
    assert [guard.judge(loss, 1.0) is None for loss in (math.nan, 1.0, math.nan, 1.0)] == [False, True, False, True]


def test_a_spike_is_far_above_a_full_window():
    args = GuardArgs(spike="skip", spike_sigma=3.0, window=4)
    guard = Guard(args)
    past = [2.0, 2.1, 1.9, 2.0]
    assert guard.judge(100.0, 1.0) is None  # nothing to compare with yet
    for loss in past:
        assert guard.judge(loss, 1.0) is None
    limit = statistics.fmean(past) + 3 * statistics.pstdev(past)
    assert "is a spike" in guard.judge(limit + 1e-9, 1.0)
    assert guard.judge(limit - 1e-9, 1.0) is None
    assert "gradient norm 1.1" in guard.judge(2.0, 1.1)
    assert guard.num_skipped == 2


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40), st.integers(0, 39))
def test_a_restored_guard_goes_on_alike(values, cut):
    args = GuardArgs(spike="skip", spike_sigma=1.0, window=5, max_skipped=100)
    whole, first = Guard(args), Guard(args)
    verdicts = [whole.judge(value, 1.0) for value in values]
    found = [first.judge(value, 1.0) for value in values[:cut]]
    second = Guard(args)
    second.load_state_dict(first.state_dict())
    assert found + [second.judge(value, 1.0) for value in values[cut:]] == verdicts
    assert second.state_dict() == whole.state_dict()


def spoil(monkeypatch, steps, value):
    """Let the gradient norm of these calls of clipping be `value`."""
    real, calls = loop.clip_gradients, []

    def clip(model, largest):
        norm = real(model, largest)
        calls.append(1)
        return torch.full_like(norm, value) if len(calls) in steps else norm

    monkeypatch.setattr(loop, "clip_gradients", clip)


def test_skipped_steps_read_their_batch_and_change_nothing(train_args, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, {4, 5}, math.inf)
        skip = {"synth": {"guard": {"nonfinite": "skip"}}}
        row = train(train_args(skip), progress=False)
    assert row["skipped_steps"] == 2 and row["tokens"] == 12 * 256
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r.get("guard/skipped_steps", 0) for r in records] == [0, 0, 0, 1] + [2] * 8
    # The line of a skipped step has no loss: it is no part of any mean.
    assert ["loss/mean" in r for r in records] == [True] * 3 + [False] * 2 + [True] * 7
    log = (tmp_path / "run" / "train.log").read_text()
    assert "skipped at step 4 (global sequences 24..31): loss" in log

    spoil(monkeypatch, {3}, math.nan)
    with pytest.raises(ValueError, match=r"not finite at step 3 \(global sequences 16\.\.23\)"):
        train(train_args(dump_dir=tmp_path / "stopped"), progress=False)


def test_weights_are_those_of_before_a_skipped_step(train_args, tmp_path, monkeypatch):
    """A run of 5 steps whose last is skipped has the weights of step 4, to the bit."""
    from lingua_synth.model import load_checkpoint

    skip = {"synth": {"guard": {"nonfinite": "skip"}}, "optim": {"scheduler": "constant"}}
    skip["checkpoint"] = {"dump": {"every": 1, "keep": 0}}
    spoil(monkeypatch, {5}, math.nan)
    train(train_args(skip), progress=False)
    before, after, later = (
        load_checkpoint(tmp_path / "run" / "checkpoints" / f"{step:010d}")[0].state_dict() for step in (4, 5, 6)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], later[name]) for name in before)
