"""`lingua-synth quickstart`: the study of synthetic data in miniature, real at every step, on two CPU cores.

    natural documents -> tokenizer -> token shards -> runs on natural text alone
        -> the largest of them is the generator -> synthetic documents -> token shards -> runs on mixtures
        -> runs.csv -> fits.json -> report.html

Every stage leaves a folder with a file written last, and is skipped when that file is there: killed at any moment and
called
again, the quickstart goes on where it stood. The synthetic text comes from a language model of a few hundred thousand
parameters that was trained minutes before: a very weak generator, so what one sees is the price of training on a weak
model's output. `engine=openai base_url=... model=...` or `engine=vllm model=...` rephrases with a real LLM instead.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingua_synth.config import needs_extra, parse_args, to_dict
from lingua_synth.files import folder_lock, read_json, write_json

if TYPE_CHECKING:
    from lingua_synth.study.plan import PlannedRun

BUILT_IN_DOCUMENTS = "python://"
FINISHED = "finished.json"
SETTINGS = "quickstart.json"

# The paper's shares of synthetic tokens, exact; its "33 %" is one third.
RATIOS = {0: Fraction(0), 33: Fraction(1, 3), 67: Fraction(2, 3), 100: Fraction(1)}


@dataclass
class QuickstartArgs:
    """The paper's study in miniature: documents, generation, token shards, mixtures, training, evaluation, fits,
    report."""

    out: str = "quickstart"
    """Folder for everything; run again with the same folder to go on after an interruption."""
    documents: str = BUILT_IN_DOCUMENTS
    """Natural documents: a jsonl or parquet file, folder or glob of yours; python:// is the English text of this
    Python installation."""
    engine: str = "checkpoint"
    """Who writes the synthetic text: checkpoint (the study's own largest natural model), openai (any compatible
    server), vllm."""
    base_url: str = ""
    """Server address for engine=openai, e.g. http://127.0.0.1:8000/v1; the key is read from OPENAI_API_KEY."""
    model: str = ""
    """Model name for engine=openai or engine=vllm."""
    fold_system: bool | None = None
    """openai: put the system message into the user turn, for models without a system role; null: no."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """vllm: further arguments of its LLM class, e.g. engine_args.max_model_len=4096."""
    recipe: str = ""
    """How documents become synthetic ones; empty: `continue` for engine=checkpoint, `hq` for a real LLM."""
    tokenizer: str = "sp"
    """sp: a SentencePiece model trained on the natural documents; bytes: no training, longer sequences."""
    vocab_size: int = 1024
    """Entries of the SentencePiece model."""
    sizes: list[str] = field(default_factory=lambda: ["nano-27k", "nano-56k", "nano-107k", "nano-222k"])
    """Model presets of the grid."""
    budgets: list[int] = field(default_factory=lambda: [262_144, 524_288, 1_048_576, 2_097_152])
    """Training budgets of the grid, in tokens; whole numbers of 2,048-token steps."""
    seq_len: int = 128
    """Tokens per training sequence; must divide 2,048."""
    lr: float = 4e-3
    """Peak learning rate of every run."""
    seed: int = 42
    """Seed of everything random."""
    num_workers: int = 2
    """Runs trained at the same time, one CPU thread each."""
    bootstraps: int = 1000
    """Resamples behind each interval."""


GLOBAL_BATCH_TOKENS = 2048

# What the stages import when they come to it; asked for before the first.
LIBRARIES = ("torch", "sentencepiece", "matplotlib")

# The documents are gone through at most so often; generation ends as soon as there are enough tokens.
SAMPLES_PER_DOCUMENT = 8

# Per domain and run. Every run scores the same documents, so differences between runs are free of sampling noise.
EVALUATION_TOKENS = 8_000


def main(argv: Sequence[str]) -> int:
    """Run all stages that are not done yet; say at once when all are."""
    args = parse_args(QuickstartArgs, argv, prog="lingua-synth quickstart")
    out = Path(args.out)
    validate_quickstart_args(args)
    _claim(out, args)
    if (out / FINISHED).is_file():
        print(f"finished already: {out / 'report.html'}, {out / 'runs.csv'}, {out / 'fits.json'}")
        return 0
    with folder_lock(out, "quickstart"):
        run_quickstart(args)
    print(f"report: {out / 'report.html'}\nruns:   {out / 'runs.csv'}\nfits:   {out / 'fits.json'}")
    return 0


def validate_quickstart_args(args: QuickstartArgs) -> None:
    """Raise ValueError for settings no quickstart can run with; nothing is written before."""
    from lingua_synth.documents import find_files
    from lingua_synth.generate import load_recipe
    from lingua_synth.model.presets import preset

    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(needs_extra(missing, "quickstart"))
    if args.engine not in ("checkpoint", "openai", "vllm"):
        raise ValueError(f"engine is checkpoint, openai or vllm; got {args.engine!r}")
    if args.engine == "openai" and not args.base_url:
        raise ValueError("engine=openai needs base_url=, e.g. base_url=http://127.0.0.1:8000/v1")
    if args.engine in ("openai", "vllm") and not args.model:
        raise ValueError(f"engine={args.engine} needs model=, the name of the model that rephrases")
    if args.tokenizer not in ("sp", "bytes"):
        raise ValueError(f"tokenizer is sp or bytes; got {args.tokenizer!r}")
    if args.seq_len < 8 or GLOBAL_BATCH_TOKENS % args.seq_len:
        raise ValueError(f"seq_len must divide the {GLOBAL_BATCH_TOKENS} tokens of a step; got {args.seq_len}")
    if not args.sizes or not args.budgets:
        raise ValueError("sizes and budgets must name at least one each")
    for size in args.sizes:
        preset(size)
    for budget in args.budgets:
        if budget < GLOBAL_BATCH_TOKENS or budget % GLOBAL_BATCH_TOKENS:
            nearest = max(1, round(budget / GLOBAL_BATCH_TOKENS)) * GLOBAL_BATCH_TOKENS
            raise ValueError(
                f"budget {budget:,} is not a whole number of {GLOBAL_BATCH_TOKENS}-token steps; nearest: {nearest:,}"
            )
    if args.num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {args.num_workers}")
    load_recipe(_recipe(args))
    if args.documents != BUILT_IN_DOCUMENTS:
        find_files(args.documents)


def _claim(out: Path, args: QuickstartArgs) -> None:
    """Write the settings of a new folder; refuse a folder of other settings, naming them."""
    settings = {key: value for key, value in to_dict(args).items() if key not in ("out", "num_workers")}
    path = out / SETTINGS
    if path.is_file():
        # A folder of an earlier version does not name the keys that came after it.
        theirs = {**to_dict(QuickstartArgs()), **read_json(path)}
        different = [
            f"{key}: {theirs[key]!r} there, {value!r} now" for key, value in settings.items() if theirs[key] != value
        ]
        if different:
            raise ValueError(
                f"{out} holds a quickstart with other settings ({'; '.join(different)}); use another out=, or delete it"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and holds no quickstart; use another out= so that nothing of yours is mixed in")
    write_json(path, settings)


def run_quickstart(args: QuickstartArgs) -> None:
    """All stages in order; each is skipped when its result is there."""
    stages = _Stages(Path(args.out))
    with stages.timed("documents"):
        corpus = _documents(args)
    with stages.timed("tokenize natural text"):
        natural, domains = _tokenize_natural(args, corpus)
    natural_only, mixed = {0: RATIOS[0]}, {percent: ratio for percent, ratio in RATIOS.items() if percent}
    runs: list[PlannedRun] = []
    if _is_weak(args):
        with stages.timed("train on natural text"):
            runs += _train(args, domains, natural_only)
    with stages.timed("generate"):
        summary = _generate(args, runs)
    with stages.timed("tokenize synthetic text"):
        synthetic = _tokenize_synthetic(args)
    if not _is_weak(args):
        # A server that does not answer is found out before minutes of training, not after.
        with stages.timed("train on natural text"):
            runs += _train(args, domains, natural_only)
    with stages.timed("train on mixtures"):
        runs += _train(args, domains, mixed)
    with stages.timed("fit and report"):
        _report(args, corpus, domains, natural, synthetic, summary, runs, stages)
    write_json(Path(args.out) / FINISHED, {"seconds": stages.seconds})


class _Stages:
    """Announces stages and keeps the seconds of each, as the call that finished it took."""

    def __init__(self, out: Path):
        self._path = out / "stages.json"
        self._count = itertools.count(1)
        self.seconds: dict[str, float] = read_json(self._path) if self._path.is_file() else {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        print(f"[{next(self._count)}/7] {name}", flush=True)
        start = time.perf_counter()
        yield
        # A stage that was finished before takes no time, and keeps what it took then.
        self.seconds[name] = max(self.seconds.get(name, 0.0), time.perf_counter() - start)
        write_json(self._path, self.seconds)


# --- the stages ---


def _documents(args: QuickstartArgs) -> dict[str, Any]:
    from lingua_synth.documents import prepare_corpus

    return prepare_corpus(args.documents, Path(args.out) / "documents", seed=args.seed)


def _tokenize_natural(args: QuickstartArgs, corpus: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    from lingua_synth.documents import read_documents
    from lingua_synth.tokens import build_tokenizer, tokenize, train_sentencepiece

    out = Path(args.out)
    train = out / "documents" / "train.jsonl"
    tokenizer_path = None
    if args.tokenizer == "sp":
        model_path = out / "tokenizer" / "sp.model"
        if not model_path.is_file():
            texts = (document.text for document in read_documents(str(train)))
            train_sentencepiece(texts, model_path, args.vocab_size, seed=args.seed)
        tokenizer_path = str(model_path)
    tokenizer = build_tokenizer(args.tokenizer, tokenizer_path)
    natural = tokenize(str(train), out / "tokens" / "natural", tokenizer, shuffle_seed=args.seed)
    domains = {}
    for file in sorted((out / "documents" / "heldout").glob("*.jsonl")):
        domains[file.stem] = str(out / "tokens" / "heldout" / file.stem)
        tokenize(str(file), domains[file.stem], tokenizer, shuffle_seed=args.seed, progress=False)
    largest, available = max(args.budgets), _trainable_tokens(natural, args.seq_len)
    if largest > available:
        fitting = [budget for budget in args.budgets if budget <= available]
        fix = f"budgets={json.dumps(fitting).replace(' ', '')}" if fitting else "fewer tokens, or give more documents"
        raise ValueError(
            f"the largest budget is {largest:,} tokens, but the natural documents make {available:,} once; use {fix}, "
            "in another out= folder"
        )
    return natural, domains


def _trainable_tokens(manifest: Mapping[str, Any], seq_len: int) -> int:
    from lingua_synth.mixture.plan import count_windows

    return count_windows(manifest["tokens"], seq_len) * seq_len


def _mixture_name(percent: int) -> str:
    return "natural" if percent == 0 else f"synthetic-{percent}"


def _train(args: QuickstartArgs, domains: Mapping[str, str], ratios: Mapping[int, Fraction]) -> list[PlannedRun]:
    from lingua_synth.study import LaunchArgs, MixtureArgs, StudyArgs, StudySourceArgs, launch, plan_study

    tokens = Path(args.out) / "tokens"
    mixtures = {}
    for percent, ratio in ratios.items():
        shares = {"natural": 1 - ratio, "synthetic": ratio}
        used = {name: str(share) for name, share in shares.items() if share}
        mixtures[_mixture_name(percent)] = MixtureArgs(used)
    names = {name for mixture in mixtures.values() for name in mixture.ratios}
    study = StudyArgs(
        out=args.out,
        sizes=args.sizes,
        budgets=args.budgets,
        mixtures=mixtures,
        sources={name: StudySourceArgs(path=str(tokens / name)) for name in sorted(names)},
        seeds=[args.seed],
        train={
            "data": {"seq_len": args.seq_len, "batch_size": GLOBAL_BATCH_TOKENS // args.seq_len},
            "optim": {"lr": args.lr, "lr_min_ratio": 0.1},
            "checkpoint": {"dump": {"every": 0, "keep": 1}},
            "logging": {"freq": 16},
            "synth": {
                "warmup_ratio": 0.1,
                "global_batch_tokens": GLOBAL_BATCH_TOKENS,
                "device": "cpu",
                "evaluation": {"domains": dict(domains), "max_tokens_per_domain": EVALUATION_TOKENS},
            },
        },
    )
    runs = plan_study(study)
    launch(runs, LaunchArgs(num_workers=args.num_workers), folder=args.out, desc="training")
    return runs


def _recipe(args: QuickstartArgs) -> str:
    return args.recipe or ("continue" if args.engine == "checkpoint" else "hq")


def _generator_run(natural_runs: Sequence[PlannedRun]) -> Any:
    """The natural run of the most training FLOPs: the best model the study has before any synthetic text exists."""
    return max(natural_runs, key=lambda run: run.flops)


def _generate(args: QuickstartArgs, natural_runs: Sequence[PlannedRun]) -> Any:
    from lingua_synth.generate import build_engine, generate, load_recipe

    out = Path(args.out)
    if args.engine == "checkpoint":
        engine = build_engine("checkpoint", model=_generator_run(natural_runs).args.dump_dir)
    else:
        options = {"base_url": args.base_url, "fold_system": args.fold_system, "engine_args": args.engine_args or None}
        engine = build_engine(args.engine, model=args.model, **options)
    # Counted in the generator's tokens. Sampled pieces are tokenized again into other pieces, 0.04 % fewer of them when
    # measured; a large LLM's tokens are longer than this small vocabulary's, so fewer of them suffice.
    margin = 1.05 if args.engine == "checkpoint" else 0.9
    return generate(
        str(out / "documents" / "train.jsonl"),
        out / "synthetic",
        load_recipe(_recipe(args)),
        engine,
        seed=args.seed,
        samples=SAMPLES_PER_DOCUMENT,
        max_output_tokens=int(max(args.budgets) * margin),
        shard_size=512,
    )


def _tokenize_synthetic(args: QuickstartArgs) -> dict[str, Any]:
    from lingua_synth.tokens import build_tokenizer, tokenize

    out = Path(args.out)
    tokenizer = build_tokenizer(args.tokenizer, str(out / "tokenizer" / "sp.model") if args.tokenizer == "sp" else None)
    manifest = tokenize(
        str(out / "synthetic" / "documents-*.jsonl"), out / "tokens" / "synthetic", tokenizer, shuffle_seed=args.seed
    )
    available, needed = _trainable_tokens(manifest, args.seq_len), max(args.budgets)
    if available < needed:
        raise ValueError(
            f"the natural documents gave {available:,} synthetic tokens, and the runs on synthetic text alone need "
            f"{needed:,}; "
            f"give more documents, or largest budget {available // GLOBAL_BATCH_TOKENS * GLOBAL_BATCH_TOKENS}, in "
            "another out= folder"
        )
    return manifest


def _report(
    args: QuickstartArgs,
    corpus: Mapping[str, Any],
    domains: Mapping[str, str],
    natural: Mapping[str, Any],
    synthetic: Mapping[str, Any],
    summary: Any,
    runs: Sequence[PlannedRun],
    stages: _Stages,
) -> None:
    from lingua_synth.analysis.args import AnalyzeArgs
    from lingua_synth.analysis.models import Trained, read_checkpoints
    from lingua_synth.analysis.results import read_analysis
    from lingua_synth.analysis.run import analyze
    from lingua_synth.report import write_report
    from lingua_synth.report.claims_section import PaperQuestions
    from lingua_synth.report.corpora import trained_sections
    from lingua_synth.scaling import fit_study, load_runs, write_fits, write_runs
    from lingua_synth.study import collect

    out = Path(args.out)
    found = collect(run.args.dump_dir for run in runs)
    for name, why in found.left_out.items():
        raise ValueError(f"run {name}: {why}")
    assert not found.unfinished, "launch returns only when every run is finished"
    write_runs(found.rows, out / "runs.csv")
    table = load_runs(out / "runs.csv")
    fits = fit_study(table, num_bootstraps=args.bootstraps, seed=args.seed)
    write_fits(fits, out)
    tokens = out / "tokens"
    corpora = {name: str(tokens / name) for name in ("natural", "synthetic")}
    analyze(AnalyzeArgs(train=corpora, test=dict(domains), out=str(out / "analysis"), seed=args.seed, progress=False))
    trained = Trained(runs=table, checkpoints=read_checkpoints(dict.fromkeys(table.mixtures, out / "runs")))
    recipe = _recipe(args)
    # The paper asks of its own recipes; what a weak model's continuations do is no answer to it.
    asked = PaperQuestions(roles={"synthetic": recipe}) if recipe in ("hq", "qa", "textbook") else None
    write_report(
        out,
        table,
        fits,
        title="Synthetic data in pre-training, in miniature",
        summary=_summary(args, natural, synthetic, runs),
        sections_before=[
            _documents_section(args, corpus, natural),
            _generation_section(args, synthetic, summary, runs, found.rows),
        ],
        sections_after=[
            *trained_sections(read_analysis(out / "analysis"), trained),
            _limits_section(args),
            _seconds_section(stages),
        ],
        questions=asked,
    )


# --- what the page says besides its figures ---


def _is_weak(args: QuickstartArgs) -> bool:
    return args.engine == "checkpoint"


def _summary(
    args: QuickstartArgs, natural: Mapping[str, Any], synthetic: Mapping[str, Any], runs: Sequence[Any]
) -> list[str]:
    built_in = args.documents == BUILT_IN_DOCUMENTS
    source = "the English text that this Python installation carries" if built_in else args.documents
    sentences = [
        f"Natural documents ({natural['documents']:,}, {natural['tokens']:,} tokens) were taken from {source}.",
        f"{synthetic['documents']:,} synthetic documents ({synthetic['tokens']:,} tokens) were made from them.",
    ]
    if _is_weak(args):
        sentences.append(
            "The generator is the largest model this study trained on natural text alone: thousands of times "
            "smaller than a "
            "real one, so its text is poor and what this page shows is the price of training on a weak generator's "
            "output. "
            "It says nothing about rephrasing by a capable LLM."
        )
    return sentences


def _documents_section(args: QuickstartArgs, corpus: Mapping[str, Any], natural: Mapping[str, Any]) -> Any:
    from lingua_synth.report import Section, Table

    header = ["domain", "documents to train on", "held-out documents", "held-out bytes"]
    rows = [
        [name, domain["train_documents"], domain["held_out_documents"], domain["held_out_bytes"]]
        for name, domain in corpus["domains"].items()
    ]
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in corpus["dropped"].items() if count)
    tokenizer = (
        f"A SentencePiece vocabulary of {args.vocab_size:,} pieces was trained on the natural training documents"
        if args.tokenizer == "sp"
        else "Text was cut into single bytes"
    )
    return Section(
        "The natural documents",
        [
            "Documents were cleaned and deduplicated by paragraph, so that no held-out paragraph was trained on; "
            "each domain's "
            "held-out share was set aside by a hash of the document's id, before anything else was done.",
            Table(header, rows),
            f"Left out while cleaning: {rejected or 'nothing'}.",
            f"{tokenizer}: {natural['bytes'] / natural['tokens']:.2f} bytes of natural text per token. Every run of "
            "every mixture reads "
            "the same token shards.",
        ],
    )


def _generation_section(
    args: QuickstartArgs,
    synthetic: Mapping[str, Any],
    summary: Any,
    runs: Sequence[PlannedRun],
    rows: Sequence[Mapping[str, Any]],
) -> Any:
    from lingua_synth.documents import read_documents
    from lingua_synth.generate import load_recipe
    from lingua_synth.report import Sample, Section, Table

    recipe = load_recipe(_recipe(args))
    if _is_weak(args):
        generator = _generator_run([run for run in runs if run.args.synth.mixture == _mixture_name(0)])
        row = next(row for row in rows if row["run_id"] == generator.run_id)
        who = (
            f"The generator is run {generator.run_id}: {row['n_non_embedding']:,} non-embedding parameters, trained on "
            f"{row['tokens']:,} natural tokens, held-out loss {row['loss_macro']:.3f} nats per token."
        )
    else:
        who = f"The generator is {args.model}, through engine {args.engine}."
    outcomes: list[list[Any]] = [["synthetic documents", summary.records]]
    outcomes += [[f"filtered: {name}", count] for name, count in summary.filtered.items()]
    outcomes += [["failed", summary.failed], ["asked for, the sum", summary.inputs]]
    body: list[Any] = [
        f"{who} Recipe {recipe.name}: {recipe.description}",
        "Every input document ends in exactly one place: a synthetic document, a filtered one with its reason, or a "
        "failure "
        "with its error.",
        Table(["outcome", "documents"], outcomes),
        f"The synthetic text is cut into {synthetic['bytes'] / synthetic['tokens']:.2f} bytes per token by the same "
        "vocabulary.",
        "Samples, letter for letter:",
    ]
    documents = read_documents(str(Path(args.out) / "synthetic" / "documents-*.jsonl"))
    body += [
        Sample(document.text, f"synthetic document {document.id}", most=700)
        for document in itertools.islice(documents, 3)
    ]
    return Section("The synthetic documents", body)


def _limits_section(args: QuickstartArgs) -> Any:
    from lingua_synth.report import Bullets, Section

    limits = [
        "Models this small are early in training at these budgets: their exponents are no estimate of a real "
        "model's, and fits that "
        "the data cannot pin down are called so instead of being shown.",
        "One seed and one learning rate per run: differences smaller than the spread between seeds mean nothing, "
        "and this page "
        "does not measure that spread.",
    ]
    if _is_weak(args):
        limits.append(
            "To see what a capable generator does, run `lingua-synth quickstart engine=openai base_url=... "
            "model=...` into another "
            "folder, or plan a study of your own with `lingua-synth study`."
        )
    return Section("What this page cannot tell", [Bullets(limits)])


def _seconds_section(stages: _Stages) -> Any:
    from lingua_synth.report import Section, Table

    rows = [[name, round(seconds)] for name, seconds in stages.seconds.items()]
    return Section("Time spent", [Table(["stage", "seconds"], rows)])
