"""What a filter may look at besides the text itself."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from lingua_synth.documents import Document
from lingua_synth.generate.engine import Generation, Prompt


@dataclass(frozen=True)
class FilterContext:
    """Where a text comes from. The same run gives the same context for the same text, whatever finished first."""

    source: Document
    """The natural document."""
    generation: Generation
    """What the engine said of the text: tokens, finish reason."""
    template: str = ""
    """The step's system and user templates, placeholders as they stand in the recipe."""
    render: Callable[[], Prompt] = str
    """Gives the prompt that was sent. Called only by filters that read it: a long document takes time to cut."""

    @functools.cached_property
    def prompt_text(self) -> str:
        """All that the generator was told, as one text."""
        prompt = self.render()
        return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


_LINE_BREAKS = re.compile(r"[\r\n]+")


@functools.lru_cache(maxsize=8)
def split_words(text: str) -> tuple[str, ...]:
    """Lower-case words, cut at white space. Several filters ask this of the same text, so the last few are kept."""
    return tuple(text.lower().split())


def split_lines(text: str) -> list[str]:
    """Lines that hold something, without white space around them."""
    return [line.strip() for line in _LINE_BREAKS.split(text) if line.strip()]
