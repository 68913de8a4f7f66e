"""Checkpoints in Meta Lingua's layout: `checkpoints/<step:010d>/` written by torch.distributed.checkpoint.

Each holds the tensors under `model` and `optim`, `params.json` (the merged config) and one `train_state_<rank>.json`
per data-parallel rank. The folder is renamed into place when it is whole, so a name that exists can be trusted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from lingua_synth.files import TEMPORARY_SUFFIX, fsync_folder, read_json, what_is_there, write_json
from lingua_synth.model.args import ModelArgs, ffn_hidden_dim
from lingua_synth.model.checkpoint_reading import read_state
from lingua_synth.model.transformer import Transformer

FOLDER = "checkpoints"
PARAMS = "params.json"
TRAIN_STATE = "train_state_{:05d}.json"
CONSOLIDATED = "consolidated.pth"
"""All weights in one file, as Meta Lingua's consolidate_checkpoints writes them."""
_STEP_NAME = re.compile(r"\d{10}")
_ALONE = "torch.distributed is disabled, unavailable or uninitialized"


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
    """Write checkpoint `step` and return its folder; see `CheckpointWriter.save`."""
    writer = CheckpointWriter(run_dir, keep=keep)
    writer.save(step, model, optimizer, params=params, train_state=train_state)
    return Path(run_dir) / FOLDER / f"{step:010d}"


@dataclass
class _Pending:
    """A checkpoint that a thread still writes."""

    future: Future[Any]
    temporary: Path
    final: Path
    is_renamed: bool = False


class CheckpointWriter:
    """Writes the checkpoints of a run, all ranks together; deletes all but the newest `keep` (0 keeps all) and those of
    `keep_steps`.

    With `background`, `save` returns when the state was copied to main memory, and a thread writes it while training
    goes on. One is written at a time: `save` waits for the one before. `close` waits for the last.
    """

    def __init__(
        self, run_dir: str | Path, *, keep: int = 0, keep_steps: Collection[int] = (), background: bool = False
    ):
        self._run_dir, self._keep, self._background = Path(run_dir), keep, background
        self._keep_steps = frozenset(keep_steps)
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        # The thread's messages must not meet those of the training.
        self._group = dist.new_group(backend="gloo") if background and dist.is_initialized() else None
        self._pending: _Pending | None = None

    def save(
        self,
        step: int,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        params: dict[str, Any],
        train_state: dict[str, Any],
    ) -> None:
        """Write checkpoint `step`, or begin to.

        An OSError (a full disk) leaves the earlier checkpoints as they were and nothing under the new name; in the
        background it comes from the next `poll`, `save` or `close`.
        """
        self.wait()
        final = self._run_dir / FOLDER / f"{step:010d}"
        temporary = final.with_name(f".{final.name}{TEMPORARY_SUFFIX}")
        if self._rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_json(temporary / PARAMS, params)
        _barrier()
        # Each rank its own: one alone would write those of 8,000, one after the other, while all others wait.
        write_json(temporary / TRAIN_STATE.format(self._rank), train_state)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optim": optimizer_state}
        alone = not dist.is_initialized()
        if self._background:
            # Its thread would warn when the filter below is gone again.
            warnings.filterwarnings("ignore", message=_ALONE)
        pending = _Pending(Future(), temporary, final)
        with self._cleaned_up(pending), _alone_without_warning():
            if self._background:
                written = dcp.async_save(state, checkpoint_id=temporary, process_group=self._group, no_dist=alone)
                assert isinstance(written, Future), "the default stager copies before it returns"
                pending.future = written
            else:
                dcp.save(state, checkpoint_id=temporary, no_dist=alone)
                pending.future.set_result(None)
        self._pending = pending
        if not self._background:
            self.wait()

    def poll(self) -> None:
        """Give a checkpoint that was written meanwhile its name; never waits."""
        if self._pending is not None and self._pending.future.done() and self._rank == 0:
            self._rename(self._pending)

    def wait(self) -> None:
        """Until nothing is being written. All ranks call it."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with self._cleaned_up(pending):
            pending.future.result()
        if self._rank == 0:
            self._rename(pending)
        _barrier()

    close = wait

    def _rename(self, pending: _Pending) -> None:
        if pending.is_renamed:
            return
        with self._cleaned_up(pending):
            pending.future.result()
        fsync_folder(pending.temporary)
        shutil.rmtree(pending.final, ignore_errors=True)
        pending.temporary.rename(pending.final)
        fsync_folder(pending.final.parent)
        pending.is_renamed = True
        if self._keep > 0:
            passing = [p for p in list_checkpoints(self._run_dir) if int(p.name) not in self._keep_steps]
            for old in passing[: -self._keep]:
                shutil.rmtree(old)

    @contextlib.contextmanager
    def _cleaned_up(self, pending: _Pending) -> Iterator[None]:
        """Remove what was written of a checkpoint that failed, and say why in words."""
        try:
            yield
        except dcp.api.CheckpointException as error:
            free = shutil.disk_usage(pending.temporary).free
            shutil.rmtree(pending.temporary, ignore_errors=True)
            # torch reports a full disk as a RuntimeError about positions in its archive; the free bytes tell which.
            reasons = {f"{type(e).__name__}: {str(e).splitlines()[0]}" for e, _ in error.failures.values()}
            raise OSError(
                f"checkpoint {pending.final} could not be written ({'; '.join(sorted(reasons))}) with {free:,} bytes "
                "free on its disk; earlier checkpoints are whole: make room and run again"
            ) from None
        except BaseException:
            shutil.rmtree(pending.temporary, ignore_errors=True)
            raise


def restore_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and optimizer state in place, whatever ranks wrote them; return the train state. All ranks call
    it."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optim": optimizer_state}
    with _alone_without_warning():
        read_state(state, path, no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return read_json(path / TRAIN_STATE.format(0))


# What the tensors of a checkpoint depend on.
_SHAPE_FIELDS = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "weight_tying")


def load_weights(folder: str | Path, model: Transformer) -> Path:
    """Fill the weights of `model` in place from a run folder (its newest checkpoint) or a checkpoint folder.

    All ranks call it; returns the checkpoint that was read. ValueError if there is none, or it is of another model.
    """
    folder, params = _open_checkpoint(folder)
    theirs, ours = _model_args(folder, params), model.args
    different = [
        f"model.{name} {getattr(theirs, name)} there, {getattr(ours, name)} here"
        for name in _SHAPE_FIELDS
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if ffn_hidden_dim(theirs) != ffn_hidden_dim(ours):
        different.append(f"feed-forward width {ffn_hidden_dim(theirs)} there, {ffn_hidden_dim(ours)} here")
    if different:
        raise ValueError(f"checkpoint {folder} is of another model: {'; '.join(different)}")
    state: dict[str, Any] = {"model": _without_tied_output(model, get_model_state_dict(model))}
    with _alone_without_warning():
        read_state(state, folder, no_dist=not dist.is_initialized())
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))
    return folder


def _without_tied_output(model: Transformer, state: dict[str, Any]) -> dict[str, Any]:
    """A tied output matrix is the embedding: it need not be read, and stock Lingua has another name for it."""
    return {name: value for name, value in state.items() if not (model.args.weight_tying and name == "output.weight")}


def _open_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint folder, or the newest of a run folder, and its params."""
    folder = Path(folder)
    if not (folder / PARAMS).is_file():
        found = list_checkpoints(folder)
        if not found:
            raise ValueError(
                f"no checkpoint in {folder}: neither {PARAMS} nor {FOLDER}/<step>; {what_is_there(folder / PARAMS)}"
            )
        folder = found[-1]
    return folder, read_json(folder / PARAMS)


def _model_args(folder: Path, params: dict[str, Any]) -> ModelArgs:
    """The model of a checkpoint of ours or of Meta Lingua's, whose section has keys that ours lacks."""
    known = {field.name for field in dataclasses.fields(ModelArgs)}
    try:
        return ModelArgs(**{key: value for key, value in params["model"].items() if key in known})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / PARAMS} does not describe a model of this library: {error}") from None


def load_checkpoint(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[Transformer, ModelArgs, dict[str, Any]]:
    """Load a trained model for inference from a run folder (its newest checkpoint) or one checkpoint folder.

    Returns (model in eval mode on `device`, its ModelArgs, the tokenizer section of its config: name and path).
    `dtype` is the compute type; None: fp32 on a CPU, bf16 elsewhere. ValueError says what is there when there is none.
    """
    folder, params = _open_checkpoint(folder)
    tokenizer = (params.get("data") or {}).get("tokenizer")
    if not isinstance(tokenizer, dict):
        raise ValueError(f"{folder / PARAMS} does not name the tokenizer of its model (data.tokenizer)")
    _, model, _ = load_model(folder, device, dtype)
    return model, model.args, tokenizer


def load_model(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[Path, Transformer, dict[str, Any]]:
    """As `load_checkpoint`, of a checkpoint that need not name a tokenizer: (its folder, the model, its config).

    Meta Lingua's folder `consolidated` is read too.
    """
    folder, params = _open_checkpoint(folder)
    args = _model_args(folder, params)
    if args.max_seqlen < 1:
        args.max_seqlen = int((params.get("data") or {}).get("seq_len", -1))
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    model = Transformer(args, compute_dtype=dtype)
    weights = _without_tied_output(model, model.state_dict())
    if (folder / CONSOLIDATED).is_file():
        loaded = torch.load(folder / CONSOLIDATED, map_location="cpu", mmap=True, weights_only=True)
        loaded = loaded.get("model", loaded)
        if missing := [name for name in weights if name not in loaded]:
            raise ValueError(f"{folder / CONSOLIDATED} lacks {', '.join(missing[:4])}; it is of another model")
        weights = {name: loaded[name] for name in weights}
    else:
        with _alone_without_warning():
            read_state({"model": weights}, folder, no_dist=True)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and missing == ["output.weight"] * args.weight_tying, "every weight was read"
    return folder, model.to(device).eval(), params


@contextlib.contextmanager
def _alone_without_warning() -> Iterator[None]:
    # PyTorch warns on every save and load of a single process that it assumes a single process.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_ALONE)
        yield


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
