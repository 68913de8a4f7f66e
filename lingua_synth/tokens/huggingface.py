"""A vocabulary as Hugging Face reads it: `tokenizer.json` and what stands beside it, and the way back.

`write_tokenizer_files` turns each of our three vocabularies into the JSON of the library `tokenizers`: `bytes` and
`tiktoken` as byte-level BPE, `sp` as BPE or Unigram over characters. The JSON is made from the vocabulary itself;
nothing is learned or guessed, and where `tokenizers` is installed its ids are compared with ours before the files are
trusted (`compare_ids`). `find_tokenizer` recognizes the vocabulary of a downloaded model.

What differs from our own ids: a U+2581 in a text becomes a space in the `sp` form (SentencePiece's own reading; ours
keeps it as three bytes), and texts of more than 400,000 characters are not cut there.
"""

from __future__ import annotations

import base64
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lingua_synth.files import atomic_file, read_json, sha256_file, what_is_there, write_json
from lingua_synth.tokens.args import TokenizerArgs
from lingua_synth.tokens.tokenizer import (
    LLAMA3_PATTERN,
    SPACE_SYMBOL,
    ByteTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    build_tokenizer,
)

Token = TypeVar("Token", bytes, str)

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
# Not beside tokenizer.json: there, transformers may convert it anew instead of reading the JSON.
VOCABULARY_FILE = "original/tokenizer.model"
# Texts that `compare_ids` encodes: letters of many scripts, contractions, runs of spaces and digits, emoji, damage.
PROBES = (
    "The quick brown fox doesn't jump over 12345 lazy dogs; it's 3.14159 o'clock, WE'LL see.",
    "  leading and   inner  spaces\t\ttabs\n\n\nnew lines \r\n and trailing   ",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2, 3]}  # comment\n",
    "Größenwahn, façade, naïve, Ελληνικά, русский текст, 中文字符，日本語のテキスト、한국어 문장, العربية, हिन्दी, ไทย",
    "emoji 👩‍👩‍👧 🇫🇷 ✈️ e\u0301 \u00a0\u2003\u3000\u200b \ufeff \ufffd \u017f \x00 \x7f ½ ² Ⅷ ﬁ ŉ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa zzzzzzzz 00000000000 ........ ======== ''''s 'S 'LL",
    "<s> </s> <unk> <0x0A> <0xE2> <bos> <|begin_of_text|> <|end_of_text|><|reserved_special_token_4|>",
    "",
    " ",
    "\n",
)


def write_tokenizer_files(
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    max_length: int,
    add_bos: bool = True,
    chat: Mapping[str, Any] | None = None,
) -> bool:
    """Write the files from which `AutoTokenizer` gives the ids of `tokenizer`; True if they were compared.

    `max_length`: the model's context, in tokens. `add_bos`: whether a text begins with BOS unless the caller says
    otherwise, which is right for a model whose documents began with it; without a BOS it has no effect. Names of
    special tokens inside a text are text, as in training (`split_special_tokens`). The vocabulary's own file is copied
    to original/tokenizer.model, for Meta Lingua and for `find_tokenizer`.

    `chat`: the chat template that the model was fine-tuned with, as its checkpoint names it. It is written to
    chat_template.jinja and, for older readers, into tokenizer_config.json; its special tokens have the names that it
    writes, and then mean the tokens wherever they stand, as servers read a rendered conversation like any text.

    ValueError for a vocabulary that the format cannot hold, and when the ids differ.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    add_bos = add_bos and tokenizer.bos_id >= 0
    content = tokenizer_json(tokenizer, add_bos=add_bos, names=(chat or {}).get("special_tokens", {}))
    names = {entry["id"]: entry["content"] for entry in content["added_tokens"]}
    write_json(folder / TOKENIZER_JSON, content)
    specials = {
        f"{which}_token": names[token_id]
        for which, token_id in (
            ("bos", tokenizer.bos_id),
            ("eos", tokenizer.eos_id),
            ("unk", tokenizer._model.unk_id() if isinstance(tokenizer, SentencePieceTokenizer) else -1),
        )
        if token_id in names
    }
    if chat is not None:
        specials |= {key: chat[key] for key in ("bos_token", "eos_token") if chat[key]}
    write_json(folder / SPECIAL_TOKENS_MAP, specials)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **specials,
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "split_special_tokens": chat is None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
            for entry in content["added_tokens"]
        },
    }
    if chat is not None:
        config["chat_template"] = chat["template"]
        with atomic_file(folder / TEMPLATE_FILE) as file:
            file.write(chat["template"])
    write_json(folder / TOKENIZER_CONFIG, config)
    if tokenizer.path:
        (folder / VOCABULARY_FILE).parent.mkdir(exist_ok=True)
        _copy(Path(tokenizer.path), folder / VOCABULARY_FILE)
    return compare_ids(tokenizer, folder / TOKENIZER_JSON)


def compare_ids(tokenizer: Tokenizer, path: str | Path, texts: Iterable[str] = PROBES) -> bool:
    """Encode `texts` by the tokenizer.json at `path` and by `tokenizer`; True when all ids are equal.

    False where the library `tokenizers` is not installed, and nothing was compared. ValueError shows the first text
    whose ids differ.
    """
    try:
        from tokenizers import Tokenizer as FastTokenizer
    except ImportError:
        return False
    fast = FastTokenizer.from_file(str(path))
    fast.encode_special_tokens = True
    for text in texts:
        theirs, ours = fast.encode(text, add_special_tokens=False).ids, tokenizer.encode(text)
        if theirs != ours:
            at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), len(ours))
            raise ValueError(
                f"the vocabulary {tokenizer.path or tokenizer.name} cannot be written for Hugging Face: "
                f"{text[:60]!r} has other ids from place {at} on ({theirs[at : at + 4]} there, {ours[at : at + 4]} "
                "here)"
            )
    return True


def tokenizer_json(
    tokenizer: Tokenizer, *, add_bos: bool = True, names: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The content of tokenizer.json for `tokenizer`; `names`: what special tokens are called there, instead of their
    own names. ValueError for a SentencePiece model that it cannot hold.
    """
    if isinstance(tokenizer, ByteTokenizer):
        parts = _byte_level({bytes([byte]): byte for byte in range(256)}, [], pattern=None)
        parts["added_tokens"] = [_added(256, "<bos>"), _added(257, "<eos>")]
    elif isinstance(tokenizer, TiktokenTokenizer):
        ranks = tokenizer._ranks
        parts = _byte_level(ranks, derive_merges(ranks, ranks), pattern=LLAMA3_PATTERN)
        parts["added_tokens"] = [
            _added(token_id, tokenizer.token_text(token_id)) for token_id in range(len(ranks), tokenizer.n_words)
        ]
    else:
        assert isinstance(tokenizer, SentencePieceTokenizer), "there are three vocabularies"
        parts = _sentencepiece(tokenizer)
    added = {entry["id"]: entry for entry in parts["added_tokens"]}
    added |= {token_id: _added(token_id, name) for name, token_id in (names or {}).items()}
    parts["added_tokens"] = [added[token_id] for token_id in sorted(added)]
    post_processor = _template(added[tokenizer.bos_id]["content"], tokenizer.bos_id) if add_bos else None
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": parts["added_tokens"],
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": post_processor,
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def derive_merges(tokens: Iterable[Token], order: Mapping[Token, int]) -> list[tuple[Token, Token]]:
    """Every pair of tokens that makes a third, by the `order` of the third, then of the left and of the right.

    tiktoken and SentencePiece merge any two neighbours whose joint text is a token, the one of the lowest order first;
    a list of merges gives the same result when it holds all of a token's divisions.
    """
    merges = []
    for token in tokens:
        divided = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [
            (order[token], order[left], order[right], left, right)
            for left, right in divided
            if left in order and right in order
        ]
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


# ---- byte-level BPE ----


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level vocabularies: itself where Latin-1 prints it,
    else the next from U+0100 on (the table of GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _byte_level(ids: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], pattern: str | None) -> dict[str, Any]:
    alphabet = byte_alphabet()

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    steps: list[dict[str, Any]] = []
    if pattern:
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            **_BPE,
            # A word that is a token is taken whole, as tiktoken does.
            "ignore_merges": True,
            "vocab": {spell(token): token_id for token, token_id in sorted(ids.items(), key=lambda item: item[1])},
            "merges": [[spell(left), spell(right)] for left, right in merges],
        },
    }


_BPE: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


# ---- SentencePiece ----

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM_TYPE, _BPE_TYPE = 1, 2
# Far below any piece's log-probability, so that the names of bytes and control pieces are never read out of a text.
_NEVER = -1e6


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    proto = _Message(tokenizer._model.serialized_model_proto())
    pieces = []
    for field in proto.messages(1):
        pieces.append((field.text(1), field.single(2), field.integer(3, _NORMAL)))
    trainer, normalizer = proto.message(2), proto.message(3)
    model_type, has_bytes = trainer.integer(3, _UNIGRAM_TYPE), any(kind == _BYTE for *_, kind in pieces)
    what = f"the SentencePiece model {tokenizer.path}"
    unsupported = {
        "is a word or character model": model_type not in (_UNIGRAM_TYPE, _BPE_TYPE),
        "puts its spaces behind words": bool(trainer.integer(24, 0)),
        "leaves its spaces as they are": not normalizer.integer(5, 1),
        "has unused pieces": any(kind == _UNUSED for *_, kind in pieces),
        "has symbols of its user of more than one character": any(
            kind == _USER_DEFINED and (len(piece) > 1 or model_type != _BPE_TYPE) for piece, _, kind in pieces
        ),
    }
    if model_type == _UNIGRAM_TYPE:
        # Their low score keeps these names from being read out of a text where every character has another piece.
        singles = {piece for piece, _, kind in pieces if kind == _NORMAL and len(piece) == 1}
        names = [piece for piece, _, kind in pieces if kind != _NORMAL and not set(piece) <= singles]
        listed = ", ".join(names[:3])
        unsupported[f"has no pieces for all characters of {listed}, the names of other pieces,"] = bool(names)
    for reason, holds in unsupported.items():
        if holds:
            raise ValueError(f"{what} {reason}, which this export does not write; use a BPE or unigram model without")

    steps: list[dict[str, Any]] = []
    if charsmap := normalizer.raw(2):
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii")})
    if normalizer.integer(4, 1):
        steps.append(_replace({"Regex": r"\A +| +\z"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    has_prefix = bool(normalizer.integer(3, 1))
    if has_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE_SYMBOL})
    steps.append(_replace({"String": " "}, SPACE_SYMBOL))
    decoders = [_replace({"String": SPACE_SYMBOL}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})

    unk_id = tokenizer._model.unk_id()
    if model_type == _UNIGRAM_TYPE:
        model: dict[str, Any] = {
            "type": "Unigram",
            "unk_id": unk_id,
            "vocab": [[piece, score if kind == _NORMAL else _NEVER] for piece, score, kind in pieces],
            "byte_fallback": has_bytes,
        }
    else:
        # Pieces of the user are taken alone, never merged.
        scores = {piece: score for piece, score, kind in pieces if kind == _NORMAL}
        order = {piece: i for i, piece in enumerate(sorted(scores, key=lambda piece: -scores[piece]))}
        model = {
            **_BPE,
            "unk_token": pieces[unk_id][0],
            "fuse_unk": True,
            "byte_fallback": has_bytes,
            "vocab": {piece: token_id for token_id, (piece, _, _) in enumerate(pieces)},
            "merges": [list(merge) for merge in derive_merges(scores, order)],
        }
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        # None: SentencePiece looks for the best division of the whole text, not word by word.
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
        "added_tokens": [
            _added(token_id, piece) for token_id, (piece, _, kind) in enumerate(pieces) if kind in (_UNKNOWN, _CONTROL)
        ],
    }


class _Message:
    """The fields of one serialized protocol-buffer message, by number; the last value of a field counts.

    Enough of the wire format (protobuf.dev/programming-guides/encoding) for SentencePiece's ModelProto, whose field
    numbers are those of sentencepiece_model.proto; the protobuf package, of a matching version, is not needed for it.
    """

    def __init__(self, data: bytes):
        self._fields: dict[int, list[Any]] = {}
        for number, value in self._read(data):
            self._fields.setdefault(number, []).append(value)

    @staticmethod
    def _read(data: bytes) -> Iterator[tuple[int, Any]]:
        at = 0

        def varint() -> int:
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return value

        while at < len(data):
            number, kind = divmod(varint(), 8)
            if kind == 0:
                yield number, varint()
                continue
            size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
            yield number, data[at : at + size]
            at += size

    def messages(self, number: int) -> Iterator[_Message]:
        return (_Message(value) for value in self._fields.get(number, []))

    def message(self, number: int) -> _Message:
        return _Message(b"".join(self._fields.get(number, [])))

    def raw(self, number: int) -> bytes:
        return self._fields.get(number, [b""])[-1]

    def text(self, number: int) -> str:
        return self.raw(number).decode("utf-8")

    def single(self, number: int) -> float:
        return struct.unpack("<f", self._fields.get(number, [bytes(4)])[-1])[0]

    def integer(self, number: int, default: int) -> int:
        return self._fields.get(number, [default])[-1]


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _added(token_id: int, name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": name, **flags}


def _template(name: str, token_id: int) -> dict[str, Any]:
    """BOS before a text, and before each of a pair."""

    def special(type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    def text(which: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": which, "type_id": type_id}}

    return {
        "type": "TemplateProcessing",
        "single": [special(0), text("A", 0)],
        "pair": [special(0), text("A", 0), special(1), text("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}},
    }


# ---- the way back ----


def find_tokenizer(folder: str | Path, destination: str | Path, num_words: int) -> TokenizerArgs:
    """The vocabulary of a downloaded model, if it is one of ours; its file is written to `destination`.

    A SentencePiece or tiktoken file is taken from tokenizer.model or original/tokenizer.model; else tokenizer.json is
    recognized when it is `bytes` as this library exports it, or byte-level BPE with Llama 3's split, whose ranks are
    written out as a rank file. `num_words`: entries of the model's embedding, which the ids must fit in.

    ValueError says what was found instead.
    """
    folder, destination = Path(folder), Path(destination)
    for name in ("tokenizer.model", VOCABULARY_FILE):
        if (folder / name).is_file():
            found = _open_vocabulary(folder / name)
            _refuse_too_many(found, num_words, folder / name)
            _copy(folder / name, destination)
            return TokenizerArgs(name=found.name, path=str(destination))
    path = folder / TOKENIZER_JSON
    if not path.is_file():
        raise ValueError(
            f"no tokenizer in {folder}: neither tokenizer.model nor {TOKENIZER_JSON}; {what_is_there(path)}. "
            "Name one: tokenizer.name= tokenizer.path="
        )
    content = read_json(path)
    ranks = _byte_level_ranks(content)
    if ranks == {bytes([byte]): byte for byte in range(256)} and not _split_pattern(content):
        return TokenizerArgs(name="bytes", path=None)
    if ranks is None or _split_pattern(content) != LLAMA3_PATTERN:
        kind = (content.get("model") or {}).get("type")
        raise ValueError(
            f"{path} ({kind}) is none of this library's vocabularies: bytes, SentencePiece with its tokenizer.model, "
            "or byte-level BPE with Llama 3's split. To import the weights alone, name the vocabulary that is to be "
            "recorded: tokenizer.name= tokenizer.path="
        )
    with atomic_file(destination, "wb") as file:
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            file.write(b"%s %d\n" % (base64.b64encode(token), rank))
    found = build_tokenizer("tiktoken", str(destination))
    _refuse_too_many(found, num_words, path)
    compare_ids(found, path)
    return TokenizerArgs(name="tiktoken", path=str(destination))


def _open_vocabulary(path: Path) -> Tokenizer:
    try:
        return build_tokenizer("tiktoken", str(path))
    except ValueError as not_ranks:
        try:
            return build_tokenizer("sp", str(path))
        except ValueError as not_sentencepiece:
            raise ValueError(f"{not_sentencepiece}, and not tiktoken's: {not_ranks}") from None


def _refuse_too_many(tokenizer: Tokenizer, num_words: int, path: Path) -> None:
    if tokenizer.n_words > num_words:
        raise ValueError(
            f"{path} has {tokenizer.n_words:,} entries, but the model's embedding only {num_words:,}; it is not this "
            "model's vocabulary. Name the right one: tokenizer.name= tokenizer.path="
        )


def _byte_level_ranks(content: Mapping[str, Any]) -> dict[bytes, int] | None:
    """{token bytes: id} of a byte-level BPE whose ids are 0..n-1 in the order of its merges; None for anything else."""
    model = content.get("model") or {}
    added = {entry["content"] for entry in content.get("added_tokens", ())}
    if model.get("type") != "BPE" or model.get("byte_fallback") or content.get("normalizer"):
        return None
    if "ByteLevel" not in str(content.get("pre_tokenizer")):
        return None
    back = {char: byte for byte, char in byte_alphabet().items()}
    ranks: dict[bytes, int] = {}
    for token, token_id in model["vocab"].items():
        if token in added:
            continue
        if not set(token) <= back.keys():
            return None
        ranks[bytes(back[char] for char in token)] = token_id
    if sorted(ranks.values()) != list(range(len(ranks))):
        return None
    # The bytes have ids of their own order; every longer token must have been merged in the order of its id.
    merged = [ranks[b"".join(_pair(merge, back))] for merge in model["merges"]]
    return ranks if merged == sorted(merged) else None


def _pair(merge: str | Sequence[str], back: Mapping[str, int]) -> list[bytes]:
    # Older files have "left right" in one string.
    return [bytes(back[char] for char in part) for part in (merge.split(" ") if isinstance(merge, str) else merge)]


def _split_pattern(content: Mapping[str, Any]) -> str:
    """The pattern whose matches are words, "" where a text is one word; "another" for any other way to split."""
    pre_tokenizer = content["pre_tokenizer"]
    *before, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if last.get("type") != "ByteLevel" or last.get("use_regex", True) or last.get("add_prefix_space", True):
        return "another"
    if not before:
        return ""
    split = before[0]
    is_plain = len(before) == 1 and split.get("type") == "Split"
    if not is_plain or split.get("behavior") != "Isolated" or split.get("invert"):
        return "another"
    return str(split["pattern"].get("Regex", "another"))


def _copy(source: Path, destination: Path) -> None:
    """Copy a file, whole and on disk."""
    if destination.is_file() and os.path.samefile(source, destination):
        return
    with open(source, "rb") as original, atomic_file(destination, "wb") as file:
        shutil.copyfileobj(original, file)
    assert sha256_file(source) == sha256_file(destination), f"{source} changed while it was copied"
