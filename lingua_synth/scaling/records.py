"""Numbers for JSON: what JSON cannot write becomes null, and the reason stands beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def record(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as plain Python for `files.write_json`: floats at full precision, arrays as lists.

    An infinite or undefined number becomes None, and the key `null_because` names each such place and what stood there.
    """
    reasons: dict[str, str] = {}
    plain = {key: _plain(value, key, reasons) for key, value in values.items()}
    return plain | ({"null_because": reasons} if reasons else {})


def _plain(value: Any, place: str, reasons: dict[str, str]) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{place}.{key}", reasons) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{place}[{k}]", reasons) for k, inner in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        reasons[place] = "not defined" if math.isnan(value) else "infinite" if value > 0 else "minus infinity"
        return None
    return value
