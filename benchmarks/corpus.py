"""The two-source corpus of the benchmarks: `long` and `short` documents, as text, token shards and flat files.

    text/<source>/<source>.chunk.NN.jsonl   Lingua's layout, which the library reads too
    shards/<source>/                        token shards, BOS and EOS around every document
    flat/<source>.int32, .lengths.npy       the same ids without a format, and the documents' lengths: what the peers'
                                            own formats are written from, and what the floors read
    letters/<source>/<source>.chunk.NN.jsonl   a document of n tokens is n letters, one letter a source: read with the
                                            tokenizer `bytes`, every token of Lingua's batches names its source

The text is the built-in corpus, `python://`: paragraphs of documentation, dealt anew into documents of log-normal
lengths. What it has is repeated in another order until there is enough; the summary says how often.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import short_hash

from lingua_synth.documents import python_documents
from lingua_synth.files import atomic_folder, read_json, write_json
from lingua_synth.tokens import Tokenizer, TokenSource, build_tokenizer, tokenize

SOURCES = ("long", "short")
# Characters of a document: mean, and sigma of its logarithm. Four times the length apart, as documents of the web are
# from answers to a prompt; loader.md's corpus has the same means.
LENGTHS = {"long": (4300, 1.0), "short": (1300, 0.6)}
NUM_CHUNKS = 8
# Of English documentation in Llama 3's vocabulary; only the size of the corpus depends on it.
BYTES_PER_TOKEN = {"tiktoken": 4.7, "bytes": 1.0}
MIN_CHARS = 60


@dataclass(frozen=True)
class Corpus:
    """Where the corpus is, and what it is."""

    folder: Path
    """Of shards, flat and letters."""
    text: Path
    """Of the jsonl files, one folder a source."""
    summary: str
    """Documents, tokens and lengths in words."""
    tokenizer: Tokenizer

    def files(self, source: str | None = None) -> list[str]:
        """The jsonl files of one source, or of both."""
        names = SOURCES if source is None else (source,)
        return [str(path) for name in names for path in sorted((self.text / name).glob("*.jsonl"))]

    @property
    def num_bytes(self) -> int:
        """Bytes of the jsonl files."""
        return sum(Path(file).stat().st_size for file in self.files())

    def sources(self) -> dict[str, TokenSource]:
        """The token shards, opened."""
        return {name: TokenSource(self.folder / "shards" / name) for name in SOURCES}


def find_tokenizer(path: str | None, fast: bool = True) -> tuple[Tokenizer, str]:
    """Llama 3's vocabulary, of `path` or of the package llama-models; without either, bytes. And what to say of it."""
    try:
        tokenizer = build_tokenizer("tiktoken", path, fast=fast)
        return tokenizer, f"tiktoken, {tokenizer.n_words:,} words"
    except ValueError as error:
        if path is not None:
            raise
        return build_tokenizer("bytes"), f"bytes, 258 words (Llama 3's vocabulary was not found: {error})"


def write_text(folder: Path, num_bytes: int, seed: int = 0) -> str:
    """Write about `num_bytes` of jsonl into `folder`, two thirds of it long documents; returns a summary."""
    units = [document.text.split("\n\n") for document in python_documents()]
    unique = sum(len(paragraph.encode()) for unit in units for paragraph in unit)
    written = 0
    for name, share in zip(SOURCES, (2 / 3, 1 / 3), strict=True):
        (folder / name).mkdir()
        files = [
            open(folder / name / f"{name}.chunk.{chunk:02d}.jsonl", "w", encoding="utf-8")  # noqa: SIM115
            for chunk in range(NUM_CHUNKS)
        ]
        left = share * num_bytes
        for number, text in enumerate(_deal(units, *LENGTHS[name], random.Random(f"{seed} {name}"))):
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            left -= files[number % NUM_CHUNKS].write(line)
            written += len(line.encode())
            if left <= 0:
                break
        for file in files:
            file.close()
    return (
        f"{written / 1e6:,.0f} MB of jsonl, dealt from {unique / 1e6:,.1f} MB of documentation found on the machine: "
        f"each paragraph comes about {written / unique:.1f} times"
    )


def _deal(units: list[list[str]], mean: float, sigma: float, rng: random.Random) -> Iterator[str]:
    """Documents without end, of log-normal lengths with that mean, from the paragraphs of units in random order."""
    mu = math.log(mean) - sigma**2 / 2
    held: list[str] = []
    num_chars, wanted = 0, int(rng.lognormvariate(mu, sigma))
    while True:
        for unit in rng.sample(units, len(units)):
            for paragraph in unit:
                held.append(paragraph)
                num_chars += len(paragraph)
                if num_chars >= wanted:
                    yield "\n\n".join(held)[: max(wanted, MIN_CHARS)]
                    held, num_chars, wanted = [], 0, int(rng.lognormvariate(mu, sigma))


def build_text(work: Path, num_bytes: int) -> tuple[Path, str]:
    """Folder of the text made from the built-in corpus, written at the first call; and its summary."""
    folder = work / f"text-{short_hash([num_bytes, LENGTHS, NUM_CHUNKS])}"
    if not (folder / "summary.json").exists():
        with atomic_folder(folder) as new:
            write_json(new / "summary.json", write_text(new, num_bytes))
    return folder, read_json(folder / "summary.json")


def validate_text(folder: Path) -> str:
    """Summary of a corpus that was given; ValueError where it has not the two sources."""
    sizes = {name: sum(f.stat().st_size for f in (folder / name).glob("*.jsonl")) for name in SOURCES}
    if not all(sizes.values()):
        raise ValueError(
            f"--corpus {folder} must hold two folders of .jsonl files, long and short; found "
            + ", ".join(f"{name}: {size:,} bytes" for name, size in sizes.items())
        )
    return f"{sum(sizes.values()) / 1e6:,.0f} MB of jsonl, given with --corpus"


def build_corpus(work: Path, mtok: float, tokenizer_path: str | None, given: str | None = None) -> Corpus:
    """The corpus of about `mtok` million tokens below `work` (or of the text `given`), made at the first call."""
    tokenizer, said = find_tokenizer(tokenizer_path)
    if given is None:
        num_bytes = int(mtok * 1e6 * BYTES_PER_TOKEN[tokenizer.name])
        text, of_text = build_text(work, num_bytes)
        identity: Any = [text.name, tokenizer.sha256]
    else:
        text, of_text = Path(given), validate_text(Path(given))
        identity = [str(text.resolve()), tokenizer.sha256]
    folder = work / f"tokens-{short_hash(identity)}"
    done = folder / "corpus.json"
    if not done.exists():
        start = time.perf_counter()
        for name in SOURCES:
            tokenize([str(p) for p in sorted((text / name).glob("*.jsonl"))], folder / "shards" / name, tokenizer)
        _write_flat(folder)
        write_json(done, {"seconds": time.perf_counter() - start})
    sources = {name: TokenSource(folder / "shards" / name) for name in SOURCES}
    counts = "; ".join(
        f"{name}: {source.num_documents:,} documents, {source.num_tokens / 1e6:.2f} Mtok, "
        f"mean {source.num_tokens / source.num_documents:,.0f} tokens"
        for name, source in sources.items()
    )
    return Corpus(folder, text, f"{of_text}; tokenizer {said}; {counts}", tokenizer)


def _write_flat(folder: Path) -> None:
    (folder / "flat").mkdir(exist_ok=True)
    for name, letter in zip(SOURCES, "ab", strict=True):
        source = TokenSource(folder / "shards" / name)
        ids = source.window(0, source.num_tokens).astype(np.int32)
        ids.tofile(folder / "flat" / f"{name}.int32")
        np.save(folder / "flat" / f"{name}.lengths.npy", source.document_lengths)
        (folder / "letters" / name).mkdir(parents=True, exist_ok=True)
        with open(folder / "letters" / name / f"{name}.chunk.00.jsonl", "w", encoding="utf-8") as file:
            for length in source.document_lengths.tolist():
                file.write('{"text": "' + letter * length + '"}\n')
