"""Checks on what a model wrote: pure functions that return a reason or None.

    text, FilterContext(document, generation, template, prompt)  ──judge──>  Verdict(dropped_by, reasons, text, ...)

A recipe lists filters by name. One that fires marks the record (`annotate`: the reason goes to `meta.synth.flags`),
sends it to the filtered file with the reason (`drop`), or cuts out what it found (`strip`: what was cut goes to
`meta.synth.stripped`, so that the whole output can be had again). Filters that need all outputs of a run, such as
near-duplicates, look at the finished folder: `folder_filters`.
"""

from lingua_synth.generate.filters.context import FilterContext
from lingua_synth.generate.filters.judging import (
    ACTIONS,
    FILTERS,
    Filter,
    FilterArgs,
    Verdict,
    build_filter,
    judge,
    require_filters,
)

__all__ = [
    "ACTIONS",
    "FILTERS",
    "Filter",
    "FilterArgs",
    "FilterContext",
    "Verdict",
    "build_filter",
    "judge",
    "require_filters",
]
