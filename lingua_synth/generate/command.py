"""`lingua-synth generate [run|list|show|verify|cost|filter|card|select] key=value ...`: synthetic texts from others."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.config import HELP_FLAGS, parse_args
from lingua_synth.documents import Document, read_documents
from lingua_synth.documents.locations import PYTHON_CORPUS, SUFFIXES, is_url
from lingua_synth.files import what_is_there
from lingua_synth.generate.engine import Prompt
from lingua_synth.generate.engines import AUTO, ENGINES, build_engine
from lingua_synth.generate.folder_command import card_command, filter_command
from lingua_synth.generate.recipe import RECIPES, Recipe, Step, load_recipe
from lingua_synth.generate.runner import generate
from lingua_synth.generate.verify import verify


@dataclass
class GenerateArgs:
    """Generate a text for every document of the input; the same words again go on where a run was interrupted."""

    recipe: str = ""
    """Name of a built-in recipe (`lingua-synth generate list`) or the path of your own .yaml file."""
    variant: str = ""
    """Names of the recipe's variants, separated by commas."""
    override: dict[str, Any] = field(default_factory=dict)
    """New values of steps' fields, e.g. 'override.rewrite.user="Rewrite {document}"'; `generate show` shows them."""
    documents: str = ""
    """Natural documents: a jsonl or parquet file, folder, glob or URL; python:// is the English text of this Python."""
    out: str = ""
    """Folder for the records (documents-*.jsonl), what was filtered or failed, and manifest.json."""
    engine: str = ""
    """auto: vllm where it finds a device, else hf (transformers); openai: any compatible server; checkpoint: a model of
    this library; mock: no model, for tests only."""
    model: str = ""
    """vllm, hf: Hugging Face name or folder; openai: name the server knows; checkpoint: run or checkpoint folder."""
    base_url: str = ""
    """openai: address of the server, e.g. http://127.0.0.1:8000/v1, or several with commas. Key: OPENAI_API_KEY."""
    revision: str = ""
    """vllm, hf: branch, tag or commit of the model; openai: which weights the server has, for the record."""
    seed: int = 0
    """Seed of everything random; each text gets its own from it."""
    samples: int = 1
    """Texts per document; the documents are gone through so many times."""
    max_output_tokens: int | None = None
    """End with the shard at which the kept records hold so many tokens; null: all documents."""
    shard_size: int = 1000
    """Documents of an output shard, the unit of work that processes share."""
    document_format: str = "jsonl"
    """jsonl or parquet, of the kept records."""
    lease_s: float = 60.0
    """Seconds without a sign of life after which another process takes over a shard."""
    max_failure_rate: float = 0.05
    """Share of failed requests, in [0, 1], past which the run stops."""
    max_reject_rate: float = 0.01
    """Share of input lines that are no documents, in [0, 1], past which the run stops."""
    temperature: float | None = None
    """Instead of the recipe's; 0 or more."""
    top_p: float | None = None
    """Instead of the recipe's nucleus mass; in (0, 1]."""
    max_tokens: int | None = None
    """Instead of the recipe's most output tokens per text."""
    device: str = ""
    """hf, checkpoint: cpu or cuda; empty: cpu, for hf cuda where there is a GPU."""
    dtype: str = ""
    """checkpoint: fp32 or bf16; hf: fp32, bf16, fp16, auto; vllm: auto, bfloat16, ...; empty: the engine's choice."""
    batch_size: int | None = None
    """checkpoint, hf: rows sampled together; null: 256, hf: 16."""
    max_in_flight: int | None = None
    """openai: most requests under way at each server; null: 64. Fewer while a server answers 429 or 5xx."""
    max_retries: int | None = None
    """openai: further attempts of one request; null: 5."""
    timeout_s: float | None = None
    """openai: seconds for one attempt; null: 600."""
    fold_system: bool | None = None
    """openai: put the system message into the user turn, for models without a system role; null: no."""
    max_num_seqs: int | None = None
    """vllm: requests that run at the same time; null: 256."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """vllm: further arguments of its LLM class, e.g. engine_args.tensor_parallel_size=2."""
    faults: dict[str, float] = field(default_factory=dict)
    """mock: share of requests that come out as fail, empty, refuse, repeat or echo, e.g. faults.refuse=0.1."""
    progress: bool = True
    """Show a progress bar."""


@dataclass
class ShowArgs:
    """Print the prompt that a recipe makes of a document. Needs no engine."""

    recipe: str = ""
    """Name of a built-in recipe or the path of your own .yaml file."""
    variant: str = ""
    """Names of the recipe's variants, separated by commas."""
    override: dict[str, Any] = field(default_factory=dict)
    """New values of steps' fields, e.g. 'override.rewrite.user="Rewrite {document}"'."""
    document: str = ""
    """A text file, or a file of documents (jsonl, parquet), whose first document is taken."""
    seed: int = 0
    """Seed of the run, which decides variables such as the audience."""


@dataclass
class VerifyArgs:
    """Check a finished run: hashes, counts, unique ids, inputs in = outcomes out."""

    out: str = ""
    """The folder of the run."""


OPTION_KEYS = (
    "model",
    "base_url",
    "revision",
    "device",
    "dtype",
    "batch_size",
    "max_in_flight",
    "max_retries",
    "timeout_s",
    "fold_system",
    "max_num_seqs",
)


def main(argv: Sequence[str]) -> int:
    """Dispatch to run (the default), list, show, verify, cost, filter, card or select."""
    verbs: dict[str, Callable[[Sequence[str]], int]] = {
        "run": _run,
        "list": _list,
        "show": _show,
        "verify": _verify,
        "cost": _cost,
        "select": _select,
        "filter": filter_command,
        "card": card_command,
    }
    if not argv or "=" in argv[0] or argv[0] in HELP_FLAGS:
        return _run(argv)
    if argv[0] not in verbs:
        near = difflib.get_close_matches(argv[0], verbs, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(verbs)}"
        raise ValueError(f"generate has no {argv[0]!r}; {hint}")
    return verbs[argv[0]](argv[1:])


def _run(argv: Sequence[str]) -> int:
    args = parse_args(GenerateArgs, argv, prog="lingua-synth generate")
    for key in ("recipe", "documents", "out", "engine"):
        if not getattr(args, key):
            raise ValueError(f"{key} is not set; `lingua-synth generate --help` lists the keys{_choices(key)}")
    recipe = load_recipe(args.recipe, args.variant, args.override)
    recipe = recipe.with_sampling(temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_tokens)
    options = {key: getattr(args, key) for key in OPTION_KEYS}
    engine = build_engine(args.engine, **options, engine_args=args.engine_args or None, faults=args.faults or None)
    summary = generate(
        args.documents,
        args.out,
        recipe,
        engine,
        seed=args.seed,
        samples=args.samples,
        max_output_tokens=args.max_output_tokens,
        shard_size=args.shard_size,
        document_format=args.document_format,
        lease_s=args.lease_s,
        max_failure_rate=args.max_failure_rate,
        max_reject_rate=args.max_reject_rate,
        progress=args.progress,
    )
    print(f"{summary}\n{'folder':15} {args.out}")
    return 0


def _choices(key: str) -> str:
    known = {"recipe": RECIPES, "engine": (AUTO, *ENGINES)}.get(key)
    return f"; there are {', '.join(known)}" if known else ""


@dataclass
class ListArgs:
    """Print the built-in recipes."""


def _list(argv: Sequence[str]) -> int:
    parse_args(ListArgs, argv, prog="lingua-synth generate list")
    for name in RECIPES:
        recipe = load_recipe(name)
        print(f"{name} (version {recipe.version}, {' and '.join(recipe.prompt_kinds)} prompts)")
        print(_wrapped(recipe.description))
        print(_wrapped(f"source: {recipe.citation}"))
        for evidence in recipe.evidence:
            print(_wrapped(f"evidence: {evidence}"))
        for variable, choices in recipe.assign:
            print(_wrapped(f"{variable}: {', '.join(choices)}"))
        for variant, about in recipe.variants:
            print(_wrapped(f"variant {variant}: {about}"))
        for step in recipe.steps:
            print(_wrapped(f"{step.name}: {_in_words(recipe, step)}"))
        print()
    return 0


def _in_words(recipe: Recipe, step: Step) -> str:
    """What a step reads, how it draws, what is checked."""
    sampling = step.sampling
    reads = [f"for each {'piece of the document' if step.for_each == 'document' else f'item of {step.for_each}'}"]
    parts = reads if step.for_each is not None else []
    calls = recipe.expected_calls(step)
    if step.expected_output_tokens:
        parts.append(f"about {step.expected_output_tokens:,} tokens" + (f" x {calls}" if calls > 1 else ""))
    parts.append(
        f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, at most {_cuts(recipe, step)} in and "
        f"{sampling.max_tokens:,} tokens out"
    )
    if step.gate is not None:
        most = f" to {step.gate.max_items}" if step.gate.max_items is not None else " or more"
        parts.append(f"{step.gate.min_items}{most} items, asked for up to {step.gate.retries + 1} times")
    filters = ", ".join(f"{one.name} ({one.action})" for one in step.filters)
    parts.append(f"filters: {filters or 'none'}")
    return "; ".join(parts)


def _cuts(recipe: Recipe, step: Step) -> str:
    """How much of what a step puts into its prompt: "2,000 tokens of the document"."""
    limits = {one.name: (step.max_step_tokens, f"what {one.name} wrote") for one in recipe.steps}
    limits |= {"document": (step.max_input_tokens, "the document")}
    found = [f"{most:,} tokens of {what}" for name, (most, what) in limits.items() if name in step.placeholders]
    if "keywords" in step.placeholders:
        found.append(f"{recipe.keywords} words of the document")
    return " and ".join(found) or "an item"


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 110, initial_indent="    ", subsequent_indent="      ")


def _show(argv: Sequence[str]) -> int:
    args = parse_args(ShowArgs, argv, prog="lingua-synth generate show")
    if not args.recipe or not args.document:
        raise ValueError("show needs recipe= and document=, e.g. recipe=hq document=page.txt")
    recipe = load_recipe(args.recipe, args.variant, args.override)
    document = _read_document(args.document)
    print(f"recipe {recipe.name}, version {recipe.version}, {recipe.sha256[:16]}")
    values = recipe.assigned(args.seed, 0)
    for name, value in values.items():
        print(f"{name}: {value}")
    for step in recipe.steps:
        # What the generator will have written is not known here: its place is shown.
        unknown = {name: f"<what {name} wrote>" for name in step.after}
        unknown |= {one.name: f"<what {one.name} wrote>" for one in recipe.steps if one.name in step.placeholders}
        items = {"item": "<the item>", "item_number": "1"}
        _show_step(recipe, step, recipe.render(step, document, {**items, **unknown, **values}, seed=args.seed))
    print("---")
    return 0


def _show_step(recipe: Recipe, step: Step, prompt: Prompt) -> None:
    sampling = step.sampling
    print(f"\nstep {step.name}, prompt {step.prompt_sha256[:16]}")
    print(f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, max_tokens {sampling.max_tokens:,}")
    print(f"at most {_cuts(recipe, step)}, a token here taken as 4 characters")
    if isinstance(prompt, str):
        print(f"--- text ---\n{prompt}")
    else:
        for message in prompt:
            print(f"--- {message['role']} ---\n{message['content']}")


def _read_document(path: str) -> Document:
    """The first document of a file of documents, or a whole text file."""
    if path == PYTHON_CORPUS or is_url(path) or path.endswith(SUFFIXES):
        document = next(iter(read_documents(path)), None)
        if document is None:
            raise ValueError(f"no document in {path}")
        return document
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no file {path}; {what_is_there(path)}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; documents end in {', '.join(SUFFIXES)}") from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return Document(file.name, text)


def _cost(argv: Sequence[str]) -> int:
    from lingua_synth.generate.cost_command import main as cost

    return cost(argv)


def _select(argv: Sequence[str]) -> int:
    from lingua_synth.generate.select_command import main as select

    return select(argv)


def _verify(argv: Sequence[str]) -> int:
    args = parse_args(VerifyArgs, argv, prog="lingua-synth generate verify")
    if not args.out:
        raise ValueError("verify needs out=, the folder of a run")
    problems = verify(args.out)
    for problem in problems:
        print(problem)
    print("ok: hashes, counts and ids agree" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0
