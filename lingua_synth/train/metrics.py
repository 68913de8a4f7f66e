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

from lingua_synth.config import needs_extra, to_dict
from lingua_synth.files import atomic_file
from lingua_synth.train.args import TrainArgs


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


class Trackers:
    """TensorBoard and Weights & Biases, where the config asks for them; nothing otherwise.

    ValueError says what to install when one is asked for and not there.
    """

    def __init__(self, args: TrainArgs, run_sha256: str, step: int):
        self._board: Any = None
        self._wandb: Any = None
        if args.logging.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError(f"logging.tensorboard: {needs_extra(['tensorboard'], 'tracking')}") from None
            # What a dead run wrote past its checkpoint is hidden.
            self._board = SummaryWriter(str(Path(args.dump_dir) / "tensorboard"), purge_step=step)
        if args.logging.wandb is not None:
            try:
                import wandb
            except ImportError:
                raise ValueError("logging.wandb needs wandb, not installed here: pip install wandb") from None
            settings = {"name": args.name, "dir": args.dump_dir, "id": run_sha256[:16], "resume": "allow"}
            self._wandb = wandb.init(**(settings | args.logging.wandb), config=to_dict(args))

    def write(self, record: dict[str, Any], step: int) -> None:
        """Send the numbers of `record`."""
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k not in ("global_step",)}
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, step)
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


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
