"""Where this process stands among the ranks of a run: read from torchrun's environment, gloo on CPU, nccl on CUDA."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among the data-parallel ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of `values` over the ranks, on every rank."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def data_parallel(device: str, env: Mapping[str, str] | None = None, *, key: str = "device") -> Iterator[Ranks]:
    """Join the process group that torchrun describes, or stand alone; leaves the group at the end.

    `device`: cpu, cuda or auto, by the config's name for it, `key`; `env` is set before the ranks meet. Raises
    ValueError for cuda without a GPU, or more ranks than GPUs on this machine.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"{key} is auto, cpu or cuda; got {device!r}")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError(f"{key}=cuda, but PyTorch sees no GPU here; use {key}=auto or cpu")
    os.environ.update(env or {})
    kind = "cuda" if device == "cuda" or (device == "auto" and has_cuda) else "cpu"
    size, rank, local_rank = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}; lower "
                "--nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
    if size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks(0, 1, torch.device(kind))
        return
    joined_here = not dist.is_initialized()
    if joined_here:
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    try:
        yield Ranks(rank, size, torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu"))
    finally:
        if joined_here:
            leave_process_group()


_left: list[dist.ProcessGroup | None] = []


def leave_process_group() -> None:
    """Destroy the process group without a chance to hang.

    A DDP model that outlives its group would be the group's last owner. PyTorch frees a model's reducer with the GIL
    held, a group waits for its threads to end, and one of those may wait for the GIL (pytorch issue 56297): for ever.
    Freed from Python a group gives up the GIL first, so the newest one is kept here, past the model's end.
    """
    _left[:] = [dist.group.WORLD]
    dist.destroy_process_group()
