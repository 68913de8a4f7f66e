"""`lingua-synth fit` on a folder's worth of tables: cleaning said, laws and groups chosen, figures drawn."""

import csv

import numpy as np
import pytest

from lingua_synth.config import run_command
from lingua_synth.files import read_json
from lingua_synth.report.command import main as report
from lingua_synth.scaling import InteractionLaw, JointLaw, Runs, fit_study, load_runs, simulate_study, write_runs
from lingua_synth.scaling.command import law_named, main

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def table(tmp_path):
    runs, _ = simulate_study("nano", noise=0.001, seed=2)
    write_runs(runs, tmp_path / "runs.csv")
    return tmp_path / "runs.csv", runs


def test_bad_rows_are_named_and_the_fit_is_that_of_the_others(table, tmp_path, capsys):
    path, runs = table
    rows = list(csv.DictReader(path.open()))
    rows[3]["loss_macro"] = ""
    rows[7]["loss_macro"] = "-1"
    rows.append(dict(rows[5]))
    with open(tmp_path / "bad.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    words = [f"runs={tmp_path}/bad.csv", f"out={tmp_path}/out", "bootstraps=0", "figures=false"]
    assert run_command(main, words) == 0
    printed = capsys.readouterr().out
    assert f"{len(runs) + 1} rows, {len(runs) - 2} kept, 3 dropped" in printed
    assert f"{rows[3]['run_id']}: loss_macro is missing" in printed and f"{rows[5]['run_id']}#2: equal to" in printed
    written = read_json(tmp_path / "out" / "fits.json")
    assert written["cleaning"]["counts"] == {"no number": 2, "repeated row": 1}
    keep = [k for k in range(len(runs)) if k not in (3, 7)]
    expected = fit_study(runs.take(keep), num_bootstraps=0).joint["natural"].fit.params
    assert written["joint"]["natural"]["fit"]["params"] == pytest.approx(expected, rel=1e-9)
    assert not (tmp_path / "out" / "figures").exists()
    assert run_command(main, [*words, "clean=false"]) == 2
    assert "stands twice" in capsys.readouterr().err


def test_law_groups_objective_and_unit(table, tmp_path):
    path, runs = table
    words = [f"runs={path}", f"out={tmp_path}/out", "bootstraps=60", "figures=false"]
    assert run_command(main, [*words, "law=interaction", "objective=mse", "unit=size", "by=ratio_synthetic"]) == 0
    written = read_json(tmp_path / "out" / "fits.json")
    assert written["joint_law"] == "interaction" and written["objective"] == "mse" and written["unit"] == "size"
    assert list(written["joint"]) == [f"ratio_synthetic={r}" for r in ("0", "0.33", "0.67", "1")]
    natural = runs.select(mixture="natural")
    expected = fit_study(natural, num_bootstraps=60, joint_law=InteractionLaw(), objective="mse", unit="size")
    entry = written["joint"]["ratio_synthetic=0"]
    assert entry["fit"]["params"] == expected.joint["natural"].fit.params
    assert set(entry["fit"]["params"]) == {"E", "A", "B", "alpha", "beta", "c"}
    if entry["bootstrap"] is not None:
        assert entry["bootstrap"]["num_units"] == 5, "sizes were resampled, not runs"
    assert written["data"]["ratio_synthetic=0"]["nano-27k"]["bootstrap"]["num_units"] == 7
    assert run_command(main, [*words, "by=all", "bootstraps=0"]) == 0
    assert list(read_json(tmp_path / "out" / "fits.json")["joint"]) == ["all"]


def test_groups_are_resampled_whole():
    runs, _ = simulate_study("nano", noise=0.001, seed=2)
    fits = fit_study(runs.select(mixture="natural"), num_bootstraps=50, unit="size")
    entry = fits.joint["natural"]
    assert (entry.bootstrap is None) == any("no interval" in w for w in entry.fit.warnings)
    assert "the runs of one size share an error" in str(fits)
    with pytest.raises(ValueError, match="joint_law must be a law in N and D; data is in"):
        fit_study(runs, joint_law=fits.data["natural"]["nano-27k"].fit.law)


def test_figures_are_drawn_one_a_mixture(table, tmp_path):
    path, _ = table
    assert run_command(main, [f"runs={path}", f"out={tmp_path}/out", "bootstraps=20"]) == 0
    folder = tmp_path / "out" / "figures"
    names = sorted(file.name for file in folder.iterdir())
    assert names == [
        "joint-E-by-mixture.png", "joint-natural.png", "joint-synthetic-33.png", "joint-synthetic-67.png",
        "joint-synthetic.png",
    ]  # fmt: skip
    assert all((folder / name).read_bytes().startswith(PNG) for name in names)


def test_the_picture_shows_the_runs_and_the_law(table):
    from matplotlib.figure import Figure

    from lingua_synth.scaling import JointLaw, bootstrap, draw, fit

    runs = table[1].select(mixture="natural")
    fitted = fit(JointLaw(), N=runs.N(), D=runs["tokens"], loss=runs["loss_macro"])
    axes = draw.fit_curves(fitted, bootstrap(fitted, n=50), Figure().subplots())
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert sorted(np.concatenate([line.get_ydata() for line in points])) == sorted(runs["loss_macro"])
    curves = [line for line in axes.get_lines() if line.get_marker() != "o"]
    assert len(curves) == len(points) == 5 and len(axes.collections) == 5
    size = np.unique(runs.N())[0]
    assert curves[0].get_ydata() == pytest.approx(fitted.predict(N=size, D=curves[0].get_xdata()), rel=1e-14)
    assert draw.residuals(fitted, Figure().subplots()).get_lines()[0].get_ydata() == pytest.approx(
        -100 * fitted.residuals[runs.N() == size]
    )
    names = {}
    files = [draw._file_name(name, names) for name in ("a b", "a-b", "A B", "a b", "..")]
    assert files == ["a-b", "a-b_", "A-B__", "a-b", "fit"]


def test_a_folder_of_runs_can_be_fitted_and_reported(table, tmp_path, capsys):
    from lingua_synth.files import write_json

    runs = table[1]
    for k in range(len(runs)):
        row = {name: values[k].item() for name, values in runs.columns.items()}
        write_json(tmp_path / "study" / "runs" / row["run_id"] / "result.json", row)
    words = [f"runs={tmp_path}/study", "bootstraps=0"]
    assert run_command(main, [*words, f"out={tmp_path}/out", "figures=false"]) == 0
    from_csv = fit_study(load_runs(table[0]), num_bootstraps=0).joint["natural"].fit.params
    from_folder = read_json(tmp_path / "out" / "fits.json")["joint"]["natural"]["fit"]["params"]
    assert from_folder == pytest.approx(from_csv, rel=1e-9)
    assert run_command(report, [*words, f"out={tmp_path}/page"]) == 0
    assert (tmp_path / "page" / "report.html").is_file()
    assert f"{len(runs)} runs, 4 mixtures" in capsys.readouterr().out


def test_laws_have_names(capsys, tmp_path):
    assert law_named("interaction") == InteractionLaw()
    with pytest.raises(ValueError, match=r"law is one of .*interaction.*joint.*; got 'data'"):
        law_named("data")


def test_a_table_whose_budgets_all_differ_is_printed_short():
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(8, 10, 40), 10 ** rng.uniform(9, 11, 40)
    loss = JointLaw().predict({"E": 1.8, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.35}, N=N, D=D)
    runs = Runs(
        {
            "run_id": [str(k) for k in range(40)], "mixture": ["a"] * 40, "size": [f"{n:.0f}" for n in N],
            "n_total": N, "tokens": D, "loss_macro": loss,
        }
    )  # fmt: skip
    fits = fit_study(runs, n_definition="total", num_bootstraps=0)
    lines = str(fits).splitlines()
    assert len(lines) == 10
    assert f"a: no fit at size {N.min():.0f}, ..., at size {N.max():.0f} (40 of 40): fewer runs than the 3" in lines[6]
    assert f"at {D.min():.4g} tokens, ..., at {D.max():.4g} tokens (40 of 40)" in lines[9]
    assert len(fits.rows()) == 85 and sum("1 run;" in row["reasons"] for row in fits.rows()) == 80


def test_mixtures_are_fitted_together_and_ranked(tmp_path, capsys):
    runs, truth = simulate_study("mixtures", noise=0.0005, common_noise=0.001, seed=1)
    chosen = runs.take(np.isin(runs["mixture"], ["natural", "textbook 33%", "questions"]))
    write_runs(chosen, tmp_path / "runs.csv")
    words = [f"runs={tmp_path}/runs.csv", f"out={tmp_path}/out", "bootstraps=100", "figures=false"]
    assert run_command(main, words) == 0
    printed = capsys.readouterr().out
    assert "exponents pooled as far as the runs ask; 38 cells, 38 in all" in printed
    assert "E, lowest first" in printed
    written = read_json(tmp_path / "out" / "fits.json")
    assert written["not_pooled"] is None
    pooled = {name: one["params"]["E"] for name, one in written["pooled"]["mixtures"].items()}
    alone = {name: one["fit"]["params"]["E"] for name, one in written["joint"].items()}
    order = sorted(truth[name]["E"] for name in pooled)
    assert [truth[name]["E"] for name in sorted(pooled, key=pooled.get)] == order
    # What E leans on, the exponents, is common: differences of E come out closer than from fits apart.
    gap = truth["questions"]["E"] - truth["natural"]["E"]
    assert abs(pooled["questions"] - pooled["natural"] - gap) < 0.01
    assert alone["questions"] != pooled["questions"]
    assert run_command(main, [*words, "share="]) == 0
    assert "together" not in capsys.readouterr().out
    assert run_command(main, [*words, "share=all"]) == 2


def test_why_mixtures_are_not_fitted_together_is_said():
    runs, _ = simulate_study("nano", noise=0.001, seed=2)
    keep = (runs["mixture"] == "natural") | (runs["size"] == "nano-27k")
    fits = fit_study(runs.take(keep), num_bootstraps=20)
    assert fits.pooled is None and fits.ranking is None
    assert "synthetic are not identifiable" in fits.not_pooled and fits.not_pooled in str(fits)
    apart = runs.take((runs["mixture"] == "natural") == (runs["tokens"] > 2**21))
    two = apart.take(np.isin(apart["mixture"], ["natural", "synthetic"]))
    fits = fit_study(two, num_bootstraps=20)
    assert (fits.pooled is None) == (fits.not_pooled is not None)
    assert fits.pooled is None or not fits.pooled.paired


def test_a_mixture_of_one_cell_does_not_stop_the_others():
    runs, _ = simulate_study("nano", noise=0.001, seed=2)
    keep = (runs["mixture"] != "synthetic 67%") | (runs["size"] == "nano-27k")
    fits = fit_study(runs.take(keep), num_bootstraps=20)
    assert sorted(fits.pooled.fits) == ["natural", "synthetic", "synthetic 33%"]
    assert fits.not_pooled == "the joint law of synthetic 67% is not identifiable" and fits.not_pooled in str(fits)
    alone = fit_study(runs.take(runs["mixture"] != "synthetic 67%"), num_bootstraps=20)
    assert fits.pooled.params == alone.pooled.params and fits.ranking.groups == alone.ranking.groups


def test_laws_are_scored_when_asked_for(table, tmp_path, capsys):
    _, runs = table
    keep = (runs["mixture"] == "natural") | ((runs["mixture"] == "synthetic") & (runs["tokens"] == 2**18))
    write_runs(runs.take(keep), tmp_path / "two.csv")
    words = [f"runs={tmp_path}/two.csv", f"out={tmp_path}/out", "bootstraps=0", "figures=false", "choose=true"]
    assert run_command(main, words) == 0
    printed = capsys.readouterr().out
    assert "natural: " in printed and "as the largest run" in printed and "synthetic: no law is chosen: " in printed
    written = read_json(tmp_path / "out" / "fits.json")["law_choice"]
    assert "refusal" in written["synthetic"] and "refusal" not in written["natural"]
