"""Named sizes, and a rule for the sizes between them.

The paper's are its Table 1 (dim/layers/heads, head dimension 64), labelled by the count with one vocabulary matrix;
Llama's own are the published ones; the nano ladder is ours, for CPUs, named after its non-embedding counts (head
dimension about 32; from 27k to 222k it keeps one depth and doubles N at each step).

`preset("350M")` and `preset("nano-150k")` give sizes between: widths in small steps, each with the depth that the
tabled sizes suggest, and the one nearest in ratio to the count that was asked.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Sequence

from lingua_synth.model.args import ModelArgs
from lingua_synth.model.counts import count_parameters, in_words

LLAMA3_VOCAB_SIZE = 128_256


def _paper(dim: int, n_layers: int, n_heads: int) -> ModelArgs:
    return ModelArgs(dim=dim, n_layers=n_layers, n_heads=n_heads, vocab_size=LLAMA3_VOCAB_SIZE)


def _nano(dim: int, n_layers: int, n_heads: int) -> ModelArgs:
    # multiple_of 32 keeps the feed-forward width near 8/3 dim at these widths; Lingua's 256 would make it 8 dim.
    return ModelArgs(dim=dim, n_layers=n_layers, n_heads=n_heads, multiple_of=32)


def _llama(
    dim: int, n_layers: int, n_heads: int, ffn_dim_multiplier: float, multiple_of: int, *, stretch: float = 1.0
) -> ModelArgs:
    """Grouped queries over 8 key/value heads, rope_theta 500,000: all of Llama 3."""
    return ModelArgs(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        ffn_dim_multiplier=ffn_dim_multiplier,
        multiple_of=multiple_of,
        rope_theta=500_000.0,
        rope_scaling_factor=stretch,
        vocab_size=LLAMA3_VOCAB_SIZE,
    )


def _tied(args: ModelArgs) -> ModelArgs:
    return dataclasses.replace(args, weight_tying=True)


PRESETS: dict[str, ModelArgs] = {
    "nano-27k": _nano(32, 2, 1),
    "nano-56k": _nano(48, 2, 2),
    "nano-107k": _nano(64, 2, 2),
    "nano-222k": _nano(96, 2, 3),
    "nano-332k": _nano(96, 3, 3),
    "nano-804k": _nano(128, 4, 4),
    "100M": _paper(576, 7, 9),
    "200M": _paper(832, 10, 13),
    "500M": _paper(1280, 16, 20),
    "1B": _paper(1792, 22, 28),
    "2B": _paper(2240, 28, 35),
    "3B": _paper(2624, 32, 41),
    # Shapes: github.com/meta-llama/llama-models, models/sku_list.py. Stretched frequencies: config.json of
    # huggingface.co/meta-llama/Llama-3.1-8B (factor 8) and Llama-3.2-1B (factor 32).
    "llama3.2-1B": _tied(_llama(2048, 16, 32, 1.5, 256, stretch=32.0)),
    "llama3.2-3B": _tied(_llama(3072, 28, 24, 1.0, 256, stretch=32.0)),
    "llama3-8B": _llama(4096, 32, 32, 1.3, 1024),
    "llama3-70B": _llama(8192, 80, 64, 1.3, 4096),
    "llama3.1-8B": _llama(4096, 32, 32, 1.3, 1024, stretch=8.0),
    "llama3.1-70B": _llama(8192, 80, 64, 1.3, 4096, stretch=8.0),
    "llama3.1-405B": _llama(16384, 126, 128, 1.2, 4096, stretch=8.0),
}
"""Sizes by name. The paper's and Llama's carry the Llama-3 vocabulary; nano sizes take the tokenizer's."""

_NUMBER = re.compile(r"(?P<nano>nano-)?(?P<number>\d+(\.\d+)?)(?P<unit>[kMB])")
_UNITS = {"k": 10**3, "M": 10**6, "B": 10**9}


def preset(name: str) -> ModelArgs:
    """A copy of the preset `name`, or of a size between, to be changed freely.

    "350M", "1.5B": a model in the paper's proportions (head dimension 64, Lingua's feed-forward rule, vocabulary of
    Llama 3) whose count with one vocabulary matrix, `count_parameters(args).lingua`, is the nearest in ratio that the
    rule reaches: within 10 % from 45M, 8 % from 100M, 4 % from 1B. "nano-150k": likewise by the non-embedding count,
    within 23 % (a third layer is half of a model with two).

    A larger number never gives fewer layers or a smaller width, except that a tabled name is the tabled size (the
    paper's 1B counts 1.09B). ValueError names what there is.
    """
    if name in PRESETS:
        return dataclasses.replace(PRESETS[name])
    match = _NUMBER.fullmatch(name)
    if match is None or (match["nano"] is None and match["unit"] == "k"):
        raise ValueError(
            f"no preset {name!r}; there are: {', '.join(PRESETS)}, and sizes between, as 350M, 1.5B or nano-150k"
        )
    count = round(float(match["number"]) * _UNITS[match["unit"]])
    family = match["nano"] or ""
    for tabled in PRESETS:
        same = _NUMBER.fullmatch(tabled)
        if same and (same["nano"] or "") == family and float(same["number"]) * _UNITS[same["unit"]] == count:
            return dataclasses.replace(PRESETS[tabled])
    return _nearest(name, count, nano=bool(family))


def ladder(smallest: str, largest: str, n: int) -> list[str]:
    """`n` names for `preset`, evenly spaced in log N from `smallest` to `largest`, both named as in "100M" or
    "nano-27k".

    ValueError if the two are not of one family, not in order, or too close for `n` different sizes.
    """
    ends = [_NUMBER.fullmatch(name) for name in (smallest, largest)]
    if ends[0] is None or ends[1] is None or ends[0]["nano"] != ends[1]["nano"]:
        raise ValueError(
            f"a ladder goes from one size to a larger one of its family, as 100M to 3B or nano-27k to nano-804k; got "
            f"{smallest!r} to {largest!r}"
        )
    low, high = (float(end["number"]) * _UNITS[end["unit"]] for end in ends if end)
    if n < 2 or low >= high:
        raise ValueError(f"a ladder has at least 2 sizes, the first below the last; got {n}, {smallest} to {largest}")
    family = ends[0]["nano"] or ""
    between = [family + in_words(round(low * (high / low) ** (i / (n - 1)))) for i in range(1, n - 1)]
    names = [smallest, *between, largest]
    shapes = [(args.dim, args.n_layers) for args in map(preset, names)]
    if len(set(shapes)) < n:
        raise ValueError(f"{smallest} to {largest} has no {n} different sizes; ask for fewer, or for a wider range")
    return names


def _nearest(name: str, count: int, *, nano: bool) -> ModelArgs:
    counts, sizes = _nano_sizes() if nano else _paper_sizes()
    prefix = "nano-" if nano else ""
    if not counts[0] / 1.1 <= count <= counts[-1] * 1.1:
        raise ValueError(
            f"no preset {name!r}; there are: {', '.join(PRESETS)}, and between them sizes from "
            f"{prefix}{in_words(counts[0])} to {prefix}{in_words(counts[-1])}"
        )
    after = min(max(bisect.bisect_left(counts, count), 1), len(counts) - 1)
    at = after if counts[after] / count < count / counts[after - 1] else after - 1
    return dataclasses.replace(sizes[at])


@functools.cache
def _paper_sizes() -> tuple[list[int], list[ModelArgs]]:
    """Sizes in the paper's proportions and their counts, both rising: one more layer, or 64 wider."""
    tabled = [(args.dim, args.n_layers) for name, args in PRESETS.items() if name[0].isdigit()]
    sizes = [_paper(dim, depth, dim // 64) for dim, depth in _chain(tabled, range(320, 16_385, 64))]
    return [count_parameters(args).lingua for args in sizes], sizes


@functools.cache
def _nano_sizes() -> tuple[list[int], list[ModelArgs]]:
    tabled = [(args.dim, args.n_layers) for name, args in PRESETS.items() if name.startswith("nano")]
    dims = [dim for dim in range(32, 385, 4) if 24 <= dim / _nano_heads(dim) <= 48]
    sizes = [_nano(dim, depth, _nano_heads(dim)) for dim, depth in _chain(tabled, dims)]
    counts = [count_parameters(dataclasses.replace(args, vocab_size=1)).non_embedding for args in sizes]
    rising = [i for i in range(len(sizes)) if i == 0 or counts[i] > counts[i - 1]]
    return [counts[i] for i in rising], [sizes[i] for i in rising]


def _nano_heads(dim: int) -> int:
    """As many heads as bring the head dimension, even, nearest to 32."""
    fitting = [heads for heads in range(1, dim // 2 + 1) if dim % (2 * heads) == 0]
    return min(fitting, key=lambda heads: abs(math.log(dim / heads / 32)))


def _chain(tabled: Sequence[tuple[int, int]], dims: Sequence[int]) -> list[tuple[int, int]]:
    """(dim, layers), neither ever falling: at each width, from the depth of the width before to its own.

    The depth of a width is interpolated between the tabled sizes, and extrapolated from the outer two, on logarithms of
    both; at a tabled width it is the tabled one.
    """
    points = sorted({dim: depth for dim, depth in tabled}.items())

    def depth_of(dim: int) -> int:
        i = min(max(bisect.bisect_right([p for p, _ in points], dim) - 1, 0), len(points) - 2)
        (x0, y0), (x1, y1) = points[i], points[i + 1]
        return max(1, round(y0 * (y1 / y0) ** (math.log(dim / x0) / math.log(x1 / x0))))

    chain = [(dims[0], depth_of(dims[0]))]
    for before, dim in itertools.pairwise(dims):
        chain += [(dim, depth) for depth in range(depth_of(before), depth_of(dim) + 1)]
    return chain
