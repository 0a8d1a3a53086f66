"""Any file of instructions: a user's own data without a class of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from adapters_pl.answers import Kind
from adapters_pl.data.base import ReasoningDataModule, Split
from adapters_pl.data.files import as_dataset, read_rows
from adapters_pl.errors import UserError

_FIELDS = ("id", "instruction", "input", "output", "answer")
_MOST_OPTIONS = 10


class InstructionJSON(ReasoningDataModule):
    """Rows of ``instruction, input, output, answer`` from a ``.json`` or ``.jsonl`` file.

    Without a test file, the rows held out for validation are what is tested.

    Args:
        path: the training file.
        test_path: the file to test on or to predict for.
        answer_kind: what the answers are: ``number``, ``choice`` among those that occur, or ``text``.
            ``auto`` looks at them.
        kwargs: as for every dataset.
    """

    def __init__(
        self,
        path: str | None = None,
        test_path: str | None = None,
        answer_kind: Literal["auto", "number", "choice", "text"] = "auto",
        **kwargs: Any,
    ) -> None:
        if path is None and test_path is None:
            raise UserError("InstructionJSON reads a file: pass --data.path FILE, or --data.test_path FILE.")
        self.path = path
        self.test_path = test_path
        self.answer_kind = answer_kind
        self.set_name = Path(test_path or path or "").stem  # type: ignore[misc]
        super().__init__(**kwargs)

    def rows(self, split: Split) -> Dataset:
        """The rows of one of the two files, or the held-out rows where there is no test file."""
        if split == "train":
            if self.path is None:
                raise UserError("InstructionJSON has no training file: pass --data.path FILE.")
            return self._read(self.path)
        if self.test_path is not None:
            return self._read(self.test_path)
        assert self.path is not None
        rows = self._read(self.path)
        _, held_out = self._divide(len(rows))
        if not held_out:
            raise UserError("Nothing to test on: pass --data.test_path FILE, or hold rows out with --data.val_size.")
        # They keep the names that they have in their file.
        named = [row or f"{self.set_name}-{index}" for index, row in enumerate(rows["id"])]
        return rows.remove_columns("id").add_column("id", named).select(held_out)

    def _read(self, path: str) -> Dataset:
        file = Path(path).expanduser()
        rows = as_dataset(read_rows(file), file, _FIELDS)
        answers = [answer for answer in rows["answer"] if answer is not None]
        if self.answer_kind == "auto":
            self.kind, self.options = infer_kind(answers)
        else:
            self.kind = self.answer_kind
            self.options = tuple(sorted(set(answers))) if self.kind == "choice" else ()
        return rows


def infer_kind(answers: list[str]) -> tuple[Kind, tuple[str, ...]]:
    """Numbers, a choice among at most ten answers that repeat, or free text."""
    if not answers:
        return "text", ()
    if all(_is_number(answer) for answer in answers):
        return "number", ()
    distinct = sorted(set(answers))
    if len(distinct) <= _MOST_OPTIONS and len(distinct) < len(answers):
        return "choice", tuple(distinct)
    return "text", ()


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
