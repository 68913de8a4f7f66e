"""The mixture as Lingua's loop takes it: its arrays, and a state that is good after every batch, through JSON."""

import itertools
import json
import os
import warnings

import numpy as np
import pytest

from lingua_synth.mixture import Mixture, MixtureLoader
from lingua_synth.mixture.lingua_batches import lingua_batches

from mixture_doubles import ArraySource  # isort: skip

SEQ_LEN = 8
MIXTURE = Mixture({"web": "0.5", "hq": "0.4", "code": "0.1"}, max_epochs=100)


def loader(**settings):
    sources = {"web": ArraySource(0, 405), "hq": ArraySource(1, 251), "code": ArraySource(2, 63)}
    settings = {"seq_len": SEQ_LEN, "batch_size": 2, "seed": 3, "num_sequences": 96, "mixture": MIXTURE} | settings
    return MixtureLoader(sources, settings.pop("mixture"), **settings)


def pairs(stream, state=None, count=None):
    with lingua_batches(stream, state) as batches:
        return list(itertools.islice(batches, count))


def through_json(state):
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("n_views", [2, 4])
def test_an_array_of_shifted_views(n_views):
    found = pairs(loader(n_views=n_views))
    plain = list(loader(n_views=n_views))
    assert len(found) == len(plain) == 48
    for (array, _), batch in zip(found, plain, strict=True):
        assert array.shape == (2, SEQ_LEN, n_views) and array.dtype == np.int64
        assert array.flags.c_contiguous and array.flags.writeable
        for v in range(n_views):
            assert (array[:, :, v] == batch.view(v)).all()


@pytest.mark.parametrize("schedule", ["tree", "strict"])
@pytest.mark.parametrize("dp_size", [1, 2])
def test_every_state_goes_on_with_the_next_batch(schedule, dp_size):
    """The global batch is 16: of 8 or 4 micro-batches, so most states lie inside one."""
    settings = {"global_batch_size": 16, "dp_size": dp_size, "dp_rank": dp_size - 1, "schedule": schedule}
    whole = pairs(loader(**settings))
    assert len(whole) == 96 // dp_size // 2
    for k, (_, state) in enumerate(whole):
        assert len(json.dumps(state)) < 1_000
        rest = pairs(loader(prefetch=k % 3, **settings), through_json(state))
        assert [a.tobytes() for a, _ in rest] == [a.tobytes() for a, _ in whole[k + 1 :]]
        assert [s for _, s in rest] == [s for _, s in whole[k + 1 :]]


def test_states_of_different_batches_share_nothing():
    with lingua_batches(loader(global_batch_size=16)) as batches:
        states = [next(batches)[1] for _ in range(3)]
    before = json.dumps(states[1:])
    states[0]["fingerprint"].clear()
    states[0]["stages"].clear()
    assert json.dumps(states[1:]) == before and len({json.dumps(state) for state in states}) == 3


def test_all_ranks_have_the_same_state():
    ranks = [pairs(loader(global_batch_size=16, dp_rank=rank, dp_size=4)) for rank in range(4)]
    for states in zip(*[[state for _, state in rank] for rank in ranks], strict=True):
        assert all(state == states[0] for state in states)


def rows(dp_size, state, count, **settings):
    """Rows of the next `count` global batches of 16, over all ranks in order."""
    each = 16 // dp_size // settings["batch_size"]
    ranks = [
        [array for array, _ in pairs(loader(dp_rank=r, dp_size=dp_size, **settings), state, count * each)]
        for r in range(dp_size)
    ]
    return [
        np.concatenate([array for rank in ranks for array in rank[g * each : (g + 1) * each]]).tobytes()
        for g in range(count)
    ]


def test_other_ranks_and_batch_sizes_go_on_between_global_batches():
    settings = {"global_batch_size": 16}
    _, state = pairs(loader(dp_rank=1, dp_size=2, **settings))[4 * 2 - 1]
    assert "given" not in state and state["position"] == 32
    expected = rows(1, None, 6, batch_size=2, **settings)[2:]
    for dp_size, batch_size in [(1, 2), (2, 2), (4, 2), (8, 1), (2, 8)]:
        assert rows(dp_size, through_json(state), 4, batch_size=batch_size, **settings) == expected
    plain = loader(**settings)
    plain.load_state_dict(state)  # it is the loader's own
    assert plain.position == 32


def test_inside_a_global_batch_another_batch_size_goes_on():
    settings = {"global_batch_size": 16, "dp_size": 2, "dp_rank": 1}
    whole = pairs(loader(**settings))
    _, state = whole[5]  # the second global batch of four, two of them given
    assert state["position"] == 16 and state["given"]["sequences_per_rank"] == 4
    expected = np.concatenate([array for array, _ in whole[6:]])
    for batch_size in (1, 2, 4):
        rest = pairs(loader(**settings | {"batch_size": batch_size}), state)
        assert (np.concatenate([array for array, _ in rest]) == expected).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"dp_size": 4},
            "each rank had been given 4 sequences; .*: dp_size was 2, is 4. Go on with the former settings",
        ),
        ({"global_batch_size": 32}, "global_batch_size was 16, is 32"),
        ({"slot_permutation": False}, "slot_permutation was True, is False"),
        ({"batch_size": 8}, "batch_size 8 does not divide them"),
        ({"seed": 4}, "another stream: seed was 3, is 4"),
    ],
)
def test_inside_a_global_batch_what_cannot_go_on_is_refused(change, message):
    settings = {"global_batch_size": 16, "dp_size": 2}
    _, state = pairs(loader(**settings))[1]
    stream = loader(**settings | change)
    with pytest.raises(ValueError, match=message), lingua_batches(stream, state):
        pass
    assert stream.position == 0
    del state["given"]  # the way out that the message names
    if "seed" not in change:
        assert len(pairs(stream, state)) == stream.num_batches


def test_a_state_that_is_none_is_refused():
    _, state = pairs(loader(global_batch_size=16))[0]
    for given in [7, {}, state["given"] | {"sequences_per_rank": "2"}, state["given"] | {"more": 1}]:
        with pytest.raises(ValueError, match="'given' should tell sequences_per_rank"):
            pairs(loader(global_batch_size=16), state | {"given": given})
    for count in (0, -2, 16, 18):
        with pytest.raises(ValueError, match="taken inside a global batch"):
            broken = state | {"given": state["given"] | {"sequences_per_rank": count}}
            pairs(loader(global_batch_size=16), broken)
    with pytest.raises(ValueError, match="no state of a mixture loader"):
        pairs(loader(), {"it_state": {}, "seq_idx": 3})


def test_without_a_state_it_goes_on_where_the_loader_stands():
    stream = loader(global_batch_size=16)
    whole = pairs(loader(global_batch_size=16))
    for _ in range(5):
        next(stream)
    rest = pairs(stream)
    assert [s for _, s in rest] == [s for _, s in whole[5:]]
    assert all((a == b).all() for (a, _), (b, _) in zip(rest, whole[5:], strict=True))


def test_another_mixture_holds_from_the_next_global_batch_on():
    """Its history travels in Lingua's state, so that the run can be resumed again and again."""
    later = Mixture({"web": "0.1", "hq": "0.8", "code": "0.1"}, max_epochs=100)
    _, state = pairs(loader(global_batch_size=16))[7]
    with pytest.warns(UserWarning, match="the mixture has changed"):
        changed = pairs(loader(global_batch_size=16, mixture=later), through_json(state))
    for k in (2, 7, 8, 20):  # inside the first new global batch, at its end, behind it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if k < 7 else "error")  # before its end, nothing new is history
            resumed = pairs(loader(global_batch_size=16, mixture=later), through_json(changed[k][1]))
        assert [a.tobytes() for a, _ in resumed] == [a.tobytes() for a, _ in changed[k + 1 :]]
    _, inside = pairs(loader(global_batch_size=16))[9]
    stream = loader(global_batch_size=16, mixture=later)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="in other slices: mixture was"):
        pairs(stream, inside)
    assert stream.position == 0 and stream.state_dict() == loader(mixture=later).state_dict()


@pytest.mark.skipif("LINGUA_DIR" not in os.environ, reason="needs a checkout of Meta Lingua in LINGUA_DIR")
def test_rows_are_what_linguas_packing_makes_of_the_source(monkeypatch):
    """One document as long as the source, packed by Lingua: the same windows, in the order of the source."""
    monkeypatch.syspath_prepend(os.environ["LINGUA_DIR"])
    from lingua.data import PackTokensState, batch_and_shuffle_prefetched_sequences, pack_tokens

    source = ArraySource(0, 405)
    for n_views in (2, 3):
        empty = PackTokensState(start_token=0, it_state=None, output_seq_len=SEQ_LEN, n_views=n_views, seq_len=0)
        packed = pack_tokens(iter([(source.tokens.tolist(), None)]), empty)
        expected = [array.copy() for array, _ in packed]
        stream = MixtureLoader({"a": source}, {"a": 1}, SEQ_LEN, 2, num_sequences=50, n_views=n_views)
        ours = np.concatenate([array for array, _ in pairs(stream)])
        assert len(expected) == len(ours) == 50
        assert (ours[np.argsort(ours[:, 0, 0])] == np.stack(expected)).all()
    prefetch = {"it_state": None, "seq_idx": 0, "rng_state": np.random.default_rng(0).bit_generator.state}
    sequences = itertools.cycle((array, None) for array in expected)
    theirs, _ = next(batch_and_shuffle_prefetched_sequences(sequences, 2, 4, SEQ_LEN, 3, prefetch))
    array, state = pairs(stream := loader(n_views=3))[0]
    assert (array.shape, array.dtype, array.flags.c_contiguous) == (theirs.shape, theirs.dtype, True)
    # What Lingua's TrainState does with a state that comes back from its json.
    assert pairs(stream, PackTokensState(**through_json(state)))[0][1] == pairs(loader(n_views=3))[1][1]
