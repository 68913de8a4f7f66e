"""glibc's malloc, told to keep what a training step frees.

Every step on a CPU allocates the same tensors again. By default glibc gives large ones back to the kernel as they are
freed, and each comes back as zeroed pages, one page fault per 4 KiB: a quarter to a third of a small bf16 step was
measured to go there (`benchmarks/train.py`). Kept, the memory of a run is its peak, which it needs again a step later.
"""

from __future__ import annotations

import ctypes
import os

# The parameters' numbers in malloc.h; glibc has no other names for them outside C.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = (1 << 31) - 1
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have this process keep freed memory from now on; whether it was done.

    Left as it is: other allocators and systems (macOS, musl, jemalloc), and a process whose user has set malloc's
    variables.
    """
    if any(name in os.environ for name in VARIABLES):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
        mallopt = library.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
