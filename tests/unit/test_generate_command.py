"""The verb: run, list, show, verify, as a user types them."""

import json
import re

import pytest

from lingua_synth.cli import main
from lingua_synth.config import run_command
from lingua_synth.documents import Document, write_documents
from lingua_synth.generate import RECIPES, load_recipe


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    write_documents(path, [Document(f"d{i}", f"A text about {i} {{things}}. " * 9) for i in range(12)])
    return path


def call(*words):
    return run_command(main, ["generate", *(str(word) for word in words)])


def words_of(source, tmp_path, **changes):
    words = {
        "recipe": "hq",
        "documents": source,
        "out": tmp_path / "out",
        "engine": "mock",
        "progress": "false",
        **changes,
    }
    return [f"{key}={value}" for key, value in words.items() if value is not None]


@pytest.mark.parametrize("verb", [[], ["run"]])
def test_run_and_run_again_and_verify(verb, source, tmp_path, capsys):
    assert call(*verb, *words_of(source, tmp_path, shard_size=5)) == 0
    shown = capsys.readouterr().out
    assert "12 with 1,440 tokens" in shown and "hq, mock" in shown
    assert call(*verb, *words_of(source, tmp_path, shard_size=5)) == 0
    assert "0 inputs in" in capsys.readouterr().out
    assert call("verify", f"out={tmp_path / 'out'}") == 0
    assert capsys.readouterr().out == "ok: hashes, counts and ids agree\n"


def test_the_recipe_s_sampling_can_be_replaced(source, tmp_path, capsys):
    assert call(*words_of(source, tmp_path, temperature=0.1, top_p=0.5, max_tokens=60)) == 0
    record = json.loads((tmp_path / "out" / "documents-00000.jsonl").read_text().splitlines()[0])
    sampling = record["meta"]["synth"]["sampling"]
    assert {key: sampling[key] for key in ("temperature", "top_p", "max_tokens")} == {
        "temperature": 0.1,
        "top_p": 0.5,
        "max_tokens": 60,
    }
    assert "finish_reason 12" in capsys.readouterr().out


def test_verify_names_the_problems_and_ends_with_1(source, tmp_path, capsys):
    call(*words_of(source, tmp_path))
    (tmp_path / "out" / "failed-00000.jsonl").unlink()
    capsys.readouterr()
    assert call("verify", f"out={tmp_path / 'out'}") == 1
    assert capsys.readouterr().out == "failed-00000.jsonl is missing\n1 problems\n"


def test_list_shows_every_recipe_with_its_source(capsys):
    assert call("list") == 0
    shown = capsys.readouterr().out
    assert all(f"{name} (version" in shown for name in RECIPES)
    assert "Demystifying Synthetic Data" in shown and "evidence" in shown
    assert "variant keywords: The outline is made of words drawn from the document" in shown


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_show_renders_a_prompt_without_an_engine(kind, source, tmp_path, capsys):
    if kind == "txt":
        (tmp_path / "page.txt").write_text("A text about 0 {things}. " * 9)
    assert call("show", "recipe=hq", f"document={source if kind == 'jsonl' else tmp_path / 'page.txt'}") == 0
    shown = capsys.readouterr().out
    assert "--- system ---" in shown and "--- user ---" in shown
    assert "\nText:\nA text about 0 {things}. A text" in shown


def test_show_renders_a_text_prompt(source, capsys):
    assert call("show", "recipe=continue", f"document={source}") == 0
    assert (
        "--- text ---\nA text about 0 {things}. A text about 0 {things}. A text about 0 {things}. A\n---\n"
        in capsys.readouterr().out
    )


def test_show_renders_every_step_of_every_recipe_and_variant(source, capsys):
    for name in RECIPES:
        recipe = load_recipe(name)
        for variant in ("", *(variant for variant, _ in recipe.variants)):
            assert call("show", f"recipe={name}", f"variant={variant}", f"document={source}") == 0
            shown = capsys.readouterr().out
            assert all(f"\nstep {step.name}, prompt " in shown for step in recipe.steps)
            assert not re.search(r"(?<!A text about 0 )\{[a-z_]+\}", shown)


def test_show_says_who_reads_the_book_and_where_other_steps_stand(source, capsys):
    assert call("show", "recipe=textbook", "variant=keywords", f"document={source}", "seed=1") == 0
    shown = capsys.readouterr().out
    audience = shown.split("\naudience: ")[1].split("\n")[0]
    assert shown.count(f"Its readers are {audience}.") == 2
    assert "recipe textbook+keywords, version 1" in shown and "\nKeywords: " in shown
    assert "\nOutline:\n<what outline wrote>\n" in shown and 'calls "<the item>"' in shown


def test_a_prompt_may_be_overridden_on_the_command_line(source, tmp_path, capsys):
    words = ['override.rewrite.user="Say: {document}"', "override.rewrite.sampling.max_tokens=99"]
    assert call("show", "recipe=hq", f"document={source}", *words) == 0
    shown = capsys.readouterr().out
    assert "--- user ---\nSay: A text about 0 {things}." in shown and "max_tokens 99\n" in shown
    assert call(*words_of(source, tmp_path), *words) == 0
    record = json.loads((tmp_path / "out" / "documents-00000.jsonl").read_text().splitlines()[0])
    assert record["meta"]["synth"]["recipe"].startswith("hq+")
    assert record["meta"]["synth"]["sampling"]["max_tokens"] == 99


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "generate has no 'rnu'; did you mean run?"),
        ([], "recipe is not set; `lingua-synth generate --help` lists the keys; there are active_reading"),
        (["recipe=hq"], "documents is not set"),
        (["recipe=hq", "documents=IN"], "out is not set"),
        (["recipe=hq", "documents=IN", "out=OUT"], "engine is not set"),
        (["recipe=hq", "documents=IN", "out=OUT", "engine=mok"], "no engine 'mok'; did you mean mock?"),
        (
            ["recipe=hq", "documents=IN", "out=OUT", "engine=mock", "batch_size=3"],
            "engine mock has no option batch_size",
        ),
        (["recipe=hq", "documents=IN", "out=OUT", "engine=openai", "model=m"], "needs base_url="),
        (["recipe=hq", "documents=gone", "out=OUT", "engine=mock"], "no documents at gone"),
        (["recipe=hq", "documents=IN", "out=IN", "engine=mock"], "out is a folder, and IN is a file"),
        (["recipe=hq", "documents=IN", "out=OUT", "engine=mock", "temprature=1"], "did you mean temperature?"),
        (["recipe=hq", "documents=IN", "out=OUT", "engine=mock", "top_p=2"], "top_p is a probability mass"),
        (["show", "recipe=hq", "variant=keywords", "document=IN"], "recipe hq has no variant 'keywords'; it has none"),
        (["show", "recipe=hq", "document=IN", "override.rewrite.user=Say: {document}"], "put it in double quotes"),
        (["show", "recipe=hq", "document=IN", "override.rewrit.user=x"], "did you mean rewrite?"),
        (["show", "recipe=hq"], "show needs recipe= and document="),
        (["show", "recipe=hq", "document=gone.txt"], "no file gone.txt"),
        (["show", "recipe=hq", "document=EMPTY"], "is empty"),
        (["show", "recipe=hq", "document=LATIN"], "is not UTF-8 text"),
        (["verify"], "verify needs out="),
        (["verify", "out=OUT"], "has no manifest.json: no run"),
        (["list", "recipe=hq"], "unknown key recipe"),
    ],
)
def test_bad_input_ends_with_one_message_and_code_2(words, message, source, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    places = {"IN": source, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty.txt", "LATIN": tmp_path / "latin.txt"}
    for name, path in places.items():
        words = [word.replace(f"={name}", f"={path}") for word in words]
        message = message.replace(f"and {name} ", f"and {path} ")
    assert call(*words) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [[], ["run"], ["list"], ["show"], ["verify"]])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["generate", *verb, "--help"])
    assert stop.value.code == 0
    assert "usage: lingua-synth generate" in capsys.readouterr().out
