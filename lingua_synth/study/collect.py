"""The runs table of a study: one row per finished run, whoever trained it.

What goes in: run folders (a row each, from `result.json`), folders with run folders below them, Meta Lingua's dump
dirs, and tables of other origin with a map of their column names. Nothing gets lost on the way: a run that is not
finished, a row that cannot be right or was edited by hand, and a run that stands twice are named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingua_synth.files import read_json, what_is_there
from lingua_synth.study.board import QueuedRun, newest_checkpoint
from lingua_synth.study.status import last_records
from lingua_synth.train.folder import IDENTITY, METRICS, RESULT, VALIDATION_METRICS

TABLES = (".csv", ".parquet")
TEXTS = ("run_id", "mixture", "size", "config_sha256")
POSITIVE = ("n_non_embedding", "n_lingua", "n_total", "tokens", "flops")
AT_LEAST_0 = ("seed", "wall_s", "gpu_hours")
SHARES = ("ratio_", "tokens_", "training_bytes_", "unique_tokens_", "epochs_")
"""Of a source each; 0 for a run that does not use the source."""
AVERAGES = ("loss_macro", "loss_micro")


@dataclass
class Collected:
    """A runs table with what is not in it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per finished run, in the order given; all with the same columns for sources."""
    unfinished: dict[str, str] = field(default_factory=dict)
    """Run -> how far it is."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Run -> why its row cannot be right."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know of the rows: copies, averages of other kinds."""


def collect(
    inputs: Iterable[str | Path], *, columns: Mapping[str, str] | None = None, planned: Sequence[QueuedRun] = ()
) -> Collected:
    """Read every run of `inputs`: run folders, folders that hold some, dump dirs of Meta Lingua, CSV or parquet tables.

    `columns` maps our names to a table's. The folders of `planned` runs come first; their rows are held to the plan.
    Rows are checked: texts, positive counts and losses, ratios that sum to 1, losses equal to those of the run's own
    validation log. ValueError for two runs of one id whose rows differ, for runs evaluated on different domains (their
    averages do not compare), for a path where nothing is, and for tables as `scaling.load_runs` raises it.
    """
    found = Collected()
    origins: dict[str, tuple[str, dict[str, Any]]] = {}
    for run in planned:
        folder = Path(run.dump_dir)
        if not run.is_finished:
            found.unfinished[run.run_id] = _how_far(folder, run.tokens)
        else:
            _add_folder(found, origins, folder, run)
    for path in map(Path, inputs):
        if path.suffix in TABLES:
            _add_table(found, origins, path, columns)
        elif (path / RESULT).is_file():
            _add_folder(found, origins, path, None)
        elif (path / IDENTITY).is_file():
            found.unfinished[path.name] = _how_far(path, None)
        elif path.is_dir():
            _add_folders(found, origins, path)
        else:
            raise ValueError(f"no run folder and no table {path}; {what_is_there(path)}")
    _refuse_other_domains(found.rows)
    _note_copies(found)
    found.rows = _with_all_sources(found.rows)
    return found


def _add(found: Collected, origins: dict[str, tuple[str, dict[str, Any]]], row: dict[str, Any], origin: str) -> None:
    run_id = row["run_id"]
    if run_id in origins:
        there, other = origins[run_id]
        if other != row:
            different = [key for key in {**other, **row} if other.get(key) != row.get(key)]
            raise ValueError(
                f"run {run_id} is in {there} and in {origin} with different values of {', '.join(different[:4])}; "
                "collect one of them"
            )
        found.notes.append(f"run {run_id} is in {there} and in {origin}, equal; it is counted once")
        return
    origins[run_id] = (origin, row)
    found.rows.append(row)


def _add_folder(
    found: Collected, origins: dict[str, tuple[str, dict[str, Any]]], folder: Path, planned: QueuedRun | None
) -> None:
    name = planned.run_id if planned else folder.name
    try:
        row = read_json(folder / RESULT)
        if not isinstance(row, dict):
            raise ValueError(f"{RESULT} holds no row")
        _check_row(row)
        if planned is not None:
            _check_plan(row, planned)
        _check_validation(row, folder)
    except ValueError as error:
        found.left_out[name] = (
            f"{error}. Delete {folder / RESULT}, and launch gets the run's row anew from its last checkpoint"
        )
        return
    _add(found, origins, row, str(folder))


def _add_table(
    found: Collected,
    origins: dict[str, tuple[str, dict[str, Any]]],
    path: Path,
    columns: Mapping[str, str] | None,
) -> None:
    from lingua_synth.scaling import load_runs

    runs = load_runs(path, columns or None)
    found.notes += runs.notes
    for row in _rows(runs):
        _add(found, origins, row, str(path))


def _add_folders(found: Collected, origins: dict[str, tuple[str, dict[str, Any]]], root: Path) -> None:
    """Run folders below `root`, and `root` itself as a dump dir of Meta Lingua."""
    from lingua_synth.scaling.folders import read_run_folders, run_folders

    folders = run_folders(root)
    if not folders:
        raise ValueError(f"{root} holds no run folder, nor do the folders below it; {what_is_there(root / 'x')}")
    for folder in folders:
        if (folder / RESULT).is_file():
            _add_folder(found, origins, folder, None)
        elif (folder / IDENTITY).is_file():
            found.unfinished[folder.name] = _how_far(folder, None)
        else:
            try:
                runs = read_run_folders(folder)
            except ValueError as error:
                found.left_out[folder.name] = str(error)
                continue
            found.notes += [note for note in runs.notes if note not in found.notes]
            for row in _rows(runs):
                done = row.get("schedule_done", 1.0)
                if done < 1:
                    found.unfinished[row["run_id"]] = f"evaluated after {done:.0%} of its steps"
                else:
                    _add(found, origins, row, str(folder))


def _rows(runs: Any) -> list[dict[str, Any]]:
    """A table as rows, without the cells that are not known."""
    names = list(runs.columns)
    table = zip(*(runs.columns[name].tolist() for name in names), strict=True)
    return [
        {n: v for n, v in zip(names, row, strict=True) if not (isinstance(v, float) and math.isnan(v))} for row in table
    ]


def _how_far(folder: Path, tokens: int | None) -> str:
    if not (folder / IDENTITY).is_file():
        return "not begun"
    records = last_records(folder / METRICS)
    step = next((r["global_step"] for r in records if isinstance(r.get("global_step"), int)), 0)
    seen = next((r["optim/total_tokens"] for r in records if isinstance(r.get("optim/total_tokens"), int)), None)
    share = f", {seen / tokens:.0%} of its tokens" if seen and tokens else ""
    return f"at step {step:,}{share}, newest checkpoint of step {newest_checkpoint(folder):,}"


# --- what a row must be ---


def _check_row(row: Mapping[str, Any]) -> None:
    for key in TEXTS:
        if not isinstance(row.get(key), str) or not row[key]:
            raise ValueError(f"{key} is {row.get(key)!r}, not a text")
    for key in (*POSITIVE, *AT_LEAST_0):
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{key} is {value!r}, not a number")
        if value < 0 or (value == 0 and key in POSITIVE):
            raise ValueError(f"{key} is {value}, which no run has")
    losses = {key: value for key, value in row.items() if key.startswith(("loss_", "bpb_"))}
    for key, value in losses.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{key} is {value!r}, which no loss is")
    ratios = [value for key, value in row.items() if key.startswith("ratio_")]
    if ratios and (not all(isinstance(r, int | float) for r in ratios) or abs(sum(ratios) - 1) > 1e-6):
        raise ValueError(
            f"its ratios sum to {sum(ratios) if all(isinstance(r, int | float) for r in ratios) else ratios}"
        )


def _check_plan(row: Mapping[str, Any], planned: QueuedRun) -> None:
    asked = {"run_id": planned.run_id, "tokens": planned.tokens, "seed": planned.config["seed"]}
    asked |= {"mixture": planned.mixture} if planned.mixture else {}
    asked |= {"size": planned.size} if planned.size else {}
    tokenizer = planned.config["synth"].get("tokenizer")
    asked |= {"tokenizer": tokenizer} if tokenizer else {}
    different = [
        f"{key} is {row.get(key)!r}, planned {value!r}" for key, value in asked.items() if row.get(key) != value
    ]
    if different:
        raise ValueError(f"its row is of another run: {'; '.join(different)}")


def _check_validation(row: Mapping[str, Any], folder: Path) -> None:
    """The row's losses against those that the run logged when it was evaluated last."""
    for record in last_records(folder / VALIDATION_METRICS)[:1]:
        logged = {name: sums["nll_per_token"] for name, sums in record.items() if isinstance(sums, dict)}
        for name, loss in logged.items():
            if row.get(f"loss_{name}") != loss:
                raise ValueError(
                    f"loss_{name} is {row.get(f'loss_{name}')} and {VALIDATION_METRICS} says {loss}: edited by hand?"
                )


def _refuse_other_domains(rows: Sequence[Mapping[str, Any]]) -> None:
    sets: dict[tuple[str, ...], str] = {}
    for row in rows:
        domains = sorted(k for k in row if k.startswith("loss_") and k not in (*AVERAGES, "loss_train"))
        if domains:
            sets.setdefault(tuple(domains), row["run_id"])
    if len(sets) > 1:
        (first, run_a), (second, run_b) = list(sets.items())[:2]
        raise ValueError(
            f"runs {run_a} and {run_b} were evaluated on different domains ({', '.join(first)} against "
            f"{', '.join(second)}); collect them into separate tables"
        )


def _note_copies(found: Collected) -> None:
    """Runs of two names whose losses agree to the last digit: the same training, counted twice by a fit."""
    seen: dict[tuple[Any, ...], str] = {}
    for row in found.rows:
        domains = sorted((k, v) for k, v in row.items() if k.startswith("loss_") and k not in AVERAGES)
        if not domains:
            continue
        first = seen.setdefault((row.get("tokens"), *domains), row["run_id"])
        if first != row["run_id"]:
            found.notes.append(
                f"runs {first} and {row['run_id']} have the same losses to the last digit: one training?"
            )


def _with_all_sources(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sources a run does not use get ratio 0 and no tokens, so that every row has the same columns."""
    shares = list(dict.fromkeys(key for row in rows for key in row if key.startswith(SHARES)))
    filled = []
    for row in rows:
        head = {key: value for key, value in row.items() if key in ("run_id", "mixture")}
        middle = {key: row.get(key, 0) for key in shares}
        rest = {key: value for key, value in row.items() if key not in head and key not in middle}
        filled.append(head | middle | rest)
    return filled
