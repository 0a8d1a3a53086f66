"""Regular expressions over module paths, which may come from a stranger's file: every one has an end."""

from __future__ import annotations

import re
import time
from functools import lru_cache

import regex

from adapters_pl.errors import UserError

#: The longest pattern, and the time that all matches of one may take together; a usual one takes microseconds.
MOST_CHARACTERS, MOST_SECONDS = 10_000, 0.5


class Pattern:
    """A compiled pattern whose matches end within :data:`MOST_SECONDS`, all of them together.

    Args:
        text: the regular expression.
        setting: what messages call it.
    """

    def __init__(self, text: str, setting: str = "target_modules") -> None:
        self._named = f"{setting}: '{text[:80]}'"
        self._left = MOST_SECONDS
        if len(text) > MOST_CHARACTERS:
            raise UserError(
                f"{self._named}... is longer than {MOST_CHARACTERS:,} characters; name the modules in a list."
            )
        try:
            self._compiled = regex.compile(text)
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise UserError(f"{self._named} is no regular expression: {error}.") from None

    def matches(self, path: str) -> bool:
        """Whether the whole of ``path`` matches.

        Raises:
            UserError: it took too long to tell.
        """
        return self._within(self._compiled.fullmatch, path) is not None

    def begins(self, path: str) -> regex.Match[str] | None:
        """The match at the beginning of ``path``; raises as :meth:`matches` does."""
        return self._within(self._compiled.match, path)

    def _within(self, match, path: str):  # type: ignore[no-untyped-def]
        began = time.monotonic()
        try:
            found = match(path, timeout=max(self._left, 1e-3))
        except TimeoutError:
            raise UserError(
                f"{self._named} takes more than {MOST_SECONDS} s to match; repeat nothing within a repetition."
            ) from None
        if (took := time.monotonic() - began) > 1e-2:  # anything shorter is the machine's own unrest
            self._left -= took
        return found


@lru_cache(maxsize=1024)
def pattern(text: str, setting: str = "target_modules") -> Pattern:
    """The pattern ``text``, compiled once; raises ``UserError`` where it is none."""
    return Pattern(text, setting)


def refuse_unbounded(text: str, setting: str) -> None:
    """Raise ``UserError`` for a pattern that another library will match without an end that is near.

    At most three repetitions without a bound, and none of a group, take at most the cube of a path's length.
    """
    bare = re.sub(r"\\.|\[[^]]*\]", "x", text)
    if len(re.findall(r"[*+]|\{\d*,\}", bare)) > 3 or re.search(r"\)(?:[*+]|\{)", bare) or len(text) > MOST_CHARACTERS:
        raise UserError(f"{setting}: '{text[:80]}' repeats too much within itself; name the modules in a list.")
