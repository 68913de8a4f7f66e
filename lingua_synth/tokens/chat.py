"""Conversations -> token ids and the stretches of them that are answers.

    messages ──ChatTemplate──> text and answers ──Tokenizer──> ids ──> BOS, EOS, length ──> ids, runs of scored tokens

Text is cut where a special token stands and where an answer begins or ends, and each piece is encoded by itself. So
the tokens up to an answer are those that a server makes of the prompt, and the answer's tokens are what the model has
to write behind them; no token belongs to both.

A training reads windows of a fixed length over the tokens of all conversations, and a border may fall into one of
them: then its answer stands without its question. With `window_tokens` the conversations are laid out so that none is
cut, by best-fit-decreasing bin packing and padding (`pack_windows`).
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.files import sha256_json
from lingua_synth.tokens.chat_template import (
    BREAK,
    PLAIN,
    ChatTemplate,
    Rendered,
    TemplateRefusal,
    read_chat_template,
)
from lingua_synth.tokens.tokenizer import Tokenizer

OVERLONG = ("drop", "cut")


@dataclass
class EncodedConversations:
    """A batch of conversations as tokens. What was left out is counted under its reason in `skipped`."""

    kept: list[int] = field(default_factory=list)
    """Which of the conversations given are here."""
    ids: list[npt.NDArray[Any]] = field(default_factory=list)
    runs: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    """Of each: start and end of its first stretch of scored tokens, of the second, ... counted in its tokens."""
    num_bytes: list[int] = field(default_factory=list)
    """UTF-8 bytes of the text of its scored tokens."""
    skipped: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """answers; cut; `ends with <id>` by the token that ends an answer, `no end` for those that none does; `rewritten`:
    answers that the template wrote otherwise than they were given."""

    def count(self, what: str, number: int = 1) -> None:
        """Add to `counts`."""
        self.counts[what] = self.counts.get(what, 0) + number

    def skip(self, reason: str) -> None:
        """Count a conversation that is left out."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


@dataclass(frozen=True)
class ChatEncoder:
    """How conversations become tokens; what `tokenize` takes as `chat`. Travels by pickle."""

    template: ChatTemplate
    max_tokens: int | None = None
    """Longest conversation, BOS and EOS included; None: any."""
    overlong: str = "drop"
    """A longer one is left out (drop), or ends after `max_tokens` (cut)."""
    window_tokens: int | None = None
    """Length of the windows whose borders are to cut no conversation; `max_tokens` is at most that. None: they are laid
    out one behind the other."""

    def __post_init__(self) -> None:
        if self.window_tokens is not None:
            if self.window_tokens < 2:
                raise ValueError(
                    f"chat_window_tokens is the data.seq_len of the training, at least 2; got {self.window_tokens}"
                )
            if self.max_tokens is None:
                object.__setattr__(self, "max_tokens", self.window_tokens)
            elif self.max_tokens > self.window_tokens:
                raise ValueError(
                    f"chat_max_tokens {self.max_tokens:,} is more than chat_window_tokens {self.window_tokens:,}, into "
                    "which a conversation is to fit; lower the one or raise the other"
                )
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"chat_max_tokens is a number of tokens, at least 2; got {self.max_tokens}")
        if self.overlong not in OVERLONG:
            raise ValueError(f"chat_overlong is {' or '.join(OVERLONG)}; got {self.overlong!r}")

    def describe(self) -> dict[str, Any]:
        """What the manifest records; `sha256` covers all that decides ids and scored tokens."""
        template = self.template
        said = {
            "template_sha256": template.sha256,
            "special_tokens": template.used_tokens(),
            "bos_token": template.bos_token,
            "eos_token": template.eos_token,
            "system_role": "taken" if template.has_system_role else "folded",
            "answers_found_by": "marks" if template.marks_answers else "prefixes",
            "max_tokens": self.max_tokens,
            "overlong": self.overlong,
        }
        if self.window_tokens is not None:
            said["window_tokens"] = self.window_tokens
        return {"name": template.name, "template": template.text, "sha256": sha256_json(said), **said}

    def encode(
        self, tokenizer: Tokenizer, conversations: Sequence[bytes], *, add_bos: bool, add_eos: bool
    ) -> EncodedConversations:
        """Encode conversations given as `documents.conversation_utf8` gives them.

        BOS is put first unless the template wrote it; EOS last, and scored, where the last answer has no special token
        to end it. Raises ValueError where the template cannot tell its answers.
        """
        found = EncodedConversations()
        pieces: list[list[_Piece]] = []
        for number, conversation in enumerate(conversations):
            try:
                rendered = self.template.render(json.loads(conversation))
            except TemplateRefusal as refusal:
                found.skip(str(refusal))
                continue
            except ValueError as error:
                raise ValueError(f"{error} (the conversation begins {_shown(conversation)})") from None
            if not rendered.answers:
                found.skip("the chat template writes no answer")
                continue
            if rendered.num_rewritten:
                found.count("rewritten", rendered.num_rewritten)
            found.kept.append(number)
            pieces.append(_cut(rendered, self.template))
        _encode_texts(tokenizer, [piece for one in pieces for piece in one])
        kept = []
        for number, one in zip(found.kept, pieces, strict=True):
            if self._take(found, tokenizer, one, add_bos, add_eos):
                kept.append(number)
        found.kept = kept
        return found

    def _take(
        self, found: EncodedConversations, tokenizer: Tokenizer, pieces: list[_Piece], add_bos: bool, add_eos: bool
    ) -> bool:
        """Add one conversation to `found`, unless it is to be left out."""
        bos, eos = (np.array([i], dtype=tokenizer.dtype) for i in (max(tokenizer.bos_id, 0), max(tokenizer.eos_id, 0)))
        if add_bos and not (len(pieces[0].ids) and pieces[0].ids[0] == tokenizer.bos_id):
            pieces = [_Piece(ids=bos, special=True), *pieces]
        if add_eos and pieces[-1].answer >= 0 and not pieces[-1].special:
            pieces = [*pieces, _Piece(ids=eos, special=True, answer=pieces[-1].answer)]
        ids = np.concatenate([piece.ids for piece in pieces]).astype(tokenizer.dtype, copy=False)
        runs: list[int] = []
        ends: dict[int, tuple[int, int, _Piece]] = {}
        at = 0
        for piece in pieces:
            after = at + len(piece.ids)
            if piece.answer >= 0 and after > at:
                ends[piece.answer] = (ends[piece.answer][0] if piece.answer in ends else at, after, piece)
                if runs and runs[-1] == at:
                    runs[-1] = after
                else:
                    runs += [at, after]
            at = after
        if not runs:
            found.skip("an answer of zero tokens")
            return False
        num_bytes = sum(len(piece.text.encode("utf-8")) for piece in pieces if piece.answer >= 0 and not piece.special)
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            if self.overlong == "drop":
                found.skip("longer than chat_max_tokens")
                return False
            ids = ids[: self.max_tokens].copy()
            pairs = [(a, min(b, self.max_tokens)) for a, b in zip(runs[::2], runs[1::2], strict=True)]
            runs = [i for a, b in pairs if a < b for i in (a, b)]
            if not runs:
                found.skip("no answer within chat_max_tokens")
                return False
            scored = np.concatenate([ids[a:b] for a, b in zip(runs[::2], runs[1::2], strict=True)])
            num_bytes = int(tokenizer.count_text_bytes(scored, np.array([0, len(scored)]))[0])
            found.count("cut")
        for start, end, piece in ends.values():
            if start < len(ids):
                found.count("answers")
                found.count(f"ends with {int(piece.ids[-1])}" if piece.special and end <= len(ids) else "no end")
        found.ids.append(ids)
        found.runs.append(np.array(runs, dtype=np.uint32))
        found.num_bytes.append(num_bytes)
        return True


def build_chat(
    tokenizer: Tokenizer,
    template: str = PLAIN,
    *,
    max_tokens: int | None = None,
    overlong: str = "drop",
    window_tokens: int | None = None,
) -> ChatEncoder:
    """The encoder of conversations for `tokenizer` with the template of that name, file or folder.

    ValueError for a template that is none, or cannot write one question and its answer.
    """
    encoder = ChatEncoder(read_chat_template(template, tokenizer), max_tokens, overlong, window_tokens)
    encoder.describe()  # renders once
    return encoder


def pack_windows(lengths: npt.NDArray[np.int64], window: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """An order of documents of these lengths, none above `window`, and the padding behind each, so that none crosses a
    multiple of `window`; both int64 `[len(lengths)]`, the padding by document. The total is a multiple of `window`.

    Best fit, the longest first (Johnson's bound: at most 11/9 of the fewest windows, and 4 more); of equal lengths the
    first comes first.
    """
    assert not len(lengths) or lengths.max() <= window, "a document fits into a window"
    windows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, window), sorted
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        at = bisect_left(rooms, (length, -1))
        if at == len(rooms):
            room, number = window, len(windows)
            windows.append([])
        else:
            room, number = rooms.pop(at)
        windows[number].append(document)
        if room > length:
            insort(rooms, (room - length, number))
    padding = np.zeros(len(lengths), dtype=np.int64)
    for room, number in rooms:
        padding[windows[number][-1]] = room
    return np.fromiter(chain.from_iterable(windows), np.int64, len(lengths)), padding


_NO_IDS: npt.NDArray[Any] = np.empty(0, dtype=np.uint16)


@dataclass
class _Piece:
    """A stretch of a conversation that is encoded by itself."""

    text: str = ""
    ids: npt.NDArray[Any] = field(default_factory=lambda: _NO_IDS)
    special: bool = False
    answer: int = -1
    """Which answer it is of; -1: none."""
    continues: bool = False
    """Text behind text, with no special token between, or the model's own: nothing is put before it."""


def _cut(rendered: Rendered, template: ChatTemplate) -> list[_Piece]:
    text = rendered.text
    borders = sorted({0, len(text), *(border for span in rendered.answers for border in span)})
    pieces: list[_Piece] = []
    answer_at = {start: (number, end) for number, (start, end) in enumerate(rendered.answers)}
    number, answer_end = -1, 0
    for start, end in pairwise(borders):
        if start in answer_at:
            number, answer_end = answer_at[start]
        answer = number if start < answer_end else -1
        at, continues = start, bool(pieces) and not pieces[-1].special
        for match in template.special_pattern.finditer(text, start, end):
            _add_text(pieces, text[at : match.start()], answer, continues)
            token = np.array([template.special_tokens[match[0]]], dtype=np.int64)
            pieces.append(_Piece(ids=token, special=True, answer=answer))
            at, continues = match.end(), False
        _add_text(pieces, text[at:end], answer, continues)
    return pieces


def _add_text(pieces: list[_Piece], text: str, answer: int, continues: bool) -> None:
    if text:
        pieces.append(_Piece(text.replace(BREAK, ""), answer=answer, continues=continues or answer >= 0))


def _encode_texts(tokenizer: Tokenizer, pieces: Sequence[_Piece]) -> None:
    """Fill in the ids of all pieces of text, many at a time."""
    for continues, encode in ((False, tokenizer.encode_flat), (True, tokenizer.encode_flat_continuing)):
        texts = [piece for piece in pieces if piece.text and piece.continues == continues]
        if texts:
            ids, lengths = encode([piece.text for piece in texts])
            for piece, own in zip(texts, np.split(ids, np.cumsum(lengths[:-1])), strict=True):
                piece.ids = own


def _shown(conversation: bytes) -> str:
    return repr(conversation[:80].decode("utf-8", errors="replace"))
