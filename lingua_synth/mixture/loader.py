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

from lingua_synth.files import sha256_json
from lingua_synth.mixture.batch import Batch
from lingua_synth.mixture.order import GlobalOrder
from lingua_synth.mixture.plan import TokenSourceLike, count_windows, plan_report, validate_names
from lingua_synth.mixture.prefetch import Prefetcher
from lingua_synth.mixture.ratios import Mixture, Ratio, validate_count
from lingua_synth.mixture.reader import Reader
from lingua_synth.mixture.schedule import MAX_POSITION
from lingua_synth.mixture.strict import build_schedule

STATE_VERSION = 1
# Sources whose shards and ratio the state names one by one; of more it keeps one hash, to stay small.
SOURCES_BY_NAME = 16


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
    n_views: columns of a row beyond its inputs, plus 1: 2 gives tokens and labels, more give tokens further ahead.
    document_boundaries: tell for each token which document of its row it belongs to (`Batch.document`).
    pin_memory: read into page-locked memory, from which copies to a GPU run beside its work; without CUDA, no effect.

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
        n_views: int = 2,
        document_boundaries: bool = False,
        pin_memory: bool = False,
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
        self.n_views = validate_count("n_views", n_views, at_least=2)
        self.seed = _validate_seed(seed)
        self.mixture = mixture = mixture if isinstance(mixture, Mixture) else Mixture(mixture)
        validate_names(sources, mixture)
        _refuse_other_tokenizer({name: sources[name] for name in mixture.names})
        self.schedule = build_schedule(mixture, schedule)
        self.num_windows = {
            name: count_windows(sources[name].num_tokens, self.seq_len, self.n_views) for name in mixture.names
        }
        """Sequences of one pass over each source."""
        self.num_sequences = None if num_sequences is None else validate_count("num_sequences", num_sequences)
        # Without a length the first global batch is checked here, and the iterator checks the others.
        asked = self.global_batch_size if self.num_sequences is None else self.num_sequences
        plan = plan_report(sources, mixture, asked, self.seq_len, schedule=self.schedule, n_views=self.n_views)
        self._runs_out_at = plan.max_num_sequences
        self._prefetch = validate_count("prefetch", prefetch)
        self._reader = Reader(
            order=GlobalOrder(self.schedule, self.num_windows, self.seed),
            windows=[sources[name].window for name in mixture.names],
            documents=_document_starts(sources, mixture.names) if document_boundaries else None,
            seq_len=self.seq_len,
            n_views=self.n_views,
            batch_size=self.batch_size,
            global_batch_size=self.global_batch_size,
            first_slot=self.dp_rank * self.global_batch_size // self.dp_size,
            num_slots=self.global_batch_size // self.dp_size,
            slot_permutation=slot_permutation,
            pin_memory=pin_memory and _has_cuda(),
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
        if self._micro_batch == self._reader.micro_batches:
            self._micro_batch = 0
            self._position += self.global_batch_size
        return batch

    @property
    def position(self) -> int:
        """Global sequence position of the next global batch: the sequences that all ranks together have been given."""
        return self._position

    @property
    def micro_batch(self) -> int:
        """Batches of the present global batch that this rank has been given."""
        return self._micro_batch

    @property
    def num_batches(self) -> int | None:
        """Batches of this rank from position 0 to `num_sequences`; None for a stream without that length."""
        if self.num_sequences is None:
            return None
        return self.num_sequences // self.global_batch_size * self._reader.micro_batches

    def batch_at(self, index: int) -> Batch:
        """This rank's batch number `index`, counted from position 0: what iterating from there would come to.

        A pure function: batches may be asked for in any order, and the iteration is not moved.
        Raises ValueError for a batch that the stream does not have.
        """
        global_batch, micro_batch = divmod(validate_count("index", index), self._reader.micro_batches)
        position = global_batch * self.global_batch_size
        if position + self.global_batch_size > self._reader.end:
            raise ValueError(
                f"no batch {index:,}: the stream ends at position {self._reader.end:,}, and the batch belongs to the "
                f"global batch at {position:,}"
            )
        return self._reader.batch_at(position, micro_batch)

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
                f"{self._reader.micro_batches} micro-batches of the one at position {self._position:,} are "
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


def _nearest(count: int, step: int) -> str:
    below = count // step * step
    return f"{below + step:,}" if below == 0 else f"{below:,} or {below + step:,}"


def _document_starts(sources: Mapping[str, TokenSourceLike], names: Sequence[str]) -> list[Callable[[int, int], Any]]:
    found = []
    for name in names:
        document_starts = getattr(sources[name], "document_starts", None)
        if document_starts is None:
            raise ValueError(f"source {name!r} cannot tell where its documents begin; drop document_boundaries")
        found.append(document_starts)
    return found


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


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
