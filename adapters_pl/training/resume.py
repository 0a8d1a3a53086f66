"""Going on as if training had never stopped: the one place that mends what Lightning gets wrong about it.

What Lightning 2.6 does by itself, and what is done here instead:

- Its loops save their counters as the hook that happens to save finds them, and guess from these on the way back
  whether validation and the end of the epoch were still to come; with ``max_steps`` they guess wrong, and train one
  batch too many. Here the counters are rewritten to one of three states that it reads rightly.
- It begins the data again at their first batch. Here the loader goes on where the parameters stand.
- It saves no random state. Here every process's own is saved, and put back where it was taken.
- A checkpoint brings its learning rates and the length of their schedule with it, so that another rate has no effect
  and a run that is made longer learns nothing more. Here only the position in the schedule is taken over.
- Metrics that callbacks and schedulers wait for are gone, and the file of metrics begins anew. Here they come back,
  and the file goes on with the rows that the checkpoint has not seen taken out.
- What is known of the best checkpoint is forgotten when the run's folder was moved. Here it moves along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from adapters_pl.data import ReasoningDataModule
from adapters_pl.data.sampler import StepLoader, StepSampler
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.untrusted import has_shape
from adapters_pl.training.metrics_file import MetricsFile
from adapters_pl.training.random_state import one_of, processes, random_state, set_random_state, together

#: Where a checkpoint says how training stands.
KEY = "resume"
#: What a checkpoint says at least.
_SHAPE = {
    "epoch": int,
    "rows": int,
    "of": int,
    "batches": int,
    "validating": bool,
    "rates": [float],
    "metrics": {str: {str: float}},
}
_METRICS = ("callback", "logged", "progress_bar")


class Resume(Callback):
    """Notes in every checkpoint how training stands, and goes on exactly there.

    On the CPU in float32 the parameters, the optimizer's state and the random state then come out bit for bit as
    without the interruption. With another number of processes each remaining row still comes once, but dropout
    draws other numbers. Checkpoints are written whole or not at all (:class:`AtomicCheckpointIO`).

    Loaders other than the data module's own are left to Lightning.
    """

    def __init__(self) -> None:
        #: The random state that the current step began with, and the current validation.
        self._at_step: list[Any] | None = None
        self._at_validation: list[Any] | None = None
        #: The learning rates of the optimizer's groups as they are configured.
        self._rates: list[float] = []
        #: What the checkpoint says that training goes on from, until all of it has been used.
        self._stored: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let ``max_steps`` resume as ``max_epochs`` does."""
        self._at_step = self._at_validation = self._stored = None
        if stage == "fit":
            # With max_steps Lightning takes every checkpoint for one from the middle of an epoch.
            trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the learning rates before the checkpoint's take their place."""
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
        self._rates = [float(group.get("initial_lr", group["lr"])) for group in groups]

    # ---- saving

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the random state back before the first batch; keep that of a step's beginning."""
        self._have_gone_on(trainer)
        # What is saved within a step goes on at its beginning.
        if trainer.accumulate_grad_batches > 1 and batch_idx % trainer.accumulate_grad_batches == 0:
            self._at_step = random_state(trainer.strategy.root_device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As before a batch: an interrupted validation is done again from its beginning."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._have_gone_on(trainer)
            self._at_validation = random_state(trainer.strategy.root_device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a checkpoint is one from after this validation."""
        self._at_validation = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note how training stands; called by every process."""
        loader = trainer.train_dataloader
        if not isinstance(loader, StepLoader):
            return
        epochs: Any = trainer.fit_loop.epoch_progress.current
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress
        # Before an epoch's first batch the counter is still the last epoch's.
        done = 0 if epochs.ready > epochs.started else batches.current.processed
        position = _sampler(loader).state_dict(done)
        complete = done >= trainer.num_training_batches
        within = 0 if complete else done % trainer.accumulate_grad_batches
        validating = self._at_validation is not None and not within
        if complete and not validating:
            position = {**position, "epoch": position["epoch"] + 1, "rows": 0}
        # As Lightning has it: the epoch of the last batch that counts.
        checkpoint["epoch"] = max(0, position["epoch"] - (not position["rows"]))
        mine = self._at_step if within else self._at_validation
        connector = trainer._logger_connector
        checkpoint[KEY] = {
            **position,
            "batches": batches.total.processed - within,
            "validating": validating,
            "rates": self._rates,
            "metrics": {
                kind: {name: float(value) for name, value in getattr(connector, f"_{kind}_metrics").items()}
                for kind in _METRICS
            },
            "random": together(mine or random_state(trainer.strategy.root_device)),
        }

    # ---- going on

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let Lightning restore what is right, by putting it into the checkpoint that was read."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or KEY not in checkpoint or not isinstance(data, ReasoningDataModule):
            return
        self._stored = checkpoint[KEY]
        if not has_shape(self._stored, _SHAPE) or not 0 <= checkpoint["global_step"] < 2**40:
            raise _strange(trainer)
        checkpoint["loops"]["fit_loop"].update(
            _counters(trainer, data.batch_size, self._stored, checkpoint["global_step"])
        )
        for schedule in checkpoint["lr_schedulers"]:
            if "lr_lambdas" in schedule:
                schedule["lr_lambdas"] = [None] * len(schedule["lr_lambdas"])
        _stay_in_the_folder(trainer, checkpoint["callbacks"])
        then, now = processes(self._stored["random"]), trainer.world_size
        if then != now:
            rank_zero_info(
                f"resuming on {now} process{'es' * (now > 1)} what {then} began: every remaining row comes once, but "
                "steps and random numbers are not those of an uninterrupted run."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to the next rows, and put back the metrics, of which Lightning has just emptied its own."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.rewind(trainer.global_step)
        if self._stored is None:
            return
        for optimizer in trainer.optimizers:
            _refuse_strange_state(optimizer, trainer.ckpt_path)
        # Lightning does this only where no schedule has asked for the loader before.
        if isinstance(trainer.train_dataloader, StepLoader):
            trainer.train_dataloader.load_state_dict(self._stored)
        for kind, values in self._stored["metrics"].items():
            mine = getattr(trainer._logger_connector, f"_{kind}_metrics")
            mine.update({name: torch.tensor(value) for name, value in values.items()})
        if self._rates != self._stored["rates"]:
            _change_rates(trainer, [now / then for now, then in zip(self._rates, self._stored["rates"], strict=True)])

    def _have_gone_on(self, trainer: Trainer) -> None:
        """Begin with the random numbers that come next; nothing is left of the interruption then."""
        stored, self._stored = self._stored, None
        if stored is None:
            return
        # Else Lightning skips a schedule that waits for a metric at the end of this epoch.
        trainer.fit_loop.restarting = False
        if processes(stored["random"]) == trainer.world_size:
            set_random_state(one_of(stored["random"], trainer.global_rank), trainer.strategy.root_device)


def _sampler(loader: StepLoader) -> StepSampler:
    assert isinstance(loader.batch_sampler, StepSampler)
    return loader.batch_sampler


def _counters(trainer: Trainer, batch_size: int, stored: dict[str, Any], steps: int) -> dict[str, Any]:
    """The fit loop's state from which Lightning goes on at the position ``stored``, with this run's division of rows.

    It tells by the differences between its counters where it was. Three states are enough: between two epochs,
    between two batches of an epoch (as if saved at the end of a batch, after which it validates no more), and
    before a validation.
    """
    width = batch_size * trainer.world_size
    accumulate = trainer.accumulate_grad_batches
    rows, epoch, validating = stored["rows"], stored["epoch"], stored["validating"]
    done = (
        -(-rows // width) if stored.get("complete", rows == stored["of"]) else rows // (width * accumulate) * accumulate
    )
    within = rows > 0
    # Lightning adds to these what it thinks was left undone.
    epochs_ended = epoch - 1 if epoch and not within else epoch
    batches_ended = int(within and not validating)
    return {
        "state_dict": {},
        "epoch_progress": _twice(_progress(epoch + within, epoch, epochs_ended)),
        "epoch_loop.state_dict": {"_batches_that_stepped": steps - within},
        "epoch_loop.batch_progress": {
            "total": _progress(stored["batches"], stored["batches"], stored["batches"] - batches_ended),
            "current": _progress(done, done, max(0, done - batches_ended)),
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


def _twice(progress: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"total": progress, "current": dict(progress)}


def _change_rates(trainer: Trainer, ratios: list[float]) -> None:
    for group, ratio in zip(trainer.optimizers[0].param_groups, ratios, strict=True):
        for key in {"lr", "initial_lr"} & group.keys():
            group[key] *= ratio
    for config in trainer.lr_scheduler_configs:
        if bases := getattr(config.scheduler, "base_lrs", None):
            config.scheduler.base_lrs = [base * ratio for base, ratio in zip(bases, ratios, strict=True)]


def _refuse_strange_state(optimizer: Optimizer, where: object) -> None:
    """Raise ``UserError`` where what an optimizer keeps of a parameter has another shape; torch notices in a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                shaped = key in _LIKE_ITS_PARAMETER and getattr(value, "shape", None) != parameter.shape
                if shaped or not isinstance(value, torch.Tensor | int | float):
                    raise UserError(
                        f"{where}: its optimizer's {key} has another shape than the parameter that it is kept of; take "
                        "another checkpoint."
                    )


#: What torch's optimizers keep of every element of a parameter.
_LIKE_ITS_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "grad_avg", "sum")


#: What Lightning's ModelCheckpoint keeps.
_SHAPE_OF_BEST = {
    **dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), str),
    "best_k_models": {str: torch.Tensor},
    "best_model_score": (torch.Tensor, None),
    "kth_value": torch.Tensor,
}


def _stay_in_the_folder(trainer: Trainer, states: dict[str, Any]) -> None:
    """Let what is known of the best checkpoints name files of the folder that this one lies in, whatever it says.

    Lightning removes such a file when a better one comes. In another folder nothing is known of them.
    """
    lies_in = Path(str(trainer.ckpt_path)).resolve().parent
    for callback in trainer.checkpoint_callbacks:
        key, folder = callback.state_key, Path(str(getattr(callback, "dirpath", None)))
        if not isinstance(callback, ModelCheckpoint) or key not in states:
            continue
        if lies_in != folder:
            del states[key]
            continue
        state = states[key]
        if not has_shape(state, _SHAPE_OF_BEST):
            raise _strange(trainer)
        models, worst = state["best_k_models"], max if callback.mode == "min" else min
        paths = [path for path in (state["best_model_path"], state["last_model_path"], *models) if path]
        scores = [
            score for score in (state["best_model_score"], state["kth_value"], *models.values()) if score is not None
        ]
        if not all(Path(path).name.endswith(callback.FILE_EXTENSION) for path in paths) or not all(
            score.is_floating_point() and score.numel() == 1 for score in scores
        ):
            raise _strange(trainer)
        here = {path: str(folder / Path(path).name) if path else "" for path in ("", *paths)}
        models = {here[path]: score for path, score in models.items()}
        kth = worst(models, key=models.__getitem__) if 0 < callback.save_top_k <= len(models) else ""
        state |= {"dirpath": str(folder), "best_k_models": models, "kth_best_model_path": kth}
        state |= {name: here[state[name]] for name in ("best_model_path", "last_model_path")}
        state["kth_value"] = models.get(kth, state["kth_value"])


def _strange(trainer: Trainer) -> UserError:
    return UserError(
        f"{trainer.ckpt_path}: what it says of its training is not as adapters-pl writes it; take another checkpoint."
    )
