"""One way of reading the corpus, in a process of its own, driven by `measure.Worker`: `python readers.py NAME DATA`.

Runs with an interpreter that may have nothing but numpy and one peer: it imports nothing of the project, except to
measure it. Each reader is opened (at the start, or from a state), gives batches of `batch` sequences of `seq_len`
tokens, and tells its state. How each peer is configured is here, and only here.

Commands, one line of JSON each: convert, open, read, state, resume, memory. Times are of this process: `wall` seconds
and `cpu` seconds of all its threads.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import pickle
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from answering import answer_all, failure, methods_of, silence, take_output

# Sequences of an "epoch", for the peers that must be told a length.
EPOCH_SEQUENCES = 1 << 16
# In one measurement, of a stream that ends: an epoch of a small corpus is short.
MAX_OPENINGS = 100


class Data:
    """Where the corpus is, in which form, and what is asked of the reader; from the parent, as JSON."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.folder = Path(described["folder"])
        """Of flat/, shards/ and letters/."""
        self.converted = Path(described["converted"]) if described.get("converted") else None
        """Of the reader's own format."""
        self.sources: list[str] = described["sources"]
        self.ratios: list[str] = described["ratios"]
        self.seq_len: int = described["seq_len"]
        self.batch: int = described["batch"]
        self.num_sequences: int | None = described.get("num_sequences")
        """Length of the run; None: what the reader does without one."""
        self.lingua_dir: str | None = described.get("lingua_dir")
        self.text: str | None = described.get("text")
        """Of the jsonl files, for the readers of text."""
        self.tokenizer: dict[str, Any] = described.get("tokenizer", {})

    @property
    def shares(self) -> list[float]:
        """The ratios as floats, as every peer takes them."""
        return [float(int(n) / int(d)) for n, d in (ratio.split("/") for ratio in self.ratios)]

    def flat(self) -> list[np.ndarray]:
        """Ids of each source, int32, mapped."""
        return [np.memmap(self.folder / "flat" / f"{name}.int32", np.int32, "r") for name in self.sources]

    def windows(self) -> list[np.ndarray]:
        """Each source as `[windows, seq_len]`, mapped."""
        return [ids[: len(ids) // self.seq_len * self.seq_len].reshape(-1, self.seq_len) for ids in self.flat()]

    def documents(self) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """The documents of each source, as arrays of ids."""
        for name, ids in zip(self.sources, self.flat(), strict=True):
            ends = np.cumsum(np.load(self.folder / "flat" / f"{name}.lengths.npy"))
            yield name, (np.asarray(part) for part in np.split(ids, ends[:-1]))


class Reader(ABC):
    """What is measured. `__init__` imports the library; `open` makes batches ready to be asked for."""

    package = "numpy"
    ahead = 0
    """Batches that may be ready before they are asked for: so many are read before the clock starts."""

    def __init__(self, data: Data) -> None:
        self.data = data

    @abstractmethod
    def open(self, state: Any = None) -> None:
        """Begin at the start of the stream, or at `state`."""

    @abstractmethod
    def next(self) -> Any:
        """The next batch, an array or tensor `[batch, ...]`."""

    @abstractmethod
    def state(self) -> Any:
        """What `open` takes to go on behind the last batch."""

    def state_at(self, position: int) -> Any:
        """The state after `position` sequences without having read them; LookupError where that cannot be had."""
        raise LookupError("its state at a position comes only from having read up to it")

    def close(self) -> None:  # noqa: B027 - most have nothing
        """Let go of what `open` made."""


# --- floors: the least that a loader could do, in numpy ---


class Contiguous(Reader):
    """One source from its beginning: no mixture, no order. Memory bandwidth and one allocation a batch."""

    def open(self, state: Any = None) -> None:
        self._source = self.data.windows()[0]
        self._batch = state or 0

    def next(self) -> Any:
        first = self._batch * self.data.batch % (len(self._source) - self.data.batch)
        self._batch += 1
        return np.array(self._source[first : first + self.data.batch])

    def state(self) -> Any:
        return self._batch


class ExactMix(Reader):
    """Two sources in exact shares, windows in a random order that is held in memory: what an exact mixture must do."""

    def open(self, state: Any = None) -> None:
        self._sources = self.data.windows()
        self._orders = [np.random.default_rng(i).permutation(len(s)).tolist() for i, s in enumerate(self._sources)]
        numerator, denominator = self.data.ratios[1].split("/")
        self._share = int(numerator), int(denominator)
        self._position = state or 0

    def next(self) -> Any:
        block = np.empty((self.data.batch, self.data.seq_len), np.int32)
        a, b = self._share
        for row in range(self.data.batch):
            k = self._position + row
            before, after = (2 * a * k + b) // (2 * b), (2 * a * (k + 1) + b) // (2 * b)
            i, j = (0, k - before) if before == after else (1, before)
            order = self._orders[i]
            block[row] = self._sources[i][order[j % len(order)]]
        self._position += self.data.batch
        return block

    def state(self) -> Any:
        return self._position


# --- the project ---


class Ours(Reader):
    """`MixtureLoader` over the token shards, read where it is asked."""

    package = "lingua_synth"
    prefetch = 0

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from lingua_synth.mixture import Mixture, MixtureLoader
        from lingua_synth.tokens import TokenSource

        self._mixture, self._loader_class, self._source_class = Mixture, MixtureLoader, TokenSource
        self.ahead = self.prefetch

    def open(self, state: Any = None) -> None:
        data = self.data
        sources = {name: self._source_class(data.folder / "shards" / name) for name in data.sources}
        mixture = self._mixture(dict(zip(data.sources, data.ratios, strict=True)), max_epochs=10**7)
        self._loader = self._loader_class(
            sources,
            mixture,
            data.seq_len,
            data.batch,
            num_sequences=data.num_sequences,
            prefetch=self.prefetch,
            state=state,
        )

    def next(self) -> Any:
        return next(self._loader).block

    def state(self) -> Any:
        return self._loader.state_dict()

    def state_at(self, position: int) -> Any:
        self.open()
        return {**self.state(), "position": position}

    def close(self) -> None:
        del self._loader


class OursPrefetch(Ours):
    """The same with batches read ahead by a thread."""

    prefetch = 8


# --- peers, over the same ids ---


class Grain(Reader):
    """grain: `MapDataset.mix` of two shuffled, repeated sources over the mapped flat files, read where it is asked."""

    package = "grain"
    threads: int | None = 0

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        import grain

        self._grain = grain
        # grain's default is 16 threads and a buffer of 500 elements.
        self.ahead = 0 if self.threads == 0 else 500 // data.batch + 1

    def open(self, state: Any = None) -> None:
        grain, data = self._grain, self.data

        class Windows:
            def __init__(self, windows: np.ndarray) -> None:
                self._windows = windows

            def __len__(self) -> int:
                return len(self._windows)

            def __getitem__(self, i: int) -> np.ndarray:
                return np.array(self._windows[i])

        parts = [
            grain.MapDataset.source(Windows(windows)).seed(i).shuffle().repeat()
            for i, windows in enumerate(data.windows())
        ]
        mixed = grain.MapDataset.mix(parts, weights=data.shares)
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0) if self.threads == 0 else grain.ReadOptions()
        self._iterator = iter(mixed.to_iter_dataset(options).batch(data.batch, drop_remainder=True))
        if state is not None:
            self._iterator.set_state(state)

    def next(self) -> Any:
        return next(self._iterator)

    def state(self) -> Any:
        return self._iterator.get_state()

    def state_at(self, position: int) -> Any:
        self.open()
        for _ in range(2):
            self.next()
        # The one number in the state that is the position; a release that says it otherwise is not guessed at.
        found = json.dumps(self.state())
        wanted = f'"next_index": {2 * self.data.batch}'
        if found.count(wanted) != 1:
            raise LookupError("no single next_index in its state")
        return json.loads(found.replace(wanted, f'"next_index": {position}'))


class GrainThreads(Grain):
    """The same with grain's default threads and buffer."""

    threads = None


class Megatron(Reader):
    """Megatron core: two `GPTDataset` blended, indices cached on disk, torch's DataLoader without workers."""

    package = "megatron-core"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        # Before torch: where Megatron core is missing, torch takes a second for nothing.
        from megatron.core.datasets import blended_megatron_dataset_builder, gpt_dataset  # isort: skip
        import torch

        torch.set_num_threads(1)
        self._torch, self._builder, self._gpt = torch, blended_megatron_dataset_builder, gpt_dataset
        self._total = data.num_sequences or EPOCH_SEQUENCES

    def convert(self, target: Path) -> None:
        """Write .bin and .idx with its own builder."""
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        for name, documents in self.data.documents():
            builder = IndexedDatasetBuilder(str(target / f"{name}.bin"), dtype=np.int32)
            for ids in documents:
                builder.add_document(self._torch.from_numpy(np.array(ids)), [len(ids)])
            builder.finalize(str(target / f"{name}.idx"))

    def open(self, state: Any = None) -> None:
        torch, data = self._torch, self.data
        assert data.converted is not None, "the parent converts first"
        if not torch.distributed.is_initialized():
            meeting = Path(tempfile.mkdtemp()) / "meeting"
            torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
        cache = data.converted / "indices"
        cache.mkdir(exist_ok=True)

        class Specials:
            """Of a tokenizer, what the dataset asks for."""

            def __init__(self) -> None:
                self.eod, self.pad, self.vocab_size = 128_001, 0, 128_256
                self.special_tokens_dict: dict[str, int] = {}
                self.unique_identifiers = {"class": "Specials"}

        config = self._gpt.GPTDatasetConfig(
            random_seed=1,
            sequence_length=data.seq_len,
            blend=([str(data.converted / name) for name in data.sources], data.shares),
            split="1,0,0",
            path_to_cache=str(cache),
            tokenizer=Specials(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            num_dataset_builder_threads=1,
            mid_level_dataset_surplus=0.005,
        )
        builder = self._builder.BlendedMegatronDatasetBuilder(
            self._gpt.GPTDataset, [self._total, 0, 0], lambda: True, config
        )
        dataset = builder.build()[0]
        self._batch = state or 0
        last = self._total // data.batch
        batches = ([b * data.batch + row for row in range(data.batch)] for b in range(self._batch, last))
        self._iterator = iter(torch.utils.data.DataLoader(dataset, batch_sampler=batches))

    def next(self) -> Any:
        batch = next(self._iterator)
        self._batch += 1
        return batch["tokens"]

    def state(self) -> Any:
        return self._batch


class LitData(Reader):
    """litdata: `CombinedStreamingDataset` of two shuffled sources of token blocks, its loader without workers."""

    package = "litdata"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        import litdata
        import torch

        torch.set_num_threads(1)
        self._litdata, self._torch = litdata, torch

    def convert(self, target: Path) -> None:
        """Write its chunks, 64 MiB each."""
        from litdata.streaming import Cache, TokensLoader

        for name, documents in self.data.documents():
            (target / name).mkdir()
            loader = TokensLoader(block_size=self.data.seq_len)
            cache = Cache(str(target / name), chunk_size=self.data.seq_len * 4096, item_loader=loader)
            for i, ids in enumerate(documents):
                cache[i] = self._torch.from_numpy(np.array(ids))
            cache.done()
            cache.merge()

    def open(self, state: Any = None) -> None:
        litdata, data = self._litdata, self.data
        assert data.converted is not None, "the parent converts first"
        parts = [
            litdata.StreamingDataset(
                str(data.converted / name),
                item_loader=litdata.TokensLoader(block_size=data.seq_len),
                shuffle=True,
                drop_last=True,
            )
            for name in data.sources
        ]
        mixed = litdata.CombinedStreamingDataset(parts, seed=1, weights=data.shares, iterate_over_all=False)
        self._loader = litdata.StreamingDataLoader(mixed, batch_size=data.batch, num_workers=0, drop_last=True)
        if state is not None:
            self._loader.load_state_dict(state)
        self._iterator = iter(self._loader)

    def next(self) -> Any:
        return next(self._iterator)

    def state(self) -> Any:
        return self._loader.state_dict()


class MosaicML(Reader):
    """MosaicML Streaming: two MDS streams by proportion, shuffled, its loader without workers."""

    package = "mosaicml-streaming"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        import streaming
        import torch

        torch.set_num_threads(1)
        self._streaming = streaming

    def convert(self, target: Path) -> None:
        """Write MDS files, 64 MiB each, one sequence a sample."""
        columns = {"tokens": f"ndarray:int32:{self.data.seq_len}"}
        for name, windows in zip(self.data.sources, self.data.windows(), strict=True):
            with self._streaming.MDSWriter(out=str(target / name), columns=columns, size_limit=1 << 26) as writer:
                for window in windows:
                    writer.write({"tokens": np.array(window)})

    def open(self, state: Any = None) -> None:
        streaming, data = self._streaming, self.data
        assert data.converted is not None, "the parent converts first"
        streaming.base.util.clean_stale_shared_memory()  # it would refuse to open what an earlier opening left there
        streams = [
            streaming.Stream(local=str(data.converted / name), proportion=share)
            for name, share in zip(data.sources, data.shares, strict=True)
        ]
        dataset = streaming.StreamingDataset(
            streams=streams,
            epoch_size=data.num_sequences or EPOCH_SEQUENCES // 4,
            batch_size=data.batch,
            shuffle=True,
            shuffle_seed=1,
            num_canonical_nodes=1,
        )
        self._loader = streaming.StreamingDataLoader(dataset, batch_size=data.batch, num_workers=0, drop_last=True)
        if state is not None:
            self._loader.load_state_dict(state)
        self._iterator = iter(self._loader)

    def next(self) -> Any:
        return next(self._iterator)["tokens"]

    def state(self) -> Any:
        return self._loader.state_dict()

    def state_at(self, position: int) -> Any:
        self.open()
        self.next()
        return {**self.state(), "sample_in_epoch": position}

    def close(self) -> None:
        del self._iterator, self._loader
        self._streaming.base.util.clean_stale_shared_memory()


# --- Meta Lingua, from a checkout: it reads text, and tokenizes it on the way ---


class Lingua(Reader):
    """Lingua's own loader on the jsonl files, in one process (`load_async=False`)."""

    package = "tiktoken"
    buffer = 64

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        if data.lingua_dir is None or data.text is None:
            raise RuntimeError("no checkout of Meta Lingua was given (LINGUA_DIR)")
        sys.path.insert(0, data.lingua_dir)
        from lingua import data as lingua_data
        from lingua.tokenizer import TokenizerArgs

        self._lingua = lingua_data
        self._args = lingua_data.DataArgs(
            root_dir=data.text,
            sources=dict(zip(data.sources, data.shares, strict=True)),
            batch_size=data.batch,
            seq_len=data.seq_len,
            n_views=2,
            seed=0,
            add_bos=data.tokenizer["add_bos_eos"],
            add_eos=data.tokenizer["add_bos_eos"],
            load_async=False,
            prefetch_size=self.buffer,
            tokenizer=TokenizerArgs(name=data.tokenizer["name"], path=data.tokenizer["path"]),
        )

    def open(self, state: Any = None) -> None:
        if state is None:
            state = self._lingua.init_dataloader_state_from_args(self._args, 0, 1)
        self._context = self._lingua.build_dataloader_from_args(self._args, state)
        self._iterator = self._context.__enter__()

    def next(self) -> Any:
        batch, self._state = next(self._iterator)
        return batch[:, :, 0]

    def state(self) -> Any:
        return self._state

    def close(self) -> None:
        self._context.__exit__(None, None, None)


class LinguaPaper(Lingua):
    """The same with the buffer of Lingua's published configurations."""

    buffer = 1024


READERS: dict[str, type[Reader]] = {
    "contiguous": Contiguous,
    "exact-mix": ExactMix,
    "ours": Ours,
    "ours-prefetch": OursPrefetch,
    "grain": Grain,
    "grain-threads": GrainThreads,
    "megatron": Megatron,
    "litdata": LitData,
    "mosaicml": MosaicML,
    "lingua": Lingua,
    "lingua-1024": LinguaPaper,
}


# --- commands ---


def count_tokens(batch: Any, seq_len: int) -> int:
    """Tokens predicted in a batch: `seq_len` a row, whether or not it carries one more for the labels."""
    assert batch.ndim == 2 and batch.shape[1] in (seq_len, seq_len + 1), f"no batch of sequences: {batch.shape}"
    return int(batch.shape[0]) * seq_len


def timed(do: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall and CPU seconds of `do()`, and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = do()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, value


class Session:
    """The commands on one reader."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._is_open = False

    def convert(self, target: str) -> dict[str, Any]:
        """Write the reader's own format from the flat files."""
        convert = getattr(self._reader, "convert", None)
        if convert is None:
            return {"needed": False}
        convert(Path(target))
        return {"needed": True}

    def _close(self) -> None:
        if self._is_open:
            self._reader.close()
            self._is_open = False

    def _open(self, state: Any = None) -> Any:
        self._close()
        self._reader.open(state)
        self._is_open = True
        return self._reader.next()

    def open(self, state: Any = None) -> dict[str, Any]:
        """Times from nothing to the first batch, at the start or behind `state`."""
        times, _ = timed(lambda: self._open(state))
        return times

    def state_at(self, position: int) -> dict[str, Any]:
        """The state after `position` sequences; to be given to another process."""
        self._close()
        state = self._reader.state_at(position)
        self._reader.close()
        return {"state": state}

    def read(self, seconds: float) -> dict[str, Any]:
        """Read for about `seconds`; tokens and times. Batches made ahead are read before the clock starts.

        A stream that ends is begun again with the clock stopped.
        """
        tokens, wall, cpu = 0, 0.0, 0.0
        for _ in range(MAX_OPENINGS):
            try:
                if not self._is_open:
                    self._open()
                for _ in range(self._reader.ahead + 3):
                    self._reader.next()
            except StopIteration:
                self._close()
                continue
            ended = False
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            end = wall_start + seconds - wall
            while time.perf_counter() < end:
                try:
                    tokens += count_tokens(self._reader.next(), self._reader.data.seq_len)
                except StopIteration:
                    ended = True
                    break
            wall += time.perf_counter() - wall_start
            cpu += time.process_time() - cpu_start
            if not ended:
                return {"tokens": tokens, "wall": wall, "cpu": cpu}
            self._close()
        raise RuntimeError(f"its stream ended {MAX_OPENINGS} times in {seconds} seconds of reading: a larger --mtok")

    def read_batches(self, batches: int) -> dict[str, Any]:
        """Read so many batches; a stream that ends is begun again."""
        for _ in range(batches):
            try:
                self._reader.next()
            except StopIteration:
                self._open()
        return {}

    def resume(self, batches: int, rounds: int) -> dict[str, Any]:
        """After `batches` batches: size of the state, times from it to the next batch, and whether that is the same."""
        self._open()
        for _ in range(batches - 1):
            self._reader.next()
        saved = pickle.dumps(self._reader.state())
        following = [np.array(self._reader.next()) for _ in range(4)]
        times, same = [], True
        for _ in range(rounds):
            state = pickle.loads(saved)
            seconds, first = timed(functools.partial(self._open, state))
            times.append(seconds)
            again = [first, *(self._reader.next() for _ in range(3))]
            same = same and all(np.array_equal(a, np.array(b)) for a, b in zip(following, again, strict=True))
        return {"times": times, "same": same, "bytes": len(saved), "json_bytes": _json_bytes(pickle.loads(saved))}

    def memory(self) -> dict[str, float]:
        """MB of this process, see `memory_mb`."""
        return memory_mb()

    def blend(self, num_sequences: int) -> dict[str, Any]:
        """Megatron's table for a run: which source each sequence is of. Its own compiled helper, two sources."""
        from megatron.core.datasets import helpers_cpp

        shares = np.array(self._reader.data.shares)
        index, sample = np.zeros(num_sequences, np.int16), np.zeros(num_sequences, np.int64)
        times, _ = timed(
            lambda: helpers_cpp.build_blending_indices(index, sample, shares, len(shares), num_sequences, False)
        )
        return {**times, "megabytes": (index.nbytes + sample.nbytes) / 1e6}

    def shares(self, marks: list[int]) -> dict[str, Any]:
        """Tokens by letter ('a' is the first source) among the first tokens read, up to each of `marks`."""
        counts, read, found = np.zeros(len(self._reader.data.sources), np.int64), 0, []
        self._reader.open()
        self._is_open = True
        for mark in marks:
            while read < mark:
                batch = np.asarray(self._reader.next())
                counts += np.bincount(batch.ravel() - ord("a"), minlength=len(counts))
                read += batch.size
            found.append([read, *counts.tolist()])
        return {"marks": found}


def _json_bytes(state: Any) -> int | None:
    try:
        return len(json.dumps(state))
    except TypeError:
        return None  # not plain data


def memory_mb() -> dict[str, float]:
    """`resident`: all that is mapped and in memory; `private`: what no other process shares, after smaps_rollup."""
    fields = {}
    with open("/proc/self/smaps_rollup") as file:
        next(file)
        for line in file:
            key, value = line.split(":")
            fields[key] = int(value.split()[0]) / 1024
    return {"resident": fields["Rss"], "private": fields["Private_Clean"] + fields["Private_Dirty"]}


def version_of(reader: Reader) -> str:
    """The package measured, with its version."""
    try:
        return f"{reader.package} {importlib.metadata.version(reader.package)}"
    except importlib.metadata.PackageNotFoundError:
        return reader.package


def main() -> None:
    """Answer commands until the input ends."""
    name, described = sys.argv[1:]
    say = take_output()
    silence()
    try:
        reader = READERS[name](Data(json.loads(described)))
        session = Session(reader)
        say({"version": version_of(reader)})
    except (ImportError, RuntimeError) as error:
        say(failure(error))
        return
    answer_all(say, methods_of(session))


if __name__ == "__main__":
    main()
    # Some peers' threads would keep the process; everything is said.
    os._exit(0)
