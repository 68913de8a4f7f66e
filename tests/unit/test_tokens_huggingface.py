"""Tokenizer files for Hugging Face: the ids of training, and vocabularies recognized on the way back.

`read_ids` reads a tokenizer.json by the meaning of its fields, without the library `tokenizers`; where that (and
transformers) is installed, it is asked too.
"""

import base64
import io
import json
import shutil
from itertools import pairwise

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lingua_synth.tokens import build_tokenizer, train_sentencepiece
from lingua_synth.tokens.huggingface import (
    PROBES,
    byte_alphabet,
    compare_ids,
    derive_merges,
    find_tokenizer,
    tokenizer_json,
    write_tokenizer_files,
)
from lingua_synth.tokens.tokenizer import TiktokenTokenizer

CORPUS = [
    f"The {animal} sat on the {place}, number {i}, and looked at the sea.\n    Then it slept well, didn't it?\n"
    for i, (animal, place) in enumerate((a, p) for a in ("cat", "dog", "owl", "fox") for p in ("mat", "hill", "roof"))
] * 20
# Without U+2581, which SentencePiece and the exported form take for a space.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
PIECES = st.lists(
    st.sampled_from(["aa", "a", "ab", " ", "  ", "\n", "the", " the", "12", "'s", "é", "猫", "<s>", "<0x0A>", "<bos>"])
).map("".join)
KINDS = ("bytes", "tiktoken", "sp", "unigram", "normalizing")


def write_ranks(path):
    """A rank file whose tokens can be divided in several ways, and one that no merge reaches."""
    merges = ["aa", "aaa", "aaaa", "ab", "ba", "aba", "th", "he", "the", " the", "  ", "in", "'s", "xyz", "12", "123"]
    tokens = [bytes([byte]) for byte in range(255, -1, -1)] + [merge.encode() for merge in merges]
    path.write_text("".join(f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens)))
    return str(path)


def train(path, **options):
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    lines = iter("".join(CORPUS).splitlines())
    SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, minloglevel=2, **options)
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    bare = {"normalization_rule_name": "identity", "byte_fallback": True, "hard_vocab_limit": False}
    letters = {"required_chars": "<>/0123456789ABCDEFxsunk"}
    made = {
        "bytes": ("bytes", None),
        "tiktoken": ("tiktoken", write_ranks(folder / "ranks.model")),
        "sp": ("sp", str(train_sentencepiece(CORPUS, folder / "sp.model", 330))),
        "unigram": ("sp", train(folder / "unigram.model", model_type="unigram", vocab_size=390, **bare, **letters)),
        "normalizing": ("sp", train(folder / "nfkc.model", model_type="bpe", vocab_size=80)),
    }
    return {kind: build_tokenizer(name, path) for kind, (name, path) in made.items()}


def read_ids(content, text):
    """Ids of `text` by a tokenizer.json of byte-level or character BPE, or Unigram; no special tokens."""
    for step in (content["normalizer"] or {}).get("normalizers", []):
        if step["type"] == "Prepend":
            text = step["prepend"] + text if text else text
        elif "String" in step["pattern"]:
            text = text.replace(step["pattern"]["String"], step["content"])
        else:
            text = regex.sub(step["pattern"]["Regex"].replace(r"\z", r"\Z"), step["content"], text)
    model = content["model"]
    if model["type"] == "Unigram":
        return viterbi(model, text)
    words = [text] if text else []
    for step in (content["pre_tokenizer"] or {}).get("pretokenizers", []):
        if step["type"] == "Split":
            words = [part for word in words for part in regex.findall(step["pattern"]["Regex"], word)]
        else:
            assert step["type"] == "ByteLevel" and not step["use_regex"] and not step["add_prefix_space"]
            alphabet = byte_alphabet()
            words = ["".join(alphabet[byte] for byte in word.encode()) for word in words]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    vocab, ids = model["vocab"], []
    for word in words:
        if model["ignore_merges"] and word in vocab:
            ids.append(vocab[word])
            continue
        symbols = list(word)
        while True:
            pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
            if not pairs:
                break
            _, i = min(pairs)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        for symbol in symbols:
            ids += [vocab[symbol]] if symbol in vocab else [vocab[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids


def viterbi(model, text):
    scores = {piece: (score, i) for i, (piece, score) in enumerate(model["vocab"])}
    unknown = min(score for score, _ in scores.values()) - 10
    best = [(0.0, [])]
    for end in range(1, len(text) + 1):
        choices = []
        for start in range(max(0, end - 20), end):
            piece = text[start:end]
            if piece in scores:
                choices.append((best[start][0] + scores[piece][0], start, [scores[piece][1]]))
            elif len(piece) == 1:
                ids = [scores[f"<0x{byte:02X}>"][1] for byte in piece.encode()]
                choices.append((best[start][0] + unknown, start, ids))
        score, start, ids = max(choices, key=lambda choice: choice[0])
        best.append((score, best[start][1] + ids))
    return best[-1][1]


# ---- the same ids ----


@pytest.mark.parametrize("kind", ["bytes", "tiktoken", "sp", "unigram"])
@settings(max_examples=150, deadline=None)
@given(text=st.one_of(TEXTS, PIECES))
@example(text="aaaaaaaaa abababa xyz xyzz 's it's 1234567")
@example(text="xyz")
@example(text="  two\n\n\tthree   \r\n\x00 \ufeff e\u0301 <s></s><unk><0x0A><|end_of_text|><bos>")
def test_the_fields_of_the_file_mean_our_ids(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    content = tokenizer_json(tokenizer)
    assert read_ids(content, text) == tokenizer.encode(text)


def test_the_probes_differ_where_a_detail_is_wrong(tokenizers):
    """What `compare_ids` encodes tells each of these mistakes."""
    for kind, damage in (
        ("tiktoken", lambda c: c["model"].update(ignore_merges=False)),
        ("tiktoken", lambda c: c["model"]["merges"].pop(0)),
        ("tiktoken", lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\S+|\s+")),
        ("sp", lambda c: c["model"]["merges"].pop(0)),
        ("sp", lambda c: c["normalizer"].update(normalizers=[])),
    ):
        content = tokenizer_json(tokenizers[kind])
        damage(content)
        texts = [*PROBES, "xyz", CORPUS[0]]
        assert any(read_ids(content, text) != tokenizers[kind].encode(text) for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids(tokenizers, kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers[kind]
    assert write_tokenizer_files(tokenizer, tmp_path, max_length=77) is True
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.is_fast and len(theirs) == tokenizer.n_words and theirs.model_max_length == 77
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert theirs.unk_token == ("<unk>" if tokenizer.name == "sp" else None)

    @settings(max_examples=300, deadline=None)
    @given(text=st.one_of(PIECES, TEXTS) if kind != "normalizing" else PIECES)
    @example(text="<s> in text, and <|begin_of_text|> and <bos>")
    def same(text):
        ids = tokenizer.encode(text, add_bos=True)
        assert theirs(text).input_ids == ids
        assert theirs(text, add_special_tokens=False).input_ids == ids[1:]
        if kind in ("tiktoken", "sp"):
            assert theirs.decode(ids[1:]) == tokenizer.decode(ids[1:]) == text

    same()
    text = "the cat sat on the mat"
    assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == text


def test_without_bos_none_is_added(tokenizers, tmp_path):
    write_tokenizer_files(tokenizers["sp"], tmp_path, max_length=8, add_bos=False)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"] is None
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] is False


def test_llama_3_has_the_merges_that_its_publisher_counts(tmp_path):
    """280,147 merges are in tokenizer.json of huggingface.co/meta-llama/Meta-Llama-3-8B."""
    try:
        tokenizer = build_tokenizer("tiktoken")
    except ValueError:
        pytest.skip("llama-models is not installed")
    content = tokenizer_json(tokenizer)
    assert len(content["model"]["merges"]) == 280_147
    assert len(content["model"]["vocab"]) == 128_000
    assert [content["added_tokens"][i]["id"] for i in (0, 255)] == [128_000, 128_255]
    assert content["added_tokens"][1]["content"] == "<|end_of_text|>"
    # Back from the JSON alone, as a downloaded Llama 3 has it: the same ranks.
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(content))
    found = find_tokenizer(tmp_path / "hf", tmp_path / "found.model", 128_256)
    assert build_tokenizer(found.name, found.path).sha256 == tokenizer.sha256


@settings(max_examples=200, deadline=None)
@given(words=st.sets(st.text("ab", min_size=2, max_size=5), max_size=12), text=st.text("ab", max_size=14))
def test_every_division_of_a_token_is_a_merge(words, text):
    """Any vocabulary over a and b, as tiktoken reads it and as the list of merges is read."""
    import tiktoken

    order = {word.encode(): i for i, word in enumerate(["a", "b", *sorted(words, key=lambda w: (len(w), w))])}
    rank = {pair: i for i, pair in enumerate(derive_merges(list(order)[::-1], order))}
    symbols = [char.encode() for char in text]
    while pairs := [(rank[p], i) for i, p in enumerate(pairwise(symbols)) if p in rank]:
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    others = {bytes([b]): len(order) + b for b in range(256) if bytes([b]) not in order}
    encoding = tiktoken.Encoding("ab", pat_str=r"(?s).+", mergeable_ranks=order | others, special_tokens={})
    whole = [order[text.encode()]] if text.encode() in order else [order[symbol] for symbol in symbols]
    assert encoding.encode_ordinary(text) == whole


# ---- the way back ----


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_export_is_recognized(tokenizers, kind, tmp_path):
    tokenizer = tokenizers[kind]
    write_tokenizer_files(tokenizer, tmp_path / "hf", max_length=8)
    found = find_tokenizer(tmp_path / "hf", tmp_path / "found.model", tokenizer.n_words)
    assert found.name == tokenizer.name
    assert build_tokenizer(found.name, found.path).sha256 == tokenizer.sha256
    assert (tmp_path / "found.model").exists() == (kind != "bytes")


def test_ranks_are_read_out_of_a_tokenizer_json(tokenizers, tmp_path):
    """In the older form too, where a merge is one string."""
    tokenizer = tokenizers["tiktoken"]
    content = tokenizer_json(tokenizer)
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    found = find_tokenizer(tmp_path, tmp_path / "found.model", tokenizer.n_words)
    assert build_tokenizer(found.name, found.path).sha256 == tokenizer.sha256


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\s+|[^\s\w]+"),
        lambda c: c["pre_tokenizer"].update(pretokenizers=[{"type": "ByteLevel", "use_regex": True}]),
        lambda c: c["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True}),
        lambda c: c["model"]["vocab"].update(猫=10_000),
        lambda c: c["model"]["vocab"].pop(next(iter(c["model"]["vocab"]))),
        lambda c: c["model"].update(merges=c["model"]["merges"][::-1]),
        lambda c: c.update(normalizer={"type": "NFC"}),
        lambda c: c["model"].update(type="WordPiece"),
    ],
)
def test_other_vocabularies_are_not_taken_for_ours(tokenizers, damage, tmp_path):
    content = tokenizer_json(tokenizers["tiktoken"])
    damage(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"none of this library's vocabularies"):
        find_tokenizer(tmp_path, tmp_path / "found.model", 10_000)
    assert not (tmp_path / "found.model").exists()


def test_bad_vocabularies_are_refused(tokenizers, tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer in .*neither tokenizer\.model nor tokenizer\.json"):
        find_tokenizer(tmp_path, tmp_path / "found.model", 300)
    shutil.copy(tokenizers["sp"].path, tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match=r"tokenizer\.model has 330 entries, but the model's embedding only 300"):
        find_tokenizer(tmp_path, tmp_path / "found.model", 300)
    (tmp_path / "tokenizer.model").write_bytes(b"neither")
    with pytest.raises(ValueError, match=r"is not a SentencePiece model, and not tiktoken's"):
        find_tokenizer(tmp_path, tmp_path / "found.model", 300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "char"}, "is a word or character model"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "puts its spaces behind words"),
        ({"model_type": "bpe", "user_defined_symbols": ["<sep>"]}, "symbols of its user of more than one character"),
        ({"model_type": "unigram", "user_defined_symbols": ["\t"]}, "symbols of its user"),
        ({"model_type": "unigram"}, "has no pieces for all characters of <unk>, <s>, </s>"),
    ],
)
def test_sentencepiece_models_that_the_format_cannot_hold(options, message, tmp_path):
    path = train(tmp_path / "odd.model", vocab_size=60, hard_vocab_limit=False, **options)
    with pytest.raises(ValueError, match=message):
        tokenizer_json(build_tokenizer("sp", path))


def test_ids_that_differ_are_refused(tokenizers, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    tokenizer = tokenizers["tiktoken"]
    content = tokenizer_json(tokenizer)
    content["model"]["merges"].clear()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"cannot be written for Hugging Face: .The quick.* has other ids from place"):
        compare_ids(tokenizer, tmp_path / "tokenizer.json")
    monkeypatch.setattr(TiktokenTokenizer, "_encode", lambda self, text: [0])
    with pytest.raises(ValueError, match=r"cannot be written for Hugging Face"):
        write_tokenizer_files(tokenizer, tmp_path / "new", max_length=8)
