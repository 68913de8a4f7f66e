"""A folder whose manifest is not written yet: what a killed run left there may be removed, anybody else's files not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MARKER = ".unfinished"


def begin_folder(folder: Path, patterns: Iterable[str]) -> None:
    """Mark `folder` as being written and remove the files of `patterns` that an interrupted run left in it.

    Raises ValueError, and removes nothing, when such files are there without the mark of an interrupted run:
    they belong to somebody else.
    """
    found = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if found and not (folder / MARKER).exists():
        names = ", ".join(str(file.relative_to(folder)) for file in found[:5])
        raise ValueError(
            f"{folder} holds {names} but no manifest.json of ours: it is not overwritten. Choose another folder, "
            "or delete this one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    for file in found:
        file.unlink()


def end_folder(folder: Path) -> None:
    """Take the mark away; called once the manifest stands."""
    (folder / MARKER).unlink(missing_ok=True)
