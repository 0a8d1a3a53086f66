"""The half of a data module that asks: sets as prompts in tokens, the options of their rows, and judging answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerBase

from adapters_pl.answers import Kind, Protocol, option_texts
from adapters_pl.base_model import context_length
from adapters_pl.data.registry import Example
from adapters_pl.data.tokenize import TokenRow, encode_prompt
from adapters_pl.errors import UserError
from adapters_pl.evaluation import draw_shots, judge_one, judge_samples, judge_scored, prompt_hash
from adapters_pl.generation import Generation, seed_of
from adapters_pl.masking import masked_values
from adapters_pl.prompts import CHAT, render, render_chat, with_shots
from adapters_pl.scoring import LEADS, Choices, Scored, encode_choices

if TYPE_CHECKING:
    from adapters_pl.data.base import ReasoningDataModule
    from adapters_pl.module import CausalLMModule

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

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of answer that its rows have."""
        return sorted({example.kind or "text" for example in self.examples.values()})


class AskingDataModule(LightningDataModule):
    """How sets are asked and their answers judged; a subclass says what the sets are, and how rows are read.

    Its arguments are those of :class:`~adapters_pl.data.base.ReasoningDataModule`.
    """

    protocol: Protocol
    template: str
    system: str | None
    thinking: bool | None
    shots: int
    samples: int
    temperature: float
    max_new_tokens: int | None
    seed: int

    def __init__(self) -> None:
        super().__init__()
        self._evaluated: dict[str, _EvalSet] = {}

    @abstractmethod
    def examples(self, split: Any) -> list[Example]:
        """All examples of a split."""

    def test_prompt(self, example: Example, shots: Sequence[Example] = ()) -> str:
        """The text that the model is given when it is tested: the protocol may have a template of its own."""
        return self._render(self.protocol.template(example.kind or "text", self.template), example, shots)

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

    def new_tokens(self, name: str) -> int:
        """The most new tokens of an answer to set ``name``.

        Never more than fit the model's context after the set's longest prompt: one number for the set, so
        that no answer depends on the rows it happened to share a batch with.
        """
        evaluated = self._evaluated[name]
        wanted = self.max_new_tokens or max(NEW_TOKENS[kind] for kind in evaluated.kinds)
        context = self._context()
        if context is None:
            return wanted
        return min(wanted, context - max(len(row.prompt) for row in evaluated.rows))

    def settings(self, name: str) -> dict[str, Any]:
        """What an answer to set ``name`` depends on beside the model and the prompt's text."""
        kinds = self._evaluated[name].kinds
        templates = {kind: self.protocol.template(kind, self.template) for kind in kinds}
        sampled = {"samples": self.samples, "temperature": self.temperature} if self.temperature else {}
        return {
            "protocol": self.protocol.name,
            "template": templates if len(set(templates.values())) > 1 else templates[kinds[0]],
            "shots": self.shots,
            "beams": self.protocol.beams if self.protocol.generates else None,
            "max_new_tokens": self.new_tokens(name) if self.protocol.generates else None,
            **sampled,
            "seed": self.seed,
            "tolerance": self.protocol.tolerance if "number" in kinds else None,
        }

    def sampling_seeds(self, name: str, row_ids: Sequence[int], sample: int) -> list[int]:
        """The seed of each row's ``sample``-th answer; by the row's name, so that no batch matters."""
        examples = self._evaluated[name].examples
        return [seed_of(self.seed, f"{name}/{examples[row].id}", sample) for row in row_ids]

    def choices(self, name: str, row_ids: Sequence[int]) -> list[Choices]:
        """The options of each row, to be scored."""
        return [self._evaluated[name].choices[row] for row in row_ids]

    def asked(self, name: str) -> dict[int, list[int]]:
        """The prompt of every row of set ``name`` that is answered, in tokens, by the row's number."""
        return {row.row: row.prompt for row in self._evaluated[name].rows} if name in self._evaluated else {}

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
        records = []
        for row, answer in zip(row_ids, answers, strict=True):
            example = evaluated.examples[row]
            if isinstance(answer, Generation):
                record = judge_one(self.protocol, example, answer)
            elif isinstance(answer, Scored):
                record = judge_scored(self.protocol, example, answer)
            else:
                record = judge_samples(self.protocol, example, answer)
            records.append({"row": row, "prompt_hash": evaluated.hashes[row], **record})
        return records

    # ---- preparing

    @property
    def hparams_initial(self) -> AttributeDict:
        """What a data module of one's own hands to loggers by ``save_hyperparameters``, without secrets."""
        return masked_values(super().hparams_initial)

    @property
    def _module(self) -> CausalLMModule:
        assert self.trainer is not None
        return cast("CausalLMModule", self.trainer.lightning_module)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self._module.tokenizer

    def _context(self) -> int | None:
        """The most tokens of a text: the model's context without the positions that virtual tokens take."""
        whole = context_length(self._module.config)
        return None if whole is None else whole - self._module.virtual_tokens

    def _refuse_beyond_context(self, row: TokenRow, example: Example, context: int | None) -> None:
        if context is not None and len(row.prompt) >= context:
            virtual = self._module.virtual_tokens
            without = f" without the {virtual} virtual tokens" if virtual else ""
            raise UserError(
                f"{example.set}: the prompt of row {row.row + 1} ({example.id}) has {len(row.prompt)} tokens, the "
                f"model's context is {context}{without}. Use a model with a longer one, a shorter --data.template, or "
                "leave the row out."
            )

    def _evaluate(self, name: str, owner: ReasoningDataModule, examples: dict[int, Example], need_gold: bool) -> None:
        tokenizer, context = self._tokenizer(), self._context()
        shots = draw_shots(self._worked(owner), examples.values(), self.shots, self.seed) if self.shots else []
        rows, hashes, choices = [], {}, {}
        for index, example in examples.items():
            if need_gold and example.answer is None:
                raise UserError(
                    f"{name}: row {index + 1} has no 'answer' to compare with; use predict instead of test."
                )
            prompt = self.test_prompt(example, shots)
            row = TokenRow(index, encode_prompt(tokenizer, prompt), [])
            self._refuse_beyond_context(row, example, context)
            rows.append(row)
            hashes[index] = prompt_hash(prompt)
            if not self.protocol.generates:
                choices[index] = self._choices(owner, example, prompt)
                longest = max(([*pair.context, *pair.continuation[:-1]] for pair in choices[index].pairs), key=len)
                self._refuse_beyond_context(TokenRow(index, longest, []), example, context)
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
        if example.kind not in ("choice", "letter") or not example.options:
            raise UserError(
                f"{example.set}: protocol loglikelihood scores options, and {example.id} has none. "
                "Choose --data.protocol strict or llm_adapters, or test multiple-choice sets only."
            )
        # One's own rows may answer in any form; the published ones all begin alike.
        lead = LEADS[example.kind] if owner.test_file else ""
        # A set's questions do not all offer every option (ARC has three to five).
        options = tuple(option_texts(f"{example.instruction} {example.input}", example.options))
        if len(options) < 2 or (example.answer is not None and example.answer not in options):
            options = example.options
        shown = [f"({option})" for option in options] if example.kind == "letter" else options
        return encode_choices(self._tokenizer(), prompt, lead, options, shown)
