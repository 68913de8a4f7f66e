"""Which kind of text a synthetic source is, and which model wrote it: read off its name, or told.

A runs table has one `ratio_<source>` column a source. A study that compares generators has sources named
`<kind>-<generator>` ("hq-llama3-8b"), as its plan names them. What the paper says of rephrased text and of textbooks
can be asked of a table only when it is known which of its sources is which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lingua_synth.scaling.natural import natural_source
from lingua_synth.scaling.runs import Runs

ROLES = {
    "hq": "rephrased as clear prose",
    "qa": "rephrased as questions and answers",
    "textbook": "textbooks",
    "other": "synthetic text of no kind that the paper names",
}
"""What a source may be, in words."""
REPHRASED = ("hq", "qa")

# In this order: "rephrased-qa" is questions and answers.
_ROLE_WORDS = (
    ("textbook", r"txbk|text[-_ ]?books?|\bbooks?\b|tutorial|chapter"),
    ("qa", r"(^|[-_ ])qa($|[-_ ])|question|faq"),
    ("hq", r"(^|[-_ ])hq($|[-_ ])|rephras|paraphras|wrap|wiki"),
)
_SIZE = re.compile(r"(?<![0-9.x])(\d+(?:\.\d+)?)[bB](?![a-zA-Z0-9])")
_WITH_GENERATOR = re.compile(r"(?P<kind>.+?)-(?P<generator>.*(?<![0-9.x])\d+(?:\.\d+)?[bB](?![a-zA-Z0-9]).*)")


@dataclass(frozen=True)
class Kind:
    """One synthetic source."""

    source: str
    kind: str
    """Its name without the generator's."""
    role: str
    """hq, qa, textbook or other."""
    generator: str | None
    generator_size: float | None
    """Parameters of the generator, from its name ("8b"); None when the name says none."""


def kinds_of(
    runs: Runs,
    base: str | None,
    roles: Mapping[str, str] | None = None,
    generators: Mapping[str, str] | None = None,
) -> dict[str, Kind]:
    """Every source of the table but the natural one.

    `roles`: source or kind -> hq, qa, textbook or other, where names do not say it. `generators`: source -> the model
    that wrote it, where sources are not named `<kind>-<generator>`. ValueError for a source that is not in the table
    and a role that is none.
    """
    natural = natural_source(runs, base)
    sources = [source for source in runs.sources if source != natural]
    given = dict(generators or {})
    unknown = sorted(set(given) - set(sources))
    if unknown:
        raise ValueError(
            f"no synthetic source {', '.join(unknown)} in the table; it has {', '.join(sources) or 'none'}"
        )
    found = {}
    for source in sources:
        named = None if source in given else _WITH_GENERATOR.fullmatch(source)
        generator = given.get(source) or (named["generator"] if named else None)
        kind = named["kind"] if named else source
        if source in given and source.endswith("-" + given[source]):
            kind = source[: -len(given[source]) - 1]
        role = (roles or {}).get(source) or (roles or {}).get(kind) or _role_of(kind)
        if role not in ROLES:
            raise ValueError(f"a kind of text is one of {', '.join(ROLES)}; got {role!r} for {source!r}")
        size = _SIZE.findall(generator) if generator else []
        found[source] = Kind(source, kind, role, generator, float(size[-1]) * 1e9 if size else None)
    stray = sorted(set(roles or {}) - set(sources) - {one.kind for one in found.values()})
    if stray:
        raise ValueError(f"no synthetic source {', '.join(stray)} in the table; it has {', '.join(sources) or 'none'}")
    return found


def _role_of(name: str) -> str:
    lowered = name.lower()
    return next((role for role, pattern in _ROLE_WORDS if re.search(pattern, lowered)), "other")
