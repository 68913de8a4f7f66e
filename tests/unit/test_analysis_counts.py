"""Unigram counts equal a plain count, for any number of threads, after a kill, and never of the wrong shards."""

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter

import numpy as np
import pytest
from analysis_doubles import write_tokens, zipf_probabilities

from lingua_synth.analysis import UnigramCounts, count_unigrams, validate_same_vocabulary
from lingua_synth.analysis import counts as module
from lingua_synth.documents import Document
from lingua_synth.tokens import build_tokenizer, tokenize
from lingua_synth.tokens.source import TokenSource


def planted_documents(n_words, num_documents=300, seed=0):
    rng = np.random.default_rng(seed)
    p = zipf_probabilities(n_words, 1.0)
    return [rng.choice(n_words, size=rng.integers(1, 400), p=p) for _ in range(num_documents)]


def plain_count(documents, n_words):
    counts = np.zeros(n_words, dtype=np.int64)
    for token, count in Counter(int(i) for document in documents for i in document).items():
        counts[token] = count
    return counts


@pytest.mark.parametrize(("n_words", "dtype"), [(300, "uint16"), (65_536, "uint16"), (70_000, "uint32")])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_counts_equal_a_plain_count(n_words, dtype, num_threads, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STRETCH_TOKENS", 1000)  # many stretches, none of which ends with a file
    documents = planted_documents(n_words)
    folder = write_tokens(tmp_path / "web", documents, n_words, per_file=70)
    assert TokenSource(folder).dtype == dtype
    found = count_unigrams(folder, num_threads=num_threads)
    assert (found.counts == plain_count(documents, n_words)).all()
    assert found.counts.dtype == np.int64 and found.vocab_size == n_words and found.name == "web"
    assert found.num_tokens == sum(map(len, documents)) == found.num_tokens_available
    assert (found.num_documents, found.num_bytes) == (300, 3 * found.num_tokens)
    assert found.frequencies.sum() == pytest.approx(1, abs=1e-12)


def test_bos_and_eos_of_real_shards_are_counted_apart(tmp_path):
    texts = ["to be or not", "ünd so weiter", "x"]
    documents = [Document(str(i), text, {}) for i, text in enumerate(texts)]
    tokenize(documents, tmp_path / "s", build_tokenizer("bytes"), progress=False)
    found = count_unigrams(tmp_path / "s")
    expected = Counter(byte for text in texts for byte in text.encode())
    assert {i: int(n) for i, n in enumerate(found.counts) if n} == expected
    assert (found.num_bos, found.num_eos, found.num_documents) == (3, 3, 3)
    assert found.num_tokens == found.num_bytes == sum(expected.values())
    assert found.num_tokens_available == found.num_tokens + 6


def test_one_word_for_bos_and_eos_is_counted_once(tmp_path):
    folder = write_tokens(tmp_path / "s", [[7, 1, 7], [7, 2, 2, 7]], 8, bos_id=7, eos_id=7)
    found = count_unigrams(folder)
    assert (found.num_bos, found.num_eos, found.counts.tolist()) == (0, 4, [0, 1, 2, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("max_tokens", [1, 5, 6, 11, 12, 1000])
def test_max_tokens_takes_whole_documents_from_the_start(max_tokens, tmp_path):
    documents = [[1], [2, 2, 2, 2], [3], [1, 2, 3, 4, 4], [5]]
    folder = write_tokens(tmp_path / "s", documents, 6, per_file=2)
    found = count_unigrams(folder, max_tokens=max_tokens)
    taken, left = [], max_tokens
    for document in documents:
        if len(document) > left:
            break
        taken.append(document)
        left -= len(document)
    assert found.counts.tolist() == plain_count(taken, 6).tolist()
    assert (found.num_documents, found.num_bytes) == (len(taken), 3 * sum(map(len, taken)))
    assert found.num_tokens_available == 12
    assert (found.fingerprint == TokenSource(folder).fingerprint) == (max_tokens >= 12)


def test_bad_input_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="no token shards in"):
        count_unigrams(tmp_path)
    folder = write_tokens(tmp_path / "long", [[1, 2, 3, 4]], 6)
    with pytest.raises(ValueError, match=r"first document of .*long alone has 4 tokens, max_tokens is 3; raise it"):
        count_unigrams(folder, max_tokens=3)
    with pytest.raises(ValueError, match="num_threads is at least 1, got 0"):
        count_unigrams(folder, num_threads=0)
    with pytest.raises(ValueError, match="max_tokens is at least 1, got 0"):
        count_unigrams(folder, max_tokens=0)
    folder = write_tokens(tmp_path / "wild", [[1, 2], [65_000]], 6)
    with pytest.raises(ValueError, match=r"the id 65,000, the vocabulary has 6 words; `lingua-synth tokenize verify="):
        count_unigrams(folder)
    empty = write_tokens(tmp_path / "empty", [], 6)
    assert count_unigrams(empty).num_tokens == 0
    with pytest.raises(ValueError, match="empty has no tokens but BOS and EOS"):
        _ = count_unigrams(empty).frequencies


def test_two_vocabularies_are_not_compared(tmp_path):
    corpora = {
        name: count_unigrams(write_tokens(tmp_path / name, [[1, 2]], 6, sha256=sha256))
        for name, sha256 in (("a", "one"), ("b", "two"), ("c", "one"))
    }
    validate_same_vocabulary({name: corpora[name] for name in "ac"})
    with pytest.raises(ValueError, match=r"of 2 vocabularies.*\(a, c: planted, 6 words, sha256 one\.\.\.; b: planted"):
        validate_same_vocabulary(corpora)


def test_saved_counts_come_back_equal_and_damaged_ones_do_not(tmp_path):
    folder = write_tokens(tmp_path / "s", planted_documents(300), 300, bos_id=4, eos_id=5)
    found = count_unigrams(folder, name="web")
    found.save(tmp_path / "c.npz")
    read = UnigramCounts.load(tmp_path / "c.npz")
    assert (read.counts == found.counts).all() and read._record() == found._record()
    whole = (tmp_path / "c.npz").read_bytes()
    for content in (whole[:-40], whole[:50], b"", b"not counts"):
        (tmp_path / "c.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is not a file of unigram counts, or it is damaged"):
            UnigramCounts.load(tmp_path / "c.npz")
    with pytest.raises(ValueError, match="no counts in"):
        UnigramCounts.load(tmp_path / "gone.npz")


def test_cache_is_used_for_the_same_shards_only(tmp_path, monkeypatch):
    folder = write_tokens(tmp_path / "s", planted_documents(300), 300)
    cache = tmp_path / "cache" / "s.npz"
    first = count_unigrams(folder, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(module._Counter, "run", lambda *_: pytest.fail("counted again"))
        again = count_unigrams(folder, cache=cache, name="other name")
    assert (again.counts == first.counts).all() and again.name == "other name"
    part = count_unigrams(folder, cache=cache, max_tokens=2000)
    assert part.num_tokens <= 2000
    cache.write_bytes(b"junk")
    assert (count_unigrams(folder, cache=cache).counts == first.counts).all()
    write_tokens(folder, planted_documents(300, seed=1), 300)
    assert (count_unigrams(folder, cache=cache).counts != first.counts).any()


def test_killed_pass_goes_on_where_it_stood_and_counts_the_same(tmp_path):
    folder = write_tokens(tmp_path / "s", planted_documents(300, num_documents=2000), 300, per_file=100)
    code = textwrap.dedent(f"""
        import os, signal, sys
        from lingua_synth.analysis import counts
        counts.STRETCH_TOKENS, counts.GROUP_TOKENS, counts.SAVE_EVERY_S = 1000, 10_000, 0.0
        write, left = counts._write, [int(sys.argv[1])]
        def counted(path, array, record):
            write(path, array, record)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        counts._write = counted
        found = counts.count_unigrams({str(folder)!r}, cache={str(tmp_path / "c.npz")!r}, num_threads=2)
        print(-left[0], found.num_tokens)
    """)

    def run(saves):
        return subprocess.run([sys.executable, "-c", code, str(saves)], capture_output=True, text=True, env=os.environ)

    expected = count_unigrams(folder)
    groups = 0
    for file in TokenSource(folder).shards:
        groups += -(-len(file.tokens) // 1000)
    groups = -(-groups // 10)
    assert run(groups // 2).returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="interrupted; count again"):
        UnigramCounts.load(tmp_path / "c.npz")
    done = run(0)
    assert done.returncode == 0, done.stderr
    saves, num_tokens = map(int, done.stdout.split())
    # Of the second half of the groups, each saved once, and the result.
    assert saves == groups - groups // 2 + 1
    assert num_tokens == expected.num_tokens
    assert (UnigramCounts.load(tmp_path / "c.npz").counts == expected.counts).all()
