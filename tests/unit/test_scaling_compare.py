"""Speed-up, crossings, the best ratio and held-out runs, each against an answer known beforehand."""

import numpy as np
import pytest
from runs_grid import BUDGETS, GRID_D, GRID_N, SIZES

from lingua_synth.scaling import (
    DataLaw,
    InteractionLaw,
    JointLaw,
    ModelLaw,
    best_ratio_in_cell,
    crossing,
    fit,
    holdout,
    speedup,
)


def data_fit(E, B, beta, D=BUDGETS):
    return fit(DataLaw(), D=D, loss=E + B / D**beta)


def joint_fit(n_definition="non_embedding", law=None, **changes):
    truth = {"E": 1.9, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33} | changes
    law = law or JointLaw()
    return fit(law, N=GRID_N, D=GRID_D, loss=law.predict(truth, N=GRID_N, D=GRID_D), n_definition=n_definition)


# --- speed-up ---


def test_equal_constants_give_the_speed_up_in_closed_form():
    # L equal: (B / D_base^beta) = (B' / D^beta), so D_base / D = (B / B')^(1 / beta) at every D.
    result = speedup(data_fit(2.0, 1600.0, 0.4), data_fit(2.0, 800.0, 0.4), [1e9, 1e10, 3e12])
    assert result.factor == pytest.approx(2 ** (1 / 0.4), rel=1e-6)
    assert not result.beyond_reach.any()
    assert result.warnings == []


def test_speed_up_against_itself_is_one_and_inverts():
    a, b = data_fit(2.0, 1500.0, 0.33), data_fit(2.1, 1000.0, 0.33)
    assert speedup(a, a, BUDGETS).factor == pytest.approx(np.ones(7), rel=1e-9)
    there = speedup(a, b, 1e10)
    back = speedup(b, a, there.factor * 1e10)
    assert there.factor * back.factor == pytest.approx(1, rel=1e-9)


def test_beyond_reach_is_said_and_not_a_number():
    base, other = data_fit(2.2, 1500.0, 0.33), data_fit(2.0, 1500.0, 0.33)
    D = np.geomspace(1e9, 1e13, 30)
    result = speedup(base, other, D)
    assert np.array_equal(result.beyond_reach, other.predict(D=D) <= base.params["E_at_N"])
    assert result.beyond_reach.any() and not result.beyond_reach.all()
    assert np.isinf(result.factor[result.beyond_reach]).all()
    assert np.isfinite(result.factor[~result.beyond_reach]).all()
    assert np.isinf(result.extrapolation_factor[result.beyond_reach]).all()
    assert "beyond reach" in str(result)
    plain = result.to_dict()
    assert plain["factor"][-1] is None
    assert plain["null_because"]["factor[29]"] == "infinite"
    # At equal loss by definition.
    reached = ~result.beyond_reach
    assert base.predict(D=result.factor[reached] * D[reached]) == pytest.approx(result.loss[reached], rel=1e-9)


def test_a_budget_far_beyond_the_base_s_runs_is_marked():
    result = speedup(data_fit(2.0, 1600.0, 0.4), data_fit(2.0, 800.0, 0.4), [1e9, 1e12])
    assert result.extrapolation_factor[0] == 1
    assert result.extrapolation_factor[1] == pytest.approx(10 * 2**2.5, rel=1e-6)
    assert "times beyond the base's runs" in str(result)


def test_joint_and_interaction_laws_compare_at_one_size():
    base, other = joint_fit(), joint_fit(B=750.0)
    assert speedup(base, other, [1e10, 1e11], N=1e9).factor == pytest.approx(2 ** (1 / 0.33), rel=1e-6)
    interaction = joint_fit(law=InteractionLaw(), c=0.0)
    assert speedup(interaction, other, 1e10, N=1e9).factor == pytest.approx(2 ** (1 / 0.33), rel=1e-4)
    assert speedup(base, other, 1e10, N=SIZES).factor.shape == (6,)


def test_what_cannot_be_compared_is_refused():
    data, joint = data_fit(2.0, 1500.0, 0.33), joint_fit()
    model = fit(ModelLaw(), N=SIZES, loss=2 + 400 / SIZES**0.34)
    with pytest.raises(ValueError, match=r"ModelLaw .* has no D"):
        speedup(data, model, 1e10)
    with pytest.raises(ValueError, match="JointLaw depends on N"):
        speedup(data, joint, 1e10)
    with pytest.raises(ValueError, match="leave N out"):
        speedup(data, data, 1e10, N=1e9)
    with pytest.raises(ValueError, match=r"count N differently \(non_embedding and total\)"):
        speedup(joint, joint_fit("total"), 1e10, N=1e9)
    with pytest.raises(ValueError, match="D must be positive"):
        speedup(data, data, -1)
    with pytest.raises(ValueError, match="N must be positive"):
        crossing(joint, joint, N=0)
    with pytest.raises(ValueError, match="one N at a time"):
        crossing(joint, joint, N=SIZES)
    with pytest.raises(ValueError, match="0 < lowest < highest"):
        crossing(data, data, between=(1e10, 1e9))
    with pytest.raises(ValueError, match="equal everywhere"):
        crossing(data, data)


def test_an_unidentifiable_fit_is_named_in_the_answer():
    flat = fit(DataLaw(), D=BUDGETS[:3], loss=[4.0, 3.5, 3.2])
    result = speedup(data_fit(2.0, 1500.0, 0.33), flat, 1e10)
    assert "the other fit is not identifiable: fewer points" in result.warnings[0]


# --- crossings ---


def test_a_crossing_lies_where_it_was_planted():
    # Equal at D = 20B by construction: 2.0 + 1500 / D^0.33 = E + 2500 / D^0.37.
    at = 2e10
    E = 2.0 + 1500 / at**0.33 - 2500 / at**0.37
    found = crossing(data_fit(2.0, 1500.0, 0.33), data_fit(E, 2500.0, 0.37))
    assert found == pytest.approx([at], rel=1e-6)
    assert crossing(data_fit(2.0, 1500.0, 0.33), data_fit(E, 2500.0, 0.37), between=(1e9, 1e10)) == []


def test_two_crossings_are_both_found_and_no_third():
    # Differences of two power laws and a constant: zero at 2e9 and at 4e10 by solving for E and B.
    x, y, beta_a, beta_b, B_a = 2e9, 4e10, 0.6, 0.25, 3e4
    B_b = B_a * (x**-beta_a - y**-beta_a) / (x**-beta_b - y**-beta_b)
    E_b = 2.0 + B_a * x**-beta_a - B_b * x**-beta_b
    a, b = data_fit(2.0, B_a, beta_a), data_fit(E_b, B_b, beta_b)
    for low, high, expected in ((1e9, 1e11, [x, y]), (1e7, 1e14, [x, y]), (1e9, 1e10, [x]), (5e9, 1e10, [])):
        assert crossing(a, b, between=(low, high)) == pytest.approx(expected, rel=1e-5)
    assert crossing(a, b) == pytest.approx(crossing(b, a), rel=1e-12)


def test_joint_laws_cross_where_the_data_laws_at_that_size_do():
    a, b = joint_fit(), joint_fit(E=1.95, B=1100.0)
    assert crossing(a, b, N=1e9) == []  # not within the runs
    found = crossing(a, b, N=1e9, between=(1e9, 1e13))
    assert len(found) == 1
    assert found[0] == pytest.approx((400 / 0.05) ** (1 / 0.33), rel=1e-4)
    assert a.predict(N=1e9, D=found[0]) == pytest.approx(b.predict(N=1e9, D=found[0]), rel=1e-12)


# --- best ratio ---


def test_a_quadratic_s_minimum_is_found_exactly_whatever_the_grid():
    ratio = np.array([0.0, 0.1, 0.33, 0.67, 1.0])
    result = best_ratio_in_cell(ratio, 3 + 0.2 * (ratio - 0.3) ** 2)
    assert result.ratio == pytest.approx(0.3, rel=1e-12)
    assert result.loss == pytest.approx(3, rel=1e-14)
    assert result.coefficients == pytest.approx((3.018, -0.12, 0.2), rel=1e-12)
    assert result.rms_residual < 1e-14
    assert (result.grid_ratio, result.at_edge, result.grid_at_edge) == (0.33, False, False)
    order = [3, 0, 4, 2, 1]
    assert best_ratio_in_cell(ratio[order], (3 + 0.2 * (ratio - 0.3) ** 2)[order]) .ratio == result.ratio  # fmt: skip


@pytest.mark.parametrize(
    ("vertex", "bend", "ratio"),
    [(-0.2, 0.3, 0.0), (1.5, 0.3, 0.8), (0.3, -0.3, 0.8), (0.6, -0.3, 0.0)],
)
def test_a_minimum_beyond_the_grid_is_called_that(vertex, bend, ratio):
    grid = np.array([0.0, 0.2, 0.4, 0.6, 0.8])
    result = best_ratio_in_cell(grid, 3 + bend * (grid - vertex) ** 2)
    assert result.at_edge
    assert result.grid_at_edge
    assert result.ratio == result.grid_ratio == ratio
    assert "at the edge of the grid" in str(result)


def test_seeds_of_one_ratio_are_averaged_on_the_grid():
    ratio = np.repeat([0.0, 0.5, 1.0], 2)
    result = best_ratio_in_cell(ratio, [3.2, 3.0, 2.9, 3.1, 2.8, 3.4])
    assert result.num_ratios == 3
    assert result.grid_ratio == 0.5
    assert result.grid_loss == pytest.approx(3.0)
    assert result.loss == pytest.approx(3.0)  # through the means of three ratios


def test_what_has_no_best_ratio():
    with pytest.raises(ValueError, match=r"at least 3 different ratios; got \[0.0, 1.0\]"):
        best_ratio_in_cell([0, 1, 1], [3.0, 3.1, 3.2])
    with pytest.raises(ValueError, match=r"share in \[0, 1\]; got 33"):
        best_ratio_in_cell([0, 33, 100], [3.0, 3.1, 3.2])
    with pytest.raises(ValueError, match=r"share in \[0, 1\]; got nan"):
        best_ratio_in_cell([0, np.nan, 1], [3.0, 3.1, 3.2])
    with pytest.raises(ValueError, match="shapes"):
        best_ratio_in_cell([0, 0.5, 1], [3.0, 3.1])
    with pytest.raises(ValueError, match="loss must be positive"):
        best_ratio_in_cell([0, 0.5, 1], [3.0, 3.1, np.nan])


# --- held-out runs ---


def test_a_law_foretells_its_own_runs_and_the_naive_guess_does_not():
    D = np.append(BUDGETS, 2e11)
    loss = 2.4 + 1500 / D**0.33
    result = holdout(DataLaw(), D=D, loss=loss, test=D > 1.5e11)
    assert result.num_test == 1
    assert result.error < 1e-9
    assert result.naive_loss == loss[6]
    assert result.naive_error == pytest.approx(loss[6] / loss[7] - 1, rel=1e-12)
    assert result.extrapolation_factor == pytest.approx(2)
    assert result.fit.num_points == 7


def test_the_error_is_the_mean_relative_one():
    D = np.append(BUDGETS, [2e11, 4e11])
    loss = 2.4 + 1500 / D**0.33
    loss[7:] *= [1.01, 0.98]
    result = holdout(DataLaw(), D=D, loss=loss, test=D > 1.5e11)
    assert result.error == pytest.approx((0.01 / 1.01 + 0.02 / 0.98) / 2, rel=1e-6)
    assert f"{100 * result.error:.3g} % on 2 held out" in str(result)
    assert result.to_dict()["num_test"] == 2


def test_the_naive_guess_is_the_largest_compute_averaged_over_seeds():
    N, D = np.tile(GRID_N, 2), np.tile(GRID_D, 2)
    loss = JointLaw().predict({"E": 1.9, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33}, N=N, D=D)
    loss[:42] *= 1.01
    result = holdout(JointLaw(), N=N, D=D, loss=loss, test=N > 2.5e9)
    largest = (N == 2e9) & (D == 1e11)
    assert result.naive_loss == pytest.approx(loss[largest].mean(), rel=1e-14)


def test_bad_masks_are_refused():
    loss = 2.4 + 1500 / BUDGETS**0.33
    with pytest.raises(ValueError, match="holds out none of the 7 runs"):
        holdout(DataLaw(), D=BUDGETS, loss=loss, test=BUDGETS > 1e12)
    with pytest.raises(ValueError, match="True or False for each of the 7 runs; got int64"):
        holdout(DataLaw(), D=BUDGETS, loss=loss, test=np.ones(7, dtype=np.int64))
    with pytest.raises(ValueError, match="there are 2 runs"):
        holdout(DataLaw(), D=BUDGETS, loss=loss, test=BUDGETS > 3e9)
