"""Prompts as a Hugging Face model wants them, the same for every engine that holds such a model in this process.

    chat messages -> system role, or folded into the user turn -> chat template -> token ids
    a text        -> BOS, where the tokenizer adds one         -> token ids

Nothing here imports a model library: the tokenizer is handed over by the engine.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from lingua_synth.files import sha256_json
from lingua_synth.generate.engine import Failure, Prompt, Request, fold_system

PROBE_SYSTEM = "Probe of the system role."
# Enough of a file of weights to tell two trainings apart: its header, or the first matrices, and the last ones.
BYTES_OF_AN_END = 1 << 20


class ModelTokenizer:
    """The tokenizer and chat template of `model`, a name or a folder; `tokenizer` is what transformers loads for it."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer = tokenizer
        self._model = model

    def count(self, text: str) -> int:
        """Length of `text` in tokens, without special ones."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: BOS for a text, the chat template for messages.

        Raises ValueError for messages where the model has no chat template.
        """
        if isinstance(prompt, str):
            return list(self._tokenizer.encode(prompt))
        rendered = self._render(prompt if self.has_system_role else fold_system(prompt))
        # Templates write BOS themselves.
        return list(self._tokenizer.encode(rendered, add_special_tokens=False))

    def _render(self, messages: Prompt) -> str:
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the chat template takes a system message; some refuse it and some leave it out without a word."""
        if self._template is None:
            raise ValueError(
                f"{self._model} has no chat template, so it takes no chat: name an instruction-tuned model, or a "
                "recipe with prompt: text, such as continue"
            )
        messages = [{"role": "system", "content": PROBE_SYSTEM}, {"role": "user", "content": "Probe."}]
        try:
            return PROBE_SYSTEM in self._render(messages)
        except Exception:  # whatever the template raises, in Jinja's own words
            return False

    @property
    def _template(self) -> Any:
        return getattr(self._tokenizer, "chat_template", None) or None

    def describe(self) -> dict[str, Any]:
        """`template_sha256` of the chat template as it is written, and `system_role`: taken or folded. Null: none."""
        if self._template is None:
            return {"template_sha256": None, "system_role": None}
        role = "taken" if self.has_system_role else "folded"
        return {"template_sha256": sha256_json(self._template), "system_role": role}


def too_long(request: Request, num_tokens: int, context: int) -> Failure:
    """The failure of a request whose prompt leaves no room for an answer."""
    return Failure(request.key, f"a prompt of {num_tokens:,} tokens; the context has {context:,}")


def model_revision(model: str, commit: str | None, asked: str | None) -> str:
    """Which weights `model` has: the hub's commit; of a plain folder `files:` and a hash; else what was asked for.

    The hash covers the names and sizes of the folder's files and what stands in the first and the last MiB of each.
    """
    folder = Path(model)
    if commit or not folder.is_dir():
        return commit or asked or "unknown"
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            digest.update(file.read(BYTES_OF_AN_END))
            file.seek(max(0, size - BYTES_OF_AN_END))
            digest.update(file.read())
    return f"files:{digest.hexdigest()[:16]}"
