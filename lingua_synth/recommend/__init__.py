"""What to train on by cost: natural text only, more of it, or a share of one kind of synthetic text.

`lingua-synth recommend`, and `advise` in Python: the laws of a runs table, what generation costs, what training costs
and what natural text costs, joined into one answer with an interval, its break-evens and what would change it.
`lingua_synth.scaling.recommend` is the same question where text is free.
"""

from lingua_synth.recommend.advice import Advice, Change
from lingua_synth.recommend.advise import advise
from lingua_synth.recommend.generators import Generator, read_generators
from lingua_synth.recommend.planner import Decision, Outcome, Plan, Planner, Question
from lingua_synth.recommend.repeats import Repeats, fresh_runs, repeats_of
from lingua_synth.recommend.surface import Surface
from lingua_synth.recommend.training import TrainingCost, size_in_words, training_cost

__all__ = [
    "Advice",
    "Change",
    "Decision",
    "Generator",
    "Outcome",
    "Plan",
    "Planner",
    "Question",
    "Repeats",
    "Surface",
    "TrainingCost",
    "advise",
    "fresh_runs",
    "read_generators",
    "repeats_of",
    "size_in_words",
    "training_cost",
]
