"""Lines of conversations -> messages: what fine-tuning reads instead of texts.

A line is one conversation, in any of the forms that tools write:

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}           ShareGPT's words
    {"prompt": ..., "completion": ...}         or response, answer; texts, or lists of messages
    {"question": ..., "answer": ...}
    {"instruction": ..., "input": ..., "output": ...}                                             Alpaca's; input if any

A `system` beside the last four is a system message. Turns behind the last answer are left out: nothing is learned from
them. An assistant's message with `"weight": 0` is read and not learned from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lingua_synth.documents.document import utf8_document_id
from lingua_synth.documents.reading import BadLine, decode_line, refuse_undecoded

Message = dict[str, Any]
"""`role` and `content`, both strings; `weight` 0 on an answer that is not to be learned."""

ASSISTANT = "assistant"
# Key of the question, further text of it, keys of the answer in the order they are looked for.
PAIRS = (
    ("prompt", "", ("completion", "response", "answer")),
    ("question", "", ("answer", "response")),
    ("instruction", "input", ("output", "response")),
)
ROLES = {"human": "user", "user": "user", "gpt": ASSISTANT, "assistant": ASSISTANT, "system": "system"}
"""ShareGPT's speakers; others keep their name."""
CONVERSATION_KEYS = tuple(
    dict.fromkeys(
        ["messages", "conversations", "system"]
        + [key for question, more, answers in PAIRS for key in (question, more, *answers) if key]
    )
)
"""Every key that a conversation is read from."""


def parse_conversation(row: Mapping[str, Any]) -> list[Message]:
    """The messages of one line, up to its last answer. Raises BadLine with the reason why there are none."""
    if row.get("messages") is not None:
        messages = _messages(row["messages"])
    elif row.get("conversations") is not None:
        messages = _messages(row["conversations"], role_key="from", text_key="value")
    else:
        messages = _pair(row)
    last = max((i for i, message in enumerate(messages) if message["role"] == ASSISTANT), default=-1)
    if last < 0:
        raise BadLine("no answer")
    messages = messages[: last + 1]
    answers = [message for message in messages if message["role"] == ASSISTANT]
    if any(not message["content"].strip() for message in answers):
        raise BadLine("empty answer")
    if not any(message.get("weight", 1) for message in answers):
        raise BadLine("no answer of weight 1")
    return messages


def conversation_utf8(row: Mapping[str, Any]) -> tuple[str, bytes]:
    """The id of a conversation, and its messages as UTF-8 JSON, which is what tokenization hands from step to step.

    Without an id of its own it is known by the hash of its messages. Raises BadLine as `parse_conversation`.
    """
    messages = parse_conversation(row)
    try:
        data = json.dumps(messages, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise BadLine("lone surrogate") from None
    identity = row.get("id")
    return utf8_document_id(data) if identity is None or identity == "" else str(identity), data


def parse_conversation_line(line: bytes) -> tuple[str, bytes]:
    """`conversation_utf8` of one line of JSON."""
    return conversation_utf8(decode_line(line))


def parse_conversation_row(row: dict[str, Any]) -> tuple[str, bytes]:
    """`conversation_utf8` of one row of parquet."""
    refuse_undecoded(row)
    return conversation_utf8(row)


def _messages(found: Any, role_key: str = "role", text_key: str = "content") -> list[Message]:
    if not isinstance(found, list) or not found:
        raise BadLine("messages are not a list")
    messages = []
    for one in found:
        if not isinstance(one, Mapping):
            raise BadLine("a message is not an object")
        role = one.get(role_key, one.get("role"))
        if not isinstance(role, str) or not role:
            raise BadLine("a message without a role")
        if one.get("tool_calls") or one.get("function_call"):
            raise BadLine("a message that calls tools")
        message: Message = {
            "role": ROLES.get(role, role) if role_key == "from" else role,
            "content": _content(one.get(text_key, one.get("content"))),
        }
        if one.get("weight") is not None and message["role"] == ASSISTANT:
            if one["weight"] not in (0, 1):
                raise BadLine("a weight that is neither 0 nor 1")
            if one["weight"] == 0:
                message["weight"] = 0
        messages.append(message)
    return messages


def _content(content: Any) -> str:
    if isinstance(content, list):  # parts, as in the OpenAI format
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise BadLine("content that is not text")
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadLine("content that is not text")
    return content


def _pair(row: Mapping[str, Any]) -> list[Message]:
    for question, more, answers in PAIRS:
        if row.get(question) is None:
            continue
        answer = next((row[key] for key in answers if row.get(key) is not None), None)
        if answer is None:
            continue
        said = _side(row[question], "user")
        if more and row.get(more):
            said[-1]["content"] += "\n\n" + _content(row[more])
        if row.get("system"):
            said.insert(0, {"role": "system", "content": _content(row["system"])})
        return said + _side(answer, ASSISTANT)
    raise BadLine("neither messages nor a question with an answer")


def _side(said: Any, role: str) -> list[Message]:
    return _messages(said) if isinstance(said, list) else [{"role": role, "content": _content(said)}]
