"""Reading ahead: a daemon thread fills a bounded queue, so that a slow disk and the training step overlap."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# How soon an abandoned thread notices; waiting for room costs a wake-up each time it passes.
_PATIENCE_S = 0.2


class Prefetcher(Generic[T]):
    """The same items as the iterator `items`, in the same order, with at most `depth` of them made ahead.

    An exception of `items` is raised where its item would have come. `items` is used by the thread alone. The thread
    ends after the last item, on `close`, and when the prefetcher is no longer referenced.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        stop = threading.Event()
        # The thread must not reference the prefetcher, or nobody would ever let go of either.
        self._thread = threading.Thread(target=_fill, args=(items, self._queue, stop), daemon=True, name="prefetch")
        self.close = weakref.finalize(self, stop.set)
        """Let the thread end; items that are ready are dropped."""
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        kind, value = self._queue.get()
        if kind == "item":
            return value
        self._queue.put((kind, value))  # the end stays the end
        if kind == "error":
            raise value
        raise StopIteration


def _fill(items: Iterator[Any], ready: queue.Queue[tuple[str, Any]], stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(ready, ("item", item), stop):
                return
        _put(ready, ("end", None), stop)
    except BaseException as error:
        _put(ready, ("error", error), stop)


def _put(ready: queue.Queue[tuple[str, Any]], entry: tuple[str, Any], stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(entry, timeout=_PATIENCE_S)
            return True
        except queue.Full:
            continue
    return False
