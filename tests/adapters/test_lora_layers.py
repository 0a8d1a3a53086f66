"""DoRA's norm: what it is, and when it is computed."""

from __future__ import annotations

import pytest
import torch

from adapters_pl import LoRA
from adapters_pl.adapters import adapter_layers
from adapters_pl.adapters.lora_layers import DoRALayer
from tests.conftest import tiny_model


def dora(init="kaiming"):
    model = tiny_model("llama").eval()
    LoRA(rank=4, dropout=0.0, dora=True, init=init, target_modules=["q_proj", "down_proj"]).attach_to(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            layer.lora_B.normal_()
    return model


@pytest.mark.parametrize("init", ["kaiming", "olora"])
def test_doras_norm_is_that_of_the_rows_of_the_sum(init):
    model = dora(init)
    for path, layer in adapter_layers(model).items():
        base = model.get_submodule(path.partition(".adapters.")[0])
        expected = (base.weight + layer.product()).norm(dim=1)
        torch.testing.assert_close(layer._norm(base), expected)
        torch.testing.assert_close(
            layer.delta(base),
            layer.magnitude[:, None] * (base.weight + layer.product()) / expected[:, None] - base.weight,
        )


def test_doras_norm_is_computed_once_for_all_tokens_and_again_for_other_values(monkeypatch):
    model = dora()
    counted = []
    norm = DoRALayer._norm
    monkeypatch.setattr(DoRALayer, "_norm", lambda self, base: counted.append(1) or norm(self, base))
    layers = list(adapter_layers(model).values())
    ids = torch.arange(3, 9)[None]

    def logits():
        with torch.no_grad():
            return model(ids).logits

    first = logits()
    assert torch.equal(logits(), first)
    assert len(counted) == len(layers)
    with torch.no_grad():
        layers[0].lora_B.mul_(2)
    changed = logits()
    assert len(counted) == len(layers) + 1
    assert not torch.allclose(changed, first)
    model.train()
    logits()
    logits()
    assert len(counted) == 3 * len(layers) + 1, "training computes it at every step"
    with torch.no_grad():
        layers[0].lora_B.div_(2)
    model.eval()
    torch.testing.assert_close(logits(), first)
