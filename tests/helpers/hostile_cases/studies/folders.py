"""The directory of a study that comes from a stranger, gone on with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers import hostile_inputs
from tests.helpers.hostile_cases.common import (
    CANARY,
    as_folder,
    as_link,
    both,
    json_with,
    place,
    put,
    remove,
)
from tests.helpers.hostile_cases.studies.files import (
    ABOUT,
    AGAIN,
    FOLDER,
    NEW,
    STORED,
    TRIAL,
    Case,
    stand_in,
    study_file,
)


def study_folder_cases() -> Iterator[hostile_inputs.Case]:
    """The directory of a study that comes from a stranger, gone on with."""
    yield Case("study/again nothing wrong", AGAIN, stand_in, "fine")
    yield Case("study/open nothing wrong", [*AGAIN, "--name", "open"], stand_in, "fine")
    abouts: dict[str, str | bytes] = {
        "empty": "",
        "a list": "[1]",
        "a text": "x",
        "deep": "axes: " + "[" * 100_000,
        "binary": b"\xff\xfe[",
        "70 KB": "axes: {}\n" + " " * 70_000,
        "nothing of a study": "model: {}",
        "axes a list": "axes: [1]",
        "axes a text": "axes: x",
        "axes null": "axes: null",
        "set a list": "axes: {adapter.rank: [2, 3]}\nset: [1]",
        "set a text": "set: x",
        "grids a text": "axes: {adapter.rank: [2, 3]}\ngrids: x",
        "configs a mapping": "configs: {a: 1}",
        "python tag": f"axes: !!python/object/apply:os.mkdir ['{CANARY}']",
        "escapes": 'axes: {"\\e[31mred": ["\\e]0;x\\a"]}',
        "another": "axes: {adapter.rank: [2, 4]}",
        "long values": f"axes: {{adapter.rank: [{'x' * 50_000}]}}",
        "a secret": "set: {data.token: hf_abcdefghijklmnopqrstuvwxyzabcdef}",
    }
    for what, content in abouts.items():
        yield Case(
            f"study/about {what}", AGAIN, both(stand_in, put(ABOUT, content)), "any", ("study|config",), how=what
        )
    paths = {"study.yaml": ABOUT, "study.db": STORED, "trial": TRIAL, "trial.json": TRIAL / "trial.json"}
    paths |= {
        "results.json": TRIAL / "results.json",
        "lock": TRIAL / ".trial.lock",
        "study's lock": FOLDER / ".study.lock",
    }
    paths |= {"log": TRIAL / "output.log", "metrics": TRIAL / "metrics.csv", "config.yaml": TRIAL / "config.yaml"}
    for folder in ("grid", "open"):
        words = AGAIN if folder == "grid" else [*AGAIN, "--name", "open"]
        for name, path in paths.items():
            if path == STORED and folder == "open":
                continue
            path = Path("studies") / folder / path.relative_to(FOLDER)
            out = "../" * len(path.parts) + "elsewhere/out"
            for what, spoil in {
                "missing": lambda path=path: remove(path)() if path.exists() else None,
                "a folder": both(_gone(path), as_folder(path)),
                "a pipe": both(_gone(path), lambda path=path: (path.parent.mkdir(exist_ok=True), os.mkfifo(path))),
                "a file": both(_gone(path), put(path, "x")),
                "a link out": both(_gone(path), as_link(path, out)),
                "a link to a file out": both(put("../elsewhere/out", "x"), _gone(path), as_link(path, out)),
                "a link to a folder out": both(
                    lambda: Path("../elsewhere/out").mkdir(), _gone(path), as_link(path, out)
                ),
                "a link to itself": both(_gone(path), as_link(path, path.name)),
            }.items():
                if (name, what) in (("study.yaml", "a file"), ("study.yaml", "a folder")) and folder == "open":
                    continue
                yield Case(f"study/{folder} {name} {what}", words, both(stand_in, spoil), "any", how=f"{path}: {what}")
    yield Case("study/folder a link", AGAIN, both(stand_in, _elsewhere), "any", how="the study is a link")
    yield Case(
        "study/of a folder of something else", [*NEW, "--name", "x"], both(study_file(), put("studies/x/a.txt", "x"))
    )
    results: dict[str, Callable[[dict[str, Any]], Any]] = {
        "accuracy NaN": lambda r: next(iter(r["sets"].values())).update(accuracy=float("nan")),
        "accuracy infinite": lambda r: next(iter(r["sets"].values())).update(accuracy=float("inf")),
        "accuracy huge": lambda r: next(iter(r["sets"].values())).update(accuracy=10**400),
        "accuracy negative": lambda r: next(iter(r["sets"].values())).update(accuracy=-7),
        "accuracy a text": lambda r: next(iter(r["sets"].values())).update(accuracy="x"),
        "accuracy true": lambda r: next(iter(r["sets"].values())).update(accuracy=True),
        "distribution a list": lambda r: next(iter(r["sets"].values())).update(distribution=[1]),
        "sets a list": lambda r: r.update(sets=[1]),
        "sets empty": lambda r: r.update(sets={}),
        "sets of escapes": lambda r: r.update(sets={"\x1b[31m[bold]x[/]": next(iter(r["sets"].values()))}),
        "sets of markup": lambda r: r.update(
            sets={n: next(iter(r["sets"].values())) for n in ("[/no]", "[bold]", "\ud800")}
        ),
    }
    for what, change in results.items():
        spoil = both(stand_in, json_with(TRIAL / "results.json", change))
        yield Case(f"study/results {what}", AGAIN, spoil, "any", how=f"results.json of a complete trial: {what}")

        def of_open(change: Callable[[dict[str, Any]], Any] = change) -> None:
            shutil.copytree(TRIAL, "studies/open/trial-0")
            json_with("studies/open/trial-0/results.json", change)()

        words = [*AGAIN, "--name", "open"]
        yield Case(f"study/open results {what}", words, both(stand_in, of_open), "any", how=f"of an open trial: {what}")
    for what, value in {"text": "x", "null": None, "list": [1], "huge": "x" * 10**6}.items():
        spoil = json_with(TRIAL / "trial.json", place("state", value=value))
        yield Case(f"study/trial.json state {what}", AGAIN, both(stand_in, spoil), "any")


def _gone(path: Path) -> Callable[[], None]:
    def work() -> None:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)

    return work


def _elsewhere() -> None:
    shutil.move(FOLDER, "../elsewhere/grid")
    FOLDER.symlink_to("../../elsewhere/grid")
