"""Regular expressions over module paths, which may come from a stranger's file: every one has an end."""

from __future__ import annotations

import re
from functools import lru_cache

from adapters_pl.inputs.apart import Apart
from adapters_pl.inputs.errors import UserError

#: The longest pattern, and the seconds that matching may take together, whatever it is that is matched.
MOST_CHARACTERS, MOST_SECONDS = 10_000, 0.5

_MATCHER = """
import re
def answer(request):
    return bool(request) and re.fullmatch(*request) is not None
"""


def is_simple(text: str) -> bool:
    """Whether a pattern takes no more steps than a small power of a path's length, as may be seen at a glance.

    Such a pattern repeats at most three times and no group, has few choices behind one another, and refers to no group.
    """
    bare = re.sub(r"\\[^0-9]|\[[^]]*\]", "x", text)
    bare = re.sub(r"\(\?[:=!]|\(\?<[=!]|\(\?P<\w+>", "(", bare)
    return (
        len(re.findall(r"[*+]|\{", bare)) <= 3
        and bare.count("?") <= 6
        and len(re.findall(r"\([^()]*\|", bare)) <= 4
        and not re.search(r"\)(?:[*+]|\{)|\\[0-9]|\(\?", bare)
    )


class Pattern:
    """A compiled pattern whose every match has an end.

    A simple one is matched here, any other in a process of its own, which is ended if it takes too long.

    Args:
        text: the regular expression, in Python's syntax.
        setting: what messages call it.
    """

    def __init__(self, text: str, setting: str = "target_modules") -> None:
        self._text, self._named = text, f"{setting}: '{text[:80]}'"
        if len(text) > MOST_CHARACTERS:
            raise UserError(
                f"{self._named}... is longer than {MOST_CHARACTERS:,} characters; name the modules in a list."
            )
        try:
            self._compiled = re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"{self._named} is no regular expression: {error}.") from None
        self._simple = is_simple(text)

    def matches(self, path: str) -> bool:
        """Whether the whole of ``path`` matches.

        Raises:
            UserError: it took too long to tell.
        """
        if self._simple:
            return self._compiled.fullmatch(path) is not None
        found = _matcher.fullmatch(self._text, path)
        if found is None:
            raise UserError(
                f"{self._named} takes more than {MOST_SECONDS} s to match; repeat nothing within a repetition, or name "
                "the modules in a list."
            )
        return found


class _Matcher:
    """A process that matches: one for all patterns, however many there are."""

    def __init__(self) -> None:
        self._process = Apart(_MATCHER)
        self._left = MOST_SECONDS

    def fullmatch(self, text: str, path: str) -> bool | None:
        """Whether ``text`` matches ``path``; ``None`` once :data:`MOST_SECONDS` are spent, which then begin anew."""
        reply = self._process.ask([text, path], self._left)
        found, seconds = reply or (None, 0.0)
        self._left -= seconds if seconds > 1e-3 else 0.0  # a usual pattern takes microseconds, and may come for ever
        if reply and self._left > 0:
            return found
        self._left = MOST_SECONDS
        return None


_matcher = _Matcher()


@lru_cache(maxsize=1024)
def pattern(text: str, setting: str = "target_modules") -> Pattern:
    """The pattern ``text``, compiled once; raises ``UserError`` where it is none."""
    return Pattern(text, setting)


def refuse_unbounded(text: str, setting: str) -> None:
    """Raise ``UserError`` for a pattern that another library will match, unless it is simple."""
    if len(text) > MOST_CHARACTERS or not is_simple(text):
        raise UserError(f"{setting}: '{text[:80]}' repeats too much within itself; name the modules in a list.")
