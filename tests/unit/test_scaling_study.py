"""A whole study at once: simulated tables with known truth, refusals in place of fits, the verb's files."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from lingua_synth.config import run_command
from lingua_synth.files import read_json, write_json
from lingua_synth.scaling import Runs, fit_study, load_runs, simulate_study, write_runs
from lingua_synth.scaling.command import main


def test_a_simulated_table_has_the_planted_losses_and_a_real_table_s_columns():
    runs, truth = simulate_study("paper", noise=0.0)
    assert len(runs) == 4 * 38
    assert runs.mixtures == list(truth) == ["natural", "synthetic 33%", "synthetic 67%", "synthetic"]
    assert runs.sources == ["natural", "synthetic"]
    assert runs.domains == ["near", "far"]
    row = runs.select(mixture="natural", size="1B", tokens=2e11)
    p = truth["natural"]
    by_hand = p["E"] + p["A"] / row["n_non_embedding"] ** p["alpha"] + p["B"] / 2e11 ** p["beta"]
    assert row["loss_macro"] == pytest.approx(by_hand, rel=1e-13)
    assert (runs["loss_near"] + runs["loss_far"]) / 2 == pytest.approx(runs["loss_macro"], rel=1e-13)
    assert runs["ratio_natural"] + runs["ratio_synthetic"] == pytest.approx(np.ones(len(runs)))
    assert len(set(runs["run_id"])) == len(runs)


def test_simulated_noise_is_what_was_asked_for():
    exact, _ = simulate_study("nano", noise=0.0, num_seeds=20)
    noisy, _ = simulate_study("nano", noise=0.01, num_seeds=20, seed=1)
    again, _ = simulate_study("nano", noise=0.01, num_seeds=20, seed=1)
    other, _ = simulate_study("nano", noise=0.01, num_seeds=20, seed=2)
    assert np.array_equal(noisy["loss_macro"], again["loss_macro"])
    assert not np.array_equal(noisy["loss_macro"], other["loss_macro"])
    error = np.log(noisy["loss_macro"] / exact["loss_macro"])
    assert np.std(error) == pytest.approx(0.01, rel=0.06)  # 2,800 draws: 1.3 % is one standard deviation
    shared, _ = simulate_study("nano", noise=0.0, size_noise=0.01, num_seeds=20)
    error = np.log(shared["loss_macro"] / exact["loss_macro"])
    cell = (shared["mixture"] == "natural") & (shared["size"] == "nano-222k")
    assert np.ptp(error[cell]) < 1e-12
    assert np.std(error) > 0.004


def test_simulated_bad_input():
    with pytest.raises(ValueError, match="no design 'big'; there are paper, nano"):
        simulate_study("big")
    with pytest.raises(ValueError, match="standard deviations"):
        simulate_study("nano", noise=-0.1)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        simulate_study("nano", num_seeds=0)
    with pytest.raises(ValueError, match="has parameters E, A, B, alpha, beta"):
        simulate_study("nano", laws={"mine": {"E": 1.0}})


def test_every_planted_law_comes_back():
    runs, truth = simulate_study("paper", noise=0.0)
    fits = fit_study(runs, num_bootstraps=0)
    for mixture, params in truth.items():
        assert fits.joint[mixture].fit.params == pytest.approx(params, rel=1e-7)
        N = float(runs.select(size="1B").N()[0])
        at_1B = fits.data[mixture]["1B"].fit
        assert at_1B.num_points == 8
        assert at_1B.params["E_at_N"] == pytest.approx(params["E"] + params["A"] / N ** params["alpha"], rel=1e-7)
        at_50B = fits.model[mixture][50e9].fit
        assert at_50B.num_points == 6
        assert at_50B.params["E_at_D"] == pytest.approx(params["E"] + params["B"] / 50e9 ** params["beta"], rel=1e-7)
    assert list(fits.data["natural"]) == ["100M", "200M", "500M", "1B", "2B", "3B"]
    assert list(fits.model["natural"]) == [1e9, 2e9, 5e9, 1e10, 2e10, 5e10, 1e11, 2e11]


def test_intervals_hold_the_truth_and_mixtures_are_resampled_alike():
    runs, truth = simulate_study("paper", noise=0.002, seed=4)
    pair = Runs(
        {name: values[np.isin(runs["mixture"], ["natural", "synthetic"])] for name, values in runs.columns.items()}
    )
    fits = fit_study(pair, num_bootstraps=200)
    for mixture in pair.mixtures:
        low, high = fits.joint[mixture].bootstrap.interval("E", 0.999)
        assert low < truth[mixture]["E"] < high
    assert fits.joint["natural"].bootstrap.seed == fits.joint["synthetic"].bootstrap.seed
    alike, _ = simulate_study("nano", noise=0.002, laws={m: truth["natural"] for m in ("natural", "copy")})
    column = np.array(alike["loss_macro"])
    column[alike["mixture"] == "copy"] = column[alike["mixture"] == "natural"]
    twins = fit_study(Runs({**alike.columns, "loss_macro": column}), num_bootstraps=50)
    assert np.array_equal(twins.joint["natural"].bootstrap.params, twins.joint["copy"].bootstrap.params, equal_nan=True)


def test_a_cell_without_enough_runs_is_refused_in_place():
    runs, _ = simulate_study("paper")
    fits = fit_study(runs.select(mixture="natural"), num_bootstraps=0)
    entry = fits.model["natural"][2e11]
    assert entry.fit is None and entry.bootstrap is None and not entry.identifiable
    assert entry.reasons == [entry.refusal]
    assert entry.refusal == "1 run; L = E_at_D + A/N^alpha has 3 parameters and takes at least 4"
    assert "no fit: 1 run" in str(fits)
    assert fits.to_dict()["model"]["natural"]["200000000000"]["fit"] is None


def test_a_study_of_two_sizes_gives_no_joint_interval():
    runs, _ = simulate_study("nano", noise=0.02, seed=1)
    keep = np.isin(runs["size"], ["nano-27k", "nano-107k"])
    fits = fit_study(Runs({name: values[keep] for name, values in runs.columns.items()}), num_bootstraps=50)
    for entry in fits.joint.values():
        assert entry.fit is not None
        assert not entry.identifiable
        assert "only 2 different values of N" in " ".join(entry.reasons)
        assert entry.bootstrap is None


def test_an_interval_that_reaches_zero_is_noted():
    runs, _ = simulate_study("nano", noise=0.006, seed=0)
    fits = fit_study(runs.select(mixture="natural"), num_bootstraps=100, interval="bootstrap")
    noted = 0
    for law, _, _, _, entry in fits.entries():
        if entry.bootstrap is not None:
            reaches = entry.interval(law.constant)[0] <= 0
            assert reaches == any("reaches 0" in warning for warning in entry.fit.warnings)
            noted += reaches
    assert noted > 0


def test_what_is_fitted_can_be_chosen():
    runs, truth = simulate_study("paper", noise=0.0)
    far = fit_study(runs, target="loss_far", n_definition="total", num_bootstraps=0)
    assert (far.target, far.n_definition) == ("loss_far", "total")
    entry = far.joint["natural"].fit
    assert entry.n_definition == "total"
    assert np.array_equal(entry.N, runs.select(mixture="natural")["n_total"])
    near_25B = far.data["natural"]["1B"].fit.predict(D=25e9)
    N = float(runs.select(size="1B").N()[0])
    p = truth["natural"]
    assert near_25B == pytest.approx(1.05 * (p["E"] + p["A"] / N ** p["alpha"] + p["B"] / 25e9 ** p["beta"]), rel=1e-7)


def test_bad_tables_are_refused_by_name():
    runs, _ = simulate_study("nano")
    with pytest.raises(ValueError, match="the runs table is empty"):
        fit_study(runs.select(mixture="none"))
    with pytest.raises(ValueError, match="no column 'loss_moon'"):
        fit_study(runs, target="loss_moon")
    with pytest.raises(ValueError, match="column mixture holds text"):
        fit_study(runs, target="mixture")
    with pytest.raises(ValueError, match="0 or at least 2; got 1"):
        fit_study(runs, num_bootstraps=1)
    column = np.array(runs["loss_near"])
    column[[3, 5]] = np.nan, -1
    with pytest.raises(
        ValueError, match=r"loss_near must be .* not in simulated-natural-nano-27k-2097152-0 \(nan\), sim"
    ):
        fit_study(Runs({**runs.columns, "loss_near": column}), target="loss_near")


# --- the verb ---


def test_fit_writes_full_precision_and_prints_the_table(tmp_path, capsys):
    runs, truth = simulate_study("nano", noise=0.001)
    write_runs(runs, tmp_path / "runs.csv")
    assert run_command(main, [f"runs={tmp_path}/runs.csv", f"out={tmp_path}/out", "bootstraps=50"]) == 0
    printed = capsys.readouterr().out
    assert "L = E + A/N^alpha + B/D^beta" in printed
    assert "natural: E 1.6" in printed
    written = read_json(tmp_path / "out" / "fits.json")
    expected = fit_study(load_runs(tmp_path / "runs.csv"), num_bootstraps=50)
    assert written["joint"]["natural"]["fit"]["params"] == expected.joint["natural"].fit.params
    assert written["version"] == 1
    with open(tmp_path / "out" / "fits.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(expected.rows()) == 4 * (5 + 5 * 3 + 7 * 3)
    first = table[0]
    assert (first["law"], first["mixture"], first["parameter"]) == ("joint", "natural", "E")
    assert float(first["value"]) == expected.joint["natural"].fit.params["E"]
    assert (float(first["low"]), float(first["high"])) == expected.joint["natural"].interval("E")
    assert abs(float(first["value"]) - truth["natural"]["E"]) < 0.1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["figures", "fits.csv", "fits.json", "resamples.npz"]


def test_fit_reads_tables_of_other_origin(tmp_path, capsys):
    lines = ["params,tokens,loss"]
    lines += [f"{n},{d},{2 + 400 / n**0.34 + 1500 / d**0.33}" for n in (1e8, 3e8, 1e9) for d in (1e9, 1e10, 1e11)]
    (tmp_path / "theirs.csv").write_text("\n".join(lines) + "\n")
    words = [f"runs={tmp_path}/theirs.csv", f"out={tmp_path}/out", "n_definition=total", "bootstraps=0"]
    assert run_command(main, [*words, "columns.n_total=params", "columns.loss_macro=loss"]) == 0
    assert read_json(tmp_path / "out" / "fits.json")["joint"]["all"]["fit"]["params"]["E"] == pytest.approx(2, rel=1e-7)
    assert "all: E 2 " in capsys.readouterr().out


def test_infinities_are_null_with_a_reason(tmp_path):
    runs, _ = simulate_study("nano")
    one_size = runs.select(mixture="natural", size="nano-27k")
    fits = fit_study(one_size, num_bootstraps=0)
    write_json(tmp_path / "fits.json", fits.to_dict())
    joint = read_json(tmp_path / "fits.json")["joint"]["natural"]["fit"]
    assert joint["identifiable"] is False
    assert joint["condition_number"] is None
    assert joint["null_because"]["condition_number"] == "infinite"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "fit needs runs=FILE.csv"),
        (["runs=RUNS"], "fit needs out=FOLDER"),
        (["runs=RUNS", "out=RUNS"], "is a file; name a folder"),
        (["runs=gone.csv", "out=OUT"], "no runs table gone.csv"),
        (["runs=RUNS", "out=OUT", "target=loss_moon"], "no column 'loss_moon'"),
        (["runs=RUNS", "out=OUT", "n_definition=active"], "got 'active'"),
        (["runs=RUNS", "out=OUT", "bootstraps=-1"], "got -1"),
        (["runs=RUNS", "out=OUT", "bootstrap=10"], "did you mean bootstraps?"),
    ],
)
def test_bad_words_end_with_one_message_and_write_nothing(tmp_path, capsys, words, message):
    runs, _ = simulate_study("nano")
    write_runs(runs, tmp_path / "runs.csv")
    places = {"RUNS": str(tmp_path / "runs.csv"), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert run_command(main, words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_importing_takes_no_torch_and_less_than_a_second():
    code = (
        "import time; t = time.perf_counter(); import lingua_synth.scaling, sys; "
        "print(time.perf_counter() - t, 'torch' in sys.modules, 'scipy.optimize' in sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    answers = [run.stdout.split() for run in runs]
    assert {tuple(answer[1:]) for answer in answers} == {("False", "False")}
    assert min(float(answer[0]) for answer in answers) < 1.0
