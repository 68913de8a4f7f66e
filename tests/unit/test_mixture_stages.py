"""Ratios that change: stages and ramps keep their bounds against the exact integral, and history is never rewritten."""

import json
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lingua_synth.mixture import Course, Mixture, MixtureLoader, Schedule, Stage, StrictSchedule, plan_report
from lingua_synth.mixture.course import RAMP_PIECES, Span

from mixture_doubles import ArraySource  # isort: skip

WARM_IN = Mixture(
    stages=[
        Stage({"web": 1}, until="1/4"),
        Stage({"web": 1}, until="3/4", ramp_to={"web": "2/3", "hq": "1/3"}),
        Stage({"web": "2/3", "hq": "1/3"}, until="0.9"),
        Stage({"hq": "1/2", "code": "1/2"}),
    ]
)


def courses(max_sources=8, max_stages=6, longest=200):
    """Random courses: few or many sources, stages of 1 sequence to `longest`, ramps among them."""

    @st.composite
    def build(draw):
        num_sources = draw(st.integers(1, max_sources))
        names = [f"s{i}" for i in range(num_sources)]

        def ratios():
            weights = draw(st.lists(st.integers(0, 9), min_size=num_sources, max_size=num_sources).filter(any))
            return {n: Fraction(w, sum(weights)) for n, w in zip(names, weights, strict=True)}

        spans, start = [], 0
        for _ in range(draw(st.integers(1, max_stages))):
            length = draw(st.integers(1, longest))
            ramp = (start, start + length, ratios()) if draw(st.booleans()) else None
            spans.append(Span(start, ratios(), ramp))
            start += length
        return Course(names, spans), start + draw(st.integers(0, longest))

    return build()


def deviations(schedule, length):
    """Largest |count - target| over all prefixes, exact, and whether the j-s count up without a gap."""
    source, j = schedule.locate(np.arange(length))
    counts = [0] * schedule.num_sources
    worst = Fraction(0)
    for k in range(length):
        assert j[k] == counts[source[k]]
        counts[source[k]] += 1
        target = schedule.course.target(k + 1)
        assert sum(target) == k + 1
        worst = max(worst, *(abs(c - t) for c, t in zip(counts, target, strict=True)))
    assert schedule.counts(length).tolist() == counts
    return worst


# --- the schedules ---


@settings(max_examples=60, deadline=None)
@given(courses())
def test_the_tree_keeps_the_bound_it_states_on_every_prefix(case):
    course, length = case
    schedule = Schedule(course)
    assert deviations(schedule, length) <= schedule.bound


@settings(max_examples=60, deadline=None)
@given(courses(max_sources=2, longest=40))
def test_two_sources_stay_within_half_a_sequence_through_any_changes(case):
    course, length = case
    schedule = Schedule(course)
    assert schedule.bound <= Fraction(1, 2)
    assert deviations(schedule, length) <= Fraction(1, 2)


@settings(max_examples=60, deadline=None)
@given(courses(longest=60))
@example((Course(("a", "b"), [Span(0, {"a": Fraction(1, 2), "b": Fraction(1, 2)}), Span(1, {"b": Fraction(1)})]), 9))
def test_strict_keeps_tijdeman_s_bound_while_the_ratios_change(case):
    course, length = case
    schedule = StrictSchedule(course)
    num_read = len(course.read)
    assert schedule.bound == (1 - Fraction(1, 2 * num_read - 2) if num_read > 1 else 0)
    assert deviations(schedule, length) <= schedule.bound


@settings(max_examples=3, deadline=None)
@given(st.integers(100, 1_000), st.integers(0, 2**32))
def test_a_thousand_sources_may_change_at_every_step(num_sources, seed):
    rng = np.random.default_rng(seed)
    names = [f"s{i:04d}" for i in range(num_sources)]

    def ratios():
        weights = rng.integers(1, 1_000, num_sources).tolist()
        return {n: Fraction(w, sum(weights)) for n, w in zip(names, weights, strict=True)}

    course = Course(names, [Span(k, ratios()) for k in (0, 1, 2, 3, 40, 90)])
    for schedule in (Schedule(course), StrictSchedule(course)):
        source, _ = schedule.locate(np.arange(200))
        for k in (1, 2, 3, 50, 100, 200):
            counts = np.bincount(source[:k], minlength=num_sources)
            assert counts.tolist() == schedule.counts(k).tolist()
            assert max(abs(int(c) - t) for c, t in zip(counts, course.target(k), strict=True)) <= schedule.bound
    assert StrictSchedule(course).bound < 1


@pytest.mark.parametrize("schedule", [Schedule, StrictSchedule])
def test_errors_do_not_grow_with_the_number_of_stages(schedule):
    """Hundreds of stages, each of its own ratios: without taking up what is inherited, errors would add up."""
    rng = np.random.default_rng(1)
    names = [f"s{i}" for i in range(6)]
    spans = []
    for stage in range(300):
        weights = rng.integers(1, 50, 6).tolist()
        spans.append(Span(40 * stage, {n: Fraction(w, sum(weights)) for n, w in zip(names, weights, strict=True)}))
    built = schedule(Course(names, spans))
    assert deviations(built, 300 * 40) < 2
    if schedule is Schedule:
        assert built.bound < 4


@settings(max_examples=40, deadline=None)
@given(courses(max_stages=3), st.data())
def test_position_is_the_inverse_of_locate(case, data):
    course, length = case
    for schedule in (Schedule(course), StrictSchedule(course)):
        source, j = schedule.locate(np.arange(length))
        for k in data.draw(st.lists(st.integers(0, length - 1), max_size=8)):
            assert schedule.position(int(source[k]), int(j[k])) == k


@settings(max_examples=40, deadline=None)
@given(courses(max_stages=1), st.integers(1, 300))
def test_a_stage_that_changes_nothing_changes_no_position(case, at):
    course, _ = case
    one = course.pieces[0].ratios
    ratios = dict(zip(course.names, one, strict=True))
    split = Course(course.names, [Span(0, ratios), Span(at, dict(reversed(ratios.items())))])
    # The pieces are merged; force two trees to see that the rounding itself goes on.
    forced = Schedule(Course.constant(ratios))
    two = Schedule(split)
    assert len(two.course.pieces) == 1
    two_trees = Schedule.__new__(Schedule)
    two_trees.__dict__.update(_forced(forced, ratios, at).__dict__)
    k = np.arange(600)
    for found in (two, two_trees):
        for a, b in zip(found.locate(k), forced.locate(k), strict=True):
            assert (a == b).all()


def _forced(schedule, ratios, at):
    from lingua_synth.mixture.schedule import _Tree, ranks_by_name

    counts = schedule.counts(at).tolist()
    errors = [c - at * r for c, r in zip(counts, ratios.values(), strict=True)]
    forced = Schedule(schedule.course)
    forced._starts = [0, at]
    forced._before = [[0] * len(ratios), counts]
    forced._trees = [schedule._trees[0], _Tree(tuple(ratios.values()), errors, ranks_by_name(schedule.names))]
    return forced


def test_far_positions_are_exact_after_stages():
    course = WARM_IN.course(num_sequences=10**9)
    schedule = Schedule(course)
    for k in (10**8, 25 * 10**7 + 12_345, 74 * 10**7 + 1, 10**9 - 1):
        counts, target = schedule.counts(k).tolist(), course.target(k)
        assert sum(counts) == k
        assert max(abs(c - t) for c, t in zip(counts, target, strict=True)) <= schedule.bound
        source, j = schedule.locate(np.arange(k, k + 50))
        for i, index in zip(source.tolist(), j.tolist(), strict=True):
            assert index == counts[i]
            counts[i] += 1
    assert schedule.bound < Fraction(3, 2)


# --- what is written, and what it means ---


def test_a_mixture_in_stages_becomes_positions_of_a_run():
    course = WARM_IN.course(num_sequences=1_000)
    assert WARM_IN.names == ("web", "hq", "code") and not WARM_IN.is_constant
    starts = [span.start for span in course.spans]
    assert starts == [0, 250, 750, 900]
    assert course.target(250) == (250, 0, 0)
    # The ramp from 1 to 2/3 over 500 sequences: on average 5/6 web.
    assert abs(course.target(750)[1] - 500 * Fraction(1, 6)) < 1
    assert course.target(1_000)[2] == 50 and sum(course.target(1_000)) == 1_000
    assert len(course.pieces) == 1 + RAMP_PIECES + 1 + 1
    in_tokens = Mixture(stages=[Stage({"a": 1}, until_tokens=4_096 * 7 + 5), Stage({"b": 1})])
    assert [span.start for span in in_tokens.course(None, 4_096).spans] == [0, 7]
    ramp = Mixture(stages=[Stage({"a": 1}, ramp_to={"b": 1})]).course(100)
    assert ramp.target(100) == (50, 50)
    assert all(abs(ramp.target(k)[1] - Fraction(k * k, 200)) <= Fraction(1, 100) * 2 for k in range(101))
    long = Mixture(stages=[Stage({"a": 1}, ramp_to={"b": 1})]).course(10**7 + 13)
    for piece in long.pieces[1:]:
        assert abs(long.target(piece.start)[1] - Fraction(piece.start**2, 2 * (10**7 + 13))) < 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages is empty"),
        ([Stage({"a": 1}), Stage({"b": 1})], "stage 1: only the last stage lasts to the end"),
        ([Stage({"a": 1}, until="1/2")], "stage 1: the last stage lasts to the end"),
        ([Stage({"a": 1}, until="1/2", until_tokens=8), Stage({"a": 1})], "stage 1: give its end once"),
        ([Stage({"a": 1}, until=2), Stage({"a": 1})], "stage 1: until is a share of the run"),
        ([Stage({"a": "1/2"}, until="1/2"), Stage({"a": 1})], "stage 1: the ratios must sum to exactly 1"),
        ([Stage({"a": 1}, ramp_to={"a": 2})], "stage 1: the ratios must sum to exactly 1"),
        ([Stage({"a": 1}, until_tokens=0), Stage({"a": 1})], "stage 1: until_tokens must be"),
    ],
)
def test_bad_stages_are_refused_by_number(stages, message):
    with pytest.raises(ValueError, match=message):
        Mixture(stages=stages)


def test_stages_that_need_a_length_or_have_none_are_refused():
    with pytest.raises(ValueError, match="give num_sequences or until_tokens"):
        WARM_IN.course()
    with pytest.raises(ValueError, match="stage 2 would end at sequence 2, and it begins at 2"):
        Mixture(stages=[Stage({"a": 1}, until="1/2"), Stage({"b": 1}, until="0.6"), Stage({"a": 1})]).course(4)
    with pytest.raises(ValueError, match=r"has ratios, as .* or stages"):
        Mixture()
    with pytest.raises(ValueError, match="no constant ratios"):
        _ = WARM_IN.ratios


# --- the loader ---

SEQ_LEN = 4


def sources(**sizes):
    sizes = {"web": 4_001, "hq": 4_001, "code": 4_001} | sizes
    return {name: ArraySource(i, size) for i, (name, size) in enumerate(sizes.items())}


def loader(mixture, **settings):
    settings = {"seq_len": SEQ_LEN, "batch_size": 2, "global_batch_size": 8} | settings
    found = settings.pop("sources", None) or sources()
    return MixtureLoader({name: found[name] for name in mixture.names}, mixture, **settings)


def stream_of(ranks, num_batches):
    """Blocks of the next global batches, ranks in order."""
    blocks = []
    for _ in range(num_batches):
        for rank in ranks:
            blocks += [next(rank).block for _ in range(rank.global_batch_size // rank.dp_size // rank.batch_size)]
    return b"".join(block.tobytes() for block in blocks)


@pytest.mark.parametrize("schedule", ["tree", "strict"])
@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_stages_are_the_same_stream_for_any_ranks_and_restarts(schedule, dp_size):
    settings = dict(num_sequences=800, schedule=schedule)
    expected = stream_of([loader(WARM_IN, **settings)], 100)
    ranks = [loader(WARM_IN, dp_rank=r, dp_size=dp_size, **settings) for r in range(dp_size)]
    found = stream_of(ranks, 61)
    state = json.loads(json.dumps(ranks[0].state_dict()))
    assert len(json.dumps(state)) < 1_000
    again = [loader(WARM_IN, batch_size=1, dp_rank=r, dp_size=8 // dp_size, **settings) for r in range(8 // dp_size)]
    for rank in again:
        rank.load_state_dict(state)
    assert found + stream_of(again, 39) == expected
    account = again[0].accounting()
    assert sum(one.sequences for one in account.values()) == 800
    target = WARM_IN.course(800).target(800)
    assert all(abs(account[n].sequences - t) <= again[0].schedule.bound for n, t in zip(account, target, strict=True))


OLD = Mixture({"web": "2/3", "hq": "1/3"}, 50)
NEW = Mixture({"web": "1/4", "hq": "1/4", "code": "1/2"}, 50)


@pytest.mark.parametrize("schedule", ["tree", "strict"])
def test_a_mixture_changed_on_resume_appends_a_stage(schedule):
    first = loader(OLD, schedule=schedule)
    head = stream_of([first], 30)
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(NEW, schedule=schedule)
    with pytest.warns(UserWarning, match=r"mixture has changed: up to position 240 \(960 tokens\).*code 1/2"):
        second.load_state_dict(state)
    # What was read stays what it was, to the sequence, and the rest follows the new ratios.
    old, new = first.accounting(), second.accounting()
    assert all(new[name] == old[name] for name in OLD.names) and new["code"].sequences == 0
    assert second.accounting(100)["web"] == first.accounting(100)["web"]
    tail = stream_of([second], 40)
    after = second.accounting()
    read = {name: after[name].sequences - new[name].sequences for name in NEW.names}
    for name, ratio in NEW.ratios.items():
        assert abs(read[name] - 320 * ratio) <= 2 * second.schedule.bound
    # A third process resumes the changed run without a word, on other ranks, and so does one told the whole story.
    state = json.loads(json.dumps(second.state_dict()))
    story = Mixture(stages=[Stage(OLD.ratios, until_tokens=240 * SEQ_LEN), Stage(NEW.ratios)], max_epochs=50)
    told = stream_of([loader(story, schedule=schedule)], 70)
    assert head + tail == told
    expected = stream_of([second], 10)
    third = loader(story, schedule=schedule)
    third.load_state_dict(state)
    assert stream_of([third], 10) == expected


def test_a_changed_mixture_resumes_twice_with_the_new_config_alone():
    """The usual case: the config says the new ratios, the checkpoint knows the history."""
    first = loader(OLD)
    stream_of([first], 30)
    second = loader(NEW)
    with pytest.warns(UserWarning, match="mixture has changed"):
        second.load_state_dict(first.state_dict())
    stream_of([second], 5)
    state = second.state_dict()
    third = loader(NEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it changes no more
        third.load_state_dict(state)
    assert third.state_dict() == second.state_dict() == state
    assert third.accounting() == second.accounting()
    assert stream_of([third], 20) == stream_of([second], 20)


def test_a_source_that_was_read_must_stay_listed():
    first = loader(NEW)
    stream_of([first], 5)
    with pytest.raises(ValueError, match="has read source 'code', which is not in the mixture; list it with ratio 0"):
        loader(OLD).load_state_dict(first.state_dict())
    kept = loader(Mixture({"web": "2/3", "hq": "1/3", "code": 0}, 50))
    with pytest.warns(UserWarning, match="mixture has changed"):
        kept.load_state_dict(first.state_dict())
    assert kept.accounting()["code"] == first.accounting()["code"]
    other = sources() | {"code": ArraySource(2, 4_001, fingerprint="edited")}
    with pytest.raises(ValueError, match=r"source\.code was .* is edited"):
        loader(NEW, sources=other).load_state_dict(first.state_dict())


def test_a_mixture_that_could_not_have_served_the_whole_run_may_finish_it():
    first = loader(OLD, num_sequences=800)
    stream_of([first], 80)
    scarce = sources(code=801)  # 200 sequences
    anneal = Mixture({"web": 0, "hq": 0, "code": 1})
    with pytest.raises(ValueError, match="'code' can give 200 sequences"):
        loader(anneal, sources=scarce, num_sequences=800)
    with pytest.warns(UserWarning, match="mixture has changed"):
        second = loader(anneal, sources=scarce, num_sequences=800, state=first.state_dict())
    assert second.position == 640 and sum(1 for _ in second) * 2 == 160
    assert second.accounting()["code"].sequences == 160
    early = loader(OLD, num_sequences=800)
    stream_of([early], 70)
    with pytest.raises(ValueError, match=r"'code' can give 200 sequences .* but the plan needs 240"):
        loader(anneal, sources=scarce, num_sequences=800, state=early.state_dict())


def test_a_stage_added_to_the_future_is_no_change_of_the_past():
    first = loader(OLD)
    stream_of([first], 30)
    annealed = Mixture(stages=[Stage(OLD.ratios, until_tokens=500 * SEQ_LEN), Stage({"code": 1})], max_epochs=50)
    second = loader(annealed)
    second.load_state_dict(first.state_dict())
    assert stream_of([second], 10) == stream_of([first], 10)


def test_edited_counters_of_a_strict_state_are_refused():
    first = loader(WARM_IN, num_sequences=800, schedule="strict")
    stream_of([first], 50)
    state = first.state_dict()
    assert sum(state["counts"].values()) == 400
    state["counts"]["web"] += 3
    second = loader(WARM_IN, num_sequences=800, schedule="strict")
    with pytest.raises(ValueError, match=r"counters .* are not those of this mixture at position 400"):
        second.load_state_dict(state)
    assert (
        second.position == 0
        and next(second).block.tobytes()
        == loader(WARM_IN, num_sequences=800, schedule="strict").batch_at(0).block.tobytes()
    )


@settings(max_examples=30, deadline=None)
@given(courses(max_sources=5, max_stages=3, longest=600), st.lists(st.integers(0, 5_000), min_size=1, max_size=8))
def test_periods_that_are_passed_at_once_give_what_walking_gives(case, positions):
    course, _ = case
    walked = StrictSchedule(course)
    walked._periods = [10**9] * len(walked._periods)  # never passed at once
    walked._cycles.clear()
    jumped = StrictSchedule(course)
    for position in positions:
        assert jumped.counts(position).tolist() == walked.counts(position).tolist()
        for a, b in zip(
            jumped.locate(np.arange(position, position + 40)),
            walked.locate(np.arange(position, position + 40)),
            strict=True,
        ):
            assert (a == b).all()


def test_a_strict_state_far_on_is_not_walked_to(monkeypatch):
    """The counters are the state: a position of 10^9 costs as little as the first."""
    mixture = Mixture(
        stages=[Stage({"web": "0.613", "hq": "0.287", "code": "0.1"}, until="1/2"), Stage({"web": "2/3", "hq": "1/3"})],
        max_epochs=10**9,
    )
    built = loader(mixture, num_sequences=2 * 10**9, schedule="strict")
    course = built.schedule.course
    position = 10**9 - 8
    counts = Schedule(course).counts(position).tolist()
    state = built.state_dict() | {"position": position, "counts": dict(zip(mixture.names, counts, strict=True))}
    state["stages"] = course.history(position)
    walked = []
    original = StrictSchedule._advance
    monkeypatch.setattr(StrictSchedule, "_advance", lambda self, n: walked.append(n) or original(self, n))
    built.load_state_dict(state)
    next(built)
    assert sum(walked) < 10**6


# --- exhaustion ---


def small():
    """10, 5 and 20 sequences of 4."""
    return sources(web=41, hq=21, code=81)


THREE = {"web": "1/2", "hq": "1/4", "code": "1/4"}


@pytest.mark.filterwarnings("ignore:mixture")
def test_stop_ends_the_stream_before_a_source_exceeds_its_passes():
    mixture = Mixture(THREE, on_exhaustion="stop")
    plan = plan_report(small(), mixture, 100, SEQ_LEN)
    end = plan.schedule.position(0, 10)
    assert plan.end == end == plan.max_num_sequences and [e.source for e in plan.exhaustions] == ["web"]
    assert "the run ends" in plan.notices()[0] and f"ends after {end} of 100 sequences" in plan.notices()[1]
    with pytest.warns(UserWarning, match="source 'web' has given its max_epochs: the run ends"):
        stream = loader(mixture, sources=small(), num_sequences=96)
    assert stream.num_sequences == end // 8 * 8
    assert sum(1 for _ in stream) * 2 == stream.num_sequences
    endless = loader(mixture, sources=small())
    assert sum(1 for _ in endless) * 2 == end // 8 * 8


@pytest.mark.filterwarnings("ignore:mixture")
def test_repeat_goes_on_reshuffled_and_says_so():
    mixture = Mixture(THREE, on_exhaustion="repeat")
    with pytest.warns(UserWarning, match="'hq' has given its max_epochs: it begins another pass, reshuffled"):
        stream = loader(mixture, sources=small(), num_sequences=160)
    read = {name: [] for name in mixture.names}
    for batch in stream:
        for source, row in zip(batch.source.tolist(), batch.block, strict=True):
            read[mixture.names[source]].append(int(row[0]))
    assert [len(rows) for rows in read.values()] == [80, 40, 40]
    assert len(set(read["hq"])) == 5 and len(set(read["web"])) == 10
    assert stream.plan.is_feasible and stream.plan.sources[1].epochs == 8


@pytest.mark.parametrize("schedule", ["tree", "strict"])
def test_renormalize_goes_on_with_the_others_from_that_position(schedule):
    mixture = Mixture(THREE, {"code": 3}, on_exhaustion="renormalize")
    plan = plan_report(small(), mixture, 60, SEQ_LEN, schedule=schedule)
    (first, second) = plan.exhaustions
    assert {first.source, second.source} == {"web", "hq"} and plan.end == 60
    assert [source.planned_sequences for source in plan.sources] == [10, 5, 45]
    with pytest.warns(UserWarning, match="the others share the stream in their proportions"):
        stream = loader(mixture, sources=small(), num_sequences=56, schedule=schedule)
    order = np.concatenate([batch.source[np.argsort(batch.position)] for batch in stream.__iter__()])
    assert np.bincount(order).tolist() == [10, 5, 41]
    # In between, the two that are left keep the proportions they had.
    between = plan.schedule.counts([first.position, second.position])
    left = [i for i, name in enumerate(mixture.names) if name != first.source]
    read = between[1] - between[0]
    ratios = [Fraction(THREE[mixture.names[i]]) for i in left]
    for i, ratio in zip(left, ratios, strict=True):
        assert abs(int(read[i]) - ratio / sum(ratios) * int(read.sum())) <= 2 * plan.schedule.bound
    assert read[mixture.names.index(first.source)] == 0


def test_renormalize_ends_where_nothing_is_left():
    mixture = Mixture(THREE, on_exhaustion="renormalize")
    plan = plan_report(small(), mixture, 1_000, SEQ_LEN)
    assert plan.end == 35 and [source.planned_sequences for source in plan.sources] == [10, 5, 20]
    assert len(plan.exhaustions) == 3
    stream = loader(mixture, sources=small(), global_batch_size=5, batch_size=5)
    rows = np.concatenate([batch.block[:, 0] for batch in stream])
    assert len(rows) == len(set(rows.tolist())) == 35  # every window of every source, once


def test_renormalized_runs_resume_exactly_even_with_other_caps():
    mixture = Mixture(THREE, {"code": 3}, on_exhaustion="renormalize")
    with pytest.warns(UserWarning):
        expected = list(loader(mixture, sources=small(), num_sequences=56))
        first = loader(mixture, sources=small(), num_sequences=56)
    for _ in range(16):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    with pytest.warns(UserWarning):
        second = loader(mixture, sources=small(), num_sequences=56)
    second.load_state_dict(state)  # no second word
    for found, batch in zip(second, expected[16:], strict=True):
        assert found.block.tobytes() == batch.block.tobytes()
    # Another cap from here on: what happened stays, what comes follows the new one.
    lifted = Mixture(THREE, 100, on_exhaustion="renormalize")
    third = loader(lifted, sources=small(), num_sequences=56)
    with pytest.warns(UserWarning, match="without"):
        third.load_state_dict(state)
    assert third.accounting() == first.accounting()
    assert third.accounting(56)["web"].sequences > 10


def test_a_source_below_one_sequence_is_refused_whatever_the_policy():
    for policy in ("refuse", "stop", "repeat", "renormalize"):
        with pytest.raises(ValueError, match=r"source 'hq' holds 4 tokens, less than one sequence"):
            loader(Mixture(THREE, on_exhaustion=policy), sources=sources(hq=4), num_sequences=80)


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="there are: refuse, stop, repeat, renormalize"):
        Mixture(THREE, on_exhaustion="ignore")


def test_a_plan_in_stages_names_the_mean_ratio_and_the_way_out():
    plan = plan_report({"web": 10**6, "hq": 10**6, "code": 10**6}, WARM_IN, 1_000, SEQ_LEN)
    assert [source.ratio for source in plan.sources] == [t / 1_000 for t in WARM_IN.course(1_000).target(1_000)]
    with pytest.raises(ValueError, match=r"source 'code' can give 10 sequences .* Lower its share"):
        plan_report({"web": 10**6, "hq": 10**6, "code": 41}, WARM_IN, 1_000, SEQ_LEN)
