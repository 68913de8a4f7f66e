"""Reading ahead changes nothing but when; threads end, errors and ends arrive in their place."""

import gc
import threading
import time

import numpy as np
import pytest

from lingua_synth.mixture import Mixture, MixtureLoader
from lingua_synth.mixture.prefetch import Prefetcher

from mixture_doubles import ArraySource  # isort: skip


def wait_until(condition):
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_the_same_items_in_the_same_order():
    assert list(Prefetcher(iter(range(500)), 3)) == list(range(500))
    assert list(Prefetcher(iter([]), 1)) == []


def test_at_most_depth_items_are_made_ahead():
    made = []
    ahead = Prefetcher((made.append(i) or i for i in range(100)), 4)
    assert next(ahead) == 0
    assert wait_until(lambda: len(made) == 6)  # one taken, four ready, one in hand
    time.sleep(0.05)
    assert len(made) == 6
    assert list(ahead) == list(range(1, 100))


def test_an_error_comes_in_its_place_and_stays():
    def items():
        yield 1
        yield 2
        raise ValueError("the disk is gone")

    ahead = Prefetcher(items(), 8)
    assert [next(ahead), next(ahead)] == [1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="the disk is gone"):
            next(ahead)


def test_the_end_stays_the_end():
    ahead = Prefetcher(iter([1]), 1)
    assert list(ahead) == [1] and list(ahead) == []


def test_a_forgotten_or_closed_prefetcher_ends_its_thread():
    for let_go in (lambda p: None, lambda p: p.close()):
        ahead = Prefetcher(iter(range(10**9)), 2)
        thread = ahead._thread
        assert thread.is_alive() and thread.daemon
        let_go(ahead)
        del ahead
        gc.collect()
        assert wait_until(lambda thread=thread: not thread.is_alive())


MIXTURE = Mixture({"a": "0.6", "b": "0.4"}, 20)


def loader(**settings):
    sources = {"a": ArraySource(0, 801), "b": ArraySource(1, 401)}
    return MixtureLoader(sources, MIXTURE, seq_len=8, batch_size=2, global_batch_size=8, **settings)


@pytest.mark.parametrize("schedule", ["tree", "strict"])
def test_the_stream_and_its_state_are_the_same(schedule):
    plain = loader(num_sequences=480, schedule=schedule)
    ahead = loader(num_sequences=480, schedule=schedule, prefetch=7)
    for _ in range(15):
        for _ in range(4):
            one, other = next(plain), next(ahead)
            assert one.block.tobytes() == other.block.tobytes()
            assert (one.position == other.position).all() and (one.source == other.source).all()
        assert plain.state_dict() == ahead.state_dict()
        assert plain.accounting() == ahead.accounting()
    state = plain.state_dict()
    resumed = loader(num_sequences=480, schedule=schedule, prefetch=3)
    next(resumed)
    resumed.load_state_dict(state)
    rest = [batch.block for batch in plain]
    assert len(rest) == (480 - 15 * 8) // 2
    assert np.array_equal(rest, [batch.block for batch in resumed])


def test_loaders_leave_no_threads():
    before = threading.active_count()
    ahead = loader(prefetch=2)
    next(ahead)
    for position in (8, 16, 800):
        ahead.load_state_dict(loader().state_dict() | {"position": position})
        next(ahead)
    del ahead
    gc.collect()
    assert wait_until(lambda: threading.active_count() <= before)


def test_prefetch_is_a_count():
    with pytest.raises(ValueError, match="prefetch must be a whole number of at least 0, got -1"):
        loader(prefetch=-1)
