"""The loader: one rank's batches of one global order, resumable from one integer.

sources ──GlobalOrder──> positions of this rank ──read windows──> Batch: one int32 block [batch, seq_len + 1]

Each global batch is `global_batch_size` consecutive positions. Rank r of n reads a contiguous n-th of its slots, in
micro-batches of `batch_size`. So the sequences of every global batch, and their order, are the same for any number of
ranks and any micro-batch; a run saved on 8 ranks goes on on 2, and the state is a position and a fingerprint.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lingua_synth.files import sha256_json
from lingua_synth.mixture.batch import Batch
from lingua_synth.mixture.course import Course, validate_history
from lingua_synth.mixture.mixture import Mixture
from lingua_synth.mixture.order import GlobalOrder
from lingua_synth.mixture.plan import (
    MixturePlan,
    Part,
    TokenSourceLike,
    count_part,
    count_windows,
    follow,
    part_of,
    plan_report,
    validate_names,
    validate_part,
)
from lingua_synth.mixture.prefetch import Prefetcher
from lingua_synth.mixture.ratios import Ratio, validate_count
from lingua_synth.mixture.reader import Reader
from lingua_synth.mixture.schedule import MAX_POSITION, Schedule
from lingua_synth.mixture.strict import StrictSchedule

STATE_VERSION = 2
# Sources whose shards and ratios the state names one by one; of more it keeps hashes, to stay small.
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
    part: share of every source's windows that is read at all (rounded up), drawn by the seed, a smaller part inside a
    larger one; the others are never read, and passes count the part. Or shares by name: sources that are not named are
    read whole, in the order they have without any part. None: all.
    state: a saved state to begin at, as `load_state_dict`; then only what is still to be read is checked against the
    sources, so that a mixture may be new that they could not have served from the start.

    Sources that say which of their tokens are scored (`is_masked`: answers of conversations) fill `Batch.scored`.
    Ratios count training tokens all the same, scored or not.

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
        state: Mapping[str, Any] | None = None,
        part: Part = None,
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
        self.part = validate_part(part, mixture.names)
        self._all_windows = {
            name: count_windows(sources[name].num_tokens, self.seq_len, self.n_views) for name in mixture.names
        }
        self.num_windows = {name: count_part(n, part_of(part, name)) for name, n in self._all_windows.items()}
        """Sequences of one pass over each source."""
        self.schedule: Schedule | StrictSchedule
        """What the stream follows, from the first position on."""
        self.plan: MixturePlan | None
        """What the run asks of its sources, and what happens where one is used up; None without `num_sequences`."""
        self.num_sequences: int | None
        """Length of the stream; below the one asked for where `on_exhaustion` ends it before."""
        self._sources = {name: sources[name] for name in mixture.names}
        self._kind = schedule
        self._asked = None if num_sequences is None else validate_count("num_sequences", num_sequences)
        self._prefetch = validate_count("prefetch", prefetch)
        self._document_boundaries = document_boundaries
        self._pin_memory = pin_memory and _has_cuda()
        self._slot_permutation = slot_permutation
        self._position, self._micro_batch = 0, 0
        self._batches: Iterator[Batch] = iter(())
        self._follow(None, validate=state is None)
        if state is not None:
            self.load_state_dict(state)
        else:
            self._warn_of_notices()
            self._go_to(0)

    def _warn_of_notices(self) -> None:
        if self.dp_rank == 0 and self.plan is not None:
            for notice in self.plan.notices():
                warnings.warn(f"mixture: {notice}", stacklevel=4)

    def _follow(self, after: tuple[Course, int] | None, validate: bool = True) -> None:
        """Settle the schedule and the end of the stream; `after`: the course behind it, up to a position."""
        mixture, sources = self.mixture, self._sources
        if self._asked is None:
            followed = follow(mixture, self.num_windows, None, self.seq_len, schedule=self._kind, after=after)
            self.plan, self.schedule, self._end = None, followed.schedule, followed.end
            start = after[1] if after else 0
            if validate and followed.end is not None and followed.end < start + self.global_batch_size:
                if mixture.is_constant and after is None:  # the plan of one global batch has the numbers
                    constant = Mixture(mixture.ratios, mixture.max_epochs)
                    plan_report(
                        sources, constant, self.global_batch_size, self.seq_len, n_views=self.n_views, part=self.part
                    )
                raise ValueError(
                    f"the sources are used up at position {followed.end:,}: they cannot give one global batch of "
                    f"{self.global_batch_size:,} sequences from position {start:,}; raise max_epochs or lower it"
                )
            self.num_sequences = None
        else:
            self.plan = plan_report(
                sources,
                mixture,
                self._asked,
                self.seq_len,
                schedule=self._kind,
                n_views=self.n_views,
                validate=validate,
                after=after,
                part=self.part,
            )
            self.schedule, self._end = self.plan.schedule, self.plan.end
            self.num_sequences = self._asked
            if self.plan.end < self._asked:
                self.num_sequences = self.plan.end // self.global_batch_size * self.global_batch_size
        self._reader = Reader(
            order=GlobalOrder(
                self.schedule,
                self.num_windows,
                self.seed,
                {name: n for name, n in self._all_windows.items() if part_of(self.part, name) is not None},
            ),
            windows=[source.window for source in sources.values()],
            documents=_document_starts(sources) if self._document_boundaries else None,
            scored=_scored(sources) if self.is_masked else None,
            seq_len=self.seq_len,
            n_views=self.n_views,
            batch_size=self.batch_size,
            global_batch_size=self.global_batch_size,
            first_slot=self.dp_rank * self.global_batch_size // self.dp_size,
            num_slots=self.global_batch_size // self.dp_size,
            slot_permutation=self._slot_permutation,
            pin_memory=self._pin_memory,
            end=MAX_POSITION if self._end is None else self._end,
        )

    @property
    def is_masked(self) -> bool:
        """Whether batches say which labels count: a source holds conversations of which only answers are learned."""
        return any(getattr(source, "is_masked", False) for source in self._sources.values())

    # --- iteration ---

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._micro_batch == 0:
            if self.num_sequences is not None and self._position >= self.num_sequences:
                raise StopIteration
            if self._position + self.global_batch_size > self._reader.end:
                if self.mixture.on_exhaustion != "refuse":
                    raise StopIteration
                raise ValueError(
                    f"the sources are used up: a source exceeds its max_epochs at position {self._reader.end:,}, in "
                    f"the global batch at {self._position:,}. Raise its max_epochs, give num_sequences to end before, "
                    "or set on_exhaustion"
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
        """Plain data, the same on every rank, good for any number of ranks: version, fingerprint, position, stages.

        `stages` is the history of the ratios up to the position; a strict schedule adds its counters.

        Raises ValueError inside a global batch: some of its micro-batches are delivered and some are not.
        """
        if self._micro_batch:
            raise ValueError(
                f"state exists between global batches only; {self._micro_batch} of "
                f"{self._reader.micro_batches} micro-batches of the one at position {self._position:,} are "
                "delivered: take the state after the last"
            )
        state = {"version": STATE_VERSION, "fingerprint": dict(self.fingerprint), "position": self._position}
        course = self.schedule.course
        by_name = len(course.read) <= SOURCES_BY_NAME
        state["stages"] = course.history(self._position) if by_name else course.history_sha256(self._position)
        if isinstance(self.schedule, StrictSchedule):
            counts = self.schedule.counts(self._position).tolist()
            state["counts"] = dict(zip(self.mixture.names, counts, strict=True))
        return state

    def load_state_dict(
        self, state: Mapping[str, Any], *, earlier: Mixture | None = None, ignore: Collection[str] = ()
    ) -> None:
        """Go on at the state's position, in the order it was saved from; costs the same at any position.

        `dp_size`, `batch_size`, `global_batch_size`, `max_epochs`, `num_sequences` and `slot_permutation` may differ:
        the order of positions is not theirs (another global_batch_size cuts the same order into other batches).

        The mixture may differ: what was read keeps its course, and the present mixture holds from the position on, as
        one more stage, with a warning that says so. Sources may be new; one that was read stays listed, with ratio 0
        if it is read no more. (Of more than SOURCES_BY_NAME sources the state keeps only a hash of its mixture: then
        give that as `earlier`.)

        Raises ValueError for another version and, by name, for a source of other data, another seq_len, seed,
        schedule or n_views. Names in `ignore` are let pass: then the loader goes on at that position as though it had
        always had its present settings, so windows may come again before their epoch is over.
        """
        keys = set(state) if isinstance(state, Mapping) else set()
        if "version" in keys and state["version"] != STATE_VERSION:
            raise ValueError(
                f"loader state of version {state['version']!r}; this release reads version {STATE_VERSION}. "
                "Resume with the release that wrote it"
            )
        if keys - {"counts"} != {"version", "fingerprint", "position", "stages"}:
            found = ", ".join(map(str, state)) if isinstance(state, Mapping) else repr(state)
            raise ValueError(
                f"no state of a mixture loader: expected version, fingerprint, position and stages, got {found}"
            )
        position = validate_count("the state's position", state["position"])
        course = self._course_of(state, position, earlier)
        self._refuse_other_stream(dict(state["fingerprint"]), course, position, ignore)
        before = dict(vars(self))
        try:
            self._resume(position, course, state.get("counts"))
        except BaseException:
            vars(self).update(before)  # a state that is refused leaves the loader where it was
            raise

    def change_ratios(self, ratios: Mapping[str, Ratio]) -> None:
        """Follow other constant `ratios` of the same sources from the present position on.

        What was read keeps its course and its accounting, and the state remembers both. Batches that were read ahead
        are dropped. Raises ValueError inside a global batch, for another set of sources, and for ratios by which a
        source would exceed its max_epochs where the mixture refuses that; the loader is then where it was.
        """
        if self._micro_batch:
            raise ValueError(
                f"ratios change between global batches only; {self._micro_batch} of {self._reader.micro_batches} "
                "micro-batches of the present one are delivered"
            )
        named = {name: ratios.get(name, 0) for name in self.mixture.names}
        if set(ratios) - set(named):
            raise ValueError(f"ratios of {', '.join(ratios)}; the sources are {', '.join(named)}")
        before, position, course = dict(vars(self)), self._position, self.schedule.course
        counts = self.schedule.counts(position).tolist()
        try:
            self.mixture = Mixture(named, before["mixture"].max_epochs, on_exhaustion=before["mixture"].on_exhaustion)
            self._follow((course, position))
            if isinstance(self.schedule, StrictSchedule):
                self.schedule.remember(position, counts)
            self._go_to(position)
        except BaseException:
            vars(self).update(before)
            raise

    def _resume(self, position: int, course: Course | None, counts: Any) -> None:
        self._follow(None, validate=False)
        if course is None or course.history(position) == self.schedule.course.history(position):
            self._follow(None)
        else:
            self._follow((course, position))
            before, later = course.until(position)[-1], self.schedule.course.from_position(position)[0]
            if self.dp_rank == 0 and not before.goes_on_as(later):
                warnings.warn(
                    f"the mixture has changed: up to position {position:,} ({position * self.seq_len:,} tokens) the "
                    f"run keeps what it has read, {before.in_words()}; from there on it follows "
                    f"{later.in_words()}",
                    stacklevel=4,
                )
            self._warn_of_notices()
        if counts is not None and isinstance(self.schedule, StrictSchedule):
            by_name = counts if isinstance(counts, Mapping) else {}
            self.schedule.remember(position, [int(by_name.get(name, 0)) for name in self.mixture.names])
        end = self._reader.end if self.num_sequences is None else self.num_sequences
        if position > min(end, MAX_POSITION):
            raise ValueError(
                f"the state stands at position {position:,}, behind the end of this loader at {end:,}; raise "
                "num_sequences"
            )
        self._go_to(position)

    def _course_of(self, state: Mapping[str, Any], position: int, earlier: Mixture | None) -> Course | None:
        """The course a state was saved on, up to its position; None where it is this loader's own."""
        saved = state["stages"]
        if position == 0:
            return None
        if not isinstance(saved, str):
            spans = validate_history(saved)
            return Course(tuple(dict.fromkeys(name for span in spans for name in span.names)), spans)
        if saved == self.schedule.course.history_sha256(position):
            return None
        if earlier is None:
            raise ValueError(
                f"the state is of another mixture, of more than {SOURCES_BY_NAME} sources, of which it keeps only the "
                "hash: load_state_dict(state, earlier=Mixture(...)) with the mixture it was saved with"
            )
        course = follow(earlier, self.num_windows, self._asked, self.seq_len, schedule=self._kind).schedule.course
        if saved != course.history_sha256(position):
            raise ValueError("the mixture given as `earlier` is not the one that the state was saved with")
        return course

    def _refuse_other_stream(
        self, saved: Mapping[str, Any], course: Course | None, position: int, ignore: Collection[str]
    ) -> None:
        """ValueError, by name, for what makes the order another than the one the state is a position in."""
        read = self.schedule.course.read if course is None else course.read
        target = dict(zip(course.names, course.target(position), strict=True)) if course else {}
        lost = [name for name in read if name not in self._sources and target.get(name, Fraction(1))]
        if lost:
            raise ValueError(
                f"the state has read source {', '.join(map(repr, lost))}, which is not in the mixture; list it with "
                "ratio 0 to read it no more"
            )
        named = {key.removeprefix("source.") for key in saved if key.startswith("source.")}
        present = self._fingerprint(named & set(self._sources) if named else read)
        compared = {
            key for key in {**saved, **present} if key.removeprefix("source.") not in named - set(self._sources)
        }
        different = {key: (saved.get(key), present.get(key)) for key in compared if saved.get(key) != present.get(key)}
        refused = {key: pair for key, pair in different.items() if key not in ignore}
        if refused:
            listed = "; ".join(f"{key} was {was}, is {now}" for key, (was, now) in sorted(refused.items()))
            raise ValueError(
                f"the state is of another stream: {listed}. Restore these settings, or, to go on at its position with "
                f"the present ones, load_state_dict(state, ignore={sorted(refused)})"
            )

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """What the stream is a function of beside the mixture, in parts that can be named."""
        return self._fingerprint(self.schedule.course.read)

    def _fingerprint(self, read: Collection[str]) -> dict[str, str | int]:
        """Parts by name. Sources that are never read have no part in the stream, nor has the order of the names."""
        parts: dict[str, str | int] = {"schedule": self._kind, "seq_len": self.seq_len, "seed": self.seed}
        if self.n_views != 2:
            parts["n_views"] = self.n_views
        if isinstance(self.part, Mapping):
            if listed := [f"{name} {self.part[name]}" for name in sorted(read) if name in self.part]:
                parts["part"] = ", ".join(listed)
        elif self.part is not None:
            parts["part"] = str(self.part)
        shards = {name: str(self._sources[name].fingerprint) for name in sorted(read)}
        if len(read) > SOURCES_BY_NAME:
            return parts | {"sources": sha256_json(shards)[:16]}
        return parts | {f"source.{name}": shard[:16] for name, shard in shards.items()}

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


def _document_starts(sources: Mapping[str, TokenSourceLike]) -> list[Callable[[int, int], Any]]:
    found = []
    for name, source in sources.items():
        document_starts = getattr(source, "document_starts", None)
        if document_starts is None:
            raise ValueError(f"source {name!r} cannot tell where its documents begin; drop document_boundaries")
        found.append(document_starts)
    return found


def _scored(sources: Mapping[str, TokenSourceLike]) -> list[Callable[[int, int], Any] | None]:
    found: list[Callable[[int, int], Any] | None] = []
    for source in sources.values():
        assert not getattr(source, "is_masked", False) or hasattr(source, "scored"), "what is masked says where"
        found.append(getattr(source, "scored", None) if getattr(source, "is_masked", False) else None)
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
