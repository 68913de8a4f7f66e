"""The tour of the docs, as a reader walks it: every block in its order, every verb once."""

import re
import shlex
from pathlib import Path

from lingua_synth.cli import VERBS, main
from lingua_synth.files import read_json

TOUR = Path(__file__).parents[2] / "docs" / "tour.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {"quickstart"}  # a tour of its own


def test_every_block_of_the_tour_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    walked, said = set(), {}
    for kind, block in BLOCK.findall(TOUR.read_text()):
        if kind == "python":
            exec(compile(block, str(TOUR), "exec"), {})
        elif kind == "yaml":
            first, _, rest = block.partition("\n")
            Path(first.removeprefix("# ")).write_text(rest)
        else:
            for line in block.splitlines():
                program, *words = shlex.split(line, comments=True)
                assert program == "lingua-synth", line
                assert not main(words), line
                walked.add(words[0])
                said[line.partition(" #")[0].strip()] = capsys.readouterr().out
    assert walked == set(VERBS) - ELSEWHERE

    assert read_json("synthetic/continue/manifest.json")["output_tokens"] >= 50_000
    assert len(Path("study/runs.csv").read_text().splitlines()) == 1 + 18
    assert "not identifiable" in said["lingua-synth fit runs=study/runs.csv out=fits"]
    assert Path("report/report.html").stat().st_size > 100_000
    assert Path("generations/rounds.csv").is_file()
    evaluated = read_json("evaluations/writer/evaluation.json")
    assert set(evaluated["domains"]) == {"language-reference", "standard-library"}
