"""What is tried on a few tokens before anything is trained: whether the base computes as this package takes it to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters_pl.data.tokenize import Collate, TokenRow
from adapters_pl.errors import UserError
from adapters_pl.strategies import as_forward

if TYPE_CHECKING:
    from adapters_pl.answering import AnsweringModule
    from adapters_pl.module import CausalLMModule


def check_logits(module: AnsweringModule) -> None:
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


def check_packing(module: CausalLMModule, collate: Collate) -> None:
    """Compare rows that ``collate`` packs, as it packs those of training, with the same rows alone.

    Raises:
        UserError: the model or an adapter lets packed rows see each other.
    """
    vocabulary = module.config.get_text_config().vocab_size
    half = (collate.pack_to or 2) // 2
    # Six rows of which any two fit into one sequence: more than one sequence, unless all have to lie in one.
    rows = [[(17 * i + j) % vocabulary for j in range(min(5 + i % 3, half))] for i in range(6)]
    items = [{"row": TokenRow(i, row, []), "labels": row, "asked": row} for i, row in enumerate(rows)]
    batch = {
        key: value.to(module.computes_on) if isinstance(value, Tensor) else value
        for key, value in collate(items).items()
    }
    with _evaluating(module):
        try:
            packed = as_forward(module.model, lambda: module.hidden_states(batch)).float()
            same = all(_close(packed[place], _alone(module, batch["input_ids"][place])) for place in _rows(batch))
        except (TypeError, ValueError, RuntimeError, AttributeError):
            same = False  # it takes no positions, or cannot do without a mask
    if not same:
        names = ", ".join(sorted({type(adapter).__name__ for adapter in module.adapters.values()}))
        raise UserError(
            f"{type(module.model).__name__} with {names} cannot keep packed rows apart: leave out --data.packing."
        )


def _rows(batch: dict[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Where every row of a packed batch lies: its sequence, and its places in it."""
    for sequence, (segments, mask) in enumerate(zip(batch["segment_ids"], batch["attention_mask"], strict=True)):
        for segment in segments[mask == 1].unique().tolist():
            yield sequence, (segments == segment).nonzero()[:, 0]


def _alone(module: CausalLMModule, ids: Tensor) -> Tensor:
    batch = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
    return as_forward(module.model, lambda: module.hidden_states(batch)).float()[0]


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


@contextmanager
def _evaluating(module: AnsweringModule) -> Iterator[None]:
    was_training = module.model.training
    module.model.eval()
    with torch.no_grad():
        yield
    module.model.train(was_training)
