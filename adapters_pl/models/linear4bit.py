"""A 4-bit linear layer that is right on a CPU whatever its input size; imported only where bitsandbytes is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear


def dequantised(layer: Any) -> Tensor:
    """The weight that a 4-bit layer multiplies by, (out_features, in_features), float32."""
    state = copy.copy(layer.weight.quant_state)
    # As in a float32 forward pass, whatever dtype was quantised; one row, since blocks run on from row to row.
    state.dtype, state.shape = torch.float32, (1, layer.out_features * layer.in_features)
    return dequantize_4bit(layer.weight.data, state).view(layer.out_features, layer.in_features)


class _Product(Function):
    """``x W^T`` with W dequantised for the moment, in the backward pass again, so that it is never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Linear4bit) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        ctx.layer = layer
        return linear(x, dequantised(layer).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """(..., out_features) -> (..., in_features); the weight is frozen."""
        return grads[0] @ dequantised(ctx.layer).to(grads[0].dtype), None


class AnySizeLinear4bit(Linear4bit):
    """bitsandbytes' layer, for input sizes that are no multiple of its block.

    Its blocks of weights (64, each with a scale) run on from row to row, but its kernel for CPUs begins one with every
    row (seen in 0.50.2), so that rows of such sizes are multiplied by the scales of other weights. On other devices
    this layer is bitsandbytes' own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the input's dtype."""
        if x.device.type != "cpu":
            return super().forward(x)
        out = _Product.apply(x.to(self.compute_dtype or x.dtype), self)
        return (out if self.bias is None else out + self.bias.to(out.dtype)).to(x.dtype)
