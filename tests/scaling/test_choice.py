"""Ensembles, the scoreboard of laws, and held-out runs beside the noise they have."""

import itertools
import json

import numpy as np
import pytest
from runs_grid import GRID_D, GRID_N

from lingua_synth.scaling import (
    CrossedLaw,
    DataLaw,
    InteractionLaw,
    JointLaw,
    KaplanLaw,
    Member,
    MixtureLaw,
    ModelLaw,
    TiedLaw,
    choose_law,
    default_members,
    fit,
    fit_ensemble,
    holdout,
)

INTERACTION = {"E": 1.9, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.38, "c": -0.05}


@pytest.fixture(scope="module")
def loss():
    noise = np.exp(0.002 * np.random.default_rng(2).standard_normal(len(GRID_N)))
    return InteractionLaw().predict(INTERACTION, N=GRID_N, D=GRID_D) * noise


# --- ensembles ---


def test_the_ensemble_is_the_median_of_its_fits(loss):
    members = [JointLaw(), TiedLaw(), Member(InteractionLaw(), "mse", compute_power=0.5)]
    both = fit_ensemble(members, N=GRID_N, D=GRID_D, loss=loss)
    singles = [fit(law, N=GRID_N, D=GRID_D, loss=loss) for law in members[:2]]
    singles.append(
        fit(InteractionLaw(), N=GRID_N, D=GRID_D, loss=loss, objective="mse", weights=(GRID_N * GRID_D) ** 0.5)
    )
    N, D = np.array([[1e9], [7e9]]), np.array([1e10, 1e11, 1e12])
    each = np.array([one.predict(N=N, D=D) for one in singles])
    assert both.predict(N=N, D=D) == pytest.approx(np.median(each, axis=0), rel=1e-7)
    low, high = both.spread(N=N, D=D)
    assert low == pytest.approx(each.min(axis=0), rel=1e-7)
    assert high == pytest.approx(each.max(axis=0), rel=1e-7)
    assert list(both.predict_each(N=1e9, D=1e10)) == ["joint", "tied", "interaction mse C^0.5"]
    assert both.constants["tied"] == singles[1].params["E"]
    assert both.predict(N=1e9, D=1e10).shape == ()
    assert both.extrapolation_factor(N=6e9, D=1e11) == pytest.approx(2)
    plain = json.loads(json.dumps(both.to_dict(), allow_nan=False))
    assert plain["members"]["joint"]["params"] == singles[0].params
    assert plain["N"] == GRID_N.tolist()
    assert "median of 3 fits to 42 runs" in str(both)


def test_two_voices_meet_in_logarithms(loss):
    both = fit_ensemble([JointLaw(), KaplanLaw()], N=GRID_N, D=GRID_D, loss=loss)
    each = both.predict_each(N=1e10, D=1e12)
    assert both.predict(N=1e10, D=1e12) == pytest.approx(np.sqrt(each["joint"] * each["kaplan"]), rel=1e-12)


def test_the_default_form_follows_the_runs(loss):
    assert [member.law.name for member in default_members(("N", "D"), 42)] == ["interaction"] * 4
    assert {member.law.name for member in default_members(("D", "N"), 7)} == {"joint"}
    assert {member.law.name for member in default_members(("D", "N"), 5)} == {"tied"}
    assert {member.law.name for member in default_members(("D",), 5)} == {"data"}
    assert fit_ensemble(N=GRID_N, D=GRID_D, loss=loss).num_points == 42
    at = GRID_N == 1e9
    assert fit_ensemble(D=GRID_D[at], loss=loss[at]).members[0].law == DataLaw()
    assert fit_ensemble(N=GRID_N[::7], loss=loss[::7]).members[0].law == ModelLaw()
    with pytest.raises(ValueError, match="for N, D, r name the laws"):
        fit_ensemble(N=GRID_N, D=GRID_D, r=GRID_N * 0, loss=loss)


def test_members_that_cannot_be_fitted_are_named(loss):
    few = slice(0, 42, 8)
    both = fit_ensemble([JointLaw(), TiedLaw(), CrossedLaw()], N=GRID_N[few], D=GRID_D[few], loss=loss[few])
    assert [member.name for member in both.members] == ["joint", "tied"]
    assert both.left_out == ("crossed: 7 parameters for 6 runs",)
    assert "left out: crossed: 7 parameters for 6 runs" in str(both)
    with pytest.raises(ValueError, match="none of the laws can be fitted to these runs; joint: 5 parameters for 3"):
        fit_ensemble([JointLaw()], N=GRID_N[:3], D=GRID_D[:3], loss=loss[:3])


def test_reasons_are_those_of_all_members(loss):
    at = GRID_N == 1e9
    one_size = fit_ensemble([JointLaw(), TiedLaw()], N=GRID_N[at], D=GRID_D[at], loss=loss[at])
    assert not one_size.identifiable
    assert "all runs have one N" in one_size.reasons[0]
    assert fit_ensemble([JointLaw(), TiedLaw()], N=GRID_N, D=GRID_D, loss=loss).identifiable
    # Five runs fix the joint law whatever they are; the tied law has one to spare.
    five = [0, 5, 17, 30, 41]
    both = fit_ensemble([JointLaw(), TiedLaw()], N=GRID_N[five], D=GRID_D[five], loss=loss[five])
    assert "fewer points than parameters + 1" in both.fits[0].reasons[0]
    assert not any("fewer points" in reason for reason in both.reasons)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "no laws were named"),
        (["joint"], "a candidate is a law such as JointLaw"),
        ([JointLaw(), JointLaw()], "joint is named twice"),
        ([JointLaw(), DataLaw()], "must have the same variables"),
    ],
)
def test_lists_that_make_no_ensemble(loss, members, message):
    with pytest.raises(ValueError, match=message):
        fit_ensemble(members, N=GRID_N, D=GRID_D, loss=loss)


# --- the scoreboard ---


def test_the_scoreboard_is_refits_to_the_cheapest_runs(loss):
    laws = [JointLaw(), InteractionLaw()]
    choice = choose_law(laws, N=GRID_N, D=GRID_D, loss=loss, origins=(0.5, 0.8))
    order = np.argsort(GRID_N * GRID_D, kind="stable")
    # Runs 21 and 22, by compute, are equal and stay together; so do those at the other cut.
    compute = (GRID_N * GRID_D)[order]
    cuts = [np.searchsorted(compute, compute[k - 1] * 1.001) for k in (21, 34)] + [42]
    assert choice.origins == tuple(int(cut) for cut in cuts[:2])
    errors = {law.name: [] for law in laws}
    naive = []
    for cut, upto in itertools.pairwise(cuts):
        rows, ahead = order[:cut], order[cut:upto]
        for law in laws:
            small = fit(law, N=GRID_N[rows], D=GRID_D[rows], loss=loss[rows])
            errors[law.name].append(np.abs(small.predict(N=GRID_N[ahead], D=GRID_D[ahead]) / loss[ahead] - 1))
        largest = rows[(GRID_N * GRID_D)[rows] >= compute[cut - 1] * 0.999]
        naive.append(np.abs(loss[largest].mean() / loss[ahead] - 1))
    for score in choice.scores:
        assert score.error == pytest.approx(np.concatenate(errors[score.name]).mean(), rel=1e-6)
        assert score.worst == pytest.approx(np.concatenate(errors[score.name]).max(), rel=1e-6)
        assert score.by_origin == pytest.approx([part.mean() for part in errors[score.name]], rel=1e-6)
    assert choice.naive.error == pytest.approx(np.concatenate(naive).mean(), rel=1e-9)
    assert choice.num_foretold == 42 - cuts[0]
    assert choice.scores[0].name == "interaction"
    assert choice.scores[0].error < choice.scores[1].error < choice.naive.error
    assert choice.best.params == fit(InteractionLaw(), N=GRID_N, D=GRID_D, loss=loss).params
    assert choice.predict(N=5e9, D=1e12) == fit_ensemble(N=GRID_N, D=GRID_D, loss=loss).predict(N=5e9, D=1e12)


def test_the_order_of_rows_changes_no_score(loss):
    order = np.random.default_rng(4).permutation(42)
    laws = [JointLaw(), TiedLaw()]
    one = choose_law(laws, N=GRID_N, D=GRID_D, loss=loss, origins=(0.6,))
    two = choose_law(laws, N=GRID_N[order], D=GRID_D[order], loss=loss[order], origins=(0.6,))
    assert [(s.name, s.error, s.worst) for s in one.scores] == [(s.name, s.error, s.worst) for s in two.scores]
    assert one.ensemble_score.error == two.ensemble_score.error


def test_ties_and_leads_are_told_apart():
    rng = np.random.default_rng(0)
    N, D = np.tile(GRID_N, 2), np.tile(GRID_D, 2)
    loss = InteractionLaw().predict(INTERACTION, N=N, D=D) * np.exp(0.001 * rng.standard_normal(84))
    choice = choose_law([InteractionLaw(), KaplanLaw(), Member(InteractionLaw(), "mse")], N=N, D=D, loss=loss)
    tied = {score.name: score.tied for score in choice.scores}
    assert tied["kaplan"] is False
    assert tied["interaction"] and tied["interaction mse"]
    text = str(choice)
    assert "as the largest run" in text and "ensemble" in text and "tie" in text
    assert json.loads(json.dumps(choice.to_dict(), allow_nan=False))["scores"][0]["tied_with_best"] is True


def test_all_forms_are_tried_unless_named(loss):
    choice = choose_law(N=GRID_N, D=GRID_D, loss=loss, origins=(0.7,))
    assert {score.name for score in choice.scores} == {
        "joint", "tied", "interaction", "crossed", "kaplan", "offset_kaplan",
    }  # fmt: skip
    assert np.isinf(choice.scores[1].behind_error)
    at = GRID_N == 1e9
    curve = choose_law(D=np.geomspace(1e9, 1e11, 12), loss=2 + 1500 / np.geomspace(1e9, 1e11, 12) ** 0.33)
    assert {score.name for score in curve.scores} == {"data", "rectified"}
    few = choose_law(D=GRID_D[at], loss=loss[at], origins=(0.6, 0.8))
    assert [score.name for score in few.scores] == ["data", "rectified"] or few.left_out


def test_an_origin_with_too_few_runs_is_skipped_for_all(loss):
    cheap = np.argsort(GRID_N * GRID_D, kind="stable")[:20]
    choice = choose_law(
        [TiedLaw(), InteractionLaw()], N=GRID_N[cheap], D=GRID_D[cheap], loss=loss[cheap], origins=(0.2, 0.6, 0.8)
    )
    # Four runs are as many as the tied law has parameters, and fewer than those of the interaction law.
    assert len(choice.origins) == 2
    assert min(choice.origins) > 6
    assert {len(score.by_origin) for score in choice.scores} == {2}


def test_laws_with_more_variables_are_compared_too():
    rng = np.random.default_rng(6)
    N, D, r = (axis.ravel() for axis in np.meshgrid([1e8, 3e8, 1e9], [1e9, 5e9, 2e10, 6e10], [0.0, 0.3, 0.6, 1.0]))
    loss = JointLaw().predict({"E": 1.9, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33}, N=N, D=D)
    loss = loss * (1 + 0.05 * (r - 0.4) ** 2) * np.exp(0.001 * rng.standard_normal(len(N)))
    choice = choose_law([MixtureLaw()], N=N, D=D, r=r, loss=loss, origins=(0.7,))
    assert choice.scores[0].error < 0.02
    assert choice.ensemble.members[0].law == MixtureLaw()
    with pytest.raises(ValueError, match="name the candidates"):
        choose_law(N=N, D=D, r=r, loss=loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"origins": (0.9, 0.5)}, "ascending shares"),
        ({"origins": (0.5, 1.0)}, "ascending shares"),
        ({"N": GRID_N[:6], "D": GRID_D[:6], "loss": GRID_N[:6] ** -0.1}, "too few to compare laws"),
        ({"N": np.full(9, 1e9), "D": np.full(9, 1e9), "loss": np.full(9, 3.0)}, "differ too little in compute"),
        ({"N": GRID_N[:5]}, "the lengths differ"),
    ],
)
def test_what_cannot_be_scored_is_said(loss, arguments, message):
    given = {"N": GRID_N, "D": GRID_D, "loss": loss} | arguments
    with pytest.raises(ValueError, match=message):
        choose_law([JointLaw()], **given)


# --- held-out runs ---


def test_an_ensemble_is_held_out_like_a_law(loss):
    test = GRID_N > 2.5e9
    result = holdout(None, N=GRID_N, D=GRID_D, loss=loss, test=test)
    small = fit_ensemble(N=GRID_N[~test], D=GRID_D[~test], loss=loss[~test])
    predicted = small.predict(N=GRID_N[test], D=GRID_D[test])
    assert result.error == pytest.approx(np.mean(np.abs(predicted / loss[test] - 1)), rel=1e-12)
    assert result.error < 0.005 < result.naive_error
    assert "median of interaction" in str(result)
    named = holdout([JointLaw(), TiedLaw()], N=GRID_N, D=GRID_D, loss=loss, test=test)
    assert json.loads(json.dumps(named.to_dict(), allow_nan=False))["fit"]["members"].keys() == {"joint", "tied"}
    with pytest.raises(ValueError, match="belong to the members"):
        holdout(None, N=GRID_N, D=GRID_D, loss=loss, test=test, objective="mse")
    with pytest.raises(ValueError, match="differ in length"):
        holdout(None, N=GRID_N[:5], D=GRID_D, loss=loss, test=test)
    with pytest.raises(ValueError, match="N must be positive"):
        holdout(None, N=-GRID_N, D=GRID_D, loss=loss, test=test)


def test_the_noise_of_repeated_runs_is_the_floor():
    rng = np.random.default_rng(8)
    N, D = np.repeat(GRID_N, 4), np.repeat(GRID_D, 4)
    loss = InteractionLaw().predict(INTERACTION, N=N, D=D) * np.exp(0.004 * rng.standard_normal(len(N)))
    result = holdout(InteractionLaw(), N=N, D=D, loss=loss, test=N > 2.5e9)
    assert result.noise == pytest.approx(0.004, rel=0.15)
    assert result.noise_floor == pytest.approx(result.noise * np.sqrt(2 / np.pi))
    # The right law comes near it, and can not be below it but by chance.
    assert 0.8 * result.noise_floor < result.error < 1.5 * result.noise_floor
    assert "42 cells of 168 repeated runs" in str(result)
    given = holdout(InteractionLaw(), N=N, D=D, loss=loss, test=N > 2.5e9, noise=0.001)
    assert given.noise_floor == pytest.approx(0.001 * np.sqrt(2 / np.pi))
    assert given.noise_source == "given"
    with pytest.raises(ValueError, match="noise is a relative standard deviation"):
        holdout(InteractionLaw(), N=N, D=D, loss=loss, test=N > 2.5e9, noise=-1)


def test_copies_of_a_row_are_no_seeds(loss):
    N, D, double = (np.tile(values, 2) for values in (GRID_N, GRID_D, loss))
    result = holdout(JointLaw(), N=N, D=D, loss=double, test=N > 2.5e9)
    assert result.noise is None and result.noise_floor is None
    assert result.to_dict()["noise_floor"] is None
    assert "noise of the runs" not in str(result)


def test_other_columns_can_be_held_out_too():
    D = np.geomspace(1e9, 1e11, 8)
    result = holdout(DataLaw(), D=D, loss=2 + 1500 / D**0.33, test=D > 5e10, asymmetry=3.0)
    assert result.error < 1e-8
    assert result.fit.asymmetry == 3.0
