"""The rows of ``published.json``, and what stands beside our results."""

from __future__ import annotations

import importlib.resources
import json

import pytest

from adapters_pl.answers.protocols import PROTOCOLS
from adapters_pl.data import SUITES, set_named
from adapters_pl.evaluation.published import (
    Conditions,
    base_name,
    published_beside,
    published_rows,
    references,
)
from adapters_pl.evaluation.report import published_table
from tests.helpers.texts import printed

COMMONSENSE = SUITES["Commonsense"]


def config(base="yahma/llama-7b-hf", adapter="adapters_pl.LoRA", **arguments):
    """A test's configuration, as far as a comparison asks for it."""
    return {
        "model": {"class_path": "adapters_pl.CausalLMModule", "init_args": {"base": base}},
        "adapter": {"class_path": adapter, "init_args": arguments},
    }


def trained(lr=3e-4, epochs=3, data="adapters_pl.Math10K", train_on_prompt=False, **trainer):
    """A training's configuration, as far as a comparison asks for it."""
    return {
        "model": {"lr": lr},
        "data": {"class_path": data, "init_args": {"train_on_prompt": train_on_prompt}},
        "trainer": {"max_epochs": epochs, "max_steps": -1, **trainer},
    }


def results(protocol="llm_adapters", **accuracies):
    """The figures of a test, by set."""
    return {name: {"accuracy": share, "settings": {"protocol": protocol}} for name, share in accuracies.items()}


# ---- the rows


def test_every_row_is_complete():
    """No key is left out: what a source does not say is ``null``."""
    file = json.loads((importlib.resources.files("adapters_pl.evaluation") / "published.json").read_text())
    keys = {"base", "method", "trained_on", "loss_on", "lr", "epochs", "extractor", "source", "accuracy"}
    assert len(file["rows"]) == len(published_rows())
    for row in file["rows"]:
        assert row.keys() == keys, row
        assert row["source"] in file["sources"]
        assert row["loss_on"] in (None, "response", "all")
        assert row["extractor"] in (None, "whole text", *PROTOCOLS)
        assert row["lr"] is None or 1e-5 < row["lr"] < 0.1
        assert row["epochs"] is None or row["epochs"] in (3, 5, 6, 12)
        assert row["accuracy"]
        assert all(set_named(name).set_name == name and 0 < percent < 100 for name, percent in row["accuracy"].items())
        assert row["trained_on"] in (None, "Math10K", "Commonsense170K")
    assert set(file["sources"]) == {row["source"] for row in file["rows"]}
    same = [(row["base"], row["method"], row["trained_on"], row["source"]) for row in file["rows"]]
    assert len(set(same)) == len(same)


#: The averages that the sources print, which are not stored: base, method, a part of the source, training set.
PRINTED = """
LLaMA-7B   Prefix    816657 35.0 64.6 | LLaMA-7B   Series   816657 44.6 70.8 | LLaMA-7B   Parallel 816657 46.4 72.3
LLaMA-7B   LoRA      816657 46.9 74.7 | LLaMA-13B  Prefix   816657 38.8 68.4 | LLaMA-13B  Series   816657 48.9 79.5
LLaMA-13B  Parallel  816657 50.2 81.5 | LLaMA-13B  LoRA     816657 51.1 80.5 | BLOOMz-7B  Prefix   816657 24.5 44.7
BLOOMz-7B  Series    816657 33.8 66.0 | BLOOMz-7B  Parallel 816657 36.1 65.3 | BLOOMz-7B  LoRA     816657 37.5 68.9
GPT-J-6B   Prefix    816657 30.2 58.5 | GPT-J-6B   Series   816657 39.6 59.0 | GPT-J-6B   Parallel 816657 39.0 59.0
GPT-J-6B   LoRA      816657 41.1 50.2 | LLaMA-13B  LoRA     April  62.4      | LLaMA-13B  AdapterH April  61.6
LLaMA-13B  AdapterP  April  62.4      | LLaMA-13B  Parallel April  64.3      | LLaMA-7B   LoRA     April  55.7
LLaMA-7B   AdapterH  April  53.2      | LLaMA-7B   AdapterP April  55.1      | LLaMA-7B   Parallel April  58.7
BLOOM-7B   LoRA      April  34.6      | BLOOM-7B   AdapterH April  50.5      | BLOOM-7B   AdapterP April  49.4
BLOOM-7B   Parallel  April  46.5      | GPT-J-6B   LoRA     April  51.2      | GPT-J-6B   AdapterH April  53.7
GPT-J-6B   AdapterP  April  55.2      | GPT-J-6B   Parallel April  51.3      | LLaMA-7B   LoRA     DoRA   76.3
LLaMA-7B   DoRA      DoRA   78.4      | LLaMA-2-7B LoRA     DoRA   77.6      | LLaMA-2-7B DoRA     DoRA   79.7
LLaMA-3-8B LoRA      DoRA   80.8      | LLaMA-3-8B DoRA     DoRA   85.2      | LLaMA-7B   PiSSA    17426  82.7
LLaMA-7B   CLOVER    17426  83.7      | LLaMA-13B  PiSSA    17426  85.4      | LLaMA-13B  CLOVER   17426  86.2
LLaMA-2-7B HiRA      17426  81.4      | LLaMA-2-7B PiSSA    17426  84.5      | LLaMA-2-7B CLOVER   17426  85.2
LLaMA-3-8B HiRA      17426  86.7      | LLaMA-3-8B PiSSA    17426  87.3      | LLaMA-3-8B CLOVER   17426  87.9
LLaMA-7B   LoReFT    03592  42.6 80.2 | LLaMA-13B  LoReFT   03592  49.6 83.3 | LLaMA-2-7B LoReFT   03592  81.8
LLaMA-3-8B LoReFT    03592  86.6      | LLaMA-7B   IA3      00119  43.5 77.8 | LLaMA-7B   RoAd4    00119  45.8 80.2
LLaMA-13B  RoAd4     00119  52.3 83.7 | LLaMA-2-7B RoAd4    00119  82.3      | LLaMA-3-8B RoAd4    00119  86.5
"""


def test_the_rows_average_to_what_their_sources_print():
    left = [row for row in published_rows() if row.method]
    for base, method, source, *averages in (
        cell.split() for line in PRINTED.split("\n") for cell in line.split("|") if cell.strip()
    ):
        found = [row for row in left if (row.base, row.method) == (base, method) and source in row.source]
        means = sorted(100 * sum(row.accuracy.values()) / len(row.accuracy) for row in found)
        # Printed with one decimal, and not every one was rounded up: 85.46 stands there as 85.4.
        assert means == pytest.approx([float(average) for average in averages], abs=0.063), (base, method, source)
        left = [row for row in left if row not in found]
    assert not left


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("yahma/llama-7b-hf", "LLaMA-7B"),
        ("/models/LLaMA-13B", "LLaMA-13B"),
        ("bigscience/bloomz-7b1", "BLOOMz-7B"),
        ("EleutherAI/gpt-j-6B", "GPT-J-6B"),
        ("meta-llama/Llama-2-7b-hf", "LLaMA-2-7B"),
        ("meta-llama/Llama-2-7b-chat-hf", None),
        ("meta-llama/Meta-Llama-3-8B", "LLaMA-3-8B"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", None),
        ("meta-llama/Llama-3.1-8B", None),
        ("openlm-research/open_llama_7b", None),
        ("bigscience/bloom-7b1", "BLOOM-7B"),
        ("bigscience/bloomz-7b1-mt", None),
        ("codellama/CodeLlama-7b-hf", None),
        ("quickstart", None),
    ],
)
def test_a_base_is_known_by_its_name(base, name):
    assert base_name(base) == name


# ---- beside ours


def test_the_method_is_the_adapters_own():
    def methods(sets="boolq", **given):
        found = published_beside(results(**{sets: 0.5}), config(**given))
        return [beside.row.method for beside in found if beside.same_method]

    assert methods() == ["LoRA", "LoRA"]
    assert methods(dora=True) == ["DoRA"]
    assert methods(init="pissa") == ["PiSSA"]
    assert methods(adapter="IA3") == ["IA3"]
    assert methods("gsm8k", base="EleutherAI/gpt-j-6b", adapter="adapters_pl.SeriesAdapter") == [
        "Series",
        "AdapterH",
        "AdapterP",
    ]
    assert methods(adapter="mine.Other") == []
    assert methods(base="quickstart") == []
    assert methods("mathqa") == []


@pytest.mark.parametrize(
    "tested",
    [
        {},
        {**config(), "adapter": None},
        {"model": "x", "adapter": 3},
        {**config(), "adapter": [config()["adapter"]] * 2},
    ],
)
def test_nothing_stands_beside_the_base_alone_or_a_configuration_that_is_none(tested):
    assert published_beside(results(boolq=0.5), tested) == []


def test_other_methods_follow_the_best_first():
    found = published_beside(results(**dict.fromkeys(COMMONSENSE, 0.8)), config())
    assert [beside.same_method for beside in found[:3]] == [True, True, False]
    assert [beside.row.method for beside in found[2:6]] == ["CLOVER", "PiSSA", "RoAd4", "LoReFT"]
    clover = found[2]
    assert clover.sets == tuple(COMMONSENSE)
    assert (clover.ours, clover.theirs) == (pytest.approx(0.8), pytest.approx(0.837, abs=5e-4))


def test_what_differs_is_said_where_both_sides_state_it():
    def notes(protocol="llm_adapters", training=None):
        (newest, _) = published_beside(results(protocol, gsm8k=0.4), config(), training)[:2]
        return list(newest.differences)

    assert notes(training=trained(train_on_prompt=True)) == []
    assert notes(training=trained(lr=1e-4, train_on_prompt=True)) == ["lr 3e-4, ours 1e-4"]
    assert notes(training=trained(epochs=5)) == ["loss on all, ours response", "epochs 3, ours 5"]
    assert notes("strict", trained(data="Commonsense170K", train_on_prompt=True)) == [
        "trained on Math10K, ours Commonsense170K",
        "extractor llm_adapters, ours strict",
    ]
    # Nothing is known of a training, or its length depends on something else.
    assert notes() == []
    assert notes(training=trained(epochs=5, max_steps=10, train_on_prompt=True)) == []
    assert notes(training={**trained(lr=1e-2, train_on_prompt=True), "optimizer": {"class_path": "x"}}) == []
    assert notes(training={"model": 1, "data": {"init_args": []}, "trainer": {"max_epochs": "many"}}) == []


def test_what_the_source_does_not_say_never_differs():
    ours = Conditions("Math10K", "response", 1e-4, 3, "strict")
    assert Conditions().differences(ours) == []
    assert ours.differences(Conditions()) == []


def test_references_have_all_their_sets():
    assert {other.name: len(other.accuracy) for other in references()} == {"GPT-3.5": 7, "ChatGPT": 8}


def test_the_table_says_what_differs_and_where_the_row_comes_from():
    sets = results(gsm8k=0.40, SVAMP=0.50, AddSub=0.9)
    shown = printed(published_table(sets, config(), trained(lr=1e-4)))
    lines = [line for line in shown.splitlines() if "gsm8k" in line]
    for line, parts in zip(lines, [("40.0", "37.5", "+2.5", "56.4"), ("40.0", "30.9", "+9.1", "56.4")], strict=True):
        assert all(part in line for part in parts)
    newest, april = [line for line in shown.splitlines() if "average" in line]
    assert "45.0" in newest  # of gsm8k and SVAMP: for AddSub nothing is in the newest table
    assert "44.8" in newest
    assert "60.0" in april
    assert "arXiv 2304.01933" in shown
    assert "published: loss on all, ours response; lr 3e-4, ours 1e-4" in shown


def test_the_best_of_the_other_methods_stand_in_one_table():
    shown = printed(
        published_table(results(**dict.fromkeys(COMMONSENSE, 0.8)), config(), trained(data="Commonsense170K"))
    )
    assert "Other methods on LLaMA-7B, mean of 8 sets" in shown
    (line,) = [line for line in shown.splitlines() if "CLOVER" in line and "83.7" in line]
    assert "-3.7" in line
    assert "CLOVER: arXiv 2411.17426, table 2\npublished: lr 1e-4, ours 3e-4" in "\n".join(
        line.rstrip() for line in shown.splitlines()
    )
    assert shown.count("arXiv 2409.00119") == 1  # of five
    assert "Prefix" not in shown


def test_nothing_is_shown_where_nothing_was_published():
    assert published_table(results(mathqa=0.9), config()) is None
    assert published_table(results(gsm8k=0.9), config(base="quickstart")) is None
