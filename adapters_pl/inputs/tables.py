"""Tables on the terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table


def print_table(table: Table | Group) -> None:
    """Print to the terminal, or as wide as needed where there is none. Where it is narrow, figures are folded."""
    for part in table.renderables if isinstance(table, Group) else [table]:
        for column in part.columns if isinstance(part, Table) else []:
            column.overflow = "fold"
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)
