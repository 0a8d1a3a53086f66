"""What a study found, as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from adapters_pl.evaluation.metrics import mean_interval
from adapters_pl.evaluation.report import percent
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.terminal import to_look_at
from adapters_pl.studies.asked import SEED, Values, telling_apart
from adapters_pl.studies.folder import TrialFolder, mean_accuracy
from adapters_pl.studies.ledger import COMPLETE, Slot

#: So many sets have a column each.
_FEW = 4


def described(values: Values) -> str:
    """The values of a trial in a line."""
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items()) or "values to be drawn"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.removeprefix("methods/").removeprefix("models/").removesuffix(".yaml")


def results_table(name: str, folder: Path, slots: Sequence[Slot]) -> Table:
    """A line for every combination of values, those that differ in the seed alone together.

    The accuracy is the mean over the test sets. Over several seeds it is their mean, with the 95% interval of that
    mean by Student's t. The sets that the training rows were drawn from and the others follow apart where that is
    known, and a few sets each by itself where it is not.
    """
    keys = telling_apart([slot.values for slot in slots])
    seeds = any(SEED in slot.values for slot in slots)
    groups: dict[str, list[Slot]] = {}
    for slot in slots:
        own = {key: value for key, value in slot.values.items() if key != SEED}
        groups.setdefault(json.dumps(own) if own or seeds else str(slot.number), []).append(slot)
    figures = {slot.number: _accuracies(folder, slot.number) for slot in slots if slot.state == COMPLETE}
    columns = _columns(list(figures.values()))
    table = Table(title=f"{_plain(name)}: accuracy in %, mean over the test sets", title_justify="left")
    for key in keys:
        table.add_column(_plain(key.rpartition(".")[2]))
    table.add_column("trials")
    table.add_column("state")
    for heading in ("accuracy", *(("95% interval over seeds",) if seeds else ()), *columns):
        table.add_column(_plain(heading), justify="right")
    for group in groups.values():
        done = [slot for slot in group if slot.accuracy is not None]
        row = [_short(group[0].values[key]) if key in group[0].values else "" for key in keys]
        row += [", ".join(str(slot.number) for slot in group), _states(group)]
        found = [slot.accuracy for slot in done if slot.accuracy is not None]
        middle, low, high = mean_interval(found) if found else (None, None, None)
        row.append("-" if middle is None else percent(middle))
        if seeds:
            row.append("-" if low is None or high is None else f"{100 * max(0, low):.1f} to {100 * min(1, high):.1f}")
        for names in columns.values():
            means = [mean_accuracy({n: s for n, s in figures[slot.number].items() if n in names}) for slot in done]
            known = [mean for mean in means if mean is not None]
            row.append(percent(sum(known) / len(known)) if known else "-")
        table.add_row(*map(_plain, row))
    return table


def _plain(text: str) -> str:
    """A text of which rich takes nothing for markup, nor a terminal for a command."""
    return escape(to_look_at(text))


def _columns(figures: Sequence[dict[str, dict[str, Any]]]) -> dict[str, list[str]]:
    """The headings of further means, and the sets that each is of."""
    sets = {name: each.get("distribution") for by_set in figures for name, each in by_set.items()}
    apart = {kind: [name for name, of in sets.items() if of == kind] for kind in ("in", "out")}
    if all(apart.values()):
        return apart
    return {name: [name] for name in sets} if 1 < len(sets) <= _FEW else {}


def _states(group: Sequence[Slot]) -> str:
    counts: dict[str, int] = {}
    for slot in group:
        counts[slot.state] = counts.get(slot.state, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _accuracies(folder: Path, number: int) -> dict[str, dict[str, Any]]:
    """The figures of a trial by set; none where its directory lies on another machine."""
    try:
        return TrialFolder(folder, number).accuracies()
    except UserError:
        return {}
