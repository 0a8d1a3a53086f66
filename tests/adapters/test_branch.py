"""Dropout by positions against dropout by masks, and a branch's products against the plain ones."""

import copy
import math

import pytest
import torch
from torch import nn

from adapters_pl import LoRA
from adapters_pl.adapters import adapter_layers, branch
from adapters_pl.adapters.branch import Dropout, draw_positions, plus_product
from tests.conftest import tiny_model

RATES = [0.05, 0.1, 0.25, 0.5]


def zeros(p, shape, seed=0):
    """Where a layer of rate ``p`` puts zeros, as numbers."""
    torch.manual_seed(seed)
    return (Dropout(p).train()(torch.ones(shape)) == 0).double()


def within(found, expected, deviation):
    """Five standard deviations: chance fails this once in two million times, and the seeds are fixed."""
    assert abs(found - expected) < 5 * deviation


@pytest.mark.parametrize("p", RATES)
def test_the_rate_of_zeros_is_p_and_the_mean_stays(p):
    count = 1_000_000
    torch.manual_seed(1)
    out = Dropout(p).train()(torch.ones(count))
    within((out == 0).double().mean().item(), p, math.sqrt(p * (1 - p) / count))
    within(out.double().mean().item(), 1, math.sqrt(p / (1 - p) / count))
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)])


@pytest.mark.parametrize("p", RATES)
def test_every_element_has_the_same_rate_and_counts_vary_as_those_of_independent_trials(p):
    drawn = torch.stack([zeros(p, (40, 5), seed).flatten() for seed in range(2000)])
    per_element = drawn.mean(dim=0)
    # The sum of squared standard scores of 200 elements: chi-square with 200 degrees of freedom.
    scores = (per_element - p) ** 2 / (p * (1 - p) / 2000)
    within(scores.sum().item(), 200, math.sqrt(400))
    counts = drawn.sum(dim=1)
    expected = 200 * p * (1 - p)
    within(counts.var().item(), expected, expected * math.sqrt(2 / 1999))
    # The first and the last element too: no gap begins or ends at an edge.
    for element in (0, -1):
        within(per_element[element].item(), p, math.sqrt(p * (1 - p) / 2000))


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("lag", [1, 2, 7, 512])
def test_positions_are_independent(p, lag):
    drawn = zeros(p, 1_000_000) - p
    product = drawn[:-lag] * drawn[lag:]
    within(product.mean().item(), 0, p * (1 - p) / math.sqrt(len(product)))


@pytest.mark.parametrize("p", RATES)
def test_layers_and_steps_are_independent(p):
    torch.manual_seed(3)
    layers = [Dropout(p).train(), Dropout(p).train()]
    draws = [(layer(torch.ones(300_000)) == 0).double() - p for _ in range(2) for layer in layers]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            within((one * other).mean().item(), 0, p * (1 - p) / math.sqrt(len(one)))


def test_gaps_are_geometric():
    torch.manual_seed(4)
    gaps = draw_positions(2_000_000, 0.1).diff() - 1
    for length in range(6):
        expected = 0.1 * 0.9**length
        within((gaps == length).double().mean().item(), expected, math.sqrt(expected / len(gaps)))


@pytest.mark.parametrize("p", [1e-6, 0.01, 0.25])
@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_positions_are_sorted_and_inside(p, count):
    for seed in range(50):
        torch.manual_seed(seed)
        positions = draw_positions(count, p)
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert all(0 <= position < count for position in positions.tolist())


def test_too_few_drawn_gaps_are_followed_by_more(monkeypatch):
    uniform = torch.rand
    rounds = []

    def small(size):
        rounds.append(size)
        return uniform(size) * 0.05

    monkeypatch.setattr(torch, "rand", small)
    positions = draw_positions(10_000, 0.01)
    assert len(rounds) > 1
    assert positions.tolist() == sorted(set(positions.tolist()))
    assert positions[-1] > 9_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.transpose(0, 1)], ids=["contiguous", "transposed"])
def test_the_derivative_is_the_mask(dtype, make):
    torch.manual_seed(5)
    x = torch.randn(30, 40, dtype=dtype, requires_grad=True)
    before = x.detach().clone()
    out = Dropout(0.25).train()(make(x))
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    factor = torch.where(out == 0, 0.0, 1 / 0.75)  # float32: the product is rounded once
    assert torch.equal(out, (make(x.detach()) * factor).to(dtype))
    assert torch.equal(make(x.grad), (weight * factor).to(dtype))
    assert torch.equal(x.detach(), before)
    assert out.dtype is dtype


def test_it_has_second_derivatives():
    torch.manual_seed(6)
    x = torch.randn(20, 30, dtype=torch.float64, requires_grad=True)

    def fixed(given):
        torch.manual_seed(6)
        return Dropout(0.2).train()(given) ** 2

    assert torch.autograd.gradcheck(fixed, x)
    assert torch.autograd.gradgradcheck(fixed, x)


def test_the_seed_decides_and_evaluation_is_the_identity():
    assert torch.equal(zeros(0.1, (50, 60), 1), zeros(0.1, (50, 60), 1))
    assert not torch.equal(zeros(0.1, (50, 60), 1), zeros(0.1, (50, 60), 2))
    x = torch.randn(5, 6)
    assert Dropout(0.1).eval()(x) is x


def test_recomputed_activations_drop_the_same_elements():
    layer = Dropout(0.2).train()
    x = torch.ones(64, 64, requires_grad=True)
    torch.manual_seed(7)
    seen = []

    def body(given):
        out = layer(given)
        seen.append(out.detach() == 0)
        return out.sin()

    torch.utils.checkpoint.checkpoint(body, x, use_reentrant=False).sum().backward()
    assert torch.equal(*seen)
    assert torch.equal(x.grad == 0, seen[0])


def test_a_high_rate_is_drawn_as_torch_draws_it():
    x = torch.randn(100, 100)
    for p in (0.5, 0.9):
        torch.manual_seed(8)
        ours = Dropout(p).train()(x)
        torch.manual_seed(8)
        assert torch.equal(ours, nn.Dropout(p).train()(x))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.transpose(0, 1)], ids=["contiguous", "transposed"])
def test_a_product_is_that_of_what_is_left(p, dtype, make):
    results = []
    for fused in (True, False):
        torch.manual_seed(9)
        x = torch.randn(3, 5, 40, dtype=dtype, requires_grad=True)
        weight = torch.randn(7, 40, dtype=dtype, requires_grad=True)
        slope = torch.randn_like(make(x)[..., :7])
        layer = Dropout(p).train()
        out = layer.product(make(x), weight) if fused else nn.functional.linear(layer(make(x)), weight)
        (out * slope).sum().backward()
        results.append((out.detach(), x.grad, weight.grad))
        assert out.dtype is dtype
    # In bfloat16 sums of some dozens of products are rounded at other places.
    tolerance = {"rtol": 4e-2, "atol": 1e-1} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, **tolerance)
    assert (results[0][1] == 0).any() == (p > 0), "the derivative of what is dropped is zero"


def test_a_second_derivative_of_a_product_is_refused_and_not_wrong():
    x = torch.randn(4, 40, requires_grad=True)
    out = Dropout(0.1).train().product(x, torch.randn(7, 40))
    (slope,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_product_does_not_depend_on_autocast():
    x, weight = torch.randn(4, 40), torch.randn(7, 40)
    found = []
    for enabled in (False, True):
        torch.manual_seed(10)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(Dropout(0.1).train().product(x, weight))
    assert torch.equal(*found)


def test_a_sum_with_a_product_keeps_the_dtype_under_autocast():
    y, hidden, weight = torch.randn(2, 3, 8), torch.randn(2, 3, 4), torch.randn(8, 4)
    torch.testing.assert_close(plus_product(y, hidden, weight, 0.5), y + 0.5 * hidden @ weight.T)
    with torch.autocast("cpu", torch.bfloat16):
        assert plus_product(y, hidden, weight).dtype is torch.float32


# ---- branches that read the same tensor


def adapted(adapter):
    """A tiny model with trained values in ``adapter``, in training mode."""
    model = tiny_model("llama").train()
    adapter.attach_to(model)
    torch.manual_seed(11)
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            layer.lora_B.normal_()
    return model


def loss_and_gradients(model, seed=12):
    torch.manual_seed(seed)
    ids = torch.arange(2, 34).reshape(2, 16)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), **gradients}


def test_query_key_and_value_draw_once_and_so_do_gate_and_up(monkeypatch):
    drawn = []
    draw = branch.draw_positions
    monkeypatch.setattr(branch, "draw_positions", lambda count, p: drawn.append(count) or draw(count, p))
    model = adapted(LoRA(rank=4, dropout=0.1, target_modules="all-linear"))
    loss_and_gradients(model)
    # The input of attention, its output, the input of the MLP, its output: in each layer.
    assert len(drawn) == 4 * model.config.num_hidden_layers


@pytest.mark.parametrize("init", ["kaiming", "pissa"])
def test_layers_that_share_their_input_compute_what_each_computes_alone(init):
    model = adapted(LoRA(rank=4, dropout=0.0, init=init, rank_pattern={"k_proj": 2})).double()
    shared = loss_and_gradients(model)
    for layer in adapter_layers(model).values():
        layer.beside, layer.input = (layer,), branch.SharedInput()
    alone = loss_and_gradients(model)
    assert shared.keys() == alone.keys()
    for name, value in shared.items():
        torch.testing.assert_close(value, alone[name])


def test_a_layer_that_is_switched_off_changes_nothing_for_the_others_and_nothing_waits_for_it():
    model = adapted(LoRA(rank=4, dropout=0.0, placement="attn"))
    layers = adapter_layers(model)
    for path, layer in layers.items():
        layer.enabled = "k_proj" not in path
    without = loss_and_gradients(model)
    assert not any("k_proj" in name for name in without)
    assert not any(layer.input._waiting for layer in layers.values())
    with torch.no_grad():
        for path, layer in layers.items():
            layer.enabled = True
            if "k_proj" in path:
                layer.lora_B.zero_()
    torch.testing.assert_close(loss_and_gradients(model)["loss"], without["loss"])


def test_a_branch_that_reads_another_tensor_has_a_product_of_its_own():
    shared, one, other = branch.SharedInput(), torch.randn(3), torch.randn(3)
    computed = []

    def product(x, number):
        return shared.product(x, number, lambda: computed.append(number) or [x + 0, x + 1])

    assert torch.equal(product(one, 0), one)
    assert torch.equal(product(other, 1), other + 1), "what waits for it belongs to another tensor"
    assert torch.equal(product(other, 0), other)
    assert torch.equal(product(other, 0), other), "the same tensor again, in another forward pass"
    assert computed == [0, 1, 0]


def test_recomputed_layers_share_their_input_too():
    model = adapted(LoRA(rank=4, dropout=0.1))
    plain = loss_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = loss_and_gradients(model)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value)
    assert not torch.equal(loss_and_gradients(model, seed=13)["loss"], plain["loss"])


def test_a_copy_of_a_model_shares_within_itself():
    model = adapted(LoRA(rank=4, dropout=0.0))
    expected = loss_and_gradients(model)
    copied = copy.deepcopy(model)
    for layer in adapter_layers(copied).values():
        assert layer in layer.beside
        assert all(other in set(copied.modules()) for other in layer.beside)
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            layer.lora_A.zero_()
    torch.testing.assert_close(loss_and_gradients(copied)["loss"], expected["loss"])
