"""Being told to go: SIGTERM (torchrun, SLURM, cloud machines) and SIGUSR2 (SLURM's --signal, as Meta Lingua uses it).

The handler only raises a flag. The loop looks at it after each optimizer step, on all ranks together, writes a
checkpoint and leaves; the same command goes on from there. torchrun waits 30 seconds for its ranks to leave, so a step
and a checkpoint must fit in them, or `--signal=USR2@300` of SLURM must come earlier.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
LEFT = "the checkpoint is written, the same command goes on from it"
"""What the log of a run says that left because it was told to."""


class Preempted(SystemExit):
    """The run left with a checkpoint because a signal asked it to; exit code 128 + the signal's number."""

    def __init__(self, number: int, message: str):
        super().__init__(128 + number)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Preemption:
    """Listens for the signals while it is entered; handlers that were there come back after."""

    def __init__(self) -> None:
        self.signal = 0
        """Number of the signal that came; 0: none."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        # Python lets the main thread alone handle signals: in a notebook's worker thread there is nothing to hear.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def requeue_slurm_job() -> str:
    """Put this SLURM job back into the queue; returns what happened, in words."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "synth.requeue: not under SLURM (no SLURM_JOB_ID), nothing to put back"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except FileNotFoundError:
        return "synth.requeue: there is no scontrol on this machine"
    if done.returncode:
        return f"synth.requeue: scontrol requeue {job} failed: {done.stderr.strip()}"
    return f"SLURM job {job} is back in the queue"
