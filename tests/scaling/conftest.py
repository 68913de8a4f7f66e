"""Public tables of training runs for the tests of this folder; they are no part of the project.

They are looked for in the folder that `LINGUA_SYNTH_DATA` names, else in `../shared/data` beside the checkout. A test
that asks for a table which is not there is skipped, and says so.

Tests of this folder that are marked `slow` (coverage over a thousand simulated studies, every held-out set) run only
when they are asked for: `pytest tests/scaling -m slow`.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

DATA = Path(os.environ.get("LINGUA_SYNTH_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def read_columns(path):
    """A CSV file as {column: array}: float64 where every cell that is not empty is a number (empty: NaN), else text."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file, strict=True))
    assert all(len(row) == len(header) for row in rows), f"{path}: a row of another length than the header"
    return {name: _column([row[k] for row in rows]) for k, name in enumerate(header)}


def _column(cells):
    try:
        column = np.array([float(cell) if cell else np.nan for cell in cells])
    except ValueError:
        column = np.array(cells, dtype=np.str_)
    column.flags.writeable = False
    return column


def pytest_collection_modifyitems(config, items):
    """Skip the slow tests of this folder unless -m names `slow`."""
    if "slow" in config.getoption("-m", default=""):
        return
    folder = Path(__file__).parent
    for item in items:
        if folder in item.path.parents and "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="minutes of simulation; pytest tests/scaling -m slow"))


@pytest.fixture(scope="session")
def shared_path():
    """A function: name of a table (`chinchilla_epoch`) -> its path; skips the test when it is not there."""

    def path(name):
        file = DATA / f"{name}.csv"
        if not file.is_file():
            pytest.skip(f"{name}.csv is not here; LINGUA_SYNTH_DATA names the folder with the public tables")
        return file

    return path


@pytest.fixture(scope="session")
def shared_table(shared_path):
    """A function: name of a table -> {column: read-only array}, read once; skips the test when it is not there."""
    tables = {}

    def table(name):
        if name not in tables:
            tables[name] = read_columns(shared_path(name))
        return dict(tables[name])

    return table
