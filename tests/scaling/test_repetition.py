"""Laws of repeated data: formulas, derivatives, planted laws, and public runs of up to a thousand passes."""

import json

import numpy as np
import pytest

from lingua_synth.scaling import JointLaw, MixtureLaw, OverfitLaw, RepetitionLaw, fit, value_of_repeats
from lingua_synth.scaling.repetition import effective_tokens, log_worth_of_repeats

TRUTHS = [
    (RepetitionLaw(), {"E": 1.87, "A": 520.0, "alpha": 0.35, "B": 1490.0, "beta": 0.36, "R_D": 15.4}),
    (
        RepetitionLaw(size_decay=True),
        {"E": 1.87, "A": 520.0, "alpha": 0.35, "B": 1490.0, "beta": 0.36, "R_D": 15.4, "R_N": 5.3},
    ),
    (
        OverfitLaw(),
        {
            "E": 1.9, "A": 520.0, "alpha": 0.35, "B": 1490.0, "beta": 0.36, "R_D": 20.0, "k": 0.003, "s": 0.8,
            "t": 0.4,
        },
    ),
]  # fmt: skip


def points(num=160):
    rng = np.random.default_rng(2)
    U = 10 ** rng.uniform(8, 10.5, num)
    return {"N": 10 ** rng.uniform(7.5, 9.7, num), "D": U * 10 ** rng.uniform(-0.5, 2, num), "U": U}


def by_hand(law, p, x):
    unique = np.minimum(x["U"], x["D"])
    repeats = x["D"] / unique - 1
    tokens = unique + unique * p["R_D"] * (1 - np.exp(-repeats / p["R_D"]))
    size = x["N"]
    if "R_N" in p:
        # The size that the unique tokens feed: both terms fall equally fast with compute there.
        fed = (p["alpha"] * p["A"] / (p["beta"] * p["B"]) * unique ** p["beta"]) ** (1 / p["alpha"])
        base = np.minimum(fed, size)
        size = base + base * p["R_N"] * (1 - np.exp(-(size / base - 1) / p["R_N"]))
    loss = p["E"] + p["A"] / size ** p["alpha"] + p["B"] / tokens ** p["beta"]
    if "k" in p:
        loss = loss + p["k"] * repeats ** p["s"] * (x["N"] / x["U"]) ** p["t"]
    return loss


@pytest.mark.parametrize(("law", "truth"), TRUTHS, ids=lambda value: repr(value)[:30])
def test_values_and_gradients_are_the_formula_s(law, truth):
    x = points()
    assert law.predict(truth, **x) == pytest.approx(by_hand(law, truth, x), rel=1e-12)
    gradient = law.gradient(truth, **x)
    for k, name in enumerate(law.parameters):
        h = 1e-4 * truth[name]
        above, below = (by_hand(law, truth | {name: truth[name] + sign * h}, x) for sign in (1, -1))
        scale = np.abs(gradient[:, k]).max()
        assert gradient[:, k] == pytest.approx((above - below) / (2 * h), rel=1e-5, abs=1e-6 * scale), name


@pytest.mark.parametrize(("law", "truth"), TRUTHS, ids=lambda value: repr(value)[:30])
def test_planted_laws_come_back_in_any_unit_and_order(law, truth):
    x = points()
    loss = by_hand(law, truth, x)
    fitted = fit(law, **x, loss=loss, objective="mse")
    assert fitted.converged and fitted.params == pytest.approx(truth, rel=1e-5)
    noisy = loss * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(loss)))
    one = fit(law, **x, loss=noisy)
    order = np.random.default_rng(1).permutation(len(loss))
    assert fit(law, **{name: column[order] for name, column in x.items()}, loss=noisy[order]).params == one.params
    units = {"N": 1e-6, "D": 1e-9, "U": 1e-9}
    scaled = {name: column * units[name] for name, column in x.items()}
    two = fit(law, **scaled, loss=2 * noisy)
    assert two.predict(**scaled) == pytest.approx(2 * one.predict(**x), rel=1e-7)
    # Numbers without a unit are the same ones.
    for name in set(law.parameters) & {"alpha", "beta", "R_D", "R_N", "s", "t"}:
        assert two.params[name] == pytest.approx(one.params[name], rel=1e-5)


# --- runs of one size, and of sources that are passed over unequally ---

SHARED = {"natural": 0.75, "synthetic": 0.25}


def unequal(num=120):
    rng = np.random.default_rng(4)
    x = {"N": 10 ** rng.uniform(7.5, 9.7, num), "D": 10 ** rng.uniform(8, 11, num)}
    return x | {f"U_{source}": share * x["D"] / 10 ** rng.uniform(-0.5, 1.5, num) for source, share in SHARED.items()}


def by_source(p, x):
    tokens = 0.0
    for source, share in SHARED.items():
        unique = np.minimum(x[f"U_{source}"], share * x["D"])
        repeats = share * x["D"] / unique - 1
        tokens = tokens + unique * (1 + p["R_D"] * (1 - np.exp(-repeats / p["R_D"])))
    size = p["A"] / x["N"] ** p["alpha"] if "A" in p else 0.0
    return p["E" if "A" in p else "E_at_N"] + size + p["B"] / tokens ** p["beta"]


@pytest.mark.parametrize("size", [True, False])
def test_each_source_has_its_own_passes(size):
    truth = TRUTHS[0][1] if size else {"E_at_N": 2.1, "B": 1490.0, "beta": 0.36, "R_D": 15.4}
    law = RepetitionLaw(size=size, shares=SHARED)
    x = {name: column for name, column in unequal().items() if name in law.variables}
    loss = by_source(truth, x)
    assert law.predict(truth, **x) == pytest.approx(loss, rel=1e-12)
    gradient = law.gradient(truth, **x)
    for k, name in enumerate(law.parameters):
        h = 1e-4 * truth[name]
        above, below = (by_source(truth | {name: truth[name] + sign * h}, x) for sign in (1, -1))
        assert gradient[:, k] == pytest.approx((above - below) / (2 * h), rel=1e-5, abs=1e-7), name
    fitted = fit(law, **x, loss=loss, objective="mse")
    assert fitted.converged and fitted.identifiable and fitted.params == pytest.approx(truth, rel=1e-5)
    scaled = {name: column * (1e-6 if name == "N" else 1e-9) for name, column in x.items()}
    assert fit(law, **scaled, loss=2 * loss, objective="mse").params["R_D"] == pytest.approx(15.4, rel=1e-5)
    value = value_of_repeats(fitted, (4.0,), n=20)
    assert value.most_passes == pytest.approx(max(np.max(SHARED[s] * x["D"] / x[f"U_{s}"]) for s in SHARED))
    assert value.worth[0] == pytest.approx(1 + 15.4 * (1 - np.exp(-3 / 15.4)), rel=1e-4)


def test_equal_passes_over_every_source_are_those_over_all():
    x = unequal(20)
    U = x["D"] / 5
    even = {f"U_{source}": share * U for source, share in SHARED.items()}
    one = RepetitionLaw().predict(TRUTHS[0][1], N=x["N"], D=x["D"], U=U)
    assert RepetitionLaw(shares=SHARED).predict(TRUTHS[0][1], N=x["N"], D=x["D"], **even) == pytest.approx(one, 1e-14)
    assert effective_tokens(x["D"], U, 15.4) == pytest.approx(U * (1 + 15.4 * (1 - np.exp(-4 / 15.4))), rel=1e-13)
    assert (effective_tokens([3.0, 5.0], [7.0, 5.0], 15.4) == [3.0, 5.0]).all()
    assert RepetitionLaw(size=False) != RepetitionLaw() != RepetitionLaw(shares=SHARED)
    with pytest.raises(ValueError, match="shares of sources are positive and sum to 1"):
        RepetitionLaw(shares={"a": 0.5, "b": 0.4})
    with pytest.raises(ValueError, match="size_decay takes runs of several sizes"):
        RepetitionLaw(True, size=False)


def test_a_first_pass_is_the_joint_law():
    p = TRUTHS[0][1]
    plain = {name: p[name] for name in JointLaw().parameters}
    N, D = np.array([1e8, 1e9]), np.array([1e9, 1e10])
    assert RepetitionLaw().predict(p, N=N, D=D, U=D) == pytest.approx(JointLaw().predict(plain, N=N, D=D), rel=1e-14)
    assert (RepetitionLaw().predict(p, N=N, D=D, U=7 * D) == RepetitionLaw().predict(p, N=N, D=D, U=D)).all()


def test_the_worth_of_repeats_by_its_definition():
    passes, decay = np.array([0.3, 1.0, 2.0, 5.0, 400.0]), 4.0
    worth, slope = log_worth_of_repeats(np.log(passes), np.array(decay))
    repeats = np.maximum(passes, 1) - 1
    assert np.exp(worth) == pytest.approx((1 + decay * (1 - np.exp(-repeats / decay))) / np.maximum(passes, 1))
    above, below = (log_worth_of_repeats(np.log(passes), np.array(decay + h))[0] for h in (1e-5, -1e-5))
    assert slope == pytest.approx((above - below) / 2e-5, abs=1e-9)
    # Of passes without end U (1 + R*) new tokens are left.
    assert np.exp(worth[-1]) * passes[-1] == pytest.approx(1 + decay)


def test_only_the_penalty_follows_a_loss_that_rises():
    law, truth = TRUTHS[2]
    x = {"N": np.full(5, 1e9), "D": 1e8 * np.array([1.0, 4.0, 16.0, 64.0, 256.0]), "U": np.full(5, 1e8)}
    loss = law.predict(truth | {"k": 0.02}, **x)
    assert loss[1] < loss[0] and loss[-1] > loss[-2]
    decayed = TRUTHS[0][0].predict(TRUTHS[0][1], **x)
    assert (np.diff(decayed) < 0).all()


@pytest.fixture(scope="module")
def repeated_runs(shared_table):
    """Runs with at least 100M unique tokens, those that diverged (loss 7 and more) left out; the last fifth by compute
    is held out."""
    table = shared_table("datablations")
    keep = (table["loss"] < 7) & (table["unique_tokens"] >= 1e8 - 1)
    names = {"N": "params", "D": "tokens", "U": "unique_tokens", "loss": "loss"}
    columns = {name: table[column][keep] for name, column in names.items()}
    compute = columns["N"] * columns["D"]
    return columns, compute > np.quantile(compute, 0.8)


def test_public_runs_with_repeats(repeated_runs):
    columns, held = repeated_runs
    assert held.sum() == 57 and (~held).sum() == 229
    errors = {}
    for law in (JointLaw(), RepetitionLaw(), RepetitionLaw(size_decay=True), OverfitLaw()):
        x = {name: columns[name] for name in law.variables}
        fitted = fit(law, **{name: v[~held] for name, v in x.items()}, loss=columns["loss"][~held])
        assert fitted.converged
        predicted = fitted.predict(**{name: v[held] for name, v in x.items()})
        errors[repr(law)] = float(np.mean(np.abs(predicted / columns["loss"][held] - 1)))
    assert errors["RepetitionLaw(size_decay=True)"] <= 0.025 and errors["OverfitLaw()"] <= 0.025
    assert errors["JointLaw()"] > 0.05, "without repetition twice as far off"


# --- what repeats are worth ---


def simulated(law, truth, seed=0, noise=0.003, num=160):
    x = points(num)
    return x, by_hand(law, truth, x) * np.exp(noise * np.random.default_rng(seed).standard_normal(num))


def test_the_worth_of_passes_is_the_planted_one():
    law, truth = TRUTHS[0]
    x, loss = simulated(law, truth, noise=0.0005)
    value = value_of_repeats(fit(law, **x, loss=loss, objective="mse"), n=200)
    expected = 1 + 15.4 * (1 - np.exp(-(value.passes - 1) / 15.4))
    assert value.worth == pytest.approx(expected, rel=0.03)
    assert (value.worth_low < value.worth).all() and (value.worth < value.worth_high).all()
    assert value.name == "R_D" and value.interval[0] < 15.4 < value.interval[1]
    assert value.most_passes == pytest.approx(np.max(x["D"] / x["U"]))
    again = value_of_repeats(fit(law, **x, loss=loss, objective="mse"), n=200)
    assert json.dumps(again.to_dict()) == json.dumps(value.to_dict())


def test_a_penalty_counts_against_repeats():
    law, truth = TRUTHS[2]
    x, loss = simulated(law, truth, noise=0.0005)
    value = value_of_repeats(fit(law, **x, loss=loss, objective="mse"), (2.0, 16.0, 100.0), N=1e9, U=1e9, n=100)
    for passes, worth in zip(value.passes, value.worth, strict=True):
        # So many new tokens, seen once, give the same loss.
        repeated = law.predict(truth, N=1e9, D=passes * 1e9, U=1e9)
        assert law.predict(truth, N=1e9, D=worth * 1e9, U=worth * 1e9) == pytest.approx(repeated, rel=1e-3)
    assert value.worth[2] < value.worth[1], "more passes, less worth"
    assert "at N 1e+09, U 1e+09" in str(value)


@pytest.mark.slow
def test_intervals_of_the_worth_hold_the_planted_one():
    law, truth = TRUTHS[0]
    expected = 1 + 15.4 * (1 - np.exp(-(np.array([4.0, 16.0]) - 1) / 15.4))
    held, R_held = [], []
    for seed in range(200):
        x, loss = simulated(law, truth, seed=seed)
        value = value_of_repeats(fit(law, **x, loss=loss, objective="mse"), (4.0, 16.0), n=200, seed=seed)
        held.append((value.worth_low <= expected) & (expected <= value.worth_high))
        R_held.append(value.interval[0] <= 15.4 <= value.interval[1])
    assert ((np.mean(held, axis=0) >= 0.90) & (np.mean(held, axis=0) <= 0.985)).all(), np.mean(held, axis=0)
    assert 0.90 <= np.mean(R_held) <= 0.985


def test_the_decay_of_public_runs_is_weakly_identified(repeated_runs):
    """Fits to all runs and to those with 1B unique tokens or more: R_D differs, four passes are worth the same."""
    columns, _ = repeated_runs
    found = {}
    for least in (0.0, 1e9 - 1):
        rows = columns["U"] >= least
        x = {name: column[rows] for name, column in columns.items()}
        cells = [f"{N} {D} {U}" for N, D, U in zip(x["N"], x["D"], x["U"], strict=True)]
        for law in (RepetitionLaw(), OverfitLaw()):
            value = value_of_repeats(fit(law, **x), (4.0,), n=200, unit=cells)
            assert value.weakly_identified and "WEAKLY IDENTIFIED" in str(value), value.why
            found[law.name, least] = value
    assert pytest.approx(found["repetition", 1e9 - 1].R, rel=0.2) != found["repetition", 0.0].R
    assert max(v.worth[0] for v in found.values()) < 1.15 * min(v.worth[0] for v in found.values())


def test_what_says_nothing_of_repeats():
    law, truth = TRUTHS[0]
    x, loss = simulated(law, truth)
    once = x | {"U": x["D"] * 2}
    with pytest.raises(ValueError, match="no run of this fit sees a token twice"):
        value_of_repeats(fit(law, **once, loss=loss))
    with pytest.raises(ValueError, match=r"JointLaw .* knows nothing of repeats"):
        value_of_repeats(fit(JointLaw(), N=x["N"], D=x["D"], loss=loss))
    fitted = fit(law, **x, loss=loss)
    with pytest.raises(ValueError, match="passes are at least 1"):
        value_of_repeats(fitted, (0.5, 2.0))
    with pytest.raises(ValueError, match="does not depend on N and U"):
        value_of_repeats(fitted, N=1e9)
    with pytest.raises(ValueError, match="has no sources"):
        value_of_repeats(fitted, source="natural")


def test_repeats_of_one_source():
    law = MixtureLaw(size=False, repetition=True)
    truth = {
        "E": 2.0, "e1": -0.02, "e2": 0.1, "B": 1500.0, "beta": 0.33, "tau": 0.9, "gamma": 0.7, "R_natural": 8.0,
        "R_synthetic": 3.0,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    x = {"D": 10 ** rng.uniform(9, 11, 200), "r": rng.uniform(0, 1, 200)}
    x |= {f"U_{source}": 10 ** rng.uniform(8, 10, 200) for source in ("natural", "synthetic")}
    fitted = fit(law, **x, loss=law.predict(truth, **x), objective="mse")
    for source, R in (("natural", 8.0), ("synthetic", 3.0)):
        value = value_of_repeats(fitted, (4.0,), source=source, n=20)
        assert value.name == f"R_{source}" and pytest.approx(R, rel=1e-3) == value.R
        assert value.worth == pytest.approx(1 + R * (1 - np.exp(-3 / R)), rel=1e-4)
    with pytest.raises(ValueError, match="source is 'natural' or 'synthetic'"):
        value_of_repeats(fitted)
