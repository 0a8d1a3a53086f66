"""From an example to token ids and back into batches.

The ids that training begins with are exactly the ids that generation is given: the prompt is encoded alone,
and the response's ids are appended to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from adapters_pl.data.sampler import StepIndices
from adapters_pl.generation import left_pad

IGNORE = -100


@dataclass(frozen=True)
class TokenRow:
    """One example in tokens.

    Attributes:
        row: its number in the file's order.
        prompt: ids of the prompt, with the beginning token if the tokenizer has one.
        response: ids of the response and the end token; empty for a test row.
        overflow: what did not fit the cutoff: nothing, part of the prompt, or part of the response.
    """

    row: int
    prompt: list[int]
    response: list[int]
    overflow: Literal["", "prompt", "response"] = ""

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + len(self.response)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's ids: what the tokenizer puts before a text, once, and nothing after it."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    while ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    return ids


def encode_response(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> list[int]:
    """The ids that continue the prompt's, and the end token.

    Where the tokenizer cuts prompt and response exactly at their border, the response's ids are those it has
    in the whole text (a SentencePiece model would put a space before a text of its own); where it merges
    across the border, the response is encoded by itself.
    """
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + response, add_special_tokens=False)["input_ids"]
    if whole[: len(before)] == before:
        ids = whole[len(before) :]
    else:
        ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def fit_to_cutoff(row: TokenRow, cutoff: int) -> TokenRow:
    """Shorten ``row`` to ``cutoff`` tokens: the prompt loses its beginning (but the first token, which may
    mark the beginning of a text), so that the answer stays whole; only a response that is itself too long
    loses its end, and with it the end token.
    """
    if row.length <= cutoff:
        return row
    response = row.response[: cutoff - 1]
    room = cutoff - len(response)
    prompt = row.prompt[:1] + row.prompt[len(row.prompt) - room + 1 :] if room < len(row.prompt) else row.prompt
    cut: Literal["prompt", "response"] = "response" if len(response) < len(row.response) else "prompt"
    return TokenRow(row.row, prompt, response, cut)


class TrainingRows(Dataset[dict[str, Any]]):
    """Token rows that know, batch by batch, which optimizer step they are part of."""

    def __init__(self, rows: Sequence[TokenRow], train_on_prompt: bool = False) -> None:
        self.rows = rows
        self.train_on_prompt = train_on_prompt

    def labels(self, row: TokenRow) -> list[int]:
        """The label of every token: the response's own ids, and the prompt's only if it is trained on.

        The first token is predicted from nothing, so it never has a label.
        """
        prompt = row.prompt[1:] if self.train_on_prompt else [IGNORE] * (len(row.prompt) - 1)
        return [IGNORE, *prompt, *row.response]

    def label_counts(self) -> list[int]:
        """Labelled tokens of every row."""
        return [sum(label != IGNORE for label in self.labels(row)) for row in self.rows]

    def __len__(self) -> int:
        """Rows in all."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row: ids and labels."""
        row = self.rows[index]
        return {"row": row, "labels": self.labels(row)}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """A batch's rows, with the step's labelled tokens where a step is what asks."""
        items = [self[index] for index in indices]
        if isinstance(indices, StepIndices):
            for item in items:
                item["loss_tokens"] = indices.loss_tokens
                if indices.empty:
                    item["labels"] = [IGNORE] * len(item["labels"])
        return items


class Collate:
    """Pad rows into a batch.

    ``input_ids``, ``attention_mask`` and ``labels`` are (B, T) padded on the right, ``prompt_ids`` and
    ``prompt_mask`` are (B, P) padded on the left, as generation needs them; ``row_ids`` is (B,).
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Make one batch."""
        rows: list[TokenRow] = [item["row"] for item in items]
        width = max(row.length for row in rows)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORE)
        for i, (row, item) in enumerate(zip(rows, items, strict=True)):
            ids[i, : row.length] = torch.tensor([*row.prompt, *row.response])
            mask[i, : row.length] = 1
            labels[i, : row.length] = torch.tensor(item["labels"])
        prompt_ids, prompt_mask = left_pad([row.prompt for row in rows], self.pad_id)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "row_ids": torch.tensor([row.row for row in rows]),
            "loss_tokens": items[0].get("loss_tokens", int((labels != IGNORE).sum())),
        }
