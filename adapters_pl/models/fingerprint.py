"""What a base is known by, wherever it lies and in whatever number type it is loaded."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from adapters_pl.models.placement import linear_sizes
from adapters_pl.models.quantisation import is_quantised, short_name
from adapters_pl.models.slots import base_modules

#: Values that a fingerprint holds of the embedding, and of every weight.
_SAMPLED, _SAMPLED_EACH = 64, 8


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """What tells one base from another, whatever its path, dtype or quantisation.

    ``structure`` is a hash over the model type and the logical shapes of its modules. ``weights`` holds some values of
    every module's weight in full precision, quantised ones left out, and ``dtype`` the number type they have.
    ``sample``, some rounded values of the input embedding, is all that checkpoints of format 1 have. On the meta device
    there are no values.
    """
    digest = hashlib.sha256(model.config.model_type.encode())
    wrappers = [path for path, module in model.named_modules() if hasattr(module, "base_layer")]
    samples: dict[str, torch.Tensor] = {}
    for path, module in base_modules(model):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor):
            continue
        if owner := next((wrapper for wrapper in wrappers if f"{path}.".startswith(f"{wrapper}.")), None):
            # peft's layers keep the module they replace in themselves.
            if path != f"{owner}.base_layer":
                continue
            path = owner
        digest.update(f"{path}:{linear_sizes(module) or tuple(weight.shape)};".encode())
        if not (weight.is_meta or is_quantised(module)) and weight.is_floating_point():
            samples[path] = _some_values(weight, _SAMPLED_EACH)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Module)
    table: Any = embedding.weight
    known = [] if table.is_meta else _some_values(table, _SAMPLED).tolist()
    return {
        "structure": digest.hexdigest(),
        "dtype": short_name(model.dtype),
        "weights": {path: values.tolist() for path, values in samples.items()},
        "sample": [round(value, 6) for value in known],
    }


def _some_values(weight: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` values of ``weight`` in float32, from evenly spaced places; all where there are fewer."""
    flat = weight.detach().flatten()
    places = torch.linspace(0, flat.numel() - 1, min(count, flat.numel()), dtype=torch.float64).long()
    return flat[places.to(flat.device)].float()


def same_base(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two fingerprints are of one base.

    The values that both hold are equal but for how bfloat16 or float16 rounds them, in which a base may be stored or
    loaded. A fingerprint of format 1 has the embedding's rounded values alone.
    """
    if one["structure"] != other["structure"]:
        return False
    if "weights" in one and "weights" in other:
        both = one["weights"].keys() & other["weights"].keys()
        a, b = (torch.tensor([v for path in sorted(both) for v in each["weights"][path]]) for each in (one, other))
        if a.shape != b.shape:
            return False
        if any(torch.equal(a.to(coarse), b.to(coarse)) for coarse in (torch.bfloat16, torch.float16)):
            return True
        # What was rounded to float16 first need not be rounded to the same bfloat16. They round by at most 2**-12 and
        # 2**-9, and float16 by an absolute 2**-25 below its normal range.
        return "float16" in (one["dtype"], other["dtype"]) and torch.allclose(a, b, rtol=2**-8, atol=2**-24)
    if not one["sample"] or not other["sample"]:
        return True
    a, b = torch.tensor(one["sample"]), torch.tensor(other["sample"])
    if a.shape != b.shape or not a.isfinite().all():
        return False
    return bool(torch.allclose(a, b, rtol=1e-2, atol=1e-4 * float(a.abs().max()) + 1e-6))
