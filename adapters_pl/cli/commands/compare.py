"""``compare``: test results of several runs side by side, and whether their differences could be chance."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from adapters_pl.answers import protocol_named
from adapters_pl.evaluation.report import percent, points, published_table
from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.tables import print_table
from adapters_pl.reports.comparison import Comparison, compare, differences, read_run


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Set, rows in common, both accuracies, the difference with its interval, the changed rows, p."""
    first, second = comparisons[0].first, comparisons[0].second
    table = Table(title=f"{second} against {first} (the first), in %", title_justify="left")
    for heading in ("set", "rows", "first", "second", "difference", "95% interval", "only first", "only second", "p"):
        # Nothing is cut short where the terminal is narrow: sets that begin alike have to be told apart.
        table.add_column(heading, justify="left" if heading == "set" else "right", overflow="fold")
    for c in comparisons:
        low, high = c.interval
        table.add_row(
            c.set,
            str(c.n),
            percent(c.accuracies[0]),
            percent(c.accuracies[1]),
            points(c.accuracies[1], c.accuracies[0]),
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            str(c.worse),
            str(c.better),
            f"{c.p:.3g}",
        )
    return table


def find_run(name: str, root: Path) -> Path:
    """The run's directory: a path, or a run's name below ``root``.

    Raises:
        UserError: there is none; the message offers the nearest names.
    """
    for path in (Path(name), root / name):
        if path.is_dir():
            return path
    known = [path.parent.name for path in root.glob("*/results.json")]
    raise UserError(f"run '{name}' is not there, nor in {root}: {did_you_mean(name, known)}")


def main(options: Namespace, debug: bool = False) -> int:
    """Compare the first run with each of the others."""
    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}; it must be at least 0.")
    if len(options.runs) < 2:
        raise UserError("compare takes two runs or more: adapters-pl compare RUN RUN ...")
    if options.protocol is not None:
        protocol_named(options.protocol)
    first, *others = [read_run(find_run(name, options.root), options.protocol) for name in options.runs]
    for other in others:
        found = compare(first, other, options.seed)
        if not found:
            raise UserError(f"{first.name} and {other.name} have no tested row in common.")
        print_table(comparison_table(found))
        for note in differences(first.results, other.results):
            print(f"note: {note}")
    for run in (first, *others):
        tested = run.results.get("config")
        if isinstance(tested, dict) and (table := published_table(run.results["sets"], tested, run.trained)):
            print(f"{run.name}:")
            print_table(table)
    return 0
