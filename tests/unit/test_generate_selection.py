"""Selection of traces: planted structure comes out, probabilities are true, a random control stands beside it."""

import dataclasses
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.documents import Document, read_documents, write_documents
from lingua_synth.files import sha256_file
from lingua_synth.generate import generate
from lingua_synth.generate.command import main
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.recipe import recipe_from
from lingua_synth.generate.selection import (
    SELECTORS,
    TraceTable,
    TraceView,
    chat_row,
    parse_expression,
    plan_thinking,
    select,
    select_traces,
)
from lingua_synth.generate.selection.chat import ADAPTIVE_PROMPT, NO_THINK_PROMPT, THINK_PROMPT

N = 2000
DOMAINS = ("math", "physics", "Life Sciences", "law")


def trace(number, rng, **fields):
    domain = DOMAINS[min(int(rng.exponential(0.7)), 3)]
    hard = bool(rng.random() < 0.3)
    kinds = int(rng.integers(0, 12))
    found = {
        "question": f"What is {number}?",
        "reasoning": f"I think about {number}.",
        "answer": f"It is {number}.",
        "reference_answer": f"It is {number + hard}.",
        "agree": not hard,
        "strategies": {f"s{kind}": int(rng.integers(1, 4)) for kind in range(kinds)},
        "verbosity": int(rng.integers(0, 11)),
        "domain": domain,
        "num_tokens": int(rng.integers(100, 12_000)),
    }
    found |= fields
    fields = {name: value for name, value in found.items() if value is not ...}
    return Document(f"q{number}-0", "text", {"synth": {"source_id": f"q{number}", "step": "x", "fields": fields}})


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [trace(number, rng) for number in range(N)]


@pytest.fixture(scope="module")
def table(documents):
    return TraceTable.from_documents(documents)


def fields_of(documents, selection):
    return [documents[i].meta["synth"]["fields"] for i in selection.indices]


# --- reading ---


def test_fields_may_stand_in_the_sections_of_steps():
    fields = {
        "teacher": {"reasoning": "hm", "answer": "4", "num_tokens": 7},
        "judge": {"agree": True},
        "annotate": {"strategies": {"check": 2, "never": 0}, "answer": "4"},
    }
    view = TraceView(Document("a", "t", {"synth": {"fields": fields}}), question="2+2?")
    assert (view.get("question"), view.get("answer"), view.get("num_tokens")) == ("2+2?", "4", 7)
    table = TraceTable.from_documents([view.document])
    assert (table.num_strategies.tolist(), table.num_uses.tolist(), table.agree.tolist()) == ([1.0], [2.0], [1])
    fields["annotate"]["answer"] = "5"
    with pytest.raises(ValueError, match="several answer, of teacher, annotate"):
        view.get("answer")


def test_tokens_are_the_generators_count_only_where_the_record_is_what_was_thought():
    synth = {"step": "teacher", "output_tokens": 9, "fields": {"teacher": {"reasoning": "r", "answer": "a"}}}
    assert TraceView(Document("a", "t", {"synth": synth})).get("num_tokens") == 9
    with pytest.raises(ValueError, match="has no num_tokens"):
        TraceView(Document("a", "t", {"synth": {**synth, "step": "judge"}})).get("num_tokens")


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("agree", "yes", "agree of record 'q0-0' is 'yes', not bool"),
        ("num_tokens", True, "is True, not int or float"),
        ("num_tokens", -1, "0 or more"),
        ("verbosity", math.nan, "0 or more"),
        ("strategies", {"check": "twice"}, "counts are integers"),
        ("strategies", ["check"], "not dict"),
        ("domain", ..., "has no domain .*; its fields are agree, answer"),
        ("question", None, "has no question"),
    ],
)
def test_what_is_no_such_field_is_said(name, value, message):
    document = trace(0, np.random.default_rng(0), **{name: value})
    with pytest.raises(ValueError, match=message):
        TraceView(document).get(name)


def test_records_that_are_no_traces_are_refused(documents):
    with pytest.raises(ValueError, match=r"record 'x' has no meta\.synth\.fields"):
        TraceTable.from_documents([*documents[:3], Document("x", "plain")])
    with pytest.raises(ValueError, match="'q1-0' appears twice"):
        TraceTable.from_documents([*documents[:3], documents[1]])


def test_a_gap_stops_only_what_looks_at_it(documents):
    holed = [*documents[:50], trace(99, np.random.default_rng(0), agree=..., num_tokens=...)]
    table = TraceTable.from_documents(holed)
    assert len(select(table, "strategies(0, 20)")) == 51
    with pytest.raises(ValueError, match="disagree: agree is missing in 1 of 51 records: record 'q99-0' has no agree"):
        select(table, "disagree & complete")
    with pytest.raises(ValueError, match="num_tokens is missing"):
        select(table, "strategies(0, 20, density=1)")


# --- selectors ---


def test_predicates_recover_what_was_planted(documents, table):
    def where(test):
        return [i for i, one in enumerate(documents) if test(one.meta["synth"]["fields"])]

    planted = {
        "disagree": lambda f: not f["agree"],
        "strategies": lambda f: 4 <= len(f["strategies"]) <= 8,
        "tokens(min=1000, max=2000)": lambda f: 1000 <= f["num_tokens"] <= 2000,
        "verbosity(3, 5)": lambda f: 3 <= f["verbosity"] <= 5,
        "complete": lambda f: True,
    }
    for expression, test in planted.items():
        found = select(table, expression)
        assert found.indices.tolist() == where(test)
        assert set(found.weights) == {1.0}


def test_random_is_exact_and_grows_into_supersets(table):
    few, many = select(table, "random(100)", seed=3), select(table, "random(700)", seed=3)
    assert (len(few), len(many)) == (100, 700) and not (few.kept & ~many.kept).any()
    assert set(few.inclusion) == {100 / N} and set(few.weights) == {N / 100}
    assert (select(table, "random(100)", seed=4).kept != few.kept).any()


def test_long_keeps_every_row_with_its_probability(table):
    p = np.minimum(1.0, (table.num_tokens / 5000) ** 2.5)
    kept = np.mean([select(table, "long", seed=seed).kept for seed in range(200)], axis=0)
    assert (select(table, "long").inclusion == p).all() and (kept[p == 1] == 1).all()
    # 200 draws: four standard deviations and a little, for 2,000 rows at once.
    assert (np.abs(kept - p) <= 4.5 * np.sqrt(p * (1 - p) / 200) + 0.01).all()


def test_sparse_traces_are_down_sampled(table):
    own = table.num_uses * 1000 / table.num_tokens
    found = select(table, "strategies(min=4, max=8, density=3)")
    within = (table.num_strategies >= 4) & (table.num_strategies <= 8)
    assert found.kept[within & (own >= 3)].all() and not found.kept[~within].any()
    sparse = within & (own < 3)
    expected = (own[sparse] / 3).sum()
    assert abs(found.kept[sparse].sum() - expected) < 4 * np.sqrt(expected)


WEIGHTED = [
    "long(C=6000)",
    "random(400)",
    "long | disagree",
    "~long & strategies(2, 9, 4)",
    "long(8000, 0.5) >> random(300)",
    "domains(400)",
    "quota(math=50, law=20)",
]


@pytest.mark.parametrize("expression", WEIGHTED)
def test_weights_make_sums_over_a_selection_those_of_the_pool(table, expression):
    """Horvitz-Thompson: over many seeds the weighted number of rows is that of the rows that can be taken."""
    estimates, truth = [], None
    for seed in range(150):
        found = select(table, expression, seed=seed)
        truth = (found.inclusion > 0).sum() if ">>" not in expression else N
        estimates.append(found.weights.sum())
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) <= 4 * error + 1e-6 * N


def test_clusters_take_as_many_of_each_planted_cluster(documents):
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2, 3], [500, 300, 150, 50])
    centres = np.eye(4, 16)
    vectors = (centres[truth] + rng.normal(scale=0.05, size=(1000, 16))) * rng.uniform(0.1, 9, size=(1000, 1))
    order = rng.permutation(1000)
    table = TraceTable.from_documents([documents[i] for i in order], embedding=vectors[order].astype(np.float32))
    found = select(table, "clusters(k=4, n=320)")
    # 50 of the small one is all it has; the other 270 are even.
    assert Counter(truth[order][found.indices].tolist()) == {0: 90, 1: 90, 2: 90, 3: 50}
    assert np.allclose(found.inclusion[truth[order] == 0], 90 / 500, rtol=0, atol=0)
    assert Counter(truth[order][select(table, "random(320)").indices].tolist())[0] > 120
    with pytest.raises(ValueError, match="k from 1 to the 1,000"):
        select(table, "clusters(k=1001, n=5)")


def test_more_clusters_than_different_vectors(documents):
    vectors = np.tile(np.eye(2, 4), (10, 1))
    table = TraceTable.from_documents(documents[:20], embedding=vectors)
    assert Counter(select(table, "clusters(k=5, n=6)").indices % 2) == {0: 3, 1: 3}


def test_embeddings_must_fit(documents):
    for wrong in (np.zeros((3, 4)), np.zeros(20), np.zeros((20, 4), dtype=int)):
        with pytest.raises(ValueError, match=r"20 records need floats of shape \(20, dim\)"):
            TraceTable.from_documents(documents[:20], embedding=wrong)
    with pytest.raises(ValueError, match="'q0-0' is zero or not finite"):
        select(TraceTable.from_documents(documents[:20], embedding=np.zeros((20, 4))), "clusters(2, 4)")
    with pytest.raises(ValueError, match="give embeddings="):
        select(TraceTable.from_documents(documents[:20]), "clusters(2, 4)")


def test_domains_are_even_and_quotas_are_met(documents, table):
    sizes = Counter(table.domain)
    found = Counter(f["domain"] for f in fields_of(documents, select(table, "domains(80)")))
    assert found == dict.fromkeys(sizes, 20)
    found = Counter(f["domain"] for f in fields_of(documents, select(table, 'quota(math=7, "Life Sciences"=9)')))
    assert found == {"math": 7, "Life Sciences": 9}
    with pytest.raises(ValueError, match="domain 'maths'; there are Life Sciences, law"):
        select(table, "quota(maths=7)")
    with pytest.raises(ValueError, match=f"asked for 5,000 rows of law, there are {sizes['law']}"):
        select(table, "quota(law=5000)")


def test_s1_spreads_hard_traces_over_domains_and_prefers_long_ones(documents, table):
    found = select(table, "s1(40)")
    picked = fields_of(documents, found)
    assert not any(f["agree"] for f in picked)
    assert max(Counter(f["domain"] for f in picked).values()) < 24  # 10 on average
    # The longest of a domain is the first of it to be taken, half of the time.
    hard = fields_of(documents, select(table, "disagree"))
    longest = [max((f for f in hard if f["domain"] == name), key=lambda f: f["num_tokens"]) for name in DOMAINS]
    assert all(one in picked for one in longest)
    assert np.isnan(found.inclusion[found.kept]).all() and (found.inclusion[table.agree == 1] == 0).all()


def test_s1_ranks_by_powers_of_two():
    documents = [trace(i, np.random.default_rng(0), domain="a", agree=False, num_tokens=1000 - i) for i in range(3)]
    table = TraceTable.from_documents(documents)
    first = np.mean([select(table, "s1(1)", seed=seed).kept for seed in range(3000)], axis=0)
    assert np.abs(first - np.array([4, 2, 1]) / 7).max() < 0.035  # four standard deviations


# --- expressions ---


def test_composition_obeys_the_laws_of_sets(table):
    def kept(expression):
        return select(table, expression, seed=5).kept

    a, b, c = "long", "disagree", "random(900)"
    assert (kept(f"{a} & {b}") == kept(f"{b} & {a}")).all()
    assert (kept(f"{a} & {b}") == (kept(a) & kept(b))).all()
    assert (kept(f"{a} | {b} & {c}") == (kept(a) | (kept(b) & kept(c)))).all()
    assert (kept(f"~({a} | {c})") == kept(f"~{a} & ~{c}")).all()
    assert (kept(f"{a} & {a}") == kept(a)).all()
    one = select(table, "long & (long | disagree)")
    assert np.allclose(one.inclusion, select(table, "long").inclusion, rtol=1e-12)  # absorbed, not squared


def test_a_chain_looks_at_what_is_left(table):
    found = select(table, "disagree >> random(100)")
    assert len(found) == 100 and (table.agree[found.indices] == 0).all()
    assert set(found.inclusion[table.agree == 0]) == {100 / (table.agree == 0).sum()}
    # Side by side instead, a tenth of the random rows is hard, as of all.
    assert len(select(table, "disagree & random(100)")) < 60


def test_selectors_of_one_formula_draw_independently(table):
    a, b = select(table, "long(C=9000)"), select(table, "long(C=9001)")
    both = (a.kept & b.kept).sum()
    assert abs(both - (a.inclusion * b.inclusion).sum()) < 4 * math.sqrt(N) / 2
    assert both < 0.9 * len(a)


def test_unknown_probabilities_stay_unknown(table):
    found = select(table, "s1(50) & long")
    assert np.isnan(found.inclusion[found.kept]).all()
    assert (found.inclusion[table.agree == 1] == 0).all()


def test_the_order_of_records_does_not_matter(documents, table):
    order = np.random.default_rng(2).permutation(N)
    shuffled = TraceTable.from_documents([documents[i] for i in order])
    for expression in (
        "random(300)",
        "long & ~disagree",
        "domains(333)",
        "s1(60)",
        "strategies(density=2) >> random(9)",
    ):
        ids = [{t.ids[i] for i in select(t, expression, seed=8).indices} for t in (table, shuffled)]
        assert ids[0] == ids[1]


def test_canonical_form_parses_to_itself():
    written = ' ~( long |disagree)&strategies( max = 6,density=.5 )>>quota("Life Sciences"=1_0, b=2) >> tokens(5)'
    parsed = parse_expression(written)
    assert str(parsed) == (
        "~(long(C=5000, tau=2.5) | disagree) & strategies(min=4, max=6, density=0.5) >> "
        'quota("Life Sciences"=10, b=2) >> tokens(min=5)'
    )
    assert parse_expression(str(parsed)) == parsed
    assert parsed.needs == ("num_tokens", "agree", "num_strategies", "num_uses", "domain")


@pytest.mark.parametrize(
    "expression, message",
    [
        ("", "the selection is empty"),
        ("disagre", "at character 1: no selector disagre; did you mean disagree"),
        ("disagree &", "expected a selector .*, found the end"),
        ("disagree long", "at character 10: long is not expected here"),
        ("(disagree", r"expected \), found the end"),
        ("random", "random needs n"),
        ("random()", "random needs n"),
        ("random(1.5)", "n of random is a whole number"),
        ("random(1e999)", "whole number"),
        ("random(n=1, n=2)", "given n twice"),
        ("random(1, 2)", "random takes n; got 2"),
        ("random(size=2)", "random has no size; it takes n"),
        ("random(seed=2)", "random has no seed"),
        ("quota(seed=2)", "quota has no seed"),
        ("random(n=many)", "n= needs a number, found many"),
        ("disagree(1)", "disagree takes nothing"),
        ("random(1) & random(2)", "draw from the same lot"),
        ("__import__('os')", "no selector __import__"),
        ("disagree; long", "';' means nothing here"),
        ("random(0)", "at least one"),
        ("random(2001)", "asked for 2,001 rows, there are 2,000"),
        ("long(C=0)", "C above 0"),
        ("tokens(5, 4)", "min=5 is above max=4"),
        ("quota()", "needs domains"),
        ("s1(1900)", "asked for 1,900 complete rows where teacher and reference disagree"),
        ("~" * 60 + "long", "nested deeper"),
        (" & ".join(f"tokens({i})" for i in range(9)), "9 selectors in one formula"),
    ],
)
def test_what_cannot_be_selected_is_said(table, expression, message):
    with pytest.raises(ValueError, match=message):
        select(table, expression)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abdegilnorst1 0.,()&|~>=_'\"", max_size=40))
def test_any_text_parses_or_is_refused_in_words(text):
    try:
        parsed = parse_expression(text)
    except ValueError as error:
        assert str(error)
    else:
        assert parse_expression(str(parsed)) == parsed


def test_every_selector_is_a_pure_function(documents):
    table = TraceTable.from_documents(documents[:60], embedding=np.random.default_rng(0).normal(size=(60, 8)))
    arguments = {
        "random": {"n": 5},
        "clusters": {"k": 3, "n": 6},
        "domains": {"n": 6},
        "quota": {"math": 2},
        "s1": {"n": 2},
    }
    for name, selector in SELECTORS.items():
        first, again = (selector(table, **arguments.get(name, {}), seed=1) for _ in range(2))
        assert (first.kept == again.kept).all() and np.array_equal(first.inclusion, again.inclusion, equal_nan=True)
        assert not (first.kept & (first.inclusion == 0)).any()


# --- conversations ---


def test_thinking_by_difficulty_or_by_chance(table):
    assert (plan_thinking(table, "difficulty") == (table.agree == 0)).all()
    assert plan_thinking(table, "1").all() and not plan_thinking(table, 0).any()
    assert abs(plan_thinking(table, 0.4).mean() - 0.4) < 0.045
    assert not (plan_thinking(table, 0.2) & ~plan_thinking(table, 0.6)).any()
    for wrong in ("hard", 1.1, -0.1, "nan"):
        with pytest.raises(ValueError, match="difficulty or a probability"):
            plan_thinking(table, wrong)


def test_conversations(documents):
    view = TraceView(documents[7])
    assert chat_row(view, True) == {
        "id": "q7-0",
        "messages": [
            {"role": "system", "content": THINK_PROMPT},
            {"role": "user", "content": "What is 7?"},
            {"role": "assistant", "content": "<think>\nI think about 7.\n</think>\n\nIt is 7."},
        ],
        "think": True,
    }
    short = chat_row(view, False)["messages"]
    assert [one["content"] for one in short] == [NO_THINK_PROMPT, "What is 7?", "It is 7."]
    assert chat_row(view, False, "adaptive")["messages"][0]["content"] == ADAPTIVE_PROMPT
    assert [one["role"] for one in chat_row(view, True, "none")["messages"]] == ["user", "assistant"]
    with pytest.raises(ValueError, match="by_mode, adaptive, none"):
        chat_row(view, True, "both")
    with pytest.raises(ValueError, match="answer of record 'q1-0' is empty; pool=complete"):
        chat_row(TraceView(trace(1, np.random.default_rng(0), answer=" ")), True)


# --- the folder ---


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_control_of_the_same_size_stands_beside_every_selection(tmp_path, documents):
    file = tmp_path / "traces.jsonl"
    write_documents(file, documents)
    words = {"pool": "tokens(max=9000)", "system2": "difficulty", "seed": 3}
    manifest = select_traces(str(file), tmp_path / "out", "disagree & strategies", **words)
    selected, control = (rows_of(tmp_path / "out" / f"{name}.jsonl") for name in ("selected", "control"))
    fields = [one["meta"]["synth"]["fields"] for one in selected]
    assert all(not f["agree"] and 4 <= len(f["strategies"]) <= 8 and f["num_tokens"] <= 9000 for f in fields)
    assert len(control) == len(selected) == manifest["records"]["selected"] > 100
    size = manifest["records"]["pool"]
    assert all(one["meta"]["synth"]["fields"]["num_tokens"] <= 9000 for one in control)
    assert {one["meta"]["selection"]["inclusion"] for one in control} == {len(control) / size}
    shared = {one["id"] for one in control} & {one["id"] for one in selected}
    assert len(shared) == manifest["in_both"] < len(control) / 2

    statistics = manifest["statistics"]
    assert statistics["selected"]["disagree_rate"] == statistics["selected"]["think_rate"] == 1.0
    assert 0.2 < statistics["control"]["disagree_rate"] < 0.4
    assert statistics["selected"]["tokens"] == sum(f["num_tokens"] for f in fields)
    assert statistics["pool"]["records"] == size == sum(statistics["pool"]["domains"].values())
    for name, written in manifest["files"].items():
        assert written == {
            "rows": len(selected),
            "sha256": sha256_file(tmp_path / "out" / name),
        }
    chats = rows_of(tmp_path / "out/control.chat.jsonl")
    assert [one["id"] for one in chats] == [one["id"] for one in control]
    assert [one["think"] for one in chats] == [not one["meta"]["synth"]["fields"]["agree"] for one in control]
    # The folder as documents is the selection, not its control.
    assert [one.id for one in read_documents(str(tmp_path / "out"))] == [one["id"] for one in selected]

    assert select_traces(str(file), tmp_path / "again", "disagree & strategies", **words) == manifest
    for name in (*manifest["files"], "manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_random_selection_is_not_its_own_control(tmp_path, documents):
    write_documents(tmp_path / "t.jsonl", documents[:500])
    manifest = select_traces(str(tmp_path / "t.jsonl"), tmp_path / "out", "random(100)", chat=False)
    assert manifest["in_both"] < 50 and set(manifest["files"]) == {"selected.jsonl", "control.jsonl"}


def test_questions_come_from_the_documents_that_were_asked(tmp_path, documents):
    rng = np.random.default_rng(0)
    write_documents(tmp_path / "t.jsonl", [trace(i, rng, question=...) for i in range(9)])
    write_documents(tmp_path / "q.jsonl", [Document(f"q{i}", f"Why {i}?") for i in range(20)])
    with pytest.raises(ValueError, match="has no question"):
        select_traces(str(tmp_path / "t.jsonl"), tmp_path / "out", "random(4)")
    assert not (tmp_path / "out").exists()
    select_traces(str(tmp_path / "t.jsonl"), tmp_path / "out", "random(4)", questions=str(tmp_path / "q.jsonl"))
    for row in rows_of(tmp_path / "out/selected.chat.jsonl"):
        assert row["messages"][1]["content"] == f"Why {row['id'][1:-2]}?"


def test_records_with_gaps_are_refused_or_left_out_of_both(tmp_path, documents):
    rng = np.random.default_rng(0)
    holed = [trace(i, rng, **({"agree": None} if i % 10 == 0 else {})) for i in range(200)]
    write_documents(tmp_path / "t.jsonl", holed)
    with pytest.raises(ValueError, match=r"agree is missing in 20 of 200 records.*missing=drop"):
        select_traces(str(tmp_path / "t.jsonl"), tmp_path / "out", "disagree")
    manifest = select_traces(str(tmp_path / "t.jsonl"), tmp_path / "out", "disagree", missing="drop")
    assert manifest["records"]["dropped"] == {"agree": 20} and manifest["records"]["pool"] == 180
    assert all(int(one["id"][1:-2]) % 10 for one in rows_of(tmp_path / "out/control.jsonl"))


def test_folders_that_are_no_selection_are_left_alone(tmp_path, documents):
    write_documents(tmp_path / "in/t.jsonl", documents[:50])
    with pytest.raises(ValueError, match="exists and is no selection"):
        select_traces(str(tmp_path / "in"), tmp_path / "in", "random(4)")
    select_traces(str(tmp_path / "in"), tmp_path / "out", "random(4)")
    assert select_traces(str(tmp_path / "in"), tmp_path / "out", "random(5)")["records"]["selected"] == 5
    with pytest.raises(ValueError, match=r"lies in .*out, which would be replaced"):
        select_traces(str(tmp_path / "out/selected.jsonl"), tmp_path / "out", "random(4)")
    with pytest.raises(ValueError, match="keeps none of 50"):
        select_traces(str(tmp_path / "in"), tmp_path / "none", "tokens(max=1)")
    with pytest.raises(ValueError, match="no record is left of 50"):
        select_traces(str(tmp_path / "in"), tmp_path / "none", "disagree", pool="tokens(max=1)")
    (tmp_path / "e.npy").write_bytes(b"not an array")
    with pytest.raises(ValueError, match=r"e\.npy is no \.npy array"):
        select_traces(str(tmp_path / "in"), tmp_path / "none", "disagree", embeddings=str(tmp_path / "e.npy"))
    assert not (tmp_path / "none").exists()


def test_a_failed_write_leaves_the_former_selection(tmp_path, documents, monkeypatch):
    write_documents(tmp_path / "t.jsonl", documents[:50])
    select_traces(str(tmp_path / "t.jsonl"), tmp_path / "out", "random(4)")
    before = (tmp_path / "out/manifest.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lingua_synth.generate.selection.run.write_json", full)
    with pytest.raises(OSError, match="No space"):
        select_traces(str(tmp_path / "t.jsonl"), tmp_path / "out", "random(9)")
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


TRACES = {
    "name": "think",
    "version": 1,
    "description": "A teacher, a reference that does not think, a judge, and notes on the teacher's strategies.",
    "steps": [
        {"name": "teacher", "user": "Think: {document}", "parse": "json"},
        {"name": "reference", "after": [], "user": "Answer: {document}", "parse": "json"},
        {"name": "judge", "after": ["teacher", "reference"], "user": "Same? {teacher} {reference}", "parse": "json"},
        {"name": "notes", "user": "Strategies? {teacher}", "parse": "json"},
    ],
}


class Thinker(MockEngine):
    """Thinks n words about question n; the reference is wrong at every third; the judge compares what it was shown."""

    def _outcome(self, request, num_outcomes):
        outcome = super()._outcome(request, num_outcomes)
        asked = request.prompt[-1]["content"]
        n = int(re.findall(r"\d+", asked)[0])
        if asked.startswith("Think"):
            said = {"reasoning": " ".join(["step", *["on"] * n, str(n)]), "answer": f"It is {n}"}
        elif asked.startswith("Answer"):
            said = {"reference_answer": f"It is {n + (n % 3 == 0)}"}
        elif asked.startswith("Same"):
            said = {"agree": len(set(re.findall(r"It is \d+", asked))) == 1}
        else:
            said = {"strategies": {f"s{kind}": 1 for kind in range(n % 10)}, "domain": "even" if n % 2 == 0 else "odd"}
        return dataclasses.replace(outcome, text=json.dumps(said))


def test_what_generate_wrote_can_be_selected(tmp_path):
    questions = [Document(f"q{n}", f"What is {n}?") for n in range(1, 61)]
    write_documents(tmp_path / "q.jsonl", questions)
    generate(str(tmp_path / "q.jsonl"), tmp_path / "t", recipe_from(TRACES), Thinker(), progress=False)
    words = [f"traces={tmp_path / 't'}", f"out={tmp_path / 'out'}", f"questions={tmp_path / 'q.jsonl'}"]
    words += ["select=disagree & strategies(3, 8) & tokens(min=120)", "tokenizer.name=bytes"]
    assert main(["select", *words]) == 0
    hard = [n for n in range(1, 61) if n % 3 == 0 and 3 <= n % 10 <= 8 and 4 + 3 * n + 1 + len(f"{n}It is {n}") >= 120]
    chosen = rows_of(tmp_path / "out/selected.chat.jsonl")
    assert sorted(one["messages"][1]["content"] for one in chosen) == sorted(f"What is {n}?" for n in hard)
    assert all(one["messages"][2]["content"].startswith("<think>\nstep on") for one in chosen)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["records"] == {"read": 60, "dropped": {}, "pool": 60, "selected": len(hard)}
    assert manifest["tokenizer"]["name"] == "bytes"


def test_the_verb_prints_both_side_by_side(tmp_path, documents, capsys):
    write_documents(tmp_path / "t.jsonl", documents[:300])
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32))
    words = [f"traces={tmp_path / 't.jsonl'}", f"out={tmp_path / 'out'}", f"embeddings={tmp_path / 'e.npy'}"]
    words += ["select=disagree >> clusters(k=4, n=40)", "pool=complete", "system2=0.5", "system_prompts=adaptive"]
    assert main(["select", *words]) == 0
    shown = capsys.readouterr().out
    assert "disagree >> clusters(k=4, n=40)" in shown and "control" in shown
    assert shown.split("\nrecords ")[1].split()[:3] == ["300", "40", "40"]
    with pytest.raises(ValueError, match="select is not set"):
        main(["select", *words[:2]])
