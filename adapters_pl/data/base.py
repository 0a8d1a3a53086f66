"""What every dataset shares: from rows to examples, prompts, batches and judged answers.

A dataset class is declarations, and an ``example`` of its own only if its rows need one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from datasets import Dataset
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from adapters_pl.answers import Kind, protocol_named
from adapters_pl.base_model import context_length
from adapters_pl.data.files import as_dataset, find_file, read_rows
from adapters_pl.data.registry import SETS, Example, set_named
from adapters_pl.data.sampler import LengthSortedSampler, StepSampler
from adapters_pl.data.tokenize import (
    Collate,
    TokenRow,
    TrainingRows,
    encode_prompt,
    encode_response,
    fit_to_cutoff,
)
from adapters_pl.errors import UserError
from adapters_pl.generation import Generation
from adapters_pl.prompts import render

if TYPE_CHECKING:
    from adapters_pl.module import CausalLMModule

Split = Literal["train", "test"]
OnOverflow = Literal["truncate", "drop", "error"]

#: New tokens per answer, as LLM-Adapters generates them: reasoning takes room, an option does not.
NEW_TOKENS: dict[Kind, int] = {"number": 256, "choice": 32, "text": 256}


@dataclass
class _EvalSet:
    """One set that answers are generated for: its examples and their prompts in tokens."""

    owner: ReasoningDataModule
    examples: dict[int, Example]
    rows: list[TokenRow]


class ReasoningDataModule(LightningDataModule):
    """A reasoning dataset in the published layout: rows of ``instruction, input, output, answer``.

    Args:
        root: the folder that holds ``dataset/<Name>/{train,test}.json`` and ``ft-training_set/*.json``;
            else the environment variable ``ADAPTERS_PL_DATA``, else the current folder.
        template: the prompt, by its name in ``adapters_pl.prompts``.
        protocol: how answers are read and judged, by its name in ``adapters_pl.answers``.
        batch_size: training rows per process and batch.
        eval_batch_size: rows per process and batch when answers are generated.
        cutoff: the longest training row in tokens (at most the model's context).
        on_overflow: what to do with a longer one: ``truncate`` its prompt from the left, ``drop`` it, or
            treat it as an ``error``.
        train_on_prompt: also learn the prompt's tokens.
        val_size: rows held out of training for validation, at most a tenth of them; drawn by ``seed``,
            from the rows beyond ``limit_train`` if there are enough.
        limit_train: only the first so many training rows.
        limit_test: only the first so many rows of each test set.
        test_sets: the sets to test on, by published name, instead of the dataset's own.
        max_new_tokens: the most tokens of an answer; by the kind of set if not given.
        num_workers: processes that load batches.
        seed: of the validation rows and of the order of training rows.
    """

    #: The published folder name, by which results, files and functions call the set.
    set_name: ClassVar[str] = ""
    #: What kind of answer the set has.
    kind: Kind = "text"
    #: The possible answers of a multiple-choice set.
    options: tuple[str, ...] = ()
    #: Files in the published layout; a set without a training file tests only.
    train_file: ClassVar[str | None] = None
    test_file: ClassVar[str | None] = None
    #: The sets that a model trained on this one is judged on, if not on the set itself.
    judged_on: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.set_name:
            SETS.setdefault(cls.set_name, cls)

    def __init__(
        self,
        root: str | None = None,
        template: str = "alpaca",
        protocol: str = "strict",
        batch_size: int = 4,
        eval_batch_size: int = 8,
        cutoff: int = 256,
        on_overflow: OnOverflow = "truncate",
        train_on_prompt: bool = False,
        val_size: int = 120,
        limit_train: int | None = None,
        limit_test: int | None = None,
        test_sets: list[str] | None = None,
        max_new_tokens: int | None = None,
        num_workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("cutoff", cutoff, 8),
            ("val_size", val_size, 0),
            ("limit_train", limit_train, 1),
            ("limit_test", limit_test, 1),
            ("max_new_tokens", max_new_tokens, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"data.{name} is {value}; it must be at least {least}.")
        render(template, "")  # a misspelt name fails here and not after the model is loaded
        self.protocol = protocol_named(protocol)
        self.root = root
        self.template = template
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.cutoff = cutoff
        self.on_overflow = on_overflow
        self.train_on_prompt = train_on_prompt
        self.val_size = val_size
        self.limit_train = limit_train
        self.limit_test = limit_test
        self.test_sets = test_sets if test_sets is not None else list(self.judged_on or (self.set_name,))
        for name in self.test_sets:
            if name != self.set_name:
                set_named(name)
        self.max_new_tokens = max_new_tokens
        self.num_workers = num_workers
        self.seed = seed
        self.training: TrainingRows | None = None
        self.validation: TrainingRows | None = None
        self._evaluated: dict[str, _EvalSet] = {}

    # ---- what a dataset may write itself

    def rows(self, split: Split) -> Dataset:
        """The rows of a split, in the file's order.

        Raises:
            UserError: the set has no such file, or the file is not as it should be.
        """
        relative = self.train_file if split == "train" else self.test_file
        if relative is None:
            raise UserError(self._no_file(split))
        path = find_file(self.root, relative, self.set_name)
        return as_dataset(read_rows(path), path)

    def example(self, row: dict[str, Any], index: int) -> Example:
        """One row as an :class:`Example`; ``index`` counts the file's rows from 0."""
        return Example(
            id=str(row["id"]) if row.get("id") is not None else f"{self.set_name}-{index}",
            set=self.set_name,
            instruction=row["instruction"],
            input=row.get("input") or "",
            response=row.get("output") or row.get("answer") or "",
            answer=row.get("answer"),
            options=self.options,
        )

    # ---- for everyone

    def examples(self, split: Split) -> list[Example]:
        """All examples of a split; needs no model, so a notebook can look at the data first."""
        examples = [self.example(row, index) for index, row in enumerate(self.rows(split))]
        first: dict[str, int] = {}
        for number, example in enumerate(examples, start=1):
            earlier = first.setdefault(example.id, number)
            if earlier != number:
                raise UserError(f"{self.set_name}: rows {earlier} and {number} have the same id '{example.id}'.")
        return examples

    def prompt(self, example: Example) -> str:
        """The text that the model is given for ``example``."""
        return render(self.template, example.instruction, example.input)

    @property
    def validation_set(self) -> str:
        """The name under which the validation rows are answered."""
        return f"{self.set_name}-validation"

    @property
    def eval_sets(self) -> list[str]:
        """The sets that are tested, in the order of their data loaders."""
        return self.test_sets

    def new_tokens(self, name: str) -> int:
        """The most new tokens of an answer to set ``name``.

        Never more than fit the model's context after the set's longest prompt: one number for the set, so
        that no answer depends on the rows it happened to share a batch with.
        """
        evaluated = self._evaluated[name]
        wanted = self.max_new_tokens or NEW_TOKENS[evaluated.owner.kind]
        context = self._context()
        if context is None:
            return wanted
        return min(wanted, context - max(len(row.prompt) for row in evaluated.rows))

    def judge(self, name: str, row_ids: Sequence[int], generations: Sequence[Generation]) -> list[dict[str, Any]]:
        """One record a row: id, output, prediction, gold, correct (``None`` without gold), finish, tokens."""
        evaluated = self._evaluated[name]
        kind = evaluated.owner.kind
        records = []
        for row, generation in zip(row_ids, generations, strict=True):
            example = evaluated.examples[row]
            prediction = self.protocol.extract(generation.text, kind, example.options)
            right = None if example.answer is None else self.protocol.match(prediction, example.answer, kind)
            records.append(
                {
                    "row": row,
                    "id": example.id,
                    "output": generation.text,
                    "prediction": prediction,
                    "gold": example.answer,
                    "correct": right,
                    "finish": generation.finish,
                    "tokens": generation.tokens,
                }
            )
        return records

    # ---- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Read and tokenise what ``stage`` needs. Runs before the base's weights are loaded."""
        if self.trainer is not None and self.trainer.world_size > 1:
            connector = self.trainer._accelerator_connector
            if connector.use_distributed_sampler:
                raise UserError("Pass Trainer(use_distributed_sampler=False): the data module divides the rows itself.")
        if stage in ("fit", "validate"):
            self._setup_training()
        else:
            for name in self.test_sets:
                owner = self._set(name)
                examples = owner.examples("test")[: self.limit_test]
                self._evaluate(name, owner, dict(enumerate(examples)), need_gold=stage == "test")

    def train_dataloader(self) -> DataLoader:
        """Batches in optimizer steps, see :class:`StepSampler`."""
        assert self.training is not None
        assert self.trainer is not None
        sampler = StepSampler(
            self.training.label_counts(),
            self.batch_size,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.trainer.accumulate_grad_batches,
            self.seed,
        )
        return self._loader(self.training, sampler)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The validation rows; none if ``val_size`` is 0."""
        if self.validation is None or not len(self.validation):
            if self.trainer is not None and self.trainer.state.fn == "validate":
                raise UserError("There are no validation rows: set --data.val_size above 0.")
            return []
        return self._eval_loader(self.validation, [row.length for row in self.validation.rows])

    def test_dataloader(self) -> list[DataLoader]:
        """One loader a test set, in the order of ``eval_sets``."""
        loaders = []
        for name in self.eval_sets:
            rows = self._evaluated[name].rows
            loaders.append(self._eval_loader(TrainingRows(rows), [len(row.prompt) for row in rows]))
        return loaders

    def predict_dataloader(self) -> list[DataLoader]:
        """The same loaders as for a test; the rows need no gold answer."""
        return self.test_dataloader()

    # ---- inside

    def _no_file(self, split: Split) -> str:
        if split == "test":
            return f"{self.set_name} has no test file: name the sets to test on with --data.test_sets."
        trained_by = sorted(
            other.__name__ for other in SETS.values() if other.train_file and self.set_name in other.judged_on
        )
        sets = f"train on {' or '.join(trained_by)}, judged on it, or " if trained_by else ""
        return (
            f"{self.set_name} has no training file, so it can only be tested: {sets}"
            "train on your own file with --data InstructionJSON --data.path FILE."
        )

    def _set(self, name: str) -> ReasoningDataModule:
        return self if name == self.set_name else set_named(name)(root=self.root)

    @property
    def _module(self) -> CausalLMModule:
        assert self.trainer is not None
        return cast("CausalLMModule", self.trainer.lightning_module)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self._module.tokenizer

    def _context(self) -> int | None:
        return context_length(self._module.config)

    def _setup_training(self) -> None:
        examples = self.examples("train")
        train, held_out = self._divide(len(examples))
        self.training = TrainingRows(self._tokenised(examples, train), self.train_on_prompt)
        self.validation = TrainingRows(self._tokenised(examples, held_out), self.train_on_prompt)
        if held_out:
            self._evaluate(self.validation_set, self, {i: examples[i] for i in held_out}, need_gold=False)

    def _divide(self, count: int) -> tuple[list[int], list[int]]:
        """The rows to train on and the rows to validate on; both in the file's order, no row in both."""
        limited = min(count, self.limit_train or count)
        beyond = count - limited
        if not self.val_size or (limited < 2 and beyond < self.val_size):
            return list(range(limited)), []
        held = self.val_size if beyond >= self.val_size else min(self.val_size, max(1, limited // 10))
        generator = torch.Generator().manual_seed(self.seed)
        pool = range(limited, count) if beyond >= self.val_size else range(limited)
        drawn = sorted(pool[i] for i in torch.randperm(len(pool), generator=generator)[:held].tolist())
        if held < self.val_size:
            rank_zero_info(f"{count} rows: {held} are held out for validation instead of {self.val_size}")
        kept = set(drawn)
        return [i for i in range(limited) if i not in kept], drawn

    def _tokenised(self, examples: list[Example], chosen: list[int]) -> list[TokenRow]:
        tokenizer, context = self._tokenizer(), self._context()
        cutoff = min(self.cutoff, context) if context else self.cutoff
        rows, counts = [], {"prompt": 0, "response": 0}
        for index in chosen:
            example = examples[index]
            if not example.response:
                raise UserError(f"{self.set_name}: row {index + 1} has neither 'output' nor 'answer' to learn.")
            prompt = self.prompt(example)
            row = TokenRow(
                index, encode_prompt(tokenizer, prompt), encode_response(tokenizer, prompt, example.response)
            )
            if self.on_overflow != "drop":
                self._refuse_beyond_context(row, example, context)
            fitted = fit_to_cutoff(row, cutoff)
            if fitted.overflow:
                counts[fitted.overflow] += 1
                if self.on_overflow == "error":
                    raise UserError(
                        f"{self.set_name}: row {index + 1} has {row.length} tokens, the cutoff is {cutoff}: raise "
                        "--data.cutoff, or choose --data.on_overflow drop or truncate."
                    )
                if self.on_overflow == "drop":
                    continue
            rows.append(fitted)
        if over := sum(counts.values()):
            what = (
                "dropped"
                if self.on_overflow == "drop"
                else f"shortened ({counts['prompt']} at the beginning of the prompt, "
                f"{counts['response']} also at the end of the response)"
            )
            rank_zero_info(f"{self.set_name}: {over} of {len(chosen)} rows are longer than {cutoff} tokens: {what}")
        if chosen and not rows:
            raise UserError(f"{self.set_name}: every row is longer than {cutoff} tokens; raise --data.cutoff.")
        return rows

    def _refuse_beyond_context(self, row: TokenRow, example: Example, context: int | None) -> None:
        if context is not None and len(row.prompt) >= context:
            raise UserError(
                f"{example.set}: the prompt of row {row.row + 1} ({example.id}) has {len(row.prompt)} tokens, the "
                f"model's context is {context}. Use a model with a longer one, a shorter --data.template, or "
                "leave the row out."
            )

    def _evaluate(self, name: str, owner: ReasoningDataModule, examples: dict[int, Example], need_gold: bool) -> None:
        tokenizer, context = self._tokenizer(), self._context()
        rows = []
        for index, example in examples.items():
            if need_gold and example.answer is None:
                raise UserError(
                    f"{name}: row {index + 1} has no 'answer' to compare with; use predict instead of test."
                )
            row = TokenRow(index, encode_prompt(tokenizer, self.prompt(example)), [])
            self._refuse_beyond_context(row, example, context)
            rows.append(row)
        self._evaluated[name] = _EvalSet(owner, examples, rows)

    def _loader(self, rows: TrainingRows, sampler: Any) -> DataLoader:
        pad_id = self._tokenizer().pad_token_id
        assert isinstance(pad_id, int)
        return DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=Collate(pad_id),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _eval_loader(self, rows: TrainingRows, lengths: list[int]) -> DataLoader:
        assert self.trainer is not None
        sampler = LengthSortedSampler(lengths, self.eval_batch_size, self.trainer.global_rank, self.trainer.world_size)
        return self._loader(rows, sampler)
