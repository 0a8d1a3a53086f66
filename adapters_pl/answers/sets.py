"""Every published set, a row each: what its answers are, and which files its rows lie in.

A row is all that a set needs unless its rows have a form of their own; data modules are declared over it
(:mod:`adapters_pl.data.sets`), answers are read and judged by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from adapters_pl.inputs.errors import UserError, did_you_mean

Kind = Literal["number", "choice", "letter", "text"]


@dataclass(frozen=True)
class SetSpec:
    """One set.

    Attributes:
        name: the published folder's name, by which results, files and functions call the set.
        called: the name of its class; filled in where a class is declared over the row.
        kind: what kind of answer it has.
        options: the possible answers of a multiple-choice set.
        train: its training file in the published layout; a set without one tests only.
        test: its test file in the published layout.
        columns: which of the training file's columns a field is read from, where it has another name.
        judged_on: the sets that a model trained on this one is judged on, if not on the set itself.
        drawn_from: the sets whose rows the training file was drawn from; the others it is judged on are out of
            distribution.
    """

    name: str
    called: str = ""
    kind: Kind = "text"
    options: tuple[str, ...] = ()
    train: str | None = None
    test: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    judged_on: tuple[str, ...] = ()
    drawn_from: tuple[str, ...] = ()


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

# "MAWPS consists of AddSub, MultiArith, SingleOp, SingleEq, SimulEq-S, SimulEq-L" (LLM-Adapters' README).
_MAWPS = ("mawps", "AddSub", "MultiArith", "SingleEq")
_LETTERS = ("A", "B", "C", "D", "E")


def _tested(name: str, called: str, kind: Kind = "number", options: tuple[str, ...] = ()) -> SetSpec:
    return SetSpec(name, called, kind, options, test=f"dataset/{name}/test.json")


def _chosen(name: str, called: str, word: str, count: int) -> SetSpec:
    options = tuple(f"{word}{number}" for number in range(1, count + 1)) if count else ("true", "false")
    train, test = (f"dataset/{name}/{split}.json" for split in ("train", "test"))
    return SetSpec(name, called, "choice", options, train, test)


def _mixture(called: str, file: str, suite: str, drawn_from: tuple[str, ...] = ()) -> SetSpec:
    kind: Kind = "number" if suite == "Arithmetic" else "choice"
    return SetSpec(
        called, called, kind, train=f"ft-training_set/{file}.json", judged_on=SUITES[suite], drawn_from=drawn_from
    )


_ROWS = (
    _tested("MultiArith", "MultiArith"),
    _tested("gsm8k", "GSM8K"),
    _tested("AddSub", "AddSub"),
    _tested("AQuA", "AQuA", "letter", _LETTERS),
    _tested("SingleEq", "SingleEq"),
    _tested("SVAMP", "SVAMP"),
    SetSpec(
        "mawps",
        "MAWPS",
        "number",
        train="dataset/mawps/trainset.json",
        test="dataset/mawps/test.json",
        columns={"instruction": "original_text", "answer": "ans"},
        drawn_from=_MAWPS,
    ),
    _tested("mathqa", "MathQA", "letter", _LETTERS),
    _chosen("boolq", "BoolQ", "", 0),
    _chosen("piqa", "PIQA", "solution", 2),
    _chosen("social_i_qa", "SIQA", "answer", 3),
    _chosen("hellaswag", "HellaSwag", "ending", 4),
    _chosen("winogrande", "WinoGrande", "option", 2),
    _chosen("ARC-Easy", "ARCEasy", "answer", 5),
    _chosen("ARC-Challenge", "ARCChallenge", "answer", 5),
    _chosen("openbookqa", "OpenBookQA", "answer", 4),
    _mixture("Math10K", "math_10k", "Arithmetic", ("gsm8k", "AQuA", *_MAWPS)),
    _mixture("Math7K", "math_7k", "Arithmetic", ("gsm8k", "AQuA")),
    _mixture("Math14K", "math_14k", "Arithmetic", ("gsm8k", "AQuA")),
    _mixture("Math50K", "math_50k", "Arithmetic"),
    _mixture("MathData", "math_data", "Arithmetic", SUITES["Arithmetic"]),
    _mixture("Commonsense170K", "commonsense_170k", "Commonsense", SUITES["Commonsense"]),
    _mixture("Commonsense15K", "commonsense_15k", "Commonsense", SUITES["Commonsense"]),
    SetSpec("AlpacaCleaned", "AlpacaCleaned", train="ft-training_set/alpaca_data_cleaned.json"),
    SetSpec(
        "word_problems",
        "WordProblems",
        "number",
        judged_on=("word_problems", "word_problems-fresh", "word_problems-unseen"),
    ),
    SetSpec("word_problems-fresh", "FreshWordProblems", "number"),
    SetSpec("word_problems-unseen", "UnseenWordProblems", "number"),
)

#: Every set by its published name; classes that are declared elsewhere add theirs.
SPECS: dict[str, SetSpec] = {spec.name: spec for spec in _ROWS}


def published_name(name: str) -> str:
    """The published name of a set that is called by it or by its class (``GSM8K``); any other name as it is."""
    return name if name in SPECS else next((spec.name for spec in SPECS.values() if spec.called == name), name)


def spec_named(name: str) -> SetSpec:
    """The row of a published name or a class's name; raises ``UserError`` with the nearest names."""
    published = published_name(name)
    if published not in SPECS:
        known = dict.fromkeys([*SPECS, *(spec.called for spec in SPECS.values()), *SUITES])
        raise UserError(f"dataset '{name}' does not exist: {did_you_mean(name, known)}")
    return SPECS[published]


def sets_of(names: Iterable[str]) -> list[str]:
    """The published names, with every suite replaced by its sets, each once; unknown ones stay as they are."""
    return list(dict.fromkeys(single for name in names for single in SUITES.get(name) or (published_name(name),)))
