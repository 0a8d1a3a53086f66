"""Arithmetic reasoning: word problems whose answer is a number or an option's letter (LLM-Adapters, section 3.1)."""

from __future__ import annotations

import re
from typing import Any, Literal

from datasets import Dataset

from adapters_pl.answers import SPECS, Kind, option_texts
from adapters_pl.compat.lightning import rank_zero_info
from adapters_pl.data.module import ReasoningDataModule, Split


class MultiArith(ReasoningDataModule):
    """Problems of two or more steps (Roy and Roth 2015, EMNLP)."""

    spec = SPECS["MultiArith"]


class GSM8K(ReasoningDataModule):
    """Grade-school word problems of two to eight steps (Cobbe et al. 2021, arXiv 2110.14168)."""

    spec = SPECS["gsm8k"]


class AddSub(ReasoningDataModule):
    """Addition and subtraction problems (Hosseini et al. 2014, EMNLP)."""

    spec = SPECS["AddSub"]


class AQuA(ReasoningDataModule):
    """Algebraic problems with five options (Ling et al. 2017, arXiv 1705.04146)."""

    spec = SPECS["AQuA"]


class SingleEq(ReasoningDataModule):
    """Problems that one equation solves (Koncel-Kedziorski et al. 2015, TACL)."""

    spec = SPECS["SingleEq"]


class SVAMP(ReasoningDataModule):
    """One-unknown problems varied so that patterns alone fail (Patel et al. 2021, arXiv 2103.07191)."""

    spec = SPECS["SVAMP"]


class MAWPS(ReasoningDataModule):
    """A collection of earlier problem sets (Koncel-Kedziorski et al. 2016, NAACL).

    Its training rows hold questions of AddSub, MultiArith and SingleEq, and answers without rationales.
    """

    spec = SPECS["mawps"]


class MathQA(ReasoningDataModule):
    """AQuA's problems, cleaned and annotated anew (Amini et al. 2019, arXiv 1905.13319).

    The published file has 487 rows of 2,985 whose options are corrupted: letters A to F became capitals inside
    words ("nonE oF thEsE"), and the options can no longer be told from their markers by case.

    Args:
        corrupted: ``keep`` such rows as published, ``drop`` them, or ``restore`` them: the set is all lower case
            but for the markers, so nothing is lost.
        kwargs: as for every dataset.
    """

    spec = SPECS["mathqa"]

    def __init__(self, corrupted: Literal["keep", "drop", "restore"] = "keep", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.corrupted = corrupted

    def rows(self, split: Split) -> Dataset:
        """The rows; how many of them are corrupted is said, and what became of them."""
        rows = super().rows(split).to_list()
        bad = [index for index, row in enumerate(rows) if corrupted_options(row["instruction"])]
        if bad:
            done = {"keep": "kept as published", "drop": "dropped", "restore": "restored"}[self.corrupted]
            rank_zero_info(
                f"mathqa: {len(bad)} of {len(rows)} rows have corrupted options ('nonE oF thEsE'): {done} "
                "(--data.corrupted keep, drop or restore)"
            )
        for index, row in enumerate(rows):
            row["id"] = row.get("id") or f"{self.set_name}-{index}"  # by which a row is known, whatever is dropped
        if self.corrupted == "restore":
            for index in bad:
                rows[index]["instruction"] = _restored(rows[index]["instruction"])
        if self.corrupted == "drop":
            gone = set(bad)
            rows = [row for index, row in enumerate(rows) if index not in gone]
        return Dataset.from_list(rows)


# A marker is a letter and " )"; elsewhere the published text is lower case.
_STRAY_CAPITAL = re.compile(r"[A-F](?! \))")


def corrupted_options(instruction: str) -> bool:
    """Whether a MathQA question's options hold capitals that are no markers."""
    return bool(_STRAY_CAPITAL.search(instruction.rpartition("The options:")[2]))


def _restored(instruction: str) -> str:
    question, heading, options = instruction.rpartition("The options:")
    return question + heading + _STRAY_CAPITAL.sub(lambda capital: capital[0].lower(), options)


class ArithmeticMixture(ReasoningDataModule):
    """Training rows from several sets: those that list options are answered by a letter, the others by a number."""

    def kind_of(self, row: dict[str, Any]) -> tuple[Kind, tuple[str, ...]]:
        """``letter`` where the answer is the letter of one of the options that the question lists."""
        listed = option_texts(row["instruction"], AQuA.options)
        return ("letter", AQuA.options) if row.get("answer") in listed else (self.kind, self.options)


class Math10K(ArithmeticMixture):
    """LLM-Adapters' arithmetic training mixture with model-written rationales (section 3.2).

    Drawn from the training sets of GSM8K, MAWPS and AQuA (1,000 rows); MAWPS's hold test questions of AddSub,
    MultiArith and SingleEq.
    """

    spec = SPECS["Math10K"]


class Math7K(ArithmeticMixture):
    """Math10K without the rows from MAWPS (LLM-Adapters' README, "Special Announcement")."""

    spec = SPECS["Math7K"]


class Math14K(ArithmeticMixture):
    """Math7K with rationales by ChatGPT and by GPT-4 (LLM-Adapters' README, "Special Announcement")."""

    spec = SPECS["Math14K"]


class Math50K(ArithmeticMixture):
    """The largest arithmetic mixture of LLM-Adapters; what it was drawn from is not documented."""

    spec = SPECS["Math50K"]


class MathData(ArithmeticMixture):
    """The first arithmetic training file of LLM-Adapters. Every one of its 3,260 rows is a row of a test set."""

    spec = SPECS["MathData"]
