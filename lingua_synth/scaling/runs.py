"""The runs table: one row per finished training, whoever trained it.

A table comes in (CSV or parquet, ours or any other with a map of its column names), or a folder of run folders (ours or
Meta Lingua's, `folders.py`); `Runs`, an immutable table of columns, goes out. Nothing is dropped and nothing is
guessed: a cell that is not a number, a run without its loss, a repeated `run_id` are refused with file, row and column,
because a fit would swallow them silently. With `strict=False` they come in as they are, for `clean` to name.

N: parameters of the model (three counts, see `N_COLUMNS`); tokens: the training budget D, repeats counted;
training_bytes: the UTF-8 bytes of text behind them; `loss_*`: nats per token on held-out text; `bpb_*`: bits per byte
of it, which alone compares across tokenizers; `eval_bytes_*`: the bytes that were scored.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.files import atomic_file, what_is_there

N_COLUMNS = {"non_embedding": "n_non_embedding", "lingua": "n_lingua", "total": "n_total"}
"""Definition of N -> its column: without vocabulary matrices; without one of them (Lingua's count); with all."""

TEXT_COLUMNS = (
    "run_id", "mixture", "mixture_schedule", "size", "tokenizer", "tokenizer_sha256", "schedule", "training",
    "config_sha256",
)  # fmt: skip
IDENTITY_COLUMNS = ("run_id", "mixture", "size")
AVERAGES = ("macro", "micro")
"""`loss_macro` and `loss_micro` are averages over domains; every other `loss_<name>` is a domain."""

# Column order of the file; a name that ends in "_" stands for every column that begins with it.
_ORDER = (
    "run_id", "mixture", "mixture_schedule", "ratio_", "size", "n_non_embedding", "n_total", "n_lingua", "tokenizer",
    "tokenizer_sha256", "tokens", "tokens_", "training_bytes", "training_bytes_", "unique_tokens_", "epochs_", "seed",
    "schedule", "loss_macro", "loss_micro", "loss_", "bpb_macro", "bpb_", "eval_bytes_", "flops", "gpu_hours", "wall_s",
    "schedule_done", "training", "config_sha256",
)  # fmt: skip
_NUMBER_COLUMNS = tuple(name for name in _ORDER if name not in TEXT_COLUMNS)


class Runs:
    """An immutable table of trainings: `columns[name]` is a read-only array of text or of float64, all of one
    length; `notes` are sentences about where it comes from, e.g. which folders held no run."""

    def __init__(self, columns: Mapping[str, Any], notes: Iterable[str] = ()) -> None:
        """Take columns of equal length; ValueError names the column that is not."""
        self.columns: dict[str, np.ndarray] = {}
        self.notes = tuple(notes)
        length: int | None = None
        for name, values in columns.items():
            array = np.asarray(values)
            if array.ndim != 1:
                raise ValueError(f"column {name!r} of a runs table must be one-dimensional, got shape {array.shape}")
            if _is_number_column(name) or (name not in TEXT_COLUMNS and array.dtype.kind in "fiub"):
                try:
                    array = array.astype(np.float64)
                except (TypeError, ValueError):
                    raise ValueError(f"column {name!r} of a runs table must hold numbers, got {array[:3]}") from None
            else:
                array = np.array([str(value) for value in array.tolist()], dtype=np.str_)
            if length is None:
                length = len(array)
            if len(array) != length:
                raise ValueError(f"column {name!r} has {len(array)} rows where the others have {length}")
            array = array.copy()
            array.flags.writeable = False
            self.columns[name] = array
        self._length = length or 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, column: str) -> np.ndarray:
        """The values of `column`; ValueError lists the columns and the nearest name."""
        if column not in self.columns:
            near = difflib.get_close_matches(column, self.columns, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"no column {column!r} in the runs table; {hint}columns: {', '.join(self.columns)}")
        return self.columns[column]

    def __repr__(self) -> str:
        return f"Runs({len(self)} rows, mixtures {', '.join(self.mixtures) or 'none'}, {len(self.columns)} columns)"

    def select(self, **equal: str | float) -> Runs:
        """The rows where every named column has the given value; possibly none. ValueError for an unknown column."""
        keep = np.ones(len(self), dtype=bool)
        for name, value in equal.items():
            values = self[name]
            if values.dtype.kind == "U":
                keep &= values == str(value)
                continue
            try:
                keep &= values == float(value)
            except (TypeError, ValueError):
                raise ValueError(f"column {name!r} holds numbers; it cannot equal {value!r}") from None
        return self.take(keep)

    def take(self, rows: Sequence[int] | Sequence[bool] | np.ndarray) -> Runs:
        """The rows of a mask (one True or False a row), or of row numbers in their order. ValueError for others."""
        chosen = np.asarray(rows)
        if not chosen.size:
            chosen = chosen.astype(np.int64)
        if chosen.dtype == np.bool_ and chosen.shape != (len(self),):
            raise ValueError(f"a mask of rows has one value for each of the {len(self)} rows; got {chosen.shape}")
        if chosen.dtype.kind not in "biu" or chosen.ndim != 1:
            raise ValueError(f"rows are a mask or row numbers; got {chosen.dtype} of shape {chosen.shape}")
        if chosen.dtype != np.bool_ and chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise ValueError(f"rows are numbered 0..{len(self) - 1}; got {chosen.min()}..{chosen.max()}")
        return Runs({name: values[chosen] for name, values in self.columns.items()}, self.notes)

    def with_columns(self, **columns: Any) -> Runs:
        """The table with columns added or replaced."""
        return Runs({**self.columns, **columns}, self.notes)

    @property
    def mixtures(self) -> list[str]:
        """Names of the mixtures, in order of first appearance."""
        return list(dict.fromkeys(self.columns["mixture"].tolist())) if "mixture" in self.columns else []

    @property
    def domains(self) -> list[str]:
        """Evaluation domains: the `loss_<domain>` columns without the averages."""
        names = [name.removeprefix("loss_") for name in self.columns if name.startswith("loss_")]
        return [name for name in names if name not in AVERAGES]

    @property
    def sources(self) -> list[str]:
        """Sources that mixtures are made of: the `ratio_<source>` columns."""
        return [name.removeprefix("ratio_") for name in self.columns if name.startswith("ratio_")]

    def N(self, definition: str = "non_embedding") -> np.ndarray:
        """Parameters of every run under `definition`: non_embedding, lingua or total."""
        return self[n_column(definition)]


def n_column(definition: str) -> str:
    """The column that holds N under `definition`; ValueError lists the definitions."""
    if definition not in N_COLUMNS:
        raise ValueError(f"N is defined as one of {', '.join(N_COLUMNS)}; got {definition!r}")
    return N_COLUMNS[definition]


def load_runs(path: str | Path, columns: Mapping[str, str] | None = None, *, strict: bool = True) -> Runs:
    """Read a runs table: a CSV or parquet file, or a folder with run folders in it, this library's or Meta Lingua's.

    `columns` maps our names to the file's, for tables of other origin: `{"n_total": "params", "loss_macro": "loss"}`;
    a column of the file that is not named there keeps its name. With a map, the names a fit does not need may be
    missing: `run_id` becomes row-1, row-2, ..., `mixture` becomes all, `size` the N column's value.

    ValueError, with file, row and column: a missing column (run_id, mixture, size, tokens, one count of parameters, one
    loss), a cell that is not a finite number, tokens, parameters or losses that are not positive, a run without a loss
    (by name), a repeated run_id, a row of another length than the header. Rows count from 1 below the header.

    With `strict=False` only the file and the columns are held to that: a cell of a number column that is no finite
    number becomes NaN, numbers that are not positive stay, a run_id that stands again gets `#2`, `#3`, and `clean`
    says what to do with each. What a folder holds (`read_run_folders`) has runs that are not finished, and is never
    strict; there `columns` must be left out. A table that mixes tokenizers or learning-rate schedules says so in its
    `notes`.
    """
    path = Path(path)
    if path.is_dir():
        if columns:
            raise ValueError(f"{path} is a folder; a column map is for a table of other origin")
        from lingua_synth.scaling.folders import read_run_folders

        return read_run_folders(path)
    header, rows, notes = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    header = _renamed(header, columns or {}, path)
    texts: dict[str, list[str]] = {name: [row[k] for _, row in rows] for k, name in enumerate(header)}
    unit = "line" if path.suffix != ".parquet" else "record"
    where = [f"{path}, row {k} ({unit} {line})" for k, (line, _) in enumerate(rows, start=1)]
    _require_columns(texts, path, identity=columns is None)
    if columns is not None:
        _make_identity(texts, len(rows))
    if strict:
        _refuse_duplicates(texts["run_id"], where)
    else:
        texts["run_id"] = _numbered(texts["run_id"])
    table = {name: _read_column(name, cells, texts["run_id"], where, strict) for name, cells in texts.items()}
    return with_table_notes(Runs(table, notes))


_SCHEDULES = "runs of different learning-rate schedules"
_CHANGING = "mixtures whose shares change over training"
_TOKENIZERS = "runs of different tokenizers"


def schedules(runs: Runs) -> dict[str, int]:
    """Runs by learning-rate schedule, the most frequent first; of a table that does not say, none."""
    found = [name for name in runs.columns["schedule"].tolist() if name] if "schedule" in runs.columns else []
    return dict(Counter(found).most_common())


def tokenizer_names(runs: Runs) -> list[str]:
    """The tokenizer of every run, one name a vocabulary; empty where the table does not say.

    A vocabulary (`tokenizer_sha256`) that stands under two names has the first of them; a name that stands for two
    vocabularies is told apart by the first digits of their hashes, sp-4096-82e9d319.
    """
    if "tokenizer" not in runs.columns:
        return [""] * len(runs)
    names = runs.columns["tokenizer"].tolist()
    shas = runs.columns["tokenizer_sha256"].tolist() if "tokenizer_sha256" in runs.columns else [""] * len(names)
    name_of: dict[str, str] = {}
    for name, sha in zip(names, shas, strict=True):
        if sha:
            name_of.setdefault(sha, name)
    shared = {name for name, count in Counter(name_of.values()).items() if count > 1}
    name_of = {sha: f"{name}-{sha[:8]}" if name in shared else name for sha, name in name_of.items()}
    return [name_of.get(sha, name) for name, sha in zip(names, shas, strict=True)]


def tokenizers(runs: Runs) -> dict[str, int]:
    """Runs by tokenizer, in order of first appearance; of a table that does not say, none."""
    return dict(Counter(filter(None, tokenizer_names(runs))))


def refuse_several_tokenizers(runs: Runs, what: str) -> None:
    """ValueError if the table has runs of several tokenizers; `what` is done within one, as the message says."""
    found = tokenizers(runs)
    if len(found) > 1:
        shown = ", ".join(f"{name}: {count:,}" for name, count in found.items())
        raise ValueError(
            f"the table has runs of {len(found)} tokenizers ({shown}), whose tokens, and losses per token, do not "
            f"compare. {what} within one: tokenizer={next(iter(found))}, or select(tokenizer=...); across them "
            "`lingua-synth study compare-tokenizers` compares bits per byte"
        )


def _changing_mixtures(runs: Runs) -> list[str]:
    if "mixture_schedule" not in runs.columns:
        return []
    pairs = zip(runs.columns["mixture"].tolist(), runs.columns["mixture_schedule"].tolist(), strict=True)
    return list(dict.fromkeys(mixture for mixture, schedule in pairs if schedule not in ("", "constant")))


def with_table_notes(runs: Runs) -> Runs:
    """The table with a note where it mixes tokenizers or learning-rate schedules, and without one where not."""
    notes = [note for note in runs.notes if not note.startswith((_SCHEDULES, _CHANGING, _TOKENIZERS))]
    if len(by_tokenizer := tokenizers(runs)) > 1:
        shown = ", ".join(f"{name}: {count:,}" for name, count in by_tokenizer.items())
        notes.append(
            f"{_TOKENIZERS} ({shown}): their tokens and losses per token do not compare; "
            f"tokenizer={next(iter(by_tokenizer))} takes those runs alone, and `study compare-tokenizers` compares all"
        )
    counts = schedules(runs)
    if len(counts) > 1:
        shown = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
        notes.append(
            f"{_SCHEDULES} ({shown}): in one fit the schedule passes for an effect of N or D; "
            f"schedule={next(iter(counts))} takes those runs alone"
        )
    if changing := _changing_mixtures(runs):
        notes.append(
            f"{_CHANGING} ({', '.join(changing)}): a law in the ratio takes them for static mixtures of their overall "
            "shares; `study compare` holds them to those"
        )
    return Runs(runs.columns, notes)


def write_runs(runs_or_rows: Runs | Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write a runs table as CSV, or as parquet where `path` ends so, atomically; `load_runs` reads back equal values.

    Takes `Runs` or rows as mappings. Floats are written with all their digits, whole numbers as integers, what a row
    lacks (absent, None, NaN) as an empty cell. Columns stand in one fixed order; unknown ones come last.
    ValueError for a table without rows or an infinite value.
    """
    if isinstance(runs_or_rows, Runs):
        names = list(runs_or_rows.columns)
        columns = [runs_or_rows.columns[name].tolist() for name in names]
        rows: Sequence[Mapping[str, Any]] = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    else:
        rows = list(runs_or_rows)
        names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise ValueError(f"no runs to write to {path}")
    names = sorted(names, key=lambda name: (_order(name), names.index(name)))
    if Path(path).suffix == ".parquet":
        _write_parquet(names, rows, path)
        return
    lines = [[_cell(name, row.get(name), row) for name in names] for row in rows]
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(lines)


# --- reading ---


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """Header, (line number, cells) of every row that is not blank, and notes."""
    if not path.is_file():
        raise ValueError(f"no runs table {path}; {what_is_there(path)}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from None
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines:
        raise ValueError(f"{path} is empty; a runs table begins with a line of column names")
    header, rows = lines[0][1], lines[1:]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has more than one column named {', '.join(map(repr, repeated))}")
    for k, (number, row) in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {k} (line {number}) has {len(row)} cells where the header has {len(header)}")
    return header, rows, []


def _read_parquet(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """As `_read_csv`. A column that holds neither numbers nor text is left out, with a note."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ValueError(f"no runs table {path}; {what_is_there(path)}")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a parquet file that can be read: {error}") from None
    if not table.num_columns:
        raise ValueError(f"{path} is empty; a runs table has columns")
    repeated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has more than one column named {', '.join(map(repr, repeated))}")
    header, columns, left_out = [], [], []
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.to_pylist()
        if all(value is None or isinstance(value, (bool, int, float, str)) for value in values):
            header.append(name)
            # repr of a float is its shortest exact form, so nothing is lost on the way through text.
            columns.append(["" if v is None else repr(v) if isinstance(v, float) else str(v).strip() for v in values])
        else:
            left_out.append(f"column {name!r} of {path.name} is left out: it holds {column.type}")
    rows = [(k, [column[k - 1] for column in columns]) for k in range(1, table.num_rows + 1)]
    return header, rows, left_out


def _renamed(header: Sequence[str], columns: Mapping[str, str], path: Path) -> list[str]:
    """The header in our names."""
    for ours, theirs in columns.items():
        if theirs not in header:
            near = difflib.get_close_matches(theirs, header, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"the column map asks for {theirs!r} (as {ours}), which {path} lacks; {hint}it has: {', '.join(header)}"
            )
        if ours != theirs and ours in header and ours not in columns.values():
            raise ValueError(
                f"{path} has a column {ours!r} already; the column map cannot give that name to {theirs!r}"
            )
    back: dict[str, str] = {}
    for ours, theirs in columns.items():
        if theirs in back:
            raise ValueError(f"the column map gives {theirs!r} two names, {back[theirs]} and {ours}")
        back[theirs] = ours
    return [back.get(name, name) for name in header]


def _require_columns(texts: Mapping[str, Any], path: Path, *, identity: bool) -> None:
    missing = [name for name in (*(IDENTITY_COLUMNS if identity else ()), "tokens") if name not in texts]
    if not any(name in texts for name in N_COLUMNS.values()):
        missing.append(f"one of {', '.join(N_COLUMNS.values())}")
    if not any(name.startswith("loss_") for name in texts):
        missing.append("one of loss_macro, loss_<domain>")
    if missing:
        likely = {ours: theirs for ours, theirs in _likely_names(texts).items() if ours not in texts}
        shown = ", ".join(f"{ours}={theirs}" for ours, theirs in likely.items())
        raise ValueError(
            f"{path} lacks {'; '.join(missing)}. It has: {', '.join(texts)}. "
            "If its columns have other names, give columns={our name: name in the file}"
            + (f"; perhaps {shown}" if shown else "")
        )


_OTHER_NAMES = {
    "tokens": ("D", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "data", "tokens_seen"),
    "n_total": ("params", "N", "n_params", "num_params", "parameters", "model_size"),
    "n_non_embedding": ("params_no_embed", "non_embedding_params", "n_params_no_embed"),
    "loss_macro": ("loss", "val_loss", "eval_loss", "validation_loss", "valid_loss", "train_loss"),
}
"""Ours -> what public tables call it; only ever suggested, because `params` may count the embedding or not."""


def _likely_names(header: Iterable[str]) -> dict[str, str]:
    by_lower = {name.lower(): name for name in header}
    found = {
        ours: [by_lower[n.lower()] for n in names if n.lower() in by_lower] for ours, names in _OTHER_NAMES.items()
    }
    return {ours: names[0] for ours, names in found.items() if names}


def _make_identity(texts: dict[str, list[str]], num_rows: int) -> None:
    texts.setdefault("run_id", [f"row-{k}" for k in range(1, num_rows + 1)])
    texts.setdefault("mixture", ["all"] * num_rows)
    count = next(name for name in N_COLUMNS.values() if name in texts)
    texts.setdefault("size", list(texts[count]))


def _refuse_duplicates(run_ids: Sequence[str], where: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for k, run_id in enumerate(run_ids):
        if not run_id:
            raise ValueError(f"{where[k]}, column 'run_id': empty; every run needs a name of its own")
        if run_id in first:
            raise ValueError(f"run {run_id!r} stands twice: {where[first[run_id]]} and {where[k]}; keep one of them")
        first[run_id] = k


def _numbered(run_ids: Sequence[str]) -> list[str]:
    """Names without a repeat: the second `a` is `a#2`; an empty one is its row."""
    names = [run_id or f"row-{k}" for k, run_id in enumerate(run_ids, start=1)]
    taken, used, result = set(names), set[str](), []
    for name in names:
        new, k = name, 1
        while new in used or (k > 1 and new in taken):
            k += 1
            new = f"{name}#{k}"
        used.add(new)
        result.append(new)
    return result


def _read_column(
    name: str, cells: Sequence[str], run_ids: Sequence[str], where: Sequence[str], strict: bool
) -> np.ndarray:
    if name in TEXT_COLUMNS:
        for k, cell in enumerate(cells):
            if not cell and name in IDENTITY_COLUMNS and strict:
                raise ValueError(f"{where[k]}, column {name!r}: empty; run {run_ids[k]!r} needs a {name}")
        return np.array(cells, dtype=np.str_)
    if not _is_number_column(name):
        try:
            return np.array([float(cell) if cell else math.nan for cell in cells], dtype=np.float64)
        except ValueError:
            return np.array(cells, dtype=np.str_)
    if not strict:
        return np.array([_number_or_nan(cell) for cell in cells], dtype=np.float64)
    return np.array([_read_number(name, cell, run_ids[k], where[k]) for k, cell in enumerate(cells)], dtype=np.float64)


def _number_or_nan(cell: str) -> float:
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _read_number(name: str, cell: str, run_id: str, where: str) -> float:
    """A finite number, or NaN for an empty cell of a column no fit depends on."""
    needed = name == "tokens" or name in N_COLUMNS.values() or name.startswith("loss_")
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        raise ValueError(f"{where}, column {name!r}: {cell!r} is not a number") from None
    if math.isinf(value):
        raise ValueError(f"{where}, column {name!r}: {cell!r} of run {run_id!r} is not finite")
    if needed and math.isnan(value):
        raise ValueError(
            f"run {run_id!r} has no {name} ({where}, column {name!r} is {cell or 'empty'}); "
            "fill it in, or remove the row or the column"
        )
    if needed and value <= 0:
        raise ValueError(f"{where}, column {name!r}: {name} of run {run_id!r} must be positive, got {cell}")
    return value


def _is_number_column(name: str) -> bool:
    return any(name == known or (known.endswith("_") and name.startswith(known)) for known in _NUMBER_COLUMNS)


# --- writing ---


def _write_parquet(names: Sequence[str], rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Columns of integers where all are whole, of floats where all are numbers, of text otherwise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name in names:
        cells = [_cell(name, row.get(name), row) for row in rows]
        kinds: tuple[Any, ...] = () if name in TEXT_COLUMNS else (int, float)
        values: list[Any] = [cell or None for cell in cells]
        for kind in kinds:
            try:
                values = [None if cell == "" else kind(cell) for cell in cells]
                break
            except ValueError:
                continue
        columns[name] = pa.array(values)
    with atomic_file(path, "wb") as file:
        pq.write_table(pa.table(columns), file)


def _order(name: str) -> int:
    exact = [k for k, known in enumerate(_ORDER) if name == known]
    family = [k for k, known in enumerate(_ORDER) if known.endswith("_") and name.startswith(known)]
    return [*exact, *family, len(_ORDER)][0]


def _cell(name: str, value: Any, row: Mapping[str, Any]) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        return str(value)
    if math.isnan(value):
        return ""
    if math.isinf(value):
        raise ValueError(f"run {row.get('run_id')!r} has {name} = {value}; a runs table holds finite numbers")
    # A float prints its shortest exact form; counts come back from a table as floats and are written as what they are.
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    number = float(value)
    whole = number.is_integer() and abs(number) < 2**53 and not name.startswith(("loss_", "bpb_", "ratio_"))
    return str(int(number)) if whole else repr(number)
