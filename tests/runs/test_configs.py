"""Every recipe parses, instantiates, says what it is, and holds nothing that goes without saying."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError

import adapters_pl
from adapters_pl import Adapter
from adapters_pl.answers import SUITES
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.main import main
from adapters_pl.cli.training import TrainingCLI
from adapters_pl.inputs.untrusted import load_config_file
from adapters_pl.runs import recipes

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
OVERLAYS = sorted(path for folder in ("data", "trainer") for path in (CONFIGS / folder).glob("*.yaml"))
#: What is merged with others; the files of studies say what is varied, and are read by ``adapters_pl.studies``.
PARTS = [path for path in FILES if path.parent.name != "study"]
METHODS, MODELS = (sorted(path.stem for path in (CONFIGS / half).glob("[!_]*.yaml")) for half in ("methods", "models"))
PAIRS = [f"{method}_{model}.yaml" for method in METHODS for model in MODELS]
RECIPES = [*PAIRS, "quickstart.yaml"]

#: What each recipe held while it was one file, as it is written: the values that it must still come to.
BEFORE = json.loads((Path(__file__).parent / "recipes_before.json").read_text())


def line(*words):
    """``fit`` with ``words``."""
    return CommandLine.read("fit", words)


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    """The parser of ``fit``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("parser"))
        return TrainingCLI(line("--config", str(CONFIGS / "quickstart.yaml"))).parser


@pytest.fixture
def resolved(parser, tmp_path, monkeypatch):
    """Resolve names of recipes, files, or contents of files, merged in their order."""
    monkeypatch.chdir(tmp_path)

    def resolved(*configs):
        words = []
        for number, config in enumerate(configs):
            if isinstance(config, dict):
                Path(f"{number}.yaml").write_text(yaml.safe_dump(config))
                config = f"{number}.yaml"
            words += ["--config", str(config)]
        config = parser.parse_args(line(*words).words()).as_dict()
        del config["config"]
        return config

    return resolved


def leaves(node, path=()):
    """The values of a configuration by the keys that lead to them."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def without(content, path):
    """``content`` without the value at ``path``."""
    left = copy.deepcopy(content)
    *above, last = path
    node = left
    for key in above:
        node = node[key]
    del node[last]
    return left


# ---- every recipe


@pytest.mark.parametrize("name", BEFORE)
def test_a_recipe_comes_to_what_it_was_as_one_file(name, resolved):
    assert resolved(name) == resolved(BEFORE[name])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_its_objects_from_its_values(name, parser, resolved):
    given = resolved(name)
    built = parser.instantiate_classes(parser.parse_args(line("--config", name).words()))
    for path, (value, _) in leaves(recipes.merged(name)):
        section, *keys = (key for key in path if key not in ("init_args", "class_path"))
        if not keys:
            assert type(built[section]).__name__ == value
        elif section == "trainer":
            assert given["trainer"][keys[0]] == value
        elif section == "model":
            assert given["model"]["init_args"][keys[0]] == value
        else:
            holder = built[section] if hasattr(built[section], keys[0]) else built[section].asking
            assert getattr(holder, keys[0]) == value
    assert built.model.base == given["model"]["init_args"]["base"]


def test_every_adapter_of_ours_is_a_method():
    classes = [getattr(adapters_pl, name) for name in adapters_pl.__all__]
    ours = {kind.__name__ for kind in classes if isinstance(kind, type) and issubclass(kind, Adapter)}
    given = [load_config_file(CONFIGS / "methods" / f"{method}.yaml")["adapter"] for method in METHODS]
    assert {kind if isinstance(kind, str) else kind["class_path"] for kind in given} == ours - {
        "Adapter",
        "LinearAdapter",
        "PEFTAdapter",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_what_show_prints_is_the_recipe_in_one_file(name, resolved, capsys):
    before = resolved(name)
    assert main(["recipes", "show", name]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == f"# {recipes.describe(recipes.find(name))}"
    Path("configs").mkdir()
    Path("configs", name).write_text(shown)
    assert recipes.find(name) == [Path("configs", name)]
    assert resolved(name) == before


# ---- every file


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_a_configuration_says_what_it_is_in_its_first_line_and_is_short(path):
    assert len(recipes.describe([path])) > 20
    assert len(path.read_text().splitlines()) <= (20 if path.parent.name == "study" else 15)
    assert max(map(len, path.read_text().splitlines())) <= 120
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def merges_with(path):
    """The lists of files that ``path`` merges in: recipes, or what an overlay may lie over."""
    if path in OVERLAYS:
        return [[CONFIGS / "quickstart.yaml", other, path] for other in OVERLAYS if other != path]
    return [files for name in RECIPES if path in (files := [file.resolve() for file in recipes.find(name)])]


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_no_value_repeats_a_default_or_what_another_file_says(path, resolved):
    content = load_config_file(path)

    def changes(key, files):
        place = files.index(path)
        try:
            return resolved(*files[:place], without(content, key), *files[place + 1 :]) != resolved(*files)
        except ArgumentError:  # it cannot be left out
            return True

    idle = [".".join(key) for key, _ in leaves(content) if not any(changes(key, files) for files in merges_with(path))]
    assert idle == []


# ---- over a recipe


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_goes_over_a_recipe(path, resolved):
    before, over = resolved("prefix_llama7b"), resolved("prefix_llama7b", path)
    for section, given in load_config_file(path).items():
        if "class_path" in given:
            assert over[section]["class_path"].endswith(f".{given['class_path']}")
        else:
            assert over[section] == {**before[section], **given}


@pytest.mark.parametrize("data", ["Commonsense170K", "Arithmetic"])
def test_other_data_keeps_a_recipes_settings(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = TrainingCLI(line("--config", "lora_llama7b", "--data", data, "--trainer.accelerator", "cpu"))
    assert type(cli.datamodule).__name__ == data
    assert cli.datamodule.contamination == "drop"
    assert cli.datamodule.test_sets == list(SUITES["Commonsense" if data.startswith("Common") else data])


# ---- methods and models of one's own


def put(name, text):
    path = Path("configs", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def printed(capsys, *words):
    assert main(["fit", *words, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_method_and_a_model_of_ones_own_are_in_the_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    put("methods/mine.yaml", "adapter: {class_path: IA3, init_args: {layers: 0-1}}\ntrainer: {max_epochs: 9}\n")
    put("models/tiny.yaml", "model: {base: quickstart, dtype: float32, lr: 1.0e-3}\n")
    for name, method, base in (
        ("mine_tiny", "IA3", "quickstart"),
        ("mine_llama7b", "IA3", "yahma/llama-7b-hf"),
        ("lora_tiny.yaml", "LoRA", "quickstart"),
    ):
        config = printed(capsys, "--config", name)
        assert config["adapter"]["class_path"] == f"adapters_pl.{method}"
        assert config["model"]["init_args"]["base"] == base
        assert config["model"]["init_args"]["test_base"] is False
        assert config["data"]["class_path"] == "adapters_pl.Math10K"


def test_a_method_wins_over_a_model_over_the_common_and_what_is_typed_over_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    put("methods/_common.yaml", "model: {lr: 1.0, weight_decay: 1.0, warmup_steps: 1}\ndata: GSM8K\n")
    put("models/tiny.yaml", "model: {lr: 2.0, weight_decay: 2.0}\n")
    put("methods/mine.yaml", "model: {lr: 3.0}\nadapter: LoRA\n")
    put("over.yaml", "model: {warmup_steps: 4}\n")
    model = printed(capsys, "--model.lr", "5", "--config=mine_tiny", "--config", "over")["model"]["init_args"]
    assert [model[key] for key in ("lr", "weight_decay", "warmup_steps")] == [5.0, 2.0, 4]


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("model: {base: quickstart}", "data: GSM8K\nadapter: LoRA"),
        ("adapter: LoRA", "adapter: {init_args: {rank: 3}}"),
        ("adapter: {class_path: LoRA, init_args: {rank: 3}}", "adapter: {init_args: {alpha: 5}}"),
        ("model: {lr: 0.5}", "adapter: [LoRA, {class_path: IA3, init_args: {name: b}}]"),
        (
            "model: {class_path: adapters_pl.CausalLMModule, init_args: {lr: 0.5}}",
            "model: {lr: 1.0e-05}\nadapter: LoRA",
        ),
        ("model: {lr: 0.5}", "model: {class_path: CausalLMModule, init_args: {base: quickstart}}\nadapter: IA3"),
        ('data: {init_args: {template: "a # b\\n{instruction}", files: {}}}', "adapter: 'IA3'  # why: so"),
        (
            "adapter: null",
            "adapter:\n  class_path:\n    LoRA\n  init_args:\n    target_modules:\n    - a\n    - b  # c",
        ),
    ],
)
def test_what_show_prints_merges_as_the_files_do(model, method, resolved, capsys):
    put("models/tiny.yaml", model)
    put("methods/mine.yaml", method)
    assert main(["recipes", "show", "mine_tiny"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert resolved(shown) == resolved("mine_tiny")
