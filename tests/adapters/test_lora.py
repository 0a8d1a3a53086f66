"""LoRA: its equation, its initial values, its arguments."""

from __future__ import annotations

import pytest
import torch

from adapters_pl import LoRA, UserError
from adapters_pl.adapters import adapter_layers
from tests.conftest import tiny_model


def test_the_equation():
    model = tiny_model("llama")
    linear = model.model.layers[0].self_attn.q_proj
    weight = linear.weight.detach().clone()
    LoRA(rank=4, alpha=12, dropout=0.5, target_modules=["layers.0.self_attn.q_proj"]).attach_to(model)
    layer = model.eval().model.layers[0].self_attn.q_proj.adapters["default"]
    with torch.no_grad():
        layer.lora_B.normal_()
    x = torch.randn(2, 5, 32)
    expected = x @ weight.T + 3.0 * (x @ layer.lora_A.T @ layer.lora_B.T)
    assert torch.allclose(linear(x), expected, atol=1e-5)


def test_the_first_matrix_is_uniform_and_the_second_zero():
    model = tiny_model("llama")
    LoRA(rank=16).attach_to(model, seed=0)
    for layer in adapter_layers(model).values():
        bound = layer.lora_A.shape[1] ** -0.5
        assert layer.lora_A.abs().max() <= bound
        assert layer.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not layer.lora_B.any()


def test_gaussian_initial_values_have_the_standard_deviation_one_over_rank():
    model = tiny_model("llama")
    LoRA(rank=16, init="gaussian").attach_to(model, seed=0)
    drawn = torch.cat([layer.lora_A.flatten() for layer in adapter_layers(model).values()])
    assert drawn.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert drawn.mean().item() == pytest.approx(0, abs=0.003)


def test_patterns_choose_rank_and_alpha_by_the_end_of_a_path():
    model = tiny_model("llama")
    LoRA(rank=8, alpha=16, rank_pattern={"q_proj": 2, r"layers\.1\..*": 4}, alpha_pattern={"mlp.up_proj": 3}).attach_to(
        model
    )
    layer = model.model.layers[0].self_attn.q_proj.adapters["default"]
    assert (layer.lora_A.shape[0], layer.scaling) == (2, 8.0)
    layer = model.model.layers[1].self_attn.k_proj.adapters["default"]
    assert (layer.lora_A.shape[0], layer.scaling) == (4, 4.0)
    layer = model.model.layers[0].mlp.up_proj.adapters["default"]
    assert (layer.lora_A.shape[0], layer.scaling) == (8, 3 / 8)


def test_rank_stabilised_scaling():
    model = tiny_model("llama")
    LoRA(rank=16, alpha=8, rslora=True).attach_to(model)
    assert {layer.scaling for layer in adapter_layers(model).values()} == {2.0}


def test_lora_plus_gives_the_b_matrices_a_group_of_their_own():
    model = tiny_model("llama")
    adapter = LoRA(rank=4, lr_ratio=16)
    adapter.attach_to(model)
    rest, fast = adapter.parameter_groups(model)
    layers = list(adapter_layers(model).values())
    assert {id(p) for p in fast["params"]} == {id(layer.lora_B) for layer in layers}
    assert {id(p) for p in rest["params"]} == {id(layer.lora_A) for layer in layers}
    assert (fast["lr_ratio"], rest.get("lr_ratio", 1)) == (16, 1)


def test_dropout_acts_in_training_and_not_in_evaluation():
    model = tiny_model("llama")
    LoRA(rank=4, dropout=0.5).attach_to(model)
    layer = next(iter(adapter_layers(model).values()))
    with torch.no_grad():
        layer.lora_B.fill_(1.0)
    x, y = torch.ones(64, 32), torch.zeros(64, 32)
    layer.train()
    assert len(layer.after(x, y, torch.nn.Identity()).unique(dim=0)) > 1
    layer.eval()
    assert len(layer.after(x, y, torch.nn.Identity()).unique(dim=0)) == 1


def test_a_modules_first_values_are_its_own_whatever_else_is_adapted():
    few, many = tiny_model("llama"), tiny_model("llama")
    LoRA(rank=4, placement="mlp", layers="1").attach_to(few)
    LoRA(rank=4).attach_to(many)
    of_few, of_many = ({path: layer.lora_A for path, layer in adapter_layers(m).items()} for m in (few, many))
    assert len(of_few) == 2
    assert all(torch.equal(matrix, of_many[path]) for path, matrix in of_few.items())
    assert len({tuple(matrix.flatten().tolist()) for matrix in of_many.values()}) == 10


def test_defaults_are_the_papers():
    assert LoRA().init_args() == {
        "rank": 32,
        "alpha": 64,
        "dropout": 0.05,
        "placement": "both",
        "target_modules": None,
        "rslora": False,
        "dora": False,
        "init": "kaiming",
        "rank_pattern": None,
        "alpha_pattern": None,
        "lr_ratio": 1.0,
        "name": "default",
        "layers": None,
        "exclude": None,
    }


def test_the_default_in_llama_7b_has_the_papers_number_of_parameters():
    """Planned on the meta device: q, k, v (4096 x 4096), up and down (4096 x 11008), rank 32, 32 layers."""
    from transformers import LlamaConfig

    from adapters_pl.base_model import meta_model

    model, adapter = meta_model(LlamaConfig()), LoRA()
    adapter.attach_to(model, seed=None)
    by_hand = 32 * 32 * (3 * (4096 + 4096) + 2 * (4096 + 11008))
    assert sum(p.numel() for p in adapter.adapter_parameters(model).values()) == by_hand == 56_098_816


def test_two_adapters_add_up():
    model = tiny_model("llama")
    one, two = LoRA(rank=2, name="one"), LoRA(rank=3, name="two", placement="attn")
    one.attach_to(model)
    two.attach_to(model)
    x = torch.randn(4, 32)
    linear = model.model.layers[1].self_attn.v_proj
    with torch.no_grad():
        plain = linear(x)
        for layer in adapter_layers(model).values():
            layer.lora_B.normal_()
        model.eval()
        both = linear(x)
        with one.disabled(model):
            only_two = linear(x)
        with two.disabled(model):
            only_one = linear(x)
    assert torch.allclose(both - plain, (only_one - plain) + (only_two - plain), atol=1e-5)
    assert not set(one.adapter_parameters(model)) & set(two.adapter_parameters(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"rank_pattern": {"q_proj": 0}}, "rank is 0"),
        ({"lr_ratio": 0}, "lr_ratio is 0"),
        ({"placement": "mpl"}, "placement 'mpl'"),
        ({"name": "a.b"}, "adapter name 'a.b'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        LoRA(**arguments)


def test_a_rank_beyond_the_layer_is_refused_and_nothing_is_injected():
    model = tiny_model("llama")
    with pytest.raises(UserError, match=r"rank 33 is larger than model\.layers\.0\.self_attn\.q_proj \(32 x 32\)"):
        LoRA(rank=33).attach_to(model)
    assert adapter_layers(model) == {}


def test_a_rank_between_the_two_sides_of_a_layer_is_allowed():
    """Key and value are narrow under grouped queries; a recipe's rank need not fit them."""
    model = tiny_model("llama_gqa")
    LoRA(rank=24, placement="attn").attach_to(model)
    assert model.model.layers[0].self_attn.k_proj.adapters["default"].lora_B.shape == (16, 24)


def test_a_taken_name_is_refused():
    model = tiny_model("llama")
    LoRA(rank=2).attach_to(model)
    linear = model.model.layers[0].self_attn.q_proj
    from adapters_pl.adapters.base import attach
    from adapters_pl.adapters.lora import LoRALayer
    from adapters_pl.placement import Site

    layer = LoRALayer(Site("x", 0, 32, 32), 2, 2.0, 0.0, "kaiming", torch.device("cpu"))
    with pytest.raises(UserError, match="Two adapters are named 'default'"):
        attach(linear, layer, "default")


def test_the_description_counts_parameters_and_share():
    model = tiny_model("llama")
    adapter = LoRA(rank=2, placement="attn")
    adapter.attach_to(model)
    # three projections of 32 x 32 in each of two layers, with two matrices of rank 2
    own = 2 * 3 * 2 * (32 + 32)
    total = sum(p.numel() for p in model.parameters())
    assert adapter.describe(model) == (
        f"LoRA 'default': 6 modules (k_proj, q_proj, v_proj), {own} trainable parameters, "
        f"{100 * own / total:.3g}% of {total:,}"
    )


def test_a_merge_that_is_not_finite_is_refused_and_undone():
    model = tiny_model("llama")
    adapter = LoRA(rank=2)
    adapter.attach_to(model)
    weights = {name: value.clone() for name, value in model.state_dict().items() if "adapters" not in name}
    layers = list(adapter_layers(model).values())
    with torch.no_grad():
        layers[-1].lora_B.fill_(float("inf"))
    with pytest.raises(UserError, match="not finite"):
        adapter.merge(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert all(layer.enabled for layer in layers)
