"""Reading `torch.distributed.checkpoint` folders that anybody may have written, without running what they hold.

PyTorch's reader unpickles `.metadata`, and every value that is no tensor, without restriction: a checkpoint from
elsewhere could run code. Here both give plain data and the classes that describe a checkpoint, or are refused. Files
are looked for inside the folder alone.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

from lingua_synth.files import refuse_path

_CHECKPOINT = "torch.distributed.checkpoint"
_SHARDED = "torch.distributed._shard"
# What PyTorch, of this and of earlier versions (2.4 on), puts into .metadata.
_ALLOWED = {
    f"{_CHECKPOINT}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo", "_StoragePrefix"},
    f"{_SHARDED}.metadata": {"ShardMetadata"},
    f"{_SHARDED}.sharded_tensor.metadata": {"MEM_FORMAT_ENCODING", "TensorProperties"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePath", "PurePosixPath"},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


class CheckpointReader(dcp.FileSystemReader):
    """PyTorch's reader of a local folder, for files of unknown origin; see `read_state`."""

    refusal: ValueError | None = None
    """Why the description was refused; PyTorch makes another exception of what is raised."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As in the base class; ValueError where the file holds anything but the description of a checkpoint."""
        try:
            return self._read(Path(self.path) / ".metadata")
        except ValueError as error:
            self.refusal = error
            raise

    def _read(self, path: Path) -> Metadata:
        try:
            with open(path, "rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the description of a checkpoint alone ({error}); it is not read") from None
        if not isinstance(metadata, Metadata):
            raise ValueError(f"{path} describes no checkpoint, but a {type(metadata).__name__}; it is not read")
        for info in (metadata.storage_data or {}).values():
            refuse_path(info.relative_path, path)
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _PlainDataPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Values that are no tensors (the optimizer's rates and flags), by PyTorch's restricted unpickler."""
        plain = io.BytesIO()
        try:
            torch.save(torch.load(value, weights_only=True), plain)
        except pickle.UnpicklingError:
            name = read_item.dest_index.fqn
            raise ValueError(f"{name} in the checkpoint is no plain value and could run code; it is not read") from None
        plain.seek(0)
        super().load_bytes(read_item, plain)


def read_state(state: dict[str, Any], folder: str | Path, *, no_dist: bool) -> None:
    """Fill `state` (nested dicts of tensors and plain values) in place from a checkpoint folder.

    All ranks call it, unless `no_dist`. ValueError for a file that holds more than tensors, plain values and their
    description, or names a file outside the folder.
    """
    reader = CheckpointReader(folder)
    try:
        dcp.load(state, storage_reader=reader, planner=_PlainDataPlanner(), no_dist=no_dist)
    except dcp.api.CheckpointException as error:
        found = [reader.refusal, *(failure for failure, _ in error.failures.values())]
        for refusal in found:
            if isinstance(refusal, ValueError):
                raise refusal from None
        raise
