"""Mixture: exact ratios of sources -> integer plan -> schedule -> this rank's batches, resumable from one integer.

Mixture (ratios) ──plan_report──> what it asks of each source; where it runs out
       │
   Schedule ──> position k -> source, j ──GlobalOrder──> epoch, window ──MixtureLoader──> Batch [batch, seq_len + 1]
"""

from lingua_synth.mixture.args import SourceArgs
from lingua_synth.mixture.loader import Batch, MixtureLoader, SourceAccount
from lingua_synth.mixture.order import GlobalOrder
from lingua_synth.mixture.plan import MixturePlan, SourcePlan, plan_report
from lingua_synth.mixture.ratios import Mixture, parse_ratio, plan_sequences
from lingua_synth.mixture.schedule import Schedule
from lingua_synth.mixture.strict import StrictSchedule, build_schedule

__all__ = [
    "Batch",
    "GlobalOrder",
    "Mixture",
    "MixtureLoader",
    "MixturePlan",
    "Schedule",
    "SourceAccount",
    "SourceArgs",
    "SourcePlan",
    "StrictSchedule",
    "build_schedule",
    "parse_ratio",
    "plan_report",
    "plan_sequences",
]
