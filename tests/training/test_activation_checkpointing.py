"""Activation checkpointing changes neither loss nor gradients, for any method."""

from __future__ import annotations

import pytest
import torch

from adapters_pl import CausalLMModule
from adapters_pl.models.discovery import architecture_of
from tests.conftest import tiny_model
from tests.helpers.methods import METHODS


def gradients(base, method, checkpointing):
    """Gradients of one batch in training mode, and how often the last layer's first projection was computed."""
    module = CausalLMModule(activation_checkpointing=checkpointing)
    module.model = tiny_model(base)
    module.source.config = module.model.config
    module.add_adapter(METHODS[method]())
    module.setup("fit")
    torch.manual_seed(1)
    for parameter in module.adapter_parameters().values():
        parameter.data += torch.randn_like(parameter) * 0.1
    module.train()
    ids = torch.randint(3, 300, (2, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][1, 9:] = 0
    computed = []
    layer = module.model.get_submodule(architecture_of(module.model).layers)[-1]
    first = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
    first.register_forward_hook(lambda *_: computed.append(1))
    torch.manual_seed(2)  # dropout
    module.label_losses(module.hidden_states(batch), ids).sum().backward()
    return {name: p.grad for name, p in module.adapter_parameters().items()}, len(computed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", ["llama_gqa", "bloom", "opt", "gptj"])
def test_gradients_are_the_same(base, method):
    plain, once = gradients(base, method, False)
    again, twice = gradients(base, method, True)
    assert (once, twice) == (1, 2)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
