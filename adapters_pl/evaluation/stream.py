"""Answers token by token, in a batch that rows leave when they have ended and waiting rows enter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from adapters_pl.data.tokens import right_pad
from adapters_pl.evaluation.drafts import Draft, Drafts
from adapters_pl.evaluation.held import Held, Reading

#: From the places of rows and the scores of their next tokens, (B, V), to the tokens, (B,).
Choose = Callable[[Sequence[int], Tensor], Tensor]

#: Rows enter where one in so many places is free: a few at a time would cost nearly as much to read as many.
PART = 4

#: The most tokens in a step where guesses are among them: up to about so many, most of its time goes into fetching
#: weights, and guesses cost little.
AT_ONCE = 32


class _Row:
    def __init__(self, place: int, draft: Draft | None) -> None:
        self.place, self._draft = place, draft
        self.written: list[int] = []
        #: What is read next: the last token, and a guess of what follows it.
        self.next: list[int] = []

    def add(self, tokens: list[int]) -> None:
        """Write ``tokens``."""
        self.written += tokens
        if self._draft is not None:
            self._draft.add(tokens, max(0, len(self.next) - 1))
        self.next = tokens[-1:]

    def guess(self, most: int) -> None:
        """Read up to ``most`` tokens more in the next step, that may follow the last one."""
        if self._draft is not None and most > 0:
            self.next += self._draft.next()[:most]


@torch.no_grad()
def stream(
    reading: Reading,
    prompts: Sequence[list[int]],
    ends: Sequence[int],
    limit: int,
    size: int,
    choose: Choose,
    drafts: Drafts | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """The places of ``prompts`` and the tokens that follow them, an end token among them, as rows end.

    Args:
        reading: reads the prompts.
        prompts: in tokens.
        ends: tokens that end an answer.
        limit: the most tokens of an answer.
        size: the most rows at a time.
        choose: takes the next tokens.
        drafts: guesses them; without it one is read at a time.
    """
    # The longest first: what memory is needed shows at once. Equal prompts are neighbours, and are read once.
    waiting = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), prompts[place], place))
    if waiting:
        reading.share(prompts)
    rows: list[_Row] = []
    held: Held | None = None
    while waiting or rows:
        if waiting and len(rows) <= size - max(1, size // PART):
            places, waiting = waiting[: size - len(rows)], waiting[size - len(rows) :]
            entering = [_Row(place, drafts.begin(prompts[place]) if drafts else None) for place in places]
            new, scores = _enter(reading, [prompts[place] for place in places])
            for row, tokens in zip(entering, _chosen(entering, scores[:, None], choose, ends), strict=True):
                row.add(tokens)
            held = new if held is None else held.joined(new)
            rows += entering
        else:
            assert held is not None
            for row in rows:
                row.guess(min(AT_ONCE // len(rows), limit - len(row.written)) - 1)
            scores, mask = _read(reading, held, [row.next for row in rows])
            chosen = _chosen(rows, scores, choose, ends)
            right = torch.tensor([len(tokens) for tokens in chosen], device=mask.device)
            held.forget(torch.arange(mask.shape[1], device=mask.device) >= right[:, None])
            for row, tokens in zip(rows, chosen, strict=True):
                row.add(tokens)
        left = []
        for number, row in enumerate(rows):
            if row.written[-1] in ends or len(row.written) == limit:
                yield row.place, row.written
            else:
                left.append(number)
        if len(left) < len(rows):
            rows = [rows[number] for number in left]
            held = held.select(left) if left else None
        held = held and held.tidied()


def _enter(reading: Reading, prompts: Sequence[list[int]]) -> tuple[Held, Tensor]:
    """Rows that begin, and the scores of their next tokens; equal ones are read once."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    held, scores = reading.read(list(map(list, numbers)))
    scores = scores[:, -1]
    if len(numbers) == len(prompts):
        return held, scores
    rows = [numbers[tuple(prompt)] for prompt in prompts]
    return held.select(rows), scores[rows]


def _read(reading: Reading, held: Held, texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """The scores after each of the next tokens of every row, (B, T, V), and the mask of these tokens, (B, T)."""
    ids, mask = (part.to(reading.device) for part in right_pad(texts, reading.pad_id))
    return held.read(reading.call, ids, mask, keep=0), mask


def _chosen(rows: Sequence[_Row], scores: Tensor, choose: Choose, ends: Sequence[int]) -> list[list[int]]:
    """The next tokens of every row: those that were guessed as far as they are chosen, and the one after them."""
    found: list[list[int]] = [[] for _ in rows]
    numbers = list(range(len(rows)))
    for step in range(scores.shape[1]):
        tokens = choose([rows[number].place for number in numbers], scores[numbers, step]).tolist()
        going_on = []
        for number, token in zip(numbers, tokens, strict=True):
            found[number].append(token)
            guess = rows[number].next[step + 1 : step + 2]
            if guess == [token] and token not in ends:
                going_on.append(number)
        numbers = going_on
        if not numbers:
            break
    return found
