"""How often to write a checkpoint, and what failures cost a run all the same.

A run trains for W seconds, stands still for C while a checkpoint is taken, and begins the next W. Failures come at
random, on average every M seconds (exponentially); each costs R seconds until training goes on, and what was done
since the last checkpoint. Then a stretch takes, in expectation (J. T. Daly, "A higher order estimate of the optimum
checkpoint interval for restart dumps", Future Generation Computer Systems 22, 2006)

    M e^(R/M) (e^((W + C)/M) - 1)   seconds for W seconds of training,

whose least cost per second is at W = M (1 + w), w the principal branch of Lambert's function at -e^(-1 - C/M). For C
far below M this is Young's sqrt(2 C M) (J. W. Young, CACM 17, 1974), with Daly's next terms

    sqrt(2 C M) (1 + x/3 + x^2/9) - C,   x = sqrt(C / 2M).

A checkpoint that is written in the background stops training for its copy alone, but a failure before it is on the disk
falls back on the one before: the seconds in between are lost with every failure, so they count as part of R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointInterval:
    """The best interval between checkpoints, and the share of the machine's time that is then lost."""

    interval_s: float
    """Seconds of training between two checkpoints."""
    lost_share: float
    """Share of the run's time, in [0, 1), that is not training: checkpoints, restarts, and what is done twice."""
    checkpoint_share: float
    """Of these, the share in which training stands still for the checkpoints that it needs."""


def lost_share(interval_s: float, stall_s: float, mtbf_s: float, *, restart_s: float = 0.0) -> float:
    """Expected share of a run's time that is no training, with a checkpoint every `interval_s` seconds of training.

    `stall_s`: seconds that training stands still for one; `mtbf_s`: mean seconds between failures of the whole run;
    `restart_s`: from a failure to the next step. ValueError for times that are none.
    """
    _validate(stall_s, mtbf_s, restart_s)
    if not interval_s > 0:
        raise ValueError(f"interval_s is a time above 0 seconds; got {interval_s}")
    exponent = (interval_s + stall_s) / mtbf_s
    if exponent + restart_s / mtbf_s > 700:  # e to that power is no float: nothing gets done
        return 1.0
    return 1 - interval_s / (mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(exponent))


def checkpoint_interval(
    stall_s: float, mtbf_s: float, *, write_s: float | None = None, restart_s: float = 0.0
) -> CheckpointInterval:
    """The interval at which least is lost.

    `stall_s`, `mtbf_s`, `restart_s` as in `lost_share`. `write_s`: seconds until a checkpoint is on the disk, where it
    is written in the background; None: `stall_s`. ValueError for times that are none.
    """
    from scipy.special import lambertw

    _validate(stall_s, mtbf_s, restart_s)
    write_s = stall_s if write_s is None else write_s
    if not write_s >= stall_s or not stall_s > 0:
        raise ValueError(f"a checkpoint stops training for some time, stall_s {stall_s}, and takes no less, {write_s}")
    share = stall_s / mtbf_s
    if share > 1e-6:
        interval_s = mtbf_s * (1 + float(lambertw(-math.exp(-1 - share)).real))
    else:  # so near its branch point Lambert's function has few digits, and the expansion has nine
        x = math.sqrt(share / 2)
        interval_s = math.sqrt(2 * stall_s * mtbf_s) * (1 + x / 3 + x * x / 9) - stall_s
    lost = lost_share(interval_s, stall_s, mtbf_s, restart_s=restart_s + write_s - stall_s)
    return CheckpointInterval(interval_s, lost, stall_s / interval_s * (1 - lost))


def _validate(stall_s: float, mtbf_s: float, restart_s: float) -> None:
    for name, value, least in (("stall_s", stall_s, 0), ("mtbf_s", mtbf_s, None), ("restart_s", restart_s, 0)):
        if not math.isfinite(value) or (value <= 0 if least is None else value < least):
            raise ValueError(f"{name} is a time in seconds{', above 0' if least is None else ''}; got {value}")
