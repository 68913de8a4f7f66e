"""What synthetic text costs, by source: read off generation folders, or given by hand.

    cost per billion training tokens = cost per billion tokens written / keep rate x generator tokens per training token

All three move the answer alike. How far a measured cost may be off is estimated from the processes of a run (hours per
token) and from its shards (keep rate), by the jackknife; where there are fewer than three of either, and for a cost
that is given by hand, it is `rate_error`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.files import read_json
from lingua_synth.generate.cost import measured_rate, rate_error
from lingua_synth.generate.store import MANIFEST
from lingua_synth.scaling.kinds import Kind


@dataclass(frozen=True)
class Generator:
    """What the text of one source costs."""

    source: str
    per_billion_written: float
    """Cost of a billion tokens written, kept or not, in the unit of the answer."""
    keep_rate: float = 1.0
    """Share of the written tokens that are kept."""
    tokens_ratio: float = 1.0
    """The generator's tokens per token of training."""
    error: float = 0.1
    """Relative standard error of all of it beside the cost of training: 0.1 is 10 %."""
    origin: str = "given"

    def __post_init__(self) -> None:
        """ValueError for numbers that cannot be."""
        if not (math.isfinite(self.per_billion_written) and self.per_billion_written >= 0):
            raise ValueError(
                f"{self.source}: a billion written tokens cost 0 or more, and a finite number; "
                f"got {self.per_billion_written}"
            )
        if not 0 < self.keep_rate <= 1:
            raise ValueError(f"{self.source}: keep_rate is a share above 0 and at most 1; got {self.keep_rate}")
        if not (math.isfinite(self.tokens_ratio) and self.tokens_ratio > 0):
            raise ValueError(f"{self.source}: tokens_ratio must be above 0; got {self.tokens_ratio}")
        if not (math.isfinite(self.error) and self.error >= 0):
            raise ValueError(f"{self.source}: rate_error is a relative error of 0 or more; got {self.error}")

    @property
    def per_billion(self) -> float:
        """Cost of a billion training tokens of this text."""
        return self.per_billion_written / self.keep_rate * self.tokens_ratio


def by_source(given: Any, kinds: Mapping[str, Kind], key: str) -> dict[str, Any]:
    """What `key=VALUE` (every source) or `key.NAME=VALUE` says, by source; NAME is a source, or a kind of text.

    ValueError for a name that is neither, with those that there are.
    """
    if given is None or given == "":
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(kinds, given)
    given = dict(_flat(given))
    found: dict[str, Any] = {}
    for name, value in given.items():
        mine = [source for source, kind in kinds.items() if name in (source, kind.kind)]
        if not mine:
            raise ValueError(f"{key}.{name}: no synthetic source or kind {name!r}; there are {', '.join(kinds)}")
        found |= dict.fromkeys(mine, value)
    # A source by its own name wins over its kind.
    return found | {name: value for name, value in given.items() if name in kinds}


def _flat(given: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The pairs of a mapping; a name with dots in it (llama3.2) comes as mappings within mappings."""
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def read_generators(
    kinds: Mapping[str, Kind],
    *,
    folders: Any = None,
    shards: Any = None,
    gpu_hours_per_billion: Any = None,
    price_per_billion: Any = None,
    keep_rate: Any = None,
    tokens_ratio: Any = None,
    gpu_hour_price: float | None = None,
    generation_gpu_hour_price: float | None = None,
    rate_error_by_hand: float | None = None,
) -> dict[str, Generator]:
    """The generators that are known, by source. Each key is one value for all sources, or values by source or kind.

    `folders`: generation runs. `shards`: token shards made of their kept texts, which measure the tokens ratio.
    `gpu_hours_per_billion`: per billion written tokens, where there is no folder. `price_per_billion`: the same in
    money, for a service. With `gpu_hour_price` costs are money, else GPU-hours. ValueError for what contradicts itself.
    """
    hours = by_source(gpu_hours_per_billion, kinds, "gpu_hours_per_billion")
    prices = by_source(price_per_billion, kinds, "price_per_billion")
    kept = by_source(keep_rate, kinds, "keep_rate")
    ratios = by_source(tokens_ratio, kinds, "tokens_ratio")
    tokenized = by_source(shards, kinds, "shards")
    runs = _folders(folders, kinds)
    for name, price in (("gpu_hour_price", gpu_hour_price), ("generation_gpu_hour_price", generation_gpu_hour_price)):
        if price is not None and not (math.isfinite(price) and price > 0):
            raise ValueError(f"{name} is the price of a GPU-hour, above 0; got {price}")
    if gpu_hour_price is None and (prices or generation_gpu_hour_price is not None):
        raise ValueError("a price of text beside GPU-hours of training needs gpu_hour_price=, to make both money")
    hour = generation_gpu_hour_price or gpu_hour_price or 1.0
    found = {}
    for source in kinds:
        known = [source in one for one in (runs, hours, prices)]
        if sum(known) > 1:
            raise ValueError(
                f"{source} has several rates; give one of generator= (a folder), gpu_hours_per_billion= and "
                "price_per_billion="
            )
        if not any(known):
            continue
        error = 0.1 if rate_error_by_hand is None else rate_error_by_hand
        if source in runs:
            if source in kept:
                raise ValueError(f"{source}: the keep rate is measured in {runs[source]}; leave keep_rate out")
            rate = measured_rate(runs[source])
            measured = rate_error(runs[source])
            if rate_error_by_hand is None and measured is not None:
                error = measured
            written, keep, origin = rate.gpu_hours_per_billion * hour, rate.keep_rate, rate.source
        else:
            key, given = ("gpu_hours_per_billion", hours) if source in hours else ("price_per_billion", prices)
            written = _number(given[source], key, source) * (hour if source in hours else 1.0)
            keep, origin = _number(kept.get(source, 1.0), "keep_rate", source), "given"
        ratio = _number(ratios.get(source, 1.0), "tokens_ratio", source)
        if source in tokenized:
            if source in ratios:
                raise ValueError(f"{source}: tokens_ratio is measured in {tokenized[source]}; leave it out")
            if source not in runs:
                raise ValueError(f"{source}: shards= beside the generation run that they were made of (generator=)")
            ratio = _measured_ratio(runs[source], tokenized[source])
        found[source] = Generator(source, written, keep, ratio, error, origin)
    return found


def _number(value: Any, key: str, source: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} of {source} is a number; got {value!r}") from None


def _folders(given: Any, kinds: Mapping[str, Kind]) -> dict[str, str]:
    """Generation folder by source; one folder for a table with several sources goes to those of its recipe's name."""
    if given is None or given == "" or isinstance(given, Mapping) or len(kinds) == 1:
        return {source: str(folder) for source, folder in by_source(given, kinds, "generator").items()}
    manifest = Path(str(given)) / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{given} has no {MANIFEST}: no finished generation run")
    recipe = str(read_json(manifest)["recipe"]["name"])
    mine = [source for source, kind in kinds.items() if recipe in (source, kind.kind, kind.role)]
    if len(mine) != 1:
        raise ValueError(
            f"{given} was made by the recipe {recipe!r}, and the table has {', '.join(kinds)}: say whose it is, "
            f"generator.SOURCE={given}"
        )
    return {mine[0]: str(given)}


def _measured_ratio(run: str, shards: Any) -> float:
    """The generator's tokens per training token: kept tokens of a generation run over those of its token shards."""
    from lingua_synth.tokens import read_manifest

    tokens = float(read_manifest(Path(str(shards)))["tokens"])
    if not tokens:
        raise ValueError(f"{shards} holds no tokens, so there is no tokens_ratio")
    return float(read_json(Path(run) / MANIFEST)["output_tokens"]) / tokens
