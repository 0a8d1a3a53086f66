"""Runs and studies of strangers, as ``report``, ``runs`` and ``compare`` see them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

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
from tests.helpers.hostile_inputs import Case
from tests.helpers.runs import config, records, write_run, write_study

_RUN, _OTHER, _STUDY = Path("seen/a-1"), Path("seen/b-1"), Path("seen/grid")
_TRIAL = _STUDY / "trial-0"
_OUT = ["--root", "seen", "--out", "out"]
_REPORT = ["report", "a-1", "b-1", *_OUT]
_ON_STUDY = ["report", "grid", *_OUT]
_LIST = ["runs", "--root", "seen"]
#: Texts that are something else to a browser, a spreadsheet, LaTeX, a terminal, a template or a drawing.
TEXTS = {
    "script": "<script>alert(1)</script>",
    "image": "\"'><img src=http://evil.example/x.png onerror=alert(1)>",
    "closing": "</style></svg></title></bdi>--><iframe src=file:///etc/passwd>",
    "link": "<a href='javascript:alert(1)'>x</a>",
    "entity": "&lt;script&gt;&#60;script&#62;]]><![CDATA[<script>",
    "template": "{{ 7*7 }}{% include '/etc/passwd' %}${7*7}",
    "latex": "\\input{/etc/passwd}\\immediate\\write18{touch x}%&_^~#$\\\\",
    "formula": "=cmd|' /C calc'!A0",
    "formula behind a tab": "\t@SUM(1)",
    "mathematics": "$\\frac{1}{0}$ $x$",
    "markup": "[link=http://evil.example][bold red]x[/] [/nothing]",
    "escapes": "\x1b[2J\x1b]0;x\x07\x1b[31m\x9b31m",
    "lines": "a\nerror: all is lost\r\nb\u2028c\x0bd\x00e",
    "right to left": "\u202eabc\u2066\u200f",
    "surrogate": "\ud800x\udcff",
    "long": "w" * 20_000,
    "words": "word " * 4_000,
    "empty": "",
}
_TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "footer", "nav", "ol", "ul", "li"),
    *("section", "article", "h1", "h2", "h3", "p", "a", "code", "bdi", "strong", "span", "div", "figure"),
    *("figcaption", "details", "summary", "table", "thead", "tbody", "tr", "th", "td"),
    *("svg", "g", "path", "defs", "use", "clippath", "rect", "text", "tspan"),
}


def prepare_seen() -> None:
    """Two runs and a study, as commands leave them."""
    losses = [(step, 2.0 / (step + 1), 1.0 / (step + 1)) for step in range(4)]
    general = {"text": "a book", "tokens": 4096, "loss": 3.25, "base_loss": 3.0}
    write_run(_RUN, {"sums": records("++-+", base="+---")}, losses=losses, general_text=general)
    write_run(_OTHER, {"sums": records("+-++", base="+---")}, about=config("IA3"), losses=losses, general_text=general)
    trials = [({"adapter.rank": rank}, "complete", {"sums": records(marks)}) for rank, marks in ((1, "+-"), (2, "++"))]
    write_study(_STUDY, {"adapter.rank": [1, 2]}, trials)
    from adapters_pl.cli.main import main

    assert main([*_REPORT[:3], "grid", *_OUT]) == 0  # also for what it imports
    shutil.rmtree("out")


class _Page(HTMLParser):
    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in _TAGS, f"the page has a <{tag}>"
        for key, value in attributes:
            assert not key.startswith("on"), f"the page has {key} in <{tag}>"
            if key in ("src", "href", "xlink:href", "action", "data"):
                own = re.fullmatch(r"#[\w-]+|(figures|tables)/[\w-]+\.\w+|data:,", value or "")
                assert own, f"the page has {key}={value} in <{tag}>"


def is_safe() -> None:
    """Whether the report loads nothing, runs nothing, and has no formula and no command of LaTeX."""
    page = Path("out/report.html").read_text("utf-8")
    _Page().feed(page)
    assert "49$" not in page, "a template was filled in"
    assert page.count("<style>") == 1
    for file in Path("out/figures").glob("*.svg"):
        for element in ElementTree.parse(file).iter():
            tag = element.tag.rpartition("}")[2]
            assert tag not in ("script", "image", "foreignObject", "a"), f"{file.name} has a <{tag}>"
            assert not any(key.startswith("on") for key in element.attrib), f"{file.name} does something"
    for file in Path("out/tables").glob("*.csv"):
        for row in csv.reader(file.read_text("utf-8").splitlines()):
            for cell in row:
                number = re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", cell)
                assert number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), f"{file.name} has {cell[:40]}"
    for file in Path("out/tables").glob("*.tex"):
        text = file.read_text("utf-8").replace("\\\\", "").replace("\\textbackslash ", "")
        for command in re.findall(r"\\([a-zA-Z]+|.)", text):
            known = "begin|end|toprule|midrule|bottomrule|usepackage|textasciitilde|textasciicircum|space|[&%$#_{} ]"
            assert re.fullmatch(known, command), f"{file.name} has \\{command}"
    for file in Path("out").rglob("*.*"):
        if file.suffix in (".html", ".svg", ".csv", ".tex"):
            odd = re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", file.read_text("utf-8"))
            assert not odd, f"{file.name} has {odd and ascii(odd[0])}"


def _named(folder: Path, text: str) -> Callable[[], None]:
    """Call a run's directory so, as far as a file system can."""

    def work() -> None:
        raw = text.replace("/", "|").replace("\0", "0").encode("utf-8", "surrogatepass")[:200]
        shutil.copytree(folder, os.fsdecode(b"seen/" + (raw or b"x") + b"-1"))

    return work


def _records_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """Change every record of the run, and what its results say of them."""

    def work() -> None:
        from adapters_pl.evaluation.results import digest

        file = _RUN / "predictions/sums.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            change(row)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = digest(file.read_bytes())
        json_with(_RUN / "results.json", lambda r: r["sets"]["sums"].update(predictions_sha256=found))()

    return work


def _set_called(name: str) -> Callable[[], None]:
    return json_with(_RUN / "results.json", lambda r: r.update(sets={name: r["sets"]["sums"]}))


def text_cases() -> Iterator[Case]:
    """Texts that are something else elsewhere, in every place from which a report or a list takes one."""
    results, effort, trial = _RUN / "results.json", _RUN / "fit.json", _TRIAL / "trial.json"
    for what, text in TEXTS.items():
        about = config("LoRA", base=text or "x", rank=text)
        about["adapter"]["class_path"], about["data"]["class_path"] = f"a.{text}", text
        everywhere = both(
            _set_called(text),
            json_with(results, lambda r, t=text: r.update(protocol=t, config={"a": t}, data={t: t})),  # type: ignore[misc]
            json_with(results, place("general_text", "text", value=text)),
            json_with(effort, lambda e, t=text: e.update(state=t, error=t, device=t, written=t)),  # type: ignore[misc]
            put(_RUN / "config.yaml", json.dumps(about)),
            put(_RUN / "metrics.csv", f"step,train_loss,{json.dumps(text)}\n0,1,2\n1,2,3\n"),
        )
        how = f"every text of the run is {shortened(text)}"
        yield Case(f"report/texts {what}", _REPORT, everywhere, "fine", how=how, after=is_safe)
        yield Case(f"runs/texts {what}", _LIST, everywhere, "fine", how=how)
        yield Case(f"runs/texts {what} as JSON", [*_LIST, "--json"], everywhere, "fine", how=how)
        rows = _records_with(
            lambda row, t=text: row.update(output=t * 3, prediction=t, gold=t, id=f"{row['id']}{t}")  # type: ignore[misc]
        )
        yield Case(f"report/rows {what}", _REPORT, rows, "fine", how=f"rows of {shortened(text)}", after=is_safe)
        yield Case(f"compare/rows {what}", ["compare", "a-1", "b-1", "--root", "seen"], rows, "any")
        named = _named(_RUN, text)
        name = os.fsdecode(text.replace("/", "|").replace("\0", "0").encode("utf-8", "surrogatepass")[:200] or b"x")
        words = ["report", f"seen/{name}-1", *_OUT]
        yield Case(f"report/name {what}", words, named, "any", how="a run of that name", after=is_safe)
        yield Case(f"runs/name {what}", _LIST, named, "fine", how="a run of that name")
        values = {text: text, "adapter.rank": {"class_path": f"x.{text}", "init_args": {text: [text]}}}
        tried = both(
            json_with(trial, lambda t, v=values, s=text: t.update(values=v, error=s, study=s)),  # type: ignore[misc]
            put(_STUDY / "study.yaml", json.dumps({"name": text, "axes": {text: [text], "adapter.rank": [1, 2]}})),
        )
        yield Case(f"report/study {what}", _ON_STUDY, tried, "fine", how=f"a study of {shortened(text)}", after=is_safe)
        state = json_with(trial, place("state", value=text))
        yield Case(f"runs/study {what}", _LIST, both(tried, state), "fine", how=f"a study of {shortened(text)}")


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
        *(_RUN / "results.json", _RUN / "fit.json", _RUN / "config.yaml", _RUN / "metrics.csv"),
        *(_TRIAL / "trial.json", _STUDY / "study.yaml"),
    ):
        ours = _ON_STUDY if _STUDY in file.parents else _REPORT
        for what, spoil in _broken(file).items():
            gone = file.name == "study.yaml" and what in ("missing", "a folder", "a pipe", "a dangling link")
            expect = "any" if gone or "link to" in what else "fine"
            yield Case(f"report/{file.name} {what}", ours, spoil, expect, how=f"{file}: {what}", after=is_safe)
            yield Case(f"runs/{file.name} {what}", _LIST, spoil, "fine", how=f"{file}: {what}")
    predictions = _RUN / "predictions/sums.jsonl"
    for what, spoil in _broken(predictions).items():
        if what in ("a link out of it", "70 MB"):
            continue
        yield Case(f"report/predictions {what}", _REPORT, spoil, "fine", how=f"predictions: {what}", after=is_safe)
    out = both(_linked_out(_RUN / "results.json"), lambda: shutil.move(_RUN / "predictions", "../elsewhere/p"))
    linked = both(out, as_link(_RUN / "predictions", "../../../elsewhere/p"))
    yield Case("report/predictions a folder out of it", _REPORT, linked, "fine", how="links out of the run")
    yield Case("compare/links out of the run", ["compare", "a-1", "b-1", "--root", "seen"], linked, says=("link",))
    for what, to in {"lock": ".fit.lock", "trial's lock": "../grid/trial-0/.trial.lock"}.items():
        running = both(
            json_with(_RUN / "fit.json", place("state", value="running")),
            json_with(_TRIAL / "trial.json", place("state", value="running")),
            put("../elsewhere/precious", "precious"),
        )
        file = _RUN / to
        spoil = both(running, as_link(file, os.path.relpath("../elsewhere/precious", file.resolve().parent)))
        yield Case(f"runs/{what} a link", _LIST, spoil, "fine", how="a lock that is a link out of the run")
        yield Case(f"runs/{what} a pipe", _LIST, both(running, as_fifo(file)), "fine", how="a lock that is a pipe")
    yield Case("report/trial a link", _ON_STUDY, _moved(_TRIAL), "fine", how="a trial that lies elsewhere")
    yield Case("runs/trial a link", _LIST, _moved(_TRIAL), "fine", how="a trial that lies elsewhere")
    yield Case("runs/trial a file", _LIST, both(remove(_TRIAL), put(_TRIAL, "x")), "fine")
    odd = lambda: [(_STUDY / f"trial-{name}").mkdir() for name in ("x", "-1", "9" * 200, "\u0663", "1.5", " ")]  # noqa: E731
    yield Case("report/trials of odd names", _ON_STUDY, odd, "fine", after=is_safe)
    yield Case("runs/trials of odd names", _LIST, odd, "fine")


def _moved(folder: Path) -> Callable[[], None]:
    return lambda: (shutil.move(folder, "../elsewhere/moved"), as_link(folder, "../../../elsewhere/moved")())  # type: ignore[func-returns-value]


def figure_cases() -> Iterator[Case]:
    """Figures that are none, and more of everything than can be drawn."""
    huge, results = 10**4000, _RUN / "results.json"
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
        "parameters": (_RUN / "fit.json", "trainable_parameters"),
        "seconds": (_RUN / "fit.json", "seconds"),
        "peak_bytes": (_RUN / "fit.json", "peak_bytes"),
        "steps": (_RUN / "fit.json", "steps"),
        "written": (_RUN / "fit.json", "written"),
        "error": (_RUN / "fit.json", "error"),
    }
    order = list(values)
    for number, (key, (file, *path)) in enumerate(keys.items()):
        for step in (0, 3, 5, 7, 8):
            kind = order[(number + step) % len(order)]
            spoil = json_with(file, place(*path, value=values[kind]))
            yield Case(f"report/{key} {kind}", _REPORT, spoil, "fine", how=f"{key}: {kind}", after=is_safe)
        for kind in ("list", "huge", "NaN"):
            spoil = json_with(file, place(*path, value=values[kind]))
            yield Case(f"runs/{key} {kind}", _LIST, spoil, "fine", how=f"{key}: {kind}")
            yield Case(f"runs/{key} {kind} as JSON", [*_LIST, "--json"], spoil, "fine", how=f"{key}: {kind}")
    for kind, value in values.items():
        spoil = json_with(_TRIAL / "trial.json", place("values", "adapter.rank", value=value))
        yield Case(f"report/value of a trial {kind}", _ON_STUDY, spoil, "fine", how=kind, after=is_safe)
        spoil = json_with(_TRIAL / "results.json", place("sets", "sums", "accuracy", value=value))
        yield Case(f"report/accuracy of a trial {kind}", _ON_STUDY, spoil, "fine", how=kind, after=is_safe)
    for what, spoil in {
        "state a list": json_with(_TRIAL / "trial.json", place("state", value=[1])),
        "values a list": json_with(_TRIAL / "trial.json", place("values", value=[1])),
        "values empty": json_with(_TRIAL / "trial.json", place("values", value={})),
        "number a text": json_with(_TRIAL / "trial.json", place("number", value="x")),
        "error a mapping": json_with(_TRIAL / "trial.json", place("error", value={"a": [1]})),
        "axes a list": put(_STUDY / "study.yaml", "axes: [1, 2]"),
        "axes of numbers": put(_STUDY / "study.yaml", "axes: {1: 2, null: 3}"),
        "axes null": put(_STUDY / "study.yaml", "axes: null"),
        "aliases that grow": put(
            _STUDY / "study.yaml",
            "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]\n" for n in range(9)),
        ),
        "python tag": put(_STUDY / "study.yaml", "axes: !!python/object/apply:os.mkdir ['../elsewhere/canary']"),
        "many values": json_with(_TRIAL / "trial.json", lambda t: t["values"].update({f"k{n}": n for n in range(500)})),
    }.items():
        yield Case(f"report/study {what}", _ON_STUDY, spoil, "fine", how=what, after=is_safe)
        yield Case(f"runs/study {what}", _LIST, spoil, "fine", how=what)
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
        spoil = put(_RUN / "metrics.csv", content)
        yield Case(f"report/curve {what}", _REPORT, spoil, "fine", how=what, after=is_safe)

    def sets(count: int) -> Callable[[], None]:
        return json_with(results, lambda r: r.update(sets={f"set{n}": r["sets"]["sums"] for n in range(count)}))

    for count in (40, 3000):
        yield Case(f"report/{count} sets", _REPORT, sets(count), "fine", how=f"{count} sets", after=is_safe)
        yield Case(f"runs/{count} sets", _LIST, sets(count), "fine", how=f"{count} sets")

    def trials(count: int, *keys: str) -> Callable[[], None]:
        def work() -> None:
            for number in range(2, count):
                shutil.copytree(_TRIAL, _STUDY / f"trial-{number}")
            for number in range(count):
                values = {key: f"{key}{number}" for key in keys} or {"adapter.rank": number}
                json_with(_STUDY / f"trial-{number}/trial.json", place("values", value=values))()

        return work

    yield Case("report/200 trials", _ON_STUDY, trials(200), "fine", how="200 trials", after=is_safe)
    keys_of_all = tuple(f"key{n}" for n in range(120))
    yield Case("report/120 keys", _ON_STUDY, trials(3, *keys_of_all), "fine", how="120 axes", after=is_safe)
    text_keys = json_with(_TRIAL / "trial.json", lambda t: t["values"].update({f"k{n}": "w" * 500 for n in range(90)}))
    yield Case("report/90 long values", _ON_STUDY, text_keys, "fine", how="90 long values", after=is_safe)
    yield Case(
        "report/sets of a trial",
        _ON_STUDY,
        json_with(_TRIAL / "results.json", lambda r: r.update(sets={f"s{n}": r["sets"]["sums"] for n in range(500)})),
        "fine",
        after=is_safe,
    )


def report_word_cases() -> Iterator[Case]:
    """What is typed behind ``report`` and ``runs``."""
    for words in (
        [],
        ["a-1"],
        ["a-1", "--root", "seen"],
        ["no-such", *_OUT],
        ["", *_OUT],
        [".", *_OUT],
        ["..", *_OUT],
        ["/", *_OUT],
        ["seen", *_OUT],
        ["seen/a-1/results.json", *_OUT],
        ["a-1", "a-1", *_OUT],
        ["a" * 5000, *_OUT],
        ["a/" * 3000, *_OUT],
        ["~nobody-of-this-name/x", *_OUT],
        ["\udcff", *_OUT],
        ["a\nb", *_OUT],
        ["\x1b[31mred", *_OUT],
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
        ["a-1", *_OUT, "--rows", "-1"],
        ["a-1", *_OUT, "--rows", "x"],
        ["a-1", "b-1", *_OUT, "--rows", "9" * 30],
        ["a-1", *_OUT, "--no_such"],
        ["a-1", *_OUT, "--config", "x"],
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
        yield Case(f"report/out holds {what}", _REPORT, spoil, "any", how=f"--out holds {what}")
    yield Case("runs/root a link to itself", ["runs", "--root", "loop"], as_link("loop", "loop"), "any")
    odd = both(
        as_link("seen/loop", "loop"), as_link("seen/away", "nowhere"), lambda: os.mkfifo("seen/pipe"), put("seen/x", "")
    )
    yield Case("runs/root of odd things", _LIST, odd, "fine", how="links and a pipe beside the runs")


def _earlier() -> None:
    write("out/report.html", '<html><head><meta name="generator" content="adapters-pl report">')
    Path("out/figures").mkdir()
    Path("out/tables").mkdir()


__all__ = ["figure_cases", "prepare_seen", "report_word_cases", "seen_cases", "text_cases"]
