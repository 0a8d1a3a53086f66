"""What an example is: one row of a set, in the terms that prompts and judging use."""

from __future__ import annotations

from dataclasses import dataclass

from adapters_pl.answers import Kind


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
