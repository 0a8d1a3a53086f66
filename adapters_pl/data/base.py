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

from adapters_pl.answers import Kind, option_texts, protocol_named
from adapters_pl.base_model import context_length
from adapters_pl.contamination import Policy
from adapters_pl.data.fetch import check_published, find_file
from adapters_pl.data.files import FIELDS, as_dataset, read_rows
from adapters_pl.data.preparation import OnOverflow, guard, rows_of_tests, tokenised
from adapters_pl.data.registry import SETS, SUITES, Example, set_named, sets_of
from adapters_pl.data.sampler import LengthSortedSampler, StepSampler
from adapters_pl.data.tokenize import (
    Collate,
    TokenRow,
    TokenTable,
    TrainingRows,
    encode_prompt,
)
from adapters_pl.errors import UserError
from adapters_pl.evaluation import draw_shots, judge_one, judge_samples, judge_scored, prompt_hash
from adapters_pl.generation import Generation, seed_of
from adapters_pl.prompts import CHAT, check_template, render, render_chat, with_shots
from adapters_pl.scoring import LEADS, Choices, Scored, encode_choices

if TYPE_CHECKING:
    from adapters_pl.module import CausalLMModule

Split = Literal["train", "test"]

#: New tokens per answer, as LLM-Adapters generates them: reasoning takes room, an option does not.
NEW_TOKENS: dict[Kind, int] = {"number": 256, "letter": 256, "choice": 32, "text": 256}


@dataclass
class _EvalSet:
    """One set that answers are generated for: its examples and their prompts, in tokens and hashed.

    ``choices`` are the rows' options in tokens, where options are scored instead.
    """

    owner: ReasoningDataModule
    examples: dict[int, Example]
    rows: list[TokenRow]
    hashes: dict[int, str]
    choices: dict[int, Choices]


class ReasoningDataModule(LightningDataModule):
    """A reasoning dataset in the published layout: rows of ``instruction, input, output, answer``.

    Args:
        root: the folder that holds ``dataset/<Name>/{train,test}.json`` and ``ft-training_set/*.json``;
            else the environment variable ``ADAPTERS_PL_DATA``, else the current folder.
        template: the prompt, by its name in ``adapters_pl.prompts``; ``chat`` is the tokenizer's own.
        system: the system's text in the chat template; the template's own if not given.
        thinking: the chat template's switch for reasoning models; theirs if not given.
        protocol: how sets are asked and answers are read and judged, by its name in ``adapters_pl.answers``.
        shots: worked examples before each tested question, drawn by ``seed`` from the training rows.
        samples: sampled answers to each question; their majority counts, and pass@k is reported.
        temperature: of sampling; 0.7 if there are several samples, else nothing is sampled.
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
        test_sets: the sets to test on, by published name or suite, instead of the dataset's own.
        skip_missing: go on without the test sets whose files are not at hand.
        contamination: what to do with training rows that are rows of a set the run will be judged on, or nearly:
            refuse to train (``error``), leave them out (``drop``), or train on them (``allow``).
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
    #: The sets whose rows the training file was drawn from; the others it is judged on are out of distribution.
    drawn_from: ClassVar[tuple[str, ...]] = ()
    #: Which of the training file's columns a field is read from, where it has another name.
    train_columns: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.set_name and cls.set_name not in SUITES:
            SETS.setdefault(cls.set_name, cls)

    def __init__(
        self,
        root: str | None = None,
        template: str = "alpaca",
        system: str | None = None,
        thinking: bool | None = None,
        protocol: str = "strict",
        shots: int = 0,
        samples: int = 1,
        temperature: float | None = None,
        batch_size: int = 4,
        eval_batch_size: int = 8,
        cutoff: int = 256,
        on_overflow: OnOverflow = "truncate",
        train_on_prompt: bool = False,
        val_size: int = 120,
        limit_train: int | None = None,
        limit_test: int | None = None,
        test_sets: list[str] | None = None,
        skip_missing: bool = False,
        contamination: Policy = "error",
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
            ("shots", shots, 0),
            ("samples", samples, 1),
            ("temperature", temperature, 0),
        ):
            if value is not None and value < least:
                raise UserError(f"data.{name} is {value}; it must be at least {least}.")
        check_template(template)  # a misspelt name fails here and not after the model is loaded
        self.protocol = protocol_named(protocol)
        self.shots = shots
        self.samples = samples
        self.temperature = temperature if temperature is not None else 0.7 if samples > 1 else 0.0
        if samples > 1 and not self.temperature:
            raise UserError(f"data.samples is {samples}, but at temperature 0 they would all be the same.")
        if self.temperature and protocol != "strict":
            raise UserError(f"data.samples and data.temperature go with protocol strict; {protocol} never samples.")
        self.system = system
        self.thinking = thinking
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
        self.test_sets = sets_of(test_sets if test_sets is not None else self.judged_on or (self.set_name,))
        self.skip_missing = skip_missing
        #: The test sets that are left out because their files are not at hand.
        self.missing_sets: list[str] = []
        self.contamination: Policy = contamination
        #: What the guard found before training (see ``adapters_pl.contamination.report``).
        self.contamination_report: dict[str, Any] | None = None
        for name in self.test_sets:
            if name != self.set_name:
                set_named(name)
        self.max_new_tokens = max_new_tokens
        self.num_workers = num_workers
        self.seed = seed
        self.training: TrainingRows | None = None
        self.validation: TrainingRows | None = None
        self._evaluated: dict[str, _EvalSet] = {}
        self._checksums: dict[str, str] = {}

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
        self._checksums[relative] = check_published(path, relative, self.set_name)
        columns = self.train_columns if split == "train" else {}
        # A file with columns of its own may mix types in those that nothing reads.
        return as_dataset(read_rows(path, columns), path, FIELDS if columns else None)

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
        """The text that the model is given for ``example`` in training."""
        return self._render(self.template, example)

    def test_prompt(self, example: Example, kind: Kind, shots: Sequence[Example] = ()) -> str:
        """The text that the model is given when it is tested: the protocol may have a template of its own."""
        return self._render(self.protocol.template(kind, self.template), example, shots)

    def _render(self, template: str, example: Example, shots: Sequence[Example] = ()) -> str:
        worked = [(shot.instruction, shot.input, shot.response) for shot in shots]
        if template == CHAT:
            return render_chat(
                self._tokenizer(),
                example.instruction,
                example.input,
                system=self.system,
                thinking=self.thinking,
                shots=worked,
            )
        return with_shots(template, worked, render(template, example.instruction, example.input))

    @property
    def validation_set(self) -> str:
        """The name under which the validation rows are answered."""
        return f"{self.set_name}-validation"

    @property
    def eval_sets(self) -> list[str]:
        """The sets that are tested, in the order of their data loaders."""
        return [name for name in self.test_sets if name not in self.missing_sets]

    @property
    def sets_without_rows(self) -> tuple[str, ...]:
        """The set itself, where it has no test rows of its own that training rows could be among."""
        return () if self.test_file or type(self).rows is not ReasoningDataModule.rows else (self.set_name,)

    @property
    def suite(self) -> str | None:
        """The suite that the tested sets make up, if they make up one."""
        return next((name for name, sets in SUITES.items() if set(sets) == set(self.eval_sets)), None)

    @property
    def checksums(self) -> dict[str, str]:
        """The git blob SHA-1 of every published file that was read, by its path in the published layout."""
        owners = [self, *(evaluated.owner for evaluated in self._evaluated.values())]
        return {path: sha1 for owner in owners for path, sha1 in owner._checksums.items()}

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

    def settings(self, name: str) -> dict[str, Any]:
        """What an answer to set ``name`` depends on beside the model and the prompt's text."""
        kind = self._evaluated[name].owner.kind
        sampled = {"samples": self.samples, "temperature": self.temperature} if self.temperature else {}
        return {
            "protocol": self.protocol.name,
            "template": self.protocol.template(kind, self.template),
            "shots": self.shots,
            "beams": self.protocol.beams if self.protocol.generates else None,
            "max_new_tokens": self.new_tokens(name) if self.protocol.generates else None,
            **sampled,
            "seed": self.seed,
            "tolerance": self.protocol.tolerance if kind == "number" else None,
        }

    def distribution(self, name: str) -> Literal["in", "out"] | None:
        """Whether set ``name`` is one that the training rows were drawn from; ``None`` where that is not known."""
        drawn_from = self.drawn_from
        if not drawn_from and self.train_file and not self.judged_on:
            drawn_from = (self.set_name,)
        if not drawn_from:
            return None
        return "in" if name in drawn_from else "out"

    def sampling_seeds(self, name: str, row_ids: Sequence[int], sample: int) -> list[int]:
        """The seed of each row's ``sample``-th answer; by the row's name, so that no batch matters."""
        examples = self._evaluated[name].examples
        return [seed_of(self.seed, f"{name}/{examples[row].id}", sample) for row in row_ids]

    def choices(self, name: str, row_ids: Sequence[int]) -> list[Choices]:
        """The options of each row, to be scored."""
        return [self._evaluated[name].choices[row] for row in row_ids]

    def prompt_hashes(self, name: str) -> dict[int, str]:
        """What stands for each row's prompt in set ``name``, by the row's number."""
        return self._evaluated[name].hashes

    def judge(
        self,
        name: str,
        row_ids: Sequence[int],
        answers: Sequence[Generation | Scored | Sequence[Generation]],
    ) -> list[dict[str, Any]]:
        """One record a row: id, prompt hash, output, prediction, gold, correct (``None`` without gold), finish, tokens.

        Args:
            name: of the set.
            row_ids: the rows' numbers.
            answers: for each row what was generated, or several samples, or the scores of its options.
        """
        evaluated = self._evaluated[name]
        kind = evaluated.owner.kind
        records = []
        for row, answer in zip(row_ids, answers, strict=True):
            example = evaluated.examples[row]
            if isinstance(answer, Generation):
                record = judge_one(self.protocol, kind, example, answer)
            elif isinstance(answer, Scored):
                record = judge_scored(self.protocol, kind, example, answer)
            else:
                record = judge_samples(self.protocol, kind, example, answer)
            records.append({"row": row, "prompt_hash": evaluated.hashes[row], **record})
        return records

    # ---- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Read and tokenise what ``stage`` needs. Runs before the base's weights are loaded."""
        if self.trainer is not None and self.trainer.world_size > 1:
            connector = self.trainer._accelerator_connector
            if connector.use_distributed_sampler:
                raise UserError("Pass Trainer(use_distributed_sampler=False): the data module divides the rows itself.")
        if stage in ("fit", "validate"):
            self._setup_training(stage)
        else:
            found, self.missing_sets = rows_of_tests(self, self.test_sets)
            for name, (owner, examples) in found.items():
                examples = examples[: self.limit_test]
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
            other.__name__
            for other in SETS.values()
            if other.train_file and (self.set_name in other.judged_on or self.judged_on == other.judged_on != ())
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

    def _setup_training(self, stage: str) -> None:
        examples = self.examples("train")
        train, held_out = self._divide(len(examples))
        if stage == "fit":
            train, held_out = guard(self, examples, train, held_out)
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

    def _tokenised(self, examples: list[Example], chosen: list[int]) -> TokenTable:
        context = self._context()
        return tokenised(
            self.set_name,
            self._tokenizer(),
            [self.prompt(examples[index]) for index in chosen],
            [examples[index] for index in chosen],
            chosen,
            min(self.cutoff, context) if context else self.cutoff,
            self.on_overflow,
            lambda row, example: self._refuse_beyond_context(row, example, context),
        )

    def _refuse_beyond_context(self, row: TokenRow, example: Example, context: int | None) -> None:
        if context is not None and len(row.prompt) >= context:
            raise UserError(
                f"{example.set}: the prompt of row {row.row + 1} ({example.id}) has {len(row.prompt)} tokens, the "
                f"model's context is {context}. Use a model with a longer one, a shorter --data.template, or "
                "leave the row out."
            )

    def _evaluate(self, name: str, owner: ReasoningDataModule, examples: dict[int, Example], need_gold: bool) -> None:
        tokenizer, context, kind = self._tokenizer(), self._context(), owner.kind
        shots = draw_shots(self._worked(owner), examples.values(), self.shots, self.seed) if self.shots else []
        rows, hashes, choices = [], {}, {}
        for index, example in examples.items():
            if need_gold and example.answer is None:
                raise UserError(
                    f"{name}: row {index + 1} has no 'answer' to compare with; use predict instead of test."
                )
            prompt = self.test_prompt(example, kind, shots)
            row = TokenRow(index, encode_prompt(tokenizer, prompt), [])
            self._refuse_beyond_context(row, example, context)
            rows.append(row)
            hashes[index] = prompt_hash(prompt)
            if not self.protocol.generates:
                choices[index] = self._choices(owner, example, prompt)
        self._evaluated[name] = _EvalSet(owner, examples, rows, hashes, choices)

    def _worked(self, owner: ReasoningDataModule) -> list[Example]:
        """The training rows that worked examples come from: the tested set's own, else those of this dataset."""
        for source in (owner, self):
            try:
                return source.examples("train")
            except UserError as error:
                missing = error
        raise UserError(f"data.shots needs training rows to draw from. {missing}") from missing

    def _choices(self, owner: ReasoningDataModule, example: Example, prompt: str) -> Choices:
        """The options of one row after its prompt."""
        if owner.kind not in ("choice", "letter") or not example.options:
            raise UserError(
                f"{example.set}: protocol loglikelihood scores options, and {example.id} has none. "
                "Choose --data.protocol strict or llm_adapters, or test multiple-choice sets only."
            )
        # One's own rows may answer in any form; the published ones all begin alike.
        lead = LEADS[owner.kind] if owner.test_file else ""
        # A set's questions do not all offer every option (ARC has three to five).
        options = tuple(option_texts(f"{example.instruction} {example.input}", example.options))
        if len(options) < 2 or (example.answer is not None and example.answer not in options):
            options = example.options
        shown = [f"({option})" for option in options] if owner.kind == "letter" else options
        return encode_choices(self._tokenizer(), prompt, lead, options, shown)

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
