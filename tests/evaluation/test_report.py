"""From records to results and tables; what was published beside them."""

from __future__ import annotations

import pytest
from rich.console import Console

from adapters_pl.data import SUITES
from adapters_pl.evaluation import report
from adapters_pl.evaluation.metrics import wilson_interval
from adapters_pl.evaluation.report import base_name, published, references


def record(correct, **more):
    return {"correct": correct, "prediction": "1", "finish": "stop", **more}


def result(accuracy, n=10, base=None):
    return {"n": n, "accuracy": accuracy, "interval": [0.1, 0.9], "base_accuracy": base}


def text(table):
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


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
    shown = text(report.results_table({"a": result(0.25, base=0.1), "b": result(0.5, base=0.2)}, "LoRA 'default'"))
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
    rows = text(report.results_table(scored, None)).splitlines()
    assert "per character" in rows[2]
    (line,) = [row for row in rows if "boolq" in row]
    assert "37.5" in line
    sampled = text(report.results_table({"gsm8k": {**result(0.25), "pass@8": 0.625}}, "LoRA"))
    assert "pass@8" in sampled
    assert "62.5" in sampled
    assert "per character" not in sampled


def test_the_base_alone_has_no_second_column():
    shown = text(report.results_table({"a": result(0.25)}, None))
    assert "base alone" in shown
    assert "25.0" in shown
    assert "+" not in shown.replace("┼", "")


def test_sets_are_marked_by_what_was_trained_on():
    sets = {"gsm8k": {**result(0.25), "distribution": "in"}, "SVAMP": {**result(0.5), "distribution": "out"}}
    rows = [line.split() for line in text(report.results_table(sets, "LoRA")).splitlines()]
    assert [row[3] for row in rows if len(row) > 3 and row[1] in sets] == ["in", "out"]


# ---- published numbers


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("yahma/llama-7b-hf", "LLaMA-7B"),
        ("/models/LLaMA-13B", "LLaMA-13B"),
        ("bigscience/bloomz-7b1", "BLOOMz-7B"),
        ("EleutherAI/gpt-j-6B", "GPT-J-6B"),
        ("meta-llama/Llama-2-7b-hf", None),
        ("meta-llama/Meta-Llama-3-8B", None),
        ("openlm-research/open_llama_7b", None),
        ("bigscience/bloom-7b1", "BLOOM-7B"),
        ("bigscience/bloomz-7b1-mt", None),
        ("codellama/CodeLlama-7b-hf", None),
        ("quickstart", None),
    ],
)
def test_a_base_is_known_by_its_name(base, name):
    assert base_name(base) == name


def test_numbers_are_those_of_the_same_base_method_and_protocol():
    newest, april = published("yahma/llama-7b-hf", "LoRA", "llm_adapters")
    assert (newest.accuracy["gsm8k"], newest.accuracy["boolq"]) == (pytest.approx(0.375), pytest.approx(0.689))
    assert (april.accuracy["gsm8k"], april.accuracy["MultiArith"]) == (pytest.approx(0.309), pytest.approx(0.883))
    assert "2304.01933" in newest.source
    assert "April 2023" in april.source
    assert published("yahma/llama-7b-hf", "LoRA", "strict") == []
    assert published("yahma/llama-7b-hf", "IA3", "llm_adapters") == []
    assert published("yahma/llama-7b-hf", None, "llm_adapters") == []
    assert published("quickstart", "LoRA", "llm_adapters") == []


def test_series_adapters_have_several_names():
    found = published("EleutherAI/gpt-j-6b", "SeriesAdapter", "llm_adapters")
    assert [one.name for one in found] == ["GPT-J-6B Series", "GPT-J-6B AdapterH", "GPT-J-6B AdapterP"]


def test_the_published_averages_are_the_tables():
    """The averages that the README prints, which are not stored, follow from its numbers."""
    printed = {
        ("yahma/llama-7b", "PrefixTuning"): [(35.0, 64.6)],
        ("yahma/llama-7b", "SeriesAdapter"): [(44.6, 70.8), (53.2,), (55.1,)],
        ("yahma/llama-7b", "ParallelAdapter"): [(46.4, 72.3), (58.7,)],
        ("yahma/llama-7b", "LoRA"): [(46.9, 74.7), (55.7,)],
        ("yahma/llama-13b", "PrefixTuning"): [(38.8, 68.4)],
        ("yahma/llama-13b", "SeriesAdapter"): [(48.9, 79.5), (61.6,), (62.4,)],
        ("yahma/llama-13b", "ParallelAdapter"): [(50.2, 81.5), (64.3,)],
        ("yahma/llama-13b", "LoRA"): [(51.1, 80.5), (62.4,)],
        ("bloomz-7b1", "PrefixTuning"): [(24.5, 44.7)],
        ("bloomz-7b1", "SeriesAdapter"): [(33.8, 66.0)],
        ("bloomz-7b1", "ParallelAdapter"): [(36.1, 65.3)],
        ("bloomz-7b1", "LoRA"): [(37.5, 68.9)],
        ("bloom-7b1", "SeriesAdapter"): [(50.5,), (49.4,)],
        ("bloom-7b1", "ParallelAdapter"): [(46.5,)],
        ("bloom-7b1", "LoRA"): [(34.6,)],
        ("gpt-j-6b", "PrefixTuning"): [(30.2, 58.5)],
        ("gpt-j-6b", "SeriesAdapter"): [(39.6, 59.0), (53.7,), (55.2,)],
        ("gpt-j-6b", "ParallelAdapter"): [(39.0, 59.0), (51.3,)],
        ("gpt-j-6b", "LoRA"): [(41.1, 50.2), (51.2,)],
    }
    for (base, method), averages in printed.items():
        found = published(base, method, "llm_adapters")
        assert len(found) == len(averages)
        for one, expected in zip(found, averages, strict=True):
            math = [value for name, value in one.accuracy.items() if name not in SUITES["Commonsense"]]
            rest = [value for name, value in one.accuracy.items() if name in SUITES["Commonsense"]]
            means = [100 * sum(values) / len(values) for values in (math, rest) if values]
            # Printed with one decimal, and not every half was rounded up.
            assert means == pytest.approx(expected, abs=0.06), (one.name, one.source)


def test_every_published_set_is_one_of_ours():
    from adapters_pl.data import set_named

    for other in references("llm_adapters"):
        for name in other.accuracy:
            assert set_named(name).set_name == name
    assert {other.name for other in references("llm_adapters")} == {"GPT-3.5", "ChatGPT"}
    assert references("strict") == []


def test_ours_beside_the_published():
    sets = {"gsm8k": result(0.40), "SVAMP": result(0.50), "AddSub": result(0.9)}
    shown = text(report.published_table(sets, "yahma/llama-7b-hf", "LoRA", "llm_adapters"))
    lines = [line for line in shown.splitlines() if "gsm8k" in line]
    for line, parts in zip(lines, [("40.0", "37.5", "+2.5", "56.4"), ("40.0", "30.9", "+9.1", "56.4")], strict=True):
        assert all(part in line for part in parts)
    newest, april = [line for line in shown.splitlines() if "average" in line]
    assert "45.0" in newest  # of gsm8k and SVAMP: for AddSub nothing is in the newest table
    assert "44.8" in newest
    assert "60.0" in april
    assert report.published_table({"mathqa": result(0.9)}, "yahma/llama-7b-hf", "LoRA", "llm_adapters") is None
    assert report.published_table(sets, "yahma/llama-7b-hf", "LoRA", "strict") is None
