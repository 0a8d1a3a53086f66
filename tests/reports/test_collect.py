"""What can be read is shown, and what cannot is a line: directories are strangers'."""

from __future__ import annotations

import json
import os

import pytest

from adapters_pl.inputs.errors import UserError
from adapters_pl.reports.collect import MOST_KEYS, MOST_SETS, find_all, read_run_directory, read_study
from adapters_pl.reports.comparison import read_run
from tests.helpers.runs import config, records, write_run, write_study


@pytest.mark.parametrize(
    ("figures", "left"),
    [
        ({"n": 2, "accuracy": float("nan")}, None),
        ({"n": 2, "accuracy": 7}, None),
        ({"n": 0, "accuracy": 0.5}, None),
        ({"n": True, "accuracy": 0.5}, None),
        ({"n": 10**400, "accuracy": 0.5}, None),
        ({"n": 2, "accuracy": "0.5"}, None),
        ({"n": 2, "accuracy": 0.5, "interval": [0.1, "x"], "base_accuracy": -1}, (None, None)),
        ({"n": 2, "accuracy": 0.5, "interval": [0.1, 0.9], "base_accuracy": 0}, ([0.1, 0.9], 0)),
    ],
)
def test_figures_that_are_none_are_left_out(tmp_path, figures, left):
    run = write_run(tmp_path / "a-1", {})
    run.write("results.json", {"sets": {"sums": figures}})
    sets = read_run_directory(run.path).sets
    assert (None if not sets else (sets["sums"]["interval"], sets["sums"]["base_accuracy"])) == left


def test_each_broken_file_is_a_line_and_the_others_are_read(tmp_path):
    run = write_run(tmp_path / "a-1", {"sums": records("+-")}, losses=[(0, 1.0, None)])
    for name in ("config.yaml", "metrics.csv", "trial.json"):
        (run.path / name).write_bytes(b"\xff\xfe[")
    seen = read_run_directory(run.path)
    assert len(seen.problems) == 3
    assert seen.sets["sums"]["accuracy"] == 0.5
    assert (seen.method, seen.base, seen.curves) == ("base alone", "", {})


def test_curves_hold_finite_numbers_alone(tmp_path):
    run = write_run(tmp_path / "a-1", {})
    (run.path / "metrics.csv").write_text("step,train_loss,lr\n0,1.5,\n1,nan,2\nx,3,4\n2,inf,\n3,")
    assert read_run_directory(run.path).curves == {"train_loss": [(0, 1.5)], "lr": [(1, 2.0)]}


def test_methods_say_what_they_are(tmp_path):
    several = {**config(), "adapter": [config(rank=4, dora=True)["adapter"], config("IA3", name="x")["adapter"]]}
    run = write_run(tmp_path / "a-1", {}, about=several)
    assert read_run_directory(run.path).method == "LoRA (DoRA, rank 4) + IA3"
    (run.path / "config.yaml").write_text("adapter: 7\nmodel: [1]\ndata: x\nseed_everything: no\n")
    seen = read_run_directory(run.path)
    assert (seen.method, seen.base, seen.trained_on, seen.seed) == ("base alone", "", "", None)


def test_runs_of_one_name_are_told_apart_and_none_comes_twice(tmp_path):
    for folder in ("one", "two"):
        write_run(tmp_path / folder / "a-1", {})
    names = [str(tmp_path / "one/a-1"), str(tmp_path / "two/a-1"), str(tmp_path / "one/../one/a-1")]
    assert [run.name for run in find_all(names, tmp_path)] == ["one/a-1", "two/a-1"]


def test_a_study_is_read_without_its_own_file(tmp_path):
    trials = [({"model.lr": [1, {"x": 2}]}, "complete", {}), ({"model.lr": 2}, "running", {})]
    write_study(tmp_path / "s", {}, trials)
    (tmp_path / "s/study.yaml").write_text("[]")
    (tmp_path / "s/trial-1/trial.json").write_text(json.dumps({"state": 1}))
    study = read_study(tmp_path / "s")
    assert len(study.problems) == 1
    assert study.axes == {"model.lr": [[1, {"x": 2}]]}
    assert [trial.trial is None for trial in study.trials] == [False, True]


def test_what_lies_outside_of_a_run_or_a_study_is_a_line_and_not_read(tmp_path):
    run = write_run(tmp_path / "runs/a-1", {"sums": records("+-")}, losses=[(0, 1.0, None)])
    for name in ("results.json", "config.yaml", "metrics.csv", "fit.json"):
        (run.path / name).rename(tmp_path / name)
        (run.path / name).symlink_to(tmp_path / name)
    seen = read_run_directory(run.path)
    assert (seen.results, seen.config, seen.curves, seen.effort) == ({}, {}, {}, {})
    assert sum("link that leads out" in problem for problem in seen.problems) == 3  # fit.json's absence is said later
    write_study(tmp_path / "s", {}, [({"model.lr": 1}, "complete", {})] * 2)
    (tmp_path / "s/trial-0").rename(tmp_path / "moved")
    (tmp_path / "s/trial-0").symlink_to(tmp_path / "moved")
    study = read_study(tmp_path / "s")
    assert [trial.path.name for trial in study.trials] == ["trial-1"]
    assert "link that leads out" in study.problems[0]


def test_predictions_outside_of_a_run_are_not_compared(tmp_path):
    run = write_run(tmp_path / "runs/a-1", {"sums": records("+-")})
    (run.path / "predictions").rename(tmp_path / "predictions")
    (run.path / "predictions").symlink_to(tmp_path / "predictions")
    with pytest.raises(UserError, match="link that leads out"):
        read_run(run.path)


def test_a_set_whose_name_no_file_can_have_has_no_predictions(tmp_path):
    run = write_run(tmp_path / "a-1", {"sums": records("+-")})
    results = run.results()
    run.write("results.json", {**results, "sets": {**results["sets"], "x" * 5000: {"n": 2, "accuracy": 0.5}}})
    assert list(read_run(run.path).answers) == ["sums"]


def test_of_more_than_anybody_has_a_part_is_looked_at(tmp_path):
    run = write_run(tmp_path / "a-1", {})
    run.write("results.json", {"sets": {f"s{n}": {"n": 2, "accuracy": 0.5} for n in range(MOST_SETS + 1)}})
    seen = read_run_directory(run.path)
    assert len(seen.sets) == MOST_SETS
    assert "has 501 sets, of which 500" in seen.problems[0]
    values = {f"k{n}": n for n in range(MOST_KEYS + 1)}
    write_study(tmp_path / "s", values, [(values, "complete", {})])
    study = read_study(tmp_path / "s")
    assert len(study.axes) == MOST_KEYS
    assert "has values for 101 keys, over 100" in study.trials[0].problems[0]


@pytest.mark.parametrize("step", ["9" * 400, "9" * 5000, "\u00b2", "-1", "1.5"])
def test_a_step_that_is_none_is_left_out(tmp_path, step):
    run = write_run(tmp_path / "a-1", {})
    (run.path / "metrics.csv").write_text(f"step,train_loss\n{step},2\n1,3\n")
    seen = read_run_directory(run.path)
    assert (seen.curves, seen.problems) == ({"train_loss": [(1, 3.0)]}, [])


def test_a_configuration_that_is_a_pipe_is_not_waited_for(tmp_path):
    run = write_run(tmp_path / "a-1", {"sums": records("+-")})
    (run.path / "config.yaml").unlink()
    os.mkfifo(run.path / "config.yaml")
    assert read_run(run.path).trained is None


@pytest.mark.parametrize("name", ["a\0b", "\ud800", ""])
def test_a_set_of_any_name_is_none_to_look_for(tmp_path, name):
    run = write_run(tmp_path / "a-1", {"sums": records("+-")})
    results = run.results()
    (run.path / "results.json").write_text(json.dumps({**results, "sets": {name: {"n": 2, "accuracy": 0.5}}}))
    assert read_run(run.path).answers == {}
