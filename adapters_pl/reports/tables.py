"""A table of figures in its four forms: on the page, as CSV, as LaTeX, and as what a program reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from adapters_pl.reports.texts import in_one_line

Form = Literal["text", "count", "percent", "points", "seconds", "gib", "loss", "ratio", "step", "p"]

_SHOWN: dict[Form, Callable[[Any], str]] = {
    "text": in_one_line,
    "count": lambda value: f"{value:,}",
    "percent": lambda value: f"{100 * value:.1f}",
    "points": lambda value: f"{100 * value:+.1f}",
    "seconds": lambda value: f"{value:,.1f}",
    "gib": lambda value: f"{value / 2**30:.2f}",
    "loss": lambda value: f"{value:.4f}",
    "ratio": lambda value: f"{value:.3f}",
    "step": lambda value: f"{value:,.10g}",
    "p": lambda value: f"{value:.3g}",
}
#: What of a cell's beginning makes spreadsheets take a text for a formula.
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        heading: with the unit of what is shown.
        form: how its values are shown.
        key: its heading in the CSV file, where values stand as they are: shares in 0..1, seconds, bytes.
    """

    heading: str
    form: Form = "text"
    key: str = ""

    @property
    def csv_heading(self) -> str:
        """The heading in the CSV file."""
        return _no_formula(self.key or self.heading.replace(" ", "_"))


@dataclass
class Table:
    """A table.

    Attributes:
        name: of its files.
        title: above it.
        columns: from the left.
        rows: values as they were recorded; ``None`` is a dash, and nothing in the CSV file.
        note: below it.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: list[list[Any]] = field(default_factory=list)
    note: str = ""

    def shown(self) -> list[list[str]]:
        """Every cell as it stands on the page."""
        return [
            [
                "–" if value is None else _SHOWN[column.form](value)
                for column, value in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]

    def csv(self) -> str:
        """Every digit of every number; a text that a spreadsheet would take for a formula has ``'`` before it."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.csv_heading for column in self.columns])
        for row in self.rows:
            writer.writerow([_cell(column, value) for column, value in zip(self.columns, row, strict=True)])
        return text.getvalue()

    def latex(self) -> str:
        """A ``tabular`` for the package booktabs, with the cells as they are shown."""
        import pandas

        headings: list[str] = []
        for column in self.columns:
            # What is called as one before it, as a set may be, has a space more: pandas takes a heading for a name.
            heading = in_one_line(column.heading)
            headings.append(heading + " " * sum(known.strip() == heading for known in headings))
        frame = pandas.DataFrame(self.shown(), columns=headings, dtype=object)
        layout = "".join("l" if column.form == "text" else "r" for column in self.columns)
        body = frame.to_latex(index=False, escape=True, column_format=layout)
        return "% \\usepackage{booktabs}\n" + body.replace("–", "--")


def _cell(column: Column, value: Any) -> Any:
    return value if column.form != "text" or value is None else _no_formula(value)


def _no_formula(value: Any) -> str:
    text = in_one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
