"""The rows of a set: from its files to examples. It knows no tokenizer, no model and no Trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from adapters_pl.answers import SPECS, SUITES, Kind, SetSpec
from adapters_pl.data.example import FORMS, Example
from adapters_pl.data.files import read_rows
from adapters_pl.data.published import check_published, find_file
from adapters_pl.inputs.errors import UserError

Split = Literal["train", "test"]

#: The class of every set by its published name; filled as classes are defined.
SETS: dict[str, type[Any]] = {}


class SetRows:
    """Reads one set. A class is declarations, and an ``example`` of its own only if its rows need one."""

    #: What the set is; a class that has none is no set but a way of reading rows.
    spec: ClassVar[SetSpec] = SetSpec("")
    #: What is read of ``spec``; a class may find some of it in its files instead.
    set_name: str = ""
    kind: Kind = "text"
    options: tuple[str, ...] = ()
    #: Where its files are looked for, see :func:`adapters_pl.data.published.find_file`.
    root: str | None = None
    files: dict[str, str] | None = None
    #: The git blob SHA-1 of every published file that was read.
    _checksums: dict[str, str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "spec" not in vars(cls):
            return
        cls.spec = replace(cls.spec, called=cls.__name__)
        cls.set_name, cls.kind, cls.options = cls.spec.name, cls.spec.kind, cls.spec.options
        cls.__doc__ = cls.__doc__ or cls.spec.documentation
        if cls.spec.name not in SUITES:
            SPECS.setdefault(cls.spec.name, cls.spec)
            SETS.setdefault(cls.spec.name, cls)

    def rows(self, split: Split) -> list[dict[str, Any]]:
        """The rows of a split, in the file's order.

        Raises:
            UserError: the set has no such file, or the file is not as it should be.
        """
        relative = self.spec.train if split == "train" else self.spec.test
        if relative is None:
            raise UserError(self._no_file(split))
        path = find_file(self.root, relative, self.set_name, self.files)
        self._checksums[relative] = check_published(path, relative, self.set_name)
        return read_rows(path, self.spec.columns if split == "train" else None)

    def example(self, row: dict[str, Any], index: int) -> Example:
        """One row as an :class:`Example`; ``index`` counts the file's rows from 0."""
        example = Example(
            id=str(row["id"]) if row.get("id") is not None else f"{self.set_name}-{index}",
            set=self.set_name,
            instruction=row["instruction"],
            input=row.get("input") or "",
            response=row.get("output") or row.get("answer") or "",
            answer=row.get("answer"),
            kind=self.kind,
            options=self.options,
        )
        return FORMS[self.spec.form](example)

    def examples(self, split: Split) -> list[Example]:
        """All examples of a split; needs no model, so a notebook can look at the data first."""
        examples = [self.example(row, index) for index, row in enumerate(self.rows(split))]
        examples = [example if example.kind else replace(example, kind=self.kind) for example in examples]
        first: dict[str, int] = {}
        for number, example in enumerate(examples, start=1):
            earlier = first.setdefault(example.id, number)
            if earlier != number:
                raise UserError(
                    f"{self.set_name}: rows {earlier} and {number} have the same id '{example.id}'; give each row its "
                    "own, or leave 'id' out."
                )
        return examples

    @property
    def sets_without_rows(self) -> tuple[str, ...]:
        """The set itself, where it has no test rows of its own that training rows could be among."""
        return () if self.spec.test or type(self).rows is not SetRows.rows else (self.set_name,)

    def distribution(self, name: str) -> Literal["in", "out"] | None:
        """Whether set ``name`` is one that the training rows were drawn from; ``None`` where that is not known."""
        own = (self.set_name,) if self.spec.train and not self.spec.judged_on else ()
        drawn_from = self.spec.drawn_from or own
        return ("in" if name in drawn_from else "out") if drawn_from else None

    def _no_file(self, split: Split) -> str:
        if split == "test":
            return f"{self.set_name} has no test file: name the sets to test on with --data.test_sets."
        trained_by = sorted(
            other.__name__
            for other in SETS.values()
            if other.spec.train
            and (self.set_name in other.spec.judged_on or self.spec.judged_on == other.spec.judged_on != ())
        )
        sets = f"train on {' or '.join(trained_by)}, judged on it, or " if trained_by else ""
        return (
            f"{self.set_name} has no training file, so it can only be tested: {sets}"
            "train on your own file with --data InstructionJSON --data.path FILE."
        )
