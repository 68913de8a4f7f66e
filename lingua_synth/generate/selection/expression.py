"""Selections in words: "disagree & strategies(min=4, max=8) >> random(10_000)".

    chain   := formula (">>" formula)*      each formula looks at what the one before it kept
    formula := term ("|" term)*             or
    term    := factor ("&" factor)*         and
    factor  := "~" factor | "(" formula ")" | name | name(value, key=value, "a key"=value, ...)

Within a formula every selector looks at the same rows, and selectors draw independently of each other: `a & b` is
`b & a`, `a & a` is `a`, and the probability of a formula follows exactly from those of its parts. Along a chain
the probabilities multiply (two-phase sampling). Text is parsed, never evaluated.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingua_synth.generate.selection.selectors import NEEDS, SELECTORS, Selection
from lingua_synth.generate.selection.traces import TraceTable

MAX_CALLS = 8
"""Different selectors in one formula; its probability takes 2^calls steps."""
MAX_DEPTH = 50


@dataclass(frozen=True)
class Call:
    """A selector with its parameters."""

    name: str
    values: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        # Without bounds that bound nothing: infinity has no written form.
        values = [(name, value) for name, value in self.values if value != float("inf")]
        written = ", ".join(f"{_written_name(name)}={_written(value)}" for name, value in values)
        return f"{self.name}({written})" if written else self.name

    @property
    def draws_as(self) -> str:
        """What its draws depend on: all but how many rows it takes, so that more rows are a superset of fewer."""
        return str(Call(self.name, tuple((name, value) for name, value in self.values if name != "n")))


@dataclass(frozen=True)
class Operation:
    """`~` of one, or `&` or `|` of several formulas."""

    sign: str
    parts: tuple[Formula, ...]

    def __str__(self) -> str:
        inner = [f"({part})" if isinstance(part, Operation) and part.sign != "~" else str(part) for part in self.parts]
        return f"~{inner[0]}" if self.sign == "~" else f" {self.sign} ".join(inner)


Formula = Call | Operation


@dataclass(frozen=True)
class Expression:
    """A parsed chain of formulas; `str` of it is its canonical form and parses to an equal one."""

    steps: tuple[Formula, ...]

    def __str__(self) -> str:
        return " >> ".join(str(step) for step in self.steps)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that its selectors read."""
        return tuple(dict.fromkeys(need for step in self.steps for call in _calls(step) for need in _needs(call)))

    def select(self, table: TraceTable, seed: int = 0) -> Selection:
        """Apply it to the rows of `table`. ValueError where a selector asks for what the table does not have."""
        places = np.arange(len(table))
        inclusion = np.ones(len(table))
        for number, step in enumerate(self.steps):
            found = _apply(step, table.take(places), seed, number)
            factor = np.zeros(len(table))
            factor[places] = found.inclusion
            inclusion *= factor
            places = places[found.kept]
        kept = np.zeros(len(table), dtype=bool)
        kept[places] = True
        return Selection(kept, inclusion)


def select(table: TraceTable, expression: str, *, seed: int = 0) -> Selection:
    """The rows of `table` that `expression` selects, with their inclusion probabilities. Errors are ValueErrors."""
    return parse_expression(expression).select(table, seed)


def parse_expression(text: str) -> Expression:
    """Parse `text`; ValueError shows where it cannot be read, and what is known there."""
    return _Parser(text).chain()


def _calls(formula: Formula) -> list[Call]:
    if isinstance(formula, Call):
        return [formula]
    return list(dict.fromkeys(call for part in formula.parts for call in _calls(part)))


def _needs(call: Call) -> tuple[str, ...]:
    needs = NEEDS.get(call.name, ())
    if call.name == "strategies" and not dict(call.values).get("density"):
        return needs[:1]  # without a density nothing is divided by tokens
    return needs


def _apply(formula: Formula, table: TraceTable, seed: int, number: int) -> Selection:
    calls = _calls(formula)
    _refuse_shared_draws(calls)
    found: dict[Call, Selection] = {}
    for call in calls:
        digest = hashlib.sha256(f"{seed}\0{number}\0{call.draws_as}".encode()).digest()
        try:
            found[call] = SELECTORS[call.name](table, **dict(call.values), seed=int.from_bytes(digest[:8]))
        except ValueError as error:
            raise ValueError(f"{call}: {error}") from None
    kept = _truth(formula, {call: one.kept for call, one in found.items()})
    return Selection(kept, _probability(formula, calls, {call: one.inclusion for call, one in found.items()}))


def _refuse_shared_draws(calls: list[Call]) -> None:
    seen: dict[str, Call] = {}
    for call in calls:
        other = seen.setdefault(call.draws_as, call)
        if other != call:
            raise ValueError(
                f"{other} and {call} draw from the same lot, so that one holds the other; take one, or set them one "
                "behind the other with >>"
            )


def _truth(formula: Formula, kept: Mapping[Call, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    if isinstance(formula, Call):
        return kept[formula]
    parts = [_truth(part, kept) for part in formula.parts]
    if formula.sign == "~":
        return ~parts[0]
    combine = np.logical_and if formula.sign == "&" else np.logical_or
    result: NDArray[np.bool_] = combine.reduce(parts)
    return result


def _probability(
    formula: Formula, calls: list[Call], inclusion: Mapping[Call, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Sum over all outcomes of the calls in which the formula holds; a call is kept with its p, independently."""
    if len(calls) == 1 and formula == calls[0]:
        return inclusion[calls[0]]
    total = np.zeros_like(inclusion[calls[0]])
    for outcome in range(2 ** len(calls)):
        assumed = {call: np.array([bool(outcome >> place & 1)]) for place, call in enumerate(calls)}
        if not _truth(formula, assumed)[0]:
            continue
        term = np.ones_like(total)
        for call in calls:
            p = inclusion[call]
            factor = p if assumed[call][0] else 1.0 - p
            # What cannot happen stays at 0, also where another part is not known.
            term = np.where((term == 0) | (factor == 0), 0.0, term * factor)
        total += term
    return np.clip(total, 0.0, 1.0)


_TOKEN = re.compile(
    r"\s*(?:(?P<chain>>>)|(?P<sign>[&|~(),=])|(?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?!\w)"
    r"|(?P<text>\"[^\"]*\"|'[^']*')|(?P<name>[^\W\d]\w*))"
)


class _Parser:
    """Recursive descent over the tokens of an expression."""

    def __init__(self, text: str) -> None:
        self._source = text
        self._tokens: list[tuple[str, str, int]] = []
        self._at = self._depth = 0
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                raise self._error(place, f"{text[place]!a} means nothing here")
            kind = match.lastgroup or ""
            self._tokens.append((kind, match[kind], match.start(kind)))
            place = match.end()
        if not self._tokens:
            raise ValueError(f"the selection is empty; it is made of {', '.join(SELECTORS)}, e.g. random(10_000)")

    def chain(self) -> Expression:
        steps = [self._formula()]
        while self._take(">>"):
            steps.append(self._formula())
        if self._at < len(self._tokens):
            _, value, place = self._tokens[self._at]
            raise self._error(place, f"{value} is not expected here; join selectors with &, | or >>")
        for step in steps:
            if len(_calls(step)) > MAX_CALLS:
                raise ValueError(f"{len(_calls(step))} selectors in one formula, at most {MAX_CALLS} are taken; use >>")
            _refuse_shared_draws(_calls(step))
        return Expression(tuple(steps))

    def _formula(self) -> Formula:
        return self._joined("|", lambda: self._joined("&", self._factor))

    def _joined(self, sign: str, part: Any) -> Formula:
        parts = [part()]
        while self._take(sign):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Operation(sign, tuple(parts))

    def _factor(self) -> Formula:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"the selection is nested deeper than {MAX_DEPTH}")
        try:
            if self._take("~"):
                return Operation("~", (self._factor(),))
            if self._take("("):
                inner = self._formula()
                self._expect(")")
                return inner
            return self._call()
        finally:
            self._depth -= 1

    def _call(self) -> Call:
        kind, name, place = self._peek()
        if kind != "name":
            raise self._error(place, f"expected a selector ({', '.join(SELECTORS)}), found {name or 'the end'}")
        if name not in SELECTORS:
            near = difflib.get_close_matches(name, SELECTORS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SELECTORS)}"
            raise self._error(place, f"no selector {name}; {hint}")
        self._at += 1
        given: list[tuple[str | None, Any]] = []
        if self._take("(") and not self._take(")"):
            given.append(self._argument())
            while self._take(","):
                given.append(self._argument())
            self._expect(")")
        try:
            return Call(name, _bound(name, given))
        except ValueError as error:
            raise self._error(place, str(error)) from None

    def _argument(self) -> tuple[str | None, Any]:
        kind, value, place = self._peek()
        self._at += 1
        if kind in ("name", "text") and self._take("="):
            key = value[1:-1] if kind == "text" else value
            number, written, place = self._peek()
            self._at += 1
            if number != "number":
                raise self._error(place, f"{key}= needs a number, found {written or 'nothing'}")
            return key, _read_number(written)
        if kind != "number":
            raise self._error(place, f"expected a number or name=number, found {value or 'the end'}")
        return None, _read_number(value)

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "", len(self._source))

    def _take(self, sign: str) -> bool:
        kind, value, _ = self._peek()
        if kind in ("sign", "chain") and value == sign:
            self._at += 1
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            _, value, place = self._peek()
            raise self._error(place, f"expected {sign}, found {value or 'the end'}")

    def _error(self, place: int, reason: str) -> ValueError:
        return ValueError(f"cannot read the selection {self._source!a} at character {place + 1}: {reason}")


def _read_number(written: str) -> int | float:
    plain = written.replace("_", "")
    return int(plain) if re.fullmatch(r"[+-]?\d+", plain) else float(plain)


def _bound(name: str, given: list[tuple[str | None, Any]]) -> tuple[tuple[str, Any], ...]:
    """Values by parameter, every one with its name, defaults included, in the function's order."""
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(SELECTORS[name]).parameters.items()
        if key not in ("table", "seed")
    }
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [key for key, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    needed = [key for key in known if parameters[key].default is inspect.Parameter.empty]
    values: dict[str, Any] = {}
    for place, (key, value) in enumerate(given):
        if key is None and place >= len(known):
            raise ValueError(
                f"{name} takes {', '.join(known) or ('domain=number' if free else 'nothing')}; got {value}"
            )
        key = known[place] if key is None else key
        if key not in known and (not free or key in ("table", "seed")):
            raise ValueError(f"{name} has no {key}; it takes {', '.join(known) or 'nothing'}")
        if key in values:
            raise ValueError(f"{name} is given {key} twice")
        values[key] = _fitting(name, key, value, parameters[key].annotation if key in parameters else "int")
    for key in known:
        if key not in values:
            if key in needed:
                raise ValueError(f"{name} needs {', '.join(needed)}")
            values[key] = float(parameters[key].default)
    return tuple((key, values[key]) for key in [*known, *sorted({*values} - {*known})])


def _fitting(name: str, key: str, value: int | float, kind: str) -> int | float:
    if kind == "int":
        if value != value or value in (float("inf"), float("-inf")) or value != int(value):
            raise ValueError(f"{key} of {name} is a whole number, got {value}")
        return int(value)
    return float(value)


def _written(value: int | float) -> str:
    return str(value) if isinstance(value, int) else repr(value).removesuffix(".0")


def _written_name(name: str) -> str:
    if re.fullmatch(r"[^\W\d]\w*", name):
        return name
    return f"'{name}'" if '"' in name else f'"{name}"'
