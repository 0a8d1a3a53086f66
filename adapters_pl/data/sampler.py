"""Which rows come when: grouping into optimizer steps, dividing rows among processes, and going on where one stopped.

Both samplers own the division among processes, so the Trainer must not add a sampler of its own
(``use_distributed_sampler=False``).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from adapters_pl.compat.lightning import isolate_rng
from adapters_pl.inputs.errors import UserError


@dataclass(frozen=True)
class Processes:
    """How several processes share the rows.

    Attributes:
        rank: which of them this is.
        count: how many there are.
        accumulate: batches of each in an optimizer step.
        limit: of batches in an epoch, as Lightning's ``limit_train_batches``.
        on_gpu: batches go to a GPU, from memory that it may read by itself.
    """

    rank: int = 0
    count: int = 1
    accumulate: int = 1
    limit: int | float = 1.0
    on_gpu: bool = False


class StepIndices(list[int]):
    """The rows of one batch, and what the loss needs to know of the optimizer step they belong to.

    Attributes:
        loss_tokens: labelled tokens of the whole step, over all processes and accumulated batches.
        empty: the rows only keep this process in step with the others; their labels do not count.
        seed: of whatever is drawn while the batch is loaded.
    """

    loss_tokens: int = 1
    empty: bool = False
    seed: int = 0


class StepSampler(Sampler[list[int]]):
    """Batches of rows in a seeded order, grouped into optimizer steps.

    One step takes the next ``batch_size * world_size * accumulate`` rows of the order and deals them out, so
    any division of the same step among processes and accumulated batches sees the same rows. A last step
    with too few rows gives some processes an empty batch rather than dropping or repeating rows. Within a step the
    longest rows come first, if ``lengths`` are given: batches then hold little padding, those of several processes
    are about as long, and the step's loss, which is divided by the labels of the whole step, stays what it is.

    Its state is how many rows of an epoch were trained on, which holds for any division: where another number
    of processes goes on in the middle of a step, the first step has the rows that are left of it.

    Args:
        label_counts: labelled tokens of every row.
        batch_size: rows in a batch.
        rank: this process.
        world_size: how many processes there are.
        accumulate: batches accumulated in one optimizer step.
        seed: the order's seed; the epoch is added to it.
        shuffle: a seeded order; the rows' own order if false.
        limit: the most batches of an epoch: a number, or a share of them (Lightning's ``limit_train_batches``).
        lengths: tokens of every row.
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
        limit: int | float | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.label_counts = list(label_counts)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.seed = seed
        self.shuffle = shuffle
        self.lengths = lengths
        self.epoch = 0
        #: Batches that an epoch has, within the limit.
        self.batches = len(self)
        if limit is not None:
            self.batches = min(len(self), limit) if isinstance(limit, int) else int(len(self) * limit)
        #: Rows of this epoch that were trained on before this sampler was made.
        self.before = 0

    @property
    def sampler(self) -> StepSampler:
        """Itself: Lightning looks for ``set_epoch`` on a batch sampler's sampler only."""
        return self

    @property
    def step_rows(self) -> int:
        """Rows in a whole step, over all processes and accumulated batches."""
        return self.batch_size * self.world_size * self.accumulate

    @property
    def rows(self) -> int:
        """Rows of an epoch: those of its batches."""
        return min(len(self.label_counts), self.batches * self.batch_size * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins; every epoch has an order of its own."""
        if epoch != self.epoch:
            self.before = 0
        self.epoch = epoch

    def state_dict(self, batches: int = 0) -> dict[str, int]:
        """Where the epoch stands after its first ``batches`` batches; of a step that is not complete, at its start."""
        rows = self.rows if batches >= self.batches else batches // self.accumulate * self.step_rows
        rows = max(self.before, rows)
        return {"epoch": self.epoch, "rows": rows, "of": len(self.label_counts), "complete": rows >= self.rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on in the epoch and after the rows that ``state`` names.

        Raises:
            UserError: the training data has other rows than it had.
        """
        if state["rows"] and state["of"] != len(self.label_counts):
            raise UserError(
                f"The checkpoint stands in the middle of {state['of']} training rows, and here are "
                f"{len(self.label_counts)}: go on with the same data and the same data options."
            )
        self.epoch, self.before = state["epoch"], state["rows"]

    def order(self) -> list[int]:
        """The rows in this epoch's order."""
        if not self.shuffle:
            return list(range(len(self.label_counts)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.label_counts), generator=generator).tolist()

    def __len__(self) -> int:
        """Batches per process and whole epoch; Lightning applies its limit to it by itself."""
        return -(-len(self.label_counts) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[StepIndices]:
        """Yield this process's batches, each with the labelled tokens of its whole step."""
        # The last step of a limited epoch counts the labels of the batches that it has.
        order, width = self.order()[: self.rows], self.batch_size * self.world_size
        if self.before >= len(order):
            return
        for start in range(self.before // self.step_rows * self.step_rows, len(order), self.step_rows):
            stop = min(start + self.step_rows, len(order))
            rows = order[max(start, self.before) : stop]
            if self.lengths is not None:
                rows.sort(key=self.lengths.__getitem__, reverse=True)
            tokens = sum(self.label_counts[row] for row in rows)
            # Rows are dealt out over the processes, in order; a step keeps its batches where rows are missing.
            for place in range(0, stop - start, width):
                batch = rows[place : place + width][self.rank :: self.world_size]
                indices = StepIndices(batch or rows[:1])
                indices.loss_tokens = max(1, tokens)
                indices.empty = not batch
                indices.seed = zlib.crc32(repr((self.seed, self.epoch, start + place, self.rank)).encode())
                yield indices


class BudgetSampler(StepSampler):
    """Batches of as many rows as fit a number of tokens, the rows of each about as long as each other.

    One step takes the next ``world_size * accumulate`` batches of a seeded order. Which rows share a batch is the same
    in every epoch and for any division, so the position in an epoch counts batches.

    Args:
        label_counts: labelled tokens of every row.
        lengths: tokens of every row.
        max_tokens: the most tokens of a batch, padding included.
        options: the arguments of :class:`StepSampler` from ``rank`` to ``limit``.

    Raises:
        UserError: the longest row alone has more tokens.
    """

    def __init__(self, label_counts: Sequence[int], lengths: Sequence[int], max_tokens: int, **options: Any) -> None:
        refuse_longer(lengths, max_tokens)
        self.groups = _groups(lengths, max_tokens)
        super().__init__([sum(label_counts[row] for row in rows) for rows in self.groups], 1, **options)

    def __iter__(self) -> Iterator[StepIndices]:
        """Yield this process's batches, each with the labelled tokens of its whole step."""
        for indices in super().__iter__():
            rows = self.groups[indices[0]]
            indices[:] = rows[:1] if indices.empty else rows
            yield indices


def refuse_longer(lengths: Sequence[int], max_tokens: int) -> None:
    """Raise ``UserError`` where a row alone has more than ``max_tokens``."""
    if (longest := max(lengths, default=0)) > max_tokens:
        raise UserError(
            f"data.max_tokens_per_batch is {max_tokens}, and the longest training row has {longest} tokens: "
            f"allow as many, or cut rows with --data.cutoff {max_tokens}."
        )


def _groups(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Which rows share a batch of at most ``max_tokens``, from the longest rows to the shortest."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


class SeededRows(Dataset[Any]):
    """Rows of which every batch is loaded with random numbers of its own.

    What is drawn then depends neither on how many processes load nor on whether training was interrupted, and
    the numbers that dropout draws do not depend on what loading draws.
    """

    def __init__(self, rows: Dataset[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Rows in all."""
        return len(self.rows)  # type: ignore[arg-type]

    def __getitems__(self, indices: StepIndices) -> list[Any]:
        """A batch's rows."""
        with isolate_rng(include_cuda=False):
            random.seed(indices.seed)
            np.random.seed(indices.seed)
            torch.default_generator.manual_seed(indices.seed)  # torch.manual_seed would seed the GPUs as well
            return self.rows.__getitems__(indices)  # type: ignore[attr-defined]


class StepLoader(DataLoader[Any]):
    """Loads the batches of a :class:`StepSampler`, from wherever it stands.

    Lightning asks for an iterator before it says which epoch begins, and loader processes begin at once; so
    here nothing is loaded before the first batch is asked for.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches that are left of the epoch."""
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Where the epoch began; see :meth:`StepSampler.state_dict`."""
        return self.batch_sampler.state_dict()  # type: ignore[union-attr]

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin elsewhere; see :meth:`StepSampler.load_state_dict`."""
        self.batch_sampler.load_state_dict(state)  # type: ignore[union-attr]


class LengthSortedSampler(Sampler[list[int]]):
    """Every row exactly once over all processes, longest first, so that batches hold little padding.

    Args:
        lengths: tokens of every row.
        batch_size: the most rows in a batch, or one more where there are too few for a batch in every process.
        rank: this process.
        world_size: how many processes there are; batch ``i`` goes to process ``i % world_size``.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        if 0 < len(order) < world_size:
            # A process without a batch would not take part in what all processes do together.
            raise UserError(
                f"{len(order)} rows to answer cannot be divided among {world_size} processes; "
                "use fewer of them (--trainer.devices 1)."
            )
        # As many batches for each, of rows that differ by one at most.
        count = -(-len(order) // (batch_size * world_size)) * world_size
        count -= world_size if count > len(order) else 0
        bounds = [len(order) * i // count for i in range(count + 1)] if count else []
        batches = [order[start:end] for start, end in pairwise(bounds)]
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of this process."""
        return iter(self.batches)
