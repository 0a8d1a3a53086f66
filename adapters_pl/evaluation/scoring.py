"""Log-likelihoods of continuations: multiple choice without generation.

How context and continuation are divided is said in :mod:`adapters_pl.data.questions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adapters_pl.data.questions import Choices, Pair


class Scorer(Protocol):
    """What scoring needs of a model; :class:`adapters_pl.training.module.CausalLMModule` has it."""

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T) -> (B, T, D)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""


@dataclass(frozen=True)
class Scored:
    """One row's options with their summed log-likelihoods in nats."""

    choices: Choices
    sums: tuple[float, ...]

    def best(self) -> str:
        """The likeliest option; the first of equals."""
        return self._largest(self.sums)

    def best_normalised(self) -> str:
        """The likeliest option per character of its text (lm-evaluation-harness's ``acc_norm``)."""
        return self._largest([total / length for total, length in zip(self.sums, self.choices.lengths, strict=True)])

    def _largest(self, values: Sequence[float]) -> str:
        return self.choices.options[max(range(len(values)), key=values.__getitem__)]


@torch.no_grad()
def log_likelihoods(model: Scorer, pairs: Sequence[Pair], pad_id: int, device: torch.device | str) -> list[float]:
    """The summed log-likelihood of each continuation, in nats, in float32.

    Rows are padded on the right, where causal attention and the mask keep the padding from mattering. Logits are
    only computed where a continuation's token is predicted.
    """
    width = max(len(pair.context) + len(pair.continuation) for pair in pairs) - 1
    ids = torch.full((len(pairs), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    wanted = torch.full_like(ids, -1)
    for i, pair in enumerate(pairs):
        row = [*pair.context, *pair.continuation]
        ids[i, : len(row) - 1] = torch.tensor(row[:-1])
        mask[i, : len(row) - 1] = 1
        wanted[i, len(pair.context) - 1 : len(row) - 1] = torch.tensor(pair.continuation)
    ids, mask, wanted = ids.to(device), mask.to(device), wanted.to(device)
    hidden = model.hidden_states({"input_ids": ids, "attention_mask": mask})
    here = wanted >= 0
    losses = torch.nn.functional.cross_entropy(model.logits(hidden[here]).float(), wanted[here], reduction="none")
    rows = here.nonzero()[:, 0]
    sums = torch.zeros(len(pairs), dtype=torch.float64, device=losses.device).index_add_(0, rows, -losses.double())
    return sums.tolist()


def score(model: Scorer, rows: Sequence[Choices], pad_id: int, device: torch.device | str) -> list[Scored]:
    """Score every option of every row; as many options at a time as there are rows."""
    pairs = [pair for row in rows for pair in row.pairs]
    sums: list[float] = []
    for start in range(0, len(pairs), max(1, len(rows))):
        sums += log_likelihoods(model, pairs[start : start + len(rows)], pad_id, device)
    scored, at = [], 0
    for row in rows:
        scored.append(Scored(row, tuple(sums[at : at + len(row.pairs)])))
        at += len(row.pairs)
    return scored
