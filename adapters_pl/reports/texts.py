"""Texts of strangers, made fit to be shown: in a terminal, a page, a figure, a table."""

from __future__ import annotations

from adapters_pl.inputs.terminal import to_look_at


def shown(text: object, most: int | None = None) -> str:
    """``text`` as :func:`to_look_at` has it.

    Args:
        text: a text, or something that has one.
        most: the most characters; of a longer one the middle is left out.
    """
    found = to_look_at(str(text))
    if most is None or len(found) <= most:
        return found
    half = (most - 1) // 2
    return f"{found[:half]}…{found[-half:]}"


def in_one_line(text: object, most: int | None = None) -> str:
    """The same without tabs and new lines."""
    return shown(" ".join(str(text).split()), most)
