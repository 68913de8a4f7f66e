"""The fast path of a rank file: gigatoken's speed, tiktoken's ids.

gigatoken encodes some twenty times faster than tiktoken and is young: its own loader of rank files panics on
Llama 3's, and one release may differ from the next. So it is optional, one exact version is accepted, and nothing
it returns is taken on trust:

1. It gets a tokenizer.json made here, in memory, in which every split of a token into two tokens is a merge.
   tiktoken joins any two neighbours whose union is a token; with one merge a token, about 3 documents in 1,000 differ.
2. The two carry different versions of the Unicode tables. Characters that they class differently are found by trying
   them (gigatoken 0.10.0 and tiktoken 0.14.0: the 4,657 letters and numbers that Unicode 17 added), and texts that
   hold one go to tiktoken.
3. Before the first use, its ids are compared with tiktoken's on a fixed set of hard texts, and then on the first
   documents, before any of their ids is used.
4. In use, the tokens of every batch must spell as many bytes as its text, and one text in `CHECK_EVERY` is compared
   again.

A failure of the first three means tiktoken, with the reason; a failure of the fourth stops the run, because what was
written before may be wrong.

gigatoken holds the interpreter's lock while it encodes: threads gain nothing, one process a core does.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = "0.10.0"
# One text in so many is encoded by tiktoken too; at a twentieth of the speed that is 1 % of the time.
CHECK_EVERY = 2048
# Real text, in bytes, that both encode before one in so many is enough.
SAMPLE_BYTES = 500_000
# Two neighbouring versions of Unicode differ by some 5,000 characters.
MAX_EXCLUDED = 20_000

FlatIds = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]
"""Ids of several texts one after the other, and the number of ids of each."""


class FastPathUnavailable(Exception):
    """Why gigatoken is not used, in words for the user."""


class VerifiedBPE:
    """gigatoken over the ranks of a tiktoken vocabulary, with ids equal to those of `reference`.

    `ranks` maps the bytes of each token to its id, `pattern` splits the text before merging, `reference` encodes
    texts with tiktoken. Raises FastPathUnavailable when gigatoken is missing, of another version, fails, or differs.
    """

    def __init__(self, ranks: Mapping[bytes, int], pattern: str, reference: Callable[[Sequence[str]], FlatIds]) -> None:
        self._reference_of_str = reference
        self._encode_native = _load_gigatoken(ranks, pattern)
        longest = max(map(len, ranks))
        self._token_bytes = np.zeros(len(ranks), dtype=np.uint8 if longest < 256 else np.int64)
        self._token_bytes[list(ranks.values())] = list(map(len, ranks))
        self._num_texts = 0
        self._sample_left = SAMPLE_BYTES
        self._excluded = _any_of(differing_characters(pattern))
        self._refuse_difference([text.encode("utf-8") for text in hard_texts()])

    def encode(self, texts: Sequence[bytes]) -> FlatIds:
        """Ids of `texts`, which are UTF-8: uint32 `[total]` and int64 `[len(texts)]`.

        Raises FastPathUnavailable when gigatoken fails on these texts, or differs on the first `SAMPLE_BYTES` (nothing
        is lost: encode them with tiktoken), and ValueError when its ids turn out to be wrong later.
        """
        if self._sample_left > 0:
            self._compare_sample(texts)
        if self._excluded and (slow := [i for i, text in enumerate(texts) if self._is_excluded(text)]):
            return self._encode_around(texts, slow)
        ids, lengths = self._encode_native(texts)
        num_bytes = sum(map(len, texts))
        # `take` refuses an id outside the vocabulary, and needs a third of the time of `[ids]`.
        if len(lengths) != len(texts) or int(self._token_bytes.take(ids).sum(dtype=np.int64)) != num_bytes:
            raise ValueError(_stop("the tokens of a batch do not spell its text"))
        for i in range(-self._num_texts % CHECK_EVERY, len(texts), CHECK_EVERY):
            begin = int(lengths[:i].sum())
            if not np.array_equal(ids[begin : begin + lengths[i]], self._reference([texts[i]])[0]):
                raise ValueError(_stop(f"it differs from tiktoken on {_shown(texts[i])}"))
        self._num_texts += len(texts)
        return ids, lengths

    def _reference(self, texts: Sequence[bytes]) -> FlatIds:
        return self._reference_of_str([text.decode("utf-8") for text in texts])

    def _compare_sample(self, texts: Sequence[bytes]) -> None:
        sample = []
        for text in texts:
            if self._sample_left <= 0:
                break
            sample.append(text)
            self._sample_left -= len(text)
        if sample:
            self._refuse_difference(sample)

    def _encode_around(self, texts: Sequence[bytes], slow: list[int]) -> FlatIds:
        is_slow = np.zeros(len(texts), dtype=bool)
        is_slow[slow] = True
        lengths = np.zeros(len(texts), dtype=np.int64)
        slow_ids, lengths[is_slow] = self._reference([texts[i] for i in slow])
        fast_ids, lengths[~is_slow] = self.encode(
            [text for text, other in zip(texts, is_slow, strict=True) if not other]
        )
        ids = np.empty(int(lengths.sum()), dtype=np.uint32)
        from_slow = np.repeat(is_slow, lengths)
        ids[from_slow], ids[~from_slow] = slow_ids, fast_ids
        return ids, lengths

    def _is_excluded(self, text: bytes) -> bool:
        if text.isascii():
            return False
        # The first byte alone is found, or not, at the speed of memory.
        return any(lead in text and found.search(text) is not None for lead, found in self._excluded.items())

    def _refuse_difference(self, texts: Sequence[bytes]) -> None:
        texts = [text for text in texts if not self._is_excluded(text)]
        if differing := _differing(self._encode_native(texts), self._reference(texts)):
            raise FastPathUnavailable(
                f"its ids differ from tiktoken's on {len(differing)} of {len(texts)} texts, first "
                f"{_shown(texts[differing[0]])}"
            )


def refuse_other_version() -> None:
    """FastPathUnavailable when gigatoken is not installed, not in the one version that is used, or without awkward."""
    try:
        found = metadata.version("gigatoken")
    except metadata.PackageNotFoundError:
        raise FastPathUnavailable(f"gigatoken is not installed (pip install gigatoken=={VERSION})") from None
    if found != VERSION:
        raise FastPathUnavailable(f"gigatoken is {found}, checked was {VERSION} (pip install gigatoken=={VERSION})")
    if find_spec("awkward") is None:  # as after `pip install --no-deps`; gigatoken itself fails at the first text only
        raise FastPathUnavailable("gigatoken is installed, awkward, which it needs, is not (pip install awkward)")


def _load_gigatoken(ranks: Mapping[bytes, int], pattern: str) -> Callable[[Sequence[bytes]], FlatIds]:
    refuse_other_version()

    def load() -> Any:
        import gigatoken

        return gigatoken.Tokenizer.from_json(tokenizer_json(ranks, pattern))

    tokenizer = _guarded(load)

    def encode(texts: Sequence[bytes]) -> FlatIds:
        # The buffers of the result, because walking its rows costs more than encoding did.
        rows = _guarded(lambda: tokenizer.encode_batch(list(texts), parallel=False).layout)
        return _guarded(lambda: (np.asarray(rows.content.data), np.diff(np.asarray(rows.offsets.data))))

    return encode


def _guarded(call: Callable[[], Any]) -> Any:
    """`call()`, with any failure as FastPathUnavailable. A Rust panic is no Exception; Ctrl-C passes."""
    try:
        return call()
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise FastPathUnavailable(f"it failed with {type(error).__name__}: {str(error)[:200]}") from None
        raise


def tokenizer_json(ranks: Mapping[bytes, int], pattern: str) -> bytes:
    """A Hugging Face tokenizer.json with tiktoken's ids: every split of a token into two tokens is a merge.

    Merges are in the order of the token they make, then of their parts. Llama 3's 128,000 ranks give 280,147.
    """
    alphabet = _byte_alphabet()
    tokens = sorted(ranks, key=ranks.__getitem__)
    words = [token.decode("latin-1").translate(alphabet) for token in tokens]
    lefts, rights = _splits(tokens)
    # As one text each, which is unambiguous because the alphabet has no space, and half the work to write and read.
    merges = [f"{words[left]} {words[right]}" for left, right in zip(lefts.tolist(), rights.tolist(), strict=True)]
    vocabulary = {word: ranks[token] for word, token in zip(words, tokens, strict=True)}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "ignore_merges": True, "vocab": vocabulary, "merges": merges}
    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": model,
    }
    return json.dumps(content, ensure_ascii=False).encode("utf-8")


def _splits(tokens: Sequence[bytes]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(left, right), indices into `tokens`, of every split of a token into two, by the token's index, then by theirs.

    A split is where a token that begins this one meets one that ends it. Both kinds are chains (the longest
    beginning, the longest beginning of that, ...), so no half is looked up that is no token: a third of the time.
    """
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))

    def chains(parents: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(token, part of it) for all in the chain of each token."""
        found, whole, part = [], np.arange(len(parents)), parents
        while len(whole):
            whole, part = whole[part >= 0], part[part >= 0]
            found.append((whole, part))
            part = parents[part]
        return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])

    whole, left = chains(_longest_beginnings(tokens))
    other_whole, right = chains(_longest_beginnings([token[::-1] for token in tokens]))
    stride = int(lengths.max()) + 1
    _, of_left, of_right = np.intersect1d(
        whole * stride + lengths[left],
        other_whole * stride + lengths[other_whole] - lengths[right],
        assume_unique=True,
        return_indices=True,
    )
    whole, left, right = whole[of_left], left[of_left], right[of_right]
    order = np.lexsort((right, left, whole))
    return left[order], right[order]


def _longest_beginnings(tokens: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Of each token, the index of the longest other token that it begins with, or -1."""
    found = np.full(len(tokens), -1, dtype=np.int64)
    # In the order of the alphabet, the tokens that begin one of them stand before it, as a chain.
    chain: list[bytes] = []
    indices: list[int] = []
    for i in sorted(range(len(tokens)), key=tokens.__getitem__):
        token = tokens[i]
        while chain and not token.startswith(chain[-1]):
            chain.pop()
            indices.pop()
        if chain:
            found[i] = indices[-1]
        chain.append(token)
        indices.append(i)
    return found


def _byte_alphabet() -> dict[int, int]:
    """Byte -> code point of the printable character that stands for it in a tokenizer.json (GPT-2's alphabet)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: byte for byte in printable}, **{byte: 256 + i for i, byte in enumerate(others)}}


def differing_characters(pattern: str) -> list[str]:
    """Characters beyond ASCII that gigatoken and tiktoken class differently, in the order of Unicode.

    The classes of `pattern` (letter, number, space, other) decide what may be merged with what. A vocabulary made for
    it shows them: a token for every character's first byte after a letter and after a space, and for its last byte
    before a letter and before a line break. Llama 3's own tokens would show them for few characters.
    """
    import tiktoken

    first_bytes, last_bytes = range(0xC2, 0xF5), range(0x80, 0xC0)
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes([before, byte]) for before in b"a " for byte in first_bytes]
    tokens += [bytes([byte, after]) for after in b"a\n" for byte in last_bytes]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    slow = tiktoken.Encoding("classes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    fast = _load_gigatoken(ranks, pattern)

    def differing(groups: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        texts = ["".join(f"a{char}a {char}\n" for char in group) for group in groups]
        ids = [slow.encode_ordinary(text) for text in texts]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        reference = np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths
        return [groups[i] for i in _differing(fast([text.encode("utf-8") for text in texts]), reference)]

    blocks: dict[int, list[str]] = {}
    for char in _characters():
        blocks.setdefault(ord(char) // 64, []).append(char)
    first_points = [ord(block[0]) // 64 * 64 for block in differing(list(blocks.values()))]
    near = [chr(point) for first in first_points for point in range(first, first + 64)]
    return [char for (char,) in differing(near)]


def _any_of(characters: Sequence[str]) -> dict[bytes, re.Pattern[bytes]]:
    """{first byte: pattern that finds any of `characters` that begin with it}, on UTF-8."""
    if len(characters) > MAX_EXCLUDED:
        raise FastPathUnavailable(f"it classes {len(characters):,} characters otherwise than tiktoken does")
    last_bytes: dict[bytes, bytes] = {}
    for char in characters:
        data = char.encode("utf-8")
        last_bytes[data[:-1]] = last_bytes.get(data[:-1], b"") + data[-1:]
    of_lead: dict[bytes, list[bytes]] = {}
    for block, last in last_bytes.items():
        of_lead.setdefault(block[:1], []).append(re.escape(block) + b"[" + last + b"]")
    return {lead: re.compile(b"|".join(found)) for lead, found in of_lead.items()}


def _differing(one: FlatIds, other: FlatIds) -> list[int]:
    """Indices of the texts whose ids differ, increasing."""
    (ids, lengths), (other_ids, other_lengths) = one, other
    of_one_length = lengths == other_lengths
    text_of_id = np.repeat(np.flatnonzero(of_one_length), lengths[of_one_length])
    is_other = ids[np.repeat(of_one_length, lengths)] != other_ids[np.repeat(of_one_length, other_lengths)]
    return sorted({*np.flatnonzero(~of_one_length).tolist(), *text_of_id[is_other].tolist()})


def _characters() -> list[str]:
    """Every code point beyond ASCII that has or may soon get a class, and some of those that all have the same.

    Left out are surrogates, and most of private use, of the large blocks of ideographs and Hangul, of planes 4 to 16.
    """
    scripts = [*range(0x80, 0x3400), *range(0x4DB0, 0x4E00), *range(0x9FE0, 0xAC00), *range(0xD7A0, 0xD800)]
    scripts += [*range(0xF900, 0x20000), *range(0x2A6D0, 0x34000), *range(0xE0000, 0xE0200)]
    uniform = [*range(0x3400, 0x4DB0, 64), *range(0x4E00, 0x9FE0, 64), *range(0xAC00, 0xD7A0, 64)]
    uniform += [*range(0xE000, 0xF900, 64), *range(0x20000, 0x2A6D0, 64), *range(0x34000, 0x110000, 256)]
    return [chr(point) for point in (*scripts, *uniform)]


SPACES = [" ", "  ", "   ", "\n", "\n\n\n", " \n ", "\r\n", "\r", "\t", "\x0b", "\x0c", "\x1f", "\x85", "\xa0"]
SPACES += ["\u2003", "\u2028", "\u200b", "\u3000"]
WORDS = (
    "don't I'LL we'Ve it\u2019s 'S '\u017f x'D 'll'll hello World a_b fooBar http://a.b/c?d=e#f --- === !!! ... "
    "(){}[]; 1 12 1234567 3.14 \u00bd \u2167 \u0663\u0664\u0665\u0666 \uff11\uff12\uff13\uff14 "
    "na\u00efve \ufb01 \u0130stanbul I\u0307 \u00df \u01c5 \u212a \u00b5m "
    "<|end_of_text|> <|begin_of_text|> <|reserved_special_token_7|> <|fim_pad|> <|eot_id|> <| |> "
    "日本語のテキスト 中文， 한국어 привет مرحبا नमस्ते ไทย e\u0301 \u0301 \ufeff \ufffd \x00 \x7f "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2728\ufe0f"
)


@cache
def hard_texts(num_texts: int = 1500, seed: int = 0) -> tuple[str, ...]:
    """Texts on which tokenizers differ: whitespace, contractions, numbers, scripts, marks, look-alikes, long runs."""
    rng = random.Random(seed)
    words = WORDS.split(" ")

    def piece() -> str:
        kind = rng.random()
        if kind < 0.4:
            return rng.choice(words)
        if kind < 0.7:
            return rng.choice(SPACES)
        if kind < 0.85:
            return "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 9)))
        # No surrogates: they cannot be encoded.
        return chr(
            rng.choice((rng.randrange(0x80, 0x3000), rng.randrange(0xE000, 0x20000), rng.randrange(0x3000, 0xD800)))
        )

    mixed = ["".join(piece() for _ in range(rng.randrange(1, 40))) for _ in range(num_texts)]
    runs = [
        unit * (4_000 // len(unit))
        for unit in ("a", " ", "\n", "\r\n", "é", "1", "=", "ab ", "\u4e00", "A", "\t", ". ")
    ]
    return ("", *SPACES, *words, *mixed, *runs)


def _stop(reason: str) -> str:
    return (
        f"gigatoken {VERSION} gave wrong ids: {reason}. Set tokenizer.fast=false, and tokenize again what this run has "
        "written; please report the text"
    )


def _shown(data: bytes) -> str:
    text = data.decode("utf-8")
    return ascii(text[:60]) + (f"... ({len(text):,} characters)" if len(text) > 60 else "")
