"""Recipes: golden prompts, every instruction of the sources, documents full of braces, cuts, refusals."""

import dataclasses

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.documents import Document
from lingua_synth.generate import RECIPES, load_recipe
from lingua_synth.generate.engine import Sampling, estimate_tokens, fold_system, whole_characters
from lingua_synth.generate.recipe import cut_at_sentence, first_words, recipe_from

DOCUMENT = Document("d", "Bolts hold. {They} cost 3 {units}.")

# A changed prompt is another recipe: raise its version, then write the new hash here.
GOLDEN = {
    "continue": "222634f7d56a7b1f3d26c9c36c212c000b8741cc081a3c61344687028cc8deca",
    "hq": "be6a38d7596a7159b836ef325d9ba4a1e8412d94e6f69d254d897be86a8f0954",
    "qa": "5753dae447ced04f9063d89a5af79c2850afd821600f9dff864d3084268759bd",
}


def a_recipe(**changes):
    step = {"name": "s", "user": "Read {document} now."}
    return {"name": "mine", "version": 2, "description": "d", "steps": [{**step, **changes}]}


def test_the_built_in_recipes_are_these():
    assert RECIPES == ("continue", "hq", "qa")
    assert {name: load_recipe(name).steps[0].prompt_sha256 for name in RECIPES} == GOLDEN


@pytest.mark.parametrize("name", RECIPES)
def test_a_built_in_recipe_says_where_it_comes_from(name):
    recipe = load_recipe(name)
    assert recipe.description and recipe.citation and recipe.evidence
    assert recipe.name == name


@pytest.mark.parametrize("name", ["hq", "qa"])
def test_the_paper_s_recipes_sample_and_filter_as_the_paper_does(name):
    recipe = load_recipe(name)
    (step,) = recipe.steps
    assert step.sampling == Sampling(temperature=0.7, top_p=0.95, max_tokens=2048)
    assert (step.max_input_tokens, step.expected_output_tokens) == (2000, 550)
    drops = {one.name: one.parameters for one in step.filters if one.action == "drop"}
    assert drops == {"min_tokens": {"tokens": 50}, "max_tokens": {"tokens": 3 * 550}}
    assert recipe.generator == "mistralai/Mistral-7B-Instruct-v0.1"


# The instructions of appendix B.1.1 and B.1.2, each by words of ours that carry it.
INSTRUCTIONS = {
    "hq": {
        "whatever the content": "whatever the text is about",
        "whatever the formatting": "however it is laid out",
        "a full article": "full article",
        "the same content": "same content as the text",
        "good English": "polished English",
        "as on Wikipedia": "Wikipedia",
        "no notes": "without notes",
        "long": "It is long",
        "complete": "keep every detail",
    },
    "qa": {
        "whatever the content": "whatever the text is about",
        "whatever the formatting": "however it is laid out",
        "a thorough list": "thorough list",
        "question tag": '"Question:"',
        "answer tag": '"Answer:"',
        "many pairs": "many such pairs",
        "all information": "all of the information in the text",
        "no notes": "without notes",
    },
}


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, known in INSTRUCTIONS.items() for words in known.values()]
)
def test_every_instruction_of_the_source_is_in_the_prompt(name, words):
    assert words in load_recipe(name).steps[0].user


@pytest.mark.parametrize("name", ["hq", "qa"])
def test_a_chat_prompt_is_a_system_and_a_user_message_with_the_document_inside(name):
    system, user = render(load_recipe(name), DOCUMENT)
    assert (system["role"], user["role"]) == ("system", "user")
    assert "to the point and in detail" in system["content"] and "no notes of your own" in system["content"]
    assert "\n\nText:\nBolts hold. {They} cost 3 {units}.\n\n" in user["content"]
    assert "{document}" not in user["content"]


def test_continue_gives_the_first_words_and_nothing_else():
    text = "  One two\nthree " + " ".join(f"w{i}" for i in range(40))
    prompt = render(load_recipe("continue"), Document("d", text))
    assert prompt == "One two\nthree " + " ".join(f"w{i}" for i in range(13))
    assert len(prompt.split()) == 16


def render(recipe, document):
    return recipe.render(recipe.steps[0], document)


@given(st.text(min_size=1, max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_document_is_inserted_as_it_is(text):
    recipe = recipe_from(a_recipe(user="A {{brace}} %s $x ${y} {document} {0}"))
    (message,) = render(recipe, Document("d", text))
    assert message["content"] == "A {brace} %s $x ${y} " + whole_characters(text).strip() + " {0}"


def test_a_document_that_names_the_placeholder_is_not_inserted_twice():
    (message,) = render(recipe_from(a_recipe()), Document("d", "{document} and {document}"))
    assert message["content"] == "Read {document} and {document} now."


def test_half_of_a_surrogate_pair_does_not_reach_an_engine():
    (message,) = render(recipe_from(a_recipe()), Document("d", "a\ud800b \ud83d\ude00"))
    assert message["content"] == "Read a\ufffdb \U0001f600 now."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"promt": "chat"}, "unknown key promt in step 1 of the given recipe; did you mean prompt?"),
        ({"prompt": "poem"}, "prompt is chat or text; got 'poem'"),
        ({"user": "no place"}, "user holds neither {document} nor {item}"),
        ({"user": "{documnt}"}, "nothing stands for {documnt}; did you mean {document}?"),
        ({"user": "{document} {item}"}, "nothing stands for {item}"),
        ({"parse": "item"}, "no parser 'item'; did you mean items?"),
        ({"after": ["b"]}, "comes after 'b', which is no step before it"),
        ({"for_each": "b"}, "for_each is document or a step of after (none); got 'b'"),
        ({"gate": {"min_items": 3, "max_items": 2}}, "a gate has 0 <= min_items <= max_items"),
        ({"name": "item"}, "a step has a lower-case name of its own"),
        ({"prompt": "text", "system": "x"}, "a text prompt has no system message"),
        ({"name": ""}, "has no name"),
        ({"prompt_words": 0}, "prompt_words must be at least 1, got 0"),
        ({"max_input_tokens": -1}, "max_input_tokens must be at least 1, got -1"),
        ({"max_input_tokens": "many"}, "max_input_tokens in step 1 of the given recipe does not fit"),
        ({"sampling": {"top_p": 0}}, "top_p is a probability mass above 0 and at most 1, got 0"),
        ({"sampling": {"temperature": -1}}, "temperature must be 0 or more"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens must be at least 1"),
        ({"sampling": {"temprature": 1}}, "did you mean sampling.temperature?"),
        ({"filters": [{"name": "min_token"}]}, "no filter 'min_token'; known are empty, min_tokens"),
        ({"filters": [{"name": "empty", "action": "erase"}]}, "action is annotate or drop, got 'erase'"),
        (
            {"filters": [{"name": "min_tokens", "parameters": {"token": 3}}]},
            "unknown key token in parameters of filter 1",
        ),
        ({"filters": ["min_tokens"]}, "filter 1 of step 1 of the given recipe must be a mapping"),
        ({"filters": [{"name": "empty"}, {"name": "empty"}]}, "a filter is named twice"),
    ],
)
def test_a_recipe_with_a_fault_is_refused_in_words(changes, words):
    with pytest.raises(ValueError) as refused:
        recipe_from(a_recipe(**changes))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**a_recipe(), "titel": "x"}, "unknown key titel"),
        ({**a_recipe(), "steps": []}, "has no steps"),
        ({**a_recipe(), "name": ""}, "has no name"),
        ({**a_recipe(), "steps": ["x"]}, "step 1 of the given recipe must be a mapping"),
        ([1], "must hold a mapping"),
        (None, "must hold a mapping"),
    ],
)
def test_a_recipe_file_with_a_fault_is_refused_in_words(values, words):
    with pytest.raises(ValueError) as refused:
        recipe_from(values)
    assert words in str(refused.value)


def test_a_recipe_of_the_user_s_own_is_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(a_recipe(system="Be ${brief}.", max_input_tokens=7)))
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.version, recipe.steps[0].max_input_tokens) == ("mine", 2, 7)
    assert render(recipe, DOCUMENT)[0]["content"] == "Be ${brief}."
    assert recipe_from(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("contine", "no recipe 'contine'; did you mean continue?"),
        ("textbook", "built in are continue, hq, qa"),
        ("gone.yaml", "no recipe file gone.yaml"),
        ("broken.yaml", "is not valid YAML"),
        ("latin.yaml", "is not UTF-8"),
    ],
)
def test_a_recipe_that_is_not_there(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("name: [")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ValueError) as refused:
        load_recipe(name)
    assert words in str(refused.value)


def test_identities_follow_what_decides_the_output():
    recipe = load_recipe("hq")
    warmer = recipe.with_sampling(temperature=0.9, max_tokens=None)
    assert warmer.steps[0].sampling == Sampling(0.9, 0.95, 2048)
    assert warmer.steps[0].prompt_sha256 == recipe.steps[0].prompt_sha256
    assert warmer.sha256 != recipe.sha256
    assert dataclasses.replace(recipe, description="other words").sha256 == recipe.sha256
    with pytest.raises(ValueError, match="top_p"):
        recipe.with_sampling(top_p=1.5)


# --- the input cut ---

SENTENCES = "".join(f"Sentence number {i} stands here. " for i in range(500))


def words(text):
    return len(text.split())


def test_a_text_that_fits_is_not_cut():
    assert cut_at_sentence(SENTENCES, 10_000, words) == SENTENCES
    assert cut_at_sentence("short", 5) == "short"


@pytest.mark.parametrize("limit", [1, 4, 5, 6, 49, 50, 1234, 2000])
def test_the_cut_is_the_last_sentence_end_that_fits(limit):
    cut = cut_at_sentence(SENTENCES, limit, words)
    fitting = limit // 5
    if fitting:
        assert cut == "".join(f"Sentence number {i} stands here. " for i in range(fitting)).strip()
    else:  # not even one sentence: whole words
        assert cut == " ".join(SENTENCES.split()[:limit])


def test_without_a_tokenizer_a_token_is_four_characters():
    cut = cut_at_sentence(SENTENCES, 100, lambda text: None)
    assert cut == cut_at_sentence(SENTENCES, 100)
    assert cut.endswith("here.") and 360 < len(cut) <= 400


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("word " * 100, 10, " ".join(["word"] * 8)),
        ("x" * 1000, 10, "x" * 40),
        ("He asked \u201cwhy?\u201d and " + "went on " * 50, 8, "He asked \u201cwhy?\u201d"),
        ("Why? " + "and so on " * 50, 8, "Why? and so on and so on and so"),
        ("Title without a stop\n" + "body " * 100, 8, "Title without a stop"),
        ("\u4f60\u597d\u3002" * 100, 9, "\u4f60\u597d\u3002" * 12),
    ],
)
def test_texts_without_sentences_are_cut_at_words_and_words_in_the_middle(text, limit, expected):
    assert cut_at_sentence(text, limit) == expected


@given(st.text(alphabet="ab .!\n\u3002", min_size=0, max_size=400), st.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_a_cut_is_a_beginning_that_fits(text, limit):
    cut = cut_at_sentence(text, limit)
    assert text.startswith(cut)
    assert cut == text or (estimate_tokens(cut) <= limit and cut == cut.rstrip())
    assert not text.strip() or cut.strip() or text[: 4 * limit].isspace()


def test_a_long_text_is_counted_a_few_times_only():
    calls = []

    def count(text):
        calls.append(len(text))
        return len(text) // 3

    cut = cut_at_sentence(SENTENCES * 100, 2000, count)
    assert 5900 < len(cut) <= 6000
    assert len(calls) <= 12
    assert max(calls) <= 2000 * 32


def test_first_words_keeps_the_space_between():
    assert first_words(" a  b\n\nc d", 3) == " a  b\n\nc"
    assert first_words("a b", 9) == "a b"
    assert first_words("", 3) == ""


def test_folding_puts_the_system_message_into_the_first_user_turn():
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    assert fold_system(messages) == [{"role": "user", "content": "S\n\nU"}, {"role": "assistant", "content": "A"}]
    assert fold_system(messages[1:]) == messages[1:]
