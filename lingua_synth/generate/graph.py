"""One input on its way through a recipe's steps: which calls are due, and what has become of it.

    due calls -> engine -> text -> filters -> gate -> record, or what later steps go on from -> due calls -> ...

A branch ends where a call fails, a filter drops its text or a gate gives up; other branches go on. An input is done
when nothing is due any more. Everything follows from the texts alone, so the same texts, read from a journal after a
kill, lead to the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lingua_synth.documents import Document
from lingua_synth.generate.engine import CountTokens, Prompt, whole_characters
from lingua_synth.generate.filters import Verdict
from lingua_synth.generate.fitting import fit
from lingua_synth.generate.parsers import Parsed
from lingua_synth.generate.recipe import DOCUMENT, Recipe, Step, put_in

NO_ITEMS = "no_items"
GATE = "gate"


@dataclass(frozen=True)
class Call:
    """One call of the generator that is due."""

    step: Step
    item: int | None = None
    """Number of the item it is for, from 1; None: the document as a whole."""
    attempt: int = 0

    @property
    def key(self) -> str:
        """Its name in the input: what a journal knows it by."""
        return f"{self.step.name}.{self.item or 0}.{self.attempt}"


@dataclass(frozen=True)
class Ended:
    """A branch whose text was dropped."""

    name: str
    """The filter's or the gate's."""
    reason: str


@dataclass
class Progress:
    """An input and how far it has come."""

    document: Document
    sample: int
    position: int
    """Of the document in the whole input."""
    variables: Mapping[str, str]
    num_due: int = 0
    """Calls that are due or under way."""
    texts: dict[tuple[str, int | None], str] = field(default_factory=dict)
    """What each step has written, by step and item; only what was not dropped."""
    parsed: dict[tuple[str, int | None], Parsed] = field(default_factory=dict)
    items: dict[int, str] = field(default_factory=dict)
    """What each item says."""
    begun: set[tuple[str, int | None]] = field(default_factory=set)


class Graph:
    """The rules of one recipe, for any input."""

    def __init__(self, recipe: Recipe, seed: int, count_tokens: CountTokens, context_tokens: int | None = None) -> None:
        self.recipe = recipe
        self._seed = seed
        self._count_tokens = count_tokens
        self._context_tokens = context_tokens
        self._children = {step.name: recipe.children(step.name) for step in recipe.steps}
        self._with_items = {step.name: recipe.has_items(step) for step in recipe.steps}

    def begin(self, document: Document, sample: int, position: int) -> tuple[Progress, list[Call]]:
        """An input with the calls that are due first."""
        progress = Progress(document, sample, position, self.recipe.assigned(self._seed, position, sample))
        calls: list[Call] = []
        for step in self.recipe.steps:
            if not step.after:
                calls += self._begin_step(progress, step, None)
        progress.num_due += len(calls)
        return progress, calls

    def prompt(self, progress: Progress, call: Call, seed: int) -> Prompt:
        """What the generator is asked."""
        step = call.step
        values = dict(progress.variables)
        for (name, item), text in progress.texts.items():
            if item in (None, call.item):
                values[name] = text
        document = progress.document
        if call.item is not None:
            values["item"], values["item_number"] = progress.items[call.item], str(call.item)
            if step.for_each == DOCUMENT:
                document = Document(document.id, progress.items[call.item])

        def render(step: Step) -> Prompt:
            return self.recipe.render(step, document, values, self._count_tokens, seed)

        # Of a document in pieces nothing may be left out: a piece that does not fit is a failure.
        context_tokens = self._context_tokens if step.for_each != DOCUMENT else None
        return fit(render, step, self._count_tokens, context_tokens)

    def fail(self, progress: Progress) -> None:
        """A call gave no text: its branch ends."""
        progress.num_due -= 1

    def retry(self, progress: Progress, call: Call, found: Parsed) -> Call | Ended | None:
        """The same call with another seed where the gate asks for it, its end where it gives up, or None: go on."""
        gate = call.step.gate
        needs_items = any(child.for_each == call.step.name for child in self._children[call.step.name])
        least = max(gate.min_items if gate is not None else 0, int(needs_items))
        if len(found.items) >= least:
            return None
        if gate is not None and call.attempt < gate.retries:
            return Call(call.step, call.item, call.attempt + 1)
        progress.num_due -= 1
        times = f" in {call.attempt + 1} attempts" if call.attempt else ""
        name = GATE if gate is not None else NO_ITEMS
        return Ended(name, f"{len(found.items)} items, fewer than {least}{times}")

    def drop(self, progress: Progress, verdict: Verdict) -> Ended:
        """A filter dropped the text: its branch ends."""
        assert verdict.dropped_by is not None, "drop is for texts that a filter dropped"
        progress.num_due -= 1
        return Ended(verdict.dropped_by, verdict.reasons[verdict.dropped_by])

    def go_on(self, progress: Progress, call: Call, text: str, found: Parsed) -> list[Call]:
        """The text is accepted, with what its step's parser found in it: the calls that it makes due."""
        step, item = call.step, call.item
        progress.texts[step.name, item] = text
        progress.parsed[step.name, item] = found
        progress.num_due -= 1
        calls: list[Call] = []
        for child in self._children[step.name]:
            calls += self._begin_step(progress, child, item)
        progress.num_due += len(calls)
        return calls

    def record_text(self, progress: Progress, call: Call) -> str:
        """The text of the record that an accepted call gives."""
        step = call.step
        if not step.record:
            return progress.texts[step.name, call.item]
        values = {name: text for (name, item), text in progress.texts.items() if item in (None, call.item)}
        return put_in(step.record, {**values, DOCUMENT: whole_characters(progress.document.text).strip()})

    def fields(self, progress: Progress, item: int | None) -> dict[str, Any]:
        """Named values that the steps' parsers found on the way to an output, by step."""
        found = {
            name: parsed.fields
            for (name, at), parsed in progress.parsed.items()
            if parsed.fields and at in (None, item)
        }
        return found

    def _begin_step(self, progress: Progress, step: Step, item: int | None) -> list[Call]:
        """Calls of `step` that are due now that something before it is done (for `item`, if that is one of several)."""
        if step.for_each is not None:
            return self._begin_items(progress, step)
        if not self._with_items[step.name]:
            contexts: list[int | None] = [None]
        else:
            contexts = [item] if item is not None else list(progress.items)
        calls = []
        for context in contexts:
            done = all((name, context if self._with_items[name] else None) in progress.texts for name in step.after)
            if done and (step.name, context) not in progress.begun:
                progress.begun.add((step.name, context))
                calls.append(Call(step, context))
        return calls

    def _begin_items(self, progress: Progress, step: Step) -> list[Call]:
        if (step.name, None) in progress.begun or any((name, None) not in progress.texts for name in step.after):
            return []
        progress.begun.add((step.name, None))
        if step.for_each == DOCUMENT:
            found = tuple(self.recipe.pieces(step, progress.document, self._count_tokens)) or ("",)
        else:
            assert step.for_each is not None, "called for steps with items"
            found = progress.parsed[step.for_each, None].items
        # Two steps that take the same items apart share their numbers; others cannot meet (recipe_from).
        progress.items.update(enumerate(found, 1))
        return [Call(step, number) for number in range(1, len(found) + 1)]
