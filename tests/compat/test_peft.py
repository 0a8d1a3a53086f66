"""What ``compat.peft`` rests on in the installed peft: red when a new version of it changes that."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from adapters_pl import UserError
from adapters_pl.compat import peft as ours


class Model(nn.Module):
    """Two linear modules, of which ``first`` is adapted."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.first(x))


X = torch.linspace(-1, 1, 8).view(2, 4)


def injected(config, device="cpu"):
    """A model with peft's layers in it, whose values have moved, and the ``PeftModel`` around it."""
    model = Model().to(device)
    wrapped = ours.inject(model, config)
    if device == "cpu":
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model, wrapped


def lora():
    return peft.LoraConfig(r=2, target_modules=["first"])


def test_the_methods_are_known_by_type_and_no_prompts_are_among_them():
    known = ours.tuners()
    assert known["LORA"] is peft.LoraConfig
    assert known["ADALORA"] is peft.AdaLoraConfig
    assert not {"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"} & known.keys()


def test_layers_stand_in_the_models_own_modules_and_leave_them_again():
    model, wrapped = injected(lora())
    assert list(ours.layers(wrapped)) == ["first"]
    assert model(X) is not None
    ours.unwrap(model)
    assert model.state_dict().keys() == Model().state_dict().keys()
    assert torch.equal(model(X), Model()(X))
    assert not hasattr(model, "peft_config")


def test_modules_that_peft_saves_whole_are_unwrapped_too():
    model, _ = injected(peft.LoraConfig(r=2, target_modules=["first"], modules_to_save=["last"]))
    assert not isinstance(model.last, nn.Linear)
    ours.unwrap(model)
    assert type(model.last) is nn.Linear


def test_a_layer_is_switched_without_a_change_of_what_needs_a_gradient():
    model, wrapped = injected(lora())
    adapted, before = model(X), [parameter.requires_grad for parameter in model.parameters()]
    ours.switch(ours.layers(wrapped)["first"], False)
    assert torch.equal(model(X), Model()(X))
    ours.switch(ours.layers(wrapped)["first"], True)
    assert torch.equal(model(X), adapted)
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_a_layer_is_merged_and_unmerged():
    model, wrapped = injected(lora())
    adapted, layer = model(X), ours.layers(wrapped)["first"]
    assert not ours.is_merged(layer)
    ours.merge(layer)
    assert ours.is_merged(layer)
    assert torch.allclose(model.first.get_base_layer()(X), model.first(X), atol=1e-6)
    for _ in range(2):  # the second time there is nothing to undo
        ours.unmerge(layer)
        assert not ours.is_merged(layer)
    assert torch.allclose(model(X), adapted, atol=1e-5)


def test_what_is_saved_are_the_models_own_tensors():
    model, wrapped = injected(lora())
    held = {id(value) for value in model.state_dict(keep_vars=True).values()}
    saved = ours.saved(wrapped)
    assert sorted(saved) == [f"base_model.model.first.lora_{part}.weight" for part in "AB"]
    assert {id(value) for value in saved.values()} <= held


def test_on_the_meta_device_only_what_is_trained_needs_a_gradient():
    model, wrapped = injected(
        peft.VBLoRAConfig(num_vectors=4, vector_length=2, r=2, topk=2, target_modules=["first"]), "meta"
    )
    real, _ = injected(peft.VBLoRAConfig(num_vectors=4, vector_length=2, r=2, topk=2, target_modules=["first"]))
    trained = {name for name, parameter in real.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert all(parameter.is_meta for parameter in ours.layers(wrapped)["first"].parameters())


def adalora():
    return peft.AdaLoraConfig(
        total_step=9, init_r=4, target_r=1, tinit=1, tfinal=1, deltaT=1, orth_reg_weight=0.5, target_modules=["first"]
    )


def test_adalora_prunes_by_the_gradients_and_goes_on_where_it_was():
    model, wrapped = injected(adalora())
    tuner = ours.AdaLoRA(wrapped)
    tuner.begin(6)
    assert ours.settings(wrapped).total_step == 6
    for step in range(1, 5):
        model(X).square().sum().backward()
        tuner.prune(step)
    energies = next(value for name, value in model.named_parameters() if "lora_E" in name)
    assert int(energies.count_nonzero()) == 1 if step == 4 else True
    state = tuner.state()
    assert state["rank_pattern"]
    assert len(state["ipt"]) == 3
    other = ours.AdaLoRA(injected(adalora())[1])
    other.restore(state)
    assert other.state() == state


def test_adalora_needs_steps_between_its_first_and_its_last_ones():
    tuner = ours.AdaLoRA(injected(adalora())[1])
    with pytest.raises(UserError, match="tinit 1 and tfinal 1 leave none of 2 steps"):
        tuner.begin(2)


def test_adaloras_penalty_reaches_its_factors_alone():
    model, wrapped = injected(adalora())
    ours.AdaLoRA(wrapped).add_penalty()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {f"first.lora_{part}.{ours.NAME}" for part in "AB"}
