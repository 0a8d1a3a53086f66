"""What a protocol is, and how answers are read and judged unless one has its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from adapters_pl.answers.extractors import extract_choice, extract_letter, extract_number, extract_text, words
from adapters_pl.answers.sets import Kind

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
        samples: whether it may write several answers to a question, drawn at random.
        tolerance: of a number, in words, for the results.
    """

    name: str
    templates: Mapping[Kind, str] = field(default_factory=dict)
    beams: int = 1
    generates: bool = True
    samples: bool = False
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
