"""Accuracy over answers, exact across processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class AnswerAccuracy(Metric):
    """The share of right answers, and how many there were.

    Counts are summed over processes as integers, so the result is exact however rows were divided.
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", default=torch.tensor(0, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, correct: list[bool]) -> None:
        """Count one batch of judged answers."""
        self.correct += sum(correct)
        self.total += len(correct)

    def compute(self) -> Tensor:
        """Right answers over all answers, in 0..1; not a number when there were none."""
        return self.correct.double() / self.total
