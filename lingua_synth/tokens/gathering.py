"""Pass 2 of tokenization: which documents make up which shard, and the gathering of one shard from all spills.

Every shard is a range of keys, so that the shards one after the other hold all documents sorted by key: for a shuffle
a uniform random permutation of the whole corpus. The ranges are chosen when all tokens are counted: as few shards as
the limit allows, and as even as can be. Without a shuffle a shard is a stretch of the input, filled to the limit.

One shard at a time is held in memory, by each worker; spills are mapped, and one of them is open at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.files import write_json
from lingua_synth.tokens.chat import pack_windows
from lingua_synth.tokens.shards import shard_name, write_shard
from lingua_synth.tokens.units import Progress, Task, stretches
from lingua_synth.tokens.workers import Report

BINS_PER_SHARD = 64
MIN_BIN_BITS, MAX_BIN_BITS = 12, 22
KEY_BITS = 64


@dataclass(frozen=True)
class ShardPlan:
    """The documents of one shard: those with keys in [low, high), or the rows named."""

    index: int
    tokens: int
    low: int = 0
    high: int = 0
    is_last: bool = False
    """Nothing comes behind it."""
    rows: tuple[tuple[int, int, int, int], ...] | None = None
    """Stretches (unit, chunk, first row, row after the last) for shards in the order of the input."""


def plan_shards(task: Task, num_units: int, num_tokens: int) -> list[ShardPlan]:
    """All shards, in order, of the spills of `num_units` units that hold `num_tokens` tokens together."""
    if task.shuffle_seed is None:
        plans = _plan_in_input_order(task, num_units)
    else:
        plans = _plan_by_key(task, num_units, num_tokens)
    return [*plans[:-1], replace(plans[-1], is_last=True)]


def even_cuts(sizes: npt.NDArray[np.int64], limit: int) -> list[int]:
    """Cut a row of sizes into as few stretches as possible, each summing to at most `limit`, and as even as possible.

    Returns the ends of the stretches, the first one 0 and the last len(sizes). A size above the limit is a stretch
    alone. As even as possible: the largest sum (of those that are no single size) is the smallest for that count.
    """
    sums = np.cumsum(sizes)

    def greedy(capacity: int) -> list[int]:
        cuts = [0]
        while cuts[-1] < len(sizes):
            begun = int(sums[cuts[-1] - 1]) if cuts[-1] else 0
            cuts.append(max(int(np.searchsorted(sums, begun + capacity, side="right")), cuts[-1] + 1))
        return cuts

    fewest = len(greedy(limit))
    low, high = min(limit, -(-int(sums[-1]) // (fewest - 1))), limit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(greedy(middle)) <= fewest else (middle + 1, high)
    return greedy(high)


def _plan_by_key(task: Task, num_units: int, num_tokens: int) -> list[ShardPlan]:
    bits = (BINS_PER_SHARD * num_tokens // task.shard_tokens).bit_length()
    bits = min(max(bits, MIN_BIN_BITS), MAX_BIN_BITS)
    shift = np.uint64(KEY_BITS - bits)
    tokens, documents = np.zeros(1 << bits, dtype=np.int64), np.zeros(1 << bits, dtype=np.int64)
    for _, _, chunk in _chunks(task, num_units):
        bins = (_keys(chunk) >> shift).astype(np.int64)
        np.add.at(tokens, bins, np.diff(_offsets(chunk)))
        np.add.at(documents, bins, 1)
    cuts = even_cuts(tokens, task.shard_tokens)
    crowded = np.flatnonzero((tokens > task.shard_tokens) & (documents > 1))
    ranges: list[tuple[int, int, int]] = []
    inside = _ranges_in_bins(task, num_units, crowded, shift) if len(crowded) else {}
    for start, stop in pairwise(cuts):
        if start in inside:  # one bin, with more documents than a shard takes
            ranges += inside[start]
        elif size := int(tokens[start:stop].sum()):
            ranges.append((start << int(shift), stop << int(shift), size))
    return [ShardPlan(i, size, low, high) for i, (low, high, size) in enumerate(ranges)]


def _ranges_in_bins(
    task: Task, num_units: int, bins: npt.NDArray[np.int64], shift: np.uint64
) -> dict[int, list[tuple[int, int, int]]]:
    """Key ranges (low, high, tokens) inside each of `bins`, from the length of every document in them."""
    found: dict[int, list[npt.NDArray[np.uint64]]] = {int(i): [] for i in bins}
    for _, _, chunk in _chunks(task, num_units):
        keys, lengths = _keys(chunk), np.diff(_offsets(chunk)).astype(np.uint64)
        of_bin = (keys >> shift).astype(np.int64)
        for i in np.intersect1d(of_bin, bins):
            there = of_bin == i
            found[int(i)].append(np.stack([keys[there], lengths[there]]))
    ranges = {}
    for i, parts in found.items():
        keys, lengths = np.concatenate(parts, axis=1)
        order = np.argsort(keys, kind="stable")
        keys, sizes = keys[order], lengths[order].astype(np.int64)
        cuts = even_cuts(sizes, task.shard_tokens)
        borders = [i << int(shift), *(int(keys[cut]) for cut in cuts[1:-1]), (i + 1) << int(shift)]
        sums = [int(sizes[start:stop].sum()) for start, stop in pairwise(cuts)]
        ranges[i] = list(zip(borders, borders[1:], sums, strict=False))
    return ranges


def _plan_in_input_order(task: Task, num_units: int) -> list[ShardPlan]:
    plans: list[ShardPlan] = []
    rows: list[tuple[int, int, int, int]] = []
    size = 0
    for unit, number, chunk in _chunks(task, num_units):
        offsets = _offsets(chunk)
        row = 0
        while row < len(offsets) - 1:
            stop = int(np.searchsorted(offsets, offsets[row] + (task.shard_tokens - size), side="right")) - 1
            if stop <= row and rows:
                plans.append(ShardPlan(len(plans), size, rows=tuple(rows)))
                rows, size = [], 0
                continue
            stop = max(stop, row + 1)  # longer than a shard: alone
            rows.append((unit, number, row, stop))
            size += int(offsets[stop] - offsets[row])
            row = stop
    if rows:
        plans.append(ShardPlan(len(plans), size, rows=tuple(rows)))
    return plans


# --- one shard ---


def write_planned_shard(task: Task, plan: ShardPlan, num_units: int, report: Report) -> dict[str, Any]:
    """Gather and write one shard; returns its entry of the manifest, which stands in the work folder as well.

    Holds the shard's tokens once, and ids and lengths of its documents. Conversations that are laid out in windows are
    packed within the shard, and the padding behind one, EOS, is its last, unscored tokens.
    """
    import pyarrow as pa

    pieces = [
        _Piece(unit, number, start, stop, chunk)
        for unit, number, chunk in _chunks(task, num_units, plan)
        for start, stop in _rows_of(plan, unit, number, chunk)
    ]
    keys = np.concatenate([piece.keys for piece in pieces])
    lengths = np.concatenate([piece.lengths for piece in pieces])
    num_bytes = np.concatenate([piece.num_bytes for piece in pieces])
    ids = pa.concat_arrays([piece.ids for piece in pieces])
    order = np.arange(len(keys)) if plan.rows is not None else np.argsort(keys, kind="stable")
    window = None if task.chat is None else task.chat.window_tokens
    padding = np.zeros(len(keys), dtype=np.int64)
    if window is not None:
        packed, behind = pack_windows(lengths[order], window)
        # The last window predicts the first token behind it too.
        behind[packed[-1]] += plan.is_last
        order, padding = order[packed], behind[packed]
    offsets = np.zeros(len(keys) + 1, dtype=np.int64)
    np.cumsum(lengths[order] + padding, out=offsets[1:])
    starts = np.empty(len(keys), dtype=np.int64)
    starts[order] = offsets[:-1]
    tokens = task.scratch.take(int(offsets[-1]), task.tokenizer.dtype)
    if window is not None:
        tokens[:] = next((i for i in (task.tokenizer.eos_id, task.tokenizer.bos_id) if i >= 0), 0)
    first, done = 0, Progress()
    for piece in pieces:
        of_piece = starts[first : first + len(piece.keys)]
        piece.copy_tokens(task, tokens, of_piece, in_one=plan.rows is not None and window is None)
        first += len(of_piece)
        done = Progress(documents=first, tokens=done.tokens + int(piece.lengths.sum()))
        report(done)
    entry = write_shard(
        task.out_dir / shard_name(plan.index), tokens, offsets, pa.array(num_bytes[order]), ids.take(pa.array(order)),
        tokenizer_sha256=task.tokenizer.sha256,
        scored=None if task.chat is None else _in_order([piece.scored for piece in pieces], order),
    )  # fmt: skip
    assert entry["tokens"] == plan.tokens + padding.sum(), "the plan counted these documents"
    if window is not None:
        entry["padding"] = int(padding.sum())
    write_json(shard_record(task, plan.index), entry)
    return entry


def shard_record(task: Task, index: int) -> Any:
    """File in the work folder that says that a shard is written: its entry of the manifest."""
    return task.work_dir / f"shard-{index:05d}.json"


class _Piece:
    """Documents of one chunk that belong to a shard; everything but the tokens is copied out of the mapped file."""

    def __init__(self, unit: int, number: int, start: int, stop: int, chunk: Any) -> None:
        self._unit, self._number, self._start, self._stop = unit, number, start, stop
        self.keys = _keys(chunk)[start:stop].copy()
        self.lengths = np.diff(_offsets(chunk)[start : stop + 1])
        self.num_bytes = chunk.column("num_bytes").to_numpy(zero_copy_only=True)[start:stop].copy()
        self.ids = _copy_strings(chunk.column("id"), start, stop)
        self.scored: list[npt.NDArray[np.uint32]] = []
        if "scored" in chunk.schema.names:
            column = chunk.column("scored")
            borders = column.offsets.to_numpy(zero_copy_only=True)[start : stop + 1]
            values = column.values.to_numpy(zero_copy_only=True)[borders[0] : borders[-1]].copy()
            self.scored = np.split(values, (borders[1:-1] - borders[0]).tolist())

    def copy_tokens(self, task: Task, target: npt.NDArray[Any], starts: npt.NDArray[np.int64], in_one: bool) -> None:
        with _open_spill(task, self._unit) as reader:
            chunk = reader.get_batch(self._number)
            offsets = _offsets(chunk)[self._start : self._stop + 1].tolist()
            tokens = chunk.column("tokens").values.to_numpy(zero_copy_only=True)
            if in_one:
                target[starts[0] : starts[0] + offsets[-1] - offsets[0]] = tokens[offsets[0] : offsets[-1]]
                return
            for start, begin, end in zip(starts.tolist(), offsets, offsets[1:], strict=False):
                target[start : start + end - begin] = tokens[begin:end]


def _rows_of(plan: ShardPlan, unit: int, number: int, chunk: Any) -> Iterator[tuple[int, int]]:
    if plan.rows is not None:
        yield from ((start, stop) for u, n, start, stop in plan.rows if (u, n) == (unit, number))
        return
    keys = _keys(chunk)
    start = int(np.searchsorted(keys, np.uint64(plan.low)))
    stop = len(keys) if plan.high >> KEY_BITS else int(np.searchsorted(keys, np.uint64(plan.high)))
    if start < stop:
        yield start, stop


def _in_order(borders: Sequence[Sequence[npt.NDArray[np.uint32]]], order: npt.NDArray[Any]) -> Any:
    """The column `scored` of a shard, from that of its pieces."""
    every = [one for piece in borders for one in piece]
    return stretches([every[i] for i in order.tolist()])


# --- spills ---


@contextlib.contextmanager
def _open_spill(task: Task, unit: int) -> Iterator[Any]:
    import pyarrow as pa

    path = task.spill(unit)
    try:
        with pa.memory_map(str(path)) as file:
            yield pa.ipc.open_file(file)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged ({error}); delete {task.work_dir} and tokenize again") from None


def _chunks(task: Task, num_units: int, plan: ShardPlan | None = None) -> Iterator[tuple[int, int, Any]]:
    """(unit, number of the chunk in it, record batch) of all spills, or of those that `plan` names."""
    units = range(num_units) if plan is None or plan.rows is None else sorted({row[0] for row in plan.rows})
    for unit in units:
        with _open_spill(task, unit) as reader:
            for number in range(reader.num_record_batches):
                yield unit, number, reader.get_batch(number)


def _keys(chunk: Any) -> npt.NDArray[np.uint64]:
    keys: npt.NDArray[np.uint64] = chunk.column("key").to_numpy(zero_copy_only=True)
    return keys


def _offsets(chunk: Any) -> npt.NDArray[np.int64]:
    offsets: npt.NDArray[np.int64] = chunk.column("tokens").offsets.to_numpy(zero_copy_only=True)
    return offsets


def _copy_strings(column: Any, start: int, stop: int) -> Any:
    """Rows of a column of strings in memory of their own: a slice would keep the whole file mapped."""
    import pyarrow as pa

    _, offsets_buffer, text = column.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[start : stop + 1]
    data = text[int(offsets[0]) : int(offsets[-1])].to_pybytes() if text is not None else b""
    return pa.LargeStringArray.from_buffers(stop - start, pa.py_buffer(offsets - offsets[0]), pa.py_buffer(data))
