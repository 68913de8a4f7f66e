"""How often to write a checkpoint: the optimum is one, failures drawn at random cost what the formula says."""

import math

import numpy as np
import pytest

from lingua_synth.model.checkpoint_interval import checkpoint_interval, lost_share


@pytest.mark.parametrize(("stall", "mtbf"), [(1, 1e4), (30, 1e4), (600, 3600), (1e4, 1e3), (1e-3, 1e6)])
def test_no_other_interval_loses_less(stall, mtbf):
    best = checkpoint_interval(stall, mtbf, restart_s=120)
    assert best.lost_share == lost_share(best.interval_s, stall, mtbf, restart_s=120)
    for factor in (0.5, 0.97, 1.03, 2):
        assert lost_share(factor * best.interval_s, stall, mtbf, restart_s=120) > best.lost_share
    assert 0 < best.checkpoint_share < best.lost_share < 1


def test_where_checkpoints_are_short_it_is_youngs_interval_and_dalys():
    for stall, mtbf in ((1.0, 1e8), (1e-3, 1e8), (1.0, 1e5), (1.0, 1e6 - 1), (1.0, 1e6 + 1)):
        young = math.sqrt(2 * stall * mtbf)
        assert checkpoint_interval(stall, mtbf).interval_s == pytest.approx(young, rel=stall / young + 1e-7)
        # Daly's expansion.
        x = math.sqrt(stall / (2 * mtbf))
        daly = young * (1 + x / 3 + x * x / 9) - stall
        assert checkpoint_interval(stall, mtbf).interval_s == pytest.approx(daly, rel=1e-7)


@pytest.mark.parametrize(("interval", "stall", "mtbf", "restart"), [(1000, 50, 4000, 300), (300, 100, 500, 0)])
def test_failures_drawn_at_random_cost_what_the_formula_says(interval, stall, mtbf, restart):
    rng = np.random.default_rng(0)
    spent = []
    for _ in range(200):
        seconds = 0.0
        for _ in range(50):
            needed = interval + stall
            while (failure := rng.exponential(mtbf)) < needed:
                seconds += failure
                needed = restart + interval + stall
            seconds += needed
        spent.append(seconds)
    shares = 1 - 50 * interval / np.array(spent)
    error = shares.std() / math.sqrt(len(shares))
    expected = lost_share(interval, stall, mtbf, restart_s=restart)
    assert abs(1 - 50 * interval / np.mean(spent) - expected) < 4 * error < 0.02


def test_a_checkpoint_in_the_background_costs_its_copy_and_what_it_is_late():
    whole = checkpoint_interval(60, 10_000)
    late = checkpoint_interval(2, 10_000, write_s=60)
    free = checkpoint_interval(2, 10_000)
    assert free.interval_s == late.interval_s < whole.interval_s
    assert free.lost_share < late.lost_share < whole.lost_share
    assert late.lost_share == lost_share(late.interval_s, 2, 10_000, restart_s=58)


def test_a_machine_that_fails_at_once_gets_nothing_done():
    assert lost_share(1e6, 1, 1) == 1.0
    for times, message in (
        ((0.0, 10.0), "stops training for some time, stall_s 0"),
        ((-1.0, 10.0), "stall_s is a time in seconds; got -1"),
        ((1.0, 0.0), "mtbf_s is a time in seconds, above 0; got 0"),
        ((1.0, math.inf), "mtbf_s is a time in seconds, above 0; got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoint_interval(*times)
    with pytest.raises(ValueError, match="takes no less, 1"):
        checkpoint_interval(2, 100, write_s=1)
    with pytest.raises(ValueError, match="interval_s is a time above 0"):
        lost_share(0, 1, 100)
