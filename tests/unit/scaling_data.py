"""The published points of Hoffmann et al., digitised by Besiroglu et al. 2024; not part of this repository."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest


def chinchilla(dropped):
    """(N, D, loss) of the digitised runs, the five highest losses in or out; skips when there is no file."""
    folder = Path(os.environ.get("LINGUA_SYNTH_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
    path = folder / "chinchilla_epoch.csv"
    if not path.is_file():
        pytest.skip(f"no {path}; set LINGUA_SYNTH_DATA to the folder that holds chinchilla_epoch.csv")
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    kept = [row for row in table if dropped or row["epoch_dropped_top5"] == "0"]
    return tuple(np.array([float(row[name]) for row in kept]) for name in ("params", "tokens", "loss"))
