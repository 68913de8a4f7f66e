"""The planted study of ten mixtures: its laws, its errors, its best ratios."""

import numpy as np
import pytest

from lingua_synth.scaling import JointLaw, crossing, fit, fit_study, simulate_study
from lingua_synth.scaling.simulate import EFFECTS, NATURAL, RatioEffect


def test_ten_mixtures_with_the_laws_of_their_ratios():
    runs, truth = simulate_study("mixtures", noise=0.0)
    assert len(truth) == 10 and runs.mixtures == list(truth) and len(runs) == 10 * 38
    assert runs.sources == ["natural", "rephrased", "questions", "textbook"]
    shares = sum(runs[f"ratio_{source}"] for source in runs.sources)
    assert shares == pytest.approx(np.ones(len(runs)), rel=1e-15)
    row = runs.select(mixture="textbook 33%", size="1B", tokens=2e11)
    assert row["ratio_textbook"] == 1 / 3 and row["ratio_questions"] == 0
    # The effective-token form by hand, not through the joint law of the mixture.
    e, r, p = EFFECTS["textbook"], 1 / 3, NATURAL
    D = 2e11 * ((1 - r) ** e.gamma + e.tau * r**e.gamma) ** (1 / e.gamma)
    N = row["n_non_embedding"][0]
    by_hand = p["E"] + e.e1 * r + e.e2 * r * r + p["A"] * np.exp(e.a * r) / N ** p["alpha"] + p["B"] / D ** p["beta"]
    assert row["loss_macro"][0] == pytest.approx(by_hand, rel=1e-13)
    fits = fit_study(runs, num_bootstraps=0)
    for mixture, params in truth.items():
        assert fits.joint[mixture].fit.params == pytest.approx(params, rel=1e-6)


def test_a_third_of_textbooks_passes_natural_text():
    runs, _ = simulate_study("mixtures", noise=0.0)
    natural, textbook = (
        fit(JointLaw(), N=s.N(), D=s["tokens"], loss=s["loss_macro"])
        for s in (runs.select(mixture=m) for m in ("natural", "textbook 33%"))
    )
    (at,) = crossing(natural, textbook, N=float(runs.select(size="1B").N()[0]))
    assert 1e10 < at < 3e10
    assert natural.predict(N=1e9, D=at / 4) < textbook.predict(N=1e9, D=at / 4)


def test_the_planted_best_ratio_is_the_lowest_loss():
    for effect in (*EFFECTS.values(), RatioEffect(e1=0.0, e2=0.0, a=0.0, tau=1.0, gamma=0.5)):
        for N, D in ((1e8, 1e9), (1e9, 1e11), (3e9, 5e10)):
            best = effect.best_ratio(NATURAL, N, D)
            grid = np.linspace(0, 1, 401)
            losses = [float(JointLaw().predict(effect.params(NATURAL, r), N=N, D=D)) for r in grid]
            assert abs(grid[int(np.argmin(losses))] - best) <= 1 / 400
    assert RatioEffect(0.0, 0.0, 0.0, 1.0, 0.5).best_ratio(NATURAL, 1e9, 1e10) == 0.5, "equal sources: half of each"


def test_errors_that_are_shared():
    exact, _ = simulate_study("mixtures", noise=0.0)
    cells = list(zip(exact["size"].tolist(), exact["tokens"].tolist(), strict=True))

    def errors(**noise):
        runs, _ = simulate_study("mixtures", **{"noise": 0.0, **noise})
        return np.log(runs["loss_macro"] / exact["loss_macro"])

    common = errors(common_noise=0.01, seed=3)
    by_cell = {cell: [common[k] for k in range(len(cells)) if cells[k] == cell] for cell in set(cells)}
    assert all(np.ptp(values) < 1e-12 for values in by_cell.values()), "one error a cell for all mixtures"
    assert np.std([values[0] for values in by_cell.values()]) == pytest.approx(0.01, rel=0.35)
    by_size = errors(size_noise=0.01)
    of = np.array([f"{m} {s}" for m, s in zip(exact["mixture"], exact["size"], strict=True)])
    assert all(np.ptp(by_size[of == name]) < 1e-12 for name in set(of))
    assert len(np.unique(np.round(by_size, 12))) == 60, "each mixture and size has its own"
    both = errors(noise=0.01, common_noise=0.02, seed=4)
    assert both == pytest.approx(errors(noise=0.01, seed=4) + errors(common_noise=0.02, seed=4), abs=1e-12)


def test_ratios_can_be_chosen():
    runs, truth = simulate_study("mixtures", ratios=(0.1, 0.125, 0.5))
    assert list(truth)[1:4] == ["rephrased 10%", "rephrased 12.5%", "rephrased 50%"]
    assert set(np.unique(runs["ratio_questions"])) == {0.0, 0.1, 0.125, 0.5}
    with pytest.raises(ValueError, match=r"in \(0, 1\]; got 0"):
        simulate_study("mixtures", ratios=(0, 0.5))
    with pytest.raises(ValueError, match="the mixtures of design 'nano' are fixed"):
        simulate_study("nano", ratios=(0.5,))
    with pytest.raises(ValueError, match=r"share in \[0, 1\]; got 1.5"):
        EFFECTS["textbook"].params(NATURAL, 1.5)
