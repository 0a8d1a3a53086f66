"""Files of studies: forms, cells, words, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from adapters_pl.cli.command_line import CommandLine
from adapters_pl.inputs.errors import UserError
from adapters_pl.runs import recipes
from adapters_pl.studies.asked import Asked, differences, read

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STUDIES = sorted(path.stem for path in (CONFIGS / "study").glob("[!_]*.yaml"))


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Read a study with this content."""
    monkeypatch.chdir(tmp_path)

    def ask(content, form=None, name=None, typed=(), more=()):
        Path("mine.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return read(["mine.yaml", *more], form, name, typed)

    return ask


def test_a_grid_has_every_combination_once_and_several_grids_add_up(ask):
    asked = ask({"axes": [{"a": [1, 2], "b": ["x", "y"]}, {"a": [2, 3], "b": "y"}]})
    assert [tuple(cell.values()) for cell in asked.cells()] == [(1, "x"), (1, "y"), (2, "x"), (2, "y"), (3, "y")]
    assert asked.axes == {"a": [1, 2, 3], "b": ["x", "y"]}
    assert asked.trials == 5


def test_what_a_trial_varies_wins_over_what_is_typed_over_the_file(ask):
    asked = ask(
        {"configs": ["quickstart.yaml"], "set": {"model.lr": 1.0, "data.val_size": 3}, "axes": {"model.lr": [0.1]}},
        typed=["--model.lr", "2", "--data.val_size=5"],
    )
    line = CommandLine.read("fit", asked.words({"model.lr": 0.1}))
    assert (line.typed("model.lr"), line.typed("data.val_size")) == ("0.1", "5")
    assert line.files == tuple(recipes.find("quickstart.yaml"))


def test_an_axis_of_configurations_comes_behind_those_of_every_trial(ask):
    content = {"configs": ["quickstart.yaml"], "axes": {"config": ["methods/lora.yaml", None]}}
    asked = ask(content, more=["trainer/cpu.yaml"])
    lora, plain = (CommandLine.read("fit", asked.words(cell)).files for cell in asked.cells())
    assert [file.name for file in lora] == ["quickstart.yaml", "lora.yaml", "cpu.yaml"]
    assert [file.name for file in plain] == ["quickstart.yaml", "cpu.yaml"]


def test_a_seed_moves_the_order_of_rows_unless_that_is_said(ask):
    [cell] = ask({"axes": {"seed": [7]}}).cells()
    assert cell == {"seed_everything": 7}
    assert ask({"axes": {"seed": [7]}}).words(cell) == ["--seed_everything=7", "--data.seed=7"]
    assert "--data.seed=7" not in ask({"set": {"data.seed": 1}, "axes": {"seed": [7]}}).words(cell)


def test_values_that_are_lists_and_words_reach_the_trial_as_they_are(ask):
    asked = ask({"axes": {"a": [["q", "v"]], "b": [None], "c": [True], "d": ["x y"]}})
    assert asked.words(asked.cells()[0]) == ['--a=["q", "v"]', "--b=null", "--c=true", "--d=x y"]


def test_a_form_puts_its_own_in_place_and_adds_to_what_is_set(ask):
    content = {
        "configs": ["a"],
        "set": {"x": 1, "y": 1},
        "axes": {"k": [1, 2]},
        "forms": {"long": {}, "short": {"configs": ["b"], "set": {"y": 2}, "axes": {"k": [1]}}},
    }
    assert ask(content).name == "mine-long"
    short = ask(content, form="short")
    assert (short.name, short.configs, short.settings, short.trials) == ("mine-short", ("b",), {"x": 1, "y": 2}, 1)
    assert ask(content, name="other").name == "other"


def test_sampled_axes_may_be_ranges_and_every_value_is_looked_at(ask):
    axes = {"model.lr": {"low": 1e-5, "high": 1e-2, "log": True}, "adapter.rank": [4, 8, 16]}
    asked = ask({"axes": axes, "sampler": {"name": "tpe", "trials": 9}})
    assert asked.trials == 9
    samples = asked.samples()
    assert {sample["adapter.rank"] for sample in samples} == {4, 8, 16}
    assert {sample["model.lr"] for sample in samples} == {1e-5, 1e-2}
    assert len(samples) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("axes: {}", "axes is a mapping from keys to lists"),
        ("axes: {a: []}", "axis a has no values"),
        ("axes: {a: [1, 1]}", "axis a has a value twice"),
        ("axes: {a: {low: 1, high: 2}}", "axis a is a range, of which a grid has no cells"),
        ("axes: {a: {lo: 1}}", "axis a: give a list of values, or a range"),
        ("axes: {config: [3]}", "axis config should be names of files"),
        ("axes: {a: {low: 0, high: 2, log: true}}\nsampler: {name: tpe, trials: 2}", "begins above 0"),
        ("axes: {a: {low: 3, high: 2}}\nsampler: {name: tpe, trials: 2}", "the lower one first"),
        ("axes: {a: {low: 0, high: .inf}}\nsampler: {name: tpe, trials: 2}", "lie between"),
        (
            "axes: {a: {low: 1, high: 4, step: 0}}\nsampler: {name: tpe, trials: 2}",
            "step of a range is a number above 0",
        ),
        ("axes: {a: {low: 1, high: 4, step: 0.5}}\nsampler: {name: tpe, trials: 2}", "a whole one between whole"),
        ("axes: {a: {low: 1, high: 4, step: 2, log: true}}\nsampler: {name: tpe, trials: 2}", "goes without log"),
        ("axes: {a: {low: 1, high: 4, log: x}}\nsampler: {name: tpe, trials: 2}", "log of a range is true or false"),
        ("axes: [{a: [1]}, {a: [2]}]\nsampler: {name: tpe, trials: 2}", "a sampled study has one mapping"),
        ("axes: {a: [1]}\nsampler: tpe", "say how many trials"),
        ("axes: {a: [1]}\nsampler: {name: tp, trials: 2}", "did you mean 'tpe'"),
        ("axes: {a: [1]}\npruner: {name: median, warmup: 2}", "did you mean 'n_warmup_steps'"),
        ("axes: {a: [1]}\naxis: 3", "unknown key 'axis' of a study: did you mean 'axes'"),
        ("axes: {a: [1]}\nforms: {quick: {axis: 3}}", "unknown key 'axis' of a form"),
        ("axes: {a: [1]}\nset: 3", "set should hold keys"),
        ("forms: {quick: {}}", "says no axes"),
        ("model: {lr: 1}", r"takes one --config with axes and was given 0.*study/methods\.yaml"),
        (f"axes: {{a: {list(range(200))}, b: {list(range(200))}}}", "more than 10,000 cells"),
        (
            f"axes: [{{a: [1]}}, {{{', '.join(f'k{n}: {list(range(99))}' for n in range(9))}}}]",
            "more than 10,000 cells",
        ),
    ],
)
def test_what_is_wrong_with_a_study_is_said_in_a_line(ask, content, message):
    with pytest.raises(UserError, match=message) as caught:
        ask(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "\x1b[31mred", "a\nb"])
def test_a_name_stays_in_its_folder(ask, name):
    if name:
        with pytest.raises(UserError, match="without slashes"):
            ask({"axes": {"a": [1]}}, name=name)
    with pytest.raises(UserError, match="did you mean 'quick'"):
        ask({"axes": {"a": [1]}, "forms": {"quick": {}}}, form="quik")


def test_two_documents_differ_in_what_changes_a_trial_and_not_in_the_machine(ask):
    content = {"axes": {"adapter.rank": [4, 8]}, "set": {"trainer.accelerator": "cpu", "model.lr": 1}}
    before = ask(content).document()
    assert differences(before, ask(content, typed=["--trainer.accelerator", "gpu", "--data.root=X"]).document()) == []
    content["axes"]["adapter.rank"] = [4, 16]
    [said] = differences(before, ask(content).document())
    assert said == "adapter.rank is [4, 8] there, and [4, 16] here"
    content["axes"]["adapter.rank"] = [4, 8]
    [said] = differences(before, ask(content, typed=["--model.lr", "2"]).document())
    assert said == "model.lr is 1 there, and 2 here"
    assert differences(before, ask({**content, "pruner": "median"}).document())


def test_secrets_are_not_written(ask):
    document = ask({"axes": {"a": [1]}, "set": {"data.api_key": "swordfish"}}, typed=["--data.token", "abc12345"])
    assert "swordfish" not in str(document.document())
    assert "abc12345" not in str(document.document())


@pytest.mark.parametrize("name", STUDIES)
def test_every_ready_study_has_its_three_forms_and_few_trials_in_quick(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    forms = {form: read([f"study/{name}.yaml"], form, None, []) for form in ("paper", "quick", "smollm2")}
    assert read([f"study/{name}.yaml"], None, None, []) == forms["paper"]
    assert forms["quick"].trials <= 10
    assert "models/smollm2.yaml" in forms["smollm2"].configs
    assert isinstance(forms["quick"], Asked)
