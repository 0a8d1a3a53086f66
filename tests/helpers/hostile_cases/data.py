"""Broken files of rows, and data sets that are not to be had."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.helpers.hostile_cases.common import (
    CANARY,
    DATA,
    QUIET,
    TEST,
    as_fifo,
    as_folder,
    as_link,
    base_test,
    based,
    both,
    cut,
    fit,
    flip,
    ours_with,
    place,
    put,
    remove,
    shortened,
    write,
)
from tests.helpers.hostile_inputs import Case


def _online() -> None:
    """As if nobody had said that there is no network."""
    import datasets.config
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = False
    datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = False
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.pop(name, None)


def data_cases() -> Iterator[Case]:
    """Broken data files."""
    row = {"instruction": "Say 1.", "input": "", "output": "It is 1.", "answer": "1"}
    rows = [{**row, "instruction": f"Say {n}.", "answer": str(n)} for n in range(6)]
    lines = "".join(json.dumps(each) + "\n" for each in rows)

    def changed(**change: Any) -> str:
        return json.dumps([{**rows[0], **change}, *rows[1:]])

    files: dict[str, str | bytes] = {
        "json empty": "",
        "json blank": "\n \n",
        "json hello": "hello",
        "json null": "null",
        "json number": "3",
        "json text": '"x"',
        "json object": json.dumps(row),
        "json object of rows": json.dumps({"data": rows}),
        "json empty list": "[]",
        "json list of numbers": "[1, 2]",
        "json list of lists": "[[1]]",
        "json list of nulls": "[null]",
        "json list of texts": '["a"]',
        "json empty objects": "[{}, {}]",
        "json cut": json.dumps(rows)[:-40],
        "json cut in a character": json.dumps([{**row, "instruction": "é" * 9}], ensure_ascii=False).encode()[:25],
        "json comma": json.dumps(rows)[:-1] + ",]",
        "json comments": "// x\n" + json.dumps(rows),
        "json single quotes": str(rows),
        "json two": json.dumps(rows) + json.dumps(rows),
        "json binary": os.urandom(2000),
        "json zeros": b"\0" * 2000,
        "json UTF-16": json.dumps(rows).encode("utf-16"),
        "json UTF-32": json.dumps(rows).encode("utf-32"),
        "json Latin-1": json.dumps([{**row, "instruction": "é"}] * 2, ensure_ascii=False).encode("latin-1"),
        "json BOM": json.dumps(rows).encode("utf-8-sig"),
        "json NUL": changed(instruction="a\0b"),
        "json surrogate": changed(instruction="a\ud800b"),
        "json surrogate answer": changed(answer="\udfff"),
        "json surrogate id": changed(id="\ud800"),
        "json surrogate key": changed(**{"\ud800": "x"}),
        "json deep": "[" * 100_000 + "]" * 100_000,
        "json deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "json deep in a row": '[{"instruction": "x", "extra": ' + "[" * 900 + "]" * 900 + "}]",
        "json deep in output": '[{"instruction": "x", "output": ' + "[" * 100_000 + "]" * 100_000 + "}]",
        "json NaN": '[{"instruction": NaN}]',
        "json NaN answer": '[{"instruction": "x", "output": "y", "answer": NaN}]',
        "json huge integer": f'[{{"instruction": "x", "answer": {"9" * 5000}}}]',
        "json infinite": '[{"instruction": "x", "answer": 1e999}]',
        "json instruction number": changed(instruction=3),
        "json instruction null": changed(instruction=None),
        "json instruction empty": changed(instruction=""),
        "json instruction blank": changed(instruction=" \n"),
        "json instruction list": changed(instruction=["a"]),
        "json instruction object": changed(instruction={"a": 1}),
        "json instruction long": changed(instruction="word " * 1_000_000),
        "json output long": changed(output="word " * 1_000_000),
        "json answer long": changed(answer="9" * 5_000_000),
        "json output null": changed(output=None),
        "json output number": changed(output=3.5),
        "json output list": changed(output=["a"]),
        "json output bool": changed(output=True),
        "json input object": changed(input={"a": 1}),
        "json input number": changed(input=7),
        "json answer list": changed(answer=[1]),
        "json answer null": changed(answer=None),
        "json answer blank": changed(answer=" "),
        "json answer bool": changed(answer=False),
        "json id list": changed(id=[1]),
        "json id object": changed(id={"a": 1}),
        "json ids twice": json.dumps([{**each, "id": "a"} for each in rows]),
        "json ids number and text": json.dumps([{**rows[0], "id": 1}, {**rows[1], "id": "1"}]),
        "json one row": json.dumps(rows[:1]),
        "json no outputs": json.dumps([{"instruction": f"x{n}"} for n in range(5)]),
        "json the same rows": json.dumps([row] * 6),
        "json mixed types": json.dumps([{**rows[0], "extra": 1}, {**rows[1], "extra": "a"}, {**rows[2], "extra": [1]}]),
        "json many columns": json.dumps([{**row, **{f"c{n}": n for n in range(20_000)}}]),
        "json escape codes": changed(instruction="\x1b[31mred\x1b[0m\x07"),
        "json special tokens": changed(instruction="<eos><pad><bos>", output="<eos>"),
        "json key twice": '[{"instruction": "a", "instruction": "b", "output": "c"}, {"instruction": "d"}]',
        "jsonl empty": "",
        "jsonl blank lines": "\n\n" + lines.replace("\n", "\n\n"),
        "jsonl list": json.dumps(rows),
        "jsonl cut": lines[:-30],
        "jsonl broken line": lines.replace("\n", "\nx\n", 1),
        "jsonl numbers": "1\n2\n",
        "jsonl one long line": json.dumps({**row, "instruction": "a" * 5_000_000}) + "\n",
        "jsonl CRLF": lines.replace("\n", "\r\n"),
        "jsonl CR": lines.replace("\n", "\r"),
        "jsonl line separator": json.dumps({**row, "output": "a\u2028b"}, ensure_ascii=False) + "\n" + lines,
        "jsonl deep": "[" * 100_000 + "\n",
        "jsonl binary": os.urandom(2000),
        "jsonl UTF-16": lines.encode("utf-16"),
        "csv empty": "",
        "csv header": "instruction,output\n",
        "csv no columns": "\n\n\n",
        "csv no instruction": "a,b\n1,2\n",
        "csv short row": "instruction,output\na\nb,c\n",
        "csv long row": "instruction,output\na,b,c\n",
        "csv open quote": 'instruction,output\n"a,b\n',
        "csv stray quote": 'instruction,output\n"a"x,b\n',
        "csv columns twice": "instruction,instruction\na,b\nc,d\n",
        "csv empty names": ",,\ninstruction,b,c\n",
        "csv semicolons": "instruction;output\na;b\n",
        "csv tabs": "instruction\toutput\na\tb\n",
        "csv NUL": "instruction,output\na\0,b\n",
        "csv long field": "instruction,output\n" + "a" * 5_000_000 + ",b\n",
        "csv BOM": "instruction,output,answer\na,b,c\nd,e,f\n".encode("utf-8-sig"),
        "csv UTF-16": "instruction,output\na,b\n".encode("utf-16"),
        "csv Latin-1": "instruction,output\né,b\n".encode("latin-1"),
        "csv binary": os.urandom(2000),
        "csv formula": "instruction,output,answer\n=cmd|' /C calc'!A0,b,c\nd,e,f\n",
        "parquet empty": b"",
        "parquet text": "hello",
        "parquet magic": b"PAR1" + os.urandom(200) + b"PAR1",
        "parquet json": json.dumps(rows),
        "txt json": json.dumps(rows),
        "txt text": "hello\n",
    }
    for what, content in files.items():
        name = f"d.{what.partition(' ')[0]}"
        words = fit("LoRA", "--adapter.rank", "2", "--data.path", name)
        yield Case(f"file/fit {what}", words, put(name, content), "any", (re.escape(name),), how=what)
    chosen = ("json empty", "json cut", "json deep", "json surrogate", "json instruction number", "json answer null",
              "json NaN answer", "json instruction long", "json surrogate answer", "json UTF-16", "jsonl broken line",
              "csv open quote", "parquet magic", "json ids twice", "json answer long", "json huge integer")  # fmt: skip
    for what in chosen:
        name = f"d.{what.partition(' ')[0]}"
        spoil = put(name, files[what])
        yield Case(f"file/test {what}", [*TEST, "--data.test_path", name], spoil, "any", (re.escape(name),), how=what)
        if what not in ("json UTF-16", "parquet magic"):
            words = ["predict", "--data.test_path", name, *QUIET]
            yield Case(f"file/predict {what}", words, spoil, "any", (re.escape(name),), how=what)

    def parquet(columns: Callable[[], dict[str, Any]]) -> Callable[[], None]:
        def work() -> None:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.table(columns()), "d.parquet")

        return work

    for what, make in {
        "good": lambda: {"instruction": ["a", "b"], "output": ["c", "d"]},
        "no columns": dict,
        "no rows": lambda: {"instruction": [], "output": []},
        "numbers": lambda: {"instruction": [1, 2], "output": [3, 4]},
        "bytes": lambda: {"instruction": [b"a", b"\xff"], "output": [b"c", b"d"]},
        "nested": lambda: {"instruction": [{"a": 1}, {"a": 2}], "output": ["c", "d"]},
        "lists": lambda: {"instruction": ["a", "b"], "output": [["c"], ["d"]]},
        "nulls": lambda: {"instruction": [None, None], "output": ["c", "d"]},
        "other columns": lambda: {"x": ["a", "b"]},
        "numbers out": lambda: {"instruction": ["a", "b"], "output": [3.5, float("nan")]},
    }.items():
        words = fit("LoRA", "--adapter.rank", "2", "--data.path", "d.parquet")
        expect = "fine" if what == "good" else "any"
        yield Case(f"file/fit parquet {what}", words, parquet(make), expect, ("d.parquet",), how=f"parquet: {what}")
        if what == "good":
            for share in (0.2, 0.9):
                spoil = both(parquet(make), cut("d.parquet", share))
                yield Case(f"file/fit parquet cut {share}", words, spoil, says=("d.parquet",), how="parquet cut")
            for share in (0.1, 0.4, 0.7):
                spoil = both(parquet(make), flip("d.parquet", share, 30))
                yield Case(
                    f"file/fit parquet overwritten {share}", words, spoil, "any", ("d.parquet",), how="overwritten"
                )
    for what, spoil in {
        "folder": as_folder("d.json"),
        "pipe": as_fifo("d.json"),
        "dangling link": as_link("d.json", "nowhere"),
        "link to itself": as_link("d.json", "d.json"),
        "link to zero": as_link("d.json", "/dev/zero"),
    }.items():
        for name in ("d.json",) if what != "pipe" else ("d.json", "d.parquet"):
            made = spoil if name == "d.json" else as_fifo(name)
            words = fit("LoRA", "--adapter.rank", "2", "--data.path", name)
            yield Case(f"file/fit {name} {what}", words, made, says=(re.escape(name),), how=what)
    for online in (False, True):
        spoil, word = (_online, "online") if online else (None, "offline")
        yield Case(
            f"hub/{word} data set",
            fit("LoRA", "--adapter.rank", "2", "--data.path", "nobody-here/nothing-at-all"),
            spoil,
            says=("nobody-here/nothing-at-all",),
            within=5,
        )
        yield Case(f"hub/{word} base", based("nobody-here/nothing"), spoil, says=("nobody-here/nothing",), within=5)
        words = [*base_test(), "--model.base", "nobody-here/nothing"]
        yield Case(f"hub/{word} test base", words, spoil, says=("nobody-here/nothing",), within=5)
        yield Case(f"hub/{word} short base", based("no-such-model"), spoil, says=("no-such-model",), within=5)
        words = ["plan", "--model.base", "nobody-here/nothing", "--adapter", "LoRA"]
        yield Case(f"hub/{word} plan", words, spoil, says=("nobody-here/nothing",), within=5)
        words = ["test", "--adapter_path", "nobody-here/nothing", *DATA, *QUIET]
        yield Case(f"hub/{word} adapter", words, spoil, says=("nobody-here/nothing",), within=5)
        words = ["export", "--adapter_path", "nobody-here/nothing", "--out", "out"]
        yield Case(f"hub/{word} export", words, spoil, says=("nobody-here/nothing",), within=5)
        words = ["export", "--out", "out", "--push", "nobody-here/nothing"]
        yield Case(f"hub/{word} push", words, spoil, says=("nobody-here/nothing",), within=10)
        yield Case(f"hub/{word} fetch", ["data", "fetch", "gsm8k"], spoil, says=("fetch",), within=10, leads_out=True)
        yield Case(
            f"hub/{word} published set",
            fit("LoRA", "--adapter.rank", "2", "--data", "gsm8k", "--data.files", "{}"),
            spoil,
            "any",
        )
        yield Case(
            f"hub/{word} coded data set",
            fit("LoRA", "--adapter.rank", "2", "--data.path", "own/data"),
            both(
                spoil or (lambda: None),
                lambda: write("own/data/data.py", f"import os\nos.makedirs({CANARY!r})\n"),
            ),
            "any",
        )


# ---- published sets by name, and general text


def mixture_cases() -> Iterator[Case]:
    """Published sets by name among the paths, weights, and text that nothing is trained on."""
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"true {n}", "answer": "true"} for n in range(12)]
    train, test = "root/dataset/boolq/train.json", "root/dataset/boolq/test.json"
    good = both(put(train, json.dumps(rows)), put(test, json.dumps(rows[:4])))

    def mixed(*more: str) -> list[str]:
        return fit("LoRA", "--adapter.rank", "2", "--data.root", "root", "--data.contamination", "allow", *more)

    for what, spoil in {
        "nothing wrong": lambda: None,
        "no training file": remove(train),
        "no test file": remove(test),
        "a broken training file": put(train, "[{"),
        "a broken test file": put(test, "[{"),
        "a training file of no rows": put(train, "[]"),
        "a training file of other rows": put(train, '[{"question": "x"}]'),
        "a deep training file": put(train, "[" * 100_000),
        "answers that are none of the options": put(train, json.dumps([{**row, "answer": "x"} for row in rows])),
        "answers that are lists": put(train, json.dumps([{**row, "answer": [1]} for row in rows])),
        "a training file that is a folder": both(remove(train), as_folder(train)),
        "a training file that is a pipe": both(remove(train), as_fifo(train)),
        "a training file that is a link to zeros": as_link(train, "/dev/zero"),
        "a training file in the place of the test file": put(test, json.dumps(rows)),
    }.items():
        words = mixed("--data.path", "[BoolQ, sums.json]", "--data.weights", "[1, 2]")
        yield Case(f"mixture/fit {what}", words, both(good, spoil), "any", how=f"boolq: {what}")
    for path in (
        *("BoolQ", "boolq", "[BoolQ, BoolQ]", "[BoolQ, boolq]", "BOOLQ", "[BoolQ, ARCEasy]", "[BoolQ, NoSuch]"),
        *("Commonsense", "[Commonsense, BoolQ]", "Commonsense170K", "SVAMP", "WordProblems", "./BoolQ", "BoolQ.json"),
        *("[BoolQ, null]", "[BoolQ, 3]", "[[BoolQ]]", "{BoolQ: 2}", "[BoolQ, ../x]", "[BoolQ, os.system]", "[]"),
    ):
        yield Case(f"mixture/path {path}", mixed("--data.path", path), good, "any", ("data|path|root|NoSuch|x",))
    for weights in (
        *("[1, 1]", "[0.5, 2]", "[1]", "[1, 1, 1]", "[]", "[0, 1]", "[-1, 1]", "[nan, 1]", "[inf, 1]", "[1e-9, 1e-9]"),
        *("[1e9, 1]", "[1e18, 1]", "[1e300, 1]", "[x, 1]", "[null, 1]", "[[1], 1]", "2", "{a: 1}", "null", "[true, 1]"),
        *("[1000000, 1]", "[" + "1, " * 9000 + "1]", "[1" + "0" * 400 + ", 1]"),
    ):
        words = mixed("--data.path", "[BoolQ, sums.json]", "--data.weights", weights)
        yield Case(f"mixture/weights {shortened(weights)}", words, good, "any", ("weights",))
    text = "general.txt"
    for what, spoil in {
        "good": put(text, "It was a dark and stormy night. " * 40),
        "missing": lambda: None,
        "empty": put(text, ""),
        "one character": put(text, "a"),
        "blank": put(text, " \n" * 5000),
        "zeros": put(text, b"\0" * 5000),
        "binary": put(text, bytes(range(256)) * 9),
        "UTF-16": put(text, "It was a dark night.".encode("utf-16")),
        "cut in a character": put(text, "é".encode() * 9 + b"\xc3"),
        "one long word": put(text, "a" * 3_000_000),
        "one long word of many": put(text, "".join(chr(0x4E00 + n % 20_000) for n in range(1_000_000))),
        "long lines of blanks": put(text, " " * 3_000_000),
        "marks upon a letter": put(text, "e" + "\u0301" * 1_000_000),
        "special tokens": put(text, "<bos><eos><pad>" * 2000),
        "1 GB": lambda: (write(text, "word "), os.truncate(text, (1 << 30) - 1)),
        "surrogates": put(text, "\ud800" * 50),
        "a folder": as_folder(text),
        "a pipe": as_fifo(text),
        "a link to zeros": as_link(text, "/dev/zero"),
        "a link without an end": as_link(text, "/proc/self/pagemap"),
        "a dangling link": as_link(text, "nowhere"),
    }.items():
        words = [*base_test(), "--data.general_text", text]
        yield Case(f"general-text/test {what}", words, spoil, "any", (text,), how=f"{text}: {what}")
        if what in ("missing", "binary", "a pipe"):
            words = ["test", *QUIET, "--data.general_text", text]
            yield Case(f"general-text/test adapter {what}", words, spoil, "any", (text,), how=f"{text}: {what}")
    for value in ("", "python", "PYTHON", "pythn", "[]", "[general.txt]", "{a: 1}", "3", "null", "a" * 5000, "\udcff"):
        words = [*base_test(), f"--data.general_text={value}"]
        yield Case(f"general-text/value {shortened(value)}", words, None, "any", ("general_text",))
    recorded = place("config", "data", "init_args", "general_text", value="/etc/passwd")
    yield Case(
        "general-text/recorded in a checkpoint", TEST, ours_with(recorded), "any", how="general_text: /etc/passwd"
    )
    recorded = place("config", "data", "init_args", "general_text", value={"class_path": "os.system"})
    yield Case("general-text/recorded as a class", TEST, ours_with(recorded), "any", how="general_text: a class")
