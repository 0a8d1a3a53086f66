"""Schedules that torch lacks."""

from __future__ import annotations


class LinearWarmup:
    """The factor on the learning rate: up to 1 in ``warmup`` steps, then linearly down to 0 at ``total``."""

    def __init__(self, warmup: int, total: int) -> None:
        self.warmup = warmup
        self.total = total

    def __call__(self, step: int) -> float:
        """The factor at ``step``; the first step of a warm-up already moves."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return max(0.0, (self.total - step) / max(1, self.total - self.warmup))
