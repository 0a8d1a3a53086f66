"""The command that runs a study: real trials, workers that are killed, and everything that is refused before."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna")

from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.commands import study
from adapters_pl.cli.configuration import full_names
from adapters_pl.cli.main import main
from adapters_pl.studies.asked import read
from tests.helpers import warm

HELPER = Path(__file__).resolve().parents[2] / "helpers" / "study_worker.py"
CONFIGS = Path(__file__).resolve().parents[3] / "configs"
STUDIES = sorted(path.stem for path in (CONFIGS / "study").glob("[!_]*.yaml"))

#: As little as a training and a test can be.
LITTLE = {
    "trainer.max_epochs": 3,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
    "model.test_base": False,
    "data.train_rows": 48,
    "data.val_size": 0,
    "data.test_rows": 4,
    "data.max_new_tokens": 4,
    "data.eval_batch_size": 2,
    "data.test_sets": ["word_problems"],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a study file in it."""
    monkeypatch.chdir(tmp_path)

    def here(axes, **more):
        content = {"configs": ["quickstart.yaml"], "set": LITTLE, "axes": axes, **more}
        Path("mine.yaml").write_text(yaml.safe_dump(content))

    return here


def worker(*words, until="-"):
    """Start a worker, which kills itself when a file is there."""
    return warm.Process(
        [sys.executable, HELPER, until, "--config", "mine.yaml", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process):
    """What a worker printed, and its exit code."""
    out, _ = process.communicate(timeout=200)
    return out, process.returncode


def found(name):
    """What each trial of a study left: its state, and what its predictions are."""
    folders = sorted(Path("runs", name).glob("trial-*"))
    results = [json.loads((folder / "results.json").read_text())["sets"]["word_problems"] for folder in folders]
    trials = [json.loads((folder / "trial.json").read_text()) for folder in folders]
    return [
        (trial["values"], trial["state"], r["predictions_sha256"]) for trial, r in zip(trials, results, strict=True)
    ]


def test_a_study_trains_and_tests_every_cell_and_says_what_it_found(here):
    here([{"adapter.layers": "0", "seed": [1, 2]}, {"adapter.layers": "90-99"}])
    out, code = ended(worker())
    assert code == 1, out
    lines = out.splitlines()
    assert lines[0] == "study mine: 3 trials in runs/mine"
    assert "trial 0 (adapter.layers 0, seed_everything 1): running" in lines
    assert any(line.startswith("trial 1 (adapter.layers 0, seed_everything 2): complete, ") for line in lines)
    assert "95% interval over seeds" in out
    assert "trial 2 (adapter.layers 90-99) failed: fit: " in out
    assert lines[-1] == "run them again with --retry_failed"
    folder = Path("runs/mine/trial-0")
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "results.json", "adapter", "checkpoints"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["seed_everything"], config["data"]["init_args"]["seed"]) == (1, 1)
    failed = json.loads(Path("runs/mine/trial-2/trial.json").read_text())
    assert failed["state"] == "failed"
    assert failed["error"].startswith("fit: ")
    about = yaml.safe_load(Path("runs/mine/study.yaml").read_text())
    assert about["axes"] == {"adapter.layers": ["0", "90-99"], "seed_everything": [1, 2]}
    out, code = ended(worker())
    assert (code, "running" in out) == (1, False)
    out, code = ended(worker("--retry_failed"))
    assert "failed trials that are run again: 1" in out
    assert out.count(": running") == 1
    # Another study of this name is refused.
    here([{"adapter.layers": "0", "seed": [1, 2]}, {"adapter.layers": "1"}])
    out, code = ended(worker())
    assert code == 1
    assert 'adapter.layers is ["0", "90-99"] there, and ["0", "1"] here' in out


def test_a_study_that_is_killed_again_and_again_comes_to_the_same(here):
    here({"adapter.rank": [2]})
    out, code = ended(worker("--name", "whole"))
    assert code == 0, out
    for pattern in (
        "runs/mine/trial-0/checkpoints/last.ckpt",
        "runs/mine/trial-0/predictions/*.jsonl",
    ):
        out, code = ended(worker(until=pattern))
        assert code == -signal.SIGKILL, out
    out, code = ended(worker())
    assert code == 0, out
    assert found("mine") == found("whole")
    log = Path("runs/mine/trial-0/output.log").read_text()
    assert "resuming from" in log
    assert "another fit writes" not in out + log


# ---- what is refused


@pytest.mark.parametrize(
    ("axes", "more", "message"),
    [
        ({"adapter.rnk": [4]}, {}, "adapter.rnk 4: unknown key 'adapter.rnk'.* did you mean 'rank'"),
        ({"adaptr": ["LoRA"]}, {}, "unknown key 'adaptr': did you mean 'adapter'"),
        ({"adapter": ["LoRa2"]}, {}, "there is no adapter 'LoRa2': did you mean 'LoRA'"),
        ({"adapter.rank": [4, 0]}, {}, "adapter.rank 0: adapter.rank is 0; it must be"),
        ({"model.lr": ["fast"]}, {}, "model.lr fast: model.lr: expected a number"),
        ({"config": ["methods/lor.yaml"]}, {}, "config 'methods/lor.yaml': no such file or recipe: did you mean"),
        ({"adapter": ["LoRA", None]}, {}, "adapter null: nothing to train"),
        ({"data": ["GSM9K"]}, {}, "there is no dataset 'GSM9K'"),
        ({"data.samples": [2], "data.protocol": ["loglikelihood"]}, {}, "never samples"),
        (
            {"adapter.rank": {"low": -3, "high": 3}},
            {"sampler": {"name": "random", "trials": 2}},
            "adapter.rank -3: adapter.rank is -3",
        ),
    ],
)
def test_what_no_trial_could_run_is_one_line_before_anything_is_there(here, capsys, axes, more, message):
    here(axes, **more)
    assert main(["study", "--config", "mine.yaml"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert not Path("runs").exists()


def test_a_storage_that_is_not_there_is_named_without_its_password(here, capsys):
    pytest.importorskip("psycopg")
    here({"adapter.rank": [2]})
    url = "postgresql+psycopg://me:swordfish@127.0.0.1:1/x"
    assert main(["study", "--config", "mine.yaml", "--storage", url]) == 1
    err = capsys.readouterr().err
    assert "storage postgresql+psycopg://***@127.0.0.1:1/x: cannot be used" in err
    assert "swordfish" not in err
    assert not Path("runs").exists()


def test_without_optuna_the_extra_is_named(here, capsys, monkeypatch):
    here({"adapter.rank": [2]})
    for name in [name for name in sys.modules if name.startswith(("optuna", "adapters_pl.studies"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "adapters_pl.cli.commands.study")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["study", "--config", "mine.yaml"]) == 1
    assert "pip install 'adapters-pl[study]'" in capsys.readouterr().err
    assert main(["study", "--help"]) == 0


@pytest.mark.parametrize("word", ["--adapter_path=X", "--ckpt_path=X", "--run_dir=X", "--print_config"])
def test_what_belongs_to_one_run_is_no_part_of_a_study(here, capsys, word):
    here({"adapter.rank": [2]})
    assert main(["study", "--config", "mine.yaml", word]) == 1
    assert word.partition("=")[0] in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_help_explains_the_file(capsys):
    assert main(["study", "--help"]) == 0
    out = capsys.readouterr().out
    for part in ("configs:", "axes:", "sampler:", "pruner:", "--form", "--storage URL", "--retry_failed", "trial-<n>"):
        assert part in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    """The parser of ``fit``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("parser"))
        return study._TrialCLI(CommandLine.read("fit", ["--config", "quickstart.yaml"])).parser


@pytest.mark.parametrize("form", ["paper", "quick", "smollm2"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_value_of_a_ready_study_is_one_that_could_run(here, parser, name, form):
    if form == "smollm2" and not (CONFIGS / "models" / "smollm2.yaml").is_file():
        pytest.skip("configs/models/smollm2.yaml is not there yet")
    here({})
    asked = read([f"study/{name}.yaml"], form, None, [])
    for grid in asked.grids:
        # Every value once, whatever beside it: the longest axis, and the others over and over.
        longest = max(map(len, grid.values()))
        columns = [itertools.islice(itertools.cycle(values), longest) for values in grid.values()]
        for cell in zip(*columns, strict=True):
            values = dict(zip(grid, cell, strict=True))
            line = CommandLine.read("fit", asked.words(values))
            config = parser.parse_args(line.words(names=full_names()))
            if "adapter.rank" in values:
                assert config.adapter.init_args.rank == values["adapter.rank"]
            if "model.lr" in values:
                assert config.model.init_args.lr == values["model.lr"]


def test_a_run_has_the_directory_that_is_named_and_no_other_runs(here, capsys):
    words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in LITTLE.items()]
    fit = ["fit", "--config", "quickstart.yaml", *words, "--trainer.max_steps", "1"]
    here({})
    assert main([*fit, "--run_dir", "some/place"]) == 0
    assert Path("some/place/checkpoints/last.ckpt").is_file()
    assert not Path("runs").exists()
    assert "run_dir" not in Path("some/place/config.yaml").read_text()
    assert main([*fit, "--run_dir", "some/place"]) == 1
    assert "holds a run already: go on in it with --ckpt_path some/place" in capsys.readouterr().err
    assert main([*fit, "--run_dir", "other", "--ckpt_path", "some/place"]) == 1
    assert "give one of them" in capsys.readouterr().err
    Path("file").touch()
    assert main([*fit, "--run_dir", "file/run"]) == 1
    assert "cannot be made" in capsys.readouterr().err
