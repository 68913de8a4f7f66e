"""What to train on: the planted answer inside the runs, a refusal outside."""

import json

import numpy as np
import pytest

from lingua_synth.model import count_parameters, preset
from lingua_synth.scaling import simulate_study
from lingua_synth.scaling.ratio_fits import fit_ratios
from lingua_synth.scaling.recommendation import recommend
from lingua_synth.scaling.simulate import EFFECTS, NATURAL

RATIOS = [0.05, 0.15, 0.33, 0.5, 0.67, 1.0]


@pytest.fixture(scope="module")
def study():
    runs, _ = simulate_study("mixtures", noise=0.001, seed=4, ratios=RATIOS)
    return runs, fit_ratios(runs, "natural", num_bootstraps=100)


def test_the_planted_best_share_and_kind_are_recommended(study):
    runs, fits = study
    N, D = float(runs.N()[runs["size"] == "1B"][0]), 50e9
    found = recommend(runs, N, D, ratio_fits=fits)
    assert found.refusal is None and found.choice.kind.source == "rephrased" and found.tied == ()
    by_source = {one.kind.source: one for one in found.options}
    natural = NATURAL["E"] + NATURAL["A"] / N ** NATURAL["alpha"] + NATURAL["B"] / D ** NATURAL["beta"]
    for source, effect in EFFECTS.items():
        best = effect.best_ratio(NATURAL, N, D)
        assert by_source[source].interval[0] - 0.01 <= best <= by_source[source].interval[1] + 0.01
        p = effect.params(NATURAL, best)
        gain = np.log(natural / (p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]))
        assert by_source[source].low - 0.0005 < gain < by_source[source].high + 0.0005
    assert [one.gain for one in found.options] == sorted((one.gain for one in found.options), reverse=True)
    assert "% rephrased" in str(found) and json.dumps(found.to_dict())


def test_it_refuses_outside_what_was_trained(study):
    runs, fits = study
    N = count_parameters(preset("1B")).non_embedding
    for place, message in (
        ((N, 8e12), "D = 8e[+]12 tokens lies outside the runs of rephrased, which span 1e[+]09 to 2e[+]11"),
        ((70e9, 50e9), "N = 7e[+]10 parameters lies outside"),
        ((2.6e9, 200e9), "this corner was not.; the nearest trained place is N = 8.579e[+]08"),
    ):
        found = recommend(runs, *place, ratio_fits=fits)
        assert found.choice is None and found.options == ()
        with pytest.raises(AssertionError):
            assert found.refusal is None
        import re

        assert re.search(message, found.refusal) and "no recommendation" in str(found)
    assert recommend(runs, N * 1.01, 200e9, ratio_fits=fits).refusal is None
    with pytest.raises(ValueError, match="both positive"):
        recommend(runs, 0, 1e9)
    with pytest.raises(ValueError, match="is empty"):
        recommend(runs.take([]), N, 1e9)


def test_natural_text_wins_where_nothing_helps():
    runs, _ = simulate_study("nano", noise=0.002, seed=1, laws={
        name: {"E": 1.6, "A": 30.0, "B": 60.0 * (1 + 0.1 * share), "alpha": 0.3, "beta": 0.3}
        for name, share in (("natural", 0), ("synthetic 33%", 0.33), ("synthetic 67%", 0.67), ("synthetic", 1))
    })  # fmt: skip
    found = recommend(runs, 2e5, 2**21, num_bootstraps=60)
    assert found.refusal is None and found.choice is None and "natural text alone" in str(found)


def test_two_ratios_are_no_ground_for_one():
    runs, _ = simulate_study("nano", noise=0.002, seed=1)
    few = runs.take(np.isin(runs["mixture"], ["natural", "synthetic"]))
    found = recommend(few, 2e5, 2**21, num_bootstraps=20)
    assert found.choice is None and "2 different ratios of synthetic" in found.refusal


def test_of_equal_generators_the_smaller_is_recommended():
    base, _ = simulate_study("mixtures", noise=0.001, seed=4, ratios=RATIOS)
    rng = np.random.default_rng(7)
    chosen = base.take(np.isin(base["mixture"], [m for m in base.mixtures if m == "natural" or m.startswith("reph")]))
    rows = {name: list(values) for name, values in chosen.columns.items() if not name.startswith("ratio_")}
    share = chosen["ratio_rephrased"]
    extra = np.flatnonzero(share > 0)
    for name, values in rows.items():
        more = [values[i] for i in extra]
        if name == "mixture":
            more = [f"big {m}" for m in more]
        if name == "run_id":
            more = [f"big-{m}" for m in more]
        if name.startswith("loss_"):
            more = [v * np.exp(0.001 * rng.standard_normal()) for v in more]
        rows[name] = values + more
    rows["ratio_natural"] = np.concatenate([1 - share, 1 - share[extra]])
    rows["ratio_hq-big-70b"] = np.concatenate([0 * share, share[extra]])
    rows["ratio_hq-small-3b"] = np.concatenate([share, 0 * share[extra]])
    from lingua_synth.scaling import Runs

    found = recommend(Runs(rows), float(base.N()[base["size"] == "1B"][0]), 50e9, num_bootstraps=100)
    assert found.choice.kind.generator == "small-3b"
    assert [one.kind.generator for one in found.tied] == ["big-70b"]
