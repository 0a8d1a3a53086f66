"""What is tried on a few tokens before anything is trained: whether the base computes as this package takes it to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters_pl.errors import UserError
from adapters_pl.strategies import as_forward

if TYPE_CHECKING:
    from adapters_pl.module import CausalLMModule


def check_logits(module: CausalLMModule) -> None:
    """Compare ``module.logits`` with the model's own on two tokens.

    Raises:
        UserError: the model does more with its head's output than the module knows of.
    """
    ids = torch.tensor([[0, 1]], device=module.computes_on)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with _evaluating(module):
        # The model's own hidden states, whatever a subclass of the module makes of them.
        decoder = module.model.get_decoder()
        ours = as_forward(
            module.model, lambda: module.logits(decoder(**batch, use_cache=False).last_hidden_state).float()
        )
        own = module.model(**batch).logits.float()
    if not _close(ours, own):
        raise UserError(
            f"{type(module.model).__name__} computes its logits in a way that is not known here; "
            "override CausalLMModule.logits in a subclass."
        )


def check_packing(module: CausalLMModule) -> None:
    """Compare a row that is packed behind another with the same row alone.

    Raises:
        UserError: the model or an adapter lets packed rows see each other.
    """
    ids = torch.arange(12, device=module.computes_on)[None] % module.config.get_text_config().vocab_size
    positions = torch.tensor([[*range(5), *range(7)]], device=ids.device)
    packed = {"input_ids": ids, "position_ids": positions, "segment_ids": (positions == 0).cumsum(1) - 1}
    alone = {"input_ids": ids[:, 5:], "attention_mask": torch.ones_like(ids[:, 5:])}
    with _evaluating(module):
        try:
            behind = as_forward(module.model, lambda: module.hidden_states(packed)).float()[:, 5:]
            same = _close(behind, as_forward(module.model, lambda: module.hidden_states(alone)).float())
        except (TypeError, ValueError, RuntimeError, AttributeError):
            same = False  # it takes no positions, or cannot do without a mask
    if not same:
        names = ", ".join(sorted({type(adapter).__name__ for adapter in module.adapters.values()}))
        raise UserError(
            f"{type(module.model).__name__} with {names} cannot keep packed rows apart: leave out --data.packing."
        )


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


@contextmanager
def _evaluating(module: CausalLMModule) -> Iterator[None]:
    was_training = module.model.training
    module.model.eval()
    with torch.no_grad():
        yield
    module.model.train(was_training)
