"""Sources by kind and generator."""

import pytest

from lingua_synth.scaling import Runs
from lingua_synth.scaling.kinds import kinds_of


def table(*sources):
    rows = {"run_id": ["a"], "mixture": ["cc"], "size": ["1B"], "tokens": [1e9], "loss_macro": [3.0], "ratio_cc": [1.0]}
    return Runs(rows | {f"ratio_{source}": [0.0] for source in sources})


@pytest.mark.parametrize(
    ("source", "kind", "role", "generator", "size"),
    [
        ("hq", "hq", "hq", None, None),
        ("QA", "QA", "qa", None, None),
        ("txbk", "txbk", "textbook", None, None),
        ("rephrased", "rephrased", "hq", None, None),
        ("rephrased-qa", "rephrased-qa", "qa", None, None),
        ("questions", "questions", "qa", None, None),
        ("textbook", "textbook", "textbook", None, None),
        ("synthetic", "synthetic", "other", None, None),
        ("aqaba", "aqaba", "other", None, None),
        ("hq-llama3-8b", "hq", "hq", "llama3-8b", 8e9),
        ("qa-Llama-3.2-3B-Instruct", "qa", "qa", "Llama-3.2-3B-Instruct", 3e9),
        ("hq-mistral", "hq-mistral", "hq", None, None),
        ("hq-mixtral-8x7b", "hq-mixtral-8x7b", "hq", None, None),
        ("qa-qwen-0.5B", "qa", "qa", "qwen-0.5B", 0.5e9),
    ],
)
def test_names_are_read(source, kind, role, generator, size):
    one = kinds_of(table(source), "cc")[source]
    assert (one.kind, one.role, one.generator, one.generator_size) == (kind, role, generator, size)


def test_what_names_do_not_say_is_told():
    runs = table("a", "b-x")
    told = kinds_of(runs, "cc", {"a": "qa", "b": "hq"}, {"a": "big 70B", "b-x": "x"})
    assert (told["a"].role, told["a"].generator, told["a"].generator_size) == ("qa", "big 70B", 70e9)
    assert (told["b-x"].kind, told["b-x"].role, told["b-x"].generator_size) == ("b", "hq", None)
    assert "cc" not in told
    with pytest.raises(ValueError, match="no synthetic source c in the table; it has a, b-x"):
        kinds_of(runs, "cc", {"c": "qa"})
    with pytest.raises(ValueError, match="no synthetic source cc"):
        kinds_of(runs, "cc", generators={"cc": "x"})
    with pytest.raises(ValueError, match="one of hq, qa, textbook, other; got 'poems'"):
        kinds_of(runs, "cc", {"a": "poems"})
