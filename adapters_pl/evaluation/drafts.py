"""What comes next, guessed from what has been written: tokens that a model reads at once instead of one by one."""

from __future__ import annotations

from collections.abc import Sequence

#: By tokens, where they stood: a text, and the place of what followed.
Seen = dict[tuple[int, ...], tuple[list[int], int]]


class Drafts:
    """Guesses how answers go on from those that were written before them, and from their own prompts.

    Where the last tokens of a row stood before, those that followed them there are drafted. A model that is given a
    draft says at each of its tokens which one it would have taken, so that what is wrong is known, and taken back:
    answers are what they would be without drafts (Leviathan et al. 2023, arXiv 2211.17192; drafts from the text itself:
    Saxena 2023, prompt lookup decoding).

    Args:
        known: how many tokens must have stood before.
        most: the longest draft.
    """

    def __init__(self, known: int = 3, most: int = 2) -> None:
        self.known, self.most = known, most
        #: What followed tokens where they stood last in an answer.
        self.seen: Seen = {}

    def begin(self, prompt: Sequence[int]) -> Draft:
        """A row that begins after ``prompt``."""
        return Draft(self, prompt)

    def learn(self, seen: Seen, text: list[int], begin: int) -> None:
        """Take note in ``seen`` of ``text`` from its place ``begin``."""
        for place in range(max(begin, self.known), len(text)):
            seen[tuple(text[place - self.known : place])] = text, place


class Draft:
    """One row: its text so far, and how far it pays to guess."""

    def __init__(self, drafts: Drafts, prompt: Sequence[int]) -> None:
        self._drafts = drafts
        self._text = list(prompt)
        self._length = drafts.most
        # Its own alone: those of all rows of a set would fill the memory.
        self._prompt: Seen = {}
        drafts.learn(self._prompt, self._text, 0)

    def next(self) -> list[int]:
        """Tokens that may come next; none where nothing like the last tokens stood before."""
        last = tuple(self._text[-self._drafts.known :])
        text, place = self._drafts.seen.get(last) or self._prompt.get(last) or ([], 0)
        return text[place : place + self._length]

    def add(self, tokens: Sequence[int], drafted: int) -> None:
        """Take note of the tokens that came, of which all but the last had been among ``drafted``."""
        begin = len(self._text)
        self._text += tokens
        self._drafts.learn(self._drafts.seen, self._text, begin)
        if drafted:
            right = len(tokens) - 1
            self._length = min(self._drafts.most, 2 * self._length) if right == drafted else max(1, right)
