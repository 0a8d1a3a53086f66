"""The prompt templates, used by training and evaluation alike.

A template turns an instruction (and an optional input) into the text that the model is given; the response
follows it directly. Training and generation call the same function, so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters_pl.inputs.apart import Apart
from adapters_pl.inputs.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The template that a tokenizer brings; it is rendered by :func:`render_chat`.
CHAT = "chat"
#: What a chat template may take for one row, and make of it.
MOST_SECONDS, MOST_CHARACTERS = 2, 1_000_000

_TASK = "Below is an instruction that describes a task"
_WITH_INPUT = f"{_TASK}, paired with an input that provides further context"
_RESPOND = "Write a response that appropriately completes the request."
# LLM-Adapters' templates are indented strings of its source: every line begins with these spaces, also the
# line that the response begins on, and in training the blank lines hold them too.
_INDENT = " " * 16


def _alpaca(instruction: str, input: str) -> str:
    """Stanford Alpaca's template, which LLM-Adapters builds on."""
    if input:
        return f"{_WITH_INPUT}. {_RESPOND}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    return f"{_TASK}. {_RESPOND}\n\n### Instruction:\n{instruction}\n\n### Response:\n"


def _plain(instruction: str, input: str) -> str:
    """The instruction, the input and nothing else, a line each."""
    return f"{instruction}\n{input}\n" if input else f"{instruction}\n"


def _llm_adapters(instruction: str, input: str, after_task: tuple[str, str], blank: str) -> str:
    """LLM-Adapters' layout: ``after_task`` is the white space after the first line (without, with input)."""
    task = f"{_WITH_INPUT}. {_RESPOND}{after_task[1]}" if input else f"{_TASK}. {_RESPOND}{after_task[0]}"
    question = f"{_INDENT}### Instruction:\n{_INDENT}{instruction}\n{blank}\n"
    context = f"{_INDENT}### Input:\n{_INDENT}{input}\n{blank}\n" if input else ""
    return f"{task}\n\n{question}{context}{_INDENT}### Response:\n{_INDENT}"


# What LLM-Adapters trains on (``generate_prompt`` in its ``finetune.py``), and what it tests with (the one in
# ``evaluate.py`` and ``commonsense_evaluate.py``).
_llm_adapters_train = partial(_llm_adapters, after_task=("  ", " "), blank=_INDENT)
_llm_adapters_test = partial(_llm_adapters, after_task=(" ", ""), blank="")


def _zero_shot_cot(instruction: str, input: str) -> str:
    """Kojima et al. 2022 (arXiv 2205.11916), section 3: the answer begins where the reasoning begins."""
    question = f"{instruction}\n{input}" if input else instruction
    return f"Q: {question}\nA: Let's think step by step."


TEMPLATES: dict[str, Callable[[str, str], str]] = {
    "alpaca": _alpaca,
    "plain": _plain,
    "llm_adapters_train": _llm_adapters_train,
    "llm_adapters_math": _llm_adapters_test,
    "llm_adapters_commonsense": _llm_adapters_test,
    "zero_shot_cot": _zero_shot_cot,
}


def check_template(template: str) -> None:
    """Raise ``UserError`` with the nearest names if there is no such template."""
    if template != CHAT and template not in TEMPLATES:
        raise UserError(f"template '{template}' does not exist: {did_you_mean(template, [*TEMPLATES, CHAT])}")


def render(template: str, instruction: str, input: str = "", output: str = "") -> str:
    """The text of one example: the prompt, and ``output`` directly after it.

    Args:
        template: a name in :data:`TEMPLATES`.
        instruction: what is asked.
        input: further context, if the row has any; any text counts, white space as well.
        output: the response; empty for the prompt alone.

    Raises:
        UserError: no such template, or it is ``chat``, which only a tokenizer can render.
    """
    check_template(template)
    if template == CHAT:
        raise UserError("template 'chat' is the tokenizer's own: use adapters_pl.prompts.render_chat(tokenizer, ...).")
    return TEMPLATES[template](instruction, input) + output


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    input: str = "",
    output: str = "",
    *,
    system: str | None = None,
    thinking: bool | None = None,
    shots: Sequence[tuple[str, str, str]] = (),
) -> str:
    """One example in the tokenizer's own chat template, up to where the assistant begins to write.

    Args:
        tokenizer: its ``chat_template`` is used.
        instruction: what is asked.
        input: further context; it follows the instruction after an empty line.
        output: the response, directly after the prompt.
        system: the system's text; the template's own if not given.
        thinking: the switch that reasoning models' templates read as ``enable_thinking``; theirs if not given.
        shots: worked examples before the question, ``(instruction, input, response)`` each, as earlier turns.

    Returns:
        The text, without the token that a tokenizer itself puts before every text.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError("This base's tokenizer has no chat template: choose another --data.template (alpaca, plain).")
    turns = [{"role": "system", "content": system}] if system else []
    for question, context, response in shots:
        turns.append({"role": "user", "content": _question(question, context)})
        turns.append({"role": "assistant", "content": response.strip()})
    turns.append({"role": "user", "content": _question(instruction, input)})
    switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    text = _rendered(tokenizer, turns, switch)
    # The beginning token comes from the tokenizer when the text is encoded; twice would be once too often.
    bos = tokenizer.bos_token
    if isinstance(bos, str) and bos and text.startswith(bos) and _adds_bos(tokenizer):
        text = text[len(bos) :]
    return text + output


#: The program of the process that renders. What it gives back is a text, how long a longer one is, or an error's name
#: and words.
_RENDERER = f"""
from transformers.utils.chat_template_utils import render_jinja_template
def answer(request):
    if request is None:
        return None
    try:
        texts, _ = render_jinja_template(add_generation_prompt=True, **request)
        return {{"text": texts[0]}} if len(texts[0]) <= {MOST_CHARACTERS} else {{"long": len(texts[0])}}
    except Exception as error:
        return {{"wrong": str(error)[:1000] or type(error).__name__}}
"""
_renderer = Apart(_RENDERER)


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], switch: dict[str, Any]) -> str:
    """What the template that came with the base makes of ``turns``: a program that a stranger may have written.

    transformers runs it in Jinja's sandbox, which keeps it from everything but its own time and memory; the process
    of its own bounds those.
    """
    remedy = "choose another --data.template (alpaca, plain)."
    named = "This base's chat template"
    try:
        request = {"conversations": [turns], "chat_template": tokenizer.get_chat_template()}
        found = _renderer.ask({**request, **tokenizer.special_tokens_map, **switch}, MOST_SECONDS)
        if found is None:
            raise UserError(f"{named} takes more than {MOST_SECONDS} s or too much memory for one row: {remedy}")
        if "long" in found[0]:
            raise UserError(f"{named} makes more than {MOST_CHARACTERS:,} characters of a row: {remedy}")
        if "wrong" in found[0]:
            raise ValueError(found[0]["wrong"])
        text = str(found[0]["text"])
        text.encode()  # half a character is no text, and tokenizers raise for it
    except UserError:
        raise
    except Exception as error:  # what a template raises is as its author pleases
        raise UserError(f"{named} cannot be used ({first_line(error)}): {remedy}") from error
    return text


def _question(instruction: str, input: str) -> str:
    return f"{instruction}\n\n{input}" if input else instruction


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def with_shots(template: str, shots: Sequence[tuple[str, str, str]], prompt: str) -> str:
    """Worked examples ``(instruction, input, response)`` before ``prompt``, an empty line between them."""
    worked = [render(template, question, context, f"{response.strip()}\n\n") for question, context, response in shots]
    return "".join(worked) + prompt
