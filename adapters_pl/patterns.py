"""Regular expressions over module paths, which may come from a stranger's file: every one has an end."""

from __future__ import annotations

import atexit
import json
import re
import select
import subprocess
import sys
from functools import lru_cache

from adapters_pl.errors import UserError

#: The longest pattern, and the seconds that a match may take.
MOST_CHARACTERS, MOST_SECONDS = 10_000, 0.5

#: The program of a process that matches, and can be ended while it does.
_MATCHER = """
import json, re, sys
compiled = re.compile(json.loads(sys.stdin.readline()))
for line in sys.stdin:
    print(json.dumps(compiled.fullmatch(json.loads(line)) is not None), flush=True)
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
        self._process: subprocess.Popen[str] | None = None

    def matches(self, path: str) -> bool:
        """Whether the whole of ``path`` matches.

        Raises:
            UserError: it took too long to tell.
        """
        return self._compiled.fullmatch(path) is not None if self._simple else self._asked(path)

    def _asked(self, path: str) -> bool:
        if self._process is None:
            command = [sys.executable, "-I", "-S", "-c", _MATCHER]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            atexit.register(self._end)
            self._tell(self._text)
            self._tell("")  # so that its beginning is not counted
            self._answer(10)
        self._tell(path)
        return self._answer(MOST_SECONDS)

    def _tell(self, text: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(text) + "\n")

    def _answer(self, seconds: float) -> bool:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._end()
            raise UserError(
                f"{self._named} takes more than {seconds} s to match; repeat nothing within a repetition, or name the "
                "modules in a list."
            )
        return bool(json.loads(line))

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


@lru_cache(maxsize=1024)
def pattern(text: str, setting: str = "target_modules") -> Pattern:
    """The pattern ``text``, compiled once; raises ``UserError`` where it is none."""
    return Pattern(text, setting)


def refuse_unbounded(text: str, setting: str) -> None:
    """Raise ``UserError`` for a pattern that another library will match, unless it is simple."""
    if len(text) > MOST_CHARACTERS or not is_simple(text):
        raise UserError(f"{setting}: '{text[:80]}' repeats too much within itself; name the modules in a list.")
