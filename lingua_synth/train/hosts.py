"""Whose loop trains: this library's, or Meta Lingua's own with our data, model sizes and evaluation."""

from __future__ import annotations

import importlib
from typing import Any

from lingua_synth.train.args import TrainArgs

# Modules with a function `train(args, *, progress) -> row`. Named, not imported: the second is a room above this one.
HOSTS = {"native": "lingua_synth.train.loop", "lingua": "lingua_synth.hosts.lingua"}


def train(args: TrainArgs, *, progress: bool = True) -> dict[str, Any]:
    """Train one run in the loop that `args.host` names and return its row of the runs table.

    A finished run returns its row at once. Raises what `lingua_synth.train.loop.train` does; ValueError for a host that
    is not known.
    """
    if args.host not in HOSTS:
        raise ValueError(f"host is {' or '.join(HOSTS)}; got {args.host!r}")
    row: dict[str, Any] = importlib.import_module(HOSTS[args.host]).train(args, progress=progress)
    return row
