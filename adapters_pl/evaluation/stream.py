"""Answers token by token, in a batch that rows leave when they have ended and waiting rows enter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from adapters_pl.evaluation.held import Held, Reading

#: From the places of rows and the scores of their next tokens, (B, V), to the tokens, (B,).
Choose = Callable[[Sequence[int], Tensor], Tensor]


@torch.no_grad()
def stream(
    reading: Reading, prompts: Sequence[list[int]], ends: Sequence[int], limit: int, size: int, choose: Choose
) -> Iterator[tuple[int, list[int]]]:
    """The places of ``prompts`` and the tokens that follow them, an end token among them, as rows end.

    Args:
        reading: reads the prompts.
        prompts: in tokens.
        ends: tokens that end an answer.
        limit: the most tokens of an answer.
        size: the most rows at a time.
        choose: takes the next tokens.
    """
    # The longest first: what memory is needed shows at once. Equal prompts are neighbours, and are read once.
    waiting = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), prompts[place], place))
    if waiting:
        reading.share(prompts)
    rows: list[tuple[int, list[int]]] = []
    held: Held | None = None
    scores = torch.empty(0)
    while waiting or rows:
        # A few rows at a time would cost nearly as much to read as many.
        if waiting and len(rows) <= size - max(1, size // 4):
            places, waiting = waiting[: size - len(rows)], waiting[size - len(rows) :]
            entering, first = _enter(reading, [prompts[place] for place in places])
            held, scores = (entering, first) if held is None else (held.joined(entering), torch.cat([scores, first]))
            rows += [(place, []) for place in places]
        tokens = choose([place for place, _ in rows], scores)
        left = []
        for number, token in enumerate(tokens.tolist()):
            place, written = rows[number]
            written.append(token)
            if token in ends or len(written) == limit:
                yield place, written
            else:
                left.append(number)
        assert held is not None
        if not left:
            rows, held = [], None
            continue
        if len(left) < len(rows):
            rows, held, tokens = [rows[number] for number in left], held.select(left), tokens[left]
        scores = held.read(reading.call, tokens[:, None], torch.ones_like(tokens[:, None]))[:, -1]


def _enter(reading: Reading, prompts: Sequence[list[int]]) -> tuple[Held, Tensor]:
    """Rows that begin, and the scores of their next tokens; equal ones are read once."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    held, scores = reading.read(list(map(list, numbers)))
    if len(numbers) == len(prompts):
        return held, scores
    rows = [numbers[tuple(prompt)] for prompt in prompts]
    return held.select(rows), scores[rows]
