"""Planted effects of tokenizers and mixtures: found with their sign, covered by the intervals, judged by the margin."""

import json
import math

import numpy as np
import pytest

from lingua_synth.scaling import Runs, compare_tokenizers, fit_study, in_bytes, load_runs, write_runs
from lingua_synth.scaling.paired_means import paired_mean, paired_mean_by_seed
from lingua_synth.scaling.runs import tokenizer_names, tokenizers
from lingua_synth.study.command import main

RATE = {"sp": {"web": 4.0, "hq": 3.6}, "bytes": {"web": 1.0, "hq": 1.0}}
SHARE = {"natural": 0.0, "third": 1 / 3, "hq": 1.0}


def table(
    effect=None,  # (tokenizer, mixture) -> bits per byte on top of the tokenizer's own
    *,
    noise=0.0,
    rng=None,
    seeds=3,
    budgets=(1e6, 2e6, 4e6),
    sizes=("27k",),
    mixtures=("natural", "third", "hq"),
    match="bytes",
    law=lambda tokens: 0.0,
    **columns,
):
    """A study matched in bytes by source: the second tokenizer reads the first one's text."""
    rng = rng or np.random.default_rng(0)
    own = {"sp": 1.8, "bytes": 2.2}
    rows = []
    for name in RATE:
        for k, size in enumerate(sizes):
            for budget in budgets:
                for mixture in mixtures:
                    share = SHARE[mixture]
                    text = {"web": budget * (1 - share) * RATE["sp"]["web"], "hq": budget * share * RATE["sp"]["hq"]}
                    tokens = {source: count / RATE[name][source] for source, count in text.items()}
                    if match == "tokens":
                        tokens = {"web": budget * (1 - share), "hq": budget * share}
                        text = {source: count * RATE[name][source] for source, count in tokens.items()}
                    read, spent = sum(text.values()), sum(tokens.values())
                    for seed in range(seeds):
                        bits = own[name] + law(read) - 0.1 * k + (effect or {}).get((name, mixture), 0.0)
                        rows.append({
                            "run_id": f"{mixture}-{size}-{budget:.0f}-{seed}-{name}", "mixture": mixture, "size": size,
                            "tokenizer": name, "tokenizer_sha256": f"sha of {name}", "n_non_embedding": 27_000 * 2**k,
                            "tokens": spent, "training_bytes": read, "seed": seed, "schedule": "cosine",
                            "ratio_web": tokens["web"] / spent, "ratio_hq": tokens["hq"] / spent,
                            **{f"tokens_{s}": n for s, n in tokens.items()},
                            **{f"training_bytes_{s}": n for s, n in text.items()},
                            "bpb_macro": bits + noise * rng.standard_normal(),
                            "loss_macro": 1.0, "eval_bytes_news": 1000, "flops": spent * 1e6,
                        } | columns)  # fmt: skip
    return Runs({name: [row[name] for row in rows] for name in rows[0]})


EFFECT = {("sp", "third"): -0.02, ("bytes", "third"): -0.02, ("sp", "hq"): 0.05, ("bytes", "hq"): 0.25}


def test_planted_effects_come_back_exactly_without_noise():
    found = compare_tokenizers(table(EFFECT))
    assert (found.tokenizers, found.base, len(found.cells)) == (("sp", "bytes"), "natural", 3)
    differences = {one.mixture: one.overall.value for one in found.differences}
    assert differences == pytest.approx({"natural": 0.4, "third": 0.4, "hq": 0.6})
    effects = {(one.tokenizer, one.mixture): one.overall.value for one in found.effects}
    assert effects == pytest.approx(EFFECT)
    interactions = {one.mixture: one for one in found.interactions}
    assert interactions["third"].overall.value == pytest.approx(0, abs=1e-12)
    assert interactions["hq"].overall.value == pytest.approx(0.2)
    assert (interactions["third"].verdict, interactions["hq"].verdict) == ("rejected", "supported")
    # Text of one budget in tokens: a third of hq is less text, by its tokens of 3.6 bytes instead of 4.
    cell = found.cells[0]
    assert cell.spread == pytest.approx(0, abs=1e-12) and cell.between_mixtures == pytest.approx(4 / 3.6 - 1)
    assert found.bytes_per_token["sp"] == pytest.approx(RATE["sp"])
    shares = {(one.tokenizer, one.source): one for one in found.shares if one.mixture == "third"}
    assert shares["sp", "hq"].of_tokens == pytest.approx(1 / 3)
    # The same share of the text under both, and so another share of the tokens.
    text = 1 / 3 * 3.6 / (1 / 3 * 3.6 + 2 / 3 * 4)
    assert shares["sp", "hq"].of_bytes == shares["bytes", "hq"].of_bytes == pytest.approx(text)
    assert shares["bytes", "hq"].of_tokens == pytest.approx(text)
    assert found.num_unpaired == 0 and not found.notes


def test_another_first_tokenizer_turns_the_signs():
    one, other = compare_tokenizers(table(EFFECT)), compare_tokenizers(table(EFFECT), tokenizer="bytes")
    assert other.tokenizers == ("bytes", "sp")
    for a, b in zip(one.interactions, other.interactions, strict=True):
        assert a.overall.value == pytest.approx(-b.overall.value)


def test_intervals_cover_as_often_as_they_say_one_by_one_and_together():
    rng = np.random.default_rng(1)
    alone, together, single = 0, 0, 0
    for _ in range(300):
        found = compare_tokenizers(table(EFFECT, noise=0.01, rng=rng, budgets=(1e6, 2e6)))
        ((low, high),) = [one.overall.interval for one in found.effects if (one.tokenizer, one.mixture) == ("sp", "hq")]
        alone += low <= 0.05 <= high
        inside = [
            low <= true <= high
            for true, (low, high) in zip((0, 0.2), (one.overall.interval for one in found.interactions), strict=True)
        ]
        together += all(inside)
        single += inside[1]
    assert 0.92 <= alone / 300 <= 0.98
    assert together / 300 >= 0.93 and single / 300 >= 0.95  # each at 97.5 %


def test_no_interaction_is_hardly_ever_supported_and_a_large_one_nearly_always():
    rng = np.random.default_rng(2)
    verdicts = []
    for _ in range(100):
        found = compare_tokenizers(table(EFFECT, noise=0.005, rng=rng, budgets=(1e6, 2e6)), margin=0.03)
        verdicts.append([one.verdict for one in found.interactions])
    none, large = zip(*verdicts, strict=True)
    assert none.count("supported") <= 2 and none.count("rejected") > 60
    assert large.count("supported") > 95 and "rejected" not in large


def test_too_few_runs_decide_nothing():
    (one,) = compare_tokenizers(table(EFFECT, seeds=1, mixtures=("natural", "hq"))).interactions
    assert one.overall.interval is None and one.verdict == "undecided" and "one seed" in one.why
    found = compare_tokenizers(table(EFFECT, noise=0.3, seeds=2, mixtures=("natural", "hq")))
    assert found.interactions[0].verdict == "undecided" and "too few runs" in str(found)
    # An interval that excludes 0 and holds the margin.
    found = compare_tokenizers(table(EFFECT, noise=0.003, mixtures=("natural", "hq")), margin=0.2)
    assert found.interactions[0].verdict == "undecided"
    assert "may lie within the margin" in found.interactions[0].why


def test_best_mixtures_and_their_order_by_tokenizer():
    effect = EFFECT | {("sp", "hq"): -0.1}
    found = compare_tokenizers(table(effect, noise=0.002))
    assert {one.tokenizer: one.best for one in found.best if one.cell == 2} == {"sp": "hq", "bytes": "third"}
    assert all(one.ties == (one.best,) for one in found.best)
    (agreement,) = found.agreement
    assert (agreement.num_pairs, agreement.num_alike, agreement.num_told) == (3, 1, 3)
    assert set(agreement.reversed) == {("natural", "hq"), ("third", "hq")}
    noisy = compare_tokenizers(table(effect, noise=0.5))
    assert any(len(one.ties) == 3 for one in noisy.best) and noisy.agreement[0].num_told == 0


def test_laws_are_in_bytes_and_side_by_side():
    # 1.2 bits + B / D^0.3 in bytes of text: 0.3 under both, though their tokens are four times as many.
    budgets = [1e6 * 2**k for k in range(6)]
    runs = table(law=lambda read: 60 * read**-0.3, budgets=budgets, noise=1e-4, mixtures=("natural",))
    laws = compare_tokenizers(runs).laws
    assert [law.tokenizer for law in laws] == ["sp", "bytes"]
    for law, own in zip(laws, (1.8, 2.2), strict=True):
        assert law.fit.params["beta"] == pytest.approx(0.3, rel=0.05)
        assert law.fit.params["E_at_N"] == pytest.approx(own * math.log(2), rel=0.01)
        low, high = law.intervals["beta"]
        assert low < 0.3 < high
        # The slope is the local exponent: beta, times the share of the loss that is not floor.
        low, high = law.slope_interval
        assert low < law.slope < high < 0 and law.slope > -0.3
    bare = table(law=lambda read: 0, budgets=budgets, noise=0, seeds=1, mixtures=("natural",))
    powers = bare.with_columns(bpb_macro=3 * bare["training_bytes"] ** -0.2)
    assert [law.slope for law in compare_tokenizers(powers).laws] == pytest.approx([-0.2, -0.2])
    assert "no law" in str(compare_tokenizers(powers))  # it does not level off
    joint = table(
        law=lambda read: 60 * read**-0.3, budgets=budgets, sizes=("27k", "54k", "108k"), mixtures=("natural",)
    )
    assert {law.size for law in compare_tokenizers(joint).laws} == {""}


def test_a_table_in_bytes_is_fitted_and_tells_the_tokenizers_apart():
    runs = in_bytes(table(EFFECT))
    assert runs.mixtures[:3] == ["natural (sp)", "third (sp)", "hq (sp)"] and not tokenizers(runs)
    row = runs.select(run_id="hq-27k-1000000-0-bytes")
    assert row["tokens"][0] == row["training_bytes"][0] == 3.6e6
    assert row["loss_macro"][0] == pytest.approx((2.2 + 0.25) * math.log(2))
    third = runs.select(run_id="third-27k-1000000-0-sp")
    text = 3.6 / 3 / (3.6 / 3 + 4 * 2 / 3)
    assert third["ratio_hq"][0] == pytest.approx(text) and third["tokens_hq"][0] == pytest.approx(3.6e6 / 3)
    assert set(fit_study(runs, num_bootstraps=0).joint) == set(runs.mixtures)


@pytest.mark.parametrize(
    ("runs", "keys", "message"),
    [
        (table(), {"target": "loss_macro"}, "loss_macro is in nats per token.*target=bpb_macro"),
        (table(), {"target": "seed"}, "target is a column of bits per byte"),
        (table(), {"tokenizer": "tiktoken"}, "no run has the tokenizer 'tiktoken'; there are: sp, bytes"),
        (table(), {"base": "web"}, "base mixture 'web' is not in the runs table"),
        (table(), {"match": "steps"}, "match is one of bytes, tokens, flops"),
        (table(), {"margin": -1.0}, "margin is a difference in bits per byte"),
        (table(), {"tolerance": 0.0}, "tolerance is a share of a budget"),
        (table(), {"level": 1.0}, "level is a share"),
        (table().select(tokenizer="sp"), {}, "the table has runs of sp alone"),
        (table(match="tokens", budgets=(1e6,)), {}, "no two runs of sp and bytes have the same size, mixture, seed"),
        (Runs({k: v for k, v in table().columns.items() if k != "training_bytes"}), {}, "no column training_bytes"),
        (table(seed=1), {}, "runs hq-27k-1000000-0-sp and hq-27k-1000000-1-sp are of one tokenizer, mixture"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_says_why(runs, keys, message):
    with pytest.raises(ValueError, match=message):
        compare_tokenizers(runs, **keys)


def test_other_held_out_text_is_refused():
    runs = table()
    other = np.where(runs["tokenizer"] == "sp", 1000, 1001)
    with pytest.raises(ValueError, match=r"other text of news \(sp: 1,000 bytes; bytes: 1,001 bytes\)"):
        compare_tokenizers(runs.with_columns(eval_bytes_news=other))
    silent = Runs({name: values for name, values in runs.columns.items() if name != "eval_bytes_news"})
    assert "taken to be the same" in compare_tokenizers(silent).notes[0]


def test_runs_that_are_off_in_what_is_matched_are_left_out_by_name():
    runs = table()
    far = (runs["tokenizer"] == "bytes") & (runs["training_bytes"] < 5e6)
    off = runs.with_columns(training_bytes=runs["training_bytes"] * np.where(far, 1.05, 1.0))
    found = compare_tokenizers(off)
    assert "by more than 2 %: hq-27k-1000000-0-bytes (5.0 %)" in found.notes[0]
    assert found.differences[0].by_cell[0] is None and found.differences[0].by_cell[1] is not None
    assert all(one.by_cell[0] is not None for one in compare_tokenizers(off, tolerance=0.1).differences)


def test_matched_in_tokens_or_flops_is_paired_by_these():
    for match in ("tokens", "flops"):
        found = compare_tokenizers(table(EFFECT, match="tokens"), match=match)
        assert {one.mixture: one.overall.value for one in found.interactions} == pytest.approx({"third": 0, "hq": 0.2})


def test_within_one_tokenizer_only(tmp_path, capsys):
    from lingua_synth.report.command import main as report
    from lingua_synth.scaling.command import main as fit

    runs = table(EFFECT, noise=0.001, seeds=1)
    with pytest.raises(ValueError, match=r"2 tokenizers \(sp: 9, bytes: 9.*tokenizer=sp"):
        fit_study(runs)
    path = tmp_path / "runs.csv"
    write_runs(runs, path)
    assert any("runs of different tokenizers (sp: 9, bytes: 9)" in note for note in load_runs(path).notes)
    for verb in (fit, report):
        with pytest.raises(ValueError, match="Laws are fitted, and mixtures compared, within one: tokenizer=sp"):
            verb([f"runs={path}", f"out={tmp_path / 'out'}"])
        with pytest.raises(ValueError, match="no run has the tokenizer 'tiktoken'; there are: sp, bytes"):
            verb([f"runs={path}", f"out={tmp_path / 'out'}", "tokenizer=tiktoken"])
    assert fit([f"runs={path}", f"out={tmp_path / 'one'}", "tokenizer=sp", "bootstraps=0", "figures=false"]) == 0
    said = capsys.readouterr().out
    assert "9 runs, 3 mixtures" in said and "different tokenizers" not in said
    assert fit([f"runs={path}", f"out={tmp_path / 'all'}", "per_byte=true", "bootstraps=0", "figures=false"]) == 0
    said = capsys.readouterr().out
    assert "18 runs, 6 mixtures" in said and "D counts bytes of text" in said


def test_schedules_are_compared_within_one_tokenizer(tmp_path, capsys):
    runs = table({("sp", "third"): -0.5, ("bytes", "third"): 0.5}, seeds=2, mixtures=("natural", "third"))
    changing = np.where(runs["mixture"] == "third", "web: 1 until 1/2; hq: 1", "constant")
    losses = {"mixture_schedule": changing, "loss_macro": runs["bpb_macro"], "ratio_web": 1.0, "ratio_hq": 0.0}
    columns = {name: values if np.ndim(values) else np.full(len(runs), values) for name, values in losses.items()}
    # Of one budget in tokens, as schedules pair.
    write_runs(runs.with_columns(**columns, tokens=np.round(runs["training_bytes"], -6)), tmp_path / "runs.csv")
    words = ["compare", f"table={tmp_path / 'runs.csv'}"]
    with pytest.raises(ValueError, match="runs of 2 tokenizers"):
        main(words)
    assert main([*words, "tokenizer=bytes"]) == 0
    said = capsys.readouterr().out
    assert "third (web: 1 until 1/2; hq: 1) - natural: worse" in said and "+0.5" in said


def test_one_vocabulary_of_two_names_and_one_name_of_two():
    columns = {
        "run_id": ["a", "b", "c"],
        "tokenizer": ["sp", "sp-8", "sp"],
        "tokenizer_sha256": ["x", "x", "yyyyyyyyy"],
    }
    assert tokenizer_names(Runs(columns)) == ["sp-x", "sp-x", "sp-yyyyyyyy"]
    assert tokenizer_names(Runs({"run_id": ["a"]})) == [""]


def test_the_verb_prints_and_saves(tmp_path, capsys):
    write_runs(table(EFFECT, noise=0.001), tmp_path / "runs.csv")
    save = tmp_path / "compared.json"
    assert main(["compare-tokenizers", f"table={tmp_path / 'runs.csv'}", f"save={save}", "margin=0.05"]) == 0
    said = capsys.readouterr().out
    assert "does the effect depend on the tokenizer by more than 0.05?" in said and "supported" in said
    found = json.loads(save.read_text())
    assert found["interactions"][1]["mixture"] == "hq" and found["interactions"][1]["verdict"] == "supported"
    assert found["margin"] == 0.05 and len(found["cells"]) == 3


@pytest.mark.parametrize(("num_cells", "num_seeds"), [(3, 3), (4, 2), (3, 5)])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0, 3.0])
def test_luck_that_a_seed_s_cells_share_is_counted_once(num_cells, num_seeds, shared):
    rng = np.random.default_rng(5)
    inside, pooled = 0, 0
    for _ in range(400):
        luck = shared * rng.standard_normal(num_seeds)
        cells = [dict(enumerate(luck + rng.standard_normal(num_seeds))) for _ in range(num_cells)]
        low, high = paired_mean_by_seed(cells, 0.95).interval
        inside += low <= 0 <= high
        low, high = paired_mean([list(cell.values()) for cell in cells], 0.95).interval
        pooled += low <= 0 <= high
    assert 0.91 <= inside / 400 <= 0.995
    assert pooled / 400 < 0.88 or shared < 1  # what the question is for


def test_seeds_are_counted_where_they_stand_out():
    cells = [{1: 1.0, 2: 2.0, 3: 3.0}, {1: 1.1, 2: 1.9, 3: 3.1, 4: 9.0}]
    found = paired_mean_by_seed(cells, 0.95)
    assert (found.counts, found.freedom, found.num_pairs) == ("seeds", 2, 7)
    # Over the three seeds that both cells have: means 1.05, 1.95, 3.05, each cell taken from its own mean.
    half = 4.30265 * np.std([1.05, 1.95, 3.05], ddof=1) / math.sqrt(3)
    assert found.interval == pytest.approx((found.value - half, found.value + half), rel=1e-5)
    assert paired_mean_by_seed([{1: 1.0, 2: 2.0}, {1: 2.0, 2: 1.0}], 0.95).counts == "pairs"
    assert paired_mean_by_seed([{1: 1.0, 2: 2.0}, {3: 1.0, 4: 2.0}], 0.95).counts == "pairs"
    assert paired_mean_by_seed([{1: 1.0, 2: 2.0}], 0.95) == paired_mean([[1.0, 2.0]], 0.95)


def test_the_mean_of_cells_is_student_s():
    # t of 97.5 % with 3 degrees of freedom, from a printed table; cells of 3 and 2 pairs.
    found = paired_mean([[-0.25, -0.5, -0.75], [-0.125, -0.375]], 0.95)
    error = math.sqrt(0.15625 / 3 * (1 / 3 + 1 / 2) / 4)
    assert found.interval == pytest.approx((-0.375 - 3.18245 * error, -0.375 + 3.18245 * error), rel=1e-5)
    assert (found.num_pairs, found.freedom) == (5, 3)


def test_the_report_of_one_tokenizer_has_a_section_on_all(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from lingua_synth.report.canvas import drawn
    from lingua_synth.report.command import main as report
    from lingua_synth.report.tokenizer_figures import bits_per_byte, mixture_effects
    from lingua_synth.report.tokenizers import tokenizer_section

    runs = table(EFFECT, noise=0.001)
    found = compare_tokenizers(runs)
    points = [row for row in drawn(bits_per_byte(found)) if row["series"] == "bytes" and row["value"] == "hq"]
    cells = [[one for one in found.levels if (one.tokenizer, one.mixture) == ("bytes", "hq")][k] for k in range(3)]
    assert [row["bpb_macro"] for row in points] == [float(np.mean(cell.values)) for cell in cells]
    rows = {(row["series"], row["mixture"]): row for row in drawn(mixture_effects(found))}
    for one in found.effects:
        row = rows[one.tokenizer, one.mixture]
        assert (row["effect"], (row["low"], row["high"])) == (one.overall.value, one.overall.interval)
    with pytest.raises(ValueError, match="no cell has the size '1B'; there are 27k"):
        bits_per_byte(found, size="1B")

    write_runs(table(EFFECT, noise=0.001, seeds=2), tmp_path / "runs.csv")
    words = [f"runs={tmp_path / 'runs.csv'}", "bootstraps=0"]
    assert report([*words, f"out={tmp_path / 'report'}", "tokenizer=bytes"]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Does the tokenizer change this?" in page and "of the tokens" in page
    assert "The effect of “hq” under “sp” differs from that under “bytes” by more than 0.01 bits per byte" in page
    for name in ("tokenizers_bytes", "tokenizers_effects"):
        assert (tmp_path / "report" / "figures" / f"{name}.csv").is_file()
    assert "18 runs, 3 mixtures" in capsys.readouterr().out
    # One tokenizer has no such section; tokenizers that do not pair have one that says why.
    assert tokenizer_section(runs.select(tokenizer="sp"), "sp", "loss_macro") is None
    apart = runs.take((runs["tokenizer"] == "sp") == (runs["seed"] == 0))
    assert "they are not compared: no two runs" in tokenizer_section(apart, "sp", "loss_micro").body[0]
    by_tokens = tokenizer_section(table(EFFECT, match="tokens", budgets=(1e6, 2e6)), "sp", "loss_macro")
    assert "equally many tokens" in by_tokens.body[0]
