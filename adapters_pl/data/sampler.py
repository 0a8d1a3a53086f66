"""Which rows come when: grouping into optimizer steps, and dividing rows among processes.

Both samplers own the division among processes, so the Trainer must not add a sampler of its own
(``use_distributed_sampler=False``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class StepIndices(list[int]):
    """The rows of one batch, and what the loss needs to know of the optimizer step they belong to.

    Attributes:
        loss_tokens: labelled tokens of the whole step, over all processes and accumulated batches.
        empty: the rows only keep this process in step with the others; their labels do not count.
    """

    loss_tokens: int = 1
    empty: bool = False


class StepSampler(Sampler[list[int]]):
    """Batches of rows in a seeded order, grouped into optimizer steps.

    One step takes the next ``batch_size * world_size * accumulate`` rows of the order and deals them out, so
    any division of the same step among processes and accumulated batches sees the same rows. A last step
    with too few rows gives some processes an empty batch rather than dropping or repeating rows.

    Args:
        label_counts: labelled tokens of every row.
        batch_size: rows in a batch.
        rank: this process.
        world_size: how many processes there are.
        accumulate: batches accumulated in one optimizer step.
        seed: the order's seed; the epoch is added to it.
        shuffle: a seeded order; the rows' own order if false.
    """

    def __init__(
        self,
        label_counts: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.label_counts = list(label_counts)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins; every epoch has an order of its own."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """The rows in this epoch's order."""
        if not self.shuffle:
            return list(range(len(self.label_counts)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.label_counts), generator=generator).tolist()

    def __len__(self) -> int:
        """Batches per process and epoch."""
        return sum(len(self._batches(rows)) for rows in self._steps(list(range(len(self.label_counts)))))

    def _steps(self, order: list[int]) -> list[list[int]]:
        size = self.batch_size * self.world_size * self.accumulate
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _batches(self, rows: list[int]) -> list[list[int]]:
        """The process's own batches of one step: rows are dealt out over the processes, in order."""
        width = self.batch_size * self.world_size
        rounds = [rows[i : i + width] for i in range(0, len(rows), width)]
        return [group[self.rank :: self.world_size] for group in rounds]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's batches, each with the labelled tokens of its whole step."""
        for rows in self._steps(self.order()):
            tokens = sum(self.label_counts[row] for row in rows)
            for batch in self._batches(rows):
                indices = StepIndices(batch or rows[:1])
                indices.loss_tokens = max(1, tokens)
                indices.empty = not batch
                yield indices


class LengthSortedSampler(Sampler[list[int]]):
    """Every row exactly once over all processes, longest first, so that batches hold little padding.

    Args:
        lengths: tokens of every row.
        batch_size: rows in a batch.
        rank: this process.
        world_size: how many processes there are; batch ``i`` goes to process ``i % world_size``.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of this process."""
        return iter(self.batches)
