"""Log-likelihoods of continuations: multiple choice without generation.

How context and continuation are divided is said in :mod:`adapters_pl.data.questions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adapters_pl.data.questions import Choices, Pair
from adapters_pl.data.tokens import right_pad
from adapters_pl.evaluation.held import Reading, common_beginning


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


#: The summed log-likelihoods, in nats, of the continuations of pairs.
Judge = Callable[[Sequence[Pair]], list[float]]


def score(rows: Sequence[Choices], judge: Judge) -> list[Scored]:
    """Score every option of every row."""
    sums = iter(judge([pair for row in rows for pair in row.pairs]))
    return [Scored(row, tuple(next(sums) for _ in row.pairs)) for row in rows]


@torch.no_grad()
def log_likelihoods_held(reading: Reading, pairs: Sequence[Pair], size: int) -> list[float]:
    """The summed log-likelihood of each continuation, in nats, in float32: its context is read once for all of them.

    Args:
        reading: reads the contexts.
        pairs: their contexts are read at the same time.
        size: how many continuations are read at the same time.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        groups.setdefault(tuple(pair.context), []).append(number)
    shared = [common_beginning([pairs[number].continuation for number in numbers]) for numbers in groups.values()]
    texts = [[*context, *lead] for context, lead in zip(groups, shared, strict=True)]
    held, logits = reading.read(texts, keep=max(map(len, shared)) + 1)
    logs = torch.log_softmax(logits.float(), dim=-1)
    sums = torch.zeros(len(pairs), dtype=torch.float64, device=logs.device)
    # A last token is never read, only predicted.
    branches: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row, (numbers, lead) in enumerate(zip(groups.values(), shared, strict=True)):
        first = logs.shape[1] - len(lead) - 1
        for number in numbers:
            continuation = pairs[number].continuation
            sums[number] = _sum(logs[row, first:], continuation[: len(lead) + 1])
            if rest := tuple(continuation[len(lead) : -1]):
                branches.setdefault((row, rest), []).append(number)
    longest_first = sorted(branches, key=lambda branch: -len(branch[1]))
    for start in range(0, len(branches), size):
        part = longest_first[start : start + size]
        ids, mask = right_pad([tokens for _, tokens in part], reading.pad_id)
        some = held.select([row for row, _ in part])
        logits = some.read(reading.call, ids.to(reading.device), mask.to(reading.device), keep=0)
        logs = torch.log_softmax(logits.float(), dim=-1)
        for place, branch in enumerate(part):
            for number in branches[branch]:
                sums[number] += _sum(logs[place], pairs[number].continuation[-len(branch[1]) :])
    return sums.tolist()


def _sum(logs: Tensor, tokens: Sequence[int]) -> Tensor:
    """The sum of the logarithms of ``tokens``, one after the other, in ``logs`` (T, V)."""
    return logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None]).double().sum()


@torch.no_grad()
def log_likelihoods(model: Scorer, pairs: Sequence[Pair], pad_id: int, device: torch.device | str) -> list[float]:
    """The summed log-likelihood of each continuation, in nats, in float32, without a cache.

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
    ids, mask = right_pad(list(texts), pad_id)
    pair_of, rows, positions, tokens = torch.tensor(predicted, device=device).T
    states, state_of = torch.stack([rows, positions]).unique(dim=1, return_inverse=True)
    hidden = model.hidden_states({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    logs = torch.log_softmax(model.logits(hidden[states[0], states[1]]).float(), dim=-1)
    found = logs[state_of.to(logs.device), tokens.to(logs.device)].double()
    return found.new_zeros(len(pairs)).index_add_(0, pair_of.to(found.device), found).tolist()


def _text(pair: Pair) -> tuple[int, ...]:
    """What the model reads of a pair: all but the last token."""
    return (*pair.context, *pair.continuation[:-1])


def divided(pairs: Sequence[Pair], size: int) -> list[list[int]]:
    """The numbers of pairs that are judged at the same time, so that the model reads ``size`` texts at a time."""
    texts: dict[tuple[int, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        texts.setdefault(_text(pair), []).append(number)
    groups = list(texts.values())
    return [[n for group in groups[start : start + size] for n in group] for start in range(0, len(groups), size)]
