"""From judged answers to accuracies, and from accuracies to the table at the end of a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def summarize(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of one set: accuracies in 0..1, with ``base_accuracy`` only where the base was tested too.

    ``unparsed`` counts texts in which no answer was found, ``truncated`` those that met the token limit.
    """
    n = len(records)
    with_base = [record["base_correct"] for record in records if "base_correct" in record]
    return {
        "n": n,
        "accuracy": sum(record["correct"] for record in records) / n,
        "base_accuracy": sum(with_base) / n if with_base else None,
        "unparsed": sum(record["prediction"] is None for record in records),
        "truncated": sum(record["finish"] == "length" for record in records),
    }


def results_table(sets: dict[str, dict[str, Any]], adapter: str | None) -> Table:
    """Set, n, base alone, with adapter, difference; percentages, the difference in percentage points."""
    table = Table(title=f"Accuracy in %{f', {adapter}' if adapter else ', base alone'}", title_justify="left")
    table.add_column("set")
    for heading in ("n", "base alone", "with adapter", "difference"):
        table.add_column(heading, justify="right")
    for name, result in sets.items():
        accuracy, base = result["accuracy"], result["base_accuracy"]
        if adapter is None:
            accuracy, base = None, accuracy
        both = accuracy is not None and base is not None
        table.add_row(
            name,
            str(result["n"]),
            _percent(base),
            _percent(accuracy),
            f"{100 * (accuracy - base):+.1f}" if both else "-",
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def print_table(table: Table) -> None:
    """Print to the terminal, or as wide as needed where there is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
