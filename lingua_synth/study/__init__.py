"""Studies: a grid of trainings planned, launched, resumed and collected into one runs table."""

from lingua_synth.study.args import GridArgs, MixtureArgs, StudyArgs, StudySourceArgs, read_study
from lingua_synth.study.collect import Collected, collect
from lingua_synth.study.launch import describe_launch, launch
from lingua_synth.study.launch_args import LaunchArgs, SlurmArgs
from lingua_synth.study.plan import PlannedRun, plan_study
from lingua_synth.study.status import StudyStatus, study_status

__all__ = [
    "Collected",
    "GridArgs",
    "LaunchArgs",
    "MixtureArgs",
    "PlannedRun",
    "SlurmArgs",
    "StudyArgs",
    "StudySourceArgs",
    "StudyStatus",
    "collect",
    "describe_launch",
    "launch",
    "plan_study",
    "read_study",
    "study_status",
]
