"""Static batches: requests that one call of a model answers together.

requests of one group and sampling -> a window of several batches -> sorted by prompt length -> batches
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from lingua_synth.generate.engine import Request

# Batches that are sorted by length together; more make lengths within a batch more equal and hold more requests.
BATCHES_PER_WINDOW = 8

Encoded: TypeAlias = tuple[Request, list[int]]


def batch_by_length(
    requests: Iterator[Request | None], encode: Callable[[Request], list[int]], batch_size: int
) -> Iterator[list[Encoded] | None]:
    """At most `batch_size` requests of one group and sampling, of nearly equal lengths, with their prompts' ids.

    Requests that wait for outcomes end a batch, as a group does; then None, until there are more.
    """
    window: list[Request] = []
    for request in requests:
        kind = request and (request.group, request.sampling)
        if window and (kind != (window[0].group, window[0].sampling) or len(window) == batch_size * BATCHES_PER_WINDOW):
            yield from _by_length(window, encode, batch_size)
            window = []
        if request is None:
            yield None
        else:
            window.append(request)
    yield from _by_length(window, encode, batch_size)


def _by_length(
    window: Sequence[Request], encode: Callable[[Request], list[int]], batch_size: int
) -> Iterator[list[Encoded]]:
    encoded = sorted(((request, encode(request)) for request in window), key=lambda one: len(one[1]))
    for start in range(0, len(encoded), batch_size):
        yield encoded[start : start + batch_size]
