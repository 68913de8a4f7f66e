"""Tokenizers: Lingua's ids, nothing lost, one identity per vocabulary."""

import base64
import os
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lingua_synth.tokens import build_tokenizer, train_sentencepiece
from lingua_synth.tokens.sentencepiece_training import sample_texts

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
CORPUS = [
    f"The {animal} sat on the {place}, number {i}, and looked at the sea.\n    Then it slept well.\n"
    for i, (animal, place) in enumerate((a, p) for a in ("cat", "dog", "owl", "fox") for p in ("mat", "hill", "roof"))
] * 20


def write_ranks(path, merges=("th", "the", " the", "in", " s")):
    """A rank file in tiktoken's format: the 256 bytes and a few merges."""
    tokens = [bytes([byte]) for byte in range(256)] + [merge.encode() for merge in merges]
    path.write_text("".join(f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens)))
    return str(path)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    model = train_sentencepiece(CORPUS, folder / "sp.model", 330)
    return {
        "bytes": build_tokenizer("bytes"),
        "sp": build_tokenizer("sp", str(model)),
        "tiktoken": build_tokenizer("tiktoken", write_ranks(folder / "ranks.model")),
    }


@pytest.mark.parametrize("name", ["bytes", "sp", "tiktoken"])
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
@example(text="\u2581 both \u2581\u2581 kinds of space")
@example(text="  two\n\n\tthree   \r\n\x00 \ufeff e\u0301 \U0001f469\u200d\U0001f469 <s></s><unk><0x0A><|end_of_text|>")
def test_decode_inverts_encode_for_any_text(tokenizers, name, text):
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(text, add_bos=False, add_eos=False)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.n_words for i in ids)
    assert tokenizer.bos_id not in ids and tokenizer.eos_id not in ids


@pytest.mark.parametrize("name", ["bytes", "sp", "tiktoken"])
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_a_batch_is_each_text_alone(tokenizers, name, texts):
    tokenizer = tokenizers[name]
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == tokenizer.dtype == np.uint16 for ids in batch)
    flat, lengths = tokenizer.encode_flat(texts)
    assert (flat.dtype, lengths.dtype) == (tokenizer.dtype, np.int64)
    assert lengths.tolist() == [len(ids) for ids in batch]
    assert flat.tolist() == [i for ids in batch for i in ids.tolist()]


def test_bytes_has_linguas_ids(tokenizers):
    tokenizer = tokenizers["bytes"]
    assert (tokenizer.n_words, tokenizer.bos_id, tokenizer.eos_id) == (258, 256, 257)
    assert tokenizer.encode("aé", add_bos=True, add_eos=True) == [256, 97, 195, 169, 257]
    assert tokenizer.decode([256, 0x61, 0xC3, 257]) == "a\\xc3"
    assert [tokenizer.token_text(i) for i in (65, 10, 195, 256, 257)] == ["A", "<0x0A>", "<0xC3>", "<bos>", "<eos>"]


def test_tiktoken_has_linguas_special_tokens_after_the_ranks(tokenizers):
    tokenizer = tokenizers["tiktoken"]
    ranks = 256 + 5
    assert (tokenizer.n_words, tokenizer.bos_id, tokenizer.eos_id) == (ranks + 256, ranks, ranks + 1)
    assert tokenizer.encode(" the", add_bos=True, add_eos=True) == [ranks, 258, ranks + 1]
    named = {
        0: "begin_of_text",
        1: "end_of_text",
        2: "fim_prefix",
        3: "fim_middle",
        4: "reserved_special_token_4",
        252: "reserved_special_token_252",
        253: "fim_end_fill",
        254: "fim_pad",
        255: "fim_suffix",
    }
    assert {i: tokenizer.token_text(ranks + i) for i in named} == {i: f"<|{name}|>" for i, name in named.items()}
    assert tokenizer.token_text(258) == " the"


def test_tiktoken_cuts_where_lingua_does(tokenizers):
    tokenizer = tokenizers["tiktoken"]
    text = "x" * 399_999 + "the end"  # the cut falls inside "the"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[399_999:] == [ord("t"), ord("h"), ord("e"), *tokenizer.encode(" end")]
    assert tokenizer.encode_batch(["in", text, ""])[1].tolist() == ids


@pytest.mark.skipif("LINGUA_DIR" not in os.environ, reason="needs a checkout of Meta Lingua in LINGUA_DIR")
@pytest.mark.parametrize("name", ["bytes", "sp", "tiktoken"])
def test_ids_equal_those_of_linguas_own_classes(tokenizers, name, monkeypatch):
    monkeypatch.syspath_prepend(os.environ["LINGUA_DIR"])
    lingua = pytest.importorskip("lingua.tokenizer")
    ours = tokenizers[name]
    theirs = lingua.build_tokenizer(name, ours.path)
    assert (ours.n_words, ours.bos_id, ours.eos_id) == (theirs.n_words, theirs.bos_id, theirs.eos_id)
    for text in [
        *CORPUS[:12],
        "don't I'LL 1234567",
        "  \n\n \t x",
        "naïve ﬁ 日本 👩‍👩‍👧",
        "<|end_of_text|>",
        "a" * 400_003,
    ]:
        for add_bos, add_eos in [(True, True), (False, False)]:
            assert ours.encode(text, add_bos, add_eos) == theirs.encode(text, add_bos, add_eos)


def test_a_vocabulary_is_its_hash_and_not_its_path(tmp_path):
    one = build_tokenizer("tiktoken", write_ranks(tmp_path / "a.model"))
    same = build_tokenizer("tiktoken", write_ranks(tmp_path / "b.model"))
    assert one.sha256 == same.sha256
    # The same path with another content: tiktoken's own loader would return what it kept of the first.
    other = build_tokenizer("tiktoken", write_ranks(tmp_path / "a.model", ("th", "he", " the", "in", " s")))
    assert other.sha256 != one.sha256
    assert other.encode("he") == [257] and one.encode("he") == [104, 101]


# --- training ---


def test_training_is_deterministic_and_its_pieces_are_as_promised(tmp_path):
    first = train_sentencepiece(iter(CORPUS), tmp_path / "a.model", 340, seed=3)
    second = train_sentencepiece(list(CORPUS), tmp_path / "b.model", 340, seed=3)
    assert first.read_bytes() == second.read_bytes()
    tokenizer = build_tokenizer("sp", str(first))
    assert (tokenizer.n_words, tokenizer.bos_id, tokenizer.eos_id) == (340, 1, 2)
    assert [tokenizer.token_text(i) for i in (0, 1, 2)] == ["<unk>", "<s>", "</s>"]
    newlines = tokenizer.encode("\n\n")
    assert len(newlines) == 2 and len(set(newlines)) == 1 and tokenizer.token_text(newlines[0]) == "\n"
    assert len(tokenizer.encode("é")) == 2  # two byte pieces: the corpus has no such letter
    words = "The cat sat on the hill"
    assert len(tokenizer.encode(words)) < len(words) / 2


def test_the_sample_is_seeded_bounded_and_in_order():
    texts = [f"text {i:04d} " * 10 for i in range(1_000)]
    sample = sample_texts(texts, 20_000, seed=0)
    assert 19_000 < sum(map(len, sample)) <= 20_000
    positions = [texts.index(text) for text in sample]
    assert positions == sorted(positions)
    # Spread over the corpus, not its beginning: 200 of 1,000 positions, uniform, have a mean near 500 (sd 20).
    assert 400 < np.mean(positions) < 600
    assert sample == sample_texts(iter(texts), 20_000, seed=0)
    assert sample != sample_texts(texts, 20_000, seed=1)
    assert sample_texts(texts, 10**9, seed=1) == texts
    assert sample_texts(["", "a" * 50], 49, seed=0) == []


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 400, "no text to learn"),
        (["", ""], 400, "no text to learn"),
        (CORPUS, 299, "vocab_size 299 is too small"),
        (CORPUS, 5_000, r"cannot learn 5000 pieces from 240 texts.*too high"),
        ([chr(0x4E00 + i) * 3 for i in range(500)], 400, "cannot learn 400 pieces"),
    ],
)
def test_a_vocabulary_that_cannot_be_learned_is_refused(tmp_path, texts, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        train_sentencepiece(texts, tmp_path / "sp.model", vocab_size)
    assert os.listdir(tmp_path) == []


# --- bad input ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("word", None, r"no tokenizer 'word'; known are bytes, sp, tiktoken"),
        ("sp", None, "tokenizer sp needs tokenizer.path"),
        ("bytes", b"", "tokenizer bytes has no file"),
        ("sp", "missing", r"there is no file .*missing; .* holds"),
        ("tiktoken", "missing", r"there is no file .*missing; .* holds"),
        ("sp", b"no model", "is not a SentencePiece model"),
        ("sp", b"", "is not a SentencePiece model"),
        ("tiktoken", b"no ranks here", "is not a tiktoken rank file"),
        ("tiktoken", b"\xff\xfe\x00", "is not a tiktoken rank file"),
        ("tiktoken", b"", "is damaged"),
        ("tiktoken", b"YQ== 0\nYg== 1\n", "is damaged"),
    ],
)
def test_bad_vocabularies_are_refused_in_words(tmp_path, name, content, message):
    path = None if content is None else str(tmp_path / ("missing" if content == "missing" else "file"))
    if isinstance(content, bytes):
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        build_tokenizer(name, path)


def test_a_cut_rank_file_is_refused(tmp_path):
    path = tmp_path / "ranks.model"
    write_ranks(path)
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:100] + rows[101:]))
    with pytest.raises(ValueError, match="is damaged: a rank file has each rank from 0 once"):
        build_tokenizer("tiktoken", str(path))


def test_a_special_token_that_is_not_there_is_refused(tmp_path, tokenizers):
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=40, bos_id=-1, eos_id=-1, minloglevel=2
    )
    (tmp_path / "sp.model").write_bytes(model.getvalue())
    tokenizer = build_tokenizer("sp", str(tmp_path / "sp.model"))
    assert tokenizer.encode("the cat")
    with pytest.raises(ValueError, match="no BOS token; set add_bos=false"):
        tokenizer.encode("the cat", add_bos=True)
    with pytest.raises(ValueError, match="no EOS token; set add_eos=false"):
        tokenizer.encode("the cat", add_eos=True)
    for named in tokenizers.values():
        for bad in (-1, named.n_words):
            with pytest.raises(ValueError, match=f"no token {bad}"):
                named.token_text(bad)


@pytest.mark.parametrize(("name", "package"), [("sp", "sentencepiece"), ("tiktoken", "tiktoken")])
def test_missing_packages_are_named(tmp_path, monkeypatch, name, package):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        build_tokenizer(name, str(tmp_path / "file"))
