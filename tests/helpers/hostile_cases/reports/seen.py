"""Broken files of what is reported and listed, and what is typed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers.hostile_cases.common import (
    as_fifo,
    as_folder,
    as_link,
    both,
    cut,
    json_with,
    place,
    put,
    remove,
    shortened,
    write,
)
from tests.helpers.hostile_cases.reports.texts import LIST, ON_STUDY, OUT, REPORT, SEEN, STUDY, TRIAL, is_safe
from tests.helpers.hostile_inputs import Case


def _broken(path: Path) -> dict[str, Callable[[], Any]]:
    return {
        "missing": remove(path),
        "empty": put(path, ""),
        "no JSON": put(path, "{[x"),
        "cut": cut(path, 0.6),
        "a list": put(path, "[1]"),
        "a number": put(path, "3"),
        "a huge number": put(path, "9" * 5000),
        "null": put(path, "null"),
        "binary": put(path, bytes(range(256)) * 9),
        "UTF-16": lambda: path.write_bytes(path.read_text().encode("utf-16")),
        "deep": put(path, '{"sets": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "70 MB": lambda: path.write_text(path.read_text() + " " * (70 << 20)),
        "a folder": as_folder(path),
        "a pipe": as_fifo(path),
        "a dangling link": as_link(path, "nowhere"),
        "a link to itself": as_link(path, path.name),
        "a link out of it": _linked_out(path),
        "a link to zeros": as_link(path, "/dev/zero"),
        "a link without an end": as_link(path, "/proc/self/pagemap"),
    }


def _linked_out(path: Path) -> Callable[[], None]:
    def work() -> None:
        shutil.copy(path, "../elsewhere/copy")
        as_link(path, "../../../elsewhere/copy" if path.parent.name != "trial-0" else "../../../../elsewhere/copy")()

    return work


def seen_cases() -> Iterator[Case]:
    """Broken files in what is reported and listed; whatever is wrong with one is a line beside the rest."""
    for file in (
        *(SEEN / "results.json", SEEN / "fit.json", SEEN / "config.yaml", SEEN / "metrics.csv"),
        *(TRIAL / "trial.json", STUDY / "study.yaml"),
    ):
        ours = ON_STUDY if STUDY in file.parents else REPORT
        for what, spoil in _broken(file).items():
            gone = file.name == "study.yaml" and what in ("missing", "a folder", "a pipe", "a dangling link")
            expect = "any" if gone or "link to" in what else "fine"
            yield Case(f"report/{file.name} {what}", ours, spoil, expect, how=f"{file}: {what}", after=is_safe)
            yield Case(f"runs/{file.name} {what}", LIST, spoil, "fine", how=f"{file}: {what}")
    predictions = SEEN / "predictions/sums.jsonl"
    for what, spoil in _broken(predictions).items():
        if what in ("a link out of it", "70 MB"):
            continue
        yield Case(f"report/predictions {what}", REPORT, spoil, "fine", how=f"predictions: {what}", after=is_safe)
    out = both(_linked_out(SEEN / "results.json"), lambda: shutil.move(SEEN / "predictions", "../elsewhere/p"))
    linked = both(out, as_link(SEEN / "predictions", "../../../elsewhere/p"))
    yield Case("report/predictions a folder out of it", REPORT, linked, "fine", how="links out of the run")
    yield Case("compare/links out of the run", ["compare", "a-1", "b-1", "--root", "seen"], linked, says=("link",))
    for what, to in {"lock": ".fit.lock", "trial's lock": "../grid/trial-0/.trial.lock"}.items():
        running = both(
            json_with(SEEN / "fit.json", place("state", value="running")),
            json_with(TRIAL / "trial.json", place("state", value="running")),
            put("../elsewhere/precious", "precious"),
        )
        file = SEEN / to
        spoil = both(running, as_link(file, os.path.relpath("../elsewhere/precious", file.resolve().parent)))
        yield Case(f"runs/{what} a link", LIST, spoil, "fine", how="a lock that is a link out of the run")
        yield Case(f"runs/{what} a pipe", LIST, both(running, as_fifo(file)), "fine", how="a lock that is a pipe")
    yield Case("report/trial a link", ON_STUDY, _moved(TRIAL), "fine", how="a trial that lies elsewhere")
    yield Case("runs/trial a link", LIST, _moved(TRIAL), "fine", how="a trial that lies elsewhere")
    yield Case("runs/trial a file", LIST, both(remove(TRIAL), put(TRIAL, "x")), "fine")
    odd = lambda: [(STUDY / f"trial-{name}").mkdir() for name in ("x", "-1", "9" * 200, "\u0663", "1.5", " ")]  # noqa: E731
    yield Case("report/trials of odd names", ON_STUDY, odd, "fine", after=is_safe)
    yield Case("runs/trials of odd names", LIST, odd, "fine")


def _moved(folder: Path) -> Callable[[], None]:
    return lambda: (shutil.move(folder, "../elsewhere/moved"), as_link(folder, "../../../elsewhere/moved")())  # type: ignore[func-returns-value]


def report_word_cases() -> Iterator[Case]:
    """What is typed behind ``report`` and ``runs``."""
    for words in (
        [],
        ["a-1"],
        ["a-1", "--root", "seen"],
        ["no-such", *OUT],
        ["", *OUT],
        [".", *OUT],
        ["..", *OUT],
        ["/", *OUT],
        ["seen", *OUT],
        ["seen/a-1/results.json", *OUT],
        ["a-1", "a-1", *OUT],
        ["a" * 5000, *OUT],
        ["a/" * 3000, *OUT],
        ["~nobody-of-this-name/x", *OUT],
        ["\udcff", *OUT],
        ["a\nb", *OUT],
        ["\x1b[31mred", *OUT],
        ["a-1", "--root", "nowhere", "--out", "out"],
        ["a-1", "--root", "sums.json", "--out", "out"],
        ["a-1", "--root", "", "--out", "out"],
        ["a-1", "--root", "~nobody-of-this-name", "--out", "out"],
        ["a-1", "--root", "seen", "--out", ""],
        ["a-1", "--root", "seen", "--out", "."],
        ["a-1", "--root", "seen", "--out", "seen"],
        ["a-1", "--root", "seen", "--out", "sums.json"],
        ["a-1", "--root", "seen", "--out", "/dev/null"],
        ["a-1", "--root", "seen", "--out", "/proc/x"],
        ["a-1", "--root", "seen", "--out", "a" * 300],
        ["a-1", "--root", "seen", "--out", "~nobody-of-this-name/x"],
        ["a-1", *OUT, "--rows", "-1"],
        ["a-1", *OUT, "--rows", "x"],
        ["a-1", "b-1", *OUT, "--rows", "9" * 30],
        ["a-1", *OUT, "--no_such"],
        ["a-1", *OUT, "--config", "x"],
    ):
        name = " ".join(map(shortened, words)) or "nothing"
        elsewhere = words[-1:] in (["/dev/null"], ["/proc/x"])  # where the user says
        yield Case(f"report/{name}", ["report", *words], expect="any", leads_out=elsewhere)
    for words in (
        ["--root", "nowhere"],
        ["--root", "sums.json"],
        ["--root", ""],
        ["--root", "/"],
        ["--root", "base"],
        ["--root", "~nobody-of-this-name/x"],
        ["--root", "a" * 5000],
        ["--root", "\udcff"],
        ["--json", "--root", "base"],
        ["stray"],
        ["--no_such"],
    ):
        yield Case(f"runs/{' '.join(map(shortened, words))}", ["runs", *words], expect="any")
    earlier = "out/report.html"
    for what, spoil in {
        "another page": put(earlier, "<html>mine</html>"),
        "another page that says so late": put(
            earlier, "x" * 5000 + '<meta name="generator" content="adapters-pl report">'
        ),
        "a page that is a pipe": lambda: (Path("out").mkdir(), os.mkfifo(earlier)),
        "an earlier one and a file": both(_earlier, put("out/mine.txt", "x")),
        "an earlier one with links": both(
            _earlier, put("../elsewhere/mine", "x"), as_link("out/figures", "../../elsewhere")
        ),
        "a link": both(lambda: Path("../elsewhere/d").mkdir(), as_link("out", "../elsewhere/d")),
        "a link to an earlier one": both(
            _earlier, lambda: shutil.move("out", "../elsewhere/o"), as_link("out", "../elsewhere/o")
        ),
    }.items():
        yield Case(f"report/out holds {what}", REPORT, spoil, "any", how=f"--out holds {what}")
    yield Case("runs/root a link to itself", ["runs", "--root", "loop"], as_link("loop", "loop"), "any")
    odd = both(
        as_link("seen/loop", "loop"), as_link("seen/away", "nowhere"), lambda: os.mkfifo("seen/pipe"), put("seen/x", "")
    )
    yield Case("runs/root of odd things", LIST, odd, "fine", how="links and a pipe beside the runs")


def _earlier() -> None:
    write("out/report.html", '<html><head><meta name="generator" content="adapters-pl report">')
    Path("out/figures").mkdir()
    Path("out/tables").mkdir()
