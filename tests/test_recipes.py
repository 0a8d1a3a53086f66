"""Where ``--config NAME`` is looked for, and what is listed."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest

from adapters_pl.errors import UserError
from adapters_pl.recipes import available, describe, find, main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder and an empty installed package; place files in them."""
    (tmp_path / "work").mkdir()
    (tmp_path / "site" / "adapters_pl").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path / "site" / "adapters_pl")

    def place(*names, text="# A recipe\nmodel:\n"):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return place


FOLDERS = ["work", "work/configs", "site/adapters_pl/configs", "site/configs"]


@pytest.mark.parametrize("first", range(4), ids=["path", "configs", "wheel", "checkout"])
@pytest.mark.parametrize("name", ["lora.yaml", "lora", "trainer/fsdp.yaml", "trainer/fsdp"])
def test_the_nearest_of_the_files_of_one_name_is_taken(place, first, name):
    file = name if name.endswith(".yaml") else f"{name}.yaml"
    top = place(*(f"{folder}/{file}" for folder in FOLDERS[first:]))
    assert find(name).resolve() == top / FOLDERS[first] / file


def test_a_path_may_lead_anywhere_and_have_any_ending(place):
    top = place("elsewhere/mine.yml")
    assert find(str(top / "elsewhere" / "mine.yml")) == top / "elsewhere" / "mine.yml"
    assert find("../elsewhere/mine.yml").resolve() == top / "elsewhere" / "mine.yml"


def test_a_folder_is_no_config(place):
    top = place("work/lora/notes.txt", "site/configs/lora.yaml")
    assert find("lora").resolve() == top / "site" / "configs" / "lora.yaml"


def test_everything_is_listed_once_by_its_name_below_its_folder(place):
    top = place("work/configs/lora.yaml", "site/configs/lora.yaml", "site/configs/trainer/fsdp.yaml", "work/other.yaml")
    place("work/configs/notes.txt")
    assert {name: path.resolve() for name, path in available().items()} == {
        "lora.yaml": top / "work" / "configs" / "lora.yaml",
        "trainer/fsdp.yaml": top / "site" / "configs" / "trainer" / "fsdp.yaml",
    }


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("lora_lama7b.yaml", "did you mean 'lora_llama7b.yaml'?"),
        ("lora_lama7b", "did you mean 'lora_llama7b.yaml'?"),
        ("trainer/fsdb.yaml", "did you mean 'trainer/fsdp.yaml'?"),
        ("zzz", "known: lora_llama7b.yaml, trainer/fsdp.yaml"),
    ],
)
def test_a_misspelt_name_offers_the_nearest(place, name, offered):
    place("site/configs/lora_llama7b.yaml", "work/configs/trainer/fsdp.yaml")
    with pytest.raises(UserError) as caught:
        find(name)
    assert str(caught.value) == f"config '{name}': no such file or recipe: {offered}"


def test_without_any_recipe_the_error_says_so(place):
    with pytest.raises(UserError, match="none is known"):
        find("lora.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# LoRA, rank 8\n# more\nmodel:\n", "LoRA, rank 8"),
        ("##  LoRA: größer \n", "LoRA: größer"),
        ("model:\n# later\n", ""),
        ("", ""),
    ],
)
def test_a_recipe_describes_itself_in_its_first_comment(place, text, line):
    top = place("mine.yaml", text=text)
    assert describe(top / "mine.yaml") == line


def test_the_listing_has_recipes_first_and_then_overlays(place, capsys):
    place("site/configs/data/boolq.yaml", "site/configs/prefix.yaml", text="# Of the package\n")
    place("work/configs/lora.yaml", "work/configs/prefix.yaml", text="# Mine\n")
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "lora.yaml        Mine",
        "prefix.yaml      Mine",
        "data/boolq.yaml  Of the package",
        "",
        "Use one with: adapters-pl fit --config NAME",
    ]


def test_the_listing_takes_no_arguments(place):
    with pytest.raises(UserError, match="recipes takes no arguments, got --all x"):
        main(["--all", "x"])


def test_the_packages_own_recipes_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("quickstart").name == "quickstart.yaml"
    assert describe(find("quickstart")) != ""
    assert Path(find("quickstart")).is_absolute()
