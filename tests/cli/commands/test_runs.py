"""The list of runs and studies, whatever state they are in."""

from __future__ import annotations

import json

import pytest

from adapters_pl.cli.main import main
from adapters_pl.runs.at_once import locked
from tests.helpers.runs import config, records, write_run, write_study


@pytest.fixture
def listed(tmp_path, monkeypatch, capsys):
    """What ``adapters-pl runs`` prints of ``runs``, as objects by name."""
    monkeypatch.chdir(tmp_path)

    def call():
        assert main(["runs", "--json"]) == 0
        return {about["name"]: about for about in json.loads(capsys.readouterr().out)}

    return call


def test_a_run_is_listed_with_its_figures(tmp_path, listed, capsys):
    sets = {"sums": records("++-", base="---"), "word_problems-unseen": records("+-")}
    run = write_run(tmp_path / "runs/lora-1", sets, parameters=12_345)
    found = listed()["lora-1"]
    assert (found["state"], found["method"], found["base"]) == ("complete", "LoRA (rank 8)", "quickstart")
    assert (found["trainable_parameters"], found["seed"], found["data"]) == (12_345, 42, "WordProblems")
    figures = run.results()["sets"]["sums"]
    assert found["sets"]["sums"] == {key: figures[key] for key in found["sets"]["sums"]}
    assert found["average"] == run.results()["average"]["accuracy"]
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "12,345" in out
    assert "sums  66.7 (20.8-93.9)" in out
    assert "word_problems-unseen  50.0 (9.5-90.5)" in out
    assert "11-29" in out


def test_states(tmp_path, listed):
    for state in ("complete", "interrupted", "crashed", "running"):
        write_run(tmp_path / "runs" / f"{state}-1", {}, state=state)
    killed = write_run(tmp_path / "runs/killed-1", {}, state="running")
    (killed.path / ".fit.lock").touch()
    for name in ("old-1", "empty-1", "crash-1", "tested-1"):
        run = write_run(tmp_path / "runs" / name, {"sums": records("+")} if name == "tested-1" else {})
        (run.path / "fit.json").unlink()
        if name in ("empty-1", "tested-1"):
            (run.path / "checkpoints").rmdir()
    (tmp_path / "runs/crash-1/crash.log").touch()
    (tmp_path / "runs/old-1/adapter").mkdir()
    with locked(tmp_path / "runs/running-1/.fit.lock"):
        found = {name: about["state"] for name, about in listed().items()}
    assert found == {
        **{f"{state}-1": state for state in ("complete", "interrupted", "crashed", "running")},
        **{"killed-1": "interrupted", "old-1": "complete", "empty-1": "empty", "crash-1": "crashed"},
        "tested-1": "tested",
    }


def test_the_trials_of_a_study_stand_below_it(tmp_path, listed, capsys):
    trials = [({"adapter.rank": rank}, "complete", {"sums": records("+-")}) for rank in (2, 4)]
    others = [({"adapter.rank": 8}, state, {}) for state in ("pruned", "running", "running")]
    write_study(tmp_path / "runs/sizes", {"adapter.rank": [2, 4]}, [*trials, *others])
    (tmp_path / "runs/sizes/trial-4/.trial.lock").touch()
    with locked(tmp_path / "runs/sizes/trial-3/.trial.lock"):
        found = listed()["sizes"]
    assert (found["kind"], found["axes"]) == ("study", {"adapter.rank": [2, 4, 8]})
    assert [trial["name"] for trial in found["trials"]] == [f"sizes/trial-{number}" for number in range(5)]
    states = [trial["state"] for trial in found["trials"]]
    assert states == ["complete", "complete", "pruned", "running", "interrupted"]
    assert main(["runs"]) == 0
    assert "2 of 5 complete" in capsys.readouterr().out


def test_what_cannot_be_read_is_a_line_and_no_end(tmp_path, listed, capsys):
    run = write_run(tmp_path / "runs/a-1", {"sums": records("+")})
    (run.path / "results.json").write_text('{"sets": {"sums": {"n"')
    write_run(tmp_path / "runs/b-1", {}, about=config(base="\x1b[31mred[bold]"))
    assert "results.json" in listed()["a-1"]["problems"][0]
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "note: runs/a-1/results.json: cannot be read" in out
    assert "\x1b" not in out
    assert "red[bold]" in out


def test_no_folder_and_no_run_are_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 1
    assert capsys.readouterr().err == "error: There is no folder 'runs'; name the folder of runs with --root.\n"
    (tmp_path / "runs").mkdir()
    assert main(["runs"]) == 1
    assert "No run and no study in 'runs' yet" in capsys.readouterr().err


def test_json_holds_nothing_that_a_terminal_obeys(tmp_path, capsys):
    run = write_run(tmp_path / "a-1", {})
    run.write("results.json", {"sets": {"x\x9b31m\x1b[2J": {"n": 2, "accuracy": 0.5}}})
    assert main(["runs", "--root", str(tmp_path), "--json"]) == 0
    [about] = json.loads(shown := capsys.readouterr().out)
    assert list(about["sets"]) == ["x\N{WHITE SQUARE}31m\x1b[2J"]
    assert not {"\x9b", "\x1b"} & set(shown)
