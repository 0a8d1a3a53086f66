"""``adapters-pl base``: which bases have a name, and bringing them into the cache."""

from __future__ import annotations

from argparse import Namespace

from rich.table import Table

from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.tables import print_table
from adapters_pl.models.named import EMBEDDED, NAMED, at_hand, fetch


def main(given: Namespace, debug: bool = False) -> int:
    """Run one of the two actions."""
    return _list() if given.action == "list" else _fetch(given.names)


def _list() -> int:
    table = Table(title="Bases by name", title_justify="left")
    for heading in ("name", "MiB", "at hand", "licence", "made from"):
        table.add_column(heading, justify="right" if heading == "MiB" else "left")
    for name, folder in EMBEDDED.items():
        size = sum(file.stat().st_size for file in folder.iterdir())
        table.add_row(name, f"{size / 2**20:,.0f}", "in the package", "Apache-2.0", "generated text")
    for name, base in NAMED.items():
        table.add_row(name, f"{base.size / 2**20:,.0f}", "cache" if at_hand(base) else "-", base.licence, base.hub_id)
    print_table(table)
    print("--model.base takes a name, a directory, a GGUF file or a hub id.")
    return 0


def _fetch(names: list[str]) -> int:
    for name in names:
        if name not in NAMED:
            why = "came with the package" if name in EMBEDDED else "is no base that can be fetched"
            raise UserError(f"'{name}' {why}: {did_you_mean(name, NAMED)}")
    for name in names:
        base = NAMED[name]
        print(f"{name}: {base.path} (in the cache)" if at_hand(base) else f"{name}: {fetch(base)}")
    return 0
