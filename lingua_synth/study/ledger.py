"""What a study was launched with, so that a YAML changed since then is seen.

`study.json` in the study's folder holds the YAML of the launch and a fingerprint of every run: the hash of what decides
its numbers, without paths and conveniences. A later launch compares. Runs that are the same are trained on or skipped
as ever; anything else is refused, and with `on_change: add` what is new is added, while a run that has begun under
other settings stays refused, as its folder holds their numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.config import to_dict
from lingua_synth.files import read_json, sha256_json, write_json
from lingua_synth.study.args import StudyArgs
from lingua_synth.study.plan import PlannedRun
from lingua_synth.train.args import tokens_per_step
from lingua_synth.train.folder import IDENTITY
from lingua_synth.train.free_keys import drop_unused_new_keys, without_free_keys

LEDGER = "study.json"
VERSION = 1
POLICIES = ("refuse", "add")
# Of the study's YAML: what changes how it is run or judged, and no run.
_NO_RUN = ("extends", "calibrate", "gpu", "gpu_hour_price", "design", "on_change", "launch")


@dataclass(frozen=True)
class Changes:
    """How the runs of a YAML differ from those of the launch."""

    new: tuple[str, ...]
    """Run ids the launch did not have."""
    changed: tuple[str, ...]
    """Run ids with other settings, not begun yet."""
    begun: tuple[str, ...]
    """Run ids with other settings whose folders hold the earlier ones' numbers."""
    gone: tuple[str, ...]
    """Run ids of the launch that the YAML no longer makes."""
    keys: tuple[str, ...]
    """Keys of the YAML that differ, in words."""

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.begun or self.gone)

    def __str__(self) -> str:
        kinds = (
            ("new", self.new),
            ("changed", self.changed),
            ("changed after they had begun", self.begun),
            ("no longer there", self.gone),
        )
        counts = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds if names)
        keys = f". The YAML differs in: {_some(self.keys)}" if self.keys else ""
        return f"since its launch the study has changed: {counts}{keys}"


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fingerprint(run: PlannedRun) -> str:
    """Hash of what decides the run's numbers: its resolved config, without paths and conveniences.

    The data behind the paths is judged by the run's own identity when it goes on.
    """
    assert run.resolved is not None, "planned runs are resolved"
    args, shared = run.args, run.resolved
    model_seed = args.seed if args.model.seed is None else args.model.seed
    args = dataclasses.replace(
        args, model=dataclasses.replace(shared.model, seed=model_seed), optim=shared.optim, steps=shared.steps
    )
    config = without_free_keys(to_dict(args))
    drop_unused_new_keys(config)
    for source in config["synth"]["sources"].values():
        del source["path"], source["documents"]
    config["synth"]["evaluation"]["domains"] = sorted(config["synth"]["evaluation"]["domains"])
    config["tokens_per_step"] = tokens_per_step(shared, max(1, run.num_gpus))
    return sha256_json(config)


def changes_since_launch(study: StudyArgs, runs: Sequence[PlannedRun]) -> Changes | None:
    """What differs from the launch; None for a study that was not launched, or has not changed.

    ValueError for a ledger that is of another version or no ledger.
    """
    ledger = _read(study)
    if ledger is None:
        return None
    found = _compare(study, runs, ledger)
    return found or None


def register_study(study: StudyArgs, runs: Sequence[PlannedRun]) -> None:
    """Write the ledger of a first launch, or compare with it; call it before any run is trained.

    ValueError when the runs are other ones, unless `study.on_change` is add and no changed run has begun. Launchers at
    the same time wait for each other here.
    """
    if study.on_change not in POLICIES:
        raise ValueError(f"on_change is {' or '.join(POLICIES)}; got {study.on_change!r}")
    with _alone(Path(study.out)):
        ledger = _read(study)
        known: dict[str, str] = {}
        if ledger is not None:
            changes = _compare(study, runs, ledger)
            if changes and study.on_change == "refuse":
                raise ValueError(
                    f"{study.out}: {changes}. Undo that, use another out=, or launch with on_change=add, which trains "
                    "what is new"
                )
            if changes.begun:
                raise ValueError(
                    f"{study.out}: {changes}. What has begun keeps its settings: undo that, give the changed grid a "
                    "suffix (new names), use another out=, or delete those run folders"
                )
            if not changes:
                return
            known = dict(ledger["runs"])
        known.update({run.run_id: fingerprint(run) for run in runs})
        write_json(Path(study.out) / LEDGER, {"version": VERSION, "study": to_dict(study), "runs": known})


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other launchers that are in here."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{LEDGER}.lock", "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(study: StudyArgs) -> dict[str, Any] | None:
    path = Path(study.out) / LEDGER
    if not study.out or not path.is_file():
        return None
    ledger = read_json(path)
    if not isinstance(ledger, dict) or ledger.get("version") != VERSION or not isinstance(ledger.get("runs"), dict):
        raise ValueError(f"{path} is no ledger of version {VERSION}; use another out=, or delete it to launch anew")
    return ledger


def _compare(study: StudyArgs, runs: Sequence[PlannedRun], ledger: dict[str, Any]) -> Changes:
    known = ledger["runs"]
    now = {run.run_id: run for run in runs}
    other = [name for name, run in now.items() if name in known and fingerprint(run) != known[name]]
    begun = [name for name in other if (Path(now[name].args.dump_dir) / IDENTITY).is_file()]
    return Changes(
        new=tuple(name for name in now if name not in known),
        changed=tuple(name for name in other if name not in begun),
        begun=tuple(begun),
        gone=tuple(name for name in known if name not in now),
        keys=tuple(_differences(ledger.get("study"), to_dict(study))),
    )


def _differences(theirs: Any, ours: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in dict.fromkeys((*theirs, *ours)):
            if prefix or key not in _NO_RUN:
                yield from _differences(theirs.get(key), ours.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif theirs != ours and prefix:
        yield f"{prefix} {theirs!r} there, {ours!r} now"
