"""An engine without a model: made-up text, always the same for a request, and failures on demand. For tests only.

Its name is in every record, so that nothing it wrote can pass for generated text.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection, Generator, Iterator

from lingua_synth.files import sha256_json
from lingua_synth.generate.engine import Failure, Generation, Outcome, Request

WORDS = ("stone", "river", "lamp", "seven", "green", "letter", "under", "early", "no", "model", "the")  # fmt: skip


class MockDied(RuntimeError):
    """What `die_after` raises: an engine that breaks for good in the middle of its work."""


class MockEngine:
    """Text from the hash of prompt, sampling and seed, in sentences of ten words; a token is a word.

    `fail_at`: keys of requests that become a `Failure`. `die_after`: `run` raises `MockDied` after so many outcomes.
    `window`: requests held at a time, returned in a mixed but fixed order. `delay_s`: seconds each outcome takes.
    """

    name = "mock"
    revision = "mock"
    prompt_kinds = ("chat", "text")
    num_gpus = 0

    def __init__(
        self,
        *,
        fail_at: Collection[str] = (),
        die_after: int | None = None,
        window: int = 8,
        delay_s: float = 0.0,
        num_words: int = 120,
    ) -> None:
        self._fail_at = frozenset(fail_at)
        self._die_after = die_after
        self._window = window
        self._delay_s = delay_s
        self._num_words = num_words
        self.num_requests = 0
        """Requests taken since the engine was made."""

    def count_tokens(self, text: str) -> int | None:
        """Words."""
        return len(text.split())

    def run(self, requests: Iterator[Request | None]) -> Generator[Outcome, None, None]:
        """One outcome per request; the order depends on nothing but the requests."""
        order = random.Random(self.num_requests)
        waiting: list[Request] = []
        num_outcomes = 0
        for request in requests:
            if request is not None:
                self.num_requests += 1
                waiting.append(request)
            if request is None and not waiting:
                return
            if len(waiting) >= self._window or request is None:
                yield self._outcome(waiting.pop(order.randrange(len(waiting))), num_outcomes)
                num_outcomes += 1
        while waiting:
            yield self._outcome(waiting.pop(order.randrange(len(waiting))), num_outcomes)
            num_outcomes += 1

    def _outcome(self, request: Request, num_outcomes: int) -> Outcome:
        if self._die_after is not None and num_outcomes >= self._die_after:
            raise MockDied(f"the mock engine was told to die after {self._die_after} outcomes")
        if self._delay_s:
            time.sleep(self._delay_s)
        if request.key in self._fail_at:
            return Failure(request.key, "the mock engine was told to fail here")
        sampling = request.sampling
        prompt = json.dumps(request.prompt)
        digest = sha256_json([prompt, sampling.temperature, sampling.top_p, sampling.max_tokens, request.seed])
        words = random.Random(digest).choices(WORDS, k=min(self._num_words, sampling.max_tokens))
        sentences = [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)]
        finish_reason = "length" if sampling.max_tokens <= self._num_words else "stop"
        text = ". ".join(sentences) + "."
        return Generation(request.key, text, len(prompt.split()), len(words), finish_reason)
