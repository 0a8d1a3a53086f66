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

    Pairs that differ in their last token alone are read by the model once: it is never read, only predicted. Rows are
    padded on the right, where causal attention and the mask keep the padding from mattering. Logits are only computed
    where a continuation's token is predicted, once for all pairs that need them.
    """
    texts: dict[tuple[int, ...], int] = {}
    predicted: list[tuple[int, int, int, int]] = []
    for number, pair in enumerate(pairs):
        row = texts.setdefault(_text(pair), len(texts))
        # The token at ``t`` is predicted from the state at ``t - 1``.
        predicted += [(number, row, len(pair.context) - 1 + i, token) for i, token in enumerate(pair.continuation)]
    ids = torch.full((len(texts), max(map(len, texts))), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for text, row in texts.items():
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    pair_of, rows, positions, tokens = torch.tensor(predicted, device=device).T
    states, state_of = torch.stack([rows, positions]).unique(dim=1, return_inverse=True)
    hidden = model.hidden_states({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    logs = torch.log_softmax(model.logits(hidden[states[0], states[1]]).float(), dim=-1)
    found = logs[state_of.to(logs.device), tokens.to(logs.device)].double()
    return found.new_zeros(len(pairs)).index_add_(0, pair_of.to(found.device), found).tolist()


def _text(pair: Pair) -> tuple[int, ...]:
    """What the model reads of a pair: all but the last token."""
    return (*pair.context, *pair.continuation[:-1])


def score(model: Scorer, rows: Sequence[Choices], pad_id: int, device: torch.device | str) -> list[Scored]:
    """Score every option of every row; the model reads as many texts at a time as there are rows."""
    pairs = [pair for row in rows for pair in row.pairs]
    texts: dict[tuple[int, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        texts.setdefault(_text(pair), []).append(number)
    groups = list(texts.values())
    sums = [0.0] * len(pairs)
    for start in range(0, len(groups), max(1, len(rows))):
        numbers = [number for group in groups[start : start + len(rows)] for number in group]
        found = log_likelihoods(model, [pairs[number] for number in numbers], pad_id, device)
        for number, total in zip(numbers, found, strict=True):
            sums[number] = total
    scored, at = [], 0
    for row in rows:
        scored.append(Scored(row, tuple(sums[at : at + len(row.pairs)])))
        at += len(row.pairs)
    return scored
