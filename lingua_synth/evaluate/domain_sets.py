"""Domain sets as data: which held-out domains a figure is about, and where their texts are.

A set is a YAML file: shipped presets by name (`domain_sets/*.yaml`), or one of your own by path.

    about: what the set is, one line
    key: pile_set_name            # where the metadata of a document says its domain, for `evaluate split`
    domains:
      arxiv: {value: ArXiv}       # value of the key; files: a file, folder or glob, relative to this file
      news: {files: news/*.jsonl}

`resolve_domains` finds the texts of a set's domains below a folder, and says which are absent.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.documents.locations import SUFFIXES, is_url
from lingua_synth.documents.unfinished import MARKER
from lingua_synth.files import what_is_there

FOLDER = Path(__file__).parent / "domain_sets"
PRESETS = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
CUSTOM = "custom"


@dataclass(frozen=True)
class Domain:
    """One domain of a set."""

    value: str | None = None
    """What the key of the set holds in its documents' metadata."""
    files: str | None = None
    """Where its texts are, if the set says so."""


@dataclass(frozen=True)
class DomainSet:
    """A named list of domains."""

    name: str
    about: str
    key: str | None
    domains: dict[str, Domain]

    @property
    def is_open(self) -> bool:
        """Whether the set is whatever is named, `custom`."""
        return not self.domains


def load_domain_set(name: str) -> DomainSet:
    """A preset by name, or a set of your own by the path of its YAML file. ValueError says what is wrong with it."""
    if name in PRESETS:
        return _read(FOLDER / f"{name}.yaml", name)
    if not name.endswith((".yaml", ".yml")):
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"no domain set {name!r}; {hint} (or the path of your own .yaml file)")
    return _read(Path(name), Path(name).stem)


def _read(path: Path, name: str) -> DomainSet:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no domain set {path}; {what_is_there(path)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("domains"), dict):
        raise ValueError(f"{path} is no domain set: it needs a mapping `domains` from names to their texts")
    _refuse_unknown(path, "", content, ("about", "key", "domains"))
    domains = {}
    for domain, entry in content["domains"].items():
        if not isinstance(domain, str) or not is_domain_name(domain):
            raise ValueError(
                f"{path}: {domain!r} cannot name a domain; take letters, digits and _ . + - (it becomes a file's name)"
            )
        entry = entry or {}
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: domains.{domain} is a mapping with value and files, not {entry!r}")
        _refuse_unknown(path, f"domains.{domain}.", entry, ("value", "files"))
        files = entry.get("files")
        if files is not None and not is_url(str(files)):
            files = str(path.parent / str(files))
        value = entry.get("value")
        domains[domain] = Domain(None if value is None else str(value), files)
    values = [domain.value for domain in domains.values() if domain.value is not None]
    if len(set(values)) < len(values):
        raise ValueError(f"{path}: two domains have the same value; each document belongs to one")
    return DomainSet(name, str(content.get("about", "")), content.get("key"), domains)


def is_domain_name(name: str) -> bool:
    """Whether `name` can be a file's name and part of a column's, everywhere."""
    return bool(name) and not name.startswith(".") and all(c.isalnum() or c in "_.+-" for c in name)


def _refuse_unknown(path: Path, prefix: str, found: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    for key in found:
        if key not in known:
            raise ValueError(f"{path}: unknown key {prefix}{key}; known are {', '.join(known)}")


def resolve_domains(
    domain_set: DomainSet, *, data: str = "", named: Mapping[str, str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """Where the texts of each domain of the set are, in the set's order, and the domains that are absent.

    `named` wins; then the set's own `files`; then, below the folder `data`, a folder `<domain>`, or a file `<domain>`
    with a suffix of documents. `custom` takes every such file and folder of `data`. ValueError for a name that is not
    of the set, a folder `data` that is not there or not finished, and when nothing is found at all.
    """
    named = dict(named or {})
    there = _domains_in(data) if data else {}
    if domain_set.is_open:
        found = there | named
        absent: list[str] = []
    else:
        for name in named:
            if name not in domain_set.domains:
                near = difflib.get_close_matches(name, domain_set.domains, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(
                    f"{name!r} is not of the domain set {domain_set.name} ({', '.join(domain_set.domains)}){hint} "
                    "For other domains take domain_set=custom"
                )
        found = {}
        for name, domain in domain_set.domains.items():
            where = named.get(name) or domain.files or there.get(name)
            if where:
                found[name] = where
        absent = [name for name in domain_set.domains if name not in found]
    if not found:
        looked = f"in {data} (it holds: {', '.join(there) or 'no documents'})" if data else "anywhere"
        raise ValueError(
            f"no domain of {domain_set.name} was found {looked}: name files by the domains, as "
            f"{next(iter(domain_set.domains), 'news')}.jsonl, or give paths: domains.<name>=PATH"
        )
    for name in found:
        if not is_domain_name(name):
            raise ValueError(f"{name!r} cannot name a domain; take letters, digits and _ . + -")
    return found, absent


def _domains_in(data: str) -> dict[str, str]:
    """Files and folders of `data` by the names they give a domain; ValueError where two give one name."""
    folder = Path(data)
    if not folder.is_dir():
        raise ValueError(f"data={data} is no folder; {what_is_there(folder)}")
    if (folder / MARKER).exists():
        raise ValueError(f"{folder} is not finished: what writes it is at work or was interrupted; run it again")
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "rejects.jsonl":
            continue
        suffix = max((s for s in SUFFIXES if path.name.endswith(s)), key=len, default="")
        if path.is_dir():
            name = path.name
        elif suffix:
            name = path.name.removesuffix(suffix)
        else:
            continue
        if name in found:
            raise ValueError(f"{found[name]} and {path} both are the domain {name!r}; remove one")
        found[name] = str(path)
    return found
