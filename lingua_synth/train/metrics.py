"""metrics.jsonl and train.log of a run folder.

One JSON object per logged step with Meta Lingua's keys (`global_step`, `loss/out`, `speed/wps`, ...) and ours beside
them. On resume, lines past the checkpoint and a half-written last line are dropped, so every step stands once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lingua_synth.files import atomic_file


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line without its newline (a killed run) is left out."""
    return list(_whole_lines(Path(path)))


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            try:
                yield json.loads(line)
            except ValueError:
                # A block of zeros after a power cut: the steps are trained and logged again from the checkpoint.
                continue


class MetricsFile:
    """Appends one flushed line per record; opens at `step`, dropping what a dead run logged past it."""

    def __init__(self, path: Path, step: int):
        kept = [record for record in _whole_lines(path) if record["global_step"] <= step]
        with atomic_file(path) as file:
            for record in kept:
                file.write(json.dumps(record) + "\n")
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (held open for the length of the run)

    def write(self, record: dict[str, Any]) -> None:
        """Append `record`; an OSError (a full disk) stops the run."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def run_logger(run_dir: Path, is_main: bool) -> logging.Logger:
    """A logger that appends to `train.log` of this run folder and to nothing else; silent on other ranks."""
    logger = logging.Logger(f"lingua_synth.train:{run_dir}")
    if not is_main:
        return logger
    handler = logging.FileHandler(run_dir / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    return logger


def close_logger(logger: logging.Logger) -> None:
    """Release the log file."""
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
