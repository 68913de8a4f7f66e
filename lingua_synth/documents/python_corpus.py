"""Natural English text that every Python installation carries: its own documentation and that of its packages.

For a first study without a download. Read from the machine at hand, never shipped and never imported as code:

    language-reference   the topics of `help()` (pydoc_data)
    standard-library     docstrings of the standard library's source files
    numpy, scipy, torch  docstrings of the three large packages that the library's extras bring
    packages             docstrings of every other installed package
    package-readmes      the long descriptions in the packages' metadata

One document is a topic, a readme, a class with its methods, a function with much to say, or a module with its smaller
functions. The text is technical prose, cleaned by `clean_markup`, with no line of 80 characters twice.
What it amounts to depends on what is installed; the versions are in every document's `meta`.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib.metadata
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from lingua_synth.documents.cleaning import Deduplicator, clean_markup
from lingua_synth.documents.document import Document, document_id

MIN_DOCUMENT_CHARS = 200
"""Shorter texts say too little to stand alone."""
MAX_DOCUMENT_CHARS = 16_000
"""Longer ones are cut between two entries or paragraphs, so that a domain has many documents."""
OWN_DOCUMENT_CHARS = 1_500
"""A function with this much text is a document of its own; smaller ones stay with their module."""
NAMED_PACKAGES = ("numpy", "scipy", "torch")

_SKIPPED_FOLDER_LIST = (
    "test tests testing _testing lib2to3 idlelib turtledemo __pycache__ site-packages dist-packages "
    "_vendor vendor vendored _vendored externals thirdparty third_party benchmarks examples lingua_synth"
)
_SKIPPED_FOLDERS = frozenset(_SKIPPED_FOLDER_LIST.split())
_DOCSTRING = re.compile(rb'"""(.*?)"""', re.DOTALL)
# A file with less than this in triple quotes (bytes, and share of the file) is not parsed. Measured on 75 packages,
# with shares of 0.06, 0.10, 0.15, 0.20: 15.7, 15.1, 14.3, 13.4 MB of clean text in 19.3, 16.5, 14.6, 11.6 CPU-seconds.
_MIN_QUOTED_BYTES = 400
_MIN_QUOTED_SHARE = 0.2


def python_documents(max_bytes: int | None = None, dropped: dict[str, int] | None = None) -> Iterator[Document]:
    """Yield the built-in corpus; `meta` holds domain, package, version and name (of the topic, module or class).

    The order is fixed for a given installation and takes one document of each domain in turn, so that `max_bytes`
    (of UTF-8 text; the document that would exceed it and all after it are left out) cuts all domains alike.
    `dropped`, if given, is filled with counts by reason: paragraphs as in `clean_markup`, documents that are
    `too short after cleaning`, files that cannot be read or parsed. The time grows with the number of packages.
    """
    counts = dropped if dropped is not None else {}
    seen = Deduplicator()
    streams = [
        _Stream("language-reference", _reference_entries(counts)),
        _Stream("standard-library", _standard_library(counts)),
        *(_Stream(name, _package_entries(name, path, counts)) for name, path in _named_packages()),
        _Stream("packages", _other_packages(counts)),
        _Stream("package-readmes", _readme_entries(counts)),
    ]
    num_bytes = 0
    while streams:
        for stream in list(streams):
            document = stream.next_document(seen, counts)
            if document is None:
                streams.remove(stream)
                continue
            num_bytes += len(document.text.encode("utf-8"))
            if max_bytes is not None and num_bytes > max_bytes:
                return
            yield document


class _Entry:
    """Cleaned text under one name, and where it is from."""

    __slots__ = ("name", "package", "text", "version")

    def __init__(self, name: str, text: str, package: str, version: str) -> None:
        self.name, self.text, self.package, self.version = name, text, package, version


class _Stream:
    """The documents of one domain, one at a time."""

    def __init__(self, domain: str, entries: Iterator[_Entry]) -> None:
        self._domain = domain
        self._entries = entries

    def next_document(self, seen: Deduplicator, counts: dict[str, int]) -> Document | None:
        for entry in self._entries:
            text = seen.keep_new(entry.text)
            if len(text) < MIN_DOCUMENT_CHARS:
                counts["too short after cleaning"] = counts.get("too short after cleaning", 0) + 1
                continue
            meta = {"domain": self._domain, "package": entry.package, "version": entry.version, "name": entry.name}
            return Document(document_id(text), text, meta)
        return None


def _python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


# --- the sources ---


def _reference_entries(counts: dict[str, int]) -> Iterator[_Entry]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # left out by some minimal distributions of Python
        return
    for name in sorted(topics):
        for part in _cut(clean_markup(topics[name], counts)):
            yield _Entry(name, part, "python", _python_version())


def _standard_library(counts: dict[str, int]) -> Iterator[_Entry]:
    root = Path(sysconfig.get_paths()["stdlib"])
    yield from _folder_entries(root, "", "python", _python_version(), counts)


def _site_folders() -> list[Path]:
    """The folders of installed packages that this interpreter imports from."""
    names = {"site-packages", "dist-packages"}
    return [Path(folder) for folder in sys.path if os.path.basename(folder) in names and os.path.isdir(folder)]


def _packages() -> dict[str, Path]:
    """Import name -> folder of every installed package; what comes first on sys.path wins, as in an import."""
    found: dict[str, Path] = {}
    for site in _site_folders():
        for folder in site.iterdir():
            if folder.name.isidentifier() and folder.name not in _SKIPPED_FOLDERS and folder.is_dir():
                found.setdefault(folder.name, folder)
    return dict(sorted(found.items()))


def _named_packages() -> list[tuple[str, Path]]:
    return [(name, path) for name, path in _packages().items() if name in NAMED_PACKAGES]


def _other_packages(counts: dict[str, int]) -> Iterator[_Entry]:
    for name, path in _packages().items():
        if name not in NAMED_PACKAGES:
            yield from _package_entries(name, path, counts)


def _package_entries(name: str, path: Path, counts: dict[str, int]) -> Iterator[_Entry]:
    yield from _folder_entries(path, name, name, _version(name), counts)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _version(import_name: str) -> str:
    names = _distributions().get(import_name)
    return importlib.metadata.version(sorted(names)[0]) if names else ""


def _readme_entries(counts: dict[str, int]) -> Iterator[_Entry]:
    readmes: dict[str, tuple[str, str]] = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        if metadata is None or not metadata["Name"]:
            continue  # a broken installation
        body = metadata.get_payload() or metadata["Description"]  # type: ignore[attr-defined]
        if isinstance(body, str) and metadata["Name"] not in ("lingua-synth", "lingua_synth"):
            readmes.setdefault(metadata["Name"], (body, distribution.version))
    for name in sorted(readmes, key=str.lower):
        body, version = readmes[name]
        for part in _cut(clean_markup(body, counts)):
            yield _Entry(name, part, name, version)


def _folder_entries(root: Path, prefix: str, package: str, version: str, counts: dict[str, int]) -> Iterator[_Entry]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name.isidentifier() and name not in _SKIPPED_FOLDERS)
        inside = os.path.relpath(folder, root).replace(os.sep, ".")
        parts = [part for part in (prefix, inside) if part and part != "."]
        for name in sorted(names):
            stem = name.removesuffix(".py")
            if stem == name or stem.startswith(("test_", "conftest")):
                continue
            module = ".".join(parts if stem == "__init__" else [*parts, stem])
            for entry_name, text in _module_texts(os.path.join(folder, name), module or package, counts):
                yield _Entry(entry_name, text, package, version)


# --- one source file ---


def _module_texts(file: str, module: str, counts: dict[str, int]) -> Iterator[tuple[str, str]]:
    """(name, cleaned text) of each document in a source file. A file that cannot be read or parsed has none."""
    tree = _parse(file, counts)
    if tree is None:
        return
    rest = [clean_markup(ast.get_docstring(tree, clean=False) or "", counts)]
    for name, node in _definitions(tree):
        if isinstance(node, ast.ClassDef):
            text = _class_text(node, counts)
        elif isinstance(node, ast.Call):
            text = clean_markup(_longest_string(node), counts)
        else:
            text = clean_markup(ast.get_docstring(node, clean=False) or "", counts)
        if not text:
            continue
        entry = f"{name}\n\n{text}" if name else text
        if isinstance(node, ast.ClassDef) or len(text) >= OWN_DOCUMENT_CHARS:
            for part in _cut(entry):
                yield f"{module}.{name}".rstrip("."), part
        else:
            rest.append(entry)
    for part in _join(rest):
        yield module, part


def _parse(file: str, counts: dict[str, int]) -> ast.Module | None:
    try:
        source = Path(file).read_bytes()
    except OSError:
        counts["file not readable"] = counts.get("file not readable", 0) + 1
        return None
    quoted = sum(map(len, _DOCSTRING.findall(source)))
    if quoted < max(_MIN_QUOTED_BYTES, _MIN_QUOTED_SHARE * len(source)):
        return None
    was_enabled = gc.isenabled()
    gc.disable()  # nothing to collect while a tree grows, and looking costs a third of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # templates, other versions of Python
        counts["file not parsable"] = counts.get("file not parsable", 0) + 1
        return None
    finally:
        if was_enabled:
            gc.enable()


_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Call


def _definitions(node: ast.AST) -> Iterator[tuple[str, _Definition]]:
    """Public classes, functions, and calls that hand over a docstring (`add_newdoc`), in the order of the file."""
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_"):
                yield child.name, child
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            if _longest_string(child.value):
                yield "", child.value
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _definitions(child)


def _class_text(node: ast.ClassDef, counts: dict[str, int]) -> str:
    parts = [clean_markup(ast.get_docstring(node, clean=False) or "", counts)]
    for name, child in _definitions(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            text = clean_markup(ast.get_docstring(child, clean=False) or "", counts)
            if text:
                parts.append(f"{node.name}.{name}\n\n{text}")
    return "\n\n".join(part for part in parts if part)


def _longest_string(call: ast.Call) -> str:
    """The longest string among the arguments of a call, if it looks like documentation; else an empty string."""
    strings = [
        part.value
        for argument in call.args
        for part in ast.walk(argument)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    longest = max(strings, key=len, default="")
    return longest if len(longest) >= MIN_DOCUMENT_CHARS and "\n" in longest.strip() else ""


# --- cutting and joining ---


def _cut(text: str) -> Iterator[str]:
    """`text` in parts of at most `MAX_DOCUMENT_CHARS`, cut between paragraphs (a longer paragraph stays whole)."""
    yield from _join(text.split("\n\n"))


def _join(parts: list[str]) -> Iterator[str]:
    gathered: list[str] = []
    size = 0
    for part in parts:
        if not part:
            continue
        if gathered and size + len(part) > MAX_DOCUMENT_CHARS:
            yield "\n\n".join(gathered)
            gathered, size = [], 0
        gathered.append(part)
        size += len(part) + 2
    if gathered:
        yield "\n\n".join(gathered)
