"""The mixture in torch's loaders: one stream for any number of workers, and exact resumption after every batch."""

import gc
import itertools
import json
import pickle
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:'set_vital'")

from torch.utils.data import DataLoader  # noqa: E402

from lingua_synth.mixture import Mixture, MixtureLoader, cursor, torch_data  # noqa: E402
from lingua_synth.mixture.lingua_batches import lingua_batches  # noqa: E402
from lingua_synth.mixture.torch_data import MixtureDataset, portable_state  # noqa: E402
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize  # noqa: E402

from mixture_doubles import ArraySource  # noqa: E402  # isort: skip

SEQ_LEN = 8
MIXTURE = Mixture({"web": "0.5", "hq": "0.4", "code": "0.1"}, max_epochs=100)
SOURCES = {"web": ArraySource(0, 405), "hq": ArraySource(1, 251), "code": ArraySource(2, 63)}
# Three global batches of four micro-batches.
SETTINGS = {"seq_len": SEQ_LEN, "batch_size": 2, "seed": 3, "global_batch_size": 8, "num_sequences": 24}


def dataset(mixture=MIXTURE, sources=SOURCES, **settings):
    return MixtureDataset(sources, mixture, **SETTINGS | settings)


def mixture_loader(**settings):
    return MixtureLoader(SOURCES, settings.pop("mixture", MIXTURE), **SETTINGS | settings)


def stateful(data, num_workers, **settings):
    module = pytest.importorskip("torchdata.stateful_dataloader")
    return module.StatefulDataLoader(data, batch_size=None, num_workers=num_workers, **settings)


def same(batch):
    """A batch as something to compare."""
    return {key: (value.dtype, value.shape, value.numpy().tobytes()) for key, value in batch.items()}


def all_of(batches):
    return [same(batch) for batch in batches]


def through_json(state):
    return json.loads(json.dumps(state))


# --- the stream ---


def test_the_package_does_not_import_torch():
    code = "import lingua_synth.mixture, sys; import lingua_synth.mixture.sequences; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("dp_size", [1, 2])
def test_the_stream_is_the_loaders_for_any_number_of_workers(num_workers, dp_size):
    settings = {"dp_size": dp_size, "dp_rank": dp_size - 1, "num_sequences": 40}
    found = list(DataLoader(dataset(**settings), batch_size=None, num_workers=num_workers))
    expected = list(mixture_loader(**settings))
    assert len(found) == len(expected) == 20 // dp_size == len(dataset(**settings))
    for batch, plain in zip(found, expected, strict=True):
        assert list(batch) == ["tokens", "labels", "source", "position"]
        for key in batch:
            ours, its = batch[key].numpy(), getattr(plain, key)
            assert ours.dtype == its.dtype and ours.tobytes() == its.tobytes()


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_sweeps_are_not_seen(num_workers, monkeypatch):
    """Sequences are located many at a time: here few, from any batch on, in sweeps that end anywhere."""
    monkeypatch.setattr(cursor, "SEQUENCES_AHEAD", 12)
    loader = mixture_loader(num_sequences=240)
    whole = [batch.block.tobytes() for batch in loader]
    for first in range(9):
        found = {
            k: [batch.block.tobytes() for batch in cursor.read_batches(loader, 0, first + k, num_workers)]
            for k in range(num_workers)
        }
        for k, blocks in found.items():
            assert blocks == whole[first + k :: num_workers]


def test_views_share_one_storage_also_through_a_worker():
    data = dataset(keys=["tokens", "block", "labels"], n_views=4)
    for num_workers in (0, 1):
        batch = next(iter(DataLoader(data, batch_size=None, num_workers=num_workers)))
        assert batch["block"].shape == (2, SEQ_LEN + 3) and batch["labels"].shape == (2, SEQ_LEN)
        assert (batch["tokens"][:, 1:] == batch["labels"][:, :-1]).all()
        assert len({value.untyped_storage().data_ptr() for value in batch.values()}) == 1


def test_document_boundaries(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n' * 60)
    tokenize(str(tmp_path / "a.jsonl"), tmp_path / "a", build_tokenizer("bytes"), progress=False)
    data = dataset({"a": 1}, {"a": TokenSource(tmp_path / "a")}, document_boundaries=True)
    batch = next(iter(data))
    begins = torch.diff(batch["document"], prepend=batch["document"][:, :1] - 1) > 0
    assert batch["document"].shape == (2, SEQ_LEN) and (batch["document"][:, 0] == 0).all()
    bos = batch["tokens"] == build_tokenizer("bytes").bos_id
    assert bos.any() and (begins[:, 1:] == bos[:, 1:]).all()


def test_each_iteration_begins_anew():
    data = dataset()
    for num_workers in (0, 2):
        loader = DataLoader(data, batch_size=None, num_workers=num_workers)
        first, again = all_of(itertools.islice(loader, 3)), all_of(loader)
        assert len(again) == 12 and again[:3] == first


def test_a_stream_without_an_end():
    sources = {"a": ArraySource(0, 801)}
    for policy, what in [("refuse", "used up: a source exceeds its max_epochs at position 100"), ("stop", None)]:
        data = dataset(Mixture({"a": 1}, on_exhaustion=policy), sources, num_sequences=None)
        with pytest.raises(TypeError, match="no length"):
            len(data)
        batches = iter(data)
        assert len(list(itertools.islice(batches, 48))) == 48
        if what is None:
            assert list(batches) == []
        else:
            with pytest.raises(ValueError, match=what):
                next(batches)


# --- states of the dataset alone ---


@pytest.mark.parametrize("schedule", ["tree", "strict"])
@pytest.mark.parametrize("dp_size", [1, 2])
def test_the_dataset_goes_on_after_every_batch(schedule, dp_size):
    settings = {"schedule": schedule, "dp_size": dp_size, "dp_rank": dp_size - 1}
    whole = all_of(dataset(**settings))
    data = dataset(**settings)
    batches = iter(data)
    for k in range(len(whole) + 1):
        state = data.state_dict()
        assert len(json.dumps(state)) < 1_000 and state == dataset(**settings).state_after(k)
        resumed = dataset(**settings)
        resumed.load_state_dict(through_json(state))
        assert resumed.state_dict() == state and resumed.state_after(0) == state
        assert all_of(resumed) == whole[k:]
        assert all_of(resumed) == whole  # the iteration after that is a whole one
        if k < len(whole):
            next(batches)
    with pytest.raises(ValueError, match="no 13 batches" if dp_size == 1 else "no 7 batches"):
        data.state_after(len(whole) + 1)


def test_states_are_those_of_the_loader_and_of_linguas_batches():
    data = dataset()
    batches = iter(data)
    with lingua_batches(mixture_loader()) as theirs:
        for _, state in theirs:
            next(batches)
            assert data.state_dict() == state
    loader = mixture_loader()
    loader.load_state_dict(data.state_after(8))
    data.load_state_dict(loader.state_dict())
    assert [b["position"].tolist() for b in data] == [batch.position.tolist() for batch in loader]


def test_other_ranks_and_sizes_go_on_between_global_batches():
    def positions(data):
        return [position for batch in data for position in batch["position"].tolist()]

    state = dataset(dp_size=2, dp_rank=1).state_after(2)
    expected = positions(dataset())[8:]
    for dp_size, batch_size in [(1, 4), (4, 1), (2, 2)]:
        ranks = [dataset(dp_size=dp_size, dp_rank=rank, batch_size=batch_size) for rank in range(dp_size)]
        found = []
        for rank in ranks:
            rank.load_state_dict(state)
            found.append(np.array(positions(rank)).reshape(2, -1))
        assert np.concatenate(found, axis=1).ravel().tolist() == expected
    # The same order cut into other batches, from a place inside one of them.
    other = dataset(global_batch_size=16, num_sequences=None)
    other.load_state_dict(state)
    found = positions(itertools.islice(other, 16))
    assert sorted(found[:16]) == list(range(8, 24)) and sorted(found[16:]) == list(range(24, 40))
    two = DataLoader(other, batch_size=None, num_workers=2)
    other.load_state_dict(state)
    assert positions(itertools.islice(two, 16)) == found


def test_a_state_that_cannot_go_on_is_refused_and_changes_nothing():
    data = dataset()
    list(itertools.islice(iter(data), 3))
    state = data.state_dict()
    for change, message in [
        ({"seed": 9}, "another stream: seed was 3, is 9"),
        ({"dp_size": 2, "batch_size": 2}, "in other slices: dp_size was 1, is 2"),
        ({"mixture": Mixture({"web": 1, "hq": 0, "code": 0}, 9)}, "in other slices: mixture was"),
    ]:
        other = dataset(**change)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=message):
                other.load_state_dict(state)
        assert other.state_dict() == dataset(**change).state_after(0)
    with pytest.raises(ValueError, match="no state of a mixture loader"):
        data.load_state_dict({"dataset_state": state})


def test_a_changed_mixture_warns_once():
    later = Mixture({"web": "0.1", "hq": "0.8", "code": "0.1"}, max_epochs=100)
    state = dataset().state_after(4)
    data = dataset(later)
    with pytest.warns(UserWarning, match="the mixture has changed") as seen:
        data.load_state_dict(state)
        assert len(list(data)) == 8
    assert len(seen) == 1
    loader = mixture_loader(mixture=later)
    with pytest.warns(UserWarning):
        loader.load_state_dict(state)
        data.load_state_dict(state)
    assert [b["position"].tolist() for b in data] == [batch.position.tolist() for batch in loader]


def test_while_workers_read_the_dataset_does_not_guess():
    data = dataset()
    assert data.state_dict()["position"] == 0
    batches = iter(DataLoader(data, batch_size=None, num_workers=2))
    for _ in range(6):
        next(batches)
    with pytest.raises(ValueError, match=r"worker processes are reading .* state_after\(num_batches\)"):
        data.state_dict()
    del batches
    gc.collect()
    resumed = dataset()
    resumed.load_state_dict(data.state_after(6))
    assert all_of(resumed) == all_of(dataset())[6:]
    resumed.load_state_dict(data.state_after(6))
    again = iter(DataLoader(resumed, batch_size=None, num_workers=2))
    for _ in range(3):
        next(again)
    assert resumed.state_after(3) == dataset().state_after(9)  # counted from the loaded state


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prefetch": 2}, "does not take prefetch; give the DataLoader num_workers and prefetch_factor"),
        ({"pin_memory": True}, "does not take pin_memory"),
        ({"keys": ["input_ids"]}, r"no keys \['input_ids'\]"),
        ({"keys": ["document"]}, r"no keys \['document'\]"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"dp_rank": 1}, "dp_rank 1 is no place among dp_size 1"),
        ({"num_sequences": 10**6}, "max_epochs"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataset(**settings)


def test_a_pickle_begins_anew_and_goes_on_from_a_loaded_state():
    data = dataset()
    next(iter(data))
    copy = pickle.loads(pickle.dumps(data))
    assert copy.state_dict() == dataset().state_dict() and all_of(copy) == all_of(dataset())
    data.load_state_dict(data.state_after(5))
    assert all_of(pickle.loads(pickle.dumps(data))) == all_of(dataset())[5:]


def test_spawned_workers_open_the_shards_again(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "a text of number {i}"}}\n' for i in range(500)))
    tokenize(str(tmp_path / "a.jsonl"), tmp_path / "a", build_tokenizer("bytes"), progress=False)
    data = dataset({"a": 1}, {"a": TokenSource(tmp_path / "a")})
    data.load_state_dict(data.state_after(5))
    assert len(pickle.dumps(data)) < 4_000 < TokenSource(tmp_path / "a").num_tokens
    expected = all_of(itertools.islice(pickle.loads(pickle.dumps(data)), 99))
    assert len(expected) == 7
    assert all_of(DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn")) == expected


# --- torchdata's StatefulDataLoader ---


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_stateful_dataloader_goes_on_after_every_batch(num_workers):
    whole = all_of(dataset())
    loader = stateful(dataset(), num_workers)
    batches = iter(loader)
    for k in range(len(whole)):
        saved = loader.state_dict()
        if k % 2 == 0 or num_workers == 0:
            resumed = stateful(dataset(), num_workers)
            resumed.load_state_dict(pickle.loads(pickle.dumps(saved)))
            assert all_of(resumed) == whole[k:]
        # For any number of workers, and the same whoever saved it.
        assert through_json(portable_state(saved)) == dataset().state_after(k)
        next(batches)
    assert list(batches) == []
    assert portable_state(loader.state_dict()) == dataset().state_after(12)


@pytest.mark.parametrize("before, after", [(0, 2), (2, 0), (2, 3), (3, 1)])
def test_another_number_of_workers_goes_on_through_the_portable_state(before, after):
    loader = stateful(dataset(), before)
    batches = iter(loader)
    found = [same(next(batches)) for _ in range(5)]
    saved = loader.state_dict()
    del batches
    if 0 in (before, after):  # otherwise the workers refuse, which is the next test
        with pytest.raises(AssertionError):
            refused = stateful(dataset(), after)
            refused.load_state_dict(saved)
            next(iter(refused))
    data = dataset()
    data.load_state_dict(portable_state(saved))
    middle = stateful(data, after)
    batches = iter(middle)
    found += [same(next(batches)) for _ in range(4)]
    saved = middle.state_dict()
    del batches
    again = stateful(dataset(), after)  # states taken after that are whole again
    again.load_state_dict(saved)
    assert found + all_of(again) == all_of(dataset())


def test_workers_refuse_the_state_of_others_by_name(monkeypatch):
    loader = stateful(dataset(), 2)
    next(iter(loader))
    saved = loader.state_dict()
    state = saved["_snapshot"]["_worker_snapshots"]["worker_1"]["dataset_state"]
    # As in worker 1 of 3. (A StatefulDataLoader raises it again, after it has waited five seconds for each worker.)
    monkeypatch.setattr(torch_data, "get_worker_info", lambda: SimpleNamespace(id=1, num_workers=3))
    one_of_two = r"one worker among 2, and no such worker is here: .*{} To go on so: .*portable_state\(saved\)"
    with pytest.raises(ValueError, match=one_of_two.format("num_workers was 2, is 3.")):
        dataset().load_state_dict(state)
    # In the right place, but the others may stand in another global batch, which would be cut otherwise.
    monkeypatch.setattr(torch_data, "get_worker_info", lambda: SimpleNamespace(id=1, num_workers=2))
    dataset().load_state_dict(state)
    whole = {"global_batch_size": 2}
    loader = stateful(dataset(**whole), 2)
    next(iter(loader))
    state = loader.state_dict()["_snapshot"]["_worker_snapshots"]["worker_1"]["dataset_state"]
    assert "given" not in state
    later = Mixture({"web": "0.1", "hq": "0.8", "code": "0.1"}, max_epochs=100)
    for change, message in [
        ({"batch_size": 1}, "batch_size was 2, is 1."),
        ({"global_batch_size": 4, "num_sequences": None}, "global_batch_size was 2, is 4."),
        ({"dp_size": 2, "batch_size": 1}, "batch_size was 2, is 1, dp_size was 1, is 2."),
        ({"mixture": later}, "mixture was .*, is .*"),
    ]:
        with warnings.catch_warnings(), pytest.raises(ValueError, match=one_of_two.format(message)):
            warnings.simplefilter("ignore")
            dataset(**whole | change).load_state_dict(state)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=one_of_two.format("id was 1, is 0, num_workers was 2, is 1.")):
        dataset(**whole).load_state_dict(state)
    for broken in (7, {}, state["worker"] | {"ahead": "1"}, state["worker"] | {"ahead": -1}):
        with pytest.raises(ValueError, match="no state of a worker: 'worker' should tell ahead, id, num_workers"):
            dataset(**whole).load_state_dict(state | {"worker": broken})


def test_another_mixture_and_batch_size_with_workers():
    """Through the portable state they go on as the loader does; and that run's own states are good again."""
    later = Mixture({"web": "0.1", "hq": "0.8", "code": "0.1"}, max_epochs=100)
    loader = stateful(dataset(), 2)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    state = portable_state(loader.state_dict())
    del batches
    plain, data = mixture_loader(mixture=later, batch_size=1), dataset(later, batch_size=1)
    with pytest.warns(UserWarning, match="the mixture has changed"):
        plain.load_state_dict(state)
        data.load_state_dict(state)
    expected = [batch.position.tolist() for batch in plain]
    loader = stateful(data, 2)
    batches = iter(loader)
    found = [next(batches)["position"].tolist() for _ in range(11)]
    again = stateful(dataset(later, batch_size=1), 2)
    again.load_state_dict(loader.state_dict())
    del batches
    assert found + [batch["position"].tolist() for batch in again] == expected


def test_a_run_made_longer_goes_on_behind_its_old_end():
    """13 is no multiple of 2 or 3: workers stand unevenly behind the end."""
    short, long = {"num_sequences": 26, "global_batch_size": 2}, {"num_sequences": 40, "global_batch_size": 2}
    expected = all_of(dataset(**long))
    for num_workers in (2, 3):
        loader = stateful(dataset(**short), num_workers)
        batches = iter(loader)
        found = [same(next(batches)) for _ in range(13)]
        saved = loader.state_dict()
        assert found == expected[:13]
        del batches
        ended = stateful(dataset(**short), num_workers)
        ended.load_state_dict(saved)
        assert all_of(ended) == []
        resumed = stateful(dataset(**long), num_workers)
        resumed.load_state_dict(saved)
        assert all_of(resumed) == expected[13:]
        assert portable_state(saved) == dataset(**long).state_after(13)


def test_persistent_workers_begin_anew():
    loader = stateful(dataset(), 2, persistent_workers=True)
    assert all_of(loader) == all_of(loader) == all_of(dataset())


def test_a_snapshot_older_than_the_last_batch_is_no_portable_state():
    loader = stateful(dataset(), 1, snapshot_every_n_steps=3)
    batches = iter(loader)
    for k in range(1, 7):
        next(batches)
        saved = loader.state_dict()
        if k % 3:
            with pytest.raises(ValueError, match=f"{k % 3} batches older than the last one delivered"):
                portable_state(saved)
        else:
            assert portable_state(saved) == dataset().state_after(k)
    resumed = stateful(dataset(), 1, snapshot_every_n_steps=4)
    resumed.load_state_dict(saved)
    assert all_of(resumed) == all_of(dataset())[6:]


@pytest.mark.parametrize("saved", [{}, {"dataset_state": None}, {"_snapshot": {}}, dataset().state_dict()])
def test_what_is_no_state_of_a_stateful_dataloader(saved):
    with pytest.raises(ValueError, match="no state of a StatefulDataLoader over a MixtureDataset"):
        portable_state(saved)
