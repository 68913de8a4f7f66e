"""Tijdeman's schedule keeps its bound on every prefix and is a pure function of position, however it is asked."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lingua_synth.mixture import Mixture, MixtureLoader, StrictSchedule, build_schedule, plan_report
from lingua_synth.mixture import strict as strict_module

from mixture_doubles import ArraySource  # isort: skip


def schedule_of(weights):
    return StrictSchedule({f"s{i:04d}": Fraction(int(w), int(sum(weights))) for i, w in enumerate(weights)})


def assert_within_bound(weights, length):
    schedule = schedule_of(weights)
    num_read = np.count_nonzero(weights)
    assert schedule.bound == (1 - Fraction(1, 2 * num_read - 2) if num_read > 1 else 0)
    total = int(sum(weights))
    source, j = schedule.locate(np.arange(length))
    served = (source[:, None] == np.arange(len(weights))).cumsum(0)
    deviation = np.abs(served * total - np.arange(1, length + 1)[:, None] * np.asarray(weights, dtype=np.int64)).max()
    assert int(deviation) <= schedule.bound * total
    assert (j == served[np.arange(length), source] - 1).all()
    return Fraction(int(deviation), total)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=30).filter(any))
@example([0, 3, 0, 2])
@example([1])
def test_every_prefix_is_within_the_bound(weights):
    assert_within_bound(weights, 600)


@settings(max_examples=3, deadline=None)
@given(st.integers(31, 1000), st.integers(0, 2**32))
def test_up_to_a_thousand_sources(num_sources, seed):
    assert_within_bound(np.random.default_rng(seed).integers(1, 1_000, num_sources), 2_000)


def test_the_bound_is_reached_by_two_sources_and_nearly_by_three():
    assert assert_within_bound([1, 1], 4) == Fraction(1, 2)
    assert Fraction(74, 100) < assert_within_bound([997, 901, 641], 2_539) <= Fraction(3, 4)


def test_is_better_than_the_tree_where_the_tree_is_at_its_worst():
    weights = [1, 50, 50, 51, 101, 152, 253, 405, 658]
    assert assert_within_bound(weights, 2 * sum(weights)) < 1


@pytest.mark.parametrize("every", [1, 7, 64, 1 << 16])
def test_is_a_pure_function_of_position(every, monkeypatch):
    monkeypatch.setattr(strict_module, "SNAPSHOT_EVERY", every)
    weights = [37, 5, 0, 21, 14]  # period 77
    source, j = schedule_of(weights).locate(np.arange(1_000))
    schedule = schedule_of(weights)
    rng = np.random.default_rng(0)
    for start, length in zip(rng.integers(0, 980, 60).tolist(), rng.integers(1, 20, 60).tolist(), strict=True):
        found, found_j = schedule.locate(rng.permutation(np.arange(start, start + length)).reshape(1, -1))
        order = np.argsort(found_j[0] * 10 + found[0])
        expected = np.argsort(j[start : start + length] * 10 + source[start : start + length])
        assert (found[0][order] == source[start : start + length][expected]).all()
        k = int(rng.integers(0, 1_000))
        assert schedule.counts(k).tolist() == np.bincount(source[:k], minlength=5).tolist()
        assert schedule.position(int(source[k]), int(j[k])) == k


def test_positions_come_back_in_the_order_asked():
    schedule = schedule_of([3, 2])
    source, j = schedule.locate(np.arange(20))
    asked = np.random.default_rng(1).permutation(20).reshape(4, 5)
    assert (schedule.locate(asked)[0] == source[asked]).all() and (schedule.locate(asked)[1] == j[asked]).all()
    assert schedule.locate(7)[0].shape == () and schedule.locate([])[0].shape == (0,)


@pytest.mark.parametrize("start", [10**9, 10**12, 10**15])
def test_far_positions_are_exact_and_cost_no_more_than_a_period(start):
    schedule = StrictSchedule({"natural": "0.67", "synthetic": "0.33"})
    assert schedule.counts(start).tolist() == [start * 67 // 100, start * 33 // 100]
    source, j = schedule.locate(np.arange(start, start + 100))
    near, near_j = schedule.locate(np.arange(100))
    assert (source == near).all()
    assert (j - near_j == np.where(source == 0, start * 67 // 100, start * 33 // 100)).all()
    assert schedule.position(1, start) == schedule.position(1, start % 33) + start // 33 * 100


def test_the_order_of_the_listing_changes_indices_only():
    ratios = {"c": "0.25", "a": "0.25", "d": "0.25", "b": "0.25"}
    one, other = StrictSchedule(ratios), StrictSchedule(dict(sorted(ratios.items())))
    (source, j), (other_source, other_j) = one.locate(np.arange(100)), other.locate(np.arange(100))
    assert (np.array(one.names)[source] == np.array(other.names)[other_source]).all()
    assert (j == other_j).all()


def test_one_source_and_unread_sources():
    only = StrictSchedule({"unused": 0, "all": 1})
    assert only.locate([3, 5])[0].tolist() == [1, 1] and only.locate([3, 5])[1].tolist() == [3, 5]
    assert only.counts(9).tolist() == [0, 9] and only.position(1, 9) == 9 and only.position(0, 0) is None
    with pytest.raises(ValueError, match="no sequence"):
        only.position(2, 0)
    with pytest.raises(ValueError, match="no position -1"):
        only.locate(-1)


def test_schedules_by_name():
    mixture = Mixture({"a": "1/2", "b": "1/2"})
    assert type(build_schedule(mixture)).__name__ == "Schedule"
    assert type(build_schedule(mixture, "strict")).__name__ == "StrictSchedule"
    with pytest.raises(ValueError, match="no schedule 'random'; there are: tree, strict"):
        build_schedule(mixture, "random")


def three():
    return {name: ArraySource(i, 300 + 90 * i) for i, name in enumerate("abc")}


THREE = Mixture({"a": "0.31", "b": "0.32", "c": "0.37"}, 50)


def test_the_loader_serves_it_alike_to_any_ranks_and_after_a_restart():
    settings = dict(seq_len=8, schedule="strict", global_batch_size=24)
    whole = MixtureLoader(three(), THREE, batch_size=24, **settings)
    expected = [next(whole).block for _ in range(20)]
    split = [MixtureLoader(three(), THREE, batch_size=2, dp_rank=rank, dp_size=4, **settings) for rank in range(4)]
    for step in range(20):
        if step == 9:
            state = split[0].state_dict()
            split = [MixtureLoader(three(), THREE, batch_size=6, dp_rank=r, dp_size=2, **settings) for r in range(2)]
            for rank in split:
                rank.load_state_dict(state)
        per_rank = 24 // len(split) // split[0].batch_size
        found = np.concatenate([next(rank).block for rank in split for _ in range(per_rank)])
        assert found.tobytes() == expected[step].tobytes()
        account = split[0].accounting()
        for name, ratio in THREE.ratios.items():
            assert abs(account[name].sequences - ratio * split[0].position) <= Fraction(3, 4)


def test_plan_and_refusals_speak_of_it():
    schedule = StrictSchedule(THREE)
    sources = {"a": 8 * 40 + 1, "b": 8 * 1_000, "c": 8 * 1_000}
    mixture = Mixture(THREE.ratios)
    plan = plan_report(sources, mixture, 100, 8, schedule="strict")
    end = plan.max_num_sequences
    source, j = schedule.locate(np.arange(end + 1))
    assert (source[end], j[end]) == (0, 40) and j[:end][source[:end] == 0].max() == 39
    state = MixtureLoader(three(), THREE, seq_len=8, schedule="strict").state_dict()
    with pytest.raises(ValueError, match="schedule was strict, is tree"):
        MixtureLoader(three(), THREE, seq_len=8).load_state_dict(state)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=40).filter(any), st.integers(0, 10**6))
def test_far_prefixes_are_within_the_bound_and_do_not_drift(weights, offset):
    """Near 10^9, in exact arithmetic; and a whole number of periods later the errors are the same."""
    schedule, total, far = schedule_of(weights), sum(weights), 10**9 + offset
    counts = schedule.counts(far).tolist()
    source, j = schedule.locate(np.arange(far, far + 300))
    for step, (i, index) in enumerate(zip(source.tolist(), j.tolist(), strict=True)):
        assert index == counts[i]
        counts[i] += 1
        assert all(
            abs(c * total - (far + step + 1) * w) <= schedule.bound * total
            for c, w in zip(counts, weights, strict=True)
        )
    later = schedule.counts(far + 10**6 * total)
    assert (later - schedule.counts(far) == 10**6 * np.array(weights)).all()
