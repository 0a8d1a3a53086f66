"""What every method takes from its base class: arguments from fields, directories from tables, merging, errors."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from adapters_pl import IA3, Adapter, LinearAdapter, LinearAdapterLayer, LoRA, UserError, load_adapter, save_adapter
from adapters_pl.adapters import adapter_layers, resolve
from adapters_pl.adapters.base import describe_adapter
from adapters_pl.inputs.names import arguments_of
from adapters_pl.inputs.ranges import AtLeast1
from adapters_pl.models.slots import attach
from adapters_pl.training.checkpoint import build_adapter
from tests.conftest import tiny_model
from tests.helpers.methods import logits, perturb


class ScaleLayer(LinearAdapterLayer):
    def __init__(self, site, first):
        super().__init__()
        self.first, self.scale = first, nn.Parameter(torch.empty(site.out_features))

    def reset_parameters(self, generator_for, base):
        self.scale.fill_(self.first)

    def after(self, x, y, base):
        return y * self.scale

    def delta(self, base):
        return base.weight * (self.scale - 1)[:, None]


@dataclass(eq=False)
class Scale(LinearAdapter):
    """Rescale what linear modules return.

    Args:
        first: the value that every factor begins with.
        parts: how many parts there are.
    """

    peft_type = "TEST_SCALE"
    peft_settings = {"first": "init_scale", "parts": "num_parts"}
    peft_defaults = {"num_parts": 1}
    peft_names = {"scale": "scale_vector"}

    first: float = 1.0
    parts: AtLeast1 = 1

    def make_layer(self, site, module):
        return ScaleLayer(site, self.first)


class OwnConstructor(LinearAdapter):
    """A method that is no dataclass: its constructor keeps its arguments, and hands on the others."""

    def __init__(self, first: float = 1.0, parts: AtLeast1 = 1, **shared):
        super().__init__(**shared)
        self.first, self.parts = first, parts

    def make_layer(self, site, module):
        return ScaleLayer(site, self.first)


def test_the_fields_of_a_method_and_of_its_bases_are_its_arguments():
    shared = ["name", "placement", "target_modules", "layers", "exclude", "modules_to_save"]
    assert sorted(arguments_of(Scale)) == sorted(["first", "parts", *shared])
    assert sorted(arguments_of(OwnConstructor)) == sorted(["first", "parts", *shared])
    for cls in (Scale, OwnConstructor):
        adapter = cls(2.0, layers="1", name="own")
        assert adapter.init_args() == build_adapter(describe_adapter(adapter)).init_args()
        assert adapter.init_args()["layers"] == "1"


@pytest.mark.parametrize("cls", [Scale, OwnConstructor])
def test_the_command_line_knows_the_types_and_the_words_on_every_argument(cls):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Adapter, "adapter")
    parsed = parser.parse_args([f"--adapter={__name__}.{cls.__name__}", "--adapter.first=2", "--adapter.layers=1-2"])
    assert parsed.adapter.init_args.first == 2.0
    assert parsed.adapter.init_args.layers == "1-2"
    with pytest.raises(ArgumentError, match="AtLeast1"):
        parser.parse_args([f"--adapter={__name__}.{cls.__name__}", "--adapter.parts=0"])
    shown = ArgumentParser()
    shown.add_class_arguments(cls)
    for words in ("what tells several adapters", "which sublayers are adapted", "which decoder layers"):
        assert words in " ".join(shown.format_help().split())


def test_arguments_that_were_given_by_place_are_no_others_now():
    with pytest.raises(TypeError, match="positional"):
        IA3("attn")
    with pytest.raises(TypeError, match="positional"):
        LoRA(4, 8, 0.0, "attn")


def test_ranges_and_choices_of_fields_are_checked():
    with pytest.raises(UserError, match="Scale: parts is 0; it must be at least 1"):
        Scale(parts=0)
    with pytest.raises(UserError, match="Scale: placement 'mpl': choose attn, mlp or both"):
        Scale(placement="mpl")
    with pytest.raises(UserError, match="Scale: parts is null"):
        Scale(parts=None)


def test_a_directory_is_written_and_read_by_the_tables(tmp_path):
    model, adapter = tiny_model("llama"), Scale(1.5, layers="1", placement="mlp")
    adapter.attach_to(model)
    perturb(model, adapter)
    save_adapter(model, adapter, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    paths = [f"model.layers.1.mlp.{name}" for name in ("down_proj", "up_proj")]
    assert (written["init_scale"], written["num_parts"], written["target_modules"]) == (1.5, 1, paths)
    assert set(adapter.to_peft(model)[1]) == {f"base_model.model.{path}.scale_vector" for path in paths}
    loaded = load_adapter(tiny_model("llama"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(("key", "refused"), [("init_scale", True), ("target_modules", True), ("num_parts", False)])
def test_a_directory_without_a_setting_is_refused_unless_the_method_knows_what_it_means(key, refused, tmp_path):
    model, adapter = tiny_model("llama"), Scale()
    adapter.attach_to(model)
    file = save_adapter(model, adapter, tmp_path) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: None}))
    if refused:
        with pytest.raises(UserError, match=f"adapter_config.json: {key} is missing; mend it"):
            load_adapter(tiny_model("llama"), tmp_path)
    else:
        load_adapter(tiny_model("llama"), tmp_path)


def test_an_ia3_directory_has_to_say_which_modules_are_rescaled_at_their_input(tmp_path):
    model, adapter = tiny_model("llama"), IA3()
    adapter.attach_to(model)
    file = save_adapter(model, adapter, tmp_path) / "adapter_config.json"
    settings = json.loads(file.read_text())
    del settings["feedforward_modules"]
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="feedforward_modules is missing"):
        load_adapter(tiny_model("llama"), tmp_path)


def test_the_projections_that_end_a_sublayer_are_known_by_their_place():
    model = tiny_model("opt")
    adapter = IA3(target_modules="all-linear")
    adapter.attach_to(model)
    inputs = {path for path, layer in adapter.sites(model).items() if layer.scales_input}
    assert inputs == {f"model.decoder.layers.{layer}.fc2" for layer in range(2)}


@pytest.mark.parametrize("error", [UserError, RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_of_a_merge_undoes_it(error, monkeypatch):
    model, adapter = tiny_model("llama"), LoRA(rank=2, bias="none")
    adapter.attach_to(model)
    perturb(model, adapter)
    weights, before = {name: value.clone() for name, value in model.state_dict().items()}, logits(model.eval())
    layers = list(adapter_layers(model).values())

    def fail(base):
        raise error("no memory")

    monkeypatch.setattr(layers[3], "delta", fail)
    with pytest.raises(error):
        adapter.merge(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(layer.enabled for layer in layers)
    assert torch.equal(logits(model), before)


def test_a_layer_that_does_not_say_how_its_parameters_begin_is_an_error():
    class Forgetful(ScaleLayer):
        reset_parameters = LinearAdapterLayer.reset_parameters

    class Method(Scale):
        def make_layer(self, site, module):
            return Forgetful(site, 1.0)

    with pytest.raises(TypeError, match="Forgetful has parameters: write reset_parameters"):
        Method().attach_to(tiny_model("llama"))


def test_layers_are_float32_whatever_the_base_and_the_default_are():
    model = tiny_model("llama").to(torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    try:
        adapter = Scale()
        adapter.attach_to(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in adapter.adapter_parameters(model).values()} == {torch.float32}


def test_a_method_may_hang_its_layers_itself():
    class Last(Scale):
        def inject(self, model, arch):
            site = resolve(model, arch, "mlp")[-1]
            attach(model.get_submodule(site.path), ScaleLayer(site, 2.0), self.name)
            return [site]

    model = tiny_model("llama")
    Last().attach_to(model)
    assert list(adapter_layers(model)) == ["model.layers.1.mlp.down_proj.adapters.default"]
