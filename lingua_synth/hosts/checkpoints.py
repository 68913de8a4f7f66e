"""Checkpoints of Meta Lingua's loop: written whole, read by any number of ranks, by its own tools and by ours.

Lingua's `CheckpointManager` does the writing and reading; around it stand the corrections, and the names of a tied
model's one matrix: `output.tied_module.weight` for Lingua, `output.weight` for the native loop.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from lingua_synth.files import fsync_folder
from lingua_synth.hosts.session import Session
from lingua_synth.model.checkpoint_reading import CheckpointReader

INCOMPLETE = ".incomplete"
_LINGUA_TIED, _OUR_TIED = "output.tied_module.weight", "output.weight"


class AlreadyTrained(Exception):
    """The newest checkpoint is of the last step: there is no step left to take."""


def build_manager_class(checkpoint: ModuleType, session: Session) -> type:
    """A subclass of Lingua's `CheckpointManager` for this run; `checkpoint` is its module."""

    class RunCheckpoints(checkpoint.CheckpointManager):  # type: ignore[name-defined]
        """Checkpoints of one run. `synth.strict_upstream` leaves out everything but our params.json."""

        path: str
        existing_saves: list[Path]
        _is_loading = _is_saving = False

        def save(self, model: Any, optimizer: Any, train_state: Any, config: Any, device_mesh: Any = None) -> bool:
            """Write a checkpoint of this step; OSError when it cannot be written, and the earlier ones stay."""
            if session.is_strict:
                return bool(super().save(model, optimizer, train_state, session.args, device_mesh))
            session.refuse_not_finite()
            folder, is_main = Path(self.path), session.ranks.is_main
            if is_main:
                shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)
                (folder / INCOMPLETE).mkdir()
            self.path, self._is_saving = str(folder / INCOMPLETE), True
            try:
                super().save(model, optimizer, train_state, session.args, device_mesh)
            except dcp.api.CheckpointException as error:
                reasons = {f"{type(e).__name__}: {str(e).splitlines()[0]}" for e, _ in error.failures.values()}
                shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)
                raise OSError(
                    f"the checkpoint of step {train_state.step} could not be written to {folder} "
                    f"({'; '.join(sorted(reasons))}); earlier checkpoints are whole: make room and run again"
                ) from None
            finally:
                self.path, self._is_saving = str(folder), False
            written = self.existing_saves.pop()
            final = folder / written.name
            if is_main:
                shutil.rmtree(final, ignore_errors=True)
                written.rename(final)
                (folder / INCOMPLETE).rmdir()
                fsync_folder(folder)
            dist.barrier()
            self.existing_saves = [path for path in self.existing_saves if path != final] + [final]
            super().clean_up()
            return True

        def clean_up(self) -> None:
            """Delete old checkpoints, once the new one has its name."""
            if not self._is_saving:
                super().clean_up()

        def load(self, model: Any, optimizer: Any, train_state: Any, device_mesh: Any, path: Any = None) -> None:
            """Go on from the newest whole checkpoint, if there is one. Raises AlreadyTrained after the last step."""
            self._is_loading = not session.is_strict
            try:
                found = path or self.get_last_step_path(dp_rank=self._get_dp_tp_mesh(device_mesh)[0])
                if found is not None and session.ranks.is_main and self._is_loading:
                    CheckpointReader(found).read_metadata()  # refused here, before Lingua unpickles whatever it holds
                super().load(model, optimizer, train_state, device_mesh, path)
            finally:
                self._is_loading = False
            session.begin(train_state.step)
            if session.is_strict or not train_state.step:
                return
            scheduler = train_state.scheduler
            for group, base, function in zip(
                optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * function(scheduler.last_epoch)
            if train_state.step >= session.args.steps:
                raise AlreadyTrained

        def _get_dp_tp_mesh(self, device_mesh: Any = None) -> tuple[int, int]:
            # Every rank's train state is the same, and there may be fewer files than ranks.
            dp_rank, tp_rank = super()._get_dp_tp_mesh(device_mesh)
            return (0 if self._is_loading else dp_rank), tp_rank

        def get_state_dict(self, model: Any, optimizer: Any) -> dict[str, Any]:
            """Lingua's tensors; of a tied model's one matrix, the names that both loops know."""
            state: dict[str, Any] = super().get_state_dict(model, optimizer)
            weights = state["model"]
            if self._is_loading:
                # Numbers of the config, which this call has too; the native loop writes others than Lingua's scheduler.
                del state["optim"]["param_groups"]
            if _LINGUA_TIED in weights and self._is_saving:
                weights[_OUR_TIED] = weights[_LINGUA_TIED]
            elif _LINGUA_TIED in weights and self._is_loading:
                del weights[_LINGUA_TIED]  # the same memory as tok_embeddings.weight, which every loop writes
            return state

    return RunCheckpoints


def build_train_state_class(train: ModuleType, session: Session) -> type:
    """A subclass of Lingua's `TrainState` that keeps the run's clock; `train` is its module."""

    class RunState(train.TrainState):  # type: ignore[name-defined]
        """Lingua's train state, and the seconds of training so far."""

        def state_dict(self) -> dict[str, Any]:
            state: dict[str, Any] = super().state_dict()
            return state | {"elapsed_s": session.elapsed_s}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            # A checkpoint of the native loop before it wrote one: LambdaLR needs nothing more.
            scheduler = {"last_epoch": state_dict["step"], "lr_lambdas": [None]}
            super().load_state_dict({"scheduler": scheduler} | state_dict)
            session.elapsed_before_s = float(state_dict.get("elapsed_s", 0.0))

    return RunState
