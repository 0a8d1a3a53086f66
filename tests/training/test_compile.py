"""Compiled decoder layers compute what plain ones do, and a missing compiler is said early."""

import shutil

import pytest
import torch

from adapters_pl import CausalLMModule, LoRA, UserError
from adapters_pl.training import adapted

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


def gradients(base, batch, compiles):
    torch._dynamo.reset()
    module = CausalLMModule(str(base), compile=compiles)
    adapter = LoRA(rank=4, dropout=0.0)
    module.add_adapter(adapter)
    for name, parameter in adapter.adapter_parameters(module.model).items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    module.setup("fit")
    module.train()
    loss = module.label_losses(module.hidden_states(batch), batch["labels"]).sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in adapter.adapter_parameters(module.model).items()}
    return loss.item(), found


@needs_compiler
def test_compiled_layers_give_the_same_loss_and_gradients(make_base):
    ids = torch.randint(3, 300, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    before = torch._dynamo.utils.counters["frames"]["ok"]
    loss, plain = gradients(make_base(), batch, compiles=False)
    assert torch._dynamo.utils.counters["frames"]["ok"] == before
    compiled_loss, compiled = gradients(make_base(), batch, compiles=True)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        # Fused sums are rounded in another order.
        torch.testing.assert_close(compiled[name], gradient, rtol=0, atol=1e-4 * float(gradient.abs().max()))


def test_a_missing_compiler_is_said_before_training(make_base, monkeypatch):
    monkeypatch.setattr(adapted, "which", lambda name: None)
    module = CausalLMModule(str(make_base()), compile=True)
    module.add_adapter(LoRA(rank=2))
    with pytest.raises(UserError, match=r"model\.compile needs a C\+\+ compiler .* leave the key out"):
        module.setup("fit")
