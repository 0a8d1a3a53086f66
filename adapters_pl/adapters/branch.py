"""What a branch beside a frozen module is computed with: dropout, and two products that leave nothing to be kept twice.

A branch computes in the dtype of what the module returns, with parameters that are float32: they are cast, which is
little work, and not the activations.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Dropout(nn.Dropout):
    """Zeroes each element with probability ``p`` in training and divides the others by ``1 - p``: (...) -> (...).

    On a CPU a mask costs about as much as the product with a frozen weight: one random number an element. Where ``p``
    is at most ``SPARSE`` the positions of the zeros are drawn instead, by the gaps between them, which are
    geometrically distributed. That takes ``p`` numbers an element, and keeps ``8 p`` bytes an element for the backward
    pass instead of four. The distribution is the same: independent zeros, each with probability ``p``. Elsewhere it is
    ``nn.Dropout``.
    """

    #: Up to here drawing positions is quicker than drawing a mask.
    SPARSE: ClassVar[float] = 0.25

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself in evaluation mode."""
        if not self._by_positions(x):
            return nn.functional.dropout(x, self.p, self.training)
        return _ZeroedAndScaled.apply(x, draw_positions(x.numel(), self.p).to(x.device), 1 / (1 - self.p))

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """``forward(x) @ weight.T``: (..., in_features), (out_features, in_features) -> (..., out_features).

        Both have one dtype. What is scaled is the product, which is smaller than ``x`` where a branch begins.
        """
        if not self._by_positions(x):
            return nn.functional.linear(self(x), weight)
        return _ZeroedProduct.apply(x, weight, draw_positions(x.numel(), self.p).to(x.device), 1 / (1 - self.p))

    def _by_positions(self, x: Tensor) -> bool:
        # The number of positions is not known beforehand, and a compiled graph would end there.
        compiling = torch.compiler.is_compiling()
        return self.training and 0 < self.p <= self.SPARSE and x.device.type in ("cpu", "meta") and not compiling


class SharedInput:
    """Branches that read the same tensor: it is dropped out and multiplied once for all of them.

    A tensor is known by its identity. A branch that reads another one after all has a product of its own.
    """

    def __init__(self) -> None:
        self._read: Callable[[], Tensor | None] = lambda: None
        self._waiting: dict[int, Tensor] = {}

    def product(self, x: Tensor, number: int, compute: Callable[[], Sequence[Tensor | None]]) -> Tensor:
        """The product for branch ``number``.

        Args:
            x: what the branch reads.
            number: of the branch.
            compute: the products of all branches by their numbers; ``None`` for one that will not ask.
        """
        if self._read() is not x or number not in self._waiting:
            self._waiting = {i: found for i, found in enumerate(compute()) if found is not None}
            self._read = weakref.ref(x)
        return self._waiting.pop(number)


def plus_product(y: Tensor, hidden: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """``y + scale * hidden @ weight.T`` in one pass over the output.

    Args:
        y: (..., out_features).
        hidden: (..., size), in the dtype of ``y``.
        weight: (out_features, size), in the dtype of ``y``.
        scale: multiplies the product.
    """
    out = torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), weight.T, alpha=scale)
    return out.view(y.shape).to(y.dtype)  # autocast may have chosen another


def draw_positions(count: int, p: float) -> Tensor:
    """The sorted positions of the successes in ``count`` independent trials of probability ``p``: (about count * p,).

    The numbers come from torch's default generator.
    """
    parts, reached = [], 0
    while reached < count:
        # Five standard deviations more than expected, so that a second round is rare.
        expected = (count - reached) * p
        size = int(expected + 5 * math.sqrt(expected)) + 8
        # The whole part of an exponential variable with this rate is the number of failures before a success. By the
        # logarithm of a uniform one it is drawn in a third of the time that ``exponential_`` takes.
        failures = torch.rand(size).neg_().add_(1).log2_().mul_(1 / math.log2(1 - p)).long()
        parts.append(reached - 1 + (failures + 1).cumsum(0))
        reached = int(parts[-1][-1]) + 1
    positions = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
    return positions[: int(torch.searchsorted(positions, count))].clone()  # a view would keep what is beyond


class _ZeroedAndScaled(Function):
    """``scale * x`` with zeros at flat ``positions``; keeps the positions alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.scale = scale
        out = x.contiguous() * scale
        out.view(-1).index_fill_(0, positions, 0)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _ZeroedAndScaled.apply(grads[0], *ctx.saved_tensors, ctx.scale), None, None


class _ZeroedProduct(Function):
    """``scale * z @ weight.T`` with z being ``x`` with zeros at flat ``positions``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, positions: Tensor, scale: float) -> Tensor:
        zeroed = x.flatten(0, -2).clone(memory_format=torch.contiguous_format)
        zeroed.view(-1).index_fill_(0, positions, 0)
        # What leads to no parameter needs no derivative, and keeps no positions for it.
        ctx.save_for_backward(zeroed, weight, positions if ctx.needs_input_grad[0] else None)
        ctx.scale = scale
        with torch.autocast("cpu", enabled=False):  # the inputs have the dtype that is meant
            return (zeroed @ weight.T).mul_(scale).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        zeroed, weight, positions = ctx.saved_tensors
        grad = grads[0].flatten(0, -2) * ctx.scale
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = grad @ weight
            for_x.view(-1).index_fill_(0, positions, 0)
            for_x = for_x.view(*grads[0].shape[:-1], weight.shape[1])
        if ctx.needs_input_grad[1]:
            for_weight = grad.T @ zeroed
        return for_x, for_weight, None, None
