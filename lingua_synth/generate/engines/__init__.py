"""The engines, each in its own file; what one needs is imported when it is built or first used.

`checkpoint`: a model of this library, on a CPU or one GPU. `openai`: any OpenAI-compatible server or pool of them.
`vllm`: vLLM in this process. `mock`: no model, for tests.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from lingua_synth.generate.engine import Engine
from lingua_synth.generate.engines.checkpoint import CheckpointEngine
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.engines.openai import OpenAIEngine
from lingua_synth.generate.engines.vllm import VLLMEngine

ENGINES: dict[str, type] = {
    "checkpoint": CheckpointEngine,
    "openai": OpenAIEngine,
    "vllm": VLLMEngine,
    "mock": MockEngine,
}
"""Name -> class."""


def build_engine(name: str, **options: Any) -> Engine:
    """The engine `name` with its options; None and "" stand for an option that is not given.

    Raises ValueError for an unknown engine, for an option that this engine does not have (naming those it has), and for
    what the engine itself refuses (no model, no server).
    """
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        raise ValueError(
            f"no engine {name!r}; {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(ENGINES)}"
        )
    given = {key: value for key, value in options.items() if value is not None and value != ""}
    known = list(inspect.signature(ENGINES[name]).parameters)
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(f"engine {name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return ENGINES[name](**given)
