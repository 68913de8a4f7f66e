"""A run as a list: items are the loader's rows; samplers, grain and worker processes may ask for them in any order."""

import pickle

import numpy as np
import pytest

from lingua_synth.mixture import Mixture, MixtureLoader
from lingua_synth.mixture.sequences import MixtureSequences
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize

from mixture_doubles import BASE, ArraySource  # isort: skip

SEQ_LEN = 8
MIXTURE = Mixture({"web": "0.5", "hq": "0.4", "code": "0.1"}, max_epochs=100)
SOURCES = {"web": ArraySource(0, 405), "hq": ArraySource(1, 251), "code": ArraySource(2, 63)}


def sequences(sources=SOURCES, mixture=MIXTURE, num_sequences=960, global_batch_size=16, **settings):
    return MixtureSequences(sources, mixture, SEQ_LEN, num_sequences, global_batch_size, **settings)


@pytest.mark.parametrize("settings", [{"seed": 7}, {"schedule": "strict"}, {"n_views": 3}])
def test_items_are_the_rows_of_the_loader(settings):
    run = sequences(**settings)
    stream = MixtureLoader(
        SOURCES, MIXTURE, seq_len=SEQ_LEN, batch_size=8, global_batch_size=16, num_sequences=960, **settings
    )
    batches = list(stream)
    items = [run[k] for k in range(len(run))]
    assert np.array_equal([item["block"] for item in items], np.concatenate([batch.block for batch in batches]))
    for key in ("source", "position"):
        assert [item[key] for item in items] == np.concatenate([getattr(batch, key) for batch in batches]).tolist()
    num_windows = list(stream.num_windows.values())
    seen = set()
    for item in items:
        assert item["block"].dtype == np.int32 and item["block"].flags.writeable
        assert item["block"][0] == item["source"] * BASE + item["window"] * SEQ_LEN
        assert 0 <= item["window"] < num_windows[item["source"]]
        seen.add((item["source"], item["epoch"], item["window"]))
    assert len(seen) == 960  # in no epoch a window twice


def test_any_order_one_or_many():
    run = sequences()
    order = np.random.default_rng(0).permutation(960)
    many = run.__getitems__(order.tolist())
    for k, item in zip(order, many, strict=True):
        one = run[k]
        assert (one.pop("block") == item.pop("block")).all() and one == item


def test_every_n_th_item_falls_into_no_period():
    two = {name: SOURCES[name] for name in ("web", "hq")}
    half = sequences(two, Mixture({"web": "1/2", "hq": "1/2"}, 100))
    for rank in (0, 1):  # as torch's DistributedSampler without shuffling
        web = sum(half[k]["source"] == 0 for k in range(rank, 960, 2))
        assert 200 < web < 280
    for start in range(0, 960, 16):
        assert sum(half[k]["source"] for k in range(start, start + 16)) == 8


def test_an_item_outside_is_no_item():
    run = sequences()
    assert len(run) == 960
    for k in (-1, 960):
        with pytest.raises(IndexError, match=f"no item {k}: there are 960 sequences"):
            run[k]
    assert len(list(iter(run))) == 960  # the old protocol of sequences ends on IndexError


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"no settings \['batch_size'\] of sequences; there are: seed, schedule"):
        sequences(batch_size=4)
    with pytest.raises(ValueError, match="num_sequences"):
        sequences(num_sequences=100)
    with pytest.raises(ValueError, match="num_sequences"):
        sequences(num_sequences=None)
    with pytest.raises(ValueError, match="max_epochs"):
        sequences({"web": SOURCES["web"]}, Mixture({"web": 1}))


@pytest.fixture
def shards(tmp_path):
    def made(name, text="some words of a document "):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'{{"text": "{text}{name} {i}"}}\n' for i in range(200)))
        tokenize(str(path), tmp_path / name, build_tokenizer("bytes"), progress=False)
        return tmp_path / name

    return made


def test_a_pickle_names_the_shards_and_holds_no_tokens(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards("a"), shards("b")
    sources = {name: TokenSource(name) for name in "ab"}  # relative: elsewhere they are still found
    run = sequences(sources, Mixture({"a": "2/3", "b": "1/3"}), num_sequences=160, seed=5)
    assert sum(source.num_tokens for source in sources.values()) > 10_000
    pickled = pickle.dumps(run)
    assert len(pickled) < 2_500
    monkeypatch.chdir("/")
    copy = pickle.loads(pickled)
    assert len(copy) == 160
    for k in range(160):
        assert (copy[k]["block"] == run[k]["block"]).all()


def test_shards_changed_after_pickling_are_refused(shards, tmp_path):
    pickled = pickle.dumps(sequences({"a": TokenSource(shards("a"))}, {"a": 1}, num_sequences=16))
    shards("b", "other words ")
    (tmp_path / "a").rename(tmp_path / "old")
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(ValueError, match="holds other shards than when it was first opened"):
        pickle.loads(pickled)


def test_torch_samplers_and_collation():
    torch = pytest.importorskip("torch")
    run = sequences(num_sequences=96)
    sampler = torch.utils.data.DistributedSampler(run, num_replicas=2, rank=1, shuffle=False)
    batches = list(torch.utils.data.DataLoader(run, batch_size=4, sampler=sampler, num_workers=1))
    assert len(batches) == 12
    expected = np.stack([run[k]["block"] for k in range(1, 96, 2)])
    found = torch.cat([batch["block"] for batch in batches])
    assert found.dtype == torch.int32 and (found.numpy() == expected).all()
    assert torch.cat([batch["source"] for batch in batches]).tolist() == [run[k]["source"] for k in range(1, 96, 2)]


def test_grain_reads_it():
    grain = pytest.importorskip("grain.python")
    run = sequences(num_sequences=96)
    data = grain.MapDataset.source(run).batch(4).to_iter_dataset()
    found = np.concatenate([batch["block"] for batch in data])
    assert (found == np.stack([run[k]["block"] for k in range(96)])).all()
