"""Texts of strangers, where ``report``, ``runs`` and ``compare`` show them."""

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
    both,
    json_with,
    place,
    put,
    shortened,
)
from tests.helpers.hostile_inputs import Case
from tests.helpers.runs import config, records, write_run, write_study

SEEN, _OTHER, STUDY = Path("seen/a-1"), Path("seen/b-1"), Path("seen/grid")
TRIAL = STUDY / "trial-0"
OUT = ["--root", "seen", "--out", "out"]
REPORT = ["report", "a-1", "b-1", *OUT]
ON_STUDY = ["report", "grid", *OUT]
LIST = ["runs", "--root", "seen"]
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
    write_run(SEEN, {"sums": records("++-+", base="+---")}, losses=losses, general_text=general)
    write_run(_OTHER, {"sums": records("+-++", base="+---")}, about=config("IA3"), losses=losses, general_text=general)
    trials = [({"adapter.rank": rank}, "complete", {"sums": records(marks)}) for rank, marks in ((1, "+-"), (2, "++"))]
    write_study(STUDY, {"adapter.rank": [1, 2]}, trials)
    from adapters_pl.cli.main import main

    assert main([*REPORT[:3], "grid", *OUT]) == 0  # also for what it imports
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

        file = SEEN / "predictions/sums.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            change(row)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = digest(file.read_bytes())
        json_with(SEEN / "results.json", lambda r: r["sets"]["sums"].update(predictions_sha256=found))()

    return work


def _set_called(name: str) -> Callable[[], None]:
    return json_with(SEEN / "results.json", lambda r: r.update(sets={name: r["sets"]["sums"]}))


def text_cases() -> Iterator[Case]:
    """Texts that are something else elsewhere, in every place from which a report or a list takes one."""
    results, effort, trial = SEEN / "results.json", SEEN / "fit.json", TRIAL / "trial.json"
    for what, text in TEXTS.items():
        about = config("LoRA", base=text or "x", rank=text)
        about["adapter"]["class_path"], about["data"]["class_path"] = f"a.{text}", text
        everywhere = both(
            _set_called(text),
            json_with(results, lambda r, t=text: r.update(protocol=t, config={"a": t}, data={t: t})),  # type: ignore[misc]
            json_with(results, place("general_text", "text", value=text)),
            json_with(effort, lambda e, t=text: e.update(state=t, error=t, device=t, written=t)),  # type: ignore[misc]
            put(SEEN / "config.yaml", json.dumps(about)),
            put(SEEN / "metrics.csv", f"step,train_loss,{json.dumps(text)}\n0,1,2\n1,2,3\n"),
        )
        how = f"every text of the run is {shortened(text)}"
        yield Case(f"report/texts {what}", REPORT, everywhere, "fine", how=how, after=is_safe)
        yield Case(f"runs/texts {what}", LIST, everywhere, "fine", how=how)
        yield Case(f"runs/texts {what} as JSON", [*LIST, "--json"], everywhere, "fine", how=how)
        rows = _records_with(
            lambda row, t=text: row.update(output=t * 3, prediction=t, gold=t, id=f"{row['id']}{t}")  # type: ignore[misc]
        )
        yield Case(f"report/rows {what}", REPORT, rows, "fine", how=f"rows of {shortened(text)}", after=is_safe)
        yield Case(f"compare/rows {what}", ["compare", "a-1", "b-1", "--root", "seen"], rows, "any")
        named = _named(SEEN, text)
        name = os.fsdecode(text.replace("/", "|").replace("\0", "0").encode("utf-8", "surrogatepass")[:200] or b"x")
        words = ["report", f"seen/{name}-1", *OUT]
        yield Case(f"report/name {what}", words, named, "any", how="a run of that name", after=is_safe)
        yield Case(f"runs/name {what}", LIST, named, "fine", how="a run of that name")
        values = {text: text, "adapter.rank": {"class_path": f"x.{text}", "init_args": {text: [text]}}}
        tried = both(
            json_with(trial, lambda t, v=values, s=text: t.update(values=v, error=s, study=s)),  # type: ignore[misc]
            put(STUDY / "study.yaml", json.dumps({"name": text, "axes": {text: [text], "adapter.rank": [1, 2]}})),
        )
        yield Case(f"report/study {what}", ON_STUDY, tried, "fine", how=f"a study of {shortened(text)}", after=is_safe)
        state = json_with(trial, place("state", value=text))
        yield Case(f"runs/study {what}", LIST, both(tried, state), "fine", how=f"a study of {shortened(text)}")
