"""A run's sequences as a list: item k is the k-th of the global order, for samplers and data sources of others."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lingua_synth.mixture.loader import MixtureLoader
from lingua_synth.mixture.mixture import Mixture
from lingua_synth.mixture.permutation import permute
from lingua_synth.mixture.plan import TokenSourceLike
from lingua_synth.mixture.ratios import Ratio, validate_count
from lingua_synth.tokens import TokenSource


class MixtureSequences:
    """The `num_sequences` sequences of a run, at random access: a map-style dataset of torch, a data source of grain.

    Item k is a dict: `block`, the token ids, int32 `[seq_len + n_views - 1]` (inputs `block[:seq_len]`, labels
    `block[1 : seq_len + 1]`); `source`, index in the order of the mixture; `window`, of the source, beginning at token
    window * seq_len; `epoch`, whole passes over the source (over its `part`) before it; `position`, in the schedule;
    and where a source holds conversations, `scored`, which labels count, bool `[seq_len]`.

    Items in order are the rows of a `MixtureLoader` of one rank with the same arguments, `settings` being its seed,
    schedule, n_views and part. `global_batch_size` is needed because slots are shuffled inside each global batch: every
    run of items that begins at a multiple of it and is as long has exact counts of every source, and readers that
    take every n-th item fall into no period of the schedule. A sampler that shuffles over the whole run gives that
    up: then shares are exact over the whole run only.

    Pickles to worker processes; token shards are opened there again. Raises ValueError for bad arguments and
    over-asked sources, as `MixtureLoader` and `plan_report` do, and when shards were changed in between; IndexError
    for an item outside [0, num_sequences).
    """

    def __init__(
        self,
        sources: Mapping[str, TokenSourceLike],
        mixture: Mixture | Mapping[str, Ratio],
        seq_len: int,
        num_sequences: int,
        global_batch_size: int,
        **settings: Any,
    ) -> None:
        unknown = sorted(set(settings) - {"seed", "schedule", "n_views", "part"})
        if unknown:
            raise ValueError(f"no settings {unknown} of sequences; there are: seed, schedule, n_views, part")
        validate_count("num_sequences", num_sequences, at_least=1)
        self._arguments: dict[str, Any] = dict(settings)
        self._arguments["mixture"] = mixture if isinstance(mixture, Mixture) else Mixture(mixture)
        self._arguments.update(seq_len=seq_len, num_sequences=num_sequences, global_batch_size=global_batch_size)
        self._sources = dict(sources)
        self._loader = MixtureLoader(self._sources, batch_size=1, **self._arguments)

    def __len__(self) -> int:
        assert self._loader.num_sequences is not None, "the length was given"
        return self._loader.num_sequences

    def __getitem__(self, k: int) -> dict[str, Any]:
        return self.__getitems__([k])[0]

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """Many items at once, in less time; torch's DataLoader asks for a batch in this way."""
        loader, order = self._loader, self._loader._reader.order
        size, length = loader.global_batch_size, loader.seq_len + loader.n_views - 1
        for item in items:
            if not 0 <= operator.index(item) < len(self):
                raise IndexError(f"no item {item}: there are {len(self):,} sequences")
        k = np.array([operator.index(item) for item in items], dtype=np.int64)
        slot = k % size
        positions = k - slot + permute(slot, size, order._slot_key, k - slot)  # as GlobalOrder.slots, for scattered k
        found = []
        for position, i, epoch, window in zip(
            positions.tolist(), *(column.tolist() for column in order.locate(positions)), strict=True
        ):
            tokens = loader._reader.windows[i](window * loader.seq_len, length)
            block = np.array(tokens, dtype=np.int32)  # a copy: workers and collations may write into it
            row: dict[str, Any] = {"block": block, "source": i, "window": window, "epoch": epoch, "position": position}
            if (scored := loader._reader.scored) is not None:
                of_source = scored[i]
                ones = np.ones(loader.seq_len, dtype=bool)
                start = window * loader.seq_len + 1
                row["scored"] = ones if of_source is None else of_source(start, loader.seq_len)
            found.append(row)
        return found

    def __repr__(self) -> str:
        return f"MixtureSequences({len(self):,} of {self._loader.seq_len} tokens: {self._loader.mixture!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": self._arguments, "sources": portable_sources(self._sources)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._arguments = state["arguments"]
        self._sources = reopen_sources(state["sources"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said where it was made
            self._loader = MixtureLoader(self._sources, batch_size=1, **self._arguments)


def portable_sources(sources: Mapping[str, TokenSourceLike]) -> dict[str, Any]:
    """`sources` for a pickle: token shards by path and fingerprint, for else their mapped tokens would be copied."""
    return {
        name: _Shards(str(source.path.absolute()), source.fingerprint) if isinstance(source, TokenSource) else source
        for name, source in sources.items()
    }


def reopen_sources(portable: Mapping[str, Any]) -> dict[str, TokenSourceLike]:
    """The inverse of `portable_sources`; ValueError for shards that are others by now."""
    return {name: source.open() if isinstance(source, _Shards) else source for name, source in portable.items()}


class _Shards:
    """Token shards by path."""

    def __init__(self, path: str, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint

    def open(self) -> TokenSource:
        source = TokenSource(self.path, check=False)  # its files were compared where it was first opened
        if source.fingerprint != self.fingerprint:
            raise ValueError(f"{self.path} holds other shards than when it was first opened; start the run again")
        return source
