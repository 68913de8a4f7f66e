"""Generations: train, let the model write, train on what it wrote, and so on; does the line of models collapse?

    natural text ──train──> model 0 ──generate──> text 1 ─┐
        └───────────────────────────mix (a regime, exact ratios)──train──> model 1 ──generate──> text 2 ─┐
        └───────────────────────────────────────────────────────────mix──train──> model 2 ...

What becomes of older text when newer comes is the *regime*: replaced, kept beside it, or kept at a fixed budget. Seeds
pair: the regimes of one seed share round 0 and the text its model wrote. Every round is measured (held-out loss, loss
on rare tokens, types and tail of the text at equal tokens) and each sign of collapse is tested over the rounds.
"""

from lingua_synth.generations.args import GenerationsArgs, validate_generations
from lingua_synth.generations.collapse import STATISTICS, round_tests, statistic_tests
from lingua_synth.generations.plan import REGIMES, Training, budget_of, mixture_of, plan_round
from lingua_synth.generations.report import write_generations_report
from lingua_synth.generations.run import run_generations

__all__ = [
    "REGIMES",
    "STATISTICS",
    "GenerationsArgs",
    "Training",
    "budget_of",
    "mixture_of",
    "plan_round",
    "round_tests",
    "run_generations",
    "statistic_tests",
    "validate_generations",
    "write_generations_report",
]
