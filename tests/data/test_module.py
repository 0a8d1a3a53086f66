"""From rows to training, validation and judged answers, with a nothing of Lightning but the class."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import pytest

from adapters_pl.data import SETS, AddSub, BoolQ, Commonsense, Example, InstructionJSON, Math10K, preparation, set_named
from adapters_pl.data import module as base
from adapters_pl.data.module import Processes
from adapters_pl.data.questions import Reader, draw_shots, prompt_hash
from adapters_pl.data.tokens import encode_prompt
from adapters_pl.evaluation.evaluator import Evaluator
from adapters_pl.evaluation.generation import Generation
from adapters_pl.inputs.errors import UserError

BOS, EOS = 1, 2


def row(digits=2, answer_digits=1, **changes):
    """A row of ``digits + answer_digits + 3`` tokens: every digit, the line's end, the beginning and the end."""
    return {"instruction": "7" * digits, "output": "1" * answer_digits, "answer": "true", **changes}


def asking(row, number):
    """A row of sevens with a number of as many digits instead, so that no two rows ask the same."""
    question = row["instruction"]
    return {**row, "instruction": str(number).zfill(len(question))} if set(question) == {"7"} else row


@pytest.fixture
def connection(tokenizer):
    """What data modules are told: one process, a context of 512 tokens; ``connect`` tells it."""

    def connect(data):
        answers = {"validates_answers": connection.validates_answers}
        data.connect(Reader(tokenizer, connection.context), Processes(**connection.processes), **answers)
        return data

    connection = SimpleNamespace(context=512, processes={}, validates_answers=False, connect=connect)
    return connection


@pytest.fixture
def context(connection):
    """Set the model's context."""
    return lambda tokens: setattr(connection, "context", tokens)


class Recited:
    """An engine that gives answers which were written beforehand."""

    tokenizer = context = None

    def __init__(self, *answers):
        self.answers = answers

    def generate(self, prompts, decoding, seeds=None):
        yield from enumerate(self.answers)


def judged(data, name, rows, *answers):
    """The records of answers that were written beforehand."""
    return list(Evaluator(Recited(*answers), asking=data.asking).records(data.questions(name), rows))


@pytest.fixture
def notices(monkeypatch):
    """What the data module tells the user."""
    messages = []
    for module in (base, preparation):
        monkeypatch.setattr(module, "rank_zero_info", lambda line: None if "check" in line else messages.append(line))
    return messages


@pytest.fixture
def put(tmp_path):
    """Write rows into the published layout."""

    def put(relative, rows):
        path = tmp_path / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))

    return put


@pytest.fixture
def boolq(tmp_path, put, connection):
    """A multiple-choice set with both files, made of the rows given."""

    def boolq(train=(), test=(), **options):
        put("dataset/boolq/train.json", [asking(each, number) for number, each in enumerate(train)])
        if test:
            put("dataset/boolq/test.json", list(test))
        data = BoolQ(root=str(tmp_path), **{"template": "plain", "contamination": "allow", **options})
        return connection.connect(data)

    return boolq


def numbers(rows):
    """The rows' numbers in the file's order."""
    return [token_row.row for token_row in rows.rows]


# ---- arguments


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("batch_size", 1),
        ("max_tokens_per_batch", 8),
        ("eval_batch_size", 1),
        ("cutoff", 8),
        ("val_size", 0),
        ("limit_train", 1),
        ("limit_test", 1),
        ("max_new_tokens", 1),
    ],
)
def test_a_number_out_of_range_is_named_with_its_least_value(name, least):
    data = BoolQ(**{name: least})
    assert getattr(data.asking if name == "max_new_tokens" else data, name) == least
    with pytest.raises(UserError, match=rf"data\.{name} is {least - 1}; it must be at least {least}\."):
        BoolQ(**{name: least - 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "alpacca"}, "template 'alpacca' does not exist: did you mean 'alpaca'"),
        ({"protocol": "strickt"}, "protocol 'strickt' does not exist: did you mean 'strict'"),
        ({"test_sets": ["boolq", "gms8k"]}, "dataset 'gms8k' does not exist: did you mean 'gsm8k'"),
        ({"test_sets": ["arc-challenge"]}, "did you mean 'ARC-Challenge'"),
    ],
)
def test_a_misspelt_name_offers_the_nearest_before_any_file_is_read(options, message):
    with pytest.raises(UserError, match=message):
        BoolQ(root="/nowhere", **options)


def test_every_set_is_found_by_its_published_name():
    assert {name: set_named(name).set_name for name in SETS} == {name: name for name in SETS}
    assert set_named("ARC-Challenge").__name__ == "ARCChallenge"


# ---- examples


def test_a_row_becomes_an_example(boolq):
    data = boolq(train=[row(input="context", id=None), row(output=None), row(answer=None, id=17)])
    first, second, third = data.examples("train")
    assert first == Example("boolq-0", "boolq", "00", "context", "1", "true", ("true", "false"), "choice")
    assert (second.id, second.input, second.response) == ("boolq-1", "", "true")
    assert (third.id, third.response, third.answer) == ("17", "1", None)


def test_a_field_that_the_first_row_lacks_is_kept(boolq):
    assert [example.id for example in boolq(train=[row(), row(id="second")]).examples("train")] == ["boolq-0", "second"]


def test_ids_are_unique_and_the_same_every_time(boolq):
    rows = [row() for _ in range(12)]
    ids = [example.id for example in boolq(train=rows).examples("train")]
    assert len(set(ids)) == 12
    assert ids == [example.id for example in boolq(train=rows, seed=7, limit_train=3).examples("train")]


# ---- the division into training and validation


@pytest.mark.parametrize(
    ("options", "training", "validation"),
    [
        ({}, 36, 4),
        ({"val_size": 3}, 37, 3),
        ({"val_size": 4}, 36, 4),
        ({"val_size": 5}, 36, 4),
        ({"val_size": 0}, 40, 0),
        ({"val_size": 5, "limit_train": 20}, 20, 5),
        ({"val_size": 5, "limit_train": 35}, 35, 5),
        ({"val_size": 5, "limit_train": 36}, 33, 3),
        ({"val_size": 0, "limit_train": 7}, 7, 0),
        ({"limit_train": 90}, 36, 4),
        ({"limit_train": 10}, 9, 1),
    ],
)
def test_rows_are_divided(boolq, options, training, validation):
    data = boolq(train=[row() for _ in range(40)], **options)
    data.setup("fit")
    trained, held_out = numbers(data.training), numbers(data.validation)
    assert (len(trained), len(held_out)) == (training, validation)
    assert not set(trained) & set(held_out)
    assert (trained, held_out) == (sorted(trained), sorted(held_out))
    assert set(trained) <= set(range(min(40, options.get("limit_train", 40))))


def test_enough_rows_beyond_the_limit_leave_the_first_ones_whole(boolq):
    data = boolq(train=[row() for _ in range(40)], limit_train=12, val_size=5)
    data.setup("fit")
    assert numbers(data.training) == list(range(12))
    assert min(numbers(data.validation)) >= 12


def test_too_few_rows_beyond_the_limit_are_not_touched(boolq):
    data = boolq(train=[row() for _ in range(40)], limit_train=38, val_size=3)
    data.setup("fit")
    assert sorted(numbers(data.training) + numbers(data.validation)) == list(range(38))


@pytest.mark.parametrize(("count", "options"), [(1, {}), (2, {"limit_train": 1}), (40, {"limit_train": 1})])
def test_a_single_training_row_is_trained_on(boolq, count, options):
    data = boolq(train=[row() for _ in range(count)], **options)
    data.setup("fit")
    assert numbers(data.training) == [0]


def test_a_smaller_validation_set_than_asked_for_is_announced(boolq, notices):
    boolq(train=[row() for _ in range(40)]).setup("fit")
    assert notices == ["40 rows: 4 are held out for validation instead of 120"]


def test_a_validation_set_of_the_size_asked_for_is_not(boolq, notices):
    boolq(train=[row() for _ in range(40)], val_size=3).setup("fit")
    assert notices == []


def test_the_seed_and_nothing_else_draws_the_validation_rows(boolq):
    rows = [row() for _ in range(60)]

    def drawn(**options):
        data = boolq(train=rows, val_size=6, **options)
        data.setup("fit")
        return numbers(data.validation)

    assert drawn() == drawn() == drawn(batch_size=1, template="alpaca")
    assert drawn() != drawn(seed=7)
    assert drawn() != list(range(54, 60))


# ---- rows that are too long: 9 tokens fit, 25 lose part of their prompt, 27 part of their response

LONG = [row(4, 2), row(20, 2), row(4, 20)]


def test_truncating_keeps_the_answer_and_the_prompts_end(boolq, notices, tokenizer):
    data = boolq(train=LONG, val_size=0, cutoff=16)
    data.setup("fit")
    fits, long_prompt = data.training.rows
    zero, one, end = (tokenizer.convert_tokens_to_ids(token) for token in ("0", "1", "Ċ"))
    assert (fits.prompt, fits.response) == ([BOS, *[zero] * 4, end], [one, one, EOS])
    assert (long_prompt.prompt, long_prompt.response) == ([BOS, *[zero] * 10, one, end], [one, one, EOS])
    assert notices == [
        "boolq: 2 of 3 rows are longer than 16 tokens: "
        "1 lose the beginning of their prompt, 1 with a longer response are dropped"
    ]


def test_responses_that_all_exceed_the_cutoff_are_an_error(boolq):
    with pytest.raises(UserError, match="boolq: every response is longer than 8 tokens"):
        boolq(train=[row(answer_digits=9)], val_size=0, cutoff=8).setup("fit")


def test_dropping_leaves_long_rows_out(boolq, notices):
    data = boolq(train=LONG, val_size=0, cutoff=16, on_overflow="drop")
    data.setup("fit")
    assert numbers(data.training) == [0]
    assert notices == ["boolq: 2 of 3 rows are longer than 16 tokens: dropped"]


def test_an_error_names_the_first_long_row(boolq):
    with pytest.raises(UserError, match=r"boolq: row 2 has 25 tokens, the cutoff is 16: .*--data\.cutoff"):
        boolq(train=LONG, val_size=0, cutoff=16, on_overflow="error").setup("fit")


@pytest.mark.parametrize("policy", ["truncate", "drop", "error"])
def test_rows_that_fit_exactly_are_left_alone(boolq, notices, policy):
    data = boolq(train=LONG, val_size=0, cutoff=27, on_overflow=policy)
    data.setup("fit")
    assert [token_row.length for token_row in data.training.rows] == [9, 25, 27]
    assert notices == []


def test_when_every_row_is_dropped_there_is_nothing_to_train_on(boolq):
    with pytest.raises(UserError, match="every row is longer than 8 tokens"):
        boolq(train=LONG, val_size=0, cutoff=8, on_overflow="drop").setup("fit")


def test_the_cutoff_is_never_beyond_the_context(boolq, context):
    context(24)
    data = boolq(train=LONG, val_size=0, cutoff=256)
    data.setup("fit")
    assert [token_row.length for token_row in data.training.rows] == [9, 24, 24]


def test_a_model_without_a_context_is_cut_where_asked(boolq, connection):
    connection.context = None
    data = boolq(train=LONG, val_size=0, cutoff=16)
    data.setup("fit")
    assert [token_row.length for token_row in data.training.rows] == [9, 16]


@pytest.mark.parametrize(
    ("stage", "policy"),
    [("fit", "truncate"), ("fit", "error"), ("test", "truncate"), ("test", "drop"), ("predict", "truncate")],
)
def test_a_prompt_that_fills_the_context_is_an_error_that_names_the_row(boolq, context, stage, policy):
    context(22)
    data = boolq(train=LONG, test=LONG, val_size=0, on_overflow=policy)
    with pytest.raises(UserError) as caught:
        data.setup(stage)
    assert str(caught.value).startswith(
        "boolq: the prompt of row 2 (boolq-1) has 22 tokens, the model's context is 22."
    )


def test_an_option_that_does_not_fit_the_context_is_an_error_as_well(boolq, context):
    context(30)
    data = boolq(test=[row(5), row(12)], protocol="loglikelihood")
    with pytest.raises(UserError, match=r"boolq: the prompt of row \d \(boolq-\d\) has \d+ tokens, the model's"):
        data.setup("test")
    data = boolq(test=[row(5), row(12)])
    data.setup("test")  # the prompts alone do


def test_dropping_drops_prompts_beyond_the_context_too(boolq, context, notices):
    context(20)
    data = boolq(train=LONG, val_size=0, on_overflow="drop")
    data.setup("fit")
    assert numbers(data.training) == [0]
    assert notices == ["boolq: 2 of 3 rows are longer than 20 tokens: dropped"]


def test_a_row_with_nothing_to_learn_is_an_error(boolq):
    with pytest.raises(UserError, match="boolq: row 2 has neither 'output' nor 'answer'"):
        boolq(train=[row(), row(output=None, answer=None)], val_size=0).setup("fit")


# ---- the room for an answer


def test_an_answers_room_depends_on_the_kind_of_the_set(boolq, put):
    put("dataset/AddSub/test.json", [row(answer="3")])
    data = boolq(test=[row()], test_sets=["boolq", "AddSub"])
    data.setup("test")
    assert (data.questions("boolq").max_new_tokens, data.questions("AddSub").max_new_tokens) == (32, 256)


def test_an_answers_room_can_be_set(boolq, put):
    put("dataset/AddSub/test.json", [row(answer="3")])
    data = boolq(test=[row()], test_sets=["boolq", "AddSub"], max_new_tokens=5)
    data.setup("test")
    assert (data.questions("boolq").max_new_tokens, data.questions("AddSub").max_new_tokens) == (5, 5)


def test_the_room_is_what_the_sets_longest_prompt_leaves_of_the_context(boolq, put, context):
    context(40)
    put("dataset/AddSub/test.json", [row(3, answer="3"), row(37, answer="4"), row(5, answer="5")])
    data = boolq(test=[row(10), row(20)], test_sets=["boolq", "AddSub"])
    data.setup("test")
    assert (data.questions("boolq").max_new_tokens, data.questions("AddSub").max_new_tokens) == (18, 1)


def test_without_a_known_context_the_room_is_what_was_asked(boolq, connection):
    connection.context = None
    data = boolq(test=[row(900)])
    data.setup("test")
    assert data.questions("boolq").max_new_tokens == 32


# ---- which sets are tested


def test_a_set_without_a_training_file_names_those_that_have_one(connection):
    data = AddSub(root="/nowhere")
    connection.connect(data)
    with pytest.raises(UserError, match="AddSub has no training file") as caught:
        data.setup("fit")
    assert "Math10K" in str(caught.value)
    assert "--data InstructionJSON --data.path FILE" in str(caught.value)


def test_a_set_without_a_test_file_asks_for_test_sets(connection):
    data = Math10K(root="/nowhere", test_sets=["Math10K"])
    connection.connect(data)
    with pytest.raises(UserError, match=r"Math10K has no test file: .*--data\.test_sets"):
        data.setup("test")


def test_a_missing_file_is_named_with_its_root(tmp_path, connection):
    data = BoolQ(root=str(tmp_path))
    connection.connect(data)
    with pytest.raises(UserError, match=r"boolq: no file .*dataset/boolq/train\.json"):
        data.setup("fit")


def test_a_file_can_be_named_by_its_path_for_every_set(tmp_path, put):
    put("own.json", [row(5), row(6)])
    files = {"dataset/boolq/test.json": str(tmp_path / "own.json")}
    assert len(BoolQ(root=str(tmp_path), files=files).examples("test")) == 2
    suite = Commonsense(root=str(tmp_path), files=files)
    assert len(suite._set("boolq").examples("test")) == 2
    with pytest.raises(UserError, match=r"data\.files: there is no published file 'dataset/bolq/test\.json': did you"):
        BoolQ(files={"dataset/bolq/test.json": "own.json"})


def test_other_sets_can_be_tested_in_the_order_given(boolq, put):
    put("dataset/AddSub/test.json", [row(9, answer="3"), row(8, answer="4")])
    data = boolq(test=[row()], test_sets=["AddSub", "boolq"])
    data.setup("test")
    assert data.eval_sets == ["AddSub", "boolq"]
    assert [[batch["prompt_ids"].shape for batch in loader] for loader in data.test_dataloader()] == [
        [(2, 11)],
        [(1, 4)],
    ]
    record = judged(data, "AddSub", [1], Generation("the answer is 4", 3, "stop"))[0]
    assert (record["id"], record["prediction"], record["correct"]) == ("AddSub-1", "4", True)


def test_only_the_first_rows_of_each_set_are_tested_if_so_asked(boolq, put):
    put("dataset/AddSub/test.json", [row(answer="3")] * 5)
    data = boolq(test=[row()] * 5, test_sets=["boolq", "AddSub"], limit_test=2)
    data.setup("test")
    rows = [[r for batch in loader for r in batch["row_ids"].tolist()] for loader in data.test_dataloader()]
    assert rows == [[0, 1], [0, 1]]


def test_a_test_needs_gold_answers_and_a_prediction_does_not(boolq):
    data = boolq(test=[row(), row(answer=None)])
    with pytest.raises(UserError, match="boolq: row 2 has no 'answer' to compare with; use predict"):
        data.setup("test")
    data.setup("predict")
    [loader] = data.predict_dataloader()
    assert [batch["row_ids"].tolist() for batch in loader] == [[0, 1]]


# ---- judging


def test_judged_answers_are_recorded(boolq):
    data = boolq(test=[row(id=None), row(answer="false", id="second"), row(answer=None)])
    data.setup("predict")
    generations = [
        Generation("The answer is false.", 5, "stop"),
        Generation("true or false", 32, "length"),
        Generation("It is true.", 4, "stop"),
    ]
    hashes = data.questions("boolq").hashes
    assert judged(data, "boolq", [1, 0, 2], *generations) == [
        {
            "row": 1,
            "prompt_hash": hashes[1],
            "id": "second",
            "output": "The answer is false.",
            "prediction": "false",
            "gold": "false",
            "correct": True,
            "finish": "stop",
            "tokens": 5,
        },
        {
            "row": 0,
            "prompt_hash": hashes[0],
            "id": "boolq-0",
            "output": "true or false",
            "prediction": None,
            "gold": "true",
            "correct": False,
            "finish": "length",
            "tokens": 32,
        },
        {
            "row": 2,
            "prompt_hash": hashes[2],
            "id": "boolq-2",
            "output": "It is true.",
            "prediction": "true",
            "gold": None,
            "correct": None,
            "finish": "stop",
            "tokens": 4,
        },
    ]


def test_validation_rows_are_judged_by_their_own_number(boolq, connection):
    connection.validates_answers = True
    data = boolq(train=[row(answer="true" if n % 2 else "false", id=f"r{n}") for n in range(20)], val_size=2)
    data.setup("fit")
    held_out = numbers(data.validation)
    assert data.validation_set == "boolq-validation"
    records = judged(data, "boolq-validation", held_out, *[Generation("true", 1, "stop")] * 2)
    assert [(record["id"], record["correct"]) for record in records] == [(f"r{n}", n % 2 == 1) for n in held_out]


@pytest.mark.parametrize("protocol", ["strict", "llm_adapters"])
@pytest.mark.parametrize("shots", [0, 2])
def test_a_validation_row_is_asked_as_a_test_row_is(boolq, tokenizer, context, protocol, shots):
    context(4096)
    rows = [row(digits=30 + n, id=f"r{n}") for n in range(20)]
    options = {"val_size": 3, "protocol": protocol, "shots": shots, "cutoff": 24, "template": "alpaca"}
    data = boolq(train=rows, test=rows, **options)
    data.setup("validate")
    held_out = numbers(data.validation)
    shown = {}
    for batch in data.val_dataloader():
        for place, number in enumerate(batch["row_ids"].tolist()):
            shown[number] = batch["prompt_ids"][place][batch["prompt_mask"][place] == 1].tolist()
    hashes = data.questions("boolq-validation").hashes
    examples = data.examples("train")
    drawn = draw_shots(examples, [examples[n] for n in held_out], shots, data.seed)
    assert sorted(shown) == held_out
    for number, ids in shown.items():
        text = data.test_prompt(examples[number], drawn)
        assert ids == encode_prompt(tokenizer, text)
        assert hashes[number] == prompt_hash(text)
        assert len(ids) > 24  # the cutoff is one of training


def test_rows_without_gold_are_not_answered_and_that_is_said(boolq, connection, notices):
    data = boolq(train=[row(answer=None if n % 2 else "true") for n in range(80)], val_size=6)
    data.setup("validate")
    held_out = numbers(data.validation)
    assert sorted(data.questions("boolq-validation").prompts) == [n for n in held_out if n % 2 == 0]
    without = sum(n % 2 for n in held_out)
    assert f"boolq: {without} of 6 validation rows have no 'answer' to compare with; the others are answered" in notices


def test_val_accuracy_without_gold_is_refused_before_training(boolq, connection):
    connection.validates_answers = True
    data = boolq(train=[row(answer=None) for _ in range(60)], val_size=6)
    with pytest.raises(UserError, match=r"6 of 6 validation rows have no 'answer' .* choose --model\.monitor val_loss"):
        data.setup("fit")


def test_training_rows_share_no_question_with_held_out_rows(boolq, notices):
    twice = [row(digits=3, id=f"r{n}") for n in range(20)]
    data = boolq(train=[*twice, *[{**asking(r, n), "id": f"s{n}"} for n, r in enumerate(twice)]], val_size=4)
    data.setup("fit")
    examples = data.examples("train")
    train, held_out = (
        {examples[n].instruction.casefold() for n in numbers(part)} for part in (data.training, data.validation)
    )
    assert len(held_out) in (3, 4)
    assert not train & held_out
    assert any("training rows ask what a held-out row asks: left out" in line for line in notices)


def test_validation_sees_the_rows_that_training_held_out(boolq, connection):
    rows = [row(digits=3, id=f"r{n}") for n in range(40)]
    test = [asking(rows[n], n) for n in range(0, 40, 2)]
    found = []
    for stage in ("fit", "validate"):
        data = boolq(train=rows, test=test, val_size=8, contamination="drop")
        data.setup(stage)
        found.append((numbers(data.training), numbers(data.validation)))
    assert found[0] == found[1]
    assert found[0][1]


# ---- loaders


def test_training_batches_hold_every_row_and_the_steps_labels(boolq, connection):
    connection.processes = {"accumulate": 2}
    data = boolq(train=[row(answer_digits=1 + n % 3) for n in range(10)], val_size=0, batch_size=5)
    data.setup("fit")
    first, second = data.train_dataloader()
    assert sorted(first["row_ids"].tolist() + second["row_ids"].tolist()) == list(range(10))
    assert first["loss_tokens"] == second["loss_tokens"] == 2 * 4 + 3 * 3 + 4 * 3
    assert (first["labels"][:, :4] == -100).all()


def test_a_number_of_tokens_per_batch_says_how_many_rows_share_one(boolq, connection):
    connection.processes = {"accumulate": 3}
    rows = [row(digits=2 + n % 5, answer_digits=1) for n in range(11)]
    data = boolq(train=rows, val_size=0, batch_size=1, max_tokens_per_batch=24)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sorted(number for batch in batches for number in batch["row_ids"].tolist()) == list(range(11))
    assert all(batch["input_ids"].numel() <= 24 for batch in batches)
    assert 1 < len(batches) < 11
    labels = [int((batch["labels"] != -100).sum()) for batch in batches]
    assert [batch["loss_tokens"] for batch in batches[:3]] == [sum(labels[:3])] * 3


def test_too_few_tokens_per_batch_are_refused_before_training(boolq):
    data = boolq(train=[row(digits=2), row(digits=30)], val_size=0, max_tokens_per_batch=8)
    with pytest.raises(UserError, match="max_tokens_per_batch is 8, and the longest training row has"):
        data.setup("fit")


def test_training_on_the_prompt_labels_it(boolq):
    data = boolq(train=[row(digits=2, answer_digits=1)], val_size=0, train_on_prompt=True)
    data.setup("fit")
    [batch] = data.train_dataloader()
    assert batch["labels"][0, 0] == -100
    assert batch["labels"][0, 1:].tolist() == batch["input_ids"][0, 1:].tolist()
    assert batch["loss_tokens"] == 5


@pytest.mark.parametrize("loader", ["train", "val", "test"])
def test_processes_divide_the_rows_among_them(boolq, connection, loader):
    rows = [row(1 + n % 7) for n in range(11)]
    data = boolq(train=rows, test=rows, val_size=5, limit_train=6, batch_size=2, eval_batch_size=2)
    data.setup("test" if loader == "test" else "fit")
    seen = []
    for rank in (0, 1):
        connection.processes = {"rank": rank, "count": 2}
        connection.connect(data)
        made = getattr(data, f"{loader}_dataloader")()
        seen += [r for batch in (made[0] if loader == "test" else made) for r in batch["row_ids"].tolist()]
    expected = {"train": range(6), "val": range(6, 11), "test": range(11)}[loader]
    assert sorted(seen) == list(expected)


def test_the_longest_prompts_are_tested_first(boolq):
    data = boolq(test=[row(3), row(9), row(5)], eval_batch_size=1)
    data.setup("test")
    [loader] = data.test_dataloader()
    assert [batch["row_ids"].tolist() for batch in loader] == [[1], [2], [0]]


@pytest.mark.parametrize(("rank", "count"), [(0, 1), (0, 2), (1, 2)])
def test_the_rows_of_a_process_are_those_of_its_batches_in_their_order(boolq, put, connection, rank, count):
    put("dataset/AddSub/test.json", [row(1 + i % 4, answer="3") for i in range(6)])
    connection.processes = {"rank": rank, "count": count}
    data = boolq(test=[row(1 + i % 3) for i in range(8)], test_sets=["boolq", "AddSub"], eval_batch_size=3)
    data.setup("test")
    for name, loader in zip(data.eval_sets, data.test_dataloader(), strict=True):
        rows = [number for batch in loader for number in batch["row_ids"].tolist()]
        assert data.rows_here(name) == rows
        assert len({*rows}) == {"boolq": 8, "AddSub": 6}[name] // count


def test_no_validation_rows_are_no_loader_and_an_error_only_when_asked_for(boolq, connection):
    data = boolq(train=[row()] * 5, val_size=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    data.setup("validate")
    with pytest.raises(UserError, match=r"no validation rows: set --data\.val_size"):
        data.val_dataloader()


def test_prompts_are_shown_before_anybody_reads_them(rows_file):
    data = InstructionJSON(path=str(rows_file), template="plain")
    assert data.prompt(data.examples("train")[0]) == "What is 0 plus 0?\n"
    chat = InstructionJSON(path=str(rows_file), template="chat")
    with pytest.raises(UserError, match=r"A chat is rendered by a tokenizer: call the data module's connect"):
        chat.prompt(chat.examples("train")[0])


def test_rows_that_nobody_reads_are_not_made(rows_file):
    with pytest.raises(UserError, match=r"call its connect\(Reader\(tokenizer\)\)"):
        InstructionJSON(path=str(rows_file)).setup("fit")


def test_setting_up_again_and_for_another_stage_changes_nothing(boolq):
    data = boolq(train=[row()] * 20, test=[row()] * 3, val_size=2)
    data.setup("fit")
    before = numbers(data.training), numbers(data.validation)
    data.setup("test")
    data.setup("fit")
    assert (numbers(data.training), numbers(data.validation)) == before
    assert len(data.test_dataloader()) == 1


def test_a_file_of_ones_own_is_divided_in_the_same_way(rows_file, connection):
    data = InstructionJSON(path=str(rows_file), template="plain")
    connection.connect(data)
    data.setup("fit")
    assert (len(data.training), len(data.validation)) == (36, 4)


def test_an_example_of_ones_own_has_the_kind_of_its_set(tmp_path):
    class Own(InstructionJSON):
        def example(self, row, index):
            return Example(str(index), "own", row["instruction"], answer=row["answer"])

    (tmp_path / "own.json").write_text(json.dumps([{"instruction": f"{n}?", "answer": str(n)} for n in range(3)]))
    assert {example.kind for example in Own(test_path=str(tmp_path / "own.json")).examples("test")} == {"number"}


def test_every_argument_stands_under_one_heading():
    listed = [name for names in BoolQ.headings.values() for name in names]
    assert sorted(listed) == sorted(inspect.signature(BoolQ.__init__).parameters.keys() - {"self"})
