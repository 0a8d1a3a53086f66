"""Every row finds what it names, with the shapes its roles promise."""

from __future__ import annotations

import pytest

from adapters_pl import UserError
from adapters_pl.architectures import ARCHITECTURES, architecture_of
from adapters_pl.placement import linear_sizes
from tests.conftest import TINY, tiny_model


@pytest.mark.parametrize("name", TINY)
def test_every_role_resolves_to_modules_of_the_right_shape(name):
    model = tiny_model(name)
    arch = architecture_of(model)
    layers = arch.decoder_layers(model)
    assert len(layers) == 2
    for layer in layers:
        for sublayer in (arch.attn, arch.mlp):
            entries = [*sublayer.inputs, *([sublayer.gate] if sublayer.gate else [])]
            assert all(linear_sizes(layer.get_submodule(entry))[0] == 32 for entry in entries)
            assert linear_sizes(layer.get_submodule(sublayer.output))[1] == 32
        assert linear_sizes(layer.get_submodule(arch.attn.output))[0] == 32
        if arch.fused:
            assert linear_sizes(layer.get_submodule(arch.fused.module)) == (32, 96)
            assert arch.attn.inputs == (arch.fused.module,)
        else:
            assert len(arch.attn.inputs) == 3


@pytest.mark.parametrize("name", TINY)
def test_the_row_names_every_linear_module_of_a_layer(name):
    model = tiny_model(name)
    arch = architecture_of(model)
    named = {*arch.attn.inputs, arch.attn.output, *arch.mlp.inputs, arch.mlp.output, arch.mlp.gate} - {None}
    for layer in arch.decoder_layers(model):
        assert {path for path, module in layer.named_modules() if linear_sizes(module)} == named


def test_every_row_is_tested():
    assert {tiny.get("model_type", name) for name, tiny in TINY.items()} == set(ARCHITECTURES)


def test_an_unknown_type_is_an_error_that_lists_the_known_ones():
    model = tiny_model("llama")
    model.config.model_type = "unheard_of"
    with pytest.raises(UserError, match=r"model type 'unheard_of' \(known: bloom, .*qwen3\)"):
        architecture_of(model)


def test_a_row_that_does_not_fit_the_model_is_an_error():
    with pytest.raises(UserError, match=r"LlamaForCausalLM has no list of decoder layers at 'transformer\.h'"):
        ARCHITECTURES["bloom"].decoder_layers(tiny_model("llama"))
