"""Every published set, a row each: what it is, whose it is, what its answers are, and which files its rows lie in.

A row is all that a set needs unless its rows have a form of their own. Its data module's class, the public name of that
class and its description are made from it (:mod:`adapters_pl.data.sets`); answers are read and judged by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from adapters_pl.inputs.errors import UserError, did_you_mean

Kind = Literal["number", "choice", "letter", "text"]


@dataclass(frozen=True)
class SetSpec:
    """One set.

    Attributes:
        name: the published folder's name, by which results, files and functions call the set.
        called: the name of its class; a class that is declared over the row by hand fills it in.
        kind: what kind of answer it has.
        options: the possible answers of a multiple-choice set.
        train: its training file in the published layout; a set without one tests only.
        test: its test file in the published layout.
        columns: which of the training file's columns a field is read from, where it has another name.
        form: what its rows say beside the published layout, by its name in ``adapters_pl.data.example.FORMS``.
        suite: the suite in whose mean its accuracy counts.
        judged_on: the sets that a model trained on this one is judged on, if not on the set itself.
        drawn_from: the sets whose rows the training file was drawn from; the others it is judged on are out of
            distribution.
        about: what it holds, for its class's documentation.
        citation: who made it.
        licence: the licence of its own authors, where that is known for certain.
    """

    name: str
    called: str = ""
    kind: Kind = "text"
    options: tuple[str, ...] = ()
    train: str | None = None
    test: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    form: str = ""
    suite: str = ""
    judged_on: tuple[str, ...] = ()
    drawn_from: tuple[str, ...] = ()
    about: str = ""
    citation: str = ""
    licence: str | None = None

    def by(self, citation: str, licence: str | None = None) -> SetSpec:
        """The row with its ``citation`` and ``licence``."""
        return replace(self, citation=citation, licence=licence)

    @property
    def documentation(self) -> str:
        """What the set's class says of itself."""
        return f"{self.about}\n\n{self.citation}." if self.citation else self.about


_LETTERS, _TRUTHS = ("A", "B", "C", "D", "E"), ("true", "false")
# "MAWPS consists of AddSub, MultiArith, SingleOp, SingleEq, SimulEq-S, SimulEq-L" (LLM-Adapters' README).
_MAWPS = ("mawps", "AddSub", "MultiArith", "SingleEq")
_ARC = "Clark et al. 2018, Think you have Solved Question Answering?, arXiv 1803.05457"
#: Who published the training mixtures, and all sets in one layout.
COLLECTION = "Hu et al. 2023, LLM-Adapters, EMNLP, arXiv 2304.01933"


def _arithmetic(name: str, called: str, about: str, **more: Any) -> SetSpec:
    fields = {"kind": "number", "test": f"dataset/{name}/test.json", "suite": "Arithmetic", **more}
    return SetSpec(name, called, about=about, **fields)


def _commonsense(name: str, called: str, options: tuple[str, ...], about: str) -> SetSpec:
    train, test = (f"dataset/{name}/{split}.json" for split in ("train", "test"))
    how: dict[str, Any] = {"form": "named options", "suite": "Commonsense", "about": about}
    return SetSpec(name, called, "choice", options, train, test, **how)


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(1, count + 1))


_TESTED = (
    _arithmetic("MultiArith", "MultiArith", "Problems of two or more steps.").by(
        "Roy and Roth 2015, Solving General Arithmetic Word Problems, EMNLP"
    ),
    _arithmetic("gsm8k", "GSM8K", "Grade-school word problems of two to eight steps.").by(
        "Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, arXiv 2110.14168", "MIT"
    ),
    _arithmetic("AddSub", "AddSub", "Addition and subtraction problems.").by(
        "Hosseini et al. 2014, Learning to Solve Arithmetic Word Problems with Verb Categorization, EMNLP"
    ),
    _arithmetic("AQuA", "AQuA", "Algebraic problems with five options.", kind="letter", options=_LETTERS).by(
        "Ling et al. 2017, Program Induction by Rationale Generation, ACL, arXiv 1705.04146", "Apache-2.0"
    ),
    _arithmetic("SingleEq", "SingleEq", "Problems that one equation solves.").by(
        "Koncel-Kedziorski et al. 2015, Parsing Algebraic Word Problems into Equations, TACL"
    ),
    _arithmetic("SVAMP", "SVAMP", "One-unknown problems varied so that patterns alone fail.").by(
        "Patel et al. 2021, Are NLP Models really able to Solve Simple Math Word Problems?, NAACL, arXiv 2103.07191",
        "MIT",
    ),
    _arithmetic(
        "mawps",
        "MAWPS",
        "A collection of earlier problem sets. Its training rows hold questions of AddSub, MultiArith and SingleEq, "
        "and answers without rationales.",
        train="dataset/mawps/trainset.json",
        columns={"instruction": "original_text", "answer": "ans"},
        suite="",
        drawn_from=_MAWPS,
    ).by("Koncel-Kedziorski et al. 2016, MAWPS: A Math Word Problem Repository, NAACL"),
    _arithmetic(
        "mathqa", "MathQA", "AQuA's problems, cleaned and annotated anew.", kind="letter", options=_LETTERS, suite=""
    ).by("Amini et al. 2019, MathQA, NAACL, arXiv 1905.13319", "Apache-2.0"),
    _commonsense("boolq", "BoolQ", _TRUTHS, "Yes-or-no questions that people really asked.").by(
        "Clark et al. 2019, BoolQ, NAACL, arXiv 1905.10044", "CC-BY-SA-3.0"
    ),
    _commonsense("piqa", "PIQA", _numbered("solution", 2), "Which of two ways to do an everyday thing works.").by(
        "Bisk et al. 2020, PIQA, AAAI, arXiv 1911.11641"
    ),
    _commonsense("social_i_qa", "SIQA", _numbered("answer", 3), "Why people act and what follows for others.").by(
        "Sap et al. 2019, Social IQa, EMNLP, arXiv 1904.09728"
    ),
    _commonsense("hellaswag", "HellaSwag", _numbered("ending", 4), "Which ending continues a description.").by(
        "Zellers et al. 2019, HellaSwag, ACL, arXiv 1905.07830", "MIT"
    ),
    _commonsense("winogrande", "WinoGrande", _numbered("option", 2), "Which of two names a blank stands for.").by(
        "Sakaguchi et al. 2020, WinoGrande, AAAI, arXiv 1907.10641"
    ),
    _commonsense("ARC-Easy", "ARCEasy", _numbered("answer", 5), "Science questions that simple methods answer.").by(
        _ARC, "CC-BY-SA-4.0"
    ),
    _commonsense(
        "ARC-Challenge",
        "ARCChallenge",
        _numbered("answer", 5),
        "Science questions that retrieval and co-occurrence answer wrongly.",
    ).by(_ARC, "CC-BY-SA-4.0"),
    _commonsense("openbookqa", "OpenBookQA", _numbered("answer", 4), "Elementary science facts put to use.").by(
        "Mihaylov et al. 2018, Can a Suit of Armor Conduct Electricity?, EMNLP, arXiv 1809.02789"
    ),
)
#: Sets that are judged together, by the mean of their accuracies (LLM-Adapters, tables 3 and 4).
SUITES: dict[str, tuple[str, ...]] = {
    suite: tuple(spec.name for spec in _TESTED if spec.suite == suite) for suite in ("Arithmetic", "Commonsense")
}


def _mixture(called: str, about: str, drawn_from: tuple[str, ...] = ()) -> SetSpec:
    suite = "Arithmetic" if called.startswith("Math") else "Commonsense"
    kind, form = ("number", "letters among numbers") if suite == "Arithmetic" else ("choice", "named options")
    file = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "_", called).lower()  # Math10K lies in math_10k.json
    how: dict[str, Any] = {"kind": kind, "form": form, "about": about, "drawn_from": drawn_from}
    return SetSpec(called, called, train=f"ft-training_set/{file}.json", judged_on=SUITES[suite], **how).by(COLLECTION)


_TRAINED = (
    _mixture(
        "Math10K",
        "LLM-Adapters' arithmetic training mixture with model-written rationales (section 3.2). Drawn from the "
        "training sets of GSM8K, MAWPS and AQuA (1,000 rows); MAWPS's hold test questions of AddSub, MultiArith and "
        "SingleEq.",
        ("gsm8k", "AQuA", *_MAWPS),
    ),
    _mixture(
        "Math7K",
        'Math10K without the rows from MAWPS (LLM-Adapters\' README, "Special Announcement").',
        ("gsm8k", "AQuA"),
    ),
    _mixture(
        "Math14K",
        'Math7K with rationales by ChatGPT and by GPT-4 (LLM-Adapters\' README, "Special Announcement").',
        ("gsm8k", "AQuA"),
    ),
    _mixture("Math50K", "The largest arithmetic mixture of LLM-Adapters; what it was drawn from is not documented."),
    _mixture(
        "MathData",
        "The first arithmetic training file of LLM-Adapters. Every one of its 3,260 rows is a row of a test set.",
        SUITES["Arithmetic"],
    ),
    _mixture(
        "Commonsense170K",
        "LLM-Adapters' commonsense training mixture, the training rows of eight sets (section 3.2).",
        SUITES["Commonsense"],
    ),
    _mixture(
        "Commonsense15K", "A smaller commonsense mixture of LLM-Adapters, in the same form.", SUITES["Commonsense"]
    ),
    SetSpec(
        "AlpacaCleaned",
        "AlpacaCleaned",
        train="ft-training_set/alpaca_data_cleaned.json",
        about="Stanford Alpaca's instructions with their faults mended; what to test on is the user's to say.",
    ),
)
_OTHER_SEED, _UNSEEN = "word_problems-fresh", "word_problems-unseen"
_GENERATED = (
    SetSpec("word_problems", "WordProblems", "number", judged_on=("word_problems", _OTHER_SEED, _UNSEEN)),
    SetSpec(
        _OTHER_SEED, "FreshWordProblems", "number", about="The same distribution from another seed of the generator."
    ),
    SetSpec(
        _UNSEEN,
        "UnseenWordProblems",
        "number",
        about="Additions and subtractions whose operands occur nowhere in the base's pretraining.",
    ),
)
# The suites themselves: a data module that is judged on all of its sets.
_SUITES = tuple(
    SetSpec(
        suite,
        suite,
        judged_on=sets,
        about=f"LLM-Adapters' {suite.lower()} sets; what counts is the mean of their accuracies (section 4).",
    )
    for suite, sets in SUITES.items()
)

#: Every row, those of whole suites too: each of them has a class.
ROWS = (*_TESTED, *_TRAINED, *_GENERATED, *_SUITES)
#: Every set by its published name; classes that are declared elsewhere add theirs.
SPECS: dict[str, SetSpec] = {spec.name: spec for spec in ROWS if spec.name not in SUITES}


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
