"""Chat templates: messages -> the text a model reads, and which stretches of it are answers.

A template is Jinja, as Hugging Face models carry it, rendered by the rules of `transformers`. It comes from a model's
folder, from a file, or is the built-in `plain`, for vocabularies that have none. Where a template marks the
assistant's words ({% generation %}), the marks are the answers. Where it does not, an answer is what the template
writes between the conversation so far with a prompt for an answer, and the conversation with it; that holds only if
each is a beginning of the whole, which is checked for every conversation.

Names of special tokens inside a message are text: they are broken up before the template sees them, and put together
again before they are encoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lingua_synth.config import needs_extra
from lingua_synth.documents.conversations import ASSISTANT, Message
from lingua_synth.files import read_json, sha256_bytes, what_is_there
from lingua_synth.tokens.huggingface import TEMPLATE_FILE, TOKENIZER_CONFIG, TOKENIZER_JSON, compare_ids
from lingua_synth.tokens.tokenizer import Tokenizer

PLAIN = "plain"
# No marks of special tokens but BOS and EOS, which every vocabulary of ours can have. The prompt ends with a line
# break, so that no token of a byte-level vocabulary reaches from it into the answer.
PLAIN_TEXT = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('the plain template knows the roles system, user and assistant, not ' + message['role']) }}
    {%- endif %}
    {%- if not loop.first %}
        {{- '\\n\\n' }}
    {%- endif %}
    {{- '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}
    {%- if message['role'] == 'assistant' %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '\\n\\n### Assistant:\\n' }}
{%- endif %}
"""
TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt")

# Noncharacters of Unicode, which no text exchanged between programs may hold: they open and close an answer, and
# break up the name of a special token.
OPEN, CLOSE, BREAK = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{OPEN}{CLOSE}{BREAK}]")
_PROBE = "Probe of the system role."


class TemplateRefusal(Exception):
    """The template cannot write this one conversation; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    """Names of special tokens in it are special tokens; those of the messages hold BREAK."""
    answers: tuple[tuple[int, int], ...]
    """[start, end) of each answer, in order."""
    num_rewritten: int = 0
    """Answers that do not stand there as they were given: some templates leave the reasoning out."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it writes. Travels by pickle."""

    name: str
    """plain, or where it was read."""
    text: str
    special_tokens: Mapping[str, int]
    """Ids by name: where the template writes the name, it means the token."""
    bos_token: str
    """What {{ bos_token }} writes; empty where the vocabulary has none."""
    eos_token: str

    def __getstate__(self) -> dict[str, Any]:
        fields = ("name", "text", "special_tokens", "bos_token", "eos_token")
        return {key: self.__dict__[key] for key in fields}

    @property
    def sha256(self) -> str:
        """Of the template's text as UTF-8, hexadecimal."""
        return sha256_bytes(self.text.encode("utf-8"))

    @property
    def marks_answers(self) -> bool:
        """Whether the template says itself which words are the assistant's."""
        return re.search(r"\{%-?\s*generation\b", self.text) is not None

    @cached_property
    def has_system_role(self) -> bool:
        """Whether a system message is written; some templates refuse it, some leave it out without a word."""
        system = {"role": "system", "content": _PROBE}
        turns = [{"role": "user", "content": "Probe."}, {"role": ASSISTANT, "content": "Yes."}]
        try:
            self._write(turns)
        except TemplateRefusal as refusal:
            raise ValueError(
                f"the chat template {self.name} cannot write one question and its answer: {refusal}"
            ) from None
        try:
            return _PROBE in self._write([system, *turns])
        except TemplateRefusal:
            return False

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Matches the names of the special tokens, the longest first."""
        names = sorted(self.special_tokens, key=lambda name: (-len(name), name))
        return re.compile("|".join(map(re.escape, names)) if names else r"(?!)")

    def used_tokens(self) -> dict[str, int]:
        """The special tokens that the template can write: those it names, BOS and EOS."""
        own = (self.bos_token, self.eos_token)
        return {name: i for name, i in self.special_tokens.items() if name in self.text or name in own}

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Write a conversation and find its answers.

        A system message goes into the first turn, before a blank line, where the template has no system role. Raises
        TemplateRefusal for what this template cannot write, ValueError where it cannot tell the answers.
        """
        safe = [self._safe(message) for message in self._with_system(messages)]
        found = self._marked(safe) if self.marks_answers else self._by_prefixes(safe)
        given = [m["content"].strip() for m in safe if m["role"] == ASSISTANT and m.get("weight", 1)]
        written = [found.text[start:end] for start, end in found.answers]
        if len(given) != len(written):  # a template that marks several blocks an answer
            return found
        return replace(found, num_rewritten=sum(a not in b for a, b in zip(given, written, strict=True)))

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """What a server writes for these messages before the model answers."""
        safe = [self._safe(message) for message in self._with_system(messages)]
        return _MARKS.sub("", self._write(safe, prompt=True))

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if messages[0]["role"] != "system" or self.has_system_role:
            return list(messages)
        system, *turns = messages
        if not turns or turns[0]["role"] != "user":
            raise TemplateRefusal("a system message without a turn to go into")
        folded = f"{system['content']}\n\n{turns[0]['content']}"
        return [{**turns[0], "content": folded}, *turns[1:]]

    def _safe(self, message: Message) -> Message:
        content: str = message["content"]
        if _MARKS.search(content):
            raise TemplateRefusal("a noncharacter (U+FDD0 to U+FDD2) in a message")
        content = self.special_pattern.sub(lambda found: found[0][0] + BREAK + found[0][1:], content)
        return {**message, "content": content}

    def _marked(self, messages: list[Message]) -> Rendered:
        marked = self._write(messages)
        learned = [message.get("weight", 1) for message in messages if message["role"] == ASSISTANT]
        text, start = "", None
        answers: list[tuple[int, int]] = []
        for part in re.split(f"([{OPEN}{CLOSE}])", marked):
            if part == OPEN:
                start = len(text)
            elif part == CLOSE:
                assert start is not None, "the template's blocks nest"
                answers.append((start, len(text)))
            else:
                text += part
        if len(answers) != len(learned):
            if not all(learned):
                raise TemplateRefusal("an answer of weight 0 where the template does not mark one block an answer")
            learned = [1] * len(answers)
        kept = [span for span, weight in zip(answers, learned, strict=True) if weight and span[0] < span[1]]
        return Rendered(text, tuple(kept))

    def _by_prefixes(self, messages: list[Message]) -> Rendered:
        text = self._write(messages)
        answers: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message["role"] != ASSISTANT or not message.get("weight", 1):
                continue
            before = self._write(messages[:i], prompt=True)
            after = text if i + 1 == len(messages) else self._write(messages[: i + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(
                    f"the chat template {self.name} does not write answer {len(answers) + 1} of a conversation as a "
                    "continuation of what comes before it (some leave earlier reasoning out, or prompt in other words "
                    "than they record): which tokens are the answer cannot be told. Mark the assistant's words in the "
                    "template with {% generation %} ... {% endgeneration %}, or take chat_template=plain"
                )
            if len(before) < len(after):
                answers.append((len(before), self._end_of_turn(text, len(before), len(after))))
        return Rendered(text, tuple(answers))

    def _end_of_turn(self, text: str, start: int, end: int) -> int:
        """End of an answer behind the token that ends it; white space behind that is the template's."""
        ends = [match.end() for match in self.special_pattern.finditer(text, start, end)]
        return ends[-1] if ends and not text[ends[-1] : end].strip() else end

    def _write(self, messages: list[Message], *, prompt: bool = False) -> str:
        # What transformers gives a template; `tools` and `documents` are looked at by many.
        given = {"bos_token": self.bos_token, "eos_token": self.eos_token, "tools": None, "documents": None}
        spoken = [{"role": message["role"], "content": message["content"]} for message in messages]
        compiled = self._compiled
        try:
            return compiled.render(messages=spoken, add_generation_prompt=prompt, **given)
        except Exception as error:  # whatever the template raises: a refusal of its own, or a slip on odd input
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TemplateRefusal(f"the chat template refuses it: {first[:120]}") from None

    @cached_property
    def _compiled(self) -> Any:
        try:
            from jinja2 import TemplateSyntaxError
        except ImportError:
            raise ValueError(f"chat_template: {needs_extra(['jinja2'], 'train')}") from None
        try:
            return _environment().from_string(self.text)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template {self.name} is no Jinja: line {error.lineno}: {error.message}"
            ) from None


def _environment() -> Any:
    """Jinja as transformers sets it up: sandboxed, with its switches and functions.

    Left out: `strftime_now`, whose text would change from day to day. Templates ask whether it is defined.
    """
    import json

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: what the assistant says."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return OPEN + caller() + CLOSE

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = tojson
    return environment


# ---- where templates come from ----


def read_chat_template(where: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template `where`: plain, a Jinja file, or a folder with a Hugging Face tokenizer; for `tokenizer`.

    Of a folder, the names of special tokens are taken with their ids, and its vocabulary must be `tokenizer`'s (that is
    compared where the library `tokenizers` is installed). Else the names are the vocabulary's own.

    Raises ValueError for a place without a template, and a template with special tokens that the vocabulary lacks.
    """
    specials = tokenizer.special_tokens()
    names = {token_id: name for name, token_id in specials.items()}
    bos, eos = names.get(tokenizer.bos_id, ""), names.get(tokenizer.eos_id, "")
    if where == PLAIN:
        return ChatTemplate(PLAIN, PLAIN_TEXT, specials, bos, eos)
    path = Path(where)
    if path.is_dir():
        return _of_folder(path, tokenizer, bos, eos)
    if not path.is_file() or path.suffix not in TEMPLATE_SUFFIXES:
        raise ValueError(
            f"chat_template is {PLAIN}, a file of Jinja ({', '.join(TEMPLATE_SUFFIXES)}) or the folder of a Hugging "
            f"Face tokenizer; got {where}: {what_is_there(path)}"
        )
    return ChatTemplate(where, _read_text(path), specials, bos, eos)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the chat template {path} is not UTF-8") from None


def _of_folder(folder: Path, tokenizer: Tokenizer, bos: str, eos: str) -> ChatTemplate:
    config = _read_object(folder / TOKENIZER_CONFIG)
    text = _template_text(folder, config)
    ids = _special_ids(folder, config)
    bos_token, eos_token = (_name(config.get(key), own) for key, own in (("bos_token", bos), ("eos_token", eos)))
    allowed = {}
    own = tokenizer.special_tokens()
    for name, token_id in {**own, **ids}.items():
        is_special = token_id in own.values() and token_id < tokenizer.n_words
        if is_special or (token_id < tokenizer.n_words and tokenizer.token_text(token_id) == name):
            allowed[name] = token_id
        elif name in text or name in (bos_token, eos_token):
            raise ValueError(
                f"the chat template of {folder} writes the special token {name}, id {token_id}, which is none of "
                f"tokenizer {tokenizer.name} {tokenizer.path or ''} ({tokenizer.n_words:,} entries): the folder is of "
                "another vocabulary"
            )
    # Two names of one id: the folder's own is what the template means.
    allowed = {name: i for name, i in allowed.items() if name in ids or i not in ids.values()}
    if (folder / TOKENIZER_JSON).is_file():
        try:
            compare_ids(tokenizer, folder / TOKENIZER_JSON)
        except ValueError as error:
            raise ValueError(f"the tokenizer in {folder} has another vocabulary than the one given: {error}") from None
    return ChatTemplate(str(folder), text, allowed, bos_token, eos_token)


def _template_text(folder: Path, config: Mapping[str, Any]) -> str:
    if (folder / TEMPLATE_FILE).is_file():
        return _read_text(folder / TEMPLATE_FILE)
    found = config.get("chat_template") or _read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several by name
        by_name = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        found = by_name.get("default")
    if not isinstance(found, str) or not found:
        raise ValueError(
            f"no chat template in {folder}: neither {TEMPLATE_FILE} nor chat_template in {TOKENIZER_CONFIG}; take "
            f"chat_template={PLAIN}, or a file of Jinja"
        )
    return found


def _special_ids(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Names and ids of the tokens that are special to a Hugging Face tokenizer."""
    added = config.get("added_tokens_decoder") or {}
    ids = {entry["content"]: int(token_id) for token_id, entry in added.items() if entry.get("special", True)}
    for entry in _read_object(folder / TOKENIZER_JSON).get("added_tokens") or ():
        if entry.get("special", True):
            ids.setdefault(entry["content"], int(entry["id"]))
    return ids


def _name(token: Any, otherwise: str) -> str:
    name = token.get("content") if isinstance(token, Mapping) else token
    return name if isinstance(name, str) else otherwise


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object")
    return found
