"""Recipes: how synthetic text is made, as data. One YAML file each; none is code.

A recipe is a small graph of steps, each one call of the generator on a document, on what earlier steps wrote, or on
one item of it:

    document ──outline──> items 1..10 ──chapter, for_each: outline──> ten records
    document ──teacher──┐
             ──answer───┴─judge──annotate──> one record with the fields of all

A prompt is the step's templates with `{document}`, `{item}`, `{item_number}`, the name of an earlier step or of an
assigned variable replaced, in one pass: documents are full of braces. What is put in is cut at a sentence end to the
step's limits.

A recipe may offer variants, sets of changes to its steps that are chosen by name (`textbook+keywords`). The changes
become part of the recipe's name, as they make other texts of the same documents.
"""

from __future__ import annotations

import bisect
import dataclasses
import difflib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from lingua_synth.config import build_args
from lingua_synth.documents import Document
from lingua_synth.files import sha256_json, what_is_there
from lingua_synth.generate.engine import (
    CHARS_PER_TOKEN,
    CountTokens,
    Prompt,
    Sampling,
    estimate_tokens,
    whole_characters,
)
from lingua_synth.generate.filters import FILTERS, FilterArgs, build_filter
from lingua_synth.generate.parsers import PARSERS, Parsed

PROMPT_KINDS = ("chat", "text")
DOCUMENT = "document"
RESERVED = (DOCUMENT, "item", "item_number", "keywords")
"""Placeholders with a meaning of their own; no step or variable is called so."""
# {{word}} is written as {word}; ${word} stays, as shells and other templates mean it.
_PLACEHOLDER = re.compile(r"\{\{(?P<literal>\w+)\}\}|(?<!\$)\{(?P<name>[a-z][a-z0-9_]*)\}")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_WITH_VARIANTS = re.compile(r"(?P<name>\w+|.+\.ya?ml)\+(?P<variants>\w+(?:\+\w+)*)")

# No tokenizer we know of packs more than this into a token on average, so what lies behind is cut before it is counted.
MAX_CHARS_PER_TOKEN = 32


@dataclass
class SamplingArgs:
    """How text is drawn."""

    temperature: float = 0.7
    """0 or more; 0 takes the likeliest token."""
    top_p: float = 0.95
    """Nucleus mass in (0, 1]."""
    max_tokens: int = 2048
    """Most output tokens."""


@dataclass
class GateArgs:
    """What a step's text must hold to be gone on with."""

    min_items: int = 1
    """Fewer parsed items are asked for again, with another seed."""
    max_items: int | None = None
    """Items beyond so many are left out; null: all are used."""
    retries: int = 2
    """Further attempts; when none is left, this branch of the document ends as filtered."""


@dataclass
class StepArgs:
    """One call of the generator."""

    name: str = ""
    """What the step does; part of every record's identity, and a placeholder of later steps."""
    after: list[str] | None = None
    """Steps that come before; null: the one before in the file, none for the first."""
    for_each: str | None = None
    """`document`: once for each piece of a long document; a step's name: once for each of its parsed items."""
    prompt: str = "chat"
    """chat: messages for an instruction-tuned model; text: a prefix for a base model."""
    system: str = ""
    """System message; chat only. Empty: none."""
    user: str = ""
    """User message, or the whole text prompt, with {document}, {item}, {item_number}, {keywords}, steps, variables."""
    prompt_words: int | None = None
    """Only the document's first so many words are put in; null: all of it."""
    max_input_tokens: int = 2000
    """The document, or its piece, is cut at a sentence end to at most so many of the generator's tokens."""
    max_step_tokens: int = 2000
    """So is what an earlier step wrote, each."""
    parse: str = "text"
    """How the text is read: text (as it is) or the name of a parser that finds items or fields in it."""
    gate: GateArgs | None = None
    """When the text is asked for again; null: never."""
    emit: bool | None = None
    """Whether the text becomes a record; null: if no step comes after it."""
    record: str = ""
    """Text of the record, with {document}, this step and those before it; empty: what the step wrote."""
    expected_output_tokens: int = 0
    """Usual length of an output, for estimates of time and cost; 0: unknown."""
    sampling: SamplingArgs = field(default_factory=SamplingArgs)
    """How text is drawn."""
    filters: list[Any] = field(default_factory=list)
    """What is checked on every output: a list of {name, action, parameters}."""


@dataclass
class VariantArgs:
    """Changes of a recipe that are chosen by name."""

    description: str = ""
    """One line for the list of recipes."""
    steps: dict[str, Any] = field(default_factory=dict)
    """Step -> its fields with new values; `replace` holds words of its templates and what stands there instead."""


@dataclass
class RecipeArgs:
    """A recipe file."""

    name: str = ""
    """Part of every record's identity."""
    version: int = 1
    """To be raised with every change of the recipe."""
    description: str = ""
    """One line for the list of recipes."""
    citation: str = ""
    """Where the recipe comes from."""
    evidence: list[str] = field(default_factory=list)
    """What others measured with it, and who."""
    generator: str = ""
    """The model that the source used; for information."""
    assign: dict[str, Any] = field(default_factory=dict)
    """Variables: name -> list of values. Each document gets one, all equally often, decided by the run's seed."""
    keywords: int = 12
    """Words drawn from the document for the placeholder {keywords}."""
    variants: dict[str, Any] = field(default_factory=dict)
    """Changes to choose by name: name -> {description, steps: {step: {field: new value, or replace: {old: new}}}}."""
    steps: list[Any] = field(default_factory=list)
    """The calls of the generator, each after those it needs."""


@dataclass(frozen=True)
class Gate:
    """A validated `GateArgs`."""

    min_items: int = 1
    max_items: int | None = None
    retries: int = 2


def _names(template: str) -> frozenset[str]:
    return frozenset(match["name"] for match in _PLACEHOLDER.finditer(template) if match["name"])


def put_in(template: str, values: Mapping[str, str]) -> str:
    """`template` with the values of its placeholders, in one pass; every one of them has a value."""
    return _PLACEHOLDER.sub(
        lambda match: f"{{{match['literal']}}}" if match["literal"] else values[match["name"]], template
    )


@dataclass(frozen=True)
class Step:
    """A validated `StepArgs`."""

    name: str
    after: tuple[str, ...]
    for_each: str | None
    prompt: str
    system: str
    user: str
    prompt_words: int | None
    max_input_tokens: int
    max_step_tokens: int
    parse: str
    gate: Gate | None
    emit: bool
    record: str
    expected_output_tokens: int
    sampling: Sampling
    filters: tuple[FilterArgs, ...]

    @property
    def placeholders(self) -> frozenset[str]:
        """Names that the templates put something in for."""
        return _names(self.user) | _names(self.system)

    @property
    def prompt_sha256(self) -> str:
        """Identity of the prompt: SHA-256 over its kind, both templates and the cuts."""
        keys = ("prompt", "system", "user", "prompt_words", "max_input_tokens")
        return sha256_json({key: getattr(self, key) for key in keys})

    def parsed(self, text: str) -> Parsed:
        """What the step's parser finds in `text`, items beyond the gate's `max_items` left out."""
        found = PARSERS[self.parse](text)
        most = self.gate.max_items if self.gate is not None else None
        return found if most is None else dataclasses.replace(found, items=found.items[:most])


@dataclass(frozen=True)
class Recipe:
    """A validated recipe file; see `RecipeArgs` and `StepArgs` for the fields."""

    name: str
    version: int
    description: str
    citation: str
    evidence: tuple[str, ...]
    generator: str
    steps: tuple[Step, ...]
    """Every step after those it needs."""
    assign: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Variables with their values."""
    keywords: int = 12
    variants: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """Name and description of each variant that may be chosen; for information."""

    @property
    def prompt_kinds(self) -> tuple[str, ...]:
        """Which of `chat` and `text` the steps use."""
        return tuple(sorted({step.prompt for step in self.steps}))

    @property
    def expected_output_tokens(self) -> int:
        """Usual tokens written for a document by all steps, items counted as the gate asks; 0: unknown."""
        total = 0
        for step in self.steps:
            if not step.expected_output_tokens:
                return 0
            total += step.expected_output_tokens * self.expected_calls(step)
        return total

    def expected_calls(self, step: Step) -> int:
        """Calls of `step` a document, where the number of items is known from a gate; 1 else."""
        calls = 1
        for one in (*self._ancestors(step), step):
            parent = self.step(one.for_each) if one.for_each not in (None, DOCUMENT) else None
            if parent is not None and parent.gate is not None:
                calls *= parent.gate.max_items or parent.gate.min_items
        return calls

    def step(self, name: str | None) -> Step:
        """The step called `name`."""
        return next(step for step in self.steps if step.name == name)

    def children(self, name: str) -> tuple[Step, ...]:
        """Steps that come directly after `name`."""
        return tuple(step for step in self.steps if name in step.after)

    def _ancestors(self, step: Step) -> tuple[Step, ...]:
        found = {
            name for parent in step.after for name in (parent, *(s.name for s in self._ancestors(self.step(parent))))
        }
        return tuple(one for one in self.steps if one.name in found)

    def has_items(self, step: Step) -> bool:
        """Whether `step` is called once for each of several items, its own or those of a step before it."""
        return any(one.for_each is not None for one in (*self._ancestors(step), step))

    @property
    def sha256(self) -> str:
        """SHA-256 of the identity."""
        return sha256_json(self.identity())

    def identity(self) -> dict[str, Any]:
        """All that decides the output, as plain data: name, version, variables, and steps with prompts and filters."""
        content = self.to_dict()
        return {key: content[key] for key in ("name", "version", "assign", "keywords", "steps")}

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data; `recipe_from` reads it back."""
        values = dataclasses.asdict(self, dict_factory=lambda items: {k: _plain(v) for k, v in items})
        del values["variants"]
        return {**values, "assign": {name: list(choices) for name, choices in self.assign}}

    def with_sampling(self, **changes: Any) -> Recipe:
        """The recipe with `temperature`, `top_p` or `max_tokens` of all steps changed; None leaves a value as it is."""
        given = {key: value for key, value in changes.items() if value is not None}
        steps = []
        for step in self.steps:
            sampling = dataclasses.replace(step.sampling, **given)
            _validate_sampling(sampling, f"recipe {self.name}")
            steps.append(dataclasses.replace(step, sampling=sampling))
        return dataclasses.replace(self, steps=tuple(steps))

    def assigned(self, seed: int, position: int, sample: int = 0) -> dict[str, str]:
        """The variables' values for the document at `position` of the input, from 0.

        Of n values, any n documents in a row that begin at a multiple of n get each once, in an order drawn from the
        run's seed; another sample of a document gets the next value.
        """
        found = {}
        for name, choices in self.assign:
            block, place = divmod(position, len(choices))
            key = ["assign", seed, self.name, name, block]
            order = sorted(choices, key=lambda choice: sha256_json([*key, choice]))
            found[name] = order[(place + sample) % len(choices)]
        return found

    def render(
        self,
        step: Step,
        document: Document,
        values: Mapping[str, str] | None = None,
        count_tokens: CountTokens | None = None,
        seed: int = 0,
    ) -> Prompt:
        """The prompt of `step` for `document`: chat messages, or a text where the step's prompt is `text`.

        `values`: what stands for the other placeholders (earlier steps' texts, item, item_number, variables).
        `count_tokens` measures the cuts in the generator's tokens; where it is missing or knows nothing, a token is
        taken as 4 characters. `seed` draws the {keywords}.
        """
        wanted = step.placeholders
        filled = dict(values or {})
        names = {one.name for one in self.steps}
        for name in wanted & filled.keys() & names:
            filled[name] = cut_at_sentence(whole_characters(filled[name]).strip(), step.max_step_tokens, count_tokens)
        if DOCUMENT in wanted:
            filled[DOCUMENT] = self.document_text(step, document, count_tokens)
        if "keywords" in wanted:
            filled["keywords"] = ", ".join(draw_keywords(document.text, self.keywords, seed))
        missing = wanted - filled.keys()
        assert not missing, f"no value for {missing}: recipe_from checks what a step may name"

        user = put_in(step.user, filled)
        if step.prompt == "text":
            return user
        system = [{"role": "system", "content": put_in(step.system, filled)}] if step.system else []
        return [*system, {"role": "user", "content": user}]

    @staticmethod
    def document_text(step: Step, document: Document, count_tokens: CountTokens | None = None) -> str:
        """What `step` reads of a document: its beginning, up to the step's limits."""
        text = whole_characters(document.text).strip()
        if step.prompt_words is not None:
            text = first_words(text, step.prompt_words)
        return cut_at_sentence(text, step.max_input_tokens, count_tokens)

    @staticmethod
    def pieces(step: Step, document: Document, count_tokens: CountTokens | None = None) -> list[str]:
        """A document as the texts that a step with `for_each: document` reads one by one; nothing is left out."""
        rest = whole_characters(document.text).strip()
        found = []
        while rest:
            piece = cut_at_sentence(rest, step.max_input_tokens, count_tokens)
            if not piece:
                break
            found.append(piece)
            rest = rest[len(piece) :].strip()
        return found


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _builtin_folder() -> Any:
    return resources.files("lingua_synth.generate") / "recipes"


RECIPES: tuple[str, ...] = tuple(
    sorted(file.name.removesuffix(".yaml") for file in _builtin_folder().iterdir() if file.name.endswith(".yaml"))
)
"""Names of the built-in recipes."""


def load_recipe(
    name_or_path: str | Path, variant: str = "", override: Mapping[str, Mapping[str, Any]] | None = None
) -> Recipe:
    """A built-in recipe by name, or the recipe in a YAML file.

    `variant`: names of the recipe's variants, separated by commas; `load_recipe("textbook+keywords")`, which is how
    the recipe is then called, says the same. `override`: new values of steps' fields, step -> {field: value}; the
    recipe is then called by a hash of them too, as its texts are others.

    Raises ValueError, naming the file and the nearest known name, for a recipe or variant that does not exist, a field
    that does not exist, a value that does not fit, a step that names what does not come before it.
    """
    name = str(name_or_path)
    chosen = [part.strip() for part in variant.split(",") if part.strip()]
    called = _WITH_VARIANTS.fullmatch(name)
    if called:
        name = called["name"]
        chosen += called["variants"].split("+")
    if name in RECIPES:
        file, where = _builtin_folder() / f"{name}.yaml", f"recipe {name}"
        values = _read_yaml(file.read_text(encoding="utf-8"), where)
        assert values["name"] == name, "a built-in recipe is named as its file"
        return recipe_from(values, where, chosen, override)
    if not name.endswith((".yaml", ".yml")):
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"built in are {', '.join(RECIPES)};"
        raise ValueError(f"no recipe {name!r}; {hint} a recipe of your own is given as the path of its .yaml file")
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"no recipe file {path}; {what_is_there(path)}; built in are {', '.join(RECIPES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    return recipe_from(_read_yaml(text, str(path)), str(path), chosen, override)


def recipe_from(
    values: Any,
    where: str = "the given recipe",
    variants: Sequence[str] = (),
    override: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recipe:
    """Build a recipe from plain data, with the chosen `variants` and then `override` (see `load_recipe`) applied.

    ValueError, naming `where`, for whatever is not as `RecipeArgs` says, in a variant that is not chosen too.
    """
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where} must hold a mapping with keys name, version, steps, ...; got {type(values).__name__}"
        )
    args = build_args(RecipeArgs, (where, _literal(values)))
    for key in ("name", "description"):
        if not getattr(args, key):
            raise ValueError(f"{where} has no {key}")
    if not args.steps:
        raise ValueError(f"{where} has no steps; a recipe needs at least one, with a user template")
    if args.keywords < 1:
        raise ValueError(f"{where}: keywords must be at least 1, got {args.keywords}")
    offered = {name: _build_variant(name, value, where) for name, value in args.variants.items()}
    assign = tuple((name, _choices(name, values, where)) for name, values in args.assign.items())
    recipe = Recipe(
        name=args.name,
        version=args.version,
        description=args.description,
        citation=args.citation,
        evidence=tuple(args.evidence),
        generator=args.generator,
        steps=_build_steps(args.steps, dict(assign), where),
        assign=assign,
        keywords=args.keywords,
        variants=tuple((name, one.description) for name, one in offered.items()),
    )
    for name, one in offered.items():
        _changed(recipe, one.steps, f"variant {name} of {where}")
    for name in dict.fromkeys(variants):
        if name not in offered:
            near = difflib.get_close_matches(name, offered, n=1)
            known = f"there are {', '.join(offered)}" if offered else "it has none"
            raise ValueError(f"{where} has no variant {name!r}; {f'did you mean {near[0]}?' if near else known}")
    # In the order of the file, whatever the order of the words: the same choice is the same recipe.
    for name in [name for name in offered if name in variants]:
        recipe = dataclasses.replace(
            _changed(recipe, offered[name].steps, f"variant {name} of {where}"), name=f"{recipe.name}+{name}"
        )
    if override:
        recipe = dataclasses.replace(
            _changed(recipe, override, f"override of {where}"), name=f"{recipe.name}+{sha256_json(override)[:8]}"
        )
    return recipe


def _build_variant(name: str, values: Any, where: str) -> VariantArgs:
    if not isinstance(values, Mapping) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}: a variant has a lower-case name and is a mapping; got {name!r}: {values!r}")
    args = build_args(VariantArgs, (f"variant {name} of {where}", _literal(values)))
    if not args.steps:
        raise ValueError(f"variant {name} of {where} changes nothing; it needs steps")
    return args


def _changed(recipe: Recipe, changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with `changes`, step -> {field: new value}, made and validated."""
    content = recipe.to_dict()
    steps = {step["name"]: step for step in content["steps"]}
    for name, fields in changes.items():
        if name not in steps:
            near = difflib.get_close_matches(name, steps, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(steps)}"
            raise ValueError(f"{where}: the recipe has no step {name!r}; {hint}")
        if not isinstance(fields, Mapping) or "name" in fields:
            raise ValueError(f"{where}: step {name} needs a mapping of fields, other than its name; got {fields!r}")
        step = steps[name]
        for key, value in fields.items():
            if key in ("user", "system") and not isinstance(value, str):
                raise ValueError(
                    f"{where}: {key} of step {name} is a text, and was read as {value!r}; on the command line put it "
                    f"in double quotes inside single ones: 'override.{name}.{key}=\"...\"'"
                )
            if key == "replace":
                _replace_words(step, value, f"{where}: replace of step {name}")
            else:
                step[key] = {**step[key], **value} if key == "sampling" and isinstance(value, Mapping) else value
    return dataclasses.replace(
        recipe, steps=_build_steps(content["steps"], {name: choices for name, choices in recipe.assign}, where)
    )


def _replace_words(step: dict[str, Any], words: Any, where: str) -> None:
    if not isinstance(words, Mapping) or not words:
        raise ValueError(f"{where} is a mapping of words of the templates to other words; got {words!r}")
    for old, new in words.items():
        if not isinstance(old, str) or not isinstance(new, str) or not old:
            raise ValueError(f"{where} puts texts in the place of texts; got {old!r}: {new!r}")
        if not any(old in step[key] for key in ("user", "system")):
            raise ValueError(f"{where}: its templates do not hold {old!r}")
        for key in ("user", "system"):
            step[key] = step[key].replace(old, new)


def _choices(name: str, values: Any, where: str) -> tuple[str, ...]:
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(f"{where}: a variable is called in lower case, and not {', '.join(RESERVED)}; got {name!r}")
    if not isinstance(values, list | tuple) or not values or len(set(map(str, values))) < len(values):
        raise ValueError(f"{where}: variable {name} needs a list of different values; got {values!r}")
    return tuple(str(value) for value in values)


def _build_steps(values: Sequence[Any], assign: Mapping[str, Any], where: str) -> tuple[Step, ...]:
    steps: list[Step] = []
    for number, value in enumerate(values, 1):
        steps.append(_build_step(value, steps, assign, f"step {number} of {where}"))
    # A step's text is a record where nobody goes on from it.
    needed = {name for step in steps for name in step.after}
    asked = [value.get("emit") for value in values]
    built = tuple(
        dataclasses.replace(step, emit=step.name not in needed if emit is None else step.emit)
        for step, emit in zip(steps, asked, strict=True)
    )
    for number, step in enumerate(built, 1):
        if step.record and not step.emit:
            raise ValueError(f"step {number} of {where} ({step.name}) has a record text and emits no record")
    return built


def _build_step(values: Any, before: Sequence[Step], assign: Mapping[str, Any], where: str) -> Step:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping with keys name, prompt, user, ...; got {values!r}")
    args = build_args(StepArgs, (where, _literal(values)))
    known = [step.name for step in before]
    if not args.name:
        raise ValueError(f"{where} has no name")
    if not _NAME.fullmatch(args.name) or args.name in (*RESERVED, *known, *assign):
        raise ValueError(
            f"{where}: a step has a lower-case name of its own, other than {', '.join(RESERVED)}; got {args.name!r}"
        )
    after = tuple(known[-1:] if args.after is None else args.after)
    for name in after:
        if name not in known:
            raise ValueError(
                f"{where} comes after {name!r}, which is no step before it; before it are {known or 'none'}"
            )
    _validate_step(args, where)
    step = Step(
        name=args.name,
        after=after,
        for_each=args.for_each,
        prompt=args.prompt,
        system=args.system,
        user=args.user,
        prompt_words=args.prompt_words,
        max_input_tokens=args.max_input_tokens,
        max_step_tokens=args.max_step_tokens,
        parse=args.parse,
        gate=None if args.gate is None else Gate(**dataclasses.asdict(args.gate)),
        emit=bool(args.emit),
        record=args.record,
        expected_output_tokens=args.expected_output_tokens,
        sampling=Sampling(**dataclasses.asdict(args.sampling)),
        filters=_build_filters(args.filters, where),
    )
    _validate_order(step, before, assign, where)
    return step


def _build_filters(values: Sequence[Any], where: str) -> tuple[FilterArgs, ...]:
    filters = tuple(build_filter(_literal(item), f"filter {i} of {where}") for i, item in enumerate(values, 1))
    names = [item.name for item in filters]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: a filter is named twice among {', '.join(names)}; known are {', '.join(FILTERS)}")
    return filters


def _validate_step(args: StepArgs, where: str) -> None:
    if args.prompt not in PROMPT_KINDS:
        raise ValueError(f"{where}: prompt is {' or '.join(PROMPT_KINDS)}; got {args.prompt!r}")
    if args.prompt == "text" and args.system:
        raise ValueError(f"{where}: a text prompt has no system message; put everything into user")
    if args.parse not in PARSERS:
        near = difflib.get_close_matches(args.parse, PARSERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(PARSERS)}"
        raise ValueError(f"{where}: no parser {args.parse!r}; {hint}")
    for key in ("prompt_words", "max_input_tokens", "max_step_tokens"):
        value = getattr(args, key)
        if value is not None and value < 1:
            raise ValueError(f"{where}: {key} must be at least 1, got {value}")
    if args.expected_output_tokens < 0:
        raise ValueError(f"{where}: expected_output_tokens must not be negative, got {args.expected_output_tokens}")
    gate = args.gate
    if gate is not None and (
        gate.min_items < 0 or gate.retries < 0 or (gate.max_items or gate.min_items or 1) < max(1, gate.min_items)
    ):
        raise ValueError(f"{where}: a gate has 0 <= min_items <= max_items and retries of at least 0; got {gate}")
    _validate_sampling(Sampling(**dataclasses.asdict(args.sampling)), where)


def _validate_order(step: Step, before: Sequence[Step], assign: Mapping[str, Any], where: str) -> None:
    """Placeholders and items of `step` come from what is done before it."""
    by_name = {one.name: one for one in before}

    def chain(name: str) -> set[str]:
        return {name, *(found for parent in by_name[name].after for found in chain(parent))}

    done = {name for parent in step.after for name in chain(parent)}
    fanned = [one for one in before if one.name in done and one.for_each is not None]
    if step.for_each == DOCUMENT:
        if step.after:
            parents = ", ".join(step.after)
            raise ValueError(
                f"{where}: for_each: document is for steps that come first; this one comes after {parents}"
            )
    elif step.for_each is not None and step.for_each not in step.after:
        parents = ", ".join(step.after) or "none"
        raise ValueError(f"{where}: for_each is {DOCUMENT} or a step of after ({parents}); got {step.for_each!r}")
    if step.for_each is not None and fanned:
        raise ValueError(f"{where}: its document is in items since step {fanned[0].name}; items of items are not made")
    allowed = {DOCUMENT, "keywords", *assign, *done}
    if step.for_each is not None or fanned:
        allowed |= {"item", "item_number"}
    for name in sorted(step.placeholders - allowed):
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f"did you mean {{{near[0]}}}?" if near else f"it may name {', '.join(sorted(allowed))}"
        raise ValueError(f"{where}: nothing stands for {{{name}}}; {hint}; literally it is {{{{{name}}}}}")
    unknown = sorted(_names(step.record) - {DOCUMENT, step.name, *done})
    if unknown:
        may = ", ".join([DOCUMENT, step.name, *sorted(done)])
        raise ValueError(f"{where}: nothing stands for {{{unknown[0]}}} in record; it may name {may}")
    if not step.placeholders & ({DOCUMENT, "item", "keywords"} | done):
        raise ValueError(
            f"{where}: user holds neither {{document}} nor {{item}}, {{keywords}} or an earlier step's text"
        )


def _validate_sampling(sampling: Sampling, where: str) -> None:
    if not 0 <= sampling.temperature <= 100:
        raise ValueError(f"{where}: temperature must be 0 or more, got {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"{where}: top_p is a probability mass above 0 and at most 1, got {sampling.top_p}")
    if sampling.max_tokens < 1:
        raise ValueError(f"{where}: max_tokens must be at least 1, got {sampling.max_tokens}")


def _read_yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from None


def _literal(value: Any) -> Any:
    """Escape `${`, which the config system would take for a reference and a prompt means literally."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


# --- a document's words ---


def draw_keywords(text: str, count: int, seed: int) -> list[str]:
    """`count` different words of at least 4 letters from `text` (fewer where it has fewer), drawn by `seed`.

    Words that begin more than one sentence in ten of any text (this, that, with, ...) are left out.
    """
    words = dict.fromkeys(word.lower() for word in re.findall(r"[^\W\d_]{4,}", text))
    found = [word for word in words if word not in _COMMON_WORDS]
    order = sorted(found, key=lambda word: sha256_json(["keyword", seed, word]))
    return order[:count]


_COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        """about above after again also although among because been before being between both could does doing down
        during each from further have having here however into itself just like made make many more most much must only
        other over same should since some such than that their them then there these they this those through under until
        upon used very were what when where which while will with within would your""",
    )
)


# --- cutting a document to the recipe's input ---


def first_words(text: str, count: int) -> str:
    """The first `count` words of `text`, white space between them as it was."""
    match = re.match(rf"\s*\S+(?:\s+\S+){{0,{count - 1}}}", text)
    return match.group() if match else ""


# After a full stop and its closing quotes, or at the end of a line.
_SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*(?=\s)|[\u3002\uff01\uff1f]|(?=\n)")


def cut_at_sentence(text: str, max_tokens: int, count_tokens: CountTokens | None = None) -> str:
    """The longest beginning of `text` that ends at a sentence end and has at most `max_tokens` tokens.

    Where that keeps fewer than half of `max_tokens` (a text without sentences), the cut is at white space, and without
    any of that in the middle of a word. A text that fits is returned as it is. `count_tokens` is called a few times;
    where it is missing or gives None, a token is taken as 4 characters.
    """
    # A token holds at least a byte, so a text of few bytes need not be counted.
    if len(text) <= max_tokens and len(text.encode("utf-8", "replace")) <= max_tokens:
        return text

    def measure(beginning: str) -> int:
        counted = count_tokens(beginning) if count_tokens is not None else None
        return estimate_tokens(beginning) if counted is None else counted

    head = text[: max_tokens * MAX_CHARS_PER_TOKEN]
    if len(head) == len(text) and measure(text) <= max_tokens:
        return text
    best = ""
    for places in (
        [match.end() for match in _SENTENCE_END.finditer(head)],
        [match.start() for match in re.finditer(r"\s+", head)],
        range(1, len(head) + 1),
    ):
        beginning, tokens = _longest_fitting(head, places, max_tokens, measure)
        if len(beginning) > len(best):
            best = beginning
        if 2 * tokens >= max_tokens:
            break
    return best


def _longest_fitting(
    text: str, places: Sequence[int], max_tokens: int, measure: Callable[[str], int]
) -> tuple[str, int]:
    """The longest `text[:place]`, white space at its end cut off, of at most `max_tokens`, and its tokens; or ("", 0).

    Interpolation search over the ascending `places`, as counting a long text is what costs; every third step halves,
    so that it ends soon on any text.
    """
    best, best_tokens = "", 0
    low, high = -1, len(places)  # places[low] fits, places[high] does not
    fits_at, fits_tokens = 0, 0
    chars_per_token = float(CHARS_PER_TOKEN)
    for attempt in itertools.count():
        if high - low <= 1:
            return best, best_tokens
        if attempt % 3 == 2:
            middle = (low + high) // 2
        else:
            target = fits_at + (max_tokens - fits_tokens) * chars_per_token
            middle = min(max(bisect.bisect_right(places, target) - 1, low + 1), high - 1)
        beginning = text[: places[middle]].rstrip()
        tokens = measure(beginning)
        chars_per_token = max(1.0, len(beginning) / max(1, tokens))
        if tokens <= max_tokens:
            low, best, best_tokens = middle, beginning, tokens
            fits_at, fits_tokens = places[middle], tokens
        else:
            high = middle
    raise AssertionError("the interval shrinks with every attempt")
