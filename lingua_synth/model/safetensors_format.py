"""Reading and writing `.safetensors` files one tensor at a time.

A file is eight bytes (the header's length, little-endian), a JSON header {name: dtype, shape, data_offsets}, and the
tensors' bytes one after the other (github.com/huggingface/safetensors, "Format"). The header needs only names and
shapes, so a model larger than memory can be written as its tensors come; reading maps the file.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lingua_synth.files import atomic_file

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The library refuses longer headers too.
_MAX_HEADER_BYTES = 100_000_000


def write_safetensors(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, tensors: Iterator[torch.Tensor]
) -> None:
    """Write one file, atomically; `tensors` come in the order of `shapes`, are of its shapes and are cast to `dtype`.

    One tensor is held at a time.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # aligns the tensors
    with atomic_file(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            tensor = next(tensors)
            assert tensor.shape == shape, f"{name} is {tuple(tensor.shape)}, announced as {shape}"
            file.write(tensor.detach().to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)


class SafetensorsFile:
    """One file, opened: `shapes` by name, and `read` for a tensor.

    ValueError for a file that is no safetensors file, is cut short, or has a type other than fp32, bf16 or fp16.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"{path} is not a whole safetensors file ({size:,} bytes); download it again")
            try:
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                self._start = 8 + length
                self._entries = {
                    name: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()
                }
            except (ValueError, TypeError, KeyError, AttributeError):
                raise ValueError(
                    f"{path} is not a safetensors file: its header is damaged; download it again"
                ) from None
        expected = self._start + max((end for *_, end in self._entries.values()), default=0)
        if size != expected:
            raise ValueError(
                f"{path} has {size:,} bytes and its header announces {expected:,}; it is cut short or damaged: "
                "download it again"
            )
        for name, (dtype, shape, start, end) in self._entries.items():
            if dtype not in DTYPES:
                raise ValueError(f"{path}: {name} is of type {dtype}; this import reads {', '.join(DTYPES)}")
            if end - start != math.prod(shape) * DTYPES[dtype].itemsize or start < 0:
                raise ValueError(
                    f"{path} is damaged: {name} is {shape} {dtype} in {end - start} bytes; download it again"
                )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name of tensor."""
        return {name: shape for name, (_, shape, _, _) in self._entries.items()}

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor as stored."""
        return DTYPES[self._entries[name][0]]

    def read(self, name: str) -> torch.Tensor:
        """A tensor, mapped read-only from the file: not to be written to, and gone from memory with its last use."""
        dtype, shape, start, end = self._entries[name]
        if start == end:
            return torch.empty(shape, dtype=DTYPES[dtype])
        with warnings.catch_warnings():
            # PyTorch has no read-only tensors and says so.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(
                _mapped(self.path), dtype=DTYPES[dtype], count=math.prod(shape), offset=self._start + start
            ).view(shape)


def _mapped(path: Path) -> memoryview:
    import mmap

    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
