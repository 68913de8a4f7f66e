"""The loader: one rank's batches of one global order, resumable from one integer.

sources ──GlobalOrder──> positions of this rank ──read windows──> Batch: one int32 block [batch, seq_len + 1]

Each global batch is `global_batch_size` consecutive positions. Rank r of n reads a contiguous n-th of its slots, in
micro-batches of `batch_size`. So the sequences of every global batch, and their order, are the same for any number of
ranks and any micro-batch; a run saved on 8 ranks goes on on 2, and the state is a position and a fingerprint.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from lingua_synth.files import sha256_json
from lingua_synth.mixture.order import GlobalOrder
from lingua_synth.mixture.plan import TokenSourceLike, count_windows, plan_report, validate_names
from lingua_synth.mixture.prefetch import Prefetcher
from lingua_synth.mixture.ratios import Mixture, Ratio, validate_count
from lingua_synth.mixture.schedule import MAX_POSITION
from lingua_synth.mixture.strict import build_schedule

STATE_VERSION = 1
# Sequences located in one sweep: numpy's overhead per call is spread over them; a sweep takes about 2 ms.
SEQUENCES_AHEAD = 1024
# Sources whose shards and ratio the state names one by one; of more it keeps one hash, to stay small.
SOURCES_BY_NAME = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of this rank: sequences in rows."""

    block: npt.NDArray[np.int32]
    """Token ids, `[batch, seq_len + 1]`: move this one to the device and slice it there."""
    source: npt.NDArray[np.int64]
    """Index of each row's source, in the order of the mixture, `[batch]`."""
    position: npt.NDArray[np.int64]
    """Global sequence position of each row, `[batch]`."""

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Inputs `[batch, seq_len]`: a view of `block` without its last column."""
        return self.block[:, :-1]

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The token after each input, `[batch, seq_len]`: a view of `block` without its first column."""
        return self.block[:, 1:]


@dataclass(frozen=True, slots=True)
class SourceAccount:
    """What was read of one source up to a position; exact."""

    sequences: int
    tokens: int
    """Training tokens, repeats counted: `seq_len` a sequence."""
    epochs: Fraction
    """Passes over the source's windows."""


class MixtureLoader:
    """Iterator over this rank's batches of the mixture; the same global order for any `dp_size` and `batch_size`.

    sources: name to token source, for every name of the mixture; all of one tokenizer.
    seq_len: tokens predicted per sequence. batch_size: sequences per batch of this rank.
    global_batch_size: sequences per optimizer step over all ranks; default `batch_size * dp_size`, and a multiple of
    it. Each global batch is its consecutive positions; with `slot_permutation` their order inside it is shuffled.
    num_sequences: length of the stream over all ranks, a multiple of `global_batch_size`, checked against `max_epochs`
    here; the iterator stops after it. Without it, the iterator raises ValueError where a source is used up.
    seed: of the order of windows and slots.
    schedule: "tree" (`Schedule`, the default) or "strict" (`StrictSchedule`, a tighter bound).
    prefetch: batches that a thread reads ahead; 0 reads where it is asked. It changes neither stream nor state.

    Promises: the counts of every source are those of `Schedule`, at every global batch; in each epoch of a source
    every window is read exactly once; the stream is a pure function of sources, ratios, seq_len, seed and schedule.
    Raises ValueError for bad sizes, sources that are not the mixture's, two tokenizers, and over-asked sources.
    """

    def __init__(
        self,
        sources: Mapping[str, TokenSourceLike],
        mixture: Mixture | Mapping[str, Ratio],
        seq_len: int = 4096,
        batch_size: int = 4,
        dp_rank: int = 0,
        dp_size: int = 1,
        global_batch_size: int | None = None,
        seed: int = 0,
        num_sequences: int | None = None,
        slot_permutation: bool = True,
        schedule: str = "tree",
        prefetch: int = 0,
    ) -> None:
        self.seq_len = validate_count("seq_len", seq_len, at_least=1)
        self.batch_size = validate_count("batch_size", batch_size, at_least=1)
        self.dp_size = validate_count("dp_size", dp_size, at_least=1)
        self.dp_rank = validate_count("dp_rank", dp_rank)
        if self.dp_rank >= self.dp_size:
            raise ValueError(f"dp_rank {dp_rank} is no place among dp_size {dp_size}; ranks are 0 to {dp_size - 1}")
        per_call = self.batch_size * self.dp_size
        self.global_batch_size = validate_count(
            "global_batch_size", per_call if global_batch_size is None else global_batch_size, at_least=1
        )
        if self.global_batch_size % per_call:
            raise ValueError(
                f"global_batch_size {self.global_batch_size:,} is no multiple of batch_size x dp_size = "
                f"{self.batch_size:,} x {self.dp_size:,} = {per_call:,}; {_nearest(self.global_batch_size, per_call)}"
            )
        self.seed = _validate_seed(seed)
        self.mixture = mixture = mixture if isinstance(mixture, Mixture) else Mixture(mixture)
        validate_names(sources, mixture)
        _refuse_other_tokenizer({name: sources[name] for name in mixture.names})
        self.schedule = build_schedule(mixture, schedule)
        self.num_windows = {name: count_windows(sources[name].num_tokens, self.seq_len) for name in mixture.names}
        """Sequences of one pass over each source."""
        self.num_sequences = None if num_sequences is None else validate_count("num_sequences", num_sequences)
        # Without a length the first global batch is checked here, and the iterator checks the others.
        asked = self.global_batch_size if self.num_sequences is None else self.num_sequences
        plan = plan_report(sources, mixture, asked, self.seq_len, schedule=self.schedule)
        self._runs_out_at = plan.max_num_sequences
        self._prefetch = validate_count("prefetch", prefetch)
        self._reader = _Reader(
            order=GlobalOrder(self.schedule, self.num_windows, self.seed),
            windows=[sources[name].window for name in mixture.names],
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            global_batch_size=self.global_batch_size,
            first_slot=self.dp_rank * self.global_batch_size // self.dp_size,
            num_slots=self.global_batch_size // self.dp_size,
            slot_permutation=slot_permutation,
            end=self._runs_out_at if self.num_sequences is None else self.num_sequences,
        )
        self.fingerprint = self._fingerprint(sources, schedule)
        """What the stream is a function of, in parts that can be named: what `load_state_dict` compares."""
        self._position, self._micro_batch = 0, 0
        self._batches: Iterator[Batch] = iter(())
        self._go_to(0)

    # --- iteration ---

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._micro_batch == 0:
            if self.num_sequences is not None and self._position >= self.num_sequences:
                raise StopIteration
            if self._position + self.global_batch_size > self._runs_out_at:
                raise ValueError(
                    f"the sources are used up: a source exceeds its max_epochs at position {self._runs_out_at:,}, in "
                    f"the global batch at {self._position:,}. Raise its max_epochs, or give num_sequences "
                    f"to end before"
                )
        batch = next(self._batches)
        self._micro_batch += 1
        if self._micro_batch == self._micro_batches_per_global_batch:
            self._micro_batch = 0
            self._position += self.global_batch_size
        return batch

    @property
    def _micro_batches_per_global_batch(self) -> int:
        return self.global_batch_size // (self.dp_size * self.batch_size)

    @property
    def position(self) -> int:
        """Global sequence position of the next global batch: the sequences that all ranks together have been given."""
        return self._position

    @property
    def num_global_batches_done(self) -> int:
        """Global batches delivered whole, counted from position 0 at the present global_batch_size."""
        return self._position // self.global_batch_size

    def _go_to(self, position: int) -> None:
        left = None if self.num_sequences is None else self.num_sequences - position
        if left is not None and left % self.global_batch_size:
            raise ValueError(
                f"{left:,} sequences from position {position:,} to num_sequences {self.num_sequences:,} are no whole "
                f"number of global batches of {self.global_batch_size:,}; choose num_sequences so that "
                f"{_nearest(left, self.global_batch_size)} remain"
            )
        self._position, self._micro_batch = position, 0
        self._batches = self._reader.batches(position)
        if self._prefetch:
            self._batches = Prefetcher(self._batches, self._prefetch)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """`{"version", "fingerprint", "position"}`: plain data, the same on every rank, good for any number of ranks.

        Raises ValueError inside a global batch: some of its micro-batches are delivered and some are not.
        """
        if self._micro_batch:
            raise ValueError(
                f"state exists between global batches only; {self._micro_batch} of "
                f"{self._micro_batches_per_global_batch} micro-batches of the one at position {self._position:,} are "
                "delivered: take the state after the last"
            )
        return {"version": STATE_VERSION, "fingerprint": dict(self.fingerprint), "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any], *, ignore: Collection[str] = ()) -> None:
        """Go on at the state's position, in the order it was saved from; costs the same at any position.

        `dp_size`, `batch_size`, `global_batch_size`, `max_epochs`, `num_sequences` and `slot_permutation` may differ:
        the order of positions is not theirs (another global_batch_size cuts the same order into other batches).
        Raises ValueError for another version and, by name, for sources, ratios, seq_len, seed or schedule that differ.
        Names in `ignore` are let pass: then the loader goes on at that position as though it had always had its present
        settings, so windows may come again before their epoch is over, and `accounting` speaks of the present ratios.
        """
        if not isinstance(state, Mapping) or set(state) != {"version", "fingerprint", "position"}:
            keys = ", ".join(map(str, state)) if isinstance(state, Mapping) else repr(state)
            raise ValueError(f"no state of a mixture loader: expected version, fingerprint and position, got {keys}")
        if state["version"] != STATE_VERSION:
            raise ValueError(
                f"loader state of version {state['version']!r}; this release reads version {STATE_VERSION}. "
                "Resume with the release that wrote it"
            )
        saved, present = dict(state["fingerprint"]), self.fingerprint
        differing = {key: (saved.get(key), present.get(key)) for key in {**saved, **present}}
        differing = {key: pair for key, pair in differing.items() if pair[0] != pair[1]}
        refused = {key: pair for key, pair in differing.items() if key not in ignore}
        if refused:
            listed = "; ".join(f"{key} was {was}, is {now}" for key, (was, now) in sorted(refused.items()))
            raise ValueError(
                f"the state is of another stream: {listed}. Restore these settings, or, to go on at its position with "
                f"the present ones, load_state_dict(state, ignore={sorted(refused)})"
            )
        position = validate_count("the state's position", state["position"])
        if position > MAX_POSITION or (self.num_sequences is not None and position > self.num_sequences):
            raise ValueError(
                f"the state stands at position {position:,}, behind the end of this loader at "
                f"{self.num_sequences if self.num_sequences is not None else MAX_POSITION:,}; raise num_sequences"
            )
        self._go_to(position)

    def _fingerprint(self, sources: Mapping[str, TokenSourceLike], schedule: str) -> dict[str, str | int]:
        """Parts by name. Sources of ratio 0 have no part in the stream, nor has the order of the names."""
        read = sorted(name for name, ratio in self.mixture.ratios.items() if ratio)
        shards = {name: str(sources[name].fingerprint)[:16] for name in read}
        ratios = {name: str(self.mixture.ratios[name]) for name in read}
        parts: dict[str, str | int] = {"schedule": schedule, "seq_len": self.seq_len, "seed": self.seed}
        if len(read) > SOURCES_BY_NAME:
            full = {name: str(sources[name].fingerprint) for name in read}
            return parts | {"sources": sha256_json(full)[:16], "ratios": sha256_json(ratios)[:16]}
        parts |= {f"source.{name}": shard for name, shard in shards.items()}
        return parts | {f"ratio.{name}": ratio for name, ratio in ratios.items()}

    # --- accounting ---

    def accounting(self, position: int | None = None) -> dict[str, SourceAccount]:
        """Sequences, tokens and epochs of each source over all ranks before `position`; default: what is delivered.

        Exact at any position, past or future; reads no data.
        """
        position = self._position if position is None else validate_count("position", position)
        counts = self.schedule.counts(position).tolist()
        return {
            name: SourceAccount(count, count * self.seq_len, Fraction(count, self.num_windows[name] or 1))
            for name, count in zip(self.mixture.names, counts, strict=True)
        }


@dataclass(frozen=True)
class _Reader:
    """What makes batches of positions; knows nothing of where the loader stands, so a thread may run ahead with it."""

    order: GlobalOrder
    windows: Sequence[Callable[[int, int], npt.NDArray[Any]]]
    """`window(start, length)` of each source, by index."""
    seq_len: int
    batch_size: int
    global_batch_size: int
    first_slot: int
    """This rank's slots of every global batch: the first of them, and how many."""
    num_slots: int
    slot_permutation: bool
    end: int
    """Position that no global batch may exceed."""

    def batches(self, position: int) -> Iterator[Batch]:
        """This rank's micro-batches from the global batch at `position` on."""
        while (num_left := (self.end - position) // self.global_batch_size) > 0:
            num_batches = min(max(1, SEQUENCES_AHEAD // self.num_slots), num_left)
            positions = self.order.slots(
                position, num_batches, self.global_batch_size, self.first_slot, self.num_slots, self.slot_permutation
            ).ravel()
            source, _, window = self.order.locate(positions)
            starts = (window * self.seq_len).tolist()
            which = source.tolist()
            for first in range(0, len(starts), self.batch_size):
                rows = slice(first, first + self.batch_size)
                block = np.empty((self.batch_size, self.seq_len + 1), dtype=np.int32)
                for row, (i, start) in enumerate(zip(which[rows], starts[rows], strict=True)):
                    block[row] = self.windows[i](start, self.seq_len + 1)
                yield Batch(block, source[rows].copy(), positions[rows].copy())
            position += num_batches * self.global_batch_size


def _nearest(count: int, step: int) -> str:
    below = count // step * step
    return f"{below + step:,}" if below == 0 else f"{below:,} or {below + step:,}"


def _validate_seed(seed: int) -> int:
    try:
        return operator.index(seed)
    except TypeError:
        raise ValueError(f"seed must be a whole number, got {seed!r}") from None


def _refuse_other_tokenizer(sources: Mapping[str, TokenSourceLike]) -> None:
    first, *others = sources.items()
    expected = first[1].manifest["tokenizer"]
    for name, source in others:
        found = source.manifest["tokenizer"]
        if found["sha256"] != expected["sha256"]:
            raise ValueError(
                f"source {name!r} was tokenized with {found.get('name', 'another tokenizer')} "
                f"({found['sha256'][:12]}), source {first[0]!r} with {expected.get('name', 'another')} "
                f"({expected['sha256'][:12]}); one model reads one vocabulary: tokenize {name!r} again"
            )
