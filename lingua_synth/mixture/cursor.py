"""Where a rank stands inside a global batch: the state for loops that save after any batch they have drawn.

`MixtureLoader` keeps state between global batches, where it is good for any number of ranks. Loops of other people
count batch by batch and save where they like. Between global batches the state here is the loader's own, so that each
takes the other's; inside one, "given" is added: what every rank has been given of it, and what that depends on.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lingua_synth.mixture.batch import Batch
from lingua_synth.mixture.loader import MixtureLoader
from lingua_synth.mixture.mixture import Mixture
from lingua_synth.mixture.reader import SEQUENCES_AHEAD


def micro_batches(loader: MixtureLoader) -> int:
    """Batches of one rank in one global batch."""
    return loader.global_batch_size // (loader.dp_size * loader.batch_size)


def num_batches_from(loader: MixtureLoader, position: int) -> int:
    """Batches of one rank from the global batch at `position` to where the stream ends."""
    end = loader._reader.end if loader.num_sequences is None else min(loader._reader.end, loader.num_sequences)
    return max(0, end - position) // loader.global_batch_size * micro_batches(loader)


def read_batches(loader: MixtureLoader, position: int, first: int, step: int) -> Iterator[Batch]:
    """Batches number `first`, `first + step`, ... of this rank, counted from the global batch at `position`.

    The iteration of `loader` is not moved. Ends where it ends, and raises ValueError as it does when the sources are
    used up. Positions of others' batches are computed here and their tokens are not read.
    """
    reader, per_batch = loader._reader, micro_batches(loader)
    # As many of the batches read here are located in one sweep as the loader does of its own.
    sweep = max(1, SEQUENCES_AHEAD * step // reader.num_slots)
    end = num_batches_from(loader, position) // per_batch
    for begin in range(first // per_batch, end, sweep):
        count = min(sweep, end - begin)
        start = position + begin * loader.global_batch_size
        here = begin * per_batch
        skipped = first - here if first >= here else (first - here) % step
        rows = reader._positions(start, count).reshape(-1, loader.batch_size)[skipped::step]
        source, _, window = reader.order.locate(rows)
        for row in range(len(rows)):
            yield reader._read(rows[row].copy(), source[row].copy(), window[row])
    used_up = position + end * loader.global_batch_size
    is_over = loader.num_sequences is not None and used_up >= loader.num_sequences
    if not is_over and loader.mixture.on_exhaustion == "refuse":
        raise ValueError(
            f"the sources are used up: a source exceeds its max_epochs at position {reader.end:,}, in the global batch "
            f"at {used_up:,}. Raise its max_epochs, give num_sequences to end before, or set on_exhaustion"
        )


def state_at(loader: MixtureLoader, position: int, micro_batch: int) -> dict[str, Any]:
    """The state after the first `micro_batch` batches of the global batch at `position`, wherever `loader` stands.

    Plain data. Equal on every rank after equally many batches. With `micro_batch` 0, a state of `MixtureLoader`.
    """
    there = copy.copy(loader)  # a state is a function of the position alone; nothing is read
    there._position, there._micro_batch = position, 0
    state = there.state_dict()
    if micro_batch:
        state["given"] = {"sequences_per_rank": micro_batch * loader.batch_size} | slices(loader, position)
    return state


def resume(
    loader: MixtureLoader, state: Mapping[str, Any], *, earlier: Mixture | None = None, ignore: Collection[str] = ()
) -> int:
    """Put `loader` at the beginning of the state's global batch; the batches of it that this rank has been given.

    What may differ, `earlier` and `ignore`: as `MixtureLoader.load_state_dict`. Inside a global batch the ranks'
    slices of it must be what they were: raises ValueError, by name, for another dp_size, global_batch_size,
    slot_permutation or mixture, and for a batch_size that does not divide what was given. A refused state moves
    nothing.
    """
    given = state.get("given") if isinstance(state, Mapping) else None
    whole = state if given is None else {key: value for key, value in state.items() if key != "given"}
    before = dict(vars(loader))
    try:
        loader.load_state_dict(whole, earlier=earlier, ignore=ignore)
        return 0 if given is None else _given_batches(loader, given)
    except BaseException:
        vars(loader).update(before)
        raise


def slices(loader: MixtureLoader, position: int) -> dict[str, Any]:
    """What decides which rank is given what, up to the end of the global batch at `position`."""
    return {
        "dp_size": loader.dp_size,
        "global_batch_size": loader.global_batch_size,
        "slot_permutation": loader._slot_permutation,
        "mixture": loader.schedule.course.history_sha256(position + loader.global_batch_size),
    }


def _given_batches(loader: MixtureLoader, given: Any) -> int:
    present = slices(loader, loader.position)
    sequences = given.get("sequences_per_rank") if isinstance(given, Mapping) else None
    if type(sequences) is not int or set(given) != {"sequences_per_rank", *present}:
        raise ValueError(
            f"no state of a mixture: 'given' should tell sequences_per_rank, {', '.join(present)}; it is {given!r}"
        )
    where = f"the state was taken inside a global batch, of which each rank had been given {sequences} sequences"
    way_out = (
        "Go on with the former settings to the end of that global batch, or take 'given' out of the state to read the "
        "whole global batch again"
    )
    different = [f"{key} was {given[key]}, is {now}" for key, now in present.items() if given[key] != now]
    if different:
        raise ValueError(f"{where}; it cannot go on there in other slices: {', '.join(different)}. {way_out}")
    per_rank = loader.global_batch_size // loader.dp_size
    if not 0 < sequences < per_rank or sequences % loader.batch_size:
        raise ValueError(f"{where}; batch_size {loader.batch_size} does not divide them. {way_out}")
    return sequences // loader.batch_size
