"""Commonsense reasoning: questions whose answer is one of a few options (LLM-Adapters, section 3.1)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from adapters_pl.data.base import ReasoningDataModule
from adapters_pl.data.registry import SUITES, Example

COMMONSENSE = SUITES["Commonsense"]
_FORMAT = re.compile(r"Answer format: (\S+)\s*$")


class MultipleChoice(ReasoningDataModule):
    """Rows that name their options in their last line, ``Answer format: answer1/answer2``.

    A set's ``options`` are all that occur in it; an example has those of its own question.
    """

    kind = "choice"

    def example(self, row: dict[str, Any], index: int) -> Example:
        """The row with the options that it names."""
        example = super().example(row, index)
        named = _FORMAT.search(example.instruction)
        return replace(example, options=tuple(named[1].split("/"))) if named else example


class BoolQ(MultipleChoice):
    """Yes-or-no questions that people really asked (Clark et al. 2019, arXiv 1905.10044)."""

    set_name = "boolq"
    options = ("true", "false")
    train_file = "dataset/boolq/train.json"
    test_file = "dataset/boolq/test.json"


class PIQA(MultipleChoice):
    """Which of two ways to do an everyday thing works (Bisk et al. 2020, arXiv 1911.11641)."""

    set_name = "piqa"
    options = ("solution1", "solution2")
    train_file = "dataset/piqa/train.json"
    test_file = "dataset/piqa/test.json"


class SIQA(MultipleChoice):
    """Why people act and what follows for others (Sap et al. 2019, arXiv 1904.09728)."""

    set_name = "social_i_qa"
    options = ("answer1", "answer2", "answer3")
    train_file = "dataset/social_i_qa/train.json"
    test_file = "dataset/social_i_qa/test.json"


class HellaSwag(MultipleChoice):
    """Which ending continues a description (Zellers et al. 2019, arXiv 1905.07830)."""

    set_name = "hellaswag"
    options = ("ending1", "ending2", "ending3", "ending4")
    train_file = "dataset/hellaswag/train.json"
    test_file = "dataset/hellaswag/test.json"


class WinoGrande(MultipleChoice):
    """Which of two names a blank stands for (Sakaguchi et al. 2020, arXiv 1907.10641)."""

    set_name = "winogrande"
    options = ("option1", "option2")
    train_file = "dataset/winogrande/train.json"
    test_file = "dataset/winogrande/test.json"


class ARCEasy(MultipleChoice):
    """Science questions that simple methods answer (Clark et al. 2018, arXiv 1803.05457)."""

    set_name = "ARC-Easy"
    options = ("answer1", "answer2", "answer3", "answer4", "answer5")
    train_file = "dataset/ARC-Easy/train.json"
    test_file = "dataset/ARC-Easy/test.json"


class ARCChallenge(MultipleChoice):
    """Science questions that retrieval and co-occurrence answer wrongly (Clark et al. 2018, arXiv 1803.05457)."""

    set_name = "ARC-Challenge"
    options = ("answer1", "answer2", "answer3", "answer4", "answer5")
    train_file = "dataset/ARC-Challenge/train.json"
    test_file = "dataset/ARC-Challenge/test.json"


class OpenBookQA(MultipleChoice):
    """Elementary science facts put to use (Mihaylov et al. 2018, arXiv 1809.02789)."""

    set_name = "openbookqa"
    options = ("answer1", "answer2", "answer3", "answer4")
    train_file = "dataset/openbookqa/train.json"
    test_file = "dataset/openbookqa/test.json"


class Commonsense170K(MultipleChoice):
    """LLM-Adapters' commonsense training mixture, the training rows of eight sets (section 3.2)."""

    set_name = "Commonsense170K"
    train_file = "ft-training_set/commonsense_170k.json"
    judged_on = COMMONSENSE
    drawn_from = COMMONSENSE


class Commonsense15K(MultipleChoice):
    """A smaller commonsense mixture of LLM-Adapters, in the same form."""

    set_name = "Commonsense15K"
    train_file = "ft-training_set/commonsense_15k.json"
    judged_on = COMMONSENSE
    drawn_from = COMMONSENSE
