"""What every adapter method must do, on every architecture: checks of a model, its twin without, and the adapter."""

from __future__ import annotations

import copy
from tempfile import TemporaryDirectory

import pytest
import torch

from adapters_pl import IA3, ParallelAdapter, PTuning, SeriesAdapter, UserError, load_adapter, save_adapter
from adapters_pl.adapters import adapter_layers
from adapters_pl.adapters.virtual_tokens import VirtualTokenAdapter
from tests.helpers.methods import from_weight, logits, perturb, tokens, untouched


def check_method(check, method, arch):
    """Hold ``check`` against the adapter that ``method()`` makes, freshly injected into a tiny model."""
    model, adapter = copy.deepcopy(untouched(arch)), method()
    torch.manual_seed(0)
    assert adapter.attach_to(model, seed=1)
    check(model.eval(), untouched(arch), adapter)


def the_function_at_step_0(model, base, adapter):
    if isinstance(adapter, VirtualTokenAdapter):  # what stands before the text is read
        assert not torch.allclose(logits(model), logits(base), atol=1e-3)
    else:
        assert torch.equal(logits(model), logits(base))


def only_declared_parameters_change(model, base, adapter):
    declared = adapter.adapter_parameters(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    perturb(model, adapter)
    for parameter in declared.values():
        parameter.requires_grad_(True)
    model(**tokens()).logits.square().mean().backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(trainable, lr=0.1).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(declared)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(declared)


def gradients_reach_every_parameter(model, base, adapter):
    perturb(model, adapter)
    model(**tokens()).logits.square().mean().backward()
    for name, parameter in adapter.adapter_parameters(model).items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def parameters_are_float32_on_a_bfloat16_base(model, base, adapter):
    model = copy.deepcopy(base).to(torch.bfloat16)
    adapter.attach_to(model)
    assert {p.dtype for p in adapter.adapter_parameters(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


def merged_equals_unmerged_and_the_undo_is_exact(model, base, adapter):
    perturb(model, adapter)
    unmerged = logits(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if isinstance(
        adapter, SeriesAdapter | ParallelAdapter | VirtualTokenAdapter
    ):  # a non-linearity is no change of a weight
        with pytest.raises(UserError, match="cannot be merged into the base"):
            adapter.merge(model)
        assert torch.equal(logits(model), unmerged)
        return
    undo = adapter.merge(model)
    again = adapter.merge(model)
    assert any(not torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.allclose(logits(model), unmerged, atol=1e-4)
    again()
    undo()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), unmerged)
    assert not torch.allclose(unmerged, logits(base), atol=1e-3)


def disabled_is_the_base(model, base, adapter):
    perturb(model, adapter)
    with adapter.disabled(model):
        assert torch.equal(logits(model), logits(base))
    assert not torch.allclose(logits(model), logits(base), atol=1e-3)


def save_and_load_give_the_same_function(model, base, adapter):
    perturb(model, adapter)
    with TemporaryDirectory() as folder:
        save_adapter(model, adapter, folder)
        loaded = load_adapter(copy.deepcopy(base), folder)
    # An encoder runs once when it is saved, and its rounding there may be another than in a forward pass; a
    # difference of two updates is saved as the one update of twice the rank that it is.
    rounds = isinstance(adapter, PTuning) or from_weight(adapter)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5 if rounds else 0, rtol=0)


def generation_with_cache_equals_generation_without(model, base, adapter):
    perturb(model, adapter)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(**tokens(), use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(**tokens(), use_cache=False, **settings))


def a_second_attachment_changes_nothing(model, base, adapter):
    perturb(model, adapter)
    before, layers = logits(model), adapter_layers(model)
    assert not adapter.attach_to(model, seed=1)
    assert adapter_layers(model).keys() == layers.keys()
    assert torch.equal(logits(model), before)


def detaching_gives_the_base_back(model, base, adapter):
    perturb(model, adapter)
    adapter.detach_from(model)
    assert adapter_layers(model) == {}
    assert model.state_dict().keys() == base.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(logits(model), logits(base))


def initial_values_depend_on_seed_and_name_only(model, base, adapter):
    values = {name: p.clone() for name, p in adapter.adapter_parameters(model).items()}
    torch.manual_seed(99)
    same, other = copy.deepcopy(base), copy.deepcopy(base)
    adapter.attach_to(same, seed=1)
    adapter.attach_to(other, seed=2)
    assert all(torch.equal(p, values[name]) for name, p in adapter.adapter_parameters(same).items())
    drawn = any(not torch.equal(p, values[name]) for name, p in adapter.adapter_parameters(other).items())
    assert drawn != (isinstance(adapter, IA3) or from_weight(adapter))  # which draw nothing


def injecting_draws_no_random_number(model, base, adapter):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    adapter.attach_to(copy.deepcopy(base), seed=None)
    assert torch.equal(torch.rand(3), expected)


def a_deep_copy_is_independent(model, base, adapter):
    perturb(model, adapter)
    twin = copy.deepcopy(model)
    before = logits(model)
    assert torch.equal(logits(twin), before)
    with torch.no_grad():
        for parameter in adapter.adapter_parameters(twin).values():
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(twin), before, atol=1e-3)
    adapter.detach_from(twin)
    assert torch.equal(logits(model), before)


CHECKS = [
    the_function_at_step_0,
    only_declared_parameters_change,
    gradients_reach_every_parameter,
    parameters_are_float32_on_a_bfloat16_base,
    merged_equals_unmerged_and_the_undo_is_exact,
    disabled_is_the_base,
    save_and_load_give_the_same_function,
    generation_with_cache_equals_generation_without,
    a_second_attachment_changes_nothing,
    detaching_gives_the_base_back,
    initial_values_depend_on_seed_and_name_only,
    injecting_draws_no_random_number,
    a_deep_copy_is_independent,
]
