"""Any file of instructions: a user's own data without a class of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from datasets import Dataset

from adapters_pl.answers import Kind, published_name, sets_of
from adapters_pl.compat.lightning import rank_zero_info
from adapters_pl.data.example import Example
from adapters_pl.data.files import FIELDS, checked_rows, read_rows
from adapters_pl.data.module import ReasoningDataModule
from adapters_pl.data.published import blob_sha1
from adapters_pl.data.rows import SETS, Split
from adapters_pl.inputs.errors import UserError, did_you_mean, first_line
from adapters_pl.inputs.hub import at_hand

_MOST_OPTIONS = 10
#: How often a row is taken in an epoch at most.
_MOST_WEIGHT = 1000
#: Where a row keeps the name of the published set that it is of; no file has a column of such a name.
_SET = "\0set"
_ENDINGS = (".json", ".jsonl", ".csv", ".parquet")


class InstructionJSON(ReasoningDataModule):
    """Rows of ``instruction, input, output, answer`` from files of one's own, or from the hub.

    A path is a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file, or a dataset's hub id (``owner/name``; code
    that comes with a dataset is never run). A training path can be the name of a published set, too (``ARCEasy``;
    a folder of that name is ``./ARCEasy``): its training file is found as for the set itself, and the run is judged
    on the set. Without a test file, the rows held out for validation are what own files are tested on.

    Args:
        path: what to train on; a list for several.
        test_path: what to test on or to predict for.
        columns: which column each field is read from, where it has another name:
            ``{instruction: question, output: rationale}``.
        weights: how often the training rows of each path are taken in an epoch: 2 is twice, 0.5 is a half of
            them, drawn by ``seed``. Validation rows are drawn before, each once.
        hub_config: the configuration of a hub dataset that has several.
        train_split: the split of a hub dataset to train on.
        test_split: the split of a hub dataset to test on.
        answer_kind: what the answers are: ``number``, ``choice`` among those that occur, ``letter`` of an option,
            or ``text``. ``auto`` looks at them; a mixture has a kind for each row.
        kwargs: as for every dataset.
    """

    def __init__(
        self,
        path: str | list[str] | None = None,
        test_path: str | None = None,
        columns: dict[str, str] | None = None,
        weights: list[float] | None = None,
        hub_config: str | None = None,
        train_split: str = "train",
        test_split: str = "test",
        answer_kind: Literal["auto", "number", "choice", "letter", "text"] = "auto",
        **kwargs: Any,
    ) -> None:
        self.paths = [published_name(each) for each in ([path] if isinstance(path, str) else path or ())]
        self._published = [name for name in self.paths if name in SETS]
        if not self.paths and test_path is None:
            raise UserError("InstructionJSON reads a file: pass --data.path FILE, or --data.test_path FILE.")
        for field in columns or {}:
            if field not in FIELDS:
                raise UserError(f"data.columns: there is no field '{field}': {did_you_mean(field, FIELDS)}")
        if weights is not None and not (
            len(weights) == len(self.paths) and all(0 < each <= _MOST_WEIGHT for each in weights)
        ):
            raise UserError(
                f"data.weights has to be one number above 0, and at most {_MOST_WEIGHT:,}, for each of the "
                f"{len(self.paths)} paths, not {weights}."
            )
        self.path = path
        self.test_path = test_path
        self.columns = columns
        self.weights = weights
        self.hub_config = hub_config
        self.train_split = train_split
        self.test_split = test_split
        self.answer_kind = answer_kind
        named = [test_path] if test_path else self.paths
        self.set_name = "+".join(dict.fromkeys(Path(each).stem for each in named))
        if self.set_name in SETS:  # which is tested on by this name
            self.set_name += "-train"
        if self._published and test_path is None and kwargs.get("test_sets") is None:
            own = [self.set_name] if len(self._published) < len(self.paths) else []
            specs = [SETS[name].spec for name in self._published]
            kwargs["test_sets"] = [*sets_of(one for spec in specs for one in spec.judged_on or (spec.name,)), *own]
        super().__init__(**kwargs)
        self._sizes: list[int] = []
        self._owners: dict[str, ReasoningDataModule] = {}
        self._kinds: dict[str, tuple[Kind, tuple[str, ...]]] = {}
        #: The files of which it has been said what their answers are.
        self._said: set[str] = set()

    def rows(self, split: Split) -> list[dict[str, Any]]:
        """The rows of the training files or of the test file, or the held-out rows where there is no test file."""
        if split == "train":
            return self._training_rows()
        if self.test_path is not None:
            return self._infer(self._read(self.test_path, self.test_split), self.test_path)
        rows = self._training_rows()
        examples = [self.example(row, index) for index, row in enumerate(rows)]
        _, held_out = self.division(examples)
        if not held_out:
            raise UserError("Nothing to test on: pass --data.test_path FILE, or hold rows out with --data.val_size.")
        # They keep the names that they have in their file.
        return [{**rows[index], "id": examples[index].id} for index in held_out]

    def distribution(self, name: str) -> Literal["in", "out"] | None:
        """Whether rows of set ``name`` are trained on, where only published sets are."""
        found = {self._set(one).distribution(name) if one in SETS else None for one in self.paths}
        return "in" if "in" in found else "out" if found == {"out"} else None

    @property
    def sets_without_rows(self) -> tuple[str, ...]:
        """The set itself, where the rows to test on are held out of the training rows."""
        return () if self.test_path is not None else (self.set_name,)

    def _training_rows(self) -> list[dict[str, Any]]:
        if not self.paths:
            raise UserError("InstructionJSON has no training file: pass --data.path FILE.")
        parts = [self._of_set(path) if path in SETS else self._read(path, self.train_split) for path in self.paths]
        self._sizes = [len(part) for part in parts]
        rows = [row for part in parts for row in part]
        if own := [row for row in rows if _SET not in row]:
            self._infer(own, next(path for path in self.paths if path not in SETS))
        else:
            first = SETS[self.paths[0]]
            self.kind, self.options = first.kind, first.options
        return rows

    def _of_set(self, name: str) -> list[dict[str, Any]]:
        """The training rows of a published set, each with its name."""
        owner = self._owners[name] = self._set(name)
        rows = owner.rows("train")
        self._checksums.update(owner._checksums)
        return [{**row, _SET: name} for row in rows]

    def _weighted(self, rows: list[int]) -> list[int]:
        if self.weights is None:
            return rows
        taken: list[int] = []
        begin = 0
        for number, (size, weight) in enumerate(zip(self._sizes, self.weights, strict=True)):
            own = [row for row in rows if begin <= row < begin + size]
            begin += size
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            rest = torch.randperm(len(own), generator=generator)[: round((weight % 1) * len(own))]
            taken += own * int(weight) + [own[i] for i in sorted(rest.tolist())]
        return taken

    def _read(self, path: str, split: str) -> list[dict[str, Any]]:
        file = Path(os.path.expanduser(path))
        if file.suffix in _ENDINGS or file.exists() or path.count("/") != 1:
            rows = read_rows(file, self.columns)
            self._checksums[path] = blob_sha1(file)
            return rows
        return checked_rows(self._from_hub(path, split), f"{path} ({split})", self.columns)

    def _from_hub(self, name: str, split: str) -> Dataset:
        try:
            with at_hand(datasets.config):
                splits = datasets.load_dataset(name, self.hub_config)
        except Exception as error:  # what the library raises differs from fault to fault and version to version
            raise UserError(
                f"{name}: no such file, and as a hub dataset it cannot be loaded: {first_line(error).rstrip('.')}. "
                "Check the name, and the network."
            ) from error
        if split not in splits:
            raise UserError(
                f"{name} has no split '{split}': {did_you_mean(split, map(str, splits))} "
                "(--data.train_split, --data.test_split)"
            )
        return splits[split]

    def _infer(self, rows: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
        """The rows; the kinds of their answers are seen from them, and said."""
        answers = [row["answer"] for row in rows if row["answer"] is not None]
        if self.answer_kind == "auto":
            self._kinds = infer_kinds(answers)
        else:
            options = tuple(sorted(set(answers))) if self.answer_kind in ("choice", "letter") else ()
            self._kinds = dict.fromkeys(answers, (self.answer_kind, options))
        counts = Counter(self._kinds[answer] for answer in answers)
        # A row without an answer, which is only predicted, is taken to be as most are.
        declared: Kind = "text" if self.answer_kind == "auto" else self.answer_kind
        self.kind, self.options = counts.most_common(1)[0][0] if counts else (declared, ())
        self._say(path, [row["answer"] for row in rows], counts)
        return rows

    def _say(self, path: str, answers: Sequence[str | None], counts: Mapping[Any, int]) -> None:
        """What the answers of a file are taken for, and which rows have none; once a file."""
        if path in self._said or not counts:
            return
        self._said.add(path)
        blank = [number for number, answer in enumerate(answers, start=1) if answer is None]
        if blank:
            named = f"{', '.join(map(str, blank[:5]))}{', ...' if len(blank) > 5 else ''}"
            rank_zero_info(f"{path}: {len(blank)} of {len(answers)} rows have no gold answer (row {named})")
        if self.answer_kind == "auto":
            found = ", ".join(f"{count} {kind}" for (kind, _), count in counts.items())
            rank_zero_info(f"{path}: answers by kind: {found} (--data.answer_kind sets one for all)")

    def example(self, row: dict[str, Any], index: int) -> Example:
        """The row with the kind of its own answer; a published set's is what that set makes of it."""
        if name := row.get(_SET):
            return replace(self._owners[name].example(row, index), set=self.set_name)
        kind, options = self._kinds.get(row.get("answer") or "", (self.kind, self.options))
        return replace(super().example(row, index), kind=kind, options=options)


def infer_kinds(answers: Sequence[str]) -> dict[str, tuple[Kind, tuple[str, ...]]]:
    """The kind of every answer and its options.

    All together are numbers, the letters of options, or a choice among at most ten answers that repeat. Where they are
    none of these, numbers are told from the others, and these are judged in the same way; what is left is free text.
    """
    distinct = sorted(set(answers))
    found: tuple[Kind, tuple[str, ...]] = ("text", ())
    if all(map(_is_number, distinct)):
        found = ("number", ())
    elif len(distinct) > 1 and set(distinct) <= set("ABCDE"):
        found = ("letter", tuple("ABCDE"[: "ABCDE".index(distinct[-1]) + 1]))
    elif len(distinct) <= _MOST_OPTIONS and len(distinct) < len(answers):
        found = ("choice", tuple(distinct))
    elif any(map(_is_number, distinct)):
        numbers = [answer for answer in answers if _is_number(answer)]
        others = [answer for answer in answers if not _is_number(answer)]
        return infer_kinds(numbers) | infer_kinds(others)
    return dict.fromkeys(distinct, found)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
