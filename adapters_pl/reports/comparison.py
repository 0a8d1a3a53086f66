"""Two runs, row by row: who was right where, and whether the difference could be chance."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_pl.evaluation.metrics import mcnemar_exact, paired_bootstrap
from adapters_pl.evaluation.results import DIGEST, by_protocol, digest
from adapters_pl.inputs.errors import UserError
from adapters_pl.runs.run import Run

Answers = dict[str, bool]


@dataclass(frozen=True)
class Tested:
    """What one run's tests left.

    Attributes:
        name: of the run.
        results: ``results.json``.
        files: the predictions that the figures under ``sets`` were counted from, by set.
        answers: whether each row was answered rightly, by set and the row's id and gold answer.
        trained: the configuration of its training, if there was one.
    """

    name: str
    results: dict[str, Any]
    files: dict[str, Path]
    answers: dict[str, Answers]
    trained: dict[str, Any] | None


@dataclass(frozen=True)
class Comparison:
    """One set in two runs, over the rows that both answered.

    Attributes:
        set: published name.
        first: the run compared with.
        second: the other run.
        n: rows common to both.
        accuracies: of the first and the second on those, in 0..1.
        better: rows that only the second is right on.
        worse: rows that only the first is right on.
        interval: 95% bootstrap interval of the second's accuracy less the first's.
        p: of McNemar's exact test, two-sided.
    """

    set: str
    first: str
    second: str
    n: int
    accuracies: tuple[float, float]
    better: int
    worse: int
    interval: tuple[float, float]
    p: float


def read_run(path: Path, protocol: str | None = None) -> Tested:
    """The results and predictions below ``path``.

    Args:
        path: the run's directory.
        protocol: of several tests of a set, which one counts; the one that stands, if not given.

    Raises:
        UserError: it is no run, it was not tested, a file is not as it should be, or predictions are not those that
            the figures were counted from.
    """
    run, file = Run(path), path / "results.json"
    if not file.exists():
        raise UserError(f"{path} has no results.json: test it first with adapters-pl test --ckpt_path ...")
    results = run.results()
    if "sets" not in results or not isinstance(results.get("data") or {}, dict):
        raise UserError(f"{file} is not what a test writes; test the run again.")
    results, found = by_protocol(results, protocol)
    if not results["sets"] and protocol is not None:
        raise UserError(
            f"{path} was not tested by {protocol}: adapters-pl test --ckpt_path {path} --data.protocol {protocol}"
        )
    files = {name: run.own(file) for name, file in found.items()}
    answers = {name: _answers(file, results["sets"][name]) for name, file in files.items()}
    answered = {name: rows for name, rows in answers.items() if rows}
    return Tested(path.name, results, files, answered, run.trained_with())


def _answers(file: Path, figures: dict[str, Any]) -> Answers:
    if not os.path.exists(file):  # nor one whose name is too long
        return {}
    if not file.is_file():
        raise UserError(f"{file}: is no file; test the run again.")
    content = file.read_bytes()
    answers: Answers = {}
    right = 0
    lines = content.decode("utf-8", "replace").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            # A row with the same name but another answer is another row.
            answers[json.dumps([record["id"], record["gold"]])] = bool(record["correct"])
            right += bool(record["correct"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{file}: line {number} is no prediction ({error!r}); test the run again.") from error
    if DIGEST in figures:
        belongs = digest(content) == figures[DIGEST]
    else:  # of an earlier version
        accuracy = figures.get("accuracy", right / len(lines))
        belongs = len(lines) == figures["n"] and math.isclose(accuracy, right / len(lines))
    if not belongs:
        raise UserError(f"{file} does not belong to the figures in results.json: test the run again.")
    return answers


def compare(first: Tested, second: Tested, seed: int = 0) -> list[Comparison]:
    """Every set that both runs were tested on, over the rows common to both; sets without such rows are left out."""
    found = []
    for name in first.answers:
        rows = [row for row in first.answers[name] if row in second.answers.get(name, {})]
        if not rows:
            continue
        before = [first.answers[name][row] for row in rows]
        after = [second.answers[name][row] for row in rows]
        better = sum(b and not a for a, b in zip(before, after, strict=True))
        worse = sum(a and not b for a, b in zip(before, after, strict=True))
        found.append(
            Comparison(
                name,
                first.name,
                second.name,
                len(rows),
                (sum(before) / len(rows), sum(after) / len(rows)),
                better,
                worse,
                paired_bootstrap(before, after, seed),
                mcnemar_exact(better, worse),
            )
        )
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What two runs' results do not share and should, for their accuracies to be compared."""
    notes = []
    for name in first["sets"].keys() & second["sets"].keys():
        one, other = (
            results["sets"][name].get("settings", {}).get("protocol", results.get("protocol"))
            for results in (first, second)
        )
        if one != other:
            notes.append(f"{name}: they differ in protocol: {one} and {other}")
    before, after = (results.get("data") or {} for results in (first, second))
    if changed := [path for path in before if after.get(path, before[path]) != before[path]]:
        notes.append(f"they read different files by the name of {', '.join(changed)}")
    return notes
