"""Repeated n-grams, copies and overlaps equal brute force, across files, blocks and threads; estimates are unbiased."""

from collections import Counter

import numpy as np
import pytest
from analysis_doubles import write_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.analysis import repetition, token_ngrams
from lingua_synth.analysis.overlap import EvaluationTokens
from lingua_synth.analysis.repetition import document_copies, repeated_ngrams
from lingua_synth.documents.ngrams import NgramIndex, hash_windows, mixed
from lingua_synth.tokens import TokenSource

BOS, EOS = 8, 9


def ngrams(document, size):
    return [tuple(document[i : i + size]) for i in range(len(document) - size + 1)]


@pytest.fixture(params=[5, 64])
def blocks(request, monkeypatch):
    """Blocks so small that documents and n-grams lie across them."""
    monkeypatch.setattr(token_ngrams, "BLOCK_TOKENS", request.param)


def planted(folder, documents, **settings):
    wrapped = [[BOS, *document, EOS] for document in documents]
    return TokenSource(write_tokens(folder, wrapped, 10, bos_id=BOS, eos_id=EOS, **settings))


def some_documents(seed=0, number=60, kinds=3):
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, kinds, size=rng.integers(0, 30)).tolist() for _ in range(number)]
    return documents + documents[:7] + [documents[2]]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 13, 16])
def test_hashes_of_windows_are_those_of_the_plain_formula(size):
    codes = mixed(np.random.default_rng(0).integers(0, 50, 40).astype(np.uint64))
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    for i, found in enumerate(hash_windows(codes, size)):
        plain = 0
        for code in codes[i : i + size]:
            plain = (plain * golden + int(code)) & mask
        assert found == mixed(np.array([plain], dtype=np.uint64))[0]
    assert len(hash_windows(codes, size)) == 41 - size and len(hash_windows(codes[: size - 1], size)) == 0
    with pytest.raises(ValueError, match="at least 1 word, got 0"):
        hash_windows(codes, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)))
def test_the_index_finds_what_is_in_it(held, asked):
    held, asked = (mixed(np.array(values, dtype=np.uint64)) for values in (held, asked))
    index = NgramIndex(held)
    places, entries = index.find(asked)
    assert places.tolist() == [i for i, value in enumerate(asked) if value in held]
    for place, entry in zip(places, entries, strict=True):
        first = index.first[entry]
        assert held[first] == asked[place] and asked[place] not in held[:first]


@pytest.mark.parametrize("size", [1, 3, 6])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_repeated_ngrams_are_those_of_brute_force(size, num_threads, tmp_path, blocks):
    documents = some_documents()
    source = planted(tmp_path / "s", documents, per_file=20)
    found = repeated_ngrams(source, size, num_threads=num_threads, num_listed=4)
    every = [(ngram, i) for i, document in enumerate(documents) for ngram in ngrams(document, size)]
    counts = Counter(ngram for ngram, _ in every)
    assert found.num_ngrams == len(every) and found.num_tokens == source.num_tokens
    assert found.share_repeated == pytest.approx(1 - len(counts) / len(every), abs=1e-12)
    assert found.share_repeated_within == pytest.approx(1 - len(set(every)) / len(every), abs=1e-12)
    assert found.standard_error == 0 and found.share_of_different_kept == 1
    assert [one.count for one in found.most_repeated] == [n for _, n in counts.most_common(4)]
    for one in found.most_repeated:
        holders = {i for ngram, i in every if ngram == one.token_ids}
        assert one.count == counts[one.token_ids]
        assert (one.num_documents, one.document) == (len(holders), min(holders))


def test_a_part_of_the_ngrams_gives_the_share_of_all_within_its_error(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    documents = [rng.zipf(1.5, size=400) % 3_000 for _ in range(150)]
    source = TokenSource(write_tokens(tmp_path / "s", documents, 3_000))
    whole = repeated_ngrams(source, 2)
    away = []
    for kept in (8_000, 15_000, 30_000):
        monkeypatch.setattr(repetition, "MAX_KEPT", kept)
        part = repeated_ngrams(source, 2)
        assert part.share_of_different_kept == {8_000: 1 / 8, 15_000: 1 / 4, 30_000: 1 / 2}[kept]
        assert part.num_ngrams == whole.num_ngrams and 0 < part.standard_error < 0.3
        away.append(abs(part.share_repeated - whole.share_repeated) / part.standard_error)
    assert max(away) < 3.5 and min(away) > 0


@pytest.mark.parametrize("num_threads", [1, 3])
def test_copies_are_those_of_brute_force(num_threads, tmp_path, blocks):
    documents = some_documents()
    source = planted(tmp_path / "s", documents, per_file=20)
    found = document_copies(source, num_threads=num_threads)
    groups = Counter(map(tuple, documents))
    copies = sum(groups.values()) - len(groups)
    assert found.num_documents == len(documents)
    assert found.share_of_documents == pytest.approx(copies / len(documents), abs=1e-12)
    in_copies = sum((n - 1) * (len(document) + 2) for document, n in groups.items())
    assert found.share_of_tokens == pytest.approx(in_copies / source.num_tokens, abs=1e-12)
    assert [n for _, n in found.largest] == [n for _, n in groups.most_common(10) if n > 1]
    for document, number in found.largest:
        assert groups[tuple(documents[document])] == number
        assert documents.index(documents[document]) == document


def test_documents_of_the_same_tokens_in_another_order_are_no_copies(tmp_path):
    source = planted(tmp_path / "s", [[1, 2, 3], [3, 2, 1], [1, 2], [2, 1, 3], [1, 2, 3, 3]])
    assert document_copies(source).share_of_documents == 0 and document_copies(source).largest == ()


def test_the_first_documents_alone_are_looked_at(tmp_path):
    source = planted(tmp_path / "s", [[1, 2, 3], [1, 2, 3], [1, 2, 3]], per_file=2)
    assert document_copies(source, max_tokens=11).share_of_documents == 0.5
    assert repeated_ngrams(source, 3, max_tokens=11).num_ngrams == 2
    assert repeated_ngrams(source, 3, max_tokens=9).share_repeated == 0
    nothing = repeated_ngrams(source, 3, max_tokens=4)
    assert nothing.num_ngrams == 0 and np.isnan(nothing.share_repeated) and nothing.most_repeated == ()
    assert np.isnan(document_copies(source, max_tokens=4).share_of_documents)
    with pytest.raises(ValueError, match="at least 1 token"):
        repeated_ngrams(source, 0)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_overlaps_are_those_of_brute_force(size, num_threads, tmp_path, blocks):
    train_documents = some_documents(2, kinds=8)
    held = {"wiki": some_documents(3, 12, kinds=6), "law": [*some_documents(4, 9, kinds=8), train_documents[5]]}
    train = planted(tmp_path / "train", train_documents, per_file=13)
    evaluation = EvaluationTokens(
        {name: planted(tmp_path / name, documents, per_file=5) for name, documents in held.items()},
        size,
        num_threads=num_threads,
    )
    in_train = Counter(ngram for document in train_documents for ngram in ngrams(document, size))
    in_held = {name: {n for d in documents for n in ngrams(d, size)} for name, documents in held.items()}
    assert evaluation.num_ngrams == len(set().union(*in_held.values()))
    found = evaluation.overlap("cc", train)
    for one in found.overlaps:
        documents = held[one.evaluation]
        every = [ngrams(document, size) for document in documents]
        shared = [[n for n in mine if n in in_train] for mine in every]
        assert one.num_train_tokens == train.num_tokens and one.num_documents == len(documents)
        assert one.num_too_short == sum(not mine for mine in every)
        assert one.num_shared_documents == sum(map(bool, shared))
        assert one.num_mostly_shared_documents == sum(
            2 * len(s) >= len(e) > 0 for s, e in zip(shared, every, strict=True)
        )
        assert one.share_of_ngrams == pytest.approx(sum(map(len, shared)) / sum(map(len, every)))
        covered = sum(len({i + k for i, n in enumerate(mine) if n in in_train for k in range(size)}) for mine in every)
        assert one.share_of_tokens == pytest.approx(covered / sum(len(document) + 2 for document in documents))
        assert one.num_train_ngrams == sum(count for n, count in in_train.items() if n in in_held[one.evaluation])
        assert len(one.documents) == one.num_shared_documents
        starts = np.cumsum([0, *(len(document) + 2 for document in documents)])
        for entry in one.documents:
            assert (entry.num_ngrams, entry.share) == (
                len(shared[entry.document]),
                len(shared[entry.document]) / len(every[entry.document]),
            )
            first = next(i for i, n in enumerate(every[entry.document]) if n in in_train)
            assert entry.position == starts[entry.document] + 1 + first
        assert [e.share for e in one.documents] == sorted((e.share for e in one.documents), reverse=True)
    in_any = set().union(*in_held.values())
    hit = {i: [n for n in ngrams(d, size) if n in in_any] for i, d in enumerate(train_documents)}
    hit = {i: mine for i, mine in hit.items() if mine}
    assert found.num_train_documents == len(hit) == len(found.train_documents)
    for entry, (name, number) in zip(found.train_documents, found.evaluation_of, strict=True):
        mine = hit[entry.document]
        assert entry.num_ngrams == len(mine)
        assert entry.share == len(mine) / len(ngrams(train_documents[entry.document], size))
        assert mine[0] in ngrams(held[name][number], size)


def test_a_planted_leak_is_found_and_nothing_else(tmp_path):
    rng = np.random.default_rng(5)
    test_documents = [rng.integers(0, 50_000, size=200) for _ in range(20)]
    train_documents = [rng.integers(0, 50_000, size=300) for _ in range(200)]
    train_documents[17][40:70] = test_documents[3][100:130]  # 30 tokens in a row: 18 of its 13-grams
    train_documents[90] = test_documents[11]
    train_documents[91][:12] = test_documents[4][:12]  # one token too few
    test, train = (
        TokenSource(write_tokens(tmp_path / name, documents, 50_000, per_file=7))
        for name, documents in (("test", test_documents), ("train", train_documents))
    )
    found = EvaluationTokens({"test": test}).overlap("train", train)
    (one,) = found.overlaps
    assert [(entry.document, entry.num_ngrams) for entry in one.documents] == [(11, 188), (3, 18)]
    assert [entry.share for entry in one.documents] == [1.0, 18 / 188] and one.num_mostly_shared_documents == 1
    assert [(e.document, e.num_ngrams) for e in found.train_documents] == [(90, 188), (17, 18)]
    assert found.evaluation_of == (("test", 11), ("test", 3))
    assert one.share_of_tokens == pytest.approx((200 + 30) / 4_000)
    nothing = EvaluationTokens({"test": test}).overlap("train", train, max_tokens=17 * 300)
    assert nothing.num_train_documents == 0 and nothing.overlaps[0].share_of_ngrams == 0
    listed = EvaluationTokens({"test": test}).overlap("train", train, num_listed=1)
    assert len(listed.train_documents) == len(listed.overlaps[0].documents) == 1 and listed.num_train_documents == 2


def test_bad_input_is_refused_in_words(tmp_path):
    short = planted(tmp_path / "short", [[1, 2], [3]])
    with pytest.raises(ValueError, match="no document of a, b has 5 tokens"):
        EvaluationTokens({"a": short, "b": short}, 5)
    with pytest.raises(ValueError, match="no evaluation corpus"):
        EvaluationTokens({})
    with pytest.raises(ValueError, match="at least 1, got 0"):
        EvaluationTokens({"a": short}, 0)
    other = planted(tmp_path / "other", [[1, 2, 3]], sha256="other")
    with pytest.raises(ValueError, match="the corpora are of 2 vocabularies"):
        EvaluationTokens({"a": short, "b": other}, 2)
    with pytest.raises(ValueError, match=r"a \(training\): planted, 10 words, sha256 other"):
        EvaluationTokens({"a": short}, 2).overlap("a", other)
