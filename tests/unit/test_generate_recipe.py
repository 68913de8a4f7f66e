"""Recipes: golden prompts, every instruction of the sources, documents full of braces, cuts, refusals."""

import dataclasses
import re
from pathlib import Path

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
    "active_reading.strategies": "9535728f308d36ec8aacb7b5e004825fa9abc4b1fb0b1fefa98c303ab0099d27",
    "active_reading.apply": "b82511d003f9c8a2e4eb7bd06b308a5b1054335a3caa6c3c235d0ff2b718609e",
    "continue.continue": "222634f7d56a7b1f3d26c9c36c212c000b8741cc081a3c61344687028cc8deca",
    "distill.rewrite": "6c0d40a1a357e6444bb03b7bbcd849921ead2cb940268630488fc5a1e305e585",
    "diverse_qa.convert": "032b2612ce4988062f0cfdc09ddfd15f3fc12611e1d1c3677c3bca284a253c55",
    "extract_knowledge.rewrite": "d6417990d5deefb12fef589de6ef44594a3a7e07dba99bc2651bd1c679c5aaf3",
    "faq.convert": "cc1c2c5bcc6b12f1a605cee53046c89f19db5c655293800e026485d5950ccd7e",
    "guided_rewrite.rewrite": "044282f557946681745b4ee9529296ab0c0132694e4f2f6f18fdbb6da8b5c17e",
    "hq.rewrite": "be6a38d7596a7159b836ef325d9ba4a1e8412d94e6f69d254d897be86a8f0954",
    "knowledge_list.extract": "627d540de5023e65a7aaaecca2ef45dc132f5427aad99d1fe431126c9254dafb",
    "math.convert": "4856b7717fbb297a228ecd0270631b3f1b3e186dbcaf55abd989ce26f973e3d0",
    "mga.pairs": "0f4ac482aa137e2bfda6ccc23a970c4bb6ca46303f25b3d0d9c0d1edfcbf91bf",
    "mga.reformulate": "318884b847cb8f57e62c6f85bf4f5182e81e849e51e1c488b622419738830645",
    "qa.convert": "5753dae447ced04f9063d89a5af79c2850afd821600f9dff864d3084268759bd",
    "table.convert": "78734499145086f5d72e8b62b0c6b1e2e492819dc55edb7836fa84053f9f7836",
    "textbook.outline": "87c72497d57134e37b2fdf0e389a764389d970349992ccaba4efc7c661197117",
    "textbook.chapter": "19fca4c615786c488614758f337d0f6ddcc8d31f1998fa5edd7d89e745a80f66",
    "traces.teacher": "d43037e70a0477610bb4c4bdf474b6e84d0c1ccde35725f9b8f92257b4a03965",
    "traces.reference": "2f821b012bb4edb525074e9eabcb031cf629a455992e265a6774987140a74e19",
    "traces.judge": "0319d74768c52936ebffb91e0d9e092deeca3dc24c135071e527822ab85dfa56",
    "traces.notes": "2e1f0ac5674e16d95c7eb568b7a82fe6cc7d3b422b312c005417a94f5b4bc209",
    "tutorial.convert": "738086379c1bd844ea559daf010414b2e699c363ae2191b3c372fae0063c3d1f",
}


def a_recipe(**changes):
    step = {"name": "s", "user": "Read {document} now."}
    return {"name": "mine", "version": 2, "description": "d", "steps": [{**step, **changes}]}


def test_the_built_in_recipes_are_these():
    paper, formats = {"hq", "qa", "textbook"}, {"table", "math", "faq", "tutorial"}
    nemotron = {"diverse_qa", "distill", "extract_knowledge", "knowledge_list"}
    others = {"guided_rewrite", "mga", "active_reading", "continue"}
    assert set(RECIPES) >= paper | formats | nemotron | others
    found = {f"{name}.{step.name}": step.prompt_sha256 for name in RECIPES for step in load_recipe(name).steps}
    assert {key: found.get(key) for key in GOLDEN} == GOLDEN


@pytest.mark.parametrize("name", RECIPES)
def test_a_built_in_recipe_says_where_it_comes_from(name):
    recipe = load_recipe(name)
    assert recipe.description and recipe.citation and recipe.evidence
    assert recipe.name == name
    assert recipe.expected_output_tokens > 0
    assert all(step.filters for step in recipe.steps if step.emit)
    assert recipe_from(recipe.to_dict()) == recipe
    for variant, description in recipe.variants:
        assert description and load_recipe(name, variant).steps != recipe.steps


@pytest.mark.parametrize("name", ["hq", "qa"])
def test_the_paper_s_recipes_sample_and_filter_as_the_paper_does(name):
    recipe = load_recipe(name)
    (step,) = recipe.steps
    assert step.sampling == Sampling(temperature=0.7, top_p=0.95, max_tokens=2048)
    assert (step.max_input_tokens, step.expected_output_tokens) == (2000, 550)
    drops = {one.name: one.parameters for one in step.filters if one.action == "drop"}
    assert drops == {"min_tokens": {"tokens": 50}, "max_tokens": {"tokens": 3 * 550}}
    assert recipe.generator == "mistralai/Mistral-7B-Instruct-v0.1"


# The instructions of the sources (appendix B.1 of Kang et al. 2025; the published prompts of FinePhrase, Nemotron-CC,
# REWIRE, Active Reading; the description of MGA), each by words of ours that carry it; the words are the step's.
INSTRUCTIONS = {
    "hq.rewrite": {
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
    "qa.convert": {
        "whatever the content": "whatever the text is about",
        "whatever the formatting": "however it is laid out",
        "a thorough list": "thorough list",
        "question tag": '"Question:"',
        "answer tag": '"Answer:"',
        "many pairs": "many such pairs",
        "all information": "all of the information in the text",
        "no notes": "without notes",
    },
    "textbook.outline": {
        "a prolific author": "you have written many books",
        "of a textbook": "a textbook is the next",
        "of the text's knowledge": "knowledge and the information in the text below",
        "an outline": "Write the outline of this textbook",
        "the audience": "Its readers are {audience}",
        "10 chapters": "10 chapters in all",
        "title, introduction, appendices": "a title, an introduction, 10 chapters in all, and appendices",
    },
    "textbook.chapter": {
        "a prolific author": "you have written many books",
        "of a textbook with this outline": "textbook with the outline below",
        "one chapter": 'the outline calls "{item}"',
        "the audience": "Its readers are {audience}",
        "exercises": "exercises that test what the reader knows of it",
        "at the end": "Close the chapter with",
        "reference answers": "a reference answer to every one",
    },
    "traces.teacher": {
        "think first": "Think it through first",
        "every step": "every step by which you get to the answer",
        "verify": "check what you found",
        "backtrack": "go back where something does not hold",
        "a final answer apart": 'begin a new line with "Final answer:"',
    },
    "traces.reference": {"no reasoning": "Do not think aloud", "the answer alone": "write the answer alone"},
    "traces.judge": {
        "agreement, not truth": "Do not judge which of them is right",
        "form does not count": "another notation or rounding make no difference",
        "content does": "another value, name or conclusion does",
        "a verdict": '"Verdict: same" or "Verdict: different"',
    },
    "traces.notes": {
        "domain": '"domain": the field',
        "verbosity, 0 to 10": "from 0 (nothing but what is needed) to 10",
        "strategies with counts": "how often each of these is used",
        "a closed list": '"restating the question", "planning"',
        "JSON alone": "one JSON object and write nothing else",
    },
    "table.convert": {
        "extract the data": "pick out the most important data and facts",
        "a structured table": "a clear table",
        "headers": "fitting column headers",
        "markdown, aligned": "in Markdown with properly aligned columns",
        "one question, insightful": "one question that shows insight",
        "answerable": "that the data in the table can answer",
        "a concise answer": "clearly and briefly from the table alone",
        "no repetitive patterns": "patterns that repeat",
        "nothing else": "and nothing else",
    },
    "math.convert": {
        "a word problem": "mathematical word problem",
        "on the numbers": "on numbers in it or on relations between quantities",
        "multi-step": "several steps of reasoning",
        "arithmetic": "basic operations of arithmetic",
        "not generic": "particular to this text",
        "question, then solution": "Write the question first",
        "every step": "step by step, that shows every calculation clearly",
        "nothing else": "and nothing else",
    },
    "faq.convert": {
        "comprehensive": "comprehensive list of frequently asked questions",
        "extract or infer": "those in the text and those that it suggests",
        "direct and clear": "directly and clearly",
        "order": "from the foundations to what is advanced, or by topic",
        "self-contained answers": "makes sense on its own, without the other answers",
        "a document of its own": "makes sense without the text",
        "no repetition": "No two questions",
        "nothing else": "and nothing else",
    },
    "tutorial.convert": {
        "step by step": "a clear guide that goes step by step",
        "numbers or bullets": "Number the steps, or use bullet points",
        "all that is essential": "Keep everything essential",
        "didactic": "didactic, no trouble to follow",
        "not generic": "particular to this text",
        "nothing else": "and nothing else",
    },
    "diverse_qa.convert": {
        "diverse": "different skills of thinking, or they concern different sides",
        "yes/no": "yes/no questions",
        "open": "what, how, when, where, why or who",
        "multiple choice": "options that stand in the question",
        "comparison": "comparisons of two quantities or things",
        "comprehension": "understanding and analysing the text",
        "problems": "mathematics, physics or logic",
        "facts": "facts, for knowledge that matters, for particulars",
        "clear": "clear and concise language",
        "plain": "plain text without Markdown",
        "a line each": "a line of its own",
        "tags": 'the tag "Question:", then its answer with the tag "Answer:"',
        "up to 8": "up to 8 questions",
        "correct": "answer them correctly",
    },
    "distill.rewrite": {
        "condensed": "condensed version",
        "accurate, no summary": "accurate and informative; it is not a simple summary",
        "crucial information": "the main concepts, the values that matter, details of fact",
        "readable": "easier to read and to understand",
        "technical terms": "Technical terms, specialist vocabulary and difficult concepts stay",
        "examples": "Examples, explanations of how something is reasoned, and supporting evidence stay",
        "nothing new": "no new claims, none without support",
        "plain": "plain text without formatting",
        "clear English": "clear English of high quality",
    },
    "extract_knowledge.rewrite": {
        "passages": "one or more passages",
        "textbook English": "as textbooks and Wikipedia do",
        "easy": "easy to understand",
        "disciplines": "natural and social sciences, humanities, history, politics, mathematics, engineering and"
        " technology, agriculture, law, business and management, education, art",
        "the rest disregarded": "Pass over whatever holds no useful facts or knowledge",
        "examples": "Keep examples, explanations of how something is reasoned, and supporting evidence",
        "nothing added": "Neither add details nor change any",
        "plain": "plain text, without titles, subtitles, notes or comments",
    },
    "knowledge_list.extract": {
        "care": "with care",
        "concise and organized": "concise and well organized",
        "facts": "facts, concrete particulars, the concepts that matter, and the figures and statistics",
        "clear points": "definite and easy to grasp, and the text bears it out",
        "dense": "dense with information and easier to learn from",
        "no headings": "no titles or headings",
    },
    "guided_rewrite.rewrite": {
        "the task": "Work out what that task is and which problems",
        "the expert": "the expert who is best at exactly this task",
        "plan first": "reasons about how to go about it, plans",
        "reflection": "notices what is wrong and tries other paths",
        "own questions": "find those that matter most for this task",
        "core and assumptions": "core of the problem, and which assumptions",
        "smaller parts": "smaller parts, or made simpler",
        "other solutions": "If the draft were entirely wrong",
        "best change": "How is the draft best changed",
        "on track": "Is this the right track so far?",
        "step by step": "What is the plan, step by step?",
        "the author's voice": "keeping the author's voice and intent",
        "more than edits": "small edits are not enough",
        "details kept": "Use information and details of the draft",
        "not shorter": "not shorter than the draft",
        "layout": "much better laid out and easier to read",
        "reasoning": "reasons more coherently and more deeply",
        "structure": "clearer and better structured",
        "no noise": "free of noise and digression",
        "only the text": "Give only the new text, as readers would see it in print",
        "no commentary": "Do not analyse, describe, summarize or explain the changes",
        "no reference": "do not mention a draft, and put nothing before or after it",
    },
    "mga.pairs": {
        "five pairs": "five ways",
        "genre": "its manner, its structure, what it dwells on",
        "audience": "their age or occupation, what they know already",
        "fitting": "Every pair fits the content",
        "diverse": "as different from each other as they can be",
    },
    "mga.reformulate": {
        "for the pair": "in this genre and for this audience",
        "facts kept": "facts, figures, concepts",
        "nothing invented": "invent none and contradict none",
        "form free": "How it is said is free",
    },
    "active_reading.strategies": {
        "specific to the document": "made for this very text",
        "learn and remember all": "learn and to remember all of the information in it",
        "markdown": "in Markdown",
        "prefixed": 'begins with "##"',
    },
    "active_reading.apply": {"the strategy": "{item}", "applied": "Carry it out on the text below"},
    "active_reading+trivia.strategies": {
        "for trivia": "trivia contest",
        "questions": "questions that together cover all of the information",
        "a strategy each": "for each question, write a general strategy",
        "not too close": "without keeping too close to the single question",
        "detailed": "guidelines in detail, or step by step",
        "practice": "how to practise so that it sticks",
        "after the questions": "STRATEGIES between the questions and the strategies",
        "prefixed": 'begins with "##"',
    },
    "textbook+keywords.outline": {"of keywords": "those that the keywords below stand for.\n\nKeywords: {keywords}"},
    "textbook+grade_school.chapter": {"as printed": "Its readers are grade school students."},
}


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, known in INSTRUCTIONS.items() for words in known.values()]
)
def test_every_instruction_of_the_source_is_in_the_prompt(name, words):
    recipe, step = name.split(".")
    assert words in load_recipe(recipe).step(step).user


def test_the_instructions_of_every_prompt_are_listed():
    assert set(INSTRUCTIONS) >= GOLDEN.keys() - {"continue.continue"}


PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_of_recipes_says_what_the_recipes_say():
    cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    said = {row[0]: int(row[3].replace(",", "")) for row in cells if len(row) == 5 and row[0] in RECIPES}
    assert said == {name: load_recipe(name).expected_output_tokens for name in said}
    assert {key.split(".")[0] for key in GOLDEN} <= said.keys()
    example = PAGE.read_text().split("```yaml\n")[1].split("```")[0]
    mine = recipe_from(yaml.safe_load(example))
    assert [step.emit for step in mine.steps] == [False, True]


# --- the paper's textbook ---


def test_a_textbook_is_made_as_the_paper_says():
    recipe = load_recipe("textbook")
    outline, chapter = recipe.steps
    assert recipe.generator == "mistralai/Mistral-7B-Instruct-v0.1"
    for step in recipe.steps:
        assert step.sampling == Sampling(temperature=0.7, top_p=0.95, max_tokens=2048)
        assert "to the point and in detail" in step.system and "no notes of your own" in step.system
    assert (outline.max_input_tokens, outline.emit, chapter.emit) == (2000, False, True)
    assert outline.gate is not None
    assert (outline.gate.min_items, outline.gate.max_items, outline.gate.retries) == (8, 10, 2)
    assert chapter.max_step_tokens == 1200 and "document" not in chapter.placeholders
    assert (chapter.expected_output_tokens, recipe.expected_output_tokens) == (450, 5000)
    drops = {one.name: one.parameters for one in chapter.filters if one.action == "drop"}
    assert drops == {
        "min_tokens": {"tokens": 50},
        "max_tokens": {"tokens": 3 * 450},
        "finish_reason": {"reasons": ["length"]},
    }
    audiences = [recipe.assigned(0, position)["audience"] for position in range(400)]
    assert {name: audiences.count(name) for name in set(audiences)} == {
        "grade school students": 100,
        "college students": 100,
        "field experts": 100,
        "the general public": 100,
    }


def test_a_chapter_carries_its_outline_and_its_readers_in_and_not_the_document():
    recipe = load_recipe("textbook")
    text = "Chapter 1: Bolts\nChapter 2: Nuts {x}\n" + "More. " * 3000
    (first, *_) = recipe.step("outline").parsed(text).items
    values = {"outline": text, "item": first, "item_number": "1", "audience": "field experts"}
    _, user = recipe.render(recipe.step("chapter"), DOCUMENT, values)
    assert 'outline calls "Chapter 1: Bolts". Its readers are field experts.' in user["content"]
    assert "\nOutline:\nChapter 1: Bolts\nChapter 2: Nuts {x}\nMore. " in user["content"]
    assert "They" not in user["content"]
    assert 1100 <= estimate_tokens(user["content"].split("Outline:\n")[1].split("\n\n")[0]) <= 1200


def test_an_outline_may_be_made_of_keywords():
    recipe = load_recipe("textbook", "keywords")
    document = Document("d", "Sailing ships crossed oceans carrying pepper, cinnamon and cloves home.")
    _, user = recipe.render(recipe.step("outline"), document, {"audience": "field experts"}, seed=3)
    words = user["content"].split("Keywords: ")[1].split("\n")[0].split(", ")
    assert len(words) == len(set(words)) >= 8 and all(word in document.text.lower() for word in words)
    assert document.text not in user["content"]
    again = recipe.render(recipe.step("outline"), document, {"audience": "field experts"}, seed=4)
    assert again[1]["content"] != user["content"]


# --- variants and overrides ---


def test_a_variant_is_another_recipe_under_another_name():
    plain, both = load_recipe("textbook"), load_recipe("textbook", "grade_school,keywords")
    assert (plain.name, both.name) == ("textbook", "textbook+keywords+grade_school")
    assert len({plain.sha256, both.sha256, load_recipe("textbook+keywords").sha256}) == 3
    assert both == load_recipe("textbook+keywords+grade_school") == load_recipe("textbook+keywords", "grade_school")
    assert [step.name for step in both.steps] == [step.name for step in plain.steps]
    assert both.step("outline").user != plain.step("outline").user
    assert both.step("outline").gate == plain.step("outline").gate
    assert recipe_from(both.to_dict()) == both


def with_variants(**variants):
    return {**a_recipe(system="Be brief."), "variants": variants}


def test_a_variant_changes_fields_and_words_of_templates():
    values = with_variants(
        calm={"steps": {"s": {"sampling": {"temperature": 0.1}, "max_input_tokens": 9}}},
        old={"description": "o", "steps": {"s": {"replace": {"Read": "Peruse", "brief": "quaint ${x}"}}}},
    )
    recipe = recipe_from(values, variants=["old", "calm"])
    (step,) = recipe.steps
    assert recipe.name == "mine+calm+old"
    assert recipe_from(values).variants == (("calm", ""), ("old", "o"))
    assert (step.user, step.system) == ("Peruse {document} now.", "Be quaint ${x}.")
    assert (step.sampling, step.max_input_tokens) == (Sampling(0.1, 0.95, 2048), 9)


@pytest.mark.parametrize(
    ("variants", "chosen", "words"),
    [
        ({"old": {"steps": {"t": {}}}}, [], "variant old of the given recipe: the recipe has no step 't'; it has s"),
        ({"old": {"steps": {}}}, [], "changes nothing"),
        ({"old": [1]}, [], "a variant has a lower-case name and is a mapping"),
        ({"old": {"stepps": {}}}, [], "did you mean steps?"),
        ({"old": {"steps": {"s": {"usr": "x"}}}}, [], "did you mean user?"),
        ({"old": {"steps": {"s": {"name": "x"}}}}, [], "a mapping of fields, other than its name"),
        ({"old": {"steps": {"s": {"user": "x"}}}}, [], "user holds neither {document}"),
        ({"old": {"steps": {"s": {"replace": {"Write": "x"}}}}}, [], "its templates do not hold 'Write'"),
        ({"old": {"steps": {"s": {"replace": {"Read": 1}}}}}, [], "puts texts in the place of texts"),
        ({"old": {"steps": {"s": {"replace": "Read"}}}}, [], "is a mapping of words"),
        ({"old": {"steps": {"s": {"prompt_words": 3}}}}, ["odl"], "has no variant 'odl'; did you mean old?"),
        ({}, ["odl"], "has no variant 'odl'; it has none"),
    ],
)
def test_a_variant_with_a_fault_is_refused_chosen_or_not(variants, chosen, words):
    with pytest.raises(ValueError) as refused:
        recipe_from(with_variants(**variants), variants=chosen)
    assert words in str(refused.value)


@pytest.mark.parametrize("folder", ["plain", "c++", "a+b"])
def test_variants_of_a_file_are_named_behind_it(folder, tmp_path):
    path = tmp_path / folder / "mine+.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(with_variants(old={"steps": {"s": {"replace": {"Read": "Peruse"}}}})))
    assert load_recipe(path).name == "mine"
    assert load_recipe(f"{path}+old") == load_recipe(path, "old")
    with pytest.raises(ValueError, match=f"no recipe file .*{re.escape(folder)}/gone.yaml"):
        load_recipe(tmp_path / folder / "gone.yaml")


def test_a_field_of_a_step_may_be_overridden():
    recipe = load_recipe("hq", override={"rewrite": {"user": "Rewrite {document} {{so}}."}})
    assert recipe.name.startswith("hq+") and recipe.steps[0].system == load_recipe("hq").steps[0].system
    assert render(recipe, DOCUMENT)[1]["content"] == "Rewrite Bolts hold. {They} cost 3 {units}. {so}."
    other = load_recipe("hq", override={"rewrite": {"user": "Rewrite {document}."}})
    assert other.name != recipe.name and other.sha256 != recipe.sha256
    cooler = load_recipe("continue", override={"continue": {"sampling": {"temperature": 0.5}}})
    assert cooler.steps[0].sampling == Sampling(0.5, 0.95, 1024)
    both = load_recipe("textbook", "keywords", {"chapter": {"max_step_tokens": 600}})
    assert both.name.startswith("textbook+keywords+") and both.step("chapter").max_step_tokens == 600


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"rewrit": {"user": "x"}}, "no step 'rewrit'; did you mean rewrite?"),
        ({"rewrite": {"user": {"Rewrite": {"document": None}}}}, "user of step rewrite is a text"),
        ({"rewrite": {"user": "Rewrite {doc}"}}, "nothing stands for {doc}"),
        ({"rewrite": "x"}, "needs a mapping of fields"),
        ({"rewrite": {"max_input_tokens": 0}}, "override of recipe hq: max_input_tokens must be at least 1"),
    ],
)
def test_an_override_with_a_fault_is_refused(override, words):
    with pytest.raises(ValueError) as refused:
        load_recipe("hq", override=override)
    assert words in str(refused.value)


ODD = [
    "",
    "{",
    "}}{{",
    "{item}{outline}{audience}",
    "\x00\x07\u202e",
    "\u4f60\u597d\u3002" * 5000,
    "x" * 1_000_000,
    "a. " * 9000,
]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_renders_odd_documents_within_its_limits(name):
    recipe = load_recipe(name)
    values = {"item": "{document}", "item_number": "1", **recipe.assigned(0, 0)}
    values |= {step.name: "{document} {item}" for step in recipe.steps}
    for text in ODD:
        for step in recipe.steps:
            prompt = recipe.render(step, Document("d", text), values)
            given = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
            shown = recipe.document_text(step, Document("d", text))
            assert estimate_tokens(shown) <= step.max_input_tokens
            assert ("document" not in step.placeholders) or shown in given
            assert estimate_tokens(given) < step.max_input_tokens + 1000


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
        ({"record": "{s} of {t}"}, "nothing stands for {t} in record; it may name document, s"),
        ({"record": "{s}", "emit": False}, "has a record text and emits no record"),
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
        ({"filters": [{"name": "empty", "action": "erase"}]}, "got 'erase'"),
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
        ("nothing_like_it", "built in are active_reading, continue, distill"),
        ("textbok+keywords", "did you mean textbook?"),
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
