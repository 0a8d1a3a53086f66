"""The arms of a benchmark of training: what each of them trains, step by step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from adapters_pl.compat.peft import import_peft
from adapters_pl.data.module import Processes
from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.training.adapter_files import save_adapter
from adapters_pl.training.benchmark.pace import Job, Pace

_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


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
        pace.part("data")
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
    from transformers import Trainer as TheirTrainer
    from transformers import TrainerCallback, TrainingArguments

    refuse(job, ["peft"])
    job.data.packing, job.data.max_tokens_per_batch = False, None
    model, adapter = _plain_base(job), job.adapters[0]
    with tempfile.TemporaryDirectory() as folder:
        adapter.attach_to(model, seed=job.seed)
        save_adapter(model, adapter, folder)
        adapter.detach_from(model)
        try:
            theirs = import_peft().PeftModel.from_pretrained(model, folder, is_trainable=True)
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

    # Made before they are needed: what is compared is the training, and not who loads rows. A step has the rows of
    # ours, in batches as they come there: the Trainer knows nothing of their lengths.
    batches = []
    for batch in _batches(job, by_length=False):
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


def refuse(job: Job, arms: Sequence[str]) -> None:
    """Raise ``UserError`` for a job that one of ``arms`` cannot train as the others do."""
    module = job.module
    if "floor" in arms and module.source.quantization:
        raise UserError("bench compares plain bases: leave --model.quantization out.")
    if "peft" not in arms:
        return
    import_peft()
    if len(job.adapters) != 1:
        raise UserError(f"bench --against peft compares one adapter; the configuration has {len(job.adapters)}.")
    if module.optimizer_factory or module.scheduler_factory:
        raise UserError("bench --against peft compares trainings with AdamW: leave out --optimizer and --lr_scheduler.")


def _plain_base(job: Job) -> Any:
    """The base on its device, in training mode, without adapters."""
    refuse(job, ["floor"])
    model: Any = job.module.build_base()
    model.to(job.device).train()
    if job.trainer.get("precision") == "bf16-true":
        model.to(torch.bfloat16)
    return model


def _batches(job: Job, by_length: bool = True) -> Iterator[dict[str, Any]]:
    """The batches of training on the device, epoch after epoch, and whether each ends a step.

    Their rows are sorted by length within a step, as they are in training, or lie in the order of the epoch.
    """
    module, data = job.module, job.data
    data.connect(module.reader, Processes(accumulate=job.accumulate))
    data.setup("fit")
    loader = data.train_dataloader()
    sampler: Any = loader.batch_sampler
    sampler.lengths = sampler.lengths if by_length else None
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for number, batch in enumerate(loader, start=1):
            moved = {key: value.to(job.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            yield {**moved, "ends_step": number % job.accumulate == 0 or number == len(loader)}
        epoch += 1
