"""Every built-in adapter method, values for its parameters, and what a model with it answers."""

from __future__ import annotations

from functools import cache

import torch

from adapters_pl import IA3, LoRA, ParallelAdapter, PrefixTuning, PromptTuning, PTuning, SeriesAdapter
from tests.conftest import tiny_model


def with_biases(name, **changes):
    """A model whose biases and norms count; a new one has biases of zero."""
    model = tiny_model(name, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


untouched = cache(with_biases)  # one of each architecture, for tests that compare with it and never change it

METHODS = {
    "lora": lambda **kw: LoRA(rank=4, alpha=8, dropout=0.3, **kw),
    "lora-attn": lambda **kw: LoRA(rank=4, alpha=16, placement="attn", **kw),
    "lora-mlp": lambda **kw: LoRA(rank=4, alpha=16, placement="mlp", **kw),
    "lora-rslora": lambda **kw: LoRA(rank=4, alpha=4, rslora=True, **kw),
    "lora-dora": lambda **kw: LoRA(rank=4, alpha=8, dora=True, **kw),
    "lora-patterns": lambda **kw: LoRA(rank=4, rank_pattern={".*v.*": 2}, alpha_pattern={".*o.*": 3}, **kw),
    "lora-pissa": lambda **kw: LoRA(rank=4, alpha=8, dropout=0.3, init="pissa", **kw),
    "lora-olora-bias": lambda **kw: LoRA(rank=4, alpha=8, init="olora", bias="lora_only", **kw),
    "lora-bias-all-dora": lambda **kw: LoRA(rank=4, alpha=8, bias="all", dora=True, **kw),
    "lora-parts": lambda **kw: LoRA(rank=4, alpha=8, parts=["q", "v"], **kw),
    "lora-parts-all": lambda **kw: LoRA(
        rank=4, parts=["v"], dora=True, init="pissa", bias="all", placement="attn", **kw
    ),
    "series": lambda **kw: SeriesAdapter(8, **kw),
    "series-houlsby": lambda **kw: SeriesAdapter(reduction_factor=4, placement="both", non_linearity="relu", **kw),
    "series-linear": lambda **kw: SeriesAdapter(8, family="linear", placement="both", **kw),
    "parallel": lambda **kw: ParallelAdapter(8, scaling=4.0, **kw),
    "parallel-both": lambda **kw: ParallelAdapter(8, placement="both", scaling="learned", layer_norm=True, **kw),
    "parallel-linear": lambda **kw: ParallelAdapter(8, family="linear", placement="attn", **kw),
    "ia3": lambda **kw: IA3(**kw),
    "lora-all-linear": lambda **kw: LoRA(rank=4, alpha=8, target_modules="all-linear", **kw),
    "prefix": lambda **kw: PrefixTuning(5, **kw),
    "prefix-projection": lambda **kw: PrefixTuning(5, projection=12, **kw),
    "prompt": lambda **kw: PromptTuning(5, **kw),
    "prompt-random": lambda **kw: PromptTuning(5, init="random", **kw),
    "ptuning": lambda **kw: PTuning(5, encoder_hidden=12, **kw),
    "ptuning-lstm": lambda **kw: PTuning(5, encoder="lstm", encoder_hidden=12, **kw),
}


def perturb(model, adapter):
    """Give every parameter of the adapter a value, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def from_weight(adapter):
    """Whether the adapter begins as a part of the base's weights."""
    return isinstance(adapter, LoRA) and adapter.init in ("pissa", "olora")


def tokens(rows=3, length=9):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 300, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        ids[row, : 2 * row] = 0
        mask[row, : 2 * row] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model, batch=None):
    batch = batch or tokens()
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]
