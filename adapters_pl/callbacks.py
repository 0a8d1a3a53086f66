"""The callbacks that the command line adds: the run's records, a kind interrupt, and the progress bar."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

from adapters_pl import report
from adapters_pl.checkpoint import save_adapter
from adapters_pl.module import CausalLMModule
from adapters_pl.runs import Run, environment

#: Optimizer steps between two writes of ``last.ckpt`` (and one at the end of every epoch).
CHECKPOINT_EVERY = 200


def checkpoint_callbacks(run: Run, monitor: str, validates: bool) -> list[Callback]:
    """``last.ckpt``, every so many steps and at the end of an epoch, and ``best.ckpt`` by ``monitor``."""
    common: dict[str, Any] = {"dirpath": run.checkpoints, "enable_version_counter": False}
    callbacks: list[Callback] = [
        ModelCheckpoint(filename="last", every_n_train_steps=CHECKPOINT_EVERY, **common),
        ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common),
    ]
    if validates:
        mode = "max" if monitor == "val_accuracy" else "min"
        callbacks.append(ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **common))
    return callbacks


class RunRecorder(Callback):
    """Writes what a run leaves behind: configuration, environment, predictions, results, and the table.

    Args:
        run: the run's directory.
        config: the whole configuration as YAML; written when training begins.
        adapter: what the tables call the trained adapter; ``None`` for the base alone.
    """

    def __init__(self, run: Run, config: str, adapter: str | None) -> None:
        self.run = run
        self.config = config
        self.adapter = adapter

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on this is the run that ``test`` takes."""
        if trainer.is_global_zero:
            self.run.write("config.yaml", self.config)
            self.run.write("environment.json", environment())
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.run.mark_latest()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the adapters as directories that other tools read, with the same weights as ``last.ckpt``."""
        assert isinstance(pl_module, CausalLMModule)
        if trainer.is_global_zero:
            portable = [adapter for adapter in pl_module.adapters.values() if adapter.peft_type]
            for adapter in portable:
                folder = self.run.path / "adapter" / (adapter.name if len(portable) > 1 else "")
                tokens = pl_module.add_tokens
                print(f"adapter: {save_adapter(pl_module.model, adapter, folder, pl_module.base, tokens)}")
                if tokens:
                    pl_module.tokenizer.save_pretrained(folder)
            print(f"run: {self.run.path}  (test it with: adapters-pl test)")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what ``validate`` found."""
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            found = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.run.merge_results({}, validation=found)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions and results, and end with the table."""
        results = {}
        for name, records in self._gathered(pl_module).items():
            results[name] = report.summarize(records)
            if trainer.is_global_zero:
                self.run.write(f"predictions/{name}.jsonl", records)
        if trainer.is_global_zero:
            path = self.run.merge_results(results, environment=environment())
            report.print_table(report.results_table(results, self.adapter))
            print(f"results: {path}")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions."""
        for name, records in self._gathered(pl_module).items():
            if trainer.is_global_zero:
                print(f"predictions: {self.run.write(f'predictions/{name}.jsonl', records)}")

    @staticmethod
    def _gathered(pl_module: LightningModule) -> dict[str, list[dict[str, Any]]]:
        """The records of all processes by set, each set in its file's order."""
        assert isinstance(pl_module, CausalLMModule)
        parts = [pl_module.records]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(parts, pl_module.records)
        names = list(dict.fromkeys(name for part in parts for name in part))
        return {
            name: sorted((r for part in parts for r in part.get(name, [])), key=lambda record: record["row"])
            for name in names
        }


class FinishStepOnInterrupt(Callback):
    """The first Ctrl-C ends training after the running batch, with ``last.ckpt`` written; a second one at once.

    Args:
        path: where ``last.ckpt`` goes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = False
        self._previous: Callable[[int, FrameType | None], Any] | int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the interrupt signal while batches run."""
        try:
            self._previous = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread, where signals do not arrive
            self._previous = None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here, where the parameters, the optimizer and the counters agree."""
        if self.asked:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop during a validation between two steps as well."""
        if self.asked:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signal back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signal back."""
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


class Progress(RichProgressBar):
    """Lightning's rich progress bar with the training speed in tokens per second."""

    def __init__(self) -> None:
        super().__init__()
        self._tokens = 0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        super().on_train_start(trainer, pl_module)
        self._tokens, self._since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's tokens; padding is none."""
        self._tokens += int(batch["attention_mask"].sum())
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar: losses, and tokens per second of this process so far."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if trainer.training and self._tokens:
            metrics["tokens/s"] = round(self._tokens / max(1e-9, time.monotonic() - self._since))
        return metrics
