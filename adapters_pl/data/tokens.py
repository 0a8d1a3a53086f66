"""From an example to token ids and back into batches.

The ids that training begins with are exactly the ids that generation is given: the prompt is encoded alone,
and the response's ids are appended to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from pyarrow import ChunkedArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from adapters_pl.data.sampler import StepIndices
from adapters_pl.inputs.errors import UserError

IGNORE = -100


@dataclass(frozen=True)
class TokenRow:
    """One example in tokens.

    Attributes:
        row: its number in the file's order.
        prompt: ids of the prompt, with the beginning token if the tokenizer has one.
        response: ids of the response and the end token; empty for a test row.
    """

    row: int
    prompt: list[int]
    response: list[int]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + len(self.response)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's ids: what the tokenizer puts before a text, once, and nothing after it."""
    return _once(tokenizer, tokenizer(prompt)["input_ids"], prompt)


def _once(tokenizer: PreTrainedTokenizerBase, ids: list[int], prompt: str) -> list[int]:
    while ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    # A template may write the beginning token itself.
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos] and prompt.startswith(str(tokenizer.bos_token)):
        ids = ids[1:]
    return ids


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Every prompt's ids, as :func:`encode_prompt` gives them, and those of its response with an end token.

    Where the tokenizer cuts prompt and response exactly at their border, the response's ids are those it has
    in the whole text (a SentencePiece model would put a space before a text of its own); where it merges
    across the border, the response is encoded by itself.
    """

    def plain(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    if not prompts:
        return [], []
    given = tokenizer(list(prompts), return_special_tokens_mask=True)
    if tokenizer.is_fast:
        # What the tokenizer added is marked, so that the bare prompt need not be encoded again.
        before = [
            [token for token, added in zip(ids, marks, strict=True) if not added]
            for ids, marks in zip(given["input_ids"], given["special_tokens_mask"], strict=True)
        ]
    else:
        before = plain(list(prompts))
    joined = plain([prompt + response for prompt, response in zip(prompts, responses, strict=True)])
    merged = [i for i, ids in enumerate(before) if joined[i][: len(ids)] != ids]
    alone = dict(zip(merged, plain([responses[i] for i in merged]), strict=True))
    continued = [alone[i] if i in alone else joined[i][len(ids) :] for i, ids in enumerate(before)]
    return (
        [_once(tokenizer, ids, prompt) for ids, prompt in zip(given["input_ids"], prompts, strict=True)],
        [[*ids, tokenizer.eos_token_id] for ids in continued],
    )


def fit_to_cutoff(row: TokenRow, cutoff: int) -> TokenRow:
    """Shorten ``row`` to ``cutoff`` tokens: the prompt loses its beginning, but for the first token, which may mark the
    beginning of a text. The response stays whole; it has to leave room for one token.
    """
    if row.length <= cutoff:
        return row
    room = cutoff - len(row.response)
    return TokenRow(row.row, row.prompt[:1] + row.prompt[len(row.prompt) - room + 1 :], row.response)


class _Ragged:
    """Rows of different lengths in one flat array, as Arrow keeps them."""

    def __init__(self, column: ChunkedArray) -> None:
        lists = column.combine_chunks()
        self.values = lists.values.to_numpy(zero_copy_only=False)
        self.offsets = lists.offsets.to_numpy(zero_copy_only=False)

    def __getitem__(self, row: int) -> list[int]:
        return self.values[self.offsets[row] : self.offsets[row + 1]].tolist()

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets).astype(np.int64)


class TokenTable(Sequence[TokenRow]):
    """Encoded rows as a sequence of :class:`TokenRow`, each fitted to the cutoff when it is asked for.

    A list of such rows would take a hundred times the memory.

    Args:
        rows: columns ``prompt`` and ``response``, lists of ids, as ``token_cache.encoded`` gives them.
        numbers: each row's number in the file's order.
        cutoff: the longest row in tokens.
        chosen: which of ``rows`` there are; all if not given.
    """

    def __init__(
        self, rows: datasets.Dataset, numbers: Sequence[int], cutoff: int, chosen: NDArray[np.int64] | None = None
    ) -> None:
        self._rows = rows
        self._numbers = numbers
        self._prompts, self._responses = (_Ragged(rows.data.column(name)) for name in ("prompt", "response"))
        self._chosen = np.arange(len(rows)) if chosen is None else chosen
        self.cutoff = cutoff

    def select(self, keep: NDArray[np.bool_]) -> TokenTable:
        """Only the rows for which ``keep`` (N,) is true."""
        return TokenTable(self._rows, self._numbers, self.cutoff, self._chosen[keep])

    def prompt_lengths(self) -> NDArray[np.int64]:
        """Tokens of every prompt (N,), before anything is cut."""
        return self._prompts.lengths()[self._chosen]

    def response_lengths(self) -> NDArray[np.int64]:
        """Tokens of every response (N,), before anything is cut."""
        return self._responses.lengths()[self._chosen]

    def fitted_lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of every prompt and of every response (N,), as the rows have them."""
        prompts, responses = self.prompt_lengths(), self.response_lengths()
        return np.minimum(prompts, self.cutoff - responses), responses

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...
    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        """A row, or a list of rows."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return fit_to_cutoff(self.unfitted(index), self.cutoff)

    def unfitted(self, index: int) -> TokenRow:
        """A row as long as it was encoded."""
        place = int(self._chosen[index])
        return TokenRow(self._numbers[place], self._prompts[place], self._responses[place])


class TrainingRows(Dataset[dict[str, Any]]):
    """Token rows that know, batch by batch, which optimizer step they are part of.

    Args:
        rows: what is learnt, or asked.
        train_on_prompt: the prompt's tokens have labels too.
        prompts: prompts that rows are answered after, by row, where those are not the ones of training.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        train_on_prompt: bool = False,
        prompts: Mapping[int, list[int]] | None = None,
    ) -> None:
        self.rows = rows
        self.train_on_prompt = train_on_prompt
        self.prompts = prompts or {}

    def labels(self, row: TokenRow) -> list[int]:
        """The label of every token: the response's own ids, and the prompt's only if it is trained on.

        The first token is predicted from nothing, so it never has a label.
        """
        prompt = row.prompt[1:] if self.train_on_prompt else [IGNORE] * (len(row.prompt) - 1)
        return [IGNORE, *prompt, *row.response]

    def label_counts(self) -> list[int]:
        """Labelled tokens of every row."""
        if isinstance(self.rows, TokenTable):
            prompts, responses = self.rows.fitted_lengths()
            return (responses + (np.maximum(prompts - 1, 0) if self.train_on_prompt else 0)).tolist()
        return [sum(label != IGNORE for label in self.labels(row)) for row in self.rows]

    def lengths(self) -> list[int]:
        """Tokens of every row."""
        if isinstance(self.rows, TokenTable):
            prompts, responses = self.rows.fitted_lengths()
            return (prompts + responses).tolist()
        return [row.length for row in self.rows]

    def __len__(self) -> int:
        """Rows in all."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row: ids, labels, and the prompt that it is answered after."""
        row = self.rows[index]
        return {"row": row, "labels": self.labels(row), "prompt": self.prompts.get(row.row, row.prompt)}

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
    """Make rows into a batch.

    ``input_ids``, ``attention_mask`` and ``labels`` are (B, T) padded on the right, ``prompt_ids`` and
    ``prompt_mask`` are (B, P) padded on the left, as generation needs them; ``row_ids`` is (B,), and ``tokens`` says
    how many there are without padding.

    Packed, the rows lie end to end in as few sequences of at most ``pack_to`` tokens as they fit into, or in a single
    one as long as all of them: the first three are (S, T) with S <= B. So are ``position_ids``, which begin at 0 with
    every row, and ``segment_ids``, which number a sequence's rows from 0. The padding behind them is a segment of its
    own. A batch that is hardly smaller packed is left as it is.

    Args:
        pad_id: fills what is left; told by the mask alone.
        pack_to: tokens of a packed sequence; one row a sequence if not given.
        one_sequence: packed, all rows lie in one sequence, however long.
        vocabulary: the tokens that the base knows; a row with another is refused. Not looked at if not given.
        least_saving: the share of its tokens, padding included, that a batch has to lose to be packed.
    """

    def __init__(
        self,
        pad_id: int,
        pack_to: int | None = None,
        one_sequence: bool = False,
        vocabulary: int | None = None,
        least_saving: float = 0.05,
    ) -> None:
        self.pad_id = pad_id
        self.pack_to = pack_to
        self.one_sequence = one_sequence
        self.vocabulary = vocabulary
        self.least_saving = least_saving

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Make one batch.

        Raises:
            UserError: a row has a token that the base does not know.
        """
        rows: list[TokenRow] = [item["row"] for item in items]
        lengths = [row.length for row in rows]
        sequences = self._packed(lengths)
        packed = sequences is not None
        sequences = sequences or [[i] for i in range(len(rows))]
        width = _width(sequences, lengths)
        ids = torch.full((len(sequences), width), self.pad_id, dtype=torch.long)
        mask, positions, segments = torch.zeros_like(ids), torch.zeros_like(ids), torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORE)
        for place, sequence in enumerate(sequences):
            end = 0
            for segment, i in enumerate(sequence):
                begin, end = end, end + lengths[i]
                ids[place, begin:end] = torch.tensor([*rows[i].prompt, *rows[i].response])
                mask[place, begin:end] = 1
                labels[place, begin:end] = torch.tensor(items[i]["labels"])
                positions[place, begin:end] = torch.arange(lengths[i])
                segments[place, begin:end] = segment
            positions[place, end:] = torch.arange(width - end)
            segments[place, end:] = len(sequence)
        prompt_ids, prompt_mask = left_pad([item["prompt"] for item in items], self.pad_id)
        largest = max(int(ids.max()), int(prompt_ids.max()) if prompt_ids.numel() else 0)
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise UserError(
                f"The tokenizer gives token {largest:,}, and the base knows {self.vocabulary:,}: it belongs to another "
                "base. Copy or download the base's directory again."
            )
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            **({"position_ids": positions, "segment_ids": segments} if packed else {}),
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "row_ids": torch.tensor([row.row for row in rows]),
            "tokens": sum(lengths),
            "loss_tokens": items[0].get("loss_tokens", int((labels != IGNORE).sum())),
        }

    def _packed(self, lengths: Sequence[int]) -> list[list[int]] | None:
        """Which rows share a sequence; ``None`` where each has one of its own."""
        if self.pack_to is None:
            return None
        sequences = _balanced(lengths, sum(lengths) if self.one_sequence else self.pack_to)
        computed = len(sequences) * _width(sequences, lengths)
        return sequences if computed <= (1 - self.least_saving) * len(lengths) * max(lengths) else None


def _width(sequences: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return max(sum(lengths[i] for i in sequence) for sequence in sequences)


def _balanced(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which rows share a sequence: the fewest sequences of at most ``size`` tokens that are about as long.

    The longest row comes first, each to the sequence that is shortest so far; a row beyond ``size`` is one of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    size = max(size, lengths[order[0]])
    for count in range(-(-sum(lengths) // size), len(lengths) + 1):
        sequences: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for i in order:
            shortest = filled.index(min(filled))
            sequences[shortest].append(i)
            filled[shortest] += lengths[i]
        if max(filled) <= size:
            break
    return sequences


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """``(input_ids, attention_mask)``, both (B, T), with the padding before each row."""
    width = max(len(row) for row in rows)
    return _padded(rows, pad_id, [slice(width - len(row), width) for row in rows])


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """``(input_ids, attention_mask)``, both (B, T), with the padding behind each row."""
    return _padded(rows, pad_id, [slice(0, len(row)) for row in rows])


def _padded(rows: Sequence[Sequence[int]], pad_id: int, places: Sequence[slice]) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(rows), max(len(row) for row in rows)), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids, mask
