"""Which training rows are test rows: the published counts, what counts as near, and the table."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_pl.data import contamination
from adapters_pl.data.contamination import find_overlaps, find_same, normalised, report, table
from tests.conftest import DATA, GOLDEN, shared

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
RECORDED = GOLDEN / "contamination.json"
PAIRS = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"pairs": [], "test_vs_test": [], "train_side": []}
WORD = st.sampled_from(["ann", "bob", "has", "sold", "three", "apples", "and", "then", "3", "4", "12", "more", "to"])
QUESTION = st.lists(WORD, min_size=1, max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def questions():
    """The questions of a published file, read once."""
    read = {}

    def questions(path):
        if path not in read:
            rows = json.loads((DATA / path).read_text())
            read[path] = [next(row[key] for key in ("instruction", "original_text") if key in row) for row in rows]
        return read[path]

    return questions


# ---- the published files


@shared(RECORDED)
@shared(DATA)
@pytest.mark.parametrize("train", sorted({pair["train"] for pair in PAIRS["pairs"] + PAIRS["test_vs_test"]}))
def test_the_recorded_overlaps_are_found(questions, train):
    pairs = [pair for pair in PAIRS["pairs"] + PAIRS["test_vs_test"] if pair["train"] == train]
    found = find_same(questions(train), {pair["test"]: questions(pair["test"]) for pair in pairs})
    counts = {pair["test"]: (pair["exact"], pair["normalised"]) for pair in pairs}
    assert {name: (len(each.exact), len(each.normalised)) for name, each in found.items()} == counts
    for pair in pairs:
        overlap = found[pair["test"]]
        assert sorted(overlap.normalised)[:20] == [example["test"] for example in pair["example_indices_normalised"]]
        for test, row in overlap.normalised.items():
            assert normalised(questions(train)[row]) == normalised(questions(pair["test"])[test])


@shared(RECORDED)
@shared(DATA)
@pytest.mark.parametrize("side", PAIRS["train_side"], ids=lambda side: side["train"])
def test_the_recorded_training_rows_are_found(questions, side):
    tests = {pair["test"] for pair in PAIRS["pairs"] if pair["train"] == side["train"]}
    found = find_same(questions(side["train"]), {test: questions(test) for test in tests})
    rows = set().union(*(overlap.same_rows for overlap in found.values()))
    assert (len(questions(side["train"])), len(rows)) == (side["train_rows"], side["train_rows_present_in_some_test"])


@shared(DATA)
def test_questions_in_other_words_are_near_and_other_problems_are_not(questions):
    found = find_overlaps(questions("dataset/boolq/train.json"), {"boolq": questions("dataset/boolq/test.json")})[
        "boolq"
    ]
    near_questions = [questions("dataset/boolq/test.json")[i] for i in found.near]
    assert any("do you have to be born in us to become president" in question for question in near_questions)
    assert 50 < len(found.near) < 120
    # Written from templates, with other numbers: no question of one is a question of the other.
    svamp = find_overlaps(questions("dataset/mawps/trainset.json"), {"SVAMP": questions("dataset/SVAMP/test.json")})
    assert len(svamp["SVAMP"].near) <= 3


# ---- what counts

TEST = "Robin had 28 socks. If she threw away 4 old ones that didn't fit and bought 36 new ones, how many has she?"


@pytest.mark.parametrize(
    ("train", "kind"),
    [
        (TEST, "exact"),
        (f"  {TEST}\n", "exact"),
        (TEST.upper(), "normalised"),
        (TEST.replace(".", " . ").replace("'", " ' ").replace("?", ""), "normalised"),
        (TEST.replace("didn't", "did n't"), "near"),
        (TEST.replace("Robin", "Ann"), "near"),
        (f"Read this. {TEST} Think first, in 5 steps.", "near"),
        (TEST.replace("28", "29"), None),
        (TEST.replace("28", "").replace("had ", "had lots of "), None),
        ("Robin had socks. She bought 36 new ones, 4 of them red, and now has 28 more. How many has she?", None),
    ],
)
def test_kinds_of_overlap(train, kind):
    overlap = find_overlaps(["Nothing of the sort at all.", train], {"set": ["What else is there to ask?", TEST]})[
        "set"
    ]
    found = {"exact": overlap.exact, "normalised": overlap.normalised, "near": overlap.near}
    expected = {"exact": {"exact", "normalised"}, "normalised": {"normalised"}, "near": {"near"}, None: set()}[kind]
    assert {name for name, places in found.items() if places == {1: 1}} == expected
    assert all(not places for name, places in found.items() if name not in expected)
    assert overlap.rows == ({1} if kind else set())


def test_a_number_is_the_same_however_it_is_written():
    test = "The wide prairie lost 64,535 acres in the long dry storm, so how many acres of it can have been left over?"
    same = test.replace("64,535", "64535.0")
    assert find_overlaps([same], {"set": [test]})["set"].near == {0: 0}


def test_a_sets_own_template_is_no_overlap():
    frame = "Please choose the correct answer to the question: {}\n\nAnswer format: answer1/answer2/answer3/answer4"
    framed = [frame.format(f"word{n} thing{n}") for n in range(30)]
    assert not find_overlaps([frame.format("other matter")], {"set": framed})["set"].rows


def test_every_copy_of_a_row_is_found_and_the_first_is_named():
    overlap = find_overlaps(["x", TEST, TEST.lower(), TEST], {"set": [TEST, TEST]})["set"]
    assert (overlap.exact, overlap.normalised) == ({0: 1, 1: 1}, {0: 1, 1: 1})
    assert overlap.same_rows == {1, 2, 3}


def test_rows_looked_up_in_parts_keep_their_numbers(monkeypatch):
    near = TEST.replace("didn't", "did n't")
    train = ["a", "b", near, "c", "d", TEST, near]
    unchunked = find_overlaps(train, {"set": ["What?", TEST]})["set"]
    monkeypatch.setattr(contamination, "_CHUNK", 2)
    assert find_overlaps(train, {"set": ["What?", TEST]})["set"] == unchunked
    assert (unchunked.same_rows, unchunked.near_rows) == ({5}, {2, 6})


@pytest.mark.parametrize(("train", "tests"), [([], {"set": [TEST]}), ([TEST], {}), ([TEST], {"set": []}), ([], {})])
def test_nothing_to_compare_is_no_overlap(train, tests):
    assert not any(overlap.rows for overlap in find_overlaps(train, tests).values())


@PROPERTY
@given(train=st.lists(QUESTION, max_size=8), test=st.lists(QUESTION, min_size=1, max_size=8))
def test_counts_agree_with_comparing_every_pair(train, test):
    overlap = find_overlaps(train, {"set": test})["set"]
    same = {i for i, text in enumerate(test) if normalised(text) in set(map(normalised, train))}
    assert set(overlap.normalised) == same
    assert set(overlap.exact) <= same
    assert not set(overlap.near) & same
    assert overlap.same_rows == {i for i, text in enumerate(train) if normalised(text) in set(map(normalised, test))}
    for i, row in overlap.near.items():
        assert _containment(train[row], test[i]) >= 0.6


def _containment(train, test):
    ngrams = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (train.split(), test.split())]
    return len(ngrams[0] & ngrams[1]) / len(ngrams[1])


@PROPERTY
@given(text=st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    once = normalised(text)
    assert normalised(once) == once
    assert normalised(f"_{text}!\t") == once


# ---- the record


def test_the_record_is_plain_data_and_its_table_names_every_set():
    tests = {"a": [TEST, "What is this?"], "b": ["What is that?"]}
    found, rows = report([TEST, "Else."], tests, "drop", {"a": "in", "b": "out"}, ["c"])
    assert json.loads(json.dumps(found)) == found
    assert rows == {0}
    assert (found["policy"], found["train_rows"], found["overlapping"], found["unchecked"]) == ("drop", 2, 1, ["c"])
    assert found["sets"]["a"] == {
        "n": 2, "exact": 1, "normalised": 1, "near": 0, "train_rows": 1, "distribution": "in"
    }  # fmt: skip
    columns = [list(column.cells) for column in table(found).columns]
    assert (columns[0], columns[-1]) == (["a", "b"], ["in", "out"])
