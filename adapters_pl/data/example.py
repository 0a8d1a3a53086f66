"""What an example is: one row of a set, in the terms that prompts and judging use."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from adapters_pl.answers import SPECS, Kind, option_texts


@dataclass(frozen=True)
class Example:
    """One row of a dataset, in the terms that prompts and judging use.

    Attributes:
        id: unique in its set, and the same in every run.
        set: the published name of its dataset.
        instruction: what is asked.
        input: further context, or nothing.
        response: what a model should learn to write; empty if the row has none.
        answer: the gold answer; ``None`` if the row has none.
        options: the possible answers of a multiple-choice row.
        kind: what kind of answer the row has, where a set has several; else the set's.
    """

    id: str
    set: str
    instruction: str
    input: str = ""
    response: str = ""
    answer: str | None = None
    options: tuple[str, ...] = ()
    kind: Kind | None = None


def asks(example: Example) -> str:
    """What tells questions apart: their words and signs, but for case and white space."""
    return " ".join(f"{example.instruction} {example.input}".split()).casefold()


_NAMED = re.compile(r"Answer format: (\S+)\s*$")


def _named_options(example: Example) -> Example:
    """The options that the last line names, ``Answer format: answer1/answer2``; a set's own are all that occur."""
    named = _NAMED.search(example.instruction)
    return replace(example, options=tuple(named[1].split("/"))) if named else example


def _letters_among_numbers(example: Example) -> Example:
    """A letter where the answer is the letter of one of the options that the question lists, else a number."""
    letters = SPECS["AQuA"].options
    listed = option_texts(example.instruction, letters)
    return replace(example, kind="letter", options=letters) if example.answer in listed else example


#: What ``SetSpec.form`` may be: what the rows of a family of sets say of an example beside the published layout.
FORMS: dict[str, Callable[[Example], Example]] = {
    "": lambda example: example,
    "named options": _named_options,
    "letters among numbers": _letters_among_numbers,
}
