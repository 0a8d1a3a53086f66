"""The run directory: numbering, the newest run, whole files."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters_pl.inputs.errors import UserError
from adapters_pl.runs.at_once import replacing, sweep
from adapters_pl.runs.run import Run, environment, slurm_job


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "runs", "lora")


# ---- numbering


def test_runs_of_a_recipe_are_numbered_from_one(tmp_path):
    root = tmp_path / "deep" / "runs"
    assert [Run.create(root, "lora").path.name for _ in range(3)] == ["lora-1", "lora-2", "lora-3"]
    assert Run.create(root, "dora").path == root / "dora-1"
    assert sorted(path.name for path in root.iterdir()) == ["dora-1", "lora-1", "lora-2", "lora-3"]


def test_numbers_are_not_compared_as_text_and_gaps_stay(tmp_path):
    for name in ("lora-2", "lora-10", "lora-x", "lora-7b-90", "lora", "dora-50"):
        (tmp_path / name).mkdir()
    assert Run.create(tmp_path, "lora").path.name == "lora-11"


def test_a_run_never_takes_a_directory_that_another_made_meanwhile(tmp_path, monkeypatch):
    look = Path.glob

    def look_and_be_overtaken(folder, pattern):
        found = list(look(folder, pattern))
        (folder / "lora-1").mkdir(exist_ok=True)
        return iter(found)

    monkeypatch.setattr(Path, "glob", look_and_be_overtaken)
    assert Run.create(tmp_path, "lora").path.name == "lora-2"


def test_runs_that_begin_together_never_share_a_directory(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Run.create(tmp_path / "runs", "lora").path.name, range(16)))
    assert sorted(made) == sorted(f"lora-{n}" for n in range(1, 17))


def test_a_root_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run directory '.*file' cannot be made"):
        Run.create(tmp_path / "file", "lora")
    with pytest.raises(UserError, match=r"run directory '.*runs' cannot be made"):
        Run.create(tmp_path / "file" / "runs", "lora")


# ---- the newest run


def test_the_latest_run_is_the_one_marked_last(tmp_path):
    first, second, _ = (Run.create(tmp_path, "lora") for _ in range(3))
    second.mark_latest()
    assert Run.latest(tmp_path).path == second.path
    first.mark_latest()
    assert Run.latest(tmp_path).path == first.path


@pytest.mark.parametrize("pointer", [None, "", "\n", "lora-9\n"])
def test_no_run_yet_says_how_to_begin(tmp_path, pointer):
    Run.create(tmp_path, "lora")  # begun, but never marked
    if pointer is not None:
        (tmp_path / "latest").write_text(pointer)
    with pytest.raises(UserError, match=r"No run in .*adapters-pl fit"):
        Run.latest(tmp_path)


def test_a_missing_root_holds_no_run(tmp_path):
    with pytest.raises(UserError, match="No run in"):
        Run.latest(tmp_path / "absent")


# ---- checkpoints


def test_a_checkpoint_is_found_by_its_role(run):
    run.checkpoints.mkdir()
    (run.checkpoints / "best.ckpt").write_text("")
    assert run.checkpoint("best") == run.path / "checkpoints" / "best.ckpt"


def test_a_missing_checkpoint_lists_those_there_are(run):
    with pytest.raises(UserError, match=r"lora-1 has no last\.ckpt \(checkpoints there: none\)"):
        run.checkpoint("last")
    run.checkpoints.mkdir()
    for name in ("epoch=1.ckpt", "best.ckpt", "notes.txt"):
        (run.checkpoints / name).write_text("")
    with pytest.raises(UserError, match=r"has no last\.ckpt \(checkpoints there: best\.ckpt, epoch=1\.ckpt\)"):
        run.checkpoint("last")


def test_a_checkpoint_leads_to_its_run(run, monkeypatch):
    run.write("config.yaml", "data: {}\n")
    found = Run.of_checkpoint(run.checkpoints / "best.ckpt")
    assert found is not None
    assert found.path == run.path
    monkeypatch.chdir(run.path)
    found = Run.of_checkpoint(Path("checkpoints/best.ckpt"))
    assert found is not None
    assert found.path == run.path


def test_a_checkpoint_elsewhere_has_no_run(run, tmp_path):
    assert Run.of_checkpoint(tmp_path / "elsewhere" / "checkpoints" / "best.ckpt") is None
    assert Run.of_checkpoint(run.checkpoints / "best.ckpt") is None  # no config.yaml: not a run's


# ---- writing


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("results.json", {"größe": [1, None]}, '{\n  "größe": [\n    1,\n    null\n  ]\n}\n'),
        ("predictions/gsm8k.jsonl", [{"id": "a", "text": "×"}, {"id": "b"}], '{"id": "a", "text": "×"}\n{"id": "b"}\n'),
        ("predictions/none.jsonl", [], ""),
        ("config.yaml", "data: {}\n", "data: {}\n"),
    ],
)
def test_the_name_tells_the_form(run, name, content, text):
    assert run.write(name, content) == run.path / name
    assert (run.path / name).read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", {"n": object()}),
        ("rows.jsonl", [{"n": 1}, {"n": object()}]),
    ],
    ids=["json", "jsonl"],
)
def test_content_that_cannot_be_written_leaves_the_old_file_whole(run, name, content):
    (run.path / name).write_text("old")
    with pytest.raises(TypeError):
        run.write(name, content)
    assert (run.path / name).read_text() == "old"


def test_a_failure_at_the_last_moment_leaves_the_old_file_whole(run, monkeypatch):
    run.write("results.json", {"n": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        run.write("results.json", {"n": 2})
    assert json.loads((run.path / "results.json").read_text()) == {"n": 1}


def test_writing_again_replaces_and_leaves_nothing_beside(run):
    run.write("results.json", {"n": 1})
    run.write("results.json", {"n": 2})
    assert [path.name for path in run.path.iterdir()] == ["results.json"]
    assert json.loads((run.path / "results.json").read_text()) == {"n": 2}


def test_until_a_file_is_whole_the_old_one_is_there(run):
    path = run.write("results.json", {"n": 1})
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert json.loads(path.read_text()) == {"n": 1}
        assert len(list(run.path.iterdir())) == 2
    assert path.read_bytes() == b"half"
    assert [file.name for file in run.path.iterdir()] == ["results.json"]


def test_what_killed_processes_left_is_swept_away_and_nothing_else(run):
    for name in (".last.ckpt.123", ".keep", "notes.5", ".git"):
        (run.path / name).write_text("")
    sweep(run.path)
    sweep(run.path / "nowhere")
    assert sorted(file.name for file in run.path.iterdir()) == [".git", ".keep", "notes.5"]


# ---- a job that SLURM put back into its queue


@pytest.fixture
def requeued(tmp_path, monkeypatch):
    """Two runs of one job, of which the first has saved something; the job begins for the second time."""
    monkeypatch.setattr(sys, "argv", ["adapters-pl", "fit", "--config", "quickstart.yaml"])
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    runs = [Run.create(tmp_path, "lora") for _ in range(2)]
    for number, run in enumerate(runs):
        run.write("environment.json", environment())
        os.utime(run.path / "environment.json", (number, number))
    save(runs[0])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    return runs


def save(run):
    run.checkpoints.mkdir()
    (run.checkpoints / "last.ckpt").write_text("")


def test_a_requeued_job_finds_its_newest_run_that_has_a_checkpoint(tmp_path, requeued):
    first, second = requeued
    assert Run.of_requeued_job(tmp_path).path == first.path
    save(second)
    assert Run.of_requeued_job(tmp_path).path == second.path


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SLURM_RESTART_COUNT", "0"), ("SLURM_RESTART_COUNT", None), ("SLURM_JOB_ID", None), ("SLURM_JOB_ID", "4712")],
)
def test_a_job_that_begins_finds_no_run(tmp_path, requeued, monkeypatch, variable, value):
    monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
    assert Run.of_requeued_job(tmp_path) is None


def test_another_command_of_a_requeued_job_finds_no_run(tmp_path, requeued, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["adapters-pl", "fit", "--config", "lora_llama7b.yaml"])
    assert Run.of_requeued_job(tmp_path) is None


def test_a_task_of_a_job_array_is_a_job_of_its_own(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4713")
    assert slurm_job() == "4713"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm_job() == "4711_2"


# ---- results


def test_results_of_other_sets_stay(run):
    run.merge_results({"gsm8k": {"n": 3}, "SVAMP": {"n": 4}}, adapter="a")
    path = run.merge_results({"SVAMP": {"n": 5}, "AddSub": {"n": 6}}, adapter="b", seed=1)
    assert json.loads(path.read_text()) == {
        "adapter": "b",
        "seed": 1,
        "sets": {"gsm8k": {"n": 3}, "SVAMP": {"n": 5}, "AddSub": {"n": 6}},
    }


def test_a_sets_new_result_replaces_the_whole_old_one(run):
    run.merge_results({"gsm8k": {"n": 3, "base_accuracy": 0.5}})
    path = run.merge_results({"gsm8k": {"n": 4}})
    assert json.loads(path.read_text()) == {"sets": {"gsm8k": {"n": 4}}}


def test_a_run_is_no_folder_of_runs(tmp_path):
    run = Run.create(tmp_path, "lora")
    run.write("environment.json", {})
    with pytest.raises(UserError, match="holds a run already"):
        Run.create(run.path, "lora")


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}, True),
        (
            {
                "SLURM_NTASKS": "4",
                "SLURM_NTASKS_PER_NODE": "2",
                "SLURM_JOB_NAME": "train",
                "SLURM_PROCID": "2",
                "SLURM_LOCALID": "0",
            },
            False,
        ),
    ],
)
def test_only_the_first_process_of_a_job_makes_a_directory(tmp_path, monkeypatch, environment, first):
    for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = Run.joined(tmp_path, "lora")
    assert run.made_here == first
    assert (tmp_path / "lora-1").is_dir() == first
    run.agree(lambda path: str(tmp_path / "lora-1"))
    assert run.path == tmp_path / "lora-1"


@pytest.mark.parametrize("name", ["results.json", "predictions/a.jsonl"])
def test_what_lies_outside_of_a_run_is_not_read(run, tmp_path, name):
    (tmp_path / "a.jsonl").write_text("{}")
    link = run.path / name.split("/")[0]
    link.symlink_to(tmp_path if "/" in name else tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="link that leads out"):
        run.own(name)
    if name == "results.json":
        with pytest.raises(UserError, match="link that leads out"):
            run.results()


def test_links_within_a_run_are_its_own_and_a_run_may_lie_behind_one(run, tmp_path):
    (run.path / "a.json").write_text("{}")
    (run.path / "b.json").symlink_to("a.json")
    (run.path / "loop.json").symlink_to("loop.json")
    run.refuse_links()
    (tmp_path / "link").symlink_to(run.path)
    assert Run(tmp_path / "link").own("b.json").read_text() == "{}"
