"""An analysis from end to end: corpora are counted and compared, and every table is written.

The steps, in the order of the tables: count -> ranks and laws -> types and coverage at equal tokens -> distances and
mixtures -> tokens -> lengths -> repetition -> overlap -> trained models, where some are given. What takes long is kept
(`parts.py`): the same call goes on where it was killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.analysis.args import AnalyzeArgs, validate_args
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
from lingua_synth.analysis.distances import distances, mixture_curve, nearest_mixture
from lingua_synth.analysis.lengths import document_lengths
from lingua_synth.analysis.models import Trained, model_tables, read_checkpoints
from lingua_synth.analysis.overlap import EvaluationTokens
from lingua_synth.analysis.parts import Parts, Rows
from lingua_synth.analysis.repetition import document_copies, repeated_ngrams
from lingua_synth.analysis.results import MODEL_TABLES, TABLES, counts_path, write_record, write_table
from lingua_synth.analysis.summary import write_summary
from lingua_synth.analysis.tokens_table import (
    ORDERS,
    extreme_tokens,
    readable_token,
    readable_tokens,
    token_log_odds,
)
from lingua_synth.analysis.zipf import LAWS, fit_zipf, rank_frequency
from lingua_synth.config import to_dict
from lingua_synth.files import folder_lock
from lingua_synth.scaling.cleaning import clean
from lingua_synth.scaling.runs import load_runs, refuse_several_tokenizers
from lingua_synth.tokens.source import TokenSource
from lingua_synth.tokens.tokenizer import Tokenizer, build_tokenizer

ALL_TESTS = "test (all)"
RANKS_PER_DECADE = 60


def analyze(args: AnalyzeArgs) -> dict[str, Any]:
    """Write the folder `args.out` and return what analysis.json holds.

    Raises ValueError for missing folders, several tokenizers, a base that is no training corpus, values out of range.
    """
    validate_args(args)
    folders = {f"train.{name}": path for name, path in args.train.items()}
    folders |= {f"test.{name}": path for name, path in args.test.items()}
    sources = {name: TokenSource(path) for name, path in folders.items()}
    validate_one_tokenizer({name: source.manifest["tokenizer"] for name, source in sources.items()})
    out = Path(args.out)
    with folder_lock(out, "analysis"):
        (out / "analysis.json").unlink(missing_ok=True)  # it says that all tables are there, and of one run
        return _Analysis(args, out, sources).run()


class _Analysis:
    """One run of the verb: the steps in order, with what they share."""

    def __init__(self, args: AnalyzeArgs, out: Path, sources: Mapping[str, TokenSource]) -> None:
        self.args = args
        self.out = out
        self.sources = dict(sources)
        self._parts = Parts(out / "parts", to_dict(args))
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
                rows += self._parts.rows("zipf", [counted.fingerprint], self._fit_law, counted, law)
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
        self._write(
            "distances", self._parts.rows("distances", [*self.matched, *prints, self.num_matched], self._all_pairs)
        )
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
                for part in self._parts.rows("repetition", identity, self._repeated, self.sources[name], size):
                    most = part.pop("most_repeated")
                    rows.append({**head, **part})
                    for place, one in enumerate(most, 1):
                        text = self._text(one["token_ids"])
                        place_of = {"size": part["size"], "place": place, "count": one["count"]}
                        listed.append({**head, **place_of, "documents": one["num_documents"], "text": text})
                limit = min(self.sources[name].num_tokens, self.args.ngram_max_tokens or self.sources[name].num_tokens)
                identity = [self.sources[name].fingerprint, limit]
                for part in self._parts.rows("copies", identity, self._copies, self.sources[name], limit):
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
                (found,) = self._parts.rows("overlap", [name, self.sources[name].fingerprint, *prints], find)
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
            table = load_runs(self.args.runs, strict=False)
            refuse_several_tokenizers(table, "Models are compared")
            runs = clean(table, target=self.args.target, n_definition=self.args.n_definition).runs
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

    def _write(self, name: str, rows: Rows) -> None:
        write_table(self.out / f"{name}.csv", rows)
        self.tables[name] = rows

    def _write_or_skip(self, name: str, rows: Rows, reason: str) -> None:
        if rows:
            self._write(name, rows)
        else:
            self.skipped.append(reason)
