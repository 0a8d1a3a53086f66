"""Accuracy over answers, exact across processes, and how sure one can be of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
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


def majority(predictions: Sequence[str | None]) -> str | None:
    """The answer that most samples give, the earliest of equals; samples without an answer have no vote."""
    votes = Counter(prediction for prediction in predictions if prediction is not None)
    return votes.most_common(1)[0][0] if votes else None


def mean_of_sets(accuracy: Mapping[str, float], names: Collection[str]) -> float | None:
    """The mean over the named sets, each weighing the same; ``None`` where there is none, or one is not known."""
    if not names or not all(name in accuracy for name in names):
        return None
    return sum(accuracy[name] for name in names) / len(names)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95% score interval of an accuracy (Wilson 1927; Newcombe 1998, method 3), in 0..1.

    Where all rows or none are right it still says how far the accuracy may be from that; a bootstrap, which draws from
    the same rows again, does not.
    """
    z, p = 1.959963984540054, correct / n  # z: the normal distribution's 97.5% quantile
    width = 2 * (n + z**2)
    middle, half = (2 * n * p + z**2) / width, z / width * math.sqrt(4 * n * p * (1 - p) + z**2)
    return (middle - half if correct else 0.0), (middle + half if correct < n else 1.0)


def paired_bootstrap(
    first: Sequence[bool], second: Sequence[bool], seed: int = 0, level: float = 0.95, draws: int = 10_000
) -> tuple[float, float]:
    """The percentile bootstrap interval of ``second``'s accuracy less ``first``'s, over rows drawn together.

    A row's difference is -1, 0 or 1, so a draw of rows is a multinomial count of the three.
    """
    n = len(first)
    better = sum(b and not a for a, b in zip(first, second, strict=True))
    worse = sum(a and not b for a, b in zip(first, second, strict=True))
    counts = np.random.default_rng(seed).multinomial(n, [better / n, worse / n, (n - better - worse) / n], draws)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar_exact(better: int, worse: int) -> float:
    """The two-sided p-value of McNemar's exact test (1947): whether rows that changed went both ways alike.

    Args:
        better: rows that only the second is right on.
        worse: rows that only the first is right on.
    """
    n, k = better + worse, min(better, worse)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n)


#: The 97.5% quantiles of Student's t for 1 to 30 degrees of freedom (Abramowitz and Stegun 1964, table 26.10).
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean of at least one value, and its 95% interval by Student's t; no interval of a single value."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, None, None
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = spread * (_T[n - 2] if n - 2 < len(_T) else 1.96)
    return mean, mean - half, mean + half
