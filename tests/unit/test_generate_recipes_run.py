"""The built-in recipes of several steps, from documents to records, with an engine that writes as models do."""

import json

import pytest

from lingua_synth.documents import Document, write_documents
from lingua_synth.generate import RECIPES, Generation, generate, load_recipe, verify
from lingua_synth.generate.engines.mock import MockEngine
from lingua_synth.generate.selection import select_traces

DOCUMENTS = [Document(f"doc-{i}", f"Text number {i} is about {{bolts}}. " * 6) for i in range(8)]
TEXT = "Every word here stands for something that a model would have said. " * 8


class Writer(MockEngine):
    """Answers by what it is asked: outlines in forms that vary with the seed, pairs, strategies, prose else."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def _outcome(self, request, num_outcomes):
        asked = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
        self.asked.append(asked)
        text = TEXT
        if asked.endswith("Outline of the textbook:"):
            between = ("\n", "\n * a point", " and more")[request.seed % 3]
            number = 2 if "number 5 " in asked and request.seed % 5 else 11
            text = "Title: Bolts\nIntroduction:" + "".join(
                f"{between if k > 1 else chr(10)}Chapter {k}: Part {k}" for k in range(1, number + 1)
            )
        elif asked.endswith("Pairs:"):
            text = "\n\n".join(f"{k}. Genre: kind {k}\nAudience: readers {k}" for k in range(1, 6))
        elif asked.startswith("Read the text below. "):
            text = "Here:\n## Map\nDraw it.\n## Count\nCount it.\n## Rhyme\nSing it."
        return Generation(request.key, text, len(asked.split()), len(text.split()), "stop")


def rows(folder, kind):
    paths = sorted(folder.glob(f"{kind}-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.mark.parametrize("variant", ["", "grade_school", "keywords"])
def test_books_have_ten_chapters_for_readers_dealt_evenly(variant, tmp_path):
    recipe, engine = load_recipe("textbook", variant), Writer()
    summary = generate(DOCUMENTS, tmp_path, recipe, engine, seed=2, progress=False)
    assert verify(tmp_path) == []
    books = {}
    for row in rows(tmp_path, "documents"):
        synth = row["meta"]["synth"]
        books.setdefault(synth["source_id"], []).append(synth["item"])
        assert synth["recipe"] == recipe.name and synth["parents"].keys() == {"outline"}
    dropped = {row["meta"]["synth"]["source_id"] for row in rows(tmp_path, "filtered")}
    assert summary.filtered == ({"gate": len(dropped)} if dropped else {}) and dropped <= {"doc-5"}
    assert books == {one.id: list(range(1, 11)) for one in DOCUMENTS if one.id not in dropped}
    readers = [row["meta"]["synth"]["audience"] for row in rows(tmp_path, "steps")]
    assert all(readers.count(one) <= 2 for one in readers) and len(set(readers)) == 4
    chapters = [asked for asked in engine.asked if "outline calls" in asked]
    titles = {asked.split("outline calls ")[1].split(". Its")[0] for asked in chapters}
    assert titles <= {f'"Chapter {k}: Part {k}{end}"' for k in range(1, 11) for end in ("", " and more")}
    assert len(chapters) == len(books) * 10
    said = {asked.split("Its readers are ")[1].split(".")[0] for asked in chapters}
    assert said == ({"grade school students"} if variant == "grade_school" else set(readers))


@pytest.mark.parametrize(
    ("name", "number", "piece"),
    [("mga", 5, "Genre: kind 2\nAudience: readers 2"), ("active_reading", 3, "Count\nCount it.")],
)
def test_genres_and_strategies_give_a_record_each(name, number, piece, tmp_path):
    engine = Writer()
    summary = generate(DOCUMENTS, tmp_path, name, engine, progress=False)
    assert summary.records == number * len(DOCUMENTS) and verify(tmp_path) == []
    asked = [asked for asked in engine.asked if f"\n\n{piece}\n\n" in asked and "is about {bolts}" in asked]
    assert len(asked) == len(DOCUMENTS)


def test_records_say_how_many_pairs_were_read_in_them(tmp_path):
    class Asking(MockEngine):
        def _outcome(self, request, num_outcomes):
            text = TEXT.replace("Every", "Question: Which? Answer: Every") + "Question: Why?"
            return Generation(request.key, text, 9, len(text.split()), "stop")

    generate(DOCUMENTS[:2], tmp_path, "diverse_qa", Asking(), progress=False)
    for row in rows(tmp_path, "documents"):
        assert row["meta"]["synth"]["fields"] == {"convert": {"pairs": 8, "unanswered": 1}}
        assert "qa_pairs" in row["meta"]["synth"]["flags"]


class Thinker(MockEngine):
    """Answers question n in n + 1 steps; the other model is wrong at every third, and the judge sees it."""

    def _outcome(self, request, num_outcomes):
        asked = request.prompt[-1]["content"]
        number = int(asked.split("Text number ")[1].split(" ")[0])
        if asked.startswith("Answer the question below. Think"):
            steps = " ".join(f"step {k}" for k in range(number + 1))
            text = f"{steps}\n\n**Final answer:** {number}"
            if number == 4:
                text = f"<think>{steps}</think>\n{number}"
            if number == 6 and "-" not in request.key:
                text = steps  # a trace without an answer is asked for again
        elif asked.startswith("Answer the question below at once"):
            text = f"Answer: {number + (number % 3 == 0)}"
        elif asked.startswith("Two people"):
            first = asked.split("First:")[1].split("Second:")
            same = first[0].split()[-1] == first[1].split("\n\nClose")[0].split()[-1]
            text = f"They say so.\nVerdict: {'same' if same else 'different'}"
        else:
            strategies = {"checking": asked.count("step"), "planning": 1, "going back": 0}
            text = "Here: " + json.dumps({"domain": "mathematics", "verbosity": number, "strategies": strategies})
        return Generation(request.key, text, len(asked.split()), len(text.split()), "stop")


def test_traces_have_all_that_selection_looks_at(tmp_path):
    summary = generate(DOCUMENTS, tmp_path / "traces", "traces", Thinker(), progress=False)
    assert summary.records == len(DOCUMENTS) and not summary.failed and not summary.filtered
    assert verify(tmp_path / "traces") == []
    for number, row in enumerate(rows(tmp_path / "traces", "documents")):
        synth = row["meta"]["synth"]
        fields = synth["fields"]
        steps = " ".join(f"step {k}" for k in range(number + 1))
        assert fields["teacher"] == {"reasoning": steps, "answer": str(number)}
        assert fields["reference"] == {"reference_answer": str(number + (number % 3 == 0))}
        assert fields["judge"] == {"agree": number % 3 != 0}
        # The question holds no "step", the trace number + 1 of them.
        assert fields["notes"] == {
            "domain": "mathematics", "verbosity": number, "strategies": {"checking": number + 1, "planning": 1},
        }  # fmt: skip
        question = DOCUMENTS[number].text.strip()
        assert row["text"].startswith(f"{question}\n\n") and steps in row["text"] and "{bolts}" in row["text"]
    manifest = select_traces(
        str(tmp_path / "traces"),
        tmp_path / "chosen",
        "disagree",
        questions=str(_questions(tmp_path)),
    )
    selected = (tmp_path / "chosen" / "selected.jsonl").read_text().splitlines()
    chosen = {json.loads(line)["meta"]["synth"]["source_id"] for line in selected}
    assert chosen == {"doc-0", "doc-3", "doc-6"} and manifest


def _questions(folder):
    write_documents(folder / "questions.jsonl", DOCUMENTS)
    return folder / "questions.jsonl"


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "traces"])
def test_every_recipe_runs(name, tmp_path):
    summary = generate(DOCUMENTS[:2], tmp_path, name, Writer(), progress=False)
    assert summary.records >= 2 and not summary.failed and verify(tmp_path) == []
