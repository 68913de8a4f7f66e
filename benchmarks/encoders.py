"""Text to ids, in a process of its own, driven by `measure.Worker`: the library's tokenize, floors, and bare encoders.

Commands, one line of JSON each: identity, tokenize, floor, encode. `cpu` is of this process and of those it started.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from answering import answer_all, methods_of, silence, take_output

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lingua_synth.tokens import Tokenizer, build_tokenizer, tokenize
from lingua_synth.tokens.fast_bpe import hard_texts, tokenizer_json
from lingua_synth.tokens.tokenizer import LLAMA3_PATTERN

BATCH, SEQ_LEN = 4, 4096
# Documents given to an encoder at once, where it takes several.
DOCUMENTS_PER_CALL = 64


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_mb() -> float:
    """Peak resident memory of the largest of these processes, MB."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def texts_of(files: Sequence[str]) -> Iterator[str]:
    """The texts of jsonl files, by orjson where it is installed."""
    try:
        from orjson import loads
    except ImportError:
        from json import loads
    for file in files:
        with open(file, "rb") as lines:
            for line in lines:
                yield loads(line)["text"]


def groups(items: Iterator[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` items, the last one shorter."""
    group: list[str] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


# --- bare encoders: texts -> ids of all, one after the other, and the number of each ---

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


def read_ranks(path: str) -> dict[bytes, int]:
    """Tokens of a tiktoken rank file."""
    import base64

    with open(path, "rb") as file:
        return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in file if line.strip())}


def flat(ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of ids as one array and their lengths."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths


def build_encoder(name: str, path: str) -> Encode:
    """An encoder over the Llama-3 ranks of `path`. ImportError where its library is missing."""
    if name == "tiktoken":
        import tiktoken

        encoding = tiktoken.Encoding(
            "ranks", pat_str=LLAMA3_PATTERN, mergeable_ranks=read_ranks(path), special_tokens={}
        )
        return lambda texts: flat([encoding.encode_ordinary(text) for text in texts])
    if name == "gigatoken":
        import gigatoken

        fast = gigatoken.Tokenizer.from_json(tokenizer_json(read_ranks(path), LLAMA3_PATTERN))

        def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            rows = fast.encode_batch(list(texts), parallel=False).layout
            return np.asarray(rows.content.data), np.diff(np.asarray(rows.offsets.data))

        return encode
    if name == "tokenizers":
        import tokenizers

        described = json.loads(tokenizer_json(read_ranks(path), LLAMA3_PATTERN))
        described["decoder"] = None  # gigatoken takes one without its settings, tokenizers does not
        hugging_face = tokenizers.Tokenizer.from_str(json.dumps(described))
        return lambda texts: flat(
            [e.ids for e in hugging_face.encode_batch_fast(list(texts), add_special_tokens=False)]
        )
    assert name.startswith("lingua_synth"), f"no encoder {name}"
    tokenizer = build_tokenizer("tiktoken", path, fast=name.endswith("fast"))
    tokenizer.prepare()
    return tokenizer.encode_flat


# --- commands ---


class Session:
    """The commands."""

    def identity(self, files: Sequence[str], every: int, path: str, lingua_dir: str | None) -> dict[str, Any]:
        """Texts on which each encoder gives the ids of the reference, and of how many.

        The reference is the tokenizer class of Meta Lingua where there is a checkout, else tiktoken itself. Texts:
        every so many-th of the corpus, and the library's set of hard ones.
        """
        texts = [*(text for i, text in enumerate(texts_of(files)) if i % every == 0), *hard_texts()]
        reference_name = "tiktoken"
        if lingua_dir:
            sys.path.insert(0, lingua_dir)
            from lingua.tokenizer import TikTokenTokenizer

            reference_name = "Meta Lingua's TikTokenTokenizer"
            lingua = TikTokenTokenizer(path)
            reference = [lingua.encode(text, add_bos=False, add_eos=False) for text in texts]
        else:
            ids, lengths = build_encoder("tiktoken", path)(texts)
            reference = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
        equal: dict[str, int | str] = {}
        for name in ("lingua_synth", "lingua_synth fast", "gigatoken", "tokenizers"):
            try:
                ids, lengths = build_encoder(name, path)(texts)
            except Exception as error:
                if name.startswith("lingua_synth"):
                    raise
                equal[name] = f"left out: {error}"
                continue
            parts = np.split(ids, np.cumsum(lengths)[:-1])
            equal[name] = sum(part.tolist() == wanted for part, wanted in zip(parts, reference, strict=True))
        return {"reference": reference_name, "texts": len(texts), "equal": equal}

    def tokenize(
        self, files: Sequence[str], out: str, name: str, path: str | None, fast: bool, num_workers: int | None
    ) -> dict[str, Any]:
        """The library's tokenize into a new folder, from loading the vocabulary to the manifest.

        `start_cpu`: of it, until the tokenizer is ready, where that is in this process alone.
        """
        wall, cpu = time.perf_counter(), cpu_seconds()
        tokenizer: Tokenizer = build_tokenizer(name, path, fast=fast)
        if num_workers == 1 and fast:
            tokenizer.prepare()
        start_cpu = cpu_seconds() - cpu
        manifest = tokenize(list(files), out, tokenizer, num_workers=num_workers, progress=False)
        result = {
            "tokens": manifest["tokens"],
            "wall": time.perf_counter() - wall,
            "cpu": cpu_seconds() - cpu,
            "start_cpu": start_cpu if num_workers == 1 else None,
            "peak_mb": peak_mb(),
        }
        shutil.rmtree(out)
        return result

    def floor(self, files: Sequence[str], encoder: str, path: str) -> dict[str, Any]:
        """orjson, the encoder and numpy packing into batches, and nothing else: what a loop over the files costs.

        BOS and EOS around every document; no shuffling, no checks, no file written.
        """
        wall, cpu = time.perf_counter(), cpu_seconds()
        encode = build_encoder(encoder, path)
        start_cpu = cpu_seconds() - cpu
        bos, eos = 128_000, 128_001
        held: list[np.ndarray] = []
        num_held = num_tokens = num_batches = 0
        size = BATCH * SEQ_LEN
        for texts in groups(texts_of(files), DOCUMENTS_PER_CALL):
            ids, lengths = encode(texts)
            packed = np.empty(len(ids) + 2 * len(lengths), np.int32)
            ends = np.cumsum(lengths + 2)
            is_special = np.zeros(len(packed), dtype=bool)
            is_special[ends - 1] = is_special[ends - lengths - 2] = True
            packed[~is_special] = ids
            packed[ends - lengths - 2], packed[ends - 1] = bos, eos
            num_tokens += len(packed)
            held.append(packed)
            num_held += len(packed)
            if num_held >= size:
                tokens = np.concatenate(held)
                whole = len(tokens) // size * size
                num_batches += len(tokens[:whole].reshape(-1, BATCH, SEQ_LEN))
                held = [tokens[whole:]]
                num_held = len(held[0])
        return {
            "tokens": num_tokens,
            "batches": num_batches,
            "wall": time.perf_counter() - wall,
            "cpu": cpu_seconds() - cpu,
            "start_cpu": start_cpu,
            "peak_mb": peak_mb(),
        }

    def encode(self, files: Sequence[str], encoder: str, path: str, rounds: int) -> dict[str, Any]:
        """An encoder alone over texts in memory: seconds to build it, the first pass, and the later ones."""
        texts = list(texts_of(files))
        start = cpu_seconds()
        encode = build_encoder(encoder, path)
        built = cpu_seconds() - start
        passes, num_tokens = [], 0
        for _ in range(rounds + 1):
            start = cpu_seconds()
            parts = [len(encode(group)[0]) for group in groups(iter(texts), DOCUMENTS_PER_CALL)]
            passes.append(cpu_seconds() - start)
            num_tokens = sum(parts)
        return {"tokens": num_tokens, "built": built, "first": passes[0], "later": passes[1:]}


def main() -> None:
    """Answer commands until the input ends."""
    say = take_output()
    silence()
    say({"version": ""})
    answer_all(say, methods_of(Session()))


if __name__ == "__main__":
    main()
