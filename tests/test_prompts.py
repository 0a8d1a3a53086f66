"""The exact text that a model is given."""

from __future__ import annotations

import pytest

from adapters_pl.errors import UserError
from adapters_pl.prompts import render

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
