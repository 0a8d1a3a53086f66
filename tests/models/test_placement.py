"""Placements, names, patterns, layers and exclusions, resolved to exact modules."""

from __future__ import annotations

import pytest

from adapters_pl import UserError
from adapters_pl.models.discovery import architecture_of
from adapters_pl.models.placement import parse_layers, resolve
from tests.conftest import tiny_model

SITES = {
    "llama": {
        "attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "mlp": ["mlp.up_proj", "mlp.down_proj"],
    },
    "bloom": {"attn": ["self_attention.query_key_value"], "mlp": ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]},
    "opt": {"attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "mlp": ["fc1", "fc2"]},
    "gptj": {"attn": ["attn.q_proj", "attn.k_proj", "attn.v_proj"], "mlp": ["mlp.fc_in", "mlp.fc_out"]},
}
STACK = {"llama": "model.layers", "bloom": "transformer.h", "opt": "model.decoder.layers", "gptj": "transformer.h"}


def paths(name, **choice):
    model = tiny_model(name)
    choice = {"placement": "both", **choice}
    return [site.path for site in resolve(model, architecture_of(model), **choice)]


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("placement", ["attn", "mlp", "both"])
def test_a_placement_means_exactly_these_modules_in_every_layer(name, placement):
    roles = ["attn", "mlp"] if placement == "both" else [placement]
    leaves = [leaf for role in roles for leaf in SITES[name][role]]
    assert sorted(paths(name, placement=placement)) == sorted(
        f"{STACK[name]}.{layer}.{leaf}" for layer in (0, 1) for leaf in leaves
    )


def test_sites_know_their_layer_and_sizes():
    model = tiny_model("llama_gqa")
    sites = {site.path: site for site in resolve(model, architecture_of(model), "both")}
    value = sites["model.layers.1.self_attn.v_proj"]
    assert (value.layer, value.in_features, value.out_features) == (1, 32, 16)
    up = sites["model.layers.0.mlp.up_proj"]
    assert (up.layer, up.in_features, up.out_features) == (0, 32, 48)


def test_names_match_whole_parts_of_a_path():
    assert paths("llama", target_modules=["q_proj", "layers.1.mlp.up_proj"]) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    with pytest.raises(UserError, match="'proj' matches no linear module"):
        paths("llama", target_modules=["proj"])


def test_a_string_is_a_pattern_for_the_whole_path():
    assert paths("llama", target_modules=r".*\.1\..*(q|v)_proj") == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    with pytest.raises(UserError, match="'q_proj' matches no linear module"):
        paths("llama", target_modules="q_proj")
    with pytest.raises(UserError, match="is no regular expression"):
        paths("llama", target_modules="(")


def test_all_linear_leaves_out_the_head():
    found = paths("llama", target_modules="all-linear")
    assert len(found) == 2 * 7
    assert "lm_head" not in found


def test_layers_and_exclusions_narrow_the_choice():
    assert paths("llama", placement="attn", layers="1", exclude=["k_proj"]) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    assert paths("llama", target_modules="all-linear", layers=[0], exclude=r".*\.mlp\..*") == [
        f"model.layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "o")
    ]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"target_modules": ["q_proj", "w_proj"]}, r"'w_proj' matches no linear module of LlamaForCausalLM.*q_proj"),
        ({"exclude": ["w_proj"]}, r"exclude: 'w_proj' matches no linear module"),
        ({"placement": "attn", "exclude": r".*"}, r"Nothing to adapt in LlamaForCausalLM.*down_proj, gate_proj"),
        ({"target_modules": ["layers.0.mlp.up_proj"], "layers": "1"}, "Nothing to adapt"),
    ],
)
def test_nothing_matched_is_an_error_that_lists_the_choices(choice, message):
    with pytest.raises(UserError, match=message):
        paths("llama", **choice)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, {0, 1, 2, 3}),
        (2, {2}),
        ([0, 3], {0, 3}),
        ("1-2", {1, 2}),
        ("0,2-3", {0, 2, 3}),
        ("-1", {3}),
        ("0--2", {0, 1, 2}),
    ],
)
def test_layers_are_read(layers, expected):
    assert parse_layers(layers, 4) == expected


@pytest.mark.parametrize("layers", ["4", "2-9", "3-1", "-5", "all", "", [1, "x"]])
def test_bad_layers_are_refused(layers):
    with pytest.raises(UserError, match="layers: "):
        parse_layers(layers, 4)
