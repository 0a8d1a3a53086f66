"""What every dataset shares: from examples to prompts, batches and questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from adapters_pl.answers import protocol_named, sets_of, spec_named
from adapters_pl.compat.lightning import rank_zero_info
from adapters_pl.data.contamination import Policy, question
from adapters_pl.data.contamination import report as contamination_of
from adapters_pl.data.example import Example
from adapters_pl.data.general_text import text_of
from adapters_pl.data.preparation import (
    OnOverflow,
    divide,
    guarded,
    rows_of_tests,
    shuffled_answers,
    tokenised,
    without_repeats,
)
from adapters_pl.data.published import sources
from adapters_pl.data.questions import Asking, Questions, Reader, ask, draw_shots
from adapters_pl.data.rows import SETS, SetRows
from adapters_pl.data.sampler import (
    BudgetSampler,
    LengthSortedSampler,
    Processes,
    SeededRows,
    StepLoader,
    StepSampler,
    refuse_longer,
)
from adapters_pl.data.tokens import Collate, TokenTable, TrainingRows
from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.masking import masked_values
from adapters_pl.inputs.ranges import AtLeast0, AtLeast1, AtLeast8, NotNegative, refuse_out_of_range
from adapters_pl.inputs.terminal import leave_signals_to_the_parent
from adapters_pl.prompts import check_template

AnyLoader = TypeVar("AnyLoader", bound=DataLoader)


def set_named(name: str) -> type[ReasoningDataModule]:
    """The class of a published name or a class's name; raises ``UserError`` with the nearest names."""
    return SETS[spec_named(name).name]


class ReasoningDataModule(SetRows, LightningDataModule):
    """A reasoning dataset in the published layout: rows of ``instruction, input, output, answer``.

    They lie in ``dataset/<Name>/{train,test}.json`` and ``ft-training_set/*.json``.

    Args:
        root: the folder with ``dataset`` and ``ft-training_set`` (else what ``ADAPTERS_PL_DATA`` names, or here).
        files: published files that lie elsewhere: where, by their path in that layout
            (``{ft-training_set/math_10k.json: my/own.json}``).
        template: the prompt, by its name in ``adapters_pl.prompts``; ``chat`` is the tokenizer's own.
        system: the system's text in the chat template; the template's own if not given.
        thinking: the chat template's switch for reasoning models; theirs if not given.
        protocol: how answers are asked for, read and judged: ``strict``, ``llm_adapters`` or ``loglikelihood``.
        shots: worked examples before each tested question, drawn by ``seed`` from the training rows.
        samples: sampled answers to each question; their majority counts, and pass@k is reported.
        temperature: of sampling; 0.7 if there are several samples, else nothing is sampled.
        batch_size: training rows per process and batch.
        max_tokens_per_batch: instead, as many training rows as fit this number of tokens, padding included, the rows
            of a batch about as long as each other.
        eval_batch_size: rows per process and batch when answers are generated.
        cutoff: the longest training row in tokens (at most the model's context).
        on_overflow: what to do with a longer one: ``truncate`` its prompt from the left (and drop it if its response
            alone is too long), ``drop`` it, or treat it as an ``error``.
        packing: put the training rows of a batch end to end into sequences of up to two cutoffs, where each row
            sees itself alone: the same loss with less padding. A batch that is hardly smaller so is left as it is.
        train_on_prompt: also learn the prompt's tokens.
        shuffle_answers: give every training row the answer of another one of its kind: a control, which must not learn
            more than the form of an answer.
        val_size: rows held out of training for validation, at most a tenth of them; drawn by ``seed``,
            from the rows beyond ``limit_train`` if there are enough.
        limit_train: only the first so many training rows.
        limit_test: only the first so many rows of each test set.
        test_sets: the sets to test on, by published name or suite, instead of the dataset's own.
        skip_missing: go on without the test sets whose files are not at hand.
        contamination: what to do with training rows that are rows of a set the run will be judged on, or nearly:
            refuse to train (``error``), leave them out (``drop``), or train on them (``allow``).
        max_new_tokens: the most tokens of an answer; by the kind of set if not given.
        general_text: text on which ``test`` takes the loss a token with the adapter and without, which says what was
            forgotten: a file, or ``python``, the help texts that come with Python. Not done if not given.
        num_workers: processes that load batches.
        seed: of the validation rows and of the order of training rows.
    """

    #: The headings under which the help lists the arguments; those of one class alone stand behind them.
    headings: ClassVar[dict[str, tuple[str, ...]]] = {
        "What is read": ("root", "files", "limit_train", "limit_test", "val_size", "shuffle_answers"),
        "Prompts and lengths": ("template", "system", "thinking", "train_on_prompt", "cutoff", "on_overflow"),
        "Batches": ("packing", "batch_size", "max_tokens_per_batch", "eval_batch_size", "num_workers", "seed"),
        "How it is tested": ("test_sets", "protocol", "shots", "samples", "temperature", "max_new_tokens"),
        "What it has forgotten": ("general_text",),
        "What must not happen": ("contamination", "skip_missing"),
    }

    def __init__(
        self,
        root: str | None = None,
        files: dict[str, str] | None = None,
        template: str = "alpaca",
        system: str | None = None,
        thinking: bool | None = None,
        protocol: str = "strict",
        shots: AtLeast0 = 0,
        samples: AtLeast1 = 1,
        temperature: NotNegative | None = None,
        batch_size: AtLeast1 = 4,
        max_tokens_per_batch: AtLeast8 | None = None,
        eval_batch_size: AtLeast1 = 8,
        cutoff: AtLeast8 = 256,
        on_overflow: OnOverflow = "truncate",
        packing: bool = False,
        train_on_prompt: bool = False,
        shuffle_answers: bool = False,
        val_size: AtLeast0 = 120,
        limit_train: AtLeast1 | None = None,
        limit_test: AtLeast1 | None = None,
        test_sets: list[str] | None = None,
        skip_missing: bool = False,
        contamination: Policy = "error",
        max_new_tokens: AtLeast1 | None = None,
        general_text: str | None = None,
        num_workers: AtLeast0 = 0,
        seed: AtLeast0 = 42,
    ) -> None:
        super().__init__()
        refuse_out_of_range("data.", ReasoningDataModule.__init__, locals())
        if test_sets is not None and not test_sets:
            raise UserError("data.test_sets is empty: name the sets to test on, or leave it out.")
        for name in files or {}:
            if name not in sources():
                raise UserError(f"data.files: there is no published file '{name}': {did_you_mean(name, sources())}")
        if general_text is not None:
            text_of(general_text)
        check_template(template)  # a misspelt name fails here and not after the model is loaded
        temperature = temperature if temperature is not None else 0.7 if samples > 1 else 0.0
        if samples > 1 and not temperature:
            raise UserError(f"data.samples is {samples}, but at temperature 0 they would all be the same.")
        how = protocol_named(protocol)
        if temperature and not how.samples:
            raise UserError(f"data.samples and data.temperature go with protocol strict; {protocol} never samples.")
        #: How sets are asked.
        self.asking = Asking(how, template, system, thinking, shots, samples, temperature, max_new_tokens, seed)
        self.root = root
        self.files = files
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.eval_batch_size = eval_batch_size
        self.cutoff = cutoff
        self.on_overflow = on_overflow
        self.packing = packing
        self.train_on_prompt = train_on_prompt
        self.shuffle_answers = shuffle_answers
        self.val_size = val_size
        self.limit_train = limit_train
        self.limit_test = limit_test
        self.general_text = general_text
        self.test_sets = sets_of(test_sets or self.spec.judged_on) or [self.set_name]
        self.skip_missing = skip_missing
        #: The test sets that are left out because their files are not at hand.
        self.missing_sets: list[str] = []
        self.contamination: Policy = contamination
        #: What the guard found before training (see ``adapters_pl.data.contamination.report``).
        self.contamination_report: dict[str, Any] | None = None
        for name in self.test_sets:
            if name != self.set_name:
                spec_named(name)
        self.num_workers = num_workers
        self.seed = seed
        self.training: TrainingRows | None = None
        self.validation: TrainingRows | None = None
        self._checksums: dict[str, str] = {}
        #: Who reads the rows, and how processes share them; :meth:`connect` says it.
        self.reader: Reader | None = None
        self.processes = Processes()
        self._vocabulary: int | None = None
        self._one_sequence = False
        self._validates_answers = False
        self._stage = ""
        self._questions: dict[str, tuple[ReasoningDataModule, Questions]] = {}

    def connect(
        self,
        reader: Reader,
        processes: Processes | None = None,
        *,
        vocabulary: int | None = None,
        one_sequence: bool = False,
        validates_answers: bool = False,
    ) -> None:
        """Say what the rows are made for; the module does it before they are read, and again when it has its model.

        Args:
            reader: the tokenizer, and how long a text may be.
            processes: how several of them share the rows; this one has them all if not given.
            vocabulary: the tokens that the base knows; a row with another is refused. Not looked at if not given.
            one_sequence: packed rows of a batch have to lie in a single sequence.
            validates_answers: validation rows are answered, too.
        """
        self.reader = reader
        self.processes = processes or Processes()
        self._vocabulary, self._one_sequence = vocabulary, one_sequence
        self._validates_answers = validates_answers

    @property
    def hparams_initial(self) -> AttributeDict:
        """What a data module of one's own hands to loggers by ``save_hyperparameters``, without secrets."""
        return masked_values(super().hparams_initial)

    def prompt(self, example: Example) -> str:
        """The text that the model is given for ``example`` in training."""
        return self.asking.prompt(self._tokenizer, example, template=self.asking.template)

    def test_prompt(self, example: Example, shots: Sequence[Example] = ()) -> str:
        """The text that the model is given when it is tested: the protocol may have a template of its own."""
        return self.asking.prompt(self._tokenizer, example, shots)

    def questions(self, name: str) -> Questions | None:
        """Set ``name`` as it is asked, or nothing where it is not."""
        return self._questions[name][1] if name in self._questions else None

    @property
    def validation_set(self) -> str:
        """The name under which the validation rows are answered."""
        return f"{self.set_name}-validation"

    @property
    def eval_sets(self) -> list[str]:
        """The sets that are tested, in the order of their data loaders."""
        return [name for name in self.test_sets if name not in self.missing_sets]

    @property
    def checksums(self) -> dict[str, str]:
        """The git blob SHA-1 of every published file that was read, by its path in the published layout."""
        owners = [self, *(owner for owner, _ in self._questions.values())]
        return {path: sha1 for owner in owners for path, sha1 in owner._checksums.items()}

    # ---- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Read and tokenise what ``stage`` needs. Runs before the base's weights are loaded."""
        self._stage = stage
        if connect := getattr(getattr(self.trainer, "lightning_module", None), "connect", None):
            connect(self)
        if stage in ("fit", "validate"):
            self._setup_training(stage)
        else:
            found, self.missing_sets = self._tests(self.test_sets)
            for name, (owner, examples) in found.items():
                examples = examples[: self.limit_test]
                self._ask(name, owner, dict(enumerate(examples)), need_gold=stage == "test")

    def train_dataloader(self) -> StepLoader:
        """Batches in optimizer steps, see :class:`StepSampler`; a resumed run goes on where it stopped."""
        assert self.training is not None
        place, labels, lengths = self.processes, self.training.label_counts(), self.training.lengths()
        how: dict[str, Any] = {"rank": place.rank, "world_size": place.count, "accumulate": place.accumulate}
        how.update(seed=self.seed, limit=place.limit)
        sampler: StepSampler
        if self.max_tokens_per_batch is None:
            sampler = StepSampler(labels, self.batch_size, lengths=lengths, **how)
        else:
            sampler = BudgetSampler(labels, lengths, self.max_tokens_per_batch, **how)
        return self._loader(SeededRows(self.training), sampler, StepLoader, self.training_collate())

    def training_collate(self) -> Collate:
        """What makes training rows into batches."""
        collate = self._collate()
        if self.packing:
            # Rows of up to one cutoff fill two of them well, and attention is still a small part.
            collate.pack_to, collate.one_sequence = self._reader.longest(2 * self.cutoff), self._one_sequence
        return collate

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The validation rows; none if ``val_size`` is 0."""
        if self.validation is None or not len(self.validation):
            if self._stage == "validate":
                raise UserError("There are no validation rows: set --data.val_size above 0.")
            return []
        return self._eval_loader(self.validation, self.validation.lengths())

    def test_dataloader(self) -> list[DataLoader]:
        """One loader a test set, in the order of ``eval_sets``."""
        loaders = []
        for name in self.eval_sets:
            rows = self._questions[name][1].rows
            loaders.append(self._eval_loader(TrainingRows(rows), [len(row.prompt) for row in rows]))
        return loaders

    def rows_here(self, name: str) -> list[int]:
        """The rows of a test set that this process answers, in the order of its batches."""
        rows = self._questions[name][1].rows
        return [rows[place].row for batch in self._eval_sampler([len(row.prompt) for row in rows]) for place in batch]

    def predict_dataloader(self) -> list[DataLoader]:
        """The same loaders as for a test; the rows need no gold answer."""
        return self.test_dataloader()

    # ---- inside

    def _set(self, name: str) -> ReasoningDataModule:
        return self if name == self.set_name else set_named(name)(root=self.root, files=self.files)

    def _setup_training(self, stage: str) -> None:
        examples = self.examples("train")
        train, held_out = self.division(examples, check=stage == "fit")
        if held_out and (stage == "validate" or self._validates_answers):
            self._ask_validation_rows({row: examples[row] for row in held_out}, refuse=stage == "fit")
        found = self.questions(self.validation_set)
        prompts = found.prompts if found else {}
        learnt = shuffled_answers(examples, train) if self.shuffle_answers else examples
        self.training = TrainingRows(self._tokenised(learnt, train), self.train_on_prompt)
        self.validation = TrainingRows(self._tokenised(examples, held_out), self.train_on_prompt, prompts)
        if stage == "fit" and self.max_tokens_per_batch is not None:
            refuse_longer(self.training.lengths(), self.max_tokens_per_batch)  # before the base is loaded

    def _ask_validation_rows(self, held_out: dict[int, Example], refuse: bool) -> None:
        """Ask the held-out rows that have a gold answer as a test would ask them."""
        gold = {row: example for row, example in held_out.items() if example.answer is not None}
        if gold:
            self._ask(self.validation_set, self, gold, need_gold=True)
        if len(gold) == len(held_out):
            return
        what = f"{len(held_out) - len(gold)} of {len(held_out)} validation rows have no 'answer' to compare with"
        if refuse and not gold:
            raise UserError(f"{self.set_name}: {what}, so val_accuracy cannot be had: choose --model.monitor val_loss.")
        rank_zero_info(f"{self.set_name}: {what}; {'the others are answered' if gold else 'only the loss is reported'}")

    def division(self, examples: list[Example], check: bool = False) -> tuple[list[int], list[int]]:
        """The rows to train on and the rows held out for validation, by their numbers: the same in every stage.

        No training row asks what a held-out row asks, and under ``contamination: drop`` none of either is a test row.

        Args:
            examples: all training rows.
            check: compare with the test rows under every policy, as before training.
        """
        train, held_out = divide(len(examples), self.limit_train, self.val_size, self.seed)
        train = without_repeats(self.set_name, examples, train, held_out)
        parts = [self._weighted(train), held_out]
        train, held_out = self._checked(examples, parts) if check or self.contamination == "drop" else parts
        return train, held_out

    def _checked(self, examples: Sequence[Example], parts: list[list[int]]) -> list[list[int]]:
        """Compare the rows of ``parts`` with every set the run will be judged on; the parts without what is dropped."""
        judged = [name for name in self.test_sets if name not in self.sets_without_rows]
        tests, unchecked = self._tests(judged, for_training=True)
        self.contamination_report, overlapping = contamination_of(
            [question(examples[row]) for part in parts for row in part],
            {name: [question(example) for example in rows] for name, (_, rows) in tests.items()},
            self.contamination,
            {name: self.distribution(name) for name in tests},
            unchecked,
        )
        # What was compared, by its checksum: the results of a test only name the files that were tested.
        owners = [self, *(owner for owner, _ in tests.values())]
        self.contamination_report["data"] = {path: sha1 for owner in owners for path, sha1 in owner._checksums.items()}
        return guarded(self.set_name, self.contamination_report, overlapping, parts)

    def _tests(
        self, names: Sequence[str], for_training: bool = False
    ) -> tuple[dict[str, tuple[ReasoningDataModule, list[Example]]], list[str]]:
        """The sets' data modules with their test rows, and the names of those whose files are not at hand."""
        tolerated = self.skip_missing or (for_training and self.contamination == "allow")
        return rows_of_tests(self.set_name, {name: self._set(name) for name in names}, tolerated, for_training)

    def _weighted(self, rows: list[int]) -> list[int]:
        """The training rows as often as they are taken in an epoch."""
        return rows

    def _ask(self, name: str, owner: ReasoningDataModule, examples: dict[int, Example], need_gold: bool) -> None:
        count = self.asking.shots
        shots = draw_shots(self._worked(owner), examples.values(), count, self.seed) if count else []
        # One's own rows may answer in any form; the published ones all begin alike.
        leads = owner.spec.test is not None
        how: dict[str, Any] = {"shots": shots, "prompt": self.test_prompt, "with_leads": leads, "need_gold": need_gold}
        self._questions[name] = owner, ask(name, examples, self.asking, self._reader, **how)

    def _worked(self, owner: ReasoningDataModule) -> list[Example]:
        """The training rows that worked examples come from: the tested set's own, else those of this dataset."""
        for source in (owner, self):
            try:
                return source.examples("train")
            except UserError as error:
                missing = error
        raise UserError(f"data.shots needs training rows to draw from. {missing}") from missing

    @property
    def _reader(self) -> Reader:
        if self.reader is None:
            raise UserError("The data module does not know who reads its rows: call its connect(Reader(tokenizer)).")
        return self.reader

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of who reads the rows; a notebook may look at prompts before anybody does."""
        return self.reader.tokenizer if self.reader else None

    def _tokenised(self, examples: list[Example], chosen: list[int]) -> TokenTable:
        prompts = [self.prompt(examples[index]) for index in chosen]
        rows = {index: examples[index] for index in chosen}
        cutoff = self._reader.longest(self.cutoff)
        return tokenised(self.set_name, self._reader, prompts, rows, chosen, cutoff, self.on_overflow)

    def _collate(self) -> Collate:
        pad_id = self._reader.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        return Collate(pad_id, vocabulary=self._vocabulary)

    def _loader(self, rows: Any, sampler: Any, kind: type[AnyLoader], collate: Collate | None = None) -> AnyLoader:
        return kind(
            rows,
            batch_sampler=sampler,
            collate_fn=collate or self._collate(),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.processes.on_gpu,
            worker_init_fn=leave_signals_to_the_parent,
            # Else making an iterator draws from the numbers that dropout draws from.
            generator=torch.Generator(),
        )

    def _eval_loader(self, rows: TrainingRows, lengths: list[int]) -> DataLoader:
        return self._loader(rows, self._eval_sampler(lengths), DataLoader)

    def _eval_sampler(self, lengths: list[int]) -> LengthSortedSampler:
        return LengthSortedSampler(lengths, self.eval_batch_size, self.processes.rank, self.processes.count)
