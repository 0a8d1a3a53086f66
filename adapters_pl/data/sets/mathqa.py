"""MathQA, whose published file holds corrupted rows."""

from __future__ import annotations

import re
from typing import Any, Literal

from adapters_pl.answers import SPECS
from adapters_pl.compat.lightning import rank_zero_info
from adapters_pl.data.module import ReasoningDataModule
from adapters_pl.data.rows import Split


class MathQA(ReasoningDataModule):
    """AQuA's problems, cleaned and annotated anew.

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

    def rows(self, split: Split) -> list[dict[str, Any]]:
        """The rows; how many of them are corrupted is said, and what became of them."""
        rows = super().rows(split)
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
        return rows


# A marker is a letter and " )"; elsewhere the published text is lower case.
_STRAY_CAPITAL = re.compile(r"[A-F](?! \))")


def corrupted_options(instruction: str) -> bool:
    """Whether a MathQA question's options hold capitals that are no markers."""
    return bool(_STRAY_CAPITAL.search(instruction.rpartition("The options:")[2]))


def _restored(instruction: str) -> str:
    question, heading, options = instruction.rpartition("The options:")
    return question + heading + _STRAY_CAPITAL.sub(lambda capital: capital[0].lower(), options)
