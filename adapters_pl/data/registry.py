"""What an example is, and which datasets there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters_pl.answers import Kind
from adapters_pl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from adapters_pl.data.base import ReasoningDataModule


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
        kind: what kind of answer the row has; a mixture has several.
        options: the possible answers of a multiple-choice row.
    """

    id: str
    set: str
    instruction: str
    input: str = ""
    response: str = ""
    answer: str | None = None
    kind: Kind = "text"
    options: tuple[str, ...] = ()


#: Sets that are judged together, by the mean of their accuracies (LLM-Adapters, tables 3 and 4).
SUITES: dict[str, tuple[str, ...]] = {
    "Arithmetic": ("MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP"),
    "Commonsense": (
        "boolq",
        "piqa",
        "social_i_qa",
        "hellaswag",
        "winogrande",
        "ARC-Easy",
        "ARC-Challenge",
        "openbookqa",
    ),
}

#: Every dataset class by its published name; filled as classes are defined.
SETS: dict[str, type[ReasoningDataModule]] = {}


def set_named(name: str) -> type[ReasoningDataModule]:
    """The dataset class that carries the published ``name``; raises ``UserError`` with the nearest names."""
    import adapters_pl.data  # noqa: F401  (defining the classes is what registers them)

    if name not in SETS:
        raise UserError(f"dataset '{name}' does not exist: {did_you_mean(name, [*SETS, *SUITES])}")
    return SETS[name]


def sets_of(names: Iterable[str]) -> list[str]:
    """The names with every suite replaced by its sets, each once; those of datasets are not looked up."""
    return list(dict.fromkeys(single for name in names for single in SUITES.get(name, (name,))))
