"""The tokens that were planted stand first, readable; log-odds equal the published formula; lengths are exact."""

from itertools import pairwise

import numpy as np
import pytest
from analysis_doubles import write_tokens, zipf_probabilities

from lingua_synth.analysis import lengths
from lingua_synth.analysis.lengths import document_lengths
from lingua_synth.analysis.tokens_table import extreme_tokens, readable_token, token_log_odds
from lingua_synth.tokens import TokenSource, build_tokenizer


def test_withheld_and_inflated_tokens_stand_first():
    rng = np.random.default_rng(0)
    p = zipf_probabilities(256, 1.0)
    changed = p.copy()
    changed[10] = 0  # the byte of a line break
    changed[ord(":")] *= 8
    reference, corpus = rng.multinomial(200_000, p), rng.multinomial(500_000, changed / changed.sum())
    table = token_log_odds(np.append(corpus, [0, 0]), np.append(reference, [0, 0]))
    tokenizer = build_tokenizer("bytes")
    for order in ("log_odds", "divergence"):
        missing = extreme_tokens(table, tokenizer, order=order, num_tokens=3)
        assert missing[0].text == r'"\n"' and missing[0].count == 0 and missing[0].reference_count == reference[10]
        assert missing[0].log_odds < missing[0].bound < 0 < missing[0].divergence
        assert missing[0].reference_per_million == pytest.approx(1e6 * reference[10] / 200_000)
    inflated = extreme_tokens(table, tokenizer, sign=1)
    assert inflated[0].text == '":"' and inflated[0].log_odds == pytest.approx(np.log(8), abs=0.15)
    assert all(row.bound > 0 for row in inflated)
    assert table.divergence.sum() > 0
    assert extreme_tokens(table, None, num_tokens=1)[0].text == "token 10"


def test_two_samples_of_one_corpus_differ_in_no_more_tokens_than_chance_allows():
    """Of 2,000 intervals at 95 %, some 5 % miss 0; the prior makes it fewer."""
    p = zipf_probabilities(2_000, 1.0)
    rng = np.random.default_rng(1)
    table = token_log_odds(rng.multinomial(300_000, p), rng.multinomial(900_000, p))
    assert 0.02 < np.mean(table.bound != 0) < 0.07


def test_log_odds_are_those_of_the_paper():
    y, z, prior_tokens = np.array([30, 5, 0, 65]), np.array([10, 80, 10, 0]), 20.0
    table = token_log_odds(y, z, prior_tokens=prior_tokens)
    for i in range(4):
        a = prior_tokens * (y[i] + z[i]) / 200
        odds = [(c[i] + a) / (100 + prior_tokens - c[i] - a) for c in (y, z)]
        assert table.log_odds[i] == pytest.approx(np.log(odds[0]) - np.log(odds[1]), rel=1e-12)
        assert table.standard_error[i] == pytest.approx(np.sqrt(1 / (y[i] + a) + 1 / (z[i] + a)), rel=1e-12)


def test_what_neither_corpus_has_and_a_corpus_of_one_token_make_no_trouble():
    table = token_log_odds([5, 0, 0], [5, 0, 0])
    assert table.log_odds.tolist() == [0, 0, 0] and table.bound.tolist() == [0, 0, 0]
    assert extreme_tokens(table, None) == extreme_tokens(table, None, sign=1) == []


def test_tokens_are_written_as_json_writes_them():
    tokenizer = build_tokenizer("bytes")
    assert [readable_token(tokenizer, i) for i in (10, 32, 34, 65, 0xE2, 256)] == [
        r'"\n"', '" "', r'"\""', '"A"', '"<0xE2>"', '"<bos>"',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_log_odds([1, 2], [1, 2, 3]), "vocabularies of 2 and 3 words"),
        (lambda: token_log_odds([1, 2], [0, 0]), "without tokens"),
        (lambda: token_log_odds([1, 2], [1, 2], prior_tokens=0), "prior_tokens is above 0"),
        (lambda: extreme_tokens(token_log_odds([1, 2], [1, 2]), None, order="size"), "no order 'size'"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- lengths ---


def test_lengths_equal_numpys_on_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "CHUNK_DOCUMENTS", 7)
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 200, size=101)
    folder = write_tokens(tmp_path / "s", [np.zeros(size, dtype=int) for size in sizes], 5, per_file=30)
    tokens, num_bytes = document_lengths(TokenSource(folder))
    for found, values in ((tokens, sizes), (num_bytes, 3 * sizes)):
        assert (found.num_documents, found.total) == (101, values.sum())
        assert found.mean == pytest.approx(values.mean()) and found.standard_deviation == pytest.approx(values.std())
        for share in (0.01, 0.25, 0.5, 0.99, 1.0):
            assert found.quantile(share) == np.quantile(values, share, method="inverted_cdf")
        assert found.share_longer(100) == pytest.approx(
            ((values > 100).mean(), values[values > 100].sum() / values.sum())
        )
        rows = found.histogram()
        assert sum(row["documents"] for row in rows) == 101 and sum(row["total"] for row in rows) == values.sum()
        assert all(a["to"] == b["from"] for a, b in pairwise(rows))
        for row in rows:
            assert row["documents"] == ((row["from"] <= values) & (values < row["to"])).sum()
        summary = found.summary(longer_than=[100])
        assert summary["min"] == values.min() and summary["max"] == values.max()
        assert summary["q50"] == found.quantile(0.5) and summary["documents_longer_than_100"] > 0


def test_no_documents_have_no_lengths(tmp_path):
    tokens, _ = document_lengths(TokenSource(write_tokens(tmp_path / "s", [], 5)))
    assert tokens.num_documents == tokens.total == 0 and tokens.histogram() == []
    assert np.isnan(tokens.summary()["mean"]) and "min" not in tokens.summary()
    with pytest.raises(ValueError, match="no documents"):
        tokens.quantile(0.5)
