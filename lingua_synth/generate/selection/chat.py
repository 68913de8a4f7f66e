"""Traces as conversations for supervised fine-tuning: system, user, assistant.

    TraceView ──System-2──> <think> reasoning </think> answer     ──System-1──> answer

A student that shall also answer without thinking is trained on both (NaturalThoughts): which rows think is drawn with a
probability, or decided by difficulty (think where teacher and reference disagree).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingua_synth.generate.selection.traces import TraceTable, TraceView

THINK_PROMPT = (
    "Work the problem out before you reply. Put your whole line of thought between <think> and </think>: try ideas, "
    "check them, go back where one fails. After </think> give the final answer, complete and without the detours."
)
NO_THINK_PROMPT = "Reply with the final answer at once. Do not write down any line of thought, and no <think> section."
ADAPTIVE_PROMPT = (
    "Judge first how hard the problem is. If you are sure of the answer, give it at once. Otherwise put your line of "
    "thought between <think> and </think>, and give the final answer after it."
)

SYSTEM_PROMPTS = ("by_mode", "adaptive", "none")
"""by_mode: a row says whether to think; adaptive: all rows leave that to the student; none: no system message."""

DIFFICULTY = "difficulty"


def plan_thinking(table: TraceTable, system2: str | float = 1.0, *, seed: int = 0) -> NDArray[np.bool_]:
    """Which rows are to show their reasoning (System-2); the others give the answer only (System-1).

    `system2`: "difficulty", i.e. where teacher and reference disagree, or the probability in [0, 1] of every row.
    NaturalThoughts at 10k traces: by difficulty 36 % think, 38.9 on GPQA-Diamond; all think: 37.6, with longer answers.
    """
    if system2 == DIFFICULTY:
        return np.asarray(table.column("agree") == 0)
    try:
        probability = float(system2)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"system2 is {DIFFICULTY} or a probability in [0, 1], got {system2!r}")
    return np.asarray(table.draws(seed, "system2") < probability)


def system_prompt(think: bool, prompts: str) -> str | None:
    """The system message of a row; ValueError for an unknown choice of SYSTEM_PROMPTS."""
    if prompts not in SYSTEM_PROMPTS:
        raise ValueError(f"system_prompts is one of {', '.join(SYSTEM_PROMPTS)}, got {prompts!r}")
    if prompts == "none":
        return None
    if prompts == "adaptive":
        return ADAPTIVE_PROMPT
    return THINK_PROMPT if think else NO_THINK_PROMPT


def chat_row(view: TraceView, think: bool, prompts: str = "by_mode") -> dict[str, Any]:
    """{"id", "messages": [{"role", "content"}, ...], "think"} of one trace; ValueError where a text is missing."""
    system = system_prompt(think, prompts)
    answer = _text(view, "answer")
    said = f"<think>\n{_text(view, 'reasoning')}\n</think>\n\n{answer}" if think else answer
    messages = [{"role": "user", "content": _text(view, "question")}, {"role": "assistant", "content": said}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"id": view.document.id, "messages": messages, "think": think}


def _text(view: TraceView, name: str) -> str:
    text: str = view.get(name).strip()
    if not text:
        raise ValueError(f"the {name} of record {view.document.id!a} is empty; pool=complete leaves such records out")
    return text
