"""The commonsense training mixture: every row brings its own options."""

from __future__ import annotations

import json

import pytest

from adapters_pl import UserError
from adapters_pl.answers import protocol_named
from adapters_pl.data import SUITES, Commonsense170K, set_named
from tests.conftest import DATA, shared

ROWS = [
    ("Please answer with true or false, question: is it?\n\nAnswer format: true/false", "true", ("true", "false")),
    ("Choose. Answer1: a Answer2: b\n\nAnswer format: answer1/answer2", "answer2", ("answer1", "answer2")),
    ("Complete the sentence.\n\nAnswer format: ending1/ending2/ending3 ", "ending3", ("ending1", "ending2", "ending3")),
    ("Say something.", "anything", ()),
]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "ft-training_set"
    folder.mkdir()
    rows = [
        {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}
        for text, answer, _ in ROWS
    ]
    (folder / "commonsense_170k.json").write_text(json.dumps(rows))
    return tmp_path


def test_every_row_is_judged_by_its_own_options(root):
    data = set_named("Commonsense170K")(root=str(root))
    examples = data.examples("train")
    assert [example.options for example in examples] == [options for _, _, options in ROWS]
    assert [example.response for example in examples] == [f"the correct answer is {answer}" for _, answer, _ in ROWS]
    extract = protocol_named("strict").extract
    read = [extract(example.response, data.kind, example.options) for example in examples]
    assert read == ["true", "answer2", "ending3", None]


def test_it_is_judged_on_the_commonsense_sets():
    data = Commonsense170K(root="/nowhere")
    assert data.eval_sets == list(SUITES["Commonsense"])
    assert all(set_named(name).kind == data.kind == "choice" for name in data.eval_sets)
    with pytest.raises(UserError, match="Commonsense170K has no test file"):
        data.rows("test")


@shared(DATA)
def test_the_published_rows_name_their_options_in_this_form(tmp_path):
    folder = tmp_path / "ft-training_set"
    folder.mkdir()
    rows = json.loads((DATA / "dataset/ARC-Challenge/train.json").read_text())[:50]
    (folder / "commonsense_170k.json").write_text(json.dumps(rows))
    for example in Commonsense170K(root=str(tmp_path)).examples("train"):
        assert example.answer in example.options
        assert len(example.options) >= 3
