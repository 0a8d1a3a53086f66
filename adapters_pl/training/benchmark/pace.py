"""At what pace an arm of a benchmark goes: what it is given, and how its steps are timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from adapters_pl.adapters import Adapter
from adapters_pl.data import ReasoningDataModule
from adapters_pl.training.adapter_files import SavedAdapters
from adapters_pl.training.hardware import peak_memory
from adapters_pl.training.module import CausalLMModule


@dataclass
class Job:
    """What an arm trains, or answers with.

    Attributes:
        module: with its base not loaded yet.
        data: the rows.
        adapters: what is trained; not attached yet.
        trainer: the configuration's section ``trainer``.
        steps: optimizer steps in all, for the schedule of the learning rate.
        seed: of initial values and dropout.
        saved: adapters that answer, instead of new ones.
    """

    module: CausalLMModule
    data: ReasoningDataModule
    adapters: list[Adapter]
    trainer: Mapping[str, Any]
    steps: int
    seed: int
    saved: SavedAdapters | None = None

    @property
    def accumulate(self) -> int:
        """Batches in one optimizer step."""
        return self.trainer.get("accumulate_grad_batches") or 1

    @property
    def device(self) -> torch.device:
        """The one device that is measured."""
        accelerator = self.trainer.get("accelerator") or "auto"
        return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass
class StepTime:
    """One optimizer step.

    Attributes:
        seconds: from the end of the step before to its own end.
        tokens: real ones, without padding.
        computed: with padding.
        loss: mean over the labelled tokens of the step.
        parts: seconds of ``data``, ``forward``, ``backward`` and ``optimizer``, where they can be told apart.
    """

    seconds: float
    tokens: int
    computed: int
    loss: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class AnswerTime:
    """One time that all rows were answered.

    Attributes:
        seconds: for all of them.
        rows: how many.
        tokens: that were written; 0 where options were scored.
        answers: what was answered, row by row: a text, or the likeliest option.
    """

    seconds: float
    rows: int
    tokens: int
    answers: list[str]


class Finished(Exception):
    """The measuring process wants no more steps."""


class Pace:
    """Lets a loop take as many steps as are asked for, waits in between, and keeps the times."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = 0
        self._steps: list[StepTime | AnswerTime] = []
        self._begin = 0.0
        self._losses: list[Tensor] = []
        self._masks: list[Tensor] = []
        self._parts: dict[str, float] = {}
        self._last = 0.0

    def batch(self, mask: Tensor, loss: Tensor) -> None:
        """Note a batch (B, T) of the step, and its share of the step's loss."""
        self._masks.append(mask)
        self._losses.append(loss.detach())

    def part(self, name: str) -> None:
        """Count the time since the last call as ``name``."""
        now = perf_counter()
        self._parts[name] = self._parts.get(name, 0.0) + now - self._last
        self._last = now

    def end_step(self) -> None:
        """Note the time of a step, and wait if it was the last one that was asked for."""
        _synchronise()
        seconds = perf_counter() - self._begin
        tokens, computed = sum(int(mask.sum()) for mask in self._masks), sum(mask.numel() for mask in self._masks)
        loss = float(sum(float(loss) for loss in self._losses))
        self._note(StepTime(seconds, tokens, computed, loss, self._parts))

    def end_answers(self, tokens: int, answers: list[str]) -> None:
        """Note that all rows were answered, and wait if it was the last time that was asked for."""
        _synchronise()
        self._note(AnswerTime(perf_counter() - self._begin, len(answers), tokens, answers))

    def _note(self, step: StepTime | AnswerTime) -> None:
        self._steps.append(step)
        self._left -= 1
        self.wait()

    def wait(self) -> None:
        """Wait until steps are asked for, unless some are left; raises :class:`Finished` if no more will be."""
        if self._left == 0:
            self._connection.send((self._steps, peak_memory()))
            wanted = self._connection.recv()
            if wanted is None:
                raise Finished
            self._left, self._steps = wanted, []
        self._losses, self._masks, self._parts = [], [], {}
        self._begin = self._last = perf_counter()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
