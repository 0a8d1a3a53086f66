"""What is tried on a few tokens before packed rows are trained: whether the base keeps them apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adapters_pl.data.tokens import Collate, TokenRow
from adapters_pl.inputs.errors import UserError
from adapters_pl.models.head import close
from adapters_pl.training.strategies import as_forward


def check_packing(module: Any, collate: Collate) -> None:
    """Compare rows that ``collate`` packs, as it packs those of training, with the same rows alone.

    Args:
        module: a :class:`~adapters_pl.training.module.CausalLMModule` that has its base.
        collate: makes the batches of training.

    Raises:
        UserError: the model or an adapter lets packed rows see each other.
    """
    collate = copy.copy(collate)
    collate.least_saving = -math.inf  # these rows are packed, whether it pays or not
    collate.pack_to = min(collate.pack_to or 2, 16)
    vocabulary = module.config.get_text_config().vocab_size
    half = collate.pack_to // 2
    # Six rows of which two fit into one sequence: more than one sequence, unless all have to lie in one.
    rows = [[(17 * i + j) % vocabulary for j in range(min(5 + i % 3, half))] for i in range(6)]
    items = [{"row": TokenRow(i, row, []), "labels": row, "prompt": row} for i, row in enumerate(rows)]
    batch = {
        key: value.to(module.computes_on) if isinstance(value, Tensor) else value
        for key, value in collate(items).items()
    }
    was_training = module.model.training
    module.model.eval()
    with torch.no_grad():
        try:
            packed = _states(module, batch)
            same = all(
                close(packed[sequence, places], _states(module, _row_alone(batch["input_ids"][sequence, places]))[0])
                for sequence, places in _rows(batch)
            )
        except (TypeError, ValueError, RuntimeError, AttributeError):
            same = False  # it takes no positions, or cannot do without a mask
    module.model.train(was_training)
    if not same:
        names = ", ".join(sorted({type(adapter).__name__ for adapter in module.adapters.values()}))
        raise UserError(
            f"{type(module.model).__name__} with {names} cannot keep packed rows apart: leave out --data.packing."
        )


def _states(module: Any, batch: dict[str, Tensor]) -> Tensor:
    return as_forward(module.model, lambda: module.hidden_states(batch)).float()


def _row_alone(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}


def _rows(batch: dict[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Where every row of a packed batch lies: its sequence, and its places in it."""
    for sequence, (segments, mask) in enumerate(zip(batch["segment_ids"], batch["attention_mask"], strict=True)):
        for segment in segments[mask == 1].unique().tolist():
            yield sequence, (segments == segment).nonzero()[:, 0]
