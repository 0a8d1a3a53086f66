"""From a batch to a model's last hidden states, and from them to logits as the model itself scales them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapters_pl.inputs.errors import UserError

T = TypeVar("T")

#: Settings by which some models scale what their head returns, and whether they multiply (Cohere, Falcon-H1) or
#: divide (Granite) by it.
_LOGIT_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}


def hidden_states(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """The decoder's last hidden states, (B, T, D), for the T given tokens."""
    if "segment_ids" in batch:
        # Without a mask, transformers lets positions that begin again keep the rows of a sequence apart.
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    else:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return model.get_decoder()(**inputs, use_cache=False).last_hidden_state


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The vocabulary's logits for hidden states: (..., D) -> (..., V)."""
    found: Any = model.get_output_embeddings()(hidden)
    text = model.config.get_text_config()
    for setting, power in _LOGIT_SCALES.items():
        if (scale := getattr(text, setting, None)) is not None:
            found = found * scale**power
    cap = getattr(text, "final_logit_softcapping", None)
    return torch.tanh(found / cap) * cap if cap else found


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
