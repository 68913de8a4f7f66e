"""The engine for OpenAI-compatible servers: one or a pool of replicas, over plain HTTP.

    the caller's thread: requests in, results out  <──>  one event loop in a thread: at most a window of them per server

A request that meets 429, 5xx, a broken connection, a slow or garbled answer is sent again, after a pause that doubles
and has a random part, to whichever server is free. A server that keeps failing is rested while the others go on, and
tried again with one request. Anything else a server refuses (400: too long, no such model) is a failure at once.

A server that has too much to do says so with 429 or 5xx, or answers too late: its window is halved, and grows again by
one request for every window of answers (AIMD, as TCP shares a line: Chiu and Jain, 1989), up to `max_in_flight`.

The API key is read from OPENAI_API_KEY. It is in no record, no file and no message of this library.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import queue
import random
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lingua_synth.generate.engine import Failure, Generation, Outcome, Request, estimate_tokens, fold_system

if TYPE_CHECKING:
    import aiohttp

API_KEY_VARIABLE = "OPENAI_API_KEY"
# 408 and 409 are what proxies answer when a request was lost on the way; 425 and 429 ask for patience.
RETRIED_STATUSES = frozenset({408, 409, 425, 429})
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
FIRST_REST_S = 1.0
FAILURES_BEFORE_REST = 3
MAX_ERROR_CHARS = 300
ROLE_HINT = "; fold_system=true puts the system message into the user turn"
TOO_LONG_HINT = "; prompt and max_tokens share the model's context: lower max_tokens or the recipe's max_input_tokens"


class _Retry(Exception):
    """An attempt that may succeed when it is made again."""

    def __init__(
        self, reason: str, pause_s: float | None = None, server_failed: bool = True, has_too_much: bool = False
    ) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        """What the server asks for, in seconds; None: it does not say."""
        self.server_failed = server_failed
        """Whether this speaks against the server's health; a 429 does not."""
        self.has_too_much = has_too_much
        """Whether fewer requests at a time may help."""


class _Refused(Exception):
    """An answer that no second attempt will change."""


@dataclass
class _Server:
    """A replica: where it is, how busy, and whether it is being rested."""

    url: str
    max_in_flight: int
    in_flight: int = 0
    num_failures: int = 0
    """In a row, those of requests that were under way when a rest began not counted."""
    num_rests: int = 0
    """Since it last answered."""
    rested_until: float = 0.0
    """On the clock of time.monotonic."""
    window: float = field(init=False)
    """Most requests under way now, rounded down."""
    halved_at: float = 0.0
    """On the same clock."""

    def __post_init__(self) -> None:
        self.window = self.max_in_flight

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def capacity(self, now: float) -> int:
        """How many more requests it may get now; one at a time when it has failed and its rest is over."""
        if now < self.rested_until:
            return 0
        return (1 if self.num_failures >= FAILURES_BEFORE_REST else int(self.window)) - self.in_flight

    def note_answer(self) -> None:
        """It is well."""
        self.num_failures = self.num_rests = 0
        self.window = min(self.max_in_flight, self.window + 1 / self.window)

    def note_too_much(self, sent_at: float, now: float) -> None:
        """Halve the window, once for all requests that were sent before it was halved."""
        if sent_at >= self.halved_at:
            self.window = max(1.0, self.window / 2)
            self.halved_at = now


class OpenAIEngine:
    """Chat completions, and completions for text prompts, from `base_url`: one address or several with commas between.

    `model`: the name that the servers know. `revision`: which weights they serve, as only their owner knows.
    `max_in_flight`: most requests under way at each server. `max_retries`: further attempts of one request.
    `timeout_s`: for one attempt. `fold_system`: put the system message into the first user turn, for chat templates
    that refuse the role.

    Raises ValueError for a missing model or address, and from `run` when no server answers or the key is refused.
    """

    prompt_kinds = ("chat", "text")
    context_tokens = None

    def __init__(
        self,
        model: str = "",
        base_url: str = "",
        *,
        revision: str = "unknown",
        max_in_flight: int = 64,
        max_retries: int = 5,
        timeout_s: float = 600.0,
        fold_system: bool = False,
    ) -> None:
        try:
            import aiohttp  # noqa: F401
        except ImportError:
            raise ValueError("engine openai needs aiohttp: pip install 'lingua-synth[openai]'") from None
        if not model:
            raise ValueError("engine openai needs model=, the name under which the server knows its model")
        urls = [url.strip().rstrip("/") for url in base_url.split(",") if url.strip()]
        if not urls:
            raise ValueError(
                "engine openai needs base_url=, e.g. base_url=http://127.0.0.1:8000/v1; several with commas"
            )
        for url in urls:
            _validate_url(url)
        if len(set(urls)) < len(urls):
            raise ValueError("base_url names a server twice; name each once and raise max_in_flight instead")
        for key, value, least in (("max_in_flight", max_in_flight, 1), ("max_retries", max_retries, 0)):
            if value < least:
                raise ValueError(f"{key} must be at least {least}, got {value}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        self.name = f"openai:{model}"
        self.revision = revision
        self._model = model
        self._urls = urls
        self._max_in_flight = max_in_flight
        self._max_retries = max_retries
        self._timeout_s = timeout_s
        self._fold_system = fold_system

    def count_tokens(self, text: str) -> int | None:
        """None: only the server has the tokenizer."""
        return None

    @property
    def num_gpus(self) -> int:
        """0: the servers' GPUs are not this process's."""
        return 0

    def description(self) -> dict[str, Any]:
        """What this side knows: the client's version, how many servers, and who sees the system message."""
        import aiohttp

        role = "folded" if self._fold_system else "sent"
        return {"aiohttp": aiohttp.__version__, "num_servers": len(self._urls), "system_role": role}

    def run(self, requests: Iterator[Request | None]) -> Generator[Outcome, None, None]:
        """Keep every server's window full until the requests are through; results as they arrive."""
        outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        room = self._max_in_flight * len(self._urls)
        num_waiting = 0
        exhausted = False
        with _Client(self, outcomes) as client:
            while True:
                while not exhausted and num_waiting < room:
                    try:
                        request = next(requests)
                    except StopIteration:
                        exhausted = True
                        break
                    if request is None:  # more come when more is done
                        break
                    client.submit(request)
                    num_waiting += 1
                    # Taking requests (reading, rendering) must not keep finished ones waiting.
                    if not outcomes.empty():
                        break
                if not num_waiting:
                    return
                outcome = outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                num_waiting -= 1
                yield outcome

    def _payload(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Path below the base URL and JSON body."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed,
        }
        if isinstance(request.prompt, str):
            return "/completions", {**body, "prompt": request.prompt}
        messages = fold_system(request.prompt) if self._fold_system else request.prompt
        return "/chat/completions", {**body, "messages": messages}


class _Client:
    """The event loop's side: servers, attempts, pauses. Lives as long as one `run`."""

    def __init__(self, engine: OpenAIEngine, outcomes: queue.SimpleQueue[Outcome | BaseException]) -> None:
        self._engine = engine
        self._outcomes = outcomes
        self._servers = [_Server(url, engine._max_in_flight) for url in engine._urls]
        self._key = os.environ.get(API_KEY_VARIABLE, "").strip()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai engine", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed: asyncio.Condition

    # --- called from the runner's thread ---

    def __enter__(self) -> _Client:
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, request: Request) -> None:
        """Start working on `request`; its outcome goes to the queue."""
        self._loop.call_soon_threadsafe(self._start, request)

    # --- called in the event loop ---

    def _start(self, request: Request) -> None:
        task = self._loop.create_task(self._work(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        import aiohttp

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            # The servers' windows are the limit; aiohttp's own of 100 connections would be a second one.
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(
                total=self._engine._timeout_s, sock_connect=min(30.0, self._engine._timeout_s)
            ),
        )
        self._freed = asyncio.Condition()
        try:
            problems = await asyncio.gather(*(self._knock(server) for server in self._servers))
        except BaseException:
            await self._session.close()
            raise
        if all(problems):
            await self._session.close()
            raise ValueError(
                f"no server answers: {'; '.join(str(problem) for problem in problems)}. "
                "Start it first, or correct base_url"
            )

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _knock(self, server: _Server) -> str | None:
        """Whether there is a server at all, before documents are sent to it. A server without `/models` is one, too."""
        import aiohttp

        try:
            async with self._session.get(
                f"{server.url}/models", timeout=aiohttp.ClientTimeout(total=30), allow_redirects=False
            ) as response:
                if response.status in (401, 403):
                    raise ValueError(self._key_refused(server, response.status))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            server.num_failures = FAILURES_BEFORE_REST
            return f"{server.host}: {_words(error)}"
        return None

    def _key_refused(self, server: _Server, status: int) -> str:
        state = "the value was refused" if self._key else "it is not set"
        return f"{server.host} answers {status}: it wants a key, and of {API_KEY_VARIABLE} in the environment, {state}"

    async def _work(self, request: Request) -> None:
        try:
            self._outcomes.put(await self._outcome(request))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._outcomes.put(error)

    async def _outcome(self, request: Request) -> Outcome:
        path, body = self._engine._payload(request)
        data = json.dumps(body).encode()
        for attempt in range(self._engine._max_retries + 1):
            server = await self._acquire()
            sent_at = time.monotonic()
            try:
                answer = await self._post(server, path, data)
                outcome = _read_answer(request, answer)
            except _Refused as error:
                # The server is well, it is the request that is not.
                server.note_answer()
                return Failure(request.key, self._without_key(f"{server.host}: {error}"))
            except _Retry as error:
                reason = self._without_key(f"{server.host}: {error}")
                if error.has_too_much:
                    server.note_too_much(sent_at, time.monotonic())
                self._note_failure(server, error)
                pause_s = self._pause_s(attempt, error)
            else:
                server.note_answer()
                return outcome
            finally:
                await self._release(server)
            if attempt < self._engine._max_retries:
                await asyncio.sleep(pause_s)
        return Failure(request.key, f"given up after {self._engine._max_retries + 1} attempts; the last: {reason}")

    async def _post(self, server: _Server, path: str, data: bytes) -> Any:
        """The decoded JSON answer; `_Retry` or `_Refused` otherwise."""
        import aiohttp

        try:
            async with self._session.post(
                server.url + path, data=data, headers={"Content-Type": "application/json"}, allow_redirects=False
            ) as response:
                content = await response.read()
                status = response.status
                retry_after = _retry_after_s(response)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _Retry(_words(error), has_too_much=isinstance(error, TimeoutError)) from None
        if status in (401, 403):
            raise ValueError(self._key_refused(server, status))
        if status in RETRIED_STATUSES:
            raise _Retry(_status_in_words(status, content), retry_after, server_failed=False, has_too_much=True)
        if status >= 500:
            raise _Retry(_status_in_words(status, content), retry_after, has_too_much=True)
        if status != 200:
            # What the templates of models without a system role raise; the messages are Mistral's and Gemma's.
            role = b"roles must alternate" in content or b"System role not supported" in content
            raise _Refused(_status_in_words(status, content) + (ROLE_HINT if role else _context_hint(content)))
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise _Retry(f"an answer that is not JSON: {_excerpt(content)!r}") from None

    async def _acquire(self) -> _Server:
        """The least busy server with room; waits until there is one."""
        async with self._freed:
            while True:
                now = time.monotonic()
                free = [server for server in self._servers if server.capacity(now) > 0]
                if free:
                    server = min(free, key=lambda one: one.in_flight)
                    server.in_flight += 1
                    return server
                # Nothing wakes us when a rest ends.
                rests = [server.rested_until - now for server in self._servers if server.rested_until > now]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), min(rests) if rests else None)

    async def _release(self, server: _Server) -> None:
        async with self._freed:
            server.in_flight -= 1
            # All of them: what is free may be a place at a server, or several.
            self._freed.notify_all()

    def _note_failure(self, server: _Server, error: _Retry) -> None:
        """Rest `server` where it is due. ValueError when no server is left that answers."""
        now = time.monotonic()
        if not error.server_failed:
            # Not a failure: all requests of this server wait as long as it asks, and those of others do not.
            pause_s = min(error.pause_s or 0.0, LONGEST_PAUSE_S)
            server.rested_until = max(server.rested_until, now + pause_s)
            return
        if now < server.rested_until:
            return
        server.num_failures += 1
        if server.num_failures >= FAILURES_BEFORE_REST:
            # No server is waited for longer than that, whatever it asks for: after its rest it is asked by one request.
            pause_s = max(error.pause_s or 0.0, FIRST_REST_S * 2.0**server.num_rests)
            server.rested_until = now + min(LONGEST_PAUSE_S, pause_s)
            server.num_rests += 1
        if all(one.num_rests > self._engine._max_retries for one in self._servers):
            hosts = ", ".join(one.host for one in self._servers)
            raise ValueError(
                f"no server answers any more ({hosts}), after {server.num_rests} rests; the last error: "
                f"{self._without_key(str(error))}. Start them again and run the same command to go on from here"
            )

    def _pause_s(self, attempt: int, error: _Retry) -> float:
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**attempt)
        # Between half and all of it: replicas that failed together must not be asked again together.
        pause_s *= 0.5 + 0.5 * random.random()
        if error.pause_s is not None and len(self._servers) == 1:
            pause_s = max(pause_s, min(error.pause_s, LONGEST_PAUSE_S))
        return pause_s

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _validate_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or 0 < parts.port < 65_536
    except ValueError:
        port_is_fine, parts = False, urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise ValueError(f"base_url {url!r} is no address of a server; one looks like http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ValueError(f"base_url must hold no user or password; the key is read from {API_KEY_VARIABLE}")


def _read_answer(request: Request, answer: Any) -> Generation:
    """The generation in a completion; `_Retry` when the answer is not one."""
    try:
        choice = answer["choices"][0]
        text = choice["text"] if isinstance(request.prompt, str) else choice["message"]["content"]
        finish_reason = str(choice.get("finish_reason") or "stop")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Retry(f"an answer without a completion: {_excerpt(json.dumps(answer).encode())!r}") from None
    # null: a model that only reasoned, or called a tool.
    text = "" if text is None else text
    if not isinstance(text, str):
        raise _Retry(f"a completion that is no text but {type(text).__name__}")
    usage = answer.get("usage")
    prompt_tokens, output_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if prompt_tokens is not None and output_tokens is not None:
        cached = _count(usage.get("prompt_tokens_details"), "cached_tokens")
        return Generation(request.key, text, prompt_tokens, output_tokens, finish_reason, cached or 0)
    prompt = request.prompt if isinstance(request.prompt, str) else "".join(m["content"] for m in request.prompt)
    return Generation(
        request.key, text, estimate_tokens(prompt), estimate_tokens(text), finish_reason, tokens_are_estimates=True
    )


def _count(said: Any, name: str) -> int | None:
    """A number of tokens that a server reports; None where it reports none, or something else."""
    value = said.get(name) if isinstance(said, dict) else None
    return value if isinstance(value, int) and value >= 0 else None


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """`Retry-After` in seconds from now; it comes as seconds or as a date."""
    value = response.headers.get("Retry-After")
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _excerpt(content: bytes) -> str:
    text = " ".join(content.decode("utf-8", "replace").split())
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "..."


def _status_in_words(status: int, content: bytes) -> str:
    return f"{status} {_excerpt(content)}".strip()


def _context_hint(content: bytes) -> str:
    """What to change where a server says that a request does not fit; the words are vLLM's, SGLang's and OpenAI's."""
    words = (b"context length", b"context_length", b"max_model_len", b"maximum context", b"maximum input length")
    return TOO_LONG_HINT if any(word in content.lower() for word in words) else ""


def _words(error: BaseException) -> str:
    # Errors of aiohttp and asyncio are often empty but for their type.
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
