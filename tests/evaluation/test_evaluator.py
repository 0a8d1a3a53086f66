"""How tested rows are asked and recorded: worked examples, samples, scored options, by every protocol."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters_pl import ARCChallenge, CausalLMModule, InstructionJSON, LoRA
from adapters_pl.answers import PROTOCOLS, SetSpec
from adapters_pl.data.example import Example
from adapters_pl.data.questions import Asking, Reader, ask, draw_shots, prompt_hash
from adapters_pl.evaluation.engine import Decoding, TransformersEngine
from adapters_pl.evaluation.evaluator import Answers, Evaluator, judge_samples, judge_scored
from adapters_pl.evaluation.generation import Generation, seed_of
from adapters_pl.evaluation.scoring import Choices, Pair, Scored
from adapters_pl.inputs.errors import UserError
from tests.conftest import DATA, shared, tiny_tokenizer

STRICT = PROTOCOLS["strict"]


def example(number, question=None, response="It is 3. The answer is 3.", answer="3", **more):
    return Example(
        f"r{number}", "set", question or f"What is {number} plus 1?", response=response, answer=answer, **more
    )


# ---- worked examples


def test_worked_examples_are_drawn_by_the_seed_and_never_tested_themselves():
    pool = [example(i) for i in range(50)]
    tested = [example(100 + i, question=f"what  is {i} plus 1? ") for i in range(40)]
    shots = draw_shots(pool, tested, 5, seed=1)
    assert len({shot.id for shot in shots}) == 5
    assert all(int(shot.id[1:]) >= 40 for shot in shots)
    assert shots == draw_shots(pool, tested, 5, seed=1)
    assert shots != draw_shots(pool, tested, 5, seed=2)


def test_worked_examples_have_responses_and_differ():
    pool = [example(0), example(1, question="What is 0 plus 1?"), example(2, response=""), example(3)]
    assert {shot.id for shot in draw_shots(pool, [], 2, seed=0)} in ({"r0", "r3"}, {"r1", "r3"})
    with pytest.raises(UserError, match=r"data\.shots is 3, but only 2 training rows"):
        draw_shots(pool, [], 3, seed=0)


# ---- records


def test_samples_are_judged_by_their_majority():
    texts = ["The answer is 4.", "no idea", "3", "The answer is 3"]
    found = judge_samples(STRICT, example(0, kind="number"), [Generation(text, 2, "stop") for text in texts])
    assert (found["prediction"], found["correct"], found["output"], found["tokens"]) == ("3", True, "3", 8)
    assert found["sample_predictions"] == ["4", None, "3", "3"]
    assert found["sample_correct"] == [False, False, True, True]
    assert found["passed"]
    nothing = judge_samples(STRICT, example(0, kind="number"), [Generation("no", 1, "length")] * 2)
    assert (nothing["prediction"], nothing["correct"], nothing["passed"]) == (None, False, False)


def test_scored_options_are_judged_twice():
    choices = Choices(("true", "false"), (Pair([1], [2]), Pair([1], [3])), (4, 5))
    found = judge_scored(STRICT, example(0, answer="false", kind="choice"), Scored(choices, (-4.0, -4.5)))
    assert (found["prediction"], found["correct"]) == ("true", False)
    assert (found["prediction_normalised"], found["correct_normalised"]) == ("false", True)
    assert found["scores"] == {"true": -4.0, "false": -4.5}


def test_a_prompts_hash_is_its_own():
    assert prompt_hash("a") == prompt_hash("a") != prompt_hash("a ")
    assert len(prompt_hash("\ud800")) == 16


# ---- the data module


@pytest.fixture
def attached(tokenizer):
    """Tell a data module who reads its rows."""

    def attached(data, own=None, context=512):
        data.connect(Reader(own or tokenizer, context))
        return data

    return attached


@pytest.fixture
def choices_file(tmp_path):
    rows = [
        {"instruction": f"Is {i} even? Answer format: true/false", "output": "so", "answer": ["true", "false"][i % 2]}
        for i in range(30)
    ]
    path = tmp_path / "even.json"
    path.write_text(json.dumps(rows))
    return path


def prompts(data, name, tokenizer):
    return [tokenizer.decode(row.prompt) for row in data.questions(name).rows]


def test_the_protocol_has_the_last_word_on_the_tests_prompt(rows_file, attached, tokenizer):
    for protocol, begins in (("strict", "<bos>What is"), ("llm_adapters", "<bos>Below is an instruction")):
        data = attached(InstructionJSON(test_path=str(rows_file), template="plain", protocol=protocol))
        data.setup("test")
        assert all(prompt.startswith(begins) for prompt in prompts(data, "sums", tokenizer))
        assert data.prompt(data.examples("test")[0]) == "What is 0 plus 0?\n"  # training keeps its own
        assert data.asking.settings(data.questions("sums"))["beams"] == {"strict": 1, "llm_adapters": 4}[protocol]


def test_worked_examples_come_from_the_training_rows(rows_file, tmp_path, attached, tokenizer):
    rows = json.loads(rows_file.read_text())
    test_file = tmp_path / "asked.json"
    test_file.write_text(json.dumps(rows[:36]))
    data = attached(InstructionJSON(path=str(rows_file), test_path=str(test_file), template="plain", shots=2))
    data.setup("test")
    found = prompts(data, "asked", tokenizer)
    assert all(prompt.count("The answer is") == 2 for prompt in found)
    unseen = [row["instruction"] for row in rows[36:]]
    assert all(sum(question in prompt for question in unseen) == 2 for prompt in found)
    assert all(prompt.endswith(f"{row['instruction']}\n") for prompt, row in zip(found, rows, strict=False))


def test_without_training_rows_there_are_no_worked_examples(rows_file, attached):
    data = attached(InstructionJSON(test_path=str(rows_file), shots=2))
    with pytest.raises(UserError, match=r"data\.shots needs training rows"):
        data.setup("test")


def test_the_tokenizers_own_template_with_its_switches(rows_file, attached):
    chatty = tiny_tokenizer()
    chatty.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[a]{{ '/no' if enable_thinking is false }}"
    )
    data = InstructionJSON(test_path=str(rows_file), template="chat", system="Add.", thinking=False)
    attached(data, own=chatty).setup("test")
    assert prompts(data, "sums", chatty)[0] == "<bos>[system]Add.[user]What is 0 plus 0?[a]/no"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": -1}, r"data\.shots is -1"),
        ({"samples": 0}, r"data\.samples is 0"),
        ({"samples": 3, "temperature": 0.0}, "they would all be the same"),
        ({"samples": 3, "protocol": "llm_adapters"}, "llm_adapters never samples"),
        ({"temperature": 0.5, "protocol": "loglikelihood"}, "loglikelihood never samples"),
    ],
)
def test_what_does_not_go_together(rows_file, options, message):
    with pytest.raises(UserError, match=message):
        InstructionJSON(test_path=str(rows_file), **options)


def test_only_options_can_be_scored(rows_file, choices_file, attached, tokenizer):
    with pytest.raises(UserError, match="loglikelihood scores options, and sums-0 has none"):
        attached(InstructionJSON(test_path=str(rows_file), protocol="loglikelihood")).setup("test")
    data = attached(InstructionJSON(test_path=str(choices_file), protocol="loglikelihood", template="plain"))
    data.setup("test")
    found = data.questions("even").choices[3]
    assert found.options == ("false", "true")
    assert tokenizer.decode(found.pairs[1].context + found.pairs[1].continuation).endswith("true/false\ntrue")


@shared(DATA)
def test_only_the_options_that_a_question_offers_are_scored(attached):
    data = ARCChallenge(root=str(DATA), protocol="loglikelihood", template="plain", limit_test=100)
    attached(data, context=4096)
    data.setup("test")
    examples, choices = (getattr(data.questions("ARC-Challenge"), what) for what in ("examples", "choices"))
    offered = {row: choices[row].options for row in examples}
    # The set names five options; these questions have four.
    assert {len(options) for options in offered.values()} == {4}
    assert all(example.answer in offered[row] for row, example in examples.items())
    assert data.distribution("ARC-Challenge") == "in"
    assert data.distribution("boolq") == "out"


# ---- with a model


def run_test(tmp_path, base, path, *adapters, **options):
    module = CausalLMModule(str(base), dtype="float32")
    for adapter in adapters:
        module.add_adapter(adapter)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    data = InstructionJSON(test_path=str(path), **options)
    trainer.test(module, datamodule=data, verbose=False)
    return sorted(module.records[path.stem], key=lambda record: record["row"])


def test_scoring_needs_no_generation_and_no_batch_matters(tmp_path, make_base, choices_file, monkeypatch):
    monkeypatch.setattr("adapters_pl.evaluation.engine.generate", None)
    found = [
        run_test(tmp_path, make_base(), choices_file, LoRA(rank=2), protocol="loglikelihood", eval_batch_size=size)
        for size in (1, 7)
    ]
    for one, two in zip(*found, strict=True):
        assert one["prediction"] == two["prediction"]
        assert list(one["scores"].values()) == pytest.approx(list(two["scores"].values()), abs=1e-4)
        assert (one["output"], one["finish"]) == ("", "scored")
        assert one["base_prediction"] == one["prediction"]  # LoRA begins as the identity


# ---- without Lightning


@pytest.mark.parametrize(
    "how",
    [
        {"max_new_tokens": 3},
        {"max_new_tokens": 3, "samples": 2, "temperature": 0.7},
        {"protocol": "loglikelihood", "template": "plain"},
        {"protocol": "llm_adapters", "max_new_tokens": 2},
    ],
    ids=["greedy", "sampled", "scored", "beams"],
)
def test_any_model_is_evaluated_without_a_trainer_and_answers_the_same(tmp_path, make_base, choices_file, how):
    examples = InstructionJSON(test_path=str(choices_file)).examples("test")
    model = AutoModelForCausalLM.from_pretrained(make_base(), dtype=torch.float32).eval()
    engine = TransformersEngine(model, AutoTokenizer.from_pretrained(make_base()), batch_size=4)
    alone = sorted(Evaluator(engine, **how).answer(SetSpec("even"), examples), key=lambda record: record["row"])
    lightning = run_test(tmp_path, make_base(), choices_file, eval_batch_size=7, **how)
    for one, other in zip(alone, lightning, strict=True):
        scores = [record.pop("scores", {}).values() for record in (one, other)]
        assert list(scores[0]) == pytest.approx(list(scores[1]), abs=1e-4)
        assert one == other


def test_an_engine_yields_every_prompt_at_its_place(make_base):
    model = AutoModelForCausalLM.from_pretrained(make_base(), dtype=torch.float32).eval()
    engine = TransformersEngine(model, AutoTokenizer.from_pretrained(make_base()), batch_size=2)
    prompts = [[1, 5], [1, 7, 9, 11], [1], [1, 8, 9], [1, 6]]
    batched = dict(engine.generate(prompts, Decoding(4)))
    assert sorted(batched) == [0, 1, 2, 3, 4]
    assert [batched[place] for place in range(5)] == [dict(engine.generate([p], Decoding(4)))[0] for p in prompts]
    assert list(engine.generate([], Decoding(4))) == []


def test_a_row_takes_kind_and_options_from_its_set(make_base):
    model = AutoModelForCausalLM.from_pretrained(make_base(), dtype=torch.float32).eval()
    engine = TransformersEngine(model, AutoTokenizer.from_pretrained(make_base()))
    row = Example("boolq-0", "boolq", "Is ice cold?", answer="true")
    [record] = Evaluator(engine, "loglikelihood", template="plain").answer("BoolQ", [row])
    assert set(record["scores"]) == {"true", "false"}
    with pytest.raises(UserError, match="has 602 tokens, the model's context is 512"):
        list(Evaluator(engine, template="plain").answer("boolq", [Example("long", "boolq", "x" * 600)]))


# ---- one test, batch by batch


class Fake:
    """An engine that answers rows in an order of its own, each with the number of its prompt and who was asked."""

    context = None

    def __init__(self, tokenizer, order):
        self.tokenizer, self.order = tokenizer, order
        self.who = ["nobody"]
        #: Who was asked, and for which prompts.
        self.asked = []
        self.settled = 0

    @contextmanager
    def within(self, who):
        self.who.append(who)
        yield
        self.who.pop()

    def generate(self, prompts, decoding, seeds=None):
        numbers = [int(self.tokenizer.decode(prompt[1:]).split()[2]) for prompt in prompts]
        self.asked.append((self.who[-1], numbers))
        for place in self.order(self.who[-1], len(prompts)):
            sample = "" if seeds is None else f" {seeds[place]}"
            yield place, Generation(f"{self.who[-1]}{sample}: {numbers[place]}", 10 + numbers[place], "stop")

    def settle(self):
        self.settled += 1


BATCHES = [[4, 1], [0, 5], [2, 3]]
COMING = [row for batch in BATCHES for row in batch]
ORDERS = {
    "in-order": lambda who, count: range(count),
    "backwards": lambda who, count: reversed(range(count)),
    "apart": lambda who, count: range(count) if who == "base" else reversed(range(count)),
    "apart-too": lambda who, count: range(count) if who == "adapted" else reversed(range(count)),
    "inside-out": lambda who, count: sorted(range(count), key=lambda place: (place % 3, -place)),
}


def asked(tokenizer, count=6, **how):
    examples = {row: example(row) for row in range(count)}
    return ask("sums", examples, Asking(STRICT, template="plain", **how), Reader(tokenizer))


def answers_of(engine, beside=True, known=None, coming=lambda name: COMING, **how):
    evaluator = Evaluator(engine, asking=Asking(STRICT, template="plain", **how))
    base = (lambda: engine.within("base")) if beside else None
    return Answers(evaluator, lambda: engine.within("adapted"), base, known, coming)


@pytest.mark.parametrize("beside", [False, True], ids=["adapted", "beside-the-base"])
@pytest.mark.parametrize("known", [[], [5], [1, 2, 4], COMING], ids=["new", "one-known", "some-known", "all-known"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_row_is_answered_and_kept_once_in_whatever_order_rows_end(tokenizer, order, known, beside):
    engine, questions = Fake(tokenizer, ORDERS[order]), asked(tokenizer)
    records = {row: {"row": row, "output": "known", "tokens": 1000} for row in known}
    answers = answers_of(engine, beside, {"sums": records, "others": {0: {}}})
    newest = []
    for batch in BATCHES:
        settled = engine.settled
        found = answers.add(questions, batch)
        assert [record["row"] for record in found] == batch
        assert engine.settled > settled
        assert engine.who == ["nobody"]
        newest += answers.newest
        # What a crash would leave holds all that was answered so far.
        assert {*batch, *known} <= {record["row"] for record in newest} | {*known}
    new = [row for row in COMING if row not in known]
    assert sorted(record["row"] for record in newest) == sorted(new)
    assert engine.asked == ([("adapted", new), *([("base", new)] if beside else [])] if new else [])
    assert [record["row"] for record in answers.records["sums"]] == COMING
    for record in answers.records["sums"]:
        row = record["row"]
        if row in known:
            assert record is records[row]
            continue
        assert record["output"] == f"adapted: {row}"
        assert record["id"] == f"r{row}"
        assert ("base_prediction" in record) == ("base_correct" in record) == beside
    assert answers.effort["sums"][1] == sum(10 + row for row in new)
    assert list(answers.effort) == ["sums"]


def test_the_bases_answers_stand_beside_the_same_rows(tokenizer):
    engine, questions = Fake(tokenizer, ORDERS["apart"]), asked(tokenizer)
    engine.within = lambda who, own=engine.within: own({"adapted": "The answer is 3, no", "base": "sum"}[who])
    answers = answers_of(engine)
    for batch in BATCHES:
        answers.add(questions, batch)
    for record in answers.records["sums"]:
        assert record["output"] == f"The answer is 3, no: {record['row']}"
        assert record["base_prediction"] == f"sum: {record['row']}"
        assert record["prediction"] != record["base_prediction"]
        assert not record["base_correct"]


def test_rows_that_end_before_they_are_asked_for_are_kept_with_the_batch_before(tokenizer):
    engine, questions = Fake(tokenizer, ORDERS["backwards"]), asked(tokenizer)
    answers = answers_of(engine, beside=False)
    answers.add(questions, BATCHES[0])
    assert sorted(record["row"] for record in answers.newest) == sorted(COMING)
    answers.add(questions, BATCHES[1])
    assert answers.newest == []
    assert [record["row"] for record in answers.records["sums"]] == COMING[:4]


def test_a_row_is_kept_when_the_base_has_answered_it_too(tokenizer):
    """The adapted model has answered all rows with the first batch, the base alone those that were asked for."""
    answers, questions = answers_of(Fake(tokenizer, ORDERS["apart"])), asked(tokenizer)
    for batch in BATCHES:
        answers.add(questions, batch)
        assert sorted(record["row"] for record in answers.newest) == sorted(batch)


def test_batches_of_which_nothing_is_said_beforehand_are_asked_one_by_one(tokenizer):
    engine, questions = Fake(tokenizer, ORDERS["backwards"]), asked(tokenizer)
    answers = answers_of(engine, coming=None)
    for batch in BATCHES:
        assert [record["row"] for record in answers.add(questions, batch)] == batch
        assert sorted(record["row"] for record in answers.newest) == sorted(batch)
    assert engine.asked == [(who, batch) for batch in BATCHES for who in ("adapted", "base")]
    assert answers.effort["sums"][1] == sum(10 + row for row in COMING)


def test_sets_in_turn_are_streams_of_their_own(tokenizer):
    engine, one, other = Fake(tokenizer, ORDERS["backwards"]), asked(tokenizer), asked(tokenizer, 2)
    other.name = "others"
    answers = answers_of(engine, beside=False, coming={"sums": COMING, "others": [1, 0]}.__getitem__)
    for batch in BATCHES:
        answers.add(one, batch)
    answers.add(other, [1, 0])
    assert sorted(record["row"] for record in answers.newest) == [0, 1]
    assert {name: [record["row"] for record in records] for name, records in answers.records.items()} == {
        "sums": COMING,
        "others": [1, 0],
    }
    assert {name: tokens for name, (_, tokens) in answers.effort.items()} == {"sums": 75, "others": 21}


@pytest.mark.parametrize("who", ["adapted", "base"])
def test_a_row_that_an_engine_never_answers_is_an_error(tokenizer, who):
    def order(asked, count):
        return range(count - 1) if asked == who else range(count)

    answers, questions = answers_of(Fake(tokenizer, order)), asked(tokenizer)
    answers.add(questions, BATCHES[0])
    answers.add(questions, BATCHES[1])
    with pytest.raises(RuntimeError, match=r"The engine has not answered the rows \[3\]"):
        answers.add(questions, BATCHES[2])


def test_samples_of_a_row_that_end_in_any_order_are_judged_together(tokenizer):
    how = {"samples": 3, "temperature": 0.5, "seed": 7}
    found = []
    for order in ("in-order", "backwards", "inside-out"):
        answers = answers_of(Fake(tokenizer, ORDERS[order]), **how)
        questions = asked(tokenizer, **how)
        for batch in BATCHES:
            answers.add(questions, batch)
        found.append(answers.records["sums"])
        assert answers.effort["sums"][1] == 3 * sum(10 + row for row in COMING)
    assert found[0] == found[1] == found[2]
    texts = [text for record in found[0] for text in record["samples"]]
    assert len(set(texts)) == 3 * 6
    for record in found[0]:
        seeds = [seed_of(7, f"sums/r{record['row']}", sample) for sample in range(3)]
        assert record["samples"] == [f"adapted {seed}: {record['row']}" for seed in seeds]
