"""Who writes and scores: one interface, and transformers behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters_pl.data.questions import Choices, Pair
from adapters_pl.data.tokens import left_pad
from adapters_pl.evaluation.drafts import Drafts
from adapters_pl.evaluation.generation import Generation, SeededSampling, as_generation, end_tokens, generate
from adapters_pl.evaluation.held import Call, Reading, arguments, holds, layers_to_hold
from adapters_pl.evaluation.scoring import Judge, Scored, divided, log_likelihoods, log_likelihoods_held, score
from adapters_pl.evaluation.stream import stream
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

    def settle(self) -> None:
        """Wait until every process that computes with this one has what it asked for."""


class TransformersEngine:
    """Any causal language model of transformers, with whatever is injected into it.

    What prompts share at their beginning is read once, rows leave the batch when they have ended, and waiting ones
    enter. Beams, and models whose caches cannot be cut and joined, are left to transformers' own ``generate``.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        batch_size: prompts at a time.
        context: the most tokens of a text; the model's own limit if not given.
        device: where it computes; where the model lies if not given.
        hidden_states: from a batch to (B, T, D), if not by the model's decoder.
        logits: from hidden states to logits, if not as the model's settings say.
        forward: runs a function as the forward pass of the model, where its parts cannot be called alone.
        any_at_work: where processes compute parts of one model at the same time or not at all: tells the others
            whether this one is at work, and says whether any is.
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
        any_at_work: Callable[[bool], bool] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.context = context if context is not None else context_length(model.config)
        self._device = device
        self.hidden_states = hidden_states or (lambda batch: head.hidden_states(model, batch))
        self.logits = logits or (lambda hidden: head.logits(model, hidden))
        self._forward = forward
        self._any_at_work = any_at_work
        #: Whether rows can be read behind a shared head; not known before the first are read.
        self._holds: bool | None = None

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
        """Continue every prompt, from the longest to the shortest.

        Raises:
            ValueError: beams and sampling together, or sampling without a seed for each prompt.
        """
        sampling = None
        if decoding.temperature > 0:
            if decoding.beams > 1 or seeds is None or len(seeds) != len(prompts):
                raise ValueError("Sampling takes one beam, and one seed a prompt.")
            sampling = SeededSampling(seeds, decoding.temperature)
        longest = max(map(len, prompts), default=0) + decoding.max_new_tokens
        reading = self._reading(self._own_logits, longest) if decoding.beams == 1 else None
        if reading is None:
            yield from self._generate_by_transformers(prompts, decoding, sampling)
        else:
            ends = end_tokens(self.model, self.tokenizer)

            def choose(places: Sequence[int], scores: Tensor) -> Tensor:
                return (scores if sampling is None else sampling.disturbed(scores, places)).argmax(dim=-1)

            # Below float32 the number of tokens that are read at once shows in the rounding, and so in the texts.
            drafts = Drafts() if self.model.dtype == torch.float32 else None
            limit = decoding.max_new_tokens
            for place, tokens in stream(reading, prompts, ends, limit, self.batch_size, choose, drafts):
                yield place, as_generation(self.tokenizer, tokens, ends)
        self.settle()

    def _generate_by_transformers(
        self, prompts: Sequence[list[int]], decoding: Decoding, sampling: SeededSampling | None
    ) -> Iterator[tuple[int, Generation]]:
        for places in self._batches(prompts):
            ids, mask = left_pad([prompts[place] for place in places], self._pad_id)
            # Before whatever hangs on the model, since that may wait for the others already.
            hook = self.model.register_forward_pre_hook(lambda *_: self._announce(), prepend=True)
            try:
                written = generate(
                    self.model,
                    self.tokenizer,
                    ids.to(self.device),
                    mask.to(self.device),
                    max_new_tokens=decoding.max_new_tokens,
                    beams=decoding.beams,
                    sampling=sampling and sampling.of(places),
                )
            finally:
                hook.remove()
            yield from zip(places, written, strict=True)

    def score(self, requests: Sequence[Choices]) -> Iterator[tuple[int, Scored]]:
        """The log-likelihoods of every request's options, from the longest to the shortest."""
        pairs = [pair for request in requests for pair in request.pairs]
        longest = max((len(pair.context) + len(pair.continuation) for pair in pairs), default=0)
        reading = self._reading(self._scoring_logits, longest)
        judge: Judge = self._judge_plainly
        if reading is not None:
            reading.share([pair.context for pair in pairs])
            # A branch is short, and has room beside others.
            judge = partial(log_likelihoods_held, reading, size=4 * self.batch_size)
        for places in self._batches([request.pairs[0].context for request in requests]):
            yield from zip(places, score([requests[place] for place in places], judge), strict=True)
        self.settle()

    def _judge_plainly(self, pairs: Sequence[Pair]) -> list[float]:
        sums = [0.0] * len(pairs)
        for numbers in divided(pairs, self.batch_size):
            some = [pairs[number] for number in numbers]
            self._announce()
            found = self._forward(partial(log_likelihoods, self, some, self._pad_id, self.device))
            for number, total in zip(numbers, found, strict=True):
                sums[number] = total
        return sums

    def _batches(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Which rows go together, the longest first; those that fit into one batch stay in their order."""
        if len(rows) <= self.batch_size:
            return [list(range(len(rows)))] if rows else []
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    # ---- reading

    def _reading(self, call: Call, longest: int) -> Reading | None:
        """Reads rows of up to ``longest`` tokens; ``None`` where the model cannot be read row by row."""
        if longest == 0 or (layers := layers_to_hold(self.model, longest)) is None:
            return None
        reading = Reading(call, layers, self._pad_id, self.device)
        if self._holds is None:
            with torch.no_grad():
                self._holds = holds(reading)
        return reading if self._holds else None

    def _own_logits(self, call: dict[str, Any]) -> Tensor:
        self._announce()
        found: Tensor = self.model(**arguments(type(self.model).forward, call)).logits
        return found.float()

    def _scoring_logits(self, call: dict[str, Any]) -> Tensor:
        keep = call["logits_to_keep"]
        given = arguments(type(self.model.get_decoder()).forward, call)
        self._announce()
        found: Tensor = self._forward(lambda: self.logits(self.hidden_states(given)[:, -keep:]))
        return found

    # ---- beside other processes

    def _announce(self) -> None:
        """A forward pass of the model begins; processes that have none of their own take part in it."""
        if self._any_at_work is not None:
            self._any_at_work(True)

    def settle(self) -> None:
        """Take part in what the others compute until every one has what it asked for."""
        if self._any_at_work is None:
            return
        ids = torch.tensor([[self._pad_id]], device=self.device)
        with torch.no_grad():
            while self._any_at_work(False):
                self.model(input_ids=ids)
