"""Filters that hold a text against what the generator was given: its instructions, its document, its language."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lingua_synth.config import needs_extra
from lingua_synth.generate.filters.context import FilterContext, split_words


@dataclass
class PromptEchoParameters:
    """Settings of `prompt_echo`."""

    min_words: int = 12
    """A run of so many words that also stands in the recipe's templates fails the output; at least 4."""


@dataclass
class CopyParameters:
    """Settings of `copy`."""

    max_share: float = 0.9
    """Largest share of the output's word n-grams that stand in the prompt, in [0, 1)."""
    ngram_words: int = 8
    """Words of an n-gram."""
    min_words: int = 40
    """Shorter outputs are not judged."""


@dataclass
class LanguageParameters:
    """Settings of `language`."""

    min_probability: float = 0.8
    """Source and output are compared only where the identifier gives both languages so much, in [0, 1]."""
    max_chars: int = 1000
    """Beginning of either that is identified."""


def prompt_echo(text: str, context: FilterContext, parameters: PromptEchoParameters) -> str | None:
    """Repeats the instructions: the longest run of words it shares with the templates is `min_words` or more."""
    # A run of n words covers a whole block of k words that begins at a multiple of k, if n >= 2k - 1: only these
    # blocks are looked up, and what is found is followed both ways.
    block = (parameters.min_words + 1) // 2
    places = _template_blocks(context.template, block)
    if not places:
        return None
    words, template = split_words(text), split_words(context.template)
    longest = (0, 0)
    for start in range(0, len(words) - block + 1, block):
        for place in places.get(words[start : start + block], ()):
            back = 0
            while back < min(start, place) and words[start - back - 1] == template[place - back - 1]:
                back += 1
            end = block
            while (
                start + end < len(words) and place + end < len(template) and words[start + end] == template[place + end]
            ):
                end += 1
            longest = max(longest, (back + end, start - back))
    length, first = longest
    if length < parameters.min_words:
        return None
    shown = " ".join(words[first : first + 8])
    return f"repeats {length} words of the instructions: {shown!r}..."


@functools.lru_cache(maxsize=64)
def _template_blocks(template: str, block: int) -> Mapping[tuple[str, ...], tuple[int, ...]]:
    """Places of every run of `block` words in the templates."""
    words = split_words(template)
    places: dict[tuple[str, ...], tuple[int, ...]] = {}
    for start in range(len(words) - block + 1):
        key = words[start : start + block]
        places[key] = (*places.get(key, ()), start)
    return places


def copy(text: str, context: FilterContext, parameters: CopyParameters) -> str | None:
    """Copied: more than `max_share` of its word n-grams stand in what the generator read.

    Words are compared in lower case, with their punctuation. What was read is the prompt: the document as it was cut,
    or, in a step that reads none, what earlier steps wrote.
    """
    words = split_words(text)
    size = parameters.ngram_words
    total = len(words) - size + 1
    if len(words) < parameters.min_words or total < 1:
        return None
    # Texts that are no copies, nearly all, are done when so many are missing that the rest cannot make up for it.
    missing_allowed = total - parameters.max_share * total
    read = context.prompt_text.lower().split()
    candidates = _ngrams_of_known_words(words, set(read), size)
    missing = total - len(candidates)
    if missing >= missing_allowed > 0:
        return None
    given = f" {' '.join(read)} "
    written = f" {' '.join(words)} "
    starts, ends = _word_bounds(words)
    for first in candidates:
        if written[starts[first] : ends[first + size - 1]] not in given:
            missing += 1
            if missing >= missing_allowed:
                return None
    share = 1 - missing / total
    if share <= parameters.max_share:  # a max_share of 1, or no n-gram that could be missing
        return None
    return f"{share:.0%} of word {size}-grams are copied, more than {parameters.max_share:.0%}"


def _ngrams_of_known_words(words: tuple[str, ...], known: set[str], size: int) -> list[int]:
    """Where the n-grams begin whose words are all in `known`: no other can stand in a text of these words."""
    found, run = [], 0
    for place, word in enumerate(words):
        run = run + 1 if word in known else 0
        if run >= size:
            found.append(place - size + 1)
    return found


def _word_bounds(words: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Where each word begins and ends, with the space on either side, in the words joined by spaces."""
    starts, ends, place = [], [], 0
    for word in words:
        starts.append(place)
        place += len(word) + 1
        ends.append(place + 1)
    return starts, ends


def language(text: str, context: FilterContext, parameters: LanguageParameters) -> str | None:
    """Written in another language than the source document, as far as both can be told (py3langid, 97 languages)."""
    most = parameters.max_chars
    source, source_probability = _identify(context.source.text[:most])
    if source_probability < parameters.min_probability:
        return None
    written, probability = _identify(text[:most])
    if written == source or probability < parameters.min_probability:
        return None
    return f"written in {written}, the source in {source}"


def language_is_available() -> None:
    """ValueError, with what to install, where the library behind `language` is missing."""
    _identifier()


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ValueError(f"filter language: {needs_extra(['py3langid'], 'filters')}") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.lru_cache(maxsize=64)
def _identify(text: str) -> tuple[str, float]:
    """Language and its probability; several outputs of one document ask for the same."""
    found, probability = _identifier().classify(text)
    return str(found), float(probability)


# --- question-answer pairs ---


@dataclass
class QaPairsParameters:
    """Settings of `qa_pairs`."""

    question: str = "Question"
    """Tag of a question, without its colon; case does not count."""
    answer: str = "Answer"
    """Tag of an answer."""
    min_pairs: int = 1
    """Outputs of fewer pairs fail."""


def qa_pairs(text: str, context: FilterContext, parameters: QaPairsParameters) -> str | None:
    """Tags out of balance: a question without an answer, an answer without a question, or too few pairs.

    A tag may stand anywhere in a line, be numbered and in Markdown: `**Question 3:**`.
    """
    low = text.lower()
    tags = _tags(parameters.question.lower(), parameters.answer.lower()).finditer(low)
    found = [bool(tag[1]) for tag in tags if tag.start() == 0 or not low[tag.start() - 1].isalnum()]
    questions, answers = found.count(True), found.count(False)
    if found != [True, False] * (len(found) // 2):
        return f"questions: {questions:,}, answers: {answers:,}, " + (
            "not in turn" if questions == answers else "unequal"
        )
    if questions < parameters.min_pairs:
        return f"question-answer pairs: {questions:,}, fewer than {parameters.min_pairs:,}"
    return None


@functools.lru_cache(maxsize=64)
def _tags(question: str, answer: str) -> re.Pattern[str]:
    return re.compile(rf"(?:({re.escape(question)})|{re.escape(answer)})[ \t]*\d*[*_]*:")
