"""``last.ckpt``: when it is written, and how training ends when it is asked to."""

from __future__ import annotations

import subprocess
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from adapters_pl.compat.lightning import validate_now
from adapters_pl.runs.at_once import sweep
from adapters_pl.runs.run import Run, slurm_job
from adapters_pl.training.guards import Guards, Stop


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` every so many optimizer steps, after every epoch, at the end, and when training is stopped.

    What training ends with is validated after that, if it was not.

    It is written between two steps: after everything that belongs to the one, logging and validation included, and
    before the other's first batch. When ``guards`` say that a signal came, training ends there, or at once if a
    validation is under way, which is then done again; a job that SLURM sent the signal to is put back into its
    queue.

    Args:
        run: in whose ``checkpoints`` it lies.
        guards: which of the signals that came all processes know of.
        every: optimizer steps.
    """

    def __init__(self, run: Run, guards: Guards, every: int) -> None:
        self.run = run
        self.guards = guards
        self.every = every
        self._saved = 0
        self._validated = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed process left half written; what training begins with needs no saving."""
        if trainer.is_global_zero:
            with self.run.writing("checkpoints"):
                sweep(self.run.checkpoints)
        self._saved = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save if it is time, and end if that was asked for."""
        if batch_idx == 0 or trainer.global_step % self.every == 0 or self.guards.stopping:
            self._save(trainer)
        if self.guards.stopping:
            self._stop(trainer, self.guards.stopping)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """End within a validation; several processes may have different numbers of batches, and end after it."""
        if self.guards.requested and trainer.world_size == 1 and trainer.state.fn == "fit":
            self._save(trainer)
            self._stop(trainer, self.guards.requested)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what training ends with, and validate it unless that was done."""
        self._save(trainer)
        self.guards.settle(trainer)
        if self._validated != trainer.global_step and trainer.enable_validation:
            # Lightning validates where an epoch ends. Without this a training that ends elsewhere, as one of few
            # ``max_steps``, would have no ``val_loss`` of what it ended with, and maybe no ``best.ckpt``.
            validate_now(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what was validated."""
        self._validated = trainer.global_step

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._saved = trainer.global_step
            trainer.save_checkpoint(self.run.checkpoints / "last.ckpt", weights_only=False)

    def _stop(self, trainer: Trainer, how: Stop) -> None:
        job = slurm_job()
        if how == Stop.REQUEUED and trainer.is_global_zero and job:
            _requeue(job)
        raise KeyboardInterrupt


def _requeue(job: str) -> None:
    """Put this SLURM job back into its queue; it goes on from ``last.ckpt`` by itself."""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        rank_zero_warn(f"SLURM job {job} could not be requeued ({said}); go on with: adapters-pl fit --ckpt_path last")
    else:
        rank_zero_info(f"SLURM job {job} is in the queue again.")
