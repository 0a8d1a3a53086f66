"""The prompt templates, used by training and evaluation alike.

A template turns an instruction (and an optional input) into the text that the model is given; the response
follows it directly. Training and generation call the same function, so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable

from adapters_pl.errors import UserError, did_you_mean


def _alpaca(instruction: str, input: str) -> str:
    """Stanford Alpaca's template, which LLM-Adapters builds on."""
    if input:
        return (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        )
    return (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n### Response:\n"
    )


def _plain(instruction: str, input: str) -> str:
    """The instruction, the input and nothing else, a line each."""
    return f"{instruction}\n{input}\n" if input else f"{instruction}\n"


TEMPLATES: dict[str, Callable[[str, str], str]] = {"alpaca": _alpaca, "plain": _plain}


def render(template: str, instruction: str, input: str = "", output: str = "") -> str:
    """The text of one example: the prompt, and ``output`` directly after it.

    Args:
        template: a name in :data:`TEMPLATES`.
        instruction: what is asked.
        input: further context, if the row has any.
        output: the response; empty for the prompt alone.

    Raises:
        UserError: no such template.
    """
    if template not in TEMPLATES:
        raise UserError(f"template '{template}' does not exist: {did_you_mean(template, TEMPLATES)}")
    return TEMPLATES[template](instruction, input) + output
