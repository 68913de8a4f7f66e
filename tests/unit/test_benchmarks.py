"""The benchmark scripts at a tiny size, without peers: their tables, their messages, and the rules of others."""

import base64
import json
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lingua_synth.tokens import build_tokenizer, tokenize

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODULES = (
    "answering",
    "measure",
    "corpus",
    "rules",
    "readers",
    "loader",
    "tokenization",
    "encoders",
    "train",
    "evaluate",
    "fitters",
    "scaling",
    "generate",
    "analysis",
    "dynamic_mixing",
    "scale",
    "scale_cases",
)


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder's modules importable by their short names, for this test only."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus of 200 long and 300 short documents, in two files each."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(300)]
    folder = tmp_path_factory.mktemp("text")
    for name, count, length in (("long", 200, 90), ("short", 300, 30)):
        (folder / name).mkdir()
        for chunk in range(2):
            lines = [json.dumps({"text": " ".join(rng.choices(words, k=length))}) for _ in range(count // 2)]
            (folder / name / f"{name}.chunk.{chunk:02d}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A small rank file: all bytes, and some pairs."""
    tokens = [bytes([byte]) for byte in range(256)] + [a + b for a in (b"a", b"b", b" ") for b in (b"a", b"c", b"e")]
    path = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


def run(script, *arguments, **env):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    if "LINGUA_DIR" not in env:
        environment.pop("LINGUA_DIR", None)
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)


def rows(page, heading):
    """The rows of the first table below a heading, by their first cell."""
    section = page.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    tables = [block.splitlines() for block in section.split("\n\n") if block.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[0][2:]]
    return {row[0]: row[1:] for row in cells}


# --- the scripts ---


@pytest.fixture(scope="module")
def loader_run(text, tmp_path_factory):
    """The page of a small run, what was printed, and the folder of its corpus."""
    folder = tmp_path_factory.mktemp("loader")
    done = run(
        "loader.py", "--work", folder / "work", "--corpus", text, "--out", folder / "page.md", "--seq-len", 64,
        "--rounds", 1, "--seconds", 0.02, "--positions", 1000, "--share-mtok", 0.1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (corpus,) = (folder / "work").glob("tokens-*")
    return (folder / "page.md").read_text(), done.stdout, corpus


def test_loader_prints_and_writes_its_tables(loader_run, text):
    written, printed, corpus = loader_run
    assert printed.startswith(written.rstrip("\n")), "what is written is what was printed"

    rates = rows(written, "Pre-tokenized batches")
    for name in ("floor: contiguous read", "floor: exact mix, random windows", "**lingua_synth**"):
        assert float(rates[name][0].split()[0].replace(",", "")) > 0
    assert rates["**lingua_synth**"][2] == "x 1.00"
    for peer in ("grain, no threads", "Megatron core", "litdata", "MosaicML Streaming"):
        assert peer in rates or f"{peer} is left out: " in written
    assert "Meta Lingua is left out" in written

    assert len(rows(written, "First batch at a position")["**lingua_synth**"]) == 3
    assert rows(written, "Start, state and resume")["**lingua_synth**, prefetch 8"][4] == "yes"
    deviations = written.split("in brackets the proven bound")[1]
    assert "| 0.67, 0.33  | 0.500 (0.50) | 0.500 (0.500) |" in deviations
    shares = rows(written, "Shares of the tokens")
    assert float(shares["**lingua_synth**"][2]) < 1
    goals = rows(written, "Goals")
    assert goals["shares of tokens"][-1] == "met" and goals["state"][-1] == "met"
    for path in (text, corpus, Path.home(), BENCHMARKS):
        assert str(path) not in written, "no path of a machine in a page"


def test_letters_name_the_source_of_every_token(loader_run):
    _, _, corpus = loader_run
    for name, letter in (("long", "a"), ("short", "b")):
        (file,) = (corpus / "letters" / name).glob("*.chunk.00.jsonl")
        texts = [json.loads(line)["text"] for line in file.open()]
        assert [len(text) for text in texts] == np.load(corpus / "flat" / f"{name}.lengths.npy").tolist()
        assert sum(map(len, texts)) == (corpus / "flat" / f"{name}.int32").stat().st_size // 4
        assert set("".join(texts)) == {letter}


def test_tokenization_prints_and_writes_its_tables(text, ranks, tmp_path):
    page = tmp_path / "page.md"
    done = run(
        "tokenization.py", "--work", tmp_path / "work", "--corpus", text, "--tokenizer", ranks, "--out", page,
        "--rounds", 1, "--every", 10,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    written = page.read_text()
    ids = rows(written, "Ids")["**lingua_synth**, tiktoken"]
    assert int(ids[0].replace(",", "")) > 1500 and ids[1] == "0"
    cases = rows(written, "From jsonl to tokens")
    floor, ours = cases["floor: orjson + tiktoken + numpy packing"], cases["**lingua_synth**, tiktoken, 1 process"]
    assert floor[0] == ours[0], "the floor packs the tokens that the library writes"
    assert float(ours[1]) > 0
    assert "Meta Lingua is left out" in written
    assert not list((tmp_path / "work").glob("shards-*")), "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "rates,speed"], "no section speed; there are: rates, resume"),
        (["--python", "grain"], "write PEER=PATH"),
        (["--python", "spark=/bin/sh"], "a peer of: grain"),
        (["--python", "grain=/no/such"], "/no/such is no program"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--corpus", "/no/such"], "must hold two folders of .jsonl files, long and short"),
        (["--tokenizer", "/no/such"], "/no/such"),
    ],
)
def test_loader_refuses_bad_arguments(arguments, message, tmp_path):
    done = run("loader.py", "--work", tmp_path, *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_is_no_lingua_is_refused(tmp_path):
    for script in ("loader.py", "tokenization.py"):
        done = run(script, "--work", tmp_path, LINGUA_DIR=str(tmp_path))
        assert done.returncode == 2 and "is no checkout of Meta Lingua" in done.stderr


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Token shards where a quickstart has them: two sources and a held-out domain."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(60)]
    folder = tmp_path_factory.mktemp("quickstart")
    for name, count in (("natural", 300), ("synthetic", 300), ("heldout/near", 10)):
        texts = [{"text": " ".join(rng.choices(words, k=40))} for _ in range(count)]
        path = folder / f"{name.replace('/', '-')}.jsonl"
        path.write_text("".join(json.dumps(text) + "\n" for text in texts))
        tokenize(str(path), folder / "tokens" / name, build_tokenizer("bytes"), num_workers=1, progress=False)
    return folder


def test_dynamic_mixing_prints_and_writes_its_tables(quickstart, tmp_path):
    page = tmp_path / "page.md"
    done = run(
        "dynamic_mixing.py", "--shards", quickstart, "--sizes", "nano-27k", "--budget", 16384, "--intervals", 4,
        "--seeds", 1, "--steps", "1,2", "--rounds", 1, "--workers", 1, "--evaluation-tokens", 300, "--out", page,
        "--read", 256, "--reading-rounds", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = page.read_text()
    assert done.stdout.startswith(written.rstrip("\n"))
    losses = rows(written, "Losses")
    (alike,) = (name for name in losses if name.startswith("feedback, beside static, "))
    assert set(losses) == {"ramp", "late annealing", "early", "feedback", alike}
    for name in ("ramp", "late annealing", "early"):
        assert losses[name][-1] == "25.00", "as much synthetic text as the static mixture"
    assert losses["feedback"][3] == "none, one seed"
    off = rows(written, "Shares")
    expected = ("static", "ramp", "late annealing", "early", "feedback", alike.removeprefix("feedback, beside "))
    assert {name: row[2] for name, row in off.items()} == dict.fromkeys(expected, "0")
    assert off["feedback"][:2] == ["1", "4"], "a run of four intervals"
    costs = rows(written, "Cost")
    assert (costs["static"][1], costs["static"][3]) == ("x 1.00", "1.000")
    assert set(costs) == {"static", "ramp", "late annealing", "early", "feedback"}
    assert all(float(row[0]) > 0 for row in costs.values())
    assert str(quickstart) not in written


def test_dynamic_mixing_refuses_what_it_cannot_run(benchmarks, quickstart, tmp_path, capsys):
    import dynamic_mixing

    for words, message in ((["--shards", tmp_path], "holds no token shards"), (["--budget", 1000], "no whole number")):
        with pytest.raises(SystemExit) as left:
            dynamic_mixing.main(["--shards", str(quickstart), *map(str, words)])
        assert left.value.code == 2 and message in capsys.readouterr().err


# --- the parts ---


def test_workers_that_cannot_run_are_left_out(benchmarks, tmp_path):
    from measure import LeftOut, Worker

    with pytest.raises(LeftOut, match="cannot start"):
        Worker(tmp_path / "x.py", [], python=str(tmp_path / "no-python"))
    script = tmp_path / "ends.py"
    script.write_text("import sys; print('{}', flush=True); sys.stdin.readline(); sys.exit(3)")
    with Worker(script, []) as worker, pytest.raises(LeftOut, match="exit code 3"):
        worker.ask("read")
    script.write_text('print(\'{"error": "no library"}\')')
    with pytest.raises(LeftOut, match="no library"):
        Worker(script, [])


def test_a_worker_answers_on_through_prints_and_errors(benchmarks, tmp_path):
    from measure import LeftOut, Worker

    script = tmp_path / "talks.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from answering import answer_all, measured, methods_of, take_output
class Session:
    def double(self, x):
        print("a library prints"); os.write(1, b"and writes"); return {{"doubled": 2 * x}}
    def write(self):
        return measured(lambda: 7)
say = take_output()
say({{"version": "x 1"}})
answer_all(say, methods_of(Session()))
""")
    with Worker(script, []) as worker:
        assert worker.started == {"version": "x 1"}
        assert worker.ask("double", x=21) == {"doubled": 42}
        with pytest.raises(LeftOut, match="TypeError: "):
            worker.ask("double", x=None)
        written = worker.ask("write")
        assert written["records"] == 7 and written["cpu_s"] >= 0 and written["peak_mb"] > 1


def test_worst_deviation_is_that_of_every_prefix(benchmarks):
    from rules import worst_deviation

    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = rng.integers(1, 30, rng.integers(1, 6)).tolist()
        shares = [Fraction(weight, sum(weights)) for weight in weights]
        order = rng.integers(0, len(shares), rng.integers(1, 40))
        counts, worst = [0] * len(shares), Fraction(0)
        for k, source in enumerate(order.tolist(), 1):
            counts[source] += 1
            worst = max([worst, *(abs(count - share * k) for count, share in zip(counts, shares, strict=True))])
        assert worst_deviation(order, shares) == worst


def test_integer_weights_drift_as_published(benchmarks):
    from rules import integer_order, integer_weights, worst_deviation

    shares = [Fraction(67, 100), Fraction(33, 100)]
    assert integer_weights(shares) == [203, 100]
    # 203/303 for 0.67 is 33 sequences in 10^6, 3.3 in 10^5; the rule itself is off by less than 1.
    order = integer_order(shares, 100_000)
    assert abs(int((order == 0).sum()) - 100_000 * 203 / 303) < 1
    assert 3 < worst_deviation(order, shares) < 5


def test_integer_order_is_the_one_by_one_definition(benchmarks):
    from rules import integer_order, integer_weights

    shares = [Fraction(5, 17), Fraction(3, 17), Fraction(8, 17), Fraction(1, 17)]
    weights = integer_weights(shares)

    def counts(k):
        found, rest = [], sum(weights)
        for weight in weights:
            left = k * (rest - weight) // rest
            found.append(k - left)
            k, rest = left, rest - weight
        return found

    order = integer_order(shares, 2000).tolist()
    for k in range(2000):
        grown = [b - a for a, b in zip(counts(k), counts(k + 1), strict=True)]
        assert grown[order[k]] == 1 and sum(grown) == 1


def test_greedy_order_takes_who_is_furthest_behind(benchmarks):
    from rules import greedy_order, worst_deviation

    halves = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)]
    assert greedy_order(halves, 8).tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert worst_deviation(greedy_order(halves, 4000), halves) < 1


def test_text_is_dealt_into_long_and_short_documents(benchmarks, monkeypatch, tmp_path):
    import corpus

    from lingua_synth.documents import Document

    paragraph = "some words of a paragraph. " * 8
    units = [Document(str(i), "\n\n".join(f"{i} {j} {paragraph}" for j in range(9)), {}) for i in range(40)]
    monkeypatch.setattr(corpus, "python_documents", lambda: iter(units))
    summary = corpus.write_text(tmp_path, 3_000_000)
    lengths = {}
    for name in corpus.SOURCES:
        files = sorted((tmp_path / name).glob(f"{name}.chunk.*.jsonl"))
        assert len(files) == corpus.NUM_CHUNKS
        lengths[name] = [len(json.loads(line)["text"]) for file in files for line in file.open()]
    for name, (mean, _) in corpus.LENGTHS.items():
        assert np.mean(lengths[name]) == pytest.approx(mean, rel=0.15), "of some hundred log-normal documents"
    assert sum(lengths["long"]) / sum(map(sum, lengths.values())) == pytest.approx(2 / 3, rel=0.02)
    assert "each paragraph comes about" in summary


def test_arguments_lose_their_paths(benchmarks):
    from measure import public_arguments

    given = ["--work", "/a/b", "--rounds", "3", "--python", "grain=/c/d"]
    assert public_arguments(given) == ["--work", "...", "--rounds", "3", "--python", "grain=..."]


# --- train.py ---


def test_the_training_loop_is_measured_beside_a_plain_one(tmp_path):
    words = ["--work", tmp_path, "--plain", "nano-27k", "--rounds", 1, "--steps", 10, "--out", tmp_path / "page.md"]
    done = run("train.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "page.md").read_text()
    assert "| nano-27k, fp32 " in page and "| nano-27k, bf16 " in page and str(tmp_path) not in page
    assert "waiting for data" in page and "## Goals" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--plain", "nano-1"], "no preset 'nano-1'"), (["--rounds", "0"], "--rounds must be at least 1")],
)
def test_a_size_or_number_that_cannot_be_is_refused(words, message):
    done = run("train.py", *words)
    assert done.returncode == 2 and message in done.stderr


def test_a_summary_leaves_the_first_steps_out(benchmarks):
    from train import _summary

    lines = [{"global_step": s, "speed/wps": 10.0 * s, "memory/max_active_gib": 5.0 - s / 100} for s in (5, 20, 25, 30)]
    assert _summary(lines) == {"rate": 275.0, "gib": 4.95}
    for line in lines:
        line["speed/mfu"] = line["global_step"] / 100
    assert _summary(lines)["mfu"] == 0.275


# --- evaluate.py ---


def test_evaluation_is_measured_beside_a_plain_forward_pass(tmp_path):
    words = ["--work", tmp_path, "--sizes", "nano-27k", "--dtypes", "fp32", "--rounds", 1, "--tokens", 3000]
    words += ["--texts", "mixed", "--without-harness", "--out", tmp_path / "page.md"]
    done = run("evaluate.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "page.md").read_text()
    assert str(tmp_path) not in page
    cells = rows(page, "Documents of all lengths")["nano-27k, fp32"]
    assert float(cells[0]) > 0 and float(cells[1]) > 0 and cells[2].startswith("x ")
    assert len(rows(page, "Goals")) == 1
    done = run("evaluate.py", "--dtypes", "fp8")
    assert done.returncode == 2 and "--dtypes is of fp32 and bf16, got 'fp8'" in done.stderr


# --- fitting a law ---


def test_scaling_prints_and_writes_its_tables(tmp_path):
    page = tmp_path / "page.md"
    done = run(
        "scaling.py", "--out", page, "--runs", 40, "--rounds", 1, "--starts", 9, "--resamples", 3, "--bootstraps", 60,
        "--python", f"chinchilla={tmp_path}/none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = page.read_text()
    assert done.stdout.startswith(written.rstrip("\n"))
    assert "chinchilla is left out: cannot start" in written and str(tmp_path) not in written
    fits = rows(written, "One fit")
    assert fits["**lingua_synth**"][1] == "x 1" and abs(float(fits["**lingua_synth**"][2])) < 1e-9
    assert {"SciPy BFGS, many starts", "published procedure"} <= set(fits)
    assert float(fits["**lingua_synth**"][3]) == pytest.approx(float(fits["SciPy BFGS, many starts"][3]), rel=1e-4)
    assert rows(written, "60 resamples")["**lingua_synth**"][2] == "0"
    assert rows(written, "Goals")["above the lowest objective found"][-1] == "met"


def test_the_objective_of_the_benchmark_is_the_library_s(benchmarks):
    import fitters
    import scaling

    from lingua_synth.scaling import JointLaw, fit

    table = scaling.simulated_table(60)
    fitted = fit(JointLaw(), **table)
    arrays = [table[name] for name in ("N", "D", "loss")]
    assert fitters.objective(fitted.params, *arrays) == pytest.approx(fitted.objective, rel=1e-9)
    exact = fitters.Exact(*arrays)
    x = exact.start({"E": 1.7, "A": 400.0, "B": 500.0, "alpha": 0.33, "beta": 0.3})
    value, gradient = exact.value_and_gradient(x)
    assert value == pytest.approx(fitters.objective(exact.params(x), *arrays), rel=1e-12)
    for k in range(5):
        step = np.zeros(5)
        step[k] = 1e-6
        slope = (exact.value_and_gradient(x + step)[0] - exact.value_and_gradient(x - step)[0]) / 2e-6
        assert gradient[k] == pytest.approx(slope, rel=1e-5)


def test_scaling_reads_a_table(benchmarks, tmp_path):
    import scaling

    (tmp_path / "t.csv").write_text("params,tokens,loss\n1e6,1e9,3\n2e6,1e9,4\n3e6,2e9,2\n")
    table = scaling.read_table(str(tmp_path / "t.csv"), 1)
    assert table["N"].tolist() == [1e6, 3e6] and table["loss"].tolist() == [3.0, 2.0]
    with pytest.raises(SystemExit, match="columns params, tokens, loss"):
        scaling.read_table(str(tmp_path / "none.csv"), 0)


# --- generation ---


def test_generation_is_measured_beside_a_bare_loop_and_a_bare_client(tmp_path):
    page = tmp_path / "page.md"
    done = run(
        "generate.py", "--work", tmp_path / "work", "--out", page, "--documents", 60, "--requests", 40, "--rounds", 1,
        "--latency", 0.01, "--window", 8,
        "--python", f"vllm={sys.executable}", "--python", f"datatrove={sys.executable}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    written = page.read_text()
    assert str(tmp_path) not in written
    # Peers that are not there are said so, each once.
    for words in ("datatrove, checkpoints: its process ended", "datatrove, no checkpoints: its process ended"):
        assert written.count(f"Left out: {words}") == 1
    assert written.count("Left out: no vLLM with a device") == 1
    alone, server = rows(written, "The runner alone"), rows(written, "Against a server")
    assert set(alone) == {"bare loop", "**lingua_synth**"} and alone["bare loop"][2] == "x 1"
    assert set(server) == {"aiohttp alone", "**lingua_synth**, openai"}
    assert set(rows(written, "Goals")) == {
        "records a second, one process", "memory at 4 x the documents", "against aiohttp alone",
    }  # fmt: skip


def test_a_generation_that_cannot_be_measured_is_refused():
    done = run("generate.py", "--window", "0")
    assert done.returncode == 2 and "--window must be at least 1, got 0" in done.stderr
    done = run("generate.py", "--python", "distilabel=python")
    assert done.returncode == 2 and "PEER=PATH with one of vllm, datatrove, got 'distilabel=python'" in done.stderr
    done = run("generate.py", "--python", "vllm=nowhere/python")
    assert done.returncode == 2 and "--python vllm: there is no nowhere/python" in done.stderr


# --- counting tokens ---


def test_analysis_prints_and_writes_its_tables(tmp_path):
    page = tmp_path / "page.md"
    done = run("analysis.py", "--tokens", 200_000, "--rounds", 1, "--work", tmp_path, "--out", page)
    assert done.returncode == 0, done.stderr
    written = page.read_text()
    assert done.stdout.startswith(written.rstrip("\n")) and str(tmp_path) not in written
    goals = rows(written, "Goals")
    for kind in ("258 words, uint16", "50,257 words, uint16", "128,256 words, uint32"):
        rates = rows(written, f"{kind}, in memory")
        assert rates["a pass that only reads"][2] == "1.00"
        assert float(rates["**lingua_synth**, 1 thread"][1]) > 0 and "numpy's bincount, 1 thread" in rates
        goal, _, verdict = goals[f"{kind}, in memory: of a pass, per core"]
        assert goal == ">= 0.5" and verdict in ("met", "NOT met")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.md"]


def test_scale_prints_its_tables_and_holds_every_rank_to_the_plan(tmp_path):
    done = run(
        "scale.py", "--work", tmp_path / "work", "--out", tmp_path / "page.md", "--sections",
        "index,ranks,leases,study", "--tokens", 2**30, "--file-bits", 25, "--batches", 2,
        "--ranks", 16, 64, "--processes", 2, "--units", 50, "--seconds", 0.5, "--whole", "5,10", "40,10", "--seeds", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    index = rows(page, "A rank of 8,192, and an index of 10T tokens")["2^25 tokens a file"]
    assert index[0] == "32" and float(index[6]) <= 20, "a rank asks about its own share of the files alone"
    assert [row[1] for row in rows(page, "All ranks of a step").values()] == ["yes", "yes"]
    assert rows(page, "Leases")["2"][-1] == "yes"
    assert rows(page, "A study of many runs").keys() >= {"planned", "status"}
    goals = rows(page, "Goals")
    for exact in ("batches of 64 ranks", "units of 2 processes", "mapped at once, 32 files"):
        assert goals[exact][-1] == "met"
    assert not list((tmp_path / "work").rglob("*.arrow")), "nothing is left behind"
    for path in (tmp_path, Path.home(), BENCHMARKS):
        assert str(path) not in page, "no path of a machine in a page"


def test_the_calls_of_a_file_system_are_counted(benchmarks, tmp_path):
    import scale_cases

    (tmp_path / "a").write_text("x")
    sys.addaudithook(scale_cases._hear)
    with scale_cases.counted() as calls:
        (tmp_path / "a").read_text()
        assert (tmp_path / "a").exists() and os.path.getsize(tmp_path / "a") == 1
        os.listdir(tmp_path)
    assert calls == {"open": 1, "stat": 2, "listdir": 1}
    os.listdir(tmp_path)
    assert calls["listdir"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--sections", "index,nodes"], "no section nodes; there are"),
    ],
)
def test_scale_refuses_what_it_cannot_run(benchmarks, capsys, words, message):
    import scale

    with pytest.raises(SystemExit) as left:
        scale.parse(words)
    assert left.value.code == 2 and message in capsys.readouterr().err
