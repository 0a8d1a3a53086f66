"""What comes next, guessed from what has been written: tokens that a model reads at once instead of one by one."""

from __future__ import annotations

from collections.abc import Sequence


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
        #: Where tokens stood last, and what followed: a text, and a place in it.
        self._seen: dict[tuple[int, ...], tuple[list[int], int]] = {}

    def begin(self, prompt: Sequence[int]) -> Draft:
        """A row that begins after ``prompt``."""
        return Draft(self, prompt)

    def learn(self, text: list[int], begin: int) -> None:
        """Take note of ``text`` from its place ``begin``."""
        for place in range(max(begin, self.known), len(text)):
            self._seen[tuple(text[place - self.known : place])] = text, place

    def after(self, text: list[int], length: int) -> list[int]:
        """Up to ``length`` tokens that may follow ``text``."""
        found = self._seen.get(tuple(text[-self.known :]))
        return found[0][found[1] : found[1] + length] if found else []


class Draft:
    """One row: its text so far, and how far it pays to guess."""

    def __init__(self, drafts: Drafts, prompt: Sequence[int]) -> None:
        self._drafts = drafts
        self._text = list(prompt)
        self._length = drafts.most
        drafts.learn(self._text, 0)

    def next(self) -> list[int]:
        """Tokens that may come next; none where nothing like the last tokens stood before."""
        return self._drafts.after(self._text, self._length)

    def add(self, tokens: Sequence[int], drafted: int) -> None:
        """Take note of the tokens that came, of which all but the last had been among ``drafted``."""
        begin = len(self._text)
        self._text += tokens
        self._drafts.learn(self._text, begin)
        if drafted:
            right = len(tokens) - 1
            self._length = min(self._drafts.most, 2 * self._length) if right == drafted else max(1, right)
