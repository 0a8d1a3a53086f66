"""The main way by the command line: train, test, predict; what wins over what; every clear error."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from adapters_pl.cli import training
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.main import main
from adapters_pl.data.general_text import GeneralText
from adapters_pl.runs.run import Run
from adapters_pl.training.callbacks import checkpoint_callbacks
from tests.conftest import sums, tiny_model, tiny_tokenizer
from tests.helpers import warm
from tests.helpers.learning_margins import SUMS

QUICK = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def fit(folder, make_base, rows_file):
    """Train on the little sums with further arguments; returns the exit code."""

    def run(*arguments, base=None, data=rows_file):
        base = base or make_base()
        own = ["--model.base", str(base), "--data", "InstructionJSON", "--data.path", str(data)]
        return main(["fit", *own, "--data.val_size", "4", "--data.max_new_tokens", "6", *QUICK, *arguments])

    return run


@pytest.fixture(scope="module")
def once(tmp_path_factory, make_base):
    """A finished run of a plain LoRA, made once, which nothing is done to."""
    place = tmp_path_factory.mktemp("once")
    (place / "sums.json").write_text(json.dumps(sums()))
    own = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(place / "sums.json")]
    own += ["--data.val_size", "4", "--data.max_new_tokens", "6", "--adapter", "LoRA"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["fit", *own, *QUICK]) == 0
    return place / "runs"


@pytest.fixture
def fitted(folder, once):
    """A copy of it in the folder one stands in."""
    shutil.copytree(once, "runs")


def results(run="lora-1"):
    return json.loads(Path("runs", run, "results.json").read_text())


def predictions(name, run="lora-1", folder="predictions"):
    return [json.loads(line) for line in Path("runs", run, folder, f"{name}.jsonl").read_text().splitlines()]


# ---- the way through


def test_fit_then_bare_test(fit, capsys):
    assert fit("--adapter", "LoRA", "--adapter.rank", "4") == 0
    run = Path("runs/lora-1")
    assert Path("runs/latest").read_text() == "lora-1\n"
    assert {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file() and p.name[0] != "."} == {
        "config.yaml",
        "environment.json",
        "fit.json",
        "metrics.csv",
        "results.json",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    capsys.readouterr()
    assert main(["test", *QUICK[2:]]) == 0
    out = capsys.readouterr().out
    assert "test: runs/lora-1/checkpoints/last.ckpt" in out
    assert "base alone" in out
    took = effort()
    held = load_file(run / "adapter" / "adapter_model.safetensors")
    assert took["trainable_parameters"] == sum(value.numel() for value in held.values()) == took["adapters"]["default"]
    assert took["peak_bytes"] > 2**20
    # Without a test file, the rows held out for validation are tested.
    found = results()["sets"]["sums"]
    assert found["n"] == 4
    assert 0 <= found["accuracy"] <= 1
    assert 0 <= found["base_accuracy"] <= 1
    rows = predictions("sums")
    assert len(rows) == 4
    assert {"id", "output", "prediction", "gold", "correct", "finish"} <= rows[0].keys()
    assert found["accuracy"] == sum(row["correct"] for row in rows) / 4


def test_the_adapter_directory_is_what_the_last_checkpoint_holds(fitted, make_base):
    from transformers import AutoModelForCausalLM

    from adapters_pl import load_adapter

    ids = torch.tensor([[1, 40, 41, 42]])
    models = [AutoModelForCausalLM.from_pretrained(make_base()) for _ in range(3)]
    load_adapter(models[0], "runs/lora-1/adapter")
    load_adapter(models[1], "runs/lora-1")
    logits = [model(ids).logits for model in models]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_a_recipe_by_name_with_another_base_and_data(fit):
    """The acceptance of the whole way: a 7B recipe, a tiny base, a file, another folder."""
    assert fit("--config", "lora_llama7b.yaml") == 0
    assert main(["test", *QUICK[2:]]) == 0
    assert results("lora_llama7b-1")["sets"]["sums"]["n"] == 4
    config = yaml.safe_load(Path("runs/lora_llama7b-1/config.yaml").read_text())
    assert config["adapter"]["class_path"] == "adapters_pl.LoRA"
    assert config["adapter"]["init_args"]["rank"] == 32
    assert config["trainer"]["accumulate_grad_batches"] == 4


def test_training_learns_the_sums_and_the_test_shows_it(fit, rows_file):
    # It is tested on what it learnt, on purpose.
    assert fit("--data.test_path", str(rows_file), *SUMS, base="quickstart") == 0
    assert main(["test", *QUICK[2:]]) == 0
    found = results()["sets"]["sums"]
    assert found["accuracy"] >= 0.6
    assert found["base_accuracy"] <= 0.2


def test_runs_are_numbered_and_the_newest_is_tested(fit, capsys):
    assert fit("--adapter", "LoRA", "--adapter.rank", "2") == 0
    assert fit("--adapter", "LoRA", "--adapter.rank", "3") == 0
    capsys.readouterr()
    assert main(["test", *QUICK[2:]]) == 0
    assert "test: runs/lora-2/checkpoints/last.ckpt" in capsys.readouterr().out
    assert main(["test", "--ckpt_path", "runs/lora-1", *QUICK[2:]]) == 0
    assert results("lora-1")["sets"].keys() == {"sums"}


def test_best_is_chosen_by_validation(fit, capsys):
    assert fit("--adapter", "LoRA", "--trainer.max_epochs", "3", "--model.lr", "0.05") == 0
    assert main(["test", "--ckpt_path", "best", *QUICK[2:]]) == 0
    best, last = (torch.load(f"runs/lora-1/checkpoints/{n}.ckpt", weights_only=True) for n in ("best", "last"))
    losses = [float(line.split(",")[i]) for line, i in _column("val_loss")]
    assert best["epoch"] == min(range(3), key=losses.__getitem__)
    assert last["epoch"] == 2


def _column(name):
    lines = Path("runs/lora-1/metrics.csv").read_text().splitlines()
    index = lines[0].split(",").index(name)
    return [(line, index) for line in lines[1:] if line.split(",")[index]]


@pytest.mark.parametrize(("steps", "validations"), [("3", 1), ("9", 1), ("12", 2)], ids=["less", "an epoch", "more"])
def test_training_ends_with_a_validation_whatever_its_length(fit, steps, validations):
    assert fit("--adapter", "LoRA", "--trainer.max_steps", steps, "--trainer.max_epochs", "5") == 0
    assert len(_column("val_loss")) == validations
    best = torch.load("runs/lora-1/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] in (9, int(steps))


def test_generated_accuracy_can_choose_best(fit):
    assert fit("--adapter", "LoRA", "--model.monitor", "val_accuracy", "--trainer.max_epochs", "2") == 0
    assert len(_column("val_accuracy")) == 2
    assert Path("runs/lora-1/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize(("monitor", "mode"), [("val_loss", "min"), ("val_accuracy", "max")])
def test_best_is_the_smallest_loss_or_the_largest_accuracy(tmp_path, monitor, mode):
    best = checkpoint_callbacks(Run(tmp_path), monitor, validates=True)[-1]
    assert (best.monitor, best.mode) == (monitor, mode)


def test_validate_gives_loss_and_accuracy(fitted, capsys):
    capsys.readouterr()
    assert main(["validate", *QUICK[2:]]) == 0
    found = results()["validation"]
    assert found.keys() == {"val_loss", "val_accuracy"}
    (line, index), *_ = _column("val_loss")
    assert found["val_loss"] == pytest.approx(float(line.split(",")[index]), rel=1e-4)


@pytest.mark.parametrize(("dtype", "invariant"), [("float32", True), ("bfloat16", False)])
def test_results_say_whether_answers_depend_on_the_batch_size(folder, make_base, rows_file, dtype, invariant):
    own = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.test_path", str(rows_file)]
    own += ["--data.limit_test", "2", "--data.max_new_tokens", "2", "--model.dtype", dtype]
    assert main(["test", *own, "--data.eval_batch_size", "3", *QUICK[2:]]) == 0
    found = results("test-1")["sets"]["sums"]
    assert (found["dtype"], found["eval_batch_size"], found["batch_invariant"]) == (dtype, 3, invariant)
    assert found["engine"] == "transformers"


def test_predict_needs_no_gold(fitted, tmp_path, capsys):
    questions_file = tmp_path / "asked.jsonl"
    questions_file.write_text('{"instruction": "What is 1 plus 1?"}\n{"instruction": "What is 2 plus 5?"}\n')
    assert main(["predict", "--data.test_path", str(questions_file), *QUICK[2:]]) == 0
    rows = predictions("asked", folder="predicted")
    assert [row["id"] for row in rows] == ["asked-0", "asked-1"]
    assert all(row["gold"] is None and row["correct"] is None for row in rows)
    assert main(["test", "--data.test_path", str(questions_file), *QUICK[2:]]) == 1
    assert "row 1 has no 'answer' to compare with; use predict" in capsys.readouterr().err


def test_predictions_are_in_the_files_order_whatever_their_lengths(fitted, tmp_path):
    questions_file = tmp_path / "asked.json"
    questions_file.write_text(json.dumps([{"instruction": f"What is {'1 plus ' * n}1?"} for n in (1, 5, 3)]))
    assert main(["predict", "--data.test_path", str(questions_file), "--data.eval_batch_size", "1", *QUICK[2:]]) == 0
    assert [row["row"] for row in predictions("asked", folder="predicted")] == [0, 1, 2]


def test_results_of_several_tests_are_merged(fitted, rows_file, tmp_path):
    shutil.copy(rows_file, tmp_path / "other.json")
    assert main(["test", *QUICK[2:]]) == 0
    assert main(["test", "--data.test_path", str(tmp_path / "other.json"), "--data.limit_test", "3", *QUICK[2:]]) == 0
    assert {name: found["n"] for name, found in results()["sets"].items()} == {"sums": 4, "other": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "[LoRA,LoRA]"], "Two adapters are named 'default'"),
        (["--adapter", "LoRA", "--trainer.limit_train_batches", "0"], "limit_train_batches is 0"),
        (["--adapter", "LoRA", "--trainer.max_steps", "0"], "trainer.max_steps is 0: nothing would be trained"),
        (["--adapter", "LoRA", "--trainer.max_epochs", "0"], "trainer.max_epochs is 0: nothing would be trained"),
        (
            ["--adapter", "LoRA", "--trainer.gradient_clip_val", "-1"],
            "gradient_clip_val is -1; it must be at least 0",
        ),
        (["--adapter", "LoRA", "--model.warmup_steps", "-1"], "model.warmup_steps is -1; it must be at least 0"),
        (["--adapter", "LoRA", "--model.lr", "-1"], "model.lr is -1; it must be at least 0"),
        (["--adapter", "LoRA", "--seed_everything", "-3"], "seed_everything is -3; it must be at least 0"),
        (["--adapter", "LoRA", "--data.seed", "-3"], "data.seed is -3; it must be at least 0"),
        (["--adapter", "LoRA", "--data.test_sets", "[]"], "data.test_sets is empty"),
        (["--adapter", "LoRA", "--trainer.accumulate_grad_batches", "0"], "accumulate_grad_batches is 0; it must be"),
        (["--adapter_path", ""], "--adapter_path is empty"),
        (["--adapter_path"], "--adapter_path is empty"),
    ],
)
def test_what_would_do_nothing_or_means_nothing_is_refused_before_the_base_is_loaded(
    fit, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(
        "adapters_pl.training.adapted.load_base", lambda *_args, **_more: pytest.fail("the base was loaded")
    )
    assert fit(*arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(Path().glob("runs/*"))


@pytest.mark.parametrize(("key", "value"), [("train_rows", "0"), ("train_rows", "-1"), ("test_rows", "0")])
def test_no_generated_rows_are_refused(folder, capsys, key, value):
    words = ["--model.base", "quickstart", "--data", "WordProblems", f"--data.{key}", value, "--adapter", "LoRA"]
    assert main(["fit", *words, *QUICK]) == 1
    assert f"data.{key} is {value}; it must be at least 1" in capsys.readouterr().err


def test_a_test_of_nothing_is_refused(fitted, capsys):
    for words in (["--data.test_sets", "[]"], ["--trainer.limit_test_batches", "0"], ["--adapter_path", ""]):
        assert main(["test", *words, *QUICK[2:]]) == 1
    assert not Path("runs/lora-1/predictions").exists()


def test_the_printed_command_tests_the_run_from_here(fit, capsys, tmp_path):
    assert fit("--adapter", "LoRA", "--trainer.default_root_dir", "my runs") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "test it with" in line)
    words = shlex.split(line.partition("test it with: ")[2].rstrip(")"))
    assert words == ["adapters-pl", "test", "--ckpt_path", "my runs/lora-1"]
    assert main([*words[1:], *QUICK[2:]]) == 0
    assert fit("--adapter", "LoRA") == 0
    assert "test it with: adapters-pl test)" in capsys.readouterr().out


def test_the_base_alone_is_tested_without_an_adapter(folder, make_base, rows_file):
    own = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.test_path", str(rows_file)]
    assert main(["test", *own, "--data.max_new_tokens", "2", *QUICK[2:]]) == 0
    found = results("test-1")["sets"]["sums"]
    assert (found["n"], found["base_accuracy"]) == (40, None)
    assert not Path("runs/latest").exists()


def test_accuracy_does_not_depend_on_the_batch_size(fit, rows_file):
    assert fit("--adapter", "LoRA", "--model.lr", "0.01", "--model.dtype", "float32", base="quickstart") == 0
    outputs = []
    for size in ("1", "7", "32"):
        arguments = ["--data.test_path", str(rows_file), "--data.eval_batch_size", size, *QUICK[2:]]
        assert main(["test", *arguments]) == 0
        outputs.append([(row["id"], row["output"], row["base_prediction"]) for row in predictions("sums")])
    assert outputs[0] == outputs[1] == outputs[2]
    assert len({output for _, output, _ in outputs[0]}) >= 3


# ---- what wins over what


def test_a_checkpoint_alone_rebuilds_its_adapter(fit, rows_file, make_base, tmp_path):
    """Also where the file was moved away from its run."""
    assert fit("--adapter", "LoRA", "--adapter.rank", "5", "--adapter.placement", "attn") == 0
    moved = tmp_path / "moved.ckpt"
    shutil.copy("runs/lora-1/checkpoints/last.ckpt", moved)
    shutil.rmtree("runs")
    assert main(["test", "--ckpt_path", str(moved), "--data.test_path", str(rows_file), *QUICK[2:]]) == 0
    assert results("test-1")["sets"]["sums"]["base_accuracy"] is not None


def test_a_checkpoint_of_a_notebook_rebuilds_its_adapter(folder, make_base, rows_file):
    from lightning.pytorch import Trainer

    from adapters_pl import CausalLMModule, InstructionJSON, LoRA

    run = Trainer(callbacks=[LoRA(rank=3)], max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False)
    run.fit(CausalLMModule(str(make_base())), datamodule=InstructionJSON(path=str(rows_file)))
    run.save_checkpoint("mine.ckpt")
    arguments = ["--data", "InstructionJSON", "--data.test_path", str(rows_file), "--data.max_new_tokens", "2"]
    assert main(["test", "--ckpt_path", "mine.ckpt", *arguments, *QUICK[2:]]) == 0
    assert results("test-1")["sets"]["sums"]["base_accuracy"] is not None


def test_the_command_line_wins_over_the_checkpoint(fit, make_base, rows_file, capsys):
    assert fit("--adapter", "LoRA", "--adapter.rank", "4") == 0
    moved = shutil.copytree(make_base(), Path.cwd() / "elsewhere")
    arguments = ["--ckpt_path", "last", "--data.test_path", str(rows_file), "--data.limit_test", "2", *QUICK[2:]]
    assert main(["test", "--model.base", "elsewhere", *arguments]) == 0
    assert results()["sets"]["sums"]["n"] == 2
    shutil.rmtree(moved)
    other = make_base(seed=1)
    capsys.readouterr()
    assert main(["test", "--model.base", str(other), *arguments]) == 1
    assert "belongs to another base" in capsys.readouterr().err
    assert main(["test", "--adapter", "LoRA", "--adapter.rank", "6", *arguments]) == 1
    assert "adapter differs" in capsys.readouterr().err


def test_a_config_of_the_command_line_wins_over_the_checkpoint(fitted):
    write("few.yaml", "data: {init_args: {limit_test: 2}}\nmodel: {init_args: {test_base: false}}\n")
    assert main(["test", "--config", "few.yaml", "--ckpt_path", "last", *QUICK[2:]]) == 0
    found = results()["sets"]["sums"]
    assert (found["n"], found["base_accuracy"]) == (2, None)


def test_a_run_on_relative_paths_is_tested_from_another_folder(fit, make_base, rows_file, tmp_path, monkeypatch):
    shutil.copytree(make_base(), "base_here")
    shutil.copy(rows_file, "sums.json")
    assert fit("--adapter", "LoRA", base="base_here", data="sums.json") == 0
    checkpoint = Path("runs/lora-1/checkpoints/last.ckpt").resolve()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert main(["test", "--ckpt_path", str(checkpoint), *QUICK[2:]]) == 0


def test_the_trainer_clips_gradients_and_leaves_the_division_of_rows_to_the_data(folder, capsys):
    assert main(["fit", "--data", "GSM8K", "--print_config"]) == 0
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert (trainer["gradient_clip_val"], trainer["use_distributed_sampler"]) == (1.0, False)


def test_a_checkpoint_does_not_allow_a_models_own_code_to_run(fit):
    from adapters_pl.cli.configuration import inherited_config

    assert fit("--adapter", "LoRA", "--model.trust_remote_code", "true", "--model.lr", "0.5") == 0
    for command in ("fit", "test"):
        config, _ = inherited_config(Path("runs/lora-1/checkpoints/last.ckpt"), CommandLine(command))
        model = config["model"]["init_args"]
        assert model["lr"] == 0.5
        assert "trust_remote_code" not in model


def test_print_config_round_trips(fit, capsys, tmp_path):
    assert fit("--config", "lora_llama7b.yaml", "--adapter.rank", "7", "--print_config") == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert yaml.safe_load(printed)["adapter"]["init_args"]["rank"] == 7
    assert main(["fit", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)
    assert not Path("runs").exists()


def test_several_configs_are_merged_in_order(folder, capsys):
    Path("a.yaml").write_text("model: {lr: 1.0e-3}\nadapter: {class_path: LoRA, init_args: {rank: 2, alpha: 3}}\n")
    Path("b.yaml").write_text("trainer: {max_epochs: 9}\nadapter: {init_args: {rank: 5}}\n")
    assert main(["fit", "--config", "a.yaml", "--config", "b.yaml", "--data", "GSM8K", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["adapter"]["init_args"]["rank"] == 5
    assert config["adapter"]["init_args"]["alpha"] == 3
    assert config["trainer"]["max_epochs"] == 9
    assert config["model"]["init_args"]["lr"] == 1e-3


def test_an_embedded_base_keeps_its_name_beside_a_folder_of_that_name(fit):
    Path("quickstart").mkdir()
    assert fit("--adapter", "LoRA", "--trainer.max_steps", "1", base="quickstart") == 0
    config = yaml.safe_load(Path("runs/lora-1/config.yaml").read_text())
    assert config["model"]["init_args"]["base"] == "quickstart"


def test_a_list_of_adapters_and_an_override_of_its_last(fit, capsys):
    Path("two.yaml").write_text(
        "adapter:\n- class_path: LoRA\n  init_args: {rank: 2, name: one, placement: attn}\n"
        "- class_path: LoRA\n  init_args: {rank: 2, name: two, placement: mlp}\n"
    )
    assert fit("--config", "two.yaml", "--adapter.rank", "5") == 0
    assert "addresses the last of 2 adapters: LoRA 'two'" in capsys.readouterr().out
    stored = torch.load("runs/two-1/checkpoints/last.ckpt", weights_only=True)["adapters_pl"]["adapters"]
    assert [(a["init_args"]["name"], a["init_args"]["rank"]) for a in stored] == [("one", 2), ("two", 5)]
    assert main(["test", *QUICK[2:]]) == 0


def test_classes_of_the_folder_one_stands_in(fit, monkeypatch, rows_file):
    Path("mine_here.py").write_text(
        "from adapters_pl import LoRA, InstructionJSON\n"
        "class MyAdapter(LoRA):\n"
        "    def __init__(self, size: int = 2):\n"
        "        super().__init__(rank=size)\n"
        "        self.size = size\n"
        "class MySet(InstructionJSON):\n"
        "    def example(self, row, index):\n"
        "        return super().example({**row, 'instruction': 'Say it. ' + row['instruction']}, index)\n"
    )
    path = ["--data", "mine_here.MySet", "--data.path", str(rows_file)]
    assert fit("--adapter", "mine_here.MyAdapter", "--adapter.size", "3", *path) == 0
    assert main(["test", "--trust_checkpoint", *QUICK[2:]]) == 0
    stored = torch.load("runs/myadapter-1/checkpoints/last.ckpt", weights_only=True)["adapters_pl"]
    assert stored["adapters"][0]["init_args"] == {"size": 3}


def test_any_optimizer_and_scheduler_by_the_command_line(fit):
    import bitsandbytes  # noqa: F401  (it has an SGD too)

    arguments = ["--optimizer", "SGD", "--optimizer.lr", "0.25", "--optimizer.momentum", "0.5"]
    assert fit("--adapter", "LoRA", *arguments, "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1000") == 0
    stored = torch.load("runs/lora-1/checkpoints/last.ckpt", weights_only=True)
    (group,) = stored["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["momentum"]) == (0.25, 0.5)


# ---- resuming and interrupting


def effort(run="lora-1"):
    return json.loads(Path("runs", run, "fit.json").read_text())


def test_fit_goes_on_from_the_last_checkpoint(fitted, capsys):
    first = effort()
    steps = torch.load("runs/lora-1/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert "resuming from runs/lora-1/checkpoints/last.ckpt" in capsys.readouterr().out
    took = effort()
    assert (took["state"], took["error"], took["steps"], took["epochs"]) == ("complete", None, 3 * steps, 3)
    assert took["seconds"] > first["seconds"]  # of both parts together
    assert took["began"] == first["began"]
    assert torch.load("runs/lora-1/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3 * steps
    assert not Path("runs/lora-2").exists()
    assert sorted(path.name for path in Path("runs/lora-1").glob("metrics*")) == ["metrics.csv"]


def test_going_on_repeats_no_epoch_and_keeps_trainer_and_optimizer(fit):
    own = ["--optimizer", "SGD", "--optimizer.lr", "0.25", "--trainer.accumulate_grad_batches", "3"]
    assert fit("--adapter", "LoRA", *own, "--trainer.log_every_n_steps", "1") == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert {line.split(",")[index] for line, index in _column("epoch")} == {"0", "1"}
    config = yaml.safe_load(Path("runs/lora-1/config.yaml").read_text())
    assert config["trainer"]["accumulate_grad_batches"] == 3
    assert config["optimizer"]["init_args"]["lr"] == 0.25


def test_going_on_without_a_run_is_an_error(fit, capsys):
    assert fit("--adapter", "LoRA", "--ckpt_path", "last") == 1
    assert "No run in 'runs' yet. Begin with: adapters-pl fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hook", "step", "kept"),
    [
        ("on_train_batch_start(self, trainer, pl_module, batch, batch_idx)", 3, 4),
        ("on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0)", 9, 9),
    ],
    ids=["training", "validation"],
)
def test_an_interrupt_keeps_the_last_checkpoint_and_prints_its_path(folder, make_base, rows_file, hook, step, kept):
    """A real Ctrl-C to a real process, as soon as it trains or validates."""
    Path("slow_here.py").write_text(
        "import os, signal\n"
        "from lightning.pytorch import Callback\n"
        "class Interrupter(Callback):\n"
        f"    def {hook}:\n"
        f"        if trainer.global_step == {step}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
    )
    own = ["--model.base", str(make_base()), "--data", "InstructionJSON", "--data.path", str(rows_file)]
    command = [sys.executable, "-m", "adapters_pl", "fit", *own, "--adapter", "LoRA", *QUICK]
    start = subprocess.run if "train" in hook else warm.run
    done = start(
        [*command, "--trainer.callbacks", "slow_here.Interrupter", "--trainer.max_epochs", "50"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 128 + signal.SIGINT
    assert "interrupted; last checkpoint: runs/lora-1/checkpoints/last.ckpt" in done.stderr
    assert "Traceback" not in done.stderr
    # The batch that ran when the signal came was finished: its step is in the checkpoint.
    assert torch.load("runs/lora-1/checkpoints/last.ckpt", weights_only=True)["global_step"] == kept
    assert Path("runs/latest").read_text() == "lora-1\n"
    assert effort()["state"] == "interrupted"


# ---- what was forgotten


def test_a_test_says_what_general_text_costs_with_the_adapter_and_without(fitted, make_base, tmp_path, capsys):
    (tmp_path / "general.txt").write_text("The answer to how many apples she has is in the book. " * 8)
    asked = ["--data.general_text", str(tmp_path / "general.txt"), "--data.limit_test", "1"]
    assert main(["test", *QUICK[2:], *asked]) == 0
    assert "general text (general.txt, " in capsys.readouterr().out
    found = results()["general_text"]
    text = GeneralText.read(str(tmp_path / "general.txt"), tiny_tokenizer(), 512)
    with torch.no_grad():
        losses = [
            tiny_model("llama")(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss for row in text.rows
        ]
    assert len(losses) == 1
    assert found["base_loss"] == pytest.approx(float(losses[0]), rel=1e-5)
    assert abs(found["loss"] - found["base_loss"]) > 1e-3  # it was trained
    assert main(["test", *QUICK[2:], *asked]) == 0
    assert results()["general_text"]["loss"] == found["loss"]  # nothing drops out


# ---- errors


def test_an_error_of_our_own_keeps_its_traceback(fit, capsys):
    Path("broken_here.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Broken(Callback):\n"
        "    def on_train_batch_end(self, trainer, *args):\n"
        "        if trainer.global_step == 2:\n"
        "            raise ZeroDivisionError('by design')\n"
    )
    assert fit("--adapter", "LoRA", "--trainer.callbacks", "broken_here.Broken") == 2
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: by design" in err
    assert "Traceback" not in err
    assert "ZeroDivisionError: by design" in Path("runs/lora-1/crash.log").read_text()
    assert (effort()["state"], effort()["error"]) == ("crashed", "by design")
    with pytest.raises(ZeroDivisionError):
        fit("--adapter", "LoRA", "--trainer.callbacks", "broken_here.Broken", "--debug")


def write(name, content):
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    return name


GOOD = {"instruction": "What is 1 plus 1?", "input": "", "output": "It is 2.", "answer": "2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"instruction": "a", "output": "b"}, {"instr', "bad.json: no valid JSON at line 1: .*cut"),
        ([GOOD, {"input": "", "output": "x"}], "bad.json: row 2 has no 'instruction'; it has 'input', 'output'"),
        ([], "bad.json: holds no rows"),
        ({"rows": []}, "bad.json: should hold a list of rows, not dict"),
        ([GOOD, "text"], "bad.json: row 2 should be an object, not str"),
        ([GOOD, {"instruction": "a"}], "bad: row 2 has neither 'output' nor 'answer' to learn"),
        (
            [GOOD, {**GOOD, "instruction": "long " * 600}],
            r"the prompt of row 2 \(bad-1\) has \d+ tokens, the model's context",
        ),
    ],
)
def test_bad_data_is_refused_before_the_base_is_loaded(fit, capsys, monkeypatch, content, message):
    def never(*args, **kwargs):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("adapters_pl.training.adapted.load_base", never)
    path = write("bad.json", content)
    assert fit("--adapter", "LoRA", "--data.val_size", "0", data=path) == 1
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    import re

    assert re.search(message, lines[0]), err
    assert not list(Path("runs").glob("*-1"))


def test_a_key_of_another_class_says_whose_it_is(fit, capsys):
    assert fit("--adapter", "LoRA", "--adapter.bottleneck", "3") == 1
    said = "unknown key 'adapter.bottleneck' of LoRA: it belongs to ParallelAdapter or SeriesAdapter."
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "LoRA", "--adapter.rnk", "4"], "unknown key 'adapter.rnk': did you mean 'rank'?"),
        (["--adapter.rank", "4"], "adapter.rank: name its adapter before it, with --adapter "),
        (["--optimizer.lr", "1"], "optimizer.lr: name its optimizer before it, with --optimizer ASGD, Adadelta, "),
        (["--data", "gsm8k", "--data.path", "x"], "unknown key 'data.path' of GSM8K: it belongs to "),
        (["--adapter", "Lora"], "there is no adapter 'Lora': did you mean 'LoRA'?"),
        (["--modle.base", "x"], "unknown key 'modle.base': did you mean 'model'?"),
        (["--model.lrr", "1"], "unknown key 'model.lrr': did you mean 'lr'"),
        (["--data.batch_sise", "1"], "unknown key 'data.batch_sise': did you mean 'batch_size'"),
        (["--trainer.max_epoch_", "1"], "unknown key 'trainer.max_epoch_': did you mean 'max_epochs'"),
        (["--adapter", "LoRA", "--model.lr", "fast"], "model.lr: expected a number at least 0, not 'fast'"),
        (["--adapter", "LoRA", "--model.dtype", "float17"], "model.dtype: expected one of auto, float32, "),
        (
            ["--adapter", "LoRA", "--adapter.placement", "mpl"],
            "adapter.placement: expected one of attn, mlp, both, not",
        ),
        (["--adapter", "LoRA", "--trainer.max_epochs", "many"], "trainer.max_epochs: expected a whole number"),
        (
            ["--adapter", "LoRA", "--data.template", "alpacca"],
            "template 'alpacca' does not exist: did you mean 'alpaca'?",
        ),
        (["--adapter", "LoRA", "--data.batch_size", "0"], "data.batch_size is 0; it must be at least 1"),
        (["--adapter", "LoRA", "--adapter.target_modules", "[w_proj]"], "'w_proj' matches no linear module"),
        (["--adapter", "LoRA", "--adapter.rank", "64"], "rank 64 is larger than"),
        (["--adapter", "LoRA", "--adapter.layers", "5-9"], "outside this model's layers 0-1"),
        (["--adapter", "nowhere_here.Mine"], "cannot import nowhere_here.Mine"),
        (["--adapter", "pathlib.Path"], "adapter: pathlib.Path is no subclass of Adapter."),
        (["--adapter", "Lo RA"], "there is no adapter 'Lo RA': did you mean 'LoRA'?"),
        (["--data", "pathlib.Path"], "data: pathlib.Path is no subclass of ReasoningDataModule."),
        (["--model", "Causal"], "there is no model 'Causal': did you mean 'CausalLMModule'?"),
        ([], "Nothing to train"),
        (["--adapter", "LoRA", "--trainer.accelerator", "cuda"], "no GPU here"),
        (["--adapter", "LoRA", "--ckpt_path", "none.ckpt"], "none.ckpt: no such checkpoint"),
        (["--adapter", "LoRA", "--data.path", "none.json"], "none.json: no such file"),
    ],
)
def test_a_wrong_argument_is_one_clear_error_and_loads_nothing(fit, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("adapters_pl.training.adapted.load_base", None)
    assert fit(*arguments) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(err) == 1
    assert message in err[0]
    assert len(err[0]) < 400
    assert not list(Path("runs").glob("*-*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {base: x}\nmodel: {base: y}\n", "bad.yaml: line 2 the key 'model' stands twice"),
        ("modle: {base: x}\n", "unknown key 'modle.base': did you mean 'model'?"),
        ("model: {bsae: x}\n", "unknown key 'model.bsae': did you mean 'base'"),
        ("adapter: {class_path: LoRA, init_args: {rnak: 3}}\n", "unknown key 'adapter.rnak': did you mean 'rank'"),
        ("model: [\n", "bad.yaml: line 2"),
        ("", "bad.yaml: should hold keys like 'model:' and 'trainer:', but holds nothing."),
        ("[1, 2]", "bad.yaml: should hold keys like 'model:' and 'trainer:', but holds a list."),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(folder, capsys, text, message):
    write("bad.yaml", text)
    assert main(["fit", "--config", "bad.yaml", "--data", "GSM8K"]) == 1
    assert message in capsys.readouterr().err


def test_bases_that_do_not_work_are_one_clear_error(fit, capsys, tmp_path):
    assert fit("--adapter", "LoRA", base="./nowhere") == 1
    assert "base './nowhere': no such directory" in capsys.readouterr().err
    (tmp_path / "no-end").mkdir()
    tiny_model("llama").save_pretrained(tmp_path / "no-end")
    tiny_tokenizer(eos_token=None).save_pretrained(tmp_path / "no-end")
    assert fit("--adapter", "LoRA", base=tmp_path / "no-end") == 1
    assert "its tokenizer has no end token" in capsys.readouterr().err
    assert not list(Path("runs").glob("*-*"))


def test_a_set_without_a_training_file_names_the_sets_that_are_judged_on_it(folder, make_base, capsys):
    arguments = ["--model.base", str(make_base()), "--adapter", "LoRA", "--data", "GSM8K", *QUICK]
    assert main(["fit", *arguments]) == 1
    assert "gsm8k has no training file, so it can only be tested: train on Math10K" in capsys.readouterr().err


def test_without_a_dataset_the_known_ones_are_named(folder, capsys):
    assert main(["fit", "--adapter", "LoRA"]) == 1
    assert "no dataset: pass --data with one of AQuA, ARCChallenge, ARCEasy, AddSub" in capsys.readouterr().err


def test_with_nothing_to_test_it_says_how_to_begin(folder, capsys):
    assert main(["test"]) == 1
    assert "Begin with: adapters-pl fit --config quickstart.yaml" in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint_is_refused(folder, capsys):
    write("text.ckpt", "not a checkpoint")
    assert main(["test", "--ckpt_path", "text.ckpt"]) == 1
    assert "text.ckpt cannot be read as a checkpoint of adapters-pl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "key", "value", "ours"),
    [
        ("model", "base", "smollm2", True),
        ("model", "base", "boolq", False),
        ("data", "path", "BoolQ", True),
        ("data", "path", "smollm2", False),
        ("data", "root", "boolq", False),
        ("data", "test_path", "python", False),
        ("data", "general_text", "python", True),
    ],
)
def test_a_folder_is_recorded_by_its_whole_path_unless_the_key_knows_its_name(
    tmp_path, monkeypatch, section, key, value, ours
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / value).mkdir()
    found = training._absolute(value, training._PATHS[section][key])
    assert found == (value if ours else str(tmp_path / value))
