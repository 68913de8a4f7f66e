"""Run the notebooks of this folder without Jupyter, and write what their cells print and draw into them.

    python examples/notebooks/execute.py                          # every notebook, in place
    python examples/notebooks/execute.py 03_plan_a_study.ipynb    # one

A notebook is executed top to bottom in one fresh namespace. Outputs are what the cells print, and their figures at
`plt.show()` or, where a cell does not call it, at its end. The value of a last expression is not shown; print it.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The project is used from this checkout, installed or not.
sys.path.insert(0, str(HERE.parents[1]))

DPI = 80


def outputs_of(notebook: dict[str, Any], name: str) -> list[list[dict[str, Any]]]:
    """The outputs of every code cell, in order; what a cell raises is raised, with the cell's number in its place."""
    import matplotlib

    matplotlib.use("Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return [_run(source, f"{name}, code cell {k}", namespace) for k, source in enumerate(sources, start=1)]
        finally:
            os.chdir(before)


def _run(source: str, where: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    import matplotlib.pyplot as plt

    outputs: list[dict[str, Any]] = []
    printed = io.StringIO()

    def flush() -> None:
        text = printed.getvalue()
        if text:
            outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
        printed.seek(0)
        printed.truncate()

    def show(*args: Any, **kwargs: Any) -> None:
        flush()
        for number in plt.get_fignums():
            figure = plt.figure(number)
            image = io.BytesIO()
            # No version in the picture: the same figure is the same file.
            figure.savefig(image, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
            data = {"image/png": base64.b64encode(image.getvalue()).decode() + "\n", "text/plain": ["<Figure>"]}
            outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
        plt.close("all")

    shown_before = plt.show
    plt.show = show
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(source, where, "exec"), namespace)
        show()
    finally:
        plt.show = shown_before
    return outputs


def write_outputs(path: Path) -> None:
    """Execute the notebook at `path` and store its outputs."""
    from lingua_synth.files import atomic_file

    notebook = json.loads(path.read_text(encoding="utf-8"))
    outputs = iter(outputs_of(notebook, path.name))
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"], cell["outputs"] = count, next(outputs)
    with atomic_file(path) as file:
        file.write(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for argument in sys.argv[1:] or sorted(str(path) for path in HERE.glob("*.ipynb")):
        write_outputs(Path(argument) if Path(argument).exists() else HERE / argument)
