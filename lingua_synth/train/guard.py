"""Judging each step before it touches the weights: losses that are not finite, and spikes.

The judgement rests on numbers that all ranks share, so all decide alike; what it remembers is in the checkpoint, so a
resumed run decides as an uninterrupted one would.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, pstdev
from typing import Any

from lingua_synth.train.args import GuardArgs


class Guard:
    """Remembers the loss and gradient norm of the last steps and says which step is out of line."""

    def __init__(self, args: GuardArgs):
        self._args = args
        self._past: dict[str, deque[float]] = {
            "loss": deque(maxlen=args.window),
            "gradient norm": deque(maxlen=args.window),
        }
        self.num_skipped = 0
        """Steps skipped since the run began."""
        self._in_a_row = 0

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Why the step with these numbers is to be skipped; None for a good one, which is remembered.

        A spike is more than `spike_sigma` standard deviations above the mean of the last `window` good steps. Raises
        ValueError when the config says stop, or when more than `max_skipped` steps in a row were skipped.
        """
        now = {"loss": loss, "gradient norm": grad_norm}
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            reason, action = f"loss {loss} with gradient norm {grad_norm} is not finite", self._args.nonfinite
        elif self._args.spike != "off" and (high := self._above(now)):
            reason, action = high, self._args.spike
        else:
            if self._args.spike != "off":
                for name, value in now.items():
                    self._past[name].append(value)
            self._in_a_row = 0
            return None
        if action == "stop":
            raise ValueError(reason)
        self.num_skipped += 1
        self._in_a_row += 1
        if self._in_a_row > self._args.max_skipped:
            raise ValueError(f"{reason}, after {self._in_a_row - 1} steps skipped in a row (synth.guard.max_skipped)")
        return reason

    def leave_out(self, reason: str) -> str:
        """Count a step in which there is nothing to learn; returns `reason`. It says nothing of the next one."""
        self.num_skipped += 1
        return reason

    def _above(self, now: dict[str, float]) -> str | None:
        for name, past in self._past.items():
            if len(past) == self._args.window:
                mean, deviation = fmean(past), pstdev(past)
                if now[name] > mean + self._args.spike_sigma * deviation:
                    return (
                        f"{name} {now[name]:.6g} is a spike: the last {len(past)} steps had {mean:.6g} +- "
                        f"{deviation:.3g}"
                    )
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain data for the checkpoint."""
        return {
            "num_skipped": self.num_skipped,
            "in_a_row": self._in_a_row,
            "past": {name: list(values) for name, values in self._past.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; a shorter window keeps the newest steps."""
        self.num_skipped, self._in_a_row = state["num_skipped"], state["in_a_row"]
        for name, values in state["past"].items():
            self._past[name] = deque(values, maxlen=self._args.window)
