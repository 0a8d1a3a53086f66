"""The Lightning module that trains the adapters in a causal language model, and lets it answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel

from adapters_pl.adapters.base import describe_adapter
from adapters_pl.adapters.folded import folded
from adapters_pl.compat.lightning import replaces_samplers, trainer_of
from adapters_pl.data.module import Processes, ReasoningDataModule
from adapters_pl.data.questions import Questions, Reader
from adapters_pl.data.tokens import IGNORE
from adapters_pl.evaluation.engine import Engine, TransformersEngine
from adapters_pl.evaluation.evaluator import Answers, Evaluator, Record
from adapters_pl.evaluation.metrics import AnswerAccuracy
from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.ranges import AtLeast0, NotNegative, refuse_out_of_range
from adapters_pl.models import head
from adapters_pl.models.base import Dtype, Quantization, context_length
from adapters_pl.training.adapted import AdaptedBase, BaseSource
from adapters_pl.training.checks import check_packing
from adapters_pl.training.hardware import free_memory
from adapters_pl.training.serving.served import refuse_unserved
from adapters_pl.training.serving.vllm_engine import VLLMEngine, serve
from adapters_pl.training.strategies import as_forward, full_value

OptimizerFactory = Callable[[Iterable], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class CausalLMModule(AdaptedBase):
    """A frozen causal language model that is trained through its adapters alone.

    The base is loaded by :meth:`build_base`, when the first adapter's ``setup`` asks for it. Checkpoints hold
    the adapters' parameters, how to build the adapters, and the base's fingerprint; never the base.

    Args:
        base: an embedded base's name (``quickstart``), a model directory, or a hub id.
        revision: branch, tag or commit on the hub.
        dtype: of the frozen base; ``auto`` is what its weights are stored in. Adapters' parameters are float32,
            and compute in the base's.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2`` or ``flex_attention``, of which the last two
            compute nothing between packed rows; transformers' choice if not given.
        quantization: hold the base in ``8bit`` or ``4bit`` (nf4, double quantisation); needs the extra ``quant``.
        activation_checkpointing: keep only what enters each decoder layer and compute the rest again in the backward
            pass: less memory for about a third more time.
        compile: make one graph of every decoder layer by ``torch.compile`` in training. It takes half a minute or more
            to begin. On CPUs it pays without dropout alone; ``bench`` says how much.
        trust_remote_code: run code that comes with the model.
        random_init: random weights instead of the base's: a control.
        lr: peak learning rate of AdamW (LLM-Adapters' is 3e-4).
        weight_decay: of AdamW.
        warmup_steps: steps of linear warm-up, at most a tenth of the run; linear decay to zero follows.
        optimizer: another optimizer, given the parameter groups.
        lr_scheduler: a scheduler for it, stepped every optimizer step.
        monitor: what ``best.ckpt`` is chosen by: ``val_loss``, or ``val_accuracy`` of generated answers.
        test_base: also test the base alone, for comparison; switch it off where generation is expensive.
        engine: who answers in ``test`` and ``predict``: ``transformers``, or ``vllm`` in a process of its own, which
            takes LoRA as it is and other changes of weights merged; it needs the extra ``vllm``.
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
        compile: bool = False,
        trust_remote_code: bool = False,
        random_init: bool = False,
        lr: NotNegative = 3e-4,
        weight_decay: NotNegative = 0.0,
        warmup_steps: AtLeast0 = 100,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
        monitor: Literal["val_loss", "val_accuracy"] = "val_loss",
        test_base: bool = True,
        engine: Literal["transformers", "vllm"] = "transformers",
        add_tokens: list[str] | None = None,
    ) -> None:
        refuse_out_of_range("model.", CausalLMModule.__init__, locals())
        source = BaseSource(
            base,
            revision,
            dtype,
            attn_implementation,
            quantization,
            trust_remote_code,
            random_init,
            add_tokens or [],
        )
        super().__init__(source, activation_checkpointing, compile)
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.optimizer_factory = optimizer
        self.scheduler_factory = lr_scheduler
        self.monitor = monitor
        self.test_base = test_base
        self.answers_by = engine
        self._served: VLLMEngine | None = None
        #: What the last test or prediction answered.
        self.answers: Answers | None = None
        #: Records of an interrupted test, by set and row: those rows are not answered again.
        self.known_answers: dict[str, dict[int, Record]] = {}
        self.val_accuracy = AnswerAccuracy()

    def setup(self, stage: str) -> None:
        """Build the base with its adapters, and tell the data module about it."""
        super().setup(stage)
        if isinstance(data := getattr(trainer_of(self), "datamodule", None), ReasoningDataModule):
            self.connect(data)

    @property
    def takes_one_packed_sequence(self) -> bool:
        """Whether packed rows have to lie in one sequence: flash attention sees the ends of rows in no larger batch."""
        return "flash" in str(self.model.config._attn_implementation)

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
        states, targets = hidden[:, :-1][here], shifted[here]
        own = (CausalLMModule.logits, CausalLMModule.token_losses)
        if tuple(getattr(method, "__func__", None) for method in (self.logits, self.token_losses)) == own:
            return head.cross_entropy(self.model, states, targets)
        return self.token_losses(self.logits(states).float(), targets)

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
        """``validate`` scores as training does, without its checks before it; and say who answers."""
        if self.trainer.state.fn == "validate":
            self._check_logits()
        self._answering = self._evaluator()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss on the validation rows, and the accuracy of generated answers when that is asked for."""
        # A graph of its own for each length of a cache would cost more than it saves.
        with torch.compiler.set_stance("force_eager") if self.compiles_layers else nullcontext():
            self._validate(batch)

    def _validate(self, batch: dict[str, Any]) -> None:
        losses = as_forward(self.model, lambda: self.label_losses(self.hidden_states(batch), batch["labels"]))
        # Weighted by labels, so that the epoch's mean is the mean over all labelled tokens.
        self.log("val_loss", losses.mean(), prog_bar=True, batch_size=losses.numel(), sync_dist=True)
        questions = self._data.questions(self._data.validation_set)
        if questions and (self.monitor == "val_accuracy" or self.trainer.state.fn == "validate"):
            rows = [row for row in batch["row_ids"].tolist() if row in questions.examples]
            answers = list(self._answering.records(questions, rows))
            self.val_accuracy.update([answer["correct"] for answer in answers])
            self.log("val_accuracy", self.val_accuracy, prog_bar=True, batch_size=max(1, len(answers)))

    def on_test_start(self) -> None:
        """Forget an earlier test, and say who answers this one."""
        self._begin_answering(self.base_alone if self.adapters and self.test_base else None, self.known_answers)
        self.test_accuracies = torch.nn.ModuleList(AnswerAccuracy() for _ in self._data.eval_sets).to(self.device)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of one set with the adapters, and with the base alone for comparison."""
        assert self.answers is not None
        questions = self._questions(dataloader_idx)
        records = self.answers.add(questions, batch["row_ids"].tolist())
        accuracy = self.test_accuracies[dataloader_idx]
        assert isinstance(accuracy, AnswerAccuracy)
        accuracy.update([record["correct"] for record in records])
        self.log(f"accuracy/{questions.name}", accuracy, add_dataloader_idx=False, batch_size=len(records))

    def on_test_end(self) -> None:
        """What was taken over belongs to this test only."""
        self.known_answers = {}
        self._end_answering()

    def on_predict_start(self) -> None:
        """Forget an earlier prediction."""
        self._begin_answering()

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[Record]:
        """Answer a batch of rows that may have no gold answer."""
        assert self.answers is not None
        return self.answers.add(self._questions(dataloader_idx), batch["row_ids"].tolist())

    def on_predict_end(self) -> None:
        """Keep the records alone."""
        self._end_answering()

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
            any_at_work=self._strategy.any_at_work,
        )

    def _begin_answering(
        self,
        beside: Callable[[], AbstractContextManager[None]] | None = None,
        known: Mapping[str, Mapping[int, Record]] | None = None,
    ) -> None:
        if self.answers_by == "vllm":
            served = self._served = serve(self.source, self.model, self.adapters, self._data, bool(beside))
            evaluator = Evaluator(served, asking=self._data.asking)
            self.answers = Answers(evaluator, nullcontext, beside and served.base_alone, known, self._data.rows_here)
        else:
            self._check_scoring()
            self.answers = Answers(self._evaluator(), self.folded(), beside, known, self._data.rows_here)

    def _end_answering(self) -> None:
        assert self.answers is not None
        self.answers.end()
        if self._served is not None:
            self._served.close()
            self._served = None

    def build_base(self) -> PreTrainedModel:
        """The frozen base; what vLLM cannot serve is refused before it is loaded."""
        fn = getattr(trainer_of(self), "state", None) and self.trainer.state.fn
        if "model" not in self._modules and self.answers_by == "vllm" and fn in ("test", "predict"):
            adapters, beside = list(self.coming_adapters.values()), self.test_base and fn == "test"
            refuse_unserved(self.source, adapters, self._data, test_base=beside, processes=self.trainer.world_size)
        return super().build_base()

    def folded(self) -> Callable[[], AbstractContextManager[None]]:
        """A context within which the adapter is folded into the base, where that changes nothing but rounding.

        It does nothing where there is no such change of weights, or no memory for a second set of them.
        """
        trainer, found = trainer_of(self), None
        if (
            len(self.adapters) == 1
            and not self._strategy.divides_base
            and (trainer is None or trainer.precision == "32-true")
        ):
            free = free_memory(self.computes_on.type, trainer.world_size if trainer else 1)
            (adapter,) = self.adapters.values()
            found = folded(self.model, adapter, None if free is None else free // 2)
        return found or nullcontext

    @property
    def records(self) -> dict[str, list[Record]]:
        """What the last test or prediction wrote, by set: one record a row, in no particular order."""
        return self.answers.records if self.answers else {}

    @property
    def reader(self) -> Reader:
        """Who reads the rows: the tokenizer, and what virtual tokens leave of the base's context."""
        text, virtual = context_length(self.config), self.virtual_tokens
        return Reader(self.tokenizer, None if text is None else text - virtual, virtual)

    @property
    def _data(self) -> ReasoningDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _questions(self, loader: int) -> Questions:
        questions = self._data.questions(self._data.eval_sets[loader])
        assert questions is not None
        return questions

    def _evaluator(self) -> Evaluator:
        return Evaluator(self.engine(self._data.eval_batch_size), asking=self._data.asking)

    def _check_logits(self) -> None:
        head.check_logits(self.model, self.computes_on, self.logits, lambda work: as_forward(self.model, work))

    def _check_scoring(self) -> None:
        """Options and general text are scored by logits computed here; generation takes the model's own."""
        if not self._data.asking.protocol.generates or self._data.general_text is not None:
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
            **({"engine": self.answers_by} if self.answers_by != "transformers" else {}),
        }

    def connect(self, data: ReasoningDataModule) -> None:
        """Tell ``data`` what its rows are made for: before they are read, and again when the model is there.

        Raises:
            UserError: Lightning would divide the rows a second time, or change how many batches make a step.
        """
        trainer = self.trainer
        if trainer.world_size > 1 and replaces_samplers(trainer):
            raise UserError("Pass Trainer(use_distributed_sampler=False): the data module divides the rows itself.")
        if trainer.state.fn == "fit" and any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "GradientAccumulationScheduler changes how many batches make a step, and the loss is a mean over the "
                "whole step: set one number with --trainer.accumulate_grad_batches."
            )
        table: Any = self.model.get_input_embeddings() if "model" in self._modules else None
        data.connect(
            self.reader,
            Processes(
                trainer.global_rank,
                trainer.world_size,
                trainer.accumulate_grad_batches,
                trainer.limit_train_batches,
                on_gpu=trainer.strategy.root_device.type == "cuda",
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


class LinearWarmup:
    """The factor on the learning rate: up to 1 in ``warmup`` steps, then linearly down to 0 at ``total``."""

    def __init__(self, warmup: int, total: int) -> None:
        self.warmup = warmup
        self.total = total

    def __call__(self, step: int) -> float:
        """The factor at ``step``; the first step of a warm-up already moves."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return max(0.0, (self.total - step) / max(1, self.total - self.warmup))
