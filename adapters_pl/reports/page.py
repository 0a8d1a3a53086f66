"""One page of everything, beside its figures and tables as files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from adapters_pl import __version__
from adapters_pl.reports.accuracy import accuracy, cost, distribution
from adapters_pl.reports.collect import RunSeen, StudySeen
from adapters_pl.reports.disagreements import disagreements
from adapters_pl.reports.drawing import drawn, styled
from adapters_pl.reports.section import Figure, RowsApart, Section, Shown, lettered, listed
from adapters_pl.reports.studies import study_section
from adapters_pl.reports.tables import Column, Table
from adapters_pl.reports.texts import shown
from adapters_pl.reports.training import forgetting, learning
from adapters_pl.runs.at_once import directory_at_once
from adapters_pl.runs.run import command_line

PAGE = "report.html"
_FOLDERS = ("figures", "tables")
#: By what in its head a page is known as ours.
_MARK = '<meta name="generator" content="adapters-pl report">'
#: The most runs with a row, curve or colour of their own; a table of more rows than the second is folded away.
_RUNS, _OPEN = 12, 16


def write_report(found: Sequence[RunSeen | StudySeen], out: str | Path, rows: int) -> Path:
    """Write the page, ``figures/*.svg|png`` and ``tables/*.csv|tex`` below ``out``, all of it or nothing.

    Args:
        found: runs and studies.
        out: a directory that is new, empty, or holds an earlier report.
        rows: the most rows of a set and a pair of runs on which the runs differ.

    Returns:
        The page.

    Raises:
        UserError: something else is at ``out``, or the system refused.
    """
    sections = make_sections(found, rows)
    title = listed([one.name for one in found], 4)
    return directory_at_once(out, partial(_write, sections, title), "report", _is_report) / PAGE


def make_sections(found: Sequence[RunSeen | StudySeen], rows: int) -> list[Section]:
    """The page's sections; see :func:`write_report`."""
    runs = [one for one in found if isinstance(one, RunSeen)]
    studies = [one for one in found if isinstance(one, StudySeen)]
    chosen, said = runs[:_RUNS], []
    if len(runs) > _RUNS:
        said.append(f"Of {len(runs)} runs the first {_RUNS} named are shown: {_RUNS} can be told apart in a figure.")
    if not runs:
        trials = [trial for study in studies for trial in study.trials]
        chosen = sorted(trials, key=lambda trial: -1.0 if trial.average is None else trial.average, reverse=True)[
            :_RUNS
        ]
        if trials:
            most = f", the {_RUNS} of {len(trials)} with the highest mean accuracy" if len(trials) > _RUNS else ""
            said.append(f"No run was named beside the studies: the runs below are their trials{most}.")
    letters = lettered(chosen)
    sections = [_overview(letters, said)]
    sections += [study_section(study, number) for number, study in enumerate(studies, start=1)]
    if letters:
        sections += [accuracy(letters), distribution(letters), cost(letters), forgetting(letters), learning(letters)]
        sections.append(disagreements(letters, rows))
    return sections


def _overview(letters: Sequence[Shown], said: list[str]) -> Section:
    columns = (
        *(Column("key"), Column("run"), Column("method"), Column("base"), Column("trained on"), Column("seed")),
        *(Column("sets", "count"), Column("mean accuracy, %", "percent", "mean_accuracy"), Column("state")),
        Column("when, UTC", "text", "when"),
    )
    section = Section("runs", "The runs", text=said)
    table = Table("runs", "What was read", columns)
    for one in letters:
        run = one.run
        about = [run.method, run.base or None, run.trained_on or None, run.seed]
        table.rows.append([one.letter, run.name, *about, len(run.sets), run.average, run.state, run.when])
        section.missing += [f"{one.letter}: {one.said(problem)}" for problem in run.problems]
        if error := run.effort.get("error"):
            section.missing.append(f"{one.letter}: training ended with: {one.said(error)}")
        elif (run.path / "crash.log").is_file():
            section.missing.append(f"{one.letter}: a command on this run crashed; its crash.log says where.")
    if letters:
        section.parts.append(table)
    else:
        section.missing.append("There is no run to show.")
    return section


def _is_report(path: Path) -> bool:
    """Whether ``path`` holds an earlier report and nothing else."""
    page = path / PAGE
    if {each.name for each in path.iterdir()} - {PAGE, *_FOLDERS} or not page.is_file():
        return False
    with page.open(encoding="utf-8", errors="replace") as file:
        return _MARK in file.read(2000)


def _write(sections: Sequence[Section], title: str, folder: Path) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    for name in _FOLDERS:
        (folder / name).mkdir()
    parts: dict[str, list[dict[str, Any]]] = {}
    with styled():
        for section in sections:
            parts[section.id] = [_part(part, folder) for part in section.parts]
            for place, part in enumerate(parts[section.id]):
                if part["kind"] == "figure":
                    part["svg"] = Markup(part["svg"])  # drawn here, with every text escaped
                elif part["kind"] == "rows":  # one is looked at, and the others are long
                    part["open"] = place == 0
    # Everything else is escaped: names, texts and messages are those of models and strangers.
    environment = Environment(
        loader=PackageLoader("adapters_pl", "reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        mark=Markup(_MARK),
        title=title,
        sections=sections,
        parts=parts,
        date=datetime.now(UTC).isoformat(sep=" ", timespec="minutes")[:16],
        version=__version__,
        command=shown(command_line()),
    )
    (folder / PAGE).write_text(page, encoding="utf-8")


def _part(part: Figure | Table | RowsApart, folder: Path) -> dict[str, Any]:
    """What the template needs of a part; its files are written."""
    if isinstance(part, Figure):
        figure = drawn(part.draw(), part.name, f"{part.title}. {part.caption}")
        (folder / "figures" / f"{part.name}.svg").write_bytes(figure.svg)
        (folder / "figures" / f"{part.name}.png").write_bytes(figure.png)
        return {"kind": "figure", "figure": part, "svg": figure.inline}
    if isinstance(part, Table):
        (folder / "tables" / f"{part.name}.csv").write_text(part.csv(), encoding="utf-8")
        (folder / "tables" / f"{part.name}.tex").write_text(part.latex(), encoding="utf-8")
        rows = [
            [(cell, column.form == "text") for cell, column in zip(row, part.columns, strict=True)]
            for row in part.shown()
        ]
        return {"kind": "table", "table": part, "rows": rows, "open": len(rows) <= _OPEN}
    return {"kind": "rows", "apart": part, "open": False}
