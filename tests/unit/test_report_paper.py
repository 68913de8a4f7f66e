"""The parts of the page that answer the paper: figures of an `Evidence`, sections, the verb's keys."""

import csv
import json
import re

import numpy as np
import pytest
from report_doubles import load, rows_of

pytest.importorskip("matplotlib")

from lingua_synth.config import run_command
from lingua_synth.report import figures, paper_figures, style
from lingua_synth.report.blocks import Judgement, Judgements, block_html
from lingua_synth.report.cells import main_mixtures
from lingua_synth.report.command import main
from lingua_synth.report.evidence import Evidence
from lingua_synth.scaling import DataLaw, Runs, fit
from lingua_synth.scaling.command import main as fit_main

SIZES = {"nano-1": 115_000, "nano-2": 460_000, "nano-3": 1_900_000}
BUDGETS = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)
RATIOS = {"natural": 0.0, "hq33": 1 / 3, "hq67": 2 / 3, "hq": 1.0}


def rows(noise=0.0005, **options):
    """Rows whose synthetic source is called hq."""
    given = {"ratios": RATIOS, "sizes": SIZES, "budgets": BUDGETS, "noise": noise, **options}
    return [
        {("ratio_hq" if key == "ratio_generated" else key): value for key, value in row.items()}
        for row in rows_of(**given)
    ]


def prose(path):
    """The text of a page outside tags and figures, white space evened out."""
    source = re.sub(r"<svg.*?</svg>|<style.*?</style>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", source).split())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(folder of the table and its fits, folder of the report) by the two verbs."""
    folder = tmp_path_factory.mktemp("paper")
    load(folder, rows())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "figure_png", lambda figure: b"")
        common = [f"runs={folder}/runs.csv", "bootstraps=20"]
        assert run_command(fit_main, [*common, f"out={folder}/fits", "figures=false"]) == 0
        asked = [*common, f"out={folder}/out", f"fits={folder}/fits", "n=nano-2", "tokens=1M", "to_tokens=40M"]
        assert run_command(main, asked) == 0
    return folder, folder / "out"


def test_the_page_judges_foretells_and_recommends(study):
    _, out = study
    text = prose(out / "report.html")
    for heading in ("The paper's claims on this table", "What to train on", "What the laws foretell"):
        assert heading.replace("'", "&#x27;") in text
    # Planted: the more synthetic text, the worse, for every size and budget.
    with open(out / "claims.csv", newline="") as file:
        verdicts = {row["claim"]: row["verdict"] for row in csv.DictReader(file)}
    assert verdicts["speedup_five"] == verdicts["third_rephrased_faster"] == "rejected"
    assert verdicts["pure_rephrased_not_better"] == verdicts["mixtures_beat_pure"] == "supported"
    assert verdicts["rephrased_no_degradation"] == "rejected"
    assert verdicts["pure_textbook_worse"] == verdicts["larger_generator_no_gain"] == "undecided"
    assert 'class="judgement rejected"' in (out / "report.html").read_text()
    assert "Not asked of this table" in text and "It takes textbooks beside natural text" in text
    advice = json.loads((out / "recommendation.json").read_text())
    assert (advice["N"], advice["D"], advice["refusal"], advice["choice"]) == (460_000, 1e6, None, None)
    assert "For 460k non-embedding parameters and 1M training tokens: natural text alone, “natural”" in text


def test_fits_that_are_read_give_the_same_page(study, tmp_path, monkeypatch):
    folder, out = study
    monkeypatch.setattr(style, "figure_png", lambda figure: b"")
    words = [f"runs={folder}/runs.csv", "bootstraps=20", "n=nano-2", "tokens=1M", "to_tokens=40M"]
    assert main([*words, f"out={tmp_path}"]) == 0
    assert (tmp_path / "claims.csv").read_bytes() == (out / "claims.csv").read_bytes()
    for name in ("data_extrapolation", "speedup", "best_ratio", "irreducible_loss"):
        assert (tmp_path / "figures" / f"{name}.csv").read_bytes() == (out / "figures" / f"{name}.csv").read_bytes()
    other = [f"runs={folder}/runs.csv", f"out={tmp_path}", f"fits={folder}/fits"]
    with pytest.raises(ValueError, match="are of loss_macro with N non_embedding"):
        main([*other, "target=loss_micro"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kinds.mq=hq"], "no synthetic source mq in the table; it has hq"),
        (["kinds.hq=poem"], "one of hq, qa, textbook, other"),
        (["generation_hours.zz=3"], "no synthetic source 'zz'"),
        (["generation_hours.hq=0"], "positive number"),
        (["to_tokens=1M"], "goes beyond the runs, past 4M tokens"),
        (["n=big"], "no count of tokens"),
        (["margins.los=0.1"], "no margins.los; there is loss"),
        (["margins.loss=-1"], "0 or more"),
        (["fits=nowhere"], "no fits at nowhere"),
    ],
)
def test_bad_keys_are_refused_before_anything_is_written(study, tmp_path, words, message):
    folder, _ = study
    with pytest.raises(ValueError, match=message):
        main([f"runs={folder}/runs.csv", f"out={tmp_path}/out", "bootstraps=0", *words])
    assert not (tmp_path / "out").exists()


def test_a_place_outside_the_runs_is_refused_on_the_page(study, tmp_path, monkeypatch):
    folder, _ = study
    monkeypatch.setattr(style, "figure_png", lambda figure: b"")
    words = [f"runs={folder}/runs.csv", f"fits={folder}/fits", "bootstraps=20", f"out={tmp_path}"]
    assert main([*words, "n=70B"]) == 0
    text = prose(tmp_path / "report.html")
    assert "there is no recommendation. N = 7e+10 parameters lies outside the runs of hq, which span 1.15e+05" in text


def test_held_out_runs_are_diamonds_and_no_part_of_the_law(study):
    folder, _ = study
    runs = load(folder, rows())
    evidence = Evidence.of(runs, None)
    drawn = figures.drawn(paper_figures.validation(evidence, "D"))
    mine = runs.take((runs["mixture"] == "hq33") & (runs["size"] == "nano-3"))
    kept = mine.take(mine["tokens"] < 4e6)
    law = fit(DataLaw(), D=kept["tokens"], loss=kept["loss_macro"])
    held = [row for row in drawn if row["kind"] == "held out" and row["series"] == "hq33"]
    assert [row["loss_macro"] for row in held] == mine["loss_macro"][mine["tokens"] == 4e6].tolist()
    assert held[0]["note"] == f"law: {float(law.predict(D=4e6))!r}"
    checked = paper_figures.validations(evidence, "D")
    header, table = paper_figures.validation_rows(checked)
    assert len(table) == 4 and all(len(row) == len(header) for row in table)
    assert table[1][2] == pytest.approx(100 * abs(float(law.predict(D=4e6)) / held[0]["loss_macro"] - 1))
    assert all("takes one more" in one for one in paper_figures.validations(evidence, "N").values())


def test_extrapolations_begin_with_the_runs_and_end_where_asked(study):
    _, out = study
    with open(out / "figures" / "data_extrapolation.csv", newline="") as file:
        drawn = list(csv.DictReader(file))
    beyond = [float(row["tokens"]) for row in drawn if row["kind"] == "beyond" and row["series"] == "hq"]
    assert (min(beyond), max(beyond)) == (4e6, 40e6)
    assert all(float(row["low"]) <= float(row["loss_macro"]) <= float(row["high"]) for row in drawn if row["low"])


def test_the_paper_went_forty_times_further():
    runs = Runs({
        "run_id": ["a"], "mixture": ["m"], "size": ["3B"], "n_non_embedding": [2.687e9], "tokens": [200e9],
        "loss_macro": [2.5],
    })  # fmt: skip
    evidence = Evidence.of(runs, None)
    assert paper_figures.beyond(evidence, "D") == 8e12
    assert paper_figures.beyond(evidence, "N") == 4e11


def test_the_map_of_best_ratios_shows_every_cell_and_its_ties(tmp_path):
    many = [row for k in range(3) for row in rows(seeds=(k,), noise=0)]
    rng = np.random.default_rng(0)
    for row in many:
        row["run_id"] += f"-{row['seed']}"
        row["loss_macro"] *= np.exp(0.0005 * rng.standard_normal())
        if row["mixture"] == "hq33":  # planted: as good as natural text at the smallest size, worse elsewhere
            row["loss_macro"] *= 0.99 if row["size"] == "nano-1" else 1.0
    runs = load(tmp_path, many)
    natural = {(r["size"], r["tokens"]): r["loss_macro"] for r in many if r["mixture"] == "natural"}
    evidence = Evidence.of(runs, None)
    drawn = [row for row in figures.drawn(paper_figures.best_ratios(evidence, "hq")) if row["kind"] == "best"]
    assert len(drawn) == len(natural) == 15
    for row in drawn:
        assert row["low"] <= row["value"] <= row["high"] and row["note"].startswith("ties: ")
        if row["size"] != "nano-1":
            assert row["value"] == 0.0 and row["note"] == "ties: 0"
    with pytest.raises(ValueError, match="no kind 'hq' by two generators"):
        paper_figures.generators(evidence, "hq")


def test_generators_beside_each_other_and_against_their_cost():
    table = {"run_id": [], "mixture": [], "size": [], "tokens": [], "seed": [], "loss_macro": [], "ratio_cc": []}
    sources = ("hq-m-8b", "hq-m-70b")
    table |= {f"ratio_{source}": [] for source in sources}
    for source, share, seed in [
        ("", 0.0, 0), ("", 0.0, 1), *((s, r, k) for s in sources for r in (0.05, 0.2) for k in (0, 1))
    ]:  # fmt: skip
        mixture = f"{source}-{share:g}" if source else "cc"
        for name, value in {
            "run_id": f"{mixture}-{seed}", "mixture": mixture, "size": "1B", "tokens": 5e9, "seed": seed,
            "loss_macro": 3.0 - share * (0.1 if "70b" in source else 0.2) + 0.001 * seed * (1 + share),
            "ratio_cc": 1 - share,
        }.items():  # fmt: skip
            table[name].append(value)
        for one in sources:
            table[f"ratio_{one}"].append(share if one == source else 0.0)
    evidence = Evidence.of(Runs(table), None)
    assert paper_figures.generator_kinds(evidence) == ["hq"]
    drawn = figures.drawn(paper_figures.generators(evidence, "hq"))
    by_name = {name: [r for r in drawn if r["series"] == name] for name in ("cc", "m-8b", "m-70b")}
    assert [r["synthetic_ratio"] for r in by_name["m-8b"]] == [5.0, 20.0]
    assert by_name["m-70b"][1]["loss_macro"] == pytest.approx(2.98 + 0.0006)
    assert all(r["low"] < r["loss_macro"] < r["high"] for r in by_name["m-8b"])
    cost = figures.drawn(paper_figures.generators(evidence, "hq", hours={"hq-m-8b": 100.0}))
    assert [r["generation_gpu_hours"] for r in cost if r["series"] == "m-8b"] == [25.0, 100.0]
    assert not [r for r in cost if r["series"] == "m-70b"]


def test_many_mixtures_have_a_colour_a_source_and_figures_show_a_dozen():
    shares = (0.1, 1 / 3, 0.5, 2 / 3, 1.0)
    names = ["cc", *(f"{s}{r:.2f}" for s in ("hq", "qa", "txbk") for r in shares)]
    columns = {"mixture": names, "size": ["1B"] * 16, "tokens": [1e9] * 16, "loss_macro": [3.0] * 16, "run_id": names}
    columns["ratio_cc"] = [1.0, *(1 - r for _ in range(3) for r in shares)]
    for k, s in enumerate(("hq", "qa", "txbk")):
        columns[f"ratio_{s}"] = [0.0, *(r if j == k else 0.0 for j in range(3) for r in shares)]
    runs = Runs(columns)
    shown = main_mixtures(runs, "cc")
    assert shown == ["cc", *(f"{s}{r:.2f}" for s in ("hq", "qa", "txbk") for r in (1 / 3, 2 / 3, 1.0))]
    looks = style.looks_of(runs)
    assert len({look.colour for look in looks.values()}) == 16, "no two mixtures share a colour"
    assert looks["cc"].colour == "#000000"
    assert looks["hq0.33"].marker == looks["qa0.33"].marker != looks["hq0.67"].marker
    few = runs.take([0, 1, 2])
    assert style.looks_of(few) == style.looks(few.mixtures, "cc")


def test_judgements_are_escaped():
    shown = block_html(Judgements([Judgement("supported", "<b>a</b>", ["<i>", "& c"])]), {})
    assert "<b>a" not in shown and "&lt;b&gt;a" in shown and "<li>&lt;i&gt;</li><li>&amp; c</li>" in shown
    with pytest.raises(AssertionError):
        block_html(Judgements([Judgement("perhaps", "")]), {})
