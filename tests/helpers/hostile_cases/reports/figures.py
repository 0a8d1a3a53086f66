"""Figures that are none, and more of everything than can be drawn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

from tests.helpers.hostile_cases.common import (
    json_with,
    place,
    put,
)
from tests.helpers.hostile_cases.reports.texts import LIST, ON_STUDY, REPORT, SEEN, STUDY, TRIAL, is_safe
from tests.helpers.hostile_inputs import Case


def figure_cases() -> Iterator[Case]:
    """Figures that are none, and more of everything than can be drawn."""
    huge, results = 10**4000, SEEN / "results.json"
    values: dict[str, Any] = {
        "null": None,
        "text": "x",
        "list": [1],
        "mapping": {"a": [{}]},
        "NaN": float("nan"),
        "infinite": float("inf"),
        "negative": -1,
        "huge": huge,
        "large": 10**299,
        "small": 1e-300,
        "true": True,
    }
    keys = {
        "n": (results, "sets", "sums", "n"),
        "accuracy": (results, "sets", "sums", "accuracy"),
        "interval": (results, "sets", "sums", "interval"),
        "base_accuracy": (results, "sets", "sums", "base_accuracy"),
        "unparsed": (results, "sets", "sums", "unparsed"),
        "settings": (results, "sets", "sums", "settings"),
        "distribution": (results, "sets", "sums", "distribution"),
        "date": (results, "sets", "sums", "date"),
        "digest": (results, "sets", "sums", "predictions_sha256"),
        "config": (results, "config"),
        "protocol": (results, "protocol"),
        "data": (results, "data"),
        "general_text": (results, "general_text"),
        "tokens": (results, "general_text", "tokens"),
        "loss": (results, "general_text", "loss"),
        "parameters": (SEEN / "fit.json", "trainable_parameters"),
        "seconds": (SEEN / "fit.json", "seconds"),
        "peak_bytes": (SEEN / "fit.json", "peak_bytes"),
        "steps": (SEEN / "fit.json", "steps"),
        "written": (SEEN / "fit.json", "written"),
        "error": (SEEN / "fit.json", "error"),
    }
    order = list(values)
    for number, (key, (file, *path)) in enumerate(keys.items()):
        for step in (0, 3, 5, 7, 8):
            kind = order[(number + step) % len(order)]
            spoil = json_with(file, place(*path, value=values[kind]))
            yield Case(f"report/{key} {kind}", REPORT, spoil, "fine", how=f"{key}: {kind}", after=is_safe)
        for kind in ("list", "huge", "NaN"):
            spoil = json_with(file, place(*path, value=values[kind]))
            yield Case(f"runs/{key} {kind}", LIST, spoil, "fine", how=f"{key}: {kind}")
            yield Case(f"runs/{key} {kind} as JSON", [*LIST, "--json"], spoil, "fine", how=f"{key}: {kind}")
    for kind, value in values.items():
        spoil = json_with(TRIAL / "trial.json", place("values", "adapter.rank", value=value))
        yield Case(f"report/value of a trial {kind}", ON_STUDY, spoil, "fine", how=kind, after=is_safe)
        spoil = json_with(TRIAL / "results.json", place("sets", "sums", "accuracy", value=value))
        yield Case(f"report/accuracy of a trial {kind}", ON_STUDY, spoil, "fine", how=kind, after=is_safe)
    for what, spoil in {
        "state a list": json_with(TRIAL / "trial.json", place("state", value=[1])),
        "values a list": json_with(TRIAL / "trial.json", place("values", value=[1])),
        "values empty": json_with(TRIAL / "trial.json", place("values", value={})),
        "number a text": json_with(TRIAL / "trial.json", place("number", value="x")),
        "error a mapping": json_with(TRIAL / "trial.json", place("error", value={"a": [1]})),
        "axes a list": put(STUDY / "study.yaml", "axes: [1, 2]"),
        "axes of numbers": put(STUDY / "study.yaml", "axes: {1: 2, null: 3}"),
        "axes null": put(STUDY / "study.yaml", "axes: null"),
        "aliases that grow": put(
            STUDY / "study.yaml",
            "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]\n" for n in range(9)),
        ),
        "python tag": put(STUDY / "study.yaml", "axes: !!python/object/apply:os.mkdir ['../elsewhere/canary']"),
        "many values": json_with(TRIAL / "trial.json", lambda t: t["values"].update({f"k{n}": n for n in range(500)})),
    }.items():
        yield Case(f"report/study {what}", ON_STUDY, spoil, "fine", how=what, after=is_safe)
        yield Case(f"runs/study {what}", LIST, spoil, "fine", how=what)
    curves = {
        "no numbers": "step,train_loss\n0,x\n1,y\n",
        "huge steps": f"step,train_loss\n0,1\n{'9' * 400},2\n",
        "steps of more digits": f"step,train_loss\n0,1\n{'9' * 5000},2\n",
        "other digits": "step,train_loss\n0,1\n\u00b2,2\n",
        "large and small": "step,train_loss\n0,1e299\n1,-1e299\n2,1e-300\n",
        "all zero": "step,train_loss\n0,0\n1,0\n",
        "backwards": "step,train_loss\n9,1\n5,2\n5,3\n0,4\n",
        "one point": "step,train_loss\n0,1\n",
        "columns twice": "step,step,train_loss,train_loss\n0,1,2,3\n",
        "long rows": "step,train_loss\n0,1,2,3,4\n",
        "many columns": "step," + ",".join(f"c{n}" for n in range(50_000)) + "\n0," + "1," * 49_999 + "1\n",
        "a long field": "step,train_loss\n0," + "1" * 500_000 + "\n",
        "many rows": "step,train_loss\n" + "".join(f"{n},1\n" for n in range(300_000)),
        "one line": "step,train_loss" + " " * (20 << 20),
        "open quote": 'step,train_loss\n0,"1\n' + "1,2\n" * 100_000,
    }
    for what, content in curves.items():
        spoil = put(SEEN / "metrics.csv", content)
        yield Case(f"report/curve {what}", REPORT, spoil, "fine", how=what, after=is_safe)

    def sets(count: int) -> Callable[[], None]:
        return json_with(results, lambda r: r.update(sets={f"set{n}": r["sets"]["sums"] for n in range(count)}))

    for count in (40, 3000):
        yield Case(f"report/{count} sets", REPORT, sets(count), "fine", how=f"{count} sets", after=is_safe)
        yield Case(f"runs/{count} sets", LIST, sets(count), "fine", how=f"{count} sets")

    def trials(count: int, *keys: str) -> Callable[[], None]:
        def work() -> None:
            for number in range(2, count):
                shutil.copytree(TRIAL, STUDY / f"trial-{number}")
            for number in range(count):
                values = {key: f"{key}{number}" for key in keys} or {"adapter.rank": number}
                json_with(STUDY / f"trial-{number}/trial.json", place("values", value=values))()

        return work

    yield Case("report/200 trials", ON_STUDY, trials(200), "fine", how="200 trials", after=is_safe)
    keys_of_all = tuple(f"key{n}" for n in range(120))
    yield Case("report/120 keys", ON_STUDY, trials(3, *keys_of_all), "fine", how="120 axes", after=is_safe)
    text_keys = json_with(TRIAL / "trial.json", lambda t: t["values"].update({f"k{n}": "w" * 500 for n in range(90)}))
    yield Case("report/90 long values", ON_STUDY, text_keys, "fine", how="90 long values", after=is_safe)
    yield Case(
        "report/sets of a trial",
        ON_STUDY,
        json_with(TRIAL / "results.json", lambda r: r.update(sets={f"s{n}": r["sets"]["sums"] for n in range(500)})),
        "fine",
        after=is_safe,
    )
