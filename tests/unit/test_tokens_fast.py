"""The fast path of a rank file: tiktoken's ids or none. gigatoken and Llama 3's file are used where installed."""

import base64
import json
import os
import pickle
import sys
import warnings
from importlib import metadata

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.tokens import build_tokenizer, fast_bpe
from lingua_synth.tokens import tokenizer as tokenizer_module
from lingua_synth.tokens.fast_bpe import hard_texts, tokenizer_json
from lingua_synth.tokens.llama3 import find_llama3_ranks

MERGES = (" t", "th", "he", " the", "in", " s", "\n\n", "  ", "11", "111", "é", "日", "'s", "aa", "aaaa")


@pytest.fixture
def ranks_file(tmp_path):
    tokens = [bytes([byte]) for byte in range(256)] + [merge.encode() for merge in MERGES]
    rows = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (tmp_path / "ranks.model").write_text("".join(rows))
    return str(tmp_path / "ranks.model")


class Double:
    """Stands for gigatoken: tiktoken's ids, but for what `spoil` does to the ids of one text (None: nothing)."""

    def __init__(self, spoil=lambda text, ids: ids):
        self.spoil, self.num_calls = spoil, 0

    def load(self, ranks, pattern):
        encoding = tiktoken.Encoding("double", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens={})

        def encode(texts):
            self.num_calls += 1
            texts = [text if isinstance(text, str) else text.decode() for text in texts]
            found = [self.spoil(text, encoding.encode_ordinary(text)) for text in texts]
            flat = np.array([i for ids in found for i in ids], dtype=np.uint32)
            return flat, np.array([len(ids) for ids in found], dtype=np.int64)

        return encode


def build(monkeypatch, path, double):
    monkeypatch.setattr(fast_bpe, "_load_gigatoken", double.load)
    monkeypatch.setattr(tokenizer_module, "FAST_AFTER_BYTES", 0)
    return build_tokenizer("tiktoken", path)


def assert_tiktoken_ids(tokenizer, path, texts):
    flat, lengths = tokenizer.encode_flat(texts)
    slow_flat, slow_lengths = build_tokenizer("tiktoken", path, fast=False).encode_flat(texts)
    assert (flat.dtype, lengths.dtype) == (slow_flat.dtype, slow_lengths.dtype)
    assert flat.tolist() == slow_flat.tolist() and lengths.tolist() == slow_lengths.tolist()


TEXTS = ["the thin end", "", "aaaaa\n\n\n", "日本 é's", " " * 9, "111111"]


def test_the_fast_path_is_used_and_gives_the_same_arrays(ranks_file, monkeypatch):
    double = Double()
    tokenizer = build(monkeypatch, ranks_file, double)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_tiktoken_ids(tokenizer, ranks_file, TEXTS)
        calls = double.num_calls
        # Lingua's cut, inside a word, in the middle of a batch.
        assert_tiktoken_ids(tokenizer, ranks_file, ["in", "x" * 399_999 + "the end", "", "a" * 800_001, "s"])
    # One call for the batch, and one to compare it, since it is among the first documents.
    assert double.num_calls == calls + 2
    # The classes of Unicode and the hard texts were compared before.
    assert calls >= 4


def test_small_corpora_and_fast_false_never_start_it(ranks_file, monkeypatch):
    double = Double()
    monkeypatch.setattr(fast_bpe, "_load_gigatoken", double.load)
    monkeypatch.setattr(tokenizer_module, "FAST_AFTER_BYTES", 1_000)
    tokenizer = build_tokenizer("tiktoken", ranks_file)
    for _ in range(9):
        tokenizer.encode_flat(["a" * 100, "11"])
    tokenizer.encode("the" * 500)
    off = build_tokenizer("tiktoken", ranks_file, fast=False)
    off.encode_flat(["the " * 1_000])
    assert off.prepare().startswith("tiktoken ") and double.num_calls == 0
    tokenizer.encode_flat(["a" * 100])
    assert double.num_calls > 0


def test_a_difference_anywhere_means_tiktoken_with_one_warning_that_says_why(ranks_file, monkeypatch):
    def split_newlines(text, ids):
        return [i for j in ids for i in ([10, 10] if j == 256 + MERGES.index("\n\n") else [j])]

    tokenizer = build(monkeypatch, ranks_file, Double(split_newlines))
    with pytest.warns(UserWarning, match=r"not with gigatoken .* ids differ from tiktoken's on \d+ of") as caught:
        for _ in range(3):
            assert_tiktoken_ids(tokenizer, ranks_file, TEXTS)
    assert len(caught) == 1
    assert tokenizer.prepare().startswith("tiktoken ")


def test_the_first_documents_are_compared_too(ranks_file, monkeypatch):
    def forget(text, ids):
        return ids[::-1] if "never among the hard texts" in text else ids

    tokenizer = build(monkeypatch, ranks_file, Double(forget))
    with pytest.warns(UserWarning, match="first 'never among the hard texts"):
        assert_tiktoken_ids(tokenizer, ranks_file, [*TEXTS, "never among the hard texts, the rest"])


def test_every_text_is_compared_until_there_were_enough(ranks_file, monkeypatch):
    wrong = []
    monkeypatch.setattr(fast_bpe, "SAMPLE_BYTES", 100)
    tokenizer = build(monkeypatch, ranks_file, Double(lambda text, ids: ids[::-1] if text in wrong else ids))
    assert_tiktoken_ids(tokenizer, ranks_file, ["a" * 40, "b" * 40])
    wrong.append("the text after 80 bytes")
    with pytest.warns(UserWarning, match="differ from tiktoken's on 1 of 1 texts, first 'the text after 80 bytes'"):
        assert_tiktoken_ids(tokenizer, ranks_file, [*wrong, "b"])


def test_the_hard_texts_are_compared_too(ranks_file, monkeypatch):
    tokenizer = build(monkeypatch, ranks_file, Double(lambda text, ids: ids[::-1] if "ab ab ab" in text else ids))
    with pytest.warns(UserWarning, match=r"on 1 of [\d,]+ texts, first 'ab ab "):
        assert_tiktoken_ids(tokenizer, ranks_file, TEXTS)


@pytest.mark.parametrize("batch", [1, 7, 2048, 5_000])
def test_one_text_in_so_many_is_compared_again(batch):
    ranks = {bytes([byte]): byte for byte in range(256)}
    reference = Double().load(ranks, tokenizer_module.LLAMA3_PATTERN)
    compared = []

    def spy(texts):
        compared.extend(texts)
        return reference(texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_bpe, "_load_gigatoken", Double().load)
        patch.setattr(fast_bpe, "SAMPLE_BYTES", 0)
        fast = fast_bpe.VerifiedBPE(ranks, tokenizer_module.LLAMA3_PATTERN, spy)
    compared.clear()
    texts = [f"text {i}" for i in range(10_000)]
    for start in range(0, len(texts), batch):
        fast.encode([text.encode() for text in texts[start : start + batch]])
    assert compared == texts[:: fast_bpe.CHECK_EVERY]


def test_characters_of_another_unicode_go_to_tiktoken_and_the_rest_does_not(ranks_file, monkeypatch):
    other = "\u0c5c\u0915\U000323b0"  # classed otherwise by the double: as if they were not letters

    def reclass(text, ids):
        if not any(char in text for char in other):
            return ids
        # The join of a space or a letter with the first byte of a character is what shows its class.
        broken = []
        for i in ids:
            token = probe[i] if i < len(probe) else b""
            broken += list(token) if len(token) == 2 and token[0] in b"a " and token[1] >= 0xC2 else [i]
        return broken

    probe = [bytes([byte]) for byte in range(256)]
    probe += [bytes([before, byte]) for before in b"a " for byte in range(0xC2, 0xF5)]
    monkeypatch.setattr(fast_bpe, "_load_gigatoken", Double(reclass).load)
    assert fast_bpe.differing_characters(tokenizer_module.LLAMA3_PATTERN) == sorted(other)

    seen = []

    def spy(text, ids):
        seen.append(text)
        return reclass(text, ids) if "a\u0915a" in text or len(text) < 12 else ids

    tokenizer = build(monkeypatch, ranks_file, Double(spy))
    monkeypatch.setattr(fast_bpe, "SAMPLE_BYTES", 0)
    tokenizer.encode_flat(["start"])
    seen.clear()
    assert_tiktoken_ids(tokenizer, ranks_file, ["the", f"th{other}e", "日本", "", "in \u0915", "end", "\u0916"])
    assert seen == ["the", "日本", "", "end", "\u0916"]


@pytest.mark.parametrize("error", [type("PanicException", (BaseException,), {}), TypeError, AttributeError])
def test_a_panic_or_an_error_means_tiktoken_for_this_batch_and_on(ranks_file, monkeypatch, error):
    broken = []

    class Library:
        @staticmethod
        def from_json(content):
            vocabulary = json.loads(content)["model"]["vocab"]
            assert len(vocabulary) in (256 + len(MERGES), 256 + 2 * 51 + 2 * 64)
            return Library(vocabulary)

        def __init__(self, vocabulary):
            of_char = {byte: chr(code) for byte, code in fast_bpe._byte_alphabet().items()}
            of_byte = {char: byte for byte, char in of_char.items()}
            ranks = {bytes(of_byte[char] for char in token): rank for token, rank in vocabulary.items()}
            self.encode = Double().load(ranks, tokenizer_module.LLAMA3_PATTERN)

        def encode_batch(self, texts, parallel):
            assert parallel is False, "a worker process has one thread"
            if broken:
                raise error("left: 3, right: 2")
            ids, lengths = self.encode(texts)
            data = lambda values: type("Buffer", (), {"data": values})  # noqa: E731
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            return type("Rows", (), {"layout": type("Layout", (), {"content": data(ids), "offsets": data(offsets)})})

    monkeypatch.setattr(metadata, "version", lambda name: fast_bpe.VERSION)
    monkeypatch.setattr(fast_bpe, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "gigatoken", type("Module", (), {"Tokenizer": Library}))
    monkeypatch.setattr(tokenizer_module, "FAST_AFTER_BYTES", 0)
    tokenizer = build_tokenizer("tiktoken", ranks_file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_tiktoken_ids(tokenizer, ranks_file, TEXTS)
    broken.append(True)
    with pytest.warns(UserWarning, match=f"failed with {error.__name__}: left: 3, right: 2"):
        assert_tiktoken_ids(tokenizer, ranks_file, TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_tiktoken_ids(tokenizer, ranks_file, TEXTS)


def test_ctrl_c_passes():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fast_bpe._guarded(interrupt)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "gigatoken is not installed .pip install gigatoken==0.10.0"),
        ("0.11.0", "gigatoken is 0.11.0, checked was"),
    ],
)
def test_a_missing_or_another_gigatoken_is_not_used(ranks_file, monkeypatch, found, message):
    def version(name):
        if name != "gigatoken":
            return "1"
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(tokenizer_module, "FAST_AFTER_BYTES", 0)
    tokenizer = build_tokenizer("tiktoken", ranks_file)
    with pytest.warns(UserWarning, match=message):
        assert_tiktoken_ids(tokenizer, ranks_file, TEXTS)


def test_gigatoken_without_awkward_is_named_so(ranks_file, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: fast_bpe.VERSION)
    monkeypatch.setattr(fast_bpe, "find_spec", lambda name: None if name == "awkward" else name)
    tokenizer = build_tokenizer("tiktoken", ranks_file)
    monkeypatch.setattr(tokenizer_module, "FAST_AFTER_BYTES", 0)
    with pytest.warns(UserWarning, match=r"gigatoken .*: gigatoken is installed, awkward, which it needs, is not .pip"):
        assert_tiktoken_ids(tokenizer, ranks_file, TEXTS)


def test_wrong_ids_later_stop_the_run(ranks_file, monkeypatch):
    monkeypatch.setattr(fast_bpe, "SAMPLE_BYTES", len("first"))
    wrong = []
    tokenizer = build(monkeypatch, ranks_file, Double(lambda text, ids: ids[:-1] if wrong and len(ids) > 1 else ids))
    tokenizer.encode_flat(["first"])
    wrong.append(True)
    with pytest.raises(ValueError, match=r"do not spell its text\. Set tokenizer.fast=false"):
        tokenizer.encode_flat(["second"])

    wrong.clear()
    # As many bytes, other ids: only the comparison of one text in so many can see it, and it must.
    tokenizer = build(monkeypatch, ranks_file, Double(lambda text, ids: ids[::-1] if wrong else ids))
    tokenizer.encode_flat(["first"])
    wrong.append(True)
    with pytest.raises(ValueError, match=r"differs from tiktoken on 'text \d+'"):
        for i in range(fast_bpe.CHECK_EVERY + 1):
            tokenizer.encode_flat([f"text {i}"])
    assert i <= fast_bpe.CHECK_EVERY


def test_a_tokenizer_goes_to_a_worker_process_without_the_library_s_object(ranks_file, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: fast_bpe.VERSION)
    monkeypatch.setattr(fast_bpe, "find_spec", lambda name: name)
    tokenizer = build(monkeypatch, ranks_file, Double())
    tokenizer.encode_flat(TEXTS)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.sha256 == tokenizer.sha256 and copy._fast is None
    assert_tiktoken_ids(copy, ranks_file, TEXTS)
    assert copy._fast is not None

    # Where gigatoken is missing that is said once, here, and not in every worker.
    monkeypatch.setattr(metadata, "version", lambda name: "0.9")
    with pytest.warns(UserWarning, match="gigatoken is 0.9"):
        data = pickle.dumps(build_tokenizer("tiktoken", ranks_file))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_tiktoken_ids(pickle.loads(data), ranks_file, TEXTS)


def test_every_split_of_a_token_is_a_merge():
    ranks = {bytes([byte]): byte for byte in range(256)}
    # " ab " splits three ways; its rank is below that of its parts, as some of Llama 3's are.
    ranks |= {b" ab ": 256, b"ab": 257, b" a": 258, b"b ": 259, b"ab ": 260, b" ab": 261}
    model = json.loads(tokenizer_json(ranks, "x"))["model"]
    space, merges = "\u0120", model["merges"]
    assert merges == [
        f"{space} ab{space}", f"{space}a b{space}", f"{space}ab {space}",
        "a b", f"{space} a", f"b {space}", f"a b{space}", f"ab {space}", f"{space} ab", f"{space}a b",
    ]  # fmt: skip
    assert model["vocab"][f"{space}ab{space}"] == 256 and len(model["vocab"]) == 262


def test_the_hard_texts_have_what_they_claim():
    import unicodedata

    texts = hard_texts()
    assert texts == hard_texts.__wrapped__() and len(texts) > 1_500
    everything = "".join(texts)
    categories = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Cc Cf Cn Co"
    assert {unicodedata.category(char) for char in everything} >= set(categories.split(" "))
    assert "<|end_of_text|>" in everything and "\u200d" in everything and "a" * 4_000 in everything


# --- gigatoken itself ---


@pytest.fixture
def real(ranks_file, monkeypatch):
    pytest.importorskip("gigatoken")
    monkeypatch.setattr(tokenizer_module, "FAST_AFTER_BYTES", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = build_tokenizer("tiktoken", ranks_file)
        assert tokenizer.prepare() == f"gigatoken {fast_bpe.VERSION}"
    return tokenizer


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6))
def test_gigatoken_is_tiktoken(texts):
    pytest.importorskip("gigatoken")
    if not hasattr(test_gigatoken_is_tiktoken, "pair"):
        ranks = {bytes([byte]): byte for byte in range(256)}
        ranks |= {merge.encode(): 256 + i for i, merge in enumerate(MERGES)}
        reference = Double().load(ranks, tokenizer_module.LLAMA3_PATTERN)
        fast = fast_bpe.VerifiedBPE(ranks, tokenizer_module.LLAMA3_PATTERN, reference)
        test_gigatoken_is_tiktoken.pair = fast.encode, reference
    fast, reference = test_gigatoken_is_tiktoken.pair
    for found, expected in zip(fast([text.encode() for text in texts]), reference(texts), strict=True):
        assert found.tolist() == expected.tolist()


def test_gigatoken_s_arrays_cuts_and_empty_batches(real, ranks_file):
    for texts in (TEXTS, [], [""], ["", ""], ["in", "x" * 399_999 + "the end", "", "日" * 400_001]):
        assert_tiktoken_ids(real, ranks_file, texts)


# --- Llama 3's own file ---


@pytest.fixture(scope="module")
def llama3():
    try:
        find_llama3_ranks()
    except ValueError as error:
        pytest.skip(str(error))
    return build_tokenizer("tiktoken")


def test_llama3_is_found_without_importing_its_package(llama3):
    assert llama3.path.endswith("tokenizer.model") and "llama_models" not in sys.modules
    assert (llama3.n_words, llama3.bos_id, llama3.eos_id, llama3.dtype) == (128_256, 128_000, 128_001, np.uint32)
    assert llama3.sha256 == "aed69c3ef6c8377d537ea568d64c77e53ec220a0366c01228c8ccb98d79aa5f3"
    # Known ids of Llama 3: "Hello world!" and its first merges.
    assert llama3.encode("Hello world!") == [9906, 1917, 0]
    assert llama3.encode("<|end_of_text|>")[0] != llama3.eos_id
    assert len(json.loads(tokenizer_json(llama3._ranks, "x"))["model"]["merges"]) == 280_147


@pytest.mark.slow
def test_gigatoken_is_tiktoken_on_every_character_with_llama3(llama3):
    pytest.importorskip("gigatoken")
    assert llama3.prepare() == f"gigatoken {fast_bpe.VERSION}"
    characters = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = [
        "".join(f"a{char}n {char}\n{char}i 1{char}'m" for char in characters[i : i + 16])
        for i in range(0, len(characters), 16)
    ]
    for found, expected in zip(llama3.encode_flat(texts), llama3._reference(texts), strict=True):
        assert np.array_equal(found, expected)
    for found, expected in zip(
        llama3.encode_flat(hard_texts(3_000, seed=7)), llama3._reference(hard_texts(3_000, seed=7)), strict=True
    ):
        assert np.array_equal(found, expected)


@pytest.mark.skipif("LINGUA_DIR" not in os.environ, reason="needs a checkout of Meta Lingua in LINGUA_DIR")
def test_llama3_ids_are_those_of_lingua_s_own_class(llama3, monkeypatch):
    monkeypatch.syspath_prepend(os.environ["LINGUA_DIR"])
    theirs = pytest.importorskip("lingua.tokenizer").build_tokenizer("tiktoken", llama3.path)
    assert (llama3.n_words, llama3.bos_id, llama3.eos_id) == (theirs.n_words, theirs.bos_id, theirs.eos_id)
    texts = [*hard_texts(), "the cat " * 50_001, "日本語 " * 110_000, "x" * 399_999 + "the end <|eot_id|>"]
    assert llama3.prepare()
    flat, lengths = llama3.encode_flat(texts)
    for text, ids in zip(texts, np.split(flat, np.cumsum(lengths)[:-1]), strict=True):
        assert theirs.encode(text, False, False) == ids.tolist() == llama3.encode(text)
    assert theirs.encode(texts[9], True, True) == llama3.encode(texts[9], True, True)


def test_without_the_package_both_ways_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("lingua_synth.tokens.llama3.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'lingua-synth\[llama3\]'.*tokenizer.path="):
        build_tokenizer("tiktoken")
    (tmp_path / "llama_models" / "llama4").mkdir(parents=True)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "llama_models")]})
    monkeypatch.setattr("lingua_synth.tokens.llama3.find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=r"does not hold Llama 3's rank file .* only no tokenizer.model"):
        build_tokenizer("tiktoken")
    (tmp_path / "llama_models" / "llama4" / "tokenizer.model").write_text("YQ== 0\n")
    with pytest.raises(ValueError, match=r"only .*llama4.tokenizer.model; install llama-models 0.3.0"):
        build_tokenizer("tiktoken")
