"""How long a training step takes, beside the floor of the same base and beside peft with transformers' Trainer.

Every arm is a process of its own that stays: it loads its base once, and then takes a few steps whenever it is its
turn. So all arms meet the same disturbances of the machine, and ratios are taken between neighbours.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from adapters_pl.adapters import Adapter
from adapters_pl.data import ReasoningDataModule
from adapters_pl.data.module import Processes
from adapters_pl.data.questions import Reader
from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.models.base import context_length
from adapters_pl.training.adapter_files import save_adapter
from adapters_pl.training.module import CausalLMModule

#: Steps of each arm that are not counted: the first ones allocate, and fill caches.
WARMUP = 2
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass
class Job:
    """What an arm trains.

    Attributes:
        module: with its base not loaded yet.
        data: the rows.
        adapters: what is trained; not attached yet.
        trainer: the configuration's section ``trainer``.
        steps: optimizer steps in all, for the schedule of the learning rate.
        seed: of initial values and dropout.
    """

    module: CausalLMModule
    data: ReasoningDataModule
    adapters: list[Adapter]
    trainer: Mapping[str, Any]
    steps: int
    seed: int

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


class Finished(Exception):
    """The measuring process wants no more steps."""


class Pace:
    """Lets a loop take as many steps as are asked for, waits in between, and keeps the times."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = 0
        self._steps: list[StepTime] = []
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
        self._steps.append(StepTime(seconds, tokens, computed, loss, self._parts))
        self._left -= 1
        self.wait()

    def wait(self) -> None:
        """Wait until steps are asked for, unless some are left; raises :class:`Finished` if no more will be."""
        if self._left == 0:
            self._connection.send((self._steps, _peak_memory()))
            wanted = self._connection.recv()
            if wanted is None:
                raise Finished
            self._left, self._steps = wanted, []
        self._losses, self._masks, self._parts = [], [], {}
        self._begin = self._last = perf_counter()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_memory() -> int:
    """The most bytes that the process has had, on the GPU if there is one; and begin to look again."""
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


# ---- the arms


class _Timed(Callback):
    """Tells a pace what Lightning's loop does."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._taken = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.wait()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._pace.part("data")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._pace.part("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.part("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self._pace.part("optimizer")
        # Lightning has divided by the number of batches what the module had multiplied by it.
        self._pace.batch(batch["attention_mask"], outputs["loss"])
        if trainer.global_step > self._taken:
            self._taken = trainer.global_step
            self._pace.end_step()


def _ours(job: Job, pace: Pace) -> None:
    """Lightning's Trainer with the configuration's settings, one device, nothing validated and nothing written."""
    kept = ("precision", "accelerator", "accumulate_grad_batches", "gradient_clip_val")
    trainer = Trainer(
        **{key: job.trainer[key] for key in kept if job.trainer.get(key) is not None},
        devices=1,
        max_steps=job.steps,
        callbacks=[*job.adapters, _Timed(pace)],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(job.module, datamodule=job.data)


def _floor(job: Job, pace: Pace) -> None:
    """Forward and backward passes of the frozen base alone, from the embeddings to the loss at the labels."""
    model = _plain_base(job)
    # The reentrant kind of recomputation is not in use, so a gradient that begins here reaches every layer.
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
    if job.module.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    mixed = _MIXED.get(str(job.trainer.get("precision")))
    pace.wait()
    for batch in _batches(job):
        with torch.autocast(job.device.type, mixed) if mixed else nullcontext():
            hidden = job.module.hidden_states(batch)
            loss = job.module.label_losses(hidden, batch["labels"]).sum() / batch["loss_tokens"]
        pace.part("forward")
        loss.backward()
        pace.part("backward")
        pace.batch(batch["attention_mask"], loss)
        if batch["ends_step"]:
            pace.end_step()


def _peft(job: Job, pace: Pace) -> None:
    """The same adapter in peft, with the same initial values, trained by transformers' Trainer on the same rows."""
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError("bench --against peft needs the extra peft: pip install 'adapters-pl[peft]'") from None
    from transformers import Trainer as TheirTrainer
    from transformers import TrainerCallback, TrainingArguments

    if len(job.adapters) != 1:
        raise UserError(f"bench --against peft compares one adapter; the configuration has {len(job.adapters)}.")
    job.data.packing = False
    model, adapter = _plain_base(job), job.adapters[0]
    with tempfile.TemporaryDirectory() as folder:
        adapter.attach_to(model, seed=job.seed)
        save_adapter(model, adapter, folder)
        adapter.detach_from(model)
        try:
            theirs = PeftModel.from_pretrained(model, folder, is_trainable=True)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"peft has nothing like {type(adapter).__name__} ({first_line(error)}).") from error

    class Same(TheirTrainer):
        def get_train_dataloader(self) -> Any:
            return [{key: batch[key] for key in ("input_ids", "attention_mask", "labels")} for batch in batches]

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = super().training_step(model, inputs, num_items_in_batch)
            pace.batch(inputs["attention_mask"], loss)
            return loss

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            pace.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            pace.end_step()

    # Made before they are needed: what is compared is the training, and not who loads rows.
    batches = []
    for batch in _batches(job):
        batches.append(batch)
        if sum(bool(b["ends_step"]) for b in batches) == job.steps:
            break
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=job.data.batch_size,
            gradient_accumulation_steps=job.accumulate,
            max_steps=job.steps,
            learning_rate=job.module.lr,
            weight_decay=job.module.weight_decay,
            warmup_steps=min(job.module.warmup_steps, job.steps // 10),
            max_grad_norm=job.trainer.get("gradient_clip_val") or 0.0,
            bf16=job.trainer.get("precision") == "bf16-mixed",
            fp16=job.trainer.get("precision") == "16-mixed",
            gradient_checkpointing=job.module.activation_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            seed=job.seed,
            use_cpu=job.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Same(theirs, arguments, train_dataset=job.data.training, callbacks=[Timed()]).train()


ARMS: dict[str, Callable[[Job, Pace], None]] = {"floor": _floor, "adapters-pl": _ours, "peft": _peft}


def _plain_base(job: Job) -> Any:
    """The base on its device, in training mode, without adapters."""
    if job.module.source.quantization:
        raise UserError("bench compares plain bases: leave --model.quantization out.")
    model: Any = job.module.build_base()
    model.to(job.device).train()
    if job.trainer.get("precision") == "bf16-true":
        model.to(torch.bfloat16)
    return model


def _batches(job: Job) -> Iterator[dict[str, Any]]:
    """The batches of training on the device, epoch after epoch, and whether each ends a step."""
    module, data = job.module, job.data
    data.connect(Reader(module.tokenizer, context_length(module.config)), Processes(accumulate=job.accumulate))
    data.setup("fit")
    loader = data.train_dataloader()
    epoch = 0
    while True:
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for number, batch in enumerate(loader, start=1):
            moved = {key: value.to(job.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            yield {**moved, "ends_step": number % job.accumulate == 0 or number == len(loader)}
        epoch += 1


# ---- measuring


class _Resident:
    """An arm in a process of its own."""

    def __init__(self, name: str, build: Callable[[int], Job], steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(name, build, steps, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def received(self) -> tuple[list[StepTime], int]:
        """The steps that were asked for, and the most memory in bytes; raises ``UserError`` for what went wrong."""
        try:
            answer = self._connection.recv()
        except EOFError:
            raise UserError(f"bench: the process of {self.name} has ended; is there memory for all arms?") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def take(self, steps: int) -> tuple[list[StepTime], int]:
        """The times of ``steps`` steps, which begin now."""
        self._connection.send(steps)
        return self.received()

    def close(self) -> None:
        """Let the process end by itself, or end it: Lightning's loop does not heed a mere SIGTERM."""
        with suppress(OSError):
            self._connection.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(name: str, build: Callable[[int], Job], steps: int, connection: Connection) -> None:
    """What the process of an arm does; what libraries print in it goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        job = build(steps)
        seed_everything(job.seed, verbose=False)
        ARMS[name](job, Pace(connection))
    except (Finished, EOFError, KeyboardInterrupt):
        pass
    except UserError as error:
        connection.send(error)
    except Exception as error:
        connection.send(UserError(f"bench: {name} failed: {type(error).__name__}: {first_line(error)}"))


def measure(build: Callable[[int], Job], arms: Sequence[str], rounds: int, steps: int) -> dict[str, Any]:
    """Let ``arms`` take turns.

    Args:
        build: makes the job of an arm, given the number of optimizer steps; called in the arm's process.
        arms: keys of ``ARMS``; the ratios are of ``adapters-pl`` to each of the others.
        rounds: turns of each arm.
        steps: optimizer steps in a turn.

    Returns:
        ``arms``: for each, medians of ``step_seconds``, of its ``parts`` and of ``tokens_per_second`` (real tokens),
        the share of ``padding``, ``peak_bytes`` and the mean ``loss`` of the counted steps; ``ratios``: for each other
        arm, ``seconds`` per real token of ours over theirs as ``[median, lowest, highest]`` of the rounds, and
        ``memory``.

    Raises:
        UserError: an arm could not be built, or failed.
    """
    residents: list[_Resident] = []
    times: dict[str, list[list[StepTime]]] = {arm: [] for arm in arms}
    peaks = dict.fromkeys(arms, 0)
    try:
        for arm in arms:
            residents.append(_Resident(arm, build, WARMUP + rounds * steps))
        for resident in residents:
            resident.received()
            resident.take(WARMUP)
        for turn in range(rounds):
            for resident in residents if turn % 2 == 0 else reversed(residents):
                taken, peak = resident.take(steps)
                times[resident.name].append(taken)
                peaks[resident.name] = max(peaks[resident.name], peak)
    finally:
        for resident in residents:
            resident.close()
    return {
        "arms": {arm: {**_summary(times[arm]), "peak_bytes": peaks[arm]} for arm in arms},
        "ratios": {
            arm: {
                "seconds": _ratio(times["adapters-pl"], times[arm]),
                "memory": peaks["adapters-pl"] / peaks[arm],
            }
            for arm in arms
            if arm != "adapters-pl"
        },
        "steps": {arm: [[asdict(step) for step in turn] for turn in times[arm]] for arm in arms},
    }


def _summary(turns: list[list[StepTime]]) -> dict[str, Any]:
    steps = [step for turn in turns for step in turn]
    return {
        "step_seconds": median(step.seconds for step in steps),
        "tokens_per_second": median(step.tokens / step.seconds for step in steps),
        "padding": 1 - sum(step.tokens for step in steps) / sum(step.computed for step in steps),
        "parts": {name: median(step.parts.get(name, 0.0) for step in steps) for name in steps[0].parts},
        "loss": sum(step.loss for step in steps) / len(steps),
    }


def _ratio(ours: list[list[StepTime]], theirs: list[list[StepTime]]) -> list[float]:
    """Our time for a real token over theirs, round by round."""
    per_token = [
        [sum(step.seconds for step in turn) / sum(step.tokens for step in turn) for turn in turns]
        for turns in (ours, theirs)
    ]
    ratios = [one / other for one, other in zip(*per_token, strict=True)]
    return [median(ratios), min(ratios), max(ratios)]
