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

import io
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from adapters_pl.compat.lightning import (
    batches_done,
    fit_loop_state,
    forget_restart,
    metrics_of,
    move_best_checkpoints,
    restore_by_epochs,
    restore_metrics,
)
from adapters_pl.data import ReasoningDataModule
from adapters_pl.data.sampler import StepLoader, StepSampler
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.untrusted import has_shape
from adapters_pl.training.metrics_file import MetricsFile

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
            restore_by_epochs(trainer)

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
        done, done_of_all = batches_done(trainer)
        position = _sampler(loader).state_dict(done)
        complete = done >= trainer.num_training_batches
        within = 0 if complete else done % trainer.accumulate_grad_batches
        validating = self._at_validation is not None and not within
        if complete and not validating:
            position = {**position, "epoch": position["epoch"] + 1, "rows": 0}
        # As Lightning has it: the epoch of the last batch that counts.
        checkpoint["epoch"] = max(0, position["epoch"] - (not position["rows"]))
        state = self._at_step if within else self._at_validation
        checkpoint[KEY] = {
            **position,
            "batches": done_of_all - within,
            "validating": validating,
            "rates": self._rates,
            "metrics": metrics_of(trainer),
            "random": all_random_states(state or random_state(trainer.strategy.root_device)),
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
        size = 1 if data.max_tokens_per_batch else data.batch_size  # a position counts batches there, not rows
        position = _loop_state(trainer, size, self._stored, checkpoint["global_step"])
        checkpoint["loops"]["fit_loop"].update(position)
        for schedule in checkpoint["lr_schedulers"]:
            if "lr_lambdas" in schedule:
                schedule["lr_lambdas"] = [None] * len(schedule["lr_lambdas"])
        _stay_in_the_folder(trainer, checkpoint["callbacks"])
        before, now = len(self._stored["random"]["lengths"]), trainer.world_size
        if before != now:
            rank_zero_info(
                f"resuming on {now} process{'es' * (now > 1)} what {before} began: every remaining row comes once, but "
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
        restore_metrics(trainer, self._stored["metrics"])
        if self._rates != self._stored["rates"]:
            _change_rates(
                trainer, [now / before for now, before in zip(self._rates, self._stored["rates"], strict=True)]
            )

    def _have_gone_on(self, trainer: Trainer) -> None:
        """Begin with the random numbers that come next; nothing is left of the interruption then."""
        stored, self._stored = self._stored, None
        if stored is None:
            return
        forget_restart(trainer)
        if len(stored["random"]["lengths"]) == trainer.world_size:
            state = random_state_of(stored["random"], trainer.global_rank)
            set_random_state(state, trainer.strategy.root_device)


def _sampler(loader: StepLoader) -> StepSampler:
    assert isinstance(loader.batch_sampler, StepSampler)
    return loader.batch_sampler


def _loop_state(trainer: Trainer, size: int, stored: dict[str, Any], steps: int) -> dict[str, Any]:
    """The fit loop's state at the position ``stored``, with this run's division of rows into batches of ``size``."""
    width, accumulate = size * trainer.world_size, trainer.accumulate_grad_batches
    rows = stored["rows"]
    complete = stored.get("complete", rows == stored["of"])
    batches = -(-rows // width) if complete else rows // (width * accumulate) * accumulate
    return fit_loop_state(stored["epoch"], rows > 0, stored["validating"], batches, stored["batches"], steps)


def _change_rates(trainer: Trainer, ratios: list[float]) -> None:
    for group, ratio in zip(trainer.optimizers[0].param_groups, ratios, strict=True):
        for key in {"lr", "initial_lr"} & group.keys():
            group[key] *= ratio
    for config in trainer.lr_scheduler_configs:
        if bases := getattr(config.scheduler, "base_lrs", None):
            config.scheduler.base_lrs = [base * ratio for base, ratio in zip(bases, ratios, strict=True)]


#: What torch's optimizers keep of every element of a parameter, and what they keep once.
_OF_EVERY_ELEMENT = (
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "grad_avg", "momentum_buffer", "acc_delta"),
    *("sum", "ax", "prev", "step_size", "variance"),
)
_ONCE = ("step", "eta", "mu", "mu_product")


def _refuse_strange_state(optimizer: Optimizer, where: object) -> None:
    """Raise ``UserError`` where what an optimizer keeps of a parameter has another shape; torch notices in a step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                shape = getattr(value, "shape", torch.Size())
                fits = isinstance(value, torch.Tensor | int | float)
                fits &= key not in _OF_EVERY_ELEMENT or shape == parameter.shape
                fits &= key not in _ONCE or shape.numel() == 1
                if not fits:
                    raise UserError(
                        f"{where}: its optimizer's {key} is not of the shape that its parameter asks for; take "
                        "another checkpoint."
                    )


def _stay_in_the_folder(trainer: Trainer, states: dict[str, Any]) -> None:
    """Let what is known of the best checkpoints name files of the folder that this one lies in.

    In another folder nothing is known of them.
    """
    lies_in = Path(str(trainer.ckpt_path)).resolve().parent
    for callback in trainer.checkpoint_callbacks:
        key = callback.state_key
        if not isinstance(callback, ModelCheckpoint) or key not in states:
            continue
        if lies_in != Path(str(callback.dirpath)):
            del states[key]
        elif not move_best_checkpoints(callback, states[key]):
            raise _strange(trainer)


def _strange(trainer: Trainer) -> UserError:
    return UserError(
        f"{trainer.ckpt_path}: what it says of its training is not as adapters-pl writes it; take another checkpoint."
    )


# ---- random numbers


def random_state(device: torch.device) -> list[Any]:
    """The random state of this process without a pickle: the generators' words as bytes, and the numbers beside."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()
    parts = [np.array(words, np.uint32).tobytes(), np.asarray(keys).tobytes(), torch.get_rng_state().numpy().tobytes()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return [parts, [version, gauss], [kind, place, has_gauss, cached]]


def set_random_state(state: list[Any], device: torch.device) -> None:
    """Go on with the numbers that come after ``state``, which :func:`random_state` gave."""
    (words, keys, cpu, *gpu), (version, gauss), (kind, *rest) = state
    random.setstate((version, tuple(np.frombuffer(words, np.uint32).tolist()), gauss))
    np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))
    torch.set_rng_state(torch.frombuffer(bytearray(cpu), dtype=torch.uint8))
    if device.type == "cuda" and gpu:
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(gpu[0]), dtype=torch.uint8), device)


def all_random_states(own: list[Any]) -> dict[str, Any]:
    """The states of all processes as a tensor and numbers; called by every process.

    Ten kilobytes of each would be much beside a small adapter: what is the same in all of them is stored once.
    """
    states: list[Any] = [own]
    if torch.distributed.is_initialized():
        states = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, own)
    content = zlib.compress(b"".join(part for parts, *_ in states for part in parts))
    return {
        "bytes": torch.frombuffer(bytearray(content), dtype=torch.uint8),
        "lengths": [[len(part) for part in parts] for parts, *_ in states],
        "numbers": [numbers for _, *numbers in states],
    }


def random_state_of(stored: dict[str, Any], rank: int) -> list[Any]:
    """The state of the process ``rank`` in ``stored``, which :func:`all_random_states` gave."""
    content = io.BytesIO(zlib.decompress(stored["bytes"].numpy().tobytes()))
    parts = [[content.read(length) for length in lengths] for lengths in stored["lengths"]]
    return [parts[rank], *stored["numbers"][rank]]
