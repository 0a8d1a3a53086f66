"""Between reading and training: which test sets are at hand, and what the guard does with training rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters_pl.data import Arithmetic, InstructionJSON, MathQA, WordProblems, preparation
from adapters_pl.data import set_named as named
from adapters_pl.data.example import Example
from adapters_pl.data.published import blob_sha1
from adapters_pl.data.questions import Reader
from adapters_pl.data.sets.mathqa import corrupted_options
from adapters_pl.inputs.errors import UserError
from tests.conftest import DATA, shared

ASKED = [
    f"Tom number {n} has some apples and finds {n + 1} more under the old tree, so how many now?" for n in range(30)
]
ROWS = [{"instruction": question, "output": "It is 1.", "answer": "1"} for question in ASKED]


@pytest.fixture
def messages(monkeypatch):
    """What the user is told, and the tables that are printed."""
    lines = []
    monkeypatch.setattr(preparation, "rank_zero_info", lines.append)
    monkeypatch.setattr(preparation, "print_table", lambda table: lines.append(table.title))
    return lines


@pytest.fixture
def make(tmp_path, tokenizer):
    """A dataset whose files are these rows."""

    def make(name, files, **options):
        for relative, rows in files.items():
            path = tmp_path / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows))
        data = named(name)(root=str(tmp_path), **{"val_size": 2, "template": "plain", **options})
        data.connect(Reader(tokenizer, 512))
        return data

    return make


def files(test, train=ROWS, name="AddSub"):
    return {"ft-training_set/math_10k.json": train, f"dataset/{name}/test.json": test}


def trained_on(data, examples):
    return sorted(
        examples[row.row].instruction for part in (data.training, data.validation) for row in part.rows
    )  # fmt: skip


# ---- the control


def test_shuffled_answers_are_those_of_other_rows_and_only_in_training(make):
    rows = [{"instruction": f"What is {n}?", "output": f"It is {n}.", "answer": str(n)} for n in range(30)]
    plain, mixed = (
        make("Math10K", {"ft-training_set/math_10k.json": rows}, shuffle_answers=shuffle, contamination="allow")
        for shuffle in (False, True)
    )
    for data in (plain, mixed):
        data.setup("fit")
    assert [row.prompt for row in mixed.training.rows] == [row.prompt for row in plain.training.rows]
    answers, others = ([tuple(row.response) for row in data.training.rows] for data in (plain, mixed))
    assert sorted(others) == sorted(answers)
    assert not [row for row, (one, other) in enumerate(zip(answers, others, strict=True)) if one == other]
    assert [row.response for row in mixed.validation.rows] == [row.response for row in plain.validation.rows]


def test_a_row_is_given_the_answer_of_one_that_is_answered_in_the_same_way():
    kinds = {"choice": [("true", "false"), ("answer1", "answer2")], "number": [()]}
    asked = [(kind, options) for kind, every in kinds.items() for options in every] * 4
    examples = [
        Example(str(n), "mine", "?", response=f"It is {n}.", answer=str(n), kind=kind, options=options)
        for n, (kind, options) in enumerate(asked)
    ]
    alone = Example("alone", "mine", "?", response="It is so.", answer="so", kind="text")
    train = [*range(9), 12, 3]  # a row that is taken twice is one row
    found = preparation.shuffled_answers([*examples, alone], train)
    assert [found[row].answer for row in (0, 3, 6)] == ["3", "6", "0"]
    assert all((found[row].kind, found[row].options) == asked[row] for row in range(12))
    assert all(row.response == f"It is {row.answer}." for row in found)
    assert [found[row] for row in (9, 10, 11, 12)] == [*examples[9:], alone]


# ---- the guard


def test_training_rows_that_are_test_rows_are_an_error_by_default(make, messages):
    data = make("Math10K", files(ROWS[:3]), test_sets=["AddSub"])
    with pytest.raises(UserError, match=r"Math10K: 3 of 30 training rows are test rows of AddSub, or nearly\. .*drop"):
        data.setup("fit")
    assert messages == ["Test questions among the training rows"]
    assert data.contamination_report["sets"]["AddSub"] == {
        "n": 3, "exact": 3, "normalised": 3, "near": 0, "train_rows": 3, "distribution": "in"
    }  # fmt: skip


def test_dropped_rows_are_neither_trained_on_nor_validated_with(make, messages):
    data = make("Math10K", files(ROWS[10:13]), test_sets=["AddSub"], contamination="drop")
    data.setup("fit")
    assert trained_on(data, data.examples("train")) == sorted(ASKED[:10] + ASKED[13:])
    assert (data.contamination_report["overlapping"], data.contamination_report["dropped"]) == (3, 3)
    assert messages[1].startswith("contamination: 3 of 30 training rows are dropped (")
    assert data.contamination_report["data"] == {
        path: blob_sha1(Path(data.root) / path)
        for path in ("ft-training_set/math_10k.json", "dataset/AddSub/test.json")
    }


def test_allowed_rows_are_trained_on_and_recorded(make, messages):
    data = make("Math10K", files(ROWS[:3]), test_sets=["AddSub"], contamination="allow")
    data.setup("fit")
    assert len(trained_on(data, data.examples("train"))) == 30
    assert data.contamination_report["overlapping"] == 3
    assert "and are trained on" in messages[1]


def test_without_overlap_one_line_says_how_much_was_compared(make, messages):
    data = make("Math10K", files([{"instruction": "What else?", "answer": "1"}]), test_sets=["AddSub"])
    data.setup("fit")
    assert len(messages) == 1
    assert messages[0].startswith("contamination: none of 30 training rows is among the 1 test rows of AddSub (")
    assert data.contamination_report["overlapping"] == 0


def test_when_every_row_is_a_test_row_there_is_nothing_to_train_on(make, messages):
    with pytest.raises(UserError, match="every training row is a test row"):
        make("Math10K", files(ROWS), test_sets=["AddSub"], contamination="drop").setup("fit")


def test_the_context_of_a_question_is_part_of_it(make, messages):
    train = [{**row, "input": "In the year 1900."} for row in ROWS]
    test = [{**ROWS[0], "input": "On the moon."}]
    data = make("Math10K", files(test, train), test_sets=["AddSub"], contamination="allow")
    data.setup("fit")
    assert data.contamination_report["sets"]["AddSub"]["exact"] == 0


def test_a_validation_or_a_test_compares_nothing(make, messages):
    data = make("Math10K", files(ROWS[:3]), test_sets=["AddSub"])
    data.setup("validate")
    data.setup("test")
    assert data.contamination_report is None


def test_generated_problems_are_apart_by_construction(make, messages):
    data = make("word_problems", {}, train_rows=1500, test_rows=150)
    data.setup("fit")
    assert data.contamination_report["overlapping"] == 0
    assert list(data.contamination_report["sets"]) == data.eval_sets


def test_held_out_rows_are_not_compared_with_their_own_file(tmp_path, messages, make):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(ROWS))
    data = InstructionJSON(path=str(path), val_size=2, template="plain")
    data.connect(make("AddSub", {}).reader)
    data.setup("fit")
    assert data.contamination_report["sets"] == {}
    tested = InstructionJSON(path=str(path), test_path=str(path), val_size=2, template="plain")
    tested.connect(data.reader)
    with pytest.raises(UserError, match="30 of 30 training rows are test rows of mine"):
        tested.setup("fit")


# ---- sets whose files are not at hand


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_missing_sets_are_all_named(make, messages, stage):
    with pytest.raises(UserError) as caught:
        make("Math10K", files([{"instruction": "What else?", "answer": "1"}])).setup(stage)
    message = str(caught.value)
    assert "of 6 sets" in message
    assert "5 have no file at hand: MultiArith, gsm8k, AQuA, SingleEq, SVAMP." in message
    assert "adapters-pl data fetch MultiArith gsm8k AQuA SingleEq SVAMP" in message
    assert "--data.skip_missing true" in message
    assert "\n" not in message


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_missing_sets_are_left_out_where_that_is_allowed(make, messages, stage):
    data = make("Math10K", files([{"instruction": "What else?", "answer": "1"}]), skip_missing=True)
    data.setup(stage)
    assert "MultiArith, gsm8k, AQuA, SingleEq, SVAMP (no file at hand)" in messages[0]
    if stage == "test":
        assert data.eval_sets == ["AddSub"]
        assert len(data.test_dataloader()) == 1
    else:
        assert data.contamination_report["unchecked"] == ["MultiArith", "gsm8k", "AQuA", "SingleEq", "SVAMP"]
        assert list(data.contamination_report["sets"]) == ["AddSub"]


def test_with_no_set_at_all_there_is_nothing_to_test(make, messages):
    with pytest.raises(UserError, match="6 have no file at hand"):
        make("Math10K", {"ft-training_set/math_10k.json": ROWS}, skip_missing=True).setup("test")


# ---- suites


def test_a_suite_tests_its_sets_in_the_papers_order():
    data = Arithmetic()
    assert data.eval_sets == ["MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP"]


def test_suites_and_sets_can_be_named_together():
    data = named("AddSub")(test_sets=["mawps", "Arithmetic", "mawps"])
    assert data.test_sets == ["mawps", "MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP"]


def test_a_suite_cannot_be_trained_on():
    with pytest.raises(UserError, match=r"Arithmetic has no training file.* train on Math10K or Math14K"):
        Arithmetic().rows("train")


@shared(DATA)
def test_a_suite_reads_every_set_at_hand(make, messages):
    data = make("AddSub", {}, test_sets=["Commonsense"], skip_missing=True)
    data.root = str(DATA)
    found, missing = data._tests(data.test_sets)
    assert missing == ["hellaswag"]
    assert [len(examples) for _, examples in found.values()] == [3270, 1838, 1954, 1267, 2376, 1172, 500]


# ---- MathQA's corrupted options

CORRUPTED = "what is 1 + 1 ? The options: A ) 2 , B ) 3 Cm , C ) DAtA inADEquAtE , D ) 5 , E ) nonE oF thEsE"
SOUND = "what is 1 + 1 ? The options: A ) 2 , B ) 3 cm , C ) data inadequate , D ) 5 , E ) none of these"


@pytest.mark.parametrize(
    ("choice", "read"),
    [("keep", [SOUND, CORRUPTED]), ("drop", [SOUND]), ("restore", [SOUND, SOUND])],
)
def test_corrupted_options_are_kept_dropped_or_restored(tmp_path, choice, read):
    path = tmp_path / "dataset/mathqa/test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{"instruction": text, "answer": "A"} for text in (SOUND, CORRUPTED)]))
    examples = MathQA(root=str(tmp_path), corrupted=choice).examples("test")
    assert [example.instruction for example in examples] == read
    assert [example.id for example in examples] == ["mathqa-0", "mathqa-1"][: len(read)]


@shared(DATA)
def test_the_published_file_has_487_rows_with_corrupted_options():
    rows = json.loads((DATA / "dataset/mathqa/test.json").read_text())
    assert sum(corrupted_options(row["instruction"]) for row in rows) == 487
    assert len(MathQA(root=str(DATA), corrupted="drop").examples("test")) == 2985 - 487
    restored = MathQA(root=str(DATA), corrupted="restore").examples("test")
    assert not any(corrupted_options(example.instruction) for example in restored)


def test_word_problems_name_their_sets():
    assert WordProblems().sets_without_rows == ()
    assert named("Math10K")(root="/nowhere").sets_without_rows == ("Math10K",)
