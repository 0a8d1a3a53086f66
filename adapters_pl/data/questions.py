"""One set as it is asked: its rows as prompts in tokens, the worked examples before them, and their options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from adapters_pl.answers import Kind, Protocol, option_texts
from adapters_pl.data.example import Example, asks
from adapters_pl.data.tokens import TokenRow, encode_prompt
from adapters_pl.inputs.errors import UserError
from adapters_pl.prompts import CHAT, render, render_chat, with_shots

#: New tokens per answer, as LLM-Adapters generates them: reasoning takes room, an option does not.
NEW_TOKENS: dict[Kind, int] = {"number": 256, "letter": 256, "choice": 32, "text": 256}

#: What stands between the prompt and the options in the published sets' responses.
LEADS: dict[Kind, str] = {"choice": "the correct answer is", "letter": "The answer is"}


@dataclass(frozen=True)
class Reader:
    """Who reads a text, in what a data module needs to know of it.

    Attributes:
        tokenizer: the base's.
        context: the most tokens of a text; ``None`` where there is no limit.
        virtual_tokens: positions that adapters take of the model's context; ``context`` is without them.
    """

    tokenizer: PreTrainedTokenizerBase
    context: int | None = None
    virtual_tokens: int = 0

    def longest(self, cutoff: int) -> int:
        """The longest training row in tokens, where ``cutoff`` of them are asked for.

        Raises:
            UserError: the virtual tokens take all of the context.
        """
        if self.context is not None and self.context < 1:
            raise UserError("The virtual tokens leave no room in the model's context: take fewer of them.")
        return cutoff if self.context is None else min(cutoff, self.context)

    def refuse_beyond_context(self, tokens: Sequence[int], example: Example, row: int) -> None:
        """Raise ``UserError`` where ``tokens`` leave no room for an answer."""
        if self.context is not None and len(tokens) >= self.context:
            without = f" without the {self.virtual_tokens} virtual tokens" if self.virtual_tokens else ""
            raise UserError(
                f"{example.set}: the prompt of row {row + 1} ({example.id}) has {len(tokens)} tokens, the model's "
                f"context is {self.context}{without}. Use a model with a longer one, a shorter --data.template, or "
                "leave the row out."
            )


@dataclass(frozen=True)
class Asking:
    """How sets are asked, whichever they are.

    Attributes:
        protocol: how answers are asked for, read and judged.
        template: the prompt's template in training; a protocol may have its own.
        system: the system's text in a chat template.
        thinking: a chat template's switch for reasoning models.
        shots: worked examples before each question.
        samples: sampled answers to each question.
        temperature: of sampling; 0 samples nothing.
        max_new_tokens: the most tokens of an answer; by the kind of set if not given.
        seed: of the worked examples and of sampling.
    """

    protocol: Protocol
    template: str = "alpaca"
    system: str | None = None
    thinking: bool | None = None
    shots: int = 0
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None
    seed: int = 42

    def prompt(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        example: Example,
        shots: Sequence[Example] = (),
        template: str | None = None,
    ) -> str:
        """The text that the model is given for ``example``; by the protocol's template unless another is given.

        Raises:
            UserError: the template is the tokenizer's own, and there is none.
        """
        template = template or self.protocol.template(example.kind or "text", self.template)
        worked = [(shot.instruction, shot.input, shot.response) for shot in shots]
        if template == CHAT:
            if tokenizer is None:
                raise UserError("A chat is rendered by a tokenizer: call the data module's connect(Reader(tokenizer)).")
            how: dict[str, Any] = {"system": self.system, "thinking": self.thinking, "shots": worked}
            return render_chat(tokenizer, example.instruction, example.input, **how)
        return with_shots(template, worked, render(template, example.instruction, example.input))

    def settings(self, questions: Questions) -> dict[str, Any]:
        """What an answer to a set depends on beside the model and the prompt's text."""
        kinds, protocol = questions.kinds, self.protocol
        templates = {kind: protocol.template(kind, self.template) for kind in kinds}
        sampled = {"samples": self.samples, "temperature": self.temperature} if self.temperature else {}
        return {
            "protocol": protocol.name,
            "template": templates if len(set(templates.values())) > 1 else templates[kinds[0]],
            "shots": self.shots,
            "beams": protocol.beams if protocol.generates else None,
            "max_new_tokens": questions.max_new_tokens if protocol.generates else None,
            **sampled,
            "seed": self.seed,
            "tolerance": protocol.tolerance if "number" in kinds else None,
        }


@dataclass(frozen=True)
class Pair:
    """A context and one continuation of it, in tokens.

    Attributes:
        context: ids before the continuation; at least one.
        continuation: ids that are scored; at least one.
    """

    context: list[int]
    continuation: list[int]


@dataclass(frozen=True)
class Choices:
    """One row's options.

    Attributes:
        options: the answers.
        pairs: one an option, in their order.
        lengths: of each option's text in characters; what its score is divided by when it is normalised.
    """

    options: tuple[str, ...]
    pairs: tuple[Pair, ...]
    lengths: tuple[int, ...]


@dataclass
class Questions:
    """One set that is asked: its examples by row number, their prompts in tokens and hashed.

    Attributes:
        name: of the set.
        examples: the examples by row number.
        rows: every row's prompt in tokens.
        hashes: what stands for each row's prompt, by row number.
        choices: the rows' options in tokens, where options are scored.
        max_new_tokens: the most tokens of an answer. Never more than fit the model's context after the longest prompt:
            one number for the set, so that no answer depends on the rows that it happened to share a batch with.
    """

    name: str
    examples: Mapping[int, Example]
    rows: list[TokenRow]
    hashes: dict[int, str] = field(default_factory=dict)
    choices: dict[int, Choices] = field(default_factory=dict)
    max_new_tokens: int = 256

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of answer that its rows have."""
        return sorted({example.kind or "text" for example in self.examples.values()})

    @cached_property
    def prompts(self) -> dict[int, list[int]]:
        """The prompt of every row in tokens, by row number; read for every batch."""
        return {row.row: row.prompt for row in self.rows}


def ask(
    name: str,
    examples: Mapping[int, Example],
    asking: Asking,
    reader: Reader,
    *,
    shots: Sequence[Example] = (),
    prompt: Callable[[Example, Sequence[Example]], str] | None = None,
    with_leads: bool = True,
    need_gold: bool = False,
) -> Questions:
    """Ask every row of a set.

    Args:
        name: of the set.
        examples: by row number.
        asking: how they are asked.
        reader: who reads the prompts.
        shots: the worked examples before each question.
        prompt: makes the text of an example; as ``asking`` says if not given.
        with_leads: options follow the words that lead to them in the published sets' responses.
        need_gold: refuse rows without a gold answer.

    Raises:
        UserError: a row has no gold answer or no options and needs them, or does not fit the context.
    """
    found = Questions(name, examples, [])
    for index, example in examples.items():
        if need_gold and example.answer is None:
            raise UserError(f"{name}: row {index + 1} has no 'answer' to compare with; use predict instead of test.")
        text = prompt(example, shots) if prompt else asking.prompt(reader.tokenizer, example, shots)
        row = TokenRow(index, encode_prompt(reader.tokenizer, text), [])
        reader.refuse_beyond_context(row.prompt, example, index)
        found.rows.append(row)
        found.hashes[index] = prompt_hash(text)
        if not asking.protocol.generates:
            choices = found.choices[index] = _choices(reader.tokenizer, example, text, with_leads)
            longest = max(([*pair.context, *pair.continuation[:-1]] for pair in choices.pairs), key=len)
            reader.refuse_beyond_context(longest, example, index)
    wanted = asking.max_new_tokens or max((NEW_TOKENS[kind] for kind in found.kinds), default=256)
    room = None if reader.context is None else reader.context - max((len(row.prompt) for row in found.rows), default=0)
    found.max_new_tokens = wanted if room is None else min(wanted, room)
    return found


def _choices(tokenizer: PreTrainedTokenizerBase, example: Example, prompt: str, with_leads: bool) -> Choices:
    """The options of one row after its prompt."""
    if example.kind not in ("choice", "letter") or not example.options:
        raise UserError(
            f"{example.set}: protocol loglikelihood scores options, and {example.id} has none. "
            "Choose --data.protocol strict or llm_adapters, or test multiple-choice sets only."
        )
    lead = LEADS[example.kind] if with_leads else ""
    # A set's questions do not all offer every option (ARC has three to five).
    options = tuple(option_texts(f"{example.instruction} {example.input}", example.options))
    if len(options) < 2 or (example.answer is not None and example.answer not in options):
        options = example.options
    shown = [f"({option})" for option in options] if example.kind == "letter" else options
    return encode_choices(tokenizer, prompt, lead, options, shown)


# ---- options in tokens
#
# Context and continuation are divided as lm-evaluation-harness does it (``TemplateLM._encode_pair``), so the numbers
# are comparable: white space at the end of the context belongs to the continuation, both are encoded together, and the
# continuation's ids are what comes after as many ids as the context alone has.


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """``context`` and ``continuation`` in tokens; an empty context becomes the beginning (or else the end) token."""
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if not kept:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return Pair([first], _encode(tokenizer, continuation, special=False))
    before = _encode(tokenizer, kept)
    return Pair(before, _encode(tokenizer, kept + continuation)[len(before) :])


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> list[int]:
    """Ids without an end token that a tokenizer may put after a text."""
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids[:-1] if special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, prompt: str, lead: str, options: Sequence[str], shown: Sequence[str]
) -> Choices:
    """The options of one row after ``prompt`` and ``lead``, as ``shown``, a space between."""
    # Without a lead the prompt's own last line break divides; it moves to the continuation by the rule above.
    between = "" if not lead and prompt != prompt.rstrip() else " "
    pairs = [encode_pair(tokenizer, prompt + lead, between + text) for text in shown]
    return Choices(tuple(options), tuple(pairs), tuple(len(text) for text in shown))


# ---- hashes and worked examples


def prompt_hash(prompt: str) -> str:
    """Sixteen hexadecimal digits that stand for a prompt."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def draw_shots(pool: Sequence[Example], tested: Iterable[Example], count: int, seed: int) -> list[Example]:
    """``count`` worked examples from the training rows ``pool``; no tested question is among them.

    A row counts as tested if it asks the same as a tested one, but for case and white space.

    Raises:
        UserError: there are too few rows with a response that are not tested.
    """
    taken = {asks(example) for example in tested}
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    shots: list[Example] = []
    for index in order:
        if len(shots) == count:
            break
        if pool[index].response and (question := asks(pool[index])) not in taken:
            taken.add(question)
            shots.append(pool[index])
    if len(shots) < count:
        raise UserError(f"data.shots is {count}, but only {len(shots)} training rows are not tested themselves.")
    return shots
