"""Folded into the base an adapter answers the same, and what leaves the context is the base to the bit."""

from __future__ import annotations

import pytest
import torch

from adapters_pl import CausalLMModule, LoRA
from adapters_pl.adapters.folded import folded
from adapters_pl.adapters.layers import adapter_layers
from tests.conftest import tiny_model
from tests.helpers.methods import METHODS, logits, perturb

FOLDS = ["lora", "lora-dora", "lora-pissa", "lora-patterns", "lora-olora-bias", "lora-bias-all-dora", "ia3"]


def adapted(method, name="llama", **changes):
    model, adapter = tiny_model(name, **changes), METHODS[method]()
    adapter.attach_to(model)
    perturb(model, adapter)
    return model.eval(), adapter


def enabled(model):
    return {layer.enabled for layer in adapter_layers(model).values()}


def state(model):
    """Every value, and where it lies."""
    return {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}


def check_restored(model, before):
    after = model.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    for name, (place, value) in before.items():
        assert after[name].data_ptr() == place, name
        assert torch.equal(after[name], value), name
    assert enabled(model) == {True}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("method", FOLDS)
def test_within_it_the_base_answers_as_the_adapted_model(method, name):
    model, adapter = adapted(method, name)
    before, expected = state(model), logits(model)
    with adapter.disabled(model):
        base = logits(model)
    assert (expected - base).abs().max() > 1e-3
    context = folded(model, adapter)
    check_restored(model, before)  # it is made without a trace
    for _ in range(2):
        with context():
            assert enabled(model) == {False}
            torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
        check_restored(model, before)
        assert torch.equal(logits(model), expected)
    with adapter.disabled(model):
        assert torch.equal(logits(model), base)


def test_an_error_within_it_leaves_the_base_to_the_bit():
    model, adapter = adapted("lora")
    before = state(model)
    context = folded(model, adapter)
    with pytest.raises(RuntimeError, match="the power went"), context():
        raise RuntimeError("the power went")
    check_restored(model, before)


def test_it_is_entered_without_computing_anything():
    """The weights are there; another set of them would cost what folding costs for every batch."""
    model, adapter = adapted("lora")
    context = folded(model, adapter)
    places = []
    for _ in range(2):
        with context():
            places.append([parameter.data_ptr() for parameter in model.parameters()])
    assert places[0] == places[1]


def test_weights_below_float32_are_not_folded():
    model, adapter = adapted("lora")
    assert folded(model.bfloat16(), adapter) is None


@pytest.mark.parametrize("method", ["series", "parallel", "prefix", "prompt"])
def test_a_method_that_is_no_change_of_the_weights_is_not_folded(method):
    model, adapter = adapted(method, "llama")
    before = state(model)
    assert folded(model, adapter) is None
    check_restored(model, before)


def test_a_copy_of_a_whole_module_is_folded_where_its_weight_is_its_own():
    for tied in (False, True):
        model = tiny_model("llama", tie_word_embeddings=tied)
        adapter = LoRA(4, placement="attn", modules_to_save=["lm_head"])
        adapter.attach_to(model)
        perturb(model, adapter)
        before, expected, context = state(model), logits(model), folded(model, adapter)
        assert (context is None) == tied
        if context:
            with context():
                torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
        check_restored(model, before)


def test_it_takes_no_more_room_than_there_is():
    model, adapter = adapted("lora")
    needed = sum(model.get_submodule(path).weight.nbytes for path in adapter.sites(model))
    assert folded(model, adapter, needed - 1) is None
    assert folded(model, adapter, needed) is not None
    assert folded(model, adapter, 0) is None


def test_weights_that_would_not_be_finite_are_not_folded():
    model, adapter = adapted("lora")
    next(iter(adapter.adapter_parameters(model).values())).data.fill_(float("inf"))
    before = state(model)
    assert folded(model, adapter) is None
    check_restored(model, before)


def test_a_layer_that_is_switched_off_stays_off():
    model, adapter = adapted("lora")
    with adapter.disabled(model):
        base = logits(model)
        assert folded(model, adapter) is None
    assert (logits(model) - base).abs().max() > 1e-3


def test_an_adapter_beside_it_goes_on():
    model, first = adapted("lora")
    second = METHODS["series"](name="second")
    second.attach_to(model)
    perturb(model, second)
    model.eval()
    expected = logits(model)
    with folded(model, first)():
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
        assert {layer.enabled for layer in adapter_layers(model, "second").values()} == {True}


def test_the_base_alone_is_the_base_before_and_after_it(make_base, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    module = CausalLMModule(str(make_base()), dtype="float32")
    module.add_adapter(LoRA(rank=4))
    module.setup("test")
    module.eval()
    (adapter,) = module.adapters.values()
    with module.base_alone():
        base = logits(module.model)
    perturb(module.model, adapter)
    expected = logits(module.model)
    assert (expected - base).abs().max() > 1e-3
    context = module.folded()
    for _ in range(2):
        with context():
            assert enabled(module.model) == {False}
            torch.testing.assert_close(logits(module.model), expected, atol=1e-5, rtol=0)
        with module.base_alone():
            assert torch.equal(logits(module.model), base)
    assert torch.equal(logits(module.model), expected)
