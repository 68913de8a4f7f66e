"""Numbers and names as a reader wants to see them.

Rounding happens here and nowhere else: every result keeps its full precision until it is printed or drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"

N_WORDS = {
    "non_embedding": "non-embedding parameters",
    "lingua": "parameters without one vocabulary matrix",
    "total": "parameters, all counted",
}
"""What each definition of N counts, in words for axes and tables."""


def count(value: float) -> str:
    """A whole number with thousands separators: 1,234,567."""
    return f"{round(value):,}" if math.isfinite(value) else NOTHING


def short_count(value: float) -> str:
    """A count for axes and prose, to three significant digits: 2M, 1.5M, 858M, 200B, 512, 0.25."""
    if not math.isfinite(value):
        return NOTHING
    # 999,999 is "1M", not "1000k": the unit is chosen after rounding.
    rounded = float(f"{value:.3g}")
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(rounded) >= size:
            return f"{_plain(rounded / size)}{unit}"
    return _plain(rounded)


def percent(share: float) -> str:
    """A share as a percentage without needless digits: 33 %, 0.5 %."""
    return f"{share * 100:.3g}{THIN}%" if math.isfinite(share) else NOTHING


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` decimals and a real minus sign; an en dash for NaN, a sign of infinity for inf."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) != 0 else text


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign always shown: +0.125, −0.004; a difference that rounds to nothing is ±0.000."""
    if not math.isfinite(value):
        return NOTHING
    if float(f"{abs(value):.{digits}f}") == 0:
        return f"±{0:.{digits}f}"
    return f"+{value:.{digits}f}" if value > 0 else number(value, digits)


def decimals_for(low: float, high: float) -> int:
    """Decimals that show two digits of the interval's half-width, between 0 and 6; 3 when the interval is a point."""
    half_width = abs(high - low) / 2
    if not math.isfinite(half_width) or half_width == 0:
        return 3
    exponent = int(f"{half_width:.5e}".rpartition("e")[2])  # of the rounded number: 0.99999999 is 1.0
    return min(6, max(0, 1 - exponent))


def with_interval(value: float, low: float, high: float) -> str:
    """An estimate with its interval, to the digits the interval deserves: 2.05 (1.98 to 2.11).

    Without an interval (NaN limits) the estimate stands alone and says so. Coefficients of a power law (A, B) can be
    large: from 100,000 on the three numbers share one power of ten.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{value:.4g} (no interval)".replace("-", MINUS)
    largest = max(abs(x) for x in (value, low, high))
    if largest >= 1e5:
        exponent = math.floor(math.log10(largest))
        scale = 10.0**exponent
        inner = with_interval(value / scale, low / scale, high / scale)
        return f"{inner} ×{THIN}10{_superscript(exponent)}"
    digits = decimals_for(low, high)
    return f"{number(value, digits)} ({number(low, digits)} to {number(high, digits)})"


def joined(words: Sequence[str] | Iterable[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    words = list(words)
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def quoted(name: str) -> str:
    """A name from the data, set off from our words."""
    return f"“{name}”"


def plural(num: int, one: str, many: str | None = None) -> str:
    """'1 run', '3 runs', '0 runs'."""
    return f"{num:,} {one if num == 1 else many or one + 's'}"


def shortened(text: str, most: int = 28) -> str:
    """`text`, or its beginning with an ellipsis; full names stand in tables and CSV files."""
    return text if len(text) <= most else text[: most - 1] + "…"


def target_words(target: str) -> tuple[str, str]:
    """(what a column of the runs table measures, its unit), for axes and sentences."""
    kind, _, scope = target.partition("_")
    unit = {"loss": "nats per token", "bpb": "bits per byte"}.get(kind, "")
    scopes = {"macro": "mean over domains", "micro": "all tokens pooled"}
    if not unit:
        return target, "as in the runs table"
    return f"held-out loss, {scopes.get(scope, scope)}" if scope else "held-out loss", unit


def _plain(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
