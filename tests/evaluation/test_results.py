"""Figures and the predictions they were counted from: no test, and no prediction, takes the place of a larger test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adapters_pl.cli.main import main
from adapters_pl.evaluation.results import keep_test
from adapters_pl.inputs.errors import UserError
from adapters_pl.reports.comparison import read_run
from adapters_pl.runs.run import Run

QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def tested(tmp_path, monkeypatch, make_base, rows_file):
    """A run in the folder one stands in, trained for one step; a function that calls further commands on it."""
    monkeypatch.chdir(tmp_path)
    own = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(rows_file)]
    few = ["--data.max_new_tokens", "2", "--data.val_size", "4", "--trainer.max_steps", "1"]
    assert main(["fit", *own, *few, "--adapter", "LoRA", "--adapter.rank", "2", *QUICK]) == 0

    def call(command, *arguments):
        path = ["--data.test_path", str(rows_file), "--data.contamination", "allow"]
        return main([command, *path, *arguments, *QUICK])

    return call


def results(run="lora-1"):
    return json.loads(Path("runs", run, "results.json").read_text())


def rows(file, run="lora-1"):
    return [json.loads(line) for line in Path("runs", run, file).read_text().splitlines()]


def test_neither_a_prediction_nor_another_test_replaces_a_test(tested, capsys):
    assert tested("test") == 0
    before, figures = rows("predictions/sums.jsonl"), results()
    assert tested("predict", "--data.limit_test", "5") == 0
    assert rows("predictions/sums.jsonl") == before
    assert len(rows("predicted/sums.jsonl")) == 5

    capsys.readouterr()
    assert tested("test", "--data.limit_test", "3") == 0
    assert "results.json keeps the test of 40 rows" in capsys.readouterr().out
    assert tested("test", "--data.protocol", "llm_adapters", "--data.limit_test", "2") == 0
    assert {**results(), "others": None} == {**figures, "others": None}
    assert rows("predictions/sums.jsonl") == before
    found = results()["others"]
    assert [(name.split(".")[:3], kept["limit"]) for name, kept in found.items()] == [
        (["sums", "strict", "3"], 3),
        (["sums", "llm_adapters", "2"], 2),
    ]
    for name, kept in found.items():
        assert len(rows(f"predictions/others/{name}.jsonl")) == kept["n"]
        assert kept["date"] >= figures["sets"]["sums"]["date"]

    assert tested("test", "--data.limit_test", "3", "--overwrite") == 0
    assert results()["sets"]["sums"]["n"] == len(rows("predictions/sums.jsonl")) == 3
    assert [name.split(".")[1] for name in results()["others"]] == ["llm_adapters"]


def test_compare_takes_only_predictions_that_belong_to_the_figures(tested, capsys):
    assert tested("test") == 0
    shutil.copytree("runs/lora-1", "runs/lora-2")
    assert main(["compare", "lora-1", "lora-2"]) == 0
    file = Path("runs/lora-2/predictions/sums.jsonl")
    file.write_text(file.read_text().replace('"finish": "length"', '"finish": "stop"', 1))
    capsys.readouterr()
    assert main(["compare", "lora-1", "lora-2"]) == 1
    assert "lora-2/predictions/sums.jsonl does not belong to the figures" in capsys.readouterr().err


# ---- which test stands for a set


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Keep a test of some sets in one run, a letter a row (``+`` and ``-``); what is said of sets that keep another."""
    monkeypatch.chdir(tmp_path)
    run = Run.create(tmp_path / "runs", "lora")

    def keep(overwrite=False, protocol="strict", command="", model=None, eval_batch_size=8, **sets):
        records = {
            name: [{"id": str(i), "gold": "1", "output": mark, "correct": mark == "+"} for i, mark in enumerate(marks)]
            for name, marks in sets.items()
        }
        figures = {
            name: {
                "n": len(marks),
                "accuracy": marks.count("+") / len(marks),
                "base_accuracy": None,
                "settings": {"protocol": protocol},
                "model": model,
                "eval_batch_size": eval_batch_size,
            }
            for name, marks in sets.items()
        }
        return keep_test(run, figures, records, overwrite, command=command)

    return keep


def standing(protocol=None):
    """The marks of the tests that count for their sets; ``read_run`` refuses files that are not theirs."""
    return {
        name: "".join("-+"[right] for right in answers.values())
        for name, answers in read_run(Path("runs/lora-1"), protocol).answers.items()
    }


def beside():
    """The marks of the others."""
    return ["".join("-+"[row["correct"]] for row in rows(f"predictions/others/{key}.jsonl")) for key in others()]


def others():
    return results()["others"]


@pytest.mark.parametrize(
    ("first", "second", "stands", "other"),
    [
        ({"a": "+-"}, {"a": "+"}, "+-", ["+"]),
        ({"a": "+"}, {"a": "+-"}, "+-", ["+"]),
        ({"a": "+-"}, {"a": "--"}, "--", ["+-"]),  # another checkpoint, or another machine's rounding
        ({"a": "+-"}, {"a": "+-"}, "+-", []),
        ({"a": "+-"}, {"a": "--", "protocol": "llm_adapters"}, "+-", ["--"]),
        ({"a": "+-"}, {"a": "+", "overwrite": True}, "+", []),
        ({"a": "+-"}, {"a": "--", "overwrite": True}, "--", []),
    ],
)
def test_the_test_on_the_most_rows_stands_and_the_other_is_kept(keep, first, second, stands, other):
    assert keep(**first) == []
    assert len(keep(**second)) == (stands == "+-" and other == [second["a"]])
    assert standing() == {"a": stands}
    assert beside() == other


def test_tests_by_a_protocol_are_found_whichever_stand(keep):
    keep(**{"a.b": "+-+", "c": "-"})
    keep(**{"a.b": "--+"}, protocol="loglikelihood")
    keep(**{"a.b": "-"}, protocol="loglikelihood")
    keep(**{"a.b": "-"}, protocol="llm_adapters")
    assert standing() == standing("strict") == {"a.b": "+-+", "c": "-"}
    assert standing("loglikelihood") == {"a.b": "--+"}
    assert read_run(Path("runs/lora-1"), "loglikelihood").results["sets"]["a.b"]["accuracy"] == 1 / 3
    keep(c="++", protocol="loglikelihood")
    assert standing() == {"a.b": "+-+", "c": "++"}
    assert standing("strict") == {"a.b": "+-+", "c": "-"}
    assert standing("loglikelihood") == {"a.b": "--+", "c": "++"}
    with pytest.raises(
        UserError, match=r"not tested by own: adapters-pl test --ckpt_path .*lora-1 --data.protocol own"
    ):
        standing("own")


def test_a_repeated_test_says_how_many_rows_rounding_changed(keep):
    assert keep(a="++--", model="m", eval_batch_size=1) == []
    [line] = keep(a="+--+", model="m", eval_batch_size=8)
    assert line == "a: of 4 rows 2 texts and 2 verdicts differ from the same test at batch size 1"
    changed = {"eval_batch_size": 1, "texts_changed": 2, "verdicts_changed": 2}
    assert results()["sets"]["a"]["repeated"] == changed
    assert keep(a="----", model="another") == []
    assert "repeated" not in results()["sets"]["a"]


def test_each_set_is_looked_at_by_itself_and_the_test_as_a_whole_is_of_those_that_stand(keep):
    keep(a="++", b="-", command="first")
    keep(a="+", b="--", command="second")
    assert standing() == {"a": "++", "b": "--"}
    assert beside() == ["+", "-"]
    assert (results()["command"], results()["average"]) == ("second", None)
    keep(a="+", b="+", command="third")
    assert results()["command"] == "second"
    assert beside() == ["+", "-", "+"]


def test_a_test_that_is_put_in_its_place_stands_beside_no_more(keep):
    keep(a="+-")
    keep(a="+")
    keep(a="+", overwrite=True)
    assert (standing(), others()) == ({"a": "+"}, {})
    assert [path.name for path in Path("runs/lora-1/predictions").rglob("*.jsonl")] == ["a.jsonl"]


def test_a_test_that_was_killed_while_it_took_the_place_of_another_loses_neither(keep, monkeypatch):
    keep(a="+")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "merge_results", None)
        with pytest.raises(TypeError):
            keep(a="--")
    with pytest.raises(UserError, match="does not belong to the figures"):
        read_run(Path("runs/lora-1"))
    keep(a="--")
    assert (standing(), beside()) == ({"a": "--"}, ["+"])


# ---- runs of an earlier version, whose figures name no predictions


@pytest.fixture
def earlier(keep):
    """A run whose results were written by an earlier version."""
    keep(a="+-+")
    file = Path("runs/lora-1/results.json")
    written = json.loads(file.read_text())
    for key in ("predictions_sha256", "settings"):
        del written["sets"]["a"][key]
    del written["others"]
    file.write_text(json.dumps(written))


def test_an_earlier_run_is_compared_where_its_rows_give_its_figures(earlier, keep):
    assert standing() == {"a": "+-+"}
    file = Path("runs/lora-1/predictions/a.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    for wrong in (lines[:2], [lines[0], *lines[1:2] * 2]):
        file.write_text("".join(wrong))
        with pytest.raises(UserError, match="does not belong to the figures"):
            read_run(Path("runs/lora-1"))


def test_an_earlier_test_is_kept_beside_a_larger_one(earlier, keep):
    keep(a="----")
    assert (standing(), beside()) == ({"a": "----"}, ["+-+"])
    Path("runs/lora-1/predictions/a.jsonl").unlink()
    keep(a="-----")
    assert standing() == {"a": "-----"}
    assert [kept["n"] for kept in others().values()] == [3, 4]
