"""Checkpoints in Meta Lingua's layout: `checkpoints/<step:010d>/` written by torch.distributed.checkpoint.

Each holds the tensors under `model` and `optim`, `params.json` (the merged config) and one `train_state_<rank>.json`
per data-parallel rank. The folder is renamed into place when it is whole, so a name that exists can be trusted.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from lingua_synth.files import TEMPORARY_SUFFIX, fsync_folder, read_json, what_is_there, write_json
from lingua_synth.model.args import ModelArgs
from lingua_synth.model.transformer import Transformer

FOLDER = "checkpoints"
PARAMS = "params.json"
TRAIN_STATE = "train_state_{:05d}.json"
_STEP_NAME = re.compile(r"\d{10}")


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folder = Path(run_dir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _STEP_NAME.fullmatch(p.name) and (p / PARAMS).is_file())


def save_checkpoint(
    run_dir: str | Path,
    step: int,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    *,
    params: dict[str, Any],
    train_state: dict[str, Any],
    keep: int = 0,
) -> Path:
    """Write checkpoint `step`; all ranks call it. `keep` > 0 then deletes all but the newest `keep`.

    An OSError (a full disk) leaves the earlier checkpoints as they were and nothing under the new name.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    final = Path(run_dir) / FOLDER / f"{step:010d}"
    temporary = final.with_name(f".{final.name}{TEMPORARY_SUFFIX}")
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _barrier()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optim": optimizer_state}
    try:
        with _alone_without_warning():
            dcp.save(state, checkpoint_id=temporary, no_dist=not dist.is_initialized())
    except dcp.api.CheckpointException as error:
        free = shutil.disk_usage(temporary).free
        shutil.rmtree(temporary, ignore_errors=True)
        # torch reports a full disk as a RuntimeError about positions in its archive; the free bytes tell which it was.
        reasons = {f"{type(e).__name__}: {str(e).splitlines()[0]}" for e, _ in error.failures.values()}
        raise OSError(
            f"checkpoint {final} could not be written ({'; '.join(sorted(reasons))}) with {free:,} bytes free on its "
            "disk; earlier checkpoints are whole: make room and run again"
        ) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if rank == 0:
        for dp_rank in range(size):
            write_json(temporary / TRAIN_STATE.format(dp_rank), train_state)
        write_json(temporary / PARAMS, params)
        fsync_folder(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        fsync_folder(final.parent)
        if keep > 0:
            for old in list_checkpoints(run_dir)[:-keep]:
                shutil.rmtree(old)
    _barrier()
    return final


def restore_checkpoint(path: Path, model: Transformer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer state in place; return the train state. All ranks call it."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optim": optimizer_state}
    with _alone_without_warning():
        dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return read_json(path / TRAIN_STATE.format(0))


def load_checkpoint(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[Transformer, ModelArgs, dict[str, Any]]:
    """Load a trained model for inference from a run folder (its newest checkpoint) or one checkpoint folder.

    Returns (model in eval mode on `device`, its ModelArgs, the tokenizer section of its config: name and path).
    `dtype` is the compute type; None: fp32 on a CPU, bf16 elsewhere. ValueError says what is there when there is none.
    """
    folder = Path(folder)
    if not (folder / PARAMS).is_file():
        found = list_checkpoints(folder)
        if not found:
            raise ValueError(
                f"no checkpoint in {folder}: neither {PARAMS} nor {FOLDER}/<step>; {what_is_there(folder / PARAMS)}"
            )
        folder = found[-1]
    params = read_json(folder / PARAMS)
    try:
        args = ModelArgs(**params["model"])
        tokenizer = params["data"]["tokenizer"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / PARAMS} does not describe a model of this library: {error}") from None
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    model = Transformer(args, compute_dtype=dtype)
    state = {"model": model.state_dict()}
    with _alone_without_warning():
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    model.load_state_dict(state["model"])
    return model.to(device).eval(), args, tokenizer


@contextlib.contextmanager
def _alone_without_warning() -> Iterator[None]:
    # PyTorch warns on every save and load of a single process that it assumes a single process.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
