"""The half of the module that answers: test, prediction, and what tells one model's answers from another's."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningModule
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapters_pl.adapters.base import Adapter, describe_adapter
from adapters_pl.checks import check_logits
from adapters_pl.generation import Generation, generate
from adapters_pl.masking import masked_values
from adapters_pl.metrics import AnswerAccuracy
from adapters_pl.scoring import score
from adapters_pl.strategies import as_forward

if TYPE_CHECKING:
    from adapters_pl.data.base import ReasoningDataModule

#: What a batch must hold to be answered.
ASKED = ("prompt_ids", "prompt_mask", "row_ids")


class AnsweringModule(LightningModule):
    """Lightning's test and prediction steps for a causal language model with adapters.

    A subclass says what the model is, how it is known, and how its adapters are switched off.
    """

    model: PreTrainedModel
    test_base: bool

    def __init__(self) -> None:
        super().__init__()
        self.adapters: dict[str, Adapter] = {}
        #: What the last test or prediction wrote, by set: one record a row, in no particular order.
        self.records: dict[str, list[dict[str, Any]]] = {}
        #: The records of the last test batch that this process answered itself.
        self.fresh: list[dict[str, Any]] = []
        #: Records of an interrupted test, by set and row: those rows are not answered again.
        self.answered: dict[str, dict[int, dict[str, Any]]] = {}
        #: Seconds that this process spent on answers with the adapters, by set, and the tokens it wrote in them.
        self.spent: dict[str, tuple[float, int]] = {}

    @property
    def hparams_initial(self) -> AttributeDict:
        """What a module of one's own hands to loggers by ``save_hyperparameters``, without secrets."""
        return masked_values(super().hparams_initial)

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""

    @abstractmethod
    def hidden_states(self, batch: dict[str, Any]) -> Tensor:
        """The decoder's last hidden states, (B, T, D)."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """The vocabulary's logits for hidden states: (..., D) -> (..., V)."""

    @abstractmethod
    def adapter_state(self) -> dict[str, Tensor]:
        """What all adapters save, by its path in this module."""

    @abstractmethod
    def base_fingerprint(self) -> dict[str, Any]:
        """What tells the base from another."""

    @abstractmethod
    def base_alone(self) -> AbstractContextManager[None]:
        """Within it the model is the base: every adapter is switched off."""

    def on_test_start(self) -> None:
        """Forget an earlier test: its records, and its counts."""
        self._check_scoring()
        self.records, self.spent = {}, {}
        self.test_accuracies = torch.nn.ModuleList(AnswerAccuracy() for _ in self._data.eval_sets).to(self.device)

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of one set with the adapters, and with the base alone for comparison."""
        name = self._data.eval_sets[dataloader_idx]
        known, rows = self.answered.get(name, {}), batch["row_ids"].tolist()
        new = [place for place, row in enumerate(rows) if row not in known]
        self.fresh = self._test({key: batch[key][new] for key in ASKED}, name) if new else []
        found = {**known, **{record["row"]: record for record in self.fresh}}
        records = [found[row] for row in rows]
        accuracy = self.test_accuracies[dataloader_idx]
        assert isinstance(accuracy, AnswerAccuracy)
        accuracy.update([record["correct"] for record in records])
        self.log(f"accuracy/{name}", accuracy, add_dataloader_idx=False, batch_size=len(records))
        self.records.setdefault(name, []).extend(records)

    def _check_scoring(self) -> None:
        """Options are scored by logits that this module computes itself; generation takes the model's own."""
        if not self._data.protocol.generates:
            check_logits(self)

    def identity(self) -> dict[str, Any]:
        """What tells this model's answers from another's: the base, its number type, the adapters' values."""
        digest = hashlib.sha256()
        for name, value in sorted(self.adapter_state().items()):
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            digest.update(name.encode())
            digest.update(whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return {
            "base": self.base_fingerprint(),
            "dtype": str(self.model.dtype),
            "adapters": [describe_adapter(adapter) for adapter in self.adapters.values()],
            "adapter_values": digest.hexdigest(),
            "base_alone": bool(self.adapters and self.test_base),
        }

    def on_test_end(self) -> None:
        """What was taken over belongs to this test only."""
        self.answered = {}

    def _test(self, batch: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """Answers with the adapters, and beside them what the base alone answers."""
        began = time.monotonic()
        records = self._answer(batch, name)
        seconds, tokens = self.spent.get(name, (0.0, 0))
        written = sum(record["tokens"] for record in records)
        self.spent[name] = (seconds + time.monotonic() - began, tokens + written)
        if self.adapters and self.test_base:
            with self.base_alone():
                for record, base in zip(records, self._answer(batch, name), strict=True):
                    record["base_prediction"] = base["prediction"]
                    record["base_correct"] = base["correct"]
        return records

    def on_predict_start(self) -> None:
        """Forget the records of an earlier prediction."""
        self._check_scoring()
        self.records = {}

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Answer a batch of rows that may have no gold answer."""
        name = self._data.eval_sets[dataloader_idx]
        records = self._answer(batch, name)
        self.records.setdefault(name, []).extend(records)
        return records

    def generate(self, batch: dict[str, Any], max_new_tokens: int, **decoding: Any) -> list[Generation]:
        """Continuations of the prompts ``batch['prompt_ids']``, (B, T), padded on the left.

        Args:
            batch: as the data module's loaders give it.
            max_new_tokens: the most tokens to add.
            decoding: beams, or temperature and seeds, see :func:`adapters_pl.generation.generate`; else greedy.
        """
        return generate(
            self.model,
            self.tokenizer,
            batch["prompt_ids"],
            batch["prompt_mask"],
            max_new_tokens=max_new_tokens,
            **decoding,
        )

    @property
    def computes_on(self) -> torch.device:
        """Where the model computes; offloaded parameters lie elsewhere."""
        return self._trainer.strategy.root_device if self._trainer is not None else self.model.device

    @property
    def _data(self) -> ReasoningDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _answer(self, batch: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """One record for each row of ``batch``: what was written, the answer in it, and whether it is right."""
        data, rows = self._data, batch["row_ids"].tolist()
        if not data.protocol.generates:
            pad_id = self.tokenizer.pad_token_id
            assert isinstance(pad_id, int)
            choices = data.choices(name, rows)
            return data.judge(
                name, rows, as_forward(self.model, lambda: score(self, choices, pad_id, self.computes_on))
            )
        if data.temperature:
            samples = [
                self.generate(
                    batch,
                    data.new_tokens(name),
                    temperature=data.temperature,
                    seeds=data.sampling_seeds(name, rows, sample),
                )
                for sample in range(data.samples)
            ]
            return data.judge(name, rows, list(zip(*samples, strict=True)))
        beams = {"beams": data.protocol.beams} if data.protocol.beams > 1 else {}
        return data.judge(name, rows, self.generate(batch, data.new_tokens(name), **beams))
