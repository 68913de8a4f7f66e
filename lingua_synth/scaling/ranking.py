"""Several mixtures in order, with intervals that hold for all of them at once, and with ties.

Ten mixtures have 45 differences; at 95 % each, two of them come out "different" by chance. Here one factor on the
standard errors is taken for all: the share `level` of the resamples has no greatest |deviation| / standard error (over
mixtures, or over pairs) beyond it, the max-t method (Westfall and Young 1993). It knows that differences of paired
fits move together, which a division of the error by their number does not. The factor is widened by t over normal
quantile for the degrees of freedom of the fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.scaling.records import record


@dataclass(frozen=True)
class PairDifference:
    """One mixture's value less another's."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    """Interval that holds for all pairs at once."""

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False)
class Ranking:
    """Mixtures by a quantity, lowest first."""

    of: str
    """What is compared: a parameter, or the loss at a point."""
    level: float
    """The chance that no interval of the mixtures errs; the same for the pairs."""
    labels: tuple[str, ...]
    """Mixtures, lowest value first."""
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    """Simultaneous intervals of `values`."""
    places: tuple[tuple[int, int], ...]
    """Best and worst place of each mixture that the pairs allow, from 1."""
    groups: tuple[tuple[str, ...], ...]
    """Ties: largest sets of mixtures of which no pair is told apart; a mixture may stand in several."""
    pairs: tuple[PairDifference, ...]
    notes: tuple[str, ...] = ()

    def pair(self, first: str, second: str) -> PairDifference:
        """The difference of two mixtures; ValueError lists those there are."""
        for one in self.pairs:
            if (one.first, one.second) == (first, second):
                return one
            if (one.first, one.second) == (second, first):
                return PairDifference(first, second, -one.difference, -one.high, -one.low)
        raise ValueError(f"pairs of different mixtures among {', '.join(self.labels)}; got {first!r} and {second!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(
            {
                "of": self.of,
                "level": self.level,
                "mixtures": [
                    {"mixture": label, "value": value, "interval": [low, high], "places": list(places)}
                    for label, value, low, high, places in zip(
                        self.labels,
                        self.values.tolist(),
                        self.low.tolist(),
                        self.high.tolist(),
                        self.places,
                        strict=True,
                    )
                ],
                "ties": [list(group) for group in self.groups],
                "pairs": [
                    {
                        "first": one.first,
                        "second": one.second,
                        "difference": one.difference,
                        "interval": [one.low, one.high],
                        "told_apart": one.told_apart,
                    }
                    for one in self.pairs
                ],
                "notes": list(self.notes),
            }
        )

    def __str__(self) -> str:
        width = max(len(label) for label in [*self.labels, "mixture"])
        lines = [
            f"{self.of}, lowest first; intervals hold for all at once at {100 * self.level:g} %; "
            "mixtures with a letter in common are tied",
            f"  {'place':>7} {'mixture':<{width}} {self.of if len(self.of) < 12 else 'value':>11}   interval",
        ]
        for k, label in enumerate(self.labels):
            best, worst = self.places[k]
            place = f"{best}" if best == worst else f"{best}-{worst}"
            letters = "".join(_letter(j) for j, group in enumerate(self.groups) if label in group)
            interval = f"[{self.low[k]:.5g}, {self.high[k]:.5g}]" if np.isfinite(self.low[k]) else "not determined"
            lines.append(f"  {place:>7} {label:<{width}} {self.values[k]:>11.5g}   {interval}  {letters}")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"({number + 1})"


def rank_values(
    of: str,
    points: Mapping[str, float],
    values: Mapping[str, np.ndarray],
    freedom: int,
    level: float,
    notes: Sequence[str] = (),
    unknown: Sequence[str] = (),
) -> Ranking:
    """Order `points` and put intervals around them from resampled `values` `[n]` per mixture, paired by row.

    `freedom`: degrees of freedom of Student's t. `unknown`: mixtures whose value the runs do not determine; their
    intervals hold every number, so that they are tied with all. ValueError for a level outside (0, 1) and fewer than
    two mixtures.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, e.g. 0.95; got {level}")
    if len(points) < 2:
        raise ValueError(f"an order takes two mixtures; got {list(points)}")
    labels = tuple(sorted(points, key=lambda label: (points[label], label)))
    centre = np.array([points[label] for label in labels])
    table = np.stack([values[label] for label in labels], axis=-1)
    open_ = np.array([label in unknown for label in labels])
    half = np.full(len(labels), np.inf)
    if not open_.all():
        half[~open_] = _half_widths(table[:, ~open_], freedom, level)
    couples = list(itertools.combinations(range(len(labels)), 2))
    first, second = np.array(couples).T
    known = ~(open_[first] | open_[second])
    wide = np.full(len(couples), np.inf)
    if known.any():
        wide[known] = _half_widths(table[:, first[known]] - table[:, second[known]], freedom, level)
    gaps = centre[first] - centre[second]
    pairs = tuple(
        PairDifference(labels[a], labels[b], float(gap), float(gap - reach), float(gap + reach))
        for (a, b), gap, reach in zip(couples, gaps, wide, strict=True)
    )
    apart = np.zeros((len(labels), len(labels)), dtype=bool)
    for (a, b), one in zip(couples, pairs, strict=True):
        apart[a, b] = apart[b, a] = one.told_apart
    above = np.tril(apart).sum(axis=1)  # told to be lower
    below = np.triu(apart).sum(axis=1)
    places = tuple((int(1 + a), int(len(labels) - b)) for a, b in zip(above, below, strict=True))
    groups = tuple(tuple(labels[k] for k in group) for group in _largest_sets(~apart))
    return Ranking(of, level, labels, centre, centre - half, centre + half, places, groups, pairs, tuple(notes))


def _half_widths(table: np.ndarray, freedom: int, level: float) -> np.ndarray:
    """Half widths `[k]` that hold for all columns of `table` `[n, k]` at once, around each fit's own value."""
    from scipy.special import ndtri, stdtrit

    deviation = table - table.mean(axis=0)
    error = deviation.std(axis=0, ddof=1)
    greatest = np.abs(deviation / np.where(error > 0, error, 1.0)).max(axis=1)
    normal, t = float(ndtri((1 + level) / 2)), float(stdtrit(max(freedom, 1), (1 + level) / 2))
    return max(float(np.quantile(greatest, level)), normal) * t / normal * error


def _largest_sets(tied: np.ndarray) -> list[list[int]]:
    """Maximal sets of which every pair is tied, by their first members (Bron and Kerbosch 1973, with the pivot of
    Tomita et al. 2006: without it thirty mixtures that are all tied take a billion steps)."""
    near = [{j for j in range(len(tied)) if j != k and tied[k, j]} for k in range(len(tied))]
    found: list[list[int]] = []

    def grow(chosen: list[int], open_: set[int], closed: set[int]) -> None:
        if not open_ and not closed:
            found.append(sorted(chosen))
            return
        # A maximal set without this one holds another that is not tied with it: only those need to be begun with.
        pivot = max(sorted(open_ | closed), key=lambda k: len(open_ & near[k]))
        for k in sorted(open_ - near[pivot]):
            grow([*chosen, k], open_ & near[k], closed & near[k])
            open_ = open_ - {k}
            closed = closed | {k}

    grow([], set(range(len(tied))), set())
    return sorted(found)
