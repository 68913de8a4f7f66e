"""Ten mixtures as a paper would train them, with the truth known: how well the fits foretell the largest runs."""

import numpy as np
import pytest

from lingua_synth.scaling import DataLaw, JointLaw, ModelLaw, holdout, simulate_study


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "single", "both_budget", "both_size"), [(0.001, 0.0013, 0.0012, 0.0012), (0.003, 0.0041, 0.0030, 0.0030)]
)
def test_the_largest_budget_and_size_are_foretold(noise, single, both_budget, both_size):
    # The errors are against runs, which scatter themselves: on average 0.8 of the noise is theirs.
    errors = {"data": [], "model": [], "joint, budget": [], "joint, size": []}
    for seed in range(8):
        runs, _ = simulate_study("mixtures", noise=noise, seed=seed)
        for mixture in runs.mixtures:
            mine = runs.select(mixture=mixture)
            N, D, loss = mine.N(), mine["tokens"], mine["loss_macro"]
            at_1b, largest = mine["size"] == "1B", mine["size"] == "3B"
            errors["data"].append(holdout(DataLaw(), D=D[at_1b], loss=loss[at_1b], test=D[at_1b] > 150e9).error)
            for budget in np.unique(D[largest]):
                at = budget == D
                errors["model"].append(holdout(ModelLaw(), N=N[at], loss=loss[at], test=largest[at]).error)
            errors["joint, budget"].append(holdout(JointLaw(), N=N, D=D, loss=loss, test=D > 150e9).error)
            errors["joint, size"].append(holdout(JointLaw(), N=N, D=D, loss=loss, test=largest).error)
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    assert mean["data"] < single and mean["model"] < single, mean
    assert mean["joint, budget"] < both_budget and mean["joint, size"] < both_size, mean
    # One law over all runs knows more than a law of seven budgets or five sizes.
    assert mean["joint, budget"] < 0.85 * mean["data"] and mean["joint, size"] < 0.85 * mean["model"]
