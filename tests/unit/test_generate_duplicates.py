"""Near-duplicates and contamination: against brute force, planted cases, and what is said when it cannot work."""

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.documents import Document
from lingua_synth.documents.ngrams import hash_ngrams, split_tokens
from lingua_synth.generate.decontamination import EvaluationIndex, find_overlaps
from lingua_synth.generate.near_duplicates import NearDuplicates, find_near_duplicates

VOCABULARY = [f"w{i}" for i in range(3000)]


def text(seed, num_words=300):
    return random.Random(seed).choices(VOCABULARY, k=num_words)


def changed(words, num_changes, seed):
    """`words` with so many replaced, spread evenly."""
    words = list(words)
    step = len(words) // num_changes
    for number in range(num_changes):
        words[number * step + step // 2] = f"new{seed}x{number}"
    return words


def jaccard(a, b, size=5):
    one, other = ({tuple(w[i : i + size]) for i in range(len(w) - size + 1)} for w in (a, b))
    return len(one & other) / len(one | other)


# --- words and hashes ---


def test_words_are_those_a_reader_sees():
    assert split_tokens("The RIVER, it's\u00a0green\u2014\uff12 times!") == [
        "the",
        "river",
        "it",
        "s",
        "green",
        "2",
        "times",
    ]
    assert split_tokens("川は green") == ["川", "は", "green"]
    assert split_tokens(" \n.,;") == []


@given(st.lists(st.sampled_from(["a", "b", "c", "ab"]), max_size=20), st.integers(1, 5))
def test_equal_ngrams_and_only_these_have_equal_hashes(words, size):
    ngrams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    hashes = hash_ngrams(words, size).tolist()
    assert len(hashes) == len(ngrams)
    for i, one in enumerate(ngrams):
        for j, other in enumerate(ngrams):
            assert (one == other) == (hashes[i] == hashes[j])


def test_hashes_are_the_same_everywhere():
    # Known values: a change here changes what every run finds.
    assert hash_ngrams(["a", "b", "c"], 2).tolist() == [12769712933570031285, 14999570181903818515]


# --- near-duplicates ---


def test_planted_near_duplicates_are_found_and_nothing_else():
    pytest.importorskip("datasketch")
    documents, planted = [], {}
    for number in range(300):
        words = text(number)
        documents.append(Document(f"d{number}", " ".join(words)))
        if number % 3 == 0:  # 4 of 300 words changed: 20 of 296 5-grams differ, similarity 0.87
            copy = changed(words, 4, number)
            assert 0.86 < jaccard(words, copy) < 0.89
            planted[f"near{number}"] = f"d{number}"
            documents.append(Document(f"near{number}", " ".join(copy)))
        if number % 3 == 1:  # 30 changed: similarity 0.33
            documents.append(Document(f"far{number}", " ".join(changed(words, 30, number))))
    found = list(find_near_duplicates(documents, 0.7))
    assert {one.id: one.duplicate_of for one in found} == planted
    assert all(abs(one.similarity - 0.87) < 4 * 0.03 for one in found)
    assert found == list(find_near_duplicates(documents, 0.7))


def test_copies_but_for_case_and_punctuation_are_near_duplicates_at_any_threshold():
    pytest.importorskip("datasketch")
    words = text(1)
    documents = [
        Document("a", " ".join(words)),
        Document("b", ", ".join(words).upper()),
        Document("c", " ".join(words[:150])),
        Document("short", "Only three words"),
        Document("short again", "only THREE words!"),
        Document("other", "only three"),
    ]
    for threshold in (0.9, 1.0):
        found = list(find_near_duplicates(documents, threshold))
        assert [(one.id, one.duplicate_of, one.similarity) for one in found] == [
            ("b", "a", 1.0),
            ("short again", "short", 1.0),
        ]


def test_a_near_duplicate_is_never_what_another_is_a_near_duplicate_of():
    pytest.importorskip("datasketch")
    words = text(3)
    steps = [words]
    for number in range(12):  # each close to the one before, the last far from the first
        steps.append(changed(steps[-1][number:] + steps[-1][:number], 3, number))
    documents = [Document(str(i), " ".join(one)) for i, one in enumerate(steps)]
    found = list(find_near_duplicates(documents, 0.8))
    assert found
    assert not {one.id for one in found} & {one.duplicate_of for one in found}


@pytest.mark.parametrize("threshold", [0, -1, 1.1])
def test_a_threshold_that_is_no_similarity_is_refused(threshold):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        NearDuplicates(threshold)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ValueError, match=r"datasketch.*lingua-synth\[filters\]"):
        NearDuplicates()


# --- contamination ---


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 4))
def test_overlaps_are_those_of_brute_force(data, size):
    word = st.sampled_from(["a", "b", "c", "d", "e"])
    texts = st.lists(st.lists(word, max_size=12), min_size=1, max_size=4)
    evaluation = [[*["a"] * size, "z"], *data.draw(texts)]
    index = EvaluationIndex([Document(f"e{i}", " ".join(words)) for i, words in enumerate(evaluation)], size)

    def ngrams(words):
        return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]

    held = [set(ngrams(words)) for words in evaluation]
    assert index.num_ngrams == len(set().union(*held))
    assert index.num_too_short == sum(len(words) < size for words in evaluation)
    for words in data.draw(texts):
        mine = ngrams(words)
        shared = [ngram for ngram in mine if any(ngram in one for one in held)]
        found = index.overlap(Document("d", " ".join(words)))
        if not shared:
            assert found is None
        else:
            assert (found.num_ngrams, found.share) == (len(shared), len(shared) / len(mine))
            assert found.text == " ".join(shared[0])
            assert tuple(found.text.split()) in held[int(found.evaluation_id[1:])]


def test_a_quoted_question_is_found_whatever_its_case_and_punctuation():
    question = "Which of the following rivers does not flow into the sea at a delta: the Po, the Elbe?"
    index = EvaluationIndex([Document("mmlu-7", question), Document("tiny", "Is it?")])
    assert (index.num_documents, index.num_too_short) == (2, 1)
    documents = [
        Document("clean", " ".join(text(5))),
        Document("quotes", f"{' '.join(text(6))} {question.upper().replace(',', ' --')} {' '.join(text(7))}"),
        Document("12 words", " ".join(split_tokens(question)[:12])),
        Document("13 words", " ".join(split_tokens(question)[:13])),
    ]
    found = list(find_overlaps(documents, index))
    assert [(one.id, one.evaluation_id, one.num_ngrams) for one in found] == [
        ("quotes", "mmlu-7", 6),
        ("13 words", "mmlu-7", 1),
    ]
    assert found[0].text == "which of the following rivers does not flow into the sea at a"


def test_evaluation_texts_that_are_all_too_short_are_refused():
    with pytest.raises(ValueError, match="none of the 1 evaluation texts has 13 words"):
        EvaluationIndex([Document("e", "too short")])
