"""Prompts that begin alike, and what a model answers to each of them when it is asked alone."""

from __future__ import annotations

import torch
from transformers import GenerationConfig

from adapters_pl.data.tokens import left_pad
from adapters_pl.evaluation.engine import Decoding, TransformersEngine
from adapters_pl.evaluation.generation import SeededSampling, generate
from tests.conftest import tiny_model


def prompts(count=12, head=10):
    """So many that share a head, of different lengths; some are equal, and one is the beginning of another."""
    generator = torch.Generator().manual_seed(4)

    def tokens(length):
        return torch.randint(3, 300, (length,), generator=generator).tolist()

    begins = [1, *tokens(head - 1)]
    lengths = torch.randint(1, 16, (count,), generator=generator).tolist()
    rows = [begins + tokens(length) for length in lengths]
    rows[3] = rows[7] = rows[1]
    rows[5] = [*rows[2], *tokens(2)]
    return rows


def talkative(name, **changes):
    """A tiny model that writes different tokens: with one table for input and output it would repeat the last one."""
    return tiny_model(name, tie_word_embeddings=False, **changes)


def let_some_end(model, rows, limit):
    """Give the model end tokens that end some answers within ``limit`` tokens, and leave others as long as that."""
    model.generation_config = GenerationConfig(pad_token_id=0)
    ids, mask = left_pad(rows, 0)
    texts = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)
    texts = texts[:, ids.shape[1] :].tolist()
    ends = {2}
    for place, text in enumerate(texts):
        token = text[(2 * place + 1) % limit]
        if sum(ends.isdisjoint(other) and token not in other for other in texts) >= len(texts) // 3:
            ends.add(token)
    model.generation_config.eos_token_id = sorted(ends)


def alone(model, tokenizer, rows, limit, seeds=None, temperature=1.0, beams=1):
    """What transformers' own ``generate`` answers to each row in a batch of one."""
    found = {}
    for place, row in enumerate(rows):
        key = (*row, seeds and seeds[place])
        if key not in found:
            ids = torch.tensor([row])
            sampling = SeededSampling([seeds[place]], temperature) if seeds else None
            (found[key],) = generate(model, tokenizer, ids, torch.ones_like(ids), limit, beams, sampling)
    return [found[(*row, seeds and seeds[place])] for place, row in enumerate(rows)]


def answered(model, tokenizer, rows, limit, size, seeds=None, temperature=1.0, **how):
    """What the engine answers to the rows, in their order; each of them once."""
    engine = TransformersEngine(model, tokenizer, size)
    decoding = Decoding(limit, temperature=temperature if seeds else 0.0, **how)
    found = list(engine.generate(rows, decoding, seeds))
    assert sorted(place for place, _ in found) == list(range(len(rows)))
    return [written for _, written in sorted(found, key=lambda pair: pair[0])]
