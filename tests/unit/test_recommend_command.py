"""`lingua-synth recommend` and what it reads: generation folders, prices by hand, repeats of a table."""

import json

import numpy as np
import pytest

from lingua_synth.cli import main
from lingua_synth.generate.cost import rate_error
from lingua_synth.recommend import fresh_runs, read_generators, repeats_of, size_in_words
from lingua_synth.scaling import RepetitionLaw, Runs, kinds_of, simulate_study, write_runs
from lingua_synth.scaling.hull import TOLERANCE, in_hull, outside, section, trained_places
from lingua_synth.scaling.repetition import PUBLISHED_R_D
from lingua_synth.tokens.shards import FORMAT, VERSION


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "runs.csv"
    runs = simulate_study("mixtures", noise=0.001, seed=3, ratios=[0.1, 0.3, 0.6, 1.0])[0]
    mine = runs.take([name == "natural" or name[:4] in ("reph", "ques") for name in runs["mixture"].tolist()])
    write_runs(Runs({name: values for name, values in mine.columns.items() if "textbook" not in name}), path)
    return path


def folder(path, recipe="hq", workers=((1.0, 1000), (1.1, 1000), (0.9, 1000)), shards=((900, 1000),) * 3):
    """A generation run as its files tell it."""
    (path / "workers").mkdir(parents=True)
    kept, written = (sum(column) for column in zip(*shards, strict=True))
    rows = [{"output_tokens": output, "generated_tokens": generated} for output, generated in shards]
    manifest = {"engine": {"name": "vllm"}, "output_tokens": kept, "recipe": {"name": recipe}, "shards": rows}
    (path / "manifest.json").write_text(json.dumps(manifest))
    for k, (hours, tokens) in enumerate(workers):
        usage = {"gpu_busy_h": hours, "gpu_startup_h": 0.0, "gpu_idle_h": 0.0, "generated_tokens": tokens}
        (path / "workers" / f"{k}.json").write_text(json.dumps(usage))
    assert written == sum(tokens for _, tokens in workers)
    return path


def words(table, *more):
    return ["recommend", f"runs={table}", "n=1B", "tokens=50B", "bootstraps=40", *more]


def test_the_verb_answers_and_writes(table, tmp_path, capsys):
    out = tmp_path / "answer.json"
    given = ["gpu_hours_per_billion=40", "keep_rate.rephrased=0.8", "num_runs=20", f"out={out}", "changes=false"]
    given += [f"figure={tmp_path / 'saves.svg'}"]
    assert main(words(table, *given)) == 0
    shown, plain = capsys.readouterr().out, json.loads(out.read_text())
    assert "N 858M (non_embedding), 50B tokens, 20 runs: generate" in shown and "n=1B is size 1B of the table" in shown
    assert plain["answer"] == "rephrased" and plain["unit"] == "GPU-hours" and plain["changes"] == []
    assert plain["generators"]["rephrased"]["keep_rate"] == 0.8 and plain["generators"]["questions"]["keep_rate"] == 1.0
    assert plain["question"]["generation"] == {"rephrased": 50.0, "questions": 40.0}
    assert "rephrased" in (tmp_path / "saves.svg").read_text()
    best = plain["options"][0]
    assert best["interval"][0] < best["saving"] < best["interval"][1] and best["shown"]
    # In money: the same answer at another unit, and text bought from a service.
    money = ["price_per_billion.rephrased=100", "price_per_billion.questions=1e9", "gpu_hour_price=2", "num_runs=20"]
    assert main(words(table, *money, "changes=false", "natural_tokens=20B", "natural_price_per_billion=50")) == 0
    shown = capsys.readouterr().out
    assert "money" in shown and "100 money per billion tokens written" in shown and "of natural text in Muenn" in shown


def test_a_generation_folder_is_priced_by_what_it_spent(table, tmp_path, capsys):
    run = folder(tmp_path / "written")
    assert main(words(table, f"generator.rephrased={run}", "num_runs=20", "changes=false")) == 0
    shown = capsys.readouterr().out
    assert "1e+06 GPU-hours per billion tokens written, 90 % kept" in shown and "natural text alone" in shown
    assert "questions takes no part: what it costs is not known" in shown
    # Its recipe says which source it is, where the table has one of that name or kind.
    kinds = kinds_of(simulate_study("mixtures", noise=0)[0], "natural")
    one = read_generators(kinds, folders=str(run))
    assert set(one) == {"rephrased"} and one["rephrased"].per_billion == pytest.approx(1e6 / 0.9)
    # A name with dots, as the command line takes it apart.
    dotted = {"hq-llama3.2-1b": kinds["rephrased"]}
    assert set(read_generators(dotted, gpu_hours_per_billion={"hq-llama3": {"2-1b": 40}})) == set(dotted)
    with pytest.raises(ValueError, match="made by the recipe 'tables', and the table has"):
        read_generators(kinds, folders=str(folder(tmp_path / "other", recipe="tables")))
    (tmp_path / "shards").mkdir()
    manifest = {"format": FORMAT, "version": VERSION, "tokens": 1350, "files": []}
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps(manifest))
    more = read_generators(kinds, folders={"rephrased": run}, shards={"rephrased": tmp_path / "shards"})
    assert more["rephrased"].tokens_ratio == pytest.approx(2.0)
    assert more["rephrased"].per_billion == pytest.approx(2e6 / 0.9)


def test_how_far_a_measured_rate_may_be_off(tmp_path):
    run = folder(tmp_path / "run", shards=((800, 1000), (900, 1000), (950, 1000)))
    # By hand: leave one process out, then one shard.
    hours, kept = np.log([2.0 / 2, 1.9 / 2, 2.1 / 2]), np.log([1850 / 2000, 1750 / 2000, 1700 / 2000])
    by_hand = np.sqrt(sum(2 / 3 * np.sum((x - x.mean()) ** 2) for x in (hours, kept)))
    assert rate_error(run) == pytest.approx(by_hand)
    kinds = kinds_of(simulate_study("nano", noise=0)[0], "natural")
    assert read_generators(kinds, folders=str(run))["synthetic"].error == pytest.approx(by_hand)
    assert read_generators(kinds, folders=str(run), rate_error_by_hand=0.5)["synthetic"].error == 0.5
    two = folder(tmp_path / "two", workers=((1.0, 1000), (1.1, 2000)))
    assert rate_error(two) is None
    assert read_generators(kinds, folders=str(two))["synthetic"].error == 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "what synthetic text costs is not known"),
        (["gpu_hours_per_billion.poems=4"], "no synthetic source or kind 'poems'; there are rephrased, questions"),
        (["gpu_hours_per_billion=4", "price_per_billion=3", "gpu_hour_price=2"], "has several rates"),
        (["price_per_billion=3"], "needs gpu_hour_price="),
        (["gpu_hours_per_billion=4", "natural_price_per_billion=3"], "needs gpu_hour_price="),
        (["gpu_hours_per_billion=4", "keep_rate=90"], "keep_rate is a share"),
        (["gpu_hours_per_billion=four"], "gpu_hours_per_billion of rephrased is a number; got 'four'"),
        (["gpu_hours_per_billion=4", "tokens_ratio=0"], "tokens_ratio must be above 0"),
        (["gpu_hours_per_billion=4", "rate_error=-1"], "rate_error is a relative error"),
        (["generator.rephrased=nowhere"], "no finished generation run"),
        (["gpu_hours_per_billion=4", "shards=nowhere"], "beside the generation run"),
        (["gpu_hours_per_billion=4", "gpu_hour_price=0"], "above 0"),
        (["gpu_hours_per_billion=4", "n=huge"], "n='huge' is no size of the table"),
        (["gpu_hours_per_billion=4", "tokens=many"], "no count of tokens"),
        (["gpu_hours_per_billion=4", "figure=saves.docx"], "ends in .png, .svg or .pdf"),
        (["gpu_hours_per_billion=4", "gpu=abacus"], "no GPU 'abacus'"),
        (["gpu_hours_per_billion=4", "calibrate=fast"], "calibrate is a size and its tokens per second"),
    ],
)
def test_impossible_questions_are_refused(table, more, message):
    with pytest.raises(ValueError, match=message):
        main(words(table, *more))


def test_outside_the_runs_it_says_why(table, tmp_path, capsys):
    asked = ["recommend", f"runs={table}", "n=70B", "tokens=50B", "bootstraps=40", "gpu_hours_per_billion=4"]
    assert main([*asked, f"out={tmp_path / 'answer.json'}"]) == 0
    assert json.loads((tmp_path / "answer.json").read_text())["answer"] == "none"
    assert "no answer. N = 7e+10 parameters lies outside" in capsys.readouterr().out


def test_a_size_is_a_row_a_preset_or_a_count(table):
    runs = simulate_study("mixtures", noise=0)[0]
    assert size_in_words("1B", runs, "total") == (
        float(runs.N("total")[runs["size"] == "1B"][0]),
        "size 1B of the table",
    )
    assert size_in_words("llama3-8B", runs, "total") == (8_030_261_248.0, "preset llama3-8B")
    assert size_in_words("858M", runs, "non_embedding") == (858e6, "a count")


# --- where the runs are ---


def test_the_section_is_that_of_the_hull():
    rng = np.random.default_rng(0)
    places = np.unique(np.round(rng.uniform(0, 3, (12, 2)), 1), axis=0)
    for axis in (0, 1):
        for value in np.linspace(places[:, axis].min(), places[:, axis].max(), 7):
            low, high = section(places, axis, value)
            for other, inside in ((low + 1e-6, True), (high - 1e-6, True), (low - 1e-6, False), (high + 1e-6, False)):
                asked = np.array([value, other] if axis == 0 else [other, value])
                assert in_hull(places, asked) == inside, (axis, value, other)
        assert section(places, axis, places[:, axis].max() + 2 * TOLERANCE) is None
    for asked in np.concatenate([places, places]) + rng.uniform(-0.05, 0.05, (2 * len(places), 2)):
        found = section(places, 0, asked[0])
        assert in_hull(places, asked) == (found is not None and found[0] <= asked[1] <= found[1]), asked


def test_a_place_is_outside_by_name():
    runs = simulate_study("mixtures", noise=0)[0]
    places = trained_places(runs, "natural", "rephrased")
    assert outside(places, "rephrased", 858e6, 50e9) == ""
    assert "lies outside the runs of rephrased, which span" in outside(places, "rephrased", 858e6, 1e13)


# --- repeats ---


def repeated(R=6.0, num=1):
    """Runs of natural text alone, of which some repeat it: losses by the law of repeats."""
    law = RepetitionLaw()
    params = {"E": 1.9, "A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.33, "R_D": R}
    axes = np.meshgrid([1e8, 3e8, 1e9, 3e9], [1e9, 4e9, 16e9], [1.0, 4.0, 12.0], indexing="ij")
    N, D, passes = (axis.ravel() for axis in axes)
    noise = 1e-4 * np.random.default_rng(num).standard_normal(len(N))
    loss = law.predict(params, N=N, D=D, U=D / passes) * np.exp(noise)
    rows = {
        "run_id": [f"r{k}" for k in range(len(N))], "mixture": ["web"] * len(N), "size": [f"{n:g}" for n in N],
        "ratio_web": np.ones(len(N)), "ratio_hq": np.zeros(len(N)), "n_total": N, "n_non_embedding": N, "tokens": D,
        "unique_tokens_web": D / passes, "loss_macro": loss,
    }  # fmt: skip
    return Runs(rows)


def test_what_repeats_are_worth_comes_from_the_table_where_it_says():
    runs = repeated()
    assert len(fresh_runs(runs)) == 12
    found = repeats_of(runs, "web", "web", target="loss_macro", n_definition="non_embedding", num=60)
    assert abs(found.R / 6 - 1) < 0.1 and "by 36 runs of it alone" in found.origin
    drawn = found.draws(200, np.random.default_rng(0))
    assert len(drawn) == 200 and 5 < np.median(drawn) < 7 and np.std(drawn) > 0
    other = repeats_of(runs, "web", "hq", target="loss_macro", n_definition="non_embedding")
    assert other.R == PUBLISHED_R_D and "no run of hq alone reads a token twice" in other.origin
    guessed = other.draws(500, np.random.default_rng(0))
    assert guessed.min() >= 4 and guessed.max() <= 23
    one_size = repeats_of(runs.take(runs["size"] == "1e+08"), "web", "web", target="loss_macro", n_definition="total")
    assert abs(one_size.R / 6 - 1) < 0.3 and "by 9 runs of it alone" in one_size.origin
    few = runs.take(np.flatnonzero(runs["size"] == "1e+08")[:4])
    unknown = repeats_of(few, "web", "web", target="loss_macro", n_definition="total")
    assert unknown.R == PUBLISHED_R_D and "Muennighoff" in unknown.origin and "fewer points than" in unknown.origin
