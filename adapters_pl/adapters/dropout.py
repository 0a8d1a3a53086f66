"""Dropout for adapter branches that costs little beside small matrix products."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function


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
        if not self.training or not 0 < self.p <= self.SPARSE or x.device.type not in ("cpu", "meta"):
            return nn.functional.dropout(x, self.p, self.training)
        return _ZeroedAndScaled.apply(x, draw_positions(x.numel(), self.p).to(x.device), 1 / (1 - self.p))


def draw_positions(count: int, p: float) -> Tensor:
    """The sorted positions of the successes in ``count`` independent trials of probability ``p``: (about count * p,).

    The numbers come from torch's default generator.
    """
    parts, reached = [], 0
    while reached < count:
        # Five standard deviations more than expected, so that a second round is rare.
        expected = (count - reached) * p
        size = int(expected + 5 * math.sqrt(expected)) + 8
        # The whole part of an exponential variable with this rate is the number of failures before a success.
        failures = torch.empty(size).exponential_(-math.log1p(-p)).long()
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
