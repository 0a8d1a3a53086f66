"""The rows on which two runs differ, with what both wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters_pl.inputs.errors import UserError
from adapters_pl.reports.comparison import read_run
from adapters_pl.reports.section import Row, RowsApart, Section, Shown, Side
from adapters_pl.reports.texts import in_one_line, shown

#: The most characters of an output that are shown, and the most pairs of runs.
_OUTPUT, _PAIRS = 700, 6


def disagreements(runs: Sequence[Shown], most: int) -> Section:
    """Rows of which one run's answer is right and the other's is not, for the first run and each of the others.

    Args:
        runs: the first is compared with each other.
        most: rows of a set and pair that are shown.
    """
    section = Section("rows", "Rows on which two runs differ")
    answered: list[tuple[Shown, dict[str, dict[str, dict[str, Any]]]]] = []
    for one in runs:
        try:
            found = read_run(one.run.path, one.run.protocol) if one.run.sets else None
            records = {name: _records(found.files[name]) for name in found.answers} if found else {}
        except UserError as error:
            section.missing.append(one.said(error))
            continue
        if records:
            answered.append((one, records))
    if len(answered) < 2:
        section.missing.append("It takes two runs with predictions to compare their rows.")
        return section
    (first, own), *others = answered
    if len(others) > _PAIRS:
        section.missing.append(f"Of {len(others)} pairs the first {_PAIRS} are shown.")
    for other, theirs in others[:_PAIRS]:
        shared = [name for name in own if name in theirs]
        if not shared:
            section.missing.append(f"{first.letter} and {other.letter} share no set with predictions.")
        for name in shared:
            section.parts.append(_apart(name, (first, own[name]), (other, theirs[name]), most))
    return section


def _records(file: Path) -> dict[str, dict[str, Any]]:
    """The records of a set by id and gold answer, as ``compare`` knows rows; the file was read and checked before."""
    text = file.read_text(encoding="utf-8", errors="replace")
    records = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    return {json.dumps([record["id"], record["gold"]]): record for record in records}


def _apart(
    name: str, first: tuple[Shown, dict[str, Any]], second: tuple[Shown, dict[str, Any]], most: int
) -> RowsApart:
    (one, own), (other, theirs) = first, second
    common = [row for row in own if row in theirs]
    better = [row for row in common if theirs[row]["correct"] and not own[row]["correct"]]
    worse = [row for row in common if own[row]["correct"] and not theirs[row]["correct"]]
    # As many of either kind as there are, and of the other where one has too few.
    half = max(most // 2, most - len(better))
    chosen = [*worse[:half], *better[: most - len(worse[:half])]]
    said = (
        f"Of {len(common):,} rows that both answered, {len(worse):,} are right only in {one.letter} and "
        f"{len(better):,} only in {other.letter}; {len(chosen)} of them are shown."
    )
    rows = [
        Row(
            in_one_line(own[row]["id"], 80),
            in_one_line(own[row]["gold"], 80),
            (_side(one, own[row]), _side(other, theirs[row])),
        )
        for row in chosen
    ]
    return RowsApart(f"{in_one_line(name, 60)}: {one.letter} and {other.letter}", said, rows)


def _side(one: Shown, record: dict[str, Any]) -> Side:
    output = str(record.get("output") or "")
    left = len(output) - _OUTPUT
    text = shown(output[:_OUTPUT]) + (f" … ({left:,} more characters)" if left > 0 else "")
    prediction = record.get("prediction")
    said = "no answer found" if prediction is None else in_one_line(prediction, 120)
    return Side(one.label, text or "(options were scored, nothing was written)", said, bool(record["correct"]))
