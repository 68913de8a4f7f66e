"""What an engine is: requests in, generations or failures out, in any order.

    Request(key, prompt, sampling, seed, group)  ──engine.run──>  Generation(key, text, counts) | Failure(key, error)

The runner hands an engine an iterator and reads from an iterator. The engine takes a request whenever it has room for
one and yields a result whenever it has one, so that it stays busy to the end of the input, and every request comes
back once. Where the next requests depend on outcomes that the engine has not given yet, the iterator gives None. What
breaks a single request is a `Failure`; what breaks the engine itself is an exception out of `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

CHARS_PER_TOKEN = 4
"""The estimate where an engine cannot count tokens: a round figure for English text and large vocabularies."""

IDENTITY_KEYS = ("dtype", "template_sha256", "system_role")
"""Of an engine's description, what decides its texts beside name and revision: another one is another run."""

Message: TypeAlias = dict[str, str]
Prompt: TypeAlias = list[Message] | str
CountTokens: TypeAlias = Callable[[str], int | None]


@dataclass(frozen=True)
class Sampling:
    """How text is drawn: temperature (0: the likeliest token), nucleus mass top_p in (0, 1], most output tokens."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Request:
    """One text to generate. Chat messages and a plain text prompt are the two kinds of prompt."""

    key: str
    """Unique in a run; comes back with the result."""
    prompt: Prompt
    sampling: Sampling
    seed: int
    """In [0, 2^31): small enough for every server and generator there is."""
    group: int = 0
    """Requests of one group may share a batch. Where text depends on the batch, batches never span two groups."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The text of a request, counted in the generator's own tokens."""

    key: str
    text: str
    prompt_tokens: int
    output_tokens: int
    """As the engine counts them; the end-of-text token included where the model wrote one."""
    finish_reason: str
    """`stop`: the model ended the text; `length`: cut at `max_tokens` or at the context; or the server's own word."""
    cached_tokens: int = 0
    """Of the prompt's tokens, those that the engine had read before (prefix caching)."""
    tokens_are_estimates: bool = False
    """True when a server did not report counts: they are then characters / 4."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that gave no text, with the reason in words."""

    key: str
    error: str


Outcome: TypeAlias = Generation | Failure


class Engine(Protocol):
    """Anything that turns requests into outcomes."""

    @property
    def name(self) -> str:
        """Kind and model, `vllm:mistralai/Mistral-7B-Instruct-v0.1`; written in every record."""

    @property
    def revision(self) -> str:
        """Which weights: a commit, a hash, or `unknown`; written in every record. Another revision is another run."""

    @property
    def prompt_kinds(self) -> tuple[str, ...]:
        """Which of `chat` and `text` it takes."""

    @property
    def num_gpus(self) -> int:
        """GPUs that this process holds for it; 0 on a CPU, and for a server elsewhere."""

    @property
    def context_tokens(self) -> int | None:
        """Most tokens of a prompt and its answer; None: not known here, or the engine keeps to it by itself."""

    def description(self) -> dict[str, Any]:
        """What texts are made with, as plain data (versions, device, `IDENTITY_KEYS`); kept in a run's run.json."""

    def count_tokens(self, text: str) -> int | None:
        """Length of `text` in the generator's tokens, or None where only the server knows."""

    def run(self, requests: Iterator[Request | None]) -> Generator[Outcome, None, None]:
        """Yield one outcome per request, in any order. Closing the returned generator abandons what is in flight.

        Requests are taken in the thread that reads the outcomes. None instead of a request: there is none before more
        outcomes have been read; the engine goes on with what it holds and asks again after its next outcome. It is
        given only while requests are under way.
        """


def estimate_tokens(text: str) -> int:
    """Characters / 4, rounded up: the stand-in where an engine cannot count."""
    return -(-len(text) // CHARS_PER_TOKEN)


def fold_system(messages: list[Message]) -> list[Message]:
    """The messages for a chat template without a system role: its text, a blank line, then the first user turn."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def whole_characters(text: str) -> str:
    """`text` without halves of surrogate pairs, which no UTF-8 file can hold: each becomes U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
