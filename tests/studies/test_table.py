"""The table at the end: what differs, seeds together, and the sets apart."""

from __future__ import annotations

import json

import pytest

from adapters_pl.evaluation.metrics import mean_interval
from adapters_pl.inputs.tables import print_table

pytest.importorskip("optuna")

from adapters_pl.studies.ledger import COMPLETE, FAILED, Slot
from adapters_pl.studies.table import described, results_table


@pytest.fixture
def cells(tmp_path):
    """The headings and rows of the table of slots, whose trials left figures by set."""

    def cells(slots, **distributions):
        for slot in slots:
            path = tmp_path / f"trial-{slot.number}"
            path.mkdir()
            sets = {name: {"n": 1, "accuracy": slot.accuracy, "distribution": of} for name, of in distributions.items()}
            (path / "results.json").write_text(json.dumps({"sets": sets}))
        table = results_table("s", tmp_path, slots)
        rows = zip(*(list(column.cells) for column in table.columns), strict=True)
        return [str(column.header) for column in table.columns], list(rows)

    return cells


def test_trials_that_differ_in_the_seed_alone_are_one_line_with_an_interval(cells):
    values = [
        {"adapter": "LoRA", "adapter.rank": rank, "seed_everything": seed} for rank in (4, 8) for seed in (1, 2, 3)
    ]
    slots = [Slot(n, each, COMPLETE, 0.1 * n) for n, each in enumerate(values)]
    slots[5] = Slot(5, values[5], FAILED, None, "fit: no")
    heads, rows = cells(slots)
    assert heads == ["rank", "trials", "state", "accuracy", "95% interval over seeds"]
    assert rows[0] == ("4", "0, 1, 2", "complete", "10.0", "0.0 to 34.8")
    assert rows[1] == ("8", "3, 4, 5", "2 complete, 1 failed", "35.0", "0.0 to 98.5")


def test_axes_of_other_grids_are_empty_and_sets_stand_apart(cells):
    slots = [Slot(0, {"config": "methods/lora.yaml", "adapter.rank": 4}, COMPLETE, 0.5)]
    slots.append(Slot(1, {"config": "methods/prefix.yaml"}, COMPLETE, 0.25))
    heads, rows = cells(slots, a="in", b="out")
    assert heads == ["config", "trials", "state", "accuracy", "in", "out"]  # one rank does not differ
    assert rows == [
        ("lora", "0", "complete", "50.0", "50.0", "50.0"),
        ("prefix", "1", "complete", "25.0", "25.0", "25.0"),
    ]


def test_a_key_that_only_some_have_is_shown_where_it_tells_two_apart(cells):
    several = [{"adapter": "LoRA"}, {"adapter": "LoRA", "adapter.dora": True}, {"adapter": "IA3", "model.lr": 0.01}]
    heads, rows = cells([Slot(n, {**values, "seed_everything": n}, COMPLETE, 0.5) for n, values in enumerate(several)])
    assert heads[:3] == ["adapter", "dora", "trials"]
    assert [row[:2] for row in rows] == [("LoRA", ""), ("LoRA", "true"), ("IA3", "")]


def test_every_trial_shows_what_is_its_own(cells):
    controls = [{"adapter": "LoRA", "data.shuffle_answers": True}, {"adapter": "LoRA", "model.random_init": True}]
    heads, rows = cells([Slot(n, values, COMPLETE, 0.5) for n, values in enumerate(controls)])
    assert heads[:3] == ["shuffle_answers", "random_init", "trials"]
    assert [row[:2] for row in rows] == [("true", ""), ("", "true")]


def test_a_few_sets_have_a_column_each(cells):
    heads, _ = cells([Slot(0, {"a": 1}, COMPLETE, 0.5)], x=None, y=None)
    assert heads == ["a", "trials", "state", "accuracy", "x", "y"]


def test_a_set_is_called_as_a_stranger_calls_it(tmp_path, capsys):
    (tmp_path / "trial-0").mkdir()
    sets = {name: {"n": 1, "accuracy": 0.5} for name in ("[/no]", "\x1b[31m")}
    (tmp_path / "trial-0/results.json").write_text(json.dumps({"sets": sets}))
    print_table(results_table("[s]", tmp_path, [Slot(0, {"a": "[bold]x"}, COMPLETE, 0.5)]))
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[s]: accuracy", "[bold]x", "[/no]", "\N{WHITE SQUARE}[31m"))


def test_values_in_a_line():
    line = described({"config": "methods/lora.yaml", "adapter.target_modules": ["q"], "data.packing": True})
    assert line == 'config lora, adapter.target_modules ["q"], data.packing true'
    assert described({}) == "values to be drawn"


def test_the_interval_of_a_mean_is_students():
    assert mean_interval([0.5]) == (0.5, None, None)
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    mean, low, high = mean_interval([0.0, 1.0] * 20)
    assert high - mean == pytest.approx(1.96 * (0.25 * 40 / 39 / 40) ** 0.5)
