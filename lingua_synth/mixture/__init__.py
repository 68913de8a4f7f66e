"""Mixture: exact ratios of sources -> integer plan -> schedule -> this rank's batches, resumable from one integer.

Mixture (ratios, stages) ──> Course ──plan_report──> what it asks of each source; where one runs out, and what then
                               │
   Schedule ──> position k -> source, j ──GlobalOrder──> epoch, window ──MixtureLoader──> Batch [batch, seq_len + 1]
"""

from lingua_synth.mixture.args import SourceArgs
from lingua_synth.mixture.batch import Batch
from lingua_synth.mixture.course import Course
from lingua_synth.mixture.loader import MixtureLoader, SourceAccount
from lingua_synth.mixture.mixture import Mixture, Stage
from lingua_synth.mixture.order import GlobalOrder
from lingua_synth.mixture.plan import MixturePlan, SourcePlan, plan_report
from lingua_synth.mixture.ratios import parse_ratio, plan_sequences
from lingua_synth.mixture.schedule import Schedule
from lingua_synth.mixture.strict import StrictSchedule, build_schedule

__all__ = [
    "Batch",
    "Course",
    "GlobalOrder",
    "Mixture",
    "MixtureLoader",
    "MixturePlan",
    "Schedule",
    "SourceAccount",
    "SourceArgs",
    "SourcePlan",
    "Stage",
    "StrictSchedule",
    "build_schedule",
    "parse_ratio",
    "plan_report",
    "plan_sequences",
]
