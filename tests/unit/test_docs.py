"""The pages say what is true: links lead somewhere, examples run, the site builds."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lingua_synth import config
from lingua_synth.cli import VERBS, main

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
MAX_EXAMPLE_LINES = 40
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:lingua-synth|-m lingua_synth\.(?=train|evaluate)) ?([a-z].*)")


def blocks_of(page):
    return [(match[1], match[2]) for match in _BLOCK.finditer((ROOT / "docs" / page).read_text())]


def commands_of(page):
    """The words after `lingua-synth` of every command in a page's blocks, or in the comments of a config."""
    text = page.read_text().replace("\\\n", " ")
    if page.suffix == ".md":
        lines = [line for kind, block in _BLOCK.findall(text) if kind == "bash" for line in block.splitlines()]
    else:
        lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#   ")]
    for line in lines:
        for part in re.split(r"\s+#|\s{3,}| && ", line):
            if found := _COMMAND.search(part):
                yield shlex.split(found[1])


class Parsed(Exception):
    """The words were taken; what the verb would do next is not done."""


def run_commands(block):
    for line in block.splitlines():
        words = line.partition("#")[0].split()
        assert words[0] == "lingua-synth", line
        try:
            code = main(words[1:])
        except SystemExit as stop:  # of --help
            code = stop.code
        assert not code, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    text = page.read_text()
    for name in re.findall(r"`((?:lingua_synth|docs|tests|benchmarks|scripts|examples|apps)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link


def test_the_examples_of_extending_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.jsonl").write_text('{"id": "a", "text": "Rivers carry stones to the sea."}\n')
    blocks = blocks_of("extending.md")
    assert [kind for kind, _ in blocks] == ["yaml", "bash", "python", "python", "python", "yaml"]
    assert all(block.count("\n") < MAX_EXAMPLE_LINES for _, block in blocks)
    (_, recipe), (_, commands), (_, law), (_, engine), (_, preset), (_, shape) = blocks
    (tmp_path / "quiz.yaml").write_text(recipe)
    run_commands(commands)
    assert (tmp_path / "quiz" / "manifest.json").is_file()
    said = capsys.readouterr().out
    assert "Ask 5 questions that this text answers" in said

    names = {}
    exec(compile(law, "law", "exec"), names)
    params = names["found"].params
    assert names["found"].converged
    assert {key: params[key] for key in ("E", "B", "K", "beta")} == pytest.approx(
        {"E": 2.0, "B": 3.0, "K": 1e8, "beta": 0.5}, rel=1e-3
    )

    exec(compile(engine, "engine", "exec"), names)
    assert names["summary"].records > 0
    assert "RIVERS CARRY STONES" in (tmp_path / "upper" / "documents-00000.jsonl").read_text()

    from lingua_synth.model import PRESETS

    try:
        exec(compile(preset, "preset", "exec"), names)
        assert names["counts"].non_embedding == 4 * (4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024) + 1024
    finally:
        PRESETS.pop("wide-60M")
    from lingua_synth.config import build_args
    from lingua_synth.model import count_parameters
    from lingua_synth.train import TrainArgs, resolve_args

    config = {**yaml.safe_load(shape), "steps": 10, "optim": {"warmup": 1}}
    resolved = resolve_args(build_args(TrainArgs, config), dp_size=1, vocab_size=128_256)
    assert count_parameters(resolved.model) == names["counts"]


def test_the_keys_of_every_command_on_a_page_exist(tmp_path, monkeypatch):
    build_args = config.build_args

    def parse_alone(cls, *layers):
        build_args(cls, *layers)
        raise Parsed

    monkeypatch.setattr(config, "build_args", parse_alone)
    monkeypatch.chdir(tmp_path)
    seen = set()
    for page in [*PAGES, *sorted((ROOT / "examples").rglob("*.yaml"))]:
        for verb, *words in commands_of(page):
            named = [word for word in words if "=" in word or re.fullmatch("[a-z]+(-[a-z]+)*", word)]
            for word in named:
                if word.startswith("config=") and word.endswith(".yaml"):  # what stands in it is tested elsewhere
                    file = tmp_path / word.removeprefix("config=")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("{}\n")
            if "--help" not in words:
                with pytest.raises(Parsed):
                    main([verb, *named])
            seen.add(verb)
    assert seen == set(VERBS), "every verb stands on some page"


@pytest.mark.parametrize("page", ["troubleshooting.md", "numerics.md", "dataflow.md", "recommend.md"])
def test_python_on_the_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = 0
    for kind, block in blocks_of(page):
        if kind == "python":
            exec(compile(block, page, "exec"), {})
            ran += 1
        elif kind == "bash":
            run_commands(block)
            ran += 1
    assert ran


def test_every_room_is_in_the_reference():

    rooms = {path.parent.name for path in (ROOT / "lingua_synth").glob("*/__init__.py")}
    assert rooms <= {page.stem for page in (ROOT / "docs" / "reference").glob("*.md")}


def test_every_page_is_in_the_menu_once():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]

    named = pages(menu)
    assert sorted(named) == sorted(str(page.relative_to(ROOT / "docs")) for page in DOCS), "mkdocs.yml has the menu"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="the site needs the extra docs")
def test_the_site_builds_without_a_broken_link(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "plan_sequences" in (tmp_path / "site" / "reference" / "mixture.html").read_text()
