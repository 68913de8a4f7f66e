"""One global order: the same bytes for any number of ranks, any micro-batch and any restart; every window once."""

import ast
import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.files import sha256_bytes
from lingua_synth.mixture import Mixture, MixtureLoader, Schedule

from mixture_doubles import BASE, ArraySource  # isort: skip

SEQ_LEN = 8


def three_sources():
    """50, 30 and 7 windows of 8."""
    return {"web": ArraySource(0, 401), "hq": ArraySource(1, 247), "code": ArraySource(2, 63)}


MIXTURE = Mixture({"web": "0.5", "hq": "0.4", "code": "0.1"}, max_epochs=100)


def loader(**settings):
    settings = {"seq_len": SEQ_LEN, "batch_size": 4, "seed": 3} | settings
    return MixtureLoader(settings.pop("sources", None) or three_sources(), settings.pop("mixture", MIXTURE), **settings)


def global_batches(count, loaders):
    """The next `count` global batches as blocks [global_batch_size, seq_len + 1] and positions, ranks in order."""
    blocks, positions = [], []
    for _ in range(count):
        per_rank = [
            [next(rank) for _ in range(rank.global_batch_size // rank.dp_size // rank.batch_size)] for rank in loaders
        ]
        blocks.append(np.concatenate([batch.block for batches in per_rank for batch in batches]))
        positions.append(np.concatenate([batch.position for batches in per_rank for batch in batches]))
    return np.stack(blocks), np.stack(positions)


def ranks(dp_size, **settings):
    return [loader(dp_rank=rank, dp_size=dp_size, **settings) for rank in range(dp_size)]


def window_of(batch):
    """(source, window) of every row, told from its tokens."""
    return [(int(row[0]) // BASE, int(row[0]) % BASE // SEQ_LEN) for row in batch.block]


# --- batches ---


def test_a_batch_is_one_block_with_views():
    batch = next(loader())
    assert batch.block.shape == (4, SEQ_LEN + 1) and batch.block.dtype == np.int32
    assert batch.tokens.shape == batch.labels.shape == (4, SEQ_LEN)
    assert np.shares_memory(batch.tokens, batch.block) and np.shares_memory(batch.labels, batch.block)
    assert (batch.labels[:, :-1] == batch.tokens[:, 1:]).all()
    assert (batch.labels == batch.tokens + 1).all()  # tokens count up: labels are the tokens after
    assert batch.source.shape == batch.position.shape == (4,)
    assert batch.block.flags.writeable  # torch.from_numpy wants it


def test_rows_are_windows_of_the_source_they_name():
    stream = loader()
    for _ in range(60):
        batch = next(stream)
        expected = [source for source, _ in window_of(batch)]
        assert batch.source.tolist() == expected
        assert (batch.block % BASE % SEQ_LEN == np.arange(SEQ_LEN + 1) % SEQ_LEN).all()
        assert (batch.source == Schedule(MIXTURE).locate(batch.position)[0]).all()


def test_batches_do_not_share_memory():
    stream = loader()
    first = next(stream)
    kept = first.block.copy()
    second = next(stream)
    second.block[:] = -1
    assert (first.block == kept).all() and not np.shares_memory(first.block, second.block)


def test_sixteen_bit_tokens_above_the_sign_bit_arrive_whole():
    source = ArraySource(0, 100)
    source.tokens = np.full(100, 65_535, dtype=np.uint16)
    assert (next(loader(sources={"a": source}, mixture=Mixture({"a": 1}))).block == 65_535).all()


# --- exactness ---


def test_in_every_epoch_every_window_is_read_exactly_once_in_a_new_order():
    stream = loader(global_batch_size=4)
    read = [[], [], []]
    for _ in range(1_000):
        batch = next(stream)
        for row in np.argsort(batch.position):
            source, window = window_of(batch)[row]
            read[source].append(window)
    for source, num_windows in enumerate((50, 30, 7)):
        epochs = [read[source][i : i + num_windows] for i in range(0, len(read[source]), num_windows)]
        assert len(epochs) > 30
        for epoch in epochs[:-1]:
            assert sorted(epoch) == list(range(num_windows))
        assert len(set(epochs[-1])) == len(epochs[-1])
        assert len({tuple(epoch) for epoch in epochs[:-1]}) >= len(epochs) - 2


def test_every_token_but_the_first_is_predicted_once_per_epoch():
    source = ArraySource(0, 401)
    stream = loader(sources={"a": source}, mixture=Mixture({"a": 1}), batch_size=5, num_sequences=50)
    predicted = np.concatenate([batch.labels.ravel() for batch in stream])
    assert sorted(predicted.tolist()) == list(range(1, 401))


def test_global_batches_are_consecutive_positions_in_shuffled_slots():
    _, positions = global_batches(200, [loader(global_batch_size=16)])
    assert (np.sort(positions, axis=1) == np.arange(200 * 16).reshape(200, 16)).all()
    slots = positions % 16
    assert len({tuple(row) for row in slots}) == 200
    # No slot is tied to a place: over 200 batches each place sees at least 13 of the 16 slots (all but surely).
    assert min(len(set(column)) for column in slots.T) >= 13
    _, in_order = global_batches(5, [loader(global_batch_size=16, slot_permutation=False)])
    assert (in_order == np.arange(5 * 16).reshape(5, 16)).all()


def test_slots_spread_a_source_over_the_ranks():
    """At 1/2 : 1/2 the schedule alternates: unshuffled, rank 0 of 2 at batch_size 1 would read one source for ever."""
    mixture = Mixture({"web": "1/2", "hq": "1/2"}, 10)
    sources = {"web": ArraySource(0, 4001), "hq": ArraySource(1, 4001)}
    plain = loader(sources=sources, mixture=mixture, batch_size=1, dp_size=2, slot_permutation=False)
    assert len({int(next(plain).source[0]) for _ in range(100)}) == 1
    shuffled = loader(sources=sources, mixture=mixture, batch_size=1, dp_size=2)
    seen = [int(next(shuffled).source[0]) for _ in range(100)]
    assert 25 < sum(seen) < 75


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=8),
    st.sampled_from([(1, 1), (2, 1), (1, 3), (4, 2)]),
    st.integers(0, 2**40),
)
def test_counts_are_the_schedule_s_at_every_global_batch(weights, sizes, seed):
    dp_size, micro = sizes
    sources = {f"s{i}": ArraySource(i, 300 + 17 * i) for i in range(len(weights))}
    mixture = Mixture({f"s{i}": Fraction(w, sum(weights)) for i, w in enumerate(weights)}, 1_000)
    settings = dict(seq_len=SEQ_LEN, batch_size=2, dp_size=dp_size, global_batch_size=2 * dp_size * micro, seed=seed)
    stream = [MixtureLoader(sources, mixture, dp_rank=rank, **settings) for rank in range(dp_size)]
    counts = np.zeros(len(weights), dtype=int)
    for _ in range(12):
        blocks, _ = global_batches(1, stream)
        counts += np.bincount(blocks[0, :, 0] // BASE, minlength=len(weights))
        account = stream[0].accounting()
        assert counts.tolist() == [account[name].sequences for name in mixture.names]
        for name, ratio in mixture.ratios.items():
            assert abs(account[name].sequences - ratio * stream[0].position) <= stream[0].schedule.bound


def test_the_share_of_tokens_is_exact_however_long_the_documents():
    """What Lingua misses by 20 %: asked 2/3 and 1/3 of the tokens, delivered to half a sequence, at any time."""
    sources = {"long": ArraySource(0, 40_001), "short": ArraySource(1, 20_001)}
    stream = loader(sources=sources, mixture=Mixture({"long": "2/3", "short": "1/3"}))
    tokens = np.zeros(2, dtype=int)
    for _ in range(1_000):
        batch = next(stream)
        tokens += np.bincount(batch.source, minlength=2) * SEQ_LEN
        assert abs(Fraction(int(tokens[0])) - Fraction(2, 3) * int(tokens.sum())) <= Fraction(SEQ_LEN, 2)


# --- ranks ---


@pytest.mark.parametrize("dp_size", [2, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_global_stream_is_the_same_bytes_for_any_number_of_ranks(dp_size, batch_size):
    expected, expected_positions = global_batches(30, [loader(batch_size=16)])
    found, positions = global_batches(30, ranks(dp_size, batch_size=batch_size, global_batch_size=16))
    assert found.tobytes() == expected.tobytes()
    assert positions.tobytes() == expected_positions.tobytes()


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1), (2, 4), (4, 2), (8, 2)])
def test_the_number_of_ranks_may_change_half_way(before, after):
    expected, _ = global_batches(40, [loader(batch_size=16)])
    first_half = ranks(before, batch_size=2, global_batch_size=16)
    head, _ = global_batches(17, first_half)
    states = [rank.state_dict() for rank in first_half]
    assert all(state == states[0] for state in states)
    second_half = ranks(after, batch_size=1, global_batch_size=16)
    for rank in second_half:
        rank.load_state_dict(json.loads(json.dumps(states[0])))
    tail, _ = global_batches(23, second_half)
    assert np.concatenate([head, tail]).tobytes() == expected.tobytes()


def test_another_global_batch_size_continues_the_same_order_of_positions():
    whole = {}
    for batch in (next(stream) for stream in [loader()] for _ in range(60)):
        whole |= dict(zip(batch.position.tolist(), batch.block, strict=True))
    stream = loader(global_batch_size=8)
    for _ in range(6):
        next(stream)
    # 24 sequences in; 20 is no multiple of 8, 24 is none of 20: any size can take over at any batch's end.
    larger = loader(batch_size=5, global_batch_size=20)
    larger.load_state_dict(stream.state_dict())
    assert larger.position == 24 and larger.num_global_batches_done == 1
    _, positions = global_batches(3, [larger])
    assert (np.sort(positions.ravel()) == np.arange(24, 84)).all()
    larger.load_state_dict(stream.state_dict())
    for _ in range(12):
        batch = next(larger)
        assert all((whole[p] == row).all() for p, row in zip(batch.position.tolist(), batch.block, strict=True))


# --- state ---


@pytest.mark.parametrize("stop", [0, 1, 13, 17, 18, 19, 200])
def test_resume_is_byte_equal_also_over_an_epoch_boundary(stop):
    """`code` (7 windows, one tenth) starts an epoch at positions 70, 140, ...: between batches 17 and 18 of 4."""
    expected, _ = global_batches(230, [loader()])
    stream = loader()
    if stop:
        global_batches(stop, [stream])
    resumed = loader()
    global_batches(5, [resumed])  # what it had read before is forgotten
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert resumed.num_global_batches_done == stop and resumed.position == 4 * stop
    found, _ = global_batches(230 - stop, [resumed])
    assert found.tobytes() == expected[stop:].tobytes()


def test_resume_at_a_far_position_reads_no_more_than_it_delivers():
    stream = loader(mixture=Mixture(MIXTURE.ratios, 10**12))
    state = stream.state_dict() | {"position": 4 * 10**11}
    stream.load_state_dict(state)
    sources = three_sources()
    far = loader(sources=sources, mixture=Mixture(MIXTURE.ratios, 10**12))
    far.load_state_dict(state)
    batch = next(far)
    assert sorted(batch.position.tolist()) == list(range(4 * 10**11, 4 * 10**11 + 4))
    assert (batch.block == next(stream).block).all()
    assert sum(source.num_reads for source in sources.values()) == 4


def test_state_is_small_and_plain():
    state = loader().state_dict()
    assert set(state) == {"version", "fingerprint", "position", "stages"}
    assert json.loads(json.dumps(state)) == state
    assert len(json.dumps(state)) < 1_000
    many = {f"source-{i:04d}": ArraySource(i, 30) for i in range(1_000)}
    mixture = Mixture({name: Fraction(1, 1_000) for name in many})
    assert len(json.dumps(loader(sources=many, mixture=mixture).state_dict())) < 1_000


def test_there_is_no_state_inside_a_global_batch():
    stream = loader(global_batch_size=12)
    next(stream)
    with pytest.raises(ValueError, match="1 of 3 micro-batches of the one at position 0 are delivered"):
        stream.state_dict()
    next(stream), next(stream)
    assert stream.state_dict()["position"] == 12


def other_tokens():
    return three_sources() | {"hq": ArraySource(1, 247, fingerprint="another")}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 4}, ["seed was 3, is 4"]),
        ({"seq_len": 4}, ["seq_len was 8, is 4"]),
        ({"sources": other_tokens()}, ["source.hq was 0001-000000247-f, is another"]),
        ({"seed": 4, "schedule": "strict"}, ["schedule was tree, is strict", "seed was 3"]),
    ],
)
def test_another_stream_is_refused_by_name_and_can_be_forced(settings, named):
    state = loader().state_dict() | {"position": 40}
    other = loader(**settings)
    with pytest.raises(ValueError) as caught:
        other.load_state_dict(state)
    for words in named:
        assert words in str(caught.value)
    assert other.position == 0
    keys = ast.literal_eval(str(caught.value).partition("ignore=")[2].removesuffix(")"))
    other.load_state_dict(state, ignore=keys)
    assert other.position == 40 and sorted(next(other).position.tolist()) == [40, 41, 42, 43]
    if len(keys) > 1:
        with pytest.raises(ValueError, match="another stream"):
            other.load_state_dict(state, ignore=keys[:1])


def test_many_sources_are_fingerprinted_whole():
    many = {f"s{i}": ArraySource(i, 30) for i in range(40)}
    mixture = Mixture({name: Fraction(1, 40) for name in many})
    state = loader(sources=many, mixture=mixture).state_dict()
    loader(sources=many, mixture=mixture).load_state_dict(state)
    with pytest.raises(ValueError, match="sources was"):
        loader(sources=many | {"s7": ArraySource(7, 30, fingerprint="x")}, mixture=mixture).load_state_dict(state)
    state["position"] = 8
    changed = Mixture(mixture.ratios | {"s1": Fraction(1, 80), "s2": Fraction(3, 80)})
    with pytest.raises(ValueError, match=r"only the hash: load_state_dict\(state, earlier="):
        loader(sources=many, mixture=changed).load_state_dict(state)
    with pytest.raises(ValueError, match="not the one that the state was saved with"):
        loader(sources=many, mixture=changed).load_state_dict(state, earlier=changed)
    stream = loader(sources=many, mixture=changed)
    with pytest.warns(UserWarning, match="the mixture has changed"):
        stream.load_state_dict(state, earlier=mixture)
    assert stream.accounting(8) == loader(sources=many, mixture=mixture).accounting(8)


def test_what_does_not_change_the_stream_does_not_change_the_fingerprint():
    state = loader().state_dict()
    sources = dict(reversed(three_sources().items()))
    reordered = Mixture(dict(reversed(MIXTURE.ratios.items())) | {"spare": 0}, 7)
    same = loader(
        sources=sources | {"spare": ArraySource(9, 10)}, mixture=reordered, batch_size=2, dp_size=2, num_sequences=40
    )
    same.load_state_dict(state)
    _, positions = global_batches(1, [loader()])
    by_position = dict(zip(positions[0].tolist(), global_batches(1, [loader()])[0][0], strict=True))
    batch = next(same)
    for position, row in zip(batch.position.tolist(), batch.block, strict=True):
        assert (by_position[position] == row).all()
    assert [reordered.names[i] for i in batch.source] == [
        MIXTURE.names[i] for i in Schedule(MIXTURE).locate(batch.position)[0]
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "loader state of version 1; this release reads version 2"),
        ({"version": None}, "version None"),
        ({"position": -4}, "the state's position must be a whole number of at least 0, got -4"),
        ({"position": 4.0}, "the state's position must be a whole number"),
        ({"position": 80}, "stands at position 80, behind the end of this loader at 40"),
        (
            {"position": 2},
            "38 sequences from position 2 to num_sequences 40 are no whole number of global batches of 4",
        ),
        ({"extra": 1}, "no state of a mixture loader"),
    ],
)
def test_bad_states_are_refused_and_leave_the_loader_alone(change, message):
    stream = loader(num_sequences=40)
    next(stream)
    with pytest.raises(ValueError, match=message):
        stream.load_state_dict(stream.state_dict() | change)
    assert stream.position == 4
    assert sorted(next(stream).position.tolist()) == [4, 5, 6, 7]


@pytest.mark.parametrize("bad", [None, {}, [], "state", {"position": 3}])
def test_what_is_no_state_is_refused(bad):
    with pytest.raises(ValueError, match="no state of a mixture loader"):
        loader().load_state_dict(bad)


# --- the end ---


def test_the_stream_ends_after_num_sequences_and_stays_ended():
    stream = loader(num_sequences=40)
    assert len(list(stream)) == 10
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)
    again = loader(num_sequences=48)  # a longer run goes on from the end of a shorter one
    again.load_state_dict(stream.state_dict())
    assert [sorted(batch.position.tolist()) for batch in again] == [[40, 41, 42, 43], [44, 45, 46, 47]]
    assert list(loader(num_sequences=0)) == []


def test_a_stream_that_its_sources_cannot_serve_is_refused_before_it_starts():
    sources = three_sources()
    with pytest.raises(
        ValueError, match=r"source 'code' can give 7 sequences \(7 x max_epochs 1\) but the plan needs 8"
    ):
        loader(sources=sources, mixture=Mixture(MIXTURE.ratios), num_sequences=80)
    assert all(source.num_reads == 0 for source in sources.values())


def test_without_a_length_it_stops_loudly_before_a_source_repeats_too_often():
    mixture = Mixture({"web": "2/3", "hq": "1/3"})
    sources = {"web": ArraySource(0, 401), "hq": ArraySource(1, 65)}  # 50 and 8 windows
    stream = loader(sources=sources, mixture=mixture)
    end = Schedule(mixture).position(1, 8)
    for _ in range(end // 4):
        next(stream)
    for _ in range(2):  # every rank says so at the same batch, each time it is asked
        with pytest.raises(ValueError, match=f"used up: a source exceeds its max_epochs at position {end}"):
            next(stream)
    assert stream.state_dict()["position"] == end // 4 * 4


# --- accounting ---


def test_accounting_is_exact_at_any_position_without_reading():
    sources = three_sources()
    stream = loader(sources=sources)
    account = stream.accounting(10**12)
    assert [account[name].sequences for name in MIXTURE.names] == [5 * 10**11, 4 * 10**11, 10**11]
    assert account["code"].tokens == 8 * 10**11 and account["code"].epochs == Fraction(10**11, 7)
    assert stream.accounting()["web"].sequences == 0
    assert all(source.num_reads == 0 for source in sources.values())
    with pytest.raises(ValueError, match="position must be a whole number"):
        stream.accounting(-1)


# --- refusals ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 0}, "seq_len must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"dp_size": 0}, "dp_size must be"),
        ({"dp_rank": -1}, "dp_rank must be"),
        ({"dp_rank": 2, "dp_size": 2}, "dp_rank 2 is no place among dp_size 2; ranks are 0 to 1"),
        (
            {"global_batch_size": 20, "dp_size": 2},
            "global_batch_size 20 is no multiple of batch_size x dp_size = 4 x 2 = 8; 16 or 24",
        ),
        ({"global_batch_size": 2}, "global_batch_size 2 is no multiple of batch_size x dp_size = 4 x 1 = 4; 4"),
        ({"num_sequences": 42}, "42 sequences from position 0 .* choose num_sequences so that 40 or 44 remain"),
        ({"num_sequences": -4}, "num_sequences must be"),
        ({"seed": 1.5}, "seed must be a whole number"),
        (
            {"seq_len": 64},
            r"source 'code' holds 63 tokens, less than one sequence of 64 \+ 1. Lower seq_len to at most 62",
        ),
        ({"sources": {"web": ArraySource(0, 99)}}, "the mixture names 'hq', 'code', which is not among"),
        ({"sources": three_sources() | {"x": ArraySource(0, 99)}}, "no ratio for 'x'"),
        (
            {"sources": three_sources() | {"hq": ArraySource(1, 247, sha256="v2")}},
            r"source 'hq' was tokenized with bytes \(v2\), source 'web' with bytes \(v1\)",
        ),
        ({"mixture": {"web": 0.5, "hq": 0.5, "code": 0.1}}, "sum to exactly 1, got 11/10"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        # A first batch large enough that every source is asked for something.
        loader(**({"num_sequences": 40} | settings))


def test_a_source_of_ratio_zero_may_be_empty():
    sources = three_sources() | {"later": ArraySource(3, 0)}
    stream = loader(sources=sources, mixture=Mixture(MIXTURE.ratios | {"later": 0}, 100))
    next(stream)
    assert stream.accounting()["later"].sequences == 0 and stream.accounting()["later"].epochs == 0


# --- contract ---


def test_the_stream_never_changes_between_releases():
    """A change here changes the data order of every run there is: it needs a new STATE_VERSION and the changelog."""
    stream = loader()
    first, second = next(stream), next(stream)
    assert first.position.tolist() == [0, 1, 3, 2] and second.position.tolist() == [4, 7, 5, 6]
    assert window_of(first) == [(1, 3), (0, 18), (0, 8), (1, 2)]
    assert window_of(second) == [(2, 2), (0, 48), (0, 45), (1, 17)]
    blocks, _ = global_batches(200, [loader()])
    assert (
        sha256_bytes(blocks.astype("<i4").tobytes())
        == "33bd951b746505b6762617c88428d7dc715d0437b8e75047454a9ef8637f50af"
    )


def test_real_shards(shards):
    from lingua_synth.tokens import TokenSource

    sources = {name: TokenSource(shards[name]) for name in ("natural", "synthetic")}
    stream = MixtureLoader(sources, Mixture({"natural": "2/3", "synthetic": "1/3"}), seq_len=32, num_sequences=240)
    read = {name: set() for name in sources}
    for batch in stream:
        for i, row in zip(batch.source, batch.block, strict=True):
            read[stream.mixture.names[i]].add(row.tobytes())
    for name, count in (("natural", 160), ("synthetic", 80)):
        whole = sources[name].window(0, sources[name].num_tokens).astype(np.int32)
        windows = {whole[i * 32 : i * 32 + 33].tobytes() for i in range(stream.num_windows[name])}
        assert len(read[name]) == count and read[name] <= windows


# --- views, documents, random access ---


def test_more_views_are_tokens_further_ahead():
    batch = next(loader(n_views=4))
    assert batch.block.shape == (4, SEQ_LEN + 3)
    for offset in range(4):
        assert (batch.view(offset) == batch.tokens + offset).all()
    assert (batch.labels == batch.view(1)).all()
    with pytest.raises(ValueError, match="no view 4"):
        batch.view(4)


def test_more_views_leave_the_last_window_out_that_lacks_the_tokens():
    source = ArraySource(0, 33)  # 4 windows of 8 + 1
    mixture = Mixture({"a": 1}, 2)
    assert loader(sources={"a": source}, mixture=mixture).num_windows == {"a": 4}
    assert loader(sources={"a": source}, mixture=mixture, n_views=3).num_windows == {"a": 3}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=5, max_size=60))
def test_document_boundaries_are_those_of_the_source(lengths):
    ends = np.cumsum(lengths)
    source = ArraySource(0, int(ends[-1]))
    starts = np.concatenate([[0], ends[:-1]])
    source.document_starts = lambda start, length: starts[(starts >= start) & (starts < start + length)] - start
    if source.num_tokens <= 5:
        return
    stream = loader(
        sources={"a": source}, mixture=Mixture({"a": 1}, 10), seq_len=4, batch_size=2, document_boundaries=True
    )
    which = np.searchsorted(ends, np.arange(source.num_tokens), side="right")
    for _ in range(3):
        batch = next(stream)
        expected = which[batch.tokens]
        assert (batch.document == expected - expected[:, :1]).all()
        cuts = batch.cu_seqlens()
        assert cuts[0] == 0 and cuts[-1] == batch.tokens.size and set(cuts.tolist()) >= {0, 4, 8}
        pieces = [which[batch.tokens.ravel()[a:b]] for a, b in itertools.pairwise(cuts)]
        assert all(len(set(piece.tolist())) == 1 for piece in pieces)
    with pytest.raises(ValueError, match="document_boundaries"):
        next(loader()).cu_seqlens()


def test_a_source_without_documents_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'web' cannot tell where its documents begin"):
        loader(document_boundaries=True)


@pytest.mark.parametrize("dp_size", [1, 2])
def test_any_batch_can_be_asked_for_at_any_time(dp_size):
    for rank in ranks(dp_size, batch_size=2, global_batch_size=16, num_sequences=160):
        expected = list(rank)
        assert rank.num_batches == len(expected)
        for index in (3, 0, len(expected) - 1, 7):
            found = rank.batch_at(index)
            assert found.block.tobytes() == expected[index].block.tobytes()
            assert (found.position == expected[index].position).all() and (found.source == expected[index].source).all()
        with pytest.raises(ValueError, match=f"no batch {len(expected)}"):
            rank.batch_at(len(expected))


def test_a_batch_becomes_a_tensor_that_shares_its_memory():
    torch = pytest.importorskip("torch")
    batch = next(loader(pin_memory=True))  # without CUDA: plain memory
    tensor = batch.to_torch()
    assert tensor.dtype == torch.int32 and (tensor.numpy() == batch.block).all()
    tensor[0, 0] = -5
    assert batch.block[0, 0] == -5


@pytest.mark.parametrize("schedule", ["tree", "strict"])
def test_one_stream_through_one_two_four_and_eight_ranks_restarted_at_epoch_boundaries(schedule):
    """Restarts where the web source ends a pass, on another number of ranks and another micro-batch each time."""
    settings = dict(global_batch_size=8, schedule=schedule, num_sequences=1_600)
    expected, _ = global_batches(200, [loader(batch_size=8, **settings)])
    account = loader(batch_size=8, **settings).accounting
    # Global batches in which a source's first, second, ... pass ends.
    boundaries = [b for b in range(1, 200) if int(account(8 * b)["web"].epochs) > int(account(8 * b - 8)["web"].epochs)]
    assert len(boundaries) > 10
    found, done, state = [], 0, None
    for dp_size, stop in zip((1, 2, 4, 8, 2, 1), [*boundaries[1:10:2], 200], strict=True):
        streams = ranks(dp_size, batch_size=max(1, 4 // dp_size), **settings)
        for rank in streams:
            if state is not None:
                rank.load_state_dict(state)
        blocks, _ = global_batches(stop - done, streams)
        found.append(blocks)
        done, state = stop, json.loads(json.dumps(streams[-1].state_dict()))
    assert np.concatenate(found).tobytes() == expected.tobytes()
