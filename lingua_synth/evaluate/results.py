"""An evaluation on disk, written and read without torch; and two of them side by side, if they may stand there.

A folder holds

    evaluation.json        what was evaluated, how, on which domains of which set, and every figure
    token_losses.parquet   domain, token_id, count, nats: a row for each token id that was scored in a domain
    documents.parquet      domain, document (index in the shards), nats, tokens, bytes

The rows of a domain in either file sum to its sums. evaluation.json is written last: where it is, all is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lingua_synth.evaluate.intervals import Interval, difference_intervals
from lingua_synth.evaluate.sums import DomainSums, exp, summarize
from lingua_synth.files import atomic_file, read_json, what_is_there, write_json

if TYPE_CHECKING:
    from lingua_synth.evaluate.scoring import Scores

FORMAT = "lingua_synth evaluation"
VERSION = 1
EVALUATION, TOKENS, DOCUMENTS = "evaluation.json", "token_losses.parquet", "documents.parquet"


@dataclass(frozen=True)
class TokenLosses:
    """Losses by token id; both arrays have the length of the vocabulary."""

    counts: npt.NDArray[np.int64]
    """How often each id was scored."""
    nats: npt.NDArray[np.float64]
    """Its summed loss."""


@dataclass(frozen=True)
class Documents:
    """The scored documents of one domain, in the order of its shards; arrays of one length."""

    document: npt.NDArray[np.int64]
    """Index in the shards."""
    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    """Scored tokens."""
    bytes: npt.NDArray[np.int64]
    """UTF-8 bytes of its scored text."""


def write_evaluation(folder: str | Path, record: Mapping[str, Any], scores: Scores) -> Path:
    """Write `record` (JSON data) and the tables of `scores` as an evaluation in `folder`, in place of one there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVALUATION).unlink(missing_ok=True)
    rows: list[tuple[Any, ...]] = []
    for name, losses in scores.token_losses.items():
        seen = np.flatnonzero(losses.counts)
        rows.append((name, seen, losses.counts[seen], losses.nats[seen]))
    _write_table(folder / TOKENS, {"token_id": "int32", "count": "int64", "nats": "float64"}, rows)
    rows = [(name, found.document, found.nats, found.tokens, found.bytes) for name, found in scores.documents.items()]
    kinds = {"document": "int64", "nats": "float64", "tokens": "int64", "bytes": "int64"}
    _write_table(folder / DOCUMENTS, kinds, rows)
    write_json(folder / EVALUATION, {"format": FORMAT, "version": VERSION, **record})
    return folder


def _write_table(path: Path, kinds: Mapping[str, str], rows: list[tuple[Any, ...]]) -> None:
    """A column `domain` and those of `kinds` (their Arrow types); each of `rows` is a domain's name and its columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name, *columns in rows for _ in range(len(columns[0]))]
    table = {"domain": pa.array(names, pa.string())}
    for number, (key, kind) in enumerate(kinds.items(), 1):
        table[key] = pa.array(np.concatenate([row[number] for row in rows]), pa.type_for_alias(kind))
    with atomic_file(path, "wb") as file:
        pq.write_table(pa.table(table), file, compression="zstd")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation as it lies in its folder."""

    folder: Path
    record: dict[str, Any]
    """evaluation.json."""
    domains: dict[str, DomainSums]

    @property
    def checkpoint(self) -> str:
        return str(self.record["checkpoint"])

    @property
    def averages(self) -> dict[str, float]:
        """`loss_macro`, `loss_micro`, `bpb_macro` over its domains."""
        return summarize(self.domains)

    @property
    def vocab_size(self) -> int:
        return int(self.record["tokenizer"]["n_words"])

    def token_losses(self, domain: str | None = None) -> TokenLosses:
        """Losses by token id in one domain, or summed over all. ValueError for a domain that is not there."""
        table = self._table(TOKENS)
        chosen = slice(None) if domain is None else table["domain"] == self._known(domain)
        ids = table["token_id"][chosen]
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        np.add.at(counts, ids, table["count"][chosen])
        nats = np.zeros(self.vocab_size)
        np.add.at(nats, ids, table["nats"][chosen])
        return TokenLosses(counts, nats)

    def documents(self, domain: str) -> Documents:
        """The scored documents of a domain. ValueError for one that is not there."""
        table = self._table(DOCUMENTS)
        chosen = table["domain"] == self._known(domain)
        return Documents(*(table[key][chosen] for key in ("document", "nats", "tokens", "bytes")))

    def _known(self, domain: str) -> str:
        if domain not in self.domains:
            raise ValueError(f"{self.folder} has no domain {domain!r}; it has {', '.join(self.domains)}")
        return domain

    def _table(self, name: str) -> dict[str, npt.NDArray[Any]]:
        return self._tables[name]

    @cached_property
    def _tables(self) -> dict[str, dict[str, npt.NDArray[Any]]]:
        return {name: _read_table(self.folder / name) for name in (TOKENS, DOCUMENTS)}


def _read_table(path: Path) -> dict[str, npt.NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise ValueError(f"no file {path}; {what_is_there(path)}") from None
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate again") from None
    return {name: table[name].to_numpy() for name in table.column_names}


def read_evaluation(folder: str | Path) -> Evaluation:
    """The evaluation in `folder`, or in `folder`/evaluation of a run. ValueError says what is there when there is none,
    and names another format or version."""
    folder = Path(folder)
    if not (folder / EVALUATION).is_file() and (folder / "evaluation" / EVALUATION).is_file():
        folder = folder / "evaluation"
    record = read_json(folder / EVALUATION)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{folder / EVALUATION} is no evaluation of this library")
    if record.get("version") != VERSION:
        raise ValueError(
            f"{folder / EVALUATION} has version {record.get('version')}, this library reads {VERSION}; evaluate again"
        )
    keys = [field.name for field in dataclasses.fields(DomainSums)]
    domains = {name: DomainSums(**{key: sums[key] for key in keys}) for name, sums in record["domains"].items()}
    return Evaluation(folder, record, domains)


def figures(sums: DomainSums, interval: Interval | None = None) -> dict[str, Any]:
    """What evaluation.json holds of one domain: its sums, and what follows from them."""
    perplexity = sums.perplexity
    return dataclasses.asdict(sums) | {
        "loss": sums.loss,
        "loss_interval": list(interval) if interval is not None else None,
        "bits_per_byte": sums.bits_per_byte,
        "perplexity": perplexity if np.isfinite(perplexity) else None,
    }


def average_figures(domains: Mapping[str, DomainSums]) -> dict[str, float | None]:
    """The averages of evaluation.json; perplexities are exp of the averaged loss (macro: the geometric mean of the
    domains' perplexities)."""
    found: dict[str, float | None] = dict(summarize(domains))
    sums = list(domains.values())
    nats, num_bytes = sum(s.nats for s in sums), sum(s.bytes for s in sums)
    found["bpb_micro"] = DomainSums(nats, 1, num_bytes, 1).bits_per_byte
    for which in ("macro", "micro"):
        perplexity = exp(summarize(domains)[f"loss_{which}"])
        found[f"perplexity_{which}"] = perplexity if np.isfinite(perplexity) else None
    return found


# --- several evaluations ---


@dataclass(frozen=True)
class Comparison:
    """Evaluations side by side, over the same domains, by the same protocol."""

    evaluations: tuple[Evaluation, ...]
    domains: tuple[str, ...]
    left_out: tuple[str, ...]
    """Domains that not all of them have."""
    unit: str
    """loss (nats per token), or bits_per_byte where the vocabularies differ."""
    notes: tuple[str, ...]

    def table(self) -> list[list[Any]]:
        """A row a domain, then the macro average: name, a figure for each evaluation, then for each but the first the
        interval of its difference from the first (None where documents cannot be paired)."""
        rows = []
        for name in self.domains:
            row: list[Any] = [name, *(getattr(one.domains[name], self.unit) for one in self.evaluations)]
            rows.append(row + [found[name] for found in self._differences])
        means = [sum(row[1 + i] for row in rows) / len(rows) for i in range(len(self.evaluations))]
        return [*rows, ["macro", *means, *(found["macro"] for found in self._differences)]]

    @cached_property
    def _differences(self) -> list[dict[str, Interval | None]]:
        return [self._difference(one) for one in self.evaluations[1:]]

    def _difference(self, other: Evaluation) -> dict[str, Interval | None]:
        nothing: dict[str, Interval | None] = dict.fromkeys([*self.domains, "macro"])
        first, pairs = self.evaluations[0], {}
        for name in self.domains:
            a, b = first.documents(name), other.documents(name)
            shards = [one.record["domains"][name]["shards"] for one in (first, other)]
            is_same = shards[0] == shards[1] and np.array_equal(a.document, b.document)
            if self.unit == "loss" and is_same:
                pairs[name] = (a.nats, b.nats, a.tokens)
        return nothing | difference_intervals(pairs, with_macro=len(pairs) == len(self.domains))


def compare_evaluations(evaluations: Iterable[Evaluation | str | Path], *, common: bool = False) -> Comparison:
    """Several evaluations side by side. ValueError, naming what differs, where their figures do not compare:
    another protocol or seq_len, other domains, other documents of a domain.

    `common`: compare over the domains that all have, and say which are left out. Evaluations of different
    vocabularies are compared in bits per byte, and only where the same documents were scored whole.
    """
    found = [one if isinstance(one, Evaluation) else read_evaluation(one) for one in evaluations]
    if len(found) < 2:
        raise ValueError(f"compare takes two evaluations or more, got {len(found)}")
    first = found[0]
    for other in found[1:]:
        for key in ("protocol", "seq_len"):
            if first.record[key] != other.record[key]:
                raise ValueError(
                    f"{first.folder} and {other.folder} do not compare: {key} is {first.record[key]} there and "
                    f"{other.record[key]} here; evaluate both alike"
                )
    names = [name for name in first.domains if all(name in one.domains for one in found)]
    left_out = sorted({name for one in found for name in one.domains} - set(names))
    if left_out and not common:
        listed = "; ".join(f"{one.folder}: {', '.join(one.domains)}" for one in found)
        raise ValueError(
            f"the evaluations are on different domains ({listed}), so their averages do not compare; evaluate on the "
            "same ones, or set common=true to compare over those that all have"
        )
    if not names:
        raise ValueError("the evaluations have no domain in common: " + "; ".join(str(one.folder) for one in found))
    vocabularies = {one.record["tokenizer"]["sha256"] for one in found}
    notes = []
    if left_out:
        notes.append(f"left out, not in all: {', '.join(left_out)}")
    if len(vocabularies) > 1:
        notes.append("different vocabularies: bits per byte")
    for other in found[1:]:
        _refuse_other_documents(first, other, names, same_vocabulary=len(vocabularies) == 1)
    unit = "loss" if len(vocabularies) == 1 else "bits_per_byte"
    return Comparison(tuple(found), tuple(names), tuple(left_out), unit, tuple(notes))


def _refuse_other_documents(first: Evaluation, other: Evaluation, names: list[str], *, same_vocabulary: bool) -> None:
    for name in names:
        a, b = (one.record["domains"][name] for one in (first, other))
        keys = ("documents", "tokens", "bytes") if same_vocabulary else ("documents", "bytes")
        different = [f"{key} {a[key]:,} and {b[key]:,}" for key in keys if a[key] != b[key]]
        if different:
            raise ValueError(
                f"{first.folder} and {other.folder} scored other documents of {name!r} ({', '.join(different)}); "
                "evaluate both on the same texts, with the same max_tokens_per_domain; of two vocabularies, with "
                "max_bytes_per_domain"
            )
