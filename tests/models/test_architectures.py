"""Every row finds what it names, with the shapes its roles promise and the function that they mean."""

from __future__ import annotations

import pytest
import torch

from adapters_pl import LoRA, UserError
from adapters_pl.models.architectures import ARCHITECTURES, FusedQKV, Sublayer
from adapters_pl.models.discovery import architecture_of
from adapters_pl.models.placement import linear_sizes, resolve
from tests.conftest import TINY, tiny_model
from tests.helpers.architectures import EVERY, HIDDEN, check_function, check_shapes, gemma3, kind_of, model_of, stream

# Falcon's fused projection is divided in three ways, and grouped queries make blocks of different sizes.
FUSED = {
    "bloom": {},
    "gpt_neox": {},
    "gpt2": {},
    "phi3": {},
    "phi3, as many keys": {"num_key_value_heads": 4},
    "falcon": {},
    "falcon, every head its own": {"multi_query": False},
    "falcon, in groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
}


# ---- the rows


@pytest.mark.parametrize("name", EVERY)
def test_every_role_resolves_to_modules_of_the_right_shape(name):
    model = model_of(name)
    arch = architecture_of(model)
    assert arch is ARCHITECTURES[model.config.model_type]
    assert len(arch.decoder_layers(model)) == 2
    check_shapes(model, arch)
    if arch.fused:
        assert arch.attn.inputs == (arch.fused.module,)


@pytest.mark.parametrize("name", EVERY)
def test_every_role_does_what_it_is_called(name):
    model = model_of(name)
    check_function(model, architecture_of(model))


@pytest.mark.parametrize("name", EVERY)
def test_the_row_names_every_linear_module_of_a_layer(name):
    model = model_of(name)
    arch = architecture_of(model)
    named = {*arch.attn.inputs, arch.attn.output, *arch.mlp.inputs, arch.mlp.output, arch.mlp.gate} - {None}
    for layer in arch.decoder_layers(model):
        assert {path for path, module in layer.named_modules() if linear_sizes(module)} == named


def test_every_row_is_tested():
    assert {tiny.get("model_type", name) for name, tiny in TINY.items()} | {"gemma3"} == set(ARCHITECTURES)
    assert {name.partition(",")[0] for name in FUSED} == {name for name, arch in ARCHITECTURES.items() if arch.fused}


@pytest.mark.parametrize("name", FUSED)
def test_the_parts_of_a_fused_projection_are_what_the_model_makes_of_them(name):
    model = model_of(name, **FUSED[name])
    arch = architecture_of(model)
    module = arch.decoder_layers(model)[0].get_submodule(arch.fused.module)
    out_features = linear_sizes(module)[1]
    parts = arch.fused.parts(model.config, out_features)
    said = ["?"] * out_features
    for part, rows in parts.items():
        assert rows.dtype == torch.int64
        assert rows.tolist() == sorted(rows.tolist())
        for row in rows.tolist():
            assert said[row] == "?"
            said[row] = part
    unchanged = stream(model, arch)[1]
    assert said == [kind_of(model, arch, module, row, unchanged) for row in range(out_features)]
    assert len(parts["q"]) == HIDDEN


def test_parts_that_do_not_fit_the_heads_are_an_error():
    config = tiny_model("bloom").config
    with pytest.raises(UserError, match=r"x with 104 outputs does not fit 4 heads of 8"):
        FusedQKV("x", "per_head").parts(config, 104)
    with pytest.raises(UserError, match=r"x with 80 outputs does not fit 4 heads"):
        FusedQKV("x", "blocks").parts(config, 32 + 2 * 24)
    with pytest.raises(UserError, match=r"In x it is not known which rows are query, key and value"):
        FusedQKV("x", "unknown").parts(config, 96)


def test_a_sublayer_that_is_not_known_is_an_error_when_it_is_asked_for():
    model = tiny_model("llama")
    arch = architecture_of(model)
    partial = type(arch)(arch.layers, arch.attn, Sublayer.unknown("There is no MLP."))
    assert len(resolve(model, partial, "attn")) == 6
    assert len(resolve(model, partial, "both", target_modules=["up_proj"])) == 2
    for placement in ("mlp", "both"):
        with pytest.raises(UserError, match=r"There is no MLP\."):
            resolve(model, partial, placement)


def test_all_linear_leaves_a_vision_tower_alone():
    model = gemma3()
    adapter = LoRA(rank=2, target_modules="all-linear")
    adapter.attach_to(model)
    assert len(adapter.adapter_parameters(model)) == 2 * 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in adapter.adapter_parameters(model))


def test_a_row_that_does_not_fit_the_model_is_an_error():
    with pytest.raises(UserError, match=r"LlamaForCausalLM has no list of decoder layers at 'transformer\.h'"):
        ARCHITECTURES["bloom"].decoder_layers(tiny_model("llama"))
