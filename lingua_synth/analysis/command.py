"""`lingua-synth analyze`: token shards of training and evaluation corpora in, tables of how they differ out.

lingua-synth analyze train.cc=shards/cc train.hq=shards/hq test.wikipedia=shards/wikipedia out=analysis

The steps, in the order of the tables: count -> ranks and laws -> types and coverage at equal tokens -> distances and
mixtures -> tokens -> lengths -> repetition -> overlap -> trained models, where some are given. Each step is kept in
parts/ under the fingerprint of what it was computed from, so that the same command goes on where it was killed, and
another corpus more does not begin anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.analysis.counts import UnigramCounts, count_unigrams, validate_one_tokenizer
from lingua_synth.analysis.coverage import (
    expected_coverage,
    expected_singletons,
    expected_types,
    grid_of_sizes,
    subsample,
    tail_mass,
    tail_types,
)
from lingua_synth.analysis.distances import SMOOTHING, distances, mixture_curve, nearest_mixture
from lingua_synth.analysis.lengths import document_lengths
from lingua_synth.analysis.losses import WINDOW
from lingua_synth.analysis.models import Trained, model_tables, read_checkpoints
from lingua_synth.analysis.overlap import NGRAM_TOKENS, EvaluationTokens
from lingua_synth.analysis.repetition import document_copies, repeated_ngrams
from lingua_synth.analysis.results import MODEL_TABLES, TABLES, counts_path, write_record, write_table
from lingua_synth.analysis.summary import write_summary
from lingua_synth.analysis.tokens_table import (
    ORDERS,
    PRIOR_TOKENS,
    extreme_tokens,
    readable_token,
    readable_tokens,
    token_log_odds,
)
from lingua_synth.analysis.zipf import LAWS, fit_zipf, rank_frequency
from lingua_synth.config import parse_args, to_dict
from lingua_synth.files import folder_lock, read_json, sha256_json, write_json
from lingua_synth.scaling.cleaning import clean
from lingua_synth.scaling.runs import load_runs
from lingua_synth.tokens.source import TokenSource
from lingua_synth.tokens.tokenizer import Tokenizer, build_tokenizer

PROG = "lingua-synth analyze"

# Of a change that alters results: what lies in parts/ is computed again.
PARTS_VERSION = 1
ALL_TESTS = "test (all)"
RANKS_PER_DECADE = 60

Rows = list[dict[str, Any]]


@dataclass
class AnalyzeArgs:
    """Compare training and evaluation corpora by their tokens: shards of one tokenizer in, tables out.

    Killed, the same command goes on. What cannot be computed is skipped and said.
    """

    train: dict[str, str] = field(default_factory=dict)
    """Training corpora: train.NAME=FOLDER of token shards."""
    test: dict[str, str] = field(default_factory=dict)
    """Evaluation corpora: test.NAME=FOLDER of token shards."""
    out: str = ""
    """Folder for the tables, counts and summary; made when absent."""
    base: str = ""
    """Training corpus that the others are mixed with in KL over the ratio; empty: the first one."""
    max_tokens: int | None = None
    """Count the first documents of at most so many tokens of each corpus; null: all."""
    match_tokens: int | None = None
    """Tokens drawn of each corpus to compare at; smaller corpora are left out and named. Null: the smallest size."""
    smoothing: float = SMOOTHING
    """Occurrences added to every word for KL, 0 or more; with 0 a missing token makes KL infinite."""
    num_samples: int = 5
    """Draws behind each distance, at least 1; their spread is reported."""
    tail_share: float = 0.99
    """The tail is what the most frequent tokens that make up this share of the reference leave, in (0, 1)."""
    prior_tokens: float = PRIOR_TOKENS
    """Weight of the prior of the log-odds, in tokens, above 0."""
    num_listed: int = 50
    """Tokens in each list of too few and too many."""
    zipf_first_rank: int = 1
    """First rank that the laws are fitted to."""
    zipf_last_rank: int | None = None
    """Last one; null: the last with 10 occurrences."""
    zipf_simulations: int = 100
    """Samples behind each interval of a law, at least 20; 0 fits none."""
    longer_than: list[int] = field(default_factory=lambda: [2048, 4096])
    """Lengths in tokens beyond which documents are counted: contexts."""
    ngram_sizes: list[int] = field(default_factory=lambda: [5, NGRAM_TOKENS, 50])
    """Sizes in tokens of the n-grams whose repetition is measured; [] for none."""
    overlap_tokens: int = NGRAM_TOKENS
    """Size in tokens of the n-grams that training and evaluation corpora are held against each other by; 0 for none."""
    ngram_max_tokens: int | None = None
    """Look for repetition and overlap in the first documents of at most so many tokens; null: in all. Repeated n-grams
    are always compared at equal tokens: at most as many as the smallest corpus of the kind (train, test) has."""
    tokenizer_path: str | None = None
    """File of the vocabulary, to show tokens as text; null: where the shards say it was."""
    seed: int = 0
    """Of everything drawn."""
    num_threads: int | None = None
    """Threads; null: one a core. The results are the same for any number."""
    progress: bool = True
    """Show progress bars on stderr."""
    runs: str = ""
    """A runs table, or a folder of runs: its losses are held against distances and collapse. Training corpora are then
    called as its sources: ratio_hq is train.hq."""
    evaluations: dict[str, str] = field(default_factory=dict)
    """Evaluated models: evaluations.MIXTURE=FOLDER of an evaluation, of a run, or of runs."""
    base_mixture: str | None = None
    """Mixture that the others are compared with; null: natural text alone."""
    target: str = "loss_macro"
    """Loss of the runs table that is compared: loss_macro, loss_micro or loss_<domain>."""
    n_definition: str = "non_embedding"
    """Which count of parameters the runs table's laws are in: non_embedding, lingua or total."""
    noise: float | None = None
    """Standard deviation of ln loss of one run (0.003 is 0.3 %), where it is known; null: as the runs show it."""
    window: int = WINDOW
    """Token types in the running mean of losses, at least 1."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; ValueError for bad input."""
    args = parse_args(AnalyzeArgs, argv, prog=PROG)
    record = analyze(args)
    print((Path(args.out) / "summary.md").read_text(encoding="utf-8"))
    print(f"{args.out}: {len(record['tables'])} tables, analysis.json, summary.md")
    return 0


def analyze(args: AnalyzeArgs) -> dict[str, Any]:
    """Write the folder `args.out` and return what analysis.json holds.

    Raises ValueError for missing folders, several tokenizers, a base that is no training corpus, values out of range.
    """
    _validate(args)
    folders = {f"train.{name}": path for name, path in args.train.items()}
    folders |= {f"test.{name}": path for name, path in args.test.items()}
    sources = {name: TokenSource(path) for name, path in folders.items()}
    validate_one_tokenizer({name: source.manifest["tokenizer"] for name, source in sources.items()})
    out = Path(args.out)
    with folder_lock(out, "analysis"):
        (out / "analysis.json").unlink(missing_ok=True)  # it says that all tables are there, and of one run
        return _Analysis(args, out, sources).run()


def _validate(args: AnalyzeArgs) -> None:
    if not args.train and not args.test:
        raise ValueError(f"no corpus: give train.NAME=FOLDER and test.NAME=FOLDER of token shards; `{PROG} --help`")
    if not args.out:
        raise ValueError(f"out= is missing: the folder for the tables; `{PROG} --help` lists the keys")
    for name, path in (*args.train.items(), *args.test.items()):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) or not isinstance(path, str) or not path:
            raise ValueError(
                f"a corpus is train.NAME=FOLDER or test.NAME=FOLDER, its name of letters, digits, - and _; got "
                f"{name!r} and {path!r}"
            )
    if args.base and args.base not in args.train:
        raise ValueError(f"base={args.base} is no training corpus; there are: {', '.join(args.train) or 'none'}")
    ranges: list[tuple[str, float, float]] = [
        ("num_samples", args.num_samples, 1),
        ("smoothing", args.smoothing, 0),
        ("num_listed", args.num_listed, 0),
        ("overlap_tokens", args.overlap_tokens, 0),
        ("window", args.window, 1),
        *((f"ngram_sizes holds {size}: each", size, 1) for size in args.ngram_sizes),
    ]
    for key in ("max_tokens", "match_tokens", "ngram_max_tokens"):
        if getattr(args, key) is not None:
            ranges.append((key, getattr(args, key), 1))
    for key, value, least in ranges:
        if value < least:
            raise ValueError(f"{key} is at least {least}, got {value}")
    if args.zipf_simulations and args.zipf_simulations < 20:
        raise ValueError(f"zipf_simulations is at least 20, or 0 for no fits; got {args.zipf_simulations}")
    if not 0 < args.tail_share < 1:
        raise ValueError(f"tail_share is in (0, 1), got {args.tail_share}")


class _Analysis:
    """One run of the verb: the steps in order, with what they share."""

    def __init__(self, args: AnalyzeArgs, out: Path, sources: Mapping[str, TokenSource]) -> None:
        self.args = args
        self.out = out
        self.sources = dict(sources)
        self.skipped: list[str] = []
        self.tables: dict[str, Rows] = {}
        self.counts: dict[str, UnigramCounts] = {}
        self.matched: dict[str, np.ndarray] = {}
        self.num_matched = 0
        self.tokenizer = self._build_tokenizer()
        self.checkpoints = read_checkpoints(args.evaluations)  # wrong folders are refused before anything is counted

    def run(self) -> dict[str, Any]:
        """All steps; the record that is written last."""
        self._count()
        self._match()
        self._ranks()
        self._support()
        self._distances()
        self._tokens()
        self._lengths()
        self._repetition()
        self._overlap()
        models = self._models()
        tokenizer = next(iter(self.sources.values())).manifest["tokenizer"]
        record = {
            "corpora": {
                name: {"folder": str(source.path), "fingerprint": self.counts[name].fingerprint}
                for name, source in self.sources.items()
            },
            "tokenizer": tokenizer,
            "matched_tokens": self.num_matched,
            "compared": list(self.matched),
            "settings": {key: value for key, value in to_dict(self.args).items() if key not in ("progress", "out")},
            "models": models,
            "skipped": self.skipped,
            "tables": {name: (TABLES | MODEL_TABLES)[name] for name in self.tables},
        }
        for name in (*TABLES, *MODEL_TABLES):  # of an earlier analysis with other words
            if name not in self.tables:
                (self.out / f"{name}.csv").unlink(missing_ok=True)
        write_summary(self.out, record, self.tables)
        write_record(self.out, record)
        return record

    # --- steps ---

    def _count(self) -> None:
        for name, source in self.sources.items():
            self.counts[name] = count_unigrams(
                source.path,
                num_threads=self.args.num_threads,
                max_tokens=self.args.max_tokens,
                name=name,
                cache=counts_path(self.out, name),
                progress=self.args.progress,
            )
        rows = []
        for name, counted in self.counts.items():
            tokens = counted.num_tokens
            rows.append(
                {
                    "corpus": name,
                    "documents": counted.num_documents,
                    "tokens": tokens,
                    "bos": counted.num_bos,
                    "eos": counted.num_eos,
                    "bytes": counted.num_bytes,
                    "bytes_per_token": counted.num_bytes / tokens if tokens else None,
                    "types": int(np.count_nonzero(counted.counts)),
                    "tokens_available": counted.num_tokens_available,
                    "folder": str(self.sources[name].path),
                }
            )
            if not tokens:
                self.skipped.append(f"{name} has no tokens but BOS and EOS: it is in corpora.csv alone")
        self._write("corpora", rows)
        vocab_size = next(iter(self.counts.values())).vocab_size
        every = np.stack([counted.counts for counted in self.counts.values()])
        text = readable_tokens(self.tokenizer, range(vocab_size))
        self._write(
            "unigrams",
            [
                {"token_id": i, "text": text[i], **dict(zip(self.counts, column, strict=True))}
                for i, column in enumerate(every.T.tolist())
            ],
        )

    def _match(self) -> None:
        """Draw equal numbers of tokens of each corpus that has so many: what all comparisons are made of."""
        present = {name: counted for name, counted in self.counts.items() if counted.num_tokens}
        asked = self.args.match_tokens
        for name, counted in list(present.items()):
            if asked is not None and counted.num_tokens < asked:
                self.skipped.append(
                    f"{name} has {counted.num_tokens:,} tokens, fewer than match_tokens={asked:,}: it is not compared"
                )
                del present[name]
        if not present:
            self.skipped.append("no corpus has enough tokens: nothing is compared")
            return
        self.num_matched = asked or min(counted.num_tokens for counted in present.values())
        for index, (name, counted) in enumerate(present.items()):
            rng = np.random.default_rng((self.args.seed, 0, index))
            self.matched[name] = subsample(counted.counts, self.num_matched, rng)

    def _ranks(self) -> None:
        ranks: Rows = []
        for name, counted in self._with_tokens():
            ranked = rank_frequency(counted.counts)
            last = len(ranked.counts)
            points = np.geomspace(1, last, max(2, int(np.log10(last) * RANKS_PER_DECADE)))
            for rank in np.unique(np.rint(points).astype(np.int64)):
                count = int(ranked.counts[rank - 1])
                frequency = count / counted.num_tokens
                ranks.append({"corpus": name, "rank": int(rank), "count": count, "frequency": frequency})
        self._write("rank_frequency", ranks)
        if not self.args.zipf_simulations:
            self.skipped.append("zipf_simulations=0: no laws are fitted")
            return
        rows: Rows = []
        for (name, counted), law in product(self._with_tokens(), LAWS):
            try:
                rows += self._part("zipf", [counted.fingerprint], self._fit_law, counted, law)
            except ValueError as error:
                self.skipped.append(f"{law} of {name}: {error}")
                continue
            rows[-1] = {"corpus": name, **rows[-1]}
        self._write("zipf", rows)

    def _fit_law(self, counted: UnigramCounts, law: Any) -> Rows:
        fitted = fit_zipf(
            counted.counts,
            law,
            first_rank=self.args.zipf_first_rank,
            last_rank=self.args.zipf_last_rank,
            num_simulations=self.args.zipf_simulations,
            seed=self.args.seed,
        ).to_dict()
        for key in ("exponent_interval", "shift_interval"):
            low, high = fitted.pop(key) or (None, None)
            stem = key.removesuffix("_interval")
            fitted |= {f"{stem}_low": low, f"{stem}_high": high}
        return [fitted]

    def _support(self) -> None:
        curves: Rows = []
        for name, counted in self._with_tokens():
            for size in grid_of_sizes(counted.num_tokens):
                curves.append(
                    {
                        "corpus": name,
                        "num_tokens": size,
                        "expected_types": expected_types(counted.counts, size),
                        "unseen_mass": expected_singletons(counted.counts, size) / size,
                    }
                )
        self._write("types", curves)
        if not self.matched:
            return
        reference_name, reference = self._tail_reference()
        is_tail = tail_types(reference, self.args.tail_share)
        self._write(
            "support",
            [
                {
                    "corpus": name,
                    "num_tokens": self.num_matched,
                    "expected_types": expected_types(self.counts[name].counts, self.num_matched),
                    "types_drawn": int(np.count_nonzero(drawn)),
                    "unseen_mass": expected_singletons(self.counts[name].counts, self.num_matched) / self.num_matched,
                    "tail_reference": reference_name,
                    "tail_types": int(is_tail.sum()),
                    "tail_mass": tail_mass(self.counts[name].counts, is_tail),
                }
                for name, drawn in self.matched.items()
            ],
        )
        rows: Rows = []
        for train, test in product(self._compared("train"), self._compared("test")):
            counts, asked = self.counts[train].counts, self.counts[test].counts
            tokens, types = expected_coverage(counts, asked, self.num_matched)
            all_tokens, all_types = expected_coverage(counts, asked, int(counts.sum()))
            rows.append(
                {
                    "train": train,
                    "evaluation": test,
                    "num_tokens": self.num_matched,
                    "share_of_tokens": tokens,
                    "share_of_types": types,
                    "share_of_tokens_by_all": all_tokens,
                    "share_of_types_by_all": all_types,
                }
            )
        self._write_or_skip("coverage", rows, "coverage needs a training and an evaluation corpus")

    def _tail_reference(self) -> tuple[str, np.ndarray]:
        """What tails are tails of: all evaluation corpora together, equal parts of each, or the base."""
        tests = self._compared("test")
        if tests:
            return (tests[0] if len(tests) == 1 else ALL_TESTS), np.sum([self.matched[t] for t in tests], axis=0)
        base = f"train.{self.args.base or next(iter(self.args.train))}"
        name = base if base in self.matched else next(iter(self.matched))
        return name, self.counts[name].counts

    def _distances(self) -> None:
        if len(self.matched) < 1:
            return
        prints = [self.counts[name].fingerprint for name in self.matched]
        self._write("distances", self._part("distances", [*self.matched, *prints, self.num_matched], self._all_pairs))
        trains = self._compared("train")
        tests = {name: self.matched[name] for name in self._compared("test")}
        if len(tests) > 1:
            tests[ALL_TESTS] = np.sum(list(tests.values()), axis=0)
        base = f"train.{self.args.base or next(iter(self.args.train), '')}"
        if not tests or len(trains) < 2 or base not in trains:
            self.skipped.append(
                "KL over mixtures needs an evaluation corpus and two training corpora with enough tokens, one of them "
                f"the base ({base})"
            )
            return
        curves, minima, nearest = [], [], []
        settings: dict[str, Any] = {"num_tokens": self.num_matched, "smoothing": self.args.smoothing}
        for test, counts in tests.items():
            for added in trains:
                if added == base:
                    continue
                names = (test, base, added)
                curve = mixture_curve(counts, self.matched[base], self.matched[added], names=names, **settings)
                head = {"evaluation": test, "base": base, "added": added}
                curves += [{**head, "ratio": p, "kl": kl} for p, kl in zip(curve.ratios, curve.kl, strict=True)]
                ends = {"kl_base": curve.kl[0], "kl_added": curve.kl[-1]}
                minima.append({**head, "best_ratio": curve.best_ratio, "best_kl": curve.best_kl, **ends, **settings})
            try:
                ratios, kl = nearest_mixture(counts, {name: self.matched[name] for name in trains}, **settings)
            except ValueError as error:
                self.skipped.append(f"mixture nearest to {test}: {error}")
                continue
            nearest.append({"evaluation": test, "kl": kl, **ratios})
        self._write("mixtures", curves)
        self._write("mixture_minima", minima)
        self._write("nearest_mixtures", nearest)

    def _all_pairs(self) -> Rows:
        found = distances(
            {name: self.counts[name].counts for name in self.matched},
            num_tokens=self.num_matched,
            smoothing=self.args.smoothing,
            num_samples=self.args.num_samples,
            seed=self.args.seed,
        )
        return [distance.to_dict() for distance in found]

    def _tokens(self) -> None:
        trains, tests = self._names("train"), self._names("test")
        references = {name: self.counts[name].counts for name in tests}
        if len(tests) > 1 and len(self._compared("test")) > 1:
            references[ALL_TESTS] = np.sum([self.matched[name] for name in self._compared("test")], axis=0)
        rows: Rows = []
        for train, (test, reference) in product(trains, references.items()):
            compared = token_log_odds(self.counts[train].counts, reference, prior_tokens=self.args.prior_tokens)
            for order, sign in product(ORDERS, (-1, 1)):
                listed = extreme_tokens(
                    compared, self.tokenizer, num_tokens=self.args.num_listed, order=order, sign=-1 if sign < 0 else 1
                )
                head = {"train": train, "evaluation": test, "list": "too few" if sign < 0 else "too many", "by": order}
                rows += [{**head, "place": place, **row.to_dict()} for place, row in enumerate(listed, 1)]
        self._write_or_skip("tokens", rows, "lists of tokens need a training and an evaluation corpus that differ")

    def _lengths(self) -> None:
        rows, histograms = [], []
        for name, source in self.sources.items():
            tokens, num_bytes = document_lengths(source)
            for unit, found, longer in (("tokens", tokens, self.args.longer_than), ("bytes", num_bytes, [])):
                rows.append({"corpus": name, "unit": unit, **found.summary(longer)})
                histograms += [{"corpus": name, "unit": unit, **row} for row in found.histogram()]
        self._write("lengths", rows)
        self._write("length_histograms", histograms)

    def _repetition(self) -> None:
        if not self.args.ngram_sizes:
            self.skipped.append("ngram_sizes=[]: repetition is not looked for")
            return
        rows, listed, copies = [], [], []
        for kind in ("train", "test"):
            names = self._names(kind)
            size = min((self.sources[name].num_tokens for name in names), default=0)
            size = min(size, self.args.ngram_max_tokens or size)
            for name in names:
                head = {"corpus": name}
                identity = [self.sources[name].fingerprint, size]
                for part in self._part("repetition", identity, self._repeated, self.sources[name], size):
                    most = part.pop("most_repeated")
                    rows.append({**head, **part})
                    for place, one in enumerate(most, 1):
                        text = self._text(one["token_ids"])
                        place_of = {"size": part["size"], "place": place, "count": one["count"]}
                        listed.append({**head, **place_of, "documents": one["num_documents"], "text": text})
                limit = min(self.sources[name].num_tokens, self.args.ngram_max_tokens or self.sources[name].num_tokens)
                identity = [self.sources[name].fingerprint, limit]
                for part in self._part("copies", identity, self._copies, self.sources[name], limit):
                    largest = part.pop("largest")
                    first = {"largest_group": largest[0][1], "id": self._id(name, largest[0][0])} if largest else {}
                    copies.append({**head, "num_tokens": limit, **part, **first})
        self._write("repetition", rows)
        self._write("repeated_ngrams", listed)
        self._write("copies", copies)

    def _repeated(self, source: TokenSource, size: int) -> Rows:
        settings: dict[str, Any] = {"num_threads": self.args.num_threads, "progress": self.args.progress}
        return [repeated_ngrams(source, n, max_tokens=size, **settings).to_dict() for n in self.args.ngram_sizes]

    def _copies(self, source: TokenSource, size: int) -> Rows:
        settings: dict[str, Any] = {"num_threads": self.args.num_threads, "progress": self.args.progress}
        return [document_copies(source, max_tokens=size, **settings).to_dict()]

    def _overlap(self) -> None:
        if not self.args.overlap_tokens:
            self.skipped.append("overlap_tokens=0: training and evaluation corpora are not held against each other")
            return
        trains, tests = self._names("train"), self._names("test")
        if not trains or not tests:
            self.skipped.append("overlap needs a training and an evaluation corpus")
            return
        prints = [print_ for name in tests for print_ in (name, self.sources[name].fingerprint)]
        index: EvaluationTokens | None = None
        rows, documents, train_documents = [], [], []
        for name in trains:

            def find(name: str = name) -> Rows:
                nonlocal index
                if index is None:  # only when something is not known yet
                    index = EvaluationTokens(
                        {test: self.sources[test] for test in tests},
                        self.args.overlap_tokens,
                        num_threads=self.args.num_threads,
                    )
                limit = self.args.ngram_max_tokens
                source = self.sources[name]
                return [index.overlap(name, source, max_tokens=limit, progress=self.args.progress).to_dict()]

            try:
                (found,) = self._part("overlap", [name, self.sources[name].fingerprint, *prints], find)
            except ValueError as error:
                self.skipped.append(f"overlap: {error}")
                return
            for one in found["overlaps"]:
                listed = one.pop("documents")
                rows.append(one)
                head = {"train": name, "evaluation": one["evaluation"]}
                documents += [{**head, **self._document(one["evaluation"], entry)} for entry in listed]
            for entry, (test, number) in zip(found["train_documents"], found["evaluation_of"], strict=True):
                of = {"evaluation": test, "evaluation_id": self._id(test, number)}
                train_documents.append({"train": name, **self._document(name, entry), **of})
        self._write("overlap", rows)
        self._write("overlap_documents", documents)
        self._write("overlap_train_documents", train_documents)

    def _document(self, corpus: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """A document that shares n-grams, with the text of the first shared one."""
        source, size = self.sources[corpus], self.args.overlap_tokens
        return {
            "document": entry["document"],
            "id": self._id(corpus, entry["document"]),
            "num_ngrams": entry["num_ngrams"],
            "share": entry["share"],
            "text": self._text(source.window(entry["position"], size).tolist()),
        }

    def _models(self) -> dict[str, Any]:
        """Trained models beside the corpora; what belongs in the record."""
        if not self.args.runs and not self.args.evaluations:
            return {}
        runs = None
        if self.args.runs:
            runs = clean(
                load_runs(self.args.runs, strict=False), target=self.args.target, n_definition=self.args.n_definition
            ).runs
        tests = [self.counts[name].counts for name in self._names("test")]
        trained = Trained(
            runs=runs,
            checkpoints=self.checkpoints,
            sources={name.removeprefix("train."): self.counts[name] for name in self._names("train")},
            test=np.sum(tests, axis=0) if tests else None,
            base=self.args.base_mixture,
        )
        found = model_tables(
            trained,
            target=self.args.target,
            n_definition=self.args.n_definition,
            noise=self.args.noise,
            smoothing=self.args.smoothing,
            window=self.args.window,
            num_listed=self.args.num_listed,
            readable=lambda ids: readable_tokens(self.tokenizer, ids),
        )
        self.skipped += found.skipped
        for name, rows in found.tables.items():
            self._write(name, rows)
        return found.record

    # --- shared ---

    def _names(self, kind: str) -> list[str]:
        """Corpora of a kind (train, test) that have tokens."""
        return [name for name in self.sources if name.startswith(f"{kind}.") and self.counts[name].num_tokens]

    def _compared(self, kind: str) -> list[str]:
        return [name for name in self.matched if name.startswith(f"{kind}.")]

    def _with_tokens(self) -> Iterable[tuple[str, UnigramCounts]]:
        return [(name, counted) for name, counted in self.counts.items() if counted.num_tokens]

    def _id(self, corpus: str, document: int) -> str:
        return self.sources[corpus].document_id(document)

    def _text(self, token_ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            return " ".join(map(str, token_ids))
        return "".join(readable_token(self.tokenizer, i)[1:-1] for i in token_ids)

    def _build_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the shards, to show tokens as text; None, said, where it cannot be had."""
        described = next(iter(self.sources.values())).manifest["tokenizer"]
        path = self.args.tokenizer_path or described.get("path")
        try:
            tokenizer = build_tokenizer(described["name"], path, fast=False)
        except ValueError as error:
            if self.args.tokenizer_path:
                raise
            self.skipped.append(f"tokens are shown by their ids, as the tokenizer is not to be had ({error})")
            return None
        if tokenizer.sha256 != described["sha256"]:
            wrong = f"{path} is another vocabulary than the shards' ({described['sha256'][:12]}...)"
            if self.args.tokenizer_path:
                raise ValueError(f"tokenizer_path: {wrong}")
            self.skipped.append(f"tokens are shown by their ids: {wrong}; give tokenizer_path=")
            return None
        return tokenizer

    def _part(self, step: str, identity: Sequence[Any], compute: Callable[..., Rows], *arguments: Any) -> Rows:
        """The rows of a step, from parts/ where they were computed from the same before."""
        settings = to_dict(self.args)
        relevant = {key: settings[key] for key in _SETTINGS_OF[step]}
        named = [value for value in arguments if isinstance(value, str | int)]
        key = sha256_json([PARTS_VERSION, step, list(identity), relevant, named])[:24]
        path = self.out / "parts" / f"{step}-{key}.json"
        if not path.exists():
            write_json(path, _without_nan(compute(*arguments)))
        rows: Rows = _with_nan(read_json(path))
        return rows

    def _write(self, name: str, rows: Rows) -> None:
        write_table(self.out / f"{name}.csv", rows)
        self.tables[name] = rows

    def _write_or_skip(self, name: str, rows: Rows, reason: str) -> None:
        if rows:
            self._write(name, rows)
        else:
            self.skipped.append(reason)


# What of the settings a step's result depends on, beside what it is computed from.
_SETTINGS_OF = {
    "zipf": ("zipf_first_rank", "zipf_last_rank", "zipf_simulations", "seed"),
    "distances": ("smoothing", "num_samples", "seed"),
    "repetition": ("ngram_sizes",),
    "copies": (),
    "overlap": ("overlap_tokens", "ngram_max_tokens"),
}


def _without_nan(value: Any) -> Any:
    """JSON has no infinite and no undefined numbers: they are kept as text."""
    if isinstance(value, float) and not np.isfinite(value):
        return {"number": str(value)}
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"number"}:
            return float(value["number"])
        return {key: _with_nan(item) for key, item in value.items()}
    return [_with_nan(item) for item in value] if isinstance(value, list) else value
