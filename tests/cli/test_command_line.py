"""The words of a command, read once, and why they are read before jsonargparse parses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters_pl import CausalLMModule, ReasoningDataModule
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.main import main
from adapters_pl.inputs.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)


def read(*words):
    """``test`` with ``words``."""
    return CommandLine.read("test", words)


def config(name, text):
    Path(name).write_text(text)
    return "--config", name


def test_both_spellings_are_read_and_the_last_value_counts():
    line = read("--a", "1", "--b=2", "--a=3", "--c", "--d", "-4", "stray", "-h")
    assert [(option.key, option.value) for option in line.options] == [
        *(("a", "1"), ("b", "2"), ("a", "3"), ("c", None), ("d", "-4"), ("", "stray"), ("help", None)),
    ]
    assert (line.typed("a"), line.typed("c"), line.typed("e")) == ("3", None, None)
    assert (line.has("c"), line.has("e")) == (True, False)


def test_the_last_config_wins_and_what_is_typed_over_all():
    files = [*config("a.yaml", "trainer: {max_epochs: 1}\n"), *config("b.yaml", "trainer: {max_epochs: 2}\n")]
    assert read(*files).get("trainer.max_epochs") == 2
    assert read(*files, *config("c.yaml", "model: {}\n")).get("trainer.max_epochs") == 2
    assert read("--trainer.max_epochs=3", *files).get("trainer.max_epochs") == "3"
    assert read(*files).get("ckpt_path") is None
    assert read(*files).get("model.base", "trainer.max_epochs") == 2


def test_the_words_for_the_parser_have_the_files_first_and_full_names():
    line = read("--data", "gsm8k", "--data.help=gsm8k", "--x=1", *config("a.yaml", "a: 1\n"), "--y", "2", "--help_all")
    assert line.words(without=("y",), names={"data": {"gsm8k": "adapters_pl.GSM8K"}}) == [
        *("--config", "a.yaml", "--data", "adapters_pl.GSM8K", "--data.help", "adapters_pl.GSM8K", "--x=1", "--help"),
    ]


def test_a_class_stands_before_its_arguments_wherever_it_was_typed(capsys):
    line = read("--data.path", "a.json", "--adapter.rank=4", "--data", "InstructionJSON", "--adapter=LoRA", "--x", "1")
    assert [option.key for option in line.options] == ["data", "adapter", "data.path", "adapter.rank", "x"]
    assert main(["fit", "--config", "quickstart.yaml", "--data.path", "absent.json", "--data", "InstructionJSON"]) == 1
    assert "absent.json: no such file" in capsys.readouterr().err


def test_a_study_is_no_configuration_of_a_run(capsys):
    assert main(["fit", "--config", "study/placement.yaml"]) == 1
    assert "placement.yaml is a study: run it with adapters-pl study --config " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--overwrite=3"], ["--overwrite", "3"], ["--trust_checkpoint=3"]])
def test_a_switch_takes_no_value(words):
    with pytest.raises(UserError, match=r"--\w+ takes no value, and was given '3'"):
        read(*words)


@pytest.mark.parametrize("words", [["--config"], ["-c"], ["--config", "--data"]])
def test_config_needs_a_value(words):
    with pytest.raises(UserError, match="--config needs a file"):
        read(*words)


def test_lightnings_cli_cannot_be_the_first_to_read_the_words(monkeypatch, capsys):
    """What only a checkpoint says, the dataset of ``adapters-pl test``, is missing to it."""
    from lightning.pytorch.cli import LightningCLI

    base = ["--model", "CausalLMModule", "--model.base", "quickstart"]
    monkeypatch.setattr("sys.argv", ["adapters-pl", "test", *base])
    with pytest.raises(SystemExit):
        LightningCLI(CausalLMModule, ReasoningDataModule, subclass_mode_model=True, subclass_mode_data=True)
    assert "arguments are required: test.data" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--ckpt_path", "last"], ["--adapter_path", "x"], ["--trust_checkpoint"]])
def test_plan_starts_from_nothing_that_was_saved(capsys, words):
    assert main(["plan", "--model.base", "quickstart", "--adapter", "LoRA", *words]) == 1
    assert f"plan takes no {words[0]}: it plans a new training" in capsys.readouterr().err


def test_plan_and_fit_have_one_configuration(capsys):
    words = ["--config", "lora_llama7b.yaml", "--data", "GSM8K", "--print_config"]
    assert main(["fit", *words]) == 0
    printed = capsys.readouterr().out
    assert main(["plan", *words]) == 0
    assert capsys.readouterr().out == printed
    Path("printed.yaml").write_text(printed)
    assert main(["plan", "--config", "printed.yaml", "--model.base", "quickstart"]) == 0
    assert "trainable parameters: " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["export", "doctor"])
def test_commands_without_a_configuration_know_no_config(capsys, command):
    own = ["--out", "x"] if command == "export" else []
    assert main([command, *own, "--config", "quickstart.yaml"]) == 1
    assert "unrecognized arguments: --config" in capsys.readouterr().err
