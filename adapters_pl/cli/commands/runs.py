"""``adapters-pl runs``: the runs and studies of a folder, with what they found."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters_pl.evaluation.report import percent
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.tables import print_table
from adapters_pl.inputs.terminal import to_look_at
from adapters_pl.reports.collect import RunSeen, StudySeen, below
from adapters_pl.reports.texts import in_one_line, shown

#: Of more sets than this the table shows the average alone.
_MOST_SETS = 4
#: The most characters of an accuracy that are kept in one line.
_WIDEST = 40
#: The columns of a terminal that is wide enough for that.
_WIDE = 110


def main(options: Namespace, debug: bool = False) -> int:
    """Print the list."""
    if not options.root.is_dir():
        raise UserError(f"There is no folder '{options.root}'; name the folder of runs with --root.")
    found = below(options.root)
    if options.json:
        print(to_look_at(json.dumps([_about(one) for one in found], indent=2, ensure_ascii=False)))
        return 0
    if not found:
        raise UserError(
            f"No run and no study in '{options.root}' yet. Begin with: adapters-pl fit --config quickstart.yaml"
        )
    print_table(runs_table(found))
    for one in found:
        for problem in [*one.problems, *(p for trial in getattr(one, "trials", []) for p in trial.problems)]:
            print(f"note: {in_one_line(problem)}")
    return 0


def runs_table(found: list[RunSeen | StudySeen]) -> Table:
    """Name, method, base, accuracy by set with its interval, trained parameters, state, date; trials below studies."""
    table = Table(title="Runs; accuracy in %, with its 95% interval", title_justify="left")
    runs = [run for one in found for run in (one.trials if isinstance(one, StudySeen) else [one])]
    # A name, and a set with its accuracy, stand in one line where the others then still have room.
    console, longest = Console(), max((len(line) for run in runs for line in _accuracies(run)), default=0)
    fits = longest <= _WIDEST and not (console.is_terminal and console.width < _WIDE)
    for heading in ("name", "method", "base", "accuracy", "trained", "state", "when (UTC)"):
        justify: Literal["left", "right"] = "right" if heading == "trained" else "left"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=fits and heading in ("name", "accuracy"))
    for one in found:
        if isinstance(one, StudySeen):
            table.add_section()
            done = sum(trial.state == "complete" for trial in one.trials)
            state = f"{done} of {len(one.trials)} complete"
            table.add_row(Text(in_one_line(one.name)), f"study of {len(one.axes)} keys", "", "", "", state, "")
            for trial in one.trials:
                table.add_row(*_row(trial))
            table.add_section()
        else:
            table.add_row(*_row(one))
    return table


def _row(run: RunSeen) -> list[Text]:
    trained = run.effort.get("trainable_parameters")
    # As they are: a name may hold what rich takes for markup.
    cells = [run.name, run.method, run.base, "\n".join(_accuracies(run)), "" if trained is None else f"{trained:,}"]
    return [Text(shown(cell)) for cell in (*cells, run.state, run.when[5:])]  # the year is in --json


def _accuracies(run: RunSeen) -> list[str]:
    if len(run.sets) > _MOST_SETS:
        return [f"average of {len(run.sets)} sets  {percent(run.average)}"]
    lines = []
    for name, figures in run.sets.items():
        interval = figures.get("interval")
        bounds = f" ({percent(interval[0])}-{percent(interval[1])})" if interval else ""
        lines.append(f"{name}  {percent(figures['accuracy'])}{bounds}")
    return lines or ["not tested"]


def _about(one: RunSeen | StudySeen) -> dict[str, Any]:
    if isinstance(one, StudySeen):
        trials = [_about(trial) for trial in one.trials]
        axes = one.axes
        return {"kind": "study", "name": one.name, "path": str(one.path), "axes": axes, "trials": trials}
    keys = ("n", "accuracy", "interval", "base_accuracy", "date")
    about: dict[str, Any] = {"kind": "run", "name": one.name, "path": str(one.path), "state": one.state}
    about |= {"method": one.method, "base": one.base, "data": one.trained_on, "seed": one.seed, "when": one.when}
    about["sets"] = {name: {key: figures.get(key) for key in keys} for name, figures in one.sets.items()}
    took = ("trainable_parameters", "seconds", "peak_bytes", "steps", "error")
    about |= {"average": one.average, **{key: one.effort.get(key) for key in took}, "problems": one.problems}
    if one.trial is not None:
        about["trial"] = one.trial
    return about
