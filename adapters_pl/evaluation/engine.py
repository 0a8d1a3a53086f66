"""Who writes and scores: one interface, and transformers behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters_pl.data.questions import Choices
from adapters_pl.data.tokens import left_pad
from adapters_pl.evaluation.generation import Generation, generate
from adapters_pl.evaluation.scoring import Scored, score
from adapters_pl.models import head
from adapters_pl.models.base import context_length


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
        max_new_tokens: the most tokens of an answer.
        beams: width of the search; 1 is greedy.
        temperature: above 0 to sample instead, with one seed a prompt.
    """

    max_new_tokens: int
    beams: int = 1
    temperature: float = 0.0


class Engine(Protocol):
    """Writes answers and scores options.

    Both verbs yield results by their prompt's place as rows finish, in any order: a batch may shrink, and be filled
    again.
    """

    tokenizer: PreTrainedTokenizerBase
    #: The most tokens of a text; ``None`` where there is no limit.
    context: int | None

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Continue every prompt; ``seeds`` has one a prompt where it is sampled."""

    def score(self, requests: Sequence[Choices]) -> Iterator[tuple[int, Scored]]:
        """The log-likelihoods of every request's options."""


class TransformersEngine:
    """Any causal language model of transformers, with whatever is injected into it.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        batch_size: prompts at a time.
        context: the most tokens of a text; the model's own limit if not given.
        device: where it computes; where the model lies if not given.
        hidden_states: from a batch to (B, T, D), if not by the model's decoder.
        logits: from hidden states to logits, if not as the model's settings say.
        forward: runs a function as the forward pass of the model, where its parts cannot be called alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        *,
        context: int | None = None,
        device: torch.device | None = None,
        hidden_states: Callable[[dict[str, Any]], Tensor] | None = None,
        logits: Callable[[Tensor], Tensor] | None = None,
        forward: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.context = context if context is not None else context_length(model.config)
        self._device = device
        self.hidden_states = hidden_states or (lambda batch: head.hidden_states(model, batch))
        self.logits = logits or (lambda hidden: head.logits(model, hidden))
        self._forward = forward

    @property
    def device(self) -> torch.device:
        """Where it computes; offloaded parameters lie elsewhere."""
        return self._device or self.model.device

    @property
    def _pad_id(self) -> int:
        """The padding is told by the mask alone, so any token will do."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        assert isinstance(end, int)
        return pad if isinstance(pad, int) else end

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Continue every prompt, batches of like lengths first to last from the longest; see :func:`generate`."""
        for places in self._batches([len(prompt) for prompt in prompts]):
            ids, mask = left_pad([prompts[place] for place in places], self._pad_id)
            written = generate(
                self.model,
                self.tokenizer,
                ids.to(self.device),
                mask.to(self.device),
                max_new_tokens=decoding.max_new_tokens,
                beams=decoding.beams,
                temperature=decoding.temperature,
                seeds=[seeds[place] for place in places] if seeds is not None else None,
            )
            yield from zip(places, written, strict=True)

    def score(self, requests: Sequence[Choices]) -> Iterator[tuple[int, Scored]]:
        """The log-likelihoods of every request's options, as many options at a time as the batch has rows."""
        for places in self._batches([max(len(pair.context) for pair in request.pairs) for request in requests]):
            batch = [requests[place] for place in places]
            scored = self._forward(partial(score, self, batch, self._pad_id, self.device))
            yield from zip(places, scored, strict=True)

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which prompts go together; those that fit into one batch stay in their order."""
        if len(lengths) <= self.batch_size:
            return [list(range(len(lengths)))] if lengths else []
        order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
