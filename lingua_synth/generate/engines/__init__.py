"""The engines, each in its own file; what one needs is imported when it is built or first used.

`vllm`: vLLM in this process. `hf`: transformers, on a CPU or one GPU. `openai`: any OpenAI-compatible server or pool of
them. `checkpoint`: a model of this library, on a CPU or one GPU. `mock`: no model, for tests. And `auto`: vllm where it
finds a device, else hf.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import Any

from lingua_synth.generate.engine import Engine
from lingua_synth.generate.engines.checkpoint import CheckpointEngine
from lingua_synth.generate.engines.hf import HFEngine
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.engines.openai import OpenAIEngine
from lingua_synth.generate.engines.vllm import VLLMEngine, find_device

ENGINES: dict[str, type] = {
    "vllm": VLLMEngine,
    "hf": HFEngine,
    "openai": OpenAIEngine,
    "checkpoint": CheckpointEngine,
    "mock": MockEngine,
}
"""Name -> class."""
AUTO = "auto"


def build_engine(name: str, **options: Any) -> Engine:
    """The engine `name` with its options; None and "" stand for an option that is not given.

    `auto` is vllm where vLLM is installed and finds a device that it runs on, else hf; an option that only the other
    one has is left out, with a warning. The engine's own name is in every record.

    Raises ValueError for an unknown engine, for an option that this engine does not have (naming those it has), and for
    what the engine itself refuses (no model, no server).
    """
    given = {key: value for key, value in options.items() if value is not None and value != ""}
    if name == AUTO:
        name = "vllm" if find_device() else "hf"
        other = "hf" if name == "vllm" else "vllm"
        idle = [key for key in given if key in _options(other) and key not in _options(name)]
        if idle:
            warnings.warn(f"engine auto is {name} here, which has no option {', '.join(idle)}: left out", stacklevel=2)
        given = {key: value for key, value in given.items() if key not in idle}
    if name not in ENGINES:
        near = difflib.get_close_matches(name, (*ENGINES, AUTO), n=1)
        known = ", ".join((*ENGINES, AUTO))
        raise ValueError(f"no engine {name!r}; {f'did you mean {near[0]}?' if near else 'known are ' + known}")
    unknown = [key for key in given if key not in _options(name)]
    if unknown:
        raise ValueError(f"engine {name} has no option {', '.join(unknown)}; it has {', '.join(_options(name))}")
    return ENGINES[name](**given)


def _options(name: str) -> list[str]:
    return list(inspect.signature(ENGINES[name]).parameters)
