"""The pass over a finished folder: what it reports, what a copy leaves out, what it refuses."""

import json
import random

import pytest

from lingua_synth.cli import main
from lingua_synth.documents import Document, read_documents, write_documents
from lingua_synth.generate.folder_filters import filter_documents
from lingua_synth.generate.near_duplicates import NearDuplicates

pytest.importorskip("datasketch")
QUESTION = "Which of the following rivers does not flow into the sea at a delta the Po or the Elbe"


def words(seed):
    source = random.Random(seed)
    return " ".join(f"w{source.randrange(5000)}" for _ in range(200))


@pytest.fixture
def folder(tmp_path):
    """Ten texts: 3 is 1 again, 5 and 6 hold the question, 6 is also 5 again, 8 was marked by the recipe."""
    documents = [Document(f"d{i}", words(i), {"synth": {"flags": {}}}) for i in range(10)]
    documents[3] = Document("d3", words(1).upper(), {"synth": {"flags": {}}})
    for i in (5, 6):
        documents[i] = Document(f"d{i}", f"{words(5)} {QUESTION}?", {"synth": {"flags": {}}})
    documents[8] = Document("d8", words(8), {"synth": {"flags": {"refusal": "begins with 'i cannot'"}}})
    write_documents(tmp_path / "in" / "documents-00000.jsonl", documents)
    write_documents(tmp_path / "evaluation.jsonl", [Document("q1", f"{QUESTION}?"), Document("q2", "Why?")])
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_found_is_reported_and_the_documents_stay_as_they_are(folder):
    before = (folder / "in" / "documents-00000.jsonl").read_bytes()
    summary = filter_documents(str(folder / "in"), folder / "out", evaluation=[str(folder / "evaluation.jsonl")])
    assert (folder / "in" / "documents-00000.jsonl").read_bytes() == before
    assert summary.documents == 10
    assert summary.found == {"near_duplicate": 2, "evaluation_overlap": 2}
    assert summary.flagged == {"refusal": 1}
    assert summary.evaluation == {"documents": 2, "too_short": 1, "ngrams": len(QUESTION.split()) - 12}
    assert summary.kept is None
    found = lines(folder / "out" / "near_duplicates.jsonl")
    assert [(row["id"], row["duplicate_of"], row["similarity"]) for row in found] == [
        ("d3", "d1", 1.0),
        ("d6", "d5", 1.0),
    ]
    found = lines(folder / "out" / "overlaps.jsonl")
    assert [(row["id"], row["evaluation_id"]) for row in found] == [("d5", "q1"), ("d6", "q1")]
    assert json.loads((folder / "out" / "filter.json").read_text())["found"] == summary.found


def test_a_copy_leaves_out_what_is_asked_and_every_document_is_in_one_place(folder, monkeypatch):
    monkeypatch.setattr("lingua_synth.generate.folder_filters.COPY_ROWS", 4)
    for _ in range(2):  # again: the earlier copy is replaced
        summary = filter_documents(
            str(folder / "in"),
            folder / "out",
            evaluation=[str(folder / "evaluation.jsonl")],
            copy_dir=folder / "copy",
            drop=["evaluation_overlap", "near_duplicate", "refusal"],
        )
        assert (summary.kept, summary.dropped) == (6, {"evaluation_overlap": 2, "near_duplicate": 1, "refusal": 1})
        originals = {document.id: document for document in read_documents(str(folder / "in"))}
        kept = list(read_documents(str(folder / "copy")))
        assert kept == [originals[f"d{i}"] for i in (0, 1, 2, 4, 7, 9)]
        dropped = [row for path in sorted((folder / "copy").glob("dropped-*")) for row in lines(path)]
        assert [(row["id"], row["filter"]) for row in dropped] == [
            ("d3", "near_duplicate"),
            ("d5", "evaluation_overlap"),
            ("d6", "evaluation_overlap"),
            ("d8", "refusal"),
        ]


def test_a_pass_that_is_interrupted_leaves_a_copy_that_nobody_reads(folder, monkeypatch):
    monkeypatch.setattr("lingua_synth.generate.folder_filters.COPY_ROWS", 2)
    add = NearDuplicates.add

    def interrupted(self, document):
        if document.id == "d7":
            raise KeyboardInterrupt
        return add(self, document)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(NearDuplicates, "add", interrupted)
        filter_documents(str(folder / "in"), folder / "out", copy_dir=folder / "copy")
    with pytest.raises(ValueError, match="not finished"):
        list(read_documents(str(folder / "copy")))
    assert not list((folder / "out").glob("*.json*"))
    assert filter_documents(str(folder / "in"), folder / "out", copy_dir=folder / "copy").kept == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ["boring"]}, "drop names 'boring', which nothing finds"),
        ({"near_duplicates": None, "copy_dir": "copy"}, "would leave nothing out"),
        ({"near_duplicates": 2.0}, r"in \(0, 1\], got 2.0"),
        ({"copy_dir": "in"}, "needs a folder of its own"),
        ({"copy_dir": "foreign"}, "not overwritten"),
        ({"evaluation": ["nothing.jsonl"]}, "nothing.jsonl"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_touched(folder, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    write_documents(folder / "foreign" / "documents-00000.jsonl", [Document("x", "mine")])
    before = sorted(path.read_bytes() for path in folder.rglob("*.jsonl"))
    with pytest.raises(ValueError, match=message):
        filter_documents("in", folder / "out", **options)
    assert sorted(path.read_bytes() for path in folder.rglob("*.jsonl")) == before


def test_the_verb(folder, capsys):
    (folder / "in" / "manifest.json").write_text('{"document_files": ["documents-*.jsonl"]}')
    words = [f"documents={folder / 'in'}", f"evaluation=[{folder / 'evaluation.jsonl'}]", f"copy={folder / 'copy'}"]
    assert main(["generate", "filter", *words]) == 0
    said = capsys.readouterr().out
    assert "near_duplicate 2, evaluation_overlap 2" in said and "7 kept, 3 dropped" in said
    assert len(lines(folder / "in" / "overlaps.jsonl")) == 2
    # The reports stand beside the documents of a run and are none.
    assert len(list(read_documents(str(folder / "in")))) == 10
    for more, message in (
        ([], "documents is not set"),
        ([f"documents={folder / 'copy' / 'documents-00000.jsonl'}"], "out is not set"),
        ([f"documents={folder / 'in'}", "near_duplicates=null"], "nothing to look for"),
    ):
        with pytest.raises(ValueError, match=message):
            main(["generate", "filter", *more])
