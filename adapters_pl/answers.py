"""From what a model wrote to the answer it states, and whether that answer is right: the protocols by name.

- ``strict`` (the default): the prompt that training used, greedy, extraction made for each kind of answer
  (:mod:`adapters_pl.answers_strict`).
- ``llm_adapters``: prompts, beams and extractors of the LLM-Adapters paper's code, for comparison with its numbers
  (:mod:`adapters_pl.answers_llm_adapters`).
- ``loglikelihood``: nothing is generated; the option that is likeliest is the answer
  (:mod:`adapters_pl.scoring`). Multiple-choice sets only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from adapters_pl import answers_llm_adapters
from adapters_pl.answers_strict import extract_choice, extract_letter, extract_number, extract_text, words
from adapters_pl.errors import UserError, did_you_mean

Kind = Literal["number", "choice", "letter", "text"]

#: A number is right within 0.001 of the gold one, or within a millionth of a large one.
NUMBER_TOLERANCE = Decimal("0.001")


@dataclass(frozen=True)
class Protocol:
    """How a set is asked, how a model's text becomes an answer, and how the answer is judged.

    Attributes:
        name: what results call it.
        templates: the prompt's template by kind of answer; kinds that are left out use the template of training.
        beams: beams of the search; 1 is greedy.
        generates: whether the model writes; if not, the options are scored.
        tolerance: of a number, in words, for the results.
    """

    name: str
    templates: Mapping[Kind, str] = field(default_factory=dict)
    beams: int = 1
    generates: bool = True
    tolerance: str = "0.001, or 1e-6 of the gold number"

    def template(self, kind: Kind, of_training: str) -> str:
        """The template that a set of this kind is asked with."""
        return self.templates.get(kind, of_training)

    def extract(
        self,
        text: str,
        kind: Kind,
        options: Sequence[str] = (),
        *,
        set_name: str = "",
        option_texts: Mapping[str, str] | None = None,
    ) -> str | None:
        """The answer in ``text``, or ``None`` where it gives none.

        Args:
            text: what the model wrote after the prompt.
            kind: of answer.
            options: the possible answers of a multiple-choice set.
            set_name: the published name of the set.
            option_texts: what the options stand for in this row, if that is known.
        """
        if kind == "number":
            return extract_number(text)
        if kind == "choice":
            return extract_choice(text, options)
        if kind == "letter":
            return extract_letter(text, options, option_texts)
        return extract_text(text)

    def match(self, prediction: str | None, gold: str, kind: Kind) -> bool:
        """Whether ``prediction`` is ``gold``; a text without an answer is wrong."""
        if prediction is None:
            return False
        if kind == "number":
            return _same_number(prediction, gold)
        return words(prediction).casefold() == words(gold).casefold()


def _same_number(prediction: str, gold: str) -> bool:
    found, wanted = (extract_number(text) for text in (prediction, gold))
    if found is None or wanted is None:
        return False
    number = Decimal(wanted)
    return abs(Decimal(found) - number) <= max(NUMBER_TOLERANCE, abs(number) * Decimal("1e-6"))


class _LLMAdapters(Protocol):
    """The reference's own reading; see :mod:`adapters_pl.answers_llm_adapters`."""

    def extract(
        self,
        text: str,
        kind: Kind,
        options: Sequence[str] = (),
        *,
        set_name: str = "",
        option_texts: Mapping[str, str] | None = None,
    ) -> str | None:
        """What the reference reads out of ``text``."""
        text = answers_llm_adapters.response(text)
        if kind == "number":
            return answers_llm_adapters.extract_number(text)
        if kind == "letter":
            return answers_llm_adapters.extract_letter(text)
        if kind == "choice":
            return answers_llm_adapters.extract_choice(text, set_name, options)
        return extract_text(text)

    def match(self, prediction: str | None, gold: str, kind: Kind) -> bool:
        """Numbers within the reference's tolerance; everything else must be the same string."""
        if prediction is None:
            return False
        return answers_llm_adapters.same_number(prediction, gold) if kind == "number" else prediction == gold


PROTOCOLS: dict[str, Protocol] = {
    "strict": Protocol("strict"),
    "llm_adapters": _LLMAdapters(
        "llm_adapters",
        templates={
            "number": "llm_adapters_math",
            "letter": "llm_adapters_math",
            "text": "llm_adapters_math",
            "choice": "llm_adapters_commonsense",
        },
        beams=4,
        tolerance=str(answers_llm_adapters.TOLERANCE),
    ),
    "loglikelihood": Protocol("loglikelihood", generates=False),
}


def protocol_named(name: str) -> Protocol:
    """The protocol ``name``; raises ``UserError`` with the nearest names if there is none."""
    if name not in PROTOCOLS:
        raise UserError(f"protocol '{name}' does not exist: {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def extract(text: str, dataset: str, protocol: str = "strict") -> str | None:
    """The answer that ``text`` states for ``dataset`` (by its published name, or its class's), or ``None``."""
    from adapters_pl.data import set_named

    reading, wanted = protocol_named(protocol), set_named(dataset)
    return reading.extract(text, wanted.kind, wanted.options, set_name=wanted.set_name)


_BRACKETED = re.compile(r"\(([A-E])\)\s*(.*?)\s*(?=\([A-E]\)|$)", re.DOTALL)


def option_texts(question: str, options: Sequence[str]) -> dict[str, str]:
    """What each option stands for, as the published questions list them; empty where they list nothing.

    ``(A) 5 (B) 6`` for letters, ``Answer1: wet palms Answer2: dry palms`` for option words.
    """
    if all(len(option) == 1 for option in options):
        found = dict(_BRACKETED.findall(question.partition("Answer Choices:")[2]))
    else:
        named = "|".join(re.escape(option) for option in options)
        listed = re.compile(rf"\b({named}):\s*(.*?)\s*(?=\b(?:{named}):|Answer format:|$)", re.IGNORECASE | re.DOTALL)
        found = {option.lower(): text for option, text in listed.findall(question)} if options else {}
    return {option: found[option] for option in options if option in found}
