"""The notebooks of examples/notebooks run top to bottom, and what is stored in them is what they make."""

import importlib.util
import json
import re
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def execute():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds(outputs):
    return [[output["output_type"] for output in cell] for cell in outputs]


def test_they_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_under_a_minute(execute, path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    begun = time.process_time()
    outputs = execute.outputs_of(notebook, path.name)
    assert time.process_time() - begun < 60
    stored = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert kinds(outputs) == kinds(stored), f"python examples/notebooks/execute.py {path.name} writes the outputs anew"
    assert "display_data" in kinds(outputs)[-1], "it ends in a figure"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_was_run(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    text = "".join("".join(output.get("text", [])) for cell in code for output in cell["outputs"])
    assert not re.search(r"/(tmp|home|work|Users)/|Warning|Traceback", text)
    assert path.stat().st_size < 500_000


def test_a_cell_that_fails_is_named(execute):
    def code(source):
        return {"cell_type": "code", "source": source}

    notebook = {"cells": [code("a = 1"), {"cell_type": "markdown", "source": "b"}, code("print(a)\nprint(missing)")]}
    with pytest.raises(NameError) as caught:
        execute.outputs_of(notebook, "mine.ipynb")
    assert caught.traceback[-1].path == Path("mine.ipynb, code cell 2") or "code cell 2" in str(caught.traceback[-1])
    notebook["cells"][-1] = code("print(a)")
    printed = [{"name": "stdout", "output_type": "stream", "text": ["1\n"]}]
    assert execute.outputs_of(notebook, "mine.ipynb") == [[], printed]
