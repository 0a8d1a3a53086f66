"""The exact text that a model is given."""

from __future__ import annotations

import json

import pytest
from tokenizers.processors import TemplateProcessing

from adapters_pl.data.tokens import encode_prompt
from adapters_pl.inputs.errors import UserError
from adapters_pl.prompts import TEMPLATES, render, render_chat, with_shots
from tests.conftest import GOLDEN, shared, tiny_tokenizer

ALPACA = """Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
Add 1 and 2.

### Response:
"""
ALPACA_WITH_INPUT = """Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.

### Instruction:
Add the numbers.

### Input:
1, 2

### Response:
"""


@pytest.mark.parametrize(
    ("template", "instruction", "input", "prompt"),
    [
        ("alpaca", "Add 1 and 2.", "", ALPACA),
        ("alpaca", "Add the numbers.", "1, 2", ALPACA_WITH_INPUT),
        ("plain", "Add 1 and 2.", "", "Add 1 and 2.\n"),
        ("plain", "Add the numbers.", "1, 2", "Add the numbers.\n1, 2\n"),
    ],
)
@pytest.mark.parametrize("output", ["", "The answer is 3.", "\nA: 3"])
def test_the_response_follows_the_prompt_directly(template, instruction, input, prompt, output):
    assert render(template, instruction, input, output) == prompt + output


def test_braces_and_markers_in_a_row_are_only_text():
    assert render("plain", "{instruction} ### Response:", "{0}") == "{instruction} ### Response:\n{0}\n"


def test_a_misspelt_template_offers_the_nearest():
    with pytest.raises(UserError, match=r"template 'alpacca' does not exist: did you mean 'alpaca'\?"):
        render("alpacca", "Add 1 and 2.")


# ---- the reference's templates


@shared(GOLDEN)
def test_the_references_prompts_are_met_to_the_last_space():
    rows = [json.loads(line) for line in (GOLDEN / "prompts_open.jsonl").read_text().splitlines()]
    assert {bool(row["input"]) for row in rows} == {True, False}
    for row in rows:
        question = row["instruction"], row["input"]
        assert render("llm_adapters_train", *question, row["output"]) == row["train_prompt"]
        assert render("llm_adapters_math", *question) == row["eval_prompt_math"]
        assert render("llm_adapters_commonsense", *question) == row["eval_prompt_commonsense"]


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_any_input_counts_white_space_as_well(template):
    with_input = render(template, "Add.", " ")
    assert with_input != render(template, "Add.")
    assert ("paired with an input" in with_input) == (template not in ("plain", "zero_shot_cot"))


def test_zero_shot_reasoning_begins_the_answer():
    assert render("zero_shot_cot", "What is 1 plus 2?") == "Q: What is 1 plus 2?\nA: Let's think step by step."


def test_worked_examples_stand_before_the_question_in_its_own_template():
    shots = [("1+1?", "", "\nA: 2"), ("Add.", "2, 2", "4 ")]
    prompt = with_shots("plain", shots, render("plain", "3+3?"))
    assert prompt == "1+1?\nA: 2\n\nAdd.\n2, 2\n4\n\n3+3?\n"
    assert with_shots("plain", [], "3+3?\n") == "3+3?\n"


# ---- the tokenizer's own template

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %}"
    "<no-think>{% endif %}{% endif %}"
)


@pytest.fixture
def chatty():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def test_the_chat_template_is_the_tokenizers_and_begins_once(chatty):
    text = render_chat(chatty, "Add.", "1, 2")
    assert text == "[user]Add.\n\n1, 2<eos>[assistant]"  # the tokenizer itself puts <bos> before it
    assert encode_prompt(chatty, text).count(chatty.bos_token_id) == 1
    assert render_chat(chatty, "Add.", output="3") == "[user]Add.<eos>[assistant]3"


def test_a_tokenizer_that_begins_nothing_leaves_that_to_the_template(chatty):
    chatty.backend_tokenizer.post_processor = TemplateProcessing(single="$A")
    text = render_chat(chatty, "Add.")
    assert text == "<bos>[user]Add.<eos>[assistant]"
    assert encode_prompt(chatty, text).count(chatty.bos_token_id) == 1


def test_system_text_thinking_and_worked_examples_in_a_chat(chatty):
    text = render_chat(chatty, "2+2?", system="Be brief.", thinking=False, shots=[("1+1?", "", "\n2")])
    assert text == "[system]Be brief.<eos>[user]1+1?<eos>[assistant]2<eos>[user]2+2?<eos>[assistant]<no-think>"
    assert render_chat(chatty, "2+2?", thinking=True).endswith("[assistant]")


def test_a_chat_is_rendered_as_transformers_renders_it(chatty):
    turns = [{"role": "system", "content": "{{ é }}"}, {"role": "user", "content": "a\n\n\u2028'\"<eos>"}]
    theirs = chatty.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chatty.bos_token + render_chat(chatty, turns[1]["content"], system=turns[0]["content"]) == theirs


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 2 s"),
        ("{{ 9 ** (9 ** 9) }}", "takes more than 2 s"),  # one step of Python, which no signal ends
        ("{% if messages %}{{ messages[0].content | center(10 ** 12) }}{% endif %}", "cannot be used .MemoryError"),
        ("{{ 'a' * 10 ** 8 }}", "takes more than 2 s|more than 1,000,000 characters|MemoryError"),
        ("{{ messages[0].content * 10 ** 6 }}", "makes more than 1,000,000 characters"),
        ("{{ raise_exception('only\nfor tools') }}", r"cannot be used \(only\)"),
        ("{{ '\\ud800' }}", "cannot be used .*surrogates"),
    ],
)
def test_a_chat_template_has_an_end_and_does_not_stop_the_next(chatty, template, why):
    good, chatty.chat_template = chatty.chat_template, template
    with pytest.raises(UserError, match=why):
        render_chat(chatty, "Add.")
    chatty.chat_template = good
    assert render_chat(chatty, "Add.").endswith("[assistant]")


def test_chat_needs_a_tokenizer_with_a_template():
    with pytest.raises(UserError, match=r"'chat' is the tokenizer's own"):
        render("chat", "Add.")
    with pytest.raises(UserError, match="has no chat template"):
        render_chat(tiny_tokenizer(), "Add.")
