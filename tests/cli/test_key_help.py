"""The short help agrees with what the commands take, and names nothing that there is not."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

import adapters_pl
from adapters_pl.adapters import Adapter
from adapters_pl.answers import PROTOCOLS
from adapters_pl.cli import key_help
from adapters_pl.cli.key_help import KEYS, OWN, Key, describe
from adapters_pl.cli.main import COMMANDS, main
from adapters_pl.data import ReasoningDataModule
from adapters_pl.inputs.names import arguments_of
from adapters_pl.runs.run import DEFAULT_ROOT
from adapters_pl.training.strategies import strategy_named


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """What a command prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words):
        assert main(list(words)) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("command", KEYS)
def test_the_defaults_are_those_of_the_command(printed, command):
    (rows := Path("rows.json")).write_text("[]")
    words = ["--adapter", "LoRA", "--data", "InstructionJSON", "--data.path", str(rows), "--print_config"]
    config = yaml.safe_load(printed(command, *words))
    for key in set(KEYS[command]) - {"config", "adapter", "data", "data.path"}:
        section, _, name = key.partition(".")
        value = config[section]
        if name:
            value = (value.get("init_args") or value)[name]
        described = describe(key)
        assert value == (False if described.kind == "flag" else described.default), key


@pytest.mark.parametrize("command", KEYS)
def test_every_key_is_in_the_full_help_and_every_line_fits(printed, command):
    short, full = printed(command, "--help"), printed(command, "--help_all")
    assert re.findall(r"^  --([\w.]+) ", short, re.MULTILINE) == list(KEYS[command])
    assert full.startswith(f"usage: adapters-pl {command} ")
    assert max(map(len, short.splitlines())) <= 120
    for key in KEYS[command]:
        section = key.partition(".")[0]
        taken = key if section in (key, "trainer") else section
        assert re.search(rf"^  (-c CONFIG, )?--{re.escape(taken)}\b", full, re.MULTILINE), key


@pytest.mark.parametrize("command", KEYS)
def test_what_the_help_says_of_more_help_works(printed, command):
    pytest.importorskip("bitsandbytes")  # which has an SGD too
    offered = re.findall(
        rf"^  adapters-pl {command} (--[\w.]*help\w*.*?)(?:  |$)", printed(command, "--help"), re.MULTILINE
    )
    assert len(offered) == len(key_help.SECTIONS) - 1  # --print_config
    for words in [*offered, "--lr_scheduler.help StepLR"]:
        section = re.match(r"--(\w+)", words)[1].replace("help_all", "trainer")
        assert f"--{section}." in printed(command, *words.split())


def test_a_datasets_keys_stand_under_headings_and_its_own_behind_them(printed):
    def heads(name):
        return re.findall(r"^(\S.*):$", printed("fit", "--data.help", name), re.MULTILINE)

    assert heads("GSM8K") == list(ReasoningDataModule.headings)
    assert heads("MathQA") == [*ReasoningDataModule.headings, "Of MathQA alone"]
    text = printed("fit", "--data.help", "MathQA")
    assert text.startswith("AQuA's problems, cleaned and annotated anew.")
    assert text.index("--data.contamination") < text.index("Of MathQA alone") < text.index("--data.corrupted")
    assert "(type: whole number, at least 1, default: 4)" in " ".join(text.split())


def test_what_is_read_from_the_sources_is_what_python_sees():
    for section, classes in key_help._CLASSES.items():
        read = {getattr(adapters_pl, name): key_help._arguments(file, name) for file, name in classes}
        for cls in read:
            known = {
                key: argument.default for base in reversed(cls.__mro__) for key, argument in read.get(base, {}).items()
            }
            assert known == {key: value.default for key, value in arguments_of(cls).items()}, section
    assert describe("data.batch_size") == Key("training rows per process and batch", "int", 4)
    assert describe("adapter.rank").of == "LoRA"
    assert describe("model.quantization").kind == "8bit|4bit"
    assert describe("model.test_base").kind == "true|false"
    assert describe("data.path").kind == "text or list"


def test_every_public_method_and_dataset_is_named():
    for room, kind in (("adapters", Adapter), ("data", ReasoningDataModule)):
        public = {name: getattr(adapters_pl, name) for name in adapters_pl.__all__}
        classes = {n: cls for n, cls in public.items() if inspect.isclass(cls) and issubclass(cls, kind)}
        below = {n for n, cls in classes.items() if cls is not kind and not inspect.isabstract(cls)}
        assert set(key_help.names(room)) == below


def test_names_within_descriptions_exist():
    for name in OWN["trainer.strategy"].line.partition(": ")[2].split(", "):
        strategy_named(name)
    assert set(re.findall(r"\w+", describe("data.protocol").line.partition(": ")[2])) - {"or"} == set(PROTOCOLS)


def test_a_narrow_terminal_has_lines_that_fit(printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, printed("fit", "--help").splitlines())) <= 80


def test_runs_are_compared_where_they_are_written():
    assert str(COMMANDS["compare"].parser("compare").get_default("root")) == DEFAULT_ROOT
