"""Batched generation that gives each row the answer it would get alone: greedy, by beams, or sampled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adapters_pl.inputs.errors import UserError


@dataclass(frozen=True)
class Generation:
    """What the model wrote after one prompt: its text, how many tokens, and why it stopped."""

    text: str
    tokens: int
    finish: Literal["stop", "length"]


class SeededSampling(LogitsProcessor):
    """Sampling that gives every row its own stream of random numbers, so that no row depends on its batch.

    By the Gumbel-max trick: the largest of ``logits / temperature`` plus standard Gumbel noise is distributed as the
    softmax of ``logits / temperature`` (Maddison et al. 2014, arXiv 1411.0030). Greedy search then takes it.

    Args:
        seeds: one a row.
        temperature: above 0; below 1 it sharpens the distribution.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.seeds, self.temperature = seeds, temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def of(self, rows: Sequence[int]) -> SeededSampling:
        """The same for some of the rows alone, from the beginning."""
        return SeededSampling([self.seeds[row] for row in rows], self.temperature)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores`` (B, V) of all rows with noise; each row draws V numbers from its own generator at every step."""
        return self.disturbed(scores, range(len(self.generators)))

    def disturbed(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """The same for some of the rows, whose ``scores`` (B, V) these are."""
        drawn = [torch.rand(scores.shape[1], generator=self.generators[row]) for row in rows]
        uniform = torch.stack(drawn).to(scores.device).clamp_min(torch.finfo(torch.float32).tiny)
        return scores.float() / self.temperature - torch.log(-torch.log(uniform))


def seed_of(seed: int, row: str, sample: int = 0) -> int:
    """The seed of one row's ``sample``-th answer: of the run's seed and the row's name, and of nothing else."""
    digest = hashlib.sha256(f"{seed}\0{row}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    beams: int = 1,
    sampling: SeededSampling | None = None,
) -> list[Generation]:
    """Continuations of a left-padded batch, by transformers' own ``generate``.

    The base's own generation settings (temperature, penalties) are set aside: results depend on what is
    asked here and on nothing that came with the weights but the end tokens.

    Args:
        model: the model, in evaluation mode.
        tokenizer: decodes; its end and padding tokens are used.
        input_ids: (B, T), padded on the left.
        attention_mask: (B, T), 0 on padding.
        max_new_tokens: the most tokens to add.
        beams: width of the beam search; 1 is greedy.
        sampling: draws each row's tokens instead of taking the likeliest.
    """
    processors = LogitsProcessorList([sampling] if sampling else [])
    ends = end_tokens(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=beams,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        use_cache=True,
    )
    with _own_settings_aside(model):
        sequences: Tensor = model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            logits_processor=processors,
            synced_gpus=False,  # else it would wait for processes that have other rows
        )
    return [as_generation(tokenizer, new, ends) for new in sequences[:, input_ids.shape[1] :].tolist()]


def as_generation(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: Sequence[int]) -> Generation:
    """What ``tokens`` say up to the first of ``ends``."""
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    text = str(tokenizer.decode(tokens[:end], skip_special_tokens=True))
    return Generation(text, len(tokens[:end]), "length" if end is None else "stop")


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end token and those that the model names (chat models have several)."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    own = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(token) is int for token in own):
        raise UserError(f"The base's generation_config.json names end tokens {named!r:.80}, which are no ids; mend it.")
    return sorted({tokenizer.eos_token_id, *own})


@contextmanager
def _own_settings_aside(model: PreTrainedModel) -> Iterator[None]:
    """Without this, transformers fills what a call leaves open from the settings that came with the model."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
