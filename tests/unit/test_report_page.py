"""The page: self-contained, escaped, in sentences that follow the table, honest where there is no number."""

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_doubles import BUDGETS, SIZES, PlantedFit, load, planted, planted_fits, planted_speedup, rows_of

pytest.importorskip("matplotlib")

from lingua_synth.report import Bullets, Picture, Sample, Section, Table, figures, style, write_report
from lingua_synth.report.blocks import block_html
from lingua_synth.report.command import main
from lingua_synth.report.tables import runs_section

VOID = {"meta", "br", "hr", "img", "link", "input", "use", "path", "stop"}


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes, text outside and inside the figures."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open, self.problems = [], [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(("svg" in self.open, data))

    @property
    def prose(self):
        """The text outside figures, white space evened out."""
        return " ".join("".join(text for drawn, text in self.texts if not drawn).split())


def page_of(tmp_path, rows, *, unidentifiable=(), ratios=None, fitted=True, **options):
    runs = load(tmp_path, rows)
    fits = planted_fits(runs, unidentifiable, ratios) if fitted else None
    return Page(write_report(tmp_path / "out", runs, fits, title=options.pop("title", "A study"), **options))


@pytest.fixture(autouse=True)
def _quick_doubles(request, monkeypatch):
    """`scaling.speedup` solves laws of its own; for planted doubles the answer is known in closed form."""
    real = figures.law_speedup
    if "study" not in request.fixturenames:
        # Drawing every figure a second time for its PNG takes half of a page's time and shows these tests nothing.
        monkeypatch.setattr(style, "figure_png", lambda figure: b"")
    monkeypatch.setattr(
        figures, "law_speedup", lambda a, b, D: planted_speedup(a, b, D) if isinstance(a, PlantedFit) else real(a, b, D)
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(page, folder, runs, fits) of a full study in which one mixture's laws are not identifiable."""
    folder = tmp_path_factory.mktemp("study")
    runs = load(folder, rows_of())
    fits = planted_fits(runs, unidentifiable=("synthetic",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "law_speedup", planted_speedup)
        path = write_report(folder / "out", runs, fits, title="A study")
    return Page(path), folder / "out", runs, fits


# --- self-contained ---


def test_the_page_is_whole_and_loads_nothing(study):
    page = study[0]
    assert page.problems == [] and page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & set(page.tags)
    for tag, key, value in page.attributes:
        assert key not in ("src", "srcset", "action", "data", "background"), (tag, key, value)
        assert not key.startswith("on"), (tag, key)
        if key.endswith("href"):
            assert value.startswith("#"), (tag, key, value)
    assert "@import" not in page.source
    assert all(reference.startswith("#") for reference in re.findall(r"url\(([^)]*)\)", page.source))
    # The only addresses are the two names of XML namespaces.
    assert set(re.findall(r"https?://[^\s\"'<]*", page.source)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_ids_are_unique_and_every_reference_has_its_target(study):
    page = study[0]
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(set(ids)) == len(ids) > 100
    referred = re.findall(r'(?:href="|url\()#([^")]*)', page.source)
    assert set(referred) <= set(ids)


def test_figures_lie_beside_the_page_three_ways_and_the_csv_holds_what_is_drawn(study):
    page, out, runs, fits = study
    names = sorted(path.stem for path in (out / "figures").glob("*.svg"))
    sizes, mixtures = [f"data_scaling{k}" for k in ("", "_2", "_3")], [f"joint_{k}" for k in (1, 2, 3, 4)]
    assert names == sorted([*sizes, "model_scaling", "ratio", "domains", "speedup", "irreducible_loss", *mixtures])
    assert page.tags.count("svg") == len(names) == page.tags.count("figure")
    for name in names:
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert (out / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    with open(out / "figures" / "data_scaling.csv", newline="") as file:
        read = list(csv.DictReader(file))
    drawn = figures.drawn(figures.data_scaling(runs, fits))
    assert len(read) == len(drawn)
    for row, point in zip(read, drawn, strict=True):
        assert (row["kind"], row["series"]) == (point["kind"], point["series"])
        assert float(row["tokens"]) == point["tokens"] and float(row["loss_macro"]) == point["loss_macro"]
    assert {p.name for p in (out).iterdir()} == {"report.html", "figures"}


def test_the_same_table_gives_the_same_bytes(tmp_path):
    runs = load(tmp_path, rows_of(sizes={"nano-1": 115_000, "nano-2": 460_000}, budgets=BUDGETS[:2]))
    first = write_report(tmp_path / "one", runs, planted_fits(runs), title="A study").read_bytes()
    assert first == write_report(tmp_path / "two", runs, planted_fits(runs), title="A study").read_bytes()


def test_the_page_is_written_last(tmp_path, monkeypatch):
    runs = load(tmp_path, rows_of(sizes={"nano-1": 115_000}))
    write_report(tmp_path / "out", runs, None, title="First")
    before = (tmp_path / "out" / "report.html").read_bytes()

    def full_disk(figure, dpi=200):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(style, "figure_png", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path / "out", runs, None, title="Second")
    assert (tmp_path / "out" / "report.html").read_bytes() == before
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path / "new", runs, None, title="Second")
    assert not (tmp_path / "new" / "report.html").exists()
    assert [path for path in (tmp_path / "new").rglob("*") if path.suffix == ".tmp"] == []


# --- escaped ---


def test_names_and_samples_of_the_data_survive_as_text(tmp_path):
    few = {"sizes": {"nano-1": 115_000}, "budgets": BUDGETS[:2]}
    odd = {"natural": 0.0, "<b>&\"'": 0.33, "</svg><script>alert(1)</script>": 1.0}
    plain = {"natural": 0.0, "aaaaaa": 0.33, "bbbbbb": 1.0}
    sample = "<script>alert(2)</script> &amp; \x00\x1b[31m\ud800 end"
    section = [Section("<i>How</i>", ["<u>a paragraph</u>", Sample(sample, "<s>"), Table(["<h>"], [["<c>"]])])]
    page = page_of(tmp_path, rows_of(ratios=odd, **few), ratios=odd, title="<title> & more", sections_before=section)
    tame = page_of(tmp_path / "tame", rows_of(ratios=plain, **few), ratios=plain, sections_before=[])
    assert page.problems == [] and "script" not in page.tags
    assert not {"i", "u", "s", "h", "c", "title>"} & set(page.tags)
    assert page.tags.count("svg") == tame.tags.count("svg") and page.tags.count("b") == tame.tags.count("b")
    for text in (
        "<b>&\"'",
        "</svg><script>alert(1)</script>",
        "<i>How</i>",
        "<u>a paragraph</u>",
        "<c>",
        "<title> & more",
    ):
        assert text in page.prose
    assert "<script>alert(2)</script> &amp; \ufffd\ufffd[31m\ufffd end" in page.prose


# --- sentences that follow the table ---


def test_the_largest_cell_is_told_with_its_own_numbers(study):
    page = study[0]
    base, third = (planted(r, SIZES["nano-3"], 2_000_000) for r in (0.0, 0.33))
    shown = round(third, 3) - round(base, 3)
    assert (
        "At the largest model and budget (size nano-3, 2M tokens), replacing 33 % of the natural tokens with "
        f"synthetic ones (mixture “mix33”) changed the held-out loss from {base:.3f} to {third:.3f} nats per token "
        f"(+{shown:.3f}, +{100 * (third / base - 1):.1f} %)."
    ) in page.prose
    assert "replacing all of the natural tokens with synthetic ones (mixture “synthetic”)" in page.prose
    assert "“natural” has the lowest loss in all 12 cells" in page.prose
    assert "Held-out loss falls with every larger training budget, in all 12 series." in page.prose
    assert "Held-out loss falls with every larger model, in all 16 series." in page.prose
    assert "48 trainings: 4 mixtures" in page.prose and "Each combination was trained once." in page.prose


def test_another_table_is_told_otherwise(tmp_path):
    rows = rows_of()
    for row in rows:
        if row["mixture"] == "mix33" and row["size"] == "nano-3":
            row["loss_macro"] -= 0.2 * row["tokens"] / 2_000_000
        if row["mixture"] == "synthetic" and row["size"] == "nano-1" and row["tokens"] == 500_000:
            row["loss_macro"] += 3
    rows.remove(next(row for row in rows if row["run_id"] == "mix67-nano-2-500000-0"))
    page = page_of(tmp_path, rows)
    assert "lowest loss belongs to “natural” in" in page.prose and "and “mix33” in" in page.prose
    assert "in 11 of 12 series; not in “synthetic” at size nano-1" in page.prose
    assert "1 of the 48 possible combinations is absent" in page.prose
    assert "“mix33” after 2M tokens (size nano-3) is better than “natural” after its largest budget" in page.prose


def test_the_tables_hold_every_cell_and_every_run(tmp_path):
    rows = rows_of(seeds=(1, 2), noise=0.01, domains={})
    page = page_of(tmp_path, rows)
    for mixture in ("natural", "mix67"):
        mean = np.mean(
            [r["loss_macro"] for r in rows if (r["mixture"], r["size"], r["tokens"]) == (mixture, "nano-2", BUDGETS[1])]
        )
        assert f"{mean:.4f}" in page.prose
    table = runs_section(load(tmp_path, rows)).body[0]
    assert len(table.rows) == len(rows) and list(table.header) == list(rows[0])
    assert [row[list(table.header).index("loss_macro")] for row in table.rows] == [row["loss_macro"] for row in rows]
    assert page.prose.count("mix67-nano-2-500000-") == 2
    pooled = re.search(r"Repeated seeds differ by a standard deviation of ([\d.]+) nats per token", page.prose)
    groups = {}
    for row in rows:
        groups.setdefault((row["mixture"], row["size"], row["tokens"]), []).append(row["loss_macro"])
    assert float(pooled[1]) == pytest.approx(np.sqrt(np.mean([np.var(g, ddof=1) for g in groups.values()])), abs=5e-5)


# --- identifiable or not ---


def test_identifiable_fits_are_shown_with_intervals_and_others_as_words(tmp_path):
    page = page_of(tmp_path, rows_of(), unidentifiable=("synthetic", "mix67"))
    E = 2.4 + 0.2 * 0.33
    assert f"{E:.3f} ({0.99 * E:.3f} to {1.02 * E:.3f})" in page.prose
    assert "not identifiable: E sits on its bound 0; the condition number is 3.1e+12" in page.prose
    assert "is identified for “natural” and “mix33”, not for “mix67” and “synthetic”" in page.prose
    for ratio in (0.67, 1.0):
        E = 2.4 + 0.2 * ratio
        assert not re.search(rf"\b{E:.3f} \(", page.prose), "an E that is not identifiable must not be printed"
    assert "lowest irreducible loss E is estimated for “natural”" in page.prose
    assert "its interval overlaps with “mix33”, so the table does not separate them" in page.prose


def test_without_intervals_none_is_claimed(tmp_path):
    runs = load(tmp_path, rows_of(sizes={"nano-1": 115_000}))
    fits = planted_fits(runs)
    for entry in [
        *fits.joint.values(),
        *(e for by in (fits.data, fits.model) for d in by.values() for e in d.values()),
    ]:
        entry.bootstrap = None
    page = Page(write_report(tmp_path / "out", runs, fits, title="t"))
    assert "“natural”: 2.4 (no interval) nats per token; without intervals this table does not tell" in page.prose
    assert "overlaps with" not in page.prose


def test_when_nothing_is_identifiable_no_parameter_is_printed_anywhere(tmp_path):
    page = page_of(tmp_path, rows_of(), unidentifiable=("natural", "mix33", "mix67", "synthetic"))
    assert "could not be identified for any mixture" in page.prose
    assert "No law of loss against tokens at one model size can be identified (12 tried)." in page.prose
    assert "No law of loss against model size at one budget can be identified (16 tried)." in page.prose
    assert page.prose.count("E sits on its bound 0; the condition number") == 3, "once for each kind of law"
    assert "“natural”, “mix33”, “mix67” and “synthetic”: E sits on its bound 0" in page.prose
    fits = page.prose[page.prose.rindex("Every fit, with") : page.prose.rindex("All runs")]
    assert not re.search(r"\d\.\d+ \(", fits) and "90.0" not in fits and "0.42" not in fits
    drawn = "".join(text for inside, text in page.texts if inside)
    assert drawn.count("not identifiable") >= 4 + 4


# --- tables that hold little ---


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"ratios": {"natural": 0.0}, "budgets": (1_000_000, 2_000_000)}, "all runs have the same mixture"),
        ({"sizes": {"nano-1": 115_000}, "budgets": (1_000_000, 2_000_000)}, "all runs have the same size"),
        ({"budgets": (1_000_000,)}, "all runs have the same budget"),
        ({"ratios": {"a": 0.5, "b": 0.5}, "sizes": {"nano-1": 115_000}}, "do not differ in it"),
        ({"domains": {}, "sizes": {"nano-1": 115_000}}, "no loss per domain"),
        ({"ratios": {"natural": 0.0}, "sizes": {"x": 1}, "budgets": (7,), "domains": {}}, "same mixture"),
    ],
)
def test_a_table_that_holds_little_gives_a_page_that_says_what_is_missing(tmp_path, options, missing):
    for fitted in (True, False):
        page = page_of(tmp_path, rows_of(**options), ratios=options.get("ratios"), fitted=fitted)
        assert page.problems == [] and "What this table cannot show" in page.prose and missing in page.prose


def test_a_table_without_ratios_or_parameter_counts_still_gives_a_page(tmp_path):
    dropped = ("ratio_", "n_non", "n_lingua", "seed", "bpb", "epochs_")
    rows = [{k: v for k, v in row.items() if not k.startswith(dropped)} for row in rows_of()]
    page = page_of(tmp_path, rows, fitted=False)
    assert "no column n_non_embedding" in " ".join(text for drawn, text in page.texts if drawn)
    assert "training on “mix33” instead of “natural” changed the held-out loss" in page.prose


# --- blocks ---


def test_blocks_are_checked(tmp_path):
    with pytest.raises(ValueError, match="1 cells under a header of 2"):
        Table(["a", "b"], [["x"]])
    ax = style.new_axes(2.0)
    ax.plot([1, 2], [3, 4], label="mine")
    with pytest.raises(ValueError, match="small letters"):
        Picture("No spaces!", ax, "")
    runs = load(tmp_path, rows_of(sizes={"nano-1": 115_000}))
    twice = [Section("x", [Picture("mine", ax, "a"), Picture("mine", ax, "b")])]
    with pytest.raises(ValueError, match="both called mine"):
        write_report(tmp_path / "out", runs, None, title="t", sections_before=twice)
    once = [Section("x", [Picture("mine", ax, "A figure of the caller's.")])]
    page = Page(write_report(tmp_path / "out", runs, None, title="t", sections_before=once))
    assert "Figure 1. A figure of the caller's." in page.prose
    assert (tmp_path / "out/figures/mine.csv").read_text().splitlines() == [
        "kind,series,x,y",
        "line,mine,1.0,3.0",
        "line,mine,2.0,4.0",
    ]


def test_table_cells_by_kind():
    table = Table(
        ["n", "x", "t"], [[1234567, 0.123456, "a<b"], [np.int64(5), float("nan"), None]], strong=frozenset({(0, 1)})
    )
    shown = block_html(table, {})
    assert '<td class="n">1,234,567</td><td class="n"><b>0.1235</b></td><td>a&lt;b</td>' in shown
    assert '<td class="n">5</td><td class="n">–</td><td>–</td>' in shown
    texts = block_html(Table(["a", "b"], [["−0.5 %", "nano-1"], ["1,200", "2"]]), {})
    assert '<td class="n">−0.5 %</td><td>nano-1</td>' in texts and '<td class="n">1,200</td><td>2</td>' in texts
    assert block_html(Bullets(["a & b"], lead="L"), {}) == '<p class="lead">L</p><ul><li>a &amp; b</li></ul>'
    cut = block_html(Sample("x" * 50 + "\r\n", most=10), {})
    assert "[... 42 more characters]" in cut and "x" * 11 not in cut


def test_bad_arguments_of_the_page(tmp_path):
    runs = load(tmp_path, rows_of())
    with pytest.raises(ValueError, match="fits are of loss_macro"):
        write_report(tmp_path / "out", runs, planted_fits(runs), title="t", target="loss_micro")
    with pytest.raises(ValueError, match="natural, mix33, mix67, synthetic"):
        write_report(tmp_path / "out", runs, None, title="t", base="web")
    with pytest.raises(ValueError, match="loss_typo"):
        write_report(tmp_path / "out", runs, None, title="t", target="loss_typo")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        write_report(tmp_path / "file", runs, None, title="t")
    assert not (tmp_path / "out").exists()


# --- the verb, with real fits ---


def test_the_verb_fits_and_writes(tmp_path, capsys):
    budgets = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)
    sizes = {**SIZES, "nano-4": 7_600_000}
    load(tmp_path, rows_of(ratios={"natural": 0.0, "mix33": 0.33}, sizes=sizes, budgets=budgets))
    assert main([f"runs={tmp_path / 'runs.csv'}", f"out={tmp_path / 'out'}", "bootstraps=20"]) == 0
    assert "report.html: 40 runs, 2 mixtures" in capsys.readouterr().out
    page = Page(tmp_path / "out" / "report.html")
    assert page.problems == []
    # The table is exactly on the planted laws, so the fits must be these laws.
    assert "irreducible loss E is estimated for “natural”: 2.4" in page.prose
    with open(tmp_path / "out" / "figures" / "irreducible_loss.csv", newline="") as file:
        E = {row["series"]: float(row["E"]) for row in csv.DictReader(file)}
    assert pytest.approx({"natural": 2.4, "mix33": 2.4 + 0.2 * 0.33}, rel=1e-6) == E
    with open(tmp_path / "out" / "figures" / "speedup.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "fit"]
    assert rows
    p_base, p_mix = 400.0, 400.0 * (1 + 0.2 * 0.33)
    for row in rows:  # D_base(L) / D at equal loss, from the planted laws by hand
        D = float(row["tokens"])
        gap = 0.2 * 0.33 + p_mix / D**0.45
        assert float(row["speedup"]) == pytest.approx((p_base / gap) ** (1 / 0.45) / D, rel=1e-4)


def test_a_table_too_small_for_any_law_is_told_so_by_the_verb(tmp_path, capsys):
    load(tmp_path, rows_of(sizes={"a": 1e5, "b": 4e5}, budgets=(1e5, 3e5), noise=0.02))
    assert main([f"runs={tmp_path / 'runs.csv'}", f"out={tmp_path / 'out'}", "bootstraps=20"]) == 0
    assert "not identifiable for natural, mix33, mix67, synthetic" in capsys.readouterr().out
    page = Page(tmp_path / "out" / "report.html")
    assert page.problems == [] and "could not be identified for any mixture" in page.prose


def test_an_empty_table_gives_a_page_that_says_so(tmp_path):
    header = ",".join(rows_of()[0])
    (tmp_path / "runs.csv").write_text(header + "\n")
    assert main([f"runs={tmp_path / 'runs.csv'}", f"out={tmp_path / 'out'}"]) == 0
    page = Page(tmp_path / "out" / "report.html")
    assert page.problems == [] and "there are no runs" in page.prose and "svg" not in page.tags


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "report needs runs="),
        (["runs=x.csv"], "report needs out="),
        (["runs=none.csv", "out=o"], "no runs table none.csv"),
        (["rums=x.csv"], "did you mean runs"),
    ],
)
def test_bad_words_of_the_verb(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        main(words)


def test_the_verb_refuses_names_that_are_not_in_the_table(tmp_path):
    load(tmp_path, rows_of())
    common = [f"runs={tmp_path / 'runs.csv'}", f"out={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match="natural, mix33, mix67, synthetic"):
        main([*common, "base=web"])
    with pytest.raises(ValueError, match="loss_marco"):
        main([*common, "target=loss_marco"])
    with pytest.raises(ValueError, match="0 or more"):
        main([*common, "bootstraps=-1"])
    assert not (tmp_path / "out").exists()
