"""peft's methods on quantised bases: which of them are right there, and how they are merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters_pl.inputs.errors import UserError
from adapters_pl.models.placement import linear_sizes
from adapters_pl.models.quantisation import dequantise, is_quantised

#: The methods that compute the same on a quantised base and on the plain one it stands for, measured in both widths
#: with peft 0.21.2. Others take the packed weights for the weights, some of them without a word (HRA, DEFT, PEANUT).
RIGHT_WHEN_QUANTISED = (
    "ADALORA",
    "BEFT",
    "BOFT",
    "C3A",
    "FOURIERFT",
    "GRALORA",
    "IA3",
    "LILY",
    "LN_TUNING",
    "LORA",
    "MISS",
    "OFT",
    "PVERA",
    "RANDLORA",
    "ROAD",
    "TRAINABLE_TOKENS",
    "VBLORA",
    "VERA",
    "WAVEFT",
)


def refuse_unknown(kind: str, config: Any, model: nn.Module) -> None:
    """Raise ``UserError`` where ``model`` is quantised and the method is not known to be right there."""
    if not any(is_quantised(module) for module in model.modules()):
        return
    if kind not in RIGHT_WHEN_QUANTISED:
        raise UserError(
            f"PEFTAdapter: {kind} is not known to work on a quantised base; leave out --model.quantization, "
            f"or take one of {', '.join(RIGHT_WHEN_QUANTISED)}."
        )
    if getattr(config, "use_dora", False):
        # Its norms come from bitsandbytes' kernels, which are wrong on a CPU (see AnySizeLinear4bit).
        raise UserError("PEFTAdapter: peft's DoRA is not right on every quantised base; use LoRA with dora.")


def fold(layer: Any, dtype: torch.dtype) -> Callable[[], None]:
    """Give the linear layer inside one of peft's the weight and bias that both compute together; returns the undo.

    peft's own merge quantises the sum again. What its layer computes is affine in the input, so the rows of the
    identity give the weight and zero gives the bias. A quantised layer becomes a plain one in ``dtype``.

    Raises:
        UserError: it is not affine, or its shift has no bias to go into.
    """
    inner = layer.get_base_layer()
    if (sizes := linear_sizes(inner)) is None:
        raise UserError(f"{type(inner).__name__} is no linear layer.")
    modes = {module: module.training for module in layer.modules()}
    restore = dequantise(inner, torch.float32) if is_quantised(inner) else None
    before = [(parameter, parameter.data) for parameter in inner.parameters(recurse=False)]
    dtypes = [dtype if restore else values.dtype for _, values in before]

    def undo() -> None:
        for parameter, values in before:
            parameter.data = values
        if restore:
            restore()

    try:
        for parameter, values in before:
            parameter.data = values.float()
        layer.eval()
        unit = torch.eye(sizes[0], device=inner.weight.device)
        shift: Tensor = layer(torch.zeros_like(unit[:1]))
        rows: Tensor = layer(unit) - shift
        probe = torch.linspace(-1, 1, sizes[0], device=unit.device)[None]
        if not torch.allclose(layer(probe), probe @ rows + shift, rtol=1e-3, atol=1e-3):
            raise UserError("what it computes is not linear.")
        if inner.bias is None and shift.any():
            raise UserError("it shifts what a module without a bias returns.")
    except UserError:
        undo()
        raise
    finally:
        for module, training in modes.items():
            module.training = training
    inner.weight.data = (rows if isinstance(inner, Conv1D) else rows.T).contiguous()
    if inner.bias is not None:
        inner.bias.data = shift[0]
    for (parameter, _), target in zip(before, dtypes, strict=True):
        parameter.data = parameter.data.to(target)
    return undo
