"""What jsonargparse says is as it was when our words for it were written; a new version that changes it shows here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback

from adapters_pl import CausalLMModule
from adapters_pl.adapters import Adapter
from adapters_pl.cli.parser import _WORDS, worded
from adapters_pl.compat.jsonargparse import MESSAGES, Refusal, SectionHelp, refusal, refusal_while_building
from adapters_pl.inputs.ranges import AtLeast1


class Needy(Callback):
    """Has an argument that must be given."""

    def __init__(self, size: int):
        self.size = size


class Failing(Callback):
    """Fails as it is built."""

    def __init__(self, size: int = 3):
        raise ValueError("never built")


@pytest.fixture
def refused():
    """What is refused of the words given, and the words that a person reads."""

    def refused(*words):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--count", type=AtLeast1 | None, default=1)
        parser.add_argument("--number", type=int | None, default=1)
        parser.add_argument("--choice", type=Literal["a", "b"] | list[str], default="a")
        parser.add_argument("--adapter", type=Adapter | list[Adapter] | None, default=None)
        parser.add_argument("--call", type=Callback | None, default=None)
        parser.add_class_arguments(Needy, "section")
        parser.add_subclass_arguments(CausalLMModule, "model", required=not words)
        with pytest.raises(ArgumentError) as caught:
            parser.parse_args(["--section.size", "3", *words])
        found = refusal(str(caught.value))
        return found, str(worded(found, "fit"))

    return refused


LORA = ["--adapter", "adapters_pl.LoRA"]
PEFT = ["--adapter", "adapters_pl.PEFTAdapter", "--adapter.peft_config", "peft.LoraConfig"]


@pytest.mark.parametrize(
    ("words", "message", "where", "says"),
    [
        ([*LORA, "--adapter.rnk", "3"], "unknown key", "adapter", "unknown key 'adapter.rnk': did you mean 'rank'?"),
        (
            [*PEFT, "--adapter.peft_config.rr", "3"],
            "unknown key",
            "adapter.peft_config",
            "'adapter.peft_config.rr': did",
        ),
        (["--nmber", "3"], "unknown key", "", "unknown key 'nmber': "),
        (["--adapter.rank", "3"], "key before class", "adapter", "adapter.rank: name its adapter before it, with --ad"),
        ([], "missing key", "", "no dataset: pass --data with one of "),
        (["--call", f"{__name__}.Needy"], "missing key", "call", "call: Needy needs size: pass --call.size."),
        (["--count", "0"], "out of range", "count", "count is 0; it must be at least 1."),
        (["--count", "few"], "out of range", "count", "count: expected a number at least 1, not 'few'."),
        (
            [*LORA, "--adapter.rank", "few"],
            "out of range",
            "adapter.rank",
            "adapter.rank: expected a number at least 1, ",
        ),
        (["--number", "few"], "another type", "number", "number: expected a whole number, not 'few'."),
        (["--choice", "{c: 1}"], "another type", "choice", "choice: expected one of a, b, not '"),
        (["--adapter", "pathlib.Path"], "no subclass", "adapter", "adapter: pathlib.Path is no subclass of Adapter."),
        (
            ["--adapter.help", "pathlib.Path"],
            "no subclass",
            "adapter",
            "adapter: pathlib.Path is no subclass of Adapter",
        ),
        (["--adapter", "[3]"], "no subclass", "adapter", "is no subclass of Adapter."),
        (
            ["--adapter", "nowhere.X"],
            "no module",
            "adapter",
            "adapter: cannot import nowhere.X: No module named 'nowhere'",
        ),
        (["--adapter", "adapters_pl.X"], "no module", "adapter", "cannot import adapters_pl.X: has no attribute 'X'"),
        (["--adapter", "Lora"], "no class", "adapter", "there is no adapter 'Lora': did you mean 'LoRA'?"),
        (["--adapter", ""], "no class", "adapter", "adapter is empty: name a class, or leave it out."),
        (["--adapter.help", "Lora"], "no class", "adapter", "there is no adapter 'Lora': did you mean 'LoRA'?"),
        (["--call", "Nope"], "no class", "call", "call: 'Nope' is no class; give its whole path, as in package."),
        (["--section", "3"], "no mapping", "section", "section is '3'; it holds keys: give --section.KEY VALUE."),
    ],
)
def test_a_message_is_known_and_reworded(refused, words, message, where, says):
    found, said = refused(*words)
    assert (found.message, found.where) == (message, where)
    assert says in said


def test_classes_of_one_name_are_told_apart_by_their_whole_path(refused, monkeypatch):
    paths = [f"{__name__}.Needy", "elsewhere.Needy"]
    monkeypatch.setattr("jsonargparse._typehints.get_all_subclass_paths", lambda *_, **__: paths)
    found, said = refused("--call", "Needy")
    assert found.message == "ambiguous class"
    assert said == f"call: there are several 'Needy': give one of {', '.join(paths)}."


def test_every_message_has_words_and_an_unknown_one_is_repeated():
    assert {name for name, _ in MESSAGES} == set(_WORDS)
    other = refusal('Parser key "model":\n  Something new\n  Given value: 3')
    assert other == Refusal("", "model", "", "3", {}, (), "Something new")
    assert str(worded(other, "fit")) == "model: Something new. See adapters-pl fit --help."


def test_what_is_noticed_only_while_building_is_told_from_what_a_class_raises():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--call", type=Callback)
    built = parser.parse_args(["--call", f"{__name__}.Failing"])
    with pytest.raises(ValueError, match="never built") as caught:
        parser.instantiate_classes(built)
    assert refusal_while_building(caught.value) is None


def test_the_help_of_a_section_is_one_group_of_the_whole(capsys):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Needy, "section")
    parser.add_argument("--section.help", action=SectionHelp)
    parser.add_argument("--other")
    with pytest.raises(SystemExit):
        parser.parse_args(["--section.help"])
    printed = capsys.readouterr().out
    assert re.search(r"^  --section\.size ", printed, re.MULTILINE)
    assert "--other" not in printed


def test_our_own_sources_name_no_internals_of_jsonargparse_elsewhere():
    package = Path(__file__).resolve().parents[2] / "adapters_pl"
    internals = r"jsonargparse\._|NestedArg|_action_groups|_group_actions|_typehint\b"
    naming = [path.name for path in package.rglob("*.py") if re.search(internals, path.read_text())]
    assert naming == ["jsonargparse.py"]
