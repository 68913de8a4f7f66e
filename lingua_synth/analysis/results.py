"""The folder that `lingua-synth analyze` writes: analysis.json, tables as CSV, counts, a summary to read.

    analysis.json        what was compared, at how many tokens, what was skipped and why; written last
    corpora.csv ...      one table a statistic (`TABLES` says what each holds)
    counts/              unigram counts of every corpus (`UnigramCounts.load`)
    parts/               results by the fingerprint of what they were computed from: what a second run takes up
    summary.md

In the tables an infinite value is `inf`, one that does not exist is empty.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.analysis.counts import UnigramCounts
from lingua_synth.files import atomic_file, read_json, write_json

FORMAT = "lingua_synth analysis"
VERSION = 1
RECORD = "analysis.json"

TABLES: dict[str, str] = {
    "corpora": "the corpora: documents, tokens (BOS and EOS apart), bytes, types",
    "unigrams": "every token of the vocabulary: its id, its text, how often each corpus has it",
    "rank_frequency": "rank, count and frequency, at ranks evenly spaced in the logarithm",
    "zipf": "laws of rank and frequency: exponents with intervals, ranges, distance from the law",
    "types": "expected number of different types, and mass of unseen ones, among n tokens drawn of each corpus",
    "support": "at the matched number of tokens: types, unseen mass, mass of the reference's tail",
    "coverage": "share of each evaluation corpus that the matched number of training tokens contains",
    "distances": "KL both ways and Jensen-Shannon of every pair of corpora at the matched number of tokens",
    "mixtures": "KL(evaluation || mixture of base and one other) over the other's share",
    "mixture_minima": "where each of these curves is lowest",
    "nearest_mixtures": "the mixture of all training corpora nearest to each evaluation corpus",
    "tokens": "tokens that a training corpus has too few or too many of, with counts and log-odds",
    "lengths": "documents' lengths in tokens and bytes: mean, quantiles, shares beyond given lengths",
    "length_histograms": "the same as histograms",
    "repetition": "shares of repeated n-grams, at equal tokens",
    "repeated_ngrams": "the n-grams that occur most",
    "copies": "documents that are exact copies of another",
    "overlap": "n-grams that training and evaluation corpora share",
    "overlap_documents": "the evaluation documents concerned",
    "overlap_train_documents": "the training documents concerned",
}
MODEL_TABLES: dict[str, str] = {
    "rolling_losses": "running mean of the loss over token types from frequent to rare, a model of each mixture",
    "token_losses": "tokens that cost a model most beyond an average token, with their counts in its training text",
    "token_loss_differences": "tokens that a model predicts worse or better than the base mixture's",
    "loss_distance": "per mixture: distance of its training text from the evaluation text, and its loss beside others",
    "loss_ratio": "the same over the share of one synthetic source",
    "collapse": "tests of model collapse: effect, interval, margin, verdict",
}
"""Made where runs or evaluations are given."""


@dataclass(frozen=True)
class Analysis:
    """A finished analysis, read from its folder."""

    folder: Path
    record: Mapping[str, Any]
    """analysis.json."""

    @property
    def corpora(self) -> list[str]:
        """Names of all corpora: train.cc, test.wikipedia."""
        return list(self.record["corpora"])

    @property
    def skipped(self) -> list[str]:
        """What was left out and why, a sentence each."""
        return list(self.record["skipped"])

    @property
    def tables(self) -> list[str]:
        """Names of the tables that there are."""
        return list(self.record["tables"])

    def table(self, name: str) -> list[dict[str, Any]]:
        """Rows of a table: numbers as int or float (math.inf, math.nan where empty), the rest as text.

        ValueError for a table that this analysis does not have.
        """
        if name not in self.record["tables"]:
            raise ValueError(f"the analysis in {self.folder} has no table {name!r}; it has {', '.join(self.tables)}")
        return read_table(self.folder / f"{name}.csv", text=self.record["text_columns"])

    def counts(self, corpus: str) -> UnigramCounts:
        """Unigram counts of a corpus, as train.cc. ValueError for one that was not analyzed."""
        if corpus not in self.record["corpora"]:
            raise ValueError(
                f"the analysis in {self.folder} has no corpus {corpus!r}; it has {', '.join(self.corpora)}"
            )
        return UnigramCounts.load(counts_path(self.folder, corpus))


def read_analysis(folder: str | Path) -> Analysis:
    """Open the folder of a finished analysis; ValueError when there is none, or it is of another version."""
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise ValueError(
            f"no finished analysis in {folder} (no {RECORD}); `lingua-synth analyze out={folder} ...` makes one"
        )
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise ValueError(
            f"{folder / RECORD} is not an analysis of version {VERSION}; analyze again into another folder"
        )
    return Analysis(folder, record)


def counts_path(folder: Path, corpus: str) -> Path:
    """Where the counts of a corpus lie."""
    return folder / "counts" / f"{corpus}.npz"


# Columns that hold text even where it looks like a number.
TEXT_COLUMNS = (
    "text",
    "corpus",
    "train",
    "evaluation",
    "first",
    "second",
    "base",
    "added",
    "id",
    "evaluation_id",
    "name",
    "mixture",
    "source",
    "sorted_by",
)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as CSV, atomically; floats at full precision, nan and None as nothing, inf as inf."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(column)) for column in columns])


def read_table(path: Path, text: Iterable[str] = TEXT_COLUMNS) -> list[dict[str, Any]]:
    """What `write_table` wrote; the columns named in `text` stay text. ValueError for a file that is missing."""
    kept = set(text)
    if not path.is_file():
        raise ValueError(f"no table {path}; analyze again with the same words, and it is made")
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {key: value if key in kept else _value(value) for key, value in row.items()} for row in csv.DictReader(file)
        ]


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write analysis.json, the file that says that an analysis is finished."""
    write_json(folder / RECORD, {"format": FORMAT, "version": VERSION, **record, "text_columns": list(TEXT_COLUMNS)})


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else value


def _value(text: str) -> Any:
    if not text:
        return math.nan
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
