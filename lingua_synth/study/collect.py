"""The runs table of a study: one row per finished run, from the `result.json` of each run folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lingua_synth.files import read_json
from lingua_synth.train.folder import RESULT


def collect(folders: Iterable[str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows of the finished runs in the order given, names of the folders that hold no finished run).

    Sources a run does not use get ratio 0 and no tokens, so that every row has the same columns. ValueError for two
    runs of one id, and for runs evaluated on different domains: their average losses do not compare.
    """
    rows: list[dict[str, Any]] = []
    unfinished: list[str] = []
    seen: dict[str, str] = {}
    for folder in folders:
        path = Path(folder) / RESULT
        if not path.is_file():
            unfinished.append(Path(folder).name)
            continue
        row = read_json(path)
        if row["run_id"] in seen:
            raise ValueError(f"run {row['run_id']} is in {seen[row['run_id']]} and in {folder}; collect one of them")
        seen[row["run_id"]] = str(folder)
        rows.append(row)
    domain_sets = {tuple(sorted(key for key in row if key.startswith("loss_"))): row["run_id"] for row in rows}
    if len(domain_sets) > 1:
        (first, run_a), (second, run_b) = list(domain_sets.items())[:2]
        raise ValueError(
            f"runs {run_a} and {run_b} were evaluated on different domains ({', '.join(first)} against "
            f"{', '.join(second)}); "
            "collect them into separate tables"
        )
    prefixes = ("ratio_", "tokens_", "unique_tokens_", "epochs_")
    extra = list(dict.fromkeys(key for row in rows for key in row if key.startswith(prefixes)))
    filled = []
    for row in rows:
        head = {key: value for key, value in row.items() if key in ("run_id", "mixture")}
        middle = {key: row.get(key, 0) for key in extra}
        filled.append(
            head | middle | {key: value for key, value in row.items() if key not in head and key not in middle}
        )
    return filled, unfinished
