"""Our side of one run in Meta Lingua's loop: batches in, losses per source out, evaluation, the end.

The loop asks for a batch, calls the model, now and then logs and saves, and after every micro-batch looks whether it
has been told to leave. At those places it calls in here (`lingua.bind` sees to that). Nothing here knows Lingua.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lingua_synth.evaluate import DomainSums
from lingua_synth.evaluate.scoring import Scores
from lingua_synth.files import write_json
from lingua_synth.mixture import MixtureLoader
from lingua_synth.mixture.batch import Batch
from lingua_synth.mixture.lingua_batches import LinguaBatch, lingua_batches
from lingua_synth.model.distributed import Ranks
from lingua_synth.tokens import TokenSource
from lingua_synth.train.args import TrainArgs, tokens_per_step
from lingua_synth.train.evaluation import HeldOut, sums_of
from lingua_synth.train.folder import METRICS, RESULT, VALIDATION_METRICS
from lingua_synth.train.inputs import open_loader
from lingua_synth.train.metrics import MetricsFile, Trackers
from lingua_synth.train.preemption import Preemption
from lingua_synth.train.record import Interval, metrics_line, result_row, validation_line


class _WatchedLoader(MixtureLoader):
    """Remembers the batch it handed out last: Lingua's loop carries the tokens and not where they came from."""

    last: Batch | None = None

    def __next__(self) -> Batch:
        self.last = super().__next__()
        return self.last


class Session:
    """The run's data, its losses since the last line, and its files. Entered, it holds files open."""

    def __init__(
        self,
        args: TrainArgs,
        ranks: Ranks,
        sources: Mapping[str, TokenSource],
        held_out: HeldOut,
        preemption: Preemption,
        identity_sha256: str,
    ):
        self.args = args
        """Resolved."""
        self.ranks = ranks
        self.preemption = preemption
        self.model: torch.nn.Module | None = None
        """Set when Lingua has built it."""
        self.step = 0
        """Optimizer steps whose batches were all read; of the checkpoint, right after a resume."""
        self.elapsed_before_s = 0.0
        self._sources, self._held_out, self._identity_sha256 = sources, held_out, identity_sha256
        self._loader: _WatchedLoader | None = None
        self._pending: npt.NDArray[np.int64] | None = None
        self._by_source = torch.zeros(len(sources), 2, dtype=torch.float64, device=ranks.device)
        self._micro_batches = 0
        self._evaluated_at = -1
        self._started = self._window_started = time.perf_counter()
        self._validation: MetricsFile | None = None
        self._trackers: Trackers | None = None

    @property
    def dir(self) -> Path:
        return Path(self.args.dump_dir)

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.elapsed_before_s + time.perf_counter() - self._started

    @property
    def is_strict(self) -> bool:
        """Upstream defects are to stay."""
        return self.args.synth.strict_upstream

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in (self._validation, self._trackers):
            if file is not None:
                file.close()

    def begin(self, step: int) -> None:
        """The loop stands at `step`, with weights and optimizer in place: open the files there."""
        self.step = step
        if self.ranks.is_main:
            if not self.is_strict:
                MetricsFile(self.dir / METRICS, step).close()
            if self._held_out:
                self._validation = MetricsFile(self.dir / VALIDATION_METRICS, step)
            self._trackers = Trackers(self.args, self._identity_sha256, step)
        self._started = self._window_started = time.perf_counter()

    # --- batches ---

    def _open_loader(self, state: Mapping[str, Any] | None) -> _WatchedLoader:
        # A state inside a global batch (synth.strict_upstream) is taken up in full by `lingua_batches`.
        whole = None if state is None else {key: value for key, value in state.items() if key != "given"}
        return open_loader(self.args, self._sources, self.ranks, whole, _WatchedLoader)

    @contextlib.contextmanager
    def batches(self, state: Mapping[str, Any]) -> Iterator[Iterator[LinguaBatch]]:
        """What Lingua's `build_dataloader_from_args` gives: `(array, state)` after the empty or saved `state`."""
        self._loader = loader = self._open_loader(state or None)
        with lingua_batches(loader, state or None) as pairs:
            yield self._watched(loader, pairs)

    def _watched(self, loader: _WatchedLoader, pairs: Iterator[LinguaBatch]) -> Iterator[LinguaBatch]:
        for pair in pairs:
            assert loader.last is not None, "the loader has just handed a batch out"
            self._pending = loader.last.source
            self.step = loader.num_global_batches_done
            yield pair

    @property
    def is_between_steps(self) -> bool:
        """Every micro-batch of the last step has been read."""
        return self._loader is None or self._loader.micro_batch == 0

    # --- losses ---

    def saw(self, nats: torch.Tensor) -> None:
        """Losses `[batch, seq_len]` of the batch last read. A recomputation or a probe of it is not counted again."""
        if self._pending is None or nats.shape != (len(self._pending), self.args.data.seq_len):
            return
        source = torch.from_numpy(self._pending).to(nats.device, non_blocking=True)
        self._pending = None
        sums = nats.double().sum(1)
        self._by_source[:, 0].index_add_(0, source, sums)
        self._by_source[:, 1].index_add_(0, source, torch.full_like(sums, nats.shape[1]))
        self._micro_batches += 1

    def refuse_not_finite(self, sums: torch.Tensor | None = None) -> None:
        """ValueError, on all ranks, if a loss since the last line is not finite. All ranks call it."""
        if self.is_strict:
            return
        sums = self.ranks.sum(self._by_source.clone()) if sums is None else sums
        nats = float(sums[:, 0].sum())
        if math.isfinite(nats):
            return
        sequences = self._micro_batches * self.args.data.batch_size * self.ranks.size
        last = self.step * tokens_per_step(self.args, self.ranks.size) // self.args.data.seq_len
        raise ValueError(
            f"{self.args.name}: the loss is {nats} at step {self.step} (since the last log line: global sequences "
            f"{max(0, last - sequences)}..{last - 1}); the newest checkpoint is from before. Lower optim.lr or "
            "optim.clip in a new dump_dir"
        )

    def metrics(self, theirs: Mapping[str, float]) -> dict[str, Any]:
        """What goes into the line of metrics beside `theirs`: per source, per whole step. All ranks call it."""
        assert self._loader is not None, "a batch was read before a line is written"
        sums = self.ranks.sum(self._by_source.clone())
        self.refuse_not_finite(sums)
        by_source = sums.cpu().numpy()
        steps = self._micro_batches / self.args.grad_acc_steps
        seconds = time.perf_counter() - self._window_started
        whole_steps = max(1, round(steps))
        seen = Interval(
            steps=whole_steps,
            seconds=seconds * whole_steps / max(steps, 1e-9),
            data_s=0.0,
            nats=by_source[:, 0],
            tokens=by_source[:, 1],
            lr=0.0,
            grad_norm=0.0,
            last_micro_loss=0.0,
        )
        line = metrics_line(self.args, self._sources, self._loader, self.step, self.ranks.size, seen)
        ours = ["loss/mean", "loss/source/", "data/tokens/", "data/epochs/", "speed/mfu"]
        if not self.is_strict:
            ours.append("speed/FLOPS")
        self._by_source.zero_()
        self._micro_batches = 0
        self._window_started = time.perf_counter()
        return {**theirs, **{key: value for key, value in line.items() if key.startswith(tuple(ours))}}

    def track(self, record: Mapping[str, Any]) -> None:
        """A line of metrics was written: TensorBoard and wandb, where asked for."""
        if self._trackers is not None:
            self._trackers.write(dict(record), int(record["global_step"]))

    # --- the end of a step, and of the run ---

    def agreed_signal(self) -> int:
        """The signal that any rank got, on all ranks, at the end of a step; 0: none. All ranks call it."""
        if not self.is_between_steps:
            return 0
        mine = torch.tensor(float(self.preemption.signal), dtype=torch.float64, device=self.ranks.device)
        anyone = float(self.ranks.sum(mine))
        # Ranks that a launcher tells to leave all get the same one: the sum only says whether any did.
        return self.preemption.signal or int(anyone > 0) * 15

    def evaluate_if_due(self) -> None:
        """Evaluation on the way, once per step where it is due. All ranks call it, after every micro-batch."""
        every = self.args.synth.evaluation.every
        is_due = every > 0 and self.step % every == 0 and 0 < self.step < self.args.steps
        if self.is_between_steps and is_due and self._evaluated_at != self.step:
            before = time.perf_counter()
            self._log_validation(sums_of(self._evaluate()))
            self._evaluated_at = self.step
            self._window_started += time.perf_counter() - before

    def _evaluate(self) -> Scores | None:
        if not self._held_out:
            return None
        assert self.model is not None, "Lingua builds its model before its first step"
        return self._held_out.score(self.model)

    def _log_validation(self, sums: Mapping[str, DomainSums]) -> None:
        if self._validation is not None:
            self._validation.write(validation_line(self.step, sums))
        if self._trackers is not None:
            self._trackers.write({f"validation/{name}": domain.loss for name, domain in sums.items()}, self.step)

    def finish(self) -> dict[str, Any]:
        """Evaluate the last weights and write the run's row; all ranks call it and get it."""
        args, ranks = self.args, self.ranks
        self.step = args.steps
        loader = self._loader or self._open_loader(None)
        scores = self._evaluate()
        sums = sums_of(scores)
        row = result_row(
            args,
            self._sources,
            loader,
            sums,
            num_tokens=args.steps * tokens_per_step(args, ranks.size),
            num_gpus=ranks.size if ranks.device.type == "cuda" else 0,
            elapsed_s=self.elapsed_s,
            num_skipped=0,
            identity_sha256=self._identity_sha256,
        )
        if ranks.is_main:
            if scores is not None:
                self._log_validation(sums)
                self._held_out.write(scores, args.steps)
            write_json(self.dir / RESULT, row)
        ranks.barrier()
        return row
