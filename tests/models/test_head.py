"""The loss behind a head: one pass that forgets the logits gives what the plain one gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters_pl import CausalLMModule, LoRA
from adapters_pl.models import head
from tests.conftest import tiny_model


@pytest.fixture
def counted(monkeypatch):
    """How often the pass with the derivative was taken."""
    taken = []
    apply = head._HeadLoss.apply
    monkeypatch.setattr(head._HeadLoss, "apply", lambda *args: taken.append(1) or apply(*args))
    return taken


def plainly(model, hidden, targets):
    return nn.functional.cross_entropy(head.logits(model, hidden).float(), targets, reduction="none")


def given(model, rows=23, dtype=torch.float32):
    torch.manual_seed(0)
    size, vocabulary = model.get_output_embeddings().weight.T.shape
    hidden = torch.randn(rows, size, dtype=dtype).mul_(3).requires_grad_(True)
    return hidden, torch.randint(0, vocabulary, (rows,))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("at_once", [1, 1000, 1 << 24], ids=["row by row", "in parts", "at once"])
def test_losses_and_derivatives_are_those_of_the_plain_way(monkeypatch, counted, bias, at_once):
    monkeypatch.setattr(head._HeadLoss, "AT_ONCE", at_once)
    model = tiny_model("llama").requires_grad_(False)
    if bias:
        model.get_output_embeddings().bias = nn.Parameter(torch.randn(model.config.vocab_size), requires_grad=False)
    hidden, targets = given(model)
    weights = torch.rand(len(targets))
    found = []
    for way in (head.cross_entropy, plainly):
        losses = way(model, hidden, targets)
        (derivative,) = torch.autograd.grad((losses * weights).sum(), hidden)
        found.append((losses, derivative))
    assert counted == [1]
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)
        assert ours.dtype is torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_it_is_as_near_to_the_exact_derivative_as_the_plain_way(counted, autocast):
    exact = tiny_model("llama").requires_grad_(False)
    rough = tiny_model("llama").requires_grad_(False).to(torch.float32 if autocast else torch.bfloat16)
    hidden, targets = given(exact)
    (true,) = torch.autograd.grad(plainly(exact, hidden, targets).sum(), hidden)
    errors = []
    for way in (head.cross_entropy, plainly):
        states = hidden.detach().to(rough.dtype).requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = way(rough, states, targets)
        (derivative,) = torch.autograd.grad(losses.sum(), states)
        assert derivative.dtype is states.dtype
        errors.append((derivative - true).norm() / true.norm())
    assert counted == [1]
    assert errors[0] < 1.5 * errors[1] + 1e-3


def test_scores_of_any_size_give_finite_losses(counted):
    model = tiny_model("llama").requires_grad_(False)
    hidden, targets = given(model)
    large = (1e4 * hidden.detach()).requires_grad_(True)
    losses = head.cross_entropy(model, large, targets)
    torch.testing.assert_close(losses, plainly(model, large, targets))
    assert torch.autograd.grad(losses.sum(), large)[0].isfinite().all()


def test_a_second_derivative_is_refused_and_not_wrong():
    model = tiny_model("llama").requires_grad_(False)
    hidden, targets = given(model)
    (slope,) = torch.autograd.grad((head.cross_entropy(model, hidden, targets) ** 2).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_no_rows_give_no_losses():
    model = tiny_model("llama").requires_grad_(False)
    hidden, targets = given(model, rows=0)
    losses = head.cross_entropy(model, hidden, targets)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert hidden.grad.shape == hidden.shape


@pytest.mark.parametrize("change", ["adapter", "trained", "hooked", "scaled", "capped"])
def test_a_head_that_does_more_takes_the_plain_way(counted, change):
    model = tiny_model("llama").requires_grad_(False)
    if change == "adapter":
        LoRA(rank=2, dropout=0.0, target_modules=["q_proj"], modules_to_save=["lm_head"]).attach_to(model)
    elif change == "trained":
        model.get_output_embeddings().weight.requires_grad_(True)
    elif change == "hooked":
        model.get_output_embeddings().register_forward_hook(lambda module, args, output: output * 2)
    elif change == "scaled":
        model.config.logit_scale = 2.0
    else:
        model.config.final_logit_softcapping = 5.0
    hidden, targets = given(model)
    torch.testing.assert_close(head.cross_entropy(model, hidden, targets), plainly(model, hidden, targets))
    assert counted == []


def test_a_loss_or_logits_of_ones_own_are_taken(counted):
    class Doubled(CausalLMModule):
        def token_losses(self, logits, targets):
            return 2 * super().token_losses(logits, targets)

    class Halved(CausalLMModule):
        def logits(self, hidden):
            return super().logits(hidden) / 2

    labels = torch.tensor([[-100, 3, 4, 5]])
    losses = {}
    for kind in (CausalLMModule, Doubled, Halved):
        module = kind()
        module.model = module.build_base()
        batch = {"input_ids": labels.clamp_min(0), "attention_mask": torch.ones_like(labels)}
        losses[kind] = module.label_losses(module.hidden_states(batch), labels)
    assert counted == [1]
    torch.testing.assert_close(losses[Doubled], 2 * losses[CausalLMModule])
    assert not torch.allclose(losses[Halved], losses[CausalLMModule])
