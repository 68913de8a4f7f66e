"""Counting tokens beside one pass over the same mapped file, in one run: `python benchmarks/analysis.py`.

A pass that only reads (numpy's bitwise or of 64-bit words, the fastest there is here) says what the memory, or the
disk, gives one core. Beside it: this library on one thread and on all cores, numpy's bincount as one would write it,
and where a C compiler is found, the plain loop in C: what a count can be at all on this machine. Everything maps the
files anew, in turn, round after round.

Needs the project alone.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measure import Page, goal_line, origin, public_arguments, ratio, spread

from lingua_synth.analysis import count_unigrams
from lingua_synth.files import write_json
from lingua_synth.tokens import TokenSource
from lingua_synth.tokens.shards import FORMAT, MANIFEST, VERSION, shard_name, write_shard
from lingua_synth.tokens.workers import count_cores

GOAL = 0.5
TOKENS_OF_A_FILE = 1 << 26
DOCUMENT_TOKENS = 1_000
# Vocabularies: a small one and GPT-2's in 16 bits, Llama 3's in 32.
VOCABULARIES = (258, 50_257, 128_256)

C_LOOP = """
#include <stdint.h>
#include <stddef.h>
void count16(const uint16_t *ids, size_t n, uint32_t *counts) { for (size_t i = 0; i < n; i++) counts[ids[i]]++; }
void count32(const uint32_t *ids, size_t n, uint32_t *counts) { for (size_t i = 0; i < n; i++) counts[ids[i]]++; }
"""


def write_corpus(folder: Path, n_words: int, num_tokens: int) -> TokenSource:
    """Shards of tokens whose frequencies follow Zipf's law, the ids in random order."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(np.uint16 if n_words <= 1 << 16 else np.uint32)
    ends = np.cumsum(1 / np.arange(1, n_words + 1))
    names = rng.permutation(n_words).astype(dtype)
    drawn = names[np.minimum(np.searchsorted(ends / ends[-1], rng.random(min(num_tokens, 1 << 22))), n_words - 1)]
    entries = []
    for index, start in enumerate(range(0, num_tokens, TOKENS_OF_A_FILE)):
        size = min(TOKENS_OF_A_FILE, num_tokens - start)
        tokens = np.resize(np.roll(drawn, int(rng.integers(len(drawn)))), size)
        offsets = np.append(np.arange(0, size, DOCUMENT_TOKENS), size)
        num_bytes, ids = np.diff(offsets).astype(np.uint64) * 4, [str(i) for i in range(len(offsets) - 1)]
        entries.append(write_shard(folder / shard_name(index), tokens, offsets, num_bytes, ids, "benchmark"))
    totals = {key: sum(entry[key] for entry in entries) for key in ("documents", "tokens", "bytes")}
    tokenizer = {"name": "benchmark", "path": None, "sha256": "benchmark", "n_words": n_words}
    tokenizer |= {"bos_id": -1, "eos_id": -1}
    manifest = {"format": FORMAT, "version": VERSION, "dtype": dtype.name, "tokenizer": tokenizer, "files": entries}
    write_json(folder / MANIFEST, {**manifest, **totals})
    return TokenSource(folder)


def read_only(source: TokenSource) -> None:
    """One pass that looks at every byte and keeps nothing."""
    for shard in source.shards:
        tokens = shard.tokens
        np.bitwise_or.reduce(tokens[: len(tokens) // 4 * 4].view(np.uint64))


def bincount(source: TokenSource) -> np.ndarray:
    """numpy's count in stretches that stay in the cache, on one thread."""
    n_words = source.manifest["tokenizer"]["n_words"]
    counts = np.zeros(n_words, dtype=np.int64)
    for shard in source.shards:
        for start in range(0, len(shard.tokens), 1 << 17):
            counts += np.bincount(shard.tokens[start : start + (1 << 17)], minlength=n_words)
    return counts


def compile_loop(folder: Path) -> Callable[[TokenSource], np.ndarray] | None:
    """The plain loop in C on one thread; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    (folder / "loop.c").write_text(C_LOOP)
    library = folder / "loop.so"
    command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", str(folder / "loop.c"), "-o", str(library)]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    loaded = ctypes.CDLL(str(library))

    def count(source: TokenSource) -> np.ndarray:
        counts = np.zeros(source.manifest["tokenizer"]["n_words"], dtype=np.uint32)
        function = loaded.count16 if source.dtype == np.uint16 else loaded.count32
        for shard in source.shards:
            tokens = ctypes.c_void_p(shard.tokens.ctypes.data)
            function(tokens, ctypes.c_size_t(len(shard.tokens)), ctypes.c_void_p(counts.ctypes.data))
        return counts.astype(np.int64)

    return count


def forget(folder: Path) -> None:
    """Ask the operating system to drop the files from memory."""
    for path in folder.glob("*.arrow"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def measure(
    folder: Path, cases: dict[str, Callable[[TokenSource], Any]], rounds: int, cold: bool
) -> dict[str, list[float]]:
    """GB/s of token ids by case and round; each case opens the folder anew. Counts of all cases must be equal."""
    rates: dict[str, list[float]] = {name: [] for name in cases}
    known: np.ndarray | None = None
    for function in cases.values():  # imports, and the files come into memory
        function(TokenSource(folder))
    for _ in range(rounds):
        for name, function in cases.items():
            if cold:
                forget(folder)
            source = TokenSource(folder)
            start, busy = time.perf_counter(), time.process_time()
            counts = function(source)
            # In memory, of all threads together: what a core does, whatever else the machine does.
            seconds = time.perf_counter() - start if cold else time.process_time() - busy
            rates[name].append(source.num_tokens * source.dtype.itemsize / seconds / 1e9)
            if counts is not None:
                assert known is None or (counts == known).all(), f"{name} counts otherwise"
                known = counts
    return rates


def main(argv: list[str]) -> int:
    """Measure, print the page, write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 28, help="of each corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", help="folder for the corpora; default: a temporary one")
    parser.add_argument("--out", help="write the page here too")
    args = parser.parse_args(argv)
    page = Page("Counting tokens, beside one pass over the mapped file")
    page.text(*origin(public_arguments(argv)))
    page.text(
        f"{args.tokens / 1e6:,.1f} Mtok a corpus, frequencies by Zipf's law; {args.rounds} rounds in turn: median "
        "(smallest-largest). GB/s of token ids: in memory per CPU-second of all threads, from disk per second. "
        "*Of a pass*: median over the rounds of the ratio to the pass that only reads, on one core."
    )
    goals = []
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        loop = compile_loop(Path(work))
        if loop is None:
            page.text("The loop in C is left out: no C compiler is found.")
        cases: dict[str, Callable[[TokenSource], Any]] = {"a pass that only reads": read_only}
        cases["**lingua_synth**, 1 thread"] = lambda source: count_unigrams(source.path, num_threads=1).counts
        if loop is not None:
            cases["the plain loop in C, 1 thread"] = loop
        cases["numpy's bincount, 1 thread"] = bincount
        if count_cores() > 1:
            cases[f"**lingua_synth**, {count_cores()} threads"] = lambda source: count_unigrams(source.path).counts
        for n_words in VOCABULARIES:
            folder = Path(work) / str(n_words)
            source = write_corpus(folder, n_words, args.tokens)
            kind = f"{n_words:,} words, {source.dtype}"
            for cold in (False, True):
                rates = measure(folder, cases, args.rounds, cold)
                passes = rates["a pass that only reads"]
                if not cold:
                    warm = median(passes)
                elif median(passes) > 0.7 * warm:
                    page.text(f"{kind}: the files stay in memory here, so there is no pass from disk.")
                    continue
                page.text(f"## {kind}, {'from disk' if cold else 'in memory'}")
                rows = []
                for name, values in rates.items():
                    per_token = median(source.dtype.itemsize / value for value in values)
                    rows.append([name, spread(values, 2), f"{per_token:.2f}", f"{ratio(values, passes):.2f}"])
                page.table(["", "GB/s", "ns a token", "of a pass"], rows)
                own = rates["**lingua_synth**, 1 thread"]
                name = f"{kind}, {'from disk' if cold else 'in memory'}: of a pass, per core"
                measured = ratio(own, passes)
                goals.append(goal_line(name, f"{measured:.2f}", f">= {GOAL}", measured >= GOAL))
                if loop is not None and not cold:
                    measured = ratio(own, rates["the plain loop in C, 1 thread"])
                    goals.append([f"{kind}, in memory: of the loop in C", "-", f"{measured:.2f}", "-"])
            shutil.rmtree(folder)
    page.goals(goals)
    page.text(
        "A count is a read, an addition and a write for each token, at an address that the token decides; in memory a "
        "core reads 64 bytes in the time of a few of these. Where the loop in C stands far below half a pass, no count "
        "of one token after the other reaches it. From disk the pass waits for the disk, and counting with it."
    )
    if args.out:
        page.write(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
