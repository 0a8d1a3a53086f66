"""Series and parallel adapters and (IA)^3: their equations, where they go, their arguments."""

from __future__ import annotations

import pytest
import torch

from adapters_pl import IA3, ParallelAdapter, SeriesAdapter, UserError
from adapters_pl.adapters import adapter_layers
from tests.conftest import tiny_model


def randomise(model):
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            for parameter in layer.parameters():
                parameter.normal_(0, 0.3)
    return model.eval()


def test_series_behind_a_sublayer():
    model = tiny_model("llama")
    down = model.model.layers[0].mlp.down_proj
    x = torch.randn(2, 5, 48)
    y = down(x)
    SeriesAdapter(8, non_linearity="relu", scaling=2.0).attach_to(model)
    layer = randomise(model).model.layers[0].mlp.down_proj.adapters["default"]
    expected = y + 2 * torch.relu(y @ layer.adapter_down.T) @ layer.adapter_up.T
    assert torch.allclose(down(x), expected, atol=1e-5)


def test_series_in_front_of_a_linear_layer():
    model = tiny_model("llama")
    up = model.model.layers[0].mlp.up_proj
    SeriesAdapter(8, family="linear").attach_to(model)
    layer = randomise(model).model.layers[0].mlp.up_proj.adapters["default"]
    x = torch.randn(2, 5, 32)
    expected = (x + torch.tanh(x @ layer.adapter_down.T) @ layer.adapter_up.T) @ up.weight.T
    assert torch.allclose(up(x), expected, atol=1e-5)


@pytest.mark.parametrize("scaling", [4.0, "learned"])
def test_parallel_beside_a_sublayer_reads_what_the_sublayer_reads(scaling):
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    x = torch.randn(2, 5, 32)
    y = mlp(x)
    ParallelAdapter(8, scaling=scaling).attach_to(model)
    layer = randomise(model).model.layers[1].mlp.down_proj.adapters["default"]
    factor = layer.adapter_scaling if scaling == "learned" else 4.0
    expected = y + factor * torch.tanh(x @ layer.adapter_down.T) @ layer.adapter_up.T
    assert torch.allclose(mlp(x), expected, atol=1e-5)


def test_parallel_works_under_activation_checkpointing():
    """Recomputing a layer in the backward pass gives the same gradients."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("llama")
        ParallelAdapter(8, placement="both").attach_to(model)
        randomise(model)
        torch.manual_seed(0)
        with torch.no_grad():
            for layer in adapter_layers(model).values():
                for parameter in layer.parameters():
                    parameter.normal_(0, 0.3)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model(torch.arange(3, 20)[None]).logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 8
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


@pytest.mark.parametrize("name", ["llama", "bloom", "opt", "gptj"])
@pytest.mark.parametrize(("placement", "count"), [("attn", 2), ("mlp", 2), ("both", 4)])
def test_a_placement_means_one_bottleneck_a_sublayer_and_layer(name, placement, count):
    for method in (SeriesAdapter, ParallelAdapter):
        model = tiny_model(name)
        adapter = method(8, placement=placement)
        adapter.attach_to(model)
        downs = [key for key in adapter.adapter_parameters(model) if key.endswith("adapter_down")]
        assert len(downs) == count
        assert adapter.describe(model).startswith(f"{method.__name__} 'default': {count} modules")


def test_layers_and_exclusions_narrow_the_sublayers():
    model = tiny_model("llama")
    adapter = SeriesAdapter(8, placement="both", layers="1", exclude=["o_proj"])
    adapter.attach_to(model)
    assert list(adapter_layers(model)) == ["model.layers.1.mlp.down_proj.adapters.default"]
    with pytest.raises(UserError, match="leave no sublayer"):
        SeriesAdapter(8, name="b", exclude=["down_proj"]).attach_to(model)


def test_a_reduction_factor_gives_the_size():
    model = tiny_model("llama")
    SeriesAdapter(reduction_factor=4).attach_to(model)
    assert {layer.adapter_down.shape for layer in adapter_layers(model).values()} == {(8, 32)}


def test_ia3_rescales_keys_values_and_what_the_down_projection_reads():
    model = tiny_model("opt")
    attention, layer = model.model.decoder.layers[0].self_attn, model.model.decoder.layers[0]
    x, wide = torch.randn(2, 5, 32), torch.randn(2, 5, 48)
    key, query, out = attention.k_proj(x), attention.q_proj(x), layer.fc2
    IA3().attach_to(model)
    randomise(model)
    assert torch.allclose(attention.k_proj(x), key * attention.k_proj.adapters["default"].ia3_l.flatten(), atol=1e-6)
    assert torch.equal(attention.q_proj(x), query)
    expected = (wide * out.adapters["default"].ia3_l) @ out.weight.T + out.bias
    assert torch.allclose(out(wide), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bottleneck": 0}, "bottleneck is 0"),
        ({"reduction_factor": 0}, "reduction_factor is 0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"non_linearity": "tahn"}, "non_linearity 'tahn': did you mean 'tanh'"),
        ({"target_modules": ["up_proj"]}, "add --adapter.family linear"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        SeriesAdapter(**arguments)
