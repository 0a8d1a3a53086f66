"""What a report is made of: sections of figures, each with its numbers in a table, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters_pl.reports.collect import RunSeen
from adapters_pl.reports.drawing import Look, look
from adapters_pl.reports.tables import Table
from adapters_pl.reports.texts import in_one_line

#: The most characters of a run's name in a figure.
_NAME = 30


@dataclass
class Figure:
    """A figure.

    Attributes:
        name: of its files.
        title: above it; a plain sentence or its beginning.
        caption: units, n, and what bars and points are.
        draw: makes it, a figure of matplotlib.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Any]


@dataclass
class Side:
    """What one run answered."""

    run: str
    output: str
    prediction: str
    correct: bool


@dataclass
class Row:
    """A tested row that two runs answered, one of them rightly."""

    id: str
    gold: str
    sides: tuple[Side, Side]


@dataclass
class RowsApart:
    """Rows of a set on which two runs differ.

    Attributes:
        title: the set and the runs.
        said: how many rows there are, and how many are shown.
        rows: some of them.
    """

    title: str
    said: str
    rows: list[Row]


@dataclass
class Section:
    """A section.

    Attributes:
        id: its anchor.
        title: in the contents.
        text: what is shown, a paragraph each.
        parts: figures, tables and rows in their order.
        missing: what could not be shown and why, a line each.
    """

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    parts: list[Figure | Table | RowsApart] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Shown:
    """A run with the letter by which tables and figures know it, and its look."""

    letter: str
    run: RunSeen
    look: Look

    @property
    def label(self) -> str:
        """Letter and name, as long as a figure has room for."""
        return f"{self.letter}  {in_one_line(self.run.name, _NAME)}"

    @property
    def called(self) -> str:
        """The same in a sentence."""
        return f"{self.letter} ({in_one_line(self.run.name, 60)})"

    def said(self, error: object) -> str:
        """A message about the run's files, by its name: where it lies is nobody's business."""
        return in_one_line(str(error).replace(str(self.run.path), self.run.name), 300)


def lettered(runs: Sequence[RunSeen]) -> list[Shown]:
    """The runs by letters: A to Z, then A1, B1 and so on."""
    return [
        Shown(chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else ""), run, look(place))
        for place, run in enumerate(runs)
    ]


def listed(names: Sequence[object], most: int = 12) -> str:
    """Names in a sentence; of more than ``most`` the rest is counted."""
    shown = ", ".join(in_one_line(name, 60) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
