"""From records to results and tables."""

from __future__ import annotations

import pytest

from adapters_pl.evaluation import report
from adapters_pl.evaluation.metrics import wilson_interval
from tests.helpers.texts import printed


def record(correct, **more):
    return {"correct": correct, "prediction": "1", "finish": "stop", **more}


def result(accuracy, n=10, base=None):
    return {"n": n, "accuracy": accuracy, "interval": [0.1, 0.9], "base_accuracy": base}


# ---- one set


def test_a_sets_result():
    records = [record(True), record(False, prediction=None), record(False, finish="length"), record(True)]
    assert report.summarize(records, seconds=2.0, tokens=50) == {
        "n": 4,
        "accuracy": 0.5,
        "interval": list(wilson_interval(2, 4)),
        "base_accuracy": None,
        "unparsed": 1,
        "truncated": 1,
        "seconds": 2.0,
        "tokens_per_second": 25.0,
    }


def test_the_base_is_in_the_result_where_it_was_tested():
    found = report.summarize([record(True, base_correct=False), record(True, base_correct=True)])
    assert (found["accuracy"], found["base_accuracy"]) == (1.0, 0.5)


def test_scored_options_have_a_normalised_accuracy():
    records = [record(True, correct_normalised=False, finish="scored"), record(False, correct_normalised=False)]
    assert report.summarize(records)["accuracy_normalised"] == 0.0


def test_samples_have_pass_at_k_beside_the_majority():
    records = [
        record(False, samples=["a"] * 3, passed=True, sample_correct=[True, False, False]),
        record(True, samples=["a"] * 3, passed=True, sample_correct=[True, True, False]),
    ]
    found = report.summarize(records)
    assert (found["accuracy"], found["pass@3"], found["mean_accuracy"], found["samples"]) == (0.5, 1.0, 0.5, 3)


# ---- several


def test_every_set_weighs_the_same_in_the_average():
    sets = {"a": result(0.2, n=1000, base=0.1), "b": result(0.6, n=10, base=0.3)}
    average = report.macro_average(sets)
    assert average == {"accuracy": pytest.approx(0.4), "base_accuracy": pytest.approx(0.2), "sets": ["a", "b"]}
    assert report.macro_average({"a": result(0.2)}) is None
    assert report.macro_average({"a": result(0.2, base=0.1), "b": result(0.2)})["base_accuracy"] is None


def test_the_table_ends_with_the_average():
    shown = printed(report.results_table({"a": result(0.25, base=0.1), "b": result(0.5, base=0.2)}, "LoRA 'default'"))
    lines = [line for line in shown.splitlines() if "average" in line]
    assert len(lines) == 1
    for part in ("15.0", "37.5", "+22.5"):
        assert part in lines[0]
    assert "average of 2" in lines[0]
    assert "10.0-90.0" in shown


def test_what_a_protocol_says_beside_the_accuracy_has_its_column():
    scored = {
        "boolq": {**result(0.25), "accuracy_normalised": 0.375},
        "piqa": {**result(0.5), "accuracy_normalised": 1.0},
    }
    rows = printed(report.results_table(scored, None)).splitlines()
    assert "per character" in rows[2]
    (line,) = [row for row in rows if "boolq" in row]
    assert "37.5" in line
    sampled = printed(report.results_table({"gsm8k": {**result(0.25), "pass@8": 0.625}}, "LoRA"))
    assert "pass@8" in sampled
    assert "62.5" in sampled
    assert "per character" not in sampled


def test_the_base_alone_has_no_second_column():
    shown = printed(report.results_table({"a": result(0.25)}, None))
    assert "base alone" in shown
    assert "25.0" in shown
    assert "+" not in shown.replace("┼", "")


def test_sets_are_marked_by_what_was_trained_on():
    sets = {"gsm8k": {**result(0.25), "distribution": "in"}, "SVAMP": {**result(0.5), "distribution": "out"}}
    rows = [line.split() for line in printed(report.results_table(sets, "LoRA")).splitlines()]
    assert [row[3] for row in rows if len(row) > 3 and row[1] in sets] == ["in", "out"]
