"""An engine without a model: made-up text, always the same for a request, and failures on demand. For tests only.

Its name is in every record, so that nothing it wrote can pass for generated text.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection, Generator, Iterator, Mapping
from typing import Any

from lingua_synth.files import sha256_json
from lingua_synth.generate.engine import Failure, Generation, Outcome, Request

WORDS = ("stone", "river", "lamp", "seven", "green", "letter", "under", "early", "no", "model", "the")  # fmt: skip

FAULTS = ("fail", "empty", "refuse", "repeat", "echo")
FAILED_BY_RATE = "the mock engine was told to fail at this rate"
REFUSAL = "I'm sorry, but as an AI language model I cannot help with that request."


class MockDied(RuntimeError):
    """What `die_after` raises: an engine that breaks for good in the middle of its work."""


class MockEngine:
    """Text from the hash of prompt, sampling and seed, in sentences of ten words; a token is a word.

    `faults`: kind -> share of the requests, in [0, 1], that go wrong so, decided by the request's seed, hence the same
    ones in any order and others at a second attempt: `fail` (a `Failure`), `empty` (no text), `refuse` (an apology),
    `repeat` (one sentence again and again, to the limit), `echo` (the prompt). They are part of the engine's name.
    `fail_at`: keys of requests that become a `Failure`. `die_after`: `run` raises `MockDied` after so many outcomes.
    `window`: requests held at a time, returned in a mixed but fixed order. `delay_s`: seconds each outcome takes.
    """

    revision = "mock"
    prompt_kinds = ("chat", "text")
    num_gpus = 0
    context_tokens: int | None = None

    def __init__(
        self,
        *,
        faults: Mapping[str, float] | None = None,
        fail_at: Collection[str] = (),
        die_after: int | None = None,
        window: int = 8,
        delay_s: float = 0.0,
        num_words: int = 120,
    ) -> None:
        self._faults = _validated(faults or {})
        self.name = ":".join(["mock", *(f"{kind}={share:g}" for kind, share in self._faults.items() if share)])
        self._fail_at = frozenset(fail_at)
        self._die_after = die_after
        self._window = window
        self._delay_s = delay_s
        self._num_words = num_words
        self.num_requests = 0
        """Requests taken since the engine was made."""

    def description(self) -> dict[str, Any]:
        """That there is no model, and the faults."""
        return {"mock": True, "faults": dict(self._faults)}

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
        fault = self._fault(request)
        if fault == "fail":
            return Failure(request.key, FAILED_BY_RATE)
        prompt = json.dumps(request.prompt)
        sampling = request.sampling
        text = self._text(request, prompt, fault)
        num_words = len(text.split())
        finish_reason = "length" if sampling.max_tokens <= num_words else "stop"
        return Generation(request.key, text, len(prompt.split()), num_words, finish_reason)

    def _fault(self, request: Request) -> str | None:
        if not self._faults:
            return None
        place = random.Random(f"fault {request.seed}").random()
        for kind, share in self._faults.items():
            place -= share
            if place < 0:
                return kind
        return None

    def _text(self, request: Request, prompt: str, fault: str | None) -> str:
        sampling = request.sampling
        if fault == "empty":
            return ""
        if fault == "refuse":
            return _first_words(REFUSAL, sampling.max_tokens)
        if fault == "echo":
            asked = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
            return _first_words(asked, sampling.max_tokens)
        digest = sha256_json([prompt, sampling.temperature, sampling.top_p, sampling.max_tokens, request.seed])
        num_words = sampling.max_tokens if fault == "repeat" else min(self._num_words, sampling.max_tokens)
        words = random.Random(digest).choices(WORDS, k=10 if fault == "repeat" else num_words)
        if fault == "repeat":
            words = [words[place % 10] for place in range(num_words)]
        return ". ".join(" ".join(words[start : start + 10]) for start in range(0, num_words, 10)) + "."


def _first_words(text: str, count: int) -> str:
    words = text.split()
    return text if len(words) <= count else " ".join(words[:count])


def _validated(faults: Mapping[str, float]) -> dict[str, float]:
    for kind, share in faults.items():
        if kind not in FAULTS:
            raise ValueError(f"the mock engine has no fault {kind!r}; it has {', '.join(FAULTS)}")
        if not 0 <= share <= 1:
            raise ValueError(f"faults.{kind} is a share of the requests, between 0 and 1; got {share}")
    if sum(faults.values()) > 1 + 1e-9:
        raise ValueError(f"the shares of all faults together are at most 1; got {sum(faults.values()):g}")
    return {kind: float(faults[kind]) for kind in FAULTS if kind in faults}
