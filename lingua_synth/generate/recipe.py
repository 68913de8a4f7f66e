"""A recipe: how a document becomes a prompt, how text is sampled, and what is done with it. Recipes are data.

    recipes/<name>.yaml or a file of the user's  ──load_recipe──>  Recipe  ──render(document)──>  messages or text

Templates know one placeholder, `{document}`. It is replaced once and nothing else is touched, because documents are
full of braces. A document longer than the recipe's input is cut at a sentence end.
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

PLACEHOLDER = "{document}"
PROMPT_KINDS = ("chat", "text")

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
class StepArgs:
    """One call of the generator."""

    name: str = ""
    """What the step does; part of every record's identity."""
    prompt: str = "chat"
    """chat: messages for an instruction-tuned model; text: a prefix for a base model."""
    system: str = ""
    """System message; chat only. Empty: none."""
    user: str = ""
    """User message, or the whole text prompt; holds {document} once."""
    prompt_words: int | None = None
    """Only the document's first so many words are put in; null: all of it."""
    max_input_tokens: int = 2000
    """The document is cut at a sentence end to at most so many of the generator's tokens."""
    expected_output_tokens: int = 0
    """Usual length of an output, for estimates of time and cost; 0: unknown."""
    sampling: SamplingArgs = field(default_factory=SamplingArgs)
    """How text is drawn."""
    filters: list[Any] = field(default_factory=list)
    """What is checked on every output: a list of {name, action, parameters}."""


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
    steps: list[Any] = field(default_factory=list)
    """The calls of the generator; one in this version."""


@dataclass(frozen=True)
class Step:
    """A validated `StepArgs`."""

    name: str
    prompt: str
    system: str
    user: str
    prompt_words: int | None
    max_input_tokens: int
    expected_output_tokens: int
    sampling: Sampling
    filters: tuple[FilterArgs, ...]


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

    @property
    def step(self) -> Step:
        """The one step there is."""
        return self.steps[0]

    @property
    def prompt_sha256(self) -> str:
        """Identity of the prompt: SHA-256 over its kind, both templates and the cuts of the document."""
        step = self.step
        keys = ("prompt", "system", "user", "prompt_words", "max_input_tokens")
        return sha256_json({key: getattr(step, key) for key in keys})

    @property
    def sha256(self) -> str:
        """Identity of all that decides the output: name, version, and steps with prompts, sampling and filters."""
        content = self.to_dict()
        return sha256_json({key: content[key] for key in ("name", "version", "steps")})

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data; `recipe_from` reads it back."""
        return dataclasses.asdict(self, dict_factory=lambda items: {k: _plain(v) for k, v in items})

    def with_sampling(self, **changes: Any) -> Recipe:
        """The recipe with `temperature`, `top_p` or `max_tokens` changed; None leaves a value as it is."""
        given = {key: value for key, value in changes.items() if value is not None}
        sampling = dataclasses.replace(self.step.sampling, **given)
        _validate_sampling(sampling, f"recipe {self.name}")
        return dataclasses.replace(self, steps=(dataclasses.replace(self.step, sampling=sampling),))

    def render(self, document: Document, count_tokens: CountTokens | None = None) -> Prompt:
        """The prompt for `document`: chat messages, or a text where the recipe's prompt is `text`.

        `count_tokens` measures the input cut in the generator's tokens; where it is missing or knows nothing, a token
        is taken as 4 characters.
        """
        step = self.step
        text = whole_characters(document.text).strip()
        if step.prompt_words is not None:
            text = first_words(text, step.prompt_words)
        text = cut_at_sentence(text, step.max_input_tokens, count_tokens)
        user = step.user.replace(PLACEHOLDER, text)
        if step.prompt == "text":
            return user
        system = [{"role": "system", "content": step.system}] if step.system else []
        return [*system, {"role": "user", "content": user}]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _builtin_folder() -> Any:
    return resources.files("lingua_synth.generate") / "recipes"


RECIPES: tuple[str, ...] = tuple(
    sorted(file.name.removesuffix(".yaml") for file in _builtin_folder().iterdir() if file.name.endswith(".yaml"))
)
"""Names of the built-in recipes."""


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A built-in recipe by name, or the recipe in a YAML file.

    Raises ValueError, naming the file and the nearest known name, for a recipe that does not exist, a field that does
    not exist, a value that does not fit, more than one step, a template without {document}.
    """
    name = str(name_or_path)
    if name in RECIPES:
        file = _builtin_folder() / f"{name}.yaml"
        recipe = recipe_from(_read_yaml(file.read_text(encoding="utf-8"), f"recipe {name}"), f"recipe {name}")
        assert recipe.name == name, "a built-in recipe is named as its file"
        return recipe
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
    return recipe_from(_read_yaml(text, str(path)), str(path))


def recipe_from(values: Any, where: str = "the given recipe") -> Recipe:
    """Build a recipe from plain data; ValueError, naming `where`, for whatever is not as `RecipeArgs` says."""
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where} must hold a mapping with keys name, version, steps, ...; got {type(values).__name__}"
        )
    args = build_args(RecipeArgs, (where, _literal(values)))
    for key in ("name", "description"):
        if not getattr(args, key):
            raise ValueError(f"{where} has no {key}")
    if not args.steps:
        raise ValueError(f"{where} has no steps; a recipe needs one, with a user template")
    if len(args.steps) > 1:
        names = ", ".join(str(step.get("name", "?")) if isinstance(step, Mapping) else "?" for step in args.steps)
        raise ValueError(f"{where} has {len(args.steps)} steps ({names}); this version runs recipes of one step")
    step = _build_step(args.steps[0], f"step 1 of {where}")
    return Recipe(
        name=args.name,
        version=args.version,
        description=args.description,
        citation=args.citation,
        evidence=tuple(args.evidence),
        generator=args.generator,
        steps=(step,),
    )


def _build_step(values: Any, where: str) -> Step:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping with keys name, prompt, user, ...; got {values!r}")
    args = build_args(StepArgs, (where, _literal(values)))
    if not args.name:
        raise ValueError(f"{where} has no name")
    if args.prompt not in PROMPT_KINDS:
        raise ValueError(f"{where}: prompt is {' or '.join(PROMPT_KINDS)}; got {args.prompt!r}")
    if args.prompt == "text" and args.system:
        raise ValueError(f"{where}: a text prompt has no system message; put everything into user")
    if args.user.count(PLACEHOLDER) != 1 or PLACEHOLDER in args.system:
        raise ValueError(f"{where}: user must hold {PLACEHOLDER} exactly once, and system must not hold it")
    for key in ("prompt_words", "max_input_tokens"):
        value = getattr(args, key)
        if value is not None and value < 1:
            raise ValueError(f"{where}: {key} must be at least 1, got {value}")
    if args.expected_output_tokens < 0:
        raise ValueError(f"{where}: expected_output_tokens must not be negative, got {args.expected_output_tokens}")
    sampling = Sampling(**dataclasses.asdict(args.sampling))
    _validate_sampling(sampling, where)
    filters = tuple(build_filter(_literal(item), f"filter {i} of {where}") for i, item in enumerate(args.filters, 1))
    names = [item.name for item in filters]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: a filter is named twice among {', '.join(names)}; known are {', '.join(FILTERS)}")
    return Step(
        name=args.name,
        prompt=args.prompt,
        system=args.system,
        user=args.user,
        prompt_words=args.prompt_words,
        max_input_tokens=args.max_input_tokens,
        expected_output_tokens=args.expected_output_tokens,
        sampling=sampling,
        filters=filters,
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
