"""A model without a row is read from its structure, and what cannot be read is an error that says what to pass."""

from __future__ import annotations

import logging
from unittest.mock import patch

import pytest
import torch

from adapters_pl import IA3, LoRA, ParallelAdapter, SeriesAdapter, UserError
from adapters_pl.models import discovery
from adapters_pl.models.architectures import ARCHITECTURES
from adapters_pl.models.discovery import architecture_of, discover
from tests.conftest import TINY, tiny_model
from tests.helpers.architectures import EVERY, check_function, check_shapes, model_of

GATED = {"intermediate_size": 48, "num_key_value_heads": 2}
#: Types of transformers' own that have no row, each unlike the others in something.
UNLISTED = {
    "apertus": GATED,  # no gate
    "biogpt": {"intermediate_size": 48},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 512, "n_inner": 48},
    "cohere": GATED,
    "ernie4_5": {**GATED, "head_dim": 16},
    "exaone4": {**GATED, "layer_types": ["full_attention"] * 2},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 48},
    "granite": GATED,
    "helium": {**GATED, "head_dim": 8},
    "lfm2": {**GATED, "layer_types": ["full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "ministral3": {**GATED, "head_dim": 8},
    "modernbert-decoder": {"intermediate_size": 48, "cls_token_id": 3, "sep_token_id": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 512},
    "nanochat": GATED,  # no gate
    "olmo": GATED,
    "olmo2": GATED,
    "persimmon": {"intermediate_size": 48},
    "seed_oss": {**GATED, "head_dim": 16},
    "smollm3": GATED,
    "stablelm": GATED,
    "starcoder2": GATED,
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, **GATED}
HYBRID = {
    "layer_types": ["full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    **GATED,
}


def unlisted(name, settings=None, **changes):
    with patch.dict(TINY, {name: settings or UNLISTED[name]}):
        return tiny_model(name, **changes)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_discovered_of_a_known_type_is_its_row(name):
    model = model_of(name)
    found, row = discover(model), ARCHITECTURES[model.config.model_type]
    assert (found.layers, found.attn, found.mlp) == (row.layers, row.attn, row.mlp)
    assert (found.fused and found.fused.module) == (row.fused and row.fused.module)


@pytest.mark.parametrize("name", UNLISTED)
def test_a_type_without_a_row_resolves_to_modules_of_the_right_shape_and_function(name):
    model = unlisted(name)
    assert model.config.model_type not in ARCHITECTURES
    arch = architecture_of(model)
    assert len(arch.decoder_layers(model)) == 2
    check_shapes(model, arch)
    check_function(model, arch)


@pytest.mark.parametrize("name", UNLISTED)
@pytest.mark.parametrize(
    "make",
    [
        lambda: LoRA(rank=4),
        lambda: IA3(),
        lambda: SeriesAdapter(8, placement="both"),
        lambda: SeriesAdapter(8, placement="both", family="linear"),
        lambda: ParallelAdapter(8, placement="both"),
    ],
    ids=["lora", "ia3", "series", "series-linear", "parallel"],
)
def test_adapters_attach_to_a_type_without_a_row_and_change_what_it_computes(name, make):
    model, adapter = unlisted(name), make()
    ids = torch.tensor([[5, 17, 201, 33, 90, 121]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapter.attach_to(model, seed=1)
        assert torch.equal(model(input_ids=ids).logits, before)
        generator = torch.Generator().manual_seed(3)
        for parameter in adapter.adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-3)


def test_it_is_the_same_with_adapters_inside_and_on_the_meta_device():
    model = unlisted("olmo2")
    found = discover(model)
    LoRA(rank=2, name="expert", placement="both").attach_to(model)
    SeriesAdapter(4, name="other").attach_to(model)
    assert discover(model) == found
    with torch.device("meta"):
        assert discover(type(model)(model.config)) == found


def test_sizes_that_are_all_the_same_are_told_apart_by_order():
    model = unlisted("olmo2", intermediate_size=32)
    assert discover(model).mlp == ARCHITECTURES["llama"].mlp
    assert discover(unlisted("starcoder2", intermediate_size=32)).mlp.output == "mlp.c_proj"


def linears(**sizes):
    return torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in sizes.items()})


def test_an_embedding_narrower_than_the_stream_is_no_hindrance():
    model = tiny_model("opt", word_embed_proj_dim=16)
    assert model.get_input_embeddings().embedding_dim == 16
    assert (discover(model).attn, discover(model).mlp) == (ARCHITECTURES["opt"].attn, ARCHITECTURES["opt"].mlp)


def test_what_is_called_an_mlp_comes_before_other_ways_to_and_from_the_stream():
    model = unlisted("olmo2")
    for layer in model.model.layers:
        layer.per_layer_gate, layer.per_layer_projection = torch.nn.Linear(32, 8), torch.nn.Linear(8, 32)
    assert discover(model).mlp == ARCHITECTURES["llama"].mlp


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ({}, {}, "nothing leads back to the hidden size"),
        ({"c_fc": (32, 48), "c_proj": (48, 32)}, {"fc1": (32, 48), "fc2": (48, 32)}, "the layers are not alike"),
        ({"c_fc": (32, 48), "c_proj": (48, 32)}, {}, "1 of 2 layers have none"),
        (
            {"w_0": (32, 48), "w_1": (32, 48), "w_out": (48, 32)},
            {"w_0": (32, 48), "w_1": (32, 48), "w_out": (48, 32)},
            "it is unclear which of mlp.w_0, mlp.w_1 is the gate",
        ),
    ],
)
def test_what_is_not_clear_is_not_guessed(first, second, problem):
    model = unlisted("olmo2")
    for layer, sizes in zip(model.model.layers, (first, second), strict=True):
        layer.mlp = linears(**sizes)
    found = discover(model)
    assert f"The MLP of Olmo2ForCausalLM was not found: {problem}. Name the modules" in found.mlp.problem
    assert not found.attn.problem


def test_what_was_found_is_said_once(caplog):
    discovery._announced.clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            architecture_of(unlisted("olmo2"))
        architecture_of(tiny_model("llama"))
    lines = [record.getMessage() for record in caplog.records if "No row" in record.getMessage()]
    assert lines == [
        "No row for model type 'olmo2'; found in model.layers: attention self_attn.q_proj, self_attn.k_proj, "
        "self_attn.v_proj -> self_attn.o_proj; MLP mlp.up_proj -> mlp.down_proj, gate mlp.gate_proj"
    ]


def test_a_mixture_of_experts_is_adapted_in_its_attention():
    model = unlisted("mixtral", EXPERTS)
    for adapter in (LoRA(), LoRA(placement="mlp"), SeriesAdapter(8), ParallelAdapter(8)):
        with pytest.raises(
            UserError,
            match=r"MLP of MixtralForCausalLM was not found: it is a mixture of experts.*--adapter\.target_modules "
            r"\(.*self_attn\.q_proj.*\) or adapt the other sublayer with --adapter\.placement attn",
        ):
            adapter.attach_to(model)
    adapter = LoRA(rank=4, placement="attn")
    adapter.attach_to(model)
    assert len(adapter.adapter_parameters(model)) == 2 * 2 * 3
    assert IA3(placement="attn", name="scales").attach_to(model)


def test_experts_beside_a_shared_one_are_not_mistaken_for_an_mlp():
    settings = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 48, **GATED}
    assert "mixture of experts" in discover(unlisted("qwen2_moe", settings)).mlp.problem


def test_of_two_attentions_the_one_to_the_own_sequence_is_found():
    settings = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    found = discover(unlisted("bart", settings))
    assert found.attn.inputs == ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    assert (found.attn.output, found.mlp.inputs, found.mlp.output) == ("self_attn.out_proj", ("fc1",), "fc2")


def test_a_gate_inside_the_attention_is_not_its_output():
    settings = {"layer_types": ["full_attention"] * 2, "num_experts": 4, "moe_intermediate_size": 16, **GATED}
    model = unlisted("afmoe", {**settings, "head_dim": 8, "num_key_value_heads": 4})
    assert "self_attn.gate_proj" in dict(model.model.layers[0].named_modules())
    assert discover(model).attn.output == "self_attn.o_proj"


def test_a_hybrid_is_adapted_in_what_all_layers_have():
    model = unlisted("qwen3_next", {**HYBRID, "num_experts": 0})
    with pytest.raises(
        UserError, match=r"attention of .* was not found: 1 of 2 layers have none.*--adapter\.placement mlp"
    ):
        LoRA(placement="attn").attach_to(model)
    adapter = LoRA(rank=4, placement="mlp")
    adapter.attach_to(model)
    assert len(adapter.adapter_parameters(model)) == 2 * 2 * 2


def test_named_modules_need_no_sublayer():
    model = unlisted("mamba", {"state_size": 8})
    arch = architecture_of(model)
    assert arch.attn.problem
    assert arch.mlp.problem
    adapter = LoRA(rank=4, target_modules=["in_proj", "out_proj"], layers="0")
    adapter.attach_to(model)
    assert len(adapter.adapter_parameters(model)) == 2 * 2
    assert SeriesAdapter(4, family="linear", target_modules=["in_proj"], name="before").attach_to(model)


def test_two_stacks_of_layers_are_not_guessed_between():
    model = unlisted("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 320})
    with pytest.raises(UserError, match=r"several lists of layers \(transformer\.attentions, transformer\.ffns\)"):
        LoRA(placement="attn").attach_to(model)


def test_a_model_without_layers_is_an_error():
    model = unlisted("olmo2")
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(UserError, match=r"Olmo2ForCausalLM \(model type 'olmo2'\) has no row in .* and no list"):
        architecture_of(model)
