"""The schedule's bound, in exact arithmetic, on every prefix and at positions where drift or overflow would show."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lingua_synth.mixture import Mixture, Schedule, plan_sequences
from lingua_synth.mixture.schedule import MAX_POSITION

ANY = Fraction(168, 100)
FAR = [0, 10**9 - 150, 10**12 - 150, 10**15, MAX_POSITION - 400]


def schedule_of(weights):
    return Schedule({f"s{i:04d}": Fraction(int(w), int(sum(weights))) for i, w in enumerate(weights)})


def assert_within_bound(weights, start=0, length=2_000):
    """Every source, every prefix that ends in [start, start + length): |c Q - k p| <= bound Q in integers."""
    schedule = schedule_of(weights)
    total = int(sum(weights))
    source, j = schedule.locate(np.arange(start, start + length))
    served = (source[:, None] == np.arange(len(weights))).cumsum(0)
    at_start = schedule.counts(start)
    # What is off at the start, in Q-ths of a sequence: Python integers, then small enough for int64.
    off = np.array([int(c) * total - start * int(w) for c, w in zip(at_start, weights, strict=True)], dtype=object)
    steps = np.arange(1, length + 1)[:, None] * np.asarray(weights, dtype=np.int64)
    deviation = served * total - steps + off.astype(np.int64)
    assert np.abs(deviation).max() <= schedule.bound * total
    assert schedule.bound < ANY
    if np.count_nonzero(weights) == 2:
        assert schedule.bound == Fraction(1, 2)
    # j counts on from the counts at the start, without a gap.
    assert (j == at_start[source] + served[np.arange(length), source] - 1).all()
    return schedule


class Reference:
    """The module's definition, word by word, in fractions and by differences of counts; no closed form of positions."""

    def __init__(self, ratios):
        forest = [(ratio, name) for name, ratio in ratios.items() if ratio]
        trees = [(weight, name, name) for weight, name in forest]
        while len(trees) > 1:
            trees.sort(key=lambda tree: tree[:2])
            pair = sorted(trees[:2], key=lambda tree: tree[1])
            trees = [*trees[2:], (pair[0][0] + pair[1][0], pair[0][1], tuple(pair))]
        self.tree = trees[0]

    def counts(self, k):
        found = {}

        def walk(tree, visits):
            weight, _, node = tree
            if isinstance(node, str):
                found[node] = visits
                return
            first, second = node
            to_first = (first[0] / weight * visits + Fraction(1, 2)).__floor__()
            walk(first, to_first)
            walk(second, visits - to_first)

        walk(self.tree, k)
        return found


@settings(max_examples=40, deadline=None)
@given(
    # Small weights as well: they meet the ties of the rounding.
    st.one_of(
        st.lists(st.integers(0, 6), min_size=1, max_size=6), st.lists(st.integers(0, 10**4), min_size=1, max_size=30)
    ).filter(any),
    st.sampled_from(FAR),
)
def test_equals_the_definition(weights, start):
    schedule = schedule_of(weights)
    names = schedule.names
    reference = Reference(dict(zip(names, schedule.course.pieces[0].ratios, strict=True)))
    source, j = schedule.locate(np.arange(start, start + 12))
    before = reference.counts(start)
    for step in range(12):
        after = reference.counts(start + step + 1)
        (served,) = [name for name in after if after[name] != before[name]]
        assert names[source[step]] == served
        assert j[step] == before[served]
        assert schedule.counts(start + step + 1).tolist() == [after.get(name, 0) for name in names]
        before = after


@pytest.mark.parametrize("start", FAR)
@pytest.mark.parametrize("weights", [[67, 33], [1, 1], [1000, 1], [999_983, 7], [2, 1]])
def test_two_sources_are_never_more_than_half_a_sequence_off(weights, start):
    assert assert_within_bound(weights, start, 400).bound == Fraction(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 10**4), min_size=1, max_size=60).filter(any),
    st.sampled_from(FAR),
)
def test_every_prefix_of_any_mixture_is_within_the_bound(weights, start):
    assert_within_bound(weights, start, 400)


@settings(max_examples=4, deadline=None)
@given(st.integers(61, 1000), st.integers(0, 2**32), st.sampled_from(FAR))
def test_up_to_a_thousand_sources(num_sources, seed, start):
    rng = np.random.default_rng(seed)
    assert_within_bound(rng.integers(1, 10_000, num_sources), start, 400)


def test_a_whole_cycle_of_a_thousand_sources_and_of_skewed_ones():
    zipf = [10**6 // (i + 1) for i in range(1000)]
    for weights in (zipf, [1] * 1000, [2**i for i in range(40)]):
        assert_within_bound(weights, 0, 2_000)
    # After a whole number of cycles every source has exactly its share.
    schedule = schedule_of(zipf)
    assert schedule.counts(3 * sum(zipf)).tolist() == [3 * w for w in zipf]


def test_the_general_bound_is_sharp_for_the_tree_and_never_reached():
    """A leaf beside a tiny sibling, with every uncle as light as Huffman allows: the path's weights are Fibonacci's."""
    path, uncles = [10**9, 10**9 + 1], []
    while len(path) < 25:
        uncles.append(path[-2])
        path.append(path[-1] + uncles[-1])
    weights = [1, 10**9, *uncles]
    assert Fraction(1679, 1000) < schedule_of(weights).bound < ANY
    small = [1, 50, 50, 51, 101, 152, 253, 405, 658]
    assert Fraction(15, 10) < assert_within_bound(small, 0, 2 * sum(small)).bound


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(0, 10**18), st.booleans())
def test_two_sources_have_the_planned_counts_at_every_budget(a, b, k, swapped):
    names = ("y", "x") if swapped else ("x", "y")
    ratios = dict(zip(names, (Fraction(a, a + b), Fraction(b, a + b)), strict=True))
    schedule = Schedule(ratios)
    assert schedule.counts(k).tolist() == list(plan_sequences(k, ratios).values())


def test_no_drift():
    schedule = Schedule({"natural": "0.67", "synthetic": "0.33"})
    for k in (10**6, 10**9, 10**12, 10**15, 10**18):
        assert schedule.counts(k).tolist() == [k * 67 // 100, k * 33 // 100]
    ratios = {"a": "0.333333333", "b": "0.333333333", "c": "0.333333334"}
    counts = Schedule(ratios).counts(10**12 + 1)
    for count, ratio in zip(counts.tolist(), ratios.values(), strict=True):
        assert abs(count - Fraction(ratio) * (10**12 + 1)) < ANY


def test_two_sources_share_ties_as_the_plan_does():
    for a in range(1, 8):
        for b in range(1, 8):
            for names in ("xy", "yx"):
                ratios = dict(zip(names, (Fraction(a, a + b), Fraction(b, a + b)), strict=True))
                counts = Schedule(ratios).counts(np.arange(2 * (a + b)))
                assert counts.tolist() == [list(plan_sequences(k, ratios).values()) for k in range(2 * (a + b))]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2**31, 2**36), min_size=2, max_size=6),
    st.integers(0, MAX_POSITION - 10),
)
@example([2**34 + 1, 2**35 - 1], MAX_POSITION - 10)
@example([2**34 + 1, 2**35 - 1], 10**9)
def test_the_array_path_agrees_with_python_s_integers_where_products_overflow(weights, start):
    """Denominators of up to 39 bits make products of up to 77: on both sides of the limit of int64."""
    schedule = schedule_of(weights)
    counts = schedule.counts(np.arange(start, start + 9))
    source, j = schedule.locate(np.arange(start, start + 8))
    for step in range(8):
        served = np.flatnonzero(counts[step + 1] - counts[step])
        assert served.tolist() == [source[step]]
        assert counts[step][source[step]] == j[step]


def test_integers_beyond_64_bits_are_exact():
    """Denominators of 3^50, 7^30 and 11^25 make products of over 200 bits."""
    ratios = {"a": Fraction(1, 3**50), "b": Fraction(2, 7**30), "c": Fraction(5**20, 11**25), "d": Fraction(3, 10)}
    ratios["e"] = 1 - sum(ratios.values())
    schedule = Schedule(ratios)
    reference = Reference(ratios)
    for start in (0, 10**9, MAX_POSITION - 40):
        source, j = schedule.locate(np.arange(start, start + 30))
        before = reference.counts(start)
        for step in range(30):
            after = reference.counts(start + step + 1)
            (served,) = [name for name in after if after[name] != before[name]]
            assert (schedule.names[source[step]], j[step]) == (served, before[served])
            before = after


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**4), min_size=1, max_size=50).filter(any), st.integers(0, 10**12))
def test_position_is_the_inverse_of_locate(weights, k):
    schedule = schedule_of(weights)
    source, j = schedule.locate(np.array([k]))
    assert schedule.position(int(source[0]), int(j[0])) == k
    for i, weight in enumerate(weights[:5]):
        position = schedule.position(i, 12_345)
        if not weight:
            assert position is None
            continue
        # Sequence 12,345 is the first that is not among the counts up to its position.
        assert schedule.counts(position)[i] == 12_345
        assert schedule.counts(position + 1)[i] == 12_346


def test_positions_beyond_64_bits_are_told_exactly():
    schedule = Schedule({"rare": Fraction(1, 10**15), "web": 1 - Fraction(1, 10**15)})
    assert schedule.position(0, 10**6) == 10**15 * 10**6 + 10**15 // 2 - 1


def test_any_stretch_is_within_twice_the_bound():
    weights = np.random.default_rng(3).integers(1, 500, 25)
    schedule = schedule_of(weights)
    rng = np.random.default_rng(4)
    for start, length in zip(rng.integers(0, 10**9, 50).tolist(), rng.integers(1, 10**6, 50).tolist(), strict=True):
        served = schedule.counts(start + length) - schedule.counts(start)
        for count, ratio in zip(served.tolist(), schedule.course.pieces[0].ratios, strict=True):
            assert abs(count - ratio * length) <= 2 * schedule.bound


def test_the_order_of_the_listing_changes_indices_only():
    ratios = {"c": "0.5", "a": "0.2", "d": "0.1", "b": "0.2"}
    one, other = Schedule(ratios), Schedule(dict(sorted(ratios.items())))
    k = np.arange(1_000)
    (source, j), (other_source, other_j) = one.locate(k), other.locate(k)
    names, other_names = np.array(one.names), np.array(other.names)
    assert (names[source] == other_names[other_source]).all()
    assert (j == other_j).all()


def test_a_source_of_ratio_zero_is_never_served():
    schedule = Schedule({"a": "1/2", "unused": 0, "b": "1/2"})
    source, _ = schedule.locate(np.arange(100))
    assert set(source.tolist()) == {0, 2}
    assert schedule.counts(7).tolist() == [4, 0, 3]
    only = Schedule({"unused": 0, "all": 1})
    source, j = only.locate(np.array([[5, 6], [7, 8]]))
    assert source.tolist() == [[1, 1], [1, 1]] and j.tolist() == [[5, 6], [7, 8]]
    assert only.bound == 0 and only.position(1, 9) == 9 and only.counts(9).tolist() == [0, 9]


def test_shapes_and_the_first_positions():
    schedule = Schedule({"a": "2/3", "b": "1/3"})
    source, j = schedule.locate(range(9))
    assert source.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]
    assert j.tolist() == [0, 0, 1, 2, 1, 3, 4, 2, 5]
    assert schedule.locate(4)[0].shape == ()
    assert schedule.counts(np.array([[1, 2, 3]])).tolist() == [[[1, 0], [1, 1], [2, 1]]]
    assert schedule.locate([])[0].shape == (0,)
    assert "bound 0.500" in repr(schedule)


@pytest.mark.parametrize("bad", [-1, [3, -2], 0.5, [1.0], "3", 2**63 - 1, 2**64, 2**70, [None], True])
def test_what_is_no_position_is_refused(bad):
    schedule = Schedule({"a": "2/3", "b": "1/3"})
    with pytest.raises(ValueError, match="position"):
        schedule.locate(bad)
    with pytest.raises(ValueError, match="position"):
        schedule.counts(bad)


def test_an_unknown_sequence_is_refused():
    schedule = Schedule(Mixture({"a": 1}))
    for source, j in ((1, 0), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="no sequence"):
            schedule.position(source, j)
