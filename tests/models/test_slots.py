"""How layers hang on modules: found by their type, whatever the modules of a base are called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters_pl import LoRA, UserError
from adapters_pl.adapters import adapter_layers
from adapters_pl.models.slots import Place, attach, base_modules, bypassed, detach, place_of, slot_of
from tests.conftest import tiny_model


class Plus(nn.Module):
    """Adds ``before`` to what a module reads and ``after`` to what it returns."""

    def __init__(self, before=0.0, after=0.0):
        super().__init__()
        self.enabled, self.shift, self.change = True, before, after

    def enter(self, module, args, kwargs):
        return (args[0] + self.shift, *args[1:]), kwargs

    def leave(self, module, args, kwargs, output):
        return output + self.change


def test_layers_change_input_and_output_in_the_order_of_their_injection():
    module, x = nn.Linear(2, 2), torch.randn(3, 2)
    plain = nn.functional.linear
    attach(module, Plus(before=1.0), "first")
    attach(module, Plus(after=2.0), "second")
    assert torch.equal(module(x), plain(x + 1, module.weight, module.bias) + 2)
    slot_of(module)["second"].enabled = False
    assert torch.equal(module(x), plain(x + 1, module.weight, module.bias))


def test_a_name_is_taken_once():
    module = nn.Linear(2, 2)
    attach(module, Plus(), "default")
    with pytest.raises(UserError, match="Two adapters are named 'default'"):
        attach(module, Plus(), "default")


def test_the_last_layer_takes_slot_and_hooks_with_it():
    module = nn.Linear(2, 2)
    keys = module.state_dict().keys()
    for name in ("one", "two"):
        attach(module, Plus(), name)
    detach(module, "one")
    assert list(slot_of(module)) == ["two"]
    detach(module, "two")
    assert slot_of(module) is None
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert module.state_dict().keys() == keys


def test_a_module_whose_layers_are_off_is_bypassed_and_one_with_a_layer_that_works_is_not():
    off, on, bare, x = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), torch.randn(3, 2)
    for module in (off, on):
        attach(module, Plus(after=1.0), "one")
        attach(module, Plus(after=2.0), "two")
        slot_of(module)["one"].enabled = False
    slot_of(off)["two"].enabled = False
    expected = off(x), on(x)
    with bypassed([off, on, bare]):
        assert not off._forward_hooks
        assert not off._forward_pre_hooks
        assert all(map(torch.equal, (off(x), on(x)), expected))
    slot_of(off)["one"].enabled = True
    assert torch.equal(off(x), expected[0] + 1)
    detach(off, "one")
    detach(off, "two")
    assert not off._forward_hooks


class Base(nn.Module):
    """A base with a module of its own that is called as the slots are."""

    def __init__(self):
        super().__init__()
        self.adapters = nn.ModuleDict({"default": nn.Linear(2, 2)})
        self.head = nn.Linear(2, 2)


def test_a_module_of_the_base_that_is_called_as_slots_are_is_no_slot():
    base = Base()
    assert slot_of(base) is None
    with pytest.raises(UserError, match="has an attribute 'adapters' of its own: adapt modules inside it"):
        attach(base, Plus(), "default")
    attach(base.adapters["default"], Plus(), "default")
    assert [path for path, _ in base_modules(base)] == ["", "adapters", "adapters.default", "head"]
    assert isinstance(slot_of(base.adapters["default"])["default"], Plus)


def test_layers_are_found_below_a_module_that_is_called_as_slots_are():
    model = tiny_model("llama")
    model.model.layers[0].mlp.adapters = nn.ModuleDict({"default": nn.Linear(32, 32)})
    adapter = LoRA(rank=2, target_modules=["adapters.default"])
    adapter.attach_to(model)
    path = "model.layers.0.mlp.adapters.default"
    assert list(adapter_layers(model)) == [f"{path}.adapters.default"]
    assert list(adapter.sites(model)) == [path]
    assert set(adapter.adapter_parameters(model)) == {f"{path}.adapters.default.lora_{part}" for part in "AB"}


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("model.layers.0.fc1.adapters.default.lora_A", Place("model.layers.0.fc1", "default", "lora_A")),
        ("adapters.default", Place("", "default", "")),
        ("a.adapters.default.adapters.mine.norm.weight", Place("a.adapters.default", "mine", "norm.weight")),
        ("model.layers.0.fc1.weight", None),
    ],
)
def test_a_path_says_where_it_leads(path, place):
    assert place_of(path) == place
    if place:
        assert place.path == path
