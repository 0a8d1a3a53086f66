"""Every configuration in the repository parses, instantiates, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adapters_pl import recipes
from adapters_pl.configuration import load_config_file
from adapters_pl.data.registry import SUITES
from adapters_pl.lightning_cli import AdaptersCLI

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent != CONFIGS)


def test_there_are_configurations():
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_builds_its_objects_and_gives_nothing_that_is_default(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = AdaptersCLI(["fit", "--config", str(path), "--trainer.accelerator", "cpu"], path.stem, None)
    given = load_config_file(path)
    assert cli.adapters()
    assert cli.model.base == given.get("model", {}).get("base", "quickstart")
    for section, built in (("data", cli.datamodule), ("adapter", cli.adapters()[0])):
        if isinstance(given[section], dict):
            for key, value in given[section]["init_args"].items():
                assert getattr(built, key) == value


@pytest.mark.parametrize("path", RECIPES + OVERLAYS, ids=lambda path: path.name)
def test_a_configuration_says_what_it_is_in_its_first_line_and_is_short(path):
    assert len(recipes.describe(path)) > 20
    assert len(path.read_text().splitlines()) <= 15
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_goes_over_a_recipe(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ["--config", str(CONFIGS / "quickstart.yaml"), "--config", str(path)]
    cli = AdaptersCLI(["fit", *files, "--trainer.accelerator", "cpu"], path.stem, None)
    for section, keys in load_config_file(path).items():
        configured = cli.config.fit[section].as_dict()
        for key, value in keys.items():
            if key == "class_path":
                assert configured[key].endswith(f".{value}")
            elif (section, key) != ("trainer", "accelerator"):  # given above, and what is typed wins
                assert configured[key] == value
    assert cli.config.fit.trainer.max_epochs == load_config_file(CONFIGS / "quickstart.yaml")["trainer"]["max_epochs"]


def test_other_training_data_keeps_a_recipes_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [
        word for name in ("lora_llama7b.yaml", "data/commonsense170k.yaml") for word in ("--config", CONFIGS / name)
    ]
    cli = AdaptersCLI(["fit", *map(str, files), "--trainer.accelerator", "cpu"], "lora", None)
    assert type(cli.datamodule).__name__ == "Commonsense170K"
    given = load_config_file(CONFIGS / "lora_llama7b.yaml")["data"]["init_args"]
    assert given == {key: getattr(cli.datamodule, key) for key in given}
    assert cli.datamodule.test_sets == list(SUITES["Commonsense"])
