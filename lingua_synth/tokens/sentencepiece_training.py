"""Train a small vocabulary on the corpus at hand: SentencePiece BPE that loses nothing.

In a small model a vocabulary of 128,256 words is nearly all of the parameters; about a thousand pieces learned
on the same text keep the transformer the larger part. Pieces come from merges inside words; a newline is a piece
of its own; what is not in the vocabulary falls back to bytes, so every text survives encode and decode unchanged.
"""

from __future__ import annotations

import hashlib
import heapq
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from lingua_synth.files import atomic_file

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
# SentencePiece passes over longer lines without a word; a longer line of ours is cut, not lost.
MAX_LINE_CHARS = 100_000


def train_sentencepiece(
    texts: Iterable[str], path: str | Path, vocab_size: int = 1024, *, max_bytes: int = 5_000_000, seed: int = 0
) -> Path:
    """Learn `vocab_size` BPE pieces from `texts` and write the model file `path`, for `build_tokenizer("sp", path)`.

    The pieces: unknown, BOS, EOS (ids 0, 1, 2), newline, the 256 bytes, then merges and characters. Text is taken
    as it is (no normalization), so `decode(encode(text)) == text` for any text. The same texts in the same order,
    with the same seed, give the same file, byte for byte (one thread). Of a longer corpus a sample of whole texts,
    at most `max_bytes` UTF-8 bytes, is learned from, chosen by `seed` and position; it bounds the memory.
    Raises ValueError for no text and for a vocabulary that the text cannot fill or is too small for its characters.
    """
    try:
        from sentencepiece import SentencePieceTrainer
    except ImportError:
        raise ValueError("training a vocabulary needs sentencepiece: pip install sentencepiece") from None
    if vocab_size < 300:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: 256 bytes, 4 special pieces and the letters come first"
        )
    sample = sample_texts(texts, max_bytes, seed)
    if not sample:
        raise ValueError("no text to learn a vocabulary from (every text is empty or longer than max_bytes)")
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(sample),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # indentation in one piece
            split_digits=True,
            user_defined_symbols=["\n"],
            character_coverage=0.9995,
            max_sentence_length=4 * MAX_LINE_CHARS + 1,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=-1,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("]")[2].strip() or str(error)
        num_bytes = sum(len(text.encode("utf-8")) for text in sample)
        raise ValueError(
            f"cannot learn {vocab_size} pieces from {len(sample):,} texts of {num_bytes:,} bytes: {reason}"
        ) from None
    with atomic_file(path, "wb") as file:
        file.write(model.getvalue())
    return Path(path)


def sample_texts(texts: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """A seeded sample of whole texts, at most `max_bytes` UTF-8 bytes together, in input order; all if they fit.

    Every text has a key drawn from (seed, position); those of the smallest keys stay. One pass; memory is bounded
    by `max_bytes` and the longest text. Empty texts are left out.
    """
    kept: list[tuple[int, int, str, int]] = []  # a heap with the largest key first
    total = 0
    for position, text in enumerate(texts):
        size = len(text.encode("utf-8"))
        if not text:
            continue
        key = int.from_bytes(hashlib.sha256(f"{seed} {position}".encode()).digest()[:8], "big")
        heapq.heappush(kept, (-key, position, text, size))
        total += size
        while total > max_bytes:
            total -= heapq.heappop(kept)[3]
    return [text for _, _, text, _ in sorted(kept, key=lambda entry: entry[1])]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), MAX_LINE_CHARS):
                yield line[start : start + MAX_LINE_CHARS]
