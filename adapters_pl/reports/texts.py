"""Texts of strangers, made fit to be shown: in a terminal, a page, a figure, a table."""

from __future__ import annotations

import re

#: Control characters but tab and new line, halves of pairs, and what reorders the text around it.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def shown(text: object, most: int | None = None) -> str:
    """``text`` in which a box stands for every character that is none to look at.

    Args:
        text: a text, or something that has one.
        most: the most characters; of a longer one the middle is left out.
    """
    found = _UNSHOWN.sub("\N{WHITE SQUARE}", str(text))
    if most is None or len(found) <= most:
        return found
    half = (most - 1) // 2
    return f"{found[:half]}…{found[-half:]}"


def in_one_line(text: object, most: int | None = None) -> str:
    """The same without tabs and new lines."""
    return shown(" ".join(str(text).split()), most)
