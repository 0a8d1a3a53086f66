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


def published_name(name: str) -> str:
    """The published name of a dataset that is called by it or by its class (``GSM8K``); any other name as it is."""
    import adapters_pl.data  # noqa: F401  (defining the classes is what registers them)

    by_class = {kind.__name__: published for published, kind in SETS.items()}
    return name if name in SETS else by_class.get(name, name)


def set_named(name: str) -> type[ReasoningDataModule]:
    """The dataset class of a published name or a class's name; raises ``UserError`` with the nearest names."""
    published = published_name(name)
    if published not in SETS:
        known = dict.fromkeys([*SETS, *(kind.__name__ for kind in SETS.values()), *SUITES])
        raise UserError(f"dataset '{name}' does not exist: {did_you_mean(name, known)}")
    return SETS[published]


def sets_of(names: Iterable[str]) -> list[str]:
    """The published names, with every suite replaced by its sets, each once; unknown ones stay as they are."""
    return list(dict.fromkeys(single for name in names for single in SUITES.get(name) or (published_name(name),)))
