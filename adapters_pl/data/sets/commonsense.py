"""Commonsense reasoning: questions whose answer is one of a few options (LLM-Adapters, section 3.1)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from adapters_pl.answers import SPECS
from adapters_pl.data.example import Example
from adapters_pl.data.module import ReasoningDataModule

_FORMAT = re.compile(r"Answer format: (\S+)\s*$")


class MultipleChoice(ReasoningDataModule):
    """Rows that name their options in their last line, ``Answer format: answer1/answer2``.

    A set's ``options`` are all that occur in it; an example has those of its own question.
    """

    def example(self, row: dict[str, Any], index: int) -> Example:
        """The row with the options that it names."""
        example = super().example(row, index)
        named = _FORMAT.search(example.instruction)
        return replace(example, options=tuple(named[1].split("/"))) if named else example


class BoolQ(MultipleChoice):
    """Yes-or-no questions that people really asked (Clark et al. 2019, arXiv 1905.10044)."""

    spec = SPECS["boolq"]


class PIQA(MultipleChoice):
    """Which of two ways to do an everyday thing works (Bisk et al. 2020, arXiv 1911.11641)."""

    spec = SPECS["piqa"]


class SIQA(MultipleChoice):
    """Why people act and what follows for others (Sap et al. 2019, arXiv 1904.09728)."""

    spec = SPECS["social_i_qa"]


class HellaSwag(MultipleChoice):
    """Which ending continues a description (Zellers et al. 2019, arXiv 1905.07830)."""

    spec = SPECS["hellaswag"]


class WinoGrande(MultipleChoice):
    """Which of two names a blank stands for (Sakaguchi et al. 2020, arXiv 1907.10641)."""

    spec = SPECS["winogrande"]


class ARCEasy(MultipleChoice):
    """Science questions that simple methods answer (Clark et al. 2018, arXiv 1803.05457)."""

    spec = SPECS["ARC-Easy"]


class ARCChallenge(MultipleChoice):
    """Science questions that retrieval and co-occurrence answer wrongly (Clark et al. 2018, arXiv 1803.05457)."""

    spec = SPECS["ARC-Challenge"]


class OpenBookQA(MultipleChoice):
    """Elementary science facts put to use (Mihaylov et al. 2018, arXiv 1809.02789)."""

    spec = SPECS["openbookqa"]


class Commonsense170K(MultipleChoice):
    """LLM-Adapters' commonsense training mixture, the training rows of eight sets (section 3.2)."""

    spec = SPECS["Commonsense170K"]


class Commonsense15K(MultipleChoice):
    """A smaller commonsense mixture of LLM-Adapters, in the same form."""

    spec = SPECS["Commonsense15K"]
