"""What every adapter method must do, on every architecture."""

from __future__ import annotations

import copy

import pytest
import torch

from adapters_pl import (
    IA3,
    LoRA,
    ParallelAdapter,
    PrefixTuning,
    PromptTuning,
    PTuning,
    SeriesAdapter,
    UserError,
    load_adapter,
    save_adapter,
)
from adapters_pl.adapters import adapter_layers
from adapters_pl.adapters.virtual_tokens import VirtualTokenAdapter
from tests.conftest import tiny_model

METHODS = {
    "lora": lambda **kw: LoRA(rank=4, alpha=8, dropout=0.3, **kw),
    "lora-attn": lambda **kw: LoRA(rank=4, alpha=16, placement="attn", **kw),
    "lora-mlp": lambda **kw: LoRA(rank=4, alpha=16, placement="mlp", **kw),
    "lora-rslora": lambda **kw: LoRA(rank=4, alpha=4, rslora=True, **kw),
    "lora-dora": lambda **kw: LoRA(rank=4, alpha=8, dora=True, **kw),
    "lora-patterns": lambda **kw: LoRA(rank=4, rank_pattern={".*v.*": 2}, alpha_pattern={".*o.*": 3}, **kw),
    "lora-pissa": lambda **kw: LoRA(rank=4, alpha=8, dropout=0.3, init="pissa", **kw),
    "lora-olora-bias": lambda **kw: LoRA(rank=4, alpha=8, init="olora", bias="lora_only", **kw),
    "lora-bias-all-dora": lambda **kw: LoRA(rank=4, alpha=8, bias="all", dora=True, **kw),
    "lora-parts": lambda **kw: LoRA(rank=4, alpha=8, parts=["q", "v"], **kw),
    "lora-parts-all": lambda **kw: LoRA(
        rank=4, parts=["v"], dora=True, init="pissa", bias="all", placement="attn", **kw
    ),
    "series": lambda **kw: SeriesAdapter(8, **kw),
    "series-houlsby": lambda **kw: SeriesAdapter(reduction_factor=4, placement="both", non_linearity="relu", **kw),
    "series-linear": lambda **kw: SeriesAdapter(8, family="linear", placement="both", **kw),
    "parallel": lambda **kw: ParallelAdapter(8, scaling=4.0, **kw),
    "parallel-both": lambda **kw: ParallelAdapter(8, placement="both", scaling="learned", layer_norm=True, **kw),
    "parallel-linear": lambda **kw: ParallelAdapter(8, family="linear", placement="attn", **kw),
    "ia3": lambda **kw: IA3(**kw),
    "lora-all-linear": lambda **kw: LoRA(rank=4, alpha=8, target_modules="all-linear", **kw),
    "prefix": lambda **kw: PrefixTuning(5, **kw),
    "prefix-projection": lambda **kw: PrefixTuning(5, projection=12, **kw),
    "prompt": lambda **kw: PromptTuning(5, **kw),
    "prompt-random": lambda **kw: PromptTuning(5, init="random", **kw),
    "ptuning": lambda **kw: PTuning(5, encoder_hidden=12, **kw),
    "ptuning-lstm": lambda **kw: PTuning(5, encoder="lstm", encoder_hidden=12, **kw),
}
#: One of each structure: the rest of the rows are variants of these, and test_architectures has them all.
ARCHITECTURES = [
    "llama",
    "llama_gqa",
    "bloom",
    "opt",
    "gptj",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gemma2",
    "phi3",
    "falcon",
]
CELLS = [pytest.param((method, arch), id=f"{method}-{arch}") for method in METHODS for arch in ARCHITECTURES]


@pytest.fixture(params=CELLS)
def cell(request):
    """A model with an injected adapter, its twin without, and the adapter."""
    method, arch = request.param
    base = tiny_model(arch)
    model = copy.deepcopy(base)
    adapter = METHODS[method]()
    assert adapter.attach_to(model, seed=1)
    return model.eval(), base, adapter


def perturb(model, adapter):
    """Give every parameter of the adapter a value, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def from_weight(adapter):
    """Whether the adapter begins as a part of the base's weights."""
    return isinstance(adapter, LoRA) and adapter.init in ("pissa", "olora")


def tokens(rows=3, length=9):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 300, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        ids[row, : 2 * row] = 0
        mask[row, : 2 * row] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model, batch=None):
    batch = batch or tokens()
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]


def test_the_function_at_step_0(cell):
    model, base, adapter = cell
    if isinstance(adapter, VirtualTokenAdapter):  # what stands before the text is read
        assert not torch.allclose(logits(model), logits(base), atol=1e-3)
    else:
        assert torch.equal(logits(model), logits(base))


@pytest.mark.parametrize("method", [SeriesAdapter, ParallelAdapter])
@pytest.mark.parametrize("family", ["block", "linear"])
def test_not_the_identity_at_step_0_under_berts_initial_values(method, family):
    model = tiny_model("llama")
    method(16, init="bert", family=family).attach_to(model)
    difference = (logits(model) - logits(tiny_model("llama"))).abs().max()
    assert 1e-5 < difference < 0.5


def test_only_declared_parameters_change(cell):
    model, _base, adapter = cell
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


def test_gradients_reach_every_parameter(cell):
    model, _, adapter = cell
    perturb(model, adapter)
    model(**tokens()).logits.square().mean().backward()
    for name, parameter in adapter.adapter_parameters(model).items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_parameters_are_float32_on_a_bfloat16_base(cell):
    _, base, adapter = cell
    model = copy.deepcopy(base).to(torch.bfloat16)
    adapter.attach_to(model)
    assert {p.dtype for p in adapter.adapter_parameters(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


def test_merged_equals_unmerged_and_the_undo_is_exact(cell):
    model, base, adapter = cell
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


def test_disabled_is_the_base(cell):
    model, base, adapter = cell
    perturb(model, adapter)
    with adapter.disabled(model):
        assert torch.equal(logits(model), logits(base))
    assert not torch.allclose(logits(model), logits(base), atol=1e-3)


def test_save_and_load_give_the_same_function(cell, tmp_path):
    model, base, adapter = cell
    perturb(model, adapter)
    save_adapter(model, adapter, tmp_path / "adapter")
    loaded = load_adapter(copy.deepcopy(base), tmp_path / "adapter")
    # An encoder runs once when it is saved, and its rounding there may be another than in a forward pass; a
    # difference of two updates is saved as the one update of twice the rank that it is.
    rounds = isinstance(adapter, PTuning) or from_weight(adapter)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5 if rounds else 0, rtol=0)


def test_generation_with_cache_equals_generation_without(cell):
    model, _, adapter = cell
    perturb(model, adapter)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(**tokens(), use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(**tokens(), use_cache=False, **settings))


def test_a_second_attachment_changes_nothing(cell):
    model, _, adapter = cell
    perturb(model, adapter)
    before, layers = logits(model), adapter_layers(model)
    assert not adapter.attach_to(model, seed=1)
    assert adapter_layers(model).keys() == layers.keys()
    assert torch.equal(logits(model), before)


def test_detaching_gives_the_base_back(cell):
    model, base, adapter = cell
    perturb(model, adapter)
    adapter.detach_from(model)
    assert adapter_layers(model) == {}
    assert model.state_dict().keys() == base.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(logits(model), logits(base))


def test_initial_values_depend_on_seed_and_name_only(cell):
    model, base, adapter = cell
    values = {name: p.clone() for name, p in adapter.adapter_parameters(model).items()}
    torch.manual_seed(99)
    same, other = copy.deepcopy(base), copy.deepcopy(base)
    adapter.attach_to(same, seed=1)
    adapter.attach_to(other, seed=2)
    assert all(torch.equal(p, values[name]) for name, p in adapter.adapter_parameters(same).items())
    drawn = any(not torch.equal(p, values[name]) for name, p in adapter.adapter_parameters(other).items())
    assert drawn != (isinstance(adapter, IA3) or from_weight(adapter))  # which draw nothing


def test_injecting_draws_no_random_number(cell):
    _, base, adapter = cell
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    adapter.attach_to(copy.deepcopy(base), seed=None)
    assert torch.equal(torch.rand(3), expected)


def test_a_deep_copy_is_independent(cell):
    model, _, adapter = cell
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
