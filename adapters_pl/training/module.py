"""The Lightning module around a frozen causal language model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from adapters_pl.adapters.base import Adapter, describe_adapter
from adapters_pl.compat.lightning import replaces_samplers, trainer_of
from adapters_pl.data.module import Processes, ReasoningDataModule
from adapters_pl.data.questions import Questions, Reader
from adapters_pl.evaluation.engine import Engine, TransformersEngine
from adapters_pl.evaluation.evaluator import Answers, Evaluator, Record
from adapters_pl.evaluation.metrics import AnswerAccuracy
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.masking import mask_checkpoint, masked_values
from adapters_pl.inputs.ranges import AtLeast0, NotNegative, refuse_out_of_range
from adapters_pl.models import head
from adapters_pl.models.base import (
    Dtype,
    Quantization,
    add_tokens,
    context_length,
    fingerprint,
    grow_embeddings,
    load_base,
    load_config,
    load_tokenizer,
    meta_model,
    same_base,
)
from adapters_pl.models.head import check_logits
from adapters_pl.training.checkpoint import FORMAT, check_checkpoint
from adapters_pl.training.checkpoint_io import AtomicCheckpointIO
from adapters_pl.training.checks import check_packing
from adapters_pl.training.optimizers import LinearWarmup
from adapters_pl.training.strategies import StrategyTraits, as_forward, full_value, traits_of

if TYPE_CHECKING:
    from adapters_pl.training.checkpoint import SavedAdapters

IGNORE = -100
OptimizerFactory = Callable[[Iterable], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class CausalLMModule(LightningModule):
    """A frozen causal language model that is trained through its adapters alone.

    The base is loaded by :meth:`build_base`, when the first adapter's ``setup`` asks for it. Checkpoints hold
    the adapters' parameters, how to build the adapters, and the base's fingerprint; never the base.

    Args:
        base: an embedded base's name (``quickstart``), a model directory, or a hub id.
        revision: branch, tag or commit on the hub.
        dtype: of the frozen base; ``auto`` is what its weights are stored in. Adapters are float32.
        attn_implementation: ``eager``, ``sdpa`` or ``flash_attention_2``; transformers' choice if not given.
        quantization: hold the base in ``8bit`` or ``4bit`` (nf4, double quantisation); needs the extra ``quant``.
        activation_checkpointing: keep only what enters each decoder layer and compute the rest again in the backward
            pass: less memory for about a third more time.
        trust_remote_code: run code that comes with the model.
        random_init: random weights instead of the base's: a control.
        lr: peak learning rate of AdamW (LLM-Adapters' is 3e-4).
        weight_decay: of AdamW.
        warmup_steps: steps of linear warm-up, at most a tenth of the run; linear decay to zero follows.
        optimizer: another optimizer, given the parameter groups.
        lr_scheduler: a scheduler for it, stepped every optimizer step.
        monitor: what ``best.ckpt`` is chosen by: ``val_loss``, or ``val_accuracy`` of generated answers.
        test_base: also test the base alone, for comparison; switch it off where generation is expensive.
        add_tokens: new tokens for the tokenizer; the base's embeddings grow to hold them. They are trained if the
            adapter has ``modules_to_save`` with the embeddings and the head in it.
    """

    def __init__(
        self,
        base: str = "quickstart",
        revision: str | None = None,
        dtype: Dtype = "auto",
        attn_implementation: str | None = None,
        quantization: Quantization | None = None,
        activation_checkpointing: bool = False,
        trust_remote_code: bool = False,
        random_init: bool = False,
        lr: NotNegative = 3e-4,
        weight_decay: NotNegative = 0.0,
        warmup_steps: AtLeast0 = 100,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
        monitor: Literal["val_loss", "val_accuracy"] = "val_loss",
        test_base: bool = True,
        add_tokens: list[str] | None = None,
    ) -> None:
        super().__init__()
        refuse_out_of_range("model.", CausalLMModule.__init__, locals())
        self.base = base
        self.revision = revision
        self.dtype_of_base: Dtype = dtype
        self.attn_implementation = attn_implementation
        self.quantization: Quantization | None = quantization
        self.activation_checkpointing = activation_checkpointing
        self.trust_remote_code = trust_remote_code
        self.random_init = random_init
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.optimizer_factory = optimizer
        self.scheduler_factory = lr_scheduler
        self.monitor = monitor
        self.test_base = test_base
        self.add_tokens = add_tokens
        self.adapters: dict[str, Adapter] = {}
        #: What the last test or prediction answered.
        self.answers: Answers | None = None
        #: Records of an interrupted test, by set and row: those rows are not answered again.
        self.known_answers: dict[str, dict[int, Record]] = {}
        #: Saved adapters whose values the injected ones begin with, if there are any.
        self.initial: SavedAdapters | None = None
        self.val_accuracy = AnswerAccuracy()
        #: The configuration of the command that trains, if there is one; it travels in the checkpoints.
        self.recorded_config: dict[str, Any] | None = None
        self._config: PretrainedConfig | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._fingerprint: dict[str, Any] | None = None

    # ---- the base and its adapters

    @property
    def config(self) -> PretrainedConfig:
        """The base's configuration, read on first use and without its weights."""
        if self._config is None:
            self._config = load_config(self.base, self.revision, self.trust_remote_code)
        return self._config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, read on first use and without its weights."""
        if self._tokenizer is None:
            tokenizer = load_tokenizer(self.base, self.revision, self.trust_remote_code)
            self._tokenizer = add_tokens(tokenizer, self.add_tokens or [])
        return self._tokenizer

    def build_base(self) -> PreTrainedModel:
        """The frozen base as ``self.model``: loaded the first time, the same object ever after."""
        if "model" not in self._modules:
            if self._strategy.divides_base and (self.quantization or getattr(self.config, "quantization_config", None)):
                raise UserError("A quantised base cannot be sharded: train it with --trainer.strategy ddp.")
            self.model = self._strategy.build_base(self._load, self._skeleton)
            if self.add_tokens:
                # The base is known by what it was before it grew.
                self._fingerprint = fingerprint(self.model)
                grow_embeddings(self.model, len(self.tokenizer))
            if self.initial is not None:
                self.initial.make_room(self.model)
        return self.model

    def _load(self) -> PreTrainedModel:
        return load_base(
            self.base,
            self.revision,
            self.dtype_of_base,
            self.attn_implementation,
            self.trust_remote_code,
            self.random_init,
            quantization=self.quantization,
            device=trainer.strategy.root_device if (trainer := trainer_of(self)) else None,
        )

    def _skeleton(self) -> PreTrainedModel:
        return meta_model(self.config, self.trust_remote_code, self.attn_implementation)

    @property
    def virtual_tokens(self) -> int:
        """Positions of the base's context that the adapters take, those included that are still to be injected."""
        coming = [c for c in getattr(trainer_of(self), "callbacks", ()) if isinstance(c, Adapter)]
        adapters = {adapter.name: adapter for adapter in (*coming, *self.adapters.values())}
        return sum(adapter.virtual_tokens for adapter in adapters.values())

    @property
    def takes_one_packed_sequence(self) -> bool:
        """Whether packed rows have to lie in one sequence: flash attention sees the ends of rows in no larger batch."""
        return "flash" in str(self.model.config._attn_implementation)

    @property
    def _strategy(self) -> StrategyTraits:
        return traits_of(getattr(trainer_of(self), "strategy", None))

    def configure_model(self) -> None:
        """Shard the base and the adapters in it, where the strategy does that; Lightning calls this after ``setup``."""
        if self._strategy.divides_base:
            # A sharded base can no longer be sampled.
            self._fingerprint = self.trainer.strategy.broadcast(self.base_fingerprint())
            self._strategy.shard(self.model)

    def add_adapter(self, adapter: Adapter) -> None:
        """Inject ``adapter`` into the base; an adapter that is there already stays as it is.

        Raises:
            UserError: another adapter has its name.
        """
        known = self.adapters.get(adapter.name)
        if known is not None and known.init_args() != adapter.init_args():
            raise UserError(f"Two adapters are named '{adapter.name}': give each its own --adapter.name.")
        self.adapters[adapter.name] = adapter
        adapter.attach_to(self.build_base(), seed=None if self._strategy.receives_values else _seed())

    def setup(self, stage: str) -> None:
        """Build the base for runs without an adapter, fill in saved adapters, and refuse to train nothing."""
        if (trainer := trainer_of(self)) and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.build_base()
        if self.initial is not None:
            if not self._strategy.receives_values:
                self.initial.check(self.model)
                self.initial.fill(self.model)
            self.initial = None
        if stage == "fit" and not self.adapter_parameters():
            raise UserError("Nothing to train: the base is frozen and there is no adapter. Pass --adapter LoRA.")
        if stage == "fit" and self.activation_checkpointing:
            self._checkpoint_activations()
        if isinstance(data := getattr(trainer_of(self), "datamodule", None), ReasoningDataModule):
            self.connect(data)

    @property
    def hparams_initial(self) -> AttributeDict:
        """What a module of one's own hands to loggers by ``save_hyperparameters``, without secrets."""
        return masked_values(super().hparams_initial)

    def _checkpoint_activations(self) -> None:
        """Let the decoder layers recompute their activations; in evaluation mode they do nothing of the kind.

        Raises:
            UserError: transformers cannot do this for the model.
        """
        if not self.model.supports_gradient_checkpointing:
            raise UserError(f"{type(self.model).__name__} has no activation checkpointing: switch it off.")
        # The reentrant kind would need an input that requires a gradient, which a frozen embedding does not give.
        # transformers has given it a new name; the old one goes with version 6.
        enable = getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that all adapters declare, by their path in this module."""
        return {
            f"model.{name}": parameter
            for adapter in self.adapters.values()
            for name, parameter in adapter.adapter_parameters(self.model).items()
        }

    def adapter_state(self) -> dict[str, Tensor]:
        """What all adapters save, by its path in this module: the parameters, and what goes with them."""
        return {
            f"model.{name}": value
            for adapter in self.adapters.values()
            for name, value in adapter.adapter_state(self.model).items()
        }

    @contextmanager
    def base_alone(self) -> Iterator[None]:
        """Within it the model is the base: every adapter is switched off."""
        with ExitStack() as stack:
            for adapter in self.adapters.values():
                stack.enter_context(adapter.disabled(self.model))
            yield

    # ---- loss

    def hidden_states(self, batch: dict[str, Any]) -> Tensor:
        """The decoder's last hidden states, (B, T, D), for the T given tokens."""
        return head.hidden_states(self.model, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """The vocabulary's logits for hidden states: (..., D) -> (..., V)."""
        return head.logits(self.model, hidden)

    def label_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of every labelled token, in nats: (B, T, D), (B, T) -> (number of labels,).

        The token at ``t`` is predicted from the state at ``t - 1``. Logits are only computed where there is
        a label, which is a small part of a batch whose prompts are masked.
        """
        shifted = labels[:, 1:]
        here = shifted != IGNORE
        logits = self.logits(hidden[:, :-1][here]).float()
        return self.token_losses(logits, shifted[here])

    def token_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of every labelled token, (N, V), (N,) -> (N,): what a subclass with another loss overrides."""
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    def loss(self, hidden: Tensor, batch: dict[str, Any]) -> Tensor:
        """The batch's part of the mean loss over all labelled tokens of the optimizer step.

        The batches of one step hold different numbers of labels, and averaging their means would weigh some
        tokens more than others. So the sum is divided by the labels of the whole step, and multiplied by what
        Lightning divides by: the accumulated batches, and the processes that gradients are averaged over.
        """
        return self.label_losses(hidden, batch["labels"]).sum() / batch["loss_tokens"] * self._loss_scale

    @property
    def _loss_scale(self) -> int:
        """What Lightning divides a step's gradients by."""
        return self.trainer.world_size * self.trainer.accumulate_grad_batches

    # ---- Lightning's steps

    def on_fit_start(self) -> None:
        """Try out what training rests on, enter training mode, and sum up what several adapters train.

        The base was loaded in evaluation mode, and Lightning leaves modes as it finds them.
        """
        self._check_logits()
        if getattr(self._data, "packing", False):
            check_packing(self, self._data.training_collate())
        self._step_loss = torch.zeros((), device=self.device)
        # The counts of an earlier ``validate`` are inference tensors.
        self.val_accuracy = AnswerAccuracy().to(self.device)
        self.train()
        if len(self.adapters) > 1:
            own = sum(p.numel() for p in self.adapter_parameters().values())
            rank_zero_info(f"{len(self.adapters)} adapters, {own:,} trainable parameters together")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One batch's share of the step's loss."""
        loss = as_forward(self.model, lambda: self.loss(self.hidden_states(batch), batch))
        self._step_loss += loss.detach() / self._loss_scale
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the mean loss over the labelled tokens of the whole step: of its batches, and of all processes."""
        self.log("train_loss", self.trainer.strategy.reduce(self._step_loss, reduce_op="sum"), prog_bar=True)
        self._step_loss = torch.zeros_like(self._step_loss)

    def on_validation_start(self) -> None:
        """``validate`` scores as training does, without its checks before it."""
        if self.trainer.state.fn == "validate":
            self._check_logits()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss on the validation rows, and the accuracy of generated answers when that is asked for."""
        losses = as_forward(self.model, lambda: self.label_losses(self.hidden_states(batch), batch["labels"]))
        # Weighted by labels, so that the epoch's mean is the mean over all labelled tokens.
        self.log("val_loss", losses.mean(), prog_bar=True, batch_size=losses.numel(), sync_dist=True)
        asked = self._data.questions(self._data.validation_set)
        if asked and (self.monitor == "val_accuracy" or self.trainer.state.fn == "validate"):
            rows = [row for row in batch["row_ids"].tolist() if row in asked.examples]
            answers = list(self._evaluator().records(asked, rows))
            self.val_accuracy.update([answer["correct"] for answer in answers])
            self.log("val_accuracy", self.val_accuracy, prog_bar=True, batch_size=max(1, len(answers)))

    def on_test_start(self) -> None:
        """Forget an earlier test, and say who answers this one."""
        self._check_scoring()
        beside = self.base_alone if self.adapters and self.test_base else None
        self.answers = Answers(self._evaluator(), beside, self.known_answers)
        self.test_accuracies = torch.nn.ModuleList(AnswerAccuracy() for _ in self._data.eval_sets).to(self.device)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of one set with the adapters, and with the base alone for comparison."""
        assert self.answers is not None
        asked = self._asked(dataloader_idx)
        records = self.answers.add(asked, batch["row_ids"].tolist())
        accuracy = self.test_accuracies[dataloader_idx]
        assert isinstance(accuracy, AnswerAccuracy)
        accuracy.update([record["correct"] for record in records])
        self.log(f"accuracy/{asked.name}", accuracy, add_dataloader_idx=False, batch_size=len(records))

    def on_test_end(self) -> None:
        """What was taken over belongs to this test only."""
        self.known_answers = {}

    def on_predict_start(self) -> None:
        """Forget an earlier prediction."""
        self._check_scoring()
        self.answers = Answers(self._evaluator())

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[Record]:
        """Answer a batch of rows that may have no gold answer."""
        assert self.answers is not None
        return self.answers.add(self._asked(dataloader_idx), batch["row_ids"].tolist())

    # ---- who answers

    def engine(self, batch_size: int = 8) -> Engine:
        """Writes and scores: the model with what is injected into it. A subclass may have another."""
        return TransformersEngine(
            self.model,
            self.tokenizer,
            batch_size,
            device=self.computes_on,
            hidden_states=self.hidden_states,
            logits=self.logits,
            forward=lambda work: as_forward(self.model, work),
        )

    @property
    def records(self) -> dict[str, list[Record]]:
        """What the last test or prediction wrote, by set: one record a row, in no particular order."""
        return self.answers.records if self.answers else {}

    @property
    def computes_on(self) -> torch.device:
        """Where the model computes; offloaded parameters lie elsewhere."""
        return trainer.strategy.root_device if (trainer := trainer_of(self)) else self.model.device

    @property
    def _data(self) -> ReasoningDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _asked(self, loader: int) -> Questions:
        asked = self._data.questions(self._data.eval_sets[loader])
        assert asked is not None
        return asked

    def _evaluator(self) -> Evaluator:
        return Evaluator(self.engine(self._data.eval_batch_size), asking=self._data.asking)

    def _check_logits(self) -> None:
        check_logits(self.model, self.computes_on, self.logits, lambda work: as_forward(self.model, work))

    def _check_scoring(self) -> None:
        """Options are scored by logits that this module computes itself; generation takes the model's own."""
        if not self._data.asking.protocol.generates:
            self._check_logits()

    def identity(self) -> dict[str, Any]:
        """What tells this model's answers from another's: the base, its number type, the adapters' values."""
        digest = hashlib.sha256()
        for name, value in sorted(self.adapter_state().items()):
            digest.update(name.encode())
            digest.update(full_value(value).cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return {
            "base": self.base_fingerprint(),
            "dtype": str(self.model.dtype),
            "adapters": [describe_adapter(adapter) for adapter in self.adapters.values()],
            "adapter_values": digest.hexdigest(),
            "base_alone": bool(self.adapters and self.test_base),
        }

    def connect(self, data: ReasoningDataModule) -> None:
        """Tell ``data`` what its rows are made for: before they are read, and again when the model is there.

        Raises:
            UserError: Lightning would divide the rows a second time, or change how many batches make a step.
        """
        trainer, text = self.trainer, context_length(self.config)
        if trainer.world_size > 1 and replaces_samplers(trainer):
            raise UserError("Pass Trainer(use_distributed_sampler=False): the data module divides the rows itself.")
        if trainer.state.fn == "fit" and any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "GradientAccumulationScheduler changes how many batches make a step, and the loss is a mean over the "
                "whole step: set one number with --trainer.accumulate_grad_batches."
            )
        virtual = self.virtual_tokens
        table: Any = self.model.get_input_embeddings() if "model" in self._modules else None
        data.connect(
            Reader(self.tokenizer, None if text is None else text - virtual, virtual),
            Processes(
                trainer.global_rank,
                trainer.world_size,
                self._strategy.every_rank_answers_all,
                trainer.accumulate_grad_batches,
                trainer.limit_train_batches,
            ),
            vocabulary=None if table is None else table.weight.shape[0],
            one_sequence=table is not None and self.takes_one_packed_sequence,
            validates_answers=self.monitor == "val_accuracy",
        )

    # ---- optimizer

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and decay over the adapters' parameter groups, or what was asked for."""
        groups = [group for adapter in self.adapters.values() for group in adapter.parameter_groups(self.model)]
        if self.optimizer_factory is not None:
            optimizer = self.optimizer_factory(groups)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_ratio", 1.0)
        if self.scheduler_factory is not None:
            scheduler: Any = self.scheduler_factory(optimizer)
            if monitor := getattr(scheduler, "monitor", None):  # ReduceLROnPlateau waits for a metric
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}
        elif self.optimizer_factory is not None:
            return optimizer
        else:
            total = int(self.trainer.estimated_stepping_batches)
            warmup = min(self.warmup_steps, total // 10)
            scheduler = LambdaLR(optimizer, LinearWarmup(warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- checkpoints

    @property
    def strict_loading(self) -> bool:
        """A checkpoint holds no base, so it can never match every key; ``on_load_checkpoint`` is stricter."""
        return False

    @strict_loading.setter
    def strict_loading(self, value: bool) -> None:
        pass

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapters' parameters, and whatever a subclass holds outside the base."""
        full = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        keep = {f"{prefix}{name}" for name in self.adapter_state()} if "model" in self._modules else set()
        for key in [key for key in full if key.startswith(f"{prefix}model.") and key not in keep]:
            del full[key]
        return full

    def base_fingerprint(self) -> dict[str, Any]:
        """The base's fingerprint; computed once, since the base never changes."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.build_base())
        return self._fingerprint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the adapters again and to know the base."""
        checkpoint["adapters_pl"] = {
            "format": FORMAT,
            "base": {
                "id": self.base,
                "revision": self.revision,
                "fingerprint": self.base_fingerprint(),
                "quantization": self.quantization,
            },
            "add_tokens": self.add_tokens,
            "adapters": [describe_adapter(adapter) for adapter in self.adapters.values()],
            "config": self.recorded_config,
        }
        mask_checkpoint(checkpoint)  # Lightning calls this last: what callbacks and hyperparameters say is in it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another base or of other adapters, instead of scoring the bare base.

        Raises:
            UserError: this is no checkpoint of ours, or its base, adapters or shapes differ from this run's.
        """
        ours = checkpoint.get("adapters_pl")
        if not ours:
            raise UserError("This checkpoint was not written by adapters-pl: it does not say which adapter it holds.")
        check_checkpoint(ours, checkpoint.get("state_dict"), "This checkpoint")
        if not same_base(ours["base"]["fingerprint"], self.base_fingerprint()):
            raise UserError(
                f"This checkpoint belongs to another base: it was trained on '{ours['base']['id']}', "
                f"this run has '{self.base}'. Pass --model.base with the base of the checkpoint."
            )
        here = {name: tuple(p.shape) for name, p in self.adapter_state().items()}
        there = {
            name: tuple(value.shape) for name, value in checkpoint["state_dict"].items() if name.startswith("model.")
        }
        kinds = {name: value.is_floating_point() for name, value in self.adapter_state().items()}
        for name, value in checkpoint["state_dict"].items():
            # What a subclass holds outside the base may be whole numbers.
            if value.is_floating_point() != kinds.get(name, value.is_floating_point()) or not value.isfinite().all():
                where = getattr(trainer_of(self), "ckpt_path", "This checkpoint")
                raise UserError(f"{where}: {name} holds values that are no finite numbers; take another checkpoint.")
        if here != there:
            trained = ", ".join(sorted(_names(ours["adapters"]))) or "none"
            mine = ", ".join(sorted(_names([describe_adapter(a) for a in self.adapters.values()]))) or "none"
            raise UserError(
                f"This checkpoint's adapter differs from the configured one: it holds {trained}, "
                f"this run has {mine}. Leave --adapter out to rebuild the checkpoint's own."
            )


def _names(adapters: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{adapter['class_path'].rsplit('.', 1)[-1]}("
        + ", ".join(f"{key}={value}" for key, value in adapter["init_args"].items() if value is not None)
        + ")"
        for adapter in adapters
    ]


def _seed() -> int:
    """The seed that Lightning's ``seed_everything`` left for everything that draws numbers later."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
