"""From a batch to a model's last hidden states, and from them to logits as the model itself scales them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from adapters_pl.inputs.errors import UserError

T = TypeVar("T")

#: Settings by which some models scale what their head returns, and whether they multiply (Cohere, Falcon-H1) or
#: divide (Granite) by it.
_LOGIT_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}


def hidden_states(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """The decoder's last hidden states, (B, T, D), for the T given tokens."""
    if "past_key_values" in batch:
        return model.get_decoder()(**batch).last_hidden_state
    if "segment_ids" in batch:
        # Without a mask, transformers lets positions that begin again keep the rows of a sequence apart.
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    else:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return model.get_decoder()(**inputs, use_cache=False).last_hidden_state


@cache
def parameter_names(forward: Callable[..., Any]) -> list[str]:
    """The names of a module's ``forward``'s parameters, in their order, without ``self``."""
    return [name for name in inspect.signature(forward).parameters if name != "self"]


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The vocabulary's logits for hidden states: (..., D) -> (..., V)."""
    found: Any = model.get_output_embeddings()(hidden)
    text = model.config.get_text_config()
    for setting, power in _LOGIT_SCALES.items():
        if (scale := getattr(text, setting, None)) is not None:
            found = found * scale**power
    cap = getattr(text, "final_logit_softcapping", None)
    return torch.tanh(found / cap) * cap if cap else found


def cross_entropy(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """The loss of every target in nats, float32: (N, D), (N,) -> (N,).

    Where the head is one frozen matrix, the derivative is found in the same pass, some states at a time, and the logits
    are forgotten: those of a long batch and a large vocabulary would take more memory than all the rest.
    """
    head: Any = model.get_output_embeddings()
    if _is_one_frozen_matrix(model, head):
        return _HeadLoss.apply(hidden, head.weight, head.bias, targets)
    return nn.functional.cross_entropy(logits(model, hidden).float(), targets, reduction="none")


def _is_one_frozen_matrix(model: PreTrainedModel, head: Any) -> bool:
    """Whether logits are ``head.weight @ hidden``, and nothing hangs on the head: no adapter, shards or offloading."""
    text = model.config.get_text_config()
    scaled = any(getattr(text, setting, None) is not None for setting in (*_LOGIT_SCALES, "final_logit_softcapping"))
    return (
        not scaled
        and type(head) is nn.Linear
        and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
        and not isinstance(head.weight, DTensor)
        and not any(parameter.requires_grad for parameter in head.parameters())
    )


class _HeadLoss(Function):
    """The cross-entropy behind a frozen linear head, and beside it its derivative by the states."""

    #: The most logits at a time.
    AT_ONCE: ClassVar[int] = 1 << 24

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        # In float32, since nothing has scaled them yet: in float16 small ones would be lost.
        slopes = torch.empty_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        ctx.dtype = hidden.dtype
        size = max(1, _HeadLoss.AT_ONCE // len(weight))
        for begin in range(0, len(hidden), size):
            part = slice(begin, begin + size)
            goals = targets[part, None]
            scores = nn.functional.linear(hidden[part], weight, bias)
            dtype = scores.dtype
            scores = scores.float()
            goal_scores, top = scores.gather(1, goals), scores.amax(dim=1, keepdim=True)
            scores.sub_(top).exp_()
            total = scores.sum(dim=1, keepdim=True)
            losses[part] = (total.log() + top - goal_scores)[:, 0]
            if slopes is not None:  # the mean of the weight's rows by their probabilities, less the goal's row
                scores = scores.div_(total).to(dtype)
                torch.sub((scores @ weight).float(), weight[goals[:, 0]].float(), out=slopes[part])
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (grads[0][:, None] * slopes).to(ctx.dtype), None, None, None


def check_logits(
    model: PreTrainedModel,
    device: torch.device,
    logits_of: Callable[[Tensor], Tensor],
    forward: Callable[[Callable[[], T]], T] = lambda work: work(),
) -> None:
    """Compare ``logits_of(hidden states)`` with the model's own on two tokens.

    Args:
        model: in any mode, which it has again afterwards.
        device: where it computes.
        logits_of: what is compared.
        forward: runs a function as the forward pass of the model, where its parts cannot be called alone.

    Raises:
        UserError: the model does more with its head's output than is known here.
    """
    ids = torch.tensor([[0, 1]], device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ours: Any = forward(lambda: logits_of(hidden_states(model, batch)).float())  # type: ignore[arg-type,return-value]
        own = model(**batch).logits.float()
    model.train(was_training)
    if not close(ours, own):
        raise UserError(
            f"{type(model).__name__} computes its logits in a way that is not known here; "
            "override CausalLMModule.logits in a subclass."
        )


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by rounding alone."""
    return torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))
