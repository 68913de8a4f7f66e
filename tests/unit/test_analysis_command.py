"""`lingua-synth analyze` end to end: planted differences stand in its tables, kills and other words are survived."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from analysis_doubles import write_tokens, zipf_probabilities

from lingua_synth.analysis import read_analysis
from lingua_synth.analysis import run as module
from lingua_synth.analysis.command import main
from lingua_synth.cli import main as cli
from lingua_synth.config import run_command
from lingua_synth.documents import Document
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize

QUICK = ["zipf_simulations=20", "num_samples=2", "progress=false", "num_threads=2"]
N_WORDS = 600


def draw(rng, p, num_documents):
    return [rng.choice(len(p), size=rng.integers(20, 80), p=p) for _ in range(num_documents)]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A test corpus; `cc` of the same law; `cut` without its tail and without token 3; `mixed` half of each."""
    folder, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    natural = zipf_probabilities(N_WORDS, 1.0)
    cut = np.where(np.cumsum(natural) <= 0.9, natural, 0)
    cut[3] = 0
    documents = {
        "wiki": draw(rng, natural, 300),
        "law": draw(rng, natural, 200),
        "cc": draw(rng, natural, 400),
        "cut": draw(rng, cut / cut.sum(), 900),
    }
    documents["cc"][7] = documents["wiki"][5]
    documents["cc"] += documents["cc"][:4]
    return {name: write_tokens(folder / name, parts, N_WORDS, per_file=100) for name, parts in documents.items()}


def words(corpora, out, *more):
    chosen = [f"train.{name}={corpora[name]}" for name in ("cc", "cut")]
    chosen += [f"test.{name}={corpora[name]}" for name in ("wiki", "law")]
    return [*chosen, f"out={out}", *QUICK, *more]


@pytest.fixture(scope="module")
def analysis(corpora, tmp_path_factory):
    out = tmp_path_factory.mktemp("analysis") / "out"
    assert main(words(corpora, out)) == 0
    return read_analysis(out)


def rows(analysis, table, **values):
    found = [row for row in analysis.table(table) if all(row[key] == value for key, value in values.items())]
    assert found, (table, values)
    return found


def test_every_table_is_there_and_described(analysis):
    assert analysis.tables == list(module.TABLES)
    assert analysis.corpora == ["train.cc", "train.cut", "test.wiki", "test.law"]
    for name in analysis.tables:
        assert all(value is not None for row in analysis.table(name) for value in row.values()), name
    assert (analysis.folder / "summary.md").read_text().count("\n## ") == 11
    with pytest.raises(ValueError, match="has no table 'gone'; it has corpora, unigrams"):
        analysis.table("gone")
    with pytest.raises(ValueError, match="has no corpus 'cc'; it has train"):
        analysis.counts("cc")


def test_counts_are_of_all_tokens_and_comparisons_at_equal_ones(analysis, corpora):
    sizes = {name: TokenSource(folder).num_tokens for name, folder in corpora.items()}
    for row in analysis.table("corpora"):
        name = row["corpus"].partition(".")[2]
        assert row["tokens"] == sizes[name] == analysis.counts(row["corpus"]).num_tokens
    matched = min(sizes.values())
    assert (
        f"{matched:,} tokens of each corpus, drawn without replacement (all that test."
        in (analysis.folder / "summary.md").read_text()
    )
    assert analysis.record["matched_tokens"] == matched
    for table in ("support", "coverage", "distances", "mixture_minima"):
        assert {row["num_tokens"] for row in analysis.table(table)} == {matched}
    column = [row["train.cc"] for row in analysis.table("unigrams")]
    assert column == analysis.counts("train.cc").counts.tolist()


def test_a_cut_tail_shows_in_every_table_that_can_show_it(analysis):
    (cc,), (cut,) = (rows(analysis, "support", corpus=name) for name in ("train.cc", "train.cut"))
    assert cut["expected_types"] < 0.7 * cc["expected_types"] and cut["tail_mass"] < cc["tail_mass"]
    for test in ("test.wiki", "test.law"):
        (cc,), (cut,) = (rows(analysis, "coverage", train=name, evaluation=test) for name in ("train.cc", "train.cut"))
        assert cut["share_of_tokens"] < cc["share_of_tokens"] - 0.05
        (cc,), (cut,) = (rows(analysis, "distances", first=name, second=test) for name in ("train.cc", "train.cut"))
        assert cut["kl_reverse"] > 2 * cc["kl_reverse"] and cut["js"] > 2 * cc["js"]
    curve = rows(analysis, "mixtures", evaluation="test (all)")
    assert [row["ratio"] for row in curve] == [i / 20 for i in range(21)] and curve[-1]["kl"] > 2 * curve[0]["kl"]
    (lowest,) = rows(analysis, "mixture_minima", evaluation="test (all)")
    assert (lowest["base"], lowest["added"]) == ("train.cc", "train.cut") and lowest["best_ratio"] < 0.25
    assert lowest["best_kl"] <= min(row["kl"] for row in curve)
    (nearest,) = rows(analysis, "nearest_mixtures", evaluation="test.wiki")
    assert nearest["train.cc"] + nearest["train.cut"] == pytest.approx(1) and nearest["train.cc"] > 0.7


def test_the_withheld_token_heads_the_list(analysis):
    for by in ("log_odds", "divergence"):
        first = rows(analysis, "tokens", train="train.cut", evaluation="test (all)", list="too few", by=by)[0]
        assert (first["token_id"], first["count"], first["place"]) == (3, 0, 1)
    assert "`token 3`" in (analysis.folder / "summary.md").read_text()
    assert any("tokens are shown by their ids" in reason for reason in analysis.skipped)


def test_copies_repetition_and_leaks_are_found(analysis, corpora):
    (copies,) = rows(analysis, "copies", corpus="train.cc")
    assert copies["share_of_documents"] == pytest.approx(4 / 404) and copies["largest_group"] == 2
    assert rows(analysis, "copies", corpus="train.cut")[0]["share_of_documents"] == 0
    for size in (5, 13, 50):
        (cc,), (cut,) = (rows(analysis, "repetition", corpus=name, size=size) for name in ("train.cc", "train.cut"))
        assert cc["num_tokens"] == pytest.approx(cut["num_tokens"], rel=0.02)
    assert rows(analysis, "repetition", corpus="train.cc", size=13)[0]["share_repeated"] > 0
    (leak,) = rows(analysis, "overlap", train="train.cc", evaluation="test.wiki")
    assert leak["num_shared_documents"] == leak["num_mostly_shared_documents"] == 1
    (document,) = rows(analysis, "overlap_documents")
    assert (document["train"], document["document"], document["share"]) == ("train.cc", 5, 1.0)
    assert document["id"] == TokenSource(corpora["wiki"]).document_id(5)
    (train,) = rows(analysis, "overlap_train_documents")
    assert train["document"] == 7 and train["evaluation_id"] == document["id"]
    assert rows(analysis, "overlap", train="train.cut", evaluation="test.wiki")[0]["share_of_tokens"] == 0


def test_laws_and_lengths_stand_there_with_their_ranges(analysis, corpora):
    (fit,) = rows(analysis, "zipf", corpus="test.wiki", law="zipf")
    assert fit["exponent_low"] < fit["exponent"] < fit["exponent_high"] and fit["first_rank"] == 1
    assert abs(fit["exponent"] - 1) < 0.1 and math.isnan(fit["shift_low"])
    (length,) = rows(analysis, "lengths", corpus="train.cut", unit="tokens")
    lengths = TokenSource(corpora["cut"]).document_lengths
    assert (length["total"], length["max"], length["documents_longer_than_4096"]) == (lengths.sum(), lengths.max(), 0)


def read_all(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.csv"))}


def test_a_second_run_computes_nothing_again_and_writes_the_same(analysis, corpora, monkeypatch, capsys):
    before = read_all(analysis.folder)
    for name in ("fit_zipf", "distances", "repeated_ngrams", "document_copies", "EvaluationTokens"):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} again"))
    assert main(words(corpora, analysis.folder)) == 0
    assert read_all(analysis.folder) == before
    assert "20 tables" in capsys.readouterr().out


def test_killed_it_goes_on_and_ends_with_the_same_tables(analysis, corpora, tmp_path):
    code = textwrap.dedent("""
        import os, signal, sys
        from lingua_synth.analysis import command, parts
        write, left = parts.write_json, [3]
        def counted(path, value):
            write(path, value)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        parts.write_json = counted
        command.main(sys.argv[1:])
    """)
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, *words(corpora, out)], capture_output=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert len(list((out / "parts").iterdir())) == 3
    with pytest.raises(ValueError, match="no finished analysis in"):
        read_analysis(out)
    assert main(words(corpora, out)) == 0
    assert read_all(out) == read_all(analysis.folder)


def test_real_text_is_shown_as_text(tmp_path, capsys):
    texts = {
        "web": "a b c d e f.\n\nA plain text of some words, again. " * 3,
        "qa": "Question: why? Answer: because. " * 4,
    }
    for name, text in texts.items():
        documents = [Document(f"{name}-{i}", f"{i} {text}", {}) for i in range(6)]
        tokenize(documents, tmp_path / name, build_tokenizer("bytes"), progress=False)
    out = tmp_path / "out"
    chosen = [f"train.qa={tmp_path / 'qa'}", f"test.web={tmp_path / 'web'}", f"out={out}"]
    assert cli(["analyze", *chosen, *QUICK, "ngram_sizes=[6]", "overlap_tokens=8"]) == 0
    analysis = read_analysis(out)
    missing = [row["text"] for row in rows(analysis, "tokens", list="too few")]
    assert r'"\n"' in missing and '"."' not in missing
    assert ":" in rows(analysis, "tokens", list="too many", by="log_odds")[0]["text"]
    for row in analysis.table("repeated_ngrams"):
        assert row["text"] in texts[row["corpus"].partition(".")[2]].replace("\n", r"\n") and row["count"] >= 18
    assert rows(analysis, "corpora", corpus="train.qa")[0]["bytes_per_token"] == 1
    assert any("KL over mixtures needs" in reason for reason in analysis.skipped)
    assert "## Skipped" in capsys.readouterr().out


def test_what_cannot_be_computed_is_skipped_and_said(corpora, tmp_path):
    small = write_tokens(tmp_path / "small", [[1, 2, 3]], N_WORDS)
    empty = write_tokens(tmp_path / "empty", [[598, 599]], N_WORDS, bos_id=598, eos_id=599)
    one = write_tokens(tmp_path / "one", [[5] * 30] * 60, N_WORDS)
    chosen = [f"train.cc={corpora['cc']}", f"train.empty={empty}", f"train.one={one}"]
    chosen += [f"test.wiki={corpora['wiki']}", f"test.small={small}", f"out={tmp_path / 'out'}", *QUICK]
    assert main([*chosen, "match_tokens=1000", "smoothing=0"]) == 0
    analysis = read_analysis(tmp_path / "out")
    text = "\n".join(analysis.skipped)
    assert "train.empty has no tokens but BOS and EOS" in text
    assert "test.small has 3 tokens, fewer than match_tokens=1,000: it is not compared" in text
    assert "zipf of train.one: a law is fitted to at least 20 ranks" in text
    assert {row["corpus"] for row in analysis.table("support")} == {"train.cc", "train.one", "test.wiki"}
    (pair,) = rows(analysis, "distances", first="train.one", second="test.wiki")
    assert pair["kl_reverse"] == math.inf and math.isfinite(pair["js"]) and pair["absent_reverse"] > 0.5
    assert "infinite" in (tmp_path / "out" / "summary.md").read_text()
    assert json.loads((tmp_path / "out" / "analysis.json").read_text())["matched_tokens"] == 1000
    # With other words: tables that no longer belong to it are gone.
    assert main([*chosen[:1], *chosen[5:], "zipf_simulations=0", "ngram_sizes=[]", "overlap_tokens=0"]) == 0
    again = read_analysis(tmp_path / "out")
    assert "zipf" not in again.tables and not (tmp_path / "out" / "zipf.csv").exists()
    assert not (tmp_path / "out" / "overlap.csv").exists() and "ngram_sizes=[]" in "\n".join(again.skipped)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.cc=gone"], "no token shards in gone"),
        (["train.a.b=x"], "its name of letters, digits, - and _; got 'a' and"),
        (["train.a/b=x"], "got 'a/b' and 'x'"),
        (["base=law"], "base=law is no training corpus; there are: cc, cut"),
        (["smoothing=-1"], "smoothing is at least 0, got -1"),
        (["max_tokens=0"], "max_tokens is at least 1, got 0"),
        (["ngram_sizes=[5,0]"], "ngram_sizes holds 0: each is at least 1"),
        (["zipf_simulations=7"], "zipf_simulations is at least 20, or 0"),
        (["tail_share=1"], r"tail_share is in \(0, 1\), got 1"),
        (["tokenizer_path=gone"], "planted"),
        (["out="], "out= is missing"),
        (["smothing=1"], "did you mean smoothing"),
    ],
)
def test_bad_input_ends_with_one_message(more, message, corpora, tmp_path, capsys):
    assert run_command(main, words(corpora, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_two_tokenizers_are_refused_before_anything_is_counted(corpora, tmp_path, capsys):
    other = write_tokens(tmp_path / "other", [[1, 2]], N_WORDS, sha256="other")
    assert run_command(main, words(corpora, tmp_path / "out", f"test.other={other}")) == 2
    assert "the corpora are of 2 vocabularies" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run_command(main, ["out=x"]) == 2
