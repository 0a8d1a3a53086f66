"""What we use of Lightning that it does not promise to keep, each behind a name of ours.

``tests/compat/test_lightning.py`` goes red where a new version changes one of them. Rooms that have no Trainer import
the little of Lightning that serves without one from here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from adapters_pl.inputs.untrusted import has_shape

__all__ = [
    "LightningEnvironment",
    "SLURMEnvironment",
    "TorchElasticEnvironment",
    "isolate_rng",
    "rank_zero_info",
    "rank_zero_only",
]


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that ``module`` is attached to, if there is one; ``module.trainer`` raises where there is none."""
    return module._trainer


def cluster_environment(trainer: Trainer) -> ClusterEnvironment | None:
    """What began the processes: SLURM, torchrun, or Lightning itself."""
    return trainer._accelerator_connector.cluster_environment


def replaces_samplers(trainer: Trainer) -> bool:
    """Whether Lightning puts samplers of its own into loaders where there are several processes."""
    return trainer._accelerator_connector.use_distributed_sampler


def process_group_backend(trainer: Trainer) -> str | None:
    """The backend that the strategy was told to use for its process group."""
    return getattr(trainer.strategy, "_process_group_backend", None)


# ---- the loops


def restore_by_epochs(trainer: Trainer) -> None:
    """Let a training of ``max_steps`` be restored as one of ``max_epochs`` is.

    Lightning takes every checkpoint of the former for one from the middle of an epoch.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def forget_restart(trainer: Trainer) -> None:
    """Let the fit loop take itself for one that was never restored.

    Otherwise it skips, at the end of the epoch, a schedule that waits for a metric.
    """
    trainer.fit_loop.restarting = False


def batches_done(trainer: Trainer) -> tuple[int, int]:
    """How many batches were trained in this epoch, and in all of them."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    # Before an epoch's first batch the counter is still the last epoch's.
    return 0 if epochs.ready > epochs.started else batches.current.processed, batches.total.processed


def fit_loop_state(
    epoch: int, in_epoch: bool, validating: bool, batches: int, batches_of_all: int, steps: int
) -> dict[str, Any]:
    """The state from which Lightning's fit loop goes on where it is told.

    Lightning tells by the differences between its counters where it was. Three states are enough: between two epochs,
    between two batches of an epoch (as if saved at the end of a batch, after which it validates no more), and
    before a validation.

    Args:
        epoch: that is trained, or that comes next.
        in_epoch: whether some of its batches were trained.
        validating: whether a validation comes next.
        batches: trained in this epoch.
        batches_of_all: trained in all epochs.
        steps: of the optimizer.
    """
    # Lightning adds to these what it thinks was left undone.
    epochs_ended = epoch - 1 if epoch and not in_epoch else epoch
    batches_ended = int(in_epoch and not validating)
    epochs = _progress(epoch + in_epoch, epoch, epochs_ended)
    return {
        "state_dict": {},
        "epoch_progress": {"total": epochs, "current": dict(epochs)},
        "epoch_loop.state_dict": {"_batches_that_stepped": steps - in_epoch},
        "epoch_loop.batch_progress": {
            "total": _progress(batches_of_all, batches_of_all, batches_of_all - batches_ended),
            "current": _progress(batches, batches, max(0, batches - batches_ended)),
            "is_last_batch": False,
        },
        "epoch_loop.val_loop.batch_progress": {
            "total": _progress(int(validating), 0, 0),
            "current": _progress(0, 0, 0),
            "is_last_batch": False,
        },
    }


def _progress(begun: int, processed: int, completed: int) -> dict[str, int]:
    return {"ready": begun, "started": begun, "processed": processed, "completed": completed}


def validate_now(trainer: Trainer) -> None:
    """Validate at the end of a training, and let ``ModelCheckpoint`` see what came of it."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.on_train_epoch_end(trainer, trainer.lightning_module)


# ---- metrics, and the best checkpoints by them

_METRICS = ("callback", "logged", "progress_bar")


def metrics_of(trainer: Trainer) -> dict[str, dict[str, float]]:
    """What Lightning keeps of logged values: for callbacks and schedulers, for loggers, and for the progress bar."""
    return {
        kind: {name: float(value) for name, value in getattr(trainer._logger_connector, f"_{kind}_metrics").items()}
        for kind in _METRICS
    }


def restore_metrics(trainer: Trainer, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Put back what :func:`metrics_of` gave."""
    for kind in _METRICS:
        kept = getattr(trainer._logger_connector, f"_{kind}_metrics")
        kept.update({name: torch.tensor(value) for name, value in metrics.get(kind, {}).items()})


#: What ModelCheckpoint keeps.
_SHAPE_OF_BEST = {
    **dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), str),
    "best_k_models": {str: torch.Tensor},
    "best_model_score": (torch.Tensor, None),
    "kth_value": torch.Tensor,
}


def move_best_checkpoints(callback: ModelCheckpoint, state: dict[str, Any]) -> bool:
    """Let the ``state`` of ``callback`` name files of the callback's own folder, whatever folder it names.

    Lightning removes such a file when a better one comes. Gives False where ``state`` is not as ModelCheckpoint writes
    it.
    """
    if not has_shape(state, _SHAPE_OF_BEST):
        return False
    models = state["best_k_models"]
    paths = [path for path in (state["best_model_path"], state["last_model_path"], *models) if path]
    scores = [s for s in (state["best_model_score"], state["kth_value"], *models.values()) if s is not None]
    if not all(Path(path).name.endswith(callback.FILE_EXTENSION) for path in paths) or not all(
        score.is_floating_point() and score.numel() == 1 for score in scores
    ):
        return False
    folder, worst = Path(str(callback.dirpath)), max if callback.mode == "min" else min
    here = {path: str(folder / Path(path).name) if path else "" for path in ("", *paths)}
    models = {here[path]: score for path, score in models.items()}
    kth = worst(models, key=models.__getitem__) if 0 < callback.save_top_k <= len(models) else ""
    state |= {"dirpath": str(folder), "best_k_models": models, "kth_best_model_path": kth}
    state |= {name: here[state[name]] for name in ("best_model_path", "last_model_path")}
    state["kth_value"] = models.get(kth, state["kth_value"])
    return True


class KeepingWriter(ExperimentWriter):
    """What writes the files of Lightning's ``CSVLogger``; unlike Lightning's it deletes nothing that is there."""

    def _check_log_dir_exists(self) -> None:
        """Lightning's removes ``metrics.csv``."""
