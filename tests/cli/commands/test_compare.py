"""Runs side by side."""

from __future__ import annotations

import hashlib
import json

import pytest

from adapters_pl.cli.main import COMMANDS, main
from adapters_pl.inputs.errors import UserError
from adapters_pl.reports.comparison import compare, differences, read_run


@pytest.fixture
def run(tmp_path):
    """Write what a test leaves: right or wrong by set, a letter a row (``+`` and ``-``)."""

    def run(name, protocol="strict", ids=None, **sets):
        folder = tmp_path / "runs" / name
        (folder / "predictions").mkdir(parents=True)
        found = {key: {"n": len(marks), "accuracy": marks.count("+") / len(marks)} for key, marks in sets.items()}
        results = {"protocol": protocol, "sets": found}
        (folder / "results.json").write_text(json.dumps(results))
        for key, marks in sets.items():
            rows = [
                {"id": f"{key}-{ids[i] if ids else i}", "gold": "1", "correct": mark == "+"}
                for i, mark in enumerate(marks)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "predictions" / f"{key}.jsonl").write_text(text)
        return folder

    return run


def test_each_set_is_compared_on_the_rows_common_to_both(run):
    first = read_run(run("a", gsm8k="++----", SVAMP="+-", AddSub="+"))
    second = read_run(run("b", gsm8k="-++++", SVAMP="+-"))
    gsm8k, svamp = compare(first, second)
    assert (gsm8k.n, gsm8k.accuracies, gsm8k.better, gsm8k.worse) == (5, (0.4, 0.8), 3, 1)
    assert gsm8k.p == pytest.approx(2 * (1 + 4) / 2**4)
    assert gsm8k.interval[0] < 0.4 < gsm8k.interval[1]
    assert (svamp.n, svamp.better, svamp.worse, svamp.p, svamp.interval) == (2, 0, 0, 1.0, (0.0, 0.0))


@pytest.mark.parametrize("recorded", [True, False], ids=["checksum", "count"])
def test_answers_that_do_not_belong_to_the_figures_are_refused(run, recorded):
    folder = run("a", gsm8k="++--")
    file = folder / "predictions" / "gsm8k.jsonl"
    if recorded:
        results = json.loads((folder / "results.json").read_text())
        results["sets"]["gsm8k"]["predictions_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        (folder / "results.json").write_text(json.dumps(results))
    assert read_run(folder).answers["gsm8k"]
    lines = file.read_text().splitlines()
    other = list(reversed(lines)) if recorded else lines[:3]
    file.write_text("".join(line + "\n" for line in other))
    with pytest.raises(UserError, match=r"gsm8k\.jsonl does not belong to the figures in results\.json"):
        read_run(folder)


def test_no_name_of_a_set_leads_out_of_the_run(run, tmp_path):
    folder = run("a", gsm8k="++")
    (tmp_path / "runs/private.jsonl").write_bytes((folder / "predictions/gsm8k.jsonl").read_bytes())
    results = json.loads((folder / "results.json").read_text())
    results["sets"]["../../private"] = results["sets"]["gsm8k"]
    aside = {"n": 2, "settings": {"protocol": "strict"}, "predictions_sha256": None}
    results["others"] = {"../../../private.strict.2.None": aside, "/private.strict.2.None": aside}
    (folder / "results.json").write_text(json.dumps(results))
    assert list(read_run(folder).answers) == ["gsm8k"]
    assert list(read_run(folder, "strict").answers) == ["gsm8k"]


def test_rows_are_matched_by_name_whatever_their_order(run):
    first = read_run(run("a", ids=[0, 1, 2, 3], gsm8k="++--"))
    second = read_run(run("b", ids=[3, 2, 1, 0], gsm8k="--++"))
    (found,) = compare(first, second)
    assert (found.n, found.better, found.worse) == (4, 0, 0)


def test_the_command_prints_a_table_for_each_further_run(run, capsys, tmp_path, monkeypatch):
    long = {"word_problems-fresh": "+-", "word_problems-unseen": "+-"}
    run("lora-1", gsm8k="+" * 30 + "-" * 10, **long)
    run("lora-2", gsm8k="-" * 10 + "+" * 30, **long)
    run("lora-3", protocol="llm_adapters", gsm8k="+" * 40)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "lora-1", "runs/lora-2", "lora-3"]) == 0
    out = capsys.readouterr().out
    assert "lora-2 against lora-1" in out
    assert "word_problems-fresh" in out
    assert "word_problems-unseen" in out
    assert "lora-3 against lora-1" in out
    assert "0.00195" in out  # ten rows changed, all for the better
    assert "they differ in protocol: strict and llm_adapters" in out
    assert "compare" in COMMANDS
    assert main(["compare", "lora-1", "lora-2", "--protocol", "strict"]) == 0
    assert "lora-2 against lora-1" in capsys.readouterr().out
    assert main(["compare", "lora-1", "lora-3", "--protocol", "llm_adapters"]) == 1
    assert "lora-1 was not tested by llm_adapters" in capsys.readouterr().err


def test_what_makes_two_runs_hard_to_compare_is_said():
    first = {"protocol": "strict", "sets": {"a": {}}, "data": {"a.json": "1", "b.json": "2", "c.json": "3"}}
    second = {"protocol": "strict", "sets": {"a": {}}, "data": {"a.json": "1", "b.json": "9"}}
    assert differences(first, first) == []
    assert differences(first, second) == ["they read different files by the name of b.json"]
    assert differences(first, {**first, "protocol": "llm_adapters"}) == [
        "a: they differ in protocol: strict and llm_adapters"
    ]
    # The protocol is a set's own where its result says so: the sets of a run may have been tested by several.
    own = {**first, "sets": {"a": {"settings": {"protocol": "llm_adapters"}}, "b": {}}}
    assert differences(first, own) == ["a: they differ in protocol: strict and llm_adapters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "two runs or more"),
        (["a", "aa"], "run 'aa' is not there, nor in .*runs: did you mean 'a'"),
        (["a", "empty"], "has no results.json: test it first"),
        (["a", "other"], "no tested row in common"),
        (["a", "--rot", "x"], "--help"),
        (["a", "other", "--protocol", "strikt"], "protocol 'strikt' does not exist: did you mean 'strict'"),
    ],
)
def test_what_cannot_be_compared(run, tmp_path, monkeypatch, capsys, arguments, message):
    run("a", gsm8k="+-")
    run("other", SVAMP="+-")
    (tmp_path / "runs" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 1
    import re

    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_files_that_are_cut_are_named(run):
    folder = run("a", gsm8k="+-")
    file = folder / "predictions" / "gsm8k.jsonl"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(UserError, match=r"gsm8k\.jsonl: line 2 is no prediction"):
        read_run(folder)
    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: cannot be read, it may be cut"):
        read_run(folder)


def test_what_was_published_stands_below(run, capsys, tmp_path, monkeypatch):
    for name in ("lora-1", "lora-2", "lora-3"):
        folder = run(name, gsm8k="+-")
        results = json.loads((folder / "results.json").read_text())
        results["config"] = {"model": {"base": "yahma/llama-7b-hf"}, "adapter": {"class_path": "adapters_pl.LoRA"}}
        (folder / "results.json").write_text(json.dumps(results))
    config = "model: {lr: 1.0e-4}\ntrainer: {max_epochs: 3}\ndata: {class_path: adapters_pl.Math10K}\n"
    (tmp_path / "runs/lora-1/config.yaml").write_text(config)
    (tmp_path / "runs/lora-3/config.yaml").write_text("model: [")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "lora-1", "lora-2", "lora-3"]) == 0
    out = capsys.readouterr().out
    assert out.count("Published for LLaMA-7B LoRA") == 2 * 3
    assert out.count("published: lr 3e-4, ours 1e-4") == 3  # LoRA's own row, Series' and Parallel's
