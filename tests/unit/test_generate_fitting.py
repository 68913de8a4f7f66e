"""Prompts for a generator with a short context: less of the document, all of the instructions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.documents import Document
from lingua_synth.generate import Failure, build_engine, generate, load_recipe, verify
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.fitting import TEMPLATE_TOKENS, fit
from lingua_synth.generate.recipe import recipe_from

SENTENCES = [f"Sentence {i} says that {i} is a number." for i in range(400)]
DOCUMENT = Document("d", " ".join(SENTENCES))


def count(text):
    """Words and spaces: never more than bytes."""
    return 2 * len(text.split())


def fitted(recipe, context, document=DOCUMENT):
    (step,) = recipe.steps
    return fit(lambda one: recipe.render(one, document, None, count), step, count, context)


def contents(prompt):
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


@pytest.mark.parametrize("context", [None, 100_000, 8000])
def test_what_fits_is_as_the_recipe_says(context):
    recipe = load_recipe("hq")
    assert fitted(recipe, context) == recipe.render(recipe.steps[0], DOCUMENT, None, count)


@settings(max_examples=60, deadline=None)
@given(st.integers(700, 6000), st.integers(1, 3000))
def test_what_does_not_fit_is_cut_at_a_sentence_and_loses_no_instruction(context, max_tokens):
    recipe = load_recipe("hq").with_sampling(max_tokens=max_tokens)
    prompt = fitted(recipe, context)
    room = context - min(max_tokens, context // 2) - TEMPLATE_TOKENS
    assert len(contents(prompt).encode()) <= room or count(contents(prompt)) <= room
    empty = contents(recipe.render(recipe.steps[0], Document("d", "@"), None, count)).split("@")
    assert contents(prompt).startswith(empty[0]) and contents(prompt).endswith(empty[-1])
    read = contents(prompt).removeprefix(empty[0]).removesuffix(empty[-1])
    assert DOCUMENT.text.startswith(read) and read.endswith("number.")


def test_a_context_too_short_for_the_instructions_is_left_to_the_engine():
    recipe = load_recipe("hq")
    assert fitted(recipe, 60) == recipe.render(recipe.steps[0], DOCUMENT, None, count)


class Short(MockEngine):
    """Fails what its context of 300 words cannot hold, as vLLM does."""

    context_tokens = 300

    def _outcome(self, request, num_outcomes):
        prompt = contents(request.prompt)
        self.longest = max(getattr(self, "longest", 0), self.count_tokens(prompt))
        return Failure(request.key, "too long") if self.longest >= 300 else super()._outcome(request, num_outcomes)


STEPS = {
    "name": "two",
    "version": 1,
    "description": "An outline, then a text from the outline.",
    "citation": "none",
    "evidence": [],
    "generator": "any",
    "steps": [
        {"name": "outline", "prompt": "chat", "user": "Outline this: {document}", "sampling": {"max_tokens": 100}},
        {"name": "text", "prompt": "chat", "user": "Write from: {outline}", "sampling": {"max_tokens": 100}},
    ],
}


def test_a_run_with_a_short_context_fails_nothing_that_can_be_shortened(tmp_path):
    recipe = recipe_from(STEPS, "here")
    engine = Short(num_words=100)
    generate([DOCUMENT], tmp_path / "cut", recipe, engine, progress=False)
    assert 100 < engine.longest <= 300 - 100 - TEMPLATE_TOKENS and verify(tmp_path / "cut") == []
    # A document in pieces is not shortened: what was left out of a piece would be in no other.
    step = {**STEPS["steps"][0], "for_each": "document", "max_input_tokens": 2000}
    with pytest.raises(ValueError, match=r"requests failed. First errors: too long"):
        generate(
            [DOCUMENT], tmp_path / "whole", recipe_from({**STEPS, "steps": [step]}, "here"), Short(), progress=False
        )


def test_what_has_no_context_of_its_own_says_so():
    for engine in (build_engine("mock"), build_engine("openai", model="m", base_url="http://127.0.0.1:1/v1")):
        assert engine.context_tokens is None
