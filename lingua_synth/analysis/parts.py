"""Steps of an analysis that take long, kept under the fingerprint of what they were computed from.

So the same command goes on where it was killed, and another corpus more does not begin anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.files import read_json, sha256_json, write_json

# Of a change that alters results: what was kept is computed again.
PARTS_VERSION = 1

Rows = list[dict[str, Any]]

# What of the settings a step's result depends on, beside what it is computed from.
_SETTINGS_OF = {
    "zipf": ("zipf_first_rank", "zipf_last_rank", "zipf_simulations", "seed"),
    "distances": ("smoothing", "num_samples", "seed"),
    "repetition": ("ngram_sizes",),
    "copies": (),
    "overlap": ("overlap_tokens", "ngram_max_tokens"),
}


class Parts:
    """Rows of steps in a folder, a file each."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._settings = settings

    def rows(self, step: str, identity: Sequence[Any], compute: Callable[..., Rows], *arguments: Any) -> Rows:
        """The rows of a step: those kept, where they were computed from the same before; else `compute(*arguments)`.

        `identity` is what they are computed from beside the settings, e.g. fingerprints of corpora.
        """
        relevant = {key: self._settings[key] for key in _SETTINGS_OF[step]}
        named = [value for value in arguments if isinstance(value, str | int)]
        key = sha256_json([PARTS_VERSION, step, list(identity), relevant, named])[:24]
        path = self._folder / f"{step}-{key}.json"
        if not path.exists():
            write_json(path, _without_nan(compute(*arguments)))
        rows: Rows = _with_nan(read_json(path))
        return rows


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
