"""What ends training early, decided by all processes together: numbers that are none, a full disk, a signal."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from adapters_pl.compat.lightning import cluster_environment
from adapters_pl.data.tokens import IGNORE
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.terminal import ENDING, let_go_of_closed_streams
from adapters_pl.runs.run import Run
from adapters_pl.training.strategies import local_value

#: More rows than this are counted and not named.
_NAMED = 32


class Stop(IntEnum):
    """How training is asked to end; of what several processes were asked, the largest counts."""

    NO = 0
    SAVED = 1
    REQUEUED = 2


@dataclass
class _Verdict:
    """What is known of a step, on its way from the device: ``values`` are its losses and its gradient's norm."""

    step: int
    batches: list[dict[str, Any]]
    values: Tensor
    flags: Tensor
    arrived: torch.cuda.Event | None


class Guards(Callback):
    """Looks, after every optimizer step, at whether training may go on.

    **A loss or gradient that is not finite** stops it with the step, the rows and the last good checkpoint; the
    parameters that come of it are never saved. Under ``16-mixed`` only losses count: the gradient scaler skips
    steps whose gradients overflow, and means to.

    **A checkpoint that could not be written** stops it. **A signal** (Ctrl-C, SIGTERM, SIGHUP where the terminal is
    closed, but not under ``nohup``, or the one by which SLURM says that the time is up) sets ``stopping`` for whoever
    saves the last checkpoint; a Ctrl-C after it interrupts at once.

    The cost of a step: one more pass over the adapters' gradients for their norm, and where there are several
    processes an all-reduce of three numbers. On a GPU nothing waits for either: the result is copied while the next
    step computes, and looked at after that step, or before anything is saved.

    Args:
        run: whose ``last.ckpt`` is the last good checkpoint.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        #: How this process was asked to end training.
        self.requested = Stop.NO
        #: How all processes know that training ends after this step.
        self.stopping = Stop.NO
        self._requeue_signal: int | None = None
        self._batches: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._norm: Tensor | None = None
        self._pending: _Verdict | None = None

    # ---- signals

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning from answering SLURM's signal, by saving wherever the signal finds it."""
        environment = cluster_environment(trainer)
        if stage == "fit" and isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            environment.auto_requeue = False
            self._requeue_signal = environment.requeue_signal or signal.SIGUSR1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals that end a process; Lightning gives all signals back in the end."""
        self.requested = self.stopping = Stop.NO
        self._batches, self._losses, self._norm, self._pending = [], [], None, None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *ENDING, self._requeue_signal):
                to_be_ignored = number in ENDING and signal.getsignal(number) is signal.SIG_IGN
                if number is not None and not to_be_ignored:
                    signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        let_go_of_closed_streams()
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = max(self.requested, Stop.REQUEUED if number == self._requeue_signal else Stop.SAVED)

    # ---- losses and gradients

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach().float())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradient before it is clipped."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            self._norm = torch.zeros((), device=trainer.strategy.root_device)
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._norm = get_total_norm([local_value(p.grad) for p in parameters if p.grad is not None]).float()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Judge the step that has just been taken, if one was."""
        if self._norm is None:
            return
        device = trainer.strategy.root_device
        values = torch.stack([value.to(device, non_blocking=True) for value in (*self._losses, self._norm)])
        broken = ~values.isfinite().all()
        if trainer.world_size > 1:
            flags = torch.tensor([0, self.requested, _failure(trainer) is not None], dtype=torch.int32)
            flags = flags.to(device, non_blocking=True)
            flags[0] = broken
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        else:
            flags = broken.reshape(1)
            self.stopping = self.requested
        before, self._pending = (
            self._pending,
            _Verdict(trainer.global_step, self._batches, _on_host(values), _on_host(flags), _event(device)),
        )
        self._batches, self._losses, self._norm = [], [], None
        self._settle(trainer, before if device.type == "cuda" else self._pending)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save nothing that is broken; called by every process."""
        self._settle(trainer, self._pending)
        values = [
            local_value(v) for v in checkpoint["state_dict"].values() if isinstance(v, Tensor) and v.is_floating_point()
        ]
        broken = not all(bool(value.isfinite().all()) for value in values)
        if trainer.strategy.reduce_boolean_decision(broken, all=False):
            raise UserError(
                f"Step {trainer.global_step}: the adapters' parameters are no longer finite, though the losses and "
                f"gradients were. {self._kept()}"
            )

    def settle(self, trainer: Trainer) -> None:
        """Look at the last step, and at whether the last checkpoint was written; called by every process.

        Raises:
            UserError: training has to end here.
        """
        self._settle(trainer, self._pending)
        if trainer.strategy.reduce_boolean_decision(_failure(trainer) is not None, all=False):
            raise UserError(trainer.strategy.broadcast(_failure(trainer)))

    def _settle(self, trainer: Trainer, verdict: _Verdict | None) -> None:
        if verdict is None:
            return
        if verdict is self._pending:
            self._pending = None
        if verdict.arrived is not None:
            verdict.arrived.synchronize()
        broken, requested, full = (*verdict.flags.tolist(), 0, 0)[:3]
        if broken:
            raise UserError(self._describe(trainer, verdict))
        if full:
            raise UserError(trainer.strategy.broadcast(_failure(trainer)))
        self.stopping = Stop(max(self.stopping, requested))

    def _describe(self, trainer: Trainer, verdict: _Verdict) -> str:
        """What is wrong with a step, in the words of the processes that found it."""
        *losses, _ = finite = verdict.values.isfinite().tolist()
        guilty = [batch for batch, fine in zip(verdict.batches, losses, strict=True) if not fine]
        found: Any = (bool(guilty), _rows(guilty or verdict.batches)) if not all(finite) else None
        parts = [found]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, found)
        known = [part for part in parts if part is not None]
        by_loss = any(loss for loss, _ in known)
        rows = sorted({row for loss, numbers in known if loss == by_loss for row in numbers})
        named = ", ".join(map(str, rows[:_NAMED])) + (f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else "")
        what = "loss" if by_loss else "gradient"
        return (
            f"Step {verdict.step}: the {what} is not finite; it comes of the training rows {named} (counted from 0). "
            f"{self._kept()}"
        )

    def _kept(self) -> str:
        last = self.run.checkpoints / "last.ckpt"
        if not last.exists():
            return "No checkpoint had been written yet.\nLook at the rows, or try a smaller --model.lr."
        return (
            f"The last good checkpoint is {last}.\n"
            "Look at the rows, or go on from there with a smaller rate: "
            f"adapters-pl fit --ckpt_path {self.run.ckpt_path} --model.lr ..."
        )


def _rows(batches: list[dict[str, Any]]) -> list[int]:
    """The numbers of the rows that count: a batch without labels only kept its process in step."""
    return [row for batch in batches if (batch["labels"] != IGNORE).any() for row in batch["row_ids"].tolist()]


def _failure(trainer: Trainer) -> str | None:
    """Why this process could not write a checkpoint, if it could not."""
    return getattr(trainer.strategy.checkpoint_io, "failure", None)


def _on_host(value: Tensor) -> Tensor:
    """``value`` in host memory; from a GPU it is still on its way."""
    if value.device.type != "cuda":
        return value.cpu()
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)


def _event(device: torch.device) -> torch.cuda.Event | None:
    """An event after everything that the device was given so far."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
