"""Studies: a grid of trainings planned, launched, resumed and collected into one runs table."""

from lingua_synth.study.collect import collect
from lingua_synth.study.launch import launch
from lingua_synth.study.plan import MixtureArgs, StudyArgs, plan_study, study_status

__all__ = ["MixtureArgs", "StudyArgs", "collect", "launch", "plan_study", "study_status"]
