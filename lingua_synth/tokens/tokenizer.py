"""Text <-> token ids, with Meta Lingua's names (`bytes`, `sp`, `tiktoken`) and Lingua's ids.

A tokenizer is known by the SHA-256 of its vocabulary. Every token shard carries that hash, so that ids of one
vocabulary are never read with another. Ids equal to those of Lingua's `lingua/tokenizer.py` (checkout 437d680,
read and run side by side) are what lets its checkpoints and ours share data.
"""

from __future__ import annotations

import abc
import binascii
import os
import warnings
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.files import sha256_bytes, sha256_json, what_is_there
from lingua_synth.tokens.fast_bpe import FastPathUnavailable, VerifiedBPE, refuse_other_version
from lingua_synth.tokens.llama3 import find_llama3_ranks

TOKENIZERS = ("bytes", "sp", "tiktoken")


class Tokenizer(abc.ABC):
    """Encodes any text without lone surrogates. Ids are in [0, n_words)."""

    name: str
    """One of `TOKENIZERS`."""
    path: str | None
    """File of the vocabulary, None for `bytes`."""
    n_words: int
    """Size of the vocabulary, special tokens included."""
    bos_id: int
    """Id put before a document; -1 when the vocabulary has none."""
    eos_id: int
    """Id put after a document; -1 when the vocabulary has none."""
    sha256: str
    """Identity of the vocabulary, hexadecimal."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds every id: uint16 up to 65,536 words, else uint32."""
        return np.dtype(np.uint16 if self.n_words <= 1 << 16 else np.uint32)

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """Ids of `text`, between BOS and EOS where asked. Names of special tokens inside `text` are ordinary text.

        Raises ValueError when asked for a BOS or EOS that the vocabulary does not have.
        """
        self.validate_specials(add_bos, add_eos)
        return [self.bos_id] * add_bos + self._encode(text) + [self.eos_id] * add_eos

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Ids of each text without BOS and EOS, as arrays of `dtype`; equal to `encode` text by text."""
        ids, lengths = self.encode_flat(texts)
        return np.split(ids, np.cumsum(lengths[:-1])) if len(texts) else []

    def encode_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """`encode_batch` without the arrays in between: (ids of all texts one after the other, ids of each text).

        The first is of `dtype` and of the length that the second, int64 `[len(texts)]`, sums to. Without BOS and EOS.
        This is the fast way for a corpus; it uses one thread, so that one process a core is what a pipeline starts.
        """
        encoded = [self._encode(text) for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(chain.from_iterable(encoded), self.dtype, int(lengths.sum())), lengths

    def encode_utf8(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """`encode_flat` of texts that are UTF-8 already, which is how they come from files."""
        return self.encode_flat([text.decode("utf-8") for text in texts])

    def encode_flat_continuing(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """`encode_flat` of texts that go on after others: no space is put before them where the vocabulary does so."""
        return self.encode_flat(texts)

    def special_tokens(self) -> dict[str, int]:
        """Ids by name of the tokens that no text is encoded to."""
        return {self.token_text(i): i for i in (self.bos_id, self.eos_id) if i >= 0}

    def validate_specials(self, add_bos: bool, add_eos: bool) -> None:
        """ValueError when a special token is asked for that the vocabulary does not have."""
        for asked, token_id, which in ((add_bos, self.bos_id, "bos"), (add_eos, self.eos_id, "eos")):
            if asked and token_id < 0:
                raise ValueError(f"the vocabulary {self.path} has no {which.upper()} token; set add_{which}=false")

    def prepare(self) -> str:
        """Do now what `encode_flat` would do at its first use on a corpus; returns what encodes, for the log.

        Called before processes are forked, it is done once for all of them.
        """
        return self.name

    def describe(self) -> dict[str, Any]:
        """What shards and checkpoints record: name, path, sha256, n_words, bos_id, eos_id."""
        keys = ("name", "path", "sha256", "n_words", "bos_id", "eos_id")
        return {key: getattr(self, key) for key in keys}

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens as their host library renders them (nothing, for `bytes` and `sp`)."""

    def count_text_bytes(self, ids: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of the text of several documents, int64 `[len(offsets) - 1]`; special tokens have none.

        Document i has the ids `ids[offsets[i]:offsets[i + 1]]`; none is empty.
        """
        texts = (self.decode(ids[start:end].tolist()) for start, end in pairwise(offsets))
        return np.fromiter((len(text.encode("utf-8")) for text in texts), np.int64, len(offsets) - 1)

    @abc.abstractmethod
    def token_text(self, token_id: int) -> str:
        """One token, readable: its text, or `<0x0A>` for a byte that is no text alone, or its name when special."""

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]: ...


class ByteTokenizer(Tokenizer):
    """The UTF-8 bytes of the text are the ids, 256 is BOS and 257 is EOS."""

    name = "bytes"
    path = None
    n_words = 258
    bos_id = 256
    eos_id = 257
    sha256 = sha256_json({"name": "bytes", "n_words": 258, "bos_id": 256, "eos_id": 257})

    def _encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        encoded = [text.encode("utf-8") for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(self.dtype), lengths

    def count_text_bytes(self, ids: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.add.reduceat(ids < 256, offsets[:-1], dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="backslashreplace")

    def token_text(self, token_id: int) -> str:
        _refuse_unknown_id(self, token_id)
        if token_id >= 256:
            return "<bos>" if token_id == self.bos_id else "<eos>"
        return _readable(bytes([token_id]))


# U+2581: inside SentencePiece it stands for the space.
SPACE_SYMBOL = "\u2581"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file. Ids are those of its own `encode`, with one repair.

    SentencePiece writes a space as U+2581, so a U+2581 in the text itself comes back as a space. Where the
    vocabulary has byte pieces, that character is encoded as its three bytes and survives.
    """

    name = "sp"

    def __init__(self, path: str | Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise ValueError("tokenizer sp needs sentencepiece: pip install sentencepiece") from None
        model = _read_vocabulary(path, "sp", "a SentencePiece model file")
        try:
            if not model:  # taken by the library for "load later"
                raise RuntimeError("empty")
            self._model: Any = SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError(f"{path} is not a SentencePiece model") from None
        self.path = str(path)
        self.n_words = self._model.vocab_size()
        self.bos_id = self._model.bos_id()
        self.eos_id = self._model.eos_id()
        self.sha256 = sha256_bytes(model)
        self._continuing: Any = None
        self._strips = False
        byte_pieces = [f"<0x{byte:02X}>" for byte in SPACE_SYMBOL.encode("utf-8")]
        byte_ids = [self._model.piece_to_id(piece) for piece in byte_pieces]
        self._space_symbol_ids = byte_ids if all(self._model.is_byte(i) for i in byte_ids) else None

    def _encode(self, text: str) -> list[int]:
        return self._encode_by(self._model, text)

    def _encode_by(self, model: Any, text: str) -> list[int]:
        if self._space_symbol_ids is None or SPACE_SYMBOL not in text:
            return model.encode(text)
        first, *rest = (model.encode(part) if part else [] for part in text.split(SPACE_SYMBOL))
        ids: list[int] = first
        for part in rest:
            ids = ids + self._space_symbol_ids + part
        return ids

    def encode_flat_continuing(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        if self._continuing is None:
            from sentencepiece import SentencePieceProcessor

            # A message that comes twice in a serialized one is merged: this sets normalizer_spec.add_dummy_prefix.
            model = self._model.serialized_model_proto() + b"\x1a\x02\x18\x00"
            self._continuing = SentencePieceProcessor(model_proto=model)
            self._strips = self._model.encode("  a") == self._model.encode("a")
        # Where leading spaces are taken away, the prefix stands for the one that was there.
        encoded = [
            self._encode_by(self._model if self._strips and text.startswith(" ") else self._continuing, text)
            for text in texts
        ]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(chain.from_iterable(encoded), self.dtype, int(lengths.sum())), lengths

    def special_tokens(self) -> dict[str, int]:
        return {self._model.id_to_piece(i): i for i in range(self.n_words) if self._model.is_control(i)}

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([int(i) for i in ids])

    def token_text(self, token_id: int) -> str:
        _refuse_unknown_id(self, token_id)
        piece: str = self._model.id_to_piece(int(token_id))
        if self._model.is_byte(int(token_id)):
            return _readable(bytes([int(piece[3:5], 16)]))
        return piece.replace(SPACE_SYMBOL, " ")


# The split pattern of Llama 3: https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Lingua's places for the named ones among the 256 special tokens; every other is <|reserved_special_token_N|>.
LINGUA_SPECIAL_TOKENS = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    2: "<|fim_prefix|>",
    3: "<|fim_middle|>",
    253: "<|fim_end_fill|>",
    254: "<|fim_pad|>",
    255: "<|fim_suffix|>",
}
NUM_SPECIAL_TOKENS = 256
# Lingua cuts there before encoding; ids around a cut differ from those of the uncut text.
MAX_ENCODE_CHARS = 400_000
# Starting and checking gigatoken takes as long (1.3 s) as tiktoken needs for some 30 MB of text. Whoever knows
# that more is to come calls `prepare`; otherwise it is guessed to come once half of it has.
FAST_AFTER_BYTES = 16_000_000


class TiktokenTokenizer(Tokenizer):
    """A tiktoken rank file (Llama 3's `tokenizer.model`) with Lingua's 256 special tokens after the ranks.

    With Llama 3's file: 128,256 words, BOS 128000, EOS 128001. The file is read here and not by tiktoken's own
    loader, which keeps a copy under the path's name and would go on using it after the file has changed.

    Where gigatoken is installed and `fast`, `encode_flat` uses it from `FAST_AFTER_BYTES` on, after comparing its ids
    (`fast_bpe.py`); otherwise one warning says why not. Ids are the same either way.
    """

    name = "tiktoken"

    def __init__(self, path: str | Path, fast: bool = True) -> None:
        try:
            import tiktoken
        except ImportError:
            raise ValueError("tokenizer tiktoken needs tiktoken: pip install tiktoken") from None
        self._ranks = _parse_ranks(_read_vocabulary(path, "tiktoken", "a tiktoken rank file"), path)
        specials = {
            LINGUA_SPECIAL_TOKENS.get(i, f"<|reserved_special_token_{i}|>"): len(self._ranks) + i
            for i in range(NUM_SPECIAL_TOKENS)
        }
        self._encoding = tiktoken.Encoding(
            name=Path(path).stem, pat_str=LLAMA3_PATTERN, mergeable_ranks=self._ranks, special_tokens=specials
        )
        self._fast: VerifiedBPE | None = None
        self._wants_fast = fast
        self._num_bytes = 0
        self.path = str(path)
        self.n_words = self._encoding.n_vocab
        self.bos_id = specials["<|begin_of_text|>"]
        self.eos_id = specials["<|end_of_text|>"]
        in_order = sorted(self._ranks.items())
        self.sha256 = sha256_json(
            {
                "ranks": sha256_bytes(b"".join(b"%d %d " % (rank, len(token)) + token for token, rank in in_order)),
                "specials": specials,
                "pattern": LLAMA3_PATTERN,
            }
        )

    def _encode(self, text: str) -> list[int]:
        if len(text) <= MAX_ENCODE_CHARS:
            return self._encoding.encode_ordinary(text)
        return [i for part in _cut(text) for i in self._encoding.encode_ordinary(part)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        if self._wants_fast and (encoded := self._encode_fast([text.encode("utf-8") for text in texts])):
            return encoded
        return self._reference(texts)

    def encode_utf8(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        if self._wants_fast and (encoded := self._encode_fast(texts)):
            return encoded
        return self._reference([text.decode("utf-8") for text in texts])

    def prepare(self) -> str:
        if self._wants_fast:
            self._num_bytes += FAST_AFTER_BYTES + 1
            self._encode_fast([])
        library = "tiktoken" if self._fast is None else "gigatoken"
        return f"{library} {version(library)}"

    def special_tokens(self) -> dict[str, int]:
        return {self.token_text(i): i for i in range(len(self._ranks), self.n_words)}

    def _reference(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """`encode_flat` by tiktoken."""
        return super().encode_flat(texts)

    def _encode_fast(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]] | None:
        """Ids of `texts` by gigatoken; None where there is too little text yet, or, once and for all and with a
        warning, where it cannot be used."""
        self._num_bytes += sum(map(len, texts))
        if self._num_bytes <= FAST_AFTER_BYTES:
            return None
        # A text of so few bytes has no more characters.
        parts, firsts = texts, None
        if any(len(text) > MAX_ENCODE_CHARS for text in texts):
            cuts = [_cut_utf8(text) for text in texts]
            parts, firsts = [part for cut in cuts for part in cut], np.cumsum([0, *map(len, cuts[:-1])])
        try:
            if self._fast is None:
                self._fast = VerifiedBPE(self._ranks, LLAMA3_PATTERN, self._reference)
            ids, lengths = self._fast.encode(parts)
        except FastPathUnavailable as reason:
            self._give_up_fast(reason)
            return None
        return ids.astype(self.dtype, copy=False), lengths if firsts is None else np.add.reduceat(lengths, firsts)

    def _give_up_fast(self, reason: FastPathUnavailable) -> None:
        self._fast, self._wants_fast = None, False
        warnings.warn(f"tokenizing with tiktoken, not with gigatoken (20 times faster): {reason}", stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        if self._wants_fast:
            try:
                refuse_other_version()  # said once here instead of once in every worker
            except FastPathUnavailable as reason:
                self._give_up_fast(reason)
        return {**self.__dict__, "_fast": None}  # made again, and compared again, by the process that receives it

    def count_text_bytes(self, ids: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        lengths = np.zeros(self.n_words, dtype=np.uint8 if max(map(len, self._ranks)) < 256 else np.int64)
        lengths[list(self._ranks.values())] = list(map(len, self._ranks))
        return np.add.reduceat(lengths[ids], offsets[:-1], dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return self._encoding.decode([int(i) for i in ids])

    def token_text(self, token_id: int) -> str:
        _refuse_unknown_id(self, token_id)
        return _readable(self._encoding.decode_single_token_bytes(int(token_id)))


def build_tokenizer(name: str, path: str | None = None, fast: bool = True) -> Tokenizer:
    """The tokenizer by Lingua's name: `bytes`; `sp` with a SentencePiece model file; `tiktoken` with a rank file.

    `tiktoken` without a path takes Llama 3's file from the installed package `llama-models`. `fast` lets it use
    gigatoken where that is installed and gives the same ids.

    Raises ValueError for another name, a missing file, a file that is not what the name says, a missing package.
    """
    if name == "bytes":
        if path:
            raise ValueError(
                f"tokenizer bytes has no file, but tokenizer.path is {path}; drop the path or name sp or tiktoken"
            )
        return ByteTokenizer()
    if name not in TOKENIZERS:
        raise ValueError(f"no tokenizer {name!r}; known are {', '.join(TOKENIZERS)}")
    if name == "sp":
        if not path:
            raise ValueError("tokenizer sp needs tokenizer.path: its SentencePiece model file")
        return SentencePieceTokenizer(path)
    return TiktokenTokenizer(path or find_llama3_ranks(), fast)


def _cut(text: str) -> list[str]:
    """The parts that are encoded on their own; one part, empty, for an empty text."""
    if len(text) <= MAX_ENCODE_CHARS:
        return [text]
    return [text[i : i + MAX_ENCODE_CHARS] for i in range(0, len(text), MAX_ENCODE_CHARS)]


def _cut_utf8(text: bytes) -> list[bytes]:
    if len(text) <= MAX_ENCODE_CHARS:
        return [text]
    return [part.encode("utf-8") for part in _cut(text.decode("utf-8"))]


def _read_vocabulary(path: str | Path, name: str, what: str) -> bytes:
    if not os.path.isfile(path):
        raise ValueError(f"tokenizer {name} needs {what}, and there is no file {path}; {what_is_there(path)}")
    return Path(path).read_bytes()


def _parse_ranks(content: bytes, path: str | Path) -> dict[bytes, int]:
    """`base64 rank` lines -> {token bytes: rank}; ranks must be 0..n-1, as ids of the special tokens follow them."""
    try:
        pairs = [line.split() for line in content.splitlines() if line]
        ranks = {binascii.a2b_base64(token, strict_mode=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error):
        raise ValueError(f"{path} is not a tiktoken rank file (lines of `base64 rank`)") from None
    if sorted(ranks.values()) != list(range(len(pairs))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError(
            f"{path} is damaged: a rank file has each rank from 0 once and a token for each of the 256 bytes"
        )
    return ranks


def _readable(token: bytes) -> str:
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in token)
    return (
        text
        if text.isprintable() or text.strip(" ") == ""
        else "".join(
            char if char.isprintable() else "".join(f"<0x{byte:02X}>" for byte in char.encode("utf-8")) for char in text
        )
    )


def _refuse_unknown_id(tokenizer: Tokenizer, token_id: int) -> None:
    if not 0 <= token_id < tokenizer.n_words:
        raise ValueError(f"no token {token_id}: tokenizer {tokenizer.name} has ids 0 to {tokenizer.n_words - 1}")
