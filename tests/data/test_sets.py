"""The datasets themselves: the published files, one's own file, and generated word problems."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import pytest

import adapters_pl
from adapters_pl.answers import SUITES, extract, protocol_named
from adapters_pl.answers.sets import ROWS
from adapters_pl.data import (
    ARCChallenge,
    BoolQ,
    FreshWordProblems,
    InstructionJSON,
    MathData,
    UnseenWordProblems,
    WordProblems,
)
from adapters_pl.data import set_named as named
from adapters_pl.data.questions import Reader
from adapters_pl.evaluation.evaluator import judge_one
from adapters_pl.evaluation.generation import Generation
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.names import public_name
from tests.conftest import DATA, shared

STRICT = protocol_named("strict")
STATEMENTS = ["the correct answer is {}", "We see that.\nThe answer is {}.", "Answer: {}"]


@pytest.fixture
def attach(tokenizer):
    """Tell a data module who reads its rows."""

    def attach(data):
        data.connect(Reader(tokenizer, 512))
        return data

    return attach


# ---- one row a set


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.called)
def test_a_row_makes_a_class_with_its_documentation_and_its_public_name(row):
    kind = getattr(adapters_pl, row.called)
    assert row.called in adapters_pl.__all__
    assert kind.spec == row
    assert kind.__doc__.startswith(row.about)
    assert row.citation in kind.__doc__ or row.called == "MathQA"
    assert pickle.loads(pickle.dumps(kind)) is kind
    # What earlier versions wrote into checkpoints and configurations.
    assert public_name(f"adapters_pl.data.sets.arithmetic.{row.called}") == f"adapters_pl.{row.called}"


def test_a_suite_is_what_the_rows_say_of_themselves():
    for suite, sets in SUITES.items():
        assert list(sets) == [row.name for row in ROWS if row.suite == suite]
        assert getattr(adapters_pl, suite)().test_sets == list(sets)


def test_a_name_that_no_row_has_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'GSM9K'"):
        _ = adapters_pl.GSM9K


# ---- the published files


@pytest.fixture(scope="module")
def published():
    """The examples of a published file, read once."""
    read = {}

    def published(name, split="test"):
        if (name, split) not in read:
            read[name, split] = named(name)(root=str(DATA)).examples(split)
        return read[name, split]

    return published


@shared(DATA)
@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("gsm8k", "test", 1319),
        ("SVAMP", "test", 1000),
        ("AddSub", "test", 395),
        ("boolq", "test", 3270),
        ("boolq", "train", 9427),
        ("ARC-Challenge", "test", 1172),
        ("ARC-Challenge", "train", 1119),
    ],
)
def test_every_row_of_a_published_file_is_an_example(published, name, split, count):
    examples = published(name, split)
    assert len(examples) == count
    assert len({example.id for example in examples}) == count
    assert {example.set for example in examples} == {name}
    assert all(example.instruction and example.response and example.answer for example in examples)


@shared(DATA)
@pytest.mark.parametrize("name", ["gsm8k", "SVAMP", "AddSub", "boolq", "ARC-Challenge"])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_plain_statement_of_the_gold_answer_is_read_and_right(published, name, statement):
    kind, options = named(name).kind, named(name).options
    wrong = []
    for example in published(name):
        read = STRICT.extract(statement.format(example.answer), kind, options)
        if not STRICT.match(read, example.answer, kind):
            wrong.append((example.id, example.answer, read))
    assert wrong == []


@shared(DATA)
@pytest.mark.parametrize("name", ["gsm8k", "SVAMP", "AddSub"])
def test_a_gold_number_is_read_as_exactly_that_number(published, name):
    golds = {example.answer for example in published(name)}
    assert {gold: float(extract(f"The answer is {gold}.", name)) for gold in golds} == {
        gold: float(gold.replace(",", "")) for gold in golds
    }


@shared(DATA)
@pytest.mark.parametrize(("name", "options"), [("boolq", BoolQ.options), ("ARC-Challenge", ARCChallenge.options)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_gold_option_is_one_of_the_set_and_of_its_own_question(published, name, options, split):
    for example in published(name, split):
        offered = example.instruction.rsplit("Answer format: ", 1)[1].split("/")
        assert example.options == tuple(offered)
        assert example.answer in offered
        assert set(offered) <= set(options)


@shared(DATA)
@pytest.mark.parametrize("name", ["boolq", "ARC-Challenge"])
def test_what_a_choice_set_teaches_states_its_gold_answer(published, name):
    examples = published(name, "train")
    assert [extract(example.response, name) for example in examples] == [example.answer for example in examples]


# ---- a file of one's own


@pytest.fixture
def file(tmp_path):
    def file(rows, name="mine.json"):
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text(json.dumps(rows))
        return str(path)

    return file


@pytest.mark.parametrize(
    ("answers", "kind", "options"),
    [
        (["1", "-2.5", "1,000", "7.0"], "number", ()),
        ([1, 2, 2.5], "number", ()),
        (["b", "a", "b"], "choice", ("a", "b")),
        (["yes", "no", "1", "yes"], "choice", ("1", "no", "yes")),
        (["a", "b", "c"], "text", ()),
        ([f"option {n % 11}" for n in range(30)], "text", ()),
        ([f"{n % 10} apples" for n in range(30)], "choice", tuple(f"{n} apples" for n in range(10))),
        ([None, "1", None, "2"], "number", ()),
        ([None, None], "text", ()),
    ],
)
@pytest.mark.parametrize("name", ["mine.json", "mine.jsonl"])
def test_the_kind_is_seen_from_the_answers(file, answers, kind, options, name):
    data = InstructionJSON(test_path=file([{"instruction": "Say.", "answer": answer} for answer in answers], name))
    examples = data.examples("test")
    assert (data.kind, data.options) == (kind, options)
    assert [example.answer for example in examples] == [None if a is None else str(a) for a in answers]
    assert {example.options for example in examples} == {options}


@pytest.mark.parametrize(
    ("kind", "options"), [("number", ()), ("text", ()), ("choice", ("1", "2"))], ids=["number", "text", "choice"]
)
def test_the_kind_can_be_said(file, kind, options):
    rows = [{"instruction": "Say.", "answer": answer} for answer in ("2", "1", "2")]
    data = InstructionJSON(test_path=file(rows), answer_kind=kind)
    data.examples("test")
    assert (data.kind, data.options) == (kind, options)


def test_a_set_is_called_after_its_test_file(file):
    rows = [{"instruction": "Say.", "answer": "1"}]
    both = InstructionJSON(path=file(rows, "learn.json"), test_path=file(rows, "exam.jsonl"))
    assert both.test_sets == ["exam"]
    assert InstructionJSON(path=file(rows, "learn.json")).test_sets == ["learn"]
    assert [example.id for example in both.examples("test")] == ["exam-0"]


def test_held_out_rows_are_the_test_rows_and_no_training_rows(rows_file, attach):
    data = attach(InstructionJSON(path=str(rows_file)))
    data.setup("fit")
    questions = [example.instruction for example in data.examples("train")]
    tested = [example.instruction for example in data.examples("test")]
    assert tested == [questions[row.row] for row in data.validation.rows]
    assert sorted(tested + [questions[row.row] for row in data.training.rows]) == sorted(questions)
    assert len(tested) == 4


def test_held_out_rows_keep_the_ids_they_have_in_their_file(rows_file):
    data = InstructionJSON(path=str(rows_file))
    ids = {example.instruction: example.id for example in data.examples("train")}
    tested = data.examples("test")
    assert [example.id for example in tested] == [ids[example.instruction] for example in tested]


def test_a_test_file_is_what_is_tested(file, rows_file):
    data = InstructionJSON(path=str(rows_file), test_path=file([{"instruction": "Say.", "answer": "a"}]))
    assert [example.instruction for example in data.examples("test")] == ["Say."]
    assert len(data.examples("train")) == 40


def test_without_held_out_rows_there_is_nothing_to_test_on(rows_file):
    with pytest.raises(UserError, match=r"Nothing to test on: .*--data\.test_path.*--data\.val_size"):
        InstructionJSON(path=str(rows_file), val_size=0).examples("test")


def test_without_any_file_there_is_nothing_to_read():
    with pytest.raises(UserError, match=r"--data\.path FILE, or --data\.test_path FILE"):
        InstructionJSON()


def test_a_test_file_alone_cannot_be_trained_on(rows_file):
    with pytest.raises(UserError, match=r"no training file: pass --data\.path"):
        InstructionJSON(test_path=str(rows_file)).examples("train")


@pytest.mark.parametrize(("option", "split"), [("path", "train"), ("path", "test"), ("test_path", "test")])
def test_a_missing_file_is_named(tmp_path, option, split):
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        InstructionJSON(**{option: str(tmp_path / "absent.json")}).examples(split)


def test_a_row_teaches_its_output_else_its_answer(file):
    rows = [{"instruction": "Say.", "output": "It is 1.", "answer": "1"}, {"instruction": "Say.", "answer": "2"}]
    assert [e.response for e in InstructionJSON(path=file(rows)).examples("train")] == ["It is 1.", "2"]


@pytest.mark.parametrize("ids", [["a", "b"], [3, 4], [3, "b"], [None, "b"]])
def test_ids_of_ones_own_are_kept_whatever_they_are(file, ids):
    rows = [{"instruction": "Say.", "answer": "1", "id": identifier} for identifier in ids]
    expected = [f"mine-{n}" if identifier is None else str(identifier) for n, identifier in enumerate(ids)]
    assert [example.id for example in InstructionJSON(test_path=file(rows)).examples("test")] == expected


def test_other_fields_of_ones_own_may_be_anything(file):
    rows = [{"instruction": "Say.", "answer": "1", "tags": 1}, {"instruction": "Say.", "answer": "1", "tags": ["a"]}]
    assert len(InstructionJSON(test_path=file(rows)).examples("test")) == 2


# ---- generated word problems


@pytest.fixture(scope="module")
def problems():
    return WordProblems(train_rows=600, test_rows=60)


def operands(rows):
    """What each row asks for: whether it multiplies, and its operands in either order."""
    return {(row["operation"] == "mul", *sorted(row["operands"])) for row in rows}


def test_as_many_problems_are_made_as_asked_for(problems):
    assert (len(problems.rows("train")), len(problems.rows("test"))) == (600, 60)
    ids = [example.id for split in ("train", "test") for example in problems.examples(split)]
    assert len(set(ids)) == 660


@pytest.mark.parametrize("tested", [WordProblems, FreshWordProblems, UnseenWordProblems])
@pytest.mark.parametrize("problem_seed", [0, 5])
def test_no_tested_operands_are_trained_on(problems, tested, problem_seed):
    tested_operands = operands(tested(test_rows=200, problem_seed=problem_seed).rows("test"))
    assert len(tested_operands) > 50
    assert not tested_operands & operands(problems.rows("train"))


def test_each_test_set_asks_for_something_of_its_own():
    questions = [
        {row["instruction"] for row in tested(test_rows=50).rows("test")}
        for tested in (WordProblems, FreshWordProblems, UnseenWordProblems)
    ]
    assert len(questions[0] | questions[1] | questions[2]) > 145


def test_unseen_problems_have_no_multiplication():
    assert {row["operation"] for row in UnseenWordProblems(test_rows=50).rows("test")} == {"add", "sub"}


def test_the_same_arguments_make_the_same_problems(problems):
    again = WordProblems(train_rows=600, test_rows=60)
    for split in ("train", "test"):
        assert problems.rows(split) == again.rows(split)
        other = WordProblems(train_rows=600, test_rows=60, problem_seed=3)
        assert problems.rows(split) != other.rows(split)


def test_every_problem_states_the_right_answer(problems):
    compute = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}
    for row in problems.rows("train"):
        assert row["answer"] == str(compute[row["operation"]](*row["operands"]))
        assert extract(row["output"], "word_problems") == row["answer"]
        assert all(str(operand) in row["instruction"] for operand in row["operands"])


def test_every_judged_set_takes_the_seed_of_the_problems(attach):
    def judged_questions(problem_seed):
        data = attach(WordProblems(test_rows=5, problem_seed=problem_seed))
        return [[example.instruction for example in data._set(name).examples("test")] for name in data.eval_sets]

    assert judged_questions(3) == judged_questions(3)
    assert all(default != other for default, other in zip(judged_questions(0), judged_questions(3), strict=True))


def test_word_problems_are_judged_on_three_sets_of_the_size_asked_for(attach):
    data = attach(WordProblems(test_rows=5))
    data.setup("test")
    assert data.eval_sets == ["word_problems", "word_problems-fresh", "word_problems-unseen"]
    sizes = [sum(len(batch["row_ids"]) for batch in loader) for loader in data.test_dataloader()]
    assert sizes == [5, 5, 5]


@shared(DATA)
def test_every_gold_answer_of_a_mixture_is_right_where_it_is_written():
    data = MathData(root=str(DATA))
    examples = data.examples("train")
    assert Counter(example.kind for example in examples) == {"number": 3057, "letter": 203}
    for example in examples:
        written = Generation(f"The answer is {example.answer}.", 5, "stop")
        assert judge_one(STRICT, example, written)["correct"], example


def test_the_rows_held_out_for_a_test_are_those_that_training_held_out(rows_file):
    rows = json.loads(rows_file.read_text())
    rows_file.write_text(json.dumps([*rows, *rows[:12]]))
    data = InstructionJSON(path=str(rows_file), val_size=5)
    train, held_out = data.division(data.examples("train"))
    tested = {example.instruction for example in data.examples("test")}
    assert tested == {data.examples("train")[row].instruction for row in held_out}
    assert not tested & {data.examples("train")[row].instruction for row in train}
