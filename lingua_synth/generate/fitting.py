"""Prompts that fit the generator's context, by reading less of the document and of what earlier steps wrote.

    prompt ──longer than the context less the answer's room──> the same prompt with lower limits, until it fits

Recipes state their cuts in tokens, for any generator; one with a short context gets less. The instructions are never
cut, and what has no document or earlier text to shorten is left to the engine, which fails that one request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lingua_synth.generate.engine import CountTokens, Prompt
from lingua_synth.generate.recipe import Step

# What chat templates write around the messages.
TEMPLATE_TOKENS = 64
# Below this many tokens of the document a prompt asks for nothing sensible.
LEAST_TOKENS = 16


def fit(render: Callable[[Step], Prompt], step: Step, count_tokens: CountTokens, context_tokens: int | None) -> Prompt:
    """`render(step)`, with `max_input_tokens` and `max_step_tokens` lowered as far as the context needs.

    The answer's room is the step's `max_tokens`, at most half of the context. Prompts that fit come back as they are;
    so do those that would not fit with 16 tokens of the document. `context_tokens` None: the engine knows no limit, or
    keeps to it by itself.
    """
    prompt = render(step)
    if context_tokens is None:
        return prompt
    limit = context_tokens - min(step.sampling.max_tokens, context_tokens // 2) - TEMPLATE_TOKENS
    smaller, shorter = step, prompt
    while (num_tokens := _length(shorter, limit, count_tokens)) > limit:
        factor = max(0, limit) / num_tokens
        inputs, steps = int(smaller.max_input_tokens * factor), int(smaller.max_step_tokens * factor)
        if max(inputs, steps) < LEAST_TOKENS:
            return prompt
        smaller = dataclasses.replace(smaller, max_input_tokens=max(1, inputs), max_step_tokens=max(1, steps))
        shorter = render(smaller)
    return shorter


def _length(prompt: Prompt, limit: int, count_tokens: CountTokens) -> int:
    """Tokens of the prompt's own texts; 0 where they are fewer bytes than the limit, which needs no counting."""
    text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
    # Of every vocabulary a token is at least a byte, but for a few special ones.
    return 0 if len(text.encode("utf-8", "surrogatepass")) <= limit else (count_tokens(text) or 0)
