"""Figures draw what the table and the laws say, and keep the numbers they drew."""

import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from report_doubles import BUDGETS, DOMAINS, RATIOS, SIZES, load, planted, planted_fits, planted_speedup, rows_of

pytest.importorskip("matplotlib")

from lingua_synth.report import figures, style, write_report
from lingua_synth.report.cells import cells, largest_cell
from lingua_synth.scaling.natural import base_mixture, natural_source, synthetic_ratios


@pytest.fixture
def runs(tmp_path):
    return load(tmp_path, rows_of())


@pytest.fixture
def fits(runs):
    return planted_fits(runs, unidentifiable=("synthetic",))


def of_kind(ax, kind, series=None):
    return [row for row in figures.drawn(ax) if row["kind"] == kind and series in (None, row["series"])]


def points_on(ax):
    """Every vertex of every line that is on the axes, as a set of pairs."""
    return {(float(x), float(y)) for line in ax.get_lines() for x, y in zip(*line.get_data(), strict=True)}


def texts_of(ax):
    figure = ax.get_figure()
    return [text.get_text() for text in ax.texts] + [t.get_text() for legend in figure.legends for t in legend.texts]


# --- against D and N ---


def test_data_scaling_draws_every_run_and_the_law_where_it_is_identifiable(runs, fits):
    ax = figures.data_scaling(runs, fits, "nano-2")
    for mixture, ratio in RATIOS.items():
        drawn_runs = {(row["tokens"], row["loss_macro"]) for row in of_kind(ax, "run", mixture)}
        assert drawn_runs == {(D, planted(ratio, SIZES["nano-2"], D)) for D in BUDGETS}
        assert drawn_runs <= points_on(ax)
        curve = of_kind(ax, "fit", mixture)
        if mixture == "synthetic":
            assert curve == [], "a law that is not identifiable has no curve"
            assert [row["tokens"] for row in of_kind(ax, "guide", mixture)] == list(BUDGETS)
            continue
        assert of_kind(ax, "guide", mixture) == []
        assert curve[0]["tokens"] == BUDGETS[0] and curve[-1]["tokens"] == BUDGETS[-1]
        for row in curve:
            law = planted(ratio, SIZES["nano-2"], row["tokens"])
            # One rounding apart: numpy's power of an array and of a number differ in the last bit.
            assert row["loss_macro"] == pytest.approx(law, rel=1e-14)
            assert (row["low"], row["high"]) == (0.99 * row["loss_macro"], 1.02 * row["loss_macro"])
            assert (row["tokens"], row["loss_macro"]) in points_on(ax)
    assert len(ax.collections) == 3, "one band for each identifiable law"


def test_data_scaling_takes_the_size_with_most_budgets(tmp_path):
    rows = [row for row in rows_of() if row["size"] != "nano-3" or row["tokens"] == 2_000_000]
    ax = figures.data_scaling(load(tmp_path, rows), None)
    assert "nano-2" in ax.get_xlabel()
    assert {row["kind"] for row in figures.drawn(ax)} == {"run", "guide"}


def test_model_scaling_names_and_uses_the_count_of_the_fits(runs, fits):
    ax = figures.model_scaling(runs, replace(fits, n_definition="lingua"), 500_000)
    assert "vocabulary matrix" in ax.get_xlabel() and "500k" in ax.get_xlabel()
    assert {row["n_lingua"] for row in of_kind(ax, "run")} == {N + 100_000 for N in SIZES.values()}
    ax = figures.model_scaling(runs, fits, 500_000)
    assert "non-embedding" in ax.get_xlabel()
    for row in of_kind(ax, "fit", "mix33"):
        assert row["loss_macro"] == pytest.approx(planted(0.33, row["n_non_embedding"], 500_000), rel=1e-14)


def test_seeds_are_dots_each_and_one_guide(tmp_path):
    runs = load(tmp_path, rows_of(seeds=(1, 2, 3), noise=0.01))
    ax = figures.data_scaling(runs, None, "nano-1")
    dots, guide = of_kind(ax, "run", "natural"), of_kind(ax, "guide", "natural")
    assert len(dots) == 3 * len(BUDGETS) and len(guide) == len(BUDGETS)
    for row in guide:
        at = [dot["loss_macro"] for dot in dots if dot["tokens"] == row["tokens"]]
        assert row["loss_macro"] == pytest.approx(np.mean(at), rel=1e-14)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda r: figures.data_scaling(r, None, "nano-9"), "nano-1, nano-2, nano-3"),
        (lambda r: figures.model_scaling(r, None, 3_000_000), "250,000, 500,000"),
        (lambda r: figures.joint_fit(r, None, "mix50"), "natural, mix33"),
        (lambda r: figures.ratio(r, None, "other"), "generated"),
        (lambda r: figures.speedup(r, None, "mix50"), "natural, mix33"),
    ],
)
def test_what_is_not_in_the_table_is_refused_with_what_is(runs, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(runs)


def test_a_target_of_another_column_is_drawn(runs):
    ax = figures.data_scaling(runs, None, "nano-1", target="bpb_macro")
    assert "bits per byte" in ax.get_ylabel()
    assert {row["bpb_macro"] for row in of_kind(ax, "run", "natural")} == {
        planted(0.0, SIZES["nano-1"], D) / 3 for D in BUDGETS
    }


# --- laws ---


def test_irreducible_loss_shows_words_instead_of_a_number(runs, fits):
    ax = figures.irreducible_loss(runs, fits)
    for mixture, ratio in RATIOS.items():
        if mixture == "synthetic":
            continue
        E = 2.4 + 0.2 * ratio
        (row,) = of_kind(ax, "fit", mixture)
        assert (row["E"], row["low"], row["high"]) == (E, 0.99 * E, 1.02 * E)
    assert of_kind(ax, "fit", "synthetic") == []
    (note,) = of_kind(ax, "note", "synthetic")
    assert note["E"] is None and "condition number" in note["note"]
    assert texts_of(ax).count("not identifiable") == 1
    assert len([line for line in ax.get_lines() if len(line.get_xdata()) == 1]) == 3


def test_joint_fit_contours_lie_on_the_law(runs, fits):
    ax = figures.joint_fit(runs, fits, "mix67")
    contour = of_kind(ax, "contour")
    assert len({row["value"] for row in contour}) >= 4
    for row in contour:
        # Contours are interpolated on a fine grid; the law is smooth there.
        assert planted(0.67, row["n_non_embedding"], row["tokens"]) == pytest.approx(row["value"], abs=1e-3)
    assert {(row["tokens"], row["n_non_embedding"]) for row in of_kind(ax, "run")} == {
        (D, N) for D in BUDGETS for N in SIZES.values()
    }


def test_joint_fit_that_is_not_identifiable_compares_runs_only(runs, fits):
    ax = figures.joint_fit(runs, fits, "synthetic")
    assert of_kind(ax, "contour") == []
    assert "observed" in ax.get_xlabel() and "predicted" in ax.get_ylabel()
    rows = of_kind(ax, "run")
    assert len(rows) == len(BUDGETS) * len(SIZES)
    for row in rows:
        assert row["predicted"] == pytest.approx(row["observed"], rel=1e-12)


def test_joint_fit_without_a_fit_says_why(runs, fits):
    fits.joint["mix33"].fit, fits.joint["mix33"].identifiable = None, False
    fits.joint["mix33"].reasons = ["3 runs are fewer than the 5 parameters"]
    ax = figures.joint_fit(runs, fits, "mix33")
    assert "3 runs are fewer" in texts_of(ax)[0]


# --- comparisons ---


def test_ratio_rings_the_lowest_loss_of_each_cell(tmp_path):
    rows = rows_of()
    for row in rows:  # a dip at 33 % in the largest cell only
        if row["mixture"] == "mix33" and row["size"] == "nano-3" and row["tokens"] == 2_000_000:
            row["loss_macro"] -= 0.5
    runs = load(tmp_path, rows)
    ax = figures.ratio(runs)
    best = {row["series"]: row for row in of_kind(ax, "best")}
    assert len(best) == len(BUDGETS) * len(SIZES)
    for series, row in best.items():
        inside = series == "size nano-3, 2M tokens"
        assert row["synthetic_ratio"] == (0.33 if inside else 0.0)
        assert row["note"] == ("" if inside else "at the edge of the grid")
    rings = {
        (float(x), float(y))
        for line in ax.get_lines()
        if line.get_markersize() == 11
        for x, y in [line.get_xydata()[0]]
    }
    assert rings == {(100 * row["synthetic_ratio"], row["loss_macro"]) for row in best.values()}


def test_ratio_at_one_size_and_more_cells_than_one_figure_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "figure_png", lambda figure: b"")  # half of the time, and not looked at here
    runs = load(tmp_path, rows_of(sizes={f"s{k}": 10**k for k in range(4, 8)}))
    ax = figures.ratio(runs, size="s5")
    assert {row["series"] for row in of_kind(ax, "mean")} == {
        f"size s5, {d} tokens" for d in ("250k", "500k", "1M", "2M")
    }
    assert len({tuple(line.get_color()) for line in ax.get_lines()}) == len(BUDGETS)
    with pytest.raises(ValueError, match="s4, s5, s6, s7"):
        figures.ratio(runs, size="s9")
    path = write_report(tmp_path / "out", runs, None, title="t")
    names = {picture.stem for picture in (path.parent / "figures").glob("ratio*.csv")}
    assert names == {"ratio", "ratio_2", "ratio_3", "ratio_4"}, "16 cells: one figure a size"
    assert "models of size s7" in path.read_text()


def test_legend_columns_fit_and_are_even():
    from lingua_synth.report.canvas import _per_row

    assert _per_row(["natural", "mix33", "mix67", "synthetic"]) == 4
    assert _per_row(["natural", "synthetic 33%", "synthetic 67%", "synthetic"]) == 2
    assert _per_row(["x" * 28] * 5) == 1 and _per_row(["a"]) == 1 and _per_row(["a", "b"]) == 2


def test_ratio_of_several_synthetic_sources_needs_a_name(tmp_path):
    rows = []
    for row in rows_of(sizes={"nano-1": 115_000}):
        rows.append({**row, "ratio_other": 0.0})
        if row["mixture"] != "natural":
            swapped = {**row, "ratio_other": row["ratio_generated"], "ratio_generated": 0.0}
            rows.append({**swapped, "mixture": "other-" + row["mixture"], "run_id": "other-" + row["run_id"]})
    runs = load(tmp_path, rows)
    with pytest.raises(ValueError, match="generated, other"):
        figures.ratio(runs)
    ax = figures.ratio(runs, None, "other")
    assert {row["synthetic_ratio"] for row in of_kind(ax, "mean")} == set(RATIOS.values())


def test_domains_at_the_largest_cell_in_order_of_the_base(runs):
    ax = figures.domains(runs)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["topics", "stdlib", "readmes"]
    for row in of_kind(ax, "mean"):
        law = planted(RATIOS[row["series"]], SIZES["nano-3"], 2_000_000)
        assert row["loss"] == law + DOMAINS[row["domain"]]
        place = ["topics", "stdlib", "readmes"].index(row["domain"])
        assert (row["loss"], float(place)) in points_on(ax)


def test_equal_loss_budget_of_a_line_in_ln_d():
    known = [(D, 10 - 0.5 * np.log(D)) for D in (1e5, 3e5, 1e6)]
    for D in (1.1e5, 3e5, 7.7e5):
        budget, bound = figures.equal_loss_budget(known, 10 - 0.5 * np.log(D))
        assert bound == "" and budget == pytest.approx(D, rel=1e-12)
    assert figures.equal_loss_budget(known, known[-1][1] - 1e-9) == (1e6, "at least")
    assert figures.equal_loss_budget(known, known[0][1] + 1e-9) == (1e5, "at most")
    assert figures.equal_loss_budget(known[:1], 5.0) is None
    assert figures.equal_loss_budget([*known, (3e6, known[-1][1])], 5.0) is None, "a curve that stops falling"


def test_speedup_marks_are_interpolated_and_bounds_are_named(runs):
    ax = figures.speedup(runs, None, "natural", size="nano-2")
    known = [(float(D), planted(0.0, SIZES["nano-2"], D)) for D in BUDGETS]
    marks = of_kind(ax, "measured", "mix33")
    assert [row["tokens"] for row in marks] == list(BUDGETS)
    for row in marks:
        budget, bound = figures.equal_loss_budget(known, planted(0.33, SIZES["nano-2"], row["tokens"]))
        assert row["speedup"] == budget / row["tokens"] and row["note"] == bound
    assert marks[0]["note"] == "at most" and marks[-1]["speedup"] < 1
    better = figures.speedup(runs, None, "synthetic", size="nano-2")
    assert of_kind(better, "measured", "natural")[-1]["note"] == "at least"


def test_speedup_curves_follow_the_laws_and_beyond_reach_is_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "law_speedup", planted_speedup)
    budgets = (1_000_000, 100_000_000, 1_000_000_000)
    runs = load(tmp_path, rows_of(sizes={"nano-2": SIZES["nano-2"]}, budgets=budgets))
    ax = figures.speedup(runs, planted_fits(runs, unidentifiable=("mix67",)), "synthetic")
    curve = of_kind(ax, "fit", "natural")
    # By hand: the base can reach the loss as long as 400/D^0.45 exceeds the difference 0.2 of the two E.
    for row in curve:
        reach = 400 / row["tokens"] ** 0.45 - 0.2
        assert (row["note"] == "beyond reach") == (reach <= 0) == (row["speedup"] is None)
        if reach > 1e-6:
            needed = (480 / reach) ** (1 / 0.45)
            assert row["speedup"] == pytest.approx(needed / row["tokens"], rel=1e-6)
            assert (row["note"] == "beyond the base's runs") == (needed > budgets[-1])
    assert {row["note"] for row in curve} == {"", "beyond the base's runs", "beyond reach"}
    assert 0 < sum(row["speedup"] is None for row in curve) < len(curve)
    assert any(text.startswith("beyond reach of synthetic") and "natural" in text for text in texts_of(ax))
    assert of_kind(ax, "fit", "mix67") == [] and of_kind(ax, "measured", "mix67"), "no law, but runs"
    low, high = ax.get_ylim()
    assert np.isfinite([low, high]).all()


# --- when there is little ---


def test_every_figure_says_what_is_missing(tmp_path):
    one = load(tmp_path, rows_of(ratios={"natural": 0.0}, sizes={"nano-1": 115_000}, budgets=(1_000_000,), domains={}))
    for draw, words in (
        (lambda: figures.ratio(one), "no ratio"),
        (lambda: figures.speedup(one, None), "nothing to compare"),
        (lambda: figures.domains(one), "no loss per domain"),
        (lambda: figures.joint_fit(one, None, "natural"), "No joint fit"),
    ):
        assert words in " ".join(" ".join(texts_of(draw())).split())
    assert len(of_kind(figures.data_scaling(one, None), "run")) == 1
    assert len(of_kind(figures.model_scaling(one, None), "run")) == 1
    assert "not identifiable" in texts_of(figures.irreducible_loss(one, None))


# --- looks and files ---


def test_looks_are_distinct_and_the_base_is_black():
    names = [f"m{k}" for k in range(70)]
    looks = style.looks(names, "m3")
    assert list(looks) == names and looks["m3"].colour == style.BASE_COLOUR
    assert len({(look.colour, look.marker, str(look.line)) for look in looks.values()}) == 70
    assert len({look.colour for look in style.looks(names[:8], "m3").values()}) == 8


def test_one_mixture_looks_the_same_in_every_figure(runs, fits):
    def colours(ax, series):
        return {line.get_color() for line in ax.get_lines() if line.get_marker() == series.marker}

    look = style.looks(runs.mixtures, "natural")["mix67"]
    for ax in (figures.data_scaling(runs, fits), figures.model_scaling(runs, fits), figures.domains(runs)):
        assert colours(ax, look) == {look.colour}


def test_names_of_the_data_are_drawn_letter_for_letter(tmp_path):
    odd = {"$x_1$ and $y$": 0.0, "_hidden": 0.33, "<b>&url(#a)": 1.0}
    runs = load(tmp_path, rows_of(ratios=odd, sizes={"$s$": 115_000}))
    ax = figures.data_scaling(runs, None)
    svg = style.figure_svg(ax.get_figure(), "fig")
    for shown in ("$x_1$ and $y$", "_hidden", "&lt;b&gt;&amp;url(#a)", "size $s$"):
        assert shown in svg


def test_svg_ids_carry_the_name_and_nothing_is_loaded(runs, fits):
    ax = figures.joint_fit(runs, fits, "natural")
    svg = style.figure_svg(ax.get_figure(), "joint-7")
    ids = re.findall(r'\sid="([^"]*)"', svg)
    assert ids and all(name.startswith("joint-7-") for name in ids) and len(set(ids)) == len(ids)
    referred = re.findall(r'(?:href="#|url\(#)([^")]*)', svg)
    assert referred and set(referred) <= set(ids)
    assert svg == style.figure_svg(ax.get_figure(), "joint-7"), "the same figure, the same text"
    assert not re.search(r'href="(?!#)', svg) and "<metadata" not in svg and "<!DOCTYPE" not in svg


def test_a_figure_can_be_drawn_on_axes_of_the_caller(runs, fits):
    from matplotlib.figure import Figure

    left, right = Figure().subplots(1, 2)
    assert figures.data_scaling(runs, fits, ax=left) is left
    assert figures.irreducible_loss(runs, fits, ax=right) is right
    assert left.get_legend() is not None and of_kind(left, "fit") and of_kind(right, "fit")
    left.get_figure().savefig(io.BytesIO(), format="png")


def test_importing_the_room_does_not_import_matplotlib_and_drawing_does_not_import_pyplot():
    code = (
        "import sys, lingua_synth.report, lingua_synth.report.command; assert 'matplotlib' not in sys.modules; "
        "from lingua_synth.report import style; style.new_axes(3.0); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- the table, cell by cell ---


def test_cells_hold_every_run_once_and_the_largest_comes_last(tmp_path):
    runs = load(tmp_path, rows_of(seeds=(1, 2), noise=0.01)[::-1])
    found = cells(runs, "loss_macro")
    assert [(cell.size, cell.tokens) for cell in found] == [(s, float(D)) for s in SIZES for D in BUDGETS]
    assert sorted(v for cell in found for values in cell.losses.values() for v in values) == sorted(runs["loss_macro"])
    largest = largest_cell(found)
    assert (largest.size, largest.tokens, largest.num_parameters) == ("nano-3", 2_000_000, 1_900_000)


def test_the_base_is_natural_text_whatever_it_is_called_and_wherever_it_stands(tmp_path):
    renamed = {"all synthetic": 1.0, "a third": 0.33, "plain web": 0.0}
    runs = load(tmp_path, rows_of(ratios=renamed))
    assert base_mixture(runs) == "plain web"
    assert natural_source(runs, "plain web") == "natural"
    assert {m: share for m, (_, share) in synthetic_ratios(runs, "plain web").items()} == pytest.approx(renamed)
    assert base_mixture(runs, "a third") == "a third" and natural_source(runs, "a third") is None
    bare = [{k: v for k, v in row.items() if not k.startswith("ratio_")} for row in rows_of()]
    assert base_mixture(load(tmp_path, bare[::-1])) == "natural"
